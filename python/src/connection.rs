//! What a connection object does. Its class is put together in `ringpipe/_connection.py`, out of this one and the standard library's.

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;
use ringpipe::{AttachError, BuildError, Connection, End, Receiver, Sender};

use crate::buffer::Buffer;
use crate::half::{Fault, Message, RecvHalf, SendHalf};
use crate::pickling::{dumps, loads};

/// An open end.
struct Ends {
    send: Option<SendHalf>,
    recv: Option<RecvHalf>,
    /// What makes a copy of the end: which it is, and the numbers of its descriptors (the halves own them): the memory's, then the bells'.
    frame: [u8; 16],
    fds: Vec<RawFd>,
    /// A descriptor of the memory that no other end has. See [`Core::parts`].
    memory: OnceLock<OwnedFd>,
    watched: AtomicBool,
}

impl Ends {
    fn new<E: End>(end: E, halves: impl FnOnce(E) -> (Option<Sender>, Option<Receiver>)) -> PyResult<Arc<Ends>> {
        let (frame, fds) = end.parts()?;
        let fds = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let (send, recv) = halves(end);
        Ok(Arc::new(Ends {
            send: send.map(SendHalf::new),
            recv: recv.map(RecvHalf::new),
            frame,
            fds,
            memory: OnceLock::new(),
            watched: AtomicBool::new(false),
        }))
    }

    fn duplex(connection: Connection) -> PyResult<Arc<Ends>> {
        Ends::new(connection, |connection| {
            let (sender, receiver) = connection.split();
            (Some(sender), Some(receiver))
        })
    }

    fn sending(sender: Sender) -> PyResult<Arc<Ends>> {
        Ends::new(sender, |sender| (Some(sender), None))
    }

    fn receiving(receiver: Receiver) -> PyResult<Arc<Ends>> {
        Ends::new(receiver, |receiver| (None, Some(receiver)))
    }
}

struct State {
    ends: Option<Arc<Ends>>,
    readable: bool,
    writable: bool,
}

/// State that only who has the GIL touches. There always is one: extensions for the stable ABI run nowhere else.
struct Guarded(UnsafeCell<State>);

// SAFETY: `with` takes a proof that the GIL is held.
unsafe impl Sync for Guarded {}

impl Guarded {
    /// `f` must not call into Python, which could come back here.
    #[inline]
    fn with<R>(&self, _py: Python<'_>, f: impl FnOnce(&mut State) -> R) -> R {
        // SAFETY: the GIL is held, so no other thread is here, and nor is a caller of this one, as `f` does not call into Python.
        f(unsafe { &mut *self.0.get() })
    }
}

/// An argument that may have been left out, which is not the same as `None`.
enum Argument<'py> {
    Missing,
    Given(Bound<'py, PyAny>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Argument<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Argument<'py>> {
        Ok(Argument::Given(object.to_owned()))
    }
}

/// A function of `ringpipe._arguments`, which does what is rarely asked for.
macro_rules! helper {
    ($py:expr, $name:literal) => {{
        static HELPER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        HELPER.import($py, "ringpipe._arguments", $name)
    }};
}

/// The native part of a connection.
#[pyclass(frozen, subclass, module = "ringpipe._native", name = "Core")]
pub(crate) struct Core(Guarded);

impl Core {
    fn open(&self, py: Python<'_>, ends: Arc<Ends>) {
        let (readable, writable) = (ends.recv.is_some(), ends.send.is_some());
        // What was there before is closed outside.
        let _old = self.0.with(py, |state| {
            (state.readable, state.writable) = (readable, writable);
            state.ends.replace(ends)
        });
    }

    fn ends(&self, py: Python<'_>) -> PyResult<Arc<Ends>> {
        self.0.with(py, |state| state.ends.clone()).ok_or_else(|| PyOSError::new_err("handle is closed"))
    }

    #[inline]
    fn to_receive(&self, py: Python<'_>) -> PyResult<Arc<Ends>> {
        let ends = self.ends(py)?;
        if !self.0.with(py, |state| state.readable) {
            return Err(PyOSError::new_err("connection is write-only"));
        }
        Ok(ends)
    }

    #[inline]
    fn to_send(&self, py: Python<'_>) -> PyResult<Arc<Ends>> {
        let ends = self.ends(py)?;
        if !self.0.with(py, |state| state.writable) {
            return Err(PyOSError::new_err("connection is read-only"));
        }
        Ok(ends)
    }

    #[inline]
    fn receive<R>(
        &self,
        py: Python<'_>,
        ends: &Ends,
        most: Option<usize>,
        take: impl FnMut(Message<'_>) -> R,
    ) -> PyResult<R> {
        ends.recv.as_ref().expect("checked").receive(py, most, take).map_err(|e| self.raised(py, e))
    }

    fn receive_bytes<'py>(&self, py: Python<'py>, ends: &Ends, most: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        self.receive(py, ends, most, |message| to_bytes(py, &message))?
    }

    /// A message that is too long ends receiving: an end that can only receive is closed then, another can still send.
    #[cold]
    fn raised(&self, py: Python<'_>, fault: Fault) -> PyErr {
        match fault {
            Fault::Raised(e) => e,
            Fault::TooLong => {
                let _closed = self.0.with(py, |state| {
                    if state.writable {
                        state.readable = false;
                        if let Some(recv) = state.ends.as_ref().and_then(|ends| ends.recv.as_ref()) {
                            recv.drop_ear();
                        }
                        return None;
                    }
                    state.ends.take()
                });
                PyOSError::new_err("bad message length")
            }
        }
    }
}

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Core {
        Core(Guarded(UnsafeCell::new(State { ends: None, readable: false, writable: false })))
    }

    /// True if the connection is closed
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        self.0.with(py, |state| state.ends.is_none())
    }

    /// True if the connection is readable
    #[getter]
    fn readable(&self, py: Python<'_>) -> bool {
        self.0.with(py, |state| state.readable)
    }

    /// True if the connection is writable
    #[getter]
    fn writable(&self, py: Python<'_>) -> bool {
        self.0.with(py, |state| state.writable)
    }

    /// The descriptor of a Unix socket, only to be watched: readable while there is something to receive or the peer is gone. Of an end that only sends, readable when
    /// the peer is gone.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let ends = self.ends(py)?;
        if let Some(recv) = &ends.recv {
            if !ends.watched.load(Ordering::Relaxed) {
                recv.watch(py);
                ends.watched.store(true, Ordering::Relaxed);
            }
        }
        // The receiving half's bell comes last.
        Ok(*ends.fds.last().expect("an end has a bell"))
    }

    /// Close the connection. A call that another thread is blocked in goes on.
    fn close(&self, py: Python<'_>) {
        let _ends = self.0.with(py, |state| state.ends.take());
    }

    /// Send a (picklable) object
    fn send(&self, py: Python<'_>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let ends = self.to_send(py)?;
        let pickle = dumps(obj)?;
        self.send_buffer(py, &ends, &pickle)
    }

    /// Send the bytes data from a bytes-like object
    #[pyo3(signature = (buf, offset = Argument::Missing, size = None), text_signature = "($self, buf, offset=0, size=None)")]
    fn send_bytes<'py>(
        &self,
        py: Python<'py>,
        buf: &Bound<'py, PyAny>,
        offset: Argument<'py>,
        size: Option<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let ends = self.to_send(py)?;
        match (offset, size) {
            (Argument::Missing, None) => self.send_buffer(py, &ends, buf),
            (offset, size) => {
                let offset = match offset {
                    Argument::Missing => 0_u8.into_pyobject(py)?.into_any(),
                    Argument::Given(offset) => offset,
                };
                let part = helper!(py, "part")?.call1((buf, offset, size))?;
                self.send_buffer(py, &ends, &part)
            }
        }
    }

    /// Receive bytes data as a bytes object.
    #[pyo3(signature = (maxlength = None))]
    fn recv_bytes<'py>(&self, py: Python<'py>, maxlength: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyBytes>> {
        let ends = self.to_receive(py)?;
        let most = match maxlength {
            None => None,
            Some(maxlength) => helper!(py, "length")?.call1((maxlength,))?.extract()?,
        };
        self.receive_bytes(py, &ends, most)
    }

    /// Receive bytes data into a writeable bytes-like object. Return the number of bytes read.
    #[pyo3(signature = (buf, offset = Argument::Missing), text_signature = "($self, buf, offset=0)")]
    fn recv_bytes_into<'py>(
        &self,
        py: Python<'py>,
        buf: &Bound<'py, PyAny>,
        offset: Argument<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ends = self.to_receive(py)?;
        if let (Argument::Missing, Some(mut buffer)) = (&offset, Buffer::writable(buf)) {
            let received = self.receive(py, &ends, None, |message| {
                let Some(place) = buffer.bytes_mut().get_mut(..message.len()) else {
                    return to_bytes(py, &message).map(Err);
                };
                message.copy_to(place);
                Ok(Ok(message.len()))
            })??;
            return match received {
                Ok(len) => Ok(len.into_pyobject(py)?.into_any()),
                Err(message) => Err(PyErr::from_value(helper!(py, "BufferTooShort")?.call1((message,))?)),
            };
        }
        let offset = match offset {
            Argument::Missing => 0_u8.into_pyobject(py)?.into_any(),
            Argument::Given(offset) => offset,
        };
        let receive = Receive { ends };
        helper!(py, "receive_into")?.call1((Py::new(py, receive)?, buf, offset))
    }

    /// Receive a (picklable) object
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let ends = self.to_receive(py)?;
        loads(self.receive_bytes(py, &ends, None)?)
    }

    /// Whether there is any input available to be read
    #[pyo3(signature = (timeout = Argument::Missing), text_signature = "($self, timeout=0.0)")]
    fn poll(&self, py: Python<'_>, timeout: Argument<'_>) -> PyResult<bool> {
        let ends = self.to_receive(py)?;
        let now = Instant::now();
        let deadline = match timeout {
            Argument::Missing => Some(now),
            Argument::Given(timeout) => {
                let time = helper!(py, "milliseconds")?.call1((timeout,))?.extract::<Option<u64>>()?;
                time.map(|time| now + Duration::from_millis(time))
            }
        };
        ends.recv.as_ref().expect("checked").poll(py, deadline).map_err(|e| self.raised(py, e))
    }

    /// What a copy of this end is made of by `attach`: 16 bytes, and the numbers of descriptors, which are open until this end is closed. No other end has any of them, so that a
    /// process that is given several ends can close each.
    fn parts(&self, py: Python<'_>) -> PyResult<([u8; 16], Vec<RawFd>)> {
        let ends = self.ends(py)?;
        if ends.memory.get().is_none() {
            // SAFETY: the halves own it, and live.
            let memory =
                unsafe { BorrowedFd::borrow_raw(ends.fds[0]) }.try_clone_to_owned().map_err(|e| os_error(py, e))?;
            let _ = ends.memory.set(memory);
        }
        let mut fds = ends.fds.clone();
        fds[0] = ends.memory.get().expect("just set").as_raw_fd();
        Ok((ends.frame, fds))
    }

    /// Opens this connection, which is closed, on what `parts` returned, and owns the descriptors from then on.
    fn attach(&self, py: Python<'_>, frame: [u8; 16], fds: Vec<RawFd>, readable: bool, writable: bool) -> PyResult<()> {
        if fds.iter().any(|&fd| fd < 0) {
            return Err(PyTypeError::new_err("a descriptor is not negative"));
        }
        // SAFETY: they are the caller's, who gives them away.
        let fds = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
        let attached = |e: AttachError| os_error(py, e);
        let ends = match (readable, writable) {
            (true, true) => Ends::duplex(Connection::from_parts(frame, fds).map_err(attached)?),
            (true, false) => Ends::receiving(Receiver::from_parts(frame, fds).map_err(attached)?),
            _ => Ends::sending(Sender::from_parts(frame, fds).map_err(attached)?),
        }?;
        self.open(py, ends);
        Ok(())
    }
}

impl Core {
    #[inline]
    fn send_buffer(&self, py: Python<'_>, ends: &Ends, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let half = ends.send.as_ref().expect("checked");
        let sent = match buffer.cast_exact::<PyBytes>() {
            Ok(bytes) => half.send(py, bytes.as_bytes()),
            Err(_) => half.send(py, Buffer::readable(buffer)?.bytes()),
        };
        sent.map_err(|e| self.raised(py, e))
    }
}

fn to_bytes<'py>(py: Python<'py>, message: &Message<'_>) -> PyResult<Bound<'py, PyBytes>> {
    match message {
        Message::Copied(bytes) => Ok(PyBytes::new(py, bytes)),
        Message::InRing(guard) => PyBytes::new_with(py, guard.len(), |to| {
            guard.copy_to(0, to);
            Ok(())
        }),
    }
}

/// The `OSError` with the number of a system call's error, where there is one.
#[cold]
fn os_error(py: Python<'_>, e: impl Into<io::Error>) -> PyErr {
    let e = e.into();
    let Some(number) = e.raw_os_error() else {
        return PyOSError::new_err(e.to_string());
    };
    match py.import("os").and_then(|os| os.call_method1("strerror", (number,))) {
        Ok(message) => PyOSError::new_err((number, message.unbind())),
        Err(e) => e,
    }
}

/// A receive that has been checked already, for `ringpipe._arguments`.
#[pyclass(frozen, module = "ringpipe._native")]
struct Receive {
    ends: Arc<Ends>,
}

#[pymethods]
impl Receive {
    fn __call__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let recv = self.ends.recv.as_ref().expect("checked");
        match recv.receive(py, None, |message| to_bytes(py, &message)) {
            Ok(bytes) => bytes,
            Err(Fault::Raised(e)) => Err(e),
            Err(Fault::TooLong) => unreachable!("any length is allowed"),
        }
    }
}

/// Opens two closed connections as the ends of a new pipe.
#[pyfunction]
pub(crate) fn connect(py: Python<'_>, first: &Bound<'_, Core>, second: &Bound<'_, Core>, duplex: bool) -> PyResult<()> {
    let built = |e: BuildError| os_error(py, e);
    let (a, b) = if duplex {
        let (a, b) = ringpipe::pipe().map_err(built)?;
        (Ends::duplex(a)?, Ends::duplex(b)?)
    } else {
        let (a, b) = ringpipe::simplex().map_err(built)?;
        (Ends::receiving(a)?, Ends::sending(b)?)
    };
    first.get().open(py, a);
    second.get().open(py, b);
    Ok(())
}
