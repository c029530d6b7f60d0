//! The log archive's keeper: stores it again and again while it is written, and keeps its history.
//!
//! Crash story: see [`super::log_store`]. A line of history is appended at the beginning, every hour and at the end; one that is
//! killed has no last line. Asked to stop, it waits for the writers and stores once more, for [`GRACE`] at most; what is not
//! stored then is on this machine's disk, and the next start stores it.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    history_log::{Known, LogEvent, LogLine},
    id::SourceId,
    inventory::Application,
    port::{Failure, FailureKind, Progress, Stage},
    size::Bytes,
};
use vault::{history, repository::Repository};

use super::{log_store, run::Run};
use crate::signals::Interrupt;

/// How long after somebody asked to stop something may still be stored.
pub const GRACE: Duration = Duration::from_secs(30);
/// How often a line is written to the history.
const HISTORY: Duration = Duration::from_secs(3600);
/// When it is stored first.
const FIRST: Duration = Duration::from_secs(10);
/// How often is looked whether somebody asked to stop.
const LOOK: Duration = Duration::from_millis(200);
/// How often the last store is tried while others hold the repository.
const AGAIN: Duration = Duration::from_secs(1);

/// What became of the writers, for the keeper.
#[derive(Debug, Default)]
pub struct Writers {
    over: AtomicBool,
    failed: Mutex<BTreeMap<SourceId, String>>,
}

impl Writers {
    /// One has ended for good because of this.
    pub fn failed(&self, source: &SourceId, failure: &Failure) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert(source.clone(), failure.in_full());
    }

    /// All have ended.
    pub fn are_over(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    fn failure_of(&self, source: &SourceId) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get(source).cloned()
    }
}

/// Stores the archive again and again while it is written, and keeps its history: for a thread beside the writers.
pub struct Keeper<'a> {
    run: &'a Run<'a>,
    application: &'a Application,
    every: Duration,
    sources: Vec<SourceId>,
    /// Counts when the grace is over.
    interrupt: Interrupt,
    begun_at: Timestamp,
    repository: Option<Repository>,
    last_line: Option<Instant>,
}

impl<'a> Keeper<'a> {
    /// For an application whose archive of these sources is written by this process and stored this often. Nothing is
    /// stored any more once `interrupt` counts.
    #[must_use]
    pub fn new(
        run: &'a Run<'a>,
        application: &'a Application,
        every: Duration,
        sources: Vec<SourceId>,
        interrupt: Interrupt,
    ) -> Self {
        let begun_at = run.clock.now();
        Self { run, application, every, sources, interrupt, begun_at, repository: None, last_line: None }
    }

    /// Stores at its interval until the writers are over, and a last time then. `tell` hears of what goes wrong meanwhile;
    /// the archive goes on.
    ///
    /// # Errors
    /// If the last of it could not be stored.
    pub fn keep(&mut self, writers: &Writers, tell: &dyn Fn(&Failure)) -> Result<(), Failure> {
        let mut told = String::new();
        // The writers say how far they are within a second or two.
        let mut due = Instant::now() + FIRST;
        while !writers.over.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK);
            if Instant::now() < due {
                continue;
            }
            due = Instant::now() + self.every;
            let turn = self.turn(writers, false);
            self.heed(turn, &mut told, tell);
        }
        let last = self.last(writers);
        last.map_err(|failure| {
            let what = "the last of the archive is on this disk only, and was not stored in the repository";
            let kind = failure.kind;
            Failure::new(kind, what, "the next `stillpoint log` or `stillpoint backup` stores it")
                .because(failure)
        })
    }

    /// Others may hold the repository for a while.
    fn last(&mut self, writers: &Writers) -> Result<(), Failure> {
        let until = Instant::now() + GRACE;
        loop {
            match self.turn(writers, true) {
                Err(failure)
                    if failure.kind == FailureKind::Locked
                        && !self.interrupt.is_asked()
                        && Instant::now() < until =>
                {
                    std::thread::sleep(AGAIN);
                }
                ended => return ended,
            }
        }
    }

    /// Tells each failure once in a row; after one the repository is opened anew.
    fn heed(&mut self, turn: Result<(), Failure>, told: &mut String, tell: &dyn Fn(&Failure)) {
        match turn {
            Ok(()) => told.clear(),
            Err(failure) => {
                self.repository = None;
                let text = failure.in_full();
                if *told != text && failure.kind != FailureKind::Locked {
                    tell(&failure);
                }
                *told = text;
            }
        }
    }

    fn turn(&mut self, writers: &Writers, is_last: bool) -> Result<(), Failure> {
        let mut repository = match self.repository.take() {
            Some(repository) => repository,
            None => self.run.open(self.application)?,
        };
        let progress = Ending(&self.interrupt);
        let kept = log_store::store(self.run, self.application, &mut repository, &progress);
        let lines = self.lines(&repository, writers, is_last && kept.is_ok());
        self.repository = Some(repository);
        for problem in kept? {
            tracing::warn!("{problem}");
        }
        lines
    }

    /// A line of history for each source: at the beginning, once an hour, and at the end.
    fn lines(&mut self, repository: &Repository, writers: &Writers, is_last: bool) -> Result<(), Failure> {
        let event = match self.last_line {
            _ if is_last => LogEvent::Ended,
            None => LogEvent::Started,
            Some(last) if last.elapsed() >= HISTORY => LogEvent::Hourly,
            Some(_) => return Ok(()),
        };
        self.last_line = Some(Instant::now());
        let place = self.run.inventory.place(self.application);
        let states = log_store::states(self.run, self.application, repository)?;
        let now = self.run.clock.now();
        for source in &self.sources {
            let state = states.iter().find(|state| state.source == *source);
            // What an earlier process said of itself is not news.
            let said = state.and_then(|state| state.status.as_ref());
            let said = said.filter(|status| status.started_at >= self.begun_at);
            let failure = writers.failure_of(source);
            let known = match (&failure, said) {
                (Some(why), _) => Known::Failed(why),
                (None, Some(status)) => Known::Status(status),
                (None, None) => Known::Waiting,
            };
            let line = LogLine::new(now, event, source, known, state.and_then(|state| state.stored_until));
            history::append_log(&place, &self.application.name, &line)?;
        }
        Ok(())
    }
}

/// Progress that is given up when the grace is over.
struct Ending<'a>(&'a Interrupt);

impl Progress for Ending<'_> {
    fn begin(&self, _stage: Stage, _total: Option<Bytes>) {}
    fn advance(&self, _bytes: Bytes) {}
    fn end(&self) {}
    fn is_stopped(&self) -> bool {
        self.0.is_asked()
    }
}
