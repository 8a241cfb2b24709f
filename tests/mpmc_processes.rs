//! A pipe for many senders and many receivers, in several processes: who is still there, what the dead held, copies made by `fork`, and ends
//! handed over.
//!
//! Children that are to run another program run this one again: see `as_another_program`.

mod support;

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringpipe::mpmc::{Receiver, Sender, simplex};
use ringpipe::{AttachError, End, RecvError, SendError};
use support::forms::{is_broken, is_eof, timed_out};
use support::many::{KEPT, SMALL, attached, fill_up, receiving, sending, small};
use support::programs::{PIPE, program, role};
use support::{
    Call, Child, LEAVES, Leave, Script, Shared, await_call, eventually, for_ever, fork, fork_copy, fork_split, guard,
    median, memory_files, memory_of_pipes, nanos,
};

/// Nothing takes so long unless somebody is stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for whatever is to be seen to be wrong.
const MOMENT: Duration = Duration::from_millis(30);
/// What a blocked call may take to notice a death, on a machine that does other things as well: the median of several.
const SOON: u64 = 25_000_000;

// --- who is there --------------------------------------------------------------------------------------

/// A child that holds `end`, uses it at once, and leaves when the word at `n` is set.
fn hold<E>(end: E, go: &Shared, n: usize, how: Leave, first: impl FnOnce(&E)) -> (Child, E) {
    fork_copy(end, |end| {
        first(&end);
        go.set(100 + n, 1);
        go.await_at_least(n, 1);
        match how {
            Leave::Exit => 0,
            Leave::Killed => for_ever(),
            Leave::Drop => {
                drop(end);
                go.set(200 + n, 1);
                for_ever()
            }
        }
    })
}

/// Lets such a child leave.
fn leave(child: &Child, go: &Shared, n: usize, how: Leave) {
    go.set(n, 1);
    match how {
        Leave::Exit => child.succeeds(),
        Leave::Drop => eventually("the end is dropped", || go.get(200 + n) == 1),
        Leave::Killed => {
            child.kill();
            child.wait();
        }
    }
}

#[test]
fn end_of_file_comes_when_the_last_sender_in_any_process_is_gone_and_everything_was_received() {
    let _guard = guard();
    for last in LEAVES {
        let (receiver, sender) = small();
        let go = Shared::new();
        let clone = sender.clone();
        let mut ends = Some((receiver, sender));
        let mut children = Vec::new();
        for (n, how) in [Leave::Drop, Leave::Killed, Leave::Exit, last].into_iter().enumerate() {
            let (receiver, sender) = ends.take().unwrap();
            // What a child does not own it must not hold either.
            let owned = (receiver, sender, clone.clone());
            let (child, (receiver, sender, _)) =
                hold(owned, &go, n, how, |(_, sender, _)| sender.send_bytes(&[n as u8]).unwrap());
            ends = Some((receiver, sender));
            children.push((child, how));
        }
        let (receiver, sender) = ends.unwrap();
        // The children inherited `clone` as well, and keep that until they end.
        drop((sender, clone));
        go.await_at_least(103, 1);
        eventually("all have sent", || receiver.len() == 4);
        let mut got: Vec<u8> = (0..3).flat_map(|_| receiver.recv_bytes_timeout(PATIENCE).unwrap()).collect();
        for (n, (child, how)) in children.iter().enumerate() {
            leave(child, &go, n, *how);
            if n < 3 {
                assert!(receiver.poll(Some(Duration::ZERO)).unwrap(), "one message is left");
            }
        }
        // Those that dropped what they owned live on, with a copy of `clone` that they never touched.
        got.extend(receiver.recv_bytes().unwrap());
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3]);
        assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)), "a copy is left");
        children.iter().for_each(|(child, _)| child.kill());
        for _ in 0..3 {
            assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)), "last: {last:?}");
        }
    }
}

#[test]
fn neither_end_of_file_nor_a_broken_pipe_comes_while_one_copy_is_left_and_both_do_at_once_after_it() {
    let _guard = guard();
    for last in LEAVES {
        let (receiver, sender) = small();
        let go = Shared::new();
        let (a, (receiver, sender)) = sending((receiver, sender), |sender| {
            sender.send_bytes(b"first").unwrap();
            0
        });
        let (b, receiver) = fork_split(receiver, sender, |sender| {
            go.await_at_least(0, 1);
            sender.send_bytes(b"last").unwrap();
            match last {
                Leave::Drop => {
                    drop(sender);
                    for_ever()
                }
                Leave::Exit => 0,
                Leave::Killed => {
                    // SAFETY: no preconditions.
                    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                    for_ever()
                }
            }
        });
        a.succeeds();
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"first");
        assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)), "one is left");
        go.set(0, 1);
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"last");
        assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)), "{last:?}");
        drop(b);

        let (receiver, sender) = small();
        let go = Shared::new();
        let (a, (receiver, sender)) = receiving((receiver, sender), |receiver| {
            receiver.recv_bytes().unwrap();
            0
        });
        let (b, sender) = fork_split(sender, receiver, |receiver| {
            go.await_at_least(0, 1);
            match last {
                Leave::Drop => {
                    drop(receiver);
                    for_ever()
                }
                Leave::Exit => 0,
                Leave::Killed => {
                    // SAFETY: no preconditions.
                    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                    for_ever()
                }
            }
        });
        sender.send_bytes(b"for the first").unwrap();
        a.succeeds();
        fill_up(&sender);
        assert!(matches!(sender.send_bytes_timeout(b"", MOMENT), Err(SendError::TimedOut)), "one is left");
        assert!(!sender.is_disconnected());
        go.set(0, 1);
        assert!(is_broken(&sender.send_bytes_timeout(b"", PATIENCE)), "{last:?}");
        assert!(sender.is_disconnected() && is_broken(&sender.try_send_bytes(b"")));
        drop(b);
    }
}

/// Three processes are blocked when the last of the other side is killed. Returns the nanoseconds that the slowest of them took.
fn death_noticed(parked: bool, receivers_wait: bool) -> u64 {
    const WAITING: usize = 3;
    let mut ends = small();
    let shared = Shared::new();
    let mut waiting = Vec::new();
    if !receivers_wait {
        fill_up(&ends.1);
    }
    for n in 0..WAITING {
        let done = |right: bool| {
            shared.set(n, nanos());
            i32::from(!right)
        };
        let child;
        (child, ends) = match receivers_wait {
            true => receiving(ends, |receiver| done(is_eof(&receiver.recv_bytes()))),
            false => sending(ends, |sender| done(is_broken(&sender.send_bytes(b"")))),
        };
        waiting.push(child);
    }
    let (receiver, sender) = ends;
    let (last, ()) = match receivers_wait {
        true => {
            drop(receiver);
            fork_split((), sender, |sender| {
                drop(sender.reserve(1));
                for_ever()
            })
        }
        false => {
            drop(sender);
            fork_split((), receiver, |_receiver| for_ever())
        }
    };
    for child in &waiting {
        await_call(child.pid, &[Call::Futex, Call::Park]);
    }
    if parked {
        eventually("one watches", || {
            waiting.iter().any(|child| support::doing(child.pid) == support::call_number(Call::Park))
        });
        std::thread::sleep(3 * MOMENT / 2);
    }
    let killed = nanos();
    last.kill();
    waiting.iter().for_each(Child::succeeds);
    (0..WAITING).map(|n| shared.get(n).saturating_sub(killed)).max().unwrap()
}

#[test]
fn the_death_of_the_last_of_one_side_wakes_all_who_are_blocked_on_the_other_soon() {
    const ROUNDS: usize = 9;
    let _guard = guard();
    for (parked, receivers_wait) in [(false, true), (true, true), (false, false), (true, false)] {
        let took: Vec<u64> = (0..ROUNDS).map(|_| death_noticed(parked, receivers_wait)).collect();
        println!("parked: {parked}, receivers wait: {receivers_wait}: {} µs", median(&took) / 1000);
        assert!(median(&took) < SOON, "parked: {parked}, receivers wait: {receivers_wait}: {took:?}");
    }
}

// --- what is held ----------------------------------------------------------------------------------------

/// A child that has reserved room, written to it, and commits it when told.
fn reserving(ends: (Receiver, Sender), shared: &Shared) -> (Child, (Receiver, Sender)) {
    let (child, ends) = sending(ends, |sender| {
        let mut room = sender.reserve(100).unwrap();
        room.write(b"reserved");
        shared.set(0, 1);
        shared.await_at_least(1, 1);
        room.commit().unwrap();
        0
    });
    shared.await_at_least(0, 1);
    (child, ends)
}

#[test]
fn what_a_stopped_sender_holds_up_stays_held_up_and_goes_on_with_it() {
    let _guard = guard();
    let shared = Shared::new();
    let (child, (receiver, sender)) = reserving(small(), &shared);
    child.stop();
    for i in 0..10_u8 {
        sender.send_bytes(&[i]).unwrap();
    }
    assert_eq!(receiver.len(), 10);
    // Somebody else who waits as well, and would take what can be taken.
    let (other, (receiver, sender)) = receiving((receiver, sender), |receiver| {
        let early = receiver.recv_bytes_timeout(Duration::from_millis(250));
        i32::from(!timed_out(&early))
    });
    assert!(timed_out(&receiver.recv_bytes_timeout(Duration::from_millis(300))), "nothing is stolen from the living");
    assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)));
    other.succeeds();
    // Nor does a sender that finds no room, which waits for what comes first to be received.
    fill_up(&sender);
    assert!(matches!(sender.send_bytes_timeout(b"", Duration::from_millis(200)), Err(SendError::TimedOut)));
    shared.set(1, 1);
    child.resume();
    assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"reserved");
    for i in 0..10_u8 {
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), [i]);
    }
    child.succeeds();
}

#[test]
fn what_is_behind_a_killed_senders_room_arrives_within_a_slice_or_so_and_then_end_of_file() {
    let _guard = guard();
    let mut took = Vec::new();
    for round in 0..9 {
        let shared = Shared::new();
        let (child, ends) = reserving(small(), &shared);
        ends.1.send_bytes(b"behind").unwrap();
        let (waiting, (receiver, sender)) = receiving(ends, |receiver| {
            let got = receiver.recv_bytes();
            shared.set(2, nanos());
            i32::from(got.unwrap() != b"behind" || !is_eof(&receiver.recv_bytes()))
        });
        drop((receiver, sender));
        await_call(waiting.pid, &[Call::Futex, Call::Park]);
        if round % 2 == 1 {
            std::thread::sleep(MOMENT / 2);
        }
        let killed = nanos();
        child.kill();
        waiting.succeeds();
        took.push(shared.get(2) - killed);
    }
    println!("behind a killed sender: {} µs", median(&took) / 1000);
    assert!(median(&took) < SOON, "{took:?}");
}

#[test]
fn what_several_killed_senders_held_is_cleared_one_after_the_other() {
    let _guard = guard();
    let mut ends = small();
    let mut children = Vec::new();
    for i in 0..6_u8 {
        let shared = Shared::new();
        let child;
        (child, ends) = reserving(ends, &shared);
        ends.1.send_bytes(&[i]).unwrap();
        children.push(child);
    }
    let (receiver, sender) = ends;
    drop(sender);
    children[0].stop();
    children[1..].iter().for_each(Child::kill);
    assert!(timed_out(&receiver.recv_bytes_timeout(Duration::from_millis(200))), "the first is only stopped");
    children[0].kill();
    for i in 0..6 {
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), [i]);
    }
    assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)));
    assert_eq!(receiver.fill(), 0);
}

#[test]
fn a_stopped_readers_message_keeps_its_room_and_a_killed_ones_is_given_to_who_waits() {
    let _guard = guard();
    let mut took = Vec::new();
    for round in 0..5 {
        let shared = Shared::new();
        let (receiver, sender) = small();
        sender.send_bytes(b"held").unwrap();
        let (holder, (receiver, sender)) = receiving((receiver, sender), |receiver| {
            let guard = receiver.recv_guard().unwrap();
            shared.set(0, 1);
            shared.await_at_least(1, 1);
            i32::from(guard.to_vec() != b"held")
        });
        shared.await_at_least(0, 1);
        holder.stop();
        // A message behind it is received, and another, until the ring has gone round.
        let mut passed = 0;
        while sender.try_send_bytes(&[0; 500]).is_ok() {
            assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap().len(), 500);
            passed += 1;
        }
        assert_eq!(passed, (SMALL - 64) / 512);
        assert!(receiver.is_empty());
        let (blocked, (receiver, sender)) = sending((receiver, sender), |sender| {
            let sent = sender.send_bytes(&[1; 500]);
            shared.set(2, nanos());
            i32::from(sent.is_err())
        });
        if round % 2 == 0 {
            assert!(timed_out(&receiver.recv_bytes_timeout(Duration::from_millis(200))), "no room is stolen");
        } else {
            await_call(blocked.pid, &[Call::Futex, Call::Park]);
        }
        assert_eq!(shared.get(2), 0);
        if round == 4 {
            shared.set(1, 1);
            holder.resume();
            holder.succeeds();
        } else {
            let killed = nanos();
            holder.kill();
            blocked.succeeds();
            took.push(shared.get(2) - killed);
        }
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), [1; 500]);
        blocked.succeeds();
        drop(sender);
        assert!(is_eof(&receiver.recv_bytes()));
    }
    println!("room of a killed reader: {} µs", median(&took) / 1000);
    assert!(median(&took) < SOON, "{took:?}");
}

// --- long messages -----------------------------------------------------------------------------------------

const LONG_MESSAGE: usize = 48 << 20;

/// The ring goes on: what the dead had is taken away, and what they left outside of the ring is given back.
fn once_round(receiver: &Receiver, sender: &Sender) {
    for i in 0..5 {
        sender.send_bytes_timeout(&[i; 2 * SMALL], PATIENCE).unwrap();
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), [i; 2 * SMALL]);
    }
}

#[test]
fn the_memory_of_a_long_message_is_given_back_when_its_sender_is_killed_in_it() {
    let _guard = guard();
    let message = vec![3; LONG_MESSAGE];
    let mut caught = 0;
    for _ in 0..20 {
        let (child, (receiver, sender)) = sending(small(), |sender| {
            sender.send_bytes(&message).unwrap();
            for_ever()
        });
        while memory_of_pipes() < 1 << 20 {
            std::hint::spin_loop();
        }
        child.kill();
        child.wait();
        caught += usize::from(receiver.is_empty());
        let sent = receiver.len();
        sender.send_bytes(b"behind").unwrap();
        for _ in 0..sent {
            assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap().len(), LONG_MESSAGE);
        }
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"behind");
        once_round(&receiver, &sender);
        assert!(memory_of_pipes() < KEPT, "{} bytes are still there", memory_of_pipes());
        if caught == 3 {
            break;
        }
    }
    assert!(caught > 0, "every one had sent all of it");
}

#[test]
fn the_memory_of_a_long_message_is_given_back_when_its_receiver_was_killed_in_it_and_the_ring_went_on() {
    let _guard = guard();
    let message = vec![3; LONG_MESSAGE];
    let mut caught = 0;
    for _ in 0..20 {
        let shared = Shared::new();
        let (receiver, sender) = small();
        sender.send_bytes(&message).unwrap();
        let (child, (receiver, sender)) = receiving((receiver, sender), |receiver| {
            receiver.recv_bytes().unwrap();
            shared.set(0, 1);
            for_ever()
        });
        while !receiver.is_empty() {
            std::hint::spin_loop();
        }
        child.kill();
        child.wait();
        caught += usize::from(shared.get(0) == 0);
        once_round(&receiver, &sender);
        assert!(memory_of_pipes() < KEPT, "{} bytes are still there", memory_of_pipes());
        if caught == 3 {
            break;
        }
    }
    assert!(caught > 0, "every one had received all of it");
}

// --- forked copies --------------------------------------------------------------------------------------

#[test]
fn children_take_part_by_themselves_with_the_handles_that_they_inherited() {
    const EACH: u64 = 300;
    let _guard = guard();
    let script = Script::mixed(8, SMALL);
    let (requests, to_workers) = small();
    let (answers, from_workers) = small();
    let mut ends = (requests, from_workers, to_workers, answers);
    let mut workers = Vec::new();
    for _ in 0..3 {
        let child;
        (child, ends) = fork_copy(ends, |(requests, from_workers, to_workers, answers)| {
            drop((to_workers, answers));
            let mut count = 0;
            for request in requests.iter() {
                from_workers.send_bytes(&request.unwrap()).unwrap();
                count += 1;
            }
            // Of so many, one gets some.
            i32::from(count == 0)
        });
        workers.push(child);
    }
    let (requests, from_workers, to_workers, answers) = ends;
    drop((requests, from_workers));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..EACH {
                to_workers.send_bytes(&[&i.to_le_bytes(), script.message(i)].concat()).unwrap();
            }
            drop(to_workers);
        });
        let mut got: Vec<u64> = answers
            .iter()
            .map(|answer| {
                let answer = answer.unwrap();
                let i = u64::from_le_bytes(answer[..8].try_into().unwrap());
                assert!(answer[8..] == *script.message(i), "message {i} is another");
                i
            })
            .collect();
        got.sort_unstable();
        assert_eq!(got, (0..EACH).collect::<Vec<_>>());
    });
    for worker in &workers {
        let status = worker.wait();
        assert!(matches!(status.code(), Some(0 | 1)), "{status:?}");
    }
}

#[test]
fn a_childs_copies_of_its_parents_guards_do_nothing() {
    let _guard = guard();
    for commits in [true, false] {
        let (receiver, sender) = small();
        sender.send_bytes(b"held").unwrap();
        let read = receiver.recv_guard().unwrap();
        let mut room = sender.reserve(100).unwrap();
        room.write(b"from the");
        let (child, (read, mut room)) = fork_copy((read, room), |(read, mut room)| {
            assert_eq!(read.to_vec(), b"held");
            drop(read);
            room.write(b" child");
            if commits {
                let what = room.commit();
                assert!(matches!(what, Err(SendError::Io(_))), "{what:?}");
            } else {
                drop(room);
            }
            // It takes part all the same, also after it has become somebody.
            sender.send_bytes(b"from the child").unwrap();
            assert!(matches!(receiver.try_recv_bytes(), Err(RecvError::Empty)), "its own room is held up, too");
            0
        });
        child.succeeds();
        assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)), "the parent holds it up");
        room.write(b" parent");
        room.commit().unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), b"from the parent");
        assert_eq!(receiver.recv_bytes().unwrap(), b"from the child");
        // The room of what is read is the parent's as well: nothing is written there.
        while sender.try_send_bytes(&[0xEE; 60]).is_ok() {
            receiver.recv_bytes().unwrap();
        }
        assert_eq!(read.to_vec(), b"held");
        let child = fork(|| i32::from(!matches!(sender.try_send_bytes(b""), Err(SendError::Full))));
        child.succeeds();
        drop(read);
        sender.try_send_bytes(b"").unwrap();
    }
}

#[test]
fn a_child_that_is_member_already_does_not_give_up_what_its_parent_holds() {
    let _guard = guard();
    let (receiver, sender) = small();
    let mut room = sender.reserve(8).unwrap();
    let (child, mut room) = {
        room.write(b"par");
        fork_copy(room, |room| {
            let own = sender.reserve(8).unwrap();
            drop(room);
            drop(own);
            drop(receiver.try_recv_bytes());
            0
        })
    };
    child.succeeds();
    sender.send_bytes(b"behind").unwrap();
    assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)));
    room.write(b"ent");
    room.commit().unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"parent");
    assert_eq!(receiver.recv_bytes().unwrap(), b"behind");
}

#[test]
fn what_a_killed_parent_held_is_cleared_though_its_silent_child_lives_on() {
    let _guard = guard();
    for touches in [false, true] {
        let shared = Shared::new();
        let (receiver, sender) = small();
        sender.send_bytes(b"held").unwrap();
        let (parent, (receiver, sender)) = fork_copy((receiver, sender), |(receiver, sender)| {
            let _read = receiver.recv_guard().unwrap();
            let _room = sender.reserve(100).unwrap();
            let child = fork(|| {
                if touches {
                    // As a participant of its own.
                    sender.send_bytes(b"from the child").unwrap();
                }
                shared.set(1, 1);
                for_ever()
            });
            shared.await_at_least(1, 1);
            shared.set(0, child.pid as u64);
            for_ever()
        });
        shared.await_at_least(0, 1);
        sender.send_bytes(b"behind").unwrap();
        assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)));
        parent.kill();
        parent.wait();
        if touches {
            assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"from the child");
        }
        assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"behind");
        for _ in 0..2 {
            for _ in 0..SMALL / 64 {
                sender.send_bytes_timeout(b"", PATIENCE).unwrap();
            }
            assert_eq!(receiver.try_iter().map(Result::unwrap).count(), SMALL / 64, "all the room is back");
        }
        drop(sender);
        assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)), "the child has a sender");
        // SAFETY: it is our grandchild, which lives until now.
        assert_eq!(unsafe { libc::kill(shared.get(0) as libc::pid_t, libc::SIGKILL) }, 0);
        assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)));
    }
}

#[test]
fn guards_that_are_leaked_are_given_back_when_their_process_closes_its_last_handle() {
    let _guard = guard();
    let shared = Shared::new();
    let (receiver, sender) = small();
    sender.send_bytes(b"held").unwrap();
    let (child, (receiver, sender)) = fork_copy((receiver, sender), |(receiver, sender)| {
        let (receivers, senders) = (receiver.clone(), sender.clone());
        std::mem::forget(receiver.recv_guard().unwrap());
        std::mem::forget(sender.reserve(100).unwrap());
        drop((receiver, sender));
        shared.set(0, 1);
        shared.await_at_least(1, 1);
        drop((receivers, senders));
        for_ever()
    });
    shared.await_at_least(0, 1);
    sender.send_bytes(b"behind").unwrap();
    assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)));
    shared.set(1, 1);
    assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"behind");
    eventually("all the room is back", || {
        let all = fill_up(&sender) == SMALL / 64;
        receiver.try_iter().for_each(drop);
        all
    });
    drop(child);
}

#[derive(Clone, Copy, Debug)]
enum Keeps {
    Both,
    Receiver,
    Sender,
}

/// What a child with both ends of one pipe does with them, before its parent leaves and after it; `ready` in between. It drops what it does not keep.
fn with_both(keeps: Keeps, receiver: Receiver, sender: Sender, ready: impl FnOnce()) {
    sender.send_bytes(b"to myself").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"to myself");
    match keeps {
        Keeps::Both => {
            ready();
            // The last of both sides, which it cannot take for gone.
            assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)) && !sender.is_disconnected());
            sender.send_bytes(b"still to myself").unwrap();
            assert_eq!(receiver.recv_bytes().unwrap(), b"still to myself");
            fill_up(&sender);
            assert!(matches!(sender.send_bytes_timeout(b"", MOMENT), Err(SendError::TimedOut)));
            drop(sender);
            assert_eq!(receiver.try_iter().map(Result::unwrap).count(), SMALL / 64);
            assert!(is_eof(&receiver.recv_bytes()));
        }
        Keeps::Receiver => {
            drop(sender);
            assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)), "the parent has a sender");
            ready();
            assert!(is_eof(&receiver.recv_bytes()) && is_eof(&receiver.try_recv_bytes()));
        }
        Keeps::Sender => {
            drop(receiver);
            fill_up(&sender);
            assert!(!sender.is_disconnected(), "the parent has a receiver");
            ready();
            assert!(is_broken(&sender.send_bytes(b"")) && is_broken(&sender.try_send_bytes(b"")));
            assert!(sender.is_disconnected());
        }
    }
}

#[test]
fn a_child_that_inherits_both_ends_learns_what_is_true_when_its_parent_closes_them_and_not_before() {
    const READY: usize = 1;
    const GONE: usize = 2;
    const DONE: usize = 3;
    let _guard = guard();
    for how in LEAVES {
        for keeps in [Keeps::Both, Keeps::Receiver, Keeps::Sender] {
            let shared = Shared::new();
            let (parent, ()) = fork_split((), small(), |ends| {
                let (child, ends) = fork_copy(ends, |(receiver, sender)| {
                    with_both(keeps, receiver, sender, || {
                        shared.set(READY, 1);
                        // Whoever keeps one end is blocked meanwhile.
                        if matches!(keeps, Keeps::Both) {
                            shared.await_at_least(GONE, 1);
                        }
                    });
                    shared.set(DONE, 1);
                    0
                });
                std::mem::forget(child);
                shared.await_at_least(0, 1);
                match how {
                    Leave::Exit => 0,
                    Leave::Killed => for_ever(),
                    Leave::Drop => {
                        drop(ends);
                        shared.set(200, 1);
                        for_ever()
                    }
                }
            });
            eventually("the child has the ends that it keeps", || shared.get(READY) == 1);
            std::thread::sleep(MOMENT);
            assert_eq!(shared.get(DONE), 0, "{how:?}, {keeps:?}: before the parent had closed anything");
            leave(&parent, &shared, 0, how);
            shared.set(GONE, 1);
            eventually("the child has learnt it", || shared.get(DONE) == 1);
        }
    }
}

// --- forks in the midst of it -----------------------------------------------------------------------------

/// How many members the pipe has whose memory file this process has open, which must be one only: each has locked a byte of it.
fn members() -> usize {
    let [file] = memory_files()[..] else {
        panic!("one pipe, and one copy of its file for each side: {:?}", memory_files())
    };
    let locked = |byte: &u32| {
        // SAFETY: a structure of integers.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        (lock.l_type, lock.l_whence) = (libc::F_WRLCK as _, libc::SEEK_SET as _);
        (lock.l_start, lock.l_len) = (*byte as _, 1);
        // SAFETY: the descriptor is open, and the command takes such a structure.
        assert_eq!(unsafe { libc::fcntl(file, libc::F_OFD_GETLK, &mut lock) }, 0);
        i32::from(lock.l_type) != libc::F_UNLCK
    };
    (0..1024).filter(locked).count()
}

/// Several threads attach to a pipe, or use for the first time what they inherited, while others fork; and each child takes part, or does not, and lives
/// on when that process is killed, whose membership must not live on in any of them.
#[test]
fn children_forked_while_other_threads_attach_are_members_by_themselves_and_keep_nobody_elses_membership_alive() {
    const ROUNDS: usize = 4;
    const ATTACHERS: u64 = 2;
    const FORKERS: u64 = 2;
    const EACH: u64 = 40;
    /// Words: what is done, how many children take part, the longest that one of them took, and their pids.
    const READY: usize = 0;
    const TAKING_PART: usize = 1;
    const SLOWEST: usize = 2;
    const PIDS: usize = 16;
    let _guard = guard();
    for _ in 0..ROUNDS {
        let shared = Shared::new();
        let (receiver, sender) = small();
        let ours = members();
        let child_of = |forker: u64, n: u64, sender: &Sender| {
            let child = fork(|| {
                if n % 2 == 0 {
                    let start = nanos();
                    sender.send_bytes(&[forker * EACH + n, 1].map(u64::to_le_bytes).concat()).unwrap();
                    shared.word(SLOWEST).fetch_max(nanos() - start, Ordering::SeqCst);
                    shared.word(TAKING_PART).fetch_add(1, Ordering::SeqCst);
                }
                for_ever()
            });
            shared.set(PIDS + (forker * EACH + n) as usize, child.pid as u64);
            std::mem::forget(child);
        };
        let (parent, (receiver, _sender)) = fork_copy((receiver, sender), |(receiver, sender)| {
            drop(receiver);
            let (sender, child_of) = (&sender, &child_of);
            let kept: Vec<Sender> = std::thread::scope(|scope| {
                for forker in 0..FORKERS {
                    scope.spawn(move || (0..EACH).for_each(|n| child_of(forker, n, sender)));
                }
                let attachers: Vec<_> = (0..ATTACHERS)
                    .map(|attacher| {
                        scope.spawn(move || {
                            // All attachers at once, and while a child is being forked.
                            sender.send_bytes(&[attacher, 2].map(u64::to_le_bytes).concat()).unwrap();
                            let attach = |n| (n, attached(sender.clone()));
                            // Half of them stay.
                            (0..EACH).map(attach).filter(|(n, _)| n % 2 == 0).map(|(_, end)| end).collect::<Vec<_>>()
                        })
                    })
                    .collect();
                attachers.into_iter().flat_map(|attacher| attacher.join().unwrap()).collect()
            });
            shared.set(READY, kept.len() as u64);
            for_ever()
        });
        eventually("all are forked and attached", || shared.get(READY) > 0);
        let taking_part = FORKERS * EACH / 2;
        eventually("the children take part", || shared.get(TAKING_PART) == taking_part);
        // Those that were forked, their parent with what it inherited, and what it attached.
        assert_eq!(members() - ours, (taking_part + 1 + shared.get(READY)) as usize, "each has a number of its own");
        let mut got: Vec<Vec<u8>> = receiver.try_iter().map(Result::unwrap).collect();
        got.sort_unstable();
        got.dedup();
        assert_eq!(got.len() as u64, taking_part + ATTACHERS);
        // Where the gate is left locked behind a child's back, that waits for two seconds and more.
        let slowest = Duration::from_nanos(shared.get(SLOWEST));
        assert!(slowest < Duration::from_millis(1500), "a child was stuck for {slowest:?}");
        parent.kill();
        parent.wait();
        assert_eq!(members() - ours, taking_part as usize, "the dead are not alive in their children");
        for i in 0..(FORKERS * EACH) as usize {
            // SAFETY: it is our grandchild, which lives until now.
            unsafe { libc::kill(shared.get(PIDS + i) as libc::pid_t, libc::SIGKILL) };
        }
        eventually("nobody is left", || members() == ours);
    }
}

// --- hand-over -----------------------------------------------------------------------------------------------

const OTHER: &str = "RINGPIPE_TEST_OTHER_PIPE";

/// Not a test by itself: what the program does that other tests start.
#[test]
fn as_another_program() {
    let Some(role) = role() else { return };
    match role.as_str() {
        "work" => {
            let (requests, answers) = (Receiver::from_env(PIPE).unwrap(), Sender::from_env(OTHER).unwrap());
            for request in requests.iter() {
                answers.send_bytes(&[request.unwrap(), b" understood".to_vec()].concat()).unwrap();
            }
        }
        "hold" => {
            let sender = Sender::from_env(PIPE).unwrap();
            let _room = sender.reserve(10).unwrap();
            Sender::from_env(OTHER).unwrap().send_bytes(b"it is held").unwrap();
            for_ever();
        }
        "wrong" => {
            let what = ringpipe::Sender::from_env(PIPE).map(drop);
            assert!(
                matches!(what, Err(AttachError::WrongEnd { ours: "sender", theirs: "sender for many" })),
                "{what:?}"
            );
            let what = Receiver::from_env(PIPE).map(drop);
            assert!(
                matches!(what, Err(AttachError::WrongEnd { ours: "receiver for many", theirs: "sender for many" })),
                "{what:?}"
            );
            let what = Sender::from_env(OTHER).map(drop);
            assert!(
                matches!(what, Err(AttachError::WrongEnd { ours: "sender for many", theirs: "sender" })),
                "{what:?}"
            );
            // Nothing was taken, so the right kinds still work.
            ringpipe::Sender::from_env(OTHER).unwrap().send_bytes(b"right").unwrap();
            Sender::from_env(PIPE).unwrap().send_bytes(b"right").unwrap();
            assert!(matches!(Sender::from_env(PIPE).map(drop), Err(AttachError::NotInherited { .. })), "taken twice");
        }
        "both" => {
            let (receiver, sender) = (Receiver::from_env(PIPE).unwrap(), Sender::from_env(OTHER).unwrap());
            sender.send_bytes(&receiver.recv_bytes().unwrap()).unwrap();
        }
        role => panic!("unknown role {role}"),
    }
}

#[test]
fn programs_that_inherit_ends_share_the_work() {
    let _guard = guard();
    let (requests, to_workers) = simplex().unwrap();
    let (answers, from_workers) = simplex().unwrap();
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let mut command = program("work");
            requests.clone().inherit(&mut command, PIPE);
            from_workers.clone().inherit(&mut command, OTHER);
            command.spawn().unwrap()
        })
        .collect();
    drop((requests, from_workers));
    for i in 0..100 {
        to_workers.send_bytes(format!("request {i}").as_bytes()).unwrap();
    }
    drop(to_workers);
    let mut got: Vec<_> = answers.iter().map(|answer| String::from_utf8(answer.unwrap()).unwrap()).collect();
    let mut wanted: Vec<_> = (0..100).map(|i| format!("request {i} understood")).collect();
    got.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(got, wanted);
    for mut worker in workers {
        assert!(worker.wait().unwrap().success());
    }
}

#[test]
fn a_program_inherits_both_ends_of_one_pipe() {
    let _guard = guard();
    let (receiver, sender) = simplex().unwrap();
    let mut command = program("both");
    receiver.clone().inherit(&mut command, PIPE);
    sender.clone().inherit(&mut command, OTHER);
    sender.send_bytes(b"there and back").unwrap();
    let mut child = command.spawn().unwrap();
    drop(command);
    drop(sender);
    assert!(child.wait().unwrap().success());
    assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"there and back");
    assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)));
}

#[test]
fn what_a_killed_program_held_is_cleared() {
    let _guard = guard();
    let (receiver, sender) = simplex().unwrap();
    let (told, tells) = simplex().unwrap();
    let mut command = program("hold");
    sender.clone().inherit(&mut command, PIPE);
    tells.inherit(&mut command, OTHER);
    let mut holder = command.spawn().unwrap();
    drop(command);
    assert_eq!(told.recv_bytes_timeout(PATIENCE).unwrap(), b"it is held");
    sender.send_bytes(b"behind").unwrap();
    drop(sender);
    assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)));
    holder.kill().unwrap();
    assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"behind");
    assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)));
    holder.wait().unwrap();
}

#[test]
fn an_inherited_end_of_the_wrong_kind_is_refused_and_left_for_the_right_one() {
    let _guard = guard();
    let (receiver, sender) = simplex().unwrap();
    let (mut single, single_sender) = ringpipe::simplex().unwrap();
    let mut command = program("wrong");
    sender.inherit(&mut command, PIPE);
    single_sender.inherit(&mut command, OTHER);
    let mut child = command.spawn().unwrap();
    drop(command);
    assert_eq!(single.recv_bytes_timeout(PATIENCE).unwrap(), b"right");
    assert_eq!(receiver.recv_bytes_timeout(PATIENCE).unwrap(), b"right");
    assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)));
    assert!(child.wait().unwrap().success());
}

#[test]
fn ends_travel_over_a_socket_with_what_waits_and_many_times_over() {
    let _guard = guard();
    let (here, there) = UnixStream::pair().unwrap();
    let (child, here) = fork_split(here, there, |there| {
        let senders: Vec<Sender> = (0..3).map(|_| Sender::recv_from(&there).unwrap()).collect();
        let receiver = Receiver::recv_from(&there).unwrap();
        for (i, sender) in senders.iter().enumerate() {
            sender.send_bytes(&[receiver.recv_bytes().unwrap(), vec![i as u8]].concat()).unwrap();
        }
        i32::from(!is_eof(&receiver.recv_bytes()))
    });
    let (answers, sender) = small();
    let (theirs, requests) = small();
    for i in 0..3_u8 {
        requests.send_bytes(&[i]).unwrap();
        sender.clone().send_to(&here).unwrap();
    }
    sender.close();
    theirs.send_to(&here).unwrap();
    for i in 0..3 {
        assert_eq!(answers.recv_bytes_timeout(PATIENCE).unwrap(), [i, i]);
    }
    assert!(timed_out(&answers.recv_bytes_timeout(MOMENT)), "the other process has three senders");
    drop(requests);
    assert!(is_eof(&answers.recv_bytes_timeout(PATIENCE)));
    child.succeeds();
}

#[test]
fn an_end_in_flight_keeps_its_side_open_until_the_socket_dies() {
    let _guard = guard();
    let (here, there) = UnixStream::pair().unwrap();
    let (receiver, sender) = small();
    sender.send_to(&here).unwrap();
    drop(here);
    assert!(timed_out(&receiver.recv_bytes_timeout(MOMENT)));
    drop(there);
    assert!(is_eof(&receiver.recv_bytes_timeout(PATIENCE)));

    let (here, there) = UnixStream::pair().unwrap();
    drop(there);
    let (receiver, sender) = small();
    let error = sender.send_to(&here).unwrap_err();
    assert_eq!(error.error.kind(), std::io::ErrorKind::BrokenPipe);
    error.end.send_bytes(b"given back").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"given back");
}

#[test]
fn ends_for_many_travel_through_a_pipe_for_two() {
    let _guard = guard();
    let (over, other) = ringpipe::pipe().unwrap();
    let (child, mut over) = fork_split(over, other, |mut over| {
        let sender = over.recv_end::<Sender>().unwrap();
        let receiver = over.recv_end::<Receiver>().unwrap();
        sender.send_bytes(&receiver.recv_bytes().unwrap()).unwrap();
        let what = over.recv_end::<Receiver>().map(drop);
        let wrong = AttachError::WrongEnd { ours: "receiver for many", theirs: "sender for many" };
        assert!(matches!(&what, Err(RecvError::Attach(e)) if e.to_string() == wrong.to_string()), "{what:?}");
        let what = over.recv_end::<ringpipe::Sender>().map(drop);
        assert!(matches!(what, Err(RecvError::Attach(AttachError::WrongEnd { .. }))), "{what:?}");
        let what = over.recv_end::<Sender>().map(drop);
        assert!(matches!(what, Err(RecvError::Attach(AttachError::WrongEnd { .. }))), "{what:?}");
        over.send_bytes(b"done").unwrap();
        0
    });
    let (answers, from_them) = small();
    let (to_them, requests) = small();
    over.send_end(from_them.clone()).unwrap();
    over.send_end(to_them).unwrap();
    requests.send_bytes(b"there and back").unwrap();
    assert_eq!(answers.recv_bytes_timeout(PATIENCE).unwrap(), b"there and back");
    over.send_end(from_them.clone()).unwrap();
    over.send_end(from_them).unwrap();
    let (_single, single_sender) = ringpipe::simplex().unwrap();
    over.send_end(single_sender).unwrap();
    assert_eq!(over.recv_bytes_timeout(PATIENCE).unwrap(), b"done");
    child.succeeds();
    assert!(is_eof(&answers.recv_bytes_timeout(PATIENCE)), "what was refused is closed");
}

#[test]
fn ends_for_many_and_for_two_are_not_mistaken_for_each_other() {
    let _guard = guard();
    let (here, there) = UnixStream::pair().unwrap();
    let (receiver, sender) = small();
    let start = Instant::now();
    sender.clone().send_to(&here).unwrap();
    let what = ringpipe::Sender::recv_from(&there).map(drop);
    assert!(matches!(what, Err(AttachError::WrongEnd { ours: "sender", theirs: "sender for many" })), "{what:?}");
    receiver.clone().send_to(&here).unwrap();
    let what = ringpipe::Connection::recv_from(&there).map(drop);
    assert!(matches!(what, Err(AttachError::WrongEnd { ours: "connection", theirs: "receiver for many" })), "{what:?}");
    let (single, single_sender) = ringpipe::simplex().unwrap();
    single.send_to(&here).unwrap();
    let what = Receiver::recv_from(&there).map(drop);
    assert!(matches!(what, Err(AttachError::WrongEnd { ours: "receiver for many", theirs: "receiver" })), "{what:?}");
    single_sender.send_to(&here).unwrap();
    let what = Receiver::recv_from(&there).map(drop);
    assert!(matches!(what, Err(AttachError::WrongEnd { ours: "receiver for many", theirs: "sender" })), "{what:?}");
    sender.send_bytes(b"still works").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"still works");
    assert!(start.elapsed() < PATIENCE);
}
