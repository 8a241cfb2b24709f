//! The ring by itself: publication, space, padding, and taking over from a writer that was killed. Nobody waits here; both sides try a
//! few times, and what is left is read at the end.

use std::sync::Arc;

use loom::thread;

use crate::batch::Batch;
use crate::copy::{copy, copy_in};
use crate::explore::{Explorer, Model};
use crate::ring::spsc::{Look, Reader, Writer};
use crate::ring::{Data, Kind, record_len};
use crate::segment::Segment;
use crate::sync::{Machine, process};

pub(crate) const MODELS: &[Model] = &[
    Model { name: "ring-publication", preemptions: None, body: publication },
    Model { name: "ring-space", preemptions: None, body: space },
    Model { name: "ring-padding", preemptions: None, body: padding },
    Model { name: "ring-wrap-of-cursors", preemptions: None, body: wrap_of_cursors },
    Model { name: "ring-runs", preemptions: None, body: runs },
    Model { name: "ring-takeover", preemptions: None, body: takeover },
    Model { name: "ring-reader-takeover", preemptions: None, body: reader_takeover },
];

fn writer(segment: &Segment) -> Writer {
    // SAFETY: the models keep the segment for as long as both sides.
    unsafe { Writer::new(segment.control(0), Data::new(segment.ring(0), segment.geometry().capacity)) }
}

fn reader(segment: &Segment) -> Reader {
    // SAFETY: as above.
    unsafe { Reader::new(segment.control(0), Data::new(segment.ring(0), segment.geometry().capacity)) }
}

/// Message number `n`: a word that no other message has.
fn message(n: u64) -> Vec<u8> {
    (0x1111_1111 * (n + 1)).to_le_bytes().to_vec()
}

/// Likewise, but every third is empty, so that records come to lie at every offset.
fn mixed(n: u64) -> Vec<u8> {
    if n % 3 == 2 { Vec::new() } else { message(n) }
}

fn send(writer: &mut Writer, message: &[u8]) -> bool {
    let Some(claim) = writer.claim(message.len()) else {
        return false;
    };
    // SAFETY: the claim is for as many bytes.
    unsafe { copy_in(message, writer.payload(claim)) };
    writer.publish(claim, Kind::Data, message.len());
    true
}

fn recv(reader: &mut Reader) -> Option<Vec<u8>> {
    loop {
        match reader.look() {
            Look::Empty => return None,
            Look::Corrupt => panic!("corrupt"),
            Look::Record(record) => {
                let mut message = vec![0; record.len];
                if record.kind == Kind::Data {
                    // SAFETY: the record has as many bytes.
                    unsafe { copy(reader.payload(record).as_ptr(), message.as_mut_ptr(), record.len) };
                }
                reader.release(record);
                if record.kind == Kind::Data {
                    return Some(message);
                }
            }
        }
    }
}

/// A writer that tries to send the messages in order, `tries` times in all, and at last an abort, for which there is always room; and a reader
/// that looks `looks` times. Everything sent must arrive, in order, as it was.
fn exchange(capacity: usize, start: u64, message: fn(u64) -> Vec<u8>, tries: u64, looks: u64) {
    let segment = Arc::new(Segment::new(capacity, 1, start));
    let theirs = Arc::clone(&segment);
    let sending = thread::spawn(move || {
        let mut writer = writer(&theirs);
        let mut sent = 0;
        for _ in 0..tries {
            sent += u64::from(send(&mut writer, &message(sent)));
        }
        writer.abort();
        sent
    });
    let mut reader = reader(&segment);
    let mut received = 0;
    let mut take = |reader: &mut Reader| {
        let got = recv(reader);
        if let Some(got) = &got {
            assert_eq!(*got, message(received));
            received += 1;
        }
        got.is_some()
    };
    for _ in 0..looks {
        take(&mut reader);
    }
    let sent = sending.join().unwrap();
    while take(&mut reader) {}
    assert_eq!(received, sent);
}

/// Orderings P1 and C1, and the zero header behind each record.
fn publication(explorer: &Explorer) {
    // The second lap, so that old payload lies where headers will be.
    explorer.explore(|| {
        let segment = Segment::new(128, 1, 0);
        let (mut writer, mut reader) = (writer(&segment), reader(&segment));
        for n in 0..7 {
            assert!(send(&mut writer, &(0x9999_9999_u64 + n).to_le_bytes()) && recv(&mut reader).is_some());
        }
        let segment = Arc::new(segment);
        let theirs = Arc::clone(&segment);
        let sending = thread::spawn(move || {
            for n in 0..2 {
                assert!(send(&mut writer, &message(n)));
            }
            drop(theirs);
        });
        let got: Vec<Vec<u8>> = (0..3).filter_map(|_| recv(&mut reader)).collect();
        sending.join().unwrap();
        let rest: Vec<Vec<u8>> = std::iter::from_fn(|| recv(&mut reader)).collect();
        assert_eq!([got, rest].concat(), [message(0), message(1)]);
    });
}

/// Orderings C2 and P2: a ring with room for three messages, and one more.
fn space(explorer: &Explorer) {
    explorer.explore(|| exchange(64, 0, message, 5, 3));
}

fn padding(explorer: &Explorer) {
    // One word too few behind the second record; padding right away; and a ring that is full where padding is needed.
    for start in [40, 56, 8] {
        explorer.explore(move || exchange(64, start, mixed, 4, 2));
    }
    explorer.explore(|| exchange(64, 8, message, 4, 2));
}

fn wrap_of_cursors(explorer: &Explorer) {
    for start in [0_u64.wrapping_sub(24), (1 << 32) - 24] {
        explorer.explore(move || exchange(64, start, mixed, 4, 2));
    }
}

/// A writer that publishes two messages together and is killed at any of its steps, another that goes on, and a reader that takes all that is there at
/// once.
fn runs(explorer: &Explorer) {
    let machine = Machine { membarrier: false, slices_end: false };
    explorer.kill_at_each_step(machine, |step| {
        // Room for seven messages; the second run of two ends with the ring, and what comes last needs room that the first had.
        let segment = Arc::new(Segment::new(128, 1, 64));
        let theirs = Arc::clone(&segment);
        let sending = thread::spawn(move || {
            let mut done = 0;
            let killed = process(step, || {
                let mut writer = writer(&theirs);
                for _ in 0..4 {
                    done += send_run(&mut writer, &[message(done), message(done + 1)]);
                }
            });
            (killed, done, send(&mut writer(&theirs), &message(9)))
        });
        let mut reader = reader(&segment);
        let mut got = recv_run(&mut reader);
        let (killed, done, last) = sending.join().unwrap();
        loop {
            let more = recv_run(&mut reader);
            if more.is_empty() {
                break;
            }
            got.extend(more);
        }
        if last {
            assert_eq!(got.pop(), Some(message(9)));
        }
        let count = got.len() as u64;
        assert!(count == done || killed && (done + 1..=done + 2).contains(&count), "{count} arrived of {done}");
        assert!(got.iter().enumerate().all(|(n, got)| *got == message(n as u64)));
        killed
    });
}

/// Returns how many.
fn send_run(writer: &mut Writer, messages: &[Vec<u8>]) -> u64 {
    let mut run = writer.begin_run();
    let fitted = messages.iter().take_while(|message| writer.append(&mut run, message)).count();
    writer.publish_run(run);
    fitted as u64
}

fn recv_run(reader: &mut Reader) -> Vec<Vec<u8>> {
    let mut batch = Batch::new();
    match reader.look() {
        Look::Record(record) if record.kind == Kind::Data => {
            let taken = batch.take_run(record_len(record.len), |out, most| reader.take_run(record, out, most));
            assert!(taken && !batch.is_empty());
        }
        Look::Record(record) => reader.release(record),
        _ => {}
    }
    batch.iter().map(<[u8]>::to_vec).collect()
}

/// P3: a writer is killed at any of its steps, and another goes on where it stopped, while a reader reads.
fn takeover(explorer: &Explorer) {
    let machine = Machine { membarrier: false, slices_end: false };
    explorer.kill_at_each_step(machine, |step| {
        let segment = Arc::new(Segment::new(64, 1, 40));
        let theirs = Arc::clone(&segment);
        let sending = thread::spawn(move || {
            let mut done = 0;
            let killed = process(step, || {
                let mut writer = writer(&theirs);
                for n in 0..2 {
                    done += u64::from(send(&mut writer, &message(n)));
                }
            });
            let last = send(&mut writer(&theirs), &message(4));
            (killed, done, last)
        });
        let mut reader = reader(&segment);
        let mut got: Vec<Vec<u8>> = (0..2).filter_map(|_| recv(&mut reader)).collect();
        let (killed, done, last) = sending.join().unwrap();
        got.extend(std::iter::from_fn(|| recv(&mut reader)));
        if last {
            assert_eq!(got.pop(), Some(message(4)));
        }
        // What was sent, and perhaps the one that was being sent.
        let count = got.len() as u64;
        assert!(count == done || killed && count == done + 1, "{count} arrived of {done}");
        assert!(got.iter().enumerate().all(|(n, got)| *got == message(n as u64)));
        killed
    });
}

/// A reader is killed at any of its steps, and another goes on, while a writer writes: a message comes again or is gone.
fn reader_takeover(explorer: &Explorer) {
    let machine = Machine { membarrier: false, slices_end: false };
    explorer.kill_at_each_step(machine, |step| {
        let segment = Arc::new(Segment::new(64, 1, 40));
        let theirs = Arc::clone(&segment);
        let sending = thread::spawn(move || {
            let mut writer = writer(&theirs);
            (0..3).filter(|&n| send(&mut writer, &message(n))).collect::<Vec<u64>>()
        });
        let mut got = Vec::new();
        let killed = process(step, || {
            let mut reader = reader(&segment);
            for _ in 0..3 {
                got.extend(recv(&mut reader));
            }
        });
        let sent = sending.join().unwrap();
        let before = got.len();
        let mut reader = reader(&segment);
        got.extend(std::iter::from_fn(|| recv(&mut reader)));
        let sent: Vec<Vec<u8>> = sent.into_iter().map(message).collect();
        let again = || before > 0 && got[..before] == sent[..before] && got[before..] == sent[before - 1..];
        let gone = || got[..before] == sent[..before] && sent.len() > before && got[before..] == sent[before + 1..];
        assert!(got == sent || killed && (again() || gone()), "{got:?} of {sent:?}");
        killed
    });
}
