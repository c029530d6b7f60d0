//! Pins by snapshots of ZFS datasets, against a stand-in for `zfs` (`zfs_support/zfs`), since the systems that this is
//! built on have no ZFS: it keeps copies of directories where the real one keeps snapshots. Which datasets are mounted is
//! read from a table of our own, laid over `/proc/self/mountinfo` in a mount namespace of this process. Needs root.

#![allow(clippy::print_stdout, reason = "a test program tells what it does")]

mod fs_support;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use engines::fs::{VolumePinner, Volumes, volume_of};
use fs_support::{
    How, Paper, TreeBench, Vault, disk::run, harvested, live, plan, soon, volume_pinner, volumes,
};
use model::{
    entry::{Body, Harvest},
    known::Known,
    port::{FailureKind, Pinner, Silent},
    problem::Effect,
    server::Volume,
    size::Bytes,
    undo::Undo,
    verdict::Stillness,
};
use os::clock::deadline_in;
use testkit::conformance::pinner::suite;

type Case = fn(&Scene);

const INSIDE: &str = "STILLPOINT_STANDIN_INSIDE";

fn main() -> ExitCode {
    if env::var_os(INSIDE).is_none() {
        return again();
    }
    let scene = Scene::new();
    let cases: [(&str, Case); 7] = [
        ("a_dataset_is_a_pinner", conforms),
        ("datasets_inside_are_taken_at_the_same_instant", with_children),
        ("other_snapshots_stay_and_ours_are_held_while_they_are_read", holds),
        ("a_snapshot_that_fails_half_way_leaves_nothing", fails),
        ("a_snapshot_that_comes_too_late_is_destroyed", late),
        ("what_a_dead_run_left_is_destroyed_alone", swept),
        ("what_is_no_whole_dataset_is_refused", refused),
    ];
    for (name, case) in cases {
        println!("test {name} ...");
        case(&scene);
        scene.nothing_is_left();
        println!("test {name} ok");
    }
    ExitCode::SUCCESS
}

/// This program again, in a mount namespace of its own and with the stand-in before everything else in its path.
fn again() -> ExitCode {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zfs_support");
    let path = format!("{}:{}", here.display(), env::var("PATH").unwrap());
    let standin = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(env::current_exe().unwrap())
        .envs([("PATH", path), (INSIDE, "1".to_owned())])
        .env("STANDIN", standin.path())
        .status()
        .unwrap();
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `tank/srv` with `tank/srv/db` mounted inside, both plain directories.
struct Scene {
    standin: PathBuf,
    paper: Arc<Paper>,
}

impl Scene {
    fn new() -> Self {
        let standin = PathBuf::from(env::var_os("STANDIN").unwrap());
        let scene = Self { standin, paper: Arc::default() };
        for dir in ["srv/app", "srv/db", "srv/tmpfs", "holds", "staging", "part"] {
            fs::create_dir_all(scene.standin.join(dir)).unwrap();
        }
        let at = |name: &str| scene.standin.join(name).display().to_string();
        let datasets = format!("tank/srv {}\ntank/srv/db {}\n", at("srv"), at("srv/db"));
        fs::write(scene.standin.join("datasets"), datasets).unwrap();
        let table = format!(
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:50 / {srv} rw - zfs tank/srv rw\n3 2 0:51 / {srv}/db rw - zfs \
             tank/srv/db rw\n4 2 0:52 / {srv}/tmpfs rw - tmpfs none rw\n5 1 0:53 /inner {part} rw - zfs tank/part rw\n",
            srv = at("srv"),
            part = at("part"),
        );
        fs::write(scene.standin.join("mountinfo"), table).unwrap();
        let own = format!("/proc/{}/mountinfo", std::process::id());
        run("mount", &["--bind", &at("mountinfo"), &own]);
        fs::write(scene.srv().join("app/file"), b"srv at the cut").unwrap();
        fs::write(scene.srv().join("db/file"), b"db at the cut").unwrap();
        scene
    }

    fn srv(&self) -> PathBuf {
        self.standin.join("srv")
    }

    fn volumes(&self) -> Volumes {
        volumes(&self.standin.join("staging"), &self.paper)
    }

    fn prepared(&self, root: &Path) -> VolumePinner {
        let mut pinner = volume_pinner(&plan(root), &self.volumes());
        pinner.prepare(&Known::default()).unwrap();
        pinner
    }

    fn snapshots(&self, dir: &str) -> Vec<String> {
        let found = fs::read_dir(self.standin.join(dir).join(".zfs/snapshot")).into_iter().flatten();
        let mut names: Vec<_> = found.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What `zfs` was told since the last time.
    fn told(&self) -> Vec<String> {
        let log = fs::read_to_string(self.standin.join("log")).unwrap_or_default();
        fs::write(self.standin.join("log"), "").unwrap();
        log.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.paper.open(), vec![]);
        assert_eq!((self.snapshots("srv"), self.snapshots("srv/db")), (vec![], vec![]));
        assert_eq!(fs::read_dir(self.standin.join("holds")).unwrap().count(), 0);
    }
}

fn pinned_bytes(harvest: &Harvest, path: &Path) -> Vec<u8> {
    let entry = harvest.entries.iter().find(|e| e.path == path);
    match &entry.unwrap_or_else(|| panic!("no {}", path.display())).body {
        Body::At(at) => fs::read(at).unwrap(),
        other => panic!("{}: {other:?}", path.display()),
    }
}

fn conforms(scene: &Scene) {
    suite(|| Box::new(TreeBench::new(How::Copied, tempfile::tempdir_in(scene.srv()).unwrap())));
}

fn with_children(scene: &Scene) {
    let facts = volume_of(&scene.srv().join("app")).unwrap();
    let volume = Volume::Zfs { dataset: "tank/srv".to_owned(), mounted: scene.srv() };
    assert_eq!((facts.volume, facts.free, facts.refusal), (volume, Some(Bytes(123_456_789)), None));
    let mut pinner = scene.prepared(&scene.srv());
    scene.told();
    let mut pin = pinner.pin(soon()).unwrap();
    let told = scene.told();
    let name = scene.snapshots("srv").pop().unwrap();
    assert_eq!(
        told,
        [format!("snapshot tank/srv@{name} tank/srv/db@{name}")],
        "nothing else under the freeze"
    );
    let expected = Stillness::AtomicSnapshot(format!("ZFS snapshot tank/srv@{name}"));
    assert_eq!(pin.unchanged(soon()).unwrap(), expected);
    assert_eq!(scene.told(), Vec::<String>::new(), "nor here");
    let files = ["app/file", "db/file"].map(|name| scene.srv().join(name));
    let before = files.clone().map(|file| fs::read(file).unwrap());
    files.iter().for_each(|file| fs::write(file, b"later").unwrap());
    let harvest = pin.harvest(&Silent).unwrap();
    assert_eq!(files.clone().map(|file| pinned_bytes(&harvest, &file)), before);
    assert_eq!(harvest.entries.iter().filter(|e| e.path == scene.srv().join("db")).count(), 1);
    let missing: Vec<_> = harvest.problems.iter().filter(|p| p.effect == Effect::Missing).collect();
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert_eq!(missing[0].path, Some(scene.srv().join("tmpfs")), "no snapshot holds it");
    assert_eq!(pin.afterwards(), []);
    pin.release().unwrap();
    for (file, bytes) in files.iter().zip(before) {
        fs::write(file, bytes).unwrap();
    }
}

fn holds(scene: &Scene) {
    let daily = scene.srv().join(".zfs/snapshot/daily");
    fs::create_dir_all(&daily).unwrap();
    let before = live(&scene.srv().join("app"));
    let mut pinner = scene.prepared(&scene.srv().join("app"));
    let mut pin = pinner.pin(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    assert_eq!(harvested(&scene.srv().join("app"), &harvest, &Vault::default()), before);
    let ours = scene.snapshots("srv").into_iter().find(|name| name != "daily").unwrap();
    let status = Command::new("zfs").args(["destroy", &format!("tank/srv@{ours}")]).status().unwrap();
    assert!(!status.success(), "it is held");
    assert_eq!(pin.afterwards(), []);
    fs::remove_dir_all(scene.srv().join(".zfs/snapshot").join(&ours)).unwrap();
    let problems = pin.afterwards();
    assert!(
        problems[0].effect == Effect::Missing && problems[0].what.contains("somebody else"),
        "{problems:?}"
    );
    fs::create_dir(scene.srv().join(".zfs/snapshot").join(&ours)).unwrap();
    drop(pin);
    assert_eq!(scene.snapshots("srv"), ["daily"]);
    fs::remove_dir(daily).unwrap();
}

fn fails(scene: &Scene) {
    let mut pinner = scene.prepared(&scene.srv());
    fs::write(scene.standin.join("fail"), "").unwrap();
    let failure = pinner.pin(soon()).err().expect("there is no room");
    fs::remove_file(scene.standin.join("fail")).unwrap();
    assert_eq!(failure.kind, FailureKind::NoSpace, "{}", failure.in_full());
    assert!(failure.in_full().contains("out of space"), "{}", failure.in_full());
}

fn late(scene: &Scene) {
    let mut pinner = scene.prepared(&scene.srv());
    fs::write(scene.standin.join("slow"), "1").unwrap();
    let asked = Instant::now();
    let failure = pinner.pin(deadline_in(Duration::from_millis(100))).err().expect("it takes a second");
    let waited = asked.elapsed();
    assert!(waited < Duration::from_millis(900), "writers were held for {waited:?}");
    assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.in_full());
    assert_eq!(scene.paper.open().len(), 2, "it is still being made");
    let until = Instant::now() + Duration::from_secs(30);
    while !scene.paper.open().is_empty() {
        assert!(Instant::now() < until, "it stays");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(
        scene.told().iter().any(|line| line.starts_with("destroy tank/srv/db@")),
        "it was made and destroyed"
    );
    fs::remove_file(scene.standin.join("slow")).unwrap();
}

fn swept(scene: &Scene) {
    let name = "stillpoint-0123456789abcdef";
    for dir in ["srv", "srv/db"] {
        fs::create_dir_all(scene.standin.join(dir).join(".zfs/snapshot").join(name)).unwrap();
    }
    let undo = Undo::DestroyZfsSnapshot { dataset: "tank/srv".to_owned(), snapshot: name.to_owned() };
    for _ in 0..2 {
        os::undo::perform(&undo).unwrap();
        assert_eq!(scene.snapshots("srv"), Vec::<String>::new());
        assert_eq!(scene.snapshots("srv/db"), [name], "that of the child was not meant");
    }
    let gone = Undo::DestroyZfsSnapshot { dataset: "tank/gone".to_owned(), snapshot: name.to_owned() };
    os::undo::perform(&gone).unwrap();
    let foreign =
        Undo::DestroyZfsSnapshot { dataset: "tank/srv/db".to_owned(), snapshot: "daily".to_owned() };
    assert!(os::undo::perform(&foreign).is_err());
    fs::remove_dir(scene.srv().join("db/.zfs/snapshot").join(name)).unwrap();
}

fn refused(scene: &Scene) {
    let refusal = volume_of(&scene.standin.join("part")).unwrap().refusal.expect("its snapshots are nowhere");
    assert!(refusal.what.contains("nowhere mounted as a whole"), "{refusal:?}");
    assert!(refusal.remedy.contains("zfs mount tank/part"), "{refusal:?}");
}
