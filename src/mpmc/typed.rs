//! Messages that are values: serde over postcard.

use std::cell::Cell;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Receiver, Sender};
use crate::error::{RecvError, SendError};
use crate::typed::{decode, encode};

thread_local! {
    /// The buffer that was encoded into last, kept for the next time.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Sender {
    /// Sends a value as one message, waiting for room. With serde and [postcard](https://docs.rs/postcard).
    ///
    /// # Errors
    ///
    /// [`SendError::Encode`] if the value cannot be encoded: nothing has been sent. Otherwise as [`send_bytes`](Sender::send_bytes).
    pub fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), SendError> {
        encoded(value, |bytes| self.send_bytes(bytes))
    }

    /// As [`send`](Self::send), without waiting.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send) and [`try_send_bytes`](Sender::try_send_bytes).
    pub fn try_send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), SendError> {
        encoded(value, |bytes| self.try_send_bytes(bytes))
    }

    /// As [`send`](Self::send), waiting for room for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendError::TimedOut`].
    pub fn send_timeout<T: Serialize + ?Sized>(&self, value: &T, timeout: Duration) -> Result<(), SendError> {
        encoded(value, |bytes| self.send_bytes_timeout(bytes, timeout))
    }

    /// As [`send`](Self::send), waiting for room until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`SendError::TimedOut`].
    pub fn send_deadline<T: Serialize + ?Sized>(&self, value: &T, deadline: Instant) -> Result<(), SendError> {
        encoded(value, |bytes| self.send_bytes_deadline(bytes, deadline))
    }
}

fn encoded<T: Serialize + ?Sized>(
    value: &T,
    send: impl FnOnce(&[u8]) -> Result<(), SendError>,
) -> Result<(), SendError> {
    let bytes = encode(value, SCRATCH.take())?;
    let result = send(&bytes);
    SCRATCH.set(bytes);
    result
}

impl Receiver {
    /// Receives a value, waiting for it. With serde and postcard.
    ///
    /// # Errors
    ///
    /// [`RecvError::Decode`] if the message is no such value, or longer than one: it has been consumed, and receiving can go on.
    /// Otherwise as [`recv_bytes`](Receiver::recv_bytes).
    pub fn recv<T: DeserializeOwned>(&self) -> Result<T, RecvError> {
        decode(&self.recv_bytes()?)
    }

    /// As [`recv`](Self::recv), without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::Empty`].
    pub fn try_recv<T: DeserializeOwned>(&self) -> Result<T, RecvError> {
        decode(&self.try_recv_bytes()?)
    }

    /// As [`recv`](Self::recv), waiting for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::TimedOut`].
    pub fn recv_timeout<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, RecvError> {
        decode(&self.recv_bytes_timeout(timeout)?)
    }

    /// As [`recv`](Self::recv), waiting until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`RecvError::TimedOut`].
    pub fn recv_deadline<T: DeserializeOwned>(&self, deadline: Instant) -> Result<T, RecvError> {
        decode(&self.recv_bytes_deadline(deadline)?)
    }
}
