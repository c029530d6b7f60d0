//! Holds and the watchdog on real processes, all of them children of this test. It has no harness because it
//! is its own helper program: started with `__helper ROLE` it plays a writer, a holder or the watchdog.

#![allow(clippy::print_stdout, reason = "it is its own harness, and its children answer on standard output")]

mod children;
mod holds;
mod scene;
mod watchdog;

use std::{panic, process::ExitCode, time::Instant};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some((role, rest)) = os::command::helper_role(&args) {
        return children::play(&role.to_string_lossy(), rest);
    }
    let filter: Vec<String> =
        args.iter().map(|a| a.to_string_lossy().into_owned()).filter(|a| !a.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in holds::TESTS.iter().chain(watchdog::TESTS) {
        if !filter.is_empty() && !filter.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        let began = Instant::now();
        let passed = panic::catch_unwind(test).is_ok();
        println!("test {name} ... {} ({:.2?})", if passed { "ok" } else { "FAILED" }, began.elapsed());
        failed += usize::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
