//! A plan as lines for people.
//!
//! Crash story: pure functions, no effects.

use std::collections::BTreeSet;

use crate::{
    inventory::{ProcessSelector, show_duration},
    pathtext,
    plan::{CutPlan, HoldMethod, PinMethod, ProcessMethod, ServerPlan, ServerRootPlan, TreePlan},
    problem::Effect,
    server::{Flavor, Volume},
    size::Bytes,
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
    /// For people, in one line.
    #[must_use]
    pub fn describe(&self) -> String {
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
                    ProcessSelector::Process(process) => format!("process {}", process.pid),
                };
                format!("the processes of {whom} by {}", by(method))
            }
            Self::ServerSlowLock(lock) => match lock.flavor {
                Flavor::MariaDb => format!("{}: BACKUP STAGE START, FLUSH, BLOCK_DDL", lock.source),
                Flavor::MySql => format!("{}: LOCK INSTANCE FOR BACKUP", lock.source),
            },
            Self::ServerFinalLock(lock) => match lock.flavor {
                Flavor::MariaDb => format!("{}: BACKUP STAGE BLOCK_COMMIT", lock.source),
                Flavor::MySql => format!("{}: FLUSH TABLES WITH READ LOCK", lock.source),
            },
            Self::ServerProcess { source, process, method } => {
                format!("{source}: the server's process {} by {}", process.pid, by(method))
            }
        }
    }
}

fn by(method: &ProcessMethod) -> String {
    match method {
        ProcessMethod::Ptrace => "ptrace".to_owned(),
        ProcessMethod::Freezer { cgroup } => format!("the freezer of {}", pathtext::show(cgroup)),
        ProcessMethod::Stop => "SIGSTOP".to_owned(),
    }
}

fn name_of(volume: &Volume, size: Option<Bytes>) -> String {
    let sized = size.map(|size| format!(" of {size}")).unwrap_or_default();
    match volume {
        Volume::Btrfs { subvolume } => format!("btrfs subvolume {}", pathtext::show(subvolume)),
        Volume::Lvm { group, name, pool: None, .. } => format!("LVM {group}/{name}{sized}"),
        Volume::Lvm { group, name, pool: Some(pool), .. } => {
            format!("LVM {group}/{name} in thin pool {pool}")
        }
        Volume::Zfs { dataset, .. } => format!("ZFS {dataset}"),
    }
}

fn snapshots_of(plan: &ServerPlan) -> String {
    let named = |root: &ServerRootPlan| root.volume.as_ref().map(|v| name_of(v, root.size));
    let volumes: BTreeSet<String> = plan.roots.iter().filter_map(named).collect();
    let held = if plan.server_held { ", the server held across all" } else { "" };
    format!("snapshot of {}{held}", volumes.into_iter().collect::<Vec<_>>().join(" and "))
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
            Self::VolumeSnapshot(plan) => {
                format!("snapshot of {}{}", name_of(&plan.volume, plan.size), left_out(&plan.tree))
            }
            Self::ServerVolumes(plan) => snapshots_of(plan),
            Self::ServerReflink(plan) => {
                format!(
                    "two passes of clones of {} directories, the last with the server held",
                    plan.roots.len()
                )
            }
            Self::ServerPhysical(_) => {
                "mariadb-backup before the cut, and the binary logs up to it".to_owned()
            }
            Self::ServerDump(plan) if plan.databases.is_empty() => "dumps of all databases".to_owned(),
            Self::ServerDump(plan) => format!("dumps of {}", plan.databases.join(", ")),
        }
    }
}

fn left_out(tree: &TreePlan) -> String {
    let excluded = tree.exclude.iter().cloned();
    let carved = tree.carved.iter().map(|path| pathtext::show(path));
    let all: Vec<String> = excluded.chain(carved).collect();
    if all.is_empty() { String::new() } else { format!(", without {}", all.join(", ")) }
}
