//! A MariaDB server under load on a filesystem of its own, an inventory for it, and what a restored copy of it
//! must be like.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mysql::prelude::Queryable;
use serde_json::Value;
use testkit::server::{
    Latency, Ledger, LedgerOptions, PrivateServer, ServerBuilder, Volume, Workload, verify, wait_until,
};

use super::common::{Ran, Site, below};

/// The stall budget of every inventory here, as `common::Site` writes it.
pub const BUDGET: Duration = Duration::from_secs(2);
/// What a client may see beyond what is held: its own transaction, and two processors for all of us.
pub const SLACK: Duration = Duration::from_millis(750);
/// The account that the program connects as, so that its connections can be told from others.
pub const ACCOUNT: &str = "stillpoint";

/// How a site is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two passes of clones, server and writers held.
    Xfs,
    /// One snapshot of a subvolume with database and files.
    Btrfs,
}

impl Kind {
    fn filesystem(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// One server, its files, and the program's inventory for both.
pub struct ServerSite {
    pub kind: Kind,
    pub server: PrivateServer,
    pub site: Site,
    files: PathBuf,
    rocksdb: bool,
    before: Traces,
    volume: Volume,
}

impl ServerSite {
    /// A server with these changes to it. `init` has been run.
    pub fn new(kind: Kind, change: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        Self::made(kind, false, change)
    }

    /// The same with MyRocks tables.
    pub fn with_rocksdb(kind: Kind) -> Self {
        Self::made(kind, true, ServerBuilder::rocksdb)
    }

    fn made(kind: Kind, rocksdb: bool, change: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        let volume = Volume::for_test(kind.filesystem(), 16 << 30, Path::new(env!("CARGO_TARGET_TMPDIR")));
        let all = volume.directory("all");
        let server = change(PrivateServer::builder().directory(all.join("server"))).start();
        server.run([
            format!("CREATE USER {ACCOUNT}@localhost"),
            format!("GRANT ALL ON *.* TO {ACCOUNT}@localhost"),
        ]);
        let files = all.join("files");
        fs::create_dir(&files).expect("a directory");
        let site = Site::at(volume.path());
        let mut made = Self { kind, server, site, files, rocksdb, before: Traces::default(), volume };
        made.site.init(&made.sources());
        made.before = made.traces();
        made
    }

    fn sources(&self) -> String {
        let (files, socket) = (self.files.display(), self.server.socket());
        let process = match self.kind {
            Kind::Xfs => {
                format!("[application.process]\npid_file = \"{}\"\n", self.site.pid_file().display())
            }
            Kind::Btrfs => String::new(),
        };
        format!(
            "[[application.directory]]\npath = \"{files}\"\n[[application.database]]\nengine = \"mariadb\"\n\
             socket = \"{}\"\nuser = \"{ACCOUNT}\"\n{process}",
            socket.display()
        )
    }

    /// The ledger of this site, which is the process that the inventory names. `ledger` is the helper's test.
    pub fn ledger(&self, seed: u64) -> Ledger {
        let ledger = Ledger::start(LedgerOptions::new(&self.server, &self.files, seed), "ledger");
        fs::write(self.site.pid_file(), ledger.pid().to_string()).expect("the pid file");
        ledger
    }

    /// Clients on InnoDB and on MyISAM.
    pub fn clients(&self) -> [Latency; 2] {
        let opts = self.server.opts();
        [Workload::InnoDb, Workload::MyIsam]
            .map(|work| Latency::start(&opts, work, 2, Duration::from_millis(10)))
    }

    /// Runs `backup --json`.
    pub fn backup(&self) -> Backup {
        let begun = Instant::now();
        let ran = self.site.run(["backup", "--json"]);
        Backup { ran, begun, ended: Instant::now() }
    }

    /// Restores the newest backup into an empty directory.
    pub fn restore(&self) -> Copy {
        let to = self.volume.path().join(format!("restored-{}", self.site.backups().len()));
        self.site.run(["restore", "guestbook", "--to", to.to_str().expect("UTF-8")]).expect_status(0);
        let cuts = to.join("var/lib/stillpoint/cuts");
        let mut records: Vec<PathBuf> = fs::read_dir(&cuts)
            .expect("the cut record")
            .map(|entry| entry.expect("readable").path())
            .collect();
        assert_eq!(records.len(), 1, "one cut: {records:?}");
        let text = fs::read(records.remove(0)).expect("the cut record");
        Copy {
            datadir: below(&to, self.server.datadir()),
            files: below(&to, &self.files),
            record: serde_json::from_slice(&text).expect("JSON"),
            to,
        }
    }

    /// Opens a copy with a server of ours, and checks everything about it that can be checked.
    #[track_caller]
    pub fn assert_whole(&self, copy: &Copy) {
        let mut builder = PrivateServer::builder().copy_at(&copy.datadir);
        if self.rocksdb {
            builder = builder.rocksdb();
        }
        let opened = builder.start();
        let recorded = copy.position();
        // A copy with MyRocks was opened once when it was restored, and has nothing left to recover.
        if let Some(recovered) = opened.recovered_position() {
            assert!(recovered <= recorded, "recovered {recovered:?}, after the recorded {recorded:?}");
            let lost = self.server.transactions_between(&recovered, &recorded);
            assert_eq!(lost, 0, "transactions between the recovered {recovered:?} and {recorded:?}");
        } else {
            assert!(self.rocksdb, "InnoDB told no position: {}", opened.error_log());
        }
        let checked = Ran(Command::new("mariadb-check")
            .args(["--no-defaults", "--all-databases", "--check", "--user=root", "--socket"])
            .arg(opened.socket())
            .output()
            .expect("mariadb-check"));
        checked.expect_status(0);
        let faults: Vec<String> =
            checked.out().lines().filter(|line| is_fault(line)).map(str::to_owned).collect();
        assert!(faults.is_empty() && checked.out().contains("ledger.entry"), "{faults:#?}");
        verify(&mut opened.connect(), &copy.files).assert_sound();
    }

    /// What the program could leave behind on the server and the machine.
    fn traces(&self) -> Traces {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let ours = mounts.lines().filter(|line| line.to_lowercase().contains("stillpoint"));
        let subvolumes = match self.kind {
            Kind::Xfs => String::new(),
            Kind::Btrfs => {
                let listed =
                    Command::new("btrfs").args(["subvolume", "list"]).arg(self.volume.path()).output();
                String::from_utf8_lossy(&listed.expect("btrfs").stdout).into_owned()
            }
        };
        let name = |line: &str| line.split_whitespace().last().unwrap_or("").to_owned();
        Traces {
            mounts: ours.map(str::to_owned).collect(),
            subvolumes: subvolumes.lines().map(name).collect(),
            variables: self.server.variables(),
        }
    }

    /// Fails the test unless the server and the machine are as they were before the first backup: no stage held, no
    /// connection, variable, mount, snapshot or staging file left.
    #[track_caller]
    pub fn assert_left_as_it_was(&self) {
        self.assert_free();
        let after = self.traces();
        let changed: Vec<_> = after
            .variables
            .iter()
            .filter(|(name, value)| self.before.variables.get(*name) != Some(value))
            .collect();
        assert!(changed.is_empty(), "variables: {changed:?}");
        assert_eq!(
            (after.mounts, after.subvolumes),
            (self.before.mounts.clone(), self.before.subvolumes.clone())
        );
        assert_eq!(self.site.leftovers(), Vec::<PathBuf>::new());
    }

    /// Fails the test unless nothing of the program's is on the server.
    #[track_caller]
    pub fn assert_free(&self) {
        let ours = || {
            self.server.processes().into_iter().filter(|process| process.user == ACCOUNT).collect::<Vec<_>>()
        };
        let gone = wait_until(Duration::from_secs(3), || ours().is_empty());
        assert!(gone.is_some(), "connections are left: {:?}", ours());
        let mut connection = self.server.connect();
        for statement in ["BACKUP STAGE START", "BACKUP STAGE BLOCK_COMMIT", "BACKUP STAGE END"] {
            let sql = format!("SET STATEMENT max_statement_time = 5 FOR {statement}");
            connection.query_drop(&sql).unwrap_or_else(|error| panic!("a stage is held: {error}"));
        }
    }

    /// Fails the test if a client waited longer than the stall budget, beyond the longest that any waited in the equal
    /// time before.
    #[track_caller]
    pub fn assert_budget(&self, clients: &[Latency], backup: &Backup) -> Duration {
        let longest =
            |from, until| clients.iter().map(|all| all.longest(from, until)).max().unwrap_or_default();
        let before = backup.begun.checked_sub(backup.ended - backup.begun).unwrap_or(backup.begun);
        let (usual, waited) = (longest(before, backup.begun), longest(backup.begun, backup.ended));
        assert!(
            waited <= BUDGET + SLACK + usual,
            "a client waited {waited:?}, {usual:?} in the time before: {}",
            backup.ran.out()
        );
        waited
    }

    /// Starts to write down every statement, and returns the log's path.
    pub fn log_statements(&self) -> PathBuf {
        let path = self.server.socket().with_file_name("general.log");
        self.server.run([
            format!("SET GLOBAL general_log_file = '{}'", path.display()),
            "SET GLOBAL general_log = ON".to_owned(),
        ]);
        path
    }
}

fn is_fault(line: &str) -> bool {
    line.starts_with("error")
        || line.starts_with("warning")
        || line.starts_with("Warning")
        || line.starts_with("Error")
}

/// See [`ServerSite::traces`].
#[derive(Debug, Default)]
struct Traces {
    mounts: BTreeSet<String>,
    subvolumes: BTreeSet<String>,
    variables: BTreeMap<String, String>,
}

/// One run of `backup --json`.
pub struct Backup {
    pub ran: Ran,
    pub begun: Instant,
    pub ended: Instant,
}

impl Backup {
    /// What it says of the one application.
    #[track_caller]
    pub fn application(&self) -> Value {
        self.ran.json()["applications"][0].clone()
    }

    /// Fails the test unless it is stored with this verdict.
    #[track_caller]
    pub fn expect_verdict(&self, verdict: &str) -> &Self {
        let application = self.application();
        assert_eq!(application["verdict"], verdict, "{application:#}\n{}", self.ran.err());
        self.ran.expect_status(if verdict == "consistent" { 0 } else { 3 });
        self
    }

    /// The stall that it reports, in milliseconds.
    pub fn stall_ms(&self) -> f64 {
        self.application()["stall_ms"]["total"].as_f64().expect("a stall")
    }
}

/// A restored copy.
pub struct Copy {
    pub to: PathBuf,
    pub datadir: PathBuf,
    pub files: PathBuf,
    pub record: Value,
}

impl Copy {
    /// The position in the binary log that the record names.
    #[track_caller]
    pub fn position(&self) -> (String, u64) {
        let place = &self.record["servers"][0]["position"]["binlog"];
        let file = place["file"].as_str().unwrap_or_else(|| panic!("no position in {:#}", self.record));
        (file.to_owned(), place["offset"].as_u64().expect("an offset"))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.to);
    }
}
