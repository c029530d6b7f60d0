//! `check --open`: the newest backup is restored beside, its databases are opened and checked, and all of it is removed.
//!
//! Crash story: everything lies in a journalled staging directory of the partition; private servers are journalled,
//! too. Nothing of the application is touched: servers run behind the fence of `engines::server::open`.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use engines::server::{
    dump,
    open::{PositionFound, Private, ServerCopy, fresh},
    physical::replay_plan,
};
use jiff::Timestamp;
use model::{
    id::{BackupId, SourceId},
    inventory::Application,
    port::{Failure, Progress, Shelf, Stage},
    port_restore::{Contents, Fetch},
    problem::{Effect, Problem},
    restore::{Request, Target, databases},
    server::{ServerForm, ServerRecord},
};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Serialize;
use vault::repository::Repository;

use super::{
    restore::{self, extract, staging},
    run::Run,
    served::{self, RECOVERY},
};

/// How long `mariadb-check` may take.
const CHECK: Duration = Duration::from_secs(24 * 3600);
/// How many faults of an SQLite database are named.
const MOST_FAULTS: u32 = 5;

/// What opening the newest backup of an application showed.
#[derive(Debug, Serialize)]
pub struct Opened {
    /// The backup.
    pub backup: Option<BackupId>,
    /// Its instant.
    pub time: Option<Timestamp>,
    /// Its databases.
    pub sources: Vec<OpenedSource>,
    /// What is wrong with the backup as a whole.
    pub problems: Vec<Problem>,
}

/// What opening one database showed.
#[derive(Debug, Serialize)]
pub struct OpenedSource {
    /// The source.
    pub source: SourceId,
    /// It opened, and nothing is wrong with it.
    pub good: bool,
    /// Tables that were checked.
    pub tables: u64,
    /// The recovered position beside the record's, for servers.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub position: Option<PositionFound>,
    /// What was done to it, for people.
    pub done: Vec<String>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// How long it took, in seconds.
    pub duration_s: f64,
}

impl Opened {
    /// Whether there is a backup and all of its databases open.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.iter().all(|p| p.effect != Effect::Missing)
            && self.sources.iter().all(|source| source.good)
    }
}

/// Opens the databases of the newest backup.
///
/// # Errors
/// If the repository cannot be read. What does not open is in the result.
pub fn newest(
    run: &Run<'_>,
    application: &Application,
    repository: &mut Repository,
    progress: &dyn Progress,
) -> Result<Opened, Failure> {
    let mut opened = Opened { backup: None, time: None, sources: Vec::new(), problems: Vec::new() };
    let Some(backup) = repository.backups()?.into_iter().max_by_key(|backup| backup.time) else {
        let remedy = "make one with `stillpoint backup`";
        opened.problems.push(Problem::new(Effect::Missing, None, "there is no backup yet", remedy));
        return Ok(opened);
    };
    opened.backup = Some(backup.id.clone());
    opened.time = Some(backup.time);
    let cut = repository.cut_record(&backup.id).map_err(Failure::from)?;
    let nowhere = Target::Directory { dir: run.inventory.state() };
    let mut request = restore::request(run, application, backup, nowhere, false);
    request.servers = served::sources(application, cut.as_ref());
    let contents = Fetch::open(repository, &request.backup.id)?;
    let look = Look { run, request: &request, contents: &*contents, progress };
    for server in &request.servers {
        let source = server.record.source.clone();
        opened.sources.push(timed(source, |told| look.server(&server.record, told)));
    }
    match databases(&request.backup, contents.listing()) {
        Ok(databases) => {
            for path in databases {
                let source = SourceId::new("sqlite", model::pathtext::show(&path));
                opened.sources.push(timed(source, |told| look.sqlite(&path, told)));
            }
        }
        Err(failure) => opened.problems.push(Problem::new(Effect::Missing, None, failure.in_full(), "")),
    }
    Ok(opened)
}

fn timed(source: SourceId, task: impl FnOnce(&mut OpenedSource) -> Result<(), Failure>) -> OpenedSource {
    let begun = Instant::now();
    let mut told = OpenedSource {
        source,
        good: false,
        tables: 0,
        position: None,
        done: Vec::new(),
        problems: Vec::new(),
        duration_s: 0.0,
    };
    if let Err(failure) = task(&mut told) {
        let what = format!("does not open: {}", failure.in_full());
        told.problems.push(Problem::new(Effect::Missing, None, what, "").of(&told.source));
    }
    told.good = told.problems.iter().all(|problem| problem.effect != Effect::Missing);
    told.duration_s = begun.elapsed().as_secs_f64();
    told
}

struct Look<'a> {
    run: &'a Run<'a>,
    request: &'a Request,
    contents: &'a dyn Contents,
    progress: &'a dyn Progress,
}

impl Look<'_> {
    fn server(&self, record: &ServerRecord, told: &mut OpenedSource) -> Result<(), Failure> {
        let staging = staging(self.run, "open")?;
        let mut only: Vec<PathBuf> = record.roots.iter().map(|root| root.path.clone()).collect();
        only.extend(record.beside.clone());
        extract(self.run, self.request, only, self.contents, staging.path(), self.progress)?;
        self.progress.begin(Stage::Checking, None);
        let looked = match record.form {
            ServerForm::Dump => self.loaded(record, staging.path(), told),
            ServerForm::Files | ServerForm::Physical => self.opened(record, staging.path(), told),
        };
        self.progress.end();
        looked?;
        Ok(staging.release()?)
    }

    fn opened(&self, record: &ServerRecord, dir: &Path, told: &mut OpenedSource) -> Result<(), Failure> {
        let journal = self.run.journal();
        let copy = ServerCopy::new(dir, record.clone())?;
        let replay = replay_plan(record, |path| dir.join(path.strip_prefix("/").unwrap_or(path)))?;
        let private = match &replay {
            Some(_) => Private::open_for_replay(&copy, &journal, RECOVERY)?,
            None => Private::open(&copy, &journal, RECOVERY)?,
        };
        if private.has_decided() {
            told.done.push("transactions that an engine had only prepared were committed".to_owned());
        }
        if let Some(replay) = replay {
            replay.run(&private.access(), &journal, dir)?;
            told.done.push(replay.describe());
        }
        let position = private.position();
        told.problems.extend(position.problem().map(|problem| problem.of(&record.source)));
        told.position = Some(position);
        self.check(&private, told)
    }

    fn loaded(&self, record: &ServerRecord, dir: &Path, told: &mut OpenedSource) -> Result<(), Failure> {
        let journal = self.run.journal();
        let server = dir.join("server");
        std::fs::create_dir(&server).map_err(|error| {
            let what = "no place for a server to load the dump into can be made";
            Failure::new(model::port::FailureKind::Other, what, "").because(error)
        })?;
        let private = fresh(&server, record, &journal, RECOVERY)?;
        let root = record.beside.as_deref().unwrap_or(Path::new("/"));
        let root = dir.join(root.strip_prefix("/").unwrap_or(root));
        let access = private.access();
        let loaded =
            dump::load(&root, &[], &dump::Target { access: &access, journal: &journal, staging: dir })?;
        let tables = loaded.tables;
        told.done
            .push(format!("loaded {} databases, {tables} tables, {} rows", loaded.databases, loaded.rows));
        self.check(&private, told)
    }

    fn check(&self, private: &Private, told: &mut OpenedSource) -> Result<(), Failure> {
        let checked = private.check(CHECK)?;
        told.tables = checked.tables;
        told.problems.extend(checked.problems);
        Ok(())
    }

    fn sqlite(&self, path: &Path, told: &mut OpenedSource) -> Result<(), Failure> {
        let staging = staging(self.run, "open")?;
        let only = vec![path.to_owned()];
        extract(self.run, self.request, only, self.contents, staging.path(), self.progress)?;
        let copy = staging.path().join(path.strip_prefix("/").unwrap_or(path));
        match integrity(&copy) {
            Ok((tables, faults)) => {
                told.tables = tables;
                let problem = |what| Problem::new(Effect::Missing, None, what, "use another backup");
                told.problems.extend(faults.into_iter().map(problem).map(|p| p.of(&told.source)));
            }
            // It uses something that this program does not have, such as a collation of its own.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
                let what = format!("cannot be checked by this program: {error}");
                told.problems.push(Problem::new(Effect::Weaker, None, what, "").of(&told.source));
            }
            Err(error) => {
                let what = format!("does not open: {error}");
                told.problems.push(Problem::new(Effect::Missing, None, what, "").of(&told.source));
            }
        }
        Ok(staging.release()?)
    }
}

/// How many tables a copy has, and what `integrity_check` says against it.
fn integrity(copy: &Path) -> rusqlite::Result<(u64, Vec<String>)> {
    let open = Connection::open_with_flags(
        copy,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table'";
    let tables: u32 = open.query_row(sql, [], |row| row.get(0))?;
    let mut statement = open.prepare(&format!("PRAGMA integrity_check({MOST_FAULTS})"))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok((u64::from(tables), rows.into_iter().filter(|row| row != "ok").collect()))
}
