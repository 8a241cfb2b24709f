//! What the fuzz targets need beyond the public interface. Exists in fuzzing builds only, and promises nothing.
//!
//! [`Ring`] is both sides of one ring on plain memory, with the words that a killed writer leaves. [`Pipe`] makes real ends again and again
//! on memory that was mapped once, since making and closing a pipe costs more than what is to be tried on it. [`many`] has both for many. [`answered`]
//! is a client by name without a name.

pub mod many;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use crate::connect::{self, Attempt};
use crate::copy::{copy, copy_in};
use crate::deadline::Deadline;
use crate::error::ConnectError;
use crate::layout::{Control, Geometry, RINGS_AT};
use crate::receiver::Receiver;
use crate::ring::spsc::{Claim, Look, Reader, Record, Writer};
use crate::ring::{self, Data};
use crate::segment::{ANONYMOUS, Segment};
use crate::sender::Sender;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::{End, bell, greeting, handover, sys};

/// What a client that wants such an end makes of what a listener has said so far: an end, nothing yet (as a time-out), or why not.
pub fn answered<E: End>(socket: &OwnedFd) -> Result<Option<E>, ConnectError> {
    let name = Path::new("fuzzed");
    let answer = greeting::await_answer(socket.as_fd(), Deadline::NOW);
    let answer = answer.map_err(|error| ConnectError::Io { name: name.into(), error })?;
    match connect::answered(name, answer)? {
        Attempt::End(end) => Ok(Some(end)),
        Attempt::Again(_) => Ok(None),
    }
}

/// The frame of an end, and copies of its descriptors.
pub fn packed<E: End>(end: &E) -> (Vec<u8>, Vec<OwnedFd>) {
    let (frame, fds) = handover::pack(end);
    (frame.into(), fds.iter().map(|fd| fd.try_clone_to_owned().expect("descriptors")).collect())
}

/// Bytes of a record's header.
pub const HEADER: usize = ring::HEADER;
/// Bytes that a claim leaves free behind its record.
pub const SPARE: usize = ring::SPARE;
/// Stores of a publication: `begun`, the next header, the header, `tail`.
pub const STORES: u8 = 4;

/// Bytes that a record of `len` payload bytes takes.
pub fn record_len(len: usize) -> usize {
    ring::record_len(len)
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in `ring::Kind`")]
pub enum Kind {
    Data,
    Pad,
    First,
    More,
    Abort,
    End,
}

const KINDS: [(Kind, ring::Kind); 6] = [
    (Kind::Data, ring::Kind::Data),
    (Kind::Pad, ring::Kind::Pad),
    (Kind::First, ring::Kind::First),
    (Kind::More, ring::Kind::More),
    (Kind::Abort, ring::Kind::Abort),
    (Kind::End, ring::Kind::End),
];

impl Kind {
    fn inner(self) -> ring::Kind {
        KINDS[self as usize].1
    }

    fn outer(kind: ring::Kind) -> Kind {
        KINDS[(kind as u32 - ring::Kind::Data as u32) as usize].0
    }

    /// The header of such a record.
    pub fn header(self, len: usize) -> u64 {
        (self.inner() as u64) << 32 | len as u64
    }
}

/// What stands at the reader's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in `ring::spsc::Look`")]
pub enum Front {
    Empty,
    Record { kind: Kind, len: usize },
    Corrupt,
}

/// The cursors as they stand in the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in `layout`")]
pub struct Cursors {
    pub head: u64,
    pub tail: u64,
    pub begun: u64,
    pub limit: u64,
}

/// Both sides of a ring on the heap.
pub struct Ring {
    writer: Writer,
    reader: Reader,
    claim: Option<(Claim, usize)>,
    front: Option<Record>,
    // Last: what is above points into it.
    segment: Segment,
}

impl Ring {
    /// A ring of `capacity` bytes: a power of two, at least 64.
    pub fn new(capacity: usize) -> Ring {
        assert!(capacity.is_power_of_two() && capacity >= 64);
        let segment = Segment::heap(Geometry::spsc(capacity, 1, 0));
        Ring { writer: writer(&segment), reader: reader(&segment), claim: None, front: None, segment }
    }

    /// Makes it as new, with cursors that start at `start`, a multiple of 8.
    pub fn reset(&mut self, start: u64) {
        assert!(start % 8 == 0);
        reset(&self.segment, start);
        self.replace_writer();
        self.replace_reader();
    }

    /// Another copy of the writing end goes on; a claim is lost.
    pub fn replace_writer(&mut self) {
        (self.writer, self.claim) = (writer(&self.segment), None);
    }

    /// Another copy of the reading end goes on; a record that was not released stays.
    pub fn replace_reader(&mut self) {
        (self.reader, self.front) = (reader(&self.segment), None);
    }

    /// The longest payload.
    pub fn max_payload(&self) -> usize {
        self.writer.data().max_payload()
    }

    /// Claims room for a record; an earlier claim is forgotten.
    pub fn claim(&mut self, len: usize) -> bool {
        assert!(len <= self.max_payload());
        self.claim = self.writer.claim(len).map(|claim| (claim, len));
        self.claim.is_some()
    }

    /// Fills the claimed room from its start.
    pub fn write(&mut self, bytes: &[u8]) {
        let (claim, len) = self.claim.expect("nothing is claimed");
        assert!(bytes.len() <= len);
        // SAFETY: the claim is for at least as many bytes; the segment never overlaps a caller's slice.
        unsafe { copy_in(bytes, self.writer.payload(claim)) };
    }

    /// Publishes the first `len` bytes of what is claimed.
    pub fn publish(&mut self, kind: Kind, len: usize) {
        let (claim, claimed) = self.claim.take().expect("nothing is claimed");
        assert!(len <= claimed);
        self.writer.publish(claim, kind.inner(), len);
    }

    /// Publishes an `Abort` record into the room that every claim leaves.
    pub fn abort(&mut self) {
        self.writer.abort();
        self.claim = None;
    }

    /// The writer is killed while it publishes a record at the tail, after so many of its [`STORES`]; another copy goes on. The order of the
    /// stores is `Writer::publish`'s.
    pub fn die_publishing(&mut self, kind: Kind, len: usize, stores: u8) {
        let words = &control(&self.segment).writer.0;
        let tail = words.tail.load(Ordering::Relaxed);
        let next = tail.wrapping_add(record_len(len) as u64);
        let (next_header, header) = (self.header(next), self.header(tail));
        let all = [(&words.begun, next), (next_header, 0), (header, kind.header(len)), (&words.tail, next)];
        for (word, value) in &all[..stores.into()] {
            word.store(*value, Ordering::Release);
        }
        self.replace_writer();
    }

    /// What the reader finds.
    pub fn front(&mut self) -> Front {
        self.front = None;
        match self.reader.look() {
            Look::Empty => Front::Empty,
            Look::Corrupt => Front::Corrupt,
            Look::Record(record) => {
                self.front = Some(record);
                Front::Record { kind: Kind::outer(record.kind), len: record.len }
            }
        }
    }

    /// Copies out the payload of the record that [`front`](Self::front) found.
    pub fn read(&self, dst: &mut [u8]) {
        let record = self.front.expect("no record was found");
        assert!(dst.len() == record.len);
        // SAFETY: the record has as many bytes as `dst`.
        unsafe { copy(self.reader.payload(record).as_ptr(), dst.as_mut_ptr(), record.len) };
    }

    /// Releases the record that [`front`](Self::front) found.
    pub fn release(&mut self) {
        self.reader.release(self.front.take().expect("no record was found"));
    }

    /// Whether the reader finds nothing.
    pub fn is_empty(&self) -> bool {
        self.reader.is_empty()
    }

    /// Bytes in the ring as the writer and as the reader see it; and for the reader, `None` if the cursors make no sense.
    pub fn fill(&self) -> (usize, Option<usize>) {
        (self.writer.fill(), self.reader.distance())
    }

    /// The cursors.
    pub fn cursors(&self) -> Cursors {
        let (control, load) = (control(&self.segment), |word: &AtomicU64| word.load(Ordering::Relaxed));
        let words = &control.writer.0;
        Cursors {
            head: load(&control.reader.0.head),
            tail: load(&words.tail),
            begun: load(&words.begun),
            limit: load(&words.limit),
        }
    }

    /// The header at a cursor.
    pub fn header_at(&self, cursor: u64) -> u64 {
        self.header(cursor).load(Ordering::Relaxed)
    }

    fn header(&self, cursor: u64) -> &AtomicU64 {
        let at = cursor as usize & (self.segment.geometry().capacity - 1) & !7;
        // SAFETY: `at` is within the ring and a multiple of 8; headers are only ever accessed as atomics.
        unsafe { self.segment.ring(0).add(at).cast().as_ref() }
    }
}

fn control(segment: &Segment) -> &Control {
    // SAFETY: all atomics, valid as long as the segment.
    unsafe { segment.control(0).as_ref() }
}

fn data(segment: &Segment) -> Data {
    // SAFETY: the ring has as many bytes, is aligned to 4096, and `Ring` drops the segment last.
    unsafe { Data::new(segment.ring(0), segment.geometry().capacity) }
}

fn writer(segment: &Segment) -> Writer {
    // SAFETY: `Ring` drops the segment last.
    unsafe { Writer::new(segment.control(0), data(segment)) }
}

fn reader(segment: &Segment) -> Reader {
    // SAFETY: `Ring` drops the segment last.
    unsafe { Reader::new(segment.control(0), data(segment)) }
}

/// Makes direction 0 as new, with cursors that start at `start`.
fn reset(segment: &Segment, start: u64) {
    let control = segment.control(0);
    // SAFETY: both lie within the segment, and nobody uses it while it is reset.
    unsafe {
        control.write_bytes(0, 1);
        segment.ring(0).write_bytes(0, segment.geometry().capacity);
    }
    // SAFETY: all atomics, valid as long as the segment.
    let control = unsafe { control.as_ref() };
    let words = &control.writer.0;
    for cursor in [&words.tail, &words.begun, &words.limit, &control.reader.0.head] {
        cursor.store(start, Ordering::Relaxed);
    }
    bell::arm_fresh(&control.not_empty.0);
}

/// A simplex pipe whose ends are made anew for each execution, on the same memory.
///
/// The segment is one of a duplex pipe, whose second direction is not used: see [`Memory::out_of_bounds`].
pub struct Pipe {
    memory: Memory,
    /// The receiver's and the sender's.
    bells: Option<[OwnedFd; 2]>,
    fresh_header: Vec<u64>,
}

impl Pipe {
    /// A ring of `capacity` bytes: a power of two from 4096 on.
    pub fn new(capacity: usize, spin: Duration) -> Pipe {
        let geometry = Geometry::spsc(capacity, 2, spin.as_micros() as u32);
        let memory = Memory { segment: Arc::new(Segment::create(geometry, ANONYMOUS).expect("memory for a segment")) };
        let fresh_header = (0..HEADER_WORDS).map(|i| memory.word(8 * i).load(Ordering::Relaxed)).collect();
        Pipe { memory, bells: None, fresh_header }
    }

    /// Both ends of a fresh pipe, with cursors that start at `start`, a multiple of 8. Those made before are given back, or not used
    /// any more.
    pub fn ends(&mut self, start: u64) -> (Receiver, Sender) {
        assert!(start % 8 == 0);
        let segment = &self.memory.segment;
        for (i, &value) in self.fresh_header.iter().enumerate() {
            self.memory.word(8 * i).store(value, Ordering::Relaxed);
        }
        reset(segment, start);
        let [receiving, sending] = self.bells.take().unwrap_or_else(|| {
            let (receiving, sending) = sys::socketpair().expect("a socket");
            [receiving, sending]
        });
        (Receiver::new(Arc::clone(segment), 0, receiving), Sender::new(Arc::clone(segment), 0, sending))
    }

    /// Takes the ends back, so that their bells need not be made anew.
    pub fn give_back(&mut self, receiver: Option<Receiver>, sender: Option<Sender>) {
        let copy = |bell: BorrowedFd<'_>| {
            sys::take_tokens(bell, |_| true);
            let idle = sys::poll_readable(bell, Deadline::NOW) == sys::Readiness::default();
            idle.then(|| bell.try_clone_to_owned().ok()).flatten()
        };
        if let (Some(receiver), Some(sender)) = (&receiver, &sender) {
            self.bells = copy(receiver.bell()).zip(copy(sender.waiter.bell.fd())).map(|(r, s)| [r, s]);
        }
    }

    /// The memory of the pipe, to be rewritten under its ends.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// Bytes of a segment that the header takes, in words.
const HEADER_WORDS: usize = 32;

/// The memory of a [`Pipe`], as a peer sees it.
#[derive(Clone)]
pub struct Memory {
    segment: Arc<Segment>,
}

impl Memory {
    /// Where the control block of the direction in use starts: `tail`, `begun` and `limit`, 128 bytes further `head`, then the two seats.
    pub fn control_at(&self) -> usize {
        self.segment.geometry().control_offset(0)
    }

    /// Where the ring starts.
    pub fn ring_at(&self) -> usize {
        self.segment.geometry().ring_offset(0)
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> usize {
        self.segment.geometry().capacity
    }

    /// A word of the header, the control block or the ring, `at` bytes from the start.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && self.is_used(at));
        // SAFETY: in bounds, aligned, and mapped as long as the segment lives. Nothing but atomics and raw copies touches this memory.
        unsafe { self.base().add(at).cast().as_ref() }
    }

    /// A half word, likewise.
    pub fn half(&self, at: usize) -> &AtomicU32 {
        assert!(at % 4 == 0 && self.is_used(at));
        // SAFETY: as for `word`.
        unsafe { self.base().add(at).cast().as_ref() }
    }

    fn is_used(&self, at: usize) -> bool {
        let control = self.control_at();
        at < control + size_of::<Control>() || (self.ring_at()..self.ring_at() + self.capacity()).contains(&at)
    }

    fn base(&self) -> NonNull<u8> {
        // SAFETY: the header and the control blocks lie before the rings, in the same mapping.
        unsafe { self.segment.ring(0).sub(RINGS_AT) }
    }

    /// The bytes before and behind the ring in use, to which nobody has any business, as addresses and lengths.
    pub fn out_of_bounds(&self) -> [(*const u8, usize); 2] {
        let before = self.control_at() + size_of::<Control>();
        // SAFETY: within the mapping.
        let start = unsafe { self.base().add(before) };
        [(start.as_ptr(), RINGS_AT - before), (self.segment.ring(1).as_ptr(), self.capacity())]
    }
}

impl AsFd for Memory {
    /// The memory file.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }
}

/// The socket of a receiver, without telling it that it is watched.
pub fn bell(receiver: &Receiver) -> BorrowedFd<'_> {
    receiver.bell()
}
