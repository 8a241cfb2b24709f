//! Victims: processes that are stopped after so many instructions of an act, by means of `ptrace(2)`, and killed there.
//!
//! For the tests that do so, which name this file; the others do without it.
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::HashSet;
use std::fs::{File, read_link};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::support::{Call, Child, Shared, await_call, fork, is_alive, open_fds, skip};

/// Nothing takes so long unless somebody is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

// --- so many instructions ---------------------------------------------------------------------------------

/// What differs between processors: registers, an instruction that traps and one that calls the system, as the lowest bytes of a word.
#[cfg(target_arch = "x86_64")]
mod machine {
    pub(crate) const TRAP: (u64, u64) = (0xcc, 0xff);
    pub(crate) const CALL: (u64, u64) = (0x050f, 0xffff);

    pub(crate) fn program_counter(registers: &mut libc::user_regs_struct) -> &mut u64 {
        &mut registers.rip
    }
}
#[cfg(target_arch = "aarch64")]
mod machine {
    pub(crate) const TRAP: (u64, u64) = (0xd420_0000, 0xffff_ffff);
    pub(crate) const CALL: (u64, u64) = (0xd400_0001, 0xffff_ffff);

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
pub(crate) fn may_trace() -> bool {
    let child = fork(|| i32::from(trace(libc::PTRACE_TRACEME, 0, 0, 0) != 0));
    let allowed = child.wait().code() == Some(0);
    if !allowed {
        skip("kills between two instructions", "ptrace(2) is refused");
    }
    allowed
}

/// Where the instructions of an act lie, in the order in which they are executed. Children forked later have them at the same places.
pub(crate) struct Path {
    addresses: Vec<u64>,
    /// For every place in it, the last one before whose address had not occurred before: a breakpoint there is hit exactly then.
    landmarks: Vec<usize>,
    /// After how many instructions there was something new for others to see: a word in shared memory, or what a system call did.
    shown: Vec<usize>,
}

impl Path {
    fn new(addresses: Vec<u64>, shown: Vec<usize>) -> Path {
        let (mut known, mut last) = (HashSet::new(), 0);
        let landmark = |(place, &address): (usize, &u64)| {
            last = if known.insert(address) { place } else { last };
            last
        };
        let landmarks = addresses.iter().enumerate().map(landmark).collect();
        Path { addresses, landmarks, shown }
    }

    pub(crate) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// How many instructions that is, if one that repeats itself counts once.
    pub(crate) fn instructions(&self) -> usize {
        self.addresses.chunk_by(|a, b| a == b).count()
    }

    /// After how many instructions to kill: all numbers, or as many as fit the budget. An instruction that repeats itself, to copy a
    /// string, is cut off before it starts, in the middle, and before its last round.
    pub(crate) fn moments(&self, budget: usize) -> Vec<usize> {
        let mut moments = Vec::new();
        for rounds in self.addresses.chunk_by(|a, b| a == b) {
            let first = moments.last().map_or(0, |last| last + 1);
            let last = first + rounds.len() - 1;
            moments.extend([first, first.midpoint(last), last]);
            moments.dedup();
        }
        self.as_many_as_fit(moments, budget)
    }

    /// Likewise, but only the first time of each instruction: for acts that go in circles, more or less often.
    pub(crate) fn first_moments(&self, budget: usize) -> Vec<usize> {
        let moments = self.landmarks.iter().enumerate().filter(|&(place, &landmark)| place == landmark);
        self.as_many_as_fit(moments.map(|(place, _)| place).collect(), budget)
    }

    /// Beside a sample, every one after which there was something new for others to see, unless that is too many as well.
    fn as_many_as_fit(&self, moments: Vec<usize>, budget: usize) -> Vec<usize> {
        let all = std::env::var_os("RINGPIPE_KILLS").is_some();
        let every = |count: usize| if all { 1 } else { count.div_ceil(budget).max(1) };
        let sample = moments.iter().step_by(every(moments.len()));
        let shown = self.shown.iter().step_by(every(self.shown.len())).filter(|&&moment| moment < self.len());
        let mut chosen: Vec<usize> = sample.chain(shown).copied().collect();
        chosen.sort_unstable();
        chosen.dedup();
        // The last has all behind it.
        chosen.push(self.len() - 1);
        chosen
    }
}

/// The memory files of this process's pipes.
fn memory_files() -> Vec<File> {
    let paths = open_fds().into_iter().map(|fd| format!("/proc/self/fd/{fd}"));
    let ours = paths.filter(|path| read_link(path).is_ok_and(|file| file.starts_with("/memfd:ringpipe (deleted)")));
    ours.map(|path| File::open(path).expect("it is open")).collect()
}

/// What lies before the messages in the smallest pipe for many, which is more than lies before them in one of two.
fn control_words(files: &[File]) -> Vec<u8> {
    const LEN: usize = 3 * 4096;
    let mut bytes = vec![0; files.len() * LEN];
    for (file, part) in files.iter().zip(bytes.chunks_mut(LEN)) {
        file.read_at(part, 0).expect("memory can be read");
    }
    bytes
}

/// A child that is about to act, or in the midst of it, and stands still.
pub(crate) struct Victim {
    pub(crate) child: Child,
    pub(crate) instructions: usize,
    pub(crate) over: bool,
}

impl Victim {
    /// Forks a child that does `act` and nothing else. What `act` owns is the child's alone.
    pub(crate) fn new(act: impl FnOnce()) -> Victim {
        Victim::prepared(|| {}, |()| act())
    }

    /// As `new`, with something to be done before, at the end of which it stands still.
    pub(crate) fn prepared<T>(prepare: impl FnOnce() -> T, act: impl FnOnce(T)) -> Victim {
        let child = fork(|| {
            let prepared = prepare();
            checked(trace(libc::PTRACE_TRACEME, 0, 0, 0));
            // SAFETY: no preconditions.
            unsafe { libc::raise(libc::SIGSTOP) };
            act(prepared);
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
    pub(crate) fn with_copy<E>(end: E, act: impl FnOnce(&mut E)) -> (Victim, E) {
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
        let files = memory_files();
        let (mut addresses, mut shown, mut before) = (Vec::new(), Vec::new(), control_words(&files));
        while !self.over {
            let address = *machine::program_counter(&mut self.all_registers());
            let (call, bits) = machine::CALL;
            let calls = trace(libc::PTRACE_PEEKTEXT, self.child.pid, address, 0) as u64 & bits == call;
            addresses.push(address);
            self.step();
            let now = control_words(&files);
            if calls || now != before {
                shown.push(addresses.len());
            }
            before = now;
        }
        Path::new(addresses, shown)
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
    pub(crate) fn forward(&mut self, path: &Path, instructions: usize) {
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

    pub(crate) fn kill(&self) {
        self.child.kill();
        assert!(self.child.wait().was_killed());
    }
}

/// From when on an act had an effect on others.
pub(crate) struct Effects {
    start: Instant,
    kills: usize,
    effects: usize,
    strayed: usize,
    pub(crate) first: usize,
    pub(crate) last_without: usize,
}

impl Effects {
    pub(crate) fn new() -> Effects {
        Effects { start: Instant::now(), kills: 0, effects: 0, strayed: 0, first: usize::MAX, last_without: 0 }
    }

    /// An act that is over has its effect (if it is to have one), and one that has not begun has none.
    pub(crate) fn note(&mut self, victim: &Victim, effect: bool, wanted: bool) {
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

    /// For acts that have one.
    pub(crate) fn report(&self, what: &str, path: &Path) {
        let Effects { effects, first, last_without, .. } = self;
        self.report_kills(&format!("{what} (effect from {first} on, none up to {last_without})"), path);
        assert!(*effects > 0 && *last_without > 0, "nobody was killed before, or nobody after");
    }

    pub(crate) fn report_kills(&self, what: &str, path: &Path) {
        let Effects { start, kills, strayed, .. } = self;
        println!("{what}: {} instructions, {kills} kills, {strayed} too late; {:.1?}", path.len(), start.elapsed());
        // The first is meant to be.
        assert!(strayed * 2 < *kills, "most went another way than the first, so little was shown");
    }
}

// --- peers --------------------------------------------------------------------------------------------------

/// Who sent a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    Victim = 0x11,
    Survivor = 0x22,
    SecondSurvivor = 0x33,
    ThirdSurvivor = 0x44,
}

/// The message of a round: like no other.
pub(crate) fn message(round: u64, by: By, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len as u64).map(|i| (i * 7 + (i >> 8) + round * 31) as u8 ^ by as u8).collect();
    bytes[..8].copy_from_slice(&round.to_le_bytes());
    bytes[8] = by as u8;
    bytes
}

/// How a peer waits while the victim acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
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
    pub(crate) const ALL: [Waits; 5] = [Waits::Spinning, Waits::Asleep, Waits::Parked, Waits::Epoll, Waits::Stopped];

    /// Until the peer waits in this way.
    pub(crate) fn await_in(self, peer: &Child) {
        match self {
            Waits::Spinning => {}
            Waits::Asleep => await_call(peer.pid, &[Call::Futex, Call::Park]),
            Waits::Parked => await_call(peer.pid, &[Call::Park]),
            Waits::Epoll => await_call(peer.pid, &[Call::Epoll]),
            Waits::Stopped => peer.stop(),
        }
    }
}

/// Waits until a peer has set this word; it may be dead instead.
pub(crate) fn await_word(words: &Shared, index: usize, value: u64, peer: &Child) {
    let end = Instant::now() + PATIENCE;
    while words.get(index) < value {
        assert!(Instant::now() < end, "the peer does not get to {value}; it is at {}", words.get(index));
        assert!(is_alive(peer.pid), "the peer died at {}: {:?}", words.get(index), peer.wait());
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// How a victim goes forward.
pub(crate) enum How<'a> {
    /// To the end, without further ado.
    Freely,
    /// In steps to the end, to find the path. The peers stand still meanwhile, or would drive somebody so slow in circles.
    Walk,
    After(usize, &'a Path),
}

impl How<'_> {
    pub(crate) fn forward(&self, victim: &mut Victim, peers: &[&Child]) -> Option<Path> {
        match self {
            How::Freely => {
                checked(trace(libc::PTRACE_CONT, victim.child.pid, 0, 0));
                victim.went_on(0);
                None
            }
            How::Walk => {
                peers.iter().for_each(|peer| peer.stop());
                Some(victim.walk())
            }
            How::After(instructions, path) => {
                victim.forward(path, *instructions);
                None
            }
        }
    }
}
