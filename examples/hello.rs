//! A parent and a worker process, and a typed value each way.
//!
//! ```sh
//! cargo run --example hello
//! ```

use std::error::Error;
use std::process::{Command, ExitStatus};

use ringpipe::{Connection, End};
use serde::{Deserialize, Serialize};

/// Anything that serde can serialize is a message. Both processes have to know the type.
#[derive(Serialize, Deserialize, Debug)]
struct Order {
    item: String,
    count: u32,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Receipt {
    text: String,
    cents: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    // The worker is this same program, started with an argument. It could as well be another one.
    match std::env::args().nth(1).as_deref() {
        Some("worker") => worker(),
        _ => parent(),
    }
}

fn parent() -> Result<(), Box<dyn Error>> {
    // A pipe has two ends, and each end both sends and receives. We keep `mine`...
    let (mut mine, theirs) = ringpipe::pipe()?;

    // ...and give `theirs` to the worker, which finds it under this name.
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker");
    theirs.inherit(&mut command, "HELLO_PIPE");
    let mut worker = command.spawn()?;
    // The command still holds a copy of the worker's end. As long as it does, the pipe counts as open.
    drop(command);

    mine.send(&Order { item: "lemon".into(), count: 12 })?;
    // Waits until the worker has answered, or fails once it is gone.
    let receipt: Receipt = mine.recv()?;
    println!("parent: got {receipt:?}");

    let status: ExitStatus = worker.wait()?;
    if receipt.cents != 12 * 35 || !status.success() {
        return Err(format!("unexpected receipt, or the worker failed ({status})").into());
    }
    Ok(())
}

fn worker() -> Result<(), Box<dyn Error>> {
    let mut conn = Connection::from_env("HELLO_PIPE")?;
    let order: Order = conn.recv()?;
    println!("worker: got {order:?}");
    conn.send(&Receipt { text: format!("{} × {}", order.count, order.item), cents: u64::from(order.count) * 35 })?;
    // The end is closed when it is dropped, and what was sent before stays in the pipe: no need to wait for the parent.
    Ok(())
}
