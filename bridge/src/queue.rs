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
//! The host keeps `asked - taken` at the number that may be ready, and tells `asked` and `taken` together. What nobody took because the last process has gone, or because the bridge
//! ends, it sends back, and home puts it into the queue again. If the host is lost, what it had been given is in doubt: see [`Doubt`].
//!
//! A message that is on its way to a host has left home's queue. So if home's bridge is killed, what was given and has not arrived is lost: at most `asked - put` of each host.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringpipe::mpmc::{self, Listener, Role};
use ringpipe::{AcceptError, ListenError, RecvError, SendError, connect};

use crate::bridge::{Direction, Doubt};
use crate::carry::{Undeliverable, end, for_each_message, inbound, outbound, unreadable};
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
                serve_take(network, &wire, &Home { take, name: &name }, doubt);
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
}

/// What home knows of a host.
#[derive(Default)]
struct Host {
    asked: u64,
    taken: u64,
    has_enough: bool,
    /// What was given and not taken yet, if that is to be repeated.
    kept: VecDeque<Vec<u8>>,
    given: u64,
}

/// Home's side of `take`.
fn serve_take(network: &Arc<Network>, wire: &Arc<Wire>, home: &Home<'_>, doubt: Doubt) {
    let host = Mutex::new(Host::default());
    let told = Condvar::new();
    thread::scope(|scope| {
        scope.spawn(|| give(network, wire, home, &host, &told, doubt));
        listen_to_host(network, wire, home, &host, &told);
    });
    let left = std::mem::take(&mut lock(&host).kept);
    if wire.over().is_some() {
        left.iter().for_each(|message| bring_back(home, message));
    }
}

/// Puts a message back into the queue that it was taken out of.
fn bring_back(home: &Home<'_>, message: &[u8]) {
    // If nobody is there any more, it is lost as what is left in a queue is.
    if let Ok(put) = connect::<mpmc::Sender>(home.name, LOOK) {
        let _ = put.send_bytes(message);
    }
}

fn listen_to_host(network: &Network, wire: &Wire, home: &Home<'_>, host: &Mutex<Host>, told: &Condvar) {
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
                    Some((&ASKED, numbers)) => match numbers.try_into().map(u128::from_le_bytes) {
                        Ok(both) => heard_numbers(host, both as u64, (both >> 64) as u64),
                        Err(_) => nonsense = true,
                    },
                    Some((&BACK, message)) => {
                        lock(host).kept.pop_back();
                        bring_back(home, message);
                    }
                    Some((&ENOUGH, [])) => lock(host).has_enough = true,
                    _ => nonsense = true,
                }
                Ok(())
            });
            told.notify_all();
            match heard {
                Ok(false) if nonsense => return wire.reset(Reason::Nonsense),
                Ok(false) => {}
                // The host ends in order: what it has not sent back was taken.
                Ok(true) => {
                    lock(host).kept.clear();
                    return wire.close();
                }
                Err(Undeliverable::Unreadable(why)) => return wire.reset(unreadable(&why)),
                Err(Undeliverable::Send(_)) => return wire.reset(Reason::Failed),
            }
        }
        wire.consumed(segment.len());
    }
}

fn heard_numbers(host: &Mutex<Host>, asked: u64, taken: u64) {
    let mut host = lock(host);
    host.asked = host.asked.max(asked);
    let more = taken.saturating_sub(host.taken);
    host.taken += more;
    let done = host.kept.len().min(usize::try_from(more).unwrap_or(usize::MAX));
    host.kept.drain(..done);
}

/// Gives a host what it has asked for.
fn give(network: &Network, wire: &Wire, home: &Home<'_>, host: &Mutex<Host>, told: &Condvar, doubt: Doubt) {
    let mut encoder = Encoder::new();
    loop {
        {
            let guard = lock(host);
            if guard.has_enough {
                return end(wire, &mut encoder);
            }
            if guard.given >= guard.asked {
                drop(wait(told, guard, LOOK));
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
        let message = match home.take.recv_bytes_timeout(LOOK) {
            Ok(message) => message,
            Err(RecvError::TimedOut) if !wire.is_refused() => continue,
            Err(RecvError::TimedOut) => return,
            Err(RecvError::Disconnected) => return end(wire, &mut encoder),
            Err(_) => return wire.reset(Reason::Failed),
        };
        if message.len() as u64 > network.longest {
            bring_back(home, &message);
            return wire.reset(Reason::TooLong);
        }
        {
            let mut host = lock(host);
            host.given += 1;
            if doubt == Doubt::Repeat {
                host.kept.push_back(message.clone());
            }
        }
        let pushed = encoder
            .message(&message, |segment| wire.push(segment))
            .and_then(|()| encoder.flush().map_or(Ok(()), |segment| wire.push(segment)));
        if pushed.is_err() {
            // It cannot have arrived whole.
            if doubt == Doubt::Lose {
                bring_back(home, &message);
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

/// Who has joined as a receiver.
#[derive(Default)]
struct Workers {
    pids: Vec<Option<u32>>,
}

impl Workers {
    /// How many of them live. One of another namespace, which has no number here, counts as living.
    fn count(&mut self) -> usize {
        self.pids.retain(|pid| pid.is_none_or(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(true)));
        self.pids.len()
    }
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
            scope.spawn(|| outbound(wire, receiver, self.network.longest));
            loop {
                match wire.take(LOOK) {
                    // Home has nothing to say but the end of its own stream.
                    Taken::Segment(segment) => {
                        wire.consumed(segment.len());
                        wire.close();
                    }
                    Taken::Nothing if wire.is_refused() => break,
                    Taken::Nothing if self.network.is_closing() => wire.reset(Reason::Ending),
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
            let taken = arrived.saturating_sub(sender.len() as u64);
            asked = asked.max(taken + ahead);
            let mut said = Ok(());
            if (asked, taken) != told {
                told = (asked, taken);
                let numbers = u128::from(asked) | u128::from(taken) << 64;
                said = say(wire, &mut encoder, ASKED, &numbers.to_le_bytes());
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

fn say(wire: &Wire, encoder: &mut Encoder, what: u8, content: &[u8]) -> Result<(), Refused> {
    let message = [&[what], content].concat();
    encoder.message(&message, |segment| wire.push(segment))?;
    encoder.flush().map_or(Ok(()), |segment| wire.push(segment))
}
