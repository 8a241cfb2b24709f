//! The receiving end for many.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, slice};

use super::side::{ForMessage, Role, Side};
use crate::bell::Bell;
use crate::copy::copy;
use crate::crowd::{Sight, Sought};
use crate::deadline::Deadline;
use crate::error::{AttachError, BufferTooShort, RecvError, RecvIntoError};
use crate::receiver::nothing;
use crate::ring::mpmc::{Front, Held, Message, Owner};
use crate::segment::Segment;
use crate::sync::{AsFd, BorrowedFd, OwnedFd};
use crate::sys;
use crate::wait::Wake;

/// A receiving end of a pipe for many.
///
/// Made by [`simplex`](super::simplex) or [`Builder::mpmc`](crate::Builder::mpmc); [`Clone`] makes more of them for this process, and
/// [`End`](crate::End) hands them to others. Senders get a broken pipe when every copy in every process is closed.
///
/// The forms of receiving are those of [`crate::Receiver`], which says more about them. Each message is received by exactly one of all receivers. All can
/// be called by any number of threads at the same time.
pub struct Receiver {
    side: Arc<Side>,
    /// After an error that ends receiving, for this handle.
    ended: AtomicBool,
    /// Messages received in a row without having to wait.
    run: AtomicU32,
}

/// How often something else than a message is come by before the clock is looked at: a bound against hostile peers only.
const TRIES: u64 = 64;

/// Every so many messages a reader makes sure that it is not so close behind the writers, in bytes, that it takes lines away while they are
/// being written.
const DISTANCE_CHECK: u32 = 64;
const TOO_CLOSE: usize = 4096;

/// A message that has been taken, with its length.
#[derive(Clone, Copy)]
struct Taken {
    held: Held,
    len: usize,
}

impl Receiver {
    pub(crate) fn attach(segment: Arc<Segment>, bell: OwnedFd) -> std::io::Result<Receiver> {
        let side = Arc::new(Side::new(segment, Role::Receiver, bell)?);
        Ok(Receiver::of(side))
    }

    fn of(side: Arc<Side>) -> Receiver {
        Receiver { side, ended: AtomicBool::new(false), run: AtomicU32::new(0) }
    }

    /// Receives one message, waiting for it as long as it takes.
    ///
    /// # Errors
    ///
    /// [`RecvError::Disconnected`] at end of file; [`RecvError::Corrupt`], [`RecvError::NoMemory`] and [`RecvError::Ended`] as described there;
    /// [`RecvError::Attach`] in a forked child that cannot take part.
    pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_until(usize::MAX, Deadline::NEVER)
    }

    /// As [`recv_bytes`](Self::recv_bytes), if a message is there right now.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes`](Self::recv_bytes), and [`RecvError::Empty`].
    pub fn try_recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_until(usize::MAX, Deadline::NOW)
    }

    /// As [`recv_bytes`](Self::recv_bytes), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes`](Self::recv_bytes), and [`RecvError::TimedOut`].
    pub fn recv_bytes_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        self.recv_until(usize::MAX, Deadline::after(timeout))
    }

    /// As [`recv_bytes`](Self::recv_bytes), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_timeout`](Self::recv_bytes_timeout).
    pub fn recv_bytes_deadline(&self, deadline: Instant) -> Result<Vec<u8>, RecvError> {
        self.recv_until(usize::MAX, Deadline::instant(deadline))
    }

    /// Receives one message of at most `maxlength` bytes, waiting for it.
    ///
    /// # Errors
    ///
    /// [`RecvError::TooLong`] if the next message is longer: this handle receives no more. The message stays first, for other handles: one that
    /// is too long for all ends them all. Otherwise as [`recv_bytes`](Self::recv_bytes).
    pub fn recv_bytes_max(&self, maxlength: usize) -> Result<Vec<u8>, RecvError> {
        self.recv_until(maxlength, Deadline::NEVER)
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_max`](Self::recv_bytes_max), and [`RecvError::Empty`].
    pub fn try_recv_bytes_max(&self, maxlength: usize) -> Result<Vec<u8>, RecvError> {
        self.recv_until(maxlength, Deadline::NOW)
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_max`](Self::recv_bytes_max), and [`RecvError::TimedOut`].
    pub fn recv_bytes_max_timeout(&self, maxlength: usize, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        self.recv_until(maxlength, Deadline::after(timeout))
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_max_timeout`](Self::recv_bytes_max_timeout).
    pub fn recv_bytes_max_deadline(&self, maxlength: usize, deadline: Instant) -> Result<Vec<u8>, RecvError> {
        self.recv_until(maxlength, Deadline::instant(deadline))
    }

    /// Receives one message into `buf`, from `offset` on, waiting for it. Returns its length.
    ///
    /// # Errors
    ///
    /// [`RecvIntoError::TooShort`], with the message in it, if there is not enough room; [`RecvIntoError::BadOffset`], with nothing received;
    /// otherwise as [`recv_bytes`](Self::recv_bytes).
    #[inline]
    pub fn recv_bytes_into(&self, buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError> {
        self.recv_into_until(buf, offset, Deadline::NEVER)
    }

    /// As [`recv_bytes_into`](Self::recv_bytes_into), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_into`](Self::recv_bytes_into), and [`RecvError::Empty`].
    #[inline]
    pub fn try_recv_bytes_into(&self, buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError> {
        self.recv_into_until(buf, offset, Deadline::NOW)
    }

    /// As [`recv_bytes_into`](Self::recv_bytes_into), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_into`](Self::recv_bytes_into), and [`RecvError::TimedOut`].
    pub fn recv_bytes_into_timeout(
        &self,
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
    /// As [`recv_bytes_into_timeout`](Self::recv_bytes_into_timeout).
    pub fn recv_bytes_into_deadline(
        &self,
        buf: &mut [u8],
        offset: usize,
        deadline: Instant,
    ) -> Result<usize, RecvIntoError> {
        self.recv_into_until(buf, offset, Deadline::instant(deadline))
    }

    /// As [`recv_bytes_into_timeout`](Self::recv_bytes_into_timeout), but it may give up earlier, as if the time had passed: at once if a signal's handler ran in this thread while it was
    /// asleep, and whenever it was woken in vain, as when another receiver is faster. (A handler that was installed to restart system calls does not interrupt.) For bindings to languages whose handlers are run by the caller.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_into_timeout`](Self::recv_bytes_into_timeout).
    pub fn recv_bytes_into_interruptible(
        &self,
        buf: &mut [u8],
        offset: usize,
        timeout: Duration,
    ) -> Result<usize, RecvIntoError> {
        self.recv_into_until(buf, offset, Deadline::after(timeout).interruptible())
    }

    /// Takes one message, to be read in place. Waits for it.
    ///
    /// ```
    /// # let (receiver, sender) = ringpipe::mpmc::simplex()?;
    /// sender.send_bytes(b"abcd")?;
    /// let message = receiver.recv_guard()?;
    /// assert_eq!(message.to_vec(), b"abcd");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`recv_bytes`](Self::recv_bytes).
    pub fn recv_guard(&self) -> Result<ReadGuard<'_>, RecvError> {
        self.recv_guard_until(Deadline::NEVER)
    }

    /// As [`recv_guard`](Self::recv_guard), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv_guard`](Self::recv_guard), and [`RecvError::Empty`].
    pub fn try_recv_guard(&self) -> Result<ReadGuard<'_>, RecvError> {
        self.recv_guard_until(Deadline::NOW)
    }

    /// As [`recv_guard`](Self::recv_guard), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_guard`](Self::recv_guard), and [`RecvError::TimedOut`].
    pub fn recv_guard_timeout(&self, timeout: Duration) -> Result<ReadGuard<'_>, RecvError> {
        self.recv_guard_until(Deadline::after(timeout))
    }

    /// As [`recv_guard`](Self::recv_guard), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_guard_timeout`](Self::recv_guard_timeout).
    pub fn recv_guard_deadline(&self, deadline: Instant) -> Result<ReadGuard<'_>, RecvError> {
        self.recv_guard_until(Deadline::instant(deadline))
    }

    /// Whether a receive would find a message, or fail, at once. Follows `Connection.poll`: zero asks, `None` waits as long as it takes. Another
    /// receiver may take the message before this one gets to it.
    ///
    /// # Errors
    ///
    /// What a receive would return, except that end of file counts as something to be received.
    pub fn poll(&self, timeout: Option<Duration>) -> Result<bool, RecvError> {
        match self.poll_until(timeout.map_or(Deadline::NEVER, Deadline::after)) {
            Ok(()) | Err(RecvError::Disconnected) => Ok(true),
            Err(RecvError::Empty | RecvError::TimedOut) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The messages to come that this handle gets, until end of file; each item waits.
    pub fn iter(&self) -> Iter<'_> {
        Iter { receiver: self, deadline: Deadline::NEVER, over: false }
    }

    /// The messages that are there already.
    pub fn try_iter(&self) -> Iter<'_> {
        Iter { receiver: self, deadline: Deadline::NOW, over: false }
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> usize {
        self.side.ring.capacity()
    }

    /// Bytes of the ring that hold messages, each padded to 64; a snapshot.
    pub fn fill(&self) -> usize {
        self.side.ring.fill()
    }

    /// Messages that wait to be received; a snapshot, which takes a look at each.
    pub fn len(&self) -> usize {
        self.side.ring.messages()
    }

    /// Whether no message waits to be received; a snapshot.
    pub fn is_empty(&self) -> bool {
        self.side.ring.is_empty()
    }

    /// Closes this handle; the same as dropping it.
    pub fn close(self) {}

    // --- the parts --------------------------------------------------------------------------------

    #[inline(always)]
    fn me(&self) -> Result<Owner, RecvError> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(RecvError::Ended);
        }
        self.side.me().map_err(|e| RecvError::Attach(AttachError::Io(e)))
    }

    /// Ends receiving by this handle.
    fn end(&self, why: RecvError) -> RecvError {
        self.ended.store(true, Ordering::Relaxed);
        why
    }

    /// Waits for a message; one that nobody had taken when this returned.
    fn front(&self, deadline: Deadline, me: Owner) -> Result<Message, RecvError> {
        for turn in 1_u64.. {
            match self.side.ring.look() {
                Front::Message(message) => return Ok(message),
                Front::Corrupt => return Err(self.end(RecvError::Corrupt)),
                Front::Empty | Front::Busy if turn % TRIES == 0 && deadline.passed() => break,
                Front::Empty | Front::Busy => {}
            }
            if !deadline.is_immediate() && self.run.swap(0, Ordering::Relaxed) >= 2 {
                self.side.crowd.let_it_run(1, || false);
            }
            match self.side.crowd.wait(deadline, me, &ForMessage(&self.side)) {
                Wake::Ready => {}
                Wake::TimedOut => break,
                Wake::Gone => return Err(RecvError::Disconnected),
            }
        }
        Err(nothing(deadline))
    }

    /// Takes a message whose length `accept` agrees to and makes ready for.
    #[inline(always)]
    fn receive(
        &self,
        deadline: Deadline,
        mut accept: impl FnMut(usize) -> Result<(), RecvError>,
    ) -> Result<Taken, RecvError> {
        let (me, ring) = (self.me()?, &self.side.ring);
        for turn in 1_u64.. {
            let message = self.front(deadline, me)?;
            let len = ring.len(message);
            let accepted = if message.len.is_some() || self.is_possible(len) {
                match usize::try_from(len) {
                    Ok(len) => accept(len),
                    Err(_) => Err(RecvError::TooLong { len, max: usize::MAX }),
                }
            } else {
                Err(RecvError::Corrupt)
            };
            match accepted {
                Ok(()) => {
                    if let Some(held) = ring.take(message, me) {
                        return Ok(Taken { held, len: len as usize });
                    }
                }
                // Of a message that is another's by now, it was nonsense.
                Err(_) if !ring.is_there(message) => {}
                Err(e) => {
                    // It stays, for one who takes it.
                    self.side.crowd.pass_on();
                    let ends = matches!(e, RecvError::Corrupt | RecvError::TooLong { .. });
                    return Err(if ends { self.end(e) } else { e });
                }
            }
            if turn % TRIES == 0 && deadline.passed() {
                break;
            }
        }
        Err(nothing(deadline))
    }

    /// Whether a long message can have that length: not, if a shorter record would have done, or if there is less memory behind it than it says.
    fn is_possible(&self, len: u64) -> bool {
        let ring = &self.side.ring;
        // None, where a quarter of the ring is more than the longest record that is not a long message's.
        let rest = len.saturating_sub(ring.long_payload() as u64);
        let (window, file) = (self.side.segment.geometry().window, self.side.segment.as_fd());
        len > ring.max_payload() as u64 && rest <= window && rest <= sys::allocated(file)
    }

    /// Copies out a message that has been taken.
    ///
    /// # Safety
    ///
    /// `dst` must be valid for writes of its whole length.
    #[inline(always)]
    unsafe fn copy_out(&self, taken: Taken, dst: *mut u8) -> Result<(), RecvError> {
        let payload = self.side.ring.payload(taken.held).as_ptr();
        match self.side.ring.window(taken.held) {
            // SAFETY: the message lies in the ring, and the rest by the contract.
            None => unsafe { copy(payload, dst, taken.len) },
            // SAFETY: as above.
            Some(window) => unsafe { self.unspill(window, payload, taken.len, dst)? },
        }
        Ok(())
    }

    /// Copies out a long message.
    ///
    /// # Safety
    ///
    /// As [`copy_out`](Self::copy_out); `payload` is the record's.
    #[cold]
    unsafe fn unspill(&self, window: usize, payload: *const u8, len: usize, dst: *mut u8) -> Result<(), RecvError> {
        let (segment, first) = (&self.side.segment, len.min(self.side.ring.long_payload()));
        // SAFETY: the record has as many bytes, and so has `dst`.
        unsafe { copy(payload, dst, first) };
        // SAFETY: the rest, by the contract.
        let rest = unsafe { std::slice::from_raw_parts_mut(dst.add(first).cast(), len - first) };
        sys::read_at(segment.as_fd(), rest, segment.geometry().window_offset(window)).map_err(|_| RecvError::Corrupt)
    }

    /// Gives a message's room back, and wakes senders.
    #[inline(always)]
    fn release(&self, held: Held) {
        let side = &*self.side;
        if let Some(window) = side.ring.window(held) {
            side.discard(held, window);
        }
        side.ring.give_up(held);
        let run = self.run.load(Ordering::Relaxed).wrapping_add(1);
        self.run.store(run, Ordering::Relaxed);
        if run % DISTANCE_CHECK == 0 && side.ring.fill_hint() < TOO_CLOSE {
            side.crowd.let_it_run(1, || false);
        }
        side.crowd.notify_room(|| side.ring.taken() >= side.ring.capacity() / 4);
        side.crowd.settle(&ForMessage(side));
    }

    fn recv_until(&self, maxlength: usize, deadline: Deadline) -> Result<Vec<u8>, RecvError> {
        let mut bytes = Vec::new();
        let taken = self.receive(deadline, |len| {
            if len > maxlength {
                return Err(RecvError::TooLong { len: len as u64, max: maxlength });
            }
            bytes.try_reserve_exact(len).map_err(|_| RecvError::NoMemory { len })
        })?;
        self.fill_up(taken, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies a message out, into a vector that has room for it.
    fn fill_up(&self, taken: Taken, bytes: &mut Vec<u8>) -> Result<(), RecvError> {
        debug_assert!(bytes.capacity() >= taken.len);
        // SAFETY: there is room for the whole message, which is written before it counts.
        let copied = unsafe { self.copy_out(taken, bytes.as_mut_ptr()) };
        self.release(taken.held);
        copied.map_err(|e| self.end(e))?;
        // SAFETY: as above.
        unsafe { bytes.set_len(taken.len) };
        Ok(())
    }

    #[inline(always)]
    fn recv_into_until(&self, buf: &mut [u8], offset: usize, deadline: Deadline) -> Result<usize, RecvIntoError> {
        if offset <= buf.len() {
            let room = &mut buf[offset..];
            if let (Ok(me), Some((message, len))) = (self.me(), self.side.ring.at_hand()) {
                if len <= room.len() {
                    if let Some(held) = self.side.ring.take(message, me) {
                        // SAFETY: the message lies in the ring, and fits in the buffer.
                        unsafe { copy(self.side.ring.payload(held).as_ptr(), room.as_mut_ptr(), len) };
                        self.release(held);
                        return Ok(len);
                    }
                }
            }
        }
        self.recv_into_slow(buf, offset, deadline)
    }

    #[inline(never)]
    fn recv_into_slow(&self, buf: &mut [u8], offset: usize, deadline: Deadline) -> Result<usize, RecvIntoError> {
        let len = buf.len();
        let buf = buf.get_mut(offset..).ok_or(RecvIntoError::BadOffset { offset, len })?;
        let (room, mut message) = (buf.len(), Vec::new());
        let taken = self.receive(deadline, |len| match len <= room {
            true => Ok(()),
            false => message.try_reserve_exact(len).map_err(|_| RecvError::NoMemory { len }),
        })?;
        if taken.len > room {
            self.fill_up(taken, &mut message)?;
            return Err(RecvIntoError::TooShort(BufferTooShort { message, room }));
        }
        // SAFETY: the message fits in the buffer.
        let copied = unsafe { self.copy_out(taken, buf.as_mut_ptr()) };
        self.release(taken.held);
        copied.map_err(|e| self.end(e))?;
        Ok(taken.len)
    }

    fn recv_guard_until(&self, deadline: Deadline) -> Result<ReadGuard<'_>, RecvError> {
        let (mut bytes, max) = (Vec::new(), self.side.ring.max_payload());
        let taken = self.receive(deadline, |len| match len <= max {
            true => Ok(()),
            false => bytes.try_reserve_exact(len).map_err(|_| RecvError::NoMemory { len }),
        })?;
        let place = if taken.len <= max {
            Place::Ring(taken)
        } else {
            self.fill_up(taken, &mut bytes)?;
            Place::Memory(bytes)
        };
        Ok(ReadGuard { receiver: self, place })
    }

    fn poll_until(&self, deadline: Deadline) -> Result<(), RecvError> {
        let me = self.me()?;
        self.front(deadline, me)?;
        // What was there was perhaps meant for one who takes it.
        self.side.crowd.pass_on();
        Ok(())
    }

    /// What a receive would find, for who waits for this end among others. The senders' death aside.
    pub(crate) fn sight(&self) -> Sight {
        if self.me().is_err() { Sight::Ready } else { ForMessage(&self.side).look() }
    }

    /// Takes what comes first from who holds it and is dead. True if there is something new to be seen.
    pub(crate) fn help(&self) -> bool {
        self.side.repair()
    }

    /// The bell, for who waits for this end among others.
    pub(crate) fn hearing(&self) -> &Bell {
        self.side.crowd.bell()
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.side.segment
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.side.crowd.bell().fd()
    }
}

impl Clone for Receiver {
    /// A handle that receives, even if this one no longer does.
    fn clone(&self) -> Receiver {
        Receiver::of(Arc::clone(&self.side))
    }
}

impl AsFd for Receiver {
    /// A descriptor that is readable whenever something can be received or all senders are gone, for `poll`, `select`, `epoll` and the
    /// like. Level-triggered. Only to be watched: never read from it. All who watch it are woken by a message; one of them gets it.
    ///
    /// From the first call on, receiving in this process takes care that the descriptor is not readable while there is nothing to receive, which
    /// takes a few system calls each time the ring runs empty. It may be readable for nothing.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.side.crowd.watch(&ForMessage(&self.side))
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.ended.load(Ordering::Relaxed) {
            true => "ended",
            false => self.side.crowd.state(),
        };
        f.debug_struct("mpmc::Receiver")
            .field("capacity", &self.capacity())
            .field("fill", &self.fill())
            .field("state", &state)
            .finish()
    }
}

/// A message in place; made by [`Receiver::recv_guard`]. Dropping it gives its room back.
///
/// As for [`crate::ReadGuard`], there is no safe way to a slice of the memory. In a child that is forked meanwhile, the copy of the guard reads, but
/// gives nothing back: the message is its parent's. If the parent lets go of it first, the child reads what is written there next.
pub struct ReadGuard<'a> {
    receiver: &'a Receiver,
    place: Place,
}

enum Place {
    Ring(Taken),
    /// Copied after all, because it was not in one piece.
    Memory(Vec<u8>),
}

impl ReadGuard<'_> {
    /// Bytes in the message.
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Ring(taken) => taken.len,
            Place::Memory(bytes) => bytes.len(),
        }
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `dst.len()` bytes of the message, from `offset` on.
    ///
    /// # Panics
    ///
    /// If the message has fewer.
    pub fn copy_to(&self, offset: usize, dst: &mut [u8]) {
        // SAFETY: bytes may be taken for bytes that need not have been written to, as all that happens to them is that they are.
        self.copy_to_uninit(offset, unsafe { slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), dst.len()) });
    }

    /// As [`copy_to`](Self::copy_to), to memory that need not have been written to before. All of `dst` is written.
    ///
    /// # Panics
    ///
    /// As [`copy_to`](Self::copy_to).
    pub fn copy_to_uninit(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        let len = self.len();
        let fits = offset <= len && dst.len() <= len - offset;
        assert!(fits, "{} bytes from {offset} on of a message of {len} bytes", dst.len());
        let from = match &self.place {
            Place::Ring(taken) => self.receiver.side.ring.payload(taken.held).as_ptr(),
            Place::Memory(bytes) => bytes.as_ptr(),
        };
        // SAFETY: just checked; the buffer is the caller's own, and is only written to.
        unsafe { copy(from.add(offset), dst.as_mut_ptr().cast(), dst.len()) };
    }

    /// A copy of the message.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(0, &mut bytes);
        bytes
    }

    /// The message itself.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, no other process may write to this part of the ring. A peer that follows the protocol
    /// does not; one that is hostile may, so it takes a peer that the caller vouches for. Not to be used in a forked child.
    pub unsafe fn as_slice(&self) -> &[u8] {
        match &self.place {
            // SAFETY: the message lies within the ring, which lives longer than the guard, and does not change, by the caller's word.
            Place::Ring(taken) => unsafe {
                slice::from_raw_parts(self.receiver.side.ring.payload(taken.held).as_ptr(), taken.len)
            },
            Place::Memory(bytes) => bytes,
        }
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        if let Place::Ring(taken) = self.place {
            if self.receiver.side.still_holds(taken.held) {
                self.receiver.release(taken.held);
            }
        }
    }
}

impl fmt::Debug for ReadGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("mpmc::ReadGuard").field("len", &self.len()).finish()
    }
}

/// Messages one by one; made by [`Receiver::iter`] and [`Receiver::try_iter`].
///
/// Ends at end of file (or when nothing is there, for `try_iter`), and after an error that ends receiving, or want of memory.
#[derive(Debug)]
pub struct Iter<'a> {
    receiver: &'a Receiver,
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
        // A message that there is no memory for stays, and so does what keeps a child from taking part, so there is no going on.
        self.over = matches!(result, Err(RecvError::NoMemory { .. } | RecvError::Attach(_)));
        match result {
            Err(RecvError::Disconnected | RecvError::Empty | RecvError::Ended) => None,
            result => Some(result),
        }
    }
}
