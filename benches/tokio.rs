//! What does a round trip take between tasks of two processes, when both are busy with it, and when a request comes now and then?
//!
//! Payload: 64 B there and back. Peers: `ringpipe::tokio`, and tokio's `UnixStream` with a 4-byte length before each message (one `write` a message, and a buffered
//! reader), which take turns, round by round. Each process runs on a processor of its own, in a runtime of one thread, or of one worker beside the main thread.
//!
//! `cargo bench --bench tokio --features tokio`, half a minute (longer on a busy machine); with `-- --quick`, a moment. "Idle" is after a pause in which both sides fall asleep.

mod support;

use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use ringpipe::tokio::Connection;
use ringpipe::{RecvError, RecvIntoError};
use support::{Peer, now};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::Builder;

const LEN: usize = 64;
const PAUSE: Duration = Duration::from_micros(500);

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let (rounds, busy, idle) = if quick { (3, 20_000, 100) } else { (9, 30_000, 500) };
    println!("| runtime | | ringpipe, µs | UnixStream, µs | ratio (of each round) |");
    println!("| --- | --- | ---: | ---: | ---: |");
    for (runtime, threads) in [("one thread", 0), ("one worker", 1)] {
        for (what, count, pause) in [("busy", busy, None), ("idle", idle, Some(PAUSE))] {
            let times: Vec<(f64, f64)> = (0..rounds)
                .map(|_| {
                    let ours = round_trip::<Connection>(ringpipe::pipe().unwrap(), threads, count, pause);
                    (ours, round_trip::<BufReader<UnixStream>>(StdStream::pair().unwrap(), threads, count, pause))
                })
                .collect();
            let ours = median(times.iter().map(|time| time.0));
            let theirs = median(times.iter().map(|time| time.1));
            let mut ratios: Vec<f64> = times.iter().map(|time| time.1 / time.0).collect();
            ratios.sort_by(f64::total_cmp);
            let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
            let middle = median(ratios.into_iter());
            println!("| {runtime} | {what} | {ours:.2} | {theirs:.2} | {middle:.2} ({least:.2}–{most:.2}) |");
        }
    }
}

fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = of.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Microseconds of a round trip: their mean, or, with pauses, their median.
fn round_trip<L: Link>((ours, theirs): (L::End, L::End), threads: usize, count: usize, pause: Option<Duration>) -> f64 {
    // The end goes into a task, and is closed when that is done.
    let mut peer = Peer::fork((Some(ours), Some(theirs)), |end| run(threads, serve::<L>(end.unwrap())));
    let end = peer.pipe().take().unwrap();
    run(threads, ask::<L>(end, count, pause))
}

/// Runs a task in a runtime of its own, made after the fork.
fn run<T: Send + 'static>(threads: usize, task: impl Future<Output = T> + Send + 'static) -> T {
    if threads == 0 {
        return Builder::new_current_thread().enable_io().build().unwrap().block_on(task);
    }
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_io().build().unwrap();
    runtime.block_on(runtime.spawn(task)).unwrap()
}

async fn serve<L: Link>(end: L::End) {
    let (mut link, mut buf) = (L::new(end), [0; LEN]);
    while link.recv(&mut buf).await {
        link.send(&buf).await;
    }
}

async fn ask<L: Link>(end: L::End, count: usize, pause: Option<Duration>) -> f64 {
    let (mut link, mut buf) = (L::new(end), [0; LEN]);
    let mut times = Vec::with_capacity(count);
    let begin = now();
    for i in 0..count {
        // There is nothing else to be run here.
        pause.into_iter().for_each(std::thread::sleep);
        let start = now();
        link.send(&[i as u8; LEN]).await;
        assert!(link.recv(&mut buf).await && buf == [i as u8; LEN], "another answer than the request");
        times.push((now() - start) as f64 / 1000.0);
    }
    match pause {
        None => (now() - begin) as f64 / 1000.0 / count as f64,
        Some(_) => median(times.into_iter()),
    }
}

/// What carries messages both ways. A failure ends the bench, so it panics.
trait Link: Send + Sized + 'static {
    type End: Send + 'static;

    fn new(end: Self::End) -> Self;
    fn send(&mut self, message: &[u8; LEN]) -> impl Future<Output = ()> + Send;
    /// False when the other end is closed.
    fn recv(&mut self, buf: &mut [u8; LEN]) -> impl Future<Output = bool> + Send;
}

impl Link for Connection {
    type End = ringpipe::Connection;

    fn new(end: ringpipe::Connection) -> Connection {
        Connection::from_blocking(end).unwrap()
    }

    async fn send(&mut self, message: &[u8; LEN]) {
        self.send_bytes(message).await.unwrap();
    }

    async fn recv(&mut self, buf: &mut [u8; LEN]) -> bool {
        match self.recv_bytes_into(buf, 0).await {
            Ok(len) => len == LEN,
            Err(RecvIntoError::Recv(RecvError::Disconnected)) => false,
            Err(e) => panic!("{e}"),
        }
    }
}

impl Link for BufReader<UnixStream> {
    type End = StdStream;

    fn new(end: StdStream) -> BufReader<UnixStream> {
        end.set_nonblocking(true).unwrap();
        BufReader::new(UnixStream::from_std(end).unwrap())
    }

    async fn send(&mut self, message: &[u8; LEN]) {
        let mut frame = [0; 4 + LEN];
        frame[..4].copy_from_slice(&(LEN as u32).to_le_bytes());
        frame[4..].copy_from_slice(message);
        self.write_all(&frame).await.unwrap();
    }

    async fn recv(&mut self, buf: &mut [u8; LEN]) -> bool {
        match self.read_u32_le().await {
            Ok(len) => assert_eq!(len as usize, LEN),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return false,
            Err(e) => panic!("{e}"),
        }
        self.read_exact(buf).await.unwrap();
        true
    }
}
