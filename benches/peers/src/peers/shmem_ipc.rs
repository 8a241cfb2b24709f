//! `shmem-ipc`: a ring of items of one type in a memory file, with an eventfd for each direction of waking.
//!
//! Who spins uses the ring underneath, without the eventfds, as its documentation allows.

use shmem_ipc::sharedring;

use crate::peer::{Halves, Kind, Outcome, Peer, Receiver, Sender, Spec, Wait};

pub(super) struct ShmemIpc<const N: usize>;

pub(super) struct Sending<const N: usize> {
    sender: sharedring::Sender<[u8; N]>,
    block: bool,
}

pub(super) struct Receiving<const N: usize> {
    receiver: sharedring::Receiver<[u8; N]>,
    block: bool,
    /// Of one message.
    buf: Vec<[u8; N]>,
}

impl<const N: usize> Peer for ShmemIpc<N> {
    const NAME: &'static str = "shmem-ipc";
    const KIND: Kind = Kind::Copy;
    type Sender = Sending<N>;
    type Receiver = Receiving<N>;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (capacity, block) = (spec.slots(0), spec.wait == Wait::Block);
        let sender = sharedring::Sender::new(capacity)?;
        let memory = sender.memfd().as_file().try_clone()?;
        let (empty, full) = (sender.empty_signal().try_clone()?, sender.full_signal().try_clone()?);
        let receiver = move || {
            let receiver = sharedring::Receiver::open(capacity, memory, empty, full)?;
            Ok(Receiving { receiver, block, buf: vec![[0; N]; 1] })
        };
        Ok((Box::new(move || Ok(Sending { sender, block })), Box::new(receiver)))
    }
}

impl<const N: usize> Sender for Sending<N> {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        let message: &[u8; N] = message.try_into()?;
        let put = |slot: *mut [u8; N], _free: usize| {
            // SAFETY: the ring lends room for at least one item; the message is elsewhere.
            unsafe { slot.copy_from_nonoverlapping(message, 1) };
            1
        };
        if self.block {
            self.sender.block_until_writable()?;
            self.sender.send_raw(put)?;
            return Ok(());
        }
        let ring = self.sender.sender_mut();
        while ring.write_count()? == 0 {
            std::hint::spin_loop();
        }
        ring.send(put)?;
        Ok(())
    }
}

impl<const N: usize> Receiver for Receiving<N> {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        let buf = self.buf.as_mut_ptr();
        let get = |slot: *const [u8; N], _there: usize| {
            // SAFETY: the ring lends at least one item; the buffer is this side's own, and not looked at meanwhile.
            unsafe { buf.copy_from_nonoverlapping(slot, 1) };
            1
        };
        if self.block {
            self.receiver.block_until_readable()?;
            self.receiver.receive_raw(get)?;
        } else {
            let ring = self.receiver.receiver_mut();
            while ring.read_count()? == 0 {
                std::hint::spin_loop();
            }
            ring.recv(get)?;
        }
        Ok(look(&self.buf[0]))
    }
}
