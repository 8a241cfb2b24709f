//! Another session in the place of one that carries nothing.
//!
//! Zenoh 1.10 was seen to get into that state when a connection came back while the one before it was still being closed: what is closed last takes the new one, which is of the same peer, out of
//! Zenoh's tables. It stays, and signs of life keep it, but nothing is sent by it. Who has connected can open another session, with connections of its own. What was on its way counts as lost.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use zenoh::liveliness::LivelinessToken;
use zenoh::{Session, Wait};

use super::{Network, start};
use crate::wire::{Wire, lock};

pub(super) struct Reopening {
    /// What to open a session with; `None` if only others connect, who then do it.
    config: Option<zenoh::Config>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_under_way: bool,
    last: Option<Instant>,
    /// How many were opened since nobody was found, and nobody has been.
    in_vain: u32,
}

impl Reopening {
    pub(super) fn new(config: Option<zenoh::Config>) -> Reopening {
        Reopening { config, state: Arc::default() }
    }
}

impl Network {
    /// A link complains.
    pub(super) fn on_complaint(self: &Arc<Network>, of: &Wire) {
        // A line that is only slow carries something for one link or the other.
        if !lock(&self.wires).values().any(|wire| wire.peer() == of.peer() && wire.is_well()) {
            self.reopen_soon(false);
        }
    }

    /// Nobody is found who exports something.
    pub(super) fn on_nobody(self: &Arc<Network>) {
        if !lock(&self.wires).values().any(|wire| wire.is_well()) {
            self.reopen_soon(true);
        }
    }

    /// Somebody was found, and answers.
    pub(super) fn on_somebody(&self) {
        lock(&self.reopening.state).in_vain = 0;
    }

    /// Begins to open another session, at most once in a patience, so that a line which is only slow gets something through in between. For nobody it does so ever more seldom: as a
    /// rule there is nobody, and it is of no use.
    fn reopen_soon(self: &Arc<Network>, for_nobody: bool) {
        let Some(config) = &self.reopening.config else { return };
        let mut state = lock(&self.reopening.state);
        if state.is_under_way || self.has_left.load(Ordering::Relaxed) {
            return;
        }
        let pause = self.settings.patience * if for_nobody { 1 << state.in_vain.min(6) } else { 1 };
        if state.last.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        let (network, config, of_thread) = (Arc::downgrade(self), config.clone(), Arc::clone(&self.reopening.state));
        // Without the network, which may come to its end meanwhile: Zenoh may take long to open a session, and to close one.
        let reopen = move || {
            let unused = zenoh::open(config).wait().ok().map(|session| match network.upgrade() {
                Some(network) => network.switch_to(session),
                None => (session, Vec::new()),
            });
            lock(&of_thread).is_under_way = false;
            if let Some((session, tokens)) = unused {
                drop(tokens);
                let _ = session.close().wait();
            }
        };
        if start("bridge-reopen", reopen).is_ok() {
            state.is_under_way = true;
            state.last = Some(Instant::now());
            state.in_vain += u32::from(for_nobody);
        }
    }

    /// Puts a session in the place of the one in use. Returns the one that is of no use any more.
    fn switch_to(self: &Arc<Network>, session: Session) -> (Session, Vec<LivelinessToken>) {
        let mut tokens = lock(&self.tokens);
        if self.has_left.load(Ordering::Relaxed) {
            return (session, Vec::new());
        }
        {
            let mut found = lock(&self.found);
            self.generation.fetch_add(1, Ordering::Relaxed);
            found.clear();
        }
        let Ok(new) = self.listen(&session) else {
            // As good as closed. The old one stays, and who misses something complains again.
            return (session, Vec::new());
        };
        let old_tokens = std::mem::replace(&mut *tokens, new);
        let old = self.access.replace(session);
        drop(tokens);
        let wires: Vec<_> = lock(&self.wires).values().cloned().collect();
        wires.iter().for_each(|wire| wire.on_reconnect());
        (old, old_tokens)
    }
}
