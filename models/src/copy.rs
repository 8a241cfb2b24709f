//! Copies word by word, in the place of the crate's `src/copy.rs`: every word is checked for races with other copies, and relaxed, so
//! that whatever is not ordered may also be read as it was.

use std::ptr::NonNull;

use crate::segment::words_at;
use crate::sync::Ordering;

pub(crate) unsafe fn copy_in(src: &[u8], dst: NonNull<u8>) {
    // SAFETY: by the contract of the function that this replaces.
    unsafe { copy(src.as_ptr(), dst.as_ptr(), src.len()) }
}

pub(crate) unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: by the contract of the function that this replaces.
    unsafe {
        if let Some((words, payload)) = words_at(dst) {
            let bytes = std::slice::from_raw_parts(src, len);
            for ((chunk, word), payload) in bytes.chunks(8).zip(words).zip(payload) {
                let mut value = [0; 8];
                value[..chunk.len()].copy_from_slice(chunk);
                payload.with_mut(|_| ());
                word.store(u64::from_le_bytes(value), Ordering::Relaxed);
            }
            return;
        }
        let (words, payload) = words_at(src).expect("one side is a ring");
        let bytes = std::slice::from_raw_parts_mut(dst, len);
        for ((chunk, word), payload) in bytes.chunks_mut(8).zip(words).zip(payload) {
            payload.with(|_| ());
            let value = word.load(Ordering::Relaxed).to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}

pub(crate) fn prefetch_write(_: NonNull<u8>) {}
