//! The decision how an application is held and pinned: a pure function from what was found out.
//!
//! Crash story: pure functions, no effects. Facts may be out of date by the time the plan is executed; every
//! hold and pin checks for itself what it relies on.

mod server;
mod stall;
mod text;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::{
    id::SourceId,
    inventory::{Application, Database, Directory, Inventory, ProcessSelector},
    plan::{
        CutPlan, DirectoryFacts, Facts, HoldMethod, HoldPlan, JournalMode, PinMethod, PinPlan, Refusal,
        SqliteFacts, SqlitePlan, TreePlan, VolumePlan,
    },
    problem::{Effect, Problem},
    server::Volume,
};

/// The files that SQLite keeps beside a database: <https://www.sqlite.org/tempfiles.html>.
const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Decides how a backup of `application` is taken.
///
/// A source that was refused, or not looked at, becomes a problem that makes the backup `incomplete`; the
/// others are planned. The plan is refused as a whole if no source is left, or if the predicted stall
/// exceeds the budget.
#[must_use]
pub fn decide(inventory: &Inventory, application: &Application, facts: &Facts) -> CutPlan {
    let mut plan = CutPlan {
        application: application.name.clone(),
        relpath: application.relpath.clone(),
        sources: application.sources(),
        holds: vec![],
        pins: vec![],
        stall_budget: application.settings.stall_budget,
        predicted_stall: std::time::Duration::ZERO.into(),
        require: application.settings.require,
        problems: vec![],
        notes: vec![],
        refused: None,
    };
    stop_hooks(application, &mut plan);
    for database in &application.databases {
        plan_database(inventory, database, facts, &mut plan);
    }
    moments(application, &mut plan);
    processes(application, facts, &mut plan);
    for directory in &application.directories {
        plan_directory(inventory, application, directory, facts, &mut plan);
    }
    plan.holds.sort_by_key(|hold| hold.method.class());
    let prediction = stall::predict(&plan, facts);
    plan.predicted_stall = prediction.total.into();
    plan.refused = refusal(&plan, &prediction);
    plan
}

fn refusal(plan: &CutPlan, prediction: &stall::Prediction) -> Option<Refusal> {
    if plan.pins.is_empty() {
        return Some(Refusal {
            what: format!("no source of {} can be backed up", plan.application),
            remedy: "see its problems".to_owned(),
        });
    }
    if prediction.total <= plan.stall_budget {
        return None;
    }
    let budget = crate::inventory::show_duration(plan.stall_budget);
    let enough = crate::inventory::show_duration(stall::rounded_up(prediction.total));
    Some(Refusal {
        what: format!(
            "the predicted stall of {} exceeds the stall budget of {budget}; most of it for {}",
            plan.predicted_stall, prediction.longest
        ),
        remedy: format!("set stall_budget = {enough:?} for it, or exclude what need not be stored"),
    })
}

fn stop_hooks(application: &Application, plan: &mut CutPlan) {
    if let Some(hooks) = &application.hooks {
        let why = "the inventory gives stop and start hooks".to_owned();
        plan.holds.push(HoldPlan { method: HoldMethod::hooks(hooks), why });
    }
}

fn processes(application: &Application, facts: &Facts, plan: &mut CutPlan) {
    let Some(selector) = &application.process else { return };
    let whom = match selector {
        ProcessSelector::Unit(unit) => unit.clone(),
        ProcessSelector::PidFile(path) => crate::pathtext::show(path),
        ProcessSelector::Process(process) => format!("process {}", process.pid),
    };
    let method = facts.process.as_ref().filter(|p| !p.pids.is_empty()).map(|p| p.method.clone());
    match (method, &facts.process) {
        (Some(Some(method)), Some(found)) => plan.holds.push(HoldPlan {
            method: HoldMethod::Processes { selector: selector.clone(), method },
            why: found.why.clone(),
        }),
        (Some(None), Some(found)) => plan.problems.push(Problem::new(
            Effect::Note,
            None,
            format!("the processes of {whom} cannot be held: {}", found.why),
            "directories count as held only if nothing in them changes during the cut",
        )),
        (None, Some(found)) if found.unknown => plan.problems.push(Problem::new(
            Effect::Note,
            None,
            format!("the processes of {whom} are not known, so none is held: {}", found.why),
            "directories count as held only if nothing in them changes during the cut",
        )),
        // A problem, so that the backup says it too: a note would end with the plan.
        _ => plan.problems.push(Problem::new(
            Effect::Note,
            None,
            format!("no process of {whom} runs, so none is held"),
            "correct [application.process] in the inventory if the application does run",
        )),
    }
}

/// What cannot be brought to a moment between backups, where that is wanted.
fn moments(application: &Application, plan: &mut CutPlan) {
    if application.settings.point_in_time.is_none() {
        return;
    }
    for pin in &plan.pins {
        let why = match &pin.method {
            PinMethod::ServerDump(_) => "it is stored as a dump, onto which no log can be replayed",
            PinMethod::SqliteReflink(found) | PinMethod::SqlitePages(found)
                if found.journal == JournalMode::Rollback =>
            {
                "it has no write-ahead log; PRAGMA journal_mode=WAL gives it one, for good"
            }
            _ => continue,
        };
        plan.notes.push(format!(
            "{}: point_in_time is set, but only the instants of backups can be restored: {why}",
            pin.source
        ));
    }
}

fn plan_database(inventory: &Inventory, database: &Database, facts: &Facts, plan: &mut CutPlan) {
    let path = match database {
        Database::Sqlite { path, .. } => path,
        Database::Server(found) => return server::plan_server(inventory, found, facts, plan),
    };
    let source = database.id();
    let Some(found) = facts.sqlite.iter().find(|f| f.source == source) else {
        plan.problems.push(not_looked_at(path, &source));
        return;
    };
    if let Some(refusal) = &found.refusal {
        plan.problems.push(refused(path, &source, refusal));
        return;
    }
    let journal = found.journal;
    let lock = HoldMethod::SqliteLock { source: source.clone(), path: path.clone(), journal };
    let why =
        "a write lock of SQLite's own lets readers go on and ends with the child that holds it".to_owned();
    plan.holds.push(HoldPlan { method: lock, why });
    let (method, why) = database_pin(path, found);
    let staging = found.staging.clone().unwrap_or_else(|| inventory.state());
    plan.pins.push(PinPlan { source, method, staging, why });
    plan.notes.push(format!(
        "while the cut lasts, a program that writes {} without a busy timeout gets SQLITE_BUSY; \
         PRAGMA busy_timeout = 5000 lets it wait",
        crate::pathtext::show(path)
    ));
    plan.notes.extend(found.no_log());
}

fn database_pin(path: &Path, found: &SqliteFacts) -> (PinMethod, String) {
    let sqlite = SqlitePlan { path: path.to_owned(), journal: found.journal };
    if found.reflink && found.staging.is_some() {
        let why = "its filesystem clones extents, so that no byte is copied under the lock".to_owned();
        return (PinMethod::SqliteReflink(sqlite), why);
    }
    match found.journal {
        JournalMode::Wal => (
            PinMethod::SqliteTransaction(sqlite),
            "its filesystem cannot clone, but in WAL mode a read transaction keeps the instant".to_owned(),
        ),
        JournalMode::Rollback => (
            PinMethod::SqlitePages(sqlite),
            "its filesystem cannot clone and it keeps no WAL, so an unlocked copy is compared page by page \
             under the lock"
                .to_owned(),
        ),
    }
}

fn plan_directory(
    inventory: &Inventory,
    application: &Application,
    directory: &Directory,
    facts: &Facts,
    plan: &mut CutPlan,
) {
    let source = directory.id();
    let Some(found) = facts.directories.iter().find(|f| f.source == source) else {
        plan.problems.push(not_looked_at(&directory.path, &source));
        return;
    };
    if let Some(refusal) = &found.refusal {
        plan.problems.push(refused(&directory.path, &source, refusal));
        return;
    }
    let tree = TreePlan {
        root: directory.path.clone(),
        exclude: directory.exclude.iter().map(|glob| glob.glob().to_owned()).collect(),
        carved: carved(application, directory, facts),
        nested_mounts: found.nested_mounts.clone(),
    };
    for inner in found.nested_mounts.iter().chain(&found.nested_subvolumes) {
        plan.notes.push(format!(
            "{source}: {} is a filesystem or a btrfs subvolume of its own: it is stored too, but a restore in place is \
             refused while it is there",
            crate::pathtext::show(inner)
        ));
    }
    let staging = found.staging.clone().unwrap_or_else(|| inventory.state());
    let (method, why) = directory_pin(found, tree, &snapshots(plan));
    plan.pins.push(PinPlan { source, method, staging, why });
}

/// The volumes of which a server's pin makes snapshots: sources on one volume share one.
fn snapshots(plan: &CutPlan) -> Vec<Volume> {
    let servers = plan.pins.iter().filter_map(|pin| match &pin.method {
        PinMethod::ServerVolumes(server) => Some(&server.roots),
        _ => None,
    });
    servers.flatten().filter_map(|root| root.volume.clone()).collect()
}

fn directory_pin(found: &DirectoryFacts, tree: TreePlan, taken: &[Volume]) -> (PinMethod, String) {
    let mounts = found.nested_mounts.len();
    if let Some(facts) = found.volume.as_ref().filter(|v| v.refusal.is_none() && mounts == 0) {
        let shared = taken.contains(&facts.volume);
        let snapshot = VolumePlan { tree: tree.clone(), volume: facts.volume.clone(), size: facts.size };
        if shared {
            let why =
                "the snapshot that pins the server's files holds it too: one instant for both".to_owned();
            return (PinMethod::VolumeSnapshot(snapshot), why);
        }
        if !(found.subvolume || found.reflink && found.staging.is_some()) {
            let why = "its filesystem makes no clones, but its volume makes atomic snapshots".to_owned();
            return (PinMethod::VolumeSnapshot(snapshot), why);
        }
    }
    if found.subvolume && mounts == 0 {
        let why = "it is a btrfs subvolume: one snapshot is atomic, whatever its size".to_owned();
        return (PinMethod::BtrfsSnapshot(tree), why);
    }
    let besides = if found.subvolume {
        format!("; a snapshot would not hold the {mounts} mounted below it")
    } else {
        String::new()
    };
    let filesystem = &found.filesystem;
    if found.reflink && found.staging.is_some() {
        let why =
            format!("{filesystem} clones extents, so that what changed last is pinned uncopied{besides}");
        (PinMethod::TwoPassReflink(tree), why)
    } else {
        let why = format!(
            "{filesystem} makes no clones here, so files are stored first and what changed since is copied{besides}"
        );
        (PinMethod::TwoPassCopy(tree), why)
    }
}

/// What other pins of the application store: its databases with their sidecars. Directories that are sources of
/// their own are pinned with the outer one too: merging the manifests leaves each path once.
fn carved(application: &Application, directory: &Directory, facts: &Facts) -> Vec<PathBuf> {
    let mut carved = Vec::new();
    for database in &application.databases {
        match database {
            Database::Sqlite { path, .. } if path.starts_with(&directory.path) => {
                carved.push(path.clone());
                carved.extend(SIDECARS.iter().map(|suffix| sidecar(path, suffix)));
            }
            Database::Sqlite { .. } => {}
            Database::Server(server) => carved.extend(server_roots(&server.id(), directory, facts)),
        }
    }
    carved
}

/// A server's own directories inside a directory: they are the server's, whether its files are stored or dumps.
fn server_roots(source: &SourceId, directory: &Directory, facts: &Facts) -> Vec<PathBuf> {
    let found = facts.servers.iter().filter(|f| f.source == *source).flat_map(|f| &f.roots);
    found.map(|root| root.path.clone()).filter(|path| path.starts_with(&directory.path)).collect()
}

fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn not_looked_at(path: &Path, source: &SourceId) -> Problem {
    Problem::missing(path, "nothing could be found out about it", "see the messages before this one")
        .of(source)
}

fn refused(path: &Path, source: &SourceId, refusal: &Refusal) -> Problem {
    Problem::missing(path, &refusal.what, &refusal.remedy).of(source)
}

#[cfg(test)]
mod tests;
