//! The log archive of an application and its repository, wired: storing it, what of it is kept, how far it is.
//!
//! Crash story: see [`orchestrate::keep`] and [`vault::repository`].

use jiff::SignedDuration;
use model::{
    id::SourceId,
    inventory::Application,
    logs::LogStatus,
    logs_retention::{Anchor, LogsPlan},
    logs_store::LogsRecord,
    port::{Failure, Progress, Shelf},
    port_shelf::LogShelf,
    problem::Problem,
    retention::RetentionPlan,
};
use orchestrate::keep;
use serde::Serialize;
use vault::{
    logs::Spool,
    repository::{Archive, LogOwner, Repository},
};

use super::{log::tail, run::Run};

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
    let mut archive = archive(run, application, repository);
    if !archive.spool.exists() {
        return Ok(Vec::new());
    }
    let window = application.settings.local_window;
    let window = SignedDuration::try_from(window).unwrap_or(SignedDuration::MAX);
    keep::store(&mut archive, window, run.clock.now(), progress)
}

fn archive<'a>(run: &Run<'_>, application: &Application, repository: &'a mut Repository) -> Archive<'a> {
    let owner = LogOwner { application: application.name.clone(), server: run.inventory.server.clone() };
    Archive { repository, spool: spool(run, application), owner, tails: &tail }
}

/// What of the archive goes with the backups that a plan removes; nothing if no archive is stored.
///
/// # Errors
/// If the repository cannot be read.
pub fn plan(
    run: &Run<'_>,
    application: &Application,
    repository: &mut Repository,
    backups: &RetentionPlan,
) -> Result<Option<LogsPlan>, Failure> {
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
    keep::plan(&mut archive(run, application, repository), &anchors)
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
    archive(run, application, repository).forget(plan)
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
