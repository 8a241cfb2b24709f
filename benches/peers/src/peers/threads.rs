//! References between threads of one process: `rtrb` and `crossbeam-channel`. They show what a ring can do that need not be shared with another
//! process, nor carry messages of different lengths.

use std::slice;

use crossbeam_channel as crossbeam;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::peer::{Halves, Kind, Outcome, Peer, Place, Receiver, Sender, Spec, Wait};

/// Larger messages are not passed by value.
const BY_VALUE: usize = 4096;

pub(super) struct Rtrb<const N: usize>;

pub(super) struct Pop<const N: usize> {
    consumer: Consumer<[u8; N]>,
    /// Of one message.
    buf: Vec<[u8; N]>,
}

impl<const N: usize> Peer for Rtrb<N> {
    const NAME: &'static str = "rtrb (threads)";
    const KIND: Kind = Kind::Copy;
    const PLACE: Place = Place::Threads;
    const BLOCKS: bool = false;
    type Sender = Producer<[u8; N]>;
    type Receiver = Pop<N>;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (producer, consumer) = RingBuffer::new(spec.slots(0));
        let receiver = || Ok(Pop { consumer, buf: vec![[0; N]; 1] });
        Ok((Box::new(|| Ok(producer)), Box::new(receiver)))
    }
}

impl<const N: usize> Sender for Producer<[u8; N]> {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        let message: &[u8; N] = message.try_into()?;
        if N <= BY_VALUE {
            while self.push(*message).is_err() {
                std::hint::spin_loop();
            }
        } else {
            while self.push_entire_slice(slice::from_ref(message)).is_err() {
                std::hint::spin_loop();
            }
        }
        Ok(())
    }
}

impl<const N: usize> Receiver for Pop<N> {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        if N <= BY_VALUE {
            loop {
                if let Ok(message) = self.consumer.pop() {
                    return Ok(look(&message));
                }
                std::hint::spin_loop();
            }
        }
        while self.consumer.pop_entire_slice(&mut self.buf).is_err() {
            std::hint::spin_loop();
        }
        Ok(look(&self.buf[0]))
    }
}

pub(super) struct Crossbeam<const N: usize>;

/// Long messages are handed over in a box, which is how one would do it, and copied into it only once.
pub(super) enum Put<const N: usize> {
    Values(crossbeam::Sender<[u8; N]>),
    Boxes(crossbeam::Sender<Box<[u8]>>),
}

pub(super) struct Take<const N: usize> {
    from: Source<N>,
    spin: bool,
}

enum Source<const N: usize> {
    Values(crossbeam::Receiver<[u8; N]>),
    Boxes(crossbeam::Receiver<Box<[u8]>>),
}

impl<const N: usize> Peer for Crossbeam<N> {
    const NAME: &'static str = "crossbeam (threads)";
    const KIND: Kind = Kind::Copy;
    const PLACE: Place = Place::Threads;
    type Sender = Put<N>;
    type Receiver = Take<N>;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (slots, spin) = (spec.slots(0), spec.wait == Wait::Spin);
        let (put, from) = if N <= BY_VALUE {
            let (sender, receiver) = crossbeam::bounded(slots);
            (Put::Values(sender), Source::Values(receiver))
        } else {
            let (sender, receiver) = crossbeam::bounded(slots);
            (Put::Boxes(sender), Source::Boxes(receiver))
        };
        Ok((Box::new(|| Ok(put)), Box::new(move || Ok(Take { from, spin }))))
    }
}

impl<const N: usize> Sender for Put<N> {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        match self {
            Put::Values(sender) => Ok(sender.send(message.try_into()?)?),
            Put::Boxes(sender) => Ok(sender.send(message.into())?),
        }
    }
}

impl<const N: usize> Receiver for Take<N> {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        match &self.from {
            Source::Values(receiver) => Ok(look(&receive(receiver, self.spin)?)),
            Source::Boxes(receiver) => Ok(look(&receive(receiver, self.spin)?)),
        }
    }
}

#[inline(always)]
fn receive<T>(receiver: &crossbeam::Receiver<T>, spin: bool) -> Outcome<T> {
    if !spin {
        return Ok(receiver.recv()?);
    }
    loop {
        match receiver.try_recv() {
            Ok(message) => return Ok(message),
            Err(crossbeam::TryRecvError::Empty) => std::hint::spin_loop(),
            Err(e) => return Err(e.into()),
        }
    }
}
