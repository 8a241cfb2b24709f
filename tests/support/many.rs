//! What tests of pipes for many have in common.

use std::os::unix::net::UnixStream;

use ringpipe::mpmc::{Receiver, Sender};
use ringpipe::{Builder, End};

use super::forms::fill_by;
use super::{Child, fork_copy};

/// The smallest ring for many.
pub(crate) const SMALL: usize = 64 << 10;

/// The most memory that a small pipe has when there is nothing in it: a MiB of each window stays.
pub(crate) const KEPT: u64 = 5 << 20;

pub(crate) fn small() -> (Receiver, Sender) {
    Builder::new().capacity(SMALL).mpmc().unwrap()
}

/// Sends messages of 60 bytes, a cell each, until there is no room for another; returns how many.
pub(crate) fn fill_up(sender: &Sender) -> usize {
    fill_by(60, |message| sender.try_send_bytes(message))
}

/// A handle as another process would have it: with a membership of its own.
pub(crate) fn attached<E: End>(end: E) -> E {
    let (here, there) = UnixStream::pair().unwrap();
    end.send_to(&here).unwrap();
    E::recv_from(&there).unwrap()
}

/// A child with the receiving end only.
pub(crate) fn receiving(ends: (Receiver, Sender), body: impl FnOnce(Receiver) -> i32) -> (Child, (Receiver, Sender)) {
    fork_copy(ends, |(receiver, sender)| {
        drop(sender);
        body(receiver)
    })
}

/// A child with the sending end only.
pub(crate) fn sending(ends: (Receiver, Sender), body: impl FnOnce(Sender) -> i32) -> (Child, (Receiver, Sender)) {
    fork_copy(ends, |(receiver, sender)| {
        drop(receiver);
        body(sender)
    })
}
