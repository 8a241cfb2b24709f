//! How many messages a second pass one way between two processes?
//!
//! Payload: messages of 8 B to 1 MiB, received into one buffer over and over. Peers: a ringpipe as it comes, and a kernel pipe
//! with a 4-byte length before each message. An iteration is one message; its time runs from the first send to the last receive.
//! Each process runs on a processor of its own.

mod support;

use criterion::{Criterion, Throughput};
use support::{FdPipe, Peer, Pipe, Tally, now};

const SIZES: [(usize, &str); 6] =
    [(8, "8 B"), (64, "64 B"), (1 << 10, "1 KiB"), (4 << 10, "4 KiB"), (64 << 10, "64 KiB"), (1 << 20, "1 MiB")];

fn main() {
    let (mut criterion, tally) = (support::criterion(), Tally::default());
    for (size, name) in SIZES {
        let group = format!("throughput {name}");
        measure(&mut criterion, &tally, &group, "ringpipe", size, || ringpipe::pipe().unwrap());
        measure(&mut criterion, &tally, &group, "fd pipe", size, || FdPipe::pair(false));
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
    benches.throughput(Throughput::Bytes(size as u64));
    benches.bench_function(name, |bencher| {
        let mut peer = Peer::fork(pair(), |pipe| sink(pipe, size));
        let message = vec![7; size];
        bencher.iter_custom(|iters| {
            let pipe = peer.pipe();
            // The answer shows that the peer is awake and about to receive.
            exchange(pipe, iters);
            let start = now();
            for _ in 0..iters {
                pipe.send(&message);
            }
            let mut end = [0; 8];
            assert_eq!(pipe.recv(&mut end), Some(8), "the peer died");
            tally.note(group, name, iters, u64::from_le_bytes(end).saturating_sub(start))
        });
    });
    benches.finish();
}

fn exchange(pipe: &mut impl Pipe, iters: u64) {
    pipe.send(&iters.to_le_bytes());
    let mut answer = [0; 8];
    assert_eq!((pipe.recv(&mut answer), answer), (Some(8), iters.to_le_bytes()), "the peer died");
}

/// Receives as many messages as announced, and answers when it had the last.
fn sink(mut pipe: impl Pipe, size: usize) {
    let mut buf = vec![1; size];
    let mut announced = [0; 8];
    while pipe.recv(&mut announced).is_some() {
        pipe.send(&announced);
        for _ in 0..u64::from_le_bytes(announced) {
            assert_eq!(pipe.recv(&mut buf), Some(size));
        }
        pipe.send(&now().to_le_bytes());
    }
}
