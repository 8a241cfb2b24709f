//! Sending, in every way that there is.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::{SendError, Sender};

use crate::soak::board::{Board, Lane};
use crate::soak::clock::{nanos, now};
use crate::soak::patience::Start;
use crate::soak::plan::{Pace, Plan};
use crate::soak::random::Random;
use crate::soak::receive::readable;
use crate::soak::script::{Fate, Script};

/// The sending role of a direction.
pub(crate) struct Tx<'a> {
    board: &'a Board,
    pub(crate) lane: &'a Lane,
    script: Script,
    pub(crate) pace: Pace,
    only: Option<u64>,
    clocked: bool,
    pub(crate) random: Random,
    message: Vec<u8>,
}

/// How sending ended.
pub(crate) enum Over {
    /// With a broken pipe.
    Broken,
    Fault(String),
}

#[derive(Clone, Copy, Debug)]
enum How {
    Plain,
    Try,
    Timeout,
    Deadline,
    Vectored,
    TryVectored,
    VectoredTimeout,
    Reserve,
    TryReserve,
    ReserveTimeout,
    /// Reserves, changes its mind, and reserves again.
    ReserveTwice,
}

const WAYS: [How; 11] = [
    How::Plain,
    How::Try,
    How::Timeout,
    How::Deadline,
    How::Vectored,
    How::TryVectored,
    How::VectoredTimeout,
    How::Reserve,
    How::TryReserve,
    How::ReserveTimeout,
    How::ReserveTwice,
];

impl How {
    fn reserves(self) -> bool {
        matches!(self, How::Reserve | How::TryReserve | How::ReserveTimeout | How::ReserveTwice)
    }

    fn has_timeout(self) -> bool {
        matches!(self, How::Timeout | How::Deadline | How::VectoredTimeout | How::ReserveTimeout)
    }
}

impl<'a> Tx<'a> {
    pub(crate) fn new(plan: &Plan, board: &'a Board, lane: usize) -> Tx<'a> {
        let habit = &plan.lanes[lane].send;
        Tx {
            board,
            lane: &board.lanes[lane],
            script: plan.script(lane),
            pace: habit.pace,
            only: habit.only,
            clocked: plan.clocked,
            random: Random::new(plan.key(10 + lane as u64)),
            message: Vec::new(),
        }
    }

    /// Sends the next message; those that time out on the way are given up and not to arrive.
    pub(crate) fn one(&mut self, sender: &mut Sender) -> Result<(), Over> {
        loop {
            let number = self.lane.tx.resolved.load(Ordering::Relaxed);
            self.script.write(number, &mut self.message);
            if self.clocked {
                self.lane.tx.begun_at.store(now(), Ordering::Relaxed);
            }
            self.lane.tx.begun.store(number + 1, Ordering::Release);
            let mut how = match self.only {
                Some(only) => WAYS[only as usize % WAYS.len()],
                None => self.random.pick(&WAYS),
            };
            let too_long = how.reserves() && self.message.len() > sender.max_reserve();
            if too_long || how.has_timeout() && !self.lane.has_room(8) {
                how = How::Plain;
            }
            let result = match self.attempt(sender, how) {
                // More than a form that does not wait can ever take.
                Err(SendError::TooLong { .. }) if matches!(how, How::Try | How::TryVectored) => {
                    self.attempt(sender, How::Plain)
                }
                result => result,
            };
            match result {
                Ok(()) => {
                    if self.clocked {
                        self.lane.tx.sent_at.store(now(), Ordering::Relaxed);
                    }
                    self.lane.tx.resolved.store(number + 1, Ordering::Release);
                    return Ok(());
                }
                Err(SendError::Disconnected) => return Err(Over::Broken),
                // The same message again: should the first have gone out after all, it comes twice.
                Err(SendError::Full) => {
                    self.lane.tx.retries.fetch_add(1, Ordering::Relaxed);
                    match self.random.below(3) {
                        0 => thread::sleep(self.random.micros(10..=1000)),
                        1 => thread::yield_now(),
                        _ => {}
                    }
                }
                Err(SendError::TimedOut) => {
                    self.lane.tx.timeouts.fetch_add(1, Ordering::Relaxed);
                    self.lane.resolve(number, Fate::Refused);
                }
                Err(e) => return Err(Over::Fault(format!("sending message {number} by {how:?}: {e:?}"))),
            }
        }
    }

    fn attempt(&mut self, sender: &mut Sender, how: How) -> Result<(), SendError> {
        let message = &self.message[..];
        let timeout = match self.random.below(8) {
            0 => Duration::ZERO,
            1 => self.random.micros(0..=20_000),
            _ => self.random.micros(0..=2_000),
        };
        let start = how.has_timeout().then(|| Start::now(self.board));
        let cuts = [self.random.below(message.len() as u64 + 1) as usize, message.len() / 2];
        let (first, second) = (cuts[0].min(cuts[1]), cuts[0].max(cuts[1]));
        let parts = [&message[..first], &[], &message[first..second], &message[second..]].map(IoSlice::new);
        let result = match how {
            How::Plain => sender.send_bytes(message),
            How::Try => sender.try_send_bytes(message),
            How::Timeout => sender.send_bytes_timeout(message, timeout),
            How::Deadline => sender.send_bytes_deadline(message, Instant::now() + timeout),
            How::Vectored => sender.send_vectored(&parts),
            How::TryVectored => sender.try_send_vectored(&parts),
            How::VectoredTimeout => sender.send_vectored_timeout(&parts, timeout),
            How::Reserve | How::TryReserve | How::ReserveTimeout | How::ReserveTwice => {
                let more = self.random.below((sender.max_reserve() - message.len()).min(200) as u64 + 1) as usize;
                let len = message.len() + more;
                if let How::ReserveTwice = how {
                    sender.reserve(len)?.write(&message[..first]);
                }
                let slot = match how {
                    How::TryReserve => sender.try_reserve(len),
                    How::ReserveTimeout => sender.reserve_timeout(len, timeout),
                    _ => sender.reserve(len),
                };
                slot.and_then(|mut slot| {
                    slot.write(&message[..second]);
                    slot.write(&message[second..]);
                    slot.commit()
                })
            }
        };
        if let (Some(start), Err(SendError::TimedOut)) = (start, &result) {
            check_timeout(self.board, start, timeout, &format!("sending by {how:?}"));
        }
        result
    }

    /// A broken pipe stays one, and its descriptor says so.
    pub(crate) fn confirm_broken(&mut self, sender: &mut Sender) -> Result<(), String> {
        let again = [
            sender.send_bytes(b"no more"),
            sender.try_send_bytes(b""),
            sender.send_bytes_timeout(b"no more", Duration::from_millis(1)),
            sender.reserve(3).map(drop),
        ];
        for (i, result) in again.into_iter().enumerate() {
            if !matches!(result, Err(SendError::Disconnected)) {
                return Err(format!("call {i} after a broken pipe: {result:?}"));
            }
        }
        if !readable(sender.as_fd(), Duration::ZERO) {
            return Err("the descriptor does not tell of a broken pipe".to_owned());
        }
        Ok(())
    }

    /// Goes on where a killed process stopped whose turn it was.
    pub(crate) fn take_over(&mut self) {
        let resolved = self.lane.tx.resolved.load(Ordering::Acquire);
        if self.lane.tx.begun.load(Ordering::Acquire) > resolved {
            self.lane.resolve(resolved, Fate::Doubtful);
        }
    }
}

/// A time-out keeps its length.
pub(crate) fn check_timeout(board: &Board, start: Start, timeout: Duration, what: &str) {
    let passed = now() - start.at;
    if passed < nanos(timeout) {
        board.accuse(&format!("{what} timed out after {passed} ns instead of {timeout:?}"));
    }
    if start.is_late(board, passed - nanos(timeout)) {
        board.accuse(&format!(
            "{what} timed out after {passed} ns instead of {timeout:?}, on a machine that was not busy"
        ));
    }
}

/// Rests between two messages.
pub(crate) fn rest(board: &Board, pace: Pace, random: &mut Random) {
    if pace == Pace::FlatOut || random.percent(50) {
        return;
    }
    // What is left when the time is over may be a ring full of tiny messages.
    if board.hurry.load(Ordering::Relaxed) != 0 || now() >= board.ends_at.load(Ordering::Relaxed) {
        return;
    }
    let time = match pace {
        Pace::FlatOut => Duration::ZERO,
        Pace::Beats => {
            let end = now() + random.below(150_000);
            while now() < end {
                std::hint::spin_loop();
            }
            return;
        }
        Pace::Naps => random.micros(4_000..=6_000),
        Pace::Rests => random.micros(0..=10_000),
        Pace::Parks => random.micros(5_000..=25_000),
    };
    thread::sleep(time);
}
