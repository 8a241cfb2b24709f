//! Processes that are confined, starved or held up: without `membarrier`, in namespaces of their own, short of memory, stopped for long.

mod support;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringpipe::{AttachError, BuildError, Builder, Connection, End, RecvError, RecvIntoError, SendError};
use support::many::KEPT;
use support::{
    Child, Random, Script, alone, emulated, fork, fork_split, memory_of_pipes, numbered, open_fds, skip, stuff,
    watchdog,
};

const ROUNDS: u64 = 60;
/// A wake-up that was lost costs a parked side up to a second.
const LOST: Duration = Duration::from_millis(700);

fn os_error(what: &str) -> String {
    format!("{what}: {}", io::Error::last_os_error())
}

/// Has the kernel refuse a system call to this process and its children from now on.
fn refuse(call: libc::c_long) -> Result<(), String> {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the call is the first word of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
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
        let refused = libc::syscall(call, 0, 0, 0) == -1 && *libc::__errno_location() == libc::EPERM;
        assert!(refused, "system call {call} is still allowed");
    }
    Ok(())
}

fn refuse_membarrier() -> Result<(), String> {
    refuse(libc::SYS_membarrier)
}

fn may_refuse(call: libc::c_long, skipped: &str) -> bool {
    let refused = if emulated() { Err("the emulator has no seccomp".to_owned()) } else { Ok(()) };
    let refused = refused.and_then(|()| {
        let child = fork(move || i32::from(refuse(call).is_err()));
        if child.wait().code() == Some(0) { Ok(()) } else { Err("a seccomp filter is not permitted".to_owned()) }
    });
    refused.map_err(|why| skip(skipped, &why)).is_ok()
}

fn may_refuse_membarrier() -> bool {
    may_refuse(libc::SYS_membarrier, "processes without membarrier")
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

#[test]
fn a_process_to_which_memory_files_are_refused_makes_pipes_in_dev_shm_or_is_told() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    if !may_refuse(libc::SYS_memfd_create, "processes without memory files") {
        return;
    }
    let refused = || refuse(libc::SYS_memfd_create).unwrap();
    if cfg!(not(feature = "posix-shm")) {
        fork(move || {
            refused();
            for error in [ringpipe::pipe().map(drop).unwrap_err(), ringpipe::mpmc::simplex().map(drop).unwrap_err()] {
                assert!(matches!(&error, BuildError::Io(e) if e.raw_os_error() == Some(libc::EPERM)), "{error}");
            }
            0
        })
        .succeeds();
        return;
    }
    let names = || std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let before = names();
    fork(move || {
        refused();
        let open = open_fds();
        {
            let (mine, theirs) = Builder::new().capacity(64 << 10).pipe().unwrap();
            assert_eq!(names(), before, "no name, not even for a while");
            let (here, there) = UnixStream::pair().unwrap();
            let kept = (mine, theirs, here);
            let (server, (mine, theirs, here)) =
                fork_split(kept, there, |there| serve(Connection::recv_from(&there).unwrap()));
            theirs.send_to(&here).unwrap();
            assert_eq!(converse(mine), 0, "late answers");
            server.succeeds();

            // Longer than the ring, by its windows, and from a process of its own.
            let (receiver, sender) = Builder::new().capacity(64 << 10).mpmc().unwrap();
            let message = numbered(3 << 20);
            let (sending, receiver) =
                fork_split(receiver, sender, |sender| i32::from(sender.send_bytes(&numbered(3 << 20)).is_err()));
            assert_eq!(receiver.recv_bytes().unwrap(), message);
            assert!(matches!(receiver.recv_bytes(), Err(RecvError::Disconnected)));
            sending.succeeds();
        }
        assert_eq!(open_fds(), open);
        0
    })
    .succeeds();

    // Who has memory files takes nothing less, whoever it is from.
    let (here, there) = UnixStream::pair().unwrap();
    let (made, here) = fork_split(here, there, move |there| {
        refused();
        let (_mine, theirs) = ringpipe::pipe().unwrap();
        theirs.send_to(&there).unwrap();
        0
    });
    let what = Connection::recv_from(&here).map(drop);
    assert!(matches!(what, Err(AttachError::NotSealed)), "{what:?}");
    made.succeeds();
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

/// As the last step into a sandbox, perhaps. With such a limit the kernel refuses to poll.
fn allow_no_descriptors() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer leads to a live structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &none) }, 0);
}

/// Processor time of a process, in clock ticks.
fn ticks(pid: libc::pid_t) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Of this process.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer leads to a live structure; the clock exists everywhere.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Asserts that a process that waits uses next to no processor time meanwhile.
fn assert_rests(child: &Child, what: &str) {
    std::thread::sleep(STOPPED / 2);
    let before = ticks(child.pid);
    std::thread::sleep(STOPPED);
    let used = ticks(child.pid) - before;
    assert!(used < 30, "a waiting {what} used {used} ticks");
}

/// Closes the end, or has it die with a process that is killed.
fn end_it<E>(end: E, killed: bool) {
    if !killed {
        return drop(end);
    }
    let (holder, ()) = fork_split((), end, |end| {
        std::mem::forget(end);
        std::thread::sleep(Duration::from_secs(30));
        0
    });
    std::thread::sleep(MOMENT);
    holder.kill();
}

#[test]
fn a_process_that_may_not_poll_is_woken_and_learns_of_its_peers_death_and_rests_meanwhile() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let small = || Builder::new().capacity(4096).spin(Duration::ZERO).simplex().unwrap();
    // With bells unread and without, closed and killed.
    for killed in [false, true] {
        let (receiver, sender) = small();
        let (receiving, mut sender) = fork_split(sender, receiver, |mut receiver| {
            allow_no_descriptors();
            let found_it_empty = matches!(receiver.try_recv_bytes(), Err(RecvError::Empty));
            let got = receiver.recv_bytes().is_ok_and(|message| message == b"after a while");
            let end = matches!(receiver.recv_bytes(), Err(RecvError::Disconnected));
            i32::from(
                !(found_it_empty && got && end && matches!(receiver.try_recv_bytes(), Err(RecvError::Disconnected))),
            )
        });
        assert_rests(&receiving, "receiver");
        let start = Instant::now();
        sender.send_bytes(b"after a while").unwrap();
        end_it(sender, killed);
        receiving.succeeds();
        assert!(start.elapsed() < LOST, "message and end took {:?}", start.elapsed());

        let (receiver, sender) = small();
        let (end, _other) = small();
        let (sending, mut receiver) = fork_split(receiver, (sender, end), |(mut sender, end)| {
            allow_no_descriptors();
            for _ in 0..60 {
                sender.send_bytes(&[0; 100]).unwrap();
            }
            // Neither does a bell without room turn a wait into a busy loop, or end it.
            while stuff(&sender) {}
            let (used, start) = (processor_time(), Instant::now());
            let late = sender.send_end_timeout(end, STOPPED / 2).map_err(|e| e.error.kind());
            if late != Err(io::ErrorKind::TimedOut) || start.elapsed() < STOPPED / 2 {
                return 2;
            }
            if processor_time() - used > STOPPED / 8 {
                return 3;
            }
            while sender.send_bytes(&[0; 100]).is_ok() {}
            i32::from(!sender.is_disconnected())
        });
        assert_rests(&sending, "sender");
        for _ in 0..60 {
            receiver.recv_bytes_timeout(LOST).unwrap();
        }
        std::thread::sleep(STOPPED);
        let start = Instant::now();
        end_it(receiver, killed);
        sending.succeeds();
        assert!(start.elapsed() < LOST, "the broken pipe took {:?}", start.elapsed());
    }
}

const MOMENT: Duration = Duration::from_millis(30);

#[test]
fn a_message_for_which_there_is_no_memory_is_not_lost() {
    const LEN: usize = 128 << 20;
    let _alone = alone();
    let _watchdog = watchdog(60);
    if emulated() {
        skip("a process short of memory", "the limit would be the emulator's");
        return;
    }
    let (receiver, sender) = ringpipe::simplex().unwrap();
    let (child, mut sender) = fork_split(sender, receiver, |mut receiver| {
        let pages: libc::rlim_t =
            std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
        let limit = |most: libc::rlim_t| {
            let limit = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: the pointer leads to a live structure.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        };
        limit(pages * 4096 + (32 << 20));
        let mut small = [0; 16];
        for _ in 0..2 {
            match receiver.recv_bytes_into(&mut small, 0) {
                Err(RecvIntoError::Recv(RecvError::NoMemory { len: LEN })) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::NoMemory { len: LEN })));
        limit(libc::RLIM_INFINITY);
        assert!(receiver.recv_bytes().unwrap() == vec![5; LEN]);
        assert_eq!(receiver.recv_bytes().unwrap(), b"and on");

        // Unless there is a buffer for it, and not the memory to take out of it again what has arrived when time is up.
        let mut large = vec![0; LEN];
        limit(pages * 4096 + LEN as libc::rlim_t + (32 << 20));
        loop {
            match receiver.recv_bytes_into_timeout(&mut large, 0, Duration::from_millis(2)) {
                Err(RecvIntoError::Recv(RecvError::TimedOut)) => {}
                Err(RecvIntoError::Recv(RecvError::NoMemory { len: LEN })) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(receiver.recv_bytes().unwrap(), b"and on");
        0
    });
    for _ in 0..2 {
        sender.send_bytes(&vec![5; LEN]).unwrap();
        sender.send_bytes(b"and on").unwrap();
    }
    child.succeeds();
}

#[test]
fn where_files_may_not_be_as_long_no_pipe_is_made() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let child = fork(|| {
        let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
        // SAFETY: the pointer leads to a live structure.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        assert!(matches!(ringpipe::pipe(), Err(BuildError::Io(e)) if e.raw_os_error() == Some(libc::EFBIG)));
        i32::from(Builder::new().capacity(16 << 10).pipe().is_err())
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

/// From now on this process may make no file longer than that; whoever tries is killed by a signal.
fn allow_files_of(most: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the pointer leads to a live structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
}

/// Nothing takes so long unless somebody is stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// The smallest ring for many, and lengths of messages that lie partly outside of it.
const MANY: usize = 64 << 10;
const LONG_ONES: [usize; 4] = [MANY / 4 + 1, MANY, 3 * MANY, 4 << 20];

#[test]
fn long_messages_for_many_arrive_whole_though_neither_side_may_write_to_files_any_more() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (receiver, sender) = Builder::new().capacity(MANY).mpmc().unwrap();
    let child = fork(|| {
        allow_files_of(0);
        for len in LONG_ONES {
            sender.send_bytes(&numbered(len)).unwrap();
        }
        0
    });
    for len in &LONG_ONES[..2] {
        assert!(receiver.recv_bytes_timeout(PATIENCE).unwrap() == numbered(*len), "{len} bytes");
    }
    child.succeeds();
    let child = fork(|| {
        allow_files_of(0);
        for len in &LONG_ONES[2..] {
            assert!(receiver.recv_bytes_timeout(PATIENCE).unwrap() == numbered(*len), "{len} bytes");
        }
        // It could give the memory back, too.
        i32::from(memory_of_pipes() > KEPT)
    });
    child.succeeds();
}

#[test]
fn a_pipe_for_many_that_is_made_where_files_may_not_be_long_takes_messages_up_to_a_length_and_says_which() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    // Of a ring and its words there are 76 KiB; the rest is shared by four messages.
    for (limit, least) in [(77 << 10, MANY / 4), (512 << 10, MANY + MANY / 4), (8 << 20, 1 << 20)] {
        let child = fork(|| {
            allow_files_of(limit);
            let (receiver, sender) = Builder::new().capacity(MANY).mpmc().unwrap();
            let Err(SendError::TooLong { max, len }) = sender.send_bytes(&vec![0; 9 << 20]) else { return 1 };
            assert!(len == 9 << 20 && max >= least && max as libc::rlim_t <= limit, "{max} of {limit}");
            for len in [max - 1, max] {
                sender.try_send_bytes(&numbered(len)).unwrap();
                assert!(receiver.try_recv_bytes().unwrap() == numbered(len), "{len} bytes");
            }
            let over = vec![0; max + 1];
            let all = [
                sender.send_bytes(&over),
                sender.try_send_bytes(&over),
                sender.send_vectored(&[io::IoSlice::new(&over[1..]), io::IoSlice::new(&over[..1])]),
                sender.send_bytes_timeout(&over, MOMENT),
            ];
            for what in all {
                assert!(
                    matches!(&what, Err(SendError::TooLong { len, max: m }) if *len == max + 1 && *m == max),
                    "{what:?}"
                );
            }
            i32::from(receiver.fill() != 0)
        });
        child.succeeds();
    }
    let child = fork(|| {
        allow_files_of(64 << 10);
        let what = Builder::new().capacity(MANY).mpmc();
        i32::from(!matches!(what, Err(BuildError::Io(e)) if e.raw_os_error() == Some(libc::EFBIG)))
    });
    child.succeeds();
}

#[test]
fn a_long_message_for_many_that_its_sender_has_no_memory_for_is_not_sent_and_holds_up_nothing() {
    const LEN: usize = 128 << 20;
    let _alone = alone();
    let _watchdog = watchdog(60);
    if emulated() {
        skip("a process short of memory", "the limit would be the emulator's");
        return;
    }
    let (receiver, sender) = Builder::new().capacity(MANY).mpmc().unwrap();
    let message = vec![5; LEN];
    let child = fork(|| {
        let pages: libc::rlim_t =
            std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
        let limit = libc::rlimit { rlim_cur: pages * 4096 + (32 << 20), rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the pointer leads to a live structure.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        // More often than there are places for long messages.
        for _ in 0..6 {
            let what = sender.try_send_bytes(&message);
            assert!(matches!(&what, Err(SendError::Io(e)) if e.kind() == io::ErrorKind::OutOfMemory), "{what:?}");
            sender.try_send_bytes(&numbered(2 * MANY)).unwrap();
            assert!(receiver.try_recv_bytes().unwrap() == numbered(2 * MANY));
        }
        i32::from(receiver.fill() != 0)
    });
    child.succeeds();
    assert!(memory_of_pipes() <= KEPT, "{} bytes are still there", memory_of_pipes());
    sender.try_send_bytes(&message).unwrap();
    assert!(receiver.try_recv_bytes().unwrap() == message);
}
