//! A process that plays rounds, one after the other, and tells the first one how they went.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::soak::clock::now;
use crate::soak::plan::Plan;
use crate::soak::process;
use crate::soak::receive::readable;
use crate::soak::referee;
use crate::soak::report::Tally;

/// The hidden command.
pub(crate) const NAME: &str = "soak-worker";

/// What a worker writes, a line each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    Played(Tally),
    Fault {
        round: u64,
        what: String,
        plan: String,
    },
    /// All is done.
    Done,
}

/// What a worker is to play.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Order {
    pub(crate) seed: u64,
    /// The first round...
    pub(crate) first: u64,
    /// ...and how far it is to the next.
    pub(crate) step: u64,
    pub(crate) millis: u64,
}

impl Order {
    pub(crate) fn arguments(&self) -> [String; 5] {
        [NAME.to_owned(), self.seed.to_string(), self.first.to_string(), self.step.to_string(), self.millis.to_string()]
    }
}

/// Plays until the time is over, standard input is closed, or there is a fault.
pub(crate) fn work(order: &Order) -> Result<(), Infallible> {
    let give_up = |e: io::Error| -> ! {
        // Nobody listens any more, or the machine is out of something: the first process notices.
        eprintln!("ringpipe: a worker of the soak ends: {e}");
        process::exit(1)
    };
    process::ignore_interrupts();
    let processors = process::processors().unwrap_or_else(|e| give_up(e));
    process::adopt_orphans().unwrap_or_else(|e| give_up(e));
    let end = now() + order.millis * 1_000_000;
    let mut round = order.first;
    while now() < end && !readable(io::stdin().as_fd(), Duration::ZERO) {
        let plan = Plan::draw(order.seed, round);
        process::pin(&processors, plan.pinned).unwrap_or_else(|e| give_up(e));
        let line = match referee::play(&plan) {
            Ok(tally) => Line::Played(tally),
            Err(what) => Line::Fault { round, what, plan: format!("{plan:?}") },
        };
        let is_fault = matches!(line, Line::Fault { .. });
        say(&line).unwrap_or_else(|e| give_up(e));
        if is_fault {
            break;
        }
        round += order.step;
    }
    say(&Line::Done).unwrap_or_else(|e| give_up(e));
    Ok(())
}

fn say(line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
