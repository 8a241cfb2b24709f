//! Measures ringpipe beside what else carries messages between processes: other crates, each at its best documented settings, and the kernel.
//!
//! | file | holds |
//! | --- | --- |
//! | `peer.rs` | what a peer has to offer |
//! | `peers/` | the peers, and the table of them |
//! | `payload.rs` | what is sent, and the check that it arrived |
//! | `traffic.rs` | the loops that are timed |
//! | `sides.rs` | the two sides of a measurement, each on a processor of its own |
//! | `cell.rs`, `process.rs`, `leftovers.rs` | one measurement, whatever the peer does to it |
//! | `plan.rs`, `machine.rs` | which measurements, when, and whether the machine was fit for it |
//! | `report.rs`, `table.rs`, `plot.rs` | the outcome |
//! | `bench.rs` | what is shared with `ringpipe bench` |

#[allow(
    dead_code,
    clippy::manual_is_multiple_of,
    reason = "a part of each file is used, and other crates build them with older compilers"
)]
mod bench;
mod cell;
mod leftovers;
mod machine;
mod payload;
mod peer;
mod peers;
mod plan;
mod plot;
mod process;
mod report;
mod sides;
mod table;
mod traffic;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use machine::Distance;
use plan::Plan;
use report::{Outcome, Report};

/// Measures ringpipe beside what else carries messages between processes
#[derive(Parser)]
#[command(name = "peers")]
struct Args {
    /// One short round, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Rounds to measure, if not as many as usual
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// How far apart the two processors are to be, by the bare cache line and by what each leaves of the other; waits for it, within limits
    #[arg(long, value_enum, default_value_t = Distance::Any)]
    distance: Distance,
    /// Measure peers with this in their names only, beside ringpipe
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Where to write everything that was measured
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/results.json"))]
    json: PathBuf,
    /// Measure nothing: show what was measured earlier
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "rounds", "distance", "only", "json"])]
    from: Option<PathBuf>,
    /// Also draw the one-way figures to this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("peers: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well with ringpipe; what others fail at is in the tables.
fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    let report = match &args.from {
        Some(file) => serde_json::from_str(&fs::read_to_string(file).map_err(named(file))?)?,
        None => measure(args)?,
    };
    println!("{}", table::markdown(&report));
    if let Some(file) = &args.plot {
        fs::write(file, plot::svg(&report)?).map_err(named(file))?;
    }
    let failed = |sample: &report::Sample| matches!(sample.outcome, Outcome::Failed(_));
    Ok(!report.samples.iter().any(|sample| sample.peer.starts_with("ringpipe") && failed(sample)))
}

fn measure(args: &Args) -> Result<Report, Box<dyn Error>> {
    process::enlarge_stack();
    leftovers::remove_stale();
    let mut plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    plan.rounds = args.rounds.map_or(plan.rounds, usize::from);
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|part| name.contains(part.as_str()));
    let report = plan::run(&plan, args.distance, wanted)?;
    fs::write(&args.json, serde_json::to_string(&report)?).map_err(named(&args.json))?;
    Ok(report)
}

fn named(file: &Path) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{}: {e}", file.display())
}
