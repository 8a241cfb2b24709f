//! Two links against each other, over a network that drops, doubles, delays, reorders and is cut, with a clock of its own; each seed is another history. What one side pushes has to come
//! out on the other: all of it in order if the link comes to its end, and otherwise a beginning of it.

use std::collections::BTreeMap;
use std::time::Duration;

use zenoh::bytes::ZBytes;

use super::{ACK_AFTER, Link, MANY, Over, Reason, SHORT, Settings};
use crate::packet::{Kind, MOST, Packet};

const WINDOW: u64 = 2 * MOST as u64;
const PATIENCE: Duration = Duration::from_secs(10);
const SETTINGS: Settings = Settings { window: WINDOW, patience: PATIENCE };

/// xorshift, so that a seed says everything.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How bad the network is: of a thousand packets, how many; and milliseconds.
#[derive(Clone, Copy, Debug)]
struct Weather {
    dropped: u64,
    doubled: u64,
    delay: u64,
    jitter: u64,
    /// Between the cuts, and how long one lasts, on average. 0 for no cuts.
    calm: u64,
    cut: u64,
}

/// A prime, so that no two segments of a size hold the same.
const PERIOD: u64 = 65_521;

/// What the streams consist of, again and again: long enough to cut a segment out of it at any place.
fn pattern() -> Vec<u8> {
    let mut random = Random::new(0);
    let once: Vec<u8> = (0..PERIOD).map(|_| random.below(256) as u8).collect();
    once.iter().copied().cycle().take(PERIOD as usize + MOST).collect()
}

/// A part of a side's stream.
fn part(pattern: &[u8], side: usize, from: u64, len: usize) -> &[u8] {
    let start = (from + 1000 * side as u64) % PERIOD;
    &pattern[start as usize..][..len]
}

/// What one side's user does with its link.
struct Side {
    link: Option<Link>,
    pushed: u64,
    /// How much it pushes in all.
    total: u64,
    /// Of the other side's stream.
    received: u64,
    /// Gives up receiving after so much, if ever.
    enough: Option<u64>,
    /// How many times a second it takes something out: slow ones make the other wait.
    appetite: u64,
}

struct World {
    random: Random,
    pattern: Vec<u8>,
    weather: Weather,
    now: Duration,
    sides: [Side; 2],
    /// A side at which nobody answers any more, not even a call.
    dead: Option<usize>,
    /// A side from which nothing arrives any more.
    mute: Option<usize>,
    /// Which side complained, and when.
    complaints: Vec<(usize, Duration)>,
    /// By the time of arrival, and a number that tells apart.
    flying: BTreeMap<(Duration, u64), (usize, Packet)>,
    flown: u64,
    cut_until: Duration,
    next_cut: Duration,
    packets: u64,
}

impl World {
    fn new(seed: u64, weather: Weather, totals: [u64; 2]) -> World {
        let mut random = Random::new(seed);
        let now = Duration::from_secs(1);
        let mut side = |total| Side {
            link: None,
            pushed: 0,
            total,
            received: 0,
            enough: None,
            appetite: [5, 50, 1000][random.below(3) as usize],
        };
        let mut sides = totals.map(&mut side);
        sides[0].link = Some(Link::call(SETTINGS, 1, 1000 + seed, ZBytes::from(vec![1]), now));
        World {
            random,
            pattern: pattern(),
            weather,
            now,
            sides,
            dead: None,
            mute: None,
            complaints: Vec::new(),
            flying: BTreeMap::new(),
            flown: 0,
            cut_until: Duration::ZERO,
            next_cut: now + Duration::from_millis(weather.calm),
            packets: 0,
        }
    }

    fn is_cut(&mut self) -> bool {
        if self.weather.calm == 0 {
            return false;
        }
        if self.now >= self.next_cut {
            self.cut_until = self.now + Duration::from_millis(self.random.below(2 * self.weather.cut) + 1);
            self.next_cut = self.cut_until + Duration::from_millis(self.random.below(2 * self.weather.calm) + 1);
            // What was on its way is gone.
            self.flying.clear();
        }
        self.now < self.cut_until
    }

    fn send(&mut self, from: usize, packet: Packet) {
        self.packets += 1;
        if self.is_cut() || self.mute == Some(from) {
            return;
        }
        let copies = if self.random.below(1000) < self.weather.doubled { 2 } else { 1 };
        for _ in 0..copies {
            if self.random.below(1000) < self.weather.dropped {
                continue;
            }
            let delay = self.weather.delay * 1000 + self.random.below(self.weather.jitter * 1000 + 1);
            self.flown += 1;
            self.flying.insert((self.now + Duration::from_micros(delay), self.flown), (1 - from, packet.clone()));
        }
    }

    fn output(&mut self, side: usize) {
        while let Some((packet, _)) = self.sides[side].link.as_mut().and_then(|link| link.poll_output(self.now)) {
            self.send(side, packet);
        }
        if self.sides[side].link.as_mut().is_some_and(|link| link.complaint(self.now)) {
            self.complaints.push((side, self.now));
        }
    }

    fn deliver(&mut self, to: usize, packet: Packet) {
        if self.dead == Some(to) {
            return;
        }
        let (now, head) = (self.now, packet.head.clone());
        if to == 1 && head.kind == Kind::Open {
            let known = self.sides[1].link.as_ref().is_some_and(|link| link.theirs == head.src);
            if !known {
                assert!(self.sides[1].link.is_none(), "one call was answered twice");
                self.sides[1].link = Some(Link::answer(SETTINGS, 2, 77, &head, now));
                return;
            }
        }
        if let Some(link) = &mut self.sides[to].link
            && (head.dst == link.ours() || head.kind == Kind::Open)
        {
            link.on_packet(packet, now);
        }
    }

    /// What the program at this side would do.
    fn act(&mut self, side: usize) {
        let now = self.now;
        let (me, other) = (&mut self.sides[side], 1 - side);
        let Some(link) = &mut me.link else { return };
        if side == 1 && !link.is_confirmed() {
            return;
        }
        // One byte more than the payload is the end of the stream.
        while me.pushed < me.total && link.room() > 0 {
            let most = link.room().min(MOST as u64).min(me.total - me.pushed);
            let len = if self.random.one_in(2) { most } else { 1 + self.random.below(most.min(3000)) };
            link.push(ZBytes::from(part(&self.pattern, side, me.pushed, len as usize)), now);
            me.pushed += len;
            if self.random.one_in(3) {
                break;
            }
        }
        assert!(link.out.written - link.out.acked <= WINDOW, "the sender keeps more than its window");
        let held = link.incoming.received - link.incoming.consumed;
        assert!(held <= WINDOW, "the receiver keeps {held} bytes");
        let pieces = link.incoming.queue.len();
        assert!(pieces as u64 <= 2 * held / SHORT as u64 + 2, "the receiver keeps {held} bytes in {pieces} pieces");
        if self.random.below(1000) < me.appetite
            && let Some(segment) = link.pop()
        {
            let right = segment.to_bytes() == part(&self.pattern, other, me.received, segment.len());
            assert!(right, "wrong bytes at {} of the stream to side {side}", me.received);
            me.received += segment.len() as u64;
            link.consumed(segment.len() as u64, now);
        }
        let total = self.sides[other].total;
        let me = &mut self.sides[side];
        assert!(me.received <= total);
        if me.received == total || me.enough.is_some_and(|enough| me.received >= enough) {
            me.link.as_mut().expect("it is there").close(now);
        }
    }

    /// Lets a millisecond pass.
    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        let was_cut = self.now < self.cut_until + Duration::from_millis(1);
        // The network says so when it is back, and sometimes when it is not.
        if was_cut && !self.is_cut() || self.weather.calm > 0 && self.random.one_in(5000) {
            self.sides.iter_mut().filter_map(|side| side.link.as_mut()).for_each(Link::on_reconnect);
        }
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (to, packet) = entry.remove();
            self.deliver(to, packet);
        }
        for side in 0..2 {
            self.act(side);
            self.output(side);
        }
    }

    fn run_until(&mut self, seconds: u64, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end && !done(self) {
            self.step();
        }
        done(self)
    }

    fn is_complete(&self) -> bool {
        self.sides.iter().all(|side| side.link.as_ref().is_some_and(Link::is_complete))
    }

    fn over(&self, side: usize) -> Option<Over> {
        self.sides[side].link.as_ref().and_then(Link::over)
    }

    /// Whether there is nothing more to come at either side.
    fn is_settled(&self) -> bool {
        let settled = |side: &Side| side.link.as_ref().is_none_or(|link| !link.is_alive());
        self.sides.iter().all(settled)
    }
}

/// Sizes of streams, small ones as a rule.
fn totals(random: &mut Random) -> [u64; 2] {
    [(); 2].map(|()| match random.below(4) {
        0 => 1,
        1 => 1 + random.below(1000),
        2 => 1 + random.below(MOST as u64),
        _ => 1 + random.below(8 * MOST as u64),
    })
}

fn seeds() -> std::ops::Range<u64> {
    // Set by who runs the long form.
    let count = std::env::var("RINGPIPE_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(200);
    0..count
}

fn bad_weather(random: &mut Random) -> Weather {
    Weather {
        dropped: [0, 10, 200][random.below(3) as usize],
        doubled: [0, 50, 500][random.below(3) as usize],
        delay: [0, 1, 80][random.below(3) as usize],
        jitter: [0, 3, 200][random.below(3) as usize],
        calm: [0, 300, 3000][random.below(3) as usize],
        cut: [50, 1000, 2500][random.below(3) as usize],
    }
}

#[test]
fn everything_arrives_once_and_in_order_whatever_the_network_does() {
    for seed in seeds() {
        let mut random = Random::new(seed + 1);
        let (weather, totals) = (bad_weather(&mut random), totals(&mut random));
        let mut world = World::new(seed, weather, totals);
        for side in 0..2 {
            // Slow readers take some minutes for the longest streams.
            world.sides[side].appetite = world.sides[side].appetite.max(50);
        }
        let arrived = world.run_until(3600, World::is_settled);
        let state = || format!("seed {seed}, {totals:?} bytes, {weather:?}, {} packets", world.packets);
        assert!(arrived, "stuck: {}", state());
        if world.is_complete() {
            for side in 0..2 {
                assert_eq!(world.sides[side].received, totals[1 - side], "{}", state());
            }
        } else {
            // Cuts follow upon each other so quickly that nothing may get through for ten seconds. It must be that, and nothing else.
            let lost = [0, 1].map(|side| world.over(side)).into_iter().flatten();
            assert!(lost.clone().all(|over| matches!(over, Over::Here(Reason::Lost) | Over::There(Reason::Lost))));
            assert!(weather.calm > 0 && weather.cut > 50, "lost: {}", state());
        }
    }
}

#[test]
fn a_short_cut_loses_nothing_and_a_long_one_ends_the_link_on_both_sides() {
    for seed in seeds() {
        let mut random = Random::new(seed + 1);
        let weather = Weather { dropped: 0, doubled: 0, delay: 1, jitter: 0, calm: 1_000_000_000, cut: 1 };
        let mut world = World::new(seed, weather, [8 * MOST as u64, 3 * MOST as u64]);
        let before = random.below(3000);
        world.run_until(60, |world| world.now >= Duration::from_millis(1000 + before));
        let short = random.one_in(2);
        let length = if short { random.below(9_000) } else { 11_000 };
        world.flying.clear();
        world.cut_until = world.now + Duration::from_millis(length);
        world.next_cut = Duration::MAX;
        world.sides.iter_mut().for_each(|side| side.appetite = 1000);
        let finished = world.is_complete();
        assert!(world.run_until(600, World::is_settled), "stuck: seed {seed}");
        if short || finished {
            assert!(world.is_complete(), "seed {seed}: a cut of {length} ms after {before} ms");
        } else {
            let ends = [0, 1].map(|side| world.over(side));
            let is_lost = |over: &Option<Over>| *over == Some(Over::Here(Reason::Lost));
            // Where the last word of one was lost, that one has come to its end; and the call may not have arrived.
            let is_right =
                |side: usize| is_lost(&ends[side]) || world.sides[side].link.as_ref().is_none_or(Link::is_complete);
            assert!(ends.iter().any(is_lost) && is_right(0) && is_right(1), "seed {seed}: {ends:?} after {before} ms");
        }
    }
}

#[test]
fn who_wants_no_more_stops_the_sender_and_nothing_else() {
    for seed in seeds() {
        let mut random = Random::new(seed + 1);
        let mut weather = bad_weather(&mut random);
        (weather.dropped, weather.calm) = (weather.dropped.min(10), 0);
        let totals = [8 * MOST as u64, 1 + random.below(8 * MOST as u64)];
        let mut world = World::new(seed, weather, totals);
        world.sides.iter_mut().for_each(|side| side.appetite = 1000);
        world.sides[1].enough = Some(random.below(MOST as u64));
        assert!(world.run_until(600, World::is_complete), "stuck: seed {seed}, {weather:?}");
        assert_eq!(world.sides[0].received, totals[1], "seed {seed}: the other direction goes on to its end");
        assert!(world.sides[0].pushed < totals[0], "seed {seed}: the sender was not stopped");
    }
}

#[test]
fn a_side_that_is_gone_is_missed_and_what_came_from_it_stays() {
    for seed in seeds() {
        let mut random = Random::new(seed + 1);
        let weather = bad_weather(&mut random);
        let mut world = World::new(seed, weather, [8 * MOST as u64; 2]);
        world.run_until(1 + random.below(5), |_| false);
        if world.is_settled() {
            continue;
        }
        // Killed, with all that it knew; there is nobody in its place.
        let dead = random.below(2) as usize;
        world.dead = Some(dead);
        world.sides[dead].link = None;
        world.sides[dead].total = world.sides[dead].pushed;
        let limit = world.now + PATIENCE + Duration::from_secs(2);
        // The call had not arrived.
        if world.sides[1 - dead].link.is_none() {
            continue;
        }
        let end = |world: &World| {
            world.over(1 - dead).is_some() || world.sides[1 - dead].link.as_ref().unwrap().is_complete()
        };
        world.weather.jitter = 0;
        assert!(world.run_until(60, end), "stuck: seed {seed}");
        assert!(world.now <= limit, "seed {seed}: it took until {:?}", world.now);
    }
}

#[test]
fn both_sides_complain_in_time_if_one_is_not_heard() {
    for seed in seeds() {
        let mut random = Random::new(seed + 1);
        let weather = Weather { dropped: 0, doubled: 0, delay: 5, jitter: 0, calm: 0, cut: 0 };
        let mut world = World::new(seed, weather, [8 * MOST as u64; 2]);
        let is_idle = random.one_in(2);
        if is_idle {
            world.sides.iter_mut().for_each(|side| side.pushed = side.total);
        }
        let before = random.below(9_000);
        world.run_until(60, |world| world.now >= Duration::from_millis(1000 + before));
        if world.is_settled() {
            continue;
        }
        assert_eq!(world.complaints, [], "seed {seed}: there was no reason");
        let (start, mute) = (world.now, random.below(2) as usize);
        world.mute = Some(mute);
        // One that has come to its end has nothing to complain of, and one that was never called cannot.
        let is_content = |world: &World, side: usize| {
            let has_complained = world.complaints.iter().any(|&(who, _)| who == side);
            has_complained || world.sides[side].link.as_ref().is_none_or(Link::is_complete)
        };
        assert!(world.run_until(7, |world| is_content(world, 0) && is_content(world, 1)), "seed {seed}");
        for (side, at) in std::mem::take(&mut world.complaints) {
            // The one that is not heard learns it from the other.
            let silent = at.saturating_sub(start);
            assert!(
                silent >= PATIENCE / 4 && silent <= PATIENCE / 2 + Duration::from_millis(300),
                "seed {seed}: {side}, {silent:?}"
            );
        }
        // There is a way again.
        world.mute = None;
        world.sides.iter_mut().filter_map(|side| side.link.as_mut()).for_each(Link::on_reconnect);
        world.run_until(1, |_| false);
        world.complaints.clear();
        if is_idle {
            world.run_until(30, |_| false);
            assert!((0..2).all(|side| world.over(side).is_none()), "seed {seed}");
        } else {
            assert!(world.run_until(600, World::is_complete), "stuck: seed {seed}");
        }
        assert_eq!(world.complaints, [], "seed {seed}: all is well again");
    }
}

#[test]
fn an_idle_link_stays_and_says_little() {
    let weather = Weather { dropped: 0, doubled: 0, delay: 5, jitter: 0, calm: 0, cut: 0 };
    let mut world = World::new(0, weather, [1, 1]);
    // Never closed.
    world.sides.iter_mut().for_each(|side| (side.total, side.pushed) = (u64::MAX, u64::MAX));
    world.run_until(5, |_| false);
    let before = world.packets;
    world.run_until(1000, |_| false);
    assert!((0..2).all(|side| world.over(side).is_none()));
    // A ping and its answer in each 2.5 seconds.
    let said = world.packets - before;
    assert!((700..=900).contains(&said), "{said} packets");
}

#[test]
fn a_receiver_that_does_not_receive_stops_the_sender_for_as_long_as_it_likes() {
    let weather = Weather { dropped: 0, doubled: 0, delay: 5, jitter: 0, calm: 0, cut: 0 };
    let mut world = World::new(3, weather, [8 * MOST as u64, 1]);
    world.sides[1].appetite = 0;
    world.run_until(300, |_| false);
    assert!((0..2).all(|side| world.over(side).is_none()));
    // One window in the receiver, and nothing of the second beyond what the sender may keep.
    assert!(world.sides[0].pushed <= 2 * WINDOW, "{}", world.sides[0].pushed);
    world.sides[1].appetite = 1000;
    assert!(world.run_until(10, World::is_complete));
}

/// A link that has called, and one that has answered, each with the packet by which it did. The caller has the answer already.
fn called(now: Duration) -> [(Link, Packet); 2] {
    let mut caller = Link::call(SETTINGS, 1, 10, ZBytes::from(vec![1]), now);
    let (open, _) = caller.poll_output(now).unwrap();
    let mut callee = Link::answer(SETTINGS, 2, 20, &open.head, now);
    let (answer, _) = callee.poll_output(now).unwrap();
    caller.on_packet(answer.clone(), now);
    [(caller, open), (callee, answer)]
}

#[test]
fn a_call_that_comes_again_later_is_never_confirmed() {
    let now = Duration::from_secs(1);
    let [(mut caller, open), (mut callee, _)] = called(now);
    callee.on_packet(caller.poll_output(now).unwrap().0, now);
    assert!(callee.is_confirmed());
    // The same call, after all has been forgotten.
    let mut again = Link::answer(SETTINGS, 2, 21, &open.head, now);
    caller.on_packet(again.poll_output(now).unwrap().0, now);
    caller.on_reconnect();
    while let Some((packet, _)) = caller.poll_output(now) {
        assert_eq!(packet.head.dst, 20);
    }
    assert!(!again.is_confirmed());
    assert_eq!(caller.over(), None);
}

#[test]
fn packets_of_others_and_impossible_ones_do_no_harm() {
    let now = Duration::from_secs(1);
    let [(mut caller, _), (_callee, answer)] = called(now);
    // Another link's reset.
    let mut strange = answer.clone();
    (strange.head.src, strange.head.kind) = (99, Kind::Reset);
    caller.on_packet(strange, now);
    assert_eq!(caller.over(), None);
    // More than the window.
    for start in 0..5 {
        let mut packet = answer.clone();
        (packet.head.offset, packet.payload) = (start * MOST as u64, ZBytes::from(vec![0; MOST]));
        caller.on_packet(packet, now);
    }
    assert_eq!(caller.incoming.received, WINDOW, "what does not fit is thrown away");
    // An acknowledgement of what was never sent.
    let mut packet = answer;
    packet.head.ack = 1;
    caller.on_packet(packet, now);
    assert_eq!(caller.over(), Some(Over::Here(Reason::Nonsense)));
}

#[test]
fn many_short_segments_take_little_more_memory_than_their_bytes() {
    let now = Duration::from_secs(1);
    let [(mut caller, _), (mut callee, _)] = called(now);
    callee.on_packet(caller.poll_output(now).unwrap().0, now);
    let pattern = pattern();
    let (mut pushed, mut number) = (0, 0);
    let mut push = |caller: &mut Link, len: usize| {
        caller.push(ZBytes::from(part(&pattern, 0, pushed, len)), now);
        pushed += len as u64;
    };
    // Nothing is acknowledged meanwhile.
    while caller.room() > 0 {
        number += 1;
        push(&mut caller, 1 + number % 20);
    }
    assert_eq!(number, MANY, "there may be so many without acknowledgement");
    while let Some((packet, _)) = caller.poll_output(now) {
        callee.on_packet(packet, now);
    }
    // The first by itself, and the others put together.
    assert!(callee.incoming.queue.len() <= 2, "{} buffers", callee.incoming.queue.len());
    // A long one comes behind them, and one more behind that.
    caller.on_packet(callee.poll_output(now + ACK_AFTER).unwrap().0, now);
    push(&mut caller, SHORT);
    push(&mut caller, 1);
    while let Some((packet, _)) = caller.poll_output(now) {
        callee.on_packet(packet, now);
    }
    let mut received = 0;
    while let Some(segment) = callee.pop() {
        assert!(segment.to_bytes() == part(&pattern, 0, received, segment.len()), "wrong bytes at {received}");
        received += segment.len() as u64;
    }
    assert_eq!(received, pushed);
    assert!(!callee.has_something());
}
