//! The process that writes.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use mysql::{Conn, prelude::Queryable};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

use super::{LedgerOptions, make_tables};

/// Writes until standard input ends.
pub(super) fn run(options: &LedgerOptions) -> Result<(), String> {
    let mut connection = options.connect().map_err(|error| error.to_string())?;
    let rocksdb = make_tables(&mut connection).map_err(|error| error.to_string())?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..options.writers {
            let stop = &stop;
            scope.spawn(move || Writer { options, number, rocksdb }.write_until(stop));
        }
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

struct Writer<'a> {
    options: &'a LedgerOptions,
    number: u32,
    rocksdb: bool,
}

impl Writer<'_> {
    /// A lost connection or a killed server leaves it open what was committed: each new connection asks first.
    fn write_until(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut connection) = self.options.connect() else {
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            let _ = self.write_on(&mut connection, stop);
        }
    }

    fn write_on(&self, connection: &mut Conn, stop: &AtomicBool) -> mysql::Result<()> {
        let mine = self.number;
        let last: Option<u64> =
            connection.query_first(format!("SELECT seq FROM ledger.writer WHERE writer = {mine}"))?;
        let mut seq = last.unwrap_or(0);
        while !stop.load(Ordering::Relaxed) {
            seq += 1;
            self.enter(connection, seq)?;
            if seq.is_multiple_of(5) {
                self.delete(connection, seq)?;
            }
            thread::sleep(Duration::from_millis(self.options.pace_ms));
        }
        Ok(())
    }

    fn random(&self, seq: u64, what: u64) -> StdRng {
        StdRng::seed_from_u64(self.options.seed ^ (u64::from(self.number) << 48) ^ (what << 40) ^ seq)
    }

    fn upload(&self, seq: u64) -> (String, PathBuf) {
        let name = format!("w{}/{seq}.bin", self.number);
        (name.clone(), self.options.files.join(name))
    }

    /// File first, row last.
    fn enter(&self, connection: &mut Conn, seq: u64) -> mysql::Result<()> {
        let (mine, mut random) = (self.number, self.random(seq, 1));
        let size = if random.random_ratio(1, 50) { 400_000 } else { random.random_range(0..20_000) };
        let mut bytes = vec![0; size];
        random.fill_bytes(&mut bytes);
        let (upload, path) = self.upload(seq);
        fs::create_dir_all(path.parent().expect("a directory of the writer"))?;
        fs::write(&path, &bytes)?;
        let hash = hex::encode(Sha256::digest(&bytes));
        // They may be there already, if the connection was lost before the commit.
        for table in ["myisam", "aria0", "aria1"] {
            connection.query_drop(format!("REPLACE INTO ledger.{table} VALUES ({mine}, {seq}, '{hash}')"))?;
        }
        let (amount, to) = (random.random_range(1..1000), random.random_range(0..super::ACCOUNTS));
        let mut transaction = vec![
            format!("INSERT INTO ledger.journal VALUES ({mine}, {seq}, '{hash}', 1)"),
            format!("INSERT INTO ledger.entry VALUES ({mine}, {seq}, '{upload}', '{hash}')"),
            format!("REPLACE INTO ledger.writer VALUES ({mine}, {seq})"),
            format!("UPDATE ledger.left_account SET balance = balance - 2 * {amount} WHERE id = {mine}"),
        ];
        let rest = if self.rocksdb {
            let sql =
                format!("UPDATE ledger.rocks_account SET balance = balance + {amount} WHERE id = {mine}");
            transaction.push(sql);
            1
        } else {
            2
        };
        // Shared by all writers, so last: a row locked for long would stop them all.
        transaction.push(format!(
            "UPDATE ledger.right_account SET balance = balance + {rest} * {amount} WHERE id = {to}"
        ));
        commit(connection, &transaction)
    }

    /// Row first, file last: one of the last five, so none twice (a transaction that changes no row is in the binary
    /// log, but not in InnoDB's position).
    fn delete(&self, connection: &mut Conn, newest: u64) -> mysql::Result<()> {
        let (mine, old) = (self.number, newest - self.random(newest, 2).random_range(0..5));
        let transaction = [
            format!("DELETE FROM ledger.entry WHERE writer = {mine} AND seq = {old}"),
            format!("UPDATE ledger.journal SET live = 0 WHERE writer = {mine} AND seq = {old}"),
        ];
        commit(connection, &transaction)?;
        match fs::remove_file(self.upload(old).1) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn commit(connection: &mut Conn, statements: &[String]) -> mysql::Result<()> {
    connection.query_drop("BEGIN")?;
    statements.iter().try_for_each(|statement| connection.query_drop(statement))?;
    connection.query_drop("COMMIT")
}
