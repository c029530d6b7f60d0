//! `man`: the manual page, all commands in one, on standard output: `stillpoint man | man -l -`.
//!
//! Crash story: writes to standard output only.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_mangen::Man;

use crate::{
    cli::{Cli, EXIT_STATUS},
    exit::{Exit, Fault, Outcome},
    output::stdout,
};

/// Prints the page.
///
/// # Errors
/// If standard output cannot be written.
pub fn run() -> Outcome {
    let page = page().map_err(|error| Fault::io("the manual page cannot be made", "", error))?;
    stdout(&page)?;
    Ok(Exit::Done)
}

fn page() -> io::Result<Vec<u8>> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let section = Man::new(sub.clone());
        writeln!(page, ".SH \"STILLPOINT {}\"", sub.get_name().to_uppercase())?;
        section.render_description_section(&mut page)?;
        section.render_synopsis_section(&mut page)?;
        section.render_options_section(&mut page)?;
    }
    writeln!(page, ".SH \"EXIT STATUS\"\n{EXIT_STATUS}")?;
    Ok(page)
}
