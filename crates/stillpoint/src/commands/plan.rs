//! `plan`: what a backup would do, how, why, and the stall it predicts.
//!
//! Crash story: holds nobody, stores nothing.

use model::inventory::{Application, Inventory, InventoryError, missing_paths};

use super::Context;
use crate::{
    cli::PlanArgs,
    exit::{Exit, Fault, Outcome},
    output::plan::{Planned, Plans},
    wire::{backup, inventory, password, reference, run::Run},
};

/// Prints the plans.
///
/// # Errors
/// If inventory or key cannot be read. A plan that is refused is printed, and is the status for
/// configuration; so is a path that does not exist.
pub fn run(context: &Context, args: &PlanArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let applications = inventory::choose(&inventory, &args.applications)?;
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let plans = plans(context, &run, &applications)?;
    run.end()?;
    let executable = plans.applications.iter().all(|p| p.plan.refused.is_none() && p.missing.is_empty());
    context.output.result(&plans)?;
    Ok(if executable { Exit::Done } else { Exit::Usage })
}

/// The plans of these applications, also for `backup --dry-run`.
///
/// # Errors
/// If nothing can be found out, or somebody asked us to stop.
pub fn plans(context: &Context, run: &Run<'_>, applications: &[&Application]) -> Outcome<Plans> {
    let mut plans = Plans { applications: Vec::new() };
    for application in applications {
        context.interrupt.check()?;
        let (plan, facts) = backup::plan(run, application).map_err(Fault::from)?;
        let reading = reference::planned(run, application);
        let missing = missing(run.inventory, application);
        let pace = application.settings.pace;
        plans.applications.push(Planned { plan, facts, reading, pace, missing });
    }
    Ok(plans)
}

/// Paths of this application that do not exist, with file and line.
fn missing(inventory: &Inventory, application: &Application) -> Vec<InventoryError> {
    let mut own = inventory.clone();
    own.origins.retain(|origin| origin.application.as_ref() == Some(&application.name));
    missing_paths(&own, &|path| path.symlink_metadata().is_ok())
}
