//! A pipe for many senders and many receivers: who is woken, how soon, by how much and how fairly, and that processes come and go.
//!
//! `RINGPIPE_FAIR_SECONDS=60 cargo test --release --test mpmc_waking fairness -- --nocapture` is the long form of that test.

mod support;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringpipe::mpmc::{Receiver, Sender};
use ringpipe::{AttachError, End, RecvError, RecvIntoError, SendError};
use support::many::{SMALL, attached, fill_up, receiving, sending, small};
use support::{
    Call, Child, Random, Shared, await_call, call_number, doing, eventually, fork, guard, guard_for, is_alive,
    may_take, median, nanos, pin, poll_fd, skip, sleeps,
};

/// Nothing takes so long unless somebody is stuck.
const PATIENCE: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(30);

// --- one message, many who wait ------------------------------------------------------------------------

/// A child that receives until end of file. Each receive adds one to the first word, after its time went to the second.
fn sleeper(ends: (Receiver, Sender), shared: &Shared) -> (Child, (Receiver, Sender)) {
    receiving(ends, |receiver| {
        for message in receiver.iter() {
            message.unwrap();
            shared.set(1, nanos());
            shared.word(0).fetch_add(1, Ordering::SeqCst);
        }
        0
    })
}

/// Waits until all of them sleep for long: one watches the bell, and none has moved for longer than a slice.
fn await_deep_sleep(children: &[Child]) {
    let count = || children.iter().map(|child| sleeps(child.pid)).collect::<Vec<_>>();
    let mut before = count();
    eventually("all are asleep", || {
        std::thread::sleep(Duration::from_millis(12));
        let now = count();
        let watched = children.iter().any(|child| {
            let call = doing(child.pid);
            call == call_number(Call::Park) || call == "unknown"
        });
        std::mem::replace(&mut before, now.clone()) == now && watched
    });
}

#[test]
fn one_message_wakes_two_or_three_of_six_who_sleep_and_one_of_them_gets_it_soon() {
    const SLEEPERS: usize = 6;
    const MESSAGES: u64 = 40;
    let _guard = guard();
    let shared = Shared::new();
    let mut ends = small();
    let mut children = Vec::new();
    for _ in 0..SLEEPERS {
        let child;
        (child, ends) = sleeper(ends, &shared);
        children.push(child);
    }
    let (receiver, sender) = ends;
    let (mut woken, mut took) = (Vec::new(), Vec::new());
    for n in 0..MESSAGES {
        await_deep_sleep(&children);
        let before: Vec<u64> = children.iter().map(|child| sleeps(child.pid)).collect();
        let start = nanos();
        sender.send_bytes(b"wake up").unwrap();
        shared.await_at_least(0, n + 1);
        took.push(shared.get(1) - start);
        // Those that were woken for nothing are about to sleep again.
        std::thread::sleep(Duration::from_millis(2));
        woken.push(children.iter().zip(before).filter(|(child, before)| sleeps(child.pid) > *before).count());
    }
    drop((receiver, sender));
    children.iter().for_each(Child::succeeds);
    println!("woken: {woken:?}; received after {} µs", median(&took) / 1000);
    assert!(median(&woken) <= 3, "{woken:?}");
    assert!(median(&took) < 5_000_000, "{took:?}");
    assert_eq!(shared.get(0), MESSAGES, "each was received once");
}

/// Each in turn is the one that does not answer, so that it is also the one that watches, and the one that was to be woken.
#[test]
fn a_message_is_received_within_some_milliseconds_though_any_one_of_those_who_sleep_is_killed() {
    const SLEEPERS: usize = 6;
    let _guard = guard_for(120);
    for stopped_first in [false, true] {
        let shared = Shared::new();
        let mut ends = small();
        let mut children = Vec::new();
        for _ in 0..SLEEPERS {
            let child;
            (child, ends) = sleeper(ends, &shared);
            children.push(child);
        }
        let mut took = Vec::new();
        let mut lost = 0;
        for n in 0..4 * SLEEPERS {
            await_deep_sleep(&children);
            let victim = &children[n % SLEEPERS];
            if stopped_first {
                victim.stop();
            }
            let start = nanos();
            ends.1.send_bytes(b"wake up").unwrap();
            victim.kill();
            victim.wait();
            let end = Instant::now() + 3 * MOMENT;
            while shared.get(0) < (n + 1 - lost) as u64 && Instant::now() < end + PATIENCE {
                // The killed one may have taken it, if it ran. It had not if it was stopped.
                if !stopped_first && ends.0.is_empty() && Instant::now() > end {
                    lost += 1;
                    break;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            took.push(shared.get(1).saturating_sub(start));
            (children[n % SLEEPERS], ends) = sleeper(ends, &shared);
        }
        drop(ends);
        children.iter().for_each(Child::succeeds);
        let worst = *took.iter().max().unwrap();
        println!("one killed: received after {} µs, at worst {} µs, {lost} lost", median(&took) / 1000, worst / 1000);
        assert_eq!(shared.get(0), (4 * SLEEPERS - lost) as u64);
        assert!(median(&took) < 5_000_000, "{took:?}");
        // Not the second after which anybody would look by himself.
        assert!(worst < 300_000_000, "{took:?}");
        assert!(lost <= 2 * SLEEPERS, "{lost} lost");
    }
}

/// The one that watches the bell is of the process that is killed, and so is whichever would be woken first.
#[test]
fn a_message_is_received_within_some_milliseconds_though_a_whole_process_of_sleepers_is_killed() {
    const ROUNDS: u64 = 6;
    let _guard = guard();
    let shared = Shared::new();
    let mut ends = small();
    let (mut took, mut received) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let (crowd, single, hog);
        (crowd, ends) = receiving(ends, |receiver| {
            pin(0);
            let parameter = libc::sched_param { sched_priority: 0 };
            // SAFETY: the parameter is valid, and the call needs no right.
            assert_eq!(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameter) }, 0);
            let receive = || receiver.iter().map(Result::unwrap).for_each(drop);
            std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(receive))));
            0
        });
        // They sleep before the other does, so they lead, and come first where nobody looks whose threads they are.
        std::thread::sleep(2 * MOMENT);
        (single, ends) = sleeper(ends, &shared);
        std::thread::sleep(2 * MOMENT);
        // From now on the crowd does not run when it is woken.
        // (The copies of the ends in there are never dropped, which would wake all.)
        hog = fork(|| {
            pin(0);
            loop {
                std::hint::spin_loop();
            }
        });
        std::thread::sleep(MOMENT / 3);
        let start = nanos();
        ends.1.send_bytes(b"wake up").unwrap();
        std::thread::sleep(Duration::from_millis(1));
        crowd.kill();
        // It is gone with what it had taken, if it ran nevertheless.
        if crowd.wait().was_killed() && !(ends.0.is_empty() && shared.get(0) == received) {
            received += 1;
            shared.await_at_least(0, received);
            // Two whose numbers differ by a multiple of 32 cannot be told apart.
            if single.pid % 32 != crowd.pid % 32 {
                took.push((shared.get(1) - start) / 1000);
            }
        }
        [&single, &hog].iter().for_each(|child| child.kill());
        [single, hog].iter().for_each(|child| assert!(child.wait().was_killed()));
    }
    println!("a process of sleepers is killed: received after {took:?} µs");
    assert!(!took.is_empty(), "it was always taken before the kill");
    assert!(took.iter().all(|&took| took < 300_000), "{took:?}");
}

#[test]
fn receivers_that_sleep_wake_up_about_once_a_second() {
    const SECONDS: u64 = 3;
    let _guard = guard();
    let shared = Shared::new();
    let mut ends = small();
    let mut children = Vec::new();
    for _ in 0..3 {
        let child;
        (child, ends) = sleeper(ends, &shared);
        children.push(child);
    }
    let (single, single_ends) = sleeper(small(), &shared);
    children.push(single);
    await_deep_sleep(&children);
    let before: Vec<u64> = children.iter().map(|child| sleeps(child.pid)).collect();
    std::thread::sleep(Duration::from_secs(SECONDS));
    let woken: Vec<u64> = children.iter().zip(before).map(|(child, before)| sleeps(child.pid) - before).collect();
    println!("in {SECONDS} s: {woken:?}");
    assert!(woken.iter().all(|&woken| woken <= SECONDS + 2), "in {SECONDS} s: {woken:?}");
    drop((ends, single_ends));
    children.iter().for_each(Child::succeeds);
}

extern "C" fn nothing(_: libc::c_int) {}

/// Has a handler that does nothing, and does not restart calls.
fn handle_signals() {
    // SAFETY: zeros are valid for the structure, and the handler only returns.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
}

/// Of each two, one watches the bell, and the other sleeps until it is woken.
#[test]
fn a_signal_ends_an_interruptible_call_soon_and_no_other() {
    let _guard = guard();
    let (receiver, sender) = &small();
    for full in [false, true] {
        if full {
            fill_up(sender);
        }
        let call = |interruptible: bool, time: Duration| match (full, interruptible) {
            (false, true) => {
                let received = receiver.recv_bytes_into_interruptible(&mut [], 0, time);
                matches!(received, Err(RecvIntoError::Recv(RecvError::TimedOut)))
            }
            (false, false) => matches!(receiver.recv_bytes_timeout(time), Err(RecvError::TimedOut)),
            (true, true) => matches!(sender.send_bytes_interruptible(b"more", time), Err(SendError::TimedOut)),
            (true, false) => matches!(sender.send_bytes_timeout(b"more", time), Err(SendError::TimedOut)),
        };
        let children = [(true, PATIENCE), (true, PATIENCE), (false, 10 * MOMENT)].map(|(interruptible, time)| {
            fork(move || {
                handle_signals();
                let begin = Instant::now();
                let timed_out = call(interruptible, time);
                i32::from(!timed_out || (begin.elapsed() < time) != interruptible)
            })
        });
        await_deep_sleep(&children);
        children.iter().for_each(|child| child.signal(libc::SIGUSR1));
        children.iter().for_each(Child::succeeds);
    }
}

#[test]
fn a_burst_of_messages_keeps_all_sleepers_busy() {
    const SLEEPERS: usize = 4;
    let _guard = guard();
    let shared = Shared::new();
    let mut ends = small();
    let mut children = Vec::new();
    for n in 0..SLEEPERS {
        let child;
        let shared = &shared;
        // Each message takes its receiver a while, asleep: so all of them must be woken, or it takes as long as one would.
        (child, ends) = receiving(ends, |receiver| {
            for message in receiver.iter() {
                message.unwrap();
                shared.word(10 + n).fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                shared.word(0).fetch_add(1, Ordering::SeqCst);
            }
            0
        });
        children.push(child);
    }
    for round in 1..=5 {
        await_deep_sleep(&children);
        let start = Instant::now();
        for _ in 0..2 * SLEEPERS {
            ends.1.send_bytes(b"work").unwrap();
        }
        let all = (round * 2 * SLEEPERS) as u64;
        while shared.get(0) < all {
            let late = start.elapsed() > Duration::from_secs(1);
            assert!(!late, "{} of {all} done, {} wait: {:?}", shared.get(0), ends.0.len(), ends.0);
            std::thread::sleep(Duration::from_micros(200));
        }
        let took = start.elapsed();
        assert!(took < Duration::from_millis(20) * 2 * SLEEPERS as u32 * 3 / 4, "not side by side: {took:?}");
    }
    drop(ends);
    children.iter().for_each(Child::succeeds);
    let got: Vec<u64> = (0..SLEEPERS).map(|n| shared.get(10 + n)).collect();
    assert!(got.iter().all(|&got| got >= 5), "{got:?}");
}

// --- wake-ups that are not used --------------------------------------------------------------------------

/// Words of [`Shared`]: how many took nothing, and when the message was received.
const DECLINED: usize = 0;
const GOT: usize = 1;

/// What a message may take by way of several who were woken, on a machine that does other things as well: the median of several.
const SOON: u64 = 25_000_000;

/// Waits until the process has been asleep, beside the one that watches the bell, for longer than a slice; or has ended.
fn await_long_sleep(child: &Child) {
    let futex = call_number(Call::Futex);
    eventually("it is asleep for long", || {
        let before = is_alive(child.pid).then(|| sleeps(child.pid));
        std::thread::sleep(Duration::from_millis(12));
        let call = doing(child.pid);
        let now = is_alive(child.pid).then(|| sleeps(child.pid));
        now.is_none() || now == before && (call == futex || call == "unknown")
    });
}

/// A pipe on which nobody answers but those who sleep on the futex, who are woken in the order in which they fell asleep: the one that watches the bell
/// for them is stopped.
fn with_a_stopped_watcher() -> (Child, (Receiver, Sender)) {
    let (watcher, ends) = receiving(small(), |receiver| i32::from(receiver.recv_bytes().is_err()));
    await_call(watcher.pid, &[Call::Park]);
    watcher.stop();
    (watcher, ends)
}

/// A child that receives one message, and says when.
fn taker(ends: (Receiver, Sender), shared: &Shared) -> (Child, (Receiver, Sender)) {
    let (child, ends) = receiving(ends, |receiver| {
        let got = receiver.recv_bytes_timeout(PATIENCE);
        shared.set(GOT, nanos());
        i32::from(got.is_err())
    });
    await_long_sleep(&child);
    (child, ends)
}

/// Two who are woken first take nothing, and say so if they were. Returns the nanoseconds that the message took to the third; none if it came first.
fn passed_on(declines: impl Fn(&Receiver) -> bool) -> Option<u64> {
    const FIRST: usize = 2;
    let shared = Shared::new();
    let (_watcher, mut ends) = with_a_stopped_watcher();
    let mut first = Vec::new();
    for _ in 0..FIRST {
        let child;
        (child, ends) = receiving(ends, |receiver| {
            let declined = declines(&receiver);
            shared.word(DECLINED).fetch_add(declined.into(), Ordering::SeqCst);
            i32::from(!declined)
        });
        await_long_sleep(&child);
        first.push(child);
    }
    let (last, (_receiver, sender)) = taker(ends, &shared);
    let start = nanos();
    sender.send_bytes(b"for the last").unwrap();
    last.succeeds();
    // They say so after they have passed it on. If the machine was busy, they had fallen asleep anew, behind the last.
    let end = Instant::now() + 3 * MOMENT;
    while shared.get(DECLINED) < FIRST as u64 && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(200));
    }
    (shared.get(DECLINED) == FIRST as u64).then(|| shared.get(GOT) - start)
}

#[test]
fn whoever_is_woken_by_a_message_and_does_not_take_it_wakes_another() {
    const ROUNDS: usize = 9;
    let _guard = guard();
    type Declines = fn(&Receiver) -> bool;
    let ways: [(&str, Declines); 3] = [
        ("poll", |receiver| receiver.poll(None).unwrap()),
        ("poll with a time-out", |receiver| receiver.poll(Some(PATIENCE)).unwrap()),
        ("a limit on the length", |receiver| matches!(receiver.recv_bytes_max(5), Err(RecvError::TooLong { .. }))),
    ];
    for (way, declines) in ways {
        let took: Vec<u64> = (0..ROUNDS).filter_map(|_| passed_on(declines)).collect();
        assert!(took.len() > ROUNDS / 3, "{way}: hardly anybody was woken first, so nothing was shown: {took:?}");
        println!("{way}: passed on and received after {} µs", median(&took) / 1000);
        assert!(median(&took) < SOON, "{way}: {took:?}");
        // Not the second after which the last would look by itself.
        assert!(took.iter().all(|&took| took < 300_000_000), "{way}: {took:?}");
    }
}

/// Woken at the moment at which its time is up, a receiver takes the message or leaves the wake-up to another.
#[test]
fn a_message_is_received_soon_though_the_one_who_is_woken_for_it_times_out_at_that_moment() {
    const ROUNDS: u64 = 40;
    let _guard = guard();
    let (mut timed_out, mut took) = (0, Vec::new());
    for round in 0..ROUNDS {
        let shared = Shared::new();
        let (_watcher, ends) = with_a_stopped_watcher();
        let deadline = Instant::now() + Duration::from_millis(120);
        let (first, ends) = receiving(ends, |receiver| match receiver.recv_bytes_deadline(deadline) {
            Ok(_) => {
                shared.set(GOT, nanos());
                0
            }
            Err(e) => {
                shared.set(DECLINED, 1);
                i32::from(!matches!(e, RecvError::TimedOut))
            }
        });
        await_long_sleep(&first);
        let (_last, (_receiver, sender)) = taker(ends, &shared);
        // From well before it times out to after it: the kernel takes its time, and how much is not known.
        let moment = deadline - Duration::from_micros(50) + Duration::from_micros(200 * round / ROUNDS);
        if Instant::now() > moment {
            continue;
        }
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        let start = nanos();
        sender.send_bytes(b"for either").unwrap();
        first.succeeds();
        shared.await_at_least(GOT, 1);
        timed_out += shared.get(DECLINED);
        took.push(shared.get(GOT) - start);
    }
    println!("{timed_out} of {} timed out; received after {} µs", took.len(), median(&took) / 1000);
    assert!(took.len() as u64 > ROUNDS / 3, "hardly ever was there time for it, so nothing was shown");
    assert!(took.iter().all(|&took| took < 300_000_000), "{took:?}");
}

// --- descriptors ----------------------------------------------------------------------------------------------

#[test]
fn all_who_watch_the_descriptor_see_a_message_and_one_gets_it() {
    const WATCHERS: usize = 4;
    const ROUNDS: u64 = 50;
    const SEEN: usize = 0;
    const GOT: usize = 1;
    const DONE: usize = 2;
    const ROUND: usize = 3;
    const SILENT: usize = 4;
    let _guard = guard();
    let shared = Shared::new();
    let mut ends = small();
    let mut children = Vec::new();
    for _ in 0..WATCHERS {
        let child;
        (child, ends) = receiving(ends, |receiver| {
            for round in 1..=ROUNDS {
                assert!(support::epoll(receiver.as_fd(), PATIENCE), "message {round} was missed");
                // Level-triggered: it stays readable, also for who asks anew.
                assert!(support::epoll(receiver.as_fd(), Duration::ZERO));
                assert!(poll_fd(receiver.as_fd(), libc::POLLIN, Duration::ZERO) & libc::POLLIN != 0);
                shared.word(SEEN).fetch_add(1, Ordering::SeqCst);
                shared.await_at_least(SEEN, round * WATCHERS as u64);
                match receiver.try_recv_bytes() {
                    Ok(message) => {
                        assert_eq!(message, round.to_le_bytes());
                        shared.word(GOT).fetch_add(1, Ordering::SeqCst);
                    }
                    Err(e) => assert!(matches!(e, RecvError::Empty), "{e}"),
                }
                shared.word(DONE).fetch_add(1, Ordering::SeqCst);
                shared.await_at_least(DONE, round * WATCHERS as u64);
                assert!(!support::epoll(receiver.as_fd(), Duration::ZERO), "round {round}: silent once it is empty");
                shared.word(SILENT).fetch_add(1, Ordering::SeqCst);
                shared.await_at_least(ROUND, round);
            }
            assert!(support::epoll(receiver.as_fd(), PATIENCE), "end of file was missed");
            i32::from(!matches!(receiver.try_recv_bytes(), Err(RecvError::Disconnected)))
        });
        children.push(child);
    }
    let (receiver, sender) = ends;
    drop(receiver);
    for round in 1..=ROUNDS {
        if round % 2 == 0 {
            children.iter().for_each(|child| await_call(child.pid, &[Call::Epoll]));
        }
        sender.send_bytes(&round.to_le_bytes()).unwrap();
        shared.await_at_least(SILENT, round * WATCHERS as u64);
        assert_eq!(shared.get(GOT), round);
        shared.set(ROUND, round);
    }
    drop(sender);
    children.iter().for_each(Child::succeeds);
}

#[test]
fn event_loops_of_several_processes_miss_nothing_while_others_block() {
    const ROUNDS: u64 = 2_000;
    let _guard = guard();
    let shared = Shared::new();
    let mut ends = small();
    let mut children = Vec::new();
    for n in 0..4 {
        let child;
        let shared = &shared;
        (child, ends) = receiving(ends, |receiver| {
            loop {
                let got = match n {
                    0 => receiver.recv_bytes(),
                    _ => {
                        assert!(poll_fd(receiver.as_fd(), libc::POLLIN, PATIENCE) != 0, "missed");
                        receiver.try_recv_bytes()
                    }
                };
                match got {
                    Ok(_) => drop(shared.word(0).fetch_add(1, Ordering::SeqCst)),
                    Err(RecvError::Empty) => drop(shared.word(1).fetch_add(1, Ordering::SeqCst)),
                    Err(e) => return i32::from(!matches!(e, RecvError::Disconnected)),
                }
            }
        });
        children.push(child);
    }
    let (receiver, sender) = ends;
    let mut random = Random::new(1);
    for round in 0..ROUNDS {
        sender.send_bytes(&vec![0; random.below(300) as usize]).unwrap();
        if random.below(20) == 0 {
            shared.await_at_least(0, round + 1);
            std::thread::sleep(Duration::from_micros(random.below(7_000)));
        }
    }
    shared.await_at_least(0, ROUNDS);
    assert_eq!(shared.get(0), ROUNDS);
    assert!(receiver.is_empty());
    let needless = shared.get(1);
    std::thread::sleep(Duration::from_millis(100));
    let idle = shared.get(1) - needless;
    println!("{needless} needless looks, {idle} while idle");
    assert!(idle < 20, "{idle} looks while there was nothing");
    drop((receiver, sender));
    children.iter().for_each(Child::succeeds);
}

// --- fairness -------------------------------------------------------------------------------------------------

#[test]
fn fairness_none_of_four_senders_and_four_receivers_gets_less_than_a_twentieth_of_the_mean() {
    const SIDE: usize = 4;
    const OVER: usize = 8;
    let seconds = std::env::var("RINGPIPE_FAIR_SECONDS").map_or(2.0, |n| n.parse().expect("a number of seconds"));
    let _guard = guard_for(60 + seconds as u32);
    let shared = Shared::new();
    let mut ends = small();
    let mut children = Vec::new();
    for n in 0..2 * SIDE {
        let (mine, over) = (shared.word(n), shared.word(OVER));
        let child;
        (child, ends) = match n < SIDE {
            true => sending(ends, |sender| {
                may_take(60 + seconds as u32);
                while over.load(Ordering::Relaxed) == 0 {
                    sender.send_bytes(&[n as u8; 64]).unwrap();
                    mine.fetch_add(1, Ordering::Relaxed);
                }
                0
            }),
            false => receiving(ends, |receiver| {
                may_take(60 + seconds as u32);
                let mut buf = [0; 64];
                while receiver.recv_bytes_into(&mut buf, 0).is_ok() {
                    // The race is over, but what was sent is received.
                    mine.fetch_add(1 - over.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                0
            }),
        };
        children.push(child);
    }
    drop(ends);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let counts: Vec<u64> = (0..2 * SIDE).map(|n| shared.get(n)).collect();
    shared.set(OVER, 1);
    children.iter().for_each(Child::succeeds);
    println!("in {seconds} s: sent {:?}, received {:?}", &counts[..SIDE], &counts[SIDE..]);
    for side in counts.chunks(SIDE) {
        let mean = side.iter().sum::<u64>() / SIDE as u64;
        assert!(mean > 100 && side.iter().all(|&count| count >= mean / 20), "{side:?}");
    }
}

// --- coming and going ------------------------------------------------------------------------------------------

/// More of them than there are numbers, some dozens at a time, while two receive.
#[test]
fn processes_come_and_go_by_the_hundred_and_nothing_is_lost() {
    const COUNT: usize = if cfg!(debug_assertions) { 400 } else { 1_200 };
    const AT_A_TIME: usize = 24;
    let _guard = guard_for(120);
    // For each child: 1 before it sends, 2 after. Behind them, how often its message was received.
    let shared = Shared::with_words(2 * COUNT);
    let mut ends = small();
    let mut receivers = Vec::new();
    for _ in 0..2 {
        let child;
        (child, ends) = receiving(ends, |receiver| {
            for message in receiver.iter() {
                let n = u64::from_le_bytes(message.unwrap()[..8].try_into().unwrap()) as usize;
                shared.word(COUNT + n).fetch_add(1, Ordering::SeqCst);
            }
            0
        });
        receivers.push(child);
    }
    let mut random = Random::new(5);
    let mut here: Vec<(usize, Child)> = Vec::new();
    let mut killed = 0;
    for n in 0..COUNT {
        let how = random.below(4);
        let child;
        (child, ends) = sending(ends, |sender| {
            let mut message = vec![0; 8 + (n * 37) % 400];
            message[..8].copy_from_slice(&(n as u64).to_le_bytes());
            shared.set(n, 1);
            if how == 0 {
                // Killed some time in here.
                let _room = sender.reserve(message.len()).unwrap();
                std::thread::sleep(Duration::from_micros(300));
            }
            sender.send_bytes(&message).unwrap();
            shared.set(n, 2);
            if how == 0 {
                std::thread::sleep(PATIENCE);
            }
            0
        });
        if how == 0 {
            killed += 1;
            eventually("the child begins", || shared.get(n) > 0);
            std::thread::sleep(Duration::from_micros(random.below(500)));
            child.kill();
        }
        here.push((n, child));
        if here.len() == AT_A_TIME {
            let (n, child) = here.remove(random.below(AT_A_TIME as u64) as usize);
            assert!(child.wait().was_killed() || shared.get(n) == 2);
        }
    }
    for (n, child) in &here {
        assert!(child.wait().was_killed() || shared.get(*n) == 2);
    }
    drop(ends);
    receivers.iter().for_each(Child::succeeds);
    let (mut unsent, mut wrong) = (0, Vec::new());
    for n in 0..COUNT {
        match (shared.get(n), shared.get(COUNT + n)) {
            (2, 1) => {}
            // Killed before it knew.
            (1, 0 | 1) => unsent += 1,
            (sent, got) => wrong.push((n, sent, got)),
        }
    }
    println!("{COUNT} processes, {killed} killed, {unsent} of them in the act");
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(unsent <= killed);
}

/// Lets this process have so many descriptors. False if it may not.
fn may_have_descriptors(count: u64) -> bool {
    // SAFETY: the structure is plain data and outlives the calls.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        if (limit.rlim_cur as u64) < count {
            limit.rlim_cur = limit.rlim_max.min(count as libc::rlim_t);
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
        }
        limit.rlim_cur as u64 >= count
    }
}

/// How many sides of a pipe can be in use at a time.
const SIDES: usize = 1024;

/// So many more senders, each as if of another process.
fn crowd(sender: &Sender, count: usize) -> Vec<Sender> {
    (0..count).map(|_| attached(sender.clone())).collect()
}

#[test]
fn as_many_sides_as_there_are_numbers_take_part_and_one_more_is_refused() {
    let _guard = guard();
    if !may_have_descriptors(2 * SIDES as u64 + 200) {
        return skip("as many sides as there can be", "not so many descriptors are allowed");
    }
    let (receiver, sender) = small();
    let mut all = crowd(&sender, SIDES - 2);
    for (i, sender) in all.iter().enumerate() {
        sender.send_bytes(&i.to_le_bytes()).unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), i.to_le_bytes());
    }
    let (here, there) = UnixStream::pair().unwrap();
    let quota = std::io::ErrorKind::QuotaExceeded;
    for _ in 0..2 {
        sender.clone().send_to(&here).unwrap();
        let what = Sender::recv_from(&there).map(drop);
        assert!(matches!(&what, Err(AttachError::Io(e)) if e.kind() == quota), "{what:?}");
    }
    // Nor can a child take part with what it inherited, while its parent can.
    let child = fork(|| {
        let sent = sender.try_send_bytes(b"");
        assert!(matches!(&sent, Err(SendError::Io(e)) if e.kind() == quota), "{sent:?}");
        let room = sender.reserve(1).map(drop);
        assert!(matches!(&room, Err(SendError::Io(e)) if e.kind() == quota), "{room:?}");
        let got = receiver.recv_bytes();
        assert!(matches!(&got, Err(RecvError::Attach(AttachError::Io(e))) if e.kind() == quota), "{got:?}");
        assert!(matches!(receiver.iter().next(), Some(Err(RecvError::Attach(_)))));
        assert!(matches!(receiver.poll(None), Err(RecvError::Attach(_))));
        0
    });
    child.succeeds();
    sender.send_bytes(b"goes on").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"goes on");
    for _ in 0..3 {
        drop(all.remove(all.len() / 2));
        all.extend(crowd(&sender, 1));
        all.last().unwrap().send_bytes(b"in its place").unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), b"in its place");
    }
}

/// One number is free, so whoever comes gets that of the last who was killed.
#[test]
fn who_gets_the_number_of_a_killed_one_does_not_keep_what_that_held() {
    let _guard = guard();
    if !may_have_descriptors(2 * SIDES as u64 + 200) {
        return skip("the number of a killed one", "not so many descriptors are allowed");
    }
    let (receiver, sender) = small();
    let all = crowd(&sender, SIDES - 3);
    let shared = Shared::new();
    for round in 1..=6 {
        sender.send_bytes(b"held").unwrap();
        let writes = round % 2 == 0;
        let child = fork(|| {
            // One side only, for there is one number.
            let (_read, _room);
            if writes {
                _room = sender.reserve(100).unwrap();
            } else {
                _read = receiver.recv_guard().unwrap();
            }
            shared.set(0, round);
            std::thread::sleep(PATIENCE);
            0
        });
        shared.await_at_least(0, round);
        if writes {
            assert_eq!(receiver.recv_bytes().unwrap(), b"held");
        }
        sender.send_bytes(b"behind").unwrap();
        child.kill();
        child.wait();
        // Before anybody else had to find out.
        let next = crowd(&sender, 1);
        assert_eq!(receiver.try_recv_bytes().unwrap(), b"behind");
        next[0].send_bytes(b"by who has the number now").unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), b"by who has the number now");
        // The whole ring can be used.
        for _ in 0..SMALL / 64 {
            sender.try_send_bytes(b"").unwrap();
        }
        assert_eq!(receiver.try_iter().map(Result::unwrap).count(), SMALL / 64);
    }
    drop(all);
}

/// The ring is large, so that it takes a while to look through it for what the dead one held; and whoever does so is stopped in it, while the others
/// go round to where it began. Where addresses have 32 bits, there is no room for as many of it.
#[cfg(target_pointer_width = "64")]
#[test]
fn who_gets_the_number_of_a_killed_one_finds_what_that_held_though_others_go_round_meanwhile() {
    let _guard = guard_for(120);
    if !may_have_descriptors(2 * SIDES as u64 + 200) {
        return skip("the number of a killed one", "not so many descriptors are allowed");
    }
    // What takes a while takes longer in a build for debugging.
    let (capacity, rounds) = if cfg!(debug_assertions) { (4 << 20, 4) } else { (64 << 20, 8) };
    let (receiver, sender) = ringpipe::Builder::new().capacity(capacity).mpmc().unwrap();
    let cells = sender.capacity() / 64;
    let _all = crowd(&sender, SIDES - 3);
    let mut random = Random::new(3);
    for round in 0..rounds {
        let goes_on = || {
            let sent = sender.try_send_bytes(b"").is_ok();
            drop(receiver.try_recv_bytes());
            sent
        };
        // Room is looked for when there is none: now, and not again before the ring has gone round.
        sender.send_bytes(b"").unwrap();
        let guard = receiver.recv_guard().unwrap();
        while goes_on() {}
        drop(guard);
        assert!((1..cells).all(|_| goes_on()));
        sender.try_send_bytes(b"held").unwrap();
        let shared = Shared::new();
        let hold = |what: usize| {
            shared.set(what, 1);
            std::thread::sleep(PATIENCE);
            0
        };
        let holder = fork(|| {
            let _read = receiver.recv_guard().unwrap();
            hold(0)
        });
        shared.await_at_least(0, 1);
        holder.kill();
        holder.wait();
        let newcomer = fork(|| {
            shared.set(1, 1);
            drop(receiver.poll(Some(Duration::ZERO)));
            hold(2)
        });
        shared.await_at_least(1, 1);
        std::thread::sleep(Duration::from_micros(random.below(4000)));
        newcomer.stop();
        (0..2 * cells).take_while(|_| goes_on()).for_each(drop);
        newcomer.resume();
        shared.await_at_least(2, 1);
        for _ in 0..2 * cells {
            let sent = sender.send_bytes_timeout(b"", PATIENCE / 10);
            assert!(sent.is_ok(), "round {round}: what the dead one held is held by the living: {sent:?}");
            receiver.recv_bytes().unwrap();
        }
    }
}
