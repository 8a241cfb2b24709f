//! What lies where in a segment, and the checks before anyone believes it.
//!
//! ```text
//! 0     Header                      written once by the creator, read once by whoever attaches
//! 256   Control of direction 0      cursors and seats, a 128-byte line for each writer
//! 1024  Control of direction 1      (duplex pipes only)
//! 4096  ring of direction 0         `capacity` bytes
//! 4096 + capacity                   ring of direction 1 (duplex pipes only)
//! ```
//!
//! Only fixed-width fields, so that a 32-bit and a 64-bit process can share a segment. Every field is
//! an atomic: the memory is shared with processes that may write anything at any time, and a plain
//! read beside such a write would be undefined behaviour. Whoever reads a word reads it once, checks
//! the copy and uses the copy.

use std::mem::offset_of;

use crate::error::AttachError;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// `"ringpipe"`, read as a little-endian number: a big-endian peer cannot be mistaken for one of ours.
const MAGIC: u64 = u64::from_le_bytes(*b"ringpipe");

/// Changes whenever anything in this file, in the record format or in the bell does.
const VERSION: u32 = 1;

/// The ring mode a segment was made for.
const MODE_SPSC: u32 = 1;

/// Bytes of a header's fields.
pub(crate) const HEADER_LEN: usize = 32;

/// Where the first ring starts.
pub(crate) const RINGS_AT: usize = 4096;

/// Smallest and largest ring, in bytes. The upper limit keeps every length below 2^32.
pub(crate) const MIN_CAPACITY: usize = 4096;
pub(crate) const MAX_CAPACITY: usize = 1 << 30;

/// The longest time a blocked call may be set to spin.
pub(crate) const MAX_SPIN_MICROS: u32 = 1_000_000;

/// One writer's words on a line of their own: 128 bytes, since processors fetch lines in pairs.
#[repr(C, align(128))]
pub(crate) struct Line<T>(pub(crate) T);

#[repr(C, align(128))]
pub(crate) struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    mode: AtomicU32,
    capacity: AtomicU64,
    directions: AtomicU32,
    spin_micros: AtomicU32,
}

/// Words that only the sending side writes.
#[repr(C)]
pub(crate) struct WriterWords {
    /// Where the next record goes.
    pub(crate) tail: AtomicU64,
    /// Where `tail` will be once the record being published is: differs from `tail` only inside
    /// that step, so whoever finds it so knows that a copy of this end was killed there.
    pub(crate) begun: AtomicU64,
    /// `head + capacity` as last seen: room is known up to here.
    pub(crate) limit: AtomicU64,
}

/// Words that only the receiving side writes.
#[repr(C)]
pub(crate) struct ReaderWords {
    /// Everything before is free for the writer.
    pub(crate) head: AtomicU64,
}

/// One direction: its cursors, and a seat for each side to wait on.
#[repr(C)]
pub(crate) struct Control {
    pub(crate) writer: Line<WriterWords>,
    pub(crate) reader: Line<ReaderWords>,
    /// The receiver's seat; see `wait.rs` for what its bits mean.
    pub(crate) not_empty: Line<AtomicU32>,
    /// The sender's seat.
    pub(crate) not_full: Line<AtomicU32>,
}

/// Bytes of a cell of a ring for many.
#[cfg(test)]
pub(crate) const CELL: usize = 64;

/// Where the next record goes, and what is free, in cells. Written by writers.
#[cfg(test)]
#[repr(C)]
pub(crate) struct TailWords {
    pub(crate) tail: AtomicU64,
    pub(crate) free: AtomicU64,
}

/// The cursors of a ring for many; see `ring/mpmc.rs`.
#[cfg(test)]
#[repr(C)]
pub(crate) struct ManyControl {
    pub(crate) tail: Line<TailWords>,
    pub(crate) head: Line<AtomicU64>,
}

const CONTROL_AT: usize = 256;
const CONTROL_STRIDE: usize = 768;

const _: () = {
    assert!(size_of::<Header>() <= CONTROL_AT);
    assert!(size_of::<Control>() == 512 && size_of::<Control>() <= CONTROL_STRIDE);
    assert!(CONTROL_AT % align_of::<Control>() == 0 && CONTROL_STRIDE % align_of::<Control>() == 0);
    assert!(CONTROL_AT + 2 * CONTROL_STRIDE <= RINGS_AT);
    assert!(MAX_CAPACITY <= u32::MAX as usize);
};

/// What a header says, once it has been checked. Kept in process memory and used instead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes of each ring: a power of two.
    pub(crate) capacity: usize,
    /// 1 (simplex) or 2 (duplex).
    pub(crate) directions: usize,
    /// The longest that a blocked call spins.
    pub(crate) spin_micros: u32,
}

impl Geometry {
    pub(crate) fn segment_len(self) -> usize {
        RINGS_AT + self.capacity * self.directions
    }

    pub(crate) fn control_offset(self, direction: usize) -> usize {
        assert!(direction < self.directions);
        CONTROL_AT + direction * CONTROL_STRIDE
    }

    pub(crate) fn ring_offset(self, direction: usize) -> usize {
        assert!(direction < self.directions);
        RINGS_AT + direction * self.capacity
    }
}

impl Header {
    /// Fills in a fresh (zeroed) header.
    pub(crate) fn write(&self, geometry: Geometry) {
        self.version.store(VERSION, Ordering::Relaxed);
        self.mode.store(MODE_SPSC, Ordering::Relaxed);
        self.capacity.store(geometry.capacity as u64, Ordering::Relaxed);
        self.directions.store(geometry.directions as u32, Ordering::Relaxed);
        self.spin_micros.store(geometry.spin_micros, Ordering::Relaxed);
        // No ordering needed: the segment reaches others only through a descriptor passed by the kernel.
        self.magic.store(MAGIC, Ordering::Relaxed);
    }

    /// Checks every field against what this build can use, and against the size of the segment, before it is mapped.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN], segment_len: u64) -> Result<Geometry, AttachError> {
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        let long = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        if long(offset_of!(Header, magic)) != MAGIC {
            return Err(AttachError::NotRingpipe);
        }
        let version = word(offset_of!(Header, version));
        if version != VERSION {
            return Err(AttachError::Version { ours: VERSION, theirs: version });
        }
        let mode = word(offset_of!(Header, mode));
        if mode != MODE_SPSC {
            return Err(AttachError::Mode { ours: MODE_SPSC, theirs: mode });
        }
        let capacity = long(offset_of!(Header, capacity));
        let directions = word(offset_of!(Header, directions));
        let ok = capacity.is_power_of_two()
            && (MIN_CAPACITY as u64..=MAX_CAPACITY as u64).contains(&capacity)
            && (1..=2).contains(&directions);
        if !ok {
            return Err(AttachError::Damaged { what: "its ring sizes make no sense" });
        }
        let geometry = Geometry {
            capacity: capacity as usize,
            directions: directions as usize,
            spin_micros: word(offset_of!(Header, spin_micros)).min(MAX_SPIN_MICROS),
        };
        if geometry.segment_len() as u64 != segment_len {
            return Err(AttachError::Damaged { what: "its length does not match its header" });
        }
        Ok(geometry)
    }
}
