//! `completions SHELL`: a completion script on standard output.
//!
//! Crash story: writes to standard output only.

use clap::CommandFactory;

use crate::{
    cli::{Cli, CompletionsArgs},
    exit::{Exit, Outcome},
    output::stdout,
};

/// Prints the script.
///
/// # Errors
/// If standard output cannot be written.
pub fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stillpoint", &mut script);
    stdout(&script)?;
    Ok(Exit::Done)
}
