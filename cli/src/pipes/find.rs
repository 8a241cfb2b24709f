//! Finding the pipes of this user: among the descriptors of its processes, and by the names that listeners left.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ringpipe::inspect::{self, Pipe};

/// What there is.
#[derive(Default)]
pub(super) struct Found {
    /// By their numbers.
    pub(super) pipes: BTreeMap<u64, Held>,
    /// The processes that listen, by the paths of their names.
    pub(super) listeners: BTreeMap<PathBuf, Listener>,
    /// The names of listeners that were killed.
    pub(super) left: Vec<PathBuf>,
    /// The names of listeners of which no more can be seen.
    pub(super) hidden: Vec<PathBuf>,
    /// How many pipes could not be opened, and why the last one could not.
    pub(super) unseen: Option<(usize, ringpipe::AttachError)>,
}

/// A pipe, and the processes that have it open.
pub(super) struct Held {
    pub(super) pipe: Pipe,
    pub(super) by: BTreeSet<u32>,
}

#[derive(Default)]
pub(super) struct Listener {
    /// Who has the name.
    pub(super) owner: u32,
    /// Who holds it open: the owner, or children of one that was killed.
    pub(super) by: BTreeSet<u32>,
}

/// Looks at all processes of this user that can be seen. What goes away meanwhile is left out.
pub(super) fn find() -> std::io::Result<Found> {
    let user = rustix::process::geteuid().as_raw();
    let mut found = Found::default();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // What this process has open, it has only to look at.
        if pid != std::process::id() && entry.metadata().is_ok_and(|process| process.uid() == user) {
            look_through(pid, &mut found);
        }
    }
    if let Some(directory) = inspect::directory() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let is_name = !entry.file_name().as_bytes().starts_with(b".") && is_socket(&entry.path());
            if is_name && !found.listeners.contains_key(&entry.path()) {
                let names = if is_locked(&entry.path()) { &mut found.hidden } else { &mut found.left };
                names.push(entry.path());
            }
        }
        found.left.sort();
        found.hidden.sort();
    }
    Ok(found)
}

fn look_through(pid: u32, found: &mut Found) {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    for path in descriptors.map(|entry| entry.path()) {
        let Ok(link) = fs::read_link(&path) else { continue };
        if inspect::is_pipe(&link) {
            // By the permissions of the link: who has it open for reading only looks, as this process does.
            if !fs::symlink_metadata(&path).is_ok_and(|link| link.mode() & 0o200 != 0) {
                continue;
            }
            let Ok(number) = fs::metadata(&path).map(|memory| memory.ino()) else { continue };
            if let Some(held) = found.pipes.get_mut(&number) {
                held.by.insert(pid);
                continue;
            }
            match Pipe::open(&path) {
                Ok(pipe) => {
                    found.pipes.entry(pipe.id()).or_insert(Held { pipe, by: BTreeSet::new() }).by.insert(pid);
                }
                Err(error) if is_of_want(&error) => {
                    let unseen = found.unseen.take().map_or(0, |(unseen, _)| unseen);
                    found.unseen = Some((unseen + 1, error));
                }
                // Gone, or no pipe of this version.
                Err(_) => {}
            }
        } else if let Some(name) = name_of_lock(&link) {
            if let Some(owner) = path.file_name().and_then(|number| locked_by(pid, number)) {
                let listener = found.listeners.entry(name).or_default();
                listener.owner = owner;
                listener.by.insert(pid);
            }
        }
    }
}

/// Whether descriptors or memory have run out.
fn is_of_want(error: &ringpipe::AttachError) -> bool {
    let number = match error {
        ringpipe::AttachError::Io(error) => error.raw_os_error(),
        _ => None,
    };
    matches!(number, Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Whether the file beside a name is locked by any process, as the kernel tells: to try the lock would be in the way of who wants it.
fn is_locked(path: &Path) -> bool {
    let beside = [b".", path.file_name().unwrap_or_default().as_bytes(), b".lock"].concat();
    let Ok(file) = fs::symlink_metadata(path.with_file_name(OsStr::from_bytes(&beside))) else { return false };
    let (major, minor) = (libc::major(file.dev()), libc::minor(file.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", file.ino());
    // 1: FLOCK  ADVISORY  WRITE 1234 00:1f:5678 0 EOF
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some("FLOCK") && words.nth(3) == Some(&wanted)
    })
}

/// The name that a listener has, by the file that it keeps locked beside it.
fn name_of_lock(link: &Path) -> Option<PathBuf> {
    let name = link.file_name()?.as_bytes().strip_prefix(b".")?.strip_suffix(b".lock")?;
    let path = link.with_file_name(OsStr::from_bytes(name));
    is_socket(&path).then_some(path)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// The process that locked a file by this descriptor.
fn locked_by(pid: u32, number: &OsStr) -> Option<u32> {
    let info = fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(number)).ok()?;
    // lock: 1: FLOCK  ADVISORY  WRITE 1234 00:1f:5678 0 EOF
    let mut words = info.lines().find_map(|line| line.strip_prefix("lock:"))?.split_whitespace().skip(1);
    (words.next()? == "FLOCK").then_some(())?;
    words.nth(2)?.parse().ok()
}

/// What the kernel says of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// On a processor, or about to be.
    Running,
    /// Waiting on a futex in the pipe's memory.
    Sleeping,
    /// Waiting for descriptors, of the pipe or of something else.
    Polling,
    /// Waiting for something else.
    Waiting,
    /// Waiting, and this process may not know for what.
    Something,
    Stopped,
    /// Gone, or as good as.
    Dead,
}

/// What a process does, as far as the pipe of that number is concerned. Of several threads, the one that has most to do with it counts.
pub(super) fn doing(pid: u32, pipe: u64) -> Doing {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let threads: Vec<PathBuf> = threads.map(|thread| thread.path()).collect();
    // 1234 (a name, which may hold anything) S ...
    let states = threads.iter().filter_map(|thread| {
        let stat = fs::read(thread.join("stat")).ok()?;
        let behind_name = stat.iter().rposition(|&byte| byte == b')')?;
        stat.get(behind_name + 2).copied()
    });
    let states: Vec<u8> = states.collect();
    if states.contains(&b'R') {
        return Doing::Running;
    }
    if states.iter().any(|state| matches!(state, b't' | b'T')) {
        return Doing::Stopped;
    }
    if states.iter().all(|state| matches!(state, b'Z' | b'X')) {
        return Doing::Dead;
    }
    // Which call it is in, in decimal, and with what, in hexadecimal: only for who might trace it.
    let calls = threads.iter().filter_map(|thread| {
        let call = fs::read_to_string(thread.join("syscall")).ok()?;
        let mut words = call.split_whitespace();
        let number: libc::c_long = words.next()?.parse().ok()?;
        Some((number, u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?))
    });
    let calls: Vec<(libc::c_long, u64)> = calls.collect();
    let sleeps = |&(call, word): &(libc::c_long, u64)| call == libc::SYS_futex && maps(pid, pipe, word);
    match () {
        () if calls.is_empty() => Doing::Something,
        () if calls.iter().any(sleeps) => Doing::Sleeping,
        () if calls.iter().any(|&(call, _)| call == libc::SYS_ppoll) => Doing::Polling,
        () => Doing::Waiting,
    }
}

/// Whether a process has the memory file of that number mapped at an address.
fn maps(pid: u32, number: u64, address: u64) -> bool {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    // 7f0000000000-7f0000041000 rw-s 00000000 00:01 12345 /memfd:ringpipe (deleted)
    String::from_utf8_lossy(&maps).lines().any(|line| {
        let mut words = line.split_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let is_it = words.nth(3).is_some_and(|inode| inode.parse() == Ok(number));
        let bound = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        is_it && range.is_some_and(|(start, end)| (bound(start)..bound(end)).contains(&address))
    })
}

/// The name of a process, as the kernel keeps it.
pub(super) fn command(pid: u32) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/comm")).ok()?).trim_end().to_owned())
}
