//! `list`: backups, newest last.
//!
//! Crash story: reads only.

use jiff::Timestamp;
use model::{
    coverage::lag,
    inventory::Application,
    port::{Failure, Shelf},
};

use super::Context;
use crate::{
    cli::ListArgs,
    exit::{Exit, Outcome},
    output::backups::{Line, List, Lists, LogLag},
    wire::{inventory, password, recover::archive, run::Run},
};

/// Lists them.
///
/// # Errors
/// If inventory, key or a repository cannot be read.
pub fn run(context: &Context, args: &ListArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let names: Vec<String> = args.application.iter().cloned().collect();
    let applications = inventory::choose(&inventory, &names)?;
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let mut lists = Lists { applications: Vec::new() };
    for application in applications {
        context.interrupt.check()?;
        let backups = run.open(application)?.backups()?;
        lists.applications.push(List {
            application: application.name.clone(),
            relpath: application.relpath.clone(),
            backups: backups.into_iter().map(Line::from).collect(),
            logs: lags(&run, application)?,
        });
    }
    run.end()?;
    context.output.result(&lists)?;
    Ok(Exit::Done)
}

/// How far the log archive of each database is.
fn lags(run: &Run<'_>, application: &Application) -> Result<Vec<LogLag>, Failure> {
    let now = Timestamp::now();
    let statuses = archive::statuses(run, application)?;
    Ok(statuses.iter().map(|status| LogLag { source: status.source.clone(), lag: lag(status, now) }).collect())
}
