//! What every [`LogShelf`] has to do.
//!
//! Crash story: see the parent.

use model::{
    id::{EpochId, SourceId},
    logs::{Epoch, SegmentRecord},
    logs_retention::{LogsPlan, SourcePlan},
    port::{Progress, Silent, Stage},
    port_shelf::{HeldLog, LogShelf},
    size::Bytes,
};

use super::{case, store::ok};

/// The outside of a log shelf: one source, whose log is written as `stillpoint log` writes it.
pub trait Bench {
    /// The shelf.
    fn shelf(&self) -> Box<dyn LogShelf + '_>;
    /// Begins the first epoch, or one that continues.
    fn begin_epoch(&self);
    /// Appends a transaction to the open segment, which is begun if there is none, and syncs it.
    fn append(&self);
    /// Closes the open segment.
    fn close(&self);
    /// How many snapshots of the archive are listed.
    fn snapshots(&self) -> usize;
    /// Flips a bit of a segment in the repository; `false` if that cannot be done.
    fn damage_stored(&self, epoch: &EpochId, number: u64) -> bool;
}

/// A case, by its name.
pub type Case = (&'static str, fn(&dyn Bench));

/// All cases.
pub const CASES: [Case; 7] = [
    ("nothing_is_stored_of_nothing", nothing_is_stored_of_nothing),
    ("what_is_here_is_there_afterwards", what_is_here_is_there_afterwards),
    ("each_snapshot_takes_the_place_of_the_one_before", each_snapshot_takes_the_place_of_the_one_before),
    ("what_left_the_spool_is_carried_over", what_left_the_spool_is_carried_over),
    ("damage_in_the_repository_is_told", damage_in_the_repository_is_told),
    ("what_is_forgotten_does_not_come_back", what_is_forgotten_does_not_come_back),
    ("giving_up_leaves_the_one_before", giving_up_leaves_the_one_before),
];

/// Runs every case, each on a fresh bench and in a thread of its own: a real repository's locks take their time.
pub fn suite(make: impl Fn() -> Box<dyn Bench> + Sync) {
    let make = &make;
    std::thread::scope(|scope| {
        for (name, run) in CASES {
            scope.spawn(move || case(name, || run(&*make())));
        }
    });
}

/// One epoch with so many closed segments of two transactions.
fn filled(bench: &dyn Bench, segments: usize) {
    bench.begin_epoch();
    for _ in 0..segments {
        bench.append();
        bench.append();
        bench.close();
    }
}

fn only(mut logs: Vec<HeldLog>) -> HeldLog {
    assert_eq!(logs.len(), 1, "there is one source");
    logs.remove(0)
}

fn here(shelf: &mut dyn LogShelf) -> HeldLog {
    only(ok("here", shelf.here()))
}

fn there(shelf: &mut dyn LogShelf) -> HeldLog {
    only(ok("there", shelf.there()).expect("something is stored"))
}

fn segments(epochs: &[Epoch]) -> Vec<SegmentRecord> {
    assert!(epochs.iter().all(|epoch| epoch.damaged.is_empty()), "{epochs:?}");
    epochs.iter().flat_map(|epoch| epoch.segments.clone()).collect()
}

/// Everything that is here can be read back there.
fn assert_is_there(shelf: &mut dyn LogShelf) {
    let (here, there) = (here(shelf), there(shelf));
    assert_eq!(there.epochs, here.epochs);
    let (_, unproven) = ok("unproven", shelf.unproven(&here.source, &segments(&here.epochs)));
    assert_eq!(unproven, []);
}

/// No snapshot of an archive that was never written.
pub fn nothing_is_stored_of_nothing(bench: &dyn Bench) {
    let mut shelf = bench.shelf();
    assert_eq!(ok("here", shelf.here()), []);
    let stored = ok("store", shelf.store(&Silent));
    assert_eq!((stored.snapshot, stored.is_new), (None, false));
    assert_eq!(ok("there", shelf.there()), None);
    assert!(shelf.unproven(&SourceId::new("mariadb", "/none"), &[]).is_err(), "no archive is stored");
    assert_eq!(bench.snapshots(), 0);
}

/// Closed segments and the open one, of several epochs.
pub fn what_is_here_is_there_afterwards(bench: &dyn Bench) {
    filled(bench, 2);
    filled(bench, 1);
    bench.append();
    let mut shelf = bench.shelf();
    let stored = ok("store", shelf.store(&Silent));
    assert!(stored.is_new && stored.problems.is_empty());
    assert_is_there(&mut *shelf);
    let log = here(&mut *shelf);
    assert_eq!((log.epochs.len(), log.closed.len(), segments(&log.epochs).len()), (2, 3, 4));
    let again = ok("store again", shelf.store(&Silent));
    assert_eq!((again.is_new, &again.snapshot), (false, &stored.snapshot));
}

/// One snapshot, however often it is stored.
pub fn each_snapshot_takes_the_place_of_the_one_before(bench: &dyn Bench) {
    filled(bench, 1);
    for round in 0..3 {
        bench.append();
        if round == 1 {
            bench.close();
        }
        let mut shelf = bench.shelf();
        assert!(ok("store", shelf.store(&Silent)).is_new);
        assert_is_there(&mut *shelf);
        assert_eq!(bench.snapshots(), 1);
    }
}

/// The repository keeps what is not here any more.
pub fn what_left_the_spool_is_carried_over(bench: &dyn Bench) {
    filled(bench, 2);
    let first = {
        let mut shelf = bench.shelf();
        let snapshot = ok("store", shelf.store(&Silent)).snapshot.expect("a snapshot");
        let first = segments(&here(&mut *shelf).epochs).remove(0);
        let source = here(&mut *shelf).source;
        ok("discard", shelf.discard(&source, &first.epoch, first.number, &snapshot));
        ok("discard twice", shelf.discard(&source, &first.epoch, first.number, &snapshot));
        first
    };
    bench.append();
    let mut shelf = bench.shelf();
    assert!(!here(&mut *shelf).closed.contains(&(first.epoch.clone(), first.number)));
    ok("store", shelf.store(&Silent));
    assert_is_there(&mut *shelf);
}

/// A segment that cannot be read back is not proven, whatever its sidecar says.
pub fn damage_in_the_repository_is_told(bench: &dyn Bench) {
    filled(bench, 2);
    let log = {
        let mut shelf = bench.shelf();
        ok("store", shelf.store(&Silent));
        here(&mut *shelf)
    };
    let all = segments(&log.epochs);
    if !bench.damage_stored(&all[1].epoch, all[1].number) {
        return;
    }
    let (_, unproven) = ok("unproven", bench.shelf().unproven(&log.source, &all));
    let told: Vec<_> = unproven.iter().map(|wrong| (wrong.epoch.clone(), wrong.number)).collect();
    assert!(told.contains(&(all[1].epoch.clone(), all[1].number)), "{unproven:?}");
}

/// Neither here nor there, also after it is stored again.
pub fn what_is_forgotten_does_not_come_back(bench: &dyn Bench) {
    filled(bench, 1);
    filled(bench, 3);
    let log = {
        let mut shelf = bench.shelf();
        ok("store", shelf.store(&Silent));
        here(&mut *shelf)
    };
    let (old, new) = (log.epochs[0].record.epoch.clone(), log.epochs[1].record.epoch.clone());
    let plan = LogsPlan {
        sources: vec![SourcePlan {
            source: log.source,
            because: "a test says so".into(),
            epochs: vec![old],
            from: Some((new.clone(), 2)),
            segments: 2,
        }],
    };
    ok("forget", bench.shelf().forget(&plan));
    ok("forget twice", bench.shelf().forget(&plan));
    for _ in 0..2 {
        let mut shelf = bench.shelf();
        let (here, there) = (here(&mut *shelf), there(&mut *shelf));
        assert_eq!((here.epochs.len(), there.epochs.len()), (1, 1));
        assert!(!here.closed.contains(&(new.clone(), 1)) && here.closed.contains(&(new.clone(), 2)));
        assert_eq!(there.epochs[0].segments[0].number, 2);
        drop(shelf);
        assert_eq!(bench.snapshots(), 1);
        bench.append();
        ok("store", bench.shelf().store(&Silent));
    }
}

struct Stopped;

impl Progress for Stopped {
    fn begin(&self, _stage: Stage, _total: Option<Bytes>) {}
    fn advance(&self, _bytes: Bytes) {}
    fn end(&self) {}
    fn is_stopped(&self) -> bool {
        true
    }
}

/// Whoever asks to stop gets an error, and loses nothing.
pub fn giving_up_leaves_the_one_before(bench: &dyn Bench) {
    filled(bench, 1);
    let mut shelf = bench.shelf();
    ok("store", shelf.store(&Silent));
    let before = there(&mut *shelf);
    drop(shelf);
    bench.append();
    let mut shelf = bench.shelf();
    assert!(shelf.store(&Stopped).is_err(), "it was given up");
    assert_eq!(there(&mut *shelf), before);
    assert!(ok("store", shelf.store(&Silent)).is_new);
    assert_is_there(&mut *shelf);
    drop(shelf);
    assert_eq!(bench.snapshots(), 1);
}
