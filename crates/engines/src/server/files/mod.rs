//! Pinning a server's own files at the cut: [`FilesPinner`].
//!
//! A server's files lie in several directories ([`ServerRootPlan`]): data, redo and undo logs, Aria logs,
//! directories that links lead to. Each has a pinner of its own, a volume's snapshot or two passes of clones, and
//! this one makes a whole of them: one source, one answer, one record.
//!
//! What makes the whole a copy that opens: the commit block is held and the engines' logs were flushed under it
//! (the lock's part), and either one atomic snapshot has everything, or the server's process stands still from
//! before the first pin until after the last. A writer that is held may have writes under way in the kernel; each
//! of them is in the copy or is not, as after a loss of power at that moment.
//!
//! Database files are never carried over from a backup before by their times: a store to a mapped page (`tc.log`,
//! and whatever an engine maps) may move none. They are all read again, and their change times are too young to
//! be trusted by a later backup.
//!
//! Crash story: the inner pinners journal what they make. A pin that fails half-way releases what was pinned
//! before it returns; the first pass stays with the pinners for the next attempt.

mod keys;
mod pin;
mod writers;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use model::{
    entry::{Kind, Manifest},
    id::SourceId,
    known::Known,
    pathtext,
    plan::{PinPlan, ServerPlan, ServerRootPlan, VolumePlan},
    port::{Clock, Difference, Failure, FailureKind, Journal, Pin, Pinner},
    server::ServerPosition,
    size::Bytes,
    time::Deadline,
};
use os::tree::clock_of_stamps;

use self::{keys::KeyFile, pin::FilesPin, writers::Writers};
use super::Holder;
use crate::fs::{Form, Held, Limits, TreePinner, VolumePinner, Volumes};

/// How the files are pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesForm {
    /// By snapshots of the volumes that they lie on ([`model::plan::PinMethod::ServerVolumes`]).
    Volumes,
    /// By two passes of clones ([`model::plan::PinMethod::ServerReflink`]).
    Reflink,
}

/// What is asked of the lock under which the files are pinned.
pub trait CutLock: Send + Sync {
    /// The lock is held at this moment, as far as that can be told without asking the server, which may be stopped.
    fn is_locked(&self) -> bool;
    /// Where the server stands, read under the lock.
    fn position(&self) -> Option<ServerPosition>;
    /// After the thaw: how the server itself confirms that position.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`] if it contradicts itself; anything else if it cannot be asked.
    fn confirm_position(&self, within: Duration) -> Result<String, Failure>;
}

impl CutLock for Holder {
    fn is_locked(&self) -> bool {
        Holder::is_locked(self)
    }
    fn position(&self) -> Option<ServerPosition> {
        Holder::position(self)
    }
    fn confirm_position(&self, within: Duration) -> Result<String, Failure> {
        Holder::confirm_position(self, within)
    }
}

/// Pins all files of one server.
pub struct FilesPinner {
    source: SourceId,
    plan: Arc<ServerPlan>,
    form: FilesForm,
    lock: Arc<dyn CutLock>,
    /// One for each root.
    inner: Vec<Box<dyn Pinner>>,
    writers: Writers,
    clock: Arc<dyn Clock>,
}

impl FilesPinner {
    /// A pinner of the server's files, under the lock of `holder`. Servers and directories whose plans name the same
    /// volume share its snapshot through `volumes`; `held` tells who is frozen at the time of asking.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] for a plan that cannot give a whole copy: no roots, a root without its volume, or
    /// several pins without the server held.
    #[allow(clippy::too_many_arguments, reason = "everything a plan does not hold, each once")]
    pub fn new(
        pin: &PinPlan,
        plan: &ServerPlan,
        form: FilesForm,
        holder: impl CutLock + 'static,
        volumes: &Volumes,
        held: Held,
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
        let source = pin.source.clone();
        check(&source, plan, form)?;
        let make = Make { source: &source, form, volumes, held: &held, journal: &journal, clock: &clock };
        let inner = plan.roots.iter().map(|root| make.pinner(root)).collect::<Result<_, _>>()?;
        Ok(Self {
            writers: Writers::new(&source, plan, held),
            plan: Arc::new(plan.clone()),
            lock: Arc::new(holder),
            source,
            form,
            inner,
            clock,
        })
    }

    /// Shows that the lock is held and hands over where the server stands.
    fn locked(&self) -> Result<ServerPosition, Failure> {
        let lost = |what: &str| Failure::new(FailureKind::Lost, format!("{}: {what}", self.source), "");
        if !self.lock.is_locked() {
            return Err(lost("its lock is not held while its files are pinned"));
        }
        self.lock.position().ok_or_else(|| lost("nobody read its position under the lock"))
    }

    /// Waits until the kernel stamps files with another time (1 to 10 ms): what the server wrote just before it
    /// stood still would otherwise have the same time as a change after that, and be taken for one (seen).
    fn let_a_tick_pass(&self, until: Deadline) {
        let before = clock_of_stamps();
        while clock_of_stamps() <= before && !until.has_passed(self.clock.moment()) {
            self.clock.sleep(GLANCE);
        }
    }
}

/// How long is waited between two looks at the clock that stamps files.
const GLANCE: Duration = Duration::from_micros(200);

/// What a whole copy needs of the plan, whoever made it.
fn check(source: &SourceId, plan: &ServerPlan, form: FilesForm) -> Result<(), Failure> {
    let refused = |what: &str| {
        Err(Failure::new(FailureKind::Refused, format!("{source}: {what}"), "please report this plan"))
    };
    let mut volumes: Vec<_> = plan.roots.iter().filter_map(|root| root.volume.as_ref()).collect();
    volumes.sort();
    volumes.dedup();
    let several = form == FilesForm::Reflink || volumes.len() > 1;
    if plan.roots.is_empty() {
        refused("no directory of the server is to be pinned")
    } else if form == FilesForm::Volumes && plan.roots.iter().any(|root| root.volume.is_none()) {
        refused("a directory of the server has no volume to make a snapshot of")
    } else if several && !plan.server_held {
        refused("its files are to be pinned one after the other while it runs")
    } else {
        Ok(())
    }
}

/// What pinners of roots are made from.
struct Make<'a> {
    source: &'a SourceId,
    form: FilesForm,
    volumes: &'a Volumes,
    held: &'a Held,
    journal: &'a Arc<dyn Journal>,
    clock: &'a Arc<dyn Clock>,
}

impl Make<'_> {
    fn pinner(&self, root: &ServerRootPlan) -> Result<Box<dyn Pinner>, Failure> {
        let source = self.source.clone();
        let (journal, clock) = (Arc::clone(self.journal), Arc::clone(self.clock));
        if root.tree.root.is_file() {
            return Ok(Box::new(KeyFile::new(source, root.tree.root.clone(), clock)));
        }
        match (self.form, &root.volume) {
            (FilesForm::Volumes, Some(volume)) => {
                let plan = VolumePlan { tree: root.tree.clone(), volume: volume.clone(), size: root.size };
                let shared = self.volumes.share(volume, root.size);
                Ok(Box::new(VolumePinner::new(source, &plan, shared, clock)?))
            }
            _ => {
                let staging = root.staging.clone();
                let pinner = TreePinner::new(source, &root.tree, Form::Fast, staging, journal, clock)?;
                let all_cloned = Limits { ahead: Bytes(0), ..Limits::default() };
                Ok(Box::new(pinner.with_held(Arc::clone(self.held)).with_limits(all_cloned)))
            }
        }
    }
}

impl Pinner for FilesPinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn reuse(&mut self, spare: Arc<HashMap<PathBuf, PathBuf>>) {
        self.inner.iter_mut().for_each(|pinner| pinner.reuse(Arc::clone(&spare)));
    }

    /// Nothing is known of database files, whatever a backup before holds, so nothing is stored ahead either.
    fn prepare(&mut self, _known: &Known) -> Result<Option<Manifest>, Failure> {
        self.writers.look()?;
        for pinner in &mut self.inner {
            if let Some(manifest) = pinner.prepare(&Known::default())?
                && let Some(file) = manifest.entries.iter().find(|entry| entry.kind == Kind::File)
            {
                let what = format!("{}: {} cannot be cloned", self.source, pathtext::show(&file.path));
                let remedy = "keep the server's files on one filesystem that can clone (XFS, btrfs)";
                return Err(Failure::new(FailureKind::Refused, what, remedy));
            }
        }
        Ok(None)
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        let mut all = Difference::default();
        for pinner in &mut self.inner {
            let Difference { files, bytes } = pinner.round()?;
            all = Difference { files: all.files + files, bytes: all.bytes + bytes };
        }
        Ok(all)
    }

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        let position = self.locked()?;
        if self.plan.server_held {
            self.writers.are_held()?;
        }
        if self.form == FilesForm::Reflink {
            self.let_a_tick_pass(until);
        }
        let mut pins: Vec<Box<dyn Pin>> = Vec::with_capacity(self.inner.len());
        for pinner in &mut self.inner {
            match pinner.pin(until) {
                Ok(pin) => pins.push(pin),
                Err(failure) => return Err(given_up(failure, pins)),
            }
        }
        Ok(Box::new(FilesPin {
            source: self.source.clone(),
            plan: Arc::clone(&self.plan),
            form: self.form,
            writers: self.writers.clone(),
            clock: Arc::clone(&self.clock),
            lock: Arc::clone(&self.lock),
            position,
            pins,
        }))
    }

    fn rest(&mut self) {
        self.inner.iter_mut().for_each(|pinner| pinner.rest());
    }
}

/// Releases what was pinned before one failed. What is left of it stays in the journal.
fn given_up(mut failure: Failure, pins: Vec<Box<dyn Pin>>) -> Failure {
    for pin in pins {
        if let Err(left) = pin.release() {
            failure.what = format!("{}. Besides: {}", failure.what, left.in_full());
        }
    }
    failure
}
