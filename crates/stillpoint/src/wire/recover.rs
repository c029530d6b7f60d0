//! Point-in-time recovery, wired: what the log archive of an application holds, which backup and which of its segments bring
//! a moment back, and the segments made ready for a replay.
//!
//! Crash story: reads only, until [`ready`], whose copies lie in a journalled staging directory. Segments that are
//! stored or closed meanwhile are linked or copied there first, and compared with their sidecars before anything is
//! restored.

pub mod archive;
mod legs;
mod statements;

use std::collections::BTreeMap;

use engines::server::physical::Forward;
use jiff::Timestamp;
use model::{
    id::SourceId,
    inventory::Application,
    port::{Failure, FailureKind, Progress, Shelf},
    record::{CutRecord, StoredBackup},
    recovery::{Asked, Base, Gap, Goal, Recovery, RecoveryPlan, Run as LogRun, find, runs},
    server::ServerForm,
};
use os::staging::Staging;
use vault::{logs::SourceLog, repository::Repository};

use self::{archive::Archive, legs::Transactions};
use super::{restore::staging, run::Run};

pub use self::statements::{Statement, around};

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
    let archive = Archive::read(run, application)?;
    let logs: Vec<&SourceLog> = archive.binlogs().collect();
    if logs.is_empty() {
        return Ok(None);
    }
    let mut backups = repository.backups()?;
    backups.sort_by_key(|backup| std::cmp::Reverse(backup.time));
    let mut tried: Vec<Base> = Vec::new();
    let mut first: Option<Failure> = None;
    for backup in &backups {
        let Some(cut) = repository.cut_record(&backup.id).map_err(Failure::from)? else { continue };
        let bases = Base::of_backup(&backup.id, &cut);
        let is_late = matches!(goal, Goal::At(time) if backup.time > *time);
        tried.extend(bases.iter().cloned());
        if is_late {
            continue;
        }
        match with_backup(&logs, &cut, &bases, goal) {
            Ok(databases) => return Ok(Some(planned(application, goal, backup, &cut, databases))),
            Err(Stopped::Gap(_)) if first.is_some() => {}
            Err(Stopped::Gap(gap)) => first = Some(refused(&gap)),
            Err(Stopped::Failed(failure)) => return Err(failure),
        }
    }
    // With all copies at hand the nearest moments can be named.
    for log in &logs {
        let of: Vec<Base> = tried.iter().filter(|base| base.source == log.source).cloned().collect();
        if let Err(Stopped::Gap(gap)) = one(log, &of, goal) {
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
    logs: &[&SourceLog],
    cut: &CutRecord,
    bases: &[Base],
    goal: &Goal,
) -> Result<Vec<Recovery>, Stopped> {
    let mut databases = Vec::new();
    for log in logs {
        let form = cut.servers.iter().find(|server| server.source == log.source).map(|server| server.form);
        if form == Some(ServerForm::Dump) {
            let what = format!("{} is stored as a dump, onto which no log can be replayed", log.source);
            let remedy = "back it up as a whole server, or restore a backup with --backup";
            return Err(Stopped::Failed(Failure::new(FailureKind::Refused, what, remedy)));
        }
        let of: Vec<Base> = bases.iter().filter(|base| base.source == log.source).cloned().collect();
        databases.push(one(log, &of, goal)?);
    }
    Ok(databases)
}

/// The way of one database.
fn one(log: &SourceLog, bases: &[Base], goal: &Goal) -> Result<Recovery, Stopped> {
    let runs: Vec<LogRun<'_>> = runs(&log.epochs);
    let caught_up_at = log.status.as_ref().and_then(|status| status.caught_up_at);
    let asked = Asked { source: &log.source, goal, runs: &runs, bases, caught_up_at };
    let mut read = Transactions::new(log);
    find(&asked, &mut |leg| read.of(leg).map_err(Stopped::Failed))
}

fn planned(
    application: &Application,
    goal: &Goal,
    backup: &StoredBackup,
    cut: &CutRecord,
    databases: Vec<Recovery>,
) -> Planned {
    let last = databases.iter().filter_map(|database| database.reached.last).max();
    let moment = match goal {
        Goal::At(time) => *time,
        _ => last.unwrap_or(backup.time),
    };
    let has_log = |source: &SourceId| databases.iter().any(|database| database.source == *source);
    let servers = cut.servers.iter().map(|server| server.source.clone());
    let as_of_backup = servers.chain(archive::files(application)).filter(|source| !has_log(source)).collect();
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
    plan: Option<&RecoveryPlan>,
) -> Result<Ready, Failure> {
    let Some(plan) = plan else { return Ok(Ready { forwards: BTreeMap::new(), staging: None }) };
    let archive = Archive::read(run, application)?;
    let staging = staging(run, "replay-log")?;
    let mut forwards = BTreeMap::new();
    for (number, recovery) in plan.databases.iter().enumerate().filter(|(_, one)| !one.is_nothing()) {
        let dir = staging.path().join(number.to_string());
        let forward = legs::forward(&archive, recovery, &dir)?;
        forwards.insert(recovery.source.clone(), (forward, recovery.clone()));
    }
    Ok(Ready { forwards, staging: Some(staging) })
}

impl Ready {
    /// What is to be replayed into the copy of this server.
    #[must_use]
    pub fn roll<'a>(&'a self, source: &SourceId, progress: &'a dyn Progress) -> Option<Roll<'a>> {
        self.forwards.get(source).map(|(forward, recovery)| Roll { forward, recovery, progress })
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
