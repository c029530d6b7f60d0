//! The fakes conform.

use std::{
    any::Any,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use model::{
    entry::{Kind, Meta, tree_order},
    port::Journal,
    port_restore::{Contents, Site},
    restore::{Listed, Listing, Opened},
    size::Bytes,
    undo::Undo,
};

use super::{MemoryBackup, ScriptedJournal, site::FakeSite};
use crate::conformance::{contents, site};

#[derive(Default)]
struct Backup(Mutex<MemoryBackup>);

impl contents::Bench for Backup {
    fn store(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        let bytes: BTreeMap<PathBuf, Vec<u8>> =
            files.iter().map(|(p, b)| (self.root().join(p), b.clone())).collect();
        let time = Timestamp::UNIX_EPOCH;
        let entry = |(path, bytes): (&PathBuf, &Vec<u8>)| {
            let meta = Meta {
                mode: 0o600,
                uid: 0,
                gid: 0,
                size: Bytes(bytes.len() as u64),
                mtime: time,
                atime: time,
                ctime: time,
                inode: 0,
                device: 1,
                links: 1,
                xattrs: vec![],
            };
            Listed { path: path.clone(), kind: Kind::File, meta }
        };
        let mut entries: Vec<Listed> = bytes.iter().map(entry).collect();
        entries.sort_by(|a, b| tree_order(&a.path, &b.path));
        let listing = Listing::new(entries, vec![]).unwrap();
        *self.0.lock().unwrap() = MemoryBackup { listing, bytes, ..MemoryBackup::default() };
    }
    fn root(&self) -> PathBuf {
        "/srv".into()
    }
    fn open(&self, look: &mut dyn FnMut(&dyn Contents)) {
        look(&*self.0.lock().unwrap());
    }
    fn damage(&self) -> bool {
        let mut backup = self.0.lock().unwrap();
        let path = self.root().join("sub/large");
        backup.fail.insert(path, model::port::FailureKind::Damaged);
        true
    }
}

#[test]
fn a_backup_in_memory_conforms() {
    contents::suite(|| Box::new(Backup::default()));
}

#[derive(Default)]
struct Machine {
    site: FakeSite,
    journal: Arc<ScriptedJournal>,
}

impl site::Bench for Machine {
    fn site(&self) -> &dyn Site {
        &self.site
    }
    fn root(&self) -> PathBuf {
        "/srv".into()
    }
    fn put(&self, path: &Path, bytes: &[u8]) {
        self.site.put(path, Kind::File, bytes);
    }
    fn look(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let live = self.site.live().into_iter().filter(|(_, thing)| thing.kind == Kind::File);
        live.map(|(path, thing)| (path, thing.bytes)).collect()
    }
    fn staged(&self) -> usize {
        self.site.staged().len()
    }
    fn journal(&self) -> Arc<dyn Journal> {
        self.journal.clone()
    }
    fn open_undos(&self) -> Vec<Undo> {
        self.journal.inner.open().into_iter().rev().map(|(_, undo)| undo).collect()
    }
    fn undo(&self, undo: &Undo) {
        self.site.undo(undo).unwrap();
    }
    fn owner(&self) -> (u32, u32) {
        (0, 0)
    }
    fn open(&self, path: &Path) -> Box<dyn Any> {
        struct Closing(FakeSite);
        impl Drop for Closing {
            fn drop(&mut self) {
                self.0.open(vec![]);
            }
        }
        self.site.open(vec![Opened { pid: 7, program: "fake".into(), path: path.to_owned() }]);
        Box::new(Closing(self.site.clone()))
    }
}

#[test]
fn a_machine_in_memory_conforms() {
    site::suite(|| Box::new(Machine::default()));
}
