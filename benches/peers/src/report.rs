//! Everything that was measured, as JSON, and what can be asked of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::{Apart, Distance};
use crate::traffic::{Flow, Spent};

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) setting: Setting,
    /// In the order of the tables.
    pub(crate) peers: Vec<Named>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) memcpy: Vec<Memcpy>,
}

/// What the figures depend on.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) ringpipe: String,
    pub(crate) processor: String,
    pub(crate) kernel: String,
    pub(crate) processors: [usize; 2],
    pub(crate) rounds: usize,
    pub(crate) measured_ms: u64,
    pub(crate) idle_ms: u64,
    pub(crate) distance: String,
    /// As the system says, at the start and at the end: of the last 1, 5 and 15 minutes.
    pub(crate) load: [String; 2],
    pub(crate) seconds: u64,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Named {
    pub(crate) name: String,
    /// Messages are written and read in place.
    pub(crate) in_place: bool,
    /// Between threads.
    pub(crate) threads: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Test {
    OneWay,
    Spinning,
    Blocking,
    Idle,
}

/// One cell of one round, or what stood in its way.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) peer: String,
    pub(crate) test: Test,
    pub(crate) size: usize,
    pub(crate) round: usize,
    /// From 0: repeated because the machine changed meanwhile, or was not as wanted.
    pub(crate) attempt: usize,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Figures(Figures),
    Failed(String),
    /// The peer cannot do this.
    Refused(String),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Before and after.
    pub(crate) apart: [Apart; 2],
    /// The processors were at the wanted distance and stayed there, and nothing else had the processors.
    pub(crate) fit: bool,
    pub(crate) flow: Flow,
    /// Of the side that starts, and of the other.
    pub(crate) spent: [Spent; 2],
}

/// Copying blocks of this size within a processor's caches.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Memcpy {
    pub(crate) size: usize,
    pub(crate) bytes_per_second: f64,
}

impl Figures {
    pub(crate) fn ns_per_message(&self) -> f64 {
        self.flow.nanos as f64 / self.flow.messages as f64
    }

    /// Processor time of both sides for each message or round trip, warm-up included.
    pub(crate) fn cpu_per_message(&self) -> f64 {
        self.spent.iter().map(|side| side.cpu_ns as f64).sum::<f64>() / self.flow.all_messages as f64
    }

    /// Processor time of the receiver in a second of idleness, in nanoseconds, and how often it woke up for nothing.
    pub(crate) fn idle_second(&self) -> (f64, f64) {
        let seconds = self.flow.nanos as f64 / 1e9;
        (self.spent[1].cpu_ns as f64 / seconds, self.spent[1].sleeps.saturating_sub(1) as f64 / seconds)
    }

    pub(crate) fn cache_line(&self) -> f64 {
        self.apart.iter().map(|apart| apart.cache_line_ns).sum::<f64>() / 2.0
    }
}

/// One sample in so many makes it worth to look at those like it.
const GOOD_PART: usize = 6;

impl Report {
    /// What counts for a cell: the fit samples, or if there are none, all of them.
    pub(crate) fn figures<'a>(&'a self, peer: &str, test: Test, size: usize) -> Vec<&'a Figures> {
        let all: Vec<&Figures> = self.of(peer, test, size).map(|(_, figures)| figures).collect();
        let fit: Vec<&Figures> = all.iter().copied().filter(|figures| figures.fit).collect();
        if fit.is_empty() { all } else { fit }
    }

    /// The same with the figures of one distance only, for each distance that has a good part of them: figures of different ones have no median.
    pub(crate) fn by_distance(&self) -> Vec<(Distance, Report)> {
        let part = |distance: Distance| {
            let mut part = self.clone();
            part.samples.retain(|sample| sample.figures().is_none_or(|figures| distance.admits(figures.apart[0])));
            (distance, part)
        };
        let count = |report: &Report| report.samples.iter().filter(|sample| sample.figures().is_some()).count();
        let mut parts = vec![part(Distance::Near), part(Distance::Far), part(Distance::Shared)];
        parts.retain(|(_, part)| GOOD_PART * count(part) > count(self));
        parts
    }

    /// How many times as long as `other` the peer took, by rounds in which both are fit; the median.
    pub(crate) fn ratio(&self, peer: &str, other: &str, test: Test, size: usize) -> Option<f64> {
        let rounds = |name| -> BTreeMap<usize, f64> {
            let fit = self.of(name, test, size).filter(|(_, figures)| figures.fit);
            fit.map(|(round, figures)| (round, figures.ns_per_message())).collect()
        };
        let (ours, others) = (rounds(peer), rounds(other));
        median(ours.iter().filter_map(|(round, time)| Some(time / others.get(round)?)))
    }

    /// Why a cell is empty.
    pub(crate) fn obstacle<'a>(&'a self, peer: &str, test: Test, size: usize) -> Option<&'a str> {
        self.samples.iter().find_map(|sample| match &sample.outcome {
            Outcome::Failed(what) | Outcome::Refused(what) if sample.is(peer, test, size) => Some(what.as_str()),
            _ => None,
        })
    }

    /// All sizes of a test, from the smallest.
    pub(crate) fn sizes(&self, test: Test) -> Vec<usize> {
        let mut sizes: Vec<usize> =
            self.samples.iter().filter(|sample| sample.test == test).map(|sample| sample.size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn of<'a>(&'a self, peer: &str, test: Test, size: usize) -> impl Iterator<Item = (usize, &'a Figures)> {
        let there = self.samples.iter().filter(move |sample| sample.is(peer, test, size));
        there.filter_map(|sample| Some((sample.round, sample.figures()?)))
    }
}

impl Sample {
    fn figures(&self) -> Option<&Figures> {
        match &self.outcome {
            Outcome::Figures(figures) => Some(figures),
            Outcome::Failed(_) | Outcome::Refused(_) => None,
        }
    }

    fn is(&self, peer: &str, test: Test, size: usize) -> bool {
        self.peer == peer && self.test == test && self.size == size
    }
}

/// The middle value, or what is between the two middle ones.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let mid = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[mid]),
        _ => Some((values[mid - 1] + values[mid]) / 2.0),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Apart, Figures, Named, Outcome, Report, Sample, Setting, Test, median};
    use crate::traffic::{Flow, Spent};

    fn apart(cache_lines: [f64; 2]) -> [Apart; 2] {
        cache_lines.map(|cache_line_ns| Apart { cache_line_ns, slowdown: 1.0 })
    }

    fn sample(peer: &str, round: usize, nanos: u64, fit: bool) -> Sample {
        let flow = Flow { messages: 10, nanos, all_messages: 10 };
        let figures = Figures { apart: apart([100.0, 110.0]), fit, flow, spent: [Spent::default(); 2] };
        let outcome = Outcome::Figures(figures);
        Sample { peer: peer.into(), test: Test::OneWay, size: 8, round, attempt: 0, outcome }
    }

    pub(crate) fn report() -> Report {
        let setting = Setting {
            ringpipe: "0.0.0".into(),
            processor: "a processor".into(),
            kernel: "a kernel".into(),
            processors: [0, 1],
            rounds: 2,
            measured_ms: 1,
            idle_ms: 1,
            distance: "any".into(),
            load: ["0".into(), "0".into()],
            seconds: 1,
        };
        let named = |name: &str| Named { name: name.into(), in_place: false, threads: false };
        let samples = vec![
            sample("ringpipe", 0, 100, true),
            sample("slow", 0, 200, true),
            sample("ringpipe", 1, 1000, true),
            sample("slow", 1, 4000, true),
            sample("slow", 1, 9000, false),
            Sample { outcome: Outcome::Refused("too small".into()), size: 64, ..sample("slow", 0, 0, false) },
        ];
        Report { setting, peers: vec![named("ringpipe"), named("slow")], samples, memcpy: Vec::new() }
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn ratios_are_taken_within_rounds_and_from_what_is_fit() {
        assert_eq!(report().ratio("slow", "ringpipe", Test::OneWay, 8), Some(3.0));
        assert_eq!(report().figures("slow", Test::OneWay, 8).len(), 2);
    }

    #[test]
    fn figures_of_different_distances_are_told_apart() {
        let mut both = report();
        let Outcome::Figures(figures) = &mut both.samples[3].outcome else { panic!("there are figures") };
        figures.apart = apart([500.0, 510.0]);
        let parts = both.by_distance();
        let figures = |part: usize| parts[part].1.figures("slow", Test::OneWay, 8).len();
        assert_eq!((parts.len(), figures(0), figures(1)), (2, 1, 1));
        assert_eq!(report().by_distance().len(), 1);
    }

    #[test]
    fn json_comes_back_as_it_went() {
        let text = serde_json::to_string(&report()).unwrap();
        let again: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(again.samples.len(), 6);
        assert_eq!(again.obstacle("slow", Test::OneWay, 64), Some("too small"));
        assert_eq!(again.sizes(Test::OneWay), [8, 64]);
    }
}
