//! System calls of connections by name: directories, lock files, listening sockets, and who is on the other side.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::{now, timespec};
use crate::deadline::Deadline;

/// The effective user of this process.
pub(crate) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

// --- files --------------------------------------------------------------------------------------

/// What tells a file from all others, as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    number: u64,
}

/// What a file is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    pub(crate) id: FileId,
    pub(crate) uid: u32,
    /// The lower bits of its mode.
    pub(crate) permissions: u32,
    pub(crate) is_socket: bool,
}

impl From<Stat> for About {
    #[allow(clippy::unnecessary_cast, reason = "of other types elsewhere")]
    fn from(stat: Stat) -> About {
        About {
            id: FileId { device: stat.st_dev as u64, number: stat.st_ino as u64 },
            uid: stat.st_uid,
            permissions: stat.st_mode as u32 & 0o7777,
            is_socket: FileType::from_raw_mode(stat.st_mode) == FileType::Socket,
        }
    }
}

pub(crate) fn about(file: BorrowedFd<'_>) -> io::Result<About> {
    Ok(rustix::fs::fstat(file)?.into())
}

/// Of the name itself, if it is a symbolic link; `None` where there is nothing.
pub(crate) fn about_name(dir: BorrowedFd<'_>, name: &Path) -> io::Result<Option<About>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A directory, to find names in.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The same, refusing a symbolic link.
pub(crate) fn open_dir_in(dir: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Locks a directory, together with others who do the same, for as long as what is returned is open. Does not wait.
pub(crate) fn share_lock(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let opened = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&opened, FlockOperation::NonBlockingLockShared)?;
    Ok(opened)
}

/// Makes a directory that is for this user only, unless the name is taken.
pub(crate) fn make_dir_in(dir: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Opens a file to be locked, which is made if it is not there. Symbolic links are refused.
pub(crate) fn open_lock(dir: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    // Without waiting, should it be a named pipe.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?)
}

/// Locks a file for its open description, unless another one has locked it.
pub(crate) fn try_lock(file: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

pub(crate) fn unlink(dir: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Gives a file another name, which must be free.
pub(crate) fn rename(dir: BorrowedFd<'_>, from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(dir, from, dir, to, rustix::fs::RenameFlags::NOREPLACE) {
        // There are file systems that cannot say whether it is.
        Err(Errno::INVAL | Errno::NOSYS) if about_name(dir, to)?.is_none() => {
            Ok(rustix::fs::renameat(dir, from, dir, to)?)
        }
        result => Ok(result?),
    }
}

/// Sets the mode of a file by its name. That somebody else gave the name to another file, or to a link, changes nothing.
pub(crate) fn set_mode(dir: BorrowedFd<'_>, name: &Path, id: FileId, mode: u32) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if about(file.as_fd())?.id != id {
        return Err(io::Error::new(io::ErrorKind::NotFound, "somebody else has taken its name"));
    }
    Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(mode))?)
}

// --- sockets ------------------------------------------------------------------------------------

/// The longest path that an address of a socket holds.
pub(crate) const MAX_ADDRESS: usize = 108;

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(path)?)
}

fn stream(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | flags, None)?)
}

/// Binds a new socket, whose calls never wait, to a path that must be free. The file has `mode` from the first moment on, less what the process's
/// `umask` takes away. It does not listen yet.
pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let socket = stream(SocketFlags::NONBLOCK)?;
    // The kernel gives the file the mode of the socket.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&socket, &address(path)?)?;
    Ok(socket)
}

pub(crate) fn listen(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    Ok(rustix::net::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

/// Whether any process has a socket open that is bound to this path, and listens.
pub(crate) fn is_listening(path: &Path) -> io::Result<bool> {
    let socket = stream(SocketFlags::NONBLOCK)?;
    loop {
        return match rustix::net::connect(&socket, &address(path)?) {
            // Full, or not of this type.
            Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(true),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
            Err(Errno::INTR) => continue,
            Err(e) => Err(e.into()),
        };
    }
}

/// Connects to a listening socket, and waits until `deadline` for room in its queue.
pub(crate) fn connect(path: &Path, deadline: Deadline) -> io::Result<OwnedFd> {
    let socket = stream(if deadline.is_immediate() { SocketFlags::NONBLOCK } else { SocketFlags::empty() })?;
    let address = address(path)?;
    loop {
        if let Some(at) = deadline.at().filter(|_| !deadline.is_immediate()) {
            // Zero would be for ever.
            let left = Duration::from_nanos(at.saturating_sub(now()).max(1_000_000));
            rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        }
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) if !deadline.passed() => {}
            Err(Errno::INTR) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// The next in the queue, if there is one.
pub(crate) fn accept(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    loop {
        match rustix::net::accept_with(socket, SocketFlags::CLOEXEC) {
            Ok(client) => return Ok(Some(client)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The process that connected, or listened: its number (0 if this process cannot see it), user and group at that time.
///
/// By hand, since `rustix` takes the number for one that is never 0, which it is for processes in a namespace that cannot be seen from here.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<(i32, u32, u32)> {
    let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and both pointers lead to what this option fills in, with its length.
    let result = unsafe {
        let into = (&raw mut found).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut len)
    };
    match result {
        0 => Ok((found.pid, found.uid, found.gid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a few bytes at once; what does not go is lost.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    loop {
        match rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reads what is there, without waiting. Descriptors that come with it are closed. Zero at the end.
pub(crate) fn recv(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        // Without room for control messages the kernel installs no descriptors in this process.
        match rustix::net::recv(socket, &mut *buf, RecvFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            Ok((_, got)) => return Ok(got),
            Err(e) => return Err(e.into()),
        }
    }
}

// --- sets of sockets ----------------------------------------------------------------------------

pub(crate) fn new_set() -> io::Result<OwnedFd> {
    Ok(epoll::create(epoll::CreateFlags::CLOEXEC)?)
}

pub(crate) fn add_to_set(set: BorrowedFd<'_>, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    Ok(epoll::add(set, socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
}

/// Before the socket is closed: a copy of it in a forked child would keep it in the set.
pub(crate) fn take_from_set(set: BorrowedFd<'_>, socket: BorrowedFd<'_>) {
    // There is nothing that could fail for a socket that is in the set.
    let _ = epoll::delete(set, socket);
}

/// The tokens of some sockets of a set that are readable or hung up right now, in descending order.
pub(crate) fn ready_of_set(set: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
    const NONE: rustix::fs::Timespec = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut space = [MaybeUninit::<epoll::Event>::uninit(); 64];
    let ready = loop {
        match epoll::wait(set, &mut space, Some(&NONE)) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok((ready, _)) => break ready,
        }
    };
    let mut tokens: Vec<u64> = ready.iter().map(|event| event.data.u64()).collect();
    tokens.sort_unstable_by(|a, b| b.cmp(a));
    Ok(tokens)
}

/// Waits until a descriptor is readable, or `deadline`, or for less.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Deadline) {
    use rustix::event::{PollFd, PollFlags, poll};
    let timeout = deadline.at().map(|at| timespec(at.saturating_sub(now())));
    match poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // This process may not poll, so it looks now and then.
        Err(_) => std::thread::sleep(Duration::from_millis(1)),
    }
}
