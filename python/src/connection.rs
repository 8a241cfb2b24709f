//! What a connection object does. Its class is put together in `ringpipe/_connection.py`, out of this one and the standard library's.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyFloat, PyInt, PyTuple};
use ringpipe::{AttachError, BuildError, Connection, End, Receiver, Sender};

use crate::buffer::Buffer;
use crate::call::call;
use crate::fresh::Fresh;
use crate::guarded::Guarded;
use crate::half::{AtHand, Call, Fault, Message, Place, RecvHalf, SendHalf};
use crate::parts::{Gathered, HEAD, Index, Scattered};
use crate::pickling::{gather, loads, loads_scattered};
use crate::view::Viewing;

/// An open end.
pub(crate) struct Ends {
    send: Option<SendHalf>,
    pub(crate) recv: Option<RecvHalf>,
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
#[pyclass(frozen, subclass, module = "ringpipe._native", name = "Connection")]
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
        let pickle = gather(obj)?;
        // Pickling may have closed it.
        let ends = self.to_send(py)?;
        if let Some(bytes) = pickle.single(py) {
            return self.send_buffer(py, &ends, bytes);
        }
        let half = ends.send.as_ref().expect("checked");
        pickle.with(py, |parts| half.send_vectored(py, parts).map_err(|e| self.raised(py, e)))
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
        if let (Argument::Missing, Some(buffer)) = (&offset, Buffer::writable(buf)) {
            let half = ends.recv.as_ref().expect("checked");
            let received = half.receive_to(py, &buffer).map_err(|e| self.raised(py, e))?;
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
        ends.recv.as_ref().expect("checked").receive_object(py).map_err(|e| self.raised(py, e))
    }

    /// Receive a message where it is
    ///
    /// To be used as `with connection.recv_view() as view:`, which waits for the message. The view is a
    /// read-only memoryview of bytes, of the memory that the message came through if it lies there in one
    /// piece, as it does up to 64 KiB. At the end of the block the message is consumed and the view
    /// released: a BufferError if anything else still has its memory, which then stays until that is gone.
    fn recv_view(&self, py: Python<'_>) -> PyResult<Viewing> {
        Ok(Viewing::new(self.to_receive(py)?))
    }

    /// Receives a message of at most so many bytes, if one is there: bytes, or None.
    #[pyo3(name = "_recv_now", signature = (maxlength = None))]
    fn recv_now<'py>(
        &self,
        py: Python<'py>,
        maxlength: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let ends = self.to_receive(py)?;
        let most = match maxlength {
            None => usize::MAX,
            Some(maxlength) => helper(py, "length", (maxlength,))?.extract()?,
        };
        let received = ends.recv.as_ref().expect("checked").receive_now(most).map_err(|e| self.raised(py, e))?;
        Ok(received.map(|message| PyBytes::new(py, &message)))
    }

    /// The object of a pickle that was received.
    #[staticmethod]
    #[pyo3(name = "_loads")]
    fn loads<'py>(pickle: Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
        loads(pickle)
    }

    /// The sending of an object, to be tried until it is done.
    #[pyo3(name = "_sending")]
    fn sending(&self, py: Python<'_>, obj: &Bound<'_, PyAny>) -> PyResult<Attempt> {
        self.to_send(py)?;
        let message = gather(obj)?;
        Ok(Attempt { ends: self.to_send(py)?, message, call: Call::new() })
    }

    /// The sending of bytes, to be tried until it is done.
    #[pyo3(name = "_sending_bytes")]
    fn sending_bytes<'py>(
        &self,
        buf: Bound<'py, PyAny>,
        offset: Bound<'py, PyAny>,
        size: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Attempt> {
        let py = buf.py();
        let ends = self.to_send(py)?;
        let part = helper(py, "part", (buf, offset, size))?;
        Buffer::readable(&part)?;
        Ok(Attempt { ends, message: Gathered::of(part), call: Call::new() })
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

fn to_bytes<'py>(py: Python<'py>, message: &Message<'_>) -> PyResult<Bound<'py, PyBytes>> {
    let mut fresh = Fresh::bytes(py, message.len())?;
    message.copy_to(fresh.memory());
    Ok(fresh.filled_bytes())
}

/// The index of the long message that comes next, if it has one.
fn index(half: &RecvHalf, total: usize) -> Option<Index> {
    let len = Index::len(half.peek(&mut [0; HEAD]))?;
    Index::read(half.peek(&mut vec![0; len]), total)
}

impl RecvHalf {
    /// Receives one message, waiting for it.
    #[inline]
    pub(crate) fn receive_bytes<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyBytes>, Fault> {
        loop {
            let found = match self.at_hand(&mut |message| to_bytes(py, &message))? {
                AtHand::Nothing => self.receive(py, |message| to_bytes(py, &message))?,
                found => found,
            };
            match found {
                AtHand::Taken(bytes) => return Ok(bytes?),
                AtHand::Long(len) => match self.receive_long_bytes(py, len)? {
                    Some(bytes) => return Ok(bytes),
                    None => continue,
                },
                AtHand::Nothing => {}
            }
        }
    }

    /// Receives a message that is said to be of this length. `None` if there is none (any more).
    pub(crate) fn receive_long_bytes<'py>(
        &self,
        py: Python<'py>,
        len: u64,
    ) -> Result<Option<Bound<'py, PyBytes>>, Fault> {
        let Some(fresh) = usize::try_from(len).ok().and_then(|len| Fresh::bytes(py, len).ok()) else {
            // It may be shorter than it is said to be, and gets its memory as it arrives.
            return Ok(Some(PyBytes::new(py, &self.receive_most(py, usize::MAX)?)));
        };
        Ok(self.receive_long(py, vec![fresh.place()])?.then(|| fresh.filled_bytes()))
    }

    /// Receives one object, waiting for it.
    fn receive_object<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>, Fault> {
        loop {
            let found = match self.at_hand(&mut |message| to_bytes(py, &message))? {
                AtHand::Nothing => self.receive(py, |message| to_bytes(py, &message))?,
                found => found,
            };
            match found {
                AtHand::Taken(bytes) => return Ok(loads(bytes?)?),
                AtHand::Long(len) => {
                    let index = usize::try_from(len).ok().and_then(|len| index(self, len));
                    // Where there is not so much memory, there may be enough for what really comes.
                    if let Some(scattered) = index.and_then(|index| Scattered::new(py, index).ok()) {
                        if self.receive_long(py, scattered.places())? {
                            return Ok(loads_scattered(py, scattered)?);
                        }
                    } else if let Some(bytes) = self.receive_long_bytes(py, len)? {
                        return Ok(loads(bytes)?);
                    }
                }
                AtHand::Nothing => {}
            }
        }
    }

    /// Receives one message, waiting for it, into `to` if it fits there, but for what there is of the last item of a message that does not end with one.
    fn receive_to<'py>(&self, py: Python<'py>, to: &Buffer<'py>) -> Result<Result<usize, Bound<'py, PyBytes>>, Fault> {
        let (Place(start, room), item) = (to.place(), to.item_size());
        let take = |message: Message<'_>| {
            if message.len() > room {
                return to_bytes(py, &message).map(Err);
            }
            let items = message.len() / item * item;
            // SAFETY: so many bytes are there, and may be written to.
            message.copy_to(unsafe { slice::from_raw_parts_mut(start.cast().as_ptr(), items) });
            Ok(Ok(message.len()))
        };
        loop {
            let found = match self.at_hand(&mut &take)? {
                AtHand::Nothing => self.receive(py, take)?,
                found => found,
            };
            match found {
                AtHand::Taken(received) => return Ok(received?),
                AtHand::Long(len) if len <= room as u64 => {
                    let len = len as usize;
                    let mut odd = vec![0; len % item];
                    let rest = Place(NonNull::from(&mut odd[..]).cast(), odd.len());
                    if self.receive_long(py, vec![Place(start, len - odd.len()), rest])? {
                        return Ok(Ok(len));
                    }
                }
                AtHand::Long(len) => {
                    if let Some(message) = self.receive_long_bytes(py, len)? {
                        return Ok(Err(message));
                    }
                }
                AtHand::Nothing => {}
            }
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
    /// Waits for the message. Raises what receiving it would at the end of the file.
    fn look(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.ends.recv.as_ref().expect("checked").look(py)?)
    }

    fn __call__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        match self.ends.recv.as_ref().expect("checked").receive_bytes(py) {
            Ok(bytes) => Ok(bytes),
            Err(Fault::Raised(e)) => Err(e),
            Err(Fault::TooLong) => unreachable!("any length is allowed"),
        }
    }
}

/// A message that is sent by trying time and again, without waiting.
#[pyclass(frozen, module = "ringpipe._native")]
pub(crate) struct Attempt {
    ends: Arc<Ends>,
    message: Gathered,
    call: Call,
}

#[pymethods]
impl Attempt {
    /// Sends as much as there is room for. True once that is all of it.
    fn __call__(&self, py: Python<'_>) -> PyResult<bool> {
        let half = self.ends.send.as_ref().expect("checked");
        self.message.with(py, |parts| Ok(half.send_now(self.call, parts)?))
    }

    /// Takes back what has been sent, unless that is all.
    fn give_up(&self, py: Python<'_>) {
        self.ends.send.as_ref().expect("checked").give_up(py, self.call);
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
