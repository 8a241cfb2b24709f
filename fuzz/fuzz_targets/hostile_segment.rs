//! Both ends of a duplex pipe whose shared memory somebody rewrites between any two calls: cursors, seats, headers, payload, holes.
//!
//! Results may be anything; no call may panic, leave the memory it was given, go on for ever, or allocate what the memory says. Run with
//! `-timeout=10 -malloc_limit_mb=64`, which is what notices the last two.
#![no_main]

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::{Builder, Connection, End, Receiver};

const CAPACITY: usize = 4096;
/// The header and both control blocks take a page; the rings follow.
const RINGS_AT: usize = 4096;
const LEN: usize = RINGS_AT + 2 * CAPACITY;
/// Where the words of a direction lie: `tail`, `begun`, `limit`, `head`, and the two seats (32 bits each).
const CONTROLS_AT: [usize; 2] = [256, 1024];
const WORDS: [usize; 6] = [0, 8, 16, 128, 256, 384];
/// The kinds of records, from whole messages to pipe ends, are this and the next five numbers.
const FIRST_KIND: u64 = 0x5250_0001;

const BRIEF: Duration = Duration::from_micros(1);
const MAX_STEPS: usize = 200;

#[derive(Arbitrary, Debug)]
struct Input {
    spin: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Any bytes anywhere.
    Bytes {
        at: u16,
        bytes: Vec<u8>,
    },
    /// A cursor or a seat of a direction.
    Word {
        direction: bool,
        word: u8,
        value: u64,
    },
    /// A cursor, moved a little.
    Nudge {
        direction: bool,
        word: u8,
        by: i8,
    },
    /// A cursor set to another one.
    Copy {
        direction: bool,
        from: u8,
        to: u8,
    },
    /// A record's header where the reader looks, or anywhere in the ring.
    Header {
        direction: bool,
        at: Option<u16>,
        kind: u8,
        len: Len,
    },
    /// The length of a long message, in the first bytes of the payload at the reader's position.
    Total {
        direction: bool,
        total: u64,
    },
    /// A hole in the memory file, which the seals do not forbid.
    Hole {
        page: u8,
        pages: u8,
    },
    Call {
        end: bool,
        call: Call,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Len {
    Short(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Call {
    Send {
        len: u16,
    },
    SendTimeout {
        len: u16,
    },
    SendVectored {
        lens: [u16; 2],
    },
    /// Something is rewritten between the reservation and the commit.
    Reserve {
        len: u16,
        between: Box<Step>,
        commit: bool,
    },
    /// What fits without waiting, that is.
    SendEnd,
    Recv,
    RecvTimeout,
    RecvMax {
        maxlength: u16,
    },
    RecvInto {
        room: u16,
        offset: u8,
        brief: bool,
    },
    /// Something is rewritten between the receive and the copy.
    RecvGuard {
        between: Box<Step>,
    },
    RecvEnd {
        brief: bool,
    },
    Iterate,
    Poll {
        brief: bool,
    },
    AsFd,
    Look,
    /// The end goes over a socket, and what arrives, if it does, is used from then on.
    HandOver,
    Close,
}

fuzz_target!(|input: Input| {
    let spin = if input.spin { BRIEF } else { Duration::ZERO };
    let (a, b) = Builder::new().capacity(CAPACITY).spin(spin).pipe().expect("a pipe");
    let memory = Memory::of_the_only_pipe();
    let mut ends = [Some(a), Some(b)];
    for step in input.steps.into_iter().take(MAX_STEPS) {
        match step {
            Step::Call { end, call } => {
                let end = &mut ends[usize::from(end)];
                if let Some(conn) = end.take() {
                    *end = perform(conn, call, &memory);
                }
            }
            step => memory.rewrite(&step),
        }
    }
});

/// Gives the end back, unless it was closed or lost.
fn perform(mut conn: Connection, call: Call, memory: &Memory) -> Option<Connection> {
    let message = [0x5a_u8; 5 * CAPACITY];
    let message = |len: u16| &message[..usize::from(len) % message.len()];
    match call {
        Call::Send { len } => drop(conn.try_send_bytes(message(len))),
        Call::SendTimeout { len } => drop(conn.send_bytes_timeout(message(len), BRIEF)),
        Call::SendVectored { lens: [first, second] } => {
            drop(conn.try_send_vectored(&[IoSlice::new(message(first)), IoSlice::new(message(second))]));
        }
        Call::Reserve { len, between, commit } => {
            if let Ok(mut slot) = conn.try_reserve(len.into()) {
                slot.write(&message(len)[..usize::from(len) / 2]);
                memory.rewrite(&between);
                slot.write(&message(len)[usize::from(len) / 2..]);
                if commit {
                    drop(slot.commit());
                }
            }
        }
        Call::SendEnd => {
            // Waits for room, if there is none, and nobody makes any.
            if conn.try_reserve(16).is_ok() {
                let (end, _) = Builder::new().capacity(CAPACITY).simplex().expect("a pipe");
                drop(conn.send_end(end));
            }
        }
        Call::Recv => drop(conn.try_recv_bytes()),
        Call::RecvTimeout => drop(conn.recv_bytes_timeout(BRIEF)),
        Call::RecvMax { maxlength } => {
            if let Ok(bytes) = conn.try_recv_bytes_max(maxlength.into()) {
                assert!(bytes.len() <= maxlength.into());
            }
        }
        Call::RecvInto { room, offset, brief } => {
            let mut buf = vec![0; room.into()];
            let (offset, len) = (usize::from(offset), buf.len());
            let result = if brief {
                conn.recv_bytes_into_timeout(&mut buf, offset, BRIEF)
            } else {
                conn.try_recv_bytes_into(&mut buf, offset)
            };
            if let Ok(received) = result {
                assert!(offset + received <= len);
            }
        }
        Call::RecvGuard { between } => {
            if let Ok(guard) = conn.try_recv_guard() {
                memory.rewrite(&between);
                assert_eq!(guard.to_vec().len(), guard.len());
            }
        }
        Call::RecvEnd { brief } => {
            let timeout = if brief { BRIEF } else { Duration::ZERO };
            drop(conn.receiver_mut().recv_end_timeout::<Receiver>(timeout));
        }
        // Bounded: a cursor that was moved can make the same records appear again and again.
        Call::Iterate => conn.try_iter().take(CAPACITY / 8).for_each(drop),
        Call::Poll { brief } => drop(conn.poll(Some(if brief { BRIEF } else { Duration::ZERO }))),
        Call::AsFd => {
            let mut fds = [libc::pollfd { fd: conn.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            // SAFETY: the pointer leads to one `pollfd`.
            unsafe { libc::poll(fds.as_mut_ptr(), 1, 0) };
        }
        Call::Look => {
            assert!(conn.sender().fill() <= CAPACITY && conn.receiver().fill() <= CAPACITY);
            assert!(!format!("{conn:?}").is_empty());
        }
        Call::HandOver => {
            let (here, there) = UnixStream::pair().expect("a socket");
            conn.send_to(&here).expect("an empty socket");
            return Connection::recv_from(&there).ok();
        }
        Call::Close => return None,
    }
    Some(conn)
}

/// The pipe's segment, mapped once more.
struct Memory {
    base: NonNull<u8>,
    fd: RawFd,
}

impl Memory {
    /// Finds it by what the kernel calls it.
    fn of_the_only_pipe() -> Memory {
        let is_segment = |fd: &RawFd| {
            let target = fs::read_link(format!("/proc/self/fd/{fd}"));
            target.is_ok_and(|target| target.as_os_str() == "/memfd:ringpipe (deleted)")
        };
        let entries = fs::read_dir("/proc/self/fd").expect("/proc is mounted");
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let segment = numbers.filter(is_segment).max().expect("a pipe was made");
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // A descriptor of our own, since the ends may be closed while the memory is still rewritten.
        // SAFETY: a new mapping, where the kernel chooses, of an open file that is at least so long.
        let (fd, base) = unsafe {
            let fd = libc::fcntl(segment, libc::F_DUPFD_CLOEXEC, 0);
            (fd, libc::mmap(std::ptr::null_mut(), LEN, access, kind, segment, 0))
        };
        assert!(fd >= 0 && base != libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Memory { base: NonNull::new(base.cast()).expect("a mapping is not at 0"), fd }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= LEN);
        // SAFETY: in bounds, aligned, and mapped as long as `self` lives.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < LEN);
        // SAFETY: in bounds, and mapped as long as `self` lives.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    fn control_word(&self, direction: bool, word: u8) -> &AtomicU64 {
        self.word(CONTROLS_AT[usize::from(direction)] + WORDS[usize::from(word) % WORDS.len()])
    }

    /// Where in the memory a direction's record at `cursor` is.
    fn record(direction: bool, cursor: u64) -> usize {
        RINGS_AT + usize::from(direction) * CAPACITY + ((cursor as usize % CAPACITY) & !7)
    }

    fn rewrite(&self, step: &Step) {
        let head = |direction| self.control_word(direction, 3).load(Ordering::Relaxed);
        match *step {
            Step::Bytes { at, ref bytes } => {
                for (i, &byte) in bytes.iter().enumerate() {
                    self.byte((usize::from(at) + i) % LEN).store(byte, Ordering::Relaxed);
                }
            }
            Step::Word { direction, word, value } => self.control_word(direction, word).store(value, Ordering::Relaxed),
            Step::Nudge { direction, word, by } => {
                self.control_word(direction, word).fetch_add(by as i64 as u64, Ordering::Relaxed);
            }
            Step::Copy { direction, from, to } => {
                let value = self.control_word(direction, from).load(Ordering::Relaxed);
                self.control_word(direction, to).store(value, Ordering::Relaxed);
            }
            Step::Header { direction, at, kind, len } => {
                let at = Memory::record(direction, at.map_or_else(|| head(direction), u64::from));
                let kind = FIRST_KIND + u64::from(kind) % 7;
                let len = match len {
                    Len::Short(len) => u64::from(len),
                    Len::Any(len) => u64::from(len),
                };
                self.word(at).store(kind << 32 | len, Ordering::Relaxed);
            }
            Step::Total { direction, total } => {
                let at = Memory::record(direction, head(direction).wrapping_add(8));
                self.word(at).store(total, Ordering::Relaxed);
            }
            Step::Hole { page, pages } => {
                const PAGE: usize = 4096;
                let at = usize::from(page) % (LEN / PAGE);
                let pages = 1 + usize::from(pages) % (LEN / PAGE - at);
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: our own descriptor, and no pointers. The mappings of a hole read as zeros.
                unsafe { libc::fallocate(self.fd, mode, (at * PAGE) as libc::off_t, (pages * PAGE) as libc::off_t) };
            }
            // Nested in another call: nothing to rewrite.
            Step::Call { .. } => {}
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped with this length and opened by `of_the_only_pipe`, and no reference outlives `self`.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), LEN);
            libc::close(self.fd);
        }
    }
}
