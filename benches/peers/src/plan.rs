//! Which cells are measured when.
//!
//! A round measures every cell once. Within it, all peers take their turns at one test and size before the next one begins, a different one
//! first in each round. So whatever the machine is up to, it meets all of them.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use crate::bench::{cpu, size};
use crate::cell::{self, Order};
use crate::machine::{self, Distance};
use crate::peer::Wait;
use crate::peers::{Row, TABLE};
use crate::report::{Figures, Named, Outcome, Report, Sample, Setting, Test};
use crate::sides::{self, Traffic};
use crate::traffic::Span;

/// How much to measure.
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) span: Span,
    pub(crate) idle: Span,
    /// Turns of the bare ping-pong, in each of five rounds of it.
    pub(crate) turns: u64,
    /// How often a cell is tried again that the machine disturbed, and for how long altogether.
    pub(crate) repeats: usize,
    pub(crate) repeating: Duration,
    /// How long to wait for the wanted distance, altogether.
    pub(crate) patience: Duration,
    /// No round is begun that would not be done by then.
    pub(crate) limit: Duration,
}

const fn span(warm_up: u64, measured: u64) -> Span {
    Span { warm_up: Duration::from_millis(warm_up), measured: Duration::from_millis(measured) }
}

impl Plan {
    pub(crate) const FULL: Plan = Plan {
        rounds: 7,
        span: span(30, 120),
        idle: span(0, 1000),
        turns: 2000,
        repeats: 3,
        repeating: Duration::from_secs(240),
        patience: Duration::from_secs(120),
        limit: Duration::from_secs(14 * 60),
    };
    pub(crate) const QUICK: Plan = Plan {
        rounds: 1,
        span: span(4, 16),
        idle: span(0, 200),
        turns: 500,
        repeats: 0,
        repeating: Duration::ZERO,
        patience: Duration::ZERO,
        limit: Duration::from_secs(60),
    };
}

/// A column of the tables.
#[derive(Clone, Copy)]
struct Column {
    test: Test,
    size: usize,
}

const ONE_WAY: [usize; 7] = [8, 64, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20];
const SPINNING: [usize; 4] = [8, 64, 1 << 10, 64 << 10];
const SMALL: usize = 64;
/// Blocks whose copying is measured for comparison.
const COPIES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

fn columns() -> Vec<Column> {
    let one_way = ONE_WAY.map(|size| Column { test: Test::OneWay, size });
    let spinning = SPINNING.map(|size| Column { test: Test::Spinning, size });
    let others = [Test::Blocking, Test::Idle].map(|test| Column { test, size: SMALL });
    [&one_way[..], &spinning, &others].concat()
}

/// A cell that failed so often is left alone: a hang takes its time.
const STRIKES: usize = 2;
/// Pause between two looks at the distance.
const PAUSE: Duration = Duration::from_millis(300);

/// A run under way.
struct Run<'a> {
    plan: &'a Plan,
    distance: Distance,
    processors: [usize; 2],
    burst_ns: u64,
    start: Instant,
    /// What is left of the patience, and of the time for repeats.
    patience: Duration,
    repeating: Duration,
    samples: Vec<Sample>,
    strikes: BTreeMap<(&'static str, Test, usize), usize>,
}

/// Measures everything. `wanted` chooses peers by name; ringpipe is among them in any case.
pub(crate) fn run(plan: &Plan, distance: Distance, wanted: impl Fn(&str) -> bool) -> io::Result<Report> {
    let one_processor = || io::Error::other("this takes two processors, and there is one only");
    let processors = cpu::pair().ok_or_else(one_processor)?;
    let load = machine::load();
    let rows: Vec<&Row> = TABLE.iter().filter(|row| row.name == TABLE[0].name || wanted(row.name)).collect();
    let mut run = Run {
        plan,
        distance,
        processors,
        burst_ns: machine::burst_alone(),
        start: Instant::now(),
        patience: plan.patience,
        repeating: plan.repeating,
        samples: Vec::new(),
        strikes: BTreeMap::new(),
    };
    let mut memcpy = Vec::new();
    let mut rounds = 0;
    while rounds < plan.rounds && run.has_time_for_a_round(rounds) {
        run.round(rounds, &rows);
        memcpy.extend(COPIES.map(|size| machine::memcpy(size, plan.span.measured / 4)));
        rounds += 1;
    }
    let setting = Setting {
        ringpipe: machine::ringpipe(),
        processor: machine::processor(),
        kernel: machine::kernel(),
        processors,
        rounds,
        measured_ms: plan.span.measured.as_millis() as u64,
        idle_ms: plan.idle.measured.as_millis() as u64,
        distance: format!("{distance:?}").to_lowercase(),
        load: [load, machine::load()],
        seconds: run.start.elapsed().as_secs(),
    };
    let named = |row: &&Row| Named { name: row.name.into(), in_place: row.is_in_place(), threads: row.is_in_threads() };
    Ok(Report { setting, peers: rows.iter().map(named).collect(), samples: run.samples, memcpy })
}

impl Run<'_> {
    fn has_time_for_a_round(&self, done: usize) -> bool {
        let spent = self.start.elapsed();
        done == 0 || spent + spent / done as u32 <= self.plan.limit
    }

    fn round(&mut self, round: usize, rows: &[&'static Row]) {
        for column in columns() {
            for turn in 0..rows.len() {
                let row = rows[(turn + round) % rows.len()];
                show(&format!("round {} of {}: {}, {}", round + 1, self.plan.rounds, column.title(), row.name));
                self.cell(round, row, column);
            }
        }
        show("");
    }

    fn cell(&mut self, round: usize, row: &'static Row, column: Column) {
        let Column { test, size } = column;
        let sample = |attempt, outcome| Sample { peer: row.name.into(), test, size, round, attempt, outcome };
        if matches!(test, Test::Blocking | Test::Idle) && !row.blocks {
            if round == 0 {
                self.samples.push(sample(0, Outcome::Refused("it cannot block".into())));
            }
            return;
        }
        let strikes = *self.strikes.entry((row.name, test, size)).or_default();
        if strikes >= STRIKES {
            return;
        }
        for attempt in 0..=self.plan.repeats {
            self.await_distance();
            let start = Instant::now();
            let outcome = match self.measure(row, column) {
                Ok(figures) => Outcome::Figures(figures),
                Err(what) => Outcome::Failed(what),
            };
            let disturbed = matches!(&outcome, Outcome::Figures(figures) if !figures.fit);
            if let Outcome::Failed(what) = &outcome {
                show("");
                eprintln!("{}, {}: {what}", row.name, column.title());
                self.strikes.insert((row.name, test, size), strikes + 1);
            }
            self.samples.push(sample(attempt, outcome));
            if attempt > 0 {
                self.repeating = self.repeating.saturating_sub(start.elapsed());
            }
            if !disturbed || self.repeating.is_zero() {
                break;
            }
        }
    }

    fn measure(&self, row: &Row, column: Column) -> Result<Figures, String> {
        let parts = cell::measure(row.run, &self.order(column))?;
        let apart = parts[0].apart.ok_or("handed in no ping-pong")?;
        let flow = parts[0].flow.or(parts[1].flow).ok_or("handed in no figures")?;
        let spent = parts.map(|part| part.spent);
        let robbed = Duration::from_nanos(spent.iter().map(|side| side.robbed_ns).max().unwrap_or(0));
        let fit = machine::is_fit(self.distance, apart, robbed, Duration::from_nanos(flow.nanos));
        Ok(Figures { apart, fit, flow, spent })
    }

    fn order(&self, column: Column) -> Order {
        let (traffic, wait, span) = match column.test {
            Test::OneWay => (Traffic::OneWay, Wait::Stream, self.plan.span),
            Test::Spinning => (Traffic::RoundTrip, Wait::Spin, self.plan.span),
            Test::Blocking => (Traffic::RoundTrip, Wait::Block, self.plan.span),
            Test::Idle => (Traffic::Idle, Wait::Block, self.plan.idle),
        };
        let (processors, turns, burst_ns) = (self.processors, self.plan.turns, self.burst_ns);
        Order { traffic, wait, size: column.size, span, processors, turns, burst_ns }
    }

    /// Waits until the processors are as far apart as wanted, while there is patience.
    fn await_distance(&mut self) {
        if self.distance == Distance::Any {
            return;
        }
        let order = self.order(Column { test: Test::OneWay, size: SMALL });
        let start = Instant::now();
        while start.elapsed() < self.patience {
            let probe = cell::measure(sides::run_bare, &order);
            match probe.ok().and_then(|parts| parts[0].apart) {
                Some([apart, _]) if !self.distance.admits(apart) => std::thread::sleep(PAUSE),
                _ => break,
            }
        }
        self.patience = self.patience.saturating_sub(start.elapsed());
    }
}

impl Column {
    fn title(self) -> String {
        let Column { test, size } = self;
        let test = match test {
            Test::OneWay => "one way",
            Test::Spinning => "round trip spinning",
            Test::Blocking => "round trip blocking",
            Test::Idle => "idle",
        };
        format!("{test}, {}", size::show(size))
    }
}

/// One line on the terminal that says what is going on, rewritten again and again. Nothing where stderr is no terminal.
fn show(what: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}
