//! A pipe for many in a storm of kills: four processes send, four receive, and all the time one of them is killed, or stopped for a while, and another
//! takes its place.
//!
//! Every message says who sent it and which of theirs it is, and is checked in full. Who receives one marks it in shared memory, so a message that
//! arrives twice is seen; what was sent and is not marked in the end is lost, which may be one message for each receiver that was killed.
//!
//! `RINGPIPE_KILLS=10000 cargo test --release --test storm -- --nocapture` is the long form.

mod support;

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringpipe::mpmc::{Receiver, Sender};
use ringpipe::{Builder, RecvError};
use support::{Child, Random, Script, Shared, alone, fork_copy, watchdog};

const CAPACITY: usize = 64 << 10;
const SIDE: usize = 4;
/// Messages of one sender that there is a mark for.
const MARKS: usize = 1 << 27;
/// Nothing takes so long unless everybody is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

fn kills(short: usize) -> usize {
    std::env::var("RINGPIPE_KILLS").map_or(short, |n| n.parse().expect("RINGPIPE_KILLS is a number"))
}

/// What all processes share.
struct Board {
    words: Shared,
    marks: Shared,
}

impl Board {
    const OVER: usize = 0;
    const RECEIVED: usize = 1;
    const FAULTS: usize = 2;
    /// For each sender: the next message, as it is begun, and those that are sent for certain.
    const BEGUN: usize = 16;
    const SENT: usize = 32;

    fn new() -> Board {
        Board { words: Shared::new(), marks: Shared::with_words(SIDE * MARKS / 64) }
    }

    /// Marks a message as received. False if it was marked before.
    fn mark(&self, from: usize, n: u64) -> bool {
        let bit = 1 << (n % 64);
        let word = self.marks.word(from * MARKS / 64 + n as usize / 64);
        word.fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    fn is_marked(&self, from: usize, n: u64) -> bool {
        self.marks.get(from * MARKS / 64 + n as usize / 64) >> (n % 64) & 1 == 1
    }

    fn fault(&self) -> i32 {
        self.words.word(Board::FAULTS).fetch_add(1, Ordering::SeqCst);
        1
    }
}

/// Now and then one that is longer than a record, or than the ring.
fn script(from: usize) -> [Script; 2] {
    [Script::short(from as u64), Script::mixed(from as u64, CAPACITY)]
}

fn message(from: usize, n: u64) -> &'static [u8] {
    script(from)[usize::from(n % 97 == 96)].message(n)
}

fn head(from: usize, n: u64) -> [u8; 16] {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&(from as u64).to_le_bytes());
    head[8..].copy_from_slice(&n.to_le_bytes());
    head
}

fn send(sender: &Sender, board: &Board, me: usize, seed: u64) -> i32 {
    let mut random = Random::new(seed);
    let (begun, sent) = (board.words.word(Board::BEGUN + me), board.words.word(Board::SENT + me));
    while board.words.get(Board::OVER) == 0 {
        let n = begun.fetch_add(1, Ordering::SeqCst);
        assert!((n as usize) < MARKS);
        let (head, body) = (head(me, n), message(me, n));
        let parts = [IoSlice::new(&head), IoSlice::new(body)];
        let len = head.len() + body.len();
        let result = match random.below(8) {
            0 if len <= sender.max_reserve() => {
                // One is begun and given up.
                drop(sender.reserve(1 + random.below(300) as usize));
                sender.reserve(len + random.below(2) as usize * 8).and_then(|mut guard| {
                    guard.write(&head);
                    guard.write(body);
                    guard.commit()
                })
            }
            1 => sender.send_bytes(&[&head, body].concat()),
            2 => sender.send_vectored_timeout(&parts, PATIENCE),
            _ => sender.send_vectored(&parts),
        };
        if result.is_err() {
            return board.fault();
        }
        sent.store(n + 1, Ordering::SeqCst);
        if random.below(200) == 0 {
            std::thread::sleep(Duration::from_micros(random.below(8000)));
        }
    }
    0
}

fn receive(receiver: &Receiver, board: &Board, seed: u64) -> i32 {
    let mut random = Random::new(seed);
    let mut last = [None; SIDE];
    let mut buf = vec![0; 4 * CAPACITY];
    loop {
        let result = match random.below(6) {
            0 => receiver.recv_guard().map(|guard| {
                if random.below(50) == 0 {
                    std::thread::sleep(Duration::from_micros(random.below(2000)));
                }
                guard.to_vec()
            }),
            1 => loop {
                match receiver.try_recv_bytes() {
                    Err(RecvError::Empty) => drop(support::epoll(receiver.as_fd(), PATIENCE)),
                    result => break result,
                }
            },
            2 => match receiver.recv_bytes_into(&mut buf, 0) {
                Ok(len) => Ok(buf[..len].to_vec()),
                Err(ringpipe::RecvIntoError::Recv(e)) => Err(e),
                Err(_) => return board.fault(),
            },
            3 => receiver.poll(Some(PATIENCE)).and_then(|_| receiver.recv_bytes()),
            4 => receiver.recv_bytes_timeout(PATIENCE),
            _ => receiver.recv_bytes(),
        };
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(RecvError::Disconnected) => return 0,
            Err(_) => return board.fault(),
        };
        if bytes.len() < 16 {
            return board.fault();
        }
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let (from, n) = (number(0) as usize, number(8));
        let whole = from < SIDE && n < MARKS as u64 && bytes[16..] == *message(from, n);
        if !whole || last[from] >= Some(n) || !board.mark(from, n) {
            return board.fault();
        }
        last[from] = Some(n);
        board.words.word(Board::RECEIVED).fetch_add(1, Ordering::Relaxed);
        if random.below(500) == 0 {
            std::thread::sleep(Duration::from_micros(random.below(8000)));
        }
    }
}

#[test]
fn four_senders_and_four_receivers_in_a_storm_of_kills() {
    let _alone = alone();
    let wanted = kills(400);
    let _watchdog = watchdog(60 + wanted as u32 / 20);
    let board = Board::new();
    // Made before anybody forks.
    script(0);
    let (receiver, sender) = Builder::new().capacity(CAPACITY).mpmc().unwrap();
    let mut random = Random::new(7);
    let mut ends = (receiver, sender);
    let start = |i: usize, seed: u64, ends: (Receiver, Sender)| -> (Child, (Receiver, Sender)) {
        fork_copy(ends, |(receiver, sender)| match i < SIDE {
            true => {
                drop(receiver);
                send(&sender, &board, i, seed)
            }
            false => {
                drop(sender);
                receive(&receiver, &board, seed)
            }
        })
    };
    let mut children = Vec::new();
    for i in 0..2 * SIDE {
        let child;
        (child, ends) = start(i, random.next(), ends);
        children.push(child);
    }
    let (mut killed, mut stopped, mut maybe) = ([0, 0], 0, Vec::new());
    let mut progress = (0, Instant::now());
    let began = Instant::now();
    while killed[0] + killed[1] < wanted {
        std::thread::sleep(Duration::from_micros(random.below(2500)));
        let i = random.below(2 * SIDE as u64) as usize;
        if random.below(6) == 0 {
            stopped += 1;
            children[i].stop();
            std::thread::sleep(Duration::from_micros(random.below(12_000)));
            children[i].resume();
            continue;
        }
        children[i].kill();
        let status = children[i].wait();
        assert!(status.was_killed(), "number {i} ended by itself: {status:?}");
        killed[i / SIDE] += 1;
        if i < SIDE {
            let (begun, sent) = (board.words.get(Board::BEGUN + i), board.words.get(Board::SENT + i));
            // Of the one that it was about to send, nobody knows.
            maybe.extend((begun > sent).then_some((i, sent)));
            board.words.set(Board::SENT + i, begun);
        }
        (children[i], ends) = start(i, random.next(), ends);
        let received = board.words.get(Board::RECEIVED);
        if received > progress.0 {
            progress = (received, Instant::now());
        }
        assert!(progress.1.elapsed() < PATIENCE, "nothing received for {PATIENCE:?}");
    }
    let took = began.elapsed();
    board.words.set(Board::OVER, 1);
    let (receiver, sender) = ends;
    children[..SIDE].iter().for_each(Child::succeeds);
    drop(sender);
    children[SIDE..].iter().for_each(Child::succeeds);
    assert_eq!(receiver.try_recv_bytes().map_err(|e| matches!(e, RecvError::Disconnected)), Err(true));

    assert_eq!(board.words.get(Board::FAULTS), 0);
    let (mut lost, mut sent) = (0, 0);
    for from in 0..SIDE {
        for n in 0..board.words.get(Board::SENT + from) {
            let arrived = board.is_marked(from, n);
            sent += 1;
            lost += usize::from(!arrived && !maybe.contains(&(from, n)));
        }
    }
    println!(
        "{} senders and {} receivers killed, {stopped} stopped, in {took:.1?}: {sent} messages, {} perhaps not sent, {lost} lost",
        killed[0],
        killed[1],
        maybe.len()
    );
    assert!(lost <= killed[1], "{lost} messages lost, and only {} receivers killed", killed[1]);
    assert!(sent > 20 * wanted as u64, "hardly anything was sent");
}
