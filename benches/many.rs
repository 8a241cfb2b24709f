//! How many messages a second pass from several senders to several receivers?
//!
//! Each sender and each receiver is a process of its own; the first two sides run on processors of their own where there is one of each. Peers: the pipe
//! for many as it comes; a kernel pipe under two locks shared between the processes, one for senders and one for receivers, with a 4-byte length before
//! each message; and between threads of one process, where `crossbeam-channel` can be had too, both of them again. Where there is one of each, also
//! the pipe for one sender and one receiver.
//!
//! All take turns in short rounds of one run, so that they meet the same conditions. Figures are medians over the rounds, ratios are medians of the
//! rounds' own ratios. A round's time runs from the start, which everybody waits for, to the last message received.
//!
//! Criterion measures one thing after another and knows of no rounds, so this is no criterion bench. `cargo bench --bench many -- [--rounds N] [SxR:SIZE]...`

mod support;

use std::cell::UnsafeCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringpipe::mpmc;
use support::now;

/// Messages that crossbeam's channel holds: as many of 64 bytes as the ring.
const CHANNEL: usize = ringpipe::DEFAULT_CAPACITY / 64;
/// How long a round is to take.
const ROUND: Duration = Duration::from_millis(120);

/// What the processes of a round share.
#[repr(C)]
struct Board {
    ready: AtomicU64,
    start: AtomicU64,
    received: AtomicU64,
    /// When the last message was received.
    end: AtomicU64,
    locks: [UnsafeCell<libc::pthread_mutex_t>; 2],
}

impl Board {
    fn new() -> &'static Board {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, zeroed, of a size that fits, and never unmapped; the locks are initialized before anybody sees them.
        unsafe {
            let page = libc::mmap(ptr::null_mut(), size_of::<Board>(), access, kind, -1, 0);
            assert!(page != libc::MAP_FAILED);
            let board = &*page.cast::<Board>();
            let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
            assert_eq!(libc::pthread_mutexattr_init(&mut attributes), 0);
            assert_eq!(libc::pthread_mutexattr_setpshared(&mut attributes, libc::PTHREAD_PROCESS_SHARED), 0);
            for lock in &board.locks {
                assert_eq!(libc::pthread_mutex_init(lock.get(), &attributes), 0);
            }
            board
        }
    }

    fn reset(&self) {
        for word in [&self.ready, &self.start, &self.received, &self.end] {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// Says that we are there, and waits for the start.
    fn await_start(&self) {
        self.ready.fetch_add(1, Ordering::SeqCst);
        while self.start.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
    }

    /// Starts the round once everybody is there.
    fn go(&self, everybody: usize) {
        while self.ready.load(Ordering::SeqCst) < everybody as u64 {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.start.store(now(), Ordering::SeqCst);
    }

    fn note_end(&self, received: u64) {
        self.received.fetch_add(received, Ordering::SeqCst);
        if received > 0 {
            self.end.fetch_max(now(), Ordering::SeqCst);
        }
    }

    /// Nanoseconds for a message.
    fn outcome(&self, messages: u64) -> f64 {
        assert_eq!(self.received.load(Ordering::SeqCst), messages, "not every message arrived once");
        (self.end.load(Ordering::SeqCst) - self.start.load(Ordering::SeqCst)) as f64 / messages as f64
    }
}

// SAFETY: atomics, and locks that are there to be shared.
unsafe impl Sync for Board {}

struct Locked<'a>(&'a UnsafeCell<libc::pthread_mutex_t>);

fn lock(lock: &UnsafeCell<libc::pthread_mutex_t>) -> Locked<'_> {
    // SAFETY: initialized, and never destroyed.
    assert_eq!(unsafe { libc::pthread_mutex_lock(lock.get()) }, 0);
    Locked(lock)
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // SAFETY: locked by this thread.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }
}

/// What is measured: so many senders and receivers, and messages of one size.
#[derive(Clone, Copy)]
struct Case {
    senders: usize,
    receivers: usize,
    size: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Many,
    FdPipe,
    One,
    ManyInThreads,
    Crossbeam,
}

impl Peer {
    const ALL: [Peer; 5] = [Peer::Many, Peer::FdPipe, Peer::One, Peer::ManyInThreads, Peer::Crossbeam];

    fn name(self) -> &'static str {
        match self {
            Peer::Many => "ringpipe",
            Peer::FdPipe => "fd pipe",
            Peer::One => "one to one",
            Peer::ManyInThreads => "in threads",
            Peer::Crossbeam => "crossbeam",
        }
    }

    fn takes_part(self, case: Case) -> bool {
        self != Peer::One || case.senders == 1 && case.receivers == 1
    }

    /// Nanoseconds for each of so many messages.
    fn round(self, board: &'static Board, case: Case, messages: u64) -> f64 {
        board.reset();
        match self {
            Peer::Many => processes(board, case, messages, mpmc::simplex().unwrap(), send_many, recv_many),
            Peer::One => processes(board, case, messages, ringpipe::simplex().unwrap(), send_one, recv_one),
            Peer::FdPipe => {
                let mut fds = [0; 2];
                // SAFETY: the call fills in two descriptors, which are ours.
                let [from, to] = unsafe {
                    assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
                    libc::fcntl(fds[1], libc::F_SETPIPE_SZ, ringpipe::DEFAULT_CAPACITY as i32);
                    fds.map(|fd| File::from(OwnedFd::from_raw_fd(fd)))
                };
                processes(
                    board,
                    case,
                    messages,
                    (from, to),
                    |to, message, count| send_fd(board, to, message, count),
                    |from, buf| recv_fd(board, from, buf),
                )
            }
            Peer::ManyInThreads => threads(board, case, messages, mpmc::simplex().unwrap(), send_many, recv_many),
            Peer::Crossbeam => match case.size {
                8 => crossbeam::<8>(board, case, messages),
                64 => crossbeam::<64>(board, case, messages),
                1024 => crossbeam::<1024>(board, case, messages),
                size => panic!("a message of {size} bytes is none of those compiled in"),
            },
        }
    }
}

fn send_many(sender: mpmc::Sender, message: &[u8], count: u64) {
    for _ in 0..count {
        sender.send_bytes(message).unwrap();
    }
}

fn recv_many(receiver: mpmc::Receiver, buf: &mut [u8]) -> u64 {
    let mut received = 0;
    while let Ok(len) = receiver.recv_bytes_into(buf, 0) {
        assert_eq!(len, buf.len());
        received += 1;
    }
    received
}

fn send_one(mut sender: ringpipe::Sender, message: &[u8], count: u64) {
    for _ in 0..count {
        sender.send_bytes(message).unwrap();
    }
}

fn recv_one(mut receiver: ringpipe::Receiver, buf: &mut [u8]) -> u64 {
    let mut received = 0;
    while let Ok(len) = receiver.recv_bytes_into(buf, 0) {
        assert_eq!(len, buf.len());
        received += 1;
    }
    received
}

fn send_fd(board: &Board, mut to: File, message: &[u8], count: u64) {
    let framed = [&(message.len() as u32).to_le_bytes()[..], message].concat();
    for _ in 0..count {
        let _locked = lock(&board.locks[0]);
        to.write_all(&framed).unwrap();
    }
}

fn recv_fd(board: &Board, mut from: File, buf: &mut [u8]) -> u64 {
    let (mut received, mut len) = (0, [0; 4]);
    loop {
        let _locked = lock(&board.locks[1]);
        if from.read_exact(&mut len).is_err() {
            return received;
        }
        from.read_exact(&mut buf[..u32::from_le_bytes(len) as usize]).unwrap();
        received += 1;
    }
}

/// How many messages sender number `i` sends.
fn share(case: Case, messages: u64, i: usize) -> u64 {
    let senders = case.senders as u64;
    messages / senders + u64::from((i as u64) < messages % senders)
}

/// A round between processes.
fn processes<R, S>(
    board: &Board,
    case: Case,
    messages: u64,
    ends: (R, S),
    send: impl Fn(S, &[u8], u64),
    recv: impl Fn(R, &mut [u8]) -> u64,
) -> f64 {
    let mut ends = Some(ends);
    let pinned = case.senders == 1 && case.receivers == 1;
    let children: Vec<libc::pid_t> = (0..case.senders + case.receivers)
        .map(|i| {
            // SAFETY: this process has one thread, so the child can go on as it likes.
            let pid = unsafe { libc::fork() };
            assert!(pid >= 0);
            if pid > 0 {
                return pid;
            }
            let (receiver, sender) = ends.take().expect("only children take them");
            if pinned {
                support::pin(support::processors()[i]);
            }
            let mut buf = vec![7; case.size];
            if i < case.senders {
                drop(receiver);
                board.await_start();
                send(sender, &buf, share(case, messages, i));
            } else {
                drop(sender);
                board.await_start();
                board.note_end(recv(receiver, &mut buf));
            }
            // SAFETY: never returns.
            unsafe { libc::_exit(0) }
        })
        .collect();
    drop(ends);
    board.go(children.len());
    for pid in children {
        let mut status = 0;
        // SAFETY: a child of ours, which ends by itself.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0, "a process failed");
    }
    board.outcome(messages)
}

/// A round between threads of this process.
fn threads<R: Clone + Send, S: Clone + Send>(
    board: &Board,
    case: Case,
    messages: u64,
    (receiver, sender): (R, S),
    send: impl Fn(S, &[u8], u64) + Sync,
    recv: impl Fn(R, &mut [u8]) -> u64 + Sync,
) -> f64 {
    let pinned = case.senders == 1 && case.receivers == 1;
    let (send, recv) = (&send, &recv);
    let cpus = support::processors();
    std::thread::scope(|scope| {
        for i in 0..case.senders {
            let sender = sender.clone();
            scope.spawn(move || {
                if pinned {
                    support::pin(cpus[0]);
                }
                board.await_start();
                send(sender, &vec![7; case.size], share(case, messages, i));
            });
        }
        for _ in 0..case.receivers {
            let receiver = receiver.clone();
            scope.spawn(move || {
                if pinned {
                    support::pin(cpus[1]);
                }
                board.await_start();
                board.note_end(recv(receiver, &mut vec![1; case.size]));
            });
        }
        drop((receiver, sender));
        board.go(case.senders + case.receivers);
    });
    board.outcome(messages)
}

fn crossbeam<const SIZE: usize>(board: &Board, case: Case, messages: u64) -> f64 {
    let (sender, receiver) = crossbeam_channel::bounded::<[u8; SIZE]>(CHANNEL);
    let send = |sender: crossbeam_channel::Sender<[u8; SIZE]>, message: &[u8], count: u64| {
        let message = message.try_into().expect("of that size");
        for _ in 0..count {
            sender.send(message).unwrap();
        }
    };
    let recv = |receiver: crossbeam_channel::Receiver<[u8; SIZE]>, buf: &mut [u8]| {
        let mut received = 0;
        while let Ok(message) = receiver.recv() {
            buf.copy_from_slice(&message);
            std::hint::black_box(&mut *buf);
            received += 1;
        }
        received
    };
    threads(board, case, messages, (receiver, sender), send, recv)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let (mut rounds, mut cases) = (9, Vec::new());
    let mut arguments = std::env::args().skip(1);
    // As `cargo test` runs it: once through everything, for no figures.
    let mut trial = true;
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--bench" => trial = false,
            "--quick" => rounds = 3,
            "--rounds" => rounds = arguments.next().and_then(|n| n.parse().ok()).expect("--rounds takes a number"),
            case => cases.push(parse(case).unwrap_or_else(|| panic!("{case} is no case: say 4x4:64"))),
        }
    }
    if cases.is_empty() {
        for size in [8, 64, 1024] {
            cases.extend([(1, 1), (2, 2), (4, 4), (1, 4), (4, 1)].map(|(senders, receivers)| Case {
                senders,
                receivers,
                size,
            }));
        }
    }
    let board = Board::new();
    println!(
        "{:<14} {:>12} {:>12} {:>12} {:>12} {:>12}   ringpipe is better by",
        "ns a message", "ringpipe", "fd pipe", "one to one", "in threads", "crossbeam"
    );
    for case in cases {
        let peers: Vec<Peer> = Peer::ALL.into_iter().filter(|peer| peer.takes_part(case)).collect();
        // As many messages as make a round, from a first one that does not count.
        let messages: Vec<u64> = peers
            .iter()
            .map(|peer| match trial {
                true => 100,
                false => (ROUND.as_nanos() as f64 / peer.round(board, case, 20_000)) as u64,
            })
            .collect();
        let mut times = vec![Vec::new(); peers.len()];
        for _ in 0..if trial { 1 } else { rounds } {
            for (i, peer) in peers.iter().enumerate() {
                times[i].push(peer.round(board, case, messages[i].max(100)));
            }
        }
        report(case, &peers, &times);
    }
}

fn parse(text: &str) -> Option<Case> {
    let (sides, size) = text.split_once(':')?;
    let (senders, receivers) = sides.split_once('x')?;
    Some(Case { senders: senders.parse().ok()?, receivers: receivers.parse().ok()?, size: size.parse().ok()? })
}

fn report(case: Case, peers: &[Peer], times: &[Vec<f64>]) {
    let of = |peer| peers.iter().position(|&p| p == peer).map(|i| &times[i]);
    let ratio = |theirs, ours| {
        let (theirs, ours) = (of(theirs)?, of(ours)?);
        Some(median(theirs.iter().zip(ours).map(|(theirs, ours)| theirs / ours).collect()))
    };
    print!("{:<14}", format!("{}x{} {} B", case.senders, case.receivers, case.size));
    for peer in Peer::ALL {
        match of(peer) {
            Some(times) => print!(" {:>12.1}", median(times.clone())),
            None => print!(" {:>12}", "-"),
        }
    }
    print!("  ");
    for (theirs, ours) in [(Peer::FdPipe, Peer::Many), (Peer::Crossbeam, Peer::ManyInThreads), (Peer::One, Peer::Many)]
    {
        if let Some(ratio) = ratio(theirs, ours) {
            print!(" {ratio:.2} ({})", theirs.name());
        }
    }
    println!();
}
