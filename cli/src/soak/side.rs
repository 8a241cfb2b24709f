//! The processes at the two ends of a pipe.

use std::convert::Infallible;
use std::env;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ringpipe::{Connection, End as _, Receiver, Sender};
use rustix::fs::{FlockOperation, flock};

use crate::soak::board::{Board, End, Role};
use crate::soak::clock::{nanos, now};
use crate::soak::plan::{Copies, Pace, Plan, Shape, Who};
use crate::soak::process;
use crate::soak::random::{Random, mix};
use crate::soak::receive::{Got, Rx};
use crate::soak::send::{Over, Tx, rest};

/// The hidden command of a side that is started anew.
pub(crate) const NAME: &str = "soak-side";
/// Where it finds its end.
const VARIABLE: &str = "RINGPIPE_SOAK_SIDE";

/// What one side holds of the pipe.
pub(crate) enum Ends {
    Both(Connection),
    Sender(Sender),
    Receiver(Receiver),
}

/// Runs a side in a process that was forked for it, and ends the process.
pub(crate) fn run(plan: &Plan, board: &Arc<Board>, side: usize, ends: Ends) -> ! {
    let accuser = Arc::clone(board);
    std::panic::set_hook(Box::new(move |info| accuser.accuse(&format!("side {side}: {info}"))));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        if plan.sides[side].exec && env::var_os(VARIABLE).is_none() {
            return start_anew(plan, board, side, ends).map(|never| match never {});
        }
        perform(plan, board, side, ends)
    }));
    match outcome {
        Ok(Ok(())) => process::exit(0),
        Ok(Err(fault)) => {
            board.accuse(&format!("side {side}: {fault}"));
            process::exit(1)
        }
        Err(_) => process::exit(101),
    }
}

/// Replaces this process by the program started anew, which inherits the end.
fn start_anew(plan: &Plan, board: &Board, side: usize, ends: Ends) -> Result<Infallible, String> {
    board.execs.fetch_add(1, Ordering::SeqCst);
    let fd = board.fd();
    let mut command = Command::new("/proc/self/exe");
    command.args([NAME, &plan.seed.to_string(), &plan.round.to_string(), &side.to_string(), &fd.to_string()]);
    match ends {
        Ends::Both(end) => end.inherit(&mut command, VARIABLE),
        Ends::Sender(end) => end.inherit(&mut command, VARIABLE),
        Ends::Receiver(end) => end.inherit(&mut command, VARIABLE),
    }
    let pass_on = move || {
        // SAFETY: the board is open as long as this process runs.
        let board = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok(rustix::io::fcntl_setfd(board, rustix::io::FdFlags::empty())?)
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(pass_on) };
    Err(format!("cannot start anew: {}", command.exec()))
}

/// The program, started anew as one side of a round. Returns only with a fault that cannot be noted on the board.
pub(crate) fn resume(seed: u64, round: u64, side: usize, board: RawFd) -> Result<Infallible, String> {
    if side > 1 || env::var_os(VARIABLE).is_none() {
        return Err("this command is for `ringpipe soak` itself".to_owned());
    }
    // SAFETY: the number was passed by `start_anew`, for the board, and nobody has used it yet.
    let board = Arc::new(unsafe { Board::inherited(board) }.map_err(|e| e.to_string())?);
    let plan = Plan::draw(seed, round);
    let ends = match (plan.shape, side) {
        (Shape::Simplex, 0) => Sender::from_env(VARIABLE).map(Ends::Sender),
        (Shape::Simplex, _) => Receiver::from_env(VARIABLE).map(Ends::Receiver),
        _ => Connection::from_env(VARIABLE).map(Ends::Both),
    };
    match ends {
        Ok(ends) => run(&plan, &board, side, ends),
        Err(e) => {
            board.accuse(&format!("side {side}: the end inherited: {e:?}"));
            process::exit(1)
        }
    }
}

fn perform(plan: &Plan, board: &Board, side: usize, ends: Ends) -> Result<(), String> {
    if let Some(every) = plan.sides[side].storm {
        process::start_storm(every).map_err(|e| format!("setitimer: {e}"))?;
    }
    let (to, from) = (side, 1 - side);
    match (ends, plan.shape) {
        (Ends::Sender(sender), _) => send_all(plan, board, to, sender),
        (Ends::Receiver(receiver), _) => receive_all(plan, board, from, receiver),
        (Ends::Both(connection), Shape::PingPong) => ping_pong(plan, board, side, connection),
        (Ends::Both(connection), Shape::Processes) => {
            let (sender, receiver) = connection.split();
            match process::fork().map_err(|e| format!("fork: {e}"))? {
                None => {
                    drop(sender);
                    receive_all(plan, board, from, receiver)
                }
                Some(_) => {
                    drop(receiver);
                    send_all(plan, board, to, sender)
                }
            }
        }
        (Ends::Both(connection), _) => {
            let (sender, receiver) = connection.split();
            thread::scope(|scope| {
                let sending = scope.spawn(|| send_all(plan, board, to, sender));
                let received = receive_all(plan, board, from, receiver);
                received.and(sending.join().unwrap_or_else(|_| Err("the sending thread panicked".to_owned())))
            })
        }
    }
}

/// When this role ends by its own choice.
fn ends_at(plan: &Plan, board: &Board, who: Who) -> u64 {
    let all = board.ends_at.load(Ordering::SeqCst);
    match plan.close {
        Some((closer, at)) if closer == who => all - nanos(plan.time) + nanos(at),
        // Receivers go on until end of file.
        _ if who.sends => all,
        _ => u64::MAX,
    }
}

fn send_all(plan: &Plan, board: &Board, lane: usize, mut sender: Sender) -> Result<(), String> {
    let who = Who { lane, sends: true };
    let tx = &mut Tx::new(plan, board, lane);
    let mut turns = Turns::new(plan, board, who);
    let mut ends_at = ends_at(plan, board, who);
    let mut others = turns.other_random();
    loop {
        if turns.are_to_fork() && turns.fork()? {
            tx.random = turns.other_random();
            // Often one copy is closed long before the other.
            ends_at = ends_at.min(now() + tx.random.below(nanos(plan.time)));
        }
        let lane = tx.lane;
        let turn = turns.take(&lane.tx.turn)?;
        if turn.after_a_kill {
            tx.take_over();
        }
        for _ in 0..tx.pace.turn(&mut tx.random) {
            let looks = tx.pace != Pace::FlatOut || lane.tx.begun.load(Ordering::Relaxed) % 8 == 0;
            if looks && now() >= ends_at && tx.lane.tx.orphaned.load(Ordering::SeqCst) == 0 {
                turns.role.ends(End::Finished);
                return Ok(());
            }
            rest(board, tx.pace, &mut tx.random);
            match tx.one(&mut sender) {
                Ok(()) => {}
                Err(Over::Broken) => {
                    turns.role.ends(End::Gone);
                    return tx.confirm_broken(&mut sender);
                }
                Err(Over::Fault(fault)) => return Err(fault),
            }
        }
        drop(turn);
        turns.let_others(&mut others);
    }
}

fn receive_all(plan: &Plan, board: &Board, lane: usize, mut receiver: Receiver) -> Result<(), String> {
    let who = Who { lane, sends: false };
    let rx = &mut Rx::new(plan, board, lane);
    let mut turns = Turns::new(plan, board, who);
    let ends_at = ends_at(plan, board, who);
    let mut others = turns.other_random();
    loop {
        if turns.are_to_fork() && turns.fork()? {
            rx.become_copy(turns.other_random());
        }
        let lane = rx.lane;
        let turn = turns.take(&lane.rx.turn)?;
        if turns.is_shared() {
            rx.refresh(turn.after_a_kill);
        }
        for _ in 0..rx.turn() {
            if now() >= ends_at {
                turns.role.ends(End::Finished);
                return Ok(());
            }
            rx.rest();
            if let Got::EndOfFile = rx.one(&mut receiver, ends_at)? {
                turns.role.ends(End::Gone);
                return rx.confirm_end(&mut receiver);
            }
        }
        drop(turn);
        turns.let_others(&mut others);
    }
}

/// Both sides send some messages, and wait for as many, in turn.
fn ping_pong(plan: &Plan, board: &Board, side: usize, connection: Connection) -> Result<(), String> {
    let (mut sender, mut receiver) = connection.split();
    let (tx, rx) = (&mut Tx::new(plan, board, side), &mut Rx::new(plan, board, 1 - side));
    let (sends, receives) = (board.enlist(side, true), board.enlist(1 - side, false));
    let (sending, receiving) = (Who { lane: side, sends: true }, Who { lane: 1 - side, sends: false });
    let mut ends = ends_at(plan, board, receiving);
    // The first side says when it is enough; the other ends with it.
    if side == 0 || plan.close.is_some_and(|(closer, _)| closer == sending) {
        ends = ends.min(ends_at(plan, board, sending));
    }
    for turn in 0.. {
        if now() >= ends && tx.lane.tx.orphaned.load(Ordering::SeqCst) == 0 {
            sends.ends(End::Finished);
            receives.ends(End::Finished);
            return Ok(());
        }
        let messages = 1 + mix(plan.key(30), turn) % 3;
        for half in 0..2 {
            for _ in 0..messages {
                if half == side {
                    rest(board, tx.pace, &mut tx.random);
                    match tx.one(&mut sender) {
                        Ok(()) => continue,
                        Err(Over::Fault(fault)) => return Err(fault),
                        Err(Over::Broken) => sends.ends(End::Gone),
                    }
                } else {
                    rx.rest();
                    match rx.one(&mut receiver, u64::MAX)? {
                        Got::EndOfFile => receives.ends(End::Gone),
                        Got::Message | Got::Nothing => continue,
                    }
                }
                // The other side has gone, so both directions end.
                while receives.end().is_none() {
                    if let Got::EndOfFile = rx.one(&mut receiver, u64::MAX)? {
                        receives.ends(End::Gone);
                    }
                }
                while sends.end().is_none() {
                    match tx.one(&mut sender) {
                        Ok(()) => {}
                        Err(Over::Broken) => sends.ends(End::Gone),
                        Err(Over::Fault(fault)) => return Err(fault),
                    }
                }
                rx.confirm_end(&mut receiver)?;
                return tx.confirm_broken(&mut sender);
            }
        }
    }
    Ok(())
}

/// Copies of an end that take turns, under a lock that the kernel gives back when its holder dies.
struct Turns<'a> {
    board: &'a Board,
    who: Who,
    role: &'a Role,
    /// When to make a copy, unless it has been made.
    fork_at: Option<u64>,
    lock: Option<OwnedFd>,
    key: u64,
}

/// One copy's turn; over when it is dropped.
struct Turn<'t> {
    /// The last one whose turn it was, was killed.
    after_a_kill: bool,
    held: Option<(&'t OwnedFd, &'t AtomicU64)>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some((lock, holder)) = self.held {
            holder.store(0, Ordering::SeqCst);
            // Should it fail, the others wait for ever, and the referee will say so.
            let _ = flock(lock, FlockOperation::Unlock);
        }
    }
}

impl<'a> Turns<'a> {
    fn new(plan: &Plan, board: &'a Board, who: Who) -> Turns<'a> {
        let start = board.ends_at.load(Ordering::SeqCst) - nanos(plan.time);
        let fork_at = |copy: Copies| (copy.of == who).then(|| start + nanos(copy.after));
        let role = board.enlist(who.lane, who.sends);
        Turns { board, who, role, fork_at: plan.copy.and_then(fork_at), lock: None, key: plan.key(40) }
    }

    fn is_shared(&self) -> bool {
        self.lock.is_some()
    }

    fn are_to_fork(&self) -> bool {
        self.fork_at.is_some_and(|at| now() >= at)
    }

    /// Makes a copy of this process and its end. True in the copy.
    fn fork(&mut self) -> Result<bool, String> {
        self.fork_at = None;
        let is_copy = process::fork().map_err(|e| format!("fork: {e}"))?.is_none();
        if is_copy {
            self.board.forks.fetch_add(1, Ordering::SeqCst);
            self.role = self.board.enlist(self.who.lane, self.who.sends);
        }
        self.lock = Some(self.board.lock_file().map_err(|e| format!("the lock: {e}"))?);
        Ok(is_copy)
    }

    /// For the copy, which would otherwise choose as the original does.
    fn other_random(&self) -> Random {
        Random::new(self.key)
    }

    /// Waits for this copy's turn. `holder` says whose turn it is.
    fn take<'t>(&'t self, holder: &'t AtomicU64) -> Result<Turn<'t>, String> {
        let Some(lock) = &self.lock else {
            return Ok(Turn { after_a_kill: false, held: None });
        };
        loop {
            match flock(lock, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(format!("flock: {e}")),
            }
        }
        let last = holder.swap(u64::from(std::process::id()), Ordering::SeqCst);
        Ok(Turn { after_a_kill: last != 0, held: Some((lock, holder)) })
    }

    fn let_others(&self, random: &mut Random) {
        if self.is_shared() {
            thread::sleep(random.micros(0..=300));
        }
    }
}
