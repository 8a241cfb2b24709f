//! Messages in a stream of bytes: each has its length plus one in front, as a number of 1 to 10 bytes with seven bits in each, the lowest first. A zero is the
//! end of the stream.
//!
//! The stream is cut into segments without regard to messages: a segment carries many short ones, and a long one goes over many segments.

use std::fmt;

use bytes::Bytes;
use zenoh::bytes::ZBytes;

use crate::packet::MOST;

/// Bytes of a length, at most.
const LONGEST_LENGTH: usize = 10;

/// So much memory is kept for the next message that has to be put together. What is given back and asked for again for each comes as pages that the kernel has to clear.
const KEPT: usize = 4 * MOST;

/// Puts messages into segments.
pub(crate) struct Encoder {
    segment: Vec<u8>,
}

/// From so many bytes on, a message that has memory of its own is not copied.
pub(crate) const LONG: usize = 16 << 10;

impl Encoder {
    pub(crate) fn new() -> Encoder {
        Encoder { segment: Vec::new() }
    }

    /// Adds a message. Segments that are full are given to `take`.
    pub(crate) fn message<E>(
        &mut self,
        message: &[u8],
        mut take: impl FnMut(ZBytes) -> Result<(), E>,
    ) -> Result<(), E> {
        self.length(message.len() as u64 + 1, &mut take)?;
        let mut rest = message;
        loop {
            let (now, later) = rest.split_at(rest.len().min(MOST - self.segment.len()));
            self.segment.extend_from_slice(now);
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
            take(self.cut())?;
        }
    }

    /// Adds a message, and gives up its memory: if it is long, segments consist of parts of it, and are given to `take` to its last byte.
    pub(crate) fn own_message<E>(
        &mut self,
        message: Vec<u8>,
        mut take: impl FnMut(ZBytes) -> Result<(), E>,
    ) -> Result<(), E> {
        if message.len() < LONG {
            return self.message(&message, take);
        }
        self.length(message.len() as u64 + 1, &mut take)?;
        let mut rest = Bytes::from(message);
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(MOST - self.segment.len()));
            let mut segment = ZBytes::writer();
            segment.append(self.cut());
            segment.append(ZBytes::from(part));
            take(segment.finish())?;
        }
        Ok(())
    }

    /// Adds the end of the stream.
    pub(crate) fn end<E>(&mut self, mut take: impl FnMut(ZBytes) -> Result<(), E>) -> Result<(), E> {
        self.length(0, &mut take)
    }

    /// What waits, as a segment.
    pub(crate) fn flush(&mut self) -> Option<ZBytes> {
        (!self.segment.is_empty()).then(|| self.cut())
    }

    fn cut(&mut self) -> ZBytes {
        // The next one will be about as long.
        let next = Vec::with_capacity(self.segment.len());
        ZBytes::from(std::mem::replace(&mut self.segment, next))
    }

    fn length<E>(&mut self, mut number: u64, take: &mut impl FnMut(ZBytes) -> Result<(), E>) -> Result<(), E> {
        if self.segment.len() + LONGEST_LENGTH > MOST {
            take(self.cut())?;
        }
        while number >= 0x80 {
            self.segment.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.segment.push(number as u8);
        Ok(())
    }
}

/// Why a stream cannot be read on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is not what an [`Encoder`] makes.
    Nonsense,
    /// A message of so many bytes is longer than this side takes.
    TooLong(u64),
    /// There is no memory for so many bytes.
    NoMemory(usize),
}

/// A message, or the end.
#[derive(PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Message(&'a [u8]),
    End,
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frame::Message(message) => write!(f, "a message of {} bytes", message.len()),
            Frame::End => f.write_str("the end"),
        }
    }
}

/// Takes messages out of segments.
pub(crate) struct Decoder {
    longest: u64,
    /// The length that is being read, and how many of its bits are there.
    number: u64,
    bits: u32,
    /// How long the message will be whose beginning is in `begun`.
    wanted: Option<u64>,
    begun: Vec<u8>,
    ended: bool,
}

impl Decoder {
    /// For messages of at most `longest` bytes.
    pub(crate) fn new(longest: u64) -> Decoder {
        Decoder { longest, number: 0, bits: 0, wanted: None, begun: Vec::new(), ended: false }
    }

    /// Reads on in the stream: takes from `bytes` what belongs to the next frame, and returns that once it is whole. To be called until it returns nothing.
    ///
    /// A message that lies in `bytes` as a whole is not copied. Memory grows with what has arrived of a message, not with what its length says.
    pub(crate) fn next<'a, 'b: 'a>(&'a mut self, bytes: &mut &'b [u8]) -> Result<Option<Frame<'a>>, Unreadable> {
        self.forget();
        let Some(wanted) = self.read_length(bytes)? else { return Ok(None) };
        let Some(wanted) = wanted else {
            self.ended = true;
            return Ok(Some(Frame::End));
        };
        let missing = wanted - self.begun.len() as u64;
        let there = usize::try_from(missing).map_or(bytes.len(), |missing| missing.min(bytes.len()));
        let (part, rest) = bytes.split_at(there);
        *bytes = rest;
        let whole = there as u64 == missing;
        if whole && self.begun.is_empty() {
            self.wanted = None;
            return Ok(Some(Frame::Message(part)));
        }
        self.begun.try_reserve(there).map_err(|_| Unreadable::NoMemory(there))?;
        self.begun.extend_from_slice(part);
        Ok(whole.then_some(Frame::Message(&self.begun)))
    }

    /// Forgets a message that was put together, and its memory if that is much.
    fn forget(&mut self) {
        if self.wanted.is_some_and(|wanted| wanted == self.begun.len() as u64 && wanted > 0) {
            self.wanted = None;
            self.begun.clear();
            self.begun.shrink_to(KEPT);
        }
    }

    /// The length of the message at hand, `None` within if it is the end. Nothing if more bytes are needed.
    fn read_length(&mut self, bytes: &mut &[u8]) -> Result<Option<Option<u64>>, Unreadable> {
        if self.wanted.is_some() {
            // More of a message that has begun.
            return Ok(if bytes.is_empty() { None } else { Some(self.wanted) });
        }
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.ended || self.bits == 63 && byte > 1 {
                return Err(Unreadable::Nonsense);
            }
            *bytes = rest;
            self.number |= u64::from(byte & 0x7f) << self.bits;
            self.bits += 7;
            if byte & 0x80 == 0 {
                let number = std::mem::take(&mut self.number);
                self.bits = 0;
                let Some(len) = number.checked_sub(1) else { return Ok(Some(None)) };
                if len > self.longest {
                    return Err(Unreadable::TooLong(len));
                }
                self.wanted = Some(len);
                return Ok(if bytes.is_empty() && len > 0 { None } else { Some(self.wanted) });
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The segments of messages, and of the end.
    fn encode(messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (mut encoder, mut segments) = (Encoder::new(), Vec::new());
        let mut take = |segment: ZBytes| -> Result<(), ()> {
            segments.push(segment.to_bytes().into_owned());
            Ok(())
        };
        for (number, message) in messages.iter().enumerate() {
            match number % 2 {
                0 => encoder.message(message, &mut take).unwrap(),
                _ => encoder.own_message(message.clone(), &mut take).unwrap(),
            }
        }
        encoder.end(&mut take).unwrap();
        encoder.flush().map(take);
        segments
    }

    fn decode(pieces: impl Iterator<Item = Vec<u8>>, longest: u64) -> Result<(Vec<Vec<u8>>, bool), Unreadable> {
        let (mut decoder, mut messages, mut ended) = (Decoder::new(longest), Vec::new(), false);
        for piece in pieces {
            let mut rest = &piece[..];
            while let Some(frame) = decoder.next(&mut rest)? {
                match frame {
                    Frame::Message(message) => messages.push(message.to_vec()),
                    Frame::End => ended = true,
                }
            }
        }
        Ok((messages, ended))
    }

    #[test]
    fn messages_survive_any_cutting() {
        let lengths =
            [0, 1, 126, 127, 128, 300, 20_000, 0, MOST - 1, MOST, MOST + 1, 3 * MOST, 5, LONG, 7, 3 * MOST, 9];
        let messages: Vec<Vec<u8>> =
            lengths.iter().map(|&len| (0..len).map(|i| (i * 7 + len) as u8).collect()).collect();
        let segments = encode(&messages);
        assert!(segments.iter().all(|segment| segment.len() <= MOST));
        let stream = segments.concat();
        for piece in [1, 2, 3, 127, 4096, 70_000, stream.len()] {
            let pieces = stream.chunks(piece).map(<[u8]>::to_vec);
            assert_eq!(decode(pieces, u64::MAX), Ok((messages.clone(), true)), "cut into {piece} bytes");
        }
    }

    #[test]
    fn nonsense_and_what_is_too_long_are_told() {
        let stream = encode(&[vec![0; 1000]]).concat();
        assert_eq!(decode([stream].into_iter(), 999), Err(Unreadable::TooLong(1000)));
        assert_eq!(decode([vec![0xff; 11]].into_iter(), u64::MAX), Err(Unreadable::Nonsense), "a length of 71 bits");
        assert_eq!(decode([vec![0, 1]].into_iter(), u64::MAX), Err(Unreadable::Nonsense), "something behind the end");
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        let mut decoder = Decoder::new(u64::MAX);
        let bytes = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 2, 3];
        let mut rest = &bytes[..];
        assert_eq!(decoder.next(&mut rest), Ok(None));
        assert!(decoder.begun.capacity() < 1000);
    }
}
