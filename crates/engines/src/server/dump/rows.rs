//! The rows of one table as `INSERT` statements, read and written row by row.
//!
//! Crash story: reads under the caller's transaction, writes into a file of the caller's.

use std::io::{self, Write};

use mysql::{Row, prelude::Queryable};

use super::{
    super::{connect::Connection, error::ServerError},
    catalog::{Columns, Table},
    literal::{name, write},
    session::UNHURRIED,
};

/// A statement ends once it is longer than this: small enough for any server's `max_allowed_packet`, large enough
/// to load fast.
const LONG_ENOUGH: usize = 256 * 1024;

/// The rest of so small an answer is read rather than the connection given up.
const FEW: u64 = 16 << 20;

/// What was written of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Rows.
    pub rows: u64,
    /// Bytes of the longest statement, which the loading server's `max_allowed_packet` must exceed.
    pub longest: u64,
}

/// Why the rows of a table could not be dumped.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowsError {
    /// The connection is of no use any more.
    #[error(transparent)]
    Lost(#[from] ServerError),
    /// The server said so, or was lost meanwhile.
    #[error(transparent)]
    Said(#[from] mysql::Error),
    /// The dump cannot be written.
    #[error("the dump cannot be written")]
    Write(#[from] io::Error),
    /// A value is not what its type allows.
    #[error("column {column}: {what}")]
    Value {
        /// The column.
        column: String,
        /// What is wrong.
        what: String,
    },
    /// The caller said to stop.
    #[error("it was given up")]
    Stopped,
}

/// Writes the rows. `goes_on` is told the bytes written since the last call, and says whether to go on.
///
/// # Errors
/// See [`RowsError`]. What has been written then is not whole.
pub(super) fn write_rows(
    conn: &mut Connection,
    table: &Table,
    columns: &Columns,
    out: &mut dyn Write,
    goes_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Written, RowsError> {
    if columns.columns.is_empty() {
        return Ok(Written::default());
    }
    if !goes_on(0) {
        return Err(RowsError::Stopped);
    }
    let socket = conn.socket().try_clone_to_owned()?;
    // The text protocol would round floats.
    let conn = conn.raw(UNHURRIED)?;
    let prepared = conn.prep(select(table, columns))?;
    let mut answer = conn.exec_iter(&prepared, ())?;
    let mut sheet = Sheet { head: head(table, columns), columns, out, goes_on, written: Written::default() };
    let read = answer.iter().map_or(Ok(()), |mut found| sheet.take(&mut found));
    let written = sheet.written;
    if matches!(read, Err(RowsError::Stopped | RowsError::Write(_))) && table.bytes > FEW {
        // An answer is read to its end when it is dropped, which may take hours.
        let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
    }
    drop(answer);
    read?;
    conn.close(prepared)?;
    Ok(written)
}

/// Rows on their way into a file.
struct Sheet<'a> {
    head: Vec<u8>,
    columns: &'a Columns,
    out: &'a mut dyn Write,
    goes_on: &'a mut dyn FnMut(u64) -> bool,
    written: Written,
}

impl Sheet<'_> {
    fn take(&mut self, rows: &mut dyn Iterator<Item = mysql::Result<Row>>) -> Result<(), RowsError> {
        let mut statement = Vec::with_capacity(LONG_ENOUGH + 4096);
        for row in rows {
            statement.extend_from_slice(if statement.is_empty() { &self.head } else { b",\n" });
            write_row(&mut statement, self.columns, row?)?;
            self.written.rows += 1;
            if statement.len() >= LONG_ENOUGH {
                self.flush(&mut statement)?;
            }
        }
        if statement.is_empty() { Ok(()) } else { self.flush(&mut statement) }
    }

    fn flush(&mut self, statement: &mut Vec<u8>) -> Result<(), RowsError> {
        statement.extend_from_slice(b";\n");
        self.out.write_all(statement)?;
        let length = statement.len() as u64;
        self.written.longest = self.written.longest.max(length);
        statement.clear();
        // A row of a gigabyte must not be kept in memory as an empty buffer.
        statement.shrink_to(LONG_ENOUGH * 4);
        if (self.goes_on)(length) { Ok(()) } else { Err(RowsError::Stopped) }
    }
}

/// By its key where rows lie in that order anyway, so that equal rows give equal bytes in the next dump.
fn select(table: &Table, columns: &Columns) -> String {
    let list: Vec<String> = columns.columns.iter().map(|c| c.shape.select(&c.quoted)).collect();
    let history = if columns.history { " FOR SYSTEM_TIME ALL" } else { "" };
    let clustered = ["innodb", "rocksdb"].iter().any(|engine| table.engine.eq_ignore_ascii_case(engine));
    let order = if clustered && !columns.key.is_empty() && !columns.history {
        format!(" FORCE INDEX (PRIMARY) ORDER BY {}", columns.key.join(", "))
    } else {
        String::new()
    };
    format!("SELECT {} FROM {}{history}{order}", list.join(", "), table.quoted())
}

fn head(table: &Table, columns: &Columns) -> Vec<u8> {
    let list: Vec<&str> = columns.columns.iter().map(|c| c.quoted.as_str()).collect();
    format!("INSERT INTO {} ({}) VALUES\n", name(&table.name), list.join(",")).into_bytes()
}

fn write_row(statement: &mut Vec<u8>, columns: &Columns, row: Row) -> Result<(), RowsError> {
    for (at, (column, value)) in columns.columns.iter().zip(row.unwrap()).enumerate() {
        statement.push(if at == 0 { b'(' } else { b',' });
        write(statement, &column.shape, &value)
            .map_err(|what| RowsError::Value { column: column.quoted.clone(), what })?;
    }
    statement.push(b')');
    Ok(())
}
