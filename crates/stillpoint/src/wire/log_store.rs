//! The log archive of an application and its repository: storing it, what of it is kept, the spool's space.
//!
//! Crash story: see [`vault::repository`]: one snapshot of the archive is listed at any moment. A segment leaves the spool
//! after it was read back whole from that snapshot; what retention drops leaves the spool first and the repository second,
//! so that a stop in between is found by the next plan. Nothing here is in the way of the archive's writer: it takes no lock
//! of the spool.

use jiff::SignedDuration;
use model::{
    id::{EpochId, SourceId},
    inventory::Application,
    logs::LogStatus,
    logs_retention::{self, Anchor, LogsPlan, spool_surplus},
    logs_store::LogsRecord,
    port::{Failure, Progress, Shelf, Silent},
    problem::Problem,
    retention::RetentionPlan,
};
use serde::Serialize;
use vault::{
    logs::{Catalogue, SourceLog, Spool},
    repository::{LogOwner, Repository},
};

use super::{log::tail, run::Run};

/// How long segments stay in the spool although the repository has them, for restores without reading it.
const LOCAL: SignedDuration = SignedDuration::from_hours(48);

/// The spool of an application.
#[must_use]
pub fn spool(run: &Run<'_>, application: &Application) -> Spool {
    super::log::spool(run.inventory, application)
}

/// Stores what the spool holds, and gives back the space of what was stored long ago. What is missing of the archive is the
/// result. It is given up when `progress` says so.
///
/// # Errors
/// If the spool cannot be read or the repository not be written; the snapshot before stands then.
pub fn store(
    run: &Run<'_>,
    application: &Application,
    repository: &mut Repository,
    progress: &dyn Progress,
) -> Result<Vec<Problem>, Failure> {
    let spool = spool(run, application);
    if !spool.exists() {
        return Ok(Vec::new());
    }
    let catalogue = catalogue(&spool)?;
    let owner = owner(run, application);
    let plan = LogsPlan::default();
    let stored = repository.store_logs(&owner, &catalogue, &plan, progress).map_err(Failure::from)?;
    let mut problems = stored.problems;
    let now = run.clock.now();
    for log in catalogue.sources.iter().filter(|log| has_old(log, now)) {
        give_back(repository, &spool, log, now, &mut problems)?;
    }
    Ok(problems)
}

fn owner(run: &Run<'_>, application: &Application) -> LogOwner {
    LogOwner { application: application.name.clone(), server: run.inventory.server.clone() }
}

fn catalogue(spool: &Spool) -> Result<Catalogue, Failure> {
    Ok(spool.catalogue(&tail)?)
}

fn is_closed(log: &SourceLog, epoch: &EpochId, number: u64) -> bool {
    log.segment_path(epoch, number).is_some_and(|path| path.extension().is_some_and(|kind| kind == "seg"))
}

/// Whether it is worth while to look into the repository.
fn has_old(log: &SourceLog, now: jiff::Timestamp) -> bool {
    let mut segments = log.epochs.iter().flat_map(|epoch| &epoch.segments);
    segments.any(|segment| {
        now.duration_since(segment.received.last) > LOCAL && is_closed(log, &segment.epoch, segment.number)
    })
}

/// Removes segments from the spool that are old, and proven to be whole in the repository.
fn give_back(
    repository: &mut Repository,
    spool: &Spool,
    log: &SourceLog,
    now: jiff::Timestamp,
    problems: &mut Vec<Problem>,
) -> Result<(), Failure> {
    let Some(stored) = repository.log_catalogue().map_err(Failure::from)? else { return Ok(()) };
    let epochs = stored.catalogue.of(&log.source).map(|log| log.epochs.clone()).unwrap_or_default();
    let is_closed = |epoch: &EpochId, number| is_closed(log, epoch, number);
    let surplus = spool_surplus(&log.epochs, &epochs, LOCAL, now, &is_closed);
    let (snapshot, unproven) = repository.unproven_logs(&log.source, &surplus).map_err(Failure::from)?;
    for segment in &surplus {
        if let Some(wrong) = unproven.iter().find(|wrong| wrong.number == segment.number) {
            let what =
                format!("segment {} of {} stays in the spool: {}", wrong.number, log.source, wrong.what);
            let remedy = "run `stillpoint check --read-data`";
            problems.push(Problem::missing(spool.epoch_dir(&log.source, &segment.epoch), what, remedy));
        } else {
            spool.discard(&log.source, &segment.epoch, segment.number, &snapshot)?;
        }
    }
    Ok(())
}

/// What of the archive goes with the backups that a plan removes; nothing if no archive is stored.
///
/// # Errors
/// If the repository cannot be read.
pub fn plan(repository: &mut Repository, backups: &RetentionPlan) -> Result<Option<LogsPlan>, Failure> {
    let Some(stored) = repository.log_catalogue().map_err(Failure::from)? else { return Ok(None) };
    let listed = repository.backups()?;
    let kept: Vec<_> = listed
        .iter()
        .filter(|backup| backups.keep.iter().any(|kept| kept.id == backup.id))
        // Another program's snapshots hold nothing that logs could be applied to.
        .filter(|backup| backup.record.is_some() || backup.damaged.is_some())
        .collect();
    let ids: Vec<_> = kept.iter().map(|backup| backup.id.clone()).collect();
    let cuts = repository.cut_records(&ids).map_err(Failure::from)?;
    let anchor = |(backup, cut): (_, Result<Option<_>, _>)| Anchor::new(backup, cut.ok().flatten().as_ref());
    let anchors: Vec<Anchor> = kept.into_iter().zip(cuts).map(anchor).collect();
    let sources = stored.catalogue.sources.iter();
    let sources = sources.map(|log| logs_retention::plan(&log.source, &log.epochs, &anchors)).collect();
    Ok(Some(LogsPlan { sources }))
}

/// Carries out what [`plan`] decided, once the backups are removed. The bytes are freed by the next
/// [`Shelf::reclaim`].
///
/// # Errors
/// If the spool or the repository cannot be written.
pub fn drop_old(
    run: &Run<'_>,
    application: &Application,
    repository: &mut Repository,
    plan: &LogsPlan,
) -> Result<(), Failure> {
    let Some((snapshot, _)) = repository.log_record().map_err(Failure::from)? else { return Ok(()) };
    spool(run, application).forget(plan, &snapshot)?;
    // Nothing of the spool is stored here: it is all the same what it holds.
    let owner = owner(run, application);
    repository.store_logs(&owner, &Catalogue::default(), plan, &Silent).map_err(Failure::from)?;
    Ok(())
}

/// How far the archive of one source is, for people and machines.
#[derive(Debug, Clone, Serialize)]
pub struct LogState {
    /// Whose log.
    pub source: SourceId,
    /// What the archive last said of itself; nothing if it is not of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<LogStatus>,
    /// How far it is stored: received up to this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_until: Option<jiff::Timestamp>,
    /// Up to this place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_to: Option<String>,
}

/// How far the archives of all sources of an application are; none if there is no archive.
///
/// # Errors
/// If spool or repository cannot be read.
pub fn states(
    run: &Run<'_>,
    application: &Application,
    repository: &Repository,
) -> Result<Vec<LogState>, Failure> {
    let statuses = spool(run, application).statuses()?;
    let record = repository.log_record().map_err(Failure::from)?.map(|(_, record)| record);
    Ok(joined(statuses, record.as_ref()))
}

fn joined(statuses: Vec<LogStatus>, record: Option<&LogsRecord>) -> Vec<LogState> {
    let mut states: Vec<LogState> = statuses
        .into_iter()
        .map(|status| LogState {
            source: status.source.clone(),
            status: Some(status),
            stored_until: None,
            stored_to: None,
        })
        .collect();
    for stored in record.iter().flat_map(|record| &record.sources) {
        let at = states.iter().position(|state| state.source == stored.source).unwrap_or_else(|| {
            let source = stored.source.clone();
            states.push(LogState { source, status: None, stored_until: None, stored_to: None });
            states.len() - 1
        });
        states[at].stored_until = stored.received;
        states[at].stored_to = Some(stored.to.to_string());
    }
    states.sort_by(|a, b| a.source.cmp(&b.source));
    states
}
