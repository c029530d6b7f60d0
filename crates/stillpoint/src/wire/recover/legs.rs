//! Segments read for a plan, and made ready for a replay.
//!
//! Crash story: what is written lies in a directory of the caller's, which removes it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use engines::{
    server::{binlog, physical::Forward},
    sqlite::wal::heads,
};
use model::{
    id::EpochId,
    logs::LogPlace::{self, Binlog},
    pathtext,
    port::{Failure, FailureKind},
    recovery::{Leg, Recovery, Transaction},
    server::{BinlogPosition, Gtids},
};
use sha2::{Digest, Sha256};

use super::archive::{Archive, Log};

const READ_AHEAD: usize = 1 << 18;

/// Transactions of segments, each segment read once.
pub(super) struct Transactions<'a> {
    log: &'a Log,
    known: BTreeMap<(EpochId, u64), Vec<Transaction>>,
}

impl<'a> Transactions<'a> {
    pub(super) fn new(log: &'a Log) -> Self {
        Self { log, known: BTreeMap::new() }
    }

    /// All of a segment, in log order.
    ///
    /// # Errors
    /// If it is missing or cannot be read.
    pub(super) fn of(&mut self, archive: &mut Archive<'_>, leg: &Leg) -> Result<Vec<Transaction>, Failure> {
        let key = (leg.segment.epoch.clone(), leg.segment.number);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let path = archive.segment(self.log, &leg.segment.epoch, leg.segment.number)?;
        let found = read(&path, leg).map_err(|error| unreadable(leg, &path).because(error))?;
        self.known.insert(key, found.clone());
        Ok(found)
    }
}

fn read(path: &Path, leg: &Leg) -> io::Result<Vec<Transaction>> {
    let Binlog(from) = &leg.segment.from else { return read_wal(path, leg) };
    let file = BufReader::with_capacity(READ_AHEAD, File::open(path)?.take(leg.segment.bytes.0));
    let at = |offset: u64| place(from, leg.segment.lead, offset);
    binlog::Transactions::open(file)?
        .map(|one| {
            let one = one?;
            Ok(Transaction {
                from: at(one.start),
                to: at(one.end),
                time: one.time,
                gtid: one.gtid.map(|gtid| Gtids(gtid.to_string())),
            })
        })
        .collect()
}

/// The same of SQLite's log.
fn read_wal(path: &Path, leg: &Leg) -> io::Result<Vec<Transaction>> {
    let mut file = BufReader::with_capacity(READ_AHEAD, File::open(path)?.take(leg.segment.bytes.0));
    let mut from = leg.segment.from.clone();
    let mut all = Vec::new();
    for head in heads(&mut file)? {
        let to = LogPlace::SqliteWal(head.to);
        all.push(Transaction { from, to: to.clone(), time: head.captured, gtid: None });
        from = to;
    }
    Ok(all)
}

/// The place in the log of an offset in a segment's file.
pub(super) fn place(from: &BinlogPosition, lead: u64, offset: u64) -> LogPlace {
    let offset = from.offset + offset.saturating_sub(lead);
    Binlog(BinlogPosition { file: from.file.clone(), offset })
}

/// The segments of a recovery, each compared with its sidecar, in a directory of ours.
///
/// # Errors
/// If one is missing, or is not what its sidecar says.
pub(super) fn taken(
    archive: &mut Archive<'_>,
    log: &Log,
    recovery: &Recovery,
    dir: &Path,
) -> Result<Vec<PathBuf>, Failure> {
    let mut logs = Vec::new();
    for (number, leg) in recovery.legs.iter().enumerate() {
        let from = archive.segment(log, &leg.segment.epoch, leg.segment.number)?;
        let to = dir.join(format!("{number:08}"));
        fs::create_dir_all(dir).map_err(|error| unreadable(leg, dir).because(error))?;
        take(&from, &to, leg).map_err(|error| unreadable(leg, &from).because(error))?;
        logs.push(to);
    }
    Ok(logs)
}

/// The segments of a server's log as a replay reads them.
pub(super) fn forward(recovery: &Recovery, logs: Vec<PathBuf>) -> Forward {
    Forward {
        logs,
        start: recovery.start_offset,
        stop: recovery.stop_offset,
        what: format!("of {} from {} to {}", recovery.source, recovery.base.place, recovery.reached.place),
    }
}

/// Links a closed segment, copies what is described of an open one; either way its bytes are compared.
fn take(from: &Path, to: &Path, leg: &Leg) -> io::Result<()> {
    let is_open = from.extension().is_some_and(|extension| extension == "open");
    let mut copy =
        if is_open || fs::hard_link(from, to).is_err() { Some(File::create_new(to)?) } else { None };
    let mut file = File::open(if copy.is_some() { from } else { to })?.take(leg.segment.bytes.0);
    let (mut digest, mut buffer, mut left) = (Sha256::new(), vec![0; READ_AHEAD], leg.segment.bytes.0);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
        if let Some(copy) = &mut copy {
            copy.write_all(&buffer[..n])?;
        }
        left -= n as u64;
    }
    let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if left > 0 || found != leg.segment.sha256 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its bytes are not what was written (SHA-256)",
        ));
    }
    Ok(())
}

fn unreadable(leg: &Leg, path: &Path) -> Failure {
    let what = format!(
        "segment {} of epoch {} cannot be used ({})",
        leg.segment.number,
        leg.segment.epoch,
        pathtext::show(path)
    );
    Failure::new(FailureKind::Damaged, what, "restore a moment before it, or after the next backup")
}
