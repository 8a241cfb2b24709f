//! `ringfire`: a broadcast ring of slots of one type in `/dev/shm`, here in its lossless mode.
//!
//! Its channel for messages of any size (`BlobProducer`) has no such mode, and overwrites what was not read in time.

use std::time::Duration;

use ringfire::{BusySpin, FlowControl, FutexWait, RingConsumer, RingProducer, RingProducerBuilder};

use crate::peer::{Halves, Kind, Outcome, Peer, Receiver, Sender, Spec, Wait};

pub(super) struct Ringfire<const N: usize>;

pub(super) struct Reading<const N: usize> {
    consumer: RingConsumer<[u8; N]>,
    /// None to spin.
    futex: Option<FutexWait>,
}

/// What a slot has beside the message.
const SLOT_HEADER: usize = 8;

impl<const N: usize> Peer for Ringfire<N> {
    const NAME: &'static str = "ringfire";
    const KIND: Kind = Kind::Copy;
    type Sender = RingProducer<[u8; N]>;
    type Receiver = Reading<N>;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let path = format!("/dev/shm/{}", spec.name);
        let slots = spec.slots(SLOT_HEADER) as u64;
        // No spinning, and the time limit of the crate's default, after which it looks again.
        let futex = (spec.wait == Wait::Block).then(|| FutexWait::new(0, Some(Duration::from_millis(50))));
        let there = path.clone();
        let sender = move || {
            let builder = RingProducerBuilder::new(slots).flow_control(FlowControl::LosslessBackpressure);
            Ok(builder.build(there)?)
        };
        let receiver = move || Ok(Reading { consumer: RingConsumer::attach(path)?, futex });
        Ok((Box::new(sender), Box::new(receiver)))
    }
}

impl<const N: usize> Sender for RingProducer<[u8; N]> {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        let message: &[u8; N] = message.try_into()?;
        self.push(message);
        Ok(())
    }
}

impl<const N: usize> Receiver for Reading<N> {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        let message = match &mut self.futex {
            Some(wait) => self.consumer.recv_blocking(wait),
            None => self.consumer.recv_blocking(&mut BusySpin::new()),
        };
        Ok(look(&message))
    }
}
