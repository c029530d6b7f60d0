//! Trees that no one here made: backed up, restored by plain restic and by ourselves, and compared byte for
//! byte and attribute for attribute. Needs root and restic. `STILLPOINT_ALL_TREES` adds the largest.
#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

mod common;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use common::{Site, below, write_private};
use sha2::{Digest, Sha256};

/// What has to come back of one name. Hard links are told by the first path with the same inode.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    content: String,
    linked_to: Option<PathBuf>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// Which differences a restorer cannot help.
#[derive(Clone, Copy)]
struct Compared {
    /// restic 0.14 restores neither attributes of symbolic links nor the times of some kinds.
    links_have_times: bool,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    visit(root, root, &mut seen, &mut inodes);
    seen
}

fn visit(root: &Path, path: &Path, seen: &mut BTreeMap<PathBuf, Seen>, inodes: &mut BTreeMap<u64, PathBuf>) {
    let meta = fs::symlink_metadata(path).expect("readable");
    let kind = meta.file_type();
    if kind.is_socket() {
        return;
    }
    let name = path.strip_prefix(root).expect("below the root").to_path_buf();
    let linked_to = (kind.is_file() && meta.nlink() > 1)
        .then(|| inodes.entry(meta.ino()).or_insert_with(|| name.clone()).clone())
        .filter(|first| *first != name);
    let content = if kind.is_file() {
        format!("{:x}", Sha256::digest(fs::read(path).expect("readable")))
    } else if kind.is_symlink() {
        format!("{:?}", fs::read_link(path).expect("readable").as_os_str().as_bytes())
    } else {
        String::new()
    };
    let xattrs = xattr::list(path)
        .expect("attributes")
        .filter_map(|name| Some((name.clone(), xattr::get(path, &name).expect("an attribute")?)))
        .collect();
    let entry = Seen {
        kind: format!("{kind:?}"),
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        size: if kind.is_file() { meta.size() } else { 0 },
        content,
        linked_to,
        xattrs,
    };
    seen.insert(name, entry);
    if kind.is_dir() {
        for child in fs::read_dir(path).expect("readable") {
            visit(root, &child.expect("readable").path(), seen, inodes);
        }
    }
}

#[track_caller]
fn compare(original: &Path, restored: &Path, by: Compared) -> usize {
    let (left, right) = (look(original), look(restored));
    let mut faults = Vec::new();
    for (name, before) in &left {
        match right.get(name) {
            None => faults.push(format!("{} is missing", name.display())),
            Some(after) => {
                let mut after_as_compared = Seen { ..clone(after) };
                if before.kind.contains("symlink: true") && !by.links_have_times {
                    after_as_compared.mtime = before.mtime;
                }
                if *before != after_as_compared {
                    faults.push(format!("{}: {before:?} became {after:?}", name.display()));
                }
            }
        }
    }
    faults.extend(
        right
            .keys()
            .filter(|name| !left.contains_key(*name))
            .map(|name| format!("{} is new", name.display())),
    );
    assert!(faults.is_empty(), "{} differences, first: {:#?}", faults.len(), &faults[..faults.len().min(5)]);
    left.len()
}

fn clone(seen: &Seen) -> Seen {
    Seen {
        kind: seen.kind.clone(),
        content: seen.content.clone(),
        linked_to: seen.linked_to.clone(),
        xattrs: seen.xattrs.clone(),
        ..*seen
    }
}

/// The sources of all public packages that this program is built from, as the registry's client unpacked them.
/// Only this platform's are looked at: a machine that has built this program need not have any other's.
fn public_sources() -> PathBuf {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    assert!(metadata.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&metadata.stderr));
    let value: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = value["packages"].as_array().expect("packages");
    let sqlite = packages.iter().find(|package| package["name"] == "libsqlite3-sys").expect("a dependency");
    let manifest = Path::new(sqlite["manifest_path"].as_str().expect("a path"));
    manifest.ancestors().nth(2).expect("the directory of all packages").to_path_buf()
}

#[test]
fn trees_come_back_by_restic_and_by_us_byte_for_byte() {
    let mut trees = vec![PathBuf::from("/etc"), public_sources()];
    if common::count("STILLPOINT_ALL_TREES", 0) > 0 {
        trees.push(PathBuf::from("/usr/share"));
    }
    for tree in trees {
        let site = Site::new();
        site.init(&format!("[[application.directory]]\npath = \"{}\"\n", tree.display()));
        write_private(&site.root().join("note"), b"x");
        site.run(["backup"]).expect_status(0);

        let ours = site.root().join("ours");
        site.run(["restore", "guestbook", "--to", ours.to_str().expect("UTF-8")]).expect_status(0);
        let names = compare(&tree, &below(&ours, &tree), Compared { links_have_times: true });
        fs::remove_dir_all(&ours).expect("removed");

        let theirs = site.root().join("theirs");
        site.restic(["check", "--read-data"]).expect_status(0);
        site.restic(["restore", "latest", "--target", theirs.to_str().expect("UTF-8")]).expect_status(0);
        compare(&tree, &below(&theirs, &tree), Compared { links_have_times: false });
        println!("{}: {names} names came back by restic and by us", tree.display());
    }
}
