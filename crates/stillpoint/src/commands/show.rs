//! `show`: the record of one backup.
//!
//! Crash story: reads only.

use model::{
    port::{Failure, Shelf},
    restore::choose,
};

use super::Context;
use crate::{
    cli::ShowArgs,
    exit::{Exit, Outcome},
    output::backups::Shown,
    wire::{inventory, password, run::Run},
};

/// Shows it.
///
/// # Errors
/// If inventory, key or repository cannot be read, or there is no such backup.
pub fn run(context: &Context, args: &ShowArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let application = inventory::one(&inventory, &args.application)?;
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let mut repository = run.open(application)?;
    let stored = choose(&repository.backups()?, &super::choice(&args.backup))?.clone();
    let cut = repository.cut_record(&stored.id).map_err(Failure::from)?;
    drop(repository);
    run.end()?;
    context.output.result(&Shown { stored, cut })?;
    Ok(Exit::Done)
}
