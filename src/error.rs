//! Every error type. One per kind of operation; each message says what to do where that is not plain.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Why a message was not sent. Nothing of it reaches the receiver: a message arrives whole or not at all.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SendError {
    /// Every copy of the receiving end is closed (a kernel pipe's `EPIPE`). It stays so.
    #[error("broken pipe: every copy of the receiving end is closed")]
    Disconnected,
    /// There is no room at the moment; only from the `try_` forms.
    #[error("the pipe is full at the moment: try again later, or use a form that waits")]
    Full,
    /// No room became free in time; only from the `_timeout` and `_deadline` forms.
    #[error("timed out waiting for room: the receiver does not keep up")]
    TimedOut,
    /// The message can never be taken in one go by the operation used: `len` bytes, where it takes at most `max`.
    #[error(
        "a message of {len} bytes is too long for this operation (at most {max}): use `send_bytes`, \
         which takes any length, or a larger capacity"
    )]
    TooLong {
        /// Bytes in the message.
        len: usize,
        /// The most bytes that this operation takes on this pipe.
        max: usize,
    },
    /// The value could not be serialized.
    #[error("the value cannot be encoded: {0}")]
    Encode(#[source] CodecError),
    /// A system call failed: when sending a pipe end; through a pipe for many, when sending a long message, or in a forked child that cannot take
    /// part; and if the runtime of an end for tokio is shut down.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why no message was received.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecvError {
    /// End of file: every copy of the sending end is closed and everything sent has been received.
    #[error("end of file: every copy of the sending end is closed and nothing is left to receive")]
    Disconnected,
    /// Nothing is there at the moment; only from the `try_` forms.
    #[error("no message at the moment: try again later, or use a form that waits")]
    Empty,
    /// Nothing came in time; only from the `_timeout` and `_deadline` forms. Nothing is lost: what had arrived of
    /// a long message is kept for the next call.
    #[error("timed out waiting for a message")]
    TimedOut,
    /// The message is longer than allowed. This end no longer receives, and the sender gets a broken pipe (out of descriptors, once
    /// there is one at a later receive, or when the end is dropped). Of a pipe for many, this handle no longer receives, and the message stays
    /// for others.
    #[error(
        "bad message length: the message has {len} bytes, more than the {max} allowed; this end no longer receives"
    )]
    TooLong {
        /// Bytes in the message.
        len: u64,
        /// The most bytes allowed by the call.
        max: usize,
    },
    /// There is no memory for the message, or for the next part of it. It can be received once there is some. Only a receive into a
    /// buffer that runs out of time inside a long message and has no memory to keep what has arrived loses that message.
    #[error("no memory for a message of {len} bytes: try again once there is some")]
    NoMemory {
        /// Bytes in the message.
        len: usize,
    },
    /// The sender died, or a copy of its end was used without a lock, inside a long message (or a copy of an end died while a pipe end
    /// was being sent or received). What had arrived of
    /// that message is dropped; receiving can go on.
    #[error("got end of file during message: its sender died before it had sent all of it")]
    Cut,
    /// The ring holds what no sender would write. This end no longer receives.
    #[error(
        "the ring is corrupt: the peer is faulty, or one end was used by two processes at once without a lock; \
         this end no longer receives"
    )]
    Corrupt,
    /// This end stopped receiving after an earlier error (`TooLong` or `Corrupt`).
    #[error("this end no longer receives, because of an earlier error")]
    Ended,
    /// The next message is a pipe end: take it with `recv_end`. It stays where it is.
    #[error("the next message is a pipe end: receive it with `recv_end`")]
    IsEnd,
    /// The next message is no pipe end: take it with `recv_bytes`. It stays where it is.
    #[error("the next message is not a pipe end: receive it with `recv_bytes` or `recv`")]
    IsBytes,
    /// The message could not be decoded as the type asked for. It has been consumed; receiving can go on.
    #[error("the message cannot be decoded as the type asked for: {0}")]
    Decode(#[source] CodecError),
    /// A pipe end arrived that cannot be used. It has been consumed; receiving can go on. Or a forked child cannot take part in a pipe for many.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The descriptor could not be watched: the runtime of an end for tokio is shut down. Nothing was consumed.
    #[error("cannot wait for a message: {0}")]
    Io(#[from] io::Error),
}

/// Why [`recv_bytes_into`](crate::Receiver::recv_bytes_into) returned no message.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecvIntoError {
    /// The buffer is too short. The message has been consumed and is in the error, whole; the buffer was not touched.
    #[error(transparent)]
    TooShort(BufferTooShort),
    /// The offset lies outside the buffer. No message was consumed.
    #[error("offset too large: {offset} in a buffer of {len} bytes")]
    BadOffset {
        /// The offset asked for.
        offset: usize,
        /// Bytes in the buffer.
        len: usize,
    },
    /// As for any receive.
    #[error(transparent)]
    Recv(#[from] RecvError),
}

/// A message that did not fit in the buffer given for it.
#[derive(Debug, Error)]
#[error(
    "buffer too short: the message has {} bytes and only {room} were free; the message is in this error",
    message.len()
)]
pub struct BufferTooShort {
    /// The whole message.
    pub message: Vec<u8>,
    /// Bytes that were free in the buffer, from the offset on.
    pub room: usize,
}

/// Why no pipe was made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The capacity asked for is out of range.
    #[error("a capacity of {asked} bytes is out of range: choose from 1 (rounded up to {min}) to {max}")]
    Capacity {
        /// Bytes asked for.
        asked: usize,
        /// The smallest ring; smaller wishes above zero are rounded up to it.
        min: usize,
        /// The largest ring.
        max: usize,
    },
    /// A system call failed: out of descriptors or memory, or refused by a sandbox.
    #[error("cannot make a pipe: {0}")]
    Io(#[from] io::Error),
}

/// Why a descriptor, or what came over a socket, is not a pipe end that this process can use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The memory is no ringpipe segment.
    #[error("not a ringpipe: the memory handed over does not start with a ringpipe header")]
    NotRingpipe,
    /// The memory is not a memory file sealed against resizing, so its owner could take it away under us.
    #[error("not a ringpipe: the descriptor is no memory file sealed against resizing")]
    NotSealed,
    /// Made by a build with another layout.
    #[error(
        "layout version {theirs} cannot be used by this build, which has {ours}: use the same ringpipe on both sides"
    )]
    Version {
        /// This build's layout version.
        ours: u32,
        /// The segment's.
        theirs: u32,
    },
    /// Another kind of ring.
    #[error("ring mode {theirs} cannot be used as mode {ours}: use the matching kind of end")]
    Mode {
        /// The mode asked for.
        ours: u32,
        /// The segment's.
        theirs: u32,
    },
    /// The header contradicts itself.
    #[error("damaged ringpipe segment: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// A descriptor that should be one end of a Unix stream socket is not.
    #[error("not a ringpipe: descriptor {index} handed over is no Unix stream socket")]
    NotABell {
        /// Its place among the descriptors.
        index: usize,
    },
    /// What was handed over describes another kind of end.
    #[error("a {theirs} was handed over where a {ours} is wanted")]
    WrongEnd {
        /// The end asked for.
        ours: &'static str,
        /// The end found.
        theirs: &'static str,
    },
    /// The peer sent something else than an end, or closed before it sent all of it.
    #[error("no pipe end was handed over: {what}")]
    BadHandover {
        /// What came instead.
        what: &'static str,
    },
    /// The environment variable is not set.
    #[error("environment variable {name} is not set: was this process started with an end inherited under that name?")]
    NoVariable {
        /// The variable asked for.
        name: String,
    },
    /// The environment variable does not describe an end.
    #[error("environment variable {name} does not describe a pipe end: {value:?}")]
    BadVariable {
        /// The variable asked for.
        name: String,
        /// What it holds.
        value: String,
    },
    /// A descriptor named by the variable is closed, was not inherited, or was taken before.
    #[error("descriptor {fd} named by the environment was not inherited by this process, or was taken already")]
    NotInherited {
        /// The descriptor's number.
        fd: i32,
    },
    /// A system call failed.
    #[error("cannot attach to the pipe: {0}")]
    Io(#[from] io::Error),
}

/// Why a name cannot be one of a listener.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NameError {
    /// It has no characters.
    #[error("the name is empty: use a word (`jobs`), or a path with a `/` in it (`./jobs`)")]
    Empty,
    /// It has a zero byte, which no file name has.
    #[error("the name has a zero byte in it")]
    Nul,
    /// It, or the last part of the path, is longer than the address of a socket holds. The rest of a path may have any length.
    #[error("the name has {len} bytes, and at most {max} fit in the address of a socket: use a shorter one")]
    TooLong {
        /// Bytes of the name, or of the last part of the path.
        len: usize,
        /// The most that there may be.
        max: usize,
    },
    /// It ends in `/`, is `.` or `..`, has a dot in front though it is no path, or is that of a lock file (`.NAME.lock`).
    #[error("{name:?} cannot be a name: use one that does not start with a dot, or end with a slash")]
    Reserved {
        /// The name asked for.
        name: PathBuf,
    },
    /// The directory that it lies in cannot be used.
    #[error("cannot use the directory {path:?}: {error}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The directory for bare names is not this user's, or others may enter it.
    #[error(
        "the directory {path:?} belongs to user {uid} and has mode {mode:o}: it must be your own, with mode 700; \
         remove it, or use a path"
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// The lower bits of its mode.
        mode: u32,
    },
}

/// Why nothing listens under a name.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A living process listens under it, or a forked child of one still has a copy of its listener.
    #[error("{name:?} is in use: another process listens there; connect to it, or use another name")]
    InUse {
        /// Where.
        name: PathBuf,
    },
    /// Something else lies there. It is left alone.
    #[error("{name:?} exists and is no socket: remove it, or use another name")]
    NotASocket {
        /// Where.
        name: PathBuf,
    },
    /// What lies there, or the lock file beside it, is another user's. It is left alone.
    #[error("{name:?}, or its lock file, belongs to user {uid}: use another name")]
    Foreign {
        /// Where.
        name: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// A pipe that is to be handed out, or shared, could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A system call failed.
    #[error("cannot {what} {name:?}: {error}")]
    Io {
        /// Where.
        name: PathBuf,
        /// What could not be done.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// Why a listener returned no client. It goes on listening: call it again.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// Nobody is there at the moment; only from the `try_` form.
    #[error("no client at the moment: try again later, or use a form that waits")]
    Empty,
    /// Nobody came in time; only from the `_timeout` and `_deadline` forms.
    #[error("timed out waiting for a client")]
    TimedOut,
    /// No pipe could be made for a client, which was told so.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// This is a forked child's copy, which can only be dropped.
    #[error("this listener belongs to the process that made it, not to a forked child")]
    Forked,
    /// A system call failed. Out of descriptors, those who want to connect keep waiting; close some, or wait a little, before the next call.
    #[error("cannot accept a client: {0}")]
    Io(#[from] io::Error),
}

/// Why there is no connection by a name.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Nobody handed anything out under that name in time.
    #[error("no connection by {name:?} within {timeout:?}: {what}")]
    TimedOut {
        /// The name asked for.
        name: PathBuf,
        /// How long it was waited for.
        timeout: Duration,
        /// What was missing at the end.
        what: &'static str,
    },
    /// The listener hands out something else.
    #[error("a {ours} is wanted, and the listener of {name:?} hands out {theirs}")]
    WrongEnd {
        /// The name asked for.
        name: PathBuf,
        /// The kind of end asked for.
        ours: &'static str,
        /// What there is.
        theirs: &'static str,
    },
    /// The listener is of a build that says other things when it connects.
    #[error(
        "the listener of {name:?} has version {theirs} of connecting by name, and this build {ours}: use the same \
         ringpipe on both sides"
    )]
    Version {
        /// The name asked for.
        name: PathBuf,
        /// This build's version.
        ours: u8,
        /// The listener's.
        theirs: u8,
    },
    /// What listens there is no ringpipe listener.
    #[error("what listens at {name:?} is no ringpipe listener")]
    NotAListener {
        /// The name asked for.
        name: PathBuf,
    },
    /// The listener runs as another user, whom this process did not say it trusts.
    #[error("the listener of {name:?} runs as user {uid}: allow that user, if it is to be trusted")]
    Stranger {
        /// The name asked for.
        name: PathBuf,
        /// Who listens.
        uid: u32,
    },
    /// The listener does not serve this process's user.
    #[error("the listener of {name:?} does not serve this user: have it allow the user")]
    NotAllowed {
        /// The name asked for.
        name: PathBuf,
    },
    /// The listener could not make, or hand over, a pipe: it may be out of descriptors.
    #[error("the listener of {name:?} cannot make a pipe: {error}")]
    Listener {
        /// The name asked for.
        name: PathBuf,
        /// The error it met.
        #[source]
        error: io::Error,
    },
    /// What was handed out cannot be used.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A system call failed: no permission, or out of descriptors.
    #[error("cannot connect to {name:?}: {error}")]
    Io {
        /// The name asked for.
        name: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// What the serializer says was wrong with a value or with bytes.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct CodecError(pub(crate) String);

impl From<SendError> for io::Error {
    /// With the kinds that a pipe has: `BrokenPipe`, `WouldBlock`, `TimedOut`.
    fn from(e: SendError) -> io::Error {
        let kind = match &e {
            SendError::Disconnected => io::ErrorKind::BrokenPipe,
            SendError::Full => io::ErrorKind::WouldBlock,
            SendError::TimedOut => io::ErrorKind::TimedOut,
            SendError::TooLong { .. } | SendError::Encode(_) => io::ErrorKind::InvalidInput,
            SendError::Io(inner) => inner.kind(),
        };
        io::Error::new(kind, e)
    }
}

impl From<RecvError> for io::Error {
    /// With the kinds that a pipe has: `UnexpectedEof`, `WouldBlock`, `TimedOut`, `InvalidData`.
    fn from(e: RecvError) -> io::Error {
        let kind = match &e {
            RecvError::Disconnected | RecvError::Cut => io::ErrorKind::UnexpectedEof,
            RecvError::Empty => io::ErrorKind::WouldBlock,
            RecvError::TimedOut => io::ErrorKind::TimedOut,
            RecvError::NoMemory { .. } => io::ErrorKind::OutOfMemory,
            RecvError::Ended | RecvError::IsEnd | RecvError::IsBytes => io::ErrorKind::InvalidInput,
            RecvError::TooLong { .. } | RecvError::Corrupt | RecvError::Decode(_) => io::ErrorKind::InvalidData,
            RecvError::Attach(_) => io::ErrorKind::InvalidData,
            RecvError::Io(inner) => inner.kind(),
        };
        io::Error::new(kind, e)
    }
}

impl From<RecvIntoError> for io::Error {
    /// As for [`RecvError`]; a short buffer or a bad offset is `InvalidInput`.
    fn from(e: RecvIntoError) -> io::Error {
        match e {
            RecvIntoError::Recv(e) => e.into(),
            e => io::Error::new(io::ErrorKind::InvalidInput, e),
        }
    }
}

impl From<BuildError> for io::Error {
    /// The system call's own error, or `InvalidInput`.
    fn from(e: BuildError) -> io::Error {
        match e {
            BuildError::Io(e) => e,
            e => io::Error::new(io::ErrorKind::InvalidInput, e),
        }
    }
}

impl From<AttachError> for io::Error {
    /// The system call's own error, `NotFound` for a missing variable, or `InvalidData`.
    fn from(e: AttachError) -> io::Error {
        match e {
            AttachError::Io(e) => e,
            e @ AttachError::NoVariable { .. } => io::Error::new(io::ErrorKind::NotFound, e),
            e => io::Error::new(io::ErrorKind::InvalidData, e),
        }
    }
}

impl From<NameError> for io::Error {
    /// `InvalidInput`, or the system call's own kind for a directory.
    fn from(e: NameError) -> io::Error {
        let kind = match &e {
            NameError::Directory { error, .. } => error.kind(),
            NameError::NotPrivate { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, e)
    }
}

impl From<ListenError> for io::Error {
    /// `AddrInUse`, `AlreadyExists`, `PermissionDenied`, or the kind of what is inside.
    fn from(e: ListenError) -> io::Error {
        let kind = match e {
            ListenError::Name(e) => return e.into(),
            ListenError::Build(e) => return e.into(),
            ListenError::InUse { .. } => io::ErrorKind::AddrInUse,
            ListenError::NotASocket { .. } => io::ErrorKind::AlreadyExists,
            ListenError::Foreign { .. } => io::ErrorKind::PermissionDenied,
            ListenError::Io { ref error, .. } => error.kind(),
        };
        io::Error::new(kind, e)
    }
}

impl From<AcceptError> for io::Error {
    /// `WouldBlock`, `TimedOut`, `InvalidInput` in a forked child, or the system call's own error.
    fn from(e: AcceptError) -> io::Error {
        let kind = match e {
            AcceptError::Build(e) => return e.into(),
            AcceptError::Io(e) => return e,
            AcceptError::Empty => io::ErrorKind::WouldBlock,
            AcceptError::TimedOut => io::ErrorKind::TimedOut,
            AcceptError::Forked => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, e)
    }
}

impl From<ConnectError> for io::Error {
    /// `TimedOut`, `PermissionDenied`, `InvalidData`, `InvalidInput`, or the kind of what is inside.
    fn from(e: ConnectError) -> io::Error {
        let kind = match e {
            ConnectError::Name(e) => return e.into(),
            ConnectError::Attach(e) => return e.into(),
            ConnectError::TimedOut { .. } => io::ErrorKind::TimedOut,
            ConnectError::Stranger { .. } | ConnectError::NotAllowed { .. } => io::ErrorKind::PermissionDenied,
            ConnectError::Version { .. } | ConnectError::NotAListener { .. } => io::ErrorKind::InvalidData,
            ConnectError::WrongEnd { .. } => io::ErrorKind::InvalidInput,
            ConnectError::Listener { ref error, .. } | ConnectError::Io { ref error, .. } => error.kind(),
        };
        io::Error::new(kind, e)
    }
}
