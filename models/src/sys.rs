//! The kernel's part. Takes the place of the crate's `src/sys.rs`, call by call.
//!
//! A call orders memory as the lock does that the kernel takes for it: one per futex word, one per pair of sockets.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::deadline::Deadline;
use crate::sync::{self, AtomicU32, BorrowedFd, Ordering, OwnedFd, fence, machine, step};
use crate::wait::SLICE;

pub(crate) fn now() -> u64 {
    sync::clock()
}

pub(crate) fn register_barrier() -> bool {
    machine().membarrier
}

pub(crate) fn heavy_barrier() -> bool {
    fence(Ordering::SeqCst);
    machine().membarrier
}

/// When a sleep ends by itself, if it does.
fn end(deadline: Deadline) -> Option<u64> {
    deadline.at().filter(|&at| machine().slices_end && at <= sync::clock() + SLICE)
}

/// As long as everybody else takes to do what they can do, and counts as a slice.
pub(crate) fn nap(_: u64) {
    step();
    sync::sleep(sync::clock() + SLICE);
    loom::thread::yield_now();
}

pub(crate) const ANY_KIND: u32 = u32::MAX;

/// Whoever dies asleep dies here. The kinds are no matter here: whoever is woken first, it must do.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, deadline: Deadline, _: u32) -> bool {
    step();
    match end(deadline) {
        Some(at) => {
            sync::sleep(at);
            false
        }
        None => word.wait(expected),
    }
}

pub(crate) fn futex_wake_one(word: &AtomicU32, _: u32) -> bool {
    word.wake_one()
}

pub(crate) fn futex_wake_all(word: &AtomicU32) {
    word.wake_all();
}

// What lies outside of the ring is not modelled: no model for many sends a long message.

pub(crate) fn write_part(_: BorrowedFd<'_>, _: u64, _: usize, _: impl FnOnce(NonNull<u8>)) -> io::Result<()> {
    unreachable!()
}

pub(crate) fn read_at(_: BorrowedFd<'_>, _: &mut [MaybeUninit<u8>], _: u64) -> io::Result<()> {
    unreachable!()
}

pub(crate) fn punch(_: BorrowedFd<'_>, _: u64, _: u64) {
    unreachable!()
}

pub(crate) fn allocated(_: BorrowedFd<'_>) -> u64 {
    unreachable!()
}

pub(crate) fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(OwnedFd::pair())
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) hung_up: bool,
    pub(crate) refused: bool,
}

/// Whoever polls for long never sees it end: a lost wake-up is to be a deadlock.
pub(crate) fn poll_readable(fd: BorrowedFd<'_>, deadline: Deadline) -> Readiness {
    if !deadline.is_immediate() {
        step();
        match end(deadline) {
            Some(at) => sync::sleep(at),
            None => fd.wait(),
        }
    }
    fd.look(|inbox| Readiness { readable: !inbox.items.is_empty(), hung_up: inbox.hung_up, refused: false })
}

#[derive(Clone, Copy)]
pub(crate) struct Heard<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) reading: bool,
    pub(crate) heard: Readiness,
}

/// As for one, it never ends if it is to be long.
pub(crate) fn poll_many(many: &mut [Heard<'_>], deadline: Deadline) -> io::Result<()> {
    if !deadline.is_immediate() {
        step();
        match end(deadline) {
            Some(at) => sync::sleep(at),
            None => sync::wait_for_many(&many.iter().map(|one| (one.fd, one.reading)).collect::<Vec<_>>()),
        }
    }
    for one in many {
        let Heard { fd, reading, .. } = *one;
        one.heard = fd.look(|inbox| Readiness {
            readable: reading && !inbox.items.is_empty(),
            hung_up: inbox.hung_up,
            refused: false,
        });
    }
    Ok(())
}

/// Where the bell is full, the byte does not get in.
pub(crate) fn send_token(fd: BorrowedFd<'_>, token: u8) -> bool {
    step() && !fd.is_full() && fd.send([(token, Vec::new())])
}

/// Looks and takes, as two steps.
pub(crate) fn take_tokens(fd: BorrowedFd<'_>, stale: impl Fn(u8) -> bool) {
    let old = fd.look(|inbox| inbox.items.iter().take_while(|(byte, _)| stale(*byte)).count());
    if old > 0 && step() {
        fd.look(|inbox| inbox.items.drain(..old.min(inbox.items.len())).for_each(drop));
    }
}

pub(crate) fn send_fds(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], _: Deadline) -> io::Result<()> {
    let mut fds: Vec<OwnedFd> = fds.iter().map(|fd| fd.copy()).collect();
    // A stream socket takes a few bytes in one go.
    let sent = step() && fd.send(bytes.iter().map(|&byte| (byte, std::mem::take(&mut fds))));
    if sent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

pub(crate) fn recv_fds(fd: BorrowedFd<'_>, buf: &mut [u8], wait: bool) -> io::Result<(usize, Vec<OwnedFd>)> {
    assert!(!wait && step(), "only a receiver that lives takes descriptors, and without waiting");
    fd.look(|inbox| {
        let mut fds = Vec::new();
        let mut len = 0;
        while len < buf.len() {
            match inbox.items.front() {
                // Bytes behind the first that carry descriptors of their own are read by the next call.
                Some((_, own)) if len > 0 && !own.is_empty() => break,
                Some(_) => {}
                None if len > 0 || inbox.hung_up => break,
                None => return Err(io::ErrorKind::WouldBlock.into()),
            }
            let (byte, own) = inbox.items.pop_front().expect("just seen");
            buf[len] = byte;
            fds.extend(own);
            len += 1;
        }
        Ok((len, fds))
    })
}

pub(crate) fn peek(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    assert!(step(), "only a receiver that lives looks at its bell");
    fd.look(|inbox| {
        if inbox.items.is_empty() && !inbox.hung_up {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let seen = inbox.items.iter().zip(buf.iter_mut()).map(|((byte, _), into)| *into = *byte).count();
        Ok(seen)
    })
}

pub(crate) fn replace(fd: &mut OwnedFd, of: &OwnedFd) -> io::Result<()> {
    *fd = of.copy();
    Ok(())
}
