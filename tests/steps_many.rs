//! Processes killed between two instructions of what they do with a pipe for many: after the first of a send, after the second, and so on;
//! likewise for a receive, for a reservation, for what a forked child does at its first use, and for leaving.
//!
//! As in `steps.rs`, the victim is a real process, stopped by `ptrace(2)` and killed there. On either side there are others, in processes of their
//! own, which wait while the victim acts, and whom its death must not stop. After each kill it is looked at
//!
//! - whether they get what was sent: everything of each survivor, once and in order, and of the victim its message or nothing;
//! - how long that took;
//! - whether the whole ring can be filled and drained again, several times;
//! - whether the pipe comes to its end, in either direction.
//!
//! Tried are the instructions after which there is something new for others to see (a word in shared memory, or what a system call did), and a
//! sample of those in between; with `RINGPIPE_KILLS` set (to anything), all.

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

mod support;
#[path = "support/trace.rs"]
mod trace;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringpipe::mpmc::{Receiver, Sender};
use ringpipe::{Builder, RecvError, SendError};
use support::{Call, Child, Shared, alone, await_call, fork_copy, median, memory_of_pipes, nanos, watchdog};
use trace::{By, Effects, How, PATIENCE, Path, Victim, Waits, may_trace, message};

/// The smallest ring there is, in bytes and in messages of a cell.
const SMALL: usize = 64 << 10;
const CELLS: usize = SMALL / 64;
/// One cell, some cells, a large part of the ring, and more than a quarter of it, so that some lies outside.
const SHORT: usize = 56;
const MIDDLE: usize = 600;
const BULKY: usize = 4_000;
const LONG: usize = SMALL / 4 + 5_000;
/// How many kills a scenario makes at most in the short form, and one whose victims take long to get anywhere.
const BUDGET: usize = if cfg!(debug_assertions) { 70 } else { 100 };
const BUDGET_LONG: usize = BUDGET / 2;
/// What survivors are held up for, normally: a slice of a sleep or two, on a machine that does other things as well. The median of a scenario.
const SOON: Duration = Duration::from_millis(25);
/// And at most, where the documentation speaks of a second.
const AT_MOST: Duration = Duration::from_secs(3);

type Ends = (Receiver, Sender);

fn pipe() -> Ends {
    Builder::new().capacity(SMALL).spin(Duration::ZERO).mpmc().unwrap()
}

/// The message of that number, which says how long it is.
fn numbered(n: u64, by: By, len: usize) -> Vec<u8> {
    message(n | (len as u64) << 32, by, len)
}

/// Who sent a message, and its number. Panics unless it is whole.
fn identify(bytes: &[u8]) -> (By, u64) {
    assert!(bytes.len() >= 9, "nobody sent {bytes:x?}");
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let senders = [By::Victim, By::Survivor, By::SecondSurvivor, By::ThirdSurvivor];
    let by = senders.into_iter().find(|&by| by as u8 == bytes[8]).expect("somebody sent it");
    assert!(bytes == message(number, by, (number >> 32) as usize), "not as it was sent: {:x?}...", &bytes[..9]);
    (by, number & u64::from(u32::MAX))
}

/// For a process that a watchdog looks after, like all of them here.
fn no_alarm() {
    // SAFETY: no preconditions.
    unsafe { libc::alarm(0) };
}

/// How long survivors were held up.
struct Delays(Vec<Duration>);

impl Delays {
    fn report(&self, what: &str) {
        let (median, most) = (median(&self.0), self.0.iter().max().expect("somebody was killed"));
        println!("{what}: survivors went on after {median:.1?} (at most {most:.1?})");
        assert!(median < SOON, "{what}: it took {median:?}");
        assert!(*most < AT_MOST, "{what}: it took {most:?} once");
    }
}

/// Room that was lost would be missed here: the ring is filled with messages of one cell each, and drained, time and again.
fn use_the_whole_ring(receiver: &Receiver, sender: &Sender) {
    for lap in 0..3_u8 {
        let bytes = |n: usize| [n as u8, (n >> 8) as u8, lap];
        let sent = (0..).take_while(|&n| sender.try_send_bytes(&bytes(n)).is_ok()).count();
        assert_eq!(sent, CELLS, "not the whole ring could be used");
        for n in 0..CELLS {
            assert_eq!(receiver.try_recv_bytes().unwrap(), bytes(n));
        }
        assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
    }
}

/// The same with long messages.
fn use_all_windows(receiver: &Receiver, sender: &Sender) {
    for lap in 0..3 {
        for n in 0..3 {
            sender.try_send_bytes(&numbered(3 * lap + n, By::Survivor, LONG)).unwrap();
        }
        for n in 0..3 {
            assert_eq!(identify(&receiver.try_recv_bytes().unwrap()), (By::Survivor, 3 * lap + n));
        }
    }
    next_to_nothing_outside_of_the_ring();
}

/// No more memory is in use than a header, a word for each cell, the cells, and what the four windows keep of these messages.
fn next_to_nothing_outside_of_the_ring() {
    let outside = 4 * (LONG - SMALL / 4).next_multiple_of(4096);
    let (memory, most) = (memory_of_pipes(), 4096 + 8 * CELLS + SMALL + outside);
    assert!(memory <= most as u64, "{memory} bytes are in use for an empty ring, {most} expected");
}

/// Closes one side or the other; nobody else has anything of the pipe any more.
fn close(ends: Ends, sender_first: bool) {
    let (receiver, sender) = ends;
    let start = Instant::now();
    if sender_first {
        drop(sender);
        assert!(matches!(receiver.recv_bytes_timeout(PATIENCE), Err(RecvError::Disconnected)));
    } else {
        drop(receiver);
        assert!(sender.is_disconnected());
        assert!(matches!(sender.send_bytes_timeout(b"", PATIENCE), Err(SendError::Disconnected)));
    }
    assert!(start.elapsed() < AT_MOST, "the end took {:?}", start.elapsed());
}

// --- survivors ------------------------------------------------------------------------------------------------

/// Words by which survivors and the test tell each other how things stand.
const GO: usize = 0;
const ENDED: usize = 1;
const FOUND: usize = 2;
/// How many messages a receiver got, and which: a hundred words for each receiver.
const LOG: usize = 100;

/// How many survivors there are on a side, beside the test itself.
const SURVIVORS: usize = 2;

/// For a forked receiver: notes what it gets until an empty message comes, or end of file.
fn receive(receiver: Receiver, words: &Shared, me: usize) -> i32 {
    no_alarm();
    words.await_at_least(GO, 1);
    for n in 1.. {
        match receiver.recv_bytes_timeout(PATIENCE) {
            Ok(bytes) if bytes.is_empty() => return 0,
            Ok(bytes) => {
                let (by, number) = identify(&bytes);
                words.set(LOG * (me + 1) + n, (by as u64) << 32 | number);
                words.set(LOG * (me + 1), n as u64);
            }
            Err(RecvError::Disconnected) => {
                words.word(ENDED).fetch_add(1, Ordering::SeqCst);
                return 0;
            }
            Err(e) => panic!("receiver {me} after {n} messages: {e}"),
        }
    }
    unreachable!("there is no end to the numbers")
}

/// What receivers noted of one sender's messages. Panics if any of them got some in another order.
fn received(words: &Shared, by: By) -> Vec<u64> {
    let mut all = Vec::new();
    for me in 0..SURVIVORS {
        let at = LOG * (me + 1);
        let log = (at + 1..=at + words.get(at) as usize).map(|at| words.get(at));
        let own: Vec<u64> = log.filter(|entry| entry >> 32 == by as u64).map(|entry| entry & 0xffff_ffff).collect();
        assert!(own.is_sorted(), "out of order: {own:?}");
        all.extend(own);
    }
    all.sort_unstable();
    all
}

/// For a forked sender: sends bulky messages until so many are sent, or the pipe is broken.
fn send(sender: Sender, by: By, count: u64, words: &Shared) -> i32 {
    no_alarm();
    for n in 0..count {
        match sender.send_bytes_timeout(&numbered(n, by, BULKY), PATIENCE) {
            Ok(()) => {}
            Err(SendError::Disconnected) => {
                words.word(ENDED).fetch_add(1, Ordering::SeqCst);
                return 0;
            }
            Err(e) => panic!("{by:?} after {n} messages: {e}"),
        }
    }
    0
}

/// Forks receivers, and waits until they wait. Of those that are to be parked, the first is: the others follow.
fn fork_receivers(mut ends: Ends, waits: Waits, words: &Shared) -> (Vec<Child>, Ends) {
    words.set(GO, u64::from(waits != Waits::Stopped));
    let mut children = Vec::new();
    for me in 0..SURVIVORS {
        let child;
        (child, ends) = fork_copy(ends, |(receiver, sender)| {
            drop(sender);
            receive(receiver, words, me)
        });
        await_waiting(&child, me, waits);
        children.push(child);
    }
    (children, ends)
}

/// Likewise for senders.
fn fork_senders(mut ends: Ends, waits: Waits, count: u64, words: &Shared) -> (Vec<Child>, Ends) {
    let mut children = Vec::new();
    for (me, by) in [By::SecondSurvivor, By::ThirdSurvivor].into_iter().enumerate() {
        let child;
        (child, ends) = fork_copy(ends, |(receiver, sender)| {
            drop(receiver);
            send(sender, by, count, words)
        });
        await_waiting(&child, me, waits);
        children.push(child);
    }
    (children, ends)
}

fn await_waiting(child: &Child, me: usize, waits: Waits) {
    match waits {
        // Until it is told to begin.
        Waits::Stopped => {}
        Waits::Parked if me == 0 => await_call(child.pid, &[Call::Park]),
        _ => await_call(child.pid, &[Call::Futex, Call::Park]),
    }
}

fn peers(children: &[Child]) -> Vec<&Child> {
    children.iter().collect()
}

// --- senders ------------------------------------------------------------------------------------------------

/// Where in the ring the victim comes to send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Fresh,
    /// So close to the end of the ring that it has to be padded.
    AtTheEnd,
    /// The message just fits.
    NearlyFull,
    /// It does not.
    Full,
}

impl Start {
    /// Returns how many messages lie in the ring then.
    fn set_up(self, ends: &Ends) -> u64 {
        let (receiver, sender) = ends;
        let fill = |count: u64, len: usize| {
            (0..count).for_each(|n| sender.try_send_bytes(&numbered(n, By::Survivor, len)).unwrap());
            count
        };
        match self {
            Start::Fresh => 0,
            Start::AtTheEnd => {
                fill(4, SMALL / 4 - 3 * 64);
                (0..4).for_each(|_| drop(receiver.try_recv_bytes().unwrap()));
                0
            }
            Start::NearlyFull => fill(4, SMALL / 4 - 3 * 64),
            Start::Full => fill(4, SMALL / 4),
        }
    }
}

/// What the victim does with the sending end.
struct Sending {
    what: &'static str,
    start: Start,
    /// Bytes in the messages.
    victims: usize,
    survivors: usize,
    /// When it is done, a message has been sent.
    sends: bool,
    /// It goes in circles meanwhile.
    waits: bool,
    /// What it does before, undisturbed.
    before: fn(&Sender),
    /// Takes the end if it closes it.
    act: fn(&mut Option<Sender>, &[u8]),
}

fn end<E>(end: &Option<E>) -> &E {
    end.as_ref().expect("it is there until it is closed")
}

/// Becomes a member.
fn join_as_sender(sender: &Sender) {
    drop(sender.try_reserve(1));
}

const SEND: Sending = Sending {
    what: "a send",
    start: Start::Fresh,
    victims: SHORT,
    survivors: SHORT,
    sends: true,
    waits: false,
    before: join_as_sender,
    act: |sender, bytes| end(sender).send_bytes(bytes).unwrap(),
};
const SEND_WITH_PADDING: Sending =
    Sending { what: "a send across the end", start: Start::AtTheEnd, victims: MIDDLE, ..SEND };
const SEND_THE_LAST_THAT_FITS: Sending =
    Sending { what: "a send of the last that fits", start: Start::NearlyFull, victims: MIDDLE, ..SEND };
const SEND_LONG: Sending = Sending { what: "a send of a long message", victims: LONG, survivors: LONG, ..SEND };
/// Nobody receives, so it waits, at last as the leader, and in vain.
const SEND_IN_VAIN: Sending = Sending {
    what: "a send that waits in vain",
    start: Start::Full,
    sends: false,
    waits: true,
    act: |sender, bytes| {
        let result = end(sender).send_bytes_timeout(bytes, Duration::from_millis(12));
        assert!(matches!(result, Err(SendError::TimedOut)), "{result:?}");
    },
    ..SEND
};
const SEND_IN_PLACE: Sending = Sending {
    what: "a reservation and its commit",
    victims: MIDDLE,
    act: |sender, bytes| {
        let mut guard = end(sender).reserve(bytes.len() + 100).unwrap();
        guard.write(&bytes[..11]);
        guard.write(&bytes[11..]);
        guard.commit().unwrap();
    },
    ..SEND
};
const RESERVE_AND_DROP: Sending = Sending {
    what: "a reservation that is dropped",
    victims: MIDDLE,
    sends: false,
    act: |sender, bytes| end(sender).reserve(bytes.len()).unwrap().write(&bytes[..11]),
    ..SEND
};
/// In a forked child, which becomes a member by it.
const FIRST_SEND: Sending = Sending { what: "a child's first send", before: |_| {}, ..SEND };
/// With a reservation that is leaked, so that there is something to be given up.
const LEAVE_AS_SENDER: Sending = Sending {
    what: "leaving as a sender",
    sends: false,
    before: |sender| std::mem::forget(sender.reserve(MIDDLE).unwrap()),
    act: |sender, _| drop(sender.take()),
    ..SEND
};

impl Sending {
    /// Does what a process does only once, so that every victim takes the same path.
    fn warm_up(&self) {
        let ends = pipe();
        self.start.set_up(&ends);
        (self.before)(&ends.1);
        (self.act)(&mut Some(ends.1), &numbered(0, By::Victim, self.victims));
    }

    fn is_long(&self) -> bool {
        self.victims == LONG
    }

    /// A process that is about to act, and has no other end than the one to send.
    fn victim(&self, ends: Ends, bytes: &[u8]) -> (Victim, Ends) {
        let mut ends = Some(ends);
        let prepare = || {
            no_alarm();
            let (receiver, sender) = ends.take().expect("nobody else takes them");
            drop(receiver);
            (self.before)(&sender);
            Some(sender)
        };
        let victim = Victim::prepared(prepare, |mut sender| {
            (self.act)(&mut sender, bytes);
            // To close it is another act.
            std::mem::forget(sender);
        });
        (victim, ends.expect("only the child has taken them"))
    }
}

/// Kills senders while others receive, and others send.
fn kill_senders(sending: &Sending, waits: Waits, budget: usize) -> (Effects, Path) {
    // At the same place each time, as it is copied in another way at another.
    let bytes = numbered(0, By::Victim, sending.victims);
    sending.warm_up();
    let mut effects = Effects::new();
    let mut delays = Delays(Vec::new());
    let mut kill = |how: How<'_>| {
        let words = Shared::new();
        let ends = pipe();
        let ahead = sending.start.set_up(&ends);
        let (mut victim, ends) = sending.victim(ends, &bytes);
        let (receivers, (receiver, sender)) = fork_receivers(ends, waits, &words);
        let path = how.forward(&mut victim, &peers(&receivers));
        victim.kill();
        let dead = Instant::now();
        words.set(GO, 1);
        receivers.iter().for_each(Child::resume);
        sender.send_bytes_timeout(&numbered(ahead, By::Survivor, sending.survivors), PATIENCE).unwrap();
        while received(&words, By::Survivor).last() != Some(&ahead) {
            assert!(dead.elapsed() < PATIENCE, "killed after {}: nothing arrives", victim.instructions);
            std::thread::sleep(Duration::from_micros(20));
        }
        delays.0.push(dead.elapsed());
        receivers.iter().for_each(|_| sender.send_bytes_timeout(b"", PATIENCE).unwrap());
        receivers.iter().for_each(Child::succeeds);
        let all: Vec<u64> = (0..=ahead).collect();
        assert_eq!(received(&words, By::Survivor), all, "killed after {}", victim.instructions);
        let of_victim = received(&words, By::Victim);
        assert!(of_victim.is_empty() || sending.sends && of_victim == [0], "it sent {of_victim:?}");
        assert_eq!(words.get(ENDED), 0, "end of file, and there is a sender");
        effects.note(&victim, !of_victim.is_empty(), sending.sends);
        use_the_whole_ring(&receiver, &sender);
        if sending.is_long() {
            next_to_nothing_outside_of_the_ring();
            use_all_windows(&receiver, &sender);
        }
        close((receiver, sender), delays.0.len() % 2 == 0);
        path
    };
    // The first makes everything as it is for the others.
    kill(How::Freely);
    let path = kill(How::Walk).expect("it has walked");
    let moments = if sending.waits { path.first_moments(budget) } else { path.moments(budget) };
    for instructions in moments {
        kill(How::After(instructions, &path));
    }
    let what = format!("{}, receivers {waits:?}", sending.what);
    match sending.sends {
        true => effects.report(&what, &path),
        false => effects.report_kills(&what, &path),
    }
    delays.report(&what);
    (effects, path)
}

/// Kills the last sender: the receivers get its message or do not, and then end of file.
fn kill_last_senders(sending: &Sending, waits: Waits, budget: usize) {
    // At the same place each time, as it is copied in another way at another.
    let bytes = numbered(0, By::Victim, sending.victims);
    sending.warm_up();
    let mut effects = Effects::new();
    let mut delays = Delays(Vec::new());
    let mut kill = |how: How<'_>| {
        let words = Shared::new();
        let (mut victim, ends) = sending.victim(pipe(), &bytes);
        let (receivers, (receiver, sender)) = fork_receivers(ends, waits, &words);
        drop(sender);
        let path = how.forward(&mut victim, &peers(&receivers));
        victim.kill();
        let dead = Instant::now();
        words.set(GO, 1);
        receivers.iter().for_each(Child::resume);
        receivers.iter().for_each(Child::succeeds);
        delays.0.push(dead.elapsed());
        assert_eq!(words.get(ENDED), SURVIVORS as u64);
        let of_victim = received(&words, By::Victim);
        assert!(of_victim.is_empty() || sending.sends && of_victim == [0], "it sent {of_victim:?}");
        effects.note(&victim, !of_victim.is_empty(), sending.sends);
        assert!(matches!(receiver.recv_bytes_timeout(PATIENCE), Err(RecvError::Disconnected)));
        assert_eq!(receiver.fill(), 0);
        path
    };
    kill(How::Freely);
    let path = kill(How::Walk).expect("it has walked");
    for instructions in path.moments(budget) {
        kill(How::After(instructions, &path));
    }
    let what = format!("{}, then end of file, receivers {waits:?}", sending.what);
    match sending.sends {
        true => effects.report(&what, &path),
        false => effects.report_kills(&what, &path),
    }
    delays.report(&what);
}

#[test]
fn a_send_cut_off_after_any_instruction_leaves_a_whole_message_or_none_and_others_go_on() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        for (waits, budget) in [(Waits::Asleep, BUDGET), (Waits::Parked, BUDGET_LONG), (Waits::Stopped, BUDGET)] {
            let (effects, _) = kill_senders(&SEND, waits, budget);
            // Nothing depends on anybody's mood here, so there is one instruction that sends.
            assert!(effects.first > effects.last_without, "the message came and went");
        }
        kill_senders(&SEND_WITH_PADDING, Waits::Asleep, BUDGET);
        kill_senders(&SEND_THE_LAST_THAT_FITS, Waits::Stopped, BUDGET);
        kill_senders(&SEND_IN_VAIN, Waits::Stopped, BUDGET_LONG);
    }
}

/// How many are killed, each in a pipe of its own, where nobody does anything about it for a second.
const SILENT: usize = 12;

/// After each of these instructions, from one that has an effect to the end.
fn silent_moments(effects: &Effects, path: &Path) -> impl Iterator<Item = usize> + use<> {
    let (from, len) = (effects.first, path.len());
    (0..SILENT).map(move |n| from + n * (len - from) / SILENT)
}

/// What was done before a death, and perhaps not told, was found in time by those who wait, who noted in nanoseconds when.
fn all_found(what: &str, waiting: &[(Child, Shared, u64)]) {
    let took = waiting.iter().map(|(child, words, dead)| {
        child.succeeds();
        Duration::from_nanos(words.get(FOUND).saturating_sub(*dead))
    });
    let slowest = took.max().expect("somebody was killed");
    println!("{what} that was perhaps not told of: found after {slowest:.1?} at most");
    assert!(slowest < AT_MOST, "{what}: found after {slowest:?}");
}

/// The bell may not have been rung, and here nobody rings it later.
#[test]
fn a_message_of_a_killed_sender_is_found_within_a_second_though_silent_copies_live_on() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if !may_trace() {
        return;
    }
    let (effects, path) = kill_senders(&SEND, Waits::Parked, BUDGET_LONG);
    let bytes = numbered(0, By::Victim, SHORT);
    let (mut silent, mut waiting) = (Vec::new(), Vec::new());
    for instructions in silent_moments(&effects, &path) {
        let words = Shared::new();
        let (mut victim, ends) = SEND.victim(pipe(), &bytes);
        let (child, ends) = fork_copy(ends, |(receiver, sender)| {
            drop(sender);
            let got = receiver.recv_bytes_timeout(PATIENCE).unwrap();
            words.set(FOUND, nanos());
            i32::from(got != bytes)
        });
        await_waiting(&child, 0, Waits::Parked);
        victim.forward(&path, instructions);
        victim.kill();
        silent.push(ends);
        waiting.push((child, words, nanos()));
    }
    all_found("a message", &waiting);
}

#[test]
fn a_send_of_a_long_message_cut_off_after_any_instruction_leaves_all_of_it_or_nothing() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_senders(&SEND_LONG, Waits::Asleep, BUDGET_LONG);
        kill_senders(&SEND_LONG, Waits::Stopped, BUDGET_LONG);
    }
}

#[test]
fn a_reservation_cut_off_after_any_instruction_holds_nobody_up() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_senders(&SEND_IN_PLACE, Waits::Asleep, BUDGET);
        kill_senders(&RESERVE_AND_DROP, Waits::Asleep, BUDGET);
    }
}

#[test]
fn a_sender_killed_as_it_joins_or_leaves_holds_nobody_up() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_senders(&FIRST_SEND, Waits::Asleep, BUDGET);
        kill_senders(&LEAVE_AS_SENDER, Waits::Asleep, BUDGET);
    }
}

#[test]
fn after_the_last_sender_died_at_any_instruction_comes_its_message_or_none_and_then_the_end_for_all() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_last_senders(&SEND, Waits::Asleep, BUDGET_LONG);
        kill_last_senders(&SEND, Waits::Parked, BUDGET_LONG);
        kill_last_senders(&SEND_LONG, Waits::Stopped, BUDGET_LONG);
        kill_last_senders(&LEAVE_AS_SENDER, Waits::Asleep, BUDGET_LONG);
    }
}

// --- receivers ----------------------------------------------------------------------------------------------

/// What the victim does with the receiving end.
struct Receiving {
    what: &'static str,
    /// Bytes in the message that comes first.
    len: usize,
    /// It has taken the message before it acts.
    has_taken: bool,
    before: fn(&Receiver),
    /// Takes the end if it closes it.
    act: fn(&mut Option<Receiver>),
}

const RECEIVE: Receiving = Receiving {
    what: "a receive",
    len: SHORT,
    has_taken: false,
    before: |receiver| assert!(receiver.poll(Some(Duration::ZERO)).unwrap()),
    act: |receiver| drop(end(receiver).recv_bytes().unwrap()),
};
const RECEIVE_INTO: Receiving = Receiving {
    what: "a receive into a buffer",
    act: |receiver| assert_eq!(end(receiver).recv_bytes_into(&mut [0; 100], 3).unwrap(), SHORT),
    ..RECEIVE
};
const RECEIVE_LONG: Receiving = Receiving { what: "a receive of a long message", len: LONG, ..RECEIVE };
const RECEIVE_IN_PLACE: Receiving = Receiving {
    what: "a receive in place",
    len: MIDDLE,
    act: |receiver| end(receiver).recv_guard().unwrap().copy_to(100, &mut [0; 50]),
    ..RECEIVE
};
/// What it frees is room enough for those who wait.
const RECEIVE_BULKY: Receiving = Receiving { what: "a receive of a bulky message", len: BULKY, ..RECEIVE };
/// In a forked child, which becomes a member by it.
const FIRST_RECEIVE: Receiving = Receiving { what: "a child's first receive", before: |_| {}, ..RECEIVE };
/// With a message that is leaked, so that there is something to be given up.
const LEAVE_AS_RECEIVER: Receiving = Receiving {
    what: "leaving as a receiver",
    len: MIDDLE,
    has_taken: true,
    before: |receiver| std::mem::forget(receiver.recv_guard().unwrap()),
    act: |receiver| drop(receiver.take()),
};

impl Receiving {
    fn warm_up(&self) {
        let ends = pipe();
        self.fill_up(&ends);
        (self.before)(&ends.0);
        (self.act)(&mut Some(ends.0));
    }

    fn is_long(&self) -> bool {
        self.len == LONG
    }

    /// Fills the ring; returns how many messages it took.
    fn fill_up(&self, ends: &Ends) -> u64 {
        ends.1.try_send_bytes(&numbered(0, By::Survivor, self.len)).unwrap();
        (1..).find(|&n| ends.1.try_send_bytes(&numbered(n, By::Survivor, BULKY)).is_err()).expect("it has an end")
    }

    /// A process that is about to act, and has no other end than the one to receive from.
    fn victim(&self, ends: Ends) -> (Victim, Ends) {
        let mut ends = Some(ends);
        let prepare = || {
            no_alarm();
            let (receiver, sender) = ends.take().expect("nobody else takes them");
            drop(sender);
            (self.before)(&receiver);
            Some(receiver)
        };
        let victim = Victim::prepared(prepare, |mut receiver| {
            (self.act)(&mut receiver);
            // To close it is another act.
            std::mem::forget(receiver);
        });
        (victim, ends.expect("only the child has taken them"))
    }
}

/// Kills receivers of a full ring, while others wait for room, and one receives.
fn kill_receivers(receiving: &Receiving, waits: Waits, budget: usize) -> (Effects, Path) {
    const EACH: u64 = 6;
    receiving.warm_up();
    let mut effects = Effects::new();
    let mut delays = Delays(Vec::new());
    let mut kill = |how: How<'_>| {
        let words = Shared::new();
        let ends = pipe();
        let ahead = receiving.fill_up(&ends);
        let (mut victim, ends) = receiving.victim(ends);
        let (senders, (receiver, sender)) = fork_senders(ends, waits, EACH, &words);
        let path = how.forward(&mut victim, &peers(&senders));
        victim.kill();
        let dead = Instant::now();
        senders.iter().for_each(Child::resume);
        let mut got = Vec::new();
        let all = |by| match by {
            By::Survivor => ahead,
            _ => EACH,
        };
        let survivors = [By::Survivor, By::SecondSurvivor, By::ThirdSurvivor];
        while !survivors.iter().all(|&by| got.contains(&(by, all(by) - 1))) {
            let bytes = receiver.recv_bytes_timeout(PATIENCE);
            let bytes = bytes.unwrap_or_else(|e| panic!("killed after {}, {e}: {got:?}", victim.instructions));
            got.push(identify(&bytes));
        }
        delays.0.push(dead.elapsed());
        senders.iter().for_each(Child::succeeds);
        assert_eq!(words.get(ENDED), 0, "a broken pipe, and there is a receiver");
        let taken = !got.contains(&(By::Survivor, 0));
        for by in survivors {
            let of_one: Vec<u64> = got.iter().filter(|of| of.0 == by).map(|of| of.1).collect();
            let first = u64::from(by == By::Survivor && taken);
            assert!(of_one.iter().copied().eq(first..all(by)), "killed after {}: {of_one:?}", victim.instructions);
        }
        if receiving.has_taken {
            assert!(taken, "what had been taken came again");
        }
        effects.note(&victim, taken && !receiving.has_taken, !receiving.has_taken);
        use_the_whole_ring(&receiver, &sender);
        if receiving.is_long() {
            next_to_nothing_outside_of_the_ring();
            use_all_windows(&receiver, &sender);
        }
        close((receiver, sender), delays.0.len() % 2 == 0);
        path
    };
    // The first makes everything as it is for the others.
    kill(How::Freely);
    let path = kill(How::Walk).expect("it has walked");
    for instructions in path.moments(budget) {
        kill(How::After(instructions, &path));
    }
    let what = format!("{}, senders {waits:?}", receiving.what);
    match receiving.has_taken {
        true => effects.report_kills(&what, &path),
        false => effects.report(&what, &path),
    }
    delays.report(&what);
    (effects, path)
}

/// Kills the last receiver: the senders, which wait for room, get a broken pipe.
fn kill_last_receivers(receiving: &Receiving, waits: Waits, budget: usize) {
    receiving.warm_up();
    let mut delays = Delays(Vec::new());
    let start = Instant::now();
    let mut kill = |how: How<'_>| {
        let words = Shared::new();
        let ends = pipe();
        receiving.fill_up(&ends);
        let (mut victim, ends) = receiving.victim(ends);
        let (senders, (receiver, sender)) = fork_senders(ends, waits, u64::MAX, &words);
        drop(receiver);
        let path = how.forward(&mut victim, &peers(&senders));
        victim.kill();
        let dead = Instant::now();
        senders.iter().for_each(Child::resume);
        senders.iter().for_each(Child::succeeds);
        delays.0.push(dead.elapsed());
        assert_eq!(words.get(ENDED), SURVIVORS as u64);
        assert!(sender.is_disconnected());
        path
    };
    kill(How::Freely);
    let path = kill(How::Walk).expect("it has walked");
    for instructions in path.moments(budget) {
        kill(How::After(instructions, &path));
    }
    let what = format!("{}, then a broken pipe, senders {waits:?}", receiving.what);
    println!("{what}: {} instructions, {} kills; {:.1?}", path.len(), delays.0.len(), start.elapsed());
    delays.report(&what);
}

#[test]
fn a_receive_cut_off_after_any_instruction_takes_one_message_or_none_and_others_go_on() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_receivers(&RECEIVE, Waits::Asleep, BUDGET);
        kill_receivers(&RECEIVE, Waits::Parked, BUDGET_LONG);
        kill_receivers(&RECEIVE_INTO, Waits::Asleep, BUDGET);
        kill_receivers(&RECEIVE_IN_PLACE, Waits::Asleep, BUDGET);
    }
}

#[test]
fn a_receive_of_a_long_message_cut_off_after_any_instruction_takes_all_of_it_or_nothing() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_receivers(&RECEIVE_LONG, Waits::Asleep, BUDGET_LONG);
    }
}

#[test]
fn a_receiver_killed_as_it_joins_or_leaves_holds_nobody_up() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_receivers(&FIRST_RECEIVE, Waits::Asleep, BUDGET);
        kill_receivers(&LEAVE_AS_RECEIVER, Waits::Asleep, BUDGET);
    }
}

#[test]
fn after_the_last_receiver_died_at_any_instruction_all_senders_get_a_broken_pipe() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        kill_last_receivers(&RECEIVE, Waits::Asleep, BUDGET_LONG);
        kill_last_receivers(&RECEIVE, Waits::Parked, BUDGET_LONG);
        kill_last_receivers(&LEAVE_AS_RECEIVER, Waits::Asleep, BUDGET_LONG);
    }
}

#[test]
fn the_room_of_a_message_that_a_killed_receiver_had_taken_is_found_within_a_second_though_silent_copies_live_on() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if !may_trace() {
        return;
    }
    let (effects, path) = kill_receivers(&RECEIVE_BULKY, Waits::Parked, BUDGET_LONG);
    let (mut silent, mut waiting) = (Vec::new(), Vec::new());
    for instructions in silent_moments(&effects, &path) {
        let words = Shared::new();
        let ends = pipe();
        RECEIVE_BULKY.fill_up(&ends);
        let (mut victim, ends) = RECEIVE_BULKY.victim(ends);
        let (child, ends) = fork_copy(ends, |(receiver, sender)| {
            drop(receiver);
            sender.send_bytes_timeout(&numbered(0, By::SecondSurvivor, BULKY), PATIENCE).unwrap();
            words.set(FOUND, nanos());
            0
        });
        await_waiting(&child, 0, Waits::Parked);
        victim.forward(&path, instructions);
        victim.kill();
        silent.push(ends);
        waiting.push((child, words, nanos()));
    }
    all_found("room", &waiting);
}

// --- who was woken --------------------------------------------------------------------------------------------

/// A receiver waits, and is killed on the way from there to the message that comes when it is in one of these calls; another fell asleep after it.
fn kill_waiting(what: &str, calls: &[Call], act: fn(&mut Option<Receiver>), budget: usize) -> (Effects, Path) {
    let before = |receiver: &Receiver| assert!(!receiver.poll(Some(Duration::ZERO)).unwrap());
    let waits = Receiving { what: "a receive that waits", before, act, ..RECEIVE };
    let calls: Vec<String> = calls.iter().map(|&call| support::call_number(call)).collect();
    let mut effects = Effects::new();
    let mut delays = Delays(Vec::new());
    let mut kill = |how: How<'_>| {
        let words = Shared::new();
        let (mut victim, ends) = waits.victim(pipe());
        let (other, (receiver, sender)) = fork_copy(ends, |(receiver, sender)| {
            drop(sender);
            receive(receiver, &words, 0)
        });
        let (pid, is_over) = (victim.child.pid, AtomicBool::new(false));
        let (path, dead, sent) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && !calls.contains(&support::doing(pid)) {
                    std::thread::sleep(Duration::from_micros(20));
                }
                words.set(GO, 1);
                await_waiting(&other, 1, Waits::Asleep);
                sender.send_bytes(&numbered(0, By::SecondSurvivor, SHORT)).unwrap();
                Instant::now()
            });
            let path = how.forward(&mut victim, &[]);
            victim.kill();
            let dead = Instant::now();
            is_over.store(true, Ordering::Relaxed);
            (path, dead, sender.join().unwrap())
        });
        let last = sent.max(dead);
        while !receiver.is_empty() {
            assert!(last.elapsed() < PATIENCE, "killed after {}: the message is left", victim.instructions);
            std::thread::sleep(Duration::from_micros(20));
        }
        delays.0.push(last.elapsed());
        sender.send_bytes(&numbered(0, By::Survivor, SHORT)).unwrap();
        sender.send_bytes(b"").unwrap();
        other.succeeds();
        assert_eq!(received(&words, By::Survivor), [0]);
        let got = received(&words, By::SecondSurvivor);
        assert!(got.is_empty() || got == [0], "{got:?}");
        // The other may have been faster.
        effects.note(&victim, got.is_empty(), got.is_empty());
        use_the_whole_ring(&receiver, &sender);
        close((receiver, sender), delays.0.len() % 2 == 0);
        path
    };
    kill(How::Freely);
    let path = kill(How::Walk).expect("it has walked");
    for instructions in path.first_moments(budget) {
        kill(How::After(instructions, &path));
    }
    delays.report(what);
    (effects, path)
}

fn receive_within<const MILLIS: u64>(receiver: &mut Option<Receiver>) {
    drop(end(receiver).recv_bytes_timeout(Duration::from_millis(MILLIS)));
}

#[test]
fn a_message_for_which_a_killed_receiver_was_woken_is_received_by_another_at_once() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        let what = "a receive that is woken";
        let (effects, path) = kill_waiting(what, &[Call::Futex, Call::Park], receive_within::<200>, BUDGET);
        effects.report(what, &path);
    }
}

#[test]
fn a_message_that_comes_when_the_receiver_that_watches_the_bell_is_killed_is_received_by_another_at_once() {
    let _alone = alone();
    let _watchdog = watchdog(600);
    if may_trace() {
        let what = "a receive that watches the bell";
        // The other is told as well, and most often faster than somebody who is traced.
        let (effects, path) = kill_waiting(what, &[Call::Park], receive_within::<20>, BUDGET_LONG);
        effects.report_kills(what, &path);
    }
}
