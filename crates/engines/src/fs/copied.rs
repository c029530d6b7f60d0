//! The harvest of a tree from snapshots that show it.
//!
//! Crash story: reads only.

use std::path::Path;

use model::{
    entry::{Body, Entry, Harvest, Kind},
    known::Known,
    port::{Clock, Failure},
    problem::Problem,
};
use os::{
    mounts::Mounts,
    subvolume::EMPTY_PLACEHOLDER,
    tree::{Vanished, said},
};

use super::scope::{Copy, Manner, Scope};

/// A tree whose state of the cut stands elsewhere.
pub(super) struct Copied<'a> {
    pub scope: &'a Scope,
    pub clock: &'a dyn Clock,
    /// What need not be read, since a backup before holds it.
    pub known: &'a Known,
    /// The real path of the live tree.
    pub real: &'a Path,
}

impl Copied<'_> {
    /// Adds what one copy shows, under its original paths. `device` is the number of the live filesystem. What to
    /// say of the empty directory that stands for another btrfs subvolume is for `placeholder`.
    ///
    /// # Errors
    /// If the copy cannot be read at all.
    pub fn add(
        &self,
        copy: &Copy<'_>,
        device: u64,
        placeholder: &dyn Fn(&Path) -> Option<Problem>,
        harvest: &mut Harvest,
    ) -> Result<(), Failure> {
        let manner = Manner { vanished: Vanished::Problem, xattrs: true, until: None };
        let scan = self.scope.scan_copy(self.clock, manner, self.real, copy)?;
        let live = |path: &Path| match path.strip_prefix(copy.at) {
            Ok(below) if below.as_os_str().is_empty() => copy.of.to_owned(),
            Ok(below) => copy.of.join(below),
            Err(_) => path.to_owned(),
        };
        for mut problem in scan.problems {
            problem.path = problem.path.as_deref().map(live);
            harvest.problems.push(problem);
        }
        for mut entry in scan.entries {
            let path = live(&entry.path);
            if entry.kind == Kind::Dir && entry.meta.inode == EMPTY_PLACEHOLDER {
                harvest.problems.extend(placeholder(&path));
                continue;
            }
            if entry.kind == Kind::File {
                let known = self.known.has(&path, &entry.meta.stamp());
                entry.body = if known { Body::Carried } else { Body::At(entry.path) };
            }
            entry.meta.device = device;
            harvest.entries.push(Entry { path, ..entry });
        }
        Ok(())
    }
}

/// Names what is mounted inside the tree and is in none of the copies, which show the directory below it. `held` says
/// which mounts have a copy of their own.
pub(super) fn add_foreign(root: &Path, held: &dyn Fn(&Path) -> bool, remedy: &str, harvest: &mut Harvest) {
    let mounts = match Mounts::read() {
        Ok(mounts) => mounts,
        Err(error) => {
            let what = format!("nobody can tell what is mounted in it: {}", said(&error));
            harvest.problems.push(Problem::missing(root, what, "mount /proc"));
            return;
        }
    };
    for mount in mounts.below(root) {
        if held(&mount.point) || !harvest.entries.iter().any(|entry| entry.path == mount.point) {
            continue;
        }
        harvest.problems.push(if mount.is_pseudo() {
            let what = format!("is a {} filesystem: what it shows is not stored", mount.filesystem);
            Problem::note(&mount.point, what)
        } else {
            let what = format!("is a {} filesystem that no snapshot holds", mount.filesystem);
            Problem::missing(&mount.point, what, remedy)
        });
    }
}
