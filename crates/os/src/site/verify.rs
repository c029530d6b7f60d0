//! Compares what was written with the listing, entry by entry.
//!
//! Crash story: reads only.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use model::{
    entry::{Kind, Xattr},
    port::Failure,
    problem::Problem,
    restore::Listed,
};

use super::{
    attributes::{PERMISSIONS, Place, Setter, is_for_everyone},
    beside::LocalBeside,
    write::cannot,
};

/// Compares everything.
pub(super) fn all(beside: &LocalBeside<'_>) -> Result<Vec<Problem>, Failure> {
    let (plan, listing, work, setter) = beside.context();
    let mut problems = Vec::new();
    let mut seen: Vec<u64> = vec![0; plan.parts.len()];
    let mut inodes: HashMap<(usize, &Path), u64> = HashMap::new();
    for (part, item) in beside.items() {
        let place = beside.place(part, &item.path)?;
        match std::fs::symlink_metadata(place.path()) {
            Ok(found) => {
                seen[part] += 1;
                inodes.insert((part, &item.path), found.ino());
                if item.kind != Kind::Dir {
                    compare(&place, &found, item, setter, &mut problems);
                } else if !found.is_dir() {
                    problems.push(Problem::missing(&item.path, "is not a directory", "restore again"));
                }
            }
            Err(error) => {
                problems.push(Problem::missing(&item.path, format!("was not restored: {error}"), ""))
            }
        }
    }
    let entries = listing.entries();
    for (item, original) in &work.links {
        let (path, from) = (&entries[item.1].path, &entries[original.1].path);
        let same = inodes.get(&(item.0, path.as_path())) == inodes.get(&(original.0, from.as_path()));
        if !same {
            problems.push(Problem::weaker(path, "is not the hard link that it was", ""));
        }
    }
    for (index, part) in plan.parts.iter().enumerate() {
        let slot = beside.slot(index)?;
        let own = u64::from(part.from == Path::new("/"));
        let there = count(&slot).map_err(|e| cannot("counted", &part.to, e))?;
        if there != seen[index] + own {
            let what = format!("{there} names were written, but {} are in the backup", seen[index] + own);
            problems.push(Problem::missing(&part.to, what, "restore again"));
        }
    }
    Ok(problems)
}

/// Compares one object.
pub(super) fn one(place: &Place, item: &Listed, setter: &Setter, problems: &mut Vec<Problem>) {
    match std::fs::symlink_metadata(place.path()) {
        Ok(found) => compare(place, &found, item, setter, problems),
        Err(error) => problems.push(Problem::missing(&item.path, format!("was not restored: {error}"), "")),
    }
}

fn compare(
    place: &Place,
    found: &std::fs::Metadata,
    item: &Listed,
    setter: &Setter,
    problems: &mut Vec<Problem>,
) {
    let mut differs = |what: String| problems.push(Problem::weaker(&item.path, what, ""));
    let meta = &item.meta;
    if !is_kind(found, &item.kind, place) {
        let what = "is not of the kind that it was";
        return problems.push(Problem::missing(&item.path, what, "restore again"));
    }
    if item.kind == Kind::File && found.len() != meta.size.0 {
        let what = format!("has {} bytes instead of {}", found.len(), meta.size.0);
        return problems.push(Problem::missing(&item.path, what, "restore again"));
    }
    let mode = found.mode() & PERMISSIONS;
    let wanted = meta.mode & PERMISSIONS;
    let owned = (found.uid(), found.gid()) == (meta.uid, meta.gid);
    let is_link = matches!(item.kind, Kind::Symlink(_));
    // Without root, set-id bits of somebody else's files were left out, and noted.
    if !is_link && mode != wanted && (owned || mode != wanted & 0o1777) {
        differs(format!("has the mode {mode:o} instead of {wanted:o}"));
    }
    if setter.is_privileged() && !owned {
        let (uid, gid) = (found.uid(), found.gid());
        differs(format!("belongs to {uid}:{gid} instead of {}:{}", meta.uid, meta.gid));
    }
    let mtime = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
    if mtime != meta.mtime.as_nanosecond() {
        differs("does not have the time that it had".to_owned());
    }
    match attributes(place, item, setter.is_privileged()) {
        Ok(there) => compare_attributes(&there, item, setter, &mut differs),
        Err(error) => differs(format!("its attributes cannot be read back: {error}")),
    }
}

fn is_kind(found: &std::fs::Metadata, kind: &Kind, place: &Place) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let is = found.file_type();
    match kind {
        Kind::File => is.is_file(),
        Kind::Dir => is.is_dir(),
        Kind::Symlink(target) => {
            is.is_symlink() && std::fs::read_link(place.path()).is_ok_and(|t| t == *target)
        }
        Kind::BlockDevice(device) => is.is_block_device() && found.rdev() == *device,
        Kind::CharDevice(device) => is.is_char_device() && found.rdev() == *device,
        Kind::Fifo => is.is_fifo(),
    }
}

fn compare_attributes(there: &[Xattr], item: &Listed, setter: &Setter, differs: &mut dyn FnMut(String)) {
    let privileged = setter.is_privileged();
    let is_asked = |x: &&Xattr| privileged || is_for_everyone(&x.name);
    for wanted in item.meta.xattrs.iter().filter(is_asked) {
        if !there.contains(wanted) {
            differs(format!("lacks the attribute {}", String::from_utf8_lossy(&wanted.name)));
        }
    }
    for extra in there.iter().filter(|x| !item.meta.xattrs.iter().any(|w| w.name == x.name)) {
        // The security modules of this machine label what is made on it.
        if !extra.name.starts_with(b"security.") {
            differs(format!("has the attribute {}", String::from_utf8_lossy(&extra.name)));
        }
    }
}

fn attributes(place: &Place, item: &Listed, privileged: bool) -> io::Result<Vec<Xattr>> {
    let path = place.path();
    let names: Vec<OsString> = match xattr::list(&path) {
        Ok(names) => names.collect(),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in names {
        if !privileged && !is_for_everyone(name.as_bytes()) {
            continue;
        }
        match xattr::get(&path, &name) {
            Ok(Some(value)) => found.push(Xattr { name: name.as_bytes().to_vec(), value }),
            Ok(None) => {}
            // A file that this user may not read shows the names of its attributes, but not their values.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                found.extend(item.meta.xattrs.iter().find(|x| x.name == name.as_bytes()).cloned());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// How many names there are, the root included; directories closed to this user count, what is in them is
/// not looked at.
fn count(root: &Path) -> io::Result<u64> {
    let mut found = 0;
    let mut todo: Vec<PathBuf> = Vec::new();
    match root.symlink_metadata() {
        Ok(meta) if meta.is_dir() => todo.push(root.to_owned()),
        Ok(_) => return Ok(1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    }
    found += 1;
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            found += 1;
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    Ok(found)
}
