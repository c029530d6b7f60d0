//! Spool and repository of one application as a [`LogShelf`].
//!
//! Crash story: see [`super`] and [`crate::logs`].

use model::{
    id::{BackupId, EpochId, SourceId},
    logs::SegmentRecord,
    logs_retention::LogsPlan,
    port::{Failure, Progress, Silent},
    port_shelf::{HeldLog, LogShelf, Shelved, Unproven},
};

use super::LogOwner;
use crate::{
    logs::{Catalogue, SourceLog, Spool, Tails},
    repository::Repository,
};

/// The log archive of one application, here and in its repository.
pub struct Archive<'a> {
    /// Its repository.
    pub repository: &'a mut Repository,
    /// What is here.
    pub spool: Spool,
    /// Whose it is.
    pub owner: LogOwner,
    /// How its segments are read.
    pub tails: Tails<'a>,
}

/// A log of a catalogue; `is_here` says which closed segments have their bytes there.
fn held(log: SourceLog, is_here: &dyn Fn(&SourceLog, &EpochId, u64) -> bool) -> HeldLog {
    let segments = log.epochs.iter().flat_map(|epoch| &epoch.segments);
    let closed = segments
        .filter(|segment| is_here(&log, &segment.epoch, segment.number))
        .map(|segment| (segment.epoch.clone(), segment.number))
        .collect();
    HeldLog { source: log.source, kind: log.kind, epochs: log.epochs, closed }
}

fn is_closed(log: &SourceLog, epoch: &EpochId, number: u64) -> bool {
    log.segment_path(epoch, number).is_some_and(|path| path.extension().is_some_and(|kind| kind == "seg"))
}

impl LogShelf for Archive<'_> {
    fn here(&mut self) -> Result<Vec<HeldLog>, Failure> {
        let catalogue = self.spool.catalogue(self.tails)?;
        Ok(catalogue.sources.into_iter().map(|log| held(log, &is_closed)).collect())
    }

    fn there(&mut self) -> Result<Option<Vec<HeldLog>>, Failure> {
        let stored = self.repository.log_catalogue()?;
        Ok(stored.map(|stored| {
            let whole = |log: &SourceLog, epoch: &EpochId, number| {
                let epoch = log.epochs.iter().find(|it| it.record.epoch == *epoch);
                epoch.is_none_or(|epoch| epoch.damaged.iter().all(|(damaged, _)| *damaged != number))
            };
            stored.catalogue.sources.into_iter().map(|log| held(log, &whole)).collect()
        }))
    }

    fn store(&mut self, progress: &dyn Progress) -> Result<Shelved, Failure> {
        let catalogue = self.spool.catalogue(self.tails)?;
        // What the repository has must not be lost here: the archive would go on from before it.
        self.spool.sync_open(&catalogue)?;
        let stored = self.repository.store_logs(&self.owner, &catalogue, &LogsPlan::default(), progress)?;
        Ok(Shelved {
            snapshot: stored.snapshot,
            is_new: stored.is_new,
            left: stored.left,
            problems: stored.problems,
        })
    }

    fn unproven(
        &mut self,
        source: &SourceId,
        segments: &[SegmentRecord],
    ) -> Result<(BackupId, Vec<Unproven>), Failure> {
        Ok(self.repository.unproven_logs(source, segments)?)
    }

    fn discard(
        &mut self,
        source: &SourceId,
        epoch: &EpochId,
        number: u64,
        stored_in: &BackupId,
    ) -> Result<(), Failure> {
        Ok(self.spool.discard(source, epoch, number, stored_in)?)
    }

    fn forget(&mut self, plan: &LogsPlan) -> Result<(), Failure> {
        let Some((snapshot, _)) = self.repository.log_record()? else { return Ok(()) };
        self.spool.forget(plan, &snapshot)?;
        // Nothing of the spool is stored here: it is all the same what it holds.
        self.repository.store_logs(&self.owner, &Catalogue::default(), plan, &Silent)?;
        Ok(())
    }
}
