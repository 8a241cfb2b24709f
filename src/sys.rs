//! The only place with system calls.
//!
//! Everything here is a thin, typed wrapper: no policy, no shared-memory protocol. Calls that can be
//! interrupted take absolute deadlines, so that `EINTR` can never lengthen a wait (the callers loop).

pub(crate) mod names;
#[cfg(feature = "posix-shm")]
mod shm;

use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, SealFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::thread::{MembarrierCommand, futex};

use crate::deadline::Deadline;
use crate::sync::{AtomicU32, Ordering, fence};

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Nanoseconds on `CLOCK_MONOTONIC`.
pub(crate) fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * NANOS_PER_SEC + t.tv_nsec as u64
}

/// Sleeps for so many nanoseconds, unless a signal comes first.
pub(crate) fn nap(nanos: u64) {
    let _ = rustix::thread::nanosleep(&timespec(nanos));
}

fn timespec(nanos: u64) -> Timespec {
    Timespec { tv_sec: (nanos / NANOS_PER_SEC) as _, tv_nsec: (nanos % NANOS_PER_SEC) as _ }
}

// --- memory -------------------------------------------------------------------------------------

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// An anonymous memory file of `len` zero bytes, of which `mapped` are to be mapped. Its name is for whoever looks into `/proc`, and need not be its alone.
///
/// Its size can never change again; but with the feature `posix-shm`, where the kernel refuses such files to this process.
#[cfg_attr(not(feature = "posix-shm"), expect(unused_variables))]
pub(crate) fn memory_file(name: &CStr, len: u64, mapped: usize) -> io::Result<OwnedFd> {
    if longest_file() < len {
        return Err(Errno::FBIG.into());
    }
    #[cfg(feature = "posix-shm")]
    if shm::is_needed() {
        return shm::create(len, mapped as u64);
    }
    let fd = anonymous_file(name)?;
    rustix::fs::ftruncate(&fd, len)?;
    rustix::fs::fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

fn anonymous_file(name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
}

/// The size of what [`memory_file`] makes, or `None` where its size could still change, or its pages be missing once they were there (huge
/// ones, a SIGBUS), or it is no memory file.
pub(crate) fn memory_len(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let sealed = sealed_len(fd)?;
    #[cfg(feature = "posix-shm")]
    if sealed.is_none() && shm::is_needed() {
        return shm::len(fd);
    }
    Ok(sealed)
}

fn sealed_len(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;
    match rustix::fs::fcntl_get_seals(fd) {
        Ok(_) if rustix::fs::fstatfs(fd)?.f_type as u32 == HUGETLBFS_MAGIC => Ok(None),
        Ok(seals) if seals.contains(SEALS) => Ok(Some(rustix::fs::fstat(fd)?.st_size as u64)),
        Ok(_) | Err(Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Reads what a memory file starts with; as many bytes as it has.
pub(crate) fn read_start(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    read_from(fd, buf, 0)
}

/// Reads once; as many bytes as there are.
pub(crate) fn read_from(fd: BorrowedFd<'_>, buf: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match rustix::io::pread(fd, &mut *buf, at) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// The longest that this process may make a file. To exceed it is an error, and a signal that kills.
pub(crate) fn longest_file() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap_or(u64::MAX)
}

/// Maps a part of a memory file for a moment, and lets `write` fill it in.
///
/// By a mapping, since writing to a file is subject to the limit on file sizes (a signal that kills), and to flags that whoever shares the
/// description can set. Its memory is had before it is written to: to find none then would be a signal as well.
pub(crate) fn write_part(fd: BorrowedFd<'_>, at: u64, len: usize, write: impl FnOnce(NonNull<u8>)) -> io::Result<()> {
    let part = memmap2::MmapOptions::new().offset(at).len(len).map_raw(&fd)?;
    match part.advise(memmap2::Advice::PopulateWrite) {
        // Kernels before 5.14 do not know it.
        Err(e) if e.raw_os_error() != Some(libc::EINVAL) => return Err(e),
        _ => {}
    }
    write(NonNull::new(part.as_mut_ptr()).expect("mmap never returns address 0"));
    Ok(())
}

/// Reads from a part of a memory file that is not mapped. The file is as long as it needs to be, since its length is sealed.
pub(crate) fn read_at(fd: BorrowedFd<'_>, buf: &mut [MaybeUninit<u8>], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(fd, &mut buf[done..], at + done as u64) {
            Ok(([], _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((read, _)) => done += read.len(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Opens a memory file of another process, a link in whose `/proc/PID/fd` `path` is, for reading. Nothing else is opened, not even for a moment, whatever the link
/// comes to lead to: to open a device or a named pipe may do something. Returns its name as well.
pub(crate) fn open_memfd(path: &Path) -> io::Result<(OwnedFd, Vec<u8>)> {
    use rustix::fs::{Mode, OFlags};
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
    let link = rustix::fs::readlink(&again, Vec::new())?.into_bytes();
    let name = link.strip_prefix(b"/memfd:").and_then(|name| name.strip_suffix(b" (deleted)"));
    match name {
        Some(name) => Ok((rustix::fs::open(&again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, name.to_vec())),
        None => Err(Errno::INVAL.into()),
    }
}

/// Gives the memory of a part of a memory file back. Where it cannot be, it stays in use until it is written over.
pub(crate) fn punch(fd: BorrowedFd<'_>, at: u64, len: u64) {
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    while rustix::fs::fallocate(fd, flags, at, len) == Err(Errno::INTR) {}
}

/// Bytes of a memory file that take memory.
pub(crate) fn allocated(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(fd).map_or(0, |stat| stat.st_blocks as u64 * 512)
}

// --- who lives ----------------------------------------------------------------------------------

/// Opens the same file again: a description of one's own, for locks.
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

fn byte_lock(at: u64) -> libc::flock {
    // SAFETY: a structure of integers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    lock.l_whence = libc::SEEK_SET as _;
    lock.l_start = at as _;
    lock.l_len = 1;
    lock
}

/// Locks a byte for the open file description, unless another one has locked it.
pub(crate) fn try_lock_byte(fd: BorrowedFd<'_>, at: u64) -> io::Result<bool> {
    let lock = byte_lock(at);
    // SAFETY: the descriptor is open, and the lock is what this command takes.
    match unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&fd), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            e => Err(e),
        },
    }
}

/// Whether another open file description has locked a byte.
pub(crate) fn is_byte_locked(fd: BorrowedFd<'_>, at: u64) -> io::Result<bool> {
    let mut lock = byte_lock(at);
    // SAFETY: the descriptor is open, and the lock is what this command takes and overwrites.
    match unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&fd), libc::F_OFD_GETLK, &mut lock) } {
        0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

const PAGE: usize = 4096;

/// Maps the start of a file where children do not inherit it: what keeps the description open until this process ends.
pub(crate) fn map_not_forked(fd: BorrowedFd<'_>) -> io::Result<NonNull<u8>> {
    use rustix::mm::{Advice, MapFlags, ProtFlags};
    // SAFETY: a new mapping at an address of the kernel's choice, which cannot be read or written.
    let page = unsafe { rustix::mm::mmap(std::ptr::null_mut(), PAGE, ProtFlags::empty(), MapFlags::SHARED, fd, 0)? };
    // SAFETY: of this mapping, to which there are no references.
    let advised = unsafe { rustix::mm::madvise(page, PAGE, Advice::LinuxDontFork) };
    // SAFETY: just mapped.
    advised.inspect_err(|_| unsafe { unmap_page(page.cast()) })?;
    Ok(NonNull::new(page.cast()).expect("mmap never returns address 0"))
}

/// A zeroed page that is zeroed again in forked children.
pub(crate) fn map_wiped_on_fork() -> io::Result<NonNull<u8>> {
    use rustix::mm::{Advice, MapFlags, ProtFlags};
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE, access, MapFlags::PRIVATE)? };
    // SAFETY: of this mapping, to which there are no references.
    let advised = unsafe { rustix::mm::madvise(page, PAGE, Advice::LinuxWipeOnFork) };
    // SAFETY: just mapped.
    advised.inspect_err(|_| unsafe { unmap_page(page.cast()) })?;
    Ok(NonNull::new(page.cast()).expect("mmap never returns address 0"))
}

/// Unmaps such a page.
///
/// # Safety
///
/// One of the two above has mapped it, the first of them in this very process, not in its parent, and nobody uses it any more.
pub(crate) unsafe fn unmap_page(page: *mut u8) {
    // SAFETY: by the contract.
    let _ = unsafe { rustix::mm::munmap(page.cast(), PAGE) };
}

// --- barriers -----------------------------------------------------------------------------------

/// Registers this process for [`heavy_barrier`]. Children made by `fork` inherit the registration.
///
/// False where the kernel or a sandbox refuses.
pub(crate) fn register_barrier() -> bool {
    rustix::thread::membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
}

/// A full barrier here and in every running thread of every registered process, so that those can
/// do with a compiler fence. False where it is refused; it is then a full barrier here only.
pub(crate) fn heavy_barrier() -> bool {
    fence(Ordering::SeqCst);
    rustix::thread::membarrier(MembarrierCommand::GlobalExpedited).is_ok()
}

// --- futex --------------------------------------------------------------------------------------

/// Those who sleep on a futex are of 32 kinds, of which a wake-up may be meant for some.
pub(crate) const ANY_KIND: u32 = u32::MAX;

fn bits(kinds: u32) -> NonZeroU32 {
    NonZeroU32::new(kinds).expect("some kind")
}

/// Sleeps, as one of `kind`, while `word` holds `expected`, until woken or `deadline`. True if the word held something else right away.
///
/// The operation is process-shared: `FUTEX_PRIVATE_FLAG` would make the kernel look for sleepers of
/// this process only.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, deadline: Deadline, kind: u32) -> bool {
    let (until, kind) = (deadline.at().map(timespec), bits(kind));
    futex::wait_bitset(word, futex::Flags::empty(), expected, until.as_ref(), kind) == Err(Errno::AGAIN)
}

/// Wakes one that is of one of `kinds`. Whether there was any.
pub(crate) fn futex_wake_one(word: &AtomicU32, kinds: u32) -> bool {
    matches!(futex::wake_bitset(word, futex::Flags::empty(), 1, bits(kinds)), Ok(1..))
}

pub(crate) fn futex_wake_all(word: &AtomicU32) {
    // An unmapped or odd address is impossible here, so there is no error to report.
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
}

// --- the bell socket ----------------------------------------------------------------------------

/// A connected pair of close-on-exec Unix stream sockets.
pub(crate) fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// What [`poll_readable`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// Bytes can be read.
    pub(crate) readable: bool,
    /// Every copy of the other end is closed.
    pub(crate) hung_up: bool,
    /// This process may not poll, so the answer came without waiting.
    pub(crate) refused: bool,
}

fn readiness(fd: &PollFd<'_>) -> Readiness {
    let got = fd.revents();
    // A socket hung up with unread bells reports ERR (a pending ECONNRESET) beside HUP: both
    // say that the peer is gone, and neither is anything more.
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    Readiness { readable: got.contains(PollFlags::IN), hung_up: got.intersects(gone), refused: false }
}

/// Waits until the socket has bytes or is hung up. Returns early (with neither set) at the deadline
/// or when a signal handler ran, and does not wait where the process may not poll (a sandbox; a limit of zero descriptors).
pub(crate) fn poll_readable(fd: BorrowedFd<'_>, deadline: Deadline) -> Readiness {
    let timeout = deadline.at().map(|at| timespec(at.saturating_sub(now())));
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(n) if n > 0 => readiness(&fds[0]),
        Ok(_) | Err(Errno::INTR) => Readiness::default(),
        Err(_) => Readiness {
            readable: matches!(peek(fd, &mut [0]), Ok(1..)),
            // Sends nothing, but says whether anybody is left to read it.
            hung_up: matches!(
                rustix::net::send(fd, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Err(Errno::PIPE | Errno::NOTCONN)
            ),
            refused: true,
        },
    }
}

/// A descriptor to be waited for among others, and what is heard of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    /// Whether it is to be waited for until there is something to read, too, or only until the other end is closed.
    pub(crate) reading: bool,
    pub(crate) heard: Readiness,
}

/// As [`poll_readable`], of many: waits until there is something to be heard of one of them. Sockets, and whatever else can be polled.
pub(crate) fn poll_many(many: &mut [Heard<'_>], deadline: Deadline) -> io::Result<()> {
    let timeout = deadline.at().map(|at| timespec(at.saturating_sub(now())));
    let interest = |one: &Heard<'_>| if one.reading { PollFlags::IN } else { PollFlags::empty() };
    let mut fds: Vec<PollFd<'_>> = many.iter().map(|one| PollFd::from_borrowed_fd(one.fd, interest(one))).collect();
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => fds.iter_mut().for_each(PollFd::clear_revents),
        Err(e) => return Err(e.into()),
    }
    let found: Vec<Readiness> = fds.iter().map(readiness).collect();
    many.iter_mut().zip(found).for_each(|(one, found)| one.heard = found);
    Ok(())
}

/// Puts one byte on the bell. A full or failing socket is no error: a full one rings already, and
/// a dead one is found by [`poll_readable`]. Returns whether a byte is on its way.
pub(crate) fn send_token(fd: BorrowedFd<'_>, token: u8) -> bool {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::send(fd, &[token], flags) {
            Err(Errno::INTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// Copies bytes from the front of the bell, which stay there. Zero where the other side is closed.
pub(crate) fn peek(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::net::recv(fd, &mut *buf, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Err(Errno::INTR) => {}
            Ok((_, seen)) => return Ok(seen),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Removes bytes from the front of the bell for as long as `stale` says so of them.
pub(crate) fn take_tokens(fd: BorrowedFd<'_>, stale: impl Fn(u8) -> bool) {
    let mut buf = [0_u8; 64];
    // A peer that floods its bell must not hold us here: what is left makes one needless wake-up.
    for _ in 0..16 {
        let peek = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let Ok((_, seen)) = rustix::net::recv(fd, &mut buf[..], peek) else {
            return;
        };
        let old = buf[..seen].iter().take_while(|&&t| stale(t)).count();
        if old == 0 {
            return;
        }
        let _ = rustix::net::recv(fd, &mut buf[..old], RecvFlags::DONTWAIT);
        if old < seen || seen < buf.len() {
            return;
        }
    }
}

// --- descriptors over a socket ------------------------------------------------------------------

/// The most descriptors one frame carries: a segment and two bells.
pub(crate) const MAX_FDS: usize = 3;

/// Sends `bytes` with `fds` attached, waiting for room in the socket until `deadline`.
pub(crate) fn send_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Deadline,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(n) if n == bytes.len() => return Ok(()),
            // A stream socket takes a frame this small whole or not at all.
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !deadline.passed() => wait_writable(socket, deadline),
            Err(e) => return Err(e.into()),
        }
    }
}

/// The caller tries again, whatever happened.
fn wait_writable(fd: BorrowedFd<'_>, deadline: Deadline) {
    let timeout = deadline.at().map(|at| timespec(at.saturating_sub(now())));
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // This process may not poll, so it looks now and then.
        Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
    }
}

/// Reads up to `buf.len()` bytes and the descriptors that came with the first of them. Waits, or fails with `WouldBlock`.
/// Zero bytes: the other side is closed.
pub(crate) fn recv_fds(socket: BorrowedFd<'_>, buf: &mut [u8], wait: bool) -> io::Result<(usize, Vec<OwnedFd>)> {
    let flags = RecvFlags::CMSG_CLOEXEC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    let mut space = ControlSpace([MaybeUninit::new(0); CONTROL_LEN]);
    let (result, fds) = loop {
        let mut control = RecvAncillaryBuffer::new(&mut space.0);
        let mut iov = [IoSliceMut::new(buf)];
        let result = rustix::net::recvmsg(socket, &mut iov, &mut control, flags);
        if !matches!(result, Err(Errno::INTR)) {
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            break (result, fds);
        }
    };
    space.close_process_descriptors();
    match result {
        // The kernel cuts off what this process has no free descriptors for.
        Ok(got) if got.flags.contains(ReturnFlags::CTRUNC) => Err(Errno::MFILE.into()),
        Ok(got) => Ok((got.bytes, fds)),
        Err(e) => Err(e.into()),
    }
}

/// Room for a few descriptors, and for what else whoever has a copy of the socket may have asked to be delivered with them.
const CONTROL_LEN: usize = 256;

/// Control messages as the kernel lays them out: a length, which counts from its own first byte, two numbers that say what it is,
/// and what it is, each message aligned to words.
#[repr(C, align(8))]
struct ControlSpace([MaybeUninit<u8>; CONTROL_LEN]);

impl ControlSpace {
    /// Closes descriptors of processes, which come with every message once anybody has set `SO_PASSPIDFD`, which a peer can, the
    /// socket being in its hands as well. They are passed over as unknown by whoever reads the messages above.
    fn close_process_descriptors(&self) {
        const SOL_SOCKET: i32 = 1;
        const SCM_PIDFD: i32 = 4;
        const WORD: usize = size_of::<usize>();
        const DATA: usize = WORD + 8;

        // SAFETY: all zeros at first, and then what the kernel wrote over them.
        let byte = |at: usize| unsafe { self.0[at].assume_init() };
        let number = |at: usize| i32::from_ne_bytes(std::array::from_fn(|i| byte(at + i)));
        let mut at = 0;
        while at + DATA + size_of::<i32>() <= CONTROL_LEN {
            let len = usize::from_ne_bytes(std::array::from_fn(|i| byte(at + i)));
            if len < DATA || len > CONTROL_LEN - at {
                return;
            }
            if (number(at + WORD), number(at + WORD + 4)) == (SOL_SOCKET, SCM_PIDFD) && number(at + DATA) >= 0 {
                // SAFETY: the kernel has just made it for this process, and nobody else has been told its number.
                drop(unsafe { OwnedFd::from_raw_fd(number(at + DATA)) });
            }
            at += len.next_multiple_of(WORD);
        }
    }
}

/// Whether `fd` is one end of a connected Unix stream socket.
pub(crate) fn is_unix_stream(fd: BorrowedFd<'_>) -> bool {
    use rustix::net::sockopt;
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX) && sockopt::socket_type(fd) == Ok(SocketType::STREAM)
}

/// Makes `fd`, whatever it was, another descriptor of `of`, under its old number.
pub(crate) fn replace(fd: &mut OwnedFd, of: &OwnedFd) -> io::Result<()> {
    Ok(rustix::io::dup3(of, fd, rustix::io::DupFlags::CLOEXEC)?)
}

/// What tells an open file from all others on this machine, whatever its descriptor.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino as u64)
}

pub(crate) fn is_cloexec(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::io::fcntl_getfd(fd)?.contains(rustix::io::FdFlags::CLOEXEC))
}

pub(crate) fn set_cloexec(fd: impl AsFd, on: bool) -> io::Result<()> {
    let flags = if on { rustix::io::FdFlags::CLOEXEC } else { rustix::io::FdFlags::empty() };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}
