//! What processes have open and mapped.
//!
//! Crash story: reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use model::undo::ProcessRef;

use super::{ProcessError, process_ref, select};

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

/// A file that a process has mapped writable and shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Who.
    pub process: ProcessRef,
    /// What the process is called (`/proc/PID/comm`).
    pub command: String,
    /// The device of the file, as `stat` tells it.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// The shared writable mappings of all processes.
#[derive(Debug, Default)]
pub struct Mappings {
    /// All that could be seen.
    pub found: Vec<Mapping>,
    /// How many processes there are whose mappings we may not read: those of other users.
    pub hidden: u64,
}

/// The files that any process but this one has mapped writable and shared. Files that have no name any more
/// are left out. Takes up to a tenth of a second where many processes run. Processes that `/proc` hides from
/// us altogether (`hidepid`) are neither seen nor counted.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn all_shared_writable_maps() -> Result<Mappings, ProcessError> {
    let mut mappings = Mappings::default();
    let ourselves = std::process::id();
    for pid in select::all()?.into_iter().filter(|pid| *pid != ourselves) {
        let Some(process) = process_ref(pid) else { continue };
        let maps = match fs::read(format!("/proc/{pid}/maps")) {
            Ok(maps) => maps,
            Err(error) => {
                mappings.hidden += u64::from(error.kind() == io::ErrorKind::PermissionDenied);
                continue;
            }
        };
        let mut files: BTreeSet<(u64, u64)> = BTreeSet::new();
        files.extend(maps.split(|b| *b == b'\n').filter_map(|line| mapped_file(pid, line)));
        if !files.is_empty() {
            let command = command(pid);
            let mapping = |(device, inode)| Mapping { process, command: command.clone(), device, inode };
            mappings.found.extend(files.into_iter().map(mapping));
        }
    }
    Ok(mappings)
}

/// Device and inode of the regular file of a line of `maps`, if it is mapped writable and shared.
fn mapped_file(pid: u32, line: &[u8]) -> Option<(u64, u64)> {
    let line = MapsLine::parse(line).filter(MapsLine::is_shared_writable)?;
    // Needs CAP_CHECKPOINT_RESTORE, but is right whatever the file is called now and in whichever namespace.
    // The device in `maps` itself is not the one of `stat` on btrfs.
    let direct = fs::metadata(format!("/proc/{pid}/map_files/{}", String::from_utf8_lossy(line.address)));
    let meta = match direct {
        Ok(meta) => meta,
        Err(_) => {
            let below_root = unescape(line.path.strip_prefix(b"/")?);
            let its_root = PathBuf::from(format!("/proc/{pid}/root"));
            fs::metadata(its_root.join(&below_root))
                .or_else(|_| fs::metadata(Path::new("/").join(below_root)))
                .ok()?
        }
    };
    (meta.is_file() && meta.nlink() > 0).then(|| (meta.dev(), meta.ino()))
}

/// What a process is called; empty if it is gone.
fn command(pid: u32) -> String {
    let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(comm.trim_ascii_end()).into_owned()
}

/// One line of `maps`: `address perms offset dev inode path`, proc_pid_maps(5).
struct MapsLine<'a> {
    address: &'a [u8],
    perms: &'a [u8],
    /// With a newline written as `\012`.
    path: &'a [u8],
}

impl<'a> MapsLine<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let mut fields: [&[u8]; 5] = [&[]; 5];
        for field in &mut fields {
            let end = rest.iter().position(|b| *b == b' ')?;
            *field = &rest[..end];
            rest = rest[end..].trim_ascii_start();
        }
        let [address, perms, ..] = fields;
        Some(Self { address, perms, path: rest })
    }

    fn is_shared_writable(&self) -> bool {
        self.perms.get(1) == Some(&b'w') && self.perms.get(3) == Some(&b's')
    }
}

fn shared_writable(line: &[u8]) -> Option<PathBuf> {
    let path = MapsLine::parse(line).filter(MapsLine::is_shared_writable)?.path;
    let skipped = !path.starts_with(b"/") || path.starts_with(b"/dev/") || path.ends_with(b" (deleted)");
    (!skipped).then(|| unescape(path))
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
    if wanted.is_empty() {
        return Vec::new();
    }
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
