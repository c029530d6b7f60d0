//! `completions SHELL`: a completion script on standard output.
//!
//! Crash story: writes to standard output only.

use std::io::{self, Write};

use clap::CommandFactory;

use crate::{
    cli::{Cli, CompletionsArgs},
    exit::{Exit, Fault, Outcome},
};

/// Prints the script.
///
/// # Errors
/// If standard output cannot be written.
pub fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stillpoint", &mut script);
    io::stdout()
        .lock()
        .write_all(&script)
        .map_err(|error| Fault::io("standard output cannot be written", "", error))?;
    Ok(Exit::Done)
}
