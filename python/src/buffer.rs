//! Memory of Python objects, borrowed by the buffer protocol.
//!
//! The protocol is part of the stable ABI from 3.11 on only, so `pyo3` has it from there on only, and what is used of it is declared here. Functions and layout are the
//! same in 3.9 and 3.10, which do not change any more.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;
use std::{ptr, slice};

use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::half::Place;

/// `Py_buffer`.
#[repr(C)]
pub(crate) struct View {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: isize,
    itemsize: isize,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut isize,
    strides: *mut isize,
    suboffsets: *mut isize,
    internal: *mut c_void,
}

const SIMPLE: c_int = 0;
const WRITABLE: c_int = 1;
const ND: c_int = 8;

unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, view: *mut View, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut View);
    pub(crate) fn PyBuffer_FillInfo(
        view: *mut View,
        object: *mut ffi::PyObject,
        buf: *mut c_void,
        len: isize,
        readonly: c_int,
        flags: c_int,
    ) -> c_int;
}

/// The bytes of an object, which keeps them where they are until this is dropped, with the GIL.
pub(crate) struct Buffer<'py> {
    view: View,
    _py: Python<'py>,
}

impl<'py> Buffer<'py> {
    /// All bytes, in the order in which they lie in memory.
    ///
    /// As `memoryview` for what has none, `TypeError` for what does not lie in one piece.
    pub(crate) fn readable(object: &Bound<'py, PyAny>) -> PyResult<Buffer<'py>> {
        let py = object.py();
        Buffer::get(object, SIMPLE).map_err(|e| match e.is_instance_of::<PyBufferError>(py) {
            true => PyTypeError::new_err("a buffer is needed whose bytes lie in one piece, in C order"),
            false => e,
        })
    }

    /// `None` for anything but items in a row that may be written to.
    pub(crate) fn writable(object: &Bound<'py, PyAny>) -> Option<Buffer<'py>> {
        let buffer = Buffer::get(object, WRITABLE | ND).ok()?;
        (buffer.view.itemsize > 0 && buffer.view.ndim == 1).then_some(buffer)
    }

    fn get(object: &Bound<'py, PyAny>, flags: c_int) -> PyResult<Buffer<'py>> {
        let mut view = View {
            buf: ptr::null_mut(),
            obj: ptr::null_mut(),
            len: 0,
            itemsize: 0,
            readonly: 0,
            ndim: 0,
            format: ptr::null_mut(),
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            suboffsets: ptr::null_mut(),
            internal: ptr::null_mut(),
        };
        // SAFETY: the object lives; the view is released once, and not moved by Python in between (it may be moved by us, as nothing in it points
        // to itself: `shape` of a flat buffer can point to `len`, so it is not looked at after the call).
        match unsafe { PyObject_GetBuffer(object.as_ptr(), &mut view, flags) } {
            0 => Ok(Buffer { view, _py: object.py() }),
            _ => Err(PyErr::fetch(object.py())),
        }
    }

    /// The bytes. Other threads may write to them at the same time if the object lets them, as with everything that exports its memory: then it is for the
    /// program to say what they should be. (To Rust, a slice that is written to by others is undefined, and so it is in every such module. Nothing but a copy is made of it.)
    pub(crate) fn bytes(&self) -> &[u8] {
        match self.view.len {
            0 => &[],
            // SAFETY: the exporter says so many bytes are there, as long as the view is not released.
            len => unsafe { slice::from_raw_parts(self.view.buf.cast(), len as usize) },
        }
    }

    /// The memory of a [writable](Self::writable) buffer, which is there as long as `self` is. Others may use it at the same time.
    pub(crate) fn place(&self) -> Place {
        debug_assert!(self.view.readonly == 0);
        Place(NonNull::new(self.view.buf.cast()).unwrap_or(NonNull::dangling()), self.view.len as usize)
    }

    /// Bytes of an item.
    pub(crate) fn item_size(&self) -> usize {
        self.view.itemsize as usize
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: got in `get`, released once; the GIL is held, as `_py` says.
        unsafe { PyBuffer_Release(&mut self.view) }
    }
}
