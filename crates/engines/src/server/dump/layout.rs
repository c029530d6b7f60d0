//! Where what stands in a dump: names of files, and the index of them all.
//!
//! ```text
//! index.json                    what is here, in which order it is loaded, how many rows
//! accounts.sql                  users, roles, grants (dumps of whole servers only)
//! {database}/0-database.sql     makes the database and uses it
//! {database}/1-tables.sql       sequences and tables
//! {database}/2-rows/{table}.sql
//! {database}/3-routines.sql
//! {database}/4-names.sql        views that mean nothing yet, so that views can refer to one another
//! {database}/5-views.sql        views, triggers, events
//! ```
//!
//! Only `0-database.sql` names the database, so that it can be loaded under another name. By hand: `cat` the files of
//! a database in this order into `mariadb` or `mysql`.
//!
//! Crash story: plain values, no effects.

use model::server::{ServerPosition, ServerVersion};
use serde::{Deserialize, Serialize};

/// The name of the index.
pub const INDEX: &str = "index.json";
/// The name of the file of accounts.
pub const ACCOUNTS: &str = "accounts.sql";

/// What stands in a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpIndex {
    /// 1; a reader refuses what it does not know.
    pub format: u32,
    /// Whose server, and which.
    pub version: ServerVersion,
    /// Where it stood at the cut.
    pub position: ServerPosition,
    /// The databases, in order.
    pub databases: Vec<DumpedDatabase>,
    /// `accounts.sql` is there.
    pub accounts: bool,
    /// Bytes of the longest statement: `max_allowed_packet` of the server that loads it must be larger.
    pub longest_statement: u64,
}

/// One database of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedDatabase {
    /// Its name.
    pub name: String,
    /// The directory of its files, relative to the index.
    pub directory: String,
    /// Default character set.
    pub charset: String,
    /// Default collation.
    pub collation: String,
    /// Its tables, sequences included, views not.
    pub tables: Vec<DumpedTable>,
}

/// One table of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedTable {
    /// Its name.
    pub name: String,
    /// The file of its rows, relative to the index; nothing for a sequence, or if its rows are not dumped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// How many rows.
    #[serde(default)]
    pub rows: u64,
    /// Past versions of rows are among them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub history: bool,
    /// It is a sequence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sequence: bool,
}

impl DumpedDatabase {
    /// Its files in the order of loading, but those of rows, which come between the second and the third.
    #[must_use]
    pub fn files(&self) -> [String; 5] {
        ["0-database", "1-tables", "3-routines", "4-names", "5-views"]
            .map(|name| format!("{}/{name}.sql", self.directory))
    }
}

/// A name as a file's: letters, digits, `_` and `-` stay, all other bytes are `%` and two digits. So no two names fall
/// together where case counts, none is hidden, none leaves its directory.
#[must_use]
pub(super) fn file_name(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    // A name of 64 characters has up to 256 bytes, three times as many escaped: more than a file's name may have.
    if text.len() > 200 {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        text.truncate(160);
        text.push_str(&format!("%{hash:016x}"));
    }
    text
}

/// The file of a table's rows, relative to the index.
#[must_use]
pub(super) fn rows_file(database: &str, table: &str) -> String {
    format!("{}/2-rows/{}.sql", file_name(database), file_name(table))
}

#[cfg(test)]
mod tests {
    use super::{DumpIndex, file_name, rows_file};

    #[test]
    fn names_cannot_leave_their_directory() {
        assert_eq!(file_name("../a.b"), "%2E%2E%2Fa%2Eb");
        assert_eq!(rows_file("hydro", "a b"), "hydro/2-rows/a%20b.sql");
        assert_ne!(file_name("%2F"), file_name("/"));
        let (one, other) = ("ä".repeat(64), format!("{}b", "ä".repeat(63)));
        assert!(file_name(&one).len() <= 200 && file_name(&one) != file_name(&other));
    }

    #[test]
    fn an_index_of_format_1_is_read() {
        let index: DumpIndex =
            serde_json::from_str(include_str!("../../../testdata/dump-index-1.json")).unwrap();
        let database = &index.databases[0];
        assert_eq!((index.format, index.longest_statement, index.accounts), (1, 262_200, false));
        assert_eq!(database.files()[0], "hydro/0-database.sql");
        assert_eq!(
            (database.tables[1].rows, database.tables[1].file.as_deref()),
            (12, Some("hydro/2-rows/a%20b.sql"))
        );
        assert!(database.tables[0].sequence && database.tables[2].history);
        assert_eq!(index.position.binlog.as_ref().unwrap().offset, 1930);
    }
}
