//! One producer and three consumer processes that share one pipe, as in `producer_consumers`, but without a lock: a pipe for many lets each
//! of its receivers take the next message by itself.
//!
//! ```sh
//! cargo run --example consumers_without_lock
//! ```
//!
//! What else is simpler: the consumers report through one pipe, since it has room for many senders too, and they stop at end of file,
//! for which the example with the lock has a sentinel for each.

use std::error::Error;
use std::io;
use std::time::Duration;

use ringpipe::RecvError;
use ringpipe::mpmc::{self, Receiver, Sender};

const CONSUMERS: usize = 3;
const ITEMS: u64 = 3000;

fn main() -> Result<(), Box<dyn Error>> {
    let (items, producer) = mpmc::simplex()?;
    let (results, to_parent) = mpmc::simplex()?;
    let mut pids = Vec::new();
    for number in 0..CONSUMERS {
        // SAFETY: this process has no other threads, so the child is free to do anything.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error().into()),
            0 => {
                // The child has copies of all our ends. A producer kept open here would keep all consumers from ever seeing end of file.
                drop((producer, results));
                let done = consume(number, items, to_parent).inspect_err(|e| eprintln!("consumer: {e}"));
                std::process::exit(done.is_err().into());
            }
            pid => pids.push(pid),
        }
    }
    // These are the children's now. With our copies gone, a send fails once all consumers are dead, instead of filling the ring and waiting for
    // ever; and the results end with the last of them.
    drop((items, to_parent));

    // The ring of the results has room for all of them. With more, the consumers would wait for us to take some, and we for them to take items.
    for item in 0..ITEMS {
        producer.send(&item)?;
    }
    // End of file, once everything has been taken.
    drop(producer);

    let (mut counts, mut times_consumed) = ([0; CONSUMERS], [0; ITEMS as usize]);
    loop {
        match results.recv::<(usize, u64, u64)>() {
            Ok((number, item, square)) => {
                assert_eq!(square, item * item);
                times_consumed[item as usize] += 1;
                counts[number] += 1;
            }
            Err(RecvError::Disconnected) => break,
            Err(e) => return Err(e.into()),
        }
    }
    for (number, count) in counts.iter().enumerate() {
        println!("consumer {number}: {count} items");
    }
    for pid in pids {
        let mut status = 0;
        // SAFETY: the child is ours, and `status` outlives the call.
        if unsafe { libc::waitpid(pid, &mut status, 0) } != pid || status != 0 {
            return Err(format!("a consumer failed: wait status {status:#x}").into());
        }
    }
    if times_consumed.iter().any(|&times| times != 1) {
        return Err("an item was lost or consumed twice".into());
    }
    println!("all {ITEMS} items were consumed exactly once");
    Ok(())
}

fn consume(number: usize, items: Receiver, to_parent: Sender) -> Result<(), Box<dyn Error>> {
    loop {
        match items.recv::<u64>() {
            Ok(item) => {
                // Something to do for each. Without it, one consumer may have taken everything before the others are awake.
                std::thread::sleep(Duration::from_micros(50));
                // Were we killed before this is sent, the item would be gone with us: see the example `work_queue`.
                to_parent.send(&(number, item, item * item))?;
            }
            Err(RecvError::Disconnected) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}
