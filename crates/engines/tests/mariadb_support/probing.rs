//! What is found out about a server, and how it is logged in to.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use engines::server::{Connection, probe};
use model::{
    inventory::{Archive, ServerDatabase},
    port::{FailureKind, Hold},
    server::{RootRole, ServerAccess, ServerAddress, ServerFacts},
};
use mysql::prelude::Queryable;
use testkit::server::{PrivateServer, Volume, wait_until};

use super::{BUDGET, access, held, make_tables, ok, server_with_tables, within};

const QUICK: Duration = Duration::from_secs(5);

fn database(access: ServerAccess, databases: &[&str]) -> ServerDatabase {
    let databases = databases.iter().map(|name| (*name).to_owned()).collect();
    ServerDatabase {
        access,
        databases,
        service: None,
        end_blocking_queries: false,
        archive: Archive::default(),
    }
}

fn look(server: &PrivateServer) -> ServerFacts {
    let facts = probe(&database(access(server), &[]), &|_| vec![PathBuf::from("/tmp")]);
    assert!(facts.refusal.is_none(), "{:?}", facts.refusal);
    facts
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

pub fn facts() {
    let server = server_with_tables();
    server.run(["SET GLOBAL innodb_flush_log_at_trx_commit = 0"]);
    let facts = look(&server);
    let version = facts.version.expect("it answers");
    assert!(version.number >= (10, 6, 0) && version.text.contains("MariaDB"), "{version:?}");
    let who = facts.served_by.expect("it runs here");
    assert_eq!(who.process.pid, server.pid());
    assert_eq!(who.hold.pids, [server.pid()]);
    assert_eq!((facts.server_id, facts.flush_log_at_commit, facts.doublewrite), (1, 0, true));
    let binlog = facts.binlog.expect("it writes one");
    assert_eq!(binlog.basename, server.datadir().join("binlog"));
    assert!(facts.missing_privileges.is_empty(), "{:?}", facts.missing_privileges);
    let engines: Vec<_> =
        facts.engines.iter().map(|e| (e.name.as_str(), e.tables, e.transactional)).collect();
    assert_eq!(engines, [("Aria", 1, false), ("InnoDB", 1, true), ("MyISAM", 1, false)]);
    assert_eq!(facts.roots.len(), 1, "{:?}", facts.roots);
    let root = &facts.roots[0];
    assert_eq!((root.role, root.path.clone()), (RootRole::Data, server.datadir().canonicalize().unwrap()));
    for out in ["binlog.[0-9]*", "binlog.index", "ibtmp1"] {
        assert!(root.exclude.iter().any(|glob| glob == out), "{out}: {:?}", root.exclude);
    }
    assert!(facts.files > 100 && facts.bytes.0 > 40 << 20, "{} files, {}", facts.files, facts.bytes);
    assert!(facts.can_run_backup_tool, "mariadb-backup of the same version is installed");
    assert_eq!(facts.settings.get("innodb_page_size").map(String::as_str), Some("16384"));
    assert_eq!(
        facts.settings.get("innodb_data_file_path").map(String::as_str),
        Some("ibdata1:12M:autoextend")
    );
    // Only one database of it, another flavor, one that is not there.
    let one = probe(&database(access(&server), &["d"]), &|_| vec![]);
    assert!(one.refusal.is_none() && one.engines.len() == 3);
    let none = probe(&database(access(&server), &["d", "nowhere"]), &|_| vec![]);
    assert!(none.refusal.expect("it is not there").what.contains("nowhere"));
    let mut other = access(&server);
    other.flavor = model::server::Flavor::MySql;
    let refusal = probe(&database(other, &[]), &|_| vec![]).refusal.expect("it is MariaDB");
    assert_eq!(refusal.remedy, "write engine = \"mariadb\"");
    let mut gone = access(&server);
    gone.address = ServerAddress::Socket("/nowhere/socket".into());
    assert!(
        probe(&database(gone, &[]), &|_| vec![])
            .refusal
            .expect("nobody there")
            .what
            .contains("cannot be reached")
    );
}

pub fn outside() {
    let dir = tempfile::tempdir().expect("a directory");
    let volume = Volume::for_test("xfs", 600 << 20, dir.path());
    let far = volume.directory("far");
    let redo = volume.directory("redo");
    for dir in [&far, &redo] {
        std::os::unix::fs::chown(dir, Some(owner_of_servers()), None).expect("root");
    }
    let server = PrivateServer::builder()
        .option(format!("--innodb-log-group-home-dir={}", redo.display()))
        .option("--plugin-load-add=ha_rocksdb")
        .option("--symbolic-links=ON")
        .start();
    make_tables(&server);
    server.run([
        format!("CREATE TABLE d.out1 (n INT) ENGINE=InnoDB DATA DIRECTORY='{}'", far.display()),
        format!(
            "CREATE TABLE d.out2 (n INT) ENGINE=MyISAM DATA DIRECTORY='{0}' INDEX DIRECTORY='{0}'",
            far.display()
        ),
        "CREATE TABLE d.rocks (n INT PRIMARY KEY) ENGINE=ROCKSDB".to_owned(),
    ]);
    let facts = look(&server);
    let roots: Vec<_> = facts.roots.iter().map(|root| (root.role, root.path.clone())).collect();
    println!("  {roots:?}");
    assert_eq!(roots[0].0, RootRole::Data);
    assert!(roots.contains(&(RootRole::Redo, redo)));
    assert!(roots.contains(&(RootRole::External, far)), "both tables lie in or below it: {roots:?}");
    assert_eq!(roots.len(), 3, "{roots:?}");
    let engines: Vec<&str> = facts.engines.iter().map(|engine| engine.name.as_str()).collect();
    assert_eq!(engines, ["Aria", "InnoDB", "MyISAM", "ROCKSDB"]);
    assert!(facts.settings["plugin_load_add"].contains("ha_rocksdb"), "{:?}", facts.settings);
    assert!(facts.extents.is_some_and(|extents| extents > 0));
    assert!(
        facts.file_notes.iter().any(|note| note.contains("outside its data directory")),
        "{:?}",
        facts.file_notes
    );
}

fn owner_of_servers() -> u32 {
    let table = fs::read_to_string("/etc/passwd").expect("readable");
    let line = table.lines().find(|line| line.starts_with("mysql:")).expect("the user mysql");
    line.split(':').nth(2).and_then(|id| id.parse().ok()).expect("a number")
}

/// An account without any privilege is told what it lacks; with exactly these grants everything works.
pub fn privileges() {
    let server = server_with_tables();
    server.run(["SET GLOBAL innodb_flush_log_at_trx_commit = 0"]);
    server.run([
        "CREATE USER backup@localhost IDENTIFIED BY 'secret'",
        "CREATE ROLE reader",
        "GRANT reader TO backup@localhost",
    ]);
    let dir = tempfile::tempdir().expect("a directory");
    let password = dir.path().join("password");
    write(&password, "secret\n", 0o600);
    let mut as_backup = access(&server);
    as_backup.user = Some("backup".into());
    as_backup.password_file = Some(password);
    let probed = || probe(&database(as_backup.clone(), &[]), &|_| vec![]);
    let lacks = probed().missing_privileges;
    let names: Vec<&str> = lacks.iter().map(|privilege| privilege.name.as_str()).collect();
    assert_eq!(names, ["RELOAD", "PROCESS", "BINLOG MONITOR", "REPLICA MONITOR", "SUPER", "SELECT"]);
    let mut plan = super::plan(&server);
    plan.access = as_backup.clone();
    plan.raise_flush_log = true;
    let journal = std::sync::Arc::new(testkit::fakes::journal::MemoryJournal::default());
    let make = || super::Both::of(engines::server::ServerLock::new(&plan, BUDGET, super::means(&journal)));
    let failure = make().prepare().expect_err("it lacks RELOAD");
    assert_eq!(failure.kind, FailureKind::Refused, "{}", failure.in_full());
    println!("  without privileges: {}", failure.in_full());
    // Some directly, some by a role, which counts only if it is active.
    let (direct, by_role) = lacks.split_at(3);
    server.run(direct.iter().map(|privilege| &privilege.grant));
    server.run(by_role.iter().map(|privilege| privilege.grant.replace("`backup`@`localhost`", "reader")));
    assert_eq!(probed().missing_privileges.len(), 3, "the role is not active");
    server.run(["SET DEFAULT ROLE reader FOR backup@localhost"]);
    let facts = probed();
    assert!(facts.missing_privileges.is_empty(), "{:?}", facts.missing_privileges);
    assert_eq!(facts.engines.len(), 3, "it sees all tables now");
    let mut both = make();
    ok(both.prepare());
    let mut held = ok(both.freeze(within(BUDGET)));
    ok(held.prove());
    ok(held.thaw());
    // A single database needs SELECT on it only.
    server.run(["REVOKE SELECT ON *.* FROM reader"]);
    let one = probe(&database(as_backup.clone(), &["d"]), &|_| vec![]);
    let named: Vec<String> = one.missing_privileges.into_iter().map(|privilege| privilege.name).collect();
    println!("  for one database: {named:?}, {:?}", one.refusal.map(|refusal| refusal.what));
}

pub fn logins() {
    let server = server_with_tables();
    server.run([
        "CREATE USER a@localhost IDENTIFIED BY 'pa#ss \"word'",
        "CREATE USER ed@localhost IDENTIFIED BY 'old'",
    ]);
    let dir = tempfile::tempdir().expect("a directory");
    let (cnf, password) = (dir.path().join("my.cnf"), dir.path().join("password"));
    write(&cnf, "[client]\nuser = a\npassword = 'pa#ss \"word'  # a comment\n", 0o600);
    write(&password, "wrong-secret\n", 0o600);
    let mut by_file = access(&server);
    by_file.user = None;
    by_file.option_file = Some(cnf);
    let mut connection = ok(Connection::open(&by_file, QUICK));
    assert_eq!(
        connection.value("SELECT CURRENT_USER()", QUICK).expect("an answer").as_deref(),
        Some("a@localhost")
    );
    by_file.password_file = Some(password.clone());
    let failure = Connection::open(&by_file, QUICK).err().expect("a wrong password");
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(!failure.in_full().contains("wrong-secret"), "{}", failure.in_full());
    assert!(failure.in_full().contains("password_file"), "{}", failure.in_full());
    write(&password, "x\n", 0o644);
    let failure = Connection::open(&by_file, QUICK).err().expect("others can read it");
    assert!(failure.in_full().contains("chmod 600"), "{}", failure.in_full());
    // As whoever runs this, by unix_socket.
    server.run(["ALTER USER root@localhost IDENTIFIED VIA unix_socket"]);
    let mut by_socket = access(&server);
    by_socket.user = None;
    let mut connection = ok(Connection::open(&by_socket, QUICK));
    assert_eq!(
        connection.value("SELECT CURRENT_USER()", QUICK).expect("an answer").as_deref(),
        Some("root@localhost")
    );
    // Text comes as it is.
    let text = connection.value("SELECT 'Zürich 🚉'", QUICK).expect("an answer");
    assert_eq!(text.as_deref(), Some("Zürich 🚉"));
    // A statement that takes too long ends on this side too, and the connection with it.
    let error = connection.run("DO SLEEP(5)", Duration::from_millis(100)).expect_err("too long");
    assert_eq!(error.kind(), FailureKind::TimedOut);
    assert!(connection.is_broken());
    assert_eq!(connection.run("DO 1", QUICK).expect_err("broken").kind(), FailureKind::Lost);
}

pub fn tls() {
    let server = PrivateServer::builder().tls().start();
    server.run(["CREATE USER t@'%' IDENTIFIED BY 'p' REQUIRE SSL", "GRANT ALL ON *.* TO t@'%'"]);
    let dir = tempfile::tempdir().expect("a directory");
    let password = dir.path().join("password");
    write(&password, "p\n", 0o600);
    let mut over = access(&server);
    over.address = ServerAddress::Tcp { host: "127.0.0.1".into(), port: server.port().expect("a port") };
    over.user = Some("t".into());
    over.password_file = Some(password);
    let failure = Connection::open(&over, QUICK).err().expect("the account requires TLS");
    println!("  without TLS: {}", failure.in_full());
    over.tls_ca = server.certificate().map(Path::to_owned);
    let mut connection = ok(Connection::open(&over, QUICK));
    let cipher = connection.row("SHOW STATUS LIKE 'Ssl_cipher'", QUICK).expect("a row").text(1);
    assert!(!cipher.is_empty());
    let facts = probe(&database(over.clone(), &[]), &|_| vec![]);
    assert_eq!(
        facts.served_by.map(|who| who.process.pid),
        Some(server.pid()),
        "by its pid file: {:?}",
        facts.notes
    );
    // Another authority.
    let other = PrivateServer::builder().tls().start();
    over.tls_ca = other.certificate().map(Path::to_owned);
    let failure = Connection::open(&over, QUICK).err().expect("another authority signed it");
    println!("  by another authority: {}", failure.in_full());
    assert_eq!(failure.kind, FailureKind::Refused, "{}", failure.in_full());
}

pub fn a_replica() {
    let primary = PrivateServer::builder().network().start();
    make_tables(&primary);
    primary.run(["CREATE USER repl@'%' IDENTIFIED BY 'r'", "GRANT REPLICATION SLAVE ON *.* TO repl@'%'"]);
    let replica = PrivateServer::builder().server_id(2).option("--relay-log=relay").start();
    replica.run([
        format!(
            "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={}, MASTER_USER='repl', MASTER_PASSWORD='r', \
             MASTER_USE_GTID=slave_pos",
            primary.port().expect("a port")
        ),
        "START SLAVE".to_owned(),
    ]);
    primary.run(["INSERT INTO d.innodb (n) VALUES (5)"]);
    let position = primary.ask("SELECT @@gtid_binlog_pos").expect("a position");
    let caught_up = || replica.ask("SELECT @@gtid_slave_pos").as_deref() == Some(position.as_str());
    assert!(wait_until(Duration::from_secs(20), caught_up).is_some(), "the replica catches up");
    let facts = look(&replica);
    assert_eq!(facts.replicas.len(), 1);
    assert!(facts.replicas[0].applies && !facts.replicas[0].out_of_order, "{:?}", facts.replicas);
    assert!(facts.roots[0].exclude.iter().any(|glob| glob == "relay.[0-9]*"), "{:?}", facts.roots[0].exclude);
    let (mut both, holder) = held(&replica);
    let mut guard = ok(both.freeze(within(BUDGET)));
    let cut = holder.position().expect("read under the lock");
    assert_eq!(cut.gtid_applied.map(|gtids| gtids.0), Some(position));
    let row = primary.connect();
    drop(row);
    let file = primary.ask("SHOW MASTER STATUS").expect("a file");
    assert_eq!((cut.applied[0].position.file.clone(), cut.applied[0].is_complete), (file, true));
    ok(guard.prove());
    ok(guard.thaw());
    // Nobody applies any more.
    primary.run(["INSERT INTO d.innodb (n) VALUES (6)"]);
    // A parallel applier that does not wait.
    replica.run([
        "STOP SLAVE",
        "SET GLOBAL slave_parallel_threads = 4",
        "SET GLOBAL slave_parallel_mode = 'optimistic'",
        "START SLAVE",
    ]);
    let running = || look(&replica).replicas[0].applies;
    assert!(wait_until(Duration::from_secs(10), running).is_some());
    let facts = look(&replica);
    assert!(facts.replicas[0].out_of_order);
    assert!(facts.notes.iter().any(|note| note.contains("MDEV-36025")), "{:?}", facts.notes);
    // Idle, it has nothing prepared, so the cut can be taken; the place in the source's log is not the whole truth.
    ok(both.prepare());
    assert!(
        wait_until(Duration::from_secs(10), || match both.freeze(within(BUDGET)) {
            Ok(guard) => {
                let cut = holder.position().expect("read under the lock");
                assert!(!cut.applied[0].is_complete);
                ok(guard.thaw());
                true
            }
            Err(failure) => {
                assert_eq!(failure.kind, FailureKind::Busy, "{}", failure.in_full());
                false
            }
        })
        .is_some()
    );
    under_load(&primary, &replica);
    replica.run(["STOP SLAVE"]);
    assert!(!look(&replica).replicas[0].applies);
}

/// While its applier has transactions under way that wait for each other, the cut is given up and nobody is held; what
/// is taken has none (MDEV-36025).
fn under_load(primary: &PrivateServer, replica: &PrivateServer) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut taken, mut busy) = (0, 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut conn = primary.connect();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    conn.query_drop("INSERT INTO d.innodb (n) VALUES (9)").expect("an insert");
                }
            });
        }
        let (mut both, _) = held(replica);
        for _ in 0..30 {
            match both.freeze(within(BUDGET)) {
                Ok(mut guard) => {
                    let prepared = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'system user' \
                                    AND state = 'Waiting for prior transaction to commit'";
                    assert_eq!(replica.ask(prepared).as_deref(), Some("0"));
                    ok(guard.prove());
                    ok(guard.thaw());
                    taken += 1;
                }
                Err(failure) => {
                    assert_eq!(failure.kind, FailureKind::Busy, "{}", failure.in_full());
                    busy += 1;
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!("  an optimistic parallel replica under load: {taken} cuts taken, {busy} given up");
    let here = replica.ask("SELECT @@gtid_slave_pos");
    assert!(
        wait_until(Duration::from_secs(60), || replica.ask("SELECT @@gtid_slave_pos") != here
            || here == primary.ask("SELECT @@gtid_binlog_pos"))
        .is_some(),
        "it goes on applying"
    );
}
