//! Memory files where the kernel refuses anonymous ones: in `/dev/shm`, where POSIX shared memory is.
//!
//! They are made without a name (`O_TMPFILE`), so that nothing is left behind. Nothing can keep their size as it is, though: whoever shares such a
//! file can shorten it, and a process that then uses what is gone is killed (SIGBUS). Hence only for who asked for it, by the feature, and
//! only where there is nothing better.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

const DIRECTORY: &str = "/dev/shm";
const TMPFS_MAGIC: u32 = 0x0102_1994;

/// Whether memory files are refused to this process altogether: by a sandbox, or by a kernel that has none.
pub(super) fn is_needed() -> bool {
    matches!(super::anonymous_file(c"ringpipe"), Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS))
}

/// A file of `len` zero bytes, the first `mapped` of which have their memory: to find none later would be a signal that kills.
pub(super) fn create(len: u64, mapped: u64) -> io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
    let fd = rustix::fs::open(DIRECTORY, flags, Mode::RUSR | Mode::WUSR)?;
    if !is_in_memory(fd.as_fd())? {
        return Err(Errno::NODEV.into());
    }
    rustix::fs::ftruncate(&fd, len)?;
    loop {
        match rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, mapped) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    }
    Ok(fd)
}

/// The size of such a file, or `None` where it is another's, has a name, or is none.
pub(super) fn len(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let stat = rustix::fs::fstat(fd)?;
    let is_ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_nlink == 0
        && stat.st_uid == super::names::user()
        && is_in_memory(fd)?;
    Ok(is_ours.then_some(stat.st_size as u64))
}

fn is_in_memory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as u32 == TMPFS_MAGIC)
}
