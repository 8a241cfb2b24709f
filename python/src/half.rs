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
//! A call inside a long message leaves word of that when it gives up the lock ([`UnderWay`], `Sending::owner`). Other threads wait until it is through. A signal handler's call, in the same
//! thread, does not: a message that is being sent is taken back, to be sent again later, and what has arrived of one that is being received goes to the handler's call.
//!
//! While a view of a message is open ([`View`]), it has the receiver.
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
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use std::{slice, thread};

use pyo3::exceptions::{PyEOFError, PyMemoryError, PyOSError, PyRuntimeError};
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

    /// Copies the start of it that is as long as the place.
    pub(crate) fn copy_to(&self, place: &mut [MaybeUninit<u8>]) {
        match self {
            Message::InRing(guard) => guard.copy_to_uninit(0, place),
            Message::Copied(bytes) => {
                for (to, from) in place.iter_mut().zip(*bytes) {
                    to.write(*from);
                }
            }
        }
    }
}

/// Memory that a message goes to, of so many bytes, which is there as long as the call that has it.
#[derive(Clone, Copy)]
pub(crate) struct Place(pub(crate) NonNull<u8>, pub(crate) usize);

// SAFETY: whoever makes a place lets the call that has it write there, in whatever thread.
unsafe impl Send for Place {}
// SAFETY: a place by itself reads and writes nothing.
unsafe impl Sync for Place {}

/// A long message of which a call has received a part, and which is its own until it goes on.
struct UnderWay {
    owner: Call,
    places: Arc<[Place]>,
    progress: Progress,
}

impl UnderWay {
    /// What has arrived.
    fn bytes(&self) -> Vec<u8> {
        let mut left = self.progress.bytes();
        let mut bytes = Vec::with_capacity(left);
        for &Place(start, len) in self.places.iter() {
            let len = len.min(left);
            // SAFETY: the call is not over, so the memory is there, and so much of it has been written.
            bytes.extend_from_slice(unsafe { slice::from_raw_parts(start.as_ptr(), len) });
            left -= len;
        }
        bytes
    }

    fn total(&self) -> usize {
        self.places.iter().map(|place| place.1).sum()
    }
}

/// A message that is looked at where it lies. Only to be dropped by [`RecvHalf::end_view`].
pub(crate) struct Viewed {
    guard: Option<ReadGuard<'static>>,
    receiver: NonNull<Receiver>,
    call: Call,
}

impl Viewed {
    /// The message, which is there as long as this is.
    pub(crate) fn message(&self) -> (NonNull<u8>, usize) {
        // SAFETY: only its address is used here. Whoever reads there is told that the sender may write to it.
        let bytes = unsafe { self.guard.as_ref().expect("taken only at the end").as_slice() };
        (NonNull::from(bytes).cast(), bytes.len())
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

/// The half that receives.
pub(crate) struct RecvHalf {
    receiving: Mutex<Receiving>,
    /// Made when it is first needed.
    ear: Mutex<Option<Arc<Watcher>>>,
}

struct Receiving {
    /// `None` while a view has it.
    receiver: Option<Box<Receiver>>,
    viewer: Option<Call>,
    under_way: Option<UnderWay>,
    /// Whether the descriptor is to be kept right.
    watched: bool,
}

/// That a receive has to wait for another one.
struct Occupied;

impl Receiving {
    /// The receiver, unless another thread's call is inside a message.
    #[inline]
    fn receiver(&mut self) -> Result<Result<&mut Receiver, Occupied>, Fault> {
        if self.under_way.is_some() || self.receiver.is_none() {
            if let Err(occupied) = self.admit(Call::new())? {
                return Ok(Err(occupied));
            }
        }
        Ok(Ok(self.receiver.as_mut().expect("just seen")))
    }

    /// Whether `call` may receive. See `Sending::admits`.
    #[cold]
    fn admit(&mut self, call: Call) -> Result<Result<(), Occupied>, Fault> {
        let Some(receiver) = &mut self.receiver else {
            let viewer = self.viewer.expect("somebody has it");
            if viewer.thread == call.thread || viewer.forks != call.forks {
                let message = "a view of a message of this connection is open";
                return Err(Fault::Raised(PyRuntimeError::new_err(message)));
            }
            return Ok(Err(Occupied));
        };
        match self.under_way.take() {
            Some(it) if it.owner == call => self.under_way = Some(it),
            // Another process's affair.
            Some(it) if it.owner.forks != call.forks => {}
            Some(it) if it.owner.thread == call.thread => receiver.put_back(it.total(), it.bytes()),
            Some(it) => {
                self.under_way = Some(it);
                return Ok(Err(Occupied));
            }
            None => {}
        }
        Ok(Ok(()))
    }
}

impl RecvHalf {
    pub(crate) fn new(receiver: Receiver) -> RecvHalf {
        let receiver = Some(Box::new(receiver));
        let receiving = Receiving { receiver, viewer: None, under_way: None, watched: false };
        RecvHalf { receiving: Mutex::new(receiving), ear: Mutex::new(None) }
    }

    /// Keeps the descriptor readable exactly while there is something to receive, from now on.
    pub(crate) fn watch(&self, py: Python<'_>) {
        let mut receiving = lock(py, &self.receiving);
        receiving.watched = true;
        if let Some(receiver) = &receiving.receiver {
            receiver.as_fd();
        }
    }

    /// Passes a message to `take` if a whole one is there.
    #[inline]
    pub(crate) fn at_hand<R>(&self, take: &mut impl FnMut(Message<'_>) -> R) -> Result<AtHand<R>, Fault> {
        let Some(mut receiving) = try_lock(&self.receiving) else {
            return Ok(AtHand::Nothing);
        };
        let Ok(receiver) = receiving.receiver()? else {
            return Ok(AtHand::Nothing);
        };
        if !receiver.has_something() {
            return Ok(AtHand::Nothing);
        }
        if let Some(len) = receiver.long_message_len() {
            return Ok(AtHand::Long(len));
        }
        match receiver.try_recv_guard() {
            Ok(guard) => Ok(AtHand::Taken(take(Message::InRing(&guard)))),
            Err(RecvError::Empty) => Ok(AtHand::Nothing),
            Err(e) => Err(e.into()),
        }
    }

    /// The receiver, with the message that comes next, if a whole one is there in one piece. To be given back by dropping it.
    pub(crate) fn view(&self) -> Result<AtHand<Viewed>, Fault> {
        let Some(mut receiving) = try_lock(&self.receiving) else {
            return Ok(AtHand::Nothing);
        };
        match receiving.receiver()? {
            Ok(receiver) if receiver.has_something() => {
                if let Some(len) = receiver.long_message_len() {
                    return Ok(AtHand::Long(len));
                }
            }
            _ => return Ok(AtHand::Nothing),
        }
        let receiver = receiving.receiver.take().expect("just seen");
        let receiver = NonNull::from(Box::leak(receiver));
        // SAFETY: nobody else has it until it is given back, by when the guard is gone.
        let taken = match unsafe { &mut *receiver.as_ptr() }.try_recv_guard() {
            Ok(guard) => {
                let call = Call::new();
                receiving.viewer = Some(call);
                return Ok(AtHand::Taken(Viewed { guard: Some(guard), receiver, call }));
            }
            Err(RecvError::Empty) => Ok(AtHand::Nothing),
            Err(e) => Err(e.into()),
        };
        // SAFETY: it was a box's just now.
        receiving.receiver = Some(unsafe { Box::from_raw(receiver.as_ptr()) });
        taken
    }

    /// Consumes the message, and takes the receiver back.
    pub(crate) fn end_view(&self, mut viewed: Viewed) {
        let guard = viewed.guard.take();
        if viewed.call.forks == FORKS.load(Ordering::Relaxed) {
            drop(guard);
        } else {
            // It is the parent's to consume.
            std::mem::forget(guard);
        }
        // Nobody keeps this lock for long while there is no receiver to wait with.
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: it was a box's, and the guard that borrowed it is gone.
        let receiver = unsafe { Box::from_raw(viewed.receiver.as_ptr()) };
        if receiving.watched {
            receiver.as_fd();
        }
        receiving.receiver = Some(receiver);
        receiving.viewer = None;
    }

    /// The start of the message that comes next, as much of it as is at hand and `start` has room for.
    pub(crate) fn peek<'a>(&self, start: &'a mut [u8]) -> &'a [u8] {
        let receiver = try_lock(&self.receiving);
        let len = receiver.and_then(|mut receiving| Some(receiving.receiver.as_mut()?.peek(start))).unwrap_or(0);
        &start[..len]
    }

    /// Receives a message if that needs no waiting.
    pub(crate) fn receive_now(&self, most: usize) -> Result<Option<Vec<u8>>, Fault> {
        let Some(mut receiving) = try_lock(&self.receiving) else {
            return Ok(None);
        };
        let Ok(receiver) = receiving.receiver()? else {
            return Ok(None);
        };
        // Silences the bell where there is nothing.
        if !receiver.poll(Some(Duration::ZERO))? {
            return Ok(None);
        }
        match receiver.try_recv_bytes_max(most) {
            Ok(message) => Ok(Some(message)),
            Err(RecvError::Empty) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for a message, or the end of the file, which is an error.
    pub(crate) fn look(&self, py: Python<'_>) -> Result<(), Fault> {
        loop {
            self.poll(py, None)?;
            let Ok(receiver) = lock(py, &self.receiving).receiver()?.map(|receiver| receiver.has_something()) else {
                continue;
            };
            return if receiver { Ok(()) } else { Err(RecvError::Disconnected.into()) };
        }
    }

    /// Waits for a message. Passes it to `take`, unless it is a long one: what is known of that before it is taken is of use.
    #[cold]
    pub(crate) fn receive<R>(&self, py: Python<'_>, take: impl FnOnce(Message<'_>) -> R) -> Result<AtHand<R>, Fault> {
        let mut short = [0; SHORT];
        let received = self.receive_slow(py, |receiver, time| {
            if !receiver.poll(Some(time))? {
                return Err(RecvError::TimedOut);
            }
            if let Some(len) = receiver.long_message_len() {
                return Ok(AtHand::Long(len));
            }
            match receiver.recv_bytes_into_timeout(&mut short, 0, time) {
                Ok(len) => Ok(AtHand::Taken(Ok(len))),
                Err(RecvIntoError::TooShort(e)) => Ok(AtHand::Taken(Err(e.message))),
                Err(RecvIntoError::Recv(e)) => Err(e),
                Err(_) => unreachable!("no offset was given"),
            }
        });
        Ok(match received? {
            AtHand::Taken(Ok(len)) => AtHand::Taken(take(Message::Copied(&short[..len]))),
            AtHand::Taken(Err(message)) => AtHand::Taken(take(Message::Copied(&message))),
            AtHand::Long(len) => AtHand::Long(len),
            AtHand::Nothing => AtHand::Nothing,
        })
    }

    /// Receives a long message right to where it is wanted, which together has the length that it is said to have. False if there is none of that length (any more). The places must
    /// be there until this returns.
    pub(crate) fn receive_long(&self, py: Python<'_>, places: Vec<Place>) -> Result<bool, Fault> {
        let call = Call::new();
        let places: Arc<[Place]> = places.into();
        let mut lent: Vec<_> = places
            .iter()
            // SAFETY: the memory is there, and this call's to write to.
            .map(|&Place(start, len)| unsafe { slice::from_raw_parts_mut(start.cast().as_ptr(), len) })
            .collect();
        let (mut time, mut begun) = (SLICE, false);
        loop {
            let step = detached(py, || {
                let mut receiving = lock_within(&self.receiving, SLICE)?;
                match receiving.admit(call) {
                    Ok(Ok(())) => {}
                    Ok(Err(Occupied)) => {
                        drop(receiving);
                        thread::sleep(time / 8);
                        return None;
                    }
                    Err(e) => return Some(Err(e)),
                }
                let mut progress = match receiving.under_way.take() {
                    Some(mine) => mine.progress,
                    // Somebody else has gone on with it.
                    None if begun => return Some(Ok(Some(false))),
                    None => Progress::default(),
                };
                let receiver = receiving.receiver.as_mut().expect("admitted");
                Some(match receiver.recv_vectored_part(&mut lent, &mut progress, time) {
                    Err(RecvError::TimedOut) => {
                        if progress.bytes() > 0 {
                            begun = true;
                            receiving.under_way = Some(UnderWay { owner: call, places: places.clone(), progress });
                        }
                        Ok(None)
                    }
                    received => received.map(Some).map_err(Fault::from),
                })
            });
            let mut checked = Ok(());
            match step {
                None => {}
                Some(Ok(Some(whole))) => return Ok(whole),
                Some(Ok(None)) => {
                    // A signal may have come meanwhile, which does not end the sleep.
                    checked = py.check_signals();
                    if checked.is_ok() {
                        self.sleep(py, None);
                    }
                }
                Some(Err(e)) => return Err(e),
            }
            time = (2 * time).min(LONGEST);
            if let Err(raised) = checked.and_then(|()| py.check_signals()) {
                let mut receiving = lock(py, &self.receiving);
                if receiving.under_way.as_ref().is_some_and(|it| it.owner == call) {
                    let it = receiving.under_way.take().expect("just seen");
                    receiving
                        .receiver
                        .as_mut()
                        .expect("nobody views inside a message")
                        .put_back(it.total(), it.bytes());
                }
                return Err(raised.into());
            }
        }
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
                let mut receiving = lock_within(&self.receiving, SLICE)?;
                let receiver = match receiving.receiver() {
                    Ok(Ok(receiver)) => receiver,
                    Ok(Err(Occupied)) => {
                        drop(receiving);
                        thread::sleep(time / 8);
                        return None;
                    }
                    Err(e) => return Some(Err(e)),
                };
                let received = receive(receiver, time);
                Some(Ok((received, receiver.long_message_len().is_some())))
            });
            match step.transpose()? {
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
            if let Some(mut receiving) = try_lock(&self.receiving) {
                if let Ok(receiver) = receiving.receiver()? {
                    if receiver.poll(Some(Duration::ZERO))? {
                        return Ok(true);
                    }
                }
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Ok(false);
            }
            let left = || deadline.map_or(PARK, |at| at.saturating_duration_since(Instant::now()).min(PARK));
            let found = detached(py, || {
                let mut receiving = lock_within(&self.receiving, left().min(SLICE))?;
                match receiving.receiver() {
                    Ok(Ok(receiver)) => Some(receiver.poll(Some(left().min(SLICE))).map_err(Fault::from)),
                    Ok(Err(Occupied)) => {
                        drop(receiving);
                        thread::sleep(left().min(SLICE));
                        None
                    }
                    Err(e) => Some(Err(e)),
                }
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
            let receiving = lock(py, &self.receiving);
            let made = receiving.receiver.as_ref().and_then(|receiver| receiver.watcher().ok()).map(Arc::new);
            drop(receiving);
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

/// A call that sends or receives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    number: u64,
    thread: u64,
    forks: u64,
}

impl Call {
    pub(crate) fn new() -> Call {
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

    /// Sends a message of `call`'s as far as it gets in that time. `None` if another goes first.
    fn step(&mut self, call: Call, parts: &[IoSlice<'_>], time: Duration) -> Result<Option<()>, SendError> {
        if !self.admits(call) {
            return Ok(None);
        }
        let result = self.sender.send_vectored_part(parts, &mut self.progress, time);
        let unfinished = matches!(result, Err(SendError::TimedOut)) && self.progress.bytes() > 0;
        self.owner = unfinished.then_some(call);
        if !unfinished {
            self.progress = Progress::default();
        }
        result.map(Some)
    }
}

impl SendHalf {
    pub(crate) fn new(sender: Sender) -> SendHalf {
        SendHalf(Mutex::new(Sending { sender, asked: (0, 0), progress: Progress::default(), owner: None }))
    }

    /// Sends one message that is gathered from several buffers.
    pub(crate) fn send_vectored(&self, py: Python<'_>, parts: &[IoSlice<'_>]) -> Result<(), Fault> {
        if let Some(mut sending) = try_lock(&self.0) {
            if sending.is_broken() {
                return Err(SendError::Disconnected.into());
            }
        }
        self.send_slow(py, parts)
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
        self.send_slow(py, &[IoSlice::new(message)])
    }

    /// Sends what there is room for, without waiting, of a message of which `call` may have sent a part already. True once that is all of it. As long as it is not, `call` has
    /// the half to itself where the message is long, until [`give_up`](Self::give_up).
    pub(crate) fn send_now(&self, call: Call, parts: &[IoSlice<'_>]) -> Result<bool, Fault> {
        let Some(mut sending) = try_lock(&self.0) else {
            return Ok(false);
        };
        if sending.is_broken() {
            return Err(SendError::Disconnected.into());
        }
        match sending.step(call, parts, Duration::ZERO) {
            Ok(None) | Err(SendError::TimedOut | SendError::Full) => Ok(false),
            Ok(Some(())) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes back what `call` has sent of a message. A forked child takes back nothing of its parent's.
    pub(crate) fn give_up(&self, py: Python<'_>, call: Call) {
        if call.forks != FORKS.load(Ordering::Relaxed) {
            return;
        }
        let mut sending = lock(py, &self.0);
        let Sending { sender, progress, owner, .. } = &mut *sending;
        if *owner == Some(call) {
            sender.take_back(progress);
            *owner = None;
        }
    }

    #[cold]
    #[inline(never)]
    fn send_slow(&self, py: Python<'_>, parts: &[IoSlice<'_>]) -> Result<(), Fault> {
        let call = Call::new();
        let mut time = SLICE;
        loop {
            let step = detached(py, || {
                let mut sending = lock_within(&self.0, SLICE)?;
                let sent = sending.step(call, parts, time);
                if matches!(sent, Ok(None)) {
                    drop(sending);
                    thread::sleep(time / 8);
                }
                Some(sent)
            });
            match step {
                Some(Ok(Some(()))) => return Ok(()),
                None | Some(Ok(None) | Err(SendError::TimedOut)) => {}
                Some(Err(e)) => return Err(e.into()),
            }
            time = (2 * time).min(LONGEST);
            if let Err(raised) = py.check_signals() {
                self.give_up(py, call);
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
