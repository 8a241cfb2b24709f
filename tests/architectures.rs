//! One conversation between two builds of this crate that may differ in word size: both programs share a segment, so
//! neither may depend on how long its own numbers and addresses are.
//!
//! The peer is this test binary again, or the one that `RINGPIPE_PEER` names: the same test built for another target, after the
//! emulator to run it in, if it needs one. `.ci/architectures` runs it with 32-bit and 64-bit programs in both roles.
//!
//! The conversation also runs between two threads of this process, where a sanitizer sees both sides.
#![cfg(feature = "serde")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Child;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringpipe::{Builder, Connection, End, Receiver, RecvError, SendError};
use serde::{Deserialize, Serialize};
use support::programs::{PIPE, run_only};
use support::{Random, Script, alone, command, watchdog};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the peer is to do next.
#[derive(Serialize, Deserialize, Debug, Clone, Copy)]
enum Order {
    /// Say how many bits an address has, and for which processor this was built.
    Introduce,
    /// Say whether the kernel lets this process use `membarrier`.
    MayUseBarriers,
    /// Give back the next so many messages, with all bits turned over.
    Echo(u64),
    /// Send so many messages of the script with this seed, and receive as many of the one with its complement.
    Flood { seed: u64, count: u64 },
    /// Send the script with this seed for ever.
    FloodForEver { seed: u64 },
    /// Send so many messages of the script with this seed, and end so many microseconds later.
    Last { seed: u64, count: u64, after: u64 },
    /// Receive nothing, for long.
    Idle,
    /// Send the time, at this time.
    Answer { at: u64 },
    /// From this time on wait for a message with a time, and send how many nanoseconds ago that was.
    HowLate { from: u64 },
    /// Leave the ring alone until this time, receive so many messages, and send the time at which that began.
    MakeRoom { at: u64, count: u64 },
    /// Receive values, and give them back.
    Values,
    /// Receive a number as a `usize`, and send what came of it.
    Count,
    /// Receive an end, and send how many messages came from it and how many bytes.
    TakeEnd,
    /// Receive a message that is too long to be held, and send its length as told by the error.
    Refuse,
    /// Send a message of so many bytes, which will be refused.
    BeRefused(u64),
}

/// Nanoseconds on a clock that all processes of a machine share.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer leads to a live structure.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn rest(micros: u64) {
    std::thread::sleep(Duration::from_micros(micros));
}

fn rest_until(time: u64) {
    std::thread::sleep(Duration::from_nanos(time.saturating_sub(now())));
}

fn turned(message: &[u8]) -> Vec<u8> {
    message.iter().map(|byte| !byte).collect()
}

/// Many times the same memory, so that a message may be longer than any.
fn send_long(connection: &mut Connection, len: u64) -> Result<(), SendError> {
    let part = vec![0; 16 << 20];
    let mut parts = vec![IoSlice::new(&part); (len / part.len() as u64) as usize];
    parts.push(IoSlice::new(&part[..(len % part.len() as u64) as usize]));
    connection.send_vectored(&parts)
}

/// The longest message that a receiver here may hold: what the memory of a 32-bit process can be, and little in a 64-bit one.
fn refused(connection: &mut Connection) -> (u64, u64) {
    let received = if usize::BITS == 32 { connection.recv_bytes() } else { connection.recv_bytes_max(1 << 20) };
    match received {
        Err(RecvError::TooLong { len, max }) => (len, max as u64),
        Err(e) => panic!("instead of a message that is too long: {e}"),
        Ok(message) => panic!("{} bytes arrived", message.len()),
    }
}

/// The peer: follows orders until the pipe ends, and panics where something is amiss.
fn peer(mut connection: Connection) {
    let capacity = connection.sender().capacity();
    loop {
        let order = match connection.recv::<Order>() {
            Ok(order) => order,
            Err(RecvError::Disconnected | RecvError::Ended) => return,
            Err(e) => panic!("instead of an order: {e}"),
        };
        match order {
            Order::Introduce => connection.send(&(usize::BITS, std::env::consts::ARCH)).unwrap(),
            Order::MayUseBarriers => connection.send(&may_use_barriers()).unwrap(),
            Order::Echo(count) => {
                for _ in 0..count {
                    let message = connection.recv_bytes().unwrap();
                    connection.send_bytes(&turned(&message)).unwrap();
                }
            }
            Order::Flood { seed, count } => flood(&mut connection, seed, count),
            Order::FloodForEver { seed } => {
                let script = Script::mixed(seed, capacity);
                (0..).find(|&i| connection.send_bytes(script.message(i)).is_err());
            }
            Order::Last { seed, count, after } => {
                let script = Script::mixed(seed, capacity);
                (0..count).for_each(|i| connection.send_bytes(script.message(i)).unwrap());
                rest(after);
                return;
            }
            Order::Idle => std::thread::sleep(PATIENCE),
            Order::Answer { at } => {
                rest_until(at);
                connection.send(&now()).unwrap();
            }
            Order::HowLate { from } => {
                rest_until(from);
                let sent: u64 = connection.recv().unwrap();
                let late = now().saturating_sub(sent);
                connection.send(&late).unwrap();
            }
            Order::MakeRoom { at, count } => {
                rest_until(at);
                let start = now();
                (0..count).for_each(|i| assert_eq!(connection.recv_bytes().unwrap(), [i as u8; 100]));
                connection.send(&start).unwrap();
            }
            Order::Values => {
                for _ in 0..2 {
                    let values = connection.recv::<Values>().unwrap();
                    assert_eq!(values, Values::new());
                    connection.send(&values).unwrap();
                }
            }
            Order::Count => {
                let count = connection.recv::<usize>().map_err(|e| matches!(e, RecvError::Decode(_)));
                connection.send(&count).unwrap();
            }
            Order::TakeEnd => {
                let mut end = connection.recv_end::<Receiver>().unwrap();
                let lengths: Vec<u64> = end.iter().map(|message| message.unwrap().len() as u64).collect();
                connection.send(&(lengths.len() as u64, lengths.iter().sum::<u64>())).unwrap();
            }
            Order::Refuse => {
                let told = refused(&mut connection);
                connection.send(&told).unwrap();
            }
            Order::BeRefused(len) => {
                assert!(matches!(send_long(&mut connection, len), Err(SendError::Disconnected)));
            }
        }
    }
}

/// Sends one script and receives the other at the same time.
fn flood(connection: &mut Connection, seed: u64, count: u64) {
    let capacity = connection.sender().capacity();
    let (to, from) = (Script::mixed(seed, capacity), Script::mixed(!seed, capacity));
    let (sender, receiver) = connection.halves_mut();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..count {
                let message = to.message(i);
                match message.len() {
                    len if i % 3 == 0 && len <= sender.max_reserve() => {
                        let mut slot = sender.reserve(len).unwrap();
                        slot.write(message);
                        slot.commit().unwrap();
                    }
                    len if i % 3 == 1 => {
                        let (front, back) = message.split_at(len / 3);
                        sender.send_vectored(&[IoSlice::new(front), IoSlice::new(back)]).unwrap();
                    }
                    _ => sender.send_bytes(message).unwrap(),
                }
            }
        });
        let mut buf = vec![0; 2 * capacity];
        for i in 0..count {
            let message = match i % 3 {
                0 => receiver.recv_bytes_timeout(PATIENCE).unwrap(),
                1 => receiver.recv_guard().unwrap().to_vec(),
                _ => {
                    let len = receiver.recv_bytes_into(&mut buf, 0).unwrap();
                    buf[..len].to_vec()
                }
            };
            assert!(message == from.message(i), "message {i} is another");
        }
    });
}

/// Not a test by itself: the peer's program.
#[test]
fn as_the_peer() {
    if std::env::var_os(PIPE).is_some() {
        let _watchdog = watchdog(120);
        peer(Connection::from_env(PIPE).expect("an end that this build can attach to"));
    }
}

/// Who follows the orders.
enum Peer {
    Process(Child),
    Thread(JoinHandle<()>),
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Process,
    /// A process that may not use `membarrier`.
    Sandboxed,
    Thread,
}

const SMALL: usize = 4096;

fn builder(capacity: usize, spin: Duration) -> Builder {
    Builder::new().capacity(capacity).spin(spin)
}

impl Peer {
    fn start(kind: Kind, builder: &Builder) -> (Peer, Connection) {
        let (mine, theirs) = builder.pipe().unwrap();
        (Peer::with(kind, theirs), mine)
    }

    fn with(kind: Kind, theirs: Connection) -> Peer {
        if kind == Kind::Thread {
            return Peer::Thread(std::thread::spawn(|| peer(theirs)));
        }
        let mut command = match std::env::var("RINGPIPE_PEER") {
            Err(_) => command(std::env::current_exe().unwrap()),
            Ok(words) => {
                let mut words = words.split_whitespace();
                let mut command = std::process::Command::new(words.next().expect("RINGPIPE_PEER names a program"));
                command.args(words);
                command
            }
        };
        run_only(&mut command, "as_the_peer");
        theirs.inherit(&mut command, PIPE);
        if kind == Kind::Sandboxed {
            // SAFETY: makes system calls only.
            unsafe { command.pre_exec(refuse_barriers) };
        }
        Peer::Process(command.spawn().expect("the peer's program runs"))
    }

    /// Waits until the peer has come to its end, in order; it does when the pipe is closed.
    fn ends_well(self) {
        match self {
            Peer::Process(mut child) => {
                let status = child.wait().unwrap();
                assert!(status.success(), "the peer failed: {status}");
            }
            Peer::Thread(thread) => thread.join().expect("the peer does not panic"),
        }
    }

    /// Kills the peer's process.
    fn kill(&mut self) {
        let Peer::Process(child) = self else { panic!("a thread cannot be killed") };
        child.kill().unwrap();
    }

    fn was_killed(self) {
        let Peer::Process(mut child) = self else { panic!("a thread cannot be killed") };
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL), "the peer ended by itself");
    }
}

fn introduce(connection: &mut Connection) -> (u32, String) {
    connection.send(&Order::Introduce).unwrap();
    connection.recv().unwrap()
}

// --- what is said -----------------------------------------------------------------------------------

#[test]
fn the_peer_introduces_itself() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (peer, mut mine) = Peer::start(Kind::Process, &Builder::new());
    let (bits, processor) = introduce(&mut mine);
    println!("{} ({} bits) with {processor} ({bits} bits)", std::env::consts::ARCH, usize::BITS);
    let own = std::env::var_os("RINGPIPE_PEER").is_none();
    assert!(!own || (bits, &*processor) == (usize::BITS, std::env::consts::ARCH));
    drop(mine);
    peer.ends_well();
}

/// Lengths around all measures of the ring, one by one and many at a time.
fn sizes(kind: Kind, capacity: usize) {
    let (peer, mut mine) = Peer::start(kind, &builder(capacity, Duration::from_micros(50)));
    let max = mine.sender().max_reserve();
    let measures = [0, 8, capacity / 8, max, capacity / 2, capacity, 3 * capacity];
    let mut lengths: Vec<usize> = measures.iter().flat_map(|&len| len.saturating_sub(9)..=len + 9).collect();
    lengths.push(1_000_003);
    let pattern: Vec<u8> = (0..lengths[lengths.len() - 1]).map(|i| (i % 251) as u8 ^ (i >> 12) as u8).collect();
    let message =
        |n: usize| &pattern[pattern.len() - lengths[n] - n % 5 * usize::from(lengths[n] < capacity)..][..lengths[n]];
    mine.send(&Order::Echo(2 * lengths.len() as u64)).unwrap();
    for (n, len) in lengths.iter().enumerate() {
        mine.send_bytes(message(n)).unwrap();
        let back = mine.recv_bytes_timeout(PATIENCE).unwrap();
        assert!(back == turned(message(n)), "{len} bytes, capacity {capacity}, came back otherwise");
    }
    let (sender, receiver) = mine.halves_mut();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..lengths.len()).for_each(|n| sender.send_bytes(message(n)).unwrap()));
        for (n, len) in lengths.iter().enumerate() {
            let back = receiver.recv_bytes_timeout(PATIENCE).unwrap();
            assert!(back == turned(message(n)), "{len} bytes, capacity {capacity}, on their way with others");
        }
    });
    drop(mine);
    peer.ends_well();
}

#[test]
fn messages_of_every_length_come_and_go_whole() {
    let _alone = alone();
    let _watchdog = watchdog(120);
    for capacity in [SMALL, 64 << 10] {
        sizes(Kind::Process, capacity);
    }
}

/// Both directions at once, as fast as they go.
fn floods(kind: Kind, count: u64) {
    for (capacity, spin) in [(SMALL, 0), (64 << 10, 50), (64 << 10, 2_000)] {
        let (peer, mut mine) = Peer::start(kind, &builder(capacity, Duration::from_micros(spin)));
        let seed = capacity as u64 + spin;
        mine.send(&Order::Flood { seed, count }).unwrap();
        flood(&mut mine, !seed, count);
        drop(mine);
        peer.ends_well();
    }
}

#[test]
fn both_directions_carry_everything_at_the_same_time() {
    let _alone = alone();
    let _watchdog = watchdog(120);
    floods(Kind::Process, 1_500);
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
struct Values {
    small: (u8, i8, bool, char),
    numbers: (u16, i16, u32, i32, u64, i64, u128, i128),
    fractions: (f32, f64),
    sizes: (usize, isize),
    text: String,
    nothing: Option<()>,
    choice: Result<Vec<u64>, String>,
    map: BTreeMap<String, [u32; 3]>,
}

impl Values {
    fn new() -> Values {
        Values {
            small: (255, -128, true, '文'),
            numbers: (1, -1, u32::MAX, i32::MIN, u64::MAX, i64::MIN, u128::MAX - 1, i128::MIN),
            fractions: (1.5e-39, -0.1),
            // As much as 32 bits hold.
            sizes: (u32::MAX as usize, i32::MIN as isize),
            text: "long enough to be streamed, in places ".repeat(200),
            nothing: None,
            choice: Ok((0..100).map(|i| u64::MAX >> (i % 64)).collect()),
            map: [("a", [1, 2, 3]), ("b", [u32::MAX; 3])].map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }
}

fn values(kind: Kind) {
    let (peer, mut mine) = Peer::start(kind, &builder(SMALL, Duration::ZERO));
    let (bits, _) = introduce(&mut mine);
    mine.send(&Order::Values).unwrap();
    for _ in 0..2 {
        mine.send(&Values::new()).unwrap();
        assert_eq!(mine.recv::<Values>().unwrap(), Values::new());
    }
    // A number that fits is taken, one that does not is refused, and none is cut to size.
    for number in [7, u64::from(u32::MAX), 1 << 32, (5 << 32) + 1] {
        mine.send(&Order::Count).unwrap();
        mine.send(&number).unwrap();
        let count = mine.recv::<Result<u64, bool>>().unwrap();
        let fits = bits == 64 || number <= u64::from(u32::MAX);
        assert_eq!(count, if fits { Ok(number) } else { Err(true) }, "{number} as {bits} bits");
    }
    drop(mine);
    peer.ends_well();
}

#[test]
fn values_mean_the_same_on_both_sides() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    values(Kind::Process);
}

#[test]
fn an_end_travels_over_the_pipe_among_messages() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (peer, mut mine) = Peer::start(Kind::Process, &builder(SMALL, Duration::ZERO));
    for round in 0..5 {
        let (receiver, mut sender) = builder(64 << 10, Duration::ZERO).simplex().unwrap();
        let script = Script::short(round);
        sender.send_bytes(script.message(0)).unwrap();
        mine.send(&Order::TakeEnd).unwrap();
        mine.send_end(receiver).unwrap();
        (1..40).for_each(|i| sender.send_bytes(script.message(i)).unwrap());
        drop(sender);
        let sent: u64 = (0..40).map(|i| script.message(i).len() as u64).sum();
        assert_eq!(mine.recv::<(u64, u64)>().unwrap(), (40, sent));
    }
    drop(mine);
    peer.ends_well();
}

#[test]
fn a_message_that_a_process_cannot_hold_is_refused_by_its_length() {
    let _alone = alone();
    let _watchdog = watchdog(120);
    const GIB: u64 = 1 << 30;
    let limit = |bits: u32| if bits == 32 { i32::MAX as u64 } else { 1 << 20 };
    // Those beyond 4 GiB only a 64-bit process can send, so that none tries in vain.
    for len in [2 * GIB, 3 * GIB, 4 * GIB, 5 * GIB + 7] {
        let (peer, mut mine) = Peer::start(Kind::Process, &Builder::new());
        let (bits, _) = introduce(&mut mine);
        if usize::try_from(len).is_ok() {
            mine.send(&Order::Refuse).unwrap();
            assert!(matches!(send_long(&mut mine, len), Err(SendError::Disconnected)), "{len} bytes");
            assert_eq!(mine.recv::<(u64, u64)>().unwrap(), (len, limit(bits)));
        }
        drop(mine);
        peer.ends_well();

        let (peer, mut mine) = Peer::start(Kind::Process, &Builder::new());
        let (bits, _) = introduce(&mut mine);
        if bits == 64 || len < 4 * GIB {
            mine.send(&Order::BeRefused(len)).unwrap();
            assert_eq!(refused(&mut mine), (len, limit(usize::BITS)));
        }
        drop(mine);
        peer.ends_well();
    }
}

#[test]
fn a_pipe_larger_than_the_memory_of_a_process_is_refused_by_it() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (peer, mut mine) = Peer::start(Kind::Process, &Builder::new());
    let (bits, _) = introduce(&mut mine);
    drop(mine);
    peer.ends_well();
    // Two rings of 1 GiB and a page: just more than any object in a 32-bit process may be.
    let made = builder(1 << 30, Duration::ZERO).pipe();
    assert_eq!(made.is_ok(), usize::BITS == 64);
    let Ok((mut mine, theirs)) = made else { return };
    let peer = Peer::with(Kind::Process, theirs);
    if bits == 64 {
        assert_eq!(introduce(&mut mine).0, bits);
        drop(mine);
        peer.ends_well();
    } else {
        assert!(matches!(mine.recv_bytes_timeout(PATIENCE), Err(RecvError::Disconnected)));
        let Peer::Process(mut child) = peer else { unreachable!("it is a process") };
        assert_eq!(child.wait().unwrap().code(), Some(101), "it says why, and ends");
    }
}

// --- waiting ------------------------------------------------------------------------------------------

/// The three stages of a wait: how long the pipe spins, how long nothing happens, in microseconds, and in which time the quickest of
/// several has to be over. A lost wake-up takes longer: the rest of a slice of 4.5 ms asleep, the rest of a second parked. Who spins
/// loses none, but may take the processor from the one that it waits for.
type Stage = (&'static str, u64, u64, u64);
const STAGES: [Stage; 3] =
    [("spinning", 1_000_000, 300, 300_000), ("asleep", 0, 1_500, 2_000), ("parked", 0, 20_000, 300_000)];

/// Measures one thing several times, in nanoseconds, and asserts that the quickest took less than `limit` microseconds. A busy machine
/// makes some slow, and gets more tries.
fn quickest(what: &dyn Debug, limit: u64, mut measure: impl FnMut() -> u64) {
    let (mut best, start) = (u64::MAX, Instant::now());
    for turn in 1.. {
        best = best.min(measure());
        if turn >= 10 && (best < limit * 1_000 || start.elapsed() > Duration::from_secs(5)) {
            break;
        }
    }
    println!("{what:?}: {:.1?}", Duration::from_nanos(best));
    assert!(best < limit * 1_000, "{what:?}: {:?} at best", Duration::from_nanos(best));
}

/// Nanoseconds between an order and what it is about: longer than an order can be late.
const NOTICE: u64 = 10_000_000;

fn wakes(kind: Kind) {
    for stage in STAGES {
        let (peer, mut mine) = Peer::start(kind, &builder(SMALL, Duration::from_micros(stage.1)));
        wakes_by(&mut mine, stage);
        drop(mine);
        peer.ends_well();
    }
}

fn wakes_by(mine: &mut Connection, (stage, _, after, limit): Stage) {
    // One side begins to wait, and that long after it the other does something about it: appointed by the clock, so that a
    // wake-up that is lost does not shift the next.
    let appointment = || {
        let begin = now() + NOTICE;
        (begin, begin + after * 1_000)
    };
    quickest(&(stage, "we wait for a message"), limit, || {
        let (begin, at) = appointment();
        mine.send(&Order::Answer { at }).unwrap();
        rest_until(begin);
        let sent: u64 = mine.recv().unwrap();
        now().saturating_sub(sent)
    });
    quickest(&(stage, "the peer waits for a message"), limit, || {
        let (from, at) = appointment();
        mine.send(&Order::HowLate { from }).unwrap();
        rest_until(at);
        mine.send(&now()).unwrap();
        mine.recv().unwrap()
    });
    quickest(&(stage, "we wait for room"), limit, || {
        // More than fits, so some of them wait.
        let (count, fit) = (60, SMALL / 112 - 1);
        let (begin, at) = appointment();
        mine.send(&Order::MakeRoom { at, count }).unwrap();
        rest_until(begin);
        let send = |i: u64| mine.send_bytes(&[i as u8; 100]).map(|()| now()).unwrap();
        let sent: Vec<u64> = (0..count).map(send).collect();
        let room: u64 = mine.recv().unwrap();
        let woken = sent.iter().position(|&at| at >= room).expect("the last one had to wait");
        // Only the first that had to wait tells; if we were too slow ourselves, none did.
        if woken < fit { u64::MAX } else { sent[woken] - room }
    });
}

#[test]
fn whoever_waits_is_woken_in_every_stage_of_waiting() {
    let _alone = alone();
    let _watchdog = watchdog(120);
    wakes(Kind::Process);
}

fn may_use_barriers() -> bool {
    // SAFETY: asks the kernel which of them it has.
    unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) >= 0 }
}

/// Refuses `membarrier` to this thread from now on, and to the programs that it starts, as a sandbox may.
fn refuse_barriers() -> io::Result<()> {
    // By the kernel's names for the processors, `AUDIT_ARCH_*`, and their numbers for the call.
    const CALLS: [(u32, u32); 3] = [(0xc000_003e, 324), (0x4000_0003, 375), (0xc000_00b7, 283)];
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const SKIP_UNLESS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    // Where `seccomp_data`, which a filter sees, has the two.
    const PROCESSOR_AT: u32 = 4;
    const CALL_AT: u32 = 0;
    let [a, b, c] = CALLS.map(|(processor, call)| {
        let refuse = op(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0);
        [
            op(LOAD, PROCESSOR_AT, 0),
            op(SKIP_UNLESS, processor, 3),
            op(LOAD, CALL_AT, 0),
            op(SKIP_UNLESS, call, 1),
            refuse,
        ]
    });
    let end = [op(RETURN, libc::SECCOMP_RET_ALLOW, 0)];
    let mut filter = [end[0]; 16];
    for (slot, op) in filter.iter_mut().zip(a.into_iter().chain(b).chain(c).chain(end)) {
        *slot = op;
    }
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the pointers lead to a live program of the length given, which the kernel checks and copies.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn whoever_waits_is_woken_though_one_side_or_both_may_not_use_membarrier() {
    let _alone = alone();
    let _watchdog = watchdog(240);
    // In threads of their own, since there is no way back.
    let possible = std::thread::spawn(|| refuse_barriers().map(|()| assert!(!may_use_barriers())));
    if let Err(e) = possible.join().expect("the filter works") {
        println!("skipped: no system call can be refused here, as under an emulator: {e}");
        return;
    }
    let converse = |kind: Kind, may: bool| {
        let (peer, mut mine) = Peer::start(kind, &Builder::new());
        mine.send(&Order::MayUseBarriers).unwrap();
        assert_eq!(mine.recv::<bool>().unwrap(), may);
        drop(mine);
        peer.ends_well();
        wakes(kind);
        floods(kind, 500);
    };
    converse(Kind::Sandboxed, false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            refuse_barriers().unwrap();
            // What this thread starts inherits it.
            converse(Kind::Process, false);
        });
    });
    // Only this side, and only after it has attached.
    let (peer, mut mine) = Peer::start(Kind::Process, &builder(SMALL, Duration::ZERO));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            refuse_barriers().unwrap();
            mine.send(&Order::MayUseBarriers).unwrap();
            assert!(mine.recv::<bool>().unwrap());
            wakes_by(&mut mine, STAGES[1]);
            wakes_by(&mut mine, STAGES[2]);
            mine.send(&Order::Flood { seed: 1, count: 500 }).unwrap();
            flood(&mut mine, !1, 500);
        });
    });
    drop(mine);
    peer.ends_well();
}

// --- life and death -----------------------------------------------------------------------------------

#[test]
fn everything_arrives_and_then_the_end_when_the_peer_exits() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    for (stage, spin, after, _) in STAGES {
        for count in [0, 1, 200] {
            let (peer, mut mine) = Peer::start(Kind::Process, &builder(SMALL, Duration::from_micros(spin)));
            introduce(&mut mine);
            mine.send(&Order::Last { seed: count, count, after }).unwrap();
            let script = Script::mixed(count, SMALL);
            for i in 0..count {
                assert!(mine.recv_bytes_timeout(PATIENCE).unwrap() == script.message(i), "message {i} is another");
            }
            let end = mine.recv_bytes_timeout(PATIENCE);
            assert!(matches!(end, Err(RecvError::Disconnected)), "{stage}, after {count} messages: {end:?}");
            peer.ends_well();
            assert!(matches!(mine.send_bytes(b"anyone?"), Err(SendError::Disconnected)));
        }
    }
}

#[test]
fn the_end_comes_when_an_idle_peer_is_killed() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    for (stage, spin, after, _) in STAGES {
        quickest(&(stage, "the peer is killed"), 300_000, || {
            let (mut peer, mut mine) = Peer::start(Kind::Process, &builder(SMALL, Duration::from_micros(spin)));
            introduce(&mut mine);
            mine.send(&Order::Idle).unwrap();
            let (end, killed) = std::thread::scope(|scope| {
                let killer = scope.spawn(|| {
                    rest(after);
                    peer.kill();
                    now()
                });
                let end = mine.recv_bytes_timeout(PATIENCE);
                (end, killer.join().expect("the killer does not panic"))
            });
            let noticed = now();
            assert!(matches!(end, Err(RecvError::Disconnected)), "{stage}: {end:?}");
            peer.was_killed();
            noticed.saturating_sub(killed)
        });
    }
}

#[test]
fn only_whole_messages_come_from_a_peer_killed_while_it_sends() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let mut random = Random::new(1);
    let mut received = 0;
    for seed in 0..12 {
        let (mut peer, mut mine) = Peer::start(Kind::Process, &builder(SMALL, Duration::from_micros(seed % 2 * 50)));
        introduce(&mut mine);
        mine.send(&Order::FloodForEver { seed }).unwrap();
        let script = Script::mixed(seed, SMALL);
        assert!(mine.recv_bytes_timeout(PATIENCE).unwrap() == script.message(0));
        let delay = random.below(8_000);
        let end = std::thread::scope(|scope| {
            scope.spawn(|| {
                rest(delay);
                peer.kill();
            });
            (1..).find_map(|i| match mine.recv_bytes_timeout(PATIENCE) {
                Ok(message) => {
                    assert!(message == script.message(i), "message {i} is another");
                    received += 1;
                    None
                }
                Err(e) => Some(e),
            })
        });
        assert!(matches!(end, Some(RecvError::Disconnected | RecvError::Cut)), "{end:?}");
        peer.was_killed();
    }
    assert!(received > 12, "hardly anything was sent, so nothing was shown");
}

#[test]
fn a_broken_pipe_comes_when_a_receiving_peer_is_killed() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    for (stage, spin, after, _) in STAGES {
        let (mut peer, mut mine) = Peer::start(Kind::Process, &builder(SMALL, Duration::from_micros(spin)));
        introduce(&mut mine);
        mine.send(&Order::Idle).unwrap();
        let start = Instant::now();
        let end = std::thread::scope(|scope| {
            scope.spawn(|| {
                rest(after);
                peer.kill();
            });
            (0..1000).find_map(|_| mine.send_bytes_timeout(&[0; 100], PATIENCE).err())
        });
        assert!(matches!(end, Some(SendError::Disconnected)), "{stage}: {end:?}");
        assert!(start.elapsed() < PATIENCE / 2, "{stage}: noticed after {:?}", start.elapsed());
        peer.was_killed();
    }
}

// --- without a second process -------------------------------------------------------------------------

#[test]
fn the_same_conversation_holds_between_threads() {
    let _alone = alone();
    let _watchdog = watchdog(240);
    sizes(Kind::Thread, SMALL);
    floods(Kind::Thread, 500);
    values(Kind::Thread);
    wakes(Kind::Thread);
}
