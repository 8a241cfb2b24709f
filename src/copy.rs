//! Copies between process memory and the ring.
//!
//! Through raw pointers only: bytes of the ring may change under us at the hands of a hostile peer, so no reference to
//! them may exist. What is copied out is looked at only afterwards.

use std::ptr::{self, NonNull};

/// Copies `src` to shared memory.
///
/// # Safety
///
/// `dst` must be valid for writes of `src.len()` bytes and not overlap `src`.
#[inline(always)]
pub(crate) unsafe fn copy_in(src: &[u8], dst: NonNull<u8>) {
    // SAFETY: by this function's contract.
    unsafe { copy(src.as_ptr(), dst.as_ptr(), src.len()) }
}

/// `memcpy` with the short lengths inline: a call costs more than a message of a cache line.
///
/// # Safety
///
/// As `ptr::copy_nonoverlapping`.
#[inline(always)]
pub(crate) unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: by this function's contract.
    unsafe {
        match len {
            0..=SHORT => copy_short(src, dst, len),
            _ => ptr::copy_nonoverlapping(src, dst, len),
        }
    }
}

/// The most that [`copy_short`] copies.
pub(crate) const SHORT: usize = 64;

/// `memcpy` of at most [`SHORT`] bytes, without a call.
///
/// # Safety
///
/// As `ptr::copy_nonoverlapping`.
#[inline(always)]
pub(crate) unsafe fn copy_short(src: *const u8, dst: *mut u8, len: usize) {
    debug_assert!(len <= SHORT);
    // SAFETY: in every case the two, possibly overlapping, pieces cover exactly the first `len` bytes.
    unsafe {
        // In this order, for a table of jumps would be no better than the call.
        if len >= 8 {
            if len <= 16 {
                two_pieces::<8>(src, dst, len);
            } else if len <= 32 {
                two_pieces::<16>(src, dst, len);
            } else {
                two_pieces::<32>(src, dst, len);
            }
        } else if len >= 4 {
            two_pieces::<4>(src, dst, len);
        } else if len > 0 {
            let (first, mid, last) = (*src, *src.add(len / 2), *src.add(len - 1));
            *dst = first;
            *dst.add(len / 2) = mid;
            *dst.add(len - 1) = last;
        }
    }
}

/// Copies the first `N` and the last `N` of `len` bytes, `N <= len <= 2 N`.
///
/// # Safety
///
/// As `ptr::copy_nonoverlapping`.
#[inline(always)]
unsafe fn two_pieces<const N: usize>(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: both pieces lie within `len` bytes; bytes have no alignment.
    unsafe {
        ptr::copy_nonoverlapping(src, dst, N);
        ptr::copy_nonoverlapping(src.add(len - N), dst.add(len - N), N);
    }
}

/// Asks for the line at `address` to be brought here for reading, where the processor can be asked.
#[inline(always)]
pub(crate) fn prefetch_read(address: NonNull<u8>) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch neither reads nor writes as far as a program can tell, whatever the address.
    unsafe {
        std::arch::asm!("prefetcht0 [{}]", in(reg) address.as_ptr(), options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// Asks for the line at `address` to be brought here for writing, where the processor can be asked.
#[inline(always)]
pub(crate) fn prefetch_write(address: NonNull<u8>) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch neither reads nor writes as far as a program can tell, whatever the address.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address.as_ptr(), options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}
