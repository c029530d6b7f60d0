//! Keeping the log archive: into the repository, out of the spool, and no longer than its backups need it.
//!
//! Crash story: a segment leaves the spool after it was read back whole from the listed snapshot; what retention drops leaves
//! the spool first and the repository second, so that a stop in between is found by the next plan. Nothing here is in the way
//! of the archive's writer.

use jiff::{SignedDuration, Timestamp};
use model::{
    logs_retention::{self, Anchor, LogsPlan, spool_surplus},
    port::{Failure, Progress},
    port_shelf::{HeldLog, LogShelf},
    problem::{Effect, Problem},
};

/// Stores what is here, and gives back the space of what was received longer ago than `window` and is stored. What is missing
/// of the archive is the result.
///
/// # Errors
/// If here or there cannot be read or written; the snapshot before stands then, and nothing has left the spool that is not in
/// it.
pub fn store(
    shelf: &mut dyn LogShelf,
    window: SignedDuration,
    now: Timestamp,
    progress: &dyn Progress,
) -> Result<Vec<Problem>, Failure> {
    let here = shelf.here()?;
    let mut problems = shelf.store(progress)?.problems;
    let old: Vec<&HeldLog> = here.iter().filter(|log| has_old(log, window, now)).collect();
    if !old.is_empty() && !progress.is_stopped() {
        let there = shelf.there()?.unwrap_or_default();
        for log in old {
            give_back(shelf, log, &there, (window, now), &mut problems)?;
        }
    }
    Ok(problems)
}

/// Whether it is worth while to look into the repository.
fn has_old(log: &HeldLog, window: SignedDuration, now: Timestamp) -> bool {
    let mut segments = log.epochs.iter().flat_map(|epoch| &epoch.segments);
    segments.any(|segment| {
        now.duration_since(segment.received.last) > window
            && log.closed.contains(&(segment.epoch.clone(), segment.number))
    })
}

/// Removes segments from here that are old, and proven to be whole in the repository.
fn give_back(
    shelf: &mut dyn LogShelf,
    log: &HeldLog,
    there: &[HeldLog],
    (window, now): (SignedDuration, Timestamp),
    problems: &mut Vec<Problem>,
) -> Result<(), Failure> {
    let stored = there.iter().find(|held| held.source == log.source);
    let stored = stored.map_or(&[][..], |held| &held.epochs);
    let is_closed = |epoch: &_, number| log.closed.contains(&(Clone::clone(epoch), number));
    let surplus = spool_surplus(&log.epochs, stored, window, now, &is_closed);
    if surplus.is_empty() {
        return Ok(());
    }
    let (snapshot, unproven) = shelf.unproven(&log.source, &surplus)?;
    for segment in &surplus {
        let wrong = unproven.iter().find(|it| it.epoch == segment.epoch && it.number == segment.number);
        if let Some(wrong) = wrong {
            let what = format!(
                "segment {} of epoch {} stays in the spool: {}",
                wrong.number, wrong.epoch, wrong.what
            );
            let remedy = "run `stillpoint check --read-data`";
            problems.push(Problem::new(Effect::Missing, None, what, remedy).of(&log.source));
        } else {
            shelf.discard(&log.source, &segment.epoch, segment.number, &snapshot)?;
        }
    }
    Ok(())
}

/// What of the archive goes when no backups but these stay; nothing if no archive is stored.
///
/// # Errors
/// If the repository cannot be read.
pub fn plan(shelf: &mut dyn LogShelf, kept: &[Anchor]) -> Result<Option<LogsPlan>, Failure> {
    let Some(there) = shelf.there()? else { return Ok(None) };
    let plans = there.iter().map(|log| logs_retention::plan(&log.source, &log.epochs, kept));
    Ok(Some(LogsPlan { sources: plans.collect() }))
}
