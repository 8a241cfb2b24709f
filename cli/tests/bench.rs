//! The built `ringpipe` binary, run as a user runs it.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use support::await_end;

const LIMIT: Duration = Duration::from_secs(90);

/// Measurements take turns: each wants two processors for itself.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start<S: AsRef<OsStr>>(args: &[S]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpipe"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

struct Outcome {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// Waits for the end of a run, and kills one that does not come to it.
fn finish(mut child: Child) -> Outcome {
    fn read(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut text = String::new();
            from.read_to_string(&mut text).unwrap();
            text
        })
    }
    let (stdout, stderr) = (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap()));
    let status = await_end(&mut child, LIMIT);
    Outcome { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn run<S: AsRef<OsStr>>(args: &[S]) -> Outcome {
    finish(start(args))
}

/// A path of its own for each test, removed at the end of it.
struct TempPath(PathBuf);

impl TempPath {
    fn new(name: &str) -> TempPath {
        TempPath(std::env::temp_dir().join(format!("ringpipe-{}-{name}", std::process::id())))
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path).unwrap_or_else(|| panic!("no {path} in {value}"));
    let number = found.as_f64().unwrap_or_else(|| panic!("{path} is {found}"));
    assert!(number.is_finite() && number > 0.0, "{path} is {number}");
    number
}

#[test]
fn json_holds_every_row_with_plausible_figures() {
    let _turn = turn();
    let outcome = run(&["bench", "--quick", "--json", "--sizes", "8,1k"]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();

    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["capacity"], 256 << 10);
    let rounds = number(&report, "/rounds") as usize;

    let rows = report["throughput"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["size"].as_u64().unwrap()).collect::<Vec<_>>(), [8, 1024]);
    for row in rows {
        number(row, "/ratio");
        for transport in ["ringpipe", "fd_pipe", "unix_socket"] {
            let messages = number(row, &format!("/{transport}/messages_per_second"));
            let bytes = number(row, &format!("/{transport}/bytes_per_second"));
            assert!((1e3..1e9).contains(&messages), "{transport}: {messages} messages a second");
            assert!((bytes / messages - number(row, "/size")).abs() < 1e-3, "{transport}: {bytes} and {messages}");
            assert_eq!(row[transport]["rounds_ns"].as_array().unwrap().len(), rounds);
        }
    }
    // 128 times the bytes in a message do not make it 128 times as slow.
    for transport in ["ringpipe", "fd_pipe", "unix_socket"] {
        let rate = |row| number(row, &format!("/{transport}/bytes_per_second"));
        assert!(rate(&rows[1]) > rate(&rows[0]), "{transport}");
    }

    let two = !report["processors"].is_null();
    let rows = report["round_trip"].as_array().unwrap();
    let seen: Vec<_> = rows.iter().map(|row| (row["size"].as_u64().unwrap(), row["mode"].as_str().unwrap())).collect();
    let modes = if two { &["spinning", "default", "blocking"][..] } else { &["default", "blocking"] };
    let wanted: Vec<_> = [8, 64].iter().flat_map(|&size| modes.iter().map(move |&mode| (size, mode))).collect();
    assert_eq!(seen, wanted);
    for row in rows {
        number(row, "/ratio");
        for time in ["/ringpipe_ns", "/fd_pipe_ns"] {
            let time = number(row, time);
            assert!((10.0..1e8).contains(&time), "a round trip of {time} ns");
        }
    }

    for transport in ["ringpipe", "fd_pipe"] {
        let latency = number(&report, &format!("/wake_up/{transport}/latency_ns"));
        assert!((100.0..1e8).contains(&latency), "a wake-up of {latency} ns");
        number(&report, &format!("/wake_up/{transport}/receiver_cpu_ns"));
        number(&report, &format!("/wake_up/{transport}/sender_cpu_ns"));
    }

    assert_eq!(report["cache_line"].is_null(), !two);
    if two {
        number(&report, "/cache_line/before_ns");
        number(&report, "/cache_line/after_ns");
        assert!(report["cache_line"]["cores"].is_string());
    }
}

#[test]
fn without_a_command_it_prints_the_tables_and_draws_the_plot() {
    let _turn = turn();
    let plot = TempPath::new("plot.svg");
    // What it held before is gone, also where it was longer.
    fs::write(&plot.0, "x".repeat(1 << 20)).unwrap();
    let outcome = run(&["--quick".as_ref(), "--plot".as_ref(), plot.0.as_os_str()]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "", "progress belongs on a terminal");
    for row in ["8 B", "64 B", "1 KiB", "4 KiB", "64 KiB", "1 MiB", "round trip", "blocking", "wake-up"] {
        assert!(outcome.stdout.contains(row), "no {row:?} in\n{}", outcome.stdout);
    }
    let svg = fs::read_to_string(&plot.0).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{} bytes", svg.len());
    for series in ["ringpipe", "fd pipe", "Unix socket"] {
        assert!(svg.contains(series), "no series {series}");
    }
    // One line each with a point for every size, and one in the legend.
    assert!(svg.matches("<polyline").count() >= 6 && svg.matches("<circle").count() == 18, "{svg}");
}

#[test]
fn wrong_arguments_are_refused_at_once_with_exit_code_2() {
    let nowhere = Path::new("/nonexistent/plot.svg").to_str().unwrap();
    for (args, complaint) in [
        (&["--sizes", "8,12q"][..], "unknown unit `q`"),
        (&["bench", "--sizes", "many"], "many"),
        (&["--sizes", ""], "not a size"),
        (&["--sizes", "4"], "out of range"),
        (&["--sizes", "2g"], "out of range"),
        (&["--capacity", "0"], "capacity of 0 bytes is out of range"),
        (&["--capacity", "2g"], "out of range"),
        (&["--plot", nowhere], "cannot write the plot to /nonexistent/plot.svg"),
        (&["--frobnicate"], "--frobnicate"),
        (&["measure"], "measure"),
    ] {
        let started = Instant::now();
        let outcome = run(args);
        assert_eq!(outcome.status.code(), Some(2), "{args:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(complaint), "{args:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "{args:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{args:?}: measured first");
    }
}

#[test]
fn help_and_version_are_there() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    for option in ["--sizes", "--capacity", "--quick", "--json", "--plot", "second process"] {
        assert!(help.stdout.contains(option), "no {option} in\n{}", help.stdout);
    }
    assert!(!help.stdout.contains("bench-peer"));
    assert_eq!(run(&["--version"]).stdout, format!("ringpipe {}\n", env!("CARGO_PKG_VERSION")));
}

/// The second process of a run under way.
fn peer_of(child: &Child) -> i32 {
    let give_up = Instant::now() + Duration::from_secs(10);
    while Instant::now() < give_up {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let Ok(arguments) = fs::read(entry.path().join("cmdline")) else { continue };
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
            let is_peer = arguments.windows(10).any(|part| part == b"bench-peer");
            if is_peer && parent == Some(&child.id().to_string()) {
                return pid;
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no second process");
}

fn lives(pid: i32) -> bool {
    // A zombie is gone; whoever has to reap it may not be in a hurry.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

#[test]
fn the_second_process_goes_when_the_first_is_killed() {
    let _turn = turn();
    // Early in the cache lines, then in streams, where it sits in different calls.
    for delay in [0, 500, 900] {
        let mut child = start(&["--sizes", "8,1m"]);
        let peer = peer_of(&child);
        thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        let give_up = Instant::now() + Duration::from_secs(20);
        while lives(peer) {
            assert!(Instant::now() < give_up, "it still runs, {delay} ms");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn the_death_of_the_second_process_is_reported_and_leaves_no_plot() {
    let _turn = turn();
    let plot = TempPath::new("unused.svg");
    let child = start(&["--sizes".as_ref(), "8".as_ref(), "--plot".as_ref(), plot.0.as_os_str()]);
    let peer = peer_of(&child);
    thread::sleep(Duration::from_millis(700));
    assert!(plot.0.exists(), "the file is to be made sure of before anything is measured");
    rustix::process::kill_process(rustix::process::Pid::from_raw(peer).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("second process ended early"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("SIGKILL"), "{}", outcome.stderr);
    assert!(!plot.0.exists(), "an empty plot was left behind");
}
