//! Pipes between processes on one Linux machine, through shared memory: the semantics of Python's
//! [`multiprocessing.Pipe`](https://docs.python.org/3/library/multiprocessing.html#multiprocessing.Pipe), without a system call while
//! data flows, and with a kernel pipe's truth about who is alive.
//!
//! ```no_run
//! use ringpipe::{Connection, End};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In the parent:
//! let (mut mine, theirs) = ringpipe::pipe()?;
//! let mut command = std::process::Command::new("worker");
//! theirs.inherit(&mut command, "WORKER_PIPE");
//! let child = command.spawn()?;
//! drop(command); // it holds a copy of the child's end
//!
//! mine.send(&("square", 12_u64))?;
//! assert_eq!(mine.recv::<u64>()?, 144);
//!
//! // In the worker:
//! let mut conn = Connection::from_env("WORKER_PIPE")?;
//! while let Ok((what, number)) = conn.recv::<(String, u64)>() {
//!     assert_eq!(what, "square");
//!     conn.send(&(number * number))?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What to use
//!
//! | you want | use |
//! | --- | --- |
//! | requests and answers between two processes | [`pipe`]: two [`Connection`]s |
//! | a one-way stream | [`simplex`]: a [`Receiver`] and a [`Sender`], in `multiprocessing`'s order |
//! | several senders, or several receivers, at the same time | [`mpmc::simplex`]: handles that can be cloned, shared and handed on |
//! | another ring size | [`Builder`] |
//! | lower latency, or less processor time | [`WaitStrategy`] |
//! | to hand an end to a process that is not a plain fork | [`End`] |
//! | to serve processes that know a name | [`Listener`] gives each a pipe of its own, [`mpmc::Listener`] an end of one pipe for all; [`connect`] |
//! | values instead of bytes | `send` of a [`Sender`], `recv` of a [`Receiver`] (feature `serde`, on by default) |
//! | many short messages in a row | [`Sender::batch`], [`Receiver::recv_batch`] |
//! | no copy | [`Sender::reserve`], [`Receiver::recv_guard`] |
//! | whatever comes first, of many ends and of sockets | [`wait()`] |
//! | tasks of tokio | `ringpipe::tokio` (feature `tokio`): ends with async `send` and `recv` |
//! | to see how full pipes are, and who waits | [`inspect`] |
//! | an event loop | `as_fd` of a receiving end: level-triggered, only to be watched |
//!
//! Sending and receiving messages has four forms each: plain (waits), `try_` (does not), `_timeout` and `_deadline`.
//!
//! The [guide](mod@guide) shows how, by programs: workers, queues, servers, event loops, and what happens when a process dies.
//!
//! # What is promised
//!
//! - A message arrives whole or not at all, in the order sent, never twice; through a pipe for many, at exactly one receiver.
//! - End of file comes when every copy of the sending end is closed, and after every message that was sent. A broken pipe comes when
//!   every copy of the receiving end is closed. However it was closed: dropped, by `exit`, by SIGKILL.
//! - The peer's death wakes every blocked call: at once when it has been waiting for more than some 5 ms, within these 5 ms otherwise.
//! - Nothing outlives the processes: there is no name, no file, no segment left behind. (Except that a killed [`Listener`] leaves its socket's file and an
//!   empty one beside it, which the next one of that name takes over, and that the directory of bare names stays.)
//! - A faulty or hostile peer can spoil its own pipe and nothing else: no undefined behaviour, no access outside the ring, no SIGBUS, no
//!   endless loop, no allocation of its choosing.
//! - Builds that do not fit together refuse each other when they attach, with an error that says why.
//! - A receiving end's descriptor is readable whenever something can be received or the peer is gone, and, from the first time on that it
//!   was asked for, not otherwise: whoever finds it readable can receive without waiting, unless another copy of the end was faster.
//!   (Until the next receive or poll, it may be readable for nothing where a long message was taken back, where a sender was stopped for long between
//!   two instructions, or where several have received or polled at the same moment.)
//! - An idle, blocked pipe costs one wake-up a second.
//!
//! # What is not
//!
//! - Use of one end of [`pipe`] or [`simplex`] by two processes at once, without a lock of theirs, garbles messages, which is then reported as
//!   [`RecvError::Corrupt`] where it shows. Memory stays safe. The ends of [`mpmc`], which promises and leaves out other things too, are made for it.
//! - What a killed receiver had taken is gone. So is a long message (more than a quarter of the ring) of which it had taken a part.
//! - A [`ReadGuard`] that is leaked (`mem::forget`) consumes nothing: its message comes again. A [`SendBatch`] that is leaked sends nothing of what it holds.
//! - What a decoder does with a value's bytes is serde's business: an untrusted peer can make `recv` of a collection of zero-sized
//!   elements count for very long, that of a recursive type recurse until the stack is used up, and that of a hash map allocate some
//!   2 MiB for nothing.
//! - A message takes memory as it arrives, never as its sender claims: up to twice what is there, or, below 64 MiB, up to seventeen times, most of
//!   which is addresses (unless the process locks its memory). But what arrives may be long, and only `recv_bytes_max` and its forms bound it.
//! - A sender learns of a receiver's SIGKILL, or that an end died on its way to another process, when the ring is full, at the latest, or
//!   when it asks ([`Sender::is_disconnected`]).
//! - If a sender is killed while it sends a pipe end, between the descriptors and what announces them, a receiver's descriptor may be readable
//!   for nothing, and an idle receiver wake up some 200 times a second, until another end is sent or the pipe ends.
//! - If a sender is killed between publishing a message and announcing it, while a forked copy of its end lives on in silence, a receiver that
//!   has been waiting for more than 5 ms finds the message within a second; one that watches the descriptor, with the next message. The same
//!   second may pass for a sender that waits for room, if a receiver is killed between taking a message and saying so.
//!
//! # Where memory files are refused
//!
//! Some sandboxes and old kernels refuse `memfd_create`, and pipes cannot be made there ([`BuildError::Io`]), though they can be used. With the feature `posix-shm`, a process that is
//! refused makes them of files without a name in `/dev/shm` (tmpfs), and takes such pipes from others of its user. Nothing is left behind either, and whatever
//! room is missing there is missed when the pipe is made. But their size cannot be sealed: **a hostile peer can have the process killed** (SIGBUS) by shortening the file,
//! and on kernels before 5.14 a long message through a pipe for many, when `/dev/shm` is full, does the same. Processes that are not refused memory files neither make nor take such pipes,
//! feature or not.
//!
//! # How it works
//!
//! Each direction is a ring of bytes in an anonymous, sealed memory file that both sides map. The header of a record is also its signal, so a
//! message costs the transfer of its cache lines and little more. A side that has to wait spins for a while (adaptively), sleeps on
//! a futex in the ring for some 5 ms, and then parks on a Unix socket whose other end the peer holds: the kernel closes that when the
//! last copy is gone, which is how death is known. The modules of the source open with the arguments that make each protocol correct.
#![cfg(target_os = "linux")]

#[cfg(not(target_has_atomic = "64"))]
compile_error!("ringpipe needs a processor with 64-bit atomics: both sides of a pipe share 64-bit cursors");

mod assembly;
mod batch;
mod bell;
mod connect;
mod connection;
mod copy;
mod crowd;
#[cfg(test)]
#[path = "crowd/tests.rs"]
mod crowd_tests;
mod deadline;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod gather;
mod greeting;
#[doc = include_str!("guide.md")]
pub mod guide {}
mod handover;
pub mod inspect;
mod layout;
mod listener;
pub mod mpmc;
mod name;
mod pipe;
mod read_guard;
mod receiver;
mod reception;
mod registry;
mod ring;
mod segment;
mod select;
mod sender;
mod spin;
mod sync;
mod sys;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "serde")]
mod typed;
mod wait;
mod waitable;

pub use batch::{Batch, SendBatch};
pub use connect::{Connector, connect};
pub use connection::Connection;
pub use error::{
    AcceptError, AttachError, BufferTooShort, BuildError, CodecError, ConnectError, ListenError, NameError, RecvError,
    RecvIntoError, SendError,
};
pub use greeting::Peer;
pub use handover::{End, HandoverError};
pub use listener::{Incoming, Listener, ListenerBuilder};
pub use pipe::{Builder, DEFAULT_CAPACITY, WaitStrategy, pipe, simplex};
pub use read_guard::ReadGuard;
pub use receiver::{Iter, Receiver};
pub use sender::{Progress, Sender, WriteGuard};
pub use waitable::{Waitable, Watcher, wait};
