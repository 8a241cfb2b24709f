//! The memory that both sides map.
//!
//! A segment is an anonymous memory file (`memfd_create`): no name, so nothing is left behind, and
//! sealed against any change of size, so no peer can pull pages away under a mapping (a SIGBUS). (The
//! feature `posix-shm` gives up the latter where there are no such files.)

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::error::AttachError;
use crate::layout::{Control, Geometry, HEADER_LEN, Header, ManyControl, Mode, RINGS_AT};
use crate::sync::AtomicU64;
use crate::sys;

/// The name of a memory file that has none of its own.
pub(crate) const ANONYMOUS: &CStr = c"ringpipe";

/// What the header of somebody else's segment says, if it is one that can be believed to stay so: see [`Segment::attach`].
pub(crate) fn check(fd: BorrowedFd<'_>, mode: Mode) -> Result<Geometry, AttachError> {
    let len = sys::memory_len(fd)?.ok_or(AttachError::NotSealed)?;
    let mut header = [0; HEADER_LEN];
    if sys::read_start(fd, &mut header)? < HEADER_LEN {
        return Err(AttachError::NotRingpipe);
    }
    Header::parse(&header, len, mode)
}

pub(crate) struct Segment {
    memory: Memory,
    geometry: Geometry,
}

enum Memory {
    Mapped {
        map: MmapRaw,
        fd: OwnedFd,
    },
    /// For unit tests and fuzzing: rings without a kernel, as miri wants them, between the red zones of a sanitizer.
    #[cfg(any(test, fuzzing))]
    Heap {
        base: NonNull<u8>,
        layout: std::alloc::Layout,
    },
}

// SAFETY: the segment is plain shared memory; every access goes through atomics or through raw
// copies that the ring protocol orders, from whichever thread.
unsafe impl Send for Segment {}
// SAFETY: as above; `Segment` itself hands out only addresses.
unsafe impl Sync for Segment {}

impl Segment {
    /// The name says something to whoever looks into `/proc`, and nothing to anybody else.
    pub(crate) fn create(geometry: Geometry, name: &CStr) -> io::Result<Segment> {
        let len = geometry.segment_len();
        let fd = sys::memory_file(name, geometry.file_len(), len)?;
        let segment = Segment { memory: Memory::map(fd, len)?, geometry };
        segment.header().write(geometry);
        Ok(segment)
    }

    /// Takes all of the mapped part's memory now. Where the kernel cannot do that, it is taken as it is used.
    pub(crate) fn populate(&self) -> io::Result<()> {
        match &self.memory {
            Memory::Mapped { map, .. } => match map.advise(Advice::PopulateWrite) {
                // Linux before 5.14.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                result => result,
            },
            #[cfg(any(test, fuzzing))]
            Memory::Heap { .. } => Ok(()),
        }
    }

    /// Maps somebody else's segment, once it is certain that its size is what its header says and can
    /// never change.
    ///
    /// Not before: nobody chooses how much of our address space is mapped.
    pub(crate) fn attach(fd: OwnedFd, mode: Mode) -> Result<Segment, AttachError> {
        let geometry = check(fd.as_fd(), mode)?;
        Ok(Segment { memory: Memory::map(fd, geometry.segment_len())?, geometry })
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn heap(geometry: Geometry) -> Segment {
        let layout = std::alloc::Layout::from_size_align(geometry.segment_len(), 4096).unwrap();
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
        let segment = Segment { memory: Memory::Heap { base, layout }, geometry };
        segment.header().write(geometry);
        segment
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, longer than a header and lives as long as `self`.
        unsafe { self.memory.base().cast::<Header>().as_ref() }
    }

    /// The cursors and seats of a direction; valid as long as the segment.
    pub(crate) fn control(&self, direction: usize) -> NonNull<Control> {
        // SAFETY: `control_offset` is in bounds and aligned for every direction that exists.
        unsafe { self.memory.base().add(self.geometry.control_offset(direction)).cast() }
    }

    /// The cursors and seats of a ring for many; valid as long as the segment.
    pub(crate) fn many_control(&self) -> NonNull<ManyControl> {
        debug_assert!(self.geometry.mode == Mode::Mpmc);
        // SAFETY: as for `control`.
        unsafe { self.memory.base().add(self.geometry.control_offset(0)).cast() }
    }

    /// The first of the words, one for each cell, of a ring for many; valid as long as the segment.
    pub(crate) fn cell_words(&self) -> NonNull<AtomicU64> {
        debug_assert!(self.geometry.mode == Mode::Mpmc);
        // SAFETY: the words lie before the cells, in the same mapping.
        unsafe { self.memory.base().add(RINGS_AT).cast() }
    }

    /// The first byte of a direction's ring, `capacity` bytes long; valid as long as the segment.
    pub(crate) fn ring(&self, direction: usize) -> NonNull<u8> {
        // SAFETY: `ring_offset` plus the capacity is at most the segment's length.
        unsafe { self.memory.base().add(self.geometry.ring_offset(direction)) }
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.memory {
            Memory::Mapped { fd, .. } => fd.as_fd(),
            #[cfg(any(test, fuzzing))]
            Memory::Heap { .. } => unreachable!("a heap segment has no descriptor"),
        }
    }
}

impl Memory {
    fn map(fd: OwnedFd, len: usize) -> io::Result<Memory> {
        let map = MmapOptions::new().len(len).map_raw(&fd)?;
        Ok(Memory::Mapped { map, fd })
    }

    fn base(&self) -> NonNull<u8> {
        match self {
            Memory::Mapped { map, .. } => NonNull::new(map.as_mut_ptr()).expect("mmap never returns address 0"),
            #[cfg(any(test, fuzzing))]
            Memory::Heap { base, .. } => *base,
        }
    }
}

#[cfg(any(test, fuzzing))]
impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Heap { base, layout } = self {
            // SAFETY: allocated with this very layout, freed once.
            unsafe { std::alloc::dealloc(base.as_ptr(), *layout) }
        }
    }
}
