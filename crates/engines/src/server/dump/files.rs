//! The files of a dump besides those of rows: definitions, programs, accounts and the index.
//!
//! Crash story: writes into the directory of the dump only, which is journalled.

use std::{fs, io::Write, path::Path};

use model::{
    port::{Failure, FailureKind},
    server::{ServerPosition, ServerVersion},
};

use super::{
    super::connect::Connection,
    catalog::Catalog,
    layout::{ACCOUNTS, DumpIndex, DumpedDatabase, DumpedTable, INDEX, file_name, rows_file},
    literal::string,
    pinner::Before,
    schema::{self, BEGIN},
    session::UNHURRIED,
    worker::{Dumped, Task, create, is_sequence},
};

/// A table and what became of it.
pub(super) struct Table {
    pub task: Task,
    pub dumped: Dumped,
}

/// What a dump is made of, once its rows are written.
pub(super) struct Content<'a> {
    pub root: &'a Path,
    pub version: &'a ServerVersion,
    pub position: &'a ServerPosition,
    pub catalog: &'a Catalog,
    pub tables: &'a [Table],
    pub programs: &'a Before,
}

/// Writes them.
///
/// # Errors
/// If the server cannot be asked or the files cannot be written.
pub(super) fn write(conn: &mut Connection, content: &Content<'_>) -> Result<DumpIndex, Failure> {
    let mut databases = Vec::with_capacity(content.catalog.databases.len());
    for (name, programs) in content.catalog.databases.iter().zip(&content.programs.programs) {
        let database = describe(conn, content, name)?;
        let [make, tables, routines, names, views] = database.files();
        let heading =
            format!("-- Stillpoint: database {} as it was at {}\n", comment(name), stood(content.position));
        let statements = schema::database(conn, name)?;
        put(content.root, &make, &[heading.as_bytes(), BEGIN.as_bytes(), statements.as_bytes()])?;
        put(content.root, &tables, &[BEGIN.as_bytes(), definitions(content, name).as_bytes()])?;
        let stand_ins = schema::view_names(conn, content.catalog, name)?;
        // The settings of their authors end with each of these.
        put(content.root, &routines, &[BEGIN.as_bytes(), &programs.routines, BEGIN.as_bytes()])?;
        put(content.root, &names, &[BEGIN.as_bytes(), stand_ins.as_bytes()])?;
        put(content.root, &views, &[BEGIN.as_bytes(), &programs.sql, BEGIN.as_bytes()])?;
        databases.push(database);
    }
    if let Some(accounts) = &content.programs.accounts {
        put(content.root, ACCOUNTS, &[BEGIN.as_bytes(), &accounts.sql])?;
    }
    let longest = content.tables.iter().filter_map(|t| t.dumped.written).map(|w| w.longest).max();
    let index = DumpIndex {
        format: 1,
        version: content.version.clone(),
        position: content.position.clone(),
        databases,
        accounts: content.programs.accounts.is_some(),
        longest_statement: longest.unwrap_or(0),
    };
    let text = serde_json::to_vec_pretty(&index).map_err(|error| {
        Failure::new(FailureKind::Other, "the index of the dump cannot be written", "").because(error)
    })?;
    put(content.root, INDEX, &[&text, b"\n"])?;
    Ok(index)
}

fn describe(conn: &mut Connection, content: &Content<'_>, name: &str) -> Result<DumpedDatabase, Failure> {
    let sql = format!(
        "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA \
         WHERE SCHEMA_NAME = {}",
        string(name)
    );
    let row = conn.row(&sql, UNHURRIED)?;
    let own = content.tables.iter().filter(|t| t.task.table.database == name && t.dumped.missing.is_none());
    let tables = own.map(|Table { task, dumped }| DumpedTable {
        name: task.table.name.clone(),
        file: dumped.written.map(|_| rows_file(name, &task.table.name)),
        rows: dumped.written.map_or(0, |written| written.rows),
        history: dumped.history,
        sequence: is_sequence(&task.table),
    });
    Ok(DumpedDatabase {
        name: name.to_owned(),
        directory: file_name(name),
        charset: row.text(0),
        collation: row.text(1),
        tables: tables.collect(),
    })
}

/// Sequences first: defaults of columns may use them.
fn definitions(content: &Content<'_>, database: &str) -> String {
    let own =
        || content.tables.iter().filter(|t| t.task.table.database == database && t.dumped.missing.is_none());
    let sequences = own().filter(|t| is_sequence(&t.task.table));
    let tables = own().filter(|t| !is_sequence(&t.task.table));
    sequences.chain(tables).map(|t| t.dumped.create.as_str()).collect()
}

/// Where the server stood, for people.
fn stood(position: &ServerPosition) -> String {
    let mut text = match &position.binlog {
        Some(place) => place.to_string(),
        None => "the cut; it writes no binary log".to_owned(),
    };
    if let Some(gtid) = &position.gtid {
        text.push_str(&format!(", GTID {}", comment(&gtid.0)));
    }
    comment(&text)
}

/// Nothing in a comment may end it.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn put(root: &Path, name: &str, parts: &[&[u8]]) -> Result<(), Failure> {
    let path = root.join(name);
    let written = create(&path).and_then(|mut file| parts.iter().try_for_each(|part| file.write_all(part)));
    written.map_err(|error| {
        let kind = if os::staging::is_no_space(&error) { FailureKind::NoSpace } else { FailureKind::Other };
        Failure::new(
            kind,
            format!("{} cannot be written", path.display()),
            "see that the partition has space",
        )
        .because(error)
    })
}

/// Reads the index of a dump.
///
/// # Errors
/// If it is not there, or of a later version.
pub fn read_index(root: &Path) -> Result<DumpIndex, Failure> {
    let path = root.join(INDEX);
    let text = fs::read(&path).map_err(|error| {
        let what = format!("there is no dump at {}", root.display());
        Failure::new(FailureKind::Damaged, what, "restore an older backup").because(error)
    })?;
    let index: DumpIndex = serde_json::from_slice(&text).map_err(|error| {
        let what = format!("{} is not the index of a dump", path.display());
        Failure::new(FailureKind::Damaged, what, "restore an older backup").because(error)
    })?;
    if index.format != 1 {
        let what =
            format!("{} is of format {}, which this version does not know", path.display(), index.format);
        return Err(Failure::new(FailureKind::Refused, what, "use a later version of stillpoint"));
    }
    Ok(index)
}
