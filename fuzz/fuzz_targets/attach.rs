//! Attaching to whatever a hostile process may send over a Unix socket: any frame, any descriptors, memory files with any length, seals
//! and contents. Also the same descriptors named by an environment variable of any content.
//!
//! The answer is an error or an end that can be used: no panic, no crash, no call that goes on for ever. An end is had only from memory whose
//! size cannot change and whose header says what it is; what is right all over is never refused; and either way no descriptor is left
//! behind.
#![no_main]

use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::{AttachError, Connection, End, Receiver, RecvIntoError, Sender};
use ringpipe_fuzz::{Allocated, lowest_free_descriptor, send_with_fds};

const MAX_FDS: usize = ringpipe_fuzz::MAX_FDS;
/// No memory file chooses more than the messages used here take.
const MAX_ALLOCATION: usize = 1 << 20;
const VARIABLE: &str = "FUZZED_PIPE";
/// The header and the control blocks take a page.
const RINGS_AT: u64 = 4096;
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

#[derive(Arbitrary, Debug)]
struct Input {
    wanted: Kind,
    frame: Frame,
    fds: Vec<Fd>,
    segment: Segment,
    /// What follows the frame on the socket, or the whole of the variable.
    more: Vec<u8>,
    /// Bytes and descriptors do not come in one piece.
    split: Option<u8>,
    by: Transport,
    uses: Vec<Use>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Transport {
    Socket,
    /// A variable as `inherit` would make it of the frame.
    Variable,
    /// A variable that holds `more`.
    AnyVariable,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Kind {
    Sender,
    Receiver,
    Connection,
}

#[derive(Arbitrary, Debug)]
enum Frame {
    /// Right but for the fields given.
    Almost {
        magic: bool,
        version: Option<u8>,
        kind: Option<u8>,
        direction: u8,
        fds: Option<u8>,
        rest: u8,
    },
    Any(Vec<u8>),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Fd {
    Segment,
    ReadOnlySegment,
    Bell {
        peer: Peer,
    },
    /// A Unix stream socket that is not connected.
    Listening,
    Datagram,
    Tcp,
    Udp,
    Null,
    Pipe,
}

/// The other end of a bell.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Peer {
    Closed,
    Open,
    /// Has sent a few bytes.
    Ringing(u8),
    Nonblocking,
}

#[derive(Arbitrary, Debug)]
struct Segment {
    magic: bool,
    version: Option<u32>,
    mode: Option<u32>,
    capacity: Capacity,
    directions: u8,
    spin: u32,
    /// What its header says, or something else.
    len: Option<Len>,
    seals: Option<u8>,
    writes: Vec<(u16, Vec<u8>)>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Capacity {
    Power(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Len {
    Short(u16),
    Any(u64),
    Off(i8),
}

#[derive(Arbitrary, Debug)]
enum Use {
    Send { len: u16 },
    Reserve { len: u16 },
    Recv,
    RecvInto { room: u16 },
    RecvEnd,
    Poll,
    HandOver,
}

fuzz_target!(|input: Input| {
    let Some(segment) = input.segment.make() else {
        return;
    };
    let judged = Judged::of(&segment);
    let free = lowest_free_descriptor();
    Allocated::reset();
    // Kept until the end: the other sides of sockets.
    let mut peers: Vec<OwnedFd> = Vec::new();
    let fds: Vec<OwnedFd> = input.fds.iter().take(MAX_FDS).map(|fd| fd.make(&segment, &mut peers)).collect();
    match input.wanted {
        Kind::Sender => {
            let end = attach::<Sender>(&input, fds);
            judged.check(&input, end.as_ref().map(Sender::capacity));
            if let Ok(mut end) = end {
                input.uses.iter().for_each(|u| use_sender(&mut end, u));
            }
        }
        Kind::Receiver => {
            let end = attach::<Receiver>(&input, fds);
            judged.check(&input, end.as_ref().map(Receiver::capacity));
            if let Ok(mut end) = end {
                input.uses.iter().for_each(|u| use_receiver(&mut end, u));
            }
        }
        Kind::Connection => {
            let end = attach::<Connection>(&input, fds);
            judged.check(&input, end.as_ref().map(|end| end.sender().capacity()));
            let mut end = end.ok();
            for u in &input.uses {
                let Some(mut conn) = end.take() else {
                    break;
                };
                if let Use::HandOver = u {
                    let (here, there) = UnixStream::pair().expect("a socket");
                    conn.send_to(&here).expect("an empty socket");
                    end = Connection::recv_from(&there).ok();
                    continue;
                }
                use_sender(conn.sender_mut(), u);
                use_receiver(conn.receiver_mut(), u);
                end = Some(conn);
            }
        }
    }
    drop(peers);
    let largest = Allocated::so_far().largest;
    assert!(largest <= MAX_ALLOCATION, "{largest} bytes were allocated in one piece");
    assert_eq!(lowest_free_descriptor(), free, "a descriptor was left behind");
});

/// What the memory file is, as the kernel and its header say just before it is handed over.
struct Judged {
    sealed: bool,
    header_is_right: bool,
    capacity: u64,
    directions: u32,
}

impl Judged {
    fn of(segment: &File) -> Judged {
        let mut header = [0; 32];
        let whole = segment.read_exact_at(&mut header, 0).is_ok();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let capacity = u64::from(word(16)) | u64::from(word(20)) << 32;
        let directions = word(24);
        let len = segment.metadata().expect("our own file").len();
        let fitting =
            capacity.checked_mul(directions.into()).and_then(|rings| rings.checked_add(RINGS_AT)) == Some(len);
        let sensible =
            capacity.is_power_of_two() && (4096..=1 << 30).contains(&capacity) && (1..=2).contains(&directions);
        let ours = header[..8] == *b"ringpipe" && word(8) == 1 && word(12) == 1;
        // SAFETY: an open descriptor, and no pointers.
        let seals = unsafe { libc::fcntl(segment.as_raw_fd(), libc::F_GET_SEALS) };
        let sealed = seals >= 0 && seals & SEALS == SEALS;
        Judged { sealed, header_is_right: whole && ours && sensible && fitting, capacity, directions }
    }

    /// Compares what came of the hand-over with what may come.
    fn check(&self, input: &Input, attached: Result<usize, &AttachError>) {
        match attached {
            Ok(capacity) => {
                assert!(self.sealed, "attached to memory whose size can change");
                assert!(self.header_is_right, "attached to memory that is not what it has to be");
                assert_eq!(capacity as u64, self.capacity);
            }
            Err(e) => {
                assert!(!e.to_string().is_empty());
                assert!(!self.is_all_right(input), "refused without need: {e}");
            }
        }
    }

    /// Whether this is just what an honest peer would have sent.
    fn is_all_right(&self, input: &Input) -> bool {
        let Frame::Almost { magic: false, version, kind, direction, fds, .. } = input.frame else {
            return false;
        };
        let bells = match input.wanted {
            Kind::Sender | Kind::Receiver => 1,
            Kind::Connection => 2,
        };
        let (number, count) = input.wanted.in_a_frame();
        let frame_is_right = version.is_none_or(|v| v == 1)
            && kind.is_none_or(|k| k == number)
            && fds.is_none_or(|fds| fds == count)
            && u32::from(direction) < self.directions
            && (bells == 1 || self.directions == 2);
        let fds_are_right = matches!(input.fds.first(), Some(Fd::Segment))
            && input.fds.len() == bells + 1
            && input.fds[1..].iter().all(|fd| matches!(fd, Fd::Bell { .. }));
        let in_one_piece = matches!(input.by, Transport::Socket) && input.split.is_none_or(|at| at > 0);
        // What the kernel does not let us write to is rightly refused.
        let writable = input.segment.seals.is_none();
        // Too large to be mapped, perhaps.
        let modest = self.capacity <= 1 << 24;
        self.sealed && self.header_is_right && frame_is_right && fds_are_right && in_one_piece && writable && modest
    }
}

fn attach<E: End>(input: &Input, fds: Vec<OwnedFd>) -> Result<E, AttachError> {
    let frame = input.frame.bytes(input.wanted);
    match input.by {
        Transport::Socket => {
            let (here, there) = UnixStream::pair().expect("a socket");
            let at = input.split.map_or(frame.len(), |at| usize::from(at).min(frame.len()));
            let (first, rest) = frame.split_at(at);
            send_with_fds(&here, first, &fds);
            (&here).write_all(rest).expect("an empty socket");
            (&here).write_all(&input.more).expect("a nearly empty socket");
            drop((here, fds));
            E::recv_from(&there)
        }
        Transport::Variable | Transport::AnyVariable => {
            let inode =
                |fd: &OwnedFd| File::from(fd.try_clone().expect("a descriptor")).metadata().map_or(0, |m| m.ino());
            let numbers: Vec<String> = fds.iter().map(|fd| format!("{}={}", fd.as_raw_fd(), inode(fd))).collect();
            let field = |at: usize| frame.get(at).copied().unwrap_or(0);
            let value = match input.by {
                Transport::Variable => {
                    format!("{}:{}:{}:{}", field(8), field(9), field(10), numbers.join(","))
                }
                _ => String::from_utf8_lossy(&input.more).replace('\0', " "),
            };
            // As in a child: inherited, and nobody's yet.
            let numbers: Vec<RawFd> = fds.into_iter().map(leave_open_for_children).collect();
            // SAFETY: no other thread of the fuzzer reads or writes the environment.
            unsafe { std::env::set_var(VARIABLE, value) };
            let end = E::from_env(VARIABLE);
            for &fd in &numbers {
                // What was not adopted is still marked as inherited, and ours to close.
                // SAFETY: no pointers; on a closed descriptor the call fails.
                let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
                if flags == 0 {
                    // SAFETY: open, and owned by nobody else.
                    drop(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
            end
        }
    }
}

/// Takes the descriptor out of Rust's hands, with close-on-exec off.
fn leave_open_for_children(fd: OwnedFd) -> RawFd {
    use std::os::fd::IntoRawFd;
    let fd = fd.into_raw_fd();
    // SAFETY: an open descriptor, and no pointers.
    unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    fd
}

// --- using what came ---------------------------------------------------------------------------------

fn use_sender(end: &mut Sender, u: &Use) {
    match *u {
        Use::Send { len } => drop(end.try_send_bytes(&vec![1; len.into()])),
        Use::Reserve { len } => {
            if let Ok(mut slot) = end.try_reserve(len.into()) {
                slot.write(&vec![2; len.into()]);
                drop(slot.commit());
            }
        }
        _ => assert!(end.fill() <= end.capacity() && !format!("{end:?}").is_empty()),
    }
}

fn use_receiver(end: &mut Receiver, u: &Use) {
    match *u {
        Use::Recv => drop(end.try_recv_bytes()),
        Use::RecvInto { room } => {
            let mut buf = vec![0; room.into()];
            match end.try_recv_bytes_into(&mut buf, 0) {
                Ok(len) => assert!(len <= room.into()),
                Err(RecvIntoError::TooShort(e)) => assert!(e.message.len() > room.into()),
                Err(_) => {}
            }
        }
        Use::RecvEnd => drop(end.recv_end_timeout::<Connection>(Duration::ZERO)),
        Use::Poll => drop(end.poll(Some(Duration::ZERO))),
        _ => assert!(end.fill() <= end.capacity() && !format!("{end:?}").is_empty()),
    }
}

// --- making what is sent -----------------------------------------------------------------------------

impl Kind {
    /// Its number, and how many descriptors it takes.
    fn in_a_frame(self) -> (u8, u8) {
        match self {
            Kind::Sender => (1, 2),
            Kind::Receiver => (2, 2),
            Kind::Connection => (3, 3),
        }
    }
}

impl Frame {
    fn bytes(&self, wanted: Kind) -> Vec<u8> {
        match self {
            Frame::Any(bytes) => bytes.clone(),
            &Frame::Almost { magic, version, kind, direction, fds, rest } => {
                let (number, count) = wanted.in_a_frame();
                let mut bytes = if magic { b"RINGPIPE".to_vec() } else { b"ringpipe".to_vec() };
                bytes.extend([version.unwrap_or(1), kind.unwrap_or(number), direction, fds.unwrap_or(count)]);
                bytes.extend([rest; 4]);
                bytes
            }
        }
    }
}

impl Segment {
    /// `None` where the kernel refuses such a file.
    fn make(&self) -> Option<File> {
        let capacity = match self.capacity {
            Capacity::Power(shift) => 1 << (12 + shift % 20),
            Capacity::Any(bytes) => bytes,
        };
        let said = capacity.wrapping_mul(self.directions.into()).wrapping_add(RINGS_AT);
        let len = match self.len {
            None => said,
            Some(Len::Short(len)) => len.into(),
            Some(Len::Any(len)) => len,
            Some(Len::Off(by)) => said.wrapping_add(by as i64 as u64),
        };
        // SAFETY: the name is a C string; a descriptor just made is owned by nobody.
        let file = unsafe {
            let fd = libc::memfd_create(c"fuzzed".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            File::from_raw_fd(fd)
        };
        file.set_len(len).ok()?;
        let mut header = Vec::new();
        header.extend(if self.magic { *b"RINGPIPE" } else { *b"ringpipe" });
        header.extend(self.version.unwrap_or(1).to_le_bytes());
        header.extend(self.mode.unwrap_or(1).to_le_bytes());
        header.extend(capacity.to_le_bytes());
        header.extend(u32::from(self.directions).to_le_bytes());
        header.extend(self.spin.to_le_bytes());
        let write = |at: u64, bytes: &[u8]| {
            let room = len.saturating_sub(at).min(bytes.len() as u64);
            file.write_all_at(&bytes[..room as usize], at).expect("within the file");
        };
        write(0, &header);
        for (at, bytes) in &self.writes {
            write((*at).into(), bytes);
        }
        let seals = self.seals.map_or(SEALS, |seals| i32::from(seals) & 0x1f);
        // SAFETY: an open descriptor, and no pointers. Where a combination is refused, the file stays unsealed.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        Some(file)
    }
}

impl Fd {
    fn make(self, segment: &File, peers: &mut Vec<OwnedFd>) -> OwnedFd {
        match self {
            Fd::Segment => segment.try_clone().expect("a descriptor").into(),
            Fd::ReadOnlySegment => {
                File::open(format!("/proc/self/fd/{}", segment.as_raw_fd())).expect("our own file").into()
            }
            Fd::Bell { peer } => {
                let (here, there) = UnixStream::pair().expect("a socket");
                match peer {
                    Peer::Closed => drop(there),
                    Peer::Open => peers.push(there.into()),
                    Peer::Ringing(byte) => {
                        (&there).write_all(&[byte; 3]).expect("an empty socket");
                        peers.push(there.into());
                    }
                    Peer::Nonblocking => {
                        here.set_nonblocking(true).expect("a socket");
                        peers.push(there.into());
                    }
                }
                here.into()
            }
            // SAFETY: a descriptor just made is owned by nobody.
            Fd::Listening => unsafe {
                let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
                assert!(fd >= 0, "{}", io::Error::last_os_error());
                // Without an address the kernel picks an abstract one, which nobody knows.
                let address = libc::sockaddr { sa_family: libc::AF_UNIX as u16, sa_data: [0; 14] };
                libc::bind(fd, &address, size_of::<libc::sa_family_t>() as libc::socklen_t);
                libc::listen(fd, 1);
                OwnedFd::from_raw_fd(fd)
            },
            Fd::Datagram => UnixDatagram::unbound().expect("a socket").into(),
            Fd::Tcp => TcpListener::bind("127.0.0.1:0").map_or_else(|_| null(), OwnedFd::from),
            Fd::Udp => UdpSocket::bind("127.0.0.1:0").map_or_else(|_| null(), OwnedFd::from),
            Fd::Null => null(),
            Fd::Pipe => {
                let mut fds = [0; 2];
                // SAFETY: the array has room for both descriptors, which nobody else owns.
                let [reading, writing] = unsafe {
                    assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0, "{}", io::Error::last_os_error());
                    fds.map(|fd| OwnedFd::from_raw_fd(fd))
                };
                peers.push(writing);
                reading
            }
        }
    }
}

fn null() -> OwnedFd {
    File::open("/dev/null").expect("it is everywhere").into()
}
