//! Databases kept by open transactions, and how they become files: [`DumpPin`].
//!
//! Crash story: transactions end with their connections, the directory of the dump is journalled. A table that cannot
//! be read is missing, by name; the others are dumped.

use std::{
    io,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use model::{
    entry::Harvest,
    id::SourceId,
    plan::ServerPlan,
    port::{Failure, FailureKind, Pin, Progress, Stage},
    problem::{Effect, Problem},
    server::{ServerForm, ServerPosition, ServerRecord},
    size::Bytes,
    time::Deadline,
    verdict::Stillness,
};
use os::staging::Staging;

use super::{
    super::{Means, connect::Connection, lock::Holder},
    catalog::Catalog,
    confirm::confirm,
    entries,
    files::{self, Table},
    pinner::Before,
    worker::{Worker, has_own_rows},
};

/// What was made before and under the lock.
pub(super) struct Pinned {
    pub source: SourceId,
    pub plan: ServerPlan,
    pub beside: PathBuf,
    pub position: ServerPosition,
    pub holder: Holder,
    pub means: Means,
    pub scout: Connection,
    pub workers: Vec<Worker>,
    pub catalog: Catalog,
    pub before: Before,
    /// Transactions that were prepared for two-phase commit at the cut.
    pub prepared: usize,
    pub staging: Staging,
}

/// Databases as they were at the cut.
pub(super) struct DumpPin {
    pinned: Pinned,
}

impl DumpPin {
    pub(super) fn new(pinned: Pinned) -> Self {
        Self { pinned }
    }
}

impl Pin for DumpPin {
    fn unchanged(&mut self, until: Deadline) -> Result<Stillness, Failure> {
        let Pinned { holder, means, workers, source, .. } = &mut self.pinned;
        let mut sessions = Vec::with_capacity(workers.len());
        for worker in workers {
            let left = until.left(means.clock.moment()).max(Duration::from_millis(1));
            if !worker.is_in_transaction(left)? {
                let what = format!("{source}: session {} has lost its transaction", worker.conn.id());
                return Err(Failure::new(FailureKind::Lost, what, "try again"));
            }
            sessions.push(worker.conn.id().to_string());
        }
        if !holder.is_locked() {
            let what = format!("{source}: the lock under which its transactions were opened is gone");
            return Err(Failure::new(FailureKind::Lost, what, "try again"));
        }
        Ok(Stillness::Lock(format!("transactions opened under the lock by sessions {}", sessions.join(", "))))
    }

    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        let total = self.pinned.catalog.tables.iter().map(|table| Bytes(table.bytes)).sum();
        progress.begin(Stage::Copying, Some(total));
        let dumped = self.read_tables(progress);
        progress.end();
        let tables = dumped?;
        let Pinned { plan, beside, position, scout, catalog, staging, means, .. } = &mut self.pinned;
        let after = Before::read(scout, catalog, plan.databases.is_empty())?;
        let content = files::Content {
            root: staging.path(),
            version: &plan.version,
            position,
            catalog,
            tables: &tables,
            programs: &after,
        };
        let index = files::write(scout, &content)?;
        let entries = entries::of_tree(staging.path(), beside, means.clock.now()).map_err(unwritable)?;
        let mut problems = self.judge(&tables);
        problems.extend(self.compare(&after));
        let (checks, server) = (vec![said(&index, &tables)], Some(self.record(&index)));
        let mut harvest = Harvest { entries, problems, checks, server };
        confirm(&self.pinned.holder, &self.pinned.position, &mut harvest);
        Ok(harvest)
    }

    fn release(self: Box<Self>) -> Result<(), Failure> {
        let Pinned { workers, staging, .. } = self.pinned;
        for mut worker in workers {
            // Its end ends the transaction as well.
            if let Err(error) = worker.end() {
                tracing::debug!(%error, "a transaction was not ended in words");
            }
        }
        Ok(staging.release()?)
    }
}

impl DumpPin {
    /// All workers at the same time. The order of the result is that of databases and names.
    fn read_tables(&mut self, progress: &dyn Progress) -> Result<Vec<Table>, Failure> {
        let root = self.pinned.staging.path().to_owned();
        let (found, stopped) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        thread::scope(|scope| {
            for worker in &mut self.pinned.workers {
                scope.spawn(|| {
                    let mut goes_on = |bytes: u64| {
                        progress.advance(Bytes(bytes));
                        if progress.is_stopped() {
                            stopped.store(true, Ordering::Relaxed);
                        }
                        !stopped.load(Ordering::Relaxed)
                    };
                    let dumped = worker.read_all(&root, &mut goes_on);
                    let tables = worker.tasks.iter().cloned().zip(dumped);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.extend(tables.map(|(task, dumped)| Table { task, dumped }));
                });
            }
        });
        if stopped.into_inner() {
            let what =
                format!("{}: the dump was given up because somebody asked to stop", self.pinned.source);
            return Err(Failure::new(FailureKind::Other, what, ""));
        }
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let key = |t: &Table| (t.task.table.database.clone(), t.task.table.name.clone());
        found.sort_by_key(key);
        self.refuse_nothing(&found)?;
        Ok(found)
    }

    fn refuse_nothing(&self, found: &[Table]) -> Result<(), Failure> {
        let first = found.first().and_then(|table| table.dumped.missing.clone());
        match first {
            Some(why) if found.iter().all(|table| table.dumped.missing.is_some()) => {
                let what = format!("{}: no table could be dumped: {why}", self.pinned.source);
                Err(Failure::new(FailureKind::Lost, what, "run the backup again"))
            }
            _ => Ok(()),
        }
    }

    fn judge(&self, tables: &[Table]) -> Vec<Problem> {
        let beside = &self.pinned.beside;
        let mut problems = Vec::new();
        for Table { task, dumped } in tables {
            let name = task.table.plain();
            if let Some(why) = &dumped.missing {
                let remedy = "see whether CHECK TABLE finds it whole";
                problems.push(Problem::missing(
                    beside,
                    format!("table {name} is not in the dump: {why}"),
                    remedy,
                ));
            }
            if let Some(why) = dumped.no_history {
                let what = format!("past versions of the rows of table {name} are not in the dump: {why}");
                let remedy = "give the application a server of its own, whose files are stored";
                problems.push(Problem::missing(beside, what, remedy));
            }
            if task.table.has_rows() && !has_own_rows(&task.table) {
                let what = format!(
                    "table {name} ({}) is dumped without rows: it has none of its own",
                    task.table.engine
                );
                problems.push(Problem::note(beside, what));
            }
        }
        problems.extend(self.prepared());
        problems.extend(self.loose(tables));
        problems.push(self.scope());
        problems
    }

    fn prepared(&self) -> Option<Problem> {
        let count = self.pinned.prepared;
        (count > 0).then(|| {
            let what = format!(
                "{count} transactions of the server were prepared (XA) and neither committed nor rolled back: a dump \
                 cannot hold them"
            );
            let remedy = "see XA RECOVER; a server of its own is stored as files, which hold them";
            Problem::weaker(&self.pinned.beside, what, remedy)
        })
    }

    /// Tables that were read when others could write to them.
    fn loose(&self, tables: &[Table]) -> Option<Problem> {
        const NAMED: usize = 10;
        let loose: Vec<String> = tables
            .iter()
            .filter(|t| has_own_rows(&t.task.table) && !t.task.table.transactional && !t.task.under_lock)
            .map(|t| format!("{} ({})", t.task.table.plain(), t.task.table.engine))
            .collect();
        let more =
            if loose.len() > NAMED { format!(" and {} more", loose.len() - NAMED) } else { String::new() };
        (!loose.is_empty()).then(|| {
            let what = format!(
                "tables without transactions that were too large to be read under the lock were read after it: {}{more}",
                loose[..loose.len().min(NAMED)].join(", ")
            );
            Problem::weaker(&self.pinned.beside, what, "convert them to InnoDB, or use a volume that makes snapshots")
        })
    }

    fn scope(&self) -> Problem {
        let what = if self.pinned.plan.databases.is_empty() {
            "a dump holds databases, accounts and grants, but no time zones, plugins, foreign servers or replication settings"
        } else {
            "a dump of named databases holds no accounts or grants"
        };
        Problem::note(&self.pinned.beside, what)
    }

    /// What was made, changed or removed between the readings before and after the cut.
    fn compare(&self, after: &Before) -> Vec<Problem> {
        let Pinned { before, catalog, beside, .. } = &self.pinned;
        let mut problems = Vec::new();
        let again = "run the backup again when nobody changes them";
        for ((database, old), new) in catalog.databases.iter().zip(&before.programs).zip(&after.programs) {
            if (&old.sql, &old.routines) != (&new.sql, &new.routines) {
                let what = format!(
                    "views, routines, triggers or events of {database} were changed during the backup: they are as they \
                     were after the cut"
                );
                problems.push(Problem::weaker(beside, what, again));
            }
        }
        if before.accounts.as_ref().map(|a| &a.sql) != after.accounts.as_ref().map(|a| &a.sql) {
            let what = "accounts were changed during the backup: they are as they were after the cut";
            problems.push(Problem::weaker(beside, what, again));
        }
        for unread in after.programs.iter().chain(&after.accounts).flat_map(|programs| &programs.unread) {
            let remedy = "see the GRANT statements that `stillpoint plan` shows";
            problems.push(Problem::new(
                Effect::Missing,
                Some(beside.clone()),
                format!("not in the dump: {unread}"),
                remedy,
            ));
        }
        problems
    }

    fn record(&self, index: &super::layout::DumpIndex) -> ServerRecord {
        let Pinned { source, plan, beside, .. } = &self.pinned;
        ServerRecord {
            source: source.clone(),
            version: plan.version.clone(),
            server_id: plan.server_id,
            form: ServerForm::Dump,
            position: index.position.clone(),
            settings: plan.settings.clone(),
            roots: Vec::new(),
            engines: plan.engines.iter().map(|engine| engine.name.clone()).collect(),
            databases: plan.databases.clone(),
            beside: Some(beside.clone()),
            replay_from: None,
        }
    }
}

fn said(index: &super::layout::DumpIndex, tables: &[Table]) -> String {
    let rows: u64 = tables.iter().filter_map(|t| t.dumped.written).map(|w| w.rows).sum();
    let locked = tables.iter().filter(|t| t.task.under_lock).count();
    format!(
        "dump: {} rows of {} tables in {} databases, {locked} of the tables read under the lock",
        rows,
        tables.iter().filter(|t| t.dumped.written.is_some()).count(),
        index.databases.len()
    )
}

fn unwritable(error: io::Error) -> Failure {
    let kind = if os::staging::is_no_space(&error) { FailureKind::NoSpace } else { FailureKind::Other };
    Failure::new(kind, "the dump cannot be written", "see that the partition has space").because(error)
}
