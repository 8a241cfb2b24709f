//! `ringpipe ls` and `ringpipe top`, run as a user runs them.

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use ringpipe::{Builder, Connection, Listener, connect, mpmc};
use serde_json::Value;
use support::await_end;

const LIMIT: Duration = Duration::from_secs(60);

/// A directory of its own for names, bare and others, and for nobody else's.
struct Dir(PathBuf);

impl Dir {
    fn new(of: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("ringpipe-pipes-{}-{of}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Dir(path.canonicalize().unwrap())
    }

    fn name(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpipe"));
        command.args(args).env("XDG_RUNTIME_DIR", &self.0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str]) -> Process {
        Process(self.command(args).spawn().unwrap())
    }

    fn run(&self, args: &[&str]) -> String {
        printed(self.command(args).output().unwrap())
    }

    /// What `ls` shows of a name.
    fn listed(&self, name: &str) -> Vec<Value> {
        let array: Vec<Value> = serde_json::from_str(&self.run(&["ls", "--json"])).unwrap();
        array.into_iter().filter(|entry| entry["name"] == name).collect()
    }

    /// The one entry of a name, once it is as it should be.
    fn await_listed(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let give_up = Instant::now() + LIMIT;
        loop {
            let mut listed = self.listed(name);
            if listed.len() == 1 && wanted(&listed[0]) {
                return listed.remove(0);
            }
            assert!(Instant::now() < give_up, "{name} is not as it should be: {listed:#?}");
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Killed with the test.
struct Process(Child);

impl Process {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn printed(output: Output) -> String {
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn participant(entry: &Value, pid: u32) -> Value {
    let participants = entry["participants"].as_array().unwrap();
    participants.iter().find(|one| one["pid"] == pid).cloned().unwrap_or(Value::Null)
}

#[test]
fn a_pipe_is_listed_with_what_waits_in_it() {
    let dir = Dir::new("fill");
    let name = dir.name("clients");
    let mut listener = Listener::builder().pipes(Builder::new().capacity(1 << 16)).bind(&name).unwrap();
    let me = std::process::id();
    let alone = dir.await_listed(&name, |_| true);
    assert_eq!((alone["status"].as_str(), alone["owner"].as_u64()), (Some("listening"), Some(me.into())));
    assert_eq!((&alone["kind"], &alone["segment"]), (&Value::Null, &Value::Null), "there is no pipe yet");

    let client = thread::spawn({
        let name = name.clone();
        move || connect::<Connection>(name, LIMIT).unwrap()
    });
    let (mut here, _) = listener.accept().unwrap();
    let mut there = client.join().unwrap();
    for _ in 0..7 {
        here.send_bytes(&[1; 100]).unwrap();
    }
    there.send_bytes(&[1; 1000]).unwrap();
    let entry = dir.await_listed(&name, |entry| entry["segment"].is_u64());
    assert_eq!((entry["kind"].as_str(), entry["path"].as_str()), (Some("pipe"), Some(name.as_str())));
    assert_eq!((entry["capacity"].as_u64(), entry["owner"].as_u64()), (Some(1 << 16), Some(me.into())));
    let [to_client, to_owner] = &entry["directions"].as_array().unwrap()[..] else { panic!("{entry:#}") };
    assert_eq!((to_client["from"].as_str(), to_client["to"].as_str()), (Some("owner"), Some("client")));
    assert_eq!((to_client["fill_messages"].as_u64(), to_client["fill_bytes"].as_u64()), (Some(7), Some(7 * 112)));
    assert_eq!((to_owner["fill_messages"].as_u64(), to_owner["fill_bytes"].as_u64()), (Some(1), Some(1008)));
    assert_eq!(to_owner["sent_bytes_per_second"].as_f64(), Some(0.0));
    assert_eq!(participant(&entry, me)["role"].as_str(), Some("owner"));
    // Not a participant: who looks.
    assert_eq!(entry["participants"].as_array().unwrap().len(), 1, "{entry:#}");
    let table = dir.run(&["ls"]);
    let row = table.lines().find(|line| line.starts_with(&name)).unwrap_or_else(|| panic!("{table}"));
    for part in ["pipe", "listening", "64.0 KiB", "owner>client", "784 B, 7"] {
        assert!(row.contains(part), "no {part} in {row}");
    }
}

#[test]
fn all_documented_fields_are_there_and_no_others() {
    let dir = Dir::new("fields");
    let _queue = dir.start(&["queue", "jobs"]);
    let entry = dir.await_listed("jobs", |entry| entry["segment"].is_u64());
    assert_eq!(entry["path"].as_str(), Some(dir.name("ringpipe/jobs").as_str()), "a bare name, where they lie");
    let help = dir.run(&["ls", "--help"]);
    let documented = &help[help.find("As JSON, these are the fields").expect("it is documented")..];
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let all = [keys(&entry), keys(&entry["directions"][0]), keys(&entry["participants"][0])].concat();
    assert_eq!(all.len(), 10 + 10 + 4);
    for key in all {
        assert!(documented.contains(&key), "{key} is not documented");
    }
}

#[test]
fn how_participants_wait_is_shown() {
    let dir = Dir::new("states");
    let mut receiver = dir.start(&["recv", "states"]);
    dir.await_listed("states", |entry| entry["status"] == "listening");
    let mut sender = Process(dir.command(&["send", "states"]).stdin(Stdio::piped()).spawn().unwrap());
    // The name is free again, and the pipe goes on.
    let (pid, other) = (receiver.pid(), sender.pid());
    let entry = dir.await_listed("states", |entry| participant(entry, pid)["state"] == "parked");
    assert_eq!((entry["status"].as_str(), entry["owner"].as_u64()), (Some("closed"), Some(pid.into())));
    assert_eq!(entry["directions"][1]["receiver"].as_str(), Some("parked"));
    assert_eq!(participant(&entry, pid)["role"].as_str(), Some("owner"));
    // It waits for its standard input.
    assert_eq!(participant(&entry, other)["role"].as_str(), Some("client"));
    // SAFETY: the process is a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(other.try_into().unwrap(), libc::SIGSTOP) }, 0);
    dir.await_listed("states", |entry| participant(entry, other)["state"] == "stopped");
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(other.try_into().unwrap(), libc::SIGCONT) }, 0);
    drop(sender.0.stdin.take());
    assert!(await_end(&mut sender.0, LIMIT).success() && await_end(&mut receiver.0, LIMIT).success());
    assert_eq!(dir.listed("states"), [] as [Value; 0], "nothing is left");
}

#[test]
fn a_participant_of_a_queue_that_was_killed_is_shown_as_dead() {
    let dir = Dir::new("killed");
    let mut queue = dir.start(&["queue", "jobs"]);
    let mut receiver = dir.start(&["recv", "jobs", "--shared"]);
    let dead = |entry: &Value| entry["participants"].as_array().unwrap().iter().any(|one| one["state"] == "dead");
    // Until it watches for the others.
    let entry = dir.await_listed("jobs", |entry| entry["directions"][0]["receiver"] == "parked");
    assert_eq!(entry["kind"].as_str(), Some("queue"));
    assert_eq!((entry["members"].as_u64(), dead(&entry)), (Some(3), false), "{entry:#}");
    assert_eq!(participant(&entry, receiver.pid())["state"].as_str(), Some("parked"));
    receiver.kill();
    let entry = dir.await_listed("jobs", dead);
    assert_eq!((entry["members"].as_u64(), participant(&entry, receiver.pid())), (Some(2), Value::Null));
    // The next one notices, and takes its place.
    let _receiver = dir.start(&["recv", "jobs", "--shared"]);
    dir.await_listed("jobs", |entry| !dead(entry) && entry["members"] == 3);

    queue.kill();
    let entry = dir.await_listed("jobs", |entry| entry["status"] == "dead");
    assert!(entry["owner"].is_null() && participant(&entry, queue.pid()).is_null(), "{entry:#}");
    drop(_receiver);
    let left = dir.await_listed("jobs", |entry| entry["segment"].is_null());
    assert_eq!(left["status"].as_str(), Some("dead"), "the name is still there");
}

#[test]
fn pipes_without_a_name_are_shown_if_all_are_asked_for() {
    let dir = Dir::new("all");
    let (_receiver, sender) = mpmc::simplex().unwrap();
    sender.send_bytes(b"hello").unwrap();
    let me = std::process::id();
    let mine = |args: &[&str]| {
        let entries: Vec<Value> = serde_json::from_str(&dir.run(args)).unwrap();
        let anonymous = entries.into_iter().filter(|entry| entry["status"] == "anonymous");
        anonymous.filter(|entry| !participant(entry, me).is_null()).collect::<Vec<_>>()
    };
    assert!(mine(&["ls", "--json"]).is_empty());
    let found = mine(&["ls", "--json", "--all"]);
    let is_it = |entry: &Value| entry["kind"] == "queue" && entry["directions"][0]["fill_messages"] == 1;
    assert!(found.iter().any(is_it), "{found:#?}");
}

#[test]
fn nothing_of_other_users_is_shown() {
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only the superuser can become another user");
        return;
    }
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let dir = Dir::new("others");
    std::os::unix::fs::chown(&dir.0, Some(NOBODY), None).unwrap();
    // Where another user can run it.
    let program = dir.0.join("ringpipe");
    fs::copy(env!("CARGO_BIN_EXE_ringpipe"), &program).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).uid(NOBODY).gid(NOBODY).current_dir("/").env_remove("XDG_RUNTIME_DIR");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let (name, mine) = (dir.name("theirs"), dir.name("mine"));
    let _queue = Process(as_nobody(&["queue", &name]).spawn().unwrap());
    let give_up = Instant::now() + LIMIT;
    let theirs = loop {
        let listed = printed(as_nobody(&["ls", "--all"]).output().unwrap());
        if listed.contains(&name) {
            break listed;
        }
        assert!(Instant::now() < give_up, "{listed}");
    };
    let _listener = Listener::bind(&mine).unwrap();
    let listed = dir.run(&["ls", "--all"]);
    assert!(listed.contains(&mine) && !listed.contains(&name), "{listed}");
    assert!(!theirs.contains(&mine), "{theirs}");
    assert!(!printed(as_nobody(&["ls", "--all"]).output().unwrap()).contains(&mine));
}

#[test]
fn top_shows_how_fast_a_stream_runs() {
    let dir = Dir::new("rates");
    let mut receiver = Process(dir.command(&["recv", "stream", "--lines"]).stdout(Stdio::null()).spawn().unwrap());
    let mut sender = Process(dir.command(&["send", "stream", "--lines"]).stdin(Stdio::piped()).spawn().unwrap());
    let mut input = sender.0.stdin.take().unwrap();
    let feeder = thread::spawn(move || {
        let lines = format!("{}\n", "x".repeat(91)).repeat(1000);
        // Until nobody reads any more.
        while io::Write::write_all(&mut input, lines.as_bytes()).is_ok() {}
    });
    dir.await_listed("stream", |entry| entry["directions"][1]["sent_bytes_per_second"].as_f64() > Some(0.0));
    let pages = dir.run(&["top", "--json", "-n", "2", "--interval", "0.3"]);
    assert_eq!(pages.lines().count(), 2, "{pages}");
    for page in pages.lines() {
        let entries: Vec<Value> = serde_json::from_str(page).unwrap();
        let entry = entries.iter().find(|entry| entry["name"] == "stream").expect("it is running");
        let [to_client, to_owner] = &entry["directions"].as_array().unwrap()[..] else { panic!("{entry:#}") };
        let still = ["sent_bytes_per_second", "sent_messages_per_second_estimate"].map(|key| to_client[key].as_f64());
        assert_eq!(still, [Some(0.0); 2]);
        for side in ["sent", "received"] {
            let rate = |what: &str| to_owner[format!("{side}_{what}")].as_f64().unwrap();
            let (bytes, messages) = (rate("bytes_per_second"), rate("messages_per_second_estimate"));
            // A line of 91 bytes is a record of 104.
            assert!(bytes > 1e4 && (bytes / messages - 104.0).abs() < 1.0, "{bytes} bytes, {messages} messages");
        }
    }
    // The same for people, page after page where it is no terminal.
    let pages = dir.run(&["top", "--once", "--interval", "0.1"]);
    assert!(pages.starts_with("NAME") && pages.contains("stream"), "{pages}");
    sender.kill();
    feeder.join().unwrap();
    assert_eq!(await_end(&mut receiver.0, LIMIT).code(), Some(3), "to be looked at delays no end");
}
