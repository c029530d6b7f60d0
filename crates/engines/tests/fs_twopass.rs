//! Two-pass pins on whatever filesystem the temporary directory is on, as an ordinary user.

mod fs_support;

use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use engines::fs::{Form, Limits, TreePinner, probe};
use model::{
    entry::{Body, Harvest, Kind, Role},
    id::SourceId,
    known::Known,
    plan::TreePlan,
    port::{FailureKind, Pinner, Silent},
    problem::Effect,
    size::Bytes,
    undo::ProcessRef,
    verdict::Stillness,
};
use os::process::{process_ref, signal};
use rustix::process::{Pid, Signal, WaitOptions};
use testkit::conformance::pinner::suite;

use fs_support::{How, Paper, TreeBench, Vault, harvested, oracle, plan, settle, soon, tick, tree_pinner};

#[test]
fn the_plain_form_is_a_pinner() {
    suite(|| Box::new(TreeBench::new(How::Plain, tempfile::tempdir().unwrap())));
}

/// Where nothing can be cloned, the fast form does what the plain one does.
#[test]
fn the_fast_form_is_a_pinner_anywhere() {
    suite(|| Box::new(TreeBench::new(How::Fast, tempfile::tempdir().unwrap())));
}

#[test]
fn the_plain_form_pins_the_tree_of_the_pin() {
    oracle::run(&std::env::temp_dir(), Form::Plain, 40);
}

#[test]
fn the_fast_form_pins_the_tree_of_the_pin_anywhere() {
    oracle::run(&std::env::temp_dir(), Form::Fast, 20);
}

struct Case {
    dir: tempfile::TempDir,
    root: PathBuf,
    paper: Arc<Paper>,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        Self { dir, root, paper: Arc::default() }
    }

    fn pinner(&self, plan: &TreePlan) -> TreePinner {
        tree_pinner(plan, Form::Plain, &self.dir.path().join("staging"), &self.paper)
    }

    fn harvest(&self, plan: &TreePlan) -> (Harvest, Vault) {
        let mut vault = Vault::default();
        let mut pinner = self.pinner(plan);
        vault.store_ahead(pinner.prepare(&Known::default()).unwrap());
        tick();
        let mut pin = pinner.pin(soon()).unwrap();
        let mut harvest = pin.harvest(&Silent).unwrap();
        // What is staged is read while it is there.
        for entry in &mut harvest.entries {
            if entry.kind == Kind::File {
                entry.body = Body::Inline(vault.bytes(entry));
            }
        }
        (harvest, vault)
    }
}

#[test]
fn excluded_and_carved_names_are_left_out() {
    let case = Case::new();
    for name in ["cache/x", "keep", "app.db", "app.db-wal", "app.db-shm", "app.db-journal", "log/a.tmp"] {
        fs::create_dir_all(case.root.join(name).parent().unwrap()).unwrap();
        fs::write(case.root.join(name), b"x").unwrap();
    }
    let plan = TreePlan {
        exclude: vec!["cache/**".into(), "**/*.tmp".into()],
        carved: vec![case.root.join("app.db")],
        ..plan(&case.root)
    };
    let (harvest, vault) = case.harvest(&plan);
    let names: Vec<_> = harvested(&case.root, &harvest, &vault).into_keys().collect();
    assert_eq!(names, ["", "cache", "keep", "log"].map(PathBuf::from));
}

#[test]
fn a_linked_root_is_stored_as_link_and_target() {
    let case = Case::new();
    fs::write(case.root.join("file"), b"x").unwrap();
    let link = case.root.with_file_name("link");
    symlink("root", &link).unwrap();
    let (harvest, _) = case.harvest(&plan(&link));
    let by = |path: &Path| harvest.entries.iter().find(|e| e.path == path).map(|e| (e.kind.clone(), e.role));
    assert_eq!(by(&link), Some((Kind::Symlink("root".into()), Role::Content)));
    assert_eq!(by(&case.root), Some((Kind::Dir, Role::Content)));
    assert_eq!(by(&case.root.join("file")), Some((Kind::File, Role::Content)));
    assert_eq!(by(case.root.parent().unwrap()), Some((Kind::Dir, Role::Ancestor)));
}

#[test]
fn hard_links_sparse_files_and_attributes_come_through() {
    let case = Case::new();
    let mut pinner = case.pinner(&plan(&case.root));
    pinner.prepare(&Known::default()).unwrap();
    let big = fs::File::create(case.root.join("sparse")).unwrap();
    big.set_len(300 << 20).unwrap();
    fs::write(case.root.join("one"), b"content").unwrap();
    fs::hard_link(case.root.join("one"), case.root.join("two")).unwrap();
    xattr::set(case.root.join("one"), "user.note", b"\0x").unwrap();
    tick();
    let mut pin = pinner.pin(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    let by = |name: &str| harvest.entries.iter().find(|e| e.path == case.root.join(name)).unwrap();
    assert_eq!(by("one").meta.inode, by("two").meta.inode);
    assert_eq!(by("one").body, by("two").body, "one copy for both names");
    assert_eq!(by("two").meta.xattrs.iter().find(|x| x.name == b"user.note").unwrap().value, b"\0x");
    let Body::At(copy) = &by("sparse").body else { panic!("{:?}", by("sparse").body) };
    let meta = fs::metadata(copy).unwrap();
    assert_eq!(meta.len(), 300 << 20);
    assert!(meta.blocks() < 100, "holes stay holes: {} blocks", meta.blocks());
    pin.release().unwrap();
}

#[test]
fn what_is_too_large_to_copy_under_the_freeze_is_stored_but_makes_the_cut_weaker() {
    let case = Case::new();
    let mut pinner =
        case.pinner(&plan(&case.root)).with_limits(Limits { staged: Bytes(4999), ..Limits::default() });
    pinner.prepare(&Known::default()).unwrap();
    fs::write(case.root.join("large"), vec![1; 5000]).unwrap();
    fs::write(case.root.join("small"), vec![2; 4000]).unwrap();
    let mut pin = pinner.pin(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    let body =
        |name: &str| harvest.entries.iter().find(|e| e.path == case.root.join(name)).unwrap().body.clone();
    assert_eq!(body("large"), Body::At(case.root.join("large")));
    assert_eq!(body("small"), Body::Inline(vec![2; 4000]));
    let named: Vec<_> = harvest.problems.iter().map(|p| (p.effect, p.path.clone())).collect();
    assert_eq!(named, [(Effect::Weaker, Some(case.root.join("large")))]);
    pin.release().unwrap();

    settle();
    let mut pinner =
        case.pinner(&plan(&case.root)).with_limits(Limits { staged: Bytes(4999), ..Limits::default() });
    pinner.prepare(&Known::default()).unwrap();
    let mut pin = pinner.pin(soon()).unwrap();
    assert_eq!(pin.harvest(&Silent).unwrap().problems, []);
    pin.release().unwrap();
}

#[test]
fn what_is_to_be_stored_ahead_is_handed_over_in_parts() {
    let case = Case::new();
    let names = ["a/one", "a/three", "a/two", "b", "c/four"];
    for name in names {
        fs::create_dir_all(case.root.join(name).parent().unwrap()).unwrap();
        fs::write(case.root.join(name), name).unwrap();
    }
    settle();
    let mut pinner = case.pinner(&plan(&case.root)).with_limits(Limits { part: 2, ..Limits::default() });
    let first = pinner.prepare(&Known::default()).unwrap();
    let parts: Vec<_> =
        first.into_iter().chain(std::iter::from_fn(|| pinner.more_ahead(&Known::default()))).collect();
    assert_eq!(parts.iter().map(|part| part.entries.len()).collect::<Vec<_>>(), [2, 2, 1]);
    let paths: Vec<PathBuf> = parts.iter().flat_map(|part| part.entries.iter().map(|e| e.path)).collect();
    assert_eq!(paths, names.map(|name| case.root.join(name)));
    let known =
        parts.iter().flat_map(|part| part.entries.iter()).fold(Known::default(), |mut known, entry| {
            known.insert(&entry.path, entry.meta.stamp());
            known
        });
    fs::write(case.root.join("b"), "otherwise").unwrap();
    let new = pinner.prepare(&known).unwrap().unwrap();
    assert!(new.entries.iter().map(|e| e.path).eq([case.root.join("b")]));
    assert_eq!(pinner.more_ahead(&known), None);
}

#[test]
fn much_that_is_young_is_given_a_second_to_settle() {
    let case = Case::new();
    fs::write(case.root.join("large"), vec![1; 70 << 20]).unwrap();
    let mut pinner =
        case.pinner(&plan(&case.root)).with_limits(Limits { staged: Bytes(4999), ..Limits::default() });
    pinner.prepare(&Known::default()).unwrap();
    let mut pin = pinner.pin(soon()).unwrap();
    assert_eq!(pin.harvest(&Silent).unwrap().problems, []);
    pin.release().unwrap();
}

/// Another process that has a file mapped and stores into it now and then. A page stays dirty in between, so
/// the stores leave no trace.
struct Writer(ProcessRef);

impl Writer {
    fn of(path: &Path) -> Self {
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: the kernel chooses an address where nothing is.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, file.as_raw_fd(), 0) };
        assert!(map != libc::MAP_FAILED);
        // SAFETY: the child stores into the mapping and sleeps, and calls nothing else.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            for number in 0_u64.. {
                // SAFETY: the mapping is writable, and this child never unmaps it.
                unsafe {
                    map.cast::<u64>().write_volatile(number);
                    libc::usleep(1_000);
                }
            }
        }
        // SAFETY: this process uses the mapping no more.
        assert_eq!(unsafe { libc::munmap(map, 4096) }, 0);
        Self(process_ref(pid.cast_unsigned()).unwrap())
    }

    fn stop(&self) {
        signal(self.0, Signal::STOP).unwrap();
        tick();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _gone = signal(self.0, Signal::KILL);
        let _gone = rustix::process::waitpid(Pid::from_raw(self.0.pid.cast_signed()), WaitOptions::empty());
    }
}

/// A file that is mapped, one that is not, both settled.
fn mapped_and_other(case: &Case) -> (PathBuf, PathBuf) {
    let (mapped, other) = (case.root.join("mapped"), case.root.join("other"));
    fs::write(&mapped, [b'x'; 4096]).unwrap();
    fs::write(&other, b"other").unwrap();
    (mapped, other)
}

fn body_of(harvest: &Harvest, path: &Path) -> Body {
    harvest.entries.iter().find(|e| e.path == path).unwrap().body.clone()
}

#[test]
fn files_that_a_held_process_has_mapped_are_copied_again() {
    let case = Case::new();
    let (mapped, other) = mapped_and_other(&case);
    let writer = Writer::of(&mapped);
    let held = writer.0;
    let mut pinner = case.pinner(&plan(&case.root)).with_held(Arc::new(move || vec![held]));
    settle();
    pinner.prepare(&Known::default()).unwrap();
    pinner.round().unwrap();
    writer.stop();
    let now = fs::read(&mapped).unwrap();
    let mut pin = pinner.pin(soon()).unwrap();
    assert!(matches!(pin.unchanged(soon()).unwrap(), Stillness::NothingChanged(_)));
    signal(held, Signal::CONT).unwrap();
    tick();
    let harvest = pin.harvest(&Silent).unwrap();
    let entry = harvest.entries.iter().find(|e| e.path == mapped).unwrap();
    assert!(Vault::default().bytes(entry) == now, "as it was while its writer was held");
    let thawed = jiff::Timestamp::now();
    assert!(!entry.meta.stamp().is_settled_at(thawed), "no later backup carries over what was mapped");
    assert_eq!(body_of(&harvest, &other), Body::Carried);
    assert_eq!(harvest.problems, []);
}

#[test]
fn a_mapping_of_somebody_who_is_not_held_makes_the_cut_weaker() {
    for early in [true, false] {
        let case = Case::new();
        let (mapped, _) = mapped_and_other(&case);
        let before = early.then(|| Writer::of(&mapped));
        settle();
        let mut pinner = case.pinner(&plan(&case.root));
        pinner.prepare(&Known::default()).unwrap();
        let writer = before.unwrap_or_else(|| Writer::of(&mapped));
        let mut pin = pinner.pin(soon()).unwrap();
        pin.unchanged(soon()).unwrap();
        let harvest = pin.harvest(&Silent).unwrap();
        let [problem] = &harvest.problems[..] else { panic!("{:?}", harvest.problems) };
        assert_eq!(
            (problem.effect, problem.path.as_ref()),
            (Effect::Weaker, Some(&mapped)),
            "early: {early}"
        );
        assert!(problem.what.contains(&format!("process {} (", writer.0.pid)), "{}", problem.what);
        assert!(problem.remedy.contains("[application.process]"), "{}", problem.remedy);
        let entry = harvest.entries.iter().find(|e| e.path == mapped).unwrap();
        assert!(!entry.meta.stamp().is_settled_at(jiff::Timestamp::now()), "early: {early}");
        assert!(entry.body != Body::Carried, "early: {early}");
    }
}

/// As when a stop hook ends it; who starts afterwards is not to blame.
#[test]
fn what_a_process_had_mapped_that_ended_before_the_pin_is_brought_in_again() {
    let case = Case::new();
    let (mapped, other) = mapped_and_other(&case);
    let writer = Writer::of(&mapped);
    settle();
    let mut pinner = case.pinner(&plan(&case.root));
    pinner.prepare(&Known::default()).unwrap();
    drop(writer);
    tick();
    let now = fs::read(&mapped).unwrap();
    let mut pin = pinner.pin(soon()).unwrap();
    assert!(matches!(pin.unchanged(soon()).unwrap(), Stillness::NothingChanged(_)));
    tick();
    let _after = Writer::of(&mapped);
    let harvest = pin.harvest(&Silent).unwrap();
    let entry = harvest.entries.iter().find(|e| e.path == mapped).unwrap();
    assert!(Vault::default().bytes(entry) == now);
    assert_eq!(body_of(&harvest, &other), Body::Carried);
    assert_eq!(harvest.problems, []);
}

#[test]
fn a_late_copy_gives_up_and_says_what_was_left() {
    let case = Case::new();
    let mut pinner = case.pinner(&plan(&case.root));
    pinner.prepare(&Known::default()).unwrap();
    fs::write(case.root.join("large"), vec![1; 200 << 20]).unwrap();
    let failure = pinner.pin(os::clock::deadline_in(Duration::from_millis(20))).err().unwrap();
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert!(failure.what.contains("1 changed files with 200.0 MiB were left"), "{}", failure.what);
}

#[test]
fn probing_says_what_is_wrong_and_what_to_do() {
    let case = Case::new();
    let source = SourceId::new("directory", "x");
    let staging = case.dir.path().join("state/staging");
    let facts = probe(&source, &case.root.join("none"), &[], &staging);
    assert!(facts.refusal.unwrap().remedy.contains("create it"));
    fs::write(case.root.join("file"), b"x").unwrap();
    let facts = probe(&source, &case.root.join("file"), &[], &staging);
    assert!(facts.refusal.unwrap().remedy.contains("name a directory"));
    let facts = probe(&source, &case.root, &["a[".into()], &staging);
    assert!(facts.refusal.unwrap().what.contains("a["));
    let facts = probe(&source, &case.root, &[], &staging);
    assert_eq!(facts.refusal, None);
    assert_eq!(facts.entries, 2);
    assert!(!facts.filesystem.is_empty());
    assert!(!staging.parent().unwrap().exists(), "nothing is made");
    assert!(!facts.subvolume || facts.filesystem == "btrfs");
}
