//! The bare ping-pong of two cache lines: how long the processors themselves take to pass a word there and back.
//!
//! No ring can have a shorter round trip. The figure also tells which cores the two processes run on: on some machines it
//! changes from one minute to the next.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::bench::cpu;

/// Two flags, each on a line of its own, in memory that both processes map.
pub(crate) struct Flags {
    map: MmapRaw,
}

/// Each side writes one flag; 256 bytes apart, since processors fetch lines in pairs.
#[repr(C)]
struct Lines {
    ping: Line,
    pong: Line,
}

#[repr(C, align(256))]
struct Line(AtomicU64);

const LEN: usize = 4096;
/// Looks at a flag before the clock is read.
const LOOKS: u32 = 1 << 20;
/// A peer that takes longer is dead.
const LIMIT: u64 = 5_000_000_000;

impl Flags {
    pub(crate) fn create() -> io::Result<(Flags, OwnedFd)> {
        let fd = memfd_create("ringpipe-flags", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, LEN as u64)?;
        Ok((Flags::attach(&fd)?, fd))
    }

    pub(crate) fn attach(fd: &OwnedFd) -> io::Result<Flags> {
        Ok(Flags { map: MmapOptions::new().len(LEN).map_raw(fd)? })
    }

    fn lines(&self) -> &Lines {
        const { assert!(size_of::<Lines>() <= LEN) };
        // SAFETY: the mapping is page-aligned, at least as long as `Lines`, and lives as long as `self`; all atomics.
        unsafe { &*self.map.as_ptr().cast::<Lines>() }
    }

    /// The side that starts; returns nanoseconds per round trip. Both sides start from flags that are equal.
    pub(crate) fn ping(&self, count: u64) -> io::Result<f64> {
        let Lines { ping, pong } = self.lines();
        let base = ping.0.load(Ordering::Relaxed);
        let start = cpu::now();
        for turn in base + 1..=base + count {
            ping.0.store(turn, Ordering::Release);
            await_turn(&pong.0, turn)?;
        }
        Ok((cpu::now() - start) as f64 / count as f64)
    }

    pub(crate) fn pong(&self, count: u64) -> io::Result<()> {
        let Lines { ping, pong } = self.lines();
        let base = pong.0.load(Ordering::Relaxed);
        for turn in base + 1..=base + count {
            await_turn(&ping.0, turn)?;
            pong.0.store(turn, Ordering::Release);
        }
        Ok(())
    }
}

fn await_turn(flag: &AtomicU64, turn: u64) -> io::Result<()> {
    let mut start = None;
    loop {
        for _ in 0..LOOKS {
            if flag.load(Ordering::Acquire) == turn {
                return Ok(());
            }
        }
        let now = cpu::now();
        if now - *start.get_or_insert(now) > LIMIT {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the other process stopped answering"));
        }
    }
}
