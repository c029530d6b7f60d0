//! A plan as `plan` and `backup --dry-run` print it: the very value that a backup executes.
//!
//! Crash story: plain values, no effects.

use model::{
    inventory::{InventoryError, ProcessSelector, show_duration},
    pace::Pace,
    pathtext::show,
    plan::{CutPlan, Facts, HoldMethod, PinMethod, ProcessMethod, SqliteFacts},
    reference::Reading,
    server::ServerFacts,
    size::Bytes,
};
use serde::Serialize;

use super::{Report, problem_lines};

/// `plan`.
#[derive(Debug, Serialize)]
pub struct Plans {
    /// One for each application.
    pub applications: Vec<Planned>,
}

/// What a backup of one application would do, and what it was decided from.
#[derive(Debug, Serialize)]
pub struct Planned {
    /// The plan.
    #[serde(flatten)]
    pub plan: CutPlan,
    /// What was found out.
    pub facts: Facts,
    /// How files would be read, and what that costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reading: Option<PlannedReading>,
    /// How hard it would go at the disks after the thaw.
    pub pace: Pace,
    /// Paths of the inventory that do not exist.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<InventoryError>,
}

/// How files would be read.
#[derive(Debug, Serialize)]
pub struct PlannedReading {
    /// What is decided.
    #[serde(flatten)]
    pub reading: Reading,
    /// What the frozen copies of the backup before take up for themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_bytes: Option<Bytes>,
}

impl Report for Plans {
    fn text(&self) -> String {
        let texts: Vec<String> = self.applications.iter().map(Planned::text).collect();
        texts.join("\n\n")
    }
}

impl Planned {
    fn text(&self) -> String {
        let plan = &self.plan;
        let mut text = format!("{} ({})", plan.application, plan.relpath);
        text.push_str("\nhold, in this order; let go in reverse");
        if plan.holds.is_empty() {
            text.push_str("\n  nobody");
        }
        for hold in &plan.holds {
            text.push_str(&format!("\n  {}\n    because {}", hold_words(&hold.method), hold.why));
        }
        text.push_str("\npin");
        for pin in &plan.pins {
            text.push_str(&format!(
                "\n  {} by {}, in {}\n    because {}{}",
                pin.source,
                method_name(&pin.method),
                show(&pin.staging),
                pin.why,
                self.measure(pin.source.as_str()),
            ));
        }
        text.push_str(&format!(
            "\npredicted stall {}, at most {}; a verdict below {} is exit status 3",
            plan.predicted_stall,
            show_duration(plan.stall_budget),
            plan.require
        ));
        if let Some(PlannedReading { reading, reference_bytes }) = &self.reading {
            text.push_str(&format!("\nread {}", reading.describe()));
            if let Some(own) = reference_bytes {
                text.push_str(&format!("\n  the frozen copies of the backup before take up {own}"));
            }
        }
        if let Some(pace) = self.pace.describe() {
            text.push_str(&format!("\nread and store {pace}"));
        }
        for note in &plan.notes {
            text.push_str(&format!("\n  note: {note}"));
        }
        text.push_str(&problem_lines(&plan.problems, plan.problems.len() as u64, usize::MAX));
        for error in &self.missing {
            text.push_str(&format!("\n  missing: {error}"));
        }
        if let Some(refusal) = &plan.refused {
            text.push_str(&format!("\nREFUSED: {}\n  what to do: {}", refusal.what, refusal.remedy));
        }
        text
    }

    /// What was measured of a source.
    fn measure(&self, source: &str) -> String {
        let facts = &self.facts;
        if let Some(directory) = facts.directories.iter().find(|d| d.source.as_str() == source) {
            return format!("\n    {} names on {}", directory.entries, directory.filesystem);
        }
        if let Some(server) = facts.servers.iter().find(|d| d.source.as_str() == source) {
            return server_measure(server);
        }
        facts.sqlite.iter().find(|d| d.source.as_str() == source).map(sqlite_measure).unwrap_or_default()
    }
}

/// What a server is like, in a few lines.
fn server_measure(facts: &ServerFacts) -> String {
    let mut lines = Vec::new();
    if let Some(version) = &facts.version {
        let role = if facts.replicas.is_empty() { "" } else { ", a replica" };
        lines.push(format!("{} {}, server id {}{role}", version.flavor, version.text, facts.server_id));
    }
    let engines: Vec<String> = facts.engines.iter().map(|e| format!("{} {}", e.tables, e.name)).collect();
    if !engines.is_empty() {
        lines.push(format!("tables: {}", engines.join(", ")));
    }
    lines.push(match &facts.binlog {
        Some(log) => format!("binary log {}, {}, sync_binlog {}", show(&log.basename), log.format, log.sync),
        None => "no binary log: nothing between two backups can be brought back".to_owned(),
    });
    for root in &facts.roots {
        lines.push(format!("{} on {}", show(&root.path), root.filesystem));
    }
    lines.into_iter().map(|line| format!("\n    {line}")).collect()
}

fn sqlite_measure(facts: &SqliteFacts) -> String {
    let mut text = format!("\n    {} and {} in its WAL", facts.bytes, facts.wal_bytes);
    if let Some(extents) = facts.extents {
        #[allow(clippy::cast_precision_loss, reason = "shown to people, rounded")]
        let gib = (facts.bytes.0 + facts.wal_bytes.0).max(1) as f64 / (1_u64 << 30) as f64;
        #[allow(clippy::cast_precision_loss, reason = "shown to people, rounded")]
        let per_gib = extents as f64 / gib;
        // Of a small file the figure per GiB says nothing.
        let per_gib = if gib >= 0.1 { format!(", {per_gib:.0} per GiB") } else { String::new() };
        text.push_str(&format!(", {extents} extents{per_gib}"));
    }
    text
}

fn hold_words(method: &HoldMethod) -> String {
    match method {
        HoldMethod::StopHook { stop, start } => {
            format!("run `{}`, and `{}` on every way out", stop.run, start.run)
        }
        HoldMethod::SqliteLock { path, .. } => format!("a child process locks {}", show(path)),
        HoldMethod::Processes { selector, method } => {
            let how = match method {
                ProcessMethod::Ptrace => "by ptrace".to_owned(),
                ProcessMethod::Freezer { cgroup } => format!("by the freezer of {}", show(cgroup)),
                ProcessMethod::Stop => "by SIGSTOP".to_owned(),
            };
            match selector {
                ProcessSelector::Unit(unit) => format!("the processes of {unit} {how}"),
                ProcessSelector::PidFile(file) => format!("the processes of {} {how}", show(file)),
                ProcessSelector::Process(process) => format!("process {} {how}", process.pid),
            }
        }
        HoldMethod::ServerSlowLock(_) | HoldMethod::ServerFinalLock(_) | HoldMethod::ServerProcess { .. } => {
            method.describe()
        }
    }
}

/// The method's name, as in records.
#[must_use]
pub fn method_name(method: &PinMethod) -> &'static str {
    method.name()
}
