//! What takes too long, told apart from a machine that is busy.

use std::ops::Range;
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
/// What a wake-up takes at most, apart from the time to get a processor.
pub(crate) const SLOW: Duration = Duration::from_millis(2);
/// After how long a side that sleeps on the futex looks by itself: when a wait ends in which the wake-up was lost there, unless it spins for long
/// before, has a deadline before that, or is ended by a signal. The machine can make a wake-up as slow (above all if its processors are lent, and
/// taken away from it for some ms), but has no reason to do so at just this time.
pub(crate) const LOST: Range<Duration> = Duration::from_micros(4_500)..Duration::from_micros(5_200);
/// So many that look lost in one direction of a round, or in the whole run, are no accident...
pub(crate) const LOST_IN_A_ROUND: u64 = 5;
pub(crate) const LOST_IN_ALL: u64 = 10;
/// ...if they are more than one of so many.
pub(crate) const LOST_OF: u64 = 20_000;
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

/// Whether so many wake-ups that look lost are no accident, where `enough` of them would be none.
pub(crate) fn judge_wakes(lost: u64, wakes: u64, enough: u64) -> Result<(), String> {
    if lost >= enough && lost.saturating_mul(LOST_OF) > wakes {
        return Err(format!(
            "wake-ups are lost: {lost} of {wakes} waits ended only when the waiting side looked by itself, apart from the time to get a processor"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::judge_wakes;

    #[test]
    fn wake_ups_are_lost_if_they_are_many_and_not_too_rare() {
        assert!(judge_wakes(10, 199_999, 10).is_err());
        assert!(judge_wakes(9, 9, 10).is_ok());
        assert!(judge_wakes(10, 200_000, 10).is_ok());
    }
}
