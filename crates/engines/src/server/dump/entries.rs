//! Files of ours as entries of a backup, under the place that the plan gives them.
//!
//! Crash story: reads only.

use std::{
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Meta, Role},
    size::Bytes,
};
use os::tree::{Found, ancestors, read_entry_meta};

/// Everything below `root` as content below `at`, `root` itself as `at`, and the directories above `at` that there
/// are.
///
/// # Errors
/// What the filesystem says.
pub(crate) fn of_tree(root: &Path, at: &Path, now: Timestamp) -> io::Result<Vec<Entry>> {
    let mut entries = ancestors(at);
    let mut ahead: Vec<(PathBuf, PathBuf)> = vec![(root.to_owned(), at.to_owned())];
    while let Some((here, there)) = ahead.pop() {
        let (found, meta) = read_entry_meta(&here)?;
        let Found::Stored(kind @ (Kind::Dir | Kind::File)) = found else { continue };
        if kind == Kind::Dir {
            for name in std::fs::read_dir(&here)? {
                let name = name?;
                ahead.push((name.path(), there.join(name.file_name())));
            }
        }
        let body = if kind == Kind::File { Body::At(here) } else { Body::Nothing };
        entries.push(Entry { path: there, kind, meta: fresh(meta, now), body, role: Role::Content });
    }
    Ok(entries)
}

/// A change time of now is not settled, so no later backup takes these bytes for those of a file that stands there.
pub(crate) fn fresh(meta: Meta, now: Timestamp) -> Meta {
    Meta { ctime: now, inode: 0, links: 1, xattrs: Vec::new(), size: Bytes(meta.size.0), ..meta }
}
