//! What all handles of one side have in common, in one process.

use std::io;
use std::sync::Arc;

use crate::crowd::{self, Crowd, Sight, Sought};
use crate::layout::Seat;
use crate::registry::Member;
use crate::ring::mpmc::{Front, Held, Owner, Ring, Room};
use crate::segment::Segment;
use crate::sync::{AsFd, OwnedFd};
use crate::sys;

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
        if self.ring.clear(number, |held| self.discard(held)) {
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
    pub(super) fn repair(&self, me: Owner) -> bool {
        let repaired = self.ring.repair(me, |owner| self.is_dead(owner), |held| self.discard(held));
        if repaired {
            self.tell_all();
        }
        repaired
    }

    /// Lets everybody look again: there may be messages behind what was taken away, or room.
    fn tell_all(&self) {
        self.crowd.notify();
        self.crowd.pass_on();
    }

    /// Gives up a record unread or unwritten.
    pub(super) fn abandon(&self, held: Held) {
        self.discard(held);
        self.ring.give_up(held);
        self.tell_all();
    }

    /// Gives the memory outside of the ring back that a long message has.
    pub(super) fn discard(&self, held: Held) {
        if let Some(window) = self.ring.window(held) {
            let geometry = self.segment.geometry();
            sys::punch(self.segment.as_fd(), geometry.window_offset(window), geometry.window);
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
            self.ring.clear(me, |held| self.discard(held));
        }
    }
}

/// What a receiver waits for.
pub(super) struct ForMessage<'a>(pub(super) &'a Side, pub(super) Owner);

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
        self.0.repair(self.1)
    }

    fn is_dead(&self, member: Owner) -> bool {
        self.0.is_dead(member)
    }
}

/// What a sender waits for: room for so many bytes.
pub(super) struct ForRoom<'a>(pub(super) &'a Side, pub(super) Owner, pub(super) usize);

impl Sought for ForRoom<'_> {
    #[inline(always)]
    fn look(&self) -> Sight {
        match self.0.ring.room(self.2) {
            Room::Enough => Sight::Ready,
            Room::Lacking => Sight::Nothing,
            Room::Held => Sight::Held,
        }
    }

    fn help(&self) -> bool {
        self.0.repair(self.1)
    }

    fn is_dead(&self, member: Owner) -> bool {
        self.0.is_dead(member)
    }
}
