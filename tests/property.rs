//! Random operations on a pipe against a model of it: a queue of messages.
//!
//! One process works both ends, so all that is random is the sequence; `PROPTEST_CASES=100000` makes a long run. What the model does not
//! predict is how much room padding takes: whether a send finds room is asked of the pipe, and what that answer implies is checked.

mod support;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::Duration;

use proptest::prelude::*;
use ringpipe::{Batch, Builder, Connection, Receiver, RecvError, RecvIntoError, SendError, Sender};
use support::{poll_fd, watchdog};

/// How a message is sent.
#[derive(Clone, Copy, Debug)]
enum How {
    Try,
    /// In so many parts.
    TryVectored(usize),
    /// With a time-out: a long message that finds no room has begun when it is taken back.
    Timeout,
    VectoredTimeout,
    /// Reserved, written in two pieces and committed.
    Commit,
    /// Reserved with so much more than is written.
    CommitLess(usize),
    /// Reserved, written and dropped.
    Abort,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Send {
        how: How,
        len: usize,
    },
    Recv,
    RecvTimeout,
    /// With so much more, or less, allowed than there is.
    RecvMax {
        slack: isize,
    },
    /// Into a buffer with so much more, or less, room than is needed.
    RecvInto {
        offset: usize,
        slack: isize,
    },
    BadOffset,
    RecvGuard,
    RecvBatch,
    /// So many of one length, which is short.
    SendBatch {
        count: usize,
        len: usize,
    },
    /// All that is there, by `try_iter`.
    Drain,
    Poll,
    /// From the first time on, the pipe keeps its descriptor right.
    Watch,
}

fn op(capacity: usize) -> impl Strategy<Value = Op> {
    let quarter = capacity / 4;
    let len = prop_oneof![
        4 => 0..100_usize,
        2 => quarter - 24..quarter + 24,
        2 => 0..quarter,
        2 => quarter..capacity,
        1 => capacity - 200..capacity + 200,
        1 => capacity..3 * capacity,
    ];
    let how = prop_oneof![
        6 => Just(How::Try),
        3 => (0..5_usize).prop_map(How::TryVectored),
        1 => Just(How::Timeout),
        1 => Just(How::VectoredTimeout),
        2 => Just(How::Commit),
        1 => (0..200_usize).prop_map(How::CommitLess),
        1 => Just(How::Abort),
    ];
    let slack = prop_oneof![Just(0_isize), -50..50_isize];
    prop_oneof![
        12 => (how, len).prop_map(|(how, len)| Op::Send { how, len }),
        4 => Just(Op::Recv),
        1 => Just(Op::RecvTimeout),
        1 => (0..40_isize).prop_map(|slack| Op::RecvMax { slack }),
        4 => (0..20_usize, slack).prop_map(|(offset, slack)| Op::RecvInto { offset, slack }),
        1 => Just(Op::BadOffset),
        2 => Just(Op::RecvGuard),
        2 => Just(Op::RecvBatch),
        4 => (0..80_usize, 0..200_usize).prop_map(|(count, len)| Op::SendBatch { count, len }),
        1 => Just(Op::Drain),
        2 => Just(Op::Poll),
        1 => Just(Op::Watch),
    ]
}

/// A capacity, whether the pipe may spin, and what is done on which direction.
fn run() -> impl Strategy<Value = (usize, bool, Vec<(bool, Op)>)> {
    let capacity = prop_oneof![Just(4096_usize), Just(8192), Just(16384)];
    capacity.prop_flat_map(|capacity| {
        (Just(capacity), any::<bool>(), prop::collection::vec((any::<bool>(), op(capacity)), 1..120))
    })
}

/// What one direction should hold.
#[derive(Default)]
struct Model {
    messages: VecDeque<Vec<u8>>,
    /// Messages made, so that no two are alike.
    made: usize,
    /// The receiver has found nothing, and nothing was tried since: the whole ring is free.
    clear: bool,
    /// Since then, a long message was begun and taken back: until the receiver has passed it over, it looks like something to receive.
    remains: bool,
    /// Since then, a send has found no room or a reservation was dropped, and either may have left padding: the descriptor takes that
    /// for something.
    padding: bool,
    /// The most that a try can send, once it is known.
    limit: Option<usize>,
}

impl Model {
    fn message(&mut self, len: usize) -> Vec<u8> {
        self.made += 1;
        (0..len).map(|i| (self.made * 31 + i * 7 + i / 251) as u8).collect()
    }

    /// Checks what a send said, and takes note of what it did.
    fn sent(&mut self, result: Result<(), SendError>, reserved: usize, message: Vec<u8>, how: How, sender: &Sender) {
        let max_reserve = sender.max_reserve();
        let in_place = matches!(how, How::Commit | How::CommitLess(_) | How::Abort);
        let may_wait = matches!(how, How::Timeout | How::VectoredTimeout);
        match result {
            Ok(()) => {
                assert!(!in_place || reserved <= max_reserve, "{reserved} bytes were reserved");
                match how {
                    How::Abort => self.padding = true,
                    _ => self.messages.push_back(message),
                }
            }
            Err(SendError::TooLong { len, max }) => {
                assert!(!may_wait && len == reserved && len > max && max >= max_reserve, "{len} bytes of {max}");
                if in_place {
                    assert_eq!(max, max_reserve);
                } else {
                    assert_eq!(*self.limit.get_or_insert(max), max, "the limit has changed");
                }
            }
            Err(SendError::Full) => {
                assert!(!may_wait);
                assert!(!self.clear, "no room for {reserved} bytes in a clear ring");
                self.padding = true;
            }
            Err(SendError::TimedOut) => {
                assert!(may_wait);
                assert!(!self.clear || reserved > max_reserve, "no room for {reserved} bytes in a clear ring");
                self.padding = true;
                self.remains |= reserved > max_reserve;
            }
            Err(e) => panic!("{e}"),
        }
        self.clear = false;
    }

    /// Checks that the receiver has found nothing where there should be nothing.
    fn found_nothing(&mut self) {
        assert!(self.messages.is_empty(), "{} messages are missing", self.messages.len());
        self.clear = true;
        self.remains = false;
        self.padding = false;
    }

    /// Bytes that the messages take at least.
    fn least_fill(&self) -> usize {
        self.messages.iter().map(|message| 8 + message.len().next_multiple_of(8)).sum()
    }

    /// Checks that an end with a message is ready, and one without is not unless `spuriously`.
    fn check_ready(&self, ready: bool, spuriously: bool) {
        match self.messages.is_empty() {
            false => assert!(ready, "there is a message"),
            true => assert!(!ready || spuriously, "there is no message"),
        }
    }
}

/// In so many parts, more or less.
fn parts(message: &[u8], parts: usize) -> Vec<IoSlice<'_>> {
    match message.len() / parts.max(1) {
        0 => vec![IoSlice::new(message), IoSlice::new(&[])],
        part => message.chunks(part).map(IoSlice::new).collect(),
    }
}

const BRIEF: Duration = Duration::from_micros(500);

fn send(sender: &mut Sender, model: &mut Model, how: How, len: usize) {
    let message = model.message(len);
    let mut reserved = len;
    let result = match how {
        How::Try => sender.try_send_bytes(&message),
        How::TryVectored(n) => sender.try_send_vectored(&parts(&message, n)),
        How::Timeout => sender.send_bytes_timeout(&message, BRIEF),
        How::VectoredTimeout => sender.send_vectored_timeout(&parts(&message, 3), BRIEF),
        How::Commit | How::CommitLess(_) | How::Abort => {
            if let How::CommitLess(more) = how {
                reserved += more;
            }
            sender.try_reserve(reserved).and_then(|mut slot| {
                let (front, back) = message.split_at(len / 3);
                slot.write(front);
                slot.write(back);
                assert_eq!((slot.len(), slot.written()), (reserved, len));
                match how {
                    How::Abort => Ok(()),
                    _ => slot.commit(),
                }
            })
        }
    };
    model.sent(result, reserved, message, how, sender);
}

/// Checks a received message, or that there was none.
fn received(model: &mut Model, result: Result<Vec<u8>, RecvError>) {
    match (result, model.messages.pop_front()) {
        (Ok(got), Some(expected)) => assert!(got == expected, "{} bytes instead of {}", got.len(), expected.len()),
        (Err(RecvError::Empty | RecvError::TimedOut), None) => model.found_nothing(),
        (result, expected) => panic!("{result:?} instead of {:?} bytes", expected.map(|m| m.len())),
    }
}

fn recv_into(receiver: &mut Receiver, model: &mut Model, offset: usize, slack: isize) {
    let expected = model.messages.front().cloned();
    let needed = expected.as_ref().map_or(10, |message| message.len());
    let room = needed.saturating_add_signed(slack);
    let mut buf = vec![0xaa; offset + room];
    match receiver.try_recv_bytes_into(&mut buf, offset) {
        Ok(len) => {
            assert!(len <= room && buf[..offset].iter().all(|&b| b == 0xaa));
            assert!(model.remains || buf[offset + len..].iter().all(|&b| b == 0xaa), "written to behind the message");
            received(model, Ok(buf[offset..][..len].to_vec()));
        }
        Err(RecvIntoError::TooShort(e)) => {
            assert!(room < needed && e.room == room);
            // What was taken back may have been on its way into the buffer.
            assert!(model.remains || buf.iter().all(|&b| b == 0xaa), "the buffer was written to");
            received(model, Ok(e.message));
        }
        Err(RecvIntoError::Recv(e)) => received(model, Err(e)),
        Err(e) => panic!("{e}"),
    }
}

fn apply(receiver: &mut Receiver, sender: &mut Sender, model: &mut Model, op: Op) {
    match op {
        Op::Send { how, len } => send(sender, model, how, len),
        Op::Recv => received(model, receiver.try_recv_bytes()),
        Op::RecvTimeout => received(model, receiver.recv_bytes_timeout(BRIEF)),
        Op::RecvMax { slack } => {
            let max = match model.messages.front() {
                // The length of a message is judged when its start is read, and what was taken back has a start.
                _ if model.remains => usize::MAX,
                Some(message) => message.len().saturating_add_signed(slack),
                None => 0,
            };
            received(model, receiver.try_recv_bytes_max(max));
        }
        Op::RecvInto { offset, slack } => recv_into(receiver, model, offset, slack),
        Op::BadOffset => {
            let result = receiver.try_recv_bytes_into(&mut [0; 4], 5);
            assert!(matches!(result, Err(RecvIntoError::BadOffset { offset: 5, len: 4 })), "{result:?}");
        }
        Op::RecvGuard => {
            let result = receiver.try_recv_guard().map(|guard| guard.to_vec());
            received(model, result);
        }
        Op::RecvBatch => {
            let mut batch = Batch::new();
            match receiver.try_recv_batch(&mut batch) {
                Ok(()) => batch.iter().for_each(|message| received(model, Ok(message.to_vec()))),
                Err(e) => received(model, Err(e)),
            }
        }
        Op::SendBatch { count, len } => {
            let messages: Vec<Vec<u8>> = (0..count).map(|_| model.message(len)).collect();
            match sender.try_send_batch(&messages) {
                Ok(sent) => {
                    assert!((1..=count).contains(&sent) || count == 0);
                    model.clear &= count == 0;
                    model.padding |= sent < count;
                    model.messages.extend(messages.into_iter().take(sent));
                }
                // As for a single message, the rest of the ring may have become padding.
                Err(SendError::Full) => {
                    assert!(!model.clear, "no room in a clear ring");
                    model.padding = true;
                }
                Err(e) => panic!("{e:?}"),
            }
        }
        Op::Drain => {
            for message in receiver.try_iter() {
                received(model, message);
            }
            model.found_nothing();
        }
        Op::Poll => {
            let ready = receiver.poll(Some(Duration::ZERO)).unwrap();
            model.check_ready(ready, model.remains);
        }
        Op::Watch => {
            let ready = poll_fd(receiver.as_fd(), libc::POLLIN, Duration::ZERO) != 0;
            model.check_ready(ready, model.remains || model.padding);
        }
    }
    let fill = sender.fill();
    assert_eq!(fill, receiver.fill());
    assert!((model.least_fill()..=sender.capacity()).contains(&fill), "{fill} of {}", model.least_fill());
    assert!(!model.clear || fill == 0, "{fill} bytes in a clear ring");
}

/// Both directions of a duplex pipe.
fn directions<'a>(a: &'a mut Connection, b: &'a mut Connection, forth: bool) -> (&'a mut Receiver, &'a mut Sender) {
    if forth { (b.receiver_mut(), a.sender_mut()) } else { (a.receiver_mut(), b.sender_mut()) }
}

/// After the sender is closed: what is left, and then end of file.
fn rest(mut receiver: Receiver, mut model: Model) {
    while !model.messages.is_empty() {
        let result = receiver.recv_bytes();
        received(&mut model, result);
    }
    for _ in 0..2 {
        assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_simplex_pipe_is_a_queue_of_messages((capacity, spins, ops) in run()) {
        let _watchdog = watchdog(60);
        let spin = Duration::from_micros(if spins { 20 } else { 0 });
        let (mut receiver, mut sender) = Builder::new().capacity(capacity).spin(spin).simplex().unwrap();
        let mut model = Model { clear: true, ..Model::default() };
        for (_, op) in ops {
            apply(&mut receiver, &mut sender, &mut model, op);
        }
        drop(sender);
        rest(receiver, model);
    }

    #[test]
    fn a_duplex_pipe_is_two_queues_of_messages((capacity, spins, ops) in run()) {
        let _watchdog = watchdog(60);
        let spin = Duration::from_micros(if spins { 20 } else { 0 });
        let (mut a, mut b) = Builder::new().capacity(capacity).spin(spin).pipe().unwrap();
        let mut models = [Model::default(), Model::default()];
        for (forth, op) in ops {
            let (receiver, sender) = directions(&mut a, &mut b, forth);
            apply(receiver, sender, &mut models[usize::from(forth)], op);
        }
        let ((a_sender, a_receiver), (b_sender, b_receiver)) = (a.split(), b.split());
        drop((a_sender, b_sender));
        let [back, forth] = models;
        rest(a_receiver, back);
        rest(b_receiver, forth);
    }
}
