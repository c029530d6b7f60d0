//! Finding out what a database is like, without SQLite.
//!
//! Crash story: reads only; opening and closing a live database is harmless here, since this process holds no
//! POSIX lock on it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use model::{
    id::SourceId,
    plan::{JournalMode, Refusal, SqliteFacts},
    size::Bytes,
};
use os::{
    extents::{clone_works, extent_count},
    tree::resolve,
};
use rustix::fs::{Access, access, statfs};

use super::{
    error::EXCLUSIVE_REMEDY,
    header::{self, Found},
    locks::{self, LockHolder},
    names::{journal_of, shm_of, wal_of},
};

/// Filesystems shared with other machines on which SQLite's locks and shared memory cannot be relied upon
/// (<https://www.sqlite.org/faq.html#q5>): magic numbers of linux/magic.h and fs/smb.
const SHARED_FILESYSTEMS: [(u32, &str); 6] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0x5346_414f, "AFS"),
    (0x7375_7245, "Coda"),
];

/// How long an exclusive lock is waited for before it is taken for one that stays: the commit of a large
/// transaction in rollback mode, and the end of a VACUUM, keep it for seconds too.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// What the database at `path` is like, and in which of the directories `staging` a copy can be put: the first
/// into which it can be cloned, else the first that we can write to. Never fails: what is in the way is the
/// facts' refusal. Takes up to 5 s if somebody has locked the database exclusively.
#[must_use]
pub fn probe(source: SourceId, path: &Path, staging: &[PathBuf]) -> SqliteFacts {
    let mut facts = SqliteFacts {
        source,
        path: path.to_owned(),
        journal: JournalMode::Rollback,
        bytes: Bytes(0),
        wal_bytes: Bytes(0),
        extents: None,
        reflink: false,
        staging: None,
        refusal: None,
    };
    match look(&mut facts, staging) {
        Ok(refusal) => facts.refusal = refusal,
        Err(error) => {
            let missing = error.kind() == io::ErrorKind::NotFound;
            let what = if missing { "is not there".to_owned() } else { format!("cannot be read: {error}") };
            let remedy =
                if missing { "check `path` in the inventory" } else { "run as its owner or as root" };
            facts.refusal = refuse(&what, remedy);
        }
    }
    facts
}

fn refuse(what: &str, remedy: &str) -> Option<Refusal> {
    Some(Refusal { what: what.to_owned(), remedy: remedy.to_owned() })
}

fn look(facts: &mut SqliteFacts, staging: &[PathBuf]) -> io::Result<Option<Refusal>> {
    let real = resolve(&facts.path)?.real;
    let meta = fs::metadata(&real)?;
    if !meta.is_file() {
        let kind = if meta.is_dir() {
            "a directory"
        } else if meta.file_type().is_socket() {
            "a socket"
        } else {
            "a special file"
        };
        let remedy = "name the database file itself; a directory belongs into [[application.directory]]";
        return Ok(refuse(&format!("is {kind}, not a database file"), remedy));
    }
    let database = File::open(&real)?;
    facts.bytes = Bytes(meta.len());
    let header = match header::read(&database)? {
        Found::Database(header) => header,
        found => return Ok(foreign(found)),
    };
    facts.journal = header.journal;
    measure(facts, &database, &real)?;
    choose_staging(facts, &real, staging);
    if let Some(refusal) = shared_filesystem(&real)? {
        return Ok(Some(refusal));
    }
    if let Some(refusal) = not_writable(&real, facts.journal) {
        return Ok(Some(refusal));
    }
    Ok(locked_exclusively(&database)?.map(|holder| Refusal {
        what: format!("has been locked exclusively by {holder} for {} s", PATIENCE.as_secs()),
        remedy: EXCLUSIVE_REMEDY.into(),
    }))
}

fn foreign(found: Found) -> Option<Refusal> {
    match found {
        Found::TooNew(version) => refuse(
            &format!("is an SQLite database of the newer file format {version}"),
            "use a newer version of this program",
        ),
        Found::Foreign | Found::Database(_) => refuse(
            "not an SQLite database, or encrypted",
            "name it as part of a directory instead, with hooks or a process to hold, or have the application \
             export it",
        ),
    }
}

fn measure(facts: &mut SqliteFacts, database: &File, real: &Path) -> io::Result<()> {
    facts.extents = extent_count(database)?;
    match File::open(wal_of(real)) {
        Ok(wal) => {
            facts.wal_bytes = Bytes(wal.metadata()?.len());
            let more = extent_count(&wal)?;
            facts.extents = facts.extents.zip(more).map(|(database, wal)| database + wal);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

fn choose_staging(facts: &mut SqliteFacts, real: &Path, staging: &[PathBuf]) {
    let Some(directory) = real.parent() else { return };
    let cloning = staging.iter().find(|candidate| clone_works(directory, candidate));
    facts.reflink = cloning.is_some();
    let writable =
        |candidate: &&PathBuf| candidate.is_dir() && access(candidate.as_path(), Access::WRITE_OK).is_ok();
    facts.staging = cloning.or_else(|| staging.iter().find(writable)).cloned();
}

fn shared_filesystem(real: &Path) -> io::Result<Option<Refusal>> {
    // The magic numbers have 32 bits, the field that they stand in has a sign and as many bits as a word.
    let magic = statfs(real)?.f_type & 0xffff_ffff;
    let found = SHARED_FILESYSTEMS.iter().find(|(number, _)| i64::from(*number) == magic);
    Ok(found.and_then(|(_, name)| {
        refuse(
            &format!("lies on {name}, where SQLite's locks cannot be relied upon"),
            "move the database to a local filesystem, or back it up on the machine that serves it",
        )
    }))
}

fn not_writable(real: &Path, journal: JournalMode) -> Option<Refusal> {
    let remedy = "its lock needs write permission: run as its owner or as root";
    let can_write = |path: &Path| access(path, Access::WRITE_OK);
    if let Err(error) = can_write(real) {
        let error = io::Error::from(error);
        return refuse(&format!("cannot be locked, since it cannot be written to: {error}"), remedy);
    }
    // In WAL mode `-wal` and `-shm` have to be there or to be made; a hot journal has to be removed.
    let sidecars = match journal {
        JournalMode::Wal => [wal_of(real), shm_of(real)].iter().all(|path| can_write(path).is_ok()),
        JournalMode::Rollback => !journal_of(real).exists(),
    };
    let directory = real.parent().is_some_and(|parent| can_write(parent).is_ok());
    if sidecars || directory {
        return None;
    }
    refuse("cannot be locked, since nothing can be written in its directory", remedy)
}

/// Whoever keeps the database to himself. A commit locks exclusively too, but not at every look, not always
/// by the same process, and not for long.
fn locked_exclusively(database: &File) -> io::Result<Option<LockHolder>> {
    let first = locks::exclusive(database)?;
    let begun = Instant::now();
    while first.is_some() && begun.elapsed() < PATIENCE {
        thread::sleep(BETWEEN_LOOKS);
        if locks::exclusive(database)? != first {
            return Ok(None);
        }
    }
    Ok(first)
}
