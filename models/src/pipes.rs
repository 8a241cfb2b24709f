//! Whole pipes: the real ends, which wait for each other, wake each other, close and are killed. Nobody gives up here unless a model says
//! so: a call that is not woken is a deadlock.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use crate::deadline::Deadline;
use crate::error::{RecvError, SendError};
use crate::explore::{Explorer, Model};
use crate::receiver::Receiver;
use crate::segment::Segment;
use crate::select::{Source, wait_for};
use crate::sender::Sender;
use crate::sync::{AsFd, Machine, OwnedFd, process};
use crate::{bell, sys};

pub(crate) const MODELS: &[Model] = &[
    Model { name: "pipe-receiver-waits", preemptions: Some(2), body: receiver_waits },
    Model { name: "pipe-one-message", preemptions: Some(4), body: one_message },
    Model { name: "pipe-sender-waits", preemptions: Some(2), body: sender_waits },
    Model { name: "pipe-room-reused", preemptions: Some(3), body: room_reused },
    Model { name: "pipe-duplex", preemptions: Some(3), body: duplex },
    Model { name: "pipe-watched-bell", preemptions: Some(2), body: watched_bell },
    Model { name: "pipe-settled-bell", preemptions: Some(3), body: settled_bell },
    Model { name: "pipe-two-waited-for", preemptions: Some(3), body: two_waited_for },
    Model { name: "pipe-two-waited-for-killed", preemptions: Some(2), body: two_waited_for_killed },
    Model { name: "pipe-sender-killed", preemptions: Some(2), body: sender_killed },
    Model { name: "pipe-receiver-killed", preemptions: Some(2), body: receiver_killed },
    Model { name: "pipe-copies-of-a-sender", preemptions: Some(2), body: copies_of_a_sender },
    Model { name: "pipe-copy-goes-on", preemptions: Some(1), body: copy_goes_on },
    Model { name: "pipe-receiver-hangs-up", preemptions: Some(2), body: receiver_hangs_up },
    Model { name: "pipe-long-message", preemptions: Some(2), body: long_message },
    Model { name: "pipe-long-message-killed", preemptions: Some(1), body: long_message_killed },
    Model { name: "pipe-long-message-taken-back", preemptions: Some(2), body: long_message_taken_back },
    Model { name: "pipe-carried-end", preemptions: Some(1), body: carried_end },
    Model { name: "pipe-carried-end-receiver-killed", preemptions: Some(1), body: carried_end_receiver_killed },
];

/// With the smallest ring there is: three messages of a word.
const SMALL: usize = 64;
/// With the smallest ring that streams: parts of 24 bytes, messages of more than 56.
const STREAMING: usize = 256;

/// Where slices end, as they do: a process that is killed cannot wake anybody.
fn with_slices() -> impl Iterator<Item = Machine> {
    Machine::all().filter(|machine| machine.slices_end)
}

fn direction(segment: &Arc<Segment>, index: usize) -> (Receiver, Sender) {
    let (receiving, sending) = OwnedFd::pair();
    // SAFETY: the control block lives as long as the segment.
    bell::arm_fresh(unsafe { &segment.control(index).as_ref().not_empty.0 });
    let receiver = Receiver::new(Arc::clone(segment), index, receiving);
    (receiver, Sender::new(Arc::clone(segment), index, sending))
}

fn simplex(capacity: usize) -> (Receiver, Sender) {
    direction(&Arc::new(Segment::new(capacity, 1, 0)), 0)
}

/// A ring of 256 bytes with room for one part of a long message.
fn nearly_full() -> (Receiver, Sender) {
    let (receiver, mut sender) = simplex(STREAMING);
    for _ in 0..FILLERS {
        sender.try_send_bytes(&long(FILLER)).unwrap();
    }
    (receiver, sender)
}

const FILLERS: usize = 3;
const FILLER: usize = 56;
const LONG: usize = 60;

fn message(n: u64) -> Vec<u8> {
    (0x1111_1111 * (n + 1)).to_le_bytes().to_vec()
}

fn long(len: usize) -> Vec<u8> {
    (1..=len).map(|n| n as u8).collect()
}

/// Everything until end of file, and the error that ended it.
fn everything(receiver: &mut Receiver) -> (Vec<Vec<u8>>, RecvError) {
    let mut got = Vec::new();
    loop {
        match receiver.recv_bytes() {
            Ok(message) => got.push(message),
            Err(e) => return (got, e),
        }
    }
}

fn is_eof(error: &RecvError) -> bool {
    matches!(error, RecvError::Disconnected)
}

/// The messages from 0 on: `done` of them, or one more if the sender was killed with it on the way.
fn check(got: &[Vec<u8>], done: u64, killed: bool) {
    let count = got.len() as u64;
    assert!(count == done || killed && count == done + 1, "{count} messages arrived of {done} sent");
    assert!(got.iter().enumerate().all(|(n, got)| *got == message(n as u64)), "{got:?}");
}

/// What a bell holds before anything is sent.
#[derive(Clone, Copy)]
enum Bell {
    Fresh,
    /// The byte of a message that has been received.
    Rung,
    /// As many senseless bytes as get in.
    Full,
}

/// The smallest of all: a receiver that sleeps or parks is woken by a message, and nothing else.
fn one_message(explorer: &Explorer) {
    let bells = [Bell::Fresh, Bell::Rung, Bell::Full];
    for (machine, bell) in Machine::all().flat_map(|machine| bells.map(|bell| (machine, bell))) {
        explorer.explore_on(machine, move || {
            let (mut receiver, mut sender) = simplex(SMALL);
            match bell {
                Bell::Fresh => {}
                Bell::Rung => {
                    sender.send_bytes(&message(0)).unwrap();
                    assert_eq!(receiver.recv_bytes().unwrap(), message(0));
                }
                Bell::Full => while sys::send_token(sender.as_fd(), 0) {},
            }
            let sending = thread::spawn(move || {
                sender.send_bytes(&message(1)).unwrap();
                sender
            });
            assert_eq!(receiver.recv_bytes().unwrap(), message(1));
            sending.join().unwrap();
        });
    }
}

/// A receiver that sleeps or parks is woken by a message, and by the end.
fn receiver_waits(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let (mut receiver, mut sender) = simplex(SMALL);
            let sending = thread::spawn(move || {
                for n in 0..2 {
                    sender.send_bytes(&message(n)).unwrap();
                }
            });
            let (got, end) = everything(&mut receiver);
            check(&got, 2, false);
            assert!(is_eof(&end));
            sending.join().unwrap();
        });
    }
}

/// A sender that sleeps or parks is woken by room.
fn sender_waits(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let (mut receiver, mut sender) = simplex(SMALL);
            for n in 0..3 {
                sender.try_send_bytes(&message(n)).unwrap();
            }
            let sending = thread::spawn(move || sender.send_bytes(&message(3)).unwrap());
            for n in 0..4 {
                assert_eq!(receiver.recv_bytes().unwrap(), message(n));
            }
            sending.join().unwrap();
        });
    }
}

/// Room is given back only once the message in it has been copied: here all of it is written over at once.
fn room_reused(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let (mut receiver, mut sender) = simplex(2 * SMALL);
            for len in [24, 24, 24, 8] {
                sender.try_send_bytes(&long(len)).unwrap();
            }
            let sending = thread::spawn(move || {
                for n in 0..2 {
                    sender.send_bytes(&message(n)).unwrap();
                }
                sender
            });
            assert_eq!(receiver.recv_bytes().unwrap(), long(24));
            sending.join().unwrap();
        });
    }
}

/// A request, and its answer: both sides wait for each other in turn.
fn duplex(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let segment = Arc::new(Segment::new(SMALL, 2, 0));
            let (mut requests, mut client) = direction(&segment, 0);
            let (mut answers, mut server) = direction(&segment, 1);
            let serving = thread::spawn(move || {
                let request = requests.recv_bytes().unwrap();
                server.send_bytes(&request).unwrap();
                assert!(is_eof(&requests.recv_bytes().unwrap_err()));
            });
            client.send_bytes(&message(7)).unwrap();
            assert_eq!(answers.recv_bytes().unwrap(), message(7));
            drop(client);
            serving.join().unwrap();
        });
    }
}

/// Somebody watches the descriptor from outside and receives only when it is readable, without waiting: then there is a message (L3).
fn watched_bell(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let (mut receiver, mut sender) = simplex(SMALL);
            let sending = thread::spawn(move || {
                for n in 0..2 {
                    sender.send_bytes(&message(n)).unwrap();
                }
                sender
            });
            let mut received = 0;
            while received < 2 {
                let ready = sys::poll_readable(receiver.as_fd(), Deadline::NEVER);
                assert!(ready.readable);
                assert_eq!(receiver.try_recv_bytes().unwrap(), message(received));
                received += 1;
                if received == 1 {
                    if let Ok(got) = receiver.try_recv_bytes() {
                        assert_eq!(got, message(received));
                        received += 1;
                    }
                }
            }
            let mut sender = sending.join().unwrap();
            // Silent again, and rung again.
            assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
            assert_eq!(sys::poll_readable(receiver.as_fd(), Deadline::NOW), sys::Readiness::default());
            sender.send_bytes(&message(2)).unwrap();
            assert!(sys::poll_readable(receiver.as_fd(), Deadline::NOW).readable);
        });
    }
}

/// A message is received without a look at the descriptor, perhaps just before its sender rings: then it is silent from the receive on.
fn settled_bell(explorer: &Explorer) {
    for (machine, bell) in with_slices().flat_map(|machine| [Bell::Fresh, Bell::Rung].map(|bell| (machine, bell))) {
        explorer.explore_on(machine, move || {
            let (mut receiver, mut sender) = simplex(SMALL);
            let watched = receiver.as_fd().copy();
            if let Bell::Rung = bell {
                sender.send_bytes(&message(0)).unwrap();
                assert_eq!(receiver.recv_bytes().unwrap(), message(0));
            }
            let sending = thread::spawn(move || {
                sender.send_bytes(&message(1)).unwrap();
                sender
            });
            if receiver.try_recv_bytes().is_err() {
                assert!(sys::poll_readable(&watched, Deadline::NEVER).readable);
                assert_eq!(receiver.try_recv_bytes().unwrap(), message(1));
            }
            assert_eq!(sys::poll_readable(&watched, Deadline::NOW), sys::Readiness::default());
            let _sender = sending.join().unwrap();
            assert_eq!(sys::poll_readable(&watched, Deadline::NOW), sys::Readiness::default());
        });
    }
}

/// Those of two ends for which a receive would not wait, once there is one.
fn wait_for_either(receivers: &[Receiver; 2]) -> Vec<usize> {
    let ready = wait_for(receivers.iter().map(|end| Source::Pipe(end)), Deadline::NEVER).unwrap();
    assert!(!ready.is_empty());
    ready
}

/// Somebody waits for two ends, and receives from those that are ready. Their bells are rung already, so they have to be armed.
fn two_waited_for(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let (mut receivers, mut senders) = two_rung();
            let sending = thread::spawn(move || {
                senders[1].send_bytes(&message(1)).unwrap();
                senders[0].send_bytes(&message(2)).unwrap();
                senders
            });
            let mut received = 0;
            while received < 2 {
                for i in wait_for_either(&receivers) {
                    assert_eq!(receivers[i].try_recv_bytes().unwrap(), message(2 - i as u64));
                    received += 1;
                }
            }
            drop(sending.join().unwrap());
            assert_eq!(wait_for_either(&receivers), [0, 1]);
        });
    }
}

/// One of two peers is killed, and what it had sent is found, and then its end; the other one is silent.
fn two_waited_for_killed(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let (mut receivers, senders) = two_rung();
            let [_silent, mut sender] = senders;
            let sending = thread::spawn(move || {
                let mut done = 0;
                let killed = process(step, || {
                    sender.send_bytes(&message(0)).unwrap();
                    done += 1;
                    drop(sender);
                });
                (killed, done)
            });
            let mut got = Vec::new();
            let end = loop {
                assert_eq!(wait_for_either(&receivers), [1]);
                match receivers[1].try_recv_bytes() {
                    Ok(message) => got.push(message),
                    Err(e) => break e,
                }
            };
            let (killed, done) = sending.join().unwrap();
            check(&got, done, killed);
            assert!(is_eof(&end));
            killed
        });
    }
}

/// Two pipes whose bells hold the byte of a message that has been received.
fn two_rung() -> ([Receiver; 2], [Sender; 2]) {
    let [(first, one), (second, two)] = [(); 2].map(|()| {
        let (mut receiver, mut sender) = simplex(SMALL);
        sender.send_bytes(&message(0)).unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), message(0));
        (receiver, sender)
    });
    ([first, second], [one, two])
}

/// What a sender had sent when it was killed arrives, and then the end.
fn sender_killed(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let (mut receiver, mut sender) = simplex(SMALL);
            let sending = thread::spawn(move || {
                let mut done = 0;
                let killed = process(step, || {
                    for n in 0..2 {
                        sender.send_bytes(&message(n)).unwrap();
                        done += 1;
                    }
                    drop(sender);
                });
                (killed, done)
            });
            let (got, end) = everything(&mut receiver);
            let (killed, done) = sending.join().unwrap();
            check(&got, done, killed);
            assert!(is_eof(&end));
            killed
        });
    }
}

/// A sender that waits for room when its receiver is killed gets a broken pipe.
fn receiver_killed(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let (mut receiver, mut sender) = simplex(SMALL);
            for n in 0..3 {
                sender.try_send_bytes(&message(n)).unwrap();
            }
            let receiving = thread::spawn(move || {
                let mut taken = 0;
                let killed = process(step, || {
                    for n in 0..2 {
                        assert_eq!(receiver.recv_bytes().unwrap(), message(n));
                        taken += 1;
                    }
                    drop(receiver);
                });
                (killed, taken)
            });
            let mut sent = 3;
            let end = loop {
                match sender.send_bytes(&message(sent)) {
                    Ok(()) => sent += 1,
                    Err(e) => break e,
                }
            };
            assert!(matches!(end, SendError::Disconnected));
            let (killed, taken) = receiving.join().unwrap();
            // There is room for three, and for what was taken.
            assert!(sent <= 3 + taken + u64::from(killed));
            killed
        });
    }
}

/// Two copies of an end, used in turn: only the last to close ends the pipe.
fn copies_of_a_sender(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let segment = Arc::new(Segment::new(SMALL, 1, 0));
            let (mut receiver, mut sender) = direction(&segment, 0);
            let copy = sender.as_fd().copy();
            let sending = thread::spawn(move || {
                sender.send_bytes(&message(0)).unwrap();
                drop(sender);
                let mut copy = Sender::new(segment, 0, copy);
                copy.send_bytes(&message(1)).unwrap();
            });
            let (got, end) = everything(&mut receiver);
            check(&got, 2, false);
            assert!(is_eof(&end));
            sending.join().unwrap();
        });
    }
}

/// Of two copies of an end the first is killed, and the second goes on where it stopped, and lives. Had the first published a message and
/// not announced it, the second's announces both.
fn copy_goes_on(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let segment = Arc::new(Segment::new(SMALL, 1, 0));
            let (mut receiver, mut sender) = direction(&segment, 0);
            let copy = sender.as_fd().copy();
            let sending = thread::spawn(move || {
                let mut done = 0;
                let killed = process(step, || {
                    sender.send_bytes(&message(0)).unwrap();
                    done += 1;
                    drop(sender);
                });
                let mut copy = Sender::new(segment, 0, copy);
                copy.send_bytes(&message(9)).unwrap();
                (killed, done, copy)
            });
            let mut got = Vec::new();
            while got.last() != Some(&message(9)) {
                got.push(receiver.recv_bytes().unwrap());
            }
            let (killed, done, copy) = sending.join().unwrap();
            got.pop();
            check(&got, done, killed);
            drop(copy);
            assert!(is_eof(&receiver.recv_bytes().unwrap_err()));
            killed
        });
    }
}

/// A receiver that got a message longer than it allows hangs up, and its sender, who waits for room, gets a broken pipe.
fn receiver_hangs_up(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let (mut receiver, mut sender) = simplex(SMALL);
            let sending = thread::spawn(move || {
                loop {
                    if let Err(e) = sender.send_bytes(&message(0)) {
                        return e;
                    }
                }
            });
            assert!(matches!(receiver.recv_bytes_max(4), Err(RecvError::TooLong { len: 8, max: 4 })));
            let end = sending.join().unwrap();
            assert!(matches!(end, SendError::Disconnected));
            drop(receiver);
        });
    }
}

/// A long message goes through a ring that has no room for all of it.
fn long_message(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let (mut receiver, mut sender) = nearly_full();
            let sending = thread::spawn(move || {
                sender.send_bytes(&long(LONG)).unwrap();
                sender
            });
            for _ in 0..FILLERS {
                assert_eq!(receiver.recv_bytes().unwrap(), long(FILLER));
            }
            assert_eq!(receiver.recv_bytes().unwrap(), long(LONG));
            drop(sending.join().unwrap());
            assert!(is_eof(&receiver.recv_bytes().unwrap_err()));
        });
    }
}

/// A sender killed in the middle of a long message: whole, cut or not begun, and then the end.
fn long_message_killed(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let (mut receiver, mut sender) = simplex(STREAMING);
            let sending = thread::spawn(move || {
                let mut done = false;
                let killed = process(step, || {
                    sender.send_bytes(&long(LONG)).unwrap();
                    done = true;
                    drop(sender);
                });
                (killed, done)
            });
            let (got, end) = everything(&mut receiver);
            let (killed, done) = sending.join().unwrap();
            assert!(got.is_empty() || got == [long(LONG)]);
            assert!(got.len() == 1 || !done);
            match end {
                RecvError::Cut => {
                    assert!(killed && got.is_empty());
                    assert!(is_eof(&receiver.recv_bytes().unwrap_err()));
                }
                end => assert!(is_eof(&end)),
            }
            killed
        });
    }
}

/// A sender that runs out of time in the middle of a long message takes it back: a time-out means that nothing was sent.
fn long_message_taken_back(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let (mut receiver, mut sender) = nearly_full();
            let sending = thread::spawn(move || {
                let sent = match sender.send_bytes_timeout(&long(LONG), Duration::from_nanos(1)) {
                    Ok(()) => true,
                    Err(SendError::TimedOut) => false,
                    Err(e) => panic!("{e}"),
                };
                sender.send_bytes(&message(0)).unwrap();
                (sent, sender)
            });
            for _ in 0..FILLERS {
                assert_eq!(receiver.recv_bytes().unwrap(), long(FILLER));
            }
            let first = receiver.recv_bytes().unwrap();
            let (sent, sender) = sending.join().unwrap();
            if sent {
                assert_eq!((first, receiver.recv_bytes().unwrap()), (long(LONG), message(0)));
            } else {
                assert_eq!(first, message(0));
            }
            drop(sender);
            assert!(is_eof(&receiver.recv_bytes().unwrap_err()));
        });
    }
}

/// What tells a carried end from others.
const MARK: u64 = 0x0102_0304_0506_0708;

/// An end sent over a pipe, by a sender killed at any step: whoever finds the record finds the descriptors, and none is left open.
fn carried_end(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let (mut receiver, mut sender) = simplex(SMALL);
            let (mine, theirs) = OwnedFd::pair();
            let sending = thread::spawn(move || {
                process(step, || {
                    sender.send_bytes(&message(0)).unwrap();
                    sender.send_announcement(&MARK.to_le_bytes(), MARK, &[&theirs], Deadline::NEVER).unwrap();
                    drop(theirs);
                    drop(sender);
                })
            });
            let first = receiver.recv_bytes();
            let end = receiver.recv_announcement(|frame: &[u8; 8]| u64::from_le_bytes(*frame), Deadline::NEVER);
            let killed = sending.join().unwrap();
            assert!(killed || first.is_ok() && end.is_ok());
            match end {
                Ok((frame, descriptors)) => {
                    assert_eq!((first.unwrap(), frame), (message(0), MARK.to_le_bytes()));
                    assert_eq!(descriptors.len(), 1);
                    drop(descriptors);
                }
                Err(e) => assert!(is_eof(&e), "{e}"),
            }
            drop(receiver);
            assert!(sys::poll_readable(&mine, Deadline::NOW).hung_up);
            killed
        });
    }
}

/// Of two copies of a receiving end, the first is killed while it takes an end. The second, which watches the descriptor and receives when
/// it is readable, gets what follows: the next end, if there is one, and the next message.
fn carried_end_receiver_killed(explorer: &Explorer) {
    for (machine, ends) in with_slices().flat_map(|machine| [(machine, 1), (machine, 2)]) {
        explorer.kill_at_each_step(machine, move |step| {
            let segment = Arc::new(Segment::new(2 * SMALL, 1, 0));
            let (mut receiver, mut sender) = direction(&segment, 0);
            let copy = receiver.as_fd().copy();
            let mark = |frame: &[u8; 8]| u64::from_le_bytes(*frame);
            let (mine, theirs) = OwnedFd::pair();
            let sending = thread::spawn(move || {
                for id in MARK..MARK + ends {
                    sender.send_announcement(&id.to_le_bytes(), id, &[&theirs], Deadline::NEVER).unwrap();
                }
                sender.send_bytes(&message(0)).unwrap();
                drop(theirs);
                sender
            });
            let mut taken = 0;
            let killed = process(step, || {
                let (frame, descriptors) = receiver.recv_announcement(mark, Deadline::NEVER).unwrap();
                assert_eq!((frame, descriptors.len()), (MARK.to_le_bytes(), 1));
                taken += 1;
                drop((receiver, descriptors));
            });
            let mut receiver = Receiver::new(segment, 0, copy);
            let mut cut = 0;
            loop {
                assert!(sys::poll_readable(receiver.as_fd(), Deadline::NEVER).readable);
                match receiver.recv_announcement(mark, Deadline::NOW) {
                    Ok((_, descriptors)) => {
                        assert_eq!(descriptors.len(), 1);
                        taken += 1;
                    }
                    Err(RecvError::Cut) => cut += 1,
                    // Descriptors come before the record that they are for.
                    Err(RecvError::Empty) => sys::nap(0),
                    Err(RecvError::IsBytes) => break,
                    Err(e) => panic!("{e}"),
                }
            }
            assert_eq!(receiver.try_recv_bytes().unwrap(), message(0));
            // At most that which the killed one was at is lost, and then it was either cut or taken.
            assert!(taken + u64::from(killed) >= ends && taken + cut <= ends, "{taken} taken, {cut} cut");
            drop((receiver, sending.join().unwrap()));
            assert!(sys::poll_readable(&mine, Deadline::NOW).hung_up);
            killed
        });
    }
}
