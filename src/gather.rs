//! A message in several buffers.

use std::io::IoSlice;
use std::ptr::NonNull;

use crate::copy::copy_in;
use crate::error::SendError;

/// Bytes in all. Parts may overlap, so their sum may be more than there is memory.
pub(crate) fn total(parts: &[IoSlice<'_>]) -> Result<usize, SendError> {
    let sum = parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(part.len()));
    sum.ok_or(SendError::TooLong { len: usize::MAX, max: isize::MAX as usize })
}

/// Several buffers, read front to back as one.
pub(crate) struct Gather<'a> {
    parts: std::slice::Iter<'a, IoSlice<'a>>,
    rest: &'a [u8],
}

impl<'a> Gather<'a> {
    pub(crate) fn new(parts: &'a [IoSlice<'a>]) -> Gather<'a> {
        Gather { parts: parts.iter(), rest: &[] }
    }

    /// Passes over the next `len` bytes.
    pub(crate) fn skip(&mut self, mut len: usize) {
        while len > self.rest.len() {
            len -= self.rest.len();
            match self.parts.next() {
                Some(part) => self.rest = part,
                None => return,
            }
        }
        self.rest = &self.rest[len..];
    }

    /// Copies the next `len` bytes.
    ///
    /// # Safety
    ///
    /// `dst` must be valid for writes of `len` bytes, and not overlap the parts.
    pub(crate) unsafe fn copy_to(&mut self, mut dst: NonNull<u8>, mut len: usize) {
        while len > 0 {
            if self.rest.is_empty() {
                match self.parts.next() {
                    Some(part) => self.rest = part,
                    None => return,
                }
            }
            let (now, later) = self.rest.split_at(self.rest.len().min(len));
            // SAFETY: `now` is at most `len` long, and `dst` advances with it.
            unsafe {
                copy_in(now, dst);
                dst = dst.add(now.len());
            }
            (self.rest, len) = (later, len - now.len());
        }
    }
}
