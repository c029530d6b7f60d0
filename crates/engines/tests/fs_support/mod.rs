//! What the tests of directory pins share: a journal on paper, a vault that keeps what it was given, a bench for
//! the conformance suite, and whole trees as values.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod disk;
pub mod oracle;

use std::{
    any::Any,
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use engines::fs::{Form, SnapshotPinner, TreePinner, VolumePinner, Volumes, volume_of};
use model::{
    entry::{Body, Entry, Harvest, Kind, Manifest, SETTLING, Stamp},
    id::SourceId,
    plan::{TreePlan, VolumePlan},
    port::{Clock, Failure, Journal, Pinner},
    size::Bytes,
    time::Deadline,
    undo::{Ticket, Undo},
};
use os::clock::SystemClock;
use testkit::conformance::pinner::{Bench, Content};

/// A journal in memory.
#[derive(Default)]
pub struct Paper {
    next: Mutex<u64>,
    open: Mutex<BTreeMap<u64, Undo>>,
}

impl Paper {
    pub fn open(&self) -> Vec<Undo> {
        self.open.lock().unwrap().values().cloned().collect()
    }
}

impl Journal for Paper {
    fn intend(&self, undo: Undo, _until: Option<Deadline>) -> Result<Ticket, Failure> {
        let mut next = self.next.lock().unwrap();
        *next += 1;
        self.open.lock().unwrap().insert(*next, undo);
        Ok(Ticket(*next))
    }
    fn amend(&self, ticket: Ticket, undo: Undo, _until: Option<Deadline>) -> Result<(), Failure> {
        self.open.lock().unwrap().insert(ticket.0, undo);
        Ok(())
    }
    fn done(&self, ticket: Ticket) {
        self.open.lock().unwrap().remove(&ticket.0);
    }
}

pub fn plan(root: &Path) -> TreePlan {
    TreePlan { root: root.to_owned(), exclude: vec![], carved: vec![], nested_mounts: vec![] }
}

pub fn tree_pinner(plan: &TreePlan, form: Form, staging: &Path, paper: &Arc<Paper>) -> TreePinner {
    let source = SourceId::new("directory", plan.root.display());
    let journal: Arc<dyn Journal> = paper.clone();
    TreePinner::new(source, plan, form, staging.to_owned(), journal, Arc::new(SystemClock)).unwrap()
}

pub fn snapshot_pinner(plan: &TreePlan, parent: &Path, paper: &Arc<Paper>) -> SnapshotPinner {
    let source = SourceId::new("directory", plan.root.display());
    let journal: Arc<dyn Journal> = paper.clone();
    SnapshotPinner::new(source, plan, parent.to_owned(), journal, Arc::new(SystemClock)).unwrap()
}

pub fn volumes(staging: &Path, paper: &Arc<Paper>) -> Volumes {
    Volumes::new(paper.clone(), Arc::new(SystemClock), staging.to_owned())
}

/// A pinner by the volume that the plan's root lies on now.
pub fn volume_pinner(plan: &TreePlan, volumes: &Volumes) -> VolumePinner {
    let source = SourceId::new("directory", plan.root.display());
    let facts = volume_of(&plan.root).expect("it lies on a volume");
    assert_eq!(facts.refusal, None);
    let plan = VolumePlan { tree: plan.clone(), volume: facts.volume, size: facts.size };
    let shared = volumes.share(&plan.volume, plan.size);
    VolumePinner::new(source, &plan, shared, Arc::new(SystemClock)).unwrap()
}

pub fn soon() -> Deadline {
    os::clock::deadline_in(Duration::from_secs(20))
}

/// Longer than a tick of the clock that stamps files, as any lock takes.
pub fn tick() {
    std::thread::sleep(Duration::from_millis(20));
}

pub fn settle() {
    std::thread::sleep(SETTLING + Duration::from_millis(50));
}

pub fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::symlink_metadata(path).ok()?;
    let nanos = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
    Some(Stamp {
        size: Bytes(meta.len()),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        inode: meta.ino(),
    })
}

/// Plays the vault: what was stored ahead, by path.
#[derive(Default)]
pub struct Vault(BTreeMap<PathBuf, (Stamp, Vec<u8>)>);

impl Vault {
    pub fn store_ahead(&mut self, manifest: Option<Manifest>) {
        for entry in manifest.iter().flat_map(|m| m.entries.iter()) {
            if entry.kind == Kind::File
                && let Ok(bytes) = fs::read(&entry.path)
                && stamp(&entry.path) == Some(entry.meta.stamp())
            {
                self.0.insert(entry.path, (entry.meta.stamp(), bytes));
            }
        }
    }

    /// The bytes that a restore of this entry would have.
    pub fn bytes(&self, entry: &Entry) -> Vec<u8> {
        match &entry.body {
            Body::At(path) => fs::read(path).unwrap(),
            Body::Inline(bytes) => bytes.clone(),
            Body::Carried => match self.0.get(&entry.path) {
                Some((stamp, bytes)) if *stamp == entry.meta.stamp() => bytes.clone(),
                _ => panic!("{} is carried but was never stored so", entry.path.display()),
            },
            Body::Nothing => panic!("{} has no body", entry.path.display()),
        }
    }
}

/// One name of a tree as a restore would show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub kind: Kind,
    pub mode: u32,
    pub mtime: i128,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub content: Option<Vec<u8>>,
}

pub type Tree = BTreeMap<PathBuf, Shown>;

/// What a harvest would restore below `root`.
pub fn harvested(root: &Path, harvest: &Harvest, vault: &Vault) -> Tree {
    let inside = harvest.entries.iter().filter(|e| e.path.starts_with(root));
    inside
        .map(|entry| {
            let content = (entry.kind == Kind::File).then(|| vault.bytes(entry));
            if let Some(bytes) = &content {
                assert_eq!(entry.meta.size.0, bytes.len() as u64, "{}", entry.path.display());
            }
            let xattrs = entry.meta.xattrs.iter().map(|x| (x.name.clone(), x.value.clone())).collect();
            let shown = Shown {
                kind: entry.kind.clone(),
                mode: entry.meta.mode,
                mtime: entry.meta.mtime.as_nanosecond(),
                xattrs,
                content,
            };
            (entry.path.strip_prefix(root).unwrap().to_owned(), shown)
        })
        .collect()
}

/// The live tree, by the standard library and not by what is under test.
pub fn live(root: &Path) -> Tree {
    let mut tree = Tree::new();
    add(root, root, &mut tree);
    tree
}

fn add(root: &Path, path: &Path, tree: &mut Tree) {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = if meta.is_dir() {
        Kind::Dir
    } else if meta.is_symlink() {
        Kind::Symlink(fs::read_link(path).unwrap())
    } else {
        Kind::File
    };
    if kind == Kind::Dir {
        for child in fs::read_dir(path).unwrap() {
            let child = child.unwrap().path();
            if !child.file_name().unwrap().to_string_lossy().starts_with(".stillpoint-") {
                add(root, &child, tree);
            }
        }
    }
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = xattr::list(path)
        .map(|names| {
            names
                // How XFS keeps an access list on its disk, beside the list itself.
                .filter(|n| !n.to_string_lossy().starts_with("trusted.SGI_ACL_"))
                .filter_map(|n| {
                    let value = xattr::get(path, &n).ok()??;
                    Some((n.into_encoded_bytes(), value))
                })
                .collect()
        })
        .unwrap_or_default();
    xattrs.sort();
    let shown = Shown {
        mode: meta.mode(),
        mtime: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        xattrs,
        content: (kind == Kind::File).then(|| fs::read(path).unwrap()),
        kind,
    };
    tree.insert(path.strip_prefix(root).unwrap().to_owned(), shown);
}

/// Which pinner a bench makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Plain,
    Fast,
    Snapshot,
    Volume,
    /// By a stand-in for a volume, whose snapshots are copies: nothing looks unchanged in them.
    Copied,
}

/// A directory for the conformance suite.
pub struct TreeBench {
    pub how: How,
    /// Holds `root`, which is the source, and `staging`.
    pub dir: tempfile::TempDir,
    pub paper: Arc<Paper>,
}

impl TreeBench {
    /// The directory `root` below `dir` must be there.
    pub fn new(how: How, dir: tempfile::TempDir) -> Self {
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::create_dir(dir.path().join("staging")).unwrap();
        fs::write(root.join("never changes"), b"the same").unwrap();
        fs::write(root.join("sub/deep/nor this"), vec![7; 100_000]).unwrap();
        fs::write(root.join("empty"), b"").unwrap();
        Self { how, dir, paper: Arc::default() }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn staging(&self) -> PathBuf {
        self.dir.path().join("staging")
    }
}

impl Bench for TreeBench {
    fn pinner(&self) -> Box<dyn Pinner> {
        let plan = plan(&self.root());
        match self.how {
            How::Plain => Box::new(tree_pinner(&plan, Form::Plain, &self.staging(), &self.paper)),
            How::Fast => Box::new(tree_pinner(&plan, Form::Fast, &self.staging(), &self.paper)),
            How::Snapshot => Box::new(snapshot_pinner(&plan, &self.staging(), &self.paper)),
            How::Volume | How::Copied => {
                Box::new(volume_pinner(&plan, &volumes(&self.staging(), &self.paper)))
            }
        }
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
        self.how != How::Copied
    }
    fn settle(&self) {
        settle();
    }
    fn read_live(&self, path: &Path) -> Option<(Stamp, Vec<u8>)> {
        Some((stamp(path)?, fs::read(path).ok()?))
    }
    fn leftovers(&self) -> Vec<String> {
        let names = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        let all = names(self.staging()).chain(names(self.dir.path().to_owned()));
        all.map(|p| p.display().to_string()).filter(|p| p.contains(".stillpoint-")).collect()
    }
    fn open_undos(&self) -> usize {
        self.paper.open().len()
    }
    fn destroy(&self) -> bool {
        fs::remove_dir_all(self.root()).unwrap();
        true
    }
}
