//! What peers leave in the file system. Whatever a cell makes there has a name that begins with the cell's own, so it can be found again when the
//! cell was killed.

use std::fs;
use std::path::Path;
use std::process;

const PREFIX: &str = "ringpipe-peers-";
const PLACES: [&str; 2] = ["/dev/shm", "/tmp"];

/// A name for a cell: nothing else on the system begins with it.
pub(crate) fn name(count: u64) -> String {
    format!("{PREFIX}{}-{count}-", process::id())
}

/// Where peers put what is no shared memory.
pub(crate) fn directory(name: &str) -> String {
    format!("/tmp/{name}")
}

/// Removes what begins with this name. Nobody may be using it any more.
pub(crate) fn remove(name: &str) {
    remove_if(|file| file.starts_with(name));
}

/// Removes what runs left behind that were killed.
pub(crate) fn remove_stale() {
    remove_if(|file| {
        let pid = file.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
}

fn remove_if(wanted: impl Fn(&str) -> bool) {
    for place in PLACES {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if wanted(&entry.file_name().to_string_lossy()) {
                remove_entry(&entry.path());
            }
        }
    }
}

fn remove_entry(path: &Path) {
    // What cannot be removed stays: it is no reason to stop measuring.
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    #[test]
    fn what_a_cell_or_a_killed_run_left_is_removed_and_nothing_else() {
        let name = super::name(u64::MAX);
        let (mine, other) = (format!("/dev/shm/{name}there"), format!("/dev/shm/other-{name}"));
        // Beyond all process numbers.
        let stale = "/dev/shm/ringpipe-peers-4194305-0-there".to_owned();
        for path in [&mine, &other, &stale] {
            fs::write(path, "x").unwrap();
        }
        let exist = || [&mine, &other, &stale].map(|path| Path::new(path).exists());
        super::remove_stale();
        assert_eq!(exist(), [true, true, false]);
        super::remove(&name);
        assert_eq!(exist(), [false, true, false]);
        fs::remove_file(other).unwrap();
    }
}
