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
//! A segment for many senders and receivers has one direction, and in place of the rings:
//!
//! ```text
//! 256   ManyControl                 cursors and seats
//! 4096  a word for each cell        `capacity / 8` bytes
//! 4096 + capacity / 8               the cells, `capacity` bytes
//! behind that, never mapped         four windows for what long messages have beyond a quarter of the ring
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

/// The kind of ring that a segment was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Mode {
    /// One sender and one receiver for each direction.
    Spsc = 1,
    /// Many senders and many receivers.
    Mpmc = 2,
}

/// Bytes of a header's fields.
pub(crate) const HEADER_LEN: usize = 32;

/// Where the first ring starts.
pub(crate) const RINGS_AT: usize = 4096;

/// Smallest and largest ring, in bytes. The upper limit keeps every length below 2^32.
pub(crate) const MIN_CAPACITY: usize = 4096;
pub(crate) const MAX_CAPACITY: usize = 1 << 30;

/// Bytes of a cell of a ring for many, and the smallest such ring: cells carry the number of their lap, which must not come round again.
pub(crate) const CELL: usize = 64;
pub(crate) const MIN_MANY_CAPACITY: usize = 64 << 10;

/// The longest part of a message that lies outside the ring. All four windows stay below what a 32-bit kernel can address in a file.
pub(crate) const MAX_WINDOW: u64 = 1 << 41;
/// As many long messages as can be in a ring.
pub(crate) const WINDOWS: u64 = 4;

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
    /// The receiver's seat; see `bell.rs` for what its bits mean.
    pub(crate) not_empty: Line<AtomicU32>,
    /// The sender's seat.
    pub(crate) not_full: Line<AtomicU32>,
}

/// What a crowd waits on; see `crowd.rs`.
#[repr(C)]
pub(crate) struct Seat {
    /// As the seat of a single waiter, but for its `ASLEEP` bit.
    pub(crate) bell: AtomicU32,
    /// What all sleep on but one.
    pub(crate) sleepers: AtomicU32,
    /// The member that watches the bell, plus one.
    pub(crate) leader: AtomicU32,
    /// When somebody was last woken.
    pub(crate) woken_at: AtomicU64,
}

/// Where the next record goes, and what is free. Written by senders.
#[repr(C)]
pub(crate) struct TailWords {
    pub(crate) tail: AtomicU64,
    pub(crate) free: AtomicU64,
    /// The length of the long message that has the window of that number.
    pub(crate) long: [AtomicU64; WINDOWS as usize],
    /// Who is to get room before all others, and until when.
    pub(crate) precedence: AtomicU64,
    /// Until when nobody is to.
    pub(crate) pause: AtomicU64,
    /// How much of the window of that number has been written since its memory was last given back.
    pub(crate) extent: [AtomicU64; WINDOWS as usize],
}

/// A ring for many; see `ring/mpmc.rs`. Cursors count cells.
#[repr(C)]
pub(crate) struct ManyControl {
    pub(crate) tail: Line<TailWords>,
    pub(crate) head: Line<AtomicU64>,
    /// The receivers' seat.
    pub(crate) not_empty: Line<Seat>,
    /// The senders' seat.
    pub(crate) not_full: Line<Seat>,
}

const CONTROL_AT: usize = 256;
const CONTROL_STRIDE: usize = 768;

const _: () = {
    assert!(size_of::<Header>() <= CONTROL_AT);
    assert!(size_of::<Control>() == 512 && size_of::<Control>() <= CONTROL_STRIDE);
    assert!(CONTROL_AT % align_of::<Control>() == 0 && CONTROL_STRIDE % align_of::<Control>() == 0);
    assert!(CONTROL_AT + 2 * CONTROL_STRIDE <= RINGS_AT);
    assert!(offset_of!(ManyControl, not_empty) == 256 && CONTROL_AT + size_of::<ManyControl>() <= RINGS_AT);
    assert!(MIN_MANY_CAPACITY / 8 % 4096 == 0);
    assert!(MAX_CAPACITY <= u32::MAX as usize);
};

/// What a header says, once it has been checked. Kept in process memory and used instead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) mode: Mode,
    /// Bytes of each ring: a power of two.
    pub(crate) capacity: usize,
    /// 1 (simplex) or 2 (duplex).
    pub(crate) directions: usize,
    /// The longest that a blocked call spins.
    pub(crate) spin_micros: u32,
    /// Bytes of each window behind the mapped part.
    pub(crate) window: u64,
}

impl Geometry {
    pub(crate) fn spsc(capacity: usize, directions: usize, spin_micros: u32) -> Geometry {
        Geometry { mode: Mode::Spsc, capacity, directions, spin_micros, window: 0 }
    }

    /// Without windows.
    pub(crate) fn mpmc(capacity: usize, spin_micros: u32) -> Geometry {
        Geometry { mode: Mode::Mpmc, capacity, directions: 1, spin_micros, window: 0 }
    }

    /// Bytes of the part that is mapped.
    pub(crate) fn segment_len(self) -> usize {
        match self.mode {
            Mode::Spsc => RINGS_AT + self.capacity * self.directions,
            Mode::Mpmc => RINGS_AT + self.capacity / 8 + self.capacity,
        }
    }

    /// Bytes of the memory file.
    pub(crate) fn file_len(self) -> u64 {
        self.segment_len() as u64 + WINDOWS * self.window
    }

    /// Where a window starts in the memory file.
    pub(crate) fn window_offset(self, index: usize) -> u64 {
        self.segment_len() as u64 + index as u64 % WINDOWS * self.window
    }

    pub(crate) fn control_offset(self, direction: usize) -> usize {
        assert!(direction < self.directions);
        CONTROL_AT + direction * CONTROL_STRIDE
    }

    pub(crate) fn ring_offset(self, direction: usize) -> usize {
        assert!(direction < self.directions);
        match self.mode {
            Mode::Spsc => RINGS_AT + direction * self.capacity,
            Mode::Mpmc => RINGS_AT + self.capacity / 8,
        }
    }
}

impl Header {
    /// Fills in a fresh (zeroed) header.
    pub(crate) fn write(&self, geometry: Geometry) {
        self.version.store(VERSION, Ordering::Relaxed);
        self.mode.store(geometry.mode as u32, Ordering::Relaxed);
        self.capacity.store(geometry.capacity as u64, Ordering::Relaxed);
        self.directions.store(geometry.directions as u32, Ordering::Relaxed);
        self.spin_micros.store(geometry.spin_micros, Ordering::Relaxed);
        // No ordering needed: the segment reaches others only through a descriptor passed by the kernel.
        self.magic.store(MAGIC, Ordering::Relaxed);
    }

    /// Checks every field against what this build can use, and against the size of the segment, before it is mapped.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN], file_len: u64, wanted: Mode) -> Result<Geometry, AttachError> {
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
        if mode != wanted as u32 {
            return Err(AttachError::Mode { ours: wanted as u32, theirs: mode });
        }
        let capacity = long(offset_of!(Header, capacity));
        let directions = word(offset_of!(Header, directions));
        let (least, most_directions) = match wanted {
            Mode::Spsc => (MIN_CAPACITY, 2),
            Mode::Mpmc => (MIN_MANY_CAPACITY, 1),
        };
        let ok = capacity.is_power_of_two()
            && (least as u64..=MAX_CAPACITY as u64).contains(&capacity)
            && (1..=most_directions).contains(&directions);
        if !ok {
            return Err(AttachError::Damaged { what: "its ring sizes make no sense" });
        }
        let mut geometry = Geometry {
            mode: wanted,
            capacity: capacity as usize,
            directions: directions as usize,
            spin_micros: word(offset_of!(Header, spin_micros)).min(MAX_SPIN_MICROS),
            window: 0,
        };
        if wanted == Mode::Mpmc {
            // What is there beyond the mapped part is windows.
            geometry.window = (file_len.saturating_sub(geometry.file_len()) / WINDOWS).min(MAX_WINDOW);
        }
        if geometry.file_len() != file_len {
            return Err(AttachError::Damaged { what: "its length does not match its header" });
        }
        Ok(geometry)
    }
}
