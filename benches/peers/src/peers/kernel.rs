//! What the kernel offers: pipes and sockets.
//!
//! The streams carry messages as `ringpipe bench` frames them, see `transport.rs` there. Buffers are enlarged to the size of the rings, as far as
//! the system lets them.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair, sockopt};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::bench::transport::{Stream, Transport};
use crate::peer::{Halves, Kind, Outcome, Peer, RING, Receiver, Sender, Spec, Wait};

/// A receiver that spins asks again and again instead of sleeping.
fn set_wait(receiver: impl AsFd, wait: Wait) -> Outcome<()> {
    if wait == Wait::Spin {
        let flags = fcntl_getfl(&receiver)?;
        fcntl_setfl(receiver, flags | OFlags::NONBLOCK)?;
    }
    Ok(())
}

impl Sender for Stream {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        Ok(Transport::send(self, message)?)
    }
}

pub(super) struct FromStream {
    stream: Stream,
    buf: Vec<u8>,
}

impl Receiver for FromStream {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        let len = Transport::recv(&mut self.stream, &mut self.buf)?;
        Ok(look(&self.buf[..len]))
    }
}

/// Both ends of a connection as halves.
fn sockets(from: OwnedFd, to: OwnedFd, spec: &Spec) -> Outcome<Halves<UnixStream>> {
    set_wait(&from, spec.wait)?;
    let (sender, stream) = (Stream::socket(to)?, Stream::socket(from)?);
    let buf = vec![0; spec.size];
    Ok((Box::new(|| Ok(sender)), Box::new(|| Ok(FromStream { stream, buf }))))
}

pub(super) struct FdPipe;

impl Peer for FdPipe {
    const NAME: &'static str = "fd pipe";
    const KIND: Kind = Kind::Copy;
    type Sender = Stream;
    type Receiver = FromStream;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC)?;
        // Refused where users may have less: then it stays as it is.
        let _ = fcntl_setpipe_size(&to, RING);
        set_wait(&from, spec.wait)?;
        // A stream has an input and an output. Each side uses one of them only.
        let (unused_from, unused_to) = (from.try_clone()?, to.try_clone()?);
        let (sender, stream) = (Stream::pipes(unused_from, to), Stream::pipes(from, unused_to));
        let buf = vec![0; spec.size];
        Ok((Box::new(|| Ok(sender)), Box::new(|| Ok(FromStream { stream, buf }))))
    }
}

fn unix_pair(kind: SocketType) -> Outcome<(OwnedFd, OwnedFd)> {
    let (from, to) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_send_buffer_size(&to, RING)?;
    Ok((from, to))
}

pub(super) struct UnixStream;

impl Peer for UnixStream {
    const NAME: &'static str = "Unix stream";
    const KIND: Kind = Kind::Copy;
    type Sender = Stream;
    type Receiver = FromStream;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (from, to) = unix_pair(SocketType::STREAM)?;
        sockets(from, to, spec)
    }
}

pub(super) struct Tcp;

impl Peer for Tcp {
    const NAME: &'static str = "TCP loopback";
    const KIND: Kind = Kind::Copy;
    type Sender = Stream;
    type Receiver = FromStream;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let to = TcpStream::connect(listener.local_addr()?)?;
        let (from, _) = listener.accept()?;
        for socket in [&from, &to] {
            socket.set_nodelay(true)?;
        }
        sockets(from.into(), to.into(), spec)
    }
}

pub(super) struct UnixPackets;

/// Sends each message as a packet.
pub(super) struct ToPackets(OwnedFd);

pub(super) struct FromPackets {
    socket: OwnedFd,
    buf: Vec<u8>,
}

impl Peer for UnixPackets {
    const NAME: &'static str = "Unix seqpacket";
    const KIND: Kind = Kind::Copy;
    type Sender = ToPackets;
    type Receiver = FromPackets;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (socket, to) = unix_pair(SocketType::SEQPACKET)?;
        // A packet has to fit with what the kernel keeps beside it.
        sockopt::set_socket_send_buffer_size(&to, 2 * RING.max(spec.size))?;
        set_wait(&socket, spec.wait)?;
        let buf = vec![0; spec.size];
        Ok((Box::new(|| Ok(ToPackets(to))), Box::new(|| Ok(FromPackets { socket, buf }))))
    }
}

impl Sender for ToPackets {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        loop {
            match net::send(&self.0, message, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Receiver for FromPackets {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        loop {
            match net::recv(&self.socket, &mut self.buf[..], RecvFlags::empty()) {
                Ok((len, _)) => return Ok(look(&self.buf[..len])),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => std::hint::spin_loop(),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
