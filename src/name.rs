//! Names of listeners: where they lie in the file system, and whose they are.
//!
//! A name is a socket file. Beside it lies a lock file, `.NAME.lock`, and **a name belongs to whoever has that file locked** (`flock`, of an open
//! description that is closed when the process ends, however it ends). The socket file says nothing about who lives: after a SIGKILL it is still there.
//!
//! - *To take a name*: open the lock file (made if it is not there), lock it without waiting, and see that it is still the file of that name;
//!   otherwise somebody removed it in between, and it is begun anew. Only then look at the socket file: what lies there was left by a dead owner, and
//!   is removed. Then bind a socket to `.NAME.new` (removing a dead owner's), give it its mode, listen, and rename it: a name that appears can be connected to, and by
//!   all who may.
//! - *To give it up*: with the lock still held, remove the socket file if it is the one that was bound here (by device and inode), remove the lock
//!   file if it is the one that is locked, and close both.
//!
//! *Exactly one of several creators wins.* Only who holds the lock of the file that *has* the name gets past the second step. Two such files at a time
//! there are not, and one file has one lock. A file that has the name is removed only by who holds its lock, which nobody else has then; who opened
//! it before and gets the lock after that finds that it has not the name any more. So a creator fails only if another one holds the name, or
//! is giving it up at that moment.
//!
//! *No living owner's file is removed.* Both removals are by holders of the lock, of files that are their own or a dead owner's. Against a lock file
//! that somebody removed by hand, and programs that know nothing of locks, whoever finds a socket file first tries to connect to it: it is removed only if
//! the kernel says that nobody listens. The rename replaces nothing.
//!
//! *A kill at any moment* leaves, at worst, these files and no lock: the next creator starts at the first step, with nothing to wait for. It is the same to
//! it which of them there are.
//!
//! A forked child inherits copies of the socket and of the lock. It never gives the name up; and if its parent is killed, the name stays taken until the
//! last copy is closed, as clients can still queue up at it.
//!
//! Everything is done by the directory's descriptor: a name may be longer than a socket's address holds, and directories may be moved.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{ListenError, NameError};
use crate::sys::names::{self as sys, FileId};

/// Of bare names, and of the last part of a path: what fits into `/proc/self/fd/2147483647/.NAME.new`, the address of a socket.
const MAX_NAME: usize = sys::MAX_ADDRESS - 1 - "/proc/self/fd/2147483647/..new".len();

/// A directory and a name in it.
pub(crate) struct Place {
    dir: OwnedFd,
    name: PathBuf,
    /// As a user would write it.
    shown: PathBuf,
    /// Of the user's own directory, where something is to be made in it: as long as it is locked, what tidies up directories of temporary files by age
    /// (`systemd-tmpfiles`) leaves it alone, to which the socket looks unused.
    #[expect(dead_code, reason = "it is locked as long as it is open")]
    kept: Option<OwnedFd>,
}

impl Place {
    /// The place of a name. For a bare one, the user's own directory is made if it is not there.
    pub(crate) fn make(name: &Path) -> Result<Place, NameError> {
        Place::of(name, true)
    }

    /// The same without making anything: an error of the kind `NotFound` where the directory is not there.
    pub(crate) fn find(name: &Path) -> Result<Place, NameError> {
        Place::of(name, false)
    }

    fn of(name: &Path, make: bool) -> Result<Place, NameError> {
        let bytes = name.as_os_str().as_bytes();
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.contains(&0) {
            return Err(NameError::Nul);
        }
        let slash = bytes.iter().rposition(|&byte| byte == b'/');
        let last = slash.map_or(bytes, |at| &bytes[at + 1..]);
        if last.len() > MAX_NAME {
            return Err(NameError::TooLong { len: last.len(), max: MAX_NAME });
        }
        // The files beside a name have names of this form. Bare names with a dot in front are nobody's, so that they can be given a meaning.
        let ours = last.ends_with(b".lock") || last.ends_with(b".new");
        let hidden = last.starts_with(b".") && (slash.is_none() || ours);
        if last.is_empty() || last == b"." || last == b".." || hidden {
            return Err(NameError::Reserved { name: name.into() });
        }
        let last = PathBuf::from(OsString::from_vec(last.to_vec()));
        match slash {
            Some(at) => {
                let dir = Path::new(std::ffi::OsStr::from_bytes(&bytes[..=at]));
                let opened = sys::open_dir(dir).map_err(|error| NameError::Directory { path: dir.into(), error })?;
                Ok(Place { dir: opened, name: last, shown: name.into(), kept: None })
            }
            None => {
                let (dir, path) = own_dir(make)?;
                // Where it cannot be had, because it is just being tidied up, what is new is not too old.
                let kept = if make { sys::share_lock(dir.as_fd()).ok() } else { None };
                Ok(Place { dir, shown: path.join(&last), name: last, kept })
            }
        }
    }

    pub(crate) fn shown(&self) -> &Path {
        &self.shown
    }

    /// Where the name lies, as other processes know it: without symbolic links, and whatever directory they work in.
    pub(crate) fn real_path(&self) -> PathBuf {
        let dir = std::fs::read_link(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        dir.map_or_else(|_| self.shown.clone(), |dir| dir.join(&self.name))
    }

    /// Whether something has the name that is no socket.
    pub(crate) fn is_occupied(&self) -> bool {
        sys::about_name(self.dir.as_fd(), &self.name).is_ok_and(|found| found.is_some_and(|found| !found.is_socket))
    }

    /// A path by which this process reaches the name, short enough for the address of a socket.
    pub(crate) fn address(&self) -> PathBuf {
        self.address_of(&self.name)
    }

    fn address_of(&self, name: &Path) -> PathBuf {
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        if !dir.exists() {
            // There is no `/proc`: that will do if it is short.
            return self.shown.with_file_name(name);
        }
        dir.join(name)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(suffix);
        name.into()
    }

    fn lock_name(&self) -> PathBuf {
        self.beside(".lock")
    }

    fn new_name(&self) -> PathBuf {
        self.beside(".new")
    }
}

/// The user's own directory for bare names, and its path.
///
/// In `XDG_RUNTIME_DIR` where that is a directory of this user's (it is not after `su`, for one), otherwise in `/tmp`. Nobody else may be able to
/// put anything into it, or to have made it.
pub(crate) fn own_dir(make: bool) -> Result<(OwnedFd, PathBuf), NameError> {
    let user = sys::user();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let runtime = runtime.and_then(|path| {
        let dir = sys::open_dir(&path).ok()?;
        let is_own = sys::about(dir.as_fd()).is_ok_and(|about| about.uid == user && about.permissions & 0o022 == 0);
        is_own.then_some((dir, path, "ringpipe".to_owned()))
    });
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| NameError::Directory { path, error }
    };
    let (parent, parent_path, name) = match runtime {
        Some(found) => found,
        None => {
            let path = Path::new("/tmp");
            (sys::open_dir(path).map_err(failed(path))?, path.to_owned(), format!("ringpipe-{user}"))
        }
    };
    let (name, path) = (Path::new(&name), parent_path.join(&name));
    if make {
        sys::make_dir_in(parent.as_fd(), name).map_err(failed(&path))?;
    }
    let dir = sys::open_dir_in(parent.as_fd(), name).map_err(failed(&path))?;
    let about = sys::about(dir.as_fd()).map_err(failed(&path))?;
    if about.uid != user || about.permissions & 0o077 != 0 {
        return Err(NameError::NotPrivate { path, uid: about.uid, mode: about.permissions });
    }
    Ok((dir, path))
}

/// A name that belongs to this process, and the socket that listens under it. Dropping it gives the name up.
pub(crate) struct Claim {
    place: Place,
    socket: OwnedFd,
    /// Of the socket file; `None` until it is known.
    bound: Option<FileId>,
    lock: Lock,
}

impl Claim {
    /// Takes a name, from the dead if need be, and listens under it.
    pub(crate) fn take(place: Place, mode: u32, backlog: u32) -> Result<Claim, ListenError> {
        let failed = |what: &'static str, place: &Place| {
            let name = place.shown.clone();
            move |error| ListenError::Io { name, what, error }
        };
        let lock = Lock::take(&place)?;
        let new = place.new_name();
        let bound =
            clear(&place).and_then(|()| sys::bind(&place.address_of(&new), mode).map_err(failed("bind", &place)));
        let socket = match bound {
            Ok(socket) => socket,
            Err(error) => {
                lock.remove(&place);
                return Err(error);
            }
        };
        // From here on, dropping the claim removes what there is.
        let mut claim = Claim { place, socket, bound: None, lock };
        let place = &claim.place;
        let about = sys::about_name(place.dir.as_fd(), &new).map_err(failed("look at", place))?;
        let about = about.filter(|about| about.is_socket && about.uid == sys::user());
        let Some(about) = about else {
            let error = io::Error::new(io::ErrorKind::NotFound, "somebody else removed the file just bound");
            return Err(failed("bind", place)(error));
        };
        claim.bound = Some(about.id);
        let place = &claim.place;
        if about.permissions != mode {
            sys::set_mode(place.dir.as_fd(), &new, about.id, mode).map_err(failed("set the mode of", place))?;
        }
        sys::listen(claim.socket.as_fd(), backlog).map_err(failed("listen to", place))?;
        match sys::rename(place.dir.as_fd(), &new, &place.name) {
            Ok(()) => Ok(claim),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(ListenError::InUse { name: place.shown.clone() }),
            Err(e) => Err(failed("name", place)(e)),
        }
    }

    pub(crate) fn shown(&self) -> &Path {
        self.place.shown()
    }

    /// Whether this process took the name, rather than being a forked child of the one that did.
    pub(crate) fn is_own(&self) -> bool {
        self.lock.pid == std::process::id()
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_own() {
            return;
        }
        let dir = self.place.dir.as_fd();
        for name in [&self.place.name, &self.place.new_name()] {
            let found = sys::about_name(dir, name).ok().flatten().map(|about| about.id);
            if found.is_some() && found == self.bound {
                let _ = sys::unlink(dir, name);
            }
        }
        self.lock.remove(&self.place);
    }
}

/// Removes the socket files that a dead owner left.
fn clear(place: &Place) -> Result<(), ListenError> {
    let failed = |what| move |error| ListenError::Io { name: place.shown.clone(), what, error };
    let new = place.new_name();
    let left = sys::about_name(place.dir.as_fd(), &new).map_err(failed("look beside"))?;
    // Whatever else has that name is left alone, and then cannot be bound to.
    if left.is_some_and(|left| left.is_socket && left.uid == sys::user()) {
        sys::unlink(place.dir.as_fd(), &new).map_err(failed("remove a file beside"))?;
    }
    let found = sys::about_name(place.dir.as_fd(), &place.name).map_err(failed("look at"))?;
    let Some(found) = found else {
        return Ok(());
    };
    if !found.is_socket {
        return Err(ListenError::NotASocket { name: place.shown.clone() });
    }
    if found.uid != sys::user() {
        return Err(ListenError::Foreign { name: place.shown.clone(), uid: found.uid });
    }
    if sys::is_listening(&place.address()).map_err(failed("connect to"))? {
        return Err(ListenError::InUse { name: place.shown.clone() });
    }
    sys::unlink(place.dir.as_fd(), &place.name).map_err(failed("remove"))
}

struct Lock {
    #[expect(dead_code, reason = "it is locked as long as it is open")]
    file: OwnedFd,
    id: FileId,
    pid: u32,
}

/// How often a lock file may vanish between being opened and being locked: a bound against mischief only.
const TRIES: u32 = 10_000;

impl Lock {
    fn take(place: &Place) -> Result<Lock, ListenError> {
        let (dir, name) = (place.dir.as_fd(), place.lock_name());
        let failed = |error| ListenError::Io { name: place.shown.clone(), what: "lock", error };
        for _ in 0..TRIES {
            let file = sys::open_lock(dir, &name).map_err(failed)?;
            let about = sys::about(file.as_fd()).map_err(failed)?;
            if about.uid != sys::user() {
                return Err(ListenError::Foreign { name: place.shown.clone(), uid: about.uid });
            }
            if !sys::try_lock(file.as_fd()).map_err(failed)? {
                break;
            }
            let named = sys::about_name(dir, &name).map_err(failed)?;
            if named.is_some_and(|named| named.id == about.id) {
                return Ok(Lock { file, id: about.id, pid: std::process::id() });
            }
        }
        Err(ListenError::InUse { name: place.shown.clone() })
    }

    /// Removes the file, which is still locked, and stays so until `self` is dropped.
    fn remove(&self, place: &Place) {
        let (dir, name) = (place.dir.as_fd(), place.lock_name());
        if sys::about_name(dir, &name).is_ok_and(|found| found.is_some_and(|found| found.id == self.id)) {
            let _ = sys::unlink(dir, &name);
        }
    }
}
