//! Moments between backups brought back from the log archive of a real MariaDB server by the built program, and compared with
//! an oracle that knows the state after every transaction. As root.
//!
//! The load: every transaction writes a sequence number and a checksum of all before; rotations, restarts, DDL, accounts,
//! events, temporary tables, large transactions, row and statement format, two session time zones, and a clock that is set
//! back. The session's clock is set by hand (`SET timestamp`), so nobody has to wait for the moments.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{
    Site, below, count,
    log::{self, end, follow, wait_until_caught_up},
    seed,
};
use jiff::{SignedDuration, Timestamp};
use model::id::SourceId;
use mysql::prelude::Queryable;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use testkit::server::{PrivateServer, Volume};

/// Everything that a state is made of, in one row.
const STATE: &str = "SELECT concat_ws('|', \
    (SELECT max(n) FROM app.oracle), (SELECT sum FROM app.oracle ORDER BY n DESC LIMIT 1), \
    (SELECT count(*) FROM information_schema.tables WHERE table_schema = 'app'), \
    (SELECT concat(count(*), ':', bit_xor(crc32(concat_ws(',', n, t, unix_timestamp(ts), at)))) FROM app.entries), \
    (SELECT count(*) FROM mysql.user WHERE user LIKE 'made%'), \
    (SELECT count(*) FROM mysql.event))";

/// What one transaction led to.
struct After {
    /// Its time in the log.
    time: Timestamp,
    gtid: String,
    state: String,
}

/// A server with an application, and its oracle.
struct Scene {
    site: Site,
    server: PrivateServer,
    /// All transactions since the backup.
    states: Vec<After>,
    /// The state at the backup.
    first: String,
    _volume: Volume,
}

impl Scene {
    fn on(filesystem: &str) -> Self {
        let volume = Volume::for_test(filesystem, 4 << 30, Path::new(env!("CARGO_TARGET_TMPDIR")));
        let server = PrivateServer::builder()
            .directory(volume.directory("server"))
            .option("--max-allowed-packet=64M")
            .start();
        server.run([
            "CREATE DATABASE app",
            "CREATE TABLE app.oracle (n INT PRIMARY KEY, sum CHAR(64))",
            "CREATE TABLE app.entries (n INT, t LONGTEXT, ts TIMESTAMP NULL, at DATETIME)",
            "INSERT INTO app.oracle VALUES (0, '')",
        ]);
        let site = Site::at(volume.path());
        fs::write(site.uploads().join("file"), "as in the backup").unwrap();
        site.init(&format!(
            "[[application.directory]]\npath = \"{}\"\n[[application.database]]\nengine = \"mariadb\"\nsocket = \"{}\"\n\
             user = \"root\"\n\
             archive = {{ segment = \"1MiB\" }}\n",
            site.app().display(),
            server.socket().display()
        ));
        site.run(["backup"]).expect_status(0);
        let first = server.ask(STATE).unwrap();
        Self { site, server, states: Vec::new(), first, _volume: volume }
    }

    fn source(&self) -> SourceId {
        SourceId::new("mariadb", self.server.socket().display())
    }

    /// Writes transactions of all kinds; every one is told to the oracle.
    fn load(&mut self, rounds: u64, random: &mut StdRng) {
        let mut clock = Timestamp::now().as_second() + 60;
        let mut conn = self.server.connect();
        // A session with temporary tables cannot change its format.
        let mut scratch = self.server.connect();
        for round in 1..=rounds {
            clock += random.random_range(0..5);
            // Every tenth transaction is told by a clock that was set back.
            let time = if round % 10 == 0 { clock - 30 } else { clock };
            let format = if random.random_bool(0.5) { "ROW" } else { "STATEMENT" };
            let zone = if random.random_bool(0.5) { "+00:00" } else { "+05:30" };
            for set in [
                format!("binlog_format = {format}"),
                format!("time_zone = '{zone}'"),
                format!("timestamp = {time}"),
            ] {
                conn.query_drop(format!("SET SESSION {set}")).unwrap();
                if !set.starts_with("binlog") {
                    scratch.query_drop(format!("SET SESSION {set}")).unwrap();
                }
            }
            match random.random_range(0..8) {
                0 => self.alone(&mut conn, time, &format!("CREATE TABLE app.made_{round} (i INT)")),
                1 if round % 2 == 0 => {
                    self.alone(
                        &mut conn,
                        time,
                        &format!("CREATE USER made{round}@localhost IDENTIFIED BY 'x'"),
                    );
                }
                1 => self.alone(
                    &mut conn,
                    time,
                    &format!(
                        "CREATE EVENT app.e{round} ON SCHEDULE EVERY 1 SECOND DO DELETE FROM app.entries"
                    ),
                ),
                2 => {
                    scratch.query_drop("SET SESSION binlog_format = STATEMENT").unwrap();
                    scratch.query_drop("CREATE TEMPORARY TABLE IF NOT EXISTS app.scratch (i INT)").unwrap();
                    scratch.query_drop(format!("INSERT INTO app.scratch VALUES ({round})")).unwrap();
                    if random.random_bool(0.5) {
                        self.server.run(["FLUSH BINARY LOGS"]);
                    }
                    let from = "INSERT INTO app.entries SELECT i, 'scratch', now(), now() FROM app.scratch";
                    self.transaction(&mut scratch, round, time, from);
                }
                3 => {
                    let large = format!(
                        "INSERT INTO app.entries VALUES ({round}, repeat('x{round}', 300000), now(), now())"
                    );
                    self.transaction(&mut conn, round, time, &large);
                }
                _ => {
                    let small = format!("INSERT INTO app.entries VALUES ({round}, 'small', now(), now())");
                    self.transaction(&mut conn, round, time, &small);
                }
            }
            if round % 15 == 0 {
                self.server.run(["FLUSH BINARY LOGS"]);
            }
            if round == rounds / 2 {
                drop((conn, scratch));
                self.server.restart();
                (conn, scratch) = (self.server.connect(), self.server.connect());
            }
        }
    }

    fn alone(&mut self, conn: &mut mysql::Conn, time: i64, sql: &str) {
        conn.query_drop(sql).unwrap();
        self.note(time);
    }

    fn transaction(&mut self, conn: &mut mysql::Conn, round: u64, time: i64, sql: &str) {
        conn.query_drop("START TRANSACTION").unwrap();
        conn.query_drop(sql).unwrap();
        let last: String =
            conn.query_first("SELECT sum FROM app.oracle ORDER BY n DESC LIMIT 1").unwrap().unwrap();
        conn.query_drop(format!("INSERT INTO app.oracle VALUES ({round}, sha2('{last}{round}', 256))"))
            .unwrap();
        conn.query_drop("COMMIT").unwrap();
        self.note(time);
    }

    fn note(&mut self, time: i64) {
        let both = self.server.ask(&format!("SELECT concat(@@gtid_binlog_pos, ' ', ({STATE}))")).unwrap();
        let (gtid, state) = both.split_once(' ').unwrap();
        let (gtid, state) = (gtid.to_owned(), state.to_owned());
        self.states.push(After { time: Timestamp::from_second(time).unwrap(), gtid, state });
    }

    /// The state of all transactions before the first, in log order, whose time is at or after this one.
    fn expected(&self, time: Timestamp) -> &str {
        let next = self.states.iter().position(|one| one.time >= time).expect("a moment within the load");
        next.checked_sub(1).map_or(&self.first, |last| &self.states[last].state)
    }

    /// The load, while the program archives it.
    fn archived_load(&mut self, rounds: u64, random: &mut StdRng) {
        let archive = follow(&self.site);
        self.load(rounds, random);
        wait_until_caught_up(&self.site, &self.source());
        self.site.run(["coverage"]).expect_status(0);
        // It stores what it has before it ends.
        end(archive, Signal::INT);
    }

    /// A moment within the load.
    fn moment(&self, random: &mut StdRng) -> Timestamp {
        let latest = self.states.iter().map(|one| one.time).max().unwrap();
        let first = self.states[0].time;
        let length = latest.duration_since(first).as_secs();
        first + SignedDuration::from_secs(random.random_range(0..=length))
    }

    fn segments(&self) -> Vec<PathBuf> {
        let dir = log::spool(&self.site).source_dir(&self.source());
        let epochs =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        let mut found: Vec<PathBuf> = epochs
            .flat_map(|epoch| {
                fs::read_dir(epoch).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
            })
            .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
            .collect();
        found.sort();
        found
    }

    fn forget_stored(&self) {
        let found = self.site.restic(["snapshots", "--tag", "log", "--json"]).json();
        let ids: Vec<&str> =
            found.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
        assert!(!ids.is_empty(), "nothing was stored");
        self.site.restic([&["forget"], &ids[..]].concat()).expect_status(0);
    }

    fn restored(&self, arguments: &[&str], expected: &str) {
        let to = self.site.root().join("back");
        let mut all = vec!["restore", "guestbook", "--to", to.to_str().unwrap()];
        all.extend(arguments);
        let ran = self.site.run(&all);
        ran.expect_status(0).expect_text("before");
        assert_eq!(
            fs::read_to_string(below(&to, &self.site.uploads()).join("file")).unwrap(),
            "as in the backup"
        );
        let copy = PrivateServer::builder().copy_at(below(&to, self.server.datadir())).start();
        assert_eq!(copy.ask(STATE).unwrap(), expected, "{arguments:?}: {}", ran.out());
        assert_eq!(copy.ask("SELECT count(*) FROM mysql.user WHERE user LIKE 'stillpoint%'").unwrap(), "0");
        drop(copy);
        fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn every_moment_is_what_the_oracle_says_and_what_is_lost_is_named_before_anything_is_restored() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut scene = Scene::on("xfs");
    scene.archived_load(60, &mut random);
    // Everything comes from the repository.
    let (logs, kept) = (log::logs(&scene.site), scene.site.root().join("kept"));
    fs::rename(&logs, &kept).unwrap();
    for _ in 0..count("STILLPOINT_MOMENTS", 2) {
        let time = scene.moment(&mut random);
        let expected = scene.expected(time).to_owned();
        scene.restored(&["--at", &time.to_string()], &expected);
    }

    // The place that the statements around a moment offer.
    let time = scene.states[scene.states.len() / 2].time.to_string();
    let shown = scene.site.run(["restore", "guestbook", "--at", &time, "--before-statement", "--json"]);
    shown.expect_status(0);
    let statements = shown.json()["databases"][0]["statements"].as_array().unwrap().clone();
    let next = statements.iter().find(|one| one["is_in"] == false).expect("one after the moment");
    let place = format!("{}:{}", next["position"]["file"].as_str().unwrap(), next["position"]["offset"]);
    let expected = scene.expected(time.parse().unwrap()).to_owned();
    scene.restored(&["--at-position", &place], &expected);

    // Damage that only reading shows, where there is no other copy.
    scene.forget_stored();
    let _ = fs::remove_dir_all(&logs);
    fs::rename(&kept, &logs).unwrap();
    let segments = scene.segments();
    let (damaged, missing) = (&segments[1], &segments[2]);
    let good = fs::read(damaged).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(damaged, &bad).unwrap();
    let to = scene.site.root().join("never");
    let late = scene.states.iter().map(|one| one.time).max().unwrap().to_string();
    let restore = ["restore", "guestbook", "--at", &late, "--to", to.to_str().unwrap()];
    scene.site.run(restore).expect_status(1).expect_text("segment 2 of epoch").expect_text("SHA-256");
    assert!(!to.exists());
    fs::write(damaged, &good).unwrap();

    // A segment that is gone is a hole, with the moments around it.
    fs::remove_file(missing).unwrap();
    scene.site.run(["coverage"]).expect_status(1).expect_text("segment 3 of epoch").expect_text("is missing");
    let refused = scene.site.run(restore);
    refused.expect_status(1).expect_text("a part of the log is missing").expect_text("segment 3");
    assert!(refused.err().contains("the last moment before that can be restored"), "{}", refused.err());
    assert!(!to.exists());
    let picture = scene.site.root().join("coverage.svg");
    scene.site.run(["coverage", "guestbook", "--svg", picture.to_str().unwrap()]).expect_status(1);
    assert!(fs::read_to_string(&picture).unwrap().starts_with("<svg"));
}

#[test]
fn a_copy_by_mariadb_backup_is_a_base_by_gtid_and_in_place() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut scene = Scene::on("ext4");
    scene.archived_load(16, &mut random);
    let one = &scene.states[random.random_range(0..scene.states.len())];
    scene.restored(&["--at-gtid", &one.gtid], &one.state);

    let time = scene.moment(&mut random);
    fs::write(scene.site.uploads().join("file"), "spoilt").unwrap();
    scene.server.stop();
    let restore = ["restore", "guestbook", "--at", &time.to_string(), "--in-place", "--yes"];
    scene.site.run(restore).expect_status(0).expect_text("stands at");
    scene.server.start();
    assert_eq!(scene.server.ask(STATE).unwrap(), scene.expected(time));
    assert_eq!(fs::read_to_string(scene.site.uploads().join("file")).unwrap(), "as in the backup");
}
