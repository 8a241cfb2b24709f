//! A cell of the tables, measured once: in processes of its own, under a time limit.
//!
//! The process that is forked here makes the channel and starts the two sides. Whatever a peer does to it, a crash or a hang, this one goes on.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bench::flags::Flags;
use crate::leftovers;
use crate::peer::{Outcome, Spec, Wait};
use crate::process::{self, Child};
use crate::sides::{Job, Line, Part, Traffic};
use crate::traffic::Span;

/// What to measure, apart from the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) traffic: Traffic,
    pub(crate) wait: Wait,
    pub(crate) size: usize,
    pub(crate) span: Span,
    pub(crate) processors: [usize; 2],
    pub(crate) turns: u64,
    pub(crate) burst_ns: u64,
}

/// The parts of both sides: the one with the ping-pong first.
pub(crate) type Parts = [Part; 2];

/// What a cell may take beyond its traffic before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(8);
/// What the sides may take to clean up when all is told.
const CLEANING: Duration = Duration::from_secs(3);

/// Measures once.
pub(crate) fn measure(run: fn(&Job) -> Outcome<()>, order: &Order) -> Result<Parts, String> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = leftovers::name(COUNT.fetch_add(1, Ordering::Relaxed));
    let result = supervise(run, order, &name);
    leftovers::remove(&name);
    result
}

fn supervise(run: fn(&Job) -> Outcome<()>, order: &Order, name: &str) -> Result<Parts, String> {
    let cannot = |e: io::Error| format!("cannot start: {e}");
    let (mut reports, report) = io::pipe().map_err(cannot)?;
    let (flags, _) = Flags::create().map_err(cannot)?;
    let Some(child) = process::fork().map_err(cannot)? else {
        process::lead_group();
        drop(reports);
        let job = Job {
            spec: Spec { name: name.to_owned(), size: order.size, wait: order.wait },
            traffic: order.traffic,
            span: order.span,
            processors: order.processors,
            flags: &flags,
            turns: order.turns,
            burst_ns: order.burst_ns,
            report: report.as_fd(),
        };
        match catch_unwind(AssertUnwindSafe(|| run(&job))) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => job.hand_in(Ok(Err(e))),
            Err(panic) => job.hand_in(Err(panic)),
        }
        process::exit();
    };
    drop(report);
    let limit = order.span.warm_up + order.span.measured + PATIENCE;
    let result = collect(&mut reports, Instant::now() + limit);
    if result.is_ok() {
        // Everybody may take leave in order; what they have to say now is of no interest.
        let _ = read_until(&mut reports, Instant::now() + CLEANING, |_| false);
    }
    end(child, &mut reports);
    result
}

/// Gets rid of what is left of a cell.
fn end(child: Child, reports: &mut PipeReader) {
    if let Err(e) = child.kill_group() {
        eprintln!("cannot wait for a process: {e}");
    }
    // The pipe is at its end when the last of them is gone.
    let _ = read_until(reports, Instant::now() + CLEANING, |_| false);
}

/// Waits for the parts of both sides.
fn collect(reports: &mut PipeReader, deadline: Instant) -> Result<Parts, String> {
    let mut parts = Vec::new();
    let mut failed = None;
    let ended = read_until(reports, deadline, |line| {
        match serde_json::from_str(line) {
            Ok(Line::Part(part)) => parts.push(part),
            Ok(Line::Failed(what)) => failed = Some(what),
            Err(e) => failed = Some(format!("handed in what cannot be read: {e}")),
        }
        failed.is_some() || parts.len() == 2
    });
    if let Some(what) = failed {
        return Err(what);
    }
    if let Ok([one, other]) = <Parts>::try_from(parts) {
        return Ok(if one.apart.is_some() { [one, other] } else { [other, one] });
    }
    Err(match ended {
        Ok(true) => "ended without a result".into(),
        Ok(false) => "hung, and was killed".into(),
        Err(e) => format!("cannot be listened to: {e}"),
    })
}

/// Reads lines until `enough` says so (true), the end of file (true), or the deadline (false).
fn read_until(reports: &mut PipeReader, deadline: Instant, mut enough: impl FnMut(&str) -> bool) -> io::Result<bool> {
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(reports, PollFlags::IN)], Some(&time))? == 0 {
            return Ok(false);
        }
        let mut chunk = [0; 4096];
        let len = reports.read(&mut chunk)?;
        if len == 0 {
            return Ok(true);
        }
        text.extend_from_slice(&chunk[..len]);
        while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            if enough(&String::from_utf8_lossy(&line)) {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Order, measure};
    use crate::peer::Wait;
    use crate::sides::Traffic;
    use crate::traffic::Span;

    fn order() -> Order {
        let span = Span { warm_up: Duration::ZERO, measured: Duration::from_millis(10) };
        Order { traffic: Traffic::OneWay, wait: Wait::Spin, size: 8, span, processors: [0, 0], turns: 10, burst_ns: 1 }
    }

    #[test]
    fn a_panic_an_early_end_and_a_complaint_are_failed_cells() {
        assert!(measure(|_| panic!("on purpose"), &order()).err().unwrap().contains("on purpose"));
        assert!(measure(|_| Err("no such thing".into()), &order()).err().unwrap().contains("no such thing"));
        assert!(measure(|_| std::process::abort(), &order()).err().unwrap().contains("without a result"));
    }

    #[test]
    fn a_hang_is_a_failed_cell_and_no_hung_run() {
        let start = Instant::now();
        let result = measure(
            |_| loop {
                std::thread::sleep(Duration::from_secs(1))
            },
            &order(),
        );
        assert!(result.err().unwrap().contains("hung"));
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}
