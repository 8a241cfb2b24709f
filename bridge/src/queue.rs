//! Queues: one of them is at home on one host, where its listener is; other hosts have queues of their own by some name, which are joined to it one way.
//!
//! # Put
//!
//! What is sent to the queue here is carried home like the messages of a pipe.
//!
//! # Take
//!
//! Home gives each host what it has *asked* for and no more. A host asks for as many messages as its processes may find ready: one for each that has joined, unless it was told
//! otherwise. So these numbers are kept for each link, all of which only grow:
//!
//! ```text
//!   taken  <=  put  <=  given  <=  asked
//!     |         |         |          |
//!     |         |         |          what the host has asked for
//!     |         |         what home has sent
//!     |         what the host has put into its queue
//!     what its processes have taken out of that
//! ```
//!
//! The host keeps `asked - taken` at the number that may be ready, and tells `asked` and `taken` together, with the length of the longest message that it takes: a longer one stays first in the queue, for
//! another host or a process at home. What nobody took because the last process has gone, or because the bridge
//! ends, it takes itself and sends back, and home puts it into the queue again, or gives it to the host again if that asks first: the queue may be full, and that host the only one to make
//! room. If the host is lost, what it had been given is in doubt: see [`Doubt`].
//!
//! A message that is on its way to a host has left home's queue. So if home's bridge is killed, what was given and has not arrived is lost: at most `asked - put` of each host.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::mpmc::{self, Listener, Role};
use ringpipe::{AcceptError, ListenError, RecvError, SendError, connect};

use crate::bridge::{Direction, Doubt};
use crate::carry::{Intake, Message, Undeliverable, end, for_each_message, inbound, outbound, unreadable};
use crate::error::BridgeError;
use crate::frames::{Decoder, Encoder};
use crate::link::Reason;
use crate::network::{Network, What, start};
use crate::wire::{LOOK, Refused, Taken, Wire, lock, wait};

/// Between two looks at how many messages lie ready, at first and at most.
const GLANCES: [Duration; 2] = [Duration::from_micros(500), Duration::from_millis(10)];

/// The first byte of what a host tells home.
const ASKED: u8 = 0;
const BACK: u8 = 1;
/// It wants no more, and waits for the end of what is on its way, to send that back.
const ENOUGH: u8 = 2;

fn service(direction: Direction, key: &str) -> String {
    match direction {
        Direction::Take => format!("take/{key}"),
        Direction::Put => format!("put/{key}"),
    }
}

pub(crate) fn export(
    network: &Arc<Network>,
    name: &Path,
    key: &str,
    direction: Direction,
    doubt: Doubt,
) -> Result<(), BridgeError> {
    let (name, service) = (name.to_owned(), service(direction, key));
    let of_whom = service.clone();
    let serve = move |network: &Arc<Network>, wire: Arc<Wire>| {
        let patience = network.settings.patience;
        let ended = match direction {
            Direction::Put => connect(&name, patience).map(|home| serve_put(network, &wire, home)),
            Direction::Take => connect(&name, patience).map(|take| {
                serve_take(network, &wire, &Home { take, name: &name, service: &of_whom, doubt });
            }),
        };
        match ended {
            Ok(()) => {
                wire.await_end();
                network.report_end(&of_whom, &wire);
            }
            Err(e) => {
                network.report(&of_whom, What::Broken(e.to_string()));
                wire.reset(Reason::NoListener);
            }
        }
    };
    network.export(&service, Arc::new(serve))
}

/// Home's side of `put`.
fn serve_put(network: &Arc<Network>, wire: &Wire, mut home: mpmc::Sender) {
    // Nothing goes the other way.
    end(wire, &mut Encoder::new());
    inbound(wire, &mut home, network.longest);
}

/// The queue at home, as its bridge has joined it: only as a receiver. An end that sends would keep the end of the file from all who receive.
struct Home<'a> {
    take: mpmc::Receiver,
    name: &'a Path,
    service: &'a str,
    doubt: Doubt,
}

/// What home knows of a host.
#[derive(Default)]
struct Host {
    asked: u64,
    taken: u64,
    given: u64,
    /// Bytes of a message that it takes.
    longest: u64,
    has_enough: bool,
    /// What was given and is not known to be taken yet, if that is to be repeated; the oldest first.
    kept: VecDeque<Vec<u8>>,
    /// What it has sent back and is not in the queue again yet.
    returned: VecDeque<Vec<u8>>,
}

impl Host {
    fn heard_numbers(&mut self, [asked, taken, longest]: [u64; 3]) {
        self.longest = longest;
        self.asked = self.asked.max(asked);
        self.taken = self.taken.max(taken);
        // What came back is no longer among what is kept, but counts as taken.
        let left = usize::try_from(self.given.saturating_sub(self.taken)).unwrap_or(usize::MAX);
        let done = self.kept.len().saturating_sub(left);
        self.kept.drain(..done);
    }

    fn heard_back(&mut self, message: &[u8]) {
        // Which one it was shows in nothing else, since a process may have taken one in between. It may be of a link before this one.
        if let Some(place) = self.kept.iter().position(|kept| kept == message) {
            self.kept.remove(place);
        }
        self.returned.push_back(message.to_vec());
    }
}

/// Home's side of `take`.
fn serve_take(network: &Arc<Network>, wire: &Arc<Wire>, home: &Home<'_>) {
    let _held = network.holding();
    let host = Mutex::new(Host::default());
    let told = Condvar::new();
    thread::scope(|scope| {
        scope.spawn(|| give(network, wire, home, &host, &told));
        listen_to_host(network, wire, &host, &told);
    });
    let Host { mut kept, mut returned, .. } = host.into_inner().unwrap_or_else(PoisonError::into_inner);
    if wire.over().is_some() {
        returned.append(&mut kept);
    }
    bring_home(network, home, &mut returned);
    if !returned.is_empty() {
        let what = format!("{} messages cannot go back into the queue, and are lost", returned.len());
        network.report(home.service, What::Broken(what));
    }
    wire.close();
}

/// Puts messages back into the queue that they were taken out of, at the end of a link: what is to go back into a queue that is not there any more is lost, as what is left
/// in a queue is, and so is what finds no room before the bridge ends. Then what is left of them is lost.
fn bring_home(network: &Network, home: &Home<'_>, messages: &mut VecDeque<Vec<u8>>) {
    if messages.is_empty() {
        return;
    }
    let patience = network.settings.patience;
    // Half of the time that the bridge waits for this, so that there is some left to tell how it went.
    let is_late = || network.left_at().is_some_and(|left_at| Instant::now() >= left_at + patience / 2);
    // One attempt for all of the time: each that is given up leaves something for the queue's keeper to see to.
    let (joined, joins) = mpsc::channel();
    let name = home.name.to_owned();
    let join = move || drop(joined.send(connect::<mpmc::Sender>(name, patience)));
    if start("bridge-join", join).is_err() {
        return;
    }
    let put = loop {
        match joins.recv_timeout(step(network)) {
            Ok(Ok(put)) => break put,
            Err(RecvTimeoutError::Timeout) if !is_late() => {}
            Ok(Err(_)) | Err(_) => return,
        }
    };
    while !is_late() && put_back(&put, messages, step(network)) && !messages.is_empty() {}
}

/// How long to do something without a look at whether the bridge is to end.
fn step(network: &Network) -> Duration {
    LOOK.min(network.settings.patience / 8).max(Duration::from_millis(1))
}

/// Puts messages back, as far as there is room in time. Whether there is still such a queue.
fn put_back(put: &mpmc::Sender, messages: &mut VecDeque<Vec<u8>>, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while let Some(message) = messages.front() {
        match put.send_bytes_deadline(message, deadline) {
            Ok(()) => drop(messages.pop_front()),
            Err(SendError::TimedOut) => return true,
            Err(_) => return false,
        }
        if Instant::now() >= deadline {
            return true;
        }
    }
    true
}

fn listen_to_host(network: &Network, wire: &Wire, host: &Mutex<Host>, told: &Condvar) {
    let mut decoder = Decoder::new(network.longest.saturating_add(1));
    loop {
        let segment = match wire.take(LOOK) {
            Taken::Segment(segment) => segment,
            Taken::Nothing => continue,
            Taken::Over => return told.notify_all(),
        };
        for bytes in segment.slices() {
            let mut nonsense = false;
            let heard = for_each_message(&mut decoder, bytes, |message| {
                match message.split_first() {
                    Some((&ASKED, numbers)) => match numbers_of(numbers) {
                        Some(numbers) => lock(host).heard_numbers(numbers),
                        None => nonsense = true,
                    },
                    Some((&BACK, message)) => lock(host).heard_back(message),
                    Some((&ENOUGH, [])) => lock(host).has_enough = true,
                    _ => nonsense = true,
                }
                Ok(())
            });
            if matches!(heard, Ok(true)) {
                // The host ends in order: what it has not sent back was taken.
                let mut host = lock(host);
                host.has_enough = true;
                host.kept.clear();
            }
            told.notify_all();
            match heard {
                Ok(false) if nonsense => return wire.reset(Reason::Nonsense),
                Ok(false) => {}
                Ok(true) => return,
                Err(Undeliverable::Unreadable(why)) => return wire.reset(unreadable(&why)),
                Err(Undeliverable::Send(_)) => return wire.reset(Reason::Failed),
            }
        }
        wire.consumed(segment.len());
    }
}

/// Gives a host what it has asked for.
fn give(network: &Network, wire: &Wire, home: &Home<'_>, host: &Mutex<Host>, told: &Condvar) {
    let mut encoder = Encoder::new();
    // A handle receives no more after a message that was too long for it.
    let (mut take, mut told_of_long) = (home.take.clone(), false);
    loop {
        let longest;
        {
            let mut guard = lock(host);
            if guard.has_enough {
                return end(wire, &mut encoder);
            }
            longest = guard.longest.min(network.longest);
            if guard.given >= guard.asked {
                let mut returned = std::mem::take(&mut guard.returned);
                if returned.is_empty() {
                    drop(wait(told, guard, LOOK));
                } else {
                    drop(guard);
                    if let Ok(put) = connect::<mpmc::Sender>(home.name, LOOK) {
                        put_back(&put, &mut returned, step(network));
                    }
                    // Those that came back meanwhile are younger.
                    let mut host = lock(host);
                    returned.append(&mut host.returned);
                    host.returned = returned;
                }
                if wire.is_refused() {
                    return;
                }
                continue;
            }
        }
        match wire.await_room(LOOK) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => return,
        }
        let returned = lock(host).returned.pop_front();
        let max = usize::try_from(longest).unwrap_or(usize::MAX);
        let message = match returned.map_or_else(|| take.recv_bytes_max_timeout(max, LOOK), Ok) {
            Ok(message) => message,
            Err(RecvError::TooLong { len, .. }) => {
                if !std::mem::replace(&mut told_of_long, true) {
                    let what = format!(
                        "a message of {len} bytes is longer than the bridges take ({longest}), and holds up what is behind it"
                    );
                    network.report(home.service, What::Broken(what));
                }
                take = home.take.clone();
                network.pause(LOOK);
                if wire.is_refused() {
                    return;
                }
                continue;
            }
            Err(RecvError::TimedOut) if !wire.is_refused() => continue,
            Err(RecvError::TimedOut) => return,
            Err(RecvError::Disconnected) => return end(wire, &mut encoder),
            Err(_) => return wire.reset(Reason::Failed),
        };
        {
            let mut host = lock(host);
            host.given += 1;
            if home.doubt == Doubt::Repeat {
                host.kept.push_back(message.clone());
            }
        }
        let pushed = encoder
            .message(&message, |segment| wire.push(segment))
            .and_then(|()| encoder.flush().map_or(Ok(()), |segment| wire.push(segment)));
        if pushed.is_err() {
            // It cannot have arrived whole.
            if home.doubt == Doubt::Lose {
                lock(host).returned.push_back(message);
            }
            return;
        }
    }
}

pub(crate) fn import(
    network: &Arc<Network>,
    name: &Path,
    key: &str,
    direction: Direction,
    ahead: Option<usize>,
) -> Result<(), BridgeError> {
    let listener = Listener::bind(name)?;
    let queue = Import { network: Arc::clone(network), service: service(direction, key), ahead };
    let name = name.to_owned();
    let finishing = network.finishing();
    let work = move || {
        let _finishing = finishing;
        let mut next = Some(listener);
        while let Some(listener) = next.take() {
            queue.keep(listener, direction);
            next = queue.bind_again(&name);
        }
    };
    Ok(start("bridge-queue", work)?)
}

struct Import {
    network: Arc<Network>,
    service: String,
    ahead: Option<usize>,
}

/// A queue whose end is there, once the bridge is to end, as soon as nothing is left in it.
struct Rest<'a> {
    receiver: mpmc::Receiver,
    network: &'a Network,
}

impl Intake for Rest<'_> {
    fn take<E>(
        &mut self,
        timeout: Duration,
        each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<Result<(), E>, RecvError> {
        if timeout.is_zero() || !self.network.is_closing() {
            return self.receiver.take(timeout, each);
        }
        match self.receiver.take(Duration::ZERO, each) {
            Err(RecvError::Empty) => Err(RecvError::Disconnected),
            taken => taken,
        }
    }
}

/// Who has joined as a receiver.
#[derive(Default)]
struct Workers {
    pids: Vec<Option<u32>>,
}

impl Workers {
    /// How many of them live. One of another namespace, which has no number here, counts as living.
    fn count(&mut self) -> usize {
        self.pids.retain(|pid| pid.is_none_or(is_alive));
        self.pids.len()
    }
}

/// Whether there is a process of that number. One that has ended takes nothing, though its parent may be yet to hear of it; one whose first thread alone has ended lives.
fn is_alive(pid: u32) -> bool {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(e) => return e.kind() != io::ErrorKind::NotFound,
    };
    // The name, in parentheses, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_whitespace();
    let (state, threads) = (fields.next(), fields.nth(16));
    !(matches!(state, Some("Z" | "X")) && threads.is_none_or(|count| count == "0" || count == "1"))
}

impl Import {
    /// Keeps the queue until it is at its end at home, or the bridge ends.
    fn keep(&self, mut listener: Listener, direction: Direction) {
        let (receiver, sender) = (listener.receiver().clone(), listener.sender().clone());
        let (workers, over) = (Mutex::new(Workers::default()), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    match listener.accept_timeout(LOOK) {
                        Ok((Role::Receiver, peer)) => lock(&workers).pids.push(peer.pid()),
                        Ok((Role::Sender, _)) | Err(AcceptError::TimedOut) => {}
                        Err(e) => {
                            self.network.report(&self.service, What::Broken(e.to_string()));
                            self.network.pause(LOOK);
                        }
                    }
                }
            });
            while !self.network.is_closing() {
                match self.network.call(&self.service) {
                    Ok(wire) => {
                        let ended = match direction {
                            Direction::Put => self.put(&wire, receiver.clone()),
                            Direction::Take => self.take(&wire, &receiver, &sender, &workers),
                        };
                        self.network.report_end(&self.service, &wire);
                        if wire.over().is_some() {
                            // Or what has ended it may do so again and again.
                            self.network.pause(LOOK);
                        }
                        if ended {
                            // What is left is for those who have joined, and those who still come.
                            while direction == Direction::Take && !sender.is_empty() && !self.network.is_closing() {
                                self.network.pause(GLANCES[1]);
                            }
                            break;
                        }
                    }
                    Err(why) => {
                        self.network.report(&self.service, What::Broken(why));
                        self.network.pause(LOOK);
                    }
                }
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    /// Listens under the name again, for the queue may come again at home.
    fn bind_again(&self, name: &Path) -> Option<Listener> {
        while !self.network.is_closing() {
            match Listener::bind(name) {
                Ok(listener) => return Some(listener),
                Err(e) => {
                    self.network.report(&self.service, What::Broken(e.to_string()));
                    if !matches!(e, ListenError::InUse { .. } | ListenError::Io { .. }) {
                        return None;
                    }
                    self.network.pause(self.network.settings.patience);
                }
            }
        }
        None
    }

    /// This side of `put`. Whether home's queue is at its end.
    fn put(&self, wire: &Arc<Wire>, receiver: mpmc::Receiver) -> bool {
        thread::scope(|scope| {
            scope.spawn(|| outbound(wire, Rest { receiver, network: &self.network }, self.network.longest));
            loop {
                match wire.take(LOOK) {
                    // Home has nothing to say but the end of its own stream.
                    Taken::Segment(segment) => {
                        wire.consumed(segment.len());
                        wire.close();
                    }
                    Taken::Nothing if wire.is_refused() => break,
                    Taken::Nothing => {}
                    Taken::Over => break,
                }
            }
        });
        wire.over().is_none()
    }

    /// This side of `take`. Whether home's queue is at its end.
    fn take(
        &self,
        wire: &Arc<Wire>,
        receiver: &mpmc::Receiver,
        sender: &mpmc::Sender,
        workers: &Mutex<Workers>,
    ) -> bool {
        let put = AtomicU64::new(0);
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.fill(wire, sender, &put, &ended));
            self.ask(wire, receiver, sender, workers, &put, &ended);
        });
        // What was sent back is to arrive.
        wire.await_end();
        ended.load(Ordering::Relaxed) && wire.over().is_none()
    }

    /// Puts what home gives into the local queue.
    fn fill(&self, wire: &Wire, sender: &mpmc::Sender, put: &AtomicU64, ended: &AtomicBool) {
        let mut decoder = Decoder::new(self.network.longest);
        loop {
            let segment = match wire.take(LOOK) {
                Taken::Segment(segment) => segment,
                Taken::Nothing => continue,
                Taken::Over => return,
            };
            for bytes in segment.slices() {
                let filled = for_each_message(&mut decoder, bytes, |message| {
                    sender.send_bytes(message)?;
                    put.fetch_add(1, Ordering::Release);
                    Ok::<(), SendError>(())
                });
                match filled {
                    Ok(false) => {}
                    Ok(true) => {
                        ended.store(true, Ordering::Release);
                        return wire.close();
                    }
                    Err(Undeliverable::Unreadable(why)) => return wire.reset(unreadable(&why)),
                    Err(Undeliverable::Send(_)) => return wire.reset(Reason::Failed),
                }
            }
            wire.consumed(segment.len());
        }
    }

    /// Asks for as much as may lie ready, tells what was taken, and sends back what nobody will take.
    fn ask(
        &self,
        wire: &Arc<Wire>,
        receiver: &mpmc::Receiver,
        sender: &mpmc::Sender,
        workers: &Mutex<Workers>,
        put: &AtomicU64,
        ended: &AtomicBool,
    ) {
        let mut encoder = Encoder::new();
        let (mut asked, mut told, mut glance) = (0, (0, 0), GLANCES[0]);
        let (mut living, mut counted, mut has_enough) = (0, None::<Instant>, false);
        while !wire.is_refused() {
            if counted.is_none_or(|at| at.elapsed() >= LOOK) || living == 0 {
                (living, counted) = (lock(workers).count(), Some(Instant::now()));
            }
            // Before what lies ready is looked at, or something might be put there in between.
            let (has_ended, closing) = (ended.load(Ordering::Acquire), self.network.is_closing());
            let ahead = if living == 0 || closing { 0 } else { self.ahead.unwrap_or(living) as u64 };
            // In this order, or what is put in between would seem to be taken.
            let arrived = put.load(Ordering::Acquire);
            let ready = sender.len() as u64;
            // What was there before this link is taken before what it has brought.
            let taken = arrived.saturating_sub(ready);
            asked = asked.max(arrived.saturating_add(ahead).saturating_sub(ready));
            let mut said = Ok(());
            if (asked, taken) != told {
                told = (asked, taken);
                let numbers = [asked, taken, self.network.longest].map(u64::to_le_bytes);
                said = say(wire, &mut encoder, ASKED, numbers.as_flattened());
                glance = GLANCES[0];
            }
            if ahead == 0 && (closing || !has_ended) {
                while let (Ok(()), Ok(message)) = (said, receiver.try_recv_bytes()) {
                    said = say(wire, &mut encoder, BACK, &message);
                }
            }
            if has_ended && said.is_ok() {
                return end(wire, &mut encoder);
            }
            if closing && !has_enough && said.is_ok() {
                has_enough = say(wire, &mut encoder, ENOUGH, &[]).is_ok();
            }
            thread::sleep(glance);
            glance = (glance * 5 / 4).min(GLANCES[1]);
        }
    }
}

/// What [`ASKED`] is followed by.
fn numbers_of(bytes: &[u8]) -> Option<[u64; 3]> {
    let (numbers, rest) = bytes.as_chunks::<8>();
    let numbers: &[[u8; 8]; 3] = numbers.try_into().ok().filter(|_| rest.is_empty())?;
    Some(numbers.map(u64::from_le_bytes))
}

fn say(wire: &Wire, encoder: &mut Encoder, what: u8, content: &[u8]) -> Result<(), Refused> {
    let message = [&[what], content].concat();
    encoder.message(&message, |segment| wire.push(segment))?;
    encoder.flush().map_or(Ok(()), |segment| wire.push(segment))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_comes_back_is_not_kept_and_what_is_given_meanwhile_is() {
        let mut host = Host { given: 4, kept: (1..=4).map(|message| vec![message]).collect(), ..Host::default() };
        host.heard_numbers([5, 1, 1000]);
        assert_eq!(host.kept, [[2], [3], [4]]);
        // The bridge there takes the second, a process the third, and the bridge the fourth; one is given meanwhile.
        host.heard_back(&[2]);
        host.heard_back(&[4]);
        assert_eq!(host.kept, [[3]]);
        (host.given, host.kept) = (5, [vec![3], vec![5]].into());
        host.heard_numbers([5, 4, 1000]);
        assert_eq!(host.kept, [[5]], "three have gone, of which one is known to be taken");
        assert_eq!(host.returned, [[2], [4]]);
        // Of an earlier link.
        host.heard_back(&[9]);
        assert_eq!((host.kept.len(), host.returned.len()), (1, 3));
        // What no host would say.
        host.heard_numbers([u64::MAX; 3]);
        assert!(host.kept.is_empty());
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_though_its_parent_has_not_asked() {
        assert!(is_alive(std::process::id()));
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        assert!(is_alive(child.id()));
        child.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while is_alive(child.id()) {
            assert!(Instant::now() < deadline, "it counts as living");
            thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
        assert!(!is_alive(child.id()));
    }
}
