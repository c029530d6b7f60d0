//! That the model behaves as MySQL 8 is documented to.

use std::{
    thread,
    time::{Duration, Instant},
};

use mysql::{Conn, OptsBuilder, prelude::Queryable};

use super::{Fault, Login, ScriptedServer, SqlError, What};
use crate::server::wait_until;

fn server() -> ScriptedServer {
    ScriptedServer::version("8.0.36").start()
}

fn code(result: mysql::Result<()>) -> u16 {
    match result {
        Err(mysql::Error::MySqlError(error)) => error.code,
        other => panic!("an error of the server was expected, not {other:?}"),
    }
}

/// Runs a statement on a connection of its own, and tells how long it took.
fn aside(server: &ScriptedServer, sql: &'static str) -> thread::JoinHandle<(Duration, mysql::Result<()>)> {
    let mut connection = server.connect();
    let begun = server.statements().len();
    let running = thread::spawn(move || {
        let begun = Instant::now();
        let result = connection.query_drop(sql);
        (begun.elapsed(), result)
    });
    let seen = || server.statements()[begun..].iter().any(|said| said.sql == sql);
    assert!(wait_until(Duration::from_secs(5), seen).is_some());
    running
}

fn until_doing(server: &ScriptedServer, what: &str) {
    let doing = || server.doing().iter().any(|doing| doing == what);
    assert!(wait_until(Duration::from_secs(5), doing).is_some(), "nobody is {what}: {:?}", server.doing());
}

#[test]
fn the_password_is_asked_for_in_three_ways() {
    for how in [Login::FastSha2, Login::FullSha2, Login::Native] {
        let server = ScriptedServer::version("8.4.3").account("backup", "secret", how).start();
        let opts = |password| {
            let socket = server.socket().to_string_lossy().into_owned();
            OptsBuilder::new()
                .socket(Some(socket))
                .user(Some("backup"))
                .pass(Some(password))
                .prefer_socket(false)
        };
        let mut connection = Conn::new(opts("secret")).expect("let in");
        let row: (String, u64) =
            connection.query_first("SELECT VERSION(), CONNECTION_ID()").unwrap().unwrap();
        assert_eq!(row, ("8.4.3".to_owned(), 9));
        if how != Login::Native {
            assert!(Conn::new(opts("guess")).is_err(), "{how:?} let a guess in");
        }
    }
}

#[test]
fn questions_are_answered() {
    let server = server();
    let mut connection = server.connect();
    let sql = "SELECT @@global.innodb_flush_log_at_trx_commit AS f, @@read_only, @@session.wait_timeout + 1";
    let row: (String, u8, u32) = connection.query_first(sql).unwrap().unwrap();
    assert_eq!(row, ("1".to_owned(), 0, 28_801));
    assert_eq!(code(connection.query_drop("SELECT @@gtid_binlog_pos")), 1193);
    assert_eq!(code(connection.query_drop("BACKUP STAGE START")), 1064);
    assert_eq!(code(connection.query_drop("SELECT BINLOG_GTID_POS('a', 1)")), 1305);
    let like: Vec<(String, String)> = connection.query("SHOW GLOBAL VARIABLES LIKE 'gtid\\_mode'").unwrap();
    assert_eq!(like, [("gtid_mode".to_owned(), "ON".to_owned())]);
    let mine = "SELECT id, command FROM information_schema.processlist WHERE id = connection_id()";
    assert_eq!(connection.query_first(mine).unwrap(), Some((9, "Query".to_owned())));
    assert!(connection.query_drop("SHOW MASTER STATUS").is_ok());
    assert_eq!(code(connection.query_drop("SHOW BINARY LOG STATUS")), 1064);
    let newer = ScriptedServer::version("8.4.3").start();
    assert_eq!(code(newer.connect().query_drop("SHOW MASTER STATUS")), 1064);
    let status: mysql::Row = newer.connect().query_first("SHOW BINARY LOG STATUS").unwrap().unwrap();
    assert_eq!(status.get::<String, _>("File").unwrap(), "binlog.000007");
}

#[test]
fn a_read_lock_waits_for_queries_and_holds_writers_from_the_moment_it_is_asked_for() {
    let server = server();
    let long = aside(&server, "SELECT SLEEP(0.4) FROM app.t");
    let mut locker = server.connect();
    let begun = Instant::now();
    let locking = thread::spawn(move || {
        locker.query_drop("FLUSH TABLES WITH READ LOCK").expect("the lock");
        locker
    });
    until_doing(&server, "Waiting for table flush");
    let writer = aside(&server, "INSERT INTO app.other VALUES (1)");
    until_doing(&server, "Waiting for global read lock");
    let mut locker = locking.join().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(250), "it did not wait for the query");
    assert!(server.commits().is_empty());
    assert_eq!(code(locker.query_drop("INSERT INTO app.t VALUES (1)")), 1223);
    let before = server.position();
    locker.query_drop("UNLOCK TABLES").unwrap();
    assert!(writer.join().unwrap().0 >= Duration::from_millis(200));
    assert_eq!(server.commits().len(), 1);
    assert!(server.position().1 > before.1);
    assert!(long.join().unwrap().1.is_ok());
}

#[test]
fn a_killed_flush_leaves_readers_waiting_for_the_long_query() {
    let server = server();
    let long = aside(&server, "SELECT SLEEP(0.8) FROM app.t");
    let mut locker = server.connect();
    let id = locker.connection_id();
    let locking = thread::spawn(move || locker.query_drop("FLUSH TABLES WITH READ LOCK"));
    until_doing(&server, "Waiting for table flush");
    server.connect().query_drop(format!("KILL QUERY {id}")).unwrap();
    assert_eq!(code(locking.join().unwrap()), 1317);
    server.connect().query_drop("INSERT INTO app.other VALUES (1)").expect("other tables are free");
    let reader = aside(&server, "SELECT a FROM app.t");
    until_doing(&server, "Waiting for table flush");
    assert!(!long.is_finished());
    assert!(reader.join().unwrap().1.is_ok());
    assert!(long.is_finished() || long.join().is_ok());
}

#[test]
fn an_open_transaction_is_not_waited_for_but_cannot_commit() {
    let server = server();
    let mut idle = server.connect();
    for sql in ["BEGIN", "INSERT INTO app.t VALUES (1)"] {
        idle.query_drop(sql).unwrap();
    }
    let mut locker = server.connect();
    locker.query_drop("FLUSH TABLES WITH READ LOCK").unwrap();
    let committing = thread::spawn(move || idle.query_drop("COMMIT"));
    until_doing(&server, "Waiting for commit lock");
    let sql = "SELECT OBJECT_TYPE FROM performance_schema.metadata_locks WHERE LOCK_STATUS = 'GRANTED' AND \
               LOCK_DURATION = 'EXPLICIT' AND OWNER_THREAD_ID = PS_CURRENT_THREAD_ID() ORDER BY 1";
    assert_eq!(locker.query::<String, _>(sql).unwrap(), ["COMMIT", "GLOBAL"]);
    drop(locker);
    assert!(committing.join().unwrap().is_ok());
}

#[test]
fn the_backup_lock_waits_for_definitions_and_holds_only_these() {
    let server = ScriptedServer::version("8.0.36").takes("ALTER TABLE", Duration::from_millis(300)).start();
    let alter = aside(&server, "ALTER TABLE app.t ADD b INT");
    let mut locker = server.connect();
    locker.query_drop("SET SESSION lock_wait_timeout = 5").unwrap();
    locker.query_drop("LOCK INSTANCE FOR BACKUP").unwrap();
    assert!(alter.is_finished() || alter.join().is_ok());
    server.connect().query_drop("INSERT INTO app.t VALUES (1)").expect("writes go on");
    let alter = aside(&server, "ALTER TABLE app.t DROP b");
    until_doing(&server, "Waiting for backup lock");
    locker.query_drop("UNLOCK INSTANCE").unwrap();
    assert!(alter.join().unwrap().1.is_ok());
}

#[test]
fn what_a_session_holds_ends_with_it() {
    let server = server();
    let mut locker = server.connect();
    locker.query_drop("SET SESSION wait_timeout = 1").unwrap();
    locker.query_drop("FLUSH TABLES WITH READ LOCK").unwrap();
    let (waited, result) = aside(&server, "INSERT INTO app.t VALUES (1)").join().unwrap();
    assert!(result.is_ok() && waited >= Duration::from_millis(800), "{waited:?}");
    assert!(locker.query_drop("SELECT 1").is_err());
    let mut killed = server.connect();
    killed.query_drop("FLUSH TABLES WITH READ LOCK").unwrap();
    server.connect().query_drop(format!("KILL {}", killed.connection_id())).unwrap();
    server.connect().query_drop("INSERT INTO app.t VALUES (1)").unwrap();
    assert_eq!(code(server.connect().query_drop("KILL 4711")), 1094);
}

#[test]
fn a_kill_that_comes_too_late_ends_nothing() {
    let server = server();
    let mut idle = server.connect();
    server.connect().query_drop(format!("KILL QUERY {}", idle.connection_id())).unwrap();
    idle.query_drop("INSERT INTO app.t VALUES (1)").expect("nothing was killed");
}

#[test]
fn faults_come_where_they_are_due() {
    let server = server();
    server.fault(Fault::at("engine logs", What::Error(SqlError::new(1105, "no"))).after(1));
    server.fault(Fault::at("insert", What::BreakAfter));
    let mut connection = server.connect();
    connection.query_drop("FLUSH ENGINE LOGS").unwrap();
    assert_eq!(code(connection.query_drop("FLUSH ENGINE LOGS")), 1105);
    assert!(connection.query_drop("INSERT INTO app.t VALUES (1)").is_err());
    assert_eq!(server.commits().len(), 1);
    assert!(server.faults_are_used_up());
    server.end();
    assert!(Conn::new(server.opts()).is_err());
}
