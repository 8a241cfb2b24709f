//! Connections by name: whose a name is, who may connect, and what is left behind, with processes that are killed, hostile, silent, or many.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringpipe::{
    AcceptError, Builder, ConnectError, Connection, Connector, ListenError, Listener, NameError, Receiver, RecvError,
    Sender, connect, mpmc,
};
use support::{
    Random, Shared, emulated, eventually, for_ever, fork, fork_copy, guard, guard_for, nanos, open_fds, readable, skip,
};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

/// A directory of a test's own, gone with the value, which checks that the test has left nothing in it.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let dir = std::env::temp_dir().join(format!("ringpipe-test-{}-{:x}", std::process::id(), nanos()));
        std::fs::create_dir(&dir).unwrap();
        Dir(dir)
    }

    fn name(&self) -> PathBuf {
        self.0.join("name")
    }

    fn files(&self) -> Vec<String> {
        let listed = std::fs::read_dir(&self.0).unwrap();
        let mut files: Vec<String> = listed.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let left = self.files();
        let _ = std::fs::remove_dir_all(&self.0);
        if !std::thread::panicking() {
            assert_eq!(left, [""; 0], "files are left");
        }
    }
}

/// Serves one client that sends bytes and wants them back.
fn echo_one(listener: &mut Listener) -> ringpipe::Peer {
    let (mut connection, peer) = listener.accept_timeout(LONG).unwrap();
    let request = connection.recv_bytes_timeout(LONG).unwrap();
    connection.send_bytes(&request).unwrap();
    peer
}

/// Connects and has some bytes sent back.
fn ask(name: &Path, bytes: &[u8]) {
    let mut connection: Connection = connect(name, LONG).unwrap();
    connection.send_bytes(bytes).unwrap();
    assert_eq!(connection.recv_bytes_timeout(LONG).unwrap(), bytes);
}

fn in_use(result: Result<Listener, ListenError>) -> bool {
    match result {
        Ok(_) => false,
        Err(ListenError::InUse { .. }) => true,
        Err(e) => panic!("{e}"),
    }
}

// --- names ------------------------------------------------------------------------------------------

#[test]
fn a_client_gets_a_pipe_of_its_own_and_the_server_learns_who_it_is() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let mut listener = Listener::bind(dir.name()).unwrap();
    assert_eq!(listener.path(), dir.name());
    let client = fork(|| {
        ask(&dir.name(), b"from a child");
        0
    });
    let peer = echo_one(&mut listener);
    assert_eq!(peer.pid(), Some(client.pid as u32));
    // SAFETY: no preconditions.
    assert_eq!((peer.uid(), peer.gid()), unsafe { (libc::geteuid(), libc::getegid()) });
    client.succeeds();
    assert!(matches!(listener.try_accept(), Err(AcceptError::Empty)));
    let start = Instant::now();
    assert!(matches!(listener.accept_timeout(SHORT), Err(AcceptError::TimedOut)));
    assert!(start.elapsed() >= SHORT);
    let deadline = Instant::now() + SHORT;
    assert!(matches!(listener.accept_deadline(deadline), Err(AcceptError::TimedOut)));
}

#[test]
fn a_bare_name_lies_in_a_directory_of_the_users_own() {
    let (_alone, _watchdog) = guard();
    let name = format!("test-{}-{:x}", std::process::id(), nanos());
    let mut listener = Listener::bind(&name).unwrap();
    let path = listener.path().to_owned();
    let dir = path.parent().unwrap().metadata().unwrap();
    assert_eq!(dir.mode() & 0o777, 0o700);
    // SAFETY: no preconditions.
    assert_eq!(dir.uid(), unsafe { libc::geteuid() });
    // What tidies up by age locks a directory first, and goes past those where it cannot.
    let tidier = std::fs::File::open(path.parent().unwrap()).unwrap();
    assert!(matches!(tidier.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    let asked = name.clone();
    let client = std::thread::spawn(move || ask(Path::new(&asked), b"hello"));
    echo_one(&mut listener);
    client.join().unwrap();
    drop(listener);
    assert!(!path.exists());
    assert!(!path.with_file_name(format!(".{name}.lock")).exists());
}

#[test]
fn names_that_cannot_be_are_refused_and_leave_nothing() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let bind = |name: &Path| Listener::bind(name).map(|_| ()).unwrap_err();
    let within = |name: &str| dir.0.join(name);
    assert!(matches!(bind(Path::new("")), ListenError::Name(NameError::Empty)));
    assert!(matches!(bind(Path::new("a\0b")), ListenError::Name(NameError::Nul)));
    for name in [".", "..", ".hidden"] {
        assert!(matches!(bind(Path::new(name)), ListenError::Name(NameError::Reserved { .. })), "{name}");
    }
    for name in ["x/", "..", ".x.lock", ".x.new"] {
        assert!(matches!(bind(&within(name)), ListenError::Name(NameError::Reserved { .. })), "{name}");
    }
    let long = "x".repeat(200);
    for name in [PathBuf::from(&long), within(&long)] {
        assert!(matches!(bind(&name), ListenError::Name(NameError::TooLong { len: 200, .. })));
        let connected = connect::<Connection>(&name, Duration::ZERO);
        assert!(matches!(connected, Err(ConnectError::Name(NameError::TooLong { .. }))));
    }
    assert!(matches!(bind(&within("no/where")), ListenError::Name(NameError::Directory { .. })));
    let oversized = Listener::builder().pipes(Builder::new().capacity(0)).bind(within("x"));
    assert!(matches!(oversized, Err(ListenError::Build(_))));
}

#[test]
fn a_path_may_be_longer_than_the_address_of_a_socket() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let top = dir.0.join("d".repeat(100));
    let deep = top.join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    let name = deep.join("n".repeat(76));
    let mut listener = Listener::bind(&name).unwrap();
    assert!(name.exists());
    let asked = name.clone();
    let client = std::thread::spawn(move || ask(&asked, b"hello"));
    echo_one(&mut listener);
    client.join().unwrap();
    drop(listener);
    assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 0);
    std::fs::remove_dir_all(&top).unwrap();
}

#[test]
fn what_lies_there_and_is_no_socket_is_left_alone() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let name = dir.name();
    std::fs::write(&name, "precious").unwrap();
    assert!(matches!(Listener::bind(&name), Err(ListenError::NotASocket { .. })));
    assert_eq!(std::fs::read(&name).unwrap(), b"precious");
    std::fs::remove_file(&name).unwrap();

    let target = dir.0.join("target");
    std::fs::write(&target, "precious").unwrap();
    symlink(&target, &name).unwrap();
    assert!(matches!(Listener::bind(&name), Err(ListenError::NotASocket { .. })));
    std::fs::remove_file(&name).unwrap();
    let lock = dir.0.join(".name.lock");
    symlink(&target, &lock).unwrap();
    assert!(matches!(Listener::bind(&name), Err(ListenError::Io { what: "lock", .. })));
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    std::fs::remove_file(&lock).unwrap();
    std::fs::remove_file(&target).unwrap();
}

#[test]
fn the_file_has_the_mode_asked_for_whatever_the_umask() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let child = fork(|| {
        for umask in [0, 0o077] {
            // SAFETY: no preconditions.
            unsafe { libc::umask(umask) };
            let mode = |listener: &Listener| listener.path().metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(&Listener::bind(dir.name()).unwrap()), 0o600);
            assert_eq!(mode(&Listener::builder().mode(0o660).bind(dir.name()).unwrap()), 0o660);
            assert_eq!(mode(&Listener::builder().allow_uid(1).bind(dir.name()).unwrap()), 0o666);
        }
        0
    });
    child.succeeds();
}

// --- whose a name is ----------------------------------------------------------------------------------

#[test]
fn a_name_in_use_is_refused_until_it_is_given_up() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let first = Listener::bind(dir.name()).unwrap();
    assert!(in_use(Listener::bind(dir.name())));
    fork(|| i32::from(!in_use(Listener::bind(dir.name())))).succeeds();
    let error = std::io::Error::from(mpmc::Listener::bind(dir.name()).unwrap_err());
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    // By those who were refused, nothing was removed.
    assert_eq!(dir.files(), [".name.lock", "name"]);
    drop(first);
    assert_eq!(dir.files(), [""; 0]);
    drop(Listener::bind(dir.name()).unwrap());
}

#[test]
fn a_living_listener_that_knows_nothing_of_locks_is_left_alone() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let foreign = UnixListener::bind(dir.name()).unwrap();
    assert!(in_use(Listener::bind(dir.name())));
    assert_eq!(dir.files(), ["name"]);
    drop(foreign);
    // Nobody listens any more.
    drop(Listener::bind(dir.name()).unwrap());
    let foreign = UnixDatagram::bind(dir.name()).unwrap();
    assert!(in_use(Listener::bind(dir.name())));
    assert!(matches!(connect::<Connection>(dir.name(), LONG), Err(ConnectError::NotAListener { .. })));
    drop(foreign);
    std::fs::remove_file(dir.name()).unwrap();
}

#[test]
fn a_listener_whose_files_were_removed_by_hand_removes_none_of_its_successor() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let first = Listener::bind(dir.name()).unwrap();
    // Without its lock the socket still says that somebody listens.
    std::fs::remove_file(dir.0.join(".name.lock")).unwrap();
    assert!(in_use(Listener::bind(dir.name())));
    std::fs::remove_file(dir.name()).unwrap();
    let mut second = Listener::bind(dir.name()).unwrap();
    drop(first);
    assert_eq!(dir.files(), [".name.lock", "name"]);
    let name = dir.name();
    let client = std::thread::spawn(move || ask(&name, b"hello"));
    echo_one(&mut second);
    client.join().unwrap();
}

#[test]
fn what_a_killed_owner_left_is_taken_over() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    for _ in 0..5 {
        let ready = Shared::new();
        let owner = fork(|| {
            let _listener = Listener::bind(dir.name()).unwrap();
            ready.set(0, 1);
            for_ever()
        });
        ready.await_at_least(0, 1);
        assert!(in_use(Listener::bind(dir.name())));
        owner.kill();
        owner.wait();
        assert_eq!(dir.files(), [".name.lock", "name"]);
        let start = Instant::now();
        let refused = connect::<Connection>(dir.name(), SHORT);
        assert!(matches!(refused, Err(ConnectError::TimedOut { .. })), "{refused:?}");
        assert!(start.elapsed() >= SHORT);
    }
    drop(Listener::bind(dir.name()).unwrap());
}

#[test]
fn an_owner_killed_at_any_moment_leaves_a_name_that_can_be_taken() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let mut random = Random::new(22);
    let mut seen = [0; 4];
    for _ in 0..200 {
        let owner = fork(|| {
            loop {
                drop(Listener::bind(dir.name()).unwrap());
            }
        });
        std::thread::sleep(Duration::from_micros(500 + random.below(3000)));
        owner.kill();
        owner.wait();
        seen[dir.files().len()] += 1;
        drop(Listener::bind(dir.name()).unwrap());
        assert_eq!(dir.files(), [""; 0]);
    }
    println!("files left by 200 kills: none {}, one {}, two {}", seen[0], seen[1], seen[2]);
    assert!(seen[2] > 0, "none was killed while it had the name");
}

#[test]
fn of_twenty_creators_exactly_one_wins() {
    let (_alone, _watchdog) = guard_for(100);
    let dir = Dir::new();
    for round in 0..30 {
        // 0: how many are ready; 1: go; 2: winners; 3: losers; 4: leave.
        let words = Shared::new();
        let creators: Vec<_> = (0..20)
            .map(|_| {
                fork(|| {
                    words.word(0).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    while words.get(1) == 0 {
                        std::hint::spin_loop();
                        std::thread::yield_now();
                    }
                    let bound = Listener::bind(dir.name());
                    let place = if bound.is_ok() { 2 } else { 3 };
                    words.word(place).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    words.await_at_least(4, 1);
                    i32::from(!in_use(bound) && place == 3)
                })
            })
            .collect();
        words.await_at_least(0, 20);
        words.set(1, 1);
        eventually("all have tried", || words.get(2) + words.get(3) == 20);
        assert_eq!(words.get(2), 1, "winners in round {round}");
        if round % 2 == 0 {
            // The next ones find what the killed left.
            creators.iter().for_each(support::Child::kill);
            creators.iter().for_each(|creator| assert!(creator.wait().was_killed()));
        } else {
            words.set(4, 1);
            creators.iter().for_each(support::Child::succeeds);
            assert_eq!(dir.files(), [""; 0]);
        }
    }
}

#[test]
fn owners_that_come_and_go_all_the_time_never_have_a_name_together() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let words = Shared::new();
    let owners: Vec<_> = (0..6)
        .map(|_| {
            fork(|| {
                let end = Instant::now() + Duration::from_secs(2);
                while Instant::now() < end {
                    let bound = Listener::bind(dir.name());
                    if let Ok(listener) = &bound {
                        assert_eq!(listener.path(), dir.name());
                        let before = words.word(0).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(before, 0, "two own the name");
                        assert!(dir.name().exists(), "the name of a living owner was removed");
                        words.word(1).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        words.word(0).fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                    // Whoever has not got it was told the right reason.
                    in_use(bound);
                }
                0
            })
        })
        .collect();
    owners.iter().for_each(support::Child::succeeds);
    println!("owners in turn: {}", words.get(1));
    assert!(words.get(1) > 100);
}

#[test]
fn a_forked_childs_copy_keeps_the_name_taken_and_does_not_give_it_up() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let listener = Listener::bind(dir.name()).unwrap();
    let (dropper, listener) = fork_copy(listener, |mut listener| {
        assert!(matches!(listener.try_accept(), Err(AcceptError::Forked)));
        drop(listener);
        0
    });
    dropper.succeeds();
    assert_eq!(dir.files(), [".name.lock", "name"]);
    let (keeper, listener) = fork_copy(listener, |_listener| for_ever());
    drop(listener);
    assert_eq!(dir.files(), [""; 0]);
    // The files are gone, and with them what the child's copy could keep.
    drop(Listener::bind(dir.name()).unwrap());
    keeper.kill();

    // An owner that is killed, with a child that lives on:
    let words = Shared::new();
    let owner = fork(|| {
        let _listener = Listener::bind(dir.name()).unwrap();
        let keeper = fork(|| {
            words.await_at_least(1, 1);
            0
        });
        words.set(0, keeper.pid as u64);
        for_ever()
    });
    words.await_at_least(0, 1);
    owner.kill();
    assert!(owner.wait().was_killed());
    assert!(in_use(Listener::bind(dir.name())));
    words.set(1, 1);
    eventually("the last copy is gone", || Listener::bind(dir.name()).is_ok());
}

// --- waiting ------------------------------------------------------------------------------------------

#[test]
fn a_client_waits_for_the_name_and_for_an_owner_that_accepts() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let within = dir.0.join("later");
    let name = within.join("name");
    let clients: Vec<_> = (0..3)
        .map(|_| {
            fork(|| {
                ask(&name, b"hello");
                0
            })
        })
        .collect();
    std::thread::sleep(SHORT);
    std::fs::create_dir(&within).unwrap();
    std::thread::sleep(SHORT);
    // One that goes away again, having accepted nobody.
    let listener = Listener::bind(&name).unwrap();
    std::thread::sleep(SHORT);
    drop(listener);
    let mut listener = Listener::bind(&name).unwrap();
    let served: Vec<_> = (0..3).filter_map(|_| echo_one(&mut listener).pid()).collect();
    assert_eq!(served.len(), 3);
    clients.iter().for_each(support::Child::succeeds);
    drop(listener);
    std::fs::remove_dir(&within).unwrap();
}

#[test]
fn a_client_runs_out_of_time_wherever_it_waits() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let timed_out = |wanted: &str| {
        let start = Instant::now();
        match connect::<Connection>(dir.name(), SHORT) {
            Err(ConnectError::TimedOut { what, timeout, .. }) => {
                assert!(what.contains(wanted), "{what}");
                assert_eq!(timeout, SHORT);
            }
            other => panic!("{other:?}"),
        }
        assert!(start.elapsed() >= SHORT && start.elapsed() < 40 * SHORT, "{:?}", start.elapsed());
    };
    timed_out("no such name");
    let listener = Listener::builder().backlog(1).bind(dir.name()).unwrap();
    timed_out("does not accept");
    let _waiting: Vec<UnixStream> = (0..1).map(|_| UnixStream::connect(dir.name()).unwrap()).collect();
    timed_out("too many wait");
    assert!(matches!(connect::<Connection>(dir.name(), Duration::ZERO), Err(ConnectError::TimedOut { .. })));
    drop(listener);
    drop(UnixListener::bind(dir.name()).unwrap());
    timed_out("nobody listens");
    std::fs::remove_file(dir.name()).unwrap();
}

#[test]
fn the_descriptor_of_a_listener_is_readable_when_there_is_something_to_do() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let mut listener = Listener::bind(dir.name()).unwrap();
    assert!(!readable(&listener));
    let mut slow = UnixStream::connect(dir.name()).unwrap();
    assert!(readable(&listener));
    assert!(matches!(listener.try_accept(), Err(AcceptError::Empty)));
    assert!(!readable(&listener), "who has connected and says nothing is kept aside");
    slow.write_all(&request(1, 3)).unwrap();
    assert!(readable(&listener));
    listener.try_accept().unwrap();
    assert!(!readable(&listener));
}

// --- who may ------------------------------------------------------------------------------------------

/// As `greeting.rs` describes it.
fn request(version: u8, kind: u8) -> [u8; 16] {
    let mut bytes = *b"ringpipe........";
    bytes[8..].fill(0);
    bytes[8..10].copy_from_slice(&[version, kind]);
    bytes
}

#[test]
fn who_asks_for_what_is_not_handed_out_is_told_what_is() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let mut listener = Listener::bind(dir.name()).unwrap();
    let client = fork(|| {
        let message = |result: Result<(), ConnectError>| match result {
            Err(e @ ConnectError::WrongEnd { .. }) => e.to_string(),
            other => panic!("{other:?}"),
        };
        let text = message(connect::<mpmc::Sender>(dir.name(), LONG).map(drop));
        assert!(text.contains("a sender for many is wanted") && text.contains("hands out connections"), "{text}");
        message(connect::<Sender>(dir.name(), LONG).map(drop));
        message(connect::<Receiver>(dir.name(), LONG).map(drop));
        message(connect::<mpmc::Receiver>(dir.name(), LONG).map(drop));
        ask(&dir.name(), b"right at last");
        0
    });
    echo_one(&mut listener);
    client.succeeds();
    drop(listener);

    let mut queue = mpmc::Listener::bind(dir.name()).unwrap();
    let client = fork(|| match connect::<Connection>(dir.name(), LONG) {
        Err(ConnectError::WrongEnd { theirs, .. }) => i32::from(theirs != "senders and receivers for many"),
        other => panic!("{other:?}"),
    });
    assert!(matches!(queue.accept_timeout(Duration::from_secs(1)), Err(AcceptError::TimedOut)));
    client.succeeds();
}

#[test]
fn builds_that_speak_otherwise_are_told_so_on_both_sides() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let mut listener = Listener::bind(dir.name()).unwrap();
    let mut newer = UnixStream::connect(dir.name()).unwrap();
    newer.write_all(&request(9, 3)).unwrap();
    assert!(matches!(listener.try_accept(), Err(AcceptError::Empty)));
    let mut answer = Vec::new();
    newer.read_to_end(&mut answer).unwrap();
    assert_eq!((&answer[..8], answer[8], answer[9]), (&b"ringpipe"[..], 1, 1), "its version, and that it is another");
    drop(listener);

    for (said, of_another_version) in [(request(9, 0), true), (*b"HTTP/1.1 400 Bad", false)] {
        let other = UnixListener::bind(dir.name()).unwrap();
        let server = std::thread::spawn(move || {
            let (mut client, _) = other.accept().unwrap();
            client.write_all(&said).unwrap();
            client.read_exact(&mut [0; 16]).unwrap();
        });
        match connect::<Connection>(dir.name(), LONG) {
            Err(ConnectError::Version { ours: 1, theirs: 9, .. }) => assert!(of_another_version),
            Err(ConnectError::NotAListener { .. }) => assert!(!of_another_version),
            other => panic!("{other:?}"),
        }
        server.join().unwrap();
        std::fs::remove_file(dir.name()).unwrap();
    }
}

const NOBODY: u32 = 65534;

/// Becomes another user, which only the superuser can.
fn become_nobody() {
    // SAFETY: no preconditions. By the system call, since the C library would have other threads follow, which a forked child has not.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setgid, NOBODY), 0);
        assert_eq!(libc::syscall(libc::SYS_setuid, NOBODY), 0);
    }
}

fn is_superuser() -> bool {
    // SAFETY: no preconditions.
    let is = unsafe { libc::geteuid() } == 0;
    if !is {
        skip("another user's connecting", "only the superuser can become another one");
    }
    is
}

#[test]
fn another_user_is_refused_unless_allowed() {
    let (_alone, _watchdog) = guard();
    if !is_superuser() {
        return;
    }
    let dir = Dir::new();
    std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |expected: fn(Result<Connection, ConnectError>)| {
        fork(|| {
            become_nobody();
            expected(connect(dir.name(), LONG));
            0
        })
    };
    // By the file's mode:
    let listener = Listener::bind(dir.name()).unwrap();
    let refused = as_nobody(|result| match result {
        Err(ConnectError::Io { error, .. }) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        other => panic!("{other:?}"),
    });
    refused.succeeds();
    drop(listener);
    // By what the kernel says who it is:
    let mut listener = Listener::builder().mode(0o666).bind(dir.name()).unwrap();
    let refused = as_nobody(|result| assert!(matches!(result, Err(ConnectError::NotAllowed { .. })), "{result:?}"));
    assert!(matches!(listener.accept_timeout(Duration::from_millis(500)), Err(AcceptError::TimedOut)));
    refused.succeeds();
    drop(listener);
    // Unless it is allowed:
    let mut listener = Listener::builder().allow_uid(NOBODY).bind(dir.name()).unwrap();
    let served = as_nobody(|result| {
        let mut connection = result.unwrap();
        connection.send_bytes(b"hello").unwrap();
        assert_eq!(connection.recv_bytes_timeout(LONG).unwrap(), b"hello");
    });
    assert_eq!(echo_one(&mut listener).uid(), NOBODY);
    served.succeeds();
}

#[test]
fn another_users_listener_is_a_stranger_unless_allowed() {
    let (_alone, _watchdog) = guard();
    if !is_superuser() {
        return;
    }
    let dir = Dir::new();
    std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    let server = fork(|| {
        become_nobody();
        // The superuser may connect as it is.
        let mut listener = Listener::bind(dir.name()).unwrap();
        echo_one(&mut listener);
        0
    });
    match connect::<Connection>(dir.name(), LONG) {
        Err(ConnectError::Stranger { uid: NOBODY, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(Listener::bind(dir.name()), Err(ListenError::Foreign { uid: NOBODY, .. })));
    let mut connection: Connection = Connector::new().allow_uid(NOBODY).connect(dir.name(), LONG).unwrap();
    connection.send_bytes(b"hello").unwrap();
    assert_eq!(connection.recv_bytes_timeout(LONG).unwrap(), b"hello");
    server.succeeds();
}

// --- hostile and unlucky clients ------------------------------------------------------------------------

/// Descriptors of this process that are there when a test is done and were not before.
fn leaked(before: &[i32]) -> Vec<i32> {
    open_fds().into_iter().filter(|fd| !before.contains(fd)).collect()
}

#[test]
fn who_connects_and_says_nothing_holds_up_nobody_and_is_turned_away() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let before = open_fds();
    let words = Shared::new();
    let mut listener = Listener::bind(dir.name()).unwrap();
    let silent = fork(|| {
        let mut sockets: Vec<UnixStream> = (0..300).map(|_| UnixStream::connect(dir.name()).unwrap()).collect();
        for (number, socket) in sockets.iter_mut().enumerate() {
            // Some say the half of it.
            let _ = socket.write_all(&request(1, 3)[..number % 16]);
        }
        words.set(0, 1);
        let start = Instant::now();
        for socket in &mut sockets {
            // The end, or an end with what was not read.
            let _ = socket.read(&mut [0]);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "turned away after {:?}", start.elapsed());
        words.set(0, 2);
        words.await_at_least(1, 1);
        0
    });
    words.await_at_least(0, 1);
    let client = fork(|| {
        let start = Instant::now();
        ask(&dir.name(), b"behind 300 of them");
        i32::from(start.elapsed() > Duration::from_millis(900) && !emulated())
    });
    echo_one(&mut listener);
    client.succeeds();
    // At most 64 of them are kept aside.
    let kept = leaked(&before).len();
    assert!((1..80).contains(&kept), "{kept} descriptors");
    while words.get(0) < 2 {
        assert!(matches!(listener.accept_timeout(SHORT), Err(AcceptError::TimedOut)));
    }
    words.set(1, 1);
    silent.succeeds();
    drop(listener);
    assert_eq!(leaked(&before), [0; 0]);
}

#[test]
fn garbage_and_floods_of_it_hold_up_nobody() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let before = open_fds();
    let words = Shared::new();
    let mut listener = Listener::bind(dir.name()).unwrap();
    let hostile: Vec<_> = (0..3)
        .map(|seed| {
            fork(|| {
                let mut random = Random::new(seed);
                while words.get(0) == 0 {
                    let Ok(mut socket) = UnixStream::connect(dir.name()) else { continue };
                    let mut bytes = request(1, 3).to_vec();
                    match random.below(4) {
                        0 => bytes.fill_with(|| random.next() as u8),
                        1 => bytes.truncate(random.below(16) as usize),
                        2 => bytes[9] = random.next() as u8 | 8,
                        _ => bytes.resize(10_000, 7),
                    }
                    let _ = socket.write_all(&bytes);
                    if random.below(2) == 0 {
                        let _ = socket.read(&mut [0; 100]);
                    }
                }
                0
            })
        })
        .collect();
    let client = fork(|| {
        for number in 0..200_u64 {
            ask(&dir.name(), &number.to_le_bytes());
        }
        words.set(0, 1);
        0
    });
    let mut served = 0;
    while words.get(0) == 0 {
        // Some of the garbage asks for a connection, and is given one.
        let Ok((mut connection, _)) = listener.accept_timeout(SHORT) else { continue };
        if let Ok(asked) = connection.recv_bytes_timeout(LONG) {
            connection.send_bytes(&asked).unwrap();
            served += 1;
        }
    }
    assert_eq!(served, 200);
    client.succeeds();
    // Lets those go that wait in the queue.
    drop(listener);
    hostile.iter().for_each(support::Child::succeeds);
    assert_eq!(leaked(&before), [0; 0]);
}

#[test]
fn clients_killed_at_any_moment_cost_nothing() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let before = open_fds();
    let mut listener = Listener::bind(dir.name()).unwrap();
    let mut random = Random::new(3);
    let mut given = 0;
    for _ in 0..150 {
        let client = fork(|| {
            loop {
                drop(connect::<Connection>(dir.name(), LONG));
            }
        });
        let end = Instant::now() + Duration::from_micros(random.below(4000));
        while Instant::now() < end {
            given += usize::from(listener.accept_deadline(end).is_ok());
        }
        client.kill();
        assert!(client.wait().was_killed());
        // Who was on its way, or was given an end and killed, is at its end of file.
        while let Ok((mut connection, _)) = listener.accept_timeout(Duration::from_millis(1)) {
            let left = connection.recv_bytes_timeout(LONG);
            assert!(matches!(left, Err(RecvError::Disconnected)), "{left:?}");
        }
    }
    assert!(given > 100, "{given}");
    let name = dir.name();
    let client = std::thread::spawn(move || ask(&name, b"hello"));
    echo_one(&mut listener);
    client.join().unwrap();
    drop(listener);
    assert_eq!(leaked(&before), [0; 0]);
}

#[test]
fn a_thousand_clients_connect_at_once_exchange_and_leave_three_times() {
    let (_alone, _watchdog) = guard_for(110);
    // An emulator takes its time for each process.
    let count: u64 = if emulated() { 50 } else { 1000 };
    let dir = Dir::new();
    let before = open_fds();
    let mut listener = Listener::bind(dir.name()).unwrap();
    for round in 0..3 {
        // How many are ready; they wait in the kernel, so as not to be in each other's way.
        let words = Shared::new();
        let (mut starter, gate) = UnixStream::pair().unwrap();
        let clients: Vec<_> = (0..count)
            .map(|number| {
                let (words, mut gate, name) = (&words, &gate, dir.name());
                fork(move || {
                    support::may_take(100);
                    words.word(0).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    gate.read_exact(&mut [0]).unwrap();
                    ask(&name, &(number * 3 + round).to_le_bytes());
                    0
                })
            })
            .collect();
        words.await_at_least(0, count);
        let start = Instant::now();
        starter.write_all(&vec![0; count as usize]).unwrap();
        let mut seen = vec![false; count as usize];
        for _ in 0..count {
            let (mut connection, _) = listener.accept_timeout(LONG).unwrap();
            let asked = connection.recv_bytes_timeout(LONG).unwrap();
            connection.send_bytes(&asked).unwrap();
            let number = u64::from_le_bytes(asked.try_into().unwrap());
            assert_eq!(number % 3, round);
            assert!(!std::mem::replace(&mut seen[(number / 3) as usize], true), "served twice");
        }
        println!("{count} clients served in {:?}", start.elapsed());
        clients.iter().for_each(support::Child::succeeds);
        assert!(matches!(listener.try_accept(), Err(AcceptError::Empty)));
    }
    drop(listener);
    assert_eq!(leaked(&before), [0; 0]);
}

/// Opens so many descriptors that none is free below the last one, and returns which are open then.
fn fill_gaps() -> Vec<i32> {
    let last = *open_fds().last().unwrap();
    // SAFETY: makes copies of an open descriptor, which are nobody else's.
    while unsafe { libc::dup(2) } <= last {}
    open_fds()
}

/// Allows this process so many more than were `open` when it had no gaps.
fn limit_descriptors(open: &[i32], more: i32) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointers lead to a limit.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = (open.last().unwrap() + 1 + more) as libc::rlim_t;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

#[test]
fn out_of_descriptors_a_listener_says_so_and_goes_on_afterwards() {
    let (_alone, _watchdog) = guard();
    if emulated() {
        return skip("a listener out of descriptors", "the limit would be the emulator's");
    }
    let dir = Dir::new();
    let words = Shared::new();
    let server = fork(|| {
        let mut listener = Listener::bind(dir.name()).unwrap();
        let before = fill_gaps();
        let limit = |free| limit_descriptors(&before, free);
        // With none, the client cannot be accepted; with some, no pipe can be made for it.
        for free in 0..=7 {
            limit(free);
            words.set(0, free as u64 + 1);
            let result = loop {
                match listener.accept_timeout(SHORT) {
                    Err(AcceptError::TimedOut) => {}
                    other => break other,
                }
            };
            limit(200);
            match result {
                // The client is still in the queue.
                Err(AcceptError::Io(e)) => {
                    assert_eq!(e.raw_os_error(), Some(libc::EMFILE));
                    assert_eq!(free, 0);
                    echo_one(&mut listener);
                }
                Err(AcceptError::Build(e)) => {
                    let text = e.to_string();
                    assert!(text.contains("Too many open files"), "{text}");
                    assert!((1..6).contains(&free), "{free}");
                    words.set(2, free as u64);
                }
                Ok((mut connection, _)) => {
                    assert!(free >= 6, "{free}");
                    let asked = connection.recv_bytes_timeout(LONG).unwrap();
                    connection.send_bytes(&asked).unwrap();
                }
                Err(e) => panic!("{e}"),
            }
            assert_eq!(leaked(&before), [0; 0]);
            words.await_at_least(1, free as u64 + 1);
        }
        0
    });
    for free in 0..=7 {
        words.await_at_least(0, free + 1);
        match connect::<Connection>(dir.name(), LONG) {
            Ok(mut connection) => {
                connection.send_bytes(b"hello").unwrap();
                assert_eq!(connection.recv_bytes_timeout(LONG).unwrap(), b"hello");
            }
            Err(ConnectError::Listener { error, .. }) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE)),
            Err(e) => panic!("{e}"),
        }
        words.set(1, free + 1);
    }
    server.succeeds();
    assert!(words.get(2) >= 1, "a pipe was made out of nothing");
}

#[test]
fn the_last_descriptor_is_enough_for_one_who_has_not_spoken_yet() {
    let (_alone, _watchdog) = guard();
    if emulated() {
        return skip("a listener with one descriptor left", "the limit would be the emulator's");
    }
    let dir = Dir::new();
    let server = fork(|| {
        let mut listener = Listener::bind(dir.name()).unwrap();
        let mut first = UnixStream::connect(dir.name()).unwrap();
        let before = fill_gaps();
        limit_descriptors(&before, 1);
        assert!(matches!(listener.try_accept(), Err(AcceptError::Empty)), "there is nobody else");
        first.write_all(&request(1, 3)).unwrap();
        let result = listener.try_accept();
        assert!(matches!(result, Err(AcceptError::Build(_))), "{result:?}");
        let mut answer = Vec::new();
        first.read_to_end(&mut answer).unwrap();
        assert_ne!(answer, [], "it was told so");

        // Of two in the queue the second is one too many.
        limit_descriptors(&before, 200);
        let mut waiting: Vec<_> = (0..2).map(|_| UnixStream::connect(dir.name()).unwrap()).collect();
        let before = fill_gaps();
        limit_descriptors(&before, 1);
        let result = listener.try_accept();
        assert!(matches!(&result, Err(AcceptError::Io(e)) if e.raw_os_error() == Some(libc::EMFILE)), "{result:?}");
        limit_descriptors(&before, 200);
        for client in &mut waiting {
            client.write_all(&request(1, 3)).unwrap();
            listener.try_accept().unwrap();
        }
        0
    });
    server.succeeds();
}

// --- a pipe for many, by its name -----------------------------------------------------------------------

#[test]
fn many_processes_join_one_queue_by_its_name() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let before = open_fds();
    // 0: senders that have not come to their end; 1: sum of what was received; 2: how many messages.
    let words = Shared::new();
    // Some come before the name.
    let senders: Vec<_> = (0..4_u64)
        .map(|number| {
            let name = dir.name();
            fork(move || {
                let sender: mpmc::Sender = connect(name, LONG).unwrap();
                (0..500).for_each(|i| sender.send_bytes(&(number * 500 + i).to_le_bytes()).unwrap());
                0
            })
        })
        .collect();
    let mut queue = mpmc::Listener::bind(dir.name()).unwrap();
    let receivers: Vec<_> = (0..4)
        .map(|_| {
            let (words, name) = (&words, dir.name());
            let mut copy = None::<&mut mpmc::Listener>;
            fork(move || {
                copy.take();
                let receiver: mpmc::Receiver = connect(name, LONG).unwrap();
                loop {
                    match receiver.recv_bytes_timeout(LONG) {
                        Ok(message) if message == b"stop" => return 0,
                        Ok(message) => {
                            let number = u64::from_le_bytes(message.try_into().unwrap());
                            words.word(1).fetch_add(number, std::sync::atomic::Ordering::SeqCst);
                            words.word(2).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
            })
        })
        .collect();
    let mut joined = [0; 2];
    for _ in 0..8 {
        let (role, peer) = queue.accept_timeout(LONG).unwrap();
        joined[usize::from(role == mpmc::Role::Receiver)] += 1;
        assert!(peer.pid().is_some());
    }
    assert_eq!(joined, [4, 4]);
    senders.iter().for_each(support::Child::succeeds);
    eventually("all is received", || words.get(2) == 2000);
    assert_eq!(words.get(1), (0..2000).sum::<u64>());
    (0..4).for_each(|_| queue.sender().send_bytes(b"stop").unwrap());
    receivers.iter().for_each(support::Child::succeeds);
    assert!(matches!(queue.receiver().try_recv_bytes(), Err(RecvError::Empty)));
    drop(queue);
    assert_eq!(leaked(&before), [0; 0]);
}

#[test]
fn when_the_listener_of_a_queue_is_killed_the_pipe_comes_to_its_end_among_those_who_joined() {
    let (_alone, _watchdog) = guard();
    let dir = Dir::new();
    let server = fork(|| {
        let mut queue = mpmc::Listener::bind(dir.name()).unwrap();
        panic!("{}", queue.serve())
    });
    let receiver: mpmc::Receiver = connect(dir.name(), LONG).unwrap();
    let sender: mpmc::Sender = connect(dir.name(), LONG).unwrap();
    sender.send_bytes(b"one").unwrap();
    drop(sender);
    assert_eq!(receiver.recv_bytes_timeout(LONG).unwrap(), b"one");
    // There may still be senders to come.
    assert!(matches!(receiver.recv_bytes_timeout(SHORT), Err(RecvError::TimedOut)));
    server.kill();
    assert!(server.wait().was_killed());
    assert!(matches!(receiver.recv_bytes_timeout(LONG), Err(RecvError::Disconnected)));
    drop(mpmc::Listener::bind(dir.name()).unwrap());
}

// --- containers -----------------------------------------------------------------------------------------

/// Enters a PID namespace (of its children) and a mount namespace of its own, where `dir` is to be found at `at`, too.
fn enter_namespaces(dir: &Path, at: &Path) -> Result<(), String> {
    use std::os::unix::ffi::OsStrExt;
    let failed = |what: &str| format!("{what}: {}", std::io::Error::last_os_error());
    let [dir, at] = [dir, at].map(|path| std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap());
    // SAFETY: the strings end in zero bytes; what is mounted is seen by this process and its children only.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID) != 0 {
            return Err(failed("unshare"));
        }
        let none = std::ptr::null();
        if libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) != 0 {
            return Err(failed("mount /"));
        }
        if libc::mount(dir.as_ptr(), at.as_ptr(), none, libc::MS_BIND, none.cast()) != 0 {
            return Err(failed("mount the directory"));
        }
    }
    Ok(())
}

#[test]
fn a_name_reaches_into_a_container_that_has_its_directory() {
    let (_alone, _watchdog) = guard();
    let (dir, elsewhere) = (Dir::new(), Dir::new());
    let permitted = fork(|| match enter_namespaces(&dir.0, &elsewhere.0) {
        Ok(()) => 0,
        Err(why) => {
            skip("a name in a container", &why);
            1
        }
    });
    if permitted.wait().code() != Some(0) {
        return;
    }
    // A client in the container:
    let mut listener = Listener::bind(dir.name()).unwrap();
    let container = fork(|| {
        enter_namespaces(&dir.0, &elsewhere.0).unwrap();
        let client = fork(|| {
            assert_eq!(std::process::id(), 1);
            ask(&elsewhere.name(), b"from a container");
            0
        });
        client.wait().code().unwrap_or(99)
    });
    assert!(echo_one(&mut listener).pid().is_some(), "a parent namespace sees it, under another number");
    container.succeeds();
    drop(listener);

    // A server in the container, which cannot see who comes:
    let container = fork(|| {
        enter_namespaces(&dir.0, &elsewhere.0).unwrap();
        let server = fork(|| {
            let mut listener = Listener::bind(elsewhere.name()).unwrap();
            let peer = echo_one(&mut listener);
            assert_eq!(peer.pid(), None);
            // One for many, too, whose members are known by locks, not by numbers.
            drop(listener);
            let mut queue = mpmc::Listener::bind(elsewhere.name()).unwrap();
            assert_eq!(queue.accept_timeout(LONG).unwrap().1.pid(), None);
            assert_eq!(queue.receiver().recv_bytes_timeout(LONG).unwrap(), b"into a container");
            0
        });
        server.wait().code().unwrap_or(99)
    });
    ask(&dir.name(), b"into a container");
    let sender: mpmc::Sender = connect(dir.name(), LONG).unwrap();
    sender.send_bytes(b"into a container").unwrap();
    container.succeeds();
}
