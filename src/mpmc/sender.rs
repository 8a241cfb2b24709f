//! The sending end for many.

use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::side::{ForMessage, ForRoom, Role, Side};
use crate::copy::copy_in;
use crate::crowd::{Sight, Sought as _};
use crate::deadline::Deadline;
use crate::error::SendError;
use crate::gather::{Gather, total};
use crate::ring::mpmc::{Held, Owner, Precedence, Room};
use crate::segment::Segment;
use crate::sender::no_room;
use crate::sync::{AsFd, BorrowedFd, Ordering, OwnedFd};
use crate::sys;
use crate::wait::{PATIENCE, Wake};

/// A sending end of a pipe for many.
///
/// Made by [`simplex`](super::simplex) or [`Builder::mpmc`](crate::Builder::mpmc); [`Clone`] makes more of them for this process, and
/// [`End`](crate::End) hands them to others. The receivers get end of file when every copy in every process is closed and everything sent has been
/// received.
///
/// The forms of sending are those of [`crate::Sender`], which says more about them. Every one takes one whole message of any length, and can be
/// called by any number of threads at the same time.
///
/// ```
/// let (receiver, sender) = ringpipe::mpmc::simplex()?;
/// let other = sender.clone();
/// std::thread::spawn(move || other.send_bytes(b"hello")).join().unwrap()?;
/// assert_eq!(receiver.recv_bytes()?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Sender {
    side: Arc<Side>,
}

/// How often a claim is tried again before the clock is looked at: a bound against hostile peers only.
const TRIES: u64 = 64;

impl Sender {
    pub(crate) fn attach(segment: Arc<Segment>, bell: OwnedFd) -> std::io::Result<Sender> {
        Ok(Sender { side: Arc::new(Side::new(segment, Role::Sender, bell)?) })
    }

    /// Sends one message, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// [`SendError::Disconnected`] if all receivers are gone. If the last was killed, that is noticed when there is no room at the latest.
    /// [`SendError::Io`] if there is no memory for a long message, and [`SendError::TooLong`] above what the limit on file sizes
    /// (`RLIMIT_FSIZE`) allowed when the pipe was made.
    #[inline]
    pub fn send_bytes(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_whole(message, Deadline::NEVER)
    }

    /// As [`send_bytes`](Self::send_bytes), if there is room right now.
    ///
    /// # Errors
    ///
    /// As [`send_bytes`](Self::send_bytes), and [`SendError::Full`].
    #[inline]
    pub fn try_send_bytes(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_whole(message, Deadline::NOW)
    }

    /// As [`send_bytes`](Self::send_bytes), waiting for room for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`send_bytes`](Self::send_bytes), and [`SendError::TimedOut`].
    pub fn send_bytes_timeout(&self, message: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.send_whole(message, Deadline::after(timeout))
    }

    /// As [`send_bytes`](Self::send_bytes), waiting for room until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_bytes_deadline(&self, message: &[u8], deadline: Instant) -> Result<(), SendError> {
        self.send_whole(message, Deadline::instant(deadline))
    }

    /// As [`send_bytes_timeout`](Self::send_bytes_timeout), but it may give up earlier, as if the time had passed, when a signal's handler ran in this thread while it was
    /// asleep, or it was woken in vain. See [`Receiver::recv_bytes_into_interruptible`](super::Receiver::recv_bytes_into_interruptible).
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_bytes_interruptible(&self, message: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.send_whole(message, Deadline::after(timeout).interruptible())
    }

    /// Sends one message that is gathered from several buffers, in order. Waits for room.
    ///
    /// # Errors
    ///
    /// As [`send_bytes`](Self::send_bytes).
    pub fn send_vectored(&self, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        self.send_parts(parts, total(parts)?, Deadline::NEVER)
    }

    /// As [`send_vectored`](Self::send_vectored), without waiting.
    ///
    /// # Errors
    ///
    /// As [`try_send_bytes`](Self::try_send_bytes).
    pub fn try_send_vectored(&self, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        self.send_parts(parts, total(parts)?, Deadline::NOW)
    }

    /// As [`send_vectored`](Self::send_vectored), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_vectored_timeout(&self, parts: &[IoSlice<'_>], timeout: Duration) -> Result<(), SendError> {
        self.send_parts(parts, total(parts)?, Deadline::after(timeout))
    }

    /// As [`send_vectored`](Self::send_vectored), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_vectored_deadline(&self, parts: &[IoSlice<'_>], deadline: Instant) -> Result<(), SendError> {
        self.send_parts(parts, total(parts)?, Deadline::instant(deadline))
    }

    /// Takes room for a message of `len` bytes in the ring itself, to be written in place. Waits for room.
    ///
    /// Whatever is sent after this, by anybody, waits for the guard.
    ///
    /// ```
    /// # let (receiver, sender) = ringpipe::mpmc::simplex()?;
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
    /// [`SendError::TooLong`] above [`max_reserve`](Self::max_reserve); [`SendError::Disconnected`]; [`SendError::Io`] in a forked child that
    /// cannot take part.
    pub fn reserve(&self, len: usize) -> Result<WriteGuard<'_>, SendError> {
        self.reserve_until(len, Deadline::NEVER)
    }

    /// As [`reserve`](Self::reserve), without waiting.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve), and [`SendError::Full`].
    pub fn try_reserve(&self, len: usize) -> Result<WriteGuard<'_>, SendError> {
        self.reserve_until(len, Deadline::NOW)
    }

    /// As [`reserve`](Self::reserve), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve), and [`SendError::TimedOut`].
    pub fn reserve_timeout(&self, len: usize, timeout: Duration) -> Result<WriteGuard<'_>, SendError> {
        self.reserve_until(len, Deadline::after(timeout))
    }

    /// As [`reserve`](Self::reserve), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`reserve_timeout`](Self::reserve_timeout).
    pub fn reserve_deadline(&self, len: usize, deadline: Instant) -> Result<WriteGuard<'_>, SendError> {
        self.reserve_until(len, Deadline::instant(deadline))
    }

    /// The most bytes that [`reserve`](Self::reserve) gives at once: a quarter of the capacity, but not more than 65,408.
    pub fn max_reserve(&self) -> usize {
        self.side.ring.max_payload()
    }

    /// Whether every copy of every receiving end is closed. Asks the kernel, so a receiver that was killed counts at once.
    ///
    /// Also what to call when this end's descriptor is readable, in an event loop: it leaves it silent unless that is so. Other
    /// handles that wait for room meanwhile may be woken up to a second late.
    pub fn is_disconnected(&self) -> bool {
        self.side.crowd.bell().hears_death()
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
    fn send_whole(&self, message: &[u8], deadline: Deadline) -> Result<(), SendError> {
        let side = &*self.side;
        let me = self.begin()?;
        if message.len() <= side.ring.max_payload() {
            if let Some(held) = side.ring.claim(message.len(), me) {
                // SAFETY: claimed for as many bytes; the ring never overlaps a caller's slice.
                unsafe { copy_in(message, side.ring.payload(held)) };
                self.finish(held, message.len());
                return Ok(());
            }
        }
        self.send_slow(&[IoSlice::new(message)], message.len(), deadline, me)
    }

    /// Who we are, if there is anybody to send to.
    #[inline(always)]
    fn begin(&self) -> Result<Owner, SendError> {
        if self.side.crowd.bell().is_gone() {
            return Err(SendError::Disconnected);
        }
        Ok(self.side.me()?)
    }

    #[inline(always)]
    fn finish(&self, held: Held, len: usize) {
        self.side.ring.publish(held, len);
        self.side.crowd.notify(|| ForMessage(&self.side).look() != Sight::Nothing);
    }

    fn send_parts(&self, parts: &[IoSlice<'_>], len: usize, deadline: Deadline) -> Result<(), SendError> {
        let me = self.begin()?;
        self.send_slow(parts, len, deadline, me)
    }

    #[inline(never)]
    fn send_slow(&self, parts: &[IoSlice<'_>], len: usize, deadline: Deadline, me: Owner) -> Result<(), SendError> {
        let max = self.side.max_len();
        if len > max {
            return Err(SendError::TooLong { len, max });
        }
        let held = self.claim(len, deadline, me)?;
        let mut gather = Gather::new(parts);
        match self.side.ring.window(held) {
            // SAFETY: claimed for `len` bytes, all that the parts have.
            None => unsafe { gather.copy_to(self.side.ring.payload(held), len) },
            Some(window) => {
                if let Err(e) = self.spill(held, window, gather, len) {
                    self.side.discard(held, window);
                    self.side.abandon(held);
                    return Err(SendError::Io(e));
                }
            }
        }
        self.finish(held, len);
        Ok(())
    }

    /// Writes a long message: its start to the ring, and what does not fit there to the window.
    fn spill(&self, held: Held, window: usize, mut gather: Gather<'_>, len: usize) -> std::io::Result<()> {
        let (ring, segment) = (&self.side.ring, &self.side.segment);
        // SAFETY: the record has so many bytes, at most as many of which are written as the parts have.
        unsafe { gather.copy_to(ring.payload(held), ring.long_payload()) };
        let rest = len.saturating_sub(ring.long_payload());
        if rest == 0 {
            return Ok(());
        }
        let extent = ring.extent(held);
        extent.store(extent.load(Ordering::Relaxed).max(rest as u64), Ordering::Relaxed);
        // SAFETY: the part has `rest` bytes, as many as are left.
        let write = |part| unsafe { gather.copy_to(part, rest) };
        sys::write_part(segment.as_fd(), segment.geometry().window_offset(window), rest, write)
    }

    /// Room for one message, waiting for it.
    fn claim(&self, len: usize, deadline: Deadline, me: Owner) -> Result<Held, SendError> {
        let side = &*self.side;
        if let Some(held) = side.ring.claim(len, me) {
            return Ok(held);
        }
        let sought = ForRoom::new(side, me, len);
        for turn in 1_u64.. {
            if !deadline.is_immediate() {
                // Every look at what readers have done takes a line away from them, so wait for a good stretch while they get on.
                let mut last = 0;
                side.crowd.let_it_run(PATIENCE, || {
                    let taken = side.ring.taken();
                    let stalled = taken == std::mem::replace(&mut last, taken);
                    stalled || taken >= side.ring.capacity() / 2
                });
            }
            match side.crowd.wait(deadline, me, &sought) {
                Wake::Ready => {}
                Wake::Gone => return Err(SendError::Disconnected),
                Wake::TimedOut => break,
            }
            if let Some(held) = sought.claim() {
                drop(sought);
                if side.ring.room(1, Precedence::default()) == Room::Enough {
                    // Others wait as well, who were perhaps not told of all the room there is.
                    side.crowd.pass_on();
                }
                return Ok(held);
            }
            if turn % TRIES == 0 && deadline.passed() {
                break;
            }
        }
        Err(no_room(deadline))
    }

    fn reserve_until(&self, len: usize, deadline: Deadline) -> Result<WriteGuard<'_>, SendError> {
        let max = self.max_reserve();
        if len > max {
            return Err(SendError::TooLong { len, max });
        }
        let me = self.begin()?;
        let held = self.claim(len, deadline, me)?;
        Ok(WriteGuard { sender: self, held: Some(held), len, written: 0 })
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.side.segment
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.side.crowd.bell().fd()
    }
}

impl AsFd for Sender {
    /// A descriptor that is readable when every copy of every receiving end is closed. It may rarely be readable for nothing, until
    /// [`is_disconnected`](Sender::is_disconnected) is asked.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell()
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("mpmc::Sender")
            .field("capacity", &self.capacity())
            .field("fill", &self.fill())
            .field("state", &self.side.crowd.state())
            .finish()
    }
}

/// Room for one message in the ring, to be written in place.
///
/// Nothing is sent before [`commit`](Self::commit); dropping the guard gives the room back. In a child that is forked meanwhile, the copy of the guard
/// does nothing: its [`commit`](Self::commit) fails.
///
/// As for [`crate::WriteGuard`], there is no safe way to a slice of the memory.
#[must_use = "nothing is sent unless the guard is committed"]
pub struct WriteGuard<'a> {
    sender: &'a Sender,
    /// Until committed.
    held: Option<Held>,
    len: usize,
    written: usize,
}

impl WriteGuard<'_> {
    /// Bytes reserved.
    #[allow(clippy::len_without_is_empty, reason = "a reservation is not a collection")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes written so far by [`write`](Self::write) or vouched for by [`assume_written`](Self::assume_written).
    pub fn written(&self) -> usize {
        self.written
    }

    /// The record, if it is still ours.
    fn held(&self) -> Option<Held> {
        self.held.filter(|&held| self.sender.side.still_holds(held))
    }

    /// Appends bytes.
    ///
    /// # Panics
    ///
    /// If more bytes are written than were reserved.
    pub fn write(&mut self, bytes: &[u8]) {
        let room = self.len - self.written;
        assert!(bytes.len() <= room, "{} bytes written where {room} of {} were left", bytes.len(), self.len);
        if let Some(held) = self.held() {
            // SAFETY: claimed for `len` bytes, of which `written` are taken.
            unsafe { copy_in(bytes, self.sender.side.ring.payload(held).add(self.written)) };
        }
        self.written += bytes.len();
    }

    /// The reserved memory itself, for writing in place; say with [`assume_written`](Self::assume_written) how much was.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, no other process may write to this part of the ring. A peer that follows the protocol
    /// does not; one that is hostile may, so it takes a peer that the caller vouches for. Not to be used in a forked child.
    pub unsafe fn as_uninit(&mut self) -> &mut [std::mem::MaybeUninit<u8>] {
        let held = self.held.expect("until committed");
        let start = self.sender.side.ring.payload(held).cast().as_ptr();
        // SAFETY: claimed for `len` bytes that nobody else writes, by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }

    /// Says that the first `written` bytes have been written, through [`as_uninit`](Self::as_uninit) or otherwise.
    ///
    /// Not unsafe: what was not written is whatever an earlier message left there.
    ///
    /// # Panics
    ///
    /// If that is more than was reserved.
    pub fn assume_written(&mut self, written: usize) {
        assert!(written <= self.len, "{written} bytes written where {} were reserved", self.len);
        self.written = written;
    }

    /// Sends what was written as one message: shorter than was reserved is fine.
    ///
    /// # Errors
    ///
    /// [`SendError::Disconnected`] if all receivers are gone; [`SendError::Io`] in a forked child, which does not have what its parent has
    /// reserved.
    pub fn commit(mut self) -> Result<(), SendError> {
        if self.sender.side.crowd.bell().is_gone() {
            return Err(SendError::Disconnected);
        }
        let not_ours = || {
            std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the room was reserved before this process was forked",
            )
        };
        let held = self.held().ok_or_else(not_ours)?;
        self.held = None;
        self.sender.finish(held, self.written);
        Ok(())
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.held() {
            self.sender.side.abandon(held);
        }
    }
}

impl fmt::Debug for WriteGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("mpmc::WriteGuard").field("len", &self.len).field("written", &self.written).finish()
    }
}
