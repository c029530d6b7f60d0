//! How long `restore --at-position` replays binary logs, beside the vendor's two programs in a pipe by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use testkit::server::{PrivateServer, Volume, wait_until};

use super::{
    figures::{cell, median},
    log::{Archiver, Bench, SIZES, place},
    options::Options,
    page,
};

/// So many files of log.
const LOG_FILES: u64 = 4;
/// What is replayed once nothing has to survive a crash before the end.
const NOT_FLUSHED: &str = "--innodb-flush-log-at-trx-commit=0";

/// Measures on every filesystem and size.
pub fn run(options: &Options) {
    for filesystem in &options.filesystems {
        for &gigabytes in &options.sizes {
            println!("== {filesystem}, {gigabytes} GB, {} MB of log", options.megabytes);
            let row = one(options, filesystem, gigabytes);
            println!("{}", row.join(" | "));
            page::update(options, &page::REPLAY, vec![row]);
        }
    }
}

/// Seconds of the two programs alone, and of everything.
#[derive(Clone, Copy)]
struct Took {
    replay: f64,
    all: f64,
}

fn one(options: &Options, filesystem: &str, gigabytes: f64) -> Vec<String> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gigabytes of tests")]
    let bytes = (gigabytes * 1e9) as u64;
    let volume =
        Volume::new(filesystem, 5 * bytes + 4 * options.megabytes * 1_000_000 + (8 << 30), &options.dir);
    let scene = Scene::new(options, &volume.directory("all"), bytes);
    let mut took: [Vec<Took>; 3] = Default::default();
    for number in 0..options.runs {
        println!("-- run {number} begins");
        for turn in 0..3 {
            let which = (number + turn) % 3;
            took[which].push(match which {
                0 => scene.by_hand(&[]),
                1 => scene.by_hand(&[NOT_FLUSHED]),
                _ => scene.stillpoint(),
            });
            let Some(last) = took[which].last() else { continue };
            println!("{}: replay {:.1} s, in all {:.1} s", NAMES[which], last.replay, last.all);
        }
        println!("-- run {number} ended");
        thread::sleep(Duration::from_secs(1));
    }
    let replays = |which: usize| took[which].iter().map(|took| took.replay).collect::<Vec<f64>>();
    let all = |which: usize| median(&took[which].iter().map(|took| took.all).collect::<Vec<f64>>());
    let ratio = |which: usize| {
        let pairs = replays(which).into_iter().zip(replays(2));
        format!("{:.2}", median(&pairs.map(|(hand, ours)| hand / ours).collect::<Vec<f64>>()))
    };
    vec![
        filesystem.to_owned(),
        gigabytes.to_string(),
        options.megabytes.to_string(),
        options.runs.to_string(),
        cell(median(&replays(0))),
        cell(median(&replays(1))),
        cell(median(&replays(2))),
        ratio(0),
        ratio(1),
        cell(all(0)),
        cell(all(1)),
        cell(all(2)),
        page::measured(),
    ]
}

const NAMES: [&str; 3] = ["by hand", "by hand, not flushed", "stillpoint"];

/// A backup, the logs after it, and what the tables are at their end.
struct Scene {
    bench: Bench,
    logs: Vec<PathBuf>,
    start: u64,
    end: String,
    tables: Vec<String>,
}

impl Scene {
    fn new(options: &Options, all: &Path, bytes: u64) -> Self {
        let size = format!("--max-binlog-size={}", options.megabytes * 1_000_000 / LOG_FILES);
        // Only to make the logs sooner.
        let mut bench = Bench::new(options, all, bytes, &[&size, NOT_FLUSHED]);
        bench.server.run(["FLUSH BINARY LOGS"]);
        let from = place(&bench.server);
        bench.stillpoint(&["backup"]);
        let load = bench.tables.start(&bench.server, options.threads, 0, Duration::from_secs(86_400));
        let enough = || written(&bench.server, from.0) >= options.megabytes * 1_000_000;
        assert!(wait_until(Duration::from_secs(7200), enough).is_some(), "the load is too slow");
        drop(load);
        let at = || place(&bench.server);
        let is_quiet = || {
            let before = at();
            thread::sleep(Duration::from_millis(500));
            at() == before
        };
        assert!(wait_until(Duration::from_secs(60), is_quiet).is_some(), "it goes on");
        let archiver = Archiver::start(&bench);
        archiver.wait_for(at());
        drop(archiver);
        let end = at();
        let tables = contents(&bench.server, bench.tables.tables);
        let name = |number| format!("binlog.{number:06}");
        let logs = (from.0..=end.0).map(|number| bench.server.datadir().join(name(number))).collect();
        bench.server.stop();
        Self { bench, logs, start: from.1, end: format!("{}:{}", name(end.0), end.1), tables }
    }

    /// The copy in a restored directory.
    fn copy(&self, to: &Path) -> PathBuf {
        to.join(self.bench.server.datadir().strip_prefix("/").unwrap_or(to))
    }

    fn by_hand(&self, more: &[&str]) -> Took {
        let (to, begun) = (self.fresh(), Instant::now());
        self.bench.stillpoint(&["restore", "shop", "--to", &to.to_string_lossy()]);
        let mut builder = PrivateServer::builder().copy_at(self.copy(&to));
        for option in SIZES.iter().chain(more) {
            builder = builder.option(*option);
        }
        let mut server = builder.start();
        let started = Instant::now();
        let mut reader = Command::new("mariadb-binlog");
        reader.args(["--no-defaults", "--disable-log-bin", &format!("--start-position={}", self.start)]);
        let mut reader = reader.args(&self.logs).stdout(Stdio::piped()).spawn().expect("mariadb-binlog");
        let mut client = Command::new("mariadb");
        client.args(["--no-defaults", "--user=root", "--binary-mode", "--max-allowed-packet=1G"]);
        client.arg(format!("--socket={}", server.socket().display()));
        let applied = client.stdin(reader.stdout.take().expect("its output")).status().expect("mariadb");
        assert!(applied.success() && reader.wait().expect("mariadb-binlog").success(), "it is replayed");
        let replay = started.elapsed().as_secs_f64();
        server.stop();
        let took = Took { replay, all: begun.elapsed().as_secs_f64() };
        self.compare(&to);
        took
    }

    fn stillpoint(&self) -> Took {
        let (to, begun) = (self.fresh(), Instant::now());
        let to_text = to.to_string_lossy();
        let done = self.bench.stillpoint(&["restore", "shop", "--at-position", &self.end, "--to", &to_text]);
        let all = begun.elapsed().as_secs_f64();
        let said = done.to_string();
        let replay =
            said.split_once("replayed in ").and_then(|(_, rest)| rest.split_once(" s")?.0.parse().ok());
        self.compare(&to);
        Took { replay: replay.unwrap_or_else(|| panic!("no time of the replay in {said}")), all }
    }

    /// No figure counts whose tables are not the original's.
    fn compare(&self, to: &Path) {
        let copy = PrivateServer::builder().copy_at(self.copy(to)).start();
        assert!(contents(&copy, self.bench.tables.tables) == self.tables, "the tables differ");
        drop(copy);
        fs::remove_dir_all(to).expect("it can be removed");
    }

    fn fresh(&self) -> PathBuf {
        let to = self.bench.root.join("restored");
        let _ = fs::remove_dir_all(&to);
        rustix::fs::sync();
        to
    }
}

impl Bench {
    /// Runs the program to its end; its standard output as JSON.
    fn stillpoint(&self, arguments: &[&str]) -> Value {
        let mut command = self.command(&["--json"]);
        let output = command.args(arguments).stdout(Stdio::piped()).output().expect("the program starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {}\n{told}", output.status);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

/// Bytes of log from this file on.
fn written(server: &PrivateServer, from: u64) -> u64 {
    let files = fs::read_dir(server.datadir()).expect("its directory").flatten();
    let is_log = |entry: &fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("binlog.").and_then(|number| number.parse::<u64>().ok());
        number.is_some_and(|number| number >= from)
    };
    files.filter(is_log).filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

fn contents(server: &PrivateServer, tables: u32) -> Vec<String> {
    use mysql::prelude::Queryable;
    let mut open = server.connect();
    let sum = |number| format!("CHECKSUM TABLE sbtest.sbtest{number}");
    let row = |number| open.query_first::<(String, Option<u64>), _>(sum(number)).expect("it answers");
    (1..=tables).map(row).map(|row| format!("{row:?}")).collect()
}
