//! `ringpipe bench`: real traffic between two processes, through ringpipe and through what the kernel has.
//!
//! | file | holds |
//! | --- | --- |
//! | `transport.rs` | the transports under comparison |
//! | `message.rs` | what is sent, and the check that it arrived |
//! | `traffic.rs` | the loops that are timed, for both processes |
//! | `flags.rs` | the bare ping-pong of cache lines that everything is to be seen against |
//! | `peer.rs` | the second process |
//! | `measure.rs` | which loops run when, and the medians |
//! | `report.rs`, `plot.rs` | the outcome |

mod cpu;
mod flags;
mod measure;
mod message;
mod peer;
mod plot;
mod report;
pub(crate) mod size;
mod traffic;
mod transport;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use measure::Plan;
use peer::Peer;
use plot::PlotFile;

pub(crate) use peer::{NAME as PEER, run as peer};

pub(crate) const LONG_ABOUT: &str = "\
Measures ringpipe between two processes, against fd pipes and Unix sockets.

Starts a second process and exchanges messages with it, each process on a processor of its own. All transports take turns in \
short rounds of one run, so that they meet the same conditions; figures are medians over the rounds, ratios are medians of the \
rounds' own ratios. Above 1, ringpipe is better.

The kernel's streams carry each message as a 4-byte length and the body: one or two writes, whichever is faster, and two reads. \
The fd pipe is given as much room as the ring, up to 1 MiB. Every message is checked on arrival: its length, its sequence number, \
and samples of its content.";

/// The longest message: two of them and their copies must fit in memory.
const MAX_SIZE: usize = 1 << 30;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Message sizes for the one-way table, in bytes or with k, m or g
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = message_size,
          default_value = "8,64,1k,4k,64k,1m")]
    sizes: Vec<usize>,
    /// Ring size of each direction
    #[arg(long, value_name = "BYTES", value_parser = size::parse, default_value = "256k")]
    capacity: usize,
    /// Take a few seconds only: fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Also draw the one-way figures to this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

fn message_size(text: &str) -> Result<usize, String> {
    let size = size::parse(text)?;
    if (message::MIN..=MAX_SIZE).contains(&size) {
        return Ok(size);
    }
    Err(format!(
        "out of range: choose from {} B (room for a sequence number) to {}",
        message::MIN,
        size::show(MAX_SIZE)
    ))
}

/// Why there is no outcome.
pub(crate) enum Failure {
    /// The arguments cannot be used.
    Usage(String),
    /// Something went wrong on the way.
    Run(String),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::Run(e.to_string())
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // Whatever can be wrong with the arguments is found before anything is measured.
    ringpipe::Builder::new().capacity(args.capacity).simplex().map_err(|e| Failure::Usage(e.to_string()))?;
    let plot = args.plot.as_deref().map(PlotFile::create).transpose().map_err(Failure::Usage)?;

    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    let cpus = cpu::pair();
    let mut peer = Peer::start(args.capacity, cpus)?;
    let report = measure::all(&mut peer, &plan, &args.sizes, args.capacity, cpus)?;
    peer.stop()?;

    let text = if args.json { report.json() } else { report.text() };
    print(&text)?;
    if let Some(plot) = plot {
        plot.draw(&report)?;
    }
    Ok(())
}

/// Prints to stdout; that nobody reads on (`ringpipe | head -3`) is no failure.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// One line on the terminal that says what is going on, rewritten again and again. Nothing where stderr is no terminal.
struct Progress {
    shown: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress { shown: io::stderr().is_terminal() }
    }

    fn show(&self, what: &str) {
        if self.shown {
            eprint!("\r\x1b[K{what}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
