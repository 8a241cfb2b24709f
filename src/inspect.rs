//! Looking at pipes from outside: how full they are, how far both sides have got, who waits.
//!
//! For tools such as `ringpipe top`. A pipe is found as its memory file among the descriptors of a process that has an end of it
//! (`/proc/PID/fd`, which only processes of the same user, and of the superuser, can open):
//!
//! ```
//! use ringpipe::inspect::{Pipe, is_pipe};
//!
//! let (_receiver, mut sender) = ringpipe::simplex()?;
//! sender.send_bytes(b"hello")?;
//! let mut pipes = Vec::new();
//! for entry in std::fs::read_dir("/proc/self/fd")? {
//!     let path = entry?.path();
//!     if std::fs::read_link(&path).is_ok_and(|link| is_pipe(&link)) {
//!         pipes.push(Pipe::open(&path)?);
//!     }
//! }
//! let waiting = |pipe: &Pipe| pipe.look().unwrap().directions[0].messages;
//! assert!(pipes.iter().any(|pipe| waiting(pipe) == Some(1)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it costs, and what it does not touch
//!
//! Senders and receivers do nothing for it: what is read are the cursors and the words that the pipe itself needs. They are read as one reads a file, into memory of
//! one's own, and nothing is mapped or written, so that a pipe cannot be disturbed, and what a hostile one holds cannot do harm. Whoever looks takes part in nothing: to have a
//! [`Pipe`] open delays no end of file, and wakes nobody. A look makes some system calls, some ten thousand at most, where very many short messages wait.
//!
//! # What can be told
//!
//! Pipes that the feature `posix-shm` made in `/dev/shm` are not found. There is no count of messages. How many *wait* is counted by walking from one to the next; how many have gone through can be estimated from the bytes, by the
//! mean size of the messages that were last in the ring ([`Direction::mean`]). All figures are of a moment, each of its own.

use std::ffi::{CString, OsString};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::AttachError;
use crate::layout::{CELL, Control, Geometry, ManyControl, Mode, RINGS_AT, ReaderWords, Seat, TailWords, WriterWords};
use crate::ring::mpmc::{Owner, Seen, see};
use crate::ring::{HEADER, Kind, record_len};
use crate::segment::{self, ANONYMOUS};
use crate::{bell, crowd, name, registry, sys};

/// The longest name of a memory file.
const MAX_LABEL: usize = 249;

/// Records that are visited to count what waits, and to learn how large messages are.
const COUNTED: usize = 4096;
const SAMPLED: usize = 256;
/// Words of a ring for many that are read at most: the cells of 16 MiB.
const WORDS: u64 = 1 << 18;
/// And beyond what writers say is the last.
const AHEAD: u64 = 1 << 10;

/// The name of the memory files of a listener's pipes: who made them, and where the listener's name lies, cut at the front if that is too long.
pub(crate) fn label(listener: &Path) -> CString {
    let mut label = ANONYMOUS.to_bytes().to_vec();
    label.extend(format!(":{}:", std::process::id()).bytes());
    let path = listener.as_os_str().as_bytes();
    let end = &path[path.len().saturating_sub(MAX_LABEL - label.len())..];
    // What is cut does not look whole.
    let is_cut = end.len() < path.len();
    label.extend(end.strip_prefix(b"/").filter(|_| is_cut).unwrap_or(end));
    CString::new(label).expect("paths have no zero bytes")
}

/// Whether that is what `/proc/PID/fd/N` leads to if it is a pipe's memory file.
pub fn is_pipe(link: &Path) -> bool {
    let name = link.as_os_str().as_bytes().strip_prefix(b"/memfd:").and_then(|name| name.strip_suffix(b" (deleted)"));
    name.and_then(|name| name.strip_prefix(ANONYMOUS.to_bytes())).is_some_and(|rest| matches!(rest, [] | [b':', ..]))
}

/// The directory in which this user's bare names lie: see [`Listener`](crate::Listener). `None` where there is none yet, or it cannot be used.
pub fn directory() -> Option<PathBuf> {
    Some(name::own_dir(false).ok()?.1)
}

/// What a pipe was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flavor {
    /// One sender and one receiver for each direction: [`pipe`](crate::pipe), [`simplex`](crate::simplex), [`Listener`](crate::Listener).
    Pipe,
    /// Many of each: [`mpmc`](crate::mpmc).
    Queue,
}

/// A pipe to be looked at.
#[derive(Debug)]
pub struct Pipe {
    memory: OwnedFd,
    geometry: Geometry,
    name: Option<PathBuf>,
    maker: Option<u32>,
    id: u64,
}

impl Pipe {
    /// Opens a pipe by a link of a process that has an end of it, such as `/proc/123/fd/4`. Nothing else is opened in its place.
    ///
    /// # Errors
    ///
    /// [`AttachError::Io`] if it is no longer there, is no memory file or belongs to another user; the others if it is no pipe of this version of the crate.
    pub fn open(link: impl AsRef<Path>) -> Result<Pipe, AttachError> {
        let (memory, label) = sys::open_memfd(link.as_ref())?;
        let geometry = match segment::check(memory.as_fd(), Mode::Spsc) {
            Err(AttachError::Mode { .. }) => segment::check(memory.as_fd(), Mode::Mpmc)?,
            geometry => geometry?,
        };
        let id = sys::identity(memory.as_fd())?;
        let mut parts = label.splitn(3, |&byte| byte == b':').skip(1);
        let maker = parts.next().and_then(|pid| std::str::from_utf8(pid).ok()?.parse().ok());
        let name = parts.next().map(|path| OsString::from_vec(path.to_vec()).into());
        Ok(Pipe { memory, geometry, name, maker, id })
    }

    /// What it was made for.
    pub fn flavor(&self) -> Flavor {
        match self.geometry.mode {
            Mode::Spsc => Flavor::Pipe,
            Mode::Mpmc => Flavor::Queue,
        }
    }

    /// The path of the name of the listener that made it, or `None` for a pipe that no listener made. Of a path longer than some 230 bytes, only the end, which does not start
    /// with a `/`. It is what the process that made the pipe says, and stays when the listener is gone.
    pub fn name(&self) -> Option<&Path> {
        self.name.as_deref()
    }

    /// The process that made it, where it has a [`name`](Self::name): its number in its own namespace. It may be gone.
    pub fn maker(&self) -> Option<u32> {
        self.maker
    }

    /// What tells it from all other pipes on this machine, as long as it exists: the number of its memory file.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Bytes of the ring of each direction.
    pub fn capacity(&self) -> usize {
        self.geometry.capacity
    }

    /// Looks.
    ///
    /// # Errors
    ///
    /// Those of reading a file.
    pub fn look(&self) -> io::Result<Snapshot> {
        let mut control = [0; RINGS_AT];
        self.read(&mut control, 0)?;
        let control = Words(&control);
        match self.geometry.mode {
            Mode::Spsc => {
                let directions = (0..self.geometry.directions).map(|direction| self.look_at(&control, direction));
                Ok(Snapshot { directions: directions.collect::<io::Result<_>>()?, members: None, dead: Vec::new() })
            }
            Mode::Mpmc => self.look_at_many(&control),
        }
    }

    fn look_at(&self, control: &Words<'_>, direction: usize) -> io::Result<Direction> {
        let at = self.geometry.control_offset(direction);
        let sent = control.long(at + offset_of!(Control, writer) + offset_of!(WriterWords, tail));
        let received = control.long(at + offset_of!(Control, reader) + offset_of!(ReaderWords, head));
        let fill = fill(sent, received, self.geometry.capacity as u64);
        let waiting = self.walk(direction, received, fill, COUNTED)?;
        // While they were counted, their place may have been taken by others.
        let mut now = [0; 8];
        self.read(&mut now, (at + offset_of!(Control, writer) + offset_of!(WriterWords, tail)) as u64)?;
        let is_whole = u64::from_ne_bytes(now).wrapping_sub(received) <= self.geometry.capacity as u64;
        let messages = (is_whole && waiting.bytes == fill).then_some(waiting.messages);
        let mut sample = waiting;
        if sample.messages < SAMPLED {
            // A record starts where the ring does, in each lap.
            let lap = sent & (self.geometry.capacity as u64 - 1);
            sample = self.walk(direction, sent.wrapping_sub(lap), lap, SAMPLED)?;
        }
        Ok(Direction {
            sent,
            received,
            fill: fill as usize,
            messages,
            mean: sample.mean().or_else(|| waiting.mean()),
            sender: Self::side(control, at + offset_of!(Control, not_full)),
            receiver: Self::side(control, at + offset_of!(Control, not_empty)),
        })
    }

    fn side(control: &Words<'_>, seat: usize) -> Side {
        let word = control.word(seat);
        Side { asleep: word & bell::ASLEEP != 0, parked: word & bell::ARMED != 0 }
    }

    /// Goes from record to record, for `bytes`, as far as there are any, and at most `most` of them.
    fn walk(&self, direction: usize, from: u64, bytes: u64, most: usize) -> io::Result<Walk> {
        let (ring, capacity) = (self.geometry.ring_offset(direction) as u64, self.geometry.capacity as u64);
        let mut walk = Walk::default();
        for _ in 0..most {
            let offset = from.wrapping_add(walk.bytes) & (capacity - 1) & !7;
            if walk.bytes >= bytes {
                break;
            }
            let mut header = [0; HEADER];
            self.read(&mut header, ring + offset)?;
            let header = u64::from_ne_bytes(header);
            let len = u64::from(header as u32).min(capacity) as usize;
            let next = walk.bytes + record_len(len) as u64;
            let Some(kind) = Kind::from_raw((header >> 32) as u32).filter(|_| next <= bytes) else { break };
            walk.bytes = next;
            walk.messages += usize::from(matches!(kind, Kind::Data | Kind::First | Kind::End));
        }
        Ok(walk)
    }

    fn look_at_many(&self, control: &Words<'_>) -> io::Result<Snapshot> {
        let at = self.geometry.control_offset(0);
        let ring = (self.geometry.capacity / CELL) as u64;
        let hint = control.long(at + offset_of!(ManyControl, tail) + offset_of!(TailWords, tail));
        let free = control.long(at + offset_of!(ManyControl, tail) + offset_of!(TailWords, free));
        let used = fill(hint, free, ring);
        // From where the lap starts, if that is further back: what has been taken tells how large messages are.
        let lap = hint & (ring - 1);
        let back = if lap + AHEAD <= WORDS { used.max(lap) } else { used };
        let start = hint.wrapping_sub(back);
        let words = self.cell_words(start, (back + AHEAD).min(ring).min(WORDS))?;

        let (mut tail, mut head, mut is_whole) = (start, None, false);
        let (mut ready, mut sample, mut dead) = (0, Walk::default(), Vec::new());
        while let Some(&word) = words.get(tail.wrapping_sub(start) as usize) {
            let Seen::Record { cells, is_padding, is_ahead, held_by } = see(word, tail, ring) else {
                is_whole = see(word, tail, ring) == Seen::Unclaimed;
                break;
            };
            sample.bytes += cells * CELL as u64;
            sample.messages += usize::from(!is_padding);
            ready += usize::from(is_ahead && held_by.is_none());
            head = head.or(is_ahead.then_some(tail));
            dead.extend(held_by);
            tail = tail.wrapping_add(cells);
        }
        is_whole |= tail.wrapping_sub(start) >= ring;
        if !is_whole {
            // Others went round meanwhile, or it is too much to be looked at.
            (tail, head) = (hint, Some(control.long(at + offset_of!(ManyControl, head))));
        }
        let head = head.unwrap_or(tail);

        let (sender, sender_leads) = self.crowd(control, at + offset_of!(ManyControl, not_full));
        let (receiver, receiver_leads) = self.crowd(control, at + offset_of!(ManyControl, not_empty));
        dead.extend([sender_leads, receiver_leads].into_iter().flatten());
        dead.sort_unstable();
        dead.dedup();
        dead.retain(|&member| self.lives(member) == Some(false));
        let members = (0..registry::MEMBERS).filter(|&member| self.lives(member) == Some(true)).count();
        let direction = Direction {
            sent: tail.wrapping_mul(CELL as u64),
            received: head.wrapping_mul(CELL as u64),
            fill: fill(tail, head, ring) as usize * CELL,
            messages: is_whole.then_some(ready),
            mean: sample.mean(),
            sender,
            receiver,
        };
        Ok(Snapshot { directions: vec![direction], members: Some(members), dead })
    }

    fn lives(&self, member: Owner) -> Option<bool> {
        sys::is_byte_locked(self.memory.as_fd(), member.into()).ok()
    }

    /// How those of a crowd wait, and which of them leads.
    fn crowd(&self, control: &Words<'_>, seat: usize) -> (Side, Option<Owner>) {
        let leader = crowd::leader(control.word(seat + offset_of!(Seat, leader)));
        let asleep = control.word(seat + offset_of!(Seat, sleepers)) & crowd::ASLEEP != 0;
        let parked = leader.is_some_and(|leader| self.lives(leader) != Some(false));
        (Side { asleep, parked }, leader)
    }

    /// Copies of so many words of cells, which may go round the end of the ring.
    fn cell_words(&self, from: u64, count: u64) -> io::Result<Vec<u64>> {
        let ring = (self.geometry.capacity / CELL) as u64;
        let index = from & (ring - 1);
        let first = count.min(ring - index);
        let mut bytes = vec![0; count as usize * 8];
        let (end, start) = bytes.split_at_mut(first as usize * 8);
        self.read(end, RINGS_AT as u64 + index * 8)?;
        self.read(start, RINGS_AT as u64)?;
        Ok(bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(std::array::from_fn(|i| word[i]))).collect())
    }

    /// The file is long enough, since its length is sealed and was checked.
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        match sys::read_from(self.memory.as_fd(), into, at)? {
            read if read == into.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What a look at a pipe found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// One, or the two of a duplex pipe. What a [`Listener`](crate::Listener) has accepted is sent to its clients in the first, and by them in the second.
    pub directions: Vec<Direction>,
    /// How many memberships there are in a pipe for many: of each process, one for each side that it holds an end of. `None` for others.
    pub members: Option<usize>,
    /// The numbers of members of a pipe for many that were killed while they held a message or watched for the others, which nobody has noticed yet. Others that were killed
    /// leave no trace.
    pub dead: Vec<u16>,
}

/// One direction of a pipe.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Direction {
    /// Bytes of the ring that have been written since the pipe was made, with headers, padding and whatever else messages take there; wraps. What long messages
    /// in a pipe for many have outside of the ring does not count.
    pub sent: u64,
    /// As many of them as have been taken.
    pub received: u64,
    /// Bytes of the ring that wait to be taken.
    pub fill: usize,
    /// Messages that wait, or `None` where they were too many, or too fast, to be counted. One whose sender is still at it counts in a pipe for two.
    pub messages: Option<usize>,
    /// An estimate of how many bytes of the ring a message takes, by those that were in it last; `None` where there were none.
    pub mean: Option<f64>,
    /// The sending side, which waits for room.
    pub sender: Side,
    /// The receiving side, which waits for messages.
    pub receiver: Side,
}

/// How one side of a direction waits. In a pipe for many, some may sleep while one is parked and others are at work. Nothing says whether a side that does neither spins or
/// is busy with something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Side {
    /// Somebody may sleep on the futex. What says so is left standing by who goes on to park, until the next wake-up, and by who is killed.
    pub asleep: bool,
    /// Somebody is parked at the socket: has been waiting for more than some 5 ms, or is to be told by an event loop. A receiver that has not been sent anything yet counts as well.
    pub parked: bool,
}

/// Records that were gone over.
#[derive(Clone, Copy, Default)]
struct Walk {
    bytes: u64,
    messages: usize,
}

impl Walk {
    fn mean(self) -> Option<f64> {
        (self.messages > 0).then(|| self.bytes as f64 / self.messages as f64)
    }
}

/// The first page of a segment, copied out.
struct Words<'a>(&'a [u8; RINGS_AT]);

impl Words<'_> {
    fn long(&self, at: usize) -> u64 {
        u64::from_ne_bytes(std::array::from_fn(|i| self.0[at + i]))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(std::array::from_fn(|i| self.0[at + i]))
    }
}

/// From one cursor to another that may have been read later, and whatever both may hold.
fn fill(tail: u64, head: u64, capacity: u64) -> u64 {
    match tail.wrapping_sub(head) {
        ahead if ahead > u64::MAX / 2 => 0,
        fill => fill.min(capacity),
    }
}
