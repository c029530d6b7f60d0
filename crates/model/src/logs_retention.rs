//! How far back the log archive is kept, and which base backups it needs: pure functions.
//!
//! A log is worth something only from a backup on (or, for SQLite, from the base of its epoch on), so logs are kept back to
//! where the oldest backup that stays was taken. That place is found by the position that its cut recorded in the log
//! itself. Only where there is none, as in SQLite's logs, times are compared, and then [`CLOCK_MARGIN`] is left; how old a
//! segment is decides nothing by itself.
//!
//! Crash story: pure functions, no effects. A plan carried out in part, or twice, and made anew says the same of the rest.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::{
    id::{BackupId, EpochId, SourceId},
    logs::{Epoch, LogKind, LogPlace, SegmentRecord},
    record::{CutRecord, StoredBackup},
    retention::{RetentionPlan, is_good},
    server::ServerRecord,
};

/// Times of two records are taken for ordered only if they are further apart than this: clocks are set, also back.
pub const CLOCK_MARGIN: SignedDuration = SignedDuration::from_hours(24);

/// A backup that stays, as far as logs are concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Anchor {
    /// The backup.
    pub backup: BackupId,
    /// The instant of its cut, or when the repository received it if the cut is not known.
    pub at: Timestamp,
    /// The servers in it with their positions; nothing if the record of its cut cannot be read.
    pub servers: Option<Vec<ServerRecord>>,
}

impl Anchor {
    /// What a backup and the record of its cut, if it could be read, say.
    #[must_use]
    pub fn new(backup: &StoredBackup, cut: Option<&CutRecord>) -> Self {
        Self {
            backup: backup.id.clone(),
            at: cut.map_or(backup.time.min(backup.received), |cut| cut.cut_at),
            servers: cut.map(|cut| cut.servers.clone()),
        }
    }
}

/// What goes of the log archive, and why the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LogsPlan {
    /// One for each source.
    pub sources: Vec<SourcePlan>,
}

/// What goes of one source's log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourcePlan {
    /// Whose log.
    pub source: SourceId,
    /// From where on it is kept, in words, and why.
    pub because: String,
    /// Whole epochs that go.
    pub epochs: Vec<EpochId>,
    /// The oldest epoch that stays, and its first segment that does: those before it go.
    pub from: Option<(EpochId, u64)>,
    /// How many segments go in all.
    pub segments: u64,
}

impl LogsPlan {
    /// Whether nothing goes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.iter().all(|source| source.epochs.is_empty() && source.segments == 0)
    }

    /// Whether a segment of a source's epoch goes, or, without a number, the epoch as a whole.
    #[must_use]
    pub fn drops(&self, source: &SourceId, epoch: &EpochId, number: Option<u64>) -> bool {
        let Some(plan) = self.sources.iter().find(|plan| plan.source == *source) else { return false };
        let before = plan.from.as_ref().filter(|(from, _)| from == epoch).map_or(0, |(_, first)| *first);
        plan.epochs.contains(epoch) || number.is_some_and(|number| number < before)
    }
}

/// Decides what goes of the log of one source, whose epochs are given in their order. `kept` are all backups that stay.
#[must_use]
pub fn plan(source: &SourceId, epochs: &[Epoch], kept: &[Anchor]) -> SourcePlan {
    let needed = kept.iter().filter_map(|anchor| Some((need(source, epochs, anchor)?, anchor)));
    let all = |because: &str| SourcePlan {
        source: source.clone(),
        because: because.to_owned(),
        epochs: Vec::new(),
        from: None,
        segments: 0,
    };
    if kept.is_empty() {
        return all("there is no backup yet, so all of it is kept");
    }
    let Some((need, anchor)) = needed.min_by_key(|(need, _)| (need.epoch, need.first)) else {
        return all("it has no epoch yet");
    };
    let (gone, stays) = epochs.split_at(need.epoch);
    let in_gone = gone.iter().map(|epoch| epoch.segments.len() as u64).sum::<u64>();
    let cut_off = stays.first().map_or(0, |epoch| before(epoch, need.first).count() as u64);
    SourcePlan {
        source: source.clone(),
        because: format!("kept from {} on: backup {} needs it", need.words, anchor.backup.short()),
        epochs: gone.iter().map(|epoch| epoch.record.epoch.clone()).collect(),
        from: stays.first().map(|epoch| (epoch.record.epoch.clone(), need.first)),
        segments: in_gone + cut_off,
    }
}

fn before(epoch: &Epoch, first: u64) -> impl Iterator<Item = &SegmentRecord> {
    epoch.segments.iter().filter(move |segment| segment.number < first)
}

/// From where on a backup needs a log.
struct Need {
    /// Index of the epoch.
    epoch: usize,
    /// The first segment of it.
    first: u64,
    words: String,
}

/// Nothing if there is no epoch at all.
fn need(source: &SourceId, epochs: &[Epoch], anchor: &Anchor) -> Option<Need> {
    let by_place = places(source, anchor).and_then(|place| by_place(epochs, &place));
    by_place.or_else(|| by_time(epochs, anchor.at))
}

/// Where a backup stands in the log of a source: the place that its files are replayed from.
fn places(source: &SourceId, anchor: &Anchor) -> Option<(u32, LogPlace)> {
    let server = anchor.servers.as_ref()?.iter().find(|server| server.source == *source)?;
    let place = server.replay_from.clone().or_else(|| server.position.binlog.clone())?;
    Some((server.server_id, LogPlace::Binlog(place)))
}

/// The earliest epoch of this server that the place can lie in: a file of the same name may be in several.
fn by_place(epochs: &[Epoch], (server_id, place): &(u32, LogPlace)) -> Option<Need> {
    let holds = |epoch: &Epoch| {
        let same = epoch.record.server.as_ref().is_none_or(|server| server.server_id == *server_id);
        let after = epoch.record.from.order(place).is_some_and(std::cmp::Ordering::is_le);
        let before = place.order(epoch.reached()).is_some_and(std::cmp::Ordering::is_le);
        same && after && before
    };
    let found = epochs.iter().position(holds)?;
    let over = |segment: &&SegmentRecord| segment.to.order(place).is_some_and(std::cmp::Ordering::is_le);
    let segments = &epochs[found].segments;
    // Everything up to a segment that ends where the backup stands, or before, is in the backup. The newest stays, so
    // that the epoch goes on from something.
    let first = segments.iter().take_while(over).last().map_or(1, |segment| segment.number + 1);
    let newest = segments.last().map_or(1, |segment| segment.number);
    Some(Need { epoch: found, first: first.min(newest), words: place.to_string() })
}

/// The last epoch that had begun a good while before this time. It is kept whole.
fn by_time(epochs: &[Epoch], at: Timestamp) -> Option<Need> {
    let sure = at.checked_sub(CLOCK_MARGIN).unwrap_or(Timestamp::MIN);
    // An epoch with a hole before it does not reach back, one that goes on from another may.
    let begun = |epoch: &Epoch| epoch.record.begun_at <= sure;
    let found = epochs.iter().position(|epoch| !begun(epoch)).unwrap_or(epochs.len()).saturating_sub(1);
    let epoch = epochs.get(found)?;
    let words = match epoch.record.kind {
        LogKind::SqliteWal => format!("the base of epoch {}", epoch.record.epoch),
        LogKind::Binlog => format!("epoch {}", epoch.record.epoch),
    };
    Some(Need { epoch: found, first: 1, words })
}

/// Keeps the bases that the point-in-time window needs, whatever the other rules say: the newest good backup whose cut is at
/// or before the window's beginning (or else the oldest), and after it one for each quarter of the window, so that the base
/// can move on. `reach` is the length of the window.
pub fn keep_bases(plan: &mut RetentionPlan, backups: &[StoredBackup], reach: SignedDuration, now: Timestamp) {
    let begins = now.checked_sub(reach).unwrap_or(Timestamp::MIN);
    let mut good: Vec<&StoredBackup> = backups.iter().filter(|backup| is_good(backup)).collect();
    good.sort_by_key(|backup| taken(backup));
    let base = good.partition_point(|backup| taken(backup) <= begins).saturating_sub(1);
    let mut next = Timestamp::MIN;
    let mut reason = "base of the point-in-time window";
    for backup in good.iter().skip(base).filter(|backup| taken(backup) <= now) {
        if taken(backup) >= next {
            plan.stays(&backup.id, reason.to_owned());
            next = taken(backup).checked_add(reach / 4).unwrap_or(Timestamp::MAX);
            reason = "a later base of the point-in-time window";
        }
    }
}

/// Not before the repository received it, whatever its writer says.
fn taken(backup: &StoredBackup) -> Timestamp {
    backup.time.max(backup.received)
}

/// Segments that the spool need not hold any more: closed, older than the local window, and in the repository by the
/// same SHA-256 (whether they can be read there is for the caller to prove). `is_closed` says which are closed and here. The
/// newest of all stays: by its first bytes the server's log is known again.
#[must_use]
pub fn spool_surplus(
    spool: &[Epoch],
    repository: &[Epoch],
    window: SignedDuration,
    now: Timestamp,
    is_closed: &dyn Fn(&EpochId, u64) -> bool,
) -> Vec<SegmentRecord> {
    let old = now.checked_sub(window).unwrap_or(Timestamp::MIN);
    let is_stored = |segment: &SegmentRecord| {
        let epoch = repository.iter().find(|epoch| epoch.record.epoch == segment.epoch);
        epoch.is_some_and(|epoch| {
            let lost = epoch.damaged.iter().any(|(number, _)| *number == segment.number);
            !lost && epoch.segments.iter().any(|s| s.number == segment.number && s.sha256 == segment.sha256)
        })
    };
    let all = spool.iter().flat_map(|epoch| &epoch.segments);
    let newest = spool.last().and_then(|epoch| epoch.segments.last());
    let is_newest = |segment: &SegmentRecord| newest.is_some_and(|newest| newest == segment);
    let over = all.filter(|segment| {
        segment.received.last < old && is_closed(&segment.epoch, segment.number) && !is_newest(segment)
    });
    over.filter(|segment| is_stored(segment)).cloned().collect()
}

#[cfg(test)]
mod tests;
