//! Both ends of a pipe whose shared memory and bells somebody rewrites between (and within) any two calls: cursors, seats, headers,
//! payload, holes, bytes and descriptors on the bells.
//!
//! Results may be anything; no call may panic, go outside the ring, go on for ever, or allocate what the memory says. What lies before and
//! behind the ring is poisoned, so the address sanitizer reports the first byte read or written there.
#![no_main]

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::fuzzing::{Memory, Pipe, bell};
use ringpipe_fuzz::hostile::{ReceiverCall, Rewrite, SenderCall, Spare, ring_the_bell};
use ringpipe_fuzz::{Allocated, Start, guard};

const CAPACITY: usize = 4096;
/// Over before anything is looked at: what can be done at once is done, and then the call gives up. Waits are `live_flipper`'s business.
const BRIEF: Duration = Duration::from_nanos(1);
const MAX_STEPS: usize = 200;
/// A message grows by as much as has arrived, which over all steps can be a few rings more than the least that is allocated at a time
/// (64 KiB).
const MAX_ALLOCATION: usize = 4 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    spin: bool,
    start: Start,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Send(SenderCall),
    Receive(ReceiverCall),
    Rewrite(Rewrite),
    /// A hole in the memory file, which the seals do not forbid.
    Hole {
        page: u8,
        pages: u8,
    },
    /// Bytes on a bell, with up to three descriptors.
    Bell {
        to_receiver: bool,
        bytes: Vec<u8>,
        descriptors: u8,
    },
    CloseSender,
    CloseReceiver,
}

struct State {
    pipes: [Pipe; 2],
    spare: Spare,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new({
        let pipes = [Duration::ZERO, Duration::from_micros(1)].map(|spin| Pipe::new(CAPACITY, spin));
        pipes.iter().for_each(|pipe| guard(pipe.memory()));
        State { pipes, spare: Spare::new() }
    });
}

fuzz_target!(|input: Input| {
    STATE.with_borrow_mut(|State { pipes, spare }| {
        let pipe = &mut pipes[usize::from(input.spin)];
        let (receiver, sender) = pipe.ends(input.start.cursor());
        let (mut receiver, mut sender) = (Some(receiver), Some(sender));
        let memory = pipe.memory();
        spare.reset();
        Allocated::reset();
        for step in input.steps.iter().take(MAX_STEPS) {
            match *step {
                Step::Send(call) => sender = sender.and_then(|end| call.perform(end, BRIEF, memory, spare)),
                Step::Receive(call) => receiver = receiver.and_then(|end| call.perform(end, BRIEF, memory)),
                Step::Rewrite(rewrite) => rewrite.apply(memory),
                Step::Hole { page, pages } => punch(memory, page.into(), pages.into()),
                Step::Bell { to_receiver, ref bytes, descriptors } => {
                    let carried = [memory.as_fd(); 3];
                    let bell = match (&sender, &receiver) {
                        (Some(sender), _) if to_receiver => sender.as_fd(),
                        (_, Some(receiver)) if !to_receiver => bell(receiver),
                        _ => continue,
                    };
                    ring_the_bell(bell, bytes, &carried[..usize::from(descriptors) % 4]);
                }
                Step::CloseSender => sender = None,
                Step::CloseReceiver => receiver = None,
            }
        }
        let largest = Allocated::so_far().largest;
        assert!(largest <= MAX_ALLOCATION, "{largest} bytes were allocated in one piece");
        pipe.give_back(receiver, sender);
    });
});

/// Takes pages away from under the mapping, which then reads as zeros there.
fn punch(memory: &Memory, page: usize, pages: usize) {
    const PAGE: usize = 4096;
    let pages_used = (memory.ring_at() + CAPACITY) / PAGE;
    let at = page % pages_used;
    let pages = 1 + pages % (pages_used - at);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (at, len) = ((at * PAGE) as libc::off_t, (pages * PAGE) as libc::off_t);
    // SAFETY: the pipe's own descriptor, and no pointers.
    unsafe { libc::fallocate(memory.as_fd().as_raw_fd(), mode, at, len) };
}
