//! What every [`Hold`] has to do.
//!
//! Crash story: see the parent.

use std::{any::Any, sync::Arc, time::Duration};

use model::{
    port::{Clock, FailureKind, Frozen, Hold},
    verdict::Stillness,
};

use super::{AMPLE, LATE, assert_transient, cases, within};

/// A hold under test and the world around it.
pub trait Bench {
    /// A new hold of the writers of this bench.
    fn hold(&self) -> Box<dyn Hold>;
    /// The clock by which the hold was told its deadlines.
    fn clock(&self) -> Arc<dyn Clock>;
    /// Whether the writers get on now: tries a write from outside, for half a second at the most.
    fn writers_run(&self) -> bool;
    /// Gets in the way, so that freezing has to wait until the returned value is dropped; `None` where
    /// nobody can get in the way.
    fn obstruct(&self) -> Option<Box<dyn Any>> {
        None
    }
    /// Ends the hold that is taken behind the driver's back: kills its child, continues its processes.
    /// `false` where that cannot be done.
    fn lose(&self) -> bool {
        false
    }
    /// How many journalled undos are open.
    fn open_undos(&self) -> usize;
}

/// Runs every case, each on a fresh bench.
pub fn suite(make: impl Fn() -> Box<dyn Bench>) {
    cases!(make:
        preparing_holds_nobody,
        freeze_prove_thaw,
        a_dropped_guard_lets_go,
        a_dropped_hold_leaves_nothing,
        it_can_be_taken_again,
        a_passed_deadline_holds_nobody,
        it_gives_up_in_time_and_can_be_tried_again,
        what_is_lost_is_not_proven,
        it_is_journalled_while_it_lasts,
    );
}

fn prepared(bench: &dyn Bench) -> Box<dyn Hold> {
    let mut hold = bench.hold();
    if let Err(failure) = hold.prepare() {
        panic!("prepare: {}", failure.in_full());
    }
    hold
}

fn frozen(bench: &dyn Bench, hold: &mut dyn Hold) -> Box<dyn Frozen> {
    match hold.freeze(within(&*bench.clock(), AMPLE)) {
        Ok(frozen) => frozen,
        Err(failure) => panic!("freeze: {}", failure.in_full()),
    }
}

/// `prepare` holds nobody back, and the hold has a name.
pub fn preparing_holds_nobody(bench: &dyn Bench) {
    let hold = prepared(bench);
    assert!(!hold.name().is_empty());
    assert!(bench.writers_run(), "writers are held back although only prepare was called");
}

/// The way things go when nothing goes wrong.
pub fn freeze_prove_thaw(bench: &dyn Bench) {
    assert!(bench.writers_run(), "the bench's writers should run before anything is held");
    let mut hold = prepared(bench);
    let mut guard = frozen(bench, &mut *hold);
    assert!(!bench.writers_run(), "writers run although they are frozen");
    for _ in 0..2 {
        match guard.prove() {
            Ok(Stillness::NotShown(why)) => panic!("prove shows nothing: {why}"),
            Ok(_) => {}
            Err(failure) => panic!("prove: {}", failure.in_full()),
        }
    }
    assert!(!bench.writers_run(), "proving let the writers go");
    if let Err(failure) = guard.thaw() {
        panic!("thaw: {}", failure.in_full());
    }
    assert!(bench.writers_run(), "writers are held back after the thaw");
}

/// Dropping the guard lets the writers go, as a last resort.
pub fn a_dropped_guard_lets_go(bench: &dyn Bench) {
    let mut hold = prepared(bench);
    drop(frozen(bench, &mut *hold));
    assert!(bench.writers_run(), "writers are held back after the guard was dropped");
}

/// Whatever was made for the hold is gone and crossed off when hold and guard are dropped, in either order.
pub fn a_dropped_hold_leaves_nothing(bench: &dyn Bench) {
    let mut hold = prepared(bench);
    let guard = frozen(bench, &mut *hold);
    drop(hold);
    drop(guard);
    assert!(bench.writers_run(), "writers are held back after hold and guard were dropped");
    assert_eq!(bench.open_undos(), 0, "undos are open after hold and guard were dropped");
}

/// A second and third freeze work like the first.
pub fn it_can_be_taken_again(bench: &dyn Bench) {
    let mut hold = prepared(bench);
    for round in 0..3 {
        let mut guard = frozen(bench, &mut *hold);
        assert!(!bench.writers_run(), "writers run in round {round}");
        assert!(guard.prove().is_ok(), "not proven in round {round}");
        assert!(guard.thaw().is_ok(), "not thawed in round {round}");
        assert!(bench.writers_run(), "writers are held after round {round}");
    }
}

/// A deadline that has passed already holds nobody, and the hold can still be taken later.
pub fn a_passed_deadline_holds_nobody(bench: &dyn Bench) {
    let mut hold = prepared(bench);
    let clock = bench.clock();
    let until = within(&*clock, Duration::ZERO);
    clock.sleep(Duration::from_millis(1));
    match hold.freeze(until) {
        Ok(_) => panic!("frozen after the deadline"),
        Err(failure) => assert_transient(&failure),
    }
    assert!(bench.writers_run(), "writers are held after a freeze that was refused");
    assert!(frozen(bench, &mut *hold).thaw().is_ok());
}

/// Somebody in the way: it gives up by the deadline, holds nobody, and works once the way is free.
pub fn it_gives_up_in_time_and_can_be_tried_again(bench: &dyn Bench) {
    let mut hold = prepared(bench);
    let Some(obstacle) = bench.obstruct() else { return };
    let clock = bench.clock();
    let until = within(&*clock, Duration::from_millis(300));
    match hold.freeze(until) {
        Ok(_) => panic!("frozen although somebody is in the way"),
        Err(failure) => assert_transient(&failure),
    }
    let late = clock.moment().since(until.0);
    assert!(late <= LATE, "gave up {late:?} after the deadline");
    drop(obstacle);
    assert!(bench.writers_run(), "writers are held after a freeze that gave up");
    let mut guard = frozen(bench, &mut *hold);
    assert!(guard.prove().is_ok());
    assert!(guard.thaw().is_ok());
    assert!(bench.writers_run());
}

/// A hold that ended behind our back is `Lost`, and thawing what is left neither fails to return nor holds.
pub fn what_is_lost_is_not_proven(bench: &dyn Bench) {
    let mut hold = prepared(bench);
    let mut guard = frozen(bench, &mut *hold);
    if !bench.lose() {
        return;
    }
    match guard.prove() {
        Ok(stillness) => panic!("a lost hold was proven: {stillness:?}"),
        Err(failure) => assert_eq!(failure.kind, FailureKind::Lost, "{}", failure.in_full()),
    }
    // Whether thawing a lost hold is an error is the driver's affair; that writers run is not.
    let _ = guard.thaw();
    assert!(bench.writers_run(), "writers are held after a lost hold was thawed");
    assert!(frozen(bench, &mut *hold).thaw().is_ok(), "a lost hold cannot be taken again");
}

/// While writers are held there is an open undo; when all is over there is none.
pub fn it_is_journalled_while_it_lasts(bench: &dyn Bench) {
    assert_eq!(bench.open_undos(), 0);
    let mut hold = prepared(bench);
    let guard = frozen(bench, &mut *hold);
    assert!(bench.open_undos() > 0, "writers are held and nothing in the journal says how to let them go");
    assert!(guard.thaw().is_ok());
    drop(hold);
    assert_eq!(bench.open_undos(), 0, "undos are open after the thaw");
}
