//! Makes the tables of `docs/BENCHMARKS.md`: what clients of a loaded MariaDB server notice of a cut, of other backup
//! tools, and of a bare LVM snapshot; and the archiver beside others. `scripts/bench` builds and runs it; see there for the arguments.
//!
//! Nothing on that page is typed by hand. A run replaces the rows that it measured and leaves the others.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "progress for whoever waits for the figures")]

mod archive;
mod figures;
mod log;
mod lvm;
mod machine;
mod options;
mod page;
mod peer;
mod promised;
mod replay;
mod scene;
mod stall;
mod tools;
mod wiki;

use std::{env, process::ExitCode};

use options::Options;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let options = match Options::parse(&arguments) {
        Ok(options) => options,
        Err(told) => {
            eprintln!("bench: {told}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match options.command.as_str() {
        "stall" => stall::run(&options),
        "tools" => tools::run(&options),
        "archive" => archive::run(&options),
        "log" => log::run(&options),
        "replay" => replay::run(&options),
        "lvm" => lvm::run(&options),
        "lvm-guest" => lvm::guest(&options),
        "page" => page::render_again(&options),
        other => {
            eprintln!("bench: there is no {other}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
