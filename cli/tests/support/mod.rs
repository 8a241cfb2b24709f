//! What the tests of the tool share.

use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// Waits for the end of a command, which is killed, and the test failed, if there is none within `limit`.
pub(crate) fn await_end(child: &mut Child, limit: Duration) -> ExitStatus {
    let give_up = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > give_up {
            child.kill().unwrap();
            panic!("no end after {limit:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
