//! The loops that are timed: one function for each side of each kind of traffic.
//!
//! All run for a given time, of which the first part is for warming up. The clock is read once in so many messages, few enough to cost the
//! fastest peer nothing and many enough to have the slowest read it often.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::bench::cpu;
use crate::payload::{Incoming, Outgoing};
use crate::peer::{Outcome, Receiver, Sender};

/// How long traffic lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

impl Span {
    fn total(self) -> u64 {
        (self.warm_up + self.measured).as_nanos() as u64
    }
}

/// What passed, and how long it took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Flow {
    /// Messages, or round trips, after the warm-up.
    pub(crate) messages: u64,
    pub(crate) nanos: u64,
    /// With those of the warm-up.
    pub(crate) all_messages: u64,
}

impl Flow {
    fn between(from: Option<(u64, u64)>, to: (u64, u64)) -> Outcome<Flow> {
        match from {
            Some((time, messages)) if messages < to.1 => {
                Ok(Flow { messages: to.1 - messages, nanos: to.0 - time, all_messages: to.1 })
            }
            _ => Err("too slow to be measured in this time".into()),
        }
    }
}

/// Messages between two looks at the clock, one way.
fn stride(size: usize) -> u64 {
    match size {
        0..=256 => 512,
        257..=1024 => 64,
        1025..=4096 => 16,
        4097..=65536 => 4,
        _ => 1,
    }
}

/// Looks at the clock at least, however slow it goes.
const LEAST: u64 = 3;

/// Round trips between two looks at the clock.
const TRIPS: u64 = 8;

/// One way, sending side.
pub(crate) fn flood(tx: &mut impl Sender, mut out: Outgoing, size: usize, span: Span) -> Outcome<()> {
    let (stride, end) = (stride(size), cpu::now() + span.total());
    let mut seq = 0;
    let mut send = |count| -> Outcome<u64> {
        tx.send_some(&mut out, seq..seq + count)?;
        seq += count;
        Ok(seq)
    };
    while send(stride)? < LEAST * stride || cpu::now() < end {}
    // Some more, so that there are messages even behind the receiver's last look at the clock.
    let sent = send(stride.div_ceil(2))?;
    tx.send(out.last(sent))
}

/// One way, receiving side: what came after the warm-up.
pub(crate) fn sink(rx: &mut impl Receiver, mut inc: Incoming, size: usize, span: Span) -> Outcome<Flow> {
    let stride = stride(size);
    let warm = cpu::now() + span.warm_up.as_nanos() as u64;
    let (mut from, mut steady, mut seq) = (None, false, 0);
    loop {
        let over = rx.recv_some(stride, |message| {
            let last = inc.look(message, seq)?;
            seq += u64::from(!last);
            Ok(last)
        })?;
        if over {
            return Flow::between(from, (cpu::now(), seq));
        }
        if !steady {
            // Should this side have come so late that all is over before it is warm, everything counts.
            let now = cpu::now();
            steady = now >= warm;
            if steady || from.is_none() {
                from = Some((now, seq));
            }
        }
    }
}

/// Round trips, the side that starts.
pub(crate) fn ping(
    tx: &mut impl Sender,
    rx: &mut impl Receiver,
    (mut out, mut inc): (Outgoing, Incoming),
    span: Span,
) -> Outcome<Flow> {
    let start = cpu::now();
    let (warm, end) = (start + span.warm_up.as_nanos() as u64, start + span.total());
    let (mut from, mut now, mut seq) = (None, start, 0);
    while now < end || seq < LEAST * TRIPS || from.is_none_or(|(time, _)| time == now) {
        for _ in 0..TRIPS {
            tx.send(out.number(seq))?;
            rx.recv(|message| inc.look(message, seq))??;
            seq += 1;
        }
        now = cpu::now();
        if now >= warm && from.is_none() {
            from = Some((now, seq));
        }
    }
    tx.send(out.last(seq))?;
    rx.recv(|message| inc.look(message, seq))??;
    Flow::between(from, (now, seq))
}

/// Round trips, the side that answers.
pub(crate) fn echo(
    tx: &mut impl Sender,
    rx: &mut impl Receiver,
    (mut out, mut inc): (Outgoing, Incoming),
) -> Outcome<()> {
    let mut seq = 0;
    loop {
        if rx.recv(|message| inc.look(message, seq))?? {
            return tx.send(out.last(seq));
        }
        tx.send(out.number(seq))?;
        seq += 1;
    }
}

/// Sends one message, and another one when the time is over.
pub(crate) fn keep_waiting(tx: &mut impl Sender, mut out: Outgoing, span: Span) -> Outcome<()> {
    tx.send(out.number(0))?;
    thread::sleep(span.warm_up + span.measured);
    tx.send(out.last(1))
}

/// Waits for the second message; returns what the wait cost.
pub(crate) fn wait(rx: &mut impl Receiver, mut inc: Incoming) -> Outcome<(Flow, Spent)> {
    rx.recv(|message| inc.look(message, 0))??;
    let (start, before) = (cpu::now(), Spent::so_far());
    rx.recv(|message| inc.look(message, 1))??;
    Ok((Flow { messages: 1, nanos: cpu::now() - start, all_messages: 2 }, before.since()))
}

/// What a thread has used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Spent {
    pub(crate) cpu_ns: u64,
    /// Times that it went to sleep.
    pub(crate) sleeps: u64,
    /// For how long something else had the processor that it wanted. 0 where the kernel does not say.
    pub(crate) robbed_ns: u64,
}

impl Spent {
    pub(crate) fn so_far() -> Spent {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        // SAFETY: all zeros is a value of this type, which the call fills in.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
            usage
        };
        // Nanoseconds on the processor, and waiting for it.
        let schedule = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let robbed_ns = schedule.split(' ').nth(1).and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
        let cpu_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        Spent { cpu_ns, sleeps: usage.ru_nvcsw as u64, robbed_ns }
    }

    pub(crate) fn since(self) -> Spent {
        let now = Spent::so_far();
        Spent {
            cpu_ns: now.cpu_ns - self.cpu_ns,
            sleeps: now.sleeps - self.sleeps,
            robbed_ns: now.robbed_ns - self.robbed_ns,
        }
    }
}
