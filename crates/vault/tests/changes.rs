//! A backup that opens nothing of what did not change stores whatever did: each kind of change alone, in a directory whose
//! other names stay as they are.

mod common;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use common::{Place, carried, manifest, noise, ok, store};
use model::{
    entry::{Entry, Kind, Meta},
    id::BackupId,
    port::{Failure, Silent, Store},
    port_restore::Fetch,
    restore::Listed,
};
use rustix::fs::XattrFlags;
use vault::repository::{Depth, Repository};

struct Tree {
    place: Place,
    root: PathBuf,
    nth: u8,
}

impl Tree {
    fn new() -> Self {
        let place = Place::new();
        let root = place.scratch();
        for dir in ["a", "a/deep", "b", "empty"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        for (seed, file) in
            ["a/one", "a/two", "a/three", "a/deep/four", "b/five", "b/\u{fc}\\x", "six"].iter().enumerate()
        {
            fs::write(root.join(file), noise(seed as u64, 5000)).unwrap();
        }
        symlink("a/one", root.join("b/link")).unwrap();
        Self { place, root, nth: 0 }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Backs up what is there, opening nothing that can be carried over; what was added and read, in bytes.
    fn back_up(&mut self, repository: &mut Repository) -> (BackupId, u64, u64) {
        self.nth += 1;
        ok(repository.known());
        let (id, draft) = store(repository, manifest(&self.root, carried), &self.root, self.nth);
        assert_eq!(draft.problems, []);
        (id, draft.bytes_added.0, draft.bytes_read.0)
    }

    /// What is in a backup is what is there, name by name, with all attributes and contents.
    fn assert_stored(&self, repository: &mut Repository, backup: &BackupId, what: &str) {
        let backup_opened = ok(repository.open(backup));
        let entries: Vec<&Listed> =
            backup_opened.listing().entries().iter().filter(|e| e.path.starts_with(&self.root)).collect();
        let there = manifest(&self.root, carried);
        let there: Vec<Entry> = there.entries.iter().filter(|e| e.path.starts_with(&self.root)).collect();
        assert_eq!(entries.len(), there.len(), "{what}");
        for (stored, live) in entries.iter().zip(&there) {
            assert_eq!((&stored.path, &stored.kind), (&live.path, &live.kind), "{what}");
            // Looking at it is an access.
            let stored = Meta { atime: live.meta.atime, ..stored.meta.clone() };
            assert_eq!(stored, live.meta, "{what}: {}", live.path.display());
        }
        drop(backup_opened);
        let contents = self.place.read_back(backup);
        for file in there.iter().filter(|entry| entry.kind == Kind::File) {
            assert!(contents[&file.path] == fs::read(&file.path).unwrap(), "{what}: {}", file.path.display());
        }
    }
}

/// From this tick of the kernel's clock to another.
fn tick() {
    std::thread::sleep(Duration::from_millis(12));
}

/// Version 2, then entries of tag, permissions, id: acl(5) and linux/posix_acl_xattr.h.
const ACL: [&[u8]; 6] = [
    &[2, 0, 0, 0],
    &[1, 0, 6, 0, 255, 255, 255, 255],
    &[2, 0, 4, 0, 42, 0, 0, 0],
    &[4, 0, 4, 0, 255, 255, 255, 255],
    &[16, 0, 4, 0, 255, 255, 255, 255],
    &[32, 0, 0, 0, 255, 255, 255, 255],
];

type Step = (&'static str, u64, fn(&Tree));

/// What is done, and how many bytes of files may have to be read because of it.
const STEPS: [Step; 17] = [
    ("nothing", 0, |_| {}),
    ("an attribute", 5000, |tree| set(tree, "a/one", "user.note", b"1")),
    ("its value", 5000, |tree| set(tree, "a/one", "user.note", b"2")),
    ("an ACL", 5000, |tree| set(tree, "a/two", "system.posix_acl_access", &ACL.concat())),
    ("an attribute of a directory", 0, |tree| set(tree, "empty", "user.note", b"3")),
    ("an owner", 5000, |tree| chown(tree.at("a/three"), Some(1234), Some(4321)).unwrap()),
    ("the owner of a link", 0, |tree| lchown(tree.at("b/link"), Some(77), None).unwrap()),
    ("a mode", 5000, |tree| fs::set_permissions(tree.at("b/five"), Permissions::from_mode(0o4711)).unwrap()),
    ("the mode of a directory", 0, |tree| {
        fs::set_permissions(tree.at("a"), Permissions::from_mode(0o701)).unwrap()
    }),
    ("a content of the same size", 5000, |tree| fs::write(tree.at("a/two"), noise(99, 5000)).unwrap()),
    ("a time", 5000, |tree| set_modified(&tree.at("six"))),
    ("a name", 5000, |tree| fs::rename(tree.at("a/one"), tree.at("a/zero")).unwrap()),
    ("the name of a directory", 5000, |tree| fs::rename(tree.at("a/deep"), tree.at("b/deep")).unwrap()),
    ("another hard link", 10_000, |tree| fs::hard_link(tree.at("six"), tree.at("b/sixth")).unwrap()),
    ("one link less", 5000, |tree| fs::remove_file(tree.at("b/sixth")).unwrap()),
    ("where a link points", 0, |tree| {
        fs::remove_file(tree.at("b/link")).unwrap();
        symlink("a/two", tree.at("b/link")).unwrap();
    }),
    ("a directory for a file", 0, |tree| {
        fs::remove_file(tree.at("b/five")).unwrap();
        fs::create_dir_all(tree.at("b/five/below")).unwrap();
    }),
];

fn set(tree: &Tree, file: &str, name: &str, value: &[u8]) {
    rustix::fs::setxattr(tree.at(file), name, value, XattrFlags::empty()).unwrap();
}

fn set_modified(path: &Path) {
    let time = std::time::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn each_change_alone_is_stored_and_the_rest_is_not_read() {
    let mut tree = Tree::new();
    let mut repository = tree.place.repository();
    let (first, ..) = tree.back_up(&mut repository);
    tree.assert_stored(&mut repository, &first, "the first");
    for (what, most_read, step) in STEPS {
        tick();
        step(&tree);
        let (id, added, read) = tree.back_up(&mut repository);
        // The record of the cut is read too.
        assert!(read <= most_read + 2000, "{what}: {read} bytes were read");
        assert!(added < 30_000, "{what}: {added} bytes were added");
        tree.assert_stored(&mut repository, &id, what);
    }
    let report = tree.place.repository().check(Depth::ReadData, &Silent).unwrap();
    assert_eq!(report.problems, []);
}

/// What was read when the session began is not there any more when it is to be relied on.
#[test]
fn a_tree_that_is_lost_meanwhile_is_missed() {
    let mut tree = Tree::new();
    let mut repository = tree.place.repository();
    tree.back_up(&mut repository);
    let mut again = tree.place.repository();
    ok(again.known());
    tree.place.files("data").iter().for_each(|pack| fs::remove_file(pack).unwrap());
    let cut = common::cut(9, &tree.root);
    let stored: Result<_, Failure> = again.store(manifest(&tree.root, carried), &cut, &Silent);
    assert!(stored.map_or(true, |draft| !draft.problems.is_empty()));
}
