//! The ends for many, in the place of the crate's `src/mpmc/mod.rs`: without what makes a pipe.

#[path = "../../src/mpmc/receiver.rs"]
mod receiver;
#[path = "../../src/mpmc/sender.rs"]
mod sender;
#[path = "../../src/mpmc/side.rs"]
mod side;

pub(crate) use receiver::Receiver;
pub(crate) use sender::Sender;
