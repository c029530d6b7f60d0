//! The helper role that writes to the guestbook: a new upload, then its row, then away with the upload that
//! it replaces; again and again, until its standard input ends.
//!
//! Crash story: see [`super::guestbook`]. The end of the pipe is the order to stop, so a writer never
//! outlives whoever started it, however that ends.

use std::{
    fs,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use rusqlite::{Connection, TransactionBehavior, params};

use super::guestbook::{Guestbook, GuestbookError, sha256, upload_name};

/// How many rows a writer keeps; after that it replaces uploads.
pub const ROWS: usize = 120;

/// Sizes of uploads in bytes.
const SIZES: std::ops::RangeInclusive<usize> = 2 * 1024..=48 * 1024;

/// Pauses between entries: without any, three writers would keep a small machine from doing anything else.
const PAUSES_MICROS: std::ops::RangeInclusive<u64> = 4_000..=30_000;

/// A row of this writer.
struct Row {
    id: i64,
    upload: String,
}

/// One writer.
struct Writer<'a> {
    guestbook: &'a Guestbook,
    database: Connection,
    number: u32,
    random: StdRng,
    next: u64,
    rows: Vec<Row>,
}

/// Writes until standard input ends.
///
/// # Errors
/// If an upload or a row cannot be written.
pub fn run(guestbook: &Guestbook, number: u32, seed: u64) -> Result<(), GuestbookError> {
    let ended = watch_input();
    let mut writer = Writer {
        guestbook,
        database: guestbook.connect()?,
        number,
        random: StdRng::seed_from_u64(seed.wrapping_add(u64::from(number))),
        next: 0,
        rows: Vec::new(),
    };
    while !ended.load(Ordering::SeqCst) {
        writer.write_entry()?;
        if writer.next == ROWS as u64 {
            super::say_full()?;
        }
        if writer.rows.len() == ROWS {
            let pause = writer.random.random_range(PAUSES_MICROS);
            thread::sleep(Duration::from_micros(pause));
        }
    }
    Ok(())
}

/// A flag that is set when standard input ends.
#[must_use]
pub fn watch_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&ended);
    thread::spawn(move || {
        let mut buffer = [0; 64];
        let mut input = io::stdin().lock();
        // An error is an end too: whoever started us can no longer be heard.
        while matches!(input.read(&mut buffer), Ok(1..)) {}
        set.store(true, Ordering::SeqCst);
    });
    ended
}

impl Writer<'_> {
    fn write_entry(&mut self) -> Result<(), GuestbookError> {
        let mut bytes = vec![0; self.random.random_range(SIZES)];
        self.random.fill_bytes(&mut bytes);
        let upload = upload_name(self.number, self.next);
        self.next += 1;
        fs::write(self.guestbook.uploads().join(&upload), &bytes)?;
        let replaced = if self.rows.len() < ROWS {
            self.insert(upload, &sha256(&bytes))?;
            None
        } else {
            Some(self.update(upload, &sha256(&bytes))?)
        };
        if let Some(name) = replaced {
            fs::remove_file(self.guestbook.uploads().join(name))?;
        }
        Ok(())
    }

    fn insert(&mut self, upload: String, sha256: &str) -> Result<(), GuestbookError> {
        let transaction = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(
            "INSERT INTO entry (writer, message, upload, sha256) VALUES (?1, ?2, ?3, ?4)",
            params![self.number, format!("greetings with {upload}"), upload, sha256],
        )?;
        let id = transaction.last_insert_rowid();
        transaction.commit()?;
        self.rows.push(Row { id, upload });
        Ok(())
    }

    /// Lets a row name the new upload; returns the name that it had before.
    fn update(&mut self, upload: String, sha256: &str) -> Result<String, GuestbookError> {
        let index = self.random.random_range(0..self.rows.len());
        let row = &mut self.rows[index];
        let transaction = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(
            "UPDATE entry SET message = ?1, upload = ?2, sha256 = ?3 WHERE id = ?4",
            params![format!("better: {upload}"), upload, sha256, row.id],
        )?;
        transaction.commit()?;
        Ok(std::mem::replace(&mut row.upload, upload))
    }
}
