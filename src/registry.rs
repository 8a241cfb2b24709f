//! Who takes part in a pipe for many, and whether they live.
//!
//! Every process that uses a side of such a pipe is a *member* and has a number below [`MEMBERS`], by which the words of the ring name it. That
//! it lives is known by a lock that the kernel keeps: an open-file-description lock on the byte of the memory file with that number. Nobody
//! ever waits for one. Whoever holds it is alive, and when the process ends, however it ends, the kernel takes the lock away. So a
//! number that nobody has locked is that of somebody dead, or of nobody, and can be had by a newcomer, who first gives
//! up what its predecessor held.
//!
//! The lock has to end with the process, not with the last descriptor, of which a forked child would have a copy without knowing. So the
//! description, one of the member's own (opened anew through `/proc`), is kept open by nothing but a mapping that children do not inherit
//! (`MADV_DONTFORK`), and its descriptor is closed. Between the opening and the closing, `fork` in another thread waits ([`gate`]).
//!
//! A forked child is a member of its own: where the number is noted is wiped in children (`MADV_WIPEONFORK`), so that a child finds no number
//! at its first use, and gets one.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::ring::mpmc::Owner;
use crate::segment::Segment;
use crate::sync::AsFd;
use crate::sys;

/// How many there may be at a time.
pub(crate) const MEMBERS: u16 = 1024;

/// A membership, in each process that has a copy of it.
pub(crate) struct Member {
    page: NonNull<Page>,
    segment: Arc<Segment>,
}

/// All zero in a forked child.
#[repr(C)]
struct Page {
    /// [`NONE`], [`JOINING`], or the number plus [`FIRST`].
    number: AtomicU32,
    /// The mapping that keeps the lock.
    lock: AtomicPtr<u8>,
}

const NONE: u32 = 0;
const JOINING: u32 = 1;
const FIRST: u32 = 2;

// SAFETY: the page is atomics, which any thread may use.
unsafe impl Send for Member {}
// SAFETY: as above.
unsafe impl Sync for Member {}

impl Member {
    pub(crate) fn new(segment: Arc<Segment>) -> io::Result<Member> {
        Ok(Member { page: sys::map_wiped_on_fork()?.cast(), segment })
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped, zeroed and aligned, until the value is dropped.
        unsafe { self.page.as_ref() }
    }

    /// The number of this process, if it has one yet.
    #[inline(always)]
    pub(crate) fn joined(&self) -> Option<Owner> {
        let number = self.page().number.load(Ordering::Acquire);
        number.checked_sub(FIRST).map(|number| number as Owner)
    }

    /// The number of this process. If it has none, it gets one, of which `inherit` is told before it is used.
    #[inline(always)]
    pub(crate) fn number(&self, inherit: impl FnOnce(Owner)) -> io::Result<Owner> {
        match self.joined() {
            Some(number) => Ok(number),
            None => self.join(inherit),
        }
    }

    #[cold]
    fn join(&self, inherit: impl FnOnce(Owner)) -> io::Result<Owner> {
        let number = &self.page().number;
        loop {
            match number.compare_exchange(NONE, JOINING, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => break,
                // Another thread of this process: a child that is forked meanwhile finds the page wiped.
                Err(JOINING) => std::thread::yield_now(),
                Err(number) => return Ok((number - FIRST) as Owner),
            }
        }
        let (mine, lock) = self.lock_a_number().inspect_err(|_| number.store(NONE, Ordering::Release))?;
        inherit(mine);
        self.page().lock.store(lock.as_ptr(), Ordering::Relaxed);
        number.store(FIRST + u32::from(mine), Ordering::Release);
        Ok(mine)
    }

    fn lock_a_number(&self) -> io::Result<(Owner, NonNull<u8>)> {
        let _no_fork = gate::enter();
        let own = sys::reopen(self.segment.as_fd())?;
        let start = std::process::id() % u32::from(MEMBERS);
        for n in 0..u32::from(MEMBERS) {
            let number = ((start + n) % u32::from(MEMBERS)) as Owner;
            if sys::try_lock_byte(own.as_fd(), number.into())? {
                let lock = sys::map_not_forked(own.as_fd())?;
                drop(own);
                return self.believe(number, lock);
            }
        }
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, "as many processes as can use this pipe"))
    }

    /// Makes sure that the mapping keeps the lock: to others, who go by that, this process would be dead otherwise. It does on Linux, and does not under
    /// every emulator of it.
    fn believe(&self, number: Owner, lock: NonNull<u8>) -> io::Result<(Owner, NonNull<u8>)> {
        if !self.is_dead(number) {
            return Ok((number, lock));
        }
        // SAFETY: just mapped here.
        unsafe { sys::unmap_page(lock.as_ptr()) };
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this system does not keep the lock that says that a process lives",
        ))
    }

    /// Whether the member of that number is dead. Never true of one that lives, stopped or not.
    pub(crate) fn is_dead(&self, number: Owner) -> bool {
        matches!(sys::is_byte_locked(self.segment.as_fd(), number.into()), Ok(false))
    }
}

/// Keeps `fork` waiting while there is something that a child must not inherit.
mod gate {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    static TAKEN: AtomicBool = AtomicBool::new(false);
    static TAKEN_BY_FORK: AtomicBool = AtomicBool::new(false);

    /// How often one looks whether one may go on, with some 50 µs in between: far longer than anybody is inside, but not for ever, since a signal
    /// handler may fork in the thread that is, and a child that was forked before the handlers were there may find the gate taken.
    const LOOKS: u32 = 40_000;
    const BETWEEN: Duration = Duration::from_micros(50);

    /// Whether the gate was taken.
    pub(super) struct Inside(bool);

    pub(super) fn enter() -> Inside {
        static REGISTERED: AtomicBool = AtomicBool::new(false);
        let inside = Inside(take());
        if !REGISTERED.load(Ordering::Relaxed) {
            // SAFETY: the handlers use atomics, and yield. Without memory for them, forks do not wait.
            unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
            REGISTERED.store(true, Ordering::Relaxed);
        }
        inside
    }

    impl Drop for Inside {
        fn drop(&mut self) {
            if self.0 {
                TAKEN.store(false, Ordering::Release);
            }
        }
    }

    fn take() -> bool {
        (0..LOOKS).any(|_| {
            let taken = TAKEN.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
            if !taken {
                std::thread::sleep(BETWEEN);
            }
            taken
        })
    }

    extern "C" fn before_fork() {
        if take() {
            TAKEN_BY_FORK.store(true, Ordering::Relaxed);
        }
    }

    /// In both processes.
    extern "C" fn after_fork() {
        if TAKEN_BY_FORK.swap(false, Ordering::Relaxed) {
            TAKEN.store(false, Ordering::Release);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let lock = self.page().lock.load(Ordering::Relaxed);
        // In a forked child there is no lock, and something else may be in its place.
        if !lock.is_null() {
            // SAFETY: mapped by this process, or it would have been wiped.
            unsafe { sys::unmap_page(lock) };
        }
        // SAFETY: mapped by `new`, here or in a parent: this mapping is one that children inherit.
        unsafe { sys::unmap_page(self.page.as_ptr().cast()) };
    }
}
