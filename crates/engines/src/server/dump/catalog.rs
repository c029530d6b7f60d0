//! What there is to dump: databases, their tables with engines and columns.
//!
//! Crash story: reads only.

use std::collections::BTreeMap;

use super::{
    super::{connect::Connection, error::ServerError, row::Row},
    literal::{Shape, name, string},
    session::rows,
};

/// Databases of the server itself: `mysql` holds accounts, which are dumped as statements.
pub(super) const OWN: [&str; 4] = ["information_schema", "performance_schema", "mysql", "sys"];

/// What a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rows.
    Base,
    /// Rows with their history (MariaDB).
    Versioned,
    /// A sequence (MariaDB).
    Sequence,
    /// A view.
    View,
}

/// A table of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub database: String,
    pub name: String,
    pub kind: Kind,
    pub engine: String,
    /// Its rows belong to the transaction's snapshot.
    pub transactional: bool,
    /// Bytes of its rows as the server estimates them.
    pub bytes: u64,
}

impl Table {
    /// In backticks, with its database.
    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", name(&self.database), name(&self.name))
    }

    /// For messages.
    pub(super) fn plain(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }

    /// Whether it has rows of its own.
    pub(super) fn has_rows(&self) -> bool {
        matches!(self.kind, Kind::Base | Kind::Versioned)
    }
}

/// What there is to dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Catalog {
    /// In order.
    pub databases: Vec<String>,
    /// Ordered by database and name.
    pub tables: Vec<Table>,
}

impl Catalog {
    /// Looks at these databases, or at all but the server's own.
    ///
    /// # Errors
    /// What the server says.
    pub(super) fn read(conn: &mut Connection, wanted: &[String]) -> Result<Self, ServerError> {
        let databases = databases(conn, wanted)?;
        let engines = engines(conn)?;
        let mut tables = Vec::new();
        for database in &databases {
            let sql = format!(
                "SELECT TABLE_NAME, TABLE_TYPE, ENGINE, DATA_LENGTH FROM information_schema.TABLES \
                 WHERE TABLE_SCHEMA = {} AND TABLE_TYPE NOT LIKE '%TEMPORARY%'",
                string(database)
            );
            tables.extend(rows(conn, &sql)?.iter().map(|row| table(database, row, &engines)));
        }
        tables.sort_by(|a, b| (&a.database, &a.name).cmp(&(&b.database, &b.name)));
        Ok(Self { databases, tables })
    }

    /// Whether the server has exactly these databases and names now. Costs a look into the directories only, so it is
    /// done under the lock.
    ///
    /// # Errors
    /// What the server says.
    pub(super) fn names_are_the_same(
        &self,
        conn: &mut Connection,
        wanted: &[String],
    ) -> Result<bool, ServerError> {
        if databases(conn, wanted)? != self.databases {
            return Ok(false);
        }
        for database in &self.databases {
            let mut now: Vec<String> = rows(conn, &format!("SHOW TABLES FROM {}", name(database)))?
                .iter()
                .map(|row| row.text(0))
                .collect();
            now.sort();
            let known = self.tables.iter().filter(|t| t.database == *database).map(|t| &t.name);
            if !known.eq(now.iter()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn databases(conn: &mut Connection, wanted: &[String]) -> Result<Vec<String>, ServerError> {
    let all = rows(conn, "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA")?;
    let is_wanted = |name: &String| if wanted.is_empty() { !is_own(name) } else { wanted.contains(name) };
    let mut found: Vec<String> = all.iter().map(|row| row.text(0)).filter(is_wanted).collect();
    found.sort();
    Ok(found)
}

fn is_own(name: &str) -> bool {
    // `#mysql50#lost+found` and the like: directories that are no databases.
    OWN.iter().any(|own| own.eq_ignore_ascii_case(name)) || name.starts_with("#mysql50#")
}

fn engines(conn: &mut Connection) -> Result<BTreeMap<String, bool>, ServerError> {
    let known = rows(conn, "SELECT ENGINE, TRANSACTIONS FROM information_schema.ENGINES")?;
    Ok(known.iter().map(|row| (row.text(0).to_ascii_lowercase(), row.text(1) == "YES")).collect())
}

fn table(database: &str, row: &Row, engines: &BTreeMap<String, bool>) -> Table {
    let engine = row.text(2);
    let kind = match row.text(1).as_str() {
        "VIEW" | "SYSTEM VIEW" => Kind::View,
        "SEQUENCE" => Kind::Sequence,
        "SYSTEM VERSIONED" => Kind::Versioned,
        _ => Kind::Base,
    };
    // What an unknown engine does is not known to be in a snapshot.
    let transactional = engines.get(&engine.to_ascii_lowercase()).copied().unwrap_or(false);
    Table {
        database: database.to_owned(),
        name: row.text(0),
        kind,
        engine,
        transactional: transactional || kind == Kind::View,
        bytes: row.number(3).unwrap_or(0),
    }
}

/// A column whose values are dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// In backticks.
    pub quoted: String,
    pub shape: Shape,
}

/// The columns of a table that are dumped, and how its rows are ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    /// Without generated ones; with start and end of each row's life for a history.
    pub columns: Vec<Column>,
    /// A history is dumped too.
    pub history: bool,
    /// A history is there that cannot be dumped, for this reason.
    pub no_history: Option<&'static str>,
    /// Columns of the primary key, in backticks.
    pub key: Vec<String>,
}

impl Columns {
    /// Looks at the columns of a table. `keeps_history` says whether this server can load a history.
    ///
    /// # Errors
    /// What the server says.
    pub(super) fn read(
        conn: &mut Connection,
        table: &Table,
        keeps_history: bool,
    ) -> Result<Self, ServerError> {
        let of =
            format!("TABLE_SCHEMA = {} AND TABLE_NAME = {}", string(&table.database), string(&table.name));
        let listed = rows(
            conn,
            &format!(
                "SELECT COLUMN_NAME, DATA_TYPE, CHARACTER_SET_NAME, EXTRA, GENERATION_EXPRESSION \
                 FROM information_schema.COLUMNS WHERE {of} ORDER BY ORDINAL_POSITION"
            ),
        )?;
        let key = rows(
            conn,
            &format!(
                "SELECT COLUMN_NAME FROM information_schema.STATISTICS WHERE {of} AND INDEX_NAME = 'PRIMARY' \
                 ORDER BY SEQ_IN_INDEX"
            ),
        )?;
        let mut columns: Vec<Column> = listed.iter().filter(|row| !is_generated(row)).map(column).collect();
        let (mut history, mut no_history) = (false, None);
        if table.kind == Kind::Versioned {
            match life(&listed) {
                Err(why) => no_history = Some(why),
                Ok(_) if !keeps_history => no_history = Some("only MariaDB 10.11 and later can load one"),
                Ok(life) => {
                    history = true;
                    columns.extend(life);
                }
            }
        }
        Ok(Self { columns, history, no_history, key: key.iter().map(|row| name(&row.text(0))).collect() })
    }
}

fn column(row: &Row) -> Column {
    let charset = row.given(2);
    Column { quoted: name(&row.text(0)), shape: Shape::of(&row.text(1), charset.as_deref()) }
}

fn is_generated(row: &Row) -> bool {
    // Not MySQL's DEFAULT_GENERATED, which only means that the default is an expression.
    let extra = row.text(3).to_ascii_uppercase();
    ["VIRTUAL GENERATED", "STORED GENERATED", "PERSISTENT GENERATED"].iter().any(|mark| extra.contains(mark))
        || extra.split_ascii_whitespace().any(|word| word == "PERSISTENT" || word == "VIRTUAL")
}

/// The two columns that say from when to when a row was current.
fn life(listed: &[Row]) -> Result<[Column; 2], &'static str> {
    let find = |mark: &str, implicit: &str| {
        let declared = listed.iter().find(|row| row.text(4).eq_ignore_ascii_case(mark));
        match declared {
            Some(row) if row.text(1) == "timestamp" => Ok(column(row)),
            Some(_) => Err("it is kept by transaction numbers, which mean nothing elsewhere"),
            None => Ok(Column { quoted: name(implicit), shape: Shape::Moment }),
        }
    };
    Ok([find("ROW START", "row_start")?, find("ROW END", "row_end")?])
}
