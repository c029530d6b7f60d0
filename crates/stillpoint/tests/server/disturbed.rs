//! What can be under way on a server when a cut comes.

use std::{
    thread,
    time::{Duration, Instant},
};

use mysql::prelude::Queryable;
use testkit::server::{PrivateServer, ServerBuilder, wait_until};

use crate::{
    common::seed,
    site::{Backup, Kind, ServerSite},
};

/// Longer than any backup here takes.
const LONG: u64 = 60;

/// A site, its ledger and clients; the disturbance is begun; one backup is made, which holds the budget.
fn disturbed<G>(
    change: impl FnOnce(ServerBuilder) -> ServerBuilder,
    disturb: impl FnOnce(&ServerSite) -> G,
) -> (ServerSite, Backup, G, testkit::server::Ledger) {
    let site = ServerSite::new(Kind::Btrfs, change);
    let ledger = site.ledger(seed());
    site.server.run([
        "CREATE DATABASE d",
        "CREATE TABLE d.i (n INT PRIMARY KEY, pad CHAR(200)) ENGINE=InnoDB",
        "CREATE TABLE d.m (n INT PRIMARY KEY, pad CHAR(200)) ENGINE=MyISAM",
        "CREATE TABLE d.big (n INT PRIMARY KEY, pad CHAR(200)) ENGINE=InnoDB",
        "INSERT INTO d.i SELECT seq, 'x' FROM d.seq_1_to_1000",
        "INSERT INTO d.m SELECT seq, 'x' FROM d.seq_1_to_1000",
    ]);
    let clients = site.clients();
    let guard = disturb(&site);
    let backup = site.backup();
    for all in &clients {
        all.wait_for_commits(Duration::from_secs(5)).expect("clients go on");
    }
    let longest = site.assert_budget(&clients, &backup);
    println!(
        "status {:?} after {:?}, longest transaction {longest:.1?}\n{}{}",
        backup.ran.status(),
        backup.ended - backup.begun,
        backup.ran.out(),
        backup.ran.err()
    );
    (site, backup, guard, ledger)
}

/// Stored, consistent, and the copy proves it.
fn assert_taken(site: &ServerSite, backup: &Backup) {
    backup.expect_verdict("consistent");
    site.assert_whole(&site.restore());
    site.assert_left_as_it_was();
}

/// Given up with a reason, nothing left; and it works once the disturbance is gone.
fn assert_given_up(site: &ServerSite, backup: &Backup, says: &str) {
    backup.ran.expect_status(1).expect_text(says);
    assert_eq!(site.site.backups(), Vec::<String>::new(), "nothing is listed");
}

fn assert_works_again(site: &ServerSite) {
    site.assert_left_as_it_was();
    assert_taken(site, &site.backup());
}

/// A statement that runs on a connection of its own until that is killed.
struct Running {
    id: u64,
    thread: Option<thread::JoinHandle<mysql::Result<()>>>,
}

impl Running {
    fn start(site: &ServerSite, statement: &str) -> Self {
        let mut connection = site.server.connect();
        let (id, text) = (u64::from(connection.connection_id()), statement.to_owned());
        let thread = thread::spawn(move || connection.query_drop(text));
        let runs =
            || site.server.processes().iter().any(|process| process.id == id && !process.info.is_empty());
        wait_until(Duration::from_secs(5), runs).expect("the statement runs");
        Self { id, thread: Some(thread) }
    }

    fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// What came of it.
    fn result(mut self) -> Option<mysql::Result<()>> {
        self.thread.take().and_then(|thread| thread.join().ok())
    }

    fn end(mut self, site: &ServerSite) {
        site.server.run([format!("KILL {}", self.id)]);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

#[test]
fn long_selects_run_through_a_cut() {
    let (site, backup, selects, _ledger) = disturbed(
        |server| server,
        |site| {
            ["d.i", "d.m", "ledger.aria1"].map(|table| {
                Running::start(site, &format!("SELECT COUNT(*) FROM {table} WHERE SLEEP({LONG}) = 0"))
            })
        },
    );
    assert!(selects.iter().all(Running::is_running), "nobody ended them");
    for select in selects {
        select.end(&site);
    }
    assert_taken(&site, &backup);
}

#[test]
fn an_idle_transaction_stays_open_through_a_cut() {
    let (site, backup, mut idle, _ledger) = disturbed(
        |server| server,
        |site| {
            let mut idle = site.server.connect();
            for statement in [
                "BEGIN",
                "UPDATE d.i SET pad = 'idle'",
                "INSERT INTO d.m VALUES (0, 'idle')",
                "SELECT * FROM d.m",
            ] {
                idle.query_drop(statement).expect("a statement");
            }
            idle
        },
    );
    idle.query_drop("COMMIT").expect("it was left alone");
    assert_eq!(site.server.ask("SELECT COUNT(*) FROM d.i WHERE pad = 'idle'").as_deref(), Some("1000"));
    assert_taken(&site, &backup);
}

#[test]
fn a_table_locked_for_writing_ends_the_cut_within_the_budget() {
    let (site, backup, mut locker, _ledger) = disturbed(
        |server| server,
        |site| {
            let mut locker = site.server.connect();
            locker.query_drop("LOCK TABLES d.m WRITE").expect("locked");
            locker
        },
    );
    assert_given_up(&site, &backup, "BACKUP STAGE");
    locker.query_drop("INSERT INTO d.m VALUES (0, 'mine')").expect("it still has its lock");
    locker.query_drop("UNLOCK TABLES").expect("unlocked");
    assert_works_again(&site);
}

#[test]
fn a_long_write_to_myisam_ends_the_cut_within_the_budget() {
    let (site, backup, writer, _ledger) = disturbed(
        |server| server,
        |site| Running::start(site, &format!("INSERT INTO d.m SELECT 5000, SLEEP({LONG})")),
    );
    assert_given_up(&site, &backup, "BACKUP STAGE");
    assert!(writer.is_running(), "nobody ended it");
    writer.end(&site);
    assert_works_again(&site);
}

#[test]
fn an_alter_table_that_copies_goes_on_through_a_cut() {
    let (site, backup, alter, _ledger) = disturbed(
        |server| server,
        |site| {
            // Pages that have to be compressed sixteen-fold take their time.
            let rows =
                "SELECT seq, CONCAT(SHA2(seq, 512), SUBSTR(SHA2(-seq, 512), 1, 70)) FROM d.seq_1_to_500000";
            site.server.run([format!("INSERT INTO d.big {rows}")]);
            Running::start(site, "ALTER TABLE d.big ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=1, ALGORITHM=COPY")
        },
    );
    assert!(alter.is_running(), "the table is too small for this machine");
    wait_until(Duration::from_secs(120), || !alter.is_running()).expect("it ends");
    let result = alter.result();
    assert!(matches!(result, Some(Ok(()))), "it was left alone: {result:?}");
    assert_taken(&site, &backup);
}

#[test]
fn an_alter_table_about_to_end_ends_the_cut_within_the_budget() {
    let (site, backup, (mut idle, alter), _ledger) = disturbed(
        |server| server,
        |site| {
            let mut idle = site.server.connect();
            for statement in ["BEGIN", "SELECT * FROM d.i LIMIT 1"] {
                idle.query_drop(statement).expect("a statement");
            }
            (idle, Running::start(site, "ALTER TABLE d.i ENGINE=InnoDB, ALGORITHM=COPY"))
        },
    );
    assert_given_up(&site, &backup, "BACKUP STAGE START");
    assert!(alter.is_running(), "nobody ended it");
    idle.query_drop("COMMIT").expect("it was left alone");
    wait_until(Duration::from_secs(10), || !alter.is_running()).expect("it ends by itself");
    assert_works_again(&site);
}

#[test]
fn somebody_elses_backup_stage_ends_the_cut_and_stays() {
    let (site, backup, mut other, _ledger) = disturbed(
        |server| server,
        |site| {
            let mut other = site.server.connect();
            other.query_drop("BACKUP STAGE START").expect("a stage");
            other
        },
    );
    assert_given_up(&site, &backup, "BACKUP STAGE START");
    other.query_drop("BACKUP STAGE END").expect("it still holds its stage");
    assert_works_again(&site);
}

#[test]
fn a_server_that_is_read_only_is_cut_and_stays_read_only() {
    let (site, backup, (), _ledger) = disturbed(|server| server.option("--read-only=1"), |_| ());
    assert_eq!(site.server.ask("SELECT @@read_only").as_deref(), Some("1"));
    assert_taken(&site, &backup);
}

#[test]
fn commits_that_are_not_flushed_at_once_are_in_the_copy_and_stay_so() {
    for value in ["0", "2"] {
        let option = format!("--innodb-flush-log-at-trx-commit={value}");
        let (site, backup, (), _ledger) = disturbed(|server| server.option(option), |_| ());
        assert_eq!(site.server.ask("SELECT @@innodb_flush_log_at_trx_commit").as_deref(), Some(value));
        assert_taken(&site, &backup);
    }
}

/// A primary that clients of a replication user reach.
fn primary() -> PrivateServer {
    let primary = PrivateServer::builder().network().server_id(7).start();
    primary.run([
        "CREATE USER repl@'127.0.0.1' IDENTIFIED BY 'repl'",
        "GRANT REPLICATION SLAVE ON *.* TO repl@'127.0.0.1'",
        "CREATE DATABASE p",
        "CREATE TABLE p.t (n INT) ENGINE=InnoDB",
        "INSERT INTO p.t VALUES (1)",
    ]);
    primary
}

fn follow(replica: &PrivateServer, primary: &PrivateServer) {
    let port = primary.port().expect("a port");
    replica.run([
        format!(
            "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={port}, MASTER_USER='repl', \
             MASTER_PASSWORD='repl', MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos"
        ),
        "START SLAVE".to_owned(),
    ]);
}

#[test]
fn a_replica_of_a_dead_primary_is_cut_with_what_it_has_applied() {
    let (site, backup, (), _ledger) = disturbed(
        |server| server,
        |site| {
            let mut primary = primary();
            follow(&site.server, &primary);
            let exists = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'p'";
            let applied = || {
                site.server.ask(exists).as_deref() == Some("1")
                    && site.server.ask("SELECT COUNT(*) FROM p.t").as_deref() == Some("1")
            };
            wait_until(Duration::from_secs(20), applied).expect("the replica follows");
            primary.kill();
        },
    );
    backup.expect_verdict("consistent");
    let copy = site.restore();
    let position = &copy.record["servers"][0]["position"];
    assert_eq!(position["gtid_applied"].as_str(), site.server.ask("SELECT @@gtid_slave_pos").as_deref());
    assert!(position["applied"][0]["source"].as_str().is_some(), "{position:#}");
    site.assert_whole(&copy);
    site.assert_left_as_it_was();
}

/// Its commits wait for an answer that never comes, and a commit lock waits for them.
#[test]
fn a_primary_whose_semi_synchronous_replica_is_dead_is_not_stalled_further() {
    let site = ServerSite::new(Kind::Btrfs, |server| server.option("--rpl-semi-sync-master-timeout=8000"));
    site.server.run([
        "CREATE DATABASE d",
        "CREATE TABLE d.i (n INT PRIMARY KEY) ENGINE=InnoDB",
        // Only now: it switches itself off after the first commit that nobody acknowledged in time.
        "SET GLOBAL rpl_semi_sync_master_enabled = 1",
    ]);
    let wait = Instant::now();
    let commit = Running::start(&site, "INSERT INTO d.i VALUES (1)");
    let backup = site.backup();
    println!("{:?}: {}{}", backup.ran.status(), backup.ran.out(), backup.ran.err());
    if backup.ended - wait < Duration::from_secs(7) {
        assert!(commit.is_running(), "its commit was left alone");
        assert_ne!(backup.ran.status(), Some(0));
    }
    wait_until(Duration::from_secs(20), || !commit.is_running()).expect("it is answered in the end");
    site.assert_free();
    assert_eq!(site.server.ask("SELECT COUNT(*) FROM d.i").as_deref(), Some("1"));
    site.server.run(["SET GLOBAL rpl_semi_sync_master_enabled = 0"]);
    let ledger = site.ledger(seed());
    assert_taken(&site, &site.backup());
    ledger.stop();
}
