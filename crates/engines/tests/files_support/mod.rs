//! A server on a filesystem of its own, clients that know what was acknowledged to them, and one cut of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engines::{
    fs::{Held, Volumes},
    server::{
        Means, ServerLock,
        files::{FilesForm, FilesPinner},
    },
};
use model::{
    entry::{Body, Harvest, Kind},
    id::SourceId,
    inventory::ProcessSelector,
    known::Known,
    plan::{PinMethod, PinPlan, ProcessMethod, ServerLockPlan, ServerPlan, ServerRootPlan, TreePlan},
    port::{Clock, Failure, Frozen, Hold, Journal, Pin, Pinner},
    server::{Flavor, RootRole, ServerAccess, ServerAddress, ServerVersion},
    time::Deadline,
    verdict::Stillness,
};
use mysql::prelude::Queryable;
use os::{clock::SystemClock, command::Helper, hold::ProcessHold, process::process_ref};
use testkit::{fakes::journal::MemoryJournal, server::PrivateServer};

/// What a server's writers may be held at the most.
pub const BUDGET: Duration = Duration::from_secs(4);

/// The success, or the failure in full.
pub fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
}

pub fn within(duration: Duration) -> Deadline {
    Deadline(SystemClock.moment().after(duration))
}

/// Where a server's files are, and how they are pinned.
pub struct Bench<'a> {
    pub server: &'a PrivateServer,
    pub form: FilesForm,
    /// The directories, the data directory first.
    pub roots: Vec<ServerRootPlan>,
    pub held: bool,
    pub journal: Arc<MemoryJournal>,
}

/// One directory of a server. Binary logs are left out, as the plan of an archived server does.
pub fn root(role: RootRole, path: &Path, staging: &Path) -> ServerRootPlan {
    let exclude = vec!["binlog.*".to_owned(), "*.pid".to_owned()];
    let tree = TreePlan { root: path.to_owned(), exclude, carved: vec![], nested_mounts: vec![] };
    let volume = engines::fs::volume_of(path).map(|facts| facts.volume);
    ServerRootPlan { role, tree, volume, size: None, staging: staging.to_owned() }
}

impl Bench<'_> {
    fn access(&self) -> ServerAccess {
        ServerAccess {
            flavor: Flavor::MariaDb,
            address: ServerAddress::Socket(self.server.socket()),
            user: Some("root".into()),
            password_file: None,
            option_file: None,
            tls_ca: None,
        }
    }

    pub fn source(&self) -> SourceId {
        SourceId::new("mariadb", self.access().address)
    }

    pub fn plan(&self) -> ServerPlan {
        let text = self.server.ask("SELECT VERSION()").unwrap_or_default();
        ServerPlan {
            access: self.access(),
            version: ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 0), text },
            server_id: 1,
            roots: self.roots.clone(),
            databases: vec![],
            settings: BTreeMap::new(),
            engines: vec![],
            beside: None,
            server_held: self.held,
        }
    }

    pub fn pin_plan(&self) -> PinPlan {
        let (plan, staging) = (self.plan(), self.roots[0].staging.clone());
        let method = match self.form {
            FilesForm::Volumes => PinMethod::ServerVolumes(plan),
            FilesForm::Reflink => PinMethod::ServerReflink(plan),
        };
        PinPlan { source: self.source(), method, staging, why: String::new() }
    }

    pub fn lock(&self) -> ServerLock {
        let plan = ServerLockPlan {
            source: self.source(),
            access: self.access(),
            flavor: Flavor::MariaDb,
            end_blocking_queries: false,
            raise_flush_log: false,
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let means = Means { journal: self.journal.clone(), clock, helper: Helper::this_program() };
        ServerLock::new(&plan, BUDGET, means)
    }

    pub fn process(&self) -> ProcessHold {
        let process = process_ref(self.server.pid()).expect("the server runs");
        let (selector, journal) = (ProcessSelector::Process(process), self.journal.clone());
        ProcessHold::new(selector, ProcessMethod::Ptrace, [], journal).serving(self.source())
    }

    pub fn pinner(&self, lock: &ServerLock, process: &ProcessHold) -> Result<FilesPinner, Failure> {
        let list = process.held();
        let held: Held = Arc::new(move || list.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let journal: Arc<dyn Journal> = self.journal.clone();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let volumes = Volumes::new(journal.clone(), clock.clone(), self.roots[0].staging.clone());
        FilesPinner::new(
            &self.pin_plan(),
            &self.plan(),
            self.form,
            lock.holder(),
            &volumes,
            held,
            journal,
            clock,
        )
    }

    /// Prepares, freezes, pins, proves and thaws. `at_rest` is run when everybody is held, before the pin.
    pub fn cut(&self, at_rest: &mut dyn FnMut()) -> Result<Taken, Failure> {
        let lock = self.lock();
        let mut process = self.process();
        let mut pinner = self.pinner(&lock, &process)?;
        let mut locks = lock.into_holds();
        locks.iter_mut().try_for_each(|hold| hold.prepare().map(drop))?;
        process.prepare()?;
        let prepared = timed(|| pinner.prepare(&Known::default()))?.0;
        for _ in 0..2 {
            pinner.round()?;
        }
        let frozen = Instant::now();
        let until = within(BUDGET);
        let mut held: Vec<Box<dyn Frozen>> = Vec::new();
        for hold in &mut locks {
            held.push(hold.freeze(until)?);
        }
        at_rest();
        let locked = frozen.elapsed();
        if self.held {
            held.push(process.freeze(until)?);
        }
        let stopped = frozen.elapsed();
        let pinned = timed(|| pinner.pin(until)).and_then(|(pinning, mut pin)| {
            let (looking, stillness) = timed(|| pin.unchanged(until))?;
            Ok((pin, stillness, pinning, looking))
        });
        let mut proofs = Ok(());
        if self.held
            && let Some(mut process) = held.pop()
        {
            // A server that stands still cannot answer: it is let go before its locks are asked.
            proofs = process.prove().map(drop).and(process.thaw());
        }
        for lock in held.iter_mut().rev() {
            proofs = proofs.and(lock.prove().map(drop));
        }
        while let Some(last) = held.pop() {
            proofs = proofs.and(last.thaw());
        }
        let all = frozen.elapsed();
        let (pin, stillness, pinning, looking) = pinned?;
        proofs?;
        let times = Times { prepared, locked, stopped: stopped - locked, pinning, looking, all };
        Ok(Taken { pin, stillness, times })
    }
}

/// How long each step took.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub prepared: Duration,
    pub locked: Duration,
    pub stopped: Duration,
    pub pinning: Duration,
    pub looking: Duration,
    pub all: Duration,
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        write!(
            f,
            "prepare {:.0} ms; lock {:.1}, stop {:.1}, pin {:.1}, unchanged {:.1}, all {:.1} ms",
            ms(self.prepared),
            ms(self.locked),
            ms(self.stopped),
            ms(self.pinning),
            ms(self.looking),
            ms(self.all)
        )
    }
}

/// A cut that was taken.
pub struct Taken {
    pub pin: Box<dyn Pin>,
    pub stillness: Stillness,
    pub times: Times,
}

pub fn timed<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<(Duration, T), Failure> {
    let start = Instant::now();
    let result = work()?;
    Ok((start.elapsed(), result))
}

/// Clients that insert 1, 2, 3 and so on, each into a table of one engine.
pub struct Clients {
    acknowledged: Vec<Arc<AtomicU64>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// By client: its table.
const TABLES: [&str; 6] = ["innodb", "innodb", "innodb", "innodb", "myisam", "aria"];

impl Clients {
    pub fn start(server: &PrivateServer) -> Self {
        server.run(["CREATE DATABASE IF NOT EXISTS d"]);
        for engine in ["InnoDB", "MyISAM", "Aria"] {
            let table = engine.to_lowercase();
            server.run([format!(
                "CREATE OR REPLACE TABLE d.{table} (client INT, n BIGINT, pad CHAR(200), \
                 PRIMARY KEY (client, n)) ENGINE={engine}"
            )]);
        }
        let over = Arc::new(AtomicBool::new(false));
        let mut clients = Self { acknowledged: vec![], over, threads: vec![] };
        for (client, table) in TABLES.iter().enumerate() {
            let acknowledged = Arc::new(AtomicU64::new(0));
            let (over, ack, mut conn) = (clients.over.clone(), acknowledged.clone(), server.connect());
            clients.acknowledged.push(acknowledged);
            clients.threads.push(thread::spawn(move || {
                for n in 1.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let insert = format!("INSERT INTO d.{table} VALUES ({client}, {n}, REPEAT('x', 200))");
                    if conn.query_drop(insert).is_err() {
                        return;
                    }
                    ack.store(n, Ordering::SeqCst);
                }
            }));
        }
        let all_write = || clients.acknowledged().iter().all(|n| *n > 20);
        assert!(testkit::server::wait_until(Duration::from_secs(20), all_write).is_some(), "they write");
        clients
    }

    /// The last number that each client knows to be stored.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.iter().map(|ack| ack.load(Ordering::SeqCst)).collect()
    }

    /// Compares a copy with what was acknowledged when everybody stood still: no row less, none more.
    pub fn compare(copy: &PrivateServer, acknowledged: &[u64]) {
        for (client, (table, last)) in TABLES.iter().zip(acknowledged).enumerate() {
            let sql = format!("SELECT CONCAT(COUNT(*), ' ', MAX(n)) FROM d.{table} WHERE client = {client}");
            assert_eq!(copy.ask(&sql), Some(format!("{last} {last}")), "client {client} in {table}");
        }
        for table in ["innodb", "myisam", "aria"] {
            let rows: Vec<(String, String, String, String)> =
                copy.connect().query(format!("CHECK TABLE d.{table} EXTENDED")).expect("a check");
            assert!(rows.iter().all(|row| row.3 == "OK"), "{rows:?}");
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Writes what was harvested below `root` into `to`.
pub fn write_out(harvest: &Harvest, root: &Path, to: &Path) {
    for entry in &harvest.entries {
        let Ok(below) = entry.path.strip_prefix(root) else { continue };
        let path = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
        match &entry.kind {
            Kind::Dir => fs::create_dir_all(&path).expect("a directory"),
            Kind::Symlink(target) => std::os::unix::fs::symlink(target, &path).expect("a link"),
            Kind::File => {
                match &entry.body {
                    Body::At(from) => drop(fs::copy(from, &path).expect("a pinned file")),
                    Body::Inline(bytes) => fs::write(&path, bytes).expect("a file"),
                    other => panic!("{} has {other:?}", path.display()),
                }
                let size = fs::metadata(&path).expect("a file").len();
                assert_eq!(size, entry.meta.size.0, "{}", path.display());
            }
            other => panic!("{} is {other:?}", path.display()),
        }
    }
}

/// A directory that servers of tests can reach.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("d1-files-").tempdir_in("/tmp").expect("a directory")
}

pub fn sub(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(&path).expect("a directory");
    path
}
