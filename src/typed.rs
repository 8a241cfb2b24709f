//! Messages that are values: serde over postcard.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::deadline::Deadline;
use crate::error::{CodecError, RecvError, SendError};
use crate::receiver::Receiver;
use crate::sender::Sender;

impl Sender {
    /// Sends a value as one message, waiting for room. Follows `Connection.send`, with serde and
    /// [postcard](https://docs.rs/postcard) in place of pickle.
    ///
    /// ```
    /// # let (mut receiver, mut sender) = ringpipe::simplex()?;
    /// sender.send(&("answer", 42_u8))?;
    /// assert_eq!(receiver.recv::<(String, u8)>()?, ("answer".to_string(), 42));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError::Encode`] if the value cannot be encoded: nothing has been sent. Otherwise as
    /// [`send_bytes`](Sender::send_bytes).
    pub fn send<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SendError> {
        self.encoded(value, |sender, bytes| sender.send_bytes(bytes))
    }

    /// As [`send`](Self::send), without waiting.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send) and [`try_send_bytes`](Sender::try_send_bytes).
    pub fn try_send<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SendError> {
        self.encoded(value, |sender, bytes| sender.try_send_bytes(bytes))
    }

    /// As [`send`](Self::send), waiting for room for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendError::TimedOut`].
    pub fn send_timeout<T: Serialize + ?Sized>(&mut self, value: &T, timeout: Duration) -> Result<(), SendError> {
        self.encoded(value, |sender, bytes| sender.send_bytes_timeout(bytes, timeout))
    }

    /// As [`send`](Self::send), waiting for room until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendError::TimedOut`].
    pub fn send_deadline<T: Serialize + ?Sized>(&mut self, value: &T, deadline: Instant) -> Result<(), SendError> {
        self.encoded(value, |sender, bytes| sender.send_bytes_deadline(bytes, deadline))
    }

    /// Encodes into a buffer that is kept for the next time.
    fn encoded<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        send: impl FnOnce(&mut Sender, &[u8]) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        let bytes = encode(value, std::mem::take(&mut self.scratch))?;
        let result = send(self, &bytes);
        self.scratch = bytes;
        result
    }
}

impl Receiver {
    /// Receives a value, waiting for it. Follows `Connection.recv`, with serde and postcard in place of pickle.
    ///
    /// # Errors
    ///
    /// [`RecvError::Decode`] if the message is no such value, or longer than one: it has been consumed, and receiving can go on.
    /// Otherwise as [`recv_bytes`](Receiver::recv_bytes).
    pub fn recv<T: DeserializeOwned>(&mut self) -> Result<T, RecvError> {
        self.recv_value(Deadline::NEVER)
    }

    /// As [`recv`](Self::recv), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::Empty`].
    pub fn try_recv<T: DeserializeOwned>(&mut self) -> Result<T, RecvError> {
        self.recv_value(Deadline::NOW)
    }

    /// As [`recv`](Self::recv), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::TimedOut`].
    pub fn recv_timeout<T: DeserializeOwned>(&mut self, timeout: Duration) -> Result<T, RecvError> {
        self.recv_value(Deadline::after(timeout))
    }

    /// As [`recv`](Self::recv), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::TimedOut`].
    pub fn recv_deadline<T: DeserializeOwned>(&mut self, deadline: Instant) -> Result<T, RecvError> {
        self.recv_value(Deadline::instant(deadline))
    }

    fn recv_value<T: DeserializeOwned>(&mut self, deadline: Deadline) -> Result<T, RecvError> {
        decode(&self.recv_until(usize::MAX, deadline)?)
    }
}

/// Encodes a value, into a vector that may hold anything.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, mut scratch: Vec<u8>) -> Result<Vec<u8>, SendError> {
    scratch.clear();
    postcard::to_extend(value, scratch).map_err(|e| SendError::Encode(CodecError(e.to_string())))
}

/// Decodes a message that has to be one value and nothing else.
pub(crate) fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, RecvError> {
    let failed = |what: String| RecvError::Decode(CodecError(what));
    match postcard::take_from_bytes(message) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(failed(format!("{} bytes are left over", rest.len()))),
        Err(e) => Err(failed(e.to_string())),
    }
}
