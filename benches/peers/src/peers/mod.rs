//! The peers, and the table of them.

mod iceoryx;
mod ipc_channel;
mod ipc_ring;
mod kernel;
mod many;
mod ring;
mod ringfire;
mod shmem_ipc;
mod threads;

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

/// A row for a peer whose messages are of a type, and so of one size. (A function cannot choose a constant parameter of a type it is given.)
macro_rules! one_size {
    ($peer:ident) => {
        Row::of::<$peer<8>>(|job| match job.spec.size {
            8 => sides::run::<$peer<8>>(job),
            64 => sides::run::<$peer<64>>(job),
            256 => sides::run::<$peer<256>>(job),
            1024 => sides::run::<$peer<1024>>(job),
            4096 => sides::run::<$peer<4096>>(job),
            65536 => sides::run::<$peer<65536>>(job),
            1_048_576 => sides::run::<$peer<1_048_576>>(job),
            other => Err(format!("no type has been made for {other} bytes").into()),
        })
    };
}

use ringfire::Ringfire;
use shmem_ipc::ShmemIpc;
use threads::{Crossbeam, Rtrb};

/// All of them, ringpipe first: it is what the others are compared with.
pub(crate) static TABLE: [Row; 16] = [
    Row::any_size::<ring::Ring>(),
    Row::any_size::<ring::RingInPlace>(),
    Row::any_size::<ring::RingInBatches>(),
    Row::any_size::<many::Many>(),
    Row::any_size::<kernel::FdPipe>(),
    Row::any_size::<kernel::UnixStream>(),
    Row::any_size::<kernel::UnixPackets>(),
    Row::any_size::<kernel::Tcp>(),
    Row::any_size::<ipc_channel::IpcChannel>(),
    Row::any_size::<iceoryx::Copying>(),
    Row::any_size::<iceoryx::Lending>(),
    one_size!(Ringfire),
    Row::any_size::<ipc_ring::IpcRing>(),
    one_size!(ShmemIpc),
    one_size!(Rtrb),
    one_size!(Crossbeam),
];
