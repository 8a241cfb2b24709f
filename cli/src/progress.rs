//! How far a transfer has got, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::pipes::amount;

/// What does not take longer is not worth a word.
const PATIENCE: Duration = Duration::from_millis(500);
const REFRESH: Duration = Duration::from_millis(100);
/// Over how many refreshes a rate is taken.
const RATED: usize = 10;

/// Counts bytes. A thread of its own shows them, so that whoever counts does nothing but that. Dropped, it ends the line.
pub(crate) struct Progress {
    shared: Arc<Shared>,
    shown_by: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    bytes: AtomicU64,
    over: AtomicBool,
}

impl Progress {
    /// Shows nothing if `quiet`, or if standard error is no terminal.
    pub(crate) fn start(quiet: bool) -> Progress {
        let shared = Arc::new(Shared::default());
        let is_shown = !quiet && io::stderr().is_terminal();
        // Without a thread, it goes on without a word.
        let shown_by = is_shown.then(|| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("progress".to_owned()).spawn(move || show(&shared)).ok()
        });
        Progress { shared, shown_by: shown_by.flatten() }
    }

    /// Only one thread counts, so that this need not be a locked operation.
    pub(crate) fn add(&self, bytes: usize) {
        let before = self.shared.bytes.load(Ordering::Relaxed);
        self.shared.bytes.store(before + bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        if let Some(thread) = self.shown_by.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn show(shared: &Shared) {
    let start = Instant::now();
    let mut seen = vec![(start, 0)];
    let mut is_shown = false;
    let mut is_over = false;
    while !is_over {
        thread::park_timeout(REFRESH);
        // In this order, so that the last amount shown is all.
        is_over = shared.over.load(Ordering::Acquire);
        let (now, bytes) = (Instant::now(), shared.bytes.load(Ordering::Relaxed));
        if now - start < PATIENCE {
            continue;
        }
        // At the end, over the whole time.
        let (then, before) = if is_over { (start, 0) } else { seen[0] };
        let rate = (bytes - before) as f64 / (now - then).as_secs_f64();
        // Clears what was longer behind it.
        let line = format!("\r{}, {}/s\x1b[K", amount(bytes as f64), amount(rate));
        is_shown |= io::stderr().write_all(line.as_bytes()).is_ok();
        seen.push((now, bytes));
        if seen.len() > RATED {
            seen.remove(0);
        }
    }
    if is_shown {
        let _ = io::stderr().write_all(b"\n");
    }
}
