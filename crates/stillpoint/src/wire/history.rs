//! The history line of each backup, also of one that failed.
//!
//! Crash story: one line is appended at the end of each application's turn; a run that dies before has
//! none, and its backup, if it was published, is listed all the same.

use std::time::Duration;

use jiff::Timestamp;
use model::{
    history::{HistoryLine, Status},
    inventory::{Application, Inventory},
    port::Failure,
    problem::{Effect, Problem},
    verdict::Verdict,
};
use orchestrate::backup::BackupReport;
use vault::history;

/// Writes down how the backup of an application ended.
///
/// # Errors
/// If the history file cannot be written.
pub fn note(
    inventory: &Inventory,
    application: &Application,
    outcome: &Result<BackupReport, Failure>,
    took: Duration,
) -> Result<(), Failure> {
    let line = match outcome {
        Ok(report) => stored(report, application.settings.require, took),
        Err(failure) => failed(failure, took),
    };
    Ok(history::append(&inventory.place(application), &application.name, &line)?)
}

/// When the last backup of an application ended, if its history tells.
pub fn last_end(inventory: &Inventory, application: &Application) -> Option<Timestamp> {
    let lines = history::read(&inventory.place(application)).ok()?;
    lines.lines.iter().filter(|line| line.backup.is_some()).map(|line| line.time).max()
}

fn stored(report: &BackupReport, require: Verdict, took: Duration) -> HistoryLine {
    let good = report.verdict >= require && report.still_held.is_empty();
    let worst = report.problems.iter().filter(|problem| problem.effect > Effect::Note);
    HistoryLine {
        time: Timestamp::now(),
        cut: Some(report.cut.clone()),
        backup: Some(report.backup.clone()),
        files: Some(report.files),
        bytes: Some(report.bytes),
        bytes_read: Some(report.bytes_read),
        bytes_added: Some(report.bytes_added),
        stall_ms: Some(report.stall_ms.total.0),
        verdict: Some(report.verdict),
        status: if good { Status::Ok } else { Status::Weak },
        duration_s: took.as_secs_f64(),
        message: worst.map(Problem::to_string).next().unwrap_or_default(),
    }
}

fn failed(failure: &Failure, took: Duration) -> HistoryLine {
    HistoryLine {
        time: Timestamp::now(),
        cut: None,
        backup: None,
        files: None,
        bytes: None,
        bytes_read: None,
        bytes_added: None,
        stall_ms: None,
        verdict: None,
        status: Status::Failed,
        duration_s: took.as_secs_f64(),
        message: failure.in_full(),
    }
}
