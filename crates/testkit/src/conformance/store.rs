//! What every [`Store`] has to do.
//!
//! Crash story: see the parent.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    cut::Stalls,
    entry::{Body, Entry, Kind, Manifest, Meta, Role},
    id::{AppName, BackupId, CutId, Relpath, ServerName, VmName},
    port::{Draft, Failure, Shelf, Silent, Store},
    problem::Effect,
    record::{BackupRecord, CutRecord, RECORD_VERSION},
    size::Bytes,
    time::Millis,
    verdict::Verdict,
};

use super::cases;

/// A store under test.
pub trait Bench {
    /// The store, opened anew, as another run would.
    fn store(&self) -> Box<dyn Store>;
    /// The list of what it holds, opened anew.
    fn shelf(&self) -> Box<dyn Shelf>;
    /// An empty directory on disk in which the suite makes its live and pinned files.
    fn scratch(&self) -> PathBuf;
    /// The regular files of a backup, by original path.
    fn read_back(&self, backup: &BackupId) -> BTreeMap<PathBuf, Vec<u8>>;
}

/// Runs every case, each on a fresh bench.
pub fn suite(make: impl Fn() -> Box<dyn Bench>) {
    cases!(make:
        a_draft_is_not_listed,
        a_published_backup_is_listed_and_reads_back,
        nothing_is_known_before_the_first_backup,
        what_was_stored_is_known,
        young_stamps_are_not_known,
        a_carried_file_comes_from_the_parent,
        a_carried_file_comes_from_what_was_stored_ahead,
        storing_ahead_lists_nothing_and_skips_what_is_gone,
        a_body_that_cannot_be_read_is_a_problem,
        a_carried_file_that_changed_is_a_problem,
        the_cut_record_travels_inside,
    );
}

/// Fails the case with the whole text of the failure.
pub(super) fn ok<T>(what: &str, result: Result<T, Failure>) -> T {
    match result {
        Ok(value) => value,
        Err(failure) => panic!("{what}: {}", failure.in_full()),
    }
}

fn at(nanos: i128) -> Timestamp {
    Timestamp::from_nanosecond(nanos).expect("a file's time is a time")
}

fn of_file(path: &Path) -> Meta {
    let meta = fs::symlink_metadata(path).expect("the suite's own file");
    let nanos = |seconds: i64, rest: i64| at(i128::from(seconds) * 1_000_000_000 + i128::from(rest));
    Meta {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        size: Bytes(if meta.is_file() { meta.len() } else { 0 }),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        atime: nanos(meta.atime(), meta.atime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        inode: meta.ino(),
        device: meta.dev(),
        links: meta.nlink(),
        xattrs: vec![],
    }
}

/// A live file and the manifest around it.
pub(super) struct Tree {
    root: PathBuf,
    entries: Vec<Entry>,
}

impl Tree {
    pub(super) fn new(scratch: &Path) -> Self {
        let root = scratch.join("live");
        fs::create_dir_all(&root).expect("a directory in the scratch directory");
        let mut entries: Vec<Entry> = root
            .ancestors()
            .filter(|p| *p != Path::new("/"))
            .map(|path| Entry {
                path: path.to_owned(),
                kind: Kind::Dir,
                meta: of_file(path),
                body: Body::Nothing,
                role: Role::Ancestor,
            })
            .collect();
        entries.reverse();
        Self { root, entries }
    }

    /// Writes a live file and returns its path.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.root.join(name);
        fs::write(&path, bytes).expect("a file in the scratch directory");
        path
    }

    /// Adds an entry with the live file's attributes as they are now.
    pub(super) fn add(&mut self, path: &Path, body: Body) {
        let meta = of_file(path);
        self.entries.push(Entry { path: path.to_owned(), kind: Kind::File, meta, body, role: Role::Content });
    }

    /// The manifest, its stamps taken a minute after they were made, so that all are settled.
    pub(super) fn settled(&self) -> Arc<Manifest> {
        let newest = self.entries.iter().map(|e| e.meta.ctime).max().unwrap_or_default();
        self.taken(newest + jiff::SignedDuration::from_secs(60))
    }

    fn taken(&self, taken_at: Timestamp) -> Arc<Manifest> {
        Arc::new(Manifest::merge(taken_at, self.entries.clone()))
    }
}

fn stalls() -> Stalls {
    Stalls { total: Millis(1.5), downtime: None, per_hold: vec![] }
}

/// The record of the `nth` cut; cuts are a minute apart.
pub(super) fn cut(nth: u8) -> CutRecord {
    let cut_at = at(1_790_000_000_000_000_000 + i128::from(nth) * 60_000_000_000);
    CutRecord {
        version: RECORD_VERSION,
        cut: CutId::at(cut_at, [0, 0, nth]),
        application: AppName::new("suite").expect("a word"),
        relpath: Relpath::new("example.org/suite").expect("two words"),
        server: ServerName::new("server").expect("a word"),
        vm: VmName::new("host").expect("a word"),
        frozen_at: cut_at,
        cut_at,
        thawed_at: cut_at,
        attempts: 1,
        stalls: stalls(),
        evidence: vec![],
        pins: vec![],
        problems: vec![],
        servers: vec![],
    }
}

/// The backup record that belongs to a cut and a draft.
pub(super) fn record(cut: &CutRecord, draft: &Draft) -> BackupRecord {
    BackupRecord {
        version: RECORD_VERSION,
        cut: cut.cut.clone(),
        application: cut.application.clone(),
        verdict: Verdict::Consistent,
        looks_wrong: None,
        label: Some("größe".to_owned()),
        stalls: stalls(),
        files: draft.files,
        bytes: draft.bytes,
        bytes_added: draft.bytes_added,
        duration_s: 0.25,
        problems: draft.problems.clone(),
        problem_count: draft.problems.len() as u64,
        pins: vec![],
    }
}

/// Stores and publishes; asserts that nothing was missing.
pub(super) fn publish(store: &mut dyn Store, manifest: Arc<Manifest>, nth: u8) -> (BackupId, BackupRecord) {
    let cut = cut(nth);
    let draft = ok("store", store.store(manifest, &cut, &Silent));
    assert!(draft.problems.iter().all(|p| p.effect == Effect::Note), "problems: {:?}", draft.problems);
    let record = record(&cut, &draft);
    (ok("publish", store.publish(draft, &record)), record)
}

/// Reads the known stamps first, as every run does.
pub(super) fn opened(bench: &dyn Bench) -> Box<dyn Store> {
    let mut store = bench.store();
    ok("known", store.known());
    store
}

/// Stored, but not published: no list shows it, and the next run is not hindered.
pub fn a_draft_is_not_listed(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let path = tree.write("a", b"draft");
    tree.add(&path, Body::At(path.clone()));
    let mut store = opened(bench);
    ok("store", store.store(tree.settled(), &cut(1), &Silent));
    drop(store);
    assert_eq!(ok("backups", bench.shelf().backups()).len(), 0);
    publish(&mut *opened(bench), tree.settled(), 2);
    assert_eq!(ok("backups", bench.shelf().backups()).len(), 1);
}

/// Published: listed with its record, counted right, and every byte comes back.
pub fn a_published_backup_is_listed_and_reads_back(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let large: Vec<u8> =
        (0..3_000_000_u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()).collect();
    let contents: [(&str, &[u8]); 4] =
        [("small", b"one"), ("empty", b""), ("large", &large), ("sp ace-\u{fc}", b"two")];
    for (name, bytes) in contents {
        let path = tree.write(name, bytes);
        tree.add(&path, Body::At(path.clone()));
    }
    let inline = tree.write("inline", b"five5");
    tree.add(&inline, Body::Inline(b"FIVE5".to_vec()));
    let (id, written) = publish(&mut *opened(bench), tree.settled(), 1);
    assert_eq!(written.files, 5, "files of the draft");
    assert_eq!(written.bytes, Bytes(3 + large.len() as u64 + 3 + 5), "bytes of the draft");
    assert!(written.bytes_added > Bytes(0));
    let listed = ok("backups", bench.shelf().backups());
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, id);
    assert_eq!(listed[0].record, Some(written));
    assert!(!listed[0].accepted);
    let back = bench.read_back(&id);
    for (name, bytes) in contents {
        assert!(back.get(&tree.root.join(name)).is_some_and(|b| b == bytes), "{name} comes back different");
    }
    assert_eq!(back.get(&inline).map(Vec::as_slice), Some(b"FIVE5".as_slice()));
}

/// An empty repository is no error.
pub fn nothing_is_known_before_the_first_backup(bench: &dyn Bench) {
    assert!(ok("known", bench.store().known()).is_empty());
    assert!(ok("backups", bench.shelf().backups()).is_empty());
}

/// The next run knows each stored file by its stamp, and by no other.
pub fn what_was_stored_is_known(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let path = tree.write("a", b"known");
    tree.add(&path, Body::At(path.clone()));
    publish(&mut *opened(bench), tree.settled(), 1);
    let known = ok("known", bench.store().known());
    let stamp = of_file(&path).stamp();
    assert!(known.has(&path, &stamp), "the stored file is not known");
    let mut other = stamp;
    other.ctime += 1;
    assert!(!known.has(&path, &other), "a file changed since is known");
    let mut other = stamp;
    other.inode += 1;
    assert!(!known.has(&path, &other), "another file under the same name is known");
    assert!(!known.has(&tree.root.join("b"), &stamp), "a file is known that was never stored");
}

/// A file that changed within a second of the pass may change again unseen: it is not known.
pub fn young_stamps_are_not_known(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let path = tree.write("a", b"young");
    tree.add(&path, Body::At(path.clone()));
    let meta = of_file(&path);
    publish(&mut *opened(bench), tree.taken(meta.ctime + jiff::SignedDuration::from_millis(500)), 1);
    assert!(!ok("known", bench.store().known()).has(&path, &meta.stamp()));
}

/// Carried over although the live file is gone.
pub fn a_carried_file_comes_from_the_parent(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let path = tree.write("a", b"carried");
    tree.add(&path, Body::At(path.clone()));
    publish(&mut *opened(bench), tree.settled(), 1);
    for entry in tree.entries.iter_mut().filter(|e| e.kind == Kind::File) {
        entry.body = Body::Carried;
    }
    fs::remove_file(&path).expect("the suite's own file");
    let (id, record) = publish(&mut *opened(bench), tree.settled(), 2);
    assert_eq!((record.files, record.bytes), (1, Bytes(7)));
    assert_eq!(bench.read_back(&id).get(&path).map(Vec::as_slice), Some(b"carried".as_slice()));
}

/// Stored ahead, in several parts, then gone from the live tree: still in the backup.
pub fn a_carried_file_comes_from_what_was_stored_ahead(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let files = ["a", "b", "c"].map(|name| (tree.write(name, name.as_bytes()), name));
    let mut store = opened(bench);
    for (path, _) in &files {
        let mut part = Tree { root: tree.root.clone(), entries: Vec::new() };
        part.add(path, Body::Carried);
        tree.add(path, Body::Carried);
        ok("store_ahead", store.store_ahead(part.settled(), &Silent));
    }
    files.iter().for_each(|(path, _)| fs::remove_file(path).expect("the suite's own file"));
    let (id, _) = publish(&mut *store, tree.settled(), 1);
    let back = bench.read_back(&id);
    for (path, content) in &files {
        assert_eq!(back.get(path).map(Vec::as_slice), Some(content.as_bytes()));
    }
}

/// The first pass is not a backup, and a file that is gone by then is left to the cut.
pub fn storing_ahead_lists_nothing_and_skips_what_is_gone(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let gone = tree.write("gone", b"gone");
    let stays = tree.write("stays", b"stays");
    tree.add(&gone, Body::Carried);
    tree.add(&stays, Body::Carried);
    fs::remove_file(&gone).expect("the suite's own file");
    let mut store = opened(bench);
    ok("store_ahead", store.store_ahead(tree.settled(), &Silent));
    drop(store);
    assert_eq!(ok("backups", bench.shelf().backups()).len(), 0);
    tree.entries.retain(|e| e.path != gone);
    let (id, _) = publish(&mut *opened(bench), tree.settled(), 1);
    assert_eq!(ok("backups", bench.shelf().backups()).len(), 1);
    assert_eq!(bench.read_back(&id).len(), 1 + usize::from(has_cut_record(bench, &id)));
}

fn has_cut_record(bench: &dyn Bench, id: &BackupId) -> bool {
    bench.read_back(id).keys().any(|p| p.starts_with("/var/lib/stillpoint"))
}

/// One pinned copy that cannot be read: named as missing, all else is stored.
pub fn a_body_that_cannot_be_read_is_a_problem(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let bad = tree.write("bad", b"bad");
    let good = tree.write("good", b"good");
    tree.add(&bad, Body::At(tree.root.join("no-such-pin")));
    tree.add(&good, Body::At(good.clone()));
    let mut store = opened(bench);
    let cut = cut(1);
    let draft = ok("store", store.store(tree.settled(), &cut, &Silent));
    let missing: Vec<_> = draft.problems.iter().filter(|p| p.effect == Effect::Missing).collect();
    assert_eq!(missing.len(), 1, "{:?}", draft.problems);
    assert_eq!(missing[0].path.as_deref(), Some(bad.as_path()));
    assert_eq!(draft.files, 1, "a file that could not be read is counted");
    let record = record(&cut, &draft);
    let id = ok("publish", store.publish(draft, &record));
    let back = bench.read_back(&id);
    assert_eq!(back.get(&good).map(Vec::as_slice), Some(b"good".as_slice()));
    assert!(back.get(&bad).is_none_or(Vec::is_empty), "something stands for the file that was not read");
}

/// Carried, but nobody has it and the live file is another by now: never stored as if it were the same.
pub fn a_carried_file_that_changed_is_a_problem(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let path = tree.write("a", b"then");
    tree.add(&path, Body::Carried);
    let other = tree.write("b", b"other");
    tree.add(&other, Body::At(other.clone()));
    let manifest = tree.settled();
    fs::remove_file(&path).expect("the suite's own file");
    tree.write("a", b"now!");
    let draft = ok("store", opened(bench).store(manifest, &cut(1), &Silent));
    assert!(
        draft.problems.iter().any(|p| p.effect != Effect::Note && p.path.as_deref() == Some(&path)),
        "{:?}",
        draft.problems
    );
}

/// `/var/lib/stillpoint/cuts/{cut}.json` stands in the tree and reads back.
pub fn the_cut_record_travels_inside(bench: &dyn Bench) {
    let mut tree = Tree::new(&bench.scratch());
    let path = tree.write("a", b"a");
    tree.add(&path, Body::At(path.clone()));
    let (id, _) = publish(&mut *opened(bench), tree.settled(), 7);
    let back = bench.read_back(&id);
    let bytes = back.get(&cut(7).path()).expect("the cut record is in the tree");
    let read: CutRecord = serde_json::from_slice(bytes).expect("a cut record");
    assert_eq!(read, cut(7));
}
