//! What messages hold, so that each can be told from every other and a damaged one from a whole one.
//!
//! | bytes | content |
//! | --- | --- |
//! | first 8 | the sequence number |
//! | 8 at every further 4096 | sequence number and place |
//! | last 8, from 16 bytes on | the sequence number, inverted |
//! | everything else | a filling that depends on the place alone |
//!
//! The receiver checks the length, all stamped words, and one word of the filling, another one each time. This costs every
//! transport the same: a few instructions for a short message, one load in 4096 bytes for a long one.

use std::io;

use crate::bench::size;

/// Distance between stamped words.
const PAGE: usize = 4096;
/// The shortest message: it has room for the sequence number.
pub(crate) const MIN: usize = 8;

fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

fn filling(at: usize) -> u64 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Places of the stamped words between the first and the last.
fn pages(size: usize) -> impl Iterator<Item = usize> {
    (PAGE..size.saturating_sub(15)).step_by(PAGE)
}

/// A message to send over and over, each time with the next sequence number.
pub(crate) struct Stamp {
    bytes: Vec<u8>,
}

impl Stamp {
    pub(crate) fn new(size: usize) -> Stamp {
        assert!(size >= MIN);
        let mut bytes = vec![0; size];
        for at in (0..size - 7).step_by(8) {
            put(&mut bytes, at, filling(at));
        }
        Stamp { bytes }
    }

    #[inline(always)]
    pub(crate) fn number(&mut self, seq: u64) -> &[u8] {
        let size = self.bytes.len();
        put(&mut self.bytes, 0, seq);
        if size >= 16 {
            put(&mut self.bytes, size - 8, !seq);
        }
        if size > PAGE {
            for at in pages(size) {
                put(&mut self.bytes, at, seq ^ at as u64);
            }
        }
        &self.bytes
    }
}

/// Checks messages made by [`Stamp`].
pub(crate) struct Check {
    size: usize,
    /// Where the filling is looked at next.
    probe: usize,
}

impl Check {
    pub(crate) fn new(size: usize) -> Check {
        Check { size, probe: 8 }
    }

    #[inline(always)]
    pub(crate) fn look(&mut self, message: &[u8], seq: u64) -> io::Result<()> {
        if self.is_whole(message, seq) { Ok(()) } else { Err(self.complaint(message, seq)) }
    }

    #[inline(always)]
    fn is_whole(&mut self, message: &[u8], seq: u64) -> bool {
        let size = self.size;
        if message.len() != size || word_at(message, 0) != seq {
            return false;
        }
        if size < 16 {
            return true;
        }
        if word_at(message, size - 8) != !seq {
            return false;
        }
        if size > PAGE && pages(size).any(|at| word_at(message, at) != seq ^ at as u64) {
            return false;
        }
        // The last word is stamped, and so are those at the pages.
        if self.probe + 16 > size {
            self.probe = 8;
        }
        let at = self.probe;
        self.probe += 8;
        at % PAGE == 0 || at + 16 > size || word_at(message, at) == filling(at)
    }

    #[cold]
    fn complaint(&self, message: &[u8], seq: u64) -> io::Error {
        let (got, want) = (size::show(message.len()), size::show(self.size));
        let first = if message.len() < MIN { "nothing".to_owned() } else { word_at(message, 0).to_string() };
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message {seq} arrived damaged: {got} where {want} were sent, sequence number {first}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, Stamp};

    const SIZES: [usize; 12] = [8, 9, 15, 16, 17, 24, 64, 4096, 4104, 4111, 4112, 70_000];

    #[test]
    fn what_was_stamped_passes() {
        for size in SIZES {
            let (mut stamp, mut check) = (Stamp::new(size), Check::new(size));
            for seq in 0..2000 {
                check.look(stamp.number(seq), seq).unwrap();
            }
        }
    }

    #[test]
    fn a_wrong_number_or_length_is_found() {
        for size in SIZES {
            let (mut stamp, mut check) = (Stamp::new(size), Check::new(size));
            let message = stamp.number(7).to_vec();
            assert!(check.look(&message, 8).is_err(), "sequence number, {size} B");
            assert!(check.look(&message[..size - 1], 7).is_err(), "too short, {size} B");
            assert!(check.look(&[&message[..], b"x"].concat(), 7).is_err(), "too long, {size} B");
        }
    }

    #[test]
    fn a_page_or_an_end_of_another_message_is_found() {
        let size = 5 * 4096;
        let (mut stamp, mut check) = (Stamp::new(size), Check::new(size));
        let old = stamp.number(1).to_vec();
        let new = stamp.number(2).to_vec();
        for from in (0..size).step_by(4096) {
            let mut torn = new.clone();
            torn[from..from + 4096].copy_from_slice(&old[from..from + 4096]);
            assert!(check.look(&torn, 2).is_err(), "page at {from}");
        }
    }

    #[test]
    fn damage_anywhere_is_found_in_the_long_run() {
        let size = 256;
        for at in (0..size).step_by(8) {
            let (mut stamp, mut check) = (Stamp::new(size), Check::new(size));
            let found = (0..size as u64).any(|seq| {
                let mut message = stamp.number(seq).to_vec();
                message[at] ^= 1;
                check.look(&message, seq).is_err()
            });
            assert!(found, "byte {at}");
        }
    }
}
