//! Calls into Python.
//!
//! Until 3.13, a thread that wants the GIL while the interpreter is being finalized, as a daemon thread may that runs Python code at exit, is ended by `pthread_exit`. That unwinds its stack, which must not go
//! through a function of Rust's that Python has called: the process would be aborted. From 3.14 on such a thread hangs, so that is what is done here, and what
//! `pyo3` does when the GIL is taken.

use std::time::Duration;
use std::{ptr, thread};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

// What `pyo3` does not use: it declares its functions as ones that do not unwind, and the compiler would take its word for both.
unsafe extern "C-unwind" {
    fn PyObject_Call(
        callable: *mut ffi::PyObject,
        args: *mut ffi::PyObject,
        options: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
}

/// Lets nothing unwind past it.
struct Hang;

impl Drop for Hang {
    fn drop(&mut self) {
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
}

/// Calls a Python function that may run Python code.
pub(crate) fn call<'py>(
    py: Python<'py>,
    callable: &Bound<'py, PyAny>,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<Bound<'py, PyAny>> {
    call_with(py, callable, args, None)
}

/// The same, with keyword arguments.
pub(crate) fn call_with<'py>(
    py: Python<'py>,
    callable: &Bound<'py, PyAny>,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let args = args.into_pyobject(py)?;
    let options = options.map_or(ptr::null_mut(), |options| options.as_ptr());
    let hang = Hang;
    // SAFETY: all objects live; a new reference is returned, or null with an exception set.
    let result = unsafe { PyObject_Call(callable.as_ptr(), args.as_ptr(), options) };
    std::mem::forget(hang);
    // SAFETY: as above.
    unsafe { Bound::from_owned_ptr_or_err(py, result) }
}
