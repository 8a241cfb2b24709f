//! Waiting for the other side, and waking it.
//!
//! What the bits of a seat mean, and why no wake-up is lost, stands in `bell.rs`. Here is how somebody waits who has a seat to itself.
//!
//! # The three stages of a wait
//!
//! 1. *Spin*, for as long as spinning has been paying off lately, which may be not at all.
//! 2. *Sleep* on the futex for one slice ([`SLICE`]). A SIGKILLed peer cannot wake anybody, so this is how
//!    late its death may be noticed.
//! 3. *Park* in `ppoll` on the bell, up to [`PARK`] at a time. The kernel hangs up the socket when the last copy of
//!    the other end is gone, so death is noticed at once.
//!
//! # Sleeping on the futex
//!
//! Going to sleep on the futex does without `membarrier` (W2): a system call that interrupts the other processor, typically just when
//! the peer has woken us and is still running, costs as much as the sleep. There the waiter sets its bit by an atomic
//! read-modify-write, a full barrier on its own side, and keeps looking for about a microsecond: longer than a store
//! waits in a store buffer. Should a wake-up be lost all the same, the end of the slice ends the sleep.

use std::ptr::NonNull;

use crate::bell::{ARMED, ASLEEP, Armed, Bell, RINGING, STRONG, Seats};
use crate::deadline::Deadline;
use crate::spin::{Spin, breathe, breathe_deeply};
use crate::sync::{AtomicU32, LINGER, Ordering, OwnedFd, compiler_fence, fence, spin_loop};
use crate::sys;

/// What a publication must not pass by.
const ATTENTION: u32 = ASLEEP | ARMED | STRONG | RINGING;

/// How long a waiter sleeps on the futex, in nanoseconds, before it parks.
///
/// Just over the 4 ms between two ticks of a kernel with HZ=250: a timer that is not the next to go off costs nothing to set, and one that
/// is costs a wake-up some 3 µs.
pub(crate) const SLICE: u64 = 4_500_000;
/// How long a waiter is parked at most before it looks by itself.
pub(crate) const PARK: u64 = 1_000_000_000;
/// How often a spinning waiter asks the kernel who is alive.
pub(crate) const SPIN_CHECK: u64 = 1_000_000;
/// How often a writer gives a moving reader time to free a good stretch.
pub(crate) const PATIENCE: u32 = 32;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// What was waited for is there.
    Ready,
    /// It is not, and every copy of the other end is closed.
    Gone,
    /// It is not, and the deadline has passed.
    TimedOut,
}

/// One side's means to wait for, wake, and lose the other.
pub(crate) struct Waiter {
    pub(crate) spin: Spin,
    /// The bell tells the outside only that the other side is gone, so L1 and L2 are kept only during a wait.
    hears_death_only: bool,
    // Fields drop in order: the socket is closed before the other side is told to look at it.
    pub(crate) bell: Bell,
    _farewell: Farewell,
}

struct Farewell(Seats);

impl Drop for Farewell {
    fn drop(&mut self) {
        leave(&self.0);
    }
}

/// Tells the other side to ask the kernel, at once. The socket has to be closed by now.
fn leave(seats: &Seats) {
    seats.depart();
    wake(seats);
}

/// Wakes who sleeps on `theirs`.
fn wake(seats: &Seats) {
    let seat = seats.theirs();
    // Cleared before the wake-up: a waiter that sets it in between finds the ring changed, or sleeps
    // and is woken for nothing. Killed in between, we cost the sleeper the rest of its slice.
    if seat.fetch_and(!ASLEEP, Ordering::SeqCst) & ASLEEP != 0 {
        sys::futex_wake_all(seat);
    }
}

impl Waiter {
    /// # Safety
    ///
    /// Both seats must be valid until the value has been dropped.
    pub(crate) unsafe fn new(
        mine: NonNull<AtomicU32>,
        theirs: NonNull<AtomicU32>,
        bell: OwnedFd,
        hears_death_only: bool,
        spin_micros: u32,
    ) -> Waiter {
        // SAFETY: by this function's contract; the copy of the seats goes with the value.
        let bell = unsafe { Bell::new(mine, theirs, bell) };
        Waiter { spin: Spin::new(spin_micros), hears_death_only, _farewell: Farewell(bell.seats), bell }
    }

    // --- waking -------------------------------------------------------------------------------

    /// To be called after every publication: wakes the other side if it waits. `is_left` looks whether what was published, or anything else, is still
    /// there.
    #[inline(always)]
    pub(crate) fn notify(&mut self, is_left: impl Fn() -> bool) {
        compiler_fence(Ordering::SeqCst); // N1
        if self.bell.seats.theirs().load(Ordering::Relaxed) & ATTENTION != 0 {
            self.notify_slow(is_left);
        }
    }

    #[cold]
    #[inline(never)]
    fn notify_slow(&mut self, is_left: impl Fn() -> bool) {
        fence(Ordering::SeqCst); // N2
        let word = self.bell.seats.theirs().load(Ordering::Relaxed);
        if word & ASLEEP != 0 {
            wake(&self.bell.seats);
        }
        if word & (ARMED | RINGING) != 0 {
            self.bell.ring(is_left);
        }
    }

    // --- life and death -------------------------------------------------------------------------

    /// Closes this copy of the end while the value lives on, with a socket in its place whose other end is closed. False where
    /// there is no descriptor for that: then the other side learns of it by another try, or when the value is dropped.
    pub(crate) fn hang_up(&mut self) -> bool {
        let replaced = self.bell.hang_up();
        if replaced {
            leave(&self.bell.seats);
        }
        replaced
    }

    /// For a bell that tells the outside nothing but the other side's death: whether it does. See [`Bell::hears_death`].
    pub(crate) fn hears_death(&self) -> bool {
        debug_assert!(self.hears_death_only);
        self.bell.hears_death()
    }

    // --- waiting --------------------------------------------------------------------------------

    /// Tells the spinner that a call succeeded without waiting. Returns how many have done so in a row.
    #[inline(always)]
    pub(crate) fn note_success(&mut self) -> u32 {
        self.spin.note_success()
    }

    #[inline(always)]
    pub(crate) fn glance(&mut self, ready: impl FnMut(u32) -> bool) -> bool {
        self.spin.glance(ready)
    }

    /// Leaves the other side alone for a moment.
    #[cold]
    pub(crate) fn fall_back(&self) {
        breathe_deeply();
    }

    /// Gives the other side some time in which it is not disturbed, until `enough`.
    pub(crate) fn let_it_run(&self, mut enough: impl FnMut() -> bool) {
        if self.spin.is_idle() {
            return;
        }
        for _ in 0..PATIENCE {
            breathe();
            if enough() {
                return;
            }
        }
    }

    /// After a wait in which others listened to the bell for this side, which took `nanos`.
    #[cfg(feature = "tokio")]
    pub(crate) fn stop_listening(&mut self, nanos: u64) {
        self.spin.slept(nanos);
        if self.hears_death_only {
            self.bell.hush();
        }
    }

    /// Waits until `ready`, until the other side is gone, or until `deadline`.
    ///
    /// `ready` looks at the ring; it is asked once more after the other side was found gone, so what it
    /// published before it died counts.
    #[cold]
    #[inline(never)]
    pub(crate) fn wait(&mut self, deadline: Deadline, mut ready: impl FnMut() -> bool) -> Wake {
        let wake = self.wait_in_stages(deadline, &mut ready);
        if wake == Wake::TimedOut {
            self.bell.settle(ready);
        }
        wake
    }

    fn wait_in_stages(&mut self, deadline: Deadline, ready: &mut impl FnMut() -> bool) -> Wake {
        if deadline.is_immediate() {
            self.bell.ask();
            return self.ended(ready);
        }
        if self.bell.found_gone() {
            return self.ended(ready);
        }
        self.spin_wait(deadline, ready).or_else(|| self.sleep(deadline, ready)).unwrap_or_else(|| {
            let wake = self.park(deadline, ready);
            if self.hears_death_only {
                self.bell.hush();
            }
            wake
        })
    }

    fn ended(&self, ready: &mut impl FnMut() -> bool) -> Wake {
        match (ready(), self.bell.found_gone()) {
            (true, _) => Wake::Ready,
            (false, true) => Wake::Gone,
            (false, false) => Wake::TimedOut,
        }
    }

    fn spin_wait(&mut self, deadline: Deadline, ready: &mut impl FnMut() -> bool) -> Option<Wake> {
        let mut spin = self.spin.begin()?;
        let mut next_check = SPIN_CHECK;
        while spin.goes_on() {
            if ready() {
                self.spin.succeeded(&spin);
                return Some(Wake::Ready);
            }
            if self.bell.departed() && self.bell.ask_about_departure() {
                return Some(self.ended(ready));
            }
            if spin.elapsed > next_check {
                next_check = spin.elapsed + SPIN_CHECK;
                if self.bell.ask() || deadline.passed() {
                    return Some(self.ended(ready));
                }
            }
        }
        None
    }

    /// One slice on the futex.
    fn sleep(&mut self, deadline: Deadline, ready: &mut impl FnMut() -> bool) -> Option<Wake> {
        let start = sys::now();
        let end = start + SLICE;
        loop {
            let word = self.bell.seats.mine().fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP; // W2
            if !self.linger(ready) {
                if self.bell.departed() && self.bell.ask_about_departure() {
                    return Some(self.ended(ready));
                }
                sys::futex_wait(self.bell.seats.mine(), word, deadline.min(end), sys::ANY_KIND);
            }
            let now = sys::now();
            let (there, late) = (ready(), deadline.passed());
            if there || late || now >= end {
                self.spin.slept(now - start);
            }
            if there {
                return Some(Wake::Ready);
            }
            if late {
                self.bell.ask();
                return Some(self.ended(ready));
            }
            if now >= end {
                return None;
            }
        }
    }

    /// Looks for as long as a store may take to leave its processor (W2).
    fn linger(&self, ready: &mut impl FnMut() -> bool) -> bool {
        (0..LINGER).any(|_| {
            spin_loop();
            ready()
        })
    }

    /// In `ppoll` on the bell, for as long as it takes.
    fn park(&mut self, deadline: Deadline, ready: &mut impl FnMut() -> bool) -> Wake {
        let mut in_vain = 0;
        loop {
            let armed = self.bell.is_armed();
            if (in_vain > 0 || !armed) && self.bell.arm(ready) == Armed::Ready {
                return Wake::Ready;
            }
            if in_vain > 2 {
                // A bell that cannot be silenced, or not be waited for, must not turn a wait into a busy loop.
                let word = self.bell.seats.mine().fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP;
                if !self.linger(ready) {
                    sys::futex_wait(self.bell.seats.mine(), word, deadline.min(sys::now() + SLICE), sys::ANY_KIND);
                }
            }
            let got = self.bell.listen(deadline.min(sys::now() + PARK));
            if got.hung_up || ready() || deadline.passed() {
                return self.ended(ready);
            }
            in_vain = if got.readable || got.refused { in_vain + 1 } else { 0 };
        }
    }
}
