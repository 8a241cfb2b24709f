//! `ipc_ring`: a ring of bytes in a mapped file. It wakes the other side with a system call for every message, asleep or not.

use ipc_ring::{IpcError, RingReader, RingWriter};

use crate::peer::{Halves, Kind, Outcome, Peer, Receiver, Sender, Spec, Wait};

pub(super) struct IpcRing;

pub(super) struct Pushing {
    writer: RingWriter,
    block: bool,
}

pub(super) struct Popping {
    reader: RingReader,
    block: bool,
    buf: Vec<u8>,
}

impl Peer for IpcRing {
    const NAME: &'static str = "ipc_ring";
    const KIND: Kind = Kind::Copy;
    type Sender = Pushing;
    type Receiver = Popping;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let path = format!("/dev/shm/{}", spec.name);
        // A message has to be in one piece, and less than the ring.
        let capacity = spec.ring_for_whole();
        let (block, size) = (spec.wait == Wait::Block, spec.size);
        let there = path.clone();
        let sender = move || Ok(Pushing { writer: RingWriter::create(there, capacity)?, block });
        let receiver = move || Ok(Popping { reader: RingReader::open(path)?, block, buf: Vec::with_capacity(size) });
        Ok((Box::new(sender), Box::new(receiver)))
    }
}

impl Sender for Pushing {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        if self.block {
            return Ok(self.writer.push(message, None)?);
        }
        loop {
            match self.writer.try_push(message) {
                Ok(()) => return Ok(()),
                Err(IpcError::Full) => std::hint::spin_loop(),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Receiver for Popping {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        if self.block {
            let len = self.reader.pop(&mut self.buf, None)?;
            return Ok(look(&self.buf[..len]));
        }
        loop {
            if let Some(len) = self.reader.try_pop(&mut self.buf)? {
                return Ok(look(&self.buf[..len]));
            }
            std::hint::spin_loop();
        }
    }
}
