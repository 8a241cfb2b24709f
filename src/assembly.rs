//! A long message on its way from the ring to where its caller wants it, part by part.

use std::mem::MaybeUninit;

use crate::copy::copy;
use crate::error::RecvError;

/// A long message of which some, but not all, has arrived.
pub(crate) struct Partial {
    pub(crate) total: usize,
    pub(crate) bytes: Vec<u8>,
}

/// A long message on its way to where the caller wants it.
pub(crate) struct Assembly<'a> {
    total: usize,
    arrived: usize,
    /// The caller's buffer, if the message fits in it...
    buf: Option<&'a mut [u8]>,
    /// ...and our own otherwise.
    own: Vec<u8>,
}

/// A long message on its way to several places of the caller's, one behind the other.
pub(crate) struct Scatter<'a, 'b> {
    places: &'a mut [&'b mut [MaybeUninit<u8>]],
    /// Which comes next, and how many bytes of it are written.
    next: usize,
    filled: usize,
}

impl<'a, 'b> Scatter<'a, 'b> {
    /// Goes on behind the first `arrived` bytes.
    pub(crate) fn new(places: &'a mut [&'b mut [MaybeUninit<u8>]], arrived: usize) -> Scatter<'a, 'b> {
        let (mut next, mut filled) = (0, arrived);
        while next < places.len() && filled >= places[next].len() {
            filled -= places[next].len();
            next += 1;
        }
        Scatter { places, next, filled }
    }

    /// Copies the next `len` bytes, for which there must be room.
    ///
    /// # Safety
    ///
    /// `part` must be valid for reads of `len` bytes.
    pub(crate) unsafe fn put(&mut self, mut part: *const u8, mut len: usize) {
        while len > 0 {
            let place = &mut self.places[self.next][self.filled..];
            let now = len.min(place.len());
            // SAFETY: the place has so many bytes, and so has the part, with which `part` and `len` advance.
            unsafe {
                copy(part, place.as_mut_ptr().cast(), now);
                part = part.add(now);
            }
            if now == place.len() {
                (self.next, self.filled) = (self.next + 1, 0);
            } else {
                self.filled += now;
            }
            len -= now;
        }
    }
}

/// A growing message allocates at least so much at a time...
const GROWTH: usize = 64 << 10;
/// ...and otherwise as much as has arrived of it, or, as long as that is not much, so many times as much: addresses rather than memory until the
/// rest is there. It is moved less often so, which most allocators do by copying it.
const AHEAD: usize = 16;
const MUCH: usize = 64 << 20;

impl<'a> Assembly<'a> {
    pub(crate) fn new(total: usize, buf: Option<&'a mut [u8]>) -> Assembly<'a> {
        let buf = buf.filter(|buf| total <= buf.len());
        Assembly { total, arrived: 0, buf, own: Vec::new() }
    }

    /// Goes on where an earlier call stopped.
    pub(crate) fn resume(partial: Partial, buf: Option<&'a mut [u8]>) -> Assembly<'a> {
        let mut assembly = Assembly::new(partial.total, buf);
        assembly.arrived = partial.bytes.len();
        match &mut assembly.buf {
            Some(buf) => buf[..partial.bytes.len()].copy_from_slice(&partial.bytes),
            None => assembly.own = partial.bytes,
        }
        assembly
    }

    /// Bytes that have not arrived.
    pub(crate) fn missing(&self) -> usize {
        self.total - self.arrived
    }

    /// Takes the next part, unless there is no memory for it.
    ///
    /// # Safety
    ///
    /// `part` must be valid for reads of `len` bytes, and `len` be at most what is [missing](Self::missing).
    pub(crate) unsafe fn put(&mut self, part: *const u8, len: usize) -> Result<(), RecvError> {
        let missing = self.missing();
        debug_assert!(len <= missing);
        let dst = match &mut self.buf {
            Some(buf) => buf[self.arrived..].as_mut_ptr(),
            None => {
                if self.own.capacity() - self.arrived < len {
                    let there = self.arrived + len;
                    let little = missing.min(GROWTH.max(there));
                    let more = missing.min(MUCH.min(there.saturating_mul(AHEAD))).max(little);
                    let reserved = self.own.try_reserve_exact(more).or_else(|_| self.own.try_reserve_exact(little));
                    reserved.map_err(|_| RecvError::NoMemory { len: self.total })?;
                }
                self.own.spare_capacity_mut().as_mut_ptr().cast()
            }
        };
        // SAFETY: the buffer is at least `total` long, or the vector has room for `len` more bytes, which are
        // written before they count; `part` by the contract.
        unsafe {
            copy(part, dst, len);
            if self.buf.is_none() {
                self.own.set_len(self.arrived + len);
            }
        }
        self.arrived += len;
        Ok(())
    }

    /// What has arrived, for another call to go on with.
    ///
    /// Out of the caller's buffer it has to be copied, and if there is no memory for that, it is lost.
    pub(crate) fn into_partial(mut self) -> Result<Partial, RecvError> {
        if let Some(buf) = self.buf {
            self.own.try_reserve_exact(self.arrived).map_err(|_| RecvError::NoMemory { len: self.total })?;
            self.own.extend_from_slice(&buf[..self.arrived]);
        }
        Ok(Partial { total: self.total, bytes: self.own })
    }

    /// The message, unless it is in the caller's buffer, or how long it is there.
    pub(crate) fn finish(self) -> Result<Vec<u8>, usize> {
        match self.buf {
            Some(_) => Err(self.total),
            None => Ok(self.own),
        }
    }
}
