//! The `ringpipe` command: sends streams by a name, shows the pipes that there are, measures ringpipe between two processes, against what the kernel has, and puts it
//! under stress.

mod bench;
#[cfg(feature = "bridge")]
mod bridge;
mod manual;
mod pipes;
mod progress;
mod soak;
mod transfer;

use std::os::fd::RawFd;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// A bridge has memory allocated in one thread and freed in another, again and again, of sizes that glibc often gives back to the kernel at once: a twentieth of the page faults are left. Messages of 16 to 256 KiB gained a quarter.
#[cfg(feature = "bridge")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "ringpipe",
    version,
    about = ABOUT,
    long_about = format!("{ABOUT}.\n\nWithout a command, it starts a second process and measures pipes to it: see `ringpipe help bench`."),
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    bench: bench::Args,
}

const ABOUT: &str =
    "Pipes between processes, through shared memory: streams by name, what pipes there are, and how good they are";

#[derive(Subcommand)]
enum Command {
    /// Send standard input to the `ringpipe recv` of the same name, which is waited for
    #[command(after_help = transfer::CODES)]
    Send(transfer::Args),
    /// Listen under a name, and write what one `ringpipe send` sends to standard output
    #[command(after_help = transfer::CODES)]
    Recv(transfer::Args),
    /// Keep a queue under a name, for any number of `send --shared` and `recv --shared`, until killed
    Queue(transfer::QueueArgs),
    /// Join local names to keys on a network, so that programs on other hosts can use them, until killed
    #[cfg(feature = "bridge")]
    #[command(after_help = bridge::HELP)]
    Bridge(Box<bridge::Args>),
    /// Show the named pipes of this user: how full they are, how fast they go, who has them open and waits
    #[command(after_long_help = pipes::HELP)]
    Ls(pipes::Args),
    /// Show the same again and again
    #[command(after_long_help = pipes::HELP)]
    Top(pipes::TopArgs),
    /// Measure pipes against what the kernel has; the same as no command at all
    #[command(long_about = bench::LONG_ABOUT)]
    Bench(bench::Args),
    /// Put pipes under stress for a given time, and verify every message
    #[command(long_about = soak::LONG_ABOUT)]
    Soak(soak::Args),
    /// Print what makes a shell complete the arguments of this command
    #[command(after_long_help = manual::COMPLETIONS_HELP)]
    Completions(manual::CompletionsArgs),
    /// Print the manual page of this command, or of one of its subcommands, for `man -l -`
    Man(manual::ManArgs),
    /// The second process of a measurement
    #[command(name = bench::PEER, hide = true)]
    Peer { descriptors: Vec<RawFd> },
    /// A process that plays rounds of a soak
    #[command(name = soak::WORKER, hide = true)]
    SoakWorker(soak::WorkerOrder),
    /// One side of a round, started anew
    #[command(name = soak::SIDE, hide = true)]
    SoakSide(soak::SideOrder),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printed = match &cli.command {
        Some(Command::Ls(args)) => Some(pipes::list(args)),
        Some(Command::Top(args)) => Some(pipes::top(args)),
        Some(Command::Completions(args)) => Some(manual::completions(args, Cli::command())),
        Some(Command::Man(args)) => Some(manual::page(args, Cli::command())),
        _ => None,
    };
    if let Some(result) = printed {
        return match result {
            // Whoever reads has seen enough.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                eprintln!("ringpipe: {e}");
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        };
    }
    let transferred = match &cli.command {
        Some(Command::Send(args)) => Some(transfer::send(args)),
        Some(Command::Recv(args)) => Some(transfer::recv(args)),
        Some(Command::Queue(args)) => Some(transfer::queue(args)),
        #[cfg(feature = "bridge")]
        Some(Command::Bridge(args)) => Some(bridge::run(args)),
        _ => None,
    };
    if let Some(result) = transferred {
        return result.map_or_else(transfer::Failure::report, |()| ExitCode::SUCCESS);
    }
    let result = match cli.command {
        None => bench::run(&cli.bench),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Peer { descriptors }) => bench::peer(&descriptors),
        Some(Command::Soak(args)) => soak::run(&args),
        Some(Command::SoakWorker(order)) => soak::work(&order).map_err(|never| match never {}),
        Some(Command::SoakSide(order)) => soak::resume_side(&order),
        Some(_) => unreachable!("done above"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // As for any argument that clap refuses itself: exit code 2.
        Err(bench::Failure::Usage(message)) => Cli::command().error(ErrorKind::ValueValidation, message).exit(),
        Err(bench::Failure::Run(message)) => {
            eprintln!("ringpipe: {message}");
            ExitCode::FAILURE
        }
    }
}
