//! What is sent, and the judgement of what arrives.
//!
//! The messages of one direction of a round are numbered. Number, length and bytes follow from the seed, so both sides know them, and
//! every message is checked in full: one of 16 bytes or more starts with its number and its length; the rest are pieces of a pool
//! of random bytes, from places that depend on the seed, the number and the place in the message.
//!
//! Not every number has to arrive: a send that timed out must *not* arrive, and one in whose middle a sender was killed may or may
//! not ([`Fate`]). The sending side keeps a list of those. The receiving side keeps the numbers that can come next: nearly always one.

use std::sync::OnceLock;

use crate::soak::random::{Random, mix};

/// Lengths of the messages of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    Empty,
    Tiny,
    Small,
    /// Around the lengths at which something changes: 0, the longest record, the parts of a long message, the ring.
    Edges,
    /// From nothing to a few ring sizes.
    Streamed,
    /// Small ones, and some of many MiB.
    Huge,
    /// Some of everything but the last.
    Mixed,
}

/// The messages of one direction.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    key: u64,
    sizes: Sizes,
    capacity: usize,
}

const HEADER: usize = 16;
const POOL: usize = 1 << 20;
/// Each so many bytes of a message come from another place in the pool.
const BLOCK: usize = 16 << 10;
const LONGEST: usize = 16 << 20;

/// Made once in each process, before it forks, from a key that never changes: what differs from seed to seed is where pieces begin.
fn pool() -> &'static [u8] {
    static POOL_BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    POOL_BYTES.get_or_init(|| {
        let mut random = Random::new(0x5eed);
        (0..POOL / 8).flat_map(|_| random.next().to_le_bytes()).collect()
    })
}

impl Script {
    pub(crate) fn new(key: u64, sizes: Sizes, capacity: usize) -> Script {
        pool();
        Script { key, sizes, capacity }
    }

    /// Bytes of the message with this number.
    pub(crate) fn len(&self, number: u64) -> usize {
        let mut random = Random::new(mix(self.key, number));
        let sizes = match self.sizes {
            Sizes::Mixed => match random.below(8) {
                0 => Sizes::Edges,
                1 => Sizes::Streamed,
                2 => Sizes::Tiny,
                _ => Sizes::Small,
            },
            sizes => sizes,
        };
        let mut up_to = |longest: usize| random.below(longest as u64 + 1) as usize;
        match sizes {
            Sizes::Empty => 0,
            Sizes::Tiny => up_to(24),
            Sizes::Small | Sizes::Mixed => up_to(300),
            Sizes::Edges => {
                let quarter = self.capacity / 4;
                let edges = [0, 8, self.capacity / 8, quarter, quarter, 2 * quarter, 4 * quarter, 8 * quarter];
                (edges[up_to(7)] + up_to(40)).saturating_sub(24)
            }
            Sizes::Streamed => up_to((4 * self.capacity).min(1 << 20)),
            Sizes::Huge if up_to(15) == 0 => up_to((512 * self.capacity).min(LONGEST)),
            Sizes::Huge => up_to(1000),
        }
    }

    /// Whether that message is longer than what a ring takes in one piece, so that its sender can die in the middle of it.
    pub(crate) fn is_long(&self, number: u64) -> bool {
        self.len(number) > self.capacity / 4 - 8
    }

    /// Writes the message to `out`.
    pub(crate) fn write(&self, number: u64, out: &mut Vec<u8>) {
        out.clear();
        let len = self.len(number);
        if len >= HEADER {
            out.extend_from_slice(&self.header(number, len));
        }
        while out.len() < len {
            let piece = self.piece(number, out.len(), len);
            out.extend_from_slice(piece);
        }
    }

    /// Where the bytes differ from the message with this number; `None` if they are that message.
    pub(crate) fn differs(&self, number: u64, bytes: &[u8]) -> Option<Difference> {
        let len = self.len(number);
        if bytes.len() != len {
            return Some(Difference::Length { wanted: len });
        }
        let mut at = 0;
        while at < len {
            let header = self.header(number, len);
            let wanted = if at == 0 && len >= HEADER { &header[..] } else { self.piece(number, at, len) };
            let got = &bytes[at..at + wanted.len()];
            if got != wanted {
                let first = got.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(0);
                return Some(Difference::Byte { at: at + first });
            }
            at += wanted.len();
        }
        None
    }

    fn header(&self, number: u64, len: usize) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&number.to_le_bytes());
        header[8..].copy_from_slice(&(len as u64).to_le_bytes());
        header
    }

    /// The bytes from `at` to the next block, or to the end.
    fn piece(&self, number: u64, at: usize, len: usize) -> &'static [u8] {
        let block = at / BLOCK;
        let wanted = (len - at).min((block + 1) * BLOCK - at);
        let start = mix(mix(self.key, number), block as u64) as usize % (POOL - BLOCK);
        &pool()[start..start + wanted]
    }

    /// Says what is wrong with bytes that arrived where one of `expected` should have.
    fn complaint(&self, expected: &[u64], bytes: &[u8]) -> String {
        let next = expected[0];
        let number = bytes.first_chunk().map(|&first| u64::from_le_bytes(first));
        if let Some(number) = number.filter(|_| bytes.len() >= HEADER) {
            if self.differs(number, bytes).is_none() {
                let what = if number < next { "came again (or late)" } else { "came too early: some are missing" };
                return format!("message {number}, whole, {what}; expected was {expected:?}");
            }
        }
        let why = match self.differs(next, bytes) {
            Some(Difference::Length { wanted }) => format!("it has {} bytes instead of {wanted}", bytes.len()),
            Some(Difference::Byte { at }) => format!("wrong from byte {at} of {} on", bytes.len()),
            None => "its time was over".to_owned(),
        };
        let starts = &bytes[..bytes.len().min(HEADER)];
        format!("what arrived is not message {expected:?}: {why}; it starts with {starts:02x?}")
    }
}

/// How bytes differ from a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    Length { wanted: usize },
    Byte { at: usize },
}

/// What became of a number that was begun and not plainly sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its send returned an error: it must not arrive.
    Refused,
    /// Its sender was killed while sending: it may arrive, whole, or be cut if it is long.
    Doubtful,
}

/// Which numbers may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tracker {
    next: Vec<u64>,
}

impl Tracker {
    /// More than ever come together: a kill of each side leaves some two.
    pub(crate) const MOST: usize = 8;

    pub(crate) fn new(next: Vec<u64>) -> Tracker {
        Tracker { next }
    }

    pub(crate) fn next(&self) -> &[u64] {
        &self.next
    }

    /// Takes a message that arrived.
    pub(crate) fn accept(
        &mut self,
        script: &Script,
        fate: impl Fn(u64) -> Option<Fate>,
        bytes: &[u8],
    ) -> Result<(), String> {
        let next = self.after(&fate, |number| script.differs(number, bytes).is_none());
        if next.is_empty() {
            return Err(script.complaint(&self.next, bytes));
        }
        self.next = next;
        Ok(())
    }

    /// Takes the news that a message was cut. Which one is only known to be right once its sender is known to be dead.
    pub(crate) fn cut(&mut self, script: &Script, fate: impl Fn(u64) -> Option<Fate>) -> Result<(), String> {
        let next = self.after(&fate, |number| script.is_long(number));
        if next.is_empty() {
            return Err(format!("cut in a message that is sent in one piece; expected was {:?}", self.next));
        }
        self.next = next;
        Ok(())
    }

    /// A receiver was killed that may have taken one more than it had time to note.
    pub(crate) fn lose_one(&mut self, fate: impl Fn(u64) -> Option<Fate>) {
        let lost = self.after(&fate, |_| true);
        self.next.extend(lost);
        self.tidy();
    }

    /// Whether nothing is missing if the sender stopped before `number`.
    pub(crate) fn may_end_at(&self, fate: impl Fn(u64) -> Option<Fate>, number: u64) -> bool {
        self.next.iter().any(|&next| next <= number && (next..number).all(|passed| fate(passed).is_some()))
    }

    /// The numbers after those that `fits` and whose turn it is.
    fn after(&self, fate: &impl Fn(u64) -> Option<Fate>, fits: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut after = Tracker { next: Vec::new() };
        for &start in &self.next {
            for number in start.. {
                let fate = fate(number);
                if fate != Some(Fate::Refused) && fits(number) {
                    after.next.push(number + 1);
                }
                if fate.is_none() {
                    break;
                }
            }
        }
        after.tidy();
        after.next
    }

    fn tidy(&mut self) {
        self.next.sort_unstable();
        self.next.dedup();
        self.next.truncate(Tracker::MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::{Fate, Script, Sizes, Tracker};

    const CAPACITY: usize = 4096;

    fn script() -> Script {
        Script::new(7, Sizes::Mixed, CAPACITY)
    }

    fn message(number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        script().write(number, &mut bytes);
        bytes
    }

    /// Numbers whose messages tell themselves apart from every other.
    fn telling(from: u64) -> u64 {
        (from..).find(|&number| message(number).len() >= 32).unwrap()
    }

    fn sent(_: u64) -> Option<Fate> {
        None
    }

    fn expecting(number: u64) -> Tracker {
        Tracker::new(vec![number])
    }

    #[test]
    fn messages_in_order_pass() {
        for sizes in [Sizes::Empty, Sizes::Tiny, Sizes::Small, Sizes::Edges, Sizes::Streamed, Sizes::Huge, Sizes::Mixed]
        {
            let script = Script::new(3, sizes, CAPACITY);
            let mut tracker = expecting(0);
            let mut bytes = Vec::new();
            for number in 0..100 {
                script.write(number, &mut bytes);
                assert_eq!(bytes.len(), script.len(number));
                tracker.accept(&script, sent, &bytes).unwrap();
            }
            assert!(tracker.may_end_at(sent, 100) && !tracker.may_end_at(sent, 99) && !tracker.may_end_at(sent, 101));
        }
    }

    #[test]
    fn a_wrong_byte_anywhere_is_noticed() {
        for number in 0..60 {
            let right = message(number);
            for at in 0..right.len() {
                let mut wrong = right.clone();
                wrong[at] ^= 1;
                assert!(expecting(number).accept(&script(), sent, &wrong).is_err(), "byte {at} of message {number}");
            }
        }
    }

    #[test]
    fn a_wrong_length_is_noticed() {
        for number in 0..60 {
            let mut longer = message(number);
            longer.push(0);
            assert!(expecting(number).accept(&script(), sent, &longer).is_err(), "message {number}");
            let mut shorter = message(number);
            if shorter.pop().is_some() {
                assert!(expecting(number).accept(&script(), sent, &shorter).is_err(), "message {number}");
            }
        }
    }

    #[test]
    fn a_missing_message_is_noticed_and_named() {
        let (first, third) = (telling(0), telling(telling(0) + 1));
        let complaint = expecting(first).accept(&script(), sent, &message(third)).unwrap_err();
        assert!(complaint.contains("some are missing") && complaint.contains(&third.to_string()), "{complaint}");
        assert!(!expecting(first).may_end_at(sent, third), "missing at the end");
    }

    #[test]
    fn a_doubled_message_is_noticed_and_named() {
        let number = telling(5);
        let mut tracker = expecting(number);
        tracker.accept(&script(), sent, &message(number)).unwrap();
        let complaint = tracker.accept(&script(), sent, &message(number)).unwrap_err();
        assert!(complaint.contains("came again"), "{complaint}");
    }

    #[test]
    fn a_torn_message_is_noticed() {
        let number = (0..).find(|&n| message(n).len() > CAPACITY).unwrap();
        let (right, mut torn) = (message(number), message(number));
        // Its end is its beginning, as if a part had come twice in place of the next.
        let half = right.len() / 2;
        torn[half..2 * half].copy_from_slice(&right[..half]);
        let complaint = expecting(number).accept(&script(), sent, &torn).unwrap_err();
        assert!(complaint.contains(&format!("wrong from byte {half}")), "{complaint}");
        // As if zeros, or another message of the same length, had been there.
        torn[half..].fill(0);
        assert!(expecting(number).accept(&script(), sent, &torn).is_err());
    }

    #[test]
    fn messages_of_another_seed_or_direction_are_noticed() {
        let number = telling(0);
        let other = Script::new(8, Sizes::Mixed, CAPACITY);
        assert!(expecting(number).accept(&other, sent, &message(number)).is_err());
    }

    #[test]
    fn a_refused_message_must_not_arrive_and_is_not_missed() {
        let (refused, next) = (telling(0), telling(0) + 1);
        let fate = |number| (number == refused).then_some(Fate::Refused);
        assert!(expecting(refused).accept(&script(), fate, &message(refused)).is_err());
        expecting(refused).accept(&script(), fate, &message(next)).unwrap();
        assert!(expecting(refused).may_end_at(fate, next));
    }

    #[test]
    fn a_doubtful_message_may_arrive_or_not_but_only_once() {
        let (doubtful, next) = (telling(0), telling(0) + 1);
        let fate = |number| (number == doubtful).then_some(Fate::Doubtful);
        let mut tracker = expecting(doubtful);
        tracker.accept(&script(), fate, &message(doubtful)).unwrap();
        assert!(tracker.clone().accept(&script(), fate, &message(doubtful)).is_err());
        tracker.accept(&script(), fate, &message(next)).unwrap();
        expecting(doubtful).accept(&script(), fate, &message(next)).unwrap();
    }

    #[test]
    fn only_a_long_message_can_be_cut() {
        let long = (0..).find(|&n| script().is_long(n)).unwrap();
        let short = (0..).find(|&n| !script().is_long(n)).unwrap();
        assert!(expecting(short).cut(&script(), sent).is_err());
        let mut tracker = expecting(long);
        tracker.cut(&script(), sent).unwrap();
        assert_eq!(tracker.next(), [long + 1]);
    }

    #[test]
    fn a_killed_receiver_may_have_taken_one_and_no_more() {
        let numbers: Vec<u64> =
            (0..).filter(|&n| message(n).len() >= 32 && message(n + 1).len() >= 32).take(1).collect();
        let first = numbers[0];
        for lost in 0..3 {
            let mut tracker = expecting(first);
            tracker.lose_one(sent);
            let passed = tracker.accept(&script(), sent, &message(first + lost)).is_ok();
            assert_eq!(passed, lost < 2, "{lost} lost");
        }
    }
}
