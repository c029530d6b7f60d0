//! SQLite on a filesystem that clones, and restores seen by the `sqlite3` program. Needs root, loop devices,
//! `mkfs.xfs` and `sqlite3`; fails where one is missing.

mod sqlite_support;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use engines::sqlite::{Means, SqliteLock, probe};
use model::port::Hold;
use sqlite_support::{
    Actor, BOTH, Notebook, OfNotebook, Place, checked, cut, make_ledger, ok, output, pinner, plan, restore,
    run, source, wait_beyond,
};

fn main() -> ExitCode {
    run(&[
        ("every_clone_is_the_state_at_the_lock", every_clone_is_the_state_at_the_lock),
        ("sqlite3_opens_a_restore_over_leftovers", sqlite3_opens_a_restore),
        ("sqlite3_as_a_writer_is_held", sqlite3_is_held),
    ])
}

/// An XFS filesystem in a file, mounted until it is dropped.
struct Xfs {
    dir: tempfile::TempDir,
}

impl Xfs {
    fn mount() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        File::create(&image).and_then(|f| f.set_len(600 << 20)).expect("an image");
        let mount = dir.path().join("mount");
        fs::create_dir(&mount).expect("a directory");
        output(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image));
        output(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        fs::canonicalize(self.dir.path().join("mount")).expect("mounted")
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path().join("mount")).status();
        assert!(unmounted.is_ok_and(|s| s.success()) || thread::panicking(), "still mounted");
    }
}

fn lock(path: &Path) -> SqliteLock {
    let mut lock = SqliteLock::new(source(path), path, Means::of(&Notebook::new()));
    ok(lock.prepare());
    lock
}

fn every_clone_is_the_state_at_the_lock() {
    let xfs = Xfs::mount();
    for journal in BOTH {
        let app = xfs.root().join(format!("{journal:?}"));
        let staging = xfs.root().join(format!("staging-{journal:?}"));
        fs::create_dir(&app).and_then(|()| fs::create_dir(&staging)).expect("directories");
        let path = app.join("ledger.db");
        make_ledger(&path, journal);
        let facts = probe(source(&path), &path, &[PathBuf::from("/proc"), staging.clone()]);
        assert_eq!((facts.reflink, facts.staging), (true, Some(staging.clone())));
        assert!(facts.extents.is_some() && facts.refusal.is_none());
        let mut writers: Vec<Actor> = (0..3).map(|n| Actor::writer(&path, 50 + 4000 * n)).collect();
        let mut last = 0;
        for _ in 0..12 {
            wait_beyond(&path, last);
            let mut lock = lock(&path);
            let mut pinner = pinner(&plan(&path, &staging, journal, true), lock.holder(), None);
            let (state, harvest, pin) = cut(&mut lock, &mut pinner, &path);
            assert!(harvest.problems.is_empty(), "{:?}", harvest.problems);
            let target = tempfile::tempdir().expect("a directory");
            restore(&harvest, target.path());
            assert_eq!(checked(&target.path().join("ledger.db")), state, "{journal:?}");
            ok(pin.release());
            last = state.last;
        }
        assert!(writers.iter_mut().all(Actor::is_running), "{journal:?}: a writer failed");
        assert_eq!(fs::read_dir(&staging).expect("there").count(), 0);
    }
}

fn sqlite3(path: &Path, sql: &str) -> String {
    output(Command::new("sqlite3").arg(path).arg(sql)).trim().to_owned()
}

fn sqlite3_opens_a_restore() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let writer = Actor::writer(&place.path, 500);
        thread::sleep(Duration::from_millis(300));
        let mut lock = lock(&place.path);
        let mut pinner = pinner(&plan(&place.path, &place.staging, journal, false), lock.holder(), None);
        let (state, harvest, pin) = cut(&mut lock, &mut pinner, &place.path);
        thread::sleep(Duration::from_millis(200));
        drop(writer);
        drop(lock);
        // The writer was killed: its `-wal` and `-shm`, or its hot journal, lie where the restore goes.
        restore(&harvest, &place.root.join("app"));
        assert_eq!(sqlite3(&place.path, "PRAGMA integrity_check"), "ok");
        assert_eq!(sqlite3(&place.path, "SELECT max(id) FROM ledger"), state.last.to_string());
        assert_eq!(checked(&place.path), state);
        ok(pin.release());
    }
}

fn sqlite3_is_held() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let mut lock = lock(&place.path);
        let frozen = sqlite_support::freeze(&mut lock);
        let insert = "INSERT INTO items(body) VALUES ('x')";
        let refused = Command::new("sqlite3").arg(&place.path).arg(insert).output().expect("sqlite3");
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("locked"), "{refused:?}");
        assert_eq!(sqlite3(&place.path, "SELECT count(*) FROM items"), "0", "readers go on");
        ok(frozen.thaw());
        assert_eq!(sqlite3(&place.path, insert), "");
        assert_eq!(sqlite3(&place.path, "SELECT count(*) FROM items"), "1");
    }
}
