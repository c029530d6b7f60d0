//! `demo`: a small guestbook under load: cut, restore, proof.
//!
//! Crash story: see [`crate::demo`].

use super::Context;
use crate::{
    cli::DemoArgs,
    demo,
    exit::{Exit, Outcome},
};

/// Plays the demo and prints what it showed.
///
/// # Errors
/// If it cannot be played to its end. That it did not prove its point is the status for a failure.
pub fn run(context: &Context, args: &DemoArgs) -> Outcome {
    let writers = args.writers;
    context.output.note(format!("{writers} processes write to a guestbook; up to {} cuts", args.cuts));
    let report = demo::run(context, args)?;
    context.output.result(&report)?;
    Ok(if report.proven { Exit::Done } else { Exit::Failed })
}
