//! What the benches share: the fd pipe to compare with, the other process, and the ratios at the end.

#![allow(dead_code, reason = "every bench compiles this and uses a part")]

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::Duration;

use criterion::Criterion;
use ringpipe::{Connection, DEFAULT_CAPACITY, RecvError, RecvIntoError};

/// One end of what carries messages both ways. A failure ends the bench, so it panics.
pub(crate) trait Pipe: Sized {
    fn send(&mut self, message: &[u8]);

    /// Receives a message to the front of `buf`; `None` when the other end is closed.
    fn recv(&mut self, buf: &mut [u8]) -> Option<usize>;
}

impl Pipe for Connection {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) {
        self.send_bytes(message).unwrap();
    }

    #[inline(always)]
    fn recv(&mut self, buf: &mut [u8]) -> Option<usize> {
        match self.recv_bytes_into(buf, 0) {
            Ok(len) => Some(len),
            Err(RecvIntoError::Recv(RecvError::Disconnected)) => None,
            Err(e) => panic!("{e}"),
        }
    }
}

/// Two pipes of the kernel's, one for each direction, with a 4-byte length before each message and as much room as the ring.
///
/// Up to 64 bytes go out in one `write` with their length, more in a second one: a body that starts a page of its own is up to
/// twice as fast. Two `read`s.
pub(crate) struct FdPipe {
    input: File,
    output: File,
    frame: Vec<u8>,
}

const SHORT: usize = 64;

impl FdPipe {
    /// Both ends. With `spin`, receiving polls without blocking (`O_NONBLOCK`).
    pub(crate) fn pair(spin: bool) -> (FdPipe, FdPipe) {
        let (there_from, there_to) = one_way(spin);
        let (back_from, back_to) = one_way(spin);
        let end = |input, output| FdPipe { input, output, frame: Vec::with_capacity(4 + SHORT) };
        (end(back_from, there_to), end(there_from, back_to))
    }

    /// False at end of file.
    fn fill(&mut self, mut buf: &mut [u8]) -> bool {
        while !buf.is_empty() {
            match self.input.read(buf) {
                Ok(0) => return false,
                Ok(n) => buf = &mut buf[n..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => panic!("{e}"),
            }
        }
        true
    }
}

impl Pipe for FdPipe {
    fn send(&mut self, message: &[u8]) {
        let prefix = (message.len() as u32).to_le_bytes();
        if message.len() > SHORT {
            self.output.write_all(&prefix).unwrap();
            self.output.write_all(message).unwrap();
            return;
        }
        self.frame.clear();
        self.frame.extend_from_slice(&prefix);
        self.frame.extend_from_slice(message);
        self.output.write_all(&self.frame).unwrap();
    }

    fn recv(&mut self, buf: &mut [u8]) -> Option<usize> {
        let mut prefix = [0; 4];
        if !self.fill(&mut prefix) {
            return None;
        }
        let len = u32::from_le_bytes(prefix) as usize;
        assert!(self.fill(&mut buf[..len]), "the peer died inside a message");
        Some(len)
    }
}

fn one_way(spin: bool) -> (File, File) {
    let mut fds = [0; 2];
    // SAFETY: the array has room for two descriptors; if the call succeeds they are open and owned by nobody else.
    let [from, to] = unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC));
        fds.map(|fd| OwnedFd::from_raw_fd(fd))
    };
    // SAFETY: plain calls on open descriptors. A system that refuses the size leaves it as it was.
    unsafe {
        libc::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, DEFAULT_CAPACITY as libc::c_int);
        if spin {
            check(libc::fcntl(from.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK));
        }
    }
    (from.into(), to.into())
}

fn check(result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

/// A forked process that serves the other end, on a processor of its own, until this end is closed.
pub(crate) struct Peer<P> {
    /// Taken out when the value is dropped.
    pipe: Option<P>,
    pid: libc::pid_t,
}

impl<P> Peer<P> {
    /// Only one peer may exist at a time: another one, forked later, would hold a copy of this one's end.
    pub(crate) fn fork((ours, theirs): (P, P), serve: impl FnOnce(P)) -> Peer<P> {
        let [here, there] = processors();
        // SAFETY: this process has one thread, so the child can go on as it likes.
        let pid = check(unsafe { libc::fork() });
        if pid == 0 {
            drop(ours);
            pin(there);
            let result = catch_unwind(AssertUnwindSafe(|| serve(theirs)));
            // SAFETY: never returns, and leaves what belongs to the parent alone.
            unsafe { libc::_exit(i32::from(result.is_err())) };
        }
        pin(here);
        Peer { pipe: Some(ours), pid }
    }

    pub(crate) fn pipe(&mut self) -> &mut P {
        self.pipe.as_mut().expect("there until dropped")
    }
}

impl<P> Drop for Peer<P> {
    fn drop(&mut self) {
        self.pipe = None;
        // SAFETY: waits for our own child, which ends now that the pipe is closed.
        unsafe { libc::waitpid(self.pid, ptr::null_mut(), 0) };
    }
}

/// The first two processors that this process was given, or one twice.
pub(crate) fn processors() -> [usize; 2] {
    thread_local! {
        // Asked once: afterwards this process is pinned to one of them.
        static PAIR: [usize; 2] = {
            // SAFETY: all zeros is an empty set, which the call fills in.
            let set = unsafe {
                let mut set: libc::cpu_set_t = mem::zeroed();
                check(libc::sched_getaffinity(0, size_of_val(&set), &mut set));
                set
            };
            // SAFETY: below the size of the set.
            let mut cpus = (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) });
            let first = cpus.next().expect("this process runs somewhere");
            [first, cpus.next().unwrap_or(first)]
        };
    }
    PAIR.with(|&pair| pair)
}

pub(crate) fn pin(cpu: usize) {
    // SAFETY: all zeros is an empty set, and `cpu` came out of such a set.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        check(libc::sched_setaffinity(0, size_of_val(&set), &set));
    }
}

/// Nanoseconds on the clock that both processes share.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in the value it is given.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) });
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub(crate) fn criterion() -> Criterion {
    let quick = Criterion::default().warm_up_time(Duration::from_millis(200)).sample_size(20);
    quick.measurement_time(Duration::from_secs(1)).configure_from_args()
}

/// Keeps what was measured, for the ratios at the end.
#[derive(Default)]
pub(crate) struct Tally(RefCell<Vec<Sample>>);

/// One call of a bench.
struct Sample {
    group: String,
    name: String,
    iters: u64,
    nanos: u64,
}

impl Tally {
    /// Notes a measurement, and passes it on.
    pub(crate) fn note(&self, group: &str, name: &str, iters: u64, nanos: u64) -> Duration {
        self.0.borrow_mut().push(Sample { group: group.into(), name: name.into(), iters, nanos });
        Duration::from_nanos(nanos)
    }

    /// Prints how many times longer the fd pipe took than the ringpipe of the same group.
    pub(crate) fn print(&self) {
        let samples = self.0.borrow();
        let mut groups: Vec<&str> = samples.iter().map(|sample| &*sample.group).collect();
        groups.dedup();
        for group in groups {
            let of = |name| samples.iter().filter(move |sample| sample.group == group && sample.name == name);
            if let (Some(ours), Some(theirs)) = (typical(of("ringpipe")), typical(of("fd pipe"))) {
                println!("{group}: ringpipe {ours:.1} ns, fd pipe {theirs:.1} ns, ratio {:.2}", theirs / ours);
            }
        }
    }
}

/// The median time of an iteration in the longer calls: the short ones are for warming up. `None` where nothing was repeated
/// (`--test`).
fn typical<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Option<f64> {
    let most = samples.clone().map(|sample| sample.iters).max().filter(|&most| most > 1)?;
    let long = samples.filter(|sample| sample.iters >= most / 2);
    let mut times: Vec<f64> = long.map(|sample| sample.nanos as f64 / sample.iters as f64).collect();
    times.sort_by(f64::total_cmp);
    Some(times[times.len() / 2])
}
