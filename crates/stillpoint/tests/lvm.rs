//! The whole program with a MariaDB server and files on real logical volumes. As a test program on the host this
//! starts itself in a virtual machine by `scripts/in-vm` and runs its cases there. Needs root, MariaDB, restic and the
//! packages named at the head of that script; fails where they are missing.

mod common;
#[path = "../../engines/tests/lvm_support/mod.rs"]
mod lvm_support;

use std::{
    env, fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use common::{PASSWORD, Ran, below, count, write_private};
use lvm_support::{
    Counter, PROGRAM, Rewriter, counted,
    disks::{Group, MIB, Make, Volume, ours_mounted, output},
    eventually, noise,
};
use serde_json::Value;
use testkit::server::{Ledger, LedgerOptions, PrivateServer, ledger_process, verify};

const DISKS: [&str; 2] = ["/dev/vda", "/dev/vdb"];

fn main() -> ExitCode {
    ledger_process();
    lvm_support::run(
        &[
            ("files_on_a_volume_are_pinned_by_its_snapshot", files),
            ("a_server_on_a_volume_is_consistent_with_its_files", server_and_files),
            ("a_snapshot_that_fills_up_makes_the_backup_incomplete", fills_up),
            ("what_a_killed_run_left_is_removed", killed),
            ("only_what_changed_on_a_thin_volume_is_read", changes),
            ("a_thin_pool_that_others_use_is_read_whole", used_by_others),
        ],
        |_, _| None,
        Some(env!("CARGO_BIN_EXE_stillpoint")),
    )
}

/// An inventory with one application, and its repository, outside the volume.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(sources: &str) -> Self {
        let place = Self { dir: tempfile::tempdir().expect("a directory") };
        // A snapshot takes a second to make where the processor is emulated.
        let text = format!(
            "server = \"testhost\"\npartition = \"{0}/backup\"\npassword_file = \"{0}/password\"\n\n[defaults]\n\
             stall_budget = \"30s\"\nkeep = {{ last = 1000 }}\n\n[[application]]\nname = \"shop\"\n\
             relpath = \"test/shop\"\n{sources}",
            place.dir.path().display()
        );
        write_private(&place.dir.path().join("stillpoint.toml"), text.as_bytes());
        write_private(&place.dir.path().join("password"), PASSWORD.as_bytes());
        place.run(["init"]).expect_status(0);
        place
    }

    fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = Command::new(env::var_os(PROGRAM).expect("set by the host"));
        command.arg("--config").arg(self.dir.path().join("stillpoint.toml")).args(arguments);
        command
    }

    fn run<const N: usize>(&self, arguments: [&str; N]) -> Ran {
        Ran(self.command(arguments).output().expect("the program starts"))
    }

    /// One backup, its report.
    #[track_caller]
    fn backup(&self, status: i32) -> Value {
        let ran = self.run(["backup", "--json"]);
        ran.expect_status(status);
        ran.json()["applications"][0].clone()
    }

    /// Where the newest backup is restored to.
    fn restored(&self, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        self.run(["restore", "shop", "--to", to.to_str().expect("UTF-8")]).expect_status(0);
        to
    }

    fn repository(&self) -> PathBuf {
        self.dir.path().join("backup/local/host/test/shop/repository")
    }
}

fn directory(path: &Path) -> String {
    format!("[[application.directory]]\npath = \"{}\"\n", path.display())
}

fn database(server: &PrivateServer) -> String {
    format!(
        "[[application.database]]\nengine = \"mariadb\"\nsocket = \"{}\"\nuser = \"root\"\n",
        server.socket().display()
    )
}

/// A server whose data directory lies on the volume.
fn server_on(volume: &Volume) -> PrivateServer {
    fs::set_permissions(volume.path().parent().expect("a parent"), fs::Permissions::from_mode(0o755))
        .expect("the way is open");
    PrivateServer::builder().directory(volume.path().join("log")).datadir(volume.path().join("data")).start()
}

#[track_caller]
fn nothing_is_left(group: &Group) {
    assert_eq!(group.snapshots(), Vec::<String>::new());
    assert_eq!(ours_mounted(), Vec::<PathBuf>::new());
}

fn problems(report: &Value) -> String {
    report["problems"].to_string()
}

fn files() {
    for (make, filesystem) in [(Make::Classic, "ext4"), (Make::Thin(700), "ext4")] {
        let group = Group::new(&DISKS);
        let volume = Volume::new(&group, "data", make, 400, filesystem);
        let counter = Counter::start(&volume.root());
        let place = Place::new(&directory(&volume.root()));
        place.run(["plan"]).expect_status(0).expect_text("volume-snapshot");
        let report = place.backup(0);
        assert_eq!(report["verdict"], "consistent", "{report}");
        nothing_is_left(&group);
        let copy = below(&place.restored("restored"), &volume.root());
        counted(|name| fs::read(copy.join(name)).expect("restored"));
        counter.goes_on();
        counter.end();
    }
}

fn server_and_files() {
    for make in [Make::Classic, Make::Thin(1400)] {
        let group = Group::new(&DISKS);
        let volume = Volume::new(&group, "data", make, 1000, "xfs");
        let server = server_on(&volume);
        let uploads = volume.path().join("uploads");
        let options = LedgerOptions { writers: 2, pace_ms: 20, ..LedgerOptions::new(&server, &uploads, 7) };
        let ledger = Ledger::start(options, "ledger");
        let only = format!("changed_extents_only = {}\n", volume.is_thin());
        let place = Place::new(&format!("{only}{}{}", database(&server), directory(&uploads)));
        place.run(["plan"]).expect_status(0).expect_text("server-volumes").expect_text("volume-snapshot");
        for round in 0..2 {
            let bare = bare_snapshot(&volume);
            let report = place.backup(0);
            assert_eq!(report["verdict"], "consistent", "{report}");
            println_stall(make, &report, bare);
            println_read(report["bytes_read"].as_u64().expect("a number"), &report);
            assert_eq!(ours_mounted(), Vec::<PathBuf>::new());
            assert_eq!(group.snapshots().len(), usize::from(volume.is_thin()), "kept for the next one");
            ledger.wait_for_progress(Duration::from_secs(20)).expect("the application goes on");
            let to = place.restored(&format!("restored-{round}"));
            let copy = PrivateServer::builder().copy_at(below(&to, server.datadir())).start();
            verify(&mut copy.connect(), &below(&to, &uploads)).assert_sound();
        }
        place.run(["check", "shop", "--open"]).expect_status(0);
        assert_eq!(ours_mounted(), Vec::<PathBuf>::new());
        ledger.stop();
    }
}

/// How long LVM alone takes for a snapshot of a volume, without us.
fn bare_snapshot(volume: &Volume) -> Duration {
    let origin = format!("{}/{}", volume.group, volume.name);
    let started = Instant::now();
    let size: &[&str] = if volume.is_thin() { &["-kn"] } else { &["-L", "64m"] };
    output("lvcreate", &[&["-q", "-y", "-s", "-n", "bare", &origin], size].concat());
    let took = started.elapsed();
    output("lvremove", &["-q", "-f", "-y", &format!("{}/bare", volume.group)]);
    took
}

#[allow(clippy::print_stdout, reason = "figures for the benchmarks")]
fn println_stall(make: Make, report: &Value, bare: Duration) {
    println!(
        "{make:?}: stall {} ms; a bare lvcreate -s {} ms",
        report["stall_ms"]["total"],
        bare.as_millis()
    );
}

/// Files of so many MiB in all.
fn fill(dir: &Path, mebibytes: u64) -> Vec<PathBuf> {
    let files = (0..mebibytes / 20).map(|n| {
        let path = dir.join(format!("file-{n}"));
        fs::write(&path, noise(usize::try_from(20 * MIB).expect("small"), n + 1)).expect("written");
        path
    });
    files.collect()
}

fn fills_up() {
    for make in [Make::Classic, Make::Thin(700)] {
        let group = Group::new(&DISKS);
        let volume = Volume::new(&group, "data", make, 900, "xfs");
        let files = fill(&volume.root(), 300);
        let mut server = server_on(&volume);
        server.run([
            "CREATE DATABASE a",
            "CREATE TABLE a.t (n INT PRIMARY KEY)",
            "INSERT INTO a.t VALUES (1)",
        ]);
        server.stop();
        volume.come_up_again();
        server.start();
        group.leave_free(if make == Make::Classic { 120 } else { 0 });
        let place = Place::new(&format!("{}{}", database(&server), directory(&volume.root())));
        let mut backup = place.command(["backup", "--json"]);
        backup.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let backup = backup.spawn().expect("the program starts");
        eventually("a snapshot is mounted", || (!ours_mounted().is_empty()).then_some(()));
        let rewriter = Rewriter::start(files, Duration::ZERO);
        let ran = Ran(backup.wait_with_output().expect("it ends"));
        ran.expect_status(3);
        let report = ran.json()["applications"][0].clone();
        assert_eq!(report["verdict"], "incomplete", "{report}");
        assert!(problems(&report).contains("snapshot"), "the reason is told: {report}");
        rewriter.wait_for(40 * MIB);
        rewriter.end();
        server.run(["INSERT INTO a.t VALUES (2)"]);
        nothing_is_left(&group);
        assert_eq!(ok_status(&place), "0");
    }
}

/// The repository is whole by restic's own judgement.
fn ok_status(place: &Place) -> String {
    let mut restic = Command::new("restic");
    restic
        .arg("--no-cache")
        .arg("-r")
        .arg(place.repository())
        .arg("-p")
        .arg(place.dir.path().join("password"));
    let ran = Ran(restic.arg("check").output().expect("restic is installed"));
    ran.expect_status(0);
    "0".to_owned()
}

fn killed() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 900, "xfs");
    fill(&volume.root(), 60);
    let server = server_on(&volume);
    server.run(["CREATE DATABASE a", "CREATE TABLE a.t (n INT PRIMARY KEY AUTO_INCREMENT)"]);
    let place = Place::new(&format!("{}{}", database(&server), directory(&volume.root())));
    for round in 0..3 {
        let mut backup = place.command(["backup"]).spawn().expect("the program starts");
        if round > 0 {
            eventually("a snapshot is there", || (!group.snapshots().is_empty()).then_some(()));
        }
        if round > 1 {
            eventually("it is mounted", || (!ours_mounted().is_empty()).then_some(()));
        }
        thread::sleep(Duration::from_millis(300));
        backup.kill().expect("it runs");
        backup.wait().expect("it ended");
        let asked = Instant::now();
        server.run(["INSERT INTO a.t VALUES ()"]);
        assert!(asked.elapsed() < Duration::from_secs(5), "round {round}: {:?}", asked.elapsed());
        place.run(["thaw"]).expect_status(0);
        nothing_is_left(&group);
    }
    assert_eq!(place.backup(0)["verdict"], "consistent");
    nothing_is_left(&group);
}

/// A thin volume with two files of pages, of which one is never changed, and an application that reads only what changed in them.
struct Paged {
    place: Place,
    volume: Volume,
    group: Group,
}

const PAGED: u64 = 8 * MIB;

impl Paged {
    fn new(filesystem: &'static str) -> Self {
        let group = Group::new(&DISKS);
        let volume = Volume::new(&group, "data", Make::Thin(700), 300, filesystem);
        if filesystem == "xfs" {
            // Which makes no clones then, so that it is pinned by its volume's snapshot as ext4 is.
            let (device, at) = (format!("/dev/{}/data", group.name), volume.path());
            let at = at.to_str().expect("UTF-8");
            output("umount", &[at]);
            output("mkfs.xfs", &["-q", "-f", "-m", "reflink=0", &device]);
            output("mount", &[&device, at]);
        }
        for (name, seed) in [("pages", 1), ("cold", 2)] {
            let mut bytes = noise(usize::try_from(PAGED).expect("small"), seed);
            bytes[..16].copy_from_slice(b"SQLite format 3\0");
            fs::write(volume.root().join(name), bytes).expect("written");
        }
        let place = Place::new(&format!("changed_extents_only = true\n{}", directory(&volume.root())));
        Self { place, volume, group }
    }

    /// Some pages are written, one of them to a place behind the end.
    fn change(&self, seed: u64) {
        let path = self.volume.root().join("pages");
        let file = fs::OpenOptions::new().write(true).open(path).expect("the file");
        let length = file.metadata().expect("its size").len();
        for n in [seed * 7 % 2000 + 60, seed * 11 % 2000 + 60, length.div_ceil(4096)] {
            let page = noise(4096, 1000 + seed * 10 + n);
            file.write_all_at(&page, n * 4096).expect("written");
        }
    }

    /// A backup, whose copy of the files has to be what is live; how many bytes it read.
    #[track_caller]
    fn backup(&self, name: &str) -> u64 {
        let read = self.bytes_read();
        let copy = below(&self.place.restored(name), &self.volume.root());
        for file in ["pages", "cold"] {
            let live = fs::read(self.volume.root().join(file)).expect("live");
            assert!(fs::read(copy.join(file)).expect("restored") == live, "{name}: {file}");
        }
        assert_eq!(ours_mounted(), Vec::<PathBuf>::new());
        assert_eq!(self.held(), "-", "{name}");
        read
    }

    /// How many bytes a backup read.
    #[track_caller]
    fn bytes_read(&self) -> u64 {
        let report = self.place.backup(0);
        assert_eq!(report["verdict"], "consistent", "{report}");
        let read = report["bytes_read"].as_u64().expect("a number");
        println_read(read, &report);
        read
    }

    /// Writes over a part of the file in the kept snapshot, below its filesystem, whose blocks may have 1 KiB.
    fn spoil_kept(&self, page: u64) {
        let mut stored = [0; 1024];
        let live = fs::File::open(self.volume.root().join("pages")).expect("the file");
        live.read_exact_at(&mut stored, page * 4096).expect("read");
        let kept = format!("/dev/{}/{}", self.group.name, self.group.snapshots()[0]);
        let device = fs::OpenOptions::new().read(true).write(true).open(&kept).expect("a device");
        let mut buffer = vec![0; usize::try_from(MIB).expect("small")];
        let mut spoilt = 0;
        for at in (0..300 * MIB).step_by(buffer.len()) {
            device.read_exact_at(&mut buffer, at).expect("read");
            for (n, _) in buffer.chunks(1024).enumerate().filter(|(_, part)| **part == stored) {
                device.write_all_at(&[0x5a; 1024], at + n as u64 * 1024).expect("written");
                spoilt += 1;
            }
        }
        device.sync_all().expect("on disk");
        assert_eq!(spoilt, 1, "it stands at one place");
    }

    fn pool(&self) -> String {
        format!("{}-data--pool-tpool", self.group.name.replace('-', "--"))
    }

    /// Where the pool's metadata begin that somebody has reserved.
    fn held(&self) -> String {
        let status = output("dmsetup", &["status", "--noflush", &self.pool()]);
        status.split(' ').nth(6).expect("a status").to_owned()
    }
}

#[allow(clippy::print_stdout, reason = "figures for whoever reads the test's output")]
fn println_read(read: u64, report: &Value) {
    println!("{read} bytes read in {} s; {}", report["duration_s"], problems(report));
}

fn changes() {
    let paged = Paged::new("ext4");
    assert!(paged.bytes_read() >= 2 * PAGED);
    for seed in 1..=count("STILLPOINT_THIN_ROUNDS", 1) {
        assert_eq!(paged.group.snapshots().len(), 1, "one is kept");
        paged.change(seed);
        assert!(paged.backup(&format!("changed-{seed}")) < PAGED / 4);
    }

    // Killed while the pool is asked.
    let slow = tempfile::tempdir().expect("a directory");
    let program = slow.path().join("thin_delta");
    fs::write(&program, "#!/bin/sh\nexec sleep 600\n").expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    paged.change(4);
    let path = format!("{}:{}", slow.path().display(), env::var("PATH").expect("a path"));
    let mut killed = paged.place.command(["backup"]).env("PATH", path).spawn().expect("it starts");
    eventually("metadata are reserved", || (paged.held() != "-").then_some(()));
    killed.kill().expect("it runs");
    killed.wait().expect("it ended");
    paged.place.run(["thaw"]).expect_status(0);
    assert_eq!((paged.held().as_str(), paged.group.snapshots().len()), ("-", 1));

    // A part of what was kept is not what was stored any more.
    paged.spoil_kept(50);
    let read = paged.backup("after-all");
    assert!(read < PAGED / 4, "{read}");

    let config = paged.place.dir.path().join("stillpoint.toml");
    let text = fs::read_to_string(&config).expect("the inventory");
    write_private(&config, text.replace("only = true", "only = false").as_bytes());
    paged.place.run(["thaw"]).expect_status(0);
    nothing_is_left(&paged.group);
}

fn used_by_others() {
    let paged = Paged::new("xfs");
    paged.bytes_read();
    paged.change(1);
    output("dmsetup", &["message", &paged.pool(), "0", "reserve_metadata_snap"]);
    let report = paged.place.backup(0);
    assert!(report["bytes_read"].as_u64().expect("a number") >= PAGED, "{report}");
    assert!(problems(&report).contains("held by another program"), "{report}");
    assert_ne!(paged.held(), "-", "theirs stays");
    output("dmsetup", &["message", &paged.pool(), "0", "release_metadata_snap"]);

    // The snapshot that was kept is gone, and another has its name.
    let kept = format!("{}/{}", paged.group.name, paged.group.snapshots()[0]);
    output("lvremove", &["-q", "-f", "-y", &kept]);
    let name = kept.split('/').nth(1).expect("a name");
    let origin = format!("{}/data", paged.group.name);
    paged.change(2);
    output("lvcreate", &["-q", "-y", "-kn", "--addtag", "stillpoint", "-s", "-n", name, &origin]);
    assert!(paged.backup("another") >= PAGED, "it is not believed");
    assert_eq!(paged.group.snapshots().len(), 1);
    paged.change(3);
    assert!(paged.backup("again") < PAGED / 4, "from now on there is a reference again");
}
