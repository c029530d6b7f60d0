//! What the vault's integration tests share: a repository in a temporary directory, manifests of real
//! trees, and reading back with rustic itself.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod spool;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use jiff::{SignedDuration, Timestamp};
use model::{
    cut::Stalls,
    entry::{Body, Entry, Kind, Manifest, Meta, Role, Xattr},
    id::{AppName, BackupId, CutId, Relpath, ServerName, SourceId, VmName},
    port::{Draft, Failure, Journal, Silent, Store},
    record::{BackupRecord, CutRecord, PinNote, RECORD_VERSION},
    size::Bytes,
    time::{Deadline, Millis},
    undo::{Ticket, Undo},
    verdict::Verdict,
};
use rustic_backend::BackendOptions;
use rustic_core::{Credentials, LsOptions, RepositoryOptions, repofile::SnapshotFile};
use tempfile::TempDir;
use vault::repository::{Opening, Password, Repository};

/// A journal in memory.
#[derive(Default)]
pub struct Memory(Mutex<(u64, BTreeMap<Ticket, Undo>)>);

impl Memory {
    pub fn open(&self) -> Vec<Undo> {
        self.0.lock().unwrap().1.values().cloned().collect()
    }
}

impl Journal for Memory {
    fn intend(&self, undo: Undo, _until: Option<Deadline>) -> Result<Ticket, Failure> {
        let mut state = self.0.lock().unwrap();
        state.0 += 1;
        let ticket = Ticket(state.0);
        state.1.insert(ticket, undo);
        Ok(ticket)
    }
    fn amend(&self, ticket: Ticket, undo: Undo, _until: Option<Deadline>) -> Result<(), Failure> {
        self.0.lock().unwrap().1.insert(ticket, undo);
        Ok(())
    }
    fn done(&self, ticket: Ticket) {
        self.0.lock().unwrap().1.remove(&ticket);
    }
}

/// A repository with a place for files beside it.
pub struct Place {
    pub dir: TempDir,
    pub journal: Arc<Memory>,
    pub opening: Opening,
}

impl Place {
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    pub fn at(dir: TempDir) -> Self {
        let opening = Opening { dir: dir.path().join("repository"), password: Password::generate() };
        Repository::init(&opening).unwrap();
        Self { dir, journal: Arc::default(), opening }
    }

    pub fn repository(&self) -> Repository {
        Repository::open(&self.opening, self.journal.clone()).unwrap()
    }

    pub fn scratch(&self) -> PathBuf {
        let scratch = self.dir.path().join("scratch");
        fs::create_dir_all(&scratch).unwrap();
        scratch
    }

    /// The files of a subdirectory of the repository.
    pub fn files(&self, name: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.opening.dir.join(name)];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path())
                } else {
                    found.push(entry.path())
                }
            }
        }
        found.sort();
        found
    }

    /// The regular files of a backup, read by rustic itself.
    pub fn read_back(&self, backup: &BackupId) -> BTreeMap<PathBuf, Vec<u8>> {
        let backends =
            BackendOptions::default().repository(self.opening.dir.to_str().unwrap()).to_backends().unwrap();
        let options = RepositoryOptions::default().no_cache(true);
        let repository = rustic_core::Repository::new(&options, &backends)
            .unwrap()
            .open(&Credentials::password(self.opening.password.reveal()))
            .unwrap()
            .to_indexed()
            .unwrap();
        let snapshot: SnapshotFile = repository.get_snapshot_from_str(backup.as_str(), |_| true).unwrap();
        let root = repository.node_from_snapshot_and_path(&snapshot, "").unwrap();
        let listed: Vec<_> = repository
            .ls(&root, &LsOptions::default().recursive(true))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let files = listed.into_iter().filter(|(_, node)| node.is_file());
        files
            .map(|(path, node)| {
                let mut bytes = Vec::new();
                repository.dump(&node, &mut bytes).unwrap();
                (Path::new("/").join(path), bytes)
            })
            .collect()
    }
}

/// The attributes of a live thing, and what it is; nothing for a socket.
pub fn entry(path: &Path, body: impl Fn(&Path) -> Body) -> Option<Entry> {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = match meta.file_type() {
        t if t.is_file() => Kind::File,
        t if t.is_dir() => Kind::Dir,
        t if t.is_symlink() => Kind::Symlink(fs::read_link(path).unwrap()),
        t if t.is_fifo() => Kind::Fifo,
        t if t.is_char_device() => Kind::CharDevice(meta.rdev()),
        t if t.is_block_device() => Kind::BlockDevice(meta.rdev()),
        _ => return None,
    };
    let time = |seconds, nanos: i64| Timestamp::new(seconds, i32::try_from(nanos).unwrap()).unwrap();
    let meta = Meta {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        size: Bytes(if kind == Kind::File { meta.len() } else { 0 }),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        atime: time(meta.atime(), meta.atime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        inode: meta.ino(),
        device: meta.dev(),
        links: meta.nlink(),
        xattrs: xattrs(path),
    };
    let body = if kind == Kind::File { body(path) } else { Body::Nothing };
    Some(Entry { path: path.into(), kind, meta, body, role: Role::Content })
}

fn xattrs(path: &Path) -> Vec<Xattr> {
    let mut names = vec![0_u8; 65_536];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else { return vec![] };
    let split = names[..length].split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut found: Vec<Xattr> = split
        .map(|name| {
            let mut value = vec![0_u8; 65_536];
            let key = std::ffi::CString::new(name).unwrap();
            let length = rustix::fs::lgetxattr(path, key.as_c_str(), &mut value[..]).unwrap();
            value.truncate(length);
            Xattr { name: name.into(), value }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Everything under a directory, with those above it.
pub fn manifest(root: &Path, body: impl Fn(&Path) -> Body + Copy) -> Arc<Manifest> {
    let mut entries: Vec<Entry> =
        root.ancestors().skip(1).filter_map(|p| entry(p, body)).map(ancestor).collect();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let Some(entry) = entry(&path, body) else { continue };
        if entry.kind == Kind::Dir {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        entries.push(entry);
    }
    // A moment at which every stamp was settled, so that the tests need not wait.
    let newest = entries.iter().map(|e| e.meta.ctime).max().unwrap();
    Arc::new(Manifest::merge(newest + SignedDuration::from_secs(2), entries))
}

fn ancestor(entry: Entry) -> Entry {
    Entry { role: Role::Ancestor, ..entry }
}

/// Reads live files from where they are.
pub fn at(path: &Path) -> Body {
    Body::At(path.into())
}

/// Carries live files over.
pub fn carried(_path: &Path) -> Body {
    Body::Carried
}

/// The record of the `nth` cut of a directory.
pub fn cut(nth: u8, root: &Path) -> CutRecord {
    let cut_at: Timestamp = "2026-11-20T03:15:00Z".parse().unwrap();
    let cut_at = cut_at + SignedDuration::from_mins(i64::from(nth));
    CutRecord {
        version: RECORD_VERSION,
        cut: CutId::at(cut_at, [0, 0, nth]),
        application: AppName::new("hydro").unwrap(),
        relpath: Relpath::new("demo.softxs.ch/hydro").unwrap(),
        server: ServerName::new("zg-3.softxs.ch").unwrap(),
        vm: VmName::new("web").unwrap(),
        frozen_at: cut_at,
        cut_at,
        thawed_at: cut_at,
        attempts: 1,
        stalls: Stalls { total: Millis(3.25), downtime: None, per_hold: vec![] },
        evidence: vec![],
        pins: vec![PinNote {
            source: SourceId::new("directory", root.display()),
            method: "two-pass-copy".into(),
            path: root.into(),
        }],
        problems: vec![],
        servers: vec![],
    }
}

/// The record that belongs to a cut and a draft.
pub fn record(cut: &CutRecord, draft: &Draft) -> BackupRecord {
    BackupRecord {
        version: RECORD_VERSION,
        cut: cut.cut.clone(),
        application: cut.application.clone(),
        verdict: if draft.problems.is_empty() { Verdict::Consistent } else { Verdict::Incomplete },
        looks_wrong: None,
        label: None,
        stalls: cut.stalls.clone(),
        files: draft.files,
        bytes: draft.bytes,
        bytes_added: draft.bytes_added,
        duration_s: 1.5,
        problems: draft.problems.clone(),
        problem_count: draft.problems.len() as u64,
        pins: cut.pins.clone(),
    }
}

/// Stores and publishes a whole directory, from where it is.
pub fn back_up(repository: &mut Repository, root: &Path, nth: u8) -> (BackupId, Draft) {
    store(repository, manifest(root, at), root, nth)
}

/// Stores and publishes a manifest.
pub fn store(
    repository: &mut Repository,
    manifest: Arc<Manifest>,
    root: &Path,
    nth: u8,
) -> (BackupId, Draft) {
    let cut = cut(nth, root);
    let draft = ok(repository.store(manifest, &cut, &Silent));
    let record = record(&cut, &draft);
    let id = ok(repository.publish(draft.clone(), &record));
    (id, draft)
}

/// The value, or the whole text of the failure.
pub fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// All paths below, the root included.
pub fn everything(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut todo) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = todo.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// Compares two trees byte for byte and attribute for attribute.
pub fn assert_same(original: &Path, restored: &Path) {
    let below = |root: &Path| -> Vec<PathBuf> {
        everything(root).iter().map(|p| p.strip_prefix(root).unwrap().to_owned()).collect()
    };
    assert_eq!(below(original), below(restored));
    for path in below(original) {
        let (a, b) = (original.join(&path), restored.join(&path));
        let (x, y) = (fs::symlink_metadata(&a).unwrap(), fs::symlink_metadata(&b).unwrap());
        assert_eq!(x.mode(), y.mode(), "mode of {path:?}");
        assert_eq!((x.uid(), x.gid()), (y.uid(), y.gid()), "owner of {path:?}");
        assert_eq!(x.rdev(), y.rdev(), "device of {path:?}");
        assert_eq!((x.mtime(), x.mtime_nsec()), (y.mtime(), y.mtime_nsec()), "time of {path:?}");
        let [m, n] = [&a, &b].map(|p| entry(p, |_| Body::Nothing).unwrap());
        assert_eq!(m.kind, n.kind, "{path:?}");
        assert_eq!(m.meta.xattrs, n.meta.xattrs, "attributes of {path:?}");
        assert_eq!(x.nlink() > 1 && x.is_file(), y.nlink() > 1 && y.is_file(), "links of {path:?}");
        if x.is_file() {
            assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap(), "content of {path:?}");
        }
    }
}
