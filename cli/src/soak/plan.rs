//! What a round is, drawn from the seed and the round's number, and from nothing else: every process of the round draws it anew.

use std::time::Duration;

use ringpipe::Builder;

use crate::soak::random::{Random, mix};
use crate::soak::script::{Script, Sizes};

/// A round.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) round: u64,
    pub(crate) shape: Shape,
    pub(crate) capacity: usize,
    pub(crate) spin: Spin,
    /// How long senders send.
    pub(crate) time: Duration,
    /// The directions: 0 from side 0 to side 1, 1 (of a duplex pipe) back.
    pub(crate) lanes: [Lane; 2],
    pub(crate) sides: [Side; 2],
    /// Everybody runs on this processor.
    pub(crate) pinned: Option<usize>,
    /// Whether clocks are read at every message, to find lost wake-ups; without, traffic is denser.
    pub(crate) clocked: bool,
    pub(crate) copy: Option<Copies>,
    pub(crate) close: Option<(Who, Duration)>,
    pub(crate) kills: Vec<(Who, Duration)>,
    pub(crate) stops: Vec<Stop>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One direction.
    Simplex,
    /// Two that have nothing to do with each other, each side with two threads...
    Threads,
    /// ...or with two processes.
    Processes,
    /// Two in which each side waits for the other in turn.
    PingPong,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Spin {
    Never,
    Default,
    Long,
    Ever,
}

#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) sizes: Sizes,
    pub(crate) send: Habit,
    pub(crate) receive: Habit,
}

/// How one role of a direction behaves.
#[derive(Clone, Debug)]
pub(crate) struct Habit {
    pub(crate) pace: Pace,
    /// Takes one kind of call all the time, instead of all kinds in turn.
    pub(crate) only: Option<u64>,
}

/// The rests between messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    FlatOut,
    /// Some 100 µs of busy waiting: the other side comes to the end of its spinning.
    Beats,
    /// About 5 ms: the other side passes from its futex to the bell.
    Naps,
    /// 0 to 10 ms.
    Rests,
    /// More than 5 ms: the other side parks.
    Parks,
}

#[derive(Clone, Debug)]
pub(crate) struct Side {
    /// The program is started anew and inherits its end.
    pub(crate) exec: bool,
    /// Signals, so far apart.
    pub(crate) storm: Option<Duration>,
}

/// The senders, or the receivers, of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) lane: usize,
    pub(crate) sends: bool,
}

/// One end that is copied in mid-traffic, and used in turn from then on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copies {
    pub(crate) of: Who,
    pub(crate) after: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) who: Who,
    pub(crate) at: Duration,
    pub(crate) time: Duration,
}

/// The choice, of a habit's kinds of calls, that is `send_bytes` or `recv_bytes`.
const PLAIN: u64 = 0;

impl Plan {
    pub(crate) fn draw(seed: u64, round: u64) -> Plan {
        let r = &mut Random::new(mix(seed, round));
        let shape = r.pick(&[
            Shape::Simplex,
            Shape::Simplex,
            Shape::Simplex,
            Shape::Threads,
            Shape::Processes,
            Shape::PingPong,
            Shape::PingPong,
        ]);
        let capacity = 4096_usize << r.pick(&[0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let spin = r.pick(&[Spin::Never, Spin::Never, Spin::Default, Spin::Default, Spin::Long, Spin::Ever]);
        // Long ones are rare, so that there are many.
        let time = r.pick(&[20_000, 60_000, 60_000, 150_000, 150_000, 400_000]);
        let time = r.micros(time / 4..=time);
        let lanes = [Lane::draw(r), Lane::draw(r)];
        let sides = [Side::draw(r), Side::draw(r)];
        let pinned = r.percent(12).then(|| r.below(64) as usize);
        let clocked = r.percent(75);
        let directions = if shape == Shape::Simplex { 1 } else { 2 };
        let who = |r: &mut Random| Who { lane: r.below(directions) as usize, sends: r.percent(50) };
        let at = |r: &mut Random| r.micros(0..=time.as_micros() as u64);
        let alone = matches!(shape, Shape::Simplex | Shape::Processes);
        let copy = (alone && r.percent(30)).then(|| Copies { of: who(r), after: at(r) / 3 });
        let mut kills = Vec::new();
        let mut close = None;
        match r.below(100) {
            // With copies, one of them mostly.
            0..55 => kills.push((copy.filter(|_| r.percent(80)).map_or_else(|| who(r), |copy| copy.of), at(r))),
            55..70 => close = Some((who(r), at(r))),
            _ => {}
        }
        if !kills.is_empty() && r.percent(12) {
            kills.push((who(r), at(r)));
        }
        let mut stops = Vec::new();
        while r.percent(14) {
            let longest = r.pick(&[2_000, 20_000, 20_000, 100_000, 100_000, 100_000, 100_000, 1_600_000]);
            stops.push(Stop { who: who(r), at: at(r), time: r.micros(longest / 4..=longest) });
        }
        let mut plan =
            Plan { seed, round, shape, capacity, spin, time, lanes, sides, pinned, clocked, copy, close, kills, stops };
        if r.percent(20) {
            plan.hunt_lost_wakes(r);
        } else if r.percent(20) {
            plan.hunt_torn_hand_overs(r);
        }
        plan
    }

    /// Makes the round one in which a copy of an end is killed at work, so that the other has to go on from between any two of its
    /// instructions. Most of these are few and hardly ever hit, so the round is short and does nothing else.
    fn hunt_torn_hand_overs(&mut self, r: &mut Random) {
        let of = Who { lane: 0, sends: r.percent(70) };
        self.shape = Shape::Simplex;
        self.time = Duration::from_millis(12);
        self.copy = Some(Copies { of, after: r.micros(0..=1_000) });
        self.kills = vec![(of, r.micros(2_000..=9_000))];
        self.close = None;
        self.stops.clear();
        self.clocked = false;
        for side in &mut self.sides {
            *side = Side { exec: false, storm: None };
        }
        let lane = &mut self.lanes[0];
        lane.sizes = r.pick(&[Sizes::Empty, Sizes::Tiny, Sizes::Tiny, Sizes::Edges]);
        lane.send.pace = Pace::FlatOut;
        lane.receive.pace = Pace::FlatOut;
        if r.percent(60) {
            // The shortest way through, so that the instructions that matter are many of all.
            lane.send.only = Some(PLAIN);
        }
    }

    /// Makes the round one in which each side waits for the other all the time, undisturbed: a lost wake-up has nothing to hide behind.
    fn hunt_lost_wakes(&mut self, r: &mut Random) {
        self.shape = Shape::PingPong;
        self.spin = r.pick(&[Spin::Never, Spin::Never, Spin::Default]);
        self.copy = None;
        self.stops.clear();
        self.clocked = true;
        if r.percent(70) {
            (self.kills, self.close) = (Vec::new(), None);
        }
        let sizes = r.pick(&[Sizes::Empty, Sizes::Tiny, Sizes::Small]);
        for lane in &mut self.lanes {
            lane.sizes = sizes;
            lane.receive.pace = Pace::FlatOut;
            lane.send.pace = r.pick(&[Pace::FlatOut, Pace::FlatOut, Pace::Naps]);
        }
    }

    pub(crate) fn builder(&self) -> Builder {
        let builder = Builder::new().capacity(self.capacity);
        match self.spin {
            Spin::Never => builder.spin(Duration::ZERO),
            Spin::Default => builder,
            Spin::Long => builder.spin(Duration::from_millis(3)),
            Spin::Ever => builder.spin(Duration::from_secs(1)),
        }
    }

    pub(crate) fn script(&self, lane: usize) -> Script {
        Script::new(self.key(lane as u64), self.lanes[lane].sizes, self.capacity)
    }

    /// A number for random choices of a role; nobody else's.
    pub(crate) fn key(&self, of: u64) -> u64 {
        mix(mix(self.seed, self.round), 1 + of)
    }

    /// The directions that this shape has.
    pub(crate) fn directions(&self) -> usize {
        if self.shape == Shape::Simplex { 1 } else { 2 }
    }

    /// Whether this end is one that is copied.
    pub(crate) fn is_copied(&self, who: Who) -> bool {
        self.copy.is_some_and(|copy| copy.of == who)
    }

    /// Whether a message may wait for its announcement: its sender was killed before that, and a copy of its end is silent.
    pub(crate) fn may_go_unannounced(&self, lane: usize) -> bool {
        let who = Who { lane, sends: true };
        self.is_copied(who) && self.kills.iter().any(|&(victim, _)| victim == who)
    }
}

impl Lane {
    fn draw(r: &mut Random) -> Lane {
        let sizes = r.pick(&[
            Sizes::Empty,
            Sizes::Tiny,
            Sizes::Tiny,
            Sizes::Small,
            Sizes::Small,
            Sizes::Small,
            Sizes::Edges,
            Sizes::Edges,
            Sizes::Edges,
            Sizes::Streamed,
            Sizes::Streamed,
            Sizes::Mixed,
            Sizes::Mixed,
            Sizes::Mixed,
            Sizes::Mixed,
        ]);
        let sizes = if r.percent(2) { Sizes::Huge } else { sizes };
        Lane { sizes, send: Habit::draw(r), receive: Habit::draw(r) }
    }
}

impl Pace {
    /// Messages of one turn, where copies of an end take turns, and until the next look around. Without rests often many, so that whoever is
    /// killed is killed at work.
    pub(crate) fn turn(self, r: &mut Random) -> u64 {
        if self == Pace::FlatOut && r.percent(50) { r.within(1..=5_000) } else { r.within(1..=40) }
    }
}

impl Habit {
    fn draw(r: &mut Random) -> Habit {
        use Pace::{Beats, FlatOut, Naps, Parks, Rests};
        let pace = r.pick(&[FlatOut, FlatOut, FlatOut, FlatOut, Beats, Beats, Naps, Rests, Rests, Parks]);
        let only = r.next();
        Habit { pace, only: r.percent(60).then_some(only) }
    }
}

impl Side {
    fn draw(r: &mut Random) -> Side {
        let exec = r.percent(8);
        let every = r.pick(&[100, 300, 1_000, 3_000]);
        Side { exec, storm: r.percent(15).then_some(Duration::from_micros(every)) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Plan, Shape};

    #[test]
    fn the_same_seed_draws_the_same_rounds_and_another_one_others() {
        let draw = |seed| (0..50).map(|round| format!("{:?}", Plan::draw(seed, round))).collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1));
        assert!(draw(1).iter().zip(draw(2)).all(|(a, b)| *a != b));
    }

    #[test]
    fn a_few_hundred_rounds_have_everything_in_them() {
        let plans: Vec<Plan> = (0..400).map(|round| Plan::draw(5, round)).collect();
        let count = |has: &dyn Fn(&Plan) -> bool| plans.iter().filter(|plan| has(plan)).count();
        assert!(count(&|plan| plan.kills.len() == 1) > 40);
        assert!(count(&|plan| plan.kills.len() == 2) > 5);
        assert!(count(&|plan| !plan.stops.is_empty()) > 20);
        assert!(count(&|plan| plan.copy.is_some()) > 20);
        assert!(count(&|plan| plan.close.is_some()) > 20);
        assert!(count(&|plan| plan.sides.iter().any(|side| side.exec)) > 20);
        assert!(count(&|plan| plan.sides.iter().any(|side| side.storm.is_some())) > 20);
        for shape in [Shape::Simplex, Shape::Threads, Shape::Processes, Shape::PingPong] {
            assert!(count(&|plan| plan.shape == shape) > 20, "{shape:?}");
        }
        for shift in 12..=20 {
            assert!(count(&|plan| plan.capacity == 1 << shift) > 5, "capacity 2^{shift}");
        }
    }
}
