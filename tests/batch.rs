//! Messages sent and received in batches: what is different from one at a time, and what must not be.

mod support;

use std::time::Duration;

use ringpipe::{Batch, Builder, Connection, RecvError, SendError, pipe, simplex};
use support::{Child, Random, Script, alone, fork, fork_split, numbered, watchdog};

const SMALL: usize = 4096;

fn all(batch: &Batch) -> Vec<Vec<u8>> {
    batch.iter().map(<[u8]>::to_vec).collect()
}

#[test]
fn a_batch_arrives_as_its_messages_in_order_whole_and_empty_ones_too() {
    let (mut receiver, mut sender) = simplex().unwrap();
    let messages: Vec<Vec<u8>> = (0..40).map(|n| vec![n; (n as usize * 7) % 90]).collect();
    sender.send_batch(&messages).unwrap();
    sender.send_batch([[0; 8]; 0]).unwrap();
    let mut batch = Batch::new();
    receiver.recv_batch(&mut batch).unwrap();
    assert_eq!(all(&batch), messages);
    assert_eq!((batch.len(), batch.iter().len(), batch.is_empty()), (40, 40, false));
    assert_eq!(format!("{:?}", Batch::new()), "[]");
    // What was sent in a batch need not be received in one, nor the other way round.
    sender.send_batch(&["a", "b"]).unwrap();
    sender.send_bytes(b"c").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"a");
    receiver.recv_batch(&mut batch).unwrap();
    assert_eq!(all(&batch), [b"b", b"c"]);
}

#[test]
fn a_batch_goes_through_both_directions_of_a_connection() {
    let (mut a, mut b): (Connection, Connection) = pipe().unwrap();
    let mut batch = Batch::new();
    assert_eq!(a.try_send_batch(&["x", "yz"]).unwrap(), 2);
    b.try_recv_batch(&mut batch).unwrap();
    b.send_batch(all(&batch)).unwrap();
    a.recv_batch_timeout(&mut batch, Duration::from_secs(5)).unwrap();
    assert_eq!(all(&batch), [&b"x"[..], b"yz"]);
}

#[test]
fn an_attempt_sends_what_fits_and_says_how_many() {
    let (mut receiver, mut sender) = Builder::new().capacity(SMALL).simplex().unwrap();
    let messages: Vec<Vec<u8>> = (0..1000_u64).map(|n| n.to_le_bytes().to_vec()).collect();
    let mut batch = Batch::new();
    let (mut sent, mut received) = (0, Vec::new());
    while sent < messages.len() {
        let fitted = sender.try_send_batch(&messages[sent..]).unwrap();
        // 16 bytes each, and 16 that stay free: the ring is full to the last record, or all is sent.
        assert!(fitted == SMALL / 16 - 1 || sent + fitted == messages.len(), "{fitted} fitted");
        sent += fitted;
        if sent < messages.len() {
            assert!(matches!(sender.try_send_batch(&messages[sent..]), Err(SendError::Full)));
        }
        while receiver.try_recv_batch(&mut batch).is_ok() {
            received.extend(all(&batch));
        }
        assert!(batch.is_empty(), "nothing is left of the last one after an error");
    }
    assert_eq!(received, messages);
}

#[test]
fn what_is_pushed_is_seen_when_the_batch_is_flushed_or_dropped_or_full() {
    let (mut receiver, mut sender) = simplex().unwrap();
    let mut batch = sender.batch();
    batch.push(b"one").unwrap();
    batch.push(b"two").unwrap();
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
    batch.flush();
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"one");
    batch.push(b"three").unwrap();
    drop(batch);
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"two");
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"three");

    // A message that is not short goes by itself, behind what is there.
    let (mut a, mut b): (Connection, Connection) = pipe().unwrap();
    let mut batch = a.batch();
    for message in [&b"short"[..], &[7; 5000], b"short again"] {
        batch.push(message).unwrap();
    }
    assert_eq!(b.try_recv_bytes().unwrap(), b"short");
    assert_eq!(b.try_recv_bytes().unwrap(), [7; 5000]);
    assert!(matches!(b.try_recv_bytes(), Err(RecvError::Empty)));
    drop(b);
    // Nobody is there, which is found out at the latest when it takes a look at the other side.
    let refused = (0..1000).find_map(|_| batch.push(&[0; 100]).err());
    assert!(matches!(refused, Some(SendError::Disconnected)));
    assert!(matches!(batch.push(b"more"), Err(SendError::Disconnected)));
    batch.flush();
    drop(batch);
    assert_eq!(a.receiver().fill(), 0);
}

#[test]
fn of_two_copies_of_a_batch_only_one_is_sent() {
    let (_alone, _watchdog) = (alone(), watchdog(60));
    let (mut receiver, mut sender) = simplex().unwrap();
    let mut batch = sender.batch();
    batch.push(b"once").unwrap();
    fork(|| {
        // This child's copy, which is dropped with everything else as it would be at the end of a program.
        batch.flush();
        0
    })
    .succeeds();
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"once");
    batch.flush();
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)), "it came twice");
    batch.push(b"and on").unwrap();
    drop(batch);
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"and on");
}

#[test]
fn a_batch_that_is_received_has_bounds() {
    let (mut receiver, mut sender) = Builder::new().capacity(1 << 20).simplex().unwrap();
    let mut batch = Batch::new();
    // 32 KiB of records, that is, messages with 8 bytes each around them.
    sender.send_batch(vec![[0; 8]; 3000]).unwrap();
    for left in [3000, 3000 - 2048] {
        receiver.recv_batch(&mut batch).unwrap();
        assert_eq!(batch.len(), left.min(2048));
    }
    sender.send_batch(vec![vec![1; 10_000]; 7]).unwrap();
    let mut counts = Vec::new();
    while counts.iter().sum::<usize>() < 7 {
        receiver.recv_batch(&mut batch).unwrap();
        assert!(batch.iter().all(|message| message == [1; 10_000]));
        counts.push(batch.len());
    }
    assert_eq!(counts, [3, 3, 1]);
    // Also where the batch has the memory for more.
    sender.send_bytes(&[2; 200_000]).unwrap();
    receiver.recv_batch(&mut batch).unwrap();
    sender.send_batch(vec![vec![1; 10_000]; 4]).unwrap();
    for left in [4, 1] {
        receiver.recv_batch(&mut batch).unwrap();
        assert_eq!(batch.len(), left.min(3));
    }
    // But for one that is large by itself: in a record, and longer than the ring.
    for len in [100_000, 3 << 20] {
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send_batch(&[numbered(len), vec![2], vec![3]]).unwrap());
            receiver.recv_batch(&mut batch).unwrap();
            assert!(all(&batch) == [numbered(len)], "{} messages", batch.len());
        });
        assert_eq!(receiver.recv_bytes().unwrap(), [2]);
        receiver.recv_batch(&mut batch).unwrap();
        assert_eq!(all(&batch), [[3]]);
    }
}

#[test]
fn a_batch_that_is_waited_for_comes_or_the_time_is_over_or_the_sender_is_gone() {
    let (mut receiver, mut sender) = simplex().unwrap();
    let mut batch = Batch::new();
    sender.send_bytes(b"old").unwrap();
    receiver.recv_batch(&mut batch).unwrap();
    assert!(matches!(receiver.try_recv_batch(&mut batch), Err(RecvError::Empty)) && batch.is_empty());
    let short = Duration::from_millis(20);
    assert!(matches!(receiver.recv_batch_timeout(&mut batch, short), Err(RecvError::TimedOut)));
    let soon = std::time::Instant::now() + short;
    assert!(matches!(receiver.recv_batch_deadline(&mut batch, soon), Err(RecvError::TimedOut)));
    sender.send_batch(&["last", "of all"]).unwrap();
    drop(sender);
    receiver.recv_batch(&mut batch).unwrap();
    assert_eq!(all(&batch), [&b"last"[..], b"of all"]);
    assert!(matches!(receiver.recv_batch(&mut batch), Err(RecvError::Disconnected)) && batch.is_empty());

    let (receiver, mut sender) = simplex().unwrap();
    drop(receiver);
    assert!(matches!(sender.send_batch(&["to nobody"]), Err(SendError::Disconnected)));
    assert!(matches!(sender.try_send_batch(&["to nobody"]), Err(SendError::Disconnected)));
}

/// Batches of every size, of messages of every length, through a ring that they fill all the time; received in batches, or one by one.
#[test]
fn a_stream_of_batches_arrives_in_another_process() {
    const COUNT: u64 = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
    let (_alone, _watchdog) = (alone(), watchdog(120));
    for (mixed, in_batches) in [(false, true), (false, false), (true, true), (true, false)] {
        let script = || if mixed { Script::mixed(5, SMALL) } else { Script::short(5) };
        let count = if mixed { COUNT / 20 } else { COUNT };
        let (receiver, sender) = Builder::new().capacity(SMALL).simplex().unwrap();
        let (child, mut receiver): (Child, _) = fork_split(receiver, sender, |mut sender| {
            let (script, mut random) = (script(), Random::new(7));
            let mut i = 0;
            while i < count {
                let next = (i + 1 + random.below(60)).min(count);
                sender.send_batch((i..next).map(|i| script.message(i))).unwrap();
                i = next;
            }
            0
        });
        let (script, mut batch, mut i) = (script(), Batch::new(), 0);
        while i < count {
            if in_batches {
                receiver.recv_batch(&mut batch).unwrap();
                for message in batch.iter() {
                    assert!(message == script.message(i), "message {i}");
                    i += 1;
                }
            } else {
                assert!(receiver.recv_bytes().unwrap() == script.message(i), "message {i}");
                i += 1;
            }
        }
        assert!(matches!(receiver.recv_batch(&mut batch), Err(RecvError::Disconnected)));
        child.succeeds();
    }
}
