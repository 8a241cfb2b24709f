//! Every form of sending and of receiving, so that a test can go through all of them; and what such tests have in common.
//!
//! Pipes for two and for many have the same methods, of types that have nothing else in common: hence macros.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use ringpipe::{RecvError, RecvIntoError, SendError};

/// A time-out that is meant to pass.
pub(crate) const SHORT: Duration = Duration::from_millis(20);
/// One that is not.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Longer than any message of a test that goes through the forms.
pub(crate) const MAX: usize = 1 << 30;

/// How long a form waits for what it does not find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// The plain form.
    Ever,
    /// `try_`.
    Never,
    /// `_timeout` and `_deadline`.
    InTime,
}

/// `Recvs`, the type of a form of receiving by `$end`, a reference, and `RECV_FORMS`: their names, how they wait, and they. Messages have to fit in `$room`
/// bytes. Further rows can follow.
macro_rules! recv_forms {
    ($end:ty, $room:expr $(; $($more:expr),+)?) => {
        type Recvs = fn($end, std::time::Duration) -> Result<Vec<u8>, ringpipe::RecvError>;

        const RECV_FORMS: &[(&str, $crate::support::forms::Waits, Recvs)] = {
            use $crate::support::forms::{MAX, Waits::*, into, soon};
            &[
                ("recv_bytes", Ever, |c, _| c.recv_bytes()),
                ("try_recv_bytes", Never, |c, _| c.try_recv_bytes()),
                ("recv_bytes_timeout", InTime, |c, t| c.recv_bytes_timeout(t)),
                ("recv_bytes_deadline", InTime, |c, t| c.recv_bytes_deadline(soon(t))),
                ("recv_bytes_max", Ever, |c, _| c.recv_bytes_max(MAX)),
                ("try_recv_bytes_max", Never, |c, _| c.try_recv_bytes_max(MAX)),
                ("recv_bytes_max_timeout", InTime, |c, t| c.recv_bytes_max_timeout(MAX, t)),
                ("recv_bytes_max_deadline", InTime, |c, t| c.recv_bytes_max_deadline(MAX, soon(t))),
                ("recv_bytes_into", Ever, |c, _| into($room, |buf, at| c.recv_bytes_into(buf, at))),
                ("try_recv_bytes_into", Never, |c, _| into($room, |buf, at| c.try_recv_bytes_into(buf, at))),
                ("recv_bytes_into_timeout", InTime, |c, t| into($room, |buf, at| c.recv_bytes_into_timeout(buf, at, t))),
                ("recv_bytes_into_deadline", InTime, |c, t| {
                    into($room, |buf, at| c.recv_bytes_into_deadline(buf, at, soon(t)))
                }),
                ("recv_guard", Ever, |c, _| c.recv_guard().map(|guard| guard.to_vec())),
                ("try_recv_guard", Never, |c, _| c.try_recv_guard().map(|guard| guard.to_vec())),
                ("recv_guard_timeout", InTime, |c, t| c.recv_guard_timeout(t).map(|guard| guard.to_vec())),
                ("recv_guard_deadline", InTime, |c, t| c.recv_guard_deadline(soon(t)).map(|guard| guard.to_vec())),
                $($($more),+)?
            ]
        };
    };
}
pub(crate) use recv_forms;

/// As `recv_forms`: `Sends` and `SEND_FORMS`.
macro_rules! send_forms {
    ($end:ty $(; $($more:expr),+)?) => {
        type Sends = fn($end, &[u8], std::time::Duration) -> Result<(), ringpipe::SendError>;

        const SEND_FORMS: &[(&str, $crate::support::forms::Waits, Sends)] = {
            use $crate::support::forms::{Waits::*, in_place, parts, soon};
            &[
                ("send_bytes", Ever, |c, m, _| c.send_bytes(m)),
                ("try_send_bytes", Never, |c, m, _| c.try_send_bytes(m)),
                ("send_bytes_timeout", InTime, |c, m, t| c.send_bytes_timeout(m, t)),
                ("send_bytes_deadline", InTime, |c, m, t| c.send_bytes_deadline(m, soon(t))),
                ("send_vectored", Ever, |c, m, _| c.send_vectored(&parts(m))),
                ("try_send_vectored", Never, |c, m, _| c.try_send_vectored(&parts(m))),
                ("send_vectored_timeout", InTime, |c, m, t| c.send_vectored_timeout(&parts(m), t)),
                ("send_vectored_deadline", InTime, |c, m, t| c.send_vectored_deadline(&parts(m), soon(t))),
                ("reserve", Ever, |c, m, _| in_place!(c.reserve(m.len()), m)),
                ("try_reserve", Never, |c, m, _| in_place!(c.try_reserve(m.len()), m)),
                ("reserve_timeout", InTime, |c, m, t| in_place!(c.reserve_timeout(m.len(), t), m)),
                ("reserve_deadline", InTime, |c, m, t| in_place!(c.reserve_deadline(m.len(), soon(t)), m)),
                $($($more),+)?
            ]
        };
    };
}
pub(crate) use send_forms;

/// In two parts.
macro_rules! in_place {
    ($guard:expr, $message:expr) => {
        $guard.and_then(|mut guard| {
            let (front, back) = $message.split_at($message.len() / 3);
            guard.write(front);
            guard.write(back);
            guard.commit()
        })
    };
}
pub(crate) use in_place;

/// In three parts, one of them empty.
pub(crate) fn parts(message: &[u8]) -> [IoSlice<'_>; 3] {
    let (front, back) = message.split_at(message.len() / 3);
    [front, &[], back].map(IoSlice::new)
}

/// What `call` receives into a buffer of so many bytes, from an offset on.
pub(crate) fn into(
    room: usize,
    call: impl FnOnce(&mut [u8], usize) -> Result<usize, RecvIntoError>,
) -> Result<Vec<u8>, RecvError> {
    let mut buf = vec![0; 5 + room];
    match call(&mut buf, 5) {
        Ok(len) => Ok(buf[5..][..len].to_vec()),
        Err(RecvIntoError::Recv(e)) => Err(e),
        Err(e) => panic!("{e}"),
    }
}

pub(crate) fn soon(timeout: Duration) -> Instant {
    Instant::now() + timeout
}

/// Asserts that `call` takes at least as long as `least`, and not for ever.
pub(crate) fn lasting<T>(least: Duration, what: &str, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = call();
    let took = start.elapsed();
    assert!(took >= least, "{what} returned after {took:?}, before {least:?}");
    assert!(took < LONG / 2, "{what} took {took:?}");
    result
}

pub(crate) fn message(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed * 31 + i * 7 + i / 251) as u8).collect()
}

/// Has `send` send messages of `len` bytes, numbered from 0, until there is no room for another; returns how many.
pub(crate) fn fill_by(len: usize, mut send: impl FnMut(&[u8]) -> Result<(), SendError>) -> usize {
    let mut count = 0;
    loop {
        match send(&message(count, len)) {
            Ok(()) => count += 1,
            Err(SendError::Full) => return count,
            Err(e) => panic!("{e}"),
        }
    }
}

pub(crate) fn is_eof<T>(result: &Result<T, RecvError>) -> bool {
    matches!(result, Err(RecvError::Disconnected))
}

pub(crate) fn is_broken<T>(result: &Result<T, SendError>) -> bool {
    matches!(result, Err(SendError::Disconnected))
}

pub(crate) fn timed_out<T>(result: &Result<T, RecvError>) -> bool {
    matches!(result, Err(RecvError::TimedOut))
}
