//! The second process, and how the first one gives it orders.
//!
//! It is this program again, under a hidden command. One ringpipe, inherited, carries the orders; the rings under test arrive over
//! that one as messages, and the kernel's descriptors are inherited under the numbers in the arguments. When the first
//! process is gone, for whatever reason, every transport says so and the second one ends.

use std::env;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringpipe::{Builder, Connection, End, RecvError};
use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use serde::{Deserialize, Serialize};

use crate::bench::flags::Flags;
use crate::bench::transport::Stream;
use crate::bench::{Failure, cpu, traffic};

/// The hidden command.
pub(crate) const NAME: &str = "bench-peer";
/// Where the second process finds its end of the pipe for orders.
const VARIABLE: &str = "RINGPIPE_BENCH_PEER";

/// What a measurement goes through.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Lane {
    /// A ringpipe as it comes.
    Ring,
    /// One that always spins.
    RingSpinning,
    /// One that never spins.
    RingBlocking,
    FdPipe,
    /// An fd pipe that is read without blocking, in a loop.
    FdPipeSpinning,
    Socket,
}

/// The ends of all lanes that one process holds.
pub(crate) struct Ends {
    ring: Connection,
    ring_spinning: Connection,
    ring_blocking: Connection,
    fd_pipe: Stream,
    fd_pipe_spinning: Stream,
    socket: Stream,
}

/// One of them, by kind, so that the loops are compiled for each.
pub(crate) enum Link<'a> {
    Ring(&'a mut Connection),
    Stream(&'a mut Stream),
}

impl Ends {
    pub(crate) fn link(&mut self, lane: Lane) -> Link<'_> {
        match lane {
            Lane::Ring => Link::Ring(&mut self.ring),
            Lane::RingSpinning => Link::Ring(&mut self.ring_spinning),
            Lane::RingBlocking => Link::Ring(&mut self.ring_blocking),
            Lane::FdPipe => Link::Stream(&mut self.fd_pipe),
            Lane::FdPipeSpinning => Link::Stream(&mut self.fd_pipe_spinning),
            Lane::Socket => Link::Stream(&mut self.socket),
        }
    }
}

/// What the second process is to do; it answers [`Reply::Ready`], does it, and answers how it went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Receive and check.
    Sink { lane: Lane, size: usize, count: u64 },
    /// Send back what comes.
    Echo { lane: Lane, size: usize, count: u64 },
    /// Send now and then.
    Beat { lane: Lane, count: u64 },
    /// Answer the flag.
    Flags { count: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Ready,
    /// The figure that the loop returned.
    Done(u64),
    Failed(String),
}

/// The second process, as the first one sees it.
pub(crate) struct Peer {
    control: Connection,
    pub(crate) ends: Ends,
    pub(crate) flags: Flags,
    /// Bytes that the fd pipe holds.
    pub(crate) pipe_capacity: usize,
    // Last: closing the ends above tells the process to go.
    child: Reaped,
}

/// A child process that is gone when the value is.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Fails if it has been waited for already, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// Makes all lanes and starts the second process, this one on the first processor and that one on the second.
    pub(crate) fn start(capacity: usize, cpus: Option<[usize; 2]>) -> io::Result<Peer> {
        let builder = || Builder::new().capacity(capacity);
        let (control, their_control) = ringpipe::pipe()?;
        let (ring, their_ring) = builder().pipe()?;
        let (ring_spinning, their_spinning) = builder().spin(Duration::from_secs(1)).pipe()?;
        let (ring_blocking, their_blocking) = builder().spin(Duration::ZERO).pipe()?;
        let (fd_pipe, their_pipe) = pipe_pair(capacity)?;
        let (fd_pipe_spinning, their_spinning_pipe) = pipe_pair(capacity)?;
        for input in [fd_pipe_spinning.0.as_raw_fd(), their_spinning_pipe.0.as_raw_fd()] {
            // SAFETY: both are owned by the pairs above.
            let input = unsafe { BorrowedFd::borrow_raw(input) };
            rustix::fs::fcntl_setfl(input, OFlags::NONBLOCK)?;
        }
        let pipe_capacity = fcntl_getpipe_size(&fd_pipe.1)?;
        let (socket, their_socket) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let (flags, flags_fd) = Flags::create()?;

        let inherited =
            [their_pipe.0, their_pipe.1, their_spinning_pipe.0, their_spinning_pipe.1, their_socket, flags_fd];
        let child = spawn(their_control, &inherited)?;
        // From here on only the second process holds its ends.
        drop(inherited);
        let mut peer = Peer {
            control,
            ends: Ends {
                ring,
                ring_spinning,
                ring_blocking,
                fd_pipe: Stream::pipes(fd_pipe.0, fd_pipe.1),
                fd_pipe_spinning: Stream::pipes(fd_pipe_spinning.0, fd_pipe_spinning.1),
                socket: Stream::socket(socket)?,
            },
            flags,
            pipe_capacity,
            child,
        };
        let setup = peer.set_up(cpus, [their_ring, their_spinning, their_blocking]);
        peer.explain(setup)?;
        Ok(peer)
    }

    fn set_up(&mut self, cpus: Option<[usize; 2]>, rings: [Connection; 3]) -> io::Result<()> {
        if let Some([mine, _]) = cpus {
            cpu::pin(mine)?;
        }
        self.control.send(&cpus.map(|[_, theirs]| theirs))?;
        for ring in rings {
            self.control.send_end(ring).map_err(|e| e.error)?;
        }
        self.await_ready()
    }

    /// Gives an order and returns when the second process is about to carry it out.
    pub(crate) fn order(&mut self, order: &Order) -> io::Result<()> {
        self.control.send(order)?;
        self.await_ready()
    }

    fn await_ready(&mut self) -> io::Result<()> {
        match self.control.recv()? {
            Reply::Ready => Ok(()),
            Reply::Failed(what) => Err(io::Error::other(what)),
            Reply::Done(_) => Err(io::Error::other("the second process answers out of turn")),
        }
    }

    /// Waits until the order has been carried out; returns its figure.
    pub(crate) fn done(&mut self) -> io::Result<u64> {
        match self.control.recv()? {
            Reply::Done(figure) => Ok(figure),
            Reply::Failed(what) => Err(io::Error::other(what)),
            Reply::Ready => Err(io::Error::other("the second process answers out of turn")),
        }
    }

    /// Replaces an error by what the second process has to say about it: where it gives up, this one sees no more
    /// than a broken pipe.
    pub(crate) fn explain<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let patience = Duration::from_millis(500);
        match self.control.recv_timeout(patience) {
            Ok(Reply::Failed(what)) => return Err(io::Error::other(what)),
            Ok(_) => {}
            Err(RecvError::Disconnected) => {
                if let Ok(status) = self.child.0.wait() {
                    return Err(io::Error::other(format!("the second process ended early ({status})")));
                }
            }
            Err(_) => {}
        }
        Err(error)
    }

    /// Lets the second process end and waits for it.
    pub(crate) fn stop(self) -> io::Result<()> {
        let Peer { control, ends, flags, mut child, .. } = self;
        drop((control, ends, flags));
        let status = child.0.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("the second process ended badly ({status})")))
        }
    }
}

/// What to read from and what to write to.
type Pair = (OwnedFd, OwnedFd);

/// Two pipes, one for each direction, with as much room as a ring of `capacity`.
fn pipe_pair(capacity: usize) -> io::Result<(Pair, Pair)> {
    /// What a pipe has anyway, and what it can be given without privileges unless the system was told otherwise.
    const ROOM: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 20;
    let pipe = || -> io::Result<Pair> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC)?;
        // Refused where users may have less, or have too many large pipes already: then it stays as it is.
        let _ = fcntl_setpipe_size(&to, capacity.clamp(*ROOM.start(), *ROOM.end()));
        Ok((from, to))
    };
    let (there_from, there_to) = pipe()?;
    let (back_from, back_to) = pipe()?;
    Ok(((back_from, there_to), (there_from, back_to)))
}

/// Starts this program again, with `control` and the descriptors.
fn spawn(control: Connection, inherited: &[OwnedFd]) -> io::Result<Reaped> {
    let numbers: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let mut command = Command::new(env::current_exe()?);
    command.arg(NAME).args(numbers.iter().map(RawFd::to_string)).stdin(Stdio::null());
    control.inherit(&mut command, VARIABLE);
    let keep_open = move || {
        for &number in &numbers {
            // SAFETY: `inherited` is borrowed until the process has been started.
            rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it makes system calls only.
    unsafe { command.pre_exec(keep_open) };
    let child = command.spawn()?;
    // The command holds the other end of the pipe for orders: it has to go, or the pipe never breaks.
    drop(command);
    Ok(Reaped(child))
}

/// The second process.
pub(crate) fn run(descriptors: &[RawFd]) -> Result<(), Failure> {
    let by_hand = |e| Failure::Usage(format!("`{NAME}` is for `ringpipe bench` to start: {e}"));
    let mut control = Connection::from_env(VARIABLE).map_err(by_hand)?;
    let mut prepare = || -> io::Result<(Ends, Flags)> {
        let cpu: Option<usize> = control.recv()?;
        if let Some(cpu) = cpu {
            cpu::pin(cpu)?;
        }
        let [pipe_in, pipe_out, spin_in, spin_out, socket, flags] = adopt(descriptors)?;
        let ends = Ends {
            ring: control.recv_end()?,
            ring_spinning: control.recv_end()?,
            ring_blocking: control.recv_end()?,
            fd_pipe: Stream::pipes(pipe_in, pipe_out),
            fd_pipe_spinning: Stream::pipes(spin_in, spin_out),
            socket: Stream::socket(socket)?,
        };
        Ok((ends, Flags::attach(&flags)?))
    };
    match prepare() {
        Ok((ends, flags)) => obey(&mut control, ends, &flags),
        // If nobody is left to tell, this process has nothing to do any more.
        Err(e) => drop(control.send(&Reply::Failed(e.to_string()))),
    }
    Ok(())
}

/// Takes ownership of inherited descriptors.
fn adopt<const N: usize>(numbers: &[RawFd]) -> io::Result<[OwnedFd; N]> {
    let numbers: [RawFd; N] = numbers.try_into().map_err(|_| io::Error::other("the number of descriptors is wrong"))?;
    Ok(numbers.map(|number| {
        // SAFETY: whoever sent orders over the inherited pipe also named the descriptors it opened for this process; they are
        // taken once, and nothing else here has opened or owns them.
        unsafe { OwnedFd::from_raw_fd(number) }
    }))
}

/// Carries out orders until there is nobody to give any.
fn obey(control: &mut Connection, mut ends: Ends, flags: &Flags) {
    // Pages of the buffer are touched before anything is timed.
    let mut buf = Vec::new();
    let mut ready = control.send(&Reply::Ready);
    while ready.is_ok() {
        let Ok(order) = control.recv::<Order>() else { return };
        if let Order::Sink { size, .. } = order {
            buf.clear();
            buf.resize(size, 1);
        }
        if control.send(&Reply::Ready).is_err() {
            return;
        }
        ready = match carry_out(&order, &mut ends, flags, &mut buf) {
            Ok(figure) => control.send(&Reply::Done(figure)),
            Err(e) => {
                drop(control.send(&Reply::Failed(format!("{order:?}: {e}"))));
                return;
            }
        };
    }
}

fn carry_out(order: &Order, ends: &mut Ends, flags: &Flags, buf: &mut [u8]) -> io::Result<u64> {
    match *order {
        Order::Sink { lane, size, count } => match ends.link(lane) {
            Link::Ring(link) => traffic::sink(link, size, count, buf),
            Link::Stream(link) => traffic::sink(link, size, count, buf),
        },
        Order::Echo { lane, size, count } => match ends.link(lane) {
            Link::Ring(link) => traffic::echo(link, size, count).map(|()| 0),
            Link::Stream(link) => traffic::echo(link, size, count).map(|()| 0),
        },
        Order::Beat { lane, count } => match ends.link(lane) {
            Link::Ring(link) => traffic::beat(link, count),
            Link::Stream(link) => traffic::beat(link, count),
        },
        Order::Flags { count } => flags.pong(count).map(|()| 0),
    }
}
