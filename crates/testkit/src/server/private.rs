//! A private MariaDB server: own data directory, own socket, no network unless asked.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use mysql::{Conn, Opts, OptsBuilder, prelude::Queryable};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    Told,
    install::{USER, give, install, is_root},
    process::{open_the_way, run, start, tail, wait_until},
};

/// A server answers within this time, crash recovery of a few gigabytes included.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// A server has stopped within this time.
const STOPPED_WITHIN: Duration = Duration::from_secs(120);

/// What a server shall be like; see [`PrivateServer::builder`].
#[derive(Clone, Debug, Default)]
pub struct ServerBuilder {
    directory: Option<PathBuf>,
    datadir: Option<PathBuf>,
    existing: bool,
    no_binlog: bool,
    network: bool,
    tls: bool,
    server_id: Option<u32>,
    options: Vec<String>,
}

impl ServerBuilder {
    /// Where data directory and error log lie; made if absent. Without it: a temporary directory.
    #[must_use]
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// The data directory itself, if it is not `data` below the directory: a mount point, a subvolume. It is made
    /// or must be empty, and it stays when the server is dropped.
    #[must_use]
    pub fn datadir(mut self, path: impl Into<PathBuf>) -> Self {
        self.datadir = Some(path.into());
        self
    }

    /// Starts on a data directory that is there (a restored copy), fenced: no network, no replication, no events,
    /// and no binary log unless an option turns it on. Its files are given to the server's user.
    #[must_use]
    pub fn copy_at(mut self, datadir: impl Into<PathBuf>) -> Self {
        self.datadir = Some(datadir.into());
        self.existing = true;
        self.no_binlog = true;
        self.options.extend(["--skip-slave-start".to_owned(), "--event-scheduler=OFF".to_owned()]);
        self
    }

    /// One option as on the command line of `mariadbd`, for example `--innodb-buffer-pool-size=512M`.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// No binary log (there is one otherwise, `binlog` in the data directory).
    #[must_use]
    pub fn no_binlog(mut self) -> Self {
        self.no_binlog = true;
        self
    }

    /// The server's id for replication, 1 unless given.
    #[must_use]
    pub fn server_id(mut self, id: u32) -> Self {
        self.server_id = Some(id);
        self
    }

    /// Listens on a free port of 127.0.0.1, too.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.network = true;
        self
    }

    /// Offers TLS on that port, with a certificate for `localhost` and 127.0.0.1 signed by itself.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self.network()
    }

    /// With MyRocks.
    #[must_use]
    pub fn rocksdb(self) -> Self {
        self.option("--plugin-load-add=ha_rocksdb")
    }

    /// Installs and starts it.
    ///
    /// # Errors
    /// The end of its error log, if it does not come up.
    pub fn try_start(self) -> Told<PrivateServer> {
        let run_dir = tempfile::Builder::new().prefix("sps").tempdir_in("/tmp").map_err(|e| e.to_string())?;
        let directory = self.directory.clone().unwrap_or_else(|| run_dir.path().join("server"));
        let datadir = self.datadir.clone().unwrap_or_else(|| directory.join("data"));
        for dir in [&directory, &datadir] {
            fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            open_the_way(dir);
        }
        give(&directory, false)?;
        give(run_dir.path(), false)?;
        give(&datadir, self.existing)?;
        if !self.existing {
            install(&datadir, &self.options)?;
        }
        let port = if self.network { Some(free_port()?) } else { None };
        let certificate = if self.tls { Some(make_certificate(run_dir.path())?) } else { None };
        let mut server = PrivateServer {
            error_log: directory.join("error.log"),
            made: self.datadir.is_none().then(|| directory.clone()),
            datadir,
            port,
            certificate,
            builder: self,
            run_dir,
            child: None,
        };
        server.try_start()?;
        Ok(server)
    }

    /// Installs and starts it.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(self) -> PrivateServer {
        self.try_start().unwrap_or_else(|told| panic!("the server does not start: {told}"))
    }
}

/// One line of a server's process list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerProcess {
    /// The connection's id, for `KILL`.
    pub id: u64,
    /// Whose it is.
    pub user: String,
    /// `Sleep`, `Query`, `Killed`, ...
    pub command: String,
    /// What its statement waits for.
    pub state: String,
    /// Its statement; empty if none runs.
    pub info: String,
}

/// A MariaDB server of one test. Dropping kills it and removes what it made.
pub struct PrivateServer {
    builder: ServerBuilder,
    run_dir: tempfile::TempDir,
    made: Option<PathBuf>,
    datadir: PathBuf,
    error_log: PathBuf,
    port: Option<u16>,
    certificate: Option<PathBuf>,
    child: Option<Child>,
}

impl PrivateServer {
    /// A server with a binary log and without network.
    #[must_use]
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// Process id of the running server.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Its socket; short enough for `sun_path` (108 bytes).
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.path().join("s")
    }

    /// Its port on 127.0.0.1, if the network was asked for.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Its certificate in PEM, which is its own authority, if TLS was asked for.
    #[must_use]
    pub fn certificate(&self) -> Option<&Path> {
        self.certificate.as_deref()
    }

    /// Its data directory.
    #[must_use]
    pub fn datadir(&self) -> &Path {
        &self.datadir
    }

    /// All that it has logged.
    #[must_use]
    pub fn error_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.error_log).unwrap_or_default()).into_owned()
    }

    /// Path of its error log.
    #[must_use]
    pub fn error_log_path(&self) -> &Path {
        &self.error_log
    }

    /// File and offset of the binary log as InnoDB told them at the last start, if it had something to recover.
    #[must_use]
    pub fn recovered_position(&self) -> Option<(String, u64)> {
        let log = self.error_log();
        let this_start = log.rfind("Starting MariaDB").map_or(&log[..], |start| &log[start..]);
        let line = this_start.lines().find(|line| line.contains("Last binlog file '"))?;
        let (file, rest) = line.split_once("Last binlog file '")?.1.split_once('\'')?;
        let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).collect();
        let offset = digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()?;
        Some((file.trim_start_matches("./").to_owned(), offset))
    }

    /// Transactions (`Xid` events, so InnoDB's and MyRocks') that lie between two places of its binary log, which are
    /// in the same file or in two that follow each other. A copy taken at the later place whose InnoDB recovered the
    /// earlier one lacks so many; statements on MyISAM and Aria are no transactions, and leave InnoDB's place behind.
    ///
    /// # Panics
    /// If it does not have these files.
    #[must_use]
    pub fn transactions_between(&self, from: &(String, u64), to: &(String, u64)) -> u64 {
        let mut connection = self.connect();
        let mut count = |file: &str, first: u64, last: u64| -> u64 {
            let events: Vec<mysql::Row> = connection
                .query(format!("SHOW BINLOG EVENTS IN '{file}' FROM {first}"))
                .expect("its binary log");
            let of = |row: &mysql::Row| -> Option<(String, u64)> { Some((row.get(2)?, row.get(4)?)) };
            let xids = events.iter().filter_map(of).filter(|(kind, end)| kind == "Xid" && *end <= last);
            xids.count() as u64
        };
        if from.0 == to.0 {
            return count(&from.0, from.1, to.1);
        }
        count(&from.0, from.1, u64::MAX) + count(&to.0, 4, to.1)
    }

    /// How to connect as its `root`, by the socket.
    #[must_use]
    pub fn opts(&self) -> Opts {
        OptsBuilder::new().socket(Some(self.socket().to_string_lossy())).user(Some("root")).into()
    }

    /// A connection as its `root`.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn connect(&self) -> Conn {
        Conn::new(self.opts()).unwrap_or_else(|error| panic!("{error}; {}", tail(&self.error_log(), 10)))
    }

    /// Runs statements, in order, on a connection of their own.
    ///
    /// # Panics
    /// If one fails.
    pub fn run<S: AsRef<str>>(&self, statements: impl IntoIterator<Item = S>) {
        let mut connection = self.connect();
        for statement in statements {
            let text = statement.as_ref();
            connection.query_drop(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    /// The first value of a statement's answer, as text; `None` if it has no row or is NULL.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn ask(&self, statement: &str) -> Option<String> {
        let row: Option<mysql::Row> =
            self.connect().query_first(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
        row?.take_opt::<Option<String>, _>(0)?.ok().flatten()
    }

    /// Global variables and their values, except those that change by themselves.
    #[must_use]
    pub fn variables(&self) -> std::collections::BTreeMap<String, String> {
        let all: Vec<(String, String)> = self.connect().query("SHOW GLOBAL VARIABLES").expect("variables");
        all.into_iter()
            .filter(|(name, _)| !name.starts_with("gtid_") && !name.starts_with("general_log"))
            .collect()
    }

    /// All connections but the one that asks and the server's own threads.
    ///
    /// # Panics
    /// If the server does not answer.
    #[must_use]
    pub fn processes(&self) -> Vec<ServerProcess> {
        let sql = "SELECT id, user, command, COALESCE(state, ''), COALESCE(info, '') \
                   FROM information_schema.processlist \
                   WHERE id <> connection_id() AND user <> 'system user' AND command <> 'Daemon'";
        let row = |(id, user, command, state, info)| ServerProcess { id, user, command, state, info };
        self.connect().query_map(sql, row).expect("the process list")
    }

    /// Stops it cleanly.
    ///
    /// # Panics
    /// If it does not stop in time.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::TERM).expect("the server is ours");
        let ended = wait_until(STOPPED_WITHIN, || child.try_wait().is_ok_and(|status| status.is_some()));
        if ended.is_none() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not stop: {}", tail(&self.error_log(), 20));
        }
    }

    /// Kills it with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts it again, after [`stop`](Self::stop) or [`kill`](Self::kill).
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(&mut self) {
        self.try_start().unwrap_or_else(|told| panic!("the server does not start: {told}"));
    }

    /// Stops and starts it.
    ///
    /// # Panics
    /// If it does not stop or come up.
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// More options for the next start.
    pub fn add_option(&mut self, option: impl Into<String>) {
        self.builder.options.push(option.into());
    }

    /// Whether its process is there.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    fn try_start(&mut self) -> Told<()> {
        assert!(self.child.is_none(), "the server runs already");
        let mut child = start(self.command()).map_err(|error| format!("mariadbd: {error}"))?;
        let mut died = None;
        let ready = wait_until(READY_WITHIN, || {
            died = child.try_wait().ok().flatten();
            let answers = || Conn::new(self.opts()).is_ok_and(|mut open| open.ping().is_ok());
            died.is_some() || answers()
        });
        if let (Some(_), None) = (ready, died) {
            self.child = Some(child);
            return Ok(());
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(format!("ended: {died:?}; its log ends:\n{}", tail(&self.error_log(), 30)))
    }

    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if is_root() {
            command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
        }
        command.args(["mariadbd", "--no-defaults"]);
        command.arg(format!("--datadir={}", self.datadir.display()));
        command.arg(format!("--socket={}", self.socket().display()));
        command.arg(format!("--log-error={}", self.error_log.display()));
        command.arg(format!("--pid-file={}", self.run_dir.path().join("pid").display()));
        command.arg(format!("--tmpdir={}", self.run_dir.path().display()));
        command.arg(format!("--server-id={}", self.builder.server_id.unwrap_or(1)));
        command.args(["--innodb-log-file-size=32M", "--innodb-buffer-pool-size=64M", "--key-buffer-size=1M"]);
        if !self.builder.no_binlog {
            command.arg("--log-bin=binlog");
        }
        match self.port {
            Some(port) => command.args(["--bind-address=127.0.0.1".to_owned(), format!("--port={port}")]),
            None => command.arg("--skip-networking"),
        };
        if let Some(certificate) = &self.certificate {
            command.arg(format!("--ssl-cert={}", certificate.display()));
            command.arg(format!("--ssl-key={}", certificate.with_extension("key").display()));
        }
        command.args(&self.builder.options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        self.kill();
        if let Some(directory) = &self.made {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

fn free_port() -> Told<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

fn make_certificate(dir: &Path) -> Told<PathBuf> {
    let (certificate, key) = (dir.join("tls.pem"), dir.join("tls.key"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    command.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    run(command.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
    give(&key, false)?;
    give(&certificate, false)?;
    Ok(certificate)
}
