//! Time: the clock that all processes share, and durations as people write them.

use std::time::Duration;

/// Nanoseconds on the monotonic clock, which is the same for all processes.
pub(crate) fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

const HINT: &str = "write a number with s, m or h, such as 30s, 10m or 1h30m";

/// Parses `30s`, `10m`, `1h`, `1h30m`; a number alone is seconds.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| format!("not a time: {HINT}"))?;
        let after = &rest[digits..];
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let factor = match &after[..unit] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86400,
            other => return Err(format!("unknown unit `{other}`: {HINT}")),
        };
        seconds = number.checked_mul(factor).and_then(|n| n.checked_add(seconds)).ok_or("too long")?;
        rest = &after[unit..];
    }
    match seconds {
        0 => Err(format!("no time at all: {HINT}")),
        // Beyond that, clocks run over.
        n if n > 1_000_000_000 => Err("too long".to_owned()),
        n => Ok(Duration::from_secs(n)),
    }
}

/// Writes whole seconds as `1h02m03s`.
pub(crate) fn show(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, s) => format!("{h}h{m:02}m{s:02}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, show};

    #[test]
    fn times_are_read_with_their_units() {
        let read = |text| parse(text).unwrap().as_secs();
        assert_eq!([read("7"), read("30s"), read("10m"), read("1h"), read("1h30m")], [7, 30, 600, 3600, 5400]);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "0", "0s", "s", "-1", "1.5h", "10x", "1 h", "99999999999999999999", "99999999999h"] {
            assert!(parse(text).is_err(), "{text:?} was taken for a time");
        }
    }

    #[test]
    fn times_are_written_to_the_second() {
        assert_eq!(["7", "90", "3723"].map(|text| show(parse(text).unwrap())), ["7s", "1m30s", "1h02m03s"]);
    }
}
