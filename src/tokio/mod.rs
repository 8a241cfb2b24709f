//! The ends of [`pipe`](crate::pipe) and [`simplex`](crate::simplex) for [tokio](https://docs.rs/tokio) (feature `tokio`).
//!
//! Made of blocking ends, and turned back into them. What the other side is makes no difference: an end for tokio, a blocking one, in this process or another.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
//! use ringpipe::tokio::Connection;
//!
//! let (mine, mut theirs) = ringpipe::pipe()?;
//! # #[cfg(feature = "serde")]
//! let squares = std::thread::spawn(move || {
//!     while let Ok(number) = theirs.recv::<u64>() {
//!         theirs.send(&(number * number)).unwrap();
//!     }
//! });
//! let mut mine = Connection::from_blocking(mine)?;
//! # #[cfg(feature = "serde")] {
//! mine.send(&12_u64).await?;
//! assert_eq!(mine.recv::<u64>().await?, 144);
//! # drop(mine);
//! # squares.join().unwrap();
//! # }
//! # Ok(()) })
//! # }
//! ```
//!
//! # Waiting
//!
//! A call that finds what it needs goes on at once: no system call, and nothing to do with the runtime, but that each counts for its cooperative scheduling.
//! Otherwise it looks for a microsecond at a time, and lets other tasks run in between, for as long as the pipe's [wait strategy](crate::WaitStrategy) says and that has
//! been paying off; then it has the runtime watch the end's descriptor. Only while it does, the other side makes a system call to wake it, one for
//! each such wait.
//!
//! There are no forms with a time-out: [`tokio::time::timeout`](https://docs.rs/tokio/latest/tokio/time/fn.timeout.html) does the same, since a call can be given up at any time.
//!
//! # Giving up
//!
//! All calls are *cancel safe*: a future that is dropped before it is done, as `select!` and time-outs do, loses no message and tears none.
//!
//! | dropped | what has happened |
//! | --- | --- |
//! | any receive | nothing was consumed. What had arrived of a long message is kept for the next receive. |
//! | a send | nothing was sent. What the receiver had got of a long message is taken back: it sees nothing of it. |
//! | [`readable`](Receiver::readable) | nothing. |
//! | a send to the end as a [`Sink`] | the message is sent by what comes next: the next send or flush. (If the end is dropped while a long one has been sent in part, the receiver gets [`RecvError::Cut`].) |
//!
//! Dropping an end never waits.
//!
//! # Limits
//!
//! - An end belongs to the runtime in which it was made of a blocking one, and needs its I/O enabled. It holds one more descriptor than a blocking one (a connection two).
//! - Up to four rings of bytes are copied in one go, if a message is as long: a poll may take as long as that.
//! - In a forked child these ends can only be dropped, or made blocking ones ([`into_blocking`](Connection::into_blocking)): the runtime is the parent's.
//! - What `get_mut` lends has to stay the end that it is (`mem::swap`). If receiving ends by a call of its own ([`RecvError::TooLong`], [`RecvError::Corrupt`]), the sender
//!   gets its broken pipe with the next call of this end, or when it is dropped.
//! - A sender that is killed while it sends a pipe end, and a forked copy of which goes on, may leave a receiving task asleep although messages come, from some hundred
//!   waits later on.
//! - If a sender is killed between publishing a message and announcing it, while a forked copy of its end lives on in silence, a task that waits finds the message with
//!   the next one. Likewise for a task that waits for room, if a receiver is killed between taking a message and saying so.
//! - Pipe ends are sent and received by the `try_` forms of what `get_mut` lends, as batches are, and guards.

mod ear;
mod receiver;
mod sender;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_sink::Sink;

use crate::error::{RecvError, RecvIntoError, SendError};
pub use receiver::Receiver;
pub use sender::Sender;

/// One end of a duplex pipe, for tokio: as [`ringpipe::Connection`](crate::Connection).
///
/// A [`Sender`] and a [`Receiver`] in one. To send and to receive in two tasks, [`split`](Self::split) it; in one task, at the same time,
/// use [`halves_mut`](Self::halves_mut).
pub struct Connection {
    sender: Sender,
    receiver: Receiver,
}

impl Connection {
    /// Makes an end for the current runtime of a blocking one.
    ///
    /// # Errors
    ///
    /// What the kernel says if there are no more descriptors to be had; the end is closed then.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O enabled.
    pub fn from_blocking(end: crate::Connection) -> io::Result<Connection> {
        let (sender, receiver) = end.split();
        Ok(Connection { sender: Sender::from_blocking(sender)?, receiver: Receiver::from_blocking(receiver)? })
    }

    /// The blocking end again: see [`Sender::into_blocking`].
    pub fn into_blocking(self) -> crate::Connection {
        crate::Connection::new(self.sender.into_blocking(), self.receiver.into_blocking())
    }

    /// As [`Sender::send_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn send_bytes(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.sender.send_bytes(message).await
    }

    /// As [`Sender::send`].
    ///
    /// # Errors
    ///
    /// As there.
    #[cfg(feature = "serde")]
    pub async fn send<T: serde::Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SendError> {
        self.sender.send(value).await
    }

    /// As [`Receiver::recv_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn recv_bytes(&mut self) -> Result<Vec<u8>, RecvError> {
        self.receiver.recv_bytes().await
    }

    /// As [`Receiver::recv_bytes_max`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn recv_bytes_max(&mut self, maxlength: usize) -> Result<Vec<u8>, RecvError> {
        self.receiver.recv_bytes_max(maxlength).await
    }

    /// As [`Receiver::recv_bytes_into`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn recv_bytes_into(&mut self, buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError> {
        self.receiver.recv_bytes_into(buf, offset).await
    }

    /// As [`Receiver::recv`].
    ///
    /// # Errors
    ///
    /// As there.
    #[cfg(feature = "serde")]
    pub async fn recv<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, RecvError> {
        self.receiver.recv().await
    }

    /// As [`Receiver::readable`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn readable(&mut self) -> Result<(), RecvError> {
        self.receiver.readable().await
    }

    /// The two halves. Each keeps its direction open by itself.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Both halves at once, to send with the one and receive with the other.
    pub fn halves_mut(&mut self) -> (&mut Sender, &mut Receiver) {
        (&mut self.sender, &mut self.receiver)
    }
}

/// As for [`Receiver`].
impl Stream for Connection {
    type Item = Result<Vec<u8>, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.receiver).poll_next(cx)
    }
}

/// As for [`Sender`].
impl Sink<Vec<u8>> for Connection {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Pin::new(&mut self.sender).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Vec<u8>) -> Result<(), SendError> {
        Pin::new(&mut self.sender).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Pin::new(&mut self.sender).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Pin::new(&mut self.sender).poll_close(cx)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("sender", &self.sender).field("receiver", &self.receiver).finish()
    }
}
