//! The ends for tokio: what they do, what is left of a call that was given up, and that no wake-up is lost.
//!
//! Where the other side is another process, it is mostly a blocking end.

mod support;

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, SinkExt, StreamExt};
use ringpipe::tokio::{Connection, Receiver, Sender};
use ringpipe::{Builder, End, RecvError, RecvIntoError, SendError, pipe, simplex};
use support::programs::{PIPE, program, role};
use support::{Random, Script, emulated, eventually, for_ever, fork_split, guard, guard_for, numbered, open_fds, skip};
use tokio::runtime::Runtime;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

const SMALL: usize = 4096;
/// Many times as long as a small ring, in which it is sent in parts.
const LONG: usize = 50_000;

/// One of a single thread, and one of two workers.
fn runtimes() -> [Runtime; 2] {
    [one_thread(), tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()]
}

fn one_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn small() -> (Receiver, Sender) {
    asynchronous(Builder::new().capacity(SMALL).simplex().unwrap())
}

fn asynchronous((receiver, sender): (ringpipe::Receiver, ringpipe::Sender)) -> (Receiver, Sender) {
    (Receiver::from_blocking(receiver).unwrap(), Sender::from_blocking(sender).unwrap())
}

/// Polls once, with a waker that wakes nobody.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls so often that the call has got where it waits for the runtime to wake it, or as far as it gets, and drops it.
async fn give_up<F: Future<Output: std::fmt::Debug>>(future: F) {
    let early = timeout(Duration::from_millis(10), future).await;
    assert!(early.is_err(), "not to be done yet: {early:?}");
}

/// A program with the other end of a connection.
struct Peer {
    child: std::process::Child,
}

impl Peer {
    fn start(role: &str, capacity: usize) -> (Peer, Connection) {
        let (mine, theirs) = Builder::new().capacity(capacity).pipe().unwrap();
        let mut command: Command = program(role);
        theirs.inherit(&mut command, PIPE);
        let child = command.spawn().unwrap();
        (Peer { child }, Connection::from_blocking(mine).unwrap())
    }

    fn succeeds(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Usually none; now and then one in which the other side falls asleep, spinning, on its futex or in the kernel's poll.
fn random_pause(random: &mut Random) -> Option<Duration> {
    match random.below(64) {
        0 => Some(Duration::from_micros(random.below(7_000))),
        1..8 => Some(Duration::from_micros(random.below(200))),
        _ => None,
    }
}

#[test]
fn as_another_program() {
    let Some(role) = role() else { return };
    let mut end = ringpipe::Connection::from_env(PIPE).unwrap();
    let mut random = Random::new(7);
    match &*role {
        "echo" => {
            while let Ok(message) = end.recv_bytes() {
                random_pause(&mut random).into_iter().for_each(std::thread::sleep);
                end.send_bytes(&message).unwrap();
            }
        }
        "async echo" => one_thread().block_on(async {
            let mut end = Connection::from_blocking(end).unwrap();
            while let Ok(message) = end.recv_bytes().await {
                random_pause(&mut random).into_iter().for_each(std::thread::sleep);
                end.send_bytes(&message).await.unwrap();
            }
        }),
        "numbers" => {
            let count = end.recv::<u64>().unwrap();
            let len: usize = end.recv().unwrap();
            for i in 0..count {
                random_pause(&mut random).into_iter().for_each(std::thread::sleep);
                end.send_bytes(&marked(i, len)).unwrap();
            }
        }
        // Says at the end which came.
        "collect" => {
            let mut numbers = Vec::new();
            while let Ok(message) = end.recv_bytes() {
                if message.is_empty() {
                    break;
                }
                let number = number(&message);
                assert_eq!(message, marked(number, message.len()));
                numbers.push(number);
                random_pause(&mut random).into_iter().for_each(std::thread::sleep);
            }
            end.send(&numbers).unwrap();
        }
        role => panic!("unknown role {role}"),
    }
}

/// A message that says which it is, and of which nothing can be missing.
fn marked(number: u64, len: usize) -> Vec<u8> {
    let mut message = number.to_le_bytes().to_vec();
    message.extend((8..len).map(|i| (i as u64).wrapping_mul(31).wrapping_add(number) as u8));
    message
}

fn number(message: &[u8]) -> u64 {
    u64::from_le_bytes(message[..8].try_into().unwrap())
}

// --- what they do -------------------------------------------------------------------------------------

#[test]
fn messages_of_any_length_go_both_ways_to_another_process() {
    let _guard = guard();
    for runtime in runtimes() {
        for role in ["echo", "async echo"] {
            runtime.block_on(async {
                let (peer, mut mine) = Peer::start(role, SMALL);
                for len in [0, 1, 8, 64, 1000, SMALL / 4 - 8, SMALL / 4 - 7, SMALL, LONG, 1 << 20] {
                    let message = numbered(len);
                    // Longer than both rings: the answer begins before the request is over only where the peer is not blocked.
                    mine.send_bytes(&message).await.unwrap();
                    assert!(mine.recv_bytes().await.unwrap() == message, "{len} bytes");
                }
                mine.send(&("values", 7_u8)).await.unwrap();
                assert_eq!(mine.recv::<(String, u8)>().await.unwrap(), ("values".to_owned(), 7));
                drop(mine);
                peer.succeeds();
            });
        }
    }
}

#[test]
fn receiving_into_a_buffer_says_how_long_and_gives_back_what_does_not_fit() {
    let _guard = guard();
    one_thread().block_on(async {
        let (mut receiver, mut sender) = small();
        let mut buf = vec![0; LONG + 1];
        for len in [5, LONG] {
            let message = numbered(len);
            let (sent, received) = tokio::join!(sender.send_bytes(&message), receiver.recv_bytes_into(&mut buf, 1));
            sent.unwrap();
            assert_eq!(received.unwrap(), len);
            assert!(buf[1..=len] == message);
        }
        for len in [5, LONG] {
            let (message, mut short) = (numbered(len), [9; 6]);
            let (sent, received) = tokio::join!(sender.send_bytes(&message), receiver.recv_bytes_into(&mut short, 2));
            sent.unwrap();
            let Err(RecvIntoError::TooShort(e)) = received else { panic!("{len} bytes do not fit: {received:?}") };
            assert!(e.message == message && e.room == 4 && short == [9; 6]);
        }
        // Without waiting for a message, and without consuming one.
        let bad = poll_once(receiver.recv_bytes_into(&mut [0; 2], 3));
        assert!(matches!(bad, Poll::Ready(Err(RecvIntoError::BadOffset { offset: 3, len: 2 }))));
        sender.send_bytes(b"stays").await.unwrap();
        assert!(matches!(
            receiver.recv_bytes_into(&mut [0; 2], 3).await,
            Err(RecvIntoError::BadOffset { offset: 3, len: 2 })
        ));
        assert_eq!(receiver.recv_bytes().await.unwrap(), b"stays");
    });
}

#[test]
fn readable_waits_for_a_message_or_the_end_and_consumes_nothing() {
    let _guard = guard();
    one_thread().block_on(async {
        let (mut receiver, mut sender) = asynchronous(simplex().unwrap());
        give_up(receiver.readable()).await;
        let (ready, sent) = tokio::join!(receiver.readable(), sender.send_bytes(b"one"));
        ready.unwrap();
        sent.unwrap();
        receiver.readable().await.unwrap();
        assert_eq!(receiver.get_mut().try_recv_bytes().unwrap(), b"one");
        give_up(receiver.readable()).await;
        drop(sender);
        receiver.readable().await.unwrap();
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Disconnected)));
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Disconnected)));
    });
}

#[test]
fn a_stream_ends_at_end_of_file_and_a_sink_sends_what_it_took_when_flushed() {
    let _guard = guard();
    for runtime in runtimes() {
        runtime.block_on(async {
            let (receiver, mut sender) = small();
            let messages: Vec<Vec<u8>> = (0..500).map(|i| marked(i, 8 + i as usize * 11)).collect();
            let sent = messages.clone();
            let task = tokio::spawn(async move {
                for message in &sent[..400] {
                    SinkExt::feed(&mut sender, message.clone()).await.unwrap();
                }
                // What was sent otherwise does not overtake.
                sender.send_bytes(&sent[400]).await.unwrap();
                let mut rest = futures_util::stream::iter(sent[401..].iter().cloned().map(Ok));
                sender.send_all(&mut rest).await.unwrap();
                SinkExt::close(&mut sender).await.unwrap();
            });
            let received: Vec<Vec<u8>> = receiver.map(Result::unwrap).collect().await;
            assert!(received == messages, "{} of {}", received.len(), messages.len());
            task.await.unwrap();
        });
    }
}

#[test]
fn both_halves_of_a_connection_stream_at_the_same_time() {
    let _guard = guard();
    runtimes()[1].block_on(async {
        let (a, b) = Builder::new().capacity(SMALL).pipe().unwrap();
        let (a, mut b) = (Connection::from_blocking(a).unwrap(), Connection::from_blocking(b).unwrap());
        let echo = tokio::spawn(async move {
            while let Some(message) = b.next().await {
                SinkExt::send(&mut b, message.unwrap()).await.unwrap();
            }
        });
        let (mut sender, mut receiver) = a.split();
        let script = Script::mixed(3, SMALL);
        let sending = async {
            for i in 0..3000 {
                sender.send_bytes(script.message(i)).await.unwrap();
            }
        };
        let receiving = async {
            for i in 0..3000 {
                assert!(receiver.recv_bytes().await.unwrap() == script.message(i), "message {i}");
            }
        };
        tokio::join!(sending, receiving);
        drop((sender, receiver));
        echo.await.unwrap();
    });
}

#[test]
fn a_message_that_is_too_long_ends_receiving_and_the_sender_knows_at_once() {
    let _guard = guard();
    one_thread().block_on(async {
        let (receiver, mut sender) = simplex().unwrap();
        let mut receiver = Receiver::from_blocking(receiver).unwrap();
        give_up(receiver.recv_bytes()).await;
        sender.send_bytes(b"12345").unwrap();
        assert_eq!(receiver.recv_bytes_max(5).await.unwrap(), b"12345");
        sender.send_bytes(b"123456").unwrap();
        assert!(matches!(receiver.recv_bytes_max(5).await, Err(RecvError::TooLong { len: 6, max: 5 })));
        assert!(matches!(sender.send_bytes(b"more"), Err(SendError::Disconnected)));
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Ended)));
        assert!(matches!(receiver.readable().await, Err(RecvError::Ended)));
        assert!(receiver.next().await.is_none());
    });
}

#[test]
fn an_error_that_stays_does_not_make_an_endless_stream() {
    let _guard = guard();
    one_thread().block_on(async {
        let ((mine, mut theirs), (passed, _kept)) = (pipe().unwrap(), simplex().unwrap());
        theirs.send_end(passed).unwrap();
        let mut mine = Connection::from_blocking(mine).unwrap();
        assert!(matches!(mine.next().await, Some(Err(RecvError::IsEnd))));
        assert!(mine.next().await.is_none());
        let (_, receiver) = mine.halves_mut();
        receiver.get_mut().try_recv_end::<ringpipe::Receiver>().unwrap();
        theirs.send_bytes(b"on").unwrap();
        assert_eq!(mine.next().await.unwrap().unwrap(), b"on");
    });
}

#[test]
fn an_end_turned_back_goes_on_where_it_was() {
    let _guard = guard();
    let runtime = one_thread();
    let (receiver, sender) = Builder::new().capacity(SMALL).simplex().unwrap();
    let message = numbered(LONG);
    let (child, receiver) = fork_split(receiver, sender, |mut sender| {
        sender.send_bytes(&numbered(LONG)).unwrap();
        sender.send_bytes(b"next").unwrap();
        0
    });
    let mut receiver = runtime.block_on(async {
        let mut receiver = Receiver::from_blocking(receiver).unwrap();
        receiver.readable().await.unwrap();
        // The start of the long message, at least; whatever has arrived is kept.
        assert!(poll_once(receiver.recv_bytes()).is_pending());
        receiver.into_blocking()
    });
    assert!(receiver.recv_bytes().unwrap() == message);
    let mut receiver = runtime.block_on(async { Receiver::from_blocking(receiver).unwrap() });
    assert_eq!(runtime.block_on(receiver.recv_bytes()).unwrap(), b"next");
    child.succeeds();

    // A sender that waited leaves its descriptor silent, and what its sink has sent in part is taken back.
    let (mut receiver, sender) = Builder::new().capacity(SMALL).simplex().unwrap();
    let mut sender = runtime.block_on(async {
        let mut sender = Sender::from_blocking(sender).unwrap();
        SinkExt::feed(&mut sender, numbered(LONG)).await.unwrap();
        give_up(SinkExt::flush(&mut sender)).await;
        sender.into_blocking()
    });
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
    sender.send_bytes(b"after").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"after");
    assert!(!support::readable(&sender));
}

#[test]
fn an_end_holds_one_descriptor_more_and_gives_it_back() {
    let _guard = guard();
    let runtime = one_thread();
    let without = open_fds();
    let (mine, theirs) = pipe().unwrap();
    let before = open_fds().len();
    let mine = runtime.block_on(async { Connection::from_blocking(mine).unwrap() });
    assert_eq!(open_fds().len(), before + 2);
    let mine = mine.into_blocking();
    assert_eq!(open_fds().len(), before);
    let mine = runtime.block_on(async { Connection::from_blocking(mine).unwrap() });
    drop((mine, theirs));
    assert_eq!(open_fds(), without);
}

#[test]
fn an_end_outlives_its_runtime_but_cannot_wait() {
    let _guard = guard();
    let runtime = one_thread();
    let (mut receiver, mut sender) = runtime.block_on(async { small() });
    drop(runtime);
    one_thread().block_on(async {
        sender.send_bytes(b"there").await.unwrap();
        assert_eq!(receiver.recv_bytes().await.unwrap(), b"there");
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Io(_))));
        assert!(matches!(sender.send_bytes(&numbered(LONG)).await, Err(SendError::Io(_))));
        // The message that could not be sent has been taken back. The receiver passes over what there is of it, and would wait for another.
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Io(_))));
        sender.send_bytes(b"next").await.unwrap();
        assert_eq!(receiver.recv_bytes().await.unwrap(), b"next");
    });
}

// --- what they cost -----------------------------------------------------------------------------------

#[test]
fn what_needs_no_wait_is_done_by_the_first_poll_and_without_a_system_call() {
    let _guard = guard();
    if emulated() {
        return skip("system calls of what needs no wait", "the emulator has no seccomp");
    }
    let child = support::fork(|| {
        // Not interrupted for the sake of other tasks.
        one_thread().block_on(tokio::task::coop::unconstrained(async {
            let (mut receiver, mut sender) = asynchronous(simplex().unwrap());
            // The first message rings a fresh bell.
            sender.send_bytes(b"first").await.unwrap();
            receiver.recv_bytes().await.unwrap();
            let (message, mut buf) = ([7; 300], [0; 300]);
            // From here on, any system call but `exit` (and `read` and `write`, which nobody makes) is deadly.
            // SAFETY: no pointers; the last call ends the process, which has nothing else to do.
            unsafe {
                if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) != 0 {
                    return 2;
                }
                for _ in 0..1000 {
                    let sent = poll_once(sender.send_bytes(&message));
                    let ready = poll_once(receiver.readable());
                    let got = poll_once(receiver.recv_bytes_into(&mut buf, 0));
                    let done = matches!((sent, ready), (Poll::Ready(Ok(())), Poll::Ready(Ok(()))));
                    if !done || !matches!(got, Poll::Ready(Ok(300))) || buf != message {
                        libc::syscall(libc::SYS_exit, 1);
                    }
                }
                libc::syscall(libc::SYS_exit, 0);
            }
            3
        }))
    });
    match child.wait().code() {
        Some(2) => skip("system calls of what needs no wait", "seccomp is refused"),
        code => assert_eq!(code, Some(0), "1: not done at once; killed: a system call"),
    }
}

#[test]
fn a_task_that_always_finds_a_message_lets_others_run() {
    let _guard = guard();
    one_thread().block_on(async {
        let (mut receiver, mut sender) = asynchronous(Builder::new().capacity(1 << 20).simplex().unwrap());
        let other = tokio::spawn(async { yield_now().await });
        for i in 0..1000_u64 {
            sender.send(&i).await.unwrap();
        }
        for i in 0..1000_u64 {
            assert_eq!(receiver.recv::<u64>().await.unwrap(), i);
        }
        assert!(other.is_finished(), "2000 calls in a row, and nobody else had a turn");
    });
}

#[test]
fn a_task_that_always_finds_room_for_its_sink_lets_others_run() {
    let _guard = guard();
    one_thread().block_on(async {
        let (_receiver, mut sender) = asynchronous(Builder::new().capacity(1 << 20).simplex().unwrap());
        let other = tokio::spawn(async { yield_now().await });
        for _ in 0..1000 {
            SinkExt::send(&mut sender, vec![1; 8]).await.unwrap();
        }
        assert!(other.is_finished(), "1000 messages in a row, and nobody else had a turn");
    });
}

#[test]
fn ends_that_a_forked_child_drops_go_on_in_its_parent() {
    let _guard = guard();
    for into_blocking in [false, true] {
        one_thread().block_on(async {
            let (mut receiver, mut sender) = small();
            give_up(receiver.recv_bytes()).await;
            // A long one is under way, too, when the process forks.
            let message = numbered(LONG);
            let mut sending = Box::pin(sender.send_bytes(&message));
            assert!(poll_once(&mut sending).is_pending());
            // SAFETY: there is no other thread.
            let child = unsafe { libc::fork() };
            if child == 0 {
                drop(sending);
                match into_blocking {
                    true => drop((receiver.into_blocking(), sender.into_blocking())),
                    false => drop((receiver, sender)),
                }
                // SAFETY: leaves everything else as it is.
                unsafe { libc::_exit(0) };
            }
            // SAFETY: the child was just made, and is waited for here only.
            assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
            let (sent, received) =
                timeout(Duration::from_secs(20), async { tokio::join!(sending, receiver.recv_bytes()) }).await.unwrap();
            sent.unwrap();
            assert_eq!(received.unwrap(), message);
            give_up(receiver.recv_bytes()).await;
            let late = async {
                sleep(Duration::from_millis(30)).await;
                sender.send_bytes(b"late").await.unwrap();
                Instant::now()
            };
            let received = async { (receiver.recv_bytes().await.unwrap(), Instant::now()) };
            let (sent, (message, at)) = tokio::join!(late, received);
            assert_eq!(message, b"late");
            assert!(at.saturating_duration_since(sent) < Duration::from_secs(3));
        });
    }
}

#[test]
fn to_wait_behind_a_message_that_was_taken_back_takes_no_processor_time() {
    let _guard = guard();
    one_thread().block_on(async {
        let (mut receiver, mut sender) = small();
        let message = numbered(LONG);
        let mut sending = Box::pin(sender.send_bytes(&message));
        assert!(poll_once(&mut sending).is_pending());
        // It has got a part of it by then.
        give_up(receiver.recv_bytes()).await;
        drop(sending);
        give_up(receiver.readable()).await;
        let before = processor_time();
        assert!(timeout(Duration::from_millis(500), receiver.readable()).await.is_err());
        let spent = processor_time() - before;
        assert!(spent < Duration::from_millis(50), "{spent:?} in half a second");
        sender.send_bytes(b"next").await.unwrap();
        receiver.readable().await.unwrap();
        assert_eq!(receiver.recv_bytes().await.unwrap(), b"next");
    });
}

#[test]
fn tasks_that_wait_take_no_processor_time() {
    let _guard = guard();
    for runtime in runtimes() {
        runtime.block_on(async {
            let (mut receiver, _sender) = small();
            let (_receiver, mut full) = small();
            while full.send_bytes(&[0; 900]).now_or_never().is_some() {}
            // They are asleep by then.
            give_up(receiver.recv_bytes()).await;
            give_up(full.send_bytes(&[0; 900])).await;
            let before = processor_time();
            tokio::join!(
                timeout(Duration::from_millis(500), receiver.recv_bytes()).map(|got| assert!(got.is_err())),
                timeout(Duration::from_millis(500), full.send_bytes(&[0; 900])).map(|sent| assert!(sent.is_err())),
            );
            let spent = processor_time() - before;
            assert!(spent < Duration::from_millis(50), "{spent:?} in half a second");
        });
    }
}

fn processor_time() -> Duration {
    // SAFETY: `timespec` is plain data, for which zeros are valid; the pointer leads to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time), 0);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

// --- peers that are gone --------------------------------------------------------------------------------

#[test]
fn a_killed_sender_is_end_of_file_after_all_that_it_sent() {
    let _guard = guard();
    for runtime in runtimes() {
        let (receiver, sender) = simplex().unwrap();
        let (child, receiver) = fork_split(receiver, sender, |mut sender| {
            (0..3_u64).for_each(|i| sender.send(&i).unwrap());
            for_ever()
        });
        runtime.block_on(async {
            let mut receiver = Receiver::from_blocking(receiver).unwrap();
            for i in 0..3 {
                assert_eq!(receiver.recv::<u64>().await.unwrap(), i);
            }
            give_up(receiver.recv_bytes()).await;
            let waiting = tokio::spawn(async move { receiver.recv_bytes().await });
            sleep(Duration::from_millis(20)).await;
            assert!(!waiting.is_finished());
            let killed = Instant::now();
            child.kill();
            assert!(matches!(waiting.await.unwrap(), Err(RecvError::Disconnected)));
            assert!(killed.elapsed() < Duration::from_secs(1), "after {:?}", killed.elapsed());
        });
    }
}

#[test]
fn a_sender_killed_inside_a_long_message_cuts_it() {
    let _guard = guard();
    let (receiver, sender) = Builder::new().capacity(SMALL).simplex().unwrap();
    let (child, receiver) =
        fork_split(receiver, sender, |mut sender| i32::from(sender.send_bytes(&[1; LONG]).is_err()));
    one_thread().block_on(async {
        eventually("the ring is full", || receiver.fill() > SMALL / 2);
        child.kill();
        let mut receiver = Receiver::from_blocking(receiver).unwrap();
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Cut)));
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Disconnected)));
    });
}

#[test]
fn a_killed_receiver_is_a_broken_pipe_to_a_task_that_waits_for_room() {
    let _guard = guard();
    for runtime in runtimes() {
        for len in [900, LONG] {
            let (receiver, sender) = Builder::new().capacity(SMALL).simplex().unwrap();
            let (child, sender) = fork_split(sender, receiver, |_receiver| for_ever());
            runtime.block_on(async {
                let mut sender = Sender::from_blocking(sender).unwrap();
                while timeout(Duration::from_millis(20), sender.send_bytes(&[0; 900])).await.is_ok() {}
                let waiting = tokio::spawn(async move { sender.send_bytes(&numbered(len)).await });
                sleep(Duration::from_millis(20)).await;
                assert!(!waiting.is_finished());
                child.kill();
                let sent = timeout(Duration::from_secs(1), waiting).await.expect("the kernel knows at once");
                assert!(matches!(sent.unwrap(), Err(SendError::Disconnected)));
            });
        }
    }
}

#[test]
fn an_end_that_is_dropped_is_known_at_once_in_the_middle_of_a_wait() {
    let _guard = guard();
    for runtime in runtimes() {
        runtime.block_on(async {
            let (mut receiver, sender) = small();
            let waiting = tokio::spawn(async move { receiver.recv_bytes().await });
            sleep(Duration::from_millis(10)).await;
            drop(sender);
            assert!(matches!(waiting.await.unwrap(), Err(RecvError::Disconnected)));

            let (receiver, mut sender) = small();
            let waiting = tokio::spawn(async move { sender.send_bytes(&numbered(LONG)).await });
            sleep(Duration::from_millis(10)).await;
            drop(receiver);
            assert!(matches!(waiting.await.unwrap(), Err(SendError::Disconnected)));
        });
    }
}

#[test]
fn a_peer_that_plays_with_the_bell_does_not_keep_a_task_busy() {
    let _guard = guard();
    one_thread().block_on(async {
        let (receiver, mut sender) = simplex().unwrap();
        let mut receiver = Receiver::from_blocking(receiver).unwrap();
        give_up(receiver.recv_bytes()).await;
        // As many bytes that stand for nothing as there is room for; then, one that says that descriptors come with it, which stays, as do those behind it.
        support::stuff_up(&sender);
        give_up(receiver.recv_bytes()).await;
        carry(&sender);
        (0..3).for_each(|_| assert!(support::stuff(&sender)));
        give_up(receiver.recv_bytes()).await;
        let before = processor_time();
        assert!(timeout(Duration::from_millis(500), receiver.recv_bytes()).await.is_err());
        let spent = processor_time() - before;
        assert!(spent < Duration::from_millis(50), "{spent:?} in half a second");
        let waiting = tokio::spawn(async move { (receiver.recv_bytes().await, receiver) });
        sleep(Duration::from_millis(10)).await;
        sender.send_bytes(b"found all the same").unwrap();
        let (message, mut receiver) = waiting.await.unwrap();
        assert_eq!(message.unwrap(), b"found all the same");
        // What nobody does who keeps to the protocol: there is no more to be heard from it.
        // SAFETY: no pointers; the descriptor is open.
        assert_eq!(unsafe { libc::shutdown(sender.as_fd().as_raw_fd(), libc::SHUT_WR) }, 0);
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Disconnected)));
    });
}

/// Puts a byte into the peer's bell that says that descriptors come with it.
fn carry(end: &impl AsFd) {
    // SAFETY: the pointer leads to one byte; the descriptor is open.
    let sent = unsafe { libc::send(end.as_fd().as_raw_fd(), [0x80_u8].as_ptr().cast(), 1, libc::MSG_DONTWAIT) };
    assert_eq!(sent, 1);
}

// --- calls that are given up ------------------------------------------------------------------------------

#[test]
fn a_receive_that_is_dropped_loses_nothing() {
    let _guard = guard();
    for runtime in runtimes() {
        runtime.block_on(async {
            for (count, len) in [(20_000_u64, 8), (300, LONG)] {
                let (peer, mut mine) = Peer::start("numbers", SMALL);
                mine.send(&count).await.unwrap();
                mine.send(&len).await.unwrap();
                let mut buf = vec![0; len];
                let (mut next, mut dropped) = (0, 0);
                while next < count {
                    let forms = dropped % 4;
                    let message = tokio::select! {
                        biased;
                        message = async {
                            match forms {
                                0 => mine.recv_bytes().await.unwrap(),
                                1 => mine.next().await.unwrap().unwrap(),
                                2 => {
                                    let len = mine.recv_bytes_into(&mut buf, 0).await.unwrap();
                                    buf[..len].to_vec()
                                }
                                _ => {
                                    mine.readable().await.unwrap();
                                    std::future::pending().await
                                }
                            }
                        } => message,
                        _ = async { for _ in 0..dropped % 3 { yield_now().await } } => {
                            dropped += 1;
                            continue;
                        }
                    };
                    assert!(message == marked(next, len), "message {next} of {len} bytes");
                    next += 1;
                    // Let go of one now and then that was never polled, and one that waits for the runtime.
                    drop(mine.recv_bytes());
                    if next % 1000 == 0 {
                        dropped += 1;
                    }
                }
                assert!(dropped > 1000 || len == LONG, "{dropped} receives dropped");
                assert!(matches!(mine.recv_bytes().await, Err(RecvError::Disconnected)));
                peer.succeeds();
            }
        });
    }
}

#[test]
fn a_long_receive_that_is_dropped_half_way_goes_on() {
    let _guard = guard();
    one_thread().block_on(async {
        let (mut receiver, mut sender) = small();
        let message = numbered(LONG);
        let mut sending = pin!(sender.send_bytes(&message));
        let mut buf = vec![0; LONG];
        let mut dropped = 0;
        let mut sent = false;
        let received = loop {
            if !sent && poll_once(&mut sending.as_mut()).is_ready() {
                sent = true;
            }
            // Each takes what has arrived, and is dropped.
            match dropped % 2 {
                0 => match poll_once(receiver.recv_bytes()) {
                    Poll::Ready(message) => break message.unwrap(),
                    Poll::Pending => dropped += 1,
                },
                _ => match poll_once(receiver.recv_bytes_into(&mut buf, 0)) {
                    Poll::Ready(len) => break buf[..len.unwrap()].to_vec(),
                    Poll::Pending => dropped += 1,
                },
            }
        };
        assert!(received == message);
        assert!(dropped > 10, "only {dropped} receives dropped");
    });
}

#[test]
fn a_send_that_is_dropped_has_sent_nothing() {
    let _guard = guard();
    for runtime in runtimes() {
        runtime.block_on(async {
            for len in [8, 900, LONG] {
                let (peer, mut mine) = Peer::start("collect", SMALL);
                let (mut sent, mut dropped) = (Vec::new(), 0_u64);
                let mut random = Random::new(len as u64);
                for i in 0.. {
                    let message = marked(i, len);
                    let patience = random.below(30);
                    tokio::select! {
                        biased;
                        done = mine.send_bytes(&message) => {
                            done.unwrap();
                            sent.push(i);
                        }
                        _ = async { for _ in 0..patience { yield_now().await } } => dropped += 1,
                    }
                    if (dropped >= 500 && sent.len() >= 100) || sent.len() > 20_000 {
                        break;
                    }
                }
                assert!(dropped > 10, "{len} bytes: only {dropped} sends dropped");
                mine.send_bytes(b"").await.unwrap();
                let numbers: Vec<u64> = mine.recv().await.unwrap();
                assert!(numbers == sent, "{len} bytes: {} arrived, {} sent", numbers.len(), sent.len());
                peer.succeeds();
            }
        });
    }
}

#[test]
fn a_long_send_that_is_dropped_half_way_is_taken_back() {
    let _guard = guard();
    one_thread().block_on(async {
        let (mut receiver, mut sender) = small();
        let message = numbered(LONG);
        for leak in [false, true] {
            // The receiver has got some of it, and keeps that...
            let mut sending = Box::pin(sender.send_bytes(&message));
            for _ in 0..5 {
                assert!(poll_once(sending.as_mut()).is_pending());
                assert!(poll_once(receiver.recv_bytes()).is_pending());
            }
            // ...until it is taken back: at once, or, if nobody could tell, with the next message.
            match leak {
                false => drop(sending),
                true => std::mem::forget(sending),
            }
            assert!(poll_once(receiver.recv_bytes()).is_pending());
            sender.send_bytes(b"next").await.unwrap();
            assert_eq!(receiver.recv_bytes().await.unwrap(), b"next");
        }
        // At once: nothing is left for an end that goes away to cut short.
        give_up(sender.send_bytes(&message)).await;
        drop(sender);
        assert!(matches!(receiver.recv_bytes().await, Err(RecvError::Disconnected)));
    });
}

#[test]
fn a_flush_of_a_sink_that_is_dropped_half_way_is_gone_on_with() {
    let _guard = guard();
    one_thread().block_on(async {
        let (mut receiver, mut sender) = small();
        let message = numbered(LONG);
        SinkExt::feed(&mut sender, message.clone()).await.unwrap();
        give_up(SinkExt::flush(&mut sender)).await;
        assert!(poll_once(receiver.recv_bytes()).is_pending());
        // Sends that wait behind it, and are given up, take it further, and nothing of it back.
        let mut received = Poll::Pending;
        for _ in 0..1000 {
            if poll_once(sender.send_bytes(b"behind")).is_ready() {
                break;
            }
            received = poll_once(receiver.recv_bytes());
            assert!(received.is_pending());
        }
        if received.is_pending() {
            received = poll_once(receiver.recv_bytes());
        }
        let Poll::Ready(Ok(received)) = received else { panic!("not within a thousand polls: {received:?}") };
        assert!(received == message);
        assert_eq!(receiver.recv_bytes().await.unwrap(), b"behind");
        assert!(poll_once(receiver.recv_bytes()).is_pending());
    });
}

// --- many, and for long -----------------------------------------------------------------------------------

#[test]
fn a_hundred_tasks_with_a_pipe_each_are_all_served() {
    let _guard = guard();
    const TASKS: u64 = 100;
    for runtime in runtimes() {
        let pipes: Vec<_> = (0..TASKS).map(|_| Builder::new().capacity(SMALL).pipe().unwrap()).collect();
        let (mine, theirs): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        let (child, mine) = fork_split(mine, theirs, |mut theirs| {
            while !theirs.is_empty() {
                let ends: Vec<&dyn ringpipe::Waitable> = theirs.iter().map(|end| end as _).collect();
                for index in ringpipe::wait(&ends, None).unwrap().into_iter().rev() {
                    match theirs[index].try_recv::<u64>() {
                        Ok(number) => theirs[index].send(&(number + 1)).unwrap(),
                        Err(_) => drop(theirs.swap_remove(index)),
                    }
                }
            }
            0
        });
        runtime.block_on(async {
            let serve = |task: u64, end| async move {
                let mut end = Connection::from_blocking(end).unwrap();
                let mut random = Random::new(task + 1);
                for i in 0..100 {
                    end.send(&(task * 1000 + i)).await.unwrap();
                    assert_eq!(end.recv::<u64>().await.unwrap(), task * 1000 + i + 1);
                    if let Some(pause) = random_pause(&mut random) {
                        sleep(pause).await;
                    }
                }
            };
            let tasks: Vec<_> = (0..).zip(mine).map(|(task, end)| tokio::spawn(serve(task, end))).collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        child.succeeds();
    }
}

/// A wake-up that is lost shows as a hang: who waits has nobody else to be woken by.
#[test]
fn no_wake_up_is_lost_where_both_sides_pause_at_random() {
    let _guard = guard_for(120);
    for runtime in runtimes() {
        for role in ["echo", "async echo"] {
            for strategy in [ringpipe::WaitStrategy::Adaptive, ringpipe::WaitStrategy::Blocking] {
                runtime.block_on(async {
                    let (mine, theirs) = Builder::new().capacity(SMALL).wait_strategy(strategy).pipe().unwrap();
                    let mut command = program(role);
                    theirs.inherit(&mut command, PIPE);
                    let peer = Peer { child: command.spawn().unwrap() };
                    drop(command);
                    let (mut sender, mut receiver) = Connection::from_blocking(mine).unwrap().split();
                    let script = Script::mixed(11, SMALL);
                    let end = Instant::now() + Duration::from_secs(3);
                    let (count, total) = tokio::sync::oneshot::channel();
                    // In a task of its own, so that both directions fill up and run empty independently.
                    let sending = tokio::spawn(async move {
                        let (mut random, mut sent) = (Random::new(5), 0);
                        while Instant::now() < end {
                            if let Some(pause) = random_pause(&mut random) {
                                sleep(pause).await;
                            }
                            sender.send_bytes(script.message(sent)).await.unwrap();
                            sent += 1;
                        }
                        count.send(sent).unwrap();
                    });
                    let (mut random, mut received) = (Random::new(6), 0);
                    let script = Script::mixed(11, SMALL);
                    let all = loop {
                        // At the end, when the sender has been dropped.
                        let Ok(message) = receiver.recv_bytes().await else { break total.await.unwrap() };
                        assert!(message == script.message(received), "message {received}");
                        received += 1;
                        if let Some(pause) = random_pause(&mut random) {
                            sleep(pause).await;
                        }
                    };
                    sending.await.unwrap();
                    assert_eq!(received, all);
                    assert!(received > 100, "only {received} messages");
                    peer.succeeds();
                });
            }
        }
    }
}
