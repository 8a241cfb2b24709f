//! One producer and three consumer processes that share one pipe's receiving end behind a lock; every item is consumed exactly once.
//!
//! ```sh
//! cargo run --example producer_consumers
//! ```
//!
//! An end can have copies in several processes only by `fork`, so this example forks. (To hand an end *over*, see the example `worker`.)
//! A pipe is for one receiver at a time, so each consumer holds a lock while it receives; they work on what they got side by side.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use ringpipe::{Receiver, Sender};

const CONSUMERS: usize = 3;
const ITEMS: u64 = 3000;

fn main() -> Result<(), Box<dyn Error>> {
    let (items, mut producer) = ringpipe::simplex()?;
    // Something to lock: a file without a name, which disappears with the last process.
    // SAFETY: the name is a C string; whoever makes a descriptor owns it, once it is known to be one.
    let file = unsafe {
        match libc::memfd_create(c"lock".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error().into()),
            fd => File::from_raw_fd(fd),
        }
    };

    let (mut pids, mut results) = (Vec::new(), Vec::new());
    for _ in 0..CONSUMERS {
        // Each consumer reports through a pipe of its own: many senders would need a lock too.
        let (from_consumer, to_parent) = ringpipe::simplex()?;
        // SAFETY: this process has no other threads, so the child is free to do anything.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error().into()),
            0 => {
                // The child has copies of all our ends. It closes those that are not its own: a producer kept open here, say,
                // would keep the other consumers from ever seeing end of file if the real one died.
                drop((producer, from_consumer, results));
                let done = consume(items, to_parent, &file).inspect_err(|e| eprintln!("consumer: {e}"));
                std::process::exit(done.is_err().into());
            }
            pid => pids.push(pid),
        }
        // The same here: `to_parent` goes out of scope, and is then the child's alone.
        results.push(from_consumer);
    }
    drop(items);

    // If the consumers died, this would fail with a broken pipe instead of filling the ring and waiting for ever.
    for item in 0..ITEMS {
        producer.send(&Some(item))?;
    }
    // A sentinel for each: whoever takes one stops, and takes no more.
    for _ in 0..CONSUMERS {
        producer.send(&None::<u64>)?;
    }

    let mut times_consumed = [0; ITEMS as usize];
    for (number, from_consumer) in results.iter_mut().enumerate() {
        let mut count = 0;
        // Until the consumer closes its end.
        while let Ok((item, square)) = from_consumer.recv::<(u64, u64)>() {
            assert_eq!(square, item * item);
            times_consumed[item as usize] += 1;
            count += 1;
        }
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

fn consume(mut items: Receiver, mut to_parent: Sender, file: &File) -> Result<(), Box<dyn Error>> {
    // The lock belongs to an opening of the file, which forked copies of a descriptor share: open it anew.
    let lock = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    loop {
        flock(&lock, libc::LOCK_EX)?;
        let item: Option<u64> = items.recv()?;
        // Unlocked as soon as the item is ours. If we were killed before this line, the kernel would unlock it.
        flock(&lock, libc::LOCK_UN)?;
        match item {
            Some(item) => to_parent.send(&(item, item * item))?,
            None => return Ok(()),
        }
    }
}

fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: an open descriptor, and no pointers.
    if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
