//! Control groups that can be frozen: `cgroup.freeze` of version 2
//! ([cgroup-v2](https://docs.kernel.org/admin-guide/cgroup-v2.html)) and `freezer.state` of version 1
//! ([freezer-subsystem](https://docs.kernel.org/admin-guide/cgroup-v1/freezer-subsystem.html)).
//!
//! Crash story: each function does one thing to the group; who calls it has journalled it. Thawing twice, or
//! a group that is gone, is harmless. Nothing but these two files of a control group is ever written.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use model::undo::ProcessRef;
use rustix::fs::{Access, access, statfs};

use crate::process::stat;

/// `f_type` of a control group filesystem, statfs(2): version 1 and version 2.
const CGROUP_MAGIC: [i64; 2] = [0x0027_e0eb, 0x6367_7270];

/// A control group with a freezer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlGroup {
    directory: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// How far a freeze or thaw has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Thawed,
    /// On the way, in either direction.
    Between,
    Frozen,
}

impl ControlGroup {
    /// The group of this directory.
    ///
    /// # Errors
    /// If it is no control group or has no freezer: a root has none.
    pub fn at(directory: &Path) -> io::Result<Self> {
        let magic = statfs(directory)?.f_type;
        if !CGROUP_MAGIC.contains(&magic) {
            return Err(io::Error::other("not a control group"));
        }
        let version = if directory.join("cgroup.freeze").exists() {
            Version::Two
        } else if directory.join("freezer.state").exists() {
            Version::One
        } else {
            return Err(io::Error::other("this control group has no freezer"));
        };
        Ok(Self { directory: directory.to_owned(), version })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn switch(&self) -> PathBuf {
        self.directory.join(match self.version {
            Version::One => "freezer.state",
            Version::Two => "cgroup.freeze",
        })
    }

    /// Begins to freeze; see [`Self::state`] for when it is done.
    pub fn freeze(&self) -> io::Result<()> {
        fs::write(self.switch(), if self.version == Version::One { "FROZEN" } else { "1" })
    }

    /// Thaws.
    pub fn thaw(&self) -> io::Result<()> {
        fs::write(self.switch(), if self.version == Version::One { "THAWED" } else { "0" })
    }

    /// Version 2 tells in `cgroup.events` when all are frozen, version 1 in the switch itself.
    pub fn state(&self) -> io::Result<State> {
        let asked = fs::read_to_string(self.switch())?;
        match self.version {
            Version::One => Ok(match asked.trim() {
                "THAWED" => State::Thawed,
                "FROZEN" => State::Frozen,
                _ => State::Between,
            }),
            Version::Two => {
                let events = fs::read_to_string(self.directory.join("cgroup.events"))?;
                let frozen = events.lines().any(|line| line == "frozen 1");
                Ok(match (asked.trim() == "1", frozen) {
                    (true, true) => State::Frozen,
                    (false, false) => State::Thawed,
                    _ => State::Between,
                })
            }
        }
    }

    /// The ids of all processes in it and in the groups below it.
    pub fn members(&self) -> io::Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        let mut open = vec![self.directory.clone()];
        while let Some(directory) = open.pop() {
            let procs = fs::read_to_string(directory.join("cgroup.procs"))?;
            found.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    open.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    fn is_writable(&self) -> bool {
        access(self.switch(), Access::WRITE_OK).is_ok()
    }
}

/// The control group that holds exactly these processes, if we may freeze it; else why there is none.
pub(crate) fn of_exactly(processes: &[ProcessRef]) -> Result<ControlGroup, String> {
    let wanted: BTreeSet<u32> = processes.iter().map(|p| p.pid).collect();
    let mut why = "no control group with a freezer holds just these processes".to_owned();
    let Some(first) = processes.first() else { return Err(why) };
    for directory in candidates(first.pid) {
        let Ok(group) = ControlGroup::at(&directory) else { continue };
        let Ok(members) = group.members() else { continue };
        let running: BTreeSet<u32> = members.into_iter().filter(|pid| runs(*pid)).collect();
        if running != wanted {
            continue;
        }
        if group.is_writable() {
            return Ok(group);
        }
        why = format!("the control group {} may not be frozen by us", directory.display());
    }
    Err(why)
}

fn runs(pid: u32) -> bool {
    stat::read(pid).is_ok_and(|stat| !stat.has_ended())
}

/// The directories of the groups that a process is in, and of those around them, in hierarchies that can
/// freeze; innermost first.
fn candidates(pid: u32) -> Vec<PathBuf> {
    let groups = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let (groups, mounts) = (String::from_utf8_lossy(&groups), String::from_utf8_lossy(&mounts));
    let mut found = Vec::new();
    for mount in mounts.lines().filter_map(hierarchy) {
        for path in groups.lines().filter_map(|line| path_in(line, mount.version)) {
            let Ok(below) = Path::new(path).strip_prefix(mount.root) else { continue };
            let deepest = Path::new(mount.point).join(below);
            found
                .extend(deepest.ancestors().take_while(|a| *a != Path::new(mount.point)).map(Path::to_owned));
        }
    }
    found
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    version: Version,
}

/// `id parent major:minor root point options optional… - type source superoptions`, proc_pid_mountinfo(5).
fn hierarchy(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let mut after = after.split(' ');
    let version = match after.next()? {
        "cgroup2" => Version::Two,
        "cgroup" if after.nth(1)?.split(',').any(|option| option == "freezer") => Version::One,
        _ => return None,
    };
    Some(Mount { root, point, version })
}

/// `0::path`, or `id:controllers:path` with the freezer among them, cgroups(7).
fn path_in(line: &str, version: Version) -> Option<&str> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let ours = match version {
        Version::Two => controllers.is_empty(),
        Version::One => controllers.split(',').any(|controller| controller == "freezer"),
    };
    ours.then_some(path)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{ControlGroup, Version, hierarchy, path_in};

    #[test]
    fn hierarchies_that_freeze_are_found_in_mountinfo() {
        let two = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let mount = hierarchy(two).unwrap();
        assert_eq!((mount.root, mount.point, mount.version), ("/", "/sys/fs/cgroup", Version::Two));
        let one = "40 23 0:30 /a /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer";
        assert_eq!(hierarchy(one).unwrap().version, Version::One);
        assert!(hierarchy("40 23 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu").is_none());
        assert!(hierarchy("40 23 0:30 / /tmp rw - tmpfs tmpfs rw").is_none());
    }

    #[test]
    fn the_group_in_a_hierarchy_is_told_by_controller() {
        assert_eq!(path_in("0::/a:b/c", Version::Two), Some("/a:b/c"));
        assert_eq!(path_in("0::/a", Version::One), None);
        assert_eq!(path_in("6:cpu,freezer:/x", Version::One), Some("/x"));
        assert_eq!(path_in("6:memory:/x", Version::One), None);
    }

    #[test]
    fn a_plain_directory_is_never_written_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.freeze"), "0").unwrap();
        assert!(ControlGroup::at(dir.path()).is_err());
        assert!(ControlGroup::at(Path::new("/no/such/group")).is_err());
    }
}
