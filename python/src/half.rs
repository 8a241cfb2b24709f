//! The two halves of a connection: how they are used by several threads, and how a call waits.
//!
//! An end of a ring belongs to one user at a time, while Python lets any thread, and any signal handler, use a connection at any time. So each half has a lock,
//! and nobody keeps it for long:
//!
//! - A call that finds what it needs takes the lock, and gives it back, under the GIL. It makes no system call.
//! - One that does not gives up the GIL, and waits for a few milliseconds with the lock ([`detached`]): there the crate spins, and sleeps on its futex.
//! - A receive that still has nothing gives back the lock as well, and sleeps on the end's watcher, the *ear*. A signal ends
//!   that sleep at once, for `poll` does not go on after one.
//! - A send that still has no room does the same again, for longer at a time, up to [`LONGEST`].
//!
//! Between two steps it looks for signals. Their handlers may use the connection: no lock is held by then.
//!
//! # A peer that is gone
//!
//! One that closed its end has said so in the ring. One that was killed, or left by `os._exit` as the children of `multiprocessing` do that were forked, has not, and the
//! crate's senders notice when the ring is full. `multiprocessing` fails at once. So a send asks the kernel, once in each tick of the coarse clock,
//! whatever that is (4 ms, often).
//!
//! # Fork
//!
//! A child has one thread, and a lock that another thread of its parent held would stay locked there for ever. So whoever forks waits (`before_fork`) until
//! no thread is in [`detached`], which is where locks are held without the GIL; and from then until it has forked no other gets into it. (To keep the GIL would not
//! do: others have functions called before a fork, too.)

use std::cell::Cell;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyEOFError, PyMemoryError, PyOSError};
use pyo3::prelude::*;
use ringpipe::{Progress, ReadGuard, Receiver, RecvError, RecvIntoError, SendError, Sender, Watcher};
use rustix::event::{PollFd, PollFlags, Timespec};

/// How long a call waits with the lock at first.
const SLICE: Duration = Duration::from_millis(4);
/// How long a send waits with the lock at most, and so how late it notices a signal.
const LONGEST: Duration = Duration::from_millis(32);
/// How long a receive sleeps at most before it looks by itself: as the crate does.
const PARK: Duration = Duration::from_secs(1);
/// How soon a lock is tried again that somebody else has, at first; then twice as late each time, up to [`LATER`].
const RETRY: Duration = Duration::from_micros(50);
const LATER: Duration = Duration::from_millis(2);
/// Bytes of a message that takes no allocation on its way when it has to be waited for.
const SHORT: usize = 512;

/// Threads that may hold a lock without the GIL.
static DETACHED: AtomicUsize = AtomicUsize::new(0);
/// Threads that are about to fork.
static FORKING: AtomicUsize = AtomicUsize::new(0);
// How often this thread is among them: what is called before a fork may fork.
thread_local!(static FORKING_HERE: Cell<usize> = const { Cell::new(0) });
/// Forks that lead to this process.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Runs `step` without the GIL. It must not take long.
fn detached<T: Send>(py: Python<'_>, step: impl FnOnce() -> T + Send) -> T {
    while is_forked_elsewhere() {
        py.detach(|| thread::sleep(RETRY));
    }
    // With the GIL, so `before_fork` either sees it or has been seen.
    DETACHED.fetch_add(1, Ordering::SeqCst);
    py.detach(|| {
        let result = step();
        // Before the GIL is waited for, which somebody may keep until this is done.
        DETACHED.fetch_sub(1, Ordering::SeqCst);
        result
    })
}

fn is_forked_elsewhere() -> bool {
    FORKING.load(Ordering::SeqCst) > 0 && FORKING_HERE.get() == 0
}

/// Waits, with the GIL, until nobody holds a lock without it. Not for ever: if that takes so long, something else is wrong.
pub(crate) fn before_fork() {
    FORKING.fetch_add(1, Ordering::SeqCst);
    FORKING_HERE.set(FORKING_HERE.get() + 1);
    let limit = Instant::now() + Duration::from_secs(5);
    while DETACHED.load(Ordering::SeqCst) > 0 && Instant::now() < limit {
        thread::sleep(RETRY);
    }
}

pub(crate) fn after_fork_in_parent() {
    FORKING_HERE.set(FORKING_HERE.get().saturating_sub(1));
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

pub(crate) fn after_fork_in_child() {
    FORKING_HERE.set(FORKING_HERE.get().saturating_sub(1));
    FORKING.store(FORKING_HERE.get(), Ordering::SeqCst);
    DETACHED.store(0, Ordering::SeqCst);
    FORKS.fetch_add(1, Ordering::SeqCst);
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Only without the GIL.
fn lock_within<T>(mutex: &Mutex<T>, time: Duration) -> Option<MutexGuard<'_, T>> {
    let limit = Instant::now() + time;
    let mut pause = RETRY;
    loop {
        let guard = try_lock(mutex);
        if guard.is_some() || Instant::now() >= limit {
            return guard;
        }
        thread::sleep(pause);
        pause = (2 * pause).min(LATER);
    }
}

/// The lock, however long it takes, which is some milliseconds at most for each thread that wants it.
fn lock<'a, T: Send>(py: Python<'_>, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
    loop {
        if let Some(guard) = try_lock(mutex) {
            return guard;
        }
        detached(py, || drop(lock_within(mutex, SLICE)));
    }
}

/// A message that has been received, but not taken out of where it lies.
pub(crate) enum Message<'a> {
    InRing(&'a ReadGuard<'a>),
    Copied(&'a [u8]),
}

impl Message<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Message::InRing(guard) => guard.len(),
            Message::Copied(bytes) => bytes.len(),
        }
    }

    /// Copies it to a place of its length.
    pub(crate) fn copy_to(&self, to: &mut [u8]) {
        match self {
            Message::InRing(guard) => guard.copy_to(0, to),
            Message::Copied(bytes) => to.copy_from_slice(bytes),
        }
    }
}

/// What a receive finds without waiting.
pub(crate) enum AtHand<R> {
    /// A message, which has been taken.
    Taken(R),
    /// The start of a long one, which is said to have so many bytes.
    Long(u64),
    /// Nothing, or somebody else is receiving.
    Nothing,
}

/// A message in a place of the caller's, of which it has so many bytes, or in one of its own where that is too small.
pub(crate) type Placed = Result<usize, Vec<u8>>;

/// The half that receives.
pub(crate) struct RecvHalf {
    receiver: Mutex<Receiver>,
    /// Made when it is first needed.
    ear: Mutex<Option<Arc<Watcher>>>,
    /// Whether the last message was a long one, so that the next may be, too.
    long: AtomicBool,
}

impl RecvHalf {
    pub(crate) fn new(receiver: Receiver) -> RecvHalf {
        RecvHalf { receiver: Mutex::new(receiver), ear: Mutex::new(None), long: AtomicBool::new(false) }
    }

    /// Keeps the descriptor readable exactly while there is something to receive, from now on.
    pub(crate) fn watch(&self, py: Python<'_>) {
        lock(py, &self.receiver).as_fd();
    }

    /// Passes a message to `take` if a whole one is there.
    #[inline]
    pub(crate) fn at_hand<R>(&self, take: &mut impl FnMut(Message<'_>) -> R) -> Result<AtHand<R>, Fault> {
        let Some(mut receiver) = try_lock(&self.receiver) else {
            return Ok(AtHand::Nothing);
        };
        if !receiver.has_something() {
            return Ok(AtHand::Nothing);
        }
        if let Some(len) = receiver.long_message_len() {
            self.long.store(true, Ordering::Relaxed);
            return Ok(AtHand::Long(len));
        }
        match receiver.try_recv_guard() {
            Ok(guard) => {
                self.long.store(false, Ordering::Relaxed);
                Ok(AtHand::Taken(take(Message::InRing(&guard))))
            }
            Err(RecvError::Empty) => Ok(AtHand::Nothing),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for a message, but does not take it if the last one was long: what is known of a long one before it is taken is of use.
    pub(crate) fn await_long(&self, py: Python<'_>) -> Result<bool, Fault> {
        let long = self.long.swap(false, Ordering::Relaxed);
        if long {
            self.poll(py, None)?;
        }
        Ok(long)
    }

    /// Receives one message, waiting for it, and passes it to `take`.
    #[cold]
    pub(crate) fn receive<R>(&self, py: Python<'_>, take: impl FnOnce(Message<'_>) -> R) -> Result<R, Fault> {
        let mut short = [0; SHORT];
        Ok(match self.receive_into(py, &mut short)? {
            Ok(len) => take(Message::Copied(&short[..len])),
            Err(message) => take(Message::Copied(&message)),
        })
    }

    /// Receives one message, waiting for it, right to where it is wanted.
    pub(crate) fn receive_into(&self, py: Python<'_>, to: &mut [u8]) -> Result<Placed, Fault> {
        self.receive_slow(py, |receiver, time| match receiver.recv_bytes_into_timeout(to, 0, time) {
            Ok(len) => Ok(Ok(len)),
            Err(RecvIntoError::TooShort(e)) => Ok(Err(e.message)),
            Err(RecvIntoError::Recv(e)) => Err(e),
            Err(_) => unreachable!("no offset was given"),
        })
    }

    /// Receives one message of at most `most` bytes, waiting for it.
    pub(crate) fn receive_most(&self, py: Python<'_>, most: usize) -> Result<Vec<u8>, Fault> {
        self.receive_slow(py, |receiver, time| receiver.recv_bytes_max_timeout(most, time))
    }

    fn receive_slow<T: Send>(
        &self,
        py: Python<'_>,
        mut receive: impl FnMut(&mut Receiver, Duration) -> Result<T, RecvError> + Send,
    ) -> Result<T, Fault> {
        let mut time = SLICE;
        loop {
            let step = detached(py, || {
                let mut receiver = lock_within(&self.receiver, SLICE)?;
                let received = receive(&mut receiver, time);
                Some((received, receiver.long_message_len().is_some()))
            });
            match step {
                None => {}
                Some((Ok(received), _)) => return Ok(received),
                Some((Err(RecvError::TimedOut), inside)) => {
                    // A signal may have come meanwhile, which does not end the sleep.
                    py.check_signals()?;
                    self.sleep(py, None);
                    // What has arrived of a long message has to be moved each time that it is given up for a moment, so that is done less and less often.
                    time = if inside { (2 * time).min(LONGEST) } else { SLICE };
                }
                Some((Err(e), _)) => return Err(e.into()),
            }
            py.check_signals()?;
        }
    }

    /// Whether a receive would find something, waiting for that until `deadline`.
    pub(crate) fn poll(&self, py: Python<'_>, deadline: Option<Instant>) -> Result<bool, Fault> {
        loop {
            // If somebody else is receiving, what there is is theirs.
            if let Some(mut receiver) = try_lock(&self.receiver) {
                if receiver.poll(Some(Duration::ZERO))? {
                    return Ok(true);
                }
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Ok(false);
            }
            let left = || deadline.map_or(PARK, |at| at.saturating_duration_since(Instant::now()).min(PARK));
            let found = detached(py, || {
                lock_within(&self.receiver, left().min(SLICE))
                    .map(|mut receiver| receiver.poll(Some(left().min(SLICE))))
            });
            if found.transpose()? == Some(true) {
                return Ok(true);
            }
            py.check_signals()?;
            if !left().is_zero() {
                self.sleep(py, Some(left()));
            }
            py.check_signals()?;
        }
    }

    /// Sleeps until there may be something to receive, or a signal comes, without GIL and lock. At most for a second, and not at all where there is
    /// no descriptor to be had.
    fn sleep(&self, py: Python<'_>, time: Option<Duration>) {
        let Some(ear) = self.ear(py) else {
            return;
        };
        let time = time.map_or(PARK, |time| time.min(PARK));
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        py.detach(|| {
            // Silences the bell if there is nothing, which makes waiting for it worth while.
            let bell = ear.as_fd();
            // A signal, like all else that ends it, is for the caller to look into.
            let _ = rustix::event::poll(&mut [PollFd::from_borrowed_fd(bell, PollFlags::IN)], Some(&time));
        });
    }

    fn ear(&self, py: Python<'_>) -> Option<Arc<Watcher>> {
        let mut ear = self.ear.lock().unwrap_or_else(PoisonError::into_inner);
        if ear.is_none() {
            drop(ear);
            let made = lock(py, &self.receiver).watcher().ok().map(Arc::new);
            ear = self.ear.lock().unwrap_or_else(PoisonError::into_inner);
            if ear.is_none() {
                *ear = made;
            }
        }
        ear.clone()
    }

    /// After an error that ends receiving, by which the receiver has closed its copy of the end.
    pub(crate) fn drop_ear(&self) {
        *self.ear.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The half that sends.
pub(crate) struct SendHalf(Mutex<Sending>);

struct Sending {
    sender: Sender,
    /// The tick in which the kernel was asked last who is there.
    asked: (i64, i64),
    /// How far the long message of a call is that has given up the lock for a moment, and whose it is.
    progress: Progress,
    owner: Option<Call>,
}

/// A call that sends.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Call {
    number: u64,
    thread: u64,
    forks: u64,
}

impl Call {
    fn new() -> Call {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        static THREADS: AtomicU64 = AtomicU64::new(1);
        thread_local!(static THREAD: Cell<u64> = const { Cell::new(0) });
        let thread = THREAD.with(|thread| {
            if thread.get() == 0 {
                thread.set(THREADS.fetch_add(1, Ordering::Relaxed));
            }
            thread.get()
        });
        Call { number: CALLS.fetch_add(1, Ordering::Relaxed), thread, forks: FORKS.load(Ordering::Relaxed) }
    }
}

impl Sending {
    /// Whether the receivers are known to be gone.
    #[inline]
    fn is_broken(&mut self) -> bool {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        let now = (now.tv_sec, now.tv_nsec);
        if self.asked == now {
            return false;
        }
        // The next send asks again, and hears the same.
        let broken = self.ask();
        if !broken {
            self.asked = now;
        }
        broken
    }

    #[cold]
    fn ask(&self) -> bool {
        let mut bell = [PollFd::from_borrowed_fd(self.sender.as_fd(), PollFlags::empty())];
        let _ = rustix::event::poll(&mut bell, Some(&Timespec::default()));
        bell[0].revents().contains(PollFlags::HUP)
    }

    /// Whether `call` may send. A long message of which a part is in the ring already has to go on before anything else, but for a signal handler's
    /// message: the call that it interrupted starts over.
    fn admits(&mut self, call: Call) -> bool {
        match self.owner {
            None => return true,
            Some(owner) if owner == call => return true,
            // Another process's affair.
            Some(owner) if owner.forks != call.forks => self.progress = Progress::default(),
            Some(owner) if owner.thread == call.thread => self.sender.take_back(&mut self.progress),
            Some(_) => return false,
        }
        self.owner = None;
        true
    }
}

impl SendHalf {
    pub(crate) fn new(sender: Sender) -> SendHalf {
        SendHalf(Mutex::new(Sending { sender, asked: (0, 0), progress: Progress::default(), owner: None }))
    }

    /// Sends one message.
    #[inline]
    pub(crate) fn send(&self, py: Python<'_>, message: &[u8]) -> Result<(), Fault> {
        if let Some(mut sending) = try_lock(&self.0) {
            if sending.is_broken() {
                return Err(SendError::Disconnected.into());
            }
            if sending.owner.is_none() && message.len() <= sending.sender.max_reserve() {
                match sending.sender.try_send_bytes(message) {
                    Ok(()) => return Ok(()),
                    Err(SendError::Full) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        self.send_slow(py, message)
    }

    #[cold]
    #[inline(never)]
    fn send_slow(&self, py: Python<'_>, message: &[u8]) -> Result<(), Fault> {
        let call = Call::new();
        let mut time = SLICE;
        loop {
            let step = detached(py, || {
                let mut sending = lock_within(&self.0, SLICE)?;
                if !sending.admits(call) {
                    drop(sending);
                    thread::sleep(time / 8);
                    return None;
                }
                let Sending { sender, progress, owner, .. } = &mut *sending;
                let result = sender.send_bytes_part(message, progress, time);
                let unfinished = matches!(result, Err(SendError::TimedOut)) && message.len() > sender.max_reserve();
                *owner = unfinished.then_some(call);
                if !unfinished {
                    *progress = Progress::default();
                }
                Some(result)
            });
            match step {
                Some(Ok(())) => return Ok(()),
                None | Some(Err(SendError::TimedOut)) => {}
                Some(Err(e)) => return Err(e.into()),
            }
            time = (2 * time).min(LONGEST);
            if let Err(raised) = py.check_signals() {
                let mut sending = lock(py, &self.0);
                let Sending { sender, progress, owner, .. } = &mut *sending;
                if *owner == Some(call) {
                    sender.take_back(progress);
                    *owner = None;
                }
                return Err(raised.into());
            }
        }
    }
}

/// Why a call failed.
pub(crate) enum Fault {
    /// What Python is to see.
    Raised(PyErr),
    /// The message was longer than allowed; this half no longer receives.
    TooLong,
}

impl From<Fault> for PyErr {
    /// Of a receive that any length was allowed to, or a send.
    fn from(fault: Fault) -> PyErr {
        match fault {
            Fault::Raised(e) => e,
            Fault::TooLong => unreachable!("any length is allowed"),
        }
    }
}

impl From<PyErr> for Fault {
    fn from(e: PyErr) -> Fault {
        Fault::Raised(e)
    }
}

impl From<SendError> for Fault {
    #[cold]
    fn from(e: SendError) -> Fault {
        Fault::Raised(match e {
            // Becomes a `BrokenPipeError`, as Python makes it of the number.
            SendError::Disconnected => PyOSError::new_err((libc::EPIPE, "Broken pipe")),
            SendError::Io(e) => e.into(),
            e => PyOSError::new_err(e.to_string()),
        })
    }
}

impl From<RecvError> for Fault {
    #[cold]
    fn from(e: RecvError) -> Fault {
        Fault::Raised(match e {
            RecvError::Disconnected => PyEOFError::new_err(()),
            RecvError::TooLong { .. } => return Fault::TooLong,
            RecvError::Cut => PyOSError::new_err("got end of file during message"),
            e @ RecvError::NoMemory { .. } => PyMemoryError::new_err(e.to_string()),
            e => PyOSError::new_err(e.to_string()),
        })
    }
}
