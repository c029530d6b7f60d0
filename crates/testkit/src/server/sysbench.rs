//! `sysbench`: tables of a wanted size, and a load of small transactions on them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use mysql::{Conn, prelude::Queryable};

use super::{
    PrivateServer,
    process::{run, start, wait_until},
};

/// What a row of sysbench's table takes in its file with the index on `k` and what InnoDB allocates ahead, bytes
/// (measured: 6.3 MB for 20,000 rows, 13.6 for 40,000, 28.3 for 100,000).
const ROW_BYTES: u64 = 310;

/// A set of sysbench's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sysbench {
    /// How many, each in a file of its own.
    pub tables: u32,
    /// Rows in each.
    pub rows: u64,
}

impl Sysbench {
    /// So many tables that fill about so many bytes together.
    #[must_use]
    pub fn sized(tables: u32, bytes: u64) -> Self {
        Self { tables, rows: (bytes / u64::from(tables.max(1)) / ROW_BYTES).max(1) }
    }

    fn command(self, server: &PrivateServer) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sysbench", "oltp_write_only", "--db-driver=mysql"]);
        command.arg(format!("--mysql-socket={}", server.socket().display()));
        command.args(["--mysql-user=root", "--mysql-db=sbtest"]);
        command.arg(format!("--table-size={}", self.rows));
        command
    }

    /// Makes the tables: the first by sysbench, the others from it with other bytes, nothing of it in the binary
    /// log, all of it flushed.
    ///
    /// # Panics
    /// If sysbench or the server refuse.
    pub fn prepare(self, server: &PrivateServer) {
        server.run(["CREATE DATABASE IF NOT EXISTS sbtest"]);
        run(self.command(server).args(["--tables=1", "prepare"])).expect("sysbench prepares");
        thread::scope(|scope| {
            for half in 0..2 {
                let mut connection = server.connect();
                scope.spawn(move || {
                    for table in (2..=self.tables).filter(|number| number % 2 == half) {
                        self.copy_first(&mut connection, table);
                    }
                });
            }
        });
        flush(server);
    }

    /// In bulk, which is several times faster and fills the pages (seen: 20,000 rows in 6.3 MB, 12.6 otherwise).
    fn copy_first(self, connection: &mut Conn, table: u32) {
        let set = "SET sql_log_bin = 0, unique_checks = 0, foreign_key_checks = 0";
        let create = format!("CREATE TABLE sbtest.sbtest{table} LIKE sbtest.sbtest1");
        let copy = format!(
            "INSERT INTO sbtest.sbtest{table} SELECT id, (k + {table} * 7919) % {} + 1, \
             CONCAT({table}, '-', SUBSTR(c, 5)), pad FROM sbtest.sbtest1",
            self.rows
        );
        for statement in [set, &create, &copy] {
            connection.query_drop(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }

    /// Starts write transactions on all tables, `rate` a second (0: as fast as they go), for so long. Errors
    /// (killed connections) are ignored and counted.
    ///
    /// # Panics
    /// If sysbench does not commit within twenty seconds.
    #[must_use]
    pub fn start(self, server: &PrivateServer, threads: u32, rate: u32, length: Duration) -> SysbenchRun {
        let mut command = self.command(server);
        command.arg(format!("--tables={}", self.tables)).arg(format!("--threads={threads}"));
        command.arg(format!("--rate={rate}")).arg(format!("--time={}", length.as_secs()));
        command.args(["--report-interval=1", "--percentile=100", "--mysql-ignore-errors=all", "run"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = start(command).expect("sysbench starts");
        let seconds = Arc::new(Mutex::new(Vec::new()));
        let (output, into) = (child.stdout.take().expect("its output"), Arc::clone(&seconds));
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(second) = parse(&line) {
                    into.lock().expect("no panic under it").push(second);
                }
            }
        });
        let running = SysbenchRun { child, seconds };
        let busy = || running.seconds().iter().any(|second| second.transactions > 0.0);
        assert!(wait_until(Duration::from_secs(20), busy).is_some(), "sysbench does not commit");
        running
    }
}

/// Writes all dirty pages, so that what follows does not compete with them.
fn flush(server: &PrivateServer) {
    let value = |name: &str| server.ask(&format!("SELECT @@{name}")).expect("a variable");
    let before = ["innodb_io_capacity_max", "innodb_io_capacity", "innodb_max_dirty_pages_pct"]
        .map(|name| format!("SET GLOBAL {name} = {}", value(name)));
    server.run([
        "SET GLOBAL innodb_io_capacity_max = 50000",
        "SET GLOBAL innodb_io_capacity = 50000",
        "SET GLOBAL innodb_max_dirty_pages_pct = 0",
    ]);
    let dirty = || {
        let pages = server.ask(
            "SELECT variable_value FROM information_schema.global_status \
             WHERE variable_name = 'Innodb_buffer_pool_pages_dirty'",
        );
        pages.and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(u64::MAX)
    };
    let clean = wait_until(Duration::from_secs(120), || dirty() < 50);
    assert!(clean.is_some(), "{} dirty pages stay", dirty());
    // The lower one first: the server keeps the order of the two.
    server.run([&before[1], &before[0], &before[2]]);
}

/// One second as sysbench reported it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SysbenchSecond {
    /// When the report was read.
    pub at: Instant,
    /// Transactions committed, per second.
    pub transactions: f64,
    /// The longest of them.
    pub longest: Duration,
    /// Errors per second.
    pub errors: f64,
}

/// `[ 3s ] thds: 2 tps: 612.00 qps: 3672.00 (r/w/o: …) lat (ms,100%): 8.12 err/s: 0.00 reconn/s: 0.00`
fn parse(line: &str) -> Option<SysbenchSecond> {
    let after = |name: &str| -> Option<f64> {
        line.split_once(name)?.1.split_whitespace().next()?.trim_end_matches(',').parse().ok()
    };
    Some(SysbenchSecond {
        at: Instant::now(),
        transactions: after("tps: ")?,
        longest: Duration::from_secs_f64(
            after("lat (ms,100%): ").or_else(|| after("lat (ms,99%): "))? / 1000.0,
        ),
        errors: after("err/s: ")?,
    })
}

/// A running load; dropping ends it.
pub struct SysbenchRun {
    child: Child,
    seconds: Arc<Mutex<Vec<SysbenchSecond>>>,
}

impl SysbenchRun {
    /// What it has reported so far, a second each.
    ///
    /// # Panics
    /// If its reader has.
    #[must_use]
    pub fn seconds(&self) -> Vec<SysbenchSecond> {
        self.seconds.lock().expect("no panic under it").clone()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }
}

impl Drop for SysbenchRun {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
