//! What clients notice: many of them, committing small transactions all the time, each with a stopwatch.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mysql::{Conn, Opts, prelude::Queryable};

/// What each client does in a loop, and waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// A transaction of an insert and an update, committed, in InnoDB.
    InnoDb,
    /// An insert into a MyISAM table.
    MyIsam,
    /// An insert into an Aria table, `TRANSACTIONAL=0`.
    Aria,
    /// An insert into an Aria table, `TRANSACTIONAL=1`.
    AriaTransactional,
}

impl Workload {
    fn table(self) -> (&'static str, &'static str) {
        match self {
            Self::InnoDb => ("innodb", "ENGINE=InnoDB"),
            Self::MyIsam => ("myisam", "ENGINE=MyISAM"),
            Self::Aria => ("aria0", "ENGINE=Aria TRANSACTIONAL=0"),
            Self::AriaTransactional => ("aria1", "ENGINE=Aria TRANSACTIONAL=1"),
        }
    }

    fn statements(self, client: u32, seq: u64) -> Vec<String> {
        let (table, _) = self.table();
        let insert = format!("INSERT INTO latency.{table} VALUES ({client}, {seq}, REPEAT('x', 100))");
        if self != Self::InnoDb {
            return vec![insert];
        }
        let update =
            format!("UPDATE latency.{table} SET pad = 'y' WHERE client = {client} AND seq = {seq} - 1");
        vec!["BEGIN".to_owned(), insert, update, "COMMIT".to_owned()]
    }
}

/// One transaction of one client.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// When its first statement was sent.
    pub begun: Instant,
    /// Until its last was answered; `None` while it is not.
    pub took: Option<Duration>,
    /// Whether it was answered without an error.
    pub done: bool,
}

impl Commit {
    /// How long it took, or has taken so far.
    #[must_use]
    pub fn so_far(&self) -> Duration {
        self.took.unwrap_or_else(|| self.begun.elapsed())
    }

    fn touches(&self, from: Instant, until: Instant) -> bool {
        self.begun <= until && self.took.is_none_or(|took| self.begun + took >= from)
    }
}

/// Clients that commit until this is dropped. A client whose connection breaks connects again.
pub struct Latency {
    stop: Arc<AtomicBool>,
    commits: Vec<Arc<Mutex<Vec<Commit>>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Latency {
    /// Makes the table if need be and starts so many clients, which rest for `pace` between transactions.
    ///
    /// # Panics
    /// If the table cannot be made, or a client does not commit within ten seconds.
    #[must_use]
    pub fn start(opts: &Opts, workload: Workload, clients: u32, pace: Duration) -> Self {
        let mut connection = Conn::new(opts.clone()).expect("the server answers");
        let (table, engine) = workload.table();
        connection.query_drop("CREATE DATABASE IF NOT EXISTS latency").expect("a database");
        let columns = "client INT, seq BIGINT, pad VARCHAR(100), PRIMARY KEY (client, seq)";
        let create = format!("CREATE OR REPLACE TABLE latency.{table} ({columns}) {engine}");
        connection.query_drop(create).expect("a table");
        let stop = Arc::new(AtomicBool::new(false));
        let mut started = Self { stop, commits: Vec::new(), clients: Vec::new() };
        for client in 0..clients {
            let commits = Arc::new(Mutex::new(Vec::new()));
            let (stop, opts, into) = (Arc::clone(&started.stop), opts.clone(), Arc::clone(&commits));
            started.commits.push(commits);
            started.clients.push(thread::spawn(move || run(&opts, workload, client, pace, &stop, &into)));
        }
        let writing = super::wait_until(Duration::from_secs(10), || {
            started.commits.iter().all(|commits| lock(commits).iter().any(|commit| commit.done))
        });
        assert!(writing.is_some(), "the clients do not commit");
        started
    }

    /// All commits that were under way at any time between two instants, in no order.
    #[must_use]
    pub fn between(&self, from: Instant, until: Instant) -> Vec<Commit> {
        let touching = |commit: &&Commit| commit.touches(from, until);
        self.commits
            .iter()
            .flat_map(|all| lock(all).iter().filter(touching).copied().collect::<Vec<_>>())
            .collect()
    }

    /// The longest of them; those that are not answered yet count as long as they have waited.
    #[must_use]
    pub fn longest(&self, from: Instant, until: Instant) -> Duration {
        self.between(from, until).iter().map(Commit::so_far).max().unwrap_or_default()
    }

    /// How many were answered without error between two instants.
    #[must_use]
    pub fn committed(&self, from: Instant, until: Instant) -> usize {
        let ended = |commit: &&Commit| {
            commit.done && commit.took.is_some_and(|took| (from..=until).contains(&(commit.begun + took)))
        };
        self.commits.iter().map(|all| lock(all).iter().filter(ended).count()).sum()
    }

    /// Waits until every client has committed a transaction begun after this call, and tells how long that took;
    /// `None` if one has not within `at_most`.
    #[must_use]
    pub fn wait_for_commits(&self, at_most: Duration) -> Option<Duration> {
        let from = Instant::now();
        super::wait_until(at_most, || {
            let fresh = |commit: &Commit| commit.done && commit.begun >= from;
            self.commits.iter().all(|all| lock(all).iter().rev().take(3).any(fresh))
        })
    }
}

impl Drop for Latency {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A client that waits for a server that never answers is left to the end of the process.
        let ended = || self.clients.iter().all(JoinHandle::is_finished);
        let _ = super::wait_until(Duration::from_secs(10), ended);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn run(
    opts: &Opts,
    work: Workload,
    client: u32,
    pace: Duration,
    stop: &AtomicBool,
    into: &Mutex<Vec<Commit>>,
) {
    let mut connection = None;
    let mut seq = 0;
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        let begun = Instant::now();
        lock(into).push(Commit { begun, took: None, done: false });
        let done = commit(&mut connection, opts, &work.statements(client, seq)).is_ok();
        if let Some(last) = lock(into).last_mut() {
            *last = Commit { begun, took: Some(begun.elapsed()), done };
        }
        if !done {
            connection = None;
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(pace);
    }
}

fn commit(connection: &mut Option<Conn>, opts: &Opts, statements: &[String]) -> mysql::Result<()> {
    if connection.is_none() {
        *connection = Some(Conn::new(opts.clone())?);
    }
    let Some(open) = connection else { return Ok(()) };
    statements.iter().try_for_each(|statement| open.query_drop(statement))
}
