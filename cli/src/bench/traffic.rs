//! The loops that are timed: one function for each side of each kind of traffic.

use std::io;
use std::thread;
use std::time::Duration;

use crate::bench::cpu;
use crate::bench::message::{Check, Stamp};
use crate::bench::transport::Transport;

/// Time between two messages of [`beat`].
pub(crate) const INTERVAL: Duration = Duration::from_micros(200);
/// A message of [`beat`]: sequence number and time of sending.
const BEAT: usize = 16;

/// One way, sending side; returns when it began.
pub(crate) fn flood(link: &mut impl Transport, size: usize, count: u64) -> io::Result<u64> {
    let mut stamp = Stamp::new(size);
    let start = cpu::now();
    for seq in 0..count {
        link.send(stamp.number(seq))?;
    }
    Ok(start)
}

/// One way, receiving side; returns when the last message had been checked.
pub(crate) fn sink(link: &mut impl Transport, size: usize, count: u64, buf: &mut [u8]) -> io::Result<u64> {
    let mut check = Check::new(size);
    for seq in 0..count {
        let len = link.recv(buf)?;
        check.look(&buf[..len], seq)?;
    }
    Ok(cpu::now())
}

/// Round trips, the side that starts and checks what comes back; returns nanoseconds for all of them.
pub(crate) fn ping(link: &mut impl Transport, size: usize, count: u64) -> io::Result<u64> {
    let (mut stamp, mut check, mut buf) = (Stamp::new(size), Check::new(size), vec![0; size]);
    let start = cpu::now();
    for seq in 0..count {
        link.send(stamp.number(seq))?;
        let len = link.recv(&mut buf)?;
        check.look(&buf[..len], seq)?;
    }
    Ok(cpu::now() - start)
}

/// Round trips, the side that answers.
pub(crate) fn echo(link: &mut impl Transport, size: usize, count: u64) -> io::Result<()> {
    let mut buf = vec![0; size];
    for _ in 0..count {
        let len = link.recv(&mut buf)?;
        link.send(&buf[..len])?;
    }
    Ok(())
}

/// Sends one message, with the time in it, every [`INTERVAL`]; returns the processor time that this took.
pub(crate) fn beat(link: &mut impl Transport, count: u64) -> io::Result<u64> {
    let before = cpu::used();
    let mut message = [0; BEAT];
    for seq in 0..count {
        thread::sleep(INTERVAL);
        message[..8].copy_from_slice(&seq.to_le_bytes());
        message[8..].copy_from_slice(&cpu::now().to_le_bytes());
        link.send(&message)?;
    }
    Ok(cpu::used() - before)
}

/// Receives from [`beat`]; returns how many nanoseconds each message took, and the processor time of it all.
pub(crate) fn listen(link: &mut impl Transport, count: u64) -> io::Result<(Vec<f64>, u64)> {
    let mut latencies = Vec::with_capacity(count as usize);
    let mut message = [0; BEAT];
    let before = cpu::used();
    for seq in 0..count {
        let len = link.recv(&mut message)?;
        let now = cpu::now();
        let number = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("8 bytes"));
        if len != BEAT || number(0) != seq {
            let what = format!("message {seq} arrived damaged: {len} bytes, sequence number {}", number(0));
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        latencies.push(now.saturating_sub(number(8)) as f64);
    }
    Ok((latencies, cpu::used() - before))
}
