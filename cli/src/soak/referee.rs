//! One round, seen by the process that starts its sides: kills and stops them, notices when nobody gets on, and judges the outcome.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::soak::board::{Board, End, Role};
use crate::soak::clock::{nanos, now};
use crate::soak::patience::{LOST_IN_A_ROUND, OVERTIME, STALL, Start, UNNOTICED, judge_wakes};
use crate::soak::plan::{Plan, Shape, Who};
use crate::soak::process::{self, Reaped, Status};
use crate::soak::random::Random;
use crate::soak::report::Tally;
use crate::soak::script::Fate;
use crate::soak::side::{self, Ends};

/// How often the referee looks, and how often it looks for what the machine did to the others.
const TICK: Duration = Duration::from_millis(2);
const SAMPLE: u64 = 20_000_000;
const STEAL_SAMPLE: u64 = 100_000_000;
/// A thread that had to wait less than this for a processor did not have to wait.
const JITTER: u64 = 2_000_000;

struct Round<'a> {
    plan: &'a Plan,
    board: Arc<Board>,
    random: Random,
    start: u64,
    /// The children that were forked for the sides.
    sides: Vec<i32>,
    /// What is to happen, the next at the end.
    events: Vec<(u64, Event)>,
    stopped: Vec<(i32, u64)>,
    /// When the first kill was.
    first_kill: Option<Start>,
    kills: BTreeMap<i32, bool>,
    stops: u64,
    theft: Theft,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Kill(Who),
    Stop(Who, Duration),
    Continue(i32),
}

/// How far a direction has got, and since when.
struct Path {
    progress: u64,
    moved: Start,
}

/// Time that the machine kept from the processes of the round.
#[derive(Default)]
struct Theft {
    delays: BTreeMap<u64, u64>,
    sampled_at: u64,
    steal: Option<u64>,
    steal_sampled_at: u64,
}

/// Plays a round. An error describes a fault.
pub(crate) fn play(plan: &Plan) -> Result<Tally, String> {
    let before = process::open_descriptors().map_err(|e| e.to_string())?;
    let tally = Round::begin(plan)?.play()?;
    let after = process::open_descriptors().map_err(|e| e.to_string())?;
    if after != before {
        return Err(format!("{before} descriptors were open in this process before the round, {after} after it"));
    }
    Ok(tally)
}

impl Round<'_> {
    fn begin(plan: &Plan) -> Result<Round<'_>, String> {
        let fail = |what: &str, e: std::io::Error| format!("{what}: {e}");
        let board = Arc::new(Board::create().map_err(|e| fail("the round's own memory", e))?);
        let ends = match plan.shape {
            Shape::Simplex => plan.builder().simplex().map(|(r, s)| [Ends::Sender(s), Ends::Receiver(r)]),
            _ => plan.builder().pipe().map(|(a, b)| [Ends::Both(a), Ends::Both(b)]),
        };
        let mut ends = ends.map_err(|e| e.to_string())?.map(Some);
        let start = now();
        board.ends_at.store(start + nanos(plan.time), Ordering::SeqCst);
        let parent = std::process::id();
        let mut sides = Vec::new();
        for side in 0..2 {
            match process::fork().map_err(|e| fail("fork", e))? {
                Some(pid) => sides.push(pid),
                None => {
                    let mine = ends[side].take();
                    ends[1 - side].take();
                    if let Err(e) = process::die_with_parent(parent) {
                        board.accuse(&fail("prctl", e));
                    }
                    side::run(plan, &board, side, mine.expect("nobody else has taken it"))
                }
            }
        }
        drop(ends);
        let at = |time: Duration| start + nanos(time);
        let kills = plan.kills.iter().map(|&(who, time)| (at(time), Event::Kill(who)));
        let stops = plan.stops.iter().map(|stop| (at(stop.at), Event::Stop(stop.who, stop.time)));
        Ok(Round {
            plan,
            board,
            random: Random::new(plan.key(50)),
            start,
            sides,
            events: kills.chain(stops).collect(),
            stopped: Vec::new(),
            first_kill: None,
            kills: BTreeMap::new(),
            stops: 0,
            theft: Theft::default(),
        })
    }

    fn play(mut self) -> Result<Tally, String> {
        match self.watch() {
            Ok(()) => self.judge(),
            Err(fault) => {
                let state = self.state();
                self.end();
                Err(format!("{fault}\n{state}"))
            }
        }
    }

    /// Returns when all processes of the round have ended.
    fn watch(&mut self) -> Result<(), String> {
        let (mut progress, mut moved) = (0, Start::now(&self.board));
        let beginning = moved;
        let mut paths = [Path { progress: 0, moved }, Path { progress: 0, moved }];
        loop {
            loop {
                match process::reap().map_err(|e| format!("waitpid: {e}"))? {
                    Reaped::Ended(pid, status) => self.ended(pid, status)?,
                    Reaped::Nobody => break,
                    Reaped::Alone => return self.board.fault().map_or(Ok(()), Err),
                }
            }
            if let Some(fault) = self.board.fault() {
                return Err(fault);
            }
            self.act();
            let progress_now = self.board.progress();
            if progress_now != progress {
                (progress, moved) = (progress_now, Start::now(&self.board));
            }
            for (lane, path) in paths.iter_mut().enumerate() {
                self.watch_path(lane, path)?;
            }
            if moved.own_time(&self.board, now()) > nanos(STALL) {
                return Err(format!("nobody gets on any more, for {STALL:?}"));
            }
            if beginning.own_time(&self.board, now()) > nanos(self.plan.time + OVERTIME) {
                return Err(format!("the round does not end: {OVERTIME:?} more than it was to last"));
            }
            self.sleep();
        }
    }

    /// A direction in which nothing moved for long, and then went on: as if by itself, since parked sides look once a second.
    fn watch_path(&self, lane: usize, path: &mut Path) -> Result<(), String> {
        let words = &self.board.lanes[lane];
        let progress = words.progress();
        let has = |sends: bool| {
            let mut roles = self.board.roles().filter(move |role| is(role, Who { lane, sends }));
            roles.any(|role| role.left_at().is_none())
        };
        let is_long = self.plan.script(lane).len(words.tx.begun.load(Ordering::Relaxed).saturating_sub(1)) > 256 << 10;
        // Both are there and have something to do with each other, in messages that move at once.
        let counts = has(true) && has(false) && !is_long && self.stopped.is_empty();
        if progress == path.progress && counts {
            return Ok(());
        }
        if counts && !self.plan.may_go_unannounced(lane) {
            let stood = now() - path.moved.at;
            if path.moved.is_late(&self.board, stood) {
                return Err(format!(
                    "nothing moved in direction {lane} for {} ms, as if a wake-up was lost",
                    stood / 1_000_000
                ));
            }
        }
        *path = Path { progress, moved: Start::now(&self.board) };
        Ok(())
    }

    /// Does what is due.
    fn act(&mut self) {
        let due = now();
        let mut later = Vec::new();
        for (at, event) in std::mem::take(&mut self.events) {
            let done = at <= due
                && match event {
                    Event::Kill(who) => self.with_one(who, |round, pid| round.kill(pid)),
                    Event::Stop(who, time) => self.with_one(who, |round, pid| round.stop(pid, time)),
                    Event::Continue(pid) => {
                        self.resume(pid);
                        true
                    }
                };
            if !done {
                later.push((at, event));
            }
        }
        self.events.append(&mut later);
        if self.first_kill.is_some() {
            self.find_orphans();
        }
    }

    /// Picks a process that is doing this now. False if it is too early; too late is as good as done.
    fn with_one(&mut self, who: Who, mut act: impl FnMut(&mut Self, i32)) -> bool {
        let mut early = true;
        let mut pids = Vec::new();
        for role in self.board.roles().filter(|role| is(role, who)) {
            early = false;
            if role.end().is_none() && role.killed_at().is_none() {
                pids.push(role.pid());
            }
        }
        if !pids.is_empty() {
            let pid = self.random.pick(&pids);
            act(self, pid);
        }
        !early
    }

    fn kill(&mut self, pid: i32) {
        let first_kill = Start::now(&self.board);
        for role in self.board.roles().filter(|role| role.pid() == pid) {
            role.killed_at.store(first_kill.at, Ordering::SeqCst);
        }
        self.board.hurry.store(1, Ordering::SeqCst);
        process::signal(pid, libc::SIGKILL);
        self.first_kill.get_or_insert(first_kill);
        self.kills.insert(pid, false);
        self.find_orphans();
    }

    /// Senders whose receivers have gone go on until they notice. Asked again and again after a kill, since a copy of the victim may have
    /// been forked and not enlisted yet.
    fn find_orphans(&self) {
        for (lane, words) in self.board.lanes.iter().enumerate() {
            let mut receivers = self.board.roles().filter(|role| is(role, Who { lane, sends: false })).peekable();
            let is_orphaned = receivers.peek().is_some() && receivers.all(|role| role.left_at().is_some());
            words.tx.orphaned.store(u64::from(is_orphaned), Ordering::SeqCst);
        }
    }

    fn stop(&mut self, pid: i32, time: Duration) {
        if self.stopped.iter().any(|&(stopped, _)| stopped == pid) {
            return;
        }
        process::signal(pid, libc::SIGSTOP);
        self.stops += 1;
        self.stopped.push((pid, now()));
        self.events.push((now() + nanos(time), Event::Continue(pid)));
    }

    fn resume(&mut self, pid: i32) {
        if let Some(i) = self.stopped.iter().position(|&(stopped, _)| stopped == pid) {
            let (_, since) = self.stopped.swap_remove(i);
            // Before it goes on, so that nobody takes the time for the pipe's fault.
            self.board.stolen.fetch_add(now() - since, Ordering::SeqCst);
            process::signal(pid, libc::SIGCONT);
        }
    }

    fn ended(&mut self, pid: i32, status: Status) -> Result<(), String> {
        self.resume(pid);
        // From now on the number may be another process's.
        self.sides.retain(|&side| side != pid);
        self.events.retain(|(_, event)| !matches!(event, Event::Continue(of) if *of == pid));
        match (status, self.kills.get_mut(&pid)) {
            (Status::Exit(0), _) => Ok(()),
            (Status::Signal(libc::SIGKILL), Some(died)) => {
                *died = true;
                Ok(())
            }
            _ => Err(self.board.fault().unwrap_or_else(|| format!("process {pid} ended unexpectedly: {status:?}"))),
        }
    }

    fn sleep(&mut self) {
        let before = now();
        let next = self.events.iter().map(|&(at, _)| at.max(before + 20_000)).min().unwrap_or(u64::MAX);
        let time = nanos(TICK).min(next - before);
        thread::sleep(Duration::from_nanos(time));
        let after = now();
        let late = after - before - time;
        let mut stolen = if late > JITTER { late } else { 0 };
        if after - self.theft.sampled_at > SAMPLE {
            self.theft.sampled_at = after;
            stolen += self.theft.delays(&self.board);
        }
        if after - self.theft.steal_sampled_at > STEAL_SAMPLE {
            self.theft.steal_sampled_at = after;
            let steal = process::steal();
            stolen += steal - self.theft.steal.replace(steal).unwrap_or(steal).min(steal);
        }
        self.board.stolen.fetch_add(stolen, Ordering::SeqCst);
    }

    /// What everybody is doing, for a human.
    fn state(&self) -> String {
        let mut text = String::new();
        for role in self.board.roles() {
            let (lane, what) = (role.lane(), if role.sends() { "sends" } else { "receives" });
            let (pid, thread) = (role.pid(), role.thread());
            let life = match (role.end(), role.killed_at()) {
                (Some(end), _) => format!("{end:?}"),
                (None, Some(_)) => "killed".to_owned(),
                (None, None) => process::state(thread),
            };
            let _ = writeln!(text, "  process {pid}, thread {thread}, {what} in direction {lane}: {life}");
        }
        for (lane, words) in self.board.lanes.iter().enumerate().take(self.plan.directions()) {
            let (begun, resolved) = (words.tx.begun.load(Ordering::SeqCst), words.tx.resolved.load(Ordering::SeqCst));
            let next = words.tracker();
            let _ = writeln!(
                text,
                "  direction {lane}: {begun} messages begun, {resolved} done with, next to be received {:?}, cut {}",
                next.next(),
                words.rx.cuts.load(Ordering::SeqCst)
            );
        }
        let passed = Duration::from_nanos(now() - self.start);
        let stolen = Duration::from_nanos(self.board.stolen.load(Ordering::SeqCst));
        let _ = write!(text, "  {passed:.1?} after the start; the machine kept somebody from running for {stolen:.1?}");
        text
    }

    /// Ends all processes of a round that failed.
    fn end(&mut self) {
        // Again and again, since one may be forking.
        loop {
            let roles = self.board.roles().filter(|role| !self.kills.contains_key(&role.pid())).map(Role::pid);
            let pids: Vec<i32> = roles.chain(self.sides.iter().copied()).collect();
            for pid in pids {
                process::signal(pid, libc::SIGKILL);
            }
            loop {
                match process::reap() {
                    Ok(Reaped::Ended(pid, _)) => {
                        self.kills.insert(pid, true);
                        self.sides.retain(|&side| side != pid);
                    }
                    Ok(Reaped::Nobody) => break,
                    Ok(Reaped::Alone) | Err(_) => return,
                }
            }
            thread::sleep(TICK);
        }
    }

    // --- the judgement ------------------------------------------------------------------------------

    fn judge(&self) -> Result<Tally, String> {
        let board = &self.board;
        let died = |pid: i32| self.kills.get(&pid) == Some(&true);
        let mut tally = Tally {
            rounds: 1,
            kills: self.kills.values().filter(|&&died| died).count() as u64,
            stops: self.stops,
            forks: board.forks.load(Ordering::SeqCst),
            execs: board.execs.load(Ordering::SeqCst),
            closes: u64::from(self.plan.close.is_some()),
            storms: u64::from(self.plan.sides.iter().any(|side| side.storm.is_some())),
            ..Tally::default()
        };
        for role in board.roles() {
            if role.end().is_none() && !died(role.pid()) {
                return Err(format!("process {} ended without saying how\n{}", role.pid(), self.state()));
            }
        }
        for lane in 0..self.plan.directions() {
            self.judge_lane(lane).map_err(|fault| format!("direction {lane}: {fault}\n{}", self.state()))?;
            let words = &board.lanes[lane];
            tally.messages += words.rx.messages.load(Ordering::SeqCst);
            tally.bytes += words.rx.bytes.load(Ordering::SeqCst);
            tally.cuts += words.rx.cuts.load(Ordering::SeqCst);
            tally.send_timeouts += words.tx.timeouts.load(Ordering::SeqCst);
            tally.refusals += words.tx.retries.load(Ordering::SeqCst);
            tally.receive_timeouts += words.rx.timeouts.load(Ordering::SeqCst);
            tally.longest_wait = tally.longest_wait.max(words.rx.longest_wait.load(Ordering::SeqCst));
            let [wakes, slow, lost] =
                [&words.rx.wakes, &words.rx.slow_wakes, &words.rx.lost_wakes].map(|n| n.load(Ordering::SeqCst));
            tally.wakes += wakes;
            tally.slow_wakes += slow;
            tally.lost_wakes += lost;
            judge_wakes(lost, wakes, LOST_IN_A_ROUND)
                .map_err(|fault| format!("direction {lane}: {fault}\n{}", self.state()))?;
            for sends in [false, true] {
                self.judge_notice(lane, sends, &mut tally).map_err(|fault| format!("direction {lane}: {fault}"))?;
            }
        }
        Ok(tally)
    }

    fn judge_lane(&self, lane: usize) -> Result<(), String> {
        let words = &self.board.lanes[lane];
        let those = |sends: bool| self.board.roles().filter(move |role| is(role, Who { lane, sends }));
        // Who was killed before it came to anything is not on the board, but then the other side was not left without reason.
        let left = |sends: bool| those(sends).map(|role| role.left_at().unwrap_or(u64::MAX)).max();
        let gone = |sends: bool| those(sends).find(|role| role.end() == Some(End::Gone));

        if let (Some(role), Some(at)) = (gone(true), left(false)) {
            if those(false).any(|role| role.end() == Some(End::Gone)) {
                return Err("the receiver found the sender gone, and the sender the receiver".to_owned());
            }
            if role.ended_at() < at {
                return Err("the sender found the pipe broken before the receiver had gone".to_owned());
            }
        }
        if let Some(role) = gone(false) {
            if left(true).is_some_and(|at| role.ended_at() < at) {
                return Err("the receiver found end of file before the sender had gone".to_owned());
            }
            let (begun, resolved) = (words.tx.begun.load(Ordering::SeqCst), words.tx.resolved.load(Ordering::SeqCst));
            let tracker = words.tracker();
            let fate = |number| words.fate(number);
            let in_flight = begun > resolved && those(true).any(|role| role.killed_at().is_some());
            let ends = tracker.may_end_at(fate, resolved) || in_flight && tracker.may_end_at(fate, begun);
            if !ends {
                return Err(format!(
                    "end of file where message {:?} was next, though {resolved} messages were sent",
                    tracker.next()
                ));
            }
            if let Some(number) = words.rx.last_cut.load(Ordering::SeqCst).checked_sub(1) {
                let is_last = in_flight && number == resolved;
                if !is_last && fate(number) != Some(Fate::Doubtful) {
                    return Err(format!("message {number} was cut, but its sender was not killed"));
                }
            }
        }
        Ok(())
    }

    /// How soon these roles noticed that the other side was killed.
    fn judge_notice(&self, lane: usize, sends: bool, tally: &mut Tally) -> Result<(), String> {
        let those = |sends: bool| self.board.roles().filter(move |role| is(role, Who { lane, sends }));
        let Some(last) = those(!sends).max_by_key(|role| role.left_at()) else { return Ok(()) };
        let (Some(killed_at), Some(first)) = (last.killed_at(), self.first_kill) else { return Ok(()) };
        for role in those(sends).filter(|role| role.end() == Some(End::Gone)) {
            let took = role.ended_at().saturating_sub(killed_at);
            let own = took.min(first.own_time(&self.board, role.ended_at()));
            if own > nanos(UNNOTICED) {
                let took = Duration::from_nanos(took);
                return Err(format!(
                    "a SIGKILL was noticed after {took:?} only, on a machine that was not busy\n{}",
                    self.state()
                ));
            }
            if self.stops == 0 {
                tally.noticed.push(took / 1_000);
            }
        }
        Ok(())
    }
}

impl Theft {
    /// What threads had to wait for processors since the last time, if it was much.
    fn delays(&mut self, board: &Board) -> u64 {
        let mut stolen = 0;
        for role in board.roles().filter(|role| role.left_at().is_none()) {
            let delay = process::run_delay(role.thread());
            let before = self.delays.insert(role.thread(), delay).unwrap_or(0);
            let more = delay.saturating_sub(before);
            stolen += if more > JITTER { more } else { 0 };
        }
        stolen
    }
}

fn is(role: &Role, who: Who) -> bool {
    role.lane() == who.lane && role.sends() == who.sends
}
