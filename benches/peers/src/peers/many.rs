//! ringpipe's pipe for many, here with one sender and one receiver like everything else.

use ringpipe::mpmc;

use super::ring::builder;
use crate::peer::{Halves, Kind, Outcome, Peer, RING, Receiver, Sender, Spec};

pub(super) struct Many;

pub(super) struct Copying {
    receiver: mpmc::Receiver,
    buf: Vec<u8>,
}

impl Peer for Many {
    const NAME: &'static str = "ringpipe, for many";
    const KIND: Kind = Kind::Copy;
    type Sender = mpmc::Sender;
    type Receiver = Copying;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (receiver, sender) = builder(RING, spec.wait).mpmc()?;
        let buf = vec![0; spec.size];
        Ok((Box::new(|| Ok(sender)), Box::new(|| Ok(Copying { receiver, buf }))))
    }
}

impl Sender for mpmc::Sender {
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
