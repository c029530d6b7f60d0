//! Loading a dump into a server that has none of its databases: [`load`].
//!
//! Crash story: what was loaded stays when we die; loading again is refused until those databases are dropped. On a
//! private copy that is thrown away, which is no loss; [`super::SwapPlan`] loads into databases of its own.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use model::{
    port::{Failure, FailureKind, Journal},
    server::{Flavor, ServerAccess},
    undo::{ProcessRef, Ticket, Undo},
};
use os::{command::Command, staging::Staging};

use super::{
    super::connect::Connection,
    files::read_index,
    layout::{ACCOUNTS, DumpIndex, DumpedDatabase},
    literal::{name, string},
    session::{UNHURRIED, rows, run},
    tool,
};

/// Where a dump goes, and with what it is loaded.
pub struct Target<'a> {
    /// The server.
    pub access: &'a ServerAccess,
    /// Where holds and staging are written down.
    pub journal: &'a Arc<dyn Journal>,
    /// A directory in which the credentials may lie for as long as the loading takes.
    pub staging: &'a Path,
}

/// What was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Databases.
    pub databases: u64,
    /// Tables with rows.
    pub tables: u64,
    /// Rows, counted in the server.
    pub rows: u64,
}

/// Loads the dump that stands at `root` (what the backup has at [`model::server::ServerRecord::beside`]), with all its
/// databases, or `only` these, and their accounts if it is of a whole server. Counts the rows of every table.
///
/// # Errors
/// [`FailureKind::Refused`] if one of the databases is there already, or the server takes no statements that long;
/// otherwise what the client says, with the file.
pub fn load(root: &Path, only: &[String], target: &Target<'_>) -> Result<Loaded, Failure> {
    let index = read_index(root)?;
    let client = Client::new(root, target)?;
    let mut conn = client.connect()?;
    client.refuse_long_statements(&mut conn, &index)?;
    let wanted: Vec<&DumpedDatabase> =
        index.databases.iter().filter(|d| only.is_empty() || only.contains(&d.name)).collect();
    for database in &wanted {
        refuse_existing(&mut conn, target.access, &database.name)?;
    }
    if index.accounts && only.is_empty() {
        client.file(ACCOUNTS, "")?;
    }
    for database in &wanted {
        let [make, tables, ..] = database.files();
        client.file(&make, "")?;
        client.file(&tables, &database.name)?;
    }
    let mut loaded = Loaded { databases: wanted.len() as u64, ..Loaded::default() };
    for database in &wanted {
        let (tables, rows) = client.rows_of(&mut conn, database, &database.name)?;
        loaded.tables += tables;
        loaded.rows += rows;
    }
    // Each kind in all databases before the next: they may refer to one another.
    for kind in 2..5 {
        for database in &wanted {
            client.file(&database.files()[kind], &database.name)?;
        }
    }
    client.end()?;
    Ok(loaded)
}

fn refuse_existing(conn: &mut Connection, access: &ServerAccess, database: &str) -> Result<(), Failure> {
    if !exists(conn, database)? {
        return Ok(());
    }
    let what = format!("the server at {} has a database {database} already", access.address);
    Err(Failure::new(FailureKind::Refused, what, "restore in place, or drop it first if nobody needs it"))
}

/// Whether there is a database of this name.
pub(super) fn exists(conn: &mut Connection, database: &str) -> Result<bool, Failure> {
    let sql = format!("SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}", string(database));
    Ok(!rows(conn, &sql)?.is_empty())
}

/// How long a statement may take, and wait for others, while databases are exchanged or put back. Each is short by
/// itself, so it is others who hold it up.
pub(super) const STEP: Duration = Duration::from_secs(60);

/// The vendor's client, and the files that it reads.
pub(super) struct Client<'a> {
    root: &'a Path,
    access: &'a ServerAccess,
    /// Nothing if an entry of a journal is being undone.
    journal: Option<&'a Arc<dyn Journal>>,
    /// Where its files lie.
    dir: PathBuf,
    staging: Option<Staging>,
    last: Cell<Option<ProcessRef>>,
    kept: Option<Kept<'a>>,
}

/// An entry for one process after the other. Dropping it crosses it off.
struct Kept<'a> {
    journal: &'a Arc<dyn Journal>,
    ticket: Ticket,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.journal.done(self.ticket);
    }
}

impl<'a> Client<'a> {
    /// Writes its credentials down.
    ///
    /// # Errors
    /// If they cannot be read or written.
    pub(super) fn new(root: &'a Path, target: &'a Target<'a>) -> Result<Self, Failure> {
        let staging = Staging::create(target.journal, target.staging, "load")?;
        let client = Self::at(root, target.access, staging.path().to_owned(), Some(target.journal))?;
        Ok(Self { staging: Some(staging), ..client })
    }

    /// For undoing an entry of a journal, with files in a directory that the entry names.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub(super) fn undoing(access: &'a ServerAccess, dir: &Path) -> Result<Self, Failure> {
        Self::at(Path::new("/"), access, dir.to_owned(), None)
    }

    fn at(
        root: &'a Path,
        access: &'a ServerAccess,
        dir: PathBuf,
        journal: Option<&'a Arc<dyn Journal>>,
    ) -> Result<Self, Failure> {
        tool::option_file(access, &dir, "")?;
        Ok(Self { root, access, journal, dir, staging: None, last: Cell::default(), kept: None })
    }

    /// From here on it is not kept from running by a wish to stop, and none of its statements waits for long: what is
    /// begun has to be ended, one way or the other. The last moment to heed such a wish.
    ///
    /// # Errors
    /// If somebody has asked us to stop, or the journal cannot be written.
    pub(super) fn go_through(&mut self) -> Result<(), Failure> {
        if let (Some(journal), Some(process), None) = (self.journal, self.last.get(), &self.kept) {
            // That process has ended: the entry is there to be amended.
            let ticket = journal.intend(Undo::End { process }, None)?;
            self.kept = Some(Kept { journal, ticket });
        }
        Ok(())
    }

    /// Another session, for questions and for the statements of our own.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub(super) fn connect(&self) -> Result<Connection, Failure> {
        let mut conn = Connection::open(self.access, Duration::from_secs(30))?;
        run(
            &mut conn,
            "SET SESSION sql_mode='', foreign_key_checks=0, lock_wait_timeout=60, wait_timeout=86400",
        )?;
        if conn.version().flavor == Flavor::MariaDb {
            run(&mut conn, "SET SESSION max_statement_time=0")?;
        }
        Ok(conn)
    }

    /// A server takes no statement longer than `max_allowed_packet`, and that cannot be changed for one session.
    pub(super) fn refuse_long_statements(
        &self,
        conn: &mut Connection,
        index: &DumpIndex,
    ) -> Result<(), Failure> {
        let most = conn.number("SELECT @@max_allowed_packet", UNHURRIED)?;
        if index.longest_statement < most {
            return Ok(());
        }
        let needed = (index.longest_statement + 1024).next_multiple_of(1024).min(1 << 30);
        let what = format!(
            "the server at {} takes statements of {most} bytes, and the dump has one of {}",
            self.access.address, index.longest_statement
        );
        let remedy =
            format!("SET GLOBAL max_allowed_packet = {needed}, and set it back to {most} after the restore");
        Err(Failure::new(FailureKind::Refused, what, remedy))
    }

    /// Has the client read a file of the dump, in this database unless it is empty.
    ///
    /// # Errors
    /// What the client says.
    pub(super) fn file(&self, file: &str, database: &str) -> Result<(), Failure> {
        self.path(&self.root.join(file), database)
    }

    /// Has the client read these statements.
    ///
    /// # Errors
    /// What the client says.
    pub(super) fn text(&self, sql: &[u8], database: &str) -> Result<(), Failure> {
        let path = self.dir.join("statements.sql");
        let written = super::create(&path).and_then(|mut file| std::io::Write::write_all(&mut file, sql));
        written.map_err(|error| {
            Failure::new(FailureKind::Other, format!("{} cannot be written", path.display()), "")
                .because(error)
        })?;
        self.path(&path, database)
    }

    /// Has the client read a file.
    ///
    /// # Errors
    /// What the client says.
    pub(super) fn path(&self, path: &Path, database: &str) -> Result<(), Failure> {
        let programs: &[&str] = match self.access.flavor {
            Flavor::MariaDb => &["mariadb", "mysql"],
            Flavor::MySql => &["mysql", "mariadb"],
        };
        let options = self.dir.join("options.cnf");
        let entry = match (self.journal, &self.kept) {
            (Some(journal), None) => tool::Entry::Own(journal),
            (Some(journal), Some(kept)) => tool::Entry::Kept(journal, kept.ticket),
            (None, _) => tool::Entry::Undoing,
        };
        let (ended, process) = tool::run_under(&entry, programs, |command: Command| {
            let mut defaults = std::ffi::OsString::from("--defaults-file=");
            defaults.push(&options);
            let command = command.reads(path).arg(defaults).args([
                "--default-character-set=utf8mb4",
                "--max-allowed-packet=1G",
                "--binary-mode",
            ]);
            let command = match entry {
                tool::Entry::Own(_) => command,
                tool::Entry::Kept(..) | tool::Entry::Undoing => command.arg(bounds(self.access.flavor)),
            };
            if database.is_empty() { command } else { command.arg(format!("--database={database}")) }
        })?;
        self.last.set(Some(process));
        if ended.is_success() {
            return Ok(());
        }
        let what = format!(
            "{} cannot be loaded into the server at {}: {}",
            path.display(),
            self.access.address,
            ended.in_short()
        );
        Err(Failure::new(
            FailureKind::Other,
            what,
            "see whether the account may do that, and the versions fit",
        ))
    }

    /// Loads the rows of a database into another of that structure, and counts them there: tables and rows.
    ///
    /// # Errors
    /// What the client says; [`FailureKind::Damaged`] if there are not as many rows as were dumped.
    pub(super) fn rows_of(
        &self,
        conn: &mut Connection,
        database: &DumpedDatabase,
        into: &str,
    ) -> Result<(u64, u64), Failure> {
        let (mut tables, mut all) = (0, 0);
        for table in &database.tables {
            let Some(file) = &table.file else { continue };
            self.file(file, into)?;
            let history = if table.history { " FOR SYSTEM_TIME ALL" } else { "" };
            let sql = format!("SELECT COUNT(*) FROM {}.{}{history}", name(into), name(&table.name));
            let found = conn.number(&sql, tool::VERY_LONG)?;
            if found != table.rows {
                let what = format!(
                    "table {}.{} has {found} rows after it was loaded, and {} were dumped",
                    database.name, table.name, table.rows
                );
                return Err(Failure::new(FailureKind::Damaged, what, "try an older backup"));
            }
            tables += 1;
            all += found;
        }
        Ok((tables, all))
    }

    /// Removes the credentials.
    ///
    /// # Errors
    /// If something is left.
    pub(super) fn end(self) -> Result<(), Failure> {
        Ok(self.staging.map_or(Ok(()), Staging::release)?)
    }
}

/// Has the client bound its statements, see [`STEP`].
fn bounds(flavor: Flavor) -> String {
    let seconds = STEP.as_secs();
    let more = match flavor {
        Flavor::MariaDb => format!(", max_statement_time={seconds}"),
        // It has no such thing for what is not a SELECT.
        Flavor::MySql => String::new(),
    };
    format!("--init-command=SET SESSION lock_wait_timeout={seconds}{more}")
}
