//! Stillpoint: one still point over databases and files, and restores that were tried.
//!
//! Crash story: this file only hands over; each module tells its own.

mod cli;
mod commands;
mod demo;
mod exit;
mod helper;
mod output;
mod progress;
mod signals;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    os::memory::use_few_arenas();
    match helper::role_of_arguments() {
        Some((role, arguments)) => helper::run(&role, &arguments),
        None => commands::run(),
    }
}
