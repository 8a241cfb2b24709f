//! Models of ringpipe's protocols, explored by [loom](https://docs.rs/loom): every interleaving of their steps, and every value that a load may
//! return in the C11 memory model, up to the number of preemptions that a model states.
//!
//! What is explored is the crate's own source, compiled in here as it stands, on a machine (`sync.rs`, `sys.rs`, `segment.rs`, `copy.rs`) whose
//! atomics, sockets and futexes loom schedules. Sleeps have no time-outs there that would repair anything: a wake-up that is lost is a deadlock,
//! which loom reports. That the models can fail is shown by `twins.py`, which breaks the source in many ways, one at a time.
//!
//! ```text
//! cargo run --release -p ringpipe-models             every model
//! cargo run --release -p ringpipe-models -- NAME...  some
//!     --preemptions N|all                            with another bound
//!     --seconds N                                    each for no longer than that
//! ```
#![allow(dead_code, reason = "the models do not use all of the source that is compiled in")]
#![allow(unreachable_pub, reason = "what is public there is private here")]

mod copy;
mod registry;
mod segment;
mod sync;
mod sys;

#[path = "../../src/assembly.rs"]
mod assembly;
#[path = "../../src/batch.rs"]
mod batch;
#[path = "../../src/bell.rs"]
mod bell;
#[path = "../../src/crowd.rs"]
mod crowd;
#[path = "../../src/deadline.rs"]
mod deadline;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/gather.rs"]
mod gather;
#[path = "../../src/layout.rs"]
mod layout;
#[path = "../../src/read_guard.rs"]
mod read_guard;
#[path = "../../src/receiver.rs"]
mod receiver;
#[path = "../../src/ring/mod.rs"]
mod ring;
#[path = "../../src/select.rs"]
mod select;
#[path = "../../src/sender.rs"]
mod sender;
#[path = "../../src/spin.rs"]
mod spin;
#[path = "../../src/wait.rs"]
mod wait;

mod mpmc;

mod crowds;
mod explore;
mod many_pipes;
mod many_rings;
mod pipes;
mod rings;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

fn main() -> ExitCode {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut option = |name: &str| {
        let at = wanted.iter().position(|arg| arg == name)?;
        wanted.drain(at..(at + 2).min(wanted.len())).next_back()
    };
    let bound = option("--preemptions").map(|bound| {
        if bound == "all" { None } else { Some(bound.parse().expect("--preemptions takes a number or `all`")) }
    });
    let limit = option("--seconds").map(|limit| Duration::from_secs(limit.parse().expect("--seconds takes a number")));
    let known = [rings::MODELS, pipes::MODELS, many_rings::MODELS, crowds::MODELS, many_pipes::MODELS].concat();
    if let Some(name) = wanted.iter().find(|name| known.iter().all(|model| model.name != **name)) {
        eprintln!("there is no model {name}; there are:");
        known.iter().for_each(|model| eprintln!("  {}", model.name));
        return ExitCode::FAILURE;
    }
    let chosen = known.iter().filter(|model| wanted.is_empty() || wanted.iter().any(|name| name == model.name));
    let queue = Mutex::new(chosen);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{:<46} {:>12} {:>8}  preemptions", "model", "executions", "seconds");
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(model) = next else { break };
                    model.run(bound.unwrap_or(model.preemptions), limit);
                }
            });
        }
    });
    // A model that fails panics, and so does the scope.
    ExitCode::SUCCESS
}
