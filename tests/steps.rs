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

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ringpipe::{Builder, Receiver, RecvError, SendError, Sender};
use support::{Call, Child, Shared, alone, await_call, fork, fork_split, poll_fd, skip, watchdog};

const PATIENCE: Duration = Duration::from_secs(20);
/// A ring that short messages fill soon.
const SMALL: usize = 4096;
/// With its header a divisor of every ring, so that every send takes the same path.
const SHORT: usize = 56;
/// How many kills a scenario makes at most in the short form, and one whose victims take long to get anywhere.
const BUDGET: usize = if cfg!(debug_assertions) { 120 } else { 1_000 };
const BUDGET_LONG: usize = if cfg!(debug_assertions) { 30 } else { 400 };

// --- so many instructions ---------------------------------------------------------------------------------

/// What differs between processors: registers, and an instruction that traps, as the lowest bytes of a word.
#[cfg(target_arch = "x86_64")]
mod machine {
    pub(crate) const TRAP: (u64, u64) = (0xcc, 0xff);

    pub(crate) fn program_counter(registers: &mut libc::user_regs_struct) -> &mut u64 {
        &mut registers.rip
    }
}
#[cfg(target_arch = "aarch64")]
mod machine {
    pub(crate) const TRAP: (u64, u64) = (0xd420_0000, 0xffff_ffff);

    pub(crate) fn program_counter(registers: &mut libc::user_regs_struct) -> &mut u64 {
        &mut registers.pc
    }
}

/// `ptrace(2)`.
fn trace(request: libc::c_uint, pid: libc::pid_t, address: u64, data: u64) -> libc::c_long {
    // SAFETY: of the requests made here, only that for registers writes to this process's memory: see there.
    unsafe { libc::ptrace(request as _, pid, address as *mut libc::c_void, data as *mut libc::c_void) }
}

fn checked(result: libc::c_long) {
    assert!(result >= 0, "ptrace: {}", io::Error::last_os_error());
}

/// Whether a child may be traced here.
fn may_trace() -> bool {
    let child = fork(|| i32::from(trace(libc::PTRACE_TRACEME, 0, 0, 0) != 0));
    let allowed = child.wait().code() == Some(0);
    if !allowed {
        skip("kills between two instructions", "ptrace(2) is refused");
    }
    allowed
}

/// Where the instructions of an act lie, in the order in which they are executed. Children forked later have them at the same places.
struct Path {
    addresses: Vec<u64>,
    /// For every place in it, the last one before whose address had not occurred before: a breakpoint there is hit exactly then.
    landmarks: Vec<usize>,
}

impl Path {
    fn new(addresses: Vec<u64>) -> Path {
        let (mut known, mut last) = (HashSet::new(), 0);
        let landmark = |(place, &address): (usize, &u64)| {
            last = if known.insert(address) { place } else { last };
            last
        };
        let landmarks = addresses.iter().enumerate().map(landmark).collect();
        Path { addresses, landmarks }
    }

    fn len(&self) -> usize {
        self.addresses.len()
    }

    /// After how many instructions to kill: all numbers, or as many as fit the budget.
    fn moments(&self, budget: usize) -> impl Iterator<Item = usize> + use<> {
        let every = if std::env::var_os("RINGPIPE_KILLS").is_some() { 1 } else { self.len().div_ceil(budget).max(1) };
        // The last has all behind it.
        (0..self.len()).step_by(every).chain([self.len() - 1])
    }
}

/// A child that is about to act, or in the midst of it, and stands still.
struct Victim {
    child: Child,
    instructions: usize,
    over: bool,
}

impl Victim {
    /// Forks a child that does `act` and nothing else. What `act` owns is the child's alone.
    fn new(act: impl FnOnce()) -> Victim {
        let child = fork(|| {
            checked(trace(libc::PTRACE_TRACEME, 0, 0, 0));
            // SAFETY: no preconditions.
            unsafe { libc::raise(libc::SIGSTOP) };
            act();
            // SAFETY: no preconditions.
            unsafe { libc::raise(libc::SIGSTOP) };
            0
        });
        let victim = Victim { child, instructions: 0, over: false };
        assert_eq!(victim.stopped_by(), libc::SIGSTOP, "the victim stops before it acts");
        checked(trace(libc::PTRACE_SETOPTIONS, victim.child.pid, 0, libc::PTRACE_O_EXITKILL as u64));
        victim
    }

    /// As `new`, with a copy of `end`, which is not closed when the act is over: closing is another act.
    fn with_copy<E>(end: E, act: impl FnOnce(&mut E)) -> (Victim, E) {
        let mut end = Some(end);
        let victim = Victim::new(|| {
            let mut end = end.take().expect("nobody else takes it");
            act(&mut end);
            std::mem::forget(end);
        });
        (victim, end.expect("only the child has taken it"))
    }

    /// Waits until it stands still again; returns the signal that is the reason.
    fn stopped_by(&self) -> libc::c_int {
        let mut status = 0;
        // SAFETY: `status` is an integer of ours.
        let changed = unsafe { libc::waitpid(self.child.pid, &mut status, libc::__WALL) };
        assert_eq!(changed, self.child.pid, "waitpid: {}", io::Error::last_os_error());
        assert!(libc::WIFSTOPPED(status), "the victim ended by itself: wait status {status:#x}");
        libc::WSTOPSIG(status)
    }

    /// Reads the registers, or writes them.
    fn registers(&self, request: libc::c_uint, registers: &mut libc::user_regs_struct) {
        const NT_PRSTATUS: u64 = 1;
        let mut part = libc::iovec {
            iov_base: std::ptr::from_mut(registers).cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        // What is written to lies behind `part`, and is as long as it says.
        checked(trace(request, self.child.pid, NT_PRSTATUS, &raw mut part as u64));
    }

    fn all_registers(&self) -> libc::user_regs_struct {
        // SAFETY: plain numbers, for which zeros are valid.
        let mut registers = unsafe { std::mem::zeroed() };
        self.registers(libc::PTRACE_GETREGSET, &mut registers);
        registers
    }

    /// The whole act, one instruction after the other.
    fn walk(&mut self) -> Path {
        let mut addresses = Vec::new();
        while !self.over {
            addresses.push(*machine::program_counter(&mut self.all_registers()));
            self.step();
        }
        Path::new(addresses)
    }

    fn step(&mut self) {
        checked(trace(libc::PTRACE_SINGLESTEP, self.child.pid, 0, 0));
        self.went_on(self.instructions + 1);
    }

    fn went_on(&mut self, instructions: usize) {
        match self.stopped_by() {
            libc::SIGTRAP => self.instructions = instructions,
            libc::SIGSTOP => self.over = true,
            signal => panic!("signal {signal} after {} instructions or more", self.instructions),
        }
    }

    /// Goes forward by so many instructions along the path: to the last landmark at full speed, and the rest in steps. Should it take
    /// another path, then to the end of the act.
    fn forward(&mut self, path: &Path, instructions: usize) {
        let landmark = path.landmarks[instructions];
        if landmark > 0 {
            let (pid, address) = (self.child.pid, path.addresses[landmark]);
            let (trap, bits) = machine::TRAP;
            let word = trace(libc::PTRACE_PEEKTEXT, pid, address, 0) as u64;
            checked(trace(libc::PTRACE_POKETEXT, pid, address, word & !bits | trap));
            checked(trace(libc::PTRACE_CONT, pid, 0, 0));
            self.went_on(landmark);
            checked(trace(libc::PTRACE_POKETEXT, pid, address, word));
            let mut registers = self.all_registers();
            if !self.over {
                *machine::program_counter(&mut registers) = address;
                self.registers(libc::PTRACE_SETREGSET, &mut registers);
            }
        }
        while !self.over && self.instructions < instructions {
            self.step();
        }
    }

    fn kill(&self) {
        self.child.kill();
        assert!(self.child.wait().was_killed());
    }
}

/// From when on an act had an effect on others.
struct Effects {
    start: Instant,
    kills: usize,
    effects: usize,
    strayed: usize,
    first: usize,
    last_without: usize,
}

impl Effects {
    fn new() -> Effects {
        Effects { start: Instant::now(), kills: 0, effects: 0, strayed: 0, first: usize::MAX, last_without: 0 }
    }

    /// An act that is over has its effect (if it is to have one), and one that has not begun has none.
    fn note(&mut self, victim: &Victim, effect: bool, wanted: bool) {
        assert!(!victim.over || effect == wanted, "a finished act had the wrong effect");
        assert!(!effect || victim.instructions > 0 || victim.over, "an act that had not begun had an effect");
        self.kills += 1;
        self.effects += usize::from(effect);
        match (victim.over, effect) {
            (true, _) => self.strayed += 1,
            (false, true) => self.first = self.first.min(victim.instructions),
            (false, false) => self.last_without = self.last_without.max(victim.instructions),
        }
    }

    fn report(&self, what: &str, path: &Path) {
        let Effects { start, kills, effects, strayed, first, last_without } = self;
        println!(
            "{what}: {} instructions, {kills} kills, {strayed} too late; effect from {first} on, none up to \
             {last_without}; {:.1?}",
            path.len(),
            start.elapsed()
        );
        assert!(*effects > 0 && *last_without > 0, "nobody was killed before, or nobody after");
        // The first is meant to be.
        assert!(strayed * 2 < *kills, "most went another way than the first, so little was shown");
    }
}

// --- peers --------------------------------------------------------------------------------------------------

/// Who sent a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Victim = 0x11,
    Survivor = 0x22,
}

/// The message of a round: like no other.
fn message(round: u64, by: By, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len as u64).map(|i| (i * 7 + (i >> 8) + round * 31) as u8 ^ by as u8).collect();
    bytes[..8].copy_from_slice(&round.to_le_bytes());
    bytes[8] = by as u8;
    bytes
}

/// How a peer waits while the victim acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Spinning,
    /// On the futex, at least at first.
    Asleep,
    Parked,
    /// For a message, outside of the library.
    Epoll,
    /// Not at all: it is stopped until the victim is dead.
    Stopped,
}

impl Waits {
    const ALL: [Waits; 5] = [Waits::Spinning, Waits::Asleep, Waits::Parked, Waits::Epoll, Waits::Stopped];

    fn pipe(self, capacity: usize) -> (Receiver, Sender) {
        let spin = if self == Waits::Spinning { Duration::from_secs(1) } else { Duration::ZERO };
        Builder::new().capacity(capacity).spin(spin).simplex().unwrap()
    }

    /// Until the peer waits in this way.
    fn await_in(self, peer: &Child) {
        match self {
            Waits::Spinning => {}
            Waits::Asleep => await_call(peer.pid, &[Call::Futex, Call::Park]),
            Waits::Parked => await_call(peer.pid, &[Call::Park]),
            Waits::Epoll => await_call(peer.pid, &[Call::Epoll]),
            Waits::Stopped => peer.stop(),
        }
    }
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

/// Waits until a peer has set this word; it may be dead instead.
fn await_word(words: &Shared, index: usize, value: u64, peer: &Child) {
    let end = Instant::now() + PATIENCE;
    while words.get(index) < value {
        assert!(Instant::now() < end, "the peer does not get to {value}; it is at {}", words.get(index));
        assert!(support::is_alive(peer.pid), "the peer died at {}: {:?}", words.get(index), peer.wait());
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// How a victim goes forward.
enum How<'a> {
    /// To the end, without further ado.
    Freely,
    /// In steps to the end, to find the path. The peer stands still meanwhile, or would drive somebody so slow in circles.
    Walk,
    After(usize, &'a Path),
}

impl How<'_> {
    fn forward(&self, victim: &mut Victim, peer: &Child) -> Option<Path> {
        match self {
            How::Freely => {
                checked(trace(libc::PTRACE_CONT, victim.child.pid, 0, 0));
                victim.went_on(0);
                None
            }
            How::Walk => {
                peer.stop();
                Some(victim.walk())
            }
            How::After(instructions, path) => {
                victim.forward(path, *instructions);
                None
            }
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
        let (_receiver, mut sender) = Waits::Parked.pipe(self.capacity);
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
    let (receiver, sender) = waits.pipe(sending.capacity);
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
        let path = how.forward(&mut victim, &peer);
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
        let (receiver, sender) = waits.pipe(sending.capacity);
        let (peer, sender) = fork_split(sender, receiver, |receiver| check_rounds(receiver, waits, sending, &seen));
        waits.await_in(&peer);
        let load = sending.load(0, By::Victim);
        let mut victim = Victim::new(|| {
            let mut sender = sender;
            (sending.act)(&mut sender, load);
        });
        let path = how.forward(&mut victim, &peer);
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
        let (receiver, sender) = Waits::Parked.pipe(SMALL);
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
    let (receiver, sender) = waits.pipe(SMALL);
    let (peer, receiver) = fork_split(receiver, sender, |sender| receiving.feed(sender, &words));
    let mut receiver = Some(receiver);
    let mut effects = Effects::new();
    let (mut expected, mut cuts) = (0, 0);
    let mut buf = [0; 4096];
    let mut kill = |how: How<'_>| {
        let end = receiver.take().expect("given back every time");
        receiving.await_full(waits, &peer, expected, &words, || end.fill());
        let (mut victim, mut kept) = Victim::with_copy(end, |receiver| (receiving.act)(receiver, &mut buf));
        let path = how.forward(&mut victim, &peer);
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
        let (receiver, sender) = waits.pipe(SMALL);
        let (peer, receiver) = fork_split(receiver, sender, |sender| receiving.feed(sender, &words));
        receiving.await_full(waits, &peer, 0, &words, || receiver.fill());
        let mut victim = Victim::new(|| {
            let mut receiver = receiver;
            (receiving.act)(&mut receiver, &mut buf);
        });
        let path = how.forward(&mut victim, &peer);
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
