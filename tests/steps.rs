//! Processes killed between two instructions: after the first of a send, after the second, and so on; likewise for a receive.
//!
//! The victim is a real process that is stopped after so many instructions, by means of `ptrace(2)`, and then killed by SIGKILL. Its peer
//! is another real process, which waits. Most often a copy of the victim's end lives on in the test and goes on: what it does next has to
//! be right whatever the victim left behind.
//!
//! A release build has some hundreds of instructions to a send, and each of them is tried; a debug build has thousands, of which a
//! part is. With `RINGPIPE_KILLS` set (to anything), all are.

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

mod support;
#[path = "support/trace.rs"]
mod trace;

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ringpipe::{Builder, Receiver, RecvError, SendError, Sender};
use support::{Child, Shared, alone, fork_split, poll_fd, watchdog};
use trace::{By, Effects, How, PATIENCE, Path, Victim, Waits, await_word, may_trace, message};

/// A ring that short messages fill soon.
const SMALL: usize = 4096;
/// With its header a divisor of every ring, so that every send takes the same path.
const SHORT: usize = 56;
/// How many kills a scenario makes at most in the short form, and one whose victims take long to get anywhere.
const BUDGET: usize = if cfg!(debug_assertions) { 120 } else { 1_000 };
const BUDGET_LONG: usize = if cfg!(debug_assertions) { 30 } else { 400 };

fn pipe(waits: Waits, capacity: usize) -> (Receiver, Sender) {
    let spin = if waits == Waits::Spinning { Duration::from_secs(1) } else { Duration::ZERO };
    Builder::new().capacity(capacity).spin(spin).simplex().unwrap()
}

/// The next message, received in the way asked for. For a pipe end, what comes out of it.
fn next(receiver: &mut Receiver, waits: Waits) -> Result<Vec<u8>, RecvError> {
    loop {
        let result = match waits {
            Waits::Epoll => receiver.try_recv_bytes(),
            _ => receiver.recv_bytes_timeout(PATIENCE),
        };
        match result {
            Err(RecvError::Empty) => assert!(support::epoll(receiver.as_fd(), PATIENCE), "not readable"),
            Err(RecvError::IsEnd) => return receiver.recv_end::<Receiver>()?.recv_bytes_timeout(PATIENCE),
            result => return result,
        }
    }
}

// --- senders ------------------------------------------------------------------------------------------------

/// What is to be sent in a round: bytes, or a pipe end from which these bytes come.
struct Load {
    bytes: Vec<u8>,
    end: Option<Receiver>,
}

/// What the victim does with the sending end.
struct Sending {
    what: &'static str,
    capacity: usize,
    /// Bytes in the messages.
    victims: usize,
    survivors: usize,
    /// The victim may leave a message cut off.
    cut: bool,
    /// When it is done, a message has been sent.
    sends: bool,
    /// Messages are pipe ends.
    ends: bool,
    act: fn(&mut Sender, Load),
}

fn send_bytes(sender: &mut Sender, load: Load) {
    sender.send_bytes(&load.bytes).unwrap();
}

fn send_in_place(sender: &mut Sender, load: Load) {
    let mut guard = sender.reserve(load.bytes.len() + 100).unwrap();
    guard.write(&load.bytes[..11]);
    guard.write(&load.bytes[11..]);
    guard.commit().unwrap();
}

fn send_end(sender: &mut Sender, load: Load) {
    sender.send_end(load.end.expect("there is one")).unwrap();
}

/// Nobody receives, so the ring fills up and the message is taken back.
fn send_in_vain(sender: &mut Sender, load: Load) {
    let result = sender.send_bytes_timeout(&load.bytes, Duration::from_millis(1));
    assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
}

const SEND: Sending = Sending {
    what: "a send",
    capacity: SMALL,
    victims: SHORT,
    survivors: SHORT,
    cut: false,
    sends: true,
    ends: false,
    act: send_bytes,
};
/// With padding at the end of the ring.
const SEND_IN_PLACE: Sending =
    Sending { what: "a reservation and its commit", victims: 150, survivors: 33, act: send_in_place, ..SEND };
/// In parts that all fit in the ring.
const SEND_LONG: Sending = Sending { what: "a long message", victims: 2_000, survivors: 1_500, cut: true, ..SEND };
const SEND_IN_VAIN: Sending = Sending {
    what: "a long message that is taken back",
    victims: 4_100,
    cut: true,
    sends: false,
    act: send_in_vain,
    ..SEND
};
const SEND_END: Sending = Sending { what: "a pipe end", ends: true, act: send_end, ..SEND };

impl Sending {
    /// Does what a process does only once, so that every victim takes the same path.
    fn warm_up(&self) {
        let (_receiver, mut sender) = pipe(Waits::Parked, self.capacity);
        (self.act)(&mut sender, self.load(0, By::Victim));
    }

    fn load(&self, round: u64, by: By) -> Load {
        let len = if by == By::Victim { self.victims } else { self.survivors };
        let bytes = message(round, by, len);
        let end = self.ends.then(|| {
            let (theirs, mut mine) = Builder::new().capacity(SMALL).simplex().unwrap();
            mine.send_bytes(&bytes).unwrap();
            theirs
        });
        Load { bytes, end }
    }
}

/// Words in which a receiving peer says how far it is.
const ROUNDS: usize = 0;
const VICTIMS: usize = 1;
const CUTS: usize = 2;

/// For a forked receiver: checks that every round brings at most one whole message of the victim, and then the survivor's. Returns 0 when
/// end of file comes, and there is none before.
fn check_rounds(mut receiver: Receiver, waits: Waits, sending: &Sending, seen: &Shared) -> i32 {
    // A watchdog looks after all of them.
    // SAFETY: no preconditions.
    unsafe { libc::alarm(0) };
    let (mut round, mut victims, mut cuts) = (0, 0, 0);
    let mut after_victim = false;
    loop {
        match next(&mut receiver, waits) {
            Ok(bytes) if bytes == message(round, By::Survivor, sending.survivors) => {
                (round, after_victim) = (round + 1, false);
            }
            Ok(bytes) if sending.sends && !after_victim && bytes == message(round, By::Victim, sending.victims) => {
                (victims, after_victim) = (victims + 1, true);
            }
            Err(RecvError::Cut) if sending.cut && !after_victim => (cuts, after_victim) = (cuts + 1, true),
            Err(RecvError::Disconnected) => return 0,
            other => panic!("round {round}, after something of the victim's: {after_victim}: {other:x?}"),
        }
        seen.set(VICTIMS, victims);
        seen.set(CUTS, cuts);
        seen.set(ROUNDS, round);
    }
}

/// Kills copies of the sending end as they send. Each time this process's copy sends on.
fn kill_senders_whose_copy_goes_on(sending: &Sending, waits: Waits, budget: usize) {
    sending.warm_up();
    let seen = Shared::new();
    let (receiver, sender) = pipe(waits, sending.capacity);
    let (peer, sender) = fork_split(sender, receiver, |receiver| check_rounds(receiver, waits, sending, &seen));
    let mut sender = Some(sender);
    let mut effects = Effects::new();
    let (mut round, mut before) = (0, 0);
    let mut kill = |how: How<'_>| {
        waits.await_in(&peer);
        let ends = (sender.take().expect("given back every time"), Some(sending.load(round, By::Victim)));
        let (mut victim, (mut kept, load)) = Victim::with_copy(ends, |(sender, load)| {
            (sending.act)(sender, load.take().expect("taken once"));
        });
        drop(load);
        let path = how.forward(&mut victim, &[&peer]);
        victim.kill();
        peer.resume();
        let load = sending.load(round, By::Survivor);
        match load.end {
            Some(end) => kept.send_end(end).unwrap(),
            None => kept.send_bytes(&load.bytes).unwrap(),
        }
        sender = Some(kept);
        round += 1;
        await_word(&seen, ROUNDS, round, &peer);
        let after = seen.get(if sending.sends { VICTIMS } else { CUTS });
        effects.note(&victim, after > before, sending.sends);
        before = after;
        path
    };
    // The first round makes everything as it is for the others.
    kill(How::Freely);
    let path = kill(How::Walk).expect("it has walked");
    for instructions in path.moments(budget) {
        kill(How::After(instructions, &path));
    }
    drop(sender);
    peer.succeeds();
    effects.report(&format!("{}, receiver {waits:?}, {} cut", sending.what, seen.get(CUTS)), &path);
}

/// Kills the only sender as it sends and closes its end: the receiver gets the message or does not, and then end of file.
fn kill_last_senders(sending: &Sending, waits: Waits, budget: usize) -> (Effects, Path) {
    sending.warm_up();
    let mut effects = Effects::new();
    let mut cuts = 0;
    let mut kill = |how: How<'_>| {
        let seen = Shared::new();
        let (receiver, sender) = pipe(waits, sending.capacity);
        let (peer, sender) = fork_split(sender, receiver, |receiver| check_rounds(receiver, waits, sending, &seen));
        waits.await_in(&peer);
        let load = sending.load(0, By::Victim);
        let mut victim = Victim::new(|| {
            let mut sender = sender;
            (sending.act)(&mut sender, load);
        });
        let path = how.forward(&mut victim, &[&peer]);
        victim.kill();
        let dead = Instant::now();
        peer.resume();
        peer.succeeds();
        assert!(dead.elapsed() < PATIENCE / 4, "end of file took {:?}", dead.elapsed());
        effects.note(&victim, seen.get(VICTIMS) > 0, sending.sends);
        cuts += seen.get(CUTS);
        path
    };
    let path = kill(How::Walk).expect("it has walked");
    for instructions in path.moments(budget) {
        kill(How::After(instructions, &path));
    }
    effects.report(&format!("{}, then end of file, receiver {waits:?}, {cuts} cut", sending.what), &path);
    (effects, path)
}

#[test]
fn a_send_cut_off_after_any_instruction_leaves_a_whole_message_or_none_and_a_copy_goes_on() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        for waits in Waits::ALL {
            kill_senders_whose_copy_goes_on(&SEND, waits, BUDGET);
        }
        kill_senders_whose_copy_goes_on(&SEND_IN_PLACE, Waits::Asleep, BUDGET);
    }
}

#[test]
fn a_long_message_cut_off_after_any_instruction_is_whole_or_reported_as_cut() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        for waits in [Waits::Parked, Waits::Stopped] {
            kill_senders_whose_copy_goes_on(&SEND_LONG, waits, BUDGET_LONG);
        }
        kill_senders_whose_copy_goes_on(&SEND_IN_VAIN, Waits::Stopped, BUDGET_LONG);
    }
}

#[test]
fn a_pipe_end_whose_sending_is_cut_off_after_any_instruction_is_whole_or_not_there() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        for waits in [Waits::Parked, Waits::Stopped] {
            kill_senders_whose_copy_goes_on(&SEND_END, waits, BUDGET);
        }
    }
}

#[test]
fn after_the_last_sender_died_at_any_instruction_comes_its_message_or_none_and_then_the_end() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        for waits in Waits::ALL {
            let (effects, _) = kill_last_senders(&SEND, waits, BUDGET / 2);
            // Nothing else depends on anybody's mood here, so there is one instruction that sends.
            assert!(effects.first > effects.last_without, "the message came and went");
        }
        kill_last_senders(&SEND_LONG, Waits::Asleep, BUDGET_LONG);
        kill_last_senders(&SEND_END, Waits::Parked, BUDGET_LONG);
    }
}

/// The bell may not have been rung, and here nobody rings it later.
#[test]
fn what_was_published_before_a_death_is_found_within_a_second_though_a_silent_copy_lives_on() {
    const PIPES: usize = 12;
    let _alone = alone();
    let _watchdog = watchdog(600);
    if !may_trace() {
        return;
    }
    let (probe, path) = kill_last_senders(&SEND, Waits::Parked, 60);
    // From just before the message is published to when the bell has been rung, all at the same time.
    let from = probe.last_without;
    let base = Instant::now();
    let mut silent = Vec::new();
    let mut peers = Vec::new();
    for n in 0..PIPES {
        let seen = Shared::new();
        let (receiver, sender) = pipe(Waits::Parked, SMALL);
        let (peer, sender) = fork_split(sender, receiver, |mut receiver| {
            let got = receiver.recv_bytes_timeout(Duration::from_secs(5));
            if got.is_ok_and(|bytes| bytes == message(0, By::Victim, SHORT)) {
                seen.set(0, base.elapsed().as_micros() as u64);
            }
            0
        });
        Waits::Parked.await_in(&peer);
        let ends = (sender, Some(SEND.load(0, By::Victim)));
        let (mut victim, (sender, _)) =
            Victim::with_copy(ends, |(sender, load)| send_bytes(sender, load.take().expect("taken once")));
        victim.forward(&path, from + 1 + n * (path.len() - from) / (PIPES + 1));
        victim.kill();
        silent.push(sender);
        peers.push((peer, seen, base.elapsed().as_micros() as u64));
    }
    let mut times = Vec::new();
    for (peer, seen, dead) in &peers {
        peer.succeeds();
        let found = seen.get(0);
        assert!(found > 0 || times.is_empty(), "a message was not found");
        times.extend((found > 0).then(|| Duration::from_micros(found.saturating_sub(*dead))));
    }
    drop(silent);
    let slowest = times.iter().max().copied().unwrap_or_default();
    println!("{} of {PIPES} messages found beside a silent copy, the slowest after {slowest:.1?}", times.len());
    assert!(times.len() > PIPES / 2, "only {} of {PIPES} messages were found", times.len());
    assert!(slowest < Duration::from_secs(3), "a message took {slowest:?} to be found");
}

// --- receivers ----------------------------------------------------------------------------------------------

/// What the victim does with the receiving end.
struct Receiving {
    what: &'static str,
    /// Bytes in a message.
    len: usize,
    /// Messages are pipe ends, of which only so many are sent ahead.
    ends: bool,
    act: fn(&mut Receiver, &mut [u8]),
}

const RECEIVE: Receiving =
    Receiving { what: "a receive", len: SHORT, ends: false, act: |receiver, _| drop(receiver.recv_bytes().unwrap()) };
const RECEIVE_INTO: Receiving = Receiving {
    what: "a receive into a buffer",
    act: |receiver, buf| assert_eq!(receiver.recv_bytes_into(buf, 3).unwrap(), SHORT),
    ..RECEIVE
};
const RECEIVE_IN_PLACE: Receiving = Receiving {
    what: "a receive in place",
    len: 150,
    act: |receiver, buf| receiver.recv_guard().unwrap().copy_to(100, &mut buf[..50]),
    ..RECEIVE
};
const RECEIVE_LONG: Receiving = Receiving { what: "a receive of a long message", len: 2_000, ..RECEIVE };
const RECEIVE_END: Receiving = Receiving {
    what: "a receive of a pipe end",
    ends: true,
    act: |receiver, _| std::mem::forget(receiver.recv_end::<Receiver>().unwrap()),
    ..RECEIVE
};

/// Pipe ends sent ahead.
const AHEAD: u64 = 3;
/// Where a feeder says how much it has sent.
const SENT: usize = 3;

impl Receiving {
    /// For a forked sender: sends numbered messages until the pipe breaks.
    fn feed(&self, mut sender: Sender, words: &Shared) -> i32 {
        // A watchdog looks after all of them.
        // SAFETY: no preconditions.
        unsafe { libc::alarm(0) };
        for i in 0.. {
            let bytes = message(i, By::Survivor, self.len);
            let result = if self.ends {
                let broken = || poll_fd(sender.as_fd(), libc::POLLIN, Duration::from_millis(1)) & libc::POLLHUP != 0;
                while i >= words.get(ROUNDS) + AHEAD && !broken() {}
                let (theirs, mut mine) = Builder::new().capacity(SMALL).simplex().unwrap();
                mine.send_bytes(&bytes).unwrap();
                sender.send_end(theirs).map_err(|e| e.error)
            } else {
                sender.send_bytes(&bytes).map_err(io::Error::from)
            };
            if let Err(e) = result {
                return i32::from(e.kind() != io::ErrorKind::BrokenPipe);
            }
            words.set(SENT, i + 1);
        }
        unreachable!("there is no end to the numbers")
    }

    /// Until the feeder has sent what it can, and waits for room in the way asked for.
    fn await_full(&self, waits: Waits, peer: &Child, received: u64, words: &Shared, fill: impl Fn() -> usize) {
        if self.ends {
            return await_word(words, SENT, received + AHEAD, peer);
        }
        let part = self.len.min(SMALL / 8) + 8;
        while fill() + 2 * (part + 8) < SMALL {
            std::thread::sleep(Duration::from_micros(50));
        }
        waits.await_in(peer);
    }
}

/// Kills copies of the receiving end as they receive. Each time this process's copy receives on.
fn kill_receivers_whose_copy_goes_on(receiving: &Receiving, waits: Waits, budget: usize) {
    let words = Shared::new();
    let (receiver, sender) = pipe(waits, SMALL);
    let (peer, receiver) = fork_split(receiver, sender, |sender| receiving.feed(sender, &words));
    let mut receiver = Some(receiver);
    let mut effects = Effects::new();
    let (mut expected, mut cuts) = (0, 0);
    let mut buf = [0; 4096];
    let mut kill = |how: How<'_>| {
        let end = receiver.take().expect("given back every time");
        receiving.await_full(waits, &peer, expected, &words, || end.fill());
        let (mut victim, mut kept) = Victim::with_copy(end, |receiver| (receiving.act)(receiver, &mut buf));
        let path = how.forward(&mut victim, &[&peer]);
        victim.kill();
        peer.resume();
        let mut got = next(&mut kept, waits);
        if receiving.ends && matches!(got, Err(RecvError::Cut)) {
            // The victim had taken the descriptors, but not what announced them.
            cuts += 1;
            got = next(&mut kept, waits).map(|bytes| {
                assert!(bytes == message(expected + 1, By::Survivor, receiving.len), "not the one after the cut");
                bytes
            });
        }
        let got = got.unwrap_or_else(|e| panic!("after {expected}, killed after {}: {e}", victim.instructions));
        let taken = got == message(expected + 1, By::Survivor, receiving.len);
        assert!(
            taken || got == message(expected, By::Survivor, receiving.len),
            "after {expected}: {:x?}...",
            &got[..16]
        );
        effects.note(&victim, taken, true);
        expected += 1 + u64::from(taken);
        words.set(ROUNDS, expected);
        receiver = Some(kept);
        path
    };
    // The first round makes everything as it is for the others.
    kill(How::Freely);
    let path = kill(How::Walk).expect("it has walked");
    for instructions in path.moments(budget) {
        kill(How::After(instructions, &path));
    }
    drop(receiver);
    peer.succeeds();
    effects.report(&format!("{}, sender {waits:?}, {cuts} cut", receiving.what), &path);
}

/// Kills the only receiver as it receives and closes its end: the sender, which waits for room, gets a broken pipe.
fn kill_last_receivers(receiving: &Receiving, waits: Waits, budget: usize) {
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut kills = 0;
    let mut buf = [0; 4096];
    let mut kill = |how: How<'_>| {
        let words = Shared::new();
        let (receiver, sender) = pipe(waits, SMALL);
        let (peer, receiver) = fork_split(receiver, sender, |sender| receiving.feed(sender, &words));
        receiving.await_full(waits, &peer, 0, &words, || receiver.fill());
        let mut victim = Victim::new(|| {
            let mut receiver = receiver;
            (receiving.act)(&mut receiver, &mut buf);
        });
        let path = how.forward(&mut victim, &[&peer]);
        victim.kill();
        let dead = Instant::now();
        peer.resume();
        peer.succeeds();
        slowest = slowest.max(dead.elapsed());
        kills += 1;
        path
    };
    kill(How::Freely);
    let path = kill(How::Walk).expect("it has walked");
    for instructions in path.moments(budget) {
        kill(How::After(instructions, &path));
    }
    println!(
        "{}, then a broken pipe, sender {waits:?}: {} instructions, {kills} kills, noticed after at most {slowest:.1?}; {:.1?}",
        receiving.what,
        path.len(),
        start.elapsed()
    );
    assert!(slowest < PATIENCE / 4, "a broken pipe took {slowest:?}");
}

const WAITS_FOR_ROOM: [Waits; 4] = [Waits::Spinning, Waits::Asleep, Waits::Parked, Waits::Stopped];

#[test]
fn a_receive_cut_off_after_any_instruction_takes_one_message_or_none_and_a_copy_goes_on() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        for waits in WAITS_FOR_ROOM {
            kill_receivers_whose_copy_goes_on(&RECEIVE, waits, BUDGET);
        }
        kill_receivers_whose_copy_goes_on(&RECEIVE_INTO, Waits::Asleep, BUDGET);
        kill_receivers_whose_copy_goes_on(&RECEIVE_IN_PLACE, Waits::Asleep, BUDGET);
    }
}

#[test]
fn a_receive_of_a_long_message_cut_off_after_any_instruction_takes_one_message_or_none() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        for waits in [Waits::Spinning, Waits::Parked] {
            kill_receivers_whose_copy_goes_on(&RECEIVE_LONG, waits, BUDGET_LONG);
        }
    }
}

#[test]
fn a_receive_of_a_pipe_end_cut_off_after_any_instruction_takes_one_or_none() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_receivers_whose_copy_goes_on(&RECEIVE_END, Waits::Asleep, BUDGET);
    }
}

#[test]
fn after_the_last_receiver_died_at_any_instruction_the_sender_gets_a_broken_pipe() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        for waits in WAITS_FOR_ROOM {
            kill_last_receivers(&RECEIVE, waits, BUDGET / 2);
        }
    }
}
