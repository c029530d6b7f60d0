//! A second session that watches over a statement of the first, since the server itself bounds it by whole seconds at best:
//! [`Guard`].
//!
//! It ends that statement (`KILL QUERY`) before the time is over, and, only if the plan allows it, the queries that are in
//! its way before that. `KILL QUERY` of a session that waits for nothing ends nothing, so it may come too late.
//!
//! Crash story: it holds nothing. If it is lost while it watches, the statement ends by `lock_wait_timeout`, and our side
//! stops waiting at the deadline and closes the session.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use model::{
    plan::ServerLockPlan,
    port::{Failure, FailureKind},
};

use super::super::super::{
    connect::{Connection, ConnectionId},
    error::{ServerError, code},
};

/// What our side waits longer than the guard, so that the server's answer to its end is heard.
const SLACK: Duration = Duration::from_millis(300);
/// How long the guard's own statements may take.
const QUICK: Duration = Duration::from_millis(500);
/// A query that has run for so many seconds will hardly end in the next milliseconds.
const LONG: u64 = 1;
/// How often the guard looks who is in the way.
const LOOK: Duration = Duration::from_millis(50);

/// Waits of others for locks like ours: whoever is in such a state is in nobody's way.
const WAITS: &str = "'Waiting for global read lock', 'Waiting for commit lock', 'Waiting for table flush', 'Waiting for \
                     backup lock', 'Waiting for table metadata lock'";

/// A second session.
pub(super) struct Guard {
    connection: Connection,
    /// Metadata locks can be looked at, so that it is seen who is in the way.
    instrumented: bool,
}

/// A statement that is under way.
pub(super) struct Running {
    /// Whose.
    pub(super) id: ConnectionId,
    /// For how long.
    pub(super) seconds: u64,
}

impl Guard {
    pub(super) fn open(plan: &ServerLockPlan, instrumented: bool, within: Duration) -> Result<Self, Failure> {
        let mut connection = Connection::open(&plan.access, within)?;
        connection.run("SET SESSION wait_timeout = 86400", within)?;
        Ok(Self { connection, instrumented })
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.connection.is_broken()
    }

    /// Sees that it is there; it is made anew if it is not.
    pub(super) fn wake(&mut self) -> Result<(), Failure> {
        if self.connection.run("DO 0", QUICK).is_err() {
            self.connection = Connection::open(&self.connection.access().clone(), QUICK)?;
        }
        Ok(())
    }

    /// Ends a session that does not answer.
    pub(super) fn end_session(&mut self, id: ConnectionId) {
        match self.connection.run(&format!("KILL {id}"), QUICK) {
            Err(error) if error.code() != Some(code::NO_SUCH_THREAD) => {
                tracing::warn!("connection {id} could not be ended: {error}");
            }
            _ => {}
        }
    }

    /// Statements of others that have run for long and have tables open.
    pub(super) fn long_queries(
        &mut self,
        own: ConnectionId,
        within: Duration,
    ) -> Result<Vec<Running>, ServerError> {
        self.running(own, LONG, within)
    }

    fn running(
        &mut self,
        own: ConnectionId,
        seconds: u64,
        within: Duration,
    ) -> Result<Vec<Running>, ServerError> {
        // Without a look at metadata locks every statement may be in the way.
        let tables = "AND EXISTS (SELECT 1 FROM performance_schema.threads AS t JOIN performance_schema.metadata_locks AS \
                      m ON m.OWNER_THREAD_ID = t.THREAD_ID WHERE t.PROCESSLIST_ID = p.ID AND m.LOCK_STATUS = 'GRANTED' \
                      AND m.OBJECT_TYPE IN ('TABLE', 'GLOBAL', 'COMMIT', 'BACKUP LOCK'))";
        let tables = if self.instrumented { tables } else { "" };
        // The other list of processes stops all logins and logouts while it is read.
        let fast = self.instrumented && self.connection.version().number >= (8, 0, 22);
        let schema = if fast { "performance_schema" } else { "information_schema" };
        let guard = self.connection.id();
        let sql = format!(
            "SELECT p.ID, p.TIME FROM {schema}.processlist AS p WHERE p.COMMAND IN ('Query', 'Execute') AND \
             p.TIME >= {seconds} AND p.USER NOT IN ('system user', 'event_scheduler') AND p.ID NOT IN ({own}, {guard}) \
             AND IFNULL(p.STATE, '') NOT IN ({WAITS}) {tables} ORDER BY p.TIME DESC"
        );
        let rows = self.connection.rows(&sql, within)?;
        let running = rows.iter().filter_map(|row| {
            Some(Running { id: ConnectionId(row.number(0)?), seconds: row.number(1).unwrap_or(0) })
        });
        Ok(running.collect())
    }

    /// Runs a statement on the watched session for so long at the most; says whose queries were ended for it.
    pub(super) fn run(
        &mut self,
        watched: &mut Connection,
        plan: &ServerLockPlan,
        statement: &str,
        left: Duration,
    ) -> Result<Vec<ConnectionId>, Failure> {
        let limit = left.saturating_sub((left / 5).min(Duration::from_millis(100)));
        if limit < Duration::from_millis(1) {
            return Err(no_time(plan, statement));
        }
        let id = watched.id();
        let watch = &Watch { id, limit, may_end: plan.end_blocking_queries };
        let guard = self;
        let (result, seen) = thread::scope(|scope| {
            let (done, is_done) = channel::<()>();
            let watcher = thread::Builder::new().name("guard".into());
            let watching = watcher.spawn_scoped(scope, move || watch.over(guard, &is_done));
            let watching = match watching {
                Ok(watching) => watching,
                Err(error) => return (Err(no_guard(plan, error)), Seen::default()),
            };
            let result = watched.run(statement, left + SLACK).map_err(Failure::from);
            drop(done);
            (result, watching.join().unwrap_or_default())
        });
        match result {
            Ok(()) => Ok(seen.ended),
            Err(_) if seen.gave_up && !watched.is_broken() => Err(gave_up(plan, statement, &seen)),
            Err(failure) => Err(failure),
        }
    }
}

/// What the guard is to do.
struct Watch {
    id: ConnectionId,
    limit: Duration,
    may_end: bool,
}

/// What the guard did.
#[derive(Default)]
struct Seen {
    gave_up: bool,
    ended: Vec<ConnectionId>,
    in_the_way: Option<Running>,
}

impl Watch {
    /// Until the statement is done: then the sender of `is_done` is dropped.
    fn over(&self, guard: &mut Guard, is_done: &Receiver<()>) -> Seen {
        let begun = Instant::now();
        let mut seen = Seen::default();
        // A quarter of the time is the others' to end by themselves.
        let mut next = if self.may_end { self.limit / 4 } else { self.limit };
        loop {
            let pause = next.saturating_sub(begun.elapsed());
            match is_done.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return seen,
            }
            if begun.elapsed() >= self.limit {
                self.give_up(guard, &mut seen);
                next = begun.elapsed() + LOOK;
            } else {
                self.clear_the_way(guard, &mut seen);
                next = (begun.elapsed() + LOOK).min(self.limit);
            }
        }
    }

    /// Ends the watched statement; first things first, who was in its way is asked later.
    fn give_up(&self, guard: &mut Guard, seen: &mut Seen) {
        let told = guard.connection.run(&format!("KILL QUERY {}", self.id), QUICK);
        if let Err(error) = told {
            tracing::warn!("the statement of connection {} could not be ended: {error}", self.id);
        }
        if !seen.gave_up {
            seen.gave_up = true;
            let running = guard.running(self.id, 0, QUICK).unwrap_or_default();
            seen.in_the_way = running.into_iter().next();
        }
    }

    fn clear_the_way(&self, guard: &mut Guard, seen: &mut Seen) {
        // Who is young may only seem to be in the way, if that cannot be looked at.
        let seconds = if guard.instrumented { 0 } else { LONG };
        for running in guard.running(self.id, seconds, QUICK).unwrap_or_default() {
            if seen.ended.contains(&running.id) {
                continue;
            }
            match guard.connection.run(&format!("KILL QUERY {}", running.id), QUICK) {
                Ok(()) => {
                    tracing::warn!("the query of connection {} was in the way and was ended", running.id);
                    seen.ended.push(running.id);
                }
                Err(error) => tracing::warn!("the query of connection {}: {error}", running.id),
            }
        }
    }
}

fn gave_up(plan: &ServerLockPlan, statement: &str, seen: &Seen) -> Failure {
    let mut what = format!("{}: {statement} had to wait for too long and was given up", plan.source);
    let mut remedy = "try again, or raise stall_budget if its clients can wait longer".to_owned();
    if let Some(running) = &seen.in_the_way {
        what.push_str(&format!(" because of a statement of connection {}", running.id));
        remedy = format!(
            "see what it does, and end it if need be (KILL QUERY {}): until then its tables may stay closed to others; or \
             set end_blocking_queries",
            running.id
        );
    }
    Failure::new(FailureKind::TimedOut, what, remedy)
}

fn no_time(plan: &ServerLockPlan, statement: &str) -> Failure {
    let what = format!("{}: no time was left for {statement}", plan.source);
    Failure::new(FailureKind::TimedOut, what, "raise stall_budget")
}

fn no_guard(plan: &ServerLockPlan, error: std::io::Error) -> Failure {
    let what = format!("{}: no thread could be started to guard its locks", plan.source);
    Failure::new(FailureKind::Other, what, "see how many threads are allowed here").because(error)
}
