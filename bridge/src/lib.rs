//! Bridge.
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
mod wire;

pub use bridge::{Bridge, Builder, DEFAULT_ENDPOINT, Direction, Doubt};
pub use error::BridgeError;
pub use network::{Event, What};
