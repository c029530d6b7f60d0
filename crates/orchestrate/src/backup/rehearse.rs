//! A rehearsal: the whole cut, and nothing stored. What a backup will cost the writers, and whether its verdict can be
//! good, is known before a schedule depends on it.
//!
//! Crash story: as a backup's up to the thaw; pins are removed at once. Nothing is written to a repository.

use std::sync::Arc;

use jiff::Timestamp;
use model::{
    entry::Manifest,
    id::{AppName, BackupId},
    known::Known,
    port::{Draft, Failure, FailureKind, Progress, Store},
    problem::Problem,
    record::{BackupRecord, CutRecord},
    verdict::{Evidence, Verdict, judge},
};
use serde::Serialize;

use super::{Job, StallMs, refused};
use crate::cut::{crew::Crew, host, prepare::prepare};

/// What a rehearsal came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rehearsal {
    /// The application.
    pub application: AppName,
    /// Before the first hold was asked for.
    pub frozen_at: Timestamp,
    /// The instant at which everything stood still.
    pub cut_at: Timestamp,
    /// After the last release.
    pub thawed_at: Timestamp,
    /// How often the cut was tried.
    pub attempts: u32,
    /// What it cost the writers.
    pub stall_ms: StallMs,
    /// The best verdict that a backup of this cut could have had.
    pub verdict: Verdict,
    /// Why each source is known to have stood still.
    pub evidence: Vec<Evidence>,
    /// What is weaker, missing or worth knowing.
    pub problems: Vec<Problem>,
    /// Everybody of whom it could not be confirmed that he runs again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub still_held: Vec<Problem>,
}

/// Takes the cut of a job and lets its pins go.
///
/// # Errors
/// As for a backup, up to the thaw.
pub fn rehearse(job: Job<'_>) -> Result<Rehearsal, Failure> {
    let Job { plan, holds, pinners, store, clock, progress, patience, seed, .. } = job;
    refused(plan)?;
    let mut crew = Crew::new(plan, clock, patience, seed, holds, pinners);
    prepare(&mut crew, &mut Unwritten { store }, progress)?;
    let mut cut = host::take(&mut crew)?;
    let left = host::release(std::mem::take(&mut cut.pins));
    drop(crew);
    let mut problems: Vec<Problem> = plan.problems.iter().chain(&cut.problems).cloned().collect();
    problems.extend(left);
    Ok(Rehearsal {
        application: plan.application.clone(),
        frozen_at: cut.frozen_at,
        cut_at: cut.cut_at,
        thawed_at: cut.thawed_at,
        attempts: cut.attempts,
        stall_ms: StallMs::of(&cut.stalls, &plan.sources),
        verdict: judge(&plan.sources, &cut.evidence, &problems),
        evidence: cut.evidence,
        problems,
        still_held: cut.still_held,
    })
}

/// What is known of the backups so far, and nothing more: a rehearsal stores nothing, not even ahead.
struct Unwritten<'a> {
    store: &'a mut dyn Store,
}

impl Store for Unwritten<'_> {
    fn known(&mut self) -> Result<Known, Failure> {
        self.store.known()
    }

    fn store_ahead(&mut self, _manifest: Arc<Manifest>, _progress: &dyn Progress) -> Result<(), Failure> {
        Ok(())
    }

    fn store(&mut self, _: Arc<Manifest>, _: &CutRecord, _: &dyn Progress) -> Result<Draft, Failure> {
        Err(nothing_is_stored())
    }

    fn publish(&mut self, _: Draft, _: &BackupRecord) -> Result<BackupId, Failure> {
        Err(nothing_is_stored())
    }
}

fn nothing_is_stored() -> Failure {
    Failure::new(FailureKind::Refused, "a rehearsal stores nothing", "run the backup without --rehearse")
}
