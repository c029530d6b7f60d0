//! Everything in a backup, as a list that no name can escape from.
//!
//! Crash story: plain values, no effects.

use std::{
    collections::HashMap,
    path::{Component, Path},
};

use super::{Kind, Meta, PathBuf, Problem, pathtext, refused};
use crate::{entry::tree_order, port::Failure, size::Bytes};

/// One name in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Original absolute path.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The original's attributes.
    pub meta: Meta,
}

/// All names in a backup, in [`tree_order`]. About 300 bytes a name in memory.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    entries: Vec<Listed>,
    /// By index, how many bytes of large files are zeros, as far as that can be told without reading them.
    zeros: HashMap<usize, Bytes>,
    /// What is in the backup but cannot be restored, such as sockets.
    pub problems: Vec<Problem>,
}

impl Listing {
    /// Takes these entries, in order.
    ///
    /// # Errors
    /// If they are not what a directory tree can be: paths that are not absolute and plain, a path twice or
    /// out of order, or something below what is not a directory. A repository that was tampered with could
    /// otherwise write outside the target.
    pub fn new(entries: Vec<Listed>, problems: Vec<Problem>) -> Result<Self, Failure> {
        let mut above: Vec<&Listed> = Vec::new();
        let mut previous: Option<&Path> = None;
        for entry in &entries {
            if !is_plain(&entry.path) {
                return Err(hostile(&entry.path, "is not a plain absolute path"));
            }
            if previous.is_some_and(|p| tree_order(p, &entry.path).is_ge()) {
                return Err(hostile(&entry.path, "is listed twice or out of order"));
            }
            while above.last().is_some_and(|dir| !entry.path.starts_with(&dir.path)) {
                above.pop();
            }
            if above.last().is_some_and(|dir| dir.kind != Kind::Dir) {
                return Err(hostile(&entry.path, "lies below something that is not a directory"));
            }
            previous = Some(&entry.path);
            above.push(entry);
        }
        Ok(Self { entries, zeros: HashMap::new(), problems })
    }

    /// With files that are known to have so many bytes of zeros: those are written as holes.
    #[must_use]
    pub fn with_zeros(mut self, zeros: HashMap<usize, Bytes>) -> Self {
        self.zeros = zeros;
        self
    }

    /// The entries in order.
    #[must_use]
    pub fn entries(&self) -> &[Listed] {
        &self.entries
    }

    /// The index of this path.
    #[must_use]
    pub fn position(&self, path: &Path) -> Option<usize> {
        self.entries.binary_search_by(|e| tree_order(&e.path, path)).ok()
    }

    /// The entry of this path.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<&Listed> {
        self.position(path).map(|index| &self.entries[index])
    }

    /// The indices of `root` and everything below it; `/` is everything.
    #[must_use]
    pub fn below(&self, root: &Path) -> std::ops::Range<usize> {
        let start = self.entries.partition_point(|e| tree_order(&e.path, root).is_lt());
        let count = self.entries[start..].partition_point(|e| e.path.starts_with(root));
        start..start + count
    }

    /// Regular files and their bytes below `root`, and what a disk needs for them: hard links counted once,
    /// every file in whole blocks of 4 KiB.
    #[must_use]
    pub fn weigh(&self, root: &Path) -> Weight {
        const BLOCK: u64 = 4096;
        let mut seen = std::collections::HashSet::new();
        let mut weight = Weight::default();
        let below = self.below(root);
        for (index, entry) in below.clone().zip(&self.entries[below]) {
            weight.entries += 1;
            let meta = &entry.meta;
            if entry.kind == Kind::File {
                weight.files += 1;
                weight.bytes = weight.bytes + meta.size;
                if meta.links < 2 || seen.insert((meta.device, meta.inode)) {
                    let zeros = self.zeros.get(&index).copied().unwrap_or_default();
                    let blocks = meta.size.0.saturating_sub(zeros.0).div_ceil(BLOCK);
                    weight.disk = weight.disk + Bytes(blocks.saturating_mul(BLOCK));
                }
            } else {
                weight.disk = weight.disk + Bytes(BLOCK);
            }
        }
        weight
    }
}

/// How much is below a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Names.
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// Bytes that a disk needs, without known zeros of large files.
    pub disk: Bytes,
}

fn is_plain(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let mut parts = path.components();
    // Components swallow repeated and trailing slashes and inner dots, hence the look at the bytes.
    bytes.len() > 1
        && !bytes.contains(&0)
        && !bytes.ends_with(b"/")
        && !bytes.windows(2).any(|pair| pair == b"//")
        && !bytes.windows(3).any(|part| part == b"/./")
        && !bytes.ends_with(b"/.")
        && parts.next() == Some(Component::RootDir)
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn hostile(path: &Path, what: &str) -> Failure {
    refused(
        format!("the backup lists {}, which {what}", pathtext::show(path)),
        "check the repository, and restore another backup",
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use jiff::Timestamp;

    use super::{Kind, Listed, Listing, Meta};
    use crate::size::Bytes;

    fn entry(path: &str, kind: Kind) -> Listed {
        let time = Timestamp::UNIX_EPOCH;
        let meta = Meta {
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: Bytes(5000),
            mtime: time,
            atime: time,
            ctime: time,
            inode: 7,
            device: 1,
            links: 2,
            xattrs: vec![],
        };
        Listed { path: PathBuf::from(path), kind, meta }
    }

    #[test]
    fn no_path_leads_out_of_the_target() {
        for path in ["", "/", "a", "/a/../b", "/a/..", "/a/./b", "/a/.", "/a//b", "/a/", "/a\0b", ".."] {
            assert!(Listing::new(vec![entry(path, Kind::File)], vec![]).is_err(), "{path:?}");
        }
        assert!(Listing::new(vec![entry("/a/...", Kind::File)], vec![]).is_ok());
    }

    #[test]
    fn nothing_lies_below_a_link_and_nothing_is_there_twice() {
        let link = || entry("/a", Kind::Symlink("/etc".into()));
        assert!(Listing::new(vec![link(), entry("/a/passwd", Kind::File)], vec![]).is_err());
        assert!(Listing::new(vec![link(), entry("/a", Kind::Dir)], vec![]).is_err());
        assert!(Listing::new(vec![entry("/b", Kind::Dir), entry("/a", Kind::Dir)], vec![]).is_err());
    }

    #[test]
    fn zeros_weigh_nothing() {
        let listing = Listing::new(vec![entry("/a", Kind::File), entry("/b", Kind::File)], vec![]).unwrap();
        let listing = listing.with_zeros([(0, Bytes(4096))].into());
        assert_eq!(listing.weigh("/a".as_ref()).disk, Bytes(4096));
        assert_eq!(listing.weigh("/b".as_ref()).disk, Bytes(8192));
    }

    #[test]
    fn hard_links_weigh_once() {
        let entries = vec![entry("/a", Kind::Dir), entry("/a/x", Kind::File), entry("/a/y", Kind::File)];
        let weight = Listing::new(entries, vec![]).unwrap().weigh("/a".as_ref());
        assert_eq!((weight.entries, weight.files, weight.bytes), (3, 2, Bytes(10_000)));
        assert_eq!(weight.disk, Bytes(4096 + 8192));
    }
}
