//! Which directories a feed has, and what stands in each: the trees that are to be stored and compared, without their
//! contents.
//!
//! About 100 bytes for each directory, nothing for a file.
//!
//! Crash story: memory only.

use std::{
    ffi::OsStr,
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use model::entry::Kind;

use crate::repository::feed::Feed;

/// What a directory holds, in tree order.
pub(crate) enum Child {
    /// Entries of the feed that are no directories.
    Places(Range<usize>),
    /// A directory, by its number.
    Dir(u32),
}

/// A directory.
pub(crate) struct Directory {
    /// Its own entry; nothing for the root, and for one that the feed lacks although something is below it.
    pub(crate) place: Option<usize>,
    /// The path of one that the feed lacks.
    missing: Option<Box<Path>>,
    pub(crate) children: Vec<Child>,
}

/// The directories of a feed; the first is `/`.
pub(crate) struct Layout {
    dirs: Vec<Directory>,
    /// The numbers of those with so many above them.
    levels: Vec<Vec<u32>>,
}

/// A directory that more may come for.
struct Open {
    path: PathBuf,
    number: u32,
}

impl Layout {
    /// Goes through a feed, whose entries come in tree order.
    pub(crate) fn of(feed: &Feed) -> Self {
        let mut layout = Self { dirs: Vec::new(), levels: Vec::new() };
        let root = Directory { place: None, missing: Some(Path::new("/").into()), children: Vec::new() };
        let mut open = vec![Open { path: "/".into(), number: layout.add(root, 0) }];
        for place in 0..feed.len() {
            let Some((dir, name)) = feed.name(place).filter(|(_, name)| !name.is_empty()) else { continue };
            layout.go_to(&mut open, dir);
            let level = open.len();
            let Some(top) = open.last() else { continue };
            let (number, is_dir) = (top.number, feed.kind(place) == Some(&Kind::Dir));
            if is_dir {
                let path = top.path.join(name);
                let new = Directory { place: Some(place), missing: None, children: Vec::new() };
                let below = layout.below(number, new, level);
                open.push(Open { path, number: below });
            } else {
                layout.put(number, place);
            }
        }
        layout
    }

    fn add(&mut self, directory: Directory, level: usize) -> u32 {
        let number = self.dirs.len() as u32;
        self.dirs.push(directory);
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Vec::new);
        }
        self.levels[level].push(number);
        number
    }

    fn below(&mut self, above: u32, directory: Directory, level: usize) -> u32 {
        let number = self.add(directory, level);
        self.dirs[above as usize].children.push(Child::Dir(number));
        number
    }

    fn put(&mut self, dir: u32, place: usize) {
        let children = &mut self.dirs[dir as usize].children;
        match children.last_mut() {
            Some(Child::Places(places)) if places.end == place => places.end += 1,
            _ => children.push(Child::Places(place..place + 1)),
        }
    }

    /// Closes directories and opens others until this one is open.
    fn go_to(&mut self, open: &mut Vec<Open>, dir: &Path) {
        if open.last().is_some_and(|open| open.path.as_os_str() == dir.as_os_str()) {
            return;
        }
        while open.last().is_some_and(|open| !dir.starts_with(&open.path)) {
            open.pop();
        }
        let Some(top) = open.last() else { return };
        let (mut path, mut number) = (top.path.clone(), top.number);
        let missing = dir.strip_prefix(&path).map(Path::to_owned).unwrap_or_default();
        for name in &missing {
            path.push(name);
            let new = Directory { place: None, missing: Some(path.as_path().into()), children: Vec::new() };
            number = self.below(number, new, open.len());
            open.push(Open { path: path.clone(), number });
        }
    }

    /// The directory with this number.
    pub(crate) fn dir(&self, number: u32) -> &Directory {
        &self.dirs[number as usize]
    }

    /// How many directories there are.
    pub(crate) fn len(&self) -> usize {
        self.dirs.len()
    }

    /// The numbers of all directories, those with most others above them first.
    pub(crate) fn deepest_first(&self) -> impl Iterator<Item = &[u32]> {
        self.levels.iter().rev().map(Vec::as_slice)
    }

    /// The path of a directory.
    pub(crate) fn path(&self, feed: &Feed, number: u32) -> PathBuf {
        let dir = self.dir(number);
        match (dir.place, &dir.missing) {
            (Some(place), _) => feed.path(place).unwrap_or_default(),
            (None, Some(path)) => path.to_path_buf(),
            (None, None) => PathBuf::new(),
        }
    }

    /// The name of a directory in the one above.
    pub(crate) fn name<'a>(&'a self, feed: &'a Feed, number: u32) -> &'a OsStr {
        let dir = self.dir(number);
        match (dir.place, &dir.missing) {
            (Some(place), _) => feed.name(place).map(|(_, name)| name).unwrap_or_default(),
            (None, Some(path)) => path.file_name().unwrap_or_default(),
            (None, None) => OsStr::from_bytes(b""),
        }
    }
}
