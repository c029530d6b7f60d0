//! The real archive and its keeper, in a simulated world, from a seed: what counted is never lost nor there twice, and what
//! is missing is told as a hole.
//!
//! A failure prints the seed; `STILLPOINT_SEED=n cargo test -p orchestrate --test ship` runs that one only, and
//! `STILLPOINT_SEEDS=n` so many.

use std::{cell::RefCell, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use jiff::SignedDuration;
use model::{
    logs::Beginning,
    port::{Clock, Failure, FailureKind, Silent},
    port_shelf::LogShelf,
    size::Bytes,
    time::Moment,
};
use orchestrate::{
    keep,
    ship::{Settings, Ship},
};
use testkit::{
    fakes::logs::{FakeLogs, FakeServer, FakeSpool, Weather, World},
    faults::{Fault, Faults, Faulty, Injected},
};

/// How long segments stay in the spool of this world, whose days are seconds.
const WINDOW: SignedDuration = SignedDuration::from_secs(4);
/// How often the keeper stores.
const EVERY: Duration = Duration::from_secs(1);

/// One server that loses parts of its log. A new server is left out: one that numbers other transactions as another did,
/// after a reset or a loss that nobody saw, cannot be told by GTIDs.
const STORMY: Weather = Weather {
    breaks: true,
    purges: true,
    resets: true,
    loses: true,
    switches: false,
    fills: true,
    vanishes: true,
    crowds: true,
    steps: true,
    backups: true,
};

/// Everything that a server or a machine does without losing a part of the log.
const ROUGH: Weather = Weather { purges: false, resets: false, loses: false, switches: true, ..STORMY };

/// Servers that take over from one another, and remove their logs before they are read.
const MOVING: Weather = Weather { purges: true, ..ROUGH };

fn seeds(usual: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a seed is a number"));
    match number("STILLPOINT_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("STILLPOINT_SEEDS").unwrap_or(usual)).collect(),
    }
}

/// What a life of the archive's process ended with: killed, or by itself.
type Ended = Option<Result<(), Failure>>;

/// One process of the archive, with its keeper, for so long.
fn live(world: &World, faults: &Arc<Faults>, long: Duration) -> Ended {
    let until = Moment(world.moment().0).after(long);
    let shelf = RefCell::new((Faulty::new(FakeLogs(world.clone()), faults), world.moment()));
    let stop = || {
        let (shelf, stored) = &mut *shelf.borrow_mut();
        if world.moment().since(*stored) >= EVERY {
            *stored = world.moment();
            // What does not work now works later.
            let _ = turn(world, shelf);
        }
        world.moment() >= until
    };
    let mut source = Faulty::new(FakeServer(world.clone()), faults);
    let mut random = || {
        let number = world.random(1 << 24).to_le_bytes();
        [number[0], number[1], number[2]]
    };
    let lived = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut sink = Faulty::new(FakeSpool::open(world), faults);
        Ship {
            source_id: world.source(),
            source: &mut source,
            sink: &mut sink,
            clock: world,
            settings: Settings {
                segment: Bytes(1_000),
                rotate: Duration::from_secs(3),
                sync: Duration::from_millis(100),
            },
            cut: None,
            random: &mut random,
            stop: &stop,
            report: &mut |_| {},
        }
        .run()
    }));
    match lived {
        Ok(ended) => Some(ended),
        Err(panic) if panic.is::<Injected>() => {
            world.crash();
            None
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What the keeper does each time, and what a backup does after it.
fn turn(world: &World, shelf: &mut dyn LogShelf) -> Result<(), Failure> {
    keep::store(shelf, WINDOW, world.now(), &Silent)?;
    if let Some(plan) = keep::plan(shelf, &world.anchors())?.filter(|plan| !plan.is_empty()) {
        shelf.forget(&plan)?;
    }
    Ok(())
}

fn faults(world: &World) -> Arc<Faults> {
    let clock = Arc::new(world.clone());
    let call = usize::try_from(world.random(600)).expect("a small number");
    let fault = match world.random(5) {
        0 => return Faults::none(clock),
        1 => Fault::Fail(FailureKind::Lost),
        2 => Fault::FailAfter(FailureKind::NoSpace),
        _ => Fault::Panic,
    };
    Faults::at(clock, call, fault)
}

/// Whether it is right to refuse the server that answers.
fn is_a_stranger(world: &World, failure: &Failure) -> bool {
    failure.kind == FailureKind::Refused && !world.knows_its_server()
}

/// Several lives in this weather, then one in good weather. Nothing if another server answers before anything was archived
/// of the one before, which a person has to decide about.
fn simulate(seed: u64, weather: Weather) -> Option<World> {
    let world = World::new(seed, weather);
    for _ in 0..6 {
        let faults = faults(&world);
        if world.random(4) == 0 {
            world.doom_the_next_store();
        }
        let long = Duration::from_millis(1_000 + world.random(8_000));
        match live(&world, &faults, long) {
            None | Some(Ok(())) => {}
            // Told to stop while it could not take stock.
            Some(Err(failure)) if failure.what.starts_with("injected") => {}
            Some(Err(failure)) if is_a_stranger(&world, &failure) => return None,
            Some(Err(failure)) => panic!("STILLPOINT_SEED={seed}: it gave up: {}", failure.in_full()),
        }
        // Nobody archives for a while.
        world.pass(Duration::from_millis(world.random(3_000)));
    }
    world.calm();
    let none = Faults::none(Arc::new(world.clone()));
    let ended = live(&world, &none, Duration::from_secs(60));
    match ended {
        Some(Ok(())) => {}
        Some(Err(failure)) if is_a_stranger(&world, &failure) => return None,
        ended => panic!("STILLPOINT_SEED={seed}: {ended:?}"),
    }
    turn(&world, &mut FakeLogs(world.clone())).expect("everything works");
    Some(world)
}

fn quiet_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<Injected>() {
            usual(info);
        }
    }));
}

fn assert_sound(world: &World, seed: u64) {
    let violations = world.violations();
    assert!(violations.is_empty(), "STILLPOINT_SEED={seed}:\n{}", violations.join("\n"));
    assert!(world.is_caught_up(), "STILLPOINT_SEED={seed}: the end of the log is missing");
    assert_eq!(world.snapshots(), 1, "STILLPOINT_SEED={seed}");
}

fn assert_nothing_is_lost(weather: Weather, usual: u64) {
    quiet_panics();
    let seeds = seeds(usual);
    let (mut holes, mut strangers) = (0, 0);
    for seed in &seeds {
        let Some(world) = simulate(*seed, weather) else {
            strangers += 1;
            continue;
        };
        assert_sound(&world, *seed);
        holes += world.beginnings().iter().filter(|it| matches!(it, Beginning::Hole { .. })).count();
    }
    let lost_something = weather.purges || weather.resets || weather.loses;
    let told = if lost_something { holes > 0 } else { holes == 0 };
    assert!(seeds.len() < 20 || told, "{holes} holes");
    assert!(seeds.len() < 20 || strangers * 10 < seeds.len(), "{strangers} strangers");
}

#[test]
fn what_a_server_loses_is_a_hole_and_all_else_is_there() {
    assert_nothing_is_lost(STORMY, 80);
}

#[test]
fn without_a_loss_there_is_no_hole() {
    assert_nothing_is_lost(ROUGH, 60);
}

#[test]
fn servers_that_take_over_are_followed() {
    assert_nothing_is_lost(MOVING, 60);
}
