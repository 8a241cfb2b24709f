//! Objects that nobody else has yet, to be filled with what is received.

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::half::Place;

/// From so many bytes on, huge pages are asked for. Memory of this size is new to the process each time, as a rule, and to have it page by page takes longer than to fill it.
const LARGE: usize = 4 << 20;
/// The least that pages have.
const PAGE: usize = 4096;

/// A `bytes` or `bytearray` object. Nothing is written to its memory before it is filled, however long it is.
pub(crate) struct Fresh<'py> {
    object: Bound<'py, PyAny>,
    start: NonNull<u8>,
    len: usize,
}

impl<'py> Fresh<'py> {
    pub(crate) fn bytes(py: Python<'py>, len: usize) -> PyResult<Fresh<'py>> {
        Fresh::new(py, len, ffi::PyBytes_FromStringAndSize, ffi::PyBytes_AsString)
    }

    pub(crate) fn byte_array(py: Python<'py>, len: usize) -> PyResult<Fresh<'py>> {
        Fresh::new(py, len, ffi::PyByteArray_FromStringAndSize, ffi::PyByteArray_AsString)
    }

    fn new(
        py: Python<'py>,
        len: usize,
        make: unsafe extern "C" fn(*const std::ffi::c_char, ffi::Py_ssize_t) -> *mut ffi::PyObject,
        memory: unsafe extern "C" fn(*mut ffi::PyObject) -> *mut std::ffi::c_char,
    ) -> PyResult<Fresh<'py>> {
        let size = isize::try_from(len).map_err(|_| PyMemoryError::new_err(()))?;
        // SAFETY: a null pointer asks for an object of that length; it returns a new reference, or null with an exception set.
        let object = unsafe { Bound::from_owned_ptr_or_err(py, make(ptr::null(), size)) }?;
        // SAFETY: it is of the type that has that memory.
        let start =
            NonNull::new(unsafe { memory(object.as_ptr()) }.cast()).ok_or_else(|| PyMemoryError::new_err(()))?;
        if len >= LARGE {
            ask_for_huge_pages(start, len);
        }
        Ok(Fresh { object, start, len })
    }

    /// Its memory, which is there as long as `self` is.
    pub(crate) fn place(&self) -> Place {
        Place(self.start, self.len)
    }

    pub(crate) fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the memory is the object's, which lives as long as `self`, and nobody else has a reference to it.
        unsafe { slice::from_raw_parts_mut(self.start.cast().as_ptr(), self.len) }
    }

    /// The object, once it has been filled.
    pub(crate) fn filled(self) -> Bound<'py, PyAny> {
        self.object
    }

    /// The same, of one that was made by [`bytes`](Self::bytes).
    pub(crate) fn filled_bytes(self) -> Bound<'py, PyBytes> {
        debug_assert!(self.object.is_exact_instance_of::<PyBytes>());
        // SAFETY: by the contract.
        unsafe { self.object.cast_into_unchecked() }
    }
}

fn ask_for_huge_pages(start: NonNull<u8>, len: usize) {
    let skip = start.as_ptr().align_offset(PAGE);
    let whole = len.saturating_sub(skip) / PAGE * PAGE;
    // SAFETY: the pages lie within the object's memory, and keep what is in them. Whether they become huge is up to the kernel.
    unsafe { libc::madvise(start.as_ptr().add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
}
