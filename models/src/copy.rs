//! Copies word by word, in the place of the crate's `src/copy.rs`: every word is checked for races with other copies, and relaxed, so
//! that whatever is not ordered may also be read as it was. (Of the cells of a ring for many, the first word is.)

use std::ptr::NonNull;

use crate::segment::{Place, words_at};
use crate::sync::Ordering;

pub(crate) unsafe fn copy_in(src: &[u8], dst: NonNull<u8>) {
    // SAFETY: by the contract of the function that this replaces.
    unsafe { copy(src.as_ptr(), dst.as_ptr(), src.len()) }
}

pub(crate) const SHORT: usize = 64;

pub(crate) unsafe fn copy_short(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: by the contract of the function that this replaces.
    unsafe { copy(src, dst, len) }
}

pub(crate) unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: by the contract of the function that this replaces.
    unsafe {
        if let Some(places) = words_at(dst) {
            let bytes = std::slice::from_raw_parts(src, len);
            for (chunk, place) in bytes.chunks(8).zip(places) {
                let mut value = [0; 8];
                value[..chunk.len()].copy_from_slice(chunk);
                let value = u64::from_le_bytes(value);
                match place {
                    Place::Watched(word, payload) => {
                        payload.with_mut(|_| ());
                        word.store(value, Ordering::Relaxed);
                    }
                    Place::Plain(word) => word.set(value),
                }
            }
            return;
        }
        let places = words_at(src).expect("one side is a ring");
        let bytes = std::slice::from_raw_parts_mut(dst, len);
        for (chunk, place) in bytes.chunks_mut(8).zip(places) {
            let value = match place {
                Place::Watched(word, payload) => {
                    payload.with(|_| ());
                    word.load(Ordering::Relaxed)
                }
                Place::Plain(word) => word.get(),
            };
            chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
        }
    }
}

pub(crate) fn prefetch_read(_: NonNull<u8>) {}

pub(crate) fn prefetch_write(_: NonNull<u8>) {}
