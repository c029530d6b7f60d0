//! The test support for real servers, against real servers.

use mysql::prelude::Queryable;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use testkit::server::{
    Latency, Ledger, LedgerOptions, PrivateServer, Sysbench, Volume, Workload, age, ledger_process, verify,
    wait_until,
};

#[test]
fn a_private_server_lives_crashes_recovers_and_leaves_nothing() {
    let mut server = PrivateServer::builder().rocksdb().start();
    server.run([
        "CREATE DATABASE a",
        "CREATE TABLE a.t (n INT) ENGINE=InnoDB",
        "CREATE TABLE a.r (n INT PRIMARY KEY) ENGINE=RocksDB",
        "INSERT INTO a.t VALUES (7)",
        // Otherwise the last commit is durable as prepared only, and InnoDB recovers no position of it.
        "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS",
    ]);
    let written = server.ask("SHOW MASTER STATUS").expect("a binary log");
    assert_eq!(written, "binlog.000001");
    let position: (String, u64, String, String) =
        server.connect().query_first("SHOW MASTER STATUS").expect("an answer").expect("a row");
    let pid = server.pid();
    server.kill();
    assert!(!server.is_running());
    server.start();
    assert_ne!(server.pid(), pid);
    assert_eq!(server.ask("SELECT n FROM a.t").as_deref(), Some("7"));
    assert_eq!(server.recovered_position(), Some((position.0, position.1)));
    server.restart();
    let (datadir, socket) = (server.datadir().to_path_buf(), server.socket());
    drop(server);
    assert!(!datadir.exists() && !socket.exists());
}

#[test]
fn a_server_offers_tls_on_a_port_of_its_own() {
    let server = PrivateServer::builder().tls().start();
    server.run(["CREATE USER backup@'127.0.0.1' IDENTIFIED BY 'secret' REQUIRE SSL"]);
    let roots = server.certificate().expect("a certificate").to_path_buf();
    let tls = mysql::SslOpts::default().with_root_cert_path(Some(roots));
    let opts = mysql::OptsBuilder::new()
        .ip_or_hostname(Some("127.0.0.1"))
        .tcp_port(server.port().expect("a port"))
        .prefer_socket(false)
        .user(Some("backup"))
        .pass(Some("secret"));
    assert!(mysql::Conn::new(opts.clone()).is_err(), "only with TLS");
    let mut connection = mysql::Conn::new(opts.ssl_opts(Some(tls))).expect("a connection with TLS");
    let cipher: (String, String) =
        connection.query_first("SHOW STATUS LIKE 'Ssl_cipher'").expect("an answer").expect("a row");
    assert!(!cipher.1.is_empty());
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let told = PrivateServer::builder().option("--no-such-option").try_start().err().expect("a failure");
    assert!(told.contains("no-such-option"), "{told}");
}

#[test]
fn clients_notice_a_lock_and_its_length() {
    let server = PrivateServer::builder().start();
    let all = [Workload::InnoDb, Workload::MyIsam, Workload::Aria, Workload::AriaTransactional];
    let running: Vec<Latency> =
        all.iter().map(|work| Latency::start(&server.opts(), *work, 2, Duration::from_millis(1))).collect();
    let held = Duration::from_millis(400);
    let (from, until) = hold(&server, "FLUSH TABLES WITH READ LOCK", "UNLOCK TABLES", held);
    for (latency, work) in running.iter().zip(all) {
        latency.wait_for_commits(Duration::from_secs(5)).expect("they go on");
        let longest = latency.longest(from, until);
        assert!(longest >= held && longest < held * 3, "{work:?}: {longest:?}");
        assert!(latency.committed(until, Instant::now()) > 0);
    }
    // A commit lock stops commits, not MyISAM; the stages before it do.
    let mut connection = server.connect();
    connection.query_drop("BACKUP STAGE START").expect("a stage");
    connection.query_drop("BACKUP STAGE BLOCK_COMMIT").expect("a stage");
    assert_eq!(running[0].wait_for_commits(Duration::from_millis(200)), None);
    drop(connection);
    running[0].wait_for_commits(Duration::from_secs(5)).expect("they go on");
}

fn hold(server: &PrivateServer, lock: &str, unlock: &str, length: Duration) -> (Instant, Instant) {
    let mut connection = server.connect();
    let from = Instant::now();
    connection.query_drop(lock).expect("a lock");
    std::thread::sleep(length);
    connection.query_drop(unlock).expect("unlocked");
    (from, Instant::now())
}

/// The process of the ledgers that the other tests start.
#[test]
fn ledger() {
    ledger_process();
}

#[test]
fn a_ledger_is_sound_at_rest_and_tells_a_copy_of_two_instants() {
    let server = PrivateServer::builder().rocksdb().start();
    let dir = tempfile::tempdir().expect("a directory");
    let files = dir.path().join("files");
    let ledger = Ledger::start(LedgerOptions::new(&server, &files, 7), "ledger");
    // Every connection is lost at once: the writers come back and nothing is torn.
    for process in server.processes() {
        let _ = server.connect().query_drop(format!("KILL {}", process.id));
    }
    let enough = || ledger.entries().is_some_and(|entries| entries > 200);
    wait_until(Duration::from_secs(60), enough).expect("two hundred entries");
    ledger.stop();
    let report = verify(&mut server.connect(), &files);
    report.assert_sound();
    assert!(report.rocksdb && report.committed > report.entries, "{report:?}");
    // What a copy of different instants looks like.
    let newest = server.ask("SELECT CONCAT(seq) FROM ledger.writer WHERE writer = 0").expect("a number");
    for (breaks, says) in [
        (format!("DELETE FROM ledger.myisam WHERE writer = 0 AND seq = {newest}"), "different instants"),
        ("DELETE FROM ledger.aria1 WHERE writer = 1 AND seq = 1".to_owned(), "holes"),
        ("UPDATE ledger.rocks_account SET balance = balance + 1 WHERE id = 3".to_owned(), "sum of all"),
        ("UPDATE ledger.journal SET live = 1 - live WHERE writer = 2 AND seq = 2".to_owned(), "contradict"),
    ] {
        server.run([breaks]);
        let faults = verify(&mut server.connect(), &files).faults;
        assert!(faults.iter().any(|fault| fault.contains(says)), "no {says:?} in {faults:?}");
    }
    std::fs::remove_dir_all(files.join("w3")).expect("removed");
    let faults = verify(&mut server.connect(), &files).faults;
    assert!(faults.iter().any(|fault| fault.contains("row without its file")), "{faults:?}");
}

#[test]
fn sysbench_fills_a_server_of_the_wanted_size_loads_it_and_it_ages() {
    let volume = Volume::new("xfs", 1 << 30, &std::env::temp_dir());
    let mut server = PrivateServer::builder().directory(volume.path().join("server")).start();
    let bytes = 60 << 20;
    let tables = Sysbench::sized(6, bytes);
    tables.prepare(&server);
    let files = ibd_files(&server.datadir().join("sbtest"));
    let size: u64 = files.iter().map(|path| path.metadata().expect("a file").len()).sum();
    assert!(files.len() == 6 && size.abs_diff(bytes) < bytes / 4, "{size}");
    let mut load = tables.start(&server, 2, 50, Duration::from_secs(60));
    wait_until(Duration::from_secs(10), || load.seconds().len() > 2).expect("reports");
    assert!(load.is_running() && load.seconds().iter().all(|second| second.errors == 0.0));
    drop(load);
    server.stop();
    let before: u64 = files.iter().map(|path| extents(path)).sum();
    let written = age(server.datadir(), 3, 5, 1).expect("reflinks");
    let after: u64 = files.iter().map(|path| extents(path)).sum();
    assert!(after > before + written / 4, "{before} extents, {after} after {written} pages");
    server.start();
    assert_eq!(server.ask("SELECT COUNT(*) FROM sbtest.sbtest6").as_deref(), Some(&*tables.rows.to_string()));
}

fn ibd_files(below: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(below).expect("a directory").flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "ibd")).collect()
}

fn extents(path: &Path) -> u64 {
    let output = std::process::Command::new("filefrag").arg(path).output().expect("filefrag");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.rsplit(": ")
        .next()
        .and_then(|rest| rest.split(' ').next())
        .and_then(|n| n.parse().ok())
        .expect(&text)
}
