//! Processes killed by SIGKILL at random moments, and how long the other side takes to notice.
//!
//! Each kill takes a fresh pipe and a fresh process. What is sent follows a `Script` that both sides know, so the receiver can check
//! every message in full: its place, its length and its bytes. The sender counts in shared memory what it has sent, so the receiver
//! also knows what it may not miss.
//!
//! The short form kills some 300 processes. `RINGPIPE_KILLS=10000 cargo test --release --test kill -- --nocapture` is the long form: so
//! many kills, spread over the tests. Both print how long the death of a peer took to be noticed.

mod support;

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ringpipe::{Builder, Receiver, RecvError, RecvIntoError, SendError, Sender, simplex};
use support::{Child, Random, Script, Shared, alone, doing, fork_copy, fork_split, poll_fd, watchdog};

const CAPACITY: usize = 16 << 10;
/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Generous, for noisy machines; the figures printed are the interesting ones.
const MEDIAN_LIMIT: Duration = Duration::from_millis(50);
/// What takes longer was not noticed by being woken, but by the look that a parked end takes after a second. On a noisy machine one death
/// in ten may.
const LATE: Duration = Duration::from_millis(700);

/// How many kills a test makes whose share of the short form is `short`, out of 300 in all.
fn kills(short: usize) -> usize {
    let wanted = std::env::var("RINGPIPE_KILLS").ok().map(|n| n.parse::<usize>().expect("RINGPIPE_KILLS is a number"));
    wanted.map_or(short, |all| (all * short).div_ceil(300))
}

/// Time for a test that kills so many, with plenty to spare.
fn limit(kills: usize) -> u32 {
    60 + kills as u32 / 5
}

/// Runs `body` while another thread kills `victim` after `delay`; returns what `body` does, and when the kill was.
fn while_killing<T>(victim: &Child, delay: Duration, body: impl FnOnce() -> T) -> (T, Instant) {
    std::thread::scope(|scope| {
        let killer = scope.spawn(move || {
            std::thread::sleep(delay);
            let at = Instant::now();
            victim.kill();
            at
        });
        (body(), killer.join().expect("the killer does not panic"))
    })
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {} kills, noticed after {median:.1?} (median), {worst:.1?} (worst)", times.len());
    assert!(median < MEDIAN_LIMIT, "{what}: half of the deaths took more than {median:?} to notice");
    assert!(worst < PATIENCE, "{what}: a death took {worst:?} to notice");
    let late = times.iter().filter(|&&time| time > LATE).count();
    assert!(late * 10 <= times.len(), "{what}: {late} of {} deaths took more than {LATE:?} to notice", times.len());
}

/// How a receiver waits for the next message.
#[derive(Clone, Copy, Debug)]
enum Wait {
    Plain,
    Timeout,
    Poll,
    Epoll,
    Guard,
    Into,
}

const WAITS: [Wait; 6] = [Wait::Plain, Wait::Timeout, Wait::Poll, Wait::Epoll, Wait::Guard, Wait::Into];

/// The next message, or why there is none.
fn next(receiver: &mut Receiver, wait: Wait, buf: &mut [u8]) -> Result<Vec<u8>, RecvError> {
    match wait {
        Wait::Plain => receiver.recv_bytes(),
        Wait::Timeout => receiver.recv_bytes_timeout(PATIENCE),
        Wait::Poll => {
            assert!(receiver.poll(Some(PATIENCE))?, "nothing to receive in {PATIENCE:?}");
            receiver.recv_bytes_timeout(PATIENCE)
        }
        Wait::Epoll => loop {
            match receiver.try_recv_bytes() {
                Err(RecvError::Empty) => {
                    assert!(support::epoll(receiver.as_fd(), PATIENCE), "not readable in {PATIENCE:?}");
                }
                result => return result,
            }
        },
        Wait::Guard => receiver.recv_guard().map(|guard| guard.to_vec()),
        Wait::Into => match receiver.recv_bytes_into(buf, 0) {
            Ok(len) => Ok(buf[..len].to_vec()),
            Err(RecvIntoError::Recv(e)) => Err(e),
            Err(e) => panic!("the buffer is long enough for every message: {e}"),
        },
    }
}

/// How fast a process sends or receives.
#[derive(Clone, Copy, Debug)]
enum Pace {
    Flood,
    /// With rests that are now shorter, now longer than the few milliseconds after which the other side parks.
    Rests,
    /// Not at all.
    Never,
}

impl Pace {
    fn rest(self, random: &mut Random) {
        match self {
            Pace::Flood => {}
            Pace::Rests if random.below(4) == 0 => std::thread::sleep(Duration::from_micros(random.below(10_000))),
            Pace::Rests => {}
            Pace::Never => std::thread::sleep(PATIENCE),
        }
    }
}

/// For a forked sender: sends the script for ever, and counts what it has sent.
fn send_script(mut sender: Sender, script: Script, pace: Pace, seed: u64, sent: &Shared) -> i32 {
    let mut random = Random::new(seed);
    for i in 0.. {
        pace.rest(&mut random);
        let message = script.message(i);
        let result = match random.below(4) {
            0 if message.len() <= sender.max_reserve() => sender.reserve(message.len()).and_then(|mut guard| {
                guard.write(message);
                guard.commit()
            }),
            1 => {
                let (front, back) = message.split_at(message.len() / 3);
                sender.send_vectored(&[IoSlice::new(front), IoSlice::new(back)])
            }
            _ => sender.send_bytes(message),
        };
        if result.is_err() {
            return 1;
        }
        sent.set(0, i + 1);
    }
    0
}

/// Checks that what ended a killed sender's stream, after `received` messages, may end it.
fn check_end(end: &RecvError, received: u64, script: &Script, sent: &Shared) {
    let sent = sent.get(0);
    // The last one may be out although its sender had no time to count it.
    assert!(received == sent || received == sent + 1, "{sent} messages were sent, {received} arrived");
    match end {
        RecvError::Disconnected => {}
        RecvError::Cut => {
            assert!(received == sent && script.message(received).len() > CAPACITY / 4 - 8, "cut in a short message");
        }
        e => panic!("after {received} messages: {e}"),
    }
}

#[test]
fn whole_messages_and_then_the_end_come_from_a_killed_sender() {
    let _alone = alone();
    let rounds = kills(120);
    let _watchdog = watchdog(limit(rounds));
    let mut random = Random::new(1);
    let mut buf = vec![0; 3 * CAPACITY];
    let (mut messages, mut cuts) = (0, 0);
    for round in 0..rounds {
        let wait = WAITS[round % WAITS.len()];
        let pace = [Pace::Flood, Pace::Rests][round / WAITS.len() % 2];
        let script =
            if random.below(3) == 0 { Script::short(round as u64) } else { Script::mixed(round as u64, CAPACITY) };
        let spin = Duration::from_micros([0, 50, 5_000][random.below(3) as usize]);
        let (receiver, sender) = Builder::new().capacity(CAPACITY).spin(spin).simplex().unwrap();
        let sent = Shared::new();
        let seed = random.next();
        let (child, mut receiver) =
            fork_split(receiver, sender, |sender| send_script(sender, script, pace, seed, &sent));
        let mut received = 0;
        let within = if matches!(pace, Pace::Rests) { 15_000 } else { 5_000 };
        let (end, _) = while_killing(&child, Duration::from_micros(random.below(within)), || {
            loop {
                match next(&mut receiver, wait, &mut buf) {
                    Ok(message) => assert!(message == script.message(received), "message {received} is another"),
                    Err(e) => break e,
                }
                received += 1;
            }
        });
        assert!(child.wait().was_killed(), "the sender ended by itself");
        check_end(&end, received, &script, &sent);
        messages += received;
        cuts += u64::from(matches!(end, RecvError::Cut));
        for _ in 0..2 {
            assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)), "after {end}");
        }
    }
    println!("senders killed while they send: {rounds} kills, {messages} messages received, {cuts} cut");
    assert!(messages > rounds as u64, "hardly anything was sent, so nothing was shown");
}

fn thread_id() -> libc::pid_t {
    // SAFETY: no preconditions.
    unsafe { libc::gettid() }
}

/// What an idle receiver is doing when its sender is killed.
#[derive(Clone, Copy, Debug)]
enum Idle {
    Spinning,
    Asleep,
    Parked,
    Epoll,
    Poll,
}

/// Kills idle senders, and times how soon the receiver knows. Returns also how often the receiver was seen in a system call out of
/// `calls`.
fn kill_idle_senders(idle: Idle, rounds: usize, calls: &[&str]) -> (Vec<Duration>, usize) {
    let mut random = Random::new(2);
    let mut times = Vec::new();
    let mut seen = 0;
    for round in 0..rounds {
        let spin = if matches!(idle, Idle::Spinning) { Duration::from_secs(1) } else { Duration::ZERO };
        let (receiver, sender) = Builder::new().capacity(CAPACITY).spin(spin).simplex().unwrap();
        let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
            let sent = sender.send_bytes(b"last words");
            std::thread::sleep(PATIENCE);
            i32::from(sent.is_err())
        });
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"last words");
        let micros = match idle {
            Idle::Spinning => 1_000 + random.below(5_000),
            Idle::Asleep => 300 + random.below(1_000),
            Idle::Parked | Idle::Epoll | Idle::Poll => 15_000 + random.below(5_000),
        };
        let me = thread_id();
        let (noticed, (state, killed)) = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(micros));
                let state = doing(me);
                let at = Instant::now();
                child.kill();
                (state, at)
            });
            let end = match idle {
                Idle::Epoll | Idle::Poll => loop {
                    let readable = match idle {
                        Idle::Epoll => support::epoll(receiver.as_fd(), PATIENCE),
                        _ => poll_fd(receiver.as_fd(), libc::POLLIN, PATIENCE) != 0,
                    };
                    assert!(readable, "the descriptor is not readable");
                    match receiver.try_recv_bytes() {
                        // Readable for nothing, which may happen.
                        Err(RecvError::Empty) => {}
                        end => break end,
                    }
                },
                _ if round % 2 == 0 => receiver.recv_bytes(),
                _ => receiver.recv_bytes_timeout(PATIENCE),
            };
            let at = Instant::now();
            assert!(matches!(end, Err(RecvError::Disconnected)), "instead of end of file: {end:?}");
            (at, killer.join().expect("the killer does not panic"))
        });
        times.push(noticed.saturating_duration_since(killed));
        seen += usize::from(calls.contains(&state.as_str()));
        assert!(child.wait().was_killed());
    }
    (times, seen)
}

#[test]
fn an_idle_receiver_learns_of_its_senders_death_whatever_it_is_doing() {
    let _alone = alone();
    let rounds = kills(10);
    let _watchdog = watchdog(limit(5 * rounds));
    // The numbers of system calls are the processor's, which is not the emulator's.
    let readable = doing(thread_id()) != "unknown" && !support::emulated();
    let futex = libc::SYS_futex.to_string();
    let ppoll = libc::SYS_ppoll.to_string();
    let cases: [(Idle, &[&str]); 5] = [
        (Idle::Spinning, &["running"]),
        (Idle::Asleep, &[&futex]),
        (Idle::Parked, &[&ppoll]),
        (Idle::Epoll, &[]),
        (Idle::Poll, &[]),
    ];
    for (idle, calls) in cases {
        let (times, seen) = kill_idle_senders(idle, rounds, calls);
        report(&format!("sender killed, receiver {idle:?}"), times);
        if readable && !calls.is_empty() {
            println!("    seen in that state: {seen} of {rounds}");
            assert!(seen > 0, "no receiver was ever {idle:?} when its sender was killed");
        }
    }
}

/// For a forked receiver: checks the script, and counts what it has taken.
fn receive_script(mut receiver: Receiver, script: Script, pace: Pace, seed: u64, taken: &Shared) -> i32 {
    let mut random = Random::new(seed);
    for i in 0.. {
        pace.rest(&mut random);
        match receiver.recv_bytes() {
            Ok(message) if message == script.message(i) => taken.set(0, i + 1),
            Ok(_) => return 1,
            Err(_) => return 2,
        }
    }
    0
}

#[test]
fn a_sender_learns_of_its_receivers_death() {
    let _alone = alone();
    let rounds = kills(20);
    let _watchdog = watchdog(limit(3 * rounds));
    let mut random = Random::new(3);
    for (what, pace) in [("while it takes", Pace::Flood), ("while it dawdles", Pace::Rests), ("unread", Pace::Never)] {
        let mut times = Vec::new();
        for round in 0..rounds {
            let script =
                if round % 3 == 0 { Script::short(round as u64) } else { Script::mixed(round as u64, CAPACITY) };
            let spin = Duration::from_micros([0, 50, 50_000][round % 3]);
            let (receiver, sender) = Builder::new().capacity(CAPACITY).spin(spin).simplex().unwrap();
            let (taken, seed) = (Shared::new(), random.next());
            let (child, mut sender) =
                fork_split(sender, receiver, |receiver| receive_script(receiver, script, pace, seed, &taken));
            // Short enough to be asleep, or long enough to be parked, when the receiver dies.
            let delay =
                Duration::from_micros(if round % 2 == 0 { random.below(2_000) } else { 10_000 + random.below(9_000) });
            let ((error, noticed), killed) = while_killing(&child, delay, || {
                let mut i = 0;
                loop {
                    let sent = match i % 3 {
                        0 => sender.send_bytes_timeout(script.message(i), PATIENCE),
                        _ => sender.send_bytes(script.message(i)),
                    };
                    if let Err(e) = sent {
                        break (e, Instant::now());
                    }
                    i += 1;
                }
            });
            assert!(matches!(error, SendError::Disconnected), "instead of a broken pipe: {error}");
            assert!(child.wait().was_killed(), "the receiver found fault with what it got");
            times.push(noticed.saturating_duration_since(killed));
            assert!(matches!(sender.send_bytes(b"again"), Err(SendError::Disconnected)));
            assert!(matches!(sender.try_send_bytes(b""), Err(SendError::Disconnected)));
        }
        report(&format!("receiver killed {what}, sender sends"), times);
    }
}

/// Two processes hold copies of one sending end. One is killed inside its stream; then the other sends.
#[test]
fn a_copy_of_a_killed_senders_end_goes_on_where_it_stopped() {
    const MORE: u64 = 50;
    let _alone = alone();
    let rounds = kills(40);
    let _watchdog = watchdog(limit(rounds));
    let mut random = Random::new(4);
    let mut buf = vec![0; 3 * CAPACITY];
    let mut cuts = 0;
    for round in 0..rounds {
        let wait = WAITS[round % WAITS.len()];
        let pace = [Pace::Flood, Pace::Rests][round % 2];
        let script = if round % 4 < 2 { Script::short(round as u64) } else { Script::mixed(round as u64, CAPACITY) };
        let other = Script::mixed(!(round as u64), CAPACITY);
        // Unlike anything in the script, and long or short, to start at either kind of seam.
        let marker = vec![0xee; if random.below(2) == 0 { 100 } else { CAPACITY }];
        let (receiver, sender) = Builder::new().capacity(CAPACITY).simplex().unwrap();
        let (sent, go, seed) = (Shared::new(), Shared::new(), random.next());
        let ends = (receiver, sender);
        let (survivor, (receiver, sender)) = fork_copy(ends, |(receiver, mut sender)| {
            drop(receiver);
            while go.get(0) == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
            if sender.send_bytes(&marker).is_err() {
                return 1;
            }
            (0..MORE).any(|i| sender.send_bytes(other.message(i)).is_err()).into()
        });
        let (victim, mut receiver) =
            fork_split(receiver, sender, |sender| send_script(sender, script, pace, seed, &sent));
        let (delay, silence) = (random.below(8_000), random.below(9_000));
        let (received, more) = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(delay));
                victim.kill();
                victim.wait();
                std::thread::sleep(Duration::from_micros(silence));
                go.set(0, 1);
            });
            let mut received = 0;
            let seam = loop {
                match next(&mut receiver, wait, &mut buf) {
                    Ok(message) if message == marker => break RecvError::Disconnected,
                    Ok(message) => assert!(message == script.message(received), "message {received} is another"),
                    Err(e) => break e,
                }
                received += 1;
            };
            check_end(&seam, received, &script, &sent);
            if matches!(seam, RecvError::Cut) {
                cuts += 1;
                let message = next(&mut receiver, wait, &mut buf).expect("the other sender goes on");
                assert!(message == marker, "after the cut comes another message");
            }
            let mut more = 0;
            let end = loop {
                match next(&mut receiver, wait, &mut buf) {
                    Ok(message) => assert!(message == other.message(more), "message {more} of the survivor is another"),
                    Err(e) => break e,
                }
                more += 1;
            };
            assert!(matches!(end, RecvError::Disconnected), "instead of end of file: {end}");
            (received, more)
        });
        assert_eq!(more, MORE, "after {received} messages of the killed sender");
        assert_eq!(survivor.wait().code(), Some(0));
    }
    println!("senders killed whose copy lives on: {rounds} kills, {cuts} messages cut");
}

/// Killed between publishing and ringing the bell, a sender leaves a message that nobody announced. While a silent copy of its end
/// lives there is no end of file either, and still the receiver finds what is there.
#[test]
fn what_a_killed_sender_published_arrives_though_a_silent_copy_lives_on() {
    let _alone = alone();
    let rounds = kills(30);
    let _watchdog = watchdog(limit(rounds));
    let mut random = Random::new(5);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let script = Script::short(round as u64);
        let (receiver, sender) = Builder::new().capacity(CAPACITY).spin(Duration::ZERO).simplex().unwrap();
        let (sent, seed) = (Shared::new(), random.next());
        // This process keeps a copy of the sending end, and keeps silent.
        let (victim, (mut receiver, silent)) = fork_copy((receiver, sender), |(receiver, sender)| {
            drop(receiver);
            send_script(sender, script, Pace::Rests, seed, &sent)
        });
        let mut received = 0;
        let (_, _) = while_killing(&victim, Duration::from_micros(random.below(15_000)), || {
            // Parked now and then, so that the sender has to ring.
            while let Ok(message) = receiver.recv_bytes_timeout(Duration::from_millis(12)) {
                assert!(message == script.message(received), "message {received} is another");
                received += 1;
            }
        });
        assert!(victim.wait().was_killed());
        while received < sent.get(0) {
            let start = Instant::now();
            let message = receiver.recv_bytes_timeout(Duration::from_secs(5)).expect("it was sent");
            assert!(message == script.message(received), "message {received} is another");
            slowest = slowest.max(start.elapsed());
            received += 1;
        }
        drop(silent);
        let mut end = receiver.recv_bytes_timeout(PATIENCE);
        if let Ok(message) = end {
            assert!(message == script.message(received), "message {received} is another");
            received += 1;
            end = receiver.recv_bytes_timeout(PATIENCE);
        }
        check_end(&end.expect_err("nothing more was sent"), received, &script, &sent);
    }
    println!("senders killed beside a silent copy: {rounds} kills, the slowest message took {slowest:.1?} to be found");
    assert!(slowest < Duration::from_secs(3), "a message took {slowest:?} to be found");
}

#[test]
fn a_copy_of_a_killed_receivers_end_goes_on_with_whole_messages() {
    const MORE: u64 = 60;
    let _alone = alone();
    let rounds = kills(30);
    let _watchdog = watchdog(limit(rounds));
    let mut random = Random::new(6);
    for round in 0..rounds {
        let script = if round % 3 == 0 { Script::short(round as u64) } else { Script::mixed(round as u64, CAPACITY) };
        let (receiver, sender) = Builder::new().capacity(CAPACITY).simplex().unwrap();
        let (taken, sent, seed) = (Shared::new(), Shared::new(), random.next());
        let pace = [Pace::Flood, Pace::Rests][round % 2];
        let (victim, (receiver, sender)) = fork_copy((receiver, sender), |(receiver, sender)| {
            drop(sender);
            receive_script(receiver, script, pace, seed, &taken)
        });
        let (feeder, mut receiver) =
            fork_split(receiver, sender, |sender| send_script(sender, script, Pace::Flood, seed, &sent));
        std::thread::sleep(Duration::from_micros(random.below(5_000)));
        victim.kill();
        assert!(victim.wait().was_killed(), "the receiver found fault with what it got");
        // The victim may have had no time to count the last message that it took; of a long one, it may have taken a part.
        let taken = taken.get(0);
        let mut starts = vec![taken, taken + 1];
        for i in 0..MORE {
            let message = receiver.recv_bytes_timeout(PATIENCE).expect("the sender goes on");
            starts.retain(|start| message == script.message(start + i));
            assert!(!starts.is_empty(), "message {i} after the {taken} taken is no message of the script");
        }
        drop(receiver);
        assert_eq!(feeder.wait().code(), Some(1), "the sender gets a broken pipe and ends");
    }
}

/// A socket that is closed with unread bytes gives its peer ECONNRESET, once. Bells can be such bytes.
#[test]
fn death_with_unread_bells_is_an_ordinary_death() {
    let _alone = alone();
    let rounds = kills(14);
    let _watchdog = watchdog(limit(2 * rounds));
    let script = Script::short(7);
    let mut resets = 0;

    // A sender that was parked for want of room, and was rung.
    for round in 0..rounds {
        let (receiver, sender) = Builder::new().capacity(CAPACITY).spin(Duration::ZERO).simplex().unwrap();
        let sent = Shared::new();
        let (child, mut receiver) =
            fork_split(receiver, sender, |sender| send_script(sender, script, Pace::Flood, 7, &sent));
        sent.await_at_least(0, 2);
        std::thread::sleep(Duration::from_millis(15));
        child.stop();
        let mut received = 0;
        for _ in 0..2 {
            assert!(receiver.recv_bytes_timeout(PATIENCE).unwrap() == script.message(received));
            received += 1;
        }
        child.kill();
        assert!(child.wait().was_killed());
        if round % 2 == 0 {
            resets += usize::from(poll_fd(receiver.as_fd(), libc::POLLIN, Duration::ZERO) & libc::POLLERR != 0);
        }
        let end = loop {
            let result = match round % 7 {
                0 => receiver.recv_bytes(),
                1 => receiver.try_recv_bytes(),
                2 => receiver.recv_bytes_timeout(PATIENCE),
                3 => receiver.poll(None).and_then(|_| receiver.recv_bytes()),
                4 => receiver.recv_guard().map(|guard| guard.to_vec()),
                5 => next(&mut receiver, Wait::Epoll, &mut []),
                _ => match receiver.recv_end::<Sender>() {
                    Err(RecvError::IsBytes) => receiver.recv_bytes(),
                    other => Err(other.expect_err("no end was sent")),
                },
            };
            match result {
                Ok(message) => assert!(message == script.message(received), "message {received} is another"),
                Err(e) => break e,
            }
            received += 1;
        };
        check_end(&end, received, &script, &sent);
        assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
    }

    // A receiver that was parked, and was rung.
    for round in 0..rounds {
        let (receiver, sender) = Builder::new().capacity(CAPACITY).spin(Duration::ZERO).simplex().unwrap();
        let taken = Shared::new();
        let (child, mut sender) =
            fork_split(sender, receiver, |receiver| receive_script(receiver, script, Pace::Flood, 7, &taken));
        std::thread::sleep(Duration::from_millis(15));
        child.stop();
        sender.send_bytes(script.message(0)).unwrap();
        child.kill();
        assert!(child.wait().was_killed());
        resets += usize::from(poll_fd(sender.as_fd(), libc::POLLIN, Duration::ZERO) & libc::POLLERR != 0);
        let error = loop {
            let result = match round % 4 {
                0 => sender.send_bytes(b"and on"),
                1 => sender.try_send_bytes(b"and on"),
                2 => sender.send_bytes_timeout(b"and on", PATIENCE),
                _ => {
                    let (_, end) = simplex().unwrap();
                    match sender.send_end(end) {
                        Ok(()) => Ok(()),
                        Err(e) if e.error.kind() == std::io::ErrorKind::BrokenPipe => Err(SendError::Disconnected),
                        Err(e) => panic!("instead of a broken pipe: {e}"),
                    }
                }
            };
            if let Err(e) = result {
                break e;
            }
        };
        assert!(matches!(error, SendError::Disconnected), "instead of a broken pipe: {error}");
    }
    println!("deaths with unread bells: {resets} sockets were reset");
    assert!(resets > 0, "no socket was reset, so nothing was shown");
}
