//! Peers that rewrite shared memory and write to the bell, and what an honest side does meanwhile.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arbitrary::Arbitrary;
use ringpipe::fuzzing::{Kind, Memory, Pipe};
use ringpipe::{Batch, Connection, End, Receiver, RecvError, RecvIntoError, SendError, Sender};

/// Of the control block: `tail`, `begun`, `limit`, `head`; and the two seats, of 32 bits.
const CURSORS: [usize; 4] = [0, 8, 16, 128];
const SEATS: [usize; 2] = [256, 384];
const HEADER_LEN: usize = 256;
const CONTROL_LEN: usize = 512;

/// What a hostile peer does to the memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields say it themselves")]
pub enum Rewrite {
    /// Any word of the header, the control block or the ring.
    Word {
        at: u16,
        value: u64,
    },
    Cursor {
        cursor: u8,
        value: u64,
    },
    /// A cursor, moved a little.
    Nudge {
        cursor: u8,
        by: i8,
    },
    /// A cursor, moved by records.
    Step {
        cursor: u8,
        by: i8,
    },
    /// A cursor, moved to a few records before the end of the ring.
    ToTheEnd {
        cursor: u8,
        by: u8,
    },
    /// A cursor set to another one.
    CopyCursor {
        from: u8,
        to: u8,
    },
    Seat {
        seat: bool,
        value: u32,
    },
    /// Bits of a seat that mean something.
    SeatBits {
        seat: bool,
        bits: u8,
    },
    /// A record's header where somebody looks.
    Header {
        at: At,
        kind: u8,
        len: Len,
    },
    /// A header that is somewhere, once more where somebody looks.
    CopyHeader {
        from: At,
        to: At,
    },
    /// A header, with the length of a long message, and more such records behind it.
    Records {
        at: At,
        kind: u8,
        len: u8,
        total: Total,
        count: u8,
    },
    /// The length in the header at the reader's position, with the kind left alone.
    Relabel {
        len: u16,
    },
    /// Zeros, or another byte, all over the ring; or headers of empty records, which lead round and round.
    Fill {
        byte: u8,
    },
}

/// Where a record is written.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "they say it themselves")]
pub enum At {
    Head,
    Tail,
    /// A few bytes before the end of the ring.
    End(u8),
    Anywhere(u16),
}

/// What a record says that it is long.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "they say it themselves")]
pub enum Len {
    Short(u8),
    /// What is left up to the end of the ring, and a little more or less.
    Rest(i8),
    Any(u32),
}

/// How long a long message says that it is.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "they say it themselves")]
pub enum Total {
    Small(u16),
    Any(u64),
}

const KINDS: [Kind; 6] = [Kind::Data, Kind::Pad, Kind::First, Kind::More, Kind::Abort, Kind::End];

fn header(kind: u8, len: u64) -> u64 {
    match KINDS.get(usize::from(kind % 8)) {
        Some(kind) => kind.header(0) | (len & 0xffff_ffff),
        // No kind at all.
        None => u64::from(kind) << 32 | len,
    }
}

impl Rewrite {
    /// Does it.
    pub fn apply(&self, memory: &Memory) {
        let (control, ring, capacity) = (memory.control_at(), memory.ring_at(), memory.capacity());
        let cursor = |i: u8| memory.word(control + CURSORS[usize::from(i) % CURSORS.len()]);
        let seat = |not_full: bool| memory.half(control + SEATS[usize::from(not_full)]);
        let at = |at: At| match at {
            At::Head => cursor(3).load(Ordering::Relaxed) as usize & (capacity - 1) & !7,
            At::Tail => cursor(0).load(Ordering::Relaxed) as usize & (capacity - 1) & !7,
            At::End(by) => capacity - 8 - 8 * usize::from(by % 8),
            At::Anywhere(at) => usize::from(at) & (capacity - 1) & !7,
        };
        let header_at = |at: usize| memory.word(ring + at);
        match *self {
            Rewrite::Word { at, value } => {
                let at = 8 * usize::from(at) % (HEADER_LEN + CONTROL_LEN + capacity);
                let at = if at < HEADER_LEN + CONTROL_LEN { at } else { ring + at - HEADER_LEN - CONTROL_LEN };
                memory.word(at).store(value, Ordering::Relaxed);
            }
            Rewrite::Cursor { cursor: i, value } => cursor(i).store(value, Ordering::Relaxed),
            Rewrite::Nudge { cursor: i, by } => {
                let word = cursor(i);
                word.store(word.load(Ordering::Relaxed).wrapping_add(i64::from(by) as u64), Ordering::Relaxed);
            }
            Rewrite::Step { cursor: i, by } => {
                let word = cursor(i);
                word.store(word.load(Ordering::Relaxed).wrapping_add((64 * i64::from(by)) as u64), Ordering::Relaxed);
            }
            Rewrite::ToTheEnd { cursor: i, by } => {
                let word = cursor(i);
                let lap = word.load(Ordering::Relaxed) & !(capacity as u64 - 1);
                word.store(lap + (capacity - 8 - 8 * usize::from(by % 64)) as u64, Ordering::Relaxed);
            }
            Rewrite::CopyCursor { from, to } => {
                cursor(to).store(cursor(from).load(Ordering::Relaxed), Ordering::Relaxed)
            }
            Rewrite::Seat { seat: which, value } => seat(which).store(value, Ordering::Relaxed),
            Rewrite::SeatBits { seat: which, bits } => {
                let word = seat(which);
                word.store(word.load(Ordering::Relaxed) ^ u32::from(bits & 0xf), Ordering::Relaxed);
            }
            Rewrite::Header { at: place, kind, len } => {
                let at = at(place);
                let len = match len {
                    Len::Short(len) => len.into(),
                    Len::Rest(by) => ((capacity - at - 8) as u64).wrapping_add((8 * i64::from(by)) as u64),
                    Len::Any(len) => len.into(),
                };
                header_at(at).store(header(kind, len), Ordering::Relaxed);
            }
            Rewrite::CopyHeader { from, to } => {
                let word = header_at(at(from)).load(Ordering::Relaxed);
                header_at(at(to)).store(word, Ordering::Relaxed);
            }
            Rewrite::Records { at: place, kind, len, total, count } => {
                let mut at = at(place);
                let total = match total {
                    Total::Small(total) => total.into(),
                    Total::Any(total) => total,
                };
                for i in 0..count % 16 {
                    header_at(at).store(header(if i == 0 { kind } else { 3 }, len.into()), Ordering::Relaxed);
                    if i == 0 {
                        header_at((at + 8) % capacity).store(total, Ordering::Relaxed);
                    }
                    at = (at + 8 + usize::from(len).next_multiple_of(8)) % capacity;
                }
            }
            Rewrite::Relabel { len } => {
                let header = header_at(at(At::Head));
                let old = header.load(Ordering::Relaxed);
                if old != 0 {
                    header.store(old & !0xffff | u64::from(len), Ordering::Relaxed);
                }
            }
            Rewrite::Fill { byte } => {
                let word = match byte {
                    1..=6 => header(byte - 1, 0),
                    _ => u64::from_ne_bytes([byte; 8]),
                };
                (0..capacity / 8).for_each(|i| header_at(8 * i).store(word, Ordering::Relaxed));
            }
        }
    }
}

/// Writes to a bell what its owner would not: any bytes, with copies of a descriptor.
pub fn ring_the_bell(bell: BorrowedFd<'_>, bytes: &[u8], carried: &[BorrowedFd<'_>]) {
    if bytes.is_empty() {
        return;
    }
    // Room for a header and three descriptors, and aligned as a header has to be.
    let mut control = [0_u64; 6];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
    let numbers: Vec<i32> = carried.iter().take(3).map(|fd| fd.as_raw_fd()).collect();
    if !numbers.is_empty() {
        let len = size_of_val(&numbers[..]) as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` has room for CMSG_SPACE of three descriptors (a header of 16 bytes and 12, padded), and is aligned.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(len) as _;
            assert!(message.msg_controllen <= size_of_val(&control));
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), libc::CMSG_DATA(header).cast(), numbers.len());
        }
    }
    // SAFETY: all pointers in the message lead to locals that outlive the call. A full or dead socket is fine.
    unsafe { libc::sendmsg(bell.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
}

// --- the honest sides -----------------------------------------------------------------------------------

/// The most bytes of a message.
const MAX_MESSAGE: usize = 40_000;

/// Something to do with a sender.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "named after the methods")]
pub enum SenderCall {
    TrySend {
        len: u16,
    },
    SendTimeout {
        len: u16,
    },
    SendZero {
        len: u16,
    },
    TrySendVectored {
        lens: [u16; 2],
    },
    TrySendBatch {
        count: u8,
        len: u16,
    },
    /// Something is rewritten between the reservation and the commit.
    Reserve {
        len: u16,
        between: Rewrite,
        commit: bool,
    },
    ReserveTimeout {
        len: u16,
    },
    SendEnd,
    Look,
    HandOver,
}

/// Something to do with a receiver.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "named after the methods")]
pub enum ReceiverCall {
    TryRecv,
    RecvTimeout,
    TryRecvBatch,
    RecvBatchTimeout,
    RecvMax {
        maxlength: u16,
    },
    TryRecvInto {
        room: u16,
        offset: u8,
    },
    RecvIntoTimeout {
        room: u16,
        offset: u8,
    },
    /// Something is rewritten between the receive and the copy.
    Guard {
        between: Rewrite,
    },
    GuardTimeout,
    TryRecvEnd,
    RecvEndTimeout,
    RecvValue,
    Iterate {
        most: u8,
    },
    TryPoll,
    PollTimeout,
    AsFd,
    Look,
    HandOver,
}

/// Where the ends come from that are sent over a pipe.
pub struct Spare {
    pipe: Pipe,
    left: u8,
}

impl Spare {
    /// One pipe, whose ends are enough for each execution.
    pub fn new() -> Spare {
        Spare { pipe: Pipe::new(4096, Duration::ZERO), left: 0 }
    }

    /// For another execution.
    pub fn reset(&mut self) {
        self.left = 2;
    }
}

impl Default for Spare {
    fn default() -> Spare {
        Spare::new()
    }
}

impl SenderCall {
    /// Makes the call, with a time-out where it takes one. `None` if the end is of no use any more.
    pub fn perform(self, mut end: Sender, timeout: Duration, memory: &Memory, spare: &mut Spare) -> Option<Sender> {
        let message = |len: u16| crate::message(7, usize::from(len) % MAX_MESSAGE);
        let mut result = Ok(());
        match self {
            SenderCall::TrySend { len } => result = end.try_send_bytes(message(len)),
            SenderCall::SendTimeout { len } => result = end.send_bytes_timeout(message(len), timeout),
            SenderCall::SendZero { len } => result = end.send_bytes_timeout(message(len), Duration::ZERO),
            SenderCall::TrySendVectored { lens: [first, second] } => {
                result = end.try_send_vectored(&[IoSlice::new(message(first)), IoSlice::new(message(second))]);
            }
            SenderCall::TrySendBatch { count, len } => {
                let messages = vec![message(len); count.into()];
                match end.try_send_batch(&messages) {
                    Ok(sent) => assert!(sent <= messages.len() && (sent > 0 || messages.is_empty())),
                    Err(e) => result = Err(e),
                }
            }
            SenderCall::Reserve { len, between, commit } => {
                if let Ok(mut slot) = end.try_reserve(len.into()) {
                    let (first, rest) = message(len).split_at(usize::from(len) / 2);
                    slot.write(first);
                    between.apply(memory);
                    slot.write(rest);
                    if commit {
                        result = slot.commit();
                    }
                }
            }
            SenderCall::ReserveTimeout { len } => {
                let max = end.max_reserve();
                match end.reserve_timeout(len.into(), timeout) {
                    Ok(mut slot) => {
                        assert!(usize::from(len) <= max);
                        slot.write(message(len));
                        result = slot.commit();
                    }
                    Err(e) => result = Err(e),
                }
            }
            SenderCall::SendEnd => {
                if spare.left > 0 {
                    spare.left -= 1;
                    let (receiver, _) = spare.pipe.ends(0);
                    result = end.send_end_timeout(receiver, timeout).map_err(|e| e.error.into());
                }
            }
            SenderCall::Look => {
                assert!(end.fill() <= end.capacity());
                assert!(!format!("{end:?}").is_empty());
            }
            SenderCall::HandOver => return handed_over(end),
        }
        // What happened to it can be anything, but must be said in words.
        if let Err(e) = result {
            assert!(!matches!(e, SendError::Encode(_)) && !e.to_string().is_empty());
        }
        Some(end)
    }
}

impl ReceiverCall {
    /// Makes the call, with a time-out where it takes one. `None` if the end is of no use any more.
    pub fn perform(self, mut end: Receiver, timeout: Duration, memory: &Memory) -> Option<Receiver> {
        match self {
            ReceiverCall::TryRecv => drop(end.try_recv_bytes()),
            ReceiverCall::RecvTimeout => drop(end.recv_bytes_timeout(timeout)),
            ReceiverCall::TryRecvBatch => receive_batch(|batch| end.try_recv_batch(batch)),
            ReceiverCall::RecvBatchTimeout => receive_batch(|batch| end.recv_batch_timeout(batch, timeout)),
            ReceiverCall::RecvMax { maxlength } => match end.recv_bytes_max_timeout(maxlength.into(), timeout) {
                Ok(bytes) => assert!(bytes.len() <= maxlength.into()),
                Err(RecvError::TooLong { len, max }) => {
                    assert!(max == usize::from(maxlength) && len > u64::from(maxlength));
                    assert!(matches!(end.try_recv_bytes(), Err(RecvError::Ended)));
                }
                Err(_) => {}
            },
            ReceiverCall::TryRecvInto { room, offset } => receive_into(&mut end, room, offset, None),
            ReceiverCall::RecvIntoTimeout { room, offset } => receive_into(&mut end, room, offset, Some(timeout)),
            ReceiverCall::Guard { between } => {
                if let Ok(guard) = end.try_recv_guard() {
                    between.apply(memory);
                    assert_eq!(guard.to_vec().len(), guard.len());
                }
            }
            ReceiverCall::GuardTimeout => {
                if let Ok(guard) = end.recv_guard_timeout(timeout) {
                    assert_eq!(guard.to_vec().len(), guard.len());
                }
            }
            ReceiverCall::TryRecvEnd => {
                drop(end.try_recv_end::<Receiver>());
            }
            ReceiverCall::RecvEndTimeout => drop(end.recv_end_timeout::<Connection>(timeout)),
            ReceiverCall::RecvValue => drop(end.try_recv::<(String, Vec<u32>)>()),
            // Bounded: a cursor that was moved can make the same records appear again and again.
            ReceiverCall::Iterate { most } => end.try_iter().take(most.into()).for_each(drop),
            ReceiverCall::TryPoll => drop(end.poll(Some(Duration::ZERO))),
            ReceiverCall::PollTimeout => drop(end.poll(Some(timeout))),
            ReceiverCall::AsFd => {
                let mut fds = [libc::pollfd { fd: end.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 }];
                // SAFETY: the pointer leads to one `pollfd`.
                unsafe { libc::poll(fds.as_mut_ptr(), 1, 0) };
            }
            ReceiverCall::Look => {
                assert!(end.fill() <= end.capacity());
                assert!(!format!("{end:?}").is_empty());
            }
            ReceiverCall::HandOver => return handed_over(end),
        }
        Some(end)
    }
}

/// A batch has at least one message, or is empty after an error; and bounds.
fn receive_batch(receive: impl FnOnce(&mut Batch) -> Result<(), RecvError>) {
    let mut batch = Batch::new();
    let received = receive(&mut batch).is_ok();
    assert_eq!(batch.is_empty(), !received);
    let bytes: usize = batch.iter().map(<[u8]>::len).sum();
    assert!(batch.len() == 1 || batch.len() <= 1024 && bytes <= 32 << 10, "{} messages of {bytes} bytes", batch.len());
}

#[inline(never)]
fn receive_into(end: &mut Receiver, room: u16, offset: u8, timeout: Option<Duration>) {
    let room = usize::from(room) % 5000;
    let (mut buf, offset) = (vec![0xa5_u8; room], usize::from(offset));
    let result = match timeout {
        None => end.try_recv_bytes_into(&mut buf, offset),
        Some(timeout) => end.recv_bytes_into_timeout(&mut buf, offset, timeout),
    };
    match result {
        Ok(len) => {
            assert!(offset + len <= room);
            assert!(buf[..offset].iter().all(|&byte| byte == 0xa5), "written before the offset");
        }
        Err(RecvIntoError::TooShort(e)) => assert!(e.message.len() > e.room),
        Err(RecvIntoError::BadOffset { .. }) => assert!(offset > room),
        Err(_) => {}
    }
}

/// The end goes over a socket, and what arrives, if it does, is used from then on.
fn handed_over<E: End>(end: E) -> Option<E> {
    let (here, there) = UnixStream::pair().expect("a socket");
    end.send_to(&here).expect("an empty socket");

    E::recv_from(&there).ok()
}
