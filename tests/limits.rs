//! Where things run out or run against a bound: descriptors, the bell's socket, lengths around the ring's own measures, very many
//! pipes, and an end that two processes use at once.
//!
//! `RINGPIPE_HUGE=1 cargo test --release --test limits` also sends messages of more than 4 GiB, for which it takes some 5 GiB of memory.

mod support;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringpipe::{
    AttachError, BuildError, Builder, Connection, End, Receiver, RecvError, SendError, Sender, WaitStrategy,
};
use support::{Script, Shared, alone, fork, fork_copy, fork_split, numbered, open_fds, stuff_up, watchdog};

const PATIENCE: Duration = Duration::from_secs(20);

// --- descriptors ------------------------------------------------------------------------------------

/// Lets this process open no descriptor beyond so many more. Returns the limit that there was.
fn allow_descriptors(more: usize) -> libc::rlimit {
    // The limit is on numbers, so fill what is free below the highest.
    let highest = open_fds().last().copied().unwrap_or(2);
    let limit = (highest as usize + 1 + more) as libc::rlim_t;
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer leads to a live structure.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut before) }, 0);
    let limits = libc::rlimit { rlim_cur: limit, ..before };
    for fd in 0..=highest {
        // SAFETY: asking for the flags of a closed descriptor is an error and nothing else; 1 is open, and its copy stays open.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) < 0 {
                libc::dup2(1, fd);
            }
        }
    }
    // SAFETY: the pointer leads to a live structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) }, 0);
    before
}

/// Bytes that the memory files of this process hold.
fn memory_taken() -> u64 {
    let paths = open_fds().into_iter().map(|fd| format!("/proc/self/fd/{fd}"));
    let files = paths
        .filter(|path| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:ringpipe")));
    // A unit of `stat(2)`.
    files.map(|path| 512 * std::fs::metadata(path).unwrap().blocks()).sum()
}

#[test]
fn memory_is_taken_as_it_is_used_or_at_once() {
    const CAPACITY: usize = 1 << 20;
    let (_alone, _watchdog) = (alone(), watchdog(60));
    fork(|| {
        let before = memory_taken();
        let used = || memory_taken() - before;
        let builder = Builder::new().capacity(CAPACITY);
        let (a, mut b) = builder.pipe().unwrap();
        assert!(used() < 64 << 10, "{} bytes taken by a pipe that has carried nothing", used());
        b.send_bytes(&[1; 100_000]).unwrap();
        assert!((100_000..200_000).contains(&used()), "{} bytes taken for 100,000", used());
        drop((a, b));
        assert_eq!(used(), 0);

        let (mut a, mut b) = builder.clone().prefault(true).pipe().unwrap();
        assert!(used() >= 2 * CAPACITY as u64, "{} bytes taken of two rings", used());
        a.send_bytes(b"as ever").unwrap();
        assert_eq!(b.recv_bytes().unwrap(), b"as ever");
        drop((a, b));
        let _ends = builder.prefault(true).mpmc().unwrap();
        assert!(used() >= CAPACITY as u64, "{} bytes taken of a ring for many", used());
        0
    })
    .succeeds();
}

fn is_emfile(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMFILE)
}

#[test]
fn out_of_descriptors_no_pipe_is_made_and_none_leaks() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    // A duplex pipe takes five: the memory, and two for each direction.
    for more in 0..8 {
        let child = fork(|| {
            // To be duplicated in the end.
            let spare = std::fs::File::open("/dev/null").unwrap();
            allow_descriptors(more);
            let made = (ringpipe::pipe(), more >= 5);
            let enough = match &made {
                (Ok(_), true) => true,
                (Err(BuildError::Io(e)), false) => {
                    is_emfile(e) && made.0.as_ref().unwrap_err().to_string().contains("open files")
                }
                _ => false,
            };
            drop(made);
            if !enough {
                return 1;
            }
            // All that was free is free again.
            for _ in 0..more {
                // SAFETY: duplicating a descriptor that is open.
                if unsafe { libc::dup(spare.as_raw_fd()) } < 0 {
                    return 2;
                }
            }
            0
        });
        assert_eq!(child.wait().code(), Some(0), "with {more} descriptors left");
    }
}

#[test]
fn out_of_descriptors_an_end_handed_over_is_refused_and_none_leaks() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    for more in 0..3 {
        let (here, there) = UnixStream::pair().unwrap();
        let child = fork(move || {
            let spare = std::fs::File::open("/dev/null").unwrap();
            let (_mine, theirs) = ringpipe::pipe().unwrap();
            theirs.send_to(&here).unwrap();
            allow_descriptors(more);
            let refused = match Connection::recv_from(&there) {
                Err(AttachError::BadHandover { .. }) => true,
                Err(AttachError::Io(e)) => is_emfile(&e),
                _ => false,
            };
            // SAFETY: duplicating a descriptor that is open.
            let free = (0..more).all(|_| unsafe { libc::dup(spare.as_raw_fd()) } >= 0);
            if !refused { 1 } else { i32::from(!free) * 2 }
        });
        assert_eq!(child.wait().code(), Some(0), "with {more} descriptors left");
    }
}

#[test]
fn out_of_descriptors_a_receiver_that_gives_up_hangs_up_as_soon_as_it_can() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (receiver, sender) = Builder::new().capacity(4096).simplex().unwrap();
    let (mut notice, mut told) = ringpipe::pipe().unwrap();
    let (child, mut sender) = fork_split(sender, receiver, |mut receiver| {
        let limit = allow_descriptors(0);
        assert!(matches!(receiver.recv_bytes_max(10), Err(RecvError::TooLong { len: 100, max: 10 })));
        told.send_bytes(b"it is too long").unwrap();
        told.recv_bytes().unwrap();
        // SAFETY: the pointer leads to a live structure.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        assert!(matches!(receiver.recv_bytes(), Err(RecvError::Ended)));
        told.send_bytes(b"it has hung up").unwrap();
        told.recv_bytes().unwrap();
        0
    });
    sender.send_bytes(&[0; 100]).unwrap();
    notice.recv_bytes_timeout(PATIENCE).unwrap();
    while sender.try_send_bytes(&[0; 100]).is_ok() {}
    assert!(!sender.is_disconnected(), "without a descriptor it cannot hang up");
    notice.send_bytes(b"go on").unwrap();
    notice.recv_bytes_timeout(PATIENCE).unwrap();
    assert!(sender.is_disconnected());
    assert!(matches!(sender.send_bytes(b""), Err(SendError::Disconnected)));
    notice.send_bytes(b"go").unwrap();
    child.succeeds();
}

#[test]
fn an_end_takes_two_descriptors_and_a_connection_three() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (here, there) = UnixStream::pair().unwrap();
    let (child, here) = fork_split(here, there, |there| {
        let before = open_fds().len();
        let connection = Connection::recv_from(&there).unwrap();
        let with_connection = open_fds().len() - before;
        let receiver = Receiver::recv_from(&there).unwrap();
        let with_receiver = open_fds().len() - before - with_connection;
        drop((connection, receiver));
        i32::from(with_connection > 3 || with_receiver > 2 || open_fds().len() != before)
    });
    let (_mine, theirs) = ringpipe::pipe().unwrap();
    theirs.send_to(&here).unwrap();
    let (receiver, _sender) = ringpipe::simplex().unwrap();
    receiver.send_to(&here).unwrap();
    child.succeeds();
}

#[test]
fn a_full_bell_keeps_nobody_from_sending_or_receiving() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (receiver, sender) = Builder::new().spin(Duration::ZERO).simplex().unwrap();
    stuff_up(&sender);
    let script = Script::short(1);
    let (child, mut sender) = fork_split(sender, receiver, |mut receiver| {
        for i in 0..100 {
            if receiver.recv_bytes_timeout(PATIENCE).ok().as_deref() != Some(script.message(i)) {
                return 1;
            }
        }
        let Ok(mut end) = receiver.recv_end::<Receiver>() else { return 2 };
        if end.recv_bytes().ok().as_deref() != Some(b"through the bell") {
            return 3;
        }
        i32::from(!matches!(end.recv_bytes(), Err(RecvError::Disconnected)))
    });
    for i in 0..100 {
        // Now at once, now when the receiver is parked.
        std::thread::sleep(Duration::from_millis(if i % 20 == 0 { 10 } else { 0 }));
        let start = Instant::now();
        sender.send_bytes(script.message(i)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "a full bell held up a send for {:?}", start.elapsed());
    }
    stuff_up(&sender);
    let (theirs, mut mine) = ringpipe::simplex().unwrap();
    sender.send_end(theirs).unwrap();
    mine.send_bytes(b"through the bell").unwrap();
    drop(mine);
    child.succeeds();
}

// --- lengths ----------------------------------------------------------------------------------------

#[test]
fn messages_around_every_measure_of_the_ring_arrive_whole() {
    let _alone = alone();
    let _watchdog = watchdog(120);
    for capacity in [4096_usize, 16 << 10, 256 << 10] {
        let (receiver, sender) = Builder::new().capacity(capacity).simplex().unwrap();
        let max = sender.max_reserve();
        assert_eq!(max, capacity / 4 - 8);
        let measures = [0, 8, capacity / 8, max, capacity / 4, capacity / 2, capacity, 2 * capacity, 3 * capacity];
        let around = |measure: usize| (measure.saturating_sub(17)..=measure + 17).collect::<Vec<_>>();
        let lengths: Vec<usize> = measures.into_iter().flat_map(around).collect();
        let all = numbered(4 * capacity);
        let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
            lengths.iter().any(|&len| sender.send_bytes(&all[..len]).is_err()).into()
        });
        for &len in &lengths {
            let message = receiver.recv_bytes_timeout(PATIENCE).unwrap();
            assert!(message == all[..len], "{} bytes arrived for {len}, capacity {capacity}", message.len());
        }
        assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
        child.succeeds();
    }
}

#[test]
fn what_can_never_fit_is_refused_by_the_forms_that_do_not_wait() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mut receiver, mut sender) = Builder::new().capacity(4096).simplex().unwrap();
    assert!(matches!(sender.try_reserve(sender.max_reserve() + 1), Err(SendError::TooLong { len: 1017, max: 1016 })));
    assert!(matches!(sender.reserve(usize::MAX), Err(SendError::TooLong { .. })));
    let message = numbered(4096);
    for len in [4096, 4095, 4000] {
        let Err(SendError::TooLong { len: told, max }) = sender.try_send_bytes(&message[..len]) else {
            panic!("{len} bytes do not fit in a ring of 4096 with their headers")
        };
        // What the error says fits does fit, wherever the ring's position is.
        assert_eq!(told, len);
        sender.try_send_bytes(&message[..max]).unwrap();
        assert!(receiver.recv_bytes().unwrap() == message[..max]);
        sender.try_send_bytes(b"moves the position").unwrap();
        receiver.recv_bytes().unwrap();
    }
    let timeout = Duration::from_millis(30);
    assert!(matches!(sender.send_bytes_timeout(&numbered(4 * 4096 + 5), timeout), Err(SendError::TimedOut)));
    sender.try_send_bytes(b"nothing of it was sent").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"nothing of it was sent");
}

/// A line of a process's `/proc/.../status`.
fn status_line(process: &str, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()).expect("the field exists").to_owned()
}

/// A number in it, in its own unit.
fn status(process: &str, field: &str) -> u64 {
    status_line(process, field).parse().unwrap()
}

/// By how many bytes the peak of resident memory rises above what is resident now.
fn peak_growth(body: impl FnOnce()) -> u64 {
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("self", "VmRSS");
    body();
    status("self", "VmHWM").saturating_sub(before) << 10
}

#[test]
fn a_message_far_longer_than_the_ring_takes_no_memory_of_the_sender_and_one_copy_of_the_receiver() {
    const LEN: usize = 64 << 20;
    let _alone = alone();
    let _watchdog = watchdog(120);
    let (receiver, sender) = ringpipe::simplex().unwrap();
    let growth = Shared::new();
    let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
        let message = numbered(LEN);
        let mut sent = true;
        growth.set(0, peak_growth(|| sent = (0..2).all(|_| sender.send_bytes(&message).is_ok())));
        i32::from(!sent)
    });
    let mut message = Vec::new();
    let grown = peak_growth(|| message = receiver.recv_bytes_timeout(PATIENCE).unwrap());
    assert!(message == numbered(LEN));
    message.fill(0);
    let into = peak_growth(|| assert_eq!(receiver.recv_bytes_into(&mut message, 0).unwrap(), LEN));
    assert!(message == numbered(LEN));
    child.succeeds();
    let sender = growth.get(0);
    println!("64 MiB: the sender grew by {sender} bytes, the receiver by {grown}, with a buffer of its own by {into}");
    assert!(sender < 4 << 20, "the sender grew by {sender} bytes");
    assert!(grown < (LEN + LEN / 4) as u64, "the receiver grew by {grown} bytes");
    assert!(into < 4 << 20, "the receiver grew by {into} bytes, with a buffer of its own");
}

#[test]
fn messages_of_several_gib_arrive_whole() {
    if std::env::var_os("RINGPIPE_HUGE").is_none() {
        println!("skipped: set RINGPIPE_HUGE=1, and have 5 GiB of memory");
        return;
    }
    const PART: usize = 16 << 20;
    let _alone = alone();
    let _watchdog = watchdog(300);
    // Beyond what 32 bits can count, and no multiple of anything.
    let Ok(len) = usize::try_from((1_u64 << 32) + 4099) else {
        println!("skipped: no such message fits in the memory of a 32-bit process");
        return;
    };
    let (receiver, sender) = ringpipe::simplex().unwrap();
    let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
        let part = numbered(PART);
        let mut parts = vec![IoSlice::new(&part); len / PART];
        parts.push(IoSlice::new(&part[..len % PART]));
        i32::from(sender.send_vectored(&parts).is_err() || sender.send_bytes(b"and on").is_err())
    });
    let message = receiver.recv_bytes().unwrap();
    assert_eq!(message.len(), len);
    let part = numbered(PART);
    assert!(message.chunks(PART).all(|chunk| *chunk == part[..chunk.len()]), "the bytes differ");
    assert_eq!(receiver.recv_bytes().unwrap(), b"and on");
    child.succeeds();
}

// --- one end, two processes, no lock ------------------------------------------------------------------

#[test]
fn one_end_used_by_two_processes_at_once_garbles_messages_at_worst() {
    const ROUNDS: u64 = 6;
    let _alone = alone();
    let _watchdog = watchdog(120);
    let capacity = 16 << 10;
    let script = Script::mixed(3, capacity);
    let timeout = Duration::from_millis(2);
    let (mut operations, mut slowest) = (0, Duration::ZERO);
    for round in 0..2 * ROUNDS {
        let (receiver, sender) = Builder::new().capacity(capacity).simplex().unwrap();
        let until = Instant::now() + Duration::from_millis(100);
        let send = |mut sender: Sender, from: u64| {
            for i in from.. {
                let result = sender.send_bytes_timeout(script.message(i), timeout);
                if Instant::now() > until || matches!(result, Err(SendError::Disconnected)) {
                    break;
                }
            }
            0
        };
        let receive = |mut receiver: Receiver, operations: &mut u64| {
            while Instant::now() < until {
                let start = Instant::now();
                match receiver.recv_bytes_timeout(timeout) {
                    Ok(message) => assert!(message.len() <= 2 * capacity, "no message is so long"),
                    Err(RecvError::Disconnected | RecvError::Ended) => break,
                    Err(_) => {}
                }
                slowest = slowest.max(start.elapsed());
                *operations += 1;
            }
        };
        // Two senders and a receiver, or two receivers and a sender; none of them may crash, or hang.
        let (twin, (receiver, sender)) = fork_copy((receiver, sender), |(receiver, sender)| {
            if round % 2 == 0 {
                drop(receiver);
                send(sender, 1_000_000)
            } else {
                drop(sender);
                let mut receiver = receiver;
                while Instant::now() < until {
                    if let Err(RecvError::Disconnected | RecvError::Ended) = receiver.recv_bytes_timeout(timeout) {
                        break;
                    }
                }
                0
            }
        });
        let (other, receiver) = fork_split(receiver, sender, |sender| send(sender, 0));
        let mut receive = receive;
        receive(receiver, &mut operations);
        twin.succeeds();
        other.succeeds();
    }
    println!("{operations} receives beside a rival, the slowest took {slowest:.1?}");
    assert!(operations > 2 * ROUNDS, "only {operations} operations, so little was shown");
    assert!(slowest < Duration::from_secs(3), "a receive of at most 2 ms took {slowest:?}");
}

// --- very many, and nothing to do ---------------------------------------------------------------------

/// Raises the limit on descriptors as far as it goes, and says how far that is.
fn raise_descriptor_limit() -> usize {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointers lead to a live structure.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits), 0);
        limits.rlim_cur = limits.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limits), 0);
    }
    limits.rlim_cur as usize
}

#[test]
fn thousands_of_pipes_leave_nothing_behind() {
    let _alone = alone();
    let _watchdog = watchdog(120);
    // In a process of its own, whose memory and limits are nobody else's.
    let child = fork(|| {
        let pipes = 2_000.min((raise_descriptor_limit() - open_fds().len() - 10) / 5);
        assert!(pipes >= 100, "the limit on descriptors is too low for this test");
        let usage = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
            (open_fds().len(), maps, status("self", "Threads"), status("self", "VmRSS"))
        };
        let mut before = None;
        for round in 0..10 {
            let mut all: Vec<(Connection, Connection)> = (0..pipes).map(|_| ringpipe::pipe().unwrap()).collect();
            for (i, (a, b)) in all.iter_mut().enumerate() {
                a.send_bytes(&i.to_le_bytes()).unwrap();
                b.send_bytes(b"back").unwrap();
                assert_eq!(b.recv_bytes().unwrap(), i.to_le_bytes());
                assert_eq!(a.recv_bytes().unwrap(), b"back");
            }
            drop(all);
            // The first round pays for what the allocator keeps.
            if round == 0 {
                before = Some(usage());
            }
        }
        let (fds, maps, threads, rss) = before.expect("there was a first round");
        let after = usage();
        assert_eq!(after.0, fds, "descriptors");
        assert!(after.1 <= maps + 5, "{} mappings instead of {maps}", after.1);
        assert_eq!(after.2, threads, "threads");
        // An emulator keeps books of its own about every mapping that ever was.
        assert!(support::emulated() || after.3 <= rss + 2048, "{} KiB resident instead of {rss}", after.3);
        0
    });
    child.succeeds();
}

/// `S` for asleep, `Z` for dead and not reaped.
fn state(pid: libc::pid_t) -> String {
    status_line(&pid.to_string(), "State")
}

/// What a process has done: wake-ups of its own accord, and time on a processor.
fn activity(pid: libc::pid_t) -> (u64, Duration) {
    let process = pid.to_string();
    let schedstat = std::fs::read_to_string(format!("/proc/{process}/schedstat")).unwrap();
    let nanos = schedstat.split_whitespace().next().unwrap().parse().unwrap();
    (status(&process, "voluntary_ctxt_switches"), Duration::from_nanos(nanos))
}

/// A message every 50 ms: longer than spinning pays off.
#[test]
fn each_way_of_waiting_costs_what_it_is_said_to() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    for strategy in [WaitStrategy::BusySpin, WaitStrategy::Adaptive, WaitStrategy::Blocking] {
        for many in [false, true] {
            let builder = Builder::new().wait_strategy(strategy);
            let (child, mut send): (_, Box<dyn FnMut()>) = if many {
                let (child, (receiver, sender)) = fork_copy(builder.mpmc().unwrap(), |(receiver, sender)| {
                    drop(sender);
                    i32::from(receiver.iter().any(|message| message.is_err()))
                });
                drop(receiver);
                (child, Box::new(move || sender.send_bytes(b"a while later").unwrap()))
            } else {
                let (receiver, sender) = builder.simplex().unwrap();
                let (child, mut sender) = fork_split(sender, receiver, |mut receiver| {
                    i32::from(receiver.iter().any(|message| message.is_err()))
                });
                (child, Box::new(move || sender.send_bytes(b"a while later").unwrap()))
            };
            let mut round = |count| {
                for _ in 0..count {
                    std::thread::sleep(Duration::from_millis(50));
                    send();
                }
            };
            // It learns meanwhile, if it does.
            round(20);
            let before = activity(child.pid);
            round(20);
            let after = activity(child.pid);
            let (wakes, time) = (after.0 - before.0, after.1 - before.1);
            println!("{strategy:?}, many: {many}: {wakes} wake-ups, {time:.1?} of processor time in 1 s");
            if strategy == WaitStrategy::BusySpin {
                assert!(wakes < 10, "{wakes} wake-ups");
                assert!(time > Duration::from_millis(100), "{time:?} of processor time");
            } else {
                assert!(wakes >= 20, "{wakes} wake-ups");
                assert!(time < Duration::from_millis(60), "{time:?} of processor time");
            }
            drop(send);
            child.succeeds();
        }
    }
}

#[test]
fn idle_blocked_ends_cost_a_wake_up_a_second() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    // Idle are: a receiver with nothing to receive, one with a time-out, one in epoll, and a sender without room.
    let (a, _keep_a) = ringpipe::simplex().unwrap();
    let (b, _keep_b) = ringpipe::simplex().unwrap();
    let (c, _keep_c) = ringpipe::simplex().unwrap();
    let (_keep_d, d) = Builder::new().capacity(4096).simplex().unwrap();
    let idle = [
        (
            "recv",
            fork(move || {
                let mut a = a;
                i32::from(a.recv_bytes().is_ok())
            }),
        ),
        (
            "recv_timeout",
            fork(move || {
                let mut b = b;
                i32::from(b.recv_bytes_timeout(PATIENCE).is_ok())
            }),
        ),
        ("epoll", fork(move || i32::from(support::epoll(c.as_fd(), PATIENCE)))),
        (
            "send",
            fork(move || {
                let mut d = d;
                while d.send_bytes(&[0; 100]).is_ok() {}
                0
            }),
        ),
    ];
    std::thread::sleep(Duration::from_millis(300));
    let before: Vec<_> = idle.iter().map(|(_, child)| activity(child.pid)).collect();
    std::thread::sleep(Duration::from_secs(3));
    for ((what, child), before) in idle.iter().zip(before) {
        let after = activity(child.pid);
        assert_eq!(state(child.pid), "S", "{what} does not sleep: it returned");
        let (wakes, time) = (after.0 - before.0, after.1 - before.1);
        println!("{what}: {wakes} wake-ups and {time:.1?} of processor time in 3 s");
        assert!(wakes <= 4, "{what}: {wakes} wake-ups in 3 s");
        assert!(time < Duration::from_millis(20), "{what}: {time:?} of processor time in 3 s");
    }
}
