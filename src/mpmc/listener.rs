//! One pipe for many, joined by its name.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Receiver, Sender};
use crate::deadline::Deadline;
use crate::error::{AcceptError, ListenError};
use crate::greeting::Peer;
use crate::handover;
use crate::listener::{ListenerBuilder, accept_forms};
use crate::reception::Reception;

/// Lets any process that [connects](crate::connect) to a name join one pipe for many, as a [`Sender`] or as a [`Receiver`].
///
/// What [`crate::Listener`] says of names and of who may connect holds here, too.
///
/// The listener holds both ends: as long as it lives, receivers wait for senders that may still come, and senders for receivers. When it is dropped, or
/// its process killed, the pipe lives on among those who have joined, with nobody else to come: end of file and broken pipe are theirs from then on.
///
/// ```
/// use ringpipe::mpmc;
/// use std::time::Duration;
/// # let dir = std::env::temp_dir().join(format!("ringpipe-doc-queue-{}", std::process::id()));
/// # std::fs::create_dir(&dir)?;
/// # let name = &dir.join("jobs");
///
/// // Some process serves the name:
/// let mut queue = mpmc::Listener::bind(name)?;
/// let server = std::thread::spawn(move || {
///     queue.accept()?;
///     queue.accept() // `serve` goes on for ever
/// });
///
/// // Any number of others send and receive:
/// let timeout = Duration::from_secs(5);
/// let sender: mpmc::Sender = ringpipe::connect(name, timeout)?;
/// let receiver: mpmc::Receiver = ringpipe::connect(name, timeout)?;
/// sender.send_bytes(b"a job")?;
/// assert_eq!(receiver.recv_bytes()?, b"a job");
/// # assert_eq!(server.join().unwrap()?.0, mpmc::Role::Receiver);
/// # std::fs::remove_dir(&dir)?; // is empty
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Listener {
    reception: Reception,
    receiver: Receiver,
    sender: Sender,
}

/// As what a client has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It sends.
    Sender,
    /// It receives.
    Receiver,
}

impl Listener {
    pub(crate) fn new(reception: Reception, (receiver, sender): (Receiver, Sender)) -> Listener {
        Listener { reception, receiver, sender }
    }

    /// Makes a pipe for many and listens under a name. [`ListenerBuilder::bind_mpmc`] makes one that differs from the default.
    ///
    /// # Errors
    ///
    /// As [`crate::Listener::bind`], and [`ListenError::Build`].
    pub fn bind(name: impl AsRef<Path>) -> Result<Listener, ListenError> {
        ListenerBuilder::new().bind_mpmc(name)
    }

    accept_forms! {
        /// Waits for a client, and lets it join. Returns as what, and who it is.
        ///
        /// # Errors
        ///
        /// As [`crate::Listener::accept`].
        (Role, Peer)
    }

    /// Lets everybody join who comes, until something goes wrong. It can be called again then.
    pub fn serve(&mut self) -> AcceptError {
        loop {
            if let Err(error) = self.accept() {
                return error;
            }
        }
    }

    /// The receiving end, of which this process can have copies (`clone`) of its own.
    pub fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// The sending end, likewise.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Where the name lies.
    pub fn path(&self) -> &Path {
        self.reception.claim().shown()
    }

    fn accept_until(&mut self, deadline: Deadline) -> Result<(Role, Peer), AcceptError> {
        loop {
            let guest = self.reception.next(deadline)?;
            let peer = guest.peer;
            let (role, given) = if guest.kind == handover::kind::<Sender>() {
                (Role::Sender, guest.give(&self.sender)?)
            } else {
                (Role::Receiver, guest.give(&self.receiver)?)
            };
            if given {
                return Ok((role, peer));
            }
            self.reception.given_in_vain(deadline)?;
        }
    }
}

impl AsFd for Listener {
    /// As [`crate::Listener`]'s.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reception.as_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("path", &self.path()).finish_non_exhaustive()
    }
}
