//! An application under load whose copies can be judged: rows that name files with their SHA-256, sums over
//! several tables, and sequences over every storage engine.
//!
//! For its `n`-th entry a writer writes the file, then inserts a row into a MyISAM, an Aria
//! (`TRANSACTIONAL=0`) and an Aria (`TRANSACTIONAL=1`) table, each by itself, then commits one InnoDB (and
//! MyRocks) transaction that inserts the row which names the file and moves money between tables. Now and then it
//! deletes a row and, after that, its file. So at any one instant a row implies its file, the non-transactional
//! tables are at most one entry ahead of the transactional ones, sums are zero and nothing has a hole; a copy made
//! of several instants breaks one of these.

mod check;
mod writer;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use mysql::{Conn, OptsBuilder, prelude::Queryable};
use serde::{Deserialize, Serialize};

pub use check::{Report, verify};

use super::{
    PrivateServer,
    process::{start, wait_until},
};

/// The variable that tells a test process to be the ledger's.
const VARIABLE: &str = "STILLPOINT_LEDGER";
/// The least unit of the accounts' tables; every writer owns one account on the left.
const ACCOUNTS: u32 = 32;

/// How a ledger shall write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LedgerOptions {
    /// The server's socket.
    pub socket: PathBuf,
    /// Where the files go; made if absent. One directory a writer.
    pub files: PathBuf,
    /// How many write at once, at most 32.
    pub writers: u32,
    /// How long each rests between entries, in milliseconds.
    pub pace_ms: u64,
    /// Decides contents, sizes and deletions.
    pub seed: u64,
}

impl LedgerOptions {
    /// Four writers without rest on this server, with files in this directory.
    #[must_use]
    pub fn new(server: &PrivateServer, files: &Path, seed: u64) -> Self {
        Self { socket: server.socket(), files: files.to_path_buf(), writers: 4, pace_ms: 1, seed }
    }

    fn connect(&self) -> mysql::Result<Conn> {
        Conn::new(OptsBuilder::new().socket(Some(self.socket.to_string_lossy())).user(Some("root")))
    }
}

/// Makes the ledger's tables, unless they are there.
fn make_tables(connection: &mut Conn) -> mysql::Result<bool> {
    let engine = "SELECT COUNT(*) FROM information_schema.engines WHERE engine = 'ROCKSDB'";
    let rocksdb = connection.query_first::<u32, _>(engine)? == Some(1);
    let mut tables = vec![
        ("writer", "writer INT PRIMARY KEY, seq BIGINT NOT NULL", "ENGINE=InnoDB"),
        (
            "journal",
            "writer INT, seq BIGINT, sha256 CHAR(64), live TINYINT, PRIMARY KEY (writer, seq)",
            "ENGINE=InnoDB",
        ),
        (
            "entry",
            "writer INT, seq BIGINT, upload VARCHAR(200), sha256 CHAR(64), PRIMARY KEY (writer, seq)",
            "ENGINE=InnoDB",
        ),
        ("left_account", "id INT PRIMARY KEY, balance BIGINT NOT NULL", "ENGINE=InnoDB"),
        ("right_account", "id INT PRIMARY KEY, balance BIGINT NOT NULL", "ENGINE=InnoDB"),
    ];
    let plain = "writer INT, seq BIGINT, sha256 CHAR(64), PRIMARY KEY (writer, seq)";
    tables.push(("myisam", plain, "ENGINE=MyISAM"));
    tables.push(("aria0", plain, "ENGINE=Aria TRANSACTIONAL=0"));
    tables.push(("aria1", plain, "ENGINE=Aria TRANSACTIONAL=1"));
    if rocksdb {
        tables.push(("rocks_account", "id INT PRIMARY KEY, balance BIGINT NOT NULL", "ENGINE=RocksDB"));
    }
    connection.query_drop("CREATE DATABASE IF NOT EXISTS ledger")?;
    for (name, columns, engine) in tables {
        connection.query_drop(format!("CREATE TABLE IF NOT EXISTS ledger.{name} ({columns}) {engine}"))?;
        if name.ends_with("account") {
            let values: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id}, 0)")).collect();
            connection.query_drop(format!("INSERT IGNORE INTO ledger.{name} VALUES {}", values.join(",")))?;
        }
    }
    Ok(rocksdb)
}

/// A ledger that writes until it is dropped, in a process of its own (so that a backup may hold it).
pub struct Ledger {
    options: LedgerOptions,
    child: Child,
}

impl Ledger {
    /// Starts it. The process is this test program again, told to run the test `helper`, which must do nothing
    /// but call [`ledger_process`] first.
    ///
    /// # Panics
    /// If it does not write within twenty seconds.
    #[must_use]
    pub fn start(options: LedgerOptions, helper: &str) -> Self {
        std::fs::create_dir_all(&options.files).expect("the directory of the files");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe().expect("this program"));
        command.args(["--exact", helper, "--nocapture", "--test-threads=1"]);
        command.env(VARIABLE, serde_json::to_string(&options).expect("options are JSON"));
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let ledger = Self { options, child: start(command).expect("the ledger starts") };
        let writes = ledger.wait_for_progress(Duration::from_secs(20));
        assert!(writes.is_some(), "the ledger does not write: is there a test named {helper}?");
        ledger
    }

    /// Process id of the process that writes the files.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Entries committed so far by all writers together; `None` if the server does not tell.
    #[must_use]
    pub fn entries(&self) -> Option<u64> {
        let mut connection = self.options.connect().ok()?;
        connection.query_first::<Option<u64>, _>("SELECT SUM(seq) FROM ledger.writer").ok()??
    }

    /// Waits until more entries were committed, and tells how long that took; `None` if none were in time.
    #[must_use]
    pub fn wait_for_progress(&self, at_most: Duration) -> Option<Duration> {
        let before = self.entries().unwrap_or(0);
        wait_until(at_most, || self.entries().is_some_and(|now| now > before))
    }

    /// Lets the writers finish what they do, and waits for that.
    ///
    /// # Panics
    /// If they do not end.
    pub fn stop(mut self) {
        drop(self.child.stdin.take());
        let ended = wait_until(Duration::from_secs(30), || self.child.try_wait().is_ok_and(|s| s.is_some()));
        assert!(ended.is_some(), "the ledger does not end");
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the process that [`Ledger::start`] started: writes until its standard input ends, and exits. Elsewhere:
/// does nothing.
pub fn ledger_process() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    let options: LedgerOptions = serde_json::from_str(&text).expect("options are JSON");
    let status = match writer::run(&options) {
        Ok(()) => 0,
        Err(told) => {
            let _ = writeln!(std::io::stderr(), "the ledger: {told}");
            1
        }
    };
    std::process::exit(status);
}
