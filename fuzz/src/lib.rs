//! What several fuzz targets share: test messages, where cursors start, a count of what is allocated, and peers that rewrite memory.
//!
//! Exists in builds by `cargo fuzz` only.
#![cfg(fuzzing)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use arbitrary::Arbitrary;
use ringpipe::fuzzing::{Memory, many};

pub mod hostile;

/// Where a ring's cursors start: as in a new pipe, just below where 32 or 64 bits end, or anywhere.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "they say it themselves")]
pub enum Start {
    Zero,
    Before32Bits(u16),
    Before64Bits(u16),
    Anywhere(u64),
}

impl Start {
    /// The cursor, a multiple of 8.
    pub fn cursor(self) -> u64 {
        let cursor = match self {
            Start::Zero => 0,
            Start::Before32Bits(by) => (1 << 32) - u64::from(by % 0x2000),
            Start::Before64Bits(by) => 0_u64.wrapping_sub(u64::from(by % 0x2000)),
            Start::Anywhere(cursor) => cursor,
        };
        cursor & !7
    }
}

const NOISE: usize = 1 << 18;

/// Noise without a pattern: bytes from somewhere else differ.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    };
    std::iter::repeat_with(next).take(NOISE / 8).flatten().collect()
});

/// Message `number`: bytes that say which one it is.
///
/// A part of what was made once: making bytes for every message takes longer in an instrumented build than everything that is done with them.
pub fn message(number: usize, len: usize) -> &'static [u8] {
    let at = (number * 97) % (NOISE / 2);
    &BYTES[at..at + len]
}

// --- what is allocated -------------------------------------------------------------------------------

/// Counts what is allocated by Rust code.
struct Witness;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);

fn note(size: usize) {
    TOTAL.fetch_add(size, Ordering::Relaxed);
    if size > LARGEST.load(Ordering::Relaxed) {
        LARGEST.fetch_max(size, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Witness {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: by this function's own contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: by this function's own contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: by this function's own contract.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size.saturating_sub(layout.size()));
        if size > LARGEST.load(Ordering::Relaxed) {
            LARGEST.fetch_max(size, Ordering::Relaxed);
        }
        // SAFETY: by this function's own contract.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static WITNESS: Witness = Witness;

/// What was allocated since [`Allocated::reset`], by all threads.
#[derive(Clone, Copy, Debug)]
pub struct Allocated {
    /// Bytes of the largest piece.
    pub largest: usize,
    /// Bytes of all of them.
    pub total: usize,
}

impl Allocated {
    /// Counts from here on.
    pub fn reset() {
        LARGEST.store(0, Ordering::Relaxed);
        TOTAL.store(0, Ordering::Relaxed);
    }

    /// What it is by now.
    pub fn so_far() -> Allocated {
        Allocated { largest: LARGEST.load(Ordering::Relaxed), total: TOTAL.load(Ordering::Relaxed) }
    }
}

// --- what must not be touched -------------------------------------------------------------------------

unsafe extern "C" {
    /// Of the address sanitizer's runtime, without which the targets are not run.
    fn __asan_poison_memory_region(start: *const u8, len: usize);
}

/// Makes the address sanitizer report any access to the memory before and behind a pipe's ring.
pub fn guard(memory: &Memory) {
    for (start, len) in memory.out_of_bounds() {
        // SAFETY: mapped memory, aligned to 8, that nobody has any business with.
        unsafe { __asan_poison_memory_region(start, len) };
    }
}

/// The same for a pipe for many: poison before the words, and pages that nobody may touch behind the cells.
pub fn guard_many(memory: &many::Memory) {
    const LEN: usize = 1 << 20;
    let ((start, len), end) = memory.out_of_bounds();
    // SAFETY: as for `guard`; and a new mapping, made only where there is none.
    unsafe {
        __asan_poison_memory_region(start, len);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        libc::mmap(end.cast_mut().cast(), LEN, libc::PROT_NONE, flags, -1, 0);
    }
}

/// Settings of the address sanitizer, before those of the environment.
///
/// The fuzzer itself is instrumented, and would spend a third of its time on stack frames that are kept for a use after return, for which
/// the crate has no opportunity: it keeps no pointers into frames. A short quarantine stays in the caches.
#[unsafe(no_mangle)]
extern "C" fn __asan_default_options() -> *const std::ffi::c_char {
    c"detect_stack_use_after_return=0:quarantine_size_mb=16".as_ptr()
}

// --- descriptors -----------------------------------------------------------------------------------------

/// The number that the next descriptor would have.
pub fn lowest_free_descriptor() -> RawFd {
    File::open("/dev/null").expect("it is everywhere").as_raw_fd()
}

/// The most descriptors that are sent at once.
pub const MAX_FDS: usize = 6;

/// Sends bytes with so many descriptors attached, [`MAX_FDS`] at most. No bytes carry none.
pub fn send_with_fds(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    if bytes.is_empty() {
        return;
    }
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    // Aligned as a `cmsghdr` has to be, and large enough for the header and all descriptors.
    let mut control = [MaybeUninit::<u64>::zeroed(); 8];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all pointers in the message lead to locals that outlive the call; `control` has room for `CMSG_SPACE` of MAX_FDS
    // numbers, which the assertion checks.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut iov;
        message.msg_iovlen = 1;
        if !numbers.is_empty() {
            let size = size_of_val(numbers.as_slice()) as u32;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size) as usize;
            assert!(message.msg_controllen <= size_of_val(&control));
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), libc::CMSG_DATA(header).cast(), numbers.len());
        }
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
}
