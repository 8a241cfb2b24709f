//! What bridges send each other: a head of fixed size and, behind it, a part of a stream or nothing.
//!
//! The head travels as Zenoh's attachment, so that the payload needs no copy. Numbers have the lowest byte first.
//!
//! ```text
//!  0      1     2      3  4      20    28    36     44     52     60     64     68
//!  | VERSION | kind | flags | 0 | from | src | dst | offset | ack | limit | ping | pong |
//! ```
//!
//! Behind the head comes a checksum (CRC-32) of head and payload. Zenoh has none, and after its line had been down was seen to deliver a payload of the right length with the bytes of
//! two packets; probably it had given up a connection in the midst of writing, and written on behind that. A packet whose sum is wrong counts as lost.
//!
//! What arrives may be anything: a head that is not one of this version is no packet.

use zenoh::bytes::ZBytes;

/// To be changed with anything that a bridge of another version would take for something else.
const VERSION: u8 = 4;

/// Bytes of a head.
pub(crate) const HEAD: usize = 68;

/// The most bytes of payload. A window is at least as large, or a packet might never be let through.
pub(crate) const MOST: usize = 512 << 10;

/// The sender of the packet takes no more of the stream towards it.
const CLOSED: u8 = 1;

/// The sender of the packet has heard nothing for long.
const DEAF: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Asks for a connection. `dst` is 0, and the payload says to what.
    Open,
    /// Part of a stream, or only what the head says.
    Segment,
    /// There is no such connection, or no longer. The payload has one byte: why.
    Reset,
}

/// Numbers of the sender of the packet come first: `src` is its own connection's, `ack` and `limit` are of the stream towards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) closed: bool,
    pub(crate) deaf: bool,
    /// The bridge that sends it: where an answer goes.
    pub(crate) from: u128,
    pub(crate) src: u64,
    pub(crate) dst: u64,
    /// Where in the stream the payload starts.
    pub(crate) offset: u64,
    /// Up to where the stream towards the sender has been received without a gap.
    pub(crate) ack: u64,
    /// Up to where it may be sent.
    pub(crate) limit: u64,
    /// If not 0: to be given back as a `pong`, at once.
    pub(crate) ping: u32,
    pub(crate) pong: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) head: Head,
    pub(crate) payload: ZBytes,
}

impl Packet {
    /// The head and the sum.
    pub(crate) fn attachment(&self) -> [u8; HEAD + 4] {
        let head = self.head.encode();
        let mut bytes = [0; HEAD + 4];
        bytes[..HEAD].copy_from_slice(&head);
        bytes[HEAD..].copy_from_slice(&sum(&head, &self.payload).to_le_bytes());
        bytes
    }

    /// `None` if these bytes are no head and sum, or the sum is another.
    pub(crate) fn open(attachment: &[u8], payload: &ZBytes) -> Option<Packet> {
        let (head, told) = attachment.split_last_chunk()?;
        let packet = Packet { head: Head::decode(head)?, payload: payload.clone() };
        (sum(head, payload) == u32::from_le_bytes(*told)).then_some(packet)
    }
}

fn sum(head: &[u8], payload: &ZBytes) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(head);
    payload.slices().for_each(|slice| sum.update(slice));
    sum.finalize()
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD] {
        let kind = match self.kind {
            Kind::Open => 0,
            Kind::Segment => 1,
            Kind::Reset => 2,
        };
        let mut bytes = [0; HEAD];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (place, behind) = std::mem::take(&mut rest).split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        };
        let flags = if self.closed { CLOSED } else { 0 } | if self.deaf { DEAF } else { 0 };
        put(&[VERSION, kind, flags, 0]);
        put(&self.from.to_le_bytes());
        for number in [self.src, self.dst, self.offset, self.ack, self.limit] {
            put(&number.to_le_bytes());
        }
        put(&self.ping.to_le_bytes());
        put(&self.pong.to_le_bytes());
        bytes
    }

    /// `None` if these bytes are no head.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Head> {
        let bytes: &[u8; HEAD] = bytes.try_into().ok()?;
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let kind = match bytes[..4] {
            [VERSION, 0, ..] => Kind::Open,
            [VERSION, 1, ..] => Kind::Segment,
            [VERSION, 2, ..] => Kind::Reset,
            _ => return None,
        };
        Some(Head {
            kind,
            closed: bytes[2] & CLOSED != 0,
            deaf: bytes[2] & DEAF != 0,
            from: u128::from_le_bytes(bytes[4..20].try_into().expect("16 bytes")),
            src: long(20),
            dst: long(28),
            offset: long(36),
            ack: long(44),
            limit: long(52),
            ping: short(60),
            pong: short(64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for kind in [Kind::Open, Kind::Segment, Kind::Reset] {
            let head = Head {
                kind,
                closed: kind == Kind::Segment,
                deaf: kind != Kind::Open,
                from: u128::MAX / 3,
                src: 1,
                dst: 2 << 40,
                offset: 3 << 50,
                ack: 4,
                limit: u64::MAX,
                ping: 5,
                pong: 6 << 20,
            };
            assert_eq!(Head::decode(&head.encode()), Some(head));
        }
    }

    #[test]
    fn a_packet_with_one_wrong_bit_is_none() {
        let head = Head::decode(&{
            let mut head = [0; HEAD];
            head[..2].copy_from_slice(&[VERSION, 1]);
            head
        });
        let packet = Packet { head: head.unwrap(), payload: ZBytes::from(vec![7; 1000]) };
        let attachment = packet.attachment();
        assert_eq!(Packet::open(&attachment, &packet.payload).map(|opened| opened.head), Some(packet.head));
        for bit in 0..8 * attachment.len() {
            let mut wrong = attachment;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(Packet::open(&wrong, &packet.payload).is_none(), "bit {bit} of the head");
        }
        for byte in 0..1000 {
            let mut wrong = vec![7; 1000];
            wrong[byte] ^= 1 << (byte % 8);
            assert!(Packet::open(&attachment, &ZBytes::from(wrong)).is_none(), "byte {byte}");
        }
        assert!(Packet::open(&attachment, &ZBytes::from(vec![7; 999])).is_none(), "a byte is missing");
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let head = [0; HEAD];
        assert_eq!(Head::decode(&head), None, "version 0");
        let mut kind = [0; HEAD];
        kind[..2].copy_from_slice(&[VERSION, 9]);
        assert_eq!(Head::decode(&kind), None, "an unknown kind");
        assert_eq!(Head::decode(&[VERSION; HEAD - 1]), None, "too short");
        assert_eq!(Head::decode(&[VERSION; HEAD + 1]), None, "too long");
    }
}
