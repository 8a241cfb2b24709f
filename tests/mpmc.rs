//! A pipe for many senders and many receivers, case by case, among the threads of one process: every form of every operation, lengths, what fits,
//! what is given back. `mpmc_processes.rs` has what takes several processes, `mpmc_waking.rs` who wakes whom and how soon.

mod support;

use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringpipe::mpmc::{Receiver, Sender, simplex};
use ringpipe::{BufferTooShort, BuildError, Builder, DEFAULT_CAPACITY, RecvError, RecvIntoError, SendError};
use support::forms::Waits::{Ever, InTime, Never};
use support::forms::{LONG, SHORT, lasting, message, recv_forms, send_forms};
use support::many::{SMALL, attached, fill_up, small};
use support::{Random, Script, eventually, guard, memory_of_pipes, open_fds, readable};

/// What can be reserved in a ring of [`SMALL`] bytes.
const QUARTER: usize = SMALL / 4;

/// Lengths around everything that changes with the length, up to several rings.
const LENGTHS: [usize; 15] =
    [0, 1, 63, 64, 65, 127, 128, 1000, QUARTER - 1, QUARTER, QUARTER + 1, SMALL / 2, SMALL, SMALL + 1, 5 * SMALL + 3];

// --- every form of every operation -------------------------------------------------------------------

/// Repeats a call that may time out early, as its callers have to.
fn patiently<T>(time: Duration, timed_out: impl Fn(&T) -> bool, call: impl Fn(Duration) -> T) -> T {
    let end = Instant::now() + time;
    loop {
        let result = call(end.saturating_duration_since(Instant::now()));
        if !timed_out(&result) || Instant::now() >= end {
            return result;
        }
    }
}

recv_forms!(
    &Receiver, 6 * SMALL;
    ("iter", Ever, |c, _| c.iter().next().unwrap_or(Err(RecvError::Disconnected))),
    ("recv_bytes_into_interruptible", InTime, |c, t| {
        let time_out = |result: &_| matches!(result, Err(RecvError::TimedOut));
        patiently(t, time_out, |left| {
            support::forms::into(6 * SMALL, |buf, at| c.recv_bytes_into_interruptible(buf, at, left))
        })
    }),
    ("a clone's recv_bytes_timeout", InTime, |c, t| c.clone().recv_bytes_timeout(t))
);
send_forms!(
    &Sender;
    ("send_bytes_interruptible", InTime, |c, m, t| {
        let time_out = |result: &_| matches!(result, Err(SendError::TimedOut));
        patiently(t, time_out, |left| c.send_bytes_interruptible(m, left))
    }),
    ("a clone's send_bytes_timeout", InTime, |c, m, t| c.clone().send_bytes_timeout(m, t))
);

#[test]
fn every_form_of_receiving_takes_one_message_and_leaves_the_next() {
    let _guard = guard();
    for &(name, _, recv) in RECV_FORMS {
        let (receiver, sender) = small();
        for (i, len) in LENGTHS.into_iter().enumerate() {
            sender.try_send_bytes(&message(i, len)).unwrap();
            sender.try_send_bytes(b"next").unwrap();
            assert!(recv(&receiver, LONG).unwrap() == message(i, len), "{name}, {len} bytes");
            assert_eq!(recv(&receiver, LONG).unwrap(), b"next", "{name}, after {len} bytes");
        }
    }
}

#[test]
fn every_form_of_sending_sends_one_whole_message_or_says_that_it_is_too_long_to_reserve() {
    let _guard = guard();
    for &(name, _, send) in SEND_FORMS {
        let (receiver, sender) = small();
        for (i, len) in LENGTHS.into_iter().enumerate() {
            let result = send(&sender, &message(i, len), LONG);
            if name.contains("reserve") && len > QUARTER {
                let right = matches!(result, Err(SendError::TooLong { len: l, max: QUARTER }) if l == len);
                assert!(right, "{name}, {len} bytes: {result:?}");
            } else {
                result.unwrap();
                assert_eq!(sender.len(), 1, "{name}, {len} bytes");
                assert!(receiver.try_recv_bytes().unwrap() == message(i, len), "{name}, {len} bytes");
            }
            assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)), "{name}, {len} bytes: one and no more");
        }
    }
}

#[test]
fn every_form_of_receiving_that_finds_nothing_says_so_in_time_and_can_go_on() {
    let _guard = guard();
    for &(name, waits, recv) in RECV_FORMS {
        let (receiver, sender) = small();
        for i in 0..2 {
            match waits {
                Ever => {}
                Never => assert!(matches!(recv(&receiver, SHORT), Err(RecvError::Empty)), "{name}"),
                InTime => {
                    let result = lasting(SHORT, name, || recv(&receiver, SHORT));
                    assert!(matches!(result, Err(RecvError::TimedOut)), "{name}: {result:?}");
                }
            }
            sender.send_bytes(&message(i, 10)).unwrap();
            assert_eq!(recv(&receiver, LONG).unwrap(), message(i, 10), "{name}");
        }
    }
}

#[test]
fn every_form_of_sending_that_finds_no_room_says_so_in_time_and_sends_nothing() {
    let _guard = guard();
    for &(name, waits, send) in SEND_FORMS {
        let (receiver, sender) = small();
        let count = fill_up(&sender);
        assert_eq!(count, SMALL / 64);
        match waits {
            Ever => {}
            Never => assert!(matches!(send(&sender, b"no", SHORT), Err(SendError::Full)), "{name}"),
            InTime => {
                let result = lasting(SHORT, name, || send(&sender, b"no", SHORT));
                assert!(matches!(result, Err(SendError::TimedOut)), "{name}: {result:?}");
            }
        }
        assert_eq!(receiver.recv_bytes().unwrap(), message(0, 60));
        send(&sender, b"yes", LONG).unwrap();
        for i in 1..count {
            assert_eq!(receiver.recv_bytes().unwrap(), message(i, 60), "{name}");
        }
        assert_eq!(receiver.recv_bytes().unwrap(), b"yes", "{name}");
        assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)), "{name}");
    }
}

#[test]
fn every_form_of_receiving_gets_what_was_sent_and_then_end_of_file_for_ever() {
    let _guard = guard();
    for &(name, _, recv) in RECV_FORMS {
        let (receiver, sender) = small();
        let last = sender.clone();
        sender.send_bytes(b"last words").unwrap();
        sender.close();
        assert!(receiver.poll(Some(LONG)).unwrap());
        last.send_bytes(&message(1, 2 * SMALL)).unwrap();
        last.close();
        assert_eq!(recv(&receiver, LONG).unwrap(), b"last words", "{name}");
        assert!(recv(&receiver, LONG).unwrap() == message(1, 2 * SMALL), "{name}");
        for _ in 0..3 {
            let result = recv(&receiver, LONG);
            assert!(matches!(result, Err(RecvError::Disconnected)), "{name}: {result:?}");
        }
    }
}

#[test]
fn every_form_of_sending_gets_a_broken_pipe_for_ever_once_all_receivers_are_closed() {
    let _guard = guard();
    for &(name, _, send) in SEND_FORMS {
        let (receiver, sender) = small();
        let last = receiver.clone();
        receiver.close();
        send(&sender, b"there is one yet", LONG).unwrap();
        assert!(!sender.is_disconnected());
        let room = sender.try_reserve(10).unwrap();
        last.close();
        let result = room.commit();
        assert!(matches!(result, Err(SendError::Disconnected)), "committing: {result:?}");
        for _ in 0..3 {
            let result = send(&sender, b"nobody", LONG);
            assert!(matches!(result, Err(SendError::Disconnected)), "{name}: {result:?}");
        }
        assert!(sender.is_disconnected());
    }
}

/// Runs `call` in a thread, and `then` when that is blocked; if `parked`, for longer than a slice.
fn blocked<T: Send>(parked: bool, call: impl FnOnce() -> T + Send, then: impl FnOnce()) -> T {
    let thread = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            // SAFETY: no preconditions.
            thread.store(unsafe { libc::gettid() } as u64, Ordering::SeqCst);
            call()
        });
        eventually("the thread runs", || thread.load(Ordering::SeqCst) != 0);
        let pid = thread.load(Ordering::SeqCst) as libc::pid_t;
        // Who looks too late for the first sleep finds it parked.
        let calls = [support::Call::Park, support::Call::Futex];
        support::await_call(pid, &calls[..if parked { 1 } else { 2 }]);
        then();
        caller.join().unwrap()
    })
}

#[test]
fn every_form_that_waits_is_woken_by_a_message_by_room_and_by_the_end_of_the_other_side() {
    let _guard = guard();
    for parked in [false, true] {
        for &(name, waits, recv) in RECV_FORMS {
            if waits != Never {
                let (receiver, sender) = small();
                let got = blocked(parked, || recv(&receiver, LONG), || sender.send_bytes(b"awake").unwrap());
                assert_eq!(got.unwrap(), b"awake", "{name}");
                let got = blocked(parked, || recv(&receiver, LONG), || drop(sender));
                assert!(matches!(got, Err(RecvError::Disconnected)), "{name}: {got:?}");
            }
        }
        for &(name, waits, send) in SEND_FORMS {
            if waits != Never {
                let (receiver, sender) = small();
                fill_up(&sender);
                let sent = blocked(parked, || send(&sender, b"in", LONG), || drop(receiver.recv_bytes().unwrap()));
                sent.unwrap_or_else(|e| panic!("{name}: {e}"));
                fill_up(&sender);
                let sent = blocked(parked, || send(&sender, b"in", LONG), || drop(receiver));
                assert!(matches!(sent, Err(SendError::Disconnected)), "{name}: {sent:?}");
            }
        }
    }
}

#[test]
fn a_time_out_of_zero_takes_what_is_there_and_one_too_long_for_the_clock_is_none() {
    let _guard = guard();
    let (receiver, sender) = small();
    for timeout in [Duration::ZERO, Duration::MAX] {
        sender.send_bytes_timeout(b"one", timeout).unwrap();
        assert_eq!(receiver.recv_bytes_timeout(timeout).unwrap(), b"one");
    }
    assert!(matches!(receiver.recv_bytes_timeout(Duration::ZERO), Err(RecvError::TimedOut)));
    assert!(matches!(receiver.recv_bytes_deadline(Instant::now() - SHORT), Err(RecvError::TimedOut)));
    fill_up(&sender);
    assert!(matches!(sender.send_bytes_timeout(b"", Duration::ZERO), Err(SendError::TimedOut)));
    assert!(matches!(sender.reserve_deadline(0, Instant::now() - SHORT), Err(SendError::TimedOut)));
}

#[test]
fn polling_asks_waits_for_a_while_or_for_ever_and_takes_nothing() {
    let _guard = guard();
    let (receiver, sender) = small();
    assert!(!receiver.poll(Some(Duration::ZERO)).unwrap());
    assert!(!lasting(SHORT, "poll", || receiver.poll(Some(SHORT))).unwrap());
    for parked in [false, true] {
        for timeout in [Some(LONG), None] {
            let found = blocked(parked, || receiver.poll(timeout), || sender.send_bytes(b"").unwrap());
            assert!(found.unwrap() && receiver.poll(timeout).unwrap() && receiver.poll(Some(Duration::ZERO)).unwrap());
            assert_eq!(receiver.try_recv_bytes().unwrap(), b"");
            assert!(!receiver.poll(Some(Duration::ZERO)).unwrap());
        }
    }
    let found = blocked(true, || receiver.poll(None), || drop(sender));
    assert!(found.unwrap(), "end of file is something to be received");
    assert!(receiver.poll(Some(Duration::ZERO)).unwrap());
}

#[test]
fn an_iterator_gives_the_messages_until_end_of_file_and_a_trying_one_those_that_are_there() {
    let _guard = guard();
    let (receiver, sender) = small();
    for i in 0..10 {
        sender.send_bytes(&message(i, i)).unwrap();
    }
    let all = |from: usize, to: usize| (from..to).map(|i| message(i, i)).collect::<Vec<_>>();
    assert_eq!(receiver.try_iter().take(4).map(Result::unwrap).collect::<Vec<_>>(), all(0, 4));
    assert_eq!(receiver.try_iter().map(Result::unwrap).collect::<Vec<_>>(), all(4, 10));
    assert!(receiver.try_iter().next().is_none());
    let got = blocked(
        true,
        || receiver.iter().map(Result::unwrap).collect::<Vec<_>>(),
        || {
            (0..10).for_each(|i| sender.send_bytes(&message(i, i)).unwrap());
            drop(sender);
        },
    );
    assert_eq!(got, all(0, 10));
    assert!(receiver.iter().next().is_none() && receiver.try_iter().next().is_none());
    // The error that ends receiving is an item, and the last.
    let (receiver, sender) = small();
    sender.send_bytes(b"too long").unwrap();
    assert!(matches!(receiver.recv_bytes_max(3), Err(RecvError::TooLong { len: 8, max: 3 })));
    assert!(receiver.iter().next().is_none());
}

// --- handles and threads -------------------------------------------------------------------------------

#[test]
fn handles_can_be_shared_cloned_and_sent_to_threads() {
    fn everywhere<T: Send + Sync + 'static>() {}
    fn cloned<T: Clone>() {}
    everywhere::<Receiver>();
    everywhere::<Sender>();
    cloned::<Receiver>();
    cloned::<Sender>();
    fn anywhere<T: Send + Sync>(_: &T) {}
    let (receiver, sender) = small();
    sender.send_bytes(b"1").unwrap();
    anywhere(&sender.reserve(1).unwrap());
    anywhere(&receiver.recv_guard().unwrap());
}

/// Four threads send, four receive, half of them through references to one handle and half through clones.
#[test]
fn each_message_of_several_threads_goes_to_one_receiver_and_those_of_each_sender_in_order() {
    const EACH: u64 = 3_000;
    const THREADS: usize = 4;
    let _guard = guard();
    let (receiver, sender) = small();
    let scripts = [Script::short(3), Script::mixed(4, SMALL)];
    let text = |from: u64, n: u64| scripts[usize::from(n % 50 == 49)].message(from << 32 | n);
    let marks: Vec<AtomicUsize> = (0..EACH * THREADS as u64).map(|_| AtomicUsize::new(0)).collect();
    let send = |sender: &Sender, from: u64| {
        for n in 0..EACH {
            let head = [from.to_le_bytes(), n.to_le_bytes()].concat();
            let (_, waits, send) = SEND_FORMS[(n % 8) as usize];
            let whole = [&head, text(from, n)].concat();
            if waits == Never {
                while let Err(e) = send(sender, &whole, LONG) {
                    assert!(matches!(e, SendError::Full), "{e}");
                    std::thread::yield_now();
                }
            } else {
                send(sender, &whole, LONG).unwrap();
            }
        }
    };
    let receive = |receiver: &Receiver| {
        let mut last = [None; THREADS];
        for turn in 0.. {
            let bytes = match RECV_FORMS[turn % RECV_FORMS.len()].2(receiver, LONG) {
                Ok(bytes) => bytes,
                Err(RecvError::Empty) => continue,
                Err(RecvError::Disconnected) => break,
                Err(e) => panic!("{e}"),
            };
            let [from, n] = [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()));
            assert!(bytes[16..] == *text(from, n), "message {n} of {from} is another");
            assert!(last[from as usize] < Some(n), "message {n} of {from} after {:?}", last[from as usize]);
            last[from as usize] = Some(n);
            marks[(from * EACH + n) as usize].fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for i in 0..THREADS {
            let (receiver, (send, receive)) = (&receiver, (&send, &receive));
            let clones = (receiver.clone(), sender.clone());
            scope.spawn(move || if i % 2 == 0 { receive(receiver) } else { receive(&clones.0) });
            scope.spawn(move || send(&clones.1, i as u64));
        }
        drop(sender);
    });
    assert!(marks.iter().all(|mark| mark.load(Ordering::Relaxed) == 1));
}

#[test]
fn one_sender_shared_by_reference_sends_from_many_threads() {
    let _guard = guard();
    let (receiver, sender) = small();
    let total: u64 = std::thread::scope(|scope| {
        let receivers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let number = |bytes: Vec<u8>| u64::from_le_bytes(bytes.try_into().unwrap());
                    (0..1000).map(|_| number(receiver.recv_bytes().unwrap())).sum::<u64>()
                })
            })
            .collect();
        for i in 0..3 {
            let sender = &sender;
            scope.spawn(move || (0..1000_u64).for_each(|n| sender.send_bytes(&(3 * n + i).to_le_bytes()).unwrap()));
        }
        receivers.into_iter().map(|receiver| receiver.join().unwrap()).sum()
    });
    assert_eq!(total, (0..3000).sum::<u64>());
    assert!(receiver.is_empty());
}

#[test]
fn each_side_takes_two_descriptors_however_many_handles_there_are_and_gives_them_back() {
    let _guard = guard();
    let before = open_fds().len();
    let (receiver, sender) = simplex().unwrap();
    let both = open_fds().len();
    assert!(both - before <= 4, "{} descriptors", both - before);
    let clones: Vec<_> = (0..10).map(|_| (receiver.clone(), sender.clone())).collect();
    assert_eq!(open_fds().len(), both);
    let other = attached(sender.clone());
    assert_eq!(open_fds().len(), both + 2);
    drop((receiver, sender));
    clones[9].1.send_bytes(b"open").unwrap();
    assert_eq!(clones[0].0.recv_bytes().unwrap(), b"open");
    drop(clones);
    assert!(matches!(other.send_bytes(b"closed"), Err(SendError::Disconnected)));
    drop(other);
    assert_eq!(open_fds().len(), before);
}

// --- what handles tell -----------------------------------------------------------------------------------

#[test]
fn messages_are_counted_and_so_is_the_room_that_they_take() {
    let _guard = guard();
    let (receiver, sender) = simplex().unwrap();
    assert_eq!((receiver.capacity(), sender.capacity()), (DEFAULT_CAPACITY, DEFAULT_CAPACITY));
    assert_eq!(sender.max_reserve(), 65_408);
    let (receiver, sender) = small();
    assert_eq!((receiver.capacity(), sender.capacity(), sender.max_reserve()), (SMALL, SMALL, QUARTER));
    let tells = |len: usize, fill: usize, what: &str| {
        assert_eq!((receiver.len(), sender.len()), (len, len), "{what}");
        assert_eq!((receiver.is_empty(), sender.is_empty()), (len == 0, len == 0), "{what}");
        assert_eq!((receiver.fill(), sender.fill()), (fill, fill), "{what}");
    };
    tells(0, 0, "fresh");
    // Also round the end of the ring, where a run of cells is left out, and counts.
    for round in 0..10 {
        sender.send_bytes(b"").unwrap();
        tells(1, 64, "an empty message takes a cell");
        sender.send_bytes(&[0; 64]).unwrap();
        sender.send_bytes(&[0; 65]).unwrap();
        tells(3, 64 + 64 + 128, "one of 64, and one of 65");
        drop(receiver.recv_bytes().unwrap());
        tells(2, 64 + 128, "less the first");
        let guard = receiver.recv_guard().unwrap();
        tells(1, 128, "what is taken waits no longer");
        drop(receiver.recv_bytes().unwrap());
        tells(0, 0, "all taken");
        drop(guard);
        tells(0, 0, "all given back");
        let room = sender.reserve(1000).unwrap();
        tells(0, 1024, "reserved");
        drop(room);
        tells(0, 0, "and given up");
        for _ in 0..round {
            sender.send_bytes(&[1; 5000]).unwrap();
            drop(receiver.recv_bytes().unwrap());
        }
    }
    for count in 1..=3 {
        sender.send_bytes(&[0; 3 * SMALL]).unwrap();
        assert_eq!((sender.len(), receiver.len()), (count, count));
        assert!(sender.fill() >= count * QUARTER, "a long message takes a quarter");
    }
}

#[test]
fn capacities_are_rounded_up_to_a_power_of_two_of_at_least_64_kib() {
    let _guard = guard();
    for (asked, given) in [(1, SMALL), (4096, SMALL), (SMALL, SMALL), (SMALL + 1, 2 * SMALL), (1 << 20, 1 << 20)] {
        let (receiver, sender) = Builder::new().capacity(asked).mpmc().unwrap();
        assert_eq!((receiver.capacity(), sender.capacity()), (given, given), "{asked}");
    }
    let (receiver, sender) = Builder::new().capacity(1 << 30).mpmc().unwrap();
    sender.send_bytes(b"in a large one").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"in a large one");
    for asked in [0, (1 << 30) + 1, usize::MAX] {
        let error = Builder::new().capacity(asked).mpmc().map(drop).unwrap_err();
        let right = matches!(error, BuildError::Capacity { asked: a, min: SMALL, max } if a == asked && max == 1 << 30);
        assert!(right, "{error:?}");
    }
}

#[test]
fn debug_output_shows_capacity_fill_and_state() {
    let _guard = guard();
    let (receiver, sender) = small();
    sender.send_bytes(b"0123456789").unwrap();
    assert_eq!(format!("{sender:?}"), r#"mpmc::Sender { capacity: 65536, fill: 64, state: "open" }"#);
    assert_eq!(format!("{receiver:?}"), r#"mpmc::Receiver { capacity: 65536, fill: 64, state: "open" }"#);
    let guard = receiver.recv_guard().unwrap();
    assert_eq!(format!("{guard:?}"), "mpmc::ReadGuard { len: 10 }");
    drop(guard);
    let mut room = sender.reserve(9).unwrap();
    room.write(b"1");
    assert_eq!(format!("{room:?}"), "mpmc::WriteGuard { len: 9, written: 1 }");
    drop(room);
    sender.send_bytes(b"too long").unwrap();
    receiver.recv_bytes_max(0).unwrap_err();
    assert!(format!("{receiver:?}").contains(r#"state: "ended""#), "{receiver:?}");
    assert!(format!("{:?}", receiver.clone()).contains(r#"state: "open""#), "{:?}", receiver.clone());
    assert!(format!("{:?}", receiver.iter()).starts_with("Iter {"));
    drop(receiver);
    assert!(format!("{sender:?}").contains(r#"state: "peer gone""#), "{sender:?}");
}

// --- limits and buffers ----------------------------------------------------------------------------------

#[test]
fn a_longer_message_than_allowed_ends_this_handle_and_stays_for_others() {
    let _guard = guard();
    type Max = fn(&Receiver, usize) -> Result<Vec<u8>, RecvError>;
    let forms: [(&str, Max); 4] = [
        ("recv_bytes_max", |c, max| c.recv_bytes_max(max)),
        ("try_recv_bytes_max", |c, max| c.try_recv_bytes_max(max)),
        ("recv_bytes_max_timeout", |c, max| c.recv_bytes_max_timeout(max, LONG)),
        ("recv_bytes_max_deadline", |c, max| c.recv_bytes_max_deadline(max, Instant::now() + LONG)),
    ];
    for (name, recv) in forms {
        for len in [1, 64, 65, QUARTER, QUARTER + 1, 3 * SMALL] {
            let (receiver, sender) = small();
            let other = attached(receiver.clone());
            sender.send_bytes(&message(0, len)).unwrap();
            assert!(recv(&receiver, len).unwrap() == message(0, len), "{name}: {len} of {len} allowed");
            sender.send_bytes(&message(1, len)).unwrap();
            let before = receiver.clone();
            let what = recv(&receiver, len - 1);
            let right = matches!(what, Err(RecvError::TooLong { len: l, max }) if l == len as u64 && max == len - 1);
            assert!(right, "{name}, {len} bytes: {what:?}");
            // A clone of a handle that has ended receives.
            for (form, _, recv) in RECV_FORMS.iter().copied().filter(|(form, ..)| !form.starts_with("a clone")) {
                let what = recv(&receiver, LONG);
                let over = form == "iter" && matches!(what, Err(RecvError::Disconnected));
                assert!(over || matches!(what, Err(RecvError::Ended)), "{form}: {what:?}");
            }
            assert!(matches!(receiver.poll(None), Err(RecvError::Ended)));
            assert!(!sender.is_disconnected(), "it is one handle that has ended");
            assert_eq!(receiver.len(), 1, "the message stays");
            assert!(
                matches!(other.try_recv_bytes_max(len - 1), Err(RecvError::TooLong { .. })),
                "also as seen by another"
            );
            let taker = [before, receiver.clone(), other.clone()];
            assert!(taker[len % 3].try_recv_bytes_max(len).unwrap() == message(1, len), "{name}");
            assert!(matches!(taker[0].try_recv_bytes(), Err(RecvError::Empty)));
        }
    }
}

#[test]
fn a_buffer_is_filled_from_the_offset_on_and_nowhere_else() {
    let _guard = guard();
    let (receiver, sender) = small();
    for len in [0, 1, 64, 100, QUARTER, QUARTER + 1, 2 * SMALL] {
        for (offset, spare) in [(0, 0), (0, 7), (3, 0), (5, 9)] {
            sender.send_bytes(&message(len, len)).unwrap();
            let mut buf = vec![0xEE; offset + len + spare];
            assert_eq!(receiver.recv_bytes_into(&mut buf, offset).unwrap(), len);
            assert!(buf[offset..][..len] == message(len, len), "{len} bytes at {offset}");
            assert!(buf[..offset].iter().chain(&buf[offset + len..]).all(|&byte| byte == 0xEE), "{len} at {offset}");
        }
    }
}

#[test]
fn a_message_too_long_for_the_buffer_comes_in_the_error_and_the_handle_goes_on() {
    let _guard = guard();
    let (receiver, sender) = small();
    for len in [1, 100, QUARTER + 1, 2 * SMALL] {
        sender.send_bytes(&message(1, len)).unwrap();
        sender.send_bytes(b"next").unwrap();
        let mut buf = vec![0xEE; len + 4];
        let what = receiver.try_recv_bytes_into(&mut buf, 5);
        let Err(RecvIntoError::TooShort(BufferTooShort { message: whole, room })) = what else { panic!("{what:?}") };
        assert!(whole == message(1, len) && room == len - 1);
        assert!(buf.iter().all(|&byte| byte == 0xEE));
        assert_eq!(receiver.try_recv_bytes_into(&mut buf, 0).unwrap(), 4);
        assert_eq!(receiver.fill(), 0);
    }
}

#[test]
fn an_offset_outside_the_buffer_takes_no_message() {
    let _guard = guard();
    let (receiver, sender) = small();
    sender.send_bytes(b"").unwrap();
    let mut buf = [0; 4];
    for offset in [5, 6, usize::MAX] {
        let what = receiver.recv_bytes_into(&mut buf, offset);
        assert!(matches!(what, Err(RecvIntoError::BadOffset { offset: o, len: 4 }) if o == offset), "{what:?}");
    }
    assert_eq!(receiver.recv_bytes_into(&mut buf, 4).unwrap(), 0, "an offset at the end leaves room for an empty one");
}

// --- in place -----------------------------------------------------------------------------------------

#[test]
fn only_a_commit_sends_what_was_written_to_a_reservation() {
    let _guard = guard();
    let (receiver, sender) = small();
    for reserved in [0, 1, 64, 200, 5000, QUARTER] {
        for written in [0, 1, 63, 64, 65, 4999, reserved] {
            let Some(rest) = reserved.checked_sub(written) else { continue };
            let mut room = sender.reserve(reserved).unwrap();
            assert_eq!((room.len(), room.written()), (reserved, 0));
            room.write(&message(written, written));
            assert_eq!(room.written(), written);
            let too_much = catch_unwind(AssertUnwindSafe(|| room.write(&vec![0; rest + 1])));
            assert!(too_much.is_err() && room.written() == written);
            sender.try_send_bytes(b"behind").unwrap();
            assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)), "nothing is stolen before the commit");
            room.commit().unwrap();
            assert!(receiver.try_recv_bytes().unwrap() == message(written, written), "{written} of {reserved}");
            assert_eq!(receiver.try_recv_bytes().unwrap(), b"behind");

            let mut room = sender.reserve(reserved).unwrap();
            room.write(&message(written, written));
            sender.try_send_bytes(b"behind").unwrap();
            drop(room);
            assert_eq!(receiver.try_recv_bytes().unwrap(), b"behind", "what was dropped was not sent");
            assert_eq!((receiver.len(), receiver.fill()), (0, 0));
        }
    }
}

#[test]
fn what_is_dropped_wakes_who_waits_behind_it() {
    let _guard = guard();
    // Whoever waits for what is held does not park, but sleeps in slices: in the first, or in a later one.
    for rest in [Duration::ZERO, Duration::from_millis(20)] {
        let (receiver, sender) = small();
        let room = sender.reserve(10).unwrap();
        sender.send_bytes(b"behind").unwrap();
        let release = || {
            std::thread::sleep(rest);
            drop(room);
        };
        let got = blocked(false, || receiver.recv_bytes(), release);
        assert_eq!(got.unwrap(), b"behind");
        let room = sender.reserve(10).unwrap();
        fill_up(&sender);
        let sent = blocked(
            false,
            || sender.send_bytes(b"more"),
            || {
                std::thread::sleep(rest);
                drop(room);
                drop(receiver.try_recv_bytes().unwrap());
            },
        );
        sent.unwrap();
    }
}

#[test]
fn a_reservation_can_be_written_as_memory() {
    let _guard = guard();
    let (receiver, sender) = small();
    let mut room = sender.reserve(100).unwrap();
    // SAFETY: nobody else writes to this ring.
    let memory = unsafe { room.as_uninit() };
    assert_eq!(memory.len(), 100);
    for (cell, byte) in memory.iter_mut().zip(*b"abcde") {
        cell.write(byte);
    }
    room.assume_written(5);
    assert!(catch_unwind(AssertUnwindSafe(|| room.assume_written(101))).is_err());
    room.write(b"fg");
    room.commit().unwrap();
    let guard = receiver.recv_guard().unwrap();
    // SAFETY: nobody else writes to this ring.
    assert_eq!(unsafe { guard.as_slice() }, b"abcdefg");
}

#[test]
fn a_read_guard_keeps_its_room_and_holds_up_nothing_else() {
    let _guard = guard();
    let (receiver, sender) = small();
    for round in 0..20 {
        sender.send_bytes(&message(round, 100)).unwrap();
        let guard = receiver.recv_guard().unwrap();
        assert!(guard.len() == 100 && !guard.is_empty());
        // A whole ring less what is held goes by, in small and in long messages, and not a byte more.
        let mut passed = 0;
        for i in 0.. {
            let len = [0, 64, 900, 3 * SMALL][i % 4];
            match sender.try_send_bytes(&message(i, len)) {
                Ok(()) => assert!(receiver.try_recv_bytes().unwrap() == message(i, len)),
                Err(SendError::Full) => break,
                Err(e) => panic!("{e}"),
            }
            passed += if len > QUARTER { QUARTER } else { len.div_ceil(64).max(1) * 64 };
        }
        assert!(passed <= SMALL - 128, "{passed} bytes went by");
        assert!(passed >= SMALL / 2, "only {passed} bytes went by");
        assert_eq!(guard.to_vec(), message(round, 100), "what is held stays as it is");
        let mut part = [0; 10];
        guard.copy_to(90, &mut part);
        assert_eq!(part, message(round, 100)[90..]);
        for (offset, len) in [(91, 10), (101, 0), (usize::MAX, 10)] {
            assert!(catch_unwind(AssertUnwindSafe(|| guard.copy_to(offset, &mut vec![0; len]))).is_err());
        }
        let sent = blocked(true, || sender.send_bytes(&message(0, 3 * SMALL)), || drop(guard));
        sent.unwrap();
        assert_eq!(receiver.recv_bytes().unwrap().len(), 3 * SMALL);
    }
}

/// Until then they are held, as by a process that was stopped.
#[test]
fn guards_that_are_leaked_are_given_back_with_the_last_handle_of_their_side() {
    let _guard = guard();
    for _ in 0..3 {
        let (receiver, sender) = small();
        let other = attached(sender.clone());
        let clone = other.clone();
        std::mem::forget(other.reserve(1000).unwrap());
        std::mem::forget(clone.reserve(QUARTER).unwrap());
        sender.send_bytes(b"behind").unwrap();
        drop(other);
        assert!(matches!(receiver.recv_bytes_timeout(SHORT), Err(RecvError::TimedOut)), "a handle is left");
        let got = blocked(false, || receiver.recv_bytes(), || drop(clone));
        assert_eq!(got.unwrap(), b"behind");

        let other = attached(receiver.clone());
        for _ in 0..2 {
            sender.send_bytes(b"held").unwrap();
            sender.send_bytes(b"not held").unwrap();
            std::mem::forget(other.recv_guard().unwrap());
            assert_eq!(receiver.recv_bytes().unwrap(), b"not held");
        }
        let fits = |sender: &Sender| {
            let count = fill_up(sender);
            (0..count).for_each(|i| assert_eq!(receiver.recv_bytes().unwrap(), message(i, 60)));
            count
        };
        fits(&sender);
        let sent = blocked(false, || sender.send_bytes(b"more"), || drop(other));
        sent.unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), b"more");
        assert_eq!(fits(&sender), SMALL / 64, "all the room is back");
    }
}

// --- long messages --------------------------------------------------------------------------------------

#[test]
fn messages_of_every_length_go_through_rings_of_every_size() {
    let _guard = guard();
    for capacity in [SMALL, 256 << 10, 1 << 20] {
        let (receiver, sender) = Builder::new().capacity(capacity).mpmc().unwrap();
        let max = sender.max_reserve();
        assert_eq!(max, (capacity / 4).min(65_408));
        let around = [0, 1, 64, max, capacity / 4, capacity / 2, capacity, 3 * capacity];
        for len in around.into_iter().flat_map(|len: usize| len.saturating_sub(1)..=len + 1).chain([32 << 20]) {
            let sent = message(len, len);
            sender.try_send_bytes(&sent).unwrap();
            assert!(receiver.try_recv_bytes().unwrap() == sent, "{len} bytes through {capacity}");
            if len <= max {
                drop(sender.try_reserve(len).unwrap());
            } else {
                assert!(matches!(sender.try_reserve(len), Err(SendError::TooLong { .. })), "{len} bytes");
            }
        }
    }
}

#[test]
fn at_most_four_long_messages_are_in_flight_and_the_fifth_waits() {
    let _guard = guard();
    for len in [QUARTER + 1, SMALL, 3 * SMALL] {
        let (receiver, sender) = small();
        for start in 0..6 {
            let mut count = 0;
            while sender.try_send_bytes(&message(start + count, len)).is_ok() {
                count += 1;
            }
            // Where the first of them does not start at a quarter of the ring, room at its end is lost.
            assert!(count == 4 || count == 3 && start > 0, "{count} of {len} bytes");
            assert!(matches!(sender.try_send_bytes(&message(0, len)), Err(SendError::Full)), "{len} bytes");
            let result = sender.send_bytes_timeout(&message(0, len), SHORT);
            assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
            let first = || assert!(receiver.recv_bytes().unwrap() == message(start, len));
            blocked(start % 2 == 0, || sender.send_bytes(&message(start + count, len)), first).unwrap();
            for i in 1..=count {
                assert!(receiver.recv_bytes().unwrap() == message(start + i, len), "{len} bytes, number {i}");
            }
            // Not always at the same place.
            sender.send_bytes(&message(0, 1000 * start)).unwrap();
            drop(receiver.recv_bytes().unwrap());
        }
    }
}

#[test]
fn long_messages_of_several_threads_do_not_mix() {
    let _guard = guard();
    let (receiver, sender) = small();
    std::thread::scope(|scope| {
        for from in 0..3_u64 {
            let sender = sender.clone();
            scope.spawn(move || {
                let mut random = Random::new(from);
                for n in 0..60_u64 {
                    let mut bytes = vec![(from * 60 + n) as u8; random.below(4 * SMALL as u64) as usize + 8];
                    bytes[..8].copy_from_slice(&(from * 60 + n).to_le_bytes());
                    sender.send_bytes(&bytes).unwrap();
                }
            });
        }
        drop(sender);
        let sums: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let check = |bytes: Vec<u8>| {
                        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                        assert!(bytes[8..].iter().all(|&byte| byte == n as u8), "message {n} of {} bytes", bytes.len());
                        n
                    };
                    receiver.iter().map(|bytes| check(bytes.unwrap())).sum::<u64>()
                })
            })
            .collect();
        assert_eq!(sums.into_iter().map(|sum| sum.join().unwrap()).sum::<u64>(), (0..180).sum());
    });
}

#[test]
fn the_memory_of_a_long_message_is_given_back_once_it_is_received() {
    const LEN: usize = 24 << 20;
    let _guard = guard();
    let (receiver, sender) = small();
    let most = (2 * SMALL) as u64;
    let mut buf = vec![0; LEN];
    let sent = message(5, LEN);
    for (name, _, recv) in RECV_FORMS.iter().copied().filter(|(name, ..)| !name.contains("into")) {
        sender.send_bytes(&sent).unwrap();
        assert!(memory_of_pipes() >= LEN as u64 - most, "it lies in memory: {} bytes", memory_of_pipes());
        assert!(recv(&receiver, LONG).unwrap() == sent, "{name}");
        assert!(memory_of_pipes() <= most, "{name}: {} bytes are still there", memory_of_pipes());
    }
    sender.send_bytes(&sent).unwrap();
    receiver.recv_bytes_into(&mut buf, 0).unwrap();
    assert!(memory_of_pipes() <= most);
    sender.send_bytes(&sent).unwrap();
    assert!(matches!(receiver.recv_bytes_into(&mut buf, 1), Err(RecvIntoError::TooShort(_))));
    assert!(memory_of_pipes() <= most);
    // Not taken, not given back.
    sender.send_bytes(&sent).unwrap();
    assert!(matches!(receiver.clone().recv_bytes_max(1), Err(RecvError::TooLong { .. })));
    assert!(memory_of_pipes() >= LEN as u64 - most);
}

// --- values ------------------------------------------------------------------------------------------------

#[cfg(feature = "serde")]
mod values {
    use super::*;

    #[test]
    fn values_have_every_form() {
        let _guard = guard();
        let (receiver, sender) = small();
        sender.send("text").unwrap();
        sender.try_send(&2_u64).unwrap();
        sender.send_timeout(&vec![3_u64; 20_000], LONG).unwrap();
        sender.send_deadline(&(4_u64, Some('d')), Instant::now() + LONG).unwrap();
        assert_eq!(receiver.recv::<String>().unwrap(), "text");
        assert_eq!(receiver.try_recv::<u64>().unwrap(), 2);
        assert_eq!(receiver.recv_timeout::<Vec<u64>>(LONG).unwrap(), vec![3; 20_000]);
        assert_eq!(receiver.recv_deadline::<(u64, Option<char>)>(Instant::now() + LONG).unwrap(), (4, Some('d')));
        assert!(matches!(receiver.try_recv::<u64>(), Err(RecvError::Empty)));
        let late = lasting(SHORT, "recv_timeout", || receiver.recv_timeout::<u64>(SHORT));
        assert!(matches!(late, Err(RecvError::TimedOut)));
        let late = lasting(SHORT, "recv_deadline", || receiver.recv_deadline::<u64>(Instant::now() + SHORT));
        assert!(matches!(late, Err(RecvError::TimedOut)));
        fill_up(&sender);
        assert!(matches!(sender.try_send(&1), Err(SendError::Full)));
        let late = lasting(SHORT, "send_timeout", || sender.send_timeout(&1, SHORT));
        assert!(matches!(late, Err(SendError::TimedOut)));
        let late = lasting(SHORT, "send_deadline", || sender.send_deadline(&1, Instant::now() + SHORT));
        assert!(matches!(late, Err(SendError::TimedOut)));
        drop(sender);
        while receiver.recv_bytes().is_ok() {}
        assert!(matches!(receiver.recv::<u64>(), Err(RecvError::Disconnected)));
        let (receiver, sender) = small();
        drop(receiver);
        assert!(matches!(sender.send(&1), Err(SendError::Disconnected)));
    }

    #[test]
    fn a_message_that_cannot_be_decoded_is_consumed_and_no_other() {
        let _guard = guard();
        let (receiver, sender) = small();
        for wrong in [&[5, b'a'][..], &[1, b'a', b'b'], b"", &[0; 2 * SMALL]] {
            sender.send_bytes(wrong).unwrap();
            sender.send("right").unwrap();
            let what = receiver.recv::<String>();
            assert!(matches!(what, Err(RecvError::Decode(_))), "{what:?}");
            assert_eq!(receiver.recv::<String>().unwrap(), "right");
        }
    }

    #[test]
    fn a_value_that_cannot_be_encoded_is_not_sent_at_all() {
        struct Refuses;
        impl serde::Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("no"))
            }
        }
        let _guard = guard();
        let (receiver, sender) = small();
        let what = sender.send(&("starts well", Refuses));
        assert!(matches!(what, Err(SendError::Encode(_))), "{what:?}");
        assert_eq!(sender.fill(), 0);
        sender.send(&5_u8).unwrap();
        assert_eq!(receiver.recv::<u8>().unwrap(), 5);
    }
}

// --- the descriptor ----------------------------------------------------------------------------------------

#[test]
fn the_descriptor_is_readable_exactly_while_something_can_be_received() {
    let _guard = guard();
    for &(name, waits, recv) in RECV_FORMS {
        let (receiver, sender) = small();
        let number = receiver.as_fd().as_raw_fd();
        assert!(!readable(&receiver), "{name}: fresh");
        for (i, len) in LENGTHS.into_iter().enumerate() {
            for count in [1, 2] {
                for _ in 0..count {
                    sender.send_bytes(&message(i, len)).unwrap();
                }
                for _ in 0..count {
                    assert!(readable(&receiver) && readable(&receiver), "{name}: {len} bytes to receive");
                    assert!(recv(&receiver, LONG).unwrap() == message(i, len), "{name}");
                }
                assert!(!readable(&receiver), "{name}: nothing left after {count} times {len} bytes");
                if waits != Ever {
                    recv(&receiver, Duration::from_millis(1)).unwrap_err();
                    assert!(!readable(&receiver), "{name}: in vain");
                }
            }
        }
        assert_eq!(receiver.as_fd().as_raw_fd(), number);
        drop(sender);
        for _ in 0..3 {
            assert!(readable(&receiver), "{name}: end of file");
            assert!(matches!(recv(&receiver, LONG), Err(RecvError::Disconnected)));
        }
    }
}

#[test]
fn the_descriptor_is_right_when_it_is_first_asked_for_after_traffic() {
    let _guard = guard();
    for left in [0, 1, 3] {
        let (receiver, sender) = small();
        for i in 0..2000 {
            sender.send_bytes(&message(i, 300)).unwrap();
            receiver.recv_bytes().unwrap();
        }
        // Waits, which ring, in vain and not.
        assert!(!receiver.poll(Some(SHORT)).unwrap());
        blocked(true, || receiver.recv_bytes(), || sender.send_bytes(b"rung for").unwrap()).unwrap();
        (0..left).for_each(|i| sender.send_bytes(&message(i, 10)).unwrap());
        assert_eq!(readable(&receiver), left > 0, "{left} messages left");
        for i in 0..left {
            assert!(readable(&receiver), "message {i} of {left}");
            receiver.recv_bytes().unwrap();
        }
        assert!(!readable(&receiver), "all of {left} taken");
        sender.send_bytes(b"more").unwrap();
        assert!(readable(&receiver));
    }
}

#[test]
fn a_senders_descriptor_is_readable_once_the_receivers_are_gone() {
    let _guard = guard();
    let (receiver, sender) = small();
    let other = attached(receiver.clone());
    assert!(!readable(&sender));
    sender.send_bytes(b"unread").unwrap();
    receiver.recv_bytes().unwrap();
    fill_up(&sender);
    assert!(matches!(sender.send_bytes_timeout(b"", SHORT), Err(SendError::TimedOut)));
    receiver.recv_bytes().unwrap();
    assert!(!sender.is_disconnected() && !readable(&sender));
    drop(receiver);
    assert!(!sender.is_disconnected() && !readable(&sender), "one is left");
    drop(other);
    assert!(readable(&sender) && sender.is_disconnected() && readable(&sender));
}
