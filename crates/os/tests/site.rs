//! This machine conforms to what a restore needs of it.

use std::{
    any::Any,
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{port::Journal, port_restore::Site, undo::Undo};
use os::{site::LocalSite, staging, undo};
use testkit::{
    conformance::site::{Bench, suite},
    fakes::journal::MemoryJournal,
};

struct Machine {
    dir: tempfile::TempDir,
    journal: Arc<MemoryJournal>,
}

impl Bench for Machine {
    fn site(&self) -> &dyn Site {
        &LocalSite
    }
    fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }
    fn put(&self, path: &Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fn look(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut todo = vec![self.root()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !staging::is_ours(&path) {
                    todo.push(path);
                } else if path.is_file() {
                    found.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        found
    }
    fn staged(&self) -> usize {
        fs::read_dir(self.root()).unwrap().filter(|e| staging::is_ours(&e.as_ref().unwrap().path())).count()
    }
    fn journal(&self) -> Arc<dyn Journal> {
        self.journal.clone()
    }
    fn open_undos(&self) -> Vec<Undo> {
        self.journal.open().into_iter().rev().map(|(_, undo)| undo).collect()
    }
    fn undo(&self, undo: &Undo) {
        undo::perform(undo).unwrap();
    }
    fn owner(&self) -> (u32, u32) {
        let meta = fs::metadata(self.dir.path()).unwrap();
        (meta.uid(), meta.gid())
    }
    fn open(&self, path: &Path) -> Box<dyn Any> {
        Box::new(File::open(path).unwrap())
    }
}

#[test]
fn this_machine_conforms() {
    suite(|| Box::new(Machine { dir: tempfile::tempdir().unwrap(), journal: Arc::default() }));
}
