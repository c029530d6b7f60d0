//! The two records of a backup, and its verdict.
//!
//! Crash story: pure functions, no effects.

use std::{cmp::Reverse, path::Path};

use model::{
    id::{CutId, ServerName, SourceId, VmName},
    plan::{CutPlan, PinPlan},
    port::Draft,
    problem::{Effect, Problem},
    record::{BackupRecord, CutRecord, PinNote, RECORD_VERSION, StoredBackup},
    retention::looks_wrong,
    size::Bytes,
    verdict::judge,
};

use crate::cut::{host::Cut, patience::mix};

/// So many problems are written into a backup record; all are in the report.
pub const PROBLEMS_KEPT: usize = 100;

/// The record that is kept with the snapshot, and what it has no room for.
pub(super) struct Records {
    /// What is kept.
    pub(super) short: BackupRecord,
    /// All problems, the worst first.
    pub(super) problems: Vec<Problem>,
    /// All sources that the verdict is about.
    pub(super) sources: Vec<SourceId>,
    /// What was read for it.
    pub(super) bytes_read: Bytes,
}

/// What is known at the thaw, and the checks that the pins have passed since.
pub(super) fn of_cut(plan: &CutPlan, server: ServerName, vm: VmName, cut: &Cut, seed: u64) -> CutRecord {
    let [a, b, c, ..] = mix(seed, 0).to_le_bytes();
    CutRecord {
        version: RECORD_VERSION,
        cut: CutId::at(cut.cut_at, [a, b, c]),
        application: plan.application.clone(),
        relpath: plan.relpath.clone(),
        server,
        vm,
        frozen_at: cut.frozen_at,
        cut_at: cut.cut_at,
        thawed_at: cut.thawed_at,
        attempts: cut.attempts,
        stalls: cut.stalls.clone(),
        evidence: cut.evidence.clone(),
        pins: pinned(plan, cut),
        problems: plan.problems.iter().chain(&cut.problems).cloned().collect(),
        servers: cut.servers.clone(),
    }
}

/// Judges the draft and describes it.
pub(super) fn of_backup(
    plan: &CutPlan,
    cut: CutRecord,
    draft: &Draft,
    label: Option<String>,
    previous: &[StoredBackup],
    duration_s: f64,
) -> Records {
    let mut problems = cut.problems;
    problems.extend(draft.problems.iter().cloned());
    problems.extend(empty(draft));
    problems.sort_by_key(|p| Reverse(p.effect));
    let short = BackupRecord {
        version: RECORD_VERSION,
        cut: cut.cut,
        application: cut.application,
        verdict: judge(&plan.sources, &cut.evidence, &problems),
        looks_wrong: looks_wrong(previous, draft.files, draft.bytes),
        label,
        stalls: cut.stalls,
        files: draft.files,
        bytes: draft.bytes,
        bytes_added: draft.bytes_added,
        duration_s,
        problems: problems.iter().take(PROBLEMS_KEPT).cloned().collect(),
        problem_count: problems.len() as u64,
        pins: cut.pins,
    };
    Records { short, problems, sources: plan.sources.clone(), bytes_read: draft.bytes_read }
}

/// A backup without a single file is what a filesystem that is not mounted looks like. It is stored, but
/// never with the best verdict.
fn empty(draft: &Draft) -> Option<Problem> {
    (draft.files == 0).then(|| {
        Problem::new(
            Effect::Weaker,
            None,
            "the backup holds no regular file",
            "look whether everything is mounted where it should be",
        )
    })
}

/// The pins of which there is evidence: the others gave nothing that could be restored.
fn pinned(plan: &CutPlan, cut: &Cut) -> Vec<PinNote> {
    let is_there = |pin: &&PinPlan| cut.evidence.iter().any(|e| e.source == pin.source);
    plan.pins.iter().filter(is_there).flat_map(notes).collect()
}

fn notes(pin: &PinPlan) -> Vec<PinNote> {
    let note = |path: &Path| PinNote {
        source: pin.source.clone(),
        method: pin.method.name().to_owned(),
        path: path.to_owned(),
    };
    pin.method.paths().into_iter().map(note).collect()
}
