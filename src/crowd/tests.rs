//! Who leads, step by step.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::crowd::{Crowd, Sight, Sought};
use crate::deadline::Deadline;
use crate::layout::{Geometry, MIN_MANY_CAPACITY};
use crate::ring::mpmc::Owner;
use crate::segment::{ANONYMOUS, Segment};
use crate::sync::OwnedFd;
use crate::sys;
use crate::wait::Wake;

/// Something that comes when it is said to, among members that are dead or not, as told.
struct Told<'a, F> {
    come: &'a AtomicBool,
    is_dead: F,
}

impl<F: Fn(Owner) -> bool> Sought for Told<'_, F> {
    fn look(&self) -> Sight {
        if self.come.load(Ordering::SeqCst) { Sight::Ready } else { Sight::Nothing }
    }

    fn help(&self) -> bool {
        false
    }

    fn is_dead(&self, member: Owner) -> bool {
        (self.is_dead)(member)
    }
}

/// Both sides of a pipe without a ring.
struct Sides {
    segment: Segment,
    waiting: OwnedFd,
    publishing: OwnedFd,
}

impl Sides {
    fn new() -> Sides {
        let (waiting, publishing) = sys::socketpair().unwrap();
        Sides {
            segment: Segment::create(Geometry::mpmc(MIN_MANY_CAPACITY, 0), ANONYMOUS).unwrap(),
            waiting,
            publishing,
        }
    }

    fn side(&self, waits: bool) -> Crowd {
        // SAFETY: the control block is all atomics, and the segment outlives what is made of it: see the test.
        let control = unsafe { self.segment.many_control().as_ref() };
        let [waiting, publishing] = [&control.not_empty.0, &control.not_full.0].map(NonNull::from);
        let (mine, theirs) = if waits { (waiting, publishing) } else { (publishing, waiting) };
        let socket = if waits { &self.waiting } else { &self.publishing };
        // SAFETY: as above.
        unsafe { Crowd::new(mine, theirs, socket.try_clone().unwrap(), !waits, 0) }
    }

    /// Who leads, as those who wait see it.
    fn leader(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &self.segment.many_control().as_ref().not_empty.0.leader }
    }
}

/// Between finding the leader dead and taking over from it, a member may be held up, while the number of the dead is given to a newcomer, who leads. All
/// that the leader's word says of that is its count.
#[test]
fn nobody_takes_over_from_a_leader_who_came_after_the_one_that_was_found_dead() {
    const DEAD: Owner = 7;
    const OTHER: Owner = 8;
    let sides = Sides::new();
    let word = sides.leader();
    let publisher = sides.side(false);
    let [first, newcomer, late] = [(); 3].map(|()| sides.side(true));
    let come = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // One leads. It is killed: what it left behind is its word.
        let leading = scope.spawn(|| first.wait(Deadline::NEVER, DEAD, &Told { come: &come, is_dead: |_| false }));
        while word.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let left = word.load(Ordering::SeqCst);
        come.store(true, Ordering::SeqCst);
        publisher.notify(|| true);
        assert_eq!(leading.join().unwrap(), Wake::Ready);
        word.store(left, Ordering::SeqCst);
    });
    let (come, never) = (AtomicBool::new(false), AtomicBool::new(false));
    let found = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (newcomer, come, found) = (&newcomer, &come, &found);
        let before = word.load(Ordering::SeqCst);
        let is_dead = |_| {
            let first_time = !found.swap(true, Ordering::SeqCst);
            if first_time {
                scope.spawn(move || newcomer.wait(Deadline::NEVER, DEAD, &Told { come, is_dead: |_| true }));
                let end = Instant::now() + Duration::from_millis(200);
                while word.load(Ordering::SeqCst) == before && Instant::now() < end {
                    std::thread::yield_now();
                }
            }
            // Whoever has the number by now is alive.
            first_time
        };
        let wake = late.wait(Deadline::after(Duration::from_millis(300)), OTHER, &Told { come: &never, is_dead });
        let after = word.load(Ordering::SeqCst);
        // Not before it is over, or the scope would wait for ever.
        come.store(true, Ordering::SeqCst);
        publisher.notify(|| true);
        assert_eq!(wake, Wake::TimedOut);
        assert!(found.load(Ordering::SeqCst), "the first was found dead");
        let number = |word: u32| word & 0x7ff;
        assert_eq!(
            (number(after), after != before),
            (number(before), true),
            "the newcomer leads: {before:#x}, {after:#x}"
        );
    });
}
