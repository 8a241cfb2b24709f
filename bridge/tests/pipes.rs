//! Pipes between two bridges of this process, which know of each other by the network alone; with a line between them that is cut.

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::{Connection, Listener, RecvError, SendError, connect};
use ringpipe_bridge::{stop_lingering, zenoh_runtime};
use support::{LONG, Line, Names, Way, builder, endpoint, eventually, message, message_of, number_of, port, two};

/// A local listener at home that is exported, and its name away.
struct Joined {
    two: support::Two,
    names: Names,
    listener: Listener,
}

fn joined(patience: Duration) -> Joined {
    let (two, names) = (two(patience), Names::new());
    let listener = Listener::bind(names.of("home")).unwrap();
    two.home.export(names.of("home"), "jobs").unwrap();
    two.away.import(names.of("away"), "jobs").unwrap();
    Joined { two, names, listener }
}

impl Joined {
    /// A pipe from end to end: the client's end, and the server's.
    fn pipe(&mut self) -> (Connection, Connection) {
        let client = connect(self.names.of("away"), LONG).unwrap();
        let (server, _) = self.listener.accept_timeout(LONG).unwrap();
        (client, server)
    }
}

/// Sends messages up to a number, and closes its end.
fn send(mut sender: ringpipe::Sender, count: u64) -> thread::JoinHandle<()> {
    thread::spawn(move || (0..count).for_each(|number| sender.send_bytes(&message(number)).unwrap()))
}

/// Receives messages until the end of the file, and says how many there were.
fn receive(mut receiver: ringpipe::Receiver) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        for number in 0.. {
            match receiver.recv_bytes() {
                Ok(got) => assert!(got == message(number), "message {number} is wrong: it says {}", number_of(&got)),
                Err(RecvError::Disconnected) => return number,
                Err(e) => panic!("after {number} messages: {e}"),
            }
        }
        unreachable!("there is an end")
    })
}

/// Has a message go there, and the next one back.
fn exchange(client: &mut Connection, server: &mut Connection, number: u64) {
    client.send_bytes(&message(number)).unwrap();
    assert!(server.recv_bytes_timeout(LONG).unwrap() == message(number));
    server.send_bytes(&message(number + 1)).unwrap();
    assert!(client.recv_bytes_timeout(LONG).unwrap() == message(number + 1));
}

#[test]
fn messages_of_all_sizes_go_both_ways_and_then_the_end_of_the_file() {
    let mut joined = joined(LONG);
    for count in [0, 1, 500] {
        let (client, server) = joined.pipe();
        let ((there, back), (reply, take)) = (client.split(), server.split());
        let (sending, replying) = (send(there, count), send(reply, 2 * count));
        let (taken, answered) = (receive(take), receive(back));
        sending.join().unwrap();
        replying.join().unwrap();
        assert_eq!((taken.join().unwrap(), answered.join().unwrap()), (count, 2 * count));
    }
}

#[test]
fn a_message_longer_than_all_windows_passes() {
    let mut joined = joined(LONG);
    let (mut client, mut server) = joined.pipe();
    let long = message_of(7, 50 << 20);
    let sent = long.clone();
    let sending = thread::spawn(move || client.send_bytes(&sent).map(|()| client));
    assert!(server.recv_bytes().unwrap() == long);
    let client = sending.join().unwrap().unwrap();
    drop(client);
    assert!(matches!(server.recv_bytes(), Err(RecvError::Disconnected)));
}

#[test]
fn each_client_has_a_pipe_of_its_own() {
    let mut joined = joined(LONG);
    let mut pipes: Vec<_> = (0..8).map(|_| joined.pipe()).collect();
    for (number, (client, _)) in pipes.iter_mut().enumerate() {
        client.send_bytes(&[number as u8]).unwrap();
    }
    // The order in which they were accepted is not that in which they connected.
    let mut got: Vec<_> = pipes.iter_mut().map(|(_, server)| server.recv_bytes().unwrap()).collect();
    got.sort();
    assert_eq!(got, (0..8).map(|number| vec![number]).collect::<Vec<_>>());
}

#[test]
fn a_slow_reader_stops_the_sender_and_memory_is_bounded() {
    let mut joined = joined(LONG);
    let (mut client, mut server) = joined.pipe();
    let (size, mut sent) = (64 << 10, 0_u64);
    while client.sender_mut().send_bytes_timeout(&message_of(sent, size), Duration::from_secs(3)).is_ok() {
        sent += 1;
    }
    // Rings of 1 MiB and 256 KiB, two windows of 4 MiB, and a few segments in hand.
    let bytes = sent * size as u64;
    assert!((1 << 20..12 << 20).contains(&bytes), "{bytes} bytes were taken before the sender was stopped");
    for number in 0..sent {
        assert!(server.recv_bytes_timeout(LONG).unwrap() == message_of(number, size));
    }
    client.send_bytes(b"on it goes").unwrap();
    assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"on it goes");
}

#[test]
fn a_reader_that_goes_away_breaks_the_pipe_for_the_sender() {
    let mut joined = joined(LONG);
    let (mut client, server) = joined.pipe();
    client.send_bytes(b"something").unwrap();
    drop(server);
    eventually("the sender is told", || matches!(client.send_bytes(b"more"), Err(SendError::Disconnected)));
    assert!(matches!(client.recv_bytes(), Err(RecvError::Disconnected)));
}

#[test]
fn a_pipe_end_is_refused_and_what_was_before_it_arrives() {
    let mut joined = joined(LONG);
    let (mut client, mut server) = joined.pipe();
    client.send_bytes(b"before").unwrap();
    let (end, _other) = ringpipe::simplex().unwrap();
    client.send_end(end).unwrap();
    assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"before");
    assert!(matches!(server.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    eventually("the sender is told", || client.send_bytes(b"more").is_err());
}

#[test]
fn a_message_that_is_longer_than_allowed_breaks_its_pipe_after_what_was_before_it() {
    let (names, behind) = (Names::new(), support::port());
    let mut listener = Listener::bind(names.of("home")).unwrap();
    let home = support::builder("home").longest(1 << 20).listen(support::endpoint(behind)).open().unwrap();
    home.export(names.of("home"), "jobs").unwrap();
    let away = support::builder("away").longest(1 << 20).connect(support::endpoint(behind)).open().unwrap();
    away.import(names.of("away"), "jobs").unwrap();
    let mut client: Connection = connect(names.of("away"), LONG).unwrap();
    let (mut server, _) = listener.accept_timeout(LONG).unwrap();
    client.send_bytes(&message_of(1, 1 << 20)).unwrap();
    assert!(server.recv_bytes_timeout(LONG).unwrap() == message_of(1, 1 << 20));
    // It may break while it is being sent.
    let _ = client.send_bytes(&message_of(2, (1 << 20) + 1));
    assert!(matches!(server.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    eventually("the sender is told", || client.send_bytes(b"more").is_err());
}

#[test]
fn connections_beyond_the_limit_are_refused_and_those_that_end_make_room() {
    let (names, behind) = (Names::new(), support::port());
    let mut listener = Listener::bind(names.of("home")).unwrap();
    let home = support::builder("home").connections(2).listen(support::endpoint(behind)).open().unwrap();
    home.export(names.of("home"), "jobs").unwrap();
    let away = support::builder("away").connect(support::endpoint(behind)).open().unwrap();
    away.import(names.of("away"), "jobs").unwrap();
    let client = || connect::<Connection>(names.of("away"), LONG).unwrap();
    let mut pipes: Vec<_> = (0..2).map(|_| (client(), listener.accept_timeout(LONG).unwrap().0)).collect();
    assert!(matches!(client().recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    let (first, mut served) = pipes.remove(0);
    drop(first);
    assert!(matches!(served.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    drop(served);
    eventually("there is room for another", || {
        let mut another = client();
        let Ok((mut server, _)) = listener.accept_timeout(Duration::from_millis(200)) else { return false };
        another.send_bytes(b"through").unwrap();
        assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"through");
        true
    });
    let (client, server) = &mut pipes[0];
    server.send_bytes(b"still there").unwrap();
    assert_eq!(client.recv_bytes_timeout(LONG).unwrap(), b"still there");
}

#[test]
fn a_connection_makes_room_as_soon_as_it_has_ended() {
    let (names, behind) = (Names::new(), support::port());
    let mut listener = Listener::bind(names.of("home")).unwrap();
    // So long that nothing that goes by it is fast enough.
    let patience = 10 * LONG;
    let home =
        support::builder("home").patience(patience).connections(1).listen(support::endpoint(behind)).open().unwrap();
    home.export(names.of("home"), "jobs").unwrap();
    let away = support::builder("away").patience(patience).connect(support::endpoint(behind)).open().unwrap();
    away.import(names.of("away"), "jobs").unwrap();
    for _ in 0..3 {
        let client: Connection = connect(names.of("away"), LONG).unwrap();
        let (mut server, _) = listener.accept_timeout(LONG).unwrap();
        // Each side ends by itself, when nothing is under way.
        drop(client);
        assert!(matches!(server.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
        thread::sleep(Duration::from_millis(500));
        drop(server);
        thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_connection_that_has_ended_keeps_no_thread() {
    const COUNT: usize = 150;
    // So long nobody here waits. The other tests have threads as well, but not so many.
    let mut joined = joined(10 * LONG);
    for number in 0..COUNT {
        let (mut client, mut server) = joined.pipe();
        client.send_bytes(&message(number as u64)).unwrap();
        drop(client);
        assert!(server.recv_bytes().unwrap() == message(number as u64));
        assert!(matches!(server.recv_bytes(), Err(RecvError::Disconnected)));
    }
    eventually("threads have ended", || std::fs::read_dir("/proc/self/task").unwrap().count() < COUNT);
}

#[test]
fn cuts_of_the_line_lose_nothing_and_double_nothing() {
    let mut joined = joined(LONG);
    let (client, server) = joined.pipe();
    let ((there, back), (reply, take)) = (client.split(), server.split());
    let (sending, replying) = (send(there, 3000), send(reply, 3000));
    let (taken, answered) = (receive(take), receive(back));
    for pause in [1, 10, 200, 1500] {
        thread::sleep(Duration::from_millis(300));
        joined.two.line.cut();
        thread::sleep(Duration::from_millis(pause));
        joined.two.line.join();
    }
    sending.join().unwrap();
    replying.join().unwrap();
    assert_eq!((taken.join().unwrap(), answered.join().unwrap()), (3000, 3000));
}

#[test]
fn bytes_that_are_left_out_within_a_connection_are_noticed() {
    let mut joined = joined(Duration::from_secs(8));
    let (client, server) = joined.pipe();
    let ((there, back), (reply, take)) = (client.split(), server.split());
    let (ended, taken) = (Arc::new(AtomicBool::new(false)), receive(take));
    let sending = {
        let (ended, mut there) = (Arc::clone(&ended), there);
        thread::spawn(move || {
            let numbers = (0..).take_while(|_| !ended.load(Ordering::Relaxed));
            numbers.map(|number| there.send_bytes(&message(number)).unwrap()).count() as u64
        })
    };
    for bytes in [1, 10, 100, 1000, 10_000, 3000, 300, 30, 3].repeat(4) {
        joined.two.line.leave_out(bytes);
        thread::sleep(Duration::from_millis(20));
    }
    ended.store(true, Ordering::Relaxed);
    assert_eq!(taken.join().unwrap(), sending.join().unwrap());
    drop((back, reply));
}

#[test]
fn a_connection_that_carries_nothing_is_replaced() {
    let patience = Duration::from_secs(4);
    let replaced = |way, is_idle| {
        let mut joined = joined(patience);
        let (client, server) = joined.pipe();
        let ((mut there, back), (reply, mut take)) = (client.split(), server.split());
        there.send_bytes(b"first").unwrap();
        assert_eq!(take.recv_bytes_timeout(LONG).unwrap(), b"first");
        assert_eq!(joined.two.line.connections(), 1);
        joined.two.line.mute(way);
        if is_idle {
            // Both have asked, and it has been seen to, before anything is sent.
            thread::sleep(patience);
        }
        let (sending, replying) = (send(there, 300), send(reply, 300));
        let (taken, answered) = (receive(take), receive(back));
        sending.join().unwrap();
        replying.join().unwrap();
        assert_eq!((taken.join().unwrap(), answered.join().unwrap()), (300, 300), "{way:?}, {is_idle}");
        assert_eq!(joined.two.line.connections(), 2, "{way:?}, {is_idle}");
    };
    thread::scope(|scope| {
        for way in [Way::There, Way::Back] {
            for is_idle in [true, false] {
                scope.spawn(move || replaced(way, is_idle));
            }
        }
    });
}

/// What was seen in the logs of Zenoh 1.10: a connection is given up while a batch is being written that nobody takes; another comes in its place, and is given up with it, since a packet has waited for too
/// long; and when the first one is closed at last, the third is forgotten, which lives and by which nothing is sent.
#[test]
fn a_connection_that_zenoh_forgets_is_replaced() {
    let patience = Duration::from_secs(6);
    let behind = port();
    // More than the kernel keeps of what is not taken.
    const WINDOW: usize = 64 << 20;
    let home = builder("home").patience(patience).window(WINDOW).listen(endpoint(behind)).open().unwrap();
    let line = Line::to(behind);
    let away = builder("away").patience(patience).window(WINDOW).connect(endpoint(line.port));
    // A number that is given is for the first session: home takes it for connected as long as the one that is forgotten lives.
    let away = away.set("id", "\"5eed\"");
    let away = away.set("transport/link/tx/queue/congestion_control/block/wait_before_close", "700000").open().unwrap();
    let names = Names::new();
    let listener = Listener::bind(names.of("home")).unwrap();
    home.export(names.of("home"), "jobs").unwrap();
    away.import(names.of("away"), "jobs").unwrap();
    away.export(names.of("other"), "other").unwrap();
    let mut joined = Joined { two: support::Two { home, away, line }, names, listener };
    let (client, server) = joined.pipe();
    let ((there, back), (reply, take)) = (client.split(), server.split());
    let (sending, taken) = (send(there, 6000), receive(take));
    thread::sleep(Duration::from_millis(100));
    joined.two.line.stall(Way::There);
    // Or the thread that connects might be the one that waits until what nobody takes is taken.
    stop_lingering().unwrap();
    thread::sleep(Duration::from_millis(650));
    joined.two.line.strand();
    sending.join().unwrap();
    assert_eq!(taken.join().unwrap(), 6000);
    drop((back, reply));
    // The connection that was forgotten ends late, and takes nothing along.
    joined.two.line.cut_old();
    thread::sleep(Duration::from_millis(500));
    let (names, mut of_away) = (Names::new(), Listener::bind(joined.names.of("other")).unwrap());
    joined.two.home.import(names.of("there"), "other").unwrap();
    let client: Connection = connect(names.of("there"), LONG).unwrap();
    let (server, _) = of_away.accept_timeout(LONG).unwrap();
    for (mut client, mut server) in [joined.pipe(), (client, server)] {
        exchange(&mut client, &mut server, 10);
    }
}

#[test]
fn a_connection_that_replaces_another_is_replaced_as_well() {
    let patience = Duration::from_secs(4);
    let mut joined = joined(patience);
    let (mut client, mut server) = joined.pipe();
    for number in 0..2 {
        joined.two.line.mute(Way::Back);
        server.send_bytes(&message(number)).unwrap();
        assert!(client.recv_bytes_timeout(LONG).unwrap() == message(number));
        // The next time half of the patience is over too early, and all of it not.
        thread::sleep(patience / 3);
    }
    assert_eq!(joined.two.line.connections(), 3);
}

#[test]
fn a_line_that_is_only_slow_for_many_pipes_is_left_alone() {
    const PIPES: usize = 16;
    const LEN: usize = 64 << 10;
    let patience = Duration::from_secs(4);
    let mut joined = joined(patience);
    let pipes: Vec<_> = (0..PIPES).map(|_| joined.pipe()).collect();
    // A segment of each takes a quarter of the patience, and several of each are on the way, in no fair order: some hear nothing for half of it now and then.
    joined.two.line.slow_down((PIPES * (512 << 10)) as f64 / (patience / 4).as_secs_f64());
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for (mut client, mut server) in pipes {
            // One that hears nothing for all of the patience is lost, and rightly.
            let ended = &ended;
            scope.spawn(move || {
                let mut numbers = (0..).take_while(|_| !ended.load(Ordering::Relaxed));
                numbers.all(|number| client.send_bytes(&message_of(number, LEN)).is_ok())
            });
            scope.spawn(move || {
                for number in 0.. {
                    match server.recv_bytes() {
                        Ok(got) => assert!(got == message_of(number, LEN)),
                        Err(e) => return assert!(matches!(e, RecvError::Disconnected)),
                    }
                }
            });
        }
        thread::sleep(6 * patience);
        assert_eq!(joined.two.line.connections(), 1);
        joined.two.line.slow_down(1e10);
        ended.store(true, Ordering::Relaxed);
    });
}

#[test]
fn who_has_connected_to_a_bridge_whose_connection_is_replaced_does_so_again() {
    let (patience, names) = (Duration::from_secs(4), Names::new());
    let two = two(patience);
    let between = builder("between").patience(patience).connect(endpoint(two.line.port));
    let here = port();
    let between = between.listen(endpoint(here)).open().unwrap();
    let far = builder("far").patience(patience).connect(endpoint(here)).open().unwrap();

    let mut of_home = Listener::bind(names.of("home")).unwrap();
    two.home.export(names.of("home"), "home").unwrap();
    between.import(names.of("home-there"), "home").unwrap();
    let mut of_between = Listener::bind(names.of("between")).unwrap();
    between.export(names.of("between"), "between").unwrap();
    far.import(names.of("between-there"), "between").unwrap();
    let mut pipes = [("home-there", &mut of_home), ("between-there", &mut of_between)].map(|(name, listener)| {
        let client: Connection = connect(names.of(name), LONG).unwrap();
        (client, listener.accept_timeout(LONG).unwrap().0)
    });
    let mut in_all = |number| pipes.iter_mut().for_each(|(client, server)| exchange(client, server, number));
    in_all(1);
    let connections = two.line.connections();
    two.line.mute(Way::There);
    for number in [10, 50] {
        in_all(number);
    }
    assert!(two.line.connections() > connections);
    // It has told again what it exports.
    let mut client: Connection = connect(names.of("between-there"), LONG).unwrap();
    let (mut server, _) = of_between.accept_timeout(LONG).unwrap();
    client.send_bytes(b"new").unwrap();
    assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"new");
}

#[test]
fn a_bridge_that_nobody_has_told_of_an_export_hears_of_it_in_another_connection() {
    let mut joined = {
        let (two, names) = (two(Duration::from_secs(4)), Names::new());
        let listener = Listener::bind(names.of("home")).unwrap();
        eventually("they are connected", || two.line.connections() == 1);
        thread::sleep(Duration::from_millis(500));
        two.line.mute(Way::Back);
        two.home.export(names.of("home"), "jobs").unwrap();
        two.away.import(names.of("away"), "jobs").unwrap();
        Joined { two, names, listener }
    };
    let (mut client, mut server) = joined.pipe();
    client.send_bytes(b"heard").unwrap();
    assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"heard");
    assert_eq!(joined.two.line.connections(), 2);
}

#[test]
fn a_line_that_stays_cut_ends_the_pipe_on_both_sides_after_what_had_arrived() {
    let patience = Duration::from_secs(2);
    let mut joined = joined(patience);
    let (mut client, mut server) = joined.pipe();
    client.send_bytes(b"before").unwrap();
    eventually("it has arrived", || server.receiver().has_something());
    joined.two.line.cut();
    let cut = Instant::now();
    // Taken, since there is room; what becomes of it nobody can know.
    client.send_bytes(b"after").unwrap();
    assert_eq!(server.recv_bytes().unwrap(), b"before");
    assert!(matches!(server.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    assert!(matches!(client.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    let took = cut.elapsed();
    assert!(took >= patience / 2, "given up after {took:?}");
    eventually("the sender is told", || matches!(client.send_bytes(b"more"), Err(SendError::Disconnected)));
    // And with the next pipe, all is well.
    joined.two.line.join();
    let (mut client, mut server) = joined.pipe();
    client.send_bytes(b"again").unwrap();
    assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"again");
}

#[test]
fn a_client_of_a_name_that_nobody_exports_gets_an_end_of_file() {
    let (two, names) = (two(Duration::from_secs(1)), Names::new());
    two.away.import(names.of("away"), "nothing").unwrap();
    let mut client: Connection = connect(names.of("away"), LONG).unwrap();
    assert!(matches!(client.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
}

#[test]
fn a_bridge_that_ends_takes_its_names_along_and_tells_the_other() {
    let mut joined = joined(LONG);
    let (mut client, mut server) = joined.pipe();
    client.send_bytes(b"before").unwrap();
    assert_eq!(server.recv_bytes_timeout(LONG).unwrap(), b"before");
    let Joined { two, names, listener: _listener } = joined;
    drop(two.away);
    let told = Instant::now();
    assert!(matches!(server.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    assert!(told.elapsed() < LONG / 2, "it was told, and did not have to be missed");
    assert!(matches!(client.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    eventually("the name is gone", || !names.of("away").exists());
}

#[test]
#[ignore = "no test: what the next one has done in a process of its own, with other threads for Zenoh"]
fn a_host_is_served_while_another_takes_nothing() {
    // More than the kernel keeps of what is not taken.
    const WINDOW: usize = 64 << 20;
    let patience = Duration::from_secs(6);
    let (behind, names) = (port(), Names::new());
    thread::spawn(|| {
        loop {
            stop_lingering().unwrap();
            thread::sleep(Duration::from_millis(200));
        }
    });
    let home = builder("home").patience(patience).window(WINDOW).listen(endpoint(behind)).open().unwrap();
    let mut listener = Listener::bind(names.of("home")).unwrap();
    home.export(names.of("home"), "jobs").unwrap();
    let [stuck, well] = ["stuck", "well"].map(|name| {
        let line = Line::to(behind);
        let host = builder(name).patience(patience).window(WINDOW).connect(endpoint(line.port)).open().unwrap();
        host.import(names.of(name), "jobs").unwrap();
        let client: Connection = connect(names.of(name), LONG).unwrap();
        let (server, _) = listener.accept_timeout(LONG).unwrap();
        (line, host, client, server)
    });
    let (line, _stuck, mut client, mut server) = stuck;
    thread::spawn(move || while server.send_bytes(&[0; 100_000]).is_ok() {});
    thread::spawn(move || while client.recv_bytes().is_ok() {});
    thread::sleep(Duration::from_millis(200));
    line.stall(Way::There);
    line.stall(Way::Back);
    // Zenoh gives it up after a quarter of the patience, tries for some seconds to send what is left, and then to close it.
    let (_line, _well, mut client, mut server) = well;
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < Duration::from_secs(16) {
        let sent = Instant::now();
        exchange(&mut client, &mut server, 10);
        longest = longest.max(sent.elapsed());
        thread::sleep(Duration::from_millis(5));
    }
    println!("there and back took {longest:?} at most");
    assert!(longest < patience / 3, "there and back took {longest:?}");
}

#[test]
fn a_host_that_takes_nothing_keeps_no_other_waiting() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["a_host_is_served_while_another_takes_nothing", "--exact", "--ignored", "--nocapture"]);
    command.envs(zenoh_runtime().map(|threads| ("ZENOH_RUNTIME", threads)));
    assert!(command.status().unwrap().success());
}
