//! What a connection object does. Its class is put together in `ringpipe/_connection.py`, out of this one and the standard library's.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{ptr, slice};

use pyo3::exceptions::{PyMemoryError, PyOSError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyFloat, PyInt, PyTuple};
use ringpipe::{AttachError, BuildError, Connection, End, Receiver, Sender};

use crate::buffer::Buffer;
use crate::call::call;
use crate::guarded::Guarded;
use crate::half::{AtHand, Fault, Message, RecvHalf, SendHalf};
use crate::pickling::{dumps, loads};

/// A long message that is said to be longer than this gets its memory as it arrives. (That costs another copy. Below it, what has arrived is moved if the rest
/// does not come at once, which would cost more the longer it is.)
const LONGEST_CLAIM: u64 = 64 << 20;

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

pub(crate) struct State {
    ends: Option<Arc<Ends>>,
    readable: bool,
    writable: bool,
}

/// An argument that may have been left out, which is not the same as `None`.
pub(crate) enum Argument<'py> {
    Missing,
    Given(Bound<'py, PyAny>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Argument<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Argument<'py>> {
        Ok(Argument::Given(object.to_owned()))
    }
}

static ARGUMENTS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

/// Gets what is used of Python, so that no thread has to import it.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    let _ = ARGUMENTS.set(py, py.import("ringpipe._arguments")?.unbind());
    Ok(())
}

/// Calls a function of `ringpipe._arguments`, which does what is rarely asked for.
fn helper<'py>(
    py: Python<'py>,
    name: &str,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<Bound<'py, PyAny>> {
    let arguments = ARGUMENTS.get(py).expect("set when the module was imported");
    call(py, arguments.getattr(py, name)?.bind(py), args)
}

/// The usual time-outs of `poll`, as numbers.
fn milliseconds(timeout: &Bound<'_, PyAny>) -> Option<u64> {
    let seconds = match timeout.cast_exact::<PyFloat>() {
        Ok(float) => float.value(),
        Err(_) => f64::from(timeout.cast_exact::<PyInt>().ok()?.extract::<i32>().ok()?),
    };
    let millis = (seconds * 1e3).ceil().max(0.0);
    // Whatever is wrong with others is for `ringpipe._arguments` to say.
    (seconds.is_finite() && millis < f64::from(i32::MAX)).then_some(millis as u64)
}

/// The native part of a connection.
#[pyclass(frozen, subclass, module = "ringpipe._native", name = "Core")]
pub(crate) struct Core(Guarded<State>);

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
    fn receive_bytes<'py>(&self, py: Python<'py>, ends: &Ends, most: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        let half = ends.recv.as_ref().expect("checked");
        let received = match most {
            None => half.receive_bytes(py),
            Some(most) => half.receive_most(py, most).map(|message| PyBytes::new(py, &message)),
        };
        received.map_err(|e| self.raised(py, e))
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
        Core(Guarded::new(State { ends: None, readable: false, writable: false }))
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

    /// File descriptor or handle of the connection
    ///
    /// A Unix socket, only to be watched: readable while there is something to receive or the peer is
    /// gone. Of an end that only sends, readable when the peer is gone.
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

    /// Close the connection
    ///
    /// A call that another thread is blocked in goes on.
    fn close(&self, py: Python<'_>) {
        let _ends = self.0.with(py, |state| state.ends.take());
    }

    /// Send a (picklable) object
    fn send(&self, py: Python<'_>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        self.to_send(py)?;
        let pickle = dumps(obj)?;
        // Pickling may have closed it.
        let ends = self.to_send(py)?;
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
                let part = helper(py, "part", (buf, offset, size))?;
                self.send_buffer(py, &ends, &part)
            }
        }
    }

    /// Receive bytes data as a bytes object.
    ///
    /// A message of more than maxlength bytes is an OSError, after which this end no longer receives.
    #[pyo3(signature = (maxlength = None))]
    fn recv_bytes<'py>(&self, py: Python<'py>, maxlength: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyBytes>> {
        let ends = self.to_receive(py)?;
        let most = match maxlength {
            None => None,
            Some(maxlength) => helper(py, "length", (maxlength,))?.extract()?,
        };
        self.receive_bytes(py, &ends, most)
    }

    /// Receive bytes data into a writeable bytes-like object.
    /// Return the number of bytes read.
    ///
    /// A message that does not fit is in the BufferTooShort that is raised.
    #[pyo3(signature = (buf, offset = Argument::Missing), text_signature = "($self, buf, offset=0)")]
    fn recv_bytes_into<'py>(
        &self,
        py: Python<'py>,
        buf: &Bound<'py, PyAny>,
        offset: Argument<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ends = self.to_receive(py)?;
        if let (Argument::Missing, Some(mut buffer)) = (&offset, Buffer::writable(buf)) {
            let half = ends.recv.as_ref().expect("checked");
            let received = half.receive_to(py, buffer.bytes_mut()).map_err(|e| self.raised(py, e))?;
            return match received {
                Ok(len) => Ok(len.into_pyobject(py)?.into_any()),
                Err(message) => Err(PyErr::from_value(helper(py, "BufferTooShort", (message,))?)),
            };
        }
        let offset = match offset {
            Argument::Missing => 0_u8.into_pyobject(py)?.into_any(),
            Argument::Given(offset) => offset,
        };
        let receive = Receive { ends };
        helper(py, "receive_into", (Py::new(py, receive)?, buf, offset))
    }

    /// Receive a (picklable) object
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let ends = self.to_receive(py)?;
        loads(self.receive_bytes(py, &ends, None)?)
    }

    /// Whether there is any input available to be read
    ///
    /// Waits for that for timeout seconds, or without a limit if that is None.
    #[pyo3(signature = (timeout = Argument::Missing), text_signature = "($self, timeout=0.0)")]
    fn poll(&self, py: Python<'_>, timeout: Argument<'_>) -> PyResult<bool> {
        let ends = self.to_receive(py)?;
        let now = Instant::now();
        let deadline = match timeout {
            Argument::Missing => Some(now),
            Argument::Given(timeout) if timeout.is_none() => None,
            Argument::Given(timeout) => {
                let time = match milliseconds(&timeout) {
                    Some(time) => time,
                    None => helper(py, "milliseconds", (timeout,))?.extract()?,
                };
                Some(now + Duration::from_millis(time))
            }
        };
        ends.recv.as_ref().expect("checked").poll(py, deadline).map_err(|e| self.raised(py, e))
    }

    /// What a copy of this end is made of by `_attach`: 16 bytes, and the numbers of descriptors, which are open until this end is closed. No other end has any of them, so that a
    /// process that is given several ends can close each.
    #[pyo3(name = "_parts")]
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

    /// Opens this connection, which is closed, on what `_parts` returned, and owns the descriptors from then on.
    #[pyo3(name = "_attach")]
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

/// A `bytes` object that nobody else has yet, to be filled.
pub(crate) struct Fresh<'py>(Bound<'py, PyBytes>);

impl<'py> Fresh<'py> {
    /// Nothing is written to it before it is filled, however long it is.
    pub(crate) fn new(py: Python<'py>, len: usize) -> PyResult<Fresh<'py>> {
        let len = isize::try_from(len).map_err(|_| PyMemoryError::new_err(()))?;
        // SAFETY: a null pointer asks for an object of that length; it returns a new reference, or null with an exception set.
        let bytes = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(ptr::null(), len)) }?;
        // SAFETY: that is its type.
        Ok(Fresh(unsafe { bytes.cast_into_unchecked() }))
    }

    /// Only to be written to.
    pub(crate) fn place(&mut self) -> &mut [u8] {
        let len = self.0.as_any().len().unwrap_or(0);
        // SAFETY: the memory is the object's, which lives as long as `self`, and nobody else has a reference to it. What it holds is not looked at.
        unsafe { slice::from_raw_parts_mut(ffi::PyBytes_AsString(self.0.as_ptr()).cast(), len) }
    }

    pub(crate) fn filled(self) -> Bound<'py, PyBytes> {
        self.0
    }
}

fn to_bytes<'py>(py: Python<'py>, message: &Message<'_>) -> PyResult<Bound<'py, PyBytes>> {
    let mut fresh = Fresh::new(py, message.len())?;
    message.copy_to(fresh.place());
    Ok(fresh.0)
}

impl RecvHalf {
    /// Receives one message, waiting for it.
    #[inline]
    fn receive_bytes<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyBytes>, Fault> {
        loop {
            match self.at_hand(&mut |message| to_bytes(py, &message))? {
                AtHand::Taken(bytes) => return Ok(bytes?),
                AtHand::Long(len) if len <= LONGEST_CLAIM => return self.receive_long(py, len as usize),
                AtHand::Long(_) => {}
                AtHand::Nothing if self.await_long(py)? => continue,
                AtHand::Nothing => {}
            }
            return Ok(self.receive(py, |message| to_bytes(py, &message))??);
        }
    }

    /// Receives a message that is said to be of this length.
    fn receive_long<'py>(&self, py: Python<'py>, len: usize) -> Result<Bound<'py, PyBytes>, Fault> {
        let mut fresh = Fresh::new(py, len)?;
        Ok(match self.receive_into(py, fresh.place())? {
            Ok(received) if received == len => fresh.0,
            // It has been taken back, and another has come.
            Ok(received) => PyBytes::new(py, &fresh.place()[..received]),
            Err(message) => PyBytes::new(py, &message),
        })
    }

    /// Receives one message, waiting for it, into `to` if it fits there.
    #[inline]
    fn receive_to<'py>(&self, py: Python<'py>, to: &mut [u8]) -> Result<Result<usize, Bound<'py, PyBytes>>, Fault> {
        let room = to.len() as u64;
        let mut take = |message: Message<'_>| match to.get_mut(..message.len()) {
            Some(place) => {
                message.copy_to(place);
                Ok(Ok(message.len()))
            }
            None => to_bytes(py, &message).map(Err),
        };
        match self.at_hand(&mut take)? {
            AtHand::Taken(received) => Ok(received?),
            AtHand::Long(len) if len <= LONGEST_CLAIM.min(room) => {
                Ok(self.receive_into(py, to)?.map_err(|message| PyBytes::new(py, &message)))
            }
            AtHand::Nothing if self.await_long(py)? => self.receive_to(py, to),
            // The memory that was given may be shorter than the message, and is not to be touched then.
            _ => Ok(self.receive(py, take)??),
        }
    }
}

/// The `OSError` with the number of a system call's error, where there is one.
#[cold]
pub(crate) fn os_error(py: Python<'_>, e: impl Into<io::Error>) -> PyErr {
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
        match self.ends.recv.as_ref().expect("checked").receive_bytes(py) {
            Ok(bytes) => Ok(bytes),
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
