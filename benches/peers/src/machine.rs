//! The machine: what it is, how busy it is, how far apart two of its processors are, and how fast it copies.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::bench::cpu;
use crate::report::Memcpy;

/// How far apart the two processors are. On a virtual machine this changes by the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Distance {
    /// Two threads of one core: each has half of it while both are busy.
    Shared,
    /// A cache line takes under 200 ns there and back: they share a cache.
    Near,
    /// 200 ns and more.
    Far,
    Any,
}

/// What tells how far apart they are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Apart {
    /// The bare cache line there and back.
    pub(crate) cache_line_ns: f64,
    /// How many times as long a computation takes while the other processor has one as well.
    pub(crate) slowdown: f64,
}

impl Distance {
    fn of(apart: Apart) -> Distance {
        const SHARED: f64 = 1.5;
        const NEAR_NS: f64 = 200.0;
        match apart {
            Apart { slowdown, .. } if slowdown >= SHARED => Distance::Shared,
            Apart { cache_line_ns, .. } if cache_line_ns < NEAR_NS => Distance::Near,
            _ => Distance::Far,
        }
    }

    pub(crate) fn admits(self, apart: Apart) -> bool {
        self == Distance::Any || self == Distance::of(apart)
    }
}

/// Whether figures are of one machine, and of one that was there: the distance was as wanted, the cache line took as long before as after within 30 %, and
/// neither side was without its processor for more than a twentieth of the time.
pub(crate) fn is_fit(wanted: Distance, [before, after]: [Apart; 2], robbed: Duration, of: Duration) -> bool {
    const CHANGE: f64 = 1.3;
    let [one, other] = [before, after].map(|apart| apart.cache_line_ns);
    wanted.admits(before)
        && Distance::of(before).admits(after)
        && one.max(other) <= CHANGE * one.min(other)
        && 20 * robbed <= of
}

/// Computes for a tenth of a millisecond or so, with all that a core has for it; returns how many nanoseconds it took.
pub(crate) fn burst() -> u64 {
    let mut words = [1_u64, 2, 3, 4, 5, 6];
    let start = cpu::now();
    for _ in 0..50_000 {
        for word in &mut words {
            *word = word.wrapping_mul(3).wrapping_add(1);
        }
        black_box(&mut words);
    }
    cpu::now() - start
}

/// What [`burst`] takes on a processor that has a core to itself.
pub(crate) fn burst_alone() -> u64 {
    (0..20).map(|_| burst()).min().expect("some")
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

    use super::{Apart, Distance, is_fit};

    #[test]
    fn what_changed_is_at_the_wrong_distance_or_was_robbed_is_not_fit() {
        let ms = Duration::from_millis;
        let alone = |cache_line_ns| Apart { cache_line_ns, slowdown: 1.1 };
        let fit = |wanted, lines: [f64; 2]| is_fit(wanted, lines.map(alone), ms(0), ms(100));
        assert!(fit(Distance::Near, [100.0, 120.0]));
        assert!(!fit(Distance::Near, [100.0, 140.0]));
        assert!(!fit(Distance::Near, [500.0, 520.0]));
        assert!(fit(Distance::Far, [500.0, 520.0]));
        assert!(fit(Distance::Any, [500.0, 520.0]));
        assert!(!fit(Distance::Any, [500.0, 100.0]));
        assert!(is_fit(Distance::Any, [alone(500.0); 2], ms(5), ms(100)));
        assert!(!is_fit(Distance::Any, [alone(500.0); 2], ms(6), ms(100)));
        let shared = Apart { cache_line_ns: 100.0, slowdown: 1.9 };
        assert!(is_fit(Distance::Any, [shared; 2], ms(0), ms(100)));
        assert!(is_fit(Distance::Shared, [shared; 2], ms(0), ms(100)));
        assert!(!is_fit(Distance::Near, [shared; 2], ms(0), ms(100)));
        assert!(!is_fit(Distance::Any, [shared, alone(100.0)], ms(0), ms(100)));
    }
}
