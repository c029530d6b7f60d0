//! Which backups to keep and which to remove, with the reason for each: a pure function.
//!
//! Every decision rests on when the *repository* received a backup, never on what its writer claims, and
//! counts only hours, days and so on that have a backup: a clock that jumps ahead evicts nothing.
//!
//! A backup is of one of four kinds, which [`plan`] treats so:
//! - **good**: made by us, holding files, complete, and of a likely size, or accepted by a person. Only good
//!   ones fill the hours, days and counts of [`Keep`]. The newest good one stays whatever the rules say, and
//!   so does the newest one with the verdict `consistent`.
//!   One with a label, taken by a person for a reason, stays for [`LABELS_STAY`] besides.
//! - **suspicious** (promise 6): incomplete, without files, or found too small by [`looks_wrong`] when it was
//!   made. It fills nothing, so it never causes a good one to be removed. It stays until a person accepts it
//!   (then it is good), or until [`SUSPECTS_OUTNUMBERED`] good ones were received after it and
//!   [`SUSPECTS_STAY`] has passed.
//! - **foreign**: made by another program. Never removed; fills nothing.
//! - **damaged**: its snapshot cannot be read. Never removed; fills nothing; an alarm names it.
//! - **of the future**: good, but received later than now by the repository's own clock. Stays, fills nothing.
//!
//! The size is judged once, when the backup is made, and kept in its record: retention thins out what it was
//! compared with, so a later judgement would differ, and a plan would undo the one before.
//!
//! Crash story: pure functions, no effects. A plan carried out in part, or twice, and made anew leads to the
//! same kept backups.

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use serde::Serialize;

use crate::{
    id::BackupId,
    inventory::Keep,
    record::{BackupRecord, StoredBackup},
    size::Bytes,
    verdict::Verdict,
};

/// How many good backups must have been received after a suspicious one before it can be removed.
pub const SUSPECTS_OUTNUMBERED: usize = 7;
/// How long a suspicious backup stays at least.
pub const SUSPECTS_STAY: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How long a good backup with a label stays at least.
pub const LABELS_STAY: SignedDuration = SignedDuration::from_hours(30 * 24);
/// With how many good backups before it a new one is compared.
pub const COMPARED_WITH: usize = 7;
/// A backup received later than now by more than this is of the future: two machines' clocks may differ.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// What retention would do. `prune --dry-run` prints this value; `prune` carries it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionPlan {
    /// What stays, oldest first, each with at least one reason.
    pub keep: Vec<Kept>,
    /// What goes, oldest first.
    pub remove: Vec<Removed>,
    /// What a person should look at.
    pub alarms: Vec<Alarm>,
}

/// A backup that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The backup.
    pub id: BackupId,
    /// When the repository received it.
    pub received: Timestamp,
    /// Why it stays, such as "newest of 2026-11-19"; never empty.
    pub reasons: Vec<String>,
}

/// A backup that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The backup.
    pub id: BackupId,
    /// When the repository received it.
    pub received: Timestamp,
    /// Why it goes.
    pub reason: String,
}

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alarm {
    /// The backup it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// What is the matter.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl RetentionPlan {
    /// Adds a reason for keeping a backup, which then is not removed.
    pub fn stays(&mut self, backup: &BackupId, reason: String) {
        if let Some(kept) = self.keep.iter_mut().find(|kept| kept.id == *backup) {
            kept.reasons.push(reason);
        } else if let Some(at) = self.remove.iter().position(|removed| removed.id == *backup) {
            let Removed { id, received, .. } = self.remove.remove(at);
            let place = self.keep.partition_point(|kept| kept.received <= received);
            self.keep.insert(place, Kept { id, received, reasons: vec![reason] });
        }
    }

    /// The ids of what goes.
    #[must_use]
    pub fn removed_ids(&self) -> Vec<BackupId> {
        self.remove.iter().map(|r| r.id.clone()).collect()
    }
}

/// Why a backup looks wrong and has not been accepted; nothing for a good one and for a foreign one.
#[must_use]
pub fn suspicion(backup: &StoredBackup) -> Option<String> {
    let record = backup.record.as_ref().filter(|_| !backup.accepted)?;
    if record.verdict == Verdict::Incomplete {
        Some("it is incomplete".to_owned())
    } else if record.files == 0 {
        Some("it holds no files".to_owned())
    } else {
        record.looks_wrong.clone()
    }
}

/// Whether a backup counts as one that can be relied on: ours and not suspicious. Ours have been compared
/// with what was pinned before they were listed.
#[must_use]
pub fn is_good(backup: &StoredBackup) -> bool {
    backup.record.is_some() && suspicion(backup).is_none()
}

/// Judges the size of a new backup, for [`BackupRecord::looks_wrong`]: under half the median files or bytes
/// of the last seven good backups before it (of as many as there are). Once a person has accepted a backup,
/// only that one and later ones are compared with: it says that the new size is right.
#[must_use]
pub fn looks_wrong(previous: &[StoredBackup], files: u64, bytes: Bytes) -> Option<String> {
    let mut good: Vec<&StoredBackup> = previous.iter().filter(|b| is_good(b)).collect();
    good.sort_by(|a, b| order(a, b));
    let accepted = good.iter().rposition(|b| b.accepted).unwrap_or(0);
    let from = accepted.max(good.len().saturating_sub(COMPARED_WITH));
    let records: Vec<&BackupRecord> = good[from..].iter().filter_map(|b| b.record.as_ref()).collect();
    let usual_files = median(records.iter().map(|r| r.files).collect())?;
    let usual_bytes = median(records.iter().map(|r| r.bytes.0).collect())?;
    if files < usual_files.div_ceil(2) {
        Some(format!("it holds {files} files where the last {} held {usual_files}", records.len()))
    } else if bytes.0 < usual_bytes.div_ceil(2) {
        let usual = Bytes(usual_bytes);
        Some(format!("its files hold {bytes} where those of the last {} held {usual}", records.len()))
    } else {
        None
    }
}

/// The middle value, or the mean of the two middle ones.
fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(lower.midpoint(upper))
}

fn order(a: &StoredBackup, b: &StoredBackup) -> std::cmp::Ordering {
    a.received.cmp(&b.received).then(a.time.cmp(&b.time)).then(a.id.cmp(&b.id))
}

/// Decides what stays and what goes. `now` is the clock that `received` was taken from.
#[must_use]
pub fn plan(backups: &[StoredBackup], keep: &Keep, now: Timestamp) -> RetentionPlan {
    let mut ordered: Vec<&StoredBackup> = backups.iter().collect();
    ordered.sort_by(|a, b| order(a, b));
    let latest = now.checked_add(CLOCK_TOLERANCE).unwrap_or(Timestamp::MAX);
    let counting = |b: &StoredBackup| is_good(b) && b.received <= latest;

    let mut rules = Rules::new(keep);
    let (mut kept, mut remove, mut alarms) = (Vec::new(), Vec::new(), Vec::new());
    let mut newer_good = 0;
    for &backup in ordered.iter().rev() {
        let decision = if counting(backup) {
            newer_good += 1;
            rules.reasons(backup, now)
        } else {
            alarms.extend(alarm(backup));
            set_aside(backup, newer_good, now)
        };
        let (id, received) = (backup.id.clone(), backup.received);
        match decision {
            Decision::Keep(reasons) => kept.push(Kept { id, received, reasons }),
            Decision::Remove(reason) => remove.push(Removed { id, received, reason }),
        }
    }
    if newer_good == 0 && !ordered.is_empty() {
        alarms.push(Alarm {
            backup: None,
            what: "there is no backup that can be relied on".to_owned(),
            remedy: "look at the ones that look wrong, and take a new one".to_owned(),
        });
    }
    kept.reverse();
    remove.reverse();
    alarms.reverse();
    RetentionPlan { keep: kept, remove, alarms }
}

enum Decision {
    Keep(Vec<String>),
    Remove(String),
}

/// What becomes of a backup that fills no hour, day or count.
fn set_aside(backup: &StoredBackup, newer_good: usize, now: Timestamp) -> Decision {
    if backup.damaged.is_some() {
        return Decision::Keep(vec!["damaged".to_owned()]);
    }
    if backup.record.is_none() {
        return Decision::Keep(vec!["made by another program".to_owned()]);
    }
    let Some(why) = suspicion(backup) else {
        return Decision::Keep(vec!["its time lies in the future".to_owned()]);
    };
    if newer_good >= SUSPECTS_OUTNUMBERED && now.duration_since(backup.received) >= SUSPECTS_STAY {
        Decision::Remove(format!("looks wrong ({why}), and {newer_good} good ones came after it"))
    } else {
        Decision::Keep(vec![format!("looks wrong ({why}): stays until it is accepted or outnumbered")])
    }
}

fn alarm(backup: &StoredBackup) -> Option<Alarm> {
    let short = backup.id.short();
    if let Some(why) = &backup.damaged {
        return Some(Alarm {
            backup: Some(backup.id.clone()),
            what: format!("backup {short} is damaged: {why}"),
            remedy: "bring its snapshot file back from another tier; `stillpoint check` names it".to_owned(),
        });
    }
    backup.record.as_ref()?;
    let (what, remedy) = match suspicion(backup) {
        Some(why) => (
            format!("backup {short} looks wrong: {why}"),
            format!("if it is as it should be, accept it: `stillpoint prune APP --accept {short}`"),
        ),
        None => (
            format!("backup {short} was received in the future, at {}", backup.received),
            "set the clock of whatever keeps the repository right".to_owned(),
        ),
    };
    Some(Alarm { backup: Some(backup.id.clone()), what, remedy })
}

/// That a label keeps a backup.
fn label(backup: &StoredBackup, now: Timestamp) -> Option<String> {
    let label = backup.record.as_ref()?.label.as_ref()?;
    let is_young = now.duration_since(backup.received) < LABELS_STAY;
    is_young.then(|| format!("labelled {label:?}, less than {} days old", LABELS_STAY.as_hours() / 24))
}

/// The rules of a [`Keep`], walked from the newest good backup to the oldest.
struct Rules {
    last: u32,
    left: u32,
    periods: Vec<Period>,
    newest_is_kept: bool,
    consistent_is_kept: bool,
}

struct Period {
    noun: &'static str,
    left: u32,
    name: fn(DateTime) -> String,
    filled: Option<String>,
}

impl Rules {
    fn new(keep: &Keep) -> Self {
        let period = |noun, left, name| Period { noun, left, name, filled: None };
        let periods = vec![
            period("hour", keep.hourly, |t| format!("hour {}", t.strftime("%Y-%m-%dT%H"))),
            period("day", keep.daily, |t| t.strftime("%Y-%m-%d").to_string()),
            period("week", keep.weekly, |t| format!("week {}", t.strftime("%G-W%V"))),
            period("month", keep.monthly, |t| format!("month {}", t.strftime("%Y-%m"))),
            period("year", keep.yearly, |t| format!("year {}", t.strftime("%Y"))),
        ];
        let (last, left) = (keep.last, keep.last);
        Self { last, left, periods, newest_is_kept: false, consistent_is_kept: false }
    }

    /// Whether this good backup, older than all asked about before, stays.
    fn reasons(&mut self, backup: &StoredBackup, now: Timestamp) -> Decision {
        let mut reasons: Vec<String> = label(backup, now).into_iter().collect();
        if self.left > 0 {
            self.left -= 1;
            reasons.push(format!("one of the last {}", self.last));
        }
        let received = TimeZone::UTC.to_datetime(backup.received);
        for period in &mut self.periods {
            let name = (period.name)(received);
            if period.left > 0 && period.filled.as_ref() != Some(&name) {
                period.left -= 1;
                reasons.push(format!("newest of {name}"));
                period.filled = Some(name);
            }
        }
        if !self.newest_is_kept {
            self.newest_is_kept = true;
            reasons.push("the newest good backup".to_owned());
        }
        let consistent = backup.record.as_ref().is_some_and(|r| r.verdict == Verdict::Consistent);
        if consistent && !self.consistent_is_kept {
            self.consistent_is_kept = true;
            reasons.push("the newest consistent backup".to_owned());
        }
        if reasons.is_empty() { Decision::Remove(self.why_not()) } else { Decision::Keep(reasons) }
    }

    fn why_not(&self) -> String {
        let nouns: Vec<&str> = self.periods.iter().filter(|p| p.filled.is_some()).map(|p| p.noun).collect();
        if nouns.is_empty() {
            return format!("not one of the last {}", self.last);
        }
        format!("not the newest of any {} that is kept", nouns.join(", "))
    }
}

#[cfg(test)]
mod tests;
