//! The ring for many on plain memory, and a pipe for many whose ends are made anew for each execution.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::bell;
use crate::copy::{copy, copy_in};
use crate::layout::{Geometry, ManyControl, WINDOWS};
use crate::mpmc::{Receiver, Sender};
use crate::ring::mpmc::{self, Front, Precedence, Room};
use crate::segment::{ANONYMOUS, Segment};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys;

/// Bytes of a cell.
pub const CELL: usize = crate::layout::CELL;

/// Who writes or reads.
pub type Owner = u16;

/// A ring for many on the heap.
pub struct Ring {
    ring: mpmc::Ring,
    // Last: what is above points into it.
    segment: Segment,
}

/// A record that is being written or read.
#[derive(Clone, Copy)]
pub struct Held(mpmc::Held);

/// What comes next; the length is `None` for a long message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in `ring::mpmc`")]
pub enum Next {
    Message(Option<usize>),
    Empty,
    Busy,
    Corrupt,
}

impl Ring {
    /// A ring of so many cells: a power of two, at least four.
    pub fn new(cells: usize) -> Ring {
        let segment = Segment::heap(Geometry::mpmc(cells * CELL, 0));
        // SAFETY: all of it lies in the segment, which is dropped last.
        let ring = unsafe {
            mpmc::Ring::new(segment.many_control(), segment.cell_words(), segment.ring(0), segment.geometry().capacity)
        };
        Ring { ring, segment }
    }

    /// Makes it as new, with cursors that start at `start`.
    pub fn reset(&mut self, start: u64) {
        reset(&self.segment, start);
    }

    /// The longest message that is not a long one.
    pub fn max_payload(&self) -> usize {
        self.ring.max_payload()
    }

    /// Claims room.
    pub fn claim(&self, len: usize, owner: Owner) -> Option<Held> {
        self.ring.claim(len, owner).map(Held)
    }

    /// Fills claimed room from its start; no more than was claimed.
    pub fn write(&self, held: Held, bytes: &[u8]) {
        // SAFETY: the claim is for at least as many bytes.
        unsafe { copy_in(bytes, self.ring.payload(held.0)) };
    }

    /// Publishes the first `len` bytes.
    pub fn publish(&self, held: Held, len: usize) {
        self.ring.publish(held.0, len);
    }

    /// The first of the two stores that publish less than was claimed, whose writer is killed before the other.
    pub fn die_publishing(&self, position: u64, claimed: u64, cells: u64) {
        let all = self.segment.geometry().capacity / CELL;
        let lap = (position / all as u64 + 1) % (1 << 42);
        let at = position.wrapping_add(cells) as usize % all;
        // SAFETY: there are as many words as cells.
        let word = unsafe { self.segment.cell_words().add(at).as_ref() };
        word.store(lap << 22 | (claimed - cells) << 12 | 3, Ordering::Relaxed);
    }

    /// What a receiver finds.
    pub fn look(&self) -> Next {
        match self.ring.look() {
            Front::Message(message) => Next::Message(message.len),
            Front::Empty => Next::Empty,
            Front::Busy => Next::Busy,
            Front::Corrupt => Next::Corrupt,
        }
    }

    /// Takes what comes next.
    pub fn take(&self, owner: Owner) -> Option<Held> {
        match self.ring.look() {
            Front::Message(message) => self.ring.take(message, owner).map(Held),
            _ => None,
        }
    }

    /// Copies out the payload, no more than there is.
    pub fn read(&self, held: Held, dst: &mut [u8]) {
        // SAFETY: the record has at least as many bytes.
        unsafe { copy(self.ring.payload(held.0).as_ptr(), dst.as_mut_ptr(), dst.len()) };
    }

    /// Gives a record up.
    pub fn give_up(&self, held: Held) {
        self.ring.give_up(held.0);
    }

    /// Whether it has not been taken away.
    pub fn still_holds(&self, held: Held) -> bool {
        self.ring.still_holds(held.0)
    }

    /// The first cell, and the window of a long message.
    pub fn place(&self, held: Held) -> (usize, Option<usize>) {
        let offset = self.ring.payload(held.0).addr().get() - self.segment.ring(0).addr().get();
        (offset / CELL, self.ring.window(held.0))
    }

    /// Gives up for the dead what is in the way.
    pub fn repair(&self, is_dead: impl Fn(Owner) -> bool) -> bool {
        self.ring.repair(is_dead)
    }

    /// What a newcomer does to what a dead member of its number held.
    pub fn clear(&self, me: Owner) -> bool {
        self.ring.clear(me)
    }

    /// Whether there is room; and if not, whether what comes first is held.
    pub fn room(&self, len: usize) -> (bool, bool) {
        let room = self.ring.room(len, Precedence::default());
        (room == Room::Enough, room == Room::Held)
    }

    /// Bytes in use, and messages.
    pub fn fill(&self) -> (usize, usize) {
        (self.ring.fill(), self.ring.messages())
    }

    /// `free`.
    pub fn free(&self) -> u64 {
        self.ring.free()
    }

    /// The hints, as somebody stores them who was held up.
    pub fn set_hints(&self, tail: Option<u64>, head: Option<u64>) {
        let control = control(&self.segment);
        for (word, value) in [(&control.tail.0.tail, tail), (&control.head.0, head)] {
            if let Some(value) = value {
                word.store(value, Ordering::Relaxed);
            }
        }
    }
}

fn control(segment: &Segment) -> &ManyControl {
    // SAFETY: all atomics, valid as long as the segment.
    unsafe { segment.many_control().as_ref() }
}

fn reset(segment: &Segment, start: u64) {
    let capacity = segment.geometry().capacity;
    // SAFETY: all within the segment, and nobody uses it while it is reset.
    unsafe {
        segment.many_control().write_bytes(0, 1);
        segment.cell_words().write_bytes(0, capacity / CELL);
        segment.ring(0).write_bytes(0, capacity);
    }
    let control = control(segment);
    // A zeroed word is of no lap, unless laps have come round.
    for cursor in [&control.tail.0.tail, &control.tail.0.free, &control.head.0] {
        cursor.store(start, Ordering::Relaxed);
    }
    bell::arm_fresh(&control.not_empty.0.bell);
}

/// A pipe for many whose ends are made anew for each execution, on the same memory.
pub struct Pipe {
    memory: Memory,
    bells: [OwnedFd; 2],
}

impl Pipe {
    /// A ring of `capacity` bytes, with windows of `window` bytes.
    pub fn new(capacity: usize, window: u64, spin: Duration) -> Pipe {
        let geometry = Geometry { window, ..Geometry::mpmc(capacity, spin.as_micros() as u32) };
        let segment = Arc::new(Segment::create(geometry, ANONYMOUS).expect("memory for a segment"));
        let (receiving, sending) = sys::socketpair().expect("a socket");
        Pipe { memory: Memory { segment }, bells: [receiving, sending] }
    }

    /// Both ends of a fresh pipe, with cursors that start at `start`. Those made before are not used any more.
    pub fn ends(&mut self, start: u64) -> (Receiver, Sender) {
        let segment = &self.memory.segment;
        let geometry = segment.geometry();
        sys::punch(segment.as_fd(), geometry.window_offset(0), WINDOWS * geometry.window);
        reset(segment, start);
        let [receiving, sending] = &self.bells;
        let copy = |bell: &OwnedFd| {
            sys::take_tokens(bell.as_fd(), |_| true);
            bell.try_clone().expect("a descriptor")
        };
        let receiver = Receiver::attach(Arc::clone(segment), copy(receiving));
        let sender = Sender::attach(Arc::clone(segment), copy(sending));
        (receiver.expect("a number"), sender.expect("a number"))
    }

    /// The memory of the pipe, to be rewritten under its ends.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// The memory of a [`Pipe`], as a peer sees it.
#[derive(Clone)]
pub struct Memory {
    segment: Arc<Segment>,
}

impl Memory {
    /// Cells of the ring.
    pub fn cells(&self) -> usize {
        self.segment.geometry().capacity / CELL
    }

    /// `tail`, `free` and `head`.
    pub fn cursors(&self) -> [&AtomicU64; 3] {
        let control = control(&self.segment);
        [&control.tail.0.tail, &control.tail.0.free, &control.head.0]
    }

    /// The receivers' and the senders' seat: bell, sleepers, leader.
    pub fn seats(&self) -> [&AtomicU32; 6] {
        let control = control(&self.segment);
        let [e, f] = [&control.not_empty.0, &control.not_full.0];
        [&e.bell, &e.sleepers, &e.leader, &f.bell, &f.sleepers, &f.leader]
    }

    /// When the seats were last woken.
    pub fn woken_at(&self) -> [&AtomicU64; 2] {
        let control = control(&self.segment);
        [&control.not_empty.0.woken_at, &control.not_full.0.woken_at]
    }

    /// The word of a cell.
    pub fn word(&self, cell: usize) -> &AtomicU64 {
        // SAFETY: in bounds.
        unsafe { self.segment.cell_words().add(cell % self.cells()).as_ref() }
    }

    /// The first word of a cell's payload.
    pub fn payload(&self, cell: usize) -> &AtomicU64 {
        // SAFETY: in bounds and aligned.
        unsafe { self.segment.ring(0).add(cell % self.cells() * CELL).cast().as_ref() }
    }

    /// What lies between the control block and the words, to which nobody has any business; and where the mapping ends.
    pub fn out_of_bounds(&self) -> ((*const u8, usize), *const u8) {
        // SAFETY: all of it is in the mapping.
        unsafe {
            let (start, words) =
                (self.segment.many_control().add(1).cast::<u8>(), self.segment.cell_words().cast::<u8>());
            let end = self.segment.ring(0).add(self.segment.geometry().capacity);
            ((start.as_ptr(), words.addr().get() - start.addr().get()), end.as_ptr())
        }
    }

    /// Bytes of the memory file.
    pub fn file_len(&self) -> u64 {
        self.segment.geometry().file_len()
    }
}

impl AsFd for Memory {
    /// The memory file.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }
}
