//! Processes: forking them, waiting for them, and getting rid of them.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A forked child.
pub(crate) struct Child(libc::pid_t);

/// Forks this process, which has one thread. None in the child, which goes when its parent does.
pub(crate) fn fork() -> io::Result<Option<Child>> {
    // SAFETY: with no other threads, the child can go on as it likes.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: a plain call.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            Ok(None)
        }
        pid => Ok(Some(Child(pid))),
    }
}

/// Ends a forked child without touching what belongs to the parent.
pub(crate) fn exit() -> ! {
    // SAFETY: a plain call, which does not return.
    unsafe { libc::_exit(0) }
}

/// Makes this process the leader of a group, which its children will belong to.
pub(crate) fn lead_group() {
    // SAFETY: a plain call.
    unsafe { libc::setpgid(0, 0) };
}

/// Bytes of a stack: some peers pass messages by value, of whatever size.
pub(crate) const STACK: usize = 64 << 20;

/// Lets the stacks of this process and of its children grow that far.
pub(crate) fn enlarge_stack() {
    // SAFETY: all zeros is a value of this type, which the first call fills in.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_STACK, &mut limit) == 0 && limit.rlim_cur < STACK as u64 {
            limit.rlim_cur = limit.rlim_max.min(STACK as u64);
            libc::setrlimit(libc::RLIMIT_STACK, &limit);
        }
    }
}

impl Child {
    pub(crate) fn wait(self) -> io::Result<ExitStatus> {
        let mut status = 0;
        // SAFETY: our own child, which nobody else waits for.
        if unsafe { libc::waitpid(self.0, &mut status, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(ExitStatus::from_raw(status))
    }

    /// Kills the group that the child leads, itself included, and waits for it. Its number is not used again before that.
    pub(crate) fn kill_group(self) -> io::Result<()> {
        // SAFETY: plain calls, on our own child and its descendants. Both, since it may not lead a group yet.
        unsafe {
            libc::kill(-self.0, libc::SIGKILL);
            libc::kill(self.0, libc::SIGKILL);
        }
        self.wait().map(drop)
    }
}
