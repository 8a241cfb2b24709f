//! A worker program that serves requests until its parent closes the pipe; and what the parent sees when it is killed instead.
//!
//! ```sh
//! cargo run --example worker
//! ```

use std::error::Error;
use std::process::{Child, Command};

use ringpipe::{Connection, End, RecvError};

/// The environment variable through which the worker finds its end.
const PIPE: &str = "WORKER_PIPE";

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => worker(),
        _ => parent(),
    }
}

/// Starts this program again, as a worker that has one end of a new pipe.
fn start() -> Result<(Child, Connection), Box<dyn Error>> {
    let (mine, theirs) = ringpipe::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker");
    // Only the children of this command get the end. Other programs started meanwhile do not: its descriptors are close-on-exec.
    theirs.inherit(&mut command, PIPE);
    let child = command.spawn()?;
    // Important: the command owns a copy of the worker's end. Kept, it would keep the pipe open after the worker's death, and a
    // receive here would wait for ever.
    drop(command);
    Ok((child, mine))
}

fn parent() -> Result<(), Box<dyn Error>> {
    // An orderly life: requests and answers, then end of file.
    let (mut child, mut mine) = start()?;
    for number in [3_u64, 12, 1000] {
        mine.send(&("square", number))?;
        let answer: u64 = mine.recv()?;
        println!("parent: {number} squared is {answer}");
        if answer != number * number {
            return Err("wrong answer".into());
        }
    }
    // Closing our end is how the worker learns that no more will come.
    mine.close();
    let status = child.wait()?;
    println!("parent: the worker ended by itself: {status}");
    if !status.success() {
        return Err("the worker failed".into());
    }

    // A violent one: nobody in the worker gets to say goodbye, but the kernel closes its end for it.
    let (mut child, mut mine) = start()?;
    mine.send(&("hang", 0_u64))?;
    child.kill()?;
    match mine.recv::<u64>() {
        Err(RecvError::Disconnected) => println!("parent: the worker was killed, and the pipe says: disconnected"),
        other => return Err(format!("expected end of file, got {other:?}").into()),
    }
    child.wait()?;
    Ok(())
}

fn worker() -> Result<(), Box<dyn Error>> {
    let mut conn = Connection::from_env(PIPE)?;
    loop {
        match conn.recv::<(String, u64)>() {
            Ok((what, number)) if what == "square" => conn.send(&(number * number))?,
            // Anything else is not answered: the parent had better not wait for ever.
            Ok(_) => {}
            Err(RecvError::Disconnected) => {
                println!("worker: end of file, so I am done");
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        }
    }
}
