//! `ringpipe soak`, run as a user runs it. What its verdict finds is shown by the unit tests of the verdict.

mod support;

use std::fs;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::await_end;

/// Rounds are short; most of this is for machines that do other things as well.
const LIMIT: Duration = Duration::from_secs(90);

/// Soaks take turns: each keeps the processors busy.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpipe"));
    command.arg("soak").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

struct Outcome {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// The number in a line of the report.
    fn figure(&self, row: &str) -> u64 {
        let line = self.stdout.lines().find_map(|line| line.trim().strip_prefix(row));
        let line = line.unwrap_or_else(|| panic!("no row {row:?} in\n{}{}", self.stdout, self.stderr));
        let digits: String = line.trim().chars().take_while(|c| *c == ',' || c.is_ascii_digit()).collect();
        digits.replace(',', "").parse().unwrap_or_else(|_| panic!("no number in {row:?}: {line:?}"))
    }
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

fn children(of: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent == Some(of.to_string().as_str()) {
            found.push(pid);
        }
    }
    found
}

/// Processes that a process has started, and those that these have, and so on.
fn descendants(of: u32) -> Vec<i32> {
    let mut found = children(of as i32);
    let mut seen = 0;
    while seen < found.len() {
        found.extend(children(found[seen]));
        seen += 1;
    }
    found
}

/// The processes among these that still run.
fn alive(pids: &[i32]) -> Vec<i32> {
    let runs = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie is gone; whoever has to reap it may not be in a hurry.
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
    };
    pids.iter().copied().filter(runs).collect()
}

fn all_go(pids: &[i32]) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !alive(pids).is_empty() {
        assert!(Instant::now() < give_up, "{:?} still run", alive(pids));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_short_soak_finds_no_fault_and_says_what_it_did() {
    let _turn = turn();
    let outcome = finish(start(&["--time", "3s", "--seed", "7"]));
    assert!(outcome.status.success(), "{}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.stderr, "", "a run this short has no lines on the way");
    assert!(outcome.stdout.contains("seed 7"), "{}", outcome.stdout);
    assert_eq!(outcome.figure("faults"), 0);
    let rounds = outcome.figure("rounds ");
    assert!(rounds >= 4, "{}", outcome.stdout);
    assert!(outcome.figure("messages verified") > rounds && outcome.figure("bytes verified") > 0, "{}", outcome.stdout);
    for row in
        ["kills", "stops", "forks", "execs", "messages cut", "sends timed out", "longest wait", "SIGKILL to error"]
    {
        assert!(outcome.stdout.contains(row), "no {row:?} in\n{}", outcome.stdout);
    }
}

#[test]
fn one_round_can_be_played_again_and_again() {
    let _turn = turn();
    let outcome = finish(start(&["--time", "2s", "--seed", "1", "--round", "12", "--workers", "1", "--quiet"]));
    assert!(outcome.status.success(), "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("1 rounds at once"), "{}", outcome.stdout);
    let (rounds, kills) = (outcome.figure("rounds "), outcome.figure("kills"));
    // In this one somebody is killed, unless he has ended before.
    assert!(rounds >= 2 && kills <= rounds && kills >= rounds / 2, "{}", outcome.stdout);
}

#[test]
fn an_interrupted_soak_reports_what_it_had_done() {
    let _turn = turn();
    let child = start(&["--time", "1h"]);
    thread::sleep(Duration::from_secs(2));
    let started = descendants(child.id());
    assert!(!started.is_empty());
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("interrupted"), "{}", outcome.stderr);
    assert_eq!(outcome.figure("faults"), 0);
    assert!(outcome.figure("rounds ") > 0);
    all_go(&started);
}

#[test]
fn a_killed_soak_leaves_no_process_behind() {
    let _turn = turn();
    let mut child = start(&["--time", "1h", "--quiet"]);
    thread::sleep(Duration::from_millis(1500));
    let started = descendants(child.id());
    assert!(!started.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    all_go(&started);
}

#[test]
fn a_crash_in_a_round_is_a_fault_with_seed_and_round() {
    let _turn = turn();
    let mut child = start(&["--time", "1h", "--seed", "3", "--quiet"]);
    let give_up = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < give_up, "nobody minds");
        // A process of a round, two generations down, gets a signal that the soak did not send.
        let workers = children(child.id() as i32);
        if let Some(side) = workers.iter().flat_map(|&worker| children(worker)).next() {
            // It may have ended meanwhile, and then the next one gets the signal.
            let _ = kill_process(Pid::from_raw(side).unwrap(), Signal::SEGV);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let outcome = finish(child);
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("FAULT in round") && outcome.stderr.contains("of seed 3"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("Signal(11)"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("soak --seed 3 --round"), "{}", outcome.stderr);
    assert_eq!(outcome.figure("faults"), 1);
}

#[test]
fn wrong_arguments_are_refused_at_once_with_exit_code_2() {
    for (args, complaint) in [
        (&["--time", "soon"][..], "not a time"),
        (&["--time", "0s"], "no time at all"),
        (&["--time", "3x"], "unknown unit"),
        (&["--workers", "0"], "0"),
        (&["--round", "3"], "--seed"),
        (&["--seed", "-1"], "-1"),
    ] {
        let outcome = finish(start(args));
        assert_eq!(outcome.status.code(), Some(2), "{args:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(complaint), "{args:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "{args:?}");
    }
}

#[test]
fn help_says_what_is_done_and_what_counts_as_a_fault() {
    let help = finish(start(&["--help"]));
    assert!(help.status.success());
    for word in ["--time", "--seed", "--round", "--workers", "--quiet", "SIGKILL", "fault"] {
        assert!(help.stdout.contains(word), "no {word} in\n{}", help.stdout);
    }
}
