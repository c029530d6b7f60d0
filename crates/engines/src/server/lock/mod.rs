//! Holding the writers of a server back: two holds on one session, [`ServerLock`].
//!
//! A [`Flavored`] says which statements lock; everything else is the same for all servers: one session, bounded
//! statements, a server that lets go by itself, a proof on that very session.
//!
//! Crash story: the locks end with the session, whose socket the kernel closes however we die; `wait_timeout` of the session
//! is the stall budget, for the day on which nobody closes it (a cable, a stopped program). A step that fails lets go of
//! all that the session holds, or closes it. Nothing but a raised variable is journalled, see [`super::variable`].

mod mariadb;
mod mysql;
mod session;

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use model::{
    id::SourceId,
    plan::{HoldClass, ServerLockPlan},
    port::{Failure, Frozen, Hold},
    problem::Problem,
    server::{ServerAccess, ServerPosition},
    time::Deadline,
    verdict::Stillness,
};

pub(super) use self::mysql::replicas as mysql_replicas;
use self::session::{Reached, Session};
use super::{Means, connect::Connection, position};

/// What the statements of one flavor have to do. All are called on the one session, in the order `settle`, `slow`,
/// `last`, `prove`, `release`; from `slow` on again after a release. Nothing here may wait beyond its deadline.
trait Flavored: Send {
    /// Makes a fresh session ready and warms the server up. Holds nobody back.
    fn settle(&mut self, at: &mut At<'_>) -> Result<Vec<Problem>, Failure>;
    /// Takes the locks that may have to wait. After an error [`release`](Self::release) follows.
    fn slow(&mut self, at: &mut At<'_>, until: Deadline) -> Result<(), Failure>;
    /// Stops commits and reads the position; the slow locks are held. After an error `release` follows.
    fn last(&mut self, at: &mut At<'_>, until: Deadline) -> Result<ServerPosition, Failure>;
    /// Shows that what was reached is still held; says how. Anything else is [`model::port::FailureKind::Lost`].
    fn prove(&mut self, at: &mut At<'_>, reached: Reached) -> Result<String, Failure>;
    /// Lets go of everything that the session holds, and confirms it. After an error the session is closed.
    fn release(&mut self, at: &mut At<'_>) -> Result<(), Failure>;
    /// Undoes what does not end with the session, once the writers run again; on the session if it still works.
    /// What cannot be undone stays in the journal.
    fn put_back(&mut self, connection: Option<&mut Connection>, means: &Means) -> Result<(), Failure>;
}

/// What the statements are run with.
struct At<'a> {
    connection: &'a mut Connection,
    plan: &'a ServerLockPlan,
    /// The stall budget.
    budget: Duration,
    means: &'a Means,
}

impl At<'_> {
    /// What is left until a deadline.
    fn left(&self, until: Deadline) -> Duration {
        until.left(self.means.clock.moment())
    }
}

/// Locks one server.
pub struct ServerLock {
    session: Arc<Session>,
}

/// What pinners of a server ask.
#[derive(Clone)]
pub struct Holder {
    session: Weak<Session>,
    access: ServerAccess,
    position: Arc<Mutex<Option<ServerPosition>>>,
}

impl ServerLock {
    /// The lock of this server; `budget` is how long its writers may be held at the most.
    #[must_use]
    pub fn new(plan: &ServerLockPlan, budget: Duration, means: Means) -> Self {
        Self { session: Arc::new(Session::new(plan, budget, means)) }
    }

    /// For the pinners of this server.
    #[must_use]
    pub fn holder(&self) -> Holder {
        Holder {
            session: Arc::downgrade(&self.session),
            access: self.session.access().clone(),
            position: self.session.position(),
        }
    }

    /// The two holds, in the order in which they are taken.
    #[must_use]
    pub fn into_holds(self) -> Vec<Box<dyn Hold>> {
        let hold =
            |reached| -> Box<dyn Hold> { Box::new(Step { session: Arc::clone(&self.session), reached }) };
        vec![hold(Reached::Slow), hold(Reached::Final)]
    }
}

impl Holder {
    /// Where the server stood at the cut that is under way, or at the last one: read under the final lock.
    #[must_use]
    pub fn position(&self) -> Option<ServerPosition> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the final lock is held, as far as this side knows; [`Frozen::prove`] asks the server.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.session.upgrade().is_some_and(|session| session.is_locked())
    }

    /// Another connection to the server, which holds nothing.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn connect(&self, within: Duration) -> Result<Connection, Failure> {
        Connection::open(&self.access, within)
    }

    /// How the server is reached.
    #[must_use]
    pub fn access(&self) -> &ServerAccess {
        &self.access
    }

    /// After the thaw: asks the server whether the GTIDs of the position belong to its file and offset; says how that was
    /// shown. It may scan a whole binary log.
    ///
    /// # Errors
    /// [`model::port::FailureKind::Damaged`] if they do not; if the server cannot be asked, or no position was read.
    pub fn confirm_position(&self, within: Duration) -> Result<String, Failure> {
        let Some(position) = self.position() else {
            return Err(Failure::new(
                model::port::FailureKind::Other,
                "no position was read under the lock",
                "",
            ));
        };
        let mut connection = self.connect(within)?;
        position::confirm(&mut connection, &position, within)
    }
}

/// One of the two holds.
struct Step {
    session: Arc<Session>,
    reached: Reached,
}

impl Hold for Step {
    fn name(&self) -> String {
        match self.reached {
            Reached::Final => format!("commits of {}", self.session.source()),
            Reached::Slow | Reached::Nothing => format!("definitions of {}", self.session.source()),
        }
    }

    fn class(&self) -> HoldClass {
        match self.reached {
            Reached::Final => HoldClass::FinalLock,
            Reached::Slow | Reached::Nothing => HoldClass::SlowLock,
        }
    }

    fn sources(&self) -> Vec<SourceId> {
        vec![self.session.source().clone()]
    }

    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        self.session.prepare()
    }

    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        let round = self.session.freeze(self.reached, until)?;
        Ok(Box::new(Locked { session: Arc::clone(&self.session), reached: self.reached, round, open: true }))
    }
}

/// A step that is held. Letting go of either lets go of both: locks of such servers cannot be given back one by one, and
/// whoever ends a cut ends all of it.
struct Locked {
    session: Arc<Session>,
    reached: Reached,
    round: u64,
    open: bool,
}

impl Frozen for Locked {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        self.session.prove(self.reached, self.round).map(Stillness::Lock)
    }

    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        self.open = false;
        self.session.thaw(self.round)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.open
            && let Err(failure) = self.session.thaw(self.round)
        {
            tracing::error!("{}", failure.in_full());
        }
    }
}
