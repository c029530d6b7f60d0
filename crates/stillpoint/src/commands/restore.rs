//! `restore`: bring an application back, to a directory or in place.
//!
//! Crash story: see `orchestrate::restore`: everything is written beside what it replaces, and what was there
//! is kept until the restored is in its place.

use std::io::{self, BufRead, IsTerminal};

use jiff::tz::TimeZone;
use model::{
    inventory::{Application, Inventory},
    port::{Failure, FailureKind, Shelf},
    record::StoredBackup,
    recovery::{Goal, RecoveryPlan},
    restore::{RestorePlan, RestoreReport, Target, choose},
    server::{BinlogPosition, Gtids},
};
use serde::Serialize;

use super::Context;
use crate::{
    cli::{RestoreArgs, parse_time},
    exit::{Exit, Fault, Outcome},
    output::{
        Report,
        backups::utc,
        recovery::{Around, AroundOne},
        stderr,
    },
    progress::progress,
    wire::{
        inventory,
        lock::RunLock,
        password,
        recover::{self, archive::Archive},
        reference, restore,
        run::Run,
        served,
    },
};

/// Restores.
///
/// # Errors
/// If inventory, key or repository cannot be read, there is no such backup, the restore is refused, nobody
/// agreed to overwriting, or it failed; what was there is then as it was.
pub fn run(context: &Context, args: &RestoreArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let application = inventory::one(&inventory, &args.application)?;
    if args.before_statement {
        return before_statement(context, args, &inventory, application);
    }
    let goal = goal(context, args)?;
    let target = target(context, args)?;
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let mut repository = run.open(application)?;
    // Only in place is the application touched; to a directory a backup may run beside us.
    let lock = args.in_place.then(|| RunLock::take(&inventory.state(), &application.relpath)).transpose()?;
    for left in run.sweep()?.left {
        context.output.warn(left);
    }
    let planned = goal.as_ref().map(|goal| recover::plan(&run, application, &mut repository, goal));
    let planned = planned.transpose()?.flatten();
    let backup = match &planned {
        Some(planned) => planned.backup.clone(),
        None => chosen(context, args, goal.as_ref(), &repository.backups()?)?,
    };
    let recovery = planned.map(|planned| planned.plan);
    let logs = recover::ready(&run, application, &mut repository, recovery.as_ref())?;
    let cut = repository.cut_record(&backup.id).map_err(Failure::from)?;
    let mut request = restore::request(&run, application, backup, target, args.accept_incomplete);
    request.read_back = args.read_back;
    request.trust_copies = args.trust_copies;
    repository.restore_from(reference::of(&run, application).record);
    request.servers = served::sources(application, cut.as_ref());
    for server in &request.servers {
        request.keep_out.extend(server.record.roots.iter().map(|root| root.path.clone()));
    }
    let done = restore::with_plan(&mut repository, &request, |plan, contents| {
        if args.dry_run {
            return Ok(Restored::Planned(Box::new(With { recovery: recovery.clone(), of: plan.clone() })));
        }
        if !agreed(context, args, plan, recovery.as_ref())? {
            return Ok(Restored::Declined);
        }
        let progress = progress(context.output);
        let report = restore::execute_all(&run, application, &request, plan, contents, &*progress, &logs)?;
        Ok(Restored::Done(Box::new(With { recovery: recovery.clone(), of: report })))
    });
    drop(repository);
    drop(lock);
    let released = logs.release();
    let ended = run.end();
    let restored = done?;
    released?;
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

/// What the moment is, if one was named.
fn goal(context: &Context, args: &RestoreArgs) -> Outcome<Option<Goal>> {
    if let Some(text) = &args.at {
        let time = parse_time(text, &TimeZone::system())
            .map_err(|error| Fault::usage(error.to_string(), error.remedy()))?;
        context.output.note(format!("{text} is {}", utc(time)));
        return Ok(Some(Goal::At(time)));
    }
    if let Some(text) = &args.at_position {
        let place = text.rsplit_once(':').and_then(|(file, offset)| {
            Some(BinlogPosition { file: file.to_owned(), offset: offset.parse().ok()? })
        });
        let place = place.filter(|place| !place.file.is_empty());
        let wrong =
            || Fault::usage(format!("{text:?} is no place of a binary log"), "write binlog.000042:1234");
        return Ok(Some(Goal::AtPosition(place.ok_or_else(wrong)?)));
    }
    Ok(args.at_gtid.clone().map(|text| Goal::AtGtid(Gtids(text))))
}

/// The backup that is meant, where there is no log archive.
fn chosen(
    context: &Context,
    args: &RestoreArgs,
    goal: Option<&Goal>,
    backups: &[StoredBackup],
) -> Outcome<StoredBackup> {
    let time = match goal {
        None => return Ok(choose(backups, &super::choice(&args.backup))?.clone()),
        Some(Goal::At(time)) => *time,
        Some(goal) => {
            let what = format!("there is no log archive of {}, so {goal} cannot be found", args.application);
            return Err(Failure::new(FailureKind::Refused, what, "restore a backup with --backup").into());
        }
    };
    let newest = backups.iter().filter(|backup| backup.time <= time).max_by_key(|backup| backup.time);
    let none = || {
        let what = format!("there is no backup of {} or before", utc(time));
        Failure::new(FailureKind::Refused, what, format!("see `stillpoint list {}`", args.application))
    };
    let newest = newest.ok_or_else(none)?;
    context.output.note(recover::no_archive(newest, time));
    Ok(newest.clone())
}

/// Shows the statements around a moment.
fn before_statement(
    context: &Context,
    args: &RestoreArgs,
    inventory: &Inventory,
    application: &Application,
) -> Outcome {
    let goal = goal(context, args)?.ok_or_else(|| Fault::usage("no moment is given", "add --at TIME"))?;
    let password = password::read(inventory)?;
    let run = Run::begin(context, inventory, &password)?;
    let mut repository = run.open(application)?;
    let planned = recover::plan(&run, application, &mut repository, &goal)?.ok_or_else(|| {
        let what = format!("there is no log archive of {}", application.name);
        Failure::new(FailureKind::Refused, what, "start `stillpoint log` for it")
    })?;
    let mut shown = Around { application: application.name.clone(), goal, databases: Vec::new() };
    let mut archive = Archive::read(&run, application, &mut repository)?;
    for recovery in &planned.plan.databases {
        let statements = recover::around(&mut archive, recovery)?;
        shown.databases.push(AroundOne { source: recovery.source.clone(), statements });
    }
    drop(archive);
    drop(repository);
    run.end()?;
    context.output.result(&shown)?;
    Ok(Exit::Done)
}

fn agreed(
    context: &Context,
    args: &RestoreArgs,
    plan: &RestorePlan,
    recovery: Option<&RecoveryPlan>,
) -> Result<bool, Failure> {
    if args.yes || !args.in_place {
        return Ok(true);
    }
    let mut lines = recovery.map(RecoveryPlan::describe).unwrap_or_default();
    lines.extend(plan.describe());
    context.output.line(lines.join("\n"))?;
    stderr("Overwrite what is there now? Type yes:");
    context.interrupt.wait_for(io::stdin()).map_err(|fault| fault.failure)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| {
        Failure::new(FailureKind::Refused, "no answer can be read", "add --yes").because(error)
    })?;
    Ok(answer.trim() == "yes")
}

/// A plan or a report, and what the log archive has to do with it.
#[derive(Debug, Serialize)]
struct With<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<RecoveryPlan>,
    #[serde(flatten)]
    of: T,
}

impl<T> With<T> {
    fn text(&self, lines: Vec<String>) -> String {
        let recovery = self.recovery.as_ref().map(RecoveryPlan::describe).unwrap_or_default();
        recovery.into_iter().chain(lines).collect::<Vec<_>>().join("\n")
    }
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "restore", content = "detail")]
enum Restored {
    /// Only planned.
    Planned(Box<With<RestorePlan>>),
    /// A person said no.
    Declined,
    /// Done.
    Done(Box<With<RestoreReport>>),
}

impl Restored {
    fn exit(&self) -> Exit {
        match self {
            Self::Planned(_) => Exit::Done,
            Self::Done(report) if report.of.is_complete() => Exit::Done,
            Self::Declined | Self::Done(_) => Exit::Failed,
        }
    }
}

impl Report for Restored {
    fn text(&self) -> String {
        match self {
            Self::Planned(plan) => plan.text(plan.of.describe()),
            Self::Declined => "nothing was changed".to_owned(),
            Self::Done(report) => report.text(report.of.describe()),
        }
    }
}
