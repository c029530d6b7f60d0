//! What a database has besides tables: views, routines, triggers, events; and the accounts of a server.
//!
//! None of it belongs to a transaction, so it is read before the cut and again after it; what is equal both times was
//! so at the cut. Bodies are kept in the character set of their author and are written in those very bytes, with the
//! author's settings around them, as the vendor's own dumper does it.
//!
//! Crash story: reads only.

use super::{
    super::{connect::Connection, error::ServerError, row::Row},
    catalog::{Catalog, Kind},
    literal::{name, string},
    session::{plain_bytes, rows, run, utf8},
};

/// Statements, and what could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Programs {
    /// SQL; of a database: views, triggers and events.
    pub sql: Vec<u8>,
    /// SQL of routines, which views and triggers of any database may call.
    pub routines: Vec<u8>,
    /// What is missing, by name.
    pub unread: Vec<String>,
}

/// Ends each statement, since bodies hold semicolons.
const DELIMITER: &str = ";;";

/// The programs of a database.
///
/// # Errors
/// If the server cannot be asked. An object that cannot be read is named in the result.
pub(super) fn read(
    conn: &mut Connection,
    catalog: &Catalog,
    database: &str,
) -> Result<Programs, ServerError> {
    // Then a view names tables of its own database without that database.
    run(conn, &format!("USE {}", name(database)))?;
    let mut found = Programs::default();
    found.sql.extend_from_slice(format!("DELIMITER {DELIMITER}\n").as_bytes());
    let collation = collation_of(conn, database)?;
    let of = |column: &str, order: &str| format!("{column} = {} ORDER BY {order}", string(database));
    let routines = format!(
        "SELECT ROUTINE_TYPE, ROUTINE_NAME FROM information_schema.ROUTINES WHERE {}",
        of("ROUTINE_SCHEMA", "ROUTINE_TYPE, ROUTINE_NAME")
    );
    // A package's body comes after all packages: FUNCTION, PACKAGE, PACKAGE BODY, PROCEDURE.
    for row in rows(conn, &routines)? {
        found.add(conn, database, &row.text(0), &row.text(1), &collation)?;
    }
    found.routines = std::mem::take(&mut found.sql);
    found.routines.extend_from_slice(b"DELIMITER ;\n");
    found.sql.extend_from_slice(format!("DELIMITER {DELIMITER}\n").as_bytes());
    for view in catalog.tables.iter().filter(|t| t.database == database && t.kind == Kind::View) {
        found.add(conn, database, "VIEW", &view.name, &collation)?;
    }
    let triggers = format!(
        "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE {}",
        of("TRIGGER_SCHEMA", "EVENT_OBJECT_TABLE, ACTION_TIMING, EVENT_MANIPULATION, ACTION_ORDER")
    );
    for row in rows(conn, &triggers)? {
        found.add(conn, database, "TRIGGER", &row.text(0), &collation)?;
    }
    let events = format!(
        "SELECT EVENT_NAME FROM information_schema.EVENTS WHERE {}",
        of("EVENT_SCHEMA", "EVENT_NAME")
    );
    for row in rows(conn, &events)? {
        found.add(conn, database, "EVENT", &row.text(0), &collation)?;
    }
    found.sql.extend_from_slice(b"DELIMITER ;\n");
    Ok(found)
}

fn collation_of(conn: &mut Connection, database: &str) -> Result<String, ServerError> {
    let sql = format!(
        "SELECT DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}",
        string(database)
    );
    Ok(rows(conn, &sql)?.first().map(|row| row.text(0)).unwrap_or_default())
}

impl Programs {
    /// Reads one object and appends the statements that make it.
    fn add(
        &mut self,
        conn: &mut Connection,
        database: &str,
        kind: &str,
        object: &str,
        collation: &str,
    ) -> Result<(), ServerError> {
        let sql = format!("SHOW CREATE {kind} {}.{}", name(database), name(object));
        let row = match rows(conn, &sql) {
            Ok(found) => found.into_iter().next(),
            Err(error @ ServerError::Said { .. }) => {
                self.unread.push(format!("{} {database}.{object} ({error})", kind.to_lowercase()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match row.as_ref().and_then(|row| Some((row, body(row)?))) {
            Some((row, body)) => self.append(database, kind, object, row, body, collation),
            None => self.unread.push(format!(
                "{} {database}.{object} (its definition is not shown to this account)",
                kind.to_lowercase()
            )),
        }
        Ok(())
    }

    fn append(&mut self, database: &str, kind: &str, object: &str, row: &Row, body: &[u8], collation: &str) {
        let mut around = settings(row);
        let own = row.named(&["Database Collation"]).unwrap_or_default();
        let differs = !own.is_empty() && !collation.is_empty() && own != collation;
        if kind == "VIEW" {
            around.push_str(&format!("SET SESSION sql_mode=''{DELIMITER}\n"));
        }
        if differs {
            around.push_str(&format!("ALTER DATABASE {} COLLATE {own}{DELIMITER}\n", name(database)));
        }
        around.push_str(&format!("DROP {kind} IF EXISTS {}{DELIMITER}\n", name(object)));
        self.sql.extend_from_slice(around.as_bytes());
        self.sql.extend_from_slice(body);
        self.sql.extend_from_slice(format!("{DELIMITER}\n").as_bytes());
        if differs {
            let back = format!("ALTER DATABASE {} COLLATE {collation}{DELIMITER}\n", name(database));
            self.sql.extend_from_slice(back.as_bytes());
        }
    }
}

/// The definition in an answer of `SHOW CREATE`, whose columns differ from kind to kind.
fn body(row: &Row) -> Option<&[u8]> {
    const COLUMNS: [&str; 8] = [
        "Create View",
        "Create Function",
        "Create Procedure",
        "Create Package",
        "Create Package Body",
        "SQL Original Statement",
        "Create Event",
        "Create Table",
    ];
    COLUMNS.iter().find_map(|column| row.bytes(row.place(column)?))
}

/// The author's settings, without which the body would be read otherwise.
fn settings(row: &Row) -> String {
    let mut text = String::new();
    let mut set = |variable: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| is_word(value)) {
            text.push_str(&format!("SET SESSION {variable}='{value}'{DELIMITER}\n"));
        }
    };
    set("sql_mode", row.named(&["sql_mode"]));
    set("time_zone", row.named(&["time_zone"]));
    let client = row.named(&["character_set_client"]);
    set("character_set_client", client.clone());
    set("character_set_results", client);
    set("collation_connection", row.named(&["collation_connection"]));
    text
}

/// Names of modes, zones and character sets: nothing that needs an escape.
fn is_word(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_,:+-/".contains(&b))
}

/// A server's accounts and roles as statements. They are not part of any transaction.
///
/// # Errors
/// If the server cannot be asked. An account that cannot be read is named in the result.
pub(super) fn accounts(conn: &mut Connection, is_mariadb: bool) -> Result<Programs, ServerError> {
    utf8(conn)?;
    let mut found = Programs::default();
    let roles = if is_mariadb { "is_role" } else { "'N'" };
    let order = format!("SELECT User, Host, {roles} FROM mysql.user ORDER BY 3 DESC, 1, 2");
    let listed = rows(conn, &order)?;
    let is_role = |row: &Row| row.text(2) == "Y";
    for row in &listed {
        let user = string(&row.text(0));
        if is_role(row) {
            found.sql.extend_from_slice(format!("CREATE ROLE IF NOT EXISTS {user};\n").as_bytes());
        } else {
            let who = format!("{user}@{}", string(&row.text(1)));
            found.account(conn, &who)?;
        }
    }
    for row in &listed {
        let user = string(&row.text(0));
        let who = if is_role(row) { user } else { format!("{user}@{}", string(&row.text(1))) };
        found.grants(conn, &who)?;
    }
    plain_bytes(conn)?;
    Ok(found)
}

impl Programs {
    /// An account that is there already, such as the one that restores, keeps its password.
    fn account(&mut self, conn: &mut Connection, who: &str) -> Result<(), ServerError> {
        for line in self.shown(conn, &format!("SHOW CREATE USER {who}"), who)? {
            if let Some(rest) = line.strip_prefix("CREATE USER ") {
                self.sql.extend_from_slice(format!("CREATE USER IF NOT EXISTS {rest};\n").as_bytes());
            }
        }
        Ok(())
    }

    fn grants(&mut self, conn: &mut Connection, who: &str) -> Result<(), ServerError> {
        for line in self.shown(conn, &format!("SHOW GRANTS FOR {who}"), who)? {
            self.sql.extend_from_slice(format!("{line};\n").as_bytes());
        }
        Ok(())
    }

    fn shown(&mut self, conn: &mut Connection, sql: &str, who: &str) -> Result<Vec<String>, ServerError> {
        match rows(conn, sql) {
            Ok(lines) => Ok(lines.iter().map(|row| row.text(0)).collect()),
            Err(error @ ServerError::Said { .. }) => {
                self.unread.push(format!("account {who} ({error})"));
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }
}
