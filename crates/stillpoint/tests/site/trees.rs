//! Trees with everything in them, a backup of one in memory, and a strict comparison of two.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use model::{
    entry::{Kind, Meta, Xattr, tree_order},
    restore::{Listed, Listing},
    size::Bytes,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};
use testkit::fakes::restore::MemoryBackup;

/// The bytes of every regular file, taken before they are closed.
pub type Content = BTreeMap<PathBuf, Vec<u8>>;

/// Makes a random tree at `root`, which must not exist.
pub fn grow(root: &Path, seed: u64) -> Content {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut content = Content::new();
    let mut closing = Vec::new();
    fs::create_dir(root).unwrap();
    let mut dirs = vec![root.to_owned()];
    for number in 0..rng.random_range(60..160) {
        let dir = dirs[rng.random_range(0..dirs.len())].clone();
        let path = dir.join(name(&mut rng, number));
        match rng.random_range(0..12) {
            0..=2 => {
                fs::create_dir(&path).unwrap();
                dirs.push(path.clone());
                if rng.random_bool(0.2) {
                    closing.push((path.clone(), [0o555, 0o500, 0o1777, 0o2750][rng.random_range(0..4)]));
                }
            }
            3 => symlink(["nowhere", "..", "/etc/passwd", "a\u{ff}"][rng.random_range(0..4)], &path).unwrap(),
            4 => mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap(),
            5 if !content.is_empty() => {
                let other = content.keys().nth(rng.random_range(0..content.len())).unwrap().clone();
                fs::hard_link(&other, &path).unwrap();
                content.insert(path.clone(), content[&other].clone());
            }
            _ => {
                let bytes = write(&path, &mut rng);
                content.insert(path.clone(), bytes);
                let mode = [0o644, 0o600, 0o755, 0o400, 0o000, 0o4711][rng.random_range(0..6)];
                closing.push((path.clone(), mode));
            }
        }
        attributes(&path, &mut rng);
    }
    deep(root, &mut content);
    dress(root, &closing, &mut rng);
    content
}

/// A path so long that it has to be made step by step, names as long as they can be.
fn deep(root: &Path, content: &mut Content) {
    let mut path = root.to_owned();
    for _ in 0..12 {
        path.push("d".repeat(250));
        fs::create_dir(&path).unwrap();
    }
    path.push("file");
    fs::write(&path, "deep").unwrap();
    content.insert(path, b"deep".to_vec());
}

/// Times and closed modes, deepest first, so that nothing is in the way of what follows.
fn dress(root: &Path, closing: &[(PathBuf, u32)], rng: &mut StdRng) {
    let mut paths = walk(root);
    paths.reverse();
    for path in paths {
        if let Some((_, mode)) = closing.iter().find(|(p, _)| *p == path) {
            fs::set_permissions(&path, Permissions::from_mode(*mode)).unwrap();
        }
        let at = Timespec {
            tv_sec: rng.random_range(-1000..1_700_000_000),
            tv_nsec: rng.random_range(0..1_000_000_000),
        };
        let times = Timestamps { last_access: at, last_modification: at };
        utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn name(rng: &mut StdRng, number: usize) -> OsString {
    let mut bytes: Vec<u8> = match rng.random_range(0..5) {
        0 => vec![0xff, 0xfe, b'\n', b'\\', b'"'],
        1 => "größe €".as_bytes().to_vec(),
        2 => b"-rf *".to_vec(),
        3 => b"a b\tc".to_vec(),
        _ => b"plain".to_vec(),
    };
    bytes.extend(number.to_string().bytes());
    OsString::from_vec(bytes)
}

fn write(path: &Path, rng: &mut StdRng) -> Vec<u8> {
    let file = File::create(path).unwrap();
    match rng.random_range(0..6) {
        0 => Vec::new(),
        1 => {
            // A hole of a MiB between two pieces, and one at the end.
            let mut bytes = vec![0; 2 << 20];
            bytes[..5].copy_from_slice(b"begin");
            bytes[1 << 20..(1 << 20) + 3].copy_from_slice(b"mid");
            file.write_all_at(b"begin", 0).unwrap();
            file.write_all_at(b"mid", 1 << 20).unwrap();
            file.set_len(2 << 20).unwrap();
            bytes
        }
        _ => {
            let mut bytes = vec![0; rng.random_range(1..300_000)];
            rng.fill(bytes.as_mut_slice());
            file.write_all_at(&bytes, 0).unwrap();
            bytes
        }
    }
}

fn attributes(path: &Path, rng: &mut StdRng) {
    if rng.random_bool(0.3) && path.symlink_metadata().is_ok_and(|m| m.is_file() || m.is_dir()) {
        xattr::set(path, "user.note", &[0, 1, 255]).unwrap();
        xattr::set(path, "user.empty", b"").unwrap();
    }
}

/// Everything at and below `root`, a directory before what it holds.
pub fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        if !dir.symlink_metadata().unwrap().is_dir() {
            continue;
        }
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort_by(|a, b| tree_order(a, b));
    found
}

/// A backup of these roots as they are now, with all directories above them. Contents that are not given are
/// read.
pub fn back_up(roots: &[&Path], content: &Content) -> MemoryBackup {
    let mut paths: Vec<PathBuf> = roots.iter().flat_map(|root| walk(root)).collect();
    for root in roots {
        paths.extend(root.ancestors().skip(1).filter(|p| *p != Path::new("/")).map(Path::to_owned));
    }
    paths.sort_by(|a, b| tree_order(a, b));
    paths.dedup();
    let entries: Vec<Listed> = paths.into_iter().map(|path| look(&path)).collect();
    let mut bytes = Content::new();
    for entry in entries.iter().filter(|e| e.kind == Kind::File) {
        let read = content.get(&entry.path).cloned();
        bytes.insert(entry.path.clone(), read.unwrap_or_else(|| fs::read(&entry.path).unwrap()));
    }
    MemoryBackup { listing: Listing::new(entries, vec![]).unwrap(), bytes, ..MemoryBackup::default() }
}

/// One object as it is now.
pub fn look(path: &Path) -> Listed {
    let found = path.symlink_metadata().unwrap();
    let is = found.file_type();
    let kind = if is.is_file() {
        Kind::File
    } else if is.is_dir() {
        Kind::Dir
    } else if is.is_symlink() {
        Kind::Symlink(fs::read_link(path).unwrap())
    } else if is.is_fifo() {
        Kind::Fifo
    } else if is.is_char_device() {
        Kind::CharDevice(found.rdev())
    } else {
        Kind::BlockDevice(found.rdev())
    };
    let time =
        |s: i64, ns: i64| Timestamp::from_nanosecond(i128::from(s) * 1_000_000_000 + i128::from(ns)).unwrap();
    let meta = Meta {
        mode: found.mode(),
        uid: found.uid(),
        gid: found.gid(),
        size: Bytes(if is.is_file() { found.len() } else { 0 }),
        mtime: time(found.mtime(), found.mtime_nsec()),
        atime: time(found.atime(), found.atime_nsec()),
        ctime: time(found.ctime(), found.ctime_nsec()),
        inode: found.ino(),
        device: found.dev(),
        links: found.nlink(),
        xattrs: xattrs(path),
    };
    Listed { path: path.to_owned(), kind, meta }
}

/// Attributes whose values this user may read.
fn xattrs(path: &Path) -> Vec<Xattr> {
    let mut found: Vec<Xattr> = xattr::list(path)
        .unwrap()
        .filter_map(|name| Some((name.clone(), xattr::get(path, &name).ok()??)))
        .map(|(name, value)| Xattr { name: name.as_bytes().to_vec(), value })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Everything about a tree that a restore must bring back, by relative path.
pub fn portrait(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut links: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for path in walk(root) {
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let seen = look(&path);
        let meta = &seen.meta;
        // How XFS keeps an access list on its disk, beside the list itself, no other filesystem knows.
        let xattrs: Vec<_> =
            meta.xattrs.iter().filter(|x| !x.name.starts_with(b"trusted.SGI_ACL_")).collect();
        let mut text = format!(
            "{:?} {:o} {}:{} {} {} {:?}",
            seen.kind, meta.mode, meta.uid, meta.gid, meta.size, meta.mtime, xattrs
        );
        if seen.kind == Kind::File && meta.links > 1 {
            let first = links.entry((meta.device, meta.inode)).or_insert_with(|| relative.clone());
            text.push_str(&format!(" one with {}", first.display()));
        }
        found.insert(relative, text);
    }
    found
}

/// The bytes of every regular file by relative path, opening what is closed to this user.
pub fn contents(root: &Path) -> Content {
    let mut found = Content::new();
    for path in walk(root) {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_file() {
            let closed = meta.mode() & 0o400 == 0;
            if closed {
                fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            if closed {
                fs::set_permissions(&path, Permissions::from_mode(meta.mode())).unwrap();
            }
        }
    }
    found
}

/// Fails with the first difference.
pub fn assert_same(found: &BTreeMap<PathBuf, String>, wanted: &BTreeMap<PathBuf, String>) {
    for (path, text) in wanted {
        assert_eq!(found.get(path), Some(text), "{}", path.display());
    }
    for path in found.keys() {
        assert!(wanted.contains_key(path), "{} is more than there was", path.display());
    }
}

/// Lets a temporary directory be removed by whoever made it.
pub fn open_up(root: &Path) {
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let mode = dir.symlink_metadata().unwrap().mode();
        if mode & 0o700 != 0o700 {
            fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        }
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
        }
    }
}

/// Whether a directory holds anything that we make while restoring.
pub fn leftovers(dir: &Path) -> Vec<OsString> {
    fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|name| OsStr::as_bytes(name).starts_with(b".stillpoint-"))
        .collect()
}
