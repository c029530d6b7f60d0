//! The judge of a copy.

use std::{collections::BTreeMap, fs, path::Path};

use mysql::{Conn, Row, prelude::Queryable};
use sha2::{Digest, Sha256};

/// A writer has at most this many files without a row at any instant: one that it has written and not entered
/// yet, and one whose row it has deleted.
const FILES_WITHOUT_ROW: usize = 2;

/// What was found in a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that name a file.
    pub entries: u64,
    /// Entries ever committed, deleted ones included.
    pub committed: u64,
    /// Files without a row.
    pub files_without_row: usize,
    /// Whether there was a MyRocks table, too.
    pub rocksdb: bool,
    /// What cannot have been so at any one instant; at most a few of each kind.
    pub faults: Vec<String>,
}

impl Report {
    /// Fails the test unless the copy is of one instant and not empty.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_sound(&self) {
        assert!(self.faults.is_empty(), "the copy is not of one instant: {self:#?}");
        assert!(self.entries > 0, "the copy is empty: {self:?}");
    }
}

/// Checks a copy: the database behind this connection against the files in this directory.
///
/// # Panics
/// If a table of the ledger cannot be read.
#[must_use]
pub fn verify(connection: &mut Conn, files: &Path) -> Report {
    let mut report = Report::default();
    check_files(connection, files, &mut report);
    check_journal(connection, &mut report);
    check_sequences(connection, &mut report);
    check_sums(connection, &mut report);
    report
}

fn ask<T: mysql::prelude::FromRow>(connection: &mut Conn, sql: &str) -> Vec<T> {
    connection.query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn count(connection: &mut Conn, sql: &str) -> u64 {
    ask::<Option<u64>>(connection, sql).into_iter().next().flatten().unwrap_or(0)
}

fn check_files(connection: &mut Conn, files: &Path, report: &mut Report) {
    let rows: Vec<(u32, String, String)> =
        ask(connection, "SELECT writer, upload, sha256 FROM ledger.entry ORDER BY writer, seq");
    report.entries = rows.len() as u64;
    let mut named: BTreeMap<u32, usize> = BTreeMap::new();
    for (writer, upload, hash) in rows {
        *named.entry(writer).or_default() += 1;
        match fs::read(files.join(&upload)) {
            Err(error) => tell(report, "row without its file", &format!("{upload}: {error}")),
            Ok(bytes) if hex::encode(Sha256::digest(&bytes)) != hash => {
                tell(report, "file with other bytes", &format!("{upload}, {} bytes", bytes.len()));
            }
            Ok(_) => {}
        }
    }
    for (writer, rows) in named {
        let there = fs::read_dir(files.join(format!("w{writer}"))).map_or(0, Iterator::count);
        let more = there.saturating_sub(rows);
        report.files_without_row += more;
        if more > FILES_WITHOUT_ROW {
            tell(report, "files without a row", &format!("writer {writer}: {more}"));
        }
    }
}

fn check_journal(connection: &mut Conn, report: &mut Report) {
    report.committed = count(connection, "SELECT COUNT(*) FROM ledger.journal");
    let unequal = "SELECT COUNT(*) FROM ledger.journal j LEFT JOIN ledger.entry e USING (writer, seq) \
                   WHERE j.live <> (e.writer IS NOT NULL) OR e.sha256 <> j.sha256";
    let without = "SELECT COUNT(*) FROM ledger.entry e LEFT JOIN ledger.journal j USING (writer, seq) \
                   WHERE j.writer IS NULL";
    let behind = "SELECT COUNT(*) FROM ledger.writer w \
                  WHERE w.seq <> (SELECT MAX(seq) FROM ledger.journal j WHERE j.writer = w.writer)";
    for (sql, what) in [
        (unequal, "entries that contradict the journal"),
        (without, "entries without journal"),
        (behind, "writers whose number is not the journal's last"),
    ] {
        let found = count(connection, sql);
        if found > 0 {
            tell(report, what, &found.to_string());
        }
    }
}

/// No table has a hole, and each is level with the InnoDB journal or one entry ahead, in the order of writing.
fn check_sequences(connection: &mut Conn, report: &mut Report) {
    let mut newest: Vec<BTreeMap<u32, u64>> = Vec::new();
    for table in ["journal", "aria1", "aria0", "myisam"] {
        let sql = format!("SELECT writer, COUNT(*), MAX(seq) FROM ledger.{table} GROUP BY writer");
        let rows: Vec<(u32, u64, u64)> = ask(connection, &sql);
        for (writer, rows, last) in &rows {
            if rows != last {
                tell(report, "holes", &format!("{table}, writer {writer}: {rows} rows up to {last}"));
            }
        }
        newest.push(rows.into_iter().map(|(writer, _, last)| (writer, last)).collect());
        let sql = format!(
            "SELECT COUNT(*) FROM ledger.{table} t JOIN ledger.journal j USING (writer, seq) \
             WHERE t.sha256 <> j.sha256"
        );
        let unequal = count(connection, &sql);
        if unequal > 0 {
            tell(report, "rows with other hashes than the journal's", &format!("{table}: {unequal}"));
        }
    }
    for writer in newest[3].keys() {
        let last: Vec<u64> = newest.iter().map(|table| table.get(writer).copied().unwrap_or(0)).collect();
        let in_order = last.is_sorted() && last[3] <= last[0] + 1;
        if !in_order {
            let text = format!("writer {writer}: journal, aria1, aria0, myisam end at {last:?}");
            tell(report, "tables of different instants", &text);
        }
    }
}

fn check_sums(connection: &mut Conn, report: &mut Report) {
    let tables: Vec<String> = ask(connection, "SHOW TABLES FROM ledger LIKE '%account'");
    report.rocksdb = tables.iter().any(|table| table == "rocks_account");
    let sums = tables.iter().map(|table| format!("(SELECT SUM(balance) FROM ledger.{table})"));
    let sql = format!("SELECT CAST({} AS SIGNED)", sums.collect::<Vec<_>>().join(" + "));
    let sum = ask::<Row>(connection, &sql).into_iter().next().and_then(|mut row| row.take::<i64, _>(0));
    if sum != Some(0) {
        tell(report, "sum of all accounts", &format!("{sum:?} over {tables:?}"));
    }
}

/// The first three of a kind are told in full.
fn tell(report: &mut Report, what: &str, detail: &str) {
    if report.faults.iter().filter(|fault| fault.starts_with(what)).count() < 3 {
        report.faults.push(format!("{what}: {detail}"));
    }
}
