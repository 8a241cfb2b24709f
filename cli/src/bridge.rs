//! `ringpipe bridge`: joins local names to keys on a network, so that the same programs go on with their ends on several hosts. The crate `ringpipe-bridge` does it.

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ringpipe_bridge::{BridgeError, Builder, Direction, Doubt, stop_lingering, zenoh_runtime};

use crate::bench::size;
use crate::soak::clock;
use crate::transfer::{Failure, complain};

pub(crate) const HELP: &str = "\
On the host where the pipe or the queue is:
  ringpipe bridge --listen tcp/192.0.2.7:7447 --export jobs
On the others, where programs connect to the name `jobs` as if it were there:
  ringpipe bridge --connect tcp/192.0.2.7:7447 --import jobs
A work queue, whose tasks go to the other hosts, and whose answers come back:
  ringpipe bridge --listen ... --export-take tasks --export-put answers
  ringpipe bridge --connect ... --import-take tasks --import-put answers

NAME is a word, or the path of a socket (with a `/` in it). KEY is what the network calls it: the last part of the name, by default.

Whoever reaches the endpoint that is listened to can use what is exported: TLS with certificates of both sides, by --config, keeps others out.

Exit codes: 0 if it was told to end (SIGINT, SIGTERM); 1 for other errors; 2 for bad arguments, names and keys included.";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Listen there for other bridges [default: tcp/127.0.0.1:7447, unless there is --connect]
    #[arg(long, value_name = "ENDPOINT")]
    listen: Vec<String>,
    /// Connect to another bridge, again and again if need be
    #[arg(long, value_name = "ENDPOINT")]
    connect: Vec<String>,
    /// Offer the pipes of a local listener to others
    #[arg(long, value_name = "NAME[=KEY]", value_parser = joint)]
    export: Vec<Joint>,
    /// Listen under a name for what another bridge exports
    #[arg(long, value_name = "NAME[=KEY]", value_parser = joint)]
    import: Vec<Joint>,
    /// Let processes of other hosts take from a local queue
    #[arg(long, value_name = "NAME[=KEY]", value_parser = joint)]
    export_take: Vec<Joint>,
    /// Keep a queue that processes here take from, and which another bridge exports so
    #[arg(long, value_name = "NAME[=KEY]", value_parser = joint)]
    import_take: Vec<Joint>,
    /// Let processes of other hosts send to a local queue
    #[arg(long, value_name = "NAME[=KEY]", value_parser = joint)]
    export_put: Vec<Joint>,
    /// Keep a queue that processes here send to, and which another bridge exports so
    #[arg(long, value_name = "NAME[=KEY]", value_parser = joint)]
    import_put: Vec<Joint>,
    /// How many messages may lie ready in each imported queue [default: one for each process that takes]
    #[arg(long, value_name = "COUNT")]
    ahead: Option<usize>,
    /// Give what a lost host may not have taken to others, though it may be taken twice then
    #[arg(long)]
    repeat: bool,
    /// How long nothing may be heard of the other side before its pipes are broken
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = clock::parse)]
    patience: Duration,
    /// How much may be on its way in each direction of each connection
    #[arg(long, value_name = "SIZE", default_value = "4m", value_parser = size::parse)]
    window: usize,
    /// The longest message that is carried
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = size::parse)]
    longest: usize,
    /// How many connections from other bridges are served at a time
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    connections: usize,
    /// Zenoh's settings, in JSON5: certificates, for instance
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One of Zenoh's settings, the value in JSON5
    #[arg(long, value_name = "PATH=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Say nothing of connections that come and go
    #[arg(short, long)]
    quiet: bool,
}

/// A local name, and its key.
#[derive(Clone)]
struct Joint {
    name: PathBuf,
    key: String,
}

fn joint(text: &str) -> Result<Joint, String> {
    let (name, key) = match text.rsplit_once('=') {
        Some((name, key)) => (name, key),
        None => (text, text.rsplit('/').next().unwrap_or(text)),
    };
    Ok(Joint { name: name.into(), key: key.to_owned() })
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (path, value) = text.split_once('=').ok_or("write the path of a setting, `=`, and its value")?;
    Ok((path.to_owned(), value.to_owned()))
}

impl From<BridgeError> for Failure {
    fn from(e: BridgeError) -> Failure {
        match e {
            BridgeError::Listen(e) => e.into(),
            BridgeError::Key { .. } | BridgeError::Taken { .. } | BridgeError::Window { .. } => Failure::new(2, e),
            _ => Failure::new(1, e),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let joints = [&args.export, &args.import, &args.export_take, &args.import_take, &args.export_put, &args.import_put];
    if joints.iter().all(|joints| joints.is_empty()) {
        return Err(Failure::new(2, "there is nothing to export or to import: see `ringpipe bridge --help`"));
    }
    // Before there are threads, which have their mask from this one.
    let signals = block_signals()?;
    if let Some(threads) = zenoh_runtime() {
        // SAFETY: as there are no threads yet, nobody else reads or changes the environment.
        unsafe { std::env::set_var("ZENOH_RUNTIME", threads) };
    }
    thread::spawn(|| {
        loop {
            // It can fail for a while, out of descriptors. Then a host whose line is dead keeps others waiting for some seconds: no reason to serve none.
            let _ = stop_lingering();
            thread::sleep(Duration::from_secs(1));
        }
    });
    let quiet = args.quiet;
    let mut builder = Builder::new()
        .patience(args.patience)
        .window(args.window)
        .longest(args.longest as u64)
        .connections(args.connections);
    builder = args.listen.iter().fold(builder, Builder::listen);
    builder = args.connect.iter().fold(builder, Builder::connect);
    builder = args.config.iter().fold(builder, Builder::config);
    builder = args.set.iter().fold(builder, |builder, (path, value)| builder.set(path, value));
    let bridge = builder
        .report(move |event| {
            if !quiet || event.is_failure() {
                complain(event);
            }
        })
        .open()?;
    let doubt = if args.repeat { Doubt::Repeat } else { Doubt::Lose };
    for Joint { name, key } in &args.export {
        bridge.export(name, key)?;
    }
    for Joint { name, key } in &args.import {
        bridge.import(name, key)?;
    }
    for (joints, direction) in [(&args.export_take, Direction::Take), (&args.export_put, Direction::Put)] {
        for Joint { name, key } in joints {
            bridge.export_queue(name, key, direction, doubt)?;
        }
    }
    for (joints, direction) in [(&args.import_take, Direction::Take), (&args.import_put, Direction::Put)] {
        for Joint { name, key } in joints {
            bridge.import_queue(name, key, direction, args.ahead)?;
        }
    }
    await_signal(&signals)?;
    drop(bridge);
    Ok(())
}

/// The signals that end a bridge, which are to be waited for from now on.
fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: a set is plain memory, which is made one by `sigemptyset` before anything reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM] {
            libc::sigaddset(&mut set, signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
            0 => Ok(set),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn await_signal(set: &libc::sigset_t) -> io::Result<()> {
    let mut signal = 0;
    // SAFETY: both outlive the call.
    match unsafe { libc::sigwait(set, &mut signal) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
