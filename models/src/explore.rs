//! Running a model, and counting what was explored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sync::{Machine, boot};

#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    /// The most preemptions in an execution; `None` for all there are.
    pub(crate) preemptions: Option<usize>,
    pub(crate) body: fn(&Explorer),
}

pub(crate) struct Explorer {
    preemptions: Option<usize>,
    executions: Arc<AtomicU64>,
    end: Option<Instant>,
}

impl Model {
    /// Runs it with as many preemptions, whatever it says itself, and for no longer than `limit`.
    pub(crate) fn run(&self, preemptions: Option<usize>, limit: Option<Duration>) {
        let start = Instant::now();
        let end = limit.map(|limit| start + limit);
        let explorer = Explorer { preemptions, executions: Arc::default(), end };
        struct Name(&'static str);
        impl Drop for Name {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    println!("{:<46} FAILED", self.0);
                }
            }
        }
        let _name = Name(self.name);
        (self.body)(&explorer);
        let bound = preemptions.map_or("all".to_string(), |n| format!("up to {n}"));
        let executions = explorer.executions.load(Ordering::Relaxed);
        assert!(executions > 1, "{} explores nothing", self.name);
        let cut = if explorer.is_over() { ", NOT ALL OF THEM: the time was over" } else { "" };
        println!("{:<46} {executions:>12} {:>8.1}  {bound}{cut}", self.name, start.elapsed().as_secs_f64());
    }
}

impl Explorer {
    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Explores `body` on a machine on which nobody waits.
    pub(crate) fn explore(&self, body: impl Fn() + Send + Sync + 'static) {
        self.explore_on(Machine { membarrier: false, slices_end: false }, body);
    }

    pub(crate) fn explore_on(&self, machine: Machine, body: impl Fn() + Send + Sync + 'static) {
        if self.is_over() {
            return;
        }
        let executions = Arc::clone(&self.executions);
        let mut builder = loom::model::Builder::new();
        builder.max_duration = self.end.map(|end| end.saturating_duration_since(Instant::now()));
        builder.preemption_bound = self.preemptions;
        builder.max_branches = 100_000;
        builder.check(move || {
            executions.fetch_add(1, Ordering::Relaxed);
            boot(machine);
            body();
        });
    }

    /// Explores a process that is killed at each of its steps in turn, and at last not at all. `body` returns whether it was killed.
    pub(crate) fn kill_at_each_step(
        &self,
        machine: Machine,
        body: impl Fn(Option<u32>) -> bool + Clone + Send + Sync + 'static,
    ) {
        for step in 0.. {
            let body = body.clone();
            let reached = Arc::new(AtomicU64::new(0));
            let noted = Arc::clone(&reached);
            self.explore_on(machine, move || {
                if body(Some(step)) {
                    noted.fetch_add(1, Ordering::Relaxed);
                }
            });
            if self.is_over() {
                return;
            }
            // In no interleaving does it come that far any more.
            if reached.load(Ordering::Relaxed) == 0 {
                assert!(step > 3, "killed almost nowhere");
                return;
            }
        }
    }
}
