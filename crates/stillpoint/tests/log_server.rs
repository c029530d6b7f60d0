//! `stillpoint log` following a real MariaDB server: archive and server are killed again and again under load, and at the end the
//! segments, put together, are the server's own files. As root.

#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::Cursor,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use common::{
    Site, count,
    log::{self, BinlogTail, end},
    seed, write_private,
};
use engines::server::binlog::{MAGIC, Transactions};
use model::{
    id::SourceId,
    logs::{Beginning, Epoch, HoleCause, LogKind, LogPlace, LogStatus},
};
use mysql::{Conn, Opts, prelude::Queryable};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use testkit::server::PrivateServer;
use vault::logs::SourceLog;

struct Scene {
    site: Site,
    server: PrivateServer,
    source: SourceId,
}

impl Scene {
    fn new(options: &[&str], archive: &str) -> Self {
        let mut builder = PrivateServer::builder().option("--sync-binlog=1");
        for option in options {
            builder = builder.option(*option);
        }
        let server = builder.start();
        let socket = server.socket().display().to_string();
        let access = format!("socket = \"{socket}\"\nuser = \"root\"\n{archive}\n");
        Self::with(server, SourceId::new("mariadb", socket), &access)
    }

    fn with(server: PrivateServer, source: SourceId, access: &str) -> Self {
        server.run(["CREATE DATABASE app", "CREATE TABLE app.t (n BIGINT PRIMARY KEY, v MEDIUMBLOB)"]);
        let site = Site::new();
        site.init(&format!("[[application.database]]\nengine = \"mariadb\"\n{access}"));
        Self { site, server, source }
    }

    fn archive(&self) -> std::process::Child {
        log::follow(&self.site)
    }

    fn log(&self) -> SourceLog {
        let catalogue = log::spool(&self.site).catalogue(&|_: LogKind| Box::new(BinlogTail)).unwrap();
        catalogue.of(&self.source).unwrap().clone()
    }

    fn status(&self) -> Option<LogStatus> {
        log::status(&self.site, &self.source)
    }

    fn wait_until_caught_up(&self) -> LogStatus {
        log::wait_until_caught_up(&self.site, &self.source)
    }

    /// The server's files, by name.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let index = fs::read_to_string(self.server.datadir().join("binlog.index")).unwrap();
        let names = index.lines().map(|line| line.trim_start_matches("./").to_owned());
        names.map(|name| (name.clone(), fs::read(self.server.datadir().join(name)).unwrap())).collect()
    }
}

/// Clients that insert rows until they are stopped; they connect again after a failure.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(opts: &Opts, seed: u64) -> Self {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |number: u64| {
            let (stop, next, opts) = (stop.clone(), next.clone(), opts.clone());
            thread::spawn(move || {
                let mut random = StdRng::seed_from_u64(seed + number);
                let mut conn: Option<Conn> = None;
                while !stop.load(Ordering::Relaxed) {
                    let Some(open) = &mut conn else {
                        conn = Conn::new(opts.clone()).ok();
                        thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let size =
                        if random.random_range(0..50) == 0 { 200_000 } else { random.random_range(1..500) };
                    let rows = random.random_range(1..4u64);
                    let sql =
                        |row| format!("INSERT INTO app.t VALUES ({}, repeat('x', {size}))", n * 10 + row);
                    let all = (0..rows).map(sql).collect::<Vec<_>>();
                    let ended = open.query_drop("START TRANSACTION").and_then(|()| {
                        all.iter()
                            .try_for_each(|sql| open.query_drop(sql))
                            .and_then(|()| open.query_drop("COMMIT"))
                    });
                    if ended.is_err() {
                        conn = None;
                    }
                }
            })
        };
        let clients = (0..3).map(client).collect();
        Self { stop, clients }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

/// What the segments say each file of the server holds from its byte 4 on. Every segment begins where the one before ended.
fn together(log: &SourceLog, epochs: &[Epoch]) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for segment in epochs.iter().flat_map(|epoch| &epoch.segments) {
        let LogPlace::Binlog(from) = &segment.from else { panic!("{segment:?}") };
        let path = log.segment_path(&segment.epoch, segment.number).unwrap();
        let bytes = fs::read(path).unwrap();
        let bytes = &bytes[usize::try_from(segment.lead).unwrap()..usize::try_from(segment.bytes.0).unwrap()];
        let file = files.entry(from.file.clone()).or_insert_with(|| MAGIC.to_vec());
        assert_eq!(file.len() as u64, from.offset, "segment {} of {}", segment.number, from.file);
        file.extend_from_slice(bytes);
    }
    files
}

/// Bytes with the flags of the format description left out: the server clears `LOG_EVENT_BINLOG_IN_USE_F` when it sends it.
fn without_flags(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[4 + 17..4 + 19].fill(0);
    bytes
}

fn transactions(bytes: &[u8]) -> u64 {
    let mut all = Transactions::open(Cursor::new(bytes)).unwrap();
    let mut found = 0;
    while all.next_with(&mut |_, _, _| ()).unwrap().is_some() {
        found += 1;
    }
    found
}

#[test]
fn nothing_is_lost_and_nothing_is_there_twice_whoever_is_killed() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut scene = Scene::new(&["--max-binlog-size=400K"], "archive = { segment = \"1MiB\" }");
    let load = Load::start(&scene.server.opts(), seed);
    let (kills, server_kills) = (count("STILLPOINT_LOG_KILLS", 8), count("STILLPOINT_LOG_SERVER_KILLS", 2));
    let each = (kills / server_kills.max(1)).max(1);
    for kill in 1..=kills {
        let archive = scene.archive();
        thread::sleep(Duration::from_millis(random.random_range(100..1500)));
        end(archive, Signal::KILL);
        if kill % each == 0 {
            let archive = scene.archive();
            thread::sleep(Duration::from_millis(random.random_range(100..1000)));
            scene.server.kill();
            scene.server.start();
            end(archive, Signal::KILL);
        }
    }
    let archive = scene.archive();
    thread::sleep(Duration::from_secs(1));
    load.end();
    scene.wait_until_caught_up();
    end(archive, Signal::INT);

    let log = scene.log();
    for epoch in &log.epochs {
        // A file that a killed server left ends within an event, and cannot be read on: then the GTIDs say that nothing is missing.
        assert!(!matches!(epoch.record.beginning, Beginning::Hole { .. }), "{:?}", epoch.record);
        assert!(epoch.damaged.is_empty(), "{:?}", epoch.damaged);
    }
    let (archived, files) = (together(&log, &log.epochs), scene.files());
    let (mut bytes, mut all) = (0, 0);
    for (name, file) in &files {
        let held = archived.get(name).unwrap_or_else(|| panic!("{name} is not in the archive"));
        assert!(held.len() <= file.len(), "{name}: {} bytes in the archive, {} here", held.len(), file.len());
        // A server that was killed leaves the beginning of an event, which nobody ever gets.
        assert!(without_flags(held) == without_flags(&file[..held.len()]), "{name} differs");
        assert_eq!(transactions(held), transactions(file), "{name}");
        bytes += held.len();
        all += transactions(held);
    }
    let segments = log.epochs.iter().flat_map(|epoch| &epoch.segments);
    let counted: u64 = segments.map(|segment| segment.transactions).sum();
    assert_eq!(counted, all, "counted in the sidecars, and there");
    println!(
        "{kills} + {server_kills} kills: {all} transactions, {bytes} bytes in {} files, seed {seed}",
        files.len()
    );
}

#[test]
fn what_the_server_removed_or_began_anew_is_a_hole_with_its_name() {
    let scene = Scene::new(&[], "");
    let archive = scene.archive();
    scene.wait_until_caught_up();
    end(archive, Signal::INT);
    scene.server.run([
        "INSERT INTO app.t VALUES (1, 'x')",
        "FLUSH BINARY LOGS",
        "INSERT INTO app.t VALUES (2, 'x')",
        "FLUSH BINARY LOGS",
        "PURGE BINARY LOGS TO 'binlog.000003'",
    ]);
    let archive = scene.archive();
    scene.wait_until_caught_up();
    end(archive, Signal::INT);
    scene.site.run(["coverage"]).expect_status(1).expect_text("removed its logs before they were read");

    scene.server.run(["RESET MASTER", "INSERT INTO app.t VALUES (3, 'x')"]);
    let archive = scene.archive();
    scene.wait_until_caught_up();
    end(archive, Signal::INT);
    assert_eq!(scene.log().epochs.len(), 3);
    let (files, log) = (scene.files(), scene.log());
    let archived = together(&log, &log.epochs[2..]);
    assert_eq!(transactions(&archived["binlog.000001"]), transactions(&files[0].1));
}

#[test]
fn a_server_that_lost_what_the_archive_has_is_told_as_diverged() {
    let mut scene = Scene::new(&["--sync-binlog=0"], "");
    let archive = scene.archive();
    scene.server.run(["INSERT INTO app.t VALUES (1, 'x')"]);
    scene.wait_until_caught_up();
    let kept = scene.files()[0].1.len() as u64;
    scene.server.run(["INSERT INTO app.t VALUES (2, 'x')", "INSERT INTO app.t VALUES (3, 'x')"]);
    scene.wait_until_caught_up();
    // What a machine that loses power has not written.
    scene.server.kill();
    let file = fs::OpenOptions::new().write(true).open(scene.server.datadir().join("binlog.000001")).unwrap();
    file.set_len(kept).unwrap();
    scene.server.start();
    scene.server.run(["INSERT INTO app.t VALUES (4, 'x')"]);
    scene.wait_until_caught_up();
    end(archive, Signal::INT);
    let log = scene.log();
    let beginning = &log.epochs.last().unwrap().record.beginning;
    assert!(matches!(beginning, Beginning::Hole { cause: HoleCause::Diverged, .. }), "{beginning:?}");
    scene.site.run(["coverage"]).expect_status(1).expect_text("has lost what the archive holds");
}

#[test]
fn an_acknowledged_commit_is_in_the_archive() {
    let options = [
        "--rpl-semi-sync-master-enabled=ON",
        "--rpl-semi-sync-master-wait-point=AFTER_SYNC",
        "--rpl-semi-sync-master-timeout=30000",
    ];
    let scene = Scene::new(&options, "archive = { acknowledge = true }");
    let archive = scene.archive();
    let asked = Instant::now();
    while scene.server.ask("SHOW STATUS LIKE 'Rpl_semi_sync_master_clients'").is_none()
        || !scene.status().is_some_and(|status| status.acknowledging)
    {
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", scene.status());
        thread::sleep(Duration::from_millis(50));
    }
    let mut conn = scene.server.connect();
    for n in 0..20 {
        conn.query_drop(format!("INSERT INTO app.t VALUES ({n}, 'row{n}.')")).unwrap();
        // Not a moment later: the client was told that it is committed.
        let log = scene.log();
        let archived = together(&log, &log.epochs);
        let wanted = format!("row{n}.");
        let is_in = |bytes: &Vec<u8>| bytes.windows(wanted.len()).any(|at| at == wanted.as_bytes());
        assert!(archived.values().any(is_in), "row {n} is not in the archive");
    }
    end(archive, Signal::INT);
}

/// A server elsewhere, whose files are encrypted: its log comes over TLS, in the clear, and goes on in the middle of a file.
#[test]
fn an_encrypted_log_comes_over_tls() {
    let keys = tempfile::tempdir().unwrap();
    let key_file = keys.path().join("keys");
    fs::write(&key_file, format!("1;{}\n", "a7".repeat(32))).unwrap();
    for path in [keys.path(), &key_file] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let server = PrivateServer::builder()
        .option("--plugin-load-add=file_key_management")
        .option(format!("--file-key-management-filename={}", key_file.display()))
        .option("--encrypt-binlog=ON")
        .tls()
        .start();
    server.run([
        "CREATE USER keeper@'%' IDENTIFIED BY 'only for tests' REQUIRE SSL",
        "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO keeper@'%'",
    ]);
    let password = keys.path().join("password");
    write_private(&password, b"only for tests\n");
    let port = server.port().unwrap();
    let access = format!(
        "host = \"localhost\"\nport = {port}\ntls_ca = \"{}\"\nuser = \"keeper\"\npassword_file = \"{}\"\n",
        server.certificate().unwrap().display(),
        password.display()
    );
    let scene = Scene::with(server, SourceId::new("mariadb", format!("localhost:{port}")), &access);
    let archive = scene.archive();
    let insert = |n: u32| format!("INSERT INTO app.t VALUES ({n}, 'row{n}.')");
    scene.wait_until_caught_up();
    scene.server.run((0..50).map(insert));
    scene.wait_until_caught_up();
    end(archive, Signal::KILL);
    scene.server.run((50..60).map(insert));
    let archive = scene.archive();
    scene.wait_until_caught_up();
    scene.server.run((60..70).map(insert).chain(["FLUSH BINARY LOGS".to_owned()]));
    scene.server.run((70..80).map(insert));
    end(archive, Signal::INT);

    let log = scene.log();
    assert_eq!(log.epochs.len(), 1, "{:?}", log.epochs);
    assert!(log.epochs[0].damaged.is_empty());
    let mut said = String::new();
    for segment in &log.epochs[0].segments {
        let path = log.segment_path(&segment.epoch, segment.number).unwrap();
        let read =
            Command::new("mariadb-binlog").args(["--verify-binlog-checksum"]).arg(&path).output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        said.push_str(&String::from_utf8_lossy(&read.stdout));
    }
    for n in 0..80 {
        assert_eq!(said.matches(&format!("'row{n}.'")).count(), 1, "row {n}");
    }
    let encrypted = scene.files();
    let clear = |bytes: &[u8]| bytes.windows(6).any(|at| at == b"'row1.");
    assert!(!encrypted.iter().any(|(_, bytes)| clear(bytes)), "the server's files are encrypted");
}
