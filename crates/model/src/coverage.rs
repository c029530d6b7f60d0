//! What can be restored: intervals of time per database and for the application as a whole, the holes between them with their
//! cause, and how far the archive is behind.
//!
//! Crash story: plain values, pure functions, no effects.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::{
    id::{AppName, BackupId, SourceId},
    logs::{Epoch, HoleCause, LogStatus},
    recovery::{Base, Run, index_in, runs},
    verdict::Verdict,
};

/// An archive that has not said anything for longer than this stands still.
const SILENT: SignedDuration = SignedDuration::from_secs(60);

/// Moments that can be restored, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Interval {
    /// The first.
    pub from: Timestamp,
    /// The last.
    pub to: Timestamp,
}

/// Moments that cannot be restored, both ends excluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// From here.
    pub from: Timestamp,
    /// To here.
    pub to: Timestamp,
    /// Why, if a part of the log is missing.
    pub cause: Option<HoleCause>,
    /// For people.
    pub detail: String,
}

/// How an archive is doing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lag {
    /// Seconds from a commit to its being on disk in the archive, when it last said so.
    pub lag_s: f64,
    /// The largest since it was started.
    pub max_lag_s: f64,
    /// Seconds since it last stood at the end of the log.
    pub behind_s: Option<f64>,
    /// Seconds since it last said anything.
    pub silent_s: f64,
    /// Commits wait for it.
    pub acknowledging: bool,
}

/// What can be restored of one database.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceCoverage {
    /// The database.
    pub source: SourceId,
    /// The moments.
    pub intervals: Vec<Interval>,
    /// Those that cannot be, up to the end of the last interval.
    pub holes: Vec<Hole>,
    /// How the archive is doing; nothing if it has never run.
    pub lag: Option<Lag>,
    /// What is wrong with it now.
    pub problems: Vec<String>,
}

/// A backup in a coverage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tick {
    /// The backup.
    pub backup: BackupId,
    /// Its instant.
    pub time: Timestamp,
    /// How good it is.
    pub verdict: Option<Verdict>,
}

/// What can be restored of an application.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coverage {
    /// The application.
    pub application: AppName,
    /// When this was found out.
    pub now: Timestamp,
    /// From here on every moment is wanted, if any are.
    pub wanted_from: Option<Timestamp>,
    /// All databases with an archive, and files.
    pub whole: Vec<Interval>,
    /// Where that is not so, from the first moment that can be restored, or is wanted, on.
    pub holes: Vec<Hole>,
    /// Each database with an archive.
    pub databases: Vec<SourceCoverage>,
    /// Databases without one: only the instants of backups can be restored.
    pub without_archive: Vec<SourceId>,
    /// The backups, oldest first.
    pub backups: Vec<Tick>,
    /// Why some have none, with the remedy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What is wrong, so that a program ends with a status other than 0.
    pub problems: Vec<String>,
}

/// What is known of one log.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The database.
    pub source: &'a SourceId,
    /// Its epochs, in their order.
    pub epochs: &'a [Epoch],
    /// How far the archive is.
    pub status: Option<&'a LogStatus>,
    /// What else was found to be damaged.
    pub damaged: &'a [String],
    /// The newest backup has a dump of it.
    pub is_dump: bool,
}

/// The moments that can be restored from these runs.
#[must_use]
pub fn intervals(runs: &[Run<'_>], bases: &[Base], caught_up_at: Option<Timestamp>) -> Vec<Interval> {
    let last = runs.len().saturating_sub(1);
    let of = |(index, run): (usize, &Run<'_>)| {
        let from = bases.iter().filter(|base| index_in(run, base).is_some()).map(|base| base.time).min()?;
        let caught_up = caught_up_at.filter(|_| index == last && !run.has_damaged_end());
        // A copy that is younger than all of its run reaches no moment of it.
        let to = run.latest().max(caught_up).filter(|to| *to >= from)?;
        Some(Interval { from, to })
    };
    runs.iter().enumerate().filter_map(of).collect()
}

impl SourceCoverage {
    /// What can be restored of one database, with these bases.
    #[must_use]
    pub fn new(known: &Known<'_>, bases: &[Base], now: Timestamp) -> Self {
        let found = runs(known.epochs);
        let caught_up_at = known.status.and_then(|status| status.caught_up_at);
        let last = found.len().saturating_sub(1);
        let (mut restorable, mut holes) = (Vec::<Interval>::new(), Vec::new());
        let mut detail: Option<(Option<HoleCause>, String)> = None;
        for (index, run) in found.iter().enumerate() {
            let caught_up = caught_up_at.filter(|_| index == last);
            if index > 0 || run.before.cause.is_some() {
                let known = detail.take();
                detail = Some(known.unwrap_or((run.before.cause, run.before.detail.clone())));
            }
            let Some(mut interval) = intervals(std::slice::from_ref(run), bases, caught_up).pop() else {
                continue;
            };
            if let Some(before) = restorable.last() {
                let (cause, detail) = detail.take().unwrap_or((None, String::new()));
                if interval.from > before.to {
                    let detail = format!("{detail}; restorable again from the next copy on");
                    holes.push(Hole { from: before.to, to: interval.from, cause, detail });
                } else {
                    // A clock was set back: the earlier run has the first moments.
                    interval.from = before.to.min(interval.to);
                }
            }
            detail = None;
            restorable.push(interval);
        }
        let mut problems = troubles(known, now);
        if known.is_dump {
            let what = "the newest backup has it as a dump, onto which no log can be replayed: only its instant can be \
                        restored";
            problems.push(what.to_owned());
        } else if let (Some((_, what)), false) = (detail, found.is_empty()) {
            problems.push(format!("no copy lies on its log since this: {what}; make a backup"));
        } else if restorable.is_empty() {
            problems
                .push("nothing can be restored from its log: no copy lies on it; make a backup".to_owned());
        }
        let lag = known.status.map(|status| lag(status, now));
        Self { source: known.source.clone(), intervals: restorable, holes, lag, problems }
    }
}

/// What is wrong with an archive now.
fn troubles(known: &Known<'_>, now: Timestamp) -> Vec<String> {
    let mut problems: Vec<String> = known.damaged.to_vec();
    for epoch in known.epochs {
        for (number, what) in &epoch.damaged {
            problems.push(format!("segment {number} of epoch {} {what}", epoch.record.epoch));
        }
    }
    match known.status {
        None => problems.push("the archive has never run".to_owned()),
        Some(status) if now.duration_since(status.at) > SILENT => {
            let since = crate::recovery::duration(now.duration_since(status.at).as_secs());
            problems.push(format!("the archive stands still: it was last heard of {since} ago"));
        }
        Some(status) => {
            problems.extend(status.trouble.iter().map(|trouble| format!("nothing is archived: {trouble}")));
        }
    }
    problems
}

/// How an archive is doing.
#[must_use]
pub fn lag(status: &LogStatus, now: Timestamp) -> Lag {
    let since = |then: Timestamp| now.duration_since(then).as_secs_f64().max(0.0);
    Lag {
        lag_s: status.lag_s,
        max_lag_s: status.max_lag_s,
        behind_s: status.caught_up_at.map(since),
        silent_s: since(status.at),
        acknowledging: status.acknowledging,
    }
}

impl Coverage {
    /// What can be restored of an application. `wanted` is how far back every moment is wanted.
    #[must_use]
    pub fn new(
        application: AppName,
        now: Timestamp,
        wanted: Option<SignedDuration>,
        databases: Vec<SourceCoverage>,
        without_archive: Vec<SourceId>,
        mut backups: Vec<Tick>,
    ) -> Self {
        backups.sort_by_key(|tick| tick.time);
        let mut coverage = Self {
            application,
            now,
            wanted_from: None,
            whole: Vec::new(),
            holes: Vec::new(),
            databases,
            without_archive,
            backups,
            notes: Vec::new(),
            problems: Vec::new(),
        };
        coverage.wanted_from =
            wanted.filter(|_| !coverage.databases.is_empty()).and_then(|w| now.checked_sub(w).ok());
        coverage.whole = coverage.together();
        coverage.holes = coverage.all_holes();
        coverage.problems = coverage.judged();
        coverage
    }

    /// Databases that have no log that could be archived, each with its remedy: wrong if every moment is wanted, or if they had
    /// a log before.
    #[must_use]
    pub fn without_log(mut self, found: Vec<(SourceId, String)>, is_wanted: bool) -> Self {
        for (source, what) in found {
            let had_one = self.databases.iter().any(|database| database.source == source);
            if is_wanted || had_one { &mut self.problems } else { &mut self.notes }.push(what);
        }
        self
    }

    /// Files are there from the first backup on.
    fn together(&self) -> Vec<Interval> {
        let (Some(first), false) = (self.backups.first(), self.databases.is_empty()) else {
            return Vec::new();
        };
        let mut whole = vec![Interval { from: first.time, to: Timestamp::MAX }];
        for database in &self.databases {
            let meets = |a: &Interval, b: &Interval| {
                let (from, to) = (a.from.max(b.from), a.to.min(b.to));
                (from <= to).then_some(Interval { from, to })
            };
            whole = whole
                .iter()
                .flat_map(|a| database.intervals.iter().filter_map(move |b| meets(a, b)))
                .collect();
        }
        whole
    }

    /// The holes of all databases, where the whole has one.
    fn all_holes(&self) -> Vec<Hole> {
        let mut holes = Vec::new();
        for pair in self.whole.windows(2) {
            let (from, to) = (pair[0].to, pair[1].from);
            let overlaps = |hole: &&Hole| hole.from < to && from < hole.to;
            let found =
                self.databases.iter().flat_map(|d| d.holes.iter().filter(overlaps).map(move |h| (d, h)));
            let found: Vec<(&SourceCoverage, &Hole)> = found.collect();
            let cause = found.first().and_then(|(_, hole)| hole.cause);
            let details: Vec<String> =
                found.iter().map(|(d, hole)| format!("{}: {}", d.source, hole.detail)).collect();
            holes.push(Hole { from, to, cause, detail: details.join("; ") });
        }
        holes
    }

    fn judged(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for database in &self.databases {
            problems.extend(database.problems.iter().map(|what| format!("{}: {what}", database.source)));
        }
        if !self.databases.is_empty() && self.whole.is_empty() {
            problems.push("no moment between backups can be restored".to_owned());
        }
        for hole in &self.holes {
            if self.wanted_from.is_some_and(|wanted| hole.to > wanted) {
                problems.push(format!(
                    "nothing between {} and {} can be restored: {}",
                    hole.from, hole.to, hole.detail
                ));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests;
