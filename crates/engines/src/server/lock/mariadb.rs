//! MariaDB: `BACKUP STAGE`, <https://mariadb.com/kb/en/backup-stage/>.
//!
//! `START` waits for running DDL and for `LOCK TABLES … WRITE`; `FLUSH` closes non-transactional tables and blocks their
//! writers; `BLOCK_DDL` waits for statements that write to such tables; `BLOCK_COMMIT` waits for commits under way, and then
//! nothing is committed and nothing goes to the binary log. Open transactions are in nobody's way.
//!
//! A stage is proven by asking for it again: error 4147 says that this session is in that stage already.
//!
//! Crash story: the stage ends with the session. Each statement ends by `max_statement_time` in the server also if we are
//! gone. `innodb_flush_log_at_trx_commit` is journalled before it is raised.

use std::time::Duration;

use jiff::Timestamp;
use model::{
    plan::ServerLockPlan,
    port::{Failure, FailureKind},
    problem::{Effect, Problem},
    server::ServerPosition,
    time::Deadline,
};

use super::{
    super::{
        Means, PATIENCE,
        connect::Connection,
        error::{ServerError, code},
        position,
        variable::Raised,
    },
    At, Flavored, Reached,
};

/// How long a session that holds the stage may take for something that waits for nobody.
const ANSWER: Duration = Duration::from_secs(1);
/// What our side waits longer than the server's own limit, so that the server's answer is heard.
const SLACK: Duration = Duration::from_millis(200);
/// InnoDB writes its log at each commit only if this is not 0.
const FLUSH_LOG: &str = "innodb_flush_log_at_trx_commit";
/// Between preparation and freeze, while files are read, the session idles: for a day at the most.
const IDLE: u64 = 86_400;

/// The stages of one session.
#[derive(Default)]
pub(super) struct MariaDb {
    started: Option<Timestamp>,
    raised: Option<Raised>,
}

impl Flavored for MariaDb {
    fn settle(&mut self, at: &mut At<'_>) -> Result<Vec<Problem>, Failure> {
        let session = format!(
            "SET SESSION sql_mode = '', autocommit = 1, wait_timeout = {IDLE}, max_statement_time = 0"
        );
        at.connection.run(&session, PATIENCE)?;
        if at.plan.raise_flush_log {
            self.started = Some(at.connection.started()?);
        }
        // What is dirty now need not be written under the lock.
        at.connection.run("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS", PATIENCE)?;
        let channels = position::channels(at.connection, PATIENCE)?;
        let temporary = open_temporary_tables(at.connection)?;
        let mut problems = vec![];
        if !channels.is_empty() && temporary > 0 {
            problems.push(Problem::new(
                Effect::Note,
                None,
                format!("its replication has {temporary} temporary tables open, which a copy does not have"),
                "use binlog_format = ROW or MIXED on the source",
            ));
        }
        Ok(problems)
    }

    fn slow(&mut self, at: &mut At<'_>, until: Deadline) -> Result<(), Failure> {
        self.raise(at)?;
        lets_go_by_itself(at, until)?;
        ["START", "FLUSH", "BLOCK_DDL"].iter().try_for_each(|name| stage(at, name, until))
    }

    fn last(&mut self, at: &mut At<'_>, until: Deadline) -> Result<ServerPosition, Failure> {
        stage(at, "BLOCK_COMMIT", until)?;
        limited(at, "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS", until)?;
        let position = position::read_mariadb(at.connection, at.left(until) + SLACK)?;
        if position.applied.iter().any(|source| !source.is_complete) {
            refuse_prepared(at, until)?;
        }
        Ok(position)
    }

    fn prove(&mut self, at: &mut At<'_>, reached: Reached) -> Result<String, Failure> {
        let name = if reached == Reached::Final { "BLOCK_COMMIT" } else { "BLOCK_DDL" };
        let again = format!("SET STATEMENT max_statement_time=1 FOR BACKUP STAGE {name}");
        let id = at.connection.id();
        match at.connection.run(&again, ANSWER) {
            Err(ServerError::Said { code: code::BACKUP_STAGE_REACHED, said, .. }) if said.contains(name) => {
                Ok(format!("BACKUP STAGE {name} asked for again on connection {id}: error 4147, it is held"))
            }
            Err(error) => Err(lost(at.plan, name).because(error)),
            Ok(()) => Err(lost(at.plan, name)),
        }
    }

    fn release(&mut self, at: &mut At<'_>) -> Result<(), Failure> {
        match at.connection.run("BACKUP STAGE END", ANSWER) {
            // It never began.
            Err(error) if error.code() == Some(code::BACKUP_NOT_RUNNING) => Ok(()),
            other => other,
        }?;
        Ok(at.connection.run(&format!("SET SESSION wait_timeout = {IDLE}"), ANSWER)?)
    }

    fn put_back(&mut self, connection: Option<&mut Connection>, means: &Means) -> Result<(), Failure> {
        self.raised.take().map_or(Ok(()), |raised| raised.put_back(connection, means))
    }
}

impl MariaDb {
    /// At 0 the flush under the lock would do nothing.
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
}

/// From here on the server ends the session if it hears nothing of it for the stall budget.
fn lets_go_by_itself(at: &mut At<'_>, until: Deadline) -> Result<(), Failure> {
    let seconds = whole_seconds(at.budget);
    let sql = format!("SET SESSION wait_timeout = {seconds}, lock_wait_timeout = {seconds}");
    let within = at.left(until) + SLACK;
    Ok(at.connection.run(&sql, within)?)
}

/// Rounded up, and at least 1: 0 would mean without end, or not at all.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    let rounded = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    rounded.max(1)
}

fn stage(at: &mut At<'_>, name: &str, until: Deadline) -> Result<(), Failure> {
    limited(at, &format!("BACKUP STAGE {name}"), until)
}

/// Runs a statement that may have to wait, until shortly before the deadline.
fn limited(at: &mut At<'_>, statement: &str, until: Deadline) -> Result<(), Failure> {
    let left = at.left(until);
    let limit = left.saturating_sub((left / 20).min(Duration::from_millis(20)));
    if limit < Duration::from_millis(1) {
        let what = format!("{}: no time was left for {statement}", at.plan.source);
        return Err(Failure::new(FailureKind::TimedOut, what, "raise stall_budget"));
    }
    let sql = format!("SET STATEMENT max_statement_time={:.6} FOR {statement}", limit.as_secs_f64());
    at.connection.run(&sql, left + SLACK)?;
    tracing::debug!("{statement} took {:?}", left.saturating_sub(at.left(until)));
    Ok(())
}

/// MDEV-36025: a parallel applier prepares transactions before it is their turn, and while they wait they let go of the
/// lock that `BLOCK_COMMIT` waits for. A copy made then may not open, so the cut is not taken.
fn refuse_prepared(at: &mut At<'_>, until: Deadline) -> Result<(), Failure> {
    let sql = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = 'system user' AND STATE IN \
               ('Waiting for prior transaction to commit', 'Waiting for backup lock')";
    let within = at.left(until) + SLACK;
    match at.connection.number(sql, within)? {
        0 => Ok(()),
        count => Err(Failure::new(
            FailureKind::Busy,
            format!(
                "{}: {count} threads of its parallel applier have transactions under way, with which a copy may \
                 not open (MDEV-36025)",
                at.plan.source
            ),
            "SET GLOBAL slave_parallel_threads = 0 (with the applier stopped), or let stop and start hooks run STOP \
             SLAVE SQL_THREAD and START SLAVE SQL_THREAD",
        )),
    }
}

fn open_temporary_tables(connection: &mut Connection) -> Result<u64, ServerError> {
    let row = connection.first("SHOW GLOBAL STATUS LIKE 'Slave_open_temp_tables'", PATIENCE)?;
    Ok(row.and_then(|row| row.number(1)).unwrap_or(0))
}

fn lost(plan: &ServerLockPlan, name: &str) -> Failure {
    let what = format!("{}: BACKUP STAGE {name} is not held any more", plan.source);
    Failure::new(FailureKind::Lost, what, "see who ends the connections of the backup's account")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::whole_seconds;

    #[test]
    fn the_session_ends_by_itself_after_the_budget_and_not_before() {
        let of = |millis| whole_seconds(Duration::from_millis(millis));
        assert_eq!([of(0), of(200), of(1_000), of(1_001), of(2_000)], [1, 1, 1, 2, 2]);
    }
}
