//! Handing an end to another process.
//!
//! An end is a few descriptors (the segment, and a bell for each direction) and a frame that says what they are. They
//! travel by `exec` ([`End::inherit`], [`End::from_env`]), over a Unix socket ([`End::send_to`], [`End::recv_from`]) or over another
//! pipe ([`Sender::send_end`], [`Receiver::recv_end`]). After a plain `fork` the child's copies just work.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::error::{AttachError, RecvError, SendError};
use crate::layout::Mode;
use crate::mpmc;
use crate::receiver::Receiver;
use crate::segment::Segment;
use crate::sender::Sender;
use crate::sys;
use crate::waitable::Watcher;
use sealed::{Private, Sealed};

/// What can be handed to another process: a [`Connection`], a [`Sender`] or a [`Receiver`].
///
/// Handing an end on takes it away from this process: using it afterwards does not compile. The pipe stays open while
/// the end is on its way; if it never arrives, because the socket it travels on dies, it is closed.
///
/// Messages that wait in the ring travel with the receiving end. Only the part of a long message that a receive had taken when it ran
/// out of time does not: hand an end on between messages.
///
/// Hand ends only to processes that should have them. Whoever attaches checks what it was given: another layout version, another kind
/// of end, or memory that could be taken away is refused with an [`AttachError`] that says so.
pub trait End: Sealed + Sized + Send + 'static {
    /// Gives this end to every child that `command` starts: there, [`from_env`](Self::from_env) takes it from the environment
    /// variable `name`.
    ///
    /// Other children, and other programs started by the child, do not inherit it. The command owns the end from now on: **drop
    /// the command once the child runs**, or this process keeps a copy open and its peer never sees the end closed.
    ///
    /// ```no_run
    /// use ringpipe::{Connection, End};
    /// use std::process::Command;
    ///
    /// let (mut mine, theirs) = ringpipe::pipe()?;
    /// let mut command = Command::new("worker");
    /// theirs.inherit(&mut command, "WORKER_PIPE");
    /// let child = command.spawn()?;
    /// drop(command);
    ///
    /// // In the worker:
    /// let mut conn = Connection::from_env("WORKER_PIPE")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If this is a [`Connection`] one of whose halves was exchanged (`mem::swap`) for another pipe's: hand over the halves.
    fn inherit(self, command: &mut Command, name: &str) {
        self.check(Private).unwrap_or_else(|e| panic!("{e}"));
        let fds = self.fds(Private);
        // Descriptors of its own, since two ends of one pipe, given to the same child, have one of the segment between them. Where there are none
        // to be had, it is those of the end.
        let copies =
            fds.iter().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<Vec<OwnedFd>>>().unwrap_or_default();
        let passed = if copies.is_empty() { fds } else { copies.iter().map(AsFd::as_fd).collect() };
        let numbers: Vec<RawFd> = passed.iter().map(AsRawFd::as_raw_fd).collect();
        command.env(name, self.frame(Private).variable(&passed));
        drop(passed);
        // The mutex only makes the closure `Sync`, as `pre_exec` wants it; nobody ever locks it.
        let end = Mutex::new((self, copies));
        let clear = move || {
            let _keep = &end;
            for &number in &numbers {
                // SAFETY: `end`, which owns these descriptors or what they are copies of, lives in this closure.
                sys::set_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, false)?;
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec; it makes system calls only.
        unsafe { command.pre_exec(clear) };
    }

    /// Takes the end that the parent process gave this one under `name` with [`inherit`](Self::inherit).
    ///
    /// It can be taken once; what this process starts does not inherit it.
    ///
    /// # Errors
    ///
    /// [`AttachError::NoVariable`], [`AttachError::BadVariable`], [`AttachError::NotInherited`] (also for the second taking),
    /// [`AttachError::WrongEnd`], and those of any attach.
    fn from_env(name: &str) -> Result<Self, AttachError> {
        let value = std::env::var_os(name).ok_or_else(|| AttachError::NoVariable { name: name.into() })?;
        let value = value.to_string_lossy();
        let (frame, inherited) = Frame::parse_variable(&value)
            .ok_or_else(|| AttachError::BadVariable { name: name.into(), value: value.clone().into_owned() })?;
        frame.expect::<Self>()?;
        Self::build(frame, adopt(&inherited)?, Private)
    }

    /// Sends this end over a Unix socket, to a process that calls [`recv_from`](Self::recv_from) on the other side.
    ///
    /// The end travels with 16 bytes in the socket's stream; what else the socket carries must not be mixed up with them.
    ///
    /// # Errors
    ///
    /// The system call's error, or [`io::ErrorKind::InvalidInput`] for a [`Connection`] whose halves are those of different pipes; with
    /// the end given back.
    fn send_to(self, socket: &UnixStream) -> Result<(), HandoverError<Self>> {
        let result = self
            .check(Private)
            .and_then(|()| sys::send_fds(socket.as_fd(), &self.frame(Private).0, &self.fds(Private), Deadline::NEVER));
        result.map_err(|error| HandoverError { error, end: self })
    }

    /// Receives an end that was sent with [`send_to`](Self::send_to). Waits for it.
    ///
    /// # Errors
    ///
    /// [`AttachError::BadHandover`] if something else was sent or the socket was closed; [`AttachError::WrongEnd`]; and those of any
    /// attach.
    fn recv_from(socket: &UnixStream) -> Result<Self, AttachError> {
        let mut frame = [0; Frame::LEN];
        let (mut got, fds) = sys::recv_fds(socket.as_fd(), &mut frame, true)?;
        while got > 0 && got < frame.len() {
            match sys::recv_fds(socket.as_fd(), &mut frame[got..], true)? {
                (0, _) => break,
                (more, _) => got += more,
            }
        }
        if got < frame.len() {
            return Err(AttachError::BadHandover { what: "the socket was closed" });
        }
        Self::build(Frame(frame), fds, Private)
    }

    /// What another process needs to make a copy of this end, for those who have ways of their own to bring descriptors there: 16 bytes that say which end it is,
    /// and its descriptors, for [`from_parts`](Self::from_parts). The end itself stays; a copy is one as `fork` makes them.
    ///
    /// The first descriptor is that of the memory, which all ends of a pipe that were not handed over have in common.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for a [`Connection`] whose halves are those of different pipes.
    fn parts(&self) -> io::Result<([u8; 16], Vec<BorrowedFd<'_>>)> {
        self.check(Private)?;
        Ok(pack(self))
    }

    /// The end that consists of these [`parts`](Self::parts), in the same order.
    ///
    /// # Errors
    ///
    /// As [`recv_from`](Self::recv_from). The descriptors are closed then.
    fn from_parts(frame: [u8; 16], fds: Vec<OwnedFd>) -> Result<Self, AttachError> {
        unpack(frame, fds)
    }
}

/// An end that could not be handed over, and why.
pub struct HandoverError<E> {
    /// Why.
    pub error: io::Error,
    /// The end, still usable.
    pub end: E,
}

impl<E> fmt::Debug for HandoverError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandoverError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<E> fmt::Display for HandoverError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot hand over the pipe end: {}", self.error)
    }
}

impl<E> std::error::Error for HandoverError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl Sender {
    /// Sends a pipe end as a message of its own, in its place among the others. Waits for room. The receiver takes it with
    /// [`recv_end`](Receiver::recv_end).
    ///
    /// # Errors
    ///
    /// As [`send_bytes`](Self::send_bytes), and [`io::ErrorKind::InvalidInput`] for a [`Connection`] whose halves are those of different
    /// pipes; with the end given back.
    pub fn send_end<E: End>(&mut self, end: E) -> Result<(), HandoverError<E>> {
        self.send_end_until(end, Deadline::NEVER)
    }

    /// As [`send_end`](Self::send_end), without waiting.
    ///
    /// # Errors
    ///
    /// As [`send_end`](Self::send_end), and [`io::ErrorKind::WouldBlock`].
    pub fn try_send_end<E: End>(&mut self, end: E) -> Result<(), HandoverError<E>> {
        self.send_end_until(end, Deadline::NOW)
    }

    /// As [`send_end`](Self::send_end), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`send_end`](Self::send_end), and [`io::ErrorKind::TimedOut`].
    pub fn send_end_timeout<E: End>(&mut self, end: E, timeout: Duration) -> Result<(), HandoverError<E>> {
        self.send_end_until(end, Deadline::after(timeout))
    }

    /// As [`send_end`](Self::send_end), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`send_end_timeout`](Self::send_end_timeout).
    pub fn send_end_deadline<E: End>(&mut self, end: E, deadline: Instant) -> Result<(), HandoverError<E>> {
        self.send_end_until(end, Deadline::instant(deadline))
    }

    fn send_end_until<E: End>(&mut self, end: E, deadline: Deadline) -> Result<(), HandoverError<E>> {
        // Tells this end from one that a killed copy of ours may have left on its way, and from those that follow: later ones are higher.
        let id = sys::now();
        let announcement = Announcement::new(end.frame(Private), id);
        let result = end
            .check(Private)
            .map_err(SendError::Io)
            .and_then(|()| self.send_announcement(&announcement.0, id, &end.fds(Private), deadline));
        result.map_err(|error| HandoverError { error: error.into(), end })
    }
}

impl Receiver {
    /// Something to wait for this end with while another thread may be using it. The sender gets a broken pipe only when this is closed, too.
    ///
    /// # Errors
    ///
    /// The system call's error, when descriptors run out.
    pub fn watcher(&self) -> io::Result<Watcher> {
        let bell = self.bell().try_clone_to_owned()?;
        Ok(Watcher(Receiver::new(Arc::clone(&self.segment), self.direction, bell)))
    }

    /// Receives a pipe end sent with [`send_end`](Sender::send_end). Waits for it.
    ///
    /// # Errors
    ///
    /// [`RecvError::IsBytes`] if the next message is something else: it stays. [`RecvError::Attach`] if the end is of another kind
    /// or unusable: it has been consumed. Otherwise as [`recv_bytes`](Self::recv_bytes).
    pub fn recv_end<E: End>(&mut self) -> Result<E, RecvError> {
        self.recv_end_until(Deadline::NEVER)
    }

    /// As [`recv_end`](Self::recv_end), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv_end`](Self::recv_end), and [`RecvError::Empty`].
    pub fn try_recv_end<E: End>(&mut self) -> Result<E, RecvError> {
        self.recv_end_until(Deadline::NOW)
    }

    /// As [`recv_end`](Self::recv_end), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv_end`](Self::recv_end), and [`RecvError::TimedOut`].
    pub fn recv_end_timeout<E: End>(&mut self, timeout: Duration) -> Result<E, RecvError> {
        self.recv_end_until(Deadline::after(timeout))
    }

    /// As [`recv_end`](Self::recv_end), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv_end_timeout`](Self::recv_end_timeout).
    pub fn recv_end_deadline<E: End>(&mut self, deadline: Instant) -> Result<E, RecvError> {
        self.recv_end_until(Deadline::instant(deadline))
    }

    fn recv_end_until<E: End>(&mut self, deadline: Deadline) -> Result<E, RecvError> {
        let (announcement, fds) = self.recv_announcement(|bytes| Announcement(*bytes).id(), deadline)?;
        Ok(E::build(Announcement(announcement).frame(), fds, Private)?)
    }
}

/// Which end a few descriptors are: magic, version of this format, kind, direction, number of descriptors, and 4 bytes of no meaning.
#[derive(Clone, Copy)]
pub struct Frame([u8; Frame::LEN]);

impl Frame {
    const LEN: usize = 16;
    const MAGIC: [u8; 8] = *b"ringpipe";
    const VERSION: u8 = 1;

    fn new(kind: u8, direction: usize, fds: usize) -> Frame {
        let mut frame = [0; Frame::LEN];
        frame[..8].copy_from_slice(&Frame::MAGIC);
        frame[8..12].copy_from_slice(&[Frame::VERSION, kind, direction as u8, fds as u8]);
        Frame(frame)
    }

    fn kind(self) -> u8 {
        self.0[9]
    }

    fn direction(self) -> usize {
        self.0[10].into()
    }

    fn fds(self) -> usize {
        self.0[11].into()
    }

    /// Checks that this describes an `E`.
    fn expect<E: End>(self) -> Result<(), AttachError> {
        if self.0[..8] != Frame::MAGIC {
            return Err(AttachError::BadHandover { what: "what came is no pipe end" });
        }
        if self.0[8] != Frame::VERSION {
            let (ours, theirs) = (Frame::VERSION.into(), self.0[8].into());
            return Err(AttachError::Version { ours, theirs });
        }
        let theirs = match self.kind() {
            Sender::KIND => Sender::NAME,
            Receiver::KIND => Receiver::NAME,
            Connection::KIND => Connection::NAME,
            mpmc::Sender::KIND => mpmc::Sender::NAME,
            mpmc::Receiver::KIND => mpmc::Receiver::NAME,
            _ => return Err(AttachError::BadHandover { what: "what came is an unknown kind of pipe end" }),
        };
        if self.kind() != E::KIND {
            return Err(AttachError::WrongEnd { ours: E::NAME, theirs });
        }
        if self.fds() != E::FDS {
            return Err(AttachError::BadHandover { what: "the number of descriptors is wrong" });
        }
        Ok(())
    }

    /// `version:kind:direction:descriptor=file,descriptor=file,...`
    fn variable(self, fds: &[BorrowedFd<'_>]) -> String {
        // What cannot be identified, which no open descriptor is, is refused by who inherits it.
        let inherited = fds.iter().map(|fd| format!("{}={}", fd.as_raw_fd(), sys::identity(*fd).unwrap_or(0)));
        let inherited: Vec<String> = inherited.collect();
        format!("{}:{}:{}:{}", self.0[8], self.kind(), self.direction(), inherited.join(","))
    }

    fn parse_variable(value: &str) -> Option<(Frame, Vec<Inherited>)> {
        let mut fields = value.split(':');
        let mut number = || fields.next()?.parse::<u8>().ok();
        let (version, kind, direction) = (number()?, number()?, number()?);
        let inherited = fields.next()?.split(',').map(|field| {
            let (fd, file) = field.split_once('=')?;
            Some(Inherited { fd: fd.parse().ok()?, file: file.parse().ok()? })
        });
        let inherited = inherited.collect::<Option<Vec<Inherited>>>().filter(|all| all.len() <= sys::MAX_FDS)?;
        if fields.next().is_some() {
            return None;
        }
        let mut frame = Frame::new(kind, direction.into(), inherited.len());
        frame.0[8] = version;
        Some((frame, inherited))
    }
}

/// A descriptor that this process is said to have inherited, and the file that it is said to be of.
struct Inherited {
    fd: RawFd,
    file: u64,
}

pub(crate) const FRAME_LEN: usize = Frame::LEN;

/// The number of a kind of end.
pub(crate) const fn kind<E: End>() -> u8 {
    E::KIND
}

/// What a kind of end is called.
pub(crate) const fn kind_name<E: End>() -> &'static str {
    E::NAME
}

/// What has to be sent for a copy of an end to be built from it.
pub(crate) fn pack<E: End>(end: &E) -> ([u8; FRAME_LEN], Vec<BorrowedFd<'_>>) {
    (end.frame(Private).0, end.fds(Private))
}

/// The end that was packed.
pub(crate) fn unpack<E: End>(frame: [u8; FRAME_LEN], fds: Vec<OwnedFd>) -> Result<E, AttachError> {
    E::build(Frame(frame), fds, Private)
}

/// What says in a ring that a pipe end comes: its frame, and the mark that its descriptors carry.
#[derive(Clone, Copy)]
struct Announcement([u8; Frame::LEN + 8]);

impl Announcement {
    fn new(frame: Frame, id: u64) -> Announcement {
        let mut bytes = [0; Frame::LEN + 8];
        bytes[..Frame::LEN].copy_from_slice(&frame.0);
        bytes[Frame::LEN..].copy_from_slice(&id.to_le_bytes());
        Announcement(bytes)
    }

    fn frame(self) -> Frame {
        Frame(std::array::from_fn(|i| self.0[i]))
    }

    fn id(self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[Frame::LEN + i]))
    }
}

mod sealed {
    use super::{AttachError, BorrowedFd, Frame, OwnedFd, io};

    /// Callers outside cannot name this, so they cannot call what takes it.
    pub struct Private;

    pub trait Sealed: Sized {
        const KIND: u8;
        const NAME: &str;
        const FDS: usize;

        fn frame(&self, _: Private) -> Frame;
        /// The segment and the bells.
        fn fds(&self, _: Private) -> Vec<BorrowedFd<'_>>;
        /// Whether it can be handed over.
        fn check(&self, _: Private) -> io::Result<()> {
            Ok(())
        }
        /// The end that these make, once everything has been checked.
        fn build(frame: Frame, fds: Vec<OwnedFd>, _: Private) -> Result<Self, AttachError>;
    }
}

impl Sealed for Sender {
    const KIND: u8 = 1;
    const NAME: &str = "sender";
    const FDS: usize = 2;

    fn frame(&self, _: Private) -> Frame {
        Frame::new(Self::KIND, self.direction, Self::FDS)
    }

    fn fds(&self, _: Private) -> Vec<BorrowedFd<'_>> {
        vec![self.segment.as_fd(), self.waiter.bell.fd()]
    }

    fn build(frame: Frame, fds: Vec<OwnedFd>, _: Private) -> Result<Sender, AttachError> {
        let (segment, [bell]) = attach::<Sender, 1>(frame, fds, Mode::Spsc)?;
        Ok(Sender::new(segment, frame.direction(), bell))
    }
}

impl Sealed for Receiver {
    const KIND: u8 = 2;
    const NAME: &str = "receiver";
    const FDS: usize = 2;

    fn frame(&self, _: Private) -> Frame {
        Frame::new(Self::KIND, self.direction, Self::FDS)
    }

    fn fds(&self, _: Private) -> Vec<BorrowedFd<'_>> {
        vec![self.segment.as_fd(), self.bell()]
    }

    fn build(frame: Frame, fds: Vec<OwnedFd>, _: Private) -> Result<Receiver, AttachError> {
        let (segment, [bell]) = attach::<Receiver, 1>(frame, fds, Mode::Spsc)?;
        Ok(Receiver::new(segment, frame.direction(), bell))
    }
}

impl Sealed for Connection {
    const KIND: u8 = 3;
    const NAME: &str = "connection";
    const FDS: usize = 3;

    /// The direction is the sending half's.
    fn frame(&self, _: Private) -> Frame {
        Frame::new(Self::KIND, self.sender().direction, Self::FDS)
    }

    fn fds(&self, _: Private) -> Vec<BorrowedFd<'_>> {
        vec![self.sender().segment.as_fd(), self.sender().waiter.bell.fd(), self.receiver().bell()]
    }

    fn check(&self, _: Private) -> io::Result<()> {
        let (to, from) = (self.sender(), self.receiver());
        if Arc::ptr_eq(&to.segment, &from.segment) && to.direction != from.direction {
            return Ok(());
        }
        let what = "the halves of this connection are those of different pipes: hand them over one by one";
        Err(io::Error::new(io::ErrorKind::InvalidInput, what))
    }

    fn build(frame: Frame, fds: Vec<OwnedFd>, _: Private) -> Result<Connection, AttachError> {
        let (segment, [to, from]) = attach::<Connection, 2>(frame, fds, Mode::Spsc)?;
        if segment.geometry().directions != 2 {
            return Err(AttachError::Damaged { what: "a connection needs two directions" });
        }
        let sender = Sender::new(Arc::clone(&segment), frame.direction(), to);
        Ok(Connection::new(sender, Receiver::new(segment, 1 - frame.direction(), from)))
    }
}

impl Sealed for mpmc::Sender {
    const KIND: u8 = 4;
    const NAME: &str = "sender for many";
    const FDS: usize = 2;

    fn frame(&self, _: Private) -> Frame {
        Frame::new(Self::KIND, 0, Self::FDS)
    }

    fn fds(&self, _: Private) -> Vec<BorrowedFd<'_>> {
        vec![self.segment().as_fd(), self.bell()]
    }

    fn build(frame: Frame, fds: Vec<OwnedFd>, _: Private) -> Result<mpmc::Sender, AttachError> {
        let (segment, [bell]) = attach::<mpmc::Sender, 1>(frame, fds, Mode::Mpmc)?;
        Ok(mpmc::Sender::attach(segment, bell)?)
    }
}

impl Sealed for mpmc::Receiver {
    const KIND: u8 = 5;
    const NAME: &str = "receiver for many";
    const FDS: usize = 2;

    fn frame(&self, _: Private) -> Frame {
        Frame::new(Self::KIND, 0, Self::FDS)
    }

    fn fds(&self, _: Private) -> Vec<BorrowedFd<'_>> {
        vec![self.segment().as_fd(), self.bell()]
    }

    fn build(frame: Frame, fds: Vec<OwnedFd>, _: Private) -> Result<mpmc::Receiver, AttachError> {
        let (segment, [bell]) = attach::<mpmc::Receiver, 1>(frame, fds, Mode::Mpmc)?;
        Ok(mpmc::Receiver::attach(segment, bell)?)
    }
}

impl End for Sender {}
impl End for Receiver {}
impl End for Connection {}
impl End for mpmc::Sender {}
impl End for mpmc::Receiver {}

/// Maps the segment and checks the bells.
fn attach<E: End, const BELLS: usize>(
    frame: Frame,
    fds: Vec<OwnedFd>,
    mode: Mode,
) -> Result<(Arc<Segment>, [OwnedFd; BELLS]), AttachError> {
    frame.expect::<E>()?;
    let mut fds = fds.into_iter();
    let missing = AttachError::BadHandover { what: "descriptors are missing" };
    let Some(segment) = fds.next() else {
        return Err(missing);
    };
    let bells: [OwnedFd; BELLS] = fds.collect::<Vec<_>>().try_into().map_err(|_| missing)?;
    for (i, bell) in bells.iter().enumerate() {
        if !sys::is_unix_stream(bell.as_fd()) {
            return Err(AttachError::NotABell { index: i + 1 });
        }
    }
    let segment = Segment::attach(segment, mode)?;
    if frame.direction() >= segment.geometry().directions {
        return Err(AttachError::Damaged { what: "it has no such direction" });
    }
    Ok((Arc::new(segment), bells))
}

/// Takes ownership of descriptors that this process inherited.
fn adopt(inherited: &[Inherited]) -> Result<Vec<OwnedFd>, AttachError> {
    /// Serializes the check that nobody has adopted a descriptor and its adoption.
    static ADOPTING: Mutex<()> = Mutex::new(());
    let _guard: MutexGuard<'_, ()> = ADOPTING.lock().unwrap_or_else(PoisonError::into_inner);

    for (i, &Inherited { fd, file }) in inherited.iter().enumerate() {
        // What `inherit` passed on is not close-on-exec, until it is adopted, and is the very file that the variable names: nobody
        // in this process can have opened that, only come by it with the descriptor. Standard streams are nobody's to take.
        let not_inherited = AttachError::NotInherited { fd };
        if fd <= 2 || inherited[..i].iter().any(|other| other.fd == fd) {
            return Err(not_inherited);
        }
        // SAFETY: borrowed for as long as nobody closes it: a number out of the environment may be anybody's. Only questions are asked of
        // it, which fail on a closed one, and all of them before anything is adopted.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let here = matches!(sys::is_cloexec(borrowed), Ok(false)) && sys::identity(borrowed).is_ok_and(|it| it == file);
        if !here {
            return Err(not_inherited);
        }
        match i {
            0 if sys::memory_len(borrowed)?.is_none() => return Err(AttachError::NotSealed),
            0 => {}
            _ if !sys::is_unix_stream(borrowed) => return Err(AttachError::NotABell { index: i }),
            _ => {}
        }
    }
    let adopt = |&Inherited { fd, .. }: &Inherited| {
        // SAFETY: inherited and not adopted before, as just checked under the lock. (As everywhere in Rust, whoever opens this process's
        // own files anew through `/proc`, and leaves the copies to be inherited, answers for that.)
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        sys::set_cloexec(&owned, true)?;
        Ok(owned)
    };
    inherited.iter().map(adopt).collect()
}
