//! What `stillpoint log` costs a server under load, and how long after a commit it has it on disk.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use jiff::Timestamp;
use mysql::prelude::Queryable;
use serde_json::Value;
use testkit::server::{PrivateServer, Sysbench, Volume};

use super::{
    figures::{cell, median},
    options::Options,
    page,
};

/// One run of a pair.
const RUN: Duration = Duration::from_secs(8);
/// Before a run is counted.
const WARM: Duration = Duration::from_secs(2);
/// Between two commits of the client that looks.
const PACE: Duration = Duration::from_millis(50);

/// As a server of this size would have it.
pub const SIZES: [&str; 2] = ["--innodb-buffer-pool-size=512M", "--innodb-log-file-size=256M"];

/// A place in the binary log: number of its file, and offset.
pub type Place = (u64, u64);

/// Measures on every filesystem and size.
pub fn run(options: &Options) {
    for filesystem in &options.filesystems {
        for &gigabytes in &options.sizes {
            println!("== {filesystem}, {gigabytes} GB");
            let row = one(options, filesystem, gigabytes);
            println!("{}", row.join(" | "));
            page::update(options, &page::LOG, vec![row]);
        }
    }
}

/// A server with sysbench's tables, and an inventory for it.
pub struct Bench {
    pub server: PrivateServer,
    pub tables: Sysbench,
    pub root: PathBuf,
    program: PathBuf,
    threads: u32,
}

fn one(options: &Options, filesystem: &str, gigabytes: f64) -> Vec<String> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gigabytes of tests")]
    let bytes = (gigabytes * 1e9) as u64;
    let volume = Volume::new(filesystem, 2 * bytes + (8 << 30), &options.dir);
    let bench = Bench::new(options, &volume.directory("all"), bytes, &["--sync-binlog=1"]);
    let (mut without, mut with, mut slower) = (vec![], vec![], vec![]);
    bench.rate(false);
    for number in 0..options.runs {
        // Whoever is first finds the server as the one before left it.
        let first = bench.rate(number % 2 == 1);
        let second = bench.rate(number % 2 == 0);
        let (off, on) = if number % 2 == 0 { (first, second) } else { (second, first) };
        println!("{off:.0} transactions/s without, {on:.0} with");
        without.push(off);
        with.push(on);
        slower.push((1.0 - on / off) * 100.0);
    }
    let mut lags = bench.lags(median(&without) * 0.7, RUN * 2 * u32::try_from(options.runs).unwrap_or(1));
    lags.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let percentile = |p: f64| lags.get(((lags.len() as f64 - 1.0) * p) as usize).copied().unwrap_or(f64::NAN);
    vec![
        filesystem.to_owned(),
        gigabytes.to_string(),
        options.runs.to_string(),
        cell(median(&without)),
        cell(median(&with)),
        cell(median(&slower)),
        cell(median(&lags)),
        cell(percentile(0.99)),
        cell(percentile(1.0)),
        lags.len().to_string(),
        page::measured(),
    ]
}

impl Bench {
    pub fn new(options: &Options, all: &Path, bytes: u64, more: &[&str]) -> Self {
        let mut builder = PrivateServer::builder().directory(all.join("server"));
        for option in SIZES.iter().chain(more) {
            builder = builder.option(*option);
        }
        let server = builder.start();
        let tables = Sysbench::sized(options.files, bytes);
        println!("making {} tables of {} rows", tables.tables, tables.rows);
        tables.prepare(&server);
        server.run(["CREATE DATABASE probe", "CREATE TABLE probe.t (n BIGINT PRIMARY KEY AUTO_INCREMENT)"]);
        let program = options.program.canonicalize().expect("the program is built");
        let bench = Self { server, tables, root: all.join("site"), program, threads: options.threads };
        fs::create_dir_all(&bench.root).expect("a directory");
        let text = format!(
            "server = \"bench\"\npartition = \"{}\"\npassword_file = \"{}\"\n[[application]]\nname = \"shop\"\n\
             relpath = \"bench/shop\"\n[[application.database]]\nengine = \"mariadb\"\nsocket = \"{}\"\nuser = \"root\"\n",
            bench.root.join("backup").display(),
            bench.root.join("password").display(),
            bench.server.socket().display()
        );
        private(&bench.root.join("stillpoint.toml"), &text);
        private(&bench.root.join("password"), "bench\n");
        assert!(bench.command(&["init"]).status().expect("the program starts").success());
        bench
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.root.join("stillpoint.toml")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Transactions a second of a load that goes as fast as it can.
    fn rate(&self, archived: bool) -> f64 {
        let archiver = archived.then(|| Archiver::start(self));
        if let Some(archiver) = &archiver {
            archiver.wait_for(place(&self.server));
        }
        let load = self.tables.start(&self.server, self.threads, 0, Duration::from_secs(3600));
        thread::sleep(WARM);
        let before = committed(&self.server);
        let begun = std::time::Instant::now();
        thread::sleep(RUN);
        let (after, took) = (committed(&self.server), begun.elapsed());
        drop(load);
        #[allow(clippy::cast_precision_loss, reason = "a count of transactions")]
        let rate = (after - before) as f64 / took.as_secs_f64();
        rate
    }

    /// From the return of a commit until it is on disk in the archive, milliseconds.
    fn lags(&self, rate: f64, length: Duration) -> Vec<f64> {
        let archiver = Archiver::start(self);
        archiver.wait_for(place(&self.server));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
        let load = self.tables.start(&self.server, self.threads, rate as u32, Duration::from_secs(3600));
        thread::sleep(WARM);
        let mut connection = self.server.connect();
        let mut commits = VecDeque::new();
        let begun = std::time::Instant::now();
        while begun.elapsed() < length {
            connection.query_drop("INSERT INTO probe.t VALUES ()").expect("a commit");
            let at = Timestamp::now();
            // Not earlier than the commit, so the lag is not too small.
            commits.push_back((place_on(&mut connection), at));
            thread::sleep(PACE);
        }
        drop(load);
        archiver.wait_for(place(&self.server));
        let synced = archiver.synced.lock().expect("no panic under it").clone();
        let lag = |(place, at): (Place, Timestamp)| {
            let (_, reached) = synced.iter().find(|(synced, _)| *synced >= place)?;
            Some(reached.duration_since(at).as_secs_f64().max(0.0) * 1000.0)
        };
        commits.into_iter().map(|commit| lag(commit).expect("every commit arrives")).collect()
    }
}

/// The program, and what it says of how far it is.
pub struct Archiver {
    child: Child,
    synced: Arc<Mutex<Vec<(Place, Timestamp)>>>,
    ended: Arc<AtomicBool>,
}

impl Archiver {
    pub fn start(bench: &Bench) -> Self {
        let mut command = bench.command(&["--json", "--verbose", "log", "shop"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let (synced, ended) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (into, over) = (Arc::clone(&synced), Arc::clone(&ended));
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let said: Value = serde_json::from_str(&line).unwrap_or_default();
                for key in ["synced", "on"] {
                    if let Some(place) = place_of(&said[key]) {
                        let at = said["at"].as_str().and_then(|at| at.parse().ok());
                        into.lock()
                            .expect("no panic under it")
                            .push((place, at.unwrap_or(Timestamp::UNIX_EPOCH)));
                    }
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        Self { child, synced, ended }
    }

    pub fn wait_for(&self, place: Place) {
        let reached =
            || self.synced.lock().expect("no panic under it").last().is_some_and(|(at, _)| *at >= place);
        let found = testkit::server::wait_until(Duration::from_secs(300), || {
            assert!(!self.ended.load(Ordering::Relaxed), "the archive ended");
            reached()
        });
        assert!(found.is_some(), "the archive does not catch up");
    }
}

impl Drop for Archiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn place_of(said: &Value) -> Option<Place> {
    Some((number(said["file"].as_str()?), said["offset"].as_u64()?))
}

fn number(file: &str) -> u64 {
    file.rsplit('.').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

pub fn place(server: &PrivateServer) -> Place {
    place_on(&mut server.connect())
}

fn place_on(connection: &mut mysql::Conn) -> Place {
    let row: (String, u64, String, String) =
        connection.query_first("SHOW MASTER STATUS").expect("it answers").expect("it has a log");
    (number(&row.0), row.1)
}

fn committed(server: &PrivateServer) -> u64 {
    let row: (String, u64) = server
        .connect()
        .query_first("SHOW GLOBAL STATUS LIKE 'Com_commit'")
        .expect("it answers")
        .expect("it counts");
    row.1
}

fn private(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.expect("a file"), text.as_bytes()).expect("written");
}
