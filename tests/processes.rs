//! Ends in several processes: copies made by `fork`, ends handed over by `exec`, over a socket and over another pipe, and calls that
//! signals interrupt.
//!
//! Children that are to run another program run this one again: see `as_another_program`.

mod support;

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringpipe::{AttachError, Builder, Connection, End, Receiver, RecvError, SendError, Sender};
use support::forms::is_eof;
use support::programs::{PIPE, program, role};
use support::{Script, Shared, alone, fork, fork_copy, fork_split, open_fds, poll_fd, watchdog};

const PATIENCE: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(30);

// --- copies made by fork -------------------------------------------------------------------------------

#[test]
fn polling_a_copy_of_an_end_takes_nothing_from_whoever_receives() {
    const MESSAGES: u64 = 3_000;
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (receiver, sender) = Builder::new().capacity(16 << 10).simplex().unwrap();
    let (polling, (mut receiver, mut sender)) = fork_copy((receiver, sender), |(mut receiver, sender)| {
        drop(sender);
        while receiver.poll(Some(Duration::ZERO)).is_ok() {}
        1
    });
    let script = Script::mixed(21, 16 << 10);
    let sending = std::thread::spawn(move || {
        for i in 0..MESSAGES {
            sender.send_bytes(script.message(i)).unwrap();
        }
    });
    let script = Script::mixed(21, 16 << 10);
    for i in 0..MESSAGES {
        let message = receiver.recv_bytes_timeout(PATIENCE).unwrap_or_else(|e| panic!("message {i}: {e}"));
        assert!(message == script.message(i), "message {i} is another");
    }
    sending.join().unwrap();
    polling.kill();
    assert!(polling.wait().was_killed());
}

#[test]
fn end_of_file_waits_for_the_last_copy_of_the_sender() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (receiver, sender) = ringpipe::simplex().unwrap();
    let go = Shared::new();
    // Each child inherits both ends, and closes them when it exits.
    let hold = |until: u64| {
        go.await_at_least(0, until);
        0
    };
    let copies = [1, 2, 3].map(|n| fork(|| hold(n)));
    let mut receiver = receiver;
    sender.close();
    for (n, copy) in copies.iter().enumerate() {
        assert!(matches!(receiver.recv_bytes_timeout(MOMENT), Err(RecvError::TimedOut)), "{n} of 3 copies are closed");
        assert!(!receiver.poll(Some(Duration::ZERO)).unwrap());
        go.set(0, n as u64 + 1);
        copy.succeeds();
    }
    assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)));
    assert!(receiver.poll(Some(Duration::ZERO)).unwrap());
}

#[test]
fn a_broken_pipe_waits_for_the_last_copy_of_the_receiver() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (receiver, sender) = Builder::new().capacity(4096).simplex().unwrap();
    let go = Shared::new();
    let (copy, mut sender) = fork_split(sender, receiver, |receiver| {
        go.await_at_least(0, 1);
        drop(receiver);
        0
    });
    let error = loop {
        if let Err(e) = sender.send_bytes_timeout(&[0; 500], MOMENT) {
            break e;
        }
    };
    assert!(matches!(error, SendError::TimedOut), "while a copy lives: {error}");
    go.set(0, 1);
    assert!(matches!(sender.send_bytes_timeout(&[0; 500], PATIENCE), Err(SendError::Disconnected)));
    copy.succeeds();
}

/// A receiver that leaves as soon as it has what it wants makes no difference to a send that it has received.
#[test]
fn a_send_whose_message_was_received_succeeds_though_the_receiver_left_at_once() {
    const ROUNDS: usize = 400;
    let _alone = alone();
    let _watchdog = watchdog(60);
    let mut failed = Vec::new();
    for round in 0..ROUNDS {
        let (receiver, sender) = Builder::new().spin(Duration::from_millis(20)).simplex().unwrap();
        let ready = Shared::new();
        let (child, mut sender) = fork_split(sender, receiver, |mut receiver| {
            ready.set(0, 1);
            i32::from(receiver.recv_bytes().is_err())
        });
        ready.await_at_least(0, 1);
        let sent = sender.send_bytes(b"the only one");
        // It was received.
        child.succeeds();
        if sent.is_err() {
            failed.push(round);
        }
    }
    assert!(failed.is_empty(), "{} of {ROUNDS} sends failed whose message was received: {failed:?}", failed.len());
}

#[test]
fn a_child_that_used_an_end_and_exited_leaves_the_parents_copy_working() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let script = Script::mixed(1, 16 << 10);
    let (mut mine, theirs) = Builder::new().capacity(16 << 10).pipe().unwrap();
    let mut theirs = theirs;
    // The peer's end is used by one child after the other, and by this process in between.
    for round in 0..5 {
        let first = 3 * round;
        let (child, kept) = fork_copy(theirs, |mut end| {
            if end.recv_bytes().ok().as_deref() != Some(b"your turn") {
                return 1;
            }
            (first..first + 2).any(|i| end.send_bytes(script.message(i)).is_err()).into()
        });
        theirs = kept;
        mine.send_bytes(b"your turn").unwrap();
        for i in first..first + 2 {
            assert!(mine.recv_bytes_timeout(PATIENCE).unwrap() == script.message(i), "message {i} is another");
        }
        child.succeeds();
        // Short enough to be sent and received by the same thread.
        theirs.send_bytes(&script.message(first + 2)[..1.min(script.message(first + 2).len())]).unwrap();
        mine.recv_bytes_timeout(PATIENCE).unwrap();
    }
    drop(theirs);
    assert!(is_eof(&mine.recv_bytes()));
}

#[test]
fn any_copy_of_a_receiver_takes_the_next_message() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (receiver, mut sender) = ringpipe::simplex().unwrap();
    let mut receiver = receiver;
    for i in 0..10_u32 {
        sender.send_bytes(&i.to_le_bytes()).unwrap();
    }
    for i in 0..5 {
        let (child, kept) = fork_copy(receiver, |mut receiver| {
            i32::from(receiver.recv_bytes().ok().as_deref() != Some(&(2 * i as u32).to_le_bytes()))
        });
        receiver = kept;
        child.succeeds();
        assert_eq!(receiver.recv_bytes().unwrap(), (2 * i as u32 + 1).to_le_bytes());
    }
}

// --- signals ------------------------------------------------------------------------------------------

extern "C" fn nothing(_: libc::c_int) {}

/// Interrupts this process every millisecond, with a handler that does nothing, and without `SA_RESTART`.
fn storm() {
    // SAFETY: zeros are valid for both structures, and the handler only returns.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
        let millisecond = libc::timeval { tv_sec: 0, tv_usec: 1_000 };
        let timer = libc::itimerval { it_interval: millisecond, it_value: millisecond };
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()), 0);
    }
}

/// Runs `body` in a child under a storm of signals. The storm takes the child's own alarm, so this watches it instead.
fn under_storm(body: impl FnOnce() -> i32) {
    let child = fork(|| {
        storm();
        body()
    });
    child.succeeds();
}

/// Whether a wait of `wanted` took so long: not less, and not the second for which an end is parked at most.
fn lasted(wanted: Duration, start: Instant) -> bool {
    let took = start.elapsed();
    took >= wanted && took < wanted + Duration::from_millis(700)
}

#[test]
fn a_storm_of_signals_changes_no_time_out_and_never_surfaces() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    // Shorter than a slice on the futex, and long enough to be parked.
    for timeout in [Duration::from_micros(1_500), Duration::from_millis(60)] {
        for spin in [Duration::ZERO, Duration::from_micros(50), Duration::from_secs(1)] {
            under_storm(|| {
                let (mut receiver, mut sender) = Builder::new().capacity(4096).spin(spin).simplex().unwrap();
                let start = Instant::now();
                if !matches!(receiver.recv_bytes_timeout(timeout), Err(RecvError::TimedOut)) || !lasted(timeout, start)
                {
                    return 1;
                }
                let start = Instant::now();
                if !matches!(receiver.recv_bytes_deadline(start + timeout), Err(RecvError::TimedOut))
                    || !lasted(timeout, start)
                {
                    return 2;
                }
                let start = Instant::now();
                if !matches!(receiver.poll(Some(timeout)), Ok(false)) || !lasted(timeout, start) {
                    return 3;
                }
                let start = Instant::now();
                if !matches!(receiver.recv_end_timeout::<Sender>(timeout), Err(RecvError::TimedOut))
                    || !lasted(timeout, start)
                {
                    return 4;
                }
                for len in [100, 0] {
                    while sender.try_send_bytes(&vec![0; len]).is_ok() {}
                }
                let start = Instant::now();
                if !matches!(sender.send_bytes_timeout(&[0; 100], timeout), Err(SendError::TimedOut))
                    || !lasted(timeout, start)
                {
                    return 5;
                }
                let start = Instant::now();
                if !matches!(sender.reserve_timeout(100, timeout), Err(SendError::TimedOut)) || !lasted(timeout, start)
                {
                    return 6;
                }
                // In parts.
                let start = Instant::now();
                if !matches!(sender.send_bytes_timeout(&[0; 3_000], timeout), Err(SendError::TimedOut))
                    || !lasted(timeout, start)
                {
                    return 7;
                }
                let (end, _other) = ringpipe::simplex().unwrap();
                let start = Instant::now();
                if !matches!(sender.send_end_timeout(end, timeout), Err(e) if e.error.kind() == ErrorKind::TimedOut)
                    || !lasted(timeout, start)
                {
                    return 8;
                }
                0
            });
        }
    }
}

#[test]
fn a_storm_of_signals_keeps_no_message_from_arriving() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    const COUNT: u64 = 60;
    let script = Script::mixed(5, 4096);
    for spin in [Duration::ZERO, Duration::from_micros(50)] {
        // Rests now of the receiver, so that the sender waits for room, now of the sender.
        for sender_rests in [false, true] {
            let rest = |i: u64, rests: bool| {
                if rests && i % 6 == 0 {
                    let until = Instant::now() + Duration::from_millis(8);
                    while let Some(left) = until.checked_duration_since(Instant::now()) {
                        std::thread::sleep(left);
                    }
                }
            };
            let (receiver, sender) = Builder::new().capacity(4096).spin(spin).simplex().unwrap();
            let (sending, receiver) = fork_split(receiver, sender, |mut sender| {
                storm();
                for i in 0..COUNT {
                    rest(i, sender_rests);
                    if sender.send_bytes(script.message(i)).is_err() {
                        return 1;
                    }
                }
                0
            });
            let (receiving, ()) = fork_split((), receiver, |mut receiver| {
                storm();
                for i in 0..COUNT {
                    rest(i, !sender_rests);
                    if receiver.recv_bytes().ok().as_deref() != Some(script.message(i)) {
                        return 1;
                    }
                }
                i32::from(!is_eof(&receiver.recv_bytes()))
            });
            sending.succeeds();
            receiving.succeeds();
        }
    }
}

#[test]
fn a_storm_of_signals_does_not_disturb_a_hand_over() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (here, there) = UnixStream::pair().unwrap();
    let (mut over, other) = ringpipe::pipe().unwrap();
    let (child, ()) = fork_split((), (there, other), |(there, mut over)| {
        storm();
        let Ok(mut first) = Sender::recv_from(&there) else { return 1 };
        let Ok(mut second) = over.recv_end::<Sender>() else { return 2 };
        i32::from(first.send_bytes(b"first").is_err() || second.send_bytes(b"second").is_err())
    });
    let (mut first, theirs) = ringpipe::simplex().unwrap();
    std::thread::sleep(MOMENT);
    theirs.send_to(&here).unwrap();
    let (mut second, theirs) = ringpipe::simplex().unwrap();
    std::thread::sleep(MOMENT);
    over.send_end(theirs).unwrap();
    assert_eq!(first.recv_bytes_timeout(PATIENCE).unwrap(), b"first");
    assert_eq!(second.recv_bytes_timeout(PATIENCE).unwrap(), b"second");
    child.succeeds();
}

// --- exec ---------------------------------------------------------------------------------------------

/// Not a test by itself: what the program does that other tests start.
#[test]
fn as_another_program() {
    let Some(role) = role() else { return };
    match role.as_str() {
        "echo" => {
            let mut end = Connection::from_env(PIPE).unwrap();
            while let Ok(message) = end.recv_bytes() {
                end.send_bytes(&message).unwrap();
            }
        }
        "send" => Sender::from_env(PIPE).unwrap().send_bytes(b"from another program").unwrap(),
        "count" => {
            let mut receiver = Receiver::from_env(PIPE).unwrap();
            let count = receiver.iter().filter(Result::is_ok).count();
            assert_eq!(count, 10);
        }
        "descriptors" => {
            // Before this program opens any itself.
            let before = open_fds();
            let mut end = Connection::from_env(PIPE).unwrap();
            // What this program starts inherits nothing of it.
            let lists = [targets(&before), targets_in_a_program()];
            end.send_bytes(lists.map(|list| list.join(" ")).join("\n").as_bytes()).unwrap();
        }
        "twice" => {
            let first = Connection::from_env(PIPE).unwrap();
            let second = Connection::from_env(PIPE).map(drop);
            assert!(matches!(second, Err(AttachError::NotInherited { .. })), "taken twice: {second:?}");
            drop(first);
            let third = Connection::from_env(PIPE).map(drop);
            assert!(matches!(third, Err(AttachError::NotInherited { .. })), "taken after it was closed: {third:?}");
        }
        "wrong" => {
            let what = Sender::from_env(PIPE).map(drop);
            assert!(matches!(what, Err(AttachError::WrongEnd { ours: "sender", theirs: "connection" })), "{what:?}");
            // Nothing was taken, so the right kind still works.
            Connection::from_env(PIPE).unwrap().send_bytes(b"right").unwrap();
        }
        "errors" => errors_of_from_env(),
        role => panic!("unknown role {role}"),
    }
}

/// With variables that this process sets for itself, which only a process without other threads may do: hence through the parent.
fn errors_of_from_env() {
    let none = Connection::from_env("RINGPIPE_TEST_NOT_SET").map(drop);
    let Err(e @ AttachError::NoVariable { .. }) = none else { panic!("{none:?}") };
    assert!(e.to_string().contains("RINGPIPE_TEST_NOT_SET"), "{e}");
    for i in 0.. {
        let name = format!("RINGPIPE_TEST_NONSENSE_{i}");
        let Ok(value) = std::env::var(&name) else { break };
        let what = Connection::from_env(&name).map(drop);
        assert!(
            matches!(what, Err(AttachError::BadVariable { .. } | AttachError::BadHandover { .. })),
            "{value:?}: {what:?}"
        );
    }
    let what = Connection::from_env("RINGPIPE_TEST_VERSION").map(drop);
    assert!(matches!(what, Err(AttachError::Version { ours: 1, theirs: 9 })), "{what:?}");
    let names = ["CLOSED", "STANDARD", "SAME", "OTHER_FILES"].map(|what| format!("RINGPIPE_TEST_{what}"));
    for name in &names {
        let what = Connection::from_env(name).map(drop);
        assert!(matches!(what, Err(AttachError::NotInherited { .. })), "{name}: {what:?}");
    }
}

#[test]
fn a_program_that_inherits_a_connection_converses_over_it() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    let mut command = program("echo");
    theirs.inherit(&mut command, PIPE);
    let mut child = command.spawn().unwrap();
    drop(command);
    let script = Script::mixed(2, 256 << 10);
    for i in 0..30 {
        mine.send_bytes(script.message(i)).unwrap();
        assert!(mine.recv_bytes_timeout(PATIENCE).unwrap() == script.message(i), "message {i} is another");
    }
    drop(mine);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_program_can_inherit_either_half() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mut receiver, sender) = ringpipe::simplex().unwrap();
    let mut command = program("send");
    sender.inherit(&mut command, PIPE);
    let mut child = command.spawn().unwrap();
    drop(command);
    assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"from another program");
    assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)));
    assert!(child.wait().unwrap().success());

    let (receiver, mut sender) = ringpipe::simplex().unwrap();
    let mut command = program("count");
    receiver.inherit(&mut command, PIPE);
    let mut child = command.spawn().unwrap();
    drop(command);
    for _ in 0..10 {
        sender.send_bytes(b"one of ten").unwrap();
    }
    drop(sender);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_program_that_dies_without_taking_its_end_closes_it() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    let mut command = Command::new("true");
    theirs.inherit(&mut command, PIPE);
    let mut child = command.spawn().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(matches!(mine.recv_bytes_timeout(MOMENT), Err(RecvError::TimedOut)), "the command still owns the end");
    drop(command);
    assert!(is_eof(&mine.recv_bytes_timeout(PATIENCE)));
}

/// What descriptors of this process lead to.
fn targets(fds: &[i32]) -> Vec<String> {
    fds.iter()
        .filter_map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok())
        .map(|target| target.to_string_lossy().replace(' ', "_"))
        .collect()
}

/// What the descriptors of a program lead to that this process starts, without handing it anything.
fn targets_in_a_program() -> Vec<String> {
    let program = "for fd in /proc/self/fd/*; do readlink $fd; done; true";
    let output = Command::new("sh").args(["-c", program]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.replace(' ', "_")).collect()
}

/// The parts of pipes among them, given the sockets that were there before any pipe.
fn parts_of_pipes<'a>(targets: impl Iterator<Item = &'a str>, before: &[String]) -> (usize, usize) {
    let new: Vec<&str> = targets.filter(|target| !before.iter().any(|old| old == target)).collect();
    let starting = |start: &str| new.iter().filter(|target| target.starts_with(start)).count();
    (starting("/memfd:ringpipe"), starting("socket:"))
}

#[test]
fn a_program_inherits_what_it_was_given_and_nothing_else() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    // The test may have been started with sockets open.
    let before = targets(&open_fds());
    // Ends that nobody is given.
    let _others: Vec<_> = (0..5).map(|_| ringpipe::pipe().unwrap()).collect();
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    let mut command = program("descriptors");
    theirs.inherit(&mut command, PIPE);
    let mut child = command.spawn().unwrap();
    let told = String::from_utf8(mine.recv_bytes_timeout(PATIENCE).unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    let (in_child, in_grandchild) = told.split_once('\n').unwrap();
    assert!(in_grandchild.contains("/dev/null"), "the list is no list: {in_grandchild}");
    assert_eq!(parts_of_pipes(in_child.split(' '), &before), (1, 2), "a connection is its memory and two sockets");
    assert_eq!(parts_of_pipes(in_grandchild.split(' '), &before), (0, 0), "in what the program starts");
    // The command still owns the end, but only what it starts is given it.
    let beside = targets_in_a_program();
    assert_eq!(parts_of_pipes(beside.iter().map(String::as_str), &before), (0, 0), "in a program started beside");
}

#[test]
fn an_inherited_end_is_taken_once_and_only_as_what_it_is() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    for role in ["twice", "wrong"] {
        let (mut mine, theirs) = ringpipe::pipe().unwrap();
        let mut command = program(role);
        theirs.inherit(&mut command, PIPE);
        let mut child = command.spawn().unwrap();
        drop(command);
        if role == "wrong" {
            assert_eq!(mine.recv_bytes_timeout(PATIENCE).unwrap(), b"right");
        }
        assert!(is_eof(&mine.recv_bytes_timeout(PATIENCE)));
        assert!(child.wait().unwrap().success(), "{role}");
    }
}

#[test]
fn variables_that_describe_no_inherited_end_are_refused() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let nonsense = [
        "",
        "1",
        "1:3:0",
        "1:3:0:",
        "1:3:0:a,b,c",
        "1:3:0:3,4,5",
        "1:3:0:3=,4=,5=",
        "1:3:0:3=1=1,4=1,5=1",
        "1:3:0:3=1,4=1,5=1:6",
        "one:3:0:3=1,4=1,5=1",
        "1:3:300:3=1,4=1,5=1",
        "1:3:0:3=1,4=1",
        "1:3:0:3=1,4=1,5=1,6=1",
        "-1:3:0:3=1,4=1,5=1",
        "1:7:0:3=1,4=1,5=1",
        "1:3:0:99999999999=1,4=1,5=1",
        " 1:3:0:3=1,4=1,5=1",
    ];
    let mut command = program("errors");
    for (i, value) in nonsense.iter().enumerate() {
        command.env(format!("RINGPIPE_TEST_NONSENSE_{i}"), value);
    }
    command.env("RINGPIPE_TEST_VERSION", "9:3:0:3=1,4=1,5=1");
    command.env("RINGPIPE_TEST_CLOSED", "1:3:0:200=1,201=1,202=1");
    command.env("RINGPIPE_TEST_STANDARD", "1:3:0:0=1,1=1,2=1");
    command.env("RINGPIPE_TEST_SAME", "1:3:0:-5=1,-5=1,-5=1");
    // Descriptors that the program has inherited, and of the right kinds, but not those of which the variable tells: as after
    // another program passed an old one on.
    let (_mine, theirs) = ringpipe::pipe().unwrap();
    theirs.inherit(&mut command, PIPE);
    let (_, variable) = command.get_envs().find(|(name, _)| *name == PIPE).unwrap();
    let old = variable.unwrap().to_str().unwrap().replace(',', "0,") + "0";
    command.env("RINGPIPE_TEST_OTHER_FILES", old);
    assert!(command.status().unwrap().success());
}

// --- over a socket ---------------------------------------------------------------------------------------

#[test]
fn ends_of_every_kind_travel_over_a_socket_to_another_process() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (here, there) = UnixStream::pair().unwrap();
    let (child, here) = fork_split(here, there, |there| {
        let mut sender = Sender::recv_from(&there).unwrap();
        let mut receiver = Receiver::recv_from(&there).unwrap();
        let mut connection = Connection::recv_from(&there).unwrap();
        sender.send_bytes(&receiver.recv_bytes().unwrap()).unwrap();
        let question = connection.recv_bytes().unwrap();
        connection.send_bytes(&[question, b" understood".to_vec()].concat()).unwrap();
        i32::from(!is_eof(&receiver.recv_bytes()))
    });
    let (mut from, to) = ringpipe::simplex().unwrap();
    to.send_to(&here).unwrap();
    let (from_me, mut to_them) = ringpipe::simplex().unwrap();
    from_me.send_to(&here).unwrap();
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    // Messages sent before an end is handed over travel with it.
    mine.send_bytes(b"question").unwrap();
    theirs.send_to(&here).unwrap();
    to_them.send_bytes(b"there and back").unwrap();
    assert_eq!(from.recv_bytes_timeout(PATIENCE).unwrap(), b"there and back");
    assert_eq!(mine.recv_bytes_timeout(PATIENCE).unwrap(), b"question understood");
    drop(to_them);
    child.succeeds();
    assert!(is_eof(&from.recv_bytes_timeout(PATIENCE)) && is_eof(&mine.recv_bytes_timeout(PATIENCE)));
}

#[test]
fn an_end_in_flight_keeps_its_pipe_open_until_the_socket_dies() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (here, there) = UnixStream::pair().unwrap();
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    theirs.send_to(&here).unwrap();
    drop(here);
    assert!(matches!(mine.recv_bytes_timeout(MOMENT), Err(RecvError::TimedOut)));
    mine.send_bytes(b"into the unknown").unwrap();
    drop(there);
    assert!(is_eof(&mine.recv_bytes_timeout(PATIENCE)));
    // Nobody closed the end, so the sending half learns of it when it has to wait, at the latest.
    let error = loop {
        if let Err(e) = mine.send_bytes_timeout(&[0; 1000], PATIENCE) {
            break e;
        }
    };
    assert!(matches!(error, SendError::Disconnected), "instead of a broken pipe: {error}");
}

#[test]
fn an_end_that_could_not_be_sent_is_given_back() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (here, there) = UnixStream::pair().unwrap();
    drop(there);
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    let error = theirs.send_to(&here).unwrap_err();
    assert_eq!(error.error.kind(), ErrorKind::BrokenPipe);
    let mut theirs = error.end;
    theirs.send_bytes(b"still here").unwrap();
    assert_eq!(mine.recv_bytes().unwrap(), b"still here");

    let (mut over, other) = ringpipe::pipe().unwrap();
    drop(other);
    let error = over.send_end(theirs).unwrap_err();
    assert_eq!(error.error.kind(), ErrorKind::BrokenPipe);
    let mut theirs = error.end;
    theirs.send_bytes(b"still here").unwrap();
    assert_eq!(mine.recv_bytes().unwrap(), b"still here");
}

#[test]
fn an_end_that_finds_no_room_in_time_is_given_back_and_nothing_of_it_was_sent() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mut receiver, mut over) = Builder::new().capacity(4096).simplex().unwrap();
    let (mut mine, mut theirs) = ringpipe::pipe().unwrap();
    let mut filling = 0;
    while over.try_send_bytes(&[7; 56]).is_ok() {
        filling += 1;
    }
    while over.try_send_bytes(b"").is_ok() {
        filling += 1;
    }
    let start = Instant::now();
    for how in 0..3 {
        let (result, kind) = match how {
            0 => (over.try_send_end(theirs), ErrorKind::WouldBlock),
            1 => (over.send_end_timeout(theirs, MOMENT), ErrorKind::TimedOut),
            _ => (over.send_end_deadline(theirs, Instant::now() + MOMENT), ErrorKind::TimedOut),
        };
        let error = result.unwrap_err();
        assert_eq!(error.error.kind(), kind);
        theirs = error.end;
        theirs.send_bytes(b"still here").unwrap();
        assert_eq!(mine.recv_bytes().unwrap(), b"still here");
    }
    assert!(start.elapsed() >= 2 * MOMENT);
    assert_eq!(receiver.try_iter().map(Result::unwrap).count(), filling);
    assert!(matches!(receiver.try_recv_end::<Connection>(), Err(RecvError::Empty)));
    let later = Instant::now() + MOMENT;
    assert!(matches!(receiver.recv_end_deadline::<Connection>(later), Err(RecvError::TimedOut)));

    over.try_send_end(theirs).unwrap();
    let mut arrived: Connection = receiver.try_recv_end().unwrap();
    arrived.send_bytes(b"arrived").unwrap();
    assert_eq!(mine.recv_bytes().unwrap(), b"arrived");
    drop(arrived);
    assert!(is_eof(&mine.recv_bytes_timeout(PATIENCE)));
}

#[test]
fn halves_of_different_pipes_are_not_handed_over_as_one_connection() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (here, _there) = UnixStream::pair().unwrap();
    let (mut a, mut b) = ringpipe::pipe().unwrap();
    let (mut c, mut d) = ringpipe::pipe().unwrap();
    std::mem::swap(a.receiver_mut(), c.receiver_mut());
    b.send_bytes(b"from b").unwrap();
    d.send_bytes(b"from d").unwrap();
    let error = a.send_to(&here).unwrap_err();
    assert_eq!(error.error.kind(), ErrorKind::InvalidInput, "{error}");
    let error = c.send_end(error.end).unwrap_err();
    assert_eq!(error.error.kind(), ErrorKind::InvalidInput, "{error}");
    let mut a = error.end;
    assert_eq!((a.recv_bytes().unwrap(), c.recv_bytes().unwrap()), (b"from d".to_vec(), b"from b".to_vec()));
    let inherited =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| a.inherit(&mut Command::new("true"), PIPE)));
    assert!(inherited.is_err());
}

#[test]
fn an_end_arrives_over_a_socket_that_also_delivers_credentials() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (here, there) = UnixStream::pair().unwrap();
    let on: libc::c_int = 1;
    // SAFETY: the pointer leads to a live integer of the length given.
    let set = unsafe {
        let (value, len) = ((&raw const on).cast(), size_of_val(&on) as libc::socklen_t);
        libc::setsockopt(there.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, value, len)
    };
    assert_eq!(set, 0);
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    theirs.send_to(&here).unwrap();
    Connection::recv_from(&there).unwrap().send_bytes(b"arrived").unwrap();
    assert_eq!(mine.recv_bytes().unwrap(), b"arrived");
}

#[test]
fn what_is_no_end_of_the_right_kind_is_refused() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (here, there) = UnixStream::pair().unwrap();
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    theirs.send_to(&here).unwrap();
    let what = Receiver::recv_from(&there).map(drop);
    assert!(matches!(what, Err(AttachError::WrongEnd { ours: "receiver", theirs: "connection" })), "{what:?}");
    assert!(is_eof(&mine.recv_bytes_timeout(PATIENCE)), "what was refused is closed");

    std::io::Write::write_all(&mut &here, b"sixteen bytes...").unwrap();
    let what = Sender::recv_from(&there).map(drop);
    assert!(matches!(what, Err(AttachError::BadHandover { .. })), "{what:?}");

    std::io::Write::write_all(&mut &here, b"ringp").unwrap();
    drop(here);
    for _ in 0..2 {
        let what = Sender::recv_from(&there).map(drop);
        assert!(matches!(what, Err(AttachError::BadHandover { .. })), "{what:?}");
    }
}

// --- over another pipe -------------------------------------------------------------------------------------

#[test]
fn ends_travel_over_a_pipe_in_their_place_among_messages() {
    const ROUNDS: u64 = 20;
    let _alone = alone();
    let _watchdog = watchdog(60);
    let script = Script::mixed(9, 4096);
    let (mine, theirs) = Builder::new().capacity(4096).pipe().unwrap();
    let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
        let (mut receivers, mut connections) = (Vec::new(), Vec::new());
        for i in 0..ROUNDS {
            assert!(theirs.recv_bytes().unwrap() == script.message(2 * i));
            let refused = theirs.recv_bytes();
            assert!(matches!(refused, Err(RecvError::IsEnd)), "{refused:?}");
            match i % 3 {
                0 => theirs.recv_end::<Sender>().unwrap().send_bytes(b"sender").unwrap(),
                1 => {
                    let mut end = theirs.recv_end::<Receiver>().unwrap();
                    assert_eq!(end.recv_bytes().unwrap(), b"receiver");
                    receivers.push(end);
                }
                _ => {
                    let mut end = theirs.recv_end::<Connection>().unwrap();
                    let message = end.recv_bytes().unwrap();
                    end.send_bytes(&message).unwrap();
                    connections.push(end);
                }
            }
            let refused = theirs.recv_end::<Sender>().map(drop);
            assert!(matches!(refused, Err(RecvError::IsBytes)), "{refused:?}");
            assert!(theirs.recv_bytes().unwrap() == script.message(2 * i + 1));
            theirs.send_bytes(b"next").unwrap();
        }
        0
    });
    for i in 0..ROUNDS {
        mine.send_bytes(script.message(2 * i)).unwrap();
        let (mut a, b) = ringpipe::pipe().unwrap();
        let (mut receiver, mut sender) = ringpipe::simplex().unwrap();
        match i % 3 {
            0 => {
                mine.send_end(sender).unwrap();
                assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"sender");
            }
            1 => {
                mine.send_end(receiver).unwrap();
                sender.send_bytes(b"receiver").unwrap();
            }
            _ => {
                mine.send_end(b).unwrap();
                a.send_bytes(b"connection").unwrap();
                assert_eq!(a.recv_bytes_timeout(PATIENCE).unwrap(), b"connection");
            }
        }
        mine.send_bytes(script.message(2 * i + 1)).unwrap();
        assert_eq!(mine.recv_bytes_timeout(PATIENCE).unwrap(), b"next");
    }
    child.succeeds();
}

#[test]
fn an_end_on_its_way_through_a_pipe_closes_with_it() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mut over, other) = ringpipe::pipe().unwrap();
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    over.send_end(theirs).unwrap();
    assert!(matches!(mine.recv_bytes_timeout(MOMENT), Err(RecvError::TimedOut)), "in flight, it is open");
    drop(other);
    drop(over);
    assert!(is_eof(&mine.recv_bytes_timeout(PATIENCE)));
}

#[test]
fn an_end_of_the_wrong_kind_from_a_pipe_is_consumed_and_the_pipe_goes_on() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mut over, mut other) = ringpipe::pipe().unwrap();
    let (mut mine, theirs) = ringpipe::pipe().unwrap();
    over.send_end(theirs).unwrap();
    over.send_bytes(b"and on").unwrap();
    let what = other.recv_end::<Sender>().map(drop);
    assert!(matches!(what, Err(RecvError::Attach(AttachError::WrongEnd { .. }))), "{what:?}");
    assert!(is_eof(&mine.recv_bytes_timeout(PATIENCE)));
    assert_eq!(other.recv_bytes().unwrap(), b"and on");
}

#[test]
fn ends_sent_before_a_death_are_received_before_the_end_of_file() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mine, theirs) = ringpipe::pipe().unwrap();
    let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
        for i in 0..3_u8 {
            let (receiver, mut sender) = ringpipe::simplex().unwrap();
            sender.send_bytes(&[i]).unwrap();
            theirs.send_end(receiver).unwrap();
        }
        0
    });
    child.succeeds();
    for i in 0..3 {
        assert!(poll_fd(mine.as_fd(), libc::POLLIN, PATIENCE) != 0 && mine.as_fd().as_raw_fd() > 2);
        let mut receiver = mine.recv_end::<Receiver>().unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), [i]);
        assert!(is_eof(&receiver.recv_bytes()));
    }
    assert!(is_eof(&mine.recv_bytes()));
    assert!(is_eof(&mine.recv_end::<Receiver>().map(drop)));
}

#[test]
fn an_end_sent_to_a_waiting_receiver_arrives_though_its_sender_exits_at_once() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    // Both on one processor, so that the sender is gone before the receiver runs again.
    support::pin(0);
    for _ in 0..20 {
        let (receiver, sender) = ringpipe::simplex().unwrap();
        let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
            // Long enough for the receiver to be parked.
            std::thread::sleep(Duration::from_millis(15));
            let (theirs, mut ours) = ringpipe::simplex().unwrap();
            ours.send_bytes(b"from the other end").unwrap();
            sender.send_end(theirs).unwrap();
            0
        });
        let mut end: Receiver = receiver.recv_end().unwrap();
        assert_eq!(end.recv_bytes().unwrap(), b"from the other end");
        assert_eq!(child.wait().code(), Some(0));
    }
}
