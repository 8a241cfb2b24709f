//! What the tests of bridges share: names and ports of their own, a line that can be cut, and messages that can be told apart.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

pub mod process;

use std::io::{self, Read, Write};
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

/// A line to a port of this machine, which can be cut: connections break, and there are no new ones until it is joined again. Or it
/// leaves out bytes, as no TCP does, but as it looks if a sender gives up writing in the midst of something and then writes something else.
pub struct Line {
    pub port: u16,
    state: Arc<LineState>,
}

struct LineState {
    is_cut: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    carried: AtomicU64,
    /// So many bytes are to be left out on the way to the port.
    left_out: AtomicUsize,
}

impl Line {
    pub fn to(behind: u16) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(LineState {
            is_cut: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
            carried: AtomicU64::new(0),
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
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn join(&self) {
        self.state.is_cut.store(false, Ordering::Relaxed);
    }

    /// Leaves out so many bytes of one connection, once it has that much to carry to the port.
    pub fn leave_out(&self, bytes: usize) {
        self.state.left_out.store(bytes, Ordering::Relaxed);
        eventually("bytes are left out", || self.state.left_out.load(Ordering::Relaxed) == 0);
    }

    /// Bytes that have gone through, both ways.
    pub fn carried(&self) -> u64 {
        self.state.carried.load(Ordering::Relaxed)
    }
}

impl LineState {
    fn join(self: &Arc<LineState>, near: TcpStream, behind: u16) -> io::Result<()> {
        let far = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], behind)))?;
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
        }
        for (from, to, is_there) in
            [(near.try_clone()?, far.try_clone()?, true), (far.try_clone()?, near.try_clone()?, false)]
        {
            let state = Arc::clone(self);
            thread::spawn(move || state.carry(from, to, is_there));
        }
        self.open.lock().unwrap().extend([near, far]);
        Ok(())
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, is_there: bool) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(mut len @ 1..) = from.read(&mut buffer) {
            let without = self.left_out.load(Ordering::Relaxed);
            if is_there && without > 0 && len >= 2 * without {
                self.left_out.store(0, Ordering::Relaxed);
                buffer.copy_within(len / 2 + without..len, len / 2);
                len -= without;
            }
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
            self.carried.fetch_add(len as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
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
