//! The ring of one writer and one reader, each any one process at a time.
//!
//! # Who writes what
//!
//! | word | written by | read by |
//! | --- | --- | --- |
//! | headers and payloads | writer | reader |
//! | `tail`, `begun`, `limit` | writer | writer |
//! | `head` | reader | both |
//!
//! The header of a record is also its signal: the reader polls the header at its own position, so data and
//! signal arrive in one cache line and neither side reads the other's cursor while all goes well.
//!
//! # Invariants
//!
//! - I1: the header at `tail` is zero whenever no publication is under way. A fresh ring is all zero, and
//!   every publication writes a zero header behind its record before the record's own header.
//! - I2: `head <= tail <= head + capacity - SPARE`, as wrapping 64-bit numbers; after an `Abort`, up to 8 more.
//! - I3: the bytes from `tail` to `head + capacity` belong to the writer, those from `head` to `tail` to
//!   the reader.
//!
//! # Orderings
//!
//! - P1 (release, header) pairs with C1 (acquire, header): payload and the next record's zero header are
//!   visible before the record is.
//! - C2 (release, `head`) pairs with P2 (acquire, `head`): the reader's copying is over before the writer
//!   reuses the bytes.
//!   Of several records that are published together, only the first has a header that comes last.
//! - P3 (release, `begun`, then `tail`): a writer can be killed between any two stores, and a copy of
//!   the end in another process goes on from what it finds. `begun` is stored before the header and `tail`
//!   after it, so `begun != tail` means "killed in between", and the header says on which side.
//! - C3 (acquire, `tail`) pairs with the last of these: all records before it are visible, so that a run of them can be copied out before
//!   their headers are looked at.
//!
//! A reader killed before C2 leaves the record where it is; after it, the record is taken.
//!
//! # Hostile peers
//!
//! All words are in shared memory, so any may hold anything. Positions are masked by [`Data`]; lengths are
//! checked against the end of the ring before use; arithmetic wraps. Wrong words make wrong messages or
//! [`Look::Corrupt`], never an access outside the ring.

use std::ptr::NonNull;

use super::{CACHE_LINE, Data, HEADER, Kind, SPARE, header, header_of, record_len};
use crate::copy::{SHORT, copy, copy_short};
use crate::layout::{Control, ReaderWords, WriterWords};
use crate::sync::{AtomicU64, Ordering};

/// The writing side of a ring.
pub(crate) struct Writer {
    control: NonNull<Control>,
    data: Data,
}

/// Room for one record at the tail, not published yet.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    tail: u64,
    offset: usize,
}

/// Records that are written one behind the other, and published together.
pub(crate) struct Run {
    tail: u64,
    /// Offsets: where the first record lies, where the next goes, and where none goes any more.
    start: usize,
    at: usize,
    stop: usize,
    /// The header of the first record.
    first: u64,
}

impl Run {
    /// One that takes no record.
    pub(crate) const NONE: Run = Run { tail: 0, start: 0, at: 0, stop: 0, first: 0 };
}

/// The most bytes of a run: so that the reader gets on while there is more to be sent. It is never longer than a record can be, for a reader that
/// is further ahead of `tail` than that takes the cursors for damaged ([`Reader::distance`]).
const MAX_RUN: usize = 4096;

/// Looks of which one fetches the lines of what is expected (more often, it would keep a processor's other thread from its work), and up to which length it
/// does: at 1 KiB it is in the writer's way.
const EXPECT_EVERY: u32 = 8;
const EXPECT_UP_TO: usize = 512;

/// How many records without a message a look passes over: more than there ever are one behind the other, unless a peer wants it so.
const PASSED_OVER: usize = 4;

/// The reading side of a ring.
pub(crate) struct Reader {
    control: NonNull<Control>,
    data: Data,
    /// The header of the last `Data` record, and the length it holds; see [`Reader::look`].
    last_word: u64,
    last_len: usize,
}

/// What stands at the reader's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Empty,
    Record(Record),
    /// No header that a writer would have written.
    Corrupt,
}

/// A published record that has not been released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    /// Payload bytes; the payload lies within the ring.
    pub(crate) len: usize,
    offset: usize,
    head: u64,
}

// SAFETY: the pointers lead to shared memory whose words are atomics and whose bytes the ring protocol
// hands from side to side; nothing is tied to a thread.
unsafe impl Send for Writer {}
// SAFETY: as for `Writer`.
unsafe impl Send for Reader {}
// SAFETY: what takes a shared reference only looks at those atomics.
unsafe impl Sync for Reader {}

impl Writer {
    /// # Safety
    ///
    /// `control` must be valid for as long as the value is used.
    pub(crate) unsafe fn new(control: NonNull<Control>, data: Data) -> Writer {
        Writer { control, data }
    }

    #[inline(always)]
    fn words(&self) -> &WriterWords {
        // SAFETY: valid by the contract of `new`; all atomics.
        unsafe { &self.control.as_ref().writer.0 }
    }

    #[inline(always)]
    fn head(&self) -> &AtomicU64 {
        // SAFETY: valid by the contract of `new`; all atomics.
        unsafe { &self.control.as_ref().reader.0.head }
    }

    pub(crate) fn data(&self) -> &Data {
        &self.data
    }

    /// Finds room for a record of `len` (at most [`Data::max_payload`]) payload bytes.
    #[inline(always)]
    pub(crate) fn claim(&mut self, len: usize) -> Option<Claim> {
        match self.claim_at_hand(len) {
            None => self.claim_slow(record_len(len)),
            claim => claim,
        }
    }

    /// As [`claim`](Self::claim), where nothing has to be done for it.
    #[inline(always)]
    pub(crate) fn claim_at_hand(&self, len: usize) -> Option<Claim> {
        debug_assert!(len <= self.data.max_payload());
        let words = self.words();
        let tail = words.tail.load(Ordering::Relaxed);
        let offset = self.data.offset(tail);
        let record = record_len(len);
        let room = words.limit.load(Ordering::Relaxed).wrapping_sub(tail);
        let fits = offset + record <= self.data.capacity
            // One comparison for "too little" and, by the wrap, for a `limit` that makes no sense.
            && room.wrapping_sub((record + SPARE) as u64) <= self.data.capacity as u64;
        (fits && words.begun.load(Ordering::Relaxed) == tail).then_some(Claim { tail, offset })
    }

    #[cold]
    #[inline(never)]
    fn claim_slow(&mut self, record: usize) -> Option<Claim> {
        self.recover();
        let tail = self.words().tail.load(Ordering::Relaxed);
        let offset = self.data.offset(tail);
        let rest = self.data.capacity - offset;
        if record <= rest {
            return self.has_room(tail, record + SPARE).then_some(Claim { tail, offset });
        }
        if !self.has_room(tail, rest + SPARE) {
            return None;
        }
        self.publish(Claim { tail, offset }, Kind::Pad, rest - HEADER);
        let tail = self.words().tail.load(Ordering::Relaxed);
        let offset = self.data.offset(tail);
        // A hostile writer of `tail` could move us: then there is no room, rather than a record across
        // the end.
        let fits = offset + record <= self.data.capacity && self.has_room(tail, record + SPARE);
        fits.then_some(Claim { tail, offset })
    }

    /// Finishes or forgets a publication that a killed copy of this end left half done (P3).
    fn recover(&mut self) {
        let end = self.end();
        let words = self.words();
        if words.tail.load(Ordering::Relaxed) != end {
            words.tail.store(end, Ordering::Release);
        } else if words.begun.load(Ordering::Relaxed) != end {
            words.begun.store(end, Ordering::Relaxed);
        }
    }

    /// Where the next record goes: at `tail`, unless a copy of this end was killed before it had moved that on (P3).
    fn end(&self) -> u64 {
        let words = self.words();
        let tail = words.tail.load(Ordering::Acquire);
        let begun = words.begun.load(Ordering::Relaxed);
        if begun == tail {
            return tail;
        }
        if self.data.header_at(self.data.offset(tail)).load(Ordering::Acquire) == 0 {
            return tail;
        }
        begun
    }

    /// Whether `need` bytes are free at `tail`, asking the reader's cursor only if the known room is used up.
    fn has_room(&self, tail: u64, need: usize) -> bool {
        let (capacity, need) = (self.data.capacity as u64, need as u64);
        let words = self.words();
        if words.limit.load(Ordering::Relaxed).wrapping_sub(tail).wrapping_sub(need) <= capacity {
            return true;
        }
        let limit = self.head().load(Ordering::Acquire).wrapping_add(capacity); // P2
        words.limit.store(limit, Ordering::Relaxed);
        let room = limit.wrapping_sub(tail);
        room <= capacity && room >= need
    }

    /// Bytes free at the tail, read afresh; what a waiting writer watches.
    pub(crate) fn room(&self) -> usize {
        let used = self.end().wrapping_sub(self.head().load(Ordering::Relaxed));
        self.data.capacity - used.min(self.data.capacity as u64) as usize
    }

    /// Where the payload of a claimed record goes.
    #[inline(always)]
    pub(crate) fn payload(&self, claim: Claim) -> NonNull<u8> {
        self.data.payload_at(claim.offset)
    }

    /// Publishes a claimed record whose payload has been written.
    ///
    /// `len` is at most what was claimed.
    #[inline(always)]
    pub(crate) fn publish(&mut self, claim: Claim, kind: Kind, len: usize) {
        let next = claim.tail.wrapping_add(record_len(len) as u64);
        self.publish_records(claim.tail, next, header(kind, len));
        self.data.prefetch(self.data.offset(next), len);
    }

    /// Publishes what lies from `tail` to `next`, one record or several, of which the first has this header.
    #[inline(always)]
    fn publish_records(&self, tail: u64, next: u64, header: u64) {
        let words = self.words();
        words.begun.store(next, Ordering::Release); // P3
        self.data.header_at(self.data.offset(next)).store(0, Ordering::Relaxed);
        self.data.header_at(self.data.offset(tail)).store(header, Ordering::Release); // P1
        words.tail.store(next, Ordering::Release); // P3
    }

    /// Writes and publishes a short message, unless there is anything to be done first. Makes no call, for which registers would have to be saved.
    #[inline(always)]
    pub(crate) fn put_short(&mut self, message: &[u8]) -> bool {
        // Not read anew after each store to the ring, which could have changed it for all that the compiler knows.
        let mut writer = Writer { control: self.control, data: self.data };
        if message.len() > SHORT || message.len() > writer.data.max_payload() {
            return false;
        }
        let Some(claim) = writer.claim_at_hand(message.len()) else {
            return false;
        };
        // SAFETY: the claim is for as many bytes as the message has; the ring never overlaps a caller's slice.
        unsafe { copy_short(message.as_ptr(), writer.payload(claim).as_ptr(), message.len()) };
        writer.publish(claim, Kind::Data, message.len());
        true
    }

    /// Opens a run of records at the tail, for as much of the ring as is known to be free, up to its end.
    pub(crate) fn begin_run(&mut self) -> Run {
        self.recover();
        let tail = self.words().tail.load(Ordering::Relaxed);
        let start = self.data.offset(tail);
        // What is known is looked up again only if it is little: the reader's cursor is on a line of the reader's.
        if !self.has_room(tail, self.data.capacity / 4) {
            self.has_room(tail, self.data.capacity);
        }
        let room = self.words().limit.load(Ordering::Relaxed).wrapping_sub(tail);
        // By a `limit` that makes no sense, there is none.
        let room = if room <= self.data.capacity as u64 { (room as usize).saturating_sub(SPARE) } else { 0 };
        let most = record_len(self.data.max_payload()).min(MAX_RUN);
        let stop = start + room.min(self.data.capacity - start).min(most);
        Run { tail, start, at: start, stop, first: 0 }
    }

    /// Writes a record behind the others of a run. False if it does not fit there.
    #[inline(always)]
    pub(crate) fn append(&self, run: &mut Run, message: &[u8]) -> bool {
        // Before what follows, so that no length overflows.
        if message.len() > MAX_RUN || message.len() > self.data.max_payload() {
            return false;
        }
        let (at, next) = (run.at, run.at + record_len(message.len()));
        if next > run.stop {
            return false;
        }
        // SAFETY: the record lies between `start` and `stop`, which lie in the ring, at a multiple of 8.
        unsafe { copy(message.as_ptr(), self.data.payload_at(at).as_ptr(), message.len()) };
        let header = header(Kind::Data, message.len());
        if at == run.start {
            run.first = header;
        } else {
            // Nobody looks at it before the first record is there (P1).
            self.data.header_at(at).store(header, Ordering::Relaxed);
        }
        if (at ^ next) & !(CACHE_LINE - 1) != 0 {
            self.data.prefetch(at, message.len());
        }
        run.at = next;
        true
    }

    /// Publishes all of a run at once: its first record, behind which the others are there already. False if there is none, or if something else has been
    /// published since the run was begun: by another copy of this end, of which one must not undo what the other has done.
    pub(crate) fn publish_run(&mut self, run: Run) -> bool {
        let words = self.words();
        let is_next = [&words.tail, &words.begun].iter().all(|word| word.load(Ordering::Relaxed) == run.tail);
        if run.at == run.start || !is_next {
            return false;
        }
        let next = run.tail.wrapping_add((run.at - run.start) as u64);
        self.publish_records(run.tail, next, run.first);
        true
    }

    /// Takes back the long message whose first records are out. There is always room ([`SPARE`]).
    pub(crate) fn abort(&mut self) {
        self.recover();
        let tail = self.words().tail.load(Ordering::Relaxed);
        self.publish(Claim { tail, offset: self.data.offset(tail) }, Kind::Abort, 0);
    }

    /// Whether everything that was published has been given back by the reader.
    pub(crate) fn is_drained(&self) -> bool {
        self.head().load(Ordering::Acquire) == self.words().tail.load(Ordering::Relaxed)
    }

    /// Bytes in the ring, headers included; a snapshot.
    pub(crate) fn fill(&self) -> usize {
        self.data.capacity - self.room()
    }
}

impl Reader {
    /// # Safety
    ///
    /// `control` must be valid for as long as the value is used.
    pub(crate) unsafe fn new(control: NonNull<Control>, data: Data) -> Reader {
        Reader { control, data, last_word: header(Kind::Data, 0), last_len: 0 }
    }

    #[inline(always)]
    fn words(&self) -> &ReaderWords {
        // SAFETY: valid by the contract of `new`; all atomics.
        unsafe { &self.control.as_ref().reader.0 }
    }

    pub(crate) fn data(&self) -> &Data {
        &self.data
    }

    /// Whether anything at all stands at the reader's position.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.front().2 == 0
    }

    /// As [`is_empty`](Self::is_empty), look number `look` of a reader that waits for its turn in a conversation. Should the message be as long as the one before,
    /// all its lines come together: asked for only when the header is there, they would come after it.
    #[inline(always)]
    pub(crate) fn is_still_empty(&self, look: u32) -> bool {
        let (_, offset, word) = self.front();
        if word == 0 && look % EXPECT_EVERY == 0 && self.last_len <= EXPECT_UP_TO {
            self.data.prefetch_record(offset, self.last_len);
        }
        word == 0
    }

    /// Whether a receive would find something at the reader's position or behind what it would only pass over: padding, and what takes a long message
    /// back. The rest of a long message counts as something, wherever its start is.
    ///
    /// What is passed over stays where it is until the next receive. It is at most a quarter of the ring, as any record; only a `try_` form of sending a message that
    /// needs more than the rest could be in want of it.
    pub(crate) fn has_something(&self) -> bool {
        let (mut head, mut offset, mut word) = self.front();
        for _ in 0..PASSED_OVER {
            let len = word as u32 as usize;
            match Kind::from_raw((word >> 32) as u32) {
                Some(Kind::Pad) if len == self.data.capacity - HEADER - offset => {}
                Some(Kind::Abort) if len == 0 => {}
                _ => break,
            }
            head = head.wrapping_add(record_len(len) as u64);
            offset = self.data.offset(head);
            // A record is published after the zero behind it.
            word = self.data.header_at(offset).load(Ordering::Acquire);
        }
        word != 0
    }

    /// What stands at the reader's position.
    ///
    /// Records are often as long as the one before. Told apart by a branch, which is predicted, the length does not have to wait
    /// for the header to arrive from the other processor, so the next headers are fetched meanwhile.
    #[inline(always)]
    pub(crate) fn look(&mut self) -> Look {
        let (head, offset, word) = self.front();
        if self.is_like_the_last(word, offset) {
            return Look::Record(Record { kind: Kind::Data, len: self.last_len, offset, head });
        }
        if word == 0 {
            return Look::Empty;
        }
        self.look_closer(word, offset, head)
    }

    /// The record of a whole message, if one stands there: as [`look`](Self::look), but without anything that would have to be told apart afterwards.
    #[inline(always)]
    pub(crate) fn data_record(&mut self) -> Option<Record> {
        let (head, offset, word) = self.front();
        if self.is_like_the_last(word, offset) {
            return Some(Record { kind: Kind::Data, len: self.last_len, offset, head });
        }
        match word {
            0 => None,
            _ => match self.look_closer(word, offset, head) {
                Look::Record(record) if record.kind == Kind::Data => Some(record),
                _ => None,
            },
        }
    }

    #[inline(always)]
    fn is_like_the_last(&self, word: u64, offset: usize) -> bool {
        word == self.last_word && self.last_len <= self.data.capacity - HEADER - offset
    }

    /// Copies a short message out and releases it, if there is one that is as long as the one before and not longer than `room`. As for the writer,
    /// there is no call in this.
    ///
    /// # Safety
    ///
    /// `dst` must be valid for writes of `room` bytes.
    #[inline(always)]
    pub(crate) unsafe fn take_short(&mut self, dst: *mut u8, room: usize) -> Option<usize> {
        let mut reader = Reader { ..*self };
        let (head, offset, word) = reader.front();
        let len = reader.last_len;
        if !reader.is_like_the_last(word, offset) || len > SHORT || len > room {
            return None;
        }
        let record = Record { kind: Kind::Data, len, offset, head };
        // SAFETY: the payload lies within the ring, and fits.
        unsafe { copy_short(reader.payload(record).as_ptr(), dst, len) };
        reader.release(record);
        Some(len)
    }

    /// Copies whole messages out, from `first` on, as the records that they are: as many as are there one behind the other up to the end of the ring, and take at most
    /// `most` bytes, which is at least what the first takes, and for which `out`, which is empty, has room already. Then releases them at once. Returns how many.
    ///
    /// All in one copy, up to where the writer says it is (it may be a record further), to be looked at only there.
    pub(crate) fn take_run(&mut self, first: Record, out: &mut Vec<u8>, most: usize) -> usize {
        let there = self.distance().unwrap_or(0).max(record_len(first.len));
        let len = there.min(most.min(out.capacity())).min(self.data.capacity - first.offset);
        // SAFETY: so many bytes lie in the ring from the record on, and `out` has room for them; all of them are written before they count.
        unsafe {
            copy(self.data.base.add(first.offset).as_ptr(), out.as_mut_ptr(), len);
            out.set_len(len);
        }
        let (mut at, mut count) = (0, 0);
        while let Some((word, payload)) = header_of(&out[at..]) {
            if word != self.last_word {
                if (word >> 32) as u32 != Kind::Data as u32 || payload > self.data.max_payload() {
                    break;
                }
                (self.last_word, self.last_len) = (word, payload);
            }
            let next = at + record_len(self.last_len);
            if next > len {
                break;
            }
            (at, count) = (next, count + 1);
        }
        if count != 0 {
            self.words().head.store(first.head.wrapping_add(at as u64), Ordering::Release); // C2
        }
        count
    }

    /// The reader's position, its offset, and what stands there.
    #[inline(always)]
    fn front(&self) -> (u64, usize, u64) {
        let head = self.words().head.load(Ordering::Relaxed);
        let offset = self.data.offset(head);
        let word = self.data.header_at(offset).load(Ordering::Acquire); // C1
        (head, offset, word)
    }

    #[cold]
    #[inline(never)]
    fn look_closer(&mut self, word: u64, offset: usize, head: u64) -> Look {
        let len = word as u32 as usize;
        let rest = self.data.capacity - HEADER - offset;
        match Kind::from_raw((word >> 32) as u32) {
            // Longer than a writer can have claimed: nobody else chooses how much is allocated for a message.
            Some(kind) if kind != Kind::Pad && len > self.data.max_payload() => Look::Corrupt,
            Some(Kind::Data) if len <= rest => {
                (self.last_word, self.last_len) = (word, len);
                Look::Record(Record { kind: Kind::Data, len, offset, head })
            }
            // Padding ends with the ring, and is never all of it.
            Some(Kind::Pad) if len != rest || offset == 0 => Look::Corrupt,
            Some(kind) if len <= rest && self.distance().is_some() => Look::Record(Record { kind, len, offset, head }),
            _ => Look::Corrupt,
        }
    }

    /// Bytes between the cursors, or `None` if they cannot be so: what the ring holds then was not put there message by message, and
    /// reading on would go round in it for ever, long after its writer has died.
    pub(crate) fn distance(&self) -> Option<usize> {
        let capacity = self.data.capacity as u64;
        let head = self.words().head.load(Ordering::Relaxed);
        // SAFETY: valid by the contract of `new`; all atomics.
        let tail = unsafe { &self.control.as_ref().writer.0.tail }.load(Ordering::Acquire); // C3
        // `tail` follows the header, so the reader may be a record ahead of it, for good if the writer was killed there.
        let ahead = head.wrapping_sub(tail);
        if ahead <= record_len(self.data.max_payload()) as u64 {
            return Some(0);
        }
        let behind = tail.wrapping_sub(head);
        (behind <= capacity).then_some(behind as usize)
    }

    /// The first of `record.len` payload bytes, all within the ring.
    #[inline(always)]
    pub(crate) fn payload(&self, record: Record) -> NonNull<u8> {
        self.data.payload_at(record.offset)
    }

    /// The first 8 bytes of the payload, read once, whatever becomes of them meanwhile. The record has as many.
    pub(crate) fn first_word(&self, record: Record) -> u64 {
        debug_assert!(record.len >= 8);
        u64::from_le(self.data.header_at(record.offset + HEADER).load(Ordering::Relaxed))
    }

    /// Gives the record's bytes back to the writer.
    #[inline(always)]
    pub(crate) fn release(&mut self, record: Record) {
        let next = record.head.wrapping_add(record_len(record.len) as u64);
        self.words().head.store(next, Ordering::Release); // C2
    }

    /// Bytes in the ring, headers included; a snapshot.
    pub(crate) fn fill(&self) -> usize {
        self.distance().unwrap_or(self.data.capacity)
    }
}
