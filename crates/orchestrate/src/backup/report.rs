//! What a backup came to: for people, for `--json` and for the history line.
//!
//! Crash story: plain values, no effects.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use model::{
    cut::Stalls,
    id::{AppName, BackupId, CutId, SourceId},
    plan::HoldClass,
    port::Failure,
    problem::Problem,
    size::Bytes,
    time::Millis,
    verdict::{Evidence, Verdict},
};
use serde::{Serialize, Serializer};

use super::record::Records;
use crate::cut::host::Cut;

/// What a backup came to. Serialised, it is one element of `applications` of `backup --json`, DESIGN.md
/// section 7.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupReport {
    /// The application.
    pub application: AppName,
    /// The backup.
    pub backup: BackupId,
    /// The cut that it holds.
    pub cut: CutId,
    /// The instant of the cut.
    pub cut_at: Timestamp,
    /// How good it is.
    pub verdict: Verdict,
    /// What it cost the writers; see [`StallMs`] for its serialised form.
    pub stall_ms: StallMs,
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// How many bytes were read for it; all others are carried over from the backup before.
    pub bytes_read: Bytes,
    /// What the repository grew by.
    pub bytes_added: Bytes,
    /// From the start of the run until the pins were removed.
    #[serde(rename = "duration_s", serialize_with = "seconds")]
    pub duration: Duration,
    /// How often the cut was tried.
    pub attempts: u32,
    /// Why it looks wrong beside the backups before it (promise 6).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looks_wrong: Option<String>,
    /// All that is missing, weaker or worth knowing, the worst first.
    pub problems: Vec<Problem>,
    /// Why each source is known to have stood still.
    pub evidence: Vec<Evidence>,
    /// Everybody of whom it could not be confirmed that he runs again: the run has failed in this, however
    /// good the backup is. Also among the problems.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub still_held: Vec<Problem>,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// The report of a run, or its failure with whatever it left behind.
pub(super) fn of(
    outcome: Result<(BackupId, Records), Failure>,
    cut: Cut,
    left: Vec<Problem>,
    duration: Duration,
) -> Result<BackupReport, Failure> {
    let (backup, Records { short, mut problems, sources, bytes_read }) = match outcome {
        Ok(listed) => listed,
        Err(mut failure) => {
            for problem in cut.still_held.iter().chain(&left) {
                failure.what = format!("{problem}. Besides: {}", failure.what);
            }
            return Err(failure);
        }
    };
    problems.extend(left);
    Ok(BackupReport {
        application: short.application,
        backup,
        cut: short.cut,
        cut_at: cut.cut_at,
        verdict: short.verdict,
        stall_ms: StallMs::of(&short.stalls, &sources),
        files: short.files,
        bytes: short.bytes,
        bytes_read,
        bytes_added: short.bytes_added,
        duration,
        attempts: cut.attempts,
        looks_wrong: short.looks_wrong,
        problems,
        evidence: cut.evidence,
        still_held: cut.still_held,
    })
}

/// Stalls in milliseconds, as an object: `total`, `downtime` where there were stop hooks, and each source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StallMs {
    /// From the first lock to the last release.
    pub total: Millis,
    /// From the start of the stop hook until the start hook had ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<Millis>,
    /// The longest hold on each source's writers, stop hooks left out. Holds are nested, so the longest
    /// covers the others.
    #[serde(flatten)]
    pub sources: BTreeMap<SourceId, Millis>,
}

impl StallMs {
    /// The stalls of a cut, by source.
    #[must_use]
    pub fn of(stalls: &Stalls, sources: &[SourceId]) -> Self {
        let longest = |source: &SourceId| {
            stalls
                .per_hold
                .iter()
                .filter(|s| s.class != HoldClass::StopHook)
                .filter(|s| s.sources.is_empty() || s.sources.contains(source))
                .map(|s| s.ms)
                .fold(Millis(0.0), |a, b| if b > a { b } else { a })
        };
        let sources = sources.iter().map(|source| (source.clone(), longest(source))).collect();
        Self { total: stalls.total, downtime: stalls.downtime, sources }
    }
}
