//! A backup in memory, and a machine in memory that it is restored on.
//!
//! [`Script`] counts every call that changes or reads anything and lets one of them fail, or the run die
//! there: a dead run does nothing more, whatever is dropped, as after `kill -9`. What is left then is undone
//! from the journal by [`site::FakeSite::undo`], newest first.
//!
//! Crash story: in memory.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use model::{
    entry::Kind,
    port::{Failure, FailureKind, Journal},
    port_restore::{Contents, Sink, Tap},
    restore::Listing,
    time::Deadline,
    undo::{Ticket, Undo},
};

use super::journal::MemoryJournal;
use crate::faults::Injected;

pub mod site;

/// What goes wrong at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// It fails and does nothing.
    Fail(FailureKind),
    /// It and all later ones fail, until [`Script::heal`].
    FailFrom(FailureKind),
    /// It, and all later ones that touch the machine's files, fail, until [`Script::heal`].
    FilesFrom(FailureKind),
    /// The run dies before it: it panics with [`Injected`], and nothing is done any more.
    Kill,
}

/// Counts calls, and lets one of them go wrong.
#[derive(Debug, Default)]
pub struct Script {
    at: Option<(usize, Break)>,
    calls: Mutex<Vec<String>>,
    is_dead: AtomicBool,
    is_healed: AtomicBool,
}

impl Script {
    /// Call number `call`, counted from 0, goes wrong.
    #[must_use]
    pub fn at(call: usize, what: Break) -> Arc<Self> {
        Arc::new(Self { at: Some((call, what)), ..Self::default() })
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the run has died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.is_healed.store(true, Ordering::SeqCst);
    }

    /// One call.
    ///
    /// # Errors
    /// If it is to fail, or the run is dead.
    pub fn step(&self, name: &str) -> Result<(), Failure> {
        let failure = |kind| Err(Failure::new(kind, format!("ordered to fail in {name}"), "mend it"));
        if self.is_healed.load(Ordering::SeqCst) {
            return Ok(());
        }
        if self.is_dead() {
            return failure(FailureKind::Other);
        }
        let number = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls.push(name.to_owned());
            calls.len() - 1
        };
        match self.at {
            Some((at, Break::Fail(kind))) if at == number => failure(kind),
            Some((at, Break::FailFrom(kind))) if at <= number => failure(kind),
            Some((at, Break::FilesFrom(kind)))
                if at <= number
                    && ["site.", "beside.", "file."].iter().any(|part| name.starts_with(part)) =>
            {
                failure(kind)
            }
            Some((at, Break::Kill)) if at == number => {
                self.is_dead.store(true, Ordering::SeqCst);
                std::panic::panic_any(Injected)
            }
            _ => Ok(()),
        }
    }
}

/// A journal in memory whose calls are counted.
#[derive(Debug, Default)]
pub struct ScriptedJournal {
    /// What is open.
    pub inner: MemoryJournal,
    /// Who counts.
    pub script: Arc<Script>,
}

impl Journal for ScriptedJournal {
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure> {
        self.script.step("journal.intend")?;
        self.inner.intend(undo, until)
    }
    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure> {
        self.script.step("journal.amend")?;
        self.inner.amend(ticket, undo, until)
    }
    fn done(&self, ticket: Ticket) {
        if !self.script.is_dead() {
            self.inner.done(ticket);
        }
    }
}

/// A backup in memory, with faults to order.
#[derive(Debug, Default)]
pub struct MemoryBackup {
    /// Everything in it.
    pub listing: Listing,
    /// The bytes of each regular file.
    pub bytes: BTreeMap<PathBuf, Vec<u8>>,
    /// Files that fail after their first part.
    pub fail: BTreeMap<PathBuf, FailureKind>,
    /// Who counts the reading.
    pub script: Arc<Script>,
}

/// Files are handed over in parts of this size.
const PART: usize = 100_000;

impl MemoryBackup {
    fn file(&self, item: usize) -> Result<(&PathBuf, &Vec<u8>), Failure> {
        let entry = self.listing.entries().get(item).filter(|entry| entry.kind == Kind::File);
        entry
            .and_then(|entry| self.bytes.get_key_value(&entry.path))
            .ok_or_else(|| Failure::new(FailureKind::Other, "there is no such file in the backup", ""))
    }
}

impl Contents for MemoryBackup {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn read(&self, item: usize, range: Range<u64>, sink: &mut Sink<'_>) -> Result<(), Failure> {
        self.script.step("contents.read")?;
        let (path, bytes) = self.file(item)?;
        let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let mut parts = bytes[at(range.start)..at(range.end)].chunks(PART);
        if let Some(kind) = self.fail.get(path) {
            parts.next().map_or(Ok(()), &mut *sink)?;
            return Err(Failure::new(*kind, "ordered by the test", ""));
        }
        parts.try_for_each(sink)
    }

    fn matches(&self, item: usize, range: Range<u64>, tap: &mut Tap<'_>) -> Result<bool, Failure> {
        self.script.step("contents.matches")?;
        let (_, bytes) = self.file(item)?;
        let size = bytes.len() as u64;
        let (mut at, end) = (range.start, range.end.min(size));
        let mut buffer = vec![0; PART];
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(PART).min(PART);
            let length = tap(at, &mut buffer[..wanted])?;
            let from = usize::try_from(at).unwrap_or(usize::MAX);
            if length == 0 || bytes[from..from + length] != buffer[..length] {
                return Ok(false);
            }
            at += length as u64;
        }
        Ok(range.end < size || tap(size, &mut [0])? == 0)
    }
}

#[cfg(test)]
mod tests;
