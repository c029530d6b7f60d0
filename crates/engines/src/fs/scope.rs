//! What belongs to a directory source, and looking at it.
//!
//! Crash story: reads only.

use std::{
    collections::HashSet,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use jiff::Timestamp;
use model::{
    entry::Entry,
    pathtext,
    plan::TreePlan,
    port::{Clock, Failure, FailureKind},
    problem::Problem,
    time::Deadline,
};
use os::{
    mounts::Mounts,
    tree::{Census, Changes, Count, Pass, Resolved, Stopped, Vanished, Walk, clock_of_stamps, resolve, said},
};

/// How many names are looked at between two looks at the clock.
const LOOK_EVERY: usize = 256;

/// What belongs to a source, as its plan says.
#[derive(Debug)]
pub(super) struct Scope {
    pub root: PathBuf,
    exclude: GlobSet,
    carved: HashSet<PathBuf>,
}

/// How a scan is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub vanished: Vanished,
    pub xattrs: bool,
    pub until: Option<Deadline>,
}

/// Where a directory of the source is to be looked at: in itself, or in a snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy<'a> {
    /// The real path of the directory.
    pub of: &'a Path,
    /// Where to look.
    pub at: &'a Path,
}

/// One look at a source, as it concerns the source as a whole; the names are in the census.
#[derive(Debug)]
pub(super) struct Look {
    /// Before anything was looked at.
    pub started: Timestamp,
    /// What the kernel stamped files with at that moment: whatever changed since has this time or a later one.
    pub floor: Timestamp,
    pub resolved: Resolved,
    /// What went wrong in passing.
    pub problems: Vec<Problem>,
    /// A filesystem that stamps files by a clock that is not ours.
    pub foreign_clock: Option<String>,
}

/// Everything in a source at one time.
#[derive(Debug)]
pub(super) struct Scan {
    /// In tree order, the real root first.
    pub entries: Vec<Entry>,
    pub problems: Vec<Problem>,
}

impl Scope {
    pub(super) fn new(plan: &TreePlan) -> Result<Self, Failure> {
        Ok(Self {
            root: plan.root.clone(),
            exclude: patterns(&plan.exclude)?,
            carved: plan.carved.iter().flat_map(|path| carved(path)).collect(),
        })
    }

    /// Looks at everything that is otherwise than the census says, in a new one at everything.
    ///
    /// # Errors
    /// [`FailureKind::TimedOut`], or if the root is gone, unreadable or no directory. The census is as good as
    /// before then.
    pub(super) fn look(
        &self,
        clock: &dyn Clock,
        census: &mut Census,
        vanished: Vanished,
        until: Option<Deadline>,
    ) -> Result<Look, Failure> {
        let resolved = self.resolve()?;
        let (started, floor) = (clock.now(), clock_of_stamps());
        let mounts = Mounts::read().map_err(|error| self.lost(&error))?;
        let pass = Pass {
            root: &resolved.real,
            exclude: &|relative| self.exclude.is_match(relative),
            carved: &self.carved,
            mounts: &mounts,
            vanished,
            started,
            late: &|| until.is_some_and(|until| until.has_passed(clock.moment())),
        };
        let problems = census.update(&pass).map_err(|stopped| self.stopped(&stopped))?;
        let foreign_clock = foreign_clock(&mounts, &resolved.real);
        Ok(Look { started, floor, resolved, problems, foreign_clock })
    }

    /// What changed since a look, of which this is the census.
    ///
    /// # Errors
    /// [`FailureKind::TimedOut`].
    pub(super) fn changes(
        &self,
        clock: &dyn Clock,
        census: &Census,
        floor: Timestamp,
        until: Deadline,
    ) -> Result<Changes, Failure> {
        let late = || until.has_passed(clock.moment());
        census.changes(floor, &late).map_err(|stopped| self.stopped(&stopped))
    }

    /// Where the root really is.
    pub(super) fn resolve(&self) -> Result<Resolved, Failure> {
        resolve(&self.root).map_err(|error| self.lost(&error))
    }

    fn stopped(&self, stopped: &Stopped) -> Failure {
        match stopped {
            Stopped::Late(names) => {
                self.too_late(&format!("{names} names were looked at, and there are more"))
            }
            Stopped::Lost(error) => self.lost(error),
        }
    }

    /// Everything in the source.
    ///
    /// # Errors
    /// [`FailureKind::TimedOut`], or if the root is gone, unreadable or no directory.
    pub(super) fn scan(&self, clock: &dyn Clock, manner: Manner) -> Result<Scan, Failure> {
        let real = self.resolve()?.real;
        self.scan_copy(clock, manner, &real, &Copy { of: &real, at: &real })
    }

    /// As [`Self::scan`], of a copy of the tree, which is at `real`, or of a part of it, with the copy's paths in
    /// the entries.
    pub(super) fn scan_copy(
        &self,
        clock: &dyn Clock,
        manner: Manner,
        real: &Path,
        copy: &Copy<'_>,
    ) -> Result<Scan, Failure> {
        let mounts = Mounts::read().map_err(|error| self.lost(&error))?;
        let below_root = copy.of.strip_prefix(real).unwrap_or(Path::new(""));
        let in_copy = |path: &PathBuf| path.strip_prefix(copy.of).ok().map(|below| copy.at.join(below));
        let carved: HashSet<PathBuf> = self.carved.iter().filter_map(in_copy).collect();
        let walk = Walk {
            root: copy.at,
            exclude: &|relative| self.exclude.is_match(below_root.join(relative)),
            carved: &carved,
            mounts: &mounts,
            vanished: manner.vanished,
            xattrs: manner.xattrs,
        };
        let mut entries = Vec::new();
        let mut late = false;
        let walked = walk.run(&mut |entry| {
            entries.push(entry);
            late = entries.len().is_multiple_of(LOOK_EVERY)
                && manner.until.is_some_and(|until| until.has_passed(clock.moment()));
            if late { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if late {
            return Err(self.too_late(&format!("{} names were looked at, and there are more", entries.len())));
        }
        let problems = walked.map_err(|error| self.lost(&error))?;
        Ok(Scan { entries, problems })
    }

    /// How many names there are; `dir` gets each directory with its inode.
    pub(super) fn count(&self, dir: &mut dyn FnMut(&Path, u64)) -> Result<u64, Failure> {
        let real = self.resolve()?.real;
        let mounts = Mounts::read().map_err(|error| self.lost(&error))?;
        let leaves_out = |path: &Path| {
            self.carved.contains(path) || self.exclude.is_match(path.strip_prefix(&real).unwrap_or(path))
        };
        let takes_all = self.carved.is_empty() && self.exclude.is_empty();
        let leaves_out: Option<&dyn Fn(&Path) -> bool> = if takes_all { None } else { Some(&leaves_out) };
        let count = Count { root: &real, leaves_out, mounts: &mounts };
        count.run(dir).map_err(|error| self.lost(&error))
    }

    pub(super) fn too_late(&self, left: &str) -> Failure {
        Failure::new(
            FailureKind::TimedOut,
            format!("{} could not be pinned in time: {left}", pathtext::show(&self.root)),
            "raise the stall budget, exclude what need not be stored, or hold the processes that write there",
        )
    }

    fn lost(&self, error: &io::Error) -> Failure {
        Failure::new(
            FailureKind::Other,
            format!("{} cannot be read: {}", pathtext::show(&self.root), said(error)),
            "see that it is there, that it is mounted and that this user may read it",
        )
    }
}

/// The excludes of a source: globs relative to its root, `*` and `?` within one name, `**` across names.
fn patterns(globs: &[String]) -> Result<GlobSet, Failure> {
    let refused = |glob: &str, error: globset::Error| {
        Failure::new(
            FailureKind::Refused,
            format!("the exclude pattern {glob:?} is not understood: {}", error.kind()),
            "see the section on excludes in the manual",
        )
    };
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let relative = glob.trim_start_matches("./").trim_matches('/');
        let pattern = GlobBuilder::new(relative).literal_separator(true).build();
        set.add(pattern.map_err(|error| refused(glob, error))?);
    }
    set.build().map_err(|error| refused("", error))
}

/// Everything that another pin stores when it stores the database at `path`: as named and as it really is,
/// each with its sidecars, <https://www.sqlite.org/tempfiles.html>.
fn carved(path: &Path) -> HashSet<PathBuf> {
    let mut places = HashSet::from([path.to_owned()]);
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
        && let Ok(parent) = parent.canonicalize()
    {
        places.insert(parent.join(name));
    }
    places.extend(path.canonicalize());
    let sidecars = places.iter().flat_map(|place| {
        ["-wal", "-shm", "-journal"].map(|suffix| {
            let mut name = place.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        })
    });
    let sidecars: Vec<PathBuf> = sidecars.collect();
    places.extend(sidecars);
    places
}

fn foreign_clock(mounts: &Mounts, root: &Path) -> Option<String> {
    let all = mounts.of(root).into_iter().chain(mounts.below(root));
    all.into_iter().find(|mount| mount.is_remote()).map(|mount| mount.filesystem.clone())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::{carved, patterns};

    #[test]
    fn excludes_are_relative_globs() {
        let set =
            |globs: &[&str]| patterns(&globs.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let cache = set(&["cache/**"]);
        assert!(!cache.is_match("cache") && cache.is_match("cache/a") && cache.is_match("cache/a/b"));
        let tmp = set(&["*.tmp"]);
        assert!(tmp.is_match("x.tmp") && !tmp.is_match("d/x.tmp"));
        assert!(set(&["**/*.tmp"]).is_match("d/x.tmp"));
        assert!(set(&["/log/"]).is_match("log") && set(&["./log"]).is_match("log"));
        assert!(patterns(&["a[".to_owned()]).is_err());
    }

    #[test]
    fn a_database_is_carved_out_with_its_sidecars_wherever_it_really_is() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir(base.join("shared")).unwrap();
        fs::write(base.join("shared/real.db"), b"").unwrap();
        symlink("shared/real.db", base.join("app.db")).unwrap();
        let out = carved(&base.join("app.db"));
        for name in ["app.db", "app.db-wal", "shared/real.db", "shared/real.db-shm", "shared/real.db-journal"]
        {
            assert!(out.contains(&base.join(name)), "{name}");
        }
        assert!(!out.contains(Path::new("/")));
    }
}
