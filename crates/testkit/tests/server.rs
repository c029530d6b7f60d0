//! The test support for real servers, against real servers.

use mysql::prelude::Queryable;
use std::time::{Duration, Instant};
use testkit::server::{Latency, PrivateServer, Workload};

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
