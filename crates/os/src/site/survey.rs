//! Looks at the places that a restore would write. Changes nothing.
//!
//! Crash story: reads only. What it finds may change until it is used; renames that find it changed fail and
//! are taken back.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use model::{
    entry::Kind,
    pathtext,
    port::{Failure, FailureKind},
    restore::{Census, Found, Listing, ParentFacts, Place, PlaceFacts, PlaceKind},
    size::Bytes,
};
use rustix::fs::{Access, AtFlags, CWD, accessat, statvfs};

use crate::{mounts::Mounts, staging, subvolume};

/// How many names that are not in the backup are shown.
const EXAMPLES: usize = 3;

/// Looks at each place, in order.
pub(super) fn look(places: &[Place], listing: &Listing) -> Result<Vec<PlaceFacts>, Failure> {
    let mounts = Mounts::read().map_err(|e| failure(Path::new("/proc/self/mountinfo"), e))?;
    places.iter().map(|place| look_at(place, listing, &mounts)).collect()
}

fn look_at(place: &Place, listing: &Listing, mounts: &Mounts) -> Result<PlaceFacts, Failure> {
    let fail = |e| failure(&place.to, e);
    let (real, parent) = resolve(&place.to).map_err(fail)?;
    let found = find(&real, parent).map_err(fail)?;
    let is_dir = matches!(found, Found::Dir(_));
    let above = real.parent().unwrap_or(Path::new("/"));
    let mut facts = PlaceFacts {
        fixed: fixed(&real, is_dir, mounts).map_err(fail)?,
        writable: is_dir && can_write(&real),
        nested: Vec::new(),
        device: 0,
        filesystem: mounts.of(&real).map(|m| m.filesystem.clone()).unwrap_or_default(),
        free: Bytes(0),
        free_inodes: None,
        census: Census::default(),
        real: real.clone(),
        found,
        parent,
    };
    if parent != ParentFacts::Missing {
        let written = if facts.fixed.is_some() || parent == ParentFacts::ReadOnly { &real } else { above };
        let on = if written.is_dir() { written } else { above };
        let space = statvfs(on).map_err(|e| fail(e.into()))?;
        facts.device = std::fs::metadata(on).map_err(fail)?.dev();
        facts.free = Bytes(space.f_bavail.saturating_mul(space.f_frsize));
        facts.free_inodes = (space.f_files > 0).then_some(space.f_favail);
    }
    if is_dir && place.kind == PlaceKind::Tree {
        facts.nested = mounts.below(&real).into_iter().map(|m| m.point.clone()).collect();
        if place.from != Path::new("/") {
            census(place, &real, listing, &mut facts);
        }
    } else if let (Ok(live), Some(stored)) = (real.symlink_metadata(), listing.find(&place.from)) {
        let newer = modified(&live) > stored.meta.mtime.as_nanosecond();
        facts.census = Census { files: 1, newer: u64::from(newer), unlisted: 0, examples: Vec::new() };
    }
    Ok(facts)
}

/// The path with the links of its parent resolved, and what the parent is like.
fn resolve(path: &Path) -> io::Result<(PathBuf, ParentFacts)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok((PathBuf::from("/"), ParentFacts::ReadOnly));
    };
    match parent.canonicalize() {
        Ok(parent) if parent.is_dir() => {
            let access = if can_write(&parent) { ParentFacts::Writable } else { ParentFacts::ReadOnly };
            Ok((parent.join(name), access))
        }
        Ok(_) => Ok((path.to_owned(), ParentFacts::Missing)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok((path.to_owned(), ParentFacts::Missing))
        }
        Err(error) => Err(error),
    }
}

fn can_write(dir: &Path) -> bool {
    accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

fn find(real: &Path, parent: ParentFacts) -> io::Result<Found> {
    if parent == ParentFacts::Missing {
        return Ok(Found::Absent);
    }
    let meta = match real.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(error),
    };
    if meta.is_symlink() {
        return Ok(Found::Symlink(std::fs::read_link(real)?));
    }
    if !meta.is_dir() {
        return Ok(Found::Other);
    }
    Ok(Found::Dir(std::fs::read_dir(real)?.count() as u64))
}

fn fixed(real: &Path, is_dir: bool, mounts: &Mounts) -> io::Result<Option<String>> {
    if mounts.at(real).is_some() || real == Path::new("/") {
        return Ok(Some("it is a mount point".to_owned()));
    }
    if is_dir && subvolume::is_subvolume(real)? {
        return Ok(Some("it is a btrfs subvolume".to_owned()));
    }
    Ok(None)
}

/// Counts what would be replaced and finds filesystems below. What cannot be read is not counted: it is in
/// the way of nothing, since names are only changed at the top.
fn census(place: &Place, real: &Path, listing: &Listing, facts: &mut PlaceFacts) {
    let mut todo = vec![real.to_owned()];
    let device = real.symlink_metadata().map(|m| m.dev()).ok();
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(live) = entry.metadata() else { continue };
            if staging::is_ours(&path) && live.is_dir() {
                continue;
            }
            if live.is_dir() && Some(live.dev()) != device {
                facts.nested.push(path);
                continue;
            }
            let stored = path.strip_prefix(real).ok().and_then(|r| listing.find(&place.from.join(r)));
            count(&path, &live, stored.map(|s| (&s.kind, s.meta.mtime.as_nanosecond())), &mut facts.census);
            if live.is_dir() {
                todo.push(path);
            }
        }
    }
    facts.nested.sort();
    facts.nested.dedup();
}

fn count(path: &Path, live: &std::fs::Metadata, stored: Option<(&Kind, i128)>, census: &mut Census) {
    census.files += u64::from(live.is_file());
    match stored {
        None => {
            census.unlisted += 1;
            if census.examples.len() < EXAMPLES {
                census.examples.push(path.to_owned());
            }
        }
        Some((Kind::File, mtime)) if live.is_file() => census.newer += u64::from(modified(live) > mtime),
        Some(_) => {}
    }
}

fn modified(meta: &std::fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

fn failure(path: &Path, error: io::Error) -> Failure {
    let what = format!("{} cannot be looked at", pathtext::show(path));
    Failure::new(FailureKind::Other, what, "").because(error)
}
