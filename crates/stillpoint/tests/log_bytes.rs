//! `stillpoint log` for a MariaDB server: what the archive holds of all kinds of transactions is byte for byte what the server's
//! own files hold; it goes on at a server that takes over, refuses a stranger, sees a log that is begun anew while it follows,
//! and survives a full disk. Kills are in `log_server`.

mod common;
#[path = "log_bytes/scene.rs"]
mod scene;

use std::{fs, os::unix::fs::symlink, path::Path, thread, time::Duration};

use model::logs::{Beginning, Epoch, HoleCause, SegmentRecord};
use scene::{PATIENCE, Scene};
use testkit::server::{PrivateServer, Volume, wait_until};

const SMALL: &str = "{ segment = \"1MiB\" }";

fn cause(epoch: &Epoch) -> Option<HoleCause> {
    match &epoch.record.beginning {
        Beginning::Hole { cause, .. } => Some(*cause),
        _ => None,
    }
}

/// All kinds of transactions.
fn write_everything(server: &PrivateServer) {
    server.run([
        "CREATE DATABASE everything",
        "USE everything",
        "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, at DATETIME, text LONGTEXT)",
        "CREATE TABLE m (id INT) ENGINE = MyISAM",
        "INSERT INTO m VALUES (1), (2)",
        "SET binlog_format = STATEMENT, @name = 'O''Hara'",
        "INSERT INTO t (at, text) VALUES (now(), concat(@name, rand()))",
        "CREATE TEMPORARY TABLE tmp (id INT)",
        "INSERT INTO tmp VALUES (7)",
        "INSERT INTO t (text) SELECT id FROM tmp",
        "SET binlog_format = ROW",
        "CREATE TABLE copy AS SELECT * FROM t",
        "XA START 'x'",
        "INSERT INTO t (text) VALUES ('xa')",
        "XA END 'x'",
        "XA PREPARE 'x'",
        "XA COMMIT 'x'",
        "SAVEPOINT none",
        "ALTER TABLE t ADD COLUMN more INT",
        "START TRANSACTION",
        "INSERT INTO t (text) VALUES ('kept')",
        "SAVEPOINT here",
        "INSERT INTO t (text) VALUES ('dropped')",
        "INSERT INTO m VALUES (3)",
        "ROLLBACK TO here",
        "COMMIT",
        "DROP TABLE copy",
    ]);
}

#[test]
fn every_byte_is_the_servers() {
    let mut server = PrivateServer::builder().option("--max-allowed-packet=64M").start();
    let scene = Scene::new(&server, SMALL);
    let archiver = scene.archive();
    write_everything(&server);
    scene.wait_for(&server);
    server.run(["FLUSH BINARY LOGS", "INSERT INTO everything.m VALUES (9)"]);
    // More than the 16 MiB of a packet.
    let large = "INSERT INTO everything.t (text) VALUES (REPEAT('0123456789abcdef', 1250000))";
    server.run(["SET binlog_format = ROW", large]);
    server.restart();
    write_again(&server);
    scene.wait_for(&server);
    archiver.stop();
    let archiver = scene.archive();
    write_again(&server);
    scene.wait_for(&server);
    archiver.stop();
    let log = scene.log();
    let [epoch] = log.epochs.as_slice() else { panic!("{:?}\n{}", log.epochs, scene.said()) };
    assert_eq!(epoch.record.beginning, Beginning::First);
    assert!(epoch.segments.iter().any(|segment| segment.lead > 4), "one begins within a file");
    scene.assert_is_the_servers(epoch, &server);
    let state = server.ask("SELECT @@gtid_binlog_state");
    let held = |segment: &SegmentRecord| segment.gtid_state.clone().map(|gtids| gtids.0);
    assert_eq!(held(epoch.segments.last().unwrap()), state);
    // Every sidecar says what its own bytes say.
    let transactions = epoch.segments.iter().scan(0, |before, segment| {
        *before += segment.transactions;
        Some((format!("0-1-{before}"), held(segment)))
    });
    transactions.for_each(|(counted, said)| assert_eq!(Some(counted), said));
}

fn write_again(server: &PrivateServer) {
    let filler = "INSERT INTO everything.t (text) VALUES (REPEAT('z', 400000))";
    server.run(["SET binlog_format = ROW", filler, filler, filler, filler]);
}

#[test]
fn what_the_server_removed_is_a_hole_that_says_why() {
    let server = PrivateServer::builder().start();
    let scene = Scene::new(&server, SMALL);
    let archiver = scene.archive();
    server.run(["CREATE DATABASE a"]);
    scene.wait_for(&server);
    archiver.stop();
    server.run(["CREATE DATABASE b", "FLUSH BINARY LOGS", "CREATE DATABASE c", "FLUSH BINARY LOGS"]);
    let newest = scene::position(&server).file;
    server.run([format!("PURGE BINARY LOGS TO '{newest}'"), "CREATE DATABASE d".into()]);
    let archiver = scene.archive();
    scene.wait_for(&server);
    archiver.stop();
    // Files are told apart by the second in which they were begun.
    thread::sleep(Duration::from_millis(1100));
    server.run(["RESET MASTER", "CREATE DATABASE e"]);
    let archiver = scene.archive();
    scene.wait_for(&server);
    // And while it is being followed, to a log that looks the same.
    thread::sleep(Duration::from_millis(1100));
    server.run(["RESET MASTER", "CREATE DATABASE f", "CREATE DATABASE g"]);
    wait_until(PATIENCE, || scene.log().epochs.len() == 4).unwrap_or_else(|| panic!("{}", scene.said()));
    scene.wait_for(&server);
    archiver.stop();
    let log = scene.log();
    let causes: Vec<_> = log.epochs.iter().map(cause).collect();
    let expected = [None, Some(HoleCause::Purged), Some(HoleCause::Reset), Some(HoleCause::Reset)];
    assert_eq!(causes, expected, "{}", scene.said());
    scene.assert_is_the_servers(&log.epochs[3], &server);
}

#[test]
fn quiet_logs_that_were_removed_are_no_hole() {
    let server = PrivateServer::builder().start();
    let scene = Scene::new(&server, SMALL);
    let archiver = scene.archive();
    server.run(["CREATE DATABASE a"]);
    scene.wait_for(&server);
    archiver.stop();
    server.run(["FLUSH BINARY LOGS", "FLUSH BINARY LOGS"]);
    let newest = scene::position(&server).file;
    server.run([format!("PURGE BINARY LOGS TO '{newest}'"), "CREATE DATABASE d".into()]);
    let archiver = scene.archive();
    scene.wait_for(&server);
    archiver.stop();
    assert_eq!(scene.log().epochs.len(), 1, "{}", scene.said());
}

#[test]
fn it_goes_on_at_the_server_that_takes_over() {
    let one = PrivateServer::builder().server_id(1).network().start();
    let two = PrivateServer::builder().server_id(2).network().option("--log-slave-updates").start();
    one.run(["GRANT REPLICATION SLAVE ON *.* TO replica@127.0.0.1 IDENTIFIED BY 'secret'"]);
    two.run([
        format!(
            "CHANGE MASTER TO master_host='127.0.0.1', master_port={}, master_user='replica', \
             master_password='secret', master_use_gtid=slave_pos",
            one.port().unwrap()
        ),
        "START SLAVE".into(),
    ]);
    let scene = Scene::new(&one, SMALL);
    let archiver = scene.archive();
    one.run(["CREATE DATABASE app", "CREATE TABLE app.t (id INT)", "INSERT INTO app.t VALUES (1), (2)"]);
    scene.wait_for(&one);
    let all = one.ask("SELECT @@gtid_binlog_pos");
    wait_until(PATIENCE, || two.ask("SELECT @@gtid_slave_pos") == all).expect("the replica follows");
    archiver.stop();
    two.run([
        "STOP SLAVE",
        "FLUSH BINARY LOGS",
        "INSERT INTO app.t VALUES (3)",
        "INSERT INTO app.t VALUES (4)",
    ]);
    scene.lead_to(&two);
    let archiver = scene.archive();
    scene.wait_for(&two);
    archiver.stop();
    let archiver = scene.archive();
    two.run(["INSERT INTO app.t VALUES (5)"]);
    scene.wait_for(&two);
    archiver.stop();
    let log = scene.log();
    let [first, second] = log.epochs.as_slice() else { panic!("{:?}\n{}", log.epochs, scene.said()) };
    assert_eq!(second.record.beginning, Beginning::Continues { after: first.record.epoch.clone() });
    scene.assert_is_the_servers(second, &two);
    let transactions: u64 = second.segments.iter().map(|segment| segment.transactions).sum();
    assert_eq!(transactions, 3, "what both servers have is there once");
    assert_eq!(scene.log().epochs[1].record.server.as_ref().unwrap().server_id, 2);
}

#[test]
fn a_stranger_at_the_address_is_refused() {
    let one = PrivateServer::builder().server_id(1).start();
    let scene = Scene::new(&one, SMALL);
    let archiver = scene.archive();
    one.run(["CREATE DATABASE a"]);
    scene.wait_for(&one);
    archiver.stop();
    let stranger = PrivateServer::builder().server_id(7).start();
    stranger.run(["CREATE DATABASE x"]);
    scene.lead_to(&stranger);
    let mut archiver = scene.archive();
    assert_eq!(archiver.wait(), Some(1), "{}", scene.said());
    assert!(scene.said().contains("no common history"), "{}", scene.said());
    assert_eq!(scene.log().epochs.len(), 1);
}

#[test]
fn a_full_disk_stops_the_archive_and_not_the_server() {
    let server = PrivateServer::builder().start();
    let volume = Volume::new("ext4", 32 << 20, Path::new(env!("CARGO_TARGET_TMPDIR")));
    let scene = Scene::new(&server, SMALL);
    let logs = volume.directory("logs");
    fs::create_dir_all(scene.logs().parent().unwrap()).unwrap();
    symlink(&logs, scene.logs()).unwrap();
    let ballast = volume.path().join("ballast");
    let archiver = scene.archive();
    server.run([
        "CREATE DATABASE app",
        "CREATE TABLE app.t (id INT PRIMARY KEY AUTO_INCREMENT, text LONGTEXT)",
    ]);
    scene.wait_for(&server);
    fill(&ballast);
    let insert = "INSERT INTO app.t (text) VALUES (REPEAT('x', 500000))";
    server.run([insert; 10]);
    let trouble = || scene.said().contains("\"trouble\"");
    wait_until(PATIENCE, trouble).unwrap_or_else(|| panic!("no trouble: {}", scene.said()));
    server.run([insert; 2]);
    fs::remove_file(&ballast).unwrap();
    scene.wait_for(&server);
    archiver.stop();
    let log = scene.log();
    let [epoch] = log.epochs.as_slice() else { panic!("{:?}", log.epochs) };
    scene.assert_is_the_servers(epoch, &server);
}

fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    let zeros = vec![0; 1 << 16];
    while file.write_all(&zeros).is_ok() {}
    while file.write_all(&[0; 512]).is_ok() {}
}
