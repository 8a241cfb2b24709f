//! The ring for many by itself: publication, room, padding, records that are cut short, and taking from the dead what they held. Nobody waits here:
//! all try a few times, and what is left is read at the end.

use std::sync::Arc;

use loom::sync::atomic::AtomicU32;
use loom::thread;

use crate::copy::{copy, copy_in};
use crate::explore::{Explorer, Model};
use crate::layout::CELL;
use crate::ring::mpmc::{Front, Held, Owner, Precedence, Ring};
use crate::segment::Segment;
use crate::sync::{AtomicU64, Machine, Ordering, process};

pub(crate) const MODELS: &[Model] = &[
    Model { name: "many-publication", preemptions: Some(2), body: publication },
    Model { name: "many-room", preemptions: Some(3), body: room },
    Model { name: "many-room-of-two-readers", preemptions: Some(2), body: room_of_two_readers },
    Model { name: "many-laps", preemptions: Some(2), body: laps },
    Model { name: "many-padding", preemptions: Some(2), body: padding },
    Model { name: "many-cut-short", preemptions: Some(3), body: cut_short },
    Model { name: "many-writer-killed", preemptions: Some(2), body: writer_killed },
    Model { name: "many-reader-killed", preemptions: Some(1), body: reader_killed },
    Model { name: "many-helper-killed", preemptions: Some(1), body: helper_killed },
    Model { name: "many-two-helpers", preemptions: Some(2), body: two_helpers },
    Model { name: "many-newcomer", preemptions: None, body: newcomer },
];

const NOBODY_WAITS: Machine = Machine { membarrier: false, slices_end: false };

/// A ring, and who of its owners is dead.
struct Many {
    ring: Ring,
    dead: [AtomicU32; 8],
    segment: Segment,
}

impl Many {
    fn new(cells: usize, start: u64) -> Many {
        let segment = Segment::many(cells, start);
        let (control, words, base) = (segment.many_control(), segment.cell_words(), segment.ring(0));
        // SAFETY: the segment lives as long as the ring.
        let ring = unsafe { Ring::new(control, words, base, segment.geometry().capacity) };
        Many { ring, dead: std::array::from_fn(|_| AtomicU32::new(0)), segment }
    }

    fn shared(cells: usize, start: u64) -> Arc<Many> {
        Arc::new(Many::new(cells, start))
    }

    fn is_dead(&self, owner: Owner) -> bool {
        // The newest there is, as a system call answers.
        self.dead[usize::from(owner)].fetch_or(0, Ordering::AcqRel) == 1
    }

    fn set_dead(&self, owner: Owner, dead: bool) {
        // (loom takes a store that is concurrent with an exchange for one that may come before it.)
        self.dead[usize::from(owner)].swap(dead.into(), Ordering::AcqRel);
    }

    /// Message number `n`, which takes so many cells: each starts with a word that no other message has.
    fn write(&self, held: Held, n: u64, cells: usize) {
        for cell in 0..cells {
            // SAFETY: claimed for as many cells.
            unsafe { copy_in(&(n + 1000).to_le_bytes(), self.ring.payload(held).add(cell * CELL)) };
        }
    }

    fn claim(&self, cells: usize, owner: Owner) -> Option<Held> {
        self.ring.claim(len(cells), owner)
    }

    fn send(&self, n: u64, cells: usize, reserved: usize, owner: Owner) -> bool {
        let Some(held) = self.claim(reserved, owner) else { return false };
        self.write(held, n, cells);
        self.ring.publish(held, len(cells));
        true
    }

    fn take(&self, owner: Owner) -> Option<(Held, usize)> {
        loop {
            match self.ring.look() {
                Front::Message(message) => {
                    let len = message.len.expect("no message here is long");
                    if let Some(held) = self.ring.take(message, owner) {
                        return Some((held, len.div_ceil(CELL)));
                    }
                }
                Front::Corrupt => panic!("corrupt: {}", self.describe()),
                Front::Empty | Front::Busy => return None,
            }
        }
    }

    fn read(&self, held: Held, cells: usize) -> u64 {
        let word = |cell: usize| {
            let mut word = [0; 8];
            // SAFETY: the message has as many cells.
            unsafe { copy(self.ring.payload(held).add(cell * CELL).as_ptr(), word.as_mut_ptr(), 8) };
            u64::from_le_bytes(word).wrapping_sub(1000)
        };
        let n = word(0);
        assert!((1..cells).all(|cell| word(cell) == n), "torn");
        n
    }

    fn recv(&self, owner: Owner) -> Option<u64> {
        let (held, cells) = self.take(owner)?;
        let n = self.read(held, cells);
        self.ring.give_up(held);
        Some(n)
    }

    /// The cursors and the words, to be read in a report: lap, cells, owner or slack, state.
    fn describe(&self) -> String {
        // SAFETY: as many words as cells, which live as long as the segment.
        let (control, words) = unsafe {
            let words = std::slice::from_raw_parts(self.segment.cell_words().as_ptr(), self.ring.capacity() / CELL);
            (self.segment.many_control().as_ref(), words)
        };
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let parts = |word: u64| (word >> 22, word >> 12 & 1023, word >> 2 & 1023, word & 3);
        let cursors = [&control.tail.0.tail, &control.tail.0.free, &control.head.0].map(load);
        let dead = Vec::from_iter((0..8).filter(|&owner| self.is_dead(owner)));
        format!(
            "tail, free, head {cursors:?}, dead {dead:?}, {:?}",
            Vec::from_iter(words.iter().map(|word| parts(load(word))))
        )
    }

    fn repair(&self) -> bool {
        self.ring.repair(|owner| self.is_dead(owner))
    }

    /// All that is left, once nobody else is there: nothing may be in the way, and after it the whole ring is to be had.
    fn drain(&self) -> Vec<u64> {
        const LAST: Owner = 7;
        let mut got = Vec::new();
        loop {
            match self.recv(LAST) {
                Some(n) => got.push(n),
                None if self.repair() => {}
                None => break,
            }
        }
        assert!(matches!(self.ring.look(), Front::Empty), "somebody dead is in the way: {}", self.describe());
        let cells = self.ring.capacity() / CELL;
        let mut sent = 0;
        while sent < cells as u64 {
            if !self.send(100 + sent, 1, 1, LAST) {
                assert!(self.repair(), "room for {sent} of {cells} messages: {}", self.describe());
                continue;
            }
            sent += 1;
        }
        assert!(!self.send(0, 1, 1, LAST), "more messages than cells");
        (0..sent).for_each(|n| assert_eq!(self.recv(LAST), Some(100 + n)));
        got
    }
}

/// Bytes of a message that takes so many cells.
fn len(cells: usize) -> usize {
    (cells - 1) * CELL + 8
}

/// Each came once, and those of each sender in order at each receiver.
fn check(parts: &[&[u64]], sent: &[u64]) {
    let mut all: Vec<u64> = parts.concat();
    all.sort_unstable();
    assert_eq!(all, sent, "{parts:?} arrived of {sent:?}");
    for part in parts {
        let in_order = |from: u64| part.iter().filter(|&n| n / 10 == from).is_sorted();
        assert!((0..4).all(in_order), "out of order: {part:?}");
    }
}

/// What was sent successfully, of `numbers`.
fn try_all(numbers: impl IntoIterator<Item = u64>, mut send: impl FnMut(u64) -> bool) -> Vec<u64> {
    numbers.into_iter().filter(|&n| send(n)).collect()
}

/// M1 and T1: two writers, two readers.
fn publication(explorer: &Explorer) {
    explorer.explore(|| {
        let many = Many::shared(4, 5);
        let [a, b, c] = [0, 1, 2].map(|_| Arc::clone(&many));
        let first = thread::spawn(move || try_all([10, 11], |n| a.send(n, 1, 1, 1)));
        let second = thread::spawn(move || try_all([20], |n| b.send(n, 1, 1, 2)));
        let receiving = thread::spawn(move || Vec::from_iter(c.recv(3)));
        let here: Vec<u64> = (0..2).filter_map(|_| many.recv(4)).collect();
        let sent = [first.join().unwrap(), second.join().unwrap()].concat();
        assert_eq!(sent.len(), 3);
        let there = receiving.join().unwrap();
        check(&[&here, &there, &many.drain()], &sent);
    });
}

/// M2 and T2: a full ring, of which two readers give room back, and a writer who takes it.
fn room(explorer: &Explorer) {
    explorer.explore(|| {
        let many = Many::shared(4, 0);
        let mut sent = try_all(0..4, |n| many.send(n, 1, 1, 1));
        let [a, b] = [0, 1].map(|_| Arc::clone(&many));
        let sending = thread::spawn(move || try_all([10], |n| a.send(n, 1, 1, 1)));
        let receiving = thread::spawn(move || Vec::from_iter(b.recv(3)));
        let here = Vec::from_iter(many.recv(4));
        sent.extend(sending.join().unwrap());
        let there = receiving.join().unwrap();
        check(&[&here, &there, &many.drain()], &sent);
    });
}

/// M2 with T2, and M3 with T3: a record over cells that two readers had, of which the writer's walk meets only the first.
fn room_of_two_readers(explorer: &Explorer) {
    explorer.explore(|| {
        let many = Many::shared(8, 0);
        let mut sent = try_all(0..8, |n| many.send(n, 1, 1, 1));
        let [a, b] = [0, 1].map(|_| Arc::clone(&many));
        // One looks for room, so that another finds it there.
        let looking = thread::spawn(move || a.ring.room(len(2), Precedence::default()));
        let receiving = thread::spawn(move || Vec::from_iter(b.recv(3)));
        let here = Vec::from_iter(many.recv(4));
        sent.extend(try_all([10], |n| many.send(n, 2, 2, 2)));
        looking.join().unwrap();
        let there = receiving.join().unwrap();
        check(&[&here, &there, &many.drain()], &sent);
    });
}

/// Hints that are out of date by a lap: whoever stored them last was held up. In the second lap records start where in the first there were others, or
/// the middle of others.
fn laps(explorer: &Explorer) {
    explorer.explore(|| {
        let many = Many::shared(8, 0);
        let mut sent: Vec<u64> =
            (0..5).zip([1, 1, 2, 2, 2]).filter(|&(n, cells)| many.send(n, cells, cells, 3)).map(|(n, _)| n).collect();
        let theirs = Arc::clone(&many);
        let receiving = thread::spawn(move || Vec::from_iter(theirs.recv(1)));
        let mut here: Vec<u64> = (0..4).filter_map(|_| many.recv(3)).collect();
        let there = receiving.join().unwrap();
        // That of writers takes more who are held up than a model can have, so it is stored here once more.
        // SAFETY: the segment lives.
        let store_once_more =
            || unsafe { many.segment.many_control().as_ref() }.tail.0.tail.store(1, Ordering::Relaxed);
        for (n, cells) in [(5, 1), (6, 2)] {
            sent.extend(try_all([n], |n| many.send(n, cells, cells, 3)));
            store_once_more();
        }
        here.extend(many.drain());
        check(&[&here, &there], &sent);
    });
}

fn padding(explorer: &Explorer) {
    for start in [7, 15] {
        explorer.explore(move || {
            let many = Many::shared(8, start);
            let [a, b] = [0, 1].map(|_| Arc::clone(&many));
            let first = thread::spawn(move || try_all([10, 11], |n| a.send(n, 2, 2, 1)));
            let second = thread::spawn(move || try_all([20], |n| b.send(n, 2, 2, 2)));
            let here: Vec<u64> = (0..2).filter_map(|_| many.recv(4)).collect();
            let sent = [first.join().unwrap(), second.join().unwrap()].concat();
            assert_eq!(sent.len(), 3);
            check(&[&here, &many.drain()], &sent);
        });
    }
}

/// A record that is cut short, while others walk past it.
fn cut_short(explorer: &Explorer) {
    for start in [0, 10] {
        explorer.explore(move || {
            let many = Many::shared(8, start);
            let [a, b] = [0, 1].map(|_| Arc::clone(&many));
            let first = thread::spawn(move || try_all([10], |n| a.send(n, 1, 2, 1)));
            let second = thread::spawn(move || try_all([20, 21], |n| b.send(n, 1, 1, 2)));
            let here: Vec<u64> = (0..2).filter_map(|_| many.recv(4)).collect();
            let sent = [first.join().unwrap(), second.join().unwrap()].concat();
            assert_eq!(sent.len(), 3);
            check(&[&here, &many.drain()], &sent);
        });
    }
}

/// A writer is killed at any of its steps; another writer and a reader take from it what is in their way.
fn writer_killed(explorer: &Explorer) {
    explorer.kill_at_each_step(NOBODY_WAITS, |step| {
        // Of a second lap, all but full: the writer pads first, and cuts its record short.
        let many = Many::shared(8, 7);
        let [a, b] = [0, 1].map(|_| Arc::clone(&many));
        let dying = thread::spawn(move || {
            let mut done = Vec::new();
            let killed = process(step, || {
                if a.send(10, 1, 2, 1) {
                    done.push(10);
                }
            });
            a.set_dead(1, killed);
            (killed, done)
        });
        let other = thread::spawn(move || {
            let sent = try_all([20], |n| b.send(n, 2, 2, 2));
            b.repair();
            sent
        });
        let mut here = Vec::from_iter(many.recv(3));
        many.repair();
        here.extend(many.recv(3));
        let (killed, done) = dying.join().unwrap();
        let sent = other.join().unwrap();
        let rest = many.drain();
        let arrived = here.contains(&10) || rest.contains(&10);
        assert!(arrived || killed, "lost");
        assert!(!arrived || killed || done == [10]);
        let sent = if arrived { [vec![10], sent].concat() } else { sent };
        check(&[&here, &rest], &sent);
        killed
    });
}

/// A reader is killed at any of its steps: what it had taken is lost, nothing else, and its room comes back.
fn reader_killed(explorer: &Explorer) {
    explorer.kill_at_each_step(NOBODY_WAITS, |step| {
        let many = Many::shared(4, 0);
        let mut sent = try_all(0..4, |n| many.send(n, 1, 1, 3));
        let [a, b] = [0, 1].map(|_| Arc::clone(&many));
        let dying = thread::spawn(move || {
            let mut got = Vec::new();
            let killed = process(step, || {
                got.extend(a.recv(1));
            });
            a.set_dead(1, killed);
            (killed, got)
        });
        let other = thread::spawn(move || try_all([20], |n| b.send(n, 1, 1, 2) || b.repair() && b.send(n, 1, 1, 2)));
        many.repair();
        let here = Vec::from_iter(many.recv(3));
        let (killed, there) = dying.join().unwrap();
        sent.extend(other.join().unwrap());
        let rest = many.drain();
        let all = [here.clone(), there.clone(), rest.clone()].concat();
        let lost: Vec<u64> = sent.iter().copied().filter(|n| !all.contains(n)).collect();
        assert!(lost.len() <= usize::from(killed), "{lost:?} are lost");
        sent.retain(|n| !lost.contains(n));
        check(&[&here, &there, &rest], &sent);
        killed
    });
}

/// Whoever takes something from the dead is killed as well.
fn helper_killed(explorer: &Explorer) {
    for reading in [false, true] {
        explorer.kill_at_each_step(NOBODY_WAITS, move |step| {
            let (many, mut sent) = stuck(reading);
            let [a, b] = [0, 1].map(|_| Arc::clone(&many));
            let dying = thread::spawn(move || {
                let mut done = Vec::new();
                let killed = process(step, || {
                    a.repair();
                    done = try_all([10], |n| a.send(n, 1, 1, 1));
                    a.repair();
                });
                a.set_dead(1, killed);
                (killed, done)
            });
            let other = thread::spawn(move || b.repair());
            let here = Vec::from_iter(many.recv(3));
            let (killed, done) = dying.join().unwrap();
            other.join().unwrap();
            let rest = many.drain();
            if here.contains(&10) || rest.contains(&10) {
                sent.push(10);
            } else {
                assert!(killed || done.is_empty(), "lost");
            }
            check(&[&here, &rest], &sent);
            killed
        });
    }
}

/// Who holds what is in everybody's way in [`stuck`].
const GONE: Owner = 5;

/// A full ring, of which the first record is held by somebody dead, who was reading or writing it, and all others are messages (numbers from 1 on).
fn stuck(reading: bool) -> (Arc<Many>, Vec<u64>) {
    let many = Many::shared(4, 2);
    if reading {
        assert!(many.send(0, 1, 1, GONE) && many.take(GONE).is_some());
    } else {
        assert!(many.claim(1, GONE).is_some());
    }
    let sent = try_all(1..4, |n| many.send(n, 1, 1, 6));
    many.set_dead(GONE, true);
    (many, sent)
}

/// Two who take from the same dead, and go on at once.
fn two_helpers(explorer: &Explorer) {
    for reading in [false, true] {
        explorer.explore(move || {
            let (many, mut sent) = stuck(reading);
            let helpers = [1, 2].map(|me: Owner| {
                let many = Arc::clone(&many);
                thread::spawn(move || {
                    many.repair();
                    try_all([10 * u64::from(me)], |n| many.send(n, 1, 1, me))
                })
            });
            sent.extend(helpers.map(|helper| helper.join().unwrap()).concat());
            check(&[&many.drain()], &sent);
        });
    }
}

/// Somebody gets the number of the dead, while another has just found it to be that of somebody dead.
fn newcomer(explorer: &Explorer) {
    for reading in [false, true] {
        explorer.explore(move || {
            let (many, mut sent) = stuck(reading);
            let [a, b] = [0, 1].map(|_| Arc::clone(&many));
            let coming = thread::spawn(move || {
                a.set_dead(GONE, false);
                a.ring.clear(GONE);
                try_all([10], |n| a.send(n, 1, 1, GONE))
            });
            let helping = thread::spawn(move || {
                b.repair();
            });
            let sent_here = try_all([30, 31], |n| many.send(n, 1, 1, 3));
            let sent_there = coming.join().unwrap();
            helping.join().unwrap();
            sent.extend([sent_there, sent_here].concat());
            check(&[&many.drain()], &sent);
        });
    }
}
