//! How a task waits for the other side.
//!
//! # The stages of a wait
//!
//! 1. *Spin*, in pieces of about a microsecond, between which the runtime runs what else there is to run, for as long as spinning has been paying off
//!    lately (`spin.rs`). Neither side makes a system call for the other meanwhile.
//! 2. *Listen*: arm the seat, and have the runtime watch the bell.
//!
//! Nothing sleeps on the futex. A wait may be broken off at any point, by nobody polling it any more: the stage is kept in the end, not in the future, and
//! what was armed costs the other side one bell. The next use of the end goes on from there.
//!
//! # Why no wake-up is lost
//!
//! The runtime watches edges: it hears of a byte when it comes, and remembers that until it is told to forget. So the bell's level (L1, L2 in `bell.rs`) has
//! to be made out of what it remembers.
//!
//! - If something was heard, or the seat is not armed, it is armed now (W1), and the ring looked at. Only if that is empty is what was heard forgotten, and the waker
//!   registered anew. A byte that came after the arming began may be among what is forgotten only if the runtime had told of it before, which it had not: what it hears
//!   meanwhile has another number, and stays.
//! - If nothing was heard and the seat is armed, from the start or by such an arming, whatever was published since will ring, or has rung: an edge that nobody has
//!   forgotten. That may come before or after the waker is registered.
//!
//! So what is forgotten always stands for a byte from before an arming that found the ring empty. Bytes that arming leaves in the socket (descriptors that nobody
//! takes, what a hostile peer stuffs it with) make no further edges, and no busy loop.
//!
//! The bell is watched through a descriptor of its own: an end that stops receiving puts another socket in the place of its own, which the runtime could
//! then not stop watching.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::pin::pin;
use std::task::{Context, Poll, ready};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::task::yield_now;

use crate::bell::Armed;
use crate::spin::Spinning;
use crate::sync::{BorrowedFd, OwnedFd};
use crate::sys;
use crate::wait::Waiter;

/// Looks in one piece of a spin, with a spin hint each: a microsecond or two.
const PIECE: u32 = 64;

pub(super) struct Ear {
    /// `None` when there is nothing more to be heard.
    bell: Option<AsyncFd<OwnedFd>>,
    stage: Stage,
    /// The process that made it.
    pid: u32,
}

enum Stage {
    /// There is no wait under way.
    Idle,
    Spinning(Spinning),
    /// Since then, in nanoseconds.
    Listening(u64),
}

impl Ear {
    /// Panics outside of a runtime with I/O enabled.
    pub(super) fn new(bell: BorrowedFd<'_>) -> io::Result<Ear> {
        let bell = bell.try_clone_to_owned()?;
        // SAFETY: the descriptor is open, and the value owns it and lends it to nobody who could replace or close it.
        let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }?;
        Ok(Ear { bell: Some(bell), stage: Stage::Idle, pid: std::process::id() })
    }

    /// Whether this process made it, and is not a forked child of the one that did.
    pub(super) fn is_own(&self) -> bool {
        self.pid == std::process::id()
    }

    /// Stops watching for good. True if it was watching until now.
    pub(super) fn close(&mut self) -> bool {
        self.bell.take().is_some()
    }

    /// Waits until `is_ready`, or until the other side is gone.
    #[inline]
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (waiter, mut is_ready): (&mut Waiter, impl FnMut() -> bool),
    ) -> Poll<io::Result<()>> {
        if !is_ready() {
            ready!(self.poll_slow(cx, waiter, &mut is_ready))?;
        }
        self.settle(waiter);
        Poll::Ready(Ok(()))
    }

    /// After what was waited for is there, or did not need to be waited for.
    #[inline]
    pub(super) fn settle(&mut self, waiter: &mut Waiter) {
        if !matches!(self.stage, Stage::Idle) {
            self.end_wait(waiter);
        }
    }

    #[cold]
    fn end_wait(&mut self, waiter: &mut Waiter) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => {}
            Stage::Spinning(spinning) => waiter.spin.succeeded(&spinning),
            Stage::Listening(since) => waiter.stop_listening(sys::now() - since),
        }
    }

    #[inline(never)]
    fn poll_slow(
        &mut self,
        cx: &mut Context<'_>,
        waiter: &mut Waiter,
        is_ready: &mut impl FnMut() -> bool,
    ) -> Poll<io::Result<()>> {
        loop {
            if waiter.bell.is_gone() {
                return Poll::Ready(Ok(()));
            }
            match &mut self.stage {
                Stage::Idle => self.stage = waiter.spin.begin().map_or_else(listening, Stage::Spinning),
                Stage::Spinning(spinning) => {
                    for _ in 0..PIECE {
                        if !spinning.goes_on() {
                            self.stage = listening();
                            break;
                        }
                        if is_ready() {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    if matches!(self.stage, Stage::Spinning(_)) {
                        return step_back(cx);
                    }
                }
                Stage::Listening(_) => return self.listen(cx, waiter, is_ready),
            }
        }
    }

    fn listen(
        &mut self,
        cx: &mut Context<'_>,
        waiter: &mut Waiter,
        is_ready: &mut impl FnMut() -> bool,
    ) -> Poll<io::Result<()>> {
        let Some(watched) = &self.bell else { return Poll::Ready(Ok(())) };
        loop {
            let heard = match watched.poll_read_ready(cx) {
                Poll::Ready(heard) => Some(heard?),
                Poll::Pending => None,
            };
            // Nobody who keeps to the protocol closes one direction of the socket only.
            if heard.as_ref().is_some_and(|heard| heard.ready().is_read_closed()) {
                waiter.bell.note_gone();
                return Poll::Ready(Ok(()));
            }
            if heard.is_some() || !waiter.bell.is_armed() {
                match waiter.bell.arm(is_ready) {
                    Armed::Ready => return Poll::Ready(Ok(())),
                    Armed::Silent => {}
                    // What was heard may stay, and would not be heard again.
                    Armed::ByAnother => return step_back(cx),
                }
            }
            match heard {
                Some(mut heard) => heard.clear_ready(),
                None => return Poll::Pending,
            }
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let Some(bell) = self.bell.take().filter(|_| !self.is_own()) else { return };
        // A forked child shares the runtime's `epoll` with its parent, and would have it stop watching for both.
        let number = bell.get_ref().as_raw_fd();
        std::mem::forget(bell);
        // SAFETY: its owner was just forgotten.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
}

fn listening() -> Stage {
    Stage::Listening(sys::now())
}

/// Lets the runtime run what else there is, and comes back.
pub(super) fn step_back<T>(cx: &mut Context<'_>) -> Poll<T> {
    // The first poll passes the waker on to the runtime, which keeps it.
    let _ = pin!(yield_now()).poll(cx);
    Poll::Pending
}
