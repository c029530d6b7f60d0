//! What stands in the way of exchanging databases of a running server, found before anything is changed.
//!
//! Crash story: asks only.

use model::port::{Failure, FailureKind};

use super::{super::connect::Connection, literal::string, session::rows};

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
