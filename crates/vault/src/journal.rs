//! The journal of a run on disk: how to undo whatever it holds. Form: `docs/format/journal.md`.
//!
//! Crash story: a line is on disk before [`Journal::intend`] returns, so whatever was made stands in the
//! file. If we stop while writing a line it has no end, and nothing was made for it. A journal is locked
//! (`flock`) as long as its run lives: whoever gets the lock knows that the run is dead. When a line cannot
//! be written whole, the file is cut back to what it was, so that later lines can be read.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use model::{
    id::RunId,
    pathtext,
    port::{Failure, FailureKind, Journal},
    problem::{Effect, Problem},
    time::Deadline,
    undo::{Ticket, Undo},
};
use os::durable::{self, FileLock};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
const ENDING: &str = "jsonl";

/// Why a journal could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed.
    #[error("the journal {} cannot be {doing}", pathtext::show(path))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Written, read, locked, removed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Another run of this name is alive.
    #[error("the journal {} belongs to a run that is alive", pathtext::show(path))]
    Alive {
        /// The file.
        path: PathBuf,
    },
    /// A journal of this name is there: its run is to be cleaned up after first.
    #[error("the journal {} was left by a dead run", pathtext::show(path))]
    Left {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be closed, because something in it is still to be undone.
    #[error("the journal {} still has {open} things to undo", pathtext::show(path))]
    StillOpen {
        /// The file.
        path: PathBuf,
        /// How many.
        open: usize,
    },
}

impl JournalError {
    fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.into(), doing, source }
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let (kind, remedy) = match &error {
            JournalError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                (FailureKind::NoSpace, "make space on its filesystem")
            }
            JournalError::Io { .. } => (FailureKind::Other, "see that we may write in the state directory"),
            JournalError::Alive { .. } => (FailureKind::Locked, "wait until it has ended"),
            JournalError::Left { .. } | JournalError::StillOpen { .. } => {
                (FailureKind::Refused, "run `stillpoint thaw`")
            }
        };
        let failure = Self::new(kind, error.to_string(), remedy);
        match error {
            JournalError::Io { source, .. } => failure.because(source),
            _ => failure,
        }
    }
}

/// One line of a journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "line")]
enum Line {
    /// The first line.
    Journal { version: u32, run: RunId },
    /// Something is about to be made.
    Intend {
        ticket: Ticket,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Deadline>,
        #[serde(rename = "what")]
        undo: Undo,
    },
    /// More is known of it.
    Amend {
        ticket: Ticket,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Deadline>,
        #[serde(rename = "what")]
        undo: Undo,
    },
    /// It has been undone.
    Done { ticket: Ticket },
}

/// The journal of this run. When it is dropped with nothing open, its file goes.
#[derive(Debug)]
pub struct FileJournal {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: LineFile,
    open: BTreeMap<Ticket, Undo>,
    last: u64,
}

/// A locked file of lines.
#[derive(Debug)]
struct LineFile {
    path: PathBuf,
    lock: FileLock,
    /// Set when a torn line could not be cut off again: nothing that follows could be read.
    torn: bool,
}

impl FileJournal {
    /// Begins the journal of a run at `{state_dir}/journal/{run}.jsonl`.
    ///
    /// # Errors
    /// If it cannot be written, or a run of this name is alive or not yet cleaned up after.
    pub fn create(state_dir: &Path, run: &RunId) -> Result<Self, JournalError> {
        let dir = state_dir.join("journal");
        durable::create_dirs(&dir, 0o700).map_err(|e| JournalError::io(&dir, "written", e))?;
        let path = dir.join(format!("{run}.{ENDING}"));
        let lock = lock_new(&path)?;
        let length = lock.file().metadata().map_err(|e| JournalError::io(&path, "read", e))?.len();
        if length > 0 {
            return Err(JournalError::Left { path });
        }
        let mut file = LineFile { path, lock, torn: false };
        file.append(&Line::Journal { version: VERSION, run: run.clone() }, true)?;
        durable::sync_dir(&dir).map_err(|e| JournalError::io(&dir, "written", e))?;
        Ok(Self { state: Mutex::new(State { file, open: BTreeMap::new(), last: 0 }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sweeper that found the file before we locked it holds it for a moment and removes it.
fn lock_new(path: &Path) -> Result<FileLock, JournalError> {
    for _ in 0..100 {
        match FileLock::try_exclusive(path) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(JournalError::io(path, "locked", error)),
        }
    }
    Err(JournalError::Alive { path: path.into() })
}

impl Journal for FileJournal {
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure> {
        let mut state = self.state();
        let ticket = Ticket(state.last + 1);
        state.file.append(&Line::Intend { ticket, until, undo: undo.clone() }, true)?;
        state.last = ticket.0;
        state.open.insert(ticket, undo);
        Ok(ticket)
    }

    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure> {
        let mut state = self.state();
        state.file.append(&Line::Amend { ticket, until, undo: undo.clone() }, true)?;
        state.open.insert(ticket, undo);
        Ok(())
    }

    fn done(&self, ticket: Ticket) {
        let mut state = self.state();
        if state.open.remove(&ticket).is_none() {
            return;
        }
        // Undoing twice is harmless, so this line need not be on disk, and its failure is no failure.
        if let Err(error) = state.file.append(&Line::Done { ticket }, false) {
            tracing::warn!("{error}; it will be undone once more, which is harmless");
        }
    }
}

impl Drop for FileJournal {
    fn drop(&mut self) {
        let state = self.state();
        if state.open.is_empty()
            && let Err(error) = state.file.remove()
        {
            tracing::warn!("{error}; the next run removes it");
        }
    }
}

impl LineFile {
    fn append(&mut self, line: &Line, durably: bool) -> Result<(), JournalError> {
        let failed = |source| JournalError::io(&self.path, "written", source);
        if self.torn {
            return Err(failed(io::Error::other("an earlier line could not be written whole")));
        }
        let mut text = serde_json::to_vec(line).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        let mut file = self.lock.file();
        let before = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let written = file.write_all(&text).and_then(|()| if durably { file.sync_data() } else { Ok(()) });
        written.map_err(|source| {
            self.torn = file.set_len(before).is_err();
            JournalError::io(&self.path, "written", source)
        })
    }

    fn remove(&self) -> Result<(), JournalError> {
        let removed = fs::remove_file(&self.path);
        let synced = removed.and_then(|()| self.path.parent().map_or(Ok(()), durable::sync_dir));
        synced.map_err(|source| JournalError::io(&self.path, "removed", source))
    }
}

/// The journal of a run that died. As long as this value lives nobody else cleans up after that run.
#[derive(Debug)]
pub struct DeadRun {
    run: String,
    file: LineFile,
    open: BTreeMap<Ticket, Undo>,
    problems: Vec<Problem>,
}

/// Finds the journals of dead runs, oldest name first. Empty ones are removed at once.
///
/// # Errors
/// If the directory or a journal cannot be read or locked.
pub fn dead_runs(state_dir: &Path) -> Result<Vec<DeadRun>, JournalError> {
    let dir = state_dir.join("journal");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::io(&dir, "read", error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| JournalError::io(&dir, "read", e))?.path();
        if path.extension() == Some(OsStr::new(ENDING)) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut dead = Vec::new();
    for path in paths {
        let locked = FileLock::try_exclusive_after(&path, || process_of(&path));
        if let Some(lock) = locked.map_err(|e| JournalError::io(&path, "locked", e))? {
            let run = DeadRun::read(LineFile { path, lock, torn: false })?;
            if run.open.is_empty() && run.problems.is_empty() {
                run.close()?;
            } else {
                dead.push(run);
            }
        }
    }
    Ok(dead)
}

/// A run's name ends with the number of its process.
fn process_of(journal: &Path) -> Option<u32> {
    journal.file_stem()?.to_str()?.rsplit_once('-')?.1.parse().ok()
}

impl DeadRun {
    fn read(file: LineFile) -> Result<Self, JournalError> {
        let mut bytes = Vec::new();
        let mut reader = file.lock.file();
        reader
            .seek(SeekFrom::Start(0))
            .and_then(|_| reader.read_to_end(&mut bytes))
            .map_err(|e| JournalError::io(&file.path, "read", e))?;
        let run = file.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut dead = Self { run, file, open: BTreeMap::new(), problems: Vec::new() };
        // What stands after the last line's end was never finished, so nothing was made for it.
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        for (number, line) in bytes[..whole].split(|b| *b == b'\n').enumerate() {
            if !line.is_empty() {
                dead.take(number + 1, line);
            }
        }
        if whole < bytes.len() {
            let cut = dead.file.lock.file().set_len(whole as u64);
            cut.map_err(|e| JournalError::io(&dead.file.path, "written", e))?;
        }
        Ok(dead)
    }

    fn take(&mut self, number: usize, line: &[u8]) {
        match serde_json::from_slice(line) {
            Ok(Line::Journal { version: VERSION, .. }) => {}
            Ok(Line::Intend { ticket, undo, .. } | Line::Amend { ticket, undo, .. }) => {
                self.open.insert(ticket, undo);
            }
            Ok(Line::Done { ticket }) => {
                self.open.remove(&ticket);
            }
            Ok(Line::Journal { version, .. }) => self.complain(number, &format!("it has version {version}")),
            Err(error) => self.complain(number, &error.to_string()),
        }
    }

    fn complain(&mut self, number: usize, why: &str) {
        let what = format!("line {number} of the journal of run {} cannot be understood: {why}", self.run);
        let remedy = "see with the version that wrote it what is still held";
        self.problems.push(Problem::new(Effect::Note, Some(self.file.path.clone()), what, remedy));
    }

    /// The run's name.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    /// What is still to be undone, oldest first.
    #[must_use]
    pub fn open_undos(&self) -> Vec<(Ticket, Undo)> {
        self.open.iter().map(|(ticket, undo)| (*ticket, undo.clone())).collect()
    }

    /// What in the journal cannot be understood.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Crosses off what has been undone.
    ///
    /// # Errors
    /// If it cannot be written; then it is undone once more, which is harmless.
    pub fn cross_off(&mut self, ticket: Ticket) -> Result<(), JournalError> {
        if self.open.remove(&ticket).is_some() {
            self.file.append(&Line::Done { ticket }, true)?;
        }
        Ok(())
    }

    /// Removes the journal. One with lines that cannot be understood is kept under another name, for people.
    ///
    /// # Errors
    /// [`JournalError::StillOpen`] if something is still to be undone; if it cannot be removed.
    pub fn close(self) -> Result<(), JournalError> {
        let path = &self.file.path;
        if !self.open.is_empty() {
            return Err(JournalError::StillOpen { path: path.clone(), open: self.open.len() });
        }
        if self.problems.is_empty() {
            return self.file.remove();
        }
        let kept = path.with_extension("unreadable");
        fs::rename(path, &kept).map_err(|e| JournalError::io(path, "renamed", e))
    }
}
