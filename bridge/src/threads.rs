//! What a process of bridges had better do for Zenoh's threads, which all its connections share. A library leaves that to the program.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;
use std::{env, fs, io, thread};

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};

/// What Zenoh asks for.
const LINGER: Duration = Duration::from_secs(10);

/// What the environment variable `ZENOH_RUNTIME` had better be, if it is not set:
///
/// - more threads to send: one is blocked, for up to five seconds, by a connection that comes to its end while another host takes nothing;
/// - on a machine with one or two processors, a single thread to receive, which also accepts connections. Handing over from one to the other costs more than it gains
///   there. With it, [`stop_lingering`] is a must.
///
/// Zenoh looks at the variable when its first session is opened. `ringpipe bridge` sets it so; a library does not change the environment of its process.
pub fn zenoh_runtime() -> Option<&'static str> {
    if env::var_os("ZENOH_RUNTIME").is_some() {
        return None;
    }
    let has_few_processors = thread::available_parallelism().is_ok_and(|processors| processors.get() <= 2);
    Some(match has_few_processors {
        true => "(acc: (handover: rx), rx: (worker_threads: 1), tx: (worker_threads: 4))",
        false => "(tx: (worker_threads: 4))",
    })
}

/// Sees to it that the TCP sockets of Zenoh that there are do not linger: Zenoh 1.10 has a thread that closes one wait for up to ten seconds until the other host has taken everything, and all
/// that this thread serves waits as well. A host whose line is dead would stop the others for that long.
///
/// To be called every second or so, by a program in which no other socket is to linger for just as long. `ringpipe bridge` does.
///
/// # Errors
///
/// Those of reading `/proc/self/fd`.
pub fn stop_lingering() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // SAFETY: it is this process's, and in use only here: asked what it is, and changed if it is such a socket. If it is closed meanwhile, that is an error or, if the number has come to
        // be another socket's, true of that one.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let is_tcp = sockopt::socket_type(fd) == Ok(SocketType::STREAM)
            && sockopt::socket_domain(fd)
                .is_ok_and(|family| [AddressFamily::INET, AddressFamily::INET6].contains(&family));
        if is_tcp && sockopt::socket_linger(fd) == Ok(Some(LINGER)) {
            let _ = sockopt::set_socket_linger(fd, None);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn sockets_that_linger_as_zenohs_do_are_told_not_to() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let linger = |time| {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            sockopt::set_socket_linger(&stream, time).unwrap();
            stream
        };
        let streams = [Some(LINGER), Some(Duration::from_secs(3)), None].map(linger);
        stop_lingering().unwrap();
        let after = streams.map(|stream| sockopt::socket_linger(&stream).unwrap());
        assert_eq!(after, [None, Some(Duration::from_secs(3)), None]);
    }
}
