//! How long a waiter spins before it sleeps.

use crate::layout::MAX_SPIN_MICROS;
use crate::sync::spin_loop;
use crate::sys;

/// Decides how long to spin, from how earlier waits went.
///
/// The budget follows the waits that spinning covers, and shrinks to nothing where it covers none. Waits that were short all the
/// same earn it another trial at full length; trials in vain (both sides on one processor, say) become rare. Whoever asks for the most
/// there is gets it each time.
pub(crate) struct Spin {
    /// The longest allowed, in nanoseconds.
    limit: u64,
    /// The longest for the next wait.
    budget: u64,
    /// Calls in a row that did not have to wait.
    run: u32,
    /// Short waits still to be slept through until the next trial, and how many there were to be.
    until_trial: u32,
    trial_gap: u32,
}

/// One spin under way.
pub(crate) struct Spinning {
    start: u64,
    /// Nanoseconds since it began, as of the last look at the clock.
    pub(crate) elapsed: u64,
    budget: u64,
    turns: u32,
}

/// Spin hints after a run of messages: a reader that polls at the writer's heels takes away the line that is being written. After a long run, which is a stream,
/// more of them: what the writer has gone on with meanwhile comes faster. After a short one, an answer may be waited for.
const BREATHER: u32 = 45;
const LONG_BREATHER: u32 = 200;
const LONG_RUN: u32 = 64;
/// Looks before the clock is read for the first time.
const FREE_TURNS: u32 = 64;
/// Looks before anything else is done, the clock included: a microsecond or two, in which another processor's answer comes, however far away it is.
const GLANCES: u32 = 1024;
/// Less than this is not worth reading the clock for.
const MIN_BUDGET: u64 = 2_000;
/// A limit that is always made use of.
const MOST: u64 = MAX_SPIN_MICROS as u64 * 1_000;
const MIN_TRIAL_GAP: u32 = 4;
const MAX_TRIAL_GAP: u32 = 1024;

/// Leaves the other side alone for a moment.
pub(crate) fn breathe() {
    (0..BREATHER).for_each(|_| spin_loop());
}

/// As [`breathe`], beside a stream.
pub(crate) fn breathe_deeply() {
    (0..LONG_BREATHER).for_each(|_| spin_loop());
}

impl Spin {
    pub(crate) fn new(limit_micros: u32) -> Spin {
        let limit = u64::from(limit_micros) * 1_000;
        Spin { limit, budget: limit, run: 0, until_trial: MIN_TRIAL_GAP, trial_gap: MIN_TRIAL_GAP }
    }

    /// A call succeeded without waiting. Returns how many have done so in a row.
    #[inline(always)]
    pub(crate) fn note_success(&mut self) -> u32 {
        self.run = self.run.wrapping_add(1);
        self.run
    }

    /// Whether spinning is not paying off at all at present.
    pub(crate) fn is_idle(&self) -> bool {
        self.budget == 0
    }

    /// Starts a spin, unless spinning has not been paying off.
    pub(crate) fn begin(&mut self) -> Option<Spinning> {
        let run = std::mem::take(&mut self.run);
        if self.budget == 0 {
            return None;
        }
        match run {
            0..2 => {}
            2..LONG_RUN => breathe(),
            LONG_RUN.. => breathe_deeply(),
        }
        Some(Spinning { start: 0, elapsed: 0, budget: self.budget, turns: 0 })
    }

    /// Looks some times in a row, where that is all that it may take: spinning pays, and this is not the end of a run.
    #[inline(always)]
    pub(crate) fn glance(&mut self, mut ready: impl FnMut(u32) -> bool) -> bool {
        if self.budget == 0 || self.run >= 2 {
            return false;
        }
        let there = (0..GLANCES).any(&mut ready);
        if there {
            self.run = 0;
        }
        there
    }

    /// What was waited for came during the spin.
    pub(crate) fn succeeded(&mut self, spinning: &Spinning) {
        if self.limit == MOST {
            return;
        }
        self.trial_gap = MIN_TRIAL_GAP;
        // Twice what it took, but down only step by step.
        self.budget = (2 * spinning.elapsed).clamp(self.budget - self.budget / 8, self.limit);
    }

    /// Spinning was in vain, and the wait took `nanos` more.
    pub(crate) fn slept(&mut self, nanos: u64) {
        if self.limit == MOST {
            return;
        }
        if nanos <= self.limit {
            self.until_trial -= 1;
            if self.until_trial == 0 {
                self.trial_gap = (2 * self.trial_gap).min(MAX_TRIAL_GAP);
                self.until_trial = self.trial_gap;
                self.budget = self.limit;
                return;
            }
        }
        self.budget = if self.budget < 2 * MIN_BUDGET { 0 } else { self.budget / 2 };
    }
}

impl Spinning {
    /// One turn; false once the budget is used up.
    #[inline(always)]
    pub(crate) fn goes_on(&mut self) -> bool {
        self.turns += 1;
        if self.turns <= FREE_TURNS {
            spin_loop();
            return true;
        }
        if self.turns % 8 != 0 {
            spin_loop();
            return true;
        }
        let now = sys::now();
        if self.start == 0 {
            self.start = now;
        }
        self.elapsed = now - self.start;
        self.elapsed < self.budget
    }
}
