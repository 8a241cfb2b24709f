//! Any sequence of operations on a ring for many, against a model: tiny rings, any cursors, hints that are out of date, and owners that are killed
//! with what they hold, from whom it is taken by others or by who comes with the same number.
//!
//! The model knows exactly what is in the ring, so every answer is compared.
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::fuzzing::many::{CELL, Held, Next, Owner, Ring};
use ringpipe_fuzz::{Start, message};

const MIN_CELLS: usize = 4;
/// 4 to 128 cells.
const SIZES: usize = 6;
const MAX_STEPS: usize = 400;
const OWNERS: Owner = 6;
/// Of who does what has to be done at the end.
const LAST: Owner = 1023;

#[derive(Arbitrary, Debug)]
struct Input {
    size: u8,
    start: Start,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Send {
        owner: u8,
        len: u16,
    },
    Receive {
        owner: u8,
    },
    Claim {
        owner: u8,
        len: u16,
        long: bool,
    },
    Publish {
        which: u8,
        len: u16,
    },
    Take {
        owner: u8,
    },
    GiveUp {
        which: u8,
    },
    /// Less is to be published than was claimed, and the writer is killed in the middle of that.
    DiePublishing {
        which: u8,
        len: u16,
    },
    Kill {
        owner: u8,
    },
    /// Somebody comes with the number of the dead.
    Succeed {
        owner: u8,
    },
    Repair {
        owner: u8,
    },
    Room {
        len: u16,
    },
    /// Hints go back to boundaries that were.
    Hints {
        tail: Option<u8>,
        head: Option<u8>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Writing(Owner),
    Ready,
    Reading(Owner),
    Done,
}

struct Record {
    position: u64,
    cells: u64,
    state: State,
    long: bool,
    number: usize,
    len: usize,
    held: Option<Held>,
}

struct Model {
    cells: u64,
    tail: u64,
    records: VecDeque<Record>,
    dead: [bool; OWNERS as usize],
    sent: usize,
    boundaries: Vec<u64>,
    buf: Vec<u8>,
}

thread_local! {
    static RINGS: RefCell<([Ring; SIZES], Vec<u8>)> = RefCell::new((
        std::array::from_fn(|i| Ring::new(MIN_CELLS << i)),
        vec![0; (MIN_CELLS << (SIZES - 1)) * CELL],
    ));
}

fuzz_target!(|input: Input| {
    RINGS.with_borrow_mut(|(rings, buf)| {
        let size = usize::from(input.size) % SIZES;
        // Laps do not come round in the life of a machine.
        let (ring, start) = (&mut rings[size], input.start.cursor() / 8 % ((MIN_CELLS as u64) << size << 40));
        ring.reset(start);
        let mut model = Model {
            cells: (MIN_CELLS << size) as u64,
            tail: start,
            records: VecDeque::new(),
            dead: [false; OWNERS as usize],
            sent: 0,
            boundaries: vec![start],
            buf: std::mem::take(buf),
        };
        for &step in input.steps.iter().take(MAX_STEPS) {
            model.perform(ring, step);
            model.check(ring);
        }
        model.finish(ring);
        *buf = model.buf;
    });
});

impl Model {
    fn perform(&mut self, ring: &Ring, step: Step) {
        let fitting = |len: u16| usize::from(len) % (ring.max_payload() + 1);
        match step {
            Step::Send { owner, len } => {
                let (owner, len) = (self.living(owner), fitting(len));
                if let Some(which) = owner.and_then(|owner| self.claim(ring, owner, len)) {
                    self.publish(ring, which, len);
                }
            }
            Step::Receive { owner } => {
                if let Some(which) = self.living(owner).and_then(|owner| self.take(ring, owner)) {
                    self.give_up(ring, which);
                }
            }
            Step::Claim { owner, len, long } => {
                let len = if long { ring.max_payload() + 1 } else { fitting(len) };
                if let Some(owner) = self.living(owner) {
                    self.claim(ring, owner, len);
                }
            }
            Step::Publish { which, len } => {
                if let Some(which) = self.pick(which, |state| matches!(state, State::Writing(_))) {
                    let claimed = self.records[which].len;
                    self.publish(ring, which, usize::from(len) % (claimed + 1));
                }
            }
            Step::Take { owner } => {
                if let Some(owner) = self.living(owner) {
                    self.take(ring, owner);
                }
            }
            Step::GiveUp { which } => {
                if let Some(which) = self.pick(which, |state| matches!(state, State::Writing(_) | State::Reading(_))) {
                    self.give_up(ring, which);
                }
            }
            Step::DiePublishing { which, len } => {
                if let Some(which) = self.pick(which, |state| matches!(state, State::Writing(_))) {
                    let record = &self.records[which];
                    let cells = cells_of(usize::from(len) % (record.len + 1));
                    if !record.long && cells < record.cells {
                        ring.die_publishing(record.position, record.cells, cells);
                    }
                    if let State::Writing(owner) = record.state {
                        self.dead[usize::from(owner)] = true;
                    }
                }
            }
            Step::Kill { owner } => self.dead[usize::from(owner) % self.dead.len()] = true,
            Step::Succeed { owner } => {
                let owner = owner % OWNERS as u8;
                if std::mem::take(&mut self.dead[usize::from(owner)]) {
                    self.succeed(ring, owner.into());
                }
            }
            Step::Repair { owner } => {
                if self.living(owner).is_some() {
                    self.repair(ring);
                }
            }
            Step::Room { len } => self.room(ring, usize::from(len) % (2 * ring.max_payload())),
            Step::Hints { tail, head } => {
                // Those of the last few laps. Nobody stores a head beyond what has been taken.
                let boundary = |which: Option<u8>, most: u64| {
                    let past = self.boundaries.partition_point(|&boundary| boundary <= most);
                    which.map(|which| self.boundaries[past - 1 - usize::from(which) % past])
                };
                let head_now = self.next().map_or(self.tail, |i| self.records[i].position);
                let (tail, head) = (boundary(tail, self.tail), boundary(head, head_now));
                ring.set_hints(tail, head);
            }
        }
    }

    fn living(&self, owner: u8) -> Option<Owner> {
        let owner = owner % OWNERS as u8;
        (!self.dead[usize::from(owner)]).then_some(owner.into())
    }

    /// One of the records that the living hold.
    fn pick(&self, which: u8, state: impl Fn(State) -> bool) -> Option<usize> {
        let fits =
            |record: &Record| state(record.state) && self.holder(record).is_some_and(|o| !self.dead[usize::from(o)]);
        let all: Vec<usize> = (0..self.records.len()).filter(|&i| fits(&self.records[i])).collect();
        (!all.is_empty()).then(|| all[usize::from(which) % all.len()])
    }

    fn holder(&self, record: &Record) -> Option<Owner> {
        match record.state {
            State::Writing(owner) | State::Reading(owner) => Some(owner),
            State::Ready | State::Done => None,
        }
    }

    /// What is done at the front is room.
    fn forget_the_done(&mut self) {
        while self.records.front().is_some_and(|record| record.state == State::Done) {
            self.records.pop_front();
        }
    }

    /// The first position that is in use.
    fn free(&self) -> u64 {
        self.records.front().map_or(self.tail, |record| record.position)
    }

    fn push(&mut self, cells: u64, state: State, len: usize, long: bool, held: Option<Held>) -> usize {
        let record = Record { position: self.tail, cells, state, long, number: self.sent, len, held };
        self.tail += cells;
        self.boundaries.push(self.tail);
        self.records.push_back(record);
        self.records.len() - 1
    }

    /// What a claim does, and what it must say.
    fn claim(&mut self, ring: &Ring, owner: Owner, len: usize) -> Option<usize> {
        let claimed = ring.claim(len, owner);
        self.forget_the_done();
        let long = len > ring.max_payload();
        let cells = if long { self.cells / 4 } else { cells_of(len) };
        let mut rest = self.cells - self.tail % self.cells;
        if cells > rest && self.tail + rest - self.free() <= self.cells {
            self.push(rest, State::Done, 0, false, None);
            self.forget_the_done();
            rest = self.cells;
        }
        let fits = cells <= rest && self.tail + cells - self.free() <= self.cells;
        assert_eq!(claimed.is_some(), fits, "room for {len} bytes");
        let held = claimed?;
        let which = self.push(cells, State::Writing(owner), len.min(cells as usize * CELL), long, Some(held));
        assert_eq!(ring.place(held).0 as u64, self.records[which].position % self.cells);
        self.sent += 1;
        let taken: Vec<usize> = self
            .records
            .iter()
            .filter(|r| r.long && r.state != State::Done)
            .filter_map(|r| ring.place(r.held?).1)
            .collect();
        assert!(taken.iter().enumerate().all(|(i, window)| !taken[..i].contains(window)), "two in one window");
        Some(which)
    }

    fn publish(&mut self, ring: &Ring, which: usize, len: usize) {
        let record = &mut self.records[which];
        let held = record.held.expect("held");
        assert!(ring.still_holds(held));
        ring.write(held, message(record.number, len));
        ring.publish(held, len);
        (record.len, record.state) = (len, State::Ready);
        let (cells, position, claimed) = (cells_of(len), record.position, record.cells);
        if !record.long && cells < claimed {
            record.cells = cells;
            let rest = Record {
                position: position + cells,
                cells: claimed - cells,
                state: State::Done,
                long: false,
                number: 0,
                len: 0,
                held: None,
            };
            let at = self.boundaries.partition_point(|&boundary| boundary < rest.position);
            self.boundaries.insert(at, rest.position);
            self.records.insert(which + 1, rest);
        }
    }

    /// The first record that nobody has taken.
    fn next(&self) -> Option<usize> {
        self.records.iter().position(|record| matches!(record.state, State::Writing(_) | State::Ready))
    }

    fn take(&mut self, ring: &Ring, owner: Owner) -> Option<usize> {
        let next = self.next();
        let expected = match next.map(|i| &self.records[i]) {
            None => Next::Empty,
            Some(record) if record.state == State::Ready => Next::Message((!record.long).then_some(record.len)),
            Some(_) => Next::Busy,
        };
        assert_eq!(ring.look(), expected);
        let held = ring.take(owner)?;
        let record = &mut self.records[next.expect("something was found")];
        record.state = State::Reading(owner);
        record.held = Some(held);
        let buf = &mut self.buf[..record.len];
        ring.read(held, buf);
        assert!(*buf == *message(record.number, record.len), "message {} was damaged", record.number);
        next
    }

    fn give_up(&mut self, ring: &Ring, which: usize) {
        let record = &mut self.records[which];
        let held = record.held.expect("held");
        assert!(ring.still_holds(held));
        if let State::Reading(_) = record.state {
            let buf = &mut self.buf[..record.len];
            ring.read(held, buf);
            assert!(*buf == *message(record.number, record.len), "message {} was written over", record.number);
        }
        ring.give_up(held);
        record.state = State::Done;
    }

    fn succeed(&mut self, ring: &Ring, owner: Owner) {
        let mine: Vec<usize> =
            (0..self.records.len()).filter(|&i| self.holder(&self.records[i]) == Some(owner)).collect();
        assert_eq!(ring.clear(owner), !mine.is_empty());
        mine.into_iter().for_each(|i| self.records[i].state = State::Done);
    }

    /// True if there was anything to be taken from the dead.
    fn repair(&mut self, ring: &Ring) -> bool {
        // `free` is where it is when somebody has looked for room; it may stand before what is done.
        let free = ring.free();
        let dead = self.dead;
        let is_dead = |owner: Owner| dead.get(usize::from(owner)).is_some_and(|&dead| dead);
        let repaired = ring.repair(is_dead);
        let held_by_dead = |record: &Record| self.holder(record).is_some_and(is_dead);
        let first = self.records.iter().position(|record| record.position == free);
        let mut expected: Vec<usize> =
            first.into_iter().chain(self.next()).filter(|&i| held_by_dead(&self.records[i])).collect();
        expected.dedup();
        assert_eq!(repaired, !expected.is_empty());
        expected.into_iter().for_each(|i| self.records[i].state = State::Done);
        repaired
    }

    fn room(&mut self, ring: &Ring, len: usize) {
        let (enough, held) = ring.room(len);
        let long = len > ring.max_payload();
        let cells = if long { self.cells / 4 } else { cells_of(len) };
        let need = cells.min(self.cells - self.tail % self.cells);
        self.forget_the_done();
        assert_eq!(enough, self.tail + need - self.free() <= self.cells);
        let first_is_held = self.records.front().is_some_and(|record| self.holder(record).is_some());
        assert_eq!(held, !enough && first_is_held);
    }

    /// What holds between any two steps.
    fn check(&self, ring: &Ring) {
        let ready = self.records.iter().filter(|record| record.state == State::Ready).count();
        let head = self.next().map_or(self.tail, |i| self.records[i].position);
        assert_eq!(ring.fill(), ((self.tail - head) as usize * CELL, ready));
        assert!(ring.free() <= self.free());
    }

    /// All die, and somebody goes on: everything that was published arrives, and then all of the ring is to be had.
    fn finish(&mut self, ring: &Ring) {
        self.dead = [true; OWNERS as usize];
        loop {
            if let Some(which) = self.take(ring, LAST) {
                self.give_up(ring, which);
                self.check(ring);
            } else if !self.repair(ring) {
                break;
            }
        }
        assert_eq!(ring.look(), Next::Empty);
        let mut sent = 0;
        while sent < self.cells {
            match self.claim(ring, LAST, 1) {
                Some(which) => {
                    self.publish(ring, which, 1);
                    sent += 1;
                }
                None => assert!(self.repair(ring), "no room in an empty ring"),
            }
        }
        while let Some(which) = self.take(ring, LAST) {
            self.give_up(ring, which);
        }
        self.check(ring);
    }
}

fn cells_of(len: usize) -> u64 {
    len.div_ceil(CELL).max(1) as u64
}
