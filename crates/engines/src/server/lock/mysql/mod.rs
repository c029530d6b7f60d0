//! MySQL 8: `LOCK INSTANCE FOR BACKUP`, then `FLUSH TABLES WITH READ LOCK`.
//!
//! `LOCK INSTANCE FOR BACKUP` waits for running definitions and then holds new ones back, nobody else. The read lock stops
//! everything that writes, from the moment it is asked for; it waits for the statements that are under way, reading ones
//! too. `max_execution_time` does not bound it and `lock_wait_timeout` counts whole seconds, so both locks are taken under
//! a [`guard`]: a second session that ends the waiting statement before the deadline.
//!
//! A read lock that is given up while a long query has a table open leaves that table closed to everybody until the query
//! ends. So it is not asked for at all while a statement that has run for a second has tables open, unless such queries may
//! be ended.
//!
//! The locks are proven by `performance_schema.metadata_locks`: GLOBAL, COMMIT and BACKUP LOCK, `SHARED` and `EXPLICIT`, owned
//! by this very session. Where that is switched off, by the session itself: only `UNLOCK` or its end gives them back.
//!
//! **Driven against a scripted server only** (`testkit::scripted`): MySQL's own is not in Debian. Sources: the reference
//! manual of 8.0 and 8.4 on these statements and tables.
//!
//! Crash story: the locks end with the session. If we die while a lock is waited for, the server looks once a second whether
//! its client is there; only while it waits for tables that a query has open it does not, and gives up after
//! `lock_wait_timeout`, which is the stall budget: at the worst writers wait for twice the budget then.
//! `innodb_flush_log_at_trx_commit` is journalled before it is raised.

mod guard;
mod position;

use std::time::Duration;

use jiff::Timestamp;
use model::{
    plan::ServerLockPlan,
    port::{Failure, FailureKind},
    problem::{Effect, Problem},
    server::ServerPosition,
    time::Deadline,
};

use self::guard::Guard;
pub(in super::super) use self::position::replicas;
use super::{
    super::{
        Means, PATIENCE,
        connect::{Connection, ConnectionId, quoted},
        variable::Raised,
    },
    At, Flavored, Reached,
    mariadb::whole_seconds,
};

/// How long a session that holds the locks may take for something that waits for nobody.
const ANSWER: Duration = Duration::from_secs(1);
/// InnoDB writes its log at each commit only if this is not 0.
const FLUSH_LOG: &str = "innodb_flush_log_at_trx_commit";
/// Between preparation and freeze, while files are read, the session idles: for a day at the most.
const IDLE: u64 = 86_400;
const FLUSH: &str = "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS";

/// The locks of one session, and the session that guards it.
#[derive(Default)]
pub(super) struct MySql {
    started: Option<Timestamp>,
    raised: Option<Raised>,
    guard: Option<Guard>,
    /// Metadata locks can be looked at.
    instrumented: bool,
    /// Names this very session and freeze.
    token: String,
    /// Whose queries were ended because they were in the way.
    ended: Vec<ConnectionId>,
    /// `performance_schema.log_status` said the same position.
    confirmed: bool,
}

impl Flavored for MySql {
    fn settle(&mut self, at: &mut At<'_>) -> Result<Vec<Problem>, Failure> {
        let session = format!("SET SESSION sql_mode = '', autocommit = 1, wait_timeout = {IDLE}");
        at.connection.run(&session, PATIENCE)?;
        if at.plan.raise_flush_log {
            self.started = Some(at.connection.started()?);
        }
        // What is dirty now need not be written under the lock.
        at.connection.run(FLUSH, PATIENCE)?;
        self.instrumented = is_instrumented(at.connection);
        self.guard = Some(Guard::open(at.plan, self.instrumented, PATIENCE)?);
        let mut problems = position::problems(at.connection, PATIENCE)?;
        if !self.instrumented {
            problems.push(note(
                "its metadata locks cannot be looked at, so that its locks are held is shown by the session alone",
                "set performance_schema = ON, and let the account read performance_schema",
            ));
        }
        Ok(problems)
    }

    fn slow(&mut self, at: &mut At<'_>, until: Deadline) -> Result<(), Failure> {
        self.raise(at)?;
        self.guard(at, until)?.wake()?;
        self.ended.clear();
        self.token = format!("{} {}", at.connection.id(), at.means.clock.moment().0);
        // From here on the server ends the session if it hears nothing of it for the stall budget.
        let seconds = whole_seconds(at.budget);
        let token = quoted(&self.token);
        let sql = format!(
            "SET SESSION wait_timeout = {seconds}, SESSION lock_wait_timeout = {seconds}, @stillpoint = {token}"
        );
        at.connection.run(&sql, ANSWER)?;
        self.guarded(at, "LOCK INSTANCE FOR BACKUP", until)
    }

    fn last(&mut self, at: &mut At<'_>, until: Deadline) -> Result<ServerPosition, Failure> {
        self.refuse_long_queries(at, until)?;
        self.guarded(at, "FLUSH TABLES WITH READ LOCK", until)?;
        self.guarded(at, FLUSH, until)?;
        let within = at.left(until).max(Duration::from_millis(1));
        let position = position::read(at.connection, within)?;
        self.confirmed = position::confirmed(at.connection, &position, within)?;
        Ok(position)
    }

    fn prove(&mut self, at: &mut At<'_>, reached: Reached) -> Result<String, Failure> {
        let id = at.connection.id();
        let mut text = if self.instrumented {
            let wanted: &[&str] = match reached {
                Reached::Final => &["BACKUP LOCK", "COMMIT", "GLOBAL"],
                Reached::Slow | Reached::Nothing => &["BACKUP LOCK"],
            };
            held(at, wanted)?;
            let names = wanted.join(", ");
            format!("performance_schema.metadata_locks shows {names} granted to connection {id}")
        } else {
            self.same_session(at)?;
            format!("connection {id}, which took the locks and has not given them back, is still there")
        };
        if !self.ended.is_empty() {
            let ended: Vec<String> = self.ended.iter().map(ToString::to_string).collect();
            text.push_str(&format!("; queries in the way were ended, on connections {}", ended.join(", ")));
        }
        if self.confirmed && reached == Reached::Final {
            text.push_str("; performance_schema.log_status says the same position");
        }
        Ok(text)
    }

    fn release(&mut self, at: &mut At<'_>) -> Result<(), Failure> {
        if at.connection.is_broken()
            && let Some(guard) = &mut self.guard
        {
            // The server may not notice for a second that nobody listens any more.
            guard.end_session(at.connection.id());
        }
        at.connection.run("UNLOCK TABLES", ANSWER)?;
        at.connection.run("UNLOCK INSTANCE", ANSWER)?;
        Ok(at.connection.run(&format!("SET SESSION wait_timeout = {IDLE}"), ANSWER)?)
    }

    fn put_back(&mut self, connection: Option<&mut Connection>, means: &Means) -> Result<(), Failure> {
        self.raised.take().map_or(Ok(()), |raised| raised.put_back(connection, means))
    }
}

impl MySql {
    /// At 0 what was committed during the last second may be in no file yet.
    fn raise(&mut self, at: &mut At<'_>) -> Result<(), Failure> {
        if at.plan.raise_flush_log && self.raised.is_none() {
            let started = match self.started {
                Some(started) => started,
                None => at.connection.started()?,
            };
            self.raised = Raised::raise(at.connection, FLUSH_LOG, "1", started, at.means)?;
        }
        Ok(())
    }

    /// The guard, made anew if it is of no use.
    fn guard(&mut self, at: &At<'_>, until: Deadline) -> Result<&mut Guard, Failure> {
        let guard = match self.guard.take() {
            Some(guard) if guard.is_usable() => guard,
            _ => Guard::open(at.plan, self.instrumented, at.left(until).max(Duration::from_millis(1)))?,
        };
        Ok(self.guard.insert(guard))
    }

    /// Runs a statement that may have to wait; it is ended shortly before the deadline.
    fn guarded(&mut self, at: &mut At<'_>, statement: &str, until: Deadline) -> Result<(), Failure> {
        let left = at.left(until);
        let guard = self.guard(at, until)?;
        let ended = guard.run(at.connection, at.plan, statement, left)?;
        self.ended.extend(ended);
        Ok(())
    }

    /// Nobody is held yet, except definitions: this is the moment to see that the read lock would wait for long.
    fn refuse_long_queries(&mut self, at: &mut At<'_>, until: Deadline) -> Result<(), Failure> {
        if at.plan.end_blocking_queries {
            return Ok(());
        }
        let own = at.connection.id();
        let within = at.left(until).max(Duration::from_millis(1));
        let guard = self.guard(at, until)?;
        let Some(first) = guard.long_queries(own, within)?.into_iter().next() else {
            return Ok(());
        };
        Err(Failure::new(
            FailureKind::Busy,
            format!(
                "{}: a query of connection {} has run for {} s; a read lock would hold all writers back until it ends",
                at.plan.source, first.id, first.seconds
            ),
            format!(
                "try again when it is over, end it (KILL QUERY {}), or set end_blocking_queries",
                first.id
            ),
        ))
    }

    fn same_session(&self, at: &mut At<'_>) -> Result<(), Failure> {
        let id = at.connection.id();
        match at.connection.first("SELECT CONNECTION_ID(), @stillpoint", ANSWER) {
            Ok(Some(row)) if row.number(0) == Some(id.0) && row.text(1) == self.token => Ok(()),
            Ok(_) => Err(lost(at.plan, "the session that held its locks is another one")),
            Err(error) => Err(lost(at.plan, "the session that held its locks has ended").because(error)),
        }
    }
}

/// Shows that these scoped locks, and no fewer, are granted to this very session.
fn held(at: &mut At<'_>, wanted: &[&str]) -> Result<(), Failure> {
    let sql = "SELECT OBJECT_TYPE FROM performance_schema.metadata_locks WHERE LOCK_TYPE = 'SHARED' AND \
               LOCK_DURATION = 'EXPLICIT' AND LOCK_STATUS = 'GRANTED' AND OWNER_THREAD_ID = (SELECT THREAD_ID FROM \
               performance_schema.threads WHERE PROCESSLIST_ID = CONNECTION_ID())";
    let rows = match at.connection.rows(sql, ANSWER) {
        Ok(rows) => rows,
        Err(error) => return Err(lost(at.plan, "its locks cannot be shown to be held").because(error)),
    };
    let granted: Vec<String> = rows.iter().map(|row| row.text(0)).collect();
    match wanted.iter().find(|name| !granted.iter().any(|granted| granted == **name)) {
        None => Ok(()),
        Some(name) => Err(lost(at.plan, &format!("its lock {name} is not held any more"))),
    }
}

/// Whether metadata locks can be looked at: instrumented by default since 8.0.
fn is_instrumented(connection: &mut Connection) -> bool {
    let sql =
        "SELECT ENABLED FROM performance_schema.setup_instruments WHERE NAME = 'wait/lock/metadata/sql/mdl'";
    let enabled = connection.value(sql, PATIENCE).ok().flatten();
    let readable = "SELECT COUNT(*) FROM performance_schema.metadata_locks";
    enabled.as_deref() == Some("YES") && connection.number(readable, PATIENCE).is_ok()
}

fn note(what: &str, remedy: &str) -> Problem {
    Problem::new(Effect::Note, None, what, remedy)
}

fn lost(plan: &ServerLockPlan, what: &str) -> Failure {
    let remedy = "see who ends the connections of the backup's account";
    Failure::new(FailureKind::Lost, format!("{}: {what}", plan.source), remedy)
}
