//! What is stored: one [`Entry`] for each name in a tree, in a [`Manifest`] ordered as restic orders trees.
//!
//! Crash story: plain values, no effects.

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;

use crate::{entries::Entries, size::Bytes};

/// How old a change time must be before "unchanged since" can be believed: the kernel stamps files with a
/// clock that ticks every 1 to 10 ms, so two writes in one tick look like one (DESIGN.md section 3).
pub const SETTLING: Duration = Duration::from_secs(1);

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Size in bytes.
    pub size: Bytes,
    /// Time of the last change of the content, nanoseconds since the epoch.
    pub mtime: i128,
    /// Time of the last change of content or attributes, nanoseconds since the epoch.
    pub ctime: i128,
    /// Inode number.
    pub inode: u64,
}

impl Stamp {
    /// Whether an equal stamp seen later proves that the content has not changed since `pass`, the moment
    /// at or before which this stamp was taken and before which nothing of the content was read.
    ///
    /// A filesystem that keeps whole seconds (ext4 with small inodes), or every second one (FAT), rounds down.
    #[must_use]
    pub fn is_settled_at(&self, pass: Timestamp) -> bool {
        const WHOLE: i128 = 1_000_000_000;
        let coarse = if self.ctime % WHOLE == 0 { 2 * WHOLE } else { 0 };
        let settling = i128::try_from(SETTLING.as_nanos()).unwrap_or(i128::MAX);
        self.ctime.saturating_add(coarse).saturating_add(settling) <= pass.as_nanosecond()
    }
}

/// The kind of a file system object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link and what it says.
    Symlink(PathBuf),
    /// A block device with its device number (`st_rdev`).
    BlockDevice(u64),
    /// A character device with its device number (`st_rdev`).
    CharDevice(u64),
    /// A named pipe.
    Fifo,
}

/// One extended attribute; ACLs and capabilities are extended attributes too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Full name with its namespace, such as `user.comment` or `system.posix_acl_access`.
    pub name: Vec<u8>,
    /// Raw value.
    pub value: Vec<u8>,
}

impl Xattr {
    /// Whether this is how XFS keeps an ACL on its disk (`fs/xfs/xfs_acl.h` of Linux), which it shows to root beside
    /// `system.posix_acl_*`: what that sets, and no other filesystem knows.
    #[must_use]
    pub fn is_inner_acl(name: &[u8]) -> bool {
        matches!(name, b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT")
    }
}

/// Attributes of the original, as `statx` gave them at the cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Permission and file type bits (`st_mode`).
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Size in bytes; for a directory or device 0.
    pub size: Bytes,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Inode number of the original, also where the bytes are read from a copy.
    pub inode: u64,
    /// Device number of the original's filesystem.
    pub device: u64,
    /// Number of hard links.
    pub links: u64,
    /// Extended attributes, ordered by name.
    pub xattrs: Vec<Xattr>,
}

impl Meta {
    /// What tells this content from another.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp {
            size: self.size,
            mtime: self.mtime.as_nanosecond(),
            ctime: self.ctime.as_nanosecond(),
            inode: self.inode,
        }
    }
}

/// Where the bytes of a regular file come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Not a regular file.
    Nothing,
    /// An equal stamp stands in a backup that is a parent of this one: its content is carried over without
    /// opening the file. If the parent does not have it after all, the live file is read, and anything but
    /// the very same stamp before and after the reading is a problem.
    Carried,
    /// Read from this path: a pinned copy.
    At(PathBuf),
    /// These bytes.
    Inline(Vec<u8>),
}

/// Why an entry is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It belongs to a source.
    Content,
    /// A directory above a source's root, so that a restore has its attributes.
    Ancestor,
}

/// One name in the tree to be stored, under its original absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Original absolute path, without `.`, `..` or a trailing slash.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The original's attributes.
    pub meta: Meta,
    /// Where its bytes come from.
    pub body: Body,
    /// Why it is there.
    pub role: Role,
}

/// All that a backup is to hold, ordered by [`tree_order`], each path once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// A moment at or before which all stamps were taken; younger files are not trusted by the next backup.
    pub taken_at: Timestamp,
    /// The entries in order.
    pub entries: Entries,
}

impl Manifest {
    /// Merges the entries of several pins. Where two have the same path, content wins over an ancestor and
    /// the first over later ones.
    #[must_use]
    pub fn merge(taken_at: Timestamp, entries: impl Into<Entries>) -> Self {
        let mut entries = entries.into();
        entries.sort();
        Self { taken_at, entries }
    }

    /// How many regular files there are.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.sizes().count() as u64
    }

    /// How many bytes the regular files have.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.sizes().sum()
    }

    fn sizes(&self) -> impl Iterator<Item = Bytes> {
        (0..self.entries.len()).filter_map(|place| self.entries.file_size(place))
    }
}

/// The order of a restic tree walked depth first: component by component, by raw bytes, a directory before
/// what it holds.
#[must_use]
pub fn tree_order(a: &Path, b: &Path) -> Ordering {
    a.components().cmp(b.components())
}

/// A pinned source's share of a manifest, with what could not be pinned.
#[derive(Debug, Clone, Default)]
pub struct Harvest {
    /// The entries, in any order.
    pub entries: Vec<Entry>,
    /// What is missing, changed or weaker than it should be.
    pub problems: Vec<crate::problem::Problem>,
    /// What was checked and found good, for [`crate::verdict::Evidence::checks`]: `quick_check: ok`.
    pub checks: Vec<String>,
    /// Of a database server: what a restore needs to know.
    pub server: Option<crate::server::ServerRecord>,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Stamp, tree_order};
    use crate::size::Bytes;

    #[test]
    fn trees_are_ordered_by_component() {
        // As whole strings "a-b" < "a/b", because '-' sorts before '/'.
        assert!(tree_order(Path::new("/a/b"), Path::new("/a-b")).is_lt());
        assert!(tree_order(Path::new("/a"), Path::new("/a/b")).is_lt());
    }

    #[test]
    fn a_stamp_is_settled_only_after_a_second() {
        let settled = |ctime_ms: i128, pass_ms: i64| {
            let stamp = Stamp { size: Bytes(1), mtime: 0, ctime: ctime_ms * 1_000_000, inode: 1 };
            stamp.is_settled_at(jiff::Timestamp::from_millisecond(pass_ms).unwrap())
        };
        assert!(!settled(5_001, 6_000) && settled(5_001, 6_001));
        // Of a whole second it is not known whether that is all the filesystem keeps: FAT has the same until 6.999.
        assert!(!settled(4_000, 6_999) && settled(4_000, 7_000));
    }
}
