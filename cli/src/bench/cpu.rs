//! Processors to run on, and clocks.

use std::fs;
use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on a clock that both processes share.
#[inline]
pub(crate) fn now() -> u64 {
    read(ClockId::Monotonic)
}

/// Nanoseconds of processor time that this process has used.
pub(crate) fn used() -> u64 {
    read(ClockId::ProcessCPUTime)
}

#[inline]
fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Two processors that this process may use, on different cores if there are two. `None` if there is one processor only, or if
/// the kernel does not say.
pub(crate) fn pair() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    let first = cpus.next()?;
    let others: Vec<usize> = cpus.collect();
    let core = siblings(first);
    let second = others.iter().find(|&&cpu| core.is_none() || siblings(cpu) != core).or(others.first())?;
    Some([first, *second])
}

/// The hardware threads of a processor's core, as the kernel lists them.
fn siblings(cpu: usize) -> Option<String> {
    fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok()
}

/// Keeps this process on one processor.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
