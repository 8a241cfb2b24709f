//! `ringpipe ls` and `ringpipe top`: the pipes of this user, what is in them, who waits.
//!
//! All of it is read from outside, by `ringpipe::inspect` and `/proc`: the pipes and their processes notice nothing.

mod find;
mod report;

pub(crate) use report::amount;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use ringpipe::inspect::Snapshot;

use find::Found;

/// How long `ls` looks, to tell how fast things go.
const GLANCE: Duration = Duration::from_millis(100);

pub(crate) const HELP: &str = "\
One line for each direction of a pipe. FILL is what waits in the ring, in bytes and in messages; IN and OUT are what is sent and received in a second, in bytes of the ring \
(headers included) and in messages. The latter are an estimate by the size of the last ones, and ? where there is nothing to go by.

SENDER and RECEIVER say whether somebody on that side waits: asleep (for up to 5 ms), parked (for longer), or else awake. PROCESSES are those that have the pipe open: \
running (spinning or at work, which nothing tells apart), asleep, parked, waiting (for something else), stopped. Where one side of a queue is parked, \
all its processes that wait for descriptors, of whatever kind, are shown so. Dead is, in a queue, who was killed while it held a message or \
watched for the others, until that is noticed; others that were killed leave no trace.

STATUS is listening; closed, if nobody listens under the name any more but the pipe goes on; dead, if the listener was killed and nobody has taken the name over; or \
anonymous, if no listener made it. Of dead listeners without a pipe, only bare names can be found. What is open in processes that this one may not look into is not seen.

As JSON, these are the fields: name, path, kind (pipe, queue), status, owner (a process), segment (a number that tells it from others), capacity (bytes), members (of a queue: \
sides in use), directions (each with from, to, fill_bytes, fill_messages, sent_bytes_per_second, received_bytes_per_second, sent_messages_per_second_estimate, \
received_messages_per_second_estimate, sender, receiver) and participants (each with pid, command, role, state). What cannot be told is null.";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// As JSON: one array
    #[arg(long)]
    json: bool,
    /// Pipes without a name, too
    #[arg(long)]
    all: bool,
}

#[derive(clap::Args)]
pub(crate) struct TopArgs {
    /// As JSON: one array a line, for each refresh
    #[arg(long)]
    json: bool,
    /// Pipes without a name, too
    #[arg(long)]
    all: bool,
    /// Seconds between two refreshes, such as 0.5
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// How many refreshes before it ends [default: no end]
    #[arg(short = 'n', long, value_name = "N")]
    number: Option<NonZeroU64>,
    /// One refresh; the same as -n 1
    #[arg(long, conflicts_with = "number")]
    once: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("write a number of seconds from 0.01 to 86400".to_owned()),
    }
}

/// By the numbers of the pipes, with when each was taken.
type Snapshots = BTreeMap<u64, (Instant, Snapshot)>;

/// What was seen of all pipes at one time.
struct Look {
    found: Found,
    snapshots: Snapshots,
}

impl Look {
    fn take() -> io::Result<Look> {
        let found = find::find()?;
        if let Some((number, error)) = &found.unseen {
            let _ = writeln!(io::stderr(), "ringpipe: {number} pipes cannot be shown: {error}");
        }
        let look = |(&id, held): (&u64, &find::Held)| Some((id, (Instant::now(), held.pipe.look().ok()?)));
        let snapshots = found.pipes.iter().filter_map(look).collect();
        Ok(Look { found, snapshots })
    }
}

/// Each pipe that is looked at takes one.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

pub(crate) fn list(args: &Args) -> io::Result<()> {
    allow_descriptors();
    let before = Look::take()?.snapshots;
    std::thread::sleep(GLANCE);
    let entries = report::entries(&before, &Look::take()?, args.all);
    let mut out = io::stdout().lock();
    if args.json { report::json(&entries, &mut out) } else { report::table(&entries, &mut out) }
}

pub(crate) fn top(args: &TopArgs) -> io::Result<()> {
    let in_place = !args.json && io::stdout().is_terminal();
    let mut left = if args.once { Some(1) } else { args.number.map(NonZeroU64::get) };
    allow_descriptors();
    let mut before = Look::take()?.snapshots;
    while left != Some(0) {
        std::thread::sleep(args.interval);
        let now = Look::take()?;
        let entries = report::entries(&before, &now, args.all);
        let mut page = Vec::new();
        match args.json {
            true => report::json(&entries, &mut page)?,
            false => report::table(&entries, &mut page)?,
        }
        let mut out = io::stdout().lock();
        // From the upper left corner on, with nothing of the page before left: written at once, so that nothing flickers.
        let (start, end): (&[u8], &[u8]) = match (in_place, args.json) {
            (true, _) => (b"\x1b[H\x1b[2J", b""),
            (false, true) => (b"", b""),
            (false, false) => (b"", b"\n"),
        };
        out.write_all(&[start, &page, end].concat())?;
        out.flush()?;
        before = now.snapshots;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn intervals_are_read_in_seconds() {
        assert_eq!(seconds("0.5").unwrap().as_millis(), 500);
        for text in ["", "0", "-1", "nan", "inf", "1s", "1e9"] {
            assert!(seconds(text).is_err(), "{text:?} was taken for an interval");
        }
    }
}
