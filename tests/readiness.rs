//! When ends are ready: `ringpipe::wait`, and the descriptors that ends lend to `poll`, `select`, `epoll` and mio.
//!
//! A wake-up that is lost is made up for after a second, so whoever waits here is given less than that.

mod support;

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use ringpipe::{Receiver, RecvError, Sender, Waitable, mpmc, simplex, wait};
use support::{Leave, Random, Shared, for_ever, fork, fork_split, guard, guard_for, readable};

/// Well below the second after which a lost wake-up is made up for, and longer than a busy machine keeps anybody waiting.
const PATIENCE: Duration = Duration::from_millis(500);
const MOMENT: Duration = Duration::from_millis(20);

fn ready(ends: &[&dyn Waitable]) -> Vec<usize> {
    wait(ends, Some(Duration::ZERO)).unwrap()
}

// --- wait, case by case -------------------------------------------------------------------------------

#[test]
fn those_that_are_ready_are_named_in_order() {
    let (_alone, _watchdog) = guard();
    let (pipes, mut senders): (Vec<_>, Vec<_>) = (0..5).map(|_| simplex().unwrap()).unzip();
    let ends: Vec<&dyn Waitable> = pipes.iter().map(|end| end as &dyn Waitable).collect();
    assert!(ready(&ends).is_empty());
    for i in [3, 1] {
        senders[i].send_bytes(b"here").unwrap();
    }
    assert_eq!(ready(&ends), [1, 3]);
    assert_eq!(wait(&ends, None).unwrap(), [1, 3], "nothing has been taken");
    drop(senders.remove(4));
    assert_eq!(wait(&ends, Some(PATIENCE)).unwrap(), [1, 3, 4], "end of file counts");
}

#[test]
fn a_time_out_is_kept_and_names_nobody() {
    let (_alone, _watchdog) = guard();
    let (receiver, _sender) = simplex().unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    for timeout in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(30), Duration::from_millis(1100)] {
        let start = Instant::now();
        assert!(wait(&[&receiver, &socket], Some(timeout)).unwrap().is_empty());
        let took = start.elapsed();
        assert!(timeout <= took && took < timeout + PATIENCE, "{took:?} instead of {timeout:?}");
        let start = Instant::now();
        assert!(wait(&[], Some(timeout)).unwrap().is_empty());
        assert!(start.elapsed() >= timeout);
    }
}

#[test]
fn to_wait_for_nothing_for_ever_is_an_error() {
    let error = wait(&[], None).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("pass an end"), "{error}");
}

#[test]
fn an_end_that_has_been_emptied_is_not_ready() {
    let (_alone, _watchdog) = guard();
    let (mut receiver, mut sender) = simplex().unwrap();
    let (connection, mut other) = ringpipe::pipe().unwrap();
    for round in 0..50 {
        sender.send_bytes(b"one").unwrap();
        sender.send_bytes(b"two").unwrap();
        assert_eq!(wait(&[&connection, &receiver], Some(PATIENCE)).unwrap(), [1], "round {round}");
        receiver.recv_bytes().unwrap();
        assert_eq!(wait(&[&connection, &receiver], Some(PATIENCE)).unwrap(), [1], "round {round}, one left");
        receiver.recv_bytes().unwrap();
        let timeout = [Duration::ZERO, Duration::from_millis(1)][round % 2];
        assert!(wait(&[&connection, &receiver], Some(timeout)).unwrap().is_empty(), "round {round}, none left");
    }
    other.send_bytes(b"here").unwrap();
    assert_eq!(wait(&[&connection, &receiver], None).unwrap(), [0]);
}

#[test]
fn every_kind_of_message_is_found_and_padding_is_not() {
    let (_alone, _watchdog) = guard();
    // Some lengths leave padding behind at the end of the ring in each round, some need it before them.
    for len in [0, 8, 900, 1000, 1016, 5000] {
        let (mut receiver, mut sender) = ringpipe::Builder::new().capacity(4096).simplex().unwrap();
        for round in 0..40 {
            assert!(ready(&[&receiver]).is_empty(), "{len} bytes, round {round}");
            let message = vec![round as u8; len];
            std::thread::scope(|scope| {
                scope.spawn(|| sender.send_bytes(&message).unwrap());
                assert_eq!(wait(&[&receiver], Some(PATIENCE)).unwrap(), [0], "{len} bytes, round {round}");
                assert_eq!(receiver.recv_bytes().unwrap(), message);
            });
        }
    }
}

#[test]
fn a_long_message_that_was_taken_back_is_nothing_once_it_was_passed_over() {
    let (_alone, _watchdog) = guard();
    let (mut receiver, mut sender) = ringpipe::Builder::new().capacity(4096).simplex().unwrap();
    assert!(sender.send_bytes_timeout(&[1; 100_000], MOMENT).is_err());
    assert_eq!(ready(&[&receiver]), [0], "it had started");
    while ready(&[&receiver]) == [0] {
        assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
    }
    assert!(wait(&[&receiver], Some(MOMENT)).unwrap().is_empty());
    sender.send_bytes(b"next").unwrap();
    assert_eq!(ready(&[&receiver]), [0]);
    assert_eq!(receiver.recv_bytes().unwrap(), b"next");
}

#[test]
fn an_end_that_has_ended_is_ready() {
    let (_alone, _watchdog) = guard();
    let (mut receiver, mut sender) = simplex().unwrap();
    sender.send_bytes(b"too long").unwrap();
    assert!(matches!(receiver.recv_bytes_max(3), Err(RecvError::TooLong { .. })));
    assert_eq!(wait(&[&receiver], None).unwrap(), [0], "a receive would not wait");
    let (receiver, sender) = mpmc::simplex().unwrap();
    sender.send_bytes(b"too long").unwrap();
    let other = receiver.clone();
    assert!(matches!(receiver.recv_bytes_max(3), Err(RecvError::TooLong { .. })));
    assert_eq!(other.recv_bytes().unwrap(), b"too long");
    assert_eq!(ready(&[&other, &receiver]), [1]);
}

#[test]
fn sockets_and_ends_mix_and_references_do() {
    let (_alone, _watchdog) = guard();
    let (receiver, mut sender) = simplex().unwrap();
    let (many, many_sender) = mpmc::simplex().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let (boxed, owned): (Box<dyn Waitable>, OwnedFd) = (Box::new(many), socket.try_clone().unwrap().into());
    let borrowed = socket.as_fd();
    let ends: [&dyn Waitable; 6] = [&socket, &receiver, &boxed, &owned, &&receiver, &borrowed];
    assert!(ready(&ends).is_empty());
    peer.write_all(b"x").unwrap();
    assert_eq!(wait(&ends, None).unwrap(), [0, 3, 5]);
    many_sender.send_bytes(b"x").unwrap();
    assert_eq!(wait(&ends, None).unwrap(), [0, 2, 3, 5]);
    sender.send_bytes(b"x").unwrap();
    assert_eq!(wait(&ends, None).unwrap(), [0, 1, 2, 3, 4, 5]);
    drop((sender, peer));
    assert_eq!(wait(&ends, None).unwrap(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_sleeper_is_woken_by_each_sort_of_end() {
    let (_alone, _watchdog) = guard();
    let (receiver, mut sender) = simplex().unwrap();
    let (many, many_sender) = mpmc::simplex().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let wakers: [(usize, &mut (dyn FnMut() + Send)); 3] = [
        (0, &mut || sender.send_bytes(b"x").unwrap()),
        (1, &mut || many_sender.send_bytes(b"x").unwrap()),
        (2, &mut || peer.write_all(b"x").unwrap()),
    ];
    let mut expected = Vec::new();
    for (index, waker) in wakers {
        let rest: Vec<&dyn Waitable> = [&receiver as &dyn Waitable, &many, &socket].into_iter().skip(index).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(MOMENT);
                waker();
            });
            let start = Instant::now();
            assert_eq!(wait(&rest, None).unwrap(), [0]);
            assert!(start.elapsed() < PATIENCE, "{index}: {:?}", start.elapsed());
        });
        expected.push(index);
        assert_eq!(ready(&[&receiver, &many, &socket]), expected);
    }
}

#[test]
fn three_hundred_ends_are_waited_for_at_once() {
    const ENDS: usize = 300;
    const ROUNDS: u64 = 2000;
    let (_alone, _watchdog) = guard();
    let (receivers, senders): (Vec<Receiver>, Vec<Sender>) =
        (0..ENDS).map(|_| ringpipe::Builder::new().capacity(4096).simplex().unwrap()).unzip();
    let rounds = Shared::new();
    let (child, mut receivers) = fork_split(receivers, senders, |mut senders| {
        let mut random = Random::new(5);
        for round in 0..ROUNDS {
            rounds.await_at_least(0, round);
            std::thread::sleep(Duration::from_micros(random.below(60)));
            senders[random.below(ENDS as u64) as usize].send_bytes(&round.to_le_bytes()).unwrap();
        }
        rounds.await_at_least(0, ROUNDS);
        0
    });
    for round in 0..ROUNDS {
        let ends: Vec<&dyn Waitable> = receivers.iter().map(|end| end as &dyn Waitable).collect();
        rounds.set(0, round);
        let found = wait(&ends, Some(PATIENCE)).unwrap();
        assert_eq!(found.len(), 1, "round {round}: {found:?}");
        assert_eq!(receivers[found[0]].try_recv_bytes().unwrap(), round.to_le_bytes());
    }
    rounds.set(0, ROUNDS);
    child.succeeds();
    let ends: Vec<&dyn Waitable> = receivers.iter().map(|end| end as &dyn Waitable).collect();
    assert!(wait(&ends, Some(PATIENCE)).unwrap().into_iter().eq(0..ENDS), "all peers are gone");
}

// --- data that comes while the loop arms --------------------------------------------------------------

/// Waits until one of `ends` may be ready, or the time has passed.
type Loop = fn(&mut Watcher, Duration) -> bool;

/// What loops keep between their waits.
struct Watcher {
    fds: Vec<RawFd>,
    epoll: OwnedFd,
    mio: Poll,
}

impl Watcher {
    fn new(fds: &[BorrowedFd<'_>], edge: bool) -> Watcher {
        // SAFETY: the descriptor is fresh, and nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        let mio = Poll::new().unwrap();
        for (i, fd) in fds.iter().enumerate() {
            let events = libc::EPOLLIN | if edge { libc::EPOLLET } else { 0 };
            let mut event = libc::epoll_event { events: events as u32, u64: i as u64 };
            // SAFETY: both descriptors are open, and `event` outlives the call.
            let added = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) };
            assert_eq!(added, 0);
            mio.registry().register(&mut SourceFd(&fd.as_raw_fd()), Token(i), Interest::READABLE).unwrap();
        }
        Watcher { fds: fds.iter().map(AsRawFd::as_raw_fd).collect(), epoll, mio }
    }

    fn poll(&mut self, timeout: Duration) -> bool {
        let mut fds: Vec<_> =
            self.fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
        // SAFETY: the pointer and the length are the vector's.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout.as_millis() as libc::c_int) > 0 }
    }

    fn select(&mut self, timeout: Duration) -> bool {
        // SAFETY: `fd_set` is plain data, for which zeros are valid.
        let mut set: libc::fd_set = unsafe { std::mem::zeroed() };
        for &fd in &self.fds {
            assert!((fd as usize) < libc::FD_SETSIZE);
            // SAFETY: within the set, as just checked.
            unsafe { libc::FD_SET(fd, &mut set) };
        }
        let most = self.fds.iter().max().unwrap() + 1;
        let mut time = libc::timeval { tv_sec: timeout.as_secs() as _, tv_usec: timeout.subsec_micros() as _ };
        // SAFETY: all pointers lead to values of ours, or nowhere.
        unsafe { libc::select(most, &mut set, std::ptr::null_mut(), std::ptr::null_mut(), &mut time) > 0 }
    }

    fn epoll(&mut self, timeout: Duration) -> bool {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: the pointer leads to one event.
        unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &mut event, 1, timeout.as_millis() as libc::c_int) > 0 }
    }

    fn mio(&mut self, timeout: Duration) -> bool {
        let mut events = Events::with_capacity(8);
        self.mio.poll(&mut events, Some(timeout)).unwrap();
        !events.is_empty()
    }
}

/// Another process sends to one end after another, at random moments around those in which the loop here goes to sleep. Each message has to end the sleep.
fn woken_by_each(rounds: u64, limit: Duration, mut sleep: impl FnMut(&mut [Receiver], Duration) -> bool) {
    const ENDS: usize = 3;
    let shared = Shared::new();
    let (receivers, senders): (Vec<Receiver>, Vec<Sender>) = (0..ENDS).map(|_| simplex().unwrap()).unzip();
    let (child, mut receivers) = fork_split(receivers, senders, |mut senders| {
        let mut random = Random::new(rounds);
        for round in 0..rounds {
            while shared.get(0) <= round {
                std::hint::spin_loop();
            }
            // Mostly short: to arm takes a few microseconds.
            let longest = 1 << random.below(12);
            for _ in 0..random.below(longest) {
                std::hint::spin_loop();
            }
            // One or several at once, of which the later ones may find the bell disarmed.
            for i in 0..1 + random.below(2) * random.below(3) {
                senders[(round + i) as usize % ENDS].send_bytes(&round.to_le_bytes()).unwrap();
            }
            shared.set(1, round + 1);
        }
        0
    });
    let mut worst = Duration::ZERO;
    let mut received = 0;
    for round in 0..rounds {
        shared.set(0, round + 1);
        let start = Instant::now();
        loop {
            assert!(sleep(&mut receivers, limit), "round {round}: nobody woke the loop, {:?}", start.elapsed());
            let got: usize = receivers.iter_mut().map(|end| end.try_iter().map(Result::unwrap).count()).sum();
            received += got;
            // Woken for nothing, which may happen, or by all that there will be, or by a part of it.
            if got > 0 {
                break;
            }
        }
        worst = worst.max(start.elapsed());
        // Those of this round that come later.
        shared.await_at_least(1, round + 1);
        received += receivers.iter_mut().map(|end| end.try_iter().map(Result::unwrap).count()).sum::<usize>();
    }
    child.succeeds();
    assert!(received as u64 >= rounds && worst < limit, "{received} messages, {worst:?} at worst");
    assert!(sleep(&mut receivers, limit), "end of file");
}

/// In these loops nothing makes up for a wake-up that is lost, so they can be given time, on a machine that others keep busy.
const LONG: Duration = Duration::from_secs(5);
/// `wait` looks again after a second.
const SHORT: Duration = Duration::from_millis(800);

const ROUNDS: u64 = 4000;

/// Who is told that there is a message may receive it without waiting, although another may have been received just before its sender rang for it.
///
/// A sender that is stopped for long between the two may ring for nothing; without what prevents it, one reading in ten or twenty is for nothing.
#[test]
fn a_descriptor_is_readable_for_a_reason() {
    let (_alone, _watchdog) = guard();
    let (receiver, sender) = simplex().unwrap();
    let messages = 30_000_u64;
    let (child, mut receiver) = fork_split(receiver, sender, move |mut sender| {
        let mut random = Random::new(messages);
        for n in 0..messages {
            sender.send_bytes(&n.to_le_bytes()).unwrap();
            let longest = 1 << random.below(14);
            for _ in 0..random.below(longest) {
                std::hint::spin_loop();
            }
        }
        0
    });
    let mut watcher = Watcher::new(&[receiver.as_fd()], false);
    let (mut received, mut readings, mut vain) = (0, 0, 0);
    while received < messages {
        assert!(watcher.poll(LONG), "{received} received");
        readings += 1;
        // All that there are, or only some: the next reading is then for those that are left.
        let most = if readings % 2 == 0 { usize::MAX } else { 1 };
        let before = received;
        for message in receiver.try_iter().take(most) {
            assert_eq!(message.unwrap(), received.to_le_bytes());
            received += 1;
        }
        vain += u64::from(received == before);
    }
    child.succeeds();
    println!("{vain} of {readings} readings for nothing");
    assert!(readings > 1000 && vain * 500 <= readings, "{vain} of {readings} readings for nothing");
}

/// Several threads watch the descriptor of a pipe for many, and receive when it is readable. It is, for as long as there is a message (L1, L2), although
/// each of them silences the bell when it finds nothing more.
#[test]
fn a_message_is_announced_though_several_settle_the_bell() {
    let (_alone, _watchdog) = guard_for(400);
    let (receiver, sender) = mpmc::simplex().unwrap();
    let (received, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let lost = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut watcher = Watcher::new(&[receiver.as_fd()], false);
                while !over.load(Ordering::SeqCst) {
                    if watcher.poll(Duration::from_millis(100)) {
                        received.fetch_add(receiver.try_iter().map(Result::unwrap).count() as u64, Ordering::SeqCst);
                    }
                }
            });
        }
        let (start, mut sent, mut lost) = (Instant::now(), 0, false);
        while !lost && start.elapsed() < settling_time() {
            for _ in 0..1 + sent % 3 {
                sender.send_bytes(b"message").unwrap();
                sent += 1;
            }
            let since = Instant::now();
            while !lost && received.load(Ordering::SeqCst) < sent {
                lost = since.elapsed() > LONG && !receiver.is_empty();
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::SeqCst);
        lost.then_some(sent)
    });
    assert_eq!(lost, None, "the descriptor is not readable, and there is a message");
}

/// Where that was not so, it took some 50 s to show: `RINGPIPE_SETTLE_SECONDS=300` is the long form.
fn settling_time() -> Duration {
    Duration::from_secs(std::env::var("RINGPIPE_SETTLE_SECONDS").map_or(5, |seconds| seconds.parse().unwrap()))
}

/// Among more ends, more time passes between the look at one and its arming.
#[test]
fn wait_is_woken_by_each_message() {
    let (_alone, _watchdog) = guard_for(100);
    for bystanders in [0, 100] {
        let (quiet, _senders): (Vec<Receiver>, Vec<Sender>) = (0..bystanders).map(|_| simplex().unwrap()).unzip();
        woken_by_each(2 * ROUNDS, SHORT, |receivers, timeout| {
            let ends: Vec<&dyn Waitable> = receivers.iter().chain(&quiet).map(|end| end as &dyn Waitable).collect();
            let found = wait(&ends, Some(timeout)).unwrap();
            for &i in &found {
                assert!(receivers[i].poll(Some(Duration::ZERO)).unwrap(), "{i} is ready for nothing");
            }
            !found.is_empty()
        });
    }
}

#[test]
fn loops_of_the_system_are_woken_by_each_message() {
    let (_alone, _watchdog) = guard_for(200);
    let loops: [(&str, bool, Loop); 5] = [
        ("poll", false, Watcher::poll),
        ("select", false, Watcher::select),
        ("epoll, level", false, Watcher::epoll),
        ("epoll, edge", true, Watcher::epoll),
        ("mio", true, Watcher::mio),
    ];
    for (name, edge, sleep) in loops {
        println!("{name}");
        let mut watcher = None;
        woken_by_each(ROUNDS, LONG, |receivers, timeout| {
            let watcher = watcher.get_or_insert_with(|| {
                let fds: Vec<BorrowedFd<'_>> = receivers.iter().map(AsFd::as_fd).collect();
                Watcher::new(&fds, edge)
            });
            sleep(watcher, timeout)
        });
    }
}

/// One process takes turns between all ways to wait, on the same ends.
#[test]
fn all_ways_to_wait_mix() {
    let (_alone, _watchdog) = guard_for(100);
    let mut turn = 0;
    let mut watcher = None;
    woken_by_each(ROUNDS, SHORT, |receivers, timeout| {
        turn += 1;
        if turn % 3 == 0 {
            return receivers[turn % 2].poll(Some(Duration::ZERO)).unwrap() || {
                let ends: Vec<&dyn Waitable> = receivers.iter().map(|end| end as &dyn Waitable).collect();
                !wait(&ends, Some(timeout)).unwrap().is_empty()
            };
        }
        if turn % 3 == 1 {
            let ends: Vec<&dyn Waitable> = receivers.iter().map(|end| end as &dyn Waitable).collect();
            return !wait(&ends, Some(timeout)).unwrap().is_empty();
        }
        let watcher = watcher.get_or_insert_with(|| {
            let fds: Vec<BorrowedFd<'_>> = receivers.iter().map(AsFd::as_fd).collect();
            Watcher::new(&fds, false)
        });
        watcher.poll(timeout)
    });
}

// --- several threads, and pipes for many --------------------------------------------------------------

#[test]
fn threads_that_wait_for_pipes_for_many_get_every_message() {
    const PIPES: usize = 4;
    const MESSAGES: u64 = 6000;
    let (_alone, _watchdog) = guard();
    let (receivers, senders): (Vec<_>, Vec<_>) = (0..PIPES).map(|_| mpmc::simplex().unwrap()).unzip();
    let taken = std::sync::Mutex::new(Vec::new());
    let (child, receivers) = fork_split(receivers, senders, |senders| {
        let mut random = Random::new(9);
        for i in 0..MESSAGES {
            if i % 3 == 0 {
                std::thread::sleep(Duration::from_micros(random.below(40)));
            }
            senders[random.below(PIPES as u64) as usize].send_bytes(&i.to_le_bytes()).unwrap();
        }
        0
    });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let ends: Vec<&dyn Waitable> = receivers.iter().map(|end| end as &dyn Waitable).collect();
                let mut over = [false; PIPES];
                while over.contains(&false) {
                    let found = wait(&ends, Some(PATIENCE)).unwrap();
                    assert!(!found.is_empty(), "nobody woke this thread");
                    for i in found {
                        match receivers[i].try_recv_bytes() {
                            Ok(message) => {
                                taken.lock().unwrap().push(u64::from_le_bytes(message.try_into().unwrap()));
                            }
                            // Another thread was quicker.
                            Err(RecvError::Empty) => {}
                            Err(RecvError::Disconnected) => over[i] = true,
                            Err(e) => panic!("{e}"),
                        }
                    }
                }
            });
        }
    });
    child.succeeds();
    let mut taken = taken.into_inner().unwrap();
    taken.sort_unstable();
    assert!(taken.iter().copied().eq(0..MESSAGES), "{} messages", taken.len());
}

/// A thread that blocks in a receive and one that waits, on one pipe for many: neither takes the other's wake-ups.
#[test]
fn waiting_and_receiving_threads_do_not_starve_each_other() {
    let (_alone, _watchdog) = guard();
    let (receiver, sender) = mpmc::simplex().unwrap();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.iter().map(Result::unwrap).count());
        let waiting = scope.spawn(|| {
            let mut count = 0;
            loop {
                assert_eq!(wait(&[&receiver], None).unwrap(), [0]);
                match receiver.try_recv_bytes() {
                    Ok(_) => count += 1,
                    Err(RecvError::Empty) => {}
                    Err(_) => return count,
                }
            }
        });
        let mut random = Random::new(3);
        for round in 0..600 {
            sender.send_bytes(b"for either").unwrap();
            let start = Instant::now();
            while receiver.fill() > 0 {
                assert!(start.elapsed() < PATIENCE, "message {round} was left");
                std::thread::sleep(Duration::from_micros(50));
            }
            std::thread::sleep(Duration::from_micros(random.below(300) + if round % 100 == 0 { 10_000 } else { 0 }));
        }
        drop(sender);
        assert_eq!(receiving.join().unwrap() + waiting.join().unwrap(), 600);
    });
}

// --- life and death -----------------------------------------------------------------------------------

#[test]
fn a_killed_peer_makes_its_end_ready() {
    let (_alone, _watchdog) = guard();
    for leave in [Leave::Drop, Leave::Exit, Leave::Killed] {
        let (receiver, sender) = simplex().unwrap();
        let (many, many_sender) = mpmc::simplex().unwrap();
        let (quiet, _quiet_sender) = simplex().unwrap();
        let shared = Shared::new();
        let (child, (receiver, many)) = fork_split((receiver, many), (sender, many_sender), |ends| {
            shared.set(0, 1);
            if let Leave::Killed = leave {
                for_ever();
            }
            std::thread::sleep(MOMENT);
            if let Leave::Drop = leave {
                drop(ends);
            }
            0
        });
        shared.await_at_least(0, 1);
        let (start, mut found) = (Instant::now(), Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(MOMENT);
                if let Leave::Killed = leave {
                    child.kill();
                }
            });
            while found != [1, 2] {
                found = wait(&[&quiet, &receiver, &many], None).unwrap();
                assert!(!found.is_empty() && start.elapsed() < PATIENCE, "{leave:?}: {found:?}, {:?}", start.elapsed());
            }
        });
        assert!(readable(&receiver) && readable(&many) && !readable(&quiet));
    }
}

#[test]
fn what_was_sent_before_a_death_is_found_with_it() {
    let (_alone, _watchdog) = guard();
    for _ in 0..200 {
        let (receiver, sender) = simplex().unwrap();
        let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
            sender.send_bytes(b"last words").unwrap();
            0
        });
        assert_eq!(wait(&[&receiver], Some(PATIENCE)).unwrap(), [0]);
        assert_eq!(receiver.try_recv_bytes().unwrap(), b"last words");
        assert_eq!(wait(&[&receiver], Some(PATIENCE)).unwrap(), [0]);
        assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
        child.succeeds();
    }
}

/// What a message half written holds up is found when its writer has gone on, or has been killed.
#[test]
fn what_comes_behind_a_half_written_message_is_found() {
    let (_alone, _watchdog) = guard();
    let (receiver, sender) = mpmc::simplex().unwrap();
    let shared = Shared::new();
    let child = fork(|| {
        let _guard = sender.reserve(8).unwrap();
        shared.set(0, 1);
        for_ever()
    });
    shared.await_at_least(0, 1);
    sender.send_bytes(b"behind it").unwrap();
    let before = usage();
    assert!(wait(&[&receiver], Some(5 * MOMENT)).unwrap().is_empty(), "what comes first is half written");
    let after = usage();
    let (sleeps, took) = (after.0 - before.0, after.1 - before.1);
    assert!(sleeps < 100 && took < MOMENT, "{sleeps} sleeps, {took:?}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(MOMENT);
            child.kill();
        });
        let start = Instant::now();
        assert_eq!(wait(&[&receiver], None).unwrap(), [0]);
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    });
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"behind it");
}

// --- what it costs ------------------------------------------------------------------------------------

/// How often this thread has gone to sleep, and how much processor time it has taken.
fn usage() -> (i64, Duration) {
    // SAFETY: `rusage` is plain data, for which zeros are valid, and the call fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, 1000 * time.tv_usec as u32);
    #[allow(clippy::unnecessary_cast, reason = "32 bits on some machines")]
    (usage.ru_nvcsw as i64, time(usage.ru_utime) + time(usage.ru_stime))
}

#[test]
fn whoever_waits_in_vain_sleeps() {
    let (_alone, _watchdog) = guard();
    let (mut receivers, mut senders): (Vec<Receiver>, Vec<Sender>) = (0..32).map(|_| simplex().unwrap()).unzip();
    for what in ["fresh", "stuffed", "used"] {
        for (receiver, sender) in receivers.iter_mut().zip(&mut senders) {
            match what {
                "stuffed" => assert!(support::stuff(sender)),
                "used" => {
                    sender.send_bytes(b"rings").unwrap();
                    receiver.recv_bytes().unwrap();
                }
                _ => {}
            }
        }
        let ends: Vec<&dyn Waitable> = receivers.iter().map(|end| end as &dyn Waitable).collect();
        let before = usage();
        assert!(wait(&ends, Some(Duration::from_millis(500))).unwrap().is_empty());
        let after = usage();
        let (sleeps, took) = (after.0 - before.0, after.1 - before.1);
        assert!((1..5).contains(&sleeps) && took < Duration::from_millis(25), "{what}: {sleeps} sleeps, {took:?}");
    }
}

/// A receiver that is watched silences its bell whenever the ring runs empty, by a few system calls. One that was waited for does not.
#[test]
fn waiting_does_not_make_an_end_watched() {
    let (_alone, _watchdog) = guard();
    let (mut receiver, mut sender) = simplex().unwrap();
    assert!(wait(&[&receiver], Some(Duration::from_millis(1))).unwrap().is_empty());
    sender.send_bytes(b"one").unwrap();
    assert_eq!(wait(&[&receiver], None).unwrap(), [0]);
    receiver.recv_bytes().unwrap();
    // Looked at from outside, since to ask for the descriptor is to watch it.
    let number = support::open_fds().into_iter().find(|&fd| is_rung(fd)).expect("the byte stays until somebody arms");
    assert_eq!(receiver.as_fd().as_raw_fd(), number);
    assert!(!is_rung(number), "now it is watched");
}

/// Whether a descriptor is a socket with one byte to read.
fn is_rung(fd: RawFd) -> bool {
    let mut byte = [0_u8; 2];
    // SAFETY: at most two bytes are written to an array of two; other descriptors make it an error.
    unsafe { libc::recv(fd, byte.as_mut_ptr().cast(), 2, libc::MSG_PEEK | libc::MSG_DONTWAIT) == 1 }
}
