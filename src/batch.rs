//! Many short messages at once: what sending and receiving them in batches shares.

use std::fmt;

/// The messages that one call has received; see [`Receiver::recv_batch`](crate::Receiver::recv_batch).
///
/// To be used again and again: it keeps its memory.
///
/// ```
/// let (mut receiver, mut sender) = ringpipe::simplex()?;
/// sender.send_batch(&["one", "two", "three"])?;
/// let mut batch = ringpipe::Batch::new();
/// receiver.recv_batch(&mut batch)?;
/// assert_eq!(batch.iter().collect::<Vec<_>>(), [&b"one"[..], b"two", b"three"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Batch {
    /// The payloads, one behind the other.
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

/// The most that a batch takes: messages, and bytes where there is more than one message.
pub(crate) const MOST: usize = 1024;
pub(crate) const MOST_BYTES: usize = 32 << 10;

impl Batch {
    /// An empty one, without memory.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none, as before the first receive and after one that failed.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A message by its place.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }

    /// The messages, in the order sent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.bytes[std::mem::replace(&mut start, end)..end])
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Takes a single message, whatever its size.
    pub(crate) fn take_one(&mut self, message: Vec<u8>) {
        self.ends.push(message.len());
        self.bytes = message;
    }

    /// Room for a full batch, of which the first message has so many bytes. False if there is no memory.
    pub(crate) fn reserve(&mut self, first: usize) -> bool {
        self.bytes.try_reserve(first.max(MOST_BYTES)).is_ok() && self.ends.try_reserve(MOST).is_ok()
    }

    /// Payloads and ends, to be appended to.
    pub(crate) fn parts(&mut self) -> (&mut Vec<u8>, &mut Vec<usize>) {
        (&mut self.bytes, &mut self.ends)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
