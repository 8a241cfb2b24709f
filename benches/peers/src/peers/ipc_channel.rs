//! `ipc-channel`: bytes over a Unix socket of packets, in several for long messages.

use ipc_channel::TryRecvError;
use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender};

use crate::peer::{Halves, Kind, Outcome, Peer, Receiver, Sender, Spec, Wait};

pub(super) struct IpcChannel;

/// The crate returns each message in a vector of its own: that is the copy.
pub(super) struct Bytes {
    receiver: IpcBytesReceiver,
    spin: bool,
}

impl Peer for IpcChannel {
    const NAME: &'static str = "ipc-channel";
    const KIND: Kind = Kind::Copy;
    type Sender = IpcBytesSender;
    type Receiver = Bytes;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (sender, receiver) = ipc::bytes_channel()?;
        let spin = spec.wait == Wait::Spin;
        Ok((Box::new(|| Ok(sender)), Box::new(move || Ok(Bytes { receiver, spin }))))
    }
}

impl Sender for IpcBytesSender {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        Ok(IpcBytesSender::send(self, message)?)
    }
}

impl Receiver for Bytes {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        if !self.spin {
            return Ok(look(&self.receiver.recv()?));
        }
        loop {
            match self.receiver.try_recv() {
                Ok(message) => return Ok(look(&message)),
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
