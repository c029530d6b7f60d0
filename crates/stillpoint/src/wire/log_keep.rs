//! The log archive's keeper: stores it again and again while it is written, and keeps its history.
//!
//! Crash story: see [`super::log_store`]. A line of history is appended at the beginning, every hour and at the end; one that is
//! killed has no last line.

use std::time::{Duration, Instant};

use model::{
    history_log::{LogEvent, LogLine},
    inventory::Application,
    port::{Failure, FailureKind},
};
use vault::{history, repository::Repository};

use super::{log_store, run::Run};

/// How often a line is written to the history.
const HISTORY: Duration = Duration::from_secs(3600);
/// When it is stored first.
const FIRST: Duration = Duration::from_secs(10);
/// How often is looked whether somebody asked to stop.
const LOOK: Duration = Duration::from_millis(200);

/// Stores the archive again and again while it is written, and keeps its history: for a thread beside the writer.
pub struct Keeper<'a> {
    run: &'a Run<'a>,
    application: &'a Application,
    every: Duration,
    repository: Option<Repository>,
    last_line: Option<Instant>,
}

impl<'a> Keeper<'a> {
    /// For an application whose archive is written by this process and stored this often.
    #[must_use]
    pub fn new(run: &'a Run<'a>, application: &'a Application, every: Duration) -> Self {
        Self { run, application, every, repository: None, last_line: None }
    }

    /// Stores at its interval until somebody asks to stop, and a last time then. `tell` hears of what goes wrong; the
    /// archive goes on.
    pub fn keep(&mut self, is_stopped: &dyn Fn() -> bool, tell: &dyn Fn(&Failure)) {
        let mut told = String::new();
        // The writers say how far they are within a second or two.
        let mut due = Instant::now() + FIRST;
        while !is_stopped() {
            std::thread::sleep(LOOK);
            if Instant::now() < due {
                continue;
            }
            due = Instant::now() + self.every;
            let turn = self.turn(false);
            self.heed(turn, &mut told, tell);
        }
        let turn = self.turn(true);
        self.heed(turn, &mut told, tell);
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

    fn turn(&mut self, is_last: bool) -> Result<(), Failure> {
        let mut repository = match self.repository.take() {
            Some(repository) => repository,
            None => self.run.open(self.application)?,
        };
        let kept = log_store::store(self.run, self.application, &mut repository);
        let lines = self.lines(&repository, is_last);
        self.repository = Some(repository);
        for problem in kept? {
            tracing::warn!("{problem}");
        }
        lines
    }

    /// A line of history for each source: at the beginning, once an hour, and at the end.
    fn lines(&mut self, repository: &Repository, is_last: bool) -> Result<(), Failure> {
        let event = match self.last_line {
            _ if is_last => LogEvent::Ended,
            None => LogEvent::Started,
            Some(last) if last.elapsed() >= HISTORY => LogEvent::Hourly,
            Some(_) => return Ok(()),
        };
        self.last_line = Some(Instant::now());
        let place = self.run.inventory.place(self.application);
        let now = self.run.clock.now();
        for state in log_store::states(self.run, self.application, repository)? {
            let line = LogLine::new(now, event, &state.source, state.status.as_ref(), state.stored_until);
            history::append_log(&place, &self.application.name, &line)?;
        }
        Ok(())
    }
}
