//! `coverage`: which moments can be restored.
//!
//! Crash story: reads only; the picture is written whole or not at all.

use std::collections::BTreeMap;

use engines::sqlite;
use jiff::{SignedDuration, Timestamp};
use model::{
    coverage::{Coverage, Known, SourceCoverage, Tick},
    id::SourceId,
    inventory::{Application, Database},
    port::{Failure, FailureKind, Shelf},
    recovery::Base,
    server::ServerForm,
};
use os::durable;

use super::Context;
use crate::{
    cli::CoverageArgs,
    exit::{Exit, Fault, Outcome},
    output::coverage::{Coverages, picture},
    wire::{
        inventory, password,
        recover::archive::{Archive, Log, databases},
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
        found.applications.push(of(&run, application, args.verify)?);
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

fn of(run: &Run<'_>, application: &Application, verify: bool) -> Result<Coverage, Failure> {
    let mut repository = run.open(application)?;
    let mut archive = match verify {
        true => Archive::read_whole(run, application, &mut repository)?,
        false => Archive::read(run, application, &mut repository)?,
    };
    let logs = std::mem::take(&mut archive.logs);
    if logs.is_empty()
        && let Some(doubt) = archive.repository().log_doubt().map_err(Failure::from)?
    {
        return Err(doubt.into());
    }
    let (mut bases, mut ticks): (Vec<Base>, Vec<Tick>) = (Vec::new(), Vec::new());
    let mut forms: BTreeMap<SourceId, (Timestamp, ServerForm)> = BTreeMap::new();
    for backup in archive.repository().backups()? {
        let verdict = backup.record.as_ref().map(|record| record.verdict);
        ticks.push(Tick { backup: backup.id.clone(), time: backup.time, verdict });
        if !logs.is_empty()
            && let Some(cut) = archive.repository().cut_record(&backup.id).map_err(Failure::from)?
        {
            bases.extend(Base::of_backup(&backup.id, &cut));
            for server in &cut.servers {
                let newest = forms.entry(server.source.clone()).or_insert((backup.time, server.form));
                if backup.time > newest.0 {
                    *newest = (backup.time, server.form);
                }
            }
        }
    }
    let now = Timestamp::now();
    let mut covered = Vec::new();
    for Log { source, epochs, status, damaged, .. } in &logs {
        let mut mine: Vec<Base> = bases.iter().filter(|base| base.source == *source).cloned().collect();
        mine.extend(epochs.iter().filter_map(Base::of_epoch));
        let is_dump = forms.get(source).is_some_and(|(_, form)| *form == ServerForm::Dump);
        let known = Known { source, epochs, status: status.as_ref(), damaged, is_dump };
        covered.push(SourceCoverage::new(&known, &mine, now));
    }
    let healed = |log: &Log| {
        let told = |what: &String| format!("{}: {what}; it is whole in the other place", log.source);
        log.healed.iter().map(told).collect::<Vec<_>>()
    };
    let healed: Vec<String> = logs.iter().flat_map(healed).collect();
    let has_log = |source: &SourceId| logs.iter().any(|log| log.source == *source);
    let without: Vec<SourceId> = databases(application).filter(|source| !has_log(source)).collect();
    let wanted = application.settings.point_in_time.and_then(|wanted| SignedDuration::try_from(wanted).ok());
    let coverage = Coverage::new(application.name.clone(), now, wanted, covered, without, ticks);
    let mut coverage = coverage.without_log(no_logs(application), wanted.is_some());
    coverage.notes.extend(healed);
    Ok(coverage)
}

/// Databases whose log cannot be archived, with the remedy.
fn no_logs(application: &Application) -> Vec<(SourceId, String)> {
    let found = application.databases.iter().filter_map(|database| match database {
        Database::Sqlite { path, .. } => {
            Some((database.id(), sqlite::probe(database.id(), path, &[]).no_log()?))
        }
        Database::Server(_) => None,
    });
    found.collect()
}
