//! The helper role that copies the guestbook as ordinary practice does: the database first, whole and
//! correct by SQLite's own backup API (what `.backup` of the `sqlite3` program calls), then the files.
//!
//! Crash story: writes only into its own target directory, which the demo removes.

use std::{fs, io, time::Duration};

use rusqlite::{Connection, backup::Backup};

use super::guestbook::{Guestbook, GuestbookError};

/// Copies the guestbook into an empty directory. A file that vanishes meanwhile is left out, as `cp` does
/// after a word of complaint.
///
/// # Errors
/// If the database or a file cannot be copied.
pub fn copy(from: &Guestbook, to: &Guestbook) -> Result<(), GuestbookError> {
    fs::create_dir_all(to.uploads())?;
    copy_database(from, to)?;
    for entry in fs::read_dir(from.uploads())? {
        let entry = entry?;
        match fs::copy(entry.path(), to.uploads().join(entry.file_name())) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_database(from: &Guestbook, to: &Guestbook) -> Result<(), GuestbookError> {
    let source = from.connect()?;
    let mut target = Connection::open(to.database())?;
    let backup = Backup::new(&source, &mut target)?;
    // All pages in one step, as `.backup` does: between steps a writer would make it begin again.
    backup.run_to_completion(i32::MAX, Duration::from_millis(1), None)?;
    Ok(())
}
