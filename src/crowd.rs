//! Waiting, and waking, where each side of a pipe is a crowd: any number of threads in any number of processes.
//!
//! The sockets, the bell and the hints about departures are those of a single waiter (`bell.rs`); all members of a side hold copies of one
//! socket. What differs is how they sleep. A seat has, beside the bell's word,
//!
//! - `sleepers`, the futex word that members sleep on: counters of sleeps and of wake-ups, and [`ASLEEP`] if somebody may be asleep;
//! - `leader`: the number of the member, plus one, of which a thread watches the bell for the others, and a count of those who have led, by
//!   which nobody takes over from one who came after whom they found dead.
//!
//! # One wake-up for one message
//!
//! | who | does |
//! | --- | --- |
//! | a waiter | counts one sleep on in `sleepers`, with `ASLEEP`; looks at the ring; sleeps while no wake-up is counted on |
//! | a waker | publishes; if it finds `ASLEEP`, counts one wake-up on, wakes one; if nobody was there to be woken, takes `ASLEEP` away, provided that the word is the one it left |
//!
//! A waiter between its change and its sleep does not fall asleep once a waker has passed (whereas other sleepers do not keep it from that), and the bit stays
//! for as long as anybody sleeps: to take it away needs a word that nobody has changed since, so whoever had stored it before is awake. A waiter
//! that only set the bit, without changing a word that had it already, would be overlooked.
//!
//! Whether the waker finds `ASLEEP` is Dekker's question, as for a single waiter; see `bell.rs`. Sleeps of one slice do without the heavy barrier (W2
//! in `wait.rs`), longer ones do not.
//!
//! # The stages
//!
//! 1. *Spin*, as a single waiter does.
//! 2. *Sleep* for one slice.
//! 3. *Lead*, if nobody does, or a member that is dead: park in `ppoll` on the bell. A message then wakes two: the leader, by the bell, and one
//!    of those asleep, of another kind if there is any (below): it is found even if one of the two processes is killed before it gets there.
//! 4. Or else *follow*: sleep for long.
//!
//! Whoever may be interrupted takes a sleep that ended early, and in vain, for a signal; the caller has to look into that anyway.
//!
//! Nobody follows without a leader: who leads gives that up by leaving, and whoever leaves while some follow ([`FOLLOWED`]) and nobody leads wakes one
//! more. One that is woken so leads, or leaves as well.
//!
//! # What is held
//!
//! What comes next may be in the hands of a member that was killed: a message half written, or room that a reader has not given back. Who waits
//! for that sleeps in slices, and asks at each whether that member is dead, in which case it repairs the ring.
//!
//! # Kinds
//!
//! Sleepers are of 32 kinds, by the number of their member, and a wake-up can be meant for some kinds first. That for a message goes to one that is not
//! of the leader's kind, and so of another process, if there is any. (Of two processes, one pair in 32 is of one kind.) Wake-ups for room, and those that are passed on, go
//! to whoever has slept longest: there, who is woken may not be able to make use of it, and all have to have their turn.
//!
//! # Room
//!
//! Where readers drain a full ring, to wake a writer for each message would cost each of them a system call. They wake all once a quarter of the ring is
//! free, and before that one every [`ROOM_GAP`]. A leader is rung for at once, and it wakes the next.

use std::ptr::NonNull;
use std::sync::Mutex;

use crate::bell::{ARMED, Armed, Bell, RINGING, STRONG, Seats};
use crate::deadline::Deadline;
use crate::layout::Seat;
use crate::ring::mpmc::Owner;
use crate::spin::{Spin, breathe};
use crate::sync::{AtomicU32, BorrowedFd, LINGER, Ordering, OwnedFd, compiler_fence, fence, spin_loop};
use crate::sys;
use crate::wait::{PARK, SLICE, SPIN_CHECK, Wake};

pub(crate) const ASLEEP: u32 = 1;
/// Among those asleep may be some who follow.
const FOLLOWED: u32 = 2;
/// A counter of sleepers, and one of wake-ups behind it.
const SLEEP: u32 = 1 << 2;
const SLEEPS: u32 = (1 << 17) - SLEEP;
const WAKE: u32 = 1 << 17;

/// Of a seat's `leader`: the number plus one, and what is added for each who leads.
const LEADER: u32 = (1 << 11) - 1;
const LED: u32 = LEADER + 1;

/// Nanoseconds between two wake-ups for little room.
const ROOM_GAP: u64 = 100_000;

/// How often a waiter helps before it looks at the clock.
const HELPS: u32 = 64;

/// What a waiter sees when it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// What it waits for.
    Ready,
    Nothing,
    /// Somebody holds what it waits for.
    Held,
    /// Others go first.
    Passed,
}

/// What is waited for.
pub(crate) trait Sought {
    fn look(&self) -> Sight;
    /// Called when it was not there after a sleep.
    fn in_vain(&self) {}
    /// Repairs the ring if whoever holds what is waited for is dead. True if there is something new to be seen.
    fn help(&self) -> bool;
    /// Whether that member is dead.
    fn is_dead(&self, member: Owner) -> bool;
}

/// One side's means to wait for, wake, and lose the other.
pub(crate) struct Crowd {
    mine: NonNull<Seat>,
    theirs: NonNull<Seat>,
    spin: Mutex<Spin>,
    /// The bell tells the outside only that the other side is gone: that of senders.
    hears_death_only: bool,
    // Fields drop in order: the socket is closed before the other side is told to look at it.
    bell: Bell,
    _farewell: Farewell,
}

// SAFETY: the seats are atomics in shared memory; nothing is tied to a thread.
unsafe impl Send for Crowd {}
// SAFETY: as above, and what else there is may be shared.
unsafe impl Sync for Crowd {}

struct Farewell {
    seats: Seats,
    theirs: NonNull<Seat>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.seats.depart();
        // SAFETY: valid by the contract of `Crowd::new`.
        wake_all(unsafe { &self.theirs.as_ref().sleepers });
    }
}

/// As what the threads of a member sleep.
fn kind(member: Owner) -> u32 {
    1 << (member % 32)
}

/// Wakes one of those asleep, of these kinds if there is any.
fn wake_one(seat: &Seat, kinds: u32) {
    let sleepers = &seat.sleepers;
    let word = sleepers.fetch_add(WAKE, Ordering::SeqCst).wrapping_add(WAKE);
    if !sys::futex_wake_one(sleepers, kinds) && !sys::futex_wake_one(sleepers, sys::ANY_KIND) {
        stand_down(sleepers, word);
    }
}

fn wake_all(sleepers: &AtomicU32) {
    fence(Ordering::SeqCst); // N2
    if sleepers.load(Ordering::Relaxed) & ASLEEP == 0 {
        return;
    }
    let word = sleepers.fetch_add(WAKE, Ordering::SeqCst).wrapping_add(WAKE);
    sys::futex_wake_all(sleepers);
    stand_down(sleepers, word);
}

/// Nobody is asleep, unless the word has changed.
fn stand_down(sleepers: &AtomicU32, word: u32) {
    let _ = sleepers.compare_exchange(word, word & !(ASLEEP | FOLLOWED), Ordering::SeqCst, Ordering::Relaxed);
}

/// After `number` changed hands: its last holder may have died leading.
pub(crate) fn succeed(seat: &Seat, number: Owner) {
    let seen = seat.leader.load(Ordering::SeqCst);
    let (set, lost) = (Ordering::SeqCst, Ordering::Relaxed);
    if leader(seen) == Some(number) && seat.leader.compare_exchange(seen, seen & !LEADER, set, lost).is_ok() {
        wake_one(seat, sys::ANY_KIND);
    }
}

pub(crate) fn leader(word: u32) -> Option<Owner> {
    (word & LEADER).checked_sub(1).map(|number| number as Owner)
}

impl Crowd {
    /// # Safety
    ///
    /// Both seats must be valid until the value has been dropped.
    pub(crate) unsafe fn new(
        mine: NonNull<Seat>,
        theirs: NonNull<Seat>,
        bell: OwnedFd,
        hears_death_only: bool,
        spin_micros: u32,
    ) -> Crowd {
        // SAFETY: by this function's contract.
        let bell = unsafe {
            let [mine, theirs] = [mine, theirs].map(|seat| NonNull::from(&seat.as_ref().bell));
            Bell::new(mine, theirs, bell)
        };
        let (spin, _farewell) = (Mutex::new(Spin::new(spin_micros)), Farewell { seats: bell.seats, theirs });
        Crowd { mine, theirs, spin, hears_death_only, bell, _farewell }
    }

    #[inline(always)]
    fn mine(&self) -> &Seat {
        // SAFETY: valid by the contract of `new`.
        unsafe { self.mine.as_ref() }
    }

    #[inline(always)]
    fn theirs(&self) -> &Seat {
        // SAFETY: valid by the contract of `new`.
        unsafe { self.theirs.as_ref() }
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// A word for `Debug`.
    pub(crate) fn state(&self) -> &'static str {
        match self.theirs().sleepers.load(Ordering::Relaxed) & ASLEEP {
            0 => self.bell.state(),
            _ => "peers asleep",
        }
    }

    // --- waking -------------------------------------------------------------------------------

    /// Whether anybody on the other side waits, or we cannot know without a fence.
    #[inline(always)]
    fn attention(&self) -> bool {
        compiler_fence(Ordering::SeqCst); // N1
        let seat = self.theirs();
        seat.bell.load(Ordering::Relaxed) & (ARMED | STRONG | RINGING) != 0
            || seat.sleepers.load(Ordering::Relaxed) & ASLEEP != 0
    }

    /// To be called after every message: wakes one receiver, and who watches the bell. `is_left` looks whether there still is a message.
    #[inline(always)]
    pub(crate) fn notify(&self, is_left: impl Fn() -> bool) {
        if self.attention() {
            self.notify_slow(is_left);
        }
    }

    #[cold]
    #[inline(never)]
    fn notify_slow(&self, is_left: impl Fn() -> bool) {
        fence(Ordering::SeqCst); // N2
        let seat = self.theirs();
        if seat.sleepers.load(Ordering::Relaxed) & ASLEEP != 0 {
            // The bell wakes the leader, so this is to be of another process.
            let leader = leader(seat.leader.load(Ordering::Relaxed));
            wake_one(seat, leader.map_or(sys::ANY_KIND, |leader| !kind(leader)));
        }
        self.bell.ring(is_left);
    }

    /// To be called whenever room has been given back: wakes senders. `much` says whether it has become a lot.
    #[inline(always)]
    pub(crate) fn notify_room(&self, much: impl FnOnce() -> bool) {
        if self.attention() {
            self.notify_room_slow(much());
        }
    }

    #[cold]
    #[inline(never)]
    fn notify_room_slow(&self, much: bool) {
        fence(Ordering::SeqCst); // N2
        let seat = self.theirs();
        if seat.sleepers.load(Ordering::Relaxed) & ASLEEP != 0 {
            let (now, before) = (sys::now(), seat.woken_at.load(Ordering::Relaxed));
            if much {
                wake_all(&seat.sleepers);
            } else if now.wrapping_sub(before) > ROOM_GAP {
                seat.woken_at.store(now, Ordering::Relaxed);
                wake_one(seat, sys::ANY_KIND);
            }
        }
        self.bell.ring(|| true);
    }

    /// Wakes all of our own side that are asleep.
    pub(crate) fn wake_own(&self) {
        wake_all(&self.mine().sleepers);
    }

    /// Wakes one of our own side, for what we do not take ourselves.
    pub(crate) fn pass_on(&self) {
        let seat = self.mine();
        fence(Ordering::SeqCst); // N2
        if seat.sleepers.load(Ordering::Relaxed) & ASLEEP != 0 {
            wake_one(seat, sys::ANY_KIND);
        }
    }

    // --- waiting --------------------------------------------------------------------------------

    /// Waits, as member `me`, until what is sought is there, until the other side is gone, or until `deadline`.
    #[cold]
    #[inline(never)]
    pub(crate) fn wait(&self, deadline: Deadline, me: Owner, sought: &impl Sought) -> Wake {
        let wake = self.wait_in_stages(deadline, me, sought);
        self.leave_nobody_without_a_leader();
        if wake == Wake::TimedOut {
            self.settle(sought);
        }
        wake
    }

    fn wait_in_stages(&self, deadline: Deadline, me: Owner, sought: &impl Sought) -> Wake {
        if deadline.is_immediate() || self.bell.found_gone() {
            if let Some(wake) = self.news(deadline, sought) {
                return wake;
            }
        }
        if let Some(wake) = self.spin_wait(deadline, sought) {
            return wake;
        }
        let start = sys::now();
        let end = start + SLICE;
        loop {
            self.sleep(deadline.min(end), false, me, sought);
            let (now, news) = (sys::now(), self.news(deadline, sought));
            if news.is_some() || now >= end {
                self.spin(|spin| spin.slept(now - start));
            }
            match news {
                Some(wake) => return wake,
                None if now >= end => break,
                None if deadline.is_interruptible() => return Wake::TimedOut,
                None => {}
            }
        }
        loop {
            if let Some(leading) = self.take_the_lead(me, sought) {
                let wake = self.park(deadline, me, sought);
                self.leave_the_lead(leading, wake);
                return wake;
            }
            let held = sought.look() == Sight::Held;
            let longest = if held { SLICE } else { PARK };
            let until = deadline.min(sys::now() + longest);
            self.sleep(until, !held, me, sought);
            if let Some(wake) = self.news(deadline, sought) {
                return wake;
            }
            if deadline.is_interruptible() && !until.passed() {
                return Wake::TimedOut;
            }
        }
    }

    /// What there is to tell whoever waits, after a sleep.
    fn news(&self, deadline: Deadline, sought: &impl Sought) -> Option<Wake> {
        // Asked before the look (whoever asked): what the other side published before it died counts.
        let gone = self.bell.ask();
        let mut sight = sought.look();
        for turn in 1_u32.. {
            let more = sight == Sight::Held && sought.help();
            // A peer that makes up what dead members hold must not keep a call beyond its deadline.
            if !more || turn % HELPS == 0 && deadline.passed() {
                break;
            }
            sight = sought.look();
        }
        if sight != Sight::Ready {
            sought.in_vain();
        }
        match sight {
            Sight::Ready => Some(Wake::Ready),
            // A message that somebody is still writing will come, even if there is no more to follow.
            Sight::Nothing if gone => Some(Wake::Gone),
            Sight::Held | Sight::Passed if gone && self.hears_death_only => Some(Wake::Gone),
            Sight::Nothing | Sight::Held | Sight::Passed => deadline.passed().then_some(Wake::TimedOut),
        }
    }

    /// One spinner serves all threads; if another has its hands on it, there is no harm in doing without.
    fn spin<T>(&self, with: impl FnOnce(&mut Spin) -> T) -> Option<T> {
        self.spin.try_lock().ok().map(|mut spin| with(&mut spin))
    }

    /// Gives the other side some time in which it is not disturbed, until `enough`, unless spinning is of no use at present.
    pub(crate) fn let_it_run(&self, patience: u32, mut enough: impl FnMut() -> bool) {
        if self.spin(|spin| spin.is_idle()).unwrap_or(true) {
            return;
        }
        for _ in 0..patience {
            breathe();
            if enough() {
                return;
            }
        }
    }

    fn spin_wait(&self, deadline: Deadline, sought: &impl Sought) -> Option<Wake> {
        let mut spin = self.spin(Spin::begin)??;
        let mut next_check = SPIN_CHECK;
        while spin.goes_on() {
            if sought.look() == Sight::Ready {
                self.spin(|spinner| spinner.succeeded(&spin));
                return Some(Wake::Ready);
            }
            if self.bell.departed() && self.bell.ask_about_departure() {
                break;
            }
            if spin.elapsed > next_check {
                next_check = spin.elapsed + SPIN_CHECK;
                if self.bell.ask() || deadline.passed() {
                    break;
                }
            }
        }
        if self.bell.found_gone() || deadline.passed() { self.news(deadline, sought) } else { None }
    }

    /// Sleeps on the futex, unless there is something to be seen. For long, or for a slice at most.
    fn sleep(&self, until: Deadline, long: bool, me: Owner, sought: &impl Sought) {
        let sleepers = &self.mine().sleepers;
        let bits = if long { ASLEEP | FOLLOWED } else { ASLEEP };
        let next = |word: u32| word & !SLEEPS | word.wrapping_add(SLEEP) & SLEEPS | bits;
        let mut word = sleepers.load(Ordering::Relaxed);
        while let Err(now) = sleepers.compare_exchange_weak(word, next(word), Ordering::SeqCst, Ordering::Relaxed) {
            word = now;
        }
        if long {
            self.bell.seats.barrier(); // W1
        }
        let ready = (0..LINGER).any(|_| {
            spin_loop();
            sought.look() == Sight::Ready
        });
        if ready || self.bell.departed() && self.bell.ask_about_departure() {
            return;
        }
        // Whoever led until now found nobody to wake.
        if long && leader(self.mine().leader.load(Ordering::Relaxed)).is_none() {
            return;
        }
        word = next(word);
        while sys::futex_wait(sleepers, word, until, kind(me)) {
            // If that was another sleeper, and no waker, there is nothing new to be seen.
            let now = sleepers.load(Ordering::SeqCst);
            if now / WAKE != word / WAKE || now & bits != bits {
                return;
            }
            word = now;
        }
    }

    /// The word by which this thread leads, if it does.
    fn take_the_lead(&self, me: Owner, sought: &impl Sought) -> Option<u32> {
        let word = &self.mine().leader;
        let seen = word.load(Ordering::SeqCst);
        if leader(seen).is_some_and(|leader| !sought.is_dead(leader)) {
            return None;
        }
        let leading = (seen & !LEADER).wrapping_add(LED) | (u32::from(me) + 1);
        word.compare_exchange(seen, leading, Ordering::SeqCst, Ordering::Relaxed).ok().map(|_| leading)
    }

    /// Gives up the lead; to pass it on is left to whoever leaves the wait. Wakes all if there is nothing more to wait for.
    fn leave_the_lead(&self, leading: u32, wake: Wake) {
        if self.hears_death_only {
            self.bell.hush();
        }
        let seat = self.mine();
        let _ = seat.leader.compare_exchange(leading, leading & !LEADER, Ordering::SeqCst, Ordering::Relaxed);
        if wake == Wake::Gone {
            wake_all(&seat.sleepers);
        }
    }

    /// Whoever leaves may have led, or been woken to lead.
    fn leave_nobody_without_a_leader(&self) {
        let seat = self.mine();
        fence(Ordering::SeqCst); // N2
        if seat.sleepers.load(Ordering::Relaxed) & FOLLOWED != 0
            && leader(seat.leader.load(Ordering::Relaxed)).is_none()
        {
            wake_one(seat, sys::ANY_KIND);
        }
    }

    /// In `ppoll` on the bell, for as long as it takes.
    fn park(&self, deadline: Deadline, me: Owner, sought: &impl Sought) -> Wake {
        let mut in_vain = 0;
        loop {
            let seen = (in_vain > 0 || !self.bell.is_armed())
                && self.bell.arm(&mut || sought.look() != Sight::Nothing) == Armed::Ready;
            let mut until = deadline.min(sys::now() + SLICE);
            let heard = if seen || in_vain > 2 {
                // Of what is held, the bell does not tell when that changes. And one that cannot be silenced, or not be waited for, must not
                // turn a wait into a busy loop.
                self.sleep(until, false, me, sought);
                self.bell.listen(Deadline::NOW)
            } else {
                if sought.look() == Sight::Nothing {
                    until = deadline.min(sys::now() + PARK);
                }
                self.bell.listen(until)
            };
            if let Some(wake) = self.news(deadline, sought) {
                return wake;
            }
            if heard.readable && self.hears_death_only {
                // The room was not enough for this one; perhaps it is for another, who wants less.
                self.pass_on();
            }
            let woken = heard.readable || heard.refused || heard.hung_up;
            if !woken && deadline.is_interruptible() && !until.passed() {
                return Wake::TimedOut;
            }
            in_vain = if woken { in_vain + 1 } else { 0 };
        }
    }

    // --- for event loops ------------------------------------------------------------------------

    /// For a bell that somebody watches from outside: silent while there is nothing to receive.
    ///
    /// Not while what comes first is held: if its holder dies, nobody will ring for what is behind it once more.
    #[inline(always)]
    pub(crate) fn settle(&self, sought: &impl Sought) {
        self.bell.settle(|| sought.look() != Sight::Nothing);
    }

    /// The bell, to be watched from outside from now on.
    pub(crate) fn watch(&self, sought: &impl Sought) -> BorrowedFd<'_> {
        self.bell.watch(|| sought.look() != Sight::Nothing)
    }
}
