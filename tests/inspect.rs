//! Looking at pipes from outside: what is told of them, and that they do not notice.

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringpipe::inspect::{Flavor, Pipe, Snapshot, is_pipe};
use ringpipe::{Builder, Connection, Listener, RecvError, SendError, connect, mpmc, simplex};
use support::many::{attached, receiving, sending, small};
use support::{Child, for_ever, fork_split, guard};

/// The memory files of this process's pipes, by number.
fn links() -> BTreeMap<u64, PathBuf> {
    let paths = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let ours = paths.filter(|path| std::fs::read_link(path).is_ok_and(|link| is_pipe(&link)));
    ours.map(|path| (Pipe::open(&path).unwrap().id(), path)).collect()
}

/// What `make` makes, and a look at the pipe that it is.
fn made<T>(make: impl FnOnce() -> T) -> (T, Pipe) {
    let before = links();
    let made = make();
    let mut new = links().into_iter().filter(|(id, _)| !before.contains_key(id));
    let (_, path) = new.next().expect("there is a new pipe");
    assert!(new.next().is_none(), "there are two");
    (made, Pipe::open(path).unwrap())
}

/// Looks until it is as it should be.
fn await_sight(pipe: &Pipe, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        let snapshot = pipe.look().unwrap();
        if wanted(&snapshot) {
            return snapshot;
        }
        assert!(Instant::now() < give_up, "not seen: {snapshot:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_waits_is_counted_wherever_in_the_ring_it_lies() {
    let _guard = guard();
    let ((mut receiver, mut sender), pipe) = made(|| Builder::new().capacity(4096).simplex().unwrap());
    assert_eq!((pipe.flavor(), pipe.capacity(), pipe.name(), pipe.maker()), (Flavor::Pipe, 4096, None, None));
    assert_eq!(pipe.look().unwrap().directions[0].mean, None, "there has been nothing to go by");
    let mut waiting = 0;
    for turn in 0_usize..3000 {
        if turn % 5 < 3 && sender.try_send_bytes(&vec![1; turn * 37 % 300]).is_ok() {
            waiting += 1;
        } else if receiver.try_recv_bytes().is_ok() {
            waiting -= 1;
        }
        let seen = &pipe.look().unwrap().directions[0];
        assert_eq!((seen.messages, seen.fill), (Some(waiting), receiver.fill()), "in turn {turn}");
        assert_eq!(seen.sent - seen.received, seen.fill as u64);
        assert!(seen.mean.is_none_or(|mean| (8.0..=400.0).contains(&mean)), "{seen:?}");
    }
}

#[test]
fn what_waits_in_a_queue_is_counted_wherever_it_lies() {
    let _guard = guard();
    let ((receiver, sender), pipe) = made(small);
    assert_eq!((pipe.flavor(), pipe.capacity()), (Flavor::Queue, 64 << 10));
    for turn in 0_usize..3000 {
        if turn % 5 < 3 {
            // Now and then one that lies partly outside of the ring.
            let len = if turn % 100 == 0 { 100_000 } else { turn * 37 % 3000 };
            let _ = sender.try_send_bytes(&vec![1; len]);
        } else {
            let _ = receiver.try_recv_bytes();
        }
        let seen = pipe.look().unwrap();
        let direction = &seen.directions[0];
        assert_eq!((direction.messages, direction.fill), (Some(receiver.len()), receiver.fill()), "in turn {turn}");
        assert_eq!((seen.members, seen.dead.len()), (Some(2), 0));
    }
}

#[test]
fn the_size_of_messages_is_known_by_those_that_have_gone_through() {
    let _guard = guard();
    let ((mut receiver, mut sender), pipe) = made(|| simplex().unwrap());
    for _ in 0..10_000 {
        sender.send_bytes(&[1; 100]).unwrap();
        receiver.recv_bytes().unwrap();
    }
    let seen = &pipe.look().unwrap().directions[0];
    assert_eq!((seen.messages, seen.mean), (Some(0), Some(112.0)), "100 bytes, a header, and padding to 8");
    assert!(seen.sent >= 10_000 * 112);

    let ((receiver, sender), pipe) = made(|| mpmc::simplex().unwrap());
    for _ in 0..10_000 {
        sender.send_bytes(&[1; 100]).unwrap();
        receiver.recv_bytes().unwrap();
    }
    let seen = &pipe.look().unwrap().directions[0];
    assert_eq!((seen.messages, seen.mean, seen.sent), (Some(0), Some(128.0), 10_000 * 128), "two cells each");
}

#[test]
fn who_waits_is_seen_until_it_is_woken() {
    let _guard = guard();
    let ((receiver, sender), pipe) = made(|| Builder::new().capacity(4096).simplex().unwrap());
    let (child, mut sender) = fork_split(sender, receiver, |mut receiver| {
        assert_eq!(receiver.recv_bytes().unwrap(), b"wake up");
        for_ever()
    });
    // That it was asleep before it was parked may still show, until somebody wakes it.
    await_sight(&pipe, |seen| seen.directions[0].receiver.parked && seen.directions[0].receiver.asleep);
    sender.send_bytes(b"wake up").unwrap();
    await_sight(&pipe, |seen| seen.directions[0].fill == 0 && !seen.directions[0].receiver.parked);
    drop(child);

    let ((receiver, sender), pipe) = made(|| Builder::new().capacity(4096).simplex().unwrap());
    assert!(!pipe.look().unwrap().directions[0].sender.parked);
    let (_child, receiver) = fork_split(receiver, sender, |mut sender| {
        while sender.send_bytes(&[0; 500]).is_ok() {}
        for_ever()
    });
    let seen = await_sight(&pipe, |seen| seen.directions[0].sender.parked);
    assert!(seen.directions[0].fill > 3000, "{seen:?}");
    drop(receiver);
}

#[test]
fn members_of_a_queue_that_were_killed_at_work_are_seen_until_somebody_notices() {
    let _guard = guard();
    let killed = |child: Child| {
        child.kill();
        assert!(child.wait().was_killed());
    };
    let (ends, pipe) = made(small);
    let (child, (receiver, sender)) = sending(ends, |sender| {
        let _held = sender.reserve(10).unwrap();
        for_ever()
    });
    // Both sides here, and the child's, which has claimed a cell.
    let claims = |seen: &Snapshot| seen.members == Some(3) && seen.directions[0].fill > 0;
    let seen = await_sight(&pipe, claims);
    assert_eq!((seen.dead.len(), seen.directions[0].messages), (0, Some(0)), "what is being written is no message yet");
    killed(child);
    let seen = pipe.look().unwrap();
    assert_eq!((seen.members, seen.dead.len()), (Some(2), 1), "{seen:?}");
    assert!(matches!(receiver.recv_bytes_timeout(Duration::from_millis(50)), Err(RecvError::TimedOut)));
    assert_eq!(pipe.look().unwrap().dead, [], "it has been noticed");

    sender.send_bytes(b"taken").unwrap();
    let (child, (receiver, _sender)) = receiving((receiver, sender), |receiver| {
        let _held = receiver.recv_guard().unwrap();
        for_ever()
    });
    await_sight(&pipe, |seen| seen.directions[0].fill == 0);
    killed(child);
    assert_eq!(pipe.look().unwrap().dead.len(), 1);

    // One that has waited for so long that it watches for all others.
    let (child, _ends) = receiving((receiver, _sender), |receiver| {
        let _ = receiver.recv_bytes();
        for_ever()
    });
    let leads = await_sight(&pipe, |seen| seen.directions[0].receiver.parked);
    killed(child);
    let seen = pipe.look().unwrap();
    assert!(!seen.directions[0].receiver.parked && seen.dead.len() > leads.dead.len(), "{seen:?}");
}

#[test]
fn whoever_looks_holds_up_no_end_and_changes_nothing() {
    let _guard = guard();
    let ((mut receiver, mut sender), pipe) = made(|| simplex().unwrap());
    let path = &links()[&pipe.id()];
    sender.send_bytes(b"last words").unwrap();
    let contents = || {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let before = contents();
    pipe.look().unwrap();
    assert!(before == contents(), "the pipe was changed");
    drop(sender);
    assert_eq!(receiver.recv_bytes().unwrap(), b"last words");
    assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
    drop(receiver);
    assert_eq!(pipe.look().unwrap().directions[0].fill, 0, "it is still there for who looks");

    let ((receiver, sender), pipe) = made(|| mpmc::simplex().unwrap());
    pipe.look().unwrap();
    let other = attached(sender.clone());
    assert_eq!(pipe.look().unwrap().members, Some(3), "looking takes no membership");
    drop((sender, other));
    assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
    drop(receiver);
    assert_eq!(pipe.look().unwrap().members, Some(0));

    let ((receiver, mut sender), _pipe) = made(|| simplex().unwrap());
    drop(receiver);
    assert!(matches!(sender.send_bytes(b"nobody"), Err(SendError::Disconnected)));
}

#[test]
fn pipes_bear_the_name_of_their_listener() {
    let _guard = guard();
    let dir = std::env::temp_dir().join(format!("ringpipe-inspect-{}", std::process::id()));
    // Longer than the name of a memory file.
    let long = dir.join("long".repeat(50)).join("long".repeat(50));
    std::fs::create_dir_all(&long).unwrap();
    // Whatever it was called by.
    let name = dir.join("..").join(dir.file_name().unwrap()).join("name");
    let mut listener = Listener::bind(&name).unwrap();
    let client = std::thread::spawn(move || connect::<Connection>(&name, Duration::from_secs(10)).unwrap());
    let (accepted, pipe) = made(|| (listener.accept().unwrap(), client.join().unwrap()));
    assert_eq!(pipe.name().unwrap(), dir.canonicalize().unwrap().join("name"));
    assert_eq!((pipe.maker(), pipe.look().unwrap().directions.len()), (Some(std::process::id()), 2));
    drop((accepted, listener));

    let (queue, pipe) = made(|| mpmc::Listener::bind(long.join("queue")).unwrap());
    let (cut, path) = (pipe.name().unwrap().to_str().unwrap(), long.canonicalize().unwrap().join("queue"));
    assert_eq!(pipe.flavor(), Flavor::Queue);
    assert!(!cut.starts_with('/') && cut.len() > 200 && path.to_str().unwrap().ends_with(cut), "{cut}");
    drop(queue);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_is_no_pipe_is_refused() {
    let _guard = guard();
    let path = std::env::temp_dir().join(format!("ringpipe-inspect-fifo-{}", std::process::id()));
    let fifo = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a string that ends.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    // To open it would wait for a writer.
    Pipe::open(&path).unwrap_err();
    std::fs::remove_file(path).unwrap();
    Pipe::open("/dev/null").unwrap_err();
    Pipe::open("/proc/self/fd/1000000").unwrap_err();
    // SAFETY: a string that ends; the descriptor is nobody else's.
    let memory = unsafe {
        use std::os::fd::FromRawFd;
        File::from_raw_fd(libc::memfd_create(c"ringpipe".as_ptr(), libc::MFD_CLOEXEC))
    };
    memory.set_len(1 << 20).unwrap();
    use std::os::fd::AsRawFd;
    let error = Pipe::open(format!("/proc/self/fd/{}", memory.as_raw_fd())).unwrap_err();
    assert!(matches!(error, ringpipe::AttachError::NotSealed), "{error}");
}

#[test]
fn whatever_a_pipe_holds_a_look_ends() {
    let _guard = guard();
    let (_ends, for_two) = made(|| Builder::new().capacity(4096).pipe().unwrap());
    // What is written over it would keep the end of a queue from being closed in order.
    let (ends, for_many) = made(small);
    std::mem::forget(ends);
    let mut state = 1_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for pipe in [for_two, for_many] {
        let memory = File::options().write(true).open(&links()[&pipe.id()]).unwrap();
        let ring = pipe.capacity() as u64;
        for _ in 0..2000 {
            // Cursors and seats, of which some are small or near each other, and then records.
            for word in 0..200 {
                let value = match random() % 3 {
                    0 => random(),
                    1 => random() % (2 * ring),
                    _ => 0_u64.wrapping_sub(random() % (2 * ring)),
                };
                memory.write_all_at(&value.to_ne_bytes(), 256 + 8 * word).unwrap();
            }
            for _ in 0..100 {
                let header = ((0x5250_0000 + random() % 8) << 32) | (random() % 5000);
                let value = if random() % 2 == 0 { header } else { random() };
                memory.write_all_at(&value.to_ne_bytes(), 4096 + 8 * (random() % (ring / 8))).unwrap();
            }
            let seen = pipe.look().unwrap();
            assert!(seen.directions.iter().all(|direction| direction.fill <= pipe.capacity()), "{seen:?}");
        }
    }
}
