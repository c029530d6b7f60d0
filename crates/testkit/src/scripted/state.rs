//! What the model of a server knows: sessions, who holds or awaits which global lock, variables, logs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{fault::Fault, variables, wire::SqlError};

/// How often a waiting session looks whether its time is up.
const TICK: Duration = Duration::from_millis(10);
/// How often a session that waits for a metadata lock looks whether its client is still there: MySQL's
/// `MDL_context::acquire_lock` wakes once a second for that.
const CLIENT_LOOK: Duration = Duration::from_secs(1);

/// A lock that is asked for, or held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Asked {
    #[default]
    No,
    Pending,
    Held,
}

impl Asked {
    pub(super) fn is_in_the_way(self) -> bool {
        self != Self::No
    }
}

/// How a session was told to end something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kill {
    #[default]
    No,
    Query,
    Connection,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) user: String,
    pub(super) stream: UnixStream,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) user_variables: BTreeMap<String, String>,
    pub(super) command: &'static str,
    pub(super) since: Instant,
    pub(super) doing: String,
    pub(super) info: Option<String>,
    pub(super) kill: Kill,
    pub(super) in_transaction: bool,
    pub(super) wrote: bool,
    /// Tables that the running statement has open.
    pub(super) uses: BTreeSet<String>,
    /// Scoped locks of the running statement: `INTENTION_EXCLUSIVE` of GLOBAL, COMMIT and BACKUP LOCK.
    pub(super) writes: bool,
    pub(super) commits: bool,
    pub(super) defines: bool,
    /// `FLUSH TABLES WITH READ LOCK`: its GLOBAL and its COMMIT lock.
    pub(super) global: Asked,
    pub(super) commit: Asked,
    /// `LOCK INSTANCE FOR BACKUP`.
    pub(super) backup: Asked,
}

impl Session {
    pub(super) fn new(user: &str, stream: UnixStream) -> Self {
        Self {
            user: user.to_owned(),
            stream,
            variables: BTreeMap::new(),
            user_variables: BTreeMap::new(),
            command: "Sleep",
            since: Instant::now(),
            doing: String::new(),
            info: None,
            kill: Kill::No,
            in_transaction: false,
            wrote: false,
            uses: BTreeSet::new(),
            writes: false,
            commits: false,
            defines: false,
            global: Asked::No,
            commit: Asked::No,
            backup: Asked::No,
        }
    }

    fn client_is_gone(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0_u8; 1];
        let looked = recv(&self.stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(looked, Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET))
    }
}

/// A statement as it came in.
#[derive(Clone, Debug)]
pub struct Said {
    /// Connection id.
    pub session: u64,
    /// When.
    pub at: Instant,
    /// The text, with runs of white space made one blank.
    pub sql: String,
}

/// From when until when a read lock held writers back: from its being asked for until it was given back or given up.
#[derive(Clone, Copy, Debug)]
pub struct ReadLock {
    /// The session that asked for it.
    pub session: u64,
    /// When it was asked for.
    pub asked: Instant,
    /// When it was had.
    pub had: Option<Instant>,
    /// When it was over.
    pub over: Option<Instant>,
}

/// A source that the server replicates from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its name; empty for the default one.
    pub name: String,
    /// Host of the source.
    pub host: String,
    /// `Relay_Source_Log_File` and `Exec_Source_Log_Pos`.
    pub executed: (String, u64),
    /// The applier runs.
    pub applies: bool,
}

/// All of it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) version: String,
    pub(super) passwords: BTreeMap<String, String>,
    pub(super) grants: Vec<String>,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) sessions: BTreeMap<u64, Session>,
    pub(super) next_id: u64,
    /// Who still has a version of a table open that a flush has outdated. Nobody opens the table until they end.
    pub(super) stale: BTreeMap<String, BTreeSet<u64>>,
    pub(super) statements: Vec<Said>,
    pub(super) read_locks: Vec<ReadLock>,
    pub(super) engine_flushes: Vec<(Instant, bool)>,
    pub(super) binlog: (String, u64),
    pub(super) transactions: u64,
    pub(super) commits: Vec<Instant>,
    pub(super) channels: Vec<Channel>,
    pub(super) faults: Vec<Fault>,
    pub(super) durations: Vec<(String, Duration)>,
    pub(super) metadata_locks: bool,
    /// Schema, name and engine.
    pub(super) user_tables: Vec<(String, String, String)>,
    /// Name and type of tablespaces' files.
    pub(super) files: Vec<(String, String)>,
    pub(super) keyring: Option<String>,
    pub(super) started: Instant,
    pub(super) down: bool,
}

impl State {
    pub(super) fn new(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            passwords: BTreeMap::from([("root".to_owned(), String::new())]),
            grants: vec!["GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION".to_owned()],
            variables: variables::defaults(version),
            sessions: BTreeMap::new(),
            next_id: 8,
            stale: BTreeMap::new(),
            statements: vec![],
            read_locks: vec![],
            engine_flushes: vec![],
            binlog: ("binlog.000007".to_owned(), 157),
            transactions: 41,
            commits: vec![],
            channels: vec![],
            faults: vec![],
            durations: vec![],
            metadata_locks: true,
            user_tables: vec![("app".to_owned(), "t".to_owned(), "InnoDB".to_owned())],
            files: vec![("./ibdata1".to_owned(), "TABLESPACE".to_owned())],
            keyring: None,
            started: Instant::now(),
            down: false,
        }
    }

    /// Major, minor, patch.
    pub(super) fn number(&self) -> (u32, u32, u32) {
        let digits = self.version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        let parts: Vec<u32> = digits.chain([0, 0, 0]).take(3).collect();
        (parts[0], parts[1], parts[2])
    }

    pub(super) fn gtid_executed(&self) -> String {
        if self.variables["gtid_mode"] == "ON" {
            format!("{}:1-{}", self.variables["server_uuid"], self.transactions)
        } else {
            String::new()
        }
    }

    /// A variable as a session sees it.
    pub(super) fn variable(&self, session: u64, name: &str) -> Option<String> {
        if name == "gtid_executed" {
            return Some(self.gtid_executed());
        }
        let own = self.sessions.get(&session).and_then(|session| session.variables.get(name));
        own.or_else(|| self.variables.get(name)).cloned()
    }

    /// A session's variable in whole seconds.
    pub(super) fn seconds(&self, session: u64, name: &str) -> Duration {
        let value = self.variable(session, name).and_then(|value| value.parse().ok());
        Duration::from_secs(value.unwrap_or(31_536_000))
    }

    /// Some other session than this one.
    pub(super) fn other(&self, than: u64, fits: impl Fn(&Session) -> bool) -> bool {
        self.sessions.iter().any(|(id, session)| *id != than && fits(session))
    }

    /// Whether a table's old version is still open in a running statement.
    pub(super) fn is_stale(&self, table: &str) -> bool {
        self.stale.get(table).is_some_and(|users| !users.is_empty())
    }

    /// A statement ended: its tables are closed, its scoped locks are gone.
    pub(super) fn end_statement(&mut self, id: u64) {
        for users in self.stale.values_mut() {
            users.remove(&id);
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.uses.clear();
            (session.writes, session.commits, session.defines) = (false, false, false);
            session.doing.clear();
        }
    }

    /// What `UNLOCK TABLES` gives back.
    pub(super) fn end_read_lock(&mut self, id: u64) {
        if let Some(session) = self.sessions.get_mut(&id) {
            (session.global, session.commit) = (Asked::No, Asked::No);
        }
        let now = Instant::now();
        let open = |lock: &&mut ReadLock| lock.session == id && lock.over.is_none();
        for lock in self.read_locks.iter_mut().filter(open) {
            lock.over = Some(now);
        }
    }

    /// A session ended: so has all that it held.
    pub(super) fn end_session(&mut self, id: u64) {
        self.end_statement(id);
        self.end_read_lock(id);
        self.sessions.remove(&id);
    }

    /// Everybody is thrown out, and nobody comes in.
    pub(super) fn go_down(&mut self) {
        self.down = true;
        for session in self.sessions.values_mut() {
            session.kill = Kill::Connection;
            let _ = session.stream.shutdown(Shutdown::Both);
        }
    }
}

/// The state with its bell.
pub(super) struct Core {
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) type Guard<'a> = MutexGuard<'a, State>;

impl Core {
    pub(super) fn new(version: &str) -> Self {
        Self { state: Mutex::new(State::new(version)), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ring(&self) {
        self.changed.notify_all();
    }

    /// Changes the state and wakes all that wait.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.ring();
        result
    }

    /// Waits, in the name of a session, while `blocked` holds. A wait for a metadata lock ends when the client is
    /// gone, and after the session's `lock_wait_timeout`.
    pub(super) fn wait_while<'a>(
        &'a self,
        mut state: Guard<'a>,
        id: u64,
        doing: &str,
        for_lock: bool,
        blocked: impl Fn(&State) -> bool,
    ) -> Result<Guard<'a>, SqlError> {
        let begun = Instant::now();
        let patience = state.seconds(id, "lock_wait_timeout");
        let mut looked = begun;
        loop {
            alive(&state, id)?;
            if !blocked(&state) {
                return Ok(state);
            }
            if begun.elapsed() >= patience {
                return Err(SqlError::new(1205, "Lock wait timeout exceeded; try restarting transaction"));
            }
            if let Some(session) = state.sessions.get_mut(&id) {
                doing.clone_into(&mut session.doing);
                if for_lock && looked.elapsed() >= CLIENT_LOOK {
                    looked = Instant::now();
                    if session.client_is_gone() {
                        session.kill = Kill::Connection;
                    }
                }
            }
            state = self.wait(state);
        }
    }

    /// Works for so long, unless it is killed.
    pub(super) fn work(&self, id: u64, doing: &str, how_long: Duration) -> Result<(), SqlError> {
        let begun = Instant::now();
        let mut state = self.lock();
        if let Some(session) = state.sessions.get_mut(&id) {
            doing.clone_into(&mut session.doing);
        }
        loop {
            alive(&state, id)?;
            if begun.elapsed() >= how_long {
                return Ok(());
            }
            state = self.wait(state);
        }
    }

    fn wait<'a>(&'a self, state: Guard<'a>) -> Guard<'a> {
        let woken = self.changed.wait_timeout(state, TICK);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn alive(state: &State, id: u64) -> Result<(), SqlError> {
    let interrupted =
        || SqlError { code: 1317, state: "70100", message: "Query execution was interrupted".to_owned() };
    match state.sessions.get(&id).map(|session| session.kill) {
        Some(Kill::No) if !state.down => Ok(()),
        _ => Err(interrupted()),
    }
}
