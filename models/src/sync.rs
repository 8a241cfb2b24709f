//! The machine under the protocols: atomics that loom schedules, descriptors of model sockets, and death.
//!
//! Takes the place of the crate's `src/sync.rs`.
//!
//! Every store and every system call is a *step*. A thread that was given a number of steps dies at the one after, as by SIGKILL: it
//! does nothing more, not even what its destructors would do, except that the kernel closes its descriptors.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use loom::sync::{Condvar, Mutex, atomic};

pub(crate) use loom::sync::atomic::{Ordering, fence};

pub(crate) const LINGER: u32 = 1;
pub(crate) const HEAR_OUT: u32 = 1;
/// Two slices.
pub(crate) const LEASE: u64 = 9_000_000;

/// What the machine is like, in all of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// `membarrier` works. Otherwise it is refused to everybody.
    pub(crate) membarrier: bool,
    /// Sleeps of a slice at most end, so that waiters go on to the stages after it. Otherwise they never do, so that a
    /// wake-up that is lost leaves its sleeper there for ever. Longer ones never end by themselves.
    pub(crate) slices_end: bool,
}

impl Machine {
    pub(crate) fn all() -> impl Iterator<Item = Machine> {
        [true, false]
            .into_iter()
            .flat_map(|membarrier| [true, false].into_iter().map(move |slices_end| Machine { membarrier, slices_end }))
    }
}

const ALIVE: u32 = u32::MAX;
const DEAD: u32 = 0;

// Loom's threads share one real thread, so what all of them share is thread-local here.
thread_local! {
    static MACHINE: Cell<Machine> = const { Cell::new(Machine { membarrier: true, slices_end: true }) };
    static MORGUE: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

loom::thread_local! {
    static STEPS_LEFT: Cell<u32> = Cell::new(ALIVE);
    static CLOCK: Cell<u64> = Cell::new(1_000);
    static SLEEPS: Cell<u32> = Cell::new(0);
}

/// Sleeps that a thread may go through without ever having to wait for another before it lets the others run: a loop of them is no
/// deadlock, but would never end. (Yielding at every sleep would hide what the sleeper does beside the others.)
const RESTLESS: u32 = 4;

struct Killed;

/// To be called when an execution starts.
pub(crate) fn boot(machine: Machine) {
    MACHINE.set(machine);
}

pub(crate) fn machine() -> Machine {
    MACHINE.get()
}

/// The time as this thread knows it: it passes only while the thread sleeps.
pub(crate) fn clock() -> u64 {
    CLOCK.with(Cell::get)
}

/// Sleeps until `at`.
pub(crate) fn sleep(at: u64) {
    let sleeps = SLEEPS.with(|sleeps| sleeps.replace(sleeps.get() + 1));
    if sleeps >= RESTLESS {
        loom::thread::yield_now();
    }
    CLOCK.with(|clock| clock.set(clock.get().max(at)));
}

/// Whether the thread lives to take this step. Unwinds where it dies.
pub(crate) fn step() -> bool {
    STEPS_LEFT.with(|left| match left.get() {
        ALIVE => true,
        DEAD => false,
        n => {
            left.set(n - 1);
            if n - 1 == DEAD {
                resume_unwind(Box::new(Killed));
            }
            true
        }
    })
}

fn alive() -> bool {
    STEPS_LEFT.with(|left| left.get() != DEAD)
}

/// Runs a process that is killed at its step number `steps` (from 0), or never. Whether it was killed.
pub(crate) fn process(steps: Option<u32>, body: impl FnOnce()) -> bool {
    STEPS_LEFT.with(|left| left.set(steps.map_or(ALIVE, |n| n + 1)));
    let killed = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => false,
        Err(cause) if cause.is::<Killed>() => true,
        Err(cause) => resume_unwind(cause),
    };
    STEPS_LEFT.with(|left| left.set(ALIVE));
    let kept = MORGUE.with(|morgue| std::mem::take(&mut *morgue.borrow_mut()));
    for give_back in kept {
        give_back();
    }
    killed
}

/// The process is killed where it stands.
pub(crate) fn die() -> ! {
    STEPS_LEFT.with(|left| left.set(DEAD));
    resume_unwind(Box::new(Killed))
}

/// What the kernel takes back when whoever has it lets go of it, or else when they are dead.
pub(crate) fn give_back(now_or_at_death: impl FnOnce() + 'static) {
    // Not a step of its own.
    if alive() {
        now_or_at_death();
    } else {
        MORGUE.with(|morgue| morgue.borrow_mut().push(Box::new(now_or_at_death)));
    }
}

/// Passing the time: by then what was stored has left its processor.
pub(crate) fn spin_loop() {
    fence(Ordering::SeqCst);
}

/// Where `membarrier` works, one side's compiler fence and the other's call are to each other as two full fences.
pub(crate) fn compiler_fence(_: Ordering) {
    if machine().membarrier {
        fence(Ordering::SeqCst);
    }
}

// --- atomics ----------------------------------------------------------------------------------------

#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct AtomicU64(atomic::AtomicU64);

// The ring is made of these, and the source reckons with 8 bytes.
const _: () = assert!(size_of::<AtomicU64>() == 8);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> AtomicU64 {
        AtomicU64(atomic::AtomicU64::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        if alive() { self.0.load(order) } else { 0 }
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        if step() {
            self.0.store(value, order);
        }
    }

    pub(crate) fn compare_exchange(&self, old: u64, new: u64, set: Ordering, seen: Ordering) -> Result<u64, u64> {
        if step() { self.0.compare_exchange(old, new, set, seen) } else { Ok(old) }
    }
}

/// With the kernel's queue for those who sleep on it.
#[derive(Debug)]
pub(crate) struct AtomicU32 {
    value: atomic::AtomicU32,
    /// How many sleep and have not been woken.
    queue: Mutex<u32>,
    woken: Condvar,
}

impl AtomicU32 {
    pub(crate) fn new(value: u32) -> AtomicU32 {
        AtomicU32 { value: atomic::AtomicU32::new(value), queue: Mutex::new(0), woken: Condvar::new() }
    }

    pub(crate) fn load(&self, order: Ordering) -> u32 {
        if alive() { self.value.load(order) } else { 0 }
    }

    pub(crate) fn store(&self, value: u32, order: Ordering) {
        if step() {
            self.value.store(value, order);
        }
    }

    pub(crate) fn fetch_add(&self, by: u32, order: Ordering) -> u32 {
        if step() { self.value.fetch_add(by, order) } else { 0 }
    }

    pub(crate) fn fetch_or(&self, bits: u32, order: Ordering) -> u32 {
        if step() { self.value.fetch_or(bits, order) } else { 0 }
    }

    pub(crate) fn fetch_and(&self, bits: u32, order: Ordering) -> u32 {
        if step() { self.value.fetch_and(bits, order) } else { 0 }
    }

    pub(crate) fn compare_exchange(&self, old: u32, new: u32, set: Ordering, seen: Ordering) -> Result<u32, u32> {
        if step() { self.value.compare_exchange(old, new, set, seen) } else { Ok(old) }
    }

    pub(crate) fn compare_exchange_weak(&self, old: u32, new: u32, set: Ordering, seen: Ordering) -> Result<u32, u32> {
        self.compare_exchange(old, new, set, seen)
    }

    /// True if the word holds something else.
    pub(crate) fn wait(&self, expected: u32) -> bool {
        let mut asleep = self.queue.lock().unwrap();
        let changed = self.value.load(Ordering::SeqCst) != expected;
        if !changed {
            *asleep += 1;
            drop(self.woken.wait(asleep).unwrap());
        }
        changed
    }

    /// Wakes whoever has slept longest. Whether there was anybody.
    pub(crate) fn wake_one(&self) -> bool {
        if !step() {
            return false;
        }
        let mut asleep = self.queue.lock().unwrap();
        let anybody = *asleep > 0;
        if anybody {
            *asleep -= 1;
            self.woken.notify_one();
        }
        anybody
    }

    pub(crate) fn wake_all(&self) {
        if step() {
            let mut asleep = self.queue.lock().unwrap();
            if *asleep > 0 {
                *asleep = 0;
                self.woken.notify_all();
            }
        }
    }
}

// --- descriptors ------------------------------------------------------------------------------------

/// A byte in a socket, and the descriptors that travel with it.
pub(crate) type Item = (u8, Vec<OwnedFd>);

pub(crate) struct Pair {
    state: Mutex<PairState>,
    changed: Condvar,
}

pub(crate) struct PairState {
    /// Those who wait for this socket among others.
    watchers: Vec<Arc<Watcher>>,
    /// What each side has to read.
    inbox: [VecDeque<Item>; 2],
    /// Open copies of each side.
    copies: [u32; 2],
}

/// The kernel's part of a wait for many sockets.
pub(crate) struct Watcher {
    notified: Mutex<bool>,
    woken: Condvar,
}

impl Watcher {
    fn notify(&self) {
        *self.notified.lock().unwrap() = true;
        self.woken.notify_one();
    }
}

impl PairState {
    fn notify(&self) {
        self.watchers.iter().for_each(|watcher| watcher.notify());
    }
}

/// Waits until there is something to read in one of the sockets, or its other side is gone; of those that are not to be read from, only for the latter.
pub(crate) fn wait_for_many(fds: &[(BorrowedFd<'_>, bool)]) {
    let watcher = Arc::new(Watcher { notified: Mutex::new(false), woken: Condvar::new() });
    let mut ready = false;
    for (fd, reading) in fds {
        let mut state = fd.pair.state.lock().unwrap();
        ready |= *reading && !state.inbox[fd.side].is_empty() || state.copies[1 - fd.side] == 0;
        state.watchers.push(Arc::clone(&watcher));
    }
    while !ready {
        SLEEPS.with(|sleeps| sleeps.set(0));
        let mut notified = watcher.notified.lock().unwrap();
        while !*notified {
            notified = watcher.woken.wait(notified).unwrap();
        }
        *notified = false;
        drop(notified);
        ready = fds.iter().any(|(fd, reading)| fd.look(|inbox| *reading && !inbox.items.is_empty() || inbox.hung_up));
    }
    for (fd, _) in fds {
        fd.pair.state.lock().unwrap().watchers.retain(|other| !Arc::ptr_eq(other, &watcher));
    }
}

/// Bytes that a socket holds: more than a protocol ever leaves there.
pub(crate) const ROOM: usize = 12;

/// One copy of one side of a connected pair of stream sockets.
pub(crate) struct OwnedFd {
    pair: Arc<Pair>,
    side: usize,
}

pub(crate) type BorrowedFd<'a> = &'a OwnedFd;

pub(crate) trait AsFd {
    fn as_fd(&self) -> BorrowedFd<'_>;
}

impl AsFd for OwnedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self
    }
}

/// What one side finds in its socket.
pub(crate) struct Inbox<'a> {
    pub(crate) items: &'a mut VecDeque<Item>,
    /// Every copy of the other side is closed.
    pub(crate) hung_up: bool,
}

impl Pair {
    fn close(&self, side: usize) {
        let mut state = self.state.lock().unwrap();
        state.copies[side] -= 1;
        let unread = if state.copies[side] == 0 { std::mem::take(&mut state.inbox[side]) } else { VecDeque::new() };
        self.changed.notify_all();
        state.notify();
        drop(state);
        drop(unread);
    }
}

impl OwnedFd {
    pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
        let state = PairState { watchers: Vec::new(), inbox: [VecDeque::new(), VecDeque::new()], copies: [1, 1] };
        let pair = Arc::new(Pair { state: Mutex::new(state), changed: Condvar::new() });
        (OwnedFd { pair: Arc::clone(&pair), side: 0 }, OwnedFd { pair, side: 1 })
    }

    /// What `dup`, `fork` and `SCM_RIGHTS` do.
    pub(crate) fn copy(&self) -> OwnedFd {
        self.pair.state.lock().unwrap().copies[self.side] += 1;
        OwnedFd { pair: Arc::clone(&self.pair), side: self.side }
    }

    /// Whether what this side has sent, and nobody has read, is all that fits. (What is sent with descriptors always does.)
    pub(crate) fn is_full(&self) -> bool {
        self.pair.state.lock().unwrap().inbox[1 - self.side].len() >= ROOM
    }

    /// Sends items, in one go; false if nobody is left to read them.
    pub(crate) fn send(&self, items: impl IntoIterator<Item = Item>) -> bool {
        let mut state = self.pair.state.lock().unwrap();
        let open = state.copies[1 - self.side] > 0;
        if open {
            state.inbox[1 - self.side].extend(items);
            self.pair.changed.notify_all();
            state.notify();
        }
        open
    }

    pub(crate) fn look<R>(&self, f: impl FnOnce(Inbox<'_>) -> R) -> R {
        let mut state = self.pair.state.lock().unwrap();
        let hung_up = state.copies[1 - self.side] == 0;
        f(Inbox { items: &mut state.inbox[self.side], hung_up })
    }

    /// As [`look`](Self::look), once there is something to read or the other side is gone.
    pub(crate) fn wait(&self) {
        let mut state = self.pair.state.lock().unwrap();
        while state.inbox[self.side].is_empty() && state.copies[1 - self.side] > 0 {
            SLEEPS.with(|sleeps| sleeps.set(0));
            state = self.pair.changed.wait(state).unwrap();
        }
    }
}

impl Drop for OwnedFd {
    fn drop(&mut self) {
        let (pair, side) = (Arc::clone(&self.pair), self.side);
        give_back(move || pair.close(side));
    }
}
