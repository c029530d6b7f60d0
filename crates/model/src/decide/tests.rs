//! Tests of the decision, over facts made by hand.
//!
//! Crash story: tests of pure functions.

use std::{path::PathBuf, time::Duration};

use super::decide;
use crate::{
    inventory::{Inventory, InventoryText, parse},
    plan::{
        CutPlan, DirectoryFacts, Facts, HoldClass, JournalMode, PinMethod, ProcessFacts, ProcessMethod,
        Refusal, SqliteFacts,
    },
    problem::Effect,
    size::Bytes,
};

const INVENTORY: &str = r#"
partition = "/v01/backup"
password_file = "/p"
[[application]]
name = "hydro"
relpath = "demo.org/hydro"
[[application.directory]]
path = "/srv/hydro"
exclude = ["cache/**"]
[[application.directory]]
path = "/srv/hydro/uploads"
[[application.database]]
engine = "sqlite"
path = "/srv/hydro/a.db"
[[application.database]]
engine = "sqlite"
path = "/srv/hydrology.db"
[application.process]
unit = "hydro.service"
[application.hooks]
stop = { run = "stop it", timeout = "2m" }
start = { run = "start it", timeout = "5m" }
"#;

fn inventory() -> Inventory {
    parse(&InventoryText { file: "t".into(), text: INVENTORY.into() }, &[], "h").unwrap()
}

fn plan(facts: &Facts) -> CutPlan {
    let inventory = inventory();
    decide(&inventory, &inventory.applications[0], facts)
}

/// Facts of a filesystem without any help: ext4.
fn plain() -> Facts {
    let application = inventory().applications.remove(0);
    let directory = |d: &crate::inventory::Directory| DirectoryFacts {
        source: d.id(),
        path: d.path.clone(),
        filesystem: "ext4".into(),
        subvolume: false,
        reflink: false,
        staging: None,
        nested_mounts: vec![],
        nested_subvolumes: vec![],
        entries: 1000,
        volume: None,
        refusal: None,
    };
    let database = |d: &crate::inventory::Database| {
        let crate::inventory::Database::Sqlite { path, .. } = d else { panic!("only files here") };
        SqliteFacts {
            source: d.id(),
            path: path.clone(),
            journal: JournalMode::Wal,
            bytes: Bytes(4096 * 1000),
            wal_bytes: Bytes(0),
            extents: Some(100),
            reflink: false,
            staging: None,
            refusal: None,
        }
    };
    let why = "ptrace is allowed".into();
    Facts {
        directories: application.directories.iter().map(directory).collect(),
        sqlite: application.databases.iter().map(database).collect(),
        servers: vec![],
        process: Some(ProcessFacts {
            pids: vec![1, 2],
            method: Some(ProcessMethod::Ptrace),
            why,
            unknown: false,
        }),
    }
}

fn cloning() -> Facts {
    let mut facts = plain();
    for found in &mut facts.directories {
        (found.reflink, found.staging) = (true, Some("/srv".into()));
    }
    for found in &mut facts.sqlite {
        (found.reflink, found.staging) = (true, Some("/srv".into()));
    }
    facts
}

fn refused() -> Option<Refusal> {
    Some(Refusal { what: "is encrypted".into(), remedy: "decrypt it".into() })
}

#[test]
fn hooks_stop_first_locks_follow_and_processes_are_held_last() {
    let plan = plan(&plain());
    let classes: Vec<_> = plan.holds.iter().map(|h| h.method.class()).collect();
    let lock = HoldClass::FinalLock;
    assert_eq!(classes, [HoldClass::StopHook, lock, lock, HoldClass::ProcessFreezer]);
    assert_eq!(plan.refused, None);
    assert!(plan.holds.iter().all(|h| !h.why.is_empty()) && plan.pins.iter().all(|p| !p.why.is_empty()));
}

#[test]
fn databases_are_pinned_first_and_carved_out_with_their_sidecars() {
    let plan = plan(&plain());
    let sources: Vec<_> = plan.pins.iter().map(|p| p.source.as_str()).collect();
    assert_eq!(
        sources,
        [
            "sqlite:/srv/hydro/a.db",
            "sqlite:/srv/hydrology.db",
            "directory:/srv/hydro",
            "directory:/srv/hydro/uploads"
        ]
    );
    let PinMethod::TwoPassCopy(tree) = &plan.pins[2].method else { panic!("{:?}", plan.pins[2]) };
    let carved = ["a.db", "a.db-wal", "a.db-shm", "a.db-journal"];
    assert_eq!(tree.carved, carved.map(|name| PathBuf::from("/srv/hydro").join(name)));
    assert_eq!(tree.exclude, ["cache/**"]);
    let PinMethod::TwoPassCopy(inner) = &plan.pins[3].method else { panic!("{:?}", plan.pins[3]) };
    assert_eq!(inner.carved, Vec::<PathBuf>::new());
    assert_eq!(plan.pins[3].staging, PathBuf::from("/v01/backup/state"));
}

#[test]
fn the_pin_follows_from_filesystem_and_journal() {
    let mut facts = plain();
    facts.sqlite[1].journal = JournalMode::Rollback;
    let plan_of_plain = plan(&facts);
    assert!(matches!(plan_of_plain.pins[0].method, PinMethod::SqliteTransaction(_)));
    assert!(matches!(plan_of_plain.pins[1].method, PinMethod::SqlitePages(_)));

    let mut wanted = inventory();
    let note = |plan: &CutPlan| plan.notes.iter().filter(|note| note.contains("point_in_time")).count();
    assert_eq!(note(&plan_of_plain), 0);
    wanted.applications[0].settings.point_in_time = Some(std::time::Duration::from_secs(86_400));
    assert_eq!(
        note(&decide(&wanted, &wanted.applications[0], &facts)),
        1,
        "the one without a write-ahead log"
    );

    let mut facts = cloning();
    facts.directories[1].subvolume = true;
    let plan_of_clones = plan(&facts);
    assert!(matches!(plan_of_clones.pins[0].method, PinMethod::SqliteReflink(_)));
    assert!(matches!(plan_of_clones.pins[2].method, PinMethod::TwoPassReflink(_)));
    assert!(matches!(plan_of_clones.pins[3].method, PinMethod::BtrfsSnapshot(_)));
    assert_eq!(plan_of_clones.pins[3].staging, PathBuf::from("/srv"));

    facts.directories[1].nested_mounts = vec!["/srv/hydro/uploads/m".into()];
    facts.directories[1].nested_subvolumes = vec!["/srv/hydro/uploads/s".into()];
    let mounted = plan(&facts);
    assert!(
        matches!(mounted.pins[3].method, PinMethod::TwoPassReflink(_)),
        "a snapshot would lose the mount"
    );
    assert!(mounted.pins[3].why.contains("mounted below"), "{}", mounted.pins[3].why);
    for inner in ["/srv/hydro/uploads/m is", "/srv/hydro/uploads/s is"] {
        let told = |note: &String| note.contains(inner) && note.contains("restore in place is refused");
        assert!(mounted.notes.iter().any(told), "{:?}", mounted.notes);
    }
}

#[test]
fn a_refused_source_is_missing_and_the_others_are_planned() {
    let mut facts = plain();
    facts.sqlite[0].refusal = refused();
    facts.directories.remove(1);
    let plan = plan(&facts);
    assert_eq!(plan.refused, None);
    assert_eq!(plan.sources.len(), 4, "the verdict is about all of them");
    assert_eq!((plan.pins.len(), plan.holds.len()), (2, 3));
    let problems: Vec<_> = plan.problems.iter().map(|p| (p.effect, p.to_string())).collect();
    assert_eq!(problems[0], (Effect::Missing, "/srv/hydro/a.db: is encrypted; decrypt it".to_owned()));
    assert_eq!(problems[1].0, Effect::Missing);
    assert!(problems[1].1.starts_with("/srv/hydro/uploads: "), "{problems:?}");
    // A refused database must not be stored as a plain file instead.
    let PinMethod::TwoPassCopy(tree) = &plan.pins[1].method else { panic!("{:?}", plan.pins[1]) };
    assert!(tree.carved.contains(&PathBuf::from("/srv/hydro/a.db")));
}

#[test]
fn nothing_left_to_store_is_refused() {
    let plan = plan(&Facts::default());
    assert!(plan.refused.unwrap().what.contains("no source of hydro can be backed up"));
    let missing = plan.problems.iter().filter(|p| p.effect == Effect::Missing);
    assert_eq!(missing.count(), 4);
}

#[test]
fn the_predicted_stall_is_the_documented_sum() {
    // Hold processes 1 + 2 * 0.2, two locks 2 * 2, two transactions 2 * 1, two trees 2 * (1 + 3) ms.
    assert!((plan(&plain()).predicted_stall.0 - 15.4).abs() < 0.001);
    // Two clones of 100 extents, 2 * (1 + 1.5) ms, instead of the transactions.
    assert!((plan(&cloning()).predicted_stall.0 - 18.4).abs() < 0.001);
}

#[test]
fn a_predicted_stall_above_the_budget_is_refused_with_what_costs_most() {
    let mut facts = plain();
    facts.directories[1].entries = 1_100_000;
    let refusal = plan(&facts).refused.unwrap();
    assert!(refusal.what.contains("exceeds the stall budget of 2s"), "{}", refusal.what);
    assert!(refusal.what.ends_with("most of it for directory:/srv/hydro/uploads"), "{}", refusal.what);
    assert!(refusal.remedy.contains("stall_budget = \"4s\""), "{}", refusal.remedy);
    assert!(refusal.remedy.contains("exclude"));
}

#[test]
fn nobody_held_back_means_no_stall_however_much_there_is() {
    let mut inventory = inventory();
    let application = &mut inventory.applications[0];
    application.databases.clear();
    application.process = None;
    let mut facts = plain();
    facts.directories[0].entries = 1_000_000_000;
    let plan = decide(&inventory, &inventory.applications[0], &facts);
    assert_eq!(Duration::from_secs_f64(plan.predicted_stall.0), Duration::ZERO);
    assert_eq!(plan.refused, None);
}

#[test]
fn processes_that_cannot_be_held_or_do_not_run_are_told() {
    let mut facts = plain();
    let why = "they belong to root".into();
    facts.process = Some(ProcessFacts { pids: vec![1], method: None, why, unknown: false });
    let cannot = plan(&facts);
    assert_eq!(cannot.holds.len(), 3);
    assert!(cannot.problems[0].what.contains("cannot be held: they belong to root"));
    let why = "the pid file is stale".into();
    facts.process = Some(ProcessFacts { pids: vec![], method: None, why, unknown: true });
    let unknown = plan(&facts);
    assert_eq!(unknown.holds.len(), 3);
    assert!(unknown.problems[0].what.contains("not known, so none is held: the pid file is stale"));
    facts.process = None;
    let absent = plan(&facts);
    assert_eq!(absent.problems[0].effect, Effect::Note);
    assert!(absent.problems[0].what.contains("no process of hydro.service runs"));
}

#[test]
fn the_description_names_everything_that_would_be_done() {
    let text = plan(&plain()).describe().join("\n");
    for part in [
        "hydro (demo.org/hydro)",
        "stop by `stop it` (up to 2m), start by `start it` (up to 5m)",
        "lock /srv/hydro/a.db against writers",
        "the processes of hydro.service by ptrace",
        "directory:/srv/hydro: two passes of copies, without cache/**, /srv/hydro/a.db, ",
        "because ",
        "stall 15.4 ms predicted, 2s allowed",
        "gets SQLITE_BUSY",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}
