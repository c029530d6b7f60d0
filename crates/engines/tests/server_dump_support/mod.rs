//! A server's cut taken by hand, and what is compared after a restore.

pub mod ledger;
pub mod schema;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use engines::server::{Holder, Means, ServerLock};
use model::{
    entry::{Body, Entry, Harvest, Kind},
    id::SourceId,
    plan::{PinMethod, PinPlan, ServerLockPlan, ServerPlan, ServerRootPlan, TreePlan},
    port::{Clock, Failure, Frozen, Hold, Pin, Pinner, Silent},
    server::{EngineUse, Flavor, RootRole, ServerAccess, ServerAddress, ServerVersion},
    time::Deadline,
};
use mysql::prelude::Queryable;
use os::{clock::SystemClock, command::Helper};
use testkit::{fakes::journal::MemoryJournal, server::PrivateServer};

pub const BUDGET: Duration = Duration::from_secs(2);
/// Where the tests' dumps and logs stand in a backup.
pub const BESIDE: &str = "/var/lib/stillpoint/databases/test";

pub fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
}

pub fn within(duration: Duration) -> Deadline {
    Deadline(SystemClock.moment().after(duration))
}

pub fn access(server: &PrivateServer) -> ServerAccess {
    ServerAccess {
        flavor: Flavor::MariaDb,
        address: ServerAddress::Socket(server.socket()),
        user: Some("root".into()),
        password_file: None,
        option_file: None,
        tls_ca: None,
    }
}

/// A server under test, with what a driver needs.
pub struct Bench {
    pub server: PrivateServer,
    pub journal: Arc<MemoryJournal>,
    pub staging: tempfile::TempDir,
}

/// The lock of a server and who holds it.
pub struct Lock {
    holds: Vec<Box<dyn Hold>>,
    pub holder: Holder,
}

impl Lock {
    pub fn freeze(&mut self, budget: Duration) -> Vec<Box<dyn Frozen>> {
        self.holds.iter_mut().map(|hold| ok(hold.freeze(within(budget)))).collect()
    }
}

pub fn thaw(mut frozen: Vec<Box<dyn Frozen>>) {
    for held in frozen.iter_mut().rev() {
        ok(held.prove());
    }
    while let Some(held) = frozen.pop() {
        ok(held.thaw());
    }
}

impl Bench {
    pub fn new(server: PrivateServer) -> Self {
        let staging = tempfile::Builder::new().prefix("dump-staging").tempdir().expect("a directory");
        Self { server, journal: Arc::new(MemoryJournal::default()), staging }
    }

    pub fn means(&self) -> Means {
        Means { journal: self.journal.clone(), clock: Arc::new(SystemClock), helper: Helper::this_program() }
    }

    pub fn lock(&self) -> Lock {
        let access = access(&self.server);
        let plan = ServerLockPlan {
            source: self.source(),
            access,
            flavor: Flavor::MariaDb,
            end_blocking_queries: false,
            raise_flush_log: false,
        };
        let lock = ServerLock::new(&plan, BUDGET, self.means());
        let holder = lock.holder();
        let mut holds = lock.into_holds();
        for hold in &mut holds {
            ok(hold.prepare());
        }
        Lock { holds, holder }
    }

    pub fn source(&self) -> SourceId {
        SourceId::new("mariadb", self.server.socket().display())
    }

    pub fn server_plan(&self, databases: &[&str]) -> ServerPlan {
        let root = ServerRootPlan {
            role: RootRole::Data,
            tree: TreePlan {
                root: self.server.datadir().to_owned(),
                exclude: vec![],
                carved: vec![],
                nested_mounts: vec![],
            },
            volume: None,
            size: None,
            staging: self.staging.path().to_owned(),
        };
        ServerPlan {
            access: access(&self.server),
            version: ServerVersion {
                flavor: Flavor::MariaDb,
                number: (10, 11, 0),
                text: "10.11.0-MariaDB".into(),
            },
            server_id: 1,
            roots: vec![root],
            databases: databases.iter().map(|name| (*name).to_owned()).collect(),
            settings: BTreeMap::new(),
            engines: Vec::<EngineUse>::new(),
            beside: Some(BESIDE.into()),
            server_held: false,
        }
    }

    pub fn pin_plan(&self, method: PinMethod) -> PinPlan {
        PinPlan { source: self.source(), method, staging: self.staging.path().to_owned(), why: String::new() }
    }

    /// Takes a whole cut with this pinner; `meanwhile` runs after the thaw and before the harvest.
    pub fn cut(
        &self,
        lock: &mut Lock,
        pinner: &mut dyn Pinner,
        meanwhile: impl FnOnce(),
    ) -> (Harvest, Box<dyn Pin>) {
        ok(pinner.prepare(&model::known::Known::default()));
        let frozen = lock.freeze(BUDGET);
        let mut pin = ok(pinner.pin(within(BUDGET)));
        ok(pin.unchanged(within(BUDGET)));
        thaw(frozen);
        meanwhile();
        let harvest = ok(pin.harvest(&Silent));
        (harvest, pin)
    }

    /// Nothing is left behind.
    pub fn assert_clean(&self) {
        let left: Vec<PathBuf> = fs::read_dir(self.staging.path())
            .expect("staging")
            .map(|e| e.expect("readable").path())
            .collect();
        assert!(left.is_empty(), "left in staging: {left:?}");
        assert!(self.journal.open().is_empty(), "open in the journal: {:?}", self.journal.open());
    }
}

/// Writes the entries of a harvest below `root`, as a restore does with `--to`.
pub fn write_out(entries: &[Entry], root: &Path) {
    let below = |path: &Path| root.join(path.strip_prefix("/").expect("absolute"));
    for entry in entries {
        let path = below(&entry.path);
        match (&entry.kind, &entry.body) {
            (Kind::Dir, _) => fs::create_dir_all(&path).expect("a directory"),
            (Kind::File, body) => {
                fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
                match body {
                    Body::At(from) => drop(fs::copy(from, &path).expect("a copy")),
                    Body::Inline(bytes) => fs::write(&path, bytes).expect("a file"),
                    other => panic!("{} has the body {other:?}", entry.path.display()),
                }
            }
            (other, _) => panic!("{} is {other:?}", entry.path.display()),
        }
    }
}

/// All that can be asked of databases: checksums of tables, and definitions of everything.
pub fn portrait(server: &PrivateServer, databases: &[&str]) -> BTreeMap<String, String> {
    let mut conn = server.connect();
    let mut found = BTreeMap::new();
    let ask = |conn: &mut mysql::Conn, sql: &str| -> Vec<Vec<String>> {
        let rows: Vec<mysql::Row> = conn.query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.into_iter()
            .map(|row| row.unwrap().iter().map(|value| value.as_sql(true)).collect::<Vec<String>>())
            .collect()
    };
    let plain = |quoted: &str| quoted.trim_matches('\'').to_owned();
    for database in databases {
        conn.query_drop(format!("USE `{database}`")).expect("the database");
        for row in ask(&mut conn, "SHOW FULL TABLES") {
            let (name, kind) = (plain(&row[0]).replace('`', "``"), plain(&row[1]));
            let shown = ask(&mut conn, &format!("SHOW CREATE TABLE `{name}`"));
            found.insert(format!("{database}.{name}"), format!("{:?}", shown[0][1..].to_vec()));
            if kind != "VIEW" {
                let sum = ask(&mut conn, &format!("CHECKSUM TABLE `{name}` EXTENDED"));
                found.insert(format!("{database}.{name} checksum"), sum[0][1].clone());
            }
            if kind == "SYSTEM VERSIONED" {
                let sql = format!(
                    "SELECT *, ROW_START, ROW_END FROM `{name}` FOR SYSTEM_TIME ALL ORDER BY 1, ROW_END"
                );
                found.insert(format!("{database}.{name} history"), format!("{:?}", ask(&mut conn, &sql)));
            }
        }
        for (kind, list) in [
            (
                "PROCEDURE",
                "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA=DATABASE() AND ROUTINE_TYPE='PROCEDURE'",
            ),
            (
                "FUNCTION",
                "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA=DATABASE() AND ROUTINE_TYPE='FUNCTION'",
            ),
            (
                "PACKAGE",
                "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA=DATABASE() AND ROUTINE_TYPE='PACKAGE'",
            ),
            (
                "PACKAGE BODY",
                "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA=DATABASE() AND ROUTINE_TYPE='PACKAGE BODY'",
            ),
            (
                "TRIGGER",
                "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA=DATABASE()",
            ),
            ("EVENT", "SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA=DATABASE()"),
        ] {
            for row in ask(&mut conn, list) {
                let name = plain(&row[0]).replace('`', "``");
                // The last column of a trigger is when it was made.
                let mut shown = ask(&mut conn, &format!("SHOW CREATE {kind} `{name}`"))[0].clone();
                if kind == "TRIGGER" {
                    shown.truncate(6);
                }
                found.insert(format!("{database} {kind} {name}"), format!("{shown:?}"));
            }
        }
        let made = ask(&mut conn, &format!("SHOW CREATE DATABASE `{database}`"));
        found.insert((*database).to_owned(), made[0][1].clone());
    }
    found
}

/// Panics with the first few differences.
pub fn assert_same(was: &BTreeMap<String, String>, is: &BTreeMap<String, String>) {
    let names: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| was.get(*name) != is.get(*name))
        .map(|name| format!("{name}:\n   was {:?}\n   is  {:?}", was.get(name), is.get(name)))
        .collect();
    assert!(
        differences.is_empty(),
        "{} of {} differ:\n{}",
        differences.len(),
        was.len(),
        differences.join("\n")
    );
}
