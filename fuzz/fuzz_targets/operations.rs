//! Any sequence of operations on a simplex pipe, against a model: a queue of what was sent and not received yet.
//!
//! One thread does both sides, so after every call it is certain what the pipe holds: each result is compared, not just survived. Cursors
//! start anywhere, so that they pass 2^32 and 2^64.
#![no_main]

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::{AttachError, Receiver, RecvError, RecvIntoError, SendError, Sender, fuzzing};
use ringpipe_fuzz::{Start, message};

/// Over before anything is looked at: what can be done at once is done, and then the call gives up.
const BRIEF: Duration = Duration::from_nanos(1);
/// What a buffer holds before anything is received.
static UNTOUCHED: [u8; 1 << 16] = [0xa5; 1 << 16];
/// Ends sent, in all; each is of a pipe of its own.
const MAX_ENDS: usize = 3;
const MAX_OPERATIONS: usize = 200;
/// The ring is 4096 bytes, or a few powers of two more.
const SIZES: usize = 3;

#[derive(Arbitrary, Debug)]
struct Input {
    size: u8,
    start: Start,
    operations: Vec<Operation>,
}

/// How long a call may wait.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Form {
    Try,
    Zero,
    Timeout,
    Deadline,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Send {
        len: u16,
        form: Form,
    },
    SendVectored {
        lens: [u16; 3],
        form: Form,
    },
    Reserve {
        len: u16,
        written: u16,
        commit: bool,
        form: Form,
    },
    /// A message of up to three times the ring, sent by a thread while this one receives. Once only: it takes a while.
    Stream {
        len: u16,
        form: Form,
    },
    SendEnd,
    Recv {
        form: Form,
    },
    RecvMax {
        maxlength: u16,
        form: Form,
    },
    RecvInto {
        room: u16,
        offset: u16,
        form: Form,
    },
    RecvGuard {
        skip: u16,
        form: Form,
    },
    RecvEnd {
        right: bool,
    },
    TryIter {
        most: u8,
    },
    Poll,
    /// From here on the descriptor is compared with the model as well.
    Watch,
    CloseSender,
    CloseReceiver,
}

type Bytes = Cow<'static, [u8]>;

enum Item {
    Bytes(Bytes),
    /// A receiving end whose pipe holds this message.
    End(Bytes),
}

/// What is made once and used by all executions.
struct Kept {
    pipes: [fuzzing::Pipe; SIZES],
    /// Those whose receiving ends are sent.
    sent: [fuzzing::Pipe; MAX_ENDS],
    streamer: Streamer,
}

/// A thread that sends one message and gives the end back.
struct Streamer {
    jobs: mpsc::Sender<(Sender, &'static [u8])>,
    done: mpsc::Receiver<Sender>,
}

impl Streamer {
    fn start() -> Streamer {
        let (jobs, taken) = mpsc::channel::<(Sender, &'static [u8])>();
        let (finished, done) = mpsc::channel();
        std::thread::spawn(move || {
            for (mut sender, message) in taken {
                sender.send_bytes(message).expect("the receiver lives");
                finished.send(sender).expect("somebody waits");
            }
        });
        Streamer { jobs, done }
    }
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::new(Kept {
        pipes: std::array::from_fn(|i| fuzzing::Pipe::new(4096 << i, Duration::ZERO)),
        sent: std::array::from_fn(|_| fuzzing::Pipe::new(4096, Duration::ZERO)),
        streamer: Streamer::start(),
    });
}

struct Pipe<'a> {
    ends: std::slice::IterMut<'a, fuzzing::Pipe>,
    streamer: Option<&'a Streamer>,
    receiver: Option<Receiver>,
    sender: Option<Sender>,
    model: VecDeque<Item>,
    sent: usize,
    watched: bool,
    /// A byte for what is received already may be in the bell: from another thread, or one that came with a pipe end.
    noise: bool,
    /// The receiver refused a message and receives no more.
    ended: bool,
    /// Parts of a long message that was given up may be in the ring. They are nothing to receive, but look like the start of it, and a
    /// message that is too long is refused at its start.
    taken_back: bool,
}

fuzz_target!(|input: Input| {
    KEPT.with_borrow_mut(|Kept { pipes, sent, streamer }| {
        let kept = &mut pipes[usize::from(input.size) % SIZES];
        let (receiver, sender) = kept.ends(input.start.cursor());
        let mut pipe = Pipe {
            ends: sent.iter_mut(),
            streamer: Some(streamer),
            receiver: Some(receiver),
            sender: Some(sender),
            model: VecDeque::new(),
            sent: 0,
            watched: false,
            noise: false,
            ended: false,
            taken_back: false,
        };
        for operation in input.operations.into_iter().take(MAX_OPERATIONS) {
            pipe.perform(operation);
            pipe.check();
        }
        pipe.drain();
        kept.give_back(pipe.receiver, pipe.sender);
    });
});

impl Pipe<'_> {
    fn perform(&mut self, operation: Operation) {
        match operation {
            Operation::Send { len, form } => self.send(len.into(), form),
            Operation::SendVectored { lens, form } => self.send_vectored(lens.map(usize::from), form),
            Operation::Reserve { len, written, commit, form } => {
                self.reserve(len.into(), written.into(), commit, form);
            }
            Operation::Stream { len, form } => self.stream(len.into(), form),
            Operation::SendEnd => self.send_end(),
            Operation::Recv { form } => self.recv(form),
            Operation::RecvMax { maxlength, form } => self.recv_max(maxlength.into(), form),
            Operation::RecvInto { room, offset, form } => self.recv_into(room.into(), offset.into(), form),
            Operation::RecvGuard { skip, form } => self.recv_guard(skip.into(), form),
            Operation::RecvEnd { right } => self.recv_end(right),
            Operation::TryIter { most } => self.try_iter(most.into()),
            Operation::Poll => self.poll(),
            Operation::Watch => {
                if let Some(receiver) = &self.receiver {
                    receiver.as_fd();
                    self.watched = true;
                }
            }
            Operation::CloseSender => self.sender = None,
            Operation::CloseReceiver => self.receiver = None,
        }
    }

    /// What holds between any two operations.
    fn check(&mut self) {
        let capacity = |fill: usize, capacity: usize| assert!(fill <= capacity, "{fill} bytes in a ring of {capacity}");
        if let Some(sender) = &self.sender {
            capacity(sender.fill(), sender.capacity());
        }
        let Some(receiver) = &self.receiver else {
            return;
        };
        capacity(receiver.fill(), receiver.capacity());
        if self.watched && !self.ended {
            let something = !self.model.is_empty() || self.sender.is_none();
            let readable = readable(receiver);
            assert!(readable || !something, "the descriptor is silent: {receiver:?}");
            // Padding, or what was taken back, is something until a receive has passed over it.
            let excused = something || receiver.fill() > 0 || self.noise;
            assert!(!readable || excused, "the descriptor is readable for nothing: {receiver:?}");
        }
    }

    /// Whatever was sent and not received is still there, whole and in order.
    fn drain(&mut self) {
        if self.receiver.is_none() || self.ended {
            return;
        }
        while !self.model.is_empty() {
            match self.model.front() {
                // The first passes over what was taken back.
                Some(Item::End(_)) => {
                    self.recv(Form::Try);
                    self.recv_end(true);
                }
                _ => self.recv(Form::Try),
            }
        }
        self.recv(Form::Timeout);
    }

    // --- sending ------------------------------------------------------------------------------------

    /// The next message: its bytes say which one it is.
    fn message(&mut self, len: usize) -> &'static [u8] {
        self.sent += 1;
        message(self.sent, len)
    }

    /// Compares what a send returned with what it may return.
    fn sent(&mut self, message: impl Into<Bytes>, form: Form, empty: bool, result: Result<(), SendError>) {
        let message = message.into();
        let sender = self.sender.as_ref().expect("it has just sent");
        let (max_reserve, capacity) = (sender.max_reserve(), sender.capacity());
        let open = self.receiver.is_some() && !self.ended;
        let now = form == Form::Try;
        // Into an empty ring everything goes that does not have to be taken apart.
        let fits = empty && message.len() <= max_reserve;
        match result {
            Ok(()) => {
                assert!(open, "sent to nobody");
                self.model.push_back(Item::Bytes(message));
            }
            Err(SendError::Disconnected) => assert!(!open, "disconnected from a living receiver"),
            Err(SendError::TooLong { len, max }) => {
                // A call with time to wait takes any length.
                assert!(form != Form::Timeout && len == message.len());
                assert!(max < len && max >= max_reserve && max < capacity);
            }
            Err(SendError::Full) => assert!(now && open && !fits),
            Err(SendError::TimedOut) => {
                assert!(!now && open && !fits);
                self.taken_back |= message.len() > max_reserve;
            }
            Err(e) => panic!("{e:?}"),
        }
    }

    fn send(&mut self, len: usize, form: Form) {
        let message = self.message(len);
        let Some(sender) = &mut self.sender else {
            return;
        };
        let empty = sender.fill() == 0;
        let result = match form {
            Form::Try => sender.try_send_bytes(message),
            Form::Zero => sender.send_bytes_timeout(message, Duration::ZERO),
            Form::Timeout => sender.send_bytes_timeout(message, BRIEF),
            Form::Deadline => sender.send_bytes_deadline(message, Instant::now() + BRIEF),
        };
        self.sent(message, form, empty, result);
    }

    fn send_vectored(&mut self, lens: [usize; 3], form: Form) {
        let parts = lens.map(|len| self.message(len % 3000));
        let Some(sender) = &mut self.sender else {
            return;
        };
        let empty = sender.fill() == 0;
        let slices = [IoSlice::new(parts[0]), IoSlice::new(parts[1]), IoSlice::new(parts[2])];
        let result = match form {
            Form::Try => sender.try_send_vectored(&slices),
            Form::Zero => sender.send_vectored_timeout(&slices, Duration::ZERO),
            Form::Timeout => sender.send_vectored_timeout(&slices, BRIEF),
            Form::Deadline => sender.send_vectored_deadline(&slices, Instant::now() + BRIEF),
        };
        self.sent(parts.concat(), form, empty, result);
    }

    fn reserve(&mut self, len: usize, written: usize, commit: bool, form: Form) {
        let message = self.message(if len == 0 { 0 } else { written % (len + 1) });
        let Some(sender) = &mut self.sender else {
            return;
        };
        let (empty, max_reserve) = (sender.fill() == 0, sender.max_reserve());
        let reserved = match form {
            Form::Try => sender.try_reserve(len),
            Form::Zero => sender.reserve_timeout(len, Duration::ZERO),
            Form::Timeout => sender.reserve_timeout(len, BRIEF),
            Form::Deadline => sender.reserve_deadline(len, Instant::now() + BRIEF),
        };
        let result = match reserved {
            Ok(mut slot) => {
                assert!(slot.len() == len && len <= max_reserve);
                let (first, rest) = message.split_at(message.len() / 2);
                slot.write(first);
                slot.write(rest);
                assert_eq!(slot.written(), message.len());
                if !commit {
                    return;
                }
                slot.commit()
            }
            Err(SendError::TooLong { len: asked, max }) => {
                assert!(asked == len && max == max_reserve && len > max);
                return;
            }
            // What there is no room for is the reservation, not the message.
            Err(SendError::Full | SendError::TimedOut) if !(empty && len <= max_reserve) => return,
            Err(e) => Err(e),
        };
        self.sent(message, form, empty, result);
    }

    fn stream(&mut self, len: usize, form: Form) {
        if self.receiver.is_none() || self.ended || self.sender.is_none() {
            return;
        }
        let Some(streamer) = self.streamer.take() else {
            return;
        };
        // Everything before it, so that what is received below is this message.
        while !self.model.is_empty() {
            match self.model.front() {
                Some(Item::End(_)) => {
                    self.recv(form);
                    self.recv_end(true);
                }
                _ => self.recv(form),
            }
        }
        let (Some(sender), Some(mut receiver)) = (self.sender.take(), self.receiver.take()) else {
            return;
        };
        let message = self.message(len % (3 * sender.capacity()));
        self.noise = true;
        streamer.jobs.send((sender, message)).expect("the thread runs");
        let mut buf = vec![0; message.len()];
        let received = loop {
            let result = match form {
                Form::Try => receiver.try_recv_bytes(),
                Form::Zero => match receiver.recv_bytes_into_timeout(&mut buf, 0, BRIEF) {
                    Ok(len) => Ok(buf[..len].to_vec()),
                    Err(RecvIntoError::Recv(e)) => Err(e),
                    Err(e) => panic!("{e:?}"),
                },
                Form::Timeout => receiver.recv_bytes_timeout(BRIEF),
                Form::Deadline => receiver.recv_guard().map(|guard| guard.to_vec()),
            };
            match result {
                // Taken in several calls: nothing of it is lost in between.
                Err(RecvError::Empty | RecvError::TimedOut) => std::thread::yield_now(),
                result => break result.expect("the sender lives"),
            }
        };
        assert!(received == message, "a long message was damaged");
        self.sender = Some(streamer.done.recv().expect("the thread runs"));
        self.receiver = Some(receiver);
    }

    fn send_end(&mut self) {
        let message = self.message(5);
        let (Some(sender), Some(pipe)) = (&mut self.sender, self.ends.next()) else {
            return;
        };
        let (theirs, mut ours) = pipe.ends(0);
        ours.send_bytes(message).expect("a fresh pipe");
        let (open, empty) = (self.receiver.is_some() && !self.ended, sender.fill() == 0);
        let (result, late) = match self.sent % 2 {
            0 => (sender.try_send_end(theirs), ErrorKind::WouldBlock),
            _ => (sender.send_end_timeout(theirs, BRIEF), ErrorKind::TimedOut),
        };
        match result.map_err(|e| e.error.kind()) {
            Ok(()) => {
                assert!(open, "sent to nobody");
                self.noise = true;
                self.model.push_back(Item::End(message.into()));
            }
            Err(ErrorKind::BrokenPipe) => assert!(!open, "disconnected from a living receiver"),
            Err(kind) => assert!(kind == late && open && !empty, "{kind}"),
        }
    }

    // --- receiving ----------------------------------------------------------------------------------

    /// Compares why nothing was received with the model.
    fn not_received(&mut self, e: RecvError, form: Form) {
        let now = form == Form::Try;
        if matches!(e, RecvError::Empty | RecvError::TimedOut) {
            (self.taken_back, self.noise) = (false, false);
        }
        match e {
            RecvError::Empty => {
                assert!(now && self.model.is_empty() && self.sender.is_some());
                let receiver = self.receiver.as_ref().expect("it has just received");
                assert!(!self.watched || !readable(receiver), "the descriptor is readable for nothing: {receiver:?}");
            }
            RecvError::TimedOut => assert!(!now && self.model.is_empty() && self.sender.is_some()),
            RecvError::Disconnected => assert!(self.model.is_empty() && self.sender.is_none()),
            RecvError::IsEnd => assert!(matches!(self.model.front(), Some(Item::End(_)))),
            RecvError::Ended => assert!(self.ended),
            e => panic!("{e:?}"),
        }
    }

    fn expect(&mut self, received: &[u8]) {
        match self.model.pop_front() {
            Some(Item::Bytes(expected)) => assert!(received == &*expected, "a message was damaged"),
            Some(Item::End(_)) => panic!("an end was received as bytes"),
            None => panic!("{} bytes out of nowhere", received.len()),
        }
    }

    fn recv(&mut self, form: Form) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        let result = match form {
            Form::Try => receiver.try_recv_bytes(),
            Form::Zero => receiver.recv_bytes_timeout(Duration::ZERO),
            Form::Timeout => receiver.recv_bytes_timeout(BRIEF),
            Form::Deadline => receiver.recv_bytes_deadline(Instant::now() + BRIEF),
        };
        match result {
            Ok(bytes) => self.expect(&bytes),
            Err(e) => self.not_received(e, form),
        }
    }

    fn recv_max(&mut self, maxlength: usize, form: Form) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        let result = match form {
            Form::Try => receiver.try_recv_bytes_max(maxlength),
            Form::Zero => receiver.recv_bytes_max_timeout(maxlength, Duration::ZERO),
            Form::Timeout => receiver.recv_bytes_max_timeout(maxlength, BRIEF),
            Form::Deadline => receiver.recv_bytes_max_deadline(maxlength, Instant::now() + BRIEF),
        };
        match result {
            Ok(bytes) => {
                assert!(bytes.len() <= maxlength);
                self.expect(&bytes);
            }
            Err(RecvError::TooLong { len, max }) => {
                let sent = matches!(self.model.front(), Some(Item::Bytes(refused)) if refused.len() as u64 == len);
                assert!(max == maxlength && len > max as u64 && (sent || self.taken_back));
                self.ended = true;
            }
            Err(e) => self.not_received(e, form),
        }
    }

    fn recv_into(&mut self, room: usize, offset: usize, form: Form) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        let mut buf = UNTOUCHED[..room].to_vec();
        let result = match form {
            Form::Try => receiver.try_recv_bytes_into(&mut buf, offset),
            Form::Zero => receiver.recv_bytes_into_timeout(&mut buf, offset, Duration::ZERO),
            Form::Timeout => receiver.recv_bytes_into_timeout(&mut buf, offset, BRIEF),
            Form::Deadline => receiver.recv_bytes_into_deadline(&mut buf, offset, Instant::now() + BRIEF),
        };
        let untouched = |part: &[u8]| part == &UNTOUCHED[..part.len()];
        // A long message that was taken back may have left its bytes behind the offset.
        let taken_back = self.taken_back;
        match result {
            Ok(len) => {
                assert!(untouched(&buf[..offset]), "written before the offset");
                assert!(taken_back || untouched(&buf[offset + len..]), "written behind the message");
                self.expect(&buf[offset..offset + len]);
            }
            Err(RecvIntoError::TooShort(e)) => {
                assert!(e.room == room - offset && e.message.len() > e.room);
                assert!(untouched(&buf[..offset]) && (taken_back || untouched(&buf)));
                self.expect(&e.message);
            }
            Err(RecvIntoError::BadOffset { .. }) => assert!(offset > room),
            Err(RecvIntoError::Recv(e)) => self.not_received(e, form),
            Err(e) => panic!("{e:?}"),
        }
    }

    fn recv_guard(&mut self, skip: usize, form: Form) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        let result = match form {
            Form::Try => receiver.try_recv_guard(),
            Form::Zero => receiver.recv_guard_timeout(Duration::ZERO),
            Form::Timeout => receiver.recv_guard_timeout(BRIEF),
            Form::Deadline => receiver.recv_guard_deadline(Instant::now() + BRIEF),
        };
        let copied = result.map(|guard| {
            let whole = guard.to_vec();
            assert_eq!((guard.len(), guard.is_empty()), (whole.len(), whole.is_empty()));
            let skip = skip.min(whole.len());
            let mut rest = vec![0; whole.len() - skip];
            guard.copy_to(skip, &mut rest);
            assert!(rest == whole[skip..]);
            whole
        });
        match copied {
            Ok(whole) => self.expect(&whole),
            Err(e) => self.not_received(e, form),
        }
    }

    /// Asks for the right kind of end, or for the wrong one.
    fn recv_end(&mut self, right: bool) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        let result = if right {
            receiver.try_recv_end::<Receiver>()
        } else {
            let wrong = receiver.recv_end_timeout::<Sender>(Duration::ZERO);
            wrong.map(|_| panic!("a receiver was received as a sender"))
        };
        match result {
            Ok(mut end) => match self.model.pop_front() {
                Some(Item::End(message)) => {
                    assert_eq!(*message, end.recv_bytes().expect("sent before the end was"));
                    assert!(matches!(end.recv_bytes(), Err(RecvError::Disconnected)));
                }
                _ => panic!("an end out of nowhere"),
            },
            Err(RecvError::Attach(AttachError::WrongEnd { .. })) => {
                assert!(!right && matches!(self.model.pop_front(), Some(Item::End(_))));
            }
            Err(RecvError::IsBytes) => match self.model.front() {
                Some(Item::Bytes(_)) => {}
                // To be passed over by a receive of bytes, which then finds the end.
                _ => assert!(self.taken_back),
            },
            Err(e) => self.not_received(e, if right { Form::Try } else { Form::Zero }),
        }
    }

    fn try_iter(&mut self, most: usize) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        // An end at the front is an error each time.
        let received: Vec<_> = receiver.try_iter().take(most).map_while(Result::ok).collect();
        for bytes in received {
            self.expect(&bytes);
        }
    }

    fn poll(&mut self) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        match receiver.poll(Some(Duration::ZERO)) {
            Ok(something) => {
                let expected = !self.model.is_empty() || self.sender.is_none();
                assert!(something == expected || (something && self.taken_back), "poll says {something}");
            }
            Err(e) => assert!(matches!(e, RecvError::Ended) && self.ended, "{e:?}"),
        }
    }
}

/// What `poll(2)` says, without waiting and without letting the receiver know.
fn readable(receiver: &Receiver) -> bool {
    let mut fds = [libc::pollfd { fd: fuzzing::bell(receiver).as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    // SAFETY: the pointer leads to one `pollfd`.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), 1, 0) };
    ready == 1
}
