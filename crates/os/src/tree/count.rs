//! How many names a tree has, found out without looking at any but directories.
//!
//! Crash story: reads only.

use std::{
    ffi::OsStr,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, RawDir};

use super::{
    meta::{device, is_mount_point, status},
    rules::{open_dir, pseudo_mount},
};
use crate::{mounts::Mounts, staging::is_ours};

/// How much of a listing is read at once.
const LISTING: usize = 1 << 16;

/// A tree of which only the names count: those that a [`super::Walk`] with these bounds would hand out.
pub struct Count<'a> {
    /// Where it begins; a real path without symbolic links.
    pub root: &'a Path,
    /// Whether a path is left out, with everything below it; nothing if none is.
    pub leaves_out: Option<&'a dyn Fn(&Path) -> bool>,
    /// For telling what is mounted below the root.
    pub mounts: &'a Mounts,
}

/// A directory that is to be counted.
struct Todo {
    path: PathBuf,
    identity: (u64, u64),
    mount_point: bool,
    /// Which directories it stands in.
    above: Vec<(u64, u64)>,
}

impl Count<'_> {
    /// Counts, and hands each directory with its inode to `dir`. What cannot be read counts as empty.
    ///
    /// # Errors
    /// If the root cannot be looked at or is not a directory.
    pub fn run(&self, dir: &mut dyn FnMut(&Path, u64)) -> io::Result<u64> {
        let found = status(CWD, self.root)?;
        if FileType::from_raw_mode(u32::from(found.stx_mode)) != FileType::Directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        dir(self.root, found.stx_ino);
        let identity = (device(&found), found.stx_ino);
        let mut todo =
            vec![Todo { path: self.root.to_owned(), identity, mount_point: false, above: Vec::new() }];
        let mut names = 1;
        while let Some(next) = todo.pop() {
            let mut inside = Vec::new();
            names += self.names(&next, &mut inside).unwrap_or(0);
            inside.iter().for_each(|below| dir(&below.path, below.identity.1));
            todo.extend(inside.into_iter().filter(|below| self.is_entered(below)));
        }
        Ok(names)
    }

    fn is_entered(&self, dir: &Todo) -> bool {
        // Only what is mounted can stand above itself.
        !dir.mount_point
            || (!dir.above.contains(&dir.identity) && pseudo_mount(self.mounts, &dir.path).is_none())
    }

    /// How many names a directory holds; its directories are added to `inside`.
    fn names(&self, of: &Todo, inside: &mut Vec<Todo>) -> io::Result<u64> {
        let opened: OwnedFd = open_dir(CWD, &*of.path)?;
        let mut buffer = [MaybeUninit::uninit(); LISTING];
        let mut listing = RawDir::new(&opened, &mut buffer);
        let mut names = 0;
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." || entry.file_type() == FileType::Socket {
                continue;
            }
            let is_leaf = !matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            if is_leaf && self.leaves_out.is_none() {
                names += 1;
                continue;
            }
            let path = of.path.join(OsStr::from_bytes(name.to_bytes()));
            if self.leaves_out.is_some_and(|leaves_out| leaves_out(&path)) {
                continue;
            }
            if is_leaf {
                names += 1;
                continue;
            }
            // Gone since it was listed.
            let Ok(found) = status(opened.as_fd(), name) else { continue };
            match FileType::from_raw_mode(u32::from(found.stx_mode)) {
                FileType::Socket => {}
                FileType::Directory if is_ours(&path) => {}
                FileType::Directory => {
                    names += 1;
                    let identity = (device(&found), found.stx_ino);
                    let mut above = of.above.clone();
                    above.push(of.identity);
                    let mount_point = is_mount_point(&found);
                    inside.push(Todo { path, identity, mount_point, above });
                }
                _ => names += 1,
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        fs,
        ops::ControlFlow,
        os::unix::{fs::symlink, net::UnixListener},
        path::{Path, PathBuf},
    };

    use super::Count;
    use crate::{
        mounts::Mounts,
        tree::{Vanished, Walk},
    };

    #[test]
    fn what_is_counted_is_what_a_walk_hands_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for name in ["a/deep/file", "a-b", "cache/1", "cache/2", "db/main", ".stillpoint-tree-0/1"] {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), b"x").unwrap();
        }
        symlink("a", root.join("link")).unwrap();
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        let mounts = Mounts::read().unwrap();
        let carved = HashSet::from([root.join("db/main")]);
        for excludes in [false, true] {
            let exclude = |path: &Path| excludes && path.starts_with("cache");
            let none = HashSet::new();
            let carved = if excludes { &carved } else { &none };
            let vanished = Vanished::Problem;
            let walk = Walk { root, exclude: &exclude, carved, mounts: &mounts, vanished, xattrs: false };
            let (mut all, mut dirs) = (0, Vec::new());
            let mut each = |entry: model::entry::Entry| {
                all += 1;
                if entry.path.is_dir() && !entry.path.is_symlink() {
                    dirs.push(entry.path);
                }
                ControlFlow::Continue(())
            };
            walk.run(&mut each).unwrap();
            let leaves_out = |path: &Path| exclude(path.strip_prefix(root).unwrap()) || carved.contains(path);
            let leaves_out: Option<&dyn Fn(&Path) -> bool> = excludes.then_some(&leaves_out);
            let mut found: Vec<PathBuf> = Vec::new();
            let counted = Count { root, leaves_out, mounts: &mounts }
                .run(&mut |path, _| found.push(path.to_owned()))
                .unwrap();
            found.sort();
            dirs.sort();
            assert_eq!((counted, found), (all, dirs), "{excludes}");
        }
        assert!(
            Count { root: &root.join("a-b"), leaves_out: None, mounts: &mounts }.run(&mut |_, _| {}).is_err()
        );
    }
}
