//! The sessions that read a dump: what they are set to, and how long they wait.
//!
//! Crash story: a session ends with its connection, and with it its transaction and its metadata locks; there is
//! nothing to undo. Only variables of the session are changed.

use std::time::Duration;

use model::server::Flavor;

use super::super::{connect::Connection, error::ServerError, row::Row};

/// How long an answer may keep us waiting where nobody is held back: the server may have to open every table for it.
pub(super) const UNHURRIED: Duration = Duration::from_secs(600);

/// Makes a session one that reads every value as it is: times in UTC, texts in the bytes of their columns,
/// `SHOW CREATE` in plain backticks and without directories (a copy must not write into the
/// original's), and no limit of time or rows.
///
/// # Errors
/// What the server says.
pub(super) fn settle(conn: &mut Connection) -> Result<(), ServerError> {
    run(
        conn,
        "SET SESSION sql_mode='NO_DIR_IN_CREATE', time_zone='+00:00', sql_quote_show_create=1, sql_select_limit=DEFAULT, \
         wait_timeout=86400, net_write_timeout=86400, net_read_timeout=3600, lock_wait_timeout=60",
    )?;
    run(conn, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")?;
    let own: &[&str] = match conn.version().flavor {
        // A transaction that idles while another table is dumped must not be ended for it.
        Flavor::MariaDb => &[
            "SET SESSION max_statement_time=0",
            "SET SESSION idle_transaction_timeout=0, idle_readonly_transaction_timeout=0",
        ],
        Flavor::MySql => &["SET SESSION max_execution_time=0"],
    };
    own.iter().try_for_each(|statement| run(conn, statement))?;
    // Nothing is written by these sessions. Where a binary log is open for a session, going back to a savepoint does not
    // give metadata locks up (seen); without the privilege for this they are held until the end.
    match run(conn, "SET SESSION sql_log_bin=0") {
        Ok(()) | Err(ServerError::Said { .. }) => plain_bytes(conn),
        Err(error) => Err(error),
    }
}

/// Runs a statement where nobody is held back.
///
/// # Errors
/// What the server says.
pub(super) fn run(conn: &mut Connection, sql: &str) -> Result<(), ServerError> {
    conn.run(sql, UNHURRIED)
}

/// The rows of a short answer, where nobody is held back.
///
/// # Errors
/// What the server says.
pub(super) fn rows(conn: &mut Connection, sql: &str) -> Result<Vec<Row>, ServerError> {
    conn.rows(sql, UNHURRIED)
}

/// Results come in the bytes that are stored.
///
/// # Errors
/// What the server says.
pub(super) fn plain_bytes(conn: &mut Connection) -> Result<(), ServerError> {
    run(conn, "SET SESSION character_set_results=NULL")
}

/// Results come in UTF-8: for names and definitions of tables, which are kept in UTF-8.
///
/// # Errors
/// What the server says.
pub(super) fn utf8(conn: &mut Connection) -> Result<(), ServerError> {
    run(conn, "SET SESSION character_set_results=utf8mb4")
}

/// No statement of this session may take longer than this over there; MySQL knows that of `SELECT` only.
///
/// # Errors
/// What the server says.
pub(super) fn bound(conn: &mut Connection, within: Duration) -> Result<(), ServerError> {
    bound_apart(conn, within, within)
}

/// The same, but nobody is waited for longer than `waiting`, where that can be told apart.
///
/// # Errors
/// What the server says.
pub(super) fn bound_apart(
    conn: &mut Connection,
    within: Duration,
    waiting: Duration,
) -> Result<(), ServerError> {
    let (millis, seconds) = (within.as_millis().max(1), waiting.as_secs().max(1));
    let sql = match conn.version().flavor {
        Flavor::MariaDb => format!(
            "SET SESSION max_statement_time={}.{:03}, lock_wait_timeout={seconds}",
            millis / 1000,
            millis % 1000
        ),
        Flavor::MySql => format!("SET SESSION max_execution_time={millis}, lock_wait_timeout={seconds}"),
    };
    conn.run(&sql, within)
}

/// Statements may take as long as they need again.
///
/// # Errors
/// What the server says.
pub(super) fn unbound(conn: &mut Connection) -> Result<(), ServerError> {
    let sql = match conn.version().flavor {
        Flavor::MariaDb => "SET SESSION max_statement_time=0, lock_wait_timeout=86400",
        Flavor::MySql => "SET SESSION max_execution_time=0, lock_wait_timeout=86400",
    };
    run(conn, sql)
}
