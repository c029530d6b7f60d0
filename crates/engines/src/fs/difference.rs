//! Comparing two scans of one source.
//!
//! Crash story: pure functions, no effects.

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use model::{
    entry::{Entry, tree_order},
    pathtext,
};

/// How often two scans differ, and where first.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub count: u64,
    first: Option<PathBuf>,
}

impl Differences {
    fn add(&mut self, path: &Path) {
        self.count += 1;
        self.first.get_or_insert_with(|| path.to_owned());
    }

    /// As a sentence without its final stop.
    pub(super) fn in_words(&self) -> String {
        let first = self.first.as_deref().map(pathtext::show).unwrap_or_default();
        match self.count {
            1 => format!("1 name changed under the locks: {first}"),
            n => format!("{n} names changed under the locks, first: {first}"),
        }
    }
}

/// What differs between two scans, both in tree order, and whatever in the later one is stamped with `floor` or
/// a later time: it changed since that moment, although both scans may show the same.
pub(super) fn differences(earlier: &[Entry], later: &[Entry], floor: Timestamp) -> Differences {
    let mut found = Differences::default();
    let (mut a, mut b) = (earlier.iter().peekable(), later.iter().peekable());
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => tree_order(&a.path, &b.path),
        };
        let before = if order.is_le() { a.next() } else { None };
        let after = if order.is_ge() { b.next() } else { None };
        match (before, after) {
            (Some(before), Some(after)) if is_same(before, after) && !is_since(after, floor) => {}
            (_, Some(entry)) | (Some(entry), None) => found.add(&entry.path),
            (None, None) => return found,
        }
    }
}

/// What is stamped with `floor` or a later time.
pub(super) fn changed_since(entries: &[Entry], floor: Timestamp) -> Differences {
    let mut found = Differences::default();
    entries.iter().filter(|entry| is_since(entry, floor)).for_each(|entry| found.add(&entry.path));
    found
}

fn is_same(a: &Entry, b: &Entry) -> bool {
    let owner = |e: &Entry| (e.meta.mode, e.meta.uid, e.meta.gid, e.meta.device);
    a.kind == b.kind && a.meta.stamp() == b.meta.stamp() && owner(a) == owner(b)
}

/// Whether something changed at `floor` or later. A filesystem that keeps whole seconds, or every second one,
/// rounds down: then the whole time that may be meant counts.
fn is_since(entry: &Entry, floor: Timestamp) -> bool {
    const WHOLE: i128 = 1_000_000_000;
    let (changed, floor) = (entry.meta.ctime.as_nanosecond(), floor.as_nanosecond());
    let coarse = if changed % WHOLE == 0 { 2 * WHOLE } else { 0 };
    changed.saturating_add(coarse) >= floor
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use jiff::Timestamp;
    use model::{
        entry::{Body, Entry, Kind, Meta, Role},
        size::Bytes,
    };

    use super::differences;

    fn entry(path: &str, ctime_ms: i64) -> Entry {
        let time = Timestamp::from_millisecond(ctime_ms).unwrap();
        let meta = Meta {
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            size: Bytes(1),
            mtime: time,
            atime: time,
            ctime: time,
            inode: 5,
            device: 1,
            links: 1,
            xattrs: vec![],
        };
        Entry { path: PathBuf::from(path), kind: Kind::File, meta, body: Body::Carried, role: Role::Content }
    }

    fn count(a: &[Entry], b: &[Entry], floor_ms: i64) -> u64 {
        differences(a, b, Timestamp::from_millisecond(floor_ms).unwrap()).count
    }

    #[test]
    fn everything_that_can_differ_is_counted() {
        let old = [entry("/a/b", 1_001), entry("/a-b", 1_001)];
        assert_eq!(count(&old, &old, 9_000), 0);
        assert_eq!(count(&old, &old[..1], 9_000), 1, "gone");
        assert_eq!(count(&old[1..], &old, 9_000), 1, "new");
        assert_eq!(count(&old, &[entry("/a/b", 1_002), entry("/a-b", 1_001)], 9_000), 1, "stamped anew");
        let mut owned = old.clone();
        owned[1].meta.uid = 7;
        let found = differences(&old, &owned, Timestamp::from_millisecond(9_000).unwrap());
        assert_eq!(found.in_words(), "1 name changed under the locks: /a-b");
        let all = differences(&old, &[], Timestamp::MAX).in_words();
        assert_eq!(all, "2 names changed under the locks, first: /a/b");
    }

    #[test]
    fn what_changed_since_the_floor_counts_although_both_show_it() {
        let both = [entry("/a", 5_001)];
        assert_eq!(count(&both, &both, 5_002), 0);
        assert_eq!(count(&both, &both, 5_001), 1);
        let whole = [entry("/a", 5_000)];
        assert_eq!(count(&whole, &whole, 6_900), 1, "stamps of whole seconds are rounded down");
        assert_eq!(count(&whole, &whole, 7_001), 0);
    }
}
