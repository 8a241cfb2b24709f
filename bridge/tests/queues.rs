//! Work queues over bridges: one home, and other hosts that take from it or put into it. All bridges are of this process; what is killed is in `kills.rs`.

mod support;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::mpmc::{Listener, Receiver, Sender};
use ringpipe::{RecvError, SendError, connect};
use ringpipe_bridge::{Bridge, Builder, Direction, Doubt};
use support::{LONG, Line, Names, Way, builder, endpoint, eventually, message, message_of, number_of, port};

/// A queue at home, kept by a thread until it is told to stop.
struct Queue {
    sender: Sender,
    receiver: Receiver,
    stop: std::sync::mpsc::Sender<()>,
    keeper: thread::JoinHandle<()>,
}

fn queue(names: &Names) -> Queue {
    queue_kept(names, Duration::ZERO)
}

/// One whose keeper looks only every now and then who wants to join.
fn queue_kept(names: &Names, between: Duration) -> Queue {
    let mut listener = Listener::bind(names.of("home")).unwrap();
    let (sender, receiver) = (listener.sender().clone(), listener.receiver().clone());
    let (stop, stopped) = std::sync::mpsc::channel();
    let keeper = thread::spawn(move || {
        while stopped.try_recv().is_err() {
            if between.is_zero() {
                let _ = listener.accept_timeout(Duration::from_millis(20));
            } else {
                let _ = listener.try_accept();
                thread::sleep(between);
            }
        }
    });
    Queue { sender, receiver, stop, keeper }
}

impl Queue {
    /// No more will come: the end of the file, for whoever has taken everything.
    fn end(self) {
        self.stop.send(()).unwrap();
        self.keeper.join().unwrap();
    }
}

/// Hosts that are joined to the queue at home under the name `away-NUMBER`, each by a line of its own.
fn hosts(
    names: &Names,
    count: usize,
    direction: Direction,
    doubt: Doubt,
    ahead: Option<usize>,
) -> (Bridge, Vec<(Bridge, Line)>) {
    hosts_of(builder("home"), names, count, direction, doubt, ahead)
}

fn hosts_of(
    home: Builder,
    names: &Names,
    count: usize,
    direction: Direction,
    doubt: Doubt,
    ahead: Option<usize>,
) -> (Bridge, Vec<(Bridge, Line)>) {
    let behind = port();
    let patience = Duration::from_secs(3);
    let home = home.patience(patience).listen(endpoint(behind)).open().unwrap();
    home.export_queue(names.of("home"), "jobs", direction, doubt).unwrap();
    let hosts = (0..count)
        .map(|number| {
            let line = Line::to(behind);
            let bridge = builder("away").patience(patience).connect(endpoint(line.port)).open().unwrap();
            bridge.import_queue(names.of(&format!("away-{number}")), "jobs", direction, ahead).unwrap();
            (bridge, line)
        })
        .collect();
    (home, hosts)
}

fn worker(names: &Names, host: usize) -> Receiver {
    connect(names.of(&format!("away-{host}")), LONG).unwrap()
}

#[test]
fn workers_of_three_hosts_take_each_message_once_and_then_the_end_of_the_file() {
    const COUNT: u64 = 600;
    let names = Names::new();
    let queue = queue(&names);
    let (_home, _hosts) = hosts(&names, 3, Direction::Take, Doubt::Lose, None);
    let done = Mutex::new(BTreeMap::<u64, (u32, [u32; 3])>::new());
    thread::scope(|scope| {
        for number in 0..6 {
            let (worker, done) = (worker(&names, number / 2), &done);
            scope.spawn(move || {
                loop {
                    match worker.recv_bytes_timeout(LONG) {
                        Ok(got) => {
                            assert!(got == message(number_of(&got)), "a wrong message");
                            let mut done = done.lock().unwrap();
                            let (times, by) = done.entry(number_of(&got)).or_default();
                            (*times, by[number / 2]) = (*times + 1, by[number / 2] + 1);
                        }
                        Err(RecvError::Disconnected) => return,
                        Err(e) => panic!("{e}"),
                    }
                    // Some work, or one host does it all.
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        (0..COUNT).for_each(|number| queue.sender.send_bytes(&message(number)).unwrap());
        queue.end();
    });
    let done = done.into_inner().unwrap();
    assert_eq!(done.len() as u64, COUNT);
    assert!(done.values().all(|(times, _)| *times == 1), "some came twice");
    for host in 0..3 {
        let count: u32 = done.values().map(|(_, by)| by[host]).sum();
        assert!(count > 0, "host {host} got nothing");
    }
}

#[test]
fn a_host_gets_what_its_workers_have_asked_for_and_no_more() {
    let names = Names::new();
    let queue = queue(&names);
    let (_home, _hosts) = hosts(&names, 2, Direction::Take, Doubt::Lose, None);
    (0..100).for_each(|number| queue.sender.send_bytes(&message_of(number, 100)).unwrap());
    // Nobody has joined.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(queue.receiver.len(), 100);
    // Three who take nothing: one message for each lies ready.
    let workers = [(); 3].map(|()| worker(&names, 0));
    eventually("three are ready", || queue.receiver.len() == 97);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(queue.receiver.len(), 97);
    // They take five, so that five more come.
    (0..5).for_each(|_| drop(workers[0].recv_bytes_timeout(LONG).unwrap()));
    eventually("five have followed", || queue.receiver.len() == 92);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(queue.receiver.len(), 92);
}

#[test]
fn what_is_too_long_for_a_host_stays_first_for_others() {
    // Once it is home's bridge that takes no longer ones, and once the host's.
    for (at_home, there) in [(10_000, 20_000), (20_000, 10_000)] {
        let (names, behind) = (Names::new(), port());
        let queue = queue(&names);
        let home = builder("home").longest(at_home).listen(endpoint(behind)).open().unwrap();
        home.export_queue(names.of("home"), "jobs", Direction::Take, Doubt::Lose).unwrap();
        let away = builder("away").longest(there).connect(endpoint(behind)).open().unwrap();
        away.import_queue(names.of("away-0"), "jobs", Direction::Take, None).unwrap();
        let worker = worker(&names, 0);
        let send = |number, len| queue.sender.send_bytes(&message_of(number, len)).unwrap();
        let gets = |number, len| assert!(worker.recv_bytes_timeout(LONG).unwrap() == message_of(number, len));
        send(0, 10_000);
        send(1, 10_001);
        send(2, 10_000);
        gets(0, 10_000);
        assert!(matches!(worker.recv_bytes_timeout(Duration::from_millis(600)), Err(RecvError::TimedOut)));
        assert_eq!(queue.receiver.len(), 2);
        assert!(queue.receiver.recv_bytes_timeout(LONG).unwrap() == message_of(1, 10_001));
        // The same connection goes on.
        gets(2, 10_000);
        send(3, 100);
        gets(3, 100);
        // It is at home when the bridges have gone, too.
        send(4, 10_001);
        thread::sleep(Duration::from_millis(100));
        drop((away, home));
        assert!(queue.receiver.recv_bytes_timeout(LONG).unwrap() == message_of(4, 10_001));
    }
}

#[test]
fn what_nobody_has_taken_goes_back_when_the_bridge_ends() {
    let names = Names::new();
    let queue = queue(&names);
    let (_home, mut hosts) = hosts(&names, 1, Direction::Take, Doubt::Lose, Some(10));
    (0..30).for_each(|number| queue.sender.send_bytes(&message_of(number, 100)).unwrap());
    let worker = worker(&names, 0);
    eventually("ten are ready", || queue.receiver.len() == 20);
    let taken = number_of(&worker.recv_bytes_timeout(LONG).unwrap());
    assert_eq!(taken, 0);
    hosts.clear();
    eventually("all that nobody has taken is back", || queue.receiver.len() == 29);
    let mut left: Vec<u64> = (0..29).map(|_| number_of(&queue.receiver.recv_bytes().unwrap())).collect();
    left.sort_unstable();
    assert_eq!(left, (1..30).collect::<Vec<_>>());
    assert!(matches!(worker.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
}

#[test]
fn what_nobody_has_taken_goes_back_though_the_connection_carries_nothing_as_the_bridge_ends() {
    let (patience, names) = (Duration::from_secs(6), Names::new());
    let queue = queue(&names);
    let two = support::two(patience);
    two.home.export_queue(names.of("home"), "jobs", Direction::Take, Doubt::Lose).unwrap();
    two.away.import_queue(names.of("away-0"), "jobs", Direction::Take, Some(10)).unwrap();
    (0..10).for_each(|number| queue.sender.send_bytes(&message_of(number, 100)).unwrap());
    let _worker = worker(&names, 0);
    eventually("all ten are ready", || queue.receiver.is_empty());
    // Until home knows that, too.
    thread::sleep(Duration::from_millis(500));
    two.line.mute(Way::There);
    drop(two.away);
    eventually("all ten are back", || queue.receiver.len() == 10);
}

#[test]
fn what_goes_back_waits_for_a_keeper_that_has_other_things_to_do() {
    let names = Names::new();
    let queue = queue_kept(&names, Duration::from_millis(900));
    let (_home, mut hosts) = hosts(&names, 1, Direction::Take, Doubt::Lose, Some(10));
    (0..10).for_each(|number| queue.sender.send_bytes(&message_of(number, 100)).unwrap());
    let _worker = worker(&names, 0);
    eventually("all ten are ready", || queue.receiver.is_empty());
    hosts.clear();
    eventually("all ten are back", || queue.receiver.len() == 10);
}

/// A host is cut off for good with ten messages ready, of which one is taken. What is at home then, of thirty.
fn left_after_a_host_is_lost(doubt: Doubt) -> usize {
    let names = Names::new();
    let queue = queue(&names);
    let (_home, hosts) = hosts(&names, 1, Direction::Take, doubt, Some(10));
    (0..30).for_each(|number| queue.sender.send_bytes(&message_of(number, 100)).unwrap());
    let worker = worker(&names, 0);
    eventually("ten are ready", || queue.receiver.len() == 20);
    worker.recv_bytes_timeout(LONG).unwrap();
    eventually("an eleventh has followed", || queue.receiver.len() == 19);
    hosts[0].1.cut();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(6) && queue.receiver.len() == 19 {
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(300));
    queue.receiver.len()
}

#[test]
fn what_a_lost_host_had_ready_counts_as_taken() {
    assert_eq!(left_after_a_host_is_lost(Doubt::Lose), 19);
}

#[test]
fn what_a_lost_host_had_ready_goes_to_others_if_that_is_asked_for() {
    assert_eq!(left_after_a_host_is_lost(Doubt::Repeat), 29);
}

#[test]
fn cuts_lose_nothing_and_double_nothing() {
    const COUNT: u64 = 400;
    let names = Names::new();
    let queue = queue(&names);
    let (_home, hosts) = hosts(&names, 2, Direction::Take, Doubt::Lose, Some(4));
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for host in 0..2 {
            let (worker, done) = (worker(&names, host), &done);
            scope.spawn(move || {
                while let Ok(got) = worker.recv_bytes_timeout(LONG) {
                    assert!(got == message(number_of(&got)), "a wrong message");
                    done.lock().unwrap().push(number_of(&got));
                    thread::sleep(Duration::from_millis(3));
                }
            });
        }
        (0..COUNT).for_each(|number| queue.sender.send_bytes(&message(number)).unwrap());
        for turn in 0..6 {
            thread::sleep(Duration::from_millis(150));
            hosts[turn % 2].1.cut();
            thread::sleep(Duration::from_millis([5, 600][turn / 2 % 2]));
            hosts[turn % 2].1.join();
        }
        queue.end();
    });
    let mut done = done.into_inner().unwrap();
    done.sort_unstable();
    assert_eq!(done, (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn what_other_hosts_send_comes_home() {
    const COUNT: u64 = 300;
    let names = Names::new();
    let queue = queue(&names);
    let (_home, hosts) = hosts(&names, 2, Direction::Put, Doubt::Lose, None);
    thread::scope(|scope| {
        for host in 0..2 {
            let sender: Sender = connect(names.of(&format!("away-{host}")), LONG).unwrap();
            scope.spawn(move || {
                (0..COUNT).for_each(|number| sender.send_bytes(&message(2 * number + host)).unwrap());
            });
        }
        let mut next = [0, 1];
        for turn in 0..2 * COUNT {
            if turn == COUNT {
                hosts[0].1.cut();
                hosts[0].1.join();
            }
            let got = queue.receiver.recv_bytes_timeout(LONG).unwrap();
            let number = number_of(&got);
            assert!(got == message(number), "a wrong message");
            let host = (number % 2) as usize;
            assert_eq!(number, next[host], "those of one host come in order");
            next[host] += 2;
        }
        assert_eq!(next, [2 * COUNT, 2 * COUNT + 1]);
    });
    // And when nobody is at home any more, senders are told.
    let sender: Sender = connect(names.of("away-0"), LONG).unwrap();
    queue.end();
    eventually("a broken pipe", || matches!(sender.try_send_bytes(b"more"), Err(SendError::Disconnected)));
}

#[test]
fn what_was_sent_before_a_bridge_ends_comes_home() {
    // More than home's ring and a window hold, and less than two windows, so that some is still in the bridge that ends.
    const COUNT: u64 = 600;
    let names = Names::new();
    let queue = queue(&names);
    let (_home, mut hosts) = hosts(&names, 1, Direction::Put, Doubt::Lose, None);
    let sender: Sender = connect(names.of("away-0"), LONG).unwrap();
    (0..COUNT).for_each(|number| sender.send_bytes(&message_of(number, 10_000)).unwrap());
    let ending = thread::spawn(move || hosts.clear());
    thread::sleep(Duration::from_secs(1));
    for number in 0..COUNT {
        let got = queue.receiver.recv_bytes_timeout(LONG).unwrap();
        assert!(got == message_of(number, 10_000), "message {number} is wrong: it says {}", number_of(&got));
    }
    ending.join().unwrap();
    assert!(queue.receiver.is_empty());
}

/// The name that a worker in a process of its own is to join.
const WORKER: &str = "RINGPIPE_BRIDGE_TEST_WORKER";

#[test]
#[ignore = "no test: a worker that takes nothing, which another test starts and kills"]
fn a_worker_that_can_be_killed() {
    let Some(name) = std::env::var_os(WORKER) else { return };
    let worker: Receiver = connect(name, LONG).unwrap();
    thread::sleep(LONG);
    drop(worker);
}

#[test]
fn what_comes_back_to_a_full_queue_does_not_keep_the_next_worker_waiting() {
    let names = Names::new();
    let queue = queue(&names);
    let (_home, _hosts) = hosts(&names, 1, Direction::Take, Doubt::Lose, None);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["a_worker_that_can_be_killed", "--exact", "--ignored"])
        .env(WORKER, names.of("away-0"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    queue.sender.send_bytes(&message_of(0, 10_000)).unwrap();
    eventually("one is ready", || queue.receiver.is_empty());
    let mut sent = 1;
    while queue.sender.try_send_bytes(&message_of(sent, 10_000)).is_ok() {
        sent += 1;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The host sends it back, and there is no room for it.
    thread::sleep(Duration::from_secs(1));
    let worker = worker(&names, 0);
    let mut got: Vec<u64> = (0..sent).map(|_| number_of(&worker.recv_bytes_timeout(LONG).unwrap())).collect();
    got.sort_unstable();
    assert_eq!(got, (0..sent).collect::<Vec<_>>());
}

/// Ten messages come back to a home whose queue is full, and then its bridge ends. How many there were, the queue, what the bridge said of messages that are lost, and
/// who waits for it to end.
fn end_of_a_home_that_holds_ten(names: &Names) -> (u64, Queue, Arc<Mutex<Vec<String>>>, thread::JoinHandle<()>) {
    let queue = queue(names);
    let said = Arc::new(Mutex::new(Vec::new()));
    let saying = Arc::clone(&said);
    let report = builder("home").report(move |event| {
        let text = event.to_string();
        if text.contains("lost") {
            saying.lock().unwrap().push(text);
        }
    });
    let (home, mut hosts) = hosts_of(report, names, 1, Direction::Take, Doubt::Lose, Some(10));
    (0..10).for_each(|number| queue.sender.send_bytes(&message_of(number, 10_000)).unwrap());
    let _worker = worker(names, 0);
    eventually("all ten are ready at the host", || queue.receiver.is_empty());
    let mut sent = 10;
    while queue.sender.try_send_bytes(&message_of(sent, 10_000)).is_ok() {
        sent += 1;
    }
    let there = queue.receiver.len();
    let (end, ends) = std::sync::mpsc::channel();
    let ending = thread::spawn(move || {
        let host = thread::spawn(move || hosts.clear());
        // Time for them to come home, on a busy machine too.
        thread::sleep(Duration::from_secs(2));
        end.send(()).unwrap();
        drop(home);
        host.join().unwrap();
    });
    ends.recv().unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(queue.receiver.len(), there, "there was room in the queue");
    (sent, queue, said, ending)
}

#[test]
fn what_a_bridge_holds_as_it_ends_goes_home_if_there_is_room_in_time() {
    let names = Names::new();
    let (sent, queue, said, ending) = end_of_a_home_that_holds_ten(&names);
    let mut got: Vec<u64> = (0..sent).map(|_| number_of(&queue.receiver.recv_bytes_timeout(LONG).unwrap())).collect();
    got.sort_unstable();
    assert_eq!(got, (0..sent).collect::<Vec<_>>());
    ending.join().unwrap();
    assert!(queue.receiver.is_empty());
    assert_eq!(*said.lock().unwrap(), [""; 0]);
}

#[test]
fn what_a_bridge_holds_as_it_ends_and_has_no_room_for_it_says_is_lost() {
    let names = Names::new();
    let (sent, queue, said, ending) = end_of_a_home_that_holds_ten(&names);
    ending.join().unwrap();
    assert_eq!(queue.receiver.len() as u64, sent - 10);
    assert_eq!(*said.lock().unwrap(), ["take/jobs: broken: 10 messages cannot go back into the queue, and are lost"]);
}

#[test]
fn what_finds_too_little_room_as_a_bridge_ends_is_counted() {
    let names = Names::new();
    let (sent, queue, said, ending) = end_of_a_home_that_holds_ten(&names);
    let mut taken = 0;
    while !ending.is_finished() {
        thread::sleep(Duration::from_millis(300));
        taken += u64::from(queue.receiver.try_recv_bytes().is_ok());
    }
    ending.join().unwrap();
    let lost = sent - taken - queue.receiver.len() as u64;
    assert!((1..10).contains(&lost), "{lost} of ten are lost: the test wants some, and not all");
    let what = format!("take/jobs: broken: {lost} messages cannot go back into the queue, and are lost");
    assert_eq!(*said.lock().unwrap(), [what]);
}
