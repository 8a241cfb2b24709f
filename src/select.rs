//! Waiting for many ends at once.
//!
//! Each pipe end has a bell, a socket that is readable while there is something to receive, provided that somebody takes care to arm it (`bell.rs`).
//! Who waits for many arms the bells of all, sleeps in one `ppoll` on all sockets, and looks at the rings whenever it returns. It takes no part in
//! the futexes of `wait.rs` and `crowd.rs`: nobody can sleep on many of them.
//!
//! # No wake-up is lost
//!
//! Let `B` and `A` be those of L1 and L2 in `bell.rs`: a byte is in the socket; the seat is armed. When `ppoll` is called, every end falls under one of
//! these, and each of them ends the sleep when there comes something to receive.
//!
//! - *Armed by this call.* All that are to be armed move to their next generation, then comes one barrier for all of them (W1), then a look at each ring. For
//!   one end alone these are the steps of `Bell::arm` in the same order, and what comes between them for the sake of other ends touches none of its
//!   words. So a publication that the look missed finds `ARMED`, and rings. Bytes of earlier generations are removed after that look only.
//! - *Armed before*, and left alone. If whoever armed it has passed the barrier, the next publication finds `ARMED` and rings, or has claimed the bell: a byte is on its
//!   way, or its ringer was killed, and the publication after that rings. If whoever armed it has not passed the barrier yet, or never will, because it was killed, no byte has been removed: `B`, for it was not armed until then.
//! - *Rung since*, by a publication that came after the last look: `B`.
//! - *Muted* (below): the sleep is short.
//!
//! A byte is removed though the ring has a record in it only if that is padding, or takes a long message back: nothing to be received, and what follows
//! is announced by itself.
//!
//! The kernel hangs up the socket of an end whose peers are all gone, armed or not, so `ppoll` tells. The rings are looked at after that.
//!
//! # What keeps a bell loud
//!
//! A bell can ring for nothing, and go on: descriptors that nobody announces, a peer that stuffs it, and, in a pipe for many, a message that somebody
//! is still writing (the bell must not be silenced then, see `crowd.rs`). The socket of such an end is left out of the next `ppoll` as far as bytes go, and that is
//! a short one: at most one slice, as in other waits. So are all while a message is half written, and shorter at first, since nobody rings if its writer is dead.

use std::io;

use crate::bell::Bell;
use crate::crowd::Sight;
use crate::deadline::Deadline;
use crate::mpmc;
use crate::receiver::Receiver;
use crate::sync::BorrowedFd;
use crate::sys::{self, Heard, Readiness};
use crate::wait::{PARK, SLICE};

/// What is looked at, and listened to.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Pipe(&'a dyn PipeEnd),
    Other(BorrowedFd<'a>),
}

/// A receiving end.
pub(crate) trait PipeEnd {
    fn bell(&self) -> &Bell;
    fn look(&self) -> Sight;
    /// Repairs the ring if whoever holds what comes first is dead. True if there is something new to be seen.
    fn help(&self) -> bool;
}

/// Waits until some of `sources` are ready, or until `deadline`. Returns their indices.
pub(crate) fn wait_for<'a>(sources: impl Iterator<Item = Source<'a>>, deadline: Deadline) -> io::Result<Vec<usize>> {
    Wait::new(sources.map(Watch::new).collect()).until(deadline)
}

/// One of those that are waited for.
struct Watch<'a> {
    source: Source<'a>,
    sight: Sight,
    heard: Readiness,
    /// How often in a row the bell has rung for nothing.
    in_vain: u32,
    /// What the last step of arming is to be told.
    arming: Option<u8>,
}

/// How often a bell may ring for nothing before it is muted.
const IN_VAIN: u32 = 2;
/// How often a waiter helps one end before it looks at the others.
const HELPS: u32 = 64;
/// The first of the short sleeps while a message is half written, in nanoseconds. Each is twice as long as the one before, up to a slice.
const FIRST_NAP: u64 = 50_000;

impl<'a> Watch<'a> {
    fn new(source: Source<'a>) -> Watch<'a> {
        Watch { source, sight: Sight::Nothing, heard: Readiness::default(), in_vain: 0, arming: None }
    }

    fn is_ready(&self) -> bool {
        self.sight == Sight::Ready
    }

    fn look(&mut self) {
        match self.source {
            Source::Other(_) if self.heard.readable || self.heard.hung_up => self.sight = Sight::Ready,
            Source::Other(_) => {}
            Source::Pipe(end) => {
                self.sight = end.look();
                // No more than that: a peer that makes up what dead members hold must not keep this call from the other ends.
                for _ in 0..HELPS {
                    if self.sight != Sight::Held || !end.help() {
                        break;
                    }
                    self.sight = end.look();
                }
                // A message that somebody is still writing will come, even if there is no more to follow.
                if self.sight == Sight::Nothing && end.bell().found_gone() {
                    self.sight = Sight::Ready;
                }
            }
        }
    }

    /// The first step of arming, if that is to be done.
    fn begin_arming(&mut self) -> Option<&'a Bell> {
        let Source::Pipe(end) = self.source else { return None };
        let silent = !self.heard.readable && end.bell().is_armed();
        if self.sight != Sight::Nothing || silent {
            return None;
        }
        self.arming = Some(end.bell().begin_arming()?);
        Some(end.bell())
    }

    /// The last step, if there was a first.
    fn finish_arming(&mut self) {
        if let (Source::Pipe(end), Some(current)) = (self.source, self.arming.take()) {
            let mut sight = Sight::Nothing;
            end.bell().finish_arming(current, &mut || {
                sight = end.look();
                sight != Sight::Nothing
            });
            self.sight = sight;
        }
    }

    fn is_muted(&self) -> bool {
        matches!(self.source, Source::Pipe(_))
            && (self.sight == Sight::Held && self.heard.readable || self.in_vain > IN_VAIN)
    }

    /// What is to be listened to.
    fn listening(&self) -> Option<Heard<'a>> {
        let heard = Readiness::default();
        match self.source {
            _ if self.is_ready() => None,
            Source::Other(fd) => Some(Heard { fd, reading: true, heard }),
            // There is no more to be heard, but what is held may still come.
            Source::Pipe(end) if end.bell().found_gone() => None,
            Source::Pipe(end) => Some(Heard { fd: end.bell().fd(), reading: !self.is_muted(), heard }),
        }
    }

    /// Takes note of what was heard.
    fn hear(&mut self, heard: Readiness) {
        if let Source::Pipe(end) = self.source {
            if heard.hung_up {
                end.bell().note_gone();
            }
            // One that was muted is listened to again, for once.
            self.in_vain = match heard.readable {
                true => self.in_vain + 1,
                false if self.is_muted() => self.in_vain.min(IN_VAIN),
                false => 0,
            };
        }
        self.heard = heard;
    }
}

struct Wait<'a> {
    watches: Vec<Watch<'a>>,
    nap: u64,
}

impl<'a> Wait<'a> {
    fn new(watches: Vec<Watch<'a>>) -> Wait<'a> {
        Wait { watches, nap: FIRST_NAP }
    }

    fn until(mut self, deadline: Deadline) -> io::Result<Vec<usize>> {
        self.look();
        loop {
            if !self.any_ready() && !deadline.is_immediate() {
                self.arm();
            }
            // If some are ready, the kernel still has to be asked about the others.
            let asked = if self.any_ready() { self.listen(Deadline::NOW) } else { self.sleep(deadline) };
            let late = deadline.passed();
            self.look();
            match asked {
                _ if self.any_ready() => break,
                Err(e) => return Err(e),
                Ok(()) if late => break,
                Ok(()) => {}
            }
        }
        let ready = self.watches.iter().enumerate().filter(|(_, watch)| watch.is_ready());
        Ok(ready.map(|(index, _)| index).collect())
    }

    fn any_ready(&self) -> bool {
        self.watches.iter().any(Watch::is_ready)
    }

    fn look(&mut self) {
        self.watches.iter_mut().for_each(Watch::look);
    }

    /// Makes the next publication ring, everywhere.
    fn arm(&mut self) {
        let begun: Vec<&Bell> = self.watches.iter_mut().filter_map(Watch::begin_arming).collect();
        if begun.is_empty() {
            return;
        }
        // W1, of all at once.
        if !sys::heavy_barrier() {
            begun.iter().for_each(|bell| bell.seats.be_strong());
        }
        self.watches.iter_mut().for_each(Watch::finish_arming);
    }

    /// Listens until there is something to be heard, and not for longer than is good.
    fn sleep(&mut self, deadline: Deadline) -> io::Result<()> {
        let held = self.watches.iter().any(|watch| watch.sight == Sight::Held);
        let muted = self.watches.iter().any(Watch::is_muted);
        let longest = match (held, muted) {
            (true, _) => self.nap,
            (false, true) => SLICE,
            (false, false) => PARK,
        };
        if held {
            self.nap = SLICE.min(2 * self.nap);
        }
        self.listen(if deadline.is_immediate() { deadline } else { deadline.min(sys::now() + longest) })
    }

    fn listen(&mut self, deadline: Deadline) -> io::Result<()> {
        let (indices, mut many): (Vec<usize>, Vec<Heard<'a>>) =
            self.watches.iter().enumerate().filter_map(|(i, watch)| Some((i, watch.listening()?))).unzip();
        if many.is_empty() && deadline.is_immediate() {
            return Ok(());
        }
        sys::poll_many(&mut many, deadline)?;
        indices.into_iter().zip(many).for_each(|(i, one)| self.watches[i].hear(one.heard));
        Ok(())
    }
}

// --- receiving ends -----------------------------------------------------------------------------------

impl PipeEnd for Receiver {
    fn bell(&self) -> &Bell {
        self.hearing()
    }

    fn look(&self) -> Sight {
        if self.has_something() { Sight::Ready } else { Sight::Nothing }
    }

    fn help(&self) -> bool {
        false
    }
}

impl PipeEnd for mpmc::Receiver {
    fn bell(&self) -> &Bell {
        self.hearing()
    }

    fn look(&self) -> Sight {
        self.sight()
    }

    fn help(&self) -> bool {
        mpmc::Receiver::help(self)
    }
}
