//! `coverage`: which moments can be restored.
//!
//! Crash story: reads only; the picture is written whole or not at all.

use jiff::{SignedDuration, Timestamp};
use model::{
    coverage::{Coverage, Known, SourceCoverage, Tick},
    id::SourceId,
    inventory::Application,
    port::{Failure, FailureKind, Shelf},
    recovery::Base,
};
use os::durable;

use super::Context;
use crate::{
    cli::CoverageArgs,
    exit::{Exit, Fault, Outcome},
    output::coverage::{Coverages, picture},
    wire::{
        inventory, password,
        recover::archive::{Archive, databases},
        run::Run,
    },
};

/// Shows it.
///
/// # Errors
/// If inventory, key, a repository or an archive cannot be read, or the picture cannot be written.
pub fn run(context: &Context, args: &CoverageArgs) -> Outcome {
    let inventory = inventory::load(&context.global.config)?;
    let applications = inventory::choose(&inventory, &args.applications)?;
    if args.svg.is_some() && applications.len() != 1 {
        return Err(Fault::usage("a picture shows one application", "name one"));
    }
    let password = password::read(&inventory)?;
    let run = Run::begin(context, &inventory, &password)?;
    let mut found = Coverages { applications: Vec::new() };
    for application in applications {
        context.interrupt.check()?;
        found.applications.push(of(&run, application)?);
    }
    run.end()?;
    if let (Some(file), Some(one)) = (&args.svg, found.applications.first()) {
        durable::replace(file, picture(one).as_bytes(), 0o644).map_err(|error| {
            let what = format!("{} cannot be written", model::pathtext::show(file));
            Failure::new(FailureKind::Other, what, "name another file").because(error)
        })?;
    }
    context.output.result(&found)?;
    let is_good = found.applications.iter().all(|one| one.problems.is_empty());
    Ok(if is_good { Exit::Done } else { Exit::Failed })
}

fn of(run: &Run<'_>, application: &Application) -> Result<Coverage, Failure> {
    let mut repository = run.open(application)?;
    let backups = repository.backups()?;
    let mut bases: Vec<Base> = Vec::new();
    let mut ticks = Vec::new();
    let archive = Archive::read(run, application)?;
    for backup in &backups {
        let verdict = backup.record.as_ref().map(|record| record.verdict);
        ticks.push(Tick { backup: backup.id.clone(), time: backup.time, verdict });
        if !archive.catalogue.sources.is_empty()
            && let Some(cut) = repository.cut_record(&backup.id).map_err(Failure::from)?
        {
            bases.extend(Base::of_backup(&backup.id, &cut));
        }
    }
    let now = Timestamp::now();
    let mut covered = Vec::new();
    for log in &archive.catalogue.sources {
        let mut mine: Vec<Base> = bases.iter().filter(|base| base.source == log.source).cloned().collect();
        mine.extend(log.epochs.iter().filter_map(Base::of_epoch));
        let damaged: Vec<String> = log
            .damaged
            .iter()
            .map(|(path, what)| format!("{} {what}", model::pathtext::show(path)))
            .chain(archive.missing(log))
            .collect();
        let known = Known {
            source: &log.source,
            epochs: &log.epochs,
            status: log.status.as_ref(),
            damaged: &damaged,
        };
        covered.push(SourceCoverage::new(&known, &mine, now));
    }
    let without: Vec<SourceId> =
        databases(application).filter(|source| archive.catalogue.of(source).is_none()).collect();
    let wanted = application.settings.point_in_time.and_then(|wanted| SignedDuration::try_from(wanted).ok());
    Ok(Coverage::new(application.name.clone(), now, wanted, covered, without, ticks))
}
