//! Receiving those who connect to a listener, until they have said what they want.
//!
//! A client speaks first, and what it says is in the socket, as a rule, before the listener has taken it from the queue. Those who have not
//! spoken yet are kept aside, in an `epoll` set together with the listening socket: nobody waits for them, and the set's descriptor is readable
//! as soon as there is anything to do. Each has [`PATIENCE`] to speak; of more than [`MAX_VISITORS`] the one that came first has to
//! go, so that silence costs a bounded number of descriptors. A client of this crate that is turned away unheard tries again.
//!
//! Whoever has spoken is served before anybody is taken from the queue, so that a queue that never ends keeps nobody waiting.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::error::AcceptError;
use crate::greeting::{self, Offer, Peer, REQUEST_LEN};
use crate::name::Claim;
use crate::sys::{self, names};

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many may be about to say it at a time.
const MAX_VISITORS: usize = 64;
/// How many are taken from the queue, at most, before the clock is looked at.
const ROUND: usize = 64;
/// How many rounds a call that does not wait makes, at most, as long as there is somebody.
const ROUNDS: usize = 16;
/// The listening socket's; visitors have higher ones.
const QUEUE: u64 = 0;

pub(crate) struct Reception {
    // First: a child's copy of the socket in the set is of no consequence once the set is closed here.
    set: OwnedFd,
    claim: Claim,
    /// By the order in which they came.
    visitors: BTreeMap<u64, Visitor>,
    last: u64,
    allowed: Vec<u32>,
    offer: Offer,
}

/// Somebody who has not said all yet.
struct Visitor {
    socket: OwnedFd,
    peer: Peer,
    request: [u8; REQUEST_LEN],
    got: usize,
    /// Nanoseconds of the clock until which it may take.
    until: u64,
}

/// Somebody who is to be given an end.
pub(crate) struct Guest {
    socket: OwnedFd,
    pub(crate) peer: Peer,
    /// The kind that it wants: one of those offered.
    pub(crate) kind: u8,
    offer: Offer,
}

impl Guest {
    /// Whether it is still there to be given something, which is all that can go wrong on its side.
    pub(crate) fn give<E: crate::End>(self, end: &E) -> io::Result<bool> {
        match greeting::hand_out(&self.socket, self.offer, end) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(false),
            Err(e) => {
                self.disappoint(&e);
                Err(e)
            }
        }
    }

    /// Tells it that there is nothing for it.
    pub(crate) fn disappoint(&self, error: &io::Error) {
        greeting::fail(self.socket.as_fd(), self.offer, error);
    }
}

enum Heard {
    All(u8),
    NotYet,
    /// There is nothing to be given to this one.
    Nothing,
}

impl Visitor {
    fn listen(&mut self, offer: Offer) -> Heard {
        while self.got < REQUEST_LEN {
            match names::recv(self.socket.as_fd(), &mut self.request[self.got..]) {
                Ok(0) => return Heard::Nothing,
                Ok(more) => self.got += more,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Heard::NotYet,
                Err(_) => return Heard::Nothing,
            }
        }
        greeting::kind_wanted(self.socket.as_fd(), &self.request, offer).map_or(Heard::Nothing, Heard::All)
    }

    fn into_guest(self, kind: u8, offer: Offer) -> Guest {
        Guest { socket: self.socket, peer: self.peer, kind, offer }
    }
}

fn nobody(deadline: Deadline) -> AcceptError {
    if deadline.is_now() { AcceptError::Empty } else { AcceptError::TimedOut }
}

enum Round {
    Guest(Guest),
    /// Somebody was there, and is not to be given anything yet.
    Busy,
    Quiet,
}

impl Reception {
    pub(crate) fn open(claim: Claim, allowed: Vec<u32>, offer: Offer) -> io::Result<Reception> {
        let set = names::new_set()?;
        names::add_to_set(set.as_fd(), claim.as_fd(), QUEUE)?;
        Ok(Reception { set, claim, visitors: BTreeMap::new(), last: QUEUE, allowed, offer })
    }

    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The next one that is to be given an end, waited for until `deadline`.
    pub(crate) fn next(&mut self, deadline: Deadline) -> Result<Guest, AcceptError> {
        if !self.claim.is_own() {
            // The set is shared with the parent, who would be told of those who are not its own.
            return Err(AcceptError::Forked);
        }
        let mut rounds = 0;
        loop {
            self.dismiss_late();
            rounds += 1;
            match self.round()? {
                Round::Guest(guest) => return Ok(guest),
                Round::Busy if !deadline.passed() || (deadline.is_immediate() && rounds < ROUNDS) => continue,
                Round::Quiet if !deadline.passed() => {}
                _ => return Err(nobody(deadline)),
            }
            let first = self.visitors.first_key_value().map(|(_, visitor)| visitor.until);
            names::wait_readable(self.set.as_fd(), first.map_or(deadline, |until| deadline.min(until)));
        }
    }

    /// After an end was made for somebody who was gone by then: whether there is time for the next one. Those who ask and leave, one after the other, must not
    /// keep a call beyond its deadline.
    pub(crate) fn given_in_vain(&self, deadline: Deadline) -> Result<(), AcceptError> {
        if deadline.passed() { Err(nobody(deadline)) } else { Ok(()) }
    }

    fn round(&mut self) -> Result<Round, AcceptError> {
        let ready = names::ready_of_set(self.set.as_fd())?;
        let mut round = Round::Quiet;
        // In descending order, so the queue comes last.
        for token in ready {
            round = Round::Busy;
            if token == QUEUE {
                return self.take_from_queue();
            }
            let Some(visitor) = self.visitors.get_mut(&token) else {
                continue;
            };
            match visitor.listen(self.offer) {
                Heard::NotYet => {}
                Heard::Nothing => drop(self.dismiss(token)),
                Heard::All(kind) => {
                    let visitor = self.dismiss(token).expect("just spoken to");
                    return Ok(Round::Guest(visitor.into_guest(kind, self.offer)));
                }
            }
        }
        Ok(round)
    }

    fn take_from_queue(&mut self) -> Result<Round, AcceptError> {
        for turn in 0..ROUND {
            let socket = match names::accept(self.claim.as_fd()) {
                Ok(Some(socket)) => socket,
                Ok(None) => break,
                // Out of descriptors, the kernel says so before it looks whether there is anybody else. If there is, the next round says it.
                Err(_) if turn > 0 => break,
                Err(e) => return Err(e.into()),
            };
            let peer = Peer::of(socket.as_fd())?;
            if !peer.is_trusted(&self.allowed) {
                greeting::refuse(socket.as_fd(), self.offer);
                continue;
            }
            let until = sys::now() + PATIENCE.as_nanos() as u64;
            let mut visitor = Visitor { socket, peer, request: [0; REQUEST_LEN], got: 0, until };
            match visitor.listen(self.offer) {
                Heard::All(kind) => return Ok(Round::Guest(visitor.into_guest(kind, self.offer))),
                Heard::Nothing => {}
                Heard::NotYet => self.keep_aside(visitor)?,
            }
        }
        Ok(Round::Busy)
    }

    fn keep_aside(&mut self, visitor: Visitor) -> io::Result<()> {
        if self.visitors.len() == MAX_VISITORS {
            let first = self.visitors.first_key_value().map(|(&token, _)| token);
            drop(first.and_then(|token| self.dismiss(token)));
        }
        self.last += 1;
        names::add_to_set(self.set.as_fd(), visitor.socket.as_fd(), self.last)?;
        self.visitors.insert(self.last, visitor);
        Ok(())
    }

    fn dismiss(&mut self, token: u64) -> Option<Visitor> {
        let visitor = self.visitors.remove(&token)?;
        names::take_from_set(self.set.as_fd(), visitor.socket.as_fd());
        Some(visitor)
    }

    fn dismiss_late(&mut self) {
        // They have the same patience each, so the first to come is the first to go.
        while let Some((&token, visitor)) = self.visitors.first_key_value() {
            if sys::now() < visitor.until {
                return;
            }
            self.dismiss(token);
        }
    }
}

impl AsFd for Reception {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}
