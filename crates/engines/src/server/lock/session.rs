//! The session that holds the locks of a server: what it has reached, and letting go on every path.
//!
//! Crash story: see the parent. After any failure the session either holds nothing, confirmed by the server, or is closed.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    id::SourceId,
    plan::ServerLockPlan,
    port::{Failure, FailureKind},
    problem::Problem,
    server::{Flavor, ServerAccess, ServerPosition},
    time::Deadline,
};

use super::{
    super::{Means, connect::Connection},
    At, Flavored,
    mariadb::MariaDb,
    mysql::MySql,
};

/// How long connecting may take while nobody is held.
const CONNECTING: Duration = Duration::from_secs(10);

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reached {
    /// It holds nothing.
    Nothing,
    /// The slow locks.
    Slow,
    /// All locks.
    Final,
}

/// One server's locks.
pub(super) struct Session {
    plan: ServerLockPlan,
    budget: Duration,
    means: Means,
    position: Arc<Mutex<Option<ServerPosition>>>,
    state: Mutex<State>,
}

struct State {
    connection: Option<Connection>,
    flavored: Box<dyn Flavored>,
    reached: Reached,
    /// Counts the releases, so that a guard from before does not let go what was taken after it.
    round: u64,
}

impl Session {
    pub(super) fn new(plan: &ServerLockPlan, budget: Duration, means: Means) -> Self {
        let flavored: Box<dyn Flavored> = match plan.flavor {
            Flavor::MariaDb => Box::new(MariaDb::default()),
            Flavor::MySql => Box::new(MySql::default()),
        };
        let state = State { connection: None, flavored, reached: Reached::Nothing, round: 0 };
        Self { plan: plan.clone(), budget, means, position: Arc::default(), state: Mutex::new(state) }
    }

    pub(super) fn source(&self) -> &SourceId {
        &self.plan.source
    }

    pub(super) fn access(&self) -> &ServerAccess {
        &self.plan.access
    }

    pub(super) fn position(&self) -> Arc<Mutex<Option<ServerPosition>>> {
        Arc::clone(&self.position)
    }

    pub(super) fn is_locked(&self) -> bool {
        let state = self.state();
        let connected = state.connection.as_ref().is_some_and(|open| !open.is_broken());
        connected && state.reached == Reached::Final
    }

    /// Connects and warms up, once for both holds.
    pub(super) fn prepare(&self) -> Result<Vec<Problem>, Failure> {
        let mut state = self.state();
        if usable(&state) { Ok(vec![]) } else { self.connect(&mut state, CONNECTING) }
    }

    /// Takes the locks up to `wanted`; says in which round.
    pub(super) fn freeze(&self, wanted: Reached, until: Deadline) -> Result<u64, Failure> {
        let mut state = self.state();
        if state.reached == Reached::Nothing {
            self.remember(None);
        }
        let taken = self.take(&mut state, wanted, until);
        match taken {
            Ok(()) => Ok(state.round),
            Err(failure) => {
                if let Err(release) = self.let_go(&mut state) {
                    tracing::warn!("after {failure}: {}", release.in_full());
                }
                Err(failure)
            }
        }
    }

    fn take(&self, state: &mut State, wanted: Reached, until: Deadline) -> Result<(), Failure> {
        if until.has_passed(self.means.clock.moment()) {
            return Err(self.too_late());
        }
        if state.reached == Reached::Nothing {
            self.reconnect(state, until)?;
        }
        if state.reached < Reached::Slow {
            self.step(state, |flavored, at| flavored.slow(at, until))?;
            state.reached = Reached::Slow;
        }
        if wanted == Reached::Final && state.reached < Reached::Final {
            let position = self.step(state, |flavored, at| flavored.last(at, until))?;
            state.reached = Reached::Final;
            self.remember(Some(position));
        }
        if until.has_passed(self.means.clock.moment()) { Err(self.too_late()) } else { Ok(()) }
    }

    /// Shows that what was reached is still held, on the session that took it.
    pub(super) fn prove(&self, wanted: Reached, round: u64) -> Result<String, Failure> {
        let mut state = self.state();
        if state.round != round || state.reached < wanted {
            return Err(self.lost("its locks were let go of"));
        }
        let reached = state.reached;
        self.step(&mut state, |flavored, at| flavored.prove(at, reached))
    }

    /// Lets go, unless that has been done.
    pub(super) fn thaw(&self, round: u64) -> Result<(), Failure> {
        let mut state = self.state();
        if state.round == round { self.let_go(&mut state) } else { Ok(()) }
    }

    /// Lets go of all locks, or closes the session, which does the same.
    fn let_go(&self, state: &mut State) -> Result<(), Failure> {
        state.round += 1;
        state.reached = Reached::Nothing;
        let released = match state.connection {
            Some(_) => self.step(state, |flavored, at| flavored.release(at)),
            None => Ok(()),
        };
        // It has not answered: it may hang, and then it does not see the end of the connection either.
        let hangs = state.connection.as_ref().is_some_and(Connection::is_silent);
        let closed = match &released {
            Ok(()) => None,
            // The server sees the end of the connection at once, or when its statement ends by its time.
            Err(_) => state.connection.take().map(|open| open.id()),
        };
        let State { connection, flavored, .. } = state;
        // Such a server is asked again when this is dropped; until then it stays in the journal.
        if !hangs && let Err(failure) = flavored.put_back(connection.as_mut(), &self.means) {
            tracing::error!(
                "a variable of {} has not its old value: {}",
                self.plan.source,
                failure.in_full()
            );
        }
        match (released, closed) {
            (Err(failure), Some(id)) if hangs => {
                let remedy = format!("see whether the server runs, and end connection {id}: KILL {id}");
                Err(Failure { remedy, ..failure })
            }
            // A session that is gone, or was closed, holds nobody.
            (Err(failure), _) => {
                let source = &self.plan.source;
                tracing::info!(
                    "{source}: the session was closed, which lets its locks go: {}",
                    failure.in_full()
                );
                Ok(())
            }
            (Ok(()), _) => Ok(()),
        }
    }

    /// A session that idled through a long preparation may have ended; nothing is held, so there may be another.
    fn reconnect(&self, state: &mut State, until: Deadline) -> Result<(), Failure> {
        let left = until.left(self.means.clock.moment());
        let answer = state.connection.as_mut().map(|open| open.run("DO 1", left));
        match answer {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) if error.kind() == FailureKind::TimedOut => Err(error.into()),
            Some(Err(_)) | None => self.connect(state, left.min(CONNECTING)).map(drop),
        }
    }

    fn connect(&self, state: &mut State, within: Duration) -> Result<Vec<Problem>, Failure> {
        state.connection = None;
        state.reached = Reached::Nothing;
        state.connection = Some(Connection::open(&self.plan.access, within)?);
        let problems = self.step(state, |flavored, at| flavored.settle(at))?;
        Ok(problems.into_iter().map(|problem| problem.of(&self.plan.source)).collect())
    }

    /// Runs one step of the flavor on the session.
    fn step<T>(
        &self,
        state: &mut State,
        step: impl FnOnce(&mut dyn Flavored, &mut At<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let State { connection, flavored, .. } = state;
        let Some(connection) = connection.as_mut() else {
            return Err(self.lost("the session that held its locks has ended"));
        };
        let mut at = At { connection, plan: &self.plan, budget: self.budget, means: &self.means };
        step(&mut **flavored, &mut at)
    }

    fn remember(&self, position: Option<ServerPosition>) {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = position;
    }

    fn lost(&self, what: &str) -> Failure {
        Failure::new(FailureKind::Lost, format!("{}: {what}", self.plan.source), "")
    }

    fn too_late(&self) -> Failure {
        let what = format!("{}: its locks were not taken by the deadline", self.plan.source);
        Failure::new(FailureKind::TimedOut, what, "try again, or raise stall_budget")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is changed in single steps, so it means something also after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn usable(state: &State) -> bool {
    state.connection.as_ref().is_some_and(|open| !open.is_broken())
}

impl Drop for Session {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.connection = None;
        if let Err(failure) = state.flavored.put_back(None, &self.means) {
            tracing::error!("{}", failure.in_full());
        }
    }
}
