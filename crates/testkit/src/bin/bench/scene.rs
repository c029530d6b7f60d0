//! A loaded server of a wanted size and age on a filesystem of its own, and the program under test beside it.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::Value;
use testkit::server::{Latency, PrivateServer, ServerBuilder, Sysbench, SysbenchRun, Workload, age};

use super::options::Options;

/// The account that the program connects as.
const ACCOUNT: &str = "stillpoint";
/// The load runs for a while before anything is measured.
const WARM: Duration = Duration::from_secs(5);
/// What belongs to a cut on both of its sides.
const MARGIN: Duration = Duration::from_millis(500);
/// Between two measurements.
const REST: Duration = Duration::from_secs(3);

/// A server with its tables, its load and an inventory.
pub struct Scene {
    pub server: PrivateServer,
    pub latency: Latency,
    load: Option<SysbenchRun>,
    root: PathBuf,
    program: PathBuf,
}

impl Scene {
    /// `all` is where the server's directories are made, `root` where inventory, repository and other tools' output go; both
    /// on the filesystem that is measured.
    pub fn new(options: &Options, all: &Path, root: PathBuf, gigabytes: f64, nights: u32) -> Self {
        fs::create_dir_all(&root).expect("a directory");
        // As a server of this size would have it.
        let builder = PrivateServer::builder()
            .directory(all.join("server"))
            .option("--innodb-buffer-pool-size=512M")
            .option("--innodb-log-file-size=256M")
            .option("--max-connections=200");
        let mut server = ServerBuilder::start(builder);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gigabytes of tests")]
        let tables = Sysbench::sized(options.files, (gigabytes * 1e9) as u64);
        println!("making {} tables of {} rows", tables.tables, tables.rows);
        tables.prepare(&server);
        server.run([
            format!("CREATE USER {ACCOUNT}@localhost"),
            format!("GRANT ALL ON *.* TO {ACCOUNT}@localhost"),
        ]);
        if nights > 0 {
            server.stop();
            let pages = age(server.datadir(), nights, 5, 1).expect("it ages");
            println!("aged by {nights} nights, {pages} pages");
            server.start();
        }
        let program = options.program.canonicalize().expect("the program is built");
        let latency =
            Latency::start(&server.opts(), Workload::InnoDb, options.clients, Duration::from_millis(2));
        let load = tables.start(&server, options.threads, options.rate, Duration::from_secs(86_400));
        thread::sleep(WARM);
        let scene = Self { server, latency, load: Some(load), root, program };
        scene.init();
        scene
    }

    fn init(&self) {
        let application = format!(
            "[[application]]\nname = \"shop\"\nrelpath = \"bench/shop\"\n[[application.database]]\nengine = \
             \"mariadb\"\nsocket = \"{}\"\nuser = \"{ACCOUNT}\"\n",
            self.server.socket().display()
        );
        let text = format!(
            "server = \"bench\"\npartition = \"{}\"\npassword_file = \"{}\"\n\n[defaults]\nstall_budget = \"10s\"\nkeep = {{ \
             last = 1000 }}\n\n{application}",
            self.root.join("backup").display(),
            self.root.join("password").display()
        );
        private(&self.root.join("stillpoint.toml"), &text);
        private(&self.root.join("password"), "bench\n");
        self.run(&["init"]);
    }

    /// Runs the program to its end; its standard output as JSON.
    pub fn run(&self, arguments: &[&str]) -> Value {
        self.try_run(arguments).unwrap_or_else(|told| panic!("{told}"))
    }

    fn try_run(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.root.join("stillpoint.toml")).args(arguments);
        let output = command.stdin(Stdio::null()).output().expect("the program starts");
        if !output.status.success() {
            return Err(format!("{arguments:?}: {}\n{}", output.status, text(&output)));
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    /// Where a tool may write; empty.
    pub fn output(&self) -> PathBuf {
        let path = self.root.join("output");
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory");
        path
    }

    /// The longest commit between two instants, in milliseconds.
    pub fn longest(&self, from: Instant, until: Instant) -> f64 {
        super::figures::ms(self.latency.longest(from, until))
    }

    /// So many cuts, and one before them for warming up; also how many were given up. More than a quarter of these ends the
    /// run: then something is wrong. `between` is called before each.
    pub fn cuts(&self, count: usize, mut between: impl FnMut(usize)) -> (Vec<Cut>, usize) {
        let (mut cuts, mut given_up) = (vec![], 0);
        let mut number = 0;
        while cuts.len() < count {
            between(number);
            match self.cut() {
                Ok(cut) => {
                    println!(
                        "cut {number}: stall {:.1} ms, longest commit {:.1} ms, {:.1} ms without",
                        cut.stall, cut.with, cut.without
                    );
                    if number > 0 {
                        cuts.push(cut);
                    }
                }
                Err(told) => {
                    println!("cut {number} was given up: {told}");
                    given_up += 1;
                    assert!(given_up <= 1 + count / 4, "too many cuts are given up");
                }
            }
            number += 1;
        }
        (cuts, given_up)
    }

    /// One cut of which nothing is stored.
    fn cut(&self) -> Result<Cut, String> {
        assert!(self.load.is_some(), "there is a load");
        // Enough for the window without a cut.
        thread::sleep(REST);
        let begun = Instant::now();
        let ran = self.try_run(&["--json", "backup", "--rehearse"])?;
        thread::sleep(MARGIN + Duration::from_millis(50));
        let application = &ran["applications"][0];
        let verdict = application["verdict"].as_str().unwrap_or_default();
        assert_eq!(verdict, "consistent", "{application:#}");
        let at = |name: &str| instant(application[name].as_str().unwrap_or_default());
        let (from, until) = (at("frozen_at") - MARGIN, at("thawed_at") + MARGIN);
        let window = until - from;
        let mut quiet = begun - window.min(REST);
        if window > REST {
            // There is no equal window before it: one is made after it.
            thread::sleep(REST);
            quiet = Instant::now();
            thread::sleep(window);
        }
        Ok(Cut {
            stall: application["stall_ms"]["total"].as_f64().unwrap_or(f64::NAN),
            without: self.longest(quiet, quiet + window),
            with: self.longest(from, until),
        })
    }

    /// The number of extents of the tables' files.
    pub fn extents(&self) -> u64 {
        let files = fs::read_dir(self.server.datadir().join("sbtest")).expect("the tables' directory");
        let files = files.flatten().map(|entry| entry.path());
        let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "ibd")).collect();
        let output = Command::new("filefrag").args(&files).output().expect("filefrag");
        let count = |line: &str| line.rsplit(": ").next()?.split(' ').next()?.parse::<u64>().ok();
        text(&output).lines().filter_map(count).sum()
    }
}

/// What one cut cost, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub stall: f64,
    pub without: f64,
    pub with: f64,
}

impl Cut {
    /// How much longer the longest commit was.
    pub fn more(&self) -> f64 {
        self.with - self.without
    }
}

/// Standard output and standard error.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A time of the wall clock as an instant of this process.
fn instant(time: &str) -> Instant {
    let time: Timestamp = time.parse().unwrap_or_else(|_| panic!("{time:?} is no time"));
    let ago = Timestamp::now().duration_since(time);
    Instant::now() - Duration::try_from(ago).expect("it is over")
}

fn private(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.expect("a file"), text.as_bytes()).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("private");
}
