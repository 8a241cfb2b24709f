//! A link, with the network and a clock: what the threads of a connection share.
//!
//! Three threads meet here, and the network's: one that pushes what a local program sends, one that takes what has arrived for it, and the *pump*, which sends what is due by itself
//! (acknowledgements, pings, what is sent again). Whoever has changed the link sends what there is to be sent, in turn, so that packets leave in the order in which the link made
//! them. Only the network's thread must not, since it would hold up all that arrives: it wakes the pump.
//!
//! Nobody is woken who does not wait, so that a packet costs one wake-up at most.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zenoh::bytes::ZBytes;
use zenoh::key_expr::KeyExpr;
use zenoh::qos::{CongestionControl, Priority};
use zenoh::{Session, Wait};

use crate::link::{Link, Over, Reason, Settings};
use crate::packet::{Head, MOST, Packet};

/// The longest sleep of a thread that waits for the network. It is woken for everything; this is how often it looks whether the local end is still there.
pub(crate) const LOOK: Duration = Duration::from_millis(250);

/// Nothing here panics halfway: what a lock guards is in order, whoever panicked while holding it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
}

/// Where a bridge listens on the network.
pub(crate) fn address(bridge: u128) -> String {
    format!("ringpipe/to/{bridge:x}")
}

/// The session in use, in the place of which another can come.
pub(crate) struct Access(Mutex<Session>);

impl Access {
    pub(crate) fn new(session: Session) -> Arc<Access> {
        Arc::new(Access(Mutex::new(session)))
    }

    pub(crate) fn session(&self) -> Session {
        lock(&self.0).clone()
    }

    /// Returns the one that was in use.
    pub(crate) fn replace(&self, session: Session) -> Session {
        std::mem::replace(&mut *lock(&self.0), session)
    }
}

/// Sends packets to one other bridge.
pub(crate) struct Post {
    access: Arc<Access>,
    address: KeyExpr<'static>,
}

impl Post {
    pub(crate) fn new(access: &Arc<Access>, bridge: u128) -> Post {
        let address = address(bridge).try_into().expect("a number makes a key");
        Post { access: Arc::clone(access), address }
    }

    /// Sends a packet; one that need not keep its place overtakes others. The network takes it, or loses it: the link cannot tell, and does not have to.
    pub(crate) fn send(&self, packet: Packet, in_order: bool) {
        self.send_or(CongestionControl::Block, packet, in_order);
    }

    /// As [`send`](Self::send); what is done if there is no room for it is said.
    fn send_or(&self, congestion: CongestionControl, packet: Packet, in_order: bool) {
        let attachment = packet.attachment();
        let session = self.access.session();
        let put = session.put(&self.address, packet.payload).attachment(attachment.as_slice());
        let put = put.congestion_control(congestion).express(true);
        let priority = if in_order { Priority::Data } else { Priority::RealTime };
        // It fails if the session is closed: that is a loss as any other.
        let _ = put.priority(priority).wait();
    }
}

struct State {
    link: Link,
    /// Who sleeps, to be woken.
    taker_waits: bool,
    pusher_waits: bool,
    /// When the pump wakes up by itself.
    pump_at: Option<Duration>,
}

pub(crate) struct Wire {
    state: Mutex<State>,
    arrived: Condvar,
    room: Condvar,
    due: Condvar,
    sending: Mutex<()>,
    post: Post,
    started: Instant,
    peer: u128,
}

/// Why nothing more can be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

impl Wire {
    pub(crate) fn call(
        settings: Settings,
        from: u128,
        ours: u64,
        request: ZBytes,
        post: Post,
        peer: u128,
    ) -> Arc<Wire> {
        Wire::new(Link::call(settings, from, ours, request, Duration::ZERO), post, peer)
    }

    pub(crate) fn answer(settings: Settings, from: u128, ours: u64, open: &Head, post: Post) -> Arc<Wire> {
        Wire::new(Link::answer(settings, from, ours, open, Duration::ZERO), post, open.from)
    }

    fn new(link: Link, post: Post, peer: u128) -> Arc<Wire> {
        let state = State { link, taker_waits: false, pusher_waits: false, pump_at: None };
        Arc::new(Wire {
            state: Mutex::new(state),
            arrived: Condvar::new(),
            room: Condvar::new(),
            due: Condvar::new(),
            sending: Mutex::new(()),
            post,
            started: Instant::now(),
            peer,
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn peer(&self) -> u128 {
        self.peer
    }

    /// Changes the link, and sends what there is to be sent then.
    fn change<T>(&self, change: impl FnOnce(&mut Link, Duration) -> T) -> T {
        let result = change(&mut lock(&self.state).link, self.now());
        self.transmit();
        result
    }

    /// Sends what is to be sent now, and sees to it that the pump wakes up for what is to be sent later.
    fn transmit(&self) {
        self.transmit_or(CongestionControl::Block);
    }

    fn transmit_or(&self, congestion: CongestionControl) {
        let _turn = lock(&self.sending);
        loop {
            let mut state = lock(&self.state);
            match state.link.poll_output(self.now()) {
                Some((packet, in_order)) => {
                    drop(state);
                    self.post.send_or(congestion, packet, in_order);
                }
                None => {
                    self.wake_if_ended(&mut state);
                    let next = state.link.next_timer();
                    if state.pump_at.is_some_and(|at| next.is_some_and(|next| next < at)) {
                        state.pump_at = None;
                        self.due.notify_one();
                    }
                    return;
                }
            }
        }
    }

    fn wake_if_ended(&self, state: &mut State) {
        if !state.link.is_alive() {
            self.wake_taker(state);
            self.wake_pusher(state);
            self.wake_pump(state);
        }
    }

    fn wake_taker(&self, state: &mut State) {
        if std::mem::take(&mut state.taker_waits) {
            self.arrived.notify_all();
        }
    }

    fn wake_pusher(&self, state: &mut State) {
        if std::mem::take(&mut state.pusher_waits) {
            self.room.notify_all();
        }
    }

    fn wake_pump(&self, state: &mut State) {
        if state.pump_at.take().is_some() {
            self.due.notify_one();
        }
    }

    /// Takes what has arrived for this link. For the network's thread: it sends nothing.
    pub(crate) fn on_packet(&self, packet: Packet) {
        let now = self.now();
        let mut state = lock(&self.state);
        let confirmed = state.link.is_confirmed();
        state.link.on_packet(packet, now);
        if state.link.has_something() || state.link.is_confirmed() != confirmed {
            self.wake_taker(&mut state);
        }
        if state.link.room() >= MOST as u64 || state.link.is_refused() {
            self.wake_pusher(&mut state);
        }
        self.wake_if_ended(&mut state);
        if state.link.is_due(now) {
            self.wake_pump(&mut state);
        }
    }

    /// Whether something goes through, both ways.
    pub(crate) fn is_well(&self) -> bool {
        lock(&self.state).link.is_well(self.now())
    }

    pub(crate) fn on_reconnect(&self) {
        let mut state = lock(&self.state);
        state.link.on_reconnect();
        self.wake_pump(&mut state);
    }

    /// Sends what is due by itself, until both streams are closed, or it is over. The pump's work.
    pub(crate) fn pump(&self) -> Pumped {
        loop {
            self.transmit();
            let mut state = lock(&self.state);
            let now = self.now();
            if state.link.is_forgettable(now) {
                return Pumped::Forgettable;
            }
            if state.link.complaint(now) {
                return Pumped::Complaint;
            }
            if state.link.is_due(now) {
                continue;
            }
            if state.link.is_complete() {
                return Pumped::Complete;
            }
            let next = state.link.next_timer().unwrap_or(now + LOOK);
            state.pump_at = Some(next);
            // With a millisecond more, or the sleep may end before its time.
            state = wait(&self.due, state, next.saturating_sub(now) + Duration::from_millis(1));
            state.pump_at = None;
        }
    }

    /// Answers what has arrived since the last time, for a link whose both streams are closed. Whether it can be forgotten.
    pub(crate) fn linger(&self) -> bool {
        let (is_due, is_forgettable) = {
            let (state, now) = (lock(&self.state), self.now());
            (state.link.is_due(now), state.link.is_forgettable(now))
        };
        if is_due {
            // One who does not read is not to keep the others waiting, and who reads asks again.
            self.transmit_or(CongestionControl::Drop);
        }
        is_forgettable
    }

    /// Waits until the other bridge is known to be there, or it is over. Whether it is there.
    pub(crate) fn await_confirmed(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.link.over().is_some() {
                return false;
            }
            if state.link.is_confirmed() {
                return true;
            }
            state.taker_waits = true;
            state = wait(&self.arrived, state, LOOK);
        }
    }

    /// Waits until a whole segment can be pushed, for so long at most. Whether it can.
    pub(crate) fn await_room(&self, timeout: Duration) -> Result<bool, Refused> {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.state);
        loop {
            if state.link.is_refused() {
                return Err(Refused);
            }
            if state.link.room() >= MOST as u64 {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            state.pusher_waits = true;
            state = wait(&self.room, state, left);
        }
    }

    /// Pushes a segment; waits for room.
    pub(crate) fn push(&self, segment: ZBytes) -> Result<(), Refused> {
        while !self.await_room(LOOK)? {}
        self.change(|link, now| match link.is_refused() {
            true => Err(Refused),
            false => {
                link.push(segment, now);
                Ok(())
            }
        })
    }

    pub(crate) fn is_refused(&self) -> bool {
        lock(&self.state).link.is_refused()
    }

    /// Takes what has arrived. Waits for it, for so long at most.
    pub(crate) fn take(&self, timeout: Duration) -> Taken {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.state);
        loop {
            if let Some(segment) = state.link.pop() {
                return Taken::Segment(segment);
            }
            if state.link.over().is_some() {
                return Taken::Over;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Taken::Nothing;
            }
            state.taker_waits = true;
            state = wait(&self.arrived, state, left);
        }
    }

    /// What was taken is where it belongs.
    pub(crate) fn consumed(&self, bytes: usize) {
        let mut state = lock(&self.state);
        let now = self.now();
        state.link.consumed(bytes as u64, now);
        let (due, next) = (state.link.is_due(now), state.link.next_timer());
        if due {
            drop(state);
            self.transmit();
        } else if state.pump_at.is_some_and(|at| next.is_some_and(|next| next < at)) {
            self.wake_pump(&mut state);
        }
    }

    pub(crate) fn close(&self) {
        self.change(|link, now| link.close(now));
    }

    pub(crate) fn reset(&self, reason: Reason) {
        self.change(|link, _| link.reset(reason));
    }

    /// Waits until both streams are closed, or it is over.
    pub(crate) fn await_end(&self) {
        let mut state = lock(&self.state);
        while state.link.is_alive() {
            state.pusher_waits = true;
            state = wait(&self.room, state, LOOK);
        }
    }

    /// Whether this link has answered that call.
    pub(crate) fn answers(&self, open: &Head) -> bool {
        self.peer == open.from && lock(&self.state).link.theirs() == open.src
    }

    pub(crate) fn over(&self) -> Option<Over> {
        lock(&self.state).link.over()
    }
}

/// How [`Wire::pump`] came to return.
pub(crate) enum Pumped {
    /// Nobody needs the link any more.
    Forgettable,
    /// Both streams are closed, but the other side may not have heard of it: to [`linger`](Wire::linger).
    Complete,
    /// The network seems to carry nothing ([`Link::complaint`]). To be pumped again.
    Complaint,
}

/// What [`Wire::take`] found.
pub(crate) enum Taken {
    Segment(ZBytes),
    Nothing,
    /// Nothing is left, and nothing will come.
    Over,
}
