//! Applications of the simulated machine, and one run of the real `backup` over them.

use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use model::{
    id::{AppName, Relpath, ServerName, SourceId, VmName},
    plan::{CutPlan, HoldClass, JournalMode, PinMethod, PinPlan, SqlitePlan, TreePlan},
    port::{Failure, Hold, Journal, Pinner, Silent},
    time::Millis,
    verdict::Verdict,
};
use orchestrate::{
    backup::{BackupReport, Job, run},
    cut::patience::Patience,
};
use testkit::{
    fakes::{
        hold::{FakeHold, Lie},
        pinner::{FakePinner, Way},
        vault::{FakeVault, Origin},
        world::World,
    },
    faults::{Fault, Faults, Faulty, Injected},
};

/// The stall budget of all simulated applications.
pub const BUDGET: Duration = Duration::from_millis(400);

/// What an application is made of.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// For messages.
    pub name: &'static str,
    databases: usize,
    directories: &'static [Way],
    writers: usize,
    processes: bool,
    hooks: bool,
    /// Whether nothing can keep an undisturbed cut from being consistent.
    pub always_consistent: bool,
}

const fn scenario(
    name: &'static str,
    databases: usize,
    directories: &'static [Way],
    writers: usize,
) -> Scenario {
    let always_consistent = false;
    Scenario { name, databases, directories, writers, processes: false, hooks: false, always_consistent }
}

const fn processes(mut scenario: Scenario) -> Scenario {
    scenario.processes = true;
    scenario.always_consistent = true;
    scenario
}

const fn hooks(mut scenario: Scenario) -> Scenario {
    scenario.hooks = true;
    scenario.always_consistent = true;
    scenario
}

/// A database and a directory of which nobody holds the writers: the scan decides.
pub const SCANNED: Scenario = scenario("scanned", 1, &[Way::TwoPassCopy], 2);

/// Two snapshots, one after the other, of directories of which nobody holds the writers.
pub const TWO_SNAPSHOTS: Scenario = scenario("two snapshots", 1, &[Way::Snapshot, Way::Snapshot], 4);

/// A directory without a file in it.
pub const EMPTY: Scenario = scenario("empty", 0, &[Way::TwoPassCopy], 0);

/// All that may become consistent.
pub const ALL: [Scenario; 8] = [
    processes(scenario("everything held", 1, &[Way::TwoPassCopy], 3)),
    processes(scenario("two of each", 2, &[Way::TwoPassReflink, Way::TwoPassCopy], 4)),
    SCANNED,
    scenario("two scanned", 1, &[Way::TwoPassReflink, Way::TwoPassReflink], 2),
    Scenario { always_consistent: true, ..scenario("snapshot", 1, &[Way::Snapshot], 3) },
    scenario("snapshot and scan", 2, &[Way::Snapshot, Way::TwoPassCopy], 3),
    hooks(scenario("stopped", 1, &[Way::TwoPassCopy], 3)),
    scenario("directory alone", 0, &[Way::TwoPassCopy], 1),
];

/// What is wrong with the drivers, on purpose.
#[derive(Debug, Clone, Copy)]
pub struct Lies {
    /// Of the holds.
    pub holds: Lie,
    /// Pinners say that nothing has changed without looking.
    pub pinners: bool,
}

/// Honest drivers.
pub const HONEST: Lies = Lies { holds: Lie::None, pinners: false };

/// How a run ended.
pub enum Ending {
    /// It returned.
    Returned(Box<Result<BackupReport, Failure>>),
    /// An injected panic went through it.
    Panicked,
}

impl Ending {
    /// What it returned, if it did.
    pub fn returned(&self) -> Option<&Result<BackupReport, Failure>> {
        match self {
            Self::Returned(outcome) => Some(outcome),
            Self::Panicked => None,
        }
    }
}

/// A run that is over, and the world after it.
pub struct Run {
    pub world: World,
    pub vault: FakeVault,
    pub faults: Arc<Faults>,
    pub plan: CutPlan,
    pub ending: Ending,
}

fn databases(n: usize) -> Vec<(SourceId, PathBuf)> {
    (0..n)
        .map(|i| {
            let path = format!("/srv/app/data-{i}.db");
            (SourceId::new("sqlite", &path), PathBuf::from(path))
        })
        .collect()
}

fn directories(ways: &[Way]) -> Vec<(SourceId, PathBuf, Way)> {
    ways.iter()
        .enumerate()
        .map(|(i, way)| {
            let path = format!("/srv/app/files-{i}");
            (SourceId::new("directory", &path), PathBuf::from(path), *way)
        })
        .collect()
}

fn pin_plan(source: &SourceId, method: PinMethod) -> PinPlan {
    PinPlan { source: source.clone(), method, staging: PathBuf::from("/srv"), why: String::new() }
}

fn plan(scenario: &Scenario) -> CutPlan {
    let sqlite = databases(scenario.databases);
    let trees = directories(scenario.directories);
    let mut pins: Vec<PinPlan> = sqlite
        .iter()
        .map(|(source, path)| {
            let journal = JournalMode::Wal;
            pin_plan(source, PinMethod::SqliteReflink(SqlitePlan { path: path.clone(), journal }))
        })
        .collect();
    pins.extend(trees.iter().map(|(source, path, way)| {
        let tree = TreePlan { root: path.clone(), exclude: vec![], carved: vec![], nested_mounts: vec![] };
        pin_plan(
            source,
            match way {
                Way::Snapshot => PinMethod::BtrfsSnapshot(tree),
                Way::TwoPassReflink => PinMethod::TwoPassReflink(tree),
                Way::TwoPassCopy | Way::Database => PinMethod::TwoPassCopy(tree),
            },
        )
    }));
    CutPlan {
        application: AppName::new("app").expect("a word"),
        relpath: Relpath::new("example.org/app").expect("two words"),
        sources: pins.iter().map(|p| p.source.clone()).collect(),
        holds: vec![],
        pins,
        stall_budget: BUDGET,
        predicted_stall: Millis(5.0),
        require: Verdict::Consistent,
        problems: vec![],
        notes: vec![],
        refused: None,
    }
}

fn world(scenario: &Scenario, seed: u64) -> World {
    let world = World::new(seed);
    let trees = directories(scenario.directories);
    let sqlite = databases(scenario.databases);
    for (_, path, _) in &trees {
        let names: &[&str] = if scenario.writers == 0 { &[] } else { &["a", "b", "c"] };
        for name in names {
            world.write_file(&path.join(name), name.repeat(3).as_bytes());
        }
    }
    for i in 0..scenario.writers {
        let database = (!sqlite.is_empty()).then(|| &sqlite[i % sqlite.len()].0);
        world.add_writer(&trees[i % trees.len()].1, database);
    }
    world.pass(Duration::from_millis(1_500 + seed % 700));
    world
}

fn holds(scenario: &Scenario, world: &World, faults: &Arc<Faults>, lie: Lie) -> Vec<Box<dyn Hold>> {
    let journal = || -> Arc<dyn Journal> { Arc::new(Faulty::new(world.journal.clone(), faults)) };
    let mut holds = vec![];
    // Given in the wrong order on purpose: the cut has to put them right.
    if scenario.processes {
        holds.push(FakeHold::of_all(world, journal(), HoldClass::ProcessFreezer));
    }
    for (source, _) in databases(scenario.databases) {
        holds.push(FakeHold::lock(world, journal(), &source));
    }
    if scenario.hooks {
        holds.push(FakeHold::of_all(world, journal(), HoldClass::StopHook));
    }
    holds.into_iter().map(|hold| Box::new(Faulty::new(hold.lying(lie), faults)) as Box<dyn Hold>).collect()
}

fn pinners(scenario: &Scenario, world: &World, faults: &Arc<Faults>, lies: bool) -> Vec<Box<dyn Pinner>> {
    let pinner = |source: &SourceId, path: &Path, way| {
        let journal: Arc<dyn Journal> = Arc::new(Faulty::new(world.journal.clone(), faults));
        let pinner = FakePinner::new(world, journal, source, path, way);
        let pinner = if lies { pinner.lying() } else { pinner };
        Box::new(Faulty::new(pinner, faults)) as Box<dyn Pinner>
    };
    let trees = directories(scenario.directories);
    let mut pinners: Vec<_> = trees.iter().map(|(source, path, way)| pinner(source, path, *way)).collect();
    pinners.extend(databases(scenario.databases).iter().map(|(s, path)| pinner(s, path, Way::Database)));
    pinners
}

/// Runs `backup` once on a fresh machine.
pub fn simulate(scenario: &Scenario, seed: u64, fault: Option<(usize, Fault)>, lies: Lies) -> Run {
    let world = world(scenario, seed);
    let clock = Arc::new(world.clone());
    let faults = match fault {
        Some((call, fault)) => Faults::at(clock, call, fault),
        None => Faults::none(clock),
    };
    again(before(scenario, world, faults), scenario, seed, lies)
}

/// A fresh machine, before anything was run.
pub fn fresh(scenario: &Scenario, seed: u64) -> Run {
    let world = world(scenario, seed);
    let faults = Faults::none(Arc::new(world.clone()));
    before(scenario, world, faults)
}

fn before(scenario: &Scenario, world: World, faults: Arc<Faults>) -> Run {
    let vault = FakeVault::new(Origin::World(world.clone()));
    Run { plan: plan(scenario), world, vault, faults, ending: Ending::Panicked }
}

/// Runs `backup` once more on the machine of a run that is over.
pub fn again(mut over: Run, scenario: &Scenario, seed: u64, lies: Lies) -> Run {
    let done =
        with_job(&over, scenario, seed, lies, |job| std::panic::catch_unwind(AssertUnwindSafe(|| run(job))));
    over.ending = match done {
        Ok(returned) => Ending::Returned(Box::new(returned)),
        Err(panic) if panic.is::<Injected>() => Ending::Panicked,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    over
}

/// Hands over what a backup on the machine of a run would be made with.
pub fn with_job<T>(
    over: &Run,
    scenario: &Scenario,
    seed: u64,
    lies: Lies,
    then: impl FnOnce(Job<'_>) -> T,
) -> T {
    let Run { world, vault, faults, plan, .. } = over;
    world.forget_waits();
    let previous = model::port::Shelf::backups(&mut vault.shelf()).expect("a list in memory");
    let mut store = Faulty::new(vault.store(), faults);
    then(Job {
        plan,
        server: ServerName::new("server").expect("a word"),
        vm: VmName::new("host").expect("a word"),
        label: None,
        holds: holds(scenario, world, faults, lies.holds),
        pinners: pinners(scenario, world, faults, lies.pinners),
        store: &mut store,
        previous: &previous,
        clock: world,
        progress: &Silent,
        patience: Patience::default(),
        seed,
    })
}

/// Keeps injected panics from filling the test's output.
pub fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Injected>() {
                usual(info);
            }
        }));
    });
}
