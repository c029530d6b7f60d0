//! What every [`Pinner`] has to do.
//!
//! The suite plays the vault: what `prepare` wants stored ahead it reads at once, and an entry that is
//! [`Body::Carried`] must be found among that, or in the parent that the case made, with the very same stamp.
//!
//! Crash story: see the parent.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use model::{
    entry::{Body, Entry, Harvest, Kind, Manifest, Stamp},
    known::Known,
    port::{Clock, Failure, Pin, Pinner, Silent},
    problem::{Effect, Problem},
    verdict::Stillness,
};

use super::{AMPLE, assert_transient, cases, within};

/// What a source holds, as its user sees it: files by path, or rows by key.
pub type Content = BTreeMap<String, Vec<u8>>;

/// A pinner under test and the source that it pins.
pub trait Bench {
    /// A new pinner of the source of this bench.
    fn pinner(&self) -> Box<dyn Pinner>;
    /// The clock of the deadlines.
    fn clock(&self) -> Arc<dyn Clock>;
    /// Takes whatever hold the pin needs, until the returned value is dropped.
    fn hold(&self) -> Box<dyn Any>;
    /// Changes the source, differently for every `step`: something new, something changed in place with its
    /// size kept, something removed. Called with and without a hold, see [`Bench::writes_under_hold`].
    fn write(&self, step: u64);
    /// Whether [`Bench::write`] works while the hold is taken: for directories whose writers nobody holds.
    fn writes_under_hold(&self) -> bool;
    /// What the source holds now.
    fn live(&self) -> Content;
    /// What stored files hold, seen as [`Bench::live`] sees the source; original paths and bytes.
    fn stored(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> Content;
    /// Whether unchanged files are carried over from the parent backup. Not so for databases.
    fn carries(&self) -> bool;
    /// Waits until stamps taken from now on are settled ([`model::entry::SETTLING`]).
    fn settle(&self);
    /// Reads a live file, with its stamp, for the pass that is stored ahead. `None` if it is gone.
    fn read_live(&self, path: &Path) -> Option<(Stamp, Vec<u8>)>;
    /// Reads a pinned copy.
    fn read_pinned(&self, path: &Path) -> Option<Vec<u8>> {
        std::fs::read(path).ok()
    }
    /// Whatever the driver has made and not removed, beside the source or in staging.
    fn leftovers(&self) -> Vec<String>;
    /// How many journalled undos are open.
    fn open_undos(&self) -> usize;
    /// Removes the source entirely; `false` if that cannot be done here.
    fn destroy(&self) -> bool {
        false
    }
}

/// Runs every case, each on a fresh bench.
pub fn suite(make: impl Fn() -> Box<dyn Bench>) {
    cases!(make:
        a_pin_shows_the_state_at_pin,
        rounds_do_not_change_what_is_pinned,
        a_change_under_the_hold_is_noticed,
        release_removes_everything,
        a_dropped_pin_is_released,
        a_dropped_pinner_leaves_nothing,
        it_can_be_pinned_again,
        a_passed_deadline_leaves_nothing_pinned,
        unchanged_files_are_carried_over,
        entries_are_whole_trees,
        a_vanished_source_is_not_a_silent_success,
    );
}

fn ok<T>(what: &str, result: Result<T, Failure>) -> T {
    match result {
        Ok(value) => value,
        Err(failure) => panic!("{what}: {}", failure.in_full()),
    }
}

/// What a repository would hold before the cut: by path, the stamp and the bytes.
type Repository = BTreeMap<PathBuf, (Stamp, Vec<u8>)>;

fn store_ahead(bench: &dyn Bench, manifest: Option<Manifest>, repository: &mut Repository) {
    let entries = manifest.map(|m| m.entries).unwrap_or_default();
    for entry in entries.iter().filter(|e| e.kind == Kind::File && e.body == Body::Carried) {
        if let Some((stamp, bytes)) = bench.read_live(&entry.path)
            && stamp == entry.meta.stamp()
        {
            repository.insert(entry.path.clone(), (stamp, bytes));
        }
    }
}

/// Prepares a pinner, and stores ahead all that it hands over for that, in as many parts as it likes.
fn first_pass(bench: &dyn Bench, pinner: &mut dyn Pinner, known: &Known, repository: &mut Repository) {
    store_ahead(bench, ok("prepare", pinner.prepare(known)), repository);
    while let Some(more) = pinner.more_ahead(known) {
        store_ahead(bench, Some(more), repository);
    }
}

fn files(bench: &dyn Bench, harvest: &Harvest, repository: &Repository) -> BTreeMap<PathBuf, Vec<u8>> {
    let bytes = |entry: &Entry| match &entry.body {
        Body::At(path) => bench.read_pinned(path).unwrap_or_else(|| {
            panic!("{} is not there: pinned copy of {}", path.display(), entry.path.display())
        }),
        Body::Inline(bytes) => bytes.clone(),
        Body::Carried => match repository.get(&entry.path) {
            Some((stamp, bytes)) if *stamp == entry.meta.stamp() => bytes.clone(),
            _ => panic!("{} is carried over, but never was stored so", entry.path.display()),
        },
        Body::Nothing => panic!("{} is a regular file without a body", entry.path.display()),
    };
    harvest
        .entries
        .iter()
        .filter(|e| e.kind == Kind::File)
        .map(|entry| {
            let bytes = bytes(entry);
            assert_eq!(entry.meta.size.0, bytes.len() as u64, "size of {}", entry.path.display());
            (entry.path.clone(), bytes)
        })
        .collect()
}

fn assert_nothing_missing(problems: &[Problem]) {
    let bad: Vec<String> =
        problems.iter().filter(|p| p.effect != Effect::Note).map(ToString::to_string).collect();
    assert!(bad.is_empty(), "problems: {bad:?}");
}

/// Prepares, pins under the hold and scans; asserts that stillness is shown.
fn pinned(bench: &dyn Bench, pinner: &mut dyn Pinner) -> (Box<dyn Pin>, Content) {
    let hold = bench.hold();
    let mut pin = ok("pin", pinner.pin(within(&*bench.clock(), AMPLE)));
    let stillness = ok("unchanged", pin.unchanged(within(&*bench.clock(), AMPLE)));
    assert!(!matches!(stillness, Stillness::NotShown(_)), "nothing changed, but: {stillness:?}");
    let live = bench.live();
    drop(hold);
    (pin, live)
}

/// The source changes before, between and after: what is harvested is what there was at the pin.
pub fn a_pin_shows_the_state_at_pin(bench: &dyn Bench) {
    let mut repository = Repository::new();
    bench.write(1);
    let mut pinner = bench.pinner();
    first_pass(bench, &mut *pinner, &Known::default(), &mut repository);
    bench.write(2);
    let (mut pin, live) = pinned(bench, &mut *pinner);
    bench.write(3);
    assert_ne!(bench.live(), live, "the bench's write(3) should change something");
    let harvest = ok("harvest", pin.harvest(&Silent));
    assert_nothing_missing(&harvest.problems);
    bench.write(4);
    assert_eq!(bench.stored(&files(bench, &harvest, &repository)), live, "pinned, and live at the pin");
    ok("release", pin.release());
}

/// Rounds between first pass and pin, with changes between them and with files that settle.
pub fn rounds_do_not_change_what_is_pinned(bench: &dyn Bench) {
    let mut repository = Repository::new();
    bench.write(1);
    bench.settle();
    let mut pinner = bench.pinner();
    first_pass(bench, &mut *pinner, &Known::default(), &mut repository);
    for step in 2..5 {
        bench.write(step);
        ok("round", pinner.round());
    }
    ok("round", pinner.round());
    bench.write(5);
    let (mut pin, live) = pinned(bench, &mut *pinner);
    bench.write(6);
    let harvest = ok("harvest", pin.harvest(&Silent));
    assert_nothing_missing(&harvest.problems);
    assert_eq!(bench.stored(&files(bench, &harvest, &repository)), live, "pinned, and live at the pin");
    ok("release", pin.release());
}

/// A change after `pin` is seen by `unchanged`, unless the pin is atomic and needs no scan.
pub fn a_change_under_the_hold_is_noticed(bench: &dyn Bench) {
    if !bench.writes_under_hold() {
        return;
    }
    let mut pinner = bench.pinner();
    bench.write(1);
    ok("prepare", pinner.prepare(&Known::default()));
    let hold = bench.hold();
    let mut pin = ok("pin", pinner.pin(within(&*bench.clock(), AMPLE)));
    bench.write(2);
    match pin.unchanged(within(&*bench.clock(), AMPLE)) {
        Err(_) | Ok(Stillness::NotShown(_) | Stillness::AtomicSnapshot(_)) => {}
        Ok(stillness) => panic!("it changed after the pin, but: {stillness:?}"),
    }
    drop(hold);
    ok("release", pin.release());
}

/// After `release` and the pinner's end nothing is left and nothing is open in the journal.
pub fn release_removes_everything(bench: &dyn Bench) {
    let mut pinner = bench.pinner();
    bench.write(1);
    ok("prepare", pinner.prepare(&Known::default()));
    let (mut pin, _) = pinned(bench, &mut *pinner);
    ok("harvest", pin.harvest(&Silent));
    ok("release", pin.release());
    drop(pinner);
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    assert_eq!(bench.open_undos(), 0);
}

/// Dropping does what release does.
pub fn a_dropped_pin_is_released(bench: &dyn Bench) {
    let mut pinner = bench.pinner();
    bench.write(1);
    ok("prepare", pinner.prepare(&Known::default()));
    let (mut pin, _) = pinned(bench, &mut *pinner);
    ok("harvest", pin.harvest(&Silent));
    drop(pin);
    drop(pinner);
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    assert_eq!(bench.open_undos(), 0);
}

/// A run that ends before the cut leaves nothing of the first pass.
pub fn a_dropped_pinner_leaves_nothing(bench: &dyn Bench) {
    bench.write(1);
    let mut pinner = bench.pinner();
    ok("prepare", pinner.prepare(&Known::default()));
    bench.write(2);
    ok("round", pinner.round());
    drop(pinner);
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    assert_eq!(bench.open_undos(), 0);
}

/// A second attempt after the first pin was released shows the second state.
pub fn it_can_be_pinned_again(bench: &dyn Bench) {
    let mut repository = Repository::new();
    bench.write(1);
    let mut pinner = bench.pinner();
    first_pass(bench, &mut *pinner, &Known::default(), &mut repository);
    let (pin, _) = pinned(bench, &mut *pinner);
    ok("release", pin.release());
    bench.write(2);
    ok("round", pinner.round());
    bench.write(3);
    let (mut pin, live) = pinned(bench, &mut *pinner);
    let harvest = ok("harvest", pin.harvest(&Silent));
    assert_nothing_missing(&harvest.problems);
    assert_eq!(
        bench.stored(&files(bench, &harvest, &repository)),
        live,
        "pinned, and live at the second pin"
    );
    ok("release", pin.release());
}

/// Too late is an error after which another attempt works and the first left nothing.
pub fn a_passed_deadline_leaves_nothing_pinned(bench: &dyn Bench) {
    let mut pinner = bench.pinner();
    bench.write(1);
    ok("prepare", pinner.prepare(&Known::default()));
    let hold = bench.hold();
    let clock = bench.clock();
    let until = within(&*clock, Duration::ZERO);
    clock.sleep(Duration::from_millis(1));
    match pinner.pin(until) {
        Ok(_) => panic!("pinned after the deadline"),
        Err(failure) => assert_transient(&failure),
    }
    drop(hold);
    let (pin, _) = pinned(bench, &mut *pinner);
    ok("release", pin.release());
    drop(pinner);
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    assert_eq!(bench.open_undos(), 0);
}

/// What the parent backup holds with the same settled stamp is neither pinned nor opened again.
pub fn unchanged_files_are_carried_over(bench: &dyn Bench) {
    if !bench.carries() {
        return;
    }
    bench.write(1);
    bench.settle();
    let mut repository = Repository::new();
    let mut pinner = bench.pinner();
    first_pass(bench, &mut *pinner, &Known::default(), &mut repository);
    let (mut pin, _) = pinned(bench, &mut *pinner);
    let first = ok("harvest", pin.harvest(&Silent));
    let mut known = Known::default();
    for (path, bytes) in files(bench, &first, &repository) {
        let entry = first.entries.iter().find(|e| e.path == path).expect("it was just listed");
        known.insert(&path, entry.meta.stamp());
        repository.insert(path, (entry.meta.stamp(), bytes));
    }
    ok("release", pin.release());
    drop(pinner);

    bench.write(2);
    let mut pinner = bench.pinner();
    first_pass(bench, &mut *pinner, &known, &mut repository);
    let (mut pin, live) = pinned(bench, &mut *pinner);
    let second = ok("harvest", pin.harvest(&Silent));
    assert_eq!(bench.stored(&files(bench, &second, &repository)), live);
    for entry in second.entries.iter().filter(|e| e.kind == Kind::File) {
        if known.has(&entry.path, &entry.meta.stamp()) {
            assert_eq!(entry.body, Body::Carried, "{} did not change", entry.path.display());
        }
    }
    let carried = second.entries.iter().filter(|e| known.has(&e.path, &e.meta.stamp())).count();
    assert!(carried > 0, "write(2) should leave some file as it was, or nothing is shown here");
    ok("release", pin.release());
}

/// Absolute, normal paths, each once, every one below directories that are entries too.
pub fn entries_are_whole_trees(bench: &dyn Bench) {
    bench.write(1);
    let mut pinner = bench.pinner();
    ok("prepare", pinner.prepare(&Known::default()));
    let (mut pin, _) = pinned(bench, &mut *pinner);
    let harvest = ok("harvest", pin.harvest(&Silent));
    let count = harvest.entries.len();
    let manifest = Manifest::merge(bench.clock().now(), harvest.entries);
    assert_eq!(manifest.entries.len(), count, "a path is there twice");
    let directories: BTreeSet<PathBuf> =
        manifest.entries.iter().filter(|e| e.kind == Kind::Dir).map(|e| e.path).collect();
    for entry in &manifest.entries {
        assert!(entry.path.is_absolute(), "{}", entry.path.display());
        let text = entry.path.to_string_lossy();
        assert!(text == "/" || !text.ends_with('/'), "{text}");
        assert!(!text.contains("/./") && !text.contains("/../") && !text.contains("//"), "{text}");
        if let Some(parent) = entry.path.parent().filter(|p| *p != Path::new("/")) {
            assert!(directories.contains(parent), "{} stands below nothing", entry.path.display());
        }
        assert_eq!(entry.kind == Kind::File, entry.body != Body::Nothing, "{}", entry.path.display());
    }
    ok("release", pin.release());
}

/// A source that is gone is an error or a problem that says that something is missing.
pub fn a_vanished_source_is_not_a_silent_success(bench: &dyn Bench) {
    bench.write(1);
    let mut pinner = bench.pinner();
    ok("prepare", pinner.prepare(&Known::default()));
    if !bench.destroy() {
        return;
    }
    let Ok(mut pin) = pinner.pin(within(&*bench.clock(), Duration::from_secs(2))) else { return };
    // A scan that fails is an answer too.
    let _ = pin.unchanged(within(&*bench.clock(), AMPLE));
    if let Ok(harvest) = pin.harvest(&Silent) {
        assert!(
            harvest.problems.iter().any(|p| p.effect == Effect::Missing),
            "the source is gone and nothing says that it is missing: {:?}",
            harvest.problems
        );
    }
    ok("release", pin.release());
}
