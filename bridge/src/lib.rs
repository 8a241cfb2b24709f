//! Carries [`ringpipe`]'s named pipes and queues to other hosts, over [Zenoh](https://zenoh.io), without a broker. Programs at both ends use plain ringpipe ends, and need not
//! know.
//!
//! ```no_run
//! use ringpipe_bridge::{Bridge, Direction, Doubt};
//!
//! // On the host where a `ringpipe::Listener` has the name `jobs`, and an `mpmc::Listener` the name `tasks`:
//! let bridge = Bridge::builder().listen("tcp/192.0.2.7:7447").open()?;
//! bridge.export("jobs", "jobs")?;
//! bridge.export_queue("tasks", "tasks", Direction::Take, Doubt::Lose)?;
//!
//! // On the others, where programs connect to these names as if they were there:
//! let bridge = Bridge::builder().connect("tcp/192.0.2.7:7447").open()?;
//! bridge.import("jobs", "jobs")?;
//! bridge.import_queue("tasks", "tasks", Direction::Take, None)?;
//! # Ok::<(), ringpipe_bridge::BridgeError>(())
//! ```
//!
//! `ringpipe bridge` is the same as a command. The README says what is promised, what is lost when, how much memory that takes, what it costs and how strangers are kept out.
//!
//! # How it works
//!
//! `link.rs` has the protocol between two bridges, and the argument why nothing is lost or doubled; it knows no network and no clock, and is tried over thousands of bad networks
//! (`link/simulation.rs`). `frames.rs` puts messages into its streams. `packet.rs` says what goes over the wire, and `wire.rs` and `network.rs` bring links, threads and Zenoh together; `threads.rs` and
//! `network/reopening.rs` deal with what is seen to go wrong there. `carry.rs`
//! stands between a link and a local end; `pipe.rs` and `queue.rs` decide which of them belong together.
#![cfg(target_os = "linux")]

mod bridge;
mod carry;
mod error;
mod frames;
mod link;
mod network;
mod packet;
mod pipe;
mod queue;
mod threads;
mod wire;

pub use bridge::{Bridge, Builder, DEFAULT_ENDPOINT, Direction, Doubt};
pub use error::BridgeError;
pub use network::{Event, What};
pub use threads::{stop_lingering, zenoh_runtime};
