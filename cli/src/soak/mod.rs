//! `ringpipe soak`: real processes under stress, for as long as one likes, with every message verified.
//!
//! The first process starts workers; a worker plays rounds; a round is two sides with a pipe between them (some with more than one
//! process), and the worker as referee, which holds no end of the pipe. Only the public interface of the crate is used.
//!
//! | file | holds |
//! | --- | --- |
//! | `plan.rs` | what a round is, drawn from the seed |
//! | `referee.rs` | kills, stops, the watch for stalls, and the judgement of a round |
//! | `side.rs` | the processes at the ends of the pipe |
//! | `send.rs`, `receive.rs` | every way to send and to receive |
//! | `script.rs` | the messages, and the verdict on those that arrive |
//! | `board.rs` | what the processes of a round tell each other |
//! | `patience.rs` | what takes too long, on a machine that may be busy |
//! | `worker.rs`, `process.rs`, `random.rs`, `clock.rs`, `report.rs` | the rest |

mod board;
pub(crate) mod clock;
mod patience;
mod plan;
mod process;
mod random;
mod receive;
mod referee;
mod report;
mod script;
mod send;
mod side;
mod worker;

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::bench::Failure;
use patience::{LOST_IN_ALL, judge_wakes};
use report::Tally;
use worker::{Line, Order};

pub(crate) use side::NAME as SIDE;
pub(crate) use worker::{NAME as WORKER, Order as WorkerOrder, work};

pub(crate) const LONG_ABOUT: &str = "\
Puts pipes under stress for a given time and verifies every message: run it on your own machine before you trust the crate.

Plays short rounds, several at once. Each draws at random: one direction or two, the ring (4 KiB to 1 MiB), spinning, lengths of \
messages (none, tiny, around every limit, several rings, many MiB), the pace of each side (flat out, or with rests that let the other \
side spin, sleep and park), and the calls to send and to receive, in all their forms. And it draws what happens to the processes: SIGKILL at a \
random moment, SIGSTOP, a storm of signals, a copy of an end made by fork in mid-traffic and used in turn, an end inherited by a program \
started anew, an end closed early.

A fault is: a message that is wrong, torn, doubled, missing or out of order; end of file or a broken pipe too early, too late, or not at all; a \
wake-up that got lost; a time-out of the wrong length; a call that hangs; an unexpected error; a process that crashes; a descriptor \
left open. The first one ends the run: what it was, the state of the processes, the seed and the round are printed, and the exit code is 1.

Time for which the machine was too busy to run a process does not count against it. The moments of kills are real time, so a run with the same \
--seed does the same things, but a fault may take its time to come again: --round plays one round again and again.";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long, such as 30s, 10m or 1h30m
    #[arg(long, value_name = "TIME", value_parser = clock::parse, default_value = "1m")]
    time: Duration,
    /// Repeat the rounds of an earlier run [default: one that nobody has had]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Play this one round of the seed, again and again
    #[arg(long, value_name = "NUMBER", requires = "seed")]
    round: Option<u64>,
    /// Rounds at once [default: the number of processors]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=1024))]
    workers: Option<u64>,
    /// No lines on the way
    #[arg(long)]
    quiet: bool,
}

/// A side of a round, started anew.
#[derive(clap::Args)]
pub(crate) struct SideOrder {
    seed: u64,
    round: u64,
    side: usize,
    board: i32,
}

pub(crate) fn resume_side(order: &SideOrder) -> Result<(), Failure> {
    side::resume(order.seed, order.round, order.side, order.board).map(|never| match never {}).map_err(Failure::Run)
}

/// How long the workers may take to come to an end.
const GRACE: Duration = Duration::from_secs(75);

/// Set by SIGINT.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

struct Worker {
    child: Child,
    is_done: bool,
}

struct Fault {
    round: Option<u64>,
    text: String,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let seed = args.seed.unwrap_or_else(|| random::mix(clock::now(), std::process::id().into()) % 1_000_000_000);
    let processors = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let count = args.workers.unwrap_or(processors);
    listen_for_interrupts();
    let start = Instant::now();
    say(&format!("soak for {} with seed {seed}, {count} rounds at once\n", clock::show(args.time)))?;

    let (lines, incoming) = mpsc::channel();
    let mut workers = Vec::new();
    for i in 0..count {
        let (first, step) = args.round.map_or((i, count), |round| (round, 0));
        let order = Order { seed, first, step, millis: args.time.as_millis() as u64 };
        workers.push(start_worker(&order, i as usize, &lines)?);
    }
    drop(lines);
    let (tally, fault) = listen(args, start, &incoming, &mut workers);
    for worker in &mut workers {
        // Those that were to end have ended; the rest, and with them what they started, goes now.
        if !worker.is_done {
            let _ = worker.child.kill();
        }
        worker.child.wait()?;
    }

    let (time, faults) = (clock::show(start.elapsed()), u64::from(fault.is_some()));
    say(&format!("done in {time} with seed {seed}\n{}", tally.table(faults)))?;
    if let Some(fault) = fault {
        let again = match fault.round {
            Some(round) => format!("; to play this round again and again: ringpipe soak --seed {seed} --round {round}"),
            None => String::new(),
        };
        let round = fault.round.map_or(String::new(), |round| format!(" in round {round}"));
        return Err(Failure::Run(format!("FAULT{round} of seed {seed}: {}{again}", fault.text)));
    }
    if INTERRUPTED.load(Ordering::SeqCst) {
        return Err(Failure::Run("interrupted; no fault up to then".to_owned()));
    }
    Ok(())
}

fn start_worker(order: &Order, index: usize, lines: &Sender<(usize, Option<Line>)>) -> io::Result<Worker> {
    let mut command = Command::new("/proc/self/exe");
    command.args(order.arguments()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let parent = std::process::id();
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(move || process::die_with_parent(parent)) };
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().expect("it was asked for");
    let lines = lines.clone();
    thread::spawn(move || {
        for text in BufReader::new(stdout).lines() {
            let Some(line) = text.ok().and_then(|text| serde_json::from_str(&text).ok()) else { break };
            if lines.send((index, Some(line))).is_err() {
                return;
            }
        }
        let _ = lines.send((index, None));
    });
    Ok(Worker { child, is_done: false })
}

/// Listens to the workers until all have come to an end.
fn listen(
    args: &Args,
    start: Instant,
    incoming: &Receiver<(usize, Option<Line>)>,
    workers: &mut [Worker],
) -> (Tally, Option<Fault>) {
    let every = (args.time / 20).clamp(Duration::from_secs(5), Duration::from_secs(60));
    let mut next_line = start + every;
    let mut give_up = start + args.time + GRACE;
    let (mut tally, mut fault) = (Tally::default(), None);
    let mut stopping = false;
    loop {
        match incoming.recv_timeout(Duration::from_millis(100)) {
            Ok((_, Some(Line::Played(more)))) => {
                tally.add(more);
                if let Err(what) = judge_wakes(tally.lost_wakes, tally.wakes, LOST_IN_ALL) {
                    fault.get_or_insert(Fault { round: None, text: format!("{what}\n") });
                }
            }
            Ok((_, Some(Line::Fault { round, what, plan }))) => {
                fault.get_or_insert(Fault { round: Some(round), text: format!("{what}\n  the round: {plan}\n") });
            }
            Ok((index, Some(Line::Done))) => workers[index].is_done = true,
            Ok((index, None)) if !workers[index].is_done => {
                fault.get_or_insert(Fault { round: None, text: format!("worker {index} ended early\n") });
            }
            Ok((_, None)) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return (tally, fault),
        }
        let now = Instant::now();
        if !stopping && (fault.is_some() || INTERRUPTED.load(Ordering::SeqCst)) {
            stopping = true;
            give_up = give_up.min(now + GRACE);
            // Closed, it tells them to stop after their rounds.
            workers.iter_mut().for_each(|worker| drop(worker.child.stdin.take()));
        }
        if now > give_up {
            fault.get_or_insert(Fault { round: None, text: "the workers do not come to an end\n".to_owned() });
            return (tally, fault);
        }
        if !args.quiet && !stopping && now >= next_line {
            next_line += every;
            eprintln!("{}", tally.line(now - start));
        }
    }
}

/// The first SIGINT ends the run with a report, the second at once.
fn listen_for_interrupts() {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::SeqCst);
        // SAFETY: restoring the default is allowed in a handler.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    }
    let note: extern "C" fn(libc::c_int) = note;
    // SAFETY: the handler stores to an atomic, and makes a call that handlers may make.
    unsafe { libc::signal(libc::SIGINT, note as usize) };
}

/// Prints to stdout; that nobody reads on is no failure.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
