//! The transports that are compared: each carries whole messages in both directions.
//!
//! The two kernel streams carry messages as `multiprocessing.Pipe` does, and as anybody would who needs messages on a stream: a
//! 4-byte length, then the body; two `read`s. Short messages go out in one `write`, put together in a buffer, longer ones in
//! two. Where short ends is what is fastest for each: on a pipe early, since a body in a `write` of its own starts a page of its
//! own (up to twice as fast at 1 to 16 KiB); on a socket late. A pipe has as much room as the ring, if everyone may have
//! so much; a socket has the system's default, which is about as much as the default ring.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use ringpipe::Connection;
use rustix::io::Errno;

pub(crate) trait Transport {
    fn send(&mut self, message: &[u8]) -> io::Result<()>;

    /// Receives one message to the front of `buf` and returns its length.
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize>;
}

impl Transport for Connection {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        Ok(self.send_bytes(message)?)
    }

    #[inline(always)]
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv_bytes_into(buf, 0)?)
    }
}

/// Messages with a length in front over descriptors of the kernel's: two pipes, or a socket twice.
pub(crate) struct Stream {
    input: OwnedFd,
    output: OwnedFd,
    /// The longest body that goes out in one `write` with its length.
    short: usize,
    frame: Vec<u8>,
}

const PREFIX: usize = 4;
const SHORT_ON_PIPE: usize = 64;
const SHORT_ON_SOCKET: usize = 16 << 10;

impl Stream {
    /// With `O_NONBLOCK` set on `input`, receiving spins.
    pub(crate) fn pipes(input: OwnedFd, output: OwnedFd) -> Stream {
        Stream { input, output, short: SHORT_ON_PIPE, frame: Vec::with_capacity(PREFIX + SHORT_ON_PIPE) }
    }

    pub(crate) fn socket(socket: OwnedFd) -> io::Result<Stream> {
        let (input, output) = (socket.try_clone()?, socket);
        Ok(Stream { input, output, short: SHORT_ON_SOCKET, frame: Vec::with_capacity(PREFIX + SHORT_ON_SOCKET) })
    }

    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.output, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn read_exact(&self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::read(self.input.as_fd(), &mut *buf) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => buf = &mut buf[n..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => std::hint::spin_loop(),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Transport for Stream {
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let prefix = u32::try_from(message.len()).map_err(too_long)?.to_le_bytes();
        if message.len() > self.short {
            self.write_all(&prefix)?;
            return self.write_all(message);
        }
        self.frame.clear();
        self.frame.extend_from_slice(&prefix);
        self.frame.extend_from_slice(message);
        self.write_all(&self.frame)
    }

    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut prefix = [0; PREFIX];
        self.read_exact(&mut prefix)?;
        let len = u32::from_le_bytes(prefix) as usize;
        let too_long =
            || io::Error::new(io::ErrorKind::InvalidData, format!("a message of {len} bytes was not sent by us"));
        self.read_exact(buf.get_mut(..len).ok_or_else(too_long)?)?;
        Ok(len)
    }
}
