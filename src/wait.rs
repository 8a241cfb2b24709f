//! Waiting, waking, and knowing who is gone.
//!
//! Each direction has two *seats*: `not_empty`, on which the receiver waits for a message, and `not_full`, on
//! which the sender waits for room. To each side one of them is `mine` and the other `theirs`. A seat is one
//! 32-bit word:
//!
//! ```text
//! 31                       8 7     4   3        2        1       0
//! +-------------------------+-------+----------+--------+-------+--------+
//! | generation of the bell  |       | DEPARTED | STRONG | ARMED | ASLEEP |
//! +-------------------------+-------+----------+--------+-------+--------+
//! ```
//!
//! | bit | meaning | set by | cleared by |
//! | --- | --- | --- | --- |
//! | `ASLEEP` | somebody may be in `futex_wait` on this word | who waits | who wakes |
//! | `ARMED` | the bell holds no byte that stands for what is in the ring: ring it | who waits | who rings |
//! | `STRONG` | somebody here cannot use `membarrier`: fence by yourself | anybody | nobody |
//! | `DEPARTED` | a copy of the end that waits here was closed: ask the kernel | who leaves | who asked |
//!
//! # Publish-then-look, set-then-look
//!
//! One side publishes (a record, or room) and then looks at the other's seat; the other sets a bit and then
//! looks at the ring. Each must see at least one of the other's stores, which takes a store-load barrier on
//! both sides (Dekker's pattern). A fence for every message would cap the throughput at about half, so the
//! barrier is one-sided where the kernel allows it: the waiting side calls `membarrier(GLOBAL_EXPEDITED)`, which
//! is a full barrier in all running threads of registered processes, and the publishing side needs a compiler
//! fence only (W1 pairs with N1). That is what arming the bell does, where a lost wake-up would cost up to a second.
//!
//! Going to sleep on the futex does without (W2): a system call that interrupts the other processor, typically just when
//! the peer has woken us and is still running, costs as much as the sleep. There the waiter sets its bit by an atomic
//! read-modify-write, a full barrier on its own side, and keeps looking for about a microsecond: longer than a store
//! waits in a store buffer. Should a wake-up be lost all the same, the end of the slice ends the sleep.
//!
//! A process that cannot register sets `STRONG`, for good, in both seats: whoever publishes then finds its look nonzero,
//! issues a real fence and looks again (N2).
//! The kernel inherits the registration across `fork` and forgets it at `exec`; every attach registers anew.
//!
//! # The three stages of a wait
//!
//! 1. *Spin*, for as long as spinning has been paying off lately, which may be not at all.
//! 2. *Sleep* on the futex for one slice ([`SLICE`]). A SIGKILLed peer cannot wake anybody, so this is how
//!    late its death may be noticed.
//! 3. *Park* in `ppoll` on the bell, up to [`PARK`] at a time. The kernel hangs up the socket when the last copy of
//!    the other end is gone, so death is noticed at once.
//!
//! # The bell
//!
//! A byte in the socket means "look at the ring". Level: with `B` for "a byte is in the socket", `A` for `ARMED`,
//! at any time when nobody is in the middle of a step,
//!
//! - L1: B or A. (If there is no byte, the next publication rings.)
//! - L2: if the ring is not empty, B.
//!
//! Ringing: send a byte that carries the generation, then clear `ARMED` by a compare-exchange that fails if the
//! generation has moved on; then start over. Arming: move to the next generation with `ARMED` set, barrier, look
//! at the ring; *only if it is empty* remove the bytes of earlier generations. A byte of the current generation was sent
//! after the ring was found empty, so it stands for something and stays. L2 holds: whoever publishes after that look
//! sees `ARMED` in this generation or a later one, and rings. A ringer that was killed between the byte and the
//! exchange leaves a byte too many, which the next arming removes; one killed before the byte, while a copy of its end
//! lives on, leaves the ring unannounced until the next message or the end of the current [`PARK`]. If the bell is full (it is
//! not while it is armed, unless somebody has stuffed it; pipe ends that nobody has received fill it otherwise), the ringer leaves it armed,
//! and whoever silences it looks at the ring once more.
//!
//! Bytes that carry descriptors are not removed by arming: they stay for the record that announces them, which is
//! published after them. If its sender was killed in between, they stay until the next such record, and a waiter whose bell
//! they keep ringing sleeps on the futex instead of spinning round `ppoll`. So does one that may not poll. Who misses descriptors (a copy
//! of its end was killed when it had taken them) leaves the bell as it is, since what it holds stands for what else is in the ring.
//!
//! A sender's bell tells the outside nothing but the receiver's death, so there L1 and L2 hold only while it is parked.
//!
//! # Life and death
//!
//! The kernel knows who lives: an end is closed by closing its socket and in no other way. `DEPARTED` is a hint
//! that makes the other side ask at once instead of at its next wait; it can be wrong (another copy may live) and it
//! can be missing (SIGKILL).

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;

use crate::deadline::Deadline;
use crate::spin::{Spin, breathe};
use crate::sync::{AsFd, AtomicU32, BorrowedFd, LINGER, Ordering, OwnedFd, compiler_fence, fence, spin_loop};
use crate::sys;

const ASLEEP: u32 = 1;
const ARMED: u32 = 2;
const STRONG: u32 = 4;
const DEPARTED: u32 = 8;
const ATTENTION: u32 = ASLEEP | ARMED | STRONG;
const GENERATION: u32 = 1 << 8;

/// How long a waiter sleeps on the futex, in nanoseconds, before it parks.
///
/// Just over the 4 ms between two ticks of a kernel with HZ=250: a timer that is not the next to go off costs nothing to set, and one that
/// is costs a wake-up some 3 µs.
const SLICE: u64 = 4_500_000;
/// How long a waiter is parked at most before it looks by itself.
const PARK: u64 = 1_000_000_000;
/// How often a spinning waiter asks the kernel who is alive.
const SPIN_CHECK: u64 = 1_000_000;
/// How often a writer gives a moving reader time to free a good stretch.
const PATIENCE: u32 = 32;
/// The bit of a bell byte that says that descriptors came with it.
const CARRIES: u8 = 0x80;
/// Bytes in the bell that come with descriptors: that one, and a mark.
const PACKET: usize = 1 + 8;
/// How much of the bell is looked at in search of descriptors: more than it holds of plain bytes, each of which came by itself.
const BELLFUL: usize = 1024;
/// How often that is done at most, for one record: a bound against hostile peers only.
const SEARCHES: usize = 4096;
/// How often a ringer tries again when the seat changes under it: a bound against hostile peers only.
const RING_TRIES: usize = 64;

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

/// A seat that starts out with an empty bell: the first publication rings.
pub(crate) fn arm_fresh(seat: &AtomicU32) {
    seat.store(ARMED, Ordering::Relaxed);
}

/// One side's means to wait for, wake, and lose the other.
pub(crate) struct Waiter {
    seats: Seats,
    spin: Spin,
    /// The kernel said that every copy of the other end is closed. It stays so.
    gone: bool,
    /// The bell tells the outside only that the other side is gone, so L1 and L2 are kept only during a wait.
    hears_death_only: bool,
    /// Somebody watches the bell from outside, so it is kept silent while there is nothing to receive.
    watched: Cell<bool>,
    // Fields drop in order: the socket is closed before the other side is told to look at it.
    bell: OwnedFd,
    _farewell: Farewell,
}

#[derive(Clone, Copy)]
struct Seats {
    mine: NonNull<AtomicU32>,
    theirs: NonNull<AtomicU32>,
}

struct Farewell(Seats);

// SAFETY: the seats are atomics in shared memory; nothing is tied to a thread.
unsafe impl Send for Seats {}

impl Seats {
    #[inline(always)]
    fn mine(&self) -> &AtomicU32 {
        // SAFETY: valid by the contract of `Waiter::new`.
        unsafe { self.mine.as_ref() }
    }

    #[inline(always)]
    fn theirs(&self) -> &AtomicU32 {
        // SAFETY: valid by the contract of `Waiter::new`.
        unsafe { self.theirs.as_ref() }
    }

    /// Wakes who sleeps on `theirs`.
    fn wake(&self) {
        let seat = self.theirs();
        // Cleared before the wake-up: a waiter that sets it in between finds the ring changed, or sleeps
        // and is woken for nothing. Killed in between, we cost the sleeper the rest of its slice.
        if seat.fetch_and(!ASLEEP, Ordering::SeqCst) & ASLEEP != 0 {
            sys::futex_wake_all(seat);
        }
    }

    /// W1: after a bit was set in `mine` and before the ring is looked at.
    fn barrier(&self) {
        if !sys::heavy_barrier() {
            self.be_strong();
        }
    }

    /// Tells the other side to ask the kernel. The socket has to be closed by now.
    fn depart(&self) {
        self.mine().fetch_or(DEPARTED, Ordering::SeqCst);
        self.wake();
    }

    fn be_strong(&self) {
        for seat in [self.mine(), self.theirs()] {
            if seat.load(Ordering::Relaxed) & STRONG == 0 {
                seat.fetch_or(STRONG, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.depart();
    }
}

fn token(word: u32) -> u8 {
    (word / GENERATION) as u8 & !CARRIES
}

/// Whether a bell byte is of a generation before `current`. Later ones exist where several copies of an end arm at
/// the same time; a small window of them suffices, and everything else is old.
fn is_stale(byte: u8, current: u8) -> bool {
    (byte & !CARRIES).wrapping_sub(current) & !CARRIES >= 16
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
        let seats = Seats { mine, theirs };
        if !sys::register_barrier() {
            seats.be_strong();
        }
        Waiter {
            seats,
            spin: Spin::new(spin_micros),
            gone: false,
            hears_death_only,
            watched: Cell::new(false),
            bell,
            _farewell: Farewell(seats),
        }
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Whether the other side is gone, as far as it said so. Asks the kernel only if it did.
    #[inline(always)]
    pub(crate) fn is_gone(&mut self) -> bool {
        self.gone || (self.departed() && self.ask_about_departure())
    }

    #[inline(always)]
    fn departed(&self) -> bool {
        self.seats.theirs().load(Ordering::Relaxed) & DEPARTED != 0
    }

    /// A word for `Debug`.
    pub(crate) fn state(&self) -> &'static str {
        if self.gone || sys::poll_readable(self.bell(), Deadline::NOW).hung_up {
            return "peer gone";
        }
        match self.seats.theirs().load(Ordering::Relaxed) {
            word if word & ASLEEP != 0 => "peer asleep",
            _ => "open",
        }
    }

    // --- waking -------------------------------------------------------------------------------

    /// To be called after every publication: wakes the other side if it waits.
    #[inline(always)]
    pub(crate) fn notify(&mut self) {
        compiler_fence(Ordering::SeqCst); // N1
        if self.seats.theirs().load(Ordering::Relaxed) & ATTENTION != 0 {
            self.notify_slow();
        }
    }

    #[cold]
    #[inline(never)]
    fn notify_slow(&mut self) {
        fence(Ordering::SeqCst); // N2
        let word = self.seats.theirs().load(Ordering::Relaxed);
        if word & ASLEEP != 0 {
            self.seats.wake();
        }
        if word & ARMED != 0 {
            self.ring();
        }
    }

    /// Sends a byte of the current generation and disarms `theirs`.
    fn ring(&self) {
        let seat = self.seats.theirs();
        let mut sent = None;
        for _ in 0..RING_TRIES {
            let word = seat.load(Ordering::Acquire);
            if word & ARMED == 0 {
                return;
            }
            let generation = word / GENERATION;
            if sent != Some(generation) {
                // If the bell is full, it rings already, and who silences it looks at the ring after that.
                if !sys::send_token(self.bell(), token(word)) {
                    return;
                }
                sent = Some(generation);
            }
            let (set, seen) = (Ordering::SeqCst, Ordering::Relaxed);
            if seat.compare_exchange(word, word & !ARMED, set, seen).is_ok() {
                return;
            }
        }
    }

    // --- life and death -------------------------------------------------------------------------

    /// Asks the kernel whether every copy of the other end is closed.
    pub(crate) fn ask(&mut self) -> bool {
        self.gone = self.gone || sys::poll_readable(self.bell(), Deadline::NOW).hung_up;
        self.gone
    }

    /// Follows up a `DEPARTED` hint.
    #[cold]
    fn ask_about_departure(&mut self) -> bool {
        if !self.ask() {
            // Another copy lives. Cleared first and asked again, so that a departure in between counts.
            self.seats.theirs().fetch_and(!DEPARTED, Ordering::SeqCst);
            self.ask();
        }
        self.gone
    }

    /// Closes this copy of the end while the value lives on, with a socket in its place whose other end is closed. False where
    /// there is no descriptor for that: then the other side learns of it by another try, or when the value is dropped.
    pub(crate) fn hang_up(&mut self) -> bool {
        self.gone = true;
        let replaced = sys::socketpair().and_then(|(dead, _)| sys::replace(&mut self.bell, &dead)).is_ok();
        if replaced {
            self.seats.depart();
        }
        replaced
    }

    // --- waiting --------------------------------------------------------------------------------

    /// Tells the spinner that a call succeeded without waiting. Returns how many have done so in a row.
    #[inline(always)]
    pub(crate) fn note_success(&mut self) -> u32 {
        self.spin.note_success()
    }

    /// Leaves the other side alone for a moment.
    #[cold]
    pub(crate) fn fall_back(&self) {
        breathe();
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

    /// Waits until `ready`, until the other side is gone, or until `deadline`.
    ///
    /// `ready` looks at the ring; it is asked once more after the other side was found gone, so what it
    /// published before it died counts.
    #[cold]
    #[inline(never)]
    pub(crate) fn wait(&mut self, deadline: Deadline, mut ready: impl FnMut() -> bool) -> Wake {
        let wake = self.wait_in_stages(deadline, &mut ready);
        if wake == Wake::TimedOut {
            self.settle(ready);
        }
        wake
    }

    fn wait_in_stages(&mut self, deadline: Deadline, ready: &mut impl FnMut() -> bool) -> Wake {
        if deadline.is_immediate() {
            self.ask();
            return self.ended(ready);
        }
        if self.gone {
            return self.ended(ready);
        }
        self.spin_wait(deadline, ready).or_else(|| self.sleep(deadline, ready)).unwrap_or_else(|| {
            let wake = self.park(deadline, ready);
            self.unpark();
            wake
        })
    }

    fn ended(&self, ready: &mut impl FnMut() -> bool) -> Wake {
        match (ready(), self.gone) {
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
            if self.departed() && self.ask_about_departure() {
                return Some(self.ended(ready));
            }
            if spin.elapsed > next_check {
                next_check = spin.elapsed + SPIN_CHECK;
                if self.ask() || deadline.passed() {
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
            let word = self.seats.mine().fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP; // W2
            if !self.linger(ready) {
                if self.departed() && self.ask_about_departure() {
                    return Some(self.ended(ready));
                }
                sys::futex_wait(self.seats.mine(), word, deadline.min(end));
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
                self.ask();
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
            let armed = self.seats.mine().load(Ordering::Relaxed) & ARMED != 0;
            if (in_vain > 0 || !armed) && self.arm(ready) {
                return Wake::Ready;
            }
            if in_vain > 2 {
                // A bell that cannot be silenced, or not be waited for, must not turn a wait into a busy loop.
                let word = self.seats.mine().fetch_or(ASLEEP, Ordering::SeqCst) | ASLEEP;
                if !self.linger(ready) {
                    sys::futex_wait(self.seats.mine(), word, deadline.min(sys::now() + SLICE));
                }
            }
            let got = sys::poll_readable(self.bell(), deadline.min(sys::now() + PARK));
            self.gone |= got.hung_up;
            if got.hung_up || ready() || deadline.passed() {
                return self.ended(ready);
            }
            in_vain = if got.readable || got.refused { in_vain + 1 } else { 0 };
        }
    }

    /// For a bell that tells the outside nothing but the other side's death: whether it does. Silences it if it does not: a byte that
    /// was on its way when a wait ended may have come later.
    pub(crate) fn hears_death(&mut self) -> bool {
        debug_assert!(self.hears_death_only);
        if self.gone {
            return true;
        }
        let found = sys::poll_readable(self.bell(), Deadline::NOW);
        self.gone = found.hung_up;
        if found.readable && !self.gone {
            sys::take_tokens(self.bell(), |_| true);
        }
        self.gone
    }

    /// Leaves the bell silent where nothing but the other side's death is to be heard from it: the sender's. A byte may still be on
    /// its way.
    fn unpark(&self) {
        if self.hears_death_only {
            self.seats.mine().fetch_and(!ARMED, Ordering::SeqCst);
            sys::take_tokens(self.bell(), |_| true);
        }
    }

    /// Makes the next publication ring, and silences the bell if the ring is empty. True if it is not.
    fn arm(&self, ready: &mut impl FnMut() -> bool) -> bool {
        let seat = self.seats.mine();
        let next = |word: u32| word.wrapping_add(GENERATION) | ARMED;
        let mut word = seat.load(Ordering::Relaxed);
        while let Err(now) = seat.compare_exchange_weak(word, next(word), Ordering::SeqCst, Ordering::Relaxed) {
            word = now;
        }
        self.seats.barrier(); // W1
        if ready() {
            return true;
        }
        let current = token(next(word));
        // Bytes that carry descriptors stay for the record that they were sent for.
        sys::take_tokens(self.bell(), |byte| byte & CARRIES == 0 && is_stale(byte, current));
        // Somebody may have found the bell full since.
        ready()
    }

    /// For a bell that somebody watches from outside: silent while there is nothing to receive.
    #[inline(always)]
    pub(crate) fn settle(&self, ready: impl FnMut() -> bool) {
        if self.watched.get() {
            self.settle_slow(ready);
        }
    }

    #[cold]
    #[inline(never)]
    fn settle_slow(&self, mut ready: impl FnMut() -> bool) {
        if ready() {
            return;
        }
        let armed = self.seats.mine().load(Ordering::Relaxed) & ARMED != 0;
        if !armed || sys::poll_readable(self.bell(), Deadline::NOW).readable {
            self.arm(&mut ready);
        }
    }

    /// The bell, to be watched from outside from now on.
    pub(crate) fn watch(&self, ready: impl FnMut() -> bool) -> BorrowedFd<'_> {
        self.watched.set(true);
        self.settle(ready);
        self.bell()
    }

    // --- ends carried over the bell -------------------------------------------------------------

    /// Sends descriptors along with bell bytes, marked with `id`, for a record that is about to be published: whoever finds the
    /// record finds them here already. A plain byte follows, so that taking the others does not leave a ring with
    /// messages and no bell (L2).
    pub(crate) fn carry(&self, id: u64, fds: &[BorrowedFd<'_>], deadline: Deadline) -> io::Result<()> {
        let token = token(self.seats.theirs().load(Ordering::Relaxed));
        let mut bytes = [token; PACKET + 1];
        bytes[0] |= CARRIES;
        bytes[1..PACKET].copy_from_slice(&id.to_le_bytes());
        sys::send_fds(self.bell(), &bytes, fds, deadline)
    }

    /// Takes the descriptors marked with `id`, dropping what is before them in the socket: plain bytes, and what was carried for
    /// records that were never published, which has lower marks. `None` if they are not there, which they are unless a copy of an end
    /// was killed just before, or a peer does not keep to the protocol. Then nothing that is of use is dropped: what has a higher mark
    /// stays for its own record, and plain bytes for what else is in the ring (L2).
    pub(crate) fn take_carried(&self, id: u64) -> io::Result<Option<Vec<OwnedFd>>> {
        let mut bytes = [0; BELLFUL];
        for _ in 0..SEARCHES {
            match self.take_next_carried(id, &mut bytes) {
                Ok(Carried::Wanted(fds)) => return Ok(Some(fds)),
                Ok(Carried::Other) => {}
                Ok(Carried::Nothing) => return Ok(None),
                // Said once, if the peer left bells of ours unread; what it had sent comes after.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    fn take_next_carried(&self, id: u64, bytes: &mut [u8; BELLFUL]) -> io::Result<Carried> {
        // As far as the first that come with descriptors.
        let seen = sys::peek(self.bell(), bytes)?;
        let plain = bytes[..seen].iter().take_while(|&&byte| byte & CARRIES == 0).count();
        let Some(mark) = mark_of(&bytes[plain..seen]) else {
            // As many plain bytes are more than a bell holds, and a piece of a mark alone is none: no protocol put that there.
            return match seen {
                BELLFUL if plain > 0 => self.take(&mut bytes[..plain], false),
                _ if plain < seen => self.take(&mut bytes[..seen], false),
                _ => Ok(Carried::Nothing),
            };
        };
        if mark > id {
            return Ok(Carried::Nothing);
        }
        if plain > 0 {
            self.take(&mut bytes[..plain], false)?;
        }
        // Descriptors and mark are taken in one step, or a copy of this end killed in between would leave half of them.
        self.take(&mut bytes[..PACKET], mark == id)
    }

    /// Takes so many bytes out of the bell, with the descriptors that come with them, if they are wanted.
    fn take(&self, bytes: &mut [u8], wanted: bool) -> io::Result<Carried> {
        match sys::recv_fds(self.bell(), bytes, false)? {
            (0, _) => Ok(Carried::Nothing),
            (_, fds) => Ok(if wanted { Carried::Wanted(fds) } else { Carried::Other }),
        }
    }
}

/// What was taken out of the bell in search of descriptors.
enum Carried {
    /// Those.
    Wanted(Vec<OwnedFd>),
    /// Something else, which is gone now.
    Other,
    /// Nothing, and there is no use in searching on.
    Nothing,
}

/// The mark in the bell bytes that come with descriptors, if these are such and all of them.
fn mark_of(bytes: &[u8]) -> Option<u64> {
    let mark = bytes.get(1..PACKET)?;
    Some(u64::from_le_bytes(std::array::from_fn(|i| mark[i])))
}
