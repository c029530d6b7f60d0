//! A server's files as they were pinned.
//!
//! Crash story: the inner pins hold everything; they are released in reverse order, each whatever becomes of the
//! others.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use model::{
    entry::{Body, Entry, Harvest, Kind, Role},
    id::SourceId,
    plan::ServerPlan,
    port::{Clock, Failure, FailureKind, Pin, Progress},
    problem::{Effect, Problem},
    server::{ServerForm, ServerPosition, ServerRecord, ServerRoot},
    time::Deadline,
    verdict::Stillness,
};

use super::{CutLock, FilesForm, writers::Writers};

/// How long the server may take to compare its binary log with its GTIDs: it reads the file up to the position.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(30);

pub(super) struct FilesPin {
    pub source: SourceId,
    pub plan: Arc<ServerPlan>,
    pub form: FilesForm,
    pub writers: Writers,
    pub clock: Arc<dyn Clock>,
    pub lock: Arc<dyn CutLock>,
    /// Read under the lock.
    pub position: ServerPosition,
    pub pins: Vec<Box<dyn Pin>>,
}

impl Pin for FilesPin {
    fn unchanged(&mut self, until: Deadline) -> Result<Stillness, Failure> {
        let answers = self.pins.iter_mut().map(|pin| pin.unchanged(until)).collect::<Result<Vec<_>, _>>()?;
        if let Some(doubt) = answers.iter().find(|answer| matches!(answer, Stillness::NotShown(_))) {
            return Ok(doubt.clone());
        }
        if self.plan.server_held {
            self.writers.are_held()?;
            return Ok(Stillness::WritersFrozen(self.in_words(&answers)));
        }
        Ok(one_snapshot(answers))
    }

    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        let mut whole = Harvest::default();
        for pin in &mut self.pins {
            let Harvest { entries, problems, checks, server: _ } = pin.harvest(progress)?;
            whole.entries.extend(entries);
            whole.problems.extend(problems);
            whole.checks.extend(checks);
        }
        self.tidy(&mut whole.entries);
        whole.checks.push(said(&self.position));
        self.confirm(&mut whole);
        whole.problems.iter_mut().for_each(|problem| problem.source = Some(self.source.clone()));
        whole.server = Some(self.record());
        Ok(whole)
    }

    fn afterwards(&mut self) -> Vec<Problem> {
        self.pins
            .iter_mut()
            .flat_map(|pin| pin.afterwards())
            .map(|problem| problem.of(&self.source))
            .collect()
    }

    fn release(mut self: Box<Self>) -> Result<(), Failure> {
        let mut result = Ok(());
        while let Some(pin) = self.pins.pop() {
            result = result.and(pin.release());
        }
        result
    }
}

impl FilesPin {
    fn in_words(&self, answers: &[Stillness]) -> String {
        let held = self.writers.in_words();
        match self.form {
            FilesForm::Volumes => format!("{held} held across {} snapshots", distinct(answers)),
            FilesForm::Reflink => {
                let details: Vec<&str> = answers.iter().filter_map(detail).collect();
                format!("{held} held while all files were cloned; {}", details.join("; "))
            }
        }
    }

    /// What the server says of the position, now that it answers again.
    fn confirm(&self, whole: &mut Harvest) {
        // A later cut may have read another one.
        if self.position.binlog.is_none() || self.lock.position().as_ref() != Some(&self.position) {
            return;
        }
        match self.lock.confirm_position(CONFIRMED_WITHIN) {
            Ok(how) => whole.checks.push(how),
            Err(failure) => {
                let contradicts = failure.kind == FailureKind::Damaged;
                let effect = if contradicts { Effect::Weaker } else { Effect::Note };
                whole.problems.push(Problem::new(effect, None, failure.in_full(), ""));
            }
        }
    }

    /// Each path once, and nothing that a backup could carry over by its times.
    fn tidy(&self, entries: &mut Vec<Entry>) {
        // Content first, so that a root below another's ancestor keeps what it is.
        entries.sort_by_key(|entry| entry.role);
        let mut seen: HashSet<PathBuf> = HashSet::with_capacity(entries.len());
        entries.retain(|entry| seen.insert(entry.path.clone()));
        let now = self.clock.now();
        for entry in entries.iter_mut().filter(|e| e.kind == Kind::File && e.role == Role::Content) {
            entry.meta.ctime = now;
            if entry.body == Body::Carried {
                entry.body = Body::At(entry.path.clone());
            }
        }
    }

    fn record(&self) -> ServerRecord {
        let plan = &self.plan;
        let root =
            |root: &model::plan::ServerRootPlan| ServerRoot { role: root.role, path: root.tree.root.clone() };
        ServerRecord {
            source: self.source.clone(),
            version: plan.version.clone(),
            server_id: plan.server_id,
            form: ServerForm::Files,
            position: self.position.clone(),
            settings: plan.settings.clone(),
            roots: plan.roots.iter().map(root).collect(),
            engines: plan.engines.iter().map(|engine| engine.name.clone()).collect(),
            databases: plan.databases.clone(),
            beside: None,
            replay_from: None,
        }
    }
}

/// One snapshot that holds everything, by its name; anything else is not atomic.
fn one_snapshot(answers: Vec<Stillness>) -> Stillness {
    match distinct(&answers) {
        1 => answers
            .into_iter()
            .find(|answer| matches!(answer, Stillness::AtomicSnapshot(_)))
            .unwrap_or_else(|| Stillness::NotShown("no snapshot holds its files".to_owned())),
        n => Stillness::NotShown(format!("its files are in {n} snapshots, and it ran between them")),
    }
}

/// How many snapshots these are.
fn distinct(answers: &[Stillness]) -> usize {
    let name = |answer: &Stillness| match answer {
        Stillness::AtomicSnapshot(name) => Some(name.clone()),
        _ => None,
    };
    answers.iter().filter_map(name).collect::<HashSet<String>>().len()
}

fn detail(answer: &Stillness) -> Option<&str> {
    match answer {
        Stillness::NothingChanged(detail) => Some(detail),
        _ => None,
    }
}

/// As a check: `position binlog.000042:1234 (gtid 0-1-77)`.
fn said(position: &ServerPosition) -> String {
    let gtid = position.gtid.as_ref().filter(|gtid| !gtid.0.is_empty());
    match (&position.binlog, gtid) {
        (Some(binlog), Some(gtid)) => format!("position {binlog} (gtid {gtid})"),
        (Some(binlog), None) => format!("position {binlog}"),
        (None, _) => "no position: the server writes no binary log".to_owned(),
    }
}
