//! The receiving end of one direction.

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::assembly::{Assembly, Partial, Scatter};
use crate::batch::Batch;
use crate::bell::Bell;
use crate::copy::copy;
use crate::deadline::Deadline;
use crate::error::{AttachError, BufferTooShort, RecvError, RecvIntoError};
use crate::read_guard::{Message, ReadGuard};
use crate::ring::spsc::{Look, Reader, Record};
use crate::ring::{Data, HEADER, Kind, record_len};
use crate::segment::Segment;
use crate::sender::Progress;
use crate::sync::{AsFd, BorrowedFd, OwnedFd};
use crate::wait::{Waiter, Wake};

/// The receiving end of a pipe.
///
/// Made by [`simplex`](crate::simplex) or [`Connection::split`](crate::Connection::split). Dropping it closes it; the
/// sender gets a broken pipe when every copy (children made by `fork` have copies) is closed.
///
/// The plain `recv_*` forms wait for a message; `try_` forms do not wait; `_timeout` and `_deadline` forms wait so long. When
/// nothing is left and every copy of the sending end is closed, they return [`RecvError::Disconnected`], however that
/// end was closed: dropped, by exit, by SIGKILL.
///
/// A `try_` form that finds nothing asks the kernel whether the sender lives, which takes a system call: to poll
/// often and cheaply, use a `_timeout` form and let it spin.
///
/// What a message takes in memory grows as it arrives, whatever its sender claims; `recv_bytes_max` and its forms bound it.
///
/// One process at a time may use an end, as for [`Sender`](crate::Sender).
pub struct Receiver {
    reader: Reader,
    waiter: Waiter,
    state: State,
    // Last: what is above points into it.
    pub(crate) segment: Arc<Segment>,
    pub(crate) direction: usize,
}

enum State {
    /// Between messages.
    Clean,
    /// Inside a long message, after a call that ran out of time.
    Partial(Partial),
    /// The cursors make no sense; the next call says so.
    Corrupt,
    /// After an error that ends receiving. This copy of the end is closed, unless there was no descriptor for that.
    Ended { hung_up: bool },
}

/// A message, received.
enum Received {
    /// Whole in one record, which has not been released.
    InPlace(Record),
    /// So many bytes in the caller's buffer.
    Buffered(usize),
    /// In memory of our own.
    Owned(Vec<u8>),
}

/// How long a call may go on, in time and in what it may pass over before it looks at the clock: nobody may keep a call that
/// does not wait busy for ever.
struct Patience {
    deadline: Deadline,
    bytes: usize,
    capacity: usize,
}

impl Patience {
    fn spend(&mut self, bytes: usize) -> Result<(), RecvError> {
        self.bytes += bytes;
        if self.bytes > self.capacity {
            self.bytes = 0;
            if self.deadline.passed() {
                return Err(nothing(self.deadline));
            }
        }
        Ok(())
    }
}

/// A reader close behind the writer takes lines away while they are being written, and never finds the ring empty, so never waits.
/// Every so many messages it makes sure that it is not that close, in bytes.
const DISTANCE_CHECK: u32 = 256;
const TOO_CLOSE: usize = 64 << 10;
/// So many messages at once are as many in a row, in this respect.
const LONG_BATCH: usize = 64;

/// Bytes of the total length that a `First` record starts with.
const TOTAL: usize = 8;

/// What a call that found nothing in time returns.
pub(crate) fn nothing(deadline: Deadline) -> RecvError {
    if deadline.is_now() { RecvError::Empty } else { RecvError::TimedOut }
}

impl Receiver {
    pub(crate) fn new(segment: Arc<Segment>, direction: usize, bell: OwnedFd) -> Receiver {
        let geometry = segment.geometry();
        let control = segment.control(direction);
        // SAFETY: the ring is `capacity` bytes in a page-aligned mapping that `segment` keeps alive for
        // longer than the reader.
        let data = unsafe { Data::new(segment.ring(direction), geometry.capacity) };
        // SAFETY: the control block, all atomics, is kept alive by `segment` likewise.
        let (reader, words) = unsafe { (Reader::new(control, data), control.as_ref()) };
        let (mine, theirs) = (NonNull::from(&words.not_empty.0), NonNull::from(&words.not_full.0));
        // SAFETY: the seats lie in the control block; `segment` is dropped after the waiter.
        let waiter = unsafe { Waiter::new(mine, theirs, bell, false, geometry.spin_micros) };
        Receiver { reader, waiter, state: State::Clean, segment, direction }
    }

    /// Receives one message, waiting for it as long as it takes. Follows `Connection.recv_bytes`.
    ///
    /// # Errors
    ///
    /// [`RecvError::Disconnected`] at end of file; [`RecvError::Cut`], [`RecvError::Corrupt`], [`RecvError::NoMemory`],
    /// [`RecvError::Ended`] and [`RecvError::IsEnd`] as described there.
    pub fn recv_bytes(&mut self) -> Result<Vec<u8>, RecvError> {
        self.recv_until(usize::MAX, Deadline::NEVER)
    }

    /// Receives one message if one is there right now.
    ///
    /// # Errors
    ///
    /// [`RecvError::Empty`], or as [`recv_bytes`](Self::recv_bytes).
    pub fn try_recv_bytes(&mut self) -> Result<Vec<u8>, RecvError> {
        self.recv_until(usize::MAX, Deadline::NOW)
    }

    /// Receives one message, waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`RecvError::TimedOut`], or as [`recv_bytes`](Self::recv_bytes).
    pub fn recv_bytes_timeout(&mut self, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        self.recv_until(usize::MAX, Deadline::after(timeout))
    }

    /// Receives one message, waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_timeout`](Self::recv_bytes_timeout).
    pub fn recv_bytes_deadline(&mut self, deadline: Instant) -> Result<Vec<u8>, RecvError> {
        self.recv_until(usize::MAX, Deadline::instant(deadline))
    }

    /// Receives one message of at most `maxlength` bytes. Follows `Connection.recv_bytes(maxlength)`.
    ///
    /// # Errors
    ///
    /// [`RecvError::TooLong`] if the message is longer: this end then no longer receives, and the sender gets a broken
    /// pipe. So it is with a long message that its sender goes on to take back, having run out of time. Otherwise as [`recv_bytes`](Self::recv_bytes).
    pub fn recv_bytes_max(&mut self, maxlength: usize) -> Result<Vec<u8>, RecvError> {
        self.recv_until(maxlength, Deadline::NEVER)
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_max`](Self::recv_bytes_max), and [`RecvError::Empty`].
    pub fn try_recv_bytes_max(&mut self, maxlength: usize) -> Result<Vec<u8>, RecvError> {
        self.recv_until(maxlength, Deadline::NOW)
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_max`](Self::recv_bytes_max), and [`RecvError::TimedOut`].
    pub fn recv_bytes_max_timeout(&mut self, maxlength: usize, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        self.recv_until(maxlength, Deadline::after(timeout))
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_max`](Self::recv_bytes_max), and [`RecvError::TimedOut`].
    pub fn recv_bytes_max_deadline(&mut self, maxlength: usize, deadline: Instant) -> Result<Vec<u8>, RecvError> {
        self.recv_until(maxlength, Deadline::instant(deadline))
    }

    /// Receives one message into `buf[offset..]` and returns its length in bytes. Waits for a message.
    /// Follows `Connection.recv_bytes_into`.
    ///
    /// # Errors
    ///
    /// [`RecvIntoError::TooShort`] carries a message that does not fit, whole: it has been consumed, nothing of it is in the
    /// buffer, and receiving can go on. [`RecvIntoError::BadOffset`] if `offset > buf.len()`: the message stays. Otherwise as
    /// [`recv_bytes`](Self::recv_bytes); the part of the buffer behind `offset` may
    /// then have been written to, as it may by a long message that its sender took back.
    #[inline]
    pub fn recv_bytes_into(&mut self, buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError> {
        self.recv_into_until(buf, offset, Deadline::NEVER)
    }

    /// As [`recv_bytes_into`](Self::recv_bytes_into), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_into`](Self::recv_bytes_into), and [`RecvError::Empty`].
    #[inline]
    pub fn try_recv_bytes_into(&mut self, buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError> {
        self.recv_into_until(buf, offset, Deadline::NOW)
    }

    /// As [`recv_bytes_into`](Self::recv_bytes_into), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_into`](Self::recv_bytes_into), and [`RecvError::TimedOut`].
    pub fn recv_bytes_into_timeout(
        &mut self,
        buf: &mut [u8],
        offset: usize,
        timeout: Duration,
    ) -> Result<usize, RecvIntoError> {
        self.recv_into_until(buf, offset, Deadline::after(timeout))
    }

    /// As [`recv_bytes_into`](Self::recv_bytes_into), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_into`](Self::recv_bytes_into), and [`RecvError::TimedOut`].
    pub fn recv_bytes_into_deadline(
        &mut self,
        buf: &mut [u8],
        offset: usize,
        deadline: Instant,
    ) -> Result<usize, RecvIntoError> {
        self.recv_into_until(buf, offset, Deadline::instant(deadline))
    }

    /// Receives one message in place, without copying it out of the ring. Waits for a message.
    ///
    /// The message is consumed, and its room given back, when the guard is dropped. Messages longer than a quarter of the
    /// capacity are not in one piece in the ring and are copied after all.
    ///
    /// ```
    /// # let (mut receiver, mut sender) = ringpipe::simplex()?;
    /// sender.send_bytes(b"in place")?;
    /// let message = receiver.recv_guard()?;
    /// let mut start = [0; 2];
    /// message.copy_to(0, &mut start);
    /// assert_eq!((message.len(), &start), (8, b"in"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`recv_bytes`](Self::recv_bytes).
    #[inline]
    pub fn recv_guard(&mut self) -> Result<ReadGuard<'_>, RecvError> {
        self.recv_guard_until(Deadline::NEVER)
    }

    /// As [`recv_guard`](Self::recv_guard), without waiting.
    ///
    /// # Errors
    ///
    /// As [`try_recv_bytes`](Self::try_recv_bytes).
    #[inline]
    pub fn try_recv_guard(&mut self) -> Result<ReadGuard<'_>, RecvError> {
        self.recv_guard_until(Deadline::NOW)
    }

    /// As [`recv_guard`](Self::recv_guard), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_timeout`](Self::recv_bytes_timeout).
    pub fn recv_guard_timeout(&mut self, timeout: Duration) -> Result<ReadGuard<'_>, RecvError> {
        self.recv_guard_until(Deadline::after(timeout))
    }

    /// As [`recv_guard`](Self::recv_guard), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_timeout`](Self::recv_bytes_timeout).
    pub fn recv_guard_deadline(&mut self, deadline: Instant) -> Result<ReadGuard<'_>, RecvError> {
        self.recv_guard_until(Deadline::instant(deadline))
    }

    /// Whether a receive would find something: a message (or the start, or a further part, of a long one), or end of file. Follows `Connection.poll`.
    ///
    /// It only looks, so it may be called while another process receives by its copy of the end; it gives no room back either, as [`wait`](crate::wait()). True for nothing is
    /// only what is left of a long message that is passed over, because its sender has taken it back, or a process was killed that had received its start.
    ///
    /// `Some(Duration::ZERO)` returns at once, `None` waits as long as it takes.
    ///
    /// # Errors
    ///
    /// [`RecvError::Ended`] and [`RecvError::Corrupt`].
    pub fn poll(&mut self, timeout: Option<Duration>) -> Result<bool, RecvError> {
        let deadline = timeout.map_or(Deadline::NEVER, Deadline::after);
        match self.poll_until(deadline) {
            Ok(()) | Err(RecvError::Disconnected) => Ok(true),
            Err(RecvError::Empty | RecvError::TimedOut) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Receives what is there in one go, into `batch`, whose earlier content is gone: whole messages in the order sent and, if more than
    /// one, at most 32 KiB of them, with some 8 bytes around each. Waits for the first.
    ///
    /// For many short messages in a row. Whether they were sent in a [`batch`](crate::Sender::batch) does not matter.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes`](Self::recv_bytes); the batch is empty then.
    pub fn recv_batch(&mut self, batch: &mut Batch) -> Result<(), RecvError> {
        self.recv_batch_until(batch, Deadline::NEVER)
    }

    /// As [`recv_batch`](Self::recv_batch), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv_batch`](Self::recv_batch), and [`RecvError::Empty`].
    pub fn try_recv_batch(&mut self, batch: &mut Batch) -> Result<(), RecvError> {
        self.recv_batch_until(batch, Deadline::NOW)
    }

    /// As [`recv_batch`](Self::recv_batch), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_batch`](Self::recv_batch), and [`RecvError::TimedOut`].
    pub fn recv_batch_timeout(&mut self, batch: &mut Batch, timeout: Duration) -> Result<(), RecvError> {
        self.recv_batch_until(batch, Deadline::after(timeout))
    }

    /// As [`recv_batch`](Self::recv_batch), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_batch_timeout`](Self::recv_batch_timeout).
    pub fn recv_batch_deadline(&mut self, batch: &mut Batch, deadline: Instant) -> Result<(), RecvError> {
        self.recv_batch_until(batch, Deadline::instant(deadline))
    }

    /// The messages to come, until end of file; each item waits. Borrows the end: `for message in receiver.iter()`.
    pub fn iter(&mut self) -> Iter<'_> {
        Iter { receiver: self, deadline: Deadline::NEVER, over: false }
    }

    /// The messages that are there already.
    pub fn try_iter(&mut self) -> Iter<'_> {
        Iter { receiver: self, deadline: Deadline::NOW, over: false }
    }

    /// Whether a receive would find a message, or the start or a further part of a long one, without waiting, or fail with anything but end of file. Asks nobody,
    /// so the sender's death is not noticed; receives nothing. True for nothing where [`wait`](crate::wait()) is.
    #[inline]
    pub fn has_something(&self) -> bool {
        match self.state {
            State::Clean | State::Partial(_) => self.reader.has_something(),
            State::Corrupt | State::Ended { .. } => true,
        }
    }

    /// Bytes of the message that a receive would take next or go on with, if it is a long one (more than a quarter of the capacity) and its start is there.
    ///
    /// A claim of the sender's, which may not keep it, or take the message back. Asks nobody, and receives nothing.
    #[inline]
    pub fn long_message_len(&mut self) -> Option<u64> {
        match &self.state {
            State::Clean => match self.reader.look() {
                Look::Record(record) if record.kind == Kind::First && record.len > TOTAL => {
                    Some(self.reader.first_word(record))
                }
                _ => None,
            },
            State::Partial(partial) => Some(partial.total as u64),
            State::Corrupt | State::Ended { .. } => None,
        }
    }

    /// Copies the start of the message that a receive would take next or go on with, as much of it as is at hand and `start` has room for, and returns how many bytes that
    /// is. Asks nobody, and receives nothing.
    pub fn peek(&mut self, start: &mut [u8]) -> usize {
        if let State::Partial(partial) = &self.state {
            let len = partial.bytes.len().min(start.len());
            start[..len].copy_from_slice(&partial.bytes[..len]);
            return len;
        }
        let (record, skip) = match self.reader.look() {
            _ if !matches!(self.state, State::Clean) => return 0,
            Look::Record(record) if record.kind == Kind::Data => (record, 0),
            Look::Record(record) if record.kind == Kind::First && record.len > TOTAL => (record, TOTAL),
            _ => return 0,
        };
        let len = (record.len - skip).min(start.len());
        // SAFETY: the record has so many bytes behind those that are skipped, and the buffer is the caller's own.
        unsafe { self.copy_out(record, skip, start.as_mut_ptr(), len) };
        len
    }

    /// Receives a long message as far as it gets in `timeout`, into several places, one behind the other, which together have exactly the
    /// [length](Self::long_message_len) that it is said to have; to be called again, with the same arguments, as long as it times out. For callers that have other things to look after meanwhile, and want nothing moved that has arrived.
    ///
    /// True once all of it has arrived. False if there is no such message: it has been taken back, or there was none of that length. Then nothing in the places is of use.
    ///
    /// Nothing else may be received in between, or the message is lost; to let somebody else go on with it, there is [`put_back`](Self::put_back). `progress` is what
    /// [`Progress::default`] gives at first, and again when this has returned anything but a time-out.
    ///
    /// ```
    /// # use ringpipe::{Progress, RecvError};
    /// # use std::time::Duration;
    /// # let (mut receiver, mut sender) = ringpipe::Builder::new().capacity(4096).simplex()?;
    /// # let sending = std::thread::spawn(move || sender.send_bytes(&[7; 100_000]));
    /// # receiver.poll(None)?;
    /// let len = receiver.long_message_len().expect("a long message has begun") as usize;
    /// let (mut head, mut body) = (Box::new_uninit_slice(1000), Box::new_uninit_slice(len - 1000));
    /// let mut progress = Progress::default();
    /// let whole = loop {
    ///     match receiver.recv_vectored_part(&mut [&mut head, &mut body], &mut progress, Duration::from_millis(1)) {
    ///         Err(RecvError::TimedOut) => println!("{} bytes have arrived", progress.bytes()),
    ///         received => break received?,
    ///     }
    /// };
    /// # assert!(whole);
    /// # assert!(body.iter().all(|byte| unsafe { byte.assume_init() } == 7));
    /// # sending.join().unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`RecvError::TimedOut`], or as [`recv_bytes`](Self::recv_bytes).
    ///
    /// # Panics
    ///
    /// If `progress` is seen to be that of another message.
    pub fn recv_vectored_part(
        &mut self,
        places: &mut [&mut [MaybeUninit<u8>]],
        progress: &mut Progress,
        timeout: Duration,
    ) -> Result<bool, RecvError> {
        let mut patience = self.patience(Deadline::after(timeout));
        let total = places.iter().map(|place| place.len()).sum::<usize>();
        assert!(progress.bytes < total.max(1), "progress of another message");
        let mut scatter = Scatter::new(places, progress.bytes);
        let result = loop {
            let before = progress.bytes;
            let result = match self.next_part(&mut scatter, total, &mut progress.bytes, &mut patience) {
                Ok(true) if progress.bytes < total => patience.spend(HEADER + progress.bytes - before).map(|()| true),
                result => result,
            };
            match result {
                Err(RecvError::TimedOut | RecvError::Empty) => return Err(RecvError::TimedOut),
                Ok(true) if progress.bytes < total => {}
                result => break result,
            }
        };
        *progress = Progress::default();
        result
    }

    /// Gives back to this end what has arrived of a long message of `total` bytes by [`recv_vectored_part`](Self::recv_vectored_part): the next receive, of whatever form, goes on with it.
    ///
    /// # Panics
    ///
    /// If `arrived` is not shorter than the message.
    pub fn put_back(&mut self, total: usize, arrived: Vec<u8>) {
        assert!(arrived.len() < total, "{} of {total} bytes are not a part", arrived.len());
        if matches!(self.state, State::Clean) && !arrived.is_empty() {
            self.state = State::Partial(Partial { total, bytes: arrived });
        }
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> usize {
        self.reader.data().capacity()
    }

    /// Bytes of the ring that hold messages, each with 8 bytes of header and padded to 8; a snapshot.
    pub fn fill(&self) -> usize {
        self.reader.fill()
    }

    /// Closes this copy of the end; the same as dropping it.
    pub fn close(self) {}

    // --- the parts --------------------------------------------------------------------------------

    /// The record of a whole message, if that is what stands at the front: the fast path.
    #[inline(always)]
    fn at_hand(&mut self) -> Option<Record> {
        if matches!(self.state, State::Clean) { self.reader.data_record() } else { None }
    }

    /// Gives a record back and wakes the sender.
    #[inline(always)]
    pub(crate) fn release(&mut self, record: Record) {
        self.reader.release(record);
        self.released();
    }

    #[inline(always)]
    fn released(&mut self) {
        if self.waiter.note_success() % DISTANCE_CHECK == 0 {
            self.check_distance();
        }
        // Whether the sender lives matters only once nothing is left.
        self.waiter.notify(|| true);
        self.waiter.bell.settle(|| self.reader.has_something());
    }

    #[cold]
    fn check_distance(&mut self) {
        match self.reader.distance() {
            Some(distance) if distance < TOO_CLOSE.min(self.capacity() / 4) => self.waiter.fall_back(),
            Some(_) => {}
            None => self.state = State::Corrupt,
        }
    }

    /// Copies the start of a record's payload out.
    ///
    /// # Safety
    ///
    /// `dst` must be valid for writes of `len` bytes, and `skip + len` be at most `record.len`.
    #[inline(always)]
    pub(crate) unsafe fn copy_out(&self, record: Record, skip: usize, dst: *mut u8, len: usize) {
        debug_assert!(skip + len <= record.len);
        // SAFETY: a record's payload lies within the ring (`Reader::look`); the rest by the contract.
        unsafe { copy(self.payload(record).add(skip), dst, len) }
    }

    /// Where a record's payload starts, all of which lies within the ring.
    #[inline(always)]
    pub(crate) fn payload(&self, record: Record) -> *const u8 {
        self.reader.payload(record).as_ptr()
    }

    /// Waits a moment for what is on its way, as an answer is in a conversation.
    #[inline(always)]
    fn glance(&mut self, deadline: Deadline) -> bool {
        self.reader.is_empty()
            && !deadline.is_immediate()
            && self.waiter.glance(|look| !self.reader.is_still_empty(look))
    }

    /// Waits for the next record, passing over padding.
    fn record(&mut self, patience: &mut Patience) -> Result<Option<Record>, RecvError> {
        loop {
            match self.reader.look() {
                Look::Record(record) if record.kind == Kind::Pad => {
                    self.release(record);
                    patience.spend(HEADER + record.len)?;
                }
                Look::Record(record) => return Ok(Some(record)),
                Look::Corrupt => return Err(self.corrupt()),
                Look::Empty => match self.waiter.wait(patience.deadline, || !self.reader.is_empty()) {
                    // Next to nothing, unless a peer makes the ring look full and empty in turn.
                    Wake::Ready => patience.spend(self.capacity() / 16)?,
                    Wake::TimedOut => return Err(nothing(patience.deadline)),
                    Wake::Gone => return Ok(None),
                },
            }
        }
    }

    /// Waits for a record that starts a message.
    fn start(&mut self, patience: &mut Patience) -> Result<Record, RecvError> {
        loop {
            let record = self.record(patience)?.ok_or(RecvError::Disconnected)?;
            match record.kind {
                Kind::Data | Kind::First | Kind::End => return Ok(record),
                // The rest of a long message of which a killed copy of this end took the start.
                Kind::More | Kind::Abort | Kind::Pad => {
                    self.release(record);
                    patience.spend(HEADER + record.len)?;
                }
            }
        }
    }

    fn patience(&self, deadline: Deadline) -> Patience {
        Patience { deadline, bytes: 0, capacity: self.capacity() }
    }

    fn receive(
        &mut self,
        mut buf: Option<&mut [u8]>,
        maxlength: usize,
        deadline: Deadline,
    ) -> Result<Received, RecvError> {
        let mut patience = self.patience(deadline);
        loop {
            let assembly = match std::mem::replace(&mut self.state, State::Clean) {
                State::Ended { hung_up } => {
                    self.state = State::Ended { hung_up };
                    return Err(self.ended(hung_up));
                }
                State::Corrupt => return Err(self.corrupt()),
                State::Partial(partial) => {
                    self.allow(partial.total as u64, maxlength)?;
                    Assembly::resume(partial, buf.as_deref_mut())
                }
                State::Clean => {
                    let record = self.start(&mut patience)?;
                    match record.kind {
                        Kind::First => self.begin(record, buf.as_deref_mut(), maxlength)?,
                        Kind::Data => {
                            self.allow(record.len as u64, maxlength)?;
                            return Ok(Received::InPlace(record));
                        }
                        _ => return Err(RecvError::IsEnd),
                    }
                }
            };
            if let Some(received) = self.complete(assembly, &mut patience)? {
                return Ok(received);
            }
        }
    }

    /// Takes the first record of a long message.
    fn begin<'a>(
        &mut self,
        record: Record,
        buf: Option<&'a mut [u8]>,
        maxlength: usize,
    ) -> Result<Assembly<'a>, RecvError> {
        // A part without payload would let a peer keep us busy for nothing.
        if record.len <= TOTAL {
            return Err(self.corrupt());
        }
        let total = self.reader.first_word(record);
        // A 64-bit process can send what a 32-bit one cannot hold.
        self.allow(total, maxlength.min(isize::MAX as usize))?;
        if (record.len - TOTAL) as u64 >= total {
            return Err(self.corrupt());
        }
        let mut assembly = Assembly::new(total as usize, buf);
        // SAFETY: the payload lies within the ring, and what is behind the total is less than that, as just checked.
        unsafe { assembly.put(self.payload(record).add(TOTAL), record.len - TOTAL)? };
        self.release(record);
        Ok(assembly)
    }

    /// Takes the next record of a long message, or what an earlier call has of it. False if there is no more of it.
    fn next_part(
        &mut self,
        scatter: &mut Scatter<'_, '_>,
        total: usize,
        arrived: &mut usize,
        patience: &mut Patience,
    ) -> Result<bool, RecvError> {
        if *arrived == 0 {
            if self.long_message_len() != Some(total as u64) {
                return Ok(false);
            }
            if let State::Partial(partial) = std::mem::replace(&mut self.state, State::Clean) {
                *arrived = partial.bytes.len();
                // SAFETY: the pointer and the length are the vector's.
                unsafe { scatter.put(partial.bytes.as_ptr(), partial.bytes.len()) };
                return Ok(true);
            }
        }
        let record = match self.record(patience)? {
            Some(record) if *arrived == 0 && record.kind == Kind::First => record,
            Some(record) if *arrived > 0 && record.kind == Kind::More => record,
            Some(record) if *arrived > 0 && record.kind == Kind::Abort => {
                self.release(record);
                return Ok(false);
            }
            // As in `complete`.
            _ => return Err(RecvError::Cut),
        };
        let skip = if *arrived == 0 { TOTAL } else { 0 };
        let missing = total - *arrived;
        // The first part is never all of it.
        if record.len <= skip || record.len - skip > missing - usize::from(skip > 0) {
            return Err(self.corrupt());
        }
        let len = record.len - skip;
        // SAFETY: the payload lies within the ring, and what is copied of it is not more than is missing, as just checked.
        unsafe { scatter.put(self.payload(record).add(skip), len) };
        self.release(record);
        *arrived += len;
        Ok(true)
    }

    /// Takes the further records of a long message until it is whole. `None` if its sender took it back.
    fn complete(&mut self, mut assembly: Assembly<'_>, patience: &mut Patience) -> Result<Option<Received>, RecvError> {
        while assembly.missing() > 0 {
            let record = match self.record(patience) {
                Ok(record) => record,
                Err(e @ (RecvError::Empty | RecvError::TimedOut)) => {
                    self.state = State::Partial(assembly.into_partial()?);
                    return Err(e);
                }
                Err(e) => return Err(e),
            };
            match record {
                Some(record) if record.kind == Kind::More => {
                    if record.len == 0 || record.len > assembly.missing() {
                        return Err(self.corrupt());
                    }
                    // SAFETY: the payload lies within the ring, and is not more than is missing, as just checked.
                    let put = unsafe { assembly.put(self.payload(record), record.len) };
                    if let Err(e) = put {
                        self.state = State::Partial(assembly.into_partial()?);
                        return Err(e);
                    }
                    self.release(record);
                    if assembly.missing() > 0 {
                        if let Err(e) = patience.spend(HEADER + record.len) {
                            self.state = State::Partial(assembly.into_partial()?);
                            return Err(e);
                        }
                    }
                }
                Some(record) if record.kind == Kind::Abort => {
                    self.release(record);
                    return Ok(None);
                }
                // The sender is gone, or a copy of its end was killed inside the message and another goes on.
                _ => return Err(RecvError::Cut),
            }
        }
        Ok(Some(assembly.finish().map_or_else(Received::Buffered, Received::Owned)))
    }

    /// Checks a message's length against what the caller allows.
    fn allow(&mut self, len: u64, maxlength: usize) -> Result<(), RecvError> {
        if len <= maxlength as u64 {
            return Ok(());
        }
        self.end();
        Err(RecvError::TooLong { len, max: maxlength })
    }

    fn corrupt(&mut self) -> RecvError {
        self.end();
        RecvError::Corrupt
    }

    /// Receives no more, and lets the sender know by hanging up.
    fn end(&mut self) {
        let hung_up = self.waiter.hang_up();
        self.state = State::Ended { hung_up };
    }

    /// What a receive that comes after the end says.
    fn ended(&mut self, hung_up: bool) -> RecvError {
        if !hung_up {
            self.end();
        }
        RecvError::Ended
    }

    pub(crate) fn recv_until(&mut self, maxlength: usize, deadline: Deadline) -> Result<Vec<u8>, RecvError> {
        match self.receive(None, maxlength, deadline)? {
            Received::InPlace(record) => self.take(record),
            Received::Owned(bytes) => Ok(bytes),
            Received::Buffered(_) => unreachable!("no buffer was given"),
        }
    }

    /// Copies a whole message out and releases its record. If there is no memory for it, it stays.
    fn take(&mut self, record: Record) -> Result<Vec<u8>, RecvError> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(record.len).map_err(|_| RecvError::NoMemory { len: record.len })?;
        // SAFETY: the vector has room for `record.len` bytes, which are written before they count.
        unsafe {
            self.copy_out(record, 0, bytes.as_mut_ptr(), record.len);
            bytes.set_len(record.len);
        }
        self.release(record);
        Ok(bytes)
    }

    #[inline(always)]
    fn recv_into_until(&mut self, buf: &mut [u8], offset: usize, deadline: Deadline) -> Result<usize, RecvIntoError> {
        if let (State::Clean, Some(room)) = (&self.state, buf.get_mut(offset..)) {
            // SAFETY: the pointer and the length are the buffer's.
            if let Some(len) = unsafe { self.reader.take_short(room.as_mut_ptr(), room.len()) } {
                self.released();
                return Ok(len);
            }
        }
        self.recv_into_whole(buf, offset, deadline)
    }

    #[inline(never)]
    fn recv_into_whole(&mut self, buf: &mut [u8], offset: usize, deadline: Deadline) -> Result<usize, RecvIntoError> {
        if let Some(len) = self.take_into(buf, offset) {
            return Ok(len);
        }
        let there = self.glance(deadline);
        match there.then(|| self.take_into(buf, offset)).flatten() {
            Some(len) => Ok(len),
            None => self.recv_into_slow(buf, offset, deadline),
        }
    }

    /// Receives a whole message from a single record, if one is there and fits.
    #[inline(always)]
    fn take_into(&mut self, buf: &mut [u8], offset: usize) -> Option<usize> {
        let (room, record) = (buf.get_mut(offset..)?, self.at_hand()?);
        if record.len > room.len() {
            return None;
        }
        // SAFETY: the message fits in the buffer.
        unsafe { self.copy_out(record, 0, room.as_mut_ptr(), record.len) };
        self.release(record);
        Some(record.len)
    }

    #[inline(never)]
    fn recv_into_slow(&mut self, buf: &mut [u8], offset: usize, deadline: Deadline) -> Result<usize, RecvIntoError> {
        let len = buf.len();
        let buf = buf.get_mut(offset..).ok_or(RecvIntoError::BadOffset { offset, len })?;
        let room = buf.len();
        match self.receive(Some(&mut *buf), usize::MAX, deadline)? {
            Received::Buffered(len) => Ok(len),
            Received::InPlace(record) if record.len <= room => {
                // SAFETY: the message fits in the buffer.
                unsafe { self.copy_out(record, 0, buf.as_mut_ptr(), record.len) };
                self.release(record);
                Ok(record.len)
            }
            Received::InPlace(record) => {
                let message = self.take(record)?;
                Err(RecvIntoError::TooShort(BufferTooShort { message, room }))
            }
            Received::Owned(message) => Err(RecvIntoError::TooShort(BufferTooShort { message, room })),
        }
    }

    fn recv_batch_until(&mut self, batch: &mut Batch, deadline: Deadline) -> Result<(), RecvError> {
        batch.clear();
        match self.receive(None, usize::MAX, deadline)? {
            Received::InPlace(record) => {
                if !batch.take_run(record_len(record.len), |out, most| self.reader.take_run(record, out, most)) {
                    return Err(RecvError::NoMemory { len: record.len });
                }
                if batch.is_empty() {
                    // It was there just now, and only somebody who does not keep to the rules can have changed it.
                    return Err(self.corrupt());
                }
                self.released();
                if batch.len() >= LONG_BATCH {
                    self.check_distance();
                }
            }
            Received::Owned(message) => batch.take_one(message),
            Received::Buffered(_) => unreachable!("no buffer was given"),
        }
        Ok(())
    }

    #[inline(always)]
    fn recv_guard_until(&mut self, deadline: Deadline) -> Result<ReadGuard<'_>, RecvError> {
        match self.at_hand() {
            Some(record) => Ok(ReadGuard::new(self, Message::InPlace(record))),
            None => self.recv_guard_slow(deadline),
        }
    }

    #[inline(never)]
    fn recv_guard_slow(&mut self, deadline: Deadline) -> Result<ReadGuard<'_>, RecvError> {
        if let Some(record) = self.glance(deadline).then(|| self.at_hand()).flatten() {
            return Ok(ReadGuard::new(self, Message::InPlace(record)));
        }
        let message = match self.receive(None, usize::MAX, deadline)? {
            Received::InPlace(record) => Message::InPlace(record),
            Received::Owned(bytes) => Message::Owned(bytes),
            Received::Buffered(_) => unreachable!("no buffer was given"),
        };
        Ok(ReadGuard::new(self, message))
    }

    /// Only looks: another copy of the end, in another process, may be receiving meanwhile.
    fn poll_until(&mut self, deadline: Deadline) -> Result<(), RecvError> {
        match self.state {
            State::Ended { hung_up } => return Err(self.ended(hung_up)),
            State::Corrupt => return Err(self.corrupt()),
            State::Clean | State::Partial(_) => {}
        }
        let reader = &self.reader;
        if reader.has_something() {
            return Ok(());
        }
        match self.waiter.wait(deadline, || reader.has_something()) {
            Wake::Ready => Ok(()),
            Wake::Gone => Err(RecvError::Disconnected),
            Wake::TimedOut => Err(nothing(deadline)),
        }
    }

    /// The frame of the pipe end that comes next, and its descriptors.
    pub(crate) fn recv_announcement<const LEN: usize>(
        &mut self,
        id: impl Fn(&[u8; LEN]) -> u64,
        deadline: Deadline,
    ) -> Result<([u8; LEN], Vec<OwnedFd>), RecvError> {
        match self.state {
            State::Ended { hung_up } => return Err(self.ended(hung_up)),
            State::Corrupt => return Err(self.corrupt()),
            State::Partial(_) => return Err(RecvError::IsBytes),
            State::Clean => {}
        }
        let mut patience = self.patience(deadline);
        let record = self.start(&mut patience)?;
        if record.kind != Kind::End {
            return Err(RecvError::IsBytes);
        }
        if record.len != LEN {
            return Err(self.corrupt());
        }
        let mut frame = [0; LEN];
        // SAFETY: the payload is as long as the frame.
        unsafe { self.copy_out(record, 0, frame.as_mut_ptr(), LEN) };
        let fds = self.waiter.bell.take_carried(id(&frame));
        self.release(record);
        Ok((frame, fds.map_err(AttachError::Io)?.ok_or(RecvError::Cut)?))
    }

    /// The bell, for who waits for this end among others.
    pub(crate) fn hearing(&self) -> &Bell {
        &self.waiter.bell
    }

    /// The bell, for handing this end on.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.waiter.bell.fd()
    }
}

/// For who must not wait, but be told when to go on.
#[cfg(feature = "tokio")]
impl Receiver {
    /// What there is to wait with, and whether a `try_` form would get on; or, if it is only to look, `poll` would.
    pub(crate) fn waiting(&mut self, looks: bool) -> (&mut Waiter, impl FnMut() -> bool) {
        let (reader, over) = (&self.reader, matches!(self.state, State::Corrupt | State::Ended { .. }));
        (&mut self.waiter, move || over || if looks { reader.has_something() } else { !reader.is_empty() })
    }

    /// As [`try_recv_bytes_into`](Self::try_recv_bytes_into), but for a long message. That is put together in memory of its own, where a call that goes on
    /// with it finds it: to and from the buffer, each call would copy all that has arrived.
    pub(crate) fn try_recv_into_once_whole(&mut self, buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError> {
        if let Some(len) = self.take_into(buf, offset) {
            return Ok(len);
        }
        let len = buf.len();
        let buf = buf.get_mut(offset..).ok_or(RecvIntoError::BadOffset { offset, len })?;
        let (message, room) = (self.try_recv_bytes()?, buf.len());
        match buf.get_mut(..message.len()) {
            Some(buf) => buf.copy_from_slice(&message),
            None => return Err(RecvIntoError::TooShort(BufferTooShort { message, room })),
        }
        Ok(message.len())
    }

    /// Whether receiving has ended after an error.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    /// Tells the sender once more that receiving has ended, for when a copy of the bell was open until now.
    pub(crate) fn end_again(&mut self) {
        self.end();
    }
}

impl AsFd for Receiver {
    /// A descriptor that is readable whenever something can be received or the sender is gone, for `poll`, `select`, `epoll` and the
    /// like. Level-triggered. Only to be watched: never read from it.
    ///
    /// From the first call on, the end takes care after every receive that the descriptor is not readable while there is
    /// nothing to receive, which takes a few system calls each time the ring runs empty. Rarely it is so all the same, until the next receive or
    /// [`poll`](Receiver::poll): where a long message was taken back, a copy of this end in another process received, or a sender was stopped for long just as it rang.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiter.bell.watch(|| self.reader.has_something())
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ended { .. } | State::Corrupt => "ended",
            State::Partial(_) => "inside a message",
            State::Clean => self.waiter.bell.state(),
        };
        f.debug_struct("Receiver")
            .field("capacity", &self.capacity())
            .field("fill", &self.fill())
            .field("state", &state)
            .finish()
    }
}

/// Messages one by one; made by [`Receiver::iter`] and [`Receiver::try_iter`].
///
/// Ends at end of file (or when nothing is there, for `try_iter`), and after an error that ends receiving, a pipe end in the way, or want of
/// memory.
#[derive(Debug)]
pub struct Iter<'a> {
    receiver: &'a mut Receiver,
    deadline: Deadline,
    over: bool,
}

impl Iterator for Iter<'_> {
    type Item = Result<Vec<u8>, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let result = self.receiver.recv_until(usize::MAX, self.deadline);
        // An end in the way stays there, and so does a message that there is no memory for, so there is no going on.
        self.over = matches!(result, Err(RecvError::IsEnd | RecvError::NoMemory { .. }));
        match result {
            Err(RecvError::Disconnected | RecvError::Empty | RecvError::Ended) => None,
            result => Some(result),
        }
    }
}
