//! What a queue does. The classes are put together in `ringpipe/_queue.py`.
//!
//! A queue is a pipe for many, both ends of which are in every process that has it. The crate lets any thread use them at any time, so there are no locks here:
//!
//! - A call that finds what it needs keeps the GIL, and makes no system call.
//! - One that does not gives it up, and waits in the crate until a message, or a signal, wakes it.
//!
//! Nothing has to be done about `fork`: a child takes part by itself, and what a thread that it does not have was doing is its parent's.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;
use ringpipe::mpmc::{Receiver, Sender};
use ringpipe::{AttachError, BuildError, Builder, End, RecvError, RecvIntoError, SendError};

use crate::call::call;
use crate::connection::{Argument, os_error};
use crate::fresh::Fresh;
use crate::guarded::Guarded;
use crate::half::Fault;
use crate::pickling::{self, load_short, loads, with_pickle};

/// How long a call waits before it looks for a signal that may have come while it was not asleep: at first, and then.
const SLICE: Duration = Duration::from_millis(4);
const PARK: Duration = Duration::from_secs(1);
/// The same, of a put of an object that needs much room.
const LARGE: Duration = Duration::from_millis(32);
/// Bytes of a message that takes no allocation on its way when it has to be waited for.
const SHORT: usize = 512;

static EMPTY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static FULL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Gets what is used of Python, so that no thread has to import it.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    let queue = py.import("queue")?;
    let _ = EMPTY.set(py, queue.getattr("Empty")?.unbind());
    let _ = FULL.set(py, queue.getattr("Full")?.unbind());
    Ok(())
}

#[cold]
fn exception(py: Python<'_>, class: &PyOnceLock<Py<PyAny>>) -> PyErr {
    let class = class.get(py).expect("set when the module was imported").bind(py);
    class.call0().map_or_else(|e| e, PyErr::from_value)
}

/// Both ends.
struct Ends {
    receiver: Receiver,
    sender: Sender,
}

/// How long a call may wait.
#[derive(Clone, Copy)]
enum Patience {
    None,
    Until(Instant),
    Endless,
}

impl Patience {
    fn new(block: &Argument<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Patience> {
        let seconds = timeout.map(|timeout| timeout.extract::<f64>()).transpose()?;
        if let Argument::Given(block) = block {
            if !block.is_truthy()? {
                return Ok(Patience::None);
            }
        }
        let Some(seconds) = seconds else {
            return Ok(Patience::Endless);
        };
        // More than the clock has is as good as no limit.
        let time = Duration::try_from_secs_f64(seconds.max(0.0)).ok();
        Ok(time.and_then(|time| Instant::now().checked_add(time)).map_or(Patience::Endless, Patience::Until))
    }

    /// What is left of it; `None` when that is nothing.
    fn left(self) -> Option<Duration> {
        match self {
            Patience::None => None,
            Patience::Until(at) => at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()),
            Patience::Endless => Some(Duration::MAX),
        }
    }

    /// Calls `step` with times to wait for, without the GIL, until it has a result, and looks for signals in between.
    fn wait<T: Send>(self, py: Python<'_>, mut step: impl FnMut(Duration) -> Option<T> + Send) -> PyResult<Option<T>> {
        let mut longest = SLICE;
        while let Some(left) = self.left() {
            let result = py.detach(|| step(left.min(longest)));
            if result.is_some() {
                return Ok(result);
            }
            py.check_signals()?;
            longest = PARK;
        }
        Ok(None)
    }
}

/// What both kinds of queues have in common.
#[pyclass(frozen, subclass, module = "ringpipe._native")]
pub(crate) struct Channel(Guarded<Option<Arc<Ends>>>);

impl Channel {
    fn new() -> Channel {
        Channel(Guarded::new(None))
    }

    fn ends(&self, py: Python<'_>) -> Option<Arc<Ends>> {
        self.0.with(py, |ends| ends.clone())
    }

    fn open_ends(&self, py: Python<'_>) -> PyResult<Arc<Ends>> {
        self.ends(py).ok_or_else(|| PyOSError::new_err("handle is closed"))
    }

    fn open(&self, py: Python<'_>, receiver: Receiver, sender: Sender) {
        // What was there before is closed outside.
        let _old = self.0.with(py, |ends| ends.replace(Arc::new(Ends { receiver, sender })));
    }
}

#[pymethods]
impl Channel {
    /// Whether nothing waits to be received.
    fn empty(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.open_ends(py)?.receiver.is_empty())
    }

    /// Close the queue in this process
    ///
    /// A call that another thread is blocked in goes on.
    fn close(&self, py: Python<'_>) {
        let _ends = self.0.with(py, Option::take);
    }

    #[getter(_closed)]
    fn closed(&self, py: Python<'_>) -> bool {
        self.0.with(py, |ends| ends.is_none())
    }

    /// Opens this queue, which is closed, on a new ring.
    #[pyo3(name = "_create")]
    fn create(&self, py: Python<'_>, capacity: usize) -> PyResult<()> {
        let (receiver, sender) = Builder::new().capacity(capacity).mpmc().map_err(|e| match e {
            e @ BuildError::Capacity { .. } => PyValueError::new_err(e.to_string()),
            e => os_error(py, e),
        })?;
        self.open(py, receiver, sender);
        Ok(())
    }

    /// What a copy of this queue is made of by `_attach`: what says which ends there are, and the numbers of descriptors, which are open until this one is closed.
    #[pyo3(name = "_parts")]
    fn parts(&self, py: Python<'_>) -> PyResult<([u8; 16], [u8; 16], [RawFd; 3])> {
        let ends = self.open_ends(py)?;
        let (receiving, fds) = ends.receiver.parts()?;
        let (sending, more) = ends.sender.parts()?;
        // Both have the memory first.
        Ok((receiving, sending, [fds[0].as_raw_fd(), fds[1].as_raw_fd(), more[1].as_raw_fd()]))
    }

    /// Opens this queue, which is closed, on what `_parts` returned, and owns the descriptors from then on.
    #[pyo3(name = "_attach")]
    fn attach(&self, py: Python<'_>, receiving: [u8; 16], sending: [u8; 16], fds: [RawFd; 3]) -> PyResult<()> {
        if fds.iter().any(|&fd| fd < 0) {
            return Err(PyTypeError::new_err("a descriptor is not negative"));
        }
        // SAFETY: they are the caller's, who gives them away.
        let [memory, hears, rings] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let again = memory.try_clone().map_err(|e| os_error(py, e))?;
        let attached = |e: AttachError| os_error(py, e);
        let receiver = Receiver::from_parts(receiving, vec![memory, hears]).map_err(attached)?;
        let sender = Sender::from_parts(sending, vec![again, rings]).map_err(attached)?;
        self.open(py, receiver, sender);
        Ok(())
    }
}

impl Ends {
    /// The message that comes next, if it is there.
    #[inline]
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Received<'py>>> {
        let guard = match self.receiver.try_recv_guard() {
            Ok(guard) => guard,
            Err(RecvError::Empty) => return Ok(None),
            Err(e) => return Err(Fault::from(e).into()),
        };
        let len = guard.len();
        if len <= pickling::SHORT {
            let mut short = [0; pickling::SHORT];
            guard.copy_to(0, &mut short[..len]);
            drop(guard);
            return Ok(Some(Received::new(py, &short[..len])));
        }
        let mut fresh = Fresh::bytes(py, len)?;
        guard.copy_to_uninit(0, fresh.memory());
        Ok(Some(Received::Pickle(fresh.filled_bytes())))
    }

    /// The same, waiting for it.
    #[inline]
    fn receive<'py>(&self, py: Python<'py>, patience: Patience) -> PyResult<Option<Received<'py>>> {
        // Asks nobody, where to take what is not there asks the kernel about who might be dead.
        if !self.receiver.is_empty() || patience.left().is_none() {
            let taken = self.take(py)?;
            if taken.is_some() {
                return Ok(taken);
            }
        }
        self.receive_slow(py, patience)
    }

    #[cold]
    #[inline(never)]
    fn receive_slow<'py>(&self, py: Python<'py>, patience: Patience) -> PyResult<Option<Received<'py>>> {
        let mut short = [0; SHORT];
        let received =
            patience.wait(py, |time| match self.receiver.recv_bytes_into_interruptible(&mut short, 0, time) {
                Err(RecvIntoError::Recv(RecvError::TimedOut)) => None,
                received => Some(received),
            })?;
        Ok(Some(match received {
            None => return Ok(None),
            Some(Ok(len)) => Received::new(py, &short[..len]),
            Some(Err(RecvIntoError::TooShort(e))) => Received::Pickle(PyBytes::new(py, &e.message)),
            Some(Err(RecvIntoError::Recv(e))) => return Err(Fault::from(e).into()),
            Some(Err(_)) => unreachable!("no offset was given"),
        }))
    }

    /// Sends a message. False if there was no room for it in that time.
    #[inline]
    fn send(&self, py: Python<'_>, message: &[u8], patience: Patience) -> PyResult<bool> {
        if message.len() <= self.sender.max_reserve() {
            match self.sender.try_send_bytes(message) {
                Err(SendError::Full) => {}
                sent => return sent.map(|()| true).map_err(|e| Fault::from(e).into()),
            }
        }
        self.send_slow(py, message, patience)
    }

    #[cold]
    #[inline(never)]
    fn send_slow(&self, py: Python<'_>, message: &[u8], patience: Patience) -> PyResult<bool> {
        let sent = |result| match result {
            Err(SendError::TimedOut) => None,
            sent => Some(sent),
        };
        let sent = match patience.left() {
            None => match py.detach(|| self.sender.try_send_bytes(message)) {
                Err(SendError::Full) => None,
                sent => Some(sent),
            },
            // One that gives up whenever it was woken in vain would never wait long enough to go before others.
            Some(_) if message.len() > self.sender.capacity() / 64 => {
                patience.wait(py, |time| sent(self.sender.send_bytes_timeout(message, time.min(LARGE))))?
            }
            Some(_) => patience.wait(py, |time| sent(self.sender.send_bytes_interruptible(message, time)))?,
        };
        match sent {
            None => Ok(false),
            Some(sent) => sent.map(|()| true).map_err(|e| Fault::from(e).into()),
        }
    }

    fn put(&self, object: &Bound<'_, PyAny>, patience: Patience) -> PyResult<bool> {
        with_pickle(object, |pickle| self.send(object.py(), pickle, patience))
    }
}

/// What has been taken out of a queue.
enum Received<'py> {
    Object(Bound<'py, PyAny>),
    Pickle(Bound<'py, PyBytes>),
}

impl<'py> Received<'py> {
    #[inline]
    fn new(py: Python<'py>, pickle: &[u8]) -> Received<'py> {
        load_short(py, pickle).map_or_else(|| Received::Pickle(PyBytes::new(py, pickle)), Received::Object)
    }

    #[inline]
    fn object(self) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Received::Object(object) => Ok(object),
            Received::Pickle(pickle) => loads(pickle),
        }
    }
}

/// The native part of a queue without bells and whistles.
#[pyclass(frozen, subclass, extends = Channel, module = "ringpipe._native")]
pub(crate) struct SimpleCore;

#[pymethods]
impl SimpleCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> PyClassInitializer<SimpleCore> {
        PyClassInitializer::from(Channel::new()).add_subclass(SimpleCore)
    }

    /// Put an object into the queue
    ///
    /// Waits while there is no room in the ring.
    fn put(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let ends = slf.as_super().get().open_ends(py)?;
        ends.put(obj, Patience::Endless).map(drop)
    }

    /// Remove an object from the queue, and return it
    ///
    /// Waits until there is one.
    fn get<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let ends = slf.as_super().get().open_ends(py)?;
        ends.receive(py, Patience::Endless)?.expect("waits as long as it takes").object()
    }
}

/// The native part of a queue.
#[pyclass(frozen, subclass, extends = Channel, module = "ringpipe._native")]
pub(crate) struct QueueCore {
    /// A semaphore that counts how many more objects the queue may have, if there is a limit.
    slots: Guarded<Option<Py<PyAny>>>,
}

impl QueueCore {
    #[inline]
    fn ends<'py>(slf: &Bound<'py, Self>) -> PyResult<Arc<Ends>> {
        let py = slf.py();
        slf.as_super().get().ends(py).ok_or_else(|| match slf.repr() {
            Ok(repr) => PyValueError::new_err(format!("Queue {repr} is closed")),
            Err(e) => e,
        })
    }

    #[inline]
    fn slots<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.slots.with(py, |slots| slots.as_ref().map(|slots| slots.bind(py).clone()))
    }

    fn put_patiently(slf: &Bound<'_, Self>, object: &Bound<'_, PyAny>, patience: Patience) -> PyResult<()> {
        let py = slf.py();
        let ends = QueueCore::ends(slf)?;
        let sent = match slf.get().slots(py) {
            None => ends.put(object, patience),
            Some(slots) => put_limited(&ends, object, &slots, patience),
        };
        if sent? { Ok(()) } else { Err(exception(py, &FULL)) }
    }

    fn get_patiently<'py>(slf: &Bound<'py, Self>, patience: Patience) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let ends = QueueCore::ends(slf)?;
        let received = ends.receive(py, patience)?.ok_or_else(|| exception(py, &EMPTY))?;
        if let Some(slots) = slf.get().slots(py) {
            release(&slots)?;
        }
        received.object()
    }
}

fn release(slots: &Bound<'_, PyAny>) -> PyResult<()> {
    // Runs no Python code, and does not give up the GIL.
    slots.call_method0("release").map(drop)
}

/// Puts an object into a queue that has a limit: takes a slot first, and gives it back if it has come to nothing.
fn put_limited(ends: &Ends, object: &Bound<'_, PyAny>, slots: &Bound<'_, PyAny>, patience: Patience) -> PyResult<bool> {
    let py = object.py();
    with_pickle(object, |pickle| {
        let left = patience.left();
        let limit = left.filter(|&left| left < Duration::MAX).map(|left| left.as_secs_f64());
        if !call(py, &slots.getattr("acquire")?, (left.is_some(), limit))?.is_truthy()? {
            return Ok(false);
        }
        let sent = ends.send(py, pickle, patience);
        if !matches!(sent, Ok(true)) {
            release(slots)?;
        }
        sent
    })
}

#[pymethods]
impl QueueCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> PyClassInitializer<QueueCore> {
        PyClassInitializer::from(Channel::new()).add_subclass(QueueCore { slots: Guarded::new(None) })
    }

    /// Limits the number of objects by a semaphore of multiprocessing's, if it is not None.
    fn _limit(&self, py: Python<'_>, slots: Option<Py<PyAny>>) {
        let _old = self.slots.with(py, |old| std::mem::replace(old, slots));
    }

    #[getter]
    fn _slots(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.slots(py).map(Bound::unbind)
    }

    /// Put an object into the queue
    ///
    /// Waits while the queue, or its ring, is full: not at all unless block is true, and for timeout seconds at most if that
    /// is not None. Raises queue.Full after that.
    #[pyo3(signature = (obj, block = Argument::Missing, timeout = None), text_signature = "($self, obj, block=True, timeout=None)")]
    fn put<'py>(
        slf: &Bound<'py, Self>,
        obj: &Bound<'py, PyAny>,
        block: Argument<'py>,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        QueueCore::put_patiently(slf, obj, Patience::new(&block, timeout)?)
    }

    /// Put an object into the queue, if there is room right now
    ///
    /// Raises queue.Full if there is not.
    fn put_nowait(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        QueueCore::put_patiently(slf, obj, Patience::None)
    }

    /// Remove an object from the queue, and return it
    ///
    /// Waits until there is one: not at all unless block is true, and for timeout seconds at most if that is not None. Raises queue.Empty after that.
    #[pyo3(signature = (block = Argument::Missing, timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        block: Argument<'py>,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        QueueCore::get_patiently(slf, Patience::new(&block, timeout)?)
    }

    /// Remove an object from the queue, and return it, if there is one right now
    ///
    /// Raises queue.Empty if there is none.
    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        QueueCore::get_patiently(slf, Patience::None)
    }

    /// The number of objects that wait to be got; a snapshot, which takes a look at each
    fn qsize(slf: &Bound<'_, Self>) -> PyResult<usize> {
        Ok(slf.as_super().get().open_ends(slf.py())?.receiver.len())
    }

    /// Whether a put would have to wait; a snapshot
    fn full(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let py = slf.py();
        let sender = &slf.as_super().get().open_ends(py)?.sender;
        if let Some(slots) = slf.get().slots(py) {
            if slots.getattr("_semlock")?.call_method0("_is_zero")?.is_truthy()? {
                return Ok(true);
            }
        }
        // What a short message takes.
        Ok(sender.capacity() - sender.fill().min(sender.capacity()) < 64)
    }
}
