//! What a server's files pinned as one source say, with stand-ins for what pins them.
//!
//! Crash story: temporary directories only.
//!
//! Crash story: tests; temporary directories only.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use model::{
    entry::{Harvest, Manifest},
    id::SourceId,
    known::Known,
    plan::{PinMethod, PinPlan, ServerPlan, ServerRootPlan, TreePlan},
    port::{Clock, Difference, Failure, FailureKind, Journal, Pin, Pinner, Progress, Silent},
    server::{
        BinlogPosition, Flavor, Gtids, RootRole, ServerAccess, ServerAddress, ServerPosition, ServerVersion,
        Volume,
    },
    time::Deadline,
    verdict::Stillness,
};
use os::clock::{SystemClock, deadline_in};
use testkit::fakes::journal::MemoryJournal;

use super::{CutLock, FilesForm, FilesPinner};
use crate::fs::Volumes;

/// A lock that is held, and whose server confirms or contradicts its position.
struct Locked {
    locked: bool,
    confirms: bool,
}

impl CutLock for Locked {
    fn is_locked(&self) -> bool {
        self.locked
    }
    fn position(&self) -> Option<ServerPosition> {
        let binlog = Some(BinlogPosition { file: "binlog.000042".into(), offset: 1234 });
        Some(ServerPosition { binlog, gtid: Some(Gtids("0-1-77".into())), ..ServerPosition::default() })
    }
    fn confirm_position(&self, _within: Duration) -> Result<String, Failure> {
        if self.confirms {
            return Ok("confirmed".to_owned());
        }
        Err(Failure::new(FailureKind::Damaged, "the GTIDs belong to another place", ""))
    }
}

fn root(path: &Path, volume: Option<Volume>) -> ServerRootPlan {
    let tree = TreePlan { root: path.to_owned(), exclude: vec![], carved: vec![], nested_mounts: vec![] };
    ServerRootPlan { role: RootRole::Data, tree, volume, size: None, staging: path.join("staging") }
}

fn plan(roots: Vec<ServerRootPlan>, server_held: bool) -> ServerPlan {
    let version = ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 19), text: "10.11.19".into() };
    let access = ServerAccess {
        flavor: Flavor::MariaDb,
        address: ServerAddress::Socket("/run/s".into()),
        user: None,
        password_file: None,
        option_file: None,
        tls_ca: None,
    };
    ServerPlan {
        access,
        version,
        server_id: 7,
        roots,
        databases: vec![],
        settings: BTreeMap::new(),
        engines: vec![],
        beside: None,
        server_held,
    }
}

fn pinner(plan: &ServerPlan, form: FilesForm, lock: Locked) -> Result<FilesPinner, Failure> {
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let volumes = Volumes::new(journal.clone(), clock.clone(), PathBuf::from("/nonexistent"));
    let method = PinMethod::ServerReflink(plan.clone());
    let (source, staging) = (SourceId::new("mariadb", "/run/s"), PathBuf::from("/nonexistent"));
    let pin = PinPlan { source, method, staging, why: String::new() };
    FilesPinner::new(&pin, plan, form, lock, &volumes, Arc::new(Vec::new), journal, clock)
}

fn volume(name: &str) -> Option<Volume> {
    Some(Volume::Btrfs { subvolume: PathBuf::from(name) })
}

const HELD: Locked = Locked { locked: true, confirms: true };

#[test]
fn a_plan_that_gives_no_whole_copy_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |roots, held, form| pinner(&plan(roots, held), form, HELD).err().map(|f| f.kind);
    let one = |name| root(dir.path(), volume(name));
    assert_eq!(refused(vec![], true, FilesForm::Reflink), Some(FailureKind::Refused));
    assert_eq!(refused(vec![root(dir.path(), None)], true, FilesForm::Volumes), Some(FailureKind::Refused));
    assert_eq!(refused(vec![one("/a")], false, FilesForm::Reflink), Some(FailureKind::Refused));
    assert_eq!(refused(vec![one("/a"), one("/b")], false, FilesForm::Volumes), Some(FailureKind::Refused));
    assert_eq!(refused(vec![one("/a"), one("/a")], false, FilesForm::Volumes), None);
    assert_eq!(refused(vec![one("/a"), one("/b")], true, FilesForm::Volumes), None);
}

/// Counts the pins that are there.
struct Counting {
    there: Arc<AtomicUsize>,
    fails: bool,
    answer: Stillness,
}

struct Counted(Arc<AtomicUsize>, Stillness);

impl Pinner for Counting {
    fn source(&self) -> SourceId {
        SourceId::new("mariadb", "/run/s")
    }
    fn prepare(&mut self, _known: &Known) -> Result<Option<Manifest>, Failure> {
        Ok(None)
    }
    fn round(&mut self) -> Result<Difference, Failure> {
        Ok(Difference { files: 1, bytes: model::size::Bytes(10) })
    }
    fn pin(&mut self, _until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        if self.fails {
            return Err(Failure::new(FailureKind::TimedOut, "too slow", ""));
        }
        self.there.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Counted(Arc::clone(&self.there), self.answer.clone())))
    }
}

impl Pin for Counted {
    fn unchanged(&mut self, _until: Deadline) -> Result<Stillness, Failure> {
        Ok(self.1.clone())
    }
    fn harvest(&mut self, _progress: &dyn Progress) -> Result<Harvest, Failure> {
        Ok(Harvest::default())
    }
    fn release(self: Box<Self>) -> Result<(), Failure> {
        self.0.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A pinner of two volumes' worth of stand-ins, which need nobody held.
fn of_stand_ins(answers: [Stillness; 2], last_fails: bool, lock: Locked) -> (FilesPinner, Arc<AtomicUsize>) {
    let dir = tempfile::tempdir().unwrap();
    let mut whole =
        pinner(&plan(vec![root(dir.path(), volume("/a"))], false), FilesForm::Volumes, lock).unwrap();
    let there = Arc::new(AtomicUsize::new(0));
    let [first, last] = answers;
    let inner = |answer, fails| Box::new(Counting { there: Arc::clone(&there), fails, answer });
    whole.inner = vec![inner(first, false), inner(last, last_fails)];
    (whole, there)
}

fn snapshot(name: &str) -> Stillness {
    Stillness::AtomicSnapshot(name.to_owned())
}

#[test]
fn one_snapshot_is_evidence_and_two_are_none() {
    let soon = deadline_in(Duration::from_secs(5));
    let answer = |answers| {
        let (mut whole, _) = of_stand_ins(answers, false, HELD);
        whole.pin(soon).unwrap().unchanged(soon).unwrap()
    };
    assert_eq!(answer([snapshot("a"), snapshot("a")]), snapshot("a"));
    assert!(matches!(answer([snapshot("a"), snapshot("b")]), Stillness::NotShown(_)));
    let doubt = Stillness::NotShown("it moved".to_owned());
    assert_eq!(answer([snapshot("a"), doubt.clone()]), doubt);
}

#[test]
fn what_was_pinned_before_one_failed_is_released() {
    let (mut whole, there) = of_stand_ins([snapshot("a"), snapshot("a")], true, HELD);
    let failure = whole.pin(deadline_in(Duration::from_secs(5))).err().unwrap();
    assert_eq!((failure.kind, there.load(Ordering::SeqCst)), (FailureKind::TimedOut, 0));
    assert_eq!(whole.round().unwrap(), Difference { files: 2, bytes: model::size::Bytes(20) });
}

#[test]
fn nothing_is_pinned_without_its_lock() {
    let lock = Locked { locked: false, confirms: true };
    let (mut whole, there) = of_stand_ins([snapshot("a"), snapshot("a")], false, lock);
    let failure = whole.pin(deadline_in(Duration::from_secs(5))).err().unwrap();
    assert_eq!((failure.kind, there.load(Ordering::SeqCst)), (FailureKind::Lost, 0));
}

#[test]
fn the_position_is_recorded_and_what_contradicts_it_is_a_problem() {
    let soon = deadline_in(Duration::from_secs(5));
    for confirms in [true, false] {
        let lock = Locked { locked: true, confirms };
        let (mut whole, there) = of_stand_ins([snapshot("a"), snapshot("a")], false, lock);
        let mut pin = whole.pin(soon).unwrap();
        let harvest = pin.harvest(&Silent).unwrap();
        assert_eq!(harvest.checks[0], "position binlog.000042:1234 (gtid 0-1-77)");
        assert_eq!(harvest.checks.len(), if confirms { 2 } else { 1 });
        assert_eq!(harvest.problems.len(), usize::from(!confirms));
        let record = harvest.server.unwrap();
        assert_eq!((record.server_id, record.roots.len()), (7, 1));
        pin.release().unwrap();
        assert_eq!(there.load(Ordering::SeqCst), 0);
    }
}
