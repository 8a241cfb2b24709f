//! Between a local end and a link: what the two threads of a connection do.

use std::time::Duration;

use ringpipe::{Batch, Receiver, RecvError, SendError, Sender, mpmc};

use crate::frames::{Decoder, Encoder, Frame, Unreadable};
use crate::link::Reason;
use crate::packet::MOST;
use crate::wire::{LOOK, Refused, Taken, Wire};

/// A message that was taken from a local end, with memory of its own if it is long.
pub(crate) enum Message<'a> {
    Lent(&'a [u8]),
    Own(Vec<u8>),
}

impl Message<'_> {
    fn len(&self) -> usize {
        match self {
            Message::Lent(bytes) => bytes.len(),
            Message::Own(bytes) => bytes.len(),
        }
    }
}

/// A receiving end: of a pipe, or of one for many.
pub(crate) trait Intake {
    /// Gives each message that is there to `each`: some at least, waiting for the first for so long, and not more than a segment needs.
    fn take<E>(
        &mut self,
        timeout: Duration,
        each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<Result<(), E>, RecvError>;
}

/// Messages of a pipe, some at a time.
pub(crate) struct Batches {
    receiver: Receiver,
    batch: Batch,
    /// Bytes of a message, at most.
    longest: usize,
}

impl Batches {
    pub(crate) fn new(receiver: Receiver, longest: u64) -> Batches {
        Batches { receiver, batch: Batch::new(), longest: usize::try_from(longest).unwrap_or(usize::MAX) }
    }
}

impl Intake for Batches {
    fn take<E>(
        &mut self,
        timeout: Duration,
        mut each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<Result<(), E>, RecvError> {
        let Batches { receiver, batch, longest } = self;
        if receiver.long_message_len().is_some() {
            let message = match timeout.is_zero() {
                true => receiver.try_recv_bytes_max(*longest)?,
                false => receiver.recv_bytes_max_timeout(*longest, timeout)?,
            };
            return Ok(each(Message::Own(message)));
        }
        if timeout.is_zero() {
            receiver.try_recv_batch(batch)?
        } else {
            receiver.recv_batch_timeout(batch, timeout)?
        }
        Ok(batch.iter().map(Message::Lent).try_for_each(&mut each))
    }
}

impl Intake for mpmc::Receiver {
    fn take<E>(
        &mut self,
        timeout: Duration,
        mut each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<Result<(), E>, RecvError> {
        let message = if timeout.is_zero() { self.try_recv_bytes()? } else { self.recv_bytes_timeout(timeout)? };
        Ok(each(Message::Own(message)))
    }
}

/// A sending end.
pub(crate) trait Outlet {
    /// Sends the messages in `bytes`, which is the next part of a stream. Whether the stream has come to its end.
    fn send(&mut self, decoder: &mut Decoder, bytes: &[u8]) -> Result<bool, Undeliverable>;

    fn is_disconnected(&mut self) -> bool;
}

/// Why a stream goes no further.
pub(crate) enum Undeliverable {
    Unreadable(Unreadable),
    Send(SendError),
}

impl From<Unreadable> for Undeliverable {
    fn from(e: Unreadable) -> Undeliverable {
        Undeliverable::Unreadable(e)
    }
}

impl From<SendError> for Undeliverable {
    fn from(e: SendError) -> Undeliverable {
        Undeliverable::Send(e)
    }
}

/// Calls `each` with the messages in the next part of a stream, and returns whether it has come to its end.
pub(crate) fn for_each_message(
    decoder: &mut Decoder,
    mut bytes: &[u8],
    mut each: impl FnMut(&[u8]) -> Result<(), SendError>,
) -> Result<bool, Undeliverable> {
    while let Some(frame) = decoder.next(&mut bytes)? {
        match frame {
            Frame::Message(message) => each(message)?,
            Frame::End => return Ok(true),
        }
    }
    Ok(false)
}

impl Outlet for Sender {
    fn send(&mut self, decoder: &mut Decoder, bytes: &[u8]) -> Result<bool, Undeliverable> {
        let mut batch = self.batch();
        for_each_message(decoder, bytes, |message| batch.push(message))
    }

    fn is_disconnected(&mut self) -> bool {
        Sender::is_disconnected(self)
    }
}

impl Outlet for mpmc::Sender {
    fn send(&mut self, decoder: &mut Decoder, bytes: &[u8]) -> Result<bool, Undeliverable> {
        for_each_message(decoder, bytes, |message| self.send_bytes(message))
    }

    fn is_disconnected(&mut self) -> bool {
        mpmc::Sender::is_disconnected(self)
    }
}

/// Why a local end is read no further.
enum Stop {
    Refused,
    TooLong,
}

impl From<Refused> for Stop {
    fn from(Refused: Refused) -> Stop {
        Stop::Refused
    }
}

/// From a local end to the far side, until either has enough. Then the local end is closed.
pub(crate) fn outbound(wire: &Wire, mut from: impl Intake, longest: u64) {
    let mut encoder = Encoder::new();
    loop {
        // Nothing is taken that there is no room for: it would be lost if the far side is.
        match wire.await_room(LOOK) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(Refused) => return,
        }
        match fill(wire, &mut from, &mut encoder, longest) {
            Ok(Ok(())) => {}
            Ok(Err(Stop::Refused)) => return,
            Ok(Err(Stop::TooLong)) => return wire.reset(Reason::TooLong),
            Err(RecvError::TimedOut | RecvError::Empty | RecvError::Cut) => {}
            Err(RecvError::Disconnected) => return end(wire, &mut encoder),
            Err(RecvError::IsEnd) => return wire.reset(Reason::PipeEnd),
            Err(RecvError::TooLong { .. }) => return wire.reset(Reason::TooLong),
            Err(_) => return wire.reset(Reason::Failed),
        }
    }
}

/// Ends the stream to the far side.
pub(crate) fn end(wire: &Wire, encoder: &mut Encoder) {
    let ended = encoder.end(|segment| wire.push(segment));
    if let (Ok(()), Some(segment)) = (ended, encoder.flush()) {
        // A refusal shows elsewhere.
        let _ = wire.push(segment);
    }
}

/// One segment of what is there, or several if a message is long.
fn fill(
    wire: &Wire,
    from: &mut impl Intake,
    encoder: &mut Encoder,
    longest: u64,
) -> Result<Result<(), Stop>, RecvError> {
    let push = |segment| wire.push(segment).map_err(Stop::from);
    let mut add = |message: Message<'_>| match message {
        _ if message.len() as u64 > longest => Err(Stop::TooLong),
        Message::Lent(message) => encoder.message(message, push),
        Message::Own(message) => encoder.own_message(message, push),
    };
    let mut added = from.take(LOOK, &mut add)?;
    let mut count = 0;
    let end = loop {
        count += 1;
        if added.is_err() || count >= SOME {
            break None;
        }
        match from.take(Duration::ZERO, &mut add) {
            Ok(more) => added = more,
            // What is not over now is found again.
            Err(RecvError::Empty) => break None,
            Err(e) => break Some(e),
        }
    };
    if let Some(segment) = encoder.flush() {
        added = added.and_then(|()| Ok(wire.push(segment)?));
    }
    end.map_or(Ok(added), Err)
}

/// Takes from a local end that go into one segment, at most.
const SOME: usize = 64;

/// From the far side to a local end, until either has enough. Then the local end is to be closed.
pub(crate) fn inbound(wire: &Wire, to: &mut impl Outlet, longest: u64) {
    let mut decoder = Decoder::new(longest);
    loop {
        match wire.take(LOOK) {
            Taken::Segment(segment) => {
                for bytes in segment.slices() {
                    match to.send(&mut decoder, bytes) {
                        Ok(false) => {}
                        Ok(true) | Err(Undeliverable::Send(SendError::Disconnected)) => return wire.close(),
                        Err(Undeliverable::Send(_)) => return wire.reset(Reason::Failed),
                        Err(Undeliverable::Unreadable(why)) => return wire.reset(unreadable(&why)),
                    }
                }
                wire.consumed(segment.len());
            }
            Taken::Nothing if to.is_disconnected() => return wire.close(),
            Taken::Nothing => {}
            Taken::Over => return,
        }
    }
}

pub(crate) fn unreadable(why: &Unreadable) -> Reason {
    match why {
        Unreadable::Nonsense => Reason::Nonsense,
        Unreadable::TooLong(_) => Reason::TooLong,
        Unreadable::NoMemory(_) => Reason::Failed,
    }
}

const _: () = assert!(MOST >= 64 << 10, "a segment takes what a batch holds");
