//! Changed extents only, through the whole program on XFS: killed at random moments, told in plan and report, alarmed by a disk
//! that changes bytes, and removed when nobody wants it. Needs root. `STILLPOINT_EXTENT_KILLS` says how often.
#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

mod common;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use common::{Mounted, Site, below, count, seed, start};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use serde_json::Value;

const SIZE: usize = 6 << 20;

struct World {
    mounted: Mounted,
    site: Site,
    random: StdRng,
}

impl World {
    /// An application with a file of pages.
    fn new(seed: u64) -> Self {
        let mounted = Mounted::new("xfs");
        let site = Site::at(&mounted.at);
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; SIZE];
        random.fill_bytes(&mut bytes);
        bytes[..16].copy_from_slice(b"SQLite format 3\0");
        fs::write(site.app().join("pages"), &bytes).expect("a file");
        site.init(&sources(&site, true));
        Self { mounted, site, random }
    }

    fn pages(&self) -> PathBuf {
        self.site.app().join("pages")
    }

    /// Some pages are written.
    fn change(&mut self) {
        let file = fs::OpenOptions::new().write(true).open(self.pages()).expect("the file");
        for _ in 0..self.random.random_range(1..6) {
            let mut page = vec![0; 4096];
            self.random.fill_bytes(&mut page);
            file.write_all_at(&page, self.random.random_range(1..SIZE as u64 / 4096) * 4096)
                .expect("written");
        }
    }

    fn backup(&self) -> Value {
        let ran = self.site.run(["backup", "--json"]);
        ran.expect_status(0);
        ran.json()["applications"][0].clone()
    }

    /// Whether the newest backup is what is live.
    #[track_caller]
    fn assert_restored(&self, to: &str) {
        let to = self.site.root().join(to);
        self.site.run(["restore", "guestbook", "--to", to.to_str().expect("UTF-8")]).expect_status(0);
        let restored = fs::read(below(&to, &self.pages())).expect("restored");
        assert!(restored == fs::read(self.pages()).expect("live"), "it is not what was live");
        fs::remove_dir_all(&to).expect("removed");
    }

    /// Directories of ours beside the one that the record names.
    fn left(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string(self.record()).unwrap_or_default();
        let found = self.site.leftovers().into_iter();
        found.filter(|path| !text.contains(path.to_str().expect("UTF-8"))).collect()
    }

    fn record(&self) -> PathBuf {
        self.site.partition().join("state/reference/test%guestbook.json")
    }
}

fn sources(site: &Site, only_changes: bool) -> String {
    let path = site.app().display().to_string();
    format!("changed_extents_only = {only_changes}\n[[application.directory]]\npath = \"{path}\"\n")
}

fn read_of(report: &Value) -> u64 {
    report["bytes_read"].as_u64().expect("a number")
}

#[test]
fn killed_at_any_moment_the_next_one_reads_what_it_has_to() {
    let seed = seed();
    let mut world = World::new(seed);
    let first = world.backup();
    assert!(read_of(&first) >= SIZE as u64, "{first}");
    let begun = Instant::now();
    let second = world.backup();
    let length = begun.elapsed();
    assert!(read_of(&second) < 100_000, "nothing changed: {second}");
    let mut sparing = 0;
    for round in 0..count("STILLPOINT_EXTENT_KILLS", 3) {
        world.change();
        let mut run = start(world.site.command(["backup"]));
        thread::sleep(length.mul_f64(world.random.random_range(0.2..1.2)));
        let _gone = run.kill();
        run.wait().expect("a child");
        world.change();
        let report = world.backup();
        assert_eq!(report["verdict"], "consistent", "round {round}: {report}");
        sparing += u32::from(read_of(&report) < SIZE as u64 / 2);
        world.assert_restored("restored");
        assert_eq!(world.left(), Vec::<PathBuf>::new(), "round {round}");
        // Whatever became of it, from now on there is a reference again.
        world.change();
        let report = world.backup();
        assert!(read_of(&report) < SIZE as u64 / 2, "round {round}: {report}");
        world.assert_restored("restored");
    }
    println!("{sparing} runs after a kill could still compare");
    world.site.restic(["check", "--read-data"]).expect_status(0);
}

#[test]
fn it_is_told_proven_and_removed() {
    let mut world = World::new(seed());
    let plan = |world: &World, text: &str| {
        world.site.run(["plan"]).expect_status(0).expect_text(text);
    };
    plan(&world, "read all files whole: no frozen copies");
    world.backup();
    plan(&world, "read only what changed since backup");
    world
        .site
        .run(["list"])
        .expect_status(0)
        .expect_text("frozen copies kept for reading only what changes take up");
    world.change();
    world.site.run(["backup"]).expect_status(0).expect_text(" read, ");

    // Bytes that nobody wrote, below all copies of them.
    let mark = fs::read(world.pages()).expect("the file")[SIZE - 8192..SIZE - 4096].to_vec();
    Command::new("sync").arg("-f").arg(world.pages()).status().expect("sync");
    flip(&world.mounted.image, &mark);
    let file = fs::File::open(world.pages()).expect("the file");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
    world.backup();
    let proving = sources(&world.site, true).replacen('\n', "\nread_all_every = \"1s\"\n", 1);
    world.site.init(&proving);
    plan(&world, "all is read and proven every 1s");
    let alarm = world.site.run(["backup"]);
    alarm.expect_status(3).expect_text("pages: 1 of its parts of 32768 bytes, at bytes");
    world.assert_restored("restored");

    world.site.init(&sources(&world.site, false));
    plan(&world, "changed_extents_only is false");
    world
        .site
        .run(["thaw"])
        .expect_status(0)
        .expect_text("removed the frozen copies kept for test/guestbook");
    assert!(!world.record().exists());
    assert_eq!(world.site.leftovers(), Vec::<PathBuf>::new());
}

/// Restores to a directory, compares with what was live then, and says what was cloned.
#[track_caller]
fn restored(world: &World, arguments: &[&str], then: &[u8]) -> Value {
    let to = world.site.root().join("restored");
    let to_text = to.to_str().expect("UTF-8");
    let base = ["restore", "guestbook", "--json", "--to", to_text];
    let ran = world.site.run(base.iter().chain(arguments));
    ran.expect_status(0);
    let found = fs::read(below(&to, &world.pages())).expect("restored");
    assert!(found == then, "{arguments:?}: it is not what was live then");
    fs::remove_dir_all(&to).expect("removed");
    ran.json()["detail"].clone()
}

#[test]
fn what_frozen_copies_prove_is_cloned_and_compared() {
    let mut world = World::new(seed());
    let first = world.backup()["backup"].as_str().expect("an id").to_owned();
    let before = fs::read(world.pages()).expect("live");
    world.change();
    world.backup();
    let then = fs::read(world.pages()).expect("live");
    world.change();
    let record: Value =
        serde_json::from_slice(&fs::read(world.record()).expect("a record")).expect("the record");
    let copy = PathBuf::from(record["files"][0]["copy"].as_str().expect("a path"));

    let to = world.site.root().join("restored");
    let to_text = to.to_str().expect("UTF-8");
    let planned = world.site.run(["restore", "guestbook", "--dry-run", "--to", to_text]);
    planned.expect_status(0).expect_text("1 files (6.0 MiB) are cloned from frozen copies");
    planned.expect_text(world.pages().to_str().expect("UTF-8"));
    let report = restored(&world, &[], &then);
    assert_eq!(report["cloned"]["files"], 1, "{report}");
    assert_eq!(report["cloned"]["compared"], true, "{report}");
    assert_eq!(restored(&world, &["--read-back"], &then)["cloned"]["compared"], true);
    assert_eq!(restored(&world, &["--trust-copies"], &then)["cloned"]["compared"], false);
    world.site.run(["restore", "guestbook", "--to", to_text]).expect_status(0);
    let clone = fs::File::open(below(&to, &world.pages())).expect("restored");
    let (_, space) = os::extents::look(&clone).expect("its extents");
    assert_eq!(space.own, model::size::Bytes(0), "a clone takes no space for what it holds");
    fs::remove_dir_all(&to).expect("removed");

    // Bytes that nobody wrote.
    let mark = fs::read(&copy).expect("the copy")[SIZE - 8192..SIZE - 4096].to_vec();
    Command::new("sync").arg("-f").arg(world.pages()).status().expect("sync");
    flip(&world.mounted.image, &mark);
    let report = restored(&world, &[], &then);
    assert_eq!(report["cloned"], Value::Null, "{report}");
    assert!(report["problems"].to_string().contains("its frozen copy is no use"), "{report}");
    let trusting = ["restore", "guestbook", "--trust-copies", "--to", to_text];
    world.site.run(trusting).expect_status(0).expect_text("they were not read");
    let read = fs::read(below(&to, &world.pages())).expect("restored");
    assert!(read.len() == then.len() && read != then, "it has what the disk has now");
    fs::remove_dir_all(&to).expect("removed");
    world.site.run(["restore", "guestbook", "--in-place", "--yes"]).expect_status(0);
    assert!(fs::read(world.pages()).expect("live") == then, "in place nothing is trusted");
    // Another backup's.
    assert_eq!(restored(&world, &["--backup", &first], &before)["cloned"], Value::Null);
}

#[test]
fn a_copy_that_was_touched_or_is_gone_is_not_cloned() {
    let mut world = World::new(seed());
    let mut copy = PathBuf::new();
    let mut next = |world: &mut World| {
        world.change();
        world.backup();
        let record: Value =
            serde_json::from_slice(&fs::read(world.record()).expect("a record")).expect("the record");
        copy = PathBuf::from(record["files"][0]["copy"].as_str().expect("a path"));
        (copy.clone(), fs::read(world.pages()).expect("live"))
    };
    let (_, then) = next(&mut world);
    world.change();
    let report =
        world.site.run(["restore", "guestbook", "--in-place", "--yes", "--json"]).expect_status(0).json();
    assert_eq!(report["detail"]["cloned"]["compared"], true, "{report}");
    assert!(fs::read(world.pages()).expect("live") == then);

    // Written to, with its times set back.
    let (copy, then) = next(&mut world);
    let times = fs::metadata(&copy).expect("the copy").modified().expect("its time");
    let file = fs::OpenOptions::new().write(true).open(&copy).expect("the copy");
    file.write_all_at(b"other", 1 << 20).expect("written");
    file.set_modified(times).expect("set back");
    drop(file);
    for arguments in [&[][..], &["--trust-copies"]] {
        assert_eq!(restored(&world, arguments, &then)["cloned"], Value::Null);
    }
    // Another file under its name.
    let (copy, then) = next(&mut world);
    let bytes = fs::read(&copy).expect("the copy");
    fs::remove_file(&copy).expect("removed");
    fs::write(&copy, &bytes).expect("another");
    assert_eq!(restored(&world, &["--trust-copies"], &then)["cloned"], Value::Null);
    fs::remove_file(&copy).expect("removed");
    assert_eq!(restored(&world, &["--trust-copies"], &then)["cloned"], Value::Null);
    // A record that says something else of what is stored.
    let (_, then) = next(&mut world);
    let text = fs::read_to_string(world.record()).expect("a record");
    let record: Value = serde_json::from_str(&text).expect("the record");
    let content = record["files"][0]["content"].as_str().expect("a digest");
    fs::write(world.record(), text.replace(content, &"0".repeat(64))).expect("written");
    assert_eq!(restored(&world, &["--trust-copies"], &then)["cloned"], Value::Null);
}

/// Turns one byte of these over, wherever they stand.
fn flip(image: &Path, mark: &[u8]) {
    let file = fs::OpenOptions::new().read(true).write(true).open(image).expect("the image");
    let length = file.metadata().expect("its size").len();
    let mut buffer = vec![0; 1 << 20];
    let mut found = 0;
    for from in (0..length).step_by(1 << 20) {
        let got = file.read_at(&mut buffer, from).expect("read");
        for at in (0..got).step_by(512).filter(|at| buffer[*at..].starts_with(&mark[..512])) {
            file.write_all_at(&[mark[100] ^ 1], from + at as u64 + 100).expect("written");
            found += 1;
        }
    }
    assert_eq!(found, 1, "it stands at one place, which all copies share");
    file.sync_all().expect("on disk");
}
