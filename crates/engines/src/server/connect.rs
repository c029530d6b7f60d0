//! A connection to a server on which nothing waits for longer than it was told to.
//!
//! Each statement is given a time; the socket's own timeouts end it from our side, and where the server can do that
//! (`SET STATEMENT max_statement_time`) the statement also ends over there. Everything that the server says is bytes;
//! the session's character set is `utf8mb4`.
//!
//! Crash story: a session, with all the locks that it holds, ends when its socket closes, which the kernel brings about
//! however we die. After a timeout or a broken answer the connection is of no further use and says so.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    sync::mpsc,
    thread,
    time::Duration,
};

use jiff::Timestamp;
use model::{
    plan::Refusal,
    port::Failure,
    server::{ServerAccess, ServerAddress, ServerVersion},
};
use mysql::{Conn, Error as Said, Opts, OptsBuilder, SslOpts, prelude::Queryable};
use rustix::net::sockopt::{self, Timeout};

use super::{
    error::ServerError,
    options::{self, Credentials},
    row::Row,
    version,
};

/// How long a statement that waits for nobody may take, where nothing hurries.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The server's number of a connection: what `KILL` and the process list call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl std::fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A session of a server. Dropping it ends the session.
pub struct Connection {
    conn: Conn,
    access: ServerAccess,
    id: ConnectionId,
    version: ServerVersion,
    broken: bool,
    silent: bool,
}

impl Connection {
    /// Connects, logs in and finds out whose server it is. All of it takes no longer than `within`.
    ///
    /// # Errors
    /// [`model::port::FailureKind::Refused`] for files that others can read, a login that is denied, a certificate that is
    /// not trusted, or another server than the inventory says.
    pub fn open(access: &ServerAccess, within: Duration) -> Result<Self, Failure> {
        let connection = Self::open_any(access, within)?;
        connection.refuse_other_flavor()?;
        Ok(connection)
    }

    /// The same, but whatever server it is.
    pub(super) fn open_any(access: &ServerAccess, within: Duration) -> Result<Self, ServerError> {
        let found = options::credentials(access)?;
        let opts = opts(access, found, within);
        let conn = bounded(opts, within).map_err(|said| not_connected(&access.address, said))?;
        let version = version::parse("0.0.0", "");
        let mut connection =
            Self { conn, access: access.clone(), id: ConnectionId(0), version, broken: false, silent: false };
        let asked = "SELECT CONNECTION_ID(), @@version, @@version_comment";
        let row = connection.row(asked, within)?;
        connection.id = ConnectionId(row.number(0).unwrap_or(0));
        connection.version = version::parse(&row.text(1), &row.text(2));
        Ok(connection)
    }

    fn refuse_other_flavor(&self) -> Result<(), ServerError> {
        match wrong_flavor(&self.access, &self.version) {
            None => Ok(()),
            Some(Refusal { what, remedy }) => {
                Err(ServerError::Refused { address: self.access.address.clone(), what, remedy })
            }
        }
    }

    /// What the server calls this session.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &ServerVersion {
        &self.version
    }

    /// How it is reached.
    #[must_use]
    pub fn access(&self) -> &ServerAccess {
        &self.access
    }

    /// Whether a statement was given up or the connection was lost: it is of no use any more.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the server did not answer in time: what it does with the statement is not known.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the connection's stream, which stays open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.conn.as_raw_fd()) }
    }

    /// When the server was started, to about a second: it says for how many seconds it has been up.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn started(&mut self) -> Result<Timestamp, ServerError> {
        let now = self.number("SELECT UNIX_TIMESTAMP()", PATIENCE)?;
        let row = self.row("SHOW GLOBAL STATUS LIKE 'Uptime'", PATIENCE)?;
        let up = row.number(1).unwrap_or(0);
        let seconds = i64::try_from(now.saturating_sub(up)).unwrap_or(0);
        Timestamp::from_second(seconds).map_err(|_| self.odd("UNIX_TIMESTAMP()", "a time"))
    }

    /// Runs a statement whose answer, if any, does not matter.
    ///
    /// # Errors
    /// If the server refuses it, or does not answer in time.
    pub fn run(&mut self, sql: &str, within: Duration) -> Result<(), ServerError> {
        self.ask(sql, within, |conn| conn.query_drop(sql))
    }

    /// All rows of an answer.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn rows(&mut self, sql: &str, within: Duration) -> Result<Vec<Row>, ServerError> {
        self.ask(sql, within, |conn| conn.query_map(sql, Row::of))
    }

    /// The first row of an answer, if it has one.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn first(&mut self, sql: &str, within: Duration) -> Result<Option<Row>, ServerError> {
        Ok(self.rows(sql, within)?.into_iter().next())
    }

    /// The one row of an answer that must have one.
    ///
    /// # Errors
    /// As [`run`](Self::run); also if there is no row.
    pub fn row(&mut self, sql: &str, within: Duration) -> Result<Row, ServerError> {
        self.first(sql, within)?.ok_or_else(|| self.odd(sql, "a row"))
    }

    /// The first value of the first row; nothing if there is no row or it is NULL.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn value(&mut self, sql: &str, within: Duration) -> Result<Option<String>, ServerError> {
        Ok(self.first(sql, within)?.and_then(|row| row.given(0)))
    }

    /// The first value of the first row, a number.
    ///
    /// # Errors
    /// As [`run`](Self::run); also if it is none.
    pub fn number(&mut self, sql: &str, within: Duration) -> Result<u64, ServerError> {
        self.row(sql, within)?.number(0).ok_or_else(|| self.odd(sql, "a number"))
    }

    /// Hands every row of a long answer over as it comes; `within` bounds the wait for each. The first failure of
    /// `each` ends the connection, which has not been read to its end.
    ///
    /// # Errors
    /// Those of `each`; as [`run`](Self::run).
    pub fn each_row(
        &mut self,
        sql: &str,
        within: Duration,
        each: &mut dyn FnMut(Row) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut failed = None;
        let socket = self.socket().try_clone_to_owned();
        let socket = socket.map_err(|error| Failure::from(self.lost(sql, &error.to_string())))?;
        let read = self.ask(sql, within, |conn| {
            for row in conn.query_iter(sql)? {
                if let Err(failure) = each(Row::of(row?)) {
                    failed = Some(failure);
                    // Else the rest of the answer would be read first.
                    rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).map_err(io::Error::from)?;
                    break;
                }
            }
            Ok(())
        });
        match failed {
            Some(failure) => {
                self.broken = true;
                Err(failure)
            }
            None => Ok(read?),
        }
    }

    /// What an error of the client means, said of this statement.
    fn judge(&mut self, sql: &str, said: Said) -> ServerError {
        let error = classify(&self.access.address, sql, said);
        self.silent |= matches!(error, ServerError::Silent { .. });
        self.broken |= self.silent || matches!(error, ServerError::Lost { .. });
        error
    }

    fn ask<T>(
        &mut self,
        sql: &str,
        within: Duration,
        ask: impl FnOnce(&mut Conn) -> mysql::Result<T>,
    ) -> Result<T, ServerError> {
        if self.broken {
            return Err(self.lost(sql, "an earlier statement was given up"));
        }
        if let Err(error) = self.bound(within) {
            return Err(self.lost(sql, &error.to_string()));
        }
        ask(&mut self.conn).map_err(|said| self.judge(sql, said))
    }

    /// No call on the socket takes longer from now on.
    fn bound(&self, within: Duration) -> io::Result<()> {
        // Zero would mean without end.
        let within = Some(within.max(Duration::from_millis(1)));
        sockopt::set_socket_timeout(self.socket(), Timeout::Recv, within)?;
        sockopt::set_socket_timeout(self.socket(), Timeout::Send, within)?;
        Ok(())
    }

    /// The protocol itself, for answers that are read value by value; no wait on the socket is longer than `within`.
    /// Whoever meets an error other than one that the server says must not use the connection again.
    ///
    /// # Errors
    /// [`ServerError::Lost`] if the connection is of no use any more.
    pub(super) fn raw(&mut self, within: Duration) -> Result<&mut Conn, ServerError> {
        self.ask("a statement", within, |_| Ok(()))?;
        Ok(&mut self.conn)
    }

    fn lost(&self, sql: &str, said: &str) -> ServerError {
        let (address, said) = (self.access.address.clone(), said.to_owned());
        ServerError::Lost { address, statement: named(sql), said }
    }

    /// An answer that is not what it should be.
    pub(super) fn odd(&self, sql: &str, expected: &'static str) -> ServerError {
        ServerError::Answer { address: self.access.address.clone(), statement: named(sql), expected }
    }
}

/// Why the inventory is wrong about whose server this is, if it is.
pub(super) fn wrong_flavor(access: &ServerAccess, version: &ServerVersion) -> Option<Refusal> {
    (access.flavor != version.flavor).then(|| Refusal {
        what: format!("is not what the inventory says: its version is {}", version.text),
        remedy: format!("write engine = \"{}\"", version.flavor),
    })
}

/// Whether a host is this very machine, so that nobody else sees what is said.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn opts(access: &ServerAccess, found: Credentials, within: Duration) -> Opts {
    let builder = OptsBuilder::new()
        .user(found.user)
        .pass(found.password.map(|secret| secret.reveal().to_owned()))
        .prefer_socket(false)
        .stmt_cache_size(0)
        // A row may be longer than the server lets a statement be.
        .max_allowed_packet(Some(1 << 30))
        .read_timeout(Some(within))
        .write_timeout(Some(within))
        .tcp_connect_timeout(Some(within))
        .init(vec!["SET NAMES utf8mb4"]);
    match &access.address {
        ServerAddress::Socket(path) => builder.socket(Some(path.to_string_lossy())).into(),
        ServerAddress::Tcp { host, port } => {
            let tls = (found.tls_ca.is_some() || !is_loopback(host)).then(|| match found.tls_ca {
                Some(ca) => SslOpts::default().with_root_cert_path(Some(ca)),
                None => SslOpts::default(),
            });
            builder.ip_or_hostname(Some(host)).tcp_port(*port).ssl_opts(tls).into()
        }
    }
}

/// Connects on another thread: the lookup of a name, and `connect` on the socket of a server that does not accept, have
/// no timeouts of their own. A thread that is given up ends with its own connection.
fn bounded(opts: Opts, within: Duration) -> Result<Conn, NotConnected> {
    let (done, answer) = mpsc::sync_channel(1);
    let connect = move || {
        // Nobody listens any more if it took too long.
        let _ = done.send(Conn::new(opts));
    };
    thread::Builder::new().name("connect".into()).spawn(connect).map_err(NotConnected::Thread)?;
    match answer.recv_timeout(within) {
        Ok(connected) => connected.map_err(NotConnected::Said),
        Err(_) => Err(NotConnected::TooLate),
    }
}

enum NotConnected {
    Thread(io::Error),
    Said(Said),
    TooLate,
}

fn not_connected(address: &ServerAddress, error: NotConnected) -> ServerError {
    let address = address.clone();
    match error {
        NotConnected::Thread(error) => ServerError::Unreachable { address, said: error.to_string() },
        NotConnected::TooLate => ServerError::Mute { address },
        NotConnected::Said(Said::TlsError(error)) => not_trusted(address, &error.to_string()),
        // So says the TLS of the stream, once the handshake has begun.
        NotConnected::Said(Said::IoError(error)) if error.kind() == io::ErrorKind::InvalidData => {
            not_trusted(address, &error.to_string())
        }
        NotConnected::Said(Said::CodecError(error))
            if io_of(&error).is_some_and(|error| error.kind() == io::ErrorKind::InvalidData) =>
        {
            not_trusted(address, &error.to_string())
        }
        NotConnected::Said(Said::DriverError(mysql::DriverError::TlsNotSupported)) => ServerError::Refused {
            address,
            what: "does not offer TLS, without which nothing is sent to another host".into(),
            remedy: "give it a certificate (ssl_cert, ssl_key), or reach it by its socket".into(),
        },
        NotConnected::Said(said) => match classify(&address, "the login", said) {
            ServerError::Lost { address, said, .. } => ServerError::Unreachable { address, said },
            ServerError::Silent { address, .. } => ServerError::Mute { address },
            other => other,
        },
    }
}

fn not_trusted(address: ServerAddress, why: &str) -> ServerError {
    let remedy =
        "name the authority that signed its certificate as tls_ca, and the server as its certificate does";
    ServerError::Refused { address, what: format!("is not trusted: {why}"), remedy: remedy.into() }
}

/// The error of the system that the codec has wrapped.
fn io_of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    error.source().and_then(|cause| cause.downcast_ref())
}

fn classify(address: &ServerAddress, sql: &str, said: Said) -> ServerError {
    let (address, statement) = (address.clone(), named(sql));
    if is_timeout(&said) {
        return ServerError::Silent { address, statement };
    }
    match said {
        Said::MySqlError(error) => {
            ServerError::Said { address, statement, code: error.code, said: error.message }
        }
        Said::IoError(error) => ServerError::Lost { address, statement, said: error.to_string() },
        Said::DriverError(mysql::DriverError::CouldNotConnect(Some((_, said, _)))) => {
            ServerError::Lost { address, statement, said }
        }
        Said::DriverError(error) => ServerError::Lost { address, statement, said: error.to_string() },
        Said::CodecError(error) => ServerError::Lost { address, statement, said: error.to_string() },
        Said::TlsError(error) => ServerError::Lost { address, statement, said: error.to_string() },
        Said::UrlError(_) | Said::FromValueError(_) | Said::FromRowError(_) => {
            ServerError::Answer { address, statement, expected: "rows" }
        }
    }
}

/// Whether the socket's own timeout has come; the codec wraps it once more.
fn is_timeout(said: &Said) -> bool {
    let timed_out =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    match said {
        Said::DriverError(mysql::DriverError::ConnectTimeout) => true,
        Said::IoError(error) => timed_out(error),
        Said::CodecError(error) => io_of(error).is_some_and(timed_out),
        _ => false,
    }
}

/// A text as a literal of SQL, whatever `sql_mode` says of backslashes.
pub(super) fn quoted(text: &str) -> String {
    if text.contains('\\') {
        let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        return format!("CONVERT(x'{digits}' USING utf8mb4)");
    }
    format!("'{}'", text.replace('\'', "''"))
}

/// A statement's name for messages: its beginning, without what is compared or set.
fn named(sql: &str) -> String {
    const LONGEST: usize = 60;
    let sql = match sql.strip_prefix("SET STATEMENT ").and_then(|rest| rest.split_once(" FOR ")) {
        Some((_, statement)) => statement,
        None => sql,
    };
    let until = sql.find(['\'', '"', '=']).unwrap_or(sql.len());
    let words = sql[..until].split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &words[..at]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use model::port::FailureKind;

    use super::{classify, is_loopback, named, quoted};

    #[test]
    fn statements_are_named_without_what_they_set() {
        assert_eq!(
            named("SET STATEMENT max_statement_time=0.5 FOR BACKUP STAGE START"),
            "BACKUP STAGE START"
        );
        assert_eq!(named("SET PASSWORD = 'x'"), "SET PASSWORD");
        assert_eq!(named("SELECT  1,\n 2"), "SELECT 1, 2");
        assert!(named(&"SELECT x, ".repeat(20)).ends_with('…'));
    }

    #[test]
    fn texts_cannot_end_their_literal() {
        assert_eq!(quoted("it's"), "'it''s'");
        assert_eq!(quoted(r"a\'"), "CONVERT(x'615c27' USING utf8mb4)");
    }

    #[test]
    fn only_loopback_is_this_machine() {
        for (host, is) in
            [("localhost", true), ("127.0.0.7", true), ("::1", true), ("db1", false), ("10.0.0.1", false)]
        {
            assert_eq!(is_loopback(host), is, "{host}");
        }
    }

    #[test]
    fn errors_are_told_apart() {
        let address = model::server::ServerAddress::Socket("/s".into());
        let said = |code| {
            let error = mysql::MySqlError { state: String::new(), message: "no".into(), code };
            classify(&address, "BACKUP STAGE END", mysql::Error::MySqlError(error)).kind()
        };
        assert_eq!(
            [said(1205), said(1969), said(1927)],
            [FailureKind::Busy, FailureKind::TimedOut, FailureKind::Lost]
        );
        assert_eq!(
            [said(1045), said(1227), said(4711)],
            [FailureKind::Refused, FailureKind::Refused, FailureKind::Other]
        );
        let silent = mysql::Error::IoError(std::io::ErrorKind::WouldBlock.into());
        assert_eq!(classify(&address, "SELECT 1", silent).kind(), FailureKind::TimedOut);
        let gone = mysql::Error::IoError(std::io::ErrorKind::UnexpectedEof.into());
        assert_eq!(classify(&address, "SELECT 1", gone).kind(), FailureKind::Lost);
    }
}
