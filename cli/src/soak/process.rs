//! Processes, signals, and what `/proc` says of them.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Forks. `None` in the child. To be called by processes with one thread only, so that the child may do whatever it likes.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: this process has no other thread that could hold a lock.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Ends this process at once: nothing that belongs to its parent is flushed or run.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::_exit(code) }
}

/// Sends a signal to a process that nobody has reaped. One that has ended does not mind.
pub(crate) fn signal(pid: i32, signal: c_int) {
    // SAFETY: no preconditions; the caller has not reaped the process, so the number is not another's.
    unsafe { libc::kill(pid, signal) };
}

/// What became of children.
pub(crate) enum Reaped {
    /// This one has ended, in this way.
    Ended(i32, Status),
    /// None has ended, but there are some.
    Nobody,
    /// There are no children.
    Alone,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Exit(i32),
    Signal(i32),
}

/// Reaps a child that has ended, if there is one.
pub(crate) fn reap() -> io::Result<Reaped> {
    let mut raw = 0;
    // SAFETY: `raw` is an integer of ours.
    match unsafe { libc::waitpid(-1, &mut raw, libc::WNOHANG) } {
        0 => Ok(Reaped::Nobody),
        pid if pid > 0 => {
            let signalled = libc::WIFSIGNALED(raw);
            let status =
                if signalled { Status::Signal(libc::WTERMSIG(raw)) } else { Status::Exit(libc::WEXITSTATUS(raw)) };
            Ok(Reaped::Ended(pid, status))
        }
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ECHILD) => Ok(Reaped::Alone),
            e if e.kind() == io::ErrorKind::Interrupted => Ok(Reaped::Nobody),
            e => Err(e),
        },
    }
}

/// Makes this process the parent of its descendants whose own parents are gone, so that it can reap them all.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    // SAFETY: the option takes one number.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) })
}

/// Has the kernel kill this process when its parent dies, however it does; `parent` is who that was before the fork.
pub(crate) fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: the option takes a signal's number.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    if std::os::unix::process::parent_id() == parent {
        return Ok(());
    }
    exit(1)
}

/// Leaves it to whoever started this process to say when to stop.
pub(crate) fn ignore_interrupts() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
}

/// Sends this process SIGALRM again and again, with a handler that does nothing and restarts no system call.
pub(crate) fn start_storm(every: Duration) -> io::Result<()> {
    extern "C" fn nothing(_: c_int) {}
    let handler: extern "C" fn(c_int) = nothing;
    // SAFETY: `sigaction` and `itimerval` are plain data, for which zeros are valid; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        check(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()))?;
        let interval = libc::timeval { tv_sec: 0, tv_usec: every.as_micros() as _ };
        let timer = libc::itimerval { it_interval: interval, it_value: interval };
        check(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()))
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs this process, and what it starts from now on, on one processor (of those allowed at first) or on all of them.
pub(crate) fn pin(allowed: &[usize], to: Option<usize>) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    for (i, &cpu) in allowed.iter().enumerate() {
        if to.is_none_or(|n| n % allowed.len() == i) {
            set.set(cpu);
        }
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// The processors that this process may run on.
pub(crate) fn processors() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Descriptors open in this process.
pub(crate) fn open_descriptors() -> io::Result<usize> {
    // One is that of the listing itself.
    Ok(fs::read_dir("/proc/self/fd")?.count() - 1)
}

/// Nanoseconds for which a thread was ready to run and did not: 0 where the kernel does not say.
pub(crate) fn run_delay(thread: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Tells for how many nanoseconds the thread that made it was ready to run and did not.
pub(crate) struct OwnDelay(Option<fs::File>);

impl OwnDelay {
    pub(crate) fn new() -> OwnDelay {
        OwnDelay(fs::File::open("/proc/thread-self/schedstat").ok())
    }

    /// `None` where the kernel does not say.
    pub(crate) fn get(&self) -> Option<u64> {
        let mut text = [0; 64];
        let len = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..len]).ok()?.split_whitespace().nth(1)?.parse().ok()
    }
}

/// Nanoseconds for which the hypervisor kept this machine's processors from running, in all.
pub(crate) fn steal() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = text.lines().next().and_then(|line| line.split_whitespace().nth(8)).and_then(|n| n.parse().ok());
    ticks.unwrap_or(0_u64) * 10_000_000
}

/// What a thread is doing, for a human.
pub(crate) fn state(thread: u64) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{thread}/{file}")).unwrap_or_default();
    let stat = read("stat");
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("gone").to_owned();
    let (wchan, call) = (read("wchan"), read("syscall"));
    format!("state {state}, in {}, system call {}", wchan.trim(), call.split_whitespace().next().unwrap_or("?"))
}
