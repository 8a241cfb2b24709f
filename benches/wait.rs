//! What does it take to be woken by one of many ends, as their number grows, and to find that none is ready?
//!
//! Payload: messages of 8 B, one at a time, each from another of the ends, sent by another process once the last one has been answered, and after a pause in which
//! the waiter falls asleep. Peers: `ringpipe::wait`, and `poll` and `epoll` with socket pairs, and `epoll` with ringpipes' descriptors, which take turns, round by round.
//! Each process runs on a processor of its own.
//!
//! `cargo bench --bench wait`, half a minute; with `-- --quick`, a moment. "Woken" is from before the send to after the receive.

mod support;

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringpipe::{Builder, Receiver, RecvError, RecvIntoError, Sender, Waitable, wait};
use support::{Peer, Pipe, now};

const ENDS: [usize; 4] = [1, 16, 64, 256];
const PAUSE: Duration = Duration::from_micros(200);
const CAPACITY: usize = 4096;

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let (rounds, messages) = if quick { (1, 20) } else { (5, 1000) };
    println!("| ends | | woken, µs (median) | none ready, µs |");
    println!("| ---: | --- | ---: | ---: |");
    for ends in ENDS {
        let mut rows = [const { Row { woken: Vec::new(), none: Vec::new() } }; 4];
        for _ in 0..rounds {
            rows[0].measure(rings(ends, How::Wait), messages);
            rows[1].measure(rings(ends, How::Epoll), messages);
            rows[2].measure(sockets(ends, How::Poll), messages);
            rows[3].measure(sockets(ends, How::Epoll), messages);
        }
        let names = ["`wait`", "ringpipe, `epoll`", "socket pairs, `poll`", "socket pairs, `epoll`"];
        for (name, row) in names.into_iter().zip(&mut rows) {
            println!("| {ends} | {name} | {:.1} | {:.2} |", median(&mut row.woken), median(&mut row.none));
        }
    }
}

/// In microseconds, of nanoseconds.
fn median(of: &mut [u64]) -> f64 {
    of.sort_unstable();
    of[of.len() / 2] as f64 / 1000.0
}

struct Row {
    woken: Vec<u64>,
    none: Vec<u64>,
}

impl Row {
    fn measure<I: Ends, O: Outs>(&mut self, (mut ends, outs): (I, O), messages: usize) {
        let (here, there) = ringpipe::pipe().unwrap();
        let mut peer = Peer::fork((Many { outs: None, turns: here }, Many { outs: Some(outs), turns: there }), serve);
        for _ in 0..messages {
            let start = now();
            if ends.ready(true).is_empty() {
                self.none.push(now() - start);
            }
            peer.pipe().send(&[1]);
            // A descriptor may be readable for nothing.
            let sent = loop {
                if let Some(sent) = ends.ready(false).into_iter().find_map(|index| ends.take(index)) {
                    break sent;
                }
            };
            self.woken.push(now() - sent);
        }
    }
}

/// One side of the turns, and on the other what sends.
struct Many<O> {
    outs: Option<O>,
    turns: ringpipe::Connection,
}

impl<O> Pipe for Many<O> {
    fn send(&mut self, message: &[u8]) {
        Pipe::send(&mut self.turns, message);
    }

    fn recv(&mut self, buf: &mut [u8]) -> Option<usize> {
        Pipe::recv(&mut self.turns, buf)
    }
}

fn serve<O: Outs>(mut many: Many<O>) {
    let mut outs = many.outs.take().expect("the peer sends");
    let mut buf = [0; 8];
    let mut turn = 0;
    while many.recv(&mut buf).is_some() {
        std::thread::sleep(PAUSE);
        outs.send(turn, now());
        turn += 7;
    }
}

/// What is waited for.
trait Ends {
    /// Those that are ready: at once, or when there is one.
    fn ready(&mut self, at_once: bool) -> Vec<usize>;

    /// Receives a time, if one is there.
    fn take(&mut self, index: usize) -> Option<u64>;
}

trait Outs {
    fn send(&mut self, turn: usize, time: u64);
}

#[derive(Clone, Copy)]
enum How {
    Wait,
    Poll,
    Epoll,
}

struct Loop {
    fds: Vec<RawFd>,
    epoll: Option<OwnedFd>,
}

impl Loop {
    fn new(fds: Vec<RawFd>, how: How) -> Loop {
        let epoll = matches!(how, How::Epoll).then(|| {
            // SAFETY: the descriptor is fresh, and nobody else's.
            let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
            for (i, &fd) in fds.iter().enumerate() {
                let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: i as u64 };
                // SAFETY: both descriptors are open, and `event` outlives the call.
                let added = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
                assert_eq!(added, 0);
            }
            epoll
        });
        Loop { fds, epoll }
    }

    fn ready(&mut self, at_once: bool) -> Vec<usize> {
        let timeout = if at_once { 0 } else { -1 };
        match &self.epoll {
            Some(epoll) => {
                let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
                // SAFETY: the pointer and the length are the array's.
                let n = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 16, timeout) };
                events[..n as usize].iter().map(|event| event.u64 as usize).collect()
            }
            None => {
                let new = |&fd: &RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
                let mut fds: Vec<_> = self.fds.iter().map(new).collect();
                // SAFETY: the pointer and the length are the vector's.
                unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
                fds.iter().enumerate().filter(|(_, fd)| fd.revents != 0).map(|(i, _)| i).collect()
            }
        }
    }
}

struct Rings {
    receivers: Vec<Receiver>,
    watched: Option<Loop>,
}

fn rings(ends: usize, how: How) -> (Rings, Vec<Sender>) {
    let (receivers, senders): (Vec<Receiver>, Vec<Sender>) =
        (0..ends).map(|_| Builder::new().capacity(CAPACITY).simplex().unwrap()).unzip();
    let fds = |receivers: &[Receiver]| receivers.iter().map(|end| end.as_fd().as_raw_fd()).collect();
    let watched = (!matches!(how, How::Wait)).then(|| Loop::new(fds(&receivers), how));
    (Rings { receivers, watched }, senders)
}

impl Ends for Rings {
    fn ready(&mut self, at_once: bool) -> Vec<usize> {
        match &mut self.watched {
            Some(watched) => watched.ready(at_once),
            None => {
                let ends: Vec<&dyn Waitable> = self.receivers.iter().map(|end| end as &dyn Waitable).collect();
                wait(&ends, at_once.then_some(Duration::ZERO)).unwrap()
            }
        }
    }

    fn take(&mut self, index: usize) -> Option<u64> {
        let mut buf = [0; 8];
        match self.receivers[index].try_recv_bytes_into(&mut buf, 0) {
            Ok(_) => Some(u64::from_ne_bytes(buf)),
            Err(RecvIntoError::Recv(RecvError::Empty)) => {
                assert!(self.watched.is_some(), "`wait` names nobody for nothing");
                None
            }
            Err(e) => panic!("{e}"),
        }
    }
}

impl Outs for Vec<Sender> {
    fn send(&mut self, turn: usize, time: u64) {
        let ends = self.len();
        self[turn % ends].send_bytes(&time.to_ne_bytes()).unwrap();
    }
}

struct Sockets {
    streams: Vec<UnixStream>,
    watched: Loop,
}

fn sockets(ends: usize, how: How) -> (Sockets, Vec<UnixStream>) {
    let (streams, others): (Vec<UnixStream>, Vec<UnixStream>) = (0..ends).map(|_| UnixStream::pair().unwrap()).unzip();
    let watched = Loop::new(streams.iter().map(AsRawFd::as_raw_fd).collect(), how);
    (Sockets { streams, watched }, others)
}

impl Ends for Sockets {
    fn ready(&mut self, at_once: bool) -> Vec<usize> {
        self.watched.ready(at_once)
    }

    fn take(&mut self, index: usize) -> Option<u64> {
        let mut buf = [0; 8];
        self.streams[index].read_exact(&mut buf).unwrap();
        Some(u64::from_ne_bytes(buf))
    }
}

impl Outs for Vec<UnixStream> {
    fn send(&mut self, turn: usize, time: u64) {
        let ends = self.len();
        self[turn % ends].write_all(&time.to_ne_bytes()).unwrap();
    }
}
