//! The demo's rounds: a cut by the very path of `backup`, its restore by the very path of `restore`, and a
//! naive copy, all under the same load.
//!
//! Crash story: see [`super`].

use std::time::{Duration, Instant};

use model::{
    inventory::Application,
    port::{Failure, FailureKind, Shelf, Silent},
    restore::{Choice, Target, choose},
};
use orchestrate::backup::BackupReport;
use rand::Rng;

use super::{
    checker::check,
    guestbook::Guestbook,
    load::{Load, naive_copy},
    report::{DemoReport, Round},
    world::World,
};
use crate::{
    cli::DemoArgs,
    commands::Context,
    demo::checker::Tally,
    exit::{Fault, Outcome},
    output::plan::method_name,
    wire::{
        backup::{self, Request},
        restore,
        run::Run,
    },
};

/// Plays the demo.
///
/// # Errors
/// If something fails, or somebody asked us to stop. Nothing is left behind then either.
pub fn play(context: &Context, args: &DemoArgs) -> Outcome<DemoReport> {
    context.interrupt.defer();
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let seed = rand::rng().random();
    let world = World::create(args.dir.as_deref())?;
    let mut load = Load::start(&world.guestbook, args.writers, seed)?;
    let (inventory, password) = world.init(load.pid())?;
    let run = Run::begin(context, &inventory, &password)?;
    let [application] = inventory.applications.as_slice() else {
        return Err(Fault::usage("the demo has one application", ""));
    };
    let (filesystem, pinned_by) = described(&run, application)?;
    let mut rounds = Vec::new();
    for cut in 1..=args.cuts {
        if cut > 1 && Instant::now() >= until {
            context.output.note(format!("{} s are over after {} cuts", args.seconds, rounds.len()));
            break;
        }
        context.interrupt.check()?;
        let round = round(context, &run, application, &world, cut)?;
        load.still_runs()?;
        context.output.note(spoken(&round, args.cuts));
        rounds.push(round);
    }
    drop(load);
    run.end()?;
    world.remove()?;
    Ok(DemoReport::new(seed, args.writers, filesystem, pinned_by, rounds))
}

/// On what it runs, and how the files are pinned there.
fn described(run: &Run<'_>, application: &Application) -> Result<(String, String), Failure> {
    let (plan, facts) = backup::plan(run, application)?;
    let filesystem = facts.directories.first().map(|facts| facts.filesystem.clone()).unwrap_or_default();
    let methods: Vec<&str> = plan.pins.iter().map(|pin| method_name(&pin.method)).collect();
    Ok((filesystem, methods.join(", ")))
}

fn round(
    context: &Context,
    run: &Run<'_>,
    application: &Application,
    world: &World,
    cut: u32,
) -> Outcome<Round> {
    let begun = Instant::now();
    let request = Request { application, label: None, progress: &Silent, interrupt: &context.interrupt };
    let turn = backup::take(run, request);
    for note in turn.notes {
        context.output.warn(note);
    }
    let stored = turn.outcome?;
    let seconds = begun.elapsed().as_secs_f64();
    for problem in &stored.problems {
        context.output.detail(problem);
    }
    restored(run, application, world, cut, &stored)?;
    let ours = tally(&world.restored_guestbook(cut))?;
    let naive_guestbook = world.naive_guestbook(cut);
    naive_copy(&world.guestbook, &naive_guestbook)?;
    let naive = tally(&naive_guestbook)?;
    world.clear(cut)?;
    Ok(Round {
        cut,
        verdict: stored.verdict,
        stall_ms: stored.stall_ms.total,
        attempts: stored.attempts,
        bytes_added: stored.bytes_added,
        ours,
        naive,
        seconds,
    })
}

fn restored(
    run: &Run<'_>,
    application: &Application,
    world: &World,
    cut: u32,
    stored: &BackupReport,
) -> Result<(), Failure> {
    let mut repository = run.open(application)?;
    let choice = Choice::Id(stored.backup.to_string());
    let backup = choose(&repository.backups()?, &choice)?.clone();
    let target = Target::Directory { dir: world.restored(cut) };
    let request = restore::request(run, application, backup, target, false);
    let report = restore::with_plan(&mut repository, &request, |plan, contents| {
        restore::execute(run, application, plan, contents, &Silent)
    })?;
    if report.is_complete() {
        return Ok(());
    }
    let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    let what = format!("the restore of cut {cut} is incomplete: {}", problems.join(". "));
    Err(Failure::new(FailureKind::Other, what, ""))
}

fn tally(copy: &Guestbook) -> Result<Tally, Failure> {
    check(copy).map_err(|error| {
        let what = "a copy of the demo's guestbook cannot be checked";
        Failure::new(FailureKind::Other, what, "").because(error)
    })
}

fn spoken(round: &Round, of: u32) -> String {
    format!(
        "cut {} of {of}: {}, stalled {}; mismatches: ours {}, naive {}",
        round.cut,
        round.verdict,
        round.stall_ms,
        round.ours.mismatches(),
        round.naive.mismatches()
    )
}
