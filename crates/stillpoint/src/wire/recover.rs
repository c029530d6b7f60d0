//! Point-in-time recovery, wired: what the log archive of an application holds, which backup and which of its segments bring
//! a moment back, and the segments made ready for a replay.
//!
//! Crash story: reads only, until [`ready`], whose copies lie in a journalled staging directory. Segments that are
//! stored or closed meanwhile are linked or copied there first, and compared with their sidecars before anything is
//! restored.

pub mod archive;
mod legs;
mod statements;
mod wal;

use std::{collections::BTreeMap, fs};

use engines::server::physical::Forward;
use jiff::Timestamp;
use model::{
    id::SourceId,
    inventory::Application,
    logs::LogKind,
    port::{Failure, FailureKind, Progress, Shelf},
    record::{CutRecord, StoredBackup},
    recovery::{Asked, Base, BaseFrom, Gap, Goal, Recovery, RecoveryPlan, Run as LogRun, find, runs},
    server::ServerForm,
};
use os::staging::Staging;
use vault::repository::Repository;

use self::{
    archive::{Archive, Log, databases as databases_of},
    legs::Transactions,
};
use super::{restore::staging, run::Run};

pub use self::{
    statements::{Statement, around},
    wal::{Wal, WalTarget},
};

/// A plan, and the backup that it begins with.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The plan.
    pub plan: RecoveryPlan,
    /// The backup.
    pub backup: StoredBackup,
}

/// What is replayed into a copy of a server.
#[derive(Clone, Copy)]
pub struct Roll<'a> {
    /// The log.
    pub forward: &'a Forward,
    /// What it does.
    pub recovery: &'a Recovery,
    /// Where it is told how far it is.
    pub progress: &'a dyn Progress,
}

/// Segments that are ready for a replay.
pub struct Ready {
    forwards: BTreeMap<SourceId, (Forward, Recovery)>,
    wals: Vec<Wal>,
    staging: Option<Staging>,
}

/// Chooses base, segments and stop for every archived database of an application; nothing if it has no archive at all.
///
/// # Errors
/// The hole that is in the way, with the nearest moments that can be restored; if something cannot be read.
pub fn plan(
    run: &Run<'_>,
    application: &Application,
    repository: &mut Repository,
    goal: &Goal,
) -> Result<Option<Planned>, Failure> {
    let mut archive = Archive::read(run, application, repository)?;
    let logs = std::mem::take(&mut archive.logs);
    if logs.is_empty() {
        return archive
            .repository()
            .log_doubt()
            .map_err(Failure::from)?
            .map_or(Ok(None), |doubt| Err(doubt.into()));
    }
    let mut backups = archive.repository().backups()?;
    backups.sort_by_key(|backup| std::cmp::Reverse(backup.time));
    let mut tried: Vec<Base> = Vec::new();
    let (mut first, mut dump): (Option<Failure>, Option<Failure>) = (None, None);
    for backup in &backups {
        let Some(cut) = archive.repository().cut_record(&backup.id).map_err(Failure::from)? else { continue };
        let bases = Base::of_backup(&backup.id, &cut);
        let is_late = matches!(goal, Goal::At(time) if backup.time > *time);
        tried.extend(bases.iter().cloned());
        if is_late {
            continue;
        }
        match with_backup(&mut archive, &logs, &cut, &bases, goal) {
            Ok(databases) => return Ok(Some(planned(application, goal, backup, databases))),
            Err(Stopped::Gap(_)) if first.is_some() => {}
            Err(Stopped::Gap(gap)) => first = Some(refused(&gap)),
            Err(Stopped::Dump(failure)) => dump = dump.or(Some(failure)),
            Err(Stopped::Failed(failure)) => return Err(failure),
        }
    }
    // An older one may have been of files.
    if let Some(failure) = dump {
        return Err(failure);
    }
    // With all copies at hand the nearest moments can be named.
    for log in &logs {
        let of: Vec<Base> = tried.iter().filter(|base| base.source == log.source).cloned().collect();
        if let Err(Stopped::Gap(gap)) = one(&mut archive, log, &of, goal) {
            return Err(refused(&gap));
        }
    }
    let none = || {
        Failure::new(
            FailureKind::Refused,
            format!("no backup brings {goal} back"),
            "see `stillpoint coverage`",
        )
    };
    Err(first.unwrap_or_else(none))
}

enum Stopped {
    Gap(Box<Gap>),
    /// The backup has a dump.
    Dump(Failure),
    Failed(Failure),
}

impl From<Gap> for Stopped {
    fn from(gap: Gap) -> Self {
        Self::Gap(Box::new(gap))
    }
}

fn refused(gap: &Gap) -> Failure {
    let remedy = "`stillpoint coverage` shows what can be restored; --backup restores a backup as it is";
    Failure::new(FailureKind::Refused, gap.to_string(), remedy)
}

fn with_backup(
    archive: &mut Archive<'_>,
    logs: &[Log],
    cut: &CutRecord,
    bases: &[Base],
    goal: &Goal,
) -> Result<Vec<Recovery>, Stopped> {
    let mut databases = Vec::new();
    // Places of servers say what moment is meant for the others.
    let mut goal = goal.clone();
    let servers_first = logs.iter().filter(|log| log.kind == LogKind::Binlog);
    for log in servers_first.chain(logs.iter().filter(|log| log.kind == LogKind::SqliteWal)) {
        let form = cut.servers.iter().find(|server| server.source == log.source).map(|server| server.form);
        if form == Some(ServerForm::Dump) {
            let what = format!("{} is stored as a dump, onto which no log can be replayed", log.source);
            let remedy = "back it up as a whole server, or restore a backup with --backup";
            return Err(Stopped::Dump(Failure::new(FailureKind::Refused, what, remedy)));
        }
        let of: Vec<Base> = bases.iter().filter(|base| base.source == log.source).cloned().collect();
        let found = one(archive, log, &of, &goal)?;
        if !matches!(goal, Goal::At(_)) {
            goal = Goal::At(found.reached.last.unwrap_or(cut.cut_at));
        }
        databases.push(found);
    }
    Ok(databases)
}

/// The way of one database.
fn one(archive: &mut Archive<'_>, log: &Log, bases: &[Base], goal: &Goal) -> Result<Recovery, Stopped> {
    let mut bases = bases.to_vec();
    bases.extend(log.epochs.iter().filter_map(Base::of_epoch));
    let bases = &bases;
    let runs: Vec<LogRun<'_>> = runs(&log.epochs);
    let caught_up_at = log.status.as_ref().and_then(|status| status.caught_up_at);
    let asked = Asked { source: &log.source, goal, runs: &runs, bases, caught_up_at };
    let mut read = Transactions::new(log);
    find(&asked, &mut |leg| read.of(archive, leg).map_err(Stopped::Failed))
}

fn planned(
    application: &Application,
    goal: &Goal,
    backup: &StoredBackup,
    databases: Vec<Recovery>,
) -> Planned {
    let last = databases.iter().filter_map(|database| database.reached.last).max();
    let moment = match goal {
        Goal::At(time) => *time,
        _ => last.unwrap_or(backup.time),
    };
    let has_log = |source: &SourceId| databases.iter().any(|database| database.source == *source);
    let as_of_backup = databases_of(application).filter(|source| !has_log(source)).collect();
    let plan = RecoveryPlan {
        application: application.name.clone(),
        goal: goal.clone(),
        moment,
        backup: backup.id.clone(),
        backup_time: backup.time,
        files_older_s: moment.duration_since(backup.time).as_secs().max(0),
        databases,
        as_of_backup,
    };
    Planned { plan, backup: backup.clone() }
}

/// Makes the segments of a plan ready: each compared with its sidecar, before anything is restored.
///
/// # Errors
/// If one is missing or not what it was; says which.
pub fn ready(
    run: &Run<'_>,
    application: &Application,
    repository: &mut Repository,
    plan: Option<&RecoveryPlan>,
) -> Result<Ready, Failure> {
    let mut ready = Ready { forwards: BTreeMap::new(), wals: Vec::new(), staging: None };
    let Some(plan) = plan else { return Ok(ready) };
    let mut archive = Archive::read(run, application, repository)?;
    let logs = std::mem::take(&mut archive.logs);
    let staging = staging(run, "replay-log")?;
    for (number, recovery) in plan.databases.iter().enumerate() {
        let Some(log) = logs.iter().find(|log| log.source == recovery.source) else { continue };
        let dir = staging.path().join(number.to_string());
        let segments = legs::taken(&mut archive, log, recovery, &dir)?;
        match (log.kind, &recovery.base.from) {
            (LogKind::Binlog, _) if recovery.is_nothing() => {}
            (LogKind::Binlog, _) => {
                let forward = legs::forward(recovery, segments);
                ready.forwards.insert(recovery.source.clone(), (forward, recovery.clone()));
            }
            (LogKind::SqliteWal, BaseFrom::Epoch(epoch)) => {
                let base = archive.base(log, epoch)?;
                let here = staging.path().join(format!("{number}-base.db"));
                fs::copy(&base, &here).map_err(|error| {
                    Failure::new(FailureKind::Other, "the base of a log cannot be copied", "").because(error)
                })?;
                let moment = match recovery.reached.next {
                    Some(next) => next,
                    None => Timestamp::MAX,
                };
                ready.wals.push(Wal { source: recovery.source.clone(), base: here, segments, moment });
            }
            (LogKind::SqliteWal, BaseFrom::Backup(_)) => {}
        }
    }
    ready.staging = Some(staging);
    Ok(ready)
}

impl Ready {
    /// What is to be replayed into the copy of this server.
    #[must_use]
    pub fn roll<'a>(&'a self, source: &SourceId, progress: &'a dyn Progress) -> Option<Roll<'a>> {
        self.forwards.get(source).map(|(forward, recovery)| Roll { forward, recovery, progress })
    }

    /// What takes the place of restored SQLite databases.
    #[must_use]
    pub fn wals(&self) -> &[Wal] {
        &self.wals
    }

    /// Removes the copies of the segments.
    ///
    /// # Errors
    /// If something is left.
    pub fn release(self) -> Result<(), Failure> {
        self.staging.map_or(Ok(()), |staging| Ok(staging.release()?))
    }
}

/// Why there is nothing but backups.
#[must_use]
pub fn no_archive(backup: &StoredBackup, time: Timestamp) -> String {
    let before = model::recovery::duration(time.duration_since(backup.time).as_secs());
    format!("no log archive: the backup of {}, {before} before", crate::output::backups::utc(backup.time))
}
