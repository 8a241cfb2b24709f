//! Whole pipes for many: the real ends, each in a process of its own, which wait, wake and lead each other, close and are killed.
//!
//! As for pipes of two, nobody gives up here: a call that is not woken is a deadlock.

use std::sync::Arc;

use loom::thread;

use crate::bell;
use crate::error::RecvError;
use crate::explore::{Explorer, Model};
use crate::mpmc::{Receiver, Sender};
use crate::segment::Segment;
use crate::sync::{Machine, OwnedFd, die, process};

pub(crate) const MODELS: &[Model] = &[
    Model { name: "many-two-sleepers", preemptions: Some(1), body: two_sleepers },
    Model { name: "many-two-senders", preemptions: Some(0), body: two_senders },
    Model { name: "many-end-of-file", preemptions: Some(1), body: end_of_file },
    Model { name: "many-waits-for-room", preemptions: Some(0), body: waits_for_room },
    Model { name: "many-lead", preemptions: Some(1), body: lead },
    Model { name: "many-sender-killed", preemptions: Some(1), body: sender_killed },
    Model { name: "many-woken-killed", preemptions: Some(0), body: woken_killed },
    Model { name: "many-room-held-by-killed", preemptions: Some(1), body: room_held_by_killed },
    Model { name: "many-successor", preemptions: Some(1), body: successor },
    Model { name: "many-successor-of-a-leader", preemptions: Some(2), body: successor_of_a_leader },
];

/// Where slices end, as they do: a process that is killed cannot wake anybody.
fn with_slices() -> impl Iterator<Item = Machine> {
    Machine::all().filter(|machine| machine.slices_end)
}

/// What each process gets its ends from.
struct Pipe {
    segment: Arc<Segment>,
    receiving: OwnedFd,
    sending: OwnedFd,
}

impl Pipe {
    fn new(cells: usize) -> Pipe {
        let segment = Arc::new(Segment::many(cells, 0));
        let (receiving, sending) = OwnedFd::pair();
        // SAFETY: the control block lives as long as the segment.
        bell::arm_fresh(unsafe { &segment.many_control().as_ref().not_empty.0.bell });
        Pipe { segment, receiving, sending }
    }

    fn receiver(&self) -> Receiver {
        Receiver::attach(Arc::clone(&self.segment), self.receiving.copy()).unwrap()
    }

    fn sender(&self) -> Sender {
        Sender::attach(Arc::clone(&self.segment), self.sending.copy()).unwrap()
    }
}

fn message(n: u64) -> Vec<u8> {
    (0x1111_1111 * (n + 1)).to_le_bytes().to_vec()
}

fn send(sender: &Sender, n: u64) {
    sender.send_bytes(&message(n)).unwrap();
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("whole")) / 0x1111_1111 - 1
}

/// One message, or the end.
fn recv(receiver: &Receiver) -> Option<u64> {
    match receiver.recv_bytes() {
        Ok(bytes) => Some(number(&bytes)),
        Err(RecvError::Disconnected) => None,
        Err(e) => panic!("{e}"),
    }
}

/// Everything that this receiver gets until the end.
fn everything(receiver: &Receiver) -> Vec<u64> {
    std::iter::from_fn(|| recv(receiver)).collect()
}

fn sorted(parts: &[&[u64]]) -> Vec<u64> {
    let mut all = parts.concat();
    all.sort_unstable();
    all
}

/// Two who sleep, each of whom a message wakes.
fn two_sleepers(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let pipe = Pipe::new(4);
            let (sender, here, there) = (pipe.sender(), pipe.receiver(), pipe.receiver());
            let receiving = thread::spawn(move || (recv(&there), there));
            let sending = thread::spawn(move || {
                (0..2).for_each(|n| send(&sender, n));
                sender
            });
            let first = recv(&here);
            let (second, _there) = receiving.join().unwrap();
            let _sender = sending.join().unwrap();
            assert_eq!(sorted(&[first.as_slice(), second.as_slice()]), [0, 1]);
        });
    }
}

/// The same, with a sender for each message.
fn two_senders(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let pipe = Pipe::new(4);
            let (here, there) = (pipe.receiver(), pipe.receiver());
            let receiving = thread::spawn(move || (recv(&there), there));
            let senders = [0, 1].map(|n| {
                let sender = pipe.sender();
                thread::spawn(move || {
                    send(&sender, n);
                    sender
                })
            });
            let first = recv(&here);
            let (second, _there) = receiving.join().unwrap();
            let _senders = senders.map(|sender| sender.join().unwrap());
            assert_eq!(sorted(&[first.as_slice(), second.as_slice()]), [0, 1]);
        });
    }
}

/// The last sender leaves: everybody comes to the end, after all that was sent.
fn end_of_file(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let pipe = Pipe::new(4);
            let (sender, here, there) = (pipe.sender(), pipe.receiver(), pipe.receiver());
            drop(pipe);
            let receiving = thread::spawn(move || everything(&there));
            let sending = thread::spawn(move || send(&sender, 0));
            let first = everything(&here);
            let second = receiving.join().unwrap();
            sending.join().unwrap();
            assert_eq!(sorted(&[&first, &second]), [0]);
        });
    }
}

/// A sender who sleeps because the ring is full, while two receive.
fn waits_for_room(explorer: &Explorer) {
    for machine in Machine::all() {
        explorer.explore_on(machine, || {
            let pipe = Pipe::new(4);
            let (sender, here, there) = (pipe.sender(), pipe.receiver(), pipe.receiver());
            (0..4).for_each(|n| send(&sender, n));
            let receiving = thread::spawn(move || (recv(&there), there));
            let sending = thread::spawn(move || {
                send(&sender, 4);
                sender
            });
            let first: Vec<u64> = (0..2).filter_map(|_| recv(&here)).collect();
            let (second, _there) = receiving.join().unwrap();
            let _sender = sending.join().unwrap();
            let rest: Vec<u64> = (0..2).filter_map(|_| recv(&here)).collect();
            assert_eq!(sorted(&[&first, second.as_slice(), &rest]), [0, 1, 2, 3, 4]);
        });
    }
}

/// Who leads gets a message and waits no more. Another goes on, and must not miss that all senders are gone, which nobody says.
fn lead(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.explore_on(machine, || {
            let pipe = Pipe::new(4);
            let (sender, here, there) = (pipe.sender(), pipe.receiver(), pipe.receiver());
            drop(pipe);
            let receiving = thread::spawn(move || (recv(&there), there));
            let sending = thread::spawn(move || {
                process(None, || {
                    (0..2).for_each(|n| send(&sender, n));
                    die();
                })
            });
            let first = everything(&here);
            let (second, _there) = receiving.join().unwrap();
            sending.join().unwrap();
            assert_eq!(sorted(&[&first, second.as_slice()]), [0, 1]);
        });
    }
}

/// A sender is killed at any of its steps, while two receive and another sender goes on: whatever it held is taken from it.
fn sender_killed(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let pipe = Pipe::new(4);
            let (sender, here, there) = (pipe.sender(), pipe.receiver(), pipe.receiver());
            drop(pipe);
            let receiving = thread::spawn(move || everything(&there));
            let sending = thread::spawn(move || {
                let mut done = 0;
                let killed = process(step, || {
                    send(&sender, 0);
                    done += 1;
                    drop(sender);
                });
                (killed, done)
            });
            let first = everything(&here);
            let second = receiving.join().unwrap();
            let (killed, done) = sending.join().unwrap();
            let got = sorted(&[&first, &second]);
            assert!(got == [0] || got.is_empty() && killed && done == 0, "{got:?}");
            killed
        });
    }
}

/// Of two receivers one is killed at any of its steps, when it has been woken for a message, say: the other finds what there is, though nothing
/// more happens.
fn woken_killed(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let pipe = Pipe::new(4);
            let (sender, here, there) = (pipe.sender(), pipe.receiver(), pipe.receiver());
            let receiving = thread::spawn(move || {
                let mut got = None;
                let killed = process(step, || {
                    got = recv(&there);
                    drop(there);
                });
                (killed, got)
            });
            let sending = thread::spawn(move || {
                (0..2).for_each(|n| send(&sender, n));
                sender
            });
            let first = recv(&here);
            let (killed, second) = receiving.join().unwrap();
            let _sender = sending.join().unwrap();
            let got = sorted(&[first.as_slice(), second.as_slice()]);
            assert!(got == [0, 1] || killed && (got == [0] || got == [1]), "{got:?}");
            killed
        });
    }
}

/// A receiver is killed at any of its steps, while a sender waits for the room that it had, and nobody else receives.
fn room_held_by_killed(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let pipe = Pipe::new(4);
            let (sender, here, there) = (pipe.sender(), pipe.receiver(), pipe.receiver());
            drop(pipe);
            (0..4).for_each(|n| send(&sender, n));
            // What is behind it is read already.
            let sending = thread::spawn(move || {
                let sent = sender.send_bytes(&message(4)).is_ok();
                (sent, sender)
            });
            let mut got = None;
            let killed = process(step, || {
                got = recv(&there);
                drop(there);
            });
            // If nothing had been taken, there is no room before something is.
            let first = if got.is_none() { recv(&here) } else { None };
            let (sent, sender) = sending.join().unwrap();
            drop(sender);
            assert!(sent);
            let rest = everything(&here);
            let all = sorted(&[got.as_slice(), first.as_slice(), &rest]);
            let lost = (0..5).filter(|n| !all.contains(n)).count();
            assert!(all.len() + lost == 5 && lost <= usize::from(killed), "{all:?}");
            killed
        });
    }
}

/// A receiver is killed at any of its steps, leading or reading, say, and another gets its number: what the first held and was is no hindrance.
fn successor(explorer: &Explorer) {
    for machine in with_slices() {
        explorer.kill_at_each_step(machine, |step| {
            let pipe = Pipe::new(4);
            let (sender, here) = (pipe.sender(), pipe.receiver());
            let Pipe { segment, receiving, sending } = pipe;
            drop(sending);
            (0..3).for_each(|n| send(&sender, n));
            // The end is one that nobody says.
            let sending = thread::spawn(move || {
                process(None, || {
                    (3..5).for_each(|n| send(&sender, n));
                    die();
                })
            });
            let mut first = Vec::new();
            let killed = process(step, || {
                first.extend(recv(&here));
                drop(here);
            });
            let here = Receiver::attach(segment, receiving).unwrap();
            let rest = everything(&here);
            sending.join().unwrap();
            let all = sorted(&[&first, &rest]);
            let lost = (0..5).filter(|n| !all.contains(n)).count();
            assert!(all.len() + lost == 5 && lost <= usize::from(killed), "{all:?}");
            killed
        });
    }
}

/// The same while nothing comes, until all senders are killed. Whoever comes after it has its number or, having been there before, another.
fn successor_of_a_leader(explorer: &Explorer) {
    for (machine, new) in with_slices().flat_map(|machine| [(machine, true), (machine, false)]) {
        explorer.kill_at_each_step(machine, move |step| {
            let pipe = Pipe::new(4);
            let (sender, here) = (pipe.sender(), pipe.receiver());
            let other = (!new).then(|| pipe.receiver());
            let Pipe { segment, receiving, sending } = pipe;
            drop(sending);
            let sending = thread::spawn(move || {
                process(None, || {
                    let _sender = sender;
                    die()
                })
            });
            let killed = process(step, || {
                assert_eq!(recv(&here), None);
                drop(here);
            });
            let after = other.unwrap_or_else(|| Receiver::attach(segment, receiving).unwrap());
            assert_eq!(recv(&after), None);
            sending.join().unwrap();
            killed
        });
    }
}
