//! What the processes of a round share beside the pipe: who is there, how far everybody is, and the first fault.
//!
//! The memory is the round's own and has nothing to do with the product, so it outlives whoever is killed. All words are atomics. Those of
//! a direction's sending side are written by whoever has the turn to send, those of the receiving side likewise.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create};

use crate::soak::clock;
use crate::soak::script::{Fate, Tracker};

/// The shared memory of a round.
pub(crate) struct Board {
    map: MmapRaw,
    file: OwnedFd,
}

#[repr(C)]
pub(crate) struct Words {
    /// When senders stop, unless they are to go on until they fail.
    pub(crate) ends_at: AtomicU64,
    /// Nobody rests any more: somebody was killed, and it is of interest how soon the others know.
    pub(crate) hurry: AtomicU64,
    /// Time for which the machine (or a SIGSTOP) kept somebody from running, in all, at least as far as it was noticed.
    pub(crate) stolen: AtomicU64,
    pub(crate) execs: AtomicU64,
    pub(crate) forks: AtomicU64,
    roles_len: AtomicU64,
    roles: [Role; ROLES],
    pub(crate) lanes: [Lane; 2],
    /// 0: no fault; 1: being written; otherwise 2 + its length.
    fault: AtomicU64,
    fault_text: [AtomicU8; FAULT],
}

const ROLES: usize = 16;
const FAULT: usize = 4096;

/// One process or thread that sends or receives in one direction.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Role {
    /// Set last; 0 as long as nobody is there.
    pid: AtomicU64,
    thread: AtomicU64,
    /// `2 * lane + 1` for a sender, `2 * lane` for a receiver.
    kind: AtomicU64,
    pub(crate) end: AtomicU64,
    pub(crate) ended_at: AtomicU64,
    pub(crate) killed_at: AtomicU64,
}

/// How a role ended; 0 as long as it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum End {
    /// By its own choice.
    Finished = 1,
    /// With end of file, or a broken pipe.
    Gone = 2,
}

/// One direction.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) tx: Tx,
    pub(crate) rx: Rx,
    log: Log,
}

#[repr(C, align(256))]
#[derive(Default)]
pub(crate) struct Tx {
    /// Numbers below this have been begun...
    pub(crate) begun: AtomicU64,
    pub(crate) begun_at: AtomicU64,
    /// When the last send returned. Stored before `resolved`.
    pub(crate) sent_at: AtomicU64,
    /// ...and below this it is known what became of them: sent, unless the log says otherwise.
    pub(crate) resolved: AtomicU64,
    /// The process whose turn it is; one that was killed leaves it.
    pub(crate) turn: AtomicU64,
    /// Receivers are all dead: go on until that is known.
    pub(crate) orphaned: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) retries: AtomicU64,
}

#[repr(C, align(256))]
#[derive(Default)]
pub(crate) struct Rx {
    /// The first is a number, the others are one more than a number, or 0.
    next: [AtomicU64; Tracker::MOST],
    pub(crate) turn: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) cuts: AtomicU64,
    /// One more than the number of a cut message whose sender has to be found dead.
    pub(crate) last_cut: AtomicU64,
    /// The longest that a message took that had been begun while somebody waited for it.
    pub(crate) longest_wait: AtomicU64,
    /// Messages for which somebody waited, as far as wake-ups are timed, how many of them came slowly, and how many of these just when who
    /// waits looks by itself.
    pub(crate) wakes: AtomicU64,
    pub(crate) slow_wakes: AtomicU64,
    pub(crate) lost_wakes: AtomicU64,
}

const LOG: usize = 4096;

/// Numbers that were not plainly sent, in order, each with its fate in the lowest bit.
#[repr(C)]
struct Log {
    len: AtomicU64,
    entries: [AtomicU64; LOG],
}

impl Default for Log {
    fn default() -> Log {
        Log { len: AtomicU64::new(0), entries: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Board {
    pub(crate) fn create() -> io::Result<Board> {
        let file = memfd_create("ringpipe-soak", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, size_of::<Words>() as u64)?;
        Board::map(file)
    }

    /// The board whose descriptor this process, having been started with it, inherited.
    ///
    /// # Safety
    ///
    /// The descriptor must be open, of a board, and nobody else's in this process.
    pub(crate) unsafe fn inherited(fd: RawFd) -> io::Result<Board> {
        // SAFETY: by the contract.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
        Board::map(file)
    }

    fn map(file: OwnedFd) -> io::Result<Board> {
        let map = MmapOptions::new().len(size_of::<Words>()).map_raw(&file)?;
        Ok(Board { map, file })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The file behind the board, opened anew: locks on it are this process's own.
    pub(crate) fn lock_file(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.fd());
        Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Adds a role of the calling thread.
    pub(crate) fn enlist(&self, lane: usize, sends: bool) -> &Role {
        let at = self.roles_len.fetch_add(1, Ordering::SeqCst) as usize;
        let role = &self.roles[at];
        role.kind.store((2 * lane + usize::from(sends)) as u64, Ordering::SeqCst);
        role.thread.store(rustix::thread::gettid().as_raw_nonzero().get() as u64, Ordering::SeqCst);
        role.pid.store(u64::from(std::process::id()), Ordering::SeqCst);
        role
    }

    /// Those that have been enlisted.
    pub(crate) fn roles(&self) -> impl Iterator<Item = &Role> {
        self.roles.iter().filter(|role| role.pid.load(Ordering::SeqCst) != 0)
    }

    /// Notes a fault; the first one counts.
    pub(crate) fn accuse(&self, what: &str) {
        if self.fault.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        let len = what.len().min(FAULT);
        for (to, &from) in self.fault_text.iter().zip(what.as_bytes()) {
            to.store(from, Ordering::Relaxed);
        }
        self.fault.store(2 + len as u64, Ordering::SeqCst);
    }

    pub(crate) fn fault(&self) -> Option<String> {
        let len = self.fault.load(Ordering::SeqCst).checked_sub(2)? as usize;
        let text: Vec<u8> = self.fault_text[..len].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Grows as long as anybody gets on.
    pub(crate) fn progress(&self) -> u64 {
        let roles = self.roles().map(|role| 1 + role.end.load(Ordering::Relaxed));
        self.lanes.iter().map(Lane::progress).sum::<u64>() + roles.sum::<u64>()
    }
}

impl std::ops::Deref for Board {
    type Target = Words;

    fn deref(&self) -> &Words {
        // SAFETY: the mapping is page-aligned, as long as `Words`, starts out as zeros, and lives as long as `self`; all atomics.
        unsafe { &*self.map.as_ptr().cast::<Words>() }
    }
}

impl Role {
    pub(crate) fn pid(&self) -> i32 {
        self.pid.load(Ordering::SeqCst) as i32
    }

    pub(crate) fn thread(&self) -> u64 {
        self.thread.load(Ordering::SeqCst)
    }

    pub(crate) fn lane(&self) -> usize {
        self.kind.load(Ordering::SeqCst) as usize / 2
    }

    pub(crate) fn sends(&self) -> bool {
        self.kind.load(Ordering::SeqCst) % 2 == 1
    }

    /// Says how it ended. To be called before the end of the pipe is closed.
    pub(crate) fn ends(&self, end: End) {
        self.ended_at.store(clock::now(), Ordering::SeqCst);
        self.end.store(end as u64, Ordering::SeqCst);
    }

    pub(crate) fn end(&self) -> Option<End> {
        [End::Finished, End::Gone].into_iter().find(|&end| end as u64 == self.end.load(Ordering::SeqCst))
    }

    pub(crate) fn ended_at(&self) -> u64 {
        self.ended_at.load(Ordering::SeqCst)
    }

    /// When it was killed, unless it had ended before.
    pub(crate) fn killed_at(&self) -> Option<u64> {
        let at = self.killed_at.load(Ordering::SeqCst);
        (at != 0 && self.end().is_none()).then_some(at)
    }

    /// When it closed its end, or the kernel did.
    pub(crate) fn left_at(&self) -> Option<u64> {
        self.killed_at().or_else(|| self.end().map(|_| self.ended_at()))
    }
}

impl Lane {
    /// Grows as long as this direction gets on.
    pub(crate) fn progress(&self) -> u64 {
        let (tx, rx) = (&self.tx, &self.rx);
        let words = [&tx.begun, &tx.resolved, &tx.retries, &rx.messages, &rx.cuts];
        words.map(|word| word.load(Ordering::Relaxed)).iter().sum()
    }

    pub(crate) fn fate(&self, number: u64) -> Option<Fate> {
        let len = self.log.len.load(Ordering::Acquire) as usize;
        let entry = |i: usize| self.log.entries[i].load(Ordering::Relaxed);
        // Nearly always: nothing, or nothing as recent.
        if len == 0 || entry(len - 1) / 2 < number {
            return None;
        }
        let at = self.log.entries[..len].partition_point(|entry| entry.load(Ordering::Relaxed) / 2 < number);
        let found = entry(at);
        (found / 2 == number).then_some(if found % 2 == 0 { Fate::Refused } else { Fate::Doubtful })
    }

    /// Whether there is room for so many more fates.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.log.len.load(Ordering::Relaxed) as usize + more <= LOG
    }

    /// Notes that the number being sent has this fate, and passes on to the next.
    pub(crate) fn resolve(&self, number: u64, fate: Fate) {
        // A predecessor can have been killed between the entry and the count.
        if self.fate(number).is_none() {
            let at = self.log.len.load(Ordering::Relaxed);
            self.log.entries[at as usize].store(2 * number + u64::from(fate == Fate::Doubtful), Ordering::Relaxed);
            self.log.len.store(at + 1, Ordering::Release);
        }
        self.tx.resolved.store(number + 1, Ordering::Release);
    }

    pub(crate) fn tracker(&self) -> Tracker {
        let words = self.rx.next.iter().map(|word| word.load(Ordering::Acquire)).enumerate();
        Tracker::new(words.filter_map(|(i, word)| if i == 0 { Some(word) } else { word.checked_sub(1) }).collect())
    }

    pub(crate) fn set_tracker(&self, tracker: &Tracker) {
        for (i, word) in self.rx.next.iter().enumerate() {
            let value = tracker.next().get(i).map_or(0, |&number| number + u64::from(i > 0));
            if word.load(Ordering::Relaxed) != value {
                word.store(value, Ordering::Release);
            }
        }
    }
}
