//! Handing out pipes by name.
//!
//! `name.rs` says whose a name is, `greeting.rs` what is said, `reception.rs` how those who connect are kept from holding up each other, and
//! `connect.rs` is the other side.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::error::{AcceptError, ListenError};
use crate::greeting::{Offer, Peer};
use crate::mpmc;
use crate::name::{Claim, Place};
use crate::pipe::Builder;
use crate::reception::Reception;

/// The four forms of `accept`, on top of `accept_until`.
macro_rules! accept_forms {
    ($(#[$docs:meta])+ $accepted:ty) => {
        $(#[$docs])+
        pub fn accept(&mut self) -> Result<$accepted, AcceptError> {
            self.accept_until(Deadline::NEVER)
        }

        /// As [`accept`](Self::accept), without waiting.
        ///
        /// # Errors
        ///
        /// As [`accept`](Self::accept), and [`AcceptError::Empty`].
        pub fn try_accept(&mut self) -> Result<$accepted, AcceptError> {
            self.accept_until(Deadline::NOW)
        }

        /// As [`accept`](Self::accept), waiting for at most `timeout`.
        ///
        /// # Errors
        ///
        /// As [`accept`](Self::accept), and [`AcceptError::TimedOut`].
        pub fn accept_timeout(&mut self, timeout: Duration) -> Result<$accepted, AcceptError> {
            self.accept_until(Deadline::after(timeout))
        }

        /// As [`accept`](Self::accept), waiting until `deadline`.
        ///
        /// # Errors
        ///
        /// As [`accept_timeout`](Self::accept_timeout).
        pub fn accept_deadline(&mut self, deadline: Instant) -> Result<$accepted, AcceptError> {
            self.accept_until(Deadline::instant(deadline))
        }
    };
}
pub(crate) use accept_forms;

/// Hands a fresh duplex pipe to each process that [connects](crate::connect) to a name. Follows `multiprocessing.connection.Listener`.
///
/// A name without a `/` (`jobs`) is one among those of this user: it lies in a directory that only the user may enter, `ringpipe` in
/// `XDG_RUNTIME_DIR`, or `/tmp/ringpipe-UID` where that is not set or not the user's. A name with a `/` is the path of a socket, as it is.
///
/// The name belongs to one living process: another that wants to listen there gets [`ListenError::InUse`]. Dropping the listener gives it
/// up and removes its files. If the process is killed they stay, in nobody's way: the next listener takes them over.
///
/// Clients have to run as this user or as the superuser; [`ListenerBuilder::allow_uid`] allows others. One that connects and says nothing holds up
/// nobody, and is turned away after a second.
///
/// ```
/// use ringpipe::{Connection, Listener};
/// use std::time::Duration;
/// # let dir = std::env::temp_dir().join(format!("ringpipe-doc-listener-{}", std::process::id()));
/// # std::fs::create_dir(&dir)?;
/// # let name = &dir.join("squares");
///
/// // The server, a thread for each client:
/// let mut listener = Listener::bind(name)?;
/// std::thread::spawn(move || {
///     for client in listener.incoming() {
///         let Ok((mut connection, _peer)) = client else { break };
///         std::thread::spawn(move || {
///             while let Ok(number) = connection.recv::<u64>() {
///                 connection.send(&(number * number)).unwrap();
///             }
///         });
///     }
/// });
///
/// // A client, in any process of the same user:
/// let mut connection: Connection = ringpipe::connect(name, Duration::from_secs(5))?;
/// connection.send(&12_u64)?;
/// assert_eq!(connection.recv::<u64>()?, 144);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A forked child's copy can only be dropped. If this process is killed, the name stays taken as long as such a copy is open.
pub struct Listener {
    reception: Reception,
    pipes: Builder,
}

impl Listener {
    /// Listens under a name, with the defaults of [`ListenerBuilder`].
    ///
    /// # Errors
    ///
    /// [`ListenError::InUse`] if another process does; [`ListenError::Name`] for a name that cannot be used; [`ListenError::NotASocket`] and
    /// [`ListenError::Foreign`] if something else lies there, which is left alone; [`ListenError::Io`].
    pub fn bind(name: impl AsRef<Path>) -> Result<Listener, ListenError> {
        Listener::builder().bind(name)
    }

    /// A listener that differs from the default.
    pub fn builder() -> ListenerBuilder {
        ListenerBuilder::new()
    }

    accept_forms! {
        /// Waits for a client, makes a pipe, and gives it one end. The other is returned, with who the client is.
        ///
        /// A client that is gone by then leaves a connection that is at its end of file, or is passed over.
        ///
        /// # Errors
        ///
        /// [`AcceptError::Io`] and [`AcceptError::Build`] out of descriptors or memory. The listener goes on listening, and whoever wants to connect is
        /// not lost unless it was told so.
        (Connection, Peer)
    }

    /// Accepts one client after the other, for ever. After an error it goes on; out of descriptors, that is the same error at once.
    pub fn incoming(&mut self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// Where the name lies.
    pub fn path(&self) -> &Path {
        self.reception.claim().shown()
    }

    fn accept_until(&mut self, deadline: Deadline) -> Result<(Connection, Peer), AcceptError> {
        loop {
            let guest = self.reception.next(deadline)?;
            let peer = guest.peer;
            let (mine, theirs) = match self.pipes.pipe() {
                Ok(pipe) => pipe,
                Err(error) => {
                    let error = std::io::Error::from(error);
                    guest.disappoint(&error);
                    return Err(AcceptError::Build(error.into()));
                }
            };
            if guest.give(&theirs)? {
                return Ok((mine, peer));
            }
            self.reception.given_in_vain(deadline)?;
        }
    }
}

impl AsFd for Listener {
    /// Readable when [`try_accept`](Self::try_accept) has something to do, though it may have nobody to return then. Level-triggered, only to be
    /// watched.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reception.as_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// Made by [`Listener::incoming`].
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a mut Listener,
}

impl Iterator for Incoming<'_> {
    type Item = Result<(Connection, Peer), AcceptError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.listener.accept())
    }
}

/// Makes listeners that differ from the default.
///
/// ```no_run
/// use ringpipe::{Builder, Listener};
/// # const OTHER: u32 = 1001;
/// let listener = Listener::builder()
///     .pipes(Builder::new().capacity(1 << 20))
///     .allow_uid(OTHER)
///     .bind("/run/service/pipe")?;
/// # Ok::<(), ringpipe::ListenError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `bind` or `bind_mpmc` is called"]
pub struct ListenerBuilder {
    pipes: Builder,
    mode: Option<u32>,
    allowed: Vec<u32>,
    backlog: u32,
}

impl Default for ListenerBuilder {
    fn default() -> ListenerBuilder {
        ListenerBuilder { pipes: Builder::new(), mode: None, allowed: Vec::new(), backlog: 1024 }
    }
}

impl ListenerBuilder {
    /// The defaults: pipes of [`Builder::new`], for clients of this user and the superuser.
    pub fn new() -> ListenerBuilder {
        ListenerBuilder::default()
    }

    /// How the pipes are made.
    pub fn pipes(mut self, builder: Builder) -> ListenerBuilder {
        self.pipes = builder;
        self
    }

    /// The mode of the socket's file, as of `chmod`: to connect needs the permission to write. By default, 0600, or 0666 if other users are
    /// [allowed](Self::allow_uid). It comes on top of that: the permission does not make a user allowed.
    ///
    /// This user can write in any case: to the next listener, a file that it cannot connect to would not look like a killed one's.
    pub fn mode(mut self, mode: u32) -> ListenerBuilder {
        self.mode = Some(mode & 0o777 | 0o200);
        self
    }

    /// Serves clients of this user, too; they have to [allow](crate::Connector::allow_uid) this one. Only under a name with a `/`: nobody else can enter
    /// the directory of the others.
    pub fn allow_uid(mut self, uid: u32) -> ListenerBuilder {
        self.allowed.push(uid);
        self
    }

    /// How many clients may wait to be accepted before others wait for a place in the queue; 1024 by default, and at most what the kernel
    /// allows (`net.core.somaxconn`).
    pub fn backlog(mut self, clients: u32) -> ListenerBuilder {
        self.backlog = clients;
        self
    }

    /// Listens under a name, handing a fresh pipe to each client.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`], and [`ListenError::Build`] for pipes that cannot be made.
    pub fn bind(&self, name: impl AsRef<Path>) -> Result<Listener, ListenError> {
        // What cannot be made at all is said now, and not to each client.
        drop(self.pipes.pipe()?);
        let place = Place::make(name.as_ref())?;
        let pipes = self.pipes.clone().named(&place.real_path());
        Ok(Listener { reception: self.open(place, Offer::Connections)?, pipes })
    }

    /// Listens under a name, handing ends of one pipe for many to all clients.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`], and [`ListenError::Build`].
    pub fn bind_mpmc(&self, name: impl AsRef<Path>) -> Result<mpmc::Listener, ListenError> {
        let place = Place::make(name.as_ref())?;
        let pipe = self.pipes.clone().named(&place.real_path()).mpmc()?;
        Ok(mpmc::Listener::new(self.open(place, Offer::EndsForMany)?, pipe))
    }

    fn open(&self, place: Place, offer: Offer) -> Result<Reception, ListenError> {
        let mode = self.mode.unwrap_or(if self.allowed.is_empty() { 0o600 } else { 0o666 });
        let name = place.shown().to_owned();
        let claim = Claim::take(place, mode, self.backlog)?;
        let opened = Reception::open(claim, self.allowed.clone(), offer);
        opened.map_err(|error| ListenError::Io { name, what: "watch", error })
    }
}
