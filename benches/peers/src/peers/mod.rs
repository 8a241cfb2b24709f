//! The peers, and the table of them.

mod kernel;
mod many;
mod ring;

use crate::peer::{Kind, Outcome, Peer, Place};
use crate::sides::{self, Job};

/// A peer in the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    kind: Kind,
    place: Place,
    pub(crate) blocks: bool,
    /// Both sides of a measurement, from making the channel to handing in the figures.
    pub(crate) run: fn(&Job) -> Outcome<()>,
}

impl Row {
    const fn of<P: Peer>(run: fn(&Job) -> Outcome<()>) -> Row {
        Row { name: P::NAME, kind: P::KIND, place: P::PLACE, blocks: P::BLOCKS, run }
    }

    pub(crate) fn is_in_place(&self) -> bool {
        self.kind == Kind::Loan
    }

    pub(crate) fn is_in_threads(&self) -> bool {
        self.place == Place::Threads
    }

    const fn any_size<P: Peer>() -> Row {
        Row::of::<P>(sides::run::<P>)
    }
}

/// All of them, ringpipe first: it is what the others are compared with.
pub(crate) static TABLE: [Row; 7] = [
    Row::any_size::<ring::Ring>(),
    Row::any_size::<ring::RingInPlace>(),
    Row::any_size::<many::Many>(),
    Row::any_size::<kernel::FdPipe>(),
    Row::any_size::<kernel::UnixStream>(),
    Row::any_size::<kernel::UnixPackets>(),
    Row::any_size::<kernel::Tcp>(),
];
