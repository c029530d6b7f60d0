//! An SQLite database as of a moment in the place of the one that was restored from the backup.
//!
//! Crash story: it is made beside, checked and synced, and takes the place by renaming; what was restored is
//! no longer needed then.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use engines::sqlite::wal::replay;
use jiff::Timestamp;
use model::{
    id::SourceId,
    pathtext,
    port::{Failure, FailureKind, Hold},
    port_restore::{Lies, ServerTarget},
    problem::{Effect, Problem},
};

/// A base and what is replayed over it.
#[derive(Debug, Clone)]
pub struct Wal {
    /// The database.
    pub source: SourceId,
    /// The whole database at the beginning of the log.
    pub base: PathBuf,
    /// The segments, in order.
    pub segments: Vec<PathBuf>,
    /// All before the first transaction that was captured then or later.
    pub moment: Timestamp,
}

impl Wal {
    /// The database's original path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.source.as_str().split_once(':').map_or("", |(_, path)| path))
    }

    /// Puts the database of the moment in the place of the restored one, with its owner and mode.
    ///
    /// # Errors
    /// If it cannot be made or is not sound: the restored one is still there then.
    pub fn put(&self, place: &Path) -> Result<Problem, Failure> {
        let mut name = place.as_os_str().to_owned();
        name.push(".stillpoint-replayed");
        let beside = PathBuf::from(name);
        let reached = replay(&self.base, &self.segments, self.moment, &beside)?;
        take_the_place(&beside, place).map_err(|error| {
            let what = format!("{} cannot be replaced", pathtext::show(place));
            Failure::new(FailureKind::Other, what, "").because(error)
        })?;
        let last = reached.captured.map_or_else(|| "none".to_owned(), |time| time.to_string());
        let mut what = format!(
            "{} transactions of its log are replayed, the last captured at {last}",
            reached.transactions
        );
        if let Some(unchecked) = reached.unchecked {
            what.push_str(&format!("; not checked: {unchecked}"));
        }
        Ok(Problem::new(Effect::Note, None, what, "").of(&self.source))
    }
}

fn take_the_place(beside: &Path, place: &Path) -> io::Result<()> {
    if let Ok(old) = place.metadata() {
        fs::set_permissions(beside, fs::Permissions::from_mode(old.mode() & 0o7777))?;
        if rustix::process::geteuid().is_root() {
            chown(beside, Some(old.uid()), Some(old.gid()))?;
        }
    }
    fs::rename(beside, place)?;
    let parent = place.parent().unwrap_or(Path::new("/"));
    File::open(parent)?.sync_all()
}

/// The same in a restore in place: done on what was written beside, before anything is swapped.
pub struct WalTarget<'a>(pub &'a Wal);

impl ServerTarget for WalTarget<'_> {
    fn source(&self) -> SourceId {
        self.0.source.clone()
    }

    fn service(&self) -> Option<Box<dyn Hold>> {
        None
    }

    fn ready(&mut self, lies: &Lies<'_>) -> Result<Vec<Problem>, Failure> {
        let path = self.0.path();
        let place = lies(&path).ok_or_else(|| {
            let what = format!("{} is not in the backup", pathtext::show(&path));
            Failure::new(FailureKind::Refused, what, "restore with --to DIR")
        })?;
        Ok(vec![self.0.put(&place)?])
    }

    fn load(&mut self) -> Result<Vec<Problem>, Failure> {
        Ok(Vec::new())
    }

    fn put_back(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn check(&mut self) -> Result<Vec<Problem>, Failure> {
        Ok(Vec::new())
    }
}
