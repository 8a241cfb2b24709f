//! The machine: what it is, how busy it is, how far apart two of its processors are, and how fast it copies.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::report::Memcpy;

/// How far apart the two processors are, by what a bare cache line takes there and back. On a virtual machine this changes by the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Distance {
    /// Under 200 ns: they share a cache.
    Near,
    /// 200 ns and more.
    Far,
    Any,
}

impl Distance {
    const NEAR_NS: f64 = 200.0;

    pub(crate) fn admits(self, cache_line_ns: f64) -> bool {
        match self {
            Distance::Near => cache_line_ns < Distance::NEAR_NS,
            Distance::Far => cache_line_ns >= Distance::NEAR_NS,
            Distance::Any => true,
        }
    }
}

/// Whether figures are of one machine, and of one that was there: the distance was as wanted and stayed within 30 %, and neither side was without
/// its processor for more than a twentieth of the time.
pub(crate) fn is_fit(wanted: Distance, [before, after]: [f64; 2], robbed: Duration, of: Duration) -> bool {
    const CHANGE: f64 = 1.3;
    wanted.admits(before)
        && wanted.admits(after)
        && before.max(after) <= CHANGE * before.min(after)
        && 20 * robbed <= of
}

pub(crate) fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown", |(_, name)| name).to_owned()
}

/// Of the library, as its manifest says.
pub(crate) fn ringpipe() -> String {
    let manifest = include_str!("../../../Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version.unwrap_or("unknown").to_owned()
}

pub(crate) fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", release.trim())
}

/// Of the last 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// How fast blocks of a size are copied from one buffer to another and on to a third one, in the best of a few tries: as much work as a message
/// that is copied in and out makes for two processors, all of it on one.
pub(crate) fn memcpy(size: usize, time: Duration) -> Memcpy {
    const TRIES: u32 = 4;
    let (from, mut ring, mut to) = (vec![1_u8; size], vec![2_u8; size], vec![3_u8; size]);
    let mut one_try = || {
        let start = Instant::now();
        let mut blocks = 0_u64;
        while start.elapsed() < time / TRIES {
            for _ in 0..8 {
                ring.copy_from_slice(black_box(&from));
                to.copy_from_slice(black_box(&ring));
                black_box(&to);
            }
            blocks += 2 * 8;
        }
        blocks as f64 * size as f64 / start.elapsed().as_secs_f64()
    };
    let best = (0..TRIES).map(|_| one_try()).fold(0.0, f64::max);
    Memcpy { size, bytes_per_second: best }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Distance, is_fit};

    #[test]
    fn what_changed_is_at_the_wrong_distance_or_was_robbed_is_not_fit() {
        let ms = Duration::from_millis;
        let fit = |wanted, lines| is_fit(wanted, lines, ms(0), ms(100));
        assert!(fit(Distance::Near, [100.0, 120.0]));
        assert!(!fit(Distance::Near, [100.0, 140.0]));
        assert!(!fit(Distance::Near, [500.0, 520.0]));
        assert!(fit(Distance::Far, [500.0, 520.0]));
        assert!(fit(Distance::Any, [500.0, 520.0]));
        assert!(!fit(Distance::Any, [500.0, 100.0]));
        assert!(is_fit(Distance::Any, [500.0, 500.0], ms(5), ms(100)));
        assert!(!is_fit(Distance::Any, [500.0, 500.0], ms(6), ms(100)));
    }
}
