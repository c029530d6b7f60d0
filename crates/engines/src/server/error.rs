//! Why a server could not be reached, asked or locked.
//!
//! Crash story: plain values, no effects. None of them holds a secret: statements are named, not quoted, and what
//! the server says of a failed login names the account only.

use std::{io, path::PathBuf};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    server::ServerAddress,
};

/// Error numbers of the servers that mean something to us:
/// <https://mariadb.com/kb/en/mariadb-error-codes/>, <https://dev.mysql.com/doc/mysql-errors/8.0/en/>.
pub mod code {
    /// Too many connections.
    pub const TOO_MANY_CONNECTIONS: u16 = 1040;
    /// Access denied to a database.
    pub const DATABASE_DENIED: u16 = 1044;
    /// Access denied: name or password are wrong.
    pub const ACCESS_DENIED: u16 = 1045;
    /// The server is shutting down.
    pub const SHUTDOWN: u16 = 1053;
    /// There is no such connection.
    pub const NO_SUCH_THREAD: u16 = 1094;
    /// The server knows no such variable.
    pub const UNKNOWN_VARIABLE: u16 = 1193;
    /// A lock was waited for too long (`lock_wait_timeout`).
    pub const LOCK_WAIT: u16 = 1205;
    /// Deadlock: others were preferred.
    pub const DEADLOCK: u16 = 1213;
    /// A privilege is missing.
    pub const PRIVILEGE: u16 = 1227;
    /// Somebody ended this statement.
    pub const INTERRUPTED: u16 = 1317;
    /// Access denied: no password was given, or the account logs in otherwise (`unix_socket`).
    pub const ACCESS_DENIED_NO_PASSWORD: u16 = 1698;
    /// Somebody ended this connection.
    pub const KILLED: u16 = 1927;
    /// MariaDB: `max_statement_time` is over.
    pub const STATEMENT_TIME: u16 = 1969;
    /// MySQL: `max_execution_time` is over.
    pub const EXECUTION_TIME: u16 = 3024;
    /// MySQL: the server ended the connection for idling too long.
    pub const IDLE: u16 = 4031;
    /// MariaDB: another session is in a backup stage and this statement would wait for it.
    pub const BACKUP_RUNNING: u16 = 4145;
    /// MariaDB: a backup stage was asked for outside `BACKUP STAGE START`.
    pub const BACKUP_NOT_RUNNING: u16 = 4146;
    /// MariaDB: the session is in that backup stage, or a later one, already.
    pub const BACKUP_STAGE_REACHED: u16 = 4147;
}

/// Why a server could not be reached, asked or locked. Every variant names the server or the file.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file with options or a password cannot be used.
    #[error("{} {what}", pathtext::show(.path))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
        /// Why, if it could not be read.
        source: Option<io::Error>,
    },
    /// It will not be connected to, or used, as things are.
    #[error("the server at {address} {what}")]
    Refused {
        /// The server.
        address: ServerAddress,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// It could not be connected to.
    #[error("the server at {address} cannot be reached: {said}")]
    Unreachable {
        /// The server.
        address: ServerAddress,
        /// What the system, the protocol or the server says.
        said: String,
    },
    /// The server answered a statement with an error.
    #[error("the server at {address} says to {statement}: {said} (error {code})")]
    Said {
        /// The server.
        address: ServerAddress,
        /// The statement, by name: `BACKUP STAGE BLOCK_COMMIT`.
        statement: String,
        /// Error number.
        code: u16,
        /// Its message.
        said: String,
    },
    /// No answer within the time that was given.
    #[error("the server at {address} did not answer {statement} in time")]
    Silent {
        /// The server.
        address: ServerAddress,
        /// The statement, by name.
        statement: String,
    },
    /// A connection was taken, if only by its kernel, and nothing was said on it.
    #[error("the server at {address} did not answer a login in time")]
    Mute {
        /// The server.
        address: ServerAddress,
    },
    /// The connection has ended.
    #[error("the connection to the server at {address} was lost at {statement}: {said}")]
    Lost {
        /// The server.
        address: ServerAddress,
        /// The statement, by name.
        statement: String,
        /// What was noticed.
        said: String,
    },
    /// The answer is not what the protocol of such servers lets expect.
    #[error("the server at {address} answered {statement} with something else than {expected}")]
    Answer {
        /// The server.
        address: ServerAddress,
        /// The statement, by name.
        statement: String,
        /// What was expected.
        expected: &'static str,
    },
}

impl ServerError {
    /// The server's error number, if it answered with one.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Said { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::File { .. } | Self::Refused { .. } => FailureKind::Refused,
            Self::Silent { .. } | Self::Mute { .. } => FailureKind::TimedOut,
            Self::Lost { .. } => FailureKind::Lost,
            Self::Unreachable { .. } | Self::Answer { .. } => FailureKind::Other,
            Self::Said { code, .. } => kind_of(*code),
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::File { remedy, .. } | Self::Refused { remedy, .. } => remedy.clone(),
            Self::Unreachable { .. } => {
                "see that it runs and that the inventory names the place where it listens".into()
            }
            Self::Silent { .. } => "try again, or raise stall_budget if its clients can wait longer".into(),
            Self::Mute { .. } => "see that it is reached and whether it hangs (its process stopped, its disk full), and try again \
                                  when it answers"
                .into(),
            Self::Lost { .. } => "try again".into(),
            Self::Answer { .. } => "see that this version of the server is supported".into(),
            Self::Said { code, .. } => remedy_of(*code).into(),
        }
    }
}

fn kind_of(number: u16) -> FailureKind {
    match number {
        code::LOCK_WAIT | code::DEADLOCK | code::TOO_MANY_CONNECTIONS | code::BACKUP_RUNNING => {
            FailureKind::Busy
        }
        code::STATEMENT_TIME | code::EXECUTION_TIME => FailureKind::TimedOut,
        code::INTERRUPTED | code::KILLED | code::SHUTDOWN | code::IDLE | code::BACKUP_NOT_RUNNING => {
            FailureKind::Lost
        }
        code::PRIVILEGE | code::DATABASE_DENIED | code::ACCESS_DENIED | code::ACCESS_DENIED_NO_PASSWORD => {
            FailureKind::Refused
        }
        _ => FailureKind::Other,
    }
}

fn remedy_of(number: u16) -> &'static str {
    match number {
        code::ACCESS_DENIED | code::ACCESS_DENIED_NO_PASSWORD => {
            "check user and password_file or option_file in the inventory, or run as the system user who may log \
             in without a password"
        }
        code::PRIVILEGE | code::DATABASE_DENIED => {
            "`stillpoint plan` shows the GRANT statements that are missing"
        }
        code::TOO_MANY_CONNECTIONS => "raise max_connections, or try again",
        code::LOCK_WAIT | code::STATEMENT_TIME | code::EXECUTION_TIME => {
            "a long statement, ALTER TABLE or LOCK TABLES is in the way: try again when it is over, or raise \
             stall_budget"
        }
        code::BACKUP_RUNNING => "another backup of this server runs: try again when it is over",
        code::INTERRUPTED | code::KILLED => "see who ends the statements of the backup's account",
        _ => "",
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let failure = Self::new(error.kind(), error.to_string(), error.remedy());
        match error {
            ServerError::File { source: Some(source), .. } => failure.because(source),
            _ => failure,
        }
    }
}
