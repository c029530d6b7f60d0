//! `restore`: bring an application back, to a directory or in place.
//!
//! Crash story: see `orchestrate::restore`: everything is written beside what it replaces, and what was there
//! is kept until the restored is in its place.

use std::io::{self, BufRead, IsTerminal};

use jiff::tz::TimeZone;
use model::{
    port::{Failure, FailureKind, Shelf},
    record::StoredBackup,
    restore::{RestorePlan, RestoreReport, Target, choose},
};
use serde::Serialize;

use super::Context;
use crate::{
    cli::{RestoreArgs, parse_time},
    exit::{Exit, Fault, Outcome},
    output::{Report, backups::utc, stderr},
    progress::progress,
    wire::{inventory, lock::RunLock, password, restore, run::Run, served},
};

/// Restores.
///
/// # Errors
/// If inventory, key or repository cannot be read, there is no such backup, the restore is refused, nobody
/// agreed to overwriting, or it failed; what was there is then as it was.
pub fn run(context: &Context, args: &RestoreArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let application = inventory::one(&inventory, &args.application)?;
    let target = target(context, args)?;
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let mut repository = run.open(application)?;
    // Only in place is the application touched; to a directory a backup may run beside us.
    let lock = args.in_place.then(|| RunLock::take(&inventory.state(), &application.relpath)).transpose()?;
    for left in run.sweep()?.left {
        context.output.warn(left);
    }
    let backup = chosen(context, args, &repository.backups()?)?;
    let cut = repository.cut_record(&backup.id).map_err(Failure::from)?;
    let mut request = restore::request(&run, application, backup, target, args.accept_incomplete);
    request.servers = served::sources(application, cut.as_ref());
    for server in &request.servers {
        request.keep_out.extend(server.record.roots.iter().map(|root| root.path.clone()));
    }
    let done = restore::with_plan(&mut repository, &request, |plan, contents| {
        if args.dry_run {
            return Ok(Restored::Planned(Box::new(plan.clone())));
        }
        if !agreed(context, args, plan)? {
            return Ok(Restored::Declined);
        }
        let progress = progress(context.output);
        let report = restore::execute_all(&run, application, &request, plan, contents, &*progress)?;
        Ok(Restored::Done(Box::new(report)))
    });
    drop(repository);
    drop(lock);
    let ended = run.end();
    let restored = done?;
    ended?;
    context.output.result(&restored)?;
    Ok(restored.exit())
}

/// Where to; asks nobody yet, but sees whether somebody could be asked.
fn target(context: &Context, args: &RestoreArgs) -> Outcome<Target> {
    if let Some(dir) = &args.to {
        let dir = std::path::absolute(dir).map_err(|error| {
            Fault::usage(format!("{} is no path", dir.display()), "name a directory").because(error)
        })?;
        return Ok(Target::Directory { dir });
    }
    let can_ask = io::stdin().is_terminal() && !context.output.json;
    if !args.yes && !args.dry_run && !can_ask {
        let what = "a restore in place overwrites, and there is no terminal to ask on";
        return Err(Fault::usage(what, "look at it with --dry-run, then add --yes"));
    }
    Ok(Target::InPlace { keep_old: args.keep_old })
}

/// The backup that is meant.
fn chosen(context: &Context, args: &RestoreArgs, backups: &[StoredBackup]) -> Outcome<StoredBackup> {
    let Some(text) = &args.at else {
        return Ok(choose(backups, &super::choice(&args.backup))?.clone());
    };
    let time = parse_time(text, &TimeZone::system())
        .map_err(|error| Fault::usage(error.to_string(), error.remedy()))?;
    context.output.note(format!("{text} is {}", utc(time)));
    let newest = backups.iter().filter(|backup| backup.time <= time).max_by_key(|backup| backup.time);
    let none = || {
        let what = format!("there is no backup of {} or before", utc(time));
        Failure::new(FailureKind::Refused, what, format!("see `stillpoint list {}`", args.application))
    };
    Ok(newest.ok_or_else(none)?.clone())
}

fn agreed(context: &Context, args: &RestoreArgs, plan: &RestorePlan) -> Result<bool, Failure> {
    if args.yes || !args.in_place {
        return Ok(true);
    }
    context.output.line(plan.describe().join("\n"))?;
    stderr("Overwrite what is there now? Type yes:");
    context.interrupt.wait_for(io::stdin()).map_err(|fault| fault.failure)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| {
        Failure::new(FailureKind::Refused, "no answer can be read", "add --yes").because(error)
    })?;
    Ok(answer.trim() == "yes")
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "restore", content = "detail")]
enum Restored {
    /// Only planned.
    Planned(Box<RestorePlan>),
    /// A person said no.
    Declined,
    /// Done.
    Done(Box<RestoreReport>),
}

impl Restored {
    fn exit(&self) -> Exit {
        match self {
            Self::Planned(_) => Exit::Done,
            Self::Done(report) if report.is_complete() => Exit::Done,
            Self::Declined | Self::Done(_) => Exit::Failed,
        }
    }
}

impl Report for Restored {
    fn text(&self) -> String {
        match self {
            Self::Planned(plan) => plan.describe().join("\n"),
            Self::Declined => "nothing was changed".to_owned(),
            Self::Done(report) => report.describe().join("\n"),
        }
    }
}
