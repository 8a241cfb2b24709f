//! What can go wrong when a bridge is set up. What goes wrong later is an [`Event`](crate::Event).

use ringpipe::ListenError;
use thiserror::Error;

/// Why a bridge, or one of its names, is not there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// The network cannot be joined as asked for: an address that is in use, a certificate that cannot be read, a setting that does not exist.
    #[error("cannot join the network: {0}")]
    Network(#[source] zenoh::Error),
    /// This can be no key.
    #[error("{key:?} cannot be a key: use words with `/` between them, without `*`, `$`, `?` and `#`")]
    Key {
        /// What was asked for.
        key: String,
    },
    /// This bridge exports under that key already.
    #[error("{key:?} is exported by this bridge already: use another key")]
    Taken {
        /// The key.
        key: String,
    },
    /// The window is too small.
    #[error("a window of {asked} bytes is too small: use at least {min}")]
    Window {
        /// Bytes asked for.
        asked: usize,
        /// The smallest.
        min: usize,
    },
    /// The name cannot be listened to.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Io(#[from] std::io::Error),
}
