//! Which loops run when, and what becomes of their figures.
//!
//! Whatever is compared takes turns: a round gives every lane one slice of time, so that all of them see the same machine.
//! Figures are medians over the rounds; a ratio is the median of the ratios within each round.

use std::io;
use std::time::Duration;

use crate::bench::peer::{Lane, Link, Order, Peer};
use crate::bench::report::{CacheLine, Rate, Report, RoundTrip, Setting, Throughput, WakeUp, WakeUps};
use crate::bench::{Progress, size, traffic};

/// How much to measure.
pub(crate) struct Plan {
    rounds: usize,
    slice: Duration,
    /// Messages of a round of the wake-up rows.
    beats: u64,
    /// Rounds of the bare ping-pong, each of [`FLAG_TURNS`].
    flag_rounds: usize,
}

impl Plan {
    pub(crate) const FULL: Plan = Plan { rounds: 11, slice: Duration::from_millis(100), beats: 1000, flag_rounds: 21 };
    pub(crate) const QUICK: Plan = Plan { rounds: 3, slice: Duration::from_millis(20), beats: 300, flag_rounds: 5 };
}

/// Sizes of the round trips.
const SMALL: [usize; 2] = [8, 64];
const FLAG_TURNS: u64 = 10_000;

/// Everything, in order.
pub(crate) fn all(
    peer: &mut Peer,
    plan: &Plan,
    sizes: &[usize],
    capacity: usize,
    processors: Option<[usize; 2]>,
) -> io::Result<Report> {
    let progress = Progress::new();
    // On a single processor nothing that spins is worth measuring: each turn takes a time slice of the scheduler's.
    let spins = processors.is_some();
    progress.show("cache lines");
    let before = if spins { Some(flags(peer, plan)?) } else { None };
    let mut throughput = Vec::new();
    for &size in sizes {
        throughput.push(one_way(peer, plan, size, &progress)?);
    }
    let mut round_trip = Vec::new();
    for size in SMALL {
        round_trip.extend(there_and_back(peer, plan, size, spins, &progress)?);
    }
    let wake_up = wake_ups(peer, plan, &progress)?;
    progress.show("cache lines");
    let cache_line = match before {
        Some(before) => Some(CacheLine::new(before, flags(peer, plan)?)),
        None => None,
    };
    let setting = Setting {
        version: env!("CARGO_PKG_VERSION"),
        capacity,
        fd_pipe_capacity: peer.pipe_capacity,
        rounds: plan.rounds,
        round_ms: plan.slice.as_millis() as u64,
        processors,
        cache_line,
    };
    Ok(Report { setting, throughput, round_trip, wake_up })
}

/// The bare ping-pong of two cache lines, in nanoseconds.
fn flags(peer: &mut Peer, plan: &Plan) -> io::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..plan.flag_rounds {
        peer.order(&Order::Flags { count: FLAG_TURNS })?;
        let time = peer.flags.ping(FLAG_TURNS);
        times.push(peer.explain(time)?);
        peer.done()?;
    }
    Ok(median(times))
}

/// Throughput of all transports at one size.
fn one_way(peer: &mut Peer, plan: &Plan, size: usize, progress: &Progress) -> io::Result<Throughput> {
    let lanes = [Lane::Ring, Lane::FdPipe, Lane::Socket];
    let what = format!("one way, {}", size::show(size));
    let (counts, rounds) = compare(peer, plan, &what, &lanes, progress, |peer, lane, count| {
        peer.order(&Order::Sink { lane, size, count })?;
        let start = match peer.ends.link(lane) {
            Link::Ring(link) => traffic::flood(link, size, count),
            Link::Stream(link) => traffic::flood(link, size, count),
        }?;
        Ok(peer.done()?.saturating_sub(start))
    })?;
    let rate = |lane: usize| Rate::new(size, counts[lane], median(column(&rounds, lane)), column(&rounds, lane));
    Ok(Throughput {
        size,
        ringpipe: rate(0),
        fd_pipe: rate(1),
        unix_socket: rate(2),
        ratio: median(ratios(&rounds, 1, 0)),
    })
}

/// Round trips at one size, in every mode.
fn there_and_back(
    peer: &mut Peer,
    plan: &Plan,
    size: usize,
    spins: bool,
    progress: &Progress,
) -> io::Result<Vec<RoundTrip>> {
    let lanes = [Lane::RingBlocking, Lane::Ring, Lane::FdPipe, Lane::RingSpinning, Lane::FdPipeSpinning];
    let lanes = if spins { &lanes[..] } else { &lanes[..3] };
    let what = format!("round trip, {}", size::show(size));
    let (_, rounds) = compare(peer, plan, &what, lanes, progress, |peer, lane, count| {
        peer.order(&Order::Echo { lane, size, count })?;
        let time = match peer.ends.link(lane) {
            Link::Ring(link) => traffic::ping(link, size, count),
            Link::Stream(link) => traffic::ping(link, size, count),
        }?;
        peer.done()?;
        Ok(time)
    })?;
    let row = |mode, ring: usize, pipe: usize| RoundTrip {
        size,
        mode,
        ringpipe_ns: median(column(&rounds, ring)),
        fd_pipe_ns: median(column(&rounds, pipe)),
        ratio: median(ratios(&rounds, pipe, ring)),
    };
    let mut rows = if spins { vec![row("spinning", 3, 4)] } else { Vec::new() };
    rows.extend([row("default", 1, 2), row("blocking", 0, 2)]);
    Ok(rows)
}

/// Messages that come now and then, to a receiver that waits.
fn wake_ups(peer: &mut Peer, plan: &Plan, progress: &Progress) -> io::Result<WakeUps> {
    let lanes = [Lane::Ring, Lane::FdPipe];
    let count = plan.beats;
    let mut rows: [Vec<WakeUp>; 2] = [Vec::new(), Vec::new()];
    for round in 0..plan.rounds {
        progress.show(&format!("wake-up, round {} of {}", round + 1, plan.rounds));
        for (lane, rows) in lanes.into_iter().zip(&mut rows) {
            peer.order(&Order::Beat { lane, count })?;
            let heard = match peer.ends.link(lane) {
                Link::Ring(link) => traffic::listen(link, count),
                Link::Stream(link) => traffic::listen(link, count),
            };
            let (latencies, used) = peer.explain(heard)?;
            let sender_used = peer.done()?;
            rows.push(WakeUp {
                latency_ns: median(latencies),
                receiver_cpu_ns: used as f64 / count as f64,
                sender_cpu_ns: sender_used as f64 / count as f64,
            });
        }
    }
    let [ring, pipe] = rows;
    let middle = |rows: &[WakeUp], field: fn(&WakeUp) -> f64| median(rows.iter().map(field).collect());
    let row = |rows: &[WakeUp]| WakeUp {
        latency_ns: middle(rows, |r| r.latency_ns),
        receiver_cpu_ns: middle(rows, |r| r.receiver_cpu_ns),
        sender_cpu_ns: middle(rows, |r| r.sender_cpu_ns),
    };
    let ratio = |field: fn(&WakeUp) -> f64| median(pipe.iter().zip(&ring).map(|(p, r)| field(p) / field(r)).collect());
    Ok(WakeUps {
        interval_us: traffic::INTERVAL.as_micros() as u64,
        messages: count * plan.rounds as u64,
        ringpipe: row(&ring),
        fd_pipe: row(&pipe),
        latency_ratio: ratio(|r| r.latency_ns),
        cpu_ratio: ratio(|r| r.receiver_cpu_ns + r.sender_cpu_ns),
    })
}

/// Lets lanes take turns. `run` passes so many messages through a lane and returns how many nanoseconds that took.
///
/// Returns how many messages a round of each lane had, and for each round the nanoseconds per message of each lane.
fn compare(
    peer: &mut Peer,
    plan: &Plan,
    what: &str,
    lanes: &[Lane],
    progress: &Progress,
    mut run: impl FnMut(&mut Peer, Lane, u64) -> io::Result<u64>,
) -> io::Result<(Vec<u64>, Vec<Vec<f64>>)> {
    let mut run = |peer: &mut Peer, lane, count| {
        let result = run(peer, lane, count);
        peer.explain(result)
    };
    let slice = plan.slice.as_nanos() as u64;
    let mut counts = Vec::new();
    for &lane in lanes {
        progress.show(&format!("{what}: warming up"));
        // A first guess that takes a noticeable part of a slice says how many messages fill one.
        let (mut count, mut took) = (1, 0);
        while took < slice / 8 {
            count *= if took < slice / 128 { 8 } else { 2 };
            took = run(peer, lane, count)?.max(1);
        }
        counts.push((u128::from(count) * u128::from(slice) / u128::from(took)).max(1) as u64);
    }
    let mut rounds = Vec::new();
    for round in 0..plan.rounds {
        progress.show(&format!("{what}: round {} of {}", round + 1, plan.rounds));
        let mut times = Vec::new();
        for (&lane, &count) in lanes.iter().zip(&counts) {
            times.push(run(peer, lane, count)?.max(1) as f64 / count as f64);
        }
        rounds.push(times);
    }
    Ok((counts, rounds))
}

fn column(rounds: &[Vec<f64>], lane: usize) -> Vec<f64> {
    rounds.iter().map(|times| times[lane]).collect()
}

/// How many times longer `one` took than `other`, round by round.
fn ratios(rounds: &[Vec<f64>], one: usize, other: usize) -> Vec<f64> {
    rounds.iter().map(|times| times[one] / times[other]).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty());
    values.sort_by(f64::total_cmp);
    let mid = values.len() / 2;
    if values.len() % 2 == 1 { values[mid] } else { (values[mid - 1] + values[mid]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::{median, ratios};

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        assert_eq!(ratios(&[vec![1.0, 2.0], vec![10.0, 40.0]], 1, 0), [2.0, 4.0]);
    }
}
