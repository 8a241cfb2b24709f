//! What the tests of bridges share: names and ports of their own, a line that can be cut, and messages that can be told apart.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

pub mod process;

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringpipe_bridge::{Bridge, Builder};

pub const LONG: Duration = Duration::from_secs(60);

/// A directory for names, removed at the end.
pub struct Names(PathBuf);

impl Names {
    pub fn new() -> Names {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ringpipe-bridge-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Names(dir)
    }

    pub fn of(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port that was free a moment ago.
pub fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn endpoint(port: u16) -> String {
    format!("tcp/127.0.0.1:{port}")
}

/// A bridge that says what happens to it if a test fails.
pub fn builder(who: &'static str) -> Builder {
    Builder::new().patience(Duration::from_secs(10)).report(move |event| eprintln!("{who}: {event}"))
}

/// Two bridges with a line between them.
pub struct Two {
    pub home: Bridge,
    pub away: Bridge,
    pub line: Line,
}

pub fn two(patience: Duration) -> Two {
    let behind = port();
    let home = builder("home").patience(patience).listen(endpoint(behind)).open().unwrap();
    let line = Line::to(behind);
    let away = builder("away").patience(patience).connect(endpoint(line.port)).open().unwrap();
    Two { home, away, line }
}

/// A line to a port of this machine, for connections of Zenoh's without TLS. It can be
///
/// - *cut*: connections break, and there are no new ones until it is joined again;
/// - *mute*: the connections that there are stay, and carry only signs of life in the place of what they should carry;
/// - *stalled*: the connections that there are stay, and nothing is taken of what is written one way, until they are *stranded*: both sides come to the end of what they read,
///   and who has connected goes on writing to nobody;
/// - *slowed down*, on the way there;
/// - made to *leave out* bytes, as no TCP does, but as it looks if a sender gives up writing in the midst of something and then writes something else.
pub struct Line {
    pub port: u16,
    state: Arc<LineState>,
}

/// Seen from who has connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    There,
    Back,
}

struct LineState {
    is_cut: AtomicBool,
    ended: AtomicBool,
    /// Both sides of each connection.
    open: Mutex<Vec<[TcpStream; 2]>>,
    /// Connections below this number are mute, there and back.
    mute: [AtomicU64; 2],
    /// Those below this one are not read any more.
    stalled: [AtomicU64; 2],
    carried: AtomicU64,
    /// Bytes that all connections together carry there in a second, and when the next may go.
    slow: Mutex<Option<(f64, Instant)>>,
    connections: AtomicU64,
    /// So many bytes are to be left out on the way there.
    left_out: AtomicUsize,
}

/// Zenoh writes batches, each behind its length in two bytes. This is one that says that the connection lives.
const SIGN_OF_LIFE: [u8; 3] = [1, 0, 4];

impl Line {
    pub fn to(behind: u16) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(LineState {
            is_cut: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
            mute: Default::default(),
            stalled: Default::default(),
            carried: AtomicU64::new(0),
            slow: Mutex::default(),
            connections: AtomicU64::new(0),
            left_out: AtomicUsize::new(0),
        });
        let of_thread = Arc::clone(&state);
        thread::spawn(move || {
            for near in listener.incoming() {
                if of_thread.ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(near) = near else { continue };
                if !of_thread.is_cut.load(Ordering::Relaxed) {
                    // One that cannot be made is one that breaks at once.
                    let _ = of_thread.join(near, behind);
                }
            }
        });
        Line { port, state }
    }

    /// Breaks what there is, in the middle of whatever is being carried.
    pub fn cut(&self) {
        self.state.is_cut.store(true, Ordering::Relaxed);
        self.break_all_but(0);
    }

    /// Breaks all connections but the last one.
    pub fn cut_old(&self) {
        self.break_all_but(1);
    }

    fn break_all_but(&self, last: usize) {
        let mut open = self.state.open.lock().unwrap();
        let old = open.len().saturating_sub(last);
        for stream in open.drain(..old).flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn join(&self) {
        self.state.is_cut.store(false, Ordering::Relaxed);
    }

    /// Makes the connections that there are mute, one way.
    pub fn mute(&self, way: Way) {
        self.state.mute[way as usize].store(self.connections(), Ordering::Relaxed);
    }

    pub fn slow_down(&self, bytes_in_a_second: f64) {
        *self.state.slow.lock().unwrap() = Some((bytes_in_a_second, Instant::now()));
    }

    pub fn stall(&self, way: Way) {
        self.state.stalled[way as usize].store(self.connections(), Ordering::Relaxed);
    }

    pub fn strand(&self) {
        for [near, far] in self.state.open.lock().unwrap().drain(..) {
            let _ = near.shutdown(Shutdown::Write);
            let _ = far.shutdown(Shutdown::Both);
        }
    }

    /// Leaves out so many bytes on the way there, once there is a batch that is long enough.
    pub fn leave_out(&self, bytes: usize) {
        self.state.left_out.store(bytes, Ordering::Relaxed);
        eventually("bytes are left out", || self.state.left_out.load(Ordering::Relaxed) == 0);
    }

    /// Bytes that have gone through, both ways.
    pub fn carried(&self) -> u64 {
        self.state.carried.load(Ordering::Relaxed)
    }

    /// How many connections there have been.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }
}

impl LineState {
    fn join(self: &Arc<LineState>, near: TcpStream, behind: u16) -> io::Result<()> {
        let far = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], behind)))?;
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
        }
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let there = (Way::There, near.try_clone()?, far.try_clone()?);
        let back = (Way::Back, far.try_clone()?, near.try_clone()?);
        for (way, from, to) in [there, back] {
            let state = Arc::clone(self);
            thread::spawn(move || {
                // It ends when there is nothing more to be read, or nobody who would.
                let _ = state.carry(number, way, &from, &to);
                while number < state.stalled[way as usize].load(Ordering::Relaxed)
                    && !state.ended.load(Ordering::Relaxed)
                {
                    thread::sleep(Duration::from_millis(10));
                }
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
            });
        }
        self.open.lock().unwrap().push([near, far]);
        Ok(())
    }

    /// Waits until so many bytes have gone over a slow line.
    fn take_time(&self, bytes: usize) {
        let now = Instant::now();
        let until = self.slow.lock().unwrap().as_mut().map(|(rate, next)| {
            *next = (*next).max(now) + Duration::from_secs_f64(bytes as f64 / *rate);
            *next
        });
        until.into_iter().for_each(|until| thread::sleep(until - now));
    }

    /// Carries batch after batch.
    fn carry(&self, number: u64, way: Way, from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut from = BufReader::with_capacity(64 << 10, from);
        let mut buffer = vec![0; 2 + usize::from(u16::MAX)];
        while number >= self.stalled[way as usize].load(Ordering::Relaxed) {
            from.read_exact(&mut buffer[..2])?;
            let mut len = 2 + usize::from(u16::from_le_bytes([buffer[0], buffer[1]]));
            from.read_exact(&mut buffer[2..len])?;
            if way == Way::There {
                self.take_time(len);
            }
            if number < self.mute[way as usize].load(Ordering::Relaxed) {
                to.write_all(&SIGN_OF_LIFE)?;
                continue;
            }
            let without = self.left_out.load(Ordering::Relaxed);
            if way == Way::There && without > 0 && len >= 2 * without.max(2000) {
                self.left_out.store(0, Ordering::Relaxed);
                buffer.copy_within(len / 2 + without..len, len / 2);
                len -= without;
            }
            // In two, so that a cut is in the midst of one now and then.
            to.write_all(&buffer[..len / 2])?;
            to.write_all(&buffer[len / 2..len])?;
            self.carried.fetch_add(len as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        self.cut();
        // So that the thread looks.
        let _ = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port)));
    }
}

/// A message that says which it is, of a length that goes with that.
pub fn message(number: u64) -> Vec<u8> {
    let len = match number % 50 {
        0 => 300_000 + (number as usize * 7919) % 1_000_000,
        1..10 => (number as usize * 7919) % 20_000,
        _ => (number as usize * 31) % 200,
    };
    message_of(number, len)
}

/// The same with a length of one's choice, and at least of 8 bytes.
pub fn message_of(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((8..len).map(|i| (i as u64 ^ number) as u8));
    bytes
}

pub fn number_of(message: &[u8]) -> u64 {
    u64::from_le_bytes(message[..8].try_into().unwrap())
}

/// Waits for something that is to come true.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
