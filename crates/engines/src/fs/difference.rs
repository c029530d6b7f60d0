//! What changed under the locks, in words.
//!
//! Crash story: pure functions, no effects.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model::{entry::Entry, pathtext};
use os::tree::{Changes, changed_since as stamped_since};

/// How many names changed, and which first.
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

impl From<Changes> for Differences {
    fn from(changes: Changes) -> Self {
        Self { count: changes.count, first: changes.first }
    }
}

/// What is stamped with `floor` or a later time.
pub(super) fn changed_since(entries: &[Entry], floor: Timestamp) -> Differences {
    let mut found = Differences::default();
    entries
        .iter()
        .filter(|entry| stamped_since(entry.meta.ctime.as_nanosecond(), floor))
        .for_each(|entry| found.add(&entry.path));
    found
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use jiff::Timestamp;
    use model::{
        entry::{Body, Entry, Kind, Meta, Role},
        size::Bytes,
    };

    use super::changed_since;

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

    #[test]
    fn what_changed_since_the_floor_counts() {
        let since = |entries: &[Entry], floor_ms: i64| {
            changed_since(entries, Timestamp::from_millisecond(floor_ms).unwrap())
        };
        let one = [entry("/a", 5_001)];
        assert_eq!(since(&one, 5_002).count, 0);
        assert_eq!(since(&one, 5_001).in_words(), "1 name changed under the locks: /a");
        let whole = [entry("/a", 5_000), entry("/b", 5_000)];
        assert_eq!(since(&whole, 7_001).count, 0);
        let rounded = since(&whole, 6_900).in_words();
        assert_eq!(rounded, "2 names changed under the locks, first: /a", "whole seconds are rounded down");
    }
}
