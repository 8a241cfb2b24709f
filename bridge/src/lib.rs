//! Bridge.
#![cfg(target_os = "linux")]
mod frames;
mod link;
mod packet;
