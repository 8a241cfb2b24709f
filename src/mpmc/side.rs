//! What all handles of one side have in common, in one process.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use crate::crowd::{self, Crowd, Sight, Sought};
use crate::layout::Seat;
use crate::registry::Member;
use crate::ring::mpmc::{Front, Held, Owner, Precedence, Ring, Room};
use crate::segment::Segment;
use crate::sync::{AsFd, Ordering, OwnedFd};
use crate::sys;
use crate::wait::SLICE;

/// Bytes of memory that a window keeps.
const KEPT: u64 = 1 << 20;

/// How long a sender waits before it takes precedence, in nanoseconds.
const LONG: u64 = 2 * SLICE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Receiver,
    Sender,
}

/// A side: the ring, and one membership and one copy of the socket for all handles of a process.
pub(super) struct Side {
    pub(super) ring: Ring,
    pub(super) crowd: Crowd,
    member: Member,
    // Last: what is above points into it.
    pub(super) segment: Arc<Segment>,
}

impl Side {
    pub(super) fn new(segment: Arc<Segment>, role: Role, bell: OwnedFd) -> io::Result<Side> {
        let geometry = segment.geometry();
        let member = Member::new(Arc::clone(&segment))?;
        // SAFETY: all of it lies in the mapping, which the segment keeps alive for longer than the ring.
        let ring =
            unsafe { Ring::new(segment.many_control(), segment.cell_words(), segment.ring(0), geometry.capacity) };
        // SAFETY: as above.
        let crowd = unsafe {
            let control = segment.many_control().as_ref();
            let [not_empty, not_full] = [&control.not_empty.0, &control.not_full.0].map(std::ptr::NonNull::from);
            let (mine, theirs) = match role {
                Role::Receiver => (not_empty, not_full),
                Role::Sender => (not_full, not_empty),
            };
            Crowd::new(mine, theirs, bell, role == Role::Sender, geometry.spin_micros)
        };
        let side = Side { ring, crowd, member, segment };
        side.me()?;
        Ok(side)
    }

    /// The number by which the ring knows this process.
    #[inline(always)]
    pub(super) fn me(&self) -> io::Result<Owner> {
        self.member.number(|number| self.inherit(number))
    }

    /// Before a number is used: nobody else will give up what its last holder, who is dead, had.
    fn inherit(&self, number: Owner) {
        for seat in self.seats() {
            crowd::succeed(seat, number);
        }
        if self.ring.clear(number) {
            self.tell_all();
        }
    }

    fn seats(&self) -> [&Seat; 2] {
        // SAFETY: valid for as long as the segment; all atomics.
        let control = unsafe { self.segment.many_control().as_ref() };
        [&control.not_empty.0, &control.not_full.0]
    }

    /// Whether what is held is still ours: not in a child that was forked since.
    pub(super) fn still_holds(&self, held: Held) -> bool {
        self.member.joined().is_some_and(|me| held.is_of(me)) && self.ring.still_holds(held)
    }

    pub(super) fn is_dead(&self, member: Owner) -> bool {
        self.member.is_dead(member)
    }

    /// Takes away what a dead member holds and others wait for. True if it was anything.
    pub(super) fn repair(&self) -> bool {
        let repaired = self.ring.repair(|owner| self.is_dead(owner));
        if repaired {
            self.tell_all();
        }
        repaired
    }

    /// Lets everybody look again: there may be messages behind what was taken away, or room.
    fn tell_all(&self) {
        self.crowd.notify(|| true);
        self.crowd.pass_on();
    }

    /// Gives up a record unread or unwritten.
    pub(super) fn abandon(&self, held: Held) {
        self.ring.give_up(held);
        self.tell_all();
    }

    /// Gives the memory of a held long message's window back, if it is much.
    ///
    /// Only for who has sent or received a long message: the kernel makes whoever calls this wait for others who change the file, and
    /// a peer that can delay page faults can be one for as long as it likes.
    pub(super) fn discard(&self, held: Held, window: usize) {
        let extent = self.ring.extent(held);
        if extent.load(Ordering::Relaxed) > KEPT {
            let geometry = self.segment.geometry();
            sys::punch(self.segment.as_fd(), geometry.window_offset(window), geometry.window);
            extent.store(0, Ordering::Relaxed);
        }
    }

    /// The longest message.
    pub(super) fn max_len(&self) -> usize {
        let long = self.ring.long_payload() as u64 + self.segment.geometry().window;
        usize::try_from(long).unwrap_or(usize::MAX).max(self.ring.max_payload())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // What guards that were leaked held.
        if let Some(me) = self.member.joined() {
            self.ring.clear(me);
        }
    }
}

/// What a receiver waits for.
pub(super) struct ForMessage<'a>(pub(super) &'a Side);

impl Sought for ForMessage<'_> {
    #[inline(always)]
    fn look(&self) -> Sight {
        match self.0.ring.look() {
            Front::Message(_) | Front::Corrupt => Sight::Ready,
            Front::Empty => Sight::Nothing,
            Front::Busy => Sight::Held,
        }
    }

    fn help(&self) -> bool {
        self.0.repair()
    }

    fn is_dead(&self, member: Owner) -> bool {
        self.0.is_dead(member)
    }
}

/// What a sender waits for: room for so many bytes. If that is much, it takes precedence when others have long been faster.
pub(super) struct ForRoom<'a> {
    side: &'a Side,
    me: Owner,
    len: usize,
    /// When the wait began, once it has been in vain.
    since: Cell<Option<u64>>,
    /// How far room had been given back when precedence was last taken or thought of.
    free: Cell<u64>,
    precedence: Cell<Precedence>,
    /// Since when there has been precedence.
    taken: Cell<u64>,
}

impl<'a> ForRoom<'a> {
    pub(super) fn new(side: &'a Side, me: Owner, len: usize) -> ForRoom<'a> {
        let (since, free) = (Cell::new(None), Cell::new(side.ring.free()));
        ForRoom { side, me, len, since, free, precedence: Cell::default(), taken: Cell::new(0) }
    }

    /// Claims the room, if it is there.
    pub(super) fn claim(&self) -> Option<Held> {
        let held = self.side.ring.search_room(self.len, self.me, self.precedence.get());
        if held.is_none() {
            self.in_vain();
        }
        held
    }
}

impl Sought for ForRoom<'_> {
    #[inline(always)]
    fn look(&self) -> Sight {
        match self.side.ring.room(self.len, self.precedence.get()) {
            Room::Enough => Sight::Ready,
            // Others leave alone what comes, and do not say so to each other.
            Room::Lacking if self.precedence.get().is_some() => Sight::Held,
            Room::Lacking => Sight::Nothing,
            Room::Held => Sight::Held,
            Room::Passed => Sight::Passed,
        }
    }

    /// Takes precedence once the wait has been long, and keeps it; but only while room is given back. Where a reader holds on to what comes first,
    /// those who need little have to get on with what is left.
    fn in_vain(&self) {
        if !self.side.ring.is_large(self.len) {
            return;
        }
        let now = sys::now();
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        let mine = self.precedence.get();
        if now - since > LONG && mine.wanes(now) {
            let free = self.side.ring.free();
            if self.free.replace(free) != free {
                let next = self.side.ring.take_precedence(mine, self.me);
                if !mine.is_some() {
                    self.taken.set(now);
                }
                self.precedence.set(next);
            } else if mine.is_over(now) {
                self.precedence.set(Precedence::default());
            }
        }
    }

    fn help(&self) -> bool {
        self.side.repair()
    }

    fn is_dead(&self, member: Owner) -> bool {
        self.side.is_dead(member)
    }
}

impl Drop for ForRoom<'_> {
    fn drop(&mut self) {
        let precedence = self.precedence.get();
        if precedence.is_some() {
            self.side.ring.end_precedence(precedence, self.taken.get());
            // They sleep for long meanwhile.
            self.side.crowd.wake_own();
        }
    }
}
