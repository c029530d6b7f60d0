//! A store that begins no further step once somebody has asked us to stop, and ends a long one early.
//!
//! Crash story: what an unfinished step has written is in no index, or unlisted; the next run uses it again, or
//! `prune` removes it. Every guard is dropped on the way out.

use std::sync::Arc;

use model::{
    entry::Manifest,
    id::BackupId,
    known::Known,
    port::{Draft, Failure, Progress, Stage, Store},
    record::{BackupRecord, CutRecord},
    size::Bytes,
};

use crate::{exit::Fault, signals::Interrupt};

/// A store with safe points.
pub struct Stoppable<'a> {
    /// The store.
    pub store: &'a mut dyn Store,
    /// Whether somebody asked.
    pub interrupt: &'a Interrupt,
}

/// Progress that knows whether somebody asked.
struct Asking<'a> {
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
}

impl Progress for Asking<'_> {
    fn begin(&self, stage: Stage, total: Option<Bytes>) {
        self.progress.begin(stage, total);
    }

    fn advance(&self, bytes: Bytes) {
        self.progress.advance(bytes);
    }

    fn end(&self) {
        self.progress.end();
    }

    fn is_stopped(&self) -> bool {
        self.interrupt.is_asked()
    }
}

impl Stoppable<'_> {
    /// A step that failed after somebody asked has failed for that.
    fn explained<T>(&self, step: Result<T, Failure>) -> Result<T, Failure> {
        match step {
            Err(_) => self.safe_point().and(step),
            Ok(_) => step,
        }
    }

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
        let progress = Asking { progress, interrupt: self.interrupt };
        let stored = self.store.store_ahead(manifest, &progress);
        self.explained(stored)
    }

    fn store(
        &mut self,
        manifest: Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, Failure> {
        self.safe_point()?;
        let progress = Asking { progress, interrupt: self.interrupt };
        let stored = self.store.store(manifest, cut, &progress);
        self.explained(stored)
    }

    fn publish(&mut self, draft: Draft, record: &BackupRecord) -> Result<BackupId, Failure> {
        // Everything is stored and compared: a backup is better than none, and this is the last write.
        self.store.publish(draft, record)
    }
}
