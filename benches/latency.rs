//! How long does a message take to the other process and back?
//!
//! Payload: messages of 8 B to 64 KiB, sent back as they came. Peers: a ringpipe and a kernel pipe with a 4-byte length before
//! each message, each in two manners: both sides spin all the time (the kernel pipe is read with `O_NONBLOCK`), or neither
//! does and both sleep while they wait. Each process runs on a processor of its own.

mod support;

use std::time::Duration;

use criterion::Criterion;
use ringpipe::Builder;
use support::{FdPipe, Peer, Pipe, Tally, now};

const SIZES: [(usize, &str); 4] = [(8, "8 B"), (64, "64 B"), (1 << 10, "1 KiB"), (64 << 10, "64 KiB")];

fn main() {
    let (mut criterion, tally) = (support::criterion(), Tally::default());
    for (manner, spin) in [("spinning", Duration::from_secs(1)), ("blocking", Duration::ZERO)] {
        for (size, name) in SIZES {
            let group = format!("round trip {name} {manner}");
            let ring = || Builder::new().spin(spin).pipe().unwrap();
            measure(&mut criterion, &tally, &group, "ringpipe", size, ring);
            measure(&mut criterion, &tally, &group, "fd pipe", size, || FdPipe::pair(!spin.is_zero()));
        }
    }
    criterion.final_summary();
    tally.print();
}

fn measure<P: Pipe>(
    criterion: &mut Criterion,
    tally: &Tally,
    group: &str,
    name: &str,
    size: usize,
    pair: impl Fn() -> (P, P),
) {
    let mut benches = criterion.benchmark_group(group);
    benches.bench_function(name, |bencher| {
        let mut peer = Peer::fork(pair(), |pipe| echo(pipe, size));
        let message = vec![7; size];
        let mut buf = vec![1; size];
        bencher.iter_custom(|iters| {
            let pipe = peer.pipe();
            let start = now();
            for _ in 0..iters {
                pipe.send(&message);
                assert_eq!(pipe.recv(&mut buf), Some(size), "the peer died");
            }
            tally.note(group, name, iters, now() - start)
        });
    });
    benches.finish();
}

fn echo(mut pipe: impl Pipe, size: usize) {
    let mut buf = vec![1; size];
    while let Some(len) = pipe.recv(&mut buf) {
        pipe.send(&buf[..len]);
    }
}
