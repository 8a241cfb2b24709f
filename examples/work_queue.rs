//! A queue of tasks for worker processes, which are killed at random moments meanwhile and replaced; every task is answered all the same.
//!
//! ```sh
//! cargo run --release --example work_queue -- --tasks 20000 --workers 4 --kills 40
//! ```
//!
//! Tasks go to the workers over one pipe for many, and answers come back over another. What the pipes guarantee: a task goes to one worker only, an
//! answer arrives whole or not at all, and a worker that is killed, at whatever instruction, never stops the others. What they do not: **a task
//! that a killed worker had taken is gone**. Nobody can tell whether it was done, so it is for the queue's user to send it again, and to put up with
//! a second answer:
//!
//! - A task counts as done when its answer is here, not when it was sent.
//! - A worker takes one task, answers it, and takes the next. So each that is killed loses one task at most.
//! - Once no task waits in the pipe, those without an answer are lost, or still with a worker, or answered on their way to us. When they are no
//!   more than the workers that died, all may be lost, so all are sent again. Where one was not, a second answer comes, and is dropped.
//!
//! Work whose effects must not happen twice needs more than a queue can give: a worker that looks whether it has been done before.

use std::collections::{BTreeSet, VecDeque};
use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::Duration;

use ringpipe::mpmc::{self, Receiver, Sender};
use ringpipe::{End, RecvError, SendError};

/// The environment variables through which a worker finds its ends.
const TASKS: &str = "WORK_QUEUE_TASKS";
const ANSWERS: &str = "WORK_QUEUE_ANSWERS";

/// The first number to be factored: hard enough to keep a worker busy for some tens of microseconds, with factors that are easy to check.
const FIRST: u64 = 10_000_000_000;

/// How long the main program waits for an answer before it looks after its workers.
const TICK: Duration = Duration::from_millis(20);

// Not private, so that an example of the bridge can run the whole of this with its workers on another host.
pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => worker(),
        _ => queue(&Options::parse(std::env::args().skip(1))?),
    }
}

fn worker() -> Result<(), Box<dyn Error>> {
    let tasks = Receiver::from_env(TASKS)?;
    let answers = Sender::from_env(ANSWERS)?;
    loop {
        match tasks.recv::<u64>() {
            Ok(number) => answers.send(&(number, factors(number)))?,
            // The main program has closed its end, or is dead: no more will come.
            Err(RecvError::Disconnected) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn factors(mut number: u64) -> Vec<u64> {
    let mut factors = Vec::new();
    let mut divisor = 2;
    while divisor * divisor <= number {
        while number % divisor == 0 {
            factors.push(divisor);
            number /= divisor;
        }
        divisor += 1;
    }
    factors.push(number);
    factors
}

fn queue(options: &Options) -> Result<(), Box<dyn Error>> {
    let (take, tasks) = mpmc::simplex()?;
    let (answers, answer) = mpmc::simplex()?;
    // The workers' ends stay here too, for those workers that are yet to be started.
    let mut pool = Pool { take, answer, workers: Vec::new(), died: 0 };
    for _ in 0..options.workers {
        let worker = pool.start()?;
        pool.workers.push(worker);
    }

    let numbers = FIRST..FIRST + options.tasks;
    let mut to_send: VecDeque<u64> = numbers.clone().collect();
    let mut unanswered: BTreeSet<u64> = numbers.collect();
    // How many are to be answered before the next kill, the last of them first.
    let mut kill_at: Vec<u64> = (0..options.kills).map(|_| random(options.tasks)).collect();
    kill_at.sort_unstable_by(|a, b| b.cmp(a));
    // Of the workers that died, as many have had what they may have lost sent again.
    let mut made_up_for = 0;
    let (mut sent_again, mut answered_twice) = (0, 0);

    while !unanswered.is_empty() {
        // Without waiting for room: while we wait, nobody would take the answers, and the workers might be waiting for that.
        while let Some(task) = to_send.front() {
            match tasks.try_send(task) {
                Ok(()) => to_send.pop_front(),
                Err(SendError::Full) => break,
                Err(e) => return Err(e.into()),
            };
        }
        match answers.recv_timeout(TICK) {
            Ok(answer) => answered_twice += u64::from(!unanswered.remove(&checked(answer)?)),
            Err(RecvError::TimedOut) => {}
            Err(e) => return Err(e.into()),
        }
        let answered = options.tasks - unanswered.len() as u64;
        while kill_at.last().is_some_and(|&at| at <= answered) {
            kill_at.pop();
            pool.kill_one()?;
            pool.replace_the_dead()?;
        }
        // Somebody else may kill workers as well.
        pool.replace_the_dead()?;
        if to_send.is_empty() && unanswered.len() <= pool.died - made_up_for && tasks.is_empty() {
            sent_again += unanswered.len();
            to_send.extend(&unanswered);
            made_up_for = pool.died;
        }
    }

    // End of file for the workers, after what may be left of the tasks that were sent again; and then, the last copy of the workers' ends being
    // theirs, end of file for us.
    drop(tasks);
    let Pool { take, answer, workers, died } = pool;
    drop((take, answer));
    loop {
        match answers.recv() {
            Ok(answer) => {
                checked(answer)?;
                answered_twice += 1;
            }
            Err(RecvError::Disconnected) => break,
            Err(e) => return Err(e.into()),
        }
    }
    for mut worker in workers {
        let status = worker.wait()?;
        if !status.success() {
            return Err(format!("a worker failed at the end: {status}").into());
        }
    }
    println!("tasks: {}", options.tasks);
    println!("workers killed: {died}");
    println!("tasks sent again: {sent_again}");
    println!("answers that came twice: {answered_twice}");
    println!("every task was answered");
    Ok(())
}

/// The task that was answered, if the answer is right.
fn checked((number, factors): (u64, Vec<u64>)) -> Result<u64, Box<dyn Error>> {
    if factors.iter().product::<u64>() == number {
        Ok(number)
    } else {
        Err(format!("a wrong answer: the factors of {number} are not {factors:?}").into())
    }
}

/// The workers, and what it takes to start more.
struct Pool {
    take: Receiver,
    answer: Sender,
    workers: Vec<Child>,
    /// How many have been killed so far.
    died: usize,
}

impl Pool {
    /// Starts this program again, as a worker.
    fn start(&self) -> Result<Child, Box<dyn Error>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker");
        // A clone is another handle on the same end, to be handed to the worker. It goes with the command, at the end of this function.
        self.take.clone().inherit(&mut command, TASKS);
        self.answer.clone().inherit(&mut command, ANSWERS);
        Ok(command.spawn()?)
    }

    fn kill_one(&mut self) -> Result<(), Box<dyn Error>> {
        let one = random(self.workers.len() as u64) as usize;
        self.workers[one].kill()?;
        // Until it is dead: nobody is to be killed, and counted, twice.
        self.workers[one].wait()?;
        Ok(())
    }

    /// Starts a worker for each that was killed.
    fn replace_the_dead(&mut self) -> Result<(), Box<dyn Error>> {
        for i in 0..self.workers.len() {
            if let Some(status) = self.workers[i].try_wait()? {
                // One that ends by itself would not do better the next time.
                if status.signal().is_none() {
                    return Err(format!("a worker failed: {status}").into());
                }
                self.workers[i] = self.start()?;
                self.died += 1;
            }
        }
        Ok(())
    }
}

/// A number below `limit`. (A program of your own would take a crate for this.)
fn random(limit: u64) -> u64 {
    RandomState::new().build_hasher().finish() % limit
}

struct Options {
    tasks: u64,
    workers: usize,
    kills: usize,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
        let mut options = Options { tasks: 20_000, workers: 4, kills: 40 };
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} needs a number"))?;
            match name.as_str() {
                "--tasks" => options.tasks = value.parse()?,
                "--workers" => options.workers = value.parse()?,
                "--kills" => options.kills = value.parse()?,
                _ => return Err(format!("unknown option {name}: there are --tasks, --workers and --kills").into()),
            }
        }
        if options.tasks == 0 || options.workers == 0 {
            return Err("there must be tasks and workers".into());
        }
        Ok(options)
    }
}
