//! Database servers in a restore: how each is stopped, made ready, loaded, started and checked.
//!
//! Crash story: hooks are journalled by `os::hold`, private servers and staging by `engines::server::open`, databases
//! beside the live ones by `engines::server::dump`, whose [`recover`] runs before the next restore.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use engines::server::{
    Connection,
    dump::{Exchanged, SwapPlan, Target, recover},
    open::{Placement, Private, ServerCopy, needs_settling, relocate, settle},
    physical::replay_plan,
};
use model::{
    id::{CutId, SourceId},
    inventory::{Application, Database, Hooks, ServerDatabase},
    port::{Failure, FailureKind, Hold, Journal},
    port_restore::{Lies, ServerTarget},
    problem::{Effect, Problem},
    record::CutRecord,
    restore::ServerSource,
    server::{ServerAccess, ServerRecord},
};
use os::hold::StopHook;

use super::recover::Roll;

/// How long crash recovery, or the replay of logs, of a restored copy may take.
pub const RECOVERY: Duration = Duration::from_secs(4 * 3600);
/// How long a server that its hook has started may need until it answers.
const ANSWERS: Duration = Duration::from_secs(300);
/// How long one statement of the check may take.
const STATEMENT: Duration = Duration::from_secs(600);

/// The servers of a backup, and what the inventory says of them now.
#[must_use]
pub fn sources(application: &Application, cut: Option<&CutRecord>) -> Vec<ServerSource> {
    let records = cut.map(|cut| cut.servers.clone()).unwrap_or_default();
    let source = |record: ServerRecord| {
        let known = known(application, &record.source);
        let has_service = known.is_some_and(|known| known.service.is_some());
        ServerSource { has_service, is_reachable: known.is_some(), record }
    };
    records.into_iter().map(source).collect()
}

/// What the inventory says of a source.
#[must_use]
pub fn known<'a>(application: &'a Application, source: &SourceId) -> Option<&'a ServerDatabase> {
    application.databases.iter().find_map(|database| match database {
        Database::Server(server) if server.id() == *source => Some(&**server),
        _ => None,
    })
}

/// A copy as it was at the cut, its links leading to where it lies: recovered behind the fence if it needs that, its
/// binary logs replayed if it has any. Returns what was done, if anything was.
///
/// # Errors
/// If that fails: nobody should start a server on the copy then.
pub fn finish_copy(
    copy: &ServerCopy,
    restored: &dyn Fn(&Path) -> PathBuf,
    journal: &Arc<dyn Journal>,
    staging: &Path,
    roll: Option<Roll<'_>>,
) -> Result<Option<String>, Failure> {
    let replay = replay_plan(copy.record(), restored)?;
    if replay.is_some() || roll.is_some() {
        let private = Private::open_for_replay(copy, journal, RECOVERY)?;
        let mut done = Vec::new();
        if let Some(replay) = &replay {
            replay.run(&private.access(), journal, staging)?;
            done.push(replay.describe());
        }
        if let Some(roll) = roll {
            stands_where_recorded(&private)?;
            let begun = Instant::now();
            roll.forward.run(&private.access(), journal, staging, roll.progress)?;
            let took = begun.elapsed().as_secs_f64();
            done.push(format!("{}; replayed in {took:.1} s", roll.recovery.describe()));
        }
        private.stop(RECOVERY)?;
        relocate(copy, copy.placement())?;
        return Ok(Some(done.join("; ")));
    }
    let why = needs_settling(copy)?;
    settle(copy, journal, RECOVERY)?;
    Ok(why.map(|why| format!("recovered behind a fence, since {why}")))
}

/// A log is replayed only onto a copy that is where its record says.
fn stands_where_recorded(private: &Private) -> Result<(), Failure> {
    match private.position().problem() {
        Some(problem) if problem.effect == Effect::Missing => {
            let what = format!("no log can be replayed onto the copy: {problem}");
            Err(Failure::new(FailureKind::Damaged, what, "use an earlier backup"))
        }
        _ => Ok(()),
    }
}

/// A server whose directories are replaced.
pub struct FilesTarget<'a> {
    record: ServerRecord,
    service: Option<Hooks>,
    access: Option<ServerAccess>,
    /// Where the binary logs to be replayed were restored to.
    beside: Option<PathBuf>,
    staging: PathBuf,
    journal: Arc<dyn Journal>,
    roll: Option<Roll<'a>>,
}

impl<'a> FilesTarget<'a> {
    /// For this record; `beside` is where what is to be replayed was restored to, `roll` what is replayed of the log archive.
    #[must_use]
    pub fn new(
        record: ServerRecord,
        known: Option<&ServerDatabase>,
        beside: Option<PathBuf>,
        staging: PathBuf,
        journal: Arc<dyn Journal>,
        roll: Option<Roll<'a>>,
    ) -> Self {
        let service = known.and_then(|known| known.service.clone());
        let access = known.map(|known| known.access.clone());
        Self { record, service, access, beside, staging, journal, roll }
    }
}

impl ServerTarget for FilesTarget<'_> {
    fn source(&self) -> SourceId {
        self.record.source.clone()
    }

    fn service(&self) -> Option<Box<dyn Hold>> {
        let hooks = self.service.as_ref()?;
        let journal = Arc::clone(&self.journal);
        Some(Box::new(StopHook::new(hooks.stop.clone(), hooks.start.clone(), journal)))
    }

    fn ready(&mut self, lies: &Lies<'_>) -> Result<Vec<Problem>, Failure> {
        let place = |root: &model::server::ServerRoot| Some((root.path.clone(), lies(&root.path)?));
        let placement = Placement(self.record.roots.iter().filter_map(place).collect());
        let copy = ServerCopy::placed(placement, self.record.clone())?;
        let restored = |path: &Path| match (&self.beside, &self.record.beside) {
            (Some(now), Some(then)) => path.strip_prefix(then).map_or(path.into(), |rest| now.join(rest)),
            _ => path.to_owned(),
        };
        let done = finish_copy_in_place(&copy, &restored, &self.journal, &self.staging, self.roll)?;
        let note = |done| Problem::new(Effect::Note, None, done, "").of(&self.record.source);
        Ok(done.map(note).into_iter().collect())
    }

    fn load(&mut self) -> Result<Vec<Problem>, Failure> {
        Ok(Vec::new())
    }

    fn put_back(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn check(&mut self) -> Result<Vec<Problem>, Failure> {
        let mut told: Vec<Problem> = match self.roll {
            Some(roll) => Some(new_epoch_note(&self.record, roll)),
            None => gtid_note(&self.record),
        }
        .into_iter()
        .collect();
        match (&self.service, &self.access) {
            (Some(_), Some(access)) => told.extend(tables_open(&self.record.source, access)?),
            _ => {
                let what = "the restored server is not checked: nobody but you starts it";
                told.push(Problem::new(Effect::Note, None, what, "start it").of(&self.record.source));
            }
        }
        Ok(told)
    }
}

/// After a replay the log archive begins a new epoch.
fn new_epoch_note(record: &ServerRecord, roll: Roll<'_>) -> Problem {
    let state = roll.recovery.reached.gtid_state.as_ref().map(|state| format!(", GTID state {state}"));
    let what = format!(
        "it stands at {} of its former log{}; its binary log begins anew, and so does its archive",
        roll.recovery.reached.place,
        state.unwrap_or_default()
    );
    Problem::new(Effect::Note, None, what, "make a backup soon: moments from now on need one")
        .of(&record.source)
}

/// A restored server begins its binary log anew, and with it the numbers of its transactions.
fn gtid_note(record: &ServerRecord) -> Option<Problem> {
    let state = record.position.gtid_binlog_state.as_ref().filter(|state| !state.0.is_empty())?;
    let what = format!("its binary log begins anew; at the cut its GTID state was {state}");
    let remedy = format!(
        "if it has replicas, run RESET MASTER and SET GLOBAL gtid_binlog_state='{state}' before it is written to, and \
         make the replicas anew"
    );
    Some(Problem::new(Effect::Note, None, what, remedy).of(&record.source))
}

/// The same for a copy that will lie where the original did.
fn finish_copy_in_place(
    copy: &ServerCopy,
    restored: &dyn Fn(&Path) -> PathBuf,
    journal: &Arc<dyn Journal>,
    staging: &Path,
    roll: Option<Roll<'_>>,
) -> Result<Option<String>, Failure> {
    if roll.is_none() && needs_settling(copy)?.is_none() && replay_plan(copy.record(), restored)?.is_none() {
        return Ok(None);
    }
    let done = finish_copy(copy, restored, journal, staging, roll)?;
    let original = |root: &model::server::ServerRoot| (root.path.clone(), root.path.clone());
    relocate(copy, &Placement(copy.record().roots.iter().map(original).collect()))?;
    Ok(done)
}

/// Waits until a server answers, then opens every table.
fn tables_open(source: &SourceId, access: &ServerAccess) -> Result<Vec<Problem>, Failure> {
    let until = Instant::now() + ANSWERS;
    let mut open = loop {
        match Connection::open(access, Duration::from_secs(10)) {
            Ok(open) => break open,
            Err(failure) if failure.kind == FailureKind::Refused || Instant::now() > until => {
                return Err(failure);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    // Without an engine a table could not be opened, and its comment says why.
    let sql = "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_COMMENT FROM information_schema.TABLES \
               WHERE TABLE_TYPE = 'BASE TABLE' AND ENGINE IS NULL LIMIT 100";
    let rows = open.rows(sql, STATEMENT).map_err(Failure::from)?;
    let problem = |row: &engines::server::Row| {
        let what = format!("table {}.{} does not open: {}", row.text(0), row.text(1), row.text(2));
        Problem::new(Effect::Missing, None, what, "see the server's error log").of(source)
    };
    Ok(rows.iter().map(problem).collect())
}

/// A server whose databases are replaced while it runs.
pub struct LoadTarget<'a> {
    record: ServerRecord,
    root: &'a Path,
    target: &'a Target<'a>,
    cut: CutId,
    exchanged: Option<Exchanged<'a>>,
}

impl<'a> LoadTarget<'a> {
    /// For the dump that was restored to `root`.
    #[must_use]
    pub fn new(record: ServerRecord, root: &'a Path, target: &'a Target<'a>, cut: CutId) -> Self {
        Self { record, root, target, cut, exchanged: None }
    }
}

impl ServerTarget for LoadTarget<'_> {
    fn source(&self) -> SourceId {
        self.record.source.clone()
    }

    fn service(&self) -> Option<Box<dyn Hold>> {
        None
    }

    fn ready(&mut self, _lies: &Lies<'_>) -> Result<Vec<Problem>, Failure> {
        let back = recover(self.target, &self.record.databases)?;
        // Seen here, it stops nobody's application for nothing.
        SwapPlan::new(self.root, &self.record.databases, &self.cut)?.refuse(self.root, self.target)?;
        let note = |name: String| {
            let what = format!("database {name}: what an unfinished restore had left was put back first");
            Problem::new(Effect::Note, None, what, "").of(&self.record.source)
        };
        Ok(back.into_iter().map(note).collect())
    }

    fn load(&mut self) -> Result<Vec<Problem>, Failure> {
        let plan = SwapPlan::new(self.root, &self.record.databases, &self.cut)?;
        let exchanged = plan.exchange(self.root, self.target)?;
        let loaded = exchanged.loaded();
        self.exchanged = Some(exchanged);
        let what =
            format!("{} databases, {} tables, {} rows loaded", loaded.databases, loaded.tables, loaded.rows);
        Ok(vec![Problem::new(Effect::Note, None, what, "").of(&self.record.source)])
    }

    fn put_back(&mut self) -> Result<(), Failure> {
        self.exchanged.take().map_or(Ok(()), Exchanged::put_back)
    }

    /// The point of no return: what was there is dropped.
    fn check(&mut self) -> Result<Vec<Problem>, Failure> {
        let Some(Err(failure)) = self.exchanged.take().map(Exchanged::finish) else { return Ok(Vec::new()) };
        let what = format!("everything is loaded, but what was there is not dropped: {}", failure.in_full());
        Ok(vec![Problem::new(Effect::Note, None, what, "`stillpoint thaw` drops it").of(&self.record.source)])
    }
}
