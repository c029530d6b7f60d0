//! `check`: is every byte there. Also warns until somebody has confirmed that the key is kept elsewhere, and
//! tells what dead runs left.
//!
//! Crash story: reads only.

use model::{
    id::{AppName, Relpath},
    port::Failure,
    problem::Problem,
};
use serde::Serialize;
use vault::repository::{CheckReport, Depth};

use super::Context;
use crate::{
    cli::CheckArgs,
    exit::{Exit, Outcome},
    output::{Report, counted, problem_lines},
    progress::progress,
    wire::{inventory, password, run::Run},
};

/// Checks.
///
/// # Errors
/// If inventory, key or a repository cannot be read. Damage is in the report and in the exit status.
pub fn run(context: &Context, args: &CheckArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let applications = inventory::choose(&inventory, &args.applications)?;
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let progress = progress(context.output);
    let depth = if args.read_data { Depth::ReadData } else { Depth::Quick };
    let mut checks =
        Checks { applications: vec![], key_confirmed: password::is_confirmed(&inventory, &password)? };
    for application in applications {
        context.interrupt.check()?;
        let report = run.open(application)?.check(depth, &*progress).map_err(Failure::from)?;
        checks.applications.push(Check::new(application.name.clone(), application.relpath.clone(), report));
    }
    run.end()?;
    if !checks.key_confirmed {
        context.output.warn("nobody has confirmed yet that the key is kept elsewhere; without it every backup is lost: `stillpoint key show`, then `stillpoint key confirm`");
    }
    let good = checks.applications.iter().all(|check| check.good);
    context.output.result(&checks)?;
    Ok(if good { Exit::Done } else { Exit::Failed })
}

#[derive(Debug, Serialize)]
struct Checks {
    applications: Vec<Check>,
    key_confirmed: bool,
}

#[derive(Debug, Serialize)]
struct Check {
    application: AppName,
    relpath: Relpath,
    good: bool,
    backups: u64,
    packs: u64,
    bytes_read: model::size::Bytes,
    problems: Vec<Problem>,
}

impl Check {
    fn new(application: AppName, relpath: Relpath, report: CheckReport) -> Self {
        Self {
            application,
            relpath,
            good: report.is_good(),
            backups: report.backups,
            packs: report.packs,
            bytes_read: report.bytes_read,
            problems: report.problems,
        }
    }

    fn text(&self) -> String {
        let state = if self.good { "whole" } else { "DAMAGED" };
        let read = match self.bytes_read.0 {
            0 => "structure checked; --read-data reads every byte".to_owned(),
            _ => format!("{} read back", self.bytes_read),
        };
        let mut text = format!(
            "{}: {state}: {} in {}, {read}",
            self.application,
            counted(self.backups, "backup"),
            counted(self.packs, "pack")
        );
        text.push_str(&problem_lines(&self.problems, self.problems.len() as u64, usize::MAX));
        text
    }
}

impl Report for Checks {
    fn text(&self) -> String {
        self.applications.iter().map(Check::text).collect::<Vec<_>>().join("\n")
    }
}
