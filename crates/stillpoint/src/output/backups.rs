//! Backups as `list` and `show` print them.
//!
//! Crash story: pure functions, no effects.

use jiff::{Timestamp, tz::Offset};
use model::{
    id::{AppName, BackupId, CutId, Relpath},
    record::{CutRecord, StoredBackup},
    size::Bytes,
    time::Millis,
    verdict::{Evidence, Stillness, Verdict},
};
use serde::Serialize;

use super::{Align, Report, Table, counted, problem_lines};
use crate::wire::log_store::LogState;

/// A time for people: UTC with offset, whole seconds.
#[must_use]
pub fn utc(time: Timestamp) -> String {
    time.display_with_offset(Offset::UTC).to_string().split_once('.').map_or_else(
        || time.display_with_offset(Offset::UTC).to_string(),
        |(seconds, _)| format!("{seconds}+00:00"),
    )
}

/// `list`.
#[derive(Debug, Serialize)]
pub struct Lists {
    /// One for each application.
    pub applications: Vec<List>,
}

/// The backups of one application.
#[derive(Debug, Serialize)]
pub struct List {
    /// Its short name.
    pub application: AppName,
    /// Its identity.
    pub relpath: Relpath,
    /// Oldest first.
    pub backups: Vec<Line>,
    /// What the frozen copies of the newest backup take up for themselves, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_bytes: Option<Bytes>,
    /// How far the log archive is, for each source.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogState>,
}

/// One backup in a list.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Its id.
    pub backup: BackupId,
    /// The instant of its cut, or what another program says of its snapshot.
    pub time: Timestamp,
    /// When the repository received it.
    pub received: Timestamp,
    /// Whether a person accepted it although it looks wrong.
    pub accepted: bool,
    /// Why its snapshot cannot be read, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
    /// What we recorded; nothing for a snapshot that is damaged or that another program made.
    #[serde(flatten)]
    pub ours: Option<Ours>,
}

/// What only backups of our own making have.
#[derive(Debug, Serialize)]
pub struct Ours {
    /// Its cut.
    pub cut: CutId,
    /// How good it is.
    pub verdict: Verdict,
    /// How long any writer could be held back.
    pub stall_ms: Millis,
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// What the repository grew by.
    pub bytes_added: Bytes,
    /// How many problems were recorded.
    pub problems: u64,
    /// The label that it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl From<StoredBackup> for Line {
    fn from(backup: StoredBackup) -> Self {
        let ours = backup.record.map(|record| Ours {
            cut: record.cut,
            verdict: record.verdict,
            stall_ms: record.stalls.total,
            files: record.files,
            bytes: record.bytes,
            bytes_added: record.bytes_added,
            problems: record.problem_count,
            label: record.label,
        });
        Self {
            backup: backup.id,
            time: backup.time,
            received: backup.received,
            accepted: backup.accepted,
            damaged: backup.damaged,
            ours,
        }
    }
}

impl Line {
    fn cells(&self) -> [String; 8] {
        let (id, time) = (self.backup.short().to_owned(), utc(self.time));
        let Some(ours) = &self.ours else {
            let none = String::new;
            let (what, why) = match &self.damaged {
                Some(why) => ("damaged", why.clone()),
                None => ("foreign", none()),
            };
            return [id, time, what.to_owned(), none(), none(), none(), none(), why];
        };
        let mut notes: Vec<String> = ours.label.iter().cloned().collect();
        if ours.problems > 0 {
            notes.push(counted(ours.problems, "problem"));
        }
        if self.accepted {
            notes.push("accepted".to_owned());
        }
        [
            id,
            time,
            ours.verdict.to_string(),
            ours.stall_ms.to_string(),
            ours.files.to_string(),
            ours.bytes.to_string(),
            ours.bytes_added.to_string(),
            notes.join(", "),
        ]
    }
}

impl Report for Lists {
    fn text(&self) -> String {
        let lists: Vec<String> = self.applications.iter().map(List::text).collect();
        lists.join("\n\n")
    }
}

impl List {
    fn text(&self) -> String {
        let heading = format!("{} ({})", self.application, self.relpath);
        if self.backups.is_empty() {
            let remedy = format!("`stillpoint backup {}` makes one", self.application);
            return format!("{heading}\nno backups yet; {remedy}{}", self.logs_text());
        }
        let mut table = Table::new(&[
            ("backup", Align::Left),
            ("time", Align::Left),
            ("verdict", Align::Left),
            ("stall", Align::Right),
            ("files", Align::Right),
            ("size", Align::Right),
            ("added", Align::Right),
            ("", Align::Left),
        ]);
        for backup in &self.backups {
            table.row(backup.cells());
        }
        let reference = self.reference_bytes.map_or_else(String::new, |own| {
            format!("\nfrozen copies kept for reading only what changes take up {own}")
        });
        format!("{heading}\n{}{reference}{}", table.text(), self.logs_text())
    }

    fn logs_text(&self) -> String {
        let line = |state: &LogState| {
            let lag = state.status.as_ref().map_or_else(String::new, |status| {
                let trouble = status.trouble.as_ref().map(|what| format!(" ({what})")).unwrap_or_default();
                let at = utc(status.at);
                format!("{:.1} s behind at {at}, at most {:.1} s{trouble}; ", status.lag_s, status.max_lag_s)
            });
            let stored = state
                .stored_until
                .map_or_else(|| "nothing".to_owned(), |time| format!("up to {}", utc(time)));
            format!("\nlog of {}: {lag}{stored} in the repository", state.source)
        };
        self.logs.iter().map(line).collect()
    }
}

/// `show`.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// What the list says of it.
    #[serde(flatten)]
    pub stored: StoredBackup,
    /// The record of its cut; nothing for a snapshot that another program made.
    #[serde(rename = "cut_record", skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutRecord>,
}

impl Report for Shown {
    fn text(&self) -> String {
        let mut text = format!("backup    {}\nreceived  {}", self.stored.id, utc(self.stored.received));
        if let Some(record) = &self.stored.record {
            text.push_str(&format!(
                "\nverdict   {}{}\nsize      {} in {}, {} added\ntook      {:.1} s",
                record.verdict,
                if self.stored.accepted { ", accepted by a person" } else { "" },
                record.bytes,
                counted(record.files, "file"),
                record.bytes_added,
                record.duration_s,
            ));
            if let Some(label) = &record.label {
                text.push_str(&format!("\nlabel     {label}"));
            }
        }
        match (&self.cut, &self.stored.damaged) {
            (Some(cut), _) => text.push_str(&cut_text(cut)),
            (None, Some(why)) => text.push_str(&format!("\nDAMAGED   {why}")),
            (None, None) => text.push_str("\nmade by another program: no record of a cut"),
        }
        if let Some(record) = &self.stored.record
            && !record.problems.is_empty()
        {
            text.push_str("\n\nproblems");
            text.push_str(&problem_lines(&record.problems, record.problem_count, 20));
        }
        text
    }
}

fn cut_text(cut: &CutRecord) -> String {
    let mut text = format!(
        "\n\ncut       {}\nserver    {}, VM {}\ninstant   {}\nstall     {}{}",
        cut.cut,
        cut.server,
        cut.vm,
        cut.cut_at.display_with_offset(Offset::UTC),
        cut.stalls.total,
        if cut.attempts == 1 { String::new() } else { format!(", at attempt {}", cut.attempts) },
    );
    for stall in &cut.stalls.per_hold {
        text.push_str(&format!("\n          {} by {}", stall.ms, stall.hold));
    }
    if let Some(downtime) = cut.stalls.downtime {
        text.push_str(&format!("\ndowntime  {downtime}"));
    }
    text.push_str("\n\nsources");
    for evidence in &cut.evidence {
        text.push_str(&evidence_text(evidence, cut));
    }
    text
}

fn evidence_text(evidence: &Evidence, cut: &CutRecord) -> String {
    let method = cut.pins.iter().find(|pin| pin.source == evidence.source).map(|pin| pin.method.as_str());
    let (word, why) = match &evidence.stillness {
        Stillness::Lock(why) => ("locked", why),
        Stillness::AtomicSnapshot(why) => ("one snapshot", why),
        Stillness::WritersFrozen(why) => ("writers frozen", why),
        Stillness::NothingChanged(why) => ("nothing changed", why),
        Stillness::NotShown(why) => ("NOT shown to stand still", why),
    };
    let pinned = method.map(|method| format!(", pinned by {method}")).unwrap_or_default();
    let mut text = format!("\n  {}{pinned}\n    {word}: {why}", evidence.source);
    for check in &evidence.checks {
        text.push_str(&format!("\n    {check}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Line, List, Lists, utc};
    use crate::output::Report;
    use model::{
        id::{AppName, BackupId, Relpath},
        record::StoredBackup,
    };

    #[test]
    fn times_are_utc_with_offset() {
        assert_eq!(utc("2026-11-20T14:30:00.123+01:00".parse().unwrap()), "2026-11-20T13:30:00+00:00");
        assert_eq!(utc("2026-11-20T13:30:00Z".parse().unwrap()), "2026-11-20T13:30:00+00:00");
    }

    fn without_record(damaged: Option<String>) -> Lists {
        let stored = StoredBackup {
            id: BackupId::new("ab".repeat(32)).unwrap(),
            time: "2026-11-20T13:30:00Z".parse().unwrap(),
            received: "2026-11-20T13:31:00Z".parse().unwrap(),
            record: None,
            damaged,
            accepted: false,
        };
        let list = List {
            application: AppName::new("hydro").unwrap(),
            relpath: Relpath::new("demo/hydro").unwrap(),
            backups: vec![Line::from(stored)],
            reference_bytes: None,
            logs: vec![],
        };
        Lists { applications: vec![list] }
    }

    #[test]
    fn a_damaged_snapshot_is_listed_as_such() {
        let lists = without_record(Some("it does not decrypt".into()));
        let text = lists.text();
        assert!(text.contains("  damaged  ") && text.ends_with("it does not decrypt"), "{text}");
        let json = serde_json::to_value(&lists).unwrap();
        assert_eq!(json["applications"][0]["backups"][0]["damaged"], "it does not decrypt");
    }

    #[test]
    fn a_foreign_snapshot_is_listed_as_such() {
        let lists = without_record(None);
        assert!(lists.text().ends_with("abababab  2026-11-20T13:30:00+00:00  foreign"), "{}", lists.text());
        let json = serde_json::to_value(&lists).unwrap();
        assert_eq!(json["applications"][0]["backups"][0]["accepted"], false);
        assert!(json["applications"][0]["backups"][0].get("verdict").is_none());
    }
}
