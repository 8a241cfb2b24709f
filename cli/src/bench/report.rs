//! The outcome: as a table for people and as JSON for programs.

use std::fmt::Write;

use serde::Serialize;

use crate::bench::size;

#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) setting: Setting,
    pub(crate) throughput: Vec<Throughput>,
    pub(crate) round_trip: Vec<RoundTrip>,
    pub(crate) wake_up: WakeUps,
}

/// What the figures depend on.
#[derive(Serialize)]
pub(crate) struct Setting {
    pub(crate) version: &'static str,
    pub(crate) capacity: usize,
    pub(crate) fd_pipe_capacity: usize,
    pub(crate) rounds: usize,
    pub(crate) round_ms: u64,
    /// Of this process and of the other. None if there is only one, or if they could not be told.
    pub(crate) processors: Option<[usize; 2]>,
    pub(crate) cache_line: Option<CacheLine>,
}

/// The round trip of a bare cache line between the two processors, before and after everything else.
#[derive(Serialize)]
pub(crate) struct CacheLine {
    pub(crate) before_ns: f64,
    pub(crate) after_ns: f64,
    pub(crate) cores: &'static str,
}

impl CacheLine {
    /// Below so many nanoseconds cores share a cache.
    const NEAR: f64 = 200.0;

    pub(crate) fn new(before_ns: f64, after_ns: f64) -> CacheLine {
        let cores = match (before_ns < CacheLine::NEAR, after_ns < CacheLine::NEAR) {
            (true, true) => "near",
            (false, false) => "far",
            (true, false) => "near, then far",
            (false, true) => "far, then near",
        };
        CacheLine { before_ns, after_ns, cores }
    }
}

#[derive(Serialize)]
pub(crate) struct Throughput {
    pub(crate) size: usize,
    pub(crate) ringpipe: Rate,
    pub(crate) fd_pipe: Rate,
    pub(crate) unix_socket: Rate,
    pub(crate) ratio: f64,
}

#[derive(Serialize)]
pub(crate) struct Rate {
    pub(crate) messages_per_second: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) messages_per_round: u64,
    /// Nanoseconds per message of each round, in order.
    pub(crate) rounds_ns: Vec<f64>,
}

impl Rate {
    pub(crate) fn new(size: usize, messages_per_round: u64, ns_per_message: f64, rounds_ns: Vec<f64>) -> Rate {
        let messages_per_second = 1e9 / ns_per_message;
        Rate { messages_per_second, bytes_per_second: messages_per_second * size as f64, messages_per_round, rounds_ns }
    }
}

#[derive(Serialize)]
pub(crate) struct RoundTrip {
    pub(crate) size: usize,
    pub(crate) mode: &'static str,
    pub(crate) ringpipe_ns: f64,
    pub(crate) fd_pipe_ns: f64,
    pub(crate) ratio: f64,
}

#[derive(Serialize)]
pub(crate) struct WakeUps {
    pub(crate) interval_us: u64,
    pub(crate) messages: u64,
    pub(crate) ringpipe: WakeUp,
    pub(crate) fd_pipe: WakeUp,
    pub(crate) latency_ratio: f64,
    pub(crate) cpu_ratio: f64,
}

/// Latency from send to receive, and processor time per message on each side.
#[derive(Serialize)]
pub(crate) struct WakeUp {
    pub(crate) latency_ns: f64,
    pub(crate) receiver_cpu_ns: f64,
    pub(crate) sender_cpu_ns: f64,
}

impl Report {
    pub(crate) fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and strings only");
        text.push('\n');
        text
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Setting { version, capacity, fd_pipe_capacity, rounds, round_ms, processors, cache_line } = &self.setting;
        let (ring, pipe) = (size::show(*capacity), size::show(*fd_pipe_capacity));
        writeln!(out, "ringpipe {version}: ring {ring}, fd pipe {pipe}, medians of {rounds} rounds of {round_ms} ms")?;
        match processors {
            Some([mine, theirs]) => writeln!(out, "two processes, on processors {mine} and {theirs}")?,
            None => writeln!(out, "two processes on one processor: nothing that spins is measured")?,
        }
        if let Some(CacheLine { before_ns, after_ns, cores }) = cache_line {
            let (before, after) = (nanos(*before_ns), nanos(*after_ns));
            writeln!(out, "bare cache line there and back: {before} before, {after} after ({cores} cores)")?;
        }

        writeln!(out, "\n{:<21}{:>22}{:>24}{:>24}", "one way", "ringpipe", "fd pipe", "Unix socket")?;
        for row in &self.throughput {
            write!(out, "{:>9}  ", size::show(row.size))?;
            for rate in [&row.ringpipe, &row.fd_pipe, &row.unix_socket] {
                let (millions, giga) = (rate.messages_per_second / 1e6, rate.bytes_per_second / 1e9);
                write!(out, "  {:>8} M/s {:>7} GB/s", digits(millions), digits(giga))?;
            }
            writeln!(out, "  {:>8}", times(row.ratio))?;
        }

        writeln!(out, "\n{:<21}{:>10}{:>12}", "round trip", "ringpipe", "fd pipe")?;
        for row in &self.round_trip {
            let (ring, pipe) = (nanos(row.ringpipe_ns), nanos(row.fd_pipe_ns));
            writeln!(
                out,
                "{:>9}  {:<10}{ring:>10}{pipe:>12}  {:>8}",
                size::show(row.size),
                row.mode,
                times(row.ratio)
            )?;
        }

        let WakeUps { interval_us, ringpipe, fd_pipe, latency_ratio, cpu_ratio, .. } = &self.wake_up;
        let title = format!("every {interval_us} us");
        writeln!(out, "\n{title:<21}{:>10}{:>12}", "ringpipe", "fd pipe")?;
        let mut row = |name: &str, ring: f64, pipe: f64, ratio: Option<f64>| {
            let ratio = ratio.map_or(String::new(), times);
            let line = format!("  {name:<19}{:>10}{:>12}  {ratio:>8}", nanos(ring), nanos(pipe));
            writeln!(out, "{}", line.trim_end())
        };
        row("wake-up", ringpipe.latency_ns, fd_pipe.latency_ns, Some(*latency_ratio))?;
        row("CPU, receiver", ringpipe.receiver_cpu_ns, fd_pipe.receiver_cpu_ns, None)?;
        row("CPU, sender", ringpipe.sender_cpu_ns, fd_pipe.sender_cpu_ns, None)?;
        let both = |w: &WakeUp| w.receiver_cpu_ns + w.sender_cpu_ns;
        row("CPU, both", both(ringpipe), both(fd_pipe), Some(*cpu_ratio))?;

        writeln!(out, "\nRatios are ringpipe against the fd pipe; above 1, ringpipe is better. See `ringpipe --help`.")
    }
}

/// Three significant digits or so.
fn digits(value: f64) -> String {
    let places = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.places$}")
}

fn times(ratio: f64) -> String {
    format!("{}x", digits(ratio))
}

fn nanos(ns: f64) -> String {
    if ns < 1000.0 { format!("{ns:.0} ns") } else { format!("{} us", digits(ns / 1000.0)) }
}

#[cfg(test)]
mod tests {
    use super::{CacheLine, digits, nanos, times};

    #[test]
    fn figures_are_written_with_about_three_digits() {
        assert_eq!(
            [digits(234.56), digits(23.456), digits(2.3456), digits(0.23456), digits(0.001)],
            ["235", "23.5", "2.35", "0.235", "0.0010"]
        );
        assert_eq!([nanos(84.4), nanos(15_230.0)], ["84 ns", "15.2 us"]);
        assert_eq!(times(78.13), "78.1x");
    }

    #[test]
    fn cores_are_near_or_far_by_what_a_cache_line_takes() {
        let cores = |before, after| CacheLine::new(before, after).cores;
        assert_eq!([cores(84.0, 90.0), cores(510.0, 530.0), cores(84.0, 530.0)], ["near", "far", "near, then far"]);
    }
}
