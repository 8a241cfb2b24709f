//! How long do the slowest round trips take, and what do the ways of waiting cost?
//!
//! Payload: messages of 64 B, sent back as they came, without a pause or so long after the one before. Peers: a ringpipe for each
//! [`WaitStrategy`], and a kernel pipe with a 4-byte length before each message, which take turns, round by round. Each process runs on a processor of its own.
//!
//! `cargo bench --bench tails`, a minute or so; with `-- --quick`, a moment. The time of the clock, some 20 ns, is part of each figure. Processor time is that of both
//! processes.

mod support;

use std::time::Duration;

use ringpipe::{Builder, WaitStrategy};
use support::{FdPipe, Peer, Pipe, now};

const SIZE: usize = 64;
const GAPS: [Duration; 3] = [Duration::ZERO, Duration::from_micros(100), Duration::from_millis(5)];

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    println!("| pause | | p50, µs | p99, µs | p99.9, µs | longest, µs | processor time for each, µs |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for gap in GAPS {
        let rounds = if quick { 1 } else { 5 };
        let trips = match gap {
            Duration::ZERO if !quick => 200_000,
            _ if quick => 20,
            gap => (2_000_000_000 / gap.as_nanos() as usize).min(10_000),
        };
        let mut rows = [const { Tail::NONE }; 4];
        for _ in 0..rounds {
            for (row, strategy) in
                rows.iter_mut().zip([WaitStrategy::BusySpin, WaitStrategy::Adaptive, WaitStrategy::Blocking])
            {
                row.measure(Builder::new().wait_strategy(strategy).pipe().unwrap(), gap, trips);
            }
            rows[3].measure(FdPipe::pair(false), gap, trips);
        }
        for (name, row) in ["`BusySpin`", "`Adaptive`", "`Blocking`", "fd pipe"].into_iter().zip(rows) {
            row.print(gap, name);
        }
    }
}

/// All round trips of a row.
struct Tail {
    nanos: Vec<u64>,
    cpu: u64,
}

impl Tail {
    const NONE: Tail = Tail { nanos: Vec::new(), cpu: 0 };

    fn measure<P: Pipe>(&mut self, pair: (P, P), gap: Duration, trips: usize) {
        let mut peer = Peer::fork(pair, |mut pipe| {
            let mut buf = [0; SIZE];
            while let Some(len) = pipe.recv(&mut buf) {
                // Before the answer: what was used for the ones before.
                if buf[0] == 1 {
                    buf[8..16].copy_from_slice(&cpu().to_ne_bytes());
                }
                pipe.send(&buf[..len]);
            }
        });
        let pipe = peer.pipe();
        let (mut message, mut buf) = ([0; SIZE], [0; SIZE]);
        let mut used = |pipe: &mut P| {
            message[0] = 1;
            pipe.send(&message);
            assert_eq!(pipe.recv(&mut buf), Some(SIZE), "the peer died");
            message[0] = 0;
            cpu() + u64::from_ne_bytes(buf[8..16].try_into().expect("8 bytes"))
        };
        let before = used(pipe);
        self.nanos.reserve(trips);
        for trip in 0..trips as u64 {
            if !gap.is_zero() {
                std::thread::sleep(gap);
            }
            let mut message = [0; SIZE];
            message[8..16].copy_from_slice(&trip.to_ne_bytes());
            let mut buf = [0; SIZE];
            let start = now();
            pipe.send(&message);
            assert_eq!(pipe.recv(&mut buf), Some(SIZE), "the peer died");
            self.nanos.push(now() - start);
            assert_eq!(buf, message);
        }
        self.cpu += used(pipe) - before;
    }

    fn print(mut self, gap: Duration, name: &str) {
        self.nanos.sort_unstable();
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let part = |of: f64| micros(self.nanos[((self.nanos.len() - 1) as f64 * of) as usize]);
        let cpu = micros(self.cpu) / self.nanos.len() as f64;
        let [p50, p99, p999, longest] = [0.5, 0.99, 0.999, 1.0].map(part);
        let gap = if gap.is_zero() { "none".into() } else { format!("{gap:?}") };
        println!("| {gap} | {name} | {p50:.2} | {p99:.2} | {p999:.2} | {longest:.0} | {cpu:.2} |");
    }
}

/// Processor time of this process so far, in nanoseconds.
fn cpu() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in the value it is given.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
