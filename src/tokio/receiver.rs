//! The receiving end, for tokio.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::tokio::task::coop::poll_proceed;
use futures_core::Stream;

use super::ear::{Ear, step_back};
use crate::error::{RecvError, RecvIntoError};

/// The receiving end of a pipe, for tokio: as [`ringpipe::Receiver`](crate::Receiver).
///
/// Also a [`Stream`] of messages, which ends at end of file. After an error, it goes on with what comes next.
///
/// All its methods are cancel safe: see [the module's documentation](super#giving-up).
pub struct Receiver {
    // First: its descriptor is a copy of the end's, which is closed by the last one.
    ear: Ear,
    end: crate::Receiver,
    /// The stream ends for now.
    over: bool,
}

/// How often a poll tries before others have their turn. Each time, it takes or passes over a ring of bytes at most.
const TRIES: u32 = 4;

/// What may say that there is nothing for now.
trait Outcome {
    fn is_empty(&self) -> bool;

    fn failed(error: io::Error) -> Self;
}

impl<T> Outcome for Result<T, RecvError> {
    fn is_empty(&self) -> bool {
        matches!(self, Err(RecvError::Empty))
    }

    fn failed(error: io::Error) -> Self {
        Err(RecvError::Io(error))
    }
}

impl<T> Outcome for Result<T, RecvIntoError> {
    fn is_empty(&self) -> bool {
        matches!(self, Err(RecvIntoError::Recv(RecvError::Empty)))
    }

    fn failed(error: io::Error) -> Self {
        Err(RecvIntoError::Recv(RecvError::Io(error)))
    }
}

impl Receiver {
    /// Makes an end for the current runtime of a blocking one.
    ///
    /// # Errors
    ///
    /// What the kernel says if there are no more descriptors to be had; the end is closed then.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O enabled.
    pub fn from_blocking(end: crate::Receiver) -> io::Result<Receiver> {
        Ok(Receiver { ear: Ear::new(end.bell())?, end, over: false })
    }

    /// The blocking end again. Nothing is lost: it goes on where this one stopped, inside a long message, too.
    pub fn into_blocking(self) -> crate::Receiver {
        self.end
    }

    /// The blocking end, for what does not receive: `capacity`, `fill`.
    pub fn get_ref(&self) -> &crate::Receiver {
        &self.end
    }

    /// The blocking end, for its `try_` forms. Those that wait would keep the runtime's thread.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
    /// # let (receiver, mut sender) = ringpipe::simplex()?;
    /// # let mut receiver = ringpipe::tokio::Receiver::from_blocking(receiver)?;
    /// # sender.send_batch(["one", "two"])?;
    /// let mut batch = ringpipe::Batch::new();
    /// receiver.readable().await?;
    /// match receiver.get_mut().try_recv_batch(&mut batch) {
    ///     Ok(()) => assert_eq!(batch.len(), 2),
    ///     Err(ringpipe::RecvError::Empty) => {} // only a part of a long message, so far: wait again
    ///     Err(e) => return Err(e.into()),
    /// }
    /// # Ok(()) })
    /// # }
    /// ```
    pub fn get_mut(&mut self) -> &mut crate::Receiver {
        &mut self.end
    }

    /// Receives one message: see [`ringpipe::Receiver::recv_bytes`](crate::Receiver::recv_bytes).
    ///
    /// Cancel safe: a future that is dropped has consumed nothing; what has arrived of a long message is kept for the next receive.
    ///
    /// # Errors
    ///
    /// As there, and [`RecvError::Io`].
    pub async fn recv_bytes(&mut self) -> Result<Vec<u8>, RecvError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Receives one message of at most `maxlength` bytes: see [`ringpipe::Receiver::recv_bytes_max`](crate::Receiver::recv_bytes_max).
    ///
    /// Cancel safe, as [`recv_bytes`](Self::recv_bytes).
    ///
    /// # Errors
    ///
    /// As there, and [`RecvError::Io`].
    pub async fn recv_bytes_max(&mut self, maxlength: usize) -> Result<Vec<u8>, RecvError> {
        poll_fn(|cx| self.poll_with(cx, false, |end| end.try_recv_bytes_max(maxlength))).await
    }

    /// Receives one message into `buf[offset..]`, and returns its length in bytes: see
    /// [`ringpipe::Receiver::recv_bytes_into`](crate::Receiver::recv_bytes_into). A message longer than a quarter of the capacity is copied once more.
    ///
    /// Cancel safe, as [`recv_bytes`](Self::recv_bytes): the buffer is written to in the moment in which the message is consumed.
    ///
    /// # Errors
    ///
    /// As there, and [`RecvError::Io`].
    pub async fn recv_bytes_into(&mut self, buf: &mut [u8], offset: usize) -> Result<usize, RecvIntoError> {
        if offset > buf.len() {
            return Err(RecvIntoError::BadOffset { offset, len: buf.len() });
        }
        poll_fn(|cx| self.poll_with(cx, false, |end| end.try_recv_into_once_whole(buf, offset))).await
    }

    /// Receives a value: see [`ringpipe::Receiver::recv`](crate::Receiver::recv).
    ///
    /// Cancel safe, as [`recv_bytes`](Self::recv_bytes).
    ///
    /// # Errors
    ///
    /// As there, and [`RecvError::Io`].
    #[cfg(feature = "serde")]
    pub async fn recv<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, RecvError> {
        crate::typed::decode(&self.recv_bytes().await?)
    }

    /// Waits until a receive would find something: a message (or the start, or a further part, of a long one), or end of file. Consumes nothing: see
    /// [`ringpipe::Receiver::poll`](crate::Receiver::poll).
    ///
    /// Cancel safe: it does nothing but wait.
    ///
    /// # Errors
    ///
    /// [`RecvError::Ended`], [`RecvError::Corrupt`] and [`RecvError::Io`].
    pub async fn readable(&mut self) -> Result<(), RecvError> {
        let look = |end: &mut crate::Receiver| match end.poll(Some(std::time::Duration::ZERO)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(RecvError::Empty),
            Err(e) => Err(e),
        };
        poll_fn(|cx| self.poll_with(cx, true, look)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, RecvError>> {
        self.poll_with(cx, false, crate::Receiver::try_recv_bytes)
    }

    /// Waits until `attempt` gets further than that there is nothing for now. It is made only if there seems to be something; one that only looks passes over what
    /// others take out of the way.
    #[inline]
    fn poll_with<R: Outcome>(
        &mut self,
        cx: &mut Context<'_>,
        looks: bool,
        mut attempt: impl FnMut(&mut crate::Receiver) -> R,
    ) -> Poll<R> {
        let turn = ready!(poll_proceed(cx));
        for _ in 0..TRIES {
            if let Err(e) = ready!(self.ear.poll(cx, self.end.waiting(looks))) {
                return Poll::Ready(R::failed(e));
            }
            let result = attempt(&mut self.end);
            if !result.is_empty() {
                turn.made_progress();
                if self.end.has_ended() && self.ear.close() {
                    self.end.end_again();
                }
                return Poll::Ready(result);
            }
        }
        step_back(cx)
    }
}

impl Stream for Receiver {
    type Item = Result<Vec<u8>, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.over) {
            return Poll::Ready(None);
        }
        let result = ready!(self.poll_recv(cx));
        // What stays where it is must not come again and again to who goes on after errors.
        self.over = matches!(result, Err(RecvError::IsEnd | RecvError::NoMemory { .. } | RecvError::Io(_)));
        Poll::Ready(match result {
            Err(RecvError::Disconnected | RecvError::Ended) => None,
            result => Some(result),
        })
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.end).finish()
    }
}
