//! The ring of many writers and many readers, in any processes, without a lock.
//!
//! Not in use yet: the ends for many senders and receivers, which will stand on it, are being built. Until then it is compiled for
//! its own tests only.
//!
//! The ring is made of cells of [`CELL`] bytes. A message takes a run of them, which never crosses the end of the ring. Beside the
//! cells lies one word for each; that of a record's first cell says all there is to know of the record:
//!
//! ```text
//! 63                 22 21      12 11               2 1     0
//! +--------------------+----------+------------------+-------+
//! | lap                | cells    | owner, or slack  | state |
//! +--------------------+----------+------------------+-------+
//! ```
//!
//! - *lap*: position of the record / cells of the ring + 1, so that a zeroed word is of no lap. It does not come round again in the
//!   life of a machine.
//! - *cells*: how many; [`TO_THE_END`] for padding up to the end of the ring.
//! - *owner*: who writes or reads it; *slack*, while it is `READY`: by how much the message is shorter than its cells.
//!
//! | transition | by | step |
//! | --- | --- | --- |
//! | older lap => `WRITING` | a writer claims room | compare-exchange |
//! | older lap => `DONE` | a writer pads | compare-exchange |
//! | `WRITING` => `READY` | its owner publishes | store |
//! | `WRITING` => `DONE` | its owner gives it up | store |
//! | `READY` => `READING` | a reader takes it | compare-exchange |
//! | `READING` => `DONE` | its owner has read it | store |
//! | `WRITING`, `READING` of a dead owner => `READING` of another, who drops it | whoever is in want of it | compare-exchange |
//!
//! # The words are the truth
//!
//! Claim and claimant appear in one step, so a process that is killed leaves no hole that nobody answers for. `tail` and `head` are hints: any
//! boundary between records that was one once will do. From there a walk goes by the words: one of the same lap
//! leads on by its cells; one of a newer lap says that the hint is out of date by a lap; one of an older lap says that nothing has been claimed here, so
//! that this is the true tail. A walk along boundaries of one lap finds at each a word of that lap or a newer one, since whoever claimed there wrote
//! it and laps only grow. Therefore hints are stored without care for who stores last.
//!
//! `free` alone only grows (M3): behind it lies nothing that is not `DONE`. Writers move it on, in bulk, when they find no room.
//!
//! In each lap a word is claimed, taken and given up once, and never holds the same value twice, so a compare-exchange that succeeds found what its
//! caller had judged.
//!
//! # Orderings
//!
//! - M1 (release, `READY`) pairs with T1 (acquire, taking): the payload is visible to who takes it.
//! - M1 pairs with T4 (acquire, walks) too: who sees a record that was cut short finds what its owner wrote behind it first, and does not claim
//!   there.
//! - M2 (release, `DONE`) pairs with T2 (acquire, the walk over `DONE`), M3 (release, `free`) with T3 (acquire, `free`): a reader's copying is over
//!   before a writer claims the cells anew.
//!
//! # Hostile peers
//!
//! Every position is reduced to the ring on access, every record is checked against the end of the ring before its payload is touched, and every walk
//! is bounded.

use std::ptr::NonNull;

use crate::layout::{CELL, ManyControl};
use crate::sync::{AtomicU64, Ordering};

const STATE: u64 = 0b11;
const OWNER_SHIFT: u32 = 2;
const CELLS_SHIFT: u32 = 12;
const LAP_SHIFT: u32 = 22;
const FIELD: u64 = (1 << 10) - 1;
const LAPS: u64 = 1 << (64 - LAP_SHIFT);

/// The number of cells of padding.
const TO_THE_END: u64 = 0;
/// The most cells of a record.
const MAX_CELLS: u64 = FIELD;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum State {
    Writing = 0,
    Ready = 1,
    Reading = 2,
    Done = 3,
}

/// A word, read once.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

/// How the lap of a word compares to that of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lap {
    Older,
    Same,
    Newer,
}

impl Word {
    fn new(lap: u64, cells: u64, field: u64, state: State) -> Word {
        Word(lap << LAP_SHIFT | cells << CELLS_SHIFT | field << OWNER_SHIFT | state as u64)
    }

    fn state(self) -> State {
        match self.0 & STATE {
            0 => State::Writing,
            1 => State::Ready,
            2 => State::Reading,
            _ => State::Done,
        }
    }

    fn field(self) -> u64 {
        self.0 >> OWNER_SHIFT & FIELD
    }

    fn cells(self) -> u64 {
        self.0 >> CELLS_SHIFT & FIELD
    }

    fn with(self, field: u64, state: State) -> Word {
        Word::new(self.0 >> LAP_SHIFT, self.cells(), field, state)
    }

    /// Judged by the shorter way round.
    fn compare(self, lap: u64) -> Lap {
        match (self.0 >> LAP_SHIFT).wrapping_sub(lap) % LAPS {
            0 => Lap::Same,
            ahead if ahead < LAPS / 2 => Lap::Newer,
            _ => Lap::Older,
        }
    }
}

/// Who writes or reads a record: below 1024.
pub(crate) type Owner = u16;

/// One side, or both, of a ring for many. Any number of threads may use one.
pub(crate) struct Ring {
    control: NonNull<ManyControl>,
    words: NonNull<AtomicU64>,
    base: NonNull<u8>,
    cells: u64,
}

// SAFETY: the pointers lead to shared memory whose words are atomics and whose bytes the protocol hands from owner to owner.
unsafe impl Send for Ring {}
// SAFETY: as above; every method may be called by any number of threads.
unsafe impl Sync for Ring {}

/// A record that somebody here writes or reads.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    position: u64,
    word: Word,
}

/// What became of an attempt to claim room.
pub(crate) enum Claimed {
    Room(Held),
    /// There is none. What holds up the rest is held by this owner, if by anybody.
    Full(Option<Owner>),
}

/// What became of an attempt to take a message.
pub(crate) enum Taken {
    /// One of `len` bytes.
    Message(Held, usize),
    Empty,
    /// The next message is being written by this owner.
    Busy(Owner),
    /// No word that a writer would have written.
    Corrupt,
}

/// Where a walk to the front or to the end came.
enum Reached {
    Unclaimed(u64, Word),
    Record(u64, Word),
    Astray,
}

impl Ring {
    /// # Safety
    ///
    /// `control`, `capacity / CELL` zeroed or used words and `capacity` bytes at `base` must be valid for as long as the value is used, and `capacity`
    /// be a power of two of at least four cells.
    pub(crate) unsafe fn new(
        control: NonNull<ManyControl>,
        words: NonNull<AtomicU64>,
        base: NonNull<u8>,
        capacity: usize,
    ) -> Ring {
        debug_assert!(capacity.is_power_of_two() && capacity >= 4 * CELL);
        Ring { control, words, base, cells: (capacity / CELL) as u64 }
    }

    fn control(&self) -> &ManyControl {
        // SAFETY: valid by the contract of `new`; all atomics.
        unsafe { self.control.as_ref() }
    }

    fn index(&self, position: u64) -> u64 {
        position & (self.cells - 1)
    }

    fn lap(&self, position: u64) -> u64 {
        (position / self.cells + 1) % LAPS
    }

    fn word(&self, position: u64) -> &AtomicU64 {
        // SAFETY: the index is below the number of words.
        unsafe { self.words.add(self.index(position) as usize).as_ref() }
    }

    /// Behind the record at `position`.
    fn behind(&self, position: u64, word: Word) -> u64 {
        match word.cells() {
            TO_THE_END => position.wrapping_add(self.cells - self.index(position)),
            cells => position.wrapping_add(cells),
        }
    }

    /// The longest message.
    pub(crate) fn max_payload(&self) -> usize {
        (self.cells / 4).min(MAX_CELLS) as usize * CELL
    }

    /// Cells that are in use at `position`, or `None` if a hint was out of date.
    fn used(&self, position: u64) -> Option<u64> {
        let used = position.wrapping_sub(self.control().tail.0.free.load(Ordering::Acquire)); // T3
        (used <= self.cells).then_some(used)
    }

    /// The true tail.
    fn find_tail(&self) -> Reached {
        let mut at = self.control().tail.0.tail.load(Ordering::Relaxed);
        for _ in 0..4 * self.cells {
            let word = Word(self.word(at).load(Ordering::Acquire)); // T4
            at = match word.compare(self.lap(at)) {
                Lap::Older => return Reached::Unclaimed(at, word),
                Lap::Same => self.behind(at, word),
                Lap::Newer => self.control().tail.0.free.load(Ordering::Acquire),
            };
        }
        Reached::Astray
    }

    /// The first record that nobody has taken or given up.
    fn find_head(&self) -> Reached {
        let mut at = self.control().head.0.load(Ordering::Relaxed);
        for _ in 0..4 * self.cells {
            let word = Word(self.word(at).load(Ordering::Acquire)); // T4
            at = match (word.compare(self.lap(at)), word.state()) {
                (Lap::Older, _) => return Reached::Unclaimed(at, word),
                (Lap::Newer, _) => self.control().tail.0.free.load(Ordering::Acquire),
                (Lap::Same, State::Writing | State::Ready) => return Reached::Record(at, word),
                (Lap::Same, State::Reading | State::Done) => self.behind(at, word),
            };
        }
        Reached::Astray
    }

    /// Claims room for a message of `len` (at most [`max_payload`](Self::max_payload)) bytes.
    pub(crate) fn claim(&self, len: usize, owner: Owner) -> Claimed {
        debug_assert!(len <= self.max_payload());
        let cells = len.div_ceil(CELL).max(1) as u64;
        for _ in 0..4 * self.cells {
            let Reached::Unclaimed(at, old) = self.find_tail() else { break };
            let rest = self.cells - self.index(at);
            let (need, lap) = (cells.min(rest), self.lap(at));
            let fits = |used: u64| used + need <= self.cells;
            if !self.used(at).is_some_and(fits) {
                self.advance_free();
                match self.used(at) {
                    Some(used) if fits(used) => {}
                    Some(_) => return Claimed::Full(self.holder()),
                    None => continue,
                }
            }
            let pads = cells > rest;
            let word = match pads {
                true => Word::new(lap, TO_THE_END, 0, State::Done),
                false => Word::new(lap, cells, owner.into(), State::Writing),
            };
            // What it claims was read and given up before `free` passed it (T3).
            let (won, lost) = (Ordering::Relaxed, Ordering::Relaxed);
            if self.word(at).compare_exchange(old.0, word.0, won, lost).is_err() {
                continue;
            }
            self.control().tail.0.tail.store(self.behind(at, word), Ordering::Relaxed);
            if !pads {
                return Claimed::Room(Held { position: at, word });
            }
        }
        Claimed::Full(None)
    }

    /// Moves `free` over what is done.
    fn advance_free(&self) {
        let free = &self.control().tail.0.free;
        let start = free.load(Ordering::Acquire);
        let mut at = start;
        while at.wrapping_sub(start) < self.cells {
            let word = Word(self.word(at).load(Ordering::Acquire)); // T2
            if word.compare(self.lap(at)) != Lap::Same || word.state() != State::Done {
                break;
            }
            at = self.behind(at, word);
        }
        if at != start {
            // M3. Whoever else moved it has done so by the same words.
            let _ = free.compare_exchange(start, at, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Who holds the record that holds up `free`.
    fn holder(&self) -> Option<Owner> {
        let (_, owner) = self.held_at(self.control().tail.0.free.load(Ordering::Acquire))?;
        Some(owner)
    }

    /// The word at a boundary, and whom it names, if somebody is writing or reading there.
    fn held_at(&self, at: u64) -> Option<(Word, Owner)> {
        let word = Word(self.word(at).load(Ordering::Acquire));
        let held = matches!(word.state(), State::Writing | State::Reading) && word.compare(self.lap(at)) == Lap::Same;
        held.then(|| (word, word.field() as Owner))
    }

    /// Where the payload of a held record lies, all of it in the ring.
    pub(crate) fn payload(&self, held: Held) -> NonNull<u8> {
        // SAFETY: within the ring: a claim was made so that it fits, and what was taken was checked.
        unsafe { self.base.add(self.index(held.position) as usize * CELL) }
    }

    /// Publishes a claimed record, of `len` bytes, at most what was claimed.
    pub(crate) fn publish(&self, held: Held, len: usize) {
        let (claimed, cells) = (held.word.cells(), len.div_ceil(CELL).max(1) as u64);
        debug_assert!(cells <= claimed);
        let lap = self.lap(held.position);
        if cells < claimed {
            // First a record of the rest, then one that ends there: whichever size is seen, the walk goes on.
            let rest = Word::new(lap, claimed - cells, 0, State::Done);
            self.word(held.position.wrapping_add(cells)).store(rest.0, Ordering::Relaxed);
        }
        let ready = Word::new(lap, cells, cells * CELL as u64 - len as u64, State::Ready);
        self.word(held.position).store(ready.0, Ordering::Release); // M1
    }

    /// Takes the next message.
    pub(crate) fn take(&self, owner: Owner) -> Taken {
        for _ in 0..4 * self.cells {
            let (at, word) = match self.find_head() {
                Reached::Unclaimed(..) => return Taken::Empty,
                Reached::Astray => return Taken::Corrupt,
                Reached::Record(at, word) => (at, word),
            };
            if word.state() == State::Writing {
                return Taken::Busy(word.field() as Owner);
            }
            let (cells, slack) = (word.cells(), word.field() as usize);
            if cells == TO_THE_END || self.index(at) + cells > self.cells || slack > CELL {
                return Taken::Corrupt;
            }
            let reading = word.with(owner.into(), State::Reading);
            let (won, lost) = (Ordering::Acquire, Ordering::Relaxed); // T1
            if self.word(at).compare_exchange(word.0, reading.0, won, lost).is_ok() {
                self.control().head.0.store(self.behind(at, word), Ordering::Relaxed);
                return Taken::Message(Held { position: at, word: reading }, cells as usize * CELL - slack);
            }
        }
        Taken::Empty
    }

    /// Gives up a record: one that was taken and has been read, or one that was claimed and is not to be sent.
    pub(crate) fn give_up(&self, held: Held) {
        self.word(held.position).store(held.word.with(0, State::Done).0, Ordering::Release); // M2
    }

    /// Takes over from a dead owner what the writers or the readers are stuck on, and gives it up. `is_dead` is asked of owners only after the
    /// word that names them was read. True if there is something new to be found.
    pub(crate) fn repair(&self, me: Owner, is_dead: impl Fn(Owner) -> bool) -> bool {
        let mut repaired = false;
        let stuck = [
            Some(self.control().tail.0.free.load(Ordering::Acquire)),
            match self.find_head() {
                Reached::Record(at, _) => Some(at),
                _ => None,
            },
        ];
        for at in stuck.into_iter().flatten() {
            let Some((word, _)) = self.held_at(at).filter(|&(_, owner)| is_dead(owner)) else { continue };
            let mine = word.with(me.into(), State::Reading);
            let (won, lost) = (Ordering::Acquire, Ordering::Relaxed);
            if self.word(at).compare_exchange(word.0, mine.0, won, lost).is_ok() {
                self.give_up(Held { position: at, word: mine });
                repaired = true;
            }
        }
        repaired
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::copy::{copy, copy_in};
    use crate::layout::{Line, TailWords};
    use crate::sync::spin_loop;

    /// A ring on plain memory.
    struct Memory {
        ring: Ring,
    }

    fn zeros(len: usize) -> *mut [AtomicU64] {
        Box::into_raw((0..len).map(|_| AtomicU64::new(0)).collect())
    }

    impl Memory {
        fn new(cells: usize, start: u64) -> Memory {
            let cursor = || AtomicU64::new(start);
            let tail = Line(TailWords { tail: cursor(), free: cursor() });
            let control = NonNull::from(Box::leak(Box::new(ManyControl { tail, head: Line(cursor()) })));
            let first = |words: *mut [AtomicU64]| NonNull::new(words.cast()).unwrap();
            let (words, base) = (first(zeros(cells)), first(zeros(cells * CELL / 8)).cast());
            // SAFETY: all of it lives as long as the ring, and is as large as it says.
            Memory { ring: unsafe { Ring::new(control, words, base, cells * CELL) } }
        }

        fn control(&self) -> &ManyControl {
            self.ring.control()
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            let cells = self.ring.cells as usize;
            let free = |first: NonNull<AtomicU64>, len: usize| {
                // SAFETY: leaked by `new`, as so many words.
                drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(first.as_ptr(), len)) });
            };
            free(self.ring.words, cells);
            free(self.ring.base.cast(), cells * CELL / 8);
            // SAFETY: leaked by `new`.
            drop(unsafe { Box::from_raw(self.ring.control.as_ptr()) });
        }
    }

    fn write(ring: &Ring, held: Held, message: &[u8]) {
        // SAFETY: claimed for as many bytes.
        unsafe { copy_in(message, ring.payload(held)) };
    }

    fn send(ring: &Ring, message: &[u8], reserved: usize, owner: Owner) -> bool {
        let Claimed::Room(held) = ring.claim(reserved, owner) else {
            return false;
        };
        write(ring, held, message);
        ring.publish(held, message.len());
        true
    }

    fn recv(ring: &Ring, owner: Owner) -> Option<Vec<u8>> {
        let Taken::Message(held, len) = ring.take(owner) else {
            return None;
        };
        let mut message = vec![0; len];
        // SAFETY: the message has as many bytes.
        unsafe { copy(ring.payload(held).as_ptr(), message.as_mut_ptr(), len) };
        ring.give_up(held);
        Some(message)
    }

    #[test]
    fn messages_of_every_length_come_out_as_they_went_in() {
        for start in [0, 5, (1 << 32) - 3, (1 << 40) - 3] {
            let memory = Memory::new(16, start);
            let (ring, mut expected) = (&memory.ring, VecDeque::new());
            let mut refused = 0;
            for n in 0..if cfg!(miri) { 120 } else { 600_usize } {
                let len = n * 37 % (ring.max_payload() + 1);
                let reserved = if n % 3 == 0 { ring.max_payload() } else { len };
                let message: Vec<u8> = (0..len).map(|i| (n + i) as u8).collect();
                match send(ring, &message, reserved, 1) {
                    true => expected.push_back(message),
                    false => refused += 1,
                }
                if n % 4 != 3 {
                    assert_eq!(recv(ring, 2), expected.pop_front());
                }
            }
            assert!(refused > 0, "never full");
            while let Some(message) = expected.pop_front() {
                assert_eq!(recv(ring, 2), Some(message));
            }
            assert!(matches!(ring.take(2), Taken::Empty));
        }
    }

    #[test]
    fn every_cell_can_be_used_and_none_twice() {
        let memory = Memory::new(8, 0);
        let ring = &memory.ring;
        for lap in 0..3 {
            for n in 0..8 {
                assert!(send(ring, &[lap, n], 64, 1));
            }
            assert!(matches!(ring.claim(1, 1), Claimed::Full(None)));
            for n in 0..8 {
                assert_eq!(recv(ring, 2), Some(vec![lap, n]));
            }
        }
    }

    #[test]
    fn what_is_being_read_keeps_its_room_and_nothing_else() {
        let memory = Memory::new(8, 0);
        let ring = &memory.ring;
        (0..8).for_each(|n| assert!(send(ring, &[n], 1, 1)));
        let Taken::Message(first, _) = ring.take(7) else { panic!("a message") };
        (1..8).for_each(|n| assert_eq!(recv(ring, 2), Some(vec![n])));
        assert!(matches!(ring.claim(1, 1), Claimed::Full(Some(7))));
        ring.give_up(first);
        assert!(matches!(ring.claim(1, 1), Claimed::Room(_)));
    }

    #[test]
    fn what_is_being_written_holds_up_what_is_behind_it_until_its_owner_is_dead() {
        let memory = Memory::new(8, 0);
        let ring = &memory.ring;
        let Claimed::Room(first) = ring.claim(100, 3) else { panic!("room") };
        assert!(send(ring, b"behind", 6, 1));
        assert!(matches!(ring.take(2), Taken::Busy(3)));
        assert!(!ring.repair(2, |owner| owner != 3) && matches!(ring.take(2), Taken::Busy(3)));
        assert!(ring.repair(2, |owner| owner == 3));
        assert_eq!(recv(ring, 2), Some(b"behind".to_vec()));
        assert!(!ring.repair(2, |_| true), "what is done is not repaired");
        let _ = first;
    }

    #[test]
    fn what_a_dead_reader_had_taken_gives_its_room_back() {
        let memory = Memory::new(8, 0);
        let ring = &memory.ring;
        (0..8).for_each(|n| assert!(send(ring, &[n], 1, 1)));
        let Taken::Message(..) = ring.take(7) else { panic!("a message") };
        assert!(matches!(ring.claim(1, 1), Claimed::Full(Some(7))));
        assert!(ring.repair(1, |owner| owner == 7));
        assert!(send(ring, &[8], 1, 1));
        (1..9).for_each(|n| assert_eq!(recv(ring, 2), Some(vec![n])));
    }

    #[test]
    fn a_message_that_is_given_up_never_arrives() {
        let memory = Memory::new(8, 0);
        let Claimed::Room(held) = memory.ring.claim(128, 3) else { panic!("room") };
        assert!(send(&memory.ring, b"next", 4, 1));
        memory.ring.give_up(held);
        assert_eq!(recv(&memory.ring, 2), Some(b"next".to_vec()));
    }

    #[test]
    fn hints_may_be_any_boundary_that_ever_was() {
        let memory = Memory::new(16, 0);
        let (ring, control) = (&memory.ring, memory.control());
        let mut boundaries = vec![0];
        for n in 0..200_u8 {
            let len = usize::from(n) * 29 % ring.max_payload();
            let message = vec![n; len];
            // Stored late, by somebody who was held up for long.
            let old = |boundaries: &[u64], k: usize| boundaries[boundaries.len() * k / 7 % boundaries.len()];
            control.tail.0.tail.store(old(&boundaries, n.into()), Ordering::Relaxed);
            control.head.0.store(old(&boundaries, usize::from(n) / 3), Ordering::Relaxed);
            assert!(send(ring, &message, len, 1));
            boundaries.push(control.tail.0.tail.load(Ordering::Relaxed));
            control.head.0.store(old(&boundaries, usize::from(n) / 2), Ordering::Relaxed);
            assert_eq!(recv(ring, 2), Some(message));
            assert!(matches!(ring.take(2), Taken::Empty));
        }
    }

    #[test]
    fn words_that_nobody_would_write_end_in_an_answer() {
        let memory = Memory::new(8, 0);
        let ring = &memory.ring;
        for n in 0..if cfg!(miri) { 100 } else { 20_000 } {
            let noise = |k: u64| (n * 8 + k).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17);
            for k in 0..8 {
                // Laps near those of the cursors, or the words count for nothing.
                let word = noise(k) & ((1 << LAP_SHIFT) - 1) | (noise(k) >> 60 & 3) << LAP_SHIFT;
                ring.word(k).store(word, Ordering::Relaxed);
            }
            let control = memory.control();
            let cursors = [&control.tail.0.tail, &control.tail.0.free, &control.head.0];
            for (word, k) in cursors.into_iter().zip(10..) {
                word.store(if n % 5 == 0 { noise(k) } else { noise(k) % 24 }, Ordering::Relaxed);
            }
            if let Claimed::Room(held) = ring.claim(100, 1) {
                write(ring, held, &[1; 100]);
                ring.give_up(held);
            }
            if let Taken::Message(held, len) = ring.take(2) {
                assert!(ring.index(held.position) as usize * CELL + len <= 8 * CELL);
            }
            ring.repair(3, |_| true);
        }
    }

    /// Each message arrives once, whole, and those of one sender in order at whoever gets them.
    #[test]
    fn two_threads_each_send_and_receive() {
        const EACH: u64 = if cfg!(miri) { 60 } else { 100_000 };
        let memory = Memory::new(16, 0);
        let (ring, over) = (&memory.ring, AtomicBool::new(false));
        let arrived = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            let receiver = |me: Owner| {
                let mut mine: Vec<[u64; 2]> = Vec::new();
                loop {
                    let last = over.load(Ordering::Acquire);
                    match recv(ring, me) {
                        Some(message) => {
                            let word = |i: usize| u64::from_le_bytes(message[8 * i..8 * i + 8].try_into().unwrap());
                            let (from, n) = (word(0), word(1));
                            assert!(message.len() as u64 == 16 + n % 5 * 32);
                            assert!(message[16..].iter().all(|&byte| byte == n as u8));
                            let before = mine.iter().rfind(|other| other[0] == from);
                            assert!(before.is_none_or(|other| other[1] < n));
                            mine.push([from, n]);
                        }
                        None if last => break,
                        None => std::thread::yield_now(),
                    }
                }
                arrived.lock().unwrap().extend(mine);
            };
            let sender = |from: u64| {
                for n in 0..EACH {
                    let mut message = [from.to_le_bytes(), n.to_le_bytes()].concat();
                    message.resize(16 + (n % 5 * 32) as usize, n as u8);
                    while !send(ring, &message, message.len() + (n % 2) as usize * 64, from as Owner) {
                        spin_loop();
                        std::thread::yield_now();
                    }
                }
            };
            let senders = [0, 1].map(|from| s.spawn(move || sender(from)));
            for me in [2, 3] {
                s.spawn(move || receiver(me));
            }
            for sender in senders {
                sender.join().unwrap();
            }
            over.store(true, Ordering::Release);
        });
        let mut arrived = arrived.into_inner().unwrap();
        arrived.sort_unstable();
        assert!(arrived.iter().copied().eq([0, 1].into_iter().flat_map(|from| (0..EACH).map(move |n| [from, n]))));
    }
}
