//! What the models replace: the atomics, the descriptors and the passing of time. Everything else in the crate that takes part in a
//! protocol is compiled into `models/` as it stands here.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};

/// How often a waiter looks between setting `ASLEEP` and sleeping: about a microsecond.
pub(crate) const LINGER: u32 = 16;
/// For how many nanoseconds somebody has to have been arming a bell, to one who looks now and then, to count as dead.
pub(crate) const LEASE: u64 = 100_000_000;
/// How often somebody looks whether a ringer is done: some ten microseconds.
pub(crate) const HEAR_OUT: u32 = 256;
