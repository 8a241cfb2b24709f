//! Both sides of a connection by name, against whatever the other one may say: a listener of pipes and one of a queue, to each of which a client says any
//! bytes in any pieces; and a client, to which a listener says any, with descriptors.
//!
//! Each answer is what the bytes call for, which is worked out here anew: an end for who asked well, the right error, or silence. Nobody who says
//! nonsense, or nothing, keeps the next one from being served. No descriptor is left behind.
#![no_main]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::fuzzing::{answered, packed};
use ringpipe::{AcceptError, ConnectError, Connection, Listener, mpmc};
use ringpipe_fuzz::{lowest_free_descriptor, send_with_fds};

const REQUEST: usize = 16;
const ANSWER: usize = 32;
/// What the header of a request, and of an answer, starts with.
const MAGIC: &[u8; 8] = b"ringpipe";
const VERSION: u8 = 1;
/// Answers.
const END: u8 = 0;
const WRONG_VERSION: u8 = 1;
const WRONG_END: u8 = 2;
const NOT_ALLOWED: u8 = 3;
const FAILED: u8 = 4;
/// Kinds of ends.
const CONNECTION: u8 = 3;
const MANY: [u8; 2] = [4, 5];

#[derive(Arbitrary, Debug)]
enum Input {
    ToListener { of_queue: bool, said: Said, closes: bool },
    ToClient { said: Said, frame: Frame, fds: Vec<Fd>, fds_first: bool, closes: bool },
}

/// A header that is right but for some of its fields, or anything.
#[derive(Arbitrary, Debug)]
enum Said {
    Almost {
        magic: bool,
        version: Option<u8>,
        what: u8,
        more: [u8; 6],
        behind: Vec<u8>,
        cut: Option<u8>,
        pieces: Vec<u8>,
    },
    Any {
        bytes: Vec<u8>,
        pieces: Vec<u8>,
    },
}

#[derive(Arbitrary, Debug)]
enum Frame {
    Right,
    Any([u8; 16]),
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Fd {
    /// The one that belongs there.
    Right,
    Null,
    Socket,
}

impl Said {
    /// In pieces, with `frame` behind the header of an answer.
    fn pieces(&self, frame: &[u8]) -> Vec<Vec<u8>> {
        let (mut rest, pieces) = match self {
            Said::Any { bytes, pieces } => (bytes.clone(), pieces),
            Said::Almost { magic, version, what, more, behind, cut, pieces } => {
                let mut bytes = MAGIC.to_vec();
                bytes[0] ^= u8::from(*magic);
                bytes.extend([version.unwrap_or(VERSION), *what]);
                bytes.extend(more);
                bytes.extend(frame);
                bytes.extend(behind);
                bytes.truncate(cut.map_or(bytes.len(), usize::from));
                (bytes, pieces)
            }
        };
        let mut all = Vec::new();
        for &len in pieces {
            let behind = rest.split_off(usize::from(len).min(rest.len()));
            all.push(std::mem::replace(&mut rest, behind));
        }
        all.push(rest);
        all.retain(|piece| !piece.is_empty());
        all
    }
}

struct Listeners {
    pipes: Listener,
    queue: mpmc::Listener,
    dir: PathBuf,
}

fn dir() -> PathBuf {
    std::env::temp_dir().join(format!("ringpipe-fuzz-{}", std::process::id()))
}

extern "C" fn tidy_up() {
    let _ = std::fs::remove_dir_all(dir());
}

static LISTENERS: LazyLock<std::sync::Mutex<Listeners>> = LazyLock::new(|| {
    let dir = dir();
    std::fs::create_dir(&dir).expect("a directory");
    // SAFETY: a function that may run at the end of the process.
    unsafe { libc::atexit(tidy_up) };
    let pipes = Listener::bind(dir.join("pipes")).expect("a listener");
    let queue = mpmc::Listener::bind(dir.join("queue")).expect("a listener");
    Listeners { pipes, queue, dir }.into()
});

fuzz_target!(|input: Input| {
    let mut listeners = LISTENERS.lock().expect("one at a time");
    let free = lowest_free_descriptor();
    match &input {
        Input::ToListener { of_queue, said, closes } => to_listener(&mut listeners, *of_queue, said, *closes),
        Input::ToClient { said, frame, fds, fds_first, closes } => to_client(said, frame, fds, *fds_first, *closes),
    }
    // Who has not said all is let go once it is seen that it is gone.
    for of_queue in [false, true] {
        let served = listeners.accept(of_queue);
        assert!(matches!(served, Err(AcceptError::Empty)), "{served:?}");
    }
    assert_eq!(lowest_free_descriptor(), free, "a descriptor was left behind");
});

impl Listeners {
    /// Serves one client, if there is one to be served.
    fn accept(&mut self, of_queue: bool) -> Result<(), AcceptError> {
        if of_queue { self.queue.try_accept().map(drop) } else { self.pipes.try_accept().map(drop) }
    }

    fn connect(&self, of_queue: bool) -> UnixStream {
        UnixStream::connect(self.dir.join(if of_queue { "queue" } else { "pipes" })).expect("it listens")
    }
}

fn to_listener(listeners: &mut Listeners, of_queue: bool, said: &Said, closes: bool) {
    let mut client = listeners.connect(of_queue);
    let pieces = said.pieces(&[]);
    let bytes = pieces.concat();
    let is_offered = |kind| if of_queue { MANY.contains(&kind) } else { kind == CONNECTION };
    let expected = match bytes.get(..REQUEST) {
        None => None,
        Some(request) if request[..8] != *MAGIC => Some(None),
        Some(request) if request[8] != VERSION => Some(Some(WRONG_VERSION)),
        Some(request) if !is_offered(request[9]) => Some(Some(WRONG_END)),
        Some(_) => Some(Some(END)),
    };
    let mut is_served = false;
    for piece in pieces {
        // A listener that has heard enough may be gone.
        let _ = client.write_all(&piece);
        is_served |= listeners.accept(of_queue).is_ok();
    }
    if closes {
        client.shutdown(Shutdown::Write).expect("a socket");
        is_served |= listeners.accept(of_queue).is_ok();
    }
    assert_eq!(is_served, expected == Some(Some(END)));

    client.set_nonblocking(true).expect("a socket");
    let mut answer = Vec::new();
    let ended = client.read_to_end(&mut answer);
    match expected {
        // It is being waited for, as long as it may say more.
        None => {
            assert!(answer.is_empty());
            assert_eq!(ended.is_ok() || is_reset(&ended), closes, "{ended:?}");
        }
        Some(None) => assert!(answer.is_empty()),
        Some(Some(what)) => {
            assert_eq!(answer.len(), ANSWER);
            assert_eq!(answer[..8], *MAGIC);
            assert_eq!(answer[8..11], [VERSION, what, if of_queue { 2 } else { 1 }]);
        }
    }
    drop(client);

    // Whatever that was, the next one is served.
    let mut next = listeners.connect(of_queue);
    let mut request = [0; REQUEST];
    request[..8].copy_from_slice(MAGIC);
    request[8..10].copy_from_slice(&[VERSION, if of_queue { MANY[0] } else { CONNECTION }]);
    next.write_all(&request).expect("an empty socket");
    let served = listeners.accept(of_queue);
    assert!(served.is_ok(), "{served:?}");
    let mut answer = [0; ANSWER];
    next.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer[9], END);
}

fn is_reset(result: &std::io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
}

fn to_client(said: &Said, frame: &Frame, fds: &[Fd], fds_first: bool, closes: bool) {
    let (_mine, theirs) = ringpipe::pipe().expect("a pipe");
    let (right_frame, right_fds) = packed(&theirs);
    let frame = match frame {
        Frame::Right => right_frame.clone(),
        Frame::Any(frame) => frame.to_vec(),
    };
    let pieces = said.pieces(&frame);
    let bytes = pieces.concat();
    let mut sent: Vec<OwnedFd> = Vec::new();
    for (i, fd) in fds.iter().take(4).enumerate() {
        sent.push(match fd {
            Fd::Right => right_fds[i % right_fds.len()].try_clone().expect("a descriptor"),
            Fd::Null => File::open("/dev/null").expect("it is everywhere").into(),
            Fd::Socket => UnixStream::pair().expect("a socket").0.into(),
        });
    }
    let (listener, client) = UnixStream::pair().expect("a socket");
    let with_fds = if fds_first { 0 } else { pieces.len().saturating_sub(1) };
    for (i, piece) in pieces.iter().enumerate() {
        send_with_fds(&listener, piece, if i == with_fds { &sent } else { &[] });
    }
    drop(sent);
    // Kept, if it may say more.
    let kept = (!closes).then_some(listener);

    let answer = answered::<Connection>(&client.into());
    let number = |bytes: &[u8]| i32::from_le_bytes(bytes[12..16].try_into().expect("four bytes"));
    let is_whole = bytes.len() >= ANSWER;
    match (answer, &bytes[..]) {
        // It may go on.
        (answer, _) if !is_whole && kept.is_some() => assert!(matches!(answer, Ok(None)), "{answer:?}"),
        (answer, []) => assert!(matches!(answer, Ok(None)), "{answer:?}"),
        (answer, bytes) if bytes.len() < REQUEST || bytes[..8] != *MAGIC => {
            assert!(matches!(answer, Err(ConnectError::NotAListener { .. })), "{answer:?}");
        }
        (answer, bytes) if bytes[8] != VERSION || bytes[9] == WRONG_VERSION => {
            assert!(matches!(answer, Err(ConnectError::Version { theirs, .. }) if theirs == bytes[8]), "{answer:?}");
        }
        (answer, bytes) => match bytes[9] {
            END if is_whole => {
                // With bytes behind the answer, they are nobody's.
                let come_in_time = pieces[..with_fds].iter().map(Vec::len).sum::<usize>() < ANSWER;
                let all_right = bytes[REQUEST..ANSWER] == right_frame[..] && fds == [Fd::Right; 3] && come_in_time;
                match answer {
                    Ok(end) => assert!(end.is_some()),
                    Err(ConnectError::Attach(e)) => assert!(!all_right, "refused without need: {e}"),
                    Err(e) => panic!("{e}"),
                }
            }
            WRONG_END => assert!(matches!(answer, Err(ConnectError::WrongEnd { .. })), "{answer:?}"),
            NOT_ALLOWED => assert!(matches!(answer, Err(ConnectError::NotAllowed { .. })), "{answer:?}"),
            FAILED => {
                let code = Some(number(bytes)).filter(|&number| number > 0);
                let told = matches!(&answer, Err(ConnectError::Listener { error, .. }) if error.raw_os_error() == code);
                assert!(told, "{answer:?}");
            }
            _ => assert!(matches!(answer, Err(ConnectError::NotAListener { .. })), "{answer:?}"),
        },
    }
}
