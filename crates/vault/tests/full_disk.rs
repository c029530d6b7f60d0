//! A repository on a filesystem without space.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use common::{Place, at, back_up, cut, manifest, noise, ok};
use model::port::{FailureKind, Shelf, Silent, Store};
use vault::repository::Depth;

/// A small tmpfs, unmounted in any case.
struct Small(tempfile::TempDir);

impl Small {
    fn mounted() -> Self {
        let dir = tempfile::tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=12m,mode=700", "none", dir.path().to_str().unwrap()]);
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.path().to_str().unwrap()]);
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

fn assert_restic_is_content(place: &Place, dir: &Path) {
    let output = Command::new("restic")
        .args(["--no-cache", "check", "--read-data", "--repo"])
        .arg(dir)
        .env("RESTIC_PASSWORD", place.opening.password.reveal())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let small = Small::mounted();
    let inner = tempfile::Builder::new().tempdir_in(small.0.path()).unwrap();
    let place = Place::at(inner);
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("before"), noise(1, 1_000_000)).unwrap();
    let (id, _) = back_up(&mut place.repository(), &root, 1);
    fs::write(root.join("huge"), noise(2, 40_000_000)).unwrap();
    let failure = place.repository().store(manifest(&root, at), &cut(2, &root), &Silent).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoSpace, "{}", failure.in_full());
    assert!(failure.in_full().contains("space"), "{}", failure.in_full());
    assert_eq!(place.files("locks").len(), 0);
    let mut repository = place.repository();
    let listed: Vec<_> = ok(repository.backups()).into_iter().map(|backup| backup.id).collect();
    assert_eq!(listed, [id]);
    assert!(repository.check(Depth::ReadData, &Silent).unwrap().is_good());
    // Even with next to nothing left, freeing what the failed run left works.
    ok(repository.reclaim(&Silent));
    assert_restic_is_content(&place, &place.opening.dir);
    fs::remove_file(root.join("huge")).unwrap();
    back_up(&mut place.repository(), &root, 3);
}
