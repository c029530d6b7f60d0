//! A backup of trees in memory, and the way from its request to its report.

use std::{path::Path, sync::Arc};

use jiff::Timestamp;
use model::{
    cut::Stalls,
    id::{AppName, BackupId, CutId, SourceId},
    port::{Clock, Failure, Journal, Silent},
    record::{BackupRecord, PinNote, RECORD_VERSION, StoredBackup},
    restore::{Request, RestorePlan, RestoreReport, Target},
    size::Bytes,
    time::Millis,
    verdict::Verdict,
};
use orchestrate::restore::{Job, plan, run};
use os::{clock::SystemClock, site::LocalSite};
use testkit::fakes::{journal::MemoryJournal, restore::MemoryBackup};

fn stored(pins: &[(&str, &Path)]) -> StoredBackup {
    let pins = pins
        .iter()
        .map(|(kind, path)| PinNote {
            source: SourceId::new(kind, path.display()),
            method: "test".into(),
            path: path.to_path_buf(),
        })
        .collect();
    let record = BackupRecord {
        version: RECORD_VERSION,
        cut: CutId::at(Timestamp::UNIX_EPOCH, [1, 2, 3]),
        application: AppName::new("hydro").unwrap(),
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
        pins,
    };
    StoredBackup {
        id: BackupId::new("ab".repeat(32)).unwrap(),
        time: Timestamp::UNIX_EPOCH,
        received: Timestamp::UNIX_EPOCH,
        record: Some(record),
        damaged: None,
        accepted: false,
    }
}

pub fn request(target: Target, pins: &[(&str, &Path)]) -> Request {
    Request {
        application: AppName::new("hydro").unwrap(),
        backup: stored(pins),
        target,
        read_back: true,
        trust_copies: false,
        keep_out: vec![],
        has_hooks: false,
        accept_incomplete: false,
        servers: vec![],
        only: vec![],
    }
}

pub const IN_PLACE: Target = Target::InPlace { keep_old: false };

pub fn execute(
    plan: &RestorePlan,
    backup: &MemoryBackup,
    journal: Arc<dyn Journal>,
) -> Result<RestoreReport, Failure> {
    let clock: &dyn Clock = &SystemClock;
    let job = Job { contents: backup, site: &LocalSite, journal, clock, progress: &Silent, threads: 3 };
    run(plan, &job, None)
}

pub fn restore(request: &Request, backup: &MemoryBackup) -> Result<RestoreReport, Failure> {
    let plan = plan(request, backup, &LocalSite)?;
    println!("{}", plan.describe().join("\n"));
    let journal = Arc::new(MemoryJournal::default());
    let report = execute(&plan, backup, journal.clone());
    assert_eq!(journal.open(), [], "nothing is left to undo");
    report
}
