//! The write lock of one database, held by a child: [`SqliteLock`].
//!
//! Crash story: the child is journalled before it can hold anything, and its death is the thaw. It dies with
//! our pipe, and lets go by itself at the deadline of the freeze. If the child dies, or somebody takes its file
//! away, `prove` says `Lost`. An answer that does not come in time is followed by the child's death, so that
//! no lock comes too late and stays.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use model::{
    id::SourceId,
    pathtext,
    plan::{HoldClass, JournalMode},
    port::{Failure, Frozen, Hold},
    problem::Problem,
    time::Deadline,
    undo::{Ticket, Undo},
    verdict::Stillness,
};
use os::tree::resolve;

use super::{
    Means,
    child::Child,
    error::SqliteError,
    helper::LOCK_ROLE,
    locks::{self, LockHolder},
    protocol::{Reply, Request},
};

/// How often it is looked who is in the way.
const LOOK: Duration = Duration::from_millis(10);
/// An exclusive lock that was seen at so many looks in a row is no short commit: a large one, or, although
/// `probe` did not find it, `locking_mode=EXCLUSIVE`.
const LOOKS: u32 = 20;
/// How long a session that holds the lock may take to answer: it has nothing else to do.
const ANSWER: Duration = Duration::from_secs(1);

/// Holds the writers of one SQLite database back.
pub struct SqliteLock {
    source: SourceId,
    path: PathBuf,
    session: Arc<Session>,
}

/// A way for pinners to see that the lock is held while they pin.
#[derive(Clone)]
pub struct Holder(Weak<Session>);

/// What the lock is on while it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    pid: u32,
    journal: JournalMode,
    device: u64,
    inode: u64,
}

#[derive(Default)]
struct State {
    real: PathBuf,
    child: Option<Child>,
    ticket: Option<Ticket>,
    held: Option<Held>,
}

struct Session {
    means: Means,
    state: Mutex<State>,
}

impl SqliteLock {
    /// The lock of the database at this path.
    #[must_use]
    pub fn new(source: SourceId, path: &Path, means: Means) -> Self {
        let session = Arc::new(Session { means, state: Mutex::default() });
        Self { source, path: path.to_owned(), session }
    }

    /// For the pinner of this database.
    #[must_use]
    pub fn holder(&self) -> Holder {
        Holder(Arc::downgrade(&self.session))
    }
}

impl Hold for SqliteLock {
    fn name(&self) -> String {
        format!("sqlite:{}", pathtext::show(&self.path))
    }

    fn class(&self) -> HoldClass {
        HoldClass::FinalLock
    }

    fn sources(&self) -> Vec<SourceId> {
        vec![self.source.clone()]
    }

    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        let resolved = resolve(&self.path).map_err(|source| SqliteError::Io {
            path: self.path.clone(),
            what: "is not there",
            source,
        })?;
        let mut state = self.session.state();
        state.real = resolved.real;
        self.session.start(&mut state)?;
        Ok(Vec::new())
    }

    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        self.session.freeze(until)?;
        Ok(Box::new(Locked { session: Arc::clone(&self.session), open: true }))
    }
}

impl Holder {
    /// Shows from outside, without asking the child, that it holds the lock; says how the database journals.
    ///
    /// # Errors
    /// [`SqliteError::Lost`] if it cannot be shown.
    pub(super) fn check(&self, path: &Path) -> Result<JournalMode, SqliteError> {
        let lost = |what: &str| SqliteError::Lost { path: path.to_owned(), what: what.to_owned() };
        let session = self.0.upgrade().ok_or_else(|| lost("nobody holds its lock"))?;
        let state = session.state();
        let held = state.held.ok_or_else(|| lost("its lock is not held"))?;
        if state.real != path {
            return Err(lost("the lock is that of another database"));
        }
        seen_from_outside(&state.real, held)?;
        Ok(held.journal)
    }
}

impl Session {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is changed in single steps, so it means something also after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts and journals a child, unless there is one.
    fn start(&self, state: &mut State) -> Result<(), Failure> {
        if state.child.is_none() {
            self.cross_off(state);
            state.child = Some(Child::start(&self.means.helper, LOCK_ROLE, &state.real)?);
        }
        self.journal(state)
    }

    /// Writes the child down before it can hold anybody back.
    fn journal(&self, state: &mut State) -> Result<(), Failure> {
        if let (None, Some(child)) = (state.ticket, &state.child) {
            let undo = Undo::End { process: child.process() };
            state.ticket = Some(self.means.journal.intend(undo, None)?);
        }
        Ok(())
    }

    fn cross_off(&self, state: &mut State) {
        if let Some(ticket) = state.ticket.take() {
            self.means.journal.done(ticket);
        }
    }

    fn freeze(&self, until: Deadline) -> Result<(), Failure> {
        let mut state = self.state();
        if until.has_passed(self.means.clock.moment()) {
            return Err(too_late(&state.real).into());
        }
        self.start(&mut state)?;
        match self.lock(&mut state, until) {
            Ok(held) => {
                state.held = Some(held);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the lock. If that fails, the child holds nothing, or is dead.
    fn lock(&self, state: &mut State, until: Deadline) -> Result<Held, SqliteError> {
        let State { real, child, .. } = state;
        let Some(asked) = child.as_mut() else { return Err(too_late(real)) };
        let reply = self.ask_for_lock(asked, real, until);
        let refused = match reply {
            Ok(Some(Reply::Begun { journal, moved: false })) => match held(real, asked, journal) {
                Ok(held) => return Ok(held),
                Err(error) => error,
            },
            // The child keeps what it has opened; a new one will open what is there now.
            Ok(Some(Reply::Begun { .. })) => lost(real, "it was moved or replaced by another file"),
            Ok(Some(Reply::Busy)) => return Err(SqliteError::Busy(real.clone())),
            Ok(Some(other)) => asked.unexpected(&other),
            Ok(None) => too_late(real),
            Err(error @ SqliteError::Helper { .. }) => {
                lost(real, &format!("the process that locks it: {error}"))
            }
            Err(error) => error,
        };
        end_child(child)?;
        Err(refused)
    }

    /// Asks, and looks meanwhile who is in the way.
    fn ask_for_lock(
        &self,
        child: &mut Child,
        real: &Path,
        until: Deadline,
    ) -> Result<Option<Reply>, SqliteError> {
        let clock = &self.means.clock;
        // The answer has to be here by the deadline, so the child stops a little earlier.
        let left = until.left(clock.moment());
        let give_up = clock.moment().after(left - (left / 10).min(Duration::from_millis(30)));
        child.send(&Request::Freeze { give_up, lapse: until.0 })?;
        let mut watch = Watch::new(real);
        loop {
            let left = until.left(clock.moment());
            match child.next(left.min(LOOK))? {
                Some(Reply::Busy) if watch.is_exclusive() => {
                    return Err(SqliteError::Exclusive(real.to_owned()));
                }
                Some(reply) => return Ok(Some(reply)),
                None if left.is_zero() && watch.is_exclusive() => {
                    return Err(SqliteError::Exclusive(real.to_owned()));
                }
                None if left.is_zero() => return Ok(None),
                None => watch.look(),
            }
        }
    }

    fn prove(&self) -> Result<Stillness, Failure> {
        let mut state = self.state();
        let State { real, child, held, .. } = &mut *state;
        let (Some(child), Some(held)) = (child.as_mut(), *held) else {
            return Err(lost(real, "its lock is not held any more").into());
        };
        let lock = seen_from_outside(real, held)?;
        match child.ask(&Request::Prove, ANSWER) {
            Ok(Some(Reply::State { writing: true, moved: false })) => {
                Ok(Stillness::Lock(format!("{lock} held by process {}, transaction open", held.pid)))
            }
            Ok(Some(Reply::State { writing: true, moved: true })) => {
                Err(lost(real, "it was moved or replaced by another file").into())
            }
            Ok(Some(_)) => Err(lost(real, "the transaction that held its lock has ended").into()),
            Ok(None) => Err(lost(real, "the process that held its lock does not answer").into()),
            Err(error) => {
                Err(Failure::from(lost(real, "the process that held its lock has ended")).because(error))
            }
        }
    }

    /// Lets go. If the child does not confirm it, it is killed, which the kernel confirms.
    fn thaw(&self) -> Result<(), Failure> {
        let mut state = self.state();
        state.held = None;
        let thawed = match state.child.as_mut().map(|child| child.ask(&Request::Thaw, ANSWER)) {
            Some(Ok(Some(Reply::Thawed))) => Ok(()),
            _ => end_child(&mut state.child),
        };
        match thawed {
            Ok(()) => {
                self.cross_off(&mut state);
                Ok(())
            }
            Err(error) => {
                let remedy = "end that process by hand, or run `stillpoint thaw`".to_owned();
                Err(Failure { remedy, ..Failure::from(error) })
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = state.child.take() {
            child.quit();
        }
        if let Some(ticket) = state.ticket.take() {
            self.means.journal.done(ticket);
        }
    }
}

/// The lock, held.
struct Locked {
    session: Arc<Session>,
    open: bool,
}

impl Frozen for Locked {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        self.session.prove()
    }

    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        self.open = false;
        self.session.thaw()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.open
            && let Err(failure) = self.session.thaw()
        {
            tracing::error!("{}", failure.in_full());
        }
    }
}

/// Looks whether somebody has the database for himself.
struct Watch {
    database: Option<File>,
    holder: Option<LockHolder>,
    seen: u32,
}

impl Watch {
    fn new(real: &Path) -> Self {
        // A file that cannot be opened is the child's to complain of.
        Self { database: File::open(real).ok(), holder: None, seen: 0 }
    }

    fn look(&mut self) {
        let now = self.database.as_ref().and_then(|file| locks::exclusive(file).ok().flatten());
        if now.is_some() && (now == self.holder || self.seen == 0) {
            self.seen += 1;
        } else {
            self.seen = 0;
        }
        self.holder = now;
    }

    fn is_exclusive(&self) -> bool {
        self.seen >= LOOKS
    }
}

fn held(real: &Path, child: &Child, journal: JournalMode) -> Result<Held, SqliteError> {
    let file = fs::metadata(real).map_err(|_| lost(real, "it is not there any more"))?;
    let held = Held { pid: child.process().pid, journal, device: file.dev(), inode: file.ino() };
    seen_from_outside(real, held)?;
    Ok(held)
}

/// Shows that the lock on the file that is at the path now is held by the child; says which lock it is.
fn seen_from_outside(real: &Path, held: Held) -> Result<&'static str, SqliteError> {
    let file = fs::metadata(real).map_err(|_| lost(real, "it is not there any more"))?;
    if (file.dev(), file.ino()) != (held.device, held.inode) {
        return Err(lost(real, "it was replaced by another file"));
    }
    let (holder, lock) = locks::write_lock(real, held.journal)
        .map_err(|error| lost(real, &format!("who holds its lock cannot be seen: {error}")))?;
    match holder {
        Some(LockHolder::Process(pid)) if pid == held.pid => Ok(lock),
        Some(LockHolder::Process(pid)) => {
            Err(lost(real, &format!("its {lock} is held by process {pid}, not by ours")))
        }
        Some(LockHolder::Unknown) => {
            Err(lost(real, &format!("its {lock} is held by a process unknown here")))
        }
        None => Err(lost(real, &format!("its {lock} is held by nobody"))),
    }
}

fn end_child(child: &mut Option<Child>) -> Result<(), SqliteError> {
    child.take().map_or(Ok(()), Child::kill)
}

fn lost(real: &Path, what: &str) -> SqliteError {
    SqliteError::Lost { path: real.to_owned(), what: what.to_owned() }
}

fn too_late(real: &Path) -> SqliteError {
    SqliteError::TimedOut { path: real.to_owned(), what: "its lock was not taken by the deadline".into() }
}
