//! Definitions: databases, tables, sequences, and names for views to refer to.
//!
//! They are read after the cut: the metadata locks of the pinned transactions keep tables as they were. Counters of
//! `AUTO_INCREMENT` and of sequences belong to no transaction, in the server neither: they are those of the reading,
//! never smaller than at the cut.
//!
//! Crash story: reads only.

use super::{
    super::{connect::Connection, error::ServerError},
    catalog::{Catalog, Kind, Table},
    literal::{name, string},
    session::{plain_bytes, rows, utf8},
};

/// Every file begins with this, so that each can be loaded by itself in any client of these servers.
pub(super) const BEGIN: &str = "SET NAMES utf8mb4;
SET SESSION time_zone='+00:00', sql_mode='NO_AUTO_VALUE_ON_ZERO,NO_DIR_IN_CREATE,ALLOW_INVALID_DATES', foreign_key_checks=0, unique_checks=0;
/*M! SET SESSION check_constraint_checks=0, innodb_strict_mode=0 */;
";

/// Statements that make a database, and make it the one that the following files are loaded into.
///
/// # Errors
/// What the server says.
pub(super) fn database(conn: &mut Connection, database: &str) -> Result<String, ServerError> {
    utf8(conn)?;
    let row = conn
        .row(&format!("SHOW CREATE DATABASE IF NOT EXISTS {}", name(database)), super::session::UNHURRIED)?;
    plain_bytes(conn)?;
    Ok(format!("{};\nUSE {};\n", row.text(1), name(database)))
}

/// The statement that makes a table or sequence.
///
/// # Errors
/// What the server says.
pub(super) fn table(conn: &mut Connection, table: &Table) -> Result<String, ServerError> {
    utf8(conn)?;
    let shown = if table.kind == Kind::Sequence { sequence(conn, table) } else { create(conn, table) };
    plain_bytes(conn)?;
    shown
}

fn create(conn: &mut Connection, table: &Table) -> Result<String, ServerError> {
    let sql = format!("SHOW CREATE TABLE {}", table.quoted());
    Ok(format!("{};\n", conn.row(&sql, super::session::UNHURRIED)?.text(1)))
}

fn sequence(conn: &mut Connection, table: &Table) -> Result<String, ServerError> {
    let shown =
        conn.row(&format!("SHOW CREATE SEQUENCE {}", table.quoted()), super::session::UNHURRIED)?.text(1);
    let next = format!("SELECT next_not_cached_value, cycle_count FROM {}", table.quoted());
    let row = conn.row(&next, super::session::UNHURRIED)?;
    let set = format!("DO SETVAL({}, {}, 0, {});\n", name(&table.name), row.text(0), row.text(1));
    Ok(format!("{shown};\n{set}"))
}

/// Views of these names and columns that mean nothing yet: whatever refers to them can be made in any order.
///
/// # Errors
/// What the server says.
pub(super) fn view_names(
    conn: &mut Connection,
    catalog: &Catalog,
    database: &str,
) -> Result<String, ServerError> {
    utf8(conn)?;
    let mut text = String::new();
    for view in catalog.tables.iter().filter(|t| t.database == database && t.kind == Kind::View) {
        let sql = format!(
            "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} \
             ORDER BY ORDINAL_POSITION",
            string(database),
            string(&view.name)
        );
        let columns: Vec<String> =
            rows(conn, &sql)?.iter().map(|row| format!("1 AS {}", name(&row.text(0)))).collect();
        // A view that refers to what is not there shows no columns; it is made like that again.
        let columns = if columns.is_empty() { "1 AS `1`".to_owned() } else { columns.join(", ") };
        text.push_str(&format!("CREATE OR REPLACE VIEW {} AS SELECT {columns};\n", name(&view.name)));
    }
    plain_bytes(conn)?;
    Ok(text)
}
