//! Pins on real logical volumes, classic and thin, with XFS and ext4. As a test program on the host this starts
//! itself in a virtual machine by `scripts/in-vm` and runs its cases there: most kernels that tests run on have no
//! device mapper for them. Needs root and the packages named at the head of that script; fails where they are missing.

mod lvm_support;

use std::{
    env,
    ffi::OsString,
    fs,
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lvm_support::{
    PaperFile,
    disks::{Group, MIB, Make, Volume, ours_mounted},
    eventually, left_open,
};
use model::{
    port::{FailureKind, Journal},
    size::Bytes,
};
use os::{
    clock::deadline_in,
    lvm::{self, Ready},
    undo::perform,
};

const DISKS: [&str; 2] = ["/dev/vda", "/dev/vdb"];

fn main() -> ExitCode {
    lvm_support::run(
        &[
            ("a_snapshot_that_comes_too_late_is_removed", late),
            ("a_snapshot_without_room_is_refused_by_lvm", no_room),
            ("whoever_is_killed_while_a_snapshot_is_made_leaves_none", killed_while_making),
        ],
        role,
    )
}

fn role(role: &str, args: &[OsString]) -> Option<ExitCode> {
    match role {
        "__make" => make_one(Path::new(&args[1]), Path::new(&args[2])),
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

/// A journal in a file in a new directory.
fn paper(dir: &tempfile::TempDir) -> Arc<dyn Journal> {
    Arc::new(PaperFile::new(&dir.path().join("journal"), None))
}

fn nothing_is_left(group: &Group) {
    assert_eq!(group.snapshots(), Vec::<String>::new());
    assert_eq!(ours_mounted(), Vec::<std::path::PathBuf>::new());
}

fn late() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 400, "xfs");
    let dir = tempfile::tempdir().unwrap();
    let origin = lvm::find(&volume.path()).unwrap().expect("it lies on a logical volume");
    let ready = Ready::new(&paper(&dir), origin, Some(Bytes(32 * MIB))).unwrap();
    let started = Instant::now();
    let failure: model::port::Failure =
        ready.make(deadline_in(Duration::from_millis(30))).unwrap_err().into();
    assert!(started.elapsed() < Duration::from_millis(400), "{:?}", started.elapsed());
    assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.in_full());
    fs::write(volume.path().join("goes on"), b"x").unwrap();
    eventually("it is crossed off", || left_open(&dir.path().join("journal")).is_empty().then_some(()));
    nothing_is_left(&group);
}

fn no_room() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 400, "ext4");
    group.leave_free(20);
    let dir = tempfile::tempdir().unwrap();
    let origin = lvm::find(&volume.path()).unwrap().unwrap();
    let ready = Ready::new(&paper(&dir), origin, Some(Bytes(64 * MIB))).unwrap();
    let failure: model::port::Failure = ready.make(deadline_in(Duration::from_secs(30))).unwrap_err().into();
    assert_eq!(failure.kind, FailureKind::NoSpace, "{}", failure.in_full());
    assert!(failure.remedy.contains("vgextend"), "{}", failure.remedy);
    assert!(left_open(&dir.path().join("journal")).is_empty());
    nothing_is_left(&group);
}

/// In a process of its own: makes a snapshot and waits to be killed.
fn make_one(of: &Path, journal: &Path) {
    let journal: Arc<dyn Journal> = Arc::new(PaperFile::new(journal, None));
    let origin = lvm::find(of).unwrap().unwrap();
    let ready = Ready::new(&journal, origin, Some(Bytes(32 * MIB))).unwrap();
    let _snapshot = ready.make(deadline_in(Duration::from_secs(30))).unwrap();
    thread::sleep(Duration::from_secs(60));
}

fn killed_while_making() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 400, "xfs");
    for delay in [0, 40, 150, 400, 900] {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        let mut child = Command::new(env::current_exe().unwrap())
            .arg("__make")
            .args([&volume.path(), &journal])
            .spawn()
            .unwrap();
        eventually("it is written down", || (!left_open(&journal).is_empty()).then_some(()));
        thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        for undo in left_open(&journal) {
            perform(&undo).unwrap_or_else(|error| panic!("{delay} ms: {error}"));
        }
        // Whatever was under way has ended by then.
        thread::sleep(Duration::from_secs(3));
        assert_eq!(group.snapshots(), Vec::<String>::new(), "killed after {delay} ms");
        fs::write(volume.path().join("goes on"), b"x").unwrap();
    }
    nothing_is_left(&group);
}
