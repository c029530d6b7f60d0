//! What processes have open and mapped.
//!
//! Crash story: reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use model::undo::ProcessRef;

use super::{process_ref, select};

/// The files that these processes have mapped writable and shared, each once. Stores to such a mapping may
/// move no timestamp. Files without a name (deleted, `memfd`) and those below `/dev` are left out. Ask
/// [`unreadable_maps`] whose maps could not be seen.
///
/// The paths are those of the process's own mount namespace.
#[must_use]
pub fn shared_writable_maps(processes: &[ProcessRef]) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    for process in processes {
        if let Ok(maps) = fs::read(format!("/proc/{}/maps", process.pid)) {
            found.extend(maps.split(|b| *b == b'\n').filter_map(shared_writable));
        }
    }
    found.into_iter().collect()
}

/// Those of these processes that run, but whose maps we may not read.
#[must_use]
pub fn unreadable_maps(processes: &[ProcessRef]) -> Vec<ProcessRef> {
    let hidden = |p: &&ProcessRef| fs::read(format!("/proc/{}/maps", p.pid)).is_err() && super::alive(**p);
    processes.iter().filter(hidden).copied().collect()
}

/// `address perms offset dev inode path`, proc_pid_maps(5); a newline in the path is written `\012`.
fn shared_writable(line: &[u8]) -> Option<PathBuf> {
    let mut rest = line;
    let mut perms: &[u8] = &[];
    for field in 0..5 {
        let end = rest.iter().position(|b| *b == b' ')?;
        if field == 1 {
            perms = &rest[..end];
        }
        rest = rest[end..].trim_ascii_start();
    }
    if perms.get(1) != Some(&b'w') || perms.get(3) != Some(&b's') {
        return None;
    }
    let skipped = !rest.starts_with(b"/") || rest.starts_with(b"/dev/") || rest.ends_with(b" (deleted)");
    (!skipped).then(|| unescape(rest))
}

fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            bytes.push(b'\n');
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

/// Who has any of these files open, by any name (compared by device and inode). Processes whose descriptors
/// we may not read are not seen; root sees all of its namespace.
#[must_use]
pub fn open_by(paths: &[PathBuf]) -> Vec<(ProcessRef, PathBuf)> {
    let wanted: BTreeMap<(u64, u64), &PathBuf> = paths
        .iter()
        .filter_map(|path| fs::metadata(path).ok().map(|meta| ((meta.dev(), meta.ino()), path)))
        .collect();
    let mut found = BTreeSet::new();
    for pid in select::all().unwrap_or_default() {
        let Some(process) = process_ref(pid) else { continue };
        for path in opened(pid).iter().filter_map(|id| wanted.get(id)) {
            found.insert((process, (*path).clone()));
        }
    }
    found.into_iter().collect()
}

/// Device and inode of everything with a name that a process has open.
fn opened(pid: u32) -> Vec<(u64, u64)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| identity(&entry.path())).collect()
}

fn identity(descriptor: &Path) -> Option<(u64, u64)> {
    // Pipes and sockets have no path and are of no interest.
    let target = fs::read_link(descriptor).ok()?;
    if !target.is_absolute() {
        return None;
    }
    let meta = fs::metadata(descriptor).ok()?;
    Some((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path};

    use super::{open_by, shared_writable};
    use crate::process::{process_ref, this_process, unreadable_maps};

    #[test]
    fn only_shared_writable_maps_of_named_files() {
        let line = |perms: &str, path: &str| format!("7f00-7f01 {perms} 00000000 fd:01 1234      {path}");
        let path = |perms: &str, p: &str| shared_writable(line(perms, p).as_bytes());
        assert_eq!(path("rw-s", "/srv/a b").as_deref(), Some(Path::new("/srv/a b")));
        assert_eq!(path("rw-s", "/srv/a\\012b").as_deref(), Some(Path::new("/srv/a\nb")));
        assert_eq!(path("rw-p", "/srv/a"), None);
        assert_eq!(path("r--s", "/srv/a"), None);
        assert_eq!(path("rw-s", "/srv/a (deleted)"), None);
        assert_eq!(path("rw-s", "/dev/shm/a"), None);
        assert_eq!(path("rw-s", ""), None);
    }

    #[test]
    fn whoever_has_a_file_open_is_seen_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let file = File::create(&one).unwrap();
        std::fs::hard_link(&one, &two).unwrap();
        let me = this_process().unwrap();
        assert_eq!(open_by(std::slice::from_ref(&two)), [(me, two.clone())]);
        drop(file);
        assert_eq!(open_by(&[two]), []);
    }

    #[test]
    fn our_own_maps_are_readable() {
        let me = process_ref(std::process::id()).unwrap();
        assert_eq!(unreadable_maps(&[me]), []);
    }
}
