//! A helper as the main process sees it.
//!
//! Crash story: dropping it kills the helper, and the kernel releases what it held; [`Child::quit`] lets it
//! close its database first.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use model::undo::ProcessRef;
use os::command::{CommandError, Helper, HelperChild, Replies};

use super::{
    error::SqliteError,
    protocol::{Reply, Request, Trouble},
};

/// Starting this program again and opening a database takes milliseconds; on a machine in need, longer.
const START: Duration = Duration::from_secs(20);
/// Closing a database takes as long.
const END: Duration = Duration::from_secs(2);

/// A helper with one database open.
#[derive(Debug)]
pub(super) struct Child {
    helper: HelperChild,
    path: PathBuf,
}

impl Child {
    /// Starts a helper and waits until it has opened the database.
    ///
    /// # Errors
    /// If it cannot be started or cannot open the database.
    pub fn start(helper: &Helper, role: &str, path: &Path) -> Result<Self, SqliteError> {
        let started = helper.spawn(role, &[path.as_os_str().to_owned()]);
        let helper = started.map_err(|error| trouble(path, "cannot be started", error))?;
        let mut child = Self { helper, path: path.to_owned() };
        match child.next(START)? {
            Some(Reply::Ready) => Ok(child),
            Some(other) => Err(child.unexpected(&other)),
            None => Err(child.silent()),
        }
    }

    /// The helper's process.
    pub fn process(&self) -> ProcessRef {
        self.helper.process()
    }

    /// Asks, and waits for the answer at most so long; `None` if none came.
    ///
    /// # Errors
    /// If the helper has ended.
    pub fn ask(&mut self, request: &Request, wait: Duration) -> Result<Option<Reply>, SqliteError> {
        self.send(request)?;
        self.next(wait)
    }

    /// Asks without waiting.
    ///
    /// # Errors
    /// If the helper has ended.
    pub fn send(&mut self, request: &Request) -> Result<(), SqliteError> {
        self.helper.send(request).map_err(|error| trouble(&self.path, "cannot be asked", error))
    }

    /// The next reply; `None` if none came in time.
    ///
    /// # Errors
    /// If the helper has ended.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Reply>, SqliteError> {
        match self.helper.receive(wait) {
            Ok(reply) => Ok(Some(reply)),
            Err(CommandError::HelperSilent { .. }) => Ok(None),
            Err(error) => Err(trouble(&self.path, "does not answer", error)),
        }
    }

    /// What it writes, for reading what follows a reply.
    pub fn pipe(&mut self) -> &mut Replies {
        self.helper.stdout()
    }

    /// What an answer that is no success means.
    pub fn unexpected(&self, reply: &Reply) -> SqliteError {
        let path = self.path.clone();
        match reply {
            Reply::Busy => SqliteError::Busy(path),
            Reply::Failed { kind: Trouble::Foreign, .. } => SqliteError::Refused {
                path,
                what: "not an SQLite database, or encrypted".into(),
                remedy: "name the file in a directory instead, and stop its writers while it is pinned"
                    .into(),
            },
            Reply::Failed { kind: Trouble::Full, .. } => SqliteError::Io {
                path,
                what: "cannot be copied",
                source: io::Error::from(io::ErrorKind::StorageFull),
            },
            Reply::Failed { what, .. } => {
                SqliteError::Helper { path, what: format!("was told by SQLite: {what}"), source: None }
            }
            other => {
                SqliteError::Helper { path, what: format!("gave an odd answer: {other:?}"), source: None }
            }
        }
    }

    /// That the helper did not answer in time.
    pub fn silent(&self) -> SqliteError {
        SqliteError::TimedOut { path: self.path.clone(), what: "its helper did not answer in time".into() }
    }

    /// Ends the helper and whatever it holds, at once.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(mut self) -> Result<(), SqliteError> {
        let killed = self.helper.kill();
        killed.map(|_| ()).map_err(|error| trouble(&self.path, "cannot be ended", error))
    }

    /// Lets the helper close its database and end; kills it if it does not.
    pub fn quit(mut self) {
        // A helper that cannot be asked or does not end is killed by the drop.
        let ended =
            self.send(&Request::Quit).is_ok() && self.helper.wait(END).is_ok_and(|status| status.is_some());
        if !ended {
            tracing::debug!(path = %self.path.display(), "an SQLite helper had to be killed");
        }
    }
}

fn trouble(path: &Path, what: &str, error: CommandError) -> SqliteError {
    SqliteError::Helper { path: path.to_owned(), what: what.to_owned(), source: Some(Box::new(error)) }
}
