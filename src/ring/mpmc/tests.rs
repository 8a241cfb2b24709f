//! The ring for many by itself: on plain memory, in one process.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::copy::{copy, copy_in};
use crate::layout::{Line, Seat, TailWords};
use crate::sync::{AtomicU32, spin_loop};

/// A ring on plain memory.
struct Memory {
    ring: Ring,
}

fn zeros(len: usize) -> *mut [AtomicU64] {
    Box::into_raw((0..len).map(|_| AtomicU64::new(0)).collect())
}

impl Memory {
    fn new(cells: usize, start: u64) -> Memory {
        let cursor = || AtomicU64::new(start);
        let seat = || {
            let word = || AtomicU32::new(0);
            Line(Seat { bell: word(), sleepers: word(), leader: word(), woken_at: AtomicU64::new(0) })
        };
        let long = std::array::from_fn(|_| cursor());
        let (precedence, pause) = (AtomicU64::new(0), AtomicU64::new(0));
        let extent = std::array::from_fn(|_| AtomicU64::new(0));
        let tail = Line(TailWords { tail: cursor(), free: cursor(), long, precedence, pause, extent });
        let control = NonNull::from(Box::leak(Box::new(ManyControl {
            tail,
            head: Line(cursor()),
            not_empty: seat(),
            not_full: seat(),
        })));
        let first = |words: *mut [AtomicU64]| NonNull::new(words.cast()).unwrap();
        let (words, base) = (first(zeros(cells)), first(zeros(cells * CELL / 8)).cast());
        // SAFETY: all of it lives as long as the ring, and is as large as it says.
        Memory { ring: unsafe { Ring::new(control, words, base, cells * CELL) } }
    }

    fn control(&self) -> &ManyControl {
        self.ring.control()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let cells = self.ring.cells as usize;
        let free = |first: NonNull<AtomicU64>, len: usize| {
            // SAFETY: leaked by `new`, as so many words.
            drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(first.as_ptr(), len)) });
        };
        free(self.ring.words, cells);
        free(self.ring.base.cast(), cells * CELL / 8);
        // SAFETY: leaked by `new`.
        drop(unsafe { Box::from_raw(self.ring.control.as_ptr()) });
    }
}

fn write(ring: &Ring, held: Held, message: &[u8]) {
    // SAFETY: claimed for as many bytes.
    unsafe { copy_in(message, ring.payload(held)) };
}

fn send(ring: &Ring, message: &[u8], reserved: usize, owner: Owner) -> bool {
    let Some(held) = ring.claim(reserved, owner) else {
        return false;
    };
    write(ring, held, message);
    ring.publish(held, message.len());
    true
}

fn recv(ring: &Ring, owner: Owner) -> Option<Vec<u8>> {
    let (held, len) = loop {
        let Front::Message(message) = ring.look() else {
            return None;
        };
        if let Some(held) = ring.take(message, owner) {
            break (held, message.len.expect("a short message"));
        }
    };
    let mut message = vec![0; len];
    // SAFETY: the message has as many bytes.
    unsafe { copy(ring.payload(held).as_ptr(), message.as_mut_ptr(), len) };
    ring.give_up(held);
    Some(message)
}

fn take(ring: &Ring, owner: Owner) -> Held {
    let Front::Message(message) = ring.look() else { panic!("no message") };
    ring.take(message, owner).expect("nobody else takes it")
}

#[test]
fn messages_of_every_length_come_out_as_they_went_in() {
    for start in [0, 5, (1 << 32) - 3, (1 << 40) - 3] {
        let memory = Memory::new(16, start);
        let (ring, mut expected) = (&memory.ring, VecDeque::new());
        let mut refused = 0;
        for n in 0..if cfg!(miri) { 120 } else { 600_usize } {
            let len = n * 37 % (ring.max_payload() + 1);
            let reserved = if n % 3 == 0 { ring.max_payload() } else { len };
            let message: Vec<u8> = (0..len).map(|i| (n + i) as u8).collect();
            match send(ring, &message, reserved, 1) {
                true => expected.push_back(message),
                false => refused += 1,
            }
            if n % 4 != 3 {
                assert_eq!(recv(ring, 2), expected.pop_front());
            }
        }
        assert!(refused > 0, "never full");
        while let Some(message) = expected.pop_front() {
            assert_eq!(recv(ring, 2), Some(message));
        }
        assert!(matches!(ring.look(), Front::Empty));
    }
}

#[test]
fn every_cell_can_be_used_and_none_twice() {
    let memory = Memory::new(8, 0);
    let ring = &memory.ring;
    for lap in 0..3 {
        for n in 0..8 {
            assert!(send(ring, &[lap, n], 64, 1));
        }
        assert!(ring.claim(1, 1).is_none() && ring.room(1, Precedence::default()) == Room::Lacking);
        for n in 0..8 {
            assert_eq!(recv(ring, 2), Some(vec![lap, n]));
        }
    }
}

#[test]
fn what_is_being_read_keeps_its_room_and_nothing_else() {
    let memory = Memory::new(8, 0);
    let ring = &memory.ring;
    (0..8).for_each(|n| assert!(send(ring, &[n], 1, 1)));
    let first = take(ring, 7);
    (1..8).for_each(|n| assert_eq!(recv(ring, 2), Some(vec![n])));
    assert!(ring.claim(1, 1).is_none() && ring.room(1, Precedence::default()) == Room::Held);
    ring.give_up(first);
    assert!(ring.room(1, Precedence::default()) == Room::Enough && ring.claim(1, 1).is_some());
}

#[test]
fn what_is_being_written_holds_up_what_is_behind_it_until_its_owner_is_dead() {
    let memory = Memory::new(8, 0);
    let ring = &memory.ring;
    let Some(first) = ring.claim(100, 3) else { panic!("room") };
    assert!(send(ring, b"behind", 6, 1));
    assert!(matches!(ring.look(), Front::Busy));
    assert!(!ring.repair(|owner| owner != 3) && matches!(ring.look(), Front::Busy));
    assert!(ring.repair(|owner| owner == 3));
    assert_eq!(recv(ring, 2), Some(b"behind".to_vec()));
    assert!(!ring.repair(|_| true), "what is done is not repaired");
    let _ = first;
}

#[test]
fn what_a_dead_reader_had_taken_gives_its_room_back() {
    let memory = Memory::new(8, 0);
    let ring = &memory.ring;
    (0..8).for_each(|n| assert!(send(ring, &[n], 1, 1)));
    take(ring, 7);
    assert!(ring.claim(1, 1).is_none() && ring.room(1, Precedence::default()) == Room::Held);
    assert!(ring.repair(|owner| owner == 7));
    assert!(send(ring, &[8], 1, 1));
    (1..9).for_each(|n| assert_eq!(recv(ring, 2), Some(vec![n])));
}

#[test]
fn whoever_has_precedence_gets_room_before_all_others_for_a_while() {
    // Whoever's it is, and however late the others look.
    for owner in [0, 1, 500, 1023] {
        let memory = Memory::new(8, 0);
        let ring = &memory.ring;
        let (none, start) = (Precedence::default(), sys::now());
        let first = ring.take_precedence(none, owner);
        let refused = !ring.take_precedence(none, 2).is_some()
            && ring.claim(1, 2).is_none()
            && ring.search_room(1, 2, none).is_none()
            && ring.room(1, none) == Room::Passed;
        assert!(first.is_some() && (refused || sys::now() - start > TERM));
        assert!(ring.room(1, first) == Room::Enough && ring.search_room(1, owner, first).is_some());
        // Asked for once more, it lasts for longer.
        let later = sys::now() + 2 * FIELD;
        while sys::now() < later {}
        let second = ring.take_precedence(first, owner);
        assert!(second.is_some() && second != first);
        // It ends by itself, or earlier; and not before a while has passed can it be had anew.
        ring.drop_precedence(first);
        assert!(ring.claim(1, 2).is_none() || sys::now() - later > TERM);
        let end = sys::now();
        ring.end_precedence(second, start);
        assert!(ring.claim(1, 2).is_some());
        while !ring.take_precedence(none, 3).is_some() {
            assert!(sys::now() < end + 10 * TERM);
        }
        assert!(sys::now() - end >= TERM / 20);
        let start = sys::now();
        while ring.claim(1, 2).is_none() {
            assert!(sys::now() < start + 10 * TERM);
        }
        // Neither lasts if nobody would write it.
        for word in [&ring.control().tail.0.precedence, &ring.control().tail.0.pause] {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        assert!(ring.claim(1, 2).is_some() && ring.take_precedence(none, 2).is_some());
    }
}

#[test]
fn precedence_is_respected_at_once() {
    let memory = Memory::new(8, 0);
    let ring = &memory.ring;
    for owner in [0, 100, 1023] {
        for _ in 0..if cfg!(miri) { 3 } else { 1_000 } {
            let start = sys::now();
            let mine = ring.take_precedence(Precedence::default(), owner);
            let passed = ring.room(1, Precedence::default()) == Room::Passed;
            assert!(mine.is_some() && (passed || sys::now() - start > TERM), "of {owner}");
            ring.drop_precedence(mine);
        }
    }
}

#[test]
fn a_message_that_is_given_up_never_arrives() {
    let memory = Memory::new(8, 0);
    let Some(held) = memory.ring.claim(128, 3) else { panic!("room") };
    assert!(send(&memory.ring, b"next", 4, 1));
    memory.ring.give_up(held);
    assert_eq!(recv(&memory.ring, 2), Some(b"next".to_vec()));
}

#[test]
fn hints_may_be_any_boundary_that_ever_was() {
    let memory = Memory::new(16, 0);
    let (ring, control) = (&memory.ring, memory.control());
    let mut boundaries = vec![0];
    for n in 0..200_u8 {
        let len = usize::from(n) * 29 % ring.max_payload();
        let message = vec![n; len];
        // Stored late, by somebody who was held up for long.
        let old = |boundaries: &[u64], k: usize| boundaries[boundaries.len() * k / 7 % boundaries.len()];
        control.tail.0.tail.store(old(&boundaries, n.into()), Ordering::Relaxed);
        control.head.0.store(old(&boundaries, usize::from(n) / 3), Ordering::Relaxed);
        assert!(send(ring, &message, len, 1));
        boundaries.push(control.tail.0.tail.load(Ordering::Relaxed));
        control.head.0.store(old(&boundaries, usize::from(n) / 2), Ordering::Relaxed);
        assert_eq!(recv(ring, 2), Some(message));
        assert!(matches!(ring.look(), Front::Empty));
    }
}

#[test]
fn words_that_nobody_would_write_end_in_an_answer() {
    let memory = Memory::new(8, 0);
    let ring = &memory.ring;
    for n in 0..if cfg!(miri) { 100 } else { 20_000 } {
        let noise = |k: u64| (n * 8 + k).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17);
        for k in 0..8 {
            // Laps near those of the cursors, or the words count for nothing.
            let word = noise(k) & ((1 << LAP_SHIFT) - 1) | (noise(k) >> 60 & 3) << LAP_SHIFT;
            ring.word(k).store(word, Ordering::Relaxed);
        }
        let control = memory.control();
        let cursors = [&control.tail.0.tail, &control.tail.0.free, &control.head.0];
        for (word, k) in cursors.into_iter().zip(10..) {
            word.store(if n % 5 == 0 { noise(k) } else { noise(k) % 24 }, Ordering::Relaxed);
        }
        if let Some(held) = ring.claim(100, 1) {
            write(ring, held, &[1; 100]);
            ring.give_up(held);
        }
        if let Front::Message(message) = ring.look() {
            let len = message.len.unwrap_or(ring.long_payload());
            assert!(ring.index(message.position) as usize * CELL + len <= 8 * CELL);
            ring.len(message);
            assert!(ring.take(message, 2).is_some());
        }
        ring.repair(|_| true);
        ring.clear(4);
        ring.fill();
        ring.messages();
    }
}

/// Each message arrives once, whole, and those of one sender in order at whoever gets them.
#[test]
fn two_threads_each_send_and_receive() {
    const EACH: u64 = if cfg!(miri) { 60 } else { 100_000 };
    let memory = Memory::new(16, 0);
    let (ring, over) = (&memory.ring, AtomicBool::new(false));
    let arrived = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        let receiver = |me: Owner| {
            let mut mine: Vec<[u64; 2]> = Vec::new();
            loop {
                let last = over.load(Ordering::Acquire);
                match recv(ring, me) {
                    Some(message) => {
                        let word = |i: usize| u64::from_le_bytes(message[8 * i..8 * i + 8].try_into().unwrap());
                        let (from, n) = (word(0), word(1));
                        assert!(message.len() as u64 == 16 + n % 5 * 32);
                        assert!(message[16..].iter().all(|&byte| byte == n as u8));
                        let before = mine.iter().rfind(|other| other[0] == from);
                        assert!(before.is_none_or(|other| other[1] < n));
                        mine.push([from, n]);
                    }
                    None if last => break,
                    None => std::thread::yield_now(),
                }
            }
            arrived.lock().unwrap().extend(mine);
        };
        let sender = |from: u64| {
            for n in 0..EACH {
                let mut message = [from.to_le_bytes(), n.to_le_bytes()].concat();
                message.resize(16 + (n % 5 * 32) as usize, n as u8);
                while !send(ring, &message, message.len() + (n % 2) as usize * 64, from as Owner) {
                    spin_loop();
                    std::thread::yield_now();
                }
            }
        };
        let senders = [0, 1].map(|from| s.spawn(move || sender(from)));
        for me in [2, 3] {
            s.spawn(move || receiver(me));
        }
        for sender in senders {
            sender.join().unwrap();
        }
        over.store(true, Ordering::Release);
    });
    let mut arrived = arrived.into_inner().unwrap();
    arrived.sort_unstable();
    assert!(arrived.iter().copied().eq([0, 1].into_iter().flat_map(|from| (0..EACH).map(move |n| [from, n]))));
}

/// Four fit at most, whatever lies between them, and none shares its window with another.
#[test]
fn long_messages_have_a_window_each() {
    for start in [0, 3, (1 << 33) - 2] {
        let memory = Memory::new(16, start);
        let ring = &memory.ring;
        let mut held = VecDeque::new();
        let mut most = 0;
        for n in 0..200_usize {
            if n % 3 == 0 {
                send(ring, &[1; 64], 64, 1);
            }
            while let Some(long) = ring.claim(ring.max_payload() + 1, 1) {
                let window = ring.window(long).expect("long");
                assert!(window < 4 && held.iter().all(|&other| ring.window(other) != Some(window)));
                assert!(ring.index(long.position) + 4 <= 16);
                ring.publish(long, 1 << 30);
                // As its reader will hold it.
                held.push_back(long);
            }
            most = most.max(held.len());
            while let Front::Message(message) = ring.look() {
                let taken = ring.take(message, 2).expect("nobody else takes it");
                if message.len.is_none() {
                    assert_eq!(ring.window(taken), held.pop_front().and_then(|long| ring.window(long)));
                    ring.give_up(taken);
                    break;
                }
                ring.give_up(taken);
            }
        }
        assert!(most >= 3, "at most {most} at a time");
    }
}

#[test]
fn who_comes_in_the_place_of_the_dead_gives_up_what_they_held() {
    let memory = Memory::new(16, 9);
    let ring = &memory.ring;
    for n in 0..3 {
        assert!(send(ring, &[n], 1, 1));
    }
    let read = take(ring, 5);
    let Some(written) = ring.claim(64, 5) else { panic!("room") };
    let Some(other) = ring.claim(64, 6) else { panic!("room") };
    assert!(send(ring, b"last", 4, 1));
    assert_eq!((ring.messages(), ring.fill()), (3, 5 * CELL));
    assert!(ring.clear(5) && !ring.clear(5));
    assert!(!ring.still_holds(read) && !ring.still_holds(written) && ring.still_holds(other));
    for n in 1..3 {
        assert_eq!(recv(ring, 2), Some(vec![n]));
    }
    assert!(matches!(ring.look(), Front::Busy));
    ring.give_up(other);
    assert_eq!(recv(ring, 2), Some(b"last".to_vec()));
    assert_eq!((ring.messages(), ring.fill()), (0, 0));
}
