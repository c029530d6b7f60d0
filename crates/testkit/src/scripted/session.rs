//! One connection: reads commands, does them, answers.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    engine::{self, Access},
    fault::{self, What},
    sql::{self, Scope},
    state::{Asked, Core, Kill, Said, Session},
    tables, variables,
    wire::{Login, Rows, SqlError, Wire},
};

const QUIT: u8 = 0x01;
const INIT_DB: u8 = 0x02;
const QUERY: u8 = 0x03;
const PING: u8 = 0x0e;
const RESET: u8 = 0x1f;

/// What a statement comes to.
enum Outcome {
    Done,
    Rows(Rows),
}

type Result_ = Result<Outcome, SqlError>;

/// Serves one client to its end.
pub(super) fn serve(core: &Arc<Core>, stream: UnixStream, login: Login) {
    let Ok(twin) = stream.try_clone() else { return };
    let mut wire = Wire::new(stream);
    let (id, version) = core.change(|state| {
        state.next_id += 1;
        (state.next_id, state.version.clone())
    });
    let password = |user: &str| core.lock().passwords.get(user).cloned();
    let number = u32::try_from(id).expect("few connections");
    let Ok(Some(user)) = wire.login(number, &version, login, &password) else { return };
    core.change(|state| state.sessions.insert(id, Session::new(&user, twin)));
    // However it ends, the session's locks end with it.
    let _ = commands(core, id, &mut wire);
    core.change(|state| state.end_session(id));
    let _ = wire.stream.shutdown(std::net::Shutdown::Both);
}

fn commands(core: &Core, id: u64, wire: &mut Wire) -> io::Result<()> {
    loop {
        let patience = core.lock().seconds(id, "wait_timeout");
        wire.stream.set_read_timeout(Some(patience))?;
        let (command, body) = match wire.command() {
            Ok(Some(command)) => command,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let message = "The client was disconnected by the server because of inactivity.";
                return wire.error(&SqlError::new(4031, message));
            }
            Err(error) => return Err(error),
        };
        match command {
            QUIT => return Ok(()),
            PING | INIT_DB | RESET => wire.ok(0)?,
            QUERY => {
                let text = sql::normal(&String::from_utf8_lossy(&body));
                if !query(core, id, wire, &text)? {
                    return Ok(());
                }
            }
            _ => wire.error(&SqlError::new(1047, "Unknown command"))?,
        }
    }
}

/// Does a statement and answers it; `false` if the connection is over.
fn query(core: &Core, id: u64, wire: &mut Wire, text: &str) -> io::Result<bool> {
    let fault = core.change(|state| {
        state.statements.push(Said { session: id, at: Instant::now(), sql: text.to_owned() });
        if let Some(session) = state.sessions.get_mut(&id) {
            (session.command, session.since, session.info) = ("Query", Instant::now(), Some(text.to_owned()));
            // A KILL QUERY that came too late for the last statement is not for this one.
            if session.kill == Kill::Query {
                session.kill = Kill::No;
            }
        }
        fault::due(&mut state.faults, text)
    });
    let mut late = Duration::ZERO;
    let outcome = match fault {
        Some(What::BreakBefore) => return Ok(false),
        Some(What::ServerEnds) => {
            core.change(super::state::State::go_down);
            return Ok(false);
        }
        Some(What::Error(error)) => Err(error),
        Some(What::BreakAfter) => {
            let _ = execute(core, id, text);
            return Ok(false);
        }
        Some(What::Delay(how_long)) => {
            core.work(id, "delayed", how_long).and_then(|()| execute(core, id, text))
        }
        Some(What::DelayAnswer(how_long)) => {
            late = how_long;
            execute(core, id, text)
        }
        None => execute(core, id, text),
    };
    thread::sleep(late);
    let ends = core.change(|state| {
        let session = state.sessions.get_mut(&id)?;
        (session.command, session.since, session.info) = ("Sleep", Instant::now(), None);
        session.doing.clear();
        Some(session.kill == Kill::Connection)
    });
    if ends != Some(false) {
        return Ok(false);
    }
    match outcome {
        Ok(Outcome::Done) => wire.ok(0)?,
        Ok(Outcome::Rows(rows)) => wire.rows(&rows)?,
        Err(error) => wire.error(&error)?,
    }
    Ok(true)
}

fn execute(core: &Core, id: u64, text: &str) -> Result_ {
    let is = |words: &str| sql::begins(text, words);
    let done = |result: Result<(), SqlError>| result.map(|()| Outcome::Done);
    if is("SELECT") {
        return select(core, id, text);
    }
    if is("SHOW") {
        return tables::show(&core.lock(), id, text).unwrap_or_else(|| Err(no_such(text))).map(Outcome::Rows);
    }
    if is("SET") {
        return done(set(core, id, text));
    }
    if is("FLUSH TABLES WITH READ LOCK") {
        return done(engine::read_lock(core, id));
    }
    if is("LOCK INSTANCE FOR BACKUP") {
        return done(engine::lock_instance(core, id));
    }
    if is("UNLOCK INSTANCE") {
        engine::unlock_instance(core, id);
        return Ok(Outcome::Done);
    }
    if is("UNLOCK TABLES") {
        core.change(|state| state.end_read_lock(id));
        return Ok(Outcome::Done);
    }
    if is("FLUSH")
        && (is("FLUSH ENGINE LOGS")
            || is("FLUSH LOCAL ENGINE LOGS")
            || is("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS"))
    {
        core.change(|state| {
            let locked = state.sessions.get(&id).is_some_and(|session| session.commit == Asked::Held);
            state.engine_flushes.push((Instant::now(), locked));
        });
        return Ok(Outcome::Done);
    }
    if is("KILL") {
        return done(kill(core, id, text));
    }
    changes(core, id, text)
}

/// Transactions, and whatever changes data or definitions.
fn changes(core: &Core, id: u64, text: &str) -> Result_ {
    let is = |words: &[&str]| words.iter().any(|words| sql::begins(text, words));
    let done = |result: Result<(), SqlError>| result.map(|()| Outcome::Done);
    if is(&["BEGIN", "START TRANSACTION"]) {
        done(engine::begin(core, id))
    } else if is(&["COMMIT"]) {
        done(engine::commit(core, id))
    } else if is(&["ROLLBACK"]) {
        engine::end_transaction(core, id);
        Ok(Outcome::Done)
    } else if is(&["USE", "DO"]) {
        Ok(Outcome::Done)
    } else if is(&["INSERT", "UPDATE", "DELETE", "REPLACE"]) {
        done(engine::touch(core, id, text, Access::Write))
    } else if is(&["ALTER", "CREATE", "DROP", "RENAME", "TRUNCATE", "OPTIMIZE"]) {
        done(engine::touch(core, id, text, Access::Define))
    } else {
        Err(no_such(text))
    }
}

fn no_such(text: &str) -> SqlError {
    let message = format!("You have an error in your SQL syntax near '{text}' at line 1");
    SqlError { code: 1064, state: "42000", message }
}

/// Of system tables, of nothing, or of a user's tables, which answer one row.
fn select(core: &Core, id: u64, text: &str) -> Result_ {
    let named = sql::tables(text);
    let system = ["information_schema.", "performance_schema.", "sys.", "mysql."];
    let of_users = named.iter().any(|name| !system.iter().any(|schema| name.starts_with(schema)));
    if of_users {
        engine::touch(core, id, text, Access::Read)?;
        return Ok(Outcome::Rows(Rows { rows: vec![vec![Some("1".to_owned())]], ..Rows::of(&["1"]) }));
    }
    let sleeps = sql::sleeps(text);
    if sleeps > Duration::ZERO {
        core.work(id, "User sleep", sleeps)?;
    }
    tables::select(&core.lock(), id, text).map(Outcome::Rows)
}

fn set(core: &Core, id: u64, text: &str) -> Result<(), SqlError> {
    for (scope, name, value) in sql::assignments(text) {
        core.change(|state| {
            let known = state.variables.contains_key(&name);
            match scope {
                Scope::User => {
                    if let Some(session) = state.sessions.get_mut(&id) {
                        session.user_variables.insert(name, value);
                    }
                }
                _ if !known => {
                    return Err(SqlError::new(1193, format!("Unknown system variable '{name}'")));
                }
                Scope::Global => {
                    state.variables.insert(name, value);
                }
                Scope::Session if !variables::has_session(&name) => {
                    let message = format!("Variable '{name}' is a GLOBAL variable");
                    return Err(SqlError::new(1229, message));
                }
                Scope::Session => {
                    if let Some(session) = state.sessions.get_mut(&id) {
                        session.variables.insert(name, value);
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn kill(core: &Core, id: u64, text: &str) -> Result<(), SqlError> {
    let how = if sql::begins(text, "KILL QUERY") { Kill::Query } else { Kill::Connection };
    let target = text.rsplit(' ').next().and_then(|word| word.parse().ok());
    engine::kill(core, id, target.ok_or_else(|| no_such(text))?, how)
}
