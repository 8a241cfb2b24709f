//! The sending end, for tokio.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::tokio::task::coop::poll_proceed;
use futures_sink::Sink;

use super::ear::{Ear, step_back};
use crate::error::SendError;

/// The sending end of a pipe, for tokio: as [`ringpipe::Sender`](crate::Sender).
///
/// Also a [`Sink`] of messages. It takes one while there is no room, which is sent by the next flush or send; where there is room, a message is sent at once.
/// Closing it is a flush: end of file comes when the end is dropped.
///
/// All its methods are cancel safe: see [the module's documentation](super#giving-up).
pub struct Sender {
    // First: its descriptor is a copy of the end's, which is closed by the last one.
    ear: Ear,
    end: crate::Sender,
    /// Bytes of the message under way that have been sent; not zero only inside a long one.
    sent: usize,
    /// What the sink has taken, and not sent yet, or not all of it.
    taken: Option<Vec<u8>>,
}

/// How often a poll sends a ring of bytes before others have their turn.
const TRIES: u32 = 4;

impl Sender {
    /// Makes an end for the current runtime of a blocking one.
    ///
    /// # Errors
    ///
    /// What the kernel says if there are no more descriptors to be had; the end is closed then.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O enabled.
    pub fn from_blocking(end: crate::Sender) -> io::Result<Sender> {
        Ok(Sender { ear: Ear::new(end.waiter.bell.fd())?, end, sent: 0, taken: None })
    }

    /// The blocking end again. What the sink has taken and not flushed is not sent.
    pub fn into_blocking(mut self) -> crate::Sender {
        self.take_back();
        self.ear.settle(&mut self.end.waiter);
        self.end
    }

    /// The blocking end, for what does not send: `capacity`, `fill`.
    pub fn get_ref(&self) -> &crate::Sender {
        &self.end
    }

    /// The blocking end, for its `try_` forms and `is_disconnected`. Those that wait would keep the runtime's thread. What the sink has taken and not flushed comes
    /// after what is sent so, unless it is long and sent in part: then it is given up.
    pub fn get_mut(&mut self) -> &mut crate::Sender {
        if self.sent > 0 {
            self.taken = None;
        }
        self.take_back();
        &mut self.end
    }

    /// Sends one message of any length: see [`ringpipe::Sender::send_bytes`](crate::Sender::send_bytes).
    ///
    /// Cancel safe: a future that is dropped has sent nothing. What the receiver has got of a long message is taken back.
    ///
    /// # Errors
    ///
    /// As there, and [`SendError::Io`].
    pub async fn send_bytes(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.abandon();
        let sending = Sending(self);
        poll_fn(|cx| sending.0.poll_send(cx, message)).await
    }

    /// Sends a value: see [`ringpipe::Sender::send`](crate::Sender::send).
    ///
    /// Cancel safe, as [`send_bytes`](Self::send_bytes).
    ///
    /// # Errors
    ///
    /// As there, and [`SendError::Io`].
    #[cfg(feature = "serde")]
    pub async fn send<T: serde::Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SendError> {
        let bytes = crate::typed::encode(value, std::mem::take(&mut self.end.scratch))?;
        let result = self.send_bytes(&bytes).await;
        self.end.scratch = bytes;
        result
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<(), SendError>> {
        if self.taken.is_some() {
            ready!(self.poll_taken(cx))?;
        }
        self.poll_message(cx, message)
    }

    /// Sends what the sink has taken.
    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(message) = self.taken.take() else { return Poll::Ready(Ok(())) };
        let result = self.poll_message(cx, &message);
        if result.is_pending() {
            self.taken = Some(message);
        }
        result
    }

    /// Sends what is left of the message.
    fn poll_message(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<(), SendError>> {
        let turn = ready!(poll_proceed(cx));
        for _ in 0..TRIES {
            match self.end.send_some(message, &mut self.sent) {
                Ok(false) => {
                    if let Err(e) = ready!(self.ear.poll(cx, self.end.waiting(message.len(), self.sent))) {
                        self.take_back();
                        return Poll::Ready(Err(e.into()));
                    }
                }
                done => {
                    turn.made_progress();
                    self.sent = 0;
                    self.ear.settle(&mut self.end.waiter);
                    return Poll::Ready(done.map(drop));
                }
            }
        }
        step_back(cx)
    }

    /// Takes back what a future that was dropped, or leaked, has left under way. The sink's message stays.
    fn abandon(&mut self) {
        if self.taken.is_none() {
            self.take_back();
        }
    }

    /// Takes back a long message that was sent in part; unless a forked child has a copy of the end, whose parent goes on with it.
    fn take_back(&mut self) {
        if std::mem::take(&mut self.sent) > 0 && self.ear.is_own() {
            self.end.retract();
        }
    }
}

/// A message of a caller's, under way.
struct Sending<'a>(&'a mut Sender);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Sink<Vec<u8>> for Sender {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        // Where there is room, `start_send` does it all, and cannot give way to others.
        ready!(poll_proceed(cx)).made_progress();
        self.poll_taken(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Vec<u8>) -> Result<(), SendError> {
        let this = &mut *self;
        assert!(this.taken.is_none(), "`start_send` called without a `poll_ready` that was ready");
        this.take_back();
        if !this.end.send_some(&message, &mut this.sent)? {
            this.taken = Some(message);
            return Ok(());
        }
        this.sent = 0;
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_taken(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_taken(cx)
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.end).finish()
    }
}
