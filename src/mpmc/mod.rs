//! Many to many: a pipe with any number of senders and receivers, in any mix of threads and processes, without a lock.
//!
//! ```
//! let (receiver, sender) = ringpipe::mpmc::simplex()?;
//! let workers: Vec<_> = (0..3)
//!     .map(|_| {
//!         let receiver = receiver.clone();
//!         std::thread::spawn(move || receiver.iter().map_while(Result::ok).count())
//!     })
//!     .collect();
//! drop(receiver);
//! for n in 0..100_u32 {
//!     sender.send_bytes(&n.to_le_bytes())?;
//! }
//! drop(sender); // now the workers come to the end of the file
//! let received: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
//! assert_eq!(received, 100);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Handles are cloned within a process, handed to other processes with [`End`](crate::End), and inherited by `fork`: a forked child
//! that uses a copy takes part by itself. All methods take `&self`, so a handle can be shared as well as cloned.
//!
//! # What is promised
//!
//! - Each message goes to exactly one receiver, whole. Messages are taken in the order in which their senders got room for them; those
//!   of one sender are therefore taken in the order sent.
//! - End of file comes when every copy of every sender is closed and nothing is left. A broken pipe comes when every copy of every
//!   receiver is closed. However they were closed: dropped, by `exit`, by SIGKILL.
//! - A process that is killed, at whatever instruction, never stops the others. What it held is taken from it once the kernel says that it
//!   is dead, never because it was slow: a process that is stopped keeps what it has. Lost is what a killed receiver had taken (one message for
//!   each thread that was receiving, and for each [`ReadGuard`] it held), and what a killed sender had not sent yet. Nothing else.
//! - As long as messages wait, no receiver sleeps for longer than some 5 ms, even if the one that was woken for them is killed.
//!
//! # What is not
//!
//! - Order among several senders is that of getting room, so a sender that is stopped between that and publishing, or a [`WriteGuard`] that is held,
//!   holds up what was sent behind it. A [`ReadGuard`] holds up nothing, but keeps its room, and no room behind it becomes free before.
//! - Room goes to whoever finds it. A message that needs more than a 64th of the ring gets it before all others once it has waited for some 10 ms, as
//!   long as receivers give room back at least every 100 ms; meanwhile `try_` calls of others find the ring full. If its sender is killed or
//!   stopped then, the others wait for another 100 ms at most. Beside senders that always have such messages, the others get room about half of the time.
//! - A killed process is dead once its memory is gone: not while a child made by `vfork` still shares it (`posix_spawn` until the other program
//!   runs), nor while its core is being dumped.
//! - A process that closes the library's descriptors behind its back while it holds a [`WriteGuard`] keeps receivers from the end of file.
//! - A hostile peer that can hold up page faults (by a file system of its own, say) can hold up whoever receives a long message beyond
//!   any deadline, when its memory is given back: a `maxlength` of at most [`Sender::max_reserve`] prevents it. (Likewise who sends one that there is no memory for.) And in rings of hundreds of MiB, contents made up by a peer can make a call overrun its deadline by a second or so.
//! - A guard that is leaked (`mem::forget`) keeps its place until the last handle of its side is dropped in this process.
//! - Pipe ends cannot be sent through a pipe for many.
//! - If a sender is killed between publishing a message and announcing it, receivers that have been waiting for more than 5 ms find the message within a
//!   second, or with the next. The same second may pass before senders that wait for room notice what a killed receiver freed, and before
//!   anybody notices that the whole other side was killed, if the one that watches for that was killed too, or is stopped; and before a message is found
//!   for which two threads of one process were woken, if that is killed: only where no other process was asleep, or one whose number differs by a
//!   multiple of 32.
//! - While a sender is stopped in the middle of a message, or a [`WriteGuard`] is held, a receiver's descriptor may be readable for nothing.
//!
//! # Long messages
//!
//! Messages may be longer than the ring. What is longer than a quarter of it (or than 64 KiB) lies partly outside of the ring, in memory that is
//! given back, down to a MiB for each, when it has been received. What a killed process had of it stays in use until another long message takes
//! the same of four places, or the pipe is gone. At most four such messages are in flight at a time; to send another waits.
//!
//! # What it takes
//!
//! `/proc` must be there when a process attaches (or first uses what it inherited by `fork`). Each side takes two descriptors in a process; up to 1024
//! sides can be in use at the same time.

mod listener;
mod receiver;
mod sender;
mod side;
#[cfg(feature = "serde")]
mod typed;

pub use listener::{Listener, Role};
pub use receiver::{Iter, ReadGuard, Receiver};
pub use sender::{Sender, WriteGuard};

use std::io;
use std::sync::Arc;

use crate::error::BuildError;
use crate::pipe::Builder;
use crate::segment::Segment;
use crate::{bell, sys};

/// Makes a pipe for many senders and many receivers. As for [`crate::simplex`], the first end only receives, the second only sends.
///
/// [`Builder::mpmc`] makes one that differs from the default.
///
/// # Errors
///
/// [`BuildError::Io`] when descriptors or memory run out, or where there is no `/proc`.
pub fn simplex() -> Result<(Receiver, Sender), BuildError> {
    Builder::new().mpmc()
}

pub(crate) fn make(segment: Arc<Segment>) -> io::Result<(Receiver, Sender)> {
    let (receiving, sending) = sys::socketpair()?;
    // SAFETY: the control block is all atomics, and lives as long as the segment.
    bell::arm_fresh(unsafe { &segment.many_control().as_ref().not_empty.0.bell });
    Ok((Receiver::attach(Arc::clone(&segment), receiving)?, Sender::attach(segment, sending)?))
}
