//! Every write and removal of a run fails once, or is the last before the end: what is listed stays whole.
//!
//! Crash story: this is the test of all the others; it works in temporary directories.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use model::port::{FailureKind, Shelf, Silent, Store};
use model::port_restore::Fetch;
use model::{logs::Beginning, logs_retention::LogsPlan, undo::Undo};

use super::{
    Depth, Repository,
    disk::{Disk, RealDisk},
    error::RepositoryError,
    lock::{Lock, LockKind, Locks},
};

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{
    Memory, Place, at, back_up, cut, manifest, noise, ok, record,
    spool::{Archive, owner},
};

/// What the disk does at the chosen step. After it nothing has any effect: the process is as good as dead.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// The step fails with an error.
    Error,
    /// The step leaves half of a temporary file.
    Half,
    /// The step is done, but nobody hears of it.
    Silence,
}

struct Failing {
    left: AtomicI64,
    end: End,
}

impl Failing {
    fn step(
        &self,
        path: &Path,
        content: Option<&[u8]>,
        real: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            left if left > 0 => return real(),
            0 if self.end == End::Silence => real()?,
            0 if self.end == End::Half => {
                if let Some(content) = content {
                    let half = path.with_file_name(".stillpoint-tmp-half");
                    fs::write(half, &content[..content.len() / 2])?;
                }
            }
            _ => {}
        }
        Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()))
    }
}

impl Disk for Failing {
    fn put(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.step(path, Some(content), || RealDisk.put(path, content))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(path, None, || RealDisk.remove(path))
    }
}

/// Writing a lock takes so long that somebody who deletes looks twice meanwhile and sees nobody.
struct Late {
    others: Locks,
    held: Mutex<Option<Lock>>,
}

impl Disk for Late {
    fn put(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut held = self.held.lock().unwrap();
        if held.is_none() && path.parent().is_some_and(|dir| dir.ends_with("locks")) {
            *held = Some(self.others.take_at_once(LockKind::Exclusive).unwrap());
        }
        RealDisk.put(path, content)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
}

#[test]
fn nothing_is_read_under_a_lock_that_somebody_who_deletes_did_not_see() {
    let place = Template::new().copy();
    let disk = Arc::new(Late { others: place.repository().locks.clone(), held: Mutex::default() });
    let ours = Repository::open_on(&place.opening, place.journal.clone(), disk.clone()).unwrap();
    let mut is_read = false;
    let taken = ours.locks.take_meanwhile(LockKind::Shared, |_| {
        is_read = true;
        Ok(())
    });
    assert!(matches!(taken, Err(RepositoryError::Locked { .. })));
    assert!(disk.held.lock().unwrap().is_some() && !is_read);
}

/// Somebody's exclusive lock shows only when the session has begun: what was read then is read again before anything is
/// stored, and nothing is stored while the lock is there.
#[test]
fn what_was_read_before_the_second_look_is_not_stored_on_if_somebody_deletes() {
    let template = Template::new();
    let (place, elsewhere) = (template.copy(), template.copy());
    let theirs = elsewhere.repository().locks.take(LockKind::Exclusive).unwrap();
    let mut ours = place.repository();
    let parent = ok(ours.known());
    assert!(!parent.is_empty());
    let shown = place.opening.dir.join("locks").join("0".repeat(64));
    let lock = fs::read_dir(elsewhere.opening.dir.join("locks")).unwrap().next().unwrap().unwrap().path();
    fs::copy(lock, &shown).unwrap();
    // They delete the parent meanwhile, in a way that leaves the repository whole.
    let snapshot = fs::read_dir(place.opening.dir.join("snapshots")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(snapshot).unwrap();
    let gone = std::time::Duration::from_millis(600);
    let before = place.files("data");
    let backup = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(gone);
            assert_eq!(place.files("data"), before, "nothing is stored while somebody may be deleting");
            assert_eq!(place.files("index").len(), 1);
            fs::remove_file(&shown).unwrap();
        });
        let begun = std::time::Instant::now();
        let backup = back_up(&mut ours, &template.root, 2).0;
        assert!(begun.elapsed() >= gone, "it stored beside somebody who deletes");
        backup
    });
    theirs.release().unwrap();
    let stored = ok(ours.backups());
    assert_eq!(stored.iter().map(|stored| &stored.id).collect::<Vec<_>>(), [&backup]);
    assert_whole(&place, 0, End::Error);
    assert_eq!(place.read_back(&backup)[&template.root.join("first")], noise(1, 300_000));
}

/// Somebody's exclusive lock shows only when a backup is already open: what he deletes is no damage, and it is said who he
/// is.
#[test]
fn what_somebody_deletes_beside_a_restore_is_laid_to_him() {
    let template = Template::new();
    let (place, elsewhere) = (template.copy(), template.copy());
    let theirs = elsewhere.repository().locks.take(LockKind::Exclusive).unwrap();
    let lock = fs::read_dir(elsewhere.opening.dir.join("locks")).unwrap().next().unwrap().unwrap().path();
    let mut ours = place.repository();
    let backup = ok(ours.backups())[0].id.clone();
    let contents = Fetch::open(&mut ours, &backup).unwrap();
    fs::copy(lock, place.opening.dir.join("locks").join("0".repeat(64))).unwrap();
    for pack in place.files("data") {
        fs::remove_file(pack).unwrap();
    }
    let item = contents.listing().position(&template.root.join("first")).unwrap();
    for _ in 0..2 {
        let failure = contents.read(item, 0..300_000, &mut |_| panic!("it is gone")).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Locked, "{}", failure.in_full());
    }
    drop(contents);
    theirs.release().unwrap();
}

/// A repository with one backup, copied afresh for every round.
struct Template {
    place: Place,
    root: PathBuf,
}

impl Template {
    fn new() -> Self {
        let place = Place::new();
        let root = place.scratch();
        fs::write(root.join("first"), noise(1, 300_000)).unwrap();
        back_up(&mut place.repository(), &root, 1);
        fs::write(root.join("second"), noise(2, 300_000)).unwrap();
        Self { place, root }
    }

    fn copy(&self) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let mut opening = self.place.opening.clone();
        let target = dir.path().join("repository");
        copy_dir(&opening.dir, &target);
        opening.dir = target;
        Place { dir, journal: Arc::default(), opening }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// What the watchdog or the next run does for a dead one.
fn clean_up(journal: &Memory) {
    for undo in journal.open() {
        let Undo::RemoveLock { path } = undo else { panic!("{undo:?}") };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
}

fn listed(place: &Place) -> usize {
    ok(place.repository().backups()).len()
}

fn assert_whole(place: &Place, step: i64, end: End) {
    let report = place.repository().check(Depth::ReadData, &Silent).unwrap();
    assert!(report.is_good(), "{end:?} at step {step}: {:?}", report.problems);
}

#[test]
fn a_run_that_ends_at_any_write_leaves_what_was_listed() {
    let template = Template::new();
    each_end(|end| {
        for step in 0.. {
            assert!(step < 100, "a backup has fewer writes");
            let place = template.copy();
            let disk = Arc::new(Failing { left: AtomicI64::new(step), end });
            let mut dying = Repository::open_on(&place.opening, place.journal.clone(), disk.clone()).unwrap();
            let stored = run(&mut dying, &template.root);
            drop(dying);
            if disk.left.load(Ordering::SeqCst) >= 0 {
                assert!(stored, "nothing failed, but the backup did");
                assert!(step > 5, "a backup has more writes than {step}");
                break;
            }
            clean_up(&place.journal);
            let after = listed(&place);
            // A run that only could not take its lock back has listed its backup.
            assert!(after == 1 + usize::from(stored) || end == End::Silence, "{end:?} at {step}: {after}");
            assert_whole(&place, step, end);
            back_up(&mut place.repository(), &template.root, 3);
            assert_eq!(listed(&place), after + 1);
            ok(place.repository().reclaim(&Silent));
            assert_whole(&place, step, end);
            assert_eq!(leftovers(&place), 0, "{end:?} at step {step}");
        }
    });
}

/// Mostly waiting for locks to settle, so all at once.
fn each_end(rounds: impl Fn(End) + Sync) {
    std::thread::scope(|scope| {
        for end in [End::Error, End::Half, End::Silence] {
            let rounds = &rounds;
            scope.spawn(move || rounds(end));
        }
    });
}

/// A whole backup; whether it was listed.
fn run(repository: &mut Repository, root: &Path) -> bool {
    let live = manifest(root, at);
    let cut = cut(2, root);
    let result = repository
        .store_ahead(manifest(root, common::carried), &Silent)
        .and_then(|()| repository.store(live, &cut, &Silent))
        .and_then(|draft| {
            let backup = record(&cut, &draft);
            repository.publish(draft, &backup)
        });
    if let Err(failure) = &result {
        assert_eq!(failure.kind, FailureKind::Other, "{}", failure.in_full());
        assert!(failure.in_full().contains("Input/output error"), "{}", failure.in_full());
    }
    result.is_ok()
}

fn leftovers(place: &Place) -> usize {
    let of = |name: &str| {
        let is_left = |path: &&PathBuf| path.to_string_lossy().contains("-tmp-");
        place.files(name).iter().filter(is_left).count()
    };
    ["data", "index", "snapshots", "keys", "locks"].into_iter().map(of).sum()
}

#[test]
fn freeing_space_that_ends_at_any_step_leaves_what_was_listed() {
    let template = Template::new();
    let first = ok(template.place.repository().backups())[0].id.clone();
    back_up(&mut template.place.repository(), &template.root, 2);
    ok(template.place.repository().remove(&[first]));
    each_end(|end| {
        for step in 0.. {
            assert!(step < 100, "freeing has fewer steps");
            let place = template.copy();
            let disk = Arc::new(Failing { left: AtomicI64::new(step), end });
            let mut dying = Repository::open_on(&place.opening, place.journal.clone(), disk.clone()).unwrap();
            let freed = dying.reclaim(&Silent);
            drop(dying);
            if disk.left.load(Ordering::SeqCst) >= 0 {
                assert!(ok(freed).0 > 0);
                assert!(step > 4, "freeing has more steps than {step}");
                break;
            }
            assert!(freed.is_err(), "{end:?} at step {step} was not told");
            clean_up(&place.journal);
            assert_eq!(listed(&place), 1, "{end:?} at step {step}");
            assert_whole(&place, step, end);
            ok(place.repository().reclaim(&Silent));
            assert_whole(&place, step, end);
            assert_eq!(leftovers(&place), 0, "{end:?} at step {step}");
        }
    });
}

/// The log archive: some segments are stored, one of them is gone from the spool, then more come.
struct Logs {
    place: Place,
    _spool: tempfile::TempDir,
    archive: Archive,
}

impl Logs {
    fn new() -> Self {
        let (place, dir) = (Place::new(), tempfile::tempdir().unwrap());
        let mut archive = Archive::new(dir.path().join("logs"));
        archive.begin_epoch(1, Beginning::First);
        let first = archive.segment(&noise(1, 100_000));
        archive.segment(&noise(2, 100_000));
        let plan = LogsPlan::default();
        let stored = place.repository().store_logs(&owner(), &archive.catalogue(), &plan, &Silent).unwrap();
        archive.spool.discard(&archive.source, &first.epoch, 1, &stored.snapshot.unwrap()).unwrap();
        archive.segment(&noise(3, 100_000));
        archive.begin_segment();
        archive.append(&noise(4, 100_000));
        Self { place, _spool: dir, archive }
    }
}

#[test]
fn a_log_archive_whose_storing_ends_at_any_write_stays_listed_and_whole() {
    let logs = Logs::new();
    let template = Template { place: logs.place, root: PathBuf::new() };
    let catalogue = logs.archive.catalogue();
    each_end(|end| {
        for step in 0.. {
            assert!(step < 100, "storing has fewer writes");
            let place = template.copy();
            let disk = Arc::new(Failing { left: AtomicI64::new(step), end });
            let mut dying = Repository::open_on(&place.opening, place.journal.clone(), disk.clone()).unwrap();
            let stored = dying.store_logs(&owner(), &catalogue, &LogsPlan::default(), &Silent);
            drop(dying);
            if disk.left.load(Ordering::SeqCst) >= 0 {
                assert!(stored.is_ok() && step > 5, "{step} steps: {stored:?}");
                break;
            }
            clean_up(&place.journal);
            let read =
                place.repository().log_catalogue().unwrap().expect("one is listed at any moment").catalogue;
            let epoch = &read.sources[0].epochs[0];
            assert!([2, 4].contains(&epoch.segments.len()), "{end:?} at step {step}: {epoch:?}");
            assert_eq!(epoch.damaged, [], "{end:?} at step {step}");
            assert_whole(&place, step, end);
            let again =
                place.repository().store_logs(&owner(), &catalogue, &LogsPlan::default(), &Silent).unwrap();
            let snapshots = place.repository().log_snapshots().unwrap().len();
            assert_eq!((again.left, snapshots), (0, 1), "{end:?} at step {step}");
        }
    });
}
