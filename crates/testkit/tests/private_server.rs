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
    let volume = Volume::for_test("xfs", 1 << 30, &std::env::temp_dir());
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

/// The cut that the product makes, by hand; and a copy without one, which the ledger must tell.
#[test]
fn a_snapshot_under_backup_stages_is_of_one_instant_and_a_running_copy_is_not() {
    let volume = Volume::for_test("btrfs", 4 << 30, &std::env::temp_dir());
    let all = volume.directory("all");
    let server = PrivateServer::builder().directory(all.join("server")).rocksdb().start();
    let ledger = Ledger::start(LedgerOptions::new(&server, &all.join("files"), 7), "ledger");
    for round in 0..3 {
        wait_until(Duration::from_secs(60), || ledger.entries() > Some(round * 200)).expect("progress");
        let copy = volume.path().join(format!("copy-{round}"));
        let mut connection = server.connect();
        for stage in ["START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT"] {
            connection.query_drop(format!("BACKUP STAGE {stage}")).expect(stage);
        }
        connection.query_drop("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS").expect("flushed");
        // That leaves the end of MyRocks' log in memory: without this, a copy has transactions that are prepared only
        // (seen: 21 of 21), which need the binary log or a heuristic recovery.
        connection.query_drop("SET GLOBAL rocksdb_force_flush_memtable_now = 1").expect("flushed");
        let recorded: (String, u64) = connection
            .query_first("SHOW MASTER STATUS")
            .expect("an answer")
            .map(|row: mysql::Row| (row.get(0).expect("a file"), row.get(1).expect("an offset")))
            .expect("a row");
        run(std::process::Command::new("btrfs").args(["subvolume", "snapshot"]).arg(&all).arg(&copy));
        connection.query_drop("BACKUP STAGE END").expect("END");
        let copied = PrivateServer::builder().rocksdb().copy_at(copy.join("server/data")).start();
        let recovered = copied.recovered_position().expect("a position");
        assert!(recovered <= recorded);
        assert_eq!(server.transactions_between(&recovered, &recorded), 0);
        verify(&mut copied.connect(), &copy.join("files")).assert_sound();
    }
    let (naive, datadir) = (volume.path().join("naive"), server.datadir().to_path_buf());
    // It complains about files that vanish under it.
    let _ = std::process::Command::new("cp").arg("-r").arg(&all).arg(&naive).output().expect("cp");
    let told = PrivateServer::builder()
        .rocksdb()
        .copy_at(naive.join("server/data"))
        .try_start()
        .map(|copied| verify(&mut copied.connect(), &naive.join("files")).faults);
    assert!(!told.as_ref().is_ok_and(Vec::is_empty), "a copy of {} under load passes", datadir.display());
    ledger.stop();
}

fn run(command: &mut std::process::Command) {
    assert!(command.output().expect("the program is installed").status.success(), "{command:?}");
}
