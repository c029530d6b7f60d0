//! A copy of a server's files, and where each of its directories lies.
//!
//! Crash story: reads only.

use std::{
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    server::{RootRole, ServerForm, ServerRecord, ServerRoot},
};

/// Files of a server, each original directory of it somewhere else.
#[derive(Debug, Clone)]
pub struct ServerCopy {
    placement: Placement,
    record: ServerRecord,
}

impl ServerCopy {
    /// The copy of this record below `base`, each file under its original absolute path: as a restore to a directory
    /// writes them.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] for a dump, which has no files to open, and if a directory is not there.
    pub fn new(base: impl Into<PathBuf>, record: ServerRecord) -> Result<Self, Failure> {
        let base: PathBuf = base.into();
        let base = base.canonicalize().map_err(|e| cannot("looked at", &base, e))?;
        let below = |root: &ServerRoot| base.join(root.path.strip_prefix("/").unwrap_or(&root.path));
        let placement = Placement(record.roots.iter().map(|root| (root.path.clone(), below(root))).collect());
        Self::placed(placement, record)
    }

    /// The copy of this record whose directories lie at these places.
    ///
    /// # Errors
    /// As [`ServerCopy::new`].
    pub fn placed(placement: Placement, record: ServerRecord) -> Result<Self, Failure> {
        if record.form == ServerForm::Dump || record.roots.is_empty() {
            let what = format!("{} is stored as a dump, which has no files to open", record.source);
            return Err(Failure::new(FailureKind::Refused, what, "load it into a server"));
        }
        let copy = Self { placement, record };
        for root in &copy.record.roots {
            let place = copy.below(&root.path);
            place.symlink_metadata().map_err(|e| cannot("opened as a part of the copy", &place, e))?;
        }
        Ok(copy)
    }

    /// Its record.
    #[must_use]
    pub fn record(&self) -> &ServerRecord {
        &self.record
    }

    /// Where an original path lies in the copy; the path itself if it is in none of its directories.
    #[must_use]
    pub fn below(&self, original: &Path) -> PathBuf {
        self.placement.at(original).unwrap_or_else(|| original.to_owned())
    }

    /// The real original path of one that the server or a link of it names: either may go through symbolic links,
    /// while directories are recorded by their real paths. A path that leads nowhere known is returned as it is.
    pub(super) fn real(&self, named: &Path) -> PathBuf {
        let named = plain(named);
        let known = |path: &PathBuf| self.placement.at(path).is_some();
        if known(&named) {
            return named;
        }
        let below_data = self.record.settings.get("datadir").and_then(|data| {
            let rest = named.strip_prefix(plain(Path::new(data))).ok()?;
            Some(plain(&self.data().ok()?.join(rest)))
        });
        // Other links are only known where they still are: on the machine of the server.
        below_data.into_iter().chain([leads_to(&named)]).find(known).unwrap_or(named)
    }

    /// Its directories, each before those inside it.
    #[must_use]
    pub fn roots(&self) -> Vec<&ServerRoot> {
        let mut roots: Vec<&ServerRoot> = self.record.roots.iter().collect();
        roots.sort_by(|a, b| a.path.components().cmp(b.path.components()));
        roots
    }

    /// The original data directory.
    ///
    /// # Errors
    /// If the record has none.
    pub fn data(&self) -> Result<&Path, Failure> {
        let data = self.record.roots.iter().find(|root| root.role == RootRole::Data);
        data.map(|root| root.path.as_path()).ok_or_else(|| {
            let what = format!("the record of {} names no data directory", self.record.source);
            Failure::new(FailureKind::Damaged, what, "use another backup")
        })
    }

    /// Whose the data directory is.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn owner(&self) -> Result<(u32, u32), Failure> {
        let data = self.below(self.data()?);
        let found = data.metadata().map_err(|e| cannot("looked at", &data, e))?;
        Ok((found.uid(), found.gid()))
    }

    /// Where the copy lies.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }
}

/// Where each original directory of a server is to be found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement(pub Vec<(PathBuf, PathBuf)>);

impl Placement {
    /// Where an original absolute path is to be found; `None` if it lies outside of everything that was stored.
    #[must_use]
    pub fn at(&self, original: &Path) -> Option<PathBuf> {
        let original = plain(original);
        let inside = |(root, _): &&(PathBuf, PathBuf)| original.starts_with(root);
        let (root, place) = self.0.iter().filter(inside).max_by_key(|(root, _)| root.components().count())?;
        let rest = original.strip_prefix(root).ok()?;
        Some(if rest.as_os_str().is_empty() { place.clone() } else { place.join(rest) })
    }

    /// The original of a path in the copy.
    #[must_use]
    pub fn original_of(&self, place: &Path) -> Option<PathBuf> {
        let inside = |(_, at): &&(PathBuf, PathBuf)| place.starts_with(at);
        let (root, at) = self.0.iter().filter(inside).max_by_key(|(_, at)| at.components().count())?;
        Some(root.join(place.strip_prefix(at).ok()?))
    }

    /// Whether a path leads into the copy.
    #[must_use]
    pub fn is_placed(&self, path: &Path) -> bool {
        let path = plain(path);
        self.0.iter().any(|(_, place)| path.starts_with(place))
    }
}

/// The path without `.` and `..`, by its text alone.
pub(super) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// Where a path leads on this machine, as far as it exists here.
pub(super) fn leads_to(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|above| Some((above.canonicalize().ok()?, above)));
    match found.and_then(|(real, above)| Some((real, path.strip_prefix(above).ok()?))) {
        Some((real, rest)) if rest.as_os_str().is_empty() => real,
        Some((real, rest)) => real.join(rest),
        None => path.to_owned(),
    }
}

pub(super) fn cannot(done: &str, path: &Path, error: std::io::Error) -> Failure {
    let kind = if os::staging::is_no_space(&error) { FailureKind::NoSpace } else { FailureKind::Other };
    Failure::new(kind, format!("{} cannot be {done}", pathtext::show(path)), "").because(error)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::Placement;

    #[test]
    fn paths_are_found_in_the_innermost_directory() {
        let placement = Placement(vec![
            (PathBuf::from("/var/lib/mysql"), PathBuf::from("/copy/a")),
            (PathBuf::from("/var/lib/mysql/redo"), PathBuf::from("/copy/b")),
        ]);
        let at = |path: &str| placement.at(Path::new(path));
        assert_eq!(at("/var/lib/mysql"), Some("/copy/a".into()));
        assert_eq!(at("/var/lib/mysql/d/t.ibd"), Some("/copy/a/d/t.ibd".into()));
        assert_eq!(at("/var/lib/mysql/redo/ib_logfile0"), Some("/copy/b/ib_logfile0".into()));
        assert_eq!(at("/var/lib/mysql/../other/t.ibd"), None);
        assert_eq!(at("/var/lib/mysql2/t.ibd"), None);
    }
}
