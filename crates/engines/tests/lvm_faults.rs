//! Snapshots of logical volumes that are made but cannot be read, or are taken away: what then is left, and said. As
//! `lvm_real`, this runs its cases in a virtual machine.

mod fs_support;
mod lvm_support;

use std::{fs, process::ExitCode, sync::Arc};

use engines::fs::{VolumePinner, Volumes, volume_of};
use fs_support::{Paper, plan, soon, volumes};
use lvm_support::{
    disks::{Group, Make, ours_mounted, output},
    ok,
};
use model::{
    id::SourceId,
    known::Known,
    plan::VolumePlan,
    port::{Failure, Pinner, Silent},
    server::Volume,
    undo::Undo,
};
use os::clock::SystemClock;

const DISKS: [&str; 2] = ["/dev/vda", "/dev/vdb"];

fn main() -> ExitCode {
    lvm_support::run(
        &[
            ("a_snapshot_that_cannot_be_mounted_leaves_nothing", cannot_be_mounted),
            ("a_mount_point_that_cannot_be_made_leaves_nothing", no_mount_point),
            ("a_snapshot_that_somebody_else_removes_is_told", removed),
            ("a_volume_of_others_is_never_removed", foreign),
        ],
        |_, _| None,
        None,
    )
}

struct Scene {
    // Goes before the group.
    volume: lvm_support::disks::Volume,
    group: Group,
    staging: tempfile::TempDir,
    paper: Arc<Paper>,
}

impl Scene {
    fn new() -> Self {
        let group = Group::new(&DISKS);
        let volume = lvm_support::disks::Volume::new(&group, "data", Make::Classic, 400, "xfs");
        fs::write(volume.root().join("file"), b"x").unwrap();
        Self { group, volume, staging: tempfile::tempdir().unwrap(), paper: Arc::default() }
    }

    /// A pinner that takes the volume's filesystem for another one.
    fn pinner(&self, volumes: &Volumes, taken_for: &str) -> VolumePinner {
        let facts = volume_of(&self.volume.root()).unwrap();
        let mut plan = VolumePlan { tree: plan(&self.volume.root()), volume: facts.volume, size: facts.size };
        if let Volume::Lvm { filesystem, .. } = &mut plan.volume {
            taken_for.clone_into(filesystem);
        }
        let shared = volumes.share(&plan.volume, plan.size);
        let source = SourceId::new("directory", "x");
        VolumePinner::new(source, &plan, shared, Arc::new(SystemClock)).unwrap()
    }

    /// Pins and harvests, which fails.
    fn fails(&self, volumes: &Volumes, taken_for: &str) -> Failure {
        let mut pinner = self.pinner(volumes, taken_for);
        ok(pinner.prepare(&Known::default()));
        let mut pin = ok(pinner.pin(soon()));
        assert_eq!(self.group.snapshots().len(), 1);
        let failure = pin.harvest(&Silent).expect_err("it cannot be read");
        ok(pin.release());
        failure
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.paper.open(), vec![]);
        assert_eq!(self.group.snapshots(), Vec::<String>::new());
        assert!(ours_mounted().is_empty());
        fs::write(self.volume.root().join("file"), b"goes on").unwrap();
    }
}

fn cannot_be_mounted() {
    let scene = Scene::new();
    let staging = scene.staging.path().join("s");
    let failure = scene.fails(&volumes(&staging, &scene.paper), "ext4");
    assert!(failure.in_full().contains("cannot be mounted"), "{}", failure.in_full());
    assert_eq!(fs::read_dir(staging).unwrap().count(), 0);
    scene.nothing_is_left();
}

fn no_mount_point() {
    let scene = Scene::new();
    let staging = scene.staging.path().join("file");
    fs::write(&staging, b"").unwrap();
    scene.fails(&volumes(&staging, &scene.paper), "xfs");
    scene.nothing_is_left();
}

fn removed() {
    let scene = Scene::new();
    let volumes = volumes(&scene.staging.path().join("s"), &scene.paper);
    let mut pinner = scene.pinner(&volumes, "xfs");
    ok(pinner.prepare(&Known::default()));
    let mut pin = ok(pinner.pin(soon()));
    let full = format!("{}/{}", scene.group.name, scene.group.snapshots()[0]);
    output("lvremove", &["-f", "-y", &full]);
    let problems = pin.afterwards();
    assert!(problems.len() == 1 && problems[0].what.contains("somebody else"), "{problems:?}");
    assert!(pin.harvest(&Silent).is_err());
    ok(pin.release());
    scene.nothing_is_left();
}

/// Neither one that only has such a name, nor one that has a name of its own.
fn foreign() {
    let scene = Scene::new();
    let (group, named) = (scene.group.name.clone(), "stillpoint-0123456789abcdef");
    output("lvcreate", &["-y", "-L", "16M", "-n", named, &group]);
    output(
        "lvcreate",
        &["-y", "-s", "-L", "16M", "-n", "stillpoint-fedcba9876543210", &format!("{group}/data")],
    );
    for name in [named, "stillpoint-fedcba9876543210", "data"] {
        let undo = Undo::RemoveLogicalVolume { group: group.clone(), name: name.to_owned() };
        let error = os::undo::perform(&undo).expect_err("it is not ours").to_string();
        assert!(error.contains("is not a snapshot of ours"), "{error}");
    }
    let gone = Undo::RemoveLogicalVolume { group: "no-such-group".to_owned(), name: named.to_owned() };
    os::undo::perform(&gone).unwrap();
    output(
        "lvremove",
        &["-f", "-y", &format!("{group}/{named}"), &format!("{group}/stillpoint-fedcba9876543210")],
    );
    scene.nothing_is_left();
}
