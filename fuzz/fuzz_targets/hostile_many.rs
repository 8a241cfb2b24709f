//! Both ends of a pipe for many whose shared memory and bells somebody rewrites between (and within) any two calls: words of cells, cursors, seats,
//! the lengths of long messages, holes, bytes and descriptors on the bells.
//!
//! Results may be anything; no call may panic, go outside the ring, go on for ever, or allocate more than is there. What lies before the
//! words is poisoned, and nothing can be read or written behind the cells.
#![no_main]

use std::cell::RefCell;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::fuzzing::many::{Memory, Pipe};
use ringpipe::mpmc::{Receiver, Sender};
use ringpipe::{RecvError, RecvIntoError, SendError};
use ringpipe_fuzz::hostile::ring_the_bell;
use ringpipe_fuzz::{Allocated, Start, guard_many, message};

const CAPACITY: usize = 64 << 10;
const WINDOW: u64 = 128 << 10;
/// Over before anything is looked at: what can be done at once is done, and then the call gives up.
const BRIEF: Duration = Duration::from_nanos(1);
const MAX_STEPS: usize = 200;
/// A long message is at most what lies in the ring and in its window. Vectors may be made twice as long.
const MAX_ALLOCATION: usize = 2 * (CAPACITY / 4 + WINDOW as usize);
const MAX_MESSAGE: usize = 40_000;

#[derive(Arbitrary, Debug)]
struct Input {
    spin: bool,
    start: Start,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Send(SenderCall),
    Receive(ReceiverCall),
    Rewrite(Rewrite),
    Hole { page: u8, pages: u8 },
    Bell { to_receiver: bool, bytes: Vec<u8>, descriptors: u8 },
}

/// What a hostile peer does to the memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Rewrite {
    Any {
        at: At,
        value: u64,
    },
    Word {
        at: At,
        word: Word,
    },
    /// Several of one length, one behind the other.
    Words {
        at: At,
        word: Word,
        count: u8,
    },
    /// Bits of a word that is there.
    Flip {
        at: At,
        bit: u8,
    },
    Copy {
        from: At,
        to: At,
    },
    Fill {
        word: Word,
    },
    Cursor {
        cursor: u8,
        value: u64,
    },
    Nudge {
        cursor: u8,
        by: i8,
    },
    CopyCursor {
        from: u8,
        to: u8,
    },
    Seat {
        seat: u8,
        value: u32,
    },
    SeatBit {
        seat: u8,
        bit: u8,
    },
    WokenAt {
        seat: bool,
        value: u64,
    },
    /// What a long message says that it is long.
    Total {
        at: At,
        total: Total,
    },
}

/// Where.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum At {
    Cursor(u8),
    Anywhere(u16),
}

/// A word that makes some sense at a place: of the lap of a cursor, or one before or after.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Word {
    lap: i8,
    cells: Cells,
    field: Field,
    state: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Cells {
    Few(u8),
    Any(u16),
    ToTheEnd,
    Quarter,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Field {
    Small(u8),
    Any(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Total {
    Small(u16),
    AroundTheQuarter(i16),
    Window(i8),
    Any(u64),
}

impl At {
    fn cell(self, memory: &Memory) -> usize {
        match self {
            At::Cursor(which) => {
                memory.cursors()[usize::from(which) % 3].load(Ordering::Relaxed) as usize % memory.cells()
            }
            At::Anywhere(at) => usize::from(at) % memory.cells(),
        }
    }
}

impl Word {
    fn raw(self, memory: &Memory, at: At) -> u64 {
        let cursor = if let At::Cursor(which) = at { usize::from(which) % 3 } else { 0 };
        let position = memory.cursors()[cursor].load(Ordering::Relaxed);
        let lap = (position / memory.cells() as u64 + 1).wrapping_add(i64::from(self.lap % 3) as u64);
        let cells = match self.cells {
            Cells::Few(cells) => u64::from(cells),
            Cells::Any(cells) => u64::from(cells) & 1023,
            Cells::ToTheEnd => 0,
            Cells::Quarter => 1023,
        };
        let field = match self.field {
            Field::Small(field) => u64::from(field),
            Field::Any(field) => u64::from(field) & 1023,
        };
        lap << 22 | cells << 12 | field << 2 | u64::from(self.state & 3)
    }
}

impl Rewrite {
    fn apply(self, memory: &Memory) {
        let cursor = |i: u8| memory.cursors()[usize::from(i) % 3];
        let set = |at: At, value: u64| memory.word(at.cell(memory)).store(value, Ordering::Relaxed);
        match self {
            Rewrite::Any { at, value } => set(at, value),
            Rewrite::Word { at, word } => set(at, word.raw(memory, at)),
            Rewrite::Words { at, word, count } => {
                let raw = word.raw(memory, at);
                let step = ((raw >> 12 & 1023) as usize).max(1);
                for i in 0..usize::from(count) {
                    memory.word(at.cell(memory) + i * step).store(raw, Ordering::Relaxed);
                }
            }
            Rewrite::Flip { at, bit } => {
                let word = memory.word(at.cell(memory));
                word.store(word.load(Ordering::Relaxed) ^ 1 << (bit % 64), Ordering::Relaxed);
            }
            Rewrite::Copy { from, to } => set(to, memory.word(from.cell(memory)).load(Ordering::Relaxed)),
            Rewrite::Fill { word } => {
                let raw = word.raw(memory, At::Cursor(0));
                (0..memory.cells()).for_each(|cell| memory.word(cell).store(raw, Ordering::Relaxed));
            }
            Rewrite::Cursor { cursor: i, value } => cursor(i).store(value, Ordering::Relaxed),
            Rewrite::Nudge { cursor: i, by } => {
                let word = cursor(i);
                word.store(word.load(Ordering::Relaxed).wrapping_add(i64::from(by) as u64), Ordering::Relaxed);
            }
            Rewrite::CopyCursor { from, to } => {
                cursor(to).store(cursor(from).load(Ordering::Relaxed), Ordering::Relaxed)
            }
            Rewrite::Seat { seat, value } => memory.seats()[usize::from(seat) % 6].store(value, Ordering::Relaxed),
            Rewrite::SeatBit { seat, bit } => {
                let word = memory.seats()[usize::from(seat) % 6];
                word.store(word.load(Ordering::Relaxed) ^ 1 << (bit % 32), Ordering::Relaxed);
            }
            Rewrite::WokenAt { seat, value } => memory.woken_at()[usize::from(seat)].store(value, Ordering::Relaxed),
            Rewrite::Total { at, total } => {
                let in_the_ring = (CAPACITY / 4 - 8) as u64;
                let total = match total {
                    Total::Small(total) => total.into(),
                    Total::AroundTheQuarter(by) => in_the_ring.wrapping_add(i64::from(by) as u64),
                    Total::Window(by) => (in_the_ring + WINDOW).wrapping_add(i64::from(by) as u64),
                    Total::Any(total) => total,
                };
                memory.payload(at.cell(memory)).store(total, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum SenderCall {
    Try { len: u16 },
    Timeout { len: u16 },
    Vectored { lens: [u16; 2] },
    Reserve { len: u16, between: Rewrite, commit: bool },
    Look,
    Clone,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum ReceiverCall {
    Try,
    Timeout,
    Max { maxlength: u16 },
    Into { room: u16, offset: u8 },
    Guard { between: Rewrite },
    Value,
    Iterate { most: u8 },
    Poll,
    AsFd,
    Look,
    Clone,
}

impl SenderCall {
    fn perform(self, end: &mut Sender, memory: &Memory) {
        let message = |len: u16| message(7, usize::from(len) % MAX_MESSAGE);
        let result = match self {
            SenderCall::Try { len } => end.try_send_bytes(message(len)),
            SenderCall::Timeout { len } => end.send_bytes_timeout(message(len), BRIEF),
            SenderCall::Vectored { lens: [first, second] } => {
                end.try_send_vectored(&[IoSlice::new(message(first)), IoSlice::new(message(second))])
            }
            SenderCall::Reserve { len, between, commit } => match end.try_reserve(len.into()) {
                Ok(mut slot) => {
                    let (first, rest) = message(len).split_at(usize::from(len) / 2);
                    slot.write(first);
                    between.apply(memory);
                    slot.write(rest);
                    if commit { slot.commit() } else { Ok(()) }
                }
                Err(e) => Err(e),
            },
            SenderCall::Look => {
                assert!(end.fill() <= end.capacity() && end.len() <= memory.cells());
                assert!(!format!("{end:?}").is_empty());
                end.is_disconnected();
                Ok(())
            }
            SenderCall::Clone => {
                *end = end.clone();
                Ok(())
            }
        };
        if let Err(e) = result {
            assert!(!matches!(e, SendError::Encode(_)) && !e.to_string().is_empty());
        }
    }
}

impl ReceiverCall {
    fn perform(self, end: &mut Receiver, memory: &Memory) {
        match self {
            ReceiverCall::Try => drop(end.try_recv_bytes()),
            ReceiverCall::Timeout => drop(end.recv_bytes_timeout(BRIEF)),
            ReceiverCall::Max { maxlength } => match end.recv_bytes_max_timeout(maxlength.into(), BRIEF) {
                Ok(bytes) => assert!(bytes.len() <= maxlength.into()),
                Err(RecvError::TooLong { len, max }) => {
                    assert!(max == usize::from(maxlength) && len > u64::from(maxlength));
                    assert!(matches!(end.try_recv_bytes(), Err(RecvError::Ended)));
                }
                Err(_) => {}
            },
            ReceiverCall::Into { room, offset } => receive_into(end, room, offset.into()),
            ReceiverCall::Guard { between } => {
                if let Ok(guard) = end.try_recv_guard() {
                    between.apply(memory);
                    assert_eq!(guard.to_vec().len(), guard.len());
                }
            }
            ReceiverCall::Value => drop(end.try_recv::<(String, Vec<u32>)>()),
            // Bounded: a cursor that was moved can make the same records appear again and again.
            ReceiverCall::Iterate { most } => end.try_iter().take(most.into()).for_each(drop),
            ReceiverCall::Poll => drop(end.poll(Some(Duration::ZERO))),
            ReceiverCall::AsFd => {
                let mut fds = [libc::pollfd { fd: end.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 }];
                // SAFETY: the pointer leads to one `pollfd`.
                unsafe { libc::poll(fds.as_mut_ptr(), 1, 0) };
            }
            ReceiverCall::Look => {
                assert!(end.fill() <= end.capacity() && end.len() <= memory.cells());
                assert!(!format!("{end:?}").is_empty());
            }
            // One that receives again, whatever the last one found.
            ReceiverCall::Clone => *end = end.clone(),
        }
    }
}

fn receive_into(end: &Receiver, room: u16, offset: usize) {
    let room = usize::from(room) % 30_000;
    let mut buf = vec![0xa5_u8; room];
    match end.try_recv_bytes_into(&mut buf, offset) {
        Ok(len) => {
            assert!(offset + len <= room);
            assert!(buf[..offset].iter().all(|&byte| byte == 0xa5), "written before the offset");
        }
        Err(RecvIntoError::TooShort(e)) => assert!(e.message.len() > e.room),
        Err(RecvIntoError::BadOffset { .. }) => assert!(offset > room),
        Err(_) => {}
    }
}

thread_local! {
    static PIPES: RefCell<[Pipe; 2]> = RefCell::new({
        let pipes = [Duration::ZERO, Duration::from_micros(1)].map(|spin| Pipe::new(CAPACITY, WINDOW, spin));
        pipes.iter().for_each(|pipe| guard_many(pipe.memory()));
        pipes
    });
}

fuzz_target!(|input: Input| {
    PIPES.with_borrow_mut(|pipes| {
        let pipe = &mut pipes[usize::from(input.spin)];
        // Laps do not come round in the life of a machine.
        let start = input.start.cursor() / 8 % ((pipe.memory().cells() as u64) << 40);
        let (mut receiver, mut sender) = pipe.ends(start);
        let memory = pipe.memory();
        Allocated::reset();
        for step in input.steps.iter().take(MAX_STEPS) {
            match *step {
                Step::Send(call) => call.perform(&mut sender, memory),
                Step::Receive(call) => call.perform(&mut receiver, memory),
                Step::Rewrite(rewrite) => rewrite.apply(memory),
                Step::Hole { page, pages } => punch(memory, page.into(), pages.into()),
                Step::Bell { to_receiver, ref bytes, descriptors } => {
                    let carried = [memory.as_fd(); 3];
                    // Each writes to the bell of the other.
                    let bell = if to_receiver { sender.as_fd() } else { receiver.as_fd() };
                    ring_the_bell(bell, bytes, &carried[..usize::from(descriptors) % 4]);
                }
            }
        }
        let largest = Allocated::so_far().largest;
        assert!(largest <= MAX_ALLOCATION, "{largest} bytes were allocated in one piece");
    });
});

/// Takes pages away from under the mapping, which then reads as zeros there, or out of the windows.
fn punch(memory: &Memory, page: usize, pages: usize) {
    const PAGE: usize = 4096;
    let all = memory.file_len() as usize / PAGE;
    let at = page % all;
    let pages = 1 + pages % (all - at);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (at, len) = ((at * PAGE) as libc::off_t, (pages * PAGE) as libc::off_t);
    // SAFETY: the pipe's own descriptor, and no pointers.
    unsafe { libc::fallocate(memory.as_fd().as_raw_fd(), mode, at, len) };
}
