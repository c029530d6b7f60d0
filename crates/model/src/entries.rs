//! Many entries, kept compactly: a million files of a usual tree take about 110 MB, a fifth of what as many
//! [`Entry`] values with their paths would.
//!
//! Each entry is a row of 96 bytes and its name. The directory that it stands in, the device, and what most have in
//! common (kind, attributes, body) are kept once.
//!
//! Crash story: plain values, no effects.

use std::{
    cmp::Ordering,
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::{
    entry::{Body, Entry, Kind, Meta, Role, Stamp, Xattr, tree_order},
    size::Bytes,
};

/// What many entries have in common.
#[derive(Clone, PartialEq, Eq)]
struct Common {
    kind: Kind,
    body: Body,
    role: Role,
    device: u64,
    xattrs: Vec<Xattr>,
}

#[derive(Clone, Copy)]
struct Row {
    size: u64,
    inode: u64,
    links: u64,
    /// Where the name begins among all names.
    name: usize,
    mtime: i64,
    atime: i64,
    ctime: i64,
    mtime_nanos: i32,
    atime_nanos: i32,
    ctime_nanos: i32,
    mode: u32,
    uid: u32,
    gid: u32,
    name_length: u32,
    /// The number of the directory.
    dir: u32,
    common: u32,
    is_file: bool,
}

/// Entries in an order of their own.
#[derive(Clone, Default)]
pub struct Entries {
    rows: Vec<Row>,
    names: Vec<u8>,
    /// Empty for `/` and for whatever has nothing above it.
    dirs: Vec<Box<[u8]>>,
    common: Vec<Common>,
    /// The directory of the last entry and those above it that were named.
    open: Vec<u32>,
}

impl Entries {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds one at the end.
    pub fn push(&mut self, entry: Entry) {
        let Entry { path, kind, meta, body, role } = entry;
        let (dir, name) = split(&path);
        let row = Row {
            size: meta.size.0,
            inode: meta.inode,
            links: meta.links,
            name: self.names.len(),
            mtime: meta.mtime.as_second(),
            atime: meta.atime.as_second(),
            ctime: meta.ctime.as_second(),
            mtime_nanos: meta.mtime.subsec_nanosecond(),
            atime_nanos: meta.atime.subsec_nanosecond(),
            ctime_nanos: meta.ctime.subsec_nanosecond(),
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            name_length: u32::try_from(name.len()).unwrap_or(u32::MAX),
            dir: self.dir(dir),
            is_file: kind == Kind::File,
            common: self.common(Common { kind, body, role, device: meta.device, xattrs: meta.xattrs }),
        };
        self.names.extend_from_slice(name);
        self.rows.push(row);
    }

    /// The one at this place.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<Entry> {
        let row = self.rows.get(place)?;
        let common = self.common.get(row.common as usize)?;
        // Each came from one.
        let time = |seconds, nanos| Timestamp::new(seconds, nanos).unwrap_or_default();
        let meta = Meta {
            mode: row.mode,
            uid: row.uid,
            gid: row.gid,
            size: Bytes(row.size),
            mtime: time(row.mtime, row.mtime_nanos),
            atime: time(row.atime, row.atime_nanos),
            ctime: time(row.ctime, row.ctime_nanos),
            inode: row.inode,
            device: common.device,
            links: row.links,
            xattrs: common.xattrs.clone(),
        };
        let (kind, body) = (common.kind.clone(), common.body.clone());
        Some(Entry { path: self.path_of(row), kind, meta, body, role: common.role })
    }

    /// The path of the one at this place.
    #[must_use]
    pub fn path(&self, place: usize) -> Option<PathBuf> {
        self.rows.get(place).map(|row| self.path_of(row))
    }

    /// The directory that the one at this place stands in, and its name; `/` has neither.
    #[must_use]
    pub fn name(&self, place: usize) -> Option<(&Path, &OsStr)> {
        let row = self.rows.get(place)?;
        let (dir, name) = (dir_of(&self.dirs, row), name_of(&self.names, row));
        // What has nothing above it is all name.
        let name = if dir.is_empty() && name == b"/" { b"" } else { name };
        Some((Path::new(OsStr::from_bytes(dir)), OsStr::from_bytes(name)))
    }

    /// What the one at this place is.
    #[must_use]
    pub fn kind(&self, place: usize) -> Option<&Kind> {
        self.common_of(place).map(|common| &common.kind)
    }

    /// Where the bytes of the one at this place come from.
    #[must_use]
    pub fn body(&self, place: usize) -> Option<&Body> {
        self.common_of(place).map(|common| &common.body)
    }

    /// The extended attributes of the one at this place.
    #[must_use]
    pub fn xattrs(&self, place: usize) -> &[Xattr] {
        self.common_of(place).map(|common| &*common.xattrs).unwrap_or_default()
    }

    /// The stamp of the one at this place.
    #[must_use]
    pub fn stamp(&self, place: usize) -> Option<Stamp> {
        let row = self.rows.get(place)?;
        let nanos = |seconds: i64, rest: i32| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Some(Stamp {
            size: Bytes(row.size),
            mtime: nanos(row.mtime, row.mtime_nanos),
            ctime: nanos(row.ctime, row.ctime_nanos),
            inode: row.inode,
        })
    }

    fn common_of(&self, place: usize) -> Option<&Common> {
        self.common.get(self.rows.get(place)?.common as usize)
    }

    /// The size of the one at this place, if it is a regular file.
    #[must_use]
    pub fn file_size(&self, place: usize) -> Option<Bytes> {
        self.rows.get(place).filter(|row| row.is_file).map(|row| Bytes(row.size))
    }

    /// All of them in order, each made when it is asked for.
    pub fn iter(&self) -> Iter<'_> {
        Iter { entries: self, next: 0 }
    }

    /// The first place whose path does not come before this one in tree order, if they are in that order.
    #[must_use]
    pub fn place_of(&self, path: &Path) -> usize {
        self.rows.partition_point(|row| tree_order(&self.path_of(row), path).is_lt())
    }

    /// Puts them into tree order. Of several with the same path, content stays rather than an ancestor, and the first
    /// rather than later ones.
    pub fn sort(&mut self) {
        let Self { rows, names, dirs, common, open } = self;
        open.clear();
        let role = |row: &Row| common.get(row.common as usize).map(|common| common.role);
        let order = |a: &Row, b: &Row| order(names, dirs, a, b);
        rows.sort_by(|a, b| order(a, b).then_with(|| role(a).cmp(&role(b))));
        rows.dedup_by(|later, first| order(later, first).is_eq());
    }

    fn path_of(&self, row: &Row) -> PathBuf {
        let (dir, name) = (dir_of(&self.dirs, row), name_of(&self.names, row));
        let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
        path.extend_from_slice(dir);
        if !dir.is_empty() && !dir.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        PathBuf::from(OsString::from_vec(path))
    }

    /// The number of a directory. Where entries come in tree order, each directory gets one.
    fn dir(&mut self, dir: &[u8]) -> u32 {
        while let Some(number) = self.open.last().copied() {
            let known = self.dirs.get(number as usize).map(|known| &**known).unwrap_or_default();
            if known == dir {
                return number;
            }
            if is_below(dir, known) {
                break;
            }
            self.open.pop();
        }
        let number = u32::try_from(self.dirs.len()).unwrap_or(u32::MAX);
        self.dirs.push(dir.into());
        self.open.push(number);
        number
    }

    /// The number of what entries have in common; it is nearly always that of one of the last.
    fn common(&mut self, common: Common) -> u32 {
        const LAST: usize = 4;
        let from = self.common.len().saturating_sub(LAST);
        let found = self.common.iter().skip(from).position(|known| *known == common);
        let place = found.map_or(self.common.len(), |at| from + at);
        if found.is_none() {
            self.common.push(common);
        }
        u32::try_from(place).unwrap_or(u32::MAX)
    }
}

fn split(path: &Path) -> (&[u8], &[u8]) {
    let bytes = path.as_os_str().as_bytes();
    // Nearly every path is plain: nothing in it has to be looked for but its last slash.
    let plain = bytes
        .iter()
        .rposition(|byte| *byte == b'/')
        .filter(|at| *at > 0 && is_plain(&bytes[..*at], &bytes[at + 1..]));
    if let Some(at) = plain {
        return (&bytes[..at], &bytes[at + 1..]);
    }
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => (dir.as_os_str().as_bytes(), name.as_bytes()),
        _ => (b"", path.as_os_str().as_bytes()),
    }
}

/// Whether these are a directory and a name as they are kept: no slash too many, and no `.` or `..`.
fn is_plain(dir: &[u8], name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !dir.ends_with(b"/") && !dir.ends_with(b"/.")
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    match path.strip_prefix(dir) {
        Some(rest) => dir.is_empty() || dir.ends_with(b"/") || rest.starts_with(b"/"),
        None => false,
    }
}

fn dir_of<'a>(dirs: &'a [Box<[u8]>], row: &Row) -> &'a [u8] {
    dirs.get(row.dir as usize).map(|dir| &**dir).unwrap_or_default()
}

fn name_of<'a>(names: &'a [u8], row: &Row) -> &'a [u8] {
    names.get(row.name..row.name + row.name_length as usize).unwrap_or_default()
}

fn order(names: &[u8], dirs: &[Box<[u8]>], a: &Row, b: &Row) -> Ordering {
    let (name_a, name_b) = (name_of(names, a), name_of(names, b));
    if a.dir == b.dir {
        return name_a.cmp(name_b);
    }
    let path = |row: &Row| Path::new(OsStr::from_bytes(dir_of(dirs, row)));
    let (name_a, name_b) = (Path::new(OsStr::from_bytes(name_a)), Path::new(OsStr::from_bytes(name_b)));
    let (a, b) = (path(a).components(), path(b).components());
    a.chain(name_a.components()).cmp(b.chain(name_b.components()))
}

/// See [`Entries::iter`].
#[derive(Clone)]
pub struct Iter<'a> {
    entries: &'a Entries,
    next: usize,
}

impl Iterator for Iter<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let entry = self.entries.get(self.next)?;
        self.next += 1;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.entries.len() - self.next;
        (left, Some(left))
    }
}

impl<'a> IntoIterator for &'a Entries {
    type Item = Entry;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl Extend<Entry> for Entries {
    fn extend<T: IntoIterator<Item = Entry>>(&mut self, entries: T) {
        entries.into_iter().for_each(|entry| self.push(entry));
    }
}

impl FromIterator<Entry> for Entries {
    fn from_iter<T: IntoIterator<Item = Entry>>(entries: T) -> Self {
        let mut all = Self::default();
        all.extend(entries);
        all
    }
}

impl From<Vec<Entry>> for Entries {
    fn from(entries: Vec<Entry>) -> Self {
        entries.into_iter().collect()
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other)
    }
}

impl Eq for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Body, Bytes, Entries, Entry, Kind, Meta, Role, Timestamp, Xattr, tree_order};

    fn entry(path: &str, kind: Kind, role: Role) -> Entry {
        let time = |nanos| Timestamp::from_nanosecond(nanos).unwrap();
        let body = if kind == Kind::File { Body::Carried } else { Body::Nothing };
        let meta = Meta {
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            size: Bytes(path.len() as u64),
            mtime: time(-1_500_000_001),
            atime: time(0),
            ctime: time(1_700_000_000_123_456_789),
            inode: u64::MAX,
            device: path.len() as u64 % 3,
            links: 1 << 40,
            xattrs: vec![],
        };
        Entry { path: path.into(), kind, meta, body, role }
    }

    fn some() -> Vec<Entry> {
        let mut all = vec![
            entry("/", Kind::Dir, Role::Ancestor),
            entry("/a", Kind::Dir, Role::Content),
            entry("/a/deep", Kind::Dir, Role::Content),
            entry("/a/deep/file", Kind::File, Role::Content),
            entry("/a/link", Kind::Symlink("to/where".into()), Role::Content),
            entry("/a/pinned", Kind::File, Role::Content),
            entry("/a-b", Kind::CharDevice(7), Role::Content),
            entry("/b/\u{fc}", Kind::File, Role::Content),
        ];
        all[3].meta.xattrs.push(Xattr { name: b"user.a".to_vec(), value: vec![0, 255] });
        all[5].body = Body::At("/copies/1".into());
        all[7].body = Body::Inline(b"bytes".to_vec());
        all
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let all = some();
        let entries: Entries = all.clone().into();
        assert_eq!(entries.len(), all.len());
        assert_eq!(entries.iter().collect::<Vec<_>>(), all);
        for (place, entry) in all.iter().enumerate() {
            assert_eq!(entries.path(place).as_ref(), Some(&entry.path));
            let size = (entry.kind == Kind::File).then_some(entry.meta.size);
            assert_eq!(entries.file_size(place), size);
            let name =
                (entry.path.parent().unwrap_or(Path::new("")), entry.path.file_name().unwrap_or_default());
            assert_eq!(entries.name(place), Some(name));
            assert_eq!(entries.stamp(place), Some(entry.meta.stamp()));
            assert_eq!((entries.kind(place), entries.body(place)), (Some(&entry.kind), Some(&entry.body)));
            assert_eq!(entries.xattrs(place), entry.meta.xattrs);
            assert_eq!(entries.place_of(&entry.path), place);
        }
        assert_eq!(entries.get(all.len()), None);
        assert_eq!(entries.place_of(Path::new("/a/deep/zz")), 4);
        // Each directory once, although the tree is left and entered again.
        assert_eq!(entries.dirs.len(), 5);
    }

    #[test]
    fn sorted_they_are_in_tree_order_and_content_wins() {
        let mut all = some();
        all.extend(some().into_iter().map(|e| Entry { role: Role::Ancestor, ..e }));
        all.reverse();
        let mut entries: Entries = all.into();
        entries.sort();
        let sorted: Vec<Entry> = entries.iter().collect();
        assert!(sorted.is_sorted_by(|a, b| tree_order(&a.path, &b.path).is_lt()));
        assert_eq!(sorted, some());
    }
}
