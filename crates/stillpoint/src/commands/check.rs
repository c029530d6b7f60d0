//! `check`: is every byte there, and does the newest backup open. Also warns until somebody has confirmed that the key
//! is kept elsewhere.
//!
//! Crash story: reads only; what is opened is a restored copy in a staging directory, see [`crate::wire::open`].

use engines::server::open::PositionFound;
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
    output::{Report, backups::utc, counted, problem_lines},
    progress::progress,
    wire::{
        inventory,
        open::{self, Opened, OpenedSource},
        password,
        run::Run,
    },
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
        let mut repository = run.open(application)?;
        let report = repository.check(depth, &*progress).map_err(Failure::from)?;
        let opened =
            args.open.then(|| open::newest(&run, application, &mut repository, &*progress)).transpose()?;
        let mut check = Check::new(application.name.clone(), application.relpath.clone(), report);
        check.good &= opened.as_ref().is_none_or(Opened::is_good);
        check.opened = opened;
        checks.applications.push(check);
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
    #[serde(skip_serializing_if = "Option::is_none")]
    opened: Option<Opened>,
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
            opened: None,
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
        if let Some(opened) = &self.opened {
            text.push_str(&opened_text(opened));
        }
        text
    }
}

fn opened_text(opened: &Opened) -> String {
    let mut text = match (&opened.backup, opened.time) {
        (Some(backup), Some(time)) => format!("\n  newest backup {} of {}:", backup.short(), utc(time)),
        _ => String::new(),
    };
    if opened.sources.is_empty() && opened.backup.is_some() {
        text.push_str(" it has no database to open");
    }
    text.push_str(&problem_lines(&opened.problems, opened.problems.len() as u64, usize::MAX));
    for source in &opened.sources {
        text.push_str(&source_text(source));
    }
    text
}

fn source_text(source: &OpenedSource) -> String {
    let state = if source.good { "opens" } else { "DOES NOT OPEN AS IT SHOULD" };
    let mut parts = vec![format!("{} checked", counted(source.tables, "table"))];
    parts.extend(source.position.as_ref().map(PositionFound::in_short));
    parts.extend(source.done.iter().cloned());
    let mut text =
        format!("\n  {}: {state}: {}, in {:.1} s", source.source, parts.join(", "), source.duration_s);
    text.push_str(&problem_lines(&source.problems, source.problems.len() as u64, usize::MAX));
    text
}

impl Report for Checks {
    fn text(&self) -> String {
        self.applications.iter().map(Check::text).collect::<Vec<_>>().join("\n")
    }
}
