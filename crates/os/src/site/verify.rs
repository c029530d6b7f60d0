//! Compares what was written with the listing, entry by entry.
//!
//! Extended attributes of a regular file are compared when it is written, while it is open; nobody else can reach it
//! after that. Everything that one look at a name tells is compared at the end, of all names.
//!
//! Crash story: reads only.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use model::{
    entry::{Kind, Xattr},
    port::Failure,
    problem::Problem,
    restore::Listed,
};
use rustix::fs::{AtFlags, FileType, Stat};

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
        match look(&place) {
            Ok(found) => {
                seen[part] += 1;
                if item.kind == Kind::File && item.meta.links > 1 {
                    inodes.insert((part, &item.path), found.st_ino);
                }
                if item.kind == Kind::File {
                    compare(&At::Name(&place), &found, item, setter, &mut problems);
                } else if item.kind != Kind::Dir {
                    compare_all(&At::Name(&place), &found, item, setter, &mut problems);
                } else if !is_kind(&found, &item.kind, &At::Name(&place)) {
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

/// Where an object is.
enum At<'a> {
    Name(&'a Place),
    Open(&'a File),
}

fn look(place: &Place) -> rustix::io::Result<Stat> {
    rustix::fs::statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Compares one object.
pub(super) fn one(place: &Place, item: &Listed, setter: &Setter, problems: &mut Vec<Problem>) {
    compared(look(place), &At::Name(place), item, setter, problems);
}

/// Compares a file that is open.
pub(super) fn open(file: &File, item: &Listed, setter: &Setter, problems: &mut Vec<Problem>) {
    compared(rustix::fs::fstat(file), &At::Open(file), item, setter, problems);
}

fn compared(
    found: rustix::io::Result<Stat>,
    at: &At<'_>,
    item: &Listed,
    setter: &Setter,
    problems: &mut Vec<Problem>,
) {
    match found {
        Ok(found) => compare_all(at, &found, item, setter, problems),
        Err(error) => problems.push(Problem::missing(&item.path, format!("was not restored: {error}"), "")),
    }
}

/// Compares everything that is known of an object, its extended attributes included.
fn compare_all(at: &At<'_>, found: &Stat, item: &Listed, setter: &Setter, problems: &mut Vec<Problem>) {
    compare(at, found, item, setter, problems);
    let mut differs = |what: String| problems.push(Problem::weaker(&item.path, what, ""));
    match attributes(at, item, setter.is_privileged()) {
        Ok(there) => compare_attributes(&there, item, setter, &mut differs),
        Err(error) => differs(format!("its attributes cannot be read back: {error}")),
    }
}

/// Compares what a look at an object tells.
fn compare(at: &At<'_>, found: &Stat, item: &Listed, setter: &Setter, problems: &mut Vec<Problem>) {
    let mut differs = |what: String| problems.push(Problem::weaker(&item.path, what, ""));
    let meta = &item.meta;
    if !is_kind(found, &item.kind, at) {
        let what = "is not of the kind that it was";
        return problems.push(Problem::missing(&item.path, what, "restore again"));
    }
    let size = u64::try_from(found.st_size).unwrap_or(0);
    if item.kind == Kind::File && size != meta.size.0 {
        let what = format!("has {size} bytes instead of {}", meta.size.0);
        return problems.push(Problem::missing(&item.path, what, "restore again"));
    }
    let mode = found.st_mode & PERMISSIONS;
    let wanted = meta.mode & PERMISSIONS;
    let owned = (found.st_uid, found.st_gid) == (meta.uid, meta.gid);
    let is_link = matches!(item.kind, Kind::Symlink(_));
    // Without root, set-id bits of somebody else's files were left out, and noted.
    if !is_link && mode != wanted && (owned || mode != wanted & 0o1777) {
        differs(format!("has the mode {mode:o} instead of {wanted:o}"));
    }
    if setter.is_privileged() && !owned {
        let (uid, gid) = (found.st_uid, found.st_gid);
        differs(format!("belongs to {uid}:{gid} instead of {}:{}", meta.uid, meta.gid));
    }
    let mtime = i128::from(found.st_mtime) * 1_000_000_000 + i128::from(found.st_mtime_nsec);
    if mtime != meta.mtime.as_nanosecond() {
        differs("does not have the time that it had".to_owned());
    }
}

fn is_kind(found: &Stat, kind: &Kind, at: &At<'_>) -> bool {
    let is = FileType::from_raw_mode(found.st_mode);
    match (kind, at) {
        (Kind::File, _) => is == FileType::RegularFile,
        (Kind::Dir, _) => is == FileType::Directory,
        (Kind::Symlink(target), At::Name(place)) => {
            let there = rustix::fs::readlinkat(&place.dir, &place.name, Vec::new());
            there.is_ok_and(|there| there.as_bytes() == target.as_os_str().as_bytes())
        }
        (Kind::Symlink(_), At::Open(_)) => false,
        (Kind::BlockDevice(device), _) => is == FileType::BlockDevice && found.st_rdev == *device,
        (Kind::CharDevice(device), _) => is == FileType::CharacterDevice && found.st_rdev == *device,
        (Kind::Fifo, _) => is == FileType::Fifo,
    }
}

fn compare_attributes(there: &[Xattr], item: &Listed, setter: &Setter, differs: &mut dyn FnMut(String)) {
    let privileged = setter.is_privileged();
    let is_asked = |x: &&Xattr| !Xattr::is_inner_acl(&x.name) && (privileged || is_for_everyone(&x.name));
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

fn attributes(at: &At<'_>, item: &Listed, privileged: bool) -> io::Result<Vec<Xattr>> {
    use xattr::FileExt as _;
    let listed = match at {
        At::Name(place) => xattr::list(place.path()),
        At::Open(file) => file.list_xattr(),
    };
    let names: Vec<OsString> = match listed {
        Ok(names) => names.collect(),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in names {
        if Xattr::is_inner_acl(name.as_bytes()) || (!privileged && !is_for_everyone(name.as_bytes())) {
            continue;
        }
        let got = match at {
            At::Name(place) => xattr::get(place.path(), &name),
            At::Open(file) => file.get_xattr(&name),
        };
        match got {
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
