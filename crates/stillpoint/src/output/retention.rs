//! Retention as `prune` prints it: every backup with the reason why it stays or goes.
//!
//! Crash story: plain values, no effects.

use model::{
    id::{AppName, Relpath},
    logs_retention::LogsPlan,
    retention::RetentionPlan,
    size::Bytes,
};
use serde::Serialize;

use super::{Align, Report, Table, backups::utc, counted};

/// `prune`.
#[derive(Debug, Serialize)]
pub struct Prunes {
    /// One for each application.
    pub applications: Vec<Prune>,
}

/// What retention did, or would do, with one application.
#[derive(Debug, Serialize)]
pub struct Prune {
    /// Its short name.
    pub application: AppName,
    /// Its identity.
    pub relpath: Relpath,
    /// What stays and what goes.
    #[serde(flatten)]
    pub plan: RetentionPlan,
    /// What goes of the log archive; nothing if none is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<LogsPlan>,
    /// Whether it was carried out.
    pub carried_out: bool,
    /// What it freed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freed: Option<Bytes>,
}

impl Report for Prunes {
    fn text(&self) -> String {
        let texts: Vec<String> = self.applications.iter().map(Prune::text).collect();
        texts.join("\n\n")
    }
}

impl Prune {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            ("backup", Align::Left),
            ("received", Align::Left),
            ("", Align::Left),
            ("because", Align::Left),
        ]);
        let gone = if self.carried_out { "removed" } else { "would go" };
        for kept in &self.plan.keep {
            let reasons = kept.reasons.join(", ");
            table.row([kept.id.short().to_owned(), utc(kept.received), "kept".to_owned(), reasons]);
        }
        for removed in &self.plan.remove {
            let id = removed.id.short().to_owned();
            table.row([id, utc(removed.received), gone.to_owned(), removed.reason.clone()]);
        }
        let mut text = format!("{} ({})\n{}", self.application, self.relpath, table.text());
        for alarm in &self.plan.alarms {
            let backup = alarm.backup.as_ref().map(|id| format!("{}: ", id.short())).unwrap_or_default();
            text.push_str(&format!("\nlook at this: {backup}{}; {}", alarm.what, alarm.remedy));
        }
        for log in self.logs.iter().flat_map(|logs| &logs.sources) {
            let segments = counted(log.segments, "segment");
            text.push_str(&format!("\nlog of {}: {}; {segments} {gone}", log.source, log.because));
        }
        let (kept, removed) = (self.plan.keep.len(), self.plan.remove.len());
        text.push_str(&format!("\n{kept} kept, {removed} {gone}"));
        if let Some(freed) = self.freed {
            text.push_str(&format!(", {freed} freed"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use model::{
        id::{AppName, BackupId, Relpath, SourceId},
        logs_retention::{LogsPlan, SourcePlan},
        retention::{Kept, Removed, RetentionPlan},
        size::Bytes,
    };

    use super::{Prune, Prunes};
    use crate::output::Report;

    #[test]
    fn every_backup_has_its_reason() {
        let received = "2026-11-20T13:30:00Z".parse().unwrap();
        let plan = RetentionPlan {
            keep: vec![Kept {
                id: BackupId::new("ab".repeat(32)).unwrap(),
                received,
                reasons: vec!["newest of 2026-11-20".into(), "newest good".into()],
            }],
            remove: vec![Removed {
                id: BackupId::new("cd".repeat(32)).unwrap(),
                received,
                reason: "not the newest of its day".into(),
            }],
            alarms: vec![],
        };
        let prune = Prune {
            application: AppName::new("a").unwrap(),
            relpath: Relpath::new("x/a").unwrap(),
            plan,
            logs: Some(LogsPlan {
                sources: vec![SourcePlan {
                    source: SourceId::new("mariadb", "/s"),
                    because: "kept from b.000004:1000 on: backup abababab needs it".into(),
                    epochs: vec![],
                    from: None,
                    segments: 4,
                }],
            }),
            carried_out: true,
            freed: Some(Bytes(1024)),
        };
        let text = Prunes { applications: vec![prune] }.text();
        assert_eq!(
            text,
            "a (x/a)\n\
             backup    received                            because\n\
             abababab  2026-11-20T13:30:00+00:00  kept     newest of 2026-11-20, newest good\n\
             cdcdcdcd  2026-11-20T13:30:00+00:00  removed  not the newest of its day\n\
             log of mariadb:/s: kept from b.000004:1000 on: backup abababab needs it; 4 segments removed\n\
             1 kept, 1 removed, 1.0 KiB freed"
        );
    }
}
