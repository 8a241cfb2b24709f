//! The ring of many writers and many readers, in any processes, without a lock.
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
//! - *cells*: how many; [`TO_THE_END`] for padding up to the end of the ring, [`QUARTER`] for a long message.
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
//! | `WRITING`, `READING` of a dead owner => `DONE` | whoever is in want of it, or has got the number | compare-exchange |
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
//! # Long messages
//!
//! A message that is longer than a record can be takes exactly a quarter of the ring, and what does not fit into that lies in one of four *windows*
//! outside of it, each with a word for the message's length. The window is that of the quarter in which the record starts: two such records are at
//! least a quarter apart and at most three, so that they never share one. Nothing has to be allocated, and nothing is leaked when somebody is killed.
//!
//! # Precedence
//!
//! Where the ring is full, room comes in small pieces, and who needs little takes them away from who needs much. So one writer at a time may take
//! *precedence*: a word that says until when all others leave room alone. It is a hint: it ends by itself, and nothing but waiting hangs on it. After it,
//! nobody has it for a while, so that those who need little get on as well.
//!
//! # Orderings
//!
//! - M1 (release, `READY`) pairs with T1 (acquire, walks): the payload is visible to who takes it, by a compare-exchange that finds
//!   the very word that the walk found; and who sees a record that was cut short finds what its owner wrote behind it first, and does not
//!   claim there.
//! - M2 (release, `DONE`) pairs with T2 (acquire, the walk over `DONE`), M3 (release, `free`) with T3 (acquire, `free`): a reader's copying is over
//!   before a writer claims the cells anew.
//! - M4 (release, claims) pairs with T1: a walk that finds a record of a newer lap finds `free` beyond where it stands, and gets on.
//!
//! # Hostile peers
//!
//! Every position is reduced to the ring on access, every record is checked against the end of the ring before its payload is touched, and every walk
//! is bounded.

#[cfg(test)]
mod tests;

use std::ptr::NonNull;

use crate::copy::prefetch_write;
use crate::layout::{CELL, ManyControl};
use crate::sync::{AtomicU64, Ordering};
use crate::sys;

const STATE: u64 = 0b11;
const OWNER_SHIFT: u32 = 2;
const CELLS_SHIFT: u32 = 12;
const LAP_SHIFT: u32 = 22;
const FIELD: u64 = (1 << 10) - 1;
/// How often a claim is tried again when others were faster, and when the cursors contradict each other: bounds against hostile peers only.
const CLAIMS: usize = 4096;
const ASTRAY: usize = 4;
/// How many cells ahead of the tail lines are fetched for writing.
const AHEAD: u64 = 16;
const LAPS: u64 = 1 << (64 - LAP_SHIFT);
/// How long precedence lasts, in nanoseconds.
const TERM: u64 = 100_000_000;

/// The number of cells of padding.
const TO_THE_END: u64 = 0;
/// The number of cells of a long message, which has a quarter of the ring.
const QUARTER: u64 = FIELD;
/// The most cells of any other record.
const MAX_CELLS: u64 = FIELD - 1;

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
    #[inline(always)]
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

/// What a word says to somebody who only looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing has been claimed there in this lap.
    Unclaimed,
    /// Others have gone round since.
    Past,
    Record {
        /// How many cells it takes.
        cells: u64,
        is_padding: bool,
        /// Nobody has taken it yet: it is there, or is being written.
        is_ahead: bool,
        /// Who writes or reads it right now.
        held_by: Option<Owner>,
    },
}

/// What a copy of the word at `position` says, in a ring of so many cells (a power of two).
pub(crate) fn see(word: u64, position: u64, ring: u64) -> Seen {
    let (word, index) = (Word(word), position & (ring - 1));
    match word.compare((position / ring + 1) % LAPS) {
        Lap::Older => Seen::Unclaimed,
        Lap::Newer => Seen::Past,
        Lap::Same => {
            let state = word.state();
            let cells = match word.cells() {
                TO_THE_END => ring - index,
                QUARTER => ring / 4,
                cells => cells,
            };
            let is_held = matches!(state, State::Writing | State::Reading);
            Seen::Record {
                cells,
                is_padding: word.cells() == TO_THE_END,
                is_ahead: matches!(state, State::Writing | State::Ready),
                held_by: is_held.then_some(word.field() as Owner),
            }
        }
    }
}

/// How many cells a message takes.
fn cells_of(len: usize) -> u64 {
    len.div_ceil(CELL).max(1) as u64
}

/// One side, or both, of a ring for many. Any number of threads may use one.
pub(crate) struct Ring {
    control: NonNull<ManyControl>,
    words: NonNull<AtomicU64>,
    base: NonNull<u8>,
    cells: u64,
    /// `1 << shift` is the number of cells.
    shift: u32,
    /// The longest message that is not a long one.
    max_payload: usize,
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

impl Held {
    pub(crate) fn is_of(self, owner: Owner) -> bool {
        self.word.field() == u64::from(owner)
    }
}

/// Whether there is room for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    Lacking,
    /// Not enough, and what comes first is held by somebody.
    Held,
    /// Somebody else has precedence.
    Passed,
}

/// A writer's precedence, or none: when it ends, in nanoseconds, of which the lowest bits say whose it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Precedence(u64);

impl Precedence {
    const NONE: Precedence = Precedence(0);

    fn new(owner: Owner, now: u64) -> Precedence {
        Precedence((now + TERM) & !FIELD | u64::from(owner))
    }

    pub(crate) fn is_some(self) -> bool {
        self != Precedence::NONE
    }

    fn lasts(self, now: u64) -> bool {
        self.0.checked_sub(now).is_some_and(|left| left <= TERM + FIELD)
    }

    /// Whether it is over soon, or over.
    pub(crate) fn wanes(self, now: u64) -> bool {
        self.0 < now + TERM / 2
    }

    /// Whether it is over.
    pub(crate) fn is_over(self, now: u64) -> bool {
        self.0 < now
    }
}

/// What there is to be taken.
pub(crate) enum Front {
    Message(Message),
    Empty,
    /// The next message is being written.
    Busy,
    /// No word that a writer would have written.
    Corrupt,
}

/// A message that nobody had taken when it was looked at.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    position: u64,
    word: Word,
    /// In bytes; `None` for a long one, which says it itself.
    pub(crate) len: Option<usize>,
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
        let cells = (capacity / CELL) as u64;
        let shift = cells.trailing_zeros();
        Ring { control, words, base, cells, shift, max_payload: (cells / 4).min(MAX_CELLS) as usize * CELL }
    }

    fn control(&self) -> &ManyControl {
        // SAFETY: valid by the contract of `new`; all atomics.
        unsafe { self.control.as_ref() }
    }

    #[inline(always)]
    fn index(&self, position: u64) -> u64 {
        position & (self.cells - 1)
    }

    #[inline(always)]
    fn lap(&self, position: u64) -> u64 {
        // A division by the number of cells, which would take longer than all the rest.
        ((position >> self.shift) + 1) % LAPS
    }

    #[inline(always)]
    fn word(&self, position: u64) -> &AtomicU64 {
        // SAFETY: the index is below the number of words.
        unsafe { self.words.add(self.index(position) as usize).as_ref() }
    }

    /// Behind the record at `position`.
    #[inline(always)]
    fn behind(&self, position: u64, word: Word) -> u64 {
        match word.cells() {
            TO_THE_END => position.wrapping_add(self.cells - self.index(position)),
            QUARTER => position.wrapping_add(self.quarter()),
            cells => position.wrapping_add(cells),
        }
    }

    fn quarter(&self) -> u64 {
        self.cells / 4
    }

    /// The longest message that is not a long one.
    pub(crate) fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Bytes of a long message's record.
    pub(crate) fn long_payload(&self) -> usize {
        self.quarter() as usize * CELL
    }

    /// Bytes of the ring.
    pub(crate) fn capacity(&self) -> usize {
        self.cells as usize * CELL
    }

    /// Bytes between the hints: about what is in use.
    pub(crate) fn fill_hint(&self) -> usize {
        let control = self.control();
        self.bytes_between(control.head.0.load(Ordering::Relaxed), control.tail.0.tail.load(Ordering::Relaxed))
    }

    /// Bytes of the ring that are in use; a snapshot.
    pub(crate) fn fill(&self) -> usize {
        let Reached::Unclaimed(tail, _) = self.find_tail() else {
            return self.capacity();
        };
        let head = match self.find_head() {
            Reached::Unclaimed(at, _) | Reached::Record(at, _) => at,
            Reached::Astray => return self.capacity(),
        };
        self.bytes_between(head, tail)
    }

    /// None, if the first is behind the second, as where one of the two is out of date.
    fn bytes_between(&self, from: u64, to: u64) -> usize {
        match to.wrapping_sub(from) {
            cells if cells <= self.cells => cells as usize * CELL,
            _ => 0,
        }
    }

    /// Whether [`messages`](Self::messages) would find none.
    pub(crate) fn is_empty(&self) -> bool {
        match self.look() {
            Front::Message(_) => false,
            Front::Empty => true,
            Front::Busy | Front::Corrupt => self.messages() == 0,
        }
    }

    /// How many messages there are that nobody has taken, whether or not what is before them holds them up; a snapshot.
    pub(crate) fn messages(&self) -> usize {
        let Reached::Record(mut at, mut word) = self.find_head() else {
            return 0;
        };
        let (start, mut count) = (at, 0);
        while word.compare(self.lap(at)) == Lap::Same && at.wrapping_sub(start) < self.cells {
            count += usize::from(word.state() == State::Ready);
            at = self.behind(at, word);
            word = Word(self.word(at).load(Ordering::Acquire)); // T1
        }
        count
    }

    /// Cells that are in use at `position`, or `None` if a hint was out of date.
    #[inline(always)]
    fn used(&self, position: u64) -> Option<u64> {
        let used = position.wrapping_sub(self.control().tail.0.free.load(Ordering::Acquire)); // T3
        (used <= self.cells).then_some(used)
    }

    /// The true tail.
    fn find_tail(&self) -> Reached {
        let mut at = self.control().tail.0.tail.load(Ordering::Relaxed);
        for _ in 0..4 * self.cells {
            let word = Word(self.word(at).load(Ordering::Acquire)); // T1
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
            let word = Word(self.word(at).load(Ordering::Acquire)); // T1
            at = match (word.compare(self.lap(at)), word.state()) {
                (Lap::Older, _) => return Reached::Unclaimed(at, word),
                (Lap::Newer, _) => self.control().tail.0.free.load(Ordering::Acquire),
                (Lap::Same, State::Writing | State::Ready) => return Reached::Record(at, word),
                (Lap::Same, State::Reading | State::Done) => self.behind(at, word),
            };
        }
        Reached::Astray
    }

    /// About how many bytes have been taken since writers last moved `free`.
    pub(crate) fn taken(&self) -> usize {
        let control = self.control();
        self.bytes_between(control.tail.0.free.load(Ordering::Relaxed), control.head.0.load(Ordering::Relaxed))
    }

    /// How far room has been given back: grows.
    pub(crate) fn free(&self) -> u64 {
        self.control().tail.0.free.load(Ordering::Relaxed)
    }

    /// Asks all others to leave room to `owner`, for a while or, with `mine`, for another while. None while somebody else has precedence.
    pub(crate) fn take_precedence(&self, mine: Precedence, owner: Owner) -> Precedence {
        let tail = &self.control().tail.0;
        let (word, pause) = (&tail.precedence, tail.pause.load(Ordering::Relaxed));
        let seen = word.load(Ordering::Relaxed);
        let now = sys::now();
        let anew = seen != mine.0 || mine == Precedence::NONE;
        let barred = Precedence(seen).lasts(now) || Precedence(pause).lasts(now);
        if anew && barred {
            return Precedence::NONE;
        }
        let next = Precedence::new(owner, now);
        match word.compare_exchange(seen, next.0, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => next,
            Err(_) => Precedence::NONE,
        }
    }

    /// After `mine`, which was had since `since`, nobody has precedence for as long: or writers that need much could pass it on among themselves.
    pub(crate) fn end_precedence(&self, mine: Precedence, since: u64) {
        let now = sys::now();
        let pause = now.saturating_sub(since).clamp(TERM / 20, TERM / 2);
        self.control().tail.0.pause.store(now + pause, Ordering::Relaxed);
        self.drop_precedence(mine);
    }

    fn drop_precedence(&self, mine: Precedence) {
        let _ = self.control().tail.0.precedence.compare_exchange(mine.0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether somebody else has precedence.
    fn gives_way(&self, mine: Precedence) -> bool {
        let seen = Precedence(self.control().tail.0.precedence.load(Ordering::Relaxed));
        if seen == Precedence::NONE || seen == mine {
            return false;
        }
        let lasts = seen.lasts(sys::now());
        if !lasts {
            self.drop_precedence(seen);
        }
        lasts
    }

    /// Whether a claim for `len` bytes would get on.
    pub(crate) fn room(&self, len: usize, mine: Precedence) -> Room {
        if self.gives_way(mine) {
            return Room::Passed;
        }
        let Reached::Unclaimed(at, _) = self.find_tail() else { return Room::Lacking };
        let (cells, _) = self.size(len);
        let need = cells.min(self.cells - self.index(at));
        let fits = || self.used(at).is_some_and(|used| used + need <= self.cells);
        if fits() {
            return Room::Enough;
        }
        self.advance_free();
        match (fits(), self.held_at(self.control().tail.0.free.load(Ordering::Acquire))) {
            (true, _) => Room::Enough,
            (false, Some(_)) => Room::Held,
            (false, None) => Room::Lacking,
        }
    }

    /// Whether a message needs so much that others, who need little, may keep it from getting room.
    pub(crate) fn is_large(&self, len: usize) -> bool {
        self.size(len).0 > self.cells / 64
    }

    /// How many cells a message takes, and as what its word notes them.
    fn size(&self, len: usize) -> (u64, u64) {
        match len > self.max_payload() {
            true => (self.quarter(), QUARTER),
            false => (cells_of(len), cells_of(len)),
        }
    }

    /// Claims room for a message of `len` bytes, or the record of a long one if it is longer than [`max_payload`](Self::max_payload). `None`
    /// where there is no room.
    #[inline(always)]
    pub(crate) fn claim(&self, len: usize, owner: Owner) -> Option<Held> {
        let at = self.control().tail.0.tail.load(Ordering::Relaxed);
        let old = Word(self.word(at).load(Ordering::Acquire)); // T1
        let (cells, lap) = (cells_of(len), self.lap(at));
        let is_tail = old.compare(lap) == Lap::Older;
        let fits = |used: u64| used + cells <= self.cells;
        if len <= self.max_payload
            && is_tail
            && self.index(at) + cells <= self.cells
            && self.used(at).is_some_and(fits)
            && self.control().tail.0.precedence.load(Ordering::Relaxed) == 0
        {
            let word = Word::new(lap, cells, owner.into(), State::Writing);
            if self.claim_at(at, old, word) {
                return Some(Held { position: at, word });
            }
        }
        self.search_room(len, owner, Precedence::NONE)
    }

    /// Claims room where the hint is out of date, the ring is full or comes to its end, the message is long, or some writer has precedence.
    #[inline(never)]
    pub(crate) fn search_room(&self, len: usize, owner: Owner, mine: Precedence) -> Option<Held> {
        if self.gives_way(mine) {
            return None;
        }
        let (cells, code) = self.size(len);
        let mut astray = 0;
        for _ in 0..CLAIMS {
            let Reached::Unclaimed(at, old) = self.find_tail() else { break };
            let rest = self.cells - self.index(at);
            let (need, lap) = (cells.min(rest), self.lap(at));
            let fits = |used: u64| used + need <= self.cells;
            if !self.used(at).is_some_and(fits) {
                self.advance_free();
                match self.used(at) {
                    Some(used) if fits(used) => {}
                    Some(_) => return None,
                    None if astray == ASTRAY => return None,
                    None => {
                        astray += 1;
                        continue;
                    }
                }
            }
            let pads = cells > rest;
            let word = match pads {
                true => Word::new(lap, TO_THE_END, 0, State::Done),
                false => Word::new(lap, code, owner.into(), State::Writing),
            };
            if self.claim_at(at, old, word) && !pads {
                return Some(Held { position: at, word });
            }
        }
        None
    }

    /// Writes a word at the tail, if nobody else has been there.
    #[inline(always)]
    fn claim_at(&self, at: u64, old: Word, word: Word) -> bool {
        // What it claims was read and given up before `free` passed it (T3). Who finds it there finds `free` as it is now (M4).
        let (won, lost) = (Ordering::Release, Ordering::Relaxed);
        if self.word(at).compare_exchange(old.0, word.0, won, lost).is_err() {
            return false;
        }
        let next = self.behind(at, word);
        self.control().tail.0.tail.store(next, Ordering::Relaxed);
        // The next claim waits, as every locked operation does, until what was written is out, so that the lines should be here by then.
        prefetch_write(self.payload_at(next.wrapping_add(AHEAD)));
        prefetch_write(NonNull::from(self.word(next.wrapping_add(AHEAD))).cast());
        true
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

    /// The word at a boundary, and whom it names, if somebody is writing or reading there.
    fn held_at(&self, at: u64) -> Option<(Word, Owner)> {
        let word = Word(self.word(at).load(Ordering::Acquire));
        let held = matches!(word.state(), State::Writing | State::Reading) && word.compare(self.lap(at)) == Lap::Same;
        held.then(|| (word, word.field() as Owner))
    }

    /// Where the payload of a held record lies, all of it in the ring.
    pub(crate) fn payload(&self, held: Held) -> NonNull<u8> {
        self.payload_at(held.position)
    }

    fn payload_at(&self, position: u64) -> NonNull<u8> {
        // SAFETY: within the ring: a claim was made so that it fits, and what was taken was checked.
        unsafe { self.base.add(self.index(position) as usize * CELL) }
    }

    /// The window of a long message, if this is one.
    pub(crate) fn window(&self, held: Held) -> Option<usize> {
        (held.word.cells() == QUARTER).then(|| self.window_of(held.position))
    }

    /// How much of a held long message's window has memory. Only who holds the record reads or writes it.
    pub(crate) fn extent(&self, held: Held) -> &AtomicU64 {
        &self.control().tail.0.extent[self.window_of(held.position)]
    }

    /// Publishes a claimed record, of `len` bytes: of a long message, all of them, and otherwise at most as many as were claimed.
    #[inline(always)]
    pub(crate) fn publish(&self, held: Held, len: usize) {
        let (claimed, cells, lap) = (held.word.cells(), cells_of(len), self.lap(held.position));
        if claimed == QUARTER {
            self.long(held.position).store(len as u64, Ordering::Relaxed);
            self.word(held.position).store(held.word.with(0, State::Ready).0, Ordering::Release); // M1
            return;
        }
        debug_assert!(cells <= claimed);
        if cells < claimed {
            // First a record of the rest, then one that ends there: whichever size is seen, the walk goes on.
            let rest = Word::new(lap, claimed - cells, 0, State::Done);
            self.word(held.position.wrapping_add(cells)).store(rest.0, Ordering::Relaxed);
        }
        let ready = Word::new(lap, cells, cells * CELL as u64 - len as u64, State::Ready);
        self.word(held.position).store(ready.0, Ordering::Release); // M1
    }

    /// The message that comes next, and its length, if the hint leads to it and it is not a long one.
    #[inline(always)]
    pub(crate) fn at_hand(&self) -> Option<(Message, usize)> {
        let position = self.control().head.0.load(Ordering::Relaxed);
        let word = Word(self.word(position).load(Ordering::Acquire)); // T1
        if word.compare(self.lap(position)) != Lap::Same || word.state() != State::Ready {
            return None;
        }
        let len = self.short_len(position, word)?;
        Some((Message { position, word, len: Some(len) }, len))
    }

    /// The length of a message that is not a long one, if its word is one that a writer would have written.
    #[inline(always)]
    fn short_len(&self, position: u64, word: Word) -> Option<usize> {
        let (cells, slack, rest) = (word.cells(), word.field() as usize, self.cells - self.index(position));
        let right = cells != TO_THE_END && cells <= rest.min(MAX_CELLS) && slack <= CELL;
        right.then(|| cells as usize * CELL - slack)
    }

    /// What comes next.
    pub(crate) fn look(&self) -> Front {
        let (position, word) = match self.find_head() {
            Reached::Unclaimed(..) => return Front::Empty,
            Reached::Astray => return Front::Corrupt,
            Reached::Record(_, word) if word.state() == State::Writing => return Front::Busy,
            Reached::Record(at, word) => (at, word),
        };
        let len = self.short_len(position, word);
        let is_long = word.cells() == QUARTER && self.quarter() <= self.cells - self.index(position);
        match len.is_some() || is_long {
            true => Front::Message(Message { position, word, len }),
            false => Front::Corrupt,
        }
    }

    /// Whether nobody has taken a message since it was looked at.
    pub(crate) fn is_there(&self, message: Message) -> bool {
        self.word(message.position).load(Ordering::Relaxed) == message.word.0
    }

    /// Takes a message, unless somebody else has taken it since it was looked at.
    #[inline(always)]
    pub(crate) fn take(&self, message: Message, owner: Owner) -> Option<Held> {
        let Message { position, word, .. } = message;
        let reading = word.with(owner.into(), State::Reading);
        // What it says was acquired when it was looked at (T1).
        let (won, lost) = (Ordering::Relaxed, Ordering::Relaxed);
        self.word(position).compare_exchange(word.0, reading.0, won, lost).ok()?;
        let next = self.behind(position, word);
        self.control().head.0.store(next, Ordering::Relaxed);
        Some(Held { position, word: reading })
    }

    /// How long a message is. Of a long one that somebody else has taken since it was looked at, it may be another's length: taking it tells.
    pub(crate) fn len(&self, message: Message) -> u64 {
        match message.len {
            Some(len) => len as u64,
            None => self.long(message.position).load(Ordering::Relaxed),
        }
    }

    /// The length of the long message at `position`.
    fn long(&self, position: u64) -> &AtomicU64 {
        &self.control().tail.0.long[self.window_of(position)]
    }

    fn window_of(&self, position: u64) -> usize {
        (self.index(position) / self.quarter()) as usize
    }

    /// Gives up a record: one that was taken and has been read, or one that was claimed and is not to be sent.
    #[inline(always)]
    pub(crate) fn give_up(&self, held: Held) {
        self.word(held.position).store(held.word.with(0, State::Done).0, Ordering::Release); // M2
    }

    /// Gives up for a dead owner what the writers or the readers are stuck on. `is_dead` is asked of owners only after the word that names
    /// them was read. True if there is something new to be found.
    pub(crate) fn repair(&self, is_dead: impl Fn(Owner) -> bool) -> bool {
        let mut repaired = false;
        let head = match self.find_head() {
            Reached::Record(at, _) => Some(at),
            _ => None,
        };
        for at in [Some(self.control().tail.0.free.load(Ordering::Acquire)), head].into_iter().flatten() {
            if let Some((word, _)) = self.held_at(at).filter(|&(_, owner)| is_dead(owner)) {
                if self.give_up_for_the_dead(at, word) {
                    // Where it was looked for, or one walk after the other would start before all that has been repaired.
                    if Some(at) == head {
                        self.control().head.0.store(self.behind(at, word), Ordering::Relaxed);
                    }
                    repaired = true;
                }
            }
        }
        repaired
    }

    /// True if nobody else has done so.
    fn give_up_for_the_dead(&self, at: u64, word: Word) -> bool {
        let done = word.with(0, State::Done);
        self.word(at).compare_exchange(word.0, done.0, Ordering::AcqRel, Ordering::Relaxed).is_ok() // M2
    }

    /// Gives up all that `me` holds: for who has just become `me` in the place of somebody dead, and for who leaves. True if that was
    /// anything.
    pub(crate) fn clear(&self, me: Owner) -> bool {
        let mut cleared = false;
        let mut at = self.control().tail.0.free.load(Ordering::Acquire);
        for _ in 0..4 * self.cells {
            let word = Word(self.word(at).load(Ordering::Acquire));
            match word.compare(self.lap(at)) {
                Lap::Older => break,
                Lap::Same => {}
                // Others went round meanwhile. What `me` holds is at `free` or behind it.
                Lap::Newer => {
                    at = self.control().tail.0.free.load(Ordering::Acquire);
                    continue;
                }
            }
            if matches!(word.state(), State::Writing | State::Reading) && word.field() == u64::from(me) {
                cleared |= self.give_up_for_the_dead(at, word);
            }
            at = self.behind(at, word);
        }
        cleared
    }

    /// Who has claimed or taken a record gives it up or publishes it later: whether it is still theirs, for one who was away in between (in another
    /// process, as a forked child has copies of what its parent held).
    pub(crate) fn still_holds(&self, held: Held) -> bool {
        self.word(held.position).load(Ordering::Relaxed) == held.word.0
    }
}
