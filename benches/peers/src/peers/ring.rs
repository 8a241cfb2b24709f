//! ringpipe itself, one sender and one receiver: with copies, and in place.

use std::io;
use std::ops::Range;
use std::time::Duration;

use ringpipe::Builder;

use crate::payload::Outgoing;
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

pub(super) struct Batching(ringpipe::Sender);

pub(super) struct Unbatching {
    one: Copying,
    batch: ringpipe::Batch,
}

impl Peer for RingInBatches {
    const NAME: &'static str = "ringpipe, in batches";
    const KIND: Kind = Kind::Copy;
    type Sender = Batching;
    type Receiver = Unbatching;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (sender, receiver) = Ring::open(spec)?;
        let receiving = || Ok(Unbatching { one: receiver()?, batch: ringpipe::Batch::new() });
        Ok((Box::new(|| Ok(Batching(sender()?))), Box::new(receiving)))
    }
}

impl Sender for Batching {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        self.0.send(message)
    }

    #[inline(always)]
    fn send_some(&mut self, out: &mut Outgoing, seqs: Range<u64>) -> Outcome<()> {
        let mut batch = self.0.batch();
        for seq in seqs {
            batch.push(out.number(seq))?;
        }
        Ok(())
    }
}

impl Receiver for Unbatching {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        self.one.recv(look)
    }

    #[inline(always)]
    fn recv_some(&mut self, least: u64, mut look: impl FnMut(&[u8]) -> io::Result<bool>) -> Outcome<bool> {
        let mut received = 0;
        while received < least {
            self.one.receiver.recv_batch(&mut self.batch)?;
            for message in self.batch.iter() {
                if look(message)? {
                    return Ok(true);
                }
            }
            received += self.batch.len() as u64;
        }
        Ok(false)
    }
}
