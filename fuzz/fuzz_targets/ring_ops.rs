//! Any sequence of operations on a ring, against a model: tiny rings, any cursors, and writers that are killed between any two of their
//! stores while another copy of the end goes on.
//!
//! The model knows exactly what is in the ring, so every answer is compared: whether there is room, what stands at the front and its bytes,
//! and after each step the cursors themselves (I1 and I2 of `ring/spsc.rs`).
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::fuzzing::{Cursors, Front, HEADER, Kind, Ring, SPARE, STORES, record_len};
use ringpipe_fuzz::{Start, message};

const MIN_CAPACITY: usize = 64;
/// 64 to 4096.
const SIZES: usize = 7;
const MAX_STEPS: usize = 400;

#[derive(Arbitrary, Debug)]
struct Input {
    /// The capacity is 64 bytes, or up to six powers of two more.
    size: u8,
    start: Start,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Send {
        kind: SentKind,
        len: u16,
    },
    /// Less is sent than was claimed.
    SendLess {
        kind: SentKind,
        claimed: u16,
        len: u16,
    },
    /// Nothing is, after something was written.
    GiveUp {
        claimed: u16,
    },
    /// The writer is killed after so many stores of a publication, with part of the payload written.
    Die {
        kind: SentKind,
        claimed: u16,
        len: u16,
        written: u16,
        stores: u8,
    },
    /// The same, while it fills the rest of the ring up to its end.
    DiePadding {
        stores: u8,
    },
    Abort,
    DieAborting {
        stores: u8,
    },
    Receive,
    ReceiveSeveral {
        most: u8,
    },
    /// The receiver looks and reads, and is killed before it releases.
    DieReading,
    OtherWriter,
    OtherReader,
}

/// What a sender publishes by its own choice.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum SentKind {
    Data,
    First,
    More,
    End,
}

impl SentKind {
    fn kind(self) -> Kind {
        match self {
            SentKind::Data => Kind::Data,
            SentKind::First => Kind::First,
            SentKind::More => Kind::More,
            SentKind::End => Kind::End,
        }
    }
}

struct Expected {
    kind: Kind,
    number: usize,
    len: usize,
    /// Of padding nobody says what it holds.
    payload: bool,
}

struct Model {
    capacity: usize,
    head: u64,
    /// Behind the last record that a reader can see.
    tail: u64,
    /// What the words say: less than `tail`, or more, after a writer was killed.
    tail_word: u64,
    begun_word: u64,
    records: VecDeque<Expected>,
    sent: usize,
    /// The room that every claim leaves has been used.
    aborted: bool,
    buf: Vec<u8>,
}

thread_local! {
    /// And a buffer for what is received.
    static RINGS: RefCell<([Ring; SIZES], Vec<u8>)> = RefCell::new((
        std::array::from_fn(|i| Ring::new(MIN_CAPACITY << i)),
        vec![0; MIN_CAPACITY << (SIZES - 1)],
    ));
}

fuzz_target!(|input: Input| {
    RINGS.with_borrow_mut(|(rings, buf)| {
        let size = usize::from(input.size) % SIZES;
        let (ring, start) = (&mut rings[size], input.start.cursor());
        ring.reset(start);
        let mut model = Model {
            capacity: MIN_CAPACITY << size,
            head: start,
            tail: start,
            tail_word: start,
            begun_word: start,
            records: VecDeque::new(),
            sent: 0,
            aborted: false,
            buf: std::mem::take(buf),
        };
        for &step in input.steps.iter().take(MAX_STEPS) {
            model.perform(ring, step);
            model.check(ring);
        }
        while !model.records.is_empty() {
            model.receive(ring);
            model.check(ring);
        }
        // Drained, it takes the longest record: at once, or behind padding.
        let longest = ring.max_payload();
        if !model.claim(ring, longest) {
            model.receive(ring);
            assert!(model.claim(ring, longest), "no room in an empty ring");
        }
        model.publish(ring, Kind::Data, longest);
        model.check(ring);
        model.receive_all(ring);
        model.check(ring);
        *buf = model.buf;
    });
});

impl Model {
    fn perform(&mut self, ring: &mut Ring, step: Step) {
        let fitting = |len: u16| usize::from(len) % (ring.max_payload() + 1);
        match step {
            Step::Send { kind, len } => {
                let len = fitting(len);
                if self.claim(ring, len) {
                    self.publish(ring, kind.kind(), len);
                }
            }
            Step::SendLess { kind, claimed, len } => {
                let claimed = fitting(claimed);
                if self.claim(ring, claimed) {
                    self.publish(ring, kind.kind(), usize::from(len) % (claimed + 1));
                }
            }
            Step::GiveUp { claimed } => {
                let claimed = fitting(claimed);
                if self.claim(ring, claimed) {
                    ring.write(message(self.sent + 1, claimed));
                }
            }
            Step::Die { kind, claimed, len, written, stores } => {
                let claimed = fitting(claimed);
                if self.claim(ring, claimed) {
                    let len = usize::from(len) % (claimed + 1);
                    let stores = stores % (STORES + 1);
                    // Whoever got as far as publishing has written everything.
                    let written = if stores == 0 { usize::from(written) % (claimed + 1) } else { len };
                    ring.write(message(self.sent, written));
                    self.die(ring, kind.kind(), len, stores);
                }
            }
            Step::DiePadding { stores } => {
                let rest = self.capacity - self.offset();
                // As `claim_slow` does it, once it has put right what it found.
                let would_pad = rest <= record_len(ring.max_payload()) - HEADER;
                if would_pad && self.begun_word == self.tail_word && self.free() >= rest + SPARE {
                    self.die(ring, Kind::Pad, rest - HEADER, stores % (STORES + 1));
                }
            }
            Step::Abort => {
                if self.free() >= SPARE {
                    ring.abort();
                    self.recovered();
                    self.published(Kind::Abort, 0);
                }
            }
            Step::DieAborting { stores } => {
                if self.free() >= SPARE && self.begun_word == self.tail_word {
                    self.die(ring, Kind::Abort, 0, stores % (STORES + 1));
                }
            }
            Step::Receive => self.receive(ring),
            Step::ReceiveSeveral { most } => (0..most).for_each(|_| self.receive(ring)),
            Step::DieReading => {
                self.look(ring);
                ring.replace_reader();
            }
            Step::OtherWriter => ring.replace_writer(),
            Step::OtherReader => ring.replace_reader(),
        }
    }

    fn offset(&self) -> usize {
        self.tail as usize % self.capacity
    }

    fn used(&self) -> usize {
        self.tail.wrapping_sub(self.head) as usize
    }

    fn free(&self) -> usize {
        self.capacity - self.used()
    }

    /// What a claim does, and what it must say.
    fn claim(&mut self, ring: &mut Ring, len: usize) -> bool {
        let (record, rest) = (record_len(len), self.capacity - self.offset());
        let claimed = ring.claim(len);
        self.recovered();
        if record > rest && self.free() >= rest + SPARE {
            self.published(Kind::Pad, rest - HEADER);
        }
        let fits = record <= self.capacity - self.offset() && self.free() >= record + SPARE;
        assert_eq!(claimed, fits, "room for {len} bytes: {:?}", ring.cursors());
        claimed
    }

    fn publish(&mut self, ring: &mut Ring, kind: Kind, len: usize) {
        ring.write(message(self.sent, len));
        ring.publish(kind, len);
        self.published(kind, len);
    }

    fn die(&mut self, ring: &mut Ring, kind: Kind, len: usize, stores: u8) {
        let before = self.tail;
        ring.die_publishing(kind, len, stores);
        if stores > 2 {
            self.published(kind, len);
        }
        self.begun_word = if stores > 0 { before.wrapping_add(record_len(len) as u64) } else { before };
        self.tail_word = if stores == STORES { self.tail } else { before };
    }

    fn published(&mut self, kind: Kind, len: usize) {
        let payload = !matches!(kind, Kind::Pad | Kind::Abort);
        self.records.push_back(Expected { kind, number: self.sent, len, payload });
        self.sent += usize::from(payload);
        self.aborted = kind == Kind::Abort;
        self.tail = self.tail.wrapping_add(record_len(len) as u64);
        self.recovered();
    }

    /// The next writer has put right what a killed one left.
    fn recovered(&mut self) {
        (self.tail_word, self.begun_word) = (self.tail, self.tail);
    }

    fn look(&mut self, ring: &mut Ring) {
        let expected = self.records.front();
        let front = expected.map_or(Front::Empty, |e| Front::Record { kind: e.kind, len: e.len });
        assert_eq!(ring.front(), front, "{:?}", ring.cursors());
        if let Some(Expected { number, len, payload: true, .. }) = expected {
            let buf = &mut self.buf[..*len];
            ring.read(buf);
            assert!(*buf == *message(*number, *len), "message {number} was damaged");
        }
    }

    fn receive(&mut self, ring: &mut Ring) {
        self.look(ring);
        if let Some(expected) = self.records.pop_front() {
            ring.release();
            self.head = self.head.wrapping_add(record_len(expected.len) as u64);
        }
    }

    fn receive_all(&mut self, ring: &mut Ring) {
        while !self.records.is_empty() {
            self.receive(ring);
        }
        assert_eq!(ring.front(), Front::Empty);
    }

    /// What holds between any two steps.
    fn check(&self, ring: &Ring) {
        let cursors = ring.cursors();
        let Cursors { head, tail, begun, limit } = cursors;
        assert_eq!((head, tail, begun), (self.head, self.tail_word, self.begun_word), "{cursors:?}");
        // I1. Whoever was killed in between has, or has not, passed it on to the next header.
        if self.tail == self.tail_word {
            assert_eq!(ring.header_at(tail), 0, "{cursors:?}");
        } else {
            assert_ne!(ring.header_at(tail), 0, "{cursors:?}");
            assert_eq!(ring.header_at(begun), 0, "{cursors:?}");
        }
        // I2, for what readers can see. An abort may use a header's length of the spare.
        let spare = if self.aborted { SPARE - HEADER } else { SPARE };
        assert!(self.used() <= self.capacity - spare, "{cursors:?}");
        // The writer never believes in room that is not there.
        assert!(limit.wrapping_sub(head) as i64 <= self.capacity as i64, "{cursors:?}");
        assert_eq!(ring.is_empty(), self.records.is_empty());
        let ahead = self.tail_word.wrapping_sub(head) as i64;
        let (written, readable) = ring.fill();
        assert_eq!(readable, Some(ahead.max(0) as usize), "{cursors:?}");
        // Also before the next writer has put right what a killed one left.
        assert_eq!(written, self.used(), "{cursors:?}");
    }
}
