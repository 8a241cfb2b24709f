//! `ringpipe bridge`, run as a user runs it.
#![cfg(feature = "bridge")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringpipe::{Connection, Listener, connect, mpmc};

const LONG: Duration = Duration::from_secs(60);

fn ringpipe(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpipe"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A process that is told to end, and ends well.
struct Bridge(Option<Child>);

impl Bridge {
    fn start(arguments: &[&str]) -> Bridge {
        Bridge(Some(ringpipe(&[&["bridge"], arguments].concat()).spawn().unwrap()))
    }

    /// How many of its threads have a name that begins so.
    fn threads(&self, name: &str) -> usize {
        let tasks = format!("/proc/{}/task", self.0.as_ref().unwrap().id());
        let names =
            std::fs::read_dir(tasks).unwrap().map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
        names.filter(|comm| comm.as_ref().is_ok_and(|comm| comm.starts_with(name))).count()
    }

    fn end(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // SAFETY: it is ours, and has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn a_pipe_and_queues_go_from_one_bridge_to_the_other_until_they_are_told_to_end() {
    let directory = std::env::temp_dir().join(format!("ringpipe-bridge-tool-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let name = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("tcp/127.0.0.1:{port}");
    let mut listener = Listener::bind(name("pipe")).unwrap();
    let [tasks, answers] = ["tasks", "answers"].map(|queue| {
        let mut queue = mpmc::Listener::bind(name(queue)).unwrap();
        let ends = (queue.sender().clone(), queue.receiver().clone());
        std::thread::spawn(move || queue.serve());
        ends
    });
    let (pipe, take, put) = (name("pipe"), name("tasks"), name("answers"));
    let mut home =
        Bridge::start(&["--listen", &endpoint, "--export", &pipe, "--export-take", &take, "--export-put", &put]);
    let far = ["pipe", "tasks", "answers"].map(|key| format!("{}={key}", name(&format!("far-{key}"))));
    let mut away = Bridge::start(&[
        "--connect",
        &endpoint,
        "--import",
        &far[0],
        "--import-take",
        &far[1],
        "--import-put",
        &far[2],
    ]);

    let mut client: Connection = connect(name("far-pipe"), LONG).unwrap();
    let (mut server, _) = listener.accept_timeout(LONG).unwrap();
    client.send_bytes(b"question").unwrap();
    assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"question");
    let worker: mpmc::Receiver = connect(name("far-tasks"), LONG).unwrap();
    let answer: mpmc::Sender = connect(name("far-answers"), LONG).unwrap();
    tasks.0.send_bytes(b"task").unwrap();
    assert_eq!(worker.recv_bytes_timeout(LONG).unwrap(), b"task");
    answer.send_bytes(b"answer").unwrap();
    assert_eq!(answers.1.recv_bytes_timeout(LONG).unwrap(), b"answer");
    if std::env::var_os("ZENOH_RUNTIME").is_none() {
        // Who accepts has no thread for that where there are few processors.
        let few = std::thread::available_parallelism().unwrap().get() <= 2;
        assert_eq!(home.threads("acc-") == 0, few);
    }
    away.end();
    home.end();
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn bad_arguments_are_told_by_the_exit_code() {
    let code = |arguments: &[&str]| ringpipe(&[&["bridge"], arguments].concat()).output().unwrap().status.code();
    assert_eq!(code(&[]), Some(2), "nothing to do");
    assert_eq!(code(&["--connect", "tcp/127.0.0.1:1", "--export", "x=a*b"]), Some(2), "a key with a star");
    assert_eq!(code(&["--connect", "tcp/127.0.0.1:1", "--import", "/=x"]), Some(2), "a name that cannot be one");
    assert_eq!(code(&["--window", "1k", "--export", "x"]), Some(2), "a window that holds no segment");
    assert_eq!(code(&["--listen", "nonsense", "--export", "x"]), Some(1), "an endpoint that is none");
}
