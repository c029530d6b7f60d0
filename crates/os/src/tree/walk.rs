//! Walking a tree depth first, in the order of [`model::entry::tree_order`].
//!
//! Crash story: reads only. Each directory is opened once, by its path, read whole and closed before anything
//! below it is looked at, so that no depth exhausts descriptors; it is recognised by device and inode after
//! opening, so that what was put in its place meanwhile is not taken for it. A name longer than the system's
//! limit for paths (4096 bytes) is missing and said to be.

use std::{
    collections::HashSet,
    ffi::OsString,
    io,
    ops::ControlFlow,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    vec,
};

use model::{
    entry::{Body, Entry, Kind, Meta, Role},
    problem::Problem,
};
use rustix::fs::{CWD, Dir, fstat};

use super::{
    meta::{Found, Unread, Xattrs, describe, has_true_time, is_mount_point, status},
    rules::{
        Vanished, attribute_unread, attributes_unreadable, circle, is_gone, open_dir, pseudo_mount, socket,
        time_beyond, unreadable,
    },
};
use crate::{mounts::Mounts, staging::is_ours};

/// A walk through one tree.
pub struct Walk<'a> {
    /// Where it begins; a real path without symbolic links.
    pub root: &'a Path,
    /// Whether a path relative to the root is left out, with everything below it.
    pub exclude: &'a dyn Fn(&Path) -> bool,
    /// Absolute paths that are left out, with everything below them.
    pub carved: &'a HashSet<PathBuf>,
    /// For telling what is mounted below the root.
    pub mounts: &'a Mounts,
    /// What to say of vanished names.
    pub vanished: Vanished,
    /// Whether to read extended attributes; without them the walk costs half.
    pub xattrs: bool,
}

/// A directory whose children are being handed out.
struct Level {
    /// Device and inode.
    identity: (u64, u64),
    children: vec::IntoIter<Child>,
}

struct Child {
    name: OsString,
    kind: Kind,
    meta: Meta,
    mount_point: bool,
}

/// What a walk carries along.
struct Course<'a, 'w> {
    walk: &'a Walk<'w>,
    problems: Vec<Problem>,
    xattrs: Xattrs,
    /// The kind of attribute that cannot be read has been noted.
    noted_xattr: bool,
}

impl Walk<'_> {
    /// Hands out every entry, the root first and a directory before what it holds, until `each` breaks.
    /// Regular files have [`Body::Carried`] until somebody knows better. Returns what is missing or worth
    /// knowing.
    ///
    /// # Errors
    /// If the root cannot be looked at or is not a directory. Everything below is a problem instead.
    pub fn run(&self, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> io::Result<Vec<Problem>> {
        let status = status(CWD, self.root)?;
        let (found, meta) = describe(CWD, self.root, &status)?;
        if found != Found::Stored(Kind::Dir) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let mut course =
            Course { walk: self, problems: Vec::new(), xattrs: Xattrs::new(), noted_xattr: false };
        let mut path = self.root.to_owned();
        let root = Child { name: OsString::new(), kind: Kind::Dir, meta, mount_point: false };
        course.descend(&mut path, root, each);
        Ok(course.problems)
    }
}

impl Course<'_, '_> {
    fn descend(&mut self, path: &mut PathBuf, root: Child, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) {
        let mut levels: Vec<Level> = Vec::new();
        let mut next = Some(root);
        loop {
            if let Some(child) = next.take() {
                let level = match child.kind {
                    Kind::Dir => self.enter(path, &child, &levels),
                    _ => None,
                };
                if each(self.entry(path, child)).is_break() {
                    return;
                }
                match level {
                    Some(level) => levels.push(level),
                    // `/` has no parent, and is left only when the walk is over.
                    None => {
                        path.pop();
                    }
                }
            }
            let Some(level) = levels.last_mut() else { return };
            match level.children.next() {
                Some(child) => {
                    path.push(&child.name);
                    next = Some(child);
                }
                None => {
                    levels.pop();
                    path.pop();
                }
            }
        }
    }

    fn entry(&mut self, path: &Path, child: Child) -> Entry {
        let Child { kind, mut meta, .. } = child;
        if self.walk.xattrs {
            match self.xattrs.read(path) {
                Ok((xattrs, unread)) => {
                    meta.xattrs = xattrs;
                    self.note_unread(path, &unread);
                }
                // Gone since it was listed: whoever reads a file or enters a directory will say so.
                Err(error) if is_gone(&error) => {}
                Err(error) => self.problems.push(attributes_unreadable(path, &error)),
            }
        }
        let body = if kind == Kind::File { Body::Carried } else { Body::Nothing };
        Entry { path: path.to_owned(), kind, meta, body, role: Role::Content }
    }

    /// What a directory holds, or `None` if it is not to be entered or cannot be.
    fn enter(&mut self, path: &Path, child: &Child, above: &[Level]) -> Option<Level> {
        let identity = (child.meta.device, child.meta.inode);
        if above.iter().any(|level| level.identity == identity) {
            self.problems.push(circle(path));
            return None;
        }
        if child.mount_point
            && let Some(note) = pseudo_mount(self.walk.mounts, path)
        {
            self.problems.push(note);
            return None;
        }
        match self.children(path, identity) {
            Ok(children) => Some(Level { identity, children: children.into_iter() }),
            Err(error) if is_gone(&error) => {
                self.vanished(path);
                None
            }
            Err(error) => {
                self.unreadable(path, &error);
                None
            }
        }
    }

    fn children(&mut self, path: &Path, identity: (u64, u64)) -> io::Result<Vec<Child>> {
        let dir = open_dir(CWD, path)?;
        let opened = fstat(&dir)?;
        if (opened.st_dev, opened.st_ino) != identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut children = Vec::new();
        let mut inside = path.to_owned();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            inside.push(OsString::from_vec(name.to_vec()));
            if let Some(child) = self.child(&dir, &inside) {
                children.push(child);
            }
            inside.pop();
        }
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(children)
    }

    /// One name of an open directory, unless it is left out.
    fn child(&mut self, dir: &OwnedFd, path: &Path) -> Option<Child> {
        let name = path.file_name()?.to_owned();
        let relative = path.strip_prefix(self.walk.root).unwrap_or(path);
        if self.walk.carved.contains(path) || (self.walk.exclude)(relative) {
            return None;
        }
        let looked = status(dir.as_fd(), &*name)
            .and_then(|status| Ok((status, describe(dir.as_fd(), &*name, &status)?)));
        match looked {
            Ok((_, (Found::Stored(Kind::Dir), _))) if is_ours(path) => None,
            Ok((status, (Found::Stored(kind), meta))) => {
                if !has_true_time(&status) {
                    self.problems.push(time_beyond(path));
                }
                Some(Child { name, kind, meta, mount_point: is_mount_point(&status) })
            }
            Ok((_, (Found::Socket, _))) => {
                self.problems.push(socket(path));
                None
            }
            Err(error) if is_gone(&error) => {
                self.vanished(path);
                None
            }
            Err(error) => {
                self.unreadable(path, &error);
                None
            }
        }
    }

    fn vanished(&mut self, path: &Path) {
        self.problems.extend(self.walk.vanished.said_of(path));
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.problems.push(unreadable(path, error));
    }

    fn note_unread(&mut self, path: &Path, unread: &[Unread]) {
        if let (false, Some(unread)) = (self.noted_xattr, unread.first()) {
            self.noted_xattr = true;
            self.problems.push(attribute_unread(path, unread));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        ffi::OsStr,
        fs,
        ops::ControlFlow,
        os::unix::{ffi::OsStrExt, fs::symlink, net::UnixListener},
        path::{Path, PathBuf},
    };

    use model::{
        entry::{Body, Entry, Kind, tree_order},
        problem::{Effect, Problem},
    };
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::{Vanished, Walk};
    use crate::mounts::Mounts;

    fn walk_with(
        root: &Path,
        exclude: &dyn Fn(&Path) -> bool,
        carved: &[&Path],
        vanished: Vanished,
        each: &mut dyn FnMut(&Entry),
    ) -> (Vec<Entry>, Vec<Problem>) {
        let carved: HashSet<PathBuf> = carved.iter().map(|p| p.to_path_buf()).collect();
        let mounts = Mounts::read().unwrap();
        let walk = Walk { root, exclude, carved: &carved, mounts: &mounts, vanished, xattrs: true };
        let mut entries = Vec::new();
        let problems = walk
            .run(&mut |entry| {
                each(&entry);
                entries.push(entry);
                ControlFlow::Continue(())
            })
            .unwrap();
        (entries, problems)
    }

    fn walk(root: &Path) -> (Vec<Entry>, Vec<Problem>) {
        walk_with(root, &|_| false, &[], Vanished::Problem, &mut |_| {})
    }

    fn names(root: &Path, entries: &[Entry]) -> Vec<String> {
        let below = |e: &Entry| e.path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        entries.iter().map(below).collect()
    }

    #[test]
    fn every_kind_is_found_in_tree_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/deep")).unwrap();
        fs::write(root.join("a/deep/file"), b"x").unwrap();
        fs::write(root.join("a-b"), b"x").unwrap();
        fs::hard_link(root.join("a-b"), root.join("twin")).unwrap();
        symlink("a", root.join("link")).unwrap();
        mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        fs::create_dir(root.join(".stillpoint-tree-0")).unwrap();
        fs::write(root.join(".stillpoint-tree-0/1"), b"x").unwrap();
        let odd = root.join(OsStr::from_bytes(b"\xff\n"));
        fs::write(&odd, b"x").unwrap();

        let (entries, problems) = walk(root);
        assert!(entries.is_sorted_by(|a, b| tree_order(&a.path, &b.path).is_lt()));
        assert_eq!(entries.last().unwrap().path, odd);
        let known = names(root, &entries[..entries.len() - 1]);
        assert_eq!(known, ["", "a", "a/deep", "a/deep/file", "a-b", "fifo", "link", "twin"]);
        let by = |name: &str| entries.iter().find(|e| e.path == root.join(name)).unwrap();
        assert_eq!(by("fifo").kind, Kind::Fifo);
        assert_eq!(by("link").kind, Kind::Symlink("a".into()));
        assert_eq!((&by("a-b").body, &by("a").body), (&Body::Carried, &Body::Nothing));
        assert_eq!(by("twin").meta.inode, by("a-b").meta.inode);
        assert_eq!(by("twin").meta.links, 2);
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert_eq!(problem.effect, Effect::Note);
        assert_eq!(problem.path.as_deref(), Some(&*root.join("socket")));
    }

    #[test]
    fn what_is_excluded_or_carved_is_left_out_with_all_below() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for name in ["cache/a/b", "keep/c", "db/main"] {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), b"x").unwrap();
        }
        let exclude = |path: &Path| path == Path::new("cache/a");
        let carved = [&*root.join("db/main")];
        let (entries, problems) = walk_with(root, &exclude, &carved, Vanished::Problem, &mut |_| {});
        assert_eq!(names(root, &entries), ["", "cache", "db", "keep", "keep/c"]);
        assert!(problems.is_empty());
    }

    #[test]
    fn what_vanishes_is_a_problem_only_if_everybody_is_held() {
        for (vanished, count) in [(Vanished::Expected, 0), (Vanished::Problem, 1)] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            fs::write(root.join("a"), b"x").unwrap();
            fs::create_dir_all(root.join("b/c")).unwrap();
            let mut remove = |entry: &Entry| {
                if entry.path == root.join("a") {
                    fs::remove_dir_all(root.join("b")).unwrap();
                }
            };
            let (_, problems) = walk_with(root, &|_| false, &[], vanished, &mut remove);
            assert_eq!(problems.iter().filter(|p| p.effect == Effect::Weaker).count(), count);
        }
    }

    #[test]
    fn a_directory_replaced_by_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), b"x").unwrap();
        fs::write(root.join("a"), b"x").unwrap();
        fs::create_dir(root.join("b")).unwrap();
        let mut swap = |entry: &Entry| {
            if entry.path == root.join("a") {
                fs::remove_dir(root.join("b")).unwrap();
                symlink(outside.path(), root.join("b")).unwrap();
            }
        };
        let (entries, problems) = walk_with(root, &|_| false, &[], Vanished::Problem, &mut swap);
        assert!(!entries.iter().any(|e| e.path.ends_with("secret")));
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn a_walk_stops_when_told_to() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), b"x").unwrap();
        let mounts = Mounts::default();
        let carved = HashSet::new();
        let walk = Walk {
            root: dir.path(),
            exclude: &|_| false,
            carved: &carved,
            mounts: &mounts,
            vanished: Vanished::Expected,
            xattrs: false,
        };
        let mut count = 0;
        walk.run(&mut |_| {
            count += 1;
            ControlFlow::Break(())
        })
        .unwrap();
        assert_eq!(count, 1);
        let missing = Walk { root: &dir.path().join("none"), ..walk };
        assert!(missing.run(&mut |_| ControlFlow::Continue(())).is_err());
    }

    #[test]
    fn filesystems_of_the_kernel_are_noted_and_not_walked() {
        // Every machine has /proc, and something of the kernel's mounted below /sys or /proc or /dev.
        let mounts = Mounts::read().unwrap();
        let pseudo = mounts
            .below(Path::new("/"))
            .into_iter()
            .find(|m| m.is_pseudo() && m.filesystem != "autofs" && m.point.parent() == Some(Path::new("/")));
        let point = pseudo.expect("/proc is mounted").point.clone();
        let exclude = |path: &Path| Path::new("/").join(path) != point;
        let carved = HashSet::new();
        let walk = Walk {
            root: Path::new("/"),
            exclude: &exclude,
            carved: &carved,
            mounts: &mounts,
            vanished: Vanished::Expected,
            xattrs: false,
        };
        let mut paths = Vec::new();
        let problems = walk
            .run(&mut |entry| {
                paths.push(entry.path);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(paths, [PathBuf::from("/"), point.clone()]);
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert_eq!((problem.effect, problem.path.as_ref()), (Effect::Note, Some(&point)));
    }
}
