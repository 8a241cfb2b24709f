//! What tests with several processes share.
//!
//! A test that forks holds [`alone`] (children inherit every open descriptor of the process, so a pipe of another test would stay open in
//! them) and a [`watchdog`]. Children are made by [`fork`], [`fork_split`] or [`fork_copy`]:
//!
//! ```ignore
//! let _alone = alone();
//! let _watchdog = watchdog(10);
//! let (receiver, sender) = ringpipe::simplex().unwrap();
//! let (child, mut receiver) = fork_split(receiver, sender, |mut sender| sender.send_bytes(b"hello").is_err().into());
//! assert_eq!(receiver.recv_bytes().unwrap(), b"hello");
//! child.succeeds();
//! ```
//!
//! The test harness runs threads, so between fork and exit a child may allocate and make system calls, but not print through `std`: a lock
//! may be held for ever. Panics in a child are fine: they write to standard error without a lock, and the parent's `wait` reports them.
#![allow(dead_code, unused_imports, unused_macros, reason = "every test binary compiles this and uses a part")]

pub(crate) mod forms;
pub(crate) mod many;
pub(crate) mod programs;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

// --- one at a time, and not for ever --------------------------------------------------------------

/// Keeps every other test of this binary that calls it waiting.
#[must_use = "others wait only as long as the guard lives"]
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed while it held the lock says nothing about the next one.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For the start of a test that is alone and does not take longer than a minute.
pub(crate) fn guard() -> (MutexGuard<'static, ()>, Watchdog) {
    guard_for(60)
}

/// For one that may take so many seconds.
pub(crate) fn guard_for(seconds: u32) -> (MutexGuard<'static, ()>, Watchdog) {
    let alone = alone();
    (alone, watchdog(seconds))
}

/// In a child: it may take so long, rather than [`CHILD_LIMIT`].
pub(crate) fn may_take(seconds: u32) {
    // SAFETY: no preconditions.
    unsafe { libc::alarm(seconds) };
}

/// Aborts the whole test process if the guard is not dropped within so many seconds.
#[must_use = "the watch ends when the guard is dropped"]
pub(crate) fn watchdog(seconds: u32) -> Watchdog {
    let (alive, watched) = mpsc::channel::<()>();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::spawn(move || {
        let limit = Duration::from_secs(seconds.into());
        if watched.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            say(&format!("{test} hangs: not done after {limit:?}\n"));
            std::process::abort();
        }
    });
    Watchdog(alive)
}

/// Made by [`watchdog`].
pub(crate) struct Watchdog(#[expect(dead_code, reason = "dropping it is the signal")] mpsc::Sender<()>);

/// Says that something was not tested here, and why, where it is seen although the test passes.
pub(crate) fn skip(what: &str, why: &str) {
    say(&format!("!!! SKIPPED: {what}: {why}\n"));
}

/// Writes to standard error, past `std`'s locks and the harness's capture.
fn say(message: &str) {
    // SAFETY: the pointer and the length are those of a string.
    unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
}

// --- processes --------------------------------------------------------------------------------------

/// Seconds after which a child that is still there is killed by SIGALRM.
const CHILD_LIMIT: u32 = 60;
/// A child's exit code after a panic.
const PANICKED: i32 = 101;

/// A command that runs `program`, which is of this build's architecture.
///
/// Where the processor is of another, `RINGPIPE_RUNNER` names the emulator that runs this test, with its options, and runs `program`.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    match std::env::var(RUNNER) {
        Err(_) => Command::new(program),
        Ok(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().expect("RINGPIPE_RUNNER names a program"));
            command.args(words).arg(program);
            command
        }
    }
}

const RUNNER: &str = "RINGPIPE_RUNNER";

/// Whether an emulator runs this test, so that what the kernel tells about this process is also about the emulator.
pub(crate) fn emulated() -> bool {
    std::env::var_os(RUNNER).is_some()
}

/// Runs `body` in a child process, which exits with what it returns, or with 101 if it panics.
///
/// What `body` owns is dropped here once the child runs: an end moved into it is the child's alone. What it does *not* own
/// stays open in the child as well: see [`fork_split`].
pub(crate) fn fork(body: impl FnOnce() -> i32) -> Child {
    static IN_CHILD: AtomicBool = AtomicBool::new(false);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let inherited = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IN_CHILD.load(Ordering::Relaxed) {
                say(&format!("in a child: {info}\n"));
            } else {
                inherited(info);
            }
        }));
    });
    // SAFETY: the child keeps to what is allowed in a forked copy of a process with threads: allocation (the C
    // library's is made for it) and system calls.
    match unsafe { libc::fork() } {
        0 => {
            IN_CHILD.store(true, Ordering::Relaxed);
            // SAFETY: no preconditions.
            unsafe { libc::alarm(CHILD_LIMIT) };
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
            // SAFETY: no preconditions; nothing registered by the parent's libraries runs.
            unsafe { libc::_exit(code) }
        }
        -1 => panic!("cannot fork: {}", io::Error::last_os_error()),
        pid => Child { pid, status: Mutex::new(None) },
    }
}

/// Runs `body` with `theirs` in a child that closes `mine`; here `theirs` is closed and `mine` given back.
pub(crate) fn fork_split<M, T>(mine: M, theirs: T, body: impl FnOnce(T) -> i32) -> (Child, M) {
    let mut mine = Some(mine);
    let child = fork(|| {
        mine.take();
        body(theirs)
    });
    (child, mine.expect("only the child has taken it"))
}

/// Runs `body` with copies of `ends`: both processes hold them.
pub(crate) fn fork_copy<E>(ends: E, body: impl FnOnce(E) -> i32) -> (Child, E) {
    let mut ends = Some(ends);
    let child = fork(|| body(ends.take().expect("nobody else takes them")));
    (child, ends.expect("only the child has taken them"))
}

/// A forked process. Dropping it kills and reaps the process.
pub(crate) struct Child {
    pub(crate) pid: libc::pid_t,
    /// Its end, once reaped: after that, the pid may be another process's.
    status: Mutex<Option<Status>>,
}

impl Child {
    /// Sends a signal, unless the child has been reaped.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let status = self.status();
        if status.is_none() {
            // SAFETY: the pid is our child's, which has not been reaped.
            let sent = unsafe { libc::kill(self.pid, signal) };
            assert_eq!(sent, 0, "kill: {}", io::Error::last_os_error());
        }
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Sends SIGSTOP, and waits until the child has stopped.
    pub(crate) fn stop(&self) {
        self.signal(libc::SIGSTOP);
        self.wait_for(libc::WSTOPPED);
    }

    /// Lets a stopped child go on.
    pub(crate) fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Waits for the child's end. Panics if the child panicked, or hung until its alarm.
    pub(crate) fn wait(&self) -> Status {
        let status = self.reap();
        assert!(status.code() != Some(PANICKED), "the child panicked");
        assert!(status.signal() != Some(libc::SIGALRM), "the child hung");
        status
    }

    /// Waits for the child's end, and asserts that its body returned 0.
    pub(crate) fn succeeds(&self) {
        let status = self.wait();
        assert!(status.code() == Some(0), "the child failed: {status:?}");
    }

    fn status(&self) -> MutexGuard<'_, Option<Status>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) -> Status {
        // Not under the lock, or nobody could kill a child that somebody waits for.
        if let Some(status) = *self.status() {
            return status;
        }
        self.wait_for(libc::WEXITED);
        let mut status = self.status();
        if let Some(status) = *status {
            return status;
        }
        let mut raw = 0;
        // SAFETY: the child has ended and has not been reaped; `raw` is an integer of ours.
        let reaped = unsafe { libc::waitpid(self.pid, &mut raw, 0) };
        assert_eq!(reaped, self.pid, "waitpid: {}", io::Error::last_os_error());
        *status.insert(Status(raw))
    }

    /// Waits for a change of the child's state without taking note of it.
    fn wait_for(&self, what: libc::c_int) {
        loop {
            // SAFETY: `siginfo_t` is plain data, for which zeros are valid; `info` outlives the call.
            let result = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut info, what | libc::WNOWAIT)
            };
            let error = io::Error::last_os_error();
            match error.kind() {
                _ if result == 0 => return,
                io::ErrorKind::Interrupted => {}
                // Another thread has reaped it meanwhile.
                _ if error.raw_os_error() == Some(libc::ECHILD) && self.status().is_some() => return,
                _ => panic!("waitid: {error}"),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

/// How a child lets go of what it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leave {
    Drop,
    Exit,
    Killed,
}

pub(crate) const LEAVES: [Leave; 3] = [Leave::Drop, Leave::Exit, Leave::Killed];

/// For a process that is to be killed.
pub(crate) fn for_ever() -> i32 {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(libc::c_int);

impl Status {
    /// What its body returned.
    pub(crate) fn code(self) -> Option<i32> {
        libc::WIFEXITED(self.0).then(|| libc::WEXITSTATUS(self.0))
    }

    /// The signal that killed it.
    pub(crate) fn signal(self) -> Option<i32> {
        libc::WIFSIGNALED(self.0).then(|| libc::WTERMSIG(self.0))
    }

    /// Whether SIGKILL killed it.
    pub(crate) fn was_killed(self) -> bool {
        self.signal() == Some(libc::SIGKILL)
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code(), self.signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (_, Some(signal)) => write!(f, "killed by signal {signal}"),
            _ => write!(f, "wait status {:#x}", self.0),
        }
    }
}

/// Runs the calling thread (and what it forks) on one processor only: the `n`th of those allowed, counted round and round.
pub(crate) fn pin(n: usize) {
    // SAFETY: `cpu_set_t` is plain data, for which zeros are valid; the size passed is its own.
    unsafe {
        let size = size_of::<libc::cpu_set_t>();
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size, &mut set), 0, "{}", io::Error::last_os_error());
        let cpus: Vec<usize> = (0..8 * size).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect();
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(cpus[n % cpus.len()], &mut set);
        assert_eq!(libc::sched_setaffinity(0, size, &set), 0, "{}", io::Error::last_os_error());
    }
}

/// What a thread is doing, by its id (a process with one thread has the same): the number of the system call that it is in, `running`, or
/// `unknown` where the kernel does not tell.
pub(crate) fn doing(thread: libc::pid_t) -> String {
    let line = std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
    line.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// Whether the process runs, sleeps or stands still, rather than being dead and perhaps not reaped.
pub(crate) fn is_alive(pid: libc::pid_t) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !matches!(rest.trim_start().chars().next(), None | Some('Z' | 'X')))
}

/// The system call that `epoll` and `poll_fd` make, and that a parked end does, by number.
pub(crate) fn call_number(call: Call) -> String {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    let (epoll, poll) = (libc::SYS_epoll_wait, libc::SYS_poll);
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
    let (epoll, poll) = (libc::SYS_epoll_pwait, libc::SYS_ppoll);
    let number = match call {
        Call::Futex => libc::SYS_futex,
        Call::Park => libc::SYS_ppoll,
        Call::Epoll => epoll,
        Call::Poll => poll,
    };
    number.to_string()
}

/// Where a waiting process may be found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Futex,
    Park,
    Epoll,
    Poll,
}

/// Waits until the process is in one of these system calls, or for long enough that it must be.
pub(crate) fn await_call(pid: libc::pid_t, calls: &[Call]) {
    let wanted: Vec<String> = calls.iter().map(|&call| call_number(call)).collect();
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match doing(pid) {
            now if wanted.contains(&now) => return,
            now if now == "unknown" => return std::thread::sleep(Duration::from_millis(15)),
            now => assert!(Instant::now() < end, "process {pid} does not get into {calls:?}: it is in {now}"),
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// Waits until `holds`, looking every 200 µs. Panics if it does not within ten seconds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Nanoseconds of a clock that all processes share.
pub(crate) fn nanos() -> u64 {
    // SAFETY: `timespec` is plain data, for which zeros are valid; the pointer leads to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time), 0);
        time
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The middle one.
pub(crate) fn median<T: Ord + Copy>(of: &[T]) -> T {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// How often a process (its first thread) has gone to sleep by itself.
pub(crate) fn sleeps(pid: libc::pid_t) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("the kernel tells").trim().parse().expect("a number")
}

/// Descriptors of the memory files of this process's pipes.
pub(crate) fn memory_files() -> Vec<i32> {
    let is_ours = |fd: &i32| {
        let file = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        file.is_ok_and(|file| file.starts_with("/memfd:ringpipe (deleted)"))
    };
    open_fds().into_iter().filter(is_ours).collect()
}

/// Bytes of memory that the memory files of this process's pipes take.
pub(crate) fn memory_of_pipes() -> u64 {
    use std::os::unix::fs::MetadataExt;
    let blocks = |fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).expect("it is open").blocks();
    512 * memory_files().into_iter().map(blocks).max().unwrap_or(0)
}

// --- words that parent and child share --------------------------------------------------------------

/// A page (or more) of 64-bit words, all zero at first, shared with children forked later.
pub(crate) struct Shared {
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: nothing but atomics behind the pointer.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    #[allow(clippy::new_without_default, reason = "a default would hide the system call")]
    pub(crate) fn new() -> Shared {
        Shared::with_words(512)
    }

    /// So many words, which take memory once they are used.
    pub(crate) fn with_words(count: usize) -> Shared {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 8 * count, access, kind | libc::MAP_NORESERVE, -1, 0) };
        assert!(page != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Shared { words: NonNull::new(page.cast()).expect("a mapping is not at 0"), count }
    }

    /// The word at `index`.
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count);
        // SAFETY: in bounds, aligned, and mapped as long as `self` lives.
        unsafe { self.words.add(index).as_ref() }
    }

    pub(crate) fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::SeqCst);
    }

    /// Waits until the word at `index` is at least `value`.
    pub(crate) fn await_at_least(&self, index: usize, value: u64) {
        while self.get(index) < value {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and no reference outlives `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), 8 * self.count) };
    }
}

// --- readiness --------------------------------------------------------------------------------------

/// `poll(2)`: what happened of `events` (or went wrong) within `timeout`; 0 for nothing.
pub(crate) fn poll_fd(fd: BorrowedFd<'_>, events: i16, timeout: Duration) -> i16 {
    let end = Instant::now() + timeout;
    loop {
        let mut fds = [libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }];
        // SAFETY: the pointer leads to one `pollfd`.
        match unsafe { libc::poll(fds.as_mut_ptr(), 1, millis_until(end)) } {
            0 => return 0,
            1 => return fds[0].revents,
            _ => interrupted("poll"),
        }
    }
}

/// Whether an end's descriptor is readable right now.
pub(crate) fn readable(end: &impl AsFd) -> bool {
    poll_fd(end.as_fd(), libc::POLLIN, Duration::ZERO) != 0
}

/// Sends a byte that stands for nothing to whoever listens to the bell at the other end of a direction, if there is room for it.
pub(crate) fn stuff(end: &impl AsFd) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: one byte is read from a live array.
    unsafe { libc::send(end.as_fd().as_raw_fd(), [0_u8].as_ptr().cast(), 1, flags) == 1 }
}

/// Sends as many as there is room for.
pub(crate) fn stuff_up(end: &impl AsFd) {
    while stuff(end) {}
    assert_eq!(io::Error::last_os_error().kind(), io::ErrorKind::WouldBlock);
}

/// Whether `fd` becomes readable (or is hung up) within `timeout`, according to a fresh, level-triggered `epoll(7)`.
pub(crate) fn epoll(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    // SAFETY: the descriptor is fresh, and nobody else's.
    let epoll = unsafe { OwnedFd::from_raw_fd(checked("epoll_create1", libc::epoll_create1(libc::EPOLL_CLOEXEC))) };
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: both descriptors are open, and `event` outlives the call.
    let added = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) };
    checked("epoll_ctl", added);
    loop {
        // SAFETY: the pointer leads to one event.
        match unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, millis_until(end)) } {
            0 => return false,
            1 => return true,
            _ => interrupted("epoll_wait"),
        }
    }
}

/// The descriptors open in this process.
pub(crate) fn open_fds() -> Vec<i32> {
    let listed = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    let mut fds: Vec<i32> =
        listed.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().expect("names are numbers")).collect();
    // Without the one through which the list was read.
    // SAFETY: asking for the flags of a closed descriptor is an error and nothing else.
    fds.retain(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0);
    fds.sort_unstable();
    fds
}

/// Rounded up, so that a wait is not too short.
fn millis_until(end: Instant) -> libc::c_int {
    end.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000) as libc::c_int
}

fn checked(call: &str, result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "{call}: {}", io::Error::last_os_error());
    result
}

/// Panics if the last system call failed for another reason than a signal.
fn interrupted(call: &str) {
    let error = io::Error::last_os_error();
    assert!(error.kind() == io::ErrorKind::Interrupted, "{call}: {error}");
}

// --- messages that both sides know -----------------------------------------------------------------

/// Bytes that tell their own place.
pub(crate) fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i >> 12) as u8).collect()
}

/// A repeatable sequence of numbers (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// An endless sequence of messages. Both sides compute them, so a message that arrives can be checked in full: its place, its length and
/// its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    seed: u64,
    /// Longest messages of three sorts, from which each message takes one.
    longest: [usize; 3],
}

impl Script {
    /// Messages of at most 200 bytes.
    pub(crate) fn short(seed: u64) -> Script {
        Script::of(seed, [8, 64, 200])
    }

    /// Messages from none to `2 * capacity` bytes, with many around `capacity / 4`, where streaming begins.
    pub(crate) fn mixed(seed: u64, capacity: usize) -> Script {
        Script::of(seed, [200, capacity / 2, 2 * capacity])
    }

    fn of(seed: u64, longest: [usize; 3]) -> Script {
        assert!(longest.iter().all(|&longest| longest <= POOL / 2));
        // Made before anybody forks.
        pool();
        Script { seed, longest }
    }

    /// The message at place `i`.
    pub(crate) fn message(&self, i: u64) -> &'static [u8] {
        let mut random = Random::new(self.seed ^ i.rotate_left(32).wrapping_mul(0xd6e8_feb8_6659_fd93));
        let longest = self.longest[random.below(3) as usize];
        let len = random.below(longest as u64 + 1) as usize;
        let start = random.below((POOL - len) as u64) as usize;
        &pool()[start..start + len]
    }
}

const POOL: usize = 1 << 20;

/// Random bytes of which every message is a piece.
fn pool() -> &'static [u8] {
    static POOL_BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    POOL_BYTES.get_or_init(|| {
        let mut random = Random::new(0);
        (0..POOL / 8).flat_map(|_| random.next().to_le_bytes()).collect()
    })
}
