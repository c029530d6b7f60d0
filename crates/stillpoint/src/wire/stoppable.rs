//! A store that begins no further step once somebody has asked us to stop.
//!
//! Crash story: it refuses before a step is begun, never within one, so everything that was begun is ended
//! and every guard is dropped on the way out.

use std::sync::Arc;

use model::{
    entry::Manifest,
    id::BackupId,
    known::Known,
    port::{Draft, Failure, Progress, Store},
    record::{BackupRecord, CutRecord},
};

use crate::{exit::Fault, signals::Interrupt};

/// A store with safe points.
pub struct Stoppable<'a> {
    /// The store.
    pub store: &'a mut dyn Store,
    /// Whether somebody asked.
    pub interrupt: &'a Interrupt,
}

impl Stoppable<'_> {
    fn safe_point(&self) -> Result<(), Failure> {
        if self.interrupt.is_asked() { Err(Fault::interrupted().failure) } else { Ok(()) }
    }
}

impl Store for Stoppable<'_> {
    fn known(&mut self) -> Result<Known, Failure> {
        self.safe_point()?;
        self.store.known()
    }

    fn store_ahead(&mut self, manifest: Arc<Manifest>, progress: &dyn Progress) -> Result<(), Failure> {
        self.safe_point()?;
        self.store.store_ahead(manifest, progress)
    }

    fn store(
        &mut self,
        manifest: Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, Failure> {
        self.safe_point()?;
        self.store.store(manifest, cut, progress)
    }

    fn publish(&mut self, draft: Draft, record: &BackupRecord) -> Result<BackupId, Failure> {
        // Everything is stored and compared: a backup is better than none, and this is the last write.
        self.store.publish(draft, record)
    }
}
