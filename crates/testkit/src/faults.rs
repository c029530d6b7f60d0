//! Decorators that make any port fail, delay or panic at its n-th call.
//!
//! All decorators of one run share one [`Faults`], which counts every call of every port. Run once without a
//! fault to learn how many calls there are and what they are called; then run once for each call and fault.
//!
//! Crash story: an injected panic carries [`Injected`], so that it can be told from a real one.

mod logs;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{
    entry::{Harvest, Manifest},
    id::{BackupId, SourceId},
    known::Known,
    plan::HoldClass,
    port::{
        Clock, Difference, Draft, Failure, FailureKind, Frozen, Hold, Journal, Pin, Pinner, Progress, Store,
    },
    problem::Problem,
    record::{BackupRecord, CutRecord},
    time::Deadline,
    undo::{Ticket, Undo},
    verdict::Stillness,
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and does nothing. A guard whose end fails stays as it is: held, or pinned.
    Fail(FailureKind),
    /// The call does what it should and then fails.
    FailAfter(FailureKind),
    /// The call takes so much longer.
    Delay(Duration),
    /// The call panics before it does anything.
    Panic,
}

/// What an injected panic carries.
#[derive(Debug, Clone, Copy)]
pub struct Injected;

/// Counts calls, and lets one of them go wrong.
pub struct Faults {
    clock: Arc<dyn Clock>,
    calls: Mutex<Vec<String>>,
    at: Option<(usize, Fault)>,
}

impl Faults {
    /// Counts only.
    #[must_use]
    pub fn none(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, calls: Mutex::default(), at: None })
    }

    /// Lets call number `call`, counted from 0, go wrong.
    #[must_use]
    pub fn at(clock: Arc<dyn Clock>, call: usize, fault: Fault) -> Arc<Self> {
        Arc::new(Self { clock, calls: Mutex::default(), at: Some((call, fault)) })
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The call that went wrong.
    #[must_use]
    pub fn hit(&self) -> Option<String> {
        let (call, _) = self.at?;
        self.calls().get(call).cloned()
    }

    fn next(&self, name: &str) -> Option<Fault> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.push(name.to_owned());
        self.at.filter(|(call, _)| *call + 1 == calls.len()).map(|(_, fault)| fault)
    }

    fn run<T>(&self, name: &str, call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let failure = |kind| Err(Failure::new(kind, format!("injected {kind:?} in {name}"), ""));
        match self.next(name) {
            None => call(),
            Some(Fault::Fail(kind)) => failure(kind),
            Some(Fault::FailAfter(kind)) => call().and_then(|_| failure(kind)),
            Some(Fault::Delay(duration)) => {
                self.clock.sleep(duration);
                call()
            }
            Some(Fault::Panic) => std::panic::panic_any(Injected),
        }
    }

    /// The same for a call that consumes its guard, which an injected failure leaves as it is for ever.
    fn end<T>(
        &self,
        name: &str,
        guard: T,
        call: impl FnOnce(T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut guard = Some(guard);
        let outcome = self.run(name, || guard.take().map_or(Ok(()), call));
        if outcome.is_err() {
            std::mem::forget(guard);
        }
        outcome
    }
}

/// A port that may go wrong.
pub struct Faulty<T> {
    inner: T,
    faults: Arc<Faults>,
}

impl<T> Faulty<T> {
    /// Wraps a port.
    pub fn new(inner: T, faults: &Arc<Faults>) -> Self {
        Self { inner, faults: faults.clone() }
    }
}

impl<T: Hold> Hold for Faulty<T> {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn class(&self) -> HoldClass {
        self.inner.class()
    }
    fn sources(&self) -> Vec<SourceId> {
        self.inner.sources()
    }
    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        self.faults.run("hold.prepare", || self.inner.prepare())
    }
    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        let inner = self.faults.run("hold.freeze", || self.inner.freeze(until))?;
        Ok(Box::new(Faulty { inner, faults: self.faults.clone() }))
    }
}

impl Frozen for Faulty<Box<dyn Frozen>> {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        self.faults.run("frozen.prove", || self.inner.prove())
    }
    fn thaw(self: Box<Self>) -> Result<(), Failure> {
        self.faults.end("frozen.thaw", self.inner, |inner| inner.thaw())
    }
}

impl<T: Pinner> Pinner for Faulty<T> {
    fn source(&self) -> SourceId {
        self.inner.source()
    }
    fn prepare(&mut self, known: &Known) -> Result<Option<Manifest>, Failure> {
        self.faults.run("pinner.prepare", || self.inner.prepare(known))
    }
    fn more_ahead(&mut self, known: &Known) -> Option<Manifest> {
        self.inner.more_ahead(known)
    }
    fn round(&mut self) -> Result<Difference, Failure> {
        self.faults.run("pinner.round", || self.inner.round())
    }
    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        let inner = self.faults.run("pinner.pin", || self.inner.pin(until))?;
        Ok(Box::new(Faulty { inner, faults: self.faults.clone() }))
    }
}

impl Pin for Faulty<Box<dyn Pin>> {
    fn unchanged(&mut self, until: Deadline) -> Result<Stillness, Failure> {
        self.faults.run("pin.unchanged", || self.inner.unchanged(until))
    }
    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        self.faults.run("pin.harvest", || self.inner.harvest(progress))
    }
    fn release(self: Box<Self>) -> Result<(), Failure> {
        self.faults.end("pin.release", self.inner, |inner| inner.release())
    }
}

impl<T: Store> Store for Faulty<T> {
    fn known(&mut self) -> Result<Known, Failure> {
        self.faults.run("store.known", || self.inner.known())
    }
    fn store_ahead(&mut self, manifest: Arc<Manifest>, progress: &dyn Progress) -> Result<(), Failure> {
        self.faults.run("store.store_ahead", || self.inner.store_ahead(manifest, progress))
    }
    fn store(
        &mut self,
        manifest: Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, Failure> {
        self.faults.run("store.store", || self.inner.store(manifest, cut, progress))
    }
    fn publish(&mut self, draft: Draft, record: &BackupRecord) -> Result<BackupId, Failure> {
        self.faults.run("store.publish", || self.inner.publish(draft, record))
    }
}

impl<T: Journal> Journal for Faulty<Arc<T>> {
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure> {
        self.faults.run("journal.intend", || self.inner.intend(undo, until))
    }
    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure> {
        self.faults.run("journal.amend", || self.inner.amend(ticket, undo, until))
    }
    fn done(&self, ticket: Ticket) {
        self.inner.done(ticket);
    }
}
