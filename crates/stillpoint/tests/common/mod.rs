//! A guestbook under load, an inventory for it, and the built program: what the tests of the whole share.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod log;

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// The password of the repositories that the tests make: of the form that `init` makes, so that each run of the program is not
/// 0.3 s of stretching.
pub const PASSWORD: &str = "0N1YF-0RTES-TSN0S-ECRET-STAND-S1NTH-1STRE-AF9HM";
/// A password as a person chooses it.
pub const PERSONAL: &str = "only-for-tests-k3jq-8z2m";

/// A number from the environment: the full counts of `scripts/prove`, or fewer.
pub fn count(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect(name))
}

/// The seed of this run, printed so that it can be replayed with `STILLPOINT_SEED`.
#[allow(clippy::print_stdout, reason = "a seed that nobody sees cannot be replayed")]
pub fn seed() -> u64 {
    let seed = count("STILLPOINT_SEED", u64::from(std::process::id()));
    println!("STILLPOINT_SEED={seed}");
    seed
}

/// One application in a directory of its own, with an inventory, a key and a repository.
pub struct Site {
    root: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl Site {
    /// A site in a temporary directory below the build directory.
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
        let mut site = Self::at(dir.path());
        site._dir = Some(dir);
        site
    }

    /// A site in this directory, which must exist.
    pub fn at(root: &Path) -> Self {
        fs::create_dir_all(root.join("app/uploads")).expect("the application's directory");
        Self { root: root.to_path_buf(), _dir: None }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn app(&self) -> PathBuf {
        self.root.join("app")
    }

    pub fn uploads(&self) -> PathBuf {
        self.root.join("app/uploads")
    }

    pub fn database(&self) -> PathBuf {
        self.root.join("app/guestbook.sqlite3")
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("stillpoint.toml")
    }

    pub fn password_file(&self) -> PathBuf {
        self.root.join("password")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.root.join("app.pid")
    }

    pub fn partition(&self) -> PathBuf {
        self.root.join("backup")
    }

    pub fn repository(&self) -> PathBuf {
        self.partition().join("local/host/test/guestbook/repository")
    }

    /// Writes inventory and password, and makes the repository.
    pub fn init(&self, application: &str) {
        self.init_with(PASSWORD, application);
    }

    /// The same with this password.
    pub fn init_with(&self, password: &str, application: &str) {
        let text = format!(
            "server = \"testhost\"\npartition = \"{}\"\npassword_file = \"{}\"\n\n[defaults]\nstall_budget = \"2s\"\nkeep = {{ last = 100000 }}\n\n\
             [[application]]\nname = \"guestbook\"\nrelpath = \"test/guestbook\"\n{application}",
            self.partition().display(),
            self.password_file().display()
        );
        write_private(&self.config(), text.as_bytes());
        write_private(&self.password_file(), password.as_bytes());
        self.run(["init"]).expect_status(0);
    }

    /// The sources of the guestbook as an inventory names them: directory and database.
    pub fn sources(&self) -> String {
        format!(
            "[[application.directory]]\npath = \"{}\"\n[[application.database]]\nengine = \"sqlite\"\npath = \"{}\"\n",
            self.app().display(),
            self.database().display()
        )
    }

    /// The same with its writers, to be held while pinning.
    pub fn sources_and_process(&self) -> String {
        format!("{}[application.process]\npid_file = \"{}\"\n", self.sources(), self.pid_file().display())
    }

    /// The program with this site's inventory.
    pub fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillpoint"));
        command.arg("--config").arg(self.config()).args(arguments);
        command
    }

    /// Runs the program to its end.
    pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Ran {
        Ran(self.command(arguments).stdin(Stdio::null()).output().expect("the program starts"))
    }

    /// Runs restic on the repository to its end.
    pub fn restic<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Ran {
        let mut command = Command::new("restic");
        command.arg("--no-cache").arg("-r").arg(self.repository()).arg("-p").arg(self.password_file());
        Ran(command.args(arguments).output().expect("restic is installed"))
    }

    /// Ids of all listed backups, oldest first.
    pub fn backups(&self) -> Vec<String> {
        let listed = self.run(["list", "guestbook", "--json"]);
        listed.expect_status(0);
        ids(&listed.json())
    }

    /// Names of pins, snapshots and staging directories anywhere below the site. Not unfinished files of the
    /// repository, which `prune` removes.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        find_leftovers(&self.root, &mut found);
        found
    }
}

/// All values named `backup` in a listing, in order.
fn ids(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect(value, &mut found);
    found
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(id) if name == "backup" && id.len() == 64 => found.push(id.clone()),
                    _ => collect(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

fn find_leftovers(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".stillpoint-") && !name.starts_with(".stillpoint-tmp-") {
            found.push(entry.path());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_leftovers(&entry.path(), found);
        }
    }
}

/// Writes a file that only its owner can read.
pub fn write_private(path: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .expect("a new file");
    file.write_all(bytes).expect("written");
}

/// A program that has ended.
pub struct Ran(pub Output);

impl Ran {
    pub fn status(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.out(), self.err()))
    }

    /// Fails the test unless the program ended with this status.
    #[track_caller]
    pub fn expect_status(&self, status: i32) -> &Self {
        assert_eq!(self.status(), Some(status), "stdout: {}\nstderr: {}", self.out(), self.err());
        self
    }

    /// Fails the test unless one of the outputs has this text.
    #[track_caller]
    pub fn expect_text(&self, text: &str) -> &Self {
        assert!(
            self.out().contains(text) || self.err().contains(text),
            "no {text:?} in: {}\n{}",
            self.out(),
            self.err()
        );
        self
    }
}

/// Writer processes under one supervisor, which is named in the pid file.
pub struct Load {
    supervisor: Child,
    database: PathBuf,
}

impl Load {
    /// Starts so many writers on the guestbook of this site.
    pub fn start(site: &Site, writers: u32, seed: u64) -> Self {
        let program = env!("CARGO_BIN_EXE_stillpoint");
        make_guestbook(&site.database());
        let script: String = (1..=writers)
            .map(|number| {
                let app = site.app();
                format!(
                    "exec 3<&0; {program} __helper guestbook-writer {} {number} {seed} <&3 & ",
                    app.display()
                )
            })
            .collect();
        let supervisor = Command::new("sh")
            .arg("-c")
            .arg(format!("{script} wait"))
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        fs::write(site.pid_file(), supervisor.id().to_string()).expect("the pid file");
        let load = Self { supervisor, database: site.database() };
        load.wait_for_progress(Duration::from_secs(10));
        load
    }

    /// Waits until the writers have written again, and tells how long that took.
    pub fn wait_for_progress(&self, at_most: Duration) -> Duration {
        let start = Instant::now();
        let before = self.newest();
        while self.newest() == before {
            assert!(start.elapsed() < at_most, "the writers do not write: {before:?} for {at_most:?}");
            thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }

    fn newest(&self) -> Option<String> {
        let open = rusqlite::Connection::open(&self.database).ok()?;
        open.busy_timeout(Duration::from_millis(200)).ok()?;
        open.query_row(
            "SELECT max(upload) || count(*) || sum(length(sha256)) || max(sha256) FROM entry",
            [],
            |row| row.get(0),
        )
        .ok()
    }

    /// Process ids of supervisor and writers.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.supervisor.id()];
        found.extend(children(self.supervisor.id()));
        found
    }

    /// Those of our processes that are stopped or traced.
    pub fn held(&self) -> Vec<(u32, char)> {
        self.processes()
            .into_iter()
            .filter_map(|pid| Some((pid, state(pid)?)))
            .filter(|(_, state)| matches!(state, 'T' | 't'))
            .collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // The writers end with the pipe; whatever does not is killed with its group.
        for _ in 0..200 {
            if self.supervisor.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = Command::new("kill").arg("-9").arg(format!("-{}", self.supervisor.id())).status();
        let _ = self.supervisor.wait();
    }
}

/// The children of a process: field 4 of `/proc/[pid]/stat`, proc(5).
pub fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    numbers
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after = stat.rsplit(')').next().unwrap_or("").split_whitespace().nth(1).map(str::to_owned);
            after.and_then(|ppid| ppid.parse().ok()) == Some(parent)
        })
        .collect()
}

/// The state letter of a process, proc(5).
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// The guestbook's database, as the demo makes it.
pub fn make_guestbook(database: &Path) {
    let open = rusqlite::Connection::open(database).expect("a new database");
    open.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    open.execute_batch(
        "CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, writer INTEGER NOT NULL, message TEXT NOT NULL,
         upload TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL);",
    )
    .expect("a table");
}

/// Rows of a restored guestbook that lack their file or whose file has other bytes.
pub fn rows_without_file(app: &Path) -> Vec<String> {
    use sha2::{Digest, Sha256};
    let open =
        rusqlite::Connection::open(app.join("guestbook.sqlite3")).expect("the restored database opens");
    let whole: String = open.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer");
    assert_eq!(whole, "ok");
    let mut statement = open.prepare("SELECT upload, sha256 FROM entry").expect("the table is there");
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .expect("rows");
    rows.map(|row| row.expect("a row"))
        .filter(|(upload, expected)| {
            fs::read(app.join("uploads").join(upload))
                .map(|bytes| format!("{:x}", Sha256::digest(bytes)))
                .ok()
                .as_ref()
                != Some(expected)
        })
        .map(|(upload, _)| upload)
        .collect()
}

/// Where a path stands in a tree restored below `to`.
pub fn below(to: &Path, original: &Path) -> PathBuf {
    to.join(original.strip_prefix("/").expect("an absolute path"))
}

/// Starts a command in a process group of its own.
pub fn start(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("it starts")
}

/// A filesystem of its own, mounted until dropped.
pub struct Mounted {
    pub at: PathBuf,
    pub image: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    pub fn new(kind: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
        let (image, at) = (dir.path().join("image"), dir.path().join("mnt"));
        fs::create_dir(&at).expect("a mount point");
        if kind == "tmpfs" {
            run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=600m", "none"]).arg(&at));
        } else {
            fs::File::create(&image).expect("an image").set_len(700 << 20).expect("its size");
            run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        }
        Self { at, image, _dir: dir }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[track_caller]
pub fn run(command: &mut Command) {
    let output = command.output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
