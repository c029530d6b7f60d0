//! The control group freezer of both versions, as root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use model::{
    inventory::ProcessSelector,
    plan::ProcessMethod,
    port::{Failure, FailureKind, Hold, Journal},
    time::Deadline,
    undo::{Ticket, Undo},
};
use os::{clock::deadline_in, hold::ProcessHold, undo};

const LONG: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Memory(Mutex<Vec<Undo>>);

impl Journal for Memory {
    fn intend(&self, undo: Undo, _until: Option<Deadline>) -> Result<Ticket, Failure> {
        self.0.lock().unwrap().push(undo);
        Ok(Ticket(0))
    }
    fn amend(&self, _ticket: Ticket, _undo: Undo, _until: Option<Deadline>) -> Result<(), Failure> {
        unreachable!("a group is not amended")
    }
    fn done(&self, _ticket: Ticket) {
        self.0.lock().unwrap().clear();
    }
}

/// A control group of the test with a writer in it, named like a unit.
struct Scene {
    dir: tempfile::TempDir,
    group: PathBuf,
    child: Child,
}

impl Scene {
    fn new(hierarchy: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let group = hierarchy.join(format!("stillpoint-test-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let script = "sleep 1000 & while :; do echo >>data; done";
        let child = Command::new("sh").args(["-c", script]).current_dir(&dir).stdin(Stdio::null()).spawn();
        let scene = Self { dir, group, child: child.unwrap() };
        fs::write(scene.group.join("cgroup.procs"), scene.child.id().to_string()).unwrap();
        fs::write(scene.dir.path().join("pid"), scene.child.id().to_string()).unwrap();
        scene.eventually("both processes run", || os::process::find(&scene.selector()).unwrap().len() == 2);
        for process in os::process::find(&scene.selector()).unwrap() {
            fs::write(scene.group.join("cgroup.procs"), process.pid.to_string()).unwrap();
        }
        scene
    }

    fn selector(&self) -> ProcessSelector {
        ProcessSelector::PidFile(self.dir.path().join("pid"))
    }

    fn len(&self) -> u64 {
        fs::metadata(self.dir.path().join("data")).map_or(0, |meta| meta.len())
    }

    fn eventually(&self, what: &str, condition: impl Fn() -> bool) {
        let began = Instant::now();
        while !condition() {
            assert!(began.elapsed() < LONG, "not in time: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn assert_runs(&self) {
        let before = self.len();
        self.eventually("it writes", || self.len() > before);
    }

    fn assert_still(&self) {
        let before = self.len();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(before, self.len());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        undo::perform(&Undo::ThawCgroup { cgroup: self.group.clone() }).unwrap();
        for process in os::process::find(&self.selector()).unwrap() {
            undo::perform(&Undo::End { process }).unwrap();
        }
        self.child.wait().unwrap();
        self.eventually("the group can be removed", || fs::remove_dir(&self.group).is_ok());
    }
}

/// Where the hierarchy is mounted. What the tests need is missing if it is not.
fn mounted(wanted: fn(&str, &str) -> bool) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        wanted(fields[2], fields[3]).then(|| fields[1].into())
    })
}

fn freezes_and_thaws(hierarchy: &Path) {
    let scene = Scene::new(hierarchy);
    let journal = Arc::new(Memory::default());
    let method = ProcessMethod::Freezer { cgroup: scene.group.clone() };
    let port: Arc<dyn Journal> = Arc::clone(&journal) as Arc<dyn Journal>;
    let mut hold = ProcessHold::new(scene.selector(), method.clone(), [], Arc::clone(&port));
    hold.prepare().unwrap();
    for _ in 0..3 {
        let mut frozen = hold.freeze(deadline_in(LONG)).unwrap_or_else(|f| panic!("{}", f.in_full()));
        assert_eq!(*journal.0.lock().unwrap(), [Undo::ThawCgroup { cgroup: scene.group.clone() }]);
        scene.assert_still();
        frozen.prove().unwrap();
        frozen.thaw().unwrap();
        assert!(journal.0.lock().unwrap().is_empty());
        scene.assert_runs();
    }

    let mut frozen = hold.freeze(deadline_in(LONG)).unwrap();
    let second = hold.freeze(deadline_in(LONG)).err().expect("it is frozen already");
    assert_eq!(second.kind, FailureKind::Busy);
    scene.assert_still();
    undo::perform(&Undo::ThawCgroup { cgroup: scene.group.clone() }).unwrap();
    scene.assert_runs();
    assert_eq!(frozen.prove().unwrap_err().kind, FailureKind::Lost);
    drop(frozen);

    // Ourselves in the group: refused, and nobody is left frozen.
    let back = hierarchy.join("cgroup.procs");
    fs::write(scene.group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let refused = hold.freeze(deadline_in(LONG));
    fs::write(back, std::process::id().to_string()).unwrap();
    assert_eq!(refused.err().expect("we are in it").kind, FailureKind::Refused);
    scene.assert_runs();
}

/// One test, since both move this very process between groups.
#[test]
fn both_versions_freeze_and_thaw() {
    let two = mounted(|kind, _| kind == "cgroup2").expect("a cgroup2 filesystem must be mounted");
    freezes_and_thaws(&two);

    let one = |kind: &str, options: &str| kind == "cgroup" && options.split(',').any(|o| o == "freezer");
    if let Some(one) = mounted(one) {
        freezes_and_thaws(&one);
    } else {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "cgroup", "-o", "freezer", "none"]).arg(dir.path()).status().unwrap();
        assert!(mount.success(), "the kernel has no version 1 freezer: this test needs one that has");
        let result = std::panic::catch_unwind(|| freezes_and_thaws(dir.path()));
        assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
        result.unwrap();
    }
}
