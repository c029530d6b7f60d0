//! A plan as lines for people.
//!
//! Crash story: pure functions, no effects.

use crate::{
    inventory::{ProcessSelector, show_duration},
    pathtext,
    plan::{CutPlan, HoldMethod, PinMethod, ProcessMethod, TreePlan},
    problem::Effect,
};

impl CutPlan {
    /// The plan as lines for people: what would be held and pinned in which order, why, and what is wrong.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let mut lines = vec![format!("{} ({})", self.application, self.relpath)];
        for hold in &self.holds {
            lines.push(format!("  hold  {}", hold.method.describe()));
            lines.push(format!("        because {}", hold.why));
        }
        for pin in &self.pins {
            lines.push(format!("  pin   {}: {}", pin.source, pin.method.describe()));
            lines.push(format!("        because {}", pin.why));
        }
        let (stall, budget) = (self.predicted_stall, show_duration(self.stall_budget));
        lines.push(format!("  stall {stall} predicted, {budget} allowed"));
        lines.extend(self.problems.iter().map(|problem| {
            let effect = match problem.effect {
                Effect::Note => "note ",
                Effect::Weaker => "weak ",
                Effect::Missing => "lacks",
            };
            format!("  {effect} {problem}")
        }));
        lines.extend(self.notes.iter().map(|note| format!("  note  {note}")));
        if let Some(refusal) = &self.refused {
            lines.push(format!("  refused: {}; {}", refusal.what, refusal.remedy));
        }
        lines
    }
}

impl HoldMethod {
    fn describe(&self) -> String {
        match self {
            Self::StopHook { stop, start } => {
                let (t, u) = (show_duration(stop.timeout), show_duration(start.timeout));
                format!("stop by `{}` (up to {t}), start by `{}` (up to {u})", stop.run, start.run)
            }
            Self::SqliteLock { path, .. } => format!("lock {} against writers", pathtext::show(path)),
            Self::Processes { selector, method } => {
                let whom = match selector {
                    ProcessSelector::Unit(unit) => unit.clone(),
                    ProcessSelector::PidFile(path) => format!("pid file {}", pathtext::show(path)),
                };
                let how = match method {
                    ProcessMethod::Ptrace => "ptrace".to_owned(),
                    ProcessMethod::Freezer { cgroup } => format!("the freezer of {}", pathtext::show(cgroup)),
                    ProcessMethod::Stop => "SIGSTOP".to_owned(),
                };
                format!("the processes of {whom} by {how}")
            }
        }
    }
}

impl PinMethod {
    fn describe(&self) -> String {
        match self {
            Self::BtrfsSnapshot(tree) => format!("btrfs snapshot{}", left_out(tree)),
            Self::TwoPassReflink(tree) => format!("two passes of clones{}", left_out(tree)),
            Self::TwoPassCopy(tree) => format!("two passes of copies{}", left_out(tree)),
            Self::SqliteReflink(_) => "clone of database and -wal".to_owned(),
            Self::SqliteTransaction(_) => "read transaction, copied after the cut".to_owned(),
            Self::SqlitePages(_) => "copy, compared under the lock".to_owned(),
        }
    }
}

fn left_out(tree: &TreePlan) -> String {
    let excluded = tree.exclude.iter().cloned();
    let carved = tree.carved.iter().map(|path| pathtext::show(path));
    let all: Vec<String> = excluded.chain(carved).collect();
    if all.is_empty() { String::new() } else { format!(", without {}", all.join(", ")) }
}
