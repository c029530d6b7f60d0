//! The commands, one file each. A command reads what it needs, calls what does it, and returns how it ended.
//!
//! Crash story: each command tells its own.

mod backup;
mod check;
mod completions;
mod coverage;
mod demo;
mod init;
mod key;
mod list;
mod log;
mod man;
mod plan;
mod prune;
mod restore;
mod show;
mod thaw;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;
use model::{port::Failure, restore::Choice};

use crate::{
    cli::{Cli, Command, Global},
    exit::{Exit, Fault, Outcome},
    output::{self, Output, stdout},
    signals::Interrupt,
};

/// What every command is given.
#[derive(Debug)]
pub struct Context {
    /// Where the inventory is, and how to print.
    pub global: Global,
    /// Where results and messages go.
    pub output: Output,
    /// Whether somebody asked us to stop.
    pub interrupt: Interrupt,
}

/// Parses the command line, runs the command and says how it ended.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let output = Output { json: cli.global.json, verbose: cli.global.verbose };
    output::log::start(output);
    match Interrupt::listen() {
        Ok(interrupt) => {
            let context = Context { global: cli.global, output, interrupt };
            let outcome = dispatch(&context, &cli.command);
            end(output, outcome.map_err(|fault| context.interrupt.explains(fault)))
        }
        Err(error) => end(output, Err(Fault::io("signals cannot be handled", "", error))),
    }
}

fn end(output: Output, outcome: Outcome) -> ExitCode {
    let exit = outcome.unwrap_or_else(|fault| {
        output.fault(&fault);
        fault.exit
    });
    exit.into()
}

fn not_understood(error: &clap::Error) -> ExitCode {
    let is_fault = error.use_stderr();
    if is_fault && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let what = text.trim().trim_start_matches("error: ").to_owned();
        Output { json: true, verbose: false }.fault(&Fault::usage(what, "see `stillpoint --help`"));
    } else if is_fault {
        // There is nobody left to tell.
        let _ = error.print();
    } else {
        let output = Output { json: false, verbose: false };
        return end(output, printed(error).map_err(Fault::from));
    }
    Exit::Usage.into()
}

/// Prints what was asked for: help or version.
fn printed(error: &clap::Error) -> Result<Exit, Failure> {
    let text = error.render();
    let text = if io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() };
    stdout(text.as_bytes())?;
    Ok(Exit::Done)
}

/// How a backup is named on the command line.
fn choice(text: &str) -> Choice {
    if text == "latest" { Choice::Latest } else { Choice::Id(text.to_owned()) }
}

fn dispatch(context: &Context, command: &Command) -> Outcome {
    match command {
        Command::Demo(args) => demo::run(context, args),
        Command::Init(args) => init::run(context, args),
        Command::Plan(args) => plan::run(context, args),
        Command::Backup(args) => backup::run(context, args),
        Command::List(args) => list::run(context, args),
        Command::Coverage(args) => coverage::run(context, args),
        Command::Log(args) => log::run(context, args),
        Command::Restore(args) => restore::run(context, args),
        Command::Show(args) => show::run(context, args),
        Command::Check(args) => check::run(context, args),
        Command::Prune(args) => prune::run(context, args),
        Command::Key(args) => key::run(context, args),
        Command::Thaw => thaw::run(context),
        Command::Completions(args) => completions::run(args),
        Command::Man => man::run(),
    }
}
