//! Pins on real logical volumes, classic and thin, with XFS and ext4. As a test program on the host this starts
//! itself in a virtual machine by `scripts/in-vm` and runs its cases there: most kernels that tests run on have no
//! device mapper for them. Needs root and the packages named at the head of that script; fails where they are missing.

mod fs_support;
mod lvm_support;

use std::{
    any::Any,
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use engines::fs::{VolumePinner, Volumes, volume_of};
use fs_support::{Paper, Vault, harvested, live, plan, settle, soon, stamp, tick};
use lvm_support::{
    Counter, PaperFile, Rewriter, counted,
    disks::{Group, MIB, Make, Volume, mount_line, ours_mounted},
    eventually, left_open, noise, ok,
};
use model::{
    entry::{Body, Harvest, Stamp},
    id::SourceId,
    known::Known,
    plan::VolumePlan,
    port::{Clock, Failure, FailureKind, Journal, Pin, Pinner, Silent},
    problem::Effect,
    server::VolumeFacts,
    size::Bytes,
    undo::Undo,
    verdict::Stillness,
};
use os::{
    clock::{SystemClock, deadline_in},
    lvm::{self, Ready},
    undo::perform,
};
use testkit::conformance::pinner::{Bench, Content, suite};

const DISKS: [&str; 2] = ["/dev/vda", "/dev/vdb"];

fn main() -> ExitCode {
    lvm_support::run(
        &[
            ("a_snapshot_of_a_classic_volume_is_a_pinner", classic_conforms),
            ("a_snapshot_of_a_thin_volume_is_a_pinner", thin_conforms),
            ("a_snapshot_shows_the_instant", shows_the_instant),
            ("sources_on_one_volume_share_one_snapshot", shared),
            ("two_volumes_have_a_snapshot_each", two_volumes),
            ("too_little_room_is_refused_with_its_remedy", too_little_room),
            ("a_snapshot_is_extended_while_there_is_room", extended),
            ("a_snapshot_that_fills_up_is_given_up", fills_up),
            ("a_pool_that_fills_up_never_harms_the_original", pool_fills_up),
            ("whoever_is_killed_at_any_step_leaves_nothing_to_the_next", killed_at_any_step),
            ("a_pin_that_comes_too_late_is_removed", pin_too_late),
            ("a_snapshot_that_comes_too_late_is_removed", late),
            ("a_snapshot_without_room_is_refused_by_lvm", no_room),
            ("whoever_is_killed_while_a_snapshot_is_made_leaves_none", killed_while_making),
        ],
        role,
        None,
    )
}

fn role(role: &str, args: &[OsString]) -> Option<ExitCode> {
    match role {
        "__make" => make_one(Path::new(&args[1]), Path::new(&args[2])),
        "__pin" => pin_one(Path::new(&args[1]), Path::new(&args[2]), &args[3]),
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

/// What a cut knows of its volumes.
struct Means {
    staging: tempfile::TempDir,
    paper: Arc<Paper>,
    volumes: Volumes,
}

impl Means {
    fn new() -> Self {
        let (staging, paper) = (tempfile::tempdir().unwrap(), Arc::new(Paper::default()));
        let volumes = Volumes::new(paper.clone(), Arc::new(SystemClock), staging.path().join("s"));
        Self { staging, paper, volumes }
    }

    /// A pinner as the facts plan it, or with a snapshot of so many MiB.
    fn pinner(&self, root: &Path, mebibytes: Option<u64>) -> VolumePinner {
        let facts = facts(root);
        assert_eq!(facts.refusal, None);
        let size = mebibytes.map_or(facts.size, |size| Some(Bytes(size * MIB)));
        let plan = VolumePlan { tree: plan(root), volume: facts.volume, size };
        let shared = self.volumes.share(&plan.volume, size);
        let source = SourceId::new("directory", root.display());
        VolumePinner::new(source, &plan, shared, Arc::new(SystemClock)).unwrap()
    }

    fn leftovers(&self, group: &str) -> Vec<String> {
        let staged = fs::read_dir(self.staging.path().join("s")).into_iter().flatten();
        let staged = staged.map(|entry| entry.unwrap().path().display().to_string());
        let mounted = ours_mounted().into_iter().map(|point| point.display().to_string());
        let snapshots = lvm_support::disks::snapshots(group).into_iter();
        staged.chain(mounted).chain(snapshots).collect()
    }

    #[track_caller]
    fn nothing_is_left(&self, group: &Group) {
        assert_eq!(self.leftovers(&group.name), Vec::<String>::new());
        assert_eq!(self.paper.open(), vec![]);
    }
}

fn facts(root: &Path) -> VolumeFacts {
    volume_of(root).expect("it lies on a logical volume")
}

/// Where the pinned state of a file stands.
fn pinned_at(harvest: &Harvest, path: &Path) -> PathBuf {
    let entry = harvest.entries.iter().find(|e| e.path == path);
    match &entry.unwrap_or_else(|| panic!("{} is not pinned", path.display())).body {
        Body::At(at) => at.clone(),
        other => panic!("{}: {other:?}", path.display()),
    }
}

fn missing(problems: &[model::problem::Problem]) -> Vec<String> {
    problems.iter().filter(|p| p.effect == Effect::Missing).map(ToString::to_string).collect()
}

/// Files on a volume for the conformance suite.
struct VolumeBench {
    volume: Arc<Volume>,
    dir: tempfile::TempDir,
    means: Means,
}

impl VolumeBench {
    fn new(volume: Arc<Volume>) -> Self {
        let dir = tempfile::tempdir_in(volume.path()).unwrap();
        fs::create_dir_all(dir.path().join("root/sub")).unwrap();
        fs::write(dir.path().join("root/never changes"), b"the same").unwrap();
        fs::write(dir.path().join("root/empty"), b"").unwrap();
        Self { volume, dir, means: Means::new() }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
}

impl Bench for VolumeBench {
    fn pinner(&self) -> Box<dyn Pinner> {
        Box::new(self.means.pinner(&self.root(), None))
    }
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
    fn hold(&self) -> Box<dyn Any> {
        tick();
        Box::new(())
    }
    fn write(&self, step: u64) {
        let root = self.root();
        fs::write(root.join(format!("sub/new-{step}")), format!("step {step}")).unwrap();
        fs::write(root.join("in place"), format!("{step:08}")).unwrap();
        let _ = fs::remove_file(root.join(format!("sub/new-{}", step.wrapping_sub(2))));
    }
    fn writes_under_hold(&self) -> bool {
        true
    }
    fn live(&self) -> Content {
        let files = live(&self.root()).into_iter();
        files.filter_map(|(path, shown)| Some((path.display().to_string(), shown.content?))).collect()
    }
    fn stored(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> Content {
        let name = |path: &PathBuf| path.strip_prefix(self.root()).unwrap().display().to_string();
        files.iter().map(|(path, bytes)| (name(path), bytes.clone())).collect()
    }
    fn carries(&self) -> bool {
        true
    }
    fn settle(&self) {
        settle();
    }
    fn read_live(&self, path: &Path) -> Option<(Stamp, Vec<u8>)> {
        Some((stamp(path)?, fs::read(path).ok()?))
    }
    fn leftovers(&self) -> Vec<String> {
        self.means.leftovers(&self.volume.group)
    }
    fn open_undos(&self) -> usize {
        self.means.paper.open().len()
    }
    fn destroy(&self) -> bool {
        fs::remove_dir_all(self.root()).unwrap();
        true
    }
}

fn classic_conforms() {
    let group = Group::new(&DISKS);
    let volume = Arc::new(Volume::new(&group, "data", Make::Classic, 400, "xfs"));
    suite(|| Box::new(VolumeBench::new(Arc::clone(&volume))));
}

fn thin_conforms() {
    let group = Group::new(&DISKS);
    let volume = Arc::new(Volume::new(&group, "data", Make::Thin(600), 400, "ext4"));
    suite(|| Box::new(VolumeBench::new(Arc::clone(&volume))));
}

/// Held writers: exactly what they had written. Others: one instant of theirs. Written data need not have reached the
/// disk, files that were deleted while open are not there, and the options are those of a snapshot beside its origin.
fn shows_the_instant() {
    for (make, filesystem) in [(Make::Classic, "xfs"), (Make::Classic, "ext4"), (Make::Thin(600), "xfs")] {
        let group = Group::new(&DISKS);
        let volume = Volume::new(&group, "data", make, 400, filesystem);
        let (root, means) = (volume.root(), Means::new());
        let counter = Counter::start(&root);
        let deleted: Vec<File> = (0..20).map(|n| deleted_file(&root, n)).collect();
        let mut pinner = means.pinner(&root, None);
        assert_eq!(ok(pinner.prepare(&Known::default())), None);
        ok(pinner.round());
        let (mut pin, held) = counter.held(|| {
            fs::write(root.join("just written"), noise(3_000_000, 5)).unwrap();
            let held = live(&root);
            (ok(pinner.pin(soon())), held)
        });
        let Stillness::AtomicSnapshot(name) = ok(pin.unchanged(soon())) else { panic!("{make:?}") };
        assert!(name.contains("stillpoint-"), "{name}");
        counter.goes_on();
        let harvest = ok(pin.harvest(&Silent));
        assert_eq!(missing(&harvest.problems), Vec::<String>::new());
        assert!(harvested(&root, &harvest, &Vault::default()) == held, "{make:?} {filesystem}");
        assert_options(&harvest, &root, filesystem);
        counter.goes_on();
        assert_eq!(pin.afterwards(), vec![]);
        ok(pin.release());
        means.nothing_is_left(&group);
        ok(pinner.round());
        let mut pin = ok(pinner.pin(soon()));
        counter.goes_on();
        let harvest = ok(pin.harvest(&Silent));
        let seen = counted(|name| fs::read(pinned_at(&harvest, &root.join(name))).unwrap());
        assert!(seen > 0);
        drop((pin, deleted));
        means.nothing_is_left(&group);
        counter.end();
    }
}

fn deleted_file(root: &Path, n: u64) -> File {
    let path = root.join(format!("deleted-{n}"));
    fs::write(&path, noise(100_000, n)).unwrap();
    let open = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    open
}

fn assert_options(harvest: &Harvest, root: &Path, filesystem: &str) {
    let at = pinned_at(harvest, &root.join("first"));
    let point = at.ancestors().find(|dir| ours_mounted().iter().any(|point| point == dir)).expect("a mount");
    let line = mount_line(point);
    let options: Vec<&str> = line.split(' ').nth(3).unwrap().split(',').collect();
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.contains(&option), "{line}");
    }
    assert_eq!(options.contains(&"nouuid"), filesystem == "xfs", "{line}");
    File::create(point.join("new")).expect_err("it is mounted for reading only");
}

fn shared() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 400, "xfs");
    let means = Means::new();
    let roots = ["a", "b"].map(|name| volume.root().join(name));
    let mut pinners = roots.clone().map(|root| {
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), b"before").unwrap();
        means.pinner(&root, None)
    });
    pinners.iter_mut().for_each(|pinner| assert_eq!(ok(pinner.prepare(&Known::default())), None));
    let mut first = ok(pinners[0].pin(soon()));
    for root in &roots {
        fs::write(root.join("file"), b"after!").unwrap();
    }
    let mut second = ok(pinners[1].pin(soon()));
    assert_eq!(group.snapshots().len(), 1);
    assert_eq!(ok(first.unchanged(soon())), ok(second.unchanged(soon())));
    ok(first.harvest(&Silent));
    ok(first.release());
    assert_eq!(group.snapshots().len(), 1, "the other still reads");
    let harvest = ok(second.harvest(&Silent));
    assert_eq!(fs::read(pinned_at(&harvest, &roots[1].join("file"))).unwrap(), b"before");
    ok(second.release());
    means.nothing_is_left(&group);
}

fn two_volumes() {
    let group = Group::new(&DISKS);
    let volumes = [
        Volume::new(&group, "first", Make::Classic, 400, "xfs"),
        Volume::new(&group, "second", Make::Thin(500), 300, "ext4"),
    ];
    let means = Means::new();
    let counters = [Counter::start(&volumes[0].root()), Counter::start(&volumes[1].root())];
    let mut pinners = [0, 1].map(|n| means.pinner(&volumes[n].root(), None));
    pinners.iter_mut().for_each(|pinner| assert_eq!(ok(pinner.prepare(&Known::default())), None));
    let (pins, held) = counters[0].held(|| {
        counters[1].held(|| {
            let pins: Vec<Box<dyn Pin>> = pinners.iter_mut().map(|pinner| ok(pinner.pin(soon()))).collect();
            (pins, [0, 1].map(|n| live(&volumes[n].root())))
        })
    });
    counters.iter().for_each(Counter::goes_on);
    assert_eq!(group.snapshots().len(), 2);
    for (n, mut pin) in pins.into_iter().enumerate() {
        let harvest = ok(pin.harvest(&Silent));
        assert!(harvested(&volumes[n].root(), &harvest, &Vault::default()) == held[n], "volume {n}");
        ok(pin.release());
    }
    means.nothing_is_left(&group);
    counters.into_iter().for_each(Counter::end);
}

fn too_little_room() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 100, "ext4");
    let thin = Volume::new(&group, "thin", Make::Thin(200), 100, "ext4");
    lvm_support::disks::fill_pool(&thin, 92);
    group.leave_free(20);
    volume.come_up_again();
    let refusal = facts(&volume.path()).refusal.expect("20 MiB are too little");
    assert!(refusal.what.contains("20.0 MiB free"), "{refusal:?}");
    assert!(refusal.remedy.contains(&format!("vgextend {}", group.name)), "{refusal:?}");
    let refusal = facts(&thin.path()).refusal.expect("the pool is nearly full");
    assert!(refusal.what.contains("too full"), "{refusal:?}");
    assert!(refusal.remedy.contains("lvextend"), "{refusal:?}");
}

/// Files of so many MiB in all, 10 each.
fn fill(root: &Path, mebibytes: u64) -> Vec<PathBuf> {
    let files = (0..mebibytes / 10).map(|n| {
        let path = root.join(format!("file-{n}"));
        fs::write(&path, noise(usize::try_from(10 * MIB).unwrap(), 1000 + n)).unwrap();
        path
    });
    files.collect()
}

fn has_first_content(at: &Path, n: usize) -> bool {
    fs::read(at).is_ok_and(|bytes| bytes == noise(usize::try_from(10 * MIB).unwrap(), 1000 + n as u64))
}

fn extended() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 600, "xfs");
    let (root, means) = (volume.root(), Means::new());
    let files = fill(&root, 250);
    volume.come_up_again();
    let mut pinner = means.pinner(&root, Some(64));
    ok(pinner.prepare(&Known::default()));
    let mut pin = ok(pinner.pin(soon()));
    let harvest = ok(pin.harvest(&Silent));
    let rewriter = Rewriter::start(files.clone(), Duration::from_millis(20));
    rewriter.wait_for(250 * MIB);
    rewriter.end();
    assert_eq!(pin.afterwards(), vec![]);
    let size = lvm_support::disks::size(&group.name, &group.snapshots()[0]);
    assert!(size > 250 * MIB, "it was made larger: {} MiB", size / MIB);
    for (n, file) in files.iter().enumerate() {
        assert!(has_first_content(&pinned_at(&harvest, file), n), "{}", file.display());
    }
    ok(pin.release());
    means.nothing_is_left(&group);
}

/// Reads what is pinned, over and over, until it is taken away.
fn read_until_lost(pinned: &[PathBuf]) -> Result<(), String> {
    let until = Instant::now() + Duration::from_mins(2);
    while Instant::now() < until {
        for (n, path) in pinned.iter().enumerate() {
            let mut bytes = Vec::new();
            if File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).is_err() {
                return Ok(());
            }
            let expected = noise(usize::try_from(10 * MIB).unwrap(), 1000 + n as u64);
            if bytes != expected {
                return Err(format!("{} was read without an error, with other bytes", path.display()));
            }
        }
    }
    Err("it was never taken away".to_owned())
}

fn lost_while_read(volume: &Volume, files: Vec<PathBuf>, means: &Means, pace: Duration) -> Vec<String> {
    let mut pinner = means.pinner(&volume.root(), None);
    ok(pinner.prepare(&Known::default()));
    let mut pin = ok(pinner.pin(soon()));
    let harvest = ok(pin.harvest(&Silent));
    let pinned: Vec<PathBuf> = files.iter().map(|file| pinned_at(&harvest, file)).collect();
    let rewriter = Rewriter::start(files, pace);
    let read = thread::spawn(move || read_until_lost(&pinned));
    assert_eq!(read.join().unwrap(), Ok(()));
    let lost = missing(&pin.afterwards());
    rewriter.wait_for(20 * MIB);
    ok(pin.release());
    rewriter.wait_for(20 * MIB);
    rewriter.end();
    lost
}

fn fills_up() {
    for pace in [Duration::from_millis(50), Duration::ZERO] {
        let group = Group::new(&DISKS);
        let volume = Volume::new(&group, "data", Make::Classic, 600, "xfs");
        let means = Means::new();
        let files = fill(&volume.root(), 200);
        volume.come_up_again();
        group.leave_free(100);
        let lost = lost_while_read(&volume, files, &means, pace);
        assert!(lost.len() == 1 && lost[0].contains("given up"), "{lost:?}");
        means.nothing_is_left(&group);
    }
}

fn pool_fills_up() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Thin(450), 500, "xfs");
    let means = Means::new();
    let files = fill(&volume.root(), 240);
    group.leave_free(0);
    let lost = lost_while_read(&volume, files, &means, Duration::from_millis(50));
    assert!(lost.len() == 1 && lost[0].contains("pool") && lost[0].contains("given up"), "{lost:?}");
    let status =
        lvm_support::disks::output("lvs", &["--noheadings", "-o", "lv_attr,lv_health_status", &group.name]);
    assert!(!status.contains("out_of_data"), "{status}");
    means.nothing_is_left(&group);
}

/// In a process of its own: one whole pin, unless the fuse ends it before.
fn pin_one(root: &Path, scratch: &Path, fuse: &OsString) {
    let fuse = fuse.to_str().unwrap().parse().unwrap();
    let journal: Arc<dyn Journal> = Arc::new(PaperFile::new(&scratch.join("journal"), Some(fuse)));
    let volumes = Volumes::new(journal, Arc::new(SystemClock), scratch.join("s"));
    let facts = facts(root);
    let plan = VolumePlan { tree: plan(root), volume: facts.volume, size: facts.size };
    let shared = volumes.share(&plan.volume, plan.size);
    let source = SourceId::new("directory", root.display());
    let mut pinner = VolumePinner::new(source, &plan, shared, Arc::new(SystemClock)).unwrap();
    ok(pinner.prepare(&Known::default()));
    let mut pin = ok(pinner.pin(soon()));
    ok(pin.harvest(&Silent));
    ok(pin.release());
}

/// Killed after each entry in its journal in turn, until it comes to its end.
fn killed_at_any_step() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 400, "xfs");
    let root = volume.root();
    fs::write(root.join("file"), b"x").unwrap();
    for fuse in 1..20 {
        let scratch = tempfile::tempdir().unwrap();
        let mut child = Command::new(env::current_exe().unwrap());
        child.arg("__pin").args([&root, scratch.path()]).arg(fuse.to_string());
        let status = child.status().unwrap();
        let journal = scratch.path().join("journal");
        for _ in 0..2 {
            for undo in left_open(&journal).iter().rev() {
                perform(undo).unwrap_or_else(|error| panic!("killed after {fuse}: {error}"));
            }
        }
        assert_eq!(group.snapshots(), Vec::<String>::new(), "killed after {fuse}");
        assert_eq!(ours_mounted(), Vec::<PathBuf>::new(), "killed after {fuse}");
        let staged = fs::read_dir(scratch.path().join("s")).into_iter().flatten().count();
        assert_eq!(staged, 0, "killed after {fuse}");
        fs::write(root.join("file"), b"y").unwrap();
        if status.success() {
            assert!(fuse > 4, "a snapshot and a mount were made and unmade");
            assert_eq!(left_open(&journal), Vec::<Undo>::new());
            return;
        }
    }
    panic!("it never came to its end");
}

fn pin_too_late() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Thin(600), 400, "ext4");
    let counter = Counter::start(&volume.root());
    let means = Means::new();
    let mut pinner = means.pinner(&volume.root(), None);
    ok(pinner.prepare(&Known::default()));
    let started = Instant::now();
    let failure = pinner.pin(deadline_in(Duration::from_millis(50))).err().expect("that was no time");
    assert!(started.elapsed() < Duration::from_millis(600), "{:?}", started.elapsed());
    assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.in_full());
    counter.goes_on();
    drop(pinner);
    eventually("it is removed", || means.paper.open().is_empty().then_some(()));
    means.nothing_is_left(&group);
    counter.end();
}

/// A journal in a file in a new directory.
fn paper(dir: &tempfile::TempDir) -> Arc<dyn Journal> {
    Arc::new(PaperFile::new(&dir.path().join("journal"), None))
}

fn nothing_is_left(group: &Group) {
    assert_eq!(group.snapshots(), Vec::<String>::new());
    assert_eq!(ours_mounted(), Vec::<PathBuf>::new());
}

fn late() {
    let group = Group::new(&DISKS);
    let volume = Volume::new(&group, "data", Make::Classic, 400, "xfs");
    let dir = tempfile::tempdir().unwrap();
    let origin = lvm::find(&volume.path()).unwrap().expect("it lies on a logical volume");
    let ready = Ready::new(&paper(&dir), origin, Some(Bytes(32 * MIB))).unwrap();
    let started = Instant::now();
    let failure: Failure = ready.make(deadline_in(Duration::from_millis(30))).unwrap_err().into();
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
    let failure: Failure = ready.make(deadline_in(Duration::from_secs(30))).unwrap_err().into();
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
