//! placeholder
#![cfg(target_os = "linux")]

mod connection;
mod copy;
mod error;
mod handover;
mod layout;
mod pipe;
mod receiver;
mod ring;
mod segment;
mod sender;
mod sync;
mod sys;
#[cfg(feature = "serde")]
mod typed;
mod wait;

pub use connection::Connection;
pub use error::{AttachError, BufferTooShort, BuildError, CodecError, RecvError, RecvIntoError, SendError};
pub use handover::{End, HandoverError};
pub use pipe::{Builder, DEFAULT_CAPACITY, pipe, simplex};
pub use receiver::{Iter, ReadGuard, Receiver};
pub use sender::{Sender, WriteGuard};
