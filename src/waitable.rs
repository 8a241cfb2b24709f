//! What `wait` takes: receiving ends, and descriptors of other kinds. How it waits stands in `select.rs`.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{ChildStderr, ChildStdout};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::select::{self, wait_for};
use crate::{Connection, Receiver, mpmc};
use sealed::{Sealed, Source};

/// What [`wait`] can wait for: [`Receiver`] (or its [`Watcher`]), [`Connection`] and [`mpmc::Receiver`], which are ready when something can be received; and descriptors
/// of other kinds, which are ready when they are readable.
///
/// For a type that is not in the list below, pass what its `as_fd` returns; mind that what a buffered reader has read already is nothing to a descriptor.
pub trait Waitable: Sealed {}

mod sealed {
    pub trait Sealed {
        fn source(&self) -> Source<'_>;
    }

    /// What is looked at, and listened to.
    pub struct Source<'a>(pub(crate) crate::select::Source<'a>);
}

/// Waits until something can be received by some of `ends`, or their peers are gone, or `timeout` has passed. Follows
/// `multiprocessing.connection.wait`.
///
/// `Some(Duration::ZERO)` returns at once, `None` waits as long as it takes. Returns the indices of all that are ready, in ascending order; none if the
/// time has passed.
///
/// - A pipe end is ready if a receive would not have to wait: for a message, or the start or a further part of a long one; for end of file; for an error. It is
///   in the result for nothing only if what is left of a long message has to be passed over, because a process was killed that had received its start.
/// - It gives no room back, not even that of padding, as a receive does: a sender that only ever *tries* to send a message of nearly the ring's length may find
///   none until then.
/// - Another end of a pipe for many may be quicker to take what made one ready.
/// - Anything else is ready when `poll` says that it is readable, hung up or broken.
///
/// Any number of ends can be waited for, and an end more than once. Nothing is received, and nothing has to be set up or taken down. Unlike watching the descriptor
/// that `as_fd` lends, a wait makes receiving no dearer: a message costs its receiver no system call, and its sender one at most, if it is the first since
/// a wait that slept. Each wait takes time in proportion to the number of ends: with hundreds that are seldom ready all, `epoll` on their descriptors scales better.
///
/// ```
/// use std::time::Duration;
///
/// let (first, _kept) = ringpipe::simplex()?;
/// let (mut second, mut sender) = ringpipe::simplex()?;
/// assert!(ringpipe::wait(&[&first, &second], Some(Duration::ZERO))?.is_empty());
/// sender.send_bytes(b"hello")?;
/// assert_eq!(ringpipe::wait(&[&first, &second], None)?, [1]);
/// assert_eq!(second.recv_bytes()?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if there are no ends and no time-out, which would never return; what the kernel says if it does not let
/// this process poll as many descriptors, and none of the ends is known to be ready.
pub fn wait(ends: &[&dyn Waitable], timeout: Option<Duration>) -> io::Result<Vec<usize>> {
    let deadline = timeout.map_or(Deadline::NEVER, Deadline::after);
    if ends.is_empty() && timeout.is_none() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "there is nothing to wait for: pass an end, or a time-out",
        ));
    }
    wait_for(ends.iter().map(|end| end.source().0), deadline)
}

/// Waits for a receiving end, by [`wait`] or its descriptor, and receives nothing; made by [`Receiver::watcher`].
///
/// Messages that were received by the end do not show in the descriptor by themselves: ask for it (`as_fd`) anew before each wait.
#[derive(Debug)]
pub struct Watcher(pub(crate) Receiver);

impl AsFd for Watcher {
    /// As [`Receiver`]'s, as of now.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Sealed for Watcher {
    fn source(&self) -> Source<'_> {
        Source(select::Source::Pipe(&self.0))
    }
}

impl Sealed for Receiver {
    fn source(&self) -> Source<'_> {
        Source(select::Source::Pipe(self))
    }
}

impl Sealed for mpmc::Receiver {
    fn source(&self) -> Source<'_> {
        Source(select::Source::Pipe(self))
    }
}

impl Sealed for Connection {
    fn source(&self) -> Source<'_> {
        Source(select::Source::Pipe(self.receiver()))
    }
}

impl Waitable for Receiver {}
impl Waitable for Watcher {}
impl Waitable for mpmc::Receiver {}
impl Waitable for Connection {}

macro_rules! descriptors {
    ($($type:ty),+) => {$(
        impl Sealed for $type {
            fn source(&self) -> Source<'_> {
                Source(select::Source::Other(self.as_fd()))
            }
        }

        impl Waitable for $type {}
    )+};
}

descriptors!(BorrowedFd<'_>, OwnedFd, File, ChildStdout, ChildStderr);
descriptors!(TcpListener, TcpStream, UdpSocket, UnixDatagram, UnixListener, UnixStream);

macro_rules! forwarded {
    ($($type:ty),+) => {$(
        impl<T: Sealed + ?Sized> Sealed for $type {
            fn source(&self) -> Source<'_> {
                (**self).source()
            }
        }

        impl<T: Waitable + ?Sized> Waitable for $type {}
    )+};
}

forwarded!(&T, &mut T, Box<T>, std::sync::Arc<T>, std::rc::Rc<T>);
