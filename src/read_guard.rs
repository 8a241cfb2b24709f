//! Receiving in place.

use std::mem::MaybeUninit;
use std::{fmt, slice};

use crate::copy::copy;
use crate::receiver::Receiver;
use crate::ring::spsc::Record;

/// A message in place; made by [`Receiver::recv_guard`]. Dropping it consumes the message.
///
/// The memory is shared with the sender, which may be faulty or hostile, so there is no safe way to a slice of it:
/// [`copy_to`](Self::copy_to) and [`to_vec`](Self::to_vec) copy, and [`as_slice`](Self::as_slice) is for those who know their peer.
pub struct ReadGuard<'a> {
    receiver: &'a mut Receiver,
    message: Message,
}

pub(crate) enum Message {
    /// In the ring; not released.
    InPlace(Record),
    /// Copied after all, because it was not in one piece.
    Owned(Vec<u8>),
}

impl ReadGuard<'_> {
    #[inline(always)]
    pub(crate) fn new(receiver: &mut Receiver, message: Message) -> ReadGuard<'_> {
        ReadGuard { receiver, message }
    }

    /// Bytes in the message.
    #[inline]
    pub fn len(&self) -> usize {
        match &self.message {
            Message::InPlace(record) => record.len,
            Message::Owned(bytes) => bytes.len(),
        }
    }

    /// Whether the message has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `dst.len()` bytes of the message, from `offset` on.
    ///
    /// # Panics
    ///
    /// If the message has fewer.
    #[inline]
    pub fn copy_to(&self, offset: usize, dst: &mut [u8]) {
        // SAFETY: bytes may be taken for bytes that need not have been written to, as all that happens to them is that they are.
        self.copy_to_uninit(offset, unsafe { slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), dst.len()) });
    }

    /// As [`copy_to`](Self::copy_to), to memory that need not have been written to before. All of `dst` is written.
    ///
    /// # Panics
    ///
    /// As [`copy_to`](Self::copy_to).
    #[inline]
    pub fn copy_to_uninit(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        let len = self.len();
        let fits = offset <= len && dst.len() <= len - offset;
        assert!(fits, "{} bytes from {offset} on of a message of {len} bytes", dst.len());
        let (to, len) = (dst.as_mut_ptr().cast(), dst.len());
        // SAFETY: just checked; the buffer is the caller's own, and is only written to.
        unsafe {
            match &self.message {
                Message::InPlace(record) => self.receiver.copy_out(*record, offset, to, len),
                Message::Owned(bytes) => copy(bytes[offset..].as_ptr(), to, len),
            }
        }
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
    /// does not; one that is hostile may, so it takes a peer that the caller vouches for.
    #[inline]
    pub unsafe fn as_slice(&self) -> &[u8] {
        match &self.message {
            // SAFETY: the payload lies within the ring, which lives longer than the guard, and does not change, by the
            // caller's word.
            Message::InPlace(record) => unsafe { slice::from_raw_parts(self.receiver.payload(*record), record.len) },
            Message::Owned(bytes) => bytes,
        }
    }
}

impl Drop for ReadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Message::InPlace(record) = self.message {
            self.receiver.release(record);
        }
    }
}

impl fmt::Debug for ReadGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadGuard").field("len", &self.len()).finish()
    }
}
