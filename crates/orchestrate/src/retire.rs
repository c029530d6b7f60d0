//! Retention carried out: what [`model::retention::plan`] decides is taken off the shelf, and the bytes that
//! no backup needs are freed. Also the acceptance of a backup that looks wrong (promise 6).
//!
//! Crash story: nothing is removed but by the plan's list of ids, in one call of the shelf. Stopped before it,
//! nothing has happened; stopped within it, fewer backups are listed, each of them one that the plan does
//! not keep, and the next plan says the same of the rest; stopped before the bytes are freed, they lie there
//! until the next [`carry_out`] with [`Reclaim::Always`], or one that removes something. Other runs may make
//! backups meanwhile: those are not in the plan, so they stay. If another run removed what this plan relies
//! on, nothing is removed.

use jiff::SignedDuration;
use model::{
    id::BackupId,
    inventory::{Keep, Settings},
    logs_retention::keep_bases,
    port::{Clock, Failure, FailureKind, Progress, Shelf},
    record::StoredBackup,
    retention::{self, RetentionPlan},
    size::Bytes,
};

/// When the bytes that no backup needs are freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reclaim {
    /// In any case: also what runs that died have left.
    Always,
    /// Only if a backup was removed.
    IfRemoved,
    /// By the caller, who has more to remove.
    Never,
}

/// What came of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// The backups that were removed.
    pub removed: Vec<BackupId>,
    /// The bytes that were freed, if that was tried.
    pub freed: Option<Bytes>,
}

/// Decides what stays and what goes. Changes nothing.
///
/// # Errors
/// If the repository cannot be read.
pub fn plan(shelf: &mut dyn Shelf, keep: &Keep, clock: &dyn Clock) -> Result<RetentionPlan, Failure> {
    Ok(retention::plan(&shelf.backups()?, keep, clock.now()))
}

/// The same by the settings of an application, which may ask for a point-in-time window besides: its bases stay.
///
/// # Errors
/// As [`plan`].
pub fn plan_by(
    shelf: &mut dyn Shelf,
    settings: &Settings,
    clock: &dyn Clock,
) -> Result<RetentionPlan, Failure> {
    let (backups, now) = (shelf.backups()?, clock.now());
    let mut plan = retention::plan(&backups, &settings.keep, now);
    if let Some(reach) = settings.point_in_time {
        let reach = SignedDuration::try_from(reach).unwrap_or(SignedDuration::MAX);
        keep_bases(&mut plan, &backups, reach, now);
    }
    Ok(plan)
}

/// Carries out a plan.
///
/// # Errors
/// [`FailureKind::Lost`] if a backup that the plan keeps is gone: then nothing is removed.
/// [`FailureKind::Locked`] if anyone else uses the repository.
pub fn carry_out(
    shelf: &mut dyn Shelf,
    plan: &RetentionPlan,
    reclaim: Reclaim,
    progress: &dyn Progress,
) -> Result<Retired, Failure> {
    let removed = plan.removed_ids();
    if !removed.is_empty() {
        all_kept_are_there(&shelf.backups()?, plan)?;
        shelf.remove(&removed)?;
    }
    let freed = match reclaim {
        Reclaim::Never => None,
        Reclaim::IfRemoved if removed.is_empty() => None,
        Reclaim::IfRemoved | Reclaim::Always => Some(shelf.reclaim(progress)?),
    };
    Ok(Retired { removed, freed })
}

/// A backup goes because others stay: they must still be there.
fn all_kept_are_there(listed: &[StoredBackup], plan: &RetentionPlan) -> Result<(), Failure> {
    match plan.keep.iter().find(|kept| !listed.iter().any(|b| b.id == kept.id)) {
        None => Ok(()),
        Some(gone) => Err(Failure::new(
            FailureKind::Lost,
            format!("backup {}, for whose sake others were to be removed, is gone", gone.id.short()),
            "another run has changed the repository; nothing was removed, run it again",
        )),
    }
}

/// Accepts the backup that `wanted` names, by its id or by the beginning of it: from now on it counts like any
/// other. Returns its new id.
///
/// # Errors
/// [`FailureKind::Refused`] if none or several are named so, if it does not look wrong, or if another program
/// made it; else what the repository says.
pub fn accept(shelf: &mut dyn Shelf, wanted: &str) -> Result<BackupId, Failure> {
    let listed = shelf.backups()?;
    let backup = the_one(&listed, wanted)?;
    if let Some(why) = &backup.damaged {
        let what = format!("backup {} is damaged: {why}", backup.id.short());
        return Err(refused(what, "run `stillpoint check`; bring its snapshot file back from another tier"));
    }
    if backup.record.is_none() {
        let what = format!("backup {} was made by another program", backup.id.short());
        return Err(refused(what, "it is never removed, so that there is nothing to accept"));
    }
    if retention::suspicion(backup).is_none() {
        let state = if backup.accepted { "has been accepted already" } else { "does not look wrong" };
        let what = format!("backup {} {state}", backup.id.short());
        return Err(refused(what, "it counts like any other; there is nothing to accept"));
    }
    shelf.accept(&backup.id)
}

fn the_one<'b>(listed: &'b [StoredBackup], wanted: &str) -> Result<&'b StoredBackup, Failure> {
    let mut found = listed.iter().filter(|b| !wanted.is_empty() && b.id.as_str().starts_with(wanted));
    match (found.next(), found.next()) {
        (Some(backup), None) => Ok(backup),
        (None, _) => {
            Err(refused(format!("there is no backup {wanted:?}"), "`stillpoint list` shows the ids"))
        }
        (Some(_), Some(_)) => {
            Err(refused(format!("several backups begin with {wanted:?}"), "give more digits of its id"))
        }
    }
}

fn refused(what: String, remedy: &str) -> Failure {
    Failure::new(FailureKind::Refused, what, remedy)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::{SignedDuration, Timestamp};
    use model::{
        cut::Stalls,
        id::{AppName, BackupId, CutId},
        inventory::{Keep, Settings},
        port::{Clock, Failure, FailureKind, Progress, Shelf, Silent},
        record::{BackupRecord, RECORD_VERSION, StoredBackup},
        size::Bytes,
        time::{Millis, Moment},
        verdict::Verdict,
    };

    use super::{Reclaim, Retired, accept, carry_out, plan, plan_by};

    const KEEP: Keep = Keep { last: 2, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };

    /// Backups in memory; removed ones leave 10 bytes each to be freed.
    #[derive(Default)]
    struct Memory {
        listed: Vec<StoredBackup>,
        garbage: u64,
        locked: bool,
    }

    impl Memory {
        fn free(&self) -> Result<(), Failure> {
            let failure = || Failure::new(FailureKind::Locked, "locked by another run", "wait");
            if self.locked { Err(failure()) } else { Ok(()) }
        }

        fn ids(&self) -> Vec<BackupId> {
            self.listed.iter().map(|b| b.id.clone()).collect()
        }
    }

    impl Shelf for Memory {
        fn backups(&mut self) -> Result<Vec<StoredBackup>, Failure> {
            Ok(self.listed.clone())
        }

        fn remove(&mut self, backups: &[BackupId]) -> Result<(), Failure> {
            self.free()?;
            self.listed.retain(|b| !backups.contains(&b.id));
            self.garbage += 10 * backups.len() as u64;
            Ok(())
        }

        fn reclaim(&mut self, _progress: &dyn Progress) -> Result<Bytes, Failure> {
            self.free()?;
            Ok(Bytes(std::mem::take(&mut self.garbage)))
        }

        fn accept(&mut self, backup: &BackupId) -> Result<BackupId, Failure> {
            let renamed = id(0xacc);
            let found = self.listed.iter_mut().find(|b| b.id == *backup);
            let found = found.ok_or_else(|| Failure::new(FailureKind::Other, "no such backup", ""))?;
            (found.accepted, found.id) = (true, renamed.clone());
            Ok(renamed)
        }
    }

    struct Noon;

    impl Clock for Noon {
        fn now(&self) -> Timestamp {
            "2026-11-20T12:00:00Z".parse().unwrap()
        }
        fn moment(&self) -> Moment {
            Moment(0)
        }
        fn sleep(&self, _duration: Duration) {}
    }

    fn id(number: u64) -> BackupId {
        BackupId::new(format!("{number:x}{}", "0".repeat(64 - format!("{number:x}").len()))).unwrap()
    }

    fn backup(number: u64, hours_ago: i64) -> StoredBackup {
        let received = Noon.now() - SignedDuration::from_hours(hours_ago);
        let record = BackupRecord {
            version: RECORD_VERSION,
            cut: CutId::at(received, [0, 0, 1]),
            application: AppName::new("hydro").unwrap(),
            verdict: Verdict::Consistent,
            looks_wrong: None,
            label: None,
            stalls: Stalls { total: Millis(1.0), downtime: None, per_hold: vec![] },
            files: 100,
            bytes: Bytes(1000),
            bytes_added: Bytes(10),
            duration_s: 1.0,
            problems: vec![],
            problem_count: 0,
            pins: vec![],
        };
        StoredBackup {
            id: id(number),
            time: received,
            received,
            record: Some(record),
            damaged: None,
            accepted: false,
        }
    }

    fn incomplete(mut backup: StoredBackup) -> StoredBackup {
        backup.record.as_mut().unwrap().verdict = Verdict::Incomplete;
        backup
    }

    fn shelf() -> Memory {
        let listed = vec![backup(0xa1, 4), backup(0xa2, 3), backup(0xb3, 2), incomplete(backup(0xb4, 1))];
        Memory { listed, ..Memory::default() }
    }

    #[test]
    fn what_the_plan_removes_is_removed_and_its_bytes_are_freed() {
        let mut shelf = shelf();
        let plan = plan(&mut shelf, &KEEP, &Noon).unwrap();
        let done = carry_out(&mut shelf, &plan, Reclaim::IfRemoved, &Silent).unwrap();
        assert_eq!(done, Retired { removed: vec![id(0xa1)], freed: Some(Bytes(10)) });
        assert_eq!(shelf.ids(), [id(0xa2), id(0xb3), id(0xb4)]);
    }

    #[test]
    fn the_base_of_a_window_stays() {
        let mut shelf = shelf();
        let window = |hours: u64| Settings {
            keep: KEEP,
            point_in_time: Some(Duration::from_secs(hours * 3600)),
            ..Settings::default()
        };
        assert_eq!(plan_by(&mut shelf, &window(4), &Noon).unwrap().removed_ids(), []);
        assert_eq!(plan_by(&mut shelf, &window(3), &Noon).unwrap().removed_ids(), [id(0xa1)]);
    }

    #[test]
    fn a_second_time_there_is_nothing_to_do() {
        let mut shelf = shelf();
        for freed in [Some(Bytes(10)), None] {
            let plan = plan(&mut shelf, &KEEP, &Noon).unwrap();
            assert_eq!(carry_out(&mut shelf, &plan, Reclaim::IfRemoved, &Silent).unwrap().freed, freed);
        }
    }

    #[test]
    fn what_a_dead_run_left_is_freed_when_asked() {
        let mut shelf = shelf();
        shelf.remove(&[id(0xa1)]).unwrap();
        let plan = plan(&mut shelf, &KEEP, &Noon).unwrap();
        let done = carry_out(&mut shelf, &plan, Reclaim::Always, &Silent).unwrap();
        assert_eq!(done, Retired { removed: vec![], freed: Some(Bytes(10)) });
    }

    #[test]
    fn nothing_is_removed_when_what_is_kept_is_gone() {
        let mut shelf = shelf();
        let plan = plan(&mut shelf, &KEEP, &Noon).unwrap();
        shelf.listed.retain(|b| b.id != id(0xb3));
        let before = shelf.ids();
        let failure = carry_out(&mut shelf, &plan, Reclaim::Always, &Silent).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Lost);
        assert_eq!(shelf.ids(), before);
    }

    #[test]
    fn a_backup_made_meanwhile_stays() {
        let mut shelf = shelf();
        let plan = plan(&mut shelf, &KEEP, &Noon).unwrap();
        shelf.listed.push(backup(0xc5, 0));
        carry_out(&mut shelf, &plan, Reclaim::IfRemoved, &Silent).unwrap();
        assert!(shelf.ids().contains(&id(0xc5)));
    }

    #[test]
    fn a_locked_repository_is_reported_and_left_alone() {
        let mut shelf = shelf();
        let plan = plan(&mut shelf, &KEEP, &Noon).unwrap();
        shelf.locked = true;
        let failure = carry_out(&mut shelf, &plan, Reclaim::IfRemoved, &Silent).unwrap_err();
        assert_eq!((failure.kind, shelf.listed.len()), (FailureKind::Locked, 4));
    }

    #[test]
    fn an_accepted_backup_counts_afterwards() {
        let mut shelf = shelf();
        assert_eq!(accept(&mut shelf, "b4").unwrap(), id(0xacc));
        let plan = plan(&mut shelf, &KEEP, &Noon).unwrap();
        assert_eq!(plan.removed_ids(), [id(0xa1), id(0xa2)]);
        assert_eq!(plan.alarms, []);
    }

    #[test]
    fn what_cannot_be_accepted_is_said_with_the_reason() {
        let mut shelf = shelf();
        shelf.listed[0].record = None;
        shelf.listed[1].accepted = true;
        let said = |shelf: &mut Memory, wanted: &str| accept(shelf, wanted).unwrap_err().what;
        assert_eq!(said(&mut shelf, "c"), "there is no backup \"c\"");
        assert_eq!(said(&mut shelf, ""), "there is no backup \"\"");
        assert_eq!(said(&mut shelf, "b"), "several backups begin with \"b\"");
        assert_eq!(said(&mut shelf, "a1"), "backup a1000000 was made by another program");
        assert_eq!(said(&mut shelf, "a2"), "backup a2000000 has been accepted already");
        assert_eq!(said(&mut shelf, "b3"), "backup b3000000 does not look wrong");
        assert!(shelf.listed.iter().all(|b| b.id != id(0xacc)), "nothing was accepted");
    }
}
