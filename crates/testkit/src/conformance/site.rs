//! What every [`Site`] has to do, with its [`Beside`].
//!
//! Crash story: see the parent.

use std::{
    any::Any,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    cut::Stalls,
    entry::{Kind, Meta, tree_order},
    id::{AppName, BackupId, CutId, SourceId},
    port::{Failure, FailureKind, Journal},
    port_restore::{Beside, SHARE, Site, Writing},
    problem::{Effect, Problem},
    record::{BackupRecord, PinNote, RECORD_VERSION, StoredBackup},
    restore::{self, Listed, Listing, Request, RestorePlan, Target},
    size::Bytes,
    time::Millis,
    undo::Undo,
    verdict::Verdict,
};

use super::cases;

/// A machine under test.
pub trait Bench {
    /// It.
    fn site(&self) -> &dyn Site;
    /// A directory that is there and empty, for the suite to work in.
    fn root(&self) -> PathBuf;
    /// Makes a regular file and the directories above it.
    fn put(&self, path: &Path, bytes: &[u8]);
    /// All regular files below the root that are not in one of our directories.
    fn look(&self) -> BTreeMap<PathBuf, Vec<u8>>;
    /// How many of our directories are directly in the root.
    fn staged(&self) -> usize;
    /// Where undos are written down.
    fn journal(&self) -> Arc<dyn Journal>;
    /// What is open there, newest first.
    fn open_undos(&self) -> Vec<Undo>;
    /// Undoes it, as a later run does.
    fn undo(&self, undo: &Undo);
    /// User and group that whatever is restored belongs to.
    fn owner(&self) -> (u32, u32);
    /// Keeps a file open until the result is dropped.
    fn open(&self, path: &Path) -> Box<dyn Any>;
}

/// Runs every case, each on a fresh bench.
pub fn suite(make: impl Fn() -> Box<dyn Bench>) {
    cases!(make:
        looking_changes_nothing,
        who_has_a_file_open_is_told,
        in_place_all_is_replaced_and_leftovers_go,
        the_old_state_is_kept_if_asked,
        what_is_discarded_or_dropped_changes_nothing,
        a_dead_run_is_undone_from_its_journal,
        a_directory_appears_when_it_is_complete,
        what_is_incomplete_gets_another_name,
        what_was_not_written_is_missed,
        what_was_written_reads_back,
    );
}

type Content = BTreeMap<PathBuf, Vec<u8>>;

/// A tree and a database that were backed up, and have changed since.
struct Scene<'a> {
    bench: &'a dyn Bench,
    listing: Listing,
    then: Content,
    now: Content,
}

fn scene(bench: &dyn Bench) -> Scene<'_> {
    let at = |files: &[(&str, &[u8])]| -> Content {
        files.iter().map(|(path, bytes)| (bench.root().join(path), bytes.to_vec())).collect()
    };
    let long = vec![7; 300_000];
    let then = at(&[
        ("tree/a", b"then"),
        ("tree/sub/long", &long),
        ("tree/sub/empty", b""),
        ("x.sqlite3", b"the database then"),
        ("x.sqlite3-wal", b""),
        ("x.sqlite3-journal", b""),
    ]);
    let now = at(&[
        ("tree/a", b"now"),
        ("tree/since", b"made since"),
        ("x.sqlite3", b"the database now"),
        ("x.sqlite3-wal", b"a leftover"),
        ("x.sqlite3-shm", b"a leftover"),
        ("other", b"no source"),
    ]);
    for (path, bytes) in &now {
        bench.put(path, bytes);
    }
    let mut entries: Vec<Listed> = then.iter().map(|(p, b)| listed(bench, p, Kind::File, b.len())).collect();
    let mut dirs: Vec<&Path> = then.keys().flat_map(|p| p.ancestors().skip(1)).collect();
    dirs.sort_unstable();
    dirs.dedup();
    let is_named = |dir: &&Path| *dir != Path::new("/");
    entries.extend(dirs.into_iter().filter(is_named).map(|dir| listed(bench, dir, Kind::Dir, 0)));
    entries.sort_by(|a, b| tree_order(&a.path, &b.path));
    let listing = ok(Listing::new(entries, vec![]));
    Scene { bench, listing, then, now }
}

fn listed(bench: &dyn Bench, path: &Path, kind: Kind, size: usize) -> Listed {
    let time = Timestamp::UNIX_EPOCH;
    let (uid, gid) = bench.owner();
    let mode = if kind == Kind::Dir { 0o700 } else { 0o600 };
    let size = Bytes(size as u64);
    let meta = Meta {
        mode,
        uid,
        gid,
        size,
        mtime: time,
        atime: time,
        ctime: time,
        inode: 0,
        device: 1,
        links: 1,
        xattrs: vec![],
    };
    Listed { path: path.to_owned(), kind, meta }
}

/// Writes a stretch of a file.
fn append(file: &dyn Writing, at: u64, bytes: &[u8]) {
    let mut stretch = ok(file.stretch(at..at + bytes.len() as u64));
    for bytes in bytes.chunks(100_000) {
        ok(stretch.append(bytes));
    }
    ok(stretch.end());
}

fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
}

impl Scene<'_> {
    fn request(&self, target: Target) -> Request {
        let pin = |kind: &str, name: &str| {
            let path = self.bench.root().join(name);
            PinNote { source: SourceId::new(kind, path.display()), method: "test".into(), path }
        };
        let application = AppName::new("hydro").unwrap_or_else(|_| panic!("a good name"));
        let record = BackupRecord {
            version: RECORD_VERSION,
            cut: CutId::at(Timestamp::UNIX_EPOCH, [1, 2, 3]),
            application: application.clone(),
            verdict: Verdict::Consistent,
            looks_wrong: None,
            label: None,
            stalls: Stalls { total: Millis(1.0), downtime: None, per_hold: vec![] },
            files: 0,
            bytes: Bytes(0),
            bytes_added: Bytes(0),
            duration_s: 0.0,
            problems: vec![],
            problem_count: 0,
            pins: vec![pin("directory", "tree"), pin("sqlite", "x.sqlite3")],
        };
        let backup = StoredBackup {
            id: BackupId::new("ab".repeat(32)).unwrap_or_else(|_| panic!("a good id")),
            time: Timestamp::UNIX_EPOCH,
            received: Timestamp::UNIX_EPOCH,
            record: Some(record),
            damaged: None,
            accepted: false,
        };
        Request {
            application,
            backup,
            target,
            keep_out: vec![],
            read_back: false,
            trust_copies: false,
            has_hooks: false,
            accept_incomplete: false,
            servers: vec![],
            only: vec![],
        }
    }

    fn plan(&self, target: Target) -> Result<RestorePlan, Failure> {
        let request = self.request(target);
        let places = restore::places(&request, &self.listing)?;
        let watched = restore::databases(&request.backup, &self.listing)?;
        let facts = self.bench.site().survey(&places, &self.listing, &watched)?;
        restore::plan(&request, &self.listing, &facts)
    }

    fn in_place(&self) -> RestorePlan {
        ok(self.plan(Target::InPlace { keep_old: false }))
    }

    fn begin<'a>(&'a self, plan: &'a RestorePlan) -> Box<dyn Beside + 'a> {
        let beside = ok(self.bench.site().begin(plan, &self.listing, &self.bench.journal()));
        assert!(!self.bench.open_undos().is_empty(), "what is written beside is not in the journal");
        ok(beside.directories());
        beside
    }

    /// Writes all files but `without`, and says what is missing then.
    fn write(&self, plan: &RestorePlan, beside: &dyn Beside, without: Option<&Path>) -> Vec<Problem> {
        let mut lost = Vec::new();
        for (part, item) in restore::work(plan, &self.listing).files {
            let item = &self.listing.entries()[item];
            if without == Some(&*item.path) {
                lost.push(item.path.clone());
                continue;
            }
            let bytes = &self.then[&item.path];
            let file = ok(beside.file(part, item));
            for (number, stretch) in bytes.chunks(SHARE as usize).enumerate() {
                append(&*file, number as u64 * SHARE, stretch);
            }
            ok(file.finish());
        }
        let mut problems = ok(beside.complete(&lost));
        problems.extend(ok(beside.verify()));
        problems.extend(ok(beside.seal()));
        ok(beside.sync());
        problems.retain(|p| p.effect == Effect::Missing);
        problems
    }

    #[track_caller]
    fn expect(&self, wanted: &Content) {
        let found = self.bench.look();
        let names = |content: &Content| content.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(wanted));
        assert!(found == *wanted, "some bytes differ");
        assert_eq!(self.bench.open_undos(), vec![]);
    }

    /// After a restore in place: what was backed up, and what is no source.
    fn restored(&self) -> Content {
        let other = self.bench.root().join("other");
        self.then.iter().chain(self.now.get_key_value(&other)).map(|(p, b)| (p.clone(), b.clone())).collect()
    }
}

/// A plan, and nothing else.
pub fn looking_changes_nothing(bench: &dyn Bench) {
    let scene = scene(bench);
    let plan = scene.in_place();
    assert_eq!(plan.files, 6);
    let tree = plan.parts.iter().find(|p| p.to.ends_with("tree"));
    let census = tree.map(|p| p.replaces.clone()).unwrap_or_default();
    assert_eq!((census.files, census.unlisted), (2, 1), "what would be replaced is counted");
    assert_eq!(bench.staged(), 0);
    scene.expect(&scene.now);
}

/// Open files are found by their paths, others are not told of.
pub fn who_has_a_file_open_is_told(bench: &dyn Bench) {
    let scene = scene(bench);
    let database = bench.root().join("x.sqlite3");
    let paths = [database.clone(), bench.root().join("x.sqlite3-wal")];
    assert_eq!(ok(bench.site().open_by(&paths)), vec![]);
    let open = bench.open(&database);
    let told = ok(bench.site().open_by(&paths));
    assert!(!told.is_empty() && told.iter().all(|o| o.path == database && o.pid > 0), "{told:?}");
    let refused = scene.plan(Target::InPlace { keep_old: false });
    assert!(matches!(refused, Err(failure) if failure.kind == FailureKind::Refused));
    drop(open);
    assert_eq!(ok(bench.site().open_by(&paths)), vec![]);
}

/// The new state, with nothing of the old and nothing of ours.
pub fn in_place_all_is_replaced_and_leftovers_go(bench: &dyn Bench) {
    let scene = scene(bench);
    let plan = scene.in_place();
    let beside = scene.begin(&plan);
    assert_eq!(scene.write(&plan, &*beside, None), vec![]);
    assert_eq!(bench.look(), scene.now, "nothing changes before the swap");
    let swapped = ok(beside.swap().map_err(|not| not.failure));
    assert_eq!(swapped.kept, Vec::<PathBuf>::new());
    scene.expect(&scene.restored());
    assert_eq!(bench.staged(), 0);
}

/// The old state is somewhere, and nobody will remove it.
pub fn the_old_state_is_kept_if_asked(bench: &dyn Bench) {
    let scene = scene(bench);
    let plan = ok(scene.plan(Target::InPlace { keep_old: true }));
    let beside = scene.begin(&plan);
    scene.write(&plan, &*beside, None);
    let swapped = ok(beside.swap().map_err(|not| not.failure));
    assert!(!swapped.kept.is_empty() && bench.staged() == swapped.kept.len());
    scene.expect(&scene.restored());
}

/// At whatever stage.
pub fn what_is_discarded_or_dropped_changes_nothing(bench: &dyn Bench) {
    let scene = scene(bench);
    for (is_written, is_dropped) in [(false, false), (false, true), (true, false), (true, true)] {
        let plan = scene.in_place();
        let beside = scene.begin(&plan);
        if is_written {
            scene.write(&plan, &*beside, None);
        }
        if is_dropped {
            drop(beside);
        } else {
            ok(beside.discard());
        }
        scene.expect(&scene.now);
        assert_eq!(bench.staged(), 0);
    }
}

/// Nothing of it is left, and undoing twice is harmless.
pub fn a_dead_run_is_undone_from_its_journal(bench: &dyn Bench) {
    let scene = scene(bench);
    let plan = scene.in_place();
    let beside = scene.begin(&plan);
    scene.write(&plan, &*beside, None);
    std::mem::forget(beside);
    assert!(bench.staged() > 0);
    let open = bench.open_undos();
    for undo in open.iter().chain(&open) {
        bench.undo(undo);
    }
    assert_eq!(bench.look(), scene.now);
    assert_eq!(bench.staged(), 0);
}

/// Under its name only when all is there, everything under its original path.
pub fn a_directory_appears_when_it_is_complete(bench: &dyn Bench) {
    let scene = scene(bench);
    let dir = bench.root().join("restored");
    let plan = ok(scene.plan(Target::Directory { dir: dir.clone() }));
    let beside = scene.begin(&plan);
    assert_eq!(scene.write(&plan, &*beside, None), vec![]);
    assert_eq!(bench.look(), scene.now);
    ok(beside.swap().map_err(|not| not.failure));
    let below = |path: &Path| dir.join(path.strip_prefix("/").unwrap_or(path));
    let mut wanted = scene.now.clone();
    wanted.extend(scene.then.iter().map(|(path, bytes)| (below(path), bytes.clone())));
    scene.expect(&wanted);
    assert_eq!(bench.staged(), 0);
}

/// The name that was asked for stays free.
pub fn what_is_incomplete_gets_another_name(bench: &dyn Bench) {
    let scene = scene(bench);
    let dir = bench.root().join("restored");
    let plan = ok(scene.plan(Target::Directory { dir: dir.clone() }));
    let beside = scene.begin(&plan);
    let lost = bench.root().join("tree/a");
    assert!(!scene.write(&plan, &*beside, Some(&lost)).is_empty());
    let named = ok(beside.leave_incomplete());
    let found = bench.look();
    assert!(found.keys().all(|path| !path.starts_with(&dir)), "{dir:?} is taken");
    assert_eq!(found.keys().filter(|path| path.starts_with(&named)).count(), scene.then.len() - 1);
    assert_eq!(bench.open_undos(), vec![]);
    assert_eq!(bench.staged(), 0);
}

/// A file that was never begun, was dropped, or has too few bytes.
pub fn what_was_not_written_is_missed(bench: &dyn Bench) {
    let scene = scene(bench);
    let plan = scene.in_place();
    let beside = scene.begin(&plan);
    let lost = bench.root().join("tree/a");
    let is_lost = |problem: &Problem| problem.path.as_ref() == Some(&lost);
    assert!(scene.write(&plan, &*beside, Some(&lost)).iter().any(is_lost));
    let work = restore::work(&plan, &scene.listing);
    let entries = scene.listing.entries();
    let Some((part, item)) = work.files.into_iter().find(|(_, item)| entries[*item].path == lost) else {
        panic!("the file is to be written");
    };
    let file = ok(beside.file(part, &entries[item]));
    append(&*file, 0, b"th");
    drop(file);
    assert!(ok(beside.verify()).iter().any(is_lost));
    let file = ok(beside.file(part, &entries[item]));
    append(&*file, 0, b"th");
    assert!(matches!(file.finish(), Err(failure) if failure.kind == FailureKind::Damaged));
    assert!(ok(beside.verify()).iter().any(is_lost));
}

/// Byte by byte.
pub fn what_was_written_reads_back(bench: &dyn Bench) {
    let scene = scene(bench);
    let plan = scene.in_place();
    let beside = scene.begin(&plan);
    scene.write(&plan, &*beside, None);
    for (part, item) in restore::work(&plan, &scene.listing).files {
        let item = &scene.listing.entries()[item];
        let bytes = &scene.then[&item.path];
        let mut file = ok(beside.reread(part, item));
        let (mut found, mut buffer) = (Vec::new(), vec![0; 70_000]);
        loop {
            match ok(file.at(found.len() as u64, &mut buffer)) {
                0 => break,
                length => found.extend_from_slice(&buffer[..length]),
            }
        }
        assert!(found == *bytes, "{} reads back otherwise", item.path.display());
    }
}
