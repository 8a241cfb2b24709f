//! Both directions of a duplex pipe.

use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::batch::{Batch, SendBatch};
use crate::error::{RecvError, RecvIntoError, SendError};
use crate::handover::{End, HandoverError};
use crate::read_guard::ReadGuard;
use crate::receiver::{Iter, Receiver};
use crate::sender::{Sender, WriteGuard};

/// One end of a duplex pipe: sends to, and receives from, the other end.
///
/// A [`Sender`] and a [`Receiver`] in one, with the methods of both to send and receive; [`split`](Self::split) takes it apart, for two threads or
/// two processes, and [`sender_mut`](Self::sender_mut) and [`receiver_mut`](Self::receiver_mut) lend the halves.
///
/// An end belongs to one thread at a time:
///
/// ```compile_fail
/// let (mut a, b) = ringpipe::pipe().unwrap();
/// std::thread::scope(|s| {
///     s.spawn(|| a.send_bytes(b"one"));
///     s.spawn(|| a.send_bytes(b"two")); // error: cannot borrow `a` as mutable more than once
/// });
/// ```
///
/// but can move between threads, and its halves can be used from two:
///
/// ```
/// let (a, mut b) = ringpipe::pipe()?;
/// let (mut sender, mut receiver) = a.split();
/// std::thread::scope(|s| {
///     s.spawn(move || sender.send_bytes(b"ping").unwrap());
///     s.spawn(move || assert_eq!(receiver.recv_bytes().unwrap(), b"pong"));
///     assert_eq!(b.recv_bytes().unwrap(), b"ping");
///     b.send_bytes(b"pong").unwrap();
/// });
/// # Ok::<(), ringpipe::BuildError>(())
/// ```
pub struct Connection {
    sender: Sender,
    receiver: Receiver,
}

/// Methods of the halves, under their own names.
macro_rules! forward {
    ($half:ident $of:ident: $($name:ident$([$generics:tt: $($bound:tt)+])?($($arg:ident: $type:ty),*) -> $result:ty;)+) => {$(
        #[doc = concat!("As [`", stringify!($of), "::", stringify!($name), "`].\n\n# Errors\n\nAs there.")]
        #[inline]
        pub fn $name$(<$generics: $($bound)+>)?(&mut self $(, $arg: $type)*) -> $result {
            self.$half.$name($($arg),*)
        }
    )+};
}

impl Connection {
    pub(crate) fn new(sender: Sender, receiver: Receiver) -> Connection {
        Connection { sender, receiver }
    }

    forward! { sender Sender:
        send_bytes(message: &[u8]) -> Result<(), SendError>;
        try_send_bytes(message: &[u8]) -> Result<(), SendError>;
        send_bytes_timeout(message: &[u8], timeout: Duration) -> Result<(), SendError>;
        send_bytes_deadline(message: &[u8], deadline: Instant) -> Result<(), SendError>;
        send_batch[I: IntoIterator<Item: AsRef<[u8]>>](messages: I) -> Result<(), SendError>;
        try_send_batch[M: AsRef<[u8]>](messages: &[M]) -> Result<usize, SendError>;
        send_vectored(parts: &[IoSlice<'_>]) -> Result<(), SendError>;
        try_send_vectored(parts: &[IoSlice<'_>]) -> Result<(), SendError>;
        send_vectored_timeout(parts: &[IoSlice<'_>], timeout: Duration) -> Result<(), SendError>;
        send_vectored_deadline(parts: &[IoSlice<'_>], deadline: Instant) -> Result<(), SendError>;
        reserve(len: usize) -> Result<WriteGuard<'_>, SendError>;
        try_reserve(len: usize) -> Result<WriteGuard<'_>, SendError>;
        reserve_timeout(len: usize, timeout: Duration) -> Result<WriteGuard<'_>, SendError>;
        reserve_deadline(len: usize, deadline: Instant) -> Result<WriteGuard<'_>, SendError>;
        send_end[E: End](end: E) -> Result<(), HandoverError<E>>;
        try_send_end[E: End](end: E) -> Result<(), HandoverError<E>>;
        send_end_timeout[E: End](end: E, timeout: Duration) -> Result<(), HandoverError<E>>;
        send_end_deadline[E: End](end: E, deadline: Instant) -> Result<(), HandoverError<E>>;
    }

    forward! { receiver Receiver:
        recv_bytes() -> Result<Vec<u8>, RecvError>;
        try_recv_bytes() -> Result<Vec<u8>, RecvError>;
        recv_bytes_timeout(timeout: Duration) -> Result<Vec<u8>, RecvError>;
        recv_bytes_deadline(deadline: Instant) -> Result<Vec<u8>, RecvError>;
        recv_bytes_max(maxlength: usize) -> Result<Vec<u8>, RecvError>;
        try_recv_bytes_max(maxlength: usize) -> Result<Vec<u8>, RecvError>;
        recv_bytes_max_timeout(maxlength: usize, timeout: Duration) -> Result<Vec<u8>, RecvError>;
        recv_bytes_max_deadline(maxlength: usize, deadline: Instant) -> Result<Vec<u8>, RecvError>;
        recv_bytes_into(buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError>;
        try_recv_bytes_into(buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError>;
        recv_bytes_into_timeout(buf: &mut [u8], offset: usize, timeout: Duration) -> Result<usize, RecvIntoError>;
        recv_bytes_into_deadline(buf: &mut [u8], offset: usize, deadline: Instant) -> Result<usize, RecvIntoError>;
        recv_batch(batch: &mut Batch) -> Result<(), RecvError>;
        try_recv_batch(batch: &mut Batch) -> Result<(), RecvError>;
        recv_batch_timeout(batch: &mut Batch, timeout: Duration) -> Result<(), RecvError>;
        recv_batch_deadline(batch: &mut Batch, deadline: Instant) -> Result<(), RecvError>;
        recv_guard() -> Result<ReadGuard<'_>, RecvError>;
        try_recv_guard() -> Result<ReadGuard<'_>, RecvError>;
        recv_guard_timeout(timeout: Duration) -> Result<ReadGuard<'_>, RecvError>;
        recv_guard_deadline(deadline: Instant) -> Result<ReadGuard<'_>, RecvError>;
        recv_end[E: End]() -> Result<E, RecvError>;
        try_recv_end[E: End]() -> Result<E, RecvError>;
        recv_end_timeout[E: End](timeout: Duration) -> Result<E, RecvError>;
        recv_end_deadline[E: End](deadline: Instant) -> Result<E, RecvError>;
        poll(timeout: Option<Duration>) -> Result<bool, RecvError>;
    }

    /// Whether every copy of the other end's receiving half is closed, so that there is no use in sending. Messages may be left to
    /// receive, and the other end's sending half open; the descriptor, which is the receiving half's, is not touched.
    pub fn is_disconnected(&mut self) -> bool {
        self.sender.is_disconnected()
    }

    /// As [`Sender::batch`].
    #[inline]
    pub fn batch(&mut self) -> SendBatch<'_> {
        self.sender.batch()
    }

    /// As [`Receiver::iter`].
    pub fn iter(&mut self) -> Iter<'_> {
        self.receiver.iter()
    }

    /// As [`Receiver::try_iter`].
    pub fn try_iter(&mut self) -> Iter<'_> {
        self.receiver.try_iter()
    }

    /// The two halves. Each keeps its direction open by itself.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// The sending half.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// The sending half, to send with.
    pub fn sender_mut(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// The receiving half.
    pub fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// The receiving half, to receive with.
    pub fn receiver_mut(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// Both halves at once, for a thread that sends beside one that receives.
    pub fn halves_mut(&mut self) -> (&mut Sender, &mut Receiver) {
        (&mut self.sender, &mut self.receiver)
    }

    /// Closes this copy of the end; the same as dropping it.
    pub fn close(self) {}
}

#[cfg(feature = "serde")]
use serde::{Serialize, de::DeserializeOwned};

#[cfg(feature = "serde")]
impl Connection {
    forward! { sender Sender:
        send[T: Serialize + ?Sized](value: &T) -> Result<(), SendError>;
        try_send[T: Serialize + ?Sized](value: &T) -> Result<(), SendError>;
        send_timeout[T: Serialize + ?Sized](value: &T, timeout: Duration) -> Result<(), SendError>;
        send_deadline[T: Serialize + ?Sized](value: &T, deadline: Instant) -> Result<(), SendError>;
    }

    forward! { receiver Receiver:
        recv[T: DeserializeOwned]() -> Result<T, RecvError>;
        try_recv[T: DeserializeOwned]() -> Result<T, RecvError>;
        recv_timeout[T: DeserializeOwned](timeout: Duration) -> Result<T, RecvError>;
        recv_deadline[T: DeserializeOwned](deadline: Instant) -> Result<T, RecvError>;
    }
}

impl AsFd for Connection {
    /// The receiving half's descriptor: as [`Receiver`]'s.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("sender", &self.sender).field("receiver", &self.receiver).finish()
    }
}
