//! Restores on this machine's filesystem, as an ordinary user: what comes back is what was there, or nothing
//! was touched.

#![allow(clippy::print_stdout, reason = "seeds and plans are shown when a test fails")]

mod job;
mod trees;

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use job::{IN_PLACE, execute, request, restore};
use model::{
    port::{Clock, Failure, FailureKind, Journal},
    problem::Effect,
    restore::{Exchange, Request, Target},
    time::{Deadline, Moment},
    undo::{Ticket, Undo},
};
use orchestrate::restore::plan;
use os::{clock::SystemClock, site::LocalSite, undo};
use testkit::fakes::{journal::MemoryJournal, restore::MemoryBackup};
use trees::{Content, assert_same, back_up, contents, grow, leftovers, open_up, portrait};

/// The new tree is the old one to the last attribute.
#[test]
fn a_tree_with_everything_comes_back_in_another_place() {
    for seed in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let (tree, target) = (dir.path().join("tree"), dir.path().join("restored"));
        let content = grow(&tree, seed);
        let wanted = portrait(&tree);
        let backup = back_up(&[&tree], &content);
        let report = restore(&request(Target::Directory { dir: target.clone() }, &[]), &backup).unwrap();
        let worst: Vec<_> = report.problems.iter().filter(|p| p.effect != Effect::Note).collect();
        assert!(worst.is_empty(), "{worst:?}");
        let restored = target.join(tree.strip_prefix("/").unwrap());
        assert_same(&portrait(&restored), &wanted);
        let relative: Content =
            content.into_iter().map(|(p, b)| (p.strip_prefix(&tree).unwrap().to_owned(), b)).collect();
        assert_eq!(contents(&restored), relative);
        assert_eq!(report.files, relative.len() as u64);
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o700, "closed to others");
        assert!(leftovers(dir.path()).is_empty());
        open_up(dir.path());
    }
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("restored"));
    fs::create_dir(&tree).unwrap();
    File::create(tree.join("sparse")).unwrap().set_len(64 << 20).unwrap();
    let backup = back_up(&[&tree], &Content::new());
    restore(&request(Target::Directory { dir: target.clone() }, &[]), &backup).unwrap();
    let restored = target.join(tree.strip_prefix("/").unwrap()).join("sparse").metadata().unwrap();
    assert_eq!(restored.len(), 64 << 20);
    assert!(restored.blocks() * 512 < 1 << 20, "{} blocks", restored.blocks());
}

#[test]
fn an_empty_directory_is_taken_and_a_full_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("restored"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&target).unwrap();
    let backup = back_up(&[&tree], &Content::new());
    let wish = request(Target::Directory { dir: target.clone() }, &[]);
    restore(&wish, &backup).unwrap();
    let again = restore(&wish, &backup).unwrap_err();
    assert_eq!(again.kind, FailureKind::Refused);
    assert!(again.what.contains("not empty"), "{}", again.what);
}

#[test]
fn a_damaged_file_leaves_a_tree_that_says_that_it_is_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("restored"));
    let content = grow(&tree, 7);
    let mut backup = back_up(&[&tree], &content);
    let bad =
        backup.bytes.iter().find(|(p, b)| !b.is_empty() && trees::look(p).meta.links == 1).unwrap().0.clone();
    backup.fail.insert(bad.clone(), FailureKind::Damaged);
    let report = restore(&request(Target::Directory { dir: target.clone() }, &[]), &backup).unwrap();
    assert!(!report.is_complete());
    assert!(report.problems.iter().any(|p| p.path.as_ref() == Some(&bad)), "it is named");
    assert!(!target.exists(), "the name asked for appears only when all is there");
    let left = report.places[0].join(tree.strip_prefix("/").unwrap());
    assert!(report.places[0].display().to_string().contains("incomplete"));
    let restored = contents(&left);
    assert_eq!(restored.len(), content.len() - 1, "all the others are there");
    assert!(!left.join(bad.strip_prefix(&tree).unwrap()).exists());
    open_up(dir.path());
}

#[test]
fn a_full_disk_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("restored"));
    let content = grow(&tree, 8);
    let mut backup = back_up(&[&tree], &content);
    backup.fail.insert(content.keys().next().unwrap().clone(), FailureKind::NoSpace);
    let failure = restore(&request(Target::Directory { dir: target.clone() }, &[]), &backup).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoSpace);
    assert!(!target.exists());
    assert!(leftovers(dir.path()).is_empty());
    open_up(dir.path());
}

/// A tree that was backed up and has changed since, with a database inside and one outside.
struct Changed {
    dir: tempfile::TempDir,
    tree: PathBuf,
    outer: PathBuf,
    backup: MemoryBackup,
    then: [std::collections::BTreeMap<PathBuf, String>; 2],
}

fn changed(seed: u64) -> Changed {
    let dir = tempfile::tempdir().unwrap();
    let (tree, data) = (dir.path().join("var"), dir.path().join("data"));
    fs::create_dir(&data).unwrap();
    let outer = data.join("outer.sqlite3");
    let content = grow(&tree, seed);
    for name in ["outer.sqlite3", "outer.sqlite3-wal", "outer.sqlite3-journal"] {
        fs::write(data.join(name), if name.ends_with('3') { "database" } else { "" }).unwrap();
    }
    let files = ["outer.sqlite3", "outer.sqlite3-wal", "outer.sqlite3-journal"].map(|n| data.join(n));
    let backup = back_up(&[&tree, &files[0], &files[1], &files[2]], &content);
    let then = [portrait(&tree), portrait(&data)];
    // Life goes on.
    open_up(&tree);
    fs::remove_dir_all(tree.join("d".repeat(250))).unwrap();
    fs::create_dir(tree.join("cache")).unwrap();
    fs::write(tree.join("cache/x"), "excluded").unwrap();
    fs::write(tree.join("newer"), "newer").unwrap();
    fs::write(&outer, "a younger database").unwrap();
    fs::write(data.join("outer.sqlite3-wal"), "leftover").unwrap();
    fs::write(data.join("outer.sqlite3-shm"), "leftover").unwrap();
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o711)).unwrap();
    Changed { tree, outer, backup, then, dir }
}

impl Changed {
    fn request(&self, target: Target) -> Request {
        request(target, &[("directory", &self.tree), ("sqlite", &self.outer)])
    }

    fn now(&self) -> [std::collections::BTreeMap<PathBuf, String>; 2] {
        [portrait(&self.tree), portrait(self.outer.parent().unwrap())]
    }
}

/// Times of the directory that holds the database are not restored: it is no source.
fn without_root(
    mut portrait: std::collections::BTreeMap<PathBuf, String>,
) -> std::collections::BTreeMap<PathBuf, String> {
    portrait.remove(Path::new(""));
    portrait
}

#[test]
fn in_place_everything_is_as_it_was_then() {
    let changed = changed(11);
    let plan = plan(&changed.request(IN_PLACE), &changed.backup, &LocalSite).unwrap();
    let said = plan.describe().join("\n");
    assert!(said.contains("names there now are not in the backup"), "{said}");
    let report = restore(&changed.request(IN_PLACE), &changed.backup).unwrap();
    assert!(report.is_complete(), "{:?}", report.problems);
    let [tree, data] = changed.now();
    assert_same(&tree, &changed.then[0]);
    let [_, then] = changed.then.clone();
    assert_same(&without_root(data), &without_root(then));
    assert!(leftovers(changed.dir.path()).is_empty());
    assert!(leftovers(changed.outer.parent().unwrap()).is_empty());
    open_up(changed.dir.path());
}

/// As a mount point is replaced: the plan is given the rule, since only root can mount.
#[test]
fn a_root_that_cannot_be_renamed_is_exchanged_name_by_name() {
    let changed = changed(17);
    let inode = changed.tree.metadata().unwrap().ino();
    let mut plan = plan(&changed.request(IN_PLACE), &changed.backup, &LocalSite).unwrap();
    let part = plan.parts.iter_mut().find(|p| p.to == changed.tree).unwrap();
    part.exchange = Exchange::Children("it is a mount point".into());
    part.beside = changed.tree.clone();
    let journal = Arc::new(MemoryJournal::default());
    let report = execute(&plan, &changed.backup, journal.clone()).unwrap();
    assert_eq!(journal.open(), []);
    assert!(report.is_complete(), "{:?}", report.problems);
    assert_same(&changed.now()[0], &changed.then[0]);
    assert_eq!(changed.tree.metadata().unwrap().ino(), inode, "the root itself stays");
    open_up(changed.dir.path());
}

#[test]
fn what_was_there_is_kept_if_asked() {
    let changed = changed(12);
    let report = restore(&changed.request(Target::InPlace { keep_old: true }), &changed.backup).unwrap();
    assert_eq!(report.kept.len(), 2, "one beside each parent");
    let old: Vec<String> = report
        .kept
        .iter()
        .flat_map(|k| [k.join("old/var/newer"), k.join("old/outer.sqlite3-wal")])
        .filter_map(|p| fs::read_to_string(p).ok())
        .collect();
    assert_eq!(old.len(), 2, "{:?}", report.kept);
    assert!(report.kept.iter().all(|k| k.display().to_string().contains(".stillpoint-old-")));
    open_up(changed.dir.path());
}

#[test]
fn in_place_a_damaged_file_changes_nothing() {
    let mut changed = changed(13);
    let before = changed.now();
    let bad = changed.backup.bytes.iter().find(|(_, b)| b.len() > 10).unwrap().0.clone();
    changed.backup.fail.insert(bad, FailureKind::Damaged);
    let failure = restore(&changed.request(IN_PLACE), &changed.backup).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged);
    assert_same(&changed.now()[0], &before[0]);
    assert!(leftovers(changed.dir.path()).is_empty());
    open_up(changed.dir.path());
}

#[test]
fn an_open_database_is_not_replaced() {
    let changed = changed(14);
    let before = changed.now();
    let open = File::open(&changed.outer).unwrap();
    let failure = restore(&changed.request(IN_PLACE), &changed.backup).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.what.contains(&std::process::id().to_string()), "{}", failure.what);
    drop(open);
    assert_same(&changed.now()[0], &before[0]);
    restore(&changed.request(IN_PLACE), &changed.backup).unwrap();
    open_up(changed.dir.path());
}

/// A journal whose n-th entry and all later ones cannot be written: the run cannot go on from there.
struct FailingJournal {
    inner: MemoryJournal,
    left: std::sync::atomic::AtomicUsize,
}

impl FailingJournal {
    fn spend(&self) -> Result<(), Failure> {
        use std::sync::atomic::Ordering::SeqCst;
        self.left
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
            .map(|_| ())
            .map_err(|_| Failure::new(FailureKind::NoSpace, "the journal is full", ""))
    }
}

impl Journal for FailingJournal {
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure> {
        self.spend()?;
        self.inner.intend(undo, until)
    }
    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure> {
        self.spend()?;
        self.inner.amend(ticket, undo, until)
    }
    fn done(&self, ticket: Ticket) {
        self.inner.done(ticket);
    }
}

#[test]
fn a_journal_that_fails_at_any_line_leaves_the_old_state() {
    for lines in 0..5 {
        let changed = changed(15);
        let before = changed.now();
        let journal = Arc::new(FailingJournal { inner: MemoryJournal::default(), left: lines.into() });
        let plan = plan(&changed.request(IN_PLACE), &changed.backup, &LocalSite).unwrap();
        // Two staging directories, the swap, that it replaces them, the point of no return.
        execute(&plan, &changed.backup, journal.clone()).unwrap_err();
        assert_eq!(journal.inner.open(), [], "{lines}");
        assert_same(&changed.now()[0], &before[0]);
        assert_same(&without_root(changed.now()[1].clone()), &without_root(before[1].clone()));
        assert!(leftovers(changed.dir.path()).is_empty());
        open_up(changed.dir.path());
    }
}

/// A name that cannot be changed in the middle of the swap: everything is taken back.
#[test]
fn a_swap_that_fails_in_the_middle_is_taken_back() {
    let changed = changed(16);
    let plan = plan(&changed.request(IN_PLACE), &changed.backup, &LocalSite).unwrap();
    let before = changed.now();
    let journal = Arc::new(Meddler { inner: MemoryJournal::default(), with: changed.outer.clone() });
    let failure = execute(&plan, &changed.backup, journal.clone()).unwrap_err();
    assert!(failure.what.contains("as it was before"), "{}", failure.in_full());
    assert_eq!(journal.inner.open(), []);
    assert_same(&changed.now()[0], &before[0]);
    open_up(changed.dir.path());
}

/// Removes a file when it hears of the swap: its rename fails, as one by somebody else's hand would.
struct Meddler {
    inner: MemoryJournal,
    with: PathBuf,
}

impl Journal for Meddler {
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure> {
        if matches!(undo, Undo::SwapBack { .. }) {
            fs::remove_file(&self.with).unwrap();
        }
        self.inner.intend(undo, until)
    }
    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure> {
        self.inner.amend(ticket, undo, until)
    }
    fn done(&self, ticket: Ticket) {
        self.inner.done(ticket);
    }
}

/// Writes every line to a file before it says so, as the real one does.
struct PaperJournal(PathBuf);

impl PaperJournal {
    fn write(&self, line: &str) {
        use std::io::Write;
        let mut file = File::options().append(true).create(true).open(&self.0).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// What a dead run left open, newest first.
    fn open(&self) -> Vec<Undo> {
        let mut open = std::collections::BTreeMap::new();
        for line in fs::read_to_string(&self.0).unwrap_or_default().lines() {
            let (ticket, undo) = line.split_once(' ').unwrap();
            let ticket: u64 = ticket.parse().unwrap();
            match serde_json::from_str::<Option<Undo>>(undo).unwrap() {
                Some(undo) => open.insert(ticket, undo),
                None => open.remove(&ticket),
            };
        }
        open.into_values().rev().collect()
    }
}

impl Journal for PaperJournal {
    fn intend(&self, undo: Undo, _: Option<Deadline>) -> Result<Ticket, Failure> {
        let Moment(now) = SystemClock.moment();
        self.write(&format!("{now} {}", serde_json::to_string(&undo).unwrap()));
        Ok(Ticket(now))
    }
    fn amend(&self, ticket: Ticket, undo: Undo, _: Option<Deadline>) -> Result<(), Failure> {
        self.write(&format!("{} {}", ticket.0, serde_json::to_string(&undo).unwrap()));
        Ok(())
    }
    fn done(&self, ticket: Ticket) {
        self.write(&format!("{} null", ticket.0));
    }
}

/// Killed at any moment and undone from the journal: the old state or the new, nothing else, nothing left.
#[test]
fn killed_anywhere_and_undone_it_is_the_old_state_or_the_new() {
    let (mut old, mut new) = (0, 0);
    for round in 0..16_u64 {
        let changed = changed(100 + round);
        let before = changed.now();
        let plan = plan(&changed.request(IN_PLACE), &changed.backup, &LocalSite).unwrap();
        let paper = changed.dir.path().join("journal");
        // SAFETY: the child only restores and ends without unwinding or running what belongs to the parent.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let done = execute(&plan, &changed.backup, Arc::new(PaperJournal(paper)));
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        // Most of the time goes into writing beside: wait for the swap in most rounds.
        let journal = PaperJournal(paper);
        if round % 4 != 0 {
            let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !fs::read_to_string(&journal.0).unwrap_or_default().contains("swap-back") {
                assert!(std::time::Instant::now() < until, "the child does not get to the swap");
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_micros(round * 61 % 1500));
        } else {
            std::thread::sleep(std::time::Duration::from_millis(round));
        }
        // SAFETY: signals and reaps a child that is ours.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        for undo in journal.open() {
            undo::perform(&undo).unwrap();
        }
        let [tree, data] = changed.now();
        if tree == before[0] {
            old += 1;
            assert_same(&without_root(data), &without_root(before[1].clone()));
        } else {
            new += 1;
            assert_same(&tree, &changed.then[0]);
            assert_same(&without_root(data), &without_root(changed.then[1].clone()));
        }
        assert!(leftovers(changed.dir.path()).is_empty(), "round {round}");
        open_up(changed.dir.path());
    }
    println!("{old} rounds ended old, {new} new");
    assert!(old > 0, "no round was killed before the end");
}
