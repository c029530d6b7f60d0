//! `prune`: retention, with the reason for each backup kept (promise 6).
//!
//! Crash story: see `orchestrate::retire`. An acceptance is written before anything is removed.

use model::{
    inventory::Application,
    port::{Progress, Shelf},
};
use orchestrate::retire::{self, Reclaim};

use super::Context;
use crate::{
    cli::PruneArgs,
    exit::{Exit, Fault, Outcome},
    output::retention::{Prune, Prunes},
    progress::progress,
    wire::{inventory, log_store, password, reference, run::Run},
};

/// Prunes.
///
/// # Errors
/// If inventory, key or a repository cannot be read, a backup to be accepted is not there, or somebody else
/// uses a repository.
pub fn run(context: &Context, args: &PruneArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let applications = inventory::choose(&inventory, &args.applications)?;
    if !args.accept.is_empty() && applications.len() > 1 {
        return Err(Fault::usage("--accept is about one application", "name the application"));
    }
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let progress = progress(context.output);
    let mut prunes = Prunes { applications: Vec::new() };
    for application in applications {
        context.interrupt.check()?;
        prunes.applications.push(one(&run, application, args, &*progress)?);
    }
    run.end()?;
    context.output.result(&prunes)?;
    Ok(Exit::Done)
}

fn one(
    run: &Run<'_>,
    application: &Application,
    args: &PruneArgs,
    progress: &dyn Progress,
) -> Outcome<Prune> {
    let mut repository = run.open(application)?;
    if !args.dry_run {
        for wanted in &args.accept {
            retire::accept(&mut repository, wanted)?;
        }
    }
    let plan = retire::plan_by(&mut repository, &application.settings, &*run.clock)?;
    let logs = log_store::plan(run, application, &mut repository, &plan)?;
    let mut freed = None;
    if !args.dry_run {
        // Backups go first: none that is listed may be without the logs after it.
        let old = logs.as_ref().filter(|logs| !logs.is_empty());
        let reclaim = if old.is_some() { Reclaim::Never } else { Reclaim::Always };
        freed = retire::carry_out(&mut repository, &plan, reclaim, progress)?.freed;
        if let Some(old) = old {
            log_store::drop_old(run, application, &mut repository, old)?;
            freed = Some(repository.reclaim(progress)?);
        }
    }
    if !args.dry_run {
        reference::drop_orphan(run, application, &mut repository)?;
    }
    Ok(Prune {
        application: application.name.clone(),
        relpath: application.relpath.clone(),
        plan,
        logs,
        carried_out: !args.dry_run,
        freed,
    })
}
