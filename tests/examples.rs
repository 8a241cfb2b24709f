//! The examples, run as a user would run them: as processes, with what they print and how they exit checked.
//!
//! `cargo test` builds the examples before it runs this; `cargo test --test examples` alone does not.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// What an example did.
struct Outcome {
    status: ExitStatus,
    out: String,
    err: String,
}

/// Runs the example `name`, which has to succeed in silence, and returns what it and its workers printed.
fn run(name: &str) -> String {
    run_with(name, &[])
}

fn run_with(name: &str, args: &[&str]) -> String {
    let Outcome { status, out, err } = start(name, args);
    assert!(status.code() == Some(0), "{name} failed: {status}\n--- stdout\n{out}--- stderr\n{err}");
    assert_eq!(err, "", "{name} complained");
    out
}

/// Runs the example `name` until it and every process that it started have ended.
fn start(name: &str, args: &[&str]) -> Outcome {
    // This is target/<profile>/deps/examples-<hash>; the examples are target/<profile>/examples/<name>.
    let this = std::env::current_exe().unwrap();
    let program: PathBuf = this.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name);
    assert!(
        program.exists(),
        "{} is not built: run `cargo build --examples` first (with `--release` if this test is), or a plain `cargo test`, which does",
        program.display()
    );
    // A process group of its own, so that whatever it starts can be killed with it.
    let mut child = Command::new(&program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());

    // The output ends when the last process that can write to it does: a worker left behind would show here.
    let end = Instant::now() + PATIENCE;
    let text =
        |output: &mpsc::Receiver<String>| output.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
    let (out, err) = (text(&stdout), text(&stderr));
    let status = wait(&mut child, end);
    if let (Some(status), Some(out), Some(err)) = (status, &out, &err) {
        return Outcome { status, out: out.clone(), err: err.clone() };
    }
    let group = libc::pid_t::try_from(child.id()).expect("a pid");
    // SAFETY: no pointers. Something of the group is left, so its number is not another's.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    let (out, err) = (out.or_else(|| stdout.recv().ok()), err.or_else(|| stderr.recv().ok()));
    let _ = child.wait();
    let who = if status.is_some() { "a process that it started is" } else { "it is" };
    let (out, err) = (out.unwrap_or_default(), err.unwrap_or_default());
    panic!("{name}: {who} still there after {PATIENCE:?}\n--- stdout\n{out}--- stderr\n{err}");
}

/// Reads to the end in a thread; the text comes through the channel.
fn collect(mut output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (done, text) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).unwrap();
        // Nobody may be waiting any more.
        let _ = done.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    text
}

fn wait(child: &mut Child, end: Instant) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Asserts that the lines that start with `who` are these, in this order. Lines of different processes may come in any order.
#[track_caller]
fn assert_lines(output: &str, who: &str, expected: &[&str]) {
    let lines: Vec<&str> = output.lines().filter(|line| line.starts_with(who)).collect();
    assert_eq!(lines, expected, "in:\n{output}");
}

#[test]
fn hello_exchanges_a_value_each_way() {
    let output = run("hello");
    assert_lines(&output, "worker", &[r#"worker: got Order { item: "lemon", count: 12 }"#]);
    assert_lines(&output, "parent", &[r#"parent: got Receipt { text: "12 × lemon", cents: 420 }"#]);
}

#[test]
fn producer_consumers_share_every_item_exactly_once() {
    let output = run("producer_consumers");
    let count = |line: &str| line.split_whitespace().nth(2).and_then(|word| word.parse::<u64>().ok());
    let counts: Vec<_> = output.lines().filter(|line| line.starts_with("consumer")).filter_map(count).collect();
    assert_eq!((counts.len(), counts.iter().sum::<u64>()), (3, 3000), "in:\n{output}");
    assert_lines(&output, "all", &["all 3000 items were consumed exactly once"]);
}

#[test]
fn consumers_without_lock_share_every_item_exactly_once() {
    let output = run("consumers_without_lock");
    let count = |line: &str| line.split_whitespace().nth(2).and_then(|word| word.parse::<u64>().ok());
    let counts: Vec<_> = output.lines().filter(|line| line.starts_with("consumer")).filter_map(count).collect();
    assert_eq!((counts.len(), counts.iter().sum::<u64>()), (3, 3000), "in:\n{output}");
    assert_lines(&output, "all", &["all 3000 items were consumed exactly once"]);
}

#[cfg(feature = "tokio")]
#[test]
fn async_server_answers_every_client_though_workers_are_killed() {
    let output = run("async_server");
    assert_lines(&output, "all", &["all 1600 answers were right"]);
    let gone = output.lines().filter(|line| line.starts_with("server: a worker is gone")).count();
    assert_eq!(gone, 2, "in:\n{output}");
}

#[test]
fn work_queue_answers_every_task_though_workers_are_killed() {
    // With figures of its own, with more kills than tasks, and without any.
    for (args, tasks, kills) in [
        (&[][..], 20_000, 40),
        (&["--tasks", "30", "--workers", "3", "--kills", "60"][..], 30, 60),
        (&["--tasks", "5", "--workers", "1", "--kills", "0"][..], 5, 0),
    ] {
        let output = run_with("work_queue", args);
        let figure = |what: &str| -> u64 {
            let text = output.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
            text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {what} in:\n{output}"))
        };
        assert_eq!((figure("tasks"), figure("workers killed")), (tasks, kills), "in:\n{output}");
        let (again, twice) = (figure("tasks sent again"), figure("answers that came twice"));
        // Each that was killed loses one task at most; and a second answer is one to a task that was sent again.
        assert!(again <= kills && twice <= again, "in:\n{output}");
        assert_lines(&output, "every", &["every task was answered"]);
    }
}

#[test]
fn work_queue_says_what_it_does_not_understand() {
    for (args, complaint) in [
        (&["--tasks"][..], "--tasks needs a number"),
        (&["--speed", "9"], "unknown option --speed"),
        (&["--workers", "0"], "there must be tasks and workers"),
    ] {
        let Outcome { status, err, .. } = start("work_queue", args);
        assert_eq!(status.code(), Some(1), "{args:?}: {status}\n{err}");
        assert!(err.contains(complaint), "{args:?}: {err}");
    }
}

#[test]
fn echo_shows_poll_end_of_file_and_both_length_checks() {
    let output = run("echo");
    let refusal = "client: the server says: refused: bad message length: the message has 2048 bytes, more than the 1024 allowed; \
                   this end no longer receives";
    let client = [
        "client: before the first request, poll says false",
        "client: after it, poll says true",
        r#"client: received "hello""#,
        r#"client: only 8 bytes free, for "longer than eight bytes""#,
        refusal,
        "client: end of file",
        "client: end of file",
        "client: broken pipe: every copy of the receiving end is closed",
    ];
    assert_lines(&output, "client", &client);
    assert_lines(&output, "server", &["server: end of file"]);
}

#[test]
fn worker_serves_until_end_of_file_and_its_death_is_noticed() {
    let output = run("worker");
    let parent = [
        "parent: 3 squared is 9",
        "parent: 12 squared is 144",
        "parent: 1000 squared is 1000000",
        "parent: the worker ended by itself: exit status: 0",
        "parent: the worker was killed, and the pipe says: disconnected",
    ];
    assert_lines(&output, "parent", &parent);
    assert_lines(&output, "worker", &["worker: end of file, so I am done"]);
}

#[test]
fn frames_arrive_whole_both_in_place_and_copied_by_rows() {
    let output = run("frames");
    let lines = ["camera: 60 frames of 640 × 480 arrived whole", "camera: the mean brightness is 128.1"];
    assert_lines(&output, "camera", &lines);
}

#[test]
fn an_example_whose_workers_are_missing_their_pipe_fails_and_says_why() {
    // What a user sees who starts the worker by hand: no hang, a message, and an exit code for scripts.
    for (name, role) in
        [("hello", "worker"), ("worker", "worker"), ("echo", "server"), ("frames", "viewer"), ("work_queue", "worker")]
    {
        let Outcome { status, err, .. } = start(name, &[role]);
        assert_eq!(status.code(), Some(1), "{name} {role}: {status}\n{err}");
        assert!(err.contains("NoVariable"), "{name} {role}: {err}");
    }
}
