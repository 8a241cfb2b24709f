//! Who takes part, in the place of the crate's `src/registry.rs`: a lock for each number, which is its holder's until they let go of it or
//! are dead. Every process has the lowest number that is free, so who comes after somebody's death comes in their place.
//!
//! Asking orders memory as the kernel's lock does around its table of locks.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use loom::sync::atomic::Ordering;

use crate::ring::mpmc::Owner;
use crate::segment::Segment;
use crate::sync::{give_back, step};

pub(crate) struct Member {
    lock: RefCell<Option<Lock>>,
    segment: Arc<Segment>,
}

// SAFETY: loom runs one thread at a time; and a side is used by one at a time here, each being a process of its own.
unsafe impl Send for Member {}
// SAFETY: as above.
unsafe impl Sync for Member {}

impl Member {
    pub(crate) fn new(segment: Arc<Segment>) -> io::Result<Member> {
        Ok(Member { lock: RefCell::new(None), segment })
    }

    pub(crate) fn joined(&self) -> Option<Owner> {
        self.lock.borrow().as_ref().map(|lock| lock.number)
    }

    pub(crate) fn number(&self, inherit: impl FnOnce(Owner)) -> io::Result<Owner> {
        if let Some(number) = self.joined() {
            return Ok(number);
        }
        let locks = self.segment.member_locks();
        let free = locks
            .iter()
            .position(|lock| step() && lock.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_ok());
        let number = free.expect("as many members as the models need") as Owner;
        let lock = Lock { number, segment: Arc::clone(&self.segment) };
        inherit(number);
        *self.lock.borrow_mut() = Some(lock);
        Ok(number)
    }

    pub(crate) fn is_dead(&self, number: Owner) -> bool {
        self.segment.member_locks()[usize::from(number)].fetch_or(0, Ordering::AcqRel) == 0
    }
}

/// Held until it is dropped, or its holder dead.
struct Lock {
    number: Owner,
    segment: Arc<Segment>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let (number, segment) = (usize::from(self.number), Arc::clone(&self.segment));
        give_back(move || {
            segment.member_locks()[number].swap(0, Ordering::AcqRel);
        });
    }
}
