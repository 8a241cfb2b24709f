//! A pipe for many senders and many receivers: who gets room, where senders that need much of it compete with others that need little.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringpipe::mpmc::{Receiver, Sender};
use ringpipe::{Builder, SendError};
use support::{Child, Shared, alone, fork_copy, median, nanos, watchdog};

const SMALL: usize = 64 << 10;
/// Words that all processes share: whether it is over, and messages of the short and of the large kind received.
const OVER: usize = 0;
const SHORT: usize = 1;
const LARGE: usize = 2;

/// Senders of 60 bytes that never pause, in processes of their own, and a receiver, which takes its time over each message: over short ones and over
/// others.
fn crowd(shared: &Shared, senders: usize, pauses: [Duration; 2]) -> (Vec<Child>, (Receiver, Sender)) {
    let mut ends = Builder::new().capacity(SMALL).mpmc().unwrap();
    let mut children = Vec::new();
    for n in 0..senders {
        let child;
        (child, ends) = fork_copy(ends, |(receiver, sender)| {
            drop(receiver);
            while shared.get(OVER) == 0 {
                sender.send_bytes(&[n as u8; 60]).unwrap();
            }
            0
        });
        children.push(child);
    }
    let child;
    (child, ends) = fork_copy(ends, |(receiver, sender)| {
        drop(sender);
        for message in receiver.iter() {
            let message = message.unwrap();
            assert!(message.iter().all(|&byte| byte == message[0]));
            let large = message.len() != 60;
            shared.word(if large { LARGE } else { SHORT }).fetch_add(1, Ordering::SeqCst);
            let pause = pauses[usize::from(large)];
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        0
    });
    children.push(child);
    (children, ends)
}

fn end(shared: &Shared, children: &[Child], ends: (Receiver, Sender)) {
    shared.set(OVER, 1);
    drop(ends);
    children.iter().for_each(Child::succeeds);
}

/// The longest wait of so many large messages.
fn longest(sender: &Sender, len: usize, count: usize, patience: Duration) -> Duration {
    let message = vec![7; len];
    let sent = (0..count).map(|_| {
        let start = Instant::now();
        sender.send_bytes_timeout(&message, patience).unwrap();
        start.elapsed()
    });
    sent.max().unwrap()
}

#[test]
fn large_messages_get_room_beside_senders_of_short_ones_that_never_pause() {
    const COUNT: usize = 20;
    let (_alone, _watchdog) = (alone(), watchdog(120));
    // Just below what is large for this ring, above it, as large as a record can be, and long.
    for len in [960, 1_100, 16_000, 200_000] {
        let shared = Shared::new();
        let (children, ends) = crowd(&shared, 3, [Duration::ZERO; 2]);
        shared.await_at_least(SHORT, 2_000);
        let longest = longest(&ends.1, len, COUNT, Duration::from_secs(5));
        end(&shared, &children, ends);
        println!("{len} bytes: {longest:?} at most, beside {} short messages", shared.get(SHORT));
        assert!(longest < Duration::from_secs(1), "{len} bytes waited for {longest:?}");
        assert_eq!(shared.get(LARGE), COUNT as u64);
        assert!(shared.get(SHORT) > 1_000, "the others starve");
    }
}

#[test]
fn large_messages_get_room_where_the_receiver_is_slow() {
    let (_alone, _watchdog) = (alone(), watchdog(120));
    let shared = Shared::new();
    let (children, ends) = crowd(&shared, 3, [Duration::from_micros(500); 2]);
    shared.await_at_least(SHORT, 1_500);
    // A quarter of the ring is some 250 messages, and as many may be before the end of it: 250 ms to wait for at the least.
    let longest = longest(&ends.1, 16_000, 2, Duration::from_secs(20));
    end(&shared, &children, ends);
    println!("{longest:?} at most, beside {} short messages", shared.get(SHORT));
    assert!(longest < Duration::from_secs(3), "waited for {longest:?}");
}

#[test]
fn a_large_message_that_waits_for_a_guard_does_not_stop_short_ones() {
    let (_alone, _watchdog) = (alone(), watchdog(60));
    let (receiver, sender) = Builder::new().capacity(SMALL).mpmc().unwrap();
    // Three quarters and more are in use, and the first message is held. The end of the ring is far, or the rest up to there would be given to the
    // large message.
    for n in 0..1_400 {
        sender.send_bytes(&[1; 60]).unwrap();
        if n < 600 {
            receiver.recv_bytes().unwrap();
        }
    }
    let held = receiver.recv_guard().unwrap();
    let large = {
        let sender = sender.clone();
        std::thread::spawn(move || sender.send_bytes_timeout(&[2; 16_000], Duration::from_secs(20)))
    };
    let mut buf = [0; 64];
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    while start.elapsed() < Duration::from_millis(600) {
        let before = Instant::now();
        // As long as there is some: what is received behind the guard gives none back.
        match sender.send_bytes_timeout(&[3; 60], Duration::from_millis(500)) {
            Ok(()) => longest = longest.max(before.elapsed()),
            Err(e) => panic!("a short message got no room: {e}"),
        }
        receiver.recv_bytes_into(&mut buf, 0).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("{longest:?} at most");
    assert!(longest < Duration::from_millis(200), "a short message waited for {longest:?}");
    drop(held);
    let drain = std::thread::spawn(move || receiver.iter().map(|message| message.unwrap().len()).max());
    large.join().unwrap().unwrap();
    drop(sender);
    assert_eq!(drain.join().unwrap(), Some(16_000));
}

#[test]
fn a_killed_sender_of_a_large_message_delays_the_others_for_a_moment_only() {
    let (_alone, _watchdog) = (alone(), watchdog(120));
    let shared = Shared::new();
    let (children, mut ends) = crowd(&shared, 2, [Duration::from_micros(200); 2]);
    for round in 0..if cfg!(debug_assertions) { 10 } else { 30 } {
        let victim;
        (victim, ends) = fork_copy(ends, |(receiver, sender)| {
            drop(receiver);
            let _ = sender.send_bytes(&[9; 16_000]);
            0
        });
        // It waits, and takes precedence after some 9 ms.
        std::thread::sleep(Duration::from_millis(8 + round % 10));
        victim.kill();
        let (before, start) = (shared.get(SHORT), Instant::now());
        // More than the ring holds, so that the others have got room meanwhile. Its receiver takes a third of a second for that.
        while shared.get(SHORT) < before + 1_200 {
            assert!(start.elapsed() < Duration::from_secs(2), "nothing is sent any more");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    end(&shared, &children, ends);
}

#[test]
fn who_gives_up_waiting_for_much_room_holds_nobody_up() {
    let (_alone, _watchdog) = (alone(), watchdog(60));
    let (receiver, sender) = Builder::new().capacity(SMALL).mpmc().unwrap();
    while sender.try_send_bytes(&[1; 60]).is_ok() {}
    for _ in 0..20 {
        let large = {
            let sender = sender.clone();
            std::thread::spawn(move || sender.send_bytes_timeout(&[2; 16_000], Duration::from_millis(25)))
        };
        // Room is given back, so that it takes precedence; not enough.
        for _ in 0..8 {
            assert_eq!(receiver.recv_bytes().unwrap().len(), 60);
            std::thread::sleep(Duration::from_millis(3));
        }
        assert!(matches!(large.join().unwrap(), Err(SendError::TimedOut)));
        for n in 0..8 {
            sender.try_send_bytes(&[1; 60]).unwrap_or_else(|e| panic!("the {n}th of 8 that fit: {e}"));
        }
    }
}

#[test]
fn senders_of_large_messages_that_take_turns_do_not_keep_short_ones_out() {
    const LARGE_SENDERS: usize = 4;
    let (_alone, _watchdog) = (alone(), watchdog(60));
    let shared = Shared::new();
    let (mut children, mut ends) = crowd(&shared, 1, [Duration::from_millis(1), Duration::from_millis(10)]);
    for _ in 0..LARGE_SENDERS {
        let child;
        (child, ends) = fork_copy(ends, |(receiver, sender)| {
            drop(receiver);
            while shared.get(OVER) == 0 {
                sender.send_bytes(&[7; 12_000]).unwrap();
            }
            0
        });
        children.push(child);
    }
    // It takes its time to get to messages that were sent since all are there: a ring full of short ones is before them.
    shared.await_at_least(LARGE, 10);
    let (mut longest, mut last) = (Duration::ZERO, (shared.get(SHORT), Instant::now()));
    let (start, large) = (Instant::now(), shared.get(LARGE));
    while start.elapsed() < Duration::from_secs(4) {
        if shared.get(SHORT) != last.0 {
            last = (shared.get(SHORT), Instant::now());
        }
        longest = longest.max(last.1.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    let large = shared.get(LARGE) - large;
    end(&shared, &children, ends);
    println!("{longest:?} at most without a short message; {large} large ones");
    assert!(longest < Duration::from_secs(2), "no short message for {longest:?}");
    assert!(large > 10, "{large} large messages");
}

/// Processor time of this process.
fn processor_time() -> Duration {
    // SAFETY: plain data, which the call fills in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage
    };
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Duration::from_micros(micros(usage.ru_utime) + micros(usage.ru_stime))
}

#[test]
fn many_threads_that_wait_for_much_room_cost_next_to_nothing() {
    const THREADS: usize = 64;
    let (_alone, _watchdog) = (alone(), watchdog(60));
    let over = AtomicBool::new(false);
    let (receiver, sender) = Builder::new().capacity(SMALL).mpmc().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (sender, over) = (sender.clone(), &over);
            scope.spawn(move || while !over.load(Ordering::Relaxed) && sender.send_bytes(&[1; 12_000]).is_ok() {});
        }
        std::thread::sleep(Duration::from_millis(300));
        let (start, before) = (Instant::now(), processor_time());
        while start.elapsed() < Duration::from_secs(2) {
            receiver.recv_bytes().unwrap();
            std::thread::sleep(Duration::from_millis(40));
        }
        let share = (processor_time() - before).as_secs_f64() / start.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        drop(receiver);
        println!("{THREADS} senders that wait: {:.1} % of a processor", 100.0 * share);
        assert!(share < 0.25, "{share} of a processor");
    });
}

#[test]
fn many_threads_that_wait_behind_a_guard_cost_little() {
    const THREADS: usize = 64;
    let (_alone, _watchdog) = (alone(), watchdog(60));
    let (receiver, sender) = Builder::new().capacity(SMALL).mpmc().unwrap();
    let guard = sender.reserve(10).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let receiver = receiver.clone();
            scope.spawn(move || receiver.recv_bytes().unwrap());
        }
        std::thread::sleep(Duration::from_millis(300));
        let (start, before) = (Instant::now(), processor_time());
        std::thread::sleep(Duration::from_secs(2));
        let share = (processor_time() - before).as_secs_f64() / start.elapsed().as_secs_f64();
        drop(guard);
        (0..THREADS).for_each(|_| sender.send_bytes(b"go").unwrap());
        println!("{THREADS} receivers behind a guard: {:.1} % of a processor", 100.0 * share);
        // Each looks every slice whether the guard's holder is alive.
        assert!(share < 0.5, "{share} of a processor");
    });
}

/// Room for little comes, and all who need more sleep in other processes than the one of the sender that watches the bell.
#[test]
fn who_needs_little_is_woken_though_it_is_of_the_process_that_leads() {
    let (_alone, _watchdog) = (alone(), watchdog(60));
    let mut took = Vec::new();
    for _ in 0..3 {
        let shared = Shared::new();
        let ends = Builder::new().capacity(SMALL).mpmc().unwrap();
        while ends.1.try_send_bytes(&[1; 60]).is_ok() {}
        let (leading, mut ends) = fork_copy(ends, |(receiver, sender)| {
            drop(receiver);
            let more = sender.clone();
            let leader = std::thread::spawn(move || more.send_bytes(&[2; 1000]));
            std::thread::sleep(Duration::from_millis(150));
            sender.send_bytes(&[3; 60]).unwrap();
            shared.set(0, nanos());
            leader.join().unwrap().is_err().into()
        });
        let mut children = vec![leading];
        std::thread::sleep(Duration::from_millis(60));
        for _ in 0..2 {
            let child;
            (child, ends) = fork_copy(ends, |(receiver, sender)| {
                drop(receiver);
                sender.send_bytes(&[4; 1000]).is_err().into()
            });
            children.push(child);
        }
        std::thread::sleep(Duration::from_millis(250));
        let start = nanos();
        for _ in 0..12 {
            ends.0.recv_bytes().unwrap();
            std::thread::sleep(Duration::from_millis(8));
        }
        shared.await_at_least(0, 1);
        took.push(shared.get(0).saturating_sub(start) / 1_000_000);
        drop(ends.1);
        ends.0.iter().for_each(drop);
        children.iter().for_each(Child::succeeds);
    }
    println!("room for little was got after {took:?} ms");
    assert!(median(&took) < 200, "{took:?} ms");
}
