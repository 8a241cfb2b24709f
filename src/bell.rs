//! What the two sides of a pipe tell each other beside the ring: a word for each side, and a socket. Which of them is gone, too.
//!
//! Each direction has two *seats*: `not_empty`, on which the receiver waits for a message, and `not_full`, on
//! which the sender waits for room. To each side one of them is `mine` and the other `theirs`. A seat is one
//! 32-bit word:
//!
//! ```text
//! 31                       8 7  6     5        4         3        2        1       0
//! +-------------------------+----+--------+---------+----------+--------+-------+--------+
//! | generation of the bell  |    | ARMING | RINGING | DEPARTED | STRONG | ARMED | ASLEEP |
//! +-------------------------+----+--------+---------+----------+--------+-------+--------+
//! ```
//!
//! | bit | meaning | set by | cleared by |
//! | --- | --- | --- | --- |
//! | `ASLEEP` | somebody may be in `futex_wait` on this word | who waits | who wakes |
//! | `ARMED` | the bell holds no byte that stands for what is in the ring: ring it | who waits | who rings |
//! | `STRONG` | somebody here cannot use `membarrier`: fence by yourself | anybody | nobody |
//! | `DEPARTED` | a copy of the end that waits here was closed: ask the kernel | who leaves | who asked |
//! | `RINGING` | somebody is about to send the bell a byte of this generation | who rings | they, or who moves on to the next generation |
//! | `ARMING` | somebody may take bytes out of the bell, and nobody else | who arms | they |
//!
//! # Publish-then-look, set-then-look
//!
//! One side publishes (a record, or room) and then looks at the other's seat; the other sets a bit and then
//! looks at the ring. Each must see at least one of the other's stores, which takes a store-load barrier on
//! both sides (Dekker's pattern). A fence for every message would cap the throughput at about half, so the
//! barrier is one-sided where the kernel allows it: the waiting side calls `membarrier(GLOBAL_EXPEDITED)`, which
//! is a full barrier in all running threads of registered processes, and the publishing side needs a compiler
//! fence only (W1 pairs with N1). That is what arming the bell does, where a lost wake-up would cost up to a second.
//! Going to sleep on the futex does without (W2, in `wait.rs`).
//!
//! A process that cannot register sets `STRONG`, for good, in both seats: whoever publishes then finds its look nonzero,
//! issues a real fence and looks again (N2).
//! The kernel inherits the registration across `fork` and forgets it at `exec`; every attach registers anew.
//!
//! # The bell
//!
//! A byte in the socket means "look at the ring". Level: with `B` for "a byte is in the socket", `A` for `ARMED`,
//! at any time when nobody is in the middle of a step,
//!
//! - L1: B or A. (If there is no byte, the next publication rings.)
//! - L2: if the ring is not empty, B.
//! - L3: if the ring is empty, and the bell was settled after the last receive, not B.
//!
//! *Ringing*: claim the bell (clear `ARMED`, set `RINGING`), send a byte that carries the generation, clear `RINGING` if the generation is still the same.
//!
//! *Arming*: move to the next generation with `ARMED` set and `RINGING` clear, barrier, look at the ring; *only if it is empty* remove the bytes of earlier
//! generations. One at a time (`ARMING`), in whatever thread or process: bytes are looked at and then taken, and two who do that at once would take each other's.
//! Whoever finds somebody at it leaves the bell as it is, of which L1 and L2 are true; one that was killed counts as dead after [`LEASE`]. A byte of the current generation was sent after the ring was found empty, so it stands for something and stays. L2 holds: whoever publishes after
//! that look sees `ARMED` in this generation or a later one, and rings; and a claim that was made before it comes after a publication that the look has seen.
//!
//! *Death*: a ringer that was killed leaves `RINGING` set, which counts as `ARMED`: whoever publishes next waits for it for a moment, and then claims
//! the bell for the next generation. The byte may be missing by then, if a copy of its end lives on: the ring is unannounced until the next
//! message or the end of the current park. If the bell is full (it is not while it is armed, unless somebody has stuffed it; pipe ends that nobody has
//! received fill it otherwise), the ringer arms it again, and whoever silences it looks at the ring once more.
//!
//! *Settling* (L3) is for who watches the bell from outside, and is not to be told of a message that has been received. A ringer finds its message still in the ring
//! between its look at the seat and its claim, or leaves it. Settling, which follows each receive, finds the ring empty, waits while
//! somebody is ringing and the byte has not come, and arms. A claim that came before that, it has waited for, and removes its byte. One of a ringer that
//! looked at the seat before, and has not claimed yet, fails. And who looks at the seat later sees by it what was received (R1), finds
//! the ring empty, and does not ring. Where `ARMED` is set already, it stays so all the time, and no barrier is needed. For nothing rings, all the same,
//! a ringer that was stopped for so long that it was taken for dead, one of several senders that ring at the same time, and one that takes back a long message.
//!
//! Bytes that carry descriptors are not removed by arming: they stay for the record that announces them, which is
//! published after them. If its sender was killed in between, they stay until the next such record, and a waiter whose bell
//! they keep ringing sleeps on the futex instead of spinning round `ppoll`. So does one that may not poll. Who misses descriptors (a copy
//! of its end was killed when it had taken them) leaves the bell as it is, since what it holds stands for what else is in the ring.
//!
//! A sender's bell tells the outside nothing but the receiver's death, so there L1 and L2 hold only while it is parked, nobody asks whether room is
//! still of use, and whoever leaves a park moves on to a generation that is not armed.
//!
//! # Life and death
//!
//! The kernel knows who lives: an end is closed by closing its socket and in no other way. `DEPARTED` is a hint
//! that makes the other side ask at once instead of at its next wait; it can be wrong (another copy may live) and it
//! can be missing (SIGKILL).

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::deadline::Deadline;
use crate::sync::{AsFd, AtomicU32, BorrowedFd, HEAR_OUT, LEASE, Ordering, OwnedFd, spin_loop};
use crate::sys::{self, Readiness};

pub(crate) const ASLEEP: u32 = 1;
pub(crate) const ARMED: u32 = 2;
pub(crate) const STRONG: u32 = 4;
const DEPARTED: u32 = 8;
pub(crate) const RINGING: u32 = 16;
const ARMING: u32 = 32;
const GENERATION: u32 = 1 << 8;

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
/// How often whoever is ringing is waited for, beyond the time in which they have done so unless they were stopped, and for how many nanoseconds each.
const NAPS: u32 = 256;
const NAP: u64 = 50_000;
/// How often settling starts over when somebody comes in between.
const SETTLE_TRIES: u32 = 4;
/// Nanoseconds until somebody is waited for like that again after it was in vain: a peer must not hold up every call.
const IMPATIENCE: u64 = 1_000_000_000;

/// A seat that starts out with an empty bell: the first publication rings.
pub(crate) fn arm_fresh(seat: &AtomicU32) {
    seat.store(ARMED, Ordering::Relaxed);
}

/// One side's means to ring, to be rung for, and to learn that the other is gone. Several threads may use it at the same time.
pub(crate) struct Bell {
    pub(crate) seats: Seats,
    /// The kernel said that every copy of the other end is closed. It stays so. Stored and loaded so that what the other side had
    /// published by then is seen by every thread that finds it set.
    gone: AtomicBool,
    /// Somebody watches the bell from outside, so it is kept silent while there is nothing to receive.
    watched: AtomicBool,
    /// From when on somebody who is ringing is waited for.
    patient_from: AtomicU64,
    /// Since when somebody else has been arming, or 0.
    busy_since: AtomicU64,
    fd: OwnedFd,
}

#[derive(Clone, Copy)]
pub(crate) struct Seats {
    mine: NonNull<AtomicU32>,
    theirs: NonNull<AtomicU32>,
}

// SAFETY: the seats are atomics in shared memory; nothing is tied to a thread.
unsafe impl Send for Seats {}
// SAFETY: as above.
unsafe impl Sync for Seats {}

impl Seats {
    #[inline(always)]
    pub(crate) fn mine(&self) -> &AtomicU32 {
        // SAFETY: valid by the contract of `Bell::new`.
        unsafe { self.mine.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn theirs(&self) -> &AtomicU32 {
        // SAFETY: valid by the contract of `Bell::new`.
        unsafe { self.theirs.as_ref() }
    }

    /// W1: after a bit was set in `mine` and before the ring is looked at.
    pub(crate) fn barrier(&self) {
        if !sys::heavy_barrier() {
            self.be_strong();
        }
    }

    /// Tells the other side to ask the kernel, as soon as it looks. The socket has to be closed by now; to wake whoever sleeps is left
    /// to the caller.
    pub(crate) fn depart(&self) {
        self.mine().fetch_or(DEPARTED, Ordering::SeqCst);
    }

    /// For who cannot make the other side's threads pass a barrier: they have to do it by themselves from now on.
    pub(crate) fn be_strong(&self) {
        for seat in [self.mine(), self.theirs()] {
            if seat.load(Ordering::Relaxed) & STRONG == 0 {
                seat.fetch_or(STRONG, Ordering::SeqCst);
            }
        }
    }
}

/// How arming went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Armed {
    /// There is something in the ring.
    Ready,
    /// There is nothing, and the next publication rings.
    Silent,
    /// There is nothing, and the next publication rings, or the bell does already: somebody else is at it.
    ByAnother,
}

fn token(word: u32) -> u8 {
    (word / GENERATION) as u8 & !CARRIES
}

/// The seat in its next generation, not armed, with nobody ringing.
fn next_generation(word: u32) -> u32 {
    word.wrapping_add(GENERATION) & !(ARMED | RINGING)
}

/// Whether a bell byte is of a generation before `current`. Later ones exist where several copies of an end arm at
/// the same time; a small window of them suffices, and everything else is old.
fn is_stale(byte: u8, current: u8) -> bool {
    (byte & !CARRIES).wrapping_sub(current) & !CARRIES >= 16
}

impl Bell {
    /// # Safety
    ///
    /// Both seats must be valid until the value, and every copy of its seats, has been dropped.
    pub(crate) unsafe fn new(mine: NonNull<AtomicU32>, theirs: NonNull<AtomicU32>, fd: OwnedFd) -> Bell {
        let seats = Seats { mine, theirs };
        if !sys::register_barrier() {
            seats.be_strong();
        }
        Bell {
            seats,
            gone: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            patient_from: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            fd,
        }
    }

    /// The socket.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A word for `Debug`.
    pub(crate) fn state(&self) -> &'static str {
        if self.found_gone() || sys::poll_readable(self.fd(), Deadline::NOW).hung_up {
            return "peer gone";
        }
        match self.seats.theirs().load(Ordering::Relaxed) {
            word if word & ASLEEP != 0 => "peer asleep",
            _ => "open",
        }
    }

    // --- ringing ------------------------------------------------------------------------------

    /// Claims `theirs`, if it is armed, and sends a byte of its generation. Not if there is nothing to ring for any more: `is_left` looks
    /// whether what was published is still there.
    pub(crate) fn ring(&self, is_left: impl Fn() -> bool) {
        let seat = self.seats.theirs();
        for _ in 0..RING_TRIES {
            let word = seat.load(Ordering::Acquire); // R1
            if word & (ARMED | RINGING) == 0 || !is_left() {
                return;
            }
            let mut next = word;
            if word & RINGING != 0 {
                // Another sender, whose byte will do; or somebody who is dead, or as good as that.
                let same = |now: u32| (now ^ word) & (RINGING | !(GENERATION - 1)) == 0;
                if !(0..HEAR_OUT).all(|_| {
                    spin_loop();
                    same(seat.load(Ordering::Relaxed))
                }) {
                    continue;
                }
                next = word.wrapping_add(GENERATION);
            }
            let claimed = next & !ARMED | RINGING;
            if seat.compare_exchange(word, claimed, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                // If the bell is full, it rings already, and who silences it looks at the ring after that.
                let full = !sys::send_token(self.fd(), token(claimed));
                self.end_ringing(claimed / GENERATION, if full { ARMED } else { 0 });
                return;
            }
        }
    }

    /// Gives the bell back with these bits set, unless it has moved on to another generation.
    fn end_ringing(&self, generation: u32, bits: u32) {
        let seat = self.seats.theirs();
        let mut word = seat.load(Ordering::Relaxed);
        while word / GENERATION == generation {
            match seat.compare_exchange_weak(word, word & !RINGING | bits, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Waits for who is ringing, until their byte is in the bell, or they count as dead. The seat at which that was.
    fn hear_out(&self) -> u32 {
        let seat = self.seats.mine();
        let mut word = seat.load(Ordering::Acquire);
        for round in 0..NAPS {
            if word & RINGING == 0 || self.holds(token(word)) {
                return word;
            }
            match round {
                0 => {
                    (0..HEAR_OUT).take_while(|_| seat.load(Ordering::Relaxed) & RINGING != 0).for_each(|_| spin_loop())
                }
                1 if sys::now() < self.patient_from.load(Ordering::Relaxed) => return word,
                _ => sys::nap(NAP),
            }
            word = seat.load(Ordering::Acquire);
        }
        self.patient_from.store(sys::now() + IMPATIENCE, Ordering::Relaxed);
        word
    }

    /// Whether there is a byte of that generation in the bell.
    fn holds(&self, token: u8) -> bool {
        let mut bytes = [0; 64];
        sys::peek(self.fd(), &mut bytes).is_ok_and(|seen| bytes[..seen].contains(&token))
    }

    /// Whether the next publication rings.
    pub(crate) fn is_armed(&self) -> bool {
        self.seats.mine().load(Ordering::Relaxed) & (ARMED | RINGING) != 0
    }

    /// Makes the next publication ring, and silences the bell if the ring is empty.
    pub(crate) fn arm(&self, ready: &mut impl FnMut() -> bool) -> Armed {
        self.arm_from(|_| true, ready)
    }

    /// As [`arm`](Self::arm), from a seat for which `from` is true.
    fn arm_from(&self, from: impl Fn(u32) -> bool, ready: &mut impl FnMut() -> bool) -> Armed {
        match self.hold(from, |word| next_generation(word) | ARMED) {
            None if ready() => Armed::Ready,
            None => Armed::ByAnother,
            Some(word) => {
                // Otherwise it has been armed all the time since somebody passed the barrier.
                if word & (ARMED | RINGING | ARMING) != ARMED {
                    self.seats.barrier(); // W1
                }
                match self.finish_arming(token(next_generation(word)), ready) {
                    true => Armed::Ready,
                    false => Armed::Silent,
                }
            }
        }
    }

    /// The first step of arming, which the barrier (W1) is to follow: one for all bells that are armed together. `None` if somebody else is at it. Whoever leaves out
    /// the last step leaves the bell as loud as it was, and keeps others from arming for a while.
    pub(crate) fn begin_arming(&self) -> Option<u8> {
        let word = self.hold(|_| true, |word| next_generation(word) | ARMED)?;
        Some(token(next_generation(word)))
    }

    /// The last step of arming: silences the bell if the ring is empty. True if it is not.
    pub(crate) fn finish_arming(&self, current: u8, ready: &mut impl FnMut() -> bool) -> bool {
        let seen = ready();
        if !seen {
            // Bytes that carry descriptors stay for the record that they were sent for.
            sys::take_tokens(self.fd(), |byte| byte & CARRIES == 0 && is_stale(byte, current));
        }
        self.let_go();
        // Somebody may have found the bell full since.
        seen || ready()
    }

    /// Takes `ARMING`, and changes the rest of the seat as well. What it was; unless somebody else has it, or `from` is false for what there is.
    fn hold(&self, from: impl Fn(u32) -> bool, next: impl Fn(u32) -> u32) -> Option<u32> {
        let seat = self.seats.mine();
        let (mut looks, mut dead) = (0, false);
        loop {
            let word = seat.load(Ordering::Relaxed);
            if word & ARMING != 0 && !dead {
                if looks < HEAR_OUT {
                    looks += 1;
                    spin_loop();
                    continue;
                }
                let (now, since) = (sys::now(), self.busy_since.load(Ordering::Relaxed));
                dead = since != 0 && now >= since + LEASE;
                if !dead {
                    self.busy_since.store(if since == 0 { now } else { since }, Ordering::Relaxed);
                    return None;
                }
            }
            if !from(word) {
                return None;
            }
            if seat.compare_exchange(word, next(word) | ARMING, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                self.busy_since.store(0, Ordering::Relaxed);
                return Some(word);
            }
        }
    }

    fn let_go(&self) {
        self.seats.mine().fetch_and(!ARMING, Ordering::SeqCst);
    }

    /// Leaves the bell silent where nothing but the other side's death is to be heard from it: the sender's. A byte may still be on
    /// its way.
    pub(crate) fn hush(&self) {
        let seat = self.seats.mine();
        let mut word = seat.load(Ordering::Relaxed);
        while let Err(now) =
            seat.compare_exchange_weak(word, next_generation(word) & !ARMING, Ordering::SeqCst, Ordering::Relaxed)
        {
            word = now;
        }
        sys::take_tokens(self.fd(), |_| true);
    }

    /// For a bell that somebody watches from outside: silent while there is nothing to receive.
    #[inline(always)]
    pub(crate) fn settle(&self, ready: impl FnMut() -> bool) {
        if self.watched.load(Ordering::Relaxed) {
            self.settle_slow(ready);
        }
    }

    #[cold]
    #[inline(never)]
    fn settle_slow(&self, mut ready: impl FnMut() -> bool) {
        if ready() {
            return;
        }
        for _ in 0..SETTLE_TRIES {
            let heard = self.hear_out();
            let same = |word: u32| word / GENERATION == heard / GENERATION;
            if self.arm_from(|word| word & RINGING == 0 || heard & RINGING != 0 && same(word), &mut ready)
                != Armed::ByAnother
            {
                return;
            }
        }
    }

    /// The bell, to be watched from outside from now on.
    pub(crate) fn watch(&self, ready: impl FnMut() -> bool) -> BorrowedFd<'_> {
        self.watched.store(true, Ordering::Relaxed);
        self.settle(ready);
        self.fd()
    }

    // --- life and death -------------------------------------------------------------------------

    /// Whether the other side was found gone. Asks nobody.
    #[inline(always)]
    pub(crate) fn found_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether the other side is gone, as far as it said so. Asks the kernel only if it did.
    #[inline(always)]
    pub(crate) fn is_gone(&self) -> bool {
        self.found_gone() || (self.departed() && self.ask_about_departure())
    }

    /// False if [`is_gone`](Self::is_gone) would be, without asking.
    #[inline(always)]
    pub(crate) fn may_be_gone(&self) -> bool {
        self.found_gone() || self.departed()
    }

    #[inline(always)]
    pub(crate) fn departed(&self) -> bool {
        self.seats.theirs().load(Ordering::Relaxed) & DEPARTED != 0
    }

    /// Waits until there is something to hear, and remembers it if that is the other side's death.
    pub(crate) fn listen(&self, deadline: Deadline) -> Readiness {
        let heard = sys::poll_readable(self.fd(), deadline);
        if heard.hung_up {
            self.note_gone();
        }
        heard
    }

    /// After the kernel has said that every copy of the other end is closed.
    pub(crate) fn note_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Asks the kernel whether every copy of the other end is closed.
    pub(crate) fn ask(&self) -> bool {
        self.found_gone() || self.listen(Deadline::NOW).hung_up
    }

    /// Follows up a `DEPARTED` hint.
    #[cold]
    pub(crate) fn ask_about_departure(&self) -> bool {
        if !self.ask() {
            // Another copy lives. Cleared first and asked again, so that a departure in between counts.
            self.seats.theirs().fetch_and(!DEPARTED, Ordering::SeqCst);
            self.ask();
        }
        self.found_gone()
    }

    /// For a bell that tells the outside nothing but the other side's death: whether it does. Silences it if it does not: a byte that
    /// was on its way when a wait ended may have come later.
    pub(crate) fn hears_death(&self) -> bool {
        if self.found_gone() {
            return true;
        }
        let heard = self.listen(Deadline::NOW);
        if heard.readable && !heard.hung_up {
            sys::take_tokens(self.fd(), |_| true);
        }
        heard.hung_up
    }

    /// Closes the socket while the value lives on, with one in its place whose other end is closed. True if the other side is to be
    /// told, by [`Seats::depart`]. False where there is no descriptor for that.
    pub(crate) fn hang_up(&mut self) -> bool {
        *self.gone.get_mut() = true;
        sys::socketpair().and_then(|(dead, _)| sys::replace(&mut self.fd, &dead)).is_ok()
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
        sys::send_fds(self.fd(), &bytes, fds, deadline)
    }

    /// Takes the descriptors marked with `id`, dropping what is before them in the socket: plain bytes, and what was carried for
    /// records that were never published, which has lower marks. `None` if they are not there, which they are unless a copy of an end
    /// was killed just before, or a peer does not keep to the protocol. Then nothing that is of use is dropped: what has a higher mark
    /// stays for its own record, and plain bytes for what else is in the ring (L2).
    pub(crate) fn take_carried(&self, id: u64) -> io::Result<Option<Vec<OwnedFd>>> {
        // Not while somebody else takes bytes; but for that, this is for whoever has the record, and nobody else.
        for _ in 0..SEARCHES {
            if self.hold(|_| true, |word| word).is_some() {
                let taken = self.search_carried(id);
                self.let_go();
                return taken;
            }
            sys::nap(NAP);
        }
        Ok(None)
    }

    fn search_carried(&self, id: u64) -> io::Result<Option<Vec<OwnedFd>>> {
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
        let seen = sys::peek(self.fd(), bytes)?;
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
        match sys::recv_fds(self.fd(), bytes, false)? {
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
