//! A bridge's place on the network: the Zenoh session, the links by their numbers, who else is there, and the desk where strangers are received.
//!
//! Keys on the network, where `ID` is that of a bridge:
//!
//! - `ringpipe/to/ID`: packets for it.
//! - `ringpipe/at/ID`: there as long as it can be reached (liveliness). When it comes back, what was lost meanwhile is asked for at once.
//! - `ringpipe/has/ID/SERVICE`: what it exports, likewise. A service is `pipe/KEY`, `take/KEY` or `put/KEY`.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use zenoh::bytes::ZBytes;
use zenoh::liveliness::LivelinessToken;
use zenoh::sample::{Sample, SampleKind};
use zenoh::{Session, Wait};

use reopening::Reopening;

use crate::error::BridgeError;
use crate::link::{Over, Reason, Settings};
use crate::packet::{Head, Kind, MOST, Packet};
use crate::wire::{Access, LOOK, Post, Pumped, Wire, address, lock, wait};

mod reopening;

/// Packets that may wait at the desk. More are thrown away: those who have sent them ask again.
const WAITING: usize = 1024;

/// The longest patience, some thirty years: clocks run over beyond that.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);

/// Counts as one of the connections that are served, until the last thread that has to do with it is done.
struct Place {
    _served: Arc<()>,
}

/// How often links that have come to their end are looked at. The other side asks again after twice that.
const LINGER: Duration = Duration::from_millis(50);

/// So many of them are kept, at most.
const LINGERING: usize = 1 << 14;

/// The largest window: beyond that, its sums would run over.
const HUGE: u64 = 1 << 62;

/// Something that happened on a bridge.
#[derive(Clone, Debug)]
pub struct Event {
    /// The service that it happened to: `pipe/KEY`, `take/KEY` or `put/KEY`.
    pub service: String,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// There is a connection to the far side.
    Opened,
    /// A connection has come to its end: all that was sent has arrived, or was not wanted any more.
    Closed,
    /// A connection is over for another reason, said in words; local programs see an end of file, or a broken pipe.
    Broken(String),
}

impl Event {
    /// Whether something went wrong.
    pub fn is_failure(&self) -> bool {
        matches!(self.what, What::Broken(_))
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.what {
            What::Opened => write!(f, "{}: connected", self.service),
            What::Closed => write!(f, "{}: closed", self.service),
            What::Broken(why) => write!(f, "{}: broken: {why}", self.service),
        }
    }
}

pub(crate) type Report = Box<dyn Fn(&Event) + Send + Sync>;
type Serve = Arc<dyn Fn(&Arc<Network>, Arc<Wire>) + Send + Sync>;

pub(crate) struct Network {
    access: Arc<Access>,
    reopening: Reopening,
    /// Counts the sessions. Changed with `found` locked.
    generation: AtomicU64,
    /// The bridge, whatever its session is.
    id: u128,
    pub(crate) settings: Settings,
    /// Bytes of a message, at most.
    pub(crate) longest: u64,
    report: Report,
    wires: Mutex<HashMap<u64, Arc<Wire>>>,
    /// Those of them that have come to their end, as long as the other side may ask; the oldest first.
    lingering: Mutex<VecDeque<(u64, Arc<Wire>)>>,
    lingers: Condvar,
    /// How many connections are served at a time, at most.
    most: usize,
    /// Held by the [`Place`] of each of those.
    served: Arc<()>,
    /// Where packets go that are for no link.
    desk: SyncSender<Packet>,
    exports: Mutex<HashMap<String, Serve>>,
    /// Who exports what, of those that can be reached.
    found: Mutex<BTreeSet<(String, u128)>>,
    found_more: Condvar,
    /// Of the bridges that export the same, another one is called each time: how often that was, for each service.
    turns: Mutex<HashMap<String, usize>>,
    /// Those of the session in use. Held while the session is replaced.
    tokens: Mutex<Vec<LivelinessToken>>,
    closing: AtomicBool,
    /// The session is not to be replaced any more. Changed with `tokens` locked.
    has_left: AtomicBool,
    left_at: OnceLock<Instant>,
    /// Held by who has something to bring to its end before the network is left.
    finishing: Arc<()>,
    /// Held by who has something to bring to its end once all links are given up.
    holding: Arc<()>,
}

/// A number that nobody else has drawn.
fn draw() -> u64 {
    // Not 0, which is nobody's.
    RandomState::new().build_hasher().finish().max(1)
}

impl Network {
    pub(crate) fn join(
        config: zenoh::Config,
        reopening: Option<zenoh::Config>,
        settings: Settings,
        longest: u64,
        most: usize,
        report: Report,
    ) -> Result<Arc<Network>, BridgeError> {
        let settings = Settings { window: settings.window.min(HUGE), patience: settings.patience.min(FOREVER) };
        let session = zenoh::open(config).wait().map_err(BridgeError::Network)?;
        let id = u128::from_le_bytes(session.zid().to_le_bytes());
        let (desk, strangers) = sync_channel(WAITING);
        let network = Arc::new(Network {
            access: Access::new(session),
            reopening: Reopening::new(reopening),
            generation: AtomicU64::new(0),
            id,
            settings,
            longest,
            report,
            wires: Mutex::default(),
            lingering: Mutex::default(),
            lingers: Condvar::new(),
            most,
            served: Arc::new(()),
            desk,
            exports: Mutex::default(),
            found: Mutex::default(),
            found_more: Condvar::new(),
            turns: Mutex::default(),
            tokens: Mutex::default(),
            closing: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            left_at: OnceLock::new(),
            finishing: Arc::new(()),
            holding: Arc::new(()),
        });
        *lock(&network.tokens) = network.listen(&network.access.session()).map_err(BridgeError::Network)?;
        let served = Arc::downgrade(&network);
        start("bridge-desk", move || receive_strangers(&served, &strangers))?;
        let kept = Arc::downgrade(&network);
        start("bridge-linger", move || linger(&kept))?;
        Ok(network)
    }

    /// Has a session tell what there is for this bridge, and others that it is there.
    fn listen(self: &Arc<Network>, session: &Session) -> zenoh::Result<Vec<LivelinessToken>> {
        // What lives as long as the session must not keep the network.
        let network = Arc::downgrade(self);
        let on_packet = move |sample: Sample| {
            if let Some(network) = network.upgrade() {
                network.on_sample(&sample);
            }
        };
        session.declare_subscriber(address(self.id)).callback(on_packet).background().wait()?;
        let (network, generation) = (Arc::downgrade(self), self.generation.load(Ordering::Relaxed));
        let on_token = move |sample: Sample| {
            if let Some(network) = network.upgrade() {
                network.on_token(&sample, generation);
            }
        };
        let liveliness = session.liveliness();
        for tokens in ["ringpipe/at/*", "ringpipe/has/**"] {
            liveliness.declare_subscriber(tokens).history(true).callback(on_token.clone()).background().wait()?;
        }
        let services: Vec<String> = lock(&self.exports).keys().cloned().collect();
        let has = services.iter().map(|service| self.has(service));
        let at = format!("ringpipe/at/{:x}", self.id);
        std::iter::once(at).chain(has).map(|token| liveliness.declare_token(token).wait()).collect()
    }

    /// The key that says that this bridge exports a service.
    fn has(&self, service: &str) -> String {
        format!("ringpipe/has/{:x}/{service}", self.id)
    }

    fn on_sample(&self, sample: &Sample) {
        if sample.payload().len() > MOST {
            return;
        }
        let packet = sample.attachment().and_then(|head| Packet::open(&head.to_bytes(), sample.payload()));
        let Some(Packet { head, payload }) = packet else { return };
        let wire = lock(&self.wires).get(&head.dst).cloned();
        match wire {
            Some(wire) => wire.on_packet(Packet { head, payload }),
            // Never an answer to an answer.
            None if head.kind == Kind::Reset => {}
            None => {
                let payload = if head.kind == Kind::Open { self.asked_for(&payload) } else { ZBytes::new() };
                drop(self.desk.try_send(Packet { head, payload }));
            }
        }
    }

    /// The service that a request names, or nothing if it is not exported: what waits at the desk is not to be as large as strangers like.
    fn asked_for(&self, request: &ZBytes) -> ZBytes {
        let request = request.to_bytes();
        let is_exported = std::str::from_utf8(&request).is_ok_and(|service| lock(&self.exports).contains_key(service));
        if is_exported { ZBytes::from(request.into_owned()) } else { ZBytes::new() }
    }

    fn on_token(&self, sample: &Sample, generation: u64) {
        let mut parts = sample.key_expr().as_str().splitn(4, '/').skip(1);
        let (Some(what), Some(id)) = (parts.next(), parts.next()) else { return };
        let Ok(id) = u128::from_str_radix(id, 16) else { return };
        let is_there = sample.kind() == SampleKind::Put;
        match (what, parts.next()) {
            ("at", None) if is_there => {
                let wires: Vec<_> = lock(&self.wires).values().filter(|wire| wire.peer() == id).cloned().collect();
                wires.iter().for_each(|wire| wire.on_reconnect());
            }
            ("has", Some(service)) => {
                let entry = (service.to_owned(), id);
                let mut found = lock(&self.found);
                if self.generation.load(Ordering::Relaxed) != generation {
                    // Of a session that is not in use any more, and will not take it back.
                    return;
                }
                if is_there {
                    found.insert(entry)
                } else {
                    found.remove(&entry)
                };
                self.found_more.notify_all();
            }
            _ => {}
        }
    }

    /// Serves a service: `serve` is called, in a thread of its own, with each link that was asked for.
    pub(crate) fn export(&self, service: &str, serve: Serve) -> Result<(), BridgeError> {
        let taken = || BridgeError::Taken { key: service.split_once('/').map_or(service, |(_, key)| key).to_owned() };
        {
            let mut exports = lock(&self.exports);
            if exports.contains_key(service) {
                return Err(taken());
            }
            exports.insert(service.to_owned(), serve);
        }
        let mut tokens = lock(&self.tokens);
        match self.access.session().liveliness().declare_token(self.has(service)).wait() {
            Ok(token) => {
                tokens.push(token);
                Ok(())
            }
            Err(e) => {
                lock(&self.exports).remove(service);
                Err(BridgeError::Network(e))
            }
        }
    }

    /// A link to a bridge that exports a service. Waits for one to be there, and to answer, as long as patience goes.
    pub(crate) fn call(self: &Arc<Network>, service: &str) -> Result<Arc<Wire>, String> {
        let patience = self.settings.patience;
        let deadline = Instant::now() + patience;
        let mut has_complained = false;
        let mut found = lock(&self.found);
        let peer = loop {
            if self.is_closing() {
                return Err("the bridge ends".to_owned());
            }
            let all: Vec<u128> = found.iter().filter(|(what, _)| what == service).map(|(_, id)| *id).collect();
            if !all.is_empty() {
                let mut turns = lock(&self.turns);
                let turn = turns.entry(service.to_owned()).or_default();
                *turn = turn.wrapping_add(1);
                break all[*turn % all.len()];
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!(
                    "no bridge that exports it was to be reached within {patience:?}: is it running, and connected?"
                ));
            }
            if left <= patience / 2 && !std::mem::replace(&mut has_complained, true) {
                drop(found);
                self.on_nobody();
                found = lock(&self.found);
                continue;
            }
            let next = if has_complained { left } else { left - patience / 2 };
            found = wait(&self.found_more, found, next);
        };
        drop(found);
        let request = ZBytes::from(service.as_bytes());
        let (ours, post) = (draw(), Post::new(&self.access, peer));
        let wire = Wire::call(self.settings, self.id, ours, request, post, peer);
        self.add(ours, &wire, None).map_err(|e| format!("cannot start a thread: {e}"))?;
        if wire.await_confirmed() {
            self.on_somebody();
            self.report(service, What::Opened);
            return Ok(wire);
        }
        Err(wire.over().map_or_else(|| "it ended".to_owned(), |over| self.explain(over)))
    }

    /// Adds a link, which has its place until it has come to its end.
    fn add(self: &Arc<Network>, ours: u64, wire: &Arc<Wire>, place: Option<Arc<Place>>) -> std::io::Result<()> {
        lock(&self.wires).insert(ours, Arc::clone(wire));
        let (network, pumped) = (Arc::downgrade(self), Arc::clone(wire));
        let started = start("bridge-pump", move || {
            let end = loop {
                match (pumped.pump(), network.upgrade()) {
                    (Pumped::Complaint, Some(network)) => network.on_complaint(&pumped),
                    (Pumped::Complaint, None) => {}
                    (end, _) => break end,
                }
            };
            drop(place);
            let Some(network) = network.upgrade() else { return };
            match end {
                Pumped::Complete => network.let_linger(ours, pumped),
                _ => drop(lock(&network.wires).remove(&ours)),
            }
        });
        if started.is_err() {
            lock(&self.wires).remove(&ours);
        }
        started
    }

    fn let_linger(&self, ours: u64, wire: Arc<Wire>) {
        let mut lingering = lock(&self.lingering);
        lingering.push_back((ours, wire));
        if lingering.len() > LINGERING
            && let Some((oldest, _)) = lingering.pop_front()
        {
            lock(&self.wires).remove(&oldest);
        }
        self.lingers.notify_one();
    }

    /// Receives who has no link yet, or no longer.
    fn on_stranger(self: &Arc<Network>, packet: Packet) {
        let head = &packet.head;
        let refuse = |reason: Reason| {
            let head = Head {
                kind: Kind::Reset,
                closed: false,
                deaf: false,
                from: self.id,
                src: head.dst,
                dst: head.src,
                offset: 0,
                ack: 0,
                limit: 0,
                ping: 0,
                pong: 0,
            };
            let payload = ZBytes::from(vec![reason as u8]);
            Post::new(&self.access, packet.head.from).send(Packet { head, payload }, true);
        };
        match head.kind {
            Kind::Reset => {}
            Kind::Segment => refuse(Reason::Unknown),
            Kind::Open => {
                let known = lock(&self.wires).values().find(|wire| wire.answers(head)).cloned();
                if let Some(wire) = known {
                    return wire.on_packet(packet);
                }
                let service = packet.payload.try_to_string().map(|service| service.into_owned()).unwrap_or_default();
                let Some(serve) = lock(&self.exports).get(&service).cloned() else {
                    return refuse(Reason::NoListener);
                };
                // One is the network's own.
                if Arc::strong_count(&self.served) > self.most {
                    return refuse(Reason::Busy);
                }
                let place = Arc::new(Place { _served: Arc::clone(&self.served) });
                let (ours, post) = (draw(), Post::new(&self.access, head.from));
                let wire = Wire::answer(self.settings, self.id, ours, head, post);
                let network = Arc::clone(self);
                let (answered, held) = (Arc::clone(&wire), Arc::clone(&place));
                let work = move || {
                    let _held = held;
                    if answered.await_confirmed() {
                        network.report(&service, What::Opened);
                        serve(&network, answered);
                    }
                };
                let started = self.add(ours, &wire, Some(place)).and_then(|()| start("bridge-serve", work));
                if started.is_err() {
                    wire.reset(Reason::Failed);
                }
            }
        }
    }

    pub(crate) fn report(&self, service: &str, what: What) {
        (self.report)(&Event { service: service.to_owned(), what });
    }

    /// Says how a link has ended.
    pub(crate) fn report_end(&self, service: &str, wire: &Wire) {
        let what = wire.over().map_or(What::Closed, |over| What::Broken(self.explain(over)));
        self.report(service, what);
    }

    pub(crate) fn explain(&self, over: Over) -> String {
        let (side, reason) = match over {
            Over::Here(reason) => ("this side", reason),
            Over::There(reason) => ("the far side", reason),
        };
        let what = match reason {
            Reason::Lost => format!("heard nothing for {:?}; it is lost", self.settings.patience),
            Reason::Unknown => "knows nothing of the connection: it was started again, or has given it up".to_owned(),
            Reason::Nonsense => "got what no bridge would send".to_owned(),
            Reason::Ending => "ends its bridge".to_owned(),
            Reason::NoListener => "has nobody who listens under the name, or exports no such key".to_owned(),
            Reason::PipeEnd => "was sent a pipe end, which cannot leave its machine".to_owned(),
            Reason::TooLong => "got a message that is longer than its bridge takes".to_owned(),
            Reason::Busy => "serves as many connections as its bridge takes".to_owned(),
            Reason::Failed => "has a pipe that failed, or has run out of memory".to_owned(),
        };
        format!("{side} {what}")
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Waits for so long, or until the bridge is to end.
    pub(crate) fn pause(&self, time: Duration) {
        let found = lock(&self.found);
        if !self.is_closing() {
            drop(wait(&self.found_more, found, time));
        }
    }

    /// No more is begun. Who serves something stops within a moment.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        lock(&self.exports).clear();
        lock(&self.tokens).clear();
        self.found_more.notify_all();
    }

    /// When all links were given up because the bridge ends. Who is [holding](Self::holding) something has a patience from then on.
    pub(crate) fn left_at(&self) -> Option<Instant> {
        self.left_at.get().copied()
    }

    /// To be held by who has something to bring to its end, once [`is_closing`](Self::is_closing) says so.
    pub(crate) fn finishing(&self) -> Arc<()> {
        Arc::clone(&self.finishing)
    }

    /// To be held by who has what belongs elsewhere as long as there is a link.
    pub(crate) fn holding(&self) -> Arc<()> {
        Arc::clone(&self.holding)
    }

    /// Gives all links up, once what has to be finished is, or patience is over; tells so, and leaves the network.
    pub(crate) fn leave(&self) {
        await_others(&self.finishing, self.settings.patience);
        let _ = self.left_at.set(Instant::now());
        let wires: Vec<_> = lock(&self.wires).values().cloned().collect();
        wires.iter().for_each(|wire| wire.reset(Reason::Ending));
        await_others(&self.holding, self.settings.patience);
        let session = {
            let _tokens = lock(&self.tokens);
            self.has_left.store(true, Ordering::Relaxed);
            self.access.session()
        };
        // It is of no use to anybody if it does not close.
        let _ = session.close().wait();
    }
}

/// Looks after the links that have come to their end: without a thread for each, since there may be many.
fn linger(network: &Weak<Network>) {
    while let Some(network) = network.upgrade() {
        let lingering = lock(&network.lingering);
        if lingering.is_empty() {
            drop(wait(&network.lingers, lingering, LOOK));
            continue;
        }
        let wires: Vec<_> = lingering.iter().cloned().collect();
        drop(lingering);
        let forgotten: HashSet<u64> =
            wires.into_iter().filter(|(_, wire)| wire.linger()).map(|(ours, _)| ours).collect();
        lock(&network.lingering).retain(|(ours, _)| !forgotten.contains(ours));
        lock(&network.wires).retain(|ours, _| !forgotten.contains(ours));
        drop(network);
        thread::sleep(LINGER);
    }
}

/// Waits until nobody else holds it, for so long at most.
fn await_others(held: &Arc<()>, patience: Duration) {
    let deadline = Instant::now() + patience;
    while Arc::strong_count(held) > 1 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

fn receive_strangers(network: &Weak<Network>, strangers: &Receiver<Packet>) {
    while let Ok(packet) = strangers.recv() {
        let Some(network) = network.upgrade() else { return };
        if !network.is_closing() {
            network.on_stranger(packet);
        }
    }
}

pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}
