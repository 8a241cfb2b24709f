//! The two sides of a measurement, each on a processor of its own.
//!
//! The first side sends. It also starts the bare ping-pong of cache lines, before and after, and round trips. The second one receives, or answers.
//! Each hands in its part of the figures as a line of JSON in the pipe that the cell reads.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use serde::{Deserialize, Serialize};

use crate::bench::cpu;
use crate::bench::flags::Flags;
use crate::machine::{self, Apart};
use crate::payload::{Incoming, Outgoing};
use crate::peer::{Half, Outcome, Peer, Place, Spec};
use crate::process::{self, STACK};
use crate::traffic::{self, Flow, Span, Spent};

/// A measurement, as both sides see it.
pub(crate) struct Job<'a> {
    pub(crate) spec: Spec,
    pub(crate) traffic: Traffic,
    pub(crate) span: Span,
    pub(crate) processors: [usize; 2],
    pub(crate) flags: &'a Flags,
    /// Turns of the bare ping-pong.
    pub(crate) turns: u64,
    /// What [`machine::burst`] takes alone.
    pub(crate) burst_ns: u64,
    pub(crate) report: BorrowedFd<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    OneWay,
    RoundTrip,
    /// A receiver that waits, and nothing for it.
    Idle,
}

/// What a side hands in.
#[derive(Serialize, Deserialize)]
pub(crate) enum Line {
    Part(Part),
    Failed(String),
}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Before and after: from the first side.
    pub(crate) apart: Option<[Apart; 2]>,
    /// From the side that saw the traffic end: the first one in round trips, otherwise the second.
    pub(crate) flow: Option<Flow>,
    pub(crate) spent: Spent,
}

/// Longer complaints are cut: a line has to go into the pipe in one piece.
const LONGEST: usize = 1000;

impl Job<'_> {
    pub(crate) fn hand_in(&self, result: thread::Result<Outcome<Part>>) {
        let line = match result {
            Ok(Ok(part)) => Line::Part(part),
            Ok(Err(e)) => Line::Failed(e.to_string().chars().take(LONGEST).collect()),
            Err(panic) => Line::Failed(format!("panicked: {}", panic_text(&*panic))),
        };
        let mut text = serde_json::to_string(&line).expect("numbers and strings only");
        text.push('\n');
        // If nobody reads it any more, it is of no use to anybody.
        let _ = rustix::io::write(self.report, text.as_bytes());
    }

    /// The side that starts: five rounds, of which the middle one counts. Then both compute at the same time, and the better of two tries counts.
    fn ping(&self) -> Outcome<Apart> {
        let mut rounds = [0.0; 5];
        for round in &mut rounds {
            *round = self.flags.ping(self.turns)?;
        }
        rounds.sort_by(f64::total_cmp);
        let burst = machine::burst().min(machine::burst());
        Ok(Apart { cache_line_ns: rounds[2], slowdown: burst as f64 / self.burst_ns as f64 })
    }

    fn pong(&self) -> Outcome<()> {
        self.flags.pong(5 * self.turns)?;
        // Somewhat longer than the other side.
        for _ in 0..3 {
            machine::burst();
        }
        Ok(())
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.map_or("no message".into(), |text| text.chars().take(LONGEST).collect())
}

/// Measures a peer: makes its channels, starts both sides, and returns when both are done.
pub(crate) fn run<P: Peer>(job: &Job) -> Outcome<()> {
    let named = |what| Spec { name: format!("{}{what}", job.spec.name), ..job.spec.clone() };
    let there = P::open(&named("there"))?;
    let back = match job.traffic {
        Traffic::RoundTrip => Some(P::open(&named("back"))?),
        Traffic::OneWay | Traffic::Idle => None,
    };
    let (back_to, back_from) = back.unzip();
    let first = First::<P> { tx: there.0, rx: back_from };
    let second = Second::<P> { rx: there.1, tx: back_to };
    match P::PLACE {
        Place::Threads => in_threads(job, || first.play(job), || second.play(job)),
        Place::Processes => in_processes(job, || first.play(job), || second.play(job)),
    }
}

/// Nothing but the bare ping-pong.
pub(crate) fn run_bare(job: &Job) -> Outcome<()> {
    let first = || {
        let apart = job.ping()?;
        Ok(Part { apart: Some([apart, apart]), ..Part::default() })
    };
    let second = || job.pong().map(|()| Part::default());
    in_processes(job, first, second)
}

fn in_threads(
    job: &Job,
    first: impl FnOnce() -> Outcome<Part> + Send,
    second: impl FnOnce() -> Outcome<Part> + Send,
) -> Outcome<()> {
    thread::scope(|scope| {
        // Messages of any size may be passed by value.
        let thread = || thread::Builder::new().stack_size(STACK);
        thread().spawn_scoped(scope, || play(job, 0, first))?;
        thread().spawn_scoped(scope, || play(job, 1, second))?;
        Ok(())
    })
}

fn in_processes(
    job: &Job,
    first: impl FnOnce() -> Outcome<Part>,
    second: impl FnOnce() -> Outcome<Part>,
) -> Outcome<()> {
    // Whoever is not one of the sides lets go of what belongs to it, or would hold the other end of a channel open.
    let Some(sending) = process::fork()? else {
        drop(second);
        play(job, 0, first);
        process::exit();
    };
    drop(first);
    let Some(receiving) = process::fork()? else {
        play(job, 1, second);
        process::exit();
    };
    drop(second);
    for (child, what) in [(sending, "first"), (receiving, "second")] {
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("the {what} side ended early ({status})").into());
        }
    }
    Ok(())
}

fn play(job: &Job, side: usize, part: impl FnOnce() -> Outcome<Part>) {
    job.hand_in(catch_unwind(AssertUnwindSafe(|| {
        cpu::pin(job.processors[side])?;
        part()
    })));
}

/// What the side that starts takes with it.
struct First<P: Peer> {
    tx: Half<P::Sender>,
    rx: Option<Half<P::Receiver>>,
}

impl<P: Peer> First<P> {
    fn play(self, job: &Job) -> Outcome<Part> {
        let Job { spec: Spec { size, .. }, span, flags, .. } = job;
        let mut tx = (self.tx)()?;
        // Now all senders are there, and receivers can attach to them.
        flags.ping(1)?;
        let rx = self.rx.map(|half| half()).transpose()?;
        let before = job.ping()?;

        let payloads = (Outgoing::new(P::KIND, *size), Incoming::new(P::KIND, *size));
        let spent = Spent::so_far();
        let flow = match (job.traffic, rx) {
            (Traffic::RoundTrip, Some(mut rx)) => Some(traffic::ping(&mut tx, &mut rx, payloads, *span)?),
            (Traffic::Idle, _) => traffic::keep_waiting(&mut tx, payloads.0, *span).map(|()| None)?,
            (_, _) => traffic::flood(&mut tx, payloads.0, *size, *span).map(|()| None)?,
        };
        let spent = spent.since();
        let after = job.ping()?;
        Ok(Part { apart: Some([before, after]), flow, spent })
    }
}

/// What the other side takes with it.
struct Second<P: Peer> {
    rx: Half<P::Receiver>,
    tx: Option<Half<P::Sender>>,
}

impl<P: Peer> Second<P> {
    fn play(self, job: &Job) -> Outcome<Part> {
        let Job { spec: Spec { size, .. }, span, flags, .. } = job;
        let tx = self.tx.map(|half| half()).transpose()?;
        flags.pong(1)?;
        let mut rx = (self.rx)()?;
        job.pong()?;

        let payloads = (Outgoing::new(P::KIND, *size), Incoming::new(P::KIND, *size));
        let spent = Spent::so_far();
        let (flow, spent) = match (job.traffic, tx) {
            (Traffic::RoundTrip, Some(mut tx)) => {
                traffic::echo(&mut tx, &mut rx, payloads)?;
                (None, spent.since())
            }
            (Traffic::Idle, _) => {
                let (flow, spent) = traffic::wait(&mut rx, payloads.1)?;
                (Some(flow), spent)
            }
            (_, _) => (Some(traffic::sink(&mut rx, payloads.1, *size, *span)?), spent.since()),
        };
        job.pong()?;
        Ok(Part { apart: None, flow, spent })
    }
}
