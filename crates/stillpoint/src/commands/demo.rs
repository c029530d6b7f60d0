//! `demo`.
//!
//! Crash story: see [`crate::demo`].

use super::Context;
use crate::{
    cli::DemoArgs,
    exit::{Exit, Outcome},
};

/// Runs it.
///
/// # Errors
/// None yet.
pub fn run(_context: &Context, _args: &DemoArgs) -> Outcome {
    Ok(Exit::Done)
}
