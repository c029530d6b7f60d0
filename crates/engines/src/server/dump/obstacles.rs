//! What stands in the way of exchanging databases of a running server, found before anything is changed.
//!
//! Crash story: asks only. What is locked for a moment, to see whether it can be, is let go with the session.

use std::time::Duration;

use model::{
    port::{Failure, FailureKind},
    server::Flavor,
};

use super::{
    super::{connect::Connection, error::ServerError},
    literal::{name, string},
    load::{STEP, exists},
    session::{bound, rows, run},
};

/// How long each of the three proofs may wait for others.
const PROOF: Duration = Duration::from_secs(10);
/// A program that there is not.
const NOBODY: &str = "stillpoint_nobody";

/// `RENAME TABLE` takes the foreign keys along that other databases' tables have to a table: they would mean what was
/// there before, which is dropped in the end.
///
/// # Errors
/// [`FailureKind::Refused`] if a table of another database refers to a table of one of these.
pub(super) fn refuse_foreign_keys(conn: &mut Connection, live: &[&str]) -> Result<(), Failure> {
    if live.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = live.iter().map(|name| string(name)).collect();
    let sql = format!(
        "SELECT CONSTRAINT_NAME, CONSTRAINT_SCHEMA, TABLE_NAME, UNIQUE_CONSTRAINT_SCHEMA, REFERENCED_TABLE_NAME \
         FROM information_schema.REFERENTIAL_CONSTRAINTS \
         WHERE UNIQUE_CONSTRAINT_SCHEMA IN ({}) AND CONSTRAINT_SCHEMA <> UNIQUE_CONSTRAINT_SCHEMA ORDER BY 2, 3, 1",
        named.join(", ")
    );
    let found = rows(conn, &sql)?;
    let Some(first) = found.first() else { return Ok(()) };
    let of = |column| first.text(column);
    let more = match found.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more like it"),
    };
    let what = format!(
        "the foreign key {} of table {}.{} refers to table {}.{} of another database{more}: an exchange would leave it \
         with what was there before, so nothing was changed",
        of(0),
        of(1),
        of(2),
        of(3),
        of(4)
    );
    let remedy = format!(
        "ALTER TABLE {}.{} DROP FOREIGN KEY {}, and add it again after the restore; or restore with --to and load the \
         dump by hand",
        of(1),
        of(2),
        of(0)
    );
    Err(Failure::new(FailureKind::Refused, what, remedy))
}

/// Shows that nobody holds the tables of these databases or the programs of the server: with `LOCK TABLES`, in a dump or in
/// a transaction that was left open. Takes half a minute at the most; leaves the session bounded by [`STEP`].
///
/// # Errors
/// [`FailureKind::Busy`] if somebody does, with the sessions that may be it.
pub(super) fn prove_free(conn: &mut Connection, live: &[&str]) -> Result<(), Failure> {
    bound(conn, PROOF)?;
    let mut proven = Ok(());
    for database in live {
        if exists(conn, database)? {
            let tables = super::swap::base_tables(conn, database)?;
            proven = held(programs_are_free(conn, database))
                .and_then(|()| held(tables_are_free(conn, database, &tables)));
        }
        if proven.is_err() {
            break;
        }
    }
    if let Err(error) = proven {
        if !matches!(error.kind(), FailureKind::Busy | FailureKind::TimedOut) {
            return Err(error.into());
        }
        let who = holders(conn, live);
        let what = format!(
            "another session holds tables or programs of {}, so nothing was changed: {error}; {who}",
            live.join(", ")
        );
        let remedy = "end it with KILL, or wait until it has ended (a dump that runs, LOCK TABLES, a transaction left open), \
                      and start the restore again";
        return Err(Failure::new(FailureKind::Busy, what, remedy));
    }
    Ok(bound(conn, STEP)?)
}

/// Dropping what is not there waits for whoever has locked `mysql.event` or `mysql.proc`, and `lock_wait_timeout` does not
/// bound that (seen).
///
/// # Errors
/// What the server says.
pub(super) fn programs_are_free(conn: &mut Connection, database: &str) -> Result<(), ServerError> {
    for kind in ["EVENT", "PROCEDURE"] {
        run(conn, &format!("DROP {kind} IF EXISTS {}.{NOBODY}", name(database)))?;
    }
    Ok(())
}

fn tables_are_free(conn: &mut Connection, database: &str, tables: &[String]) -> Result<(), ServerError> {
    if tables.is_empty() {
        return Ok(());
    }
    let each = tables.iter().map(|table| format!("{}.{} WRITE", name(database), name(table)));
    let locked = run(conn, &format!("LOCK TABLES {}", each.collect::<Vec<_>>().join(", ")));
    run(conn, "UNLOCK TABLES")?;
    locked
}

/// Only waiting too long tells that something is held. What else the server says, such as that a privilege is missing
/// which may not be needed, is told by what is done later.
fn held(said: Result<(), ServerError>) -> Result<(), ServerError> {
    match said {
        Err(error @ ServerError::Said { .. })
            if !matches!(error.kind(), FailureKind::Busy | FailureKind::TimedOut) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The sessions that hold something, as far as the server tells; else all that there are.
fn holders(conn: &mut Connection, live: &[&str]) -> String {
    let named: Vec<String> = live.iter().copied().chain(["mysql"]).map(string).collect();
    let named = named.join(", ");
    let asked = match conn.version().flavor {
        Flavor::MariaDb => format!(
            "SELECT DISTINCT THREAD_ID FROM information_schema.METADATA_LOCK_INFO WHERE TABLE_SCHEMA IN ({named})"
        ),
        Flavor::MySql => format!(
            "SELECT DISTINCT t.PROCESSLIST_ID FROM performance_schema.metadata_locks m \
             JOIN performance_schema.threads t ON t.THREAD_ID = m.OWNER_THREAD_ID WHERE m.OBJECT_SCHEMA IN ({named})"
        ),
    };
    // An extension, which most servers do not have.
    let holding: Vec<String> = rows(conn, &asked)
        .map(|found| found.iter().filter_map(|row| row.number(0)).map(|id| id.to_string()).collect())
        .unwrap_or_default();
    let among =
        if holding.is_empty() { String::new() } else { format!(" AND ID IN ({})", holding.join(", ")) };
    let sql = format!(
        "SELECT ID, USER, HOST, COMMAND, TIME FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID() \
         AND USER NOT IN ('system user', 'event_scheduler') AND COMMAND NOT IN ('Daemon', 'Binlog Dump'){among} \
         ORDER BY TIME DESC LIMIT 5"
    );
    let found = rows(conn, &sql).unwrap_or_default();
    let sessions: Vec<String> = found
        .iter()
        .map(|row| {
            let of = |column| row.text(column);
            format!("{} ({}@{}, {} for {} s)", of(0), of(1), of(2), of(3), of(4))
        })
        .collect();
    match (sessions.is_empty(), holding.is_empty()) {
        (true, _) => "SHOW PROCESSLIST shows who it is".to_owned(),
        (false, true) => format!("it is one of these sessions: {}", sessions.join(", ")),
        (false, false) => format!("held by session {}", sessions.join(", ")),
    }
}
