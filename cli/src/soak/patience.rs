//! What takes too long, told apart from a machine that is busy.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::soak::board::Board;
use crate::soak::clock::{nanos, now};

/// How long a message that is under way may keep a waiting receiver waiting, and how late a time-out may come. A lost wake-up shows as a
/// wait of nearly a second, after which a parked side looks by itself.
pub(crate) const LATE: Duration = Duration::from_millis(500);
/// How long passing through the ring, piece by piece, may take for each MiB of a message.
pub(crate) const PER_MIB: Duration = Duration::from_millis(300);
/// What a wake-up takes at most, apart from the time to get a processor: a wake-up that was lost on the futex shows as a wait of some
/// 4 ms, after which a sleeping side looks by itself.
pub(crate) const SLOW: Duration = Duration::from_millis(2);
/// So many slow ones in one direction of a round, or in the whole run, are no accident...
pub(crate) const SLOW_IN_A_ROUND: u64 = 5;
pub(crate) const SLOW_IN_ALL: u64 = 20;
/// ...if they are more than one of so many. A loaded machine was seen to have one in half a million.
pub(crate) const SLOW_OF: u64 = 20_000;
/// How long the other side may take to notice a SIGKILL.
pub(crate) const UNNOTICED: Duration = Duration::from_secs(2);
/// How long nobody may get on at all.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// How long a round may last beyond its time.
pub(crate) const OVERTIME: Duration = Duration::from_secs(20);

/// The start of something that should not take long.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    pub(crate) at: u64,
    stolen: u64,
}

impl Start {
    pub(crate) fn now(board: &Board) -> Start {
        Start { at: now(), stolen: board.stolen.load(Ordering::Relaxed) }
    }

    /// Nanoseconds that passed until `end`, without those for which the machine kept somebody from running.
    pub(crate) fn own_time(&self, board: &Board, end: u64) -> u64 {
        let stolen = board.stolen.load(Ordering::Relaxed) - self.stolen;
        end.saturating_sub(self.at).saturating_sub(stolen)
    }

    /// Whether so many nanoseconds beyond what is in order are too many. `extra` is what passed up to now.
    pub(crate) fn is_late(&self, board: &Board, extra: u64) -> bool {
        let late = || extra.saturating_sub(board.stolen.load(Ordering::Relaxed) - self.stolen) > nanos(LATE);
        if !late() {
            return false;
        }
        // The referee notices what was stolen some time afterwards.
        thread::sleep(Duration::from_millis(300));
        late()
    }
}
