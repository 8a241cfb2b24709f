//! Numbered messages, whole or only their ends, and what recognizes them.

use std::io;

use crate::bench::message::{Check, Stamp};
use crate::bench::size;
use crate::peer::{ENDS, Kind, ends_of};

/// Set in the number of the last message.
const LAST: u64 = 1 << 63;

/// Bytes that are stamped and checked.
fn seen(kind: Kind, size: usize) -> usize {
    match kind {
        Kind::Copy => size,
        Kind::Loan => size.min(ENDS),
    }
}

/// Messages to send.
pub(crate) struct Outgoing(Stamp);

impl Outgoing {
    pub(crate) fn new(kind: Kind, size: usize) -> Outgoing {
        Outgoing(Stamp::new(seen(kind, size)))
    }

    #[inline(always)]
    pub(crate) fn number(&mut self, seq: u64) -> &[u8] {
        self.0.number(seq)
    }

    pub(crate) fn last(&mut self, seq: u64) -> &[u8] {
        self.0.number(seq | LAST)
    }
}

/// Messages that are to arrive.
pub(crate) struct Incoming {
    kind: Kind,
    size: usize,
    check: Check,
}

impl Incoming {
    pub(crate) fn new(kind: Kind, size: usize) -> Incoming {
        Incoming { kind, size, check: Check::new(seen(kind, size)) }
    }

    /// Checks message number `seq`; whether it is the last.
    #[inline(always)]
    pub(crate) fn look(&mut self, message: &[u8], seq: u64) -> io::Result<bool> {
        if message.len() != self.size {
            return Err(self.wrong_length(message.len(), seq));
        }
        let word = u64::from_le_bytes(message[..8].try_into().expect("8 bytes"));
        let last = word & LAST;
        match self.kind {
            Kind::Copy => self.check.look(message, seq | last)?,
            Kind::Loan => {
                let mut ends = [0; ENDS];
                let len = ends_of(message, &mut ends);
                self.check.look(&ends[..len], seq | last)?;
            }
        }
        Ok(last != 0)
    }

    #[cold]
    fn wrong_length(&self, len: usize, seq: u64) -> io::Error {
        let what = format!("message {seq} has {} instead of {}", size::show(len), size::show(self.size));
        io::Error::new(io::ErrorKind::InvalidData, what)
    }
}

#[cfg(test)]
mod tests {
    use super::{Incoming, Outgoing};
    use crate::peer::Kind;

    #[test]
    fn what_was_sent_is_recognized_and_so_is_the_last() {
        let (mut out, mut inc) = (Outgoing::new(Kind::Copy, 64), Incoming::new(Kind::Copy, 64));
        assert!(!inc.look(out.number(0), 0).unwrap());
        assert!(inc.look(out.last(1), 1).unwrap());
    }

    #[test]
    fn a_lost_message_and_a_torn_end_are_found() {
        for kind in [Kind::Copy, Kind::Loan] {
            let mut inc = Incoming::new(kind, 16);
            let mut message = Outgoing::new(kind, 16).number(4).to_vec();
            assert!(inc.look(&message, 3).is_err());
            message[15] ^= 1;
            assert!(inc.look(&message, 4).is_err());
        }
    }
}
