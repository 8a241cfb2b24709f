//! The record: how messages lie in a ring of bytes.
//!
//! ```text
//!            8 bytes          len bytes, padded to 8
//!          +----------------+-------------------------+----------------+- - -
//!          | kind : len     | payload                 | 0              |
//!          +----------------+-------------------------+----------------+- - -
//!          ^ header, stored last                      ^ header of the next record: nothing there yet
//! ```
//!
//! Records start at multiples of 8 and never cross the end of the ring: where one would, a `Pad`
//! record fills the rest and the next record starts at offset 0. A message longer than
//! [`Data::max_payload`] is a `First` record, whose payload starts with the length of the whole message
//! in 8 bytes, followed by `More` records; an `Abort` record takes back a message begun so.
//!
//! Nothing here blocks or makes a system call.

pub(crate) mod mpmc;
pub(crate) mod spsc;
#[cfg(test)]
mod tests;

use std::ptr::NonNull;

use crate::copy::{prefetch_read, prefetch_write};
use crate::sync::AtomicU64;

/// Bytes of a record's header.
pub(crate) const HEADER: usize = 8;

/// Bytes that stay free behind every record: the next header, which must read as zero, and room for an
/// `Abort`, so that a sender that gives up inside a long message can always say so.
pub(crate) const SPARE: usize = 2 * HEADER;

/// The longest part of a long message.
const MAX_CHUNK: usize = 32 << 10;

const CACHE_LINE: usize = 64;
/// How far ahead of a record lines are fetched for writing, and for records of up to which length.
const PREFETCH_AHEAD: usize = 1024;
const PREFETCH_UP_TO: usize = 2048;

/// What a record is. The values double as a check that a header is a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// A whole message.
    Data = 0x5250_0001,
    /// The rest of the ring up to its end.
    Pad = 0x5250_0002,
    /// The total length, and the start, of a long message.
    First = 0x5250_0003,
    /// The next part of a long message.
    More = 0x5250_0004,
    /// The long message begun before is taken back.
    Abort = 0x5250_0005,
    /// A pipe end, whose descriptors travel over the bell.
    End = 0x5250_0006,
}

impl Kind {
    pub(crate) fn from_raw(raw: u32) -> Option<Kind> {
        [Kind::Data, Kind::Pad, Kind::First, Kind::More, Kind::Abort, Kind::End].into_iter().find(|&k| k as u32 == raw)
    }
}

#[inline(always)]
fn header(kind: Kind, len: usize) -> u64 {
    (kind as u64) << 32 | len as u64
}

/// The header of a record that has been copied out, and the length in it, if that is what `record` starts with.
#[inline(always)]
pub(crate) fn header_of(record: &[u8]) -> Option<(u64, usize)> {
    let word = u64::from_ne_bytes(*record.first_chunk()?);
    Some((word, word as u32 as usize))
}

/// Bytes a record of `len` payload bytes takes.
#[inline(always)]
pub(crate) const fn record_len(len: usize) -> usize {
    HEADER + ((len + 7) & !7)
}

/// The bytes of a ring: `capacity`, a power of two, of them, aligned to 8.
///
/// Every access is in bounds whatever the cursors say: positions are masked and checked here.
#[derive(Clone, Copy)]
pub(crate) struct Data {
    base: NonNull<u8>,
    capacity: usize,
    /// What makes an offset of a cursor.
    mask: usize,
    max_payload: usize,
}

impl Data {
    /// # Safety
    ///
    /// `base` must point to `capacity` bytes, aligned to 8 and valid for reads and writes for as long as
    /// the value is used; `capacity` must be a power of two, at least 64.
    pub(crate) unsafe fn new(base: NonNull<u8>, capacity: usize) -> Data {
        debug_assert!(capacity.is_power_of_two() && capacity >= 64);
        Data { base, capacity, mask: (capacity - 1) & !7, max_payload: capacity / 4 - HEADER }
    }

    #[inline(always)]
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The longest payload of a single record: with its header a quarter of the ring, so that a record
    /// always finds a place once the ring has drained, wherever the cursors stand.
    #[inline(always)]
    pub(crate) fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Payload bytes of each part of a long message: small enough that the receiver copies out while the sender copies
    /// in, large enough that headers and cursors do not count.
    pub(crate) fn stream_chunk(&self) -> usize {
        (self.capacity / 8).min(MAX_CHUNK) - HEADER
    }

    /// A cursor's offset in the ring: below `capacity` and a multiple of 8, for any cursor.
    #[inline(always)]
    fn offset(&self, cursor: u64) -> usize {
        cursor as usize & self.mask
    }

    #[inline(always)]
    fn header_at(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset % 8 == 0 && offset < self.capacity);
        // SAFETY: `offset` comes from `Data::offset`, so the 8 bytes are in bounds and aligned; headers
        // are only ever accessed as atomics.
        unsafe { self.base.add(offset).cast().as_ref() }
    }

    /// Asks for as many lines as `len` bytes take, some way beyond `offset`, to be brought here for writing. They are with the reader,
    /// and without this every store to one would wait for it: 1 KiB messages are a quarter faster. Long copies are
    /// better left to the processor: at 4 KiB it costs a third.
    #[inline(always)]
    fn prefetch(&self, offset: usize, len: usize) {
        if len <= PREFETCH_UP_TO {
            self.prefetch_line(offset);
            (1..len / CACHE_LINE).for_each(|line| self.prefetch_line(offset + line * CACHE_LINE));
        }
    }

    #[inline(always)]
    fn prefetch_line(&self, offset: usize) {
        // SAFETY: within the ring.
        prefetch_write(unsafe { self.base.add((offset + PREFETCH_AHEAD) & self.mask) });
    }

    /// Asks for the lines behind that of `offset` to be brought here for reading, as many as a record of `len` bytes reaches into, and the next header.
    #[inline(always)]
    fn prefetch_record(&self, offset: usize, len: usize) {
        for ahead in (CACHE_LINE..=offset % CACHE_LINE + record_len(len)).step_by(CACHE_LINE) {
            // SAFETY: within the ring.
            prefetch_read(unsafe { self.base.add((offset + ahead) & self.mask) });
        }
    }

    /// Where the payload of the record at `offset` starts.
    #[inline(always)]
    fn payload_at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset % 8 == 0 && offset < self.capacity);
        // SAFETY: `offset` comes from `Data::offset`: at most `capacity - 8`, so the result is at most one
        // past the end.
        unsafe { self.base.add(offset + HEADER) }
    }
}
