//! When a call that waits gives up: durations at the edge of the crate, points in time inside it.

use std::time::{Duration, Instant};

use crate::sys;

/// A point on `CLOCK_MONOTONIC`, or none: what every blocking call runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// In nanoseconds.
    at: Option<u64>,
    /// Whether a call may give up earlier, because a signal's handler ran.
    interruptible: bool,
}

impl Deadline {
    /// Never passes.
    pub(crate) const NEVER: Deadline = Deadline::of(None);
    /// Of the `try_` forms, which do what they can without waiting.
    pub(crate) const NOW: Deadline = Deadline::of(Some(0));
    /// Has passed, as `NOW`, but for a call that was given a time.
    const PASSED: Deadline = Deadline::of(Some(1));

    const fn of(at: Option<u64>) -> Deadline {
        Deadline { at, interruptible: false }
    }

    /// A time-out too long for the clock counts as none.
    pub(crate) fn after(timeout: Duration) -> Deadline {
        if timeout.is_zero() {
            return Deadline::PASSED;
        }
        let nanos = u64::try_from(timeout.as_nanos()).ok();
        Deadline::of(nanos.and_then(|n| sys::now().checked_add(n)))
    }

    /// The same, and whoever waits also gives up when a signal's handler ran in its thread.
    pub(crate) fn interruptible(self) -> Deadline {
        Deadline { interruptible: !self.is_immediate(), ..self }
    }

    pub(crate) fn is_interruptible(self) -> bool {
        self.interruptible
    }

    pub(crate) fn instant(at: Instant) -> Deadline {
        Deadline::after(at.saturating_duration_since(Instant::now()))
    }

    /// Whether this is the deadline of a `try_` form.
    pub(crate) fn is_now(self) -> bool {
        self == Deadline::NOW
    }

    /// Whether there is no time to wait at all, which takes no look at the clock to tell.
    pub(crate) fn is_immediate(self) -> bool {
        self == Deadline::NOW || self == Deadline::PASSED
    }

    /// In nanoseconds; `None` never comes.
    pub(crate) fn at(self) -> Option<u64> {
        self.at
    }

    pub(crate) fn passed(self) -> bool {
        match self.at {
            None => false,
            Some(at) => self.is_immediate() || sys::now() >= at,
        }
    }

    pub(crate) fn min(self, other: u64) -> Deadline {
        Deadline { at: Some(self.at.map_or(other, |at| at.min(other))), ..self }
    }
}
