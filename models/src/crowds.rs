//! Crowds by themselves: who waits, wakes and leads, for units that are counted in a word instead of a ring, so that there can be more of them.
//!
//! As for pipes, nobody gives up here: a wait that is not ended is a deadlock.

use std::ptr::NonNull;
use std::sync::Arc;

use loom::thread;

use crate::bell;
use crate::crowd::{Crowd, Sight, Sought};
use crate::deadline::Deadline;
use crate::explore::{Explorer, Model};
use crate::registry::Member;
use crate::ring::mpmc::Owner;
use crate::segment::Segment;
use crate::sync::{AtomicU32, Machine, Ordering, OwnedFd, die, process};
use crate::wait::Wake;

pub(crate) const MODELS: &[Model] = &[
    Model { name: "crowd-sleepers", preemptions: Some(2), body: sleepers },
    Model { name: "crowd-two-publishers", preemptions: Some(1), body: two_publishers },
    Model { name: "crowd-lead", preemptions: Some(2), body: lead },
    Model { name: "crowd-lead-of-three", preemptions: Some(0), body: lead_of_three },
    Model { name: "crowd-woken-killed", preemptions: Some(1), body: woken_killed },
    Model { name: "crowd-room", preemptions: Some(2), body: room },
    Model { name: "crowd-room-for-three", preemptions: Some(0), body: room_for_three },
];

fn with_slices() -> impl Iterator<Item = Machine> {
    Machine::all().filter(|machine| machine.slices_end)
}

/// The two sides' seats, and the units that one side waits for.
struct Place {
    units: AtomicU32,
    segment: Arc<Segment>,
}

/// One process of a side.
struct Side {
    crowd: Crowd,
    member: Option<Member>,
    place: Arc<Place>,
}

// SAFETY: as for the crate's own.
unsafe impl Send for Side {}

struct Sockets {
    place: Arc<Place>,
    /// Of those who wait, and of those who publish.
    waiting: OwnedFd,
    publishing: OwnedFd,
    /// They wait for room, as senders do.
    room: bool,
}

impl Sockets {
    fn new(room: bool) -> Sockets {
        let place = Arc::new(Place { units: AtomicU32::new(0), segment: Arc::new(Segment::many(4, 0)) });
        let (waiting, publishing) = OwnedFd::pair();
        if !room {
            // SAFETY: the control block lives as long as the segment.
            bell::arm_fresh(unsafe { &place.segment.many_control().as_ref().not_empty.0.bell });
        }
        Sockets { place, waiting, publishing, room }
    }

    fn side(&self, waits: bool) -> Side {
        // SAFETY: the control block lives as long as the segment, which the side keeps.
        let crowd = unsafe {
            let control = self.place.segment.many_control().as_ref();
            let [not_empty, not_full] = [&control.not_empty.0, &control.not_full.0].map(NonNull::from);
            let receives = waits != self.room;
            let (mine, theirs) = if receives { (not_empty, not_full) } else { (not_full, not_empty) };
            let socket = if waits { &self.waiting } else { &self.publishing };
            Crowd::new(mine, theirs, socket.copy(), !receives, 0)
        };
        Side { crowd, member: None, place: Arc::clone(&self.place) }
    }

    /// The next, with the next number.
    fn waiter(&self) -> Side {
        let member = Member::new(Arc::clone(&self.place.segment)).unwrap();
        member.number(|_| ()).unwrap();
        Side { member: Some(member), ..self.side(true) }
    }

    fn publisher(&self) -> Side {
        self.side(false)
    }
}

impl Sought for Place {
    fn look(&self) -> Sight {
        if self.units.load(Ordering::Acquire) > 0 { Sight::Ready } else { Sight::Nothing }
    }

    fn help(&self) -> bool {
        false
    }

    fn is_dead(&self, member: Owner) -> bool {
        self.segment.member_locks()[usize::from(member)].fetch_or(0, Ordering::AcqRel) == 0
    }
}

impl Side {
    fn publish(&self) {
        self.place.units.fetch_add(1, Ordering::Release);
        self.crowd.notify(|| self.place.look() != Sight::Nothing);
    }

    /// A little room.
    fn give_room(&self) {
        self.place.units.fetch_add(1, Ordering::Release);
        self.crowd.notify_room(|| false);
    }

    /// Takes one unit, waiting for it; false at the end.
    fn take(&self) -> bool {
        let me = self.member.as_ref().and_then(Member::joined).expect("a waiter");
        loop {
            let units = self.place.units.load(Ordering::Acquire);
            if units > 0 {
                if self.place.units.compare_exchange(units, units - 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return true;
                }
                continue;
            }
            match self.crowd.wait(Deadline::NEVER, me, &*self.place) {
                Wake::Ready => {}
                Wake::Gone => return false,
                Wake::TimedOut => unreachable!("there is no deadline"),
            }
        }
    }

    fn take_all(&self) -> usize {
        (0..).take_while(|_| self.take()).count()
    }
}

/// Two who sleep, and one who publishes for both.
fn sleepers(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let sockets = Sockets::new(false);
            let (here, there, publisher) = (sockets.waiter(), sockets.waiter(), sockets.publisher());
            let waiting = thread::spawn(move || (there.take(), there));
            let publishing = thread::spawn(move || {
                publisher.publish();
                publisher.publish();
                publisher
            });
            assert!(here.take());
            let (taken, _there) = waiting.join().unwrap();
            assert!(taken);
            drop(publishing.join().unwrap());
        });
    }
}

/// Two who sleep, and two who publish.
fn two_publishers(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let sockets = Sockets::new(false);
            let (here, there) = (sockets.waiter(), sockets.waiter());
            let publishing = [sockets.publisher(), sockets.publisher()].map(|publisher| {
                thread::spawn(move || {
                    publisher.publish();
                    publisher
                })
            });
            let waiting = thread::spawn(move || (there.take(), there));
            assert!(here.take());
            let (taken, _there) = waiting.join().unwrap();
            assert!(taken);
            let _publishers = publishing.map(|publisher| publisher.join().unwrap());
        });
    }
}

/// Whoever led has got what it wanted. The other must not miss that all publishers are gone, which nobody says.
fn lead(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let sockets = Sockets::new(false);
            let (here, there, publisher) = (sockets.waiter(), sockets.waiter(), sockets.publisher());
            drop(sockets);
            let waiting = thread::spawn(move || (there.take(), there));
            let publishing = thread::spawn(move || {
                process(None, || {
                    publisher.publish();
                    die();
                })
            });
            let taken = here.take_all();
            let (other, _there) = waiting.join().unwrap();
            publishing.join().unwrap();
            assert_eq!(taken + usize::from(other), 1);
        });
    }
}

/// Whoever led leaves, and so does who was woken in its place.
fn lead_of_three(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let sockets = Sockets::new(false);
            let (here, publisher) = (sockets.waiter(), sockets.publisher());
            let others = [(), ()].map(|()| sockets.waiter());
            drop(sockets);
            let waiting = others.map(|there| thread::spawn(move || (there.take(), there)));
            let publishing = thread::spawn(move || {
                process(None, || {
                    publisher.publish();
                    publisher.publish();
                    die();
                })
            });
            let taken = here.take_all();
            let others = waiting.map(|there| there.join().unwrap());
            publishing.join().unwrap();
            assert_eq!(taken + others.iter().filter(|(taken, _)| *taken).count(), 2);
        });
    }
}

/// Of two who wait one is killed at any of its steps, when it has been woken, say: the other finds what there is, though nothing more happens.
fn woken_killed(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let sockets = Sockets::new(false);
            let (here, there, publisher) = (sockets.waiter(), sockets.waiter(), sockets.publisher());
            let waiting = thread::spawn(move || {
                process(step, || {
                    assert!(there.take());
                    drop(there);
                })
            });
            let publishing = thread::spawn(move || {
                publisher.publish();
                publisher.publish();
                publisher
            });
            assert!(here.take());
            let killed = waiting.join().unwrap();
            drop(publishing.join().unwrap());
            killed
        });
    }
}

/// Two who wait for room, which comes little by little: where only slices end by themselves, who leads is told and tells the other.
fn room(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let sockets = Sockets::new(true);
            let (here, there, publisher) = (sockets.waiter(), sockets.waiter(), sockets.publisher());
            let waiting = thread::spawn(move || (there.take(), there));
            let publishing = thread::spawn(move || {
                publisher.give_room();
                publisher.give_room();
                publisher
            });
            assert!(here.take());
            let (taken, _there) = waiting.join().unwrap();
            assert!(taken);
            drop(publishing.join().unwrap());
        });
    }
}

fn room_for_three(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let sockets = Sockets::new(true);
            let (here, publisher) = (sockets.waiter(), sockets.publisher());
            let others = [(), ()].map(|()| sockets.waiter());
            let waiting = others.map(|there| thread::spawn(move || (there.take(), there)));
            let publishing = thread::spawn(move || {
                (0..3).for_each(|_| publisher.give_room());
                publisher
            });
            assert!(here.take());
            let others = waiting.map(|there| there.join().unwrap());
            assert!(others.iter().all(|(taken, _)| *taken));
            drop(publishing.join().unwrap());
        });
    }
}
