//! ringpipe itself, one sender and one receiver: with copies, and in place.

use std::time::Duration;

use ringpipe::Builder;

use crate::peer::{Halves, Kind, Outcome, Peer, RING, Receiver, Sender, Spec, Wait, place};

/// A builder for a ring of so many bytes.
pub(super) fn builder(capacity: usize, wait: Wait) -> Builder {
    let builder = Builder::new().capacity(capacity);
    match wait {
        Wait::Stream => builder,
        Wait::Spin => builder.spin(Duration::from_secs(1)),
        Wait::Block => builder.spin(Duration::ZERO),
    }
}

pub(super) struct Ring;

/// Receives into a buffer.
pub(super) struct Copying {
    receiver: ringpipe::Receiver,
    buf: Vec<u8>,
}

impl Peer for Ring {
    const NAME: &'static str = "ringpipe";
    const KIND: Kind = Kind::Copy;
    type Sender = ringpipe::Sender;
    type Receiver = Copying;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (receiver, sender) = builder(RING, spec.wait).simplex()?;
        let buf = vec![0; spec.size];
        Ok((Box::new(|| Ok(sender)), Box::new(|| Ok(Copying { receiver, buf }))))
    }
}

impl Sender for ringpipe::Sender {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        Ok(self.send_bytes(message)?)
    }
}

impl Receiver for Copying {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        let len = self.receiver.recv_bytes_into(&mut self.buf, 0)?;
        Ok(look(&self.buf[..len]))
    }
}

pub(super) struct RingInPlace;

pub(super) struct Reserving {
    sender: ringpipe::Sender,
    size: usize,
}

pub(super) struct Guarding(ringpipe::Receiver);

impl Peer for RingInPlace {
    const NAME: &'static str = "ringpipe, in place";
    const KIND: Kind = Kind::Loan;
    type Sender = Reserving;
    type Receiver = Guarding;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (receiver, sender) = builder(spec.ring_for_whole(), spec.wait).simplex()?;
        let size = spec.size;
        Ok((Box::new(move || Ok(Reserving { sender, size })), Box::new(|| Ok(Guarding(receiver)))))
    }
}

impl Sender for Reserving {
    #[inline(always)]
    fn send(&mut self, ends: &[u8]) -> Outcome<()> {
        let mut slot = self.sender.reserve(self.size)?;
        // SAFETY: the other process is forked from this one and keeps to the protocol.
        place(ends, unsafe { slot.as_uninit() });
        slot.assume_written(self.size);
        Ok(slot.commit()?)
    }
}

impl Receiver for Guarding {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        let guard = self.0.recv_guard()?;
        // SAFETY: as for the sender.
        Ok(look(unsafe { guard.as_slice() }))
    }
}

pub(super) struct RingInBatches;

/// Collects messages as a program would that has many, and sends some together.
pub(super) struct Batching {
    sender: ringpipe::Sender,
    size: usize,
    pending: Vec<u8>,
    /// Bytes that are sent together.
    enough: usize,
}

pub(super) struct Unbatching {
    receiver: ringpipe::Receiver,
    batch: ringpipe::Batch,
    next: usize,
}

impl Peer for RingInBatches {
    const NAME: &'static str = "ringpipe, in batches";
    const KIND: Kind = Kind::Copy;
    type Sender = Batching;
    type Receiver = Unbatching;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        const TOGETHER: usize = 64;
        let (receiver, sender) = builder(RING, spec.wait).simplex()?;
        let size = spec.size;
        let together = if spec.wait == Wait::Stream { TOGETHER.min(4096 / size).max(1) } else { 1 };
        let sending = move || Ok(Batching { sender, size, pending: Vec::new(), enough: together * size });
        let receiving = || Ok(Unbatching { receiver, batch: ringpipe::Batch::new(), next: 0 });
        Ok((Box::new(sending), Box::new(receiving)))
    }
}

impl Sender for Batching {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        self.pending.extend_from_slice(message);
        if self.pending.len() < self.enough { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Outcome<()> {
        self.sender.send_batch(self.pending.chunks_exact(self.size))?;
        self.pending.clear();
        Ok(())
    }
}

impl Receiver for Unbatching {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        loop {
            if let Some(message) = self.batch.get(self.next) {
                self.next += 1;
                return Ok(look(message));
            }
            self.receiver.recv_batch(&mut self.batch)?;
            self.next = 0;
        }
    }
}
