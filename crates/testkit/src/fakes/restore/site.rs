//! A machine in memory that is restored on, and an application on it that is stopped and started.
//!
//! Crash story: in memory; see the parent for runs that die.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    entry::Kind,
    id::SourceId,
    plan::HoldClass,
    port::{Failure, FailureKind, Frozen, Hold, Journal},
    port_restore::{Beside, Site},
    problem::Problem,
    restore::{Census, Found, Listing, Opened, ParentFacts, Place, PlaceFacts, RestorePlan, SiteFacts},
    size::Bytes,
    time::Deadline,
    undo::{Hook, Move, Ticket, Undo},
    verdict::Stillness,
};

use super::Script;

mod beside;

use beside::FakeBeside;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// Its kind.
    pub kind: Kind,
    /// Its bytes, if it is a regular file.
    pub bytes: Vec<u8>,
}

/// Everything outside of staging directories.
pub type Live = BTreeMap<PathBuf, Thing>;

#[derive(Debug, Default)]
pub(super) struct State {
    pub names: Live,
    pub open: Vec<Opened>,
    pub numbers: u64,
    is_stopped: bool,
    /// What the application found each time when it was started.
    starts: Vec<Live>,
    /// What it left each time when it was stopped.
    stops: Vec<Live>,
}

/// The machine. Clones are the same machine.
#[derive(Debug, Clone, Default)]
pub struct FakeSite {
    pub(super) script: Arc<Script>,
    state: Arc<Mutex<State>>,
}

impl FakeSite {
    /// An empty machine whose calls are counted.
    #[must_use]
    pub fn new(script: &Arc<Script>) -> Self {
        Self { script: Arc::clone(script), state: Arc::default() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something there, with the directories above it.
    pub fn put(&self, path: &Path, kind: Kind, bytes: &[u8]) {
        let mut state = self.state();
        for above in path.ancestors().skip(1) {
            let dir = Thing { kind: Kind::Dir, bytes: vec![] };
            state.names.entry(above.to_owned()).or_insert(dir);
        }
        state.names.insert(path.to_owned(), Thing { kind, bytes: bytes.to_vec() });
    }

    /// Takes something away with all below it.
    pub fn take(&self, path: &Path) {
        self.state().names.retain(|name, _| !name.starts_with(path));
    }

    /// A process opens these files.
    pub fn open(&self, opened: Vec<Opened>) {
        self.state().open = opened;
    }

    /// Everything that is not ours.
    #[must_use]
    pub fn live(&self) -> Live {
        live(&self.state())
    }

    /// The staging directories that there are.
    #[must_use]
    pub fn staged(&self) -> Vec<PathBuf> {
        self.state().names.keys().filter(|path| is_staging(path)).cloned().collect()
    }

    /// Whether the application is stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    /// What the application found each time when it was started, and left when it was stopped.
    #[must_use]
    pub fn starts_and_stops(&self) -> (Vec<Live>, Vec<Live>) {
        let state = self.state();
        (state.starts.clone(), state.stops.clone())
    }

    fn stop(&self) {
        let mut state = self.state();
        let now = live(&state);
        state.stops.push(now);
        state.is_stopped = true;
    }

    fn start(&self) {
        let mut state = self.state();
        let now = live(&state);
        state.starts.push(now);
        state.is_stopped = false;
    }

    /// Undoes what a dead run left.
    ///
    /// # Errors
    /// If the script says so.
    pub fn undo(&self, undo: &Undo) -> Result<(), Failure> {
        match undo {
            Undo::RemoveTree { path } => self.remove(path),
            Undo::Start { .. } => {
                self.start();
                Ok(())
            }
            Undo::SwapBack { moves, staging } => {
                self.take_back(moves)?;
                staging.iter().try_for_each(|dir| self.remove(dir))
            }
            other => Err(Failure::new(FailureKind::Refused, format!("not ours to undo: {other:?}"), "")),
        }
    }

    pub(super) fn remove(&self, dir: &Path) -> Result<(), Failure> {
        self.script.step("site.remove")?;
        assert!(is_ours(dir), "{} is not ours to remove", dir.display());
        self.take(dir);
        Ok(())
    }

    /// Never over another name.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.script.step("site.rename")?;
        let mut state = self.state();
        let missing = !state.names.contains_key(from);
        if missing || state.names.contains_key(to) || !is_dir(&state, to.parent()) {
            let what = format!("{} cannot be renamed to {}", from.display(), to.display());
            return Err(Failure::new(FailureKind::Other, what, ""));
        }
        let moving: Vec<PathBuf> = state.names.keys().filter(|p| p.starts_with(from)).cloned().collect();
        for path in moving {
            let below = path.strip_prefix(from).unwrap_or(Path::new("")).to_owned();
            let target = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
            if let Some(thing) = state.names.remove(&path) {
                state.names.insert(target, thing);
            }
        }
        Ok(())
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        self.state().names.contains_key(path)
    }

    pub(super) fn take_back(&self, moves: &[Move]) -> Result<(), Failure> {
        for one in moves.iter().rev() {
            if one.had && self.exists(&one.old) {
                if let Some(new) = one.new.as_ref().filter(|_| self.exists(&one.live)) {
                    self.rename(&one.live, new)?;
                }
                self.rename(&one.old, &one.live)?;
            } else if !one.had
                && let Some(new) = one.new.as_ref().filter(|new| is_dir(&self.state(), new.parent()))
                && !self.exists(new)
                && self.exists(&one.live)
            {
                self.rename(&one.live, new)?;
            }
        }
        Ok(())
    }
}

fn is_ours(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".stillpoint-"))
}

fn is_staging(path: &Path) -> bool {
    is_ours(path) && !path.parent().is_some_and(|above| above.ancestors().any(is_ours))
}

fn is_dir(state: &State, path: Option<&Path>) -> bool {
    path.is_some_and(|path| state.names.get(path).is_some_and(|thing| thing.kind == Kind::Dir))
}

fn live(state: &State) -> Live {
    let is_live = |path: &Path| !path.ancestors().any(is_ours);
    state.names.iter().filter(|(path, _)| is_live(path)).map(|(p, t)| (p.clone(), t.clone())).collect()
}

impl Site for FakeSite {
    fn survey(&self, places: &[Place], listing: &Listing, watched: &[PathBuf]) -> Result<SiteFacts, Failure> {
        self.script.step("site.survey")?;
        let state = self.state();
        let look = |place: &Place| {
            let inside = |path: &&PathBuf| path.starts_with(&place.to) && **path != place.to;
            let stored = |path: &Path| {
                path.strip_prefix(&place.to).is_ok_and(|rest| listing.find(&place.from.join(rest)).is_some())
            };
            let below: Vec<&PathBuf> = state.names.keys().filter(inside).collect();
            let found = match state.names.get(&place.to).map(|thing| &thing.kind) {
                None => Found::Absent,
                Some(Kind::Dir) => {
                    Found::Dir(below.iter().filter(|p| p.parent() == Some(&place.to)).count() as u64)
                }
                Some(Kind::Symlink(target)) => Found::Symlink(target.clone()),
                Some(_) => Found::Other,
            };
            let there = is_dir(&state, place.to.parent());
            PlaceFacts {
                real: place.to.clone(),
                writable: matches!(found, Found::Dir(_)),
                found,
                parent: if there { ParentFacts::Writable } else { ParentFacts::Missing },
                fixed: None,
                nested: vec![],
                device: 1,
                filesystem: "memory".into(),
                free: Bytes(1 << 40),
                free_inodes: None,
                census: Census {
                    files: below.iter().filter(|p| state.names[**p].kind == Kind::File).count() as u64,
                    newer: 0,
                    unlisted: below.iter().filter(|p| !stored(p)).count() as u64,
                    examples: vec![],
                },
            }
        };
        let places = places.iter().map(look).collect();
        let open = opened(&state, watched);
        Ok(SiteFacts { privileged: true, places, open, copies: Vec::new() })
    }

    fn open_by(&self, paths: &[PathBuf]) -> Result<Vec<Opened>, Failure> {
        self.script.step("site.open_by")?;
        Ok(opened(&self.state(), paths))
    }

    fn begin<'a>(
        &'a self,
        plan: &'a RestorePlan,
        listing: &'a Listing,
        journal: &Arc<dyn Journal>,
    ) -> Result<Box<dyn Beside + 'a>, Failure> {
        Ok(Box::new(FakeBeside::begin(self, plan, listing, journal)?))
    }
}

/// Files are open as long as the application runs.
fn opened(state: &State, paths: &[PathBuf]) -> Vec<Opened> {
    state.open.iter().filter(|o| !state.is_stopped && paths.contains(&o.path)).cloned().collect()
}

/// Stops and starts the application of a [`FakeSite`].
pub struct FakeHook {
    site: FakeSite,
    journal: Arc<dyn Journal>,
}

impl FakeHook {
    /// Its hooks.
    #[must_use]
    pub fn new(site: &FakeSite, journal: Arc<dyn Journal>) -> Self {
        Self { site: site.clone(), journal }
    }
}

impl Hold for FakeHook {
    fn name(&self) -> String {
        "stop-hook".into()
    }
    fn class(&self) -> HoldClass {
        HoldClass::StopHook
    }
    fn sources(&self) -> Vec<SourceId> {
        Vec::new()
    }
    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        self.site.script.step("hook.prepare")?;
        Ok(vec![])
    }
    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        let start = Hook { run: "start".into(), timeout: Duration::from_secs(1) };
        let ticket = self.journal.intend(Undo::Start { start, ends: None }, Some(until))?;
        let stopped =
            Stopped { site: self.site.clone(), journal: self.journal.clone(), ticket: Some(ticket) };
        self.site.script.step("hook.stop")?;
        self.site.stop();
        Ok(Box::new(stopped))
    }
}

struct Stopped {
    site: FakeSite,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
}

impl Stopped {
    fn end(&mut self) -> Result<(), Failure> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        self.site.script.step("hook.start")?;
        self.site.start();
        self.journal.done(ticket);
        Ok(())
    }
}

impl Frozen for Stopped {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        self.site.script.step("hook.prove")?;
        Ok(Stillness::WritersFrozen("stopped".into()))
    }
    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        self.end()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A start hook that fails stays in the journal, where tests see it.
        let _ = self.end();
    }
}
