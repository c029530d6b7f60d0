//! Runs: stretches of a log without a hole, over segments and epochs.
//!
//! Crash story: pure functions, no effects.

use jiff::Timestamp;

use super::{EpochId, Gtids, LogPlace, SegmentRecord};
use crate::{
    gtid::GtidState,
    logs::{Beginning, Epoch, HoleCause, LogPlace::Binlog},
};

/// A segment that can be replayed, and its epoch.
#[derive(Debug, Clone)]
pub struct Piece<'a> {
    /// The epoch.
    pub epoch: &'a Epoch,
    /// The segment.
    pub segment: &'a SegmentRecord,
    /// GTID state at its beginning, if it is known.
    pub gtid_before: Option<&'a Gtids>,
}

/// What lies before a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// Why; nothing at the beginning of the archive, or where older parts were removed as planned.
    pub cause: Option<HoleCause>,
    /// For people.
    pub detail: String,
}

/// A stretch without a hole.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// What lies before it.
    pub before: Break,
    /// Its epochs. The first may be without its beginning.
    pub epochs: Vec<&'a Epoch>,
    /// Its segments in order.
    pub pieces: Vec<Piece<'a>>,
    /// The beginning of the first epoch is in it.
    pub has_beginning: bool,
}

impl Run<'_> {
    /// The latest time of a transaction in it.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        self.pieces.iter().filter_map(|piece| Some(piece.segment.commits?.last)).max()
    }

    /// Whether the last epoch has more of the log, which is damaged: what the archive says of itself is then not true of
    /// this run.
    #[must_use]
    pub fn has_damaged_end(&self) -> bool {
        let Some(epoch) = self.epochs.last() else { return false };
        let mine = self.pieces.iter().filter(|piece| piece.epoch.record.epoch == epoch.record.epoch);
        let last = mine.map(|piece| piece.segment.number).max();
        epoch.damaged.iter().any(|(number, _)| last.is_none_or(|last| *number > last))
    }

    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> Option<(&EpochId, &LogPlace)> {
        let last = self.pieces.last().map(|piece| (&piece.epoch.record.epoch, &piece.segment.to));
        last.or_else(|| self.epochs.last().map(|epoch| (&epoch.record.epoch, &epoch.record.from)))
    }
}

/// Cuts epochs, given in their order, into runs.
#[must_use]
pub fn runs(epochs: &[Epoch]) -> Vec<Run<'_>> {
    let mut found: Vec<Run<'_>> = Vec::new();
    // Something is wrong with the end of what was read so far.
    let mut broken: Option<Break> = None;
    for epoch in epochs {
        let goes_on = found.last().is_some_and(|run| continues(run, epoch)) && broken.is_none();
        if !goes_on {
            let before = broken.take().unwrap_or_else(|| beginning(epoch, found.last()));
            found.push(Run { before, epochs: Vec::new(), pieces: Vec::new(), has_beginning: true });
        }
        if let Some(run) = found.last_mut() {
            run.epochs.push(epoch);
        }
        broken = add(epoch, &mut found);
    }
    found
}

/// Adds the segments of an epoch to the last run, and begins others where something is missing. What is wrong with its end.
fn add<'a>(epoch: &'a Epoch, found: &mut Vec<Run<'a>>) -> Option<Break> {
    let mut before: Option<&SegmentRecord> = None;
    let mut wrong: Option<Break> = None;
    let id = &epoch.record.epoch;
    let damage = |number: u64| epoch.damaged.iter().find(|(damaged, _)| *damaged == number);
    let last = epoch.segments.last().map(|segment| segment.number);
    for segment in &epoch.segments {
        let between = before.map_or(1, |before| before.number + 1)..segment.number;
        if let Some((number, what)) = between.clone().find_map(damage) {
            wrong = Some(damaged(id, *number, what));
        } else if !between.is_empty() && before.is_some() {
            wrong = Some(damaged(id, between.start, "is missing"));
        } else if !between.is_empty() {
            let detail =
                format!("segments of epoch {id} before number {} are no longer kept", segment.number);
            wrong = Some(Break { cause: None, detail });
        } else if before.is_some_and(|before| !follows(&before.to, &segment.from)) {
            let what = format!("begins at {} and not where the one before ends", segment.from);
            wrong = Some(damaged(id, segment.number, &what));
        }
        if let Some((number, what)) = damage(segment.number) {
            wrong = Some(damaged(id, *number, what));
            before = Some(segment);
            continue;
        }
        let gtid_before = match before {
            Some(before) => before.gtid_state.as_ref(),
            None if segment.number == 1 => epoch.record.gtid_state.as_ref(),
            None => None,
        };
        if let Some(before) = wrong.take() {
            found.push(Run { before, epochs: vec![epoch], pieces: Vec::new(), has_beginning: false });
        }
        if let Some(run) = found.last_mut() {
            run.pieces.push(Piece { epoch, segment, gtid_before });
        }
        before = Some(segment);
    }
    let tail = epoch.damaged.iter().find(|(number, _)| last.is_none_or(|last| *number > last));
    wrong.or_else(|| tail.map(|(number, what)| damaged(id, *number, what)))
}

fn damaged(epoch: &EpochId, number: u64, what: &str) -> Break {
    Break { cause: Some(HoleCause::Damaged), detail: format!("segment {number} of epoch {epoch} {what}") }
}

/// An epoch goes on from the run only if nothing is known that says otherwise.
fn continues(run: &Run<'_>, epoch: &Epoch) -> bool {
    let Beginning::Continues { after } = &epoch.record.beginning else { return false };
    let Some(last) = run.epochs.last() else { return false };
    let ended = run.pieces.last().and_then(|piece| piece.segment.gtid_state.as_ref());
    let states =
        (ended.and_then(GtidState::read), epoch.record.gtid_state.as_ref().and_then(GtidState::read));
    let agree = match states {
        (Some(ended), Some(begun)) => begun.includes(&ended).unwrap_or(true),
        _ => true,
    };
    last.record.epoch == *after && agree && !skips(run, last, epoch)
}

/// Whether the epoch begins behind the last segment of the one before, with something in between that nobody has.
fn skips(run: &Run<'_>, before: &Epoch, epoch: &Epoch) -> bool {
    let of_it = run.pieces.last().filter(|piece| piece.epoch.record.epoch == before.record.epoch);
    match (of_it.map(|piece| &piece.segment.to), &epoch.record.from) {
        (Some(LogPlace::SqliteWal(end)), LogPlace::SqliteWal(from)) => !from.is_right_after(end),
        // Files of another server are numbered otherwise: there the states tell.
        _ => false,
    }
}

fn beginning(epoch: &Epoch, before: Option<&Run<'_>>) -> Break {
    match &epoch.record.beginning {
        Beginning::Hole { cause, detail, .. } => Break {
            cause: Some(*cause),
            detail: if detail.is_empty() { cause.to_string() } else { format!("{cause}: {detail}") },
        },
        Beginning::Continues { after }
            if before
                .is_some_and(|run| run.epochs.last().is_some_and(|last| last.record.epoch != *after)) =>
        {
            Break {
                cause: Some(HoleCause::Damaged),
                detail: format!("epoch {after}, from which {} goes on, is missing", epoch.record.epoch),
            }
        }
        Beginning::Continues { after } if before.is_some() => {
            Break { cause: Some(HoleCause::Damaged), detail: format!("the end of epoch {after} is missing") }
        }
        _ => Break { cause: None, detail: "the archive begins".to_owned() },
    }
}

/// A segment follows another where that one ends, or at the beginning of the next file of a binary log.
fn follows(end: &LogPlace, from: &LogPlace) -> bool {
    if end == from {
        return true;
    }
    match (end, from) {
        (Binlog(end), Binlog(from)) => {
            let number =
                |file: &str| file.rsplit_once('.').and_then(|(_, digits)| digits.parse::<u64>().ok());
            from.offset == 4
                && number(&end.file).zip(number(&from.file)).is_some_and(|(end, from)| from == end + 1)
        }
        (LogPlace::SqliteWal(end), LogPlace::SqliteWal(from)) => {
            from.generation == end.generation + 1 && from.frame == 0
        }
        _ => false,
    }
}
