//! Connecting to a listener by its name.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::error::{ConnectError, NameError};
use crate::greeting::{self, Answer, Peer};
use crate::handover::{self, End};
use crate::name::Place;
use crate::sys::names;

/// Connects to the listener of a name: gets a [`Connection`](crate::Connection) from a [`Listener`](crate::Listener), or joins the pipe of a
/// [`mpmc::Listener`](crate::mpmc::Listener) as a [`mpmc::Sender`](crate::mpmc::Sender) or [`mpmc::Receiver`](crate::mpmc::Receiver).
///
/// Waits for the name to appear, and for its owner to accept, for at most `timeout`, which counts for everything: zero makes one attempt, which
/// only succeeds where a listener is just accepting. A listener that goes away meanwhile is waited for as one that was never there.
///
/// The listener has to run as this user or as the superuser; [`Connector`] allows others.
///
/// ```
/// use std::time::Duration;
/// # let dir = std::env::temp_dir().join(format!("ringpipe-doc-connect-{}", std::process::id()));
/// # std::fs::create_dir(&dir)?;
/// # let name = dir.join("greeter");
///
/// let mut listener = ringpipe::Listener::bind(&name)?;
/// let server = std::thread::spawn(move || {
///     let (mut connection, peer) = listener.accept()?;
///     assert_eq!(peer.pid(), Some(std::process::id()));
///     connection.send_bytes(b"hello")?;
///     Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// });
/// let mut connection: ringpipe::Connection = ringpipe::connect(&name, Duration::from_secs(5))?;
/// assert_eq!(connection.recv_bytes()?, b"hello");
/// # server.join().unwrap().unwrap();
/// # std::fs::remove_dir(&dir)?; // is empty
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`ConnectError::TimedOut`]; [`ConnectError::WrongEnd`] if the listener hands out something else; [`ConnectError::NotAllowed`] and
/// [`ConnectError::Stranger`] if one side does not trust the other's user; [`ConnectError::Io`] without permission; and the other variants.
pub fn connect<E: End>(name: impl AsRef<Path>, timeout: Duration) -> Result<E, ConnectError> {
    Connector::new().connect(name, timeout)
}

/// Connects by name, trusting more than the default.
///
/// ```no_run
/// use std::time::Duration;
/// # const SERVICE: u32 = 990;
/// let connector = ringpipe::Connector::new().allow_uid(SERVICE);
/// let connection: ringpipe::Connection = connector.connect("/run/service/pipe", Duration::from_secs(5))?;
/// # Ok::<(), ringpipe::ConnectError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a connector does nothing until `connect` is called"]
pub struct Connector {
    allowed: Vec<u32>,
}

/// Between two attempts: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(20)];

impl Connector {
    /// Trusts listeners of this process's effective user and of the superuser.
    pub fn new() -> Connector {
        Connector::default()
    }

    /// Trusts listeners of this user, too. What is received from one may be anything, and the memory of the pipe is the listener's.
    pub fn allow_uid(mut self, uid: u32) -> Connector {
        self.allowed.push(uid);
        self
    }

    /// As [`connect`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn connect<E: End>(&self, name: impl AsRef<Path>, timeout: Duration) -> Result<E, ConnectError> {
        let (name, deadline) = (name.as_ref(), Deadline::after(timeout));
        let mut pause = PAUSES[0];
        loop {
            let what = match self.attempt(name, deadline)? {
                Attempt::End(end) => return Ok(end),
                Attempt::Again(what) => what,
            };
            if deadline.passed() {
                return Err(ConnectError::TimedOut { name: name.into(), timeout, what });
            }
            std::thread::sleep(
                deadline.at().map_or(pause, |at| pause.min(Duration::from_nanos(at.saturating_sub(crate::sys::now())))),
            );
            pause = (2 * pause).min(PAUSES[1]);
        }
    }

    fn attempt<E: End>(&self, name: &Path, deadline: Deadline) -> Result<Attempt<E>, ConnectError> {
        let failed = |error| ConnectError::Io { name: name.into(), error };
        let place = match Place::find(name) {
            Ok(place) => place,
            Err(NameError::Directory { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Attempt::Again("there is no such name"));
            }
            Err(e) => return Err(e.into()),
        };
        let socket = match names::connect(&place.address(), deadline) {
            Ok(socket) => socket,
            Err(e) => match e.kind() {
                io::ErrorKind::NotFound => return Ok(Attempt::Again("there is no such name")),
                // So it is for a file of another kind.
                io::ErrorKind::ConnectionRefused if place.is_occupied() => {
                    return Err(ConnectError::NotAListener { name: name.into() });
                }
                io::ErrorKind::ConnectionRefused => {
                    return Ok(Attempt::Again("nobody listens there, its owner was killed"));
                }
                io::ErrorKind::WouldBlock => return Ok(Attempt::Again("too many wait there already")),
                _ if e.raw_os_error() == Some(libc::EPROTOTYPE) => {
                    return Err(ConnectError::NotAListener { name: name.into() });
                }
                _ => return Err(failed(e)),
            },
        };
        let listener = Peer::of(socket.as_fd()).map_err(failed)?;
        if !listener.is_trusted(&self.allowed) {
            return Err(ConnectError::Stranger { name: name.into(), uid: listener.uid() });
        }
        match names::send(socket.as_fd(), &greeting::request::<E>()) {
            Ok(()) => {}
            // It may have said why.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
            Err(e) => return Err(failed(e)),
        }
        let answer = greeting::await_answer(socket.as_fd(), deadline).map_err(failed)?;
        answered(name, answer)
    }
}

/// What comes of what a listener said.
pub(crate) fn answered<E: End>(name: &Path, answer: Answer) -> Result<Attempt<E>, ConnectError> {
    let name = || name.to_owned();
    let ours = handover::kind_name::<E>();
    match answer {
        Answer::End(frame, fds) => Ok(Attempt::End(handover::unpack(frame, fds)?)),
        Answer::Nothing => Ok(Attempt::Again("its owner goes away without an answer")),
        Answer::Late => Ok(Attempt::Again("its owner does not accept anybody")),
        Answer::Version(theirs) => Err(ConnectError::Version { name: name(), ours: greeting::VERSION, theirs }),
        Answer::WrongEnd(theirs) => Err(ConnectError::WrongEnd { name: name(), ours, theirs }),
        Answer::NotAllowed => Err(ConnectError::NotAllowed { name: name() }),
        Answer::Failed(error) => Err(ConnectError::Listener { name: name(), error }),
        Answer::Nonsense => Err(ConnectError::NotAListener { name: name() }),
    }
}

pub(crate) enum Attempt<E> {
    End(E),
    /// What is missing.
    Again(&'static str),
}
