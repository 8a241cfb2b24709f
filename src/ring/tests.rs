//! The ring on plain memory, without a kernel: also run under miri.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::spsc::{Claim, Look, Reader, Writer};
use super::{Data, HEADER, Kind, SPARE, header_of, record_len};
use crate::layout::{Control, Geometry, MIN_CAPACITY};
use crate::segment::Segment;

/// Both sides of one ring, with cursors that start at `start`.
struct Pair {
    writer: Writer,
    reader: Reader,
    segment: Arc<Segment>,
}

fn pair(start: u64) -> Pair {
    let geometry = Geometry::spsc(MIN_CAPACITY, 1, 0);
    let segment = Arc::new(Segment::heap(geometry));
    let control = segment.control(0);
    // SAFETY: the segment outlives both sides: it is the last field to be dropped.
    let (writer, reader) = unsafe {
        let data = || Data::new(segment.ring(0), geometry.capacity);
        (Writer::new(control, data()), Reader::new(control, data()))
    };
    let pair = Pair { writer, reader, segment };
    let words = &pair.control().writer.0;
    for cursor in [&words.tail, &words.begun, &words.limit, &pair.control().reader.0.head] {
        cursor.store(start, Ordering::Relaxed);
    }
    pair
}

impl Pair {
    fn control(&self) -> &Control {
        // SAFETY: valid as long as the segment.
        unsafe { self.segment.control(0).as_ref() }
    }

    fn header_at(&self, offset: usize, word: u64) {
        // SAFETY: the tests pass offsets within the ring, multiples of 8.
        let header = unsafe { self.segment.ring(0).add(offset).cast::<std::sync::atomic::AtomicU64>().as_ref() };
        header.store(word, Ordering::Relaxed);
    }

    fn send(&mut self, message: &[u8]) -> bool {
        send(&mut self.writer, message)
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        recv(&mut self.reader)
    }
}

fn write(writer: &Writer, claim: Claim, message: &[u8]) {
    // SAFETY: the claim is for as many bytes.
    unsafe { crate::copy::copy_in(message, writer.payload(claim)) };
}

fn send(writer: &mut Writer, message: &[u8]) -> bool {
    let Some(claim) = writer.claim(message.len()) else {
        return false;
    };
    write(writer, claim, message);
    writer.publish(claim, Kind::Data, message.len());
    true
}

/// The next message; padding is passed over.
fn recv(reader: &mut Reader) -> Option<Vec<u8>> {
    loop {
        match reader.look() {
            Look::Empty => return None,
            Look::Corrupt => panic!("corrupt"),
            Look::Record(record) => {
                let mut message = vec![0; record.len];
                // SAFETY: the record has `record.len` bytes.
                unsafe { crate::copy::copy(reader.payload(record).as_ptr(), message.as_mut_ptr(), record.len) };
                reader.release(record);
                if record.kind == Kind::Data {
                    return Some(message);
                }
                assert_eq!(record.kind, Kind::Pad);
            }
        }
    }
}

fn message(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (number * 31 + i * 7) as u8).collect()
}

#[test]
fn padding_and_what_was_taken_back_are_nothing_to_receive() {
    let mut pair = pair(MIN_CAPACITY as u64 - 64);
    assert!(!pair.reader.has_something());
    pair.writer.abort();
    assert!(!pair.reader.has_something() && !pair.reader.is_empty());
    // Too long for the rest of the ring, so padding comes first.
    let claim = pair.writer.claim(100).unwrap();
    assert!(!pair.reader.has_something(), "an abort, and padding");
    pair.writer.publish(claim, Kind::Data, 100);
    assert!(pair.reader.has_something());
    let Look::Record(abort) = pair.reader.look() else { panic!("an abort") };
    pair.reader.release(abort);
    assert!(pair.reader.has_something(), "padding, and a message");
    assert_eq!(pair.recv().unwrap().len(), 100);
    assert!(!pair.reader.has_something());
    // What makes no sense is left to a receive to say so.
    pair.header_at(record_len(100), 1);
    assert!(pair.reader.has_something());
}

/// Many laps of messages of many sizes, each half filling the ring.
fn laps(pair: &mut Pair, messages: usize) {
    let max = pair.writer.data().max_payload();
    let mut sent = 0;
    let mut received = 0;
    while received < messages {
        while sent < messages && pair.send(&message(sent, (sent * 37) % (max + 1))) {
            sent += 1;
        }
        for _ in 0..3 {
            if let Some(got) = pair.recv() {
                assert_eq!(got, message(received, (received * 37) % (max + 1)));
                received += 1;
            }
        }
    }
    assert_eq!(pair.recv(), None);
}

#[test]
fn messages_of_every_size_arrive_in_order_over_many_laps() {
    laps(&mut pair(0), if cfg!(miri) { 60 } else { 5_000 });
}

#[test]
fn cursors_may_pass_two_to_the_32_and_wrap_at_two_to_the_64() {
    let capacity = MIN_CAPACITY as u64;
    for start in [(1 << 32) - 2 * capacity, (1 << 32) - 8, 0_u64.wrapping_sub(capacity), 0_u64.wrapping_sub(8)] {
        laps(&mut pair(start), if cfg!(miri) { 40 } else { 500 });
    }
}

#[test]
fn a_full_ring_takes_no_more_and_keeps_its_spare() {
    let mut pair = pair(0);
    let mut sent = 0;
    while pair.send(&message(sent, 8)) {
        sent += 1;
    }
    assert_eq!(sent, (MIN_CAPACITY - SPARE) / record_len(8));
    // The spare is there for a sender that gives up inside a long message, and for nothing else.
    pair.writer.abort();
    assert!(!pair.send(b""));
    for number in 0..sent {
        assert_eq!(pair.recv(), Some(message(number, 8)));
    }
    assert!(matches!(pair.reader.look(), Look::Record(record) if record.kind == Kind::Abort));
}

#[test]
fn the_longest_record_finds_a_place_wherever_the_cursors_stand() {
    for lead in (0..MIN_CAPACITY / 8).step_by(if cfg!(miri) { 37 } else { 1 }) {
        let mut pair = pair(8 * lead as u64);
        let longest = pair.writer.data().max_payload();
        // At most one try more than the padding takes.
        let sent = pair.send(&message(lead, longest)) || {
            assert_eq!(pair.recv(), None);
            pair.send(&message(lead, longest))
        };
        assert!(sent, "at {}", 8 * lead);
        assert_eq!(pair.recv(), Some(message(lead, longest)));
    }
}

#[test]
fn a_writer_killed_before_its_header_leaves_nothing() {
    let mut pair = pair(0);
    assert!(pair.send(b"before"));
    let tail = pair.control().writer.0.tail.load(Ordering::Relaxed);
    // What `publish` has stored when it dies just before the header.
    pair.control().writer.0.begun.store(tail + 64, Ordering::Relaxed);
    assert!(pair.send(b"after"));
    assert_eq!(pair.recv().as_deref(), Some(&b"before"[..]));
    assert_eq!(pair.recv().as_deref(), Some(&b"after"[..]));
    assert_eq!(pair.recv(), None);
}

#[test]
fn a_writer_killed_after_its_header_leaves_a_whole_message() {
    for taken in [false, true] {
        let mut pair = pair(0);
        assert!(pair.send(b"last words"));
        if taken {
            assert_eq!(pair.recv().as_deref(), Some(&b"last words"[..]));
        }
        // As if it had died between the header and `tail`.
        pair.control().writer.0.tail.store(0, Ordering::Relaxed);
        assert!(pair.send(b"survivor"));
        if !taken {
            assert_eq!(pair.recv().as_deref(), Some(&b"last words"[..]));
        }
        assert_eq!(pair.recv().as_deref(), Some(&b"survivor"[..]));
    }
}

#[test]
fn headers_that_no_writer_writes_are_corrupt() {
    let wrong = [
        1,                                               // no kind
        u64::MAX,                                        // neither
        (Kind::Data as u64) << 32 | u64::from(u32::MAX), // a length beyond any ring
        (Kind::Data as u64) << 32 | MIN_CAPACITY as u64, // one header too long
        (Kind::Pad as u64 + 100) << 32,                  // a kind of the future
    ];
    for word in wrong {
        let mut pair = pair(0);
        pair.header_at(0, word);
        assert_eq!(pair.reader.look(), Look::Corrupt, "{word:#x}");
    }
    let mut pair = pair(MIN_CAPACITY as u64 - 8);
    pair.header_at(MIN_CAPACITY - 8, (Kind::Data as u64) << 32 | 1);
    assert_eq!(pair.reader.look(), Look::Corrupt, "a payload across the end");
}

#[test]
fn senseless_cursors_never_lead_outside_the_ring() {
    let few = if cfg!(miri) { 3 } else { 7 };
    let odd = [1, 7, u64::MAX, u64::MAX / 2, 1 << 63, (1 << 32) + 3, MIN_CAPACITY as u64 - 1];
    let odd = &odd[7 - few..];
    for &tail in odd {
        for &head in odd {
            for &limit in odd {
                let mut pair = pair(0);
                let control = pair.control();
                control.writer.0.tail.store(tail, Ordering::Relaxed);
                control.writer.0.begun.store(tail ^ (limit & 1), Ordering::Relaxed);
                control.writer.0.limit.store(limit, Ordering::Relaxed);
                control.reader.0.head.store(head, Ordering::Relaxed);
                // What they return makes no sense; that they stay inside is what miri and the debug assertions check.
                for len in [0, 8, 500, pair.writer.data().max_payload()] {
                    if let Some(claim) = pair.writer.claim(len) {
                        write(&pair.writer, claim, &message(0, len));
                        pair.writer.publish(claim, Kind::Data, len);
                    }
                    if let Look::Record(record) = pair.reader.look() {
                        assert!(record.len <= MIN_CAPACITY - HEADER);
                        pair.reader.release(record);
                    }
                    assert!(pair.writer.room() <= MIN_CAPACITY && pair.reader.fill() <= MIN_CAPACITY);
                }
                let mut run = pair.writer.begin_run();
                for len in [0, 60, 1, 900] {
                    pair.writer.append(&mut run, &message(0, len));
                }
                pair.writer.publish_run(run);
                take_run(&mut pair.reader, &mut Vec::new());
            }
        }
    }
}

/// As many of these as fit, published together.
fn send_run(writer: &mut Writer, messages: &[Vec<u8>]) -> usize {
    let mut run = writer.begin_run();
    let fit = messages.iter().take_while(|message| writer.append(&mut run, message)).count();
    assert_eq!(writer.publish_run(run), fit > 0);
    fit
}

/// What is there up to the end of the ring, padding passed over before it.
fn take_run(reader: &mut Reader, to: &mut Vec<Vec<u8>>) {
    let mut bytes = Vec::with_capacity(2000);
    match reader.look() {
        Look::Record(record) if record.kind == Kind::Data => {
            let count = reader.take_run(record, &mut bytes, 1500);
            assert!(count > 0 && bytes.len() <= 1500);
            let mut rest = &bytes[..];
            for _ in 0..count {
                let (_, len) = header_of(rest).unwrap();
                to.push(rest[HEADER..][..len].to_vec());
                rest = &rest[record_len(len)..];
            }
        }
        Look::Record(record) => reader.release(record),
        _ => {}
    }
}

#[test]
fn runs_of_messages_go_round_the_ring() {
    for start in [0, 8, 0_u64.wrapping_sub(40)] {
        let mut pair = pair(start);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for round in 0..if cfg!(miri) { 20 } else { 2_000 } {
            let messages: Vec<Vec<u8>> = (0..round % 9).map(|n| message(n, (round * 37 + n * 11) % 130)).collect();
            let fit = send_run(&mut pair.writer, &messages);
            sent.extend_from_slice(&messages[..fit]);
            if let Some(message) = messages.get(fit) {
                // At the end of the ring, or there is no room.
                if pair.send(message) {
                    sent.push(message.clone());
                }
            }
            if round % 3 > 0 {
                take_run(&mut pair.reader, &mut got);
            }
            assert!(sent[..got.len()] == got);
        }
        for _ in 0..100 {
            if got.len() < sent.len() {
                take_run(&mut pair.reader, &mut got);
            }
        }
        assert!(sent == got && sent.len() > 20 && pair.writer.fill() == 0);
    }
}

#[test]
fn two_threads_exchange_runs_of_messages() {
    let Pair { mut writer, mut reader, segment } = pair(0_u64.wrapping_sub(64));
    let count = if cfg!(miri) { 100 } else { 200_000 };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut number = 0;
            while number < count {
                let next = count.min(number + 1 + number % 7);
                let messages: Vec<Vec<u8>> = (number..next).map(|n| message(n, n % 90)).collect();
                let fit = send_run(&mut writer, &messages);
                number += fit;
                if fit < messages.len() {
                    number += usize::from(send(&mut writer, &messages[fit]));
                    std::thread::yield_now();
                }
            }
        });
        let (mut got, mut number) = (Vec::new(), 0);
        while number < count {
            take_run(&mut reader, &mut got);
            for got in got.drain(..) {
                assert_eq!(got, message(number, number % 90));
                number += 1;
            }
            std::thread::yield_now();
        }
    });
    drop(segment);
}

#[test]
fn two_threads_exchange_messages_through_the_real_orderings() {
    let Pair { mut writer, mut reader, segment } = pair(0_u64.wrapping_sub(64));
    let count = if cfg!(miri) { 120 } else { 200_000 };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..count {
                while !send(&mut writer, &message(number, number % 700)) {
                    std::thread::yield_now();
                }
            }
        });
        for number in 0..count {
            let got = loop {
                match recv(&mut reader) {
                    Some(got) => break got,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(got, message(number, number % 700));
        }
    });
    drop(segment);
}
