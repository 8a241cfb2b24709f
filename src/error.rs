//! Every error type. One per kind of operation; each message says what to do where that is not plain.

use std::io;

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
    /// part.
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
