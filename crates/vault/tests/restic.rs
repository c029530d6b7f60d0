//! Debian's restic reads, checks, locks and restores what we store.

mod common;

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use common::{
    Place, assert_same, at, back_up, carried, cut, entry, everything, manifest, noise, ok, record,
    spool::{Archive, owner},
    store,
};
use model::{
    entry::{Entry, Manifest},
    logs::Beginning,
    logs_retention::LogsPlan,
    port::{FailureKind, Shelf, Silent, Store},
};
use vault::{
    logs::source_dir_name,
    repository::{Depth, Password, Repository, RepositoryError},
};

fn restic(place: &Place, args: &[&str]) -> Output {
    restic_with(place, &place.opening.password, args)
}

fn restic_with(place: &Place, password: &Password, args: &[&str]) -> Output {
    Command::new("restic")
        .args(["--no-cache", "--repo"])
        .arg(&place.opening.dir)
        .args(args)
        .env("RESTIC_PASSWORD", password.reveal())
        .output()
        .expect("restic is installed")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

/// A tree with one of everything.
fn zoo(root: &Path) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir(root.join("a-b")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("a/b/small"), "small").unwrap();
    fs::write(root.join("a-b/none"), "").unwrap();
    fs::write(root.join("large"), noise(1, 9_000_000)).unwrap();
    fs::write(root.join("zeros"), vec![0; 3_000_000]).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not\xffutf8\n\"\\\x01")), "odd").unwrap();
    fs::write(root.join("größe 🎈"), "unicode").unwrap();
    symlink("a/b/small", root.join("link")).unwrap();
    fs::hard_link(root.join("a/b/small"), root.join("hard")).unwrap();
    fs::set_permissions(root.join("a/b/small"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(root.join("large"), Some(1234), Some(65534)).unwrap();
    let fifo = Command::new("mkfifo").arg(root.join("fifo")).status().unwrap();
    let null = Command::new("mknod").arg(root.join("null")).args(["c", "1", "3"]).status().unwrap();
    let block = Command::new("mknod").arg(root.join("block")).args(["b", "7", "200"]).status().unwrap();
    assert!(fifo.success() && null.success() && block.success());
    let file = root.join("a/b/small");
    rustix::fs::setxattr(&file, "user.note", b"\x00\xffbytes", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(root.join("a"), "user.dir", b"", rustix::fs::XattrFlags::empty()).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(root.join("large")).unwrap().set_modified(old).unwrap();
}

#[test]
fn restic_checks_and_restores_everything() {
    let place = Place::new();
    let root = place.dir.path().join("zoo");
    fs::create_dir(&root).unwrap();
    zoo(&root);
    let (id, draft) = back_up(&mut place.repository(), &root, 1);
    assert_eq!(draft.problems, []);
    succeed(&restic(&place, &["check", "--read-data"]));
    let target = place.dir.path().join("restored");
    succeed(&restic(&place, &["restore", id.as_str(), "--target", target.to_str().unwrap()]));
    assert_same(&root, &target.join(root.strip_prefix("/").unwrap()));
    assert!(target.join(cut(1, &root).path().strip_prefix("/").unwrap()).is_file());
    let listed = succeed(&restic(&place, &["snapshots", "--json"]));
    for word in ["zg-3.softxs.ch", "stillpoint", "app=hydro", "verdict=consistent", "2026-11-20T03:16:00"] {
        assert!(listed.contains(word), "{word} in {listed}");
    }
}

#[test]
fn a_second_backup_carries_over_and_restores_the_same() {
    let place = Place::new();
    let root = place.dir.path().join("zoo");
    fs::create_dir(&root).unwrap();
    zoo(&root);
    let (_, first) = back_up(&mut place.repository(), &root, 1);
    let mut repository = place.repository();
    assert!(!ok(repository.known()).is_empty());
    let (id, second) = store(&mut repository, manifest(&root, carried), &root, 2);
    assert_eq!(second.problems, []);
    assert_eq!((second.files, second.bytes), (first.files, first.bytes));
    assert!(second.bytes_added.0 < 20_000, "{}", second.bytes_added);
    let target = place.dir.path().join("restored");
    succeed(&restic(&place, &["restore", id.as_str(), "--target", target.to_str().unwrap()]));
    assert_same(&root, &target.join(root.strip_prefix("/").unwrap()));
    succeed(&restic(&place, &["check", "--read-data"]));
}

#[test]
fn each_respects_the_others_locks() {
    let place = Place::new();
    let root = place.scratch();
    fs::write(root.join("a"), "a").unwrap();
    let mut repository = place.repository();
    ok(repository.known());
    assert_eq!(succeed(&restic(&place, &["list", "locks", "--no-lock"])).lines().count(), 1);
    let refused = restic(&place, &["prune"]);
    assert!(!refused.status.success());
    assert!(text(&refused).contains("already locked"), "{}", text(&refused));
    // Another writer is let in, another remover is not.
    succeed(&restic(&place, &["backup", "--host", "x", root.to_str().unwrap()]));
    let failure = place.repository().reclaim(&Silent).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Locked, "{}", failure.in_full());
    assert!(failure.in_full().contains(&std::process::id().to_string()), "{}", failure.in_full());
    store(&mut repository, manifest(&root, at), &root, 1);
    succeed(&restic(&place, &["prune"]));
    assert_eq!(place.files("locks"), Vec::<PathBuf>::new());
    assert!(place.journal.open().is_empty());
    let listed = ok(place.repository().backups());
    assert_eq!(listed.iter().filter(|backup| backup.record.is_none()).count(), 1, "restic's own snapshot");
    succeed(&restic(&place, &["check", "--read-data"]));
}

#[test]
fn restics_lock_is_respected() {
    let place = Place::new();
    let root = place.scratch();
    fs::write(root.join("a"), "a").unwrap();
    // restic reads from a pipe that nobody ends, and holds its shared lock meanwhile.
    let mut held = Command::new("restic")
        .args(["--no-cache", "--repo"])
        .arg(&place.opening.dir)
        .args(["backup", "--stdin"])
        .env("RESTIC_PASSWORD", place.opening.password.reveal())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Its temporary file is no lock yet.
    let is_lock = |path: &std::path::PathBuf| path.file_name().is_some_and(|name| name.len() == 64);
    while !place.files("locks").iter().any(is_lock) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let failure = place.repository().reclaim(&Silent).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Locked);
    assert!(failure.in_full().contains(&held.id().to_string()), "{}", failure.in_full());
    back_up(&mut place.repository(), &root, 1);
    // Killed, its lock stands, and is ours to remove: same host, process gone.
    held.kill().unwrap();
    held.wait().unwrap();
    assert_eq!(place.files("locks").len(), 1);
    ok(place.repository().reclaim(&Silent));
    assert_eq!(place.files("locks").len(), 0);
    succeed(&restic(&place, &["check", "--read-data"]));
}

#[test]
fn keys_of_both_kinds_open_with_restic() {
    let place = Place::new();
    succeed(&restic(&place, &["cat", "config"]));
    let mut repository = place.repository();
    let person = Password::new("correct horse battery").unwrap();
    let added = repository.add_key(&person).unwrap();
    succeed(&restic_with(&place, &person, &["cat", "config"]));
    repository.remove_key(&added).unwrap();
    assert!(!restic_with(&place, &person, &["cat", "config"]).status.success());
    repository.change_password(&person).unwrap();
    assert!(!restic(&place, &["cat", "config"]).status.success());
    succeed(&restic_with(&place, &person, &["cat", "config"]));
    let wrong = Repository::open(&place.opening, place.journal.clone()).err().unwrap();
    assert!(matches!(wrong, RepositoryError::WrongPassword { .. }), "{wrong}");
    let mut changed = place.opening.clone();
    changed.password = person;
    assert_eq!(Repository::open(&changed, place.journal.clone()).unwrap().keys().unwrap().len(), 1);
}

#[test]
fn pruning_accepting_and_removing_leave_what_restic_accepts() {
    let place = Place::new();
    let root = place.scratch();
    let mut ids = Vec::new();
    for nth in 1..=3 {
        fs::write(root.join("a"), noise(u64::from(nth), 2_000_000)).unwrap();
        ids.push(back_up(&mut place.repository(), &root, nth).0);
    }
    let mut repository = place.repository();
    ok(repository.remove(&[ids[0].clone(), ids[1].clone()]));
    let accepted = ok(repository.accept(&ids[2]));
    let freed = ok(repository.reclaim(&Silent));
    assert!(freed.0 > 3_900_000, "{freed}");
    succeed(&restic(&place, &["check", "--read-data"]));
    let target = place.dir.path().join("restored");
    succeed(&restic(&place, &["restore", accepted.as_str(), "--target", target.to_str().unwrap()]));
    assert_same(&root, &target.join(root.strip_prefix("/").unwrap()));
    assert!(repository.check(Depth::ReadData, &Silent).unwrap().is_good());
}

#[test]
fn names_that_differ_only_in_odd_bytes_come_back() {
    let place = Place::new();
    let root = place.scratch();
    // Every byte that a name may have, alone and in pairs around the ones that need care.
    let mut entries: Vec<Entry> = Vec::new();
    for byte in (1..=255_u8).filter(|b| *b != b'/') {
        for name in [vec![b'n', byte], vec![byte, b'\\', byte], vec![0xc3, byte]] {
            fs::write(root.join(OsStr::from_bytes(&name)), &name).unwrap();
        }
    }
    entries.extend(everything(&root).iter().filter_map(|p| entry(p, at)));
    let newest = entries.iter().map(|e| e.meta.ctime).max().unwrap();
    let whole = Arc::new(Manifest::merge(newest + jiff::SignedDuration::from_secs(2), entries));
    let cut = cut(1, &root);
    let mut repository = place.repository();
    let draft = ok(repository.store(whole, &cut, &Silent));
    assert_eq!(draft.problems, []);
    let backup = record(&cut, &draft);
    let id = ok(repository.publish(draft, &backup));
    succeed(&restic(&place, &["check", "--read-data"]));
    let target = place.dir.path().join("restored");
    succeed(&restic(&place, &["restore", id.as_str(), "--target", target.to_str().unwrap()]));
    let restored = target.join(root.strip_prefix("/").unwrap());
    assert_same(&root, &restored);
}

/// restic before 0.16 knows only link targets that are UTF-8; the bytes are stored beside for those that do.
#[test]
fn a_link_to_odd_bytes_is_stored_as_newer_restics_do() {
    let place = Place::new();
    let root = place.scratch();
    symlink(OsStr::from_bytes(b"to/\xfe\xff"), root.join("link")).unwrap();
    let (id, draft) = back_up(&mut place.repository(), &root, 1);
    assert_eq!(draft.problems, []);
    let listed = succeed(&restic(&place, &["ls", "--json", id.as_str()]));
    assert!(listed.contains("link"), "{listed}");
    let mut tree = tree_of(&place, "snapshot", id.as_str());
    for name in root.iter().skip(1) {
        tree = node(&place, &tree, name.to_str().unwrap())["subtree"].as_str().unwrap().to_owned();
    }
    assert_eq!(node(&place, &tree, "link")["linktarget_raw"], "dG8v/v8=");
    succeed(&restic(&place, &["check", "--read-data"]));
}

fn tree_of(place: &Place, kind: &str, id: &str) -> String {
    let json: serde_json::Value =
        serde_json::from_str(&succeed(&restic(place, &["-q", "cat", kind, id]))).unwrap();
    json["tree"].as_str().unwrap().to_owned()
}

fn node(place: &Place, tree: &str, name: &str) -> serde_json::Value {
    let json: serde_json::Value =
        serde_json::from_str(&succeed(&restic(place, &["-q", "cat", "blob", tree]))).unwrap();
    json["nodes"].as_array().unwrap().iter().find(|n| n["name"] == name).unwrap().clone()
}

#[test]
fn restic_and_we_make_the_same_blobs() {
    let place = Place::new();
    let root = place.scratch();
    let bytes = |seed| [noise(seed, 9_000_000), vec![0; 2_000_000], noise(seed + 1, 5_000_000)].concat();
    let stored = || place.files("data").iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>();
    fs::write(root.join("ours"), bytes(1)).unwrap();
    back_up(&mut place.repository(), &root, 1);
    let before = stored();
    succeed(&restic(&place, &["backup", "--host", "x", root.to_str().unwrap()]));
    assert!(stored() - before < 10_000, "{before} became {}", stored());
    fs::write(root.join("theirs"), bytes(7)).unwrap();
    succeed(&restic(&place, &["backup", "--host", "x", root.to_str().unwrap()]));
    let (_, draft) = back_up(&mut place.repository(), &root, 2);
    assert!(draft.bytes_added.0 < 20_000, "{}", draft.bytes_added);
    succeed(&restic(&place, &["check", "--read-data"]));
}

#[test]
fn restic_accepts_packs_of_a_killed_run() {
    let place = Place::new();
    let root = place.scratch();
    fs::write(root.join("file"), noise(1, 9_000_000)).unwrap();
    back_up(&mut place.repository(), &root, 1);
    place
        .files("index")
        .iter()
        .chain(&place.files("snapshots"))
        .for_each(|file| fs::remove_file(file).unwrap());
    let (id, draft) = back_up(&mut place.repository(), &root, 2);
    assert!(draft.bytes_added.0 < 20_000, "{}", draft.bytes_added);
    succeed(&restic(&place, &["check", "--read-data"]));
    let target = place.dir.path().join("restored");
    succeed(&restic(&place, &["restore", id.as_str(), "--target", target.to_str().unwrap()]));
    assert_same(&root, &target.join(root.strip_prefix("/").unwrap()));
}

#[test]
fn the_log_archive_is_a_snapshot_that_restic_lists_checks_and_restores() {
    let place = Place::new();
    let mut archive = Archive::new(place.dir.path().join("logs"));
    let epoch = archive.begin_epoch(1, Beginning::First);
    archive.segment(&noise(1, 3_000_000));
    archive.begin_segment();
    for nth in 2..4 {
        archive.append(&noise(nth, 400_000));
        place.repository().store_logs(&owner(), &archive.catalogue(), &LogsPlan::default(), &Silent).unwrap();
    }
    let root = format!("/var/lib/stillpoint/logs/{}/{epoch}", source_dir_name(&archive.source));
    let listed = succeed(&restic(&place, &["ls", "latest", "--tag", "log"]));
    for file in ["epoch.json", "000000/00000001.seg", "000000/00000001.json", "000000/00000002.open"] {
        assert!(listed.contains(&format!("{root}/{file}\n")), "{file} in {listed}");
    }
    succeed(&restic(&place, &["check", "--read-data"]));
    let target = place.dir.path().join("restored");
    succeed(&restic(&place, &["restore", "latest", "--tag", "log", "--target", target.to_str().unwrap()]));
    let read = |file: &str| fs::read(target.join(&root[1..]).join(file)).unwrap();
    assert_eq!(read("000000/00000001.seg"), noise(1, 3_000_000));
    assert_eq!(read("000000/00000002.open"), [noise(2, 400_000), noise(3, 400_000)].concat());
}
