//! Where a root really is, and what stands on the way to it.
//!
//! Crash story: reads only.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use model::entry::{Body, Entry, Role};

use super::meta::{Found, read_entry_meta};

/// As the kernel allows, path_resolution(7).
const MOST_LINKS: usize = 40;

/// A root and its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The path without any symbolic link.
    pub real: PathBuf,
    /// The symbolic links that were met, each under its own real path, in the order of meeting them. A link
    /// at the end of the path as given is among them.
    pub links: Vec<PathBuf>,
}

impl Resolved {
    /// What is stored besides the tree: the links, as content, and every directory above them and above the
    /// root.
    #[must_use]
    pub fn way(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for link in &self.links {
            entries.extend(ancestors(link));
            entries.extend(entry(link, Role::Content));
        }
        entries.extend(ancestors(&self.real));
        entries
    }
}

/// Follows a path link by link.
///
/// # Errors
/// If something on the way is missing or cannot be looked at, there are more than 40 links, or the path is not
/// absolute.
pub fn resolve(path: &Path) -> io::Result<Resolved> {
    if !path.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is not absolute"));
    }
    let mut real = PathBuf::from("/");
    let mut links = Vec::new();
    let mut ahead: Vec<PathBuf> = parts(path);
    while let Some(part) = ahead.pop() {
        if part == Path::new("..") {
            real.pop();
            continue;
        }
        let here = real.join(&part);
        if !std::fs::symlink_metadata(&here)?.is_symlink() {
            real = here;
            continue;
        }
        if links.len() == MOST_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = std::fs::read_link(&here)?;
        if target.is_absolute() {
            real = PathBuf::from("/");
        }
        ahead.extend(parts(&target));
        links.push(here);
    }
    // A link may be met twice.
    let mut seen = std::collections::HashSet::new();
    links.retain(|link| seen.insert(link.clone()));
    Ok(Resolved { real, links })
}

/// The components that lead somewhere, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let leads = |c: &Component<'_>| matches!(c, Component::Normal(_) | Component::ParentDir);
    path.components().filter(leads).map(|c| PathBuf::from(c.as_os_str())).rev().collect()
}

/// The directories above a path, from `/` on, so that a restore has their attributes. One that cannot be looked
/// at is left out: a restore then makes it with plain attributes. The path should be a real one
/// ([`Resolved::real`]), since a link above it would hide what is below.
#[must_use]
pub fn ancestors(path: &Path) -> Vec<Entry> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    above.reverse();
    above.into_iter().filter_map(|p| entry(p, Role::Ancestor)).collect()
}

fn entry(path: &Path, role: Role) -> Option<Entry> {
    match read_entry_meta(path) {
        Ok((Found::Stored(kind), meta)) => {
            Some(Entry { path: path.to_owned(), kind, meta, body: Body::Nothing, role })
        }
        Ok((Found::Socket, _)) => None,
        // Only in backups: above what is generated, such as dumps.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the attributes of a directory above are unknown");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use model::entry::{Kind, Role};

    use super::{ancestors, resolve};

    #[test]
    fn links_are_followed_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("disk/app")).unwrap();
        fs::create_dir(base.join("srv")).unwrap();
        symlink("../disk", base.join("srv/volume")).unwrap();
        symlink(base.join("srv/volume/app"), base.join("srv/app")).unwrap();

        let found = resolve(&base.join("srv/./app")).unwrap();
        assert_eq!(found.real, base.join("disk/app"));
        assert_eq!(found.links, [base.join("srv/app"), base.join("srv/volume")]);
        assert_eq!(found.real, base.join("srv/app").canonicalize().unwrap());

        let way = found.way();
        let link = way.iter().find(|e| e.path == base.join("srv/app")).unwrap();
        assert_eq!((&link.kind, link.role), (&Kind::Symlink(base.join("srv/volume/app")), Role::Content));
        for dir in ["srv", "disk"] {
            assert!(way.iter().any(|e| e.path == base.join(dir) && e.role == Role::Ancestor), "{dir}");
        }
        assert!(!way.iter().any(|e| e.path == found.real), "the root itself belongs to the walk");
    }

    #[test]
    fn a_circle_and_a_missing_target_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(resolve(&dir.path().join("a")).is_err());
        symlink("gone", dir.path().join("c")).unwrap();
        assert_eq!(resolve(&dir.path().join("c")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert!(resolve(Path::new("relative")).is_err());
    }

    #[test]
    fn ancestors_begin_at_the_root() {
        let above = ancestors(Path::new("/proc/self/status"));
        let paths: Vec<_> = above.iter().map(|e| e.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/", "/proc", "/proc/self"]);
        assert!(ancestors(Path::new("/")).is_empty());
    }
}
