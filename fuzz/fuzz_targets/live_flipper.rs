//! Both ends of a pipe in use while a second thread rewrites the shared memory: cursors, seats, headers, payload, over and over, as the input
//! says.
//!
//! Results may be anything; no call may panic, go outside the ring (its surroundings are poisoned), go on beyond its deadline, or allocate
//! what the memory says. Which rewrite meets which load is the scheduler's choice, so a finding may take several runs to come again.
#![no_main]

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringpipe::fuzzing::{Memory, Pipe};
use ringpipe_fuzz::hostile::{ReceiverCall, Rewrite, SenderCall, Spare};
use ringpipe_fuzz::{Allocated, Start, guard, message};

const CAPACITY: usize = 4096;
const MAX_STEPS: usize = 24;
const MAX_REWRITES: usize = 64;
/// What a call may take beyond its deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(3);
/// Long enough for a wait to get beyond the futex to the bell: as long as many executions take, so one in so many may wait so long, once.
const TO_THE_BELL: Duration = Duration::from_micros(5_500);
const ONE_IN: usize = 32;
/// What the memory might say is up to 2^63; what can pass the ring before the deadlines is far less.
const MAX_ALLOCATION: usize = 16 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    spin: bool,
    start: Start,
    /// Sent before anything is rewritten.
    honest: [u8; 3],
    rewrites: Vec<Timed>,
    steps: Vec<Step>,
}

/// A rewrite, and how long the peer rests after it.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Timed {
    rewrite: Rewrite,
    rest: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Send { call: SenderCall, timeout: u8 },
    Receive { call: ReceiverCall, timeout: u8 },
}

/// The thread that rewrites.
struct Flipper {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Default)]
struct Shared {
    /// One of the states below.
    state: AtomicU32,
    job: Mutex<Option<(Memory, Vec<Timed>)>>,
}

const IDLE: u32 = 0;
const ORDERED: u32 = 1;
const RUNNING: u32 = 2;
const STOPPING: u32 = 3;

/// How often a thread looks for the other's state before it takes a rest: about as long as the fuzzer needs between two executions.
const LOOKS: u32 = 2_000;

impl Flipper {
    fn start() -> Flipper {
        let shared = Arc::new(Shared::default());
        let copy = Arc::clone(&shared);
        let handle = std::thread::spawn(move || {
            loop {
                copy.wait_for(ORDERED, || std::thread::park_timeout(Duration::from_secs(1)));
                let (memory, rewrites) = copy.job.lock().expect("nobody panics").take().expect("it was ordered");
                copy.state.store(RUNNING, Ordering::SeqCst);
                copy.flip(&memory, &rewrites);
                copy.state.store(IDLE, Ordering::SeqCst);
            }
        });
        Flipper { shared, thread: handle.thread().clone() }
    }

    /// Returns once rewriting is under way.
    fn order(&self, memory: &Memory, rewrites: &[Timed]) {
        *self.shared.job.lock().expect("nobody panics") = Some((memory.clone(), rewrites.to_vec()));
        self.shared.state.store(ORDERED, Ordering::SeqCst);
        self.thread.unpark();
        self.shared.wait_for(RUNNING, std::thread::yield_now);
    }

    /// Returns once the memory is left alone.
    fn stop(&self) {
        self.shared.state.store(STOPPING, Ordering::SeqCst);
        self.shared.wait_for(IDLE, std::thread::yield_now);
    }
}

impl Shared {
    fn wait_for(&self, state: u32, rest: impl Fn()) {
        let mut looks = 0;
        while self.state.load(Ordering::SeqCst) != state {
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
            } else {
                rest();
            }
        }
    }

    /// Rewrites until it is told to stop.
    fn flip(&self, memory: &Memory, rewrites: &[Timed]) {
        for (number, timed) in rewrites.iter().cycle().enumerate() {
            // Where processors are scarce, the calls are to get on all the same.
            if number % 64 == 63 {
                std::thread::yield_now();
            }
            timed.rewrite.apply(memory);
            (0..4 * u32::from(timed.rest)).for_each(|_| std::hint::spin_loop());
            if self.state.load(Ordering::Relaxed) == STOPPING {
                return;
            }
        }
        // Nothing to do.
        self.wait_for(STOPPING, std::thread::yield_now);
    }
}

struct State {
    pipes: [Pipe; 2],
    spare: Spare,
    flipper: Flipper,
    executions: usize,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new({
        // SAFETY: no pointers. Short waits would be 50 µs longer otherwise.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        let pipes = [0, 10].map(|spin| Pipe::new(CAPACITY, Duration::from_micros(spin)));
        pipes.iter().for_each(|pipe| guard(pipe.memory()));
        State { pipes, spare: Spare::new(), flipper: Flipper::start(), executions: 0 }
    });
}

fuzz_target!(|input: Input| {
    STATE.with_borrow_mut(|State { pipes, spare, flipper, executions }| {
        let pipe = &mut pipes[usize::from(input.spin)];
        let (mut receiver, mut sender) = pipe.ends(input.start.cursor());
        for (number, len) in input.honest.into_iter().enumerate() {
            sender.send_bytes(message(number, len.into())).expect("there is room");
        }
        assert_eq!(receiver.recv_bytes().expect("it was sent"), message(0, input.honest[0].into()));
        let (mut receiver, mut sender) = (Some(receiver), Some(sender));
        let memory = pipe.memory();
        spare.reset();
        Allocated::reset();
        flipper.order(memory, &input.rewrites[..input.rewrites.len().min(MAX_REWRITES)]);
        // The first one may: what is run by itself.
        let mut to_the_bell = usize::from(*executions % ONE_IN == 0);
        *executions += 1;
        let mut limit = |timeout: u8| match timeout {
            255 if to_the_bell > 0 => {
                to_the_bell -= 1;
                TO_THE_BELL
            }
            timeout => Duration::from_micros(u64::from(timeout % 64)),
        };
        for step in input.steps.iter().take(MAX_STEPS) {
            let start = Instant::now();
            let timeout = match *step {
                Step::Send { call, timeout } => {
                    let timeout = limit(timeout);
                    sender = sender.and_then(|end| call.perform(end, timeout, memory, spare));
                    timeout
                }
                Step::Receive { call, timeout } => {
                    let timeout = limit(timeout);
                    receiver = receiver.and_then(|end| call.perform(end, timeout, memory));
                    timeout
                }
            };
            let took = start.elapsed();
            assert!(took < timeout + SLACK, "{step:?} with a time-out of {timeout:?} took {took:?}");
        }
        flipper.stop();
        let largest = Allocated::so_far().largest;
        assert!(largest <= MAX_ALLOCATION, "{largest} bytes were allocated in one piece");
        pipe.give_back(receiver, sender);
    });
});
