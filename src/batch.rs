//! Many short messages at once: what sending and receiving them in batches needs.

use std::fmt;
use std::hint::black_box;

use crate::error::SendError;
use crate::ring::spsc::Run;
use crate::ring::{HEADER, header_of, record_len};
use crate::sender::Sender;

/// Messages that are sent together; see [`Sender::batch`].
///
/// What has been pushed may stay here, unseen by the receiver, until the batch is dropped or [flushed](Self::flush): do not wait for anything that depends on it
/// before. If a batch is leaked (`mem::forget`), it is never sent. A lock that keeps copies of an end apart has to be held as long as the batch is open; should a forked child
/// have a copy of the batch, only one of the two sends what was pushed before.
#[must_use = "it is for messages to be pushed to"]
pub struct SendBatch<'a> {
    sender: &'a mut Sender,
    run: Run,
}

impl<'a> SendBatch<'a> {
    #[inline]
    pub(crate) fn new(sender: &'a mut Sender) -> SendBatch<'a> {
        SendBatch { sender, run: Run::NONE }
    }

    /// Adds a message, of any length. Waits for room; what has been pushed before is on its way then.
    ///
    /// # Errors
    ///
    /// [`SendError::Disconnected`] if the receiver is gone, as [`Sender::send_bytes`]: what it has received of the messages before is not known.
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<(), SendError> {
        if !self.sender.append(&mut self.run, message) {
            // By value, so that the run may lie in registers otherwise.
            self.run = self.sender.append_behind(std::mem::replace(&mut self.run, Run::NONE), message)?;
        }
        Ok(())
    }

    /// Sends what has been pushed.
    #[inline]
    pub fn flush(&mut self) {
        self.sender.finish_run(std::mem::replace(&mut self.run, Run::NONE));
    }
}

impl Drop for SendBatch<'_> {
    #[inline]
    fn drop(&mut self) {
        self.flush();
    }
}

impl fmt::Debug for SendBatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBatch").field("sender", self.sender).finish_non_exhaustive()
    }
}

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
    /// Records as they lay in the ring, all of them `Data`; or a single message without a header.
    bytes: Vec<u8>,
    count: usize,
    bare: bool,
}

/// The most bytes of records that a batch takes, where there is more than one message.
pub(crate) const MOST_BYTES: usize = 32 << 10;

impl Batch {
    /// An empty one, without memory.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none, as before the first receive and after one that failed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The messages, in the order sent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let (mut rest, bare) = (&self.bytes[..], self.bare);
        // As for the reader: told apart by a branch, which `black_box` keeps one, a length is known before it is loaded.
        let mut last = (0, 0);
        (0..self.count).map(move |_| {
            if bare {
                return rest;
            }
            let header = header_of(rest).expect("as many records as were counted");
            if header.0 != last.0 {
                last = black_box(header);
            }
            let len = last.1;
            let (record, behind) = rest.split_at(record_len(len));
            rest = behind;
            &record[HEADER..HEADER + len]
        })
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// Takes a single message, whatever its size.
    pub(crate) fn take_one(&mut self, message: Vec<u8>) {
        (self.bytes, self.count, self.bare) = (message, 1, true);
    }

    /// Takes what `take` puts into the memory it is given, which is empty and has room for a full batch, of which the first record has so many bytes, and
    /// so many in all at most: records, and returns how many. False if there is no memory.
    pub(crate) fn take_run(&mut self, first: usize, take: impl FnOnce(&mut Vec<u8>, usize) -> usize) -> bool {
        let most = first.max(MOST_BYTES);
        let there = self.bytes.try_reserve(most).is_ok();
        if there {
            (self.count, self.bare) = (take(&mut self.bytes, most), false);
        }
        there
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
