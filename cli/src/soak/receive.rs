//! Receiving, in every way that there is, and the judgement of every message.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::{Receiver, RecvError, RecvIntoError};
use rustix::event::{PollFd, PollFlags, Timespec, epoll};

use crate::soak::board::{Board, Lane};
use crate::soak::clock::{nanos, now};
use crate::soak::patience::{LOST, PER_MIB, SLOW, Start};
use crate::soak::plan::{Pace, Plan, Shape, Who};
use crate::soak::process::OwnDelay;
use crate::soak::random::Random;
use crate::soak::script::{Fate, Script, Tracker};
use crate::soak::send::{check_timeout, rest};

/// The receiving role of a direction.
pub(crate) struct Rx<'a> {
    board: &'a Board,
    pub(crate) lane: &'a Lane,
    script: Script,
    tracker: Tracker,
    pace: Pace,
    only: Option<u64>,
    clocked: bool,
    /// Others have copies of the end: what a time-out leaves behind of a long message would be this copy's alone.
    shares: bool,
    unannounced: bool,
    /// Where single wake-ups are timed.
    delay: Option<OwnDelay>,
    random: Random,
    message: Vec<u8>,
    epoll: Option<OwnedFd>,
}

pub(crate) enum Got {
    Message,
    EndOfFile,
    /// Nothing until the time was over.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Plain,
    Max,
    Into,
    IntoTooShort,
    Guard,
    Iter,
    Poll,
    /// `poll(2)` on the descriptor.
    Descriptor,
    Epoll,
    Try,
    TryInto,
    Timeout,
    Deadline,
    IntoTimeout,
    GuardTimeout,
    TryIter,
    PollTimeout,
}

const WAYS: [How; 17] = [
    How::Plain,
    How::Max,
    How::Into,
    How::IntoTooShort,
    How::Guard,
    How::Iter,
    How::Poll,
    How::Descriptor,
    How::Epoll,
    How::Try,
    How::TryInto,
    How::Timeout,
    How::Deadline,
    How::IntoTimeout,
    How::GuardTimeout,
    How::TryIter,
    How::PollTimeout,
];
/// So many of them return only with a message, or never.
const STEADFAST: usize = 9;

/// How long to watch a descriptor before looking all the same: what has been there meanwhile is found too late then, and noticed.
const WATCH: Duration = Duration::from_secs(3);

impl<'a> Rx<'a> {
    pub(crate) fn new(plan: &Plan, board: &'a Board, lane: usize) -> Rx<'a> {
        let habit = &plan.lanes[lane].receive;
        Rx {
            board,
            lane: &board.lanes[lane],
            script: plan.script(lane),
            tracker: board.lanes[lane].tracker(),
            pace: habit.pace,
            only: habit.only,
            clocked: plan.clocked,
            shares: plan.is_copied(Who { lane, sends: false }),
            unannounced: plan.may_go_unannounced(lane),
            delay: times_wakes(plan, lane).then(OwnDelay::new),
            random: Random::new(plan.key(20 + lane as u64)),
            message: Vec::new(),
            epoll: None,
        }
    }

    /// Receives the next message and checks it.
    pub(crate) fn one(&mut self, receiver: &mut Receiver, until: u64) -> Result<Got, String> {
        let start = self.clocked.then(|| Start::now(self.board));
        let delay = self.delay.as_ref().and_then(OwnDelay::get);
        let mut delay_at_call = delay;
        loop {
            let ways = if self.shares { &WAYS[..STEADFAST] } else { &WAYS };
            let how = match self.only {
                Some(only) => ways[only as usize % ways.len()],
                None => self.random.pick(ways),
            };
            let called_at = now();
            match self.fetch(receiver, how) {
                Ok(()) => {
                    if let (Some(start), Some(delay), Some(delay_at_call)) = (start, delay, delay_at_call) {
                        self.time_wake(start, delay, called_at, delay_at_call);
                    }
                    self.judge(how)?;
                    if let Some(start) = start {
                        self.judge_time(start, how)?;
                    }
                    return Ok(Got::Message);
                }
                Err(RecvError::Disconnected) => return Ok(Got::EndOfFile),
                Err(RecvError::Cut) => self.judge_cut(how)?,
                Err(RecvError::Empty | RecvError::TimedOut) => {
                    self.lane.rx.timeouts.fetch_add(1, Ordering::Relaxed);
                    if now() >= until {
                        return Ok(Got::Nothing);
                    }
                    match self.random.below(4) {
                        0 => thread::sleep(self.random.micros(1..=500)),
                        1 => thread::yield_now(),
                        _ => {}
                    }
                }
                Err(e) => return Err(format!("receiving by {how:?}, expecting {:?}: {e:?}", self.tracker.next())),
            }
            delay_at_call = self.delay.as_ref().and_then(OwnDelay::get);
        }
    }

    fn judge(&mut self, how: How) -> Result<(), String> {
        let lane = self.lane;
        let judged = self.tracker.accept(&self.script, |number| lane.fate(number), &self.message);
        judged.map_err(|complaint| format!("received by {how:?}: {complaint}"))?;
        lane.set_tracker(&self.tracker);
        lane.rx.messages.fetch_add(1, Ordering::Relaxed);
        lane.rx.bytes.fetch_add(self.message.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn judge_cut(&mut self, how: How) -> Result<(), String> {
        let lane = self.lane;
        let judged = self.tracker.cut(&self.script, |number| lane.fate(number));
        judged.map_err(|complaint| format!("receiving by {how:?}: {complaint}"))?;
        lane.rx.cuts.fetch_add(1, Ordering::Relaxed);
        let cut = |&next: &u64| lane.fate(next - 1) == Some(Fate::Doubtful);
        if !self.tracker.next().iter().any(cut) {
            // Then its sender must turn out to have been killed there, and nobody else to have gone on.
            let number = self.tracker.next().last().copied().unwrap_or(0);
            if lane.rx.last_cut.swap(number, Ordering::SeqCst) != 0 {
                return Err(format!("receiving by {how:?}: a second message was cut, {}", number - 1));
            }
        }
        lane.set_tracker(&self.tracker);
        Ok(())
    }

    /// A message that was begun while this side waited should have come soon: if it came with the waiting side's own look at the ring
    /// (once a second), a wake-up was lost.
    fn judge_time(&self, start: Start, how: How) -> Result<(), String> {
        let begun_at = self.lane.tx.begun_at.load(Ordering::Relaxed);
        let end = now();
        if self.unannounced {
            return Ok(());
        }
        // Passing through the ring piece by piece takes its time.
        let passage = nanos(PER_MIB) * (self.message.len() >> 10) as u64 / 1024;
        let took = end.saturating_sub(begun_at.max(start.at)).saturating_sub(passage);
        if took > self.lane.rx.longest_wait.load(Ordering::Relaxed) {
            let own = took.min(start.own_time(self.board, end));
            self.lane.rx.longest_wait.fetch_max(own, Ordering::Relaxed);
            if start.is_late(self.board, took) {
                let ms = took / 1_000_000;
                return Err(format!(
                    "a lost wake-up: the message received by {how:?} took {ms} ms from when it was begun, with this side waiting for it \
                     and the machine not busy; the next is {:?}",
                    self.tracker.next()
                ));
            }
        }
        Ok(())
    }

    /// How long it took from the return of the send to the return of the receive, apart from the time to get a processor, and whether that
    /// is when a waiting side looks by itself. Single wake-ups may be slow for reasons of the machine; the referee judges how many look lost.
    fn time_wake(&self, start: Start, delay: u64, called_at: u64, delay_at_call: u64) {
        let end = now();
        let (rx, tx) = (&self.lane.rx, &self.lane.tx);
        if tx.begun_at.load(Ordering::Relaxed) < start.at {
            return;
        }
        rx.wakes.fetch_add(1, Ordering::Relaxed);
        // Otherwise the sender has gone on already, or has not even returned.
        let is_last = self.tracker.next() == [tx.resolved.load(Ordering::Acquire).wrapping_sub(1)];
        let sent_at = tx.sent_at.load(Ordering::Relaxed);
        if !is_last || sent_at < start.at {
            return;
        }
        if let Some(slept) = end.saturating_sub(sent_at).checked_sub(nanos(SLOW)) {
            let delay_now = self.delay.as_ref().and_then(OwnDelay::get).unwrap_or(u64::MAX);
            if slept > delay_now - delay {
                rx.slow_wakes.fetch_add(1, Ordering::Relaxed);
                let waited = (end - called_at).saturating_sub(delay_now - delay_at_call);
                if LOST.contains(&Duration::from_nanos(waited)) {
                    rx.lost_wakes.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Puts the next message into `self.message`.
    fn fetch(&mut self, receiver: &mut Receiver, how: How) -> Result<(), RecvError> {
        let timeout = match self.random.below(8) {
            0 => Duration::ZERO,
            1 => self.random.micros(0..=20_000),
            _ => self.random.micros(0..=3_000),
        };
        let start = Start::now(self.board);
        let timed = match how {
            How::Plain => receiver.recv_bytes().map(|bytes| self.message = bytes),
            How::Max => receiver.recv_bytes_max(1 << 30).map(|bytes| self.message = bytes),
            How::Try => return receiver.try_recv_bytes().map(|bytes| self.message = bytes),
            How::Timeout => receiver.recv_bytes_timeout(timeout).map(|bytes| self.message = bytes),
            How::Deadline => receiver.recv_bytes_deadline(Instant::now() + timeout).map(|bytes| self.message = bytes),
            How::Into | How::IntoTooShort | How::TryInto | How::IntoTimeout => self.fetch_into(receiver, how, timeout),
            How::Guard | How::GuardTimeout => {
                let guard = match how {
                    How::Guard => receiver.recv_guard(),
                    _ => receiver.recv_guard_timeout(timeout),
                };
                guard.map(|guard| {
                    self.message.resize(guard.len(), 0);
                    let half = guard.len() / 2;
                    guard.copy_to(0, &mut self.message[..half]);
                    guard.copy_to(half, &mut self.message[half..]);
                })
            }
            How::Iter | How::TryIter => {
                let next = match how {
                    How::Iter => receiver.iter().next(),
                    _ => receiver.try_iter().next(),
                };
                match next {
                    Some(result) => return result.map(|bytes| self.message = bytes),
                    // It does not say why.
                    None => return receiver.try_recv_bytes().map(|bytes| self.message = bytes),
                }
            }
            How::Poll => {
                receiver.poll(None)?;
                return receiver.recv_bytes().map(|bytes| self.message = bytes);
            }
            How::PollTimeout => match receiver.poll(Some(timeout)) {
                Ok(true) => return receiver.try_recv_bytes().map(|bytes| self.message = bytes),
                Ok(false) => Err(RecvError::TimedOut),
                Err(e) => return Err(e),
            },
            How::Descriptor | How::Epoll => {
                let is_there = match how {
                    How::Descriptor => readable(receiver.as_fd(), WATCH),
                    _ => self.epoll(receiver.as_fd()),
                };
                if is_there && self.shares {
                    return receiver.recv_bytes().map(|bytes| self.message = bytes);
                }
                return receiver.try_recv_bytes().map(|bytes| self.message = bytes);
            }
        };
        if let Err(RecvError::TimedOut) = timed {
            check_timeout(self.board, start, timeout, &format!("receiving by {how:?}"));
        }
        timed
    }

    fn fetch_into(&mut self, receiver: &mut Receiver, how: How, timeout: Duration) -> Result<(), RecvError> {
        // As long as the next message should be, unless it is to be too short, or the next is another.
        let len = self.script.len(self.tracker.next()[0]);
        let room = if let How::IntoTooShort = how { self.random.below(len as u64 + 1) as usize } else { len };
        let offset = self.random.below(20) as usize;
        self.message.clear();
        self.message.resize(offset + room, 0xee);
        let result = match how {
            How::TryInto => receiver.try_recv_bytes_into(&mut self.message, offset),
            How::IntoTimeout => receiver.recv_bytes_into_timeout(&mut self.message, offset, timeout),
            _ => receiver.recv_bytes_into(&mut self.message, offset),
        };
        match result {
            Ok(len) => {
                self.message.truncate(offset + len);
                self.message.drain(..offset);
                Ok(())
            }
            Err(RecvIntoError::TooShort(e)) => {
                self.message = e.message;
                Ok(())
            }
            Err(RecvIntoError::Recv(e)) => Err(e),
            Err(e) => panic!("the offset is within the buffer: {e}"),
        }
    }

    /// Whether the descriptor becomes readable, according to an epoll instance that is kept.
    fn epoll(&mut self, fd: BorrowedFd<'_>) -> bool {
        let instance = self.epoll.get_or_insert_with(|| {
            let instance = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll_create1");
            epoll::add(&instance, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).expect("epoll_ctl");
            instance
        });
        let end = Instant::now() + WATCH;
        loop {
            let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
            match epoll::wait(&*instance, &mut events, Some(&until(end))) {
                Ok(n) => return n > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => panic!("epoll_wait: {e}"),
            }
        }
    }

    /// End of file stays so, whoever asks.
    pub(crate) fn confirm_end(&mut self, receiver: &mut Receiver) -> Result<(), String> {
        let again = [
            receiver.recv_bytes().map(drop),
            receiver.try_recv_bytes().map(drop),
            receiver.recv_bytes_timeout(Duration::from_millis(1)).map(drop),
            receiver.recv_guard().map(drop),
        ];
        for (i, result) in again.into_iter().enumerate() {
            if !matches!(result, Err(RecvError::Disconnected)) {
                return Err(format!("call {i} after end of file: {result:?}"));
            }
        }
        if receiver.iter().next().is_some() {
            return Err("an item after end of file".to_owned());
        }
        if !matches!(receiver.poll(Some(Duration::ZERO)), Ok(true)) || !readable(receiver.as_fd(), Duration::ZERO) {
            return Err("end of file does not count as something to receive".to_owned());
        }
        Ok(())
    }

    /// After a fork, in the copy: what belongs to the other process is made anew.
    pub(crate) fn become_copy(&mut self, random: Random) {
        self.random = random;
        self.epoll = None;
        self.delay = self.delay.as_ref().map(|_| OwnDelay::new());
    }

    /// Messages of this turn.
    pub(crate) fn turn(&mut self) -> u64 {
        self.pace.turn(&mut self.random)
    }

    pub(crate) fn rest(&mut self) {
        rest(self.board, self.pace, &mut self.random);
    }

    /// Takes note of what others with copies of the end have received.
    pub(crate) fn refresh(&mut self, after_a_kill: bool) {
        self.tracker = self.lane.tracker();
        if after_a_kill {
            let lane = self.lane;
            self.tracker.lose_one(|number| lane.fate(number));
            lane.set_tracker(&self.tracker);
        }
    }
}

/// Whether single wake-ups are timed: where a message mostly finds its receiver waiting, and nobody is stopped.
fn times_wakes(plan: &Plan, lane: usize) -> bool {
    let is_awaited = plan.shape == Shape::PingPong || plan.lanes[lane].send.pace != Pace::FlatOut;
    plan.clocked && is_awaited && plan.stops.is_empty()
}

/// `poll(2)`: whether a descriptor becomes readable, or is hung up.
pub(crate) fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    loop {
        match rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&until(end))) {
            Ok(n) => return n > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}

fn until(end: Instant) -> Timespec {
    let left = end.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
}
