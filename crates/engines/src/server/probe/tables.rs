//! Which storage engines the tables of users are in, and which libraries the server has loaded.
//!
//! Crash story: reads only.

use model::server::{EngineUse, Flavor};

use super::super::{
    PATIENCE,
    connect::{Connection, quoted},
    error::ServerError,
};

/// With more tables than these in engines without transactions the slow lock is noticed: it closes those that are open, at
/// 0.2 to 0.3 ms each (seen: 3000 MyISAM and Aria tables took 0.5 to 1.0 s).
const MANY: u64 = 500;

/// Schemas that every server brings along.
const SYSTEM: &str = "'mysql', 'information_schema', 'performance_schema', 'sys'";

/// The engines of base tables outside the server's own schemas; only of `databases`, if any are named.
pub(super) fn engines(
    connection: &mut Connection,
    databases: &[String],
) -> Result<Vec<EngineUse>, ServerError> {
    let only = match databases {
        [] => String::new(),
        some => {
            let names: Vec<String> = some.iter().map(|name| quoted(name)).collect();
            format!(" AND t.TABLE_SCHEMA IN ({})", names.join(", "))
        }
    };
    let sql = format!(
        "SELECT t.ENGINE, COUNT(*), MAX(e.TRANSACTIONS) FROM information_schema.TABLES t \
         LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE \
         WHERE t.TABLE_SCHEMA NOT IN ({SYSTEM}) AND t.TABLE_TYPE NOT LIKE '%VIEW' AND t.ENGINE IS NOT NULL{only} \
         GROUP BY t.ENGINE ORDER BY t.ENGINE"
    );
    let rows = connection.rows(&sql, PATIENCE * 10)?;
    let engine = |row: &super::super::row::Row| EngineUse {
        name: row.text(0),
        tables: row.number(1).unwrap_or(0),
        transactional: row.text(2) == "YES",
    };
    Ok(rows.iter().map(engine).collect())
}

/// Databases that are named but not there.
pub(super) fn absent(connection: &mut Connection, databases: &[String]) -> Result<Vec<String>, ServerError> {
    let mut absent = vec![];
    for name in databases {
        let sql =
            format!("SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}", quoted(name));
        if connection.number(&sql, PATIENCE)? == 0 {
            absent.push(name.clone());
        }
    }
    Ok(absent)
}

/// Libraries of engines, encryption and other plugins that are active, such as `ha_rocksdb.so`.
pub(super) fn libraries(connection: &mut Connection) -> Result<Vec<String>, ServerError> {
    let sql = "SELECT DISTINCT PLUGIN_LIBRARY FROM information_schema.PLUGINS \
               WHERE PLUGIN_LIBRARY IS NOT NULL AND PLUGIN_STATUS = 'ACTIVE' ORDER BY 1";
    Ok(connection.rows(sql, PATIENCE)?.iter().map(|row| row.text(0)).collect())
}

/// What should be known of engines whose tables a copy of files does not hold as others.
pub(super) fn notes(engines: &[EngineUse], flavor: Flavor) -> Vec<String> {
    let mut notes = vec![];
    let plain: u64 = engines.iter().filter(|engine| !engine.transactional).map(|engine| engine.tables).sum();
    if plain > MANY && flavor == Flavor::MariaDb {
        notes.push(format!(
            "{plain} tables know no transactions: closing those that are open makes their writers wait, about 0.3 ms \
             for each; convert them to InnoDB, or lower table_open_cache"
        ));
    }
    for EngineUse { name, tables, .. } in engines {
        match name.to_ascii_uppercase().as_str() {
            "MEMORY" => notes.push(format!("{tables} MEMORY tables are empty in a copy, as after a restart")),
            "FEDERATED" | "SPIDER" | "CONNECT" | "S3" => {
                notes.push(format!(
                    "{tables} {name} tables have their rows elsewhere: these are not in the backup"
                ));
            }
            "MYISAM" | "CSV" | "ARCHIVE" | "MERGE" | "MRG_MYISAM" if flavor == Flavor::MariaDb => {
                notes.push(format!(
                    "{tables} {name} tables know no transactions: their writers wait from the slow lock on"
                ));
            }
            _ => {}
        }
    }
    notes
}
