//! Restoring databases in place, on a running server, without touching any other: [`SwapPlan`], [`Exchanged`].
//!
//! 1. The dump is loaded into `stillpoint_new_{cut}_{name}` and its rows are counted. Nothing live has changed.
//! 2. `stillpoint_old_{cut}_{name}` is made, with the text of all live programs (routines, views, triggers, events) in
//!    its table `stillpoint_state`.
//! 3. Live triggers are dropped, since they bind a table to its database, and one `RENAME TABLE` for all databases moves
//!    live tables to the old and new tables to the live database, with a marker: it happens as a whole or not at all.
//! 4. Live programs are dropped and those of the dump are made.
//! 5. [`Exchanged::finish`] drops what was there; [`Exchanged::put_back`] exchanges again.
//!
//! Nobody should write meanwhile: stop the application before. Grants stay as they are. Foreign keys between databases
//! would stay with the tables that are moved away: they are looked for first, and refused.
//!
//! Before step 1, and again before step 2, the databases are shown to be free: whoever holds their tables, or the tables
//! that the server keeps programs in, would hold us up half-way. From step 2 on no statement takes longer than
//! [`STEP`], and a wish to stop is heeded only when all is as it was.
//!
//! Crash story: an [`Undo::ServerExchange`] is journalled before step 1 and crossed off when what was there is back or
//! dropped. Every state is told by the server itself. Until the `RENAME` the live tables are there; after it the new
//! ones are, and the old ones wait in their database. [`super::recover`] finds both databases after a crash and puts back
//! what was there, unless `finish` had begun: then it drops the rest.

use std::{path::Path, sync::Arc, time::Duration};

use model::{
    id::CutId,
    port::{Failure, FailureKind, Journal},
    undo::{Ticket, Undo},
};

use super::{
    super::connect::Connection,
    catalog::{Catalog, Kind},
    files::read_index,
    layout::DumpedDatabase,
    literal::{name, string},
    load::{Client, Loaded, STEP, Target, exists},
    obstacles::{programs_are_free, prove_free, refuse_foreign_keys},
    programs, session,
    session::{bound, bound_apart, rows, run},
    tool::VERY_LONG,
};

pub(super) const OLD: &str = "stillpoint_old_";
pub(super) const NEW: &str = "stillpoint_new_";
/// In an old database: what is to be put back besides tables.
const STATE: &str = "stillpoint_state";
/// Moves from the new to the old database with the tables.
const MARKER: &str = "stillpoint_marker";
/// How long dropping a database of any size may take.
const DROPPING: Duration = Duration::from_secs(600);
/// What one table of many may add to the time of a `RENAME`.
const EACH_TABLE: Duration = Duration::from_millis(50);

/// What a restore in place does, as a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapPlan {
    databases: Vec<Names>,
}

/// One database and what stands beside it meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) live: String,
    pub(super) old: String,
    pub(super) new: String,
}

impl Names {
    fn of(live: &str, cut: &CutId) -> Self {
        let tag = cut.as_str().rsplit('-').next().unwrap_or_default();
        let of = |prefix: &str| format!("{prefix}{tag}_{}", shortened(live, tag));
        Self { live: live.to_owned(), old: of(OLD), new: of(NEW) }
    }

    /// Whether `beside`, the name of an old or a new database without its prefix, is of one of these.
    pub(super) fn is_of(beside: &str, live: &[String]) -> bool {
        let Some((tag, short)) = beside.split_once('_') else { return false };
        live.iter().any(|name| shortened(name, tag) == short)
    }
}

/// Names of databases have 64 characters at the most.
fn shortened(live: &str, tag: &str) -> String {
    live.chars().take(64_usize.saturating_sub(OLD.len() + tag.len() + 1)).collect()
}

impl SwapPlan {
    /// What restoring the dump at `root`, or `only` these databases of it, does. `cut` is the one that is restored.
    ///
    /// # Errors
    /// If there is no dump, it lacks one of the databases, or two long names cannot be told apart.
    pub fn new(root: &Path, only: &[String], cut: &CutId) -> Result<Self, Failure> {
        let index = read_index(root)?;
        if let Some(absent) = only.iter().find(|name| !index.databases.iter().any(|d| d.name == **name)) {
            let what = format!("the backup has no dump of a database {absent}");
            return Err(Failure::new(FailureKind::Refused, what, "see `stillpoint show`"));
        }
        let wanted = index.databases.iter().filter(|d| only.is_empty() || only.contains(&d.name));
        let databases: Vec<Names> = wanted.map(|database| Names::of(&database.name, cut)).collect();
        let mut places: Vec<&String> = databases.iter().map(|names| &names.old).collect();
        places.sort();
        places.dedup();
        if places.len() < databases.len() {
            let what = "two of the databases have names that begin with the same 41 characters";
            return Err(Failure::new(FailureKind::Refused, what, "restore one of them at a time"));
        }
        Ok(Self { databases })
    }

    /// What happens, for people.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let line = |n: &Names| {
            format!(
                "load {} into {}, move its tables to {}, and the loaded ones into it",
                n.live, n.new, n.old
            )
        };
        self.databases.iter().map(line).collect()
    }

    /// Refuses what can be seen beforehand to spoil another database.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if tables of other databases refer to tables of these; what the server says.
    pub fn refuse(&self, root: &Path, target: &Target<'_>) -> Result<(), Failure> {
        let client = Client::new(root, target)?;
        let mut conn = client.connect()?;
        refuse_foreign_keys(&mut conn, &self.live())?;
        client.end()
    }

    fn live(&self) -> Vec<&str> {
        self.databases.iter().map(|names| names.live.as_str()).collect()
    }

    /// Steps 1 to 4. If anything fails, what was there is put back.
    ///
    /// # Errors
    /// What the server or its client says; if it could not be put back, that too, and where it is.
    pub fn exchange<'a>(&self, root: &'a Path, target: &'a Target<'a>) -> Result<Exchanged<'a>, Failure> {
        let index = read_index(root)?;
        let client = Client::new(root, target)?;
        let mut conn = client.connect()?;
        client.refuse_long_statements(&mut conn, &index)?;
        self.refuse_leftovers(&mut conn)?;
        refuse_foreign_keys(&mut conn, &self.live())?;
        prove_free(&mut conn, &self.live())?;
        // Counting rows takes as long as it takes.
        bound_apart(&mut conn, VERY_LONG, STEP)?;
        let undo = Undo::ServerExchange {
            access: target.access.clone(),
            databases: self.live().into_iter().map(str::to_owned).collect(),
            staging: target.staging.to_owned(),
        };
        let entry = (target.journal, target.journal.intend(undo, None)?);
        let (names, loaded) = (self.databases.clone(), Loaded::default());
        let mut exchanged = Exchanged { client, conn, names, loaded, entry, open: true };
        let done =
            exchanged.load_beside(&index.databases).and_then(|()| exchanged.exchange(&index.databases));
        match done {
            Ok(()) => Ok(exchanged),
            Err(failure) => Err(match exchanged.put_back() {
                Ok(()) => failure,
                Err(worse) => Failure {
                    what: format!(
                        "{failure}. Besides, what was there could not be put back: {}; `stillpoint thaw` does it once \
                         nobody holds the tables",
                        worse.what
                    ),
                    remedy: "run `stillpoint thaw` as root, before the application is started again"
                        .to_owned(),
                    ..failure
                },
            }),
        }
    }

    fn refuse_leftovers(&self, conn: &mut Connection) -> Result<(), Failure> {
        for names in &self.databases {
            for left in [&names.old, &names.new] {
                if exists(conn, left)? {
                    let what = format!("there is a database {left} of an earlier restore that did not end");
                    return Err(Failure::new(FailureKind::Refused, what, "let that restore be undone first"));
                }
            }
        }
        Ok(())
    }
}

/// Databases that were exchanged. Dropping it puts back what was there.
pub struct Exchanged<'a> {
    client: Client<'a>,
    conn: Connection,
    names: Vec<Names>,
    loaded: Loaded,
    entry: (&'a Arc<dyn Journal>, Ticket),
    open: bool,
}

impl Exchanged<'_> {
    /// What was loaded.
    #[must_use]
    pub fn loaded(&self) -> Loaded {
        self.loaded
    }

    /// Drops what was there before. From here on nothing is put back any more.
    ///
    /// # Errors
    /// What the server says; [`super::recover`] drops the rest.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.open = false;
        self.be_connected()?;
        // One statement, so that none of them is put back while others are not.
        let all = self.names.iter().enumerate();
        let (tables, sets): (Vec<String>, Vec<String>) = all
            .map(|(n, names)| (format!("{}.{STATE} s{n}", name(&names.old)), format!("s{n}.done = 1")))
            .unzip();
        if !tables.is_empty() {
            run(&mut self.conn, &format!("UPDATE {} SET {}", tables.join(", "), sets.join(", ")))?;
        }
        for names in &self.names {
            drop_both(&mut self.conn, names)?;
        }
        self.cross_off();
        Ok(())
    }

    /// A session may be lost while others are served.
    fn be_connected(&mut self) -> Result<(), Failure> {
        if self.conn.is_broken() || run(&mut self.conn, "DO 0").is_err() {
            self.conn = self.client.connect()?;
        }
        Ok(bound(&mut self.conn, STEP)?)
    }

    fn cross_off(&self) {
        let (journal, ticket) = &self.entry;
        journal.done(*ticket);
    }

    /// Exchanges again: what was there before is live.
    ///
    /// # Errors
    /// What the server says; [`super::recover`] tries again.
    pub fn put_back(mut self) -> Result<(), Failure> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), Failure> {
        self.open = false;
        self.be_connected()?;
        // Tables first, all of them; then the programs, which may refer to any.
        let steps: Vec<Names> = self.names.clone();
        put_tables_back(&mut self.conn, &steps)?;
        for names in &steps {
            put_programs_back(&mut self.conn, &self.client, names)?;
        }
        self.cross_off();
        Ok(())
    }

    fn load_beside(&mut self, databases: &[DumpedDatabase]) -> Result<(), Failure> {
        for names in self.names.clone() {
            let Some(database) = databases.iter().find(|d| d.name == names.live) else { continue };
            let make = format!("CREATE DATABASE {} COLLATE {}", name(&names.new), database.collation);
            run(&mut self.conn, &make)?;
            run(&mut self.conn, &format!("CREATE TABLE {}.{MARKER} (a INT)", name(&names.new)))?;
            self.client.file(&database.files()[1], &names.new)?;
            let (tables, rows) = self.client.rows_of(&mut self.conn, database, &names.new)?;
            self.loaded.databases += 1;
            self.loaded.tables += tables;
            self.loaded.rows += rows;
        }
        Ok(())
    }

    fn exchange(&mut self, databases: &[DumpedDatabase]) -> Result<(), Failure> {
        let live: Vec<&str> = self.names.iter().map(|names| names.live.as_str()).collect();
        // Again, for what was loaded: its tables may refer to another of these databases.
        refuse_foreign_keys(&mut self.conn, &live)?;
        prove_free(&mut self.conn, &live)?;
        self.client.go_through()?;
        for names in &self.names {
            save(&mut self.conn, names)?;
        }
        let mut moves = Vec::new();
        for names in &self.names {
            drop_triggers(&mut self.conn, &names.live)?;
            moves.extend(all_moves(&mut self.conn, &names.live, &names.old)?);
            moves.extend(all_moves(&mut self.conn, &names.new, &names.live)?);
            moves.push(rename(&names.new, MARKER, &names.old));
        }
        rename_all(&mut self.conn, &moves)?;
        for names in &self.names {
            drop_programs(&mut self.conn, &names.live)?;
            if let Some(database) = databases.iter().find(|d| d.name == names.live) {
                let alter = format!("ALTER DATABASE {} COLLATE {}", name(&names.live), database.collation);
                run(&mut self.conn, &alter)?;
            }
        }
        for kind in 2..5 {
            for names in &self.names {
                if let Some(database) = databases.iter().find(|d| d.name == names.live) {
                    self.client.file(&database.files()[kind], &names.live)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Exchanged<'_> {
    fn drop(&mut self) {
        if self.open
            && let Err(failure) = self.undo()
        {
            tracing::error!("{}", failure.in_full());
        }
    }
}

/// The live name, and whether the end had begun.
pub(super) fn state(conn: &mut Connection, old: &str) -> Result<Option<(String, bool)>, Failure> {
    if !base_tables(conn, old)?.iter().any(|table| table == STATE) {
        return Ok(None);
    }
    let row = conn.first(&format!("SELECT live, done FROM {}.{STATE}", name(old)), session::UNHURRIED)?;
    Ok(row.map(|row| (row.text(0), row.number(1) == Some(1))))
}

/// Step 2: what cannot be moved is written down, in the server itself.
fn save(conn: &mut Connection, names: &Names) -> Result<(), Failure> {
    let existed = exists(conn, &names.live)?;
    if !existed {
        run(conn, &format!("CREATE DATABASE {}", name(&names.live)))?;
    }
    let catalog = Catalog::read(conn, std::slice::from_ref(&names.live))?;
    session::plain_bytes(conn)?;
    let found = programs::read(conn, &catalog, &names.live)?;
    let stand_ins = super::schema::view_names(conn, &catalog, &names.live)?;
    session::utf8(conn)?;
    if let Some(unread) = found.unread.first() {
        let what = format!("{unread}: what is there could not be put back, so it is not replaced");
        return Err(Failure::new(FailureKind::Refused, what, "restore as an account that may see all"));
    }
    let begin = super::schema::BEGIN.as_bytes();
    let parts: [&[u8]; 6] = [begin, &found.routines, begin, stand_ins.as_bytes(), &found.sql, begin];
    let hex: String = parts.concat().iter().map(|byte| format!("{byte:02x}")).collect();
    run(conn, &format!("CREATE DATABASE {}", name(&names.old)))?;
    let table = format!("{}.{STATE}", name(&names.old));
    run(
        conn,
        &format!(
            "CREATE TABLE {table} (live VARCHAR(64) CHARACTER SET utf8mb4, existed INT, done INT, \
             collation VARCHAR(64) CHARACTER SET utf8mb4, programs LONGBLOB) ENGINE=InnoDB"
        ),
    )?;
    run(
        conn,
        &format!(
            "INSERT INTO {table} SELECT {}, {}, 0, DEFAULT_COLLATION_NAME, 0x{hex} FROM information_schema.SCHEMATA \
             WHERE SCHEMA_NAME = {}",
            string(&names.live),
            u8::from(existed),
            string(&names.live)
        ),
    )?;
    Ok(())
}

/// Undoes step 3, if it was done.
pub(super) fn put_tables_back(conn: &mut Connection, steps: &[Names]) -> Result<(), Failure> {
    let mut moves = Vec::new();
    for names in steps {
        let is_exchanged = base_tables(conn, &names.old)?.iter().any(|table| table == MARKER);
        if is_exchanged {
            drop_triggers(conn, &names.live)?;
            moves.extend(all_moves(conn, &names.live, &names.new)?);
            moves.extend(all_moves(conn, &names.old, &names.live)?);
            moves.push(rename(&names.old, MARKER, &names.new));
        }
    }
    if moves.is_empty() { Ok(()) } else { rename_all(conn, &moves) }
}

/// As a whole or not at all.
fn rename_all(conn: &mut Connection, moves: &[String]) -> Result<(), Failure> {
    let within = STEP + EACH_TABLE * u32::try_from(moves.len()).unwrap_or(u32::MAX);
    bound_apart(conn, within, STEP)?;
    conn.run(&format!("RENAME TABLE {}", moves.join(", ")), within + STEP)?;
    Ok(bound(conn, STEP)?)
}

/// Makes the live programs as they were, and removes what stood beside.
pub(super) fn put_programs_back(
    conn: &mut Connection,
    client: &Client<'_>,
    names: &Names,
) -> Result<(), Failure> {
    if state(conn, &names.old)?.is_some() {
        let asked = format!("SELECT programs, existed, collation FROM {}.{STATE}", name(&names.old));
        let row = conn.row(&asked, session::UNHURRIED)?;
        drop_triggers(conn, &names.live)?;
        drop_programs(conn, &names.live)?;
        if row.number(1) == Some(1) {
            run(conn, &format!("ALTER DATABASE {} COLLATE {}", name(&names.live), row.text(2)))?;
            client.text(row.bytes(0).unwrap_or_default(), &names.live)?;
        } else {
            drop_database(conn, &names.live)?;
        }
    }
    drop_both(conn, names)
}

pub(super) fn drop_both(conn: &mut Connection, names: &Names) -> Result<(), Failure> {
    drop_database(conn, &names.new)?;
    drop_database(conn, &names.old)
}

/// Takes its time, but does not wait for others any longer than all else.
pub(super) fn drop_database(conn: &mut Connection, database: &str) -> Result<(), Failure> {
    if !exists(conn, database)? {
        return Ok(());
    }
    programs_are_free(conn, database)?;
    bound_apart(conn, DROPPING, STEP)?;
    conn.run(&format!("DROP DATABASE IF EXISTS {}", name(database)), DROPPING + STEP)?;
    Ok(bound(conn, STEP)?)
}

/// All tables and sequences of a database but ours.
fn all_moves(conn: &mut Connection, from: &str, to: &str) -> Result<Vec<String>, Failure> {
    let tables = base_tables(conn, from)?;
    Ok(tables
        .iter()
        .filter(|t| ![STATE, MARKER].contains(&t.as_str()))
        .map(|t| rename(from, t, to))
        .collect())
}

fn rename(from: &str, table: &str, to: &str) -> String {
    format!("{}.{} TO {}.{}", name(from), name(table), name(to), name(table))
}

pub(super) fn base_tables(conn: &mut Connection, database: &str) -> Result<Vec<String>, Failure> {
    let catalog = Catalog::read(conn, &[database.to_owned()])?;
    Ok(catalog.tables.into_iter().filter(|table| table.kind != Kind::View).map(|table| table.name).collect())
}

fn drop_triggers(conn: &mut Connection, database: &str) -> Result<(), Failure> {
    drop_each(
        conn,
        database,
        "SELECT 'TRIGGER', TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA",
    )
}

fn drop_programs(conn: &mut Connection, database: &str) -> Result<(), Failure> {
    for list in [
        "SELECT 'VIEW', TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA",
        "SELECT 'EVENT', EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA",
        // A package takes its body along.
        "SELECT ROUTINE_TYPE, ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_TYPE <> 'PACKAGE BODY' \
         AND ROUTINE_SCHEMA",
    ] {
        drop_each(conn, database, list)?;
    }
    Ok(())
}

fn drop_each(conn: &mut Connection, database: &str, list: &str) -> Result<(), Failure> {
    for row in rows(conn, &format!("{list} = {}", string(database)))? {
        // Packages are known under this mode only.
        let mode = if row.text(0) == "PACKAGE" { "ORACLE" } else { "" };
        run(conn, &format!("SET SESSION sql_mode='{mode}'"))?;
        run(conn, &format!("DROP {} IF EXISTS {}.{}", row.text(0), name(database), name(&row.text(1))))?;
    }
    Ok(())
}
