//! Messages that are looked at where they lie.
//!
//! A view is a `memoryview` of an object that has the message, the *exporter*, which counts who uses its memory. When the block is over and the count is zero, the message is
//! consumed. If it is not, it is consumed as soon as that comes about, so no pointer ever dangles.
//!
//! `pyo3` has the buffer protocol for classes from Python 3.11 on only, for the reason given in `buffer.rs`, so the exporter's class is made here.

use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use pyo3::exceptions::{PyBufferError, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyMemoryView, PyType};

use crate::buffer::{PyBuffer_FillInfo, View};
use crate::connection::Ends;
use crate::guarded::Guarded;
use crate::half::{AtHand, Fault, Viewed};

/// Numbers of slots, which `pyo3` has from Python 3.11 on. The same since 3.9.
const BF_GETBUFFER: c_int = 1;
const BF_RELEASEBUFFER: c_int = 2;

static EXPORTER: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// What has the message.
enum Held {
    InRing(Viewed, Arc<Ends>),
    Own(Py<PyBytes>),
    Consumed,
}

struct Message {
    held: Held,
    /// Users of the memory.
    exports: usize,
    /// Whether the block is over.
    over: bool,
}

impl Message {
    fn consume(&mut self) {
        if let Held::InRing(viewed, ends) = mem::replace(&mut self.held, Held::Consumed) {
            ends.recv.as_ref().expect("checked").end_view(viewed);
        }
    }
}

/// The object. Only who has the GIL touches it.
#[repr(C)]
struct Exporter {
    head: ffi::PyObject,
    /// Null in one that was not made by [`export`].
    message: *mut Message,
}

unsafe extern "C" fn get_buffer(object: *mut ffi::PyObject, view: *mut View, flags: c_int) -> c_int {
    // SAFETY: called with an object of this class, and the GIL, as are the others.
    let message = unsafe { (*object.cast::<Exporter>()).message.as_mut() };
    let found = message.and_then(|message| {
        let (start, len) = match &message.held {
            Held::InRing(viewed, _) => viewed.message(),
            // SAFETY: as above.
            Held::Own(bytes) => unsafe {
                let bytes = bytes.bind(Python::assume_attached()).as_bytes();
                (NonNull::from(bytes).cast(), bytes.len())
            },
            Held::Consumed => return None,
        };
        Some((message, start, len))
    });
    let Some((message, start, len)) = found else {
        // SAFETY: as above, and a view that nobody gets is to have no object.
        unsafe {
            PyBufferError::new_err("the message has been consumed").restore(Python::assume_attached());
            (*view.cast::<Start>()).object = ptr::null_mut();
        }
        return -1;
    };
    // SAFETY: the memory is there until the view is released, as it counts.
    let result = unsafe { PyBuffer_FillInfo(view, object, start.as_ptr().cast(), len as isize, 1, flags) };
    message.exports += usize::from(result == 0);
    result
}

/// How a `Py_buffer` starts.
#[repr(C)]
struct Start {
    memory: *mut c_void,
    object: *mut ffi::PyObject,
}

unsafe extern "C" fn release_buffer(object: *mut ffi::PyObject, _view: *mut View) {
    // SAFETY: as in `get_buffer`, which has counted it.
    if let Some(message) = unsafe { (*object.cast::<Exporter>()).message.as_mut() } {
        message.exports -= 1;
        if message.over && message.exports == 0 {
            message.consume();
        }
    }
}

unsafe extern "C" fn dealloc(object: *mut ffi::PyObject) {
    // SAFETY: as in `get_buffer`; nobody has the object any more. It has a reference to its class, as all of such classes.
    unsafe {
        let message = (*object.cast::<Exporter>()).message;
        if !message.is_null() {
            Box::from_raw(message).consume();
        }
        let class = ffi::Py_TYPE(object);
        ffi::PyObject_Free(object.cast());
        ffi::Py_DecRef(class.cast());
    }
}

/// Makes the exporters' class.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    let slot = |slot, function: *mut c_void| ffi::PyType_Slot { slot, pfunc: function };
    let mut slots = [
        slot(BF_GETBUFFER, get_buffer as *mut c_void),
        slot(BF_RELEASEBUFFER, release_buffer as *mut c_void),
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(0, ptr::null_mut()),
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"ringpipe._native.Message".as_ptr(),
        basicsize: size_of::<Exporter>() as c_int,
        itemsize: 0,
        flags: ffi::Py_TPFLAGS_DEFAULT as u32,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the functions are of the kinds that belong in these slots. A new reference is returned, or null with an exception set.
    let class = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&mut spec)) }?;
    let _ = EXPORTER.set(py, class.cast_into::<PyType>()?.unbind());
    Ok(())
}

fn export<'py>(py: Python<'py>, held: Held) -> PyResult<Bound<'py, PyAny>> {
    let message = Box::into_raw(Box::new(Message { held, exports: 0, over: false }));
    let class = EXPORTER.get(py).expect("set when the module was imported");
    // SAFETY: a new reference is returned, or null with an exception set. The object is of this layout.
    unsafe {
        let object = Bound::from_owned_ptr_or_err(py, ffi::PyType_GenericAlloc(class.as_ptr().cast(), 0));
        match &object {
            Ok(object) => (*object.as_ptr().cast::<Exporter>()).message = message,
            Err(_) => Box::from_raw(message).consume(),
        }
        object
    }
}

/// What `recv_view` returns: receives a message when it is entered.
#[pyclass(frozen, module = "ringpipe._native", name = "MessageView")]
pub(crate) struct Viewing {
    ends: Arc<Ends>,
    /// The view, and the exporter.
    open: Guarded<Option<(Py<PyAny>, Py<PyAny>)>>,
}

impl Viewing {
    pub(crate) fn new(ends: Arc<Ends>) -> Viewing {
        Viewing { ends, open: Guarded::new(None) }
    }

    fn receive(&self, py: Python<'_>) -> Result<Held, Fault> {
        let half = self.ends.recv.as_ref().expect("checked");
        loop {
            match half.view()? {
                AtHand::Taken(viewed) => return Ok(Held::InRing(viewed, self.ends.clone())),
                AtHand::Long(len) => {
                    if let Some(bytes) = half.receive_long_bytes(py, len)? {
                        return Ok(Held::Own(bytes.unbind()));
                    }
                }
                AtHand::Nothing => half.look(py)?,
            }
        }
    }
}

#[pymethods]
impl Viewing {
    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if self.open.with(py, |open| open.is_some()) {
            return Err(PyRuntimeError::new_err("the view is open"));
        }
        let exporter = export(py, self.receive(py)?)?;
        let view = PyMemoryView::from(&exporter)?.into_any();
        let before = self.open.with(py, |open| open.replace((view.clone().unbind(), exporter.unbind())));
        // Another thread has entered it meanwhile.
        drop(before);
        Ok(view)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let Some((view, exporter)) = self.open.with(py, Option::take) else {
            return Err(PyRuntimeError::new_err("the view is not open"));
        };
        // What it says if it is used by others is said below, of those as well that were made of it.
        let released = view.call_method0(py, "release").is_ok();
        drop(view);
        // SAFETY: it was made by `export`, and the GIL is held.
        let message = unsafe { &mut *(*exporter.as_ptr().cast::<Exporter>()).message };
        message.over = true;
        if message.exports == 0 {
            message.consume();
        } else if kind.is_none() {
            let message = "the message's memory is still in use, and is kept until it is not";
            return Err(PyBufferError::new_err(message));
        }
        debug_assert!(released || message.exports > 0);
        Ok(false)
    }
}
