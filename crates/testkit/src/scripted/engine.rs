//! What statements do: who waits for whom, as a MySQL 8 server does it.
//!
//! - A statement that writes takes `INTENTION_EXCLUSIVE` on GLOBAL for its duration, its commit the same on COMMIT;
//!   a definition also on BACKUP LOCK.
//! - `FLUSH TABLES WITH READ LOCK` asks for GLOBAL (from then on no new writer gets in), waits for those inside,
//!   outdates all tables that running statements have open and waits for these, then takes COMMIT.
//! - A table that was outdated is opened by nobody until the statements that had it open end, *even if the flush
//!   has been killed meanwhile*.
//! - `LOCK INSTANCE FOR BACKUP` waits for running definitions and holds new ones back, and nobody else.
//!
//! Sources: the reference manual on `FLUSH`, `LOCK INSTANCE FOR BACKUP` and `metadata_locks`, and `mdl.cc` and
//! `sql_reload.cc` of the server.

use std::time::{Duration, Instant};

use super::{
    sql,
    state::{Asked, Core, Guard, Kill, ReadLock, State},
    wire::SqlError,
};

type Done = Result<(), SqlError>;

/// What a statement does to tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Define,
}

/// Runs a statement on tables.
pub(super) fn touch(core: &Core, id: u64, statement: &str, access: Access) -> Done {
    let tables = sql::tables(statement);
    let duration = how_long(&core.lock(), statement);
    let result = enter(core, id, &tables, access)
        .and_then(|()| core.work(id, if access == Access::Read { "executing" } else { "updating" }, duration))
        .and_then(|()| if access == Access::Read { Ok(()) } else { wrote(core, id, access) });
    core.change(|state| state.end_statement(id));
    result
}

fn how_long(state: &State, statement: &str) -> Duration {
    let capital = statement.to_uppercase();
    let scripted = state.durations.iter().find(|(text, _)| capital.contains(text.as_str()));
    scripted.map_or_else(|| sql::sleeps(statement), |(_, duration)| *duration)
}

/// Takes the scoped locks and opens the tables.
fn enter(core: &Core, id: u64, tables: &[String], access: Access) -> Done {
    let mut state = core.lock();
    if access == Access::Define {
        state = core.wait_while(state, id, "Waiting for backup lock", true, |state| {
            state.other(id, |session| session.backup.is_in_the_way())
        })?;
    }
    if access != Access::Read {
        if state.sessions.get(&id).is_some_and(|session| session.global == Asked::Held) {
            let message = "Can't execute the query because you have a conflicting read lock";
            return Err(SqlError::new(1223, message));
        }
        state = core.wait_while(state, id, "Waiting for global read lock", true, |state| {
            state.other(id, |session| session.global.is_in_the_way())
        })?;
    }
    let stale = |state: &State| tables.iter().any(|table| state.is_stale(table));
    state = core.wait_while(state, id, "Waiting for table flush", false, stale)?;
    if let Some(session) = state.sessions.get_mut(&id) {
        session.uses = tables.iter().cloned().collect();
        session.writes = access != Access::Read;
        session.defines = access == Access::Define;
    }
    Ok(())
}

/// Ends a statement that wrote: by a commit, unless a transaction is open.
fn wrote(core: &Core, id: u64, access: Access) -> Done {
    let open = core.change(|state| {
        let session = state.sessions.get_mut(&id)?;
        session.wrote = true;
        Some(session.in_transaction && access == Access::Write)
    });
    if open == Some(false) { commit(core, id) } else { Ok(()) }
}

/// `COMMIT`: of nothing, unless something was written.
pub(super) fn commit(core: &Core, id: u64) -> Done {
    let state = core.lock();
    if !state.sessions.get(&id).is_some_and(|session| session.wrote) {
        drop(state);
        end_transaction(core, id);
        return Ok(());
    }
    let mut state = core.wait_while(state, id, "Waiting for commit lock", true, |state| {
        state.other(id, |session| session.commit.is_in_the_way())
    })?;
    if let Some(session) = state.sessions.get_mut(&id) {
        session.commits = true;
    }
    let duration = how_long(&state, "COMMIT");
    drop(state);
    let result = core.work(id, "waiting for handler commit", duration);
    core.change(|state| {
        if result.is_ok() {
            state.transactions += 1;
            state.binlog.1 += 311;
            state.commits.push(Instant::now());
        }
        if let Some(session) = state.sessions.get_mut(&id) {
            session.commits = false;
        }
    });
    end_transaction(core, id);
    result
}

/// `ROLLBACK`, or what follows a commit.
pub(super) fn end_transaction(core: &Core, id: u64) {
    core.change(|state| {
        if let Some(session) = state.sessions.get_mut(&id) {
            (session.in_transaction, session.wrote) = (false, false);
        }
    });
}

/// `BEGIN`.
pub(super) fn begin(core: &Core, id: u64) -> Done {
    commit(core, id)?;
    core.change(|state| {
        if let Some(session) = state.sessions.get_mut(&id) {
            session.in_transaction = true;
        }
    });
    Ok(())
}

/// `FLUSH TABLES WITH READ LOCK`.
pub(super) fn read_lock(core: &Core, id: u64) -> Done {
    commit(core, id)?;
    core.change(|state| {
        if let Some(session) = state.sessions.get_mut(&id) {
            session.global = Asked::Pending;
        }
        state.read_locks.push(ReadLock { session: id, asked: Instant::now(), had: None, over: None });
    });
    let result = take_read_lock(core, id);
    if result.is_err() {
        core.change(|state| {
            state.end_read_lock(id);
            state.end_statement(id);
        });
    }
    result
}

fn take_read_lock(core: &Core, id: u64) -> Done {
    let writers = |state: &State| state.other(id, |session| session.writes);
    let mut state = core.wait_while(core.lock(), id, "Waiting for global read lock", true, writers)?;
    set(&mut state, id, |session| session.global = Asked::Held);
    outdate(&mut state, id);
    let open = |state: &State| state.stale.values().any(|users| users.iter().any(|user| *user != id));
    let mut state = core.wait_while(state, id, "Waiting for table flush", false, open)?;
    set(&mut state, id, |session| session.commit = Asked::Pending);
    let commits = |state: &State| state.other(id, |session| session.commits);
    let mut state = core.wait_while(state, id, "Waiting for commit lock", true, commits)?;
    set(&mut state, id, |session| session.commit = Asked::Held);
    if let Some(lock) = state.read_locks.iter_mut().rev().find(|lock| lock.session == id) {
        lock.had = Some(Instant::now());
    }
    state.end_statement(id);
    Ok(())
}

fn set(state: &mut Guard<'_>, id: u64, change: impl FnOnce(&mut super::state::Session)) {
    if let Some(session) = state.sessions.get_mut(&id) {
        change(session);
    }
}

/// Every table that somebody has open now is out of date.
fn outdate(state: &mut State, but: u64) {
    let users = state.sessions.iter().filter(|(id, _)| **id != but);
    let open: Vec<(String, u64)> =
        users.flat_map(|(id, session)| session.uses.iter().map(|table| (table.clone(), *id))).collect();
    for (table, user) in open {
        state.stale.entry(table).or_default().insert(user);
    }
}

/// `LOCK INSTANCE FOR BACKUP`.
pub(super) fn lock_instance(core: &Core, id: u64) -> Done {
    core.change(|state| {
        if let Some(session) = state.sessions.get_mut(&id) {
            session.backup = Asked::Pending;
        }
    });
    let definitions = |state: &State| state.other(id, |session| session.defines);
    let result = core.wait_while(core.lock(), id, "Waiting for backup lock", true, definitions);
    let asked = if result.is_ok() { Asked::Held } else { Asked::No };
    let result = result.map(drop);
    core.change(|state| {
        if let Some(session) = state.sessions.get_mut(&id) {
            session.backup = asked;
        }
        state.end_statement(id);
    });
    result
}

/// `UNLOCK INSTANCE`.
pub(super) fn unlock_instance(core: &Core, id: u64) {
    core.change(|state| {
        if let Some(session) = state.sessions.get_mut(&id) {
            session.backup = Asked::No;
        }
    });
}

/// `KILL QUERY` and `KILL`.
pub(super) fn kill(core: &Core, by: u64, id: u64, how: Kill) -> Done {
    core.change(|state| {
        let Some(session) = state.sessions.get_mut(&id) else {
            return Err(SqlError::new(1094, format!("Unknown thread id: {id}")));
        };
        match how {
            Kill::Connection => {
                session.kill = Kill::Connection;
                let _ = session.stream.shutdown(std::net::Shutdown::Both);
            }
            // Of a session that waits for a command nothing is killed.
            _ if id != by && session.command != "Sleep" => session.kill = Kill::Query,
            _ => {}
        }
        Ok(())
    })
}
