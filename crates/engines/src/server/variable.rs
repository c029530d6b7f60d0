//! A global variable that is raised for the time of a cut: [`Raised`].
//!
//! Crash story: how to put it back is journalled before it is changed, and crossed off after it is back; the watchdog does
//! it if we die. It is put back only if the server has not been restarted since (which forgets it anyway) and it still has
//! the value that we gave it.

use std::time::Duration;

use jiff::Timestamp;
use model::{
    port::Failure,
    server::ServerAccess,
    undo::{Ticket, Undo},
};

use super::{
    Means,
    connect::{Connection, quoted},
    error::ServerError,
};

/// How long reading or setting a variable may take.
const QUICK: Duration = Duration::from_secs(2);
/// The same while a cut begins and nobody is held yet: no longer than this.
const RAISING: Duration = Duration::from_millis(500);
/// The server says how long it has been up in whole seconds, and the two times are not taken at once.
const SAME_START: Duration = Duration::from_secs(3);

/// A variable that has another value than its owner gave it. [`Raised::put_back`] is the way to undo it; what is only
/// dropped stays in the journal.
pub(super) struct Raised {
    undo: Undo,
    ticket: Ticket,
}

impl Raised {
    /// Gives a global variable this value; nothing if it has it already.
    ///
    /// # Errors
    /// If it cannot be journalled, read or set. Then it is as it was.
    pub(super) fn raise(
        connection: &mut Connection,
        variable: &str,
        new: &str,
        started: Timestamp,
        means: &Means,
    ) -> Result<Option<Self>, Failure> {
        let old = read(connection, variable, RAISING)?;
        if old == new {
            return Ok(None);
        }
        let access = connection.access().clone();
        let (name, value) = (variable.to_owned(), new.to_owned());
        let undo = Undo::ServerVariable { access, variable: name, old, new: value, started };
        let ticket = means.journal.intend(undo.clone(), None)?;
        match set(connection, variable, new, RAISING) {
            Ok(()) => Ok(Some(Self { undo, ticket })),
            Err(error) => {
                // A refusal changed nothing; silence may have.
                if error.code().is_some() {
                    means.journal.done(ticket);
                }
                Err(error.into())
            }
        }
    }

    /// Gives it its old value back, on this connection if it still works, or on another.
    ///
    /// # Errors
    /// If that cannot be done; it stays in the journal.
    pub(super) fn put_back(self, connection: Option<&mut Connection>, means: &Means) -> Result<(), Failure> {
        let done = match connection.filter(|open| !open.is_broken()) {
            Some(open) => put_back(open, &self.undo),
            None => perform(&self.undo),
        };
        done?;
        means.journal.done(self.ticket);
        Ok(())
    }
}

/// Undoes an [`Undo::ServerVariable`] on a connection of its own. A server that does not run has forgotten it.
///
/// # Errors
/// If it runs and the variable cannot be put back.
pub(super) fn perform(undo: &Undo) -> Result<(), Failure> {
    let Undo::ServerVariable { access, .. } = undo else { return Ok(()) };
    if !listens(access) {
        return Ok(());
    }
    let mut connection = Connection::open(access, QUICK)?;
    put_back(&mut connection, undo)
}

/// Whether anybody listens at a socket. Of a TCP port it is not known.
fn listens(access: &ServerAccess) -> bool {
    let model::server::ServerAddress::Socket(path) = &access.address else { return true };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => {
            !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
        }
    }
}

fn put_back(connection: &mut Connection, undo: &Undo) -> Result<(), Failure> {
    let Undo::ServerVariable { variable, old, new, started, .. } = undo else { return Ok(()) };
    let apart = connection.started()?.duration_since(*started).unsigned_abs();
    if apart > SAME_START || read(connection, variable, QUICK)? != *new {
        return Ok(());
    }
    Ok(set(connection, variable, old, QUICK)?)
}

fn read(connection: &mut Connection, variable: &str, within: Duration) -> Result<String, ServerError> {
    let sql = format!("SELECT @@global.{}", identifier(variable));
    let value = connection.value(&sql, within)?;
    value.ok_or_else(|| connection.odd(&sql, "a value"))
}

fn set(
    connection: &mut Connection,
    variable: &str,
    value: &str,
    within: Duration,
) -> Result<(), ServerError> {
    let name = identifier(variable);
    let is_number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let value = if is_number { value.to_owned() } else { quoted(value) };
    connection.run(&format!("SET GLOBAL {name} = {value}"), within)
}

/// A variable's name without anything that could end it: it may come from a journal.
fn identifier(variable: &str) -> String {
    variable.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).collect()
}
