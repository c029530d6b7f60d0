//! Pins by snapshots of volumes, on btrfs mounted from files. Needs root, loop devices, btrfs-progs. LVM: `lvm_real`; ZFS:
//! `volume_zfs`.

mod fs_support;

use std::{
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use engines::fs::{VolumePinner, volume_of};
use fs_support::{
    How, Paper, TreeBench, Vault,
    disk::{Disk, run},
    harvested, live, plan, soon, tick, volume_pinner, volumes,
};
use model::{
    entry::{Body, Entry, Harvest, Kind},
    known::Known,
    port::{Failure, FailureKind, Pin, Pinner, Silent},
    problem::{Effect, Problem},
    server::Volume,
    undo::Undo,
    verdict::Stillness,
};
use testkit::conformance::pinner::suite;

fn subvolume(path: &Path) {
    run("btrfs", &["-q", "subvolume", "create", path.to_str().unwrap()]);
}

/// A journal and what is made with it on one disk.
struct Scene {
    disk: Disk,
    paper: Arc<Paper>,
}

impl Scene {
    /// A subvolume `sub` with a directory in it, which has a file.
    fn new() -> Self {
        let disk = Disk::new("btrfs", "rw");
        subvolume(&disk.path().join("sub"));
        let scene = Self { disk, paper: Arc::default() };
        fs::create_dir_all(scene.root()).unwrap();
        fs::write(scene.root().join("file"), b"at the cut").unwrap();
        fs::write(scene.disk.path().join("sub/outside"), b"no").unwrap();
        scene
    }

    fn root(&self) -> PathBuf {
        self.disk.path().join("sub/deep/root")
    }

    fn staging(&self) -> PathBuf {
        self.disk.path().join("staging/of/ours")
    }

    fn pinner(&self) -> VolumePinner {
        volume_pinner(&plan(&self.root()), &volumes(&self.staging(), &self.paper))
    }

    fn prepared(&self) -> VolumePinner {
        let mut pinner = self.pinner();
        assert_eq!(pinner.prepare(&Known::default()).unwrap(), None);
        tick();
        pinner
    }

    fn snapshots(&self) -> Vec<PathBuf> {
        let undos = self.paper.open().into_iter();
        let paths = undos.map(|undo| match undo {
            Undo::DeleteSubvolume { path } => path,
            other => panic!("{other:?}"),
        });
        paths.collect()
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.paper.open(), vec![]);
        let disk = self.disk.path();
        let listed = Command::new("btrfs").args(["subvolume", "list"]).arg(disk).output().unwrap().stdout;
        let listed = String::from_utf8_lossy(&listed);
        assert!(!listed.contains(".stillpoint-"), "{listed}");
    }
}

fn name(pin: &mut dyn Pin) -> String {
    match pin.unchanged(soon()).unwrap() {
        Stillness::AtomicSnapshot(name) => name,
        other => panic!("{other:?}"),
    }
}

fn missing(problems: &[Problem]) -> Vec<&Path> {
    let missing = problems.iter().filter(|p| p.effect == Effect::Missing);
    missing.filter_map(|p| p.path.as_deref()).collect()
}

fn entry<'a>(harvest: &'a Harvest, path: &Path) -> &'a Entry {
    harvest.entries.iter().find(|e| e.path == path).unwrap_or_else(|| panic!("no {}", path.display()))
}

fn pinned_bytes(harvest: &Harvest, path: &Path) -> Vec<u8> {
    match &entry(harvest, path).body {
        Body::At(at) => fs::read(at).unwrap(),
        other => panic!("{}: {other:?}", path.display()),
    }
}

#[test]
fn a_directory_in_a_subvolume_is_pinned_by_its_snapshot() {
    let disk = Disk::new("btrfs", "rw");
    suite(|| Box::new(TreeBench::new(How::Volume, tempfile::tempdir_in(disk.path()).unwrap())));
}

#[test]
fn a_directory_at_any_depth_is_stored_under_its_own_path_and_nothing_else_of_the_subvolume() {
    let scene = Scene::new();
    let facts = volume_of(&scene.root()).unwrap();
    assert_eq!(facts.volume, Volume::Btrfs { subvolume: scene.disk.path().join("sub") });
    assert!(facts.refusal.is_none() && facts.size.is_none() && facts.free.is_some(), "{facts:?}");
    let before = live(&scene.root());
    let mut pinner = scene.prepared();
    let mut pin = pinner.pin(soon()).unwrap();
    fs::write(scene.root().join("file"), b"later").unwrap();
    fs::write(scene.root().join("new"), b"later").unwrap();
    assert_eq!(scene.snapshots().len(), 1);
    assert!(scene.snapshots()[0].starts_with(scene.staging()), "{:?}", scene.snapshots());
    assert!(name(&mut *pin).contains(scene.snapshots()[0].to_str().unwrap()));
    let harvest = pin.harvest(&Silent).unwrap();
    assert_eq!(harvest.problems, []);
    assert_eq!(harvested(&scene.root(), &harvest, &Vault::default()), before);
    let meta = fs::metadata(scene.root().join("file")).unwrap();
    let stored = &entry(&harvest, &scene.root().join("file")).meta;
    assert_eq!((stored.inode, stored.device), (meta.ino(), meta.dev()));
    assert!(!harvest.entries.iter().any(|e| e.path.ends_with("outside")));
    assert_eq!(pin.afterwards(), []);
    pin.release().unwrap();
    scene.nothing_is_left();
}

#[test]
fn sources_on_one_subvolume_share_one_snapshot_until_the_last_is_released() {
    let scene = Scene::new();
    let other = scene.disk.path().join("sub/other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), b"at the cut").unwrap();
    let volumes = volumes(&scene.staging(), &scene.paper);
    let mut pinners = [scene.root(), other.clone()].map(|root| volume_pinner(&plan(&root), &volumes));
    for pinner in &mut pinners {
        pinner.prepare(&Known::default()).unwrap();
    }
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut first = pinners[0].pin(soon()).unwrap();
        fs::write(other.join("file"), b"later").unwrap();
        let mut second = pinners[1].pin(soon()).unwrap();
        assert_eq!(name(&mut *first), name(&mut *second));
        assert_eq!(scene.snapshots().len(), 1);
        first.harvest(&Silent).unwrap();
        first.release().unwrap();
        assert_eq!(scene.snapshots().len(), 1, "the other still reads");
        let harvest = second.harvest(&Silent).unwrap();
        assert_eq!(pinned_bytes(&harvest, &other.join("file")), b"at the cut");
        fs::write(other.join("file"), b"at the cut").unwrap();
        names.push(name(&mut *second));
        drop(second);
        scene.nothing_is_left();
    }
    assert_ne!(names[0], names[1], "another instant, another snapshot");
}

#[test]
fn what_the_snapshot_does_not_hold_is_missing_by_name() {
    let scene = Scene::new();
    subvolume(&scene.root().join("inner"));
    fs::create_dir(scene.root().join("mounted")).unwrap();
    run("mount", &["-t", "tmpfs", "none", scene.root().join("mounted").to_str().unwrap()]);
    let mut pinner = scene.prepared();
    let mut pin = pinner.pin(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    assert_eq!(missing(&harvest.problems), [scene.root().join("inner"), scene.root().join("mounted")]);
    assert!(harvest.problems.iter().all(|p| p.remedy.contains("directory of its own") && p.source.is_some()));
    drop(pin);

    let mut plan = plan(&scene.root());
    plan.exclude = vec!["inner".to_owned(), "mounted".to_owned()];
    let mut pinner = volume_pinner(&plan, &volumes(&scene.staging(), &scene.paper));
    pinner.prepare(&Known::default()).unwrap();
    let mut pin = pinner.pin(soon()).unwrap();
    assert_eq!(pin.harvest(&Silent).unwrap().problems, [], "they were not asked for");
    pin.release().unwrap();
    scene.nothing_is_left();
}

#[test]
fn known_files_are_carried() {
    let scene = Scene::new();
    fs::write(scene.root().join("new"), b"new").unwrap();
    let mut known = Known::default();
    let file = scene.root().join("file");
    known.insert(&file, fs_support::stamp(&file).unwrap());
    let mut pinner = scene.pinner();
    pinner.prepare(&known).unwrap();
    let mut pin = pinner.pin(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    let carried = |e: &&Entry| e.kind == Kind::File && e.body == Body::Carried;
    let carried: Vec<_> = harvest.entries.iter().filter(carried).map(|e| e.path.clone()).collect();
    assert_eq!(carried, [file]);
}

#[test]
fn a_part_of_a_subvolume_mounted_elsewhere_is_refused() {
    let scene = Scene::new();
    let elsewhere = scene.disk.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    run("mount", &["--bind", scene.root().to_str().unwrap(), elsewhere.to_str().unwrap()]);
    let facts = volume_of(&elsewhere).unwrap();
    run("umount", &[elsewhere.to_str().unwrap()]);
    let refusal = facts.refusal.expect("nobody can make a snapshot from there");
    assert!(refusal.what.contains("only a part"), "{refusal:?}");
}

#[test]
fn what_was_planned_but_is_no_more_is_refused_and_leaves_nothing() {
    let scene = Scene::new();
    let mut pinner = scene.prepared();
    let mut moved = scene.pinner();
    let late = pinner.pin(os::clock::deadline_in(Duration::ZERO)).err().expect("it is too late");
    assert_eq!(late.kind, FailureKind::TimedOut, "{late}");
    scene.nothing_is_left();
    let sub = scene.disk.path().join("sub");
    fs::rename(&sub, scene.disk.path().join("away")).unwrap();
    fs::create_dir_all(scene.root()).unwrap();
    let failure: Failure = moved.prepare(&Known::default()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    let failure = pinner.pin(soon()).err().expect("it is no subvolume any more");
    assert!(failure.in_full().contains("no snapshot of"), "{}", failure.in_full());
    scene.nothing_is_left();
}

#[test]
fn a_snapshot_that_somebody_else_deletes_makes_the_backup_incomplete() {
    let scene = Scene::new();
    let mut pinner = scene.prepared();
    let mut pin = pinner.pin(soon()).unwrap();
    pin.harvest(&Silent).unwrap();
    run("btrfs", &["-q", "subvolume", "delete", scene.snapshots()[0].to_str().unwrap()]);
    let problems = pin.afterwards();
    assert_eq!(missing(&problems), [scene.root()]);
    assert!(problems[0].what.contains("somebody else removed it"), "{problems:?}");
    pin.release().unwrap();
    scene.nothing_is_left();
}

/// The old blocks that a snapshot keeps are space that the original lacks.
#[test]
fn a_snapshot_is_given_up_before_its_filesystem_is_full() {
    let scene = Scene::new();
    let mut pinner = scene.prepared();
    let mut pin = pinner.pin(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    let mut file = fs::File::create(scene.disk.path().join("sub/large")).unwrap();
    let started = Instant::now();
    while pin.afterwards().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(100), "nobody noticed");
        let free = rustix::fs::statvfs(scene.disk.path()).unwrap();
        if free.f_bavail * free.f_frsize > 8 << 20 {
            // What btrfs calls free may be a little more than what it can give at once.
            let written = file.write_all(&vec![7; 4 << 20]).and_then(|()| file.sync_all());
            if let Err(error) = written {
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
            }
        } else {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let problems = pin.afterwards();
    assert_eq!(missing(&problems), [scene.root()]);
    assert!(problems[0].what.contains("was given up") && !problems[0].remedy.is_empty(), "{problems:?}");
    assert!(
        fs::read(
            harvest
                .entries
                .iter()
                .find_map(|e| match &e.body {
                    Body::At(at) => Some(at.clone()),
                    _ => None,
                })
                .unwrap()
        )
        .is_err(),
        "what is gone must not be read as if it were there"
    );
    assert!(pin.harvest(&Silent).is_err());
    assert_eq!(fs::read(scene.root().join("file")).unwrap(), b"at the cut", "the original goes on");
    pin.release().unwrap();
    scene.nothing_is_left();
}
