//! Whatever is wrong with a repository is told by name, with its remedy, and costs nothing else.

mod common;

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use common::{Place, at, back_up, carried, cut, manifest, noise, ok, store};
use model::{
    entry::{Body, Entry, Manifest},
    port::{Failure, FailureKind, Shelf, Silent, Store},
    problem::{Effect, Problem},
};
use vault::repository::{Depth, Opening, Password, Repository, RepositoryError};

fn two_backups() -> (Place, PathBuf) {
    let place = Place::new();
    let root = place.scratch();
    for nth in 1..=2 {
        fs::write(root.join(format!("file-{nth}")), noise(nth, 400_000)).unwrap();
        back_up(&mut place.repository(), &root, u8::try_from(nth).unwrap());
    }
    (place, root)
}

fn problems(place: &Place, depth: Depth) -> Vec<Problem> {
    place.repository().check(depth, &Silent).unwrap().problems
}

/// The largest pack: it holds the content of a file.
fn data_pack(place: &Place) -> PathBuf {
    place.files("data").into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn failure(error: RepositoryError) -> Failure {
    error.into()
}

#[test]
fn an_undamaged_repository_has_no_problems() {
    let (place, _) = two_backups();
    assert_eq!(problems(&place, Depth::ReadData), []);
    let report = place.repository().check(Depth::ReadData, &Silent).unwrap();
    assert_eq!(report.backups, 2);
    assert!(report.bytes_read.0 > 800_000);
}

#[test]
fn a_damaged_pack_is_named_with_what_it_costs() {
    let (place, _) = two_backups();
    let pack = data_pack(&place);
    flip(&pack, 1000);
    assert_eq!(problems(&place, Depth::Quick), [], "quick does not read packs");
    let found = problems(&place, Depth::ReadData);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].effect, Effect::Missing);
    assert_eq!(found[0].path.as_ref(), Some(&pack));
    assert!(found[0].what.contains("file-"), "{}", found[0].what);
    assert!(found[0].what.contains(" of 2026-11-20 03:1"), "{}", found[0].what);
    assert!(!found[0].remedy.is_empty());
}

#[test]
fn a_missing_pack_is_named_and_the_next_backup_says_so() {
    let (place, root) = two_backups();
    let pack = data_pack(&place);
    fs::remove_file(&pack).unwrap();
    let found = problems(&place, Depth::Quick);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].what.contains("missing") && found[0].what.contains("file-"), "{}", found[0].what);
    assert_eq!(found[0].path.as_ref(), Some(&pack));
    // The index still promises the content, so it is not stored again; the draft must not hide it.
    let mut repository = place.repository();
    let (_, draft) = store(&mut repository, manifest(&root, at), &root, 3);
    assert_eq!(draft.problems.len(), 1, "{:?}", draft.problems);
    assert!(draft.problems[0].what.contains("has lost pack"), "{}", draft.problems[0].what);
    assert_eq!(draft.files, 1);
    assert_eq!(ok(repository.backups()).len(), 3);
}

#[test]
fn a_truncated_pack_is_named_and_the_next_backup_says_so() {
    let (place, root) = two_backups();
    let pack = data_pack(&place);
    fs::OpenOptions::new().write(true).open(&pack).unwrap().set_len(1000).unwrap();
    let found = problems(&place, Depth::Quick);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].what.contains("it has 1000 bytes and should have"), "{}", found[0].what);
    let mut repository = place.repository();
    let (_, draft) = store(&mut repository, manifest(&root, at), &root, 3);
    assert_eq!(draft.problems.len(), 1, "{:?}", draft.problems);
    assert_eq!(draft.problems[0].effect, Effect::Missing);
    assert!(draft.problems[0].what.contains("has lost the end of pack"), "{}", draft.problems[0].what);
    assert_eq!(draft.files, 1);
}

#[test]
fn a_truncated_index_is_named_and_nothing_is_written_on_top() {
    let (place, root) = two_backups();
    let index = place.files("index").pop().unwrap();
    fs::OpenOptions::new().write(true).open(&index).unwrap().set_len(50).unwrap();
    let found = problems(&place, Depth::Quick);
    assert!(
        found.iter().any(|p| p.path.as_ref() == Some(&index) && p.effect == Effect::Missing),
        "{found:?}"
    );
    assert!(
        found.iter().any(|p| p.what.contains("in no index") && p.remedy.contains("repair index")),
        "{found:?}"
    );
    let before = place.files("data");
    let failed = place.repository().store(manifest(&root, at), &cut(3, &root), &Silent).unwrap_err();
    assert_eq!(failed.kind, FailureKind::Damaged, "{}", failed.in_full());
    assert!(failed.in_full().contains(index.file_name().unwrap().to_str().unwrap()), "{}", failed.in_full());
    assert_eq!(place.files("data"), before);
    assert_eq!(place.files("locks").len(), 0);
}

#[test]
fn a_damaged_snapshot_is_named_and_hides_no_other() {
    let (place, _) = two_backups();
    let snapshot = place.files("snapshots").pop().unwrap();
    flip(&snapshot, 40);
    let found = problems(&place, Depth::Quick);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].path.as_ref(), Some(&snapshot));
    let listed = ok(place.repository().backups());
    assert_eq!(listed.iter().filter(|backup| backup.record.is_some()).count(), 1);
    assert_eq!(listed.len(), 2, "the damaged one is listed without a record");
    let damaged: Vec<&str> = listed.iter().filter_map(|backup| backup.damaged.as_deref()).collect();
    assert!(
        matches!(damaged[..], [why] if !why.is_empty() && !why.contains('\n') && !why.contains("Backtrace")),
        "{damaged:?}"
    );
    let failed = place.repository().reclaim(&Silent).unwrap_err();
    assert_eq!(failed.kind, FailureKind::Damaged, "what it needs must not be freed: {}", failed.in_full());
}

#[test]
fn places_that_are_no_repository_are_told_apart() {
    let place = Place::new();
    let open = |dir: &Path| {
        let opening = Opening { dir: dir.into(), password: Password::generate() };
        failure(Repository::open(&opening, place.journal.clone()).err().unwrap())
    };
    let outside = tempfile::tempdir().unwrap();
    assert_eq!(open(&outside.path().join("nothing")).kind, FailureKind::NoRepository);
    assert_eq!(open(outside.path()).kind, FailureKind::NoRepository);
    fs::write(outside.path().join("letter.txt"), "dear").unwrap();
    let foreign = open(outside.path());
    assert_eq!(foreign.kind, FailureKind::Refused);
    assert!(foreign.what.contains("letter.txt") && !foreign.remedy.is_empty(), "{}", foreign.in_full());
    assert_eq!(open(&outside.path().join("letter.txt")).kind, FailureKind::Refused);
    let wrong = open(&place.opening.dir);
    assert_eq!(wrong.kind, FailureKind::WrongPassword);
    assert!(wrong.remedy.contains("password_file"), "{}", wrong.in_full());
    let opening = Opening { dir: outside.path().into(), password: Password::generate() };
    assert!(matches!(Repository::init(&opening), Err(RepositoryError::Foreign { .. })));
    assert!(matches!(Repository::init(&place.opening), Err(RepositoryError::Exists { .. })));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was written into it");
}

#[test]
fn an_interrupted_init_is_taken_over() {
    let place = Place::new();
    fs::remove_file(place.opening.dir.join("config")).unwrap();
    let opening = Opening { dir: place.opening.dir.clone(), password: Password::generate() };
    Repository::init(&opening).unwrap();
    assert_eq!(Repository::open(&opening, place.journal.clone()).unwrap().keys().unwrap().len(), 1);
}

/// The same, but with this body for the file of this name.
fn with_body(manifest: &Manifest, name: &str, body: &Body) -> Manifest {
    let mut entries: Vec<Entry> = manifest.entries.iter().collect();
    for entry in entries.iter_mut().filter(|entry| entry.path.ends_with(name)) {
        entry.body = body.clone();
    }
    Manifest::merge(manifest.taken_at, entries)
}

#[test]
fn unreadable_and_changing_files_are_named() {
    let place = Place::new();
    let root = place.scratch();
    for name in ["good", "closed", "grown", "shrunk", "gone", "swapped"] {
        fs::write(root.join(name), noise(3, 50_000)).unwrap();
    }
    let pinned = with_body(&manifest(&root, at), "swapped", &Body::Carried);
    fs::write(root.join("grown"), noise(3, 60_000)).unwrap();
    fs::write(root.join("shrunk"), noise(3, 40_000)).unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    fs::write(root.join("swapped"), noise(4, 50_000)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let (id, draft) = store(&mut place.repository(), pinned.into(), &root, 1);
    let mut named: Vec<_> = draft
        .problems
        .iter()
        .map(|p| p.path.as_ref().unwrap().file_name().unwrap().to_str().unwrap())
        .collect();
    named.sort_unstable();
    let expected = ["closed", "gone", "grown", "shrunk", "swapped"];
    // Root may read everything.
    assert_eq!(named, if is_root { &expected[1..] } else { &expected[..] }, "{:?}", draft.problems);
    assert!(draft.problems.iter().all(|p| p.effect == Effect::Missing));
    let back = place.read_back(&id);
    assert_eq!(back[&root.join("good")], noise(3, 50_000));
    assert!(named.iter().all(|name| !back.contains_key(&root.join(name))));
    assert_eq!(draft.files, if is_root { 2 } else { 1 });
}

#[test]
fn a_pinned_file_with_its_parents_stamp_is_read_all_the_same() {
    let place = Place::new();
    let root = place.scratch();
    let file = root.join("mapped");
    fs::write(&file, "before").unwrap();
    let live = manifest(&root, at);
    store(&mut place.repository(), live.clone(), &root, 1);
    // The bytes changed, the stamp did not: a store to a mapped page that was dirty already.
    let pinned = place.dir.path().join("pinned");
    fs::write(&pinned, "behind").unwrap();
    let second = with_body(&live, "mapped", &Body::At(pinned));
    let mut repository = place.repository();
    let (id, _) = store(&mut repository, second.into(), &root, 2);
    assert_eq!(place.read_back(&id)[&file], b"behind");
    let known = ok(repository.known());
    let stamp = live.entries.iter().find(|e| e.path == file).unwrap().meta.stamp();
    assert!(!known.has(&file, &stamp), "its stamp proves nothing");
}

#[test]
fn two_writers_at_once_both_list_theirs() {
    let (place, root) = two_backups();
    let (mut one, mut two) = (place.repository(), place.repository());
    ok(one.known());
    ok(two.known());
    ok(one.store_ahead(manifest(&root, carried), &Silent));
    fs::write(root.join("file-3"), noise(9, 200_000)).unwrap();
    store(&mut two, manifest(&root, at), &root, 4);
    store(&mut one, manifest(&root, at), &root, 3);
    assert_eq!(ok(one.backups()).len(), 4);
    assert!(place.repository().check(Depth::ReadData, &Silent).unwrap().is_good());
    assert!(place.journal.open().is_empty());
}

#[test]
fn a_lock_that_was_removed_keeps_the_backup_from_being_listed() {
    let (place, root) = two_backups();
    let mut repository = place.repository();
    let cut = cut(3, &root);
    let draft = ok(repository.store(manifest(&root, at), &cut, &Silent));
    place.files("locks").iter().for_each(|lock| fs::remove_file(lock).unwrap());
    let record = common::record(&cut, &draft);
    let failed = repository.publish(draft, &record).unwrap_err();
    assert!(failed.what.contains("removed by somebody else"), "{}", failed.in_full());
    assert_eq!(ok(place.repository().backups()).len(), 2);
}
