//! What a peer has to offer: a channel of one direction, whose two halves are finished in the processes that use them.

use std::error::Error;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::payload::Outgoing;

/// Peers fail in ways of their own; here it only matters what they say about it.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// One half of a channel, to be finished where it is used: after `fork`, if there is one. The other side drops it unfinished.
///
/// All sending halves are finished before any receiving half is, so the former may make what the latter attach to.
pub(crate) type Half<T> = Box<dyn FnOnce() -> Outcome<T> + Send>;

/// Both halves of a peer's channel.
pub(crate) type Halves<P> = (Half<<P as Peer>::Sender>, Half<<P as Peer>::Receiver>);

/// Bytes of a ring, where one can choose: several times a core's own cache and a part of the shared one, so that what is read comes from the latter, which
/// is faster than from another core.
pub(crate) const RING: usize = 4 << 20;

/// A peer that is measured: one way of using one crate, or one service of the kernel's.
pub(crate) trait Peer {
    const NAME: &'static str;
    const KIND: Kind;
    /// Where the two sides are.
    const PLACE: Place = Place::Processes;
    /// Whether a receiver can sleep until a message comes.
    const BLOCKS: bool = true;

    type Sender: Sender;
    type Receiver: Receiver;

    /// Makes whatever both sides need to have in common before they part.
    fn open(spec: &Spec) -> Outcome<Halves<Self>>;
}

/// A channel to make.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Unique, for peers that need names: nothing else on the system begins with it.
    pub(crate) name: String,
    /// Bytes of every message.
    pub(crate) size: usize,
    pub(crate) wait: Wait,
}

impl Spec {
    /// Bytes of a ring that has to hold messages in one piece, wherever in it they start.
    pub(crate) fn ring_for_whole(&self) -> usize {
        RING.max(8 * self.size)
    }

    /// How many messages come to as much as a ring: a power of two, and at least four.
    pub(crate) fn slots(&self, overhead: usize) -> usize {
        let fit = (RING / (self.size + overhead)).max(4);
        1 << fit.ilog2()
    }
}

/// How a receiver waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// As is best for a steady stream, by the peer's own documentation.
    Stream,
    /// It never sleeps.
    Spin,
    /// It sleeps right away, where that can be chosen.
    Block,
}

/// What is done to the bytes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Copied in from a buffer of the sender's, and out into one of the receiver's.
    Copy,
    /// Written and read in place. Only the first and the last word are: whatever a program would do with the rest is its own business.
    Loan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Processes,
    /// Between threads of one process, which is all that the peer can do: it is there for reference.
    Threads,
}

pub(crate) trait Sender {
    /// Sends a message, waiting for room. Where messages are [lent](Kind::Loan), `message` is what [`place`] takes.
    fn send(&mut self, message: &[u8]) -> Outcome<()>;

    /// Sends several, in a way that is meant for that if there is one.
    #[inline(always)]
    fn send_some(&mut self, out: &mut Outgoing, seqs: Range<u64>) -> Outcome<()> {
        seqs.into_iter().try_for_each(|seq| self.send(out.number(seq)))
    }
}

pub(crate) trait Receiver {
    /// Receives a message, waiting for it, and shows it to `look`.
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R>;

    /// Receives at least so many, in a way that is meant for that if there is one, or up to the last, which is when `look` returns true. So does this.
    #[inline(always)]
    fn recv_some(&mut self, least: u64, mut look: impl FnMut(&[u8]) -> io::Result<bool>) -> Outcome<bool> {
        for _ in 0..least {
            if self.recv(&mut look)?? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Bytes of a lent message that are written: two words.
pub(crate) const ENDS: usize = 16;

/// Writes the two ends of a message in place: the first word, and the last. The rest stays as it is.
#[inline(always)]
pub(crate) fn place(ends: &[u8], loan: &mut [MaybeUninit<u8>]) {
    let word = size_of::<u64>();
    let (front, back) = ends.split_at(word);
    let len = loan.len();
    loan[..word].write_copy_of_slice(front);
    if !back.is_empty() {
        loan[len - word..].write_copy_of_slice(back);
    }
}

/// The two ends of a message in one piece again.
#[inline(always)]
pub(crate) fn ends_of(message: &[u8], ends: &mut [u8; ENDS]) -> usize {
    let word = size_of::<u64>();
    ends[..word].copy_from_slice(&message[..word]);
    if message.len() < ENDS {
        return word;
    }
    ends[word..].copy_from_slice(&message[message.len() - word..]);
    ENDS
}

#[cfg(test)]
mod tests {
    use super::{ENDS, Spec, Wait, ends_of, place};
    use std::mem::MaybeUninit;

    #[test]
    fn the_ends_of_a_lent_message_come_back() {
        for size in [8, 16, 24, 4096] {
            let sent: Vec<u8> = (1..=ENDS.min(size) as u8).collect();
            let mut loan = vec![MaybeUninit::new(0); size];
            place(&sent, &mut loan);
            // SAFETY: all of it was initialized.
            let message: Vec<u8> = loan.iter().map(|byte| unsafe { byte.assume_init() }).collect();
            let mut ends = [0; ENDS];
            let len = ends_of(&message, &mut ends);
            assert_eq!(ends[..len], sent, "{size} B");
        }
    }

    #[test]
    fn rings_of_slots_have_about_the_size_asked_for() {
        let slots = |size| Spec { name: String::new(), size, wait: Wait::Spin }.slots(8);
        assert_eq!([slots(8), slots(1024), slots(64 << 10), slots(1 << 20)], [262_144, 2048, 32, 4]);
    }
}
