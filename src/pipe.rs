//! Making pipes.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::Connection;
use crate::error::BuildError;
use crate::layout::{Geometry, MAX_CAPACITY, MAX_SPIN_MICROS, MAX_WINDOW, MIN_CAPACITY, MIN_MANY_CAPACITY, WINDOWS};
use crate::receiver::Receiver;
use crate::segment::{ANONYMOUS, Segment};
use crate::sender::Sender;
use crate::{bell, inspect, mpmc, sys};

/// Makes a duplex pipe: two connections, each of which sends to the other. Follows `multiprocessing.Pipe()`.
///
/// ```
/// let (mut a, mut b) = ringpipe::pipe()?;
/// a.send_bytes(b"ping")?;
/// assert_eq!(b.recv_bytes()?, b"ping");
/// b.send_bytes(b"pong")?;
/// assert_eq!(a.recv_bytes()?, b"pong");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`BuildError::Io`] when descriptors or memory run out.
pub fn pipe() -> Result<(Connection, Connection), BuildError> {
    Builder::new().pipe()
}

/// Makes a pipe of one direction. Follows `multiprocessing.Pipe(duplex=False)`, in its order: the first end only receives, the
/// second only sends.
///
/// ```
/// let (mut receiver, mut sender) = ringpipe::simplex()?;
/// sender.send_bytes(b"hello")?;
/// assert_eq!(receiver.recv_bytes()?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`BuildError::Io`] when descriptors or memory run out.
pub fn simplex() -> Result<(Receiver, Sender), BuildError> {
    Builder::new().simplex()
}

/// Makes pipes that differ from the default.
///
/// ```
/// let (a, _b) = ringpipe::Builder::new().capacity(1 << 20).pipe()?;
/// assert_eq!(a.sender().capacity(), 1 << 20);
/// # Ok::<(), ringpipe::BuildError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `pipe`, `simplex` or `mpmc` is called"]
pub struct Builder {
    capacity: usize,
    spin: Duration,
    prefault: bool,
    /// Of the memory files.
    name: Cow<'static, CStr>,
}

/// What a blocked call does until there is something: how much processor time is given for how little delay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitStrategy {
    /// Lowest latency: spins for up to a second in each wait, whether or not that has been paying off, and only then sleeps. It takes a
    /// processor of its own for each side.
    BusySpin,
    /// The default: spins for up to 50 µs, as long as that has been paying off lately, then sleeps.
    #[default]
    Adaptive,
    /// Least processor time: sleeps at once, and is woken by a system call of the other side's for each message that it waits for.
    Blocking,
}

/// Bytes of a ring unless the builder is told otherwise.
pub const DEFAULT_CAPACITY: usize = 256 << 10;

impl Default for Builder {
    fn default() -> Builder {
        let name = Cow::Borrowed(ANONYMOUS);
        Builder { capacity: DEFAULT_CAPACITY, spin: Duration::ZERO, prefault: false, name }
            .wait_strategy(WaitStrategy::default())
    }
}

impl Builder {
    /// The defaults: 256 KiB for each direction, and [`WaitStrategy::Adaptive`].
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Bytes of the ring of each direction, headers included (8 bytes a message): how much can be sent while nobody receives.
    ///
    /// Rounded up to a power of two, at least 4096 and at most 2^30. Zero and larger wishes are refused when the pipe is made.
    /// The memory is taken page by page as it is first used. Messages may be longer than the ring. In a ring for many, a message takes
    /// a multiple of 64 bytes, without a header, and the smallest such ring has 64 KiB.
    pub fn capacity(mut self, bytes: usize) -> Builder {
        self.capacity = bytes;
        self
    }

    /// How blocked calls wait. The setting belongs to the pipe: whoever attaches to an end uses it too.
    pub fn wait_strategy(self, strategy: WaitStrategy) -> Builder {
        self.spin(match strategy {
            WaitStrategy::BusySpin => Duration::from_micros(MAX_SPIN_MICROS.into()),
            WaitStrategy::Adaptive => Duration::from_micros(50),
            WaitStrategy::Blocking => Duration::ZERO,
        })
    }

    /// The longest that a blocked call spins before it sleeps, where none of the [strategies](WaitStrategy) is right; zero for never, at most a second.
    ///
    /// Spinning adapts: it goes on only as long as it has been paying off lately, which it never does where both sides share a processor. (A second, the
    /// most, is [`WaitStrategy::BusySpin`], which does not adapt.) More of it means lower latency and more processor time.
    pub fn spin(mut self, longest: Duration) -> Builder {
        self.spin = longest;
        self
    }

    /// Whether to take all of the memory when the pipe is made, instead of page by page on the first way round the ring: so the first messages take no longer
    /// than the others (some 3 µs for each 4 KiB, on a virtual machine), and a lack of memory shows at once. Off by default. Linux before 5.14 ignores it.
    pub fn prefault(mut self, on: bool) -> Builder {
        self.prefault = on;
        self
    }

    /// Names the pipes after a listener, for whoever [inspects](crate::inspect) them.
    pub(crate) fn named(mut self, listener: &Path) -> Builder {
        self.name = Cow::Owned(inspect::label(listener));
        self
    }

    /// Makes a duplex pipe, as [`pipe`].
    ///
    /// # Errors
    ///
    /// [`BuildError::Capacity`], or as [`pipe`].
    pub fn pipe(&self) -> Result<(Connection, Connection), BuildError> {
        let segment = self.segment(2)?;
        let (there_from, there_to) = direction(&segment, 0)?;
        let (here_from, here_to) = direction(&segment, 1)?;
        Ok((Connection::new(there_to, here_from), Connection::new(here_to, there_from)))
    }

    /// Makes a pipe of one direction, as [`simplex`].
    ///
    /// # Errors
    ///
    /// [`BuildError::Capacity`], or as [`simplex`].
    pub fn simplex(&self) -> Result<(Receiver, Sender), BuildError> {
        direction(&self.segment(1)?, 0)
    }

    /// Makes a pipe for many senders and many receivers, as [`mpmc::simplex`].
    ///
    /// The smallest ring for many has 64 KiB.
    ///
    /// # Errors
    ///
    /// [`BuildError::Capacity`], or as [`mpmc::simplex`].
    pub fn mpmc(&self) -> Result<(mpmc::Receiver, mpmc::Sender), BuildError> {
        let mut geometry = Geometry::mpmc(self.capacity_from(MIN_MANY_CAPACITY)?, self.spin_micros());
        // A limit on file sizes bounds them. Of whole pages, however large those are.
        const PAGES: u64 = 64 << 10;
        let room = sys::longest_file().saturating_sub(geometry.file_len()) / WINDOWS;
        geometry.window = (room & !(PAGES - 1)).min(MAX_WINDOW);
        Ok(mpmc::make(self.create(geometry)?)?)
    }

    fn segment(&self, directions: usize) -> Result<Arc<Segment>, BuildError> {
        let geometry = Geometry::spsc(self.capacity_from(MIN_CAPACITY)?, directions, self.spin_micros());
        Ok(self.create(geometry)?)
    }

    fn create(&self, geometry: Geometry) -> io::Result<Arc<Segment>> {
        let segment = Segment::create(geometry, &self.name)?;
        if self.prefault {
            segment.populate()?;
        }
        Ok(Arc::new(segment))
    }

    fn capacity_from(&self, min: usize) -> Result<usize, BuildError> {
        match self.capacity {
            asked @ 1..=MAX_CAPACITY => Ok(asked.next_power_of_two().max(min)),
            asked => Err(BuildError::Capacity { asked, min, max: MAX_CAPACITY }),
        }
    }

    fn spin_micros(&self) -> u32 {
        self.spin.as_micros().min(u128::from(MAX_SPIN_MICROS)) as u32
    }
}

fn direction(segment: &Arc<Segment>, index: usize) -> Result<(Receiver, Sender), BuildError> {
    let (receiving, sending) = sys::socketpair()?;
    // SAFETY: the control block is all atomics, and lives as long as the segment.
    bell::arm_fresh(unsafe { &segment.control(index).as_ref().not_empty.0 });
    let receiver = Receiver::new(Arc::clone(segment), index, receiving);
    let sender = Sender::new(Arc::clone(segment), index, sending);
    Ok((receiver, sender))
}
