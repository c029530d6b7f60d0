//! `log`: archives the logs of an application's databases until it is stopped.
//!
//! Crash story: see `orchestrate::ship` and `vault::logs`: what was synced stays, and the next start goes on from there.

use super::Context;
use crate::{
    cli::LogArgs,
    exit::{Exit, Outcome},
    wire::{inventory, log},
};

/// Archives until INT or TERM.
///
/// # Errors
/// If the inventory cannot be read, nothing of the application has a log, or a log cannot be archived as things are.
pub fn run(context: &Context, args: &LogArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let application = inventory::one(&inventory, &args.application)?;
    context.interrupt.defer();
    log::run(context, &inventory, application)?;
    Ok(Exit::Done)
}
