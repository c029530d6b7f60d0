//! What was stored can be listed and read for a restore, to the last attribute, and damage is named.

mod common;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use common::{Place, at, back_up, manifest, noise};
use model::{
    entry::{Kind, Meta, Role},
    id::BackupId,
    port::FailureKind,
    port_restore::{Contents, Fetch, STRETCH},
};
use testkit::conformance::contents::{Bench, suite};

fn read(contents: &dyn Contents, item: usize) -> Result<Vec<u8>, model::port::Failure> {
    let mut bytes = Vec::new();
    contents.read(item, 0..u64::MAX, &mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })?;
    Ok(bytes)
}

fn grow(root: &Path) {
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::write(root.join("a\n\\\"é"), "name").unwrap();
    fs::write(root.join("none"), "").unwrap();
    let big: Vec<u8> =
        (0..6_000_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect();
    fs::write(root.join("big"), big).unwrap();
    fs::hard_link(root.join("big"), root.join("also-big")).unwrap();
    symlink("no\\where", root.join("link")).unwrap();
}

#[test]
fn everything_stored_is_listed_and_read() {
    let place = Place::new();
    let root = place.dir.path().join("tree");
    grow(&root);
    let wanted = manifest(&root, at);
    let mut repository = place.repository();
    let (id, draft) = back_up(&mut repository, &root, 1);
    assert!(draft.problems.is_empty(), "{:?}", draft.problems);
    let contents = Fetch::open(&mut repository, &id).unwrap();
    let listing = contents.listing();
    // Others change the directories above, such as /tmp, all the time.
    for entry in wanted.entries.iter().filter(|e| e.role == Role::Content) {
        let item = listing.position(&entry.path).unwrap_or_else(|| panic!("{}", entry.path.display()));
        let found = &listing.entries()[item];
        assert_eq!(found.kind, entry.kind);
        // Young files are stored with a change time that no later backup trusts; looking moves access times.
        let same = Meta { ctime: entry.meta.ctime, atime: entry.meta.atime, ..found.meta.clone() };
        assert_eq!(same, entry.meta, "{}", entry.path.display());
        if entry.kind == Kind::File {
            assert_eq!(read(contents.as_ref(), item).unwrap(), fs::read(&entry.path).unwrap());
        }
    }
    drop(contents);
    drop(repository);
    assert!(place.journal.open().is_empty(), "the lock is gone");
}

/// One that is larger than the disk would not come back otherwise.
#[test]
fn a_sparse_file_needs_what_is_in_it() {
    let place = Place::new();
    let root = place.dir.path().join("tree");
    fs::create_dir(&root).unwrap();
    let mut pages = b"SQLite format 3\0".to_vec();
    pages.extend_from_slice(&noise(1, 1 << 20));
    fs::write(root.join("pages"), &pages).unwrap();
    let sparse = fs::OpenOptions::new().write(true).open(root.join("pages")).unwrap();
    sparse.set_len(STRETCH + 4096).unwrap();
    let mut repository = place.repository();
    let (id, _) = back_up(&mut repository, &root, 1);
    let contents = Fetch::open(&mut repository, &id).unwrap();
    let weight = contents.listing().weigh(&root.join("pages"));
    assert_eq!(weight.bytes.0, STRETCH + 4096);
    assert!(((1 << 20)..(2 << 20)).contains(&weight.disk.0), "{}", weight.disk);
}

#[test]
fn damage_is_named_and_nothing_wrong_is_handed_over() {
    let place = Place::new();
    let root = place.dir.path().join("tree");
    grow(&root);
    let mut repository = place.repository();
    let (id, _) = back_up(&mut repository, &root, 1);
    let largest = place.files("data").into_iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&largest).unwrap();
    fs::write(&largest, bytes).unwrap();
    let contents = Fetch::open(&mut repository, &id).unwrap();
    let item = contents.listing().position(&root.join("big")).unwrap();
    let whole = fs::read(root.join("big")).unwrap();
    let mut handed = Vec::new();
    let failure = contents
        .read(item, 0..u64::MAX, &mut |part| {
            handed.extend_from_slice(part);
            Ok(())
        })
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged);
    assert!(failure.what.contains("big"), "{}", failure.what);
    assert!(whole.starts_with(&handed), "what was handed over is right as far as it goes");
}

/// A backup of files below a temporary directory.
struct Stored {
    place: Place,
    id: RefCell<Option<BackupId>>,
}

impl Bench for Stored {
    fn store(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        for (path, bytes) in files {
            let path = self.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let (id, draft) = back_up(&mut self.place.repository(), &self.root(), 1);
        assert!(draft.problems.is_empty(), "{:?}", draft.problems);
        *self.id.borrow_mut() = Some(id);
    }
    fn root(&self) -> PathBuf {
        self.place.dir.path().join("tree")
    }
    fn open(&self, look: &mut dyn FnMut(&dyn Contents)) {
        let mut repository = self.place.repository();
        let id = self.id.borrow().clone().expect("something is stored");
        look(&*Fetch::open(&mut repository, &id).unwrap());
    }
    fn damage(&self) -> bool {
        let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
        let largest = self.place.files("data").into_iter().max_by_key(size).unwrap();
        let mut bytes = fs::read(&largest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&largest).unwrap();
        fs::write(&largest, bytes).unwrap();
        true
    }
}

#[test]
fn a_stored_backup_conforms() {
    suite(|| Box::new(Stored { place: Place::new(), id: RefCell::default() }));
}
