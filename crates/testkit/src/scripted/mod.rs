//! A server that speaks the MySQL protocol on a Unix socket and behaves, in its locks, as MySQL 8 does:
//! [`ScriptedServer`]. It keeps no data. It is there because the real one is not in Debian.
//!
//! What it models is told in [`engine`]; what it knows of SQL is little: any statement that changes something
//! is a write of the tables that it names, `SLEEP(n)` anywhere in it makes it last n seconds, questions about the system
//! are answered by SQLite over tables made of its state. So tests talk to it as to any server, through connections,
//! and look at outcomes: who was held back for how long, what was still locked.
//!
//! Only the text protocol, no TLS, no compression, no prepared statements.
//!
//! Crash story: threads of the test process; its socket lies in a temporary directory.

use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use mysql::{Conn, Opts, OptsBuilder};

mod engine;
mod fault;
mod session;
mod sql;
mod state;
mod tables;
mod variables;
mod wire;

pub use fault::{Fault, What};
pub use state::{Channel, ReadLock, Said};
pub use wire::{Login, SqlError};

use state::{Asked, Core};

/// What a scripted server shall be like; see [`ScriptedServer::version`].
pub struct ScriptedBuilder {
    core: Core,
    login: Login,
}

impl ScriptedBuilder {
    /// An account and its password. There is `root` without one.
    #[must_use]
    pub fn account(self, user: &str, password: &str, how: Login) -> Self {
        self.core.change(|state| state.passwords.insert(user.to_owned(), password.to_owned()));
        Self { login: how, ..self }
    }

    /// A global variable.
    #[must_use]
    pub fn variable(self, name: &str, value: &str) -> Self {
        self.core.change(|state| state.variables.insert(name.to_owned(), value.to_owned()));
        self
    }

    /// What `SHOW GRANTS` says, line by line.
    #[must_use]
    pub fn grants(self, lines: &[&str]) -> Self {
        self.core.change(|state| state.grants = lines.iter().map(|line| (*line).to_owned()).collect());
        self
    }

    /// The instrument of metadata locks is off: `performance_schema.metadata_locks` is empty.
    #[must_use]
    pub fn without_metadata_locks(self) -> Self {
        self.core.change(|state| state.metadata_locks = false);
        self
    }

    /// It replicates from this source.
    #[must_use]
    pub fn replicates_from(self, channel: Channel) -> Self {
        self.core.change(|state| state.channels.push(channel));
        self
    }

    /// A table of a user: schema, name, engine. There is `app.t` of InnoDB.
    #[must_use]
    pub fn table(self, schema: &str, name: &str, engine: &str) -> Self {
        let table = (schema.to_owned(), name.to_owned(), engine.to_owned());
        self.core.change(|state| state.user_tables.push(table));
        self
    }

    /// A tablespace's file, as `information_schema.FILES` names it.
    #[must_use]
    pub fn file(self, name: &str, kind: &str) -> Self {
        self.core.change(|state| state.files.push((name.to_owned(), kind.to_owned())));
        self
    }

    /// The file of its keyring component.
    #[must_use]
    pub fn keyring(self, file: &str) -> Self {
        self.core.change(|state| state.keyring = Some(file.to_owned()));
        self
    }

    /// Statements that contain this text take so long. `COMMIT` stands for every commit.
    #[must_use]
    pub fn takes(self, text: &str, how_long: Duration) -> Self {
        self.core.change(|state| state.durations.push((text.to_uppercase(), how_long)));
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If its socket cannot be made.
    #[must_use]
    pub fn start(self) -> ScriptedServer {
        let dir = tempfile::Builder::new().prefix("sps").tempdir_in("/tmp").expect("a directory");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let core = Arc::new(self.core);
        core.change(|state| {
            state.variables.insert("socket".to_owned(), socket.to_string_lossy().into_owned());
        });
        let (accepting, login) = (Arc::clone(&core), self.login);
        thread::spawn(move || accept(&listener, &accepting, login));
        ScriptedServer { core, socket, _dir: dir }
    }
}

/// Until the server is dropped or goes down; a last connection wakes it for that.
fn accept(listener: &UnixListener, core: &Arc<Core>, login: Login) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if core.lock().down {
            return;
        }
        let core = Arc::clone(core);
        thread::spawn(move || session::serve(&core, stream, login));
    }
}

/// A server of one test. Dropping it ends it and all its sessions.
pub struct ScriptedServer {
    core: Arc<Core>,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl ScriptedServer {
    /// A server that says it has this version: `8.0.36`, `8.4.3`.
    #[must_use]
    pub fn version(version: &str) -> ScriptedBuilder {
        ScriptedBuilder { core: Core::new(version), login: Login::default() }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// How to connect as its `root`.
    #[must_use]
    pub fn opts(&self) -> Opts {
        OptsBuilder::new()
            .socket(Some(self.socket.to_string_lossy()))
            .user(Some("root"))
            .prefer_socket(false)
            .into()
    }

    /// A connection as its `root`.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn connect(&self) -> Conn {
        Conn::new(self.opts()).expect("the scripted server answers")
    }

    /// Something that goes wrong.
    pub fn fault(&self, fault: Fault) {
        self.core.change(|state| state.faults.push(fault));
    }

    /// Whether all faults have come to pass.
    #[must_use]
    pub fn faults_are_used_up(&self) -> bool {
        self.core.lock().faults.is_empty()
    }

    /// A global variable's value.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<String> {
        self.core.lock().variables.get(name).cloned()
    }

    /// Sets a global variable behind everybody's back.
    pub fn set_variable(&self, name: &str, value: &str) {
        self.core.change(|state| state.variables.insert(name.to_owned(), value.to_owned()));
    }

    /// Every statement that came in, in order.
    #[must_use]
    pub fn statements(&self) -> Vec<Said> {
        self.core.lock().statements.clone()
    }

    /// Every read lock that was asked for.
    #[must_use]
    pub fn read_locks(&self) -> Vec<ReadLock> {
        self.core.lock().read_locks.clone()
    }

    /// When engine logs were flushed, and whether by a session that held the read lock.
    #[must_use]
    pub fn engine_flushes(&self) -> Vec<(Instant, bool)> {
        self.core.lock().engine_flushes.clone()
    }

    /// When transactions were committed.
    #[must_use]
    pub fn commits(&self) -> Vec<Instant> {
        self.core.lock().commits.clone()
    }

    /// File and offset of its binary log, and the transactions executed.
    #[must_use]
    pub fn position(&self) -> (String, u64, String) {
        let state = self.core.lock();
        (state.binlog.0.clone(), state.binlog.1, state.gtid_executed())
    }

    /// The connection that holds the read lock.
    #[must_use]
    pub fn read_locked_by(&self) -> Option<u64> {
        let state = self.core.lock();
        state.sessions.iter().find(|(_, session)| session.commit == Asked::Held).map(|(id, _)| *id)
    }

    /// The connections that hold the backup lock.
    #[must_use]
    pub fn backup_locked_by(&self) -> Option<u64> {
        let state = self.core.lock();
        state.sessions.iter().find(|(_, session)| session.backup == Asked::Held).map(|(id, _)| *id)
    }

    /// Ids of all connections.
    #[must_use]
    pub fn connections(&self) -> Vec<u64> {
        self.core.lock().sessions.keys().copied().collect()
    }

    /// What the connections are doing now.
    #[must_use]
    pub fn doing(&self) -> Vec<String> {
        self.core.lock().sessions.values().map(|session| session.doing.clone()).collect()
    }

    /// Ends a connection, as `KILL` would.
    pub fn kill(&self, connection: u64) {
        let _ = engine::kill(&self.core, 0, connection, state::Kill::Connection);
    }

    /// Ends the whole server.
    pub fn end(&self) {
        self.core.change(state::State::go_down);
        // Wakes the one who accepts.
        let _ = std::os::unix::net::UnixStream::connect(&self.socket);
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
