//! The two streams of a connection between two bridges, one each way, over a network that loses, doubles and reorders what it carries.
//!
//! A state machine: it does no input or output and has no clock. Its user gives it the packets that arrive ([`Link::on_packet`]), the time, and what is to be sent
//! ([`Link::push`]); and takes the packets that are to go ([`Link::poll_output`]) and what has been received ([`Link::pop`]). `link/simulation.rs` runs two of them
//! against each other over the worst of networks.
//!
//! # Numbers
//!
//! A stream is numbered by its bytes. Its sender keeps what is not acknowledged:
//!
//! ```text
//!      acked                    unsent                 written
//!        | sent, may be lost      | not sent             |        written - acked <= window
//!   -----+------------------------+----------------------+----
//!                                           |
//!                                         limit                   what ends beyond is not sent
//! ```
//!
//! and its receiver has three numbers: what it has taken out, `consumed`; what it has `received` without a gap; and the limit that it last told.
//!
//! ```text
//!      consumed        received                         consumed + window
//!        | in the queue  |                                |
//!   -----+---------------+--------------------------------+---
//! ```
//!
//! - *Nothing is lost, nothing is doubled, nothing is out of order*: a segment is received only if it starts at `received`. All others are thrown away. So what is received is the stream,
//!   whatever the network does. A sender throws away only what is acknowledged, that is, received.
//! - *Memory is bounded*: by the window in the sender, and by the window in the receiver, since no honest sender goes beyond the limit, and what comes from another is
//!   thrown away. Short segments that wait are put together, or what they are wrapped in would be many times the window.
//! - *Back-pressure goes end to end*: the limit moves as the receiver's user takes bytes out, which is when the far program's ring has room.
//!
//! # What is sent again, and when
//!
//! Zenoh carries packets of one priority in order as long as the connection below lasts, and loses some when that is cut. So there is nothing to be guessed from times: a *ping* is sent
//! in the same order as the segments, and answered at once with its number and with what was received. If by then something is missing that was sent before the
//! ping, it is lost, and the sender goes back to what is acknowledged. On a slow line an answer takes long, and nothing is sent twice meanwhile. A network that reorders makes
//! more to be sent again than needed; it cannot harm. A ping is sent when nothing has moved for [`PING_AFTER`] though something should, when the user knows that the network is back
//! ([`Link::on_reconnect`]), and as a sign of life. One without an answer is repeated, with the same number: that its first copy came behind what counts as sent before it is all
//! that matters. All that an answer tells, acknowledgement and limit, only ever grows, so it can be said again at any time, and old packets do no harm.
//!
//! # A way that is none
//!
//! After some cuts Zenoh takes a connection for a good one that carries nothing, one way or both ways, and keeps it for ever. Who has heard nothing for half of its patience, for all its
//! pings, is *deaf*: it complains, and says so in each packet, since the other side may hear very well. What is done about it is the user's business ([`Link::complaint`]).
//!
//! # Opening
//!
//! ```text
//!   caller                                callee
//!   Open   src a                  --->                 each has drawn its number for this connection alone
//!                                 <---    Segment  src b, dst a
//!   Segment  src a, dst b         --->    confirmed: only now it does anything for the caller
//! ```
//!
//! An `Open` that comes twice finds the link it has opened, by the caller's number. One that comes so late that the link is forgotten makes a new one, whose answer has another number than
//! the caller knows, and is ignored (or refused, if the caller has forgotten as well): it is never confirmed, and nothing was done for it. A bridge that was started again has other numbers,
//! and refuses what was meant for the one before it.
//!
//! # Ending
//!
//! The end of a stream is in the stream. A receiver that has come to it, or wants no more, is *closed*, and says so in each packet from then on. A link whose both streams are closed is complete; it
//! stays for as long as the other side may still ask. A link of which nothing was heard for `patience` is lost, and so is one that is reset; what has been received can still be taken.

use std::collections::VecDeque;
use std::time::Duration;

use zenoh::bytes::ZBytes;

use crate::packet::{Head, Kind, MOST, Packet};

#[cfg(test)]
mod simulation;

/// A sender that waits for acknowledgement or for room asks after this time without progress.
pub(crate) const PING_AFTER: Duration = Duration::from_millis(100);

/// An acknowledgement waits so long for a segment that takes it along.
const ACK_AFTER: Duration = Duration::from_millis(20);

/// What waits has at least so many bytes to a buffer, or is put together. What comes from the network keeps the buffer of 64 KiB in which it came, however short it is.
const SHORT: usize = 32 << 10;

/// Segments that may be without acknowledgement, however short: each takes some memory besides its bytes.
const MANY: usize = 4096;

/// Why a link is over before its streams have come to their ends. In a packet, its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing was heard for too long.
    Lost = 1,
    /// The other side knows nothing of this link: it was started again, or has given the link up.
    Unknown = 2,
    /// The packets make no sense.
    Nonsense = 3,
    /// The bridge ends.
    Ending = 4,
    /// There is nothing by that name on the far side, or nobody accepts.
    NoListener = 5,
    /// The program sent a pipe end, which cannot leave the machine.
    PipeEnd = 6,
    /// A message is longer than a bridge takes.
    TooLong = 7,
    /// A local pipe failed, or there was no memory.
    Failed = 8,
    /// There are as many connections as the bridge takes.
    Busy = 9,
}

impl Reason {
    const ALL: [Reason; 9] = [
        Reason::Lost,
        Reason::Unknown,
        Reason::Nonsense,
        Reason::Ending,
        Reason::NoListener,
        Reason::PipeEnd,
        Reason::TooLong,
        Reason::Failed,
        Reason::Busy,
    ];

    fn decode(payload: &ZBytes) -> Reason {
        let byte = payload.to_bytes().first().copied();
        Reason::ALL.into_iter().find(|&reason| Some(reason as u8) == byte).unwrap_or(Reason::Nonsense)
    }
}

/// How a link is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// This side has ended it.
    Here(Reason),
    /// The other side has.
    There(Reason),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Bytes that each side keeps for each direction, at most; at least [`MOST`].
    pub(crate) window: u64,
    /// How long nothing may be heard.
    pub(crate) patience: Duration,
}

pub(crate) struct Link {
    settings: Settings,
    /// Which bridge this is.
    from: u128,
    ours: u64,
    /// The other side's number; 0 until it has answered.
    theirs: u64,
    /// What is asked for, until there is an answer.
    request: Option<ZBytes>,
    /// Whether the other side is known to know this side's number.
    confirmed: bool,
    over: Option<Over>,
    /// Whether the other side is yet to be told that it is over.
    farewell: bool,
    heard_at: Duration,
    /// The other side has last said that it hears nothing.
    unheard: bool,
    complained_at: Option<Duration>,
    out: Outgoing,
    incoming: Incoming,
}

struct Outgoing {
    /// What is not acknowledged, and where it starts.
    segments: VecDeque<(u64, ZBytes)>,
    /// The first of them to be sent next.
    unsent: usize,
    acked: u64,
    written: u64,
    limit: u64,
    /// The receiver takes no more.
    closed: bool,
    /// When something last moved, or was asked.
    moved_at: Duration,
    ping: u32,
    /// Where the segments ended that were sent before the ping, which has no answer yet.
    asked: Option<u64>,
    ping_now: bool,
}

struct Incoming {
    queue: VecDeque<ZBytes>,
    /// Short segments behind the queue, put together.
    joined: Vec<u8>,
    received: u64,
    consumed: u64,
    closed: bool,
    /// What the other side was last told.
    told_ack: u64,
    told_limit: u64,
    /// The last ping, to be answered with each packet.
    pong: u32,
    answer_at: Option<Duration>,
}

impl Incoming {
    fn push(&mut self, segment: ZBytes) {
        let is_short = segment.len() < SHORT * segment.slices().count();
        if self.joined.len() + segment.len() > MOST || !is_short {
            self.settle();
        }
        // The first is likely to be taken at once.
        if is_short && !(self.queue.is_empty() && self.joined.is_empty()) {
            segment.slices().for_each(|slice| self.joined.extend_from_slice(slice));
        } else {
            self.queue.push_back(segment);
        }
    }

    fn pop(&mut self) -> Option<ZBytes> {
        if self.queue.is_empty() {
            self.settle();
        }
        self.queue.pop_front()
    }

    /// Adds what was put together to the queue.
    fn settle(&mut self) {
        if !self.joined.is_empty() {
            self.queue.push_back(ZBytes::from(std::mem::take(&mut self.joined)));
        }
    }
}

impl Link {
    /// The side that asks for a connection, with a request for the other bridge.
    pub(crate) fn call(settings: Settings, from: u128, ours: u64, request: ZBytes, now: Duration) -> Link {
        let mut link = Link::new(settings, from, ours, 0, now);
        link.request = Some(request);
        link.out.ping_now = true;
        link
    }

    /// The side that was asked, in a packet with this head.
    pub(crate) fn answer(settings: Settings, from: u128, ours: u64, open: &Head, now: Duration) -> Link {
        let mut link = Link::new(settings, from, ours, open.src, now);
        link.out.limit = open.limit;
        link.incoming.answer_at = Some(now);
        link
    }

    fn new(settings: Settings, from: u128, ours: u64, theirs: u64, now: Duration) -> Link {
        assert!(settings.window >= MOST as u64, "a window holds a segment");
        Link {
            settings,
            from,
            ours,
            theirs,
            request: None,
            confirmed: false,
            over: None,
            farewell: false,
            heard_at: now,
            unheard: false,
            complained_at: None,
            out: Outgoing {
                segments: VecDeque::new(),
                unsent: 0,
                acked: 0,
                written: 0,
                limit: 0,
                closed: false,
                moved_at: now,
                ping: 0,
                asked: None,
                ping_now: false,
            },
            incoming: Incoming {
                queue: VecDeque::new(),
                joined: Vec::new(),
                received: 0,
                consumed: 0,
                closed: false,
                told_ack: 0,
                told_limit: 0,
                pong: 0,
                answer_at: None,
            },
        }
    }

    // The user's side.

    /// Bytes that may be pushed.
    pub(crate) fn room(&self) -> u64 {
        if self.is_refused() || self.out.segments.len() >= MANY {
            return 0;
        }
        self.settings.window - (self.out.written - self.out.acked)
    }

    /// Adds a segment to the stream: at most [`MOST`] bytes, and at most [`room`](Self::room).
    pub(crate) fn push(&mut self, segment: ZBytes, now: Duration) {
        let len = segment.len() as u64;
        debug_assert!(len > 0 && len <= MOST as u64 && len <= self.room());
        let out = &mut self.out;
        if out.segments.is_empty() {
            out.moved_at = now;
        }
        out.segments.push_back((out.written, segment));
        out.written += len;
    }

    /// The next part of what has been received. To be followed by [`consumed`](Self::consumed), once it is where it belongs.
    pub(crate) fn pop(&mut self) -> Option<ZBytes> {
        self.incoming.pop()
    }

    /// So many bytes of what was popped need no room any more.
    pub(crate) fn consumed(&mut self, bytes: u64, now: Duration) {
        self.incoming.consumed += bytes;
        debug_assert!(self.incoming.consumed <= self.incoming.received);
        self.soon(now);
    }

    /// Takes no more: the stream has come to its end, or nobody wants it.
    pub(crate) fn close(&mut self, now: Duration) {
        if !self.incoming.closed {
            self.incoming.closed = true;
            self.incoming.queue = VecDeque::new();
            self.incoming.joined = Vec::new();
            self.incoming.answer_at = Some(now);
        }
    }

    /// Gives the link up.
    pub(crate) fn reset(&mut self, reason: Reason) {
        if self.is_alive() {
            self.end(Over::Here(reason));
            self.farewell = true;
        }
    }

    /// Whether nothing more can be sent: the other side takes no more, or it is over.
    pub(crate) fn is_refused(&self) -> bool {
        self.out.closed || self.over.is_some()
    }

    pub(crate) fn over(&self) -> Option<Over> {
        self.over
    }

    /// Whether it is neither over nor complete.
    pub(crate) fn is_alive(&self) -> bool {
        self.over.is_none() && !self.is_complete()
    }

    /// Whether both streams have been closed.
    pub(crate) fn is_complete(&self) -> bool {
        self.out.closed && self.incoming.closed
    }

    /// Whether there is an answer from the other side, and this side's number is known to it.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    #[cfg(test)]
    pub(crate) fn ours(&self) -> u64 {
        self.ours
    }

    /// The other side's number; 0 if it is not known yet.
    pub(crate) fn theirs(&self) -> u64 {
        self.theirs
    }

    /// Whether there is something to [`pop`](Self::pop).
    pub(crate) fn has_something(&self) -> bool {
        !self.incoming.queue.is_empty() || !self.incoming.joined.is_empty()
    }

    /// Whether [`poll_output`](Self::poll_output) has something.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        self.next_timer().is_some_and(|at| now >= at) && !self.is_forgettable(now) || self.sendable().is_some()
    }

    /// Whether nobody needs this link any more.
    pub(crate) fn is_forgettable(&self, now: Duration) -> bool {
        match self.over {
            Some(_) => !self.farewell,
            None => self.is_complete() && now >= self.heard_at + self.settings.patience,
        }
    }

    // The network's side.

    /// Takes a packet that was addressed to this link.
    pub(crate) fn on_packet(&mut self, packet: Packet, now: Duration) {
        let Packet { head, payload } = packet;
        if self.over.is_some() || head.kind == Kind::Open && head.src != self.theirs {
            return;
        }
        if head.kind == Kind::Open {
            // Again. It was perhaps the answer that was lost.
            self.incoming.answer_at = Some(now);
            return;
        }
        if self.theirs == 0 && self.request.is_some() {
            self.theirs = head.src;
        }
        if head.src != self.theirs {
            return;
        }
        if head.kind == Kind::Reset {
            if !self.is_complete() {
                self.end(Over::There(Reason::decode(&payload)));
            }
            return;
        }
        if self.request.take().is_some() {
            // So that the other side knows that this one knows.
            self.incoming.answer_at = Some(now);
            self.out.ping_now = false;
        }
        self.confirmed = true;
        self.heard_at = now;
        self.unheard = head.deaf;
        self.acknowledged(&head, now);
        if self.over.is_none() {
            self.received(&head, payload, now);
        }
    }

    /// Whether nothing was heard for long, though there are pings to be answered.
    fn is_deaf(&self, now: Duration) -> bool {
        self.is_alive() && now >= self.heard_at + self.settings.patience / 2
    }

    /// Whether each side has heard the other not long ago.
    pub(crate) fn is_well(&self, now: Duration) -> bool {
        self.is_alive() && self.confirmed && !self.unheard && !self.is_deaf(now)
    }

    /// Whether there is reason to think that one of the ways between the two sides is no longer one. Says so again and again as long as there is.
    pub(crate) fn complaint(&mut self, now: Duration) -> bool {
        let has_reason = self.is_deaf(now) || self.is_alive() && self.unheard;
        let complains = has_reason && self.complained_at.is_none_or(|at| now >= at + PING_AFTER);
        if complains {
            self.complained_at = Some(now);
        }
        complains
    }

    /// There may be a way to the other side again.
    pub(crate) fn on_reconnect(&mut self) {
        if self.is_alive() {
            self.out.asked = None;
            self.out.ping_now = true;
        }
    }

    /// What the head says of the stream to the other side.
    fn acknowledged(&mut self, head: &Head, now: Duration) {
        let out = &mut self.out;
        if head.ack > out.written {
            self.reset(Reason::Nonsense);
            return;
        }
        if head.ack > out.acked || head.limit > out.limit {
            out.moved_at = now;
        }
        out.limit = out.limit.max(head.limit);
        out.acked = out.acked.max(head.ack);
        while out.segments.front().is_some_and(|(start, segment)| start + segment.len() as u64 <= out.acked) {
            out.segments.pop_front();
            out.unsent = out.unsent.saturating_sub(1);
        }
        if head.closed {
            out.closed = true;
            out.segments = VecDeque::new();
            out.unsent = 0;
        }
        if head.pong == out.ping && out.asked.take().is_some_and(|end| out.acked < end) {
            out.unsent = 0;
        }
    }

    /// What it brings of the stream from there.
    fn received(&mut self, head: &Head, payload: ZBytes, now: Duration) {
        let (len, window) = (payload.len() as u64, self.settings.window);
        let incoming = &mut self.incoming;
        if len > 0 && incoming.closed {
            incoming.answer_at = Some(now);
        } else if len > 0 && head.offset == incoming.received && incoming.received + len <= incoming.consumed + window {
            incoming.received += len;
            incoming.push(payload);
            self.soon(now);
        }
        if head.ping != 0 {
            self.incoming.pong = head.ping;
            self.incoming.answer_at = Some(now);
        }
    }

    /// The other side is to be told: at once if it may be waiting for it.
    fn soon(&mut self, now: Duration) {
        let (quarter, incoming) = (self.settings.window / 4, &mut self.incoming);
        let much = incoming.received - incoming.told_ack >= quarter
            || incoming.consumed + self.settings.window - incoming.told_limit >= quarter;
        let at = if much { now } else { now + ACK_AFTER };
        incoming.answer_at = Some(incoming.answer_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn end(&mut self, over: Over) {
        self.over = Some(over);
        self.out.segments.clear();
        self.out.unsent = 0;
    }

    /// The next packet that is to go now, and whether it has to keep its place behind those before it. To be called until there is none.
    pub(crate) fn poll_output(&mut self, now: Duration) -> Option<(Packet, bool)> {
        if std::mem::take(&mut self.farewell) {
            let Some(Over::Here(reason)) = self.over else { return None };
            let mut head = self.head(Kind::Reset, now);
            head.offset = 0;
            return (self.theirs != 0).then(|| (Packet { head, payload: ZBytes::from(vec![reason as u8]) }, true));
        }
        if self.over.is_some() {
            return None;
        }
        if !self.is_complete() && now >= self.heard_at + self.settings.patience {
            self.end(Over::Here(Reason::Lost));
            self.farewell = true;
            return self.poll_output(now);
        }
        if let Some(request) = &self.request {
            if !std::mem::take(&mut self.out.ping_now) && now < self.out.moved_at + PING_AFTER {
                return None;
            }
            let payload = request.clone();
            self.out.moved_at = now;
            return Some((Packet { head: self.head(Kind::Open, now), payload }, true));
        }
        if let Some((offset, payload)) = self.sendable() {
            self.out.unsent += 1;
            let mut head = self.head(Kind::Segment, now);
            head.offset = offset;
            return Some((Packet { head, payload }, true));
        }
        if self.confirmed && self.ping_at().is_some_and(|at| now >= at) {
            let out = &mut self.out;
            if out.asked.is_none() {
                // Not 0, which is no ping.
                out.ping = out.ping.wrapping_add(1).max(1);
                out.asked = Some(out.segments.get(out.unsent).map_or(out.written, |(start, _)| *start));
            }
            (out.ping_now, out.moved_at) = (false, now);
            let mut head = self.head(Kind::Segment, now);
            head.ping = self.out.ping;
            return Some((Packet { head, payload: ZBytes::new() }, true));
        }
        if self.incoming.answer_at.is_some_and(|at| now >= at) {
            return Some((Packet { head: self.head(Kind::Segment, now), payload: ZBytes::new() }, false));
        }
        None
    }

    /// When [`poll_output`](Self::poll_output) may have something though nothing has happened.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        if self.over.is_some() {
            return self.farewell.then_some(Duration::ZERO);
        }
        if self.is_complete() {
            return [self.incoming.answer_at, Some(self.heard_at + self.settings.patience)].into_iter().flatten().min();
        }
        let opening = self.request.is_some().then_some(self.out.moved_at + PING_AFTER);
        let ping = self.ping_at().filter(|_| self.confirmed);
        let end = self.heard_at + self.settings.patience;
        [opening, ping, self.incoming.answer_at, Some(end)].into_iter().flatten().min()
    }

    /// The next segment, if it may be sent.
    fn sendable(&self) -> Option<(u64, ZBytes)> {
        let (start, segment) = self.out.segments.get(self.out.unsent)?;
        let sendable = self.confirmed && start + segment.len() as u64 <= self.out.limit;
        sendable.then(|| (*start, segment.clone()))
    }

    /// When a ping is due.
    fn ping_at(&self) -> Option<Duration> {
        if self.is_complete() {
            return None;
        }
        let out = &self.out;
        Some(match (out.ping_now, out.segments.is_empty() && out.asked.is_none()) {
            (true, _) => Duration::ZERO,
            (_, false) => out.moved_at + PING_AFTER,
            // A sign of life. It is enough if one side asks.
            (_, true) => self.heard_at.max(out.moved_at) + self.settings.patience / 4,
        })
    }

    /// A head with all that is to be said. What it says counts as told.
    fn head(&mut self, kind: Kind, now: Duration) -> Head {
        let deaf = self.is_deaf(now);
        let incoming = &mut self.incoming;
        incoming.answer_at = None;
        incoming.told_ack = incoming.received;
        incoming.told_limit = incoming.consumed + self.settings.window;
        Head {
            kind,
            closed: incoming.closed,
            deaf,
            from: self.from,
            src: self.ours,
            dst: self.theirs,
            offset: 0,
            ack: incoming.told_ack,
            limit: incoming.told_limit,
            ping: 0,
            pong: incoming.pong,
        }
    }
}
