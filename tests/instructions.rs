//! How many instructions a message takes: a figure that noise cannot move. They are counted one by one, in a child that is stepped through its calls
//! by `ptrace(2)`; each count includes the few of the loop around the call.
//!
//! Only a release build is worth counting, so a debug build counts nothing: `cargo test --release --test instructions -- --nocapture`. What is
//! expected was counted with the compiler of the day; a rise of more than a tenth fails.

#![cfg(all(target_arch = "x86_64", target_env = "gnu"))]

mod support;
#[path = "support/trace.rs"]
mod trace;

use std::time::Duration;

use ringpipe::{Builder, mpmc};
use support::{alone, skip, watchdog};
use trace::{How, Victim, may_trace};

/// Messages of the shorter run; the longer one has twice as many. What both do once does not count.
const RUN: usize = 200;
const CAPACITY: usize = 1 << 20;

/// Instructions for each message, of an act on a pipe that is given the number of messages and does nothing else.
fn each<E>(pipe: impl Fn() -> E, act: impl Fn(&mut E, usize)) -> f64 {
    let count = |messages| {
        let (mut victim, _pipe) = Victim::with_copy(pipe(), |pipe| act(pipe, messages));
        let path = How::Walk.forward(&mut victim, &[]).expect("a path");
        victim.kill();
        path.instructions() as f64
    };
    (count(2 * RUN) - count(RUN)) / RUN as f64
}

/// In use: nobody waits, and what a fresh pipe has to do once has been done.
fn two() -> (ringpipe::Receiver, ringpipe::Sender) {
    let (mut receiver, mut sender) = Builder::new().capacity(CAPACITY).simplex().unwrap();
    sender.send_bytes(b"first").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"first");
    assert!(receiver.recv_bytes_timeout(Duration::from_millis(1)).is_err());
    (receiver, sender)
}

fn many() -> (mpmc::Receiver, mpmc::Sender) {
    let (receiver, sender) = Builder::new().capacity(CAPACITY).mpmc().unwrap();
    sender.send_bytes(b"first").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"first");
    assert!(receiver.recv_bytes_timeout(Duration::from_millis(1)).is_err());
    (receiver, sender)
}

fn filled<E>(mut pipe: E, mut send: impl FnMut(&mut E)) -> E {
    (0..2 * RUN).for_each(|_| send(&mut pipe));
    pipe
}

#[test]
fn no_message_takes_many_more_instructions_than_it_did() {
    if cfg!(debug_assertions) {
        return skip("counting instructions", "this is a debug build");
    }
    if !may_trace() {
        return;
    }
    let (_alone, _watchdog) = (alone(), watchdog(300));
    let mut rows = Vec::new();
    // Bytes of a message, and what a send and a receive of it took. Long ones are copied by the C library, by what the processor has: these took the most on a Zen 3.
    for (len, send, recv) in [(8, 61.0, 53.0), (64, 70.0, 58.0), (1024, 340.0, 230.0)] {
        let message = vec![7; len];
        let sent = each(two, |(_, sender), n| (0..n).for_each(|_| sender.send_bytes(&message).unwrap()));
        let pipe = || filled(two(), |(_, sender)| sender.send_bytes(&message).unwrap());
        let received = each(pipe, |(receiver, _), n| {
            let mut buf = [0; 1024];
            (0..n).for_each(|_| assert_eq!(receiver.recv_bytes_into(&mut buf, 0).unwrap(), len));
        });
        rows.extend([("send", len, sent, send), ("receive", len, received, recv)]);
    }
    for (len, send, recv) in [(8, 129.0, 137.0), (64, 137.0, 143.0)] {
        let message = vec![7; len];
        let sent = each(many, |(_, sender), n| (0..n).for_each(|_| sender.send_bytes(&message).unwrap()));
        let pipe = || filled(many(), |(_, sender)| sender.send_bytes(&message).unwrap());
        let received = each(pipe, |(receiver, _), n| {
            let mut buf = [0; 1024];
            (0..n).for_each(|_| assert_eq!(receiver.recv_bytes_into(&mut buf, 0).unwrap(), len));
        });
        rows.extend([("mpmc: send", len, sent, send), ("mpmc: receive", len, received, recv)]);
    }
    for (what, len, counted, expected) in &rows {
        println!("{what:<14} {len:>5} bytes: {counted:>6.1} instructions, {expected} expected");
    }
    for (what, len, counted, expected) in rows {
        assert!(counted > 10.0, "{what}, {len} bytes: {counted} instructions are too few to be true");
        assert!(counted < 1.1 * expected, "{what}, {len} bytes: {counted} instructions, {expected} expected");
    }
}
