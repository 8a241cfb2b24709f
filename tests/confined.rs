//! Processes that are confined, starved or held up: without `membarrier`, in namespaces of their own, short of memory, stopped for long.

mod support;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringpipe::{BuildError, Builder, Connection, End, RecvError, SendError};
use support::{Random, Script, alone, emulated, fork, fork_split, open_fds, skip, watchdog};

const ROUNDS: u64 = 60;
/// A wake-up that was lost costs a parked side up to a second.
const LOST: Duration = Duration::from_millis(700);

fn os_error(what: &str) -> String {
    format!("{what}: {}", io::Error::last_os_error())
}

/// Has the kernel refuse `membarrier` to this process and its children from now on.
fn refuse_membarrier() -> Result<(), String> {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the call is the first word of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_membarrier as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program lives for as long as the calls; it lets everything else pass.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(os_error("PR_SET_NO_NEW_PRIVS"));
        }
        if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0 {
            return Err(os_error("PR_SET_SECCOMP"));
        }
        assert_eq!(libc::syscall(libc::SYS_membarrier, 0, 0, 0), -1, "membarrier is still allowed");
    }
    Ok(())
}

fn may_refuse_membarrier() -> bool {
    let refused = if emulated() { Err("the emulator has no seccomp".to_owned()) } else { Ok(()) };
    let refused = refused.and_then(|()| {
        let child = fork(|| i32::from(refuse_membarrier().is_err()));
        if child.wait().code() == Some(0) { Ok(()) } else { Err("a seccomp filter is not permitted".to_owned()) }
    });
    refused.map_err(|why| skip("processes without membarrier", &why)).is_ok()
}

/// Rests for up to 8 ms, so that the other side is found spinning, asleep on the futex or parked.
fn rest(random: &mut Random) {
    std::thread::sleep(Duration::from_micros(random.below(8_000)));
}

fn serve(mut connection: Connection) -> i32 {
    let mut random = Random::new(1);
    while let Ok(request) = connection.recv_bytes() {
        rest(&mut random);
        if connection.send_bytes(&request).is_err() {
            return 1;
        }
    }
    0
}

/// Requests and answers; how many answers were late.
fn converse(mut connection: Connection) -> i32 {
    let mut random = Random::new(2);
    let mut late = 0;
    for number in 0..ROUNDS {
        rest(&mut random);
        let start = Instant::now();
        connection.send_bytes(&number.to_le_bytes()).unwrap();
        assert_eq!(connection.recv_bytes().unwrap(), number.to_le_bytes());
        late += i32::from(start.elapsed() > LOST);
    }
    late
}

#[test]
fn a_process_to_which_membarrier_is_refused_wakes_and_is_woken() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    if !may_refuse_membarrier() {
        return;
    }
    for both in [false, true] {
        let (here, there) = UnixStream::pair().unwrap();
        let (server, here) = fork_split(here, there, |there| {
            refuse_membarrier().unwrap();
            serve(Connection::recv_from(&there).unwrap())
        });
        let client = fork(move || {
            if both {
                refuse_membarrier().unwrap();
            }
            let (mine, theirs) = ringpipe::pipe().unwrap();
            theirs.send_to(&here).unwrap();
            converse(mine)
        });
        client.succeeds();
        server.succeeds();
    }
}

#[test]
fn a_process_to_which_membarrier_is_refused_later_loses_a_second_at_most_once() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    if !may_refuse_membarrier() {
        return;
    }
    let (mine, theirs) = ringpipe::pipe().unwrap();
    let (server, mine) = fork_split(mine, theirs, |theirs| {
        refuse_membarrier().unwrap();
        serve(theirs)
    });
    let client = fork(|| {
        refuse_membarrier().unwrap();
        converse(mine)
    });
    // Once on either side.
    assert!(client.wait().code().is_some_and(|late| late <= 2));
    server.succeeds();
}

/// Enters namespaces of its own, with next to nothing in `/dev/shm`, and with processes that are numbered anew.
fn enter_namespaces() -> Result<(), String> {
    // SAFETY: the strings end in zero bytes; what is mounted is seen by this process and its children only.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID) != 0 {
            return Err(os_error("unshare"));
        }
        let (root, none, shm) = (c"/".as_ptr(), c"none".as_ptr(), c"/dev/shm".as_ptr());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        if libc::mount(none, root, std::ptr::null(), private, std::ptr::null()) != 0 {
            return Err(os_error("mount /"));
        }
        if libc::mount(none, shm, c"tmpfs".as_ptr(), 0, c"size=4k".as_ptr().cast()) != 0 {
            return Err(os_error("mount /dev/shm"));
        }
    }
    Ok(())
}

#[test]
fn a_pipe_reaches_into_another_pid_namespace_and_needs_no_room_in_dev_shm() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let allowed = fork(|| match enter_namespaces() {
        Ok(()) => 0,
        Err(why) => {
            skip("namespaces", &why);
            1
        }
    });
    if allowed.wait().code() != Some(0) {
        return;
    }
    let (mine, theirs) = Builder::new().capacity(1 << 20).pipe().unwrap();
    let (server, mine) = fork_split(mine, theirs, |theirs| {
        enter_namespaces().unwrap();
        // One made in there as well, larger than `/dev/shm`.
        let made = Builder::new().capacity(1 << 20).pipe().unwrap();
        // The first child is number 1 of the new namespace.
        let inner = fork(|| {
            assert_eq!(std::process::id(), 1);
            drop(made.0);
            assert!(matches!({ made.1 }.recv_bytes(), Err(RecvError::Disconnected)));
            serve(theirs)
        });
        inner.wait().code().unwrap_or(99)
    });
    assert_eq!(converse(mine), 0, "late answers");
    server.succeeds();
}

#[test]
fn out_of_memory_no_pipe_is_made_and_nothing_leaks() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    if emulated() {
        skip("a process short of memory", "the limit would be the emulator's");
        return;
    }
    let child = fork(|| {
        let before = open_fds();
        let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
        // SAFETY: the pointer leads to a live structure.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        // A page more than that.
        let refused = Builder::new().capacity(1 << 30).simplex();
        assert!(matches!(&refused, Err(BuildError::Io(e)) if e.kind() == io::ErrorKind::OutOfMemory), "{refused:?}");
        drop(refused);
        assert_eq!(open_fds(), before);
        let (mut receiver, mut sender) = ringpipe::simplex().unwrap();
        sender.send_bytes(b"enough for this").unwrap();
        i32::from(receiver.recv_bytes().unwrap() != b"enough for this")
    });
    child.succeeds();
}

/// Long enough for every stage of a wait to have passed.
const STOPPED: Duration = Duration::from_millis(1_500);
const CAPACITY: usize = 16 << 10;

#[test]
fn a_sender_that_is_stopped_for_long_goes_on_where_it_was() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let script = Script::mixed(3, CAPACITY);
    let (receiver, sender) = Builder::new().capacity(CAPACITY).simplex().unwrap();
    let (child, mut receiver) = fork_split(receiver, sender, |mut sender| {
        for i in 0.. {
            if sender.send_bytes(script.message(i)).is_err() {
                return 0;
            }
        }
        1
    });
    let mut next = 0;
    for pause in 0..3 {
        for _ in 0..500 * pause + 100 {
            assert_eq!(receiver.recv_bytes().unwrap(), script.message(next), "message {next}");
            next += 1;
        }
        child.stop();
        // What it had sent arrives; then there is nothing, and no end, and nothing of what is half sent.
        loop {
            match receiver.recv_bytes_timeout(STOPPED) {
                Ok(message) => {
                    assert_eq!(message, script.message(next), "message {next}");
                    next += 1;
                }
                Err(RecvError::TimedOut) => break,
                Err(e) => panic!("of a sender that is only stopped: {e}"),
            }
        }
        child.resume();
    }
    assert_eq!(receiver.recv_bytes().unwrap(), script.message(next));
    drop(receiver);
    child.succeeds();
}

#[test]
fn a_receiver_that_is_stopped_for_long_loses_nothing() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let script = Script::mixed(4, CAPACITY);
    let (receiver, sender) = Builder::new().capacity(CAPACITY).simplex().unwrap();
    let (child, mut sender) = fork_split(sender, receiver, |mut receiver| {
        for i in 0.. {
            match receiver.recv_bytes() {
                Ok(message) if message == script.message(i) => {}
                Ok(_) => return 1,
                Err(RecvError::Disconnected) => return 0,
                Err(_) => return 2,
            }
        }
        3
    });
    let mut next = 0;
    for _ in 0..3 {
        for _ in 0..400 {
            sender.send_bytes(script.message(next)).unwrap();
            next += 1;
        }
        child.stop();
        // The ring fills, and then a send runs out of time; it does not find the receiver gone.
        loop {
            match sender.send_bytes_timeout(script.message(next), STOPPED) {
                Ok(()) => next += 1,
                Err(SendError::TimedOut) => break,
                Err(e) => panic!("to a receiver that is only stopped: {e}"),
            }
        }
        child.resume();
    }
    sender.send_bytes(script.message(next)).unwrap();
    drop(sender);
    child.succeeds();
}
