//! `list`: backups, newest last.
//!
//! Crash story: reads only.

use model::port::Shelf;

use super::Context;
use crate::{
    cli::ListArgs,
    exit::{Exit, Outcome},
    output::backups::{Line, List, Lists},
    wire::{inventory, log_store, password, reference, run::Run},
};

/// Lists them.
///
/// # Errors
/// If inventory, key or a repository cannot be read.
pub fn run(context: &Context, args: &ListArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let names: Vec<String> = args.application.iter().cloned().collect();
    let applications = inventory::choose(&inventory, &names)?;
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let mut lists = Lists { applications: Vec::new() };
    for application in applications {
        context.interrupt.check()?;
        let mut repository = run.open(application)?;
        let backups = repository.backups()?;
        lists.applications.push(List {
            application: application.name.clone(),
            relpath: application.relpath.clone(),
            backups: backups.into_iter().map(Line::from).collect(),
            reference_bytes: reference::bytes(&run, application),
            logs: log_store::states(&run, application, &repository)?,
        });
    }
    run.end()?;
    context.output.result(&lists)?;
    Ok(Exit::Done)
}
