//! `backup`: cut, store, verify, retain, one application after the other.
//!
//! Crash story: see [`crate::wire::backup`]. An application that fails does not keep the others from their
//! turn; INT and TERM end the whole at the next safe point.

use model::{id::Relpath, inventory::Application};

use super::{Context, plan};
use crate::{
    cli::BackupArgs,
    exit::{Exit, Fault, Outcome},
    output::backup::{BackedUp, Backups},
    progress::progress,
    wire::{
        backup::{self, Request, Turn},
        inventory, password,
        run::Run,
    },
};

/// Makes the backups.
///
/// # Errors
/// If inventory or key cannot be read. What befalls an application is in its report and in the exit status.
pub fn run(context: &Context, args: &BackupArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let applications = inventory::choose(&inventory, &args.applications)?;
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    if args.dry_run {
        let plans = plan::plans(context, &run, &applications)?;
        run.end()?;
        let refused = plans.applications.iter().any(|planned| planned.plan.refused.is_some());
        context.output.result(&plans)?;
        return Ok(if refused { Exit::Failed } else { Exit::Done });
    }
    let mut report = Backups { applications: Vec::new() };
    for application in applications {
        let stop = context.interrupt.is_asked();
        let done = match (stop, args.rehearse) {
            (true, _) => skipped(application),
            (false, true) => rehearsed(context, &run, application),
            (false, false) => one(context, &run, application, args),
        };
        report.applications.push(done);
    }
    let ended = run.end();
    let mut exit = report.applications.iter().map(BackedUp::exit).fold(Exit::Done, Exit::worse);
    context.output.result(&report)?;
    if let Err(failure) = ended {
        // What became of each application is told all the same.
        context.output.warn(failure.in_full());
        exit = exit.worse(Exit::Failed);
    }
    Ok(exit)
}

fn one(context: &Context, run: &Run<'_>, application: &Application, args: &BackupArgs) -> BackedUp {
    let progress = progress(context.output);
    let turn = backup::take(
        run,
        Request {
            application,
            label: args.label.clone(),
            progress: &*progress,
            interrupt: &context.interrupt,
        },
    );
    let relpath = application.relpath.clone();
    outcome_of(context, application, turn, relpath)
}

fn rehearsed(context: &Context, run: &Run<'_>, application: &Application) -> BackedUp {
    let progress = progress(context.output);
    let interrupt = &context.interrupt;
    let request = Request { application, label: None, progress: &*progress, interrupt };
    let relpath = application.relpath.clone();
    match backup::rehearse(run, &request) {
        Ok((rehearsal, notes)) => BackedUp::Rehearsed {
            rehearsal: Box::new(rehearsal),
            relpath,
            required: application.settings.require,
            notes,
        },
        Err(failure) => {
            let fault = context.interrupt.explains(failure.into());
            BackedUp::failed(application.name.clone(), relpath, &fault, Vec::new())
        }
    }
}

fn outcome_of(context: &Context, application: &Application, turn: Turn, relpath: Relpath) -> BackedUp {
    match turn.outcome {
        Ok(report) => BackedUp::Stored {
            report: Box::new(report),
            relpath,
            required: application.settings.require,
            notes: turn.notes,
        },
        Err(failure) => {
            let fault = context.interrupt.explains(failure.into());
            BackedUp::failed(application.name.clone(), relpath, &fault, turn.notes)
        }
    }
}

fn skipped(application: &Application) -> BackedUp {
    let fault = Fault::interrupted();
    BackedUp::failed(application.name.clone(), application.relpath.clone(), &fault, Vec::new())
}
