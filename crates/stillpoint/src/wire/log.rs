//! The log archive, wired: one thread for each database of the application, one that stores what they wrote in the
//! repository, and this one, which tells what changes.
//!
//! Crash story: threads share nothing but the wish to stop; each has the files of its source locked. One that fails for good
//! ends alone, and is the failure of the command when that ends.

use std::{
    path::PathBuf,
    sync::mpsc::{self, Sender},
    thread,
    time::{Duration, Instant},
};

use engines::server::binlog;
use model::{
    follow::Cut,
    id::SourceId,
    inventory::{Application, Archive, Database, Inventory, ServerDatabase},
    logs::{LogKind, SegmentHead, WholePart},
    port::{Failure, FailureKind, Shelf},
    server::Flavor,
};
use orchestrate::ship::{Report, Settings, Ship};
use os::clock::SystemClock;
use vault::logs::{Spool, Tail};

use super::{
    inventory,
    log_keep::{GRACE, Keeper, Writers},
    log_sqlite, password,
    run::Run,
};
use crate::{
    commands::Context,
    exit::{Fault, Outcome},
    output::logs::{Event, Line},
    signals::Interrupt,
};

/// Where an application's logs are archived.
#[must_use]
pub fn spool(inventory: &Inventory, application: &Application) -> Spool {
    Spool::open(&inventory.place(application).join("logs"))
}

/// How segments of an application's sources are read, for [`Spool::catalogue`].
#[must_use]
pub fn tail(kind: LogKind) -> Box<dyn Tail> {
    match kind {
        LogKind::Binlog => Box::new(BinlogTail),
        LogKind::SqliteWal => Box::new(log_sqlite::WalTail),
    }
}

/// Reads binary logs.
struct BinlogTail;

impl Tail for BinlogTail {
    fn whole(&self, head: &SegmentHead, segment: &mut dyn std::io::Read) -> std::io::Result<WholePart> {
        binlog::whole(head, segment)
    }
}

/// Archives until it is interrupted.
///
/// # Errors
/// If nothing of the application has a log that is archived, or a log cannot be archived as things are.
pub fn run(context: &Context, inventory: &Inventory, application: &Application) -> Outcome<()> {
    let spool = spool(inventory, application);
    let (mut tasks, mut files) = (Vec::new(), Vec::new());
    for database in &application.databases {
        match database {
            Database::Server(server) => tasks.push(Task {
                cut: cut(context, inventory, application, &spool, &server.id())?,
                server: (**server).clone(),
                spool: spool.clone(),
                interrupt: context.interrupt.clone(),
            }),
            Database::Sqlite { path, archive } => files.push((database.id(), path, settings(archive))),
        }
    }
    if tasks.is_empty() && files.is_empty() {
        let what = format!("{} has no database whose log is archived", application.name);
        return Err(Fault::usage(what, "`stillpoint log` is for servers and SQLite databases"));
    }
    let password = password::read(inventory)?;
    // What was committed before somebody asked us to stop is stored before we do.
    let late = context.interrupt.after(GRACE);
    let run = Run::begin_until(&late, inventory, &password)?;
    let sources: Vec<_> =
        tasks.iter().map(|task| task.server.id()).chain(files.iter().map(|(id, ..)| id.clone())).collect();
    let (running, writers) = (sources.len(), Writers::default());
    let mut keeper = Keeper::new(&run, application, store_every(application), sources, late.clone());
    let (failed, kept) = thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for task in tasks {
            let tell = tell.clone();
            scope.spawn(move || {
                let ended = task.run(&tell);
                // Nobody listens any more only if the command is ending.
                let _ = tell.send((task.server.id(), Event::Ended(ended)));
            });
        }
        for (source, path, settings) in files {
            let (tell, spool, interrupt) = (tell.clone(), &spool, &context.interrupt);
            scope.spawn(move || {
                let ended = log_sqlite::run(spool, &source, path, settings, interrupt, &tell);
                let _ = tell.send((source, Event::Ended(ended)));
            });
        }
        let writers = &writers;
        let keeper = scope.spawn(move || {
            let trouble = |failure: &Failure| {
                let report = Report::Trouble(format!("not stored: {}", failure.in_full()));
                let _ = tell.send((SourceId::new("repository", &application.name), Event::Report(report)));
            };
            keeper.keep(writers, &trouble)
        });
        let failed = listen(context, &told, running, writers);
        let kept = keeper.join().unwrap_or_else(|_| {
            Err(Failure::new(FailureKind::Other, "the archive's keeper has come to grief", "report it"))
        });
        (failed, kept)
    });
    let ended = run.end();
    failed?.map_or(Ok(()), |failure| Err(failure.into())).and(kept.and(ended).map_err(Fault::from))
}

/// How often what came goes into the repository: as often as the most demanding of its databases wants.
fn store_every(application: &Application) -> Duration {
    let wanted = application.databases.iter().map(|database| database.archive().store_every);
    wanted.min().unwrap_or(Archive::default().store_every)
}

fn settings(archive: &Archive) -> Settings {
    Settings { segment: archive.segment, rotate: archive.rotate, ..Settings::default() }
}

/// Tells what changes until nobody is left who could; says when all sources have ended, and returns the first
/// failure for good.
fn listen(
    context: &Context,
    told: &mpsc::Receiver<(SourceId, Event)>,
    mut running: usize,
    writers: &Writers,
) -> Outcome<Option<Failure>> {
    let (mut failed, mut wrong) = (None, None);
    let mut line = Line::default();
    for (source, event) in told {
        // Standard output that is gone ends nobody: the archive goes on.
        wrong = line.tell(context.output, &source, &event).err().or(wrong);
        if let Event::Ended(ended) = event {
            if let Err(failure) = &ended {
                writers.failed(&source, failure);
            }
            failed = failed.or(ended.err());
            running -= 1;
        }
        if running == 0 {
            writers.are_over();
        }
    }
    wrong.map_or(Ok(failed), |wrong| Err(wrong.into()))
}

struct Task {
    server: ServerDatabase,
    spool: Spool,
    cut: Option<Cut>,
    interrupt: Interrupt,
}

impl Task {
    fn run(&self, tell: &Sender<(SourceId, Event)>) -> Result<(), Failure> {
        let source_id = self.server.id();
        let mut writer = self.writer(&source_id)?;
        let machine = format!("{} {}", machine(), self.spool.dir().display());
        let archive = &self.server.archive;
        let mut source = binlog::Server::new(&self.server.access, &source_id, &machine, archive.acknowledge);
        let mut report = |report: &Report| {
            let _ = tell.send((source_id.clone(), Event::Report(report.clone())));
        };
        Ship {
            source_id: source_id.clone(),
            source: &mut source,
            sink: &mut writer,
            clock: &SystemClock,
            settings: settings(archive),
            cut: self.cut.clone(),
            random: &mut rand::random,
            stop: &|| self.interrupt.is_asked(),
            report: &mut report,
        }
        .run()
    }

    /// One that was killed may still be ending.
    fn writer(&self, source: &SourceId) -> Result<vault::logs::Writer, Failure> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let from = Instant::now();
        loop {
            match self.spool.writer(source, LogKind::Binlog, tail(LogKind::Binlog)) {
                Err(vault::logs::LogsError::Busy { .. })
                    if from.elapsed() < PATIENCE && !self.interrupt.is_asked() =>
                {
                    thread::sleep(Duration::from_millis(100));
                }
                writer => return Ok(writer?),
            }
        }
    }
}

/// Tells machines apart that archive the same server.
fn machine() -> String {
    let id = std::fs::read_to_string(PathBuf::from("/etc/machine-id"));
    id.map_or_else(|_| inventory::host(), |id| id.trim().to_owned())
}

/// Where the newest backup of a server stands, if the archive is yet to be begun.
fn cut(
    context: &Context,
    inventory: &Inventory,
    application: &Application,
    spool: &Spool,
    source: &SourceId,
) -> Outcome<Option<Cut>> {
    let catalogue = spool.catalogue(&tail).map_err(Failure::from)?;
    if catalogue.of(source).is_some_and(|log| !log.epochs.is_empty()) {
        return Ok(None);
    }
    let found = newest(context, inventory, application, source);
    found.or_else(|fault| {
        let what = fault.report().in_full();
        context.output.warn(format!("no backup is looked at for where to begin: {what}"));
        Ok(None)
    })
}

fn newest(
    context: &Context,
    inventory: &Inventory,
    application: &Application,
    source: &SourceId,
) -> Outcome<Option<Cut>> {
    let password = password::read(inventory)?;
    let run = Run::begin(context, inventory, &password)?;
    let mut repository = run.open(application)?;
    let mut found = None;
    for backup in repository.backups()?.iter().rev().filter(|backup| backup.record.is_some()) {
        let Some(record) = repository.cut_record(&backup.id).map_err(Failure::from)? else { continue };
        found = record.servers.into_iter().find(|server| server.source == *source);
        if found.is_some() {
            break;
        }
    }
    run.end()?;
    Ok(found.and_then(|server| {
        let gtid_state = match server.version.flavor {
            Flavor::MariaDb => server.position.gtid_binlog_state,
            Flavor::MySql => server.position.gtid,
        };
        Some(Cut { server_id: server.server_id, place: server.position.binlog?, gtid_state })
    }))
}
