//! Removing what no backup needs any more from the spool.
//!
//! Crash story: the repository forgets after the spool, so what is left half-done is in the next plan too. An epoch is no
//! epoch from the moment its record is gone.

use std::{fs, io, path::Path};

use model::{id::BackupId, logs_retention::LogsPlan};

use super::{LogsError, Spool, names};

/// Removes what a plan drops: whole epochs, and the closed segments before the first that stays, whose sidecars stay.
pub(super) fn forget(spool: &Spool, plan: &LogsPlan, stored_in: &BackupId) -> Result<(), LogsError> {
    for source in &plan.sources {
        for epoch in &source.epochs {
            let dir = spool.epoch_dir(&source.source, epoch);
            remove(&dir.join(names::EPOCH), |path| fs::remove_file(path))?;
            remove(&dir, |path| fs::remove_dir_all(path))?;
        }
        let Some((epoch, first)) = &source.from else { continue };
        let files = names::list(&spool.epoch_dir(&source.source, epoch))?;
        let (closed, described) =
            (names::numbers(&files, names::SEGMENT), names::numbers(&files, names::SIDECAR));
        for number in closed.into_iter().filter(|number| number < first && described.contains(number)) {
            spool.discard(&source.source, epoch, number, stored_in)?;
        }
    }
    Ok(())
}

fn remove(path: &Path, how: impl Fn(&Path) -> io::Result<()>) -> Result<(), LogsError> {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LogsError::io("removed", path)(error)),
        _ => Ok(()),
    }
}
