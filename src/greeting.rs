//! What is said before a pipe end is handed out by name, and to whom.
//!
//! The client says what kind of end it wants; the listener answers, with the end if there is one for it:
//!
//! ```text
//! request   "ringpipe"  version  kind  0 0 0 0 0 0
//! answer    "ringpipe"  version  answer  kinds offered  0  number (4 bytes, little endian)  frame (16 bytes, as in handover.rs)
//! ```
//!
//! The first 16 bytes of both keep this form in every version, so that each side can tell the other that they do not fit together.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::deadline::Deadline;
use crate::handover::{self, End};
use crate::sys::{self, names};

pub(crate) const VERSION: u8 = 1;
const MAGIC: [u8; 8] = *b"ringpipe";
const HEAD: usize = 16;
const FRAME: usize = handover::FRAME_LEN;

/// What a listener hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    Connections = 1,
    EndsForMany = 2,
}

impl Offer {
    pub(crate) fn has(self, kind: u8) -> bool {
        use crate::{Connection, mpmc};
        match self {
            Offer::Connections => kind == handover::kind::<Connection>(),
            Offer::EndsForMany => {
                kind == handover::kind::<mpmc::Sender>() || kind == handover::kind::<mpmc::Receiver>()
            }
        }
    }

    fn said(number: u8) -> &'static str {
        match number {
            1 => "connections",
            2 => "senders and receivers for many",
            _ => "something that this build does not know",
        }
    }
}

/// Who is on the other side of a connection by name, as the kernel says it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pid: i32,
    uid: u32,
    gid: u32,
}

impl Peer {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<Peer> {
        let (pid, uid, gid) = names::peer(socket)?;
        Ok(Peer { pid, uid, gid })
    }

    /// The process's number, in this process's namespace; none where it is not to be seen from here (another container). To be shown, or logged: once
    /// the process has ended, the number may become another's.
    pub fn pid(&self) -> Option<u32> {
        u32::try_from(self.pid).ok().filter(|&pid| pid != 0)
    }

    /// Its effective user; 65534, as a rule, for one that this process's user namespace does not know.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its effective group.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether this is the same user, the superuser, or one of `allowed`.
    pub(crate) fn is_trusted(&self, allowed: &[u32]) -> bool {
        self.uid == names::user() || self.uid == 0 || allowed.contains(&self.uid)
    }
}

// --- the client's side ----------------------------------------------------------------------------

pub(crate) const REQUEST_LEN: usize = HEAD;
const ANSWER_LEN: usize = HEAD + FRAME;

pub(crate) fn request<E: End>() -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8] = VERSION;
    bytes[9] = handover::kind::<E>();
    bytes
}

/// What a listener said.
pub(crate) enum Answer {
    /// An end of this frame, with these descriptors.
    End([u8; FRAME], Vec<OwnedFd>),
    /// Its version is another.
    Version(u8),
    /// It hands out something else.
    WrongEnd(&'static str),
    /// It does not serve this user.
    NotAllowed,
    /// It met this error.
    Failed(io::Error),
    /// It spoke of something else altogether.
    Nonsense,
    /// It has closed the socket without an answer.
    Nothing,
    /// It does not say anything.
    Late,
}

const END: u8 = 0;
const WRONG_VERSION: u8 = 1;
const WRONG_END: u8 = 2;
const NOT_ALLOWED: u8 = 3;
const FAILED: u8 = 4;

/// Waits for an answer until `deadline`.
pub(crate) fn await_answer(socket: BorrowedFd<'_>, deadline: Deadline) -> io::Result<Answer> {
    let mut bytes = [0; ANSWER_LEN];
    let (mut got, mut fds) = (0, Vec::new());
    while got < ANSWER_LEN {
        match sys::recv_fds(socket, &mut bytes[got..], false) {
            Ok((0, _)) => break,
            Ok((more, some)) => {
                got += more;
                fds.extend(some);
                // Not even of something that goes on sending descriptors.
                fds.truncate(sys::MAX_FDS);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if deadline.passed() {
                    return Ok(Answer::Late);
                }
                names::wait_readable(socket, deadline);
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break,
            Err(e) => return Err(e),
        }
    }
    if got == 0 {
        return Ok(Answer::Nothing);
    }
    if got < HEAD || bytes[..8] != MAGIC {
        return Ok(Answer::Nonsense);
    }
    let number = i32::from_le_bytes(std::array::from_fn(|i| bytes[12 + i]));
    Ok(match bytes[9] {
        _ if bytes[8] != VERSION => Answer::Version(bytes[8]),
        END if got == ANSWER_LEN => Answer::End(std::array::from_fn(|i| bytes[HEAD + i]), fds),
        WRONG_VERSION => Answer::Version(bytes[8]),
        WRONG_END => Answer::WrongEnd(Offer::said(bytes[10])),
        NOT_ALLOWED => Answer::NotAllowed,
        FAILED if number > 0 => Answer::Failed(io::Error::from_raw_os_error(number)),
        FAILED => Answer::Failed(io::Error::other("it does not say why")),
        _ => Answer::Nonsense,
    })
}

// --- the listener's side --------------------------------------------------------------------------

/// The kind that is wanted by a request, or none if it is none that can be served, which the client is told.
pub(crate) fn kind_wanted(socket: BorrowedFd<'_>, request: &[u8; REQUEST_LEN], offer: Offer) -> Option<u8> {
    if request[..8] != MAGIC {
        // Whoever that is would not understand.
        return None;
    }
    if request[8] != VERSION {
        say(socket, WRONG_VERSION, offer, 0);
        return None;
    }
    if !offer.has(request[9]) {
        say(socket, WRONG_END, offer, 0);
        return None;
    }
    Some(request[9])
}

pub(crate) fn refuse(socket: BorrowedFd<'_>, offer: Offer) {
    say(socket, NOT_ALLOWED, offer, 0);
}

pub(crate) fn fail(socket: BorrowedFd<'_>, offer: Offer, error: &io::Error) {
    say(socket, FAILED, offer, error.raw_os_error().unwrap_or(0));
}

/// Says what is no end. Who does not hear it is gone, or has not the room that every fresh socket has.
fn say(socket: BorrowedFd<'_>, answer: u8, offer: Offer, number: i32) {
    let _ = names::send(socket, &head(answer, offer, number, [0; FRAME]));
}

/// Hands an end out, without waiting. A copy: the end itself stays open.
pub(crate) fn hand_out<E: End>(socket: &OwnedFd, offer: Offer, end: &E) -> io::Result<()> {
    let (frame, fds) = handover::pack(end);
    sys::send_fds(socket.as_fd(), &head(END, offer, 0, frame), &fds, Deadline::NOW)
}

fn head(answer: u8, offer: Offer, number: i32, frame: [u8; FRAME]) -> [u8; ANSWER_LEN] {
    let mut bytes = [0; ANSWER_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..11].copy_from_slice(&[VERSION, answer, offer as u8]);
    bytes[12..HEAD].copy_from_slice(&number.to_le_bytes());
    bytes[HEAD..].copy_from_slice(&frame);
    bytes
}
