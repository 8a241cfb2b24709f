//! Making a bridge.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zenoh::Config;

use crate::error::BridgeError;
use crate::link::Settings;
use crate::network::{Event, Network, Report};
use crate::packet::MOST;
use crate::{pipe, queue};

/// Where a bridge listens that was not told: on this machine only.
pub const DEFAULT_ENDPOINT: &str = "tcp/127.0.0.1:7447";

/// A bridge that differs from the default.
///
/// ```no_run
/// use std::time::Duration;
///
/// let bridge = ringpipe_bridge::Builder::new()
///     .connect("tcp/192.0.2.7:7447")
///     .patience(Duration::from_secs(30))
///     .open()?;
/// bridge.import("jobs", "jobs")?;
/// # Ok::<(), ringpipe_bridge::BridgeError>(())
/// ```
#[must_use = "a builder does nothing until `open` is called"]
pub struct Builder {
    listen: Vec<String>,
    connect: Vec<String>,
    config: Option<PathBuf>,
    set: Vec<(String, String)>,
    patience: Duration,
    window: usize,
    longest: u64,
    most: usize,
    report: Report,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            listen: Vec::new(),
            connect: Vec::new(),
            config: None,
            set: Vec::new(),
            patience: Duration::from_secs(10),
            window: 4 << 20,
            longest: 1 << 30,
            most: 1000,
            report: Box::new(|_| {}),
        }
    }
}

impl Builder {
    /// The defaults: listens on [`DEFAULT_ENDPOINT`] if it is to connect to nobody.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Listens there for other bridges, such as `tcp/0.0.0.0:7447`. Whoever reaches that can use what is exported, unless
    /// TLS with certificates of both sides keeps strangers out.
    pub fn listen(mut self, endpoint: impl Into<String>) -> Builder {
        self.listen.push(endpoint.into());
        self
    }

    /// Connects to another bridge, and connects again whenever the connection is lost, or has carried nothing for half of the patience: see the README. It does not have to be
    /// there yet.
    pub fn connect(mut self, endpoint: impl Into<String>) -> Builder {
        self.connect.push(endpoint.into());
        self
    }

    /// Takes Zenoh's settings from a file (JSON5), certificates for instance. What is as Zenoh has it by default in it is as bridges have it by default: it listens on this
    /// machine only, and finds nobody by multicast or gossip. To insist, there is [`set`](Self::set).
    pub fn config(mut self, file: impl Into<PathBuf>) -> Builder {
        self.config = Some(file.into());
        self
    }

    /// Sets one of Zenoh's settings, by its path, to a value in JSON5.
    pub fn set(mut self, path: impl Into<String>, value: impl Into<String>) -> Builder {
        self.set.push((path.into(), value.into()));
        self
    }

    /// How long nothing may be heard of the far side before it counts as lost, and its pipes as broken; 10 s by default. To be the same on both sides, as a rule.
    pub fn patience(mut self, time: Duration) -> Builder {
        self.patience = time;
        self
    }

    /// Bytes that a bridge keeps for each direction of each connection, and once more on the far side: what may be on its way at a time. 4 MiB by default.
    pub fn window(mut self, bytes: usize) -> Builder {
        self.window = bytes;
        self
    }

    /// Bytes of the longest message that is carried; 1 GiB by default. A longer one breaks its pipe.
    pub fn longest(mut self, bytes: u64) -> Builder {
        self.longest = bytes;
        self
    }

    /// How many connections from other bridges are served at a time; 1,000 by default. Further ones are refused: their local programs see an end of file, or a broken pipe.
    pub fn connections(mut self, most: usize) -> Builder {
        self.most = most;
        self
    }

    /// Calls `report` with what happens. From several threads; it should not wait for anything.
    pub fn report(mut self, report: impl Fn(&Event) + Send + Sync + 'static) -> Builder {
        self.report = Box::new(report);
        self
    }

    /// Joins the network.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Network`]; [`BridgeError::Window`] for less than the smallest; [`BridgeError::Io`] without threads.
    pub fn open(self) -> Result<Bridge, BridgeError> {
        if self.window < MOST {
            return Err(BridgeError::Window { asked: self.window, min: MOST });
        }
        let config = self.zenoh().map_err(BridgeError::Network)?;
        let reopening = reopening(&config).map_err(BridgeError::Network)?;
        let settings = Settings { window: self.window as u64, patience: self.patience };
        let network = Network::join(config, reopening, settings, self.longest, self.most, self.report)?;
        Ok(Bridge { network })
    }

    fn zenoh(&self) -> zenoh::Result<Config> {
        // Zenoh is to notice that a machine is gone before the bridges do, and to give up a try to connect while there is time for others: packets lost on the way
        // delay one by seconds.
        let longest = Duration::from_secs(10);
        let lease = (self.patience / 4).clamp(Duration::from_millis(500), longest);
        let open = (self.patience / 4).clamp(Duration::from_secs(1), longest);
        let mut config = match &self.config {
            Some(file) => Config::from_file(file)?,
            None => Config::default(),
        };
        let plain = Config::default();
        let is_plain = |config: &Config, path: &str| config.get_json(path).ok() == plain.get_json(path).ok();
        let connects = !self.connect.is_empty() || !is_plain(&config, "connect/endpoints");
        let here: &[&str] = if connects { &[] } else { &[DEFAULT_ENDPOINT] };
        let defaults = [
            ("mode", "\"peer\"".to_owned()),
            ("scouting/multicast/enabled", "false".to_owned()),
            ("scouting/gossip/enabled", "false".to_owned()),
            ("connect/timeout_ms", "-1".to_owned()),
            ("connect/exit_on_failure", "false".to_owned()),
            // Short periods, since a try that is cut short makes the next one wait longer, and a line that is cut again and again is to be used in between.
            ("connect/retry", r#"{"period_init_ms":50,"period_max_ms":200,"period_increase_factor":2}"#.to_owned()),
            ("transport/unicast/open_timeout", open.as_millis().to_string()),
            ("transport/link/tx/lease", lease.as_millis().to_string()),
            // Batches of 64 KiB that wait to be written, instead of two: 64 KiB and more gained from nothing to a half through a bridge, and up to twice without.
            ("transport/link/tx/queue/size/data", "16".to_owned()),
            // No packet of a bridge is longer, and a stranger is not to have more put together.
            ("transport/link/rx/max_message_size", (2 * MOST).to_string()),
            ("listen/endpoints", format!("{here:?}")),
        ];
        for (path, value) in defaults {
            if is_plain(&config, path) {
                config.insert_json5(path, &value)?;
            }
        }
        for (path, endpoints) in [("listen/endpoints", &self.listen), ("connect/endpoints", &self.connect)] {
            if !endpoints.is_empty() {
                config.insert_json5(path, &format!("{endpoints:?}"))?;
            }
        }
        for (path, value) in &self.set {
            config.insert_json5(path, value)?;
        }
        Ok(config)
    }
}

/// How a bridge that connects to others opens a session in the place of another, which may listen for a while yet.
fn reopening(config: &Config) -> zenoh::Result<Option<Config>> {
    let endpoints = "connect/endpoints";
    if config.get_json(endpoints).ok() == Config::default().get_json(endpoints).ok() {
        return Ok(None);
    }
    let mut config = config.clone();
    // By a number of its own, if one was given: others may still take the one before it for connected.
    config.insert_json5("id", "null")?;
    config.insert_json5("listen/exit_on_failure", "false")?;
    config.insert_json5("listen/timeout_ms", "-1")?;
    Ok(Some(config))
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("listen", &self.listen)
            .field("connect", &self.connect)
            .field("config", &self.config)
            .field("patience", &self.patience)
            .field("window", &self.window)
            .field("longest", &self.longest)
            .field("connections", &self.most)
            .finish_non_exhaustive()
    }
}

/// Joins local names to keys on a network. See the [crate](crate).
///
/// When it is dropped, it stops offering names, gives up what it carries, as if its process had been killed, but at once for the far side, and leaves the network.
pub struct Bridge {
    network: Arc<Network>,
}

/// Which way the messages of a queue go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the importing hosts: their processes receive. A work queue's tasks.
    Take,
    /// From the importing hosts: their processes send. A work queue's answers.
    Put,
}

/// What becomes of messages that were given to a host which is lost, where it is not known whether one of its processes has taken them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doubt {
    /// They count as taken: nothing is ever received twice.
    #[default]
    Lose,
    /// They go to others: nothing is lost that nobody has taken, and what was taken in the last moments may be received twice.
    Repeat,
}

impl Bridge {
    /// A bridge with the defaults of [`Builder`].
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Offers the pipes of a local [`ringpipe::Listener`] to other bridges. For each client on another host, this side connects to `name`, waiting for it as long as
    /// patience goes.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Key`] and [`BridgeError::Taken`]; [`BridgeError::Network`].
    pub fn export(&self, name: impl AsRef<Path>, key: &str) -> Result<(), BridgeError> {
        pipe::export(&self.network, name.as_ref(), check(key)?)
    }

    /// Listens under a local name, as a [`ringpipe::Listener`] does, for what another bridge exports under `key`. Where several do, clients go to one after the other.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Key`]; [`BridgeError::Listen`] if the name cannot be listened to; [`BridgeError::Io`].
    pub fn import(&self, name: impl AsRef<Path>, key: &str) -> Result<(), BridgeError> {
        pipe::import(&self.network, name.as_ref(), check(key)?)
    }

    /// Offers a local queue ([`ringpipe::mpmc::Listener`]) to other bridges, one way.
    ///
    /// # Errors
    ///
    /// As [`export`](Self::export).
    pub fn export_queue(
        &self,
        name: impl AsRef<Path>,
        key: &str,
        direction: Direction,
        doubt: Doubt,
    ) -> Result<(), BridgeError> {
        queue::export(&self.network, name.as_ref(), check(key)?, direction, doubt)
    }

    /// Keeps a local queue, as a [`ringpipe::mpmc::Listener`] does, that is joined to one that another bridge exports.
    ///
    /// With [`Direction::Take`], so many messages at most lie ready here as `ahead` says, or as there are processes that have joined as receivers if it is `None`; none
    /// as long as there is no such process.
    ///
    /// # Errors
    ///
    /// As [`import`](Self::import).
    pub fn import_queue(
        &self,
        name: impl AsRef<Path>,
        key: &str,
        direction: Direction,
        ahead: Option<usize>,
    ) -> Result<(), BridgeError> {
        queue::import(&self.network, name.as_ref(), check(key)?, direction, ahead)
    }
}

fn check(key: &str) -> Result<&str, BridgeError> {
    let is_word = |word: &str| !word.is_empty() && !word.starts_with('@') && !word.contains(['*', '$', '?', '#']);
    if key.split('/').all(is_word) { Ok(key) } else { Err(BridgeError::Key { key: key.to_owned() }) }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.network.close();
        self.network.leave();
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").finish_non_exhaustive()
    }
}
