//! The sending end of one direction.

use std::fmt;
use std::io::IoSlice;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::SendBatch;
use crate::copy::copy_in;
use crate::deadline::Deadline;
use crate::error::SendError;
use crate::gather::{Gather, total};
use crate::ring::spsc::{Claim, Run, Writer};
use crate::ring::{Data, HEADER, Kind, SPARE, record_len};
use crate::segment::Segment;
use crate::sync::{AsFd, BorrowedFd, OwnedFd};
use crate::wait::{Waiter, Wake};

/// The sending end of a pipe.
///
/// Made by [`simplex`](crate::simplex) or [`Connection::split`](crate::Connection::split). Dropping it closes it; the
/// receiver gets end of file when every copy (children made by `fork` have copies) is closed and everything sent
/// has been received.
///
/// Every `send_*` takes one whole message of any length, zero included. The plain forms wait for room; `try_` forms do not
/// wait; `_timeout` and `_deadline` forms wait so long. An error means that nothing was sent.
///
/// One process at a time may use an end: copies made by `fork` need a lock of the user's, as with a kernel pipe and large
/// messages. Within a process the borrow checker sees to it.
///
/// ```
/// let (mut receiver, mut sender) = ringpipe::simplex()?;
/// sender.send_bytes(b"hello")?;
/// assert_eq!(receiver.recv_bytes()?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sender {
    writer: Writer,
    pub(crate) waiter: Waiter,
    #[cfg(feature = "serde")]
    pub(crate) scratch: Vec<u8>,
    // Last: what is above points into it.
    pub(crate) segment: Arc<Segment>,
    pub(crate) direction: usize,
}

/// How far a message got that [`Sender::send_bytes_part`] sends, or [`Receiver::recv_vectored_part`](crate::Receiver::recv_vectored_part) receives.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that have left their place.
    pub(crate) bytes: usize,
}

impl Progress {
    /// Bytes of the message that have been sent, or received.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// So much of a long message is sent between two looks at the clock, at most. More than the largest chunk.
const PIECE: usize = 1 << 20;

/// What a send that found no room in time returns.
pub(crate) fn no_room(deadline: Deadline) -> SendError {
    if deadline.is_now() { SendError::Full } else { SendError::TimedOut }
}

impl Sender {
    pub(crate) fn new(segment: Arc<Segment>, direction: usize, bell: OwnedFd) -> Sender {
        let geometry = segment.geometry();
        let control = segment.control(direction);
        // SAFETY: the ring is `capacity` bytes in a page-aligned mapping that `segment` keeps alive for
        // longer than the writer.
        let data = unsafe { Data::new(segment.ring(direction), geometry.capacity) };
        // SAFETY: the control block, all atomics, is kept alive by `segment` likewise.
        let (writer, words) = unsafe { (Writer::new(control, data), control.as_ref()) };
        let (mine, theirs) = (NonNull::from(&words.not_full.0), NonNull::from(&words.not_empty.0));
        // SAFETY: the seats lie in the control block; `segment` is dropped after the waiter.
        let waiter = unsafe { Waiter::new(mine, theirs, bell, true, geometry.spin_micros) };
        Sender {
            writer,
            waiter,
            #[cfg(feature = "serde")]
            scratch: Vec::new(),
            segment,
            direction,
        }
    }

    /// Sends one message, waiting for room as long as it takes. Follows `Connection.send_bytes`.
    ///
    /// Messages longer than a quarter of the capacity are streamed: the receiver copies out while this side
    /// still copies in, so they may be longer than the ring.
    ///
    /// # Errors
    ///
    /// [`SendError::Disconnected`] if the receiver is gone. A receiver that was killed is noticed when the ring is full at the
    /// latest; one that closed its end, at once.
    #[inline]
    pub fn send_bytes(&mut self, message: &[u8]) -> Result<(), SendError> {
        if self.push(message) { Ok(()) } else { self.send_whole(message, Deadline::NEVER) }
    }

    /// Sends one message if there is room for all of it right now.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`]; [`SendError::TooLong`] where even an empty ring has no room; [`SendError::Disconnected`].
    #[inline]
    pub fn try_send_bytes(&mut self, message: &[u8]) -> Result<(), SendError> {
        if self.push(message) { Ok(()) } else { self.send_whole(message, Deadline::NOW) }
    }

    /// Sends one message, waiting for room for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendError::TimedOut`], after which nothing of the message has been sent; [`SendError::Disconnected`].
    pub fn send_bytes_timeout(&mut self, message: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.send_parts(&[IoSlice::new(message)], message.len(), Deadline::after(timeout))
    }

    /// Sends one message, waiting for room until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_bytes_deadline(&mut self, message: &[u8], deadline: Instant) -> Result<(), SendError> {
        self.send_parts(&[IoSlice::new(message)], message.len(), Deadline::instant(deadline))
    }

    /// Sends one message as far as it gets in `timeout`; to be called again, with the same arguments, as long as it times out. For callers that have
    /// other things to look after meanwhile: however long the message is, and however slow its receiver, it gets on.
    ///
    /// Nothing else may be sent in between, or the receiver loses the message ([`RecvError::Cut`](crate::RecvError::Cut)); to give it up, there is
    /// [`take_back`](Self::take_back). `progress` is what [`Progress::default`] gives at first, and again when the message has been sent or taken back.
    ///
    /// ```
    /// # use ringpipe::{Progress, SendError};
    /// # use std::time::Duration;
    /// # let (mut receiver, mut sender) = ringpipe::Builder::new().capacity(4096).simplex()?;
    /// # let reading = std::thread::spawn(move || receiver.recv_bytes());
    /// let (message, mut progress) = (vec![7; 100_000], Progress::default());
    /// while let Err(e) = sender.send_bytes_part(&message, &mut progress, Duration::from_millis(1)) {
    ///     match e {
    ///         SendError::TimedOut => println!("still waiting for room"),
    ///         e => return Err(e.into()),
    ///     }
    /// }
    /// # assert_eq!(reading.join().unwrap()?, message);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError::TimedOut`], after which a part of a message longer than a quarter of the capacity may have been sent, and nothing of a shorter one;
    /// [`SendError::Disconnected`].
    ///
    /// # Panics
    ///
    /// If `progress` is seen to be that of another message.
    pub fn send_bytes_part(
        &mut self,
        message: &[u8],
        progress: &mut Progress,
        timeout: Duration,
    ) -> Result<(), SendError> {
        self.send_vectored_part(&[IoSlice::new(message)], progress, timeout)
    }

    /// As [`send_bytes_part`](Self::send_bytes_part), of a message that is gathered from several buffers, in order.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_part`](Self::send_bytes_part), and [`SendError::TooLong`].
    ///
    /// # Panics
    ///
    /// As [`send_bytes_part`](Self::send_bytes_part).
    pub fn send_vectored_part(
        &mut self,
        parts: &[IoSlice<'_>],
        progress: &mut Progress,
        timeout: Duration,
    ) -> Result<(), SendError> {
        let len = total(parts)?;
        assert!(progress.bytes < len.max(1), "progress of another message");
        if len <= self.max_reserve() {
            assert_eq!(progress.bytes, 0, "progress of another message");
            return self.send_vectored_timeout(parts, timeout);
        }
        if self.waiter.bell.is_gone() {
            return Err(SendError::Disconnected);
        }
        let deadline = Deadline::after(timeout);
        let mut gather = Gather::new(parts);
        gather.skip(progress.bytes);
        loop {
            // A piece at a time, so that the clock is looked at also where nothing has to be waited for.
            let (end, sent) = (len.min(progress.bytes + PIECE), &mut progress.bytes);
            self.stream_parts(&mut gather, len, sent, end, deadline)?;
            if progress.bytes == len {
                // So that it can be used for the next one.
                *progress = Progress::default();
                return Ok(());
            }
            if deadline.passed() {
                return Err(no_room(deadline));
            }
        }
    }

    /// Takes back the part of a message that [`send_bytes_part`](Self::send_bytes_part) has sent: nothing of it arrives. There is always room for that.
    pub fn take_back(&mut self, progress: &mut Progress) {
        if std::mem::take(progress).bytes > 0 {
            self.retract();
        }
    }

    /// Takes back what has been sent of a long message.
    pub(crate) fn retract(&mut self) {
        self.writer.abort();
        self.waiter.notify(|| !self.writer.is_drained());
    }

    /// Opens a batch: messages that are pushed to it are sent together, some at a time. Many short ones in a row take down to half as long so.
    ///
    /// ```
    /// # let (mut receiver, mut sender) = ringpipe::simplex()?;
    /// let mut batch = sender.batch();
    /// for number in 0..100_u32 {
    ///     batch.push(&number.to_le_bytes())?;
    /// }
    /// drop(batch);
    /// assert_eq!(receiver.recv_bytes()?, [0; 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn batch(&mut self) -> SendBatch<'_> {
        SendBatch::new(self)
    }

    /// Sends many messages, in order, each of which arrives by itself. Waits for room. The same as a [`batch`](Self::batch) of them.
    ///
    /// Short messages are published some together: all of them are there at once, or none. [`Receiver::recv_batch`](crate::Receiver::recv_batch)
    /// is for the other side, which need not use it.
    ///
    /// # Errors
    ///
    /// As [`send_bytes`](Self::send_bytes): the receiver is gone, and what it has received of the messages is not known.
    #[inline]
    pub fn send_batch<I: IntoIterator<Item: AsRef<[u8]>>>(&mut self, messages: I) -> Result<(), SendError> {
        let mut batch = self.batch();
        for message in messages {
            batch.push(message.as_ref())?;
        }
        Ok(())
    }

    /// As [`send_batch`](Self::send_batch), as many as there is room for right now. Returns how many.
    ///
    /// # Errors
    ///
    /// As [`try_send_bytes`](Self::try_send_bytes), if that was none.
    pub fn try_send_batch<M: AsRef<[u8]>>(&mut self, messages: &[M]) -> Result<usize, SendError> {
        let mut sent = 0;
        while sent < messages.len() {
            let mut run = match self.begin_run() {
                Ok(run) => run,
                Err(e) if sent == 0 => return Err(e),
                Err(_) => break,
            };
            sent +=
                messages[sent..].iter().take_while(|message| self.writer.append(&mut run, message.as_ref())).count();
            self.finish_run(run);
            if let Some(message) = messages.get(sent) {
                match self.try_send_bytes(message.as_ref()) {
                    Ok(()) => sent += 1,
                    Err(e) if sent == 0 => return Err(e),
                    Err(_) => break,
                }
            }
        }
        Ok(sent)
    }

    /// Sends one message that is gathered from several buffers, in order. Waits for room.
    ///
    /// # Errors
    ///
    /// As [`send_bytes`](Self::send_bytes).
    pub fn send_vectored(&mut self, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        self.send_parts(parts, total(parts)?, Deadline::NEVER)
    }

    /// As [`send_vectored`](Self::send_vectored), without waiting.
    ///
    /// # Errors
    ///
    /// As [`try_send_bytes`](Self::try_send_bytes).
    pub fn try_send_vectored(&mut self, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        self.send_parts(parts, total(parts)?, Deadline::NOW)
    }

    /// As [`send_vectored`](Self::send_vectored), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_vectored_timeout(&mut self, parts: &[IoSlice<'_>], timeout: Duration) -> Result<(), SendError> {
        self.send_parts(parts, total(parts)?, Deadline::after(timeout))
    }

    /// As [`send_vectored`](Self::send_vectored), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_vectored_deadline(&mut self, parts: &[IoSlice<'_>], deadline: Instant) -> Result<(), SendError> {
        self.send_parts(parts, total(parts)?, Deadline::instant(deadline))
    }

    /// Takes room for a message of `len` bytes in the ring itself, to be written in place. Waits for room.
    ///
    /// ```
    /// # let (mut receiver, mut sender) = ringpipe::simplex()?;
    /// let mut slot = sender.reserve(4)?;
    /// slot.write(b"abc");
    /// slot.write(b"d");
    /// slot.commit()?;
    /// assert_eq!(receiver.recv_bytes()?, b"abcd");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError::TooLong`] above [`max_reserve`](Self::max_reserve); [`SendError::Disconnected`].
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Result<WriteGuard<'_>, SendError> {
        self.reserve_until(len, Deadline::NEVER)
    }

    /// As [`reserve`](Self::reserve), without waiting.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve), and [`SendError::Full`].
    #[inline]
    pub fn try_reserve(&mut self, len: usize) -> Result<WriteGuard<'_>, SendError> {
        self.reserve_until(len, Deadline::NOW)
    }

    /// As [`reserve`](Self::reserve), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve), and [`SendError::TimedOut`].
    pub fn reserve_timeout(&mut self, len: usize, timeout: Duration) -> Result<WriteGuard<'_>, SendError> {
        self.reserve_until(len, Deadline::after(timeout))
    }

    /// As [`reserve`](Self::reserve), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve), and [`SendError::TimedOut`].
    pub fn reserve_deadline(&mut self, len: usize, deadline: Instant) -> Result<WriteGuard<'_>, SendError> {
        self.reserve_until(len, Deadline::instant(deadline))
    }

    /// The most bytes that [`reserve`](Self::reserve) gives at once: a quarter of the capacity, less 8.
    pub fn max_reserve(&self) -> usize {
        self.writer.data().max_payload()
    }

    /// Whether every copy of the receiving end is closed. Asks the kernel, so a receiver that was killed counts at once.
    ///
    /// Also what to call when this end's descriptor is readable, in an event loop: it leaves it silent unless that is so. A use of the end
    /// like any other: a copy in another process that waits for room meanwhile may be woken up to a second late.
    pub fn is_disconnected(&mut self) -> bool {
        self.waiter.hears_death()
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> usize {
        self.writer.data().capacity()
    }

    /// Bytes of the ring that hold messages, each with 8 bytes of header and padded to 8; a snapshot.
    pub fn fill(&self) -> usize {
        self.writer.fill()
    }

    /// Closes this copy of the end; the same as dropping it.
    pub fn close(self) {}

    // --- the parts --------------------------------------------------------------------------------

    fn begin_run(&mut self) -> Result<Run, SendError> {
        if self.waiter.bell.is_gone() {
            return Err(SendError::Disconnected);
        }
        Ok(self.writer.begin_run())
    }

    /// Writes a message behind the others of a run. False if it does not fit there.
    #[inline(always)]
    pub(crate) fn append(&self, run: &mut Run, message: &[u8]) -> bool {
        self.writer.append(run, message)
    }

    /// Sends a run, and then a message for which there was no place in it: in another one, which is returned, or by itself.
    #[cold]
    #[inline(never)]
    pub(crate) fn append_behind(&mut self, run: Run, message: &[u8]) -> Result<Run, SendError> {
        self.finish_run(run);
        let mut run = self.begin_run()?;
        if !self.append(&mut run, message) {
            // It is to be waited for, or not as short as that.
            self.send_bytes(message)?;
            // This one is sent, whatever has become of the receiver since.
            run = self.begin_run().unwrap_or(Run::NONE);
        }
        Ok(run)
    }

    pub(crate) fn finish_run(&mut self, run: Run) {
        if self.writer.publish_run(run) {
            self.announce();
        }
    }

    /// The fast path: sends a short message, unless there is anything out of the ordinary.
    #[inline(always)]
    fn push(&mut self, message: &[u8]) -> bool {
        let sent = !self.waiter.bell.may_be_gone() && self.writer.put_short(message);
        if sent {
            self.announce();
        }
        sent
    }

    #[inline(never)]
    fn send_whole(&mut self, message: &[u8], deadline: Deadline) -> Result<(), SendError> {
        if self.waiter.bell.is_gone() {
            return Err(SendError::Disconnected);
        }
        if message.len() <= self.writer.data().max_payload() {
            if let Some(claim) = self.writer.claim(message.len()) {
                // SAFETY: the claim is for as many bytes as the message has; the ring never overlaps a caller's slice.
                unsafe { copy_in(message, self.writer.payload(claim)) };
                self.finish(claim, Kind::Data, message.len());
                return Ok(());
            }
        }
        self.send_slow(&[IoSlice::new(message)], message.len(), deadline)
    }

    /// The only way out, but for [`push`](Self::push): publishes, and wakes the receiver. Whether the receiver lives was asked before: from here on the message is
    /// sent, even if it was the last that the receiver took.
    #[inline(always)]
    fn finish(&mut self, claim: Claim, kind: Kind, len: usize) {
        self.writer.publish(claim, kind, len);
        self.announce();
    }

    #[inline(always)]
    fn announce(&mut self) {
        self.waiter.note_success();
        self.waiter.notify(|| !self.writer.is_drained());
    }

    fn send_parts(&mut self, parts: &[IoSlice<'_>], len: usize, deadline: Deadline) -> Result<(), SendError> {
        if self.waiter.bell.is_gone() {
            return Err(SendError::Disconnected);
        }
        self.send_slow(parts, len, deadline)
    }

    #[inline(never)]
    fn send_slow(&mut self, parts: &[IoSlice<'_>], len: usize, deadline: Deadline) -> Result<(), SendError> {
        let mut gather = Gather::new(parts);
        if len > self.writer.data().max_payload() {
            return self.stream(gather, len, deadline);
        }
        let claim = self.claim(len, deadline)?;
        // SAFETY: the claim is for `len` bytes, all that the parts have.
        unsafe { gather.copy_to(self.writer.payload(claim), len) };
        self.finish(claim, Kind::Data, len);
        Ok(())
    }

    /// Room for one record, waiting for it.
    fn claim(&mut self, len: usize, deadline: Deadline) -> Result<Claim, SendError> {
        for turn in 0_u64.. {
            if let Some(claim) = self.writer.claim(len) {
                return Ok(claim);
            }
            // A peer that plays with the cursors must not hold a call beyond its deadline.
            if turn > 8 && deadline.passed() {
                break;
            }
            let (writer, half) = (&self.writer, self.writer.data().capacity() / 2);
            let enough = record_len(len) + SPARE;
            if !deadline.is_immediate() {
                // Every look at the reader's cursor takes its line away, so wait for a good stretch while it moves.
                let mut last = 0;
                self.waiter.let_it_run(|| {
                    let room = writer.room();
                    let stalled = room == std::mem::replace(&mut last, room);
                    stalled || room >= half
                });
            }
            let wake = self.waiter.wait(deadline, || writer.room() >= enough);
            match wake {
                Wake::Ready => {}
                Wake::Gone => return Err(SendError::Disconnected),
                Wake::TimedOut => break,
            }
        }
        self.writer.claim(len).ok_or_else(|| no_room(deadline))
    }

    /// A message too long for one record: sent in parts, received while it is being sent.
    fn stream(&mut self, mut gather: Gather<'_>, len: usize, deadline: Deadline) -> Result<(), SendError> {
        if deadline.is_immediate() {
            self.room_for_stream(len, self.writer.data().stream_chunk(), deadline)?;
        }
        let mut sent = 0;
        let result = self.stream_parts(&mut gather, len, &mut sent, len, deadline);
        if sent > 0 && matches!(result, Err(SendError::Full | SendError::TimedOut)) {
            self.retract();
        }
        result
    }

    /// The parts of a long message of `len` bytes, of which `sent` have been sent and `gather` has the others, as far as `end`, or a little further. They stay sent if time
    /// runs out.
    fn stream_parts(
        &mut self,
        gather: &mut Gather<'_>,
        len: usize,
        sent: &mut usize,
        end: usize,
        deadline: Deadline,
    ) -> Result<(), SendError> {
        while *sent < end {
            if *sent > 0 && self.waiter.bell.is_gone() {
                return Err(SendError::Disconnected);
            }
            let left = len - *sent;
            let claim = self.claim(self.part_len(len, left), deadline)?;
            *sent += self.put_part(claim, gather, len, left);
        }
        Ok(())
    }

    /// Bytes in the record that comes next in a long message of `len` bytes, of which `left` have not been sent.
    fn part_len(&self, len: usize, left: usize) -> usize {
        let chunk = self.writer.data().stream_chunk();
        // The first carries the total as well, and is never the last.
        if left == len { chunk } else { left.min(chunk) }
    }

    /// Sends that record, into a claim of [`part_len`](Self::part_len). Returns how many bytes of the message are in it.
    fn put_part(&mut self, claim: Claim, gather: &mut Gather<'_>, len: usize, left: usize) -> usize {
        let part = self.part_len(len, left);
        let total = (len as u64).to_le_bytes();
        let (kind, before) = if left == len { (Kind::First, total.len()) } else { (Kind::More, 0) };
        let payload = self.writer.payload(claim);
        // SAFETY: the claim is for `part` bytes: the total, if it is the first, and bytes of the message, which has as many left.
        unsafe {
            copy_in(&total[..before], payload);
            gather.copy_to(payload.add(before), part - before);
        }
        self.finish(claim, kind, part);
        part - before
    }

    /// Whether a long message, with all its headers, fits in the ring without waiting.
    fn room_for_stream(&mut self, len: usize, chunk: usize, deadline: Deadline) -> Result<(), SendError> {
        let capacity = self.capacity();
        // One header a part, the total, one padding at the end of the ring, and the spare.
        let overhead = |len: usize| (len / chunk + 2) * HEADER + 8 + chunk + 2 * SPARE;
        let max = capacity - overhead(capacity);
        if len > max && deadline.is_now() {
            return Err(SendError::TooLong { len, max });
        }
        if len <= max && self.writer.room() >= len + overhead(len) {
            return Ok(());
        }
        if self.waiter.bell.ask() { Err(SendError::Disconnected) } else { Err(no_room(deadline)) }
    }

    #[inline(always)]
    fn reserve_until(&mut self, len: usize, deadline: Deadline) -> Result<WriteGuard<'_>, SendError> {
        let at_hand = len <= self.max_reserve() && !self.waiter.bell.may_be_gone();
        let claim = match at_hand.then(|| self.writer.claim_at_hand(len)).flatten() {
            Some(claim) => claim,
            None => self.claim_for_reserve(len, deadline)?,
        };
        Ok(WriteGuard { sender: self, claim, len, written: 0 })
    }

    #[inline(never)]
    fn claim_for_reserve(&mut self, len: usize, deadline: Deadline) -> Result<Claim, SendError> {
        let max = self.max_reserve();
        if len > max {
            return Err(SendError::TooLong { len, max });
        }
        if self.waiter.bell.is_gone() {
            return Err(SendError::Disconnected);
        }
        self.claim(len, deadline)
    }

    /// Sends a pipe end in its place among the messages: its descriptors over the bell, then a record that says so.
    pub(crate) fn send_announcement(
        &mut self,
        frame: &[u8],
        id: u64,
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), SendError> {
        if self.waiter.bell.is_gone() {
            return Err(SendError::Disconnected);
        }
        let claim = self.claim(frame.len(), deadline)?;
        // SAFETY: the claim is for as many bytes as the frame has.
        unsafe { copy_in(frame, self.writer.payload(claim)) };
        self.waiter.bell.carry(id, fds, deadline).map_err(|e| match e.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => SendError::Disconnected,
            // The socket is full of ends that nobody has received.
            std::io::ErrorKind::WouldBlock => no_room(deadline),
            _ => SendError::Io(e),
        })?;
        self.finish(claim, Kind::End, frame.len());
        Ok(())
    }
}

/// For who must not wait, but be told when to go on.
#[cfg(feature = "tokio")]
impl Sender {
    /// Sends what there is room for of a message of which `sent` bytes have been sent, at most a ring of it. True once that is all of it. Neither waits nor asks
    /// the kernel.
    pub(crate) fn send_some(&mut self, message: &[u8], sent: &mut usize) -> Result<bool, SendError> {
        if *sent == 0 && self.push(message) {
            return Ok(true);
        }
        if self.waiter.bell.is_gone() {
            return Err(SendError::Disconnected);
        }
        let len = message.len();
        if len <= self.max_reserve() {
            let Some(claim) = self.writer.claim(len) else { return Ok(false) };
            // SAFETY: the claim is for as many bytes as the message has; the ring never overlaps a caller's slice.
            unsafe { copy_in(message, self.writer.payload(claim)) };
            self.finish(claim, Kind::Data, len);
            return Ok(true);
        }
        let rest = [IoSlice::new(&message[*sent..])];
        let (mut gather, end) = (Gather::new(&rest), len.min(*sent + self.capacity()));
        while *sent < end {
            let left = len - *sent;
            let Some(claim) = self.writer.claim(self.part_len(len, left)) else { break };
            *sent += self.put_part(claim, &mut gather, len, left);
        }
        Ok(*sent == len)
    }

    /// What there is to wait with for room for the next record of such a message, and whether it is there.
    pub(crate) fn waiting(&mut self, len: usize, sent: usize) -> (&mut Waiter, impl FnMut() -> bool) {
        let next = if len <= self.max_reserve() { len } else { self.part_len(len, len - sent) };
        let (writer, enough) = (&self.writer, record_len(next) + SPARE);
        (&mut self.waiter, move || writer.room() >= enough)
    }
}

impl AsFd for Sender {
    /// A descriptor that is readable when every copy of the receiving end is closed. It may rarely be readable for nothing, until
    /// [`is_disconnected`](Sender::is_disconnected) is asked: where a receiver was stopped just as it rang for room, or waits for it were mixed by several copies.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiter.bell.fd()
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("capacity", &self.capacity())
            .field("fill", &self.fill())
            .field("state", &self.waiter.bell.state())
            .finish()
    }
}

/// Room for one message in the ring, to be written in place.
///
/// Nothing is sent before [`commit`](Self::commit); dropping the guard gives the room back.
///
/// The memory is shared with the receiver, which may be faulty or hostile, so there is no safe way to a slice of it:
/// [`write`](Self::write) copies, and [`as_uninit`](Self::as_uninit) is for those who know their peer.
#[must_use = "nothing is sent unless the guard is committed"]
pub struct WriteGuard<'a> {
    sender: &'a mut Sender,
    claim: Claim,
    len: usize,
    written: usize,
}

impl WriteGuard<'_> {
    /// Bytes reserved.
    #[allow(clippy::len_without_is_empty, reason = "a reservation is not a collection")]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes written so far by [`write`](Self::write) or vouched for by [`assume_written`](Self::assume_written).
    #[inline]
    pub fn written(&self) -> usize {
        self.written
    }

    /// Appends bytes.
    ///
    /// # Panics
    ///
    /// If more bytes are written than were reserved.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) {
        let room = self.len - self.written;
        assert!(bytes.len() <= room, "{} bytes written where {room} of {} were left", bytes.len(), self.len);
        // SAFETY: the claim is for `len` bytes, of which `written` are taken.
        unsafe { copy_in(bytes, self.sender.writer.payload(self.claim).add(self.written)) };
        self.written += bytes.len();
    }

    /// The reserved memory itself, for writing in place; say with [`assume_written`](Self::assume_written) how much was.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, no other process may write to this part of the ring. A peer that follows the protocol
    /// does not; one that is hostile may, so it takes a peer that the caller vouches for.
    #[inline]
    pub unsafe fn as_uninit(&mut self) -> &mut [std::mem::MaybeUninit<u8>] {
        let start = self.sender.writer.payload(self.claim).cast().as_ptr();
        // SAFETY: the claim is for `len` bytes that nobody else writes, by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }

    /// Says that the first `written` bytes have been written, through [`as_uninit`](Self::as_uninit) or otherwise.
    ///
    /// Not unsafe: what was not written is whatever an earlier message left there.
    ///
    /// # Panics
    ///
    /// If that is more than was reserved.
    #[inline]
    pub fn assume_written(&mut self, written: usize) {
        assert!(written <= self.len, "{written} bytes written where {} were reserved", self.len);
        self.written = written;
    }

    /// Sends what was written as one message: shorter than was reserved is fine.
    ///
    /// # Errors
    ///
    /// [`SendError::Disconnected`] if the receiver is gone.
    #[inline]
    pub fn commit(self) -> Result<(), SendError> {
        if self.sender.waiter.bell.is_gone() {
            return Err(SendError::Disconnected);
        }
        self.sender.finish(self.claim, Kind::Data, self.written);
        Ok(())
    }
}

impl fmt::Debug for WriteGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteGuard").field("len", &self.len).field("written", &self.written).finish()
    }
}
