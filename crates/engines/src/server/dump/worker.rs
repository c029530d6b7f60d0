//! One of the sessions that hold the state of the cut: it opens its transaction under the lock, then reads its share
//! of the tables out of it.
//!
//! Every table is touched under the lock, in the reverse order of reading, each after a savepoint of its own: its
//! metadata lock keeps its definition, and going back to the savepoint gives that lock up once the table is read, so
//! that somebody's `ALTER TABLE` waits for one table and not for all.
//!
//! Crash story: the transaction and its locks end with the connection, however we die.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    time::Duration,
};

use mysql::prelude::Queryable;

use super::{
    super::{connect::Connection, error::ServerError},
    catalog::{Columns, Kind, Table},
    layout::rows_file,
    rows::{RowsError, Written, write_rows},
    schema,
    session::{UNHURRIED, bound, run, unbound},
};

/// How many tables are touched by one message to the server.
const TOUCHED_AT_ONCE: usize = 64;

/// What a worker is to do with a table.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub table: Table,
    /// Its rows are read under the lock, since they belong to no transaction.
    pub under_lock: bool,
}

/// What became of a table.
#[derive(Debug, Default)]
pub(super) struct Dumped {
    /// The statement that makes it.
    pub create: String,
    /// Its rows, if they were read.
    pub written: Option<Written>,
    /// Past versions of rows are among them.
    pub history: bool,
    /// Why its history is not there.
    pub no_history: Option<&'static str>,
    /// What is missing of it.
    pub missing: Option<String>,
}

/// A session with its share of the tables.
pub(super) struct Worker {
    pub conn: Connection,
    /// In the order of reading.
    pub tasks: Vec<Task>,
    /// What was read under the lock already, by place in `tasks`.
    done: Vec<Option<Dumped>>,
    /// Tables that could not be touched, by place in `tasks`.
    broken: Vec<Option<String>>,
    keeps_history: bool,
}

impl Worker {
    pub(super) fn new(conn: Connection, tasks: Vec<Task>) -> Self {
        let version = conn.version();
        let keeps_history = version.flavor == model::server::Flavor::MariaDb && version.number >= (10, 11, 0);
        let done = tasks.iter().map(|_| None).collect();
        let broken = tasks.iter().map(|_| None).collect();
        Self { conn, tasks, done, broken, keeps_history }
    }

    /// Opens the transaction and touches its tables: to be called under the lock.
    ///
    /// # Errors
    /// If the server does not do so in time; the worker is of no use then.
    pub(super) fn snapshot(&mut self, within: Duration) -> Result<(), ServerError> {
        bound(&mut self.conn, within)?;
        self.conn.run("START TRANSACTION WITH CONSISTENT SNAPSHOT", within)?;
        let places: Vec<usize> = (0..self.tasks.len()).rev().collect();
        for batch in places.chunks(TOUCHED_AT_ONCE) {
            self.touch(batch, within)?;
        }
        Ok(())
    }

    fn touch(&mut self, batch: &[usize], within: Duration) -> Result<(), ServerError> {
        let touches: Vec<String> = batch.iter().map(|at| self.touching(*at)).collect();
        let conn = self.conn.raw(within)?;
        if conn.query_drop(touches.join(";")).is_ok() {
            return Ok(());
        }
        // One by one, to know which. If the connection was lost, that is seen here too.
        for at in batch {
            self.conn.run(&format!("SAVEPOINT t{at}"), within)?;
            let sql = format!("SELECT 1 FROM {} LIMIT 0", self.tasks[*at].table.quoted());
            match self.conn.run(&sql, within) {
                Ok(()) => {}
                Err(ServerError::Said { code, said, .. }) if !is_transient(code) => {
                    self.broken[*at] = Some(said);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn touching(&self, at: usize) -> String {
        format!("SAVEPOINT t{at};SELECT 1 FROM {} LIMIT 0", self.tasks[at].table.quoted())
    }

    /// Reads the tables that belong to no transaction: to be called under the lock, after
    /// [`snapshot`](Self::snapshot). What `goes_on` ends is read later, when it may have changed.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(super) fn read_under_lock(
        &mut self,
        root: &Path,
        within: Duration,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), ServerError> {
        for at in 0..self.tasks.len() {
            if !self.tasks[at].under_lock || self.broken[at].is_some() {
                continue;
            }
            let columns = Columns::read(&mut self.conn, &self.tasks[at].table, self.keeps_history)?;
            let read = self.rows(at, &columns, root, &mut |_| goes_on());
            match read {
                Ok(dumped) => self.done[at] = Some(dumped),
                Err(RowsError::Said(mysql::Error::MySqlError(_)) | RowsError::Stopped) => {
                    self.tasks[at].under_lock = false;
                }
                Err(error) => return Err(lost(&self.conn, &error)),
            }
        }
        // The session must be able to answer.
        self.conn.run("DO 1", within)
    }

    /// Whether the session is the one that opened the transaction, and is still in it.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) fn is_in_transaction(&mut self, within: Duration) -> Result<bool, ServerError> {
        let sql = match self.conn.version().flavor {
            model::server::Flavor::MariaDb => "SELECT CONNECTION_ID(), @@in_transaction",
            // MySQL cannot be asked; a transaction ends with its session only, which this is.
            model::server::Flavor::MySql => "SELECT CONNECTION_ID(), 1",
        };
        let row = self.conn.row(sql, within)?;
        Ok(row.number(0) == Some(self.conn.id().0) && row.number(1) == Some(1))
    }

    /// Reads all tables that are not read yet, and gives each free after it.
    pub(super) fn read_all(&mut self, root: &Path, goes_on: &mut dyn FnMut(u64) -> bool) -> Vec<Dumped> {
        let mut found = Vec::with_capacity(self.tasks.len());
        let mut lost = unbound(&mut self.conn).err().map(|error| error.to_string());
        for at in 0..self.tasks.len() {
            let missing = lost.clone().or_else(|| self.broken[at].take());
            found.push(match missing {
                Some(why) => Dumped { missing: Some(why), ..Dumped::default() },
                None => self.read(at, root, goes_on),
            });
            if lost.is_none() {
                let freed = run(&mut self.conn, &format!("ROLLBACK TO SAVEPOINT t{at}"));
                lost = freed.err().filter(|_| self.conn.is_broken()).map(|error| error.to_string());
            }
        }
        found
    }

    fn read(&mut self, at: usize, root: &Path, goes_on: &mut dyn FnMut(u64) -> bool) -> Dumped {
        let task = self.tasks[at].clone();
        let create = match schema::table(&mut self.conn, &task.table) {
            Ok(create) => create,
            Err(error) => return Dumped { missing: Some(error.to_string()), ..Dumped::default() },
        };
        if let Some(done) = self.done[at].take() {
            return Dumped { create, ..done };
        }
        if !has_own_rows(&task.table) {
            return Dumped { create, ..Dumped::default() };
        }
        let columns = match Columns::read(&mut self.conn, &task.table, self.keeps_history) {
            Ok(columns) => columns,
            Err(error) => return Dumped { create, missing: Some(error.to_string()), ..Dumped::default() },
        };
        match self.rows(at, &columns, root, goes_on) {
            Ok(dumped) => Dumped { create, ..dumped },
            Err(error) => {
                let missing = Some(said(&error));
                Dumped { create, missing, ..Dumped::default() }
            }
        }
    }

    fn rows(
        &mut self,
        at: usize,
        columns: &Columns,
        root: &Path,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Dumped, RowsError> {
        let table = self.tasks[at].table.clone();
        let path = root.join(rows_file(&table.database, &table.name));
        let mut out = BufWriter::new(create(&path)?);
        out.write_all(schema::BEGIN.as_bytes())?;
        if columns.history {
            out.write_all(b"SET SESSION system_versioning_insert_history=1;\n")?;
        }
        let written = write_rows(&mut self.conn, &table, columns, &mut out, goes_on)?;
        out.flush()?;
        Ok(Dumped {
            written: Some(written),
            history: columns.history,
            no_history: columns.no_history,
            ..Dumped::default()
        })
    }

    /// Ends the transaction.
    ///
    /// # Errors
    /// If the server does not confirm it.
    pub(super) fn end(&mut self) -> Result<(), ServerError> {
        self.conn.run("ROLLBACK", UNHURRIED)
    }
}

/// A new file that only its owner reads. What an earlier attempt left is overwritten.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Engines whose tables show what is elsewhere, or nothing; the vendor's dumper leaves out the same.
const WITHOUT_ROWS: [&str; 8] =
    ["MRG_MyISAM", "MRG_ISAM", "CONNECT", "OQGRAPH", "SPIDER", "VP", "FEDERATED", "BLACKHOLE"];

/// Whether a table's rows are its own.
pub(super) fn has_own_rows(table: &Table) -> bool {
    table.has_rows() && !WITHOUT_ROWS.iter().any(|engine| engine.eq_ignore_ascii_case(&table.engine))
}

/// Whether it is a sequence.
pub(super) fn is_sequence(table: &Table) -> bool {
    table.kind == Kind::Sequence
}

/// Lock waits, deadlocks, and time that is over.
fn is_transient(code: u16) -> bool {
    matches!(code, 1205 | 1213 | 1317 | 1927 | 1969 | 3024)
}

fn said(error: &RowsError) -> String {
    match error {
        RowsError::Said(mysql::Error::MySqlError(said)) => said.message.clone(),
        RowsError::Write(io) => format!("{error}: {}", os::tree::said(io)),
        other => other.to_string(),
    }
}

fn lost(conn: &Connection, error: &RowsError) -> ServerError {
    ServerError::Lost {
        address: conn.access().address.clone(),
        statement: "reading a table under the lock".into(),
        said: said(error),
    }
}

/// Shares tables out, the largest first to whoever has least, then each share by name.
pub(super) fn share_out(tasks: Vec<Task>, workers: usize) -> Vec<Vec<Task>> {
    let mut shares: Vec<(u64, Vec<Task>)> = (0..workers.max(1)).map(|_| (0, Vec::new())).collect();
    let mut tasks = tasks;
    tasks.sort_by_key(|task| std::cmp::Reverse(task.table.bytes));
    for task in tasks {
        if let Some(least) = shares.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            // A table costs something even if it is empty.
            least.0 = least.0.saturating_add(task.table.bytes.max(16 * 1024));
            least.1.push(task);
        }
    }
    let by_name = |tasks: &mut Vec<Task>| {
        tasks.sort_by(|a, b| (&a.table.database, &a.table.name).cmp(&(&b.table.database, &b.table.name)));
    };
    shares
        .into_iter()
        .map(|(_, mut tasks)| {
            by_name(&mut tasks);
            tasks
        })
        .filter(|tasks| !tasks.is_empty())
        .collect()
}
