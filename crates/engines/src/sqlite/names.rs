//! The names beside a database.
//!
//! SQLite follows symbolic links and keeps its sidecars beside the real file
//! (<https://www.sqlite.org/howtocorrupt.html>, section 4.2), and so do we.
//!
//! Crash story: reads only.

use std::path::{Path, PathBuf};

use os::tree::resolve;

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The write-ahead log of a database.
pub(super) fn wal_of(real: &Path) -> PathBuf {
    with_suffix(real, "-wal")
}

/// The shared index of the write-ahead log.
pub(super) fn shm_of(real: &Path) -> PathBuf {
    with_suffix(real, "-shm")
}

/// The rollback journal.
pub(super) fn journal_of(real: &Path) -> PathBuf {
    with_suffix(real, "-journal")
}

/// All paths that belong to the database at this path, for carving them out of a directory: the path as given
/// and every link on the way to the file, the real file, and its `-wal`, `-shm` and `-journal`, there or not.
/// If the path leads nowhere, what it would be without links.
#[must_use]
pub fn sidecars(path: &Path) -> Vec<PathBuf> {
    let (real, mut all) = match resolve(path) {
        Ok(resolved) => (resolved.real, resolved.links),
        Err(_) => (path.to_owned(), Vec::new()),
    };
    all.extend([wal_of(&real), shm_of(&real), journal_of(&real), real, path.to_owned()]);
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::sidecars;

    #[test]
    fn sidecars_lie_beside_the_real_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("data")).unwrap();
        fs::write(root.join("data/real.db"), b"").unwrap();
        symlink("data/real.db", root.join("current.db")).unwrap();
        let names =
            ["current.db", "data/real.db", "data/real.db-journal", "data/real.db-shm", "data/real.db-wal"];
        assert_eq!(sidecars(&root.join("current.db")), names.map(|name| root.join(name)));
    }
}
