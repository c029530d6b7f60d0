//! What `backup` came to.
//!
//! Crash story: plain values, no effects.

use model::{
    id::{AppName, Relpath},
    problem::Problem,
    verdict::Verdict,
};
use orchestrate::backup::{BackupReport, Rehearsal, StallMs};
use serde::Serialize;

use super::{Report, counted, problem_lines};
use crate::exit::{Exit, Fault, FaultReport};

/// `backup`.
#[derive(Debug, Serialize)]
pub struct Backups {
    /// One for each application.
    pub applications: Vec<BackedUp>,
}

/// What became of one application.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum BackedUp {
    /// It is stored.
    Stored {
        /// The backup.
        #[serde(flatten)]
        report: Box<BackupReport>,
        /// Its identity.
        relpath: Relpath,
        /// The weakest verdict that is good enough.
        required: Verdict,
        /// What went wrong beside it.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        notes: Vec<Problem>,
    },
    /// Its cut was taken and let go again.
    Rehearsed {
        /// What that came to.
        #[serde(flatten)]
        rehearsal: Box<Rehearsal>,
        /// Its identity.
        relpath: Relpath,
        /// The weakest verdict that is good enough.
        required: Verdict,
        /// What went wrong beside it.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        notes: Vec<Problem>,
    },
    /// It is not.
    Failed {
        /// Its short name.
        application: AppName,
        /// Its identity.
        relpath: Relpath,
        /// Why.
        error: FaultReport,
        /// What went wrong beside it.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        notes: Vec<Problem>,
    },
}

impl BackedUp {
    /// The exit status that this alone would give.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Stored { report, .. } if !report.still_held.is_empty() => Exit::Failed,
            Self::Stored { report, required, .. } if report.verdict < *required => Exit::Weaker,
            Self::Stored { .. } => Exit::Done,
            Self::Rehearsed { rehearsal, .. } if !rehearsal.still_held.is_empty() => Exit::Failed,
            Self::Rehearsed { rehearsal, required, .. } if rehearsal.verdict < *required => Exit::Weaker,
            Self::Rehearsed { .. } => Exit::Done,
            Self::Failed { error, .. } => error.exit,
        }
    }

    fn text(&self) -> String {
        let (mut text, notes) = match self {
            Self::Stored { report, required, notes, .. } => (stored_text(report, *required), notes),
            Self::Rehearsed { rehearsal, required, notes, .. } => {
                (rehearsed_text(rehearsal, *required), notes)
            }
            Self::Failed { application, error, notes, .. } => {
                let mut text = format!("{application}: FAILED: {}", error.in_full());
                if !error.remedy.is_empty() {
                    text.push_str(&format!("\n  what to do: {}", error.remedy));
                }
                (text, notes)
            }
        };
        text.push_str(&problem_lines(notes, notes.len() as u64, 20));
        text
    }
}

/// What stop and start hooks cost, beside the stall.
fn downtime(stall: &StallMs) -> String {
    stall.downtime.map(|downtime| format!(", stopped for {downtime}")).unwrap_or_default()
}

fn rehearsed_text(rehearsal: &Rehearsal, required: Verdict) -> String {
    let failed =
        rehearsal.still_held.iter().map(|problem| format!("{}: FAILED: {problem}\n", rehearsal.application));
    let mut text = failed.collect::<String>();
    text.push_str(&format!(
        "{}: rehearsed, nothing stored; {}, stalled {}{}",
        rehearsal.application,
        rehearsal.verdict,
        rehearsal.stall_ms.total,
        downtime(&rehearsal.stall_ms),
    ));
    text.push_str(&problem_lines(&rehearsal.problems, rehearsal.problems.len() as u64, 20));
    if rehearsal.verdict < required {
        text.push_str(&format!(
            "\n  WEAKER THAN REQUIRED: {}, and {required} is required",
            rehearsal.verdict
        ));
    }
    text
}

fn stored_text(report: &BackupReport, required: Verdict) -> String {
    // However good the backup is: the first line is what is read.
    let failed =
        report.still_held.iter().map(|problem| format!("{}: FAILED: {problem}\n", report.application));
    let mut text = failed.collect::<String>();
    text.push_str(&format!(
        "{}: backup {}, {}, stalled {}{}, {} in {}, {} read, {} added, {:.1} s",
        report.application,
        report.backup.short(),
        report.verdict,
        report.stall_ms.total,
        downtime(&report.stall_ms),
        report.bytes,
        counted(report.files, "file"),
        report.bytes_read,
        report.bytes_added,
        report.duration.as_secs_f64(),
    ));
    text.push_str(&problem_lines(&report.problems, report.problems.len() as u64, 20));
    if let Some(why) = &report.looks_wrong {
        text.push_str(&format!(
            "\n  LOOKS WRONG: {why}; it displaces no other until `stillpoint prune {} --accept {}`",
            report.application,
            report.backup.short()
        ));
    }
    if report.verdict < required {
        text.push_str(&format!("\n  WEAKER THAN REQUIRED: {}, and {required} is required", report.verdict));
    }
    text
}

impl Report for Backups {
    fn text(&self) -> String {
        let texts: Vec<String> = self.applications.iter().map(BackedUp::text).collect();
        texts.join("\n")
    }
}

impl BackedUp {
    /// An application that is not stored.
    #[must_use]
    pub fn failed(application: AppName, relpath: Relpath, fault: &Fault, notes: Vec<Problem>) -> Self {
        Self::Failed { application, relpath, error: fault.report(), notes }
    }
}
