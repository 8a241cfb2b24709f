//! The work queue of `examples/work_queue.rs`, its source as it is, with its workers on another host.
//!
//! ```sh
//! cargo run -p ringpipe-bridge --example far_workers -- --tasks 2000 --workers 3 --kills 10
//! ```
//!
//! The queue starts workers, kills them at random, and starts others; it knows nothing of hosts. Here, what it starts is a *stand-in*, which connects to a local name, `workers`. That name is
//! imported by a bridge: on the other host, a pipe arrives for each stand-in, and a real worker is started for it there. When a stand-in is killed, the end of the file goes across, and
//! its worker ends. The other host is another process here; give it a namespace, or a machine, and nothing changes but the endpoint.
//!
//! A stand-in carries one task at a time, so that each kill loses one at most, as with workers at hand. Where nothing has to be unchanged, a queue goes across by itself
//! (`Bridge::export_queue`), and no stand-ins are needed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use ringpipe::mpmc::{Receiver, Sender};
use ringpipe::{Connection, End, Listener, connect, mpmc};
use ringpipe_bridge::Bridge;

#[allow(clippy::manual_is_multiple_of, reason = "it is written for an older Rust than a bridge is")]
#[path = "../../examples/work_queue.rs"]
mod work_queue;

/// Where the names of this run lie; and, to a worker on the other host, that it is one.
const NAMES: &str = "FAR_WORKERS_NAMES";
const REAL: &str = "FAR_WORKERS_REAL";
/// The variables of `work_queue`.
const TASKS: &str = "WORK_QUEUE_TASKS";
const ANSWERS: &str = "WORK_QUEUE_ANSWERS";

fn main() -> Result<(), Box<dyn Error>> {
    let role = std::env::args().nth(1);
    match (role.as_deref(), std::env::var_os(NAMES)) {
        (Some("worker"), _) if std::env::var_os(REAL).is_some() => work_queue::main(),
        (Some("worker"), Some(names)) => stand_in(&PathBuf::from(names)),
        (Some("host"), Some(names)) => other_host(&PathBuf::from(names)),
        _ => here(),
    }
}

/// The queue's host: a bridge that imports workers, and the queue itself, which takes its stand-ins for workers.
fn here() -> Result<(), Box<dyn Error>> {
    let names = std::env::temp_dir().join(format!("ringpipe-far-workers-{}", std::process::id()));
    std::fs::create_dir(&names)?;
    // SAFETY: this process has no other threads yet.
    unsafe { std::env::set_var(NAMES, &names) };
    let endpoint = format!("tcp/127.0.0.1:{}", std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let mut host = Command::new(std::env::current_exe()?).args(["host", &endpoint]).spawn()?;
    let bridge = Bridge::builder().connect(endpoint).open()?;
    bridge.import(names.join("workers"), "workers")?;
    let result = work_queue::main();
    host.kill()?;
    host.wait()?;
    std::fs::remove_dir_all(names)?;
    result
}

/// Stands in for a worker: one task at a time goes to the real one, and its answer comes back.
fn stand_in(names: &Path) -> Result<(), Box<dyn Error>> {
    let (tasks, answers) = (Receiver::from_env(TASKS)?, Sender::from_env(ANSWERS)?);
    let mut worker: Connection = connect(names.join("workers"), Duration::from_secs(30))?;
    while let Ok(task) = tasks.recv_bytes() {
        worker.send_bytes(&task)?;
        answers.send_bytes(&worker.recv_bytes()?)?;
    }
    Ok(())
}

/// The other host: a bridge that exports workers, one for each that connects.
fn other_host(names: &Path) -> Result<(), Box<dyn Error>> {
    let mut listener = Listener::bind(names.join("far"))?;
    let bridge = Bridge::builder().listen(std::env::args().nth(2).ok_or("no endpoint")?).open()?;
    bridge.export(names.join("far"), "workers")?;
    loop {
        let (pipe, _) = listener.accept()?;
        std::thread::spawn(move || {
            if let Err(e) = serve(pipe) {
                eprintln!("a worker on the other host: {e}");
            }
        });
    }
}

/// Starts a worker for a stand-in, and lets it go when that is gone.
fn serve(mut pipe: Connection) -> Result<(), Box<dyn Error>> {
    let ((take, tasks), (answers, answer)) = (mpmc::simplex()?, mpmc::simplex()?);
    let mut worker = start(take, answer)?;
    while let Ok(task) = pipe.recv_bytes() {
        tasks.send_bytes(&task)?;
        let answered = answers.recv_bytes()?;
        if pipe.send_bytes(&answered).is_err() {
            break;
        }
    }
    // End of file for the worker.
    drop(tasks);
    worker.wait()?;
    Ok(())
}

fn start(take: Receiver, answer: Sender) -> Result<Child, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker").env(REAL, "yes");
    take.inherit(&mut command, TASKS);
    answer.inherit(&mut command, ANSWERS);
    Ok(command.spawn()?)
}
