//! Compares the rows of a copied guestbook with its files.
//!
//! Crash story: reads a copy that nobody else uses; changes nothing that matters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use serde::Serialize;

use super::guestbook::{Guestbook, GuestbookError, sha256, writer_of};

/// What a copy holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Rows in the database.
    pub rows: u64,
    /// Uploaded files.
    pub files: u64,
    /// Rows without their file.
    pub rows_without_file: u64,
    /// Rows whose file has other bytes.
    pub rows_with_other_bytes: u64,
    /// Files without a row.
    pub files_without_row: u64,
    /// The most files without a row that one writer has: one may be in flight.
    pub most_in_flight: u64,
    /// SQLite finds the database whole.
    pub database_whole: bool,
}

impl Tally {
    /// What is not as any one instant of the application was.
    #[must_use]
    pub fn mismatches(&self) -> u64 {
        self.rows_without_file
            + self.rows_with_other_bytes
            + self.most_in_flight.saturating_sub(1)
            + u64::from(!self.database_whole)
    }
}

/// Checks every row of a copy against its file, and every file against the rows.
///
/// # Errors
/// If the database cannot be opened, or a file that is there cannot be read.
pub fn check(copy: &Guestbook) -> Result<Tally, GuestbookError> {
    let database = copy.open_copy()?;
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    let mut tally = Tally { database_whole: verdict == "ok", ..Tally::default() };
    let mut statement = database.prepare("SELECT upload, sha256 FROM entry")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut named = BTreeSet::new();
    for row in rows {
        let (upload, expected) = row?;
        tally.rows += 1;
        match fs::read(copy.uploads().join(&upload)) {
            Ok(bytes) if sha256(&bytes) == expected => {}
            Ok(_) => tally.rows_with_other_bytes += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => tally.rows_without_file += 1,
            Err(error) => return Err(error.into()),
        }
        named.insert(upload);
    }
    count_files(copy, &named, &mut tally)?;
    Ok(tally)
}

fn count_files(copy: &Guestbook, named: &BTreeSet<String>, tally: &mut Tally) -> io::Result<()> {
    let mut in_flight: BTreeMap<Option<u32>, u64> = BTreeMap::new();
    for entry in fs::read_dir(copy.uploads())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        tally.files += 1;
        if !named.contains(&name) {
            tally.files_without_row += 1;
            *in_flight.entry(writer_of(&name)).or_default() += 1;
        }
    }
    tally.most_in_flight = in_flight.into_values().max().unwrap_or(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::params;

    use super::check;
    use crate::demo::guestbook::{Guestbook, sha256, upload_name};

    #[test]
    fn every_kind_of_mismatch_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let book = Guestbook::at(dir.path());
        book.create().unwrap();
        let add = |number: u64, bytes: &[u8]| {
            let upload = upload_name(1, number);
            fs::write(book.uploads().join(&upload), bytes).unwrap();
            book.connect()
                .unwrap()
                .execute(
                    "INSERT INTO entry (writer, message, upload, sha256) VALUES (1, '', ?1, ?2)",
                    params![upload, sha256(bytes)],
                )
                .unwrap();
        };
        for number in 0..4 {
            add(number, &[7; 9]);
        }
        assert_eq!(check(&book).unwrap().mismatches(), 0);

        fs::write(book.uploads().join(upload_name(1, 9)), "in flight").unwrap();
        assert_eq!(check(&book).unwrap().mismatches(), 0, "one upload in flight is no mismatch");

        fs::write(book.uploads().join(upload_name(1, 10)), "another").unwrap();
        fs::write(book.uploads().join(upload_name(1, 0)), "other bytes").unwrap();
        fs::remove_file(book.uploads().join(upload_name(1, 1))).unwrap();
        let tally = check(&book).unwrap();
        assert_eq!((tally.rows, tally.files), (4, 5));
        assert_eq!((tally.rows_without_file, tally.rows_with_other_bytes), (1, 1));
        assert_eq!((tally.files_without_row, tally.mismatches()), (2, 3));
    }
}
