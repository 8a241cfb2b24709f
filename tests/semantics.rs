//! What a pipe does, case by case: `multiprocessing.Pipe`'s semantics in Rust's terms.
//!
//! One long table, in the order construction, sending, receiving, polling, end of file, copies, long messages, values, in-place access,
//! errors, descriptor. It stays one file so that a case is easy to find. Where two processes are named there are two.

mod support;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::{
    AttachError, BufferTooShort, BuildError, Builder, Connection, DEFAULT_CAPACITY, End, Progress, Receiver, RecvError,
    RecvIntoError, SendError, Sender, pipe, simplex, wait,
};
use support::forms::Waits::{Ever, InTime, Never};
use support::forms::{LONG, SHORT, fill_by, lasting, message, parts, recv_forms, send_forms};
use support::{LEAVES, Leave, Script, Shared, fork, fork_copy, fork_split, guard, open_fds, poll_fd, readable, stuff};

/// The smallest ring there is.
const SMALL: usize = 4096;

fn small_pipe() -> (Connection, Connection) {
    Builder::new().capacity(SMALL).pipe().unwrap()
}

fn small_simplex() -> (Receiver, Sender) {
    Builder::new().capacity(SMALL).simplex().unwrap()
}

/// Lengths around everything that changes with the length, for a ring of [`SMALL`] bytes; each fits in an empty one.
const LENGTHS: [usize; 13] = [0, 1, 7, 8, 9, 63, 100, 1000, SMALL / 4 - 9, SMALL / 4 - 8, SMALL / 4 - 7, 2000, 2500];

/// Sends messages of 100 bytes until there is no room for another; returns how many.
fn fill_up(connection: &mut Connection) -> usize {
    fill_by(100, |message| connection.try_send_bytes(message))
}

// --- every form of every operation -------------------------------------------------------------------

recv_forms!(&mut Connection, 16 << 10);
send_forms!(&mut Connection);

#[test]
fn every_form_of_receiving_takes_one_message_and_leaves_the_next() {
    let _guard = guard();
    for &(name, _, recv) in RECV_FORMS {
        let (mut a, mut b) = small_pipe();
        for (i, len) in LENGTHS.into_iter().enumerate() {
            a.try_send_bytes(&message(i, len)).unwrap();
            a.try_send_bytes(b"next").unwrap();
            assert_eq!(recv(&mut b, LONG).unwrap(), message(i, len), "{name}, {len} bytes");
            assert_eq!(recv(&mut b, LONG).unwrap(), b"next", "{name}, after {len} bytes");
        }
    }
}

#[test]
fn every_form_of_receiving_that_finds_nothing_says_so_in_time_and_can_go_on() {
    let _guard = guard();
    for &(name, waits, recv) in RECV_FORMS {
        let (mut a, mut b) = small_pipe();
        for i in 0..2 {
            match waits {
                Ever => {}
                Never => assert!(matches!(recv(&mut b, SHORT), Err(RecvError::Empty)), "{name}"),
                InTime => {
                    let result = lasting(SHORT, name, || recv(&mut b, SHORT));
                    assert!(matches!(result, Err(RecvError::TimedOut)), "{name}: {result:?}");
                }
            }
            a.send_bytes(&message(i, 10)).unwrap();
            assert_eq!(recv(&mut b, LONG).unwrap(), message(i, 10), "{name}");
        }
    }
}

#[test]
fn every_form_of_receiving_waits_for_another_process() {
    let _guard = guard();
    let (mine, theirs) = small_pipe();
    let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
        while let Ok(request) = theirs.recv_bytes() {
            // Short enough for a spin, for a sleep, and long enough to park.
            let delay = u16::from_le_bytes([request[0], request[1]]);
            std::thread::sleep(Duration::from_micros(delay.into()));
            if theirs.send_bytes(&request).is_err() {
                return 1;
            }
        }
        0
    });
    for &(name, waits, recv) in RECV_FORMS {
        for delay in [1_u16, 300, 8_000] {
            mine.send_bytes(&delay.to_le_bytes()).unwrap();
            let reply = loop {
                match recv(&mut mine, LONG) {
                    Err(RecvError::Empty) if waits == Never => std::thread::yield_now(),
                    result => break result,
                }
            };
            assert_eq!(reply.unwrap(), delay.to_le_bytes(), "{name}");
        }
    }
    drop(mine);
    child.succeeds();
}

#[test]
fn every_form_of_receiving_gets_what_was_sent_and_then_end_of_file_for_ever() {
    let _guard = guard();
    for &(name, _, recv) in RECV_FORMS {
        let (mut a, mut b) = small_pipe();
        a.send_bytes(b"first").unwrap();
        a.send_bytes(&message(1, 2000)).unwrap();
        a.send_bytes(b"").unwrap();
        drop(a);
        assert_eq!(recv(&mut b, LONG).unwrap(), b"first", "{name}");
        assert_eq!(recv(&mut b, LONG).unwrap(), message(1, 2000), "{name}");
        assert_eq!(recv(&mut b, LONG).unwrap(), b"", "{name}");
        for _ in 0..3 {
            let result = recv(&mut b, LONG);
            assert!(matches!(result, Err(RecvError::Disconnected)), "{name}: {result:?}");
        }
    }
}

#[test]
fn every_form_of_receiving_that_waits_is_woken_by_the_end_of_the_sender() {
    let _guard = guard();
    for &(name, waits, recv) in RECV_FORMS {
        if waits == Never {
            continue;
        }
        for delay in [1, 10] {
            let (mine, theirs) = small_pipe();
            let (child, mut mine) = fork_split(mine, theirs, |_theirs| {
                std::thread::sleep(Duration::from_millis(delay));
                0
            });
            let result = lasting(Duration::ZERO, name, || recv(&mut mine, LONG));
            assert!(matches!(result, Err(RecvError::Disconnected)), "{name}: {result:?}");
            child.succeeds();
        }
    }
}

#[test]
fn every_form_of_sending_sends_one_whole_message() {
    let _guard = guard();
    for &(name, _, send) in SEND_FORMS {
        let (mut a, mut b) = small_pipe();
        for (i, len) in LENGTHS.into_iter().enumerate() {
            if name.contains("reserve") && len > a.sender().max_reserve() {
                continue;
            }
            send(&mut a, &message(i, len), LONG).unwrap();
            send(&mut a, b"next", LONG).unwrap();
            assert_eq!(b.try_recv_bytes().unwrap(), message(i, len), "{name}, {len} bytes");
            assert_eq!(b.try_recv_bytes().unwrap(), b"next", "{name}, after {len} bytes");
            assert!(matches!(b.try_recv_bytes(), Err(RecvError::Empty)), "{name}");
        }
    }
}

#[test]
fn every_form_of_sending_that_finds_no_room_says_so_in_time_and_sends_nothing() {
    let _guard = guard();
    for &(name, waits, send) in SEND_FORMS {
        let (mut a, mut b) = small_pipe();
        let sent = fill_up(&mut a);
        match waits {
            Ever => continue,
            Never => assert!(matches!(send(&mut a, &[1; 100], SHORT), Err(SendError::Full)), "{name}"),
            InTime => {
                let result = lasting(SHORT, name, || send(&mut a, &[1; 100], SHORT));
                assert!(matches!(result, Err(SendError::TimedOut)), "{name}: {result:?}");
            }
        }
        for i in 0..sent {
            assert_eq!(b.try_recv_bytes().unwrap(), message(i, 100), "{name}");
        }
        assert!(matches!(b.try_recv_bytes(), Err(RecvError::Empty)), "{name}");
        send(&mut a, b"now", LONG).unwrap();
        assert_eq!(b.try_recv_bytes().unwrap(), b"now", "{name}");
    }
}

#[test]
fn every_form_of_sending_waits_until_another_process_makes_room() {
    let _guard = guard();
    for &(name, waits, send) in SEND_FORMS {
        for delay in [1, 10] {
            let (mine, theirs) = small_pipe();
            let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
                std::thread::sleep(Duration::from_millis(delay));
                let mut count = 0;
                while theirs.recv_bytes().unwrap() == message(count, 100) {
                    count += 1;
                }
                i32::from(!matches!(theirs.recv_bytes(), Err(RecvError::Disconnected)))
            });
            fill_up(&mut mine);
            loop {
                match send(&mut mine, b"last", LONG) {
                    Err(SendError::Full) if waits == Never => std::thread::yield_now(),
                    result => break result.unwrap_or_else(|e| panic!("{name}: {e}")),
                }
            }
            drop(mine);
            child.succeeds();
        }
    }
}

#[test]
fn every_form_of_sending_gets_a_broken_pipe_for_ever_once_the_receiver_is_closed() {
    let _guard = guard();
    for &(name, _, send) in SEND_FORMS {
        let (mut a, b) = small_pipe();
        a.send_bytes(b"unread").unwrap();
        drop(b);
        for message in [&b"lost"[..], b"", b"lost"] {
            let result = send(&mut a, message, LONG);
            assert!(matches!(result, Err(SendError::Disconnected)), "{name}: {result:?}");
        }
    }
}

#[test]
fn every_form_of_sending_that_waits_for_room_is_woken_by_the_end_of_the_receiver() {
    let _guard = guard();
    for &(name, waits, send) in SEND_FORMS {
        if waits == Never {
            continue;
        }
        for delay in [1, 10] {
            let (mine, theirs) = small_pipe();
            let (child, mut mine) = fork_split(mine, theirs, |_theirs| {
                std::thread::sleep(Duration::from_millis(delay));
                0
            });
            let result = lasting(Duration::ZERO, name, || {
                loop {
                    if let Err(e) = send(&mut mine, &[1; 500], LONG) {
                        break e;
                    }
                }
            });
            assert!(matches!(result, SendError::Disconnected), "{name}: {result:?}");
            child.succeeds();
        }
    }
}

#[test]
fn a_time_out_of_zero_and_a_deadline_in_the_past_take_what_is_there_and_otherwise_time_out() {
    let _guard = guard();
    let past = Instant::now();
    std::thread::sleep(Duration::from_millis(1));
    let (mut a, mut b) = small_pipe();
    a.send_bytes_timeout(b"one", Duration::ZERO).unwrap();
    a.send_bytes_deadline(b"two", past).unwrap();
    assert_eq!(b.recv_bytes_timeout(Duration::ZERO).unwrap(), b"one");
    assert_eq!(b.recv_bytes_deadline(past).unwrap(), b"two");

    let result = b.recv_bytes_timeout(Duration::ZERO);
    assert!(matches!(result, Err(RecvError::TimedOut)), "{result:?}");
    let result = b.recv_bytes_deadline(past);
    assert!(matches!(result, Err(RecvError::TimedOut)), "{result:?}");
    fill_up(&mut a);
    let result = a.send_bytes_timeout(&[1; 100], Duration::ZERO);
    assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
    let result = a.send_bytes_deadline(&[1; 100], past);
    assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
}

#[test]
fn a_time_out_too_long_for_the_clock_is_none() {
    let _guard = guard();
    let (mine, theirs) = small_pipe();
    let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
        for reply in ["one", "two"] {
            std::thread::sleep(Duration::from_millis(8));
            theirs.send_bytes_timeout(reply.as_bytes(), Duration::MAX).unwrap();
        }
        0
    });
    assert_eq!(mine.recv_bytes_timeout(Duration::MAX).unwrap(), b"one");
    assert!(mine.poll(Some(Duration::MAX)).unwrap());
    assert_eq!(mine.recv_bytes().unwrap(), b"two");
    child.succeeds();
}

// --- construction ---------------------------------------------------------------------------------------

#[test]
fn a_duplex_pipe_carries_messages_both_ways_without_mixing_them() {
    let _guard = guard();
    let (mut a, mut b) = pipe().unwrap();
    for i in 0..10 {
        a.send_bytes(&message(i, 10)).unwrap();
        b.send_bytes(&message(i + 100, 20)).unwrap();
    }
    for i in 0..10 {
        assert_eq!(b.recv_bytes().unwrap(), message(i, 10));
        assert_eq!(a.recv_bytes().unwrap(), message(i + 100, 20));
    }
    assert!(!a.poll(Some(Duration::ZERO)).unwrap());
    assert!(!b.poll(Some(Duration::ZERO)).unwrap());
}

#[test]
fn a_simplex_pipe_is_a_receiver_and_a_sender_in_this_order() {
    let _guard = guard();
    let (mut receiver, mut sender): (Receiver, Sender) = simplex().unwrap();
    sender.send_bytes(b"one way").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"one way");
}

#[test]
fn ends_can_be_moved_to_other_threads_and_halves_used_by_two() {
    fn sendable<T: Send>() {}
    sendable::<Connection>();
    sendable::<Sender>();
    sendable::<Receiver>();
    let _guard = guard();
    let (mut a, mut b) = small_pipe();
    let (sender, receiver) = a.halves_mut();
    std::thread::scope(|scope| {
        scope.spawn(move || (0..500).for_each(|i| sender.send_bytes(&message(i, 50)).unwrap()));
        scope.spawn(move || (0..500).for_each(|i| assert_eq!(receiver.recv_bytes().unwrap(), message(i, 50))));
        for _ in 0..500 {
            let echo = b.recv_bytes().unwrap();
            b.send_bytes(&echo).unwrap();
        }
    });
}

#[test]
fn capacities_are_rounded_up_to_a_power_of_two() {
    let _guard = guard();
    for (asked, got) in [(1, 4096), (4095, 4096), (4096, 4096), (4097, 8192), (5000, 8192), (1 << 20, 1 << 20)] {
        let (receiver, sender) = Builder::new().capacity(asked).simplex().unwrap();
        assert_eq!((receiver.capacity(), sender.capacity()), (got, got), "{asked}");
        let (a, b) = Builder::new().capacity(asked).pipe().unwrap();
        for end in [a, b] {
            assert_eq!((end.sender().capacity(), end.receiver().capacity()), (got, got), "{asked}");
        }
    }
    let (receiver, sender) = simplex().unwrap();
    assert_eq!((receiver.capacity(), sender.capacity()), (DEFAULT_CAPACITY, DEFAULT_CAPACITY));
}

#[test]
fn the_largest_ring_is_made_and_more_or_none_is_refused() {
    let _guard = guard();
    let (mut receiver, mut sender) = Builder::new().capacity(1 << 30).simplex().unwrap();
    sender.send_bytes(b"far").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"far");
    for wish in [0, (1 << 30) + 1, usize::MAX] {
        for error in [
            Builder::new().capacity(wish).simplex().map(drop).unwrap_err(),
            Builder::new().capacity(wish).pipe().map(drop).unwrap_err(),
        ] {
            match &error {
                BuildError::Capacity { asked, min, max } => assert_eq!((*asked, *min, *max), (wish, 4096, 1 << 30)),
                e => panic!("{e}"),
            }
            assert!(error.to_string().contains(&wish.to_string()), "{error}");
        }
    }
}

#[test]
fn pipes_that_never_spin_or_spin_for_long_work_between_processes() {
    let _guard = guard();
    for spin in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(100), Duration::MAX] {
        let (mine, theirs) = Builder::new().capacity(SMALL).spin(spin).pipe().unwrap();
        let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
            while let Ok(request) = theirs.recv_bytes() {
                theirs.send_bytes(&request).unwrap();
            }
            0
        });
        for i in 0..200 {
            mine.send_bytes(&message(i, i * 20)).unwrap();
            assert_eq!(mine.recv_bytes().unwrap(), message(i, i * 20));
        }
        drop(mine);
        child.succeeds();
    }
}

#[test]
fn descriptors_are_close_on_exec_and_closed_with_the_ends() {
    let _guard = guard();
    let before = open_fds();
    let (a, b) = pipe().unwrap();
    let (receiver, sender) = simplex().unwrap();
    let after = open_fds();
    let new: Vec<i32> = after.into_iter().filter(|fd| !before.contains(fd)).collect();
    assert!(new.len() >= 4, "a pipe has descriptors: {new:?}");
    for fd in new {
        // SAFETY: a query about a descriptor that is open.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC, "descriptor {fd}");
    }
    drop((a, b));
    drop((receiver, sender));
    assert_eq!(open_fds(), before);
}

#[test]
fn another_program_inherits_nothing() {
    let _guard = guard();
    let ends = (pipe().unwrap(), simplex().unwrap());
    let listed = std::process::Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("/proc/"), "no list: {listed}");
    assert!(!listed.contains("ringpipe"), "{listed}");
    let (mut a, _) = ends.0;
    assert!(!a.poll(Some(Duration::ZERO)).unwrap());
}

#[test]
fn out_of_descriptors_a_pipe_is_refused_and_nothing_leaks() {
    let _guard = guard();
    let child = fork(|| {
        let before = open_fds();
        // SAFETY: `limit` is plain data, passed by valid pointers; dup'ed descriptors are our own to close.
        unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
            let tight = libc::rlimit { rlim_cur: 64, ..limit };
            for spare in 0..5 {
                libc::setrlimit(libc::RLIMIT_NOFILE, &tight);
                let mut filler = Vec::new();
                loop {
                    match libc::dup(2) {
                        -1 => break,
                        fd => filler.push(fd),
                    }
                }
                for _ in 0..spare {
                    libc::close(filler.pop().unwrap());
                }
                // A pipe of one direction takes three, of two directions five.
                let refused = |made: Result<(), BuildError>| match made {
                    Err(BuildError::Io(e)) => assert_eq!(e.raw_os_error(), Some(libc::EMFILE)),
                    other => panic!("with {spare} descriptors to spare: {other:?}"),
                };
                refused(Builder::new().pipe().map(drop));
                if spare < 3 {
                    refused(Builder::new().simplex().map(drop));
                }
                for fd in filler {
                    libc::close(fd);
                }
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
                assert_eq!(open_fds(), before);
            }
        }
        0
    });
    child.succeeds();
}

// --- sending -----------------------------------------------------------------------------------------------

#[test]
fn messages_keep_their_order_whatever_their_lengths() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let (mut sent, mut received) = (0, 0);
    let nth = |i: usize| message(i, LENGTHS[i % LENGTHS.len()]);
    while received < 2_000 {
        while sent < 2_000 && sender.try_send_bytes(&nth(sent)).is_ok() {
            sent += 1;
        }
        for _ in 0..=received % 3 {
            if received < sent {
                assert_eq!(receiver.try_recv_bytes().unwrap(), nth(received), "message {received}");
                received += 1;
            }
        }
    }
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
}

#[test]
fn vectored_sending_joins_its_parts() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    sender.send_vectored(&[]).unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"");
    sender.send_vectored(&[IoSlice::new(b""), IoSlice::new(b"")]).unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"");
    // Short, and long enough to be streamed with parts that end everywhere.
    for len in [300, 2_500] {
        let whole = message(1, len);
        for part in [1, 7, 64, 509, 512] {
            let parts: Vec<IoSlice<'_>> = whole.chunks(part).map(IoSlice::new).collect();
            sender.send_vectored(&parts).unwrap();
            assert_eq!(receiver.recv_bytes().unwrap(), whole, "{len} bytes in parts of {part}");
        }
    }
}

#[test]
fn a_hundred_messages_of_a_hundred_bytes_or_one_of_sixty_thousand_can_lie_unread() {
    let _guard = guard();
    let (mut a, mut b) = pipe().unwrap();
    let (mut receiver, mut sender) = simplex().unwrap();
    for i in 0..100 {
        a.send_bytes_timeout(&message(i, 100), SHORT).unwrap();
        b.send_bytes_timeout(&message(i, 100), SHORT).unwrap();
        sender.send_bytes_timeout(&message(i, 100), SHORT).unwrap();
    }
    for i in 0..100 {
        assert_eq!(a.recv_bytes().unwrap(), message(i, 100));
        assert_eq!(b.recv_bytes().unwrap(), message(i, 100));
        assert_eq!(receiver.recv_bytes().unwrap(), message(i, 100));
    }
    let long = message(7, 60_000);
    a.send_bytes_timeout(&long, SHORT).unwrap();
    b.try_send_bytes(&long).unwrap();
    sender.send_bytes(&long).unwrap();
    assert_eq!(a.recv_bytes().unwrap(), long);
    assert_eq!(b.recv_bytes().unwrap(), long);
    assert_eq!(receiver.recv_bytes().unwrap(), long);
}

#[test]
fn a_message_that_can_never_be_sent_at_once_is_too_long_for_a_try() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    for len in [SMALL, 1 << 20] {
        let message = vec![1; len];
        for result in [sender.try_send_bytes(&message), sender.try_send_vectored(&[IoSlice::new(&message)])] {
            match result {
                Err(SendError::TooLong { len: told, max }) => assert!(told == len && max < SMALL, "{told}, {max}"),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(sender.fill(), 0);
    // The limit it tells is one that can be met.
    let Err(SendError::TooLong { max, .. }) = sender.try_send_bytes(&[1; SMALL]) else { panic!("was sent") };
    sender.try_send_bytes(&message(1, max)).unwrap();
    assert!(matches!(sender.try_send_bytes(&message(2, max)), Err(SendError::Full)));
    assert_eq!(receiver.recv_bytes().unwrap(), message(1, max));
    sender.try_send_bytes(&message(2, max)).unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), message(2, max));
}

#[test]
fn fill_counts_headers_and_padding_and_is_seen_from_both_ends() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let mut expected = 0;
    for len in [0, 1, 8, 9, 100] {
        sender.send_bytes(&message(0, len)).unwrap();
        expected += 8 + len.next_multiple_of(8);
        assert_eq!((sender.fill(), receiver.fill()), (expected, expected), "{len}");
    }
    while receiver.try_recv_bytes().is_ok() {}
    assert_eq!((sender.fill(), receiver.fill()), (0, 0));
}

#[test]
fn a_message_that_was_received_counts_as_sent_though_the_receiver_closed_at_once() {
    const PIPES: usize = 100;
    let _guard = guard();
    for _ in 0..20 {
        let pipes =
            (0..PIPES).map(|_| Builder::new().capacity(SMALL).spin(Duration::from_millis(1)).simplex().unwrap());
        let (receivers, senders): (Vec<Receiver>, Vec<Sender>) = pipes.unzip();
        let (child, receivers) = fork_split(receivers, senders, |senders| {
            let failed = senders.into_iter().filter_map(|mut sender| sender.send_bytes(b"last words").err()).count();
            failed.min(100) as i32
        });
        for mut receiver in receivers {
            assert_eq!(receiver.recv_bytes().unwrap(), b"last words");
        }
        assert_eq!(child.wait().code(), Some(0), "of {PIPES} messages received, so many were said to be lost");
    }
}

// --- receiving with limits and buffers -----------------------------------------------------------------

#[test]
fn a_message_of_at_most_the_maximal_length_is_received() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    for len in LENGTHS {
        sender.send_bytes(&message(1, len)).unwrap();
        assert_eq!(receiver.recv_bytes_max(len).unwrap(), message(1, len));
        sender.send_bytes(&message(2, len)).unwrap();
        assert_eq!(receiver.recv_bytes_max(len + 1).unwrap(), message(2, len));
    }
}

type RecvMax = fn(&mut Receiver, usize) -> Result<Vec<u8>, RecvError>;

const MAX_FORMS: [RecvMax; 4] = [
    |r, max| r.recv_bytes_max(max),
    |r, max| r.try_recv_bytes_max(max),
    |r, max| r.recv_bytes_max_timeout(max, LONG),
    |r, max| r.recv_bytes_max_deadline(max, Instant::now() + LONG),
];

#[test]
fn a_longer_message_ends_receiving_and_breaks_the_senders_pipe() {
    let _guard = guard();
    for recv in MAX_FORMS {
        for len in [1, 100, 2_000] {
            let (mut receiver, mut sender) = small_simplex();
            sender.send_bytes(&message(0, len)).unwrap();
            sender.send_bytes(b"next").unwrap();
            match recv(&mut receiver, len - 1) {
                Err(RecvError::TooLong { len: told, max }) => assert_eq!((told, max), (len as u64, len - 1)),
                other => panic!("{other:?}"),
            }
            for _ in 0..2 {
                assert!(matches!(receiver.recv_bytes(), Err(RecvError::Ended)));
                assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Ended)));
                assert!(matches!(receiver.recv_bytes_timeout(LONG), Err(RecvError::Ended)));
                assert!(matches!(receiver.recv_guard(), Err(RecvError::Ended)));
                assert!(matches!(receiver.poll(None), Err(RecvError::Ended)));
                let into = receiver.recv_bytes_into(&mut [0; 8], 0);
                assert!(matches!(into, Err(RecvIntoError::Recv(RecvError::Ended))), "{into:?}");
                assert!(receiver.iter().next().is_none());
                assert!(matches!(sender.send_bytes(b"lost"), Err(SendError::Disconnected)));
                assert!(matches!(sender.try_send_bytes(b""), Err(SendError::Disconnected)));
            }
        }
    }
}

#[test]
fn after_a_longer_message_a_connection_goes_on_sending() {
    let _guard = guard();
    let (mine, theirs) = small_pipe();
    let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
        theirs.send_bytes(b"too long").unwrap();
        assert_eq!(theirs.recv_bytes().unwrap(), b"one");
        let error = loop {
            if let Err(e) = theirs.send_bytes(&[0; 1000]) {
                break e;
            }
        };
        assert!(matches!(error, SendError::Disconnected));
        assert_eq!(theirs.recv_bytes().unwrap(), b"two");
        // Then the other side closes: end of file, and no reset for what it has not read.
        assert!(matches!(theirs.recv_bytes(), Err(RecvError::Disconnected)));
        0
    });
    assert!(matches!(mine.recv_bytes_max(3), Err(RecvError::TooLong { len: 8, max: 3 })));
    mine.send_bytes(b"one").unwrap();
    std::thread::sleep(Duration::from_millis(8));
    mine.send_bytes(b"two").unwrap();
    assert!(matches!(mine.recv_bytes(), Err(RecvError::Ended)));
    drop(mine);
    child.succeeds();
}

#[test]
fn a_buffer_is_filled_from_the_offset_on_and_nowhere_else() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    for len in LENGTHS {
        for (before, behind) in [(0, 0), (0, 5), (3, 0), (8, 16)] {
            sender.send_bytes(&message(9, len)).unwrap();
            let mut buf = vec![0xaa; before + len + behind];
            assert_eq!(receiver.recv_bytes_into(&mut buf, before).unwrap(), len);
            assert!(buf[..before].iter().all(|&b| b == 0xaa), "{len} bytes at {before}");
            assert_eq!(buf[before..][..len], message(9, len));
            assert!(buf[before + len..].iter().all(|&b| b == 0xaa), "{len} bytes at {before}");
        }
    }
}

#[test]
fn a_message_too_long_for_the_buffer_comes_in_the_error_and_the_pipe_goes_on() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    for (len, size, offset) in [(1, 0, 0), (9, 8, 0), (9, 10, 2), (9, 10, 10), (1500, 1499, 0), (2000, 2500, 501)] {
        sender.send_bytes(&message(4, len)).unwrap();
        sender.send_bytes(b"next").unwrap();
        let mut buf = vec![0xaa; size];
        match receiver.recv_bytes_into(&mut buf, offset) {
            Err(RecvIntoError::TooShort(BufferTooShort { message: whole, room, .. })) => {
                assert_eq!(whole, message(4, len));
                assert_eq!(room, size - offset);
            }
            other => panic!("{other:?}"),
        }
        assert!(buf.iter().all(|&b| b == 0xaa), "the buffer was written to");
        assert_eq!(receiver.recv_bytes().unwrap(), b"next");
    }
}

#[test]
fn a_message_taken_back_by_its_sender_does_not_get_into_the_next() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    sender.send_bytes(&message(1, 2_500)).unwrap();
    sender.send_bytes(&message(2, 1_000)).unwrap();
    let result = sender.send_bytes_timeout(&message(3, 1_100), SHORT);
    assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
    assert_eq!(receiver.recv_bytes().unwrap(), message(1, 2_500));
    sender.send_bytes(&message(4, 1_200)).unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), message(2, 1_000));
    // The buffer is long enough for what was taken back, and too short for what was sent.
    let mut buf = vec![0xaa; 1_150];
    match receiver.recv_bytes_into(&mut buf, 0) {
        Err(RecvIntoError::TooShort(e)) => assert_eq!(e.message, message(4, 1_200)),
        other => panic!("{other:?}"),
    }
    assert_eq!(receiver.try_recv_bytes().unwrap_err().to_string(), RecvError::Empty.to_string());
}

#[test]
fn an_offset_outside_the_buffer_leaves_the_message_where_it_is() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let mut buf = [0; 4];
    for len in [3, 2_000] {
        sender.send_bytes(&message(5, len)).unwrap();
        for offset in [5, usize::MAX] {
            match receiver.recv_bytes_into(&mut buf, offset) {
                Err(RecvIntoError::BadOffset { offset: told, len: 4 }) => assert_eq!(told, offset),
                other => panic!("{other:?}"),
            }
            let timed = receiver.recv_bytes_into_timeout(&mut buf, offset, LONG);
            assert!(matches!(timed, Err(RecvIntoError::BadOffset { .. })), "{timed:?}");
        }
        assert_eq!(receiver.recv_bytes().unwrap(), message(5, len));
    }
    // An offset at the very end is one of no room, which an empty message fits in.
    sender.send_bytes(b"").unwrap();
    assert_eq!(receiver.recv_bytes_into(&mut buf, 4).unwrap(), 0);
    // And the argument counts before the end of file does.
    drop(sender);
    assert!(matches!(receiver.recv_bytes_into(&mut buf, 5), Err(RecvIntoError::BadOffset { .. })));
    assert!(matches!(receiver.recv_bytes_into(&mut buf, 4), Err(RecvIntoError::Recv(RecvError::Disconnected))));
}

// --- polling --------------------------------------------------------------------------------------------------

#[test]
fn polling_an_empty_pipe_takes_its_time_and_no_more() {
    let _guard = guard();
    let (mut receiver, _sender) = small_simplex();
    let start = Instant::now();
    assert!(!receiver.poll(Some(Duration::ZERO)).unwrap());
    assert!(start.elapsed() < Duration::from_secs(5));
    for millis in [1, 3, 30] {
        let timeout = Duration::from_millis(millis);
        assert!(!lasting(timeout, "poll", || receiver.poll(Some(timeout)).unwrap()));
    }
}

#[test]
fn polling_sees_messages_of_every_length_and_takes_none() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    for len in LENGTHS {
        sender.send_bytes(&message(6, len)).unwrap();
        for timeout in [Some(Duration::ZERO), Some(LONG), None, Some(Duration::MAX)] {
            assert!(lasting(Duration::ZERO, "poll", || receiver.poll(timeout).unwrap()), "{len} bytes, {timeout:?}");
        }
        assert_eq!(receiver.recv_bytes().unwrap(), message(6, len));
        assert!(!receiver.poll(Some(Duration::ZERO)).unwrap(), "after {len} bytes");
    }
}

#[test]
fn polling_sees_end_of_file_for_ever() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    sender.send_bytes(b"last").unwrap();
    drop(sender);
    assert!(receiver.poll(Some(Duration::ZERO)).unwrap());
    assert_eq!(receiver.recv_bytes().unwrap(), b"last");
    for timeout in [Some(Duration::ZERO), Some(LONG), None] {
        assert!(lasting(Duration::ZERO, "poll", || receiver.poll(timeout).unwrap()), "{timeout:?}");
        assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
    }
}

#[test]
fn polling_waits_for_another_process_and_for_its_end() {
    let _guard = guard();
    for timeout in [Some(LONG), None] {
        let (receiver, sender) = small_simplex();
        let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
            std::thread::sleep(Duration::from_millis(8));
            sender.send_bytes(b"").unwrap();
            std::thread::sleep(Duration::from_millis(8));
            0
        });
        assert!(lasting(Duration::ZERO, "poll", || receiver.poll(timeout).unwrap()));
        assert_eq!(receiver.try_recv_bytes().unwrap(), b"");
        assert!(lasting(Duration::ZERO, "poll", || receiver.poll(timeout).unwrap()));
        assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Disconnected)));
        child.succeeds();
    }
}

// --- the end, and copies ---------------------------------------------------------------------------------------

#[test]
fn closing_is_dropping() {
    let _guard = guard();
    let (mut receiver, sender) = small_simplex();
    sender.close();
    assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
    let (receiver, mut sender) = small_simplex();
    receiver.close();
    assert!(matches!(sender.send_bytes(b""), Err(SendError::Disconnected)));
    let (mut a, b) = small_pipe();
    b.close();
    assert!(matches!(a.recv_bytes(), Err(RecvError::Disconnected)));
    assert!(matches!(a.send_bytes(b""), Err(SendError::Disconnected)));
}

#[test]
fn halves_of_a_connection_close_on_their_own() {
    let _guard = guard();
    let (mut a, b) = small_pipe();
    let (sender, mut receiver) = b.split();
    drop(sender);
    assert!(matches!(a.recv_bytes(), Err(RecvError::Disconnected)));
    a.send_bytes(b"still").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"still");
    drop(receiver);
    assert!(matches!(a.send_bytes(b"no more"), Err(SendError::Disconnected)));
}

#[test]
fn a_connection_closed_with_unread_messages_gives_its_last_words_and_end_of_file() {
    let _guard = guard();
    for in_child in [false, true] {
        let (mut a, mut b) = small_pipe();
        a.send_bytes(b"never read").unwrap();
        b.send_bytes(b"last words").unwrap();
        if in_child {
            let (child, mine) = fork_split(a, b, |_| 0);
            child.succeeds();
            a = mine;
        } else {
            drop(b);
        }
        assert_eq!(a.recv_bytes().unwrap(), b"last words");
        for _ in 0..2 {
            assert!(matches!(a.recv_bytes(), Err(RecvError::Disconnected)));
            assert!(a.poll(None).unwrap());
        }
        // By now the end is known, however it came.
        assert!(matches!(a.send_bytes(b"anybody?"), Err(SendError::Disconnected)) || in_child);
    }
}

/// Runs a child that holds on to `ends` until `go` is set, then leaves them as told.
fn hold<E>(ends: E, go: &Shared, leave: Leave) -> (support::Child, E) {
    fork_copy(ends, |ends| {
        go.await_at_least(0, 1);
        match leave {
            Leave::Exit => 0,
            Leave::Drop => {
                drop(ends);
                go.await_at_least(0, 2);
                0
            }
            Leave::Killed => loop {
                std::thread::sleep(LONG);
            },
        }
    })
}

#[test]
fn end_of_file_comes_when_the_last_copy_of_the_sender_goes() {
    let _guard = guard();
    for leave in LEAVES {
        let (mut receiver, mut sender) = small_simplex();
        let go = Shared::new();
        sender.send_bytes(b"before").unwrap();
        let (child, sender) = hold(sender, &go, leave);
        drop(sender);
        assert_eq!(receiver.recv_bytes().unwrap(), b"before");
        // The child's copy keeps the pipe open, though this process has closed its own.
        assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)), "{leave:?}");
        assert!(matches!(receiver.recv_bytes_timeout(SHORT), Err(RecvError::TimedOut)), "{leave:?}");
        assert!(!receiver.poll(Some(SHORT)).unwrap(), "{leave:?}");
        go.set(0, 1);
        if let Leave::Killed = leave {
            child.kill();
        }
        let result = receiver.recv_bytes_timeout(LONG);
        assert!(matches!(result, Err(RecvError::Disconnected)), "{leave:?}: {result:?}");
        go.set(0, 2);
        child.wait();
    }
}

#[test]
fn a_broken_pipe_comes_when_the_last_copy_of_the_receiver_goes() {
    let _guard = guard();
    for leave in LEAVES {
        let (receiver, mut sender) = small_simplex();
        let go = Shared::new();
        let (child, receiver) = hold(receiver, &go, leave);
        drop(receiver);
        sender.send_bytes(b"the child could read this").unwrap();
        while sender.try_send_bytes(&[0; 500]).is_ok() {}
        assert!(matches!(sender.try_send_bytes(&[0; 500]), Err(SendError::Full)), "{leave:?}");
        assert!(matches!(sender.send_bytes_timeout(&[0; 500], SHORT), Err(SendError::TimedOut)), "{leave:?}");
        go.set(0, 1);
        if let Leave::Killed = leave {
            child.kill();
        }
        let result = sender.send_bytes_timeout(&[0; 500], LONG);
        assert!(matches!(result, Err(SendError::Disconnected)), "{leave:?}: {result:?}");
        for _ in 0..2 {
            assert!(matches!(sender.try_send_bytes(b""), Err(SendError::Disconnected)), "{leave:?}");
        }
        go.set(0, 2);
        child.wait();
    }
}

#[test]
fn the_end_of_a_child_does_not_close_the_parents_ends() {
    let _guard = guard();
    for leave in LEAVES {
        let ends = small_pipe();
        let go = Shared::new();
        let (child, (mut a, mut b)) = hold(ends, &go, leave);
        go.set(0, 2);
        if let Leave::Killed = leave {
            child.kill();
        }
        child.wait();
        for i in 0..300 {
            a.send_bytes(&message(i, i)).unwrap();
            assert_eq!(b.recv_bytes().unwrap(), message(i, i), "{leave:?}");
            b.send_bytes(&message(i, 50)).unwrap();
            assert_eq!(a.recv_bytes().unwrap(), message(i, 50), "{leave:?}");
        }
        assert!(matches!(a.try_recv_bytes(), Err(RecvError::Empty)), "{leave:?}");
        assert!(matches!(a.recv_bytes_timeout(SHORT), Err(RecvError::TimedOut)), "{leave:?}");
    }
}

#[test]
fn copies_of_an_end_used_in_turn_are_one_end() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    for i in 0..6 {
        sender.send_bytes(&message(i, 40)).unwrap();
    }
    assert_eq!(receiver.recv_bytes().unwrap(), message(0, 40));
    let (child, mut ends) = fork_copy((receiver, sender), |(mut receiver, mut sender)| {
        assert_eq!(receiver.recv_bytes().unwrap(), message(1, 40));
        assert_eq!(receiver.recv_bytes().unwrap(), message(2, 40));
        sender.send_bytes(&message(6, 2_000)).unwrap();
        0
    });
    child.succeeds();
    ends.1.send_bytes(&message(7, 40)).unwrap();
    for i in 3..6 {
        assert_eq!(ends.0.recv_bytes().unwrap(), message(i, 40));
    }
    assert_eq!(ends.0.recv_bytes().unwrap(), message(6, 2_000));
    assert_eq!(ends.0.recv_bytes().unwrap(), message(7, 40));
    drop(ends.1);
    assert!(matches!(ends.0.recv_bytes(), Err(RecvError::Disconnected)));
}

// --- long messages ------------------------------------------------------------------------------------------------

/// Longer than the ring several times over, and a little odd.
const HUGE: usize = 50 * SMALL + 13;

#[test]
fn messages_longer_than_the_ring_go_both_ways() {
    let _guard = guard();
    let (mine, theirs) = small_pipe();
    let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
        let mut buf = vec![0; 300 * SMALL];
        while let Ok(len) = theirs.recv_bytes_into(&mut buf, 0) {
            theirs.send_vectored(&parts(&buf[..len])).unwrap();
        }
        0
    });
    let mut buf = vec![0; HUGE + 3];
    for (i, len) in [SMALL - 100, SMALL - 8, SMALL, SMALL + 1, 4 * SMALL, HUGE, 300 * SMALL].into_iter().enumerate() {
        let whole = message(i, len);
        mine.send_bytes(&whole).unwrap();
        match i % 3 {
            0 => assert_eq!(mine.recv_bytes().unwrap(), whole, "{len} bytes"),
            1 => assert_eq!(mine.recv_guard().unwrap().to_vec(), whole, "{len} bytes"),
            _ => {
                assert_eq!(mine.recv_bytes_into(&mut buf, 3).unwrap(), len);
                assert_eq!(buf[3..][..len], whole, "{len} bytes");
            }
        }
        mine.send_bytes(b"between").unwrap();
        assert_eq!(mine.recv_bytes().unwrap(), b"between");
    }
    drop(mine);
    child.succeeds();
}

#[test]
fn a_mixture_of_all_lengths_streams_between_two_processes() {
    let _guard = guard();
    let script = Script::mixed(11, SMALL);
    let (receiver, sender) = small_simplex();
    let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
        (0..3_000).for_each(|i| sender.send_bytes(script.message(i)).unwrap());
        0
    });
    for i in 0..3_000 {
        assert!(receiver.recv_bytes().unwrap() == script.message(i), "message {i} is another");
    }
    assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
    child.succeeds();
}

#[test]
fn a_long_send_that_times_out_is_taken_back_whole() {
    let _guard = guard();
    for first in [&b""[..], &[1; 700]] {
        let (mut a, mut b) = small_pipe();
        a.send_bytes(first).unwrap();
        for _ in 0..2 {
            let result = lasting(SHORT, "a long send", || a.send_bytes_timeout(&[2; HUGE], SHORT));
            assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
        }
        assert_eq!(b.recv_bytes().unwrap(), first);
        assert!(matches!(b.try_recv_bytes(), Err(RecvError::Empty)));
        let result = a.send_vectored_timeout(&parts(&[3; HUGE]), SHORT);
        assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
        assert!(matches!(b.recv_bytes_timeout(SHORT), Err(RecvError::TimedOut)));
        a.send_bytes(b"next").unwrap();
        assert_eq!(b.recv_bytes().unwrap(), b"next");
    }
}

#[test]
fn a_long_message_sent_a_part_at_a_time_gets_on_however_short_the_times_are() {
    let _guard = guard();
    let (receiver, sender) = small_simplex();
    let (child, mut sender) = fork_split(sender, receiver, |mut receiver| {
        assert_eq!(receiver.recv_bytes().unwrap(), message(1, HUGE * 100));
        assert_eq!(receiver.recv_bytes().unwrap(), b"short");
        0
    });
    for (message, sent) in [(message(1, HUGE * 100), "long"), (b"short".to_vec(), "short")] {
        let mut progress = Progress::default();
        loop {
            match sender.send_bytes_part(&message, &mut progress, Duration::from_micros(50)) {
                Ok(()) => break,
                Err(SendError::TimedOut) => {}
                Err(e) => panic!("the {sent} message: {e}"),
            }
        }
    }
    child.succeeds();
}

#[test]
fn a_part_of_a_message_that_is_taken_back_never_arrives() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let mut progress = Progress::default();
    sender.take_back(&mut progress);
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
    let result = sender.send_bytes_part(&[1; HUGE], &mut progress, SHORT);
    assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
    assert!(receiver.has_something());
    assert_eq!(receiver.long_message_len(), Some(HUGE as u64));
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
    assert_eq!(receiver.long_message_len(), Some(HUGE as u64));
    sender.take_back(&mut progress);
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
    assert!(!receiver.has_something());
    sender.send_bytes(b"next").unwrap();
    assert_eq!(receiver.long_message_len(), None);
    assert_eq!(receiver.recv_bytes().unwrap(), b"next");
    drop(receiver);
    let result = sender.send_bytes_part(&[1; HUGE], &mut Progress::default(), SHORT);
    assert!(matches!(result, Err(SendError::Disconnected)), "{result:?}");
}

/// Receives a long message of `lens` bytes in all, a part at a time, into as many places.
fn recv_scattered(receiver: &mut ringpipe::Receiver, lens: &[usize]) -> Result<Option<Vec<Vec<u8>>>, RecvError> {
    let mut places: Vec<_> = lens.iter().map(|&len| Box::new_uninit_slice(len)).collect();
    let mut progress = Progress::default();
    let whole = loop {
        let mut lent: Vec<&mut [_]> = places.iter_mut().map(|place| &mut place[..]).collect();
        match receiver.recv_vectored_part(&mut lent, &mut progress, Duration::from_micros(50)) {
            Err(RecvError::TimedOut) => {}
            received => break received?,
        }
    };
    // SAFETY: all of a whole message has been written.
    Ok(whole.then(|| places.into_iter().map(|place| unsafe { place.assume_init() }.into_vec()).collect()))
}

#[test]
fn a_long_message_is_gathered_and_scattered_a_part_at_a_time() {
    let _guard = guard();
    let (receiver, sender) = small_simplex();
    let all = message(1, HUGE * 20);
    let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
        let all = message(1, HUGE * 20);
        let (start, end) = all.split_at(HUGE + 3);
        let parts = [&start[..1], &[], &start[1..], end].map(IoSlice::new);
        let mut progress = Progress::default();
        while let Err(e) = sender.send_vectored_part(&parts, &mut progress, Duration::from_micros(50)) {
            assert!(matches!(e, SendError::TimedOut), "{e}");
        }
        sender.send_bytes(&message(2, HUGE)).unwrap();
        sender.send_bytes(b"short").unwrap();
        0
    });
    assert!(receiver.poll(Some(LONG)).unwrap());
    assert_eq!(receiver.long_message_len(), Some(all.len() as u64));
    let mut start = [0; 16];
    assert_eq!(receiver.peek(&mut start), 16);
    assert_eq!(start, all[..16]);
    let lens = [0, 5, 10 * HUGE, 0, all.len() - 10 * HUGE - 5];
    let parts = recv_scattered(&mut receiver, &lens).unwrap().unwrap();
    assert!(parts.iter().map(Vec::len).eq(lens));
    assert!(parts.concat() == all);

    // Of another length than the places have, and short.
    assert!(receiver.poll(Some(LONG)).unwrap());
    assert_eq!(recv_scattered(&mut receiver, &[HUGE - 1]).unwrap(), None);
    assert_eq!(receiver.recv_bytes().unwrap(), message(2, HUGE));
    assert!(receiver.poll(Some(LONG)).unwrap());
    assert_eq!(recv_scattered(&mut receiver, &[5]).unwrap(), None);
    assert_eq!(receiver.peek(&mut start), 5);
    assert_eq!(start[..5], *b"short");
    assert_eq!(receiver.recv_bytes().unwrap(), b"short");
    assert_eq!(receiver.peek(&mut start), 0);
    child.succeeds();
}

#[test]
fn a_part_of_a_message_that_is_put_back_is_gone_on_with() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let (all, mut sent) = (message(1, HUGE), Progress::default());
    for scattered in [false, true] {
        assert!(matches!(sender.send_bytes_part(&all, &mut sent, SHORT), Err(SendError::TimedOut)));
        let mut place = Box::new_uninit_slice(HUGE);
        let mut progress = Progress::default();
        let received = receiver.recv_vectored_part(&mut [&mut place], &mut progress, SHORT);
        assert!(matches!(received, Err(RecvError::TimedOut)), "{received:?}");
        let arrived = progress.bytes();
        assert!(arrived > 0 && arrived == sent.bytes());
        // SAFETY: so many bytes have been written.
        receiver.put_back(HUGE, place[..arrived].iter().map(|byte| unsafe { byte.assume_init() }).collect());
        assert_eq!(receiver.long_message_len(), Some(HUGE as u64));
        let mut start = [0; 16];
        assert_eq!(receiver.peek(&mut start), 16);
        assert_eq!(start, all[..16]);
        thread::scope(|scope| {
            scope.spawn(|| while sender.send_bytes_part(&all, &mut sent, SHORT).is_err() {});
            if scattered {
                let parts = recv_scattered(&mut receiver, &[1, HUGE - 1]).unwrap().unwrap();
                assert!(parts.concat() == all);
            } else {
                assert!(receiver.recv_bytes().unwrap() == all);
            }
        });
    }
}

#[test]
fn a_part_of_a_message_that_has_arrived_in_its_places_can_be_taken_back() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let mut sent = Progress::default();
    assert!(matches!(sender.send_bytes_part(&[1; HUGE], &mut sent, SHORT), Err(SendError::TimedOut)));
    let mut place = Box::new_uninit_slice(HUGE);
    let mut progress = Progress::default();
    let received = receiver.recv_vectored_part(&mut [&mut place], &mut progress, SHORT);
    assert!(matches!(received, Err(RecvError::TimedOut)), "{received:?}");
    sender.take_back(&mut sent);
    sender.send_bytes(b"next").unwrap();
    assert!(!receiver.recv_vectored_part(&mut [&mut place], &mut progress, SHORT).unwrap());
    assert_eq!(progress.bytes(), 0);
    assert_eq!(receiver.recv_bytes().unwrap(), b"next");

    let (mut receiver, mut sender) = small_simplex();
    assert!(matches!(sender.send_bytes_part(&[1; HUGE], &mut sent, SHORT), Err(SendError::TimedOut)));
    drop(sender);
    let received = recv_scattered(&mut receiver, &[HUGE]);
    assert!(matches!(received, Err(RecvError::Cut)), "{received:?}");
    assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
}

#[test]
fn a_long_message_taken_back_while_it_is_being_received_gives_way_to_the_next() {
    let _guard = guard();
    // The receiver has to look before the sender gives up, for which a busy machine may need longer.
    let inside = [100, 1_000, 10_000].into_iter().any(|millis| {
        let given_up = Shared::new();
        let (receiver, sender) = small_simplex();
        let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
            let result = sender.send_bytes_timeout(&[2; 100 * HUGE], Duration::from_millis(millis));
            assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
            given_up.set(0, 1);
            sender.send_bytes(b"next").unwrap();
            0
        });
        assert!(receiver.poll(Some(LONG)).unwrap());
        assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
        let inside = format!("{receiver:?}").contains("inside a message");
        given_up.await_at_least(0, 1);
        assert_eq!(receiver.recv_bytes().unwrap(), b"next");
        child.succeeds();
        inside
    });
    assert!(inside, "the receiver was never inside the message that was taken back");
}

/// Runs `body` with a receiver that has got a part of a message of [`HUGE`] bytes, from a stopped sender that `body` lets go on. The
/// sender ends with 0 if it could send all, and with 1 if it got a broken pipe.
fn inside_a_message(first: Recvs, body: impl FnOnce(&mut Connection, &support::Child)) -> support::Child {
    let (mine, theirs) = small_pipe();
    let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
        if let Err(SendError::Disconnected) = theirs.send_bytes(&message(8, HUGE)) {
            return 1;
        }
        theirs.send_bytes(b"next").unwrap();
        assert!(matches!(theirs.recv_bytes(), Err(RecvError::Disconnected)));
        0
    });
    assert!(mine.poll(Some(LONG)).unwrap());
    child.stop();
    assert!(matches!(first(&mut mine, SHORT), Err(RecvError::TimedOut)));
    // It has taken what was there, and nothing comes from a stopped sender.
    assert!(matches!(first(&mut mine, SHORT), Err(RecvError::TimedOut)));
    assert!(!mine.poll(Some(Duration::ZERO)).unwrap());
    assert_eq!(mine.receiver().fill(), 0);
    body(&mut mine, &child);
    child
}

#[test]
fn a_long_receive_that_times_out_keeps_what_arrived_and_goes_on() {
    let _guard = guard();
    for &(first_name, waits, first) in RECV_FORMS {
        if waits != InTime {
            continue;
        }
        for &(name, waits, recv) in RECV_FORMS {
            if waits == Never {
                continue;
            }
            let child = inside_a_message(first, |mine, child| {
                child.resume();
                let got = match name.contains("into") {
                    // The buffer of the table is too short for this one.
                    true => {
                        let mut buf = vec![0; HUGE];
                        assert_eq!(mine.recv_bytes_into(&mut buf, 0).unwrap(), HUGE);
                        buf
                    }
                    false => recv(mine, LONG).unwrap(),
                };
                assert!(got == message(8, HUGE), "{first_name}, then {name}: another message");
                assert_eq!(mine.recv_bytes().unwrap(), b"next", "{first_name}, then {name}");
            });
            child.succeeds();
        }
    }
}

#[test]
fn a_long_receive_goes_on_into_a_buffer_that_is_too_short() {
    let _guard = guard();
    let child = inside_a_message(RECV_FORMS[2].2, |mine, child| {
        assert!(matches!(mine.recv_bytes_into(&mut [0; 4], 5), Err(RecvIntoError::BadOffset { .. })));
        child.resume();
        let mut buf = vec![0xaa; HUGE - 1];
        match mine.recv_bytes_into(&mut buf, 0) {
            Err(RecvIntoError::TooShort(e)) => assert!(e.message == message(8, HUGE), "another message"),
            other => panic!("{other:?}"),
        }
        assert!(buf.iter().all(|&b| b == 0xaa), "the buffer was written to");
        assert_eq!(mine.recv_bytes().unwrap(), b"next");
    });
    child.succeeds();
}

#[test]
fn a_long_receive_goes_on_under_a_limit_that_is_too_low() {
    let _guard = guard();
    inside_a_message(RECV_FORMS[2].2, |mine, child| {
        let result = mine.recv_bytes_max_timeout(HUGE - 1, LONG);
        assert!(matches!(result, Err(RecvError::TooLong { len, max }) if (len, max) == (HUGE as u64, HUGE - 1)));
        assert!(matches!(mine.recv_bytes(), Err(RecvError::Ended)));
        child.resume();
        assert_eq!(child.wait().code(), Some(1), "the sender gets a broken pipe");
    });
}

#[test]
fn a_sender_that_dies_inside_a_long_message_cuts_it() {
    let _guard = guard();
    for &(name, waits, recv) in RECV_FORMS {
        if name.contains("into") || waits == Never {
            continue;
        }
        let (mut mine, theirs) = small_pipe();
        let (child, other) = fork_copy(theirs, |mut theirs| i32::from(theirs.send_bytes(&[1; HUGE]).is_ok()));
        assert!(mine.poll(Some(LONG)).unwrap());
        child.stop();
        child.kill();
        child.wait();
        drop(other);
        let result = recv(&mut mine, LONG);
        assert!(matches!(result, Err(RecvError::Cut)), "{name}: {result:?}");
        for _ in 0..2 {
            assert!(matches!(recv(&mut mine, LONG), Err(RecvError::Disconnected)), "{name}");
        }
    }
}

// --- values ---------------------------------------------------------------------------------------------------------

#[cfg(feature = "serde")]
mod values {
    use super::*;
    use serde::{Deserialize, Serialize};
    use std::collections::BTreeMap;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Job {
        Square(i64),
        Words { text: Vec<String>, counts: BTreeMap<String, u32> },
        Stop,
    }

    fn jobs() -> Vec<Job> {
        let text: Vec<String> = (0..300).map(|i| format!("word number {i}")).collect();
        let counts = text.iter().map(|word| (word.clone(), word.len() as u32)).collect();
        vec![Job::Square(-12), Job::Words { text, counts }, Job::Stop]
    }

    #[test]
    fn values_of_any_serializable_type_go_between_processes() {
        let _guard = guard();
        let (mine, theirs) = small_pipe();
        let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
            while let Ok(job) = theirs.recv::<Job>() {
                theirs.send(&(job, "done")).unwrap();
            }
            0
        });
        for job in jobs() {
            mine.send(&job).unwrap();
            assert_eq!(mine.recv::<(Job, String)>().unwrap(), (job, "done".to_owned()));
        }
        drop(mine);
        child.succeeds();
    }

    #[test]
    fn values_have_every_form() {
        let _guard = guard();
        let (mut a, mut b) = small_pipe();
        a.send(&1_u64).unwrap();
        a.try_send(&2_u64).unwrap();
        a.send_timeout(&3_u64, LONG).unwrap();
        a.send_deadline(&4_u64, Instant::now() + LONG).unwrap();
        assert_eq!(b.recv::<u64>().unwrap(), 1);
        assert_eq!(b.try_recv::<u64>().unwrap(), 2);
        assert_eq!(b.recv_timeout::<u64>(LONG).unwrap(), 3);
        assert_eq!(b.recv_deadline::<u64>(Instant::now() + LONG).unwrap(), 4);
        assert!(matches!(b.try_recv::<u64>(), Err(RecvError::Empty)));
        let late = lasting(SHORT, "recv_timeout", || b.recv_timeout::<u64>(SHORT));
        assert!(matches!(late, Err(RecvError::TimedOut)));
        let late = lasting(SHORT, "recv_deadline", || b.recv_deadline::<u64>(Instant::now() + SHORT));
        assert!(matches!(late, Err(RecvError::TimedOut)));
        fill_up(&mut a);
        let value = [7_u8; 32];
        while a.try_send(&value).is_ok() {}
        assert!(matches!(a.try_send(&value), Err(SendError::Full)));
        let late = lasting(SHORT, "send_timeout", || a.send_timeout(&value, SHORT));
        assert!(matches!(late, Err(SendError::TimedOut)));
        let late = lasting(SHORT, "send_deadline", || a.send_deadline(&value, Instant::now() + SHORT));
        assert!(matches!(late, Err(SendError::TimedOut)));
        drop(a);
        while b.recv_bytes().is_ok() {}
        assert!(matches!(b.recv::<u64>(), Err(RecvError::Disconnected)));
        assert!(matches!(b.send(&1_u64), Err(SendError::Disconnected)));
    }

    #[test]
    fn a_message_that_cannot_be_decoded_is_consumed_and_no_other() {
        let _guard = guard();
        let (mut receiver, mut sender) = small_simplex();
        // Ends too early; no such variant; more than the value; of more than the ring's quarter; an empty message.
        for wrong in [&[5, b'a'][..], &[9, 1, 2], &[2, 0], &[2; 2_000], b""] {
            sender.send_bytes(wrong).unwrap();
            sender.send(&Job::Square(1)).unwrap();
            let result = receiver.recv::<Job>();
            assert!(matches!(result, Err(RecvError::Decode(_))), "{wrong:?}: {result:?}");
            assert_eq!(receiver.recv::<Job>().unwrap(), Job::Square(1));
        }
        sender.send_bytes(b"").unwrap();
        receiver.recv::<()>().unwrap();
    }

    #[test]
    fn a_value_that_cannot_be_encoded_is_not_sent_at_all() {
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("no"))
            }
        }
        let _guard = guard();
        let (mut receiver, mut sender) = small_simplex();
        let result = sender.send(&("starts well", Refuses));
        assert!(matches!(result, Err(SendError::Encode(_))), "{result:?}");
        assert_eq!(sender.fill(), 0);
        sender.send(&5_u8).unwrap();
        assert_eq!(receiver.recv::<u8>().unwrap(), 5);
    }
}

// --- in place ---------------------------------------------------------------------------------------------------------

#[test]
fn only_a_commit_sends_what_was_written_to_a_reservation() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let mut slot = sender.reserve(10).unwrap();
    assert_eq!((slot.len(), slot.written()), (10, 0));
    slot.write(b"abc");
    slot.write(b"");
    slot.write(b"def");
    assert_eq!((slot.len(), slot.written()), (10, 6));
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)), "seen before the commit");
    slot.commit().unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"abcdef");

    let mut slot = sender.reserve(500).unwrap();
    slot.write(&[7; 500]);
    drop(slot);
    assert_eq!(sender.fill(), 0);
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)), "sent without a commit");
    sender.send_bytes(b"next").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"next");
    sender.reserve(0).unwrap().commit().unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"");
}

#[test]
fn a_reservation_takes_a_quarter_of_the_ring_and_no_more() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let max = sender.max_reserve();
    assert_eq!(max, SMALL / 4 - 8);
    // Wherever the ring stands.
    for i in 0..20 {
        let mut slot = sender.reserve(max).unwrap();
        slot.write(&message(i, max));
        slot.commit().unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), message(i, max));
    }
    for len in [max + 1, SMALL, usize::MAX] {
        for result in [sender.reserve(len).map(drop), sender.try_reserve(len).map(drop)] {
            assert!(
                matches!(result, Err(SendError::TooLong { len: told, max: limit }) if (told, limit) == (len, max)),
                "{len}: {result:?}"
            );
        }
    }
}

#[test]
fn writing_more_than_was_reserved_panics_and_sends_nothing() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let wrote = catch_unwind(AssertUnwindSafe(|| {
        let mut slot = sender.reserve(4).unwrap();
        slot.write(b"abc");
        slot.write(b"de");
        slot.commit().unwrap();
    }));
    assert!(wrote.is_err());
    let claimed = catch_unwind(AssertUnwindSafe(|| {
        let mut slot = sender.reserve(4).unwrap();
        slot.assume_written(5);
        slot.commit().unwrap();
    }));
    assert!(claimed.is_err());
    assert_eq!(sender.fill(), 0);
    sender.send_bytes(b"fine").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"fine");
}

#[test]
fn a_reservation_can_be_written_as_memory() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let mut slot = sender.reserve(8).unwrap();
    // SAFETY: the only peer is in this test, and it is not writing.
    let memory = unsafe { slot.as_uninit() };
    assert_eq!(memory.len(), 8);
    memory.iter_mut().zip(b"in place").for_each(|(to, from)| _ = to.write(*from));
    slot.assume_written(7);
    assert_eq!(slot.written(), 7);
    slot.commit().unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"in plac");
}

#[test]
fn a_read_guard_consumes_its_message_when_it_is_dropped() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    for len in LENGTHS {
        sender.send_bytes(&message(3, len)).unwrap();
        sender.send_bytes(b"next").unwrap();
        let guard = receiver.recv_guard().unwrap();
        assert_eq!((guard.len(), guard.is_empty()), (len, len == 0));
        assert_eq!(guard.to_vec(), message(3, len));
        let mut middle = vec![0; len / 2];
        guard.copy_to(len / 4, &mut middle);
        assert_eq!(middle, message(3, len)[len / 4..][..len / 2]);
        // SAFETY: the only peer is in this test, and it is not writing.
        assert_eq!(unsafe { guard.as_slice() }, message(3, len));
        if len < SMALL / 4 - 8 {
            assert!(sender.fill() > len + 8, "the message still takes its room");
        }
        drop(guard);
        assert_eq!(sender.fill(), 16);
        assert_eq!(receiver.recv_bytes().unwrap(), b"next");
    }
}

#[test]
fn copying_more_than_the_message_has_out_of_a_read_guard_panics() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    for len in [10, 2_000] {
        sender.send_bytes(&message(3, len)).unwrap();
        let guard = receiver.recv_guard().unwrap();
        guard.copy_to(len, &mut []);
        for (offset, bytes) in [(0, len + 1), (len, 1), (len + 1, 0), (usize::MAX, 2)] {
            let copied = catch_unwind(AssertUnwindSafe(|| guard.copy_to(offset, &mut vec![0; bytes])));
            assert!(copied.is_err(), "{bytes} bytes from {offset} on of {len}");
        }
    }
}

#[test]
fn an_iterator_gives_the_messages_until_end_of_file() {
    let _guard = guard();
    let (receiver, sender) = small_simplex();
    let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
        (0..100).for_each(|i| sender.send_bytes(&message(i, i * 30)).unwrap());
        0
    });
    let mut count = 0;
    for received in receiver.iter() {
        assert_eq!(received.unwrap(), message(count, count * 30));
        count += 1;
    }
    assert_eq!(count, 100);
    assert!(receiver.iter().next().is_none());
    child.succeeds();
}

#[test]
fn a_trying_iterator_gives_the_messages_that_are_there() {
    let _guard = guard();
    let (mut a, mut b) = small_pipe();
    assert_eq!(b.try_iter().count(), 0);
    for round in 0..3 {
        (0..round).for_each(|i| a.send_bytes(&message(i, 10)).unwrap());
        let received: Vec<Vec<u8>> = b.try_iter().map(|received| received.unwrap()).collect();
        assert_eq!(received, (0..round).map(|i| message(i, 10)).collect::<Vec<_>>());
    }
    a.send_bytes(b"last").unwrap();
    drop(a);
    assert_eq!(b.iter().map(|received| received.unwrap()).collect::<Vec<_>>(), [b"last"]);
}

// --- what is shown ------------------------------------------------------------------------------------------------------

#[test]
fn debug_output_shows_capacity_fill_and_state() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    sender.send_bytes(b"0123456789").unwrap();
    assert_eq!(format!("{sender:?}"), r#"Sender { capacity: 4096, fill: 24, state: "open" }"#);
    assert_eq!(format!("{receiver:?}"), r#"Receiver { capacity: 4096, fill: 24, state: "open" }"#);
    let guard = receiver.recv_guard().unwrap();
    assert_eq!(format!("{guard:?}"), "ReadGuard { len: 10 }");
    drop(guard);
    let mut slot = sender.reserve(9).unwrap();
    slot.write(b"1");
    assert_eq!(format!("{slot:?}"), "WriteGuard { len: 9, written: 1 }");
    drop(slot);
    sender.send_bytes(b"too long").unwrap();
    receiver.recv_bytes_max(0).unwrap_err();
    assert!(format!("{receiver:?}").contains(r#"state: "ended""#), "{receiver:?}");
    assert!(format!("{sender:?}").contains(r#"state: "peer gone""#), "{sender:?}");

    let (a, b) = small_pipe();
    let shown = format!("{a:?}");
    assert!(shown.starts_with("Connection { sender: Sender {") && shown.contains("receiver: Receiver {"), "{shown}");
    drop(b);
    assert_eq!(format!("{a:?}").matches("peer gone").count(), 2, "{a:?}");
}

#[test]
fn debug_output_shows_a_peer_that_is_asleep() {
    let _guard = guard();
    let (receiver, sender) = Builder::new().capacity(SMALL).spin(Duration::ZERO).simplex().unwrap();
    let (child, mut sender) = fork_split(sender, receiver, |mut receiver| receiver.recv_bytes().is_err().into());
    let start = Instant::now();
    while !format!("{sender:?}").contains("peer asleep") {
        assert!(start.elapsed() < LONG, "{sender:?}");
        std::thread::sleep(Duration::from_micros(100));
    }
    sender.send_bytes(b"wake up").unwrap();
    child.succeeds();
}

#[test]
fn errors_become_io_errors_of_the_kinds_that_pipes_have() {
    use io::ErrorKind::{BrokenPipe, InvalidData, InvalidInput, NotFound, TimedOut, UnexpectedEof, WouldBlock};
    let os = || io::Error::from_raw_os_error(libc::EMFILE);
    let cases: Vec<(io::Error, io::ErrorKind)> = vec![
        (SendError::Disconnected.into(), BrokenPipe),
        (SendError::Full.into(), WouldBlock),
        (SendError::TimedOut.into(), TimedOut),
        (SendError::TooLong { len: 2, max: 1 }.into(), InvalidInput),
        (SendError::Io(os()).into(), os().kind()),
        (RecvError::Disconnected.into(), UnexpectedEof),
        (RecvError::Cut.into(), UnexpectedEof),
        (RecvError::Empty.into(), WouldBlock),
        (RecvError::TimedOut.into(), TimedOut),
        (RecvError::TooLong { len: 2, max: 1 }.into(), InvalidData),
        (RecvError::Corrupt.into(), InvalidData),
        (RecvError::Ended.into(), InvalidInput),
        (RecvError::IsEnd.into(), InvalidInput),
        (RecvError::IsBytes.into(), InvalidInput),
        (RecvError::Attach(AttachError::NotSealed).into(), InvalidData),
        (RecvIntoError::Recv(RecvError::Empty).into(), WouldBlock),
        (RecvIntoError::BadOffset { offset: 2, len: 1 }.into(), InvalidInput),
        (RecvIntoError::TooShort(BufferTooShort { message: vec![1], room: 0 }).into(), InvalidInput),
        (BuildError::Capacity { asked: 0, min: 1, max: 2 }.into(), InvalidInput),
        (BuildError::Io(os()).into(), os().kind()),
        (AttachError::NoVariable { name: "X".into() }.into(), NotFound),
        (AttachError::NotSealed.into(), InvalidData),
        (AttachError::Io(os()).into(), os().kind()),
    ];
    for (error, kind) in cases {
        assert_eq!(error.kind(), kind, "{error}");
    }
    // The error itself stays within, with its message.
    let error = io::Error::from(SendError::Disconnected);
    assert!(error.get_ref().is_some_and(|inner| inner.is::<SendError>()));
    assert!(error.to_string().starts_with("broken pipe"), "{error}");
    assert_eq!(io::Error::from(BuildError::Io(os())).raw_os_error(), Some(libc::EMFILE));
}

// --- the descriptor --------------------------------------------------------------------------------------------------------

#[test]
fn the_descriptor_is_readable_exactly_while_something_can_be_received() {
    let _guard = guard();
    for &(name, _, recv) in RECV_FORMS {
        let (mut a, mut b) = small_pipe();
        assert!(!readable(&b), "{name}: fresh");
        for (i, len) in LENGTHS.into_iter().enumerate() {
            for count in [1, 2] {
                for _ in 0..count {
                    a.send_bytes(&message(i, len / count)).unwrap();
                }
                for _ in 0..count {
                    assert!(readable(&b) && readable(&b), "{name}: {len} bytes to receive");
                    assert_eq!(recv(&mut b, LONG).unwrap(), message(i, len / count), "{name}");
                }
                assert!(!readable(&b), "{name}: nothing left after {count} times {} bytes", len / count);
            }
        }
        drop(a);
        for _ in 0..3 {
            assert!(readable(&b), "{name}: end of file");
            assert!(matches!(recv(&mut b, LONG), Err(RecvError::Disconnected)));
        }
    }
}

#[test]
fn the_descriptor_is_right_when_it_is_first_asked_for_after_traffic() {
    let _guard = guard();
    for left in [0, 1, 3] {
        for len in [0, 100, 1_200] {
            let (mut receiver, mut sender) = small_simplex();
            for i in 0..200 {
                sender.send_bytes(&message(i, 300)).unwrap();
                receiver.recv_bytes().unwrap();
            }
            // Waits, which ring, in vain and not.
            assert!(!receiver.poll(Some(Duration::from_millis(4))).unwrap());
            sender.send_bytes(b"rung for").unwrap();
            receiver.recv_bytes().unwrap();
            for i in 0..left {
                sender.send_bytes(&message(i, len)).unwrap();
            }
            assert_eq!(readable(&receiver), left > 0, "{left} messages of {len} bytes left");
            for i in 0..left {
                assert!(readable(&receiver), "message {i} of {left}");
                receiver.recv_bytes().unwrap();
            }
            assert!(!readable(&receiver), "all of {left} taken");
            sender.send_bytes(b"more").unwrap();
            assert!(readable(&receiver));
        }
    }
}

#[test]
fn calls_that_find_nothing_leave_the_descriptor_silent() {
    let _guard = guard();
    let (mut a, mut b) = small_pipe();
    for round in 0..3 {
        assert!(!readable(&b));
        for &(name, waits, recv) in RECV_FORMS {
            if waits != Ever {
                assert!(recv(&mut b, Duration::from_millis(4)).is_err());
                assert!(!readable(&b), "{name} in vain");
            }
        }
        assert!(!b.poll(Some(Duration::ZERO)).unwrap());
        assert!(!b.poll(Some(Duration::from_millis(4))).unwrap());
        assert!(!readable(&b), "poll in vain");
        a.send_bytes(&message(round, 600)).unwrap();
        assert!(b.poll(None).unwrap());
        assert!(readable(&b), "poll takes nothing");
        assert_eq!(b.recv_bytes().unwrap(), message(round, 600));
        // What is taken back was nothing to receive, once that is known.
        let result = a.send_bytes_timeout(&[0; HUGE], Duration::from_millis(4));
        assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
        assert!(matches!(b.try_recv_bytes(), Err(RecvError::Empty)));
        assert!(!readable(&b), "a message taken back");
    }
}

#[test]
fn the_descriptor_is_one_and_the_same_however_often_it_is_asked_for() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let number = receiver.as_fd().as_raw_fd();
    for i in 0..100 {
        sender.send_bytes(&message(i, i * 8)).unwrap();
        for _ in 0..3 {
            assert_eq!(receiver.as_fd().as_raw_fd(), number);
            assert!(readable(&receiver));
        }
        // Also through the number alone, as an event loop holds it.
        // SAFETY: the receiver, which owns the descriptor, lives.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        receiver.recv_bytes().unwrap();
        assert_eq!(poll_fd(fd, libc::POLLIN, Duration::ZERO), 0, "message {i} was taken");
        assert_eq!(receiver.as_fd().as_raw_fd(), number);
    }
    let (mut a, b) = small_pipe();
    assert_eq!(b.as_fd().as_raw_fd(), b.receiver().as_fd().as_raw_fd());
    a.send_bytes(b"").unwrap();
    assert!(readable(&b));
}

#[test]
fn a_senders_descriptor_is_readable_once_the_receivers_are_gone() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    assert!(!readable(&sender));
    sender.send_bytes(b"unread").unwrap();
    receiver.recv_bytes().unwrap();
    sender.send_bytes(b"unread").unwrap();
    assert!(!readable(&sender));
    assert!(!sender.is_disconnected());
    drop(receiver);
    assert!(readable(&sender) && readable(&sender));
    assert!(sender.is_disconnected() && sender.is_disconnected());
    assert!(readable(&sender));
}

/// What a receiver sends that has seen its sender wait, and comes late.
#[test]
fn a_senders_descriptor_that_is_readable_for_nothing_falls_silent_when_asked() {
    let _guard = guard();
    let (receiver, mut sender) = small_simplex();
    assert!(stuff(&receiver));
    assert!(readable(&sender));
    assert!(!sender.is_disconnected());
    assert!(!readable(&sender));
}

#[test]
fn an_event_loop_never_misses_a_message_of_another_process() {
    const ROUNDS: usize = 400;
    let _guard = guard();
    let (mine, theirs) = small_pipe();
    let (child, mut mine) = fork_split(mine, theirs, |mut theirs| {
        for i in 0..ROUNDS {
            // Bursts and rests.
            if i % 10 == 0 {
                theirs.recv_bytes().unwrap();
            }
            theirs.send_bytes(&message(i, [10, 900, 1_300, 10_000][i % 4])).unwrap();
        }
        0
    });
    let mut needless = 0;
    for i in 0..ROUNDS {
        if i % 10 == 0 {
            mine.send_bytes(b"go").unwrap();
        }
        let received = loop {
            assert!(poll_fd(mine.as_fd(), libc::POLLIN, LONG) != 0, "message {i} was missed");
            match mine.try_recv_bytes() {
                Err(RecvError::Empty) => needless += 1,
                result => break result.unwrap(),
            }
        };
        assert!(received == message(i, [10, 900, 1_300, 10_000][i % 4]), "message {i} is another");
    }
    // A part of a long message is no message yet, so some looks are in vain; a loop that spins would have made many more.
    assert!(needless < 40 * ROUNDS, "{needless} needless wake-ups");
    assert!(poll_fd(mine.as_fd(), libc::POLLIN, LONG) != 0, "end of file was missed");
    assert!(matches!(mine.try_recv_bytes(), Err(RecvError::Disconnected)));
    child.succeeds();
}

#[test]
fn a_receiver_is_waited_for_by_its_watcher_while_it_receives() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let watcher = receiver.watcher().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&[&watcher], Some(LONG)).unwrap());
        sender.send_bytes(b"one").unwrap();
        assert_eq!(waiting.join().unwrap(), [0]);
    });
    assert!(readable(&watcher));
    assert_eq!(receiver.recv_bytes().unwrap(), b"one");
    assert!(!readable(&watcher));
    sender.send_bytes(b"two").unwrap();
    assert!(readable(&watcher));
    drop(receiver);
    assert!(!sender.is_disconnected(), "the watcher is left");
    drop(watcher);
    assert!(matches!(sender.send_bytes(b"three"), Err(SendError::Disconnected)));
}

#[test]
fn progress_can_be_used_for_one_message_after_the_other() {
    let _guard = guard();
    let (mut receiver, mut sender) = small_simplex();
    let lengths = [10_000, 10_000, 20_000, 10, 10_000];
    let sending = std::thread::spawn(move || {
        let mut progress = Progress::default();
        for (i, len) in lengths.into_iter().enumerate() {
            let message = vec![i as u8; len];
            while let Err(e) = sender.send_bytes_part(&message, &mut progress, Duration::from_millis(1)) {
                assert!(matches!(e, SendError::TimedOut), "{e}");
            }
            sender.take_back(&mut progress); // there is nothing to be taken back
        }
    });
    for (i, len) in lengths.into_iter().enumerate() {
        assert_eq!(receiver.recv_bytes_timeout(LONG).unwrap(), vec![i as u8; len]);
    }
    sending.join().unwrap();
    assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
}

#[test]
fn an_end_is_made_of_its_parts() {
    fn copy<E: End>(end: &E) -> E {
        let (frame, fds) = end.parts().unwrap();
        E::from_parts(frame, fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect()).unwrap()
    }
    let _guard = guard();
    let (mut a, b) = small_pipe();
    a.send_bytes(b"before").unwrap();
    let mut other = copy(&b);
    drop(b);
    assert_eq!(other.recv_bytes().unwrap(), b"before");
    other.send_bytes(b"back").unwrap();
    assert_eq!(copy(&a).recv_bytes().unwrap(), b"back");
    let (frame, _) = a.parts().unwrap();
    assert!(matches!(Connection::from_parts(frame, Vec::new()), Err(AttachError::BadHandover { .. })));
    let (receiver, _sender) = small_simplex();
    let (frame, fds) = receiver.parts().unwrap();
    let fds = fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    assert!(matches!(Sender::from_parts(frame, fds), Err(AttachError::WrongEnd { .. })));
}
