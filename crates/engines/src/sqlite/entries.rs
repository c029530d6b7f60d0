//! What is stored of a database: the file without its WAL, beside an empty `-wal` and an empty `-journal`.
//!
//! The empty files overwrite leftovers of the same names at a restore: an old WAL beside a restored database
//! corrupts it. The `-shm` is never stored; SQLite makes it anew.
//!
//! Crash story: plain values; the original is only looked at.

use std::{io, path::Path};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Meta, Role},
    size::Bytes,
};
use os::tree::{Found, Resolved, read_entry_meta};

use super::{
    names::{journal_of, wal_of},
    settle::Settled,
};

/// Attributes of a database and of what leads to it, as they were at the cut.
#[derive(Debug, Clone)]
pub(super) struct Original {
    path: std::path::PathBuf,
    meta: Meta,
    way: Vec<Entry>,
}

impl Original {
    /// Looks at a database.
    ///
    /// # Errors
    /// If it cannot be looked at or is no regular file.
    pub fn look(resolved: &Resolved) -> io::Result<Self> {
        let (found, meta) = read_entry_meta(&resolved.real)?;
        if found != Found::Stored(Kind::File) {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut way = resolved.way();
        way.sort_by(|a, b| a.path.cmp(&b.path).then(a.role.cmp(&b.role)));
        way.dedup_by(|later, first| later.path == first.path);
        Ok(Self { path: resolved.real.clone(), meta, way })
    }

    /// Size at the cut, without the WAL.
    pub fn bytes(&self) -> Bytes {
        self.meta.size
    }

    /// The entries, with the bytes taken from a settled copy.
    pub fn entries(&self, copy: &Path, settled: &Settled, now: Timestamp) -> Vec<Entry> {
        let mut meta = self.meta.clone();
        meta.size = settled.bytes;
        // A change time of now is not settled, so no later backup takes these bytes, which are not those of
        // the original, for the original's.
        meta.ctime = now;
        // The bytes are not those of the file's other hard links.
        meta.links = 1;
        let sidecar = Meta { size: Bytes(0), inode: 0, ..meta.clone() };
        let mut entries = self.way.clone();
        entries.push(file(&self.path, meta, Body::At(copy.to_owned())));
        entries.push(match &settled.wal {
            Some((wal, size)) => {
                file(&wal_of(&self.path), Meta { size: *size, ..sidecar.clone() }, Body::At(wal.clone()))
            }
            None => file(&wal_of(&self.path), sidecar.clone(), Body::Inline(Vec::new())),
        });
        entries.push(file(&journal_of(&self.path), sidecar, Body::Inline(Vec::new())));
        entries
    }
}

fn file(path: &Path, meta: Meta, body: Body) -> Entry {
    Entry { path: path.to_owned(), kind: Kind::File, meta, body, role: Role::Content }
}
