//! Bridges in processes of their own, which are killed at random moments and started again, and a line that is cut at random moments. Every message is verified: what arrives is what was
//! sent, in order, none twice; and what is missing is what the documentation says.
//!
//! `RINGPIPE_BRIDGE_KILLS` is how many kills and cuts there are in each test; 1,000 in the long form.

mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::mpmc;
use ringpipe::{Connection, Listener, RecvError, connect};
use ringpipe_bridge::{Direction, Doubt};
use support::process::{Killable, spawn};
use support::{LONG, Line, Names, builder, endpoint, message_of, number_of, port};

/// Of queues, whose hosts are to be missed soon.
const PATIENCE: Duration = Duration::from_millis(700);
/// Of pipes whose bridges are killed.
const SOME_PATIENCE: Duration = Duration::from_secs(5);
/// Of pipes whose line is cut, again before Zenoh has connected anew as often as not: so long that this is not taken for a death.
const LONG_PATIENCE: Duration = Duration::from_secs(40);
fn kills() -> u64 {
    std::env::var("RINGPIPE_BRIDGE_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(12)
}

#[test]
#[ignore = "no test: the bridge that the others start, and kill"]
fn a_bridge_that_can_be_killed() {
    support::process::play();
}

/// Sleeps for a random time below so many milliseconds. (The hash of a fresh state is random.)
fn moment(below: u64) {
    use std::hash::{BuildHasher, Hasher, RandomState};
    thread::sleep(Duration::from_micros(RandomState::new().build_hasher().finish() % (below * 1000)));
}

fn sized(number: u64) -> Vec<u8> {
    message_of(number, 8 + (number as usize * 7919) % 5000)
}

/// Pipes, one after the other, through two bridges of which one is killed, or between which the line is cut, at random. In each, what the server gets is a beginning of what the client has
/// sent, and all of it unless a bridge was killed meanwhile.
fn pipes_through(patience: Duration, kill_one: impl Fn(&mut Killable, &mut Killable, &Line) -> bool + Sync) {
    let names = Names::new();
    let behind = port();
    let line = Line::to(behind);
    let mut listener = Listener::bind(names.of("home")).unwrap();
    let mut export = spawn("export", &endpoint(behind), &names.of("home"), patience);
    let mut import = spawn("import", &endpoint(line.port), &names.of("away"), patience);
    let (stop, generation) = (AtomicBool::new(false), AtomicU64::new(0));
    let (whole, cut_short) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let (stop, generation, names) = (&stop, &generation, &names);
        let (whole, cut_short) = (&whole, &cut_short);
        // The server checks each stream, and answers with how many messages there were.
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((mut server, _)) = listener.accept_timeout(Duration::from_millis(100)) else { continue };
                scope.spawn(move || {
                    let mut count = 0;
                    loop {
                        match server.recv_bytes() {
                            Ok(got) if got.is_empty() => break,
                            Ok(got) => {
                                assert!(
                                    got == sized(count),
                                    "message {count} is wrong, doubled or missing: {}",
                                    number_of(&got)
                                );
                                count += 1;
                            }
                            Err(RecvError::Disconnected) => return,
                            Err(e) => panic!("after {count} messages: {e}"),
                        }
                    }
                    // It may be gone by now.
                    let _ = server.send_bytes(&count.to_le_bytes());
                    let _ = server.recv_bytes();
                });
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let before = generation.load(Ordering::SeqCst);
                let Ok(mut client) = connect::<Connection>(names.of("away"), Duration::from_millis(500)) else {
                    continue;
                };
                let mut count = 0_u64;
                let sent = (0..400).all(|number| {
                    count = number + 1;
                    client.send_bytes(&sized(number)).is_ok()
                });
                let answer =
                    if sent && client.send_bytes(b"").is_ok() { client.recv_bytes_timeout(LONG).ok() } else { None };
                match answer {
                    Some(answer) => {
                        assert_eq!(answer, count.to_le_bytes());
                        whole.fetch_add(1, Ordering::Relaxed);
                    }
                    None => {
                        // At the end, the server's name goes while the client calls.
                        let killed = || generation.load(Ordering::SeqCst) != before || stop.load(Ordering::Relaxed);
                        if !killed() {
                            // The one that kills says so a moment later.
                            thread::sleep(Duration::from_millis(50));
                        }
                        assert!(killed(), "a pipe broke though no bridge was killed");
                        cut_short.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        for _ in 0..kills() {
            moment(400);
            if kill_one(&mut export, &mut import, &line) {
                generation.fetch_add(1, Ordering::SeqCst);
            }
            if export.0.try_wait().unwrap().is_some() {
                export = spawn("export", &endpoint(behind), &names.of("home"), patience);
            }
            if import.0.try_wait().unwrap().is_some() {
                import = spawn("import", &endpoint(line.port), &names.of("away"), patience);
            }
        }
        let so_far = whole.load(Ordering::Relaxed);
        support::eventually("a pipe goes through whole at the end", || whole.load(Ordering::Relaxed) > so_far + 1);
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!(
        "{} kills or cuts: {} pipes went through whole, {} were cut short",
        kills(),
        whole.into_inner(),
        cut_short.into_inner()
    );
}

#[test]
fn pipes_through_a_line_that_is_cut_at_random_lose_nothing() {
    pipes_through(LONG_PATIENCE, |_, _, line| {
        line.cut();
        moment(30);
        line.join();
        // Long enough for another connection.
        moment(200);
        false
    });
}

#[test]
fn pipes_through_bridges_that_are_killed_at_random_are_cut_short_and_nothing_else() {
    let turn = AtomicU64::new(0);
    pipes_through(SOME_PATIENCE, |export, import, _| {
        if turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            export.kill()
        } else {
            import.kill()
        }
        true
    });
}

#[test]
fn hosts_that_are_killed_lose_what_was_ready_there_and_nothing_is_taken_twice() {
    const AHEAD: u64 = 4;
    let names = Names::new();
    let behind = port();
    let home = builder("home").patience(PATIENCE).listen(endpoint(behind)).open().unwrap();
    let mut queue = mpmc::Listener::bind(names.of("home")).unwrap();
    let sender = queue.sender().clone();
    home.export_queue(names.of("home"), "jobs", Direction::Take, Doubt::Lose).unwrap();
    let stop = AtomicBool::new(false);
    let done = Mutex::new(BTreeSet::new());
    let mut sent = 0;
    let mut hosts: Vec<_> =
        (0..2).map(|host| spawn("take", &endpoint(behind), &names.of(&format!("away-{host}")), PATIENCE)).collect();
    thread::scope(|scope| {
        let (stop, done, names) = (&stop, &done, &names);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _ = queue.accept_timeout(Duration::from_millis(50));
            }
        });
        for host in 0..2 {
            scope.spawn(move || {
                let name = names.of(&format!("away-{host}"));
                while !stop.load(Ordering::Relaxed) {
                    let Ok(worker) = connect::<mpmc::Receiver>(&name, Duration::from_millis(200)) else { continue };
                    // A queue whose bridge was killed is at its end for those who have joined.
                    while !stop.load(Ordering::Relaxed) {
                        match worker.recv_bytes_timeout(Duration::from_millis(100)) {
                            Ok(got) => {
                                let number = number_of(&got);
                                assert!(got == sized(number), "a wrong message");
                                assert!(done.lock().unwrap().insert(number), "message {number} was taken twice");
                            }
                            Err(RecvError::TimedOut) => {}
                            Err(_) => break,
                        }
                    }
                }
            });
        }
        for turn in 0..kills() {
            let until = Instant::now() + Duration::from_millis(300);
            while Instant::now() < until {
                if sender.try_send_bytes(&sized(sent)).is_ok() {
                    sent += 1;
                }
                thread::sleep(Duration::from_micros(200));
            }
            let host = (turn % 2) as usize;
            hosts[host].kill();
            hosts[host] = spawn("take", &endpoint(behind), &names.of(&format!("away-{host}")), PATIENCE);
        }
        // The rest is taken by those who live.
        support::eventually("the queue is empty", || sender.is_empty());
        thread::sleep(2 * PATIENCE);
        stop.store(true, Ordering::Relaxed);
    });
    let (done, lost) = (done.into_inner().unwrap().len() as u64, sent);
    let lost = lost - done;
    eprintln!("{} kills: {sent} sent, {done} taken, {lost} lost", kills());
    assert!(done > 0);
    assert!(lost <= kills() * AHEAD, "{lost} were lost by {} kills", kills());
}
