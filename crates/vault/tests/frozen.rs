//! Samples of every persisted format, written by the first version: every later one reads them.
//! The formats: `docs/format/{repository,journal,records,password}.md`.

mod common;

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::{Memory, Place, ok};
use model::{
    id::CutId,
    port::{Shelf, Silent, Store},
    record::{BackupRecord, CutRecord},
    reference::{Kept, ReferenceVolume, Spare, SpareFile},
    server::{Flavor, ServerAccess, ServerAddress},
    size::Bytes,
    undo::{Hook, Move, ProcessRef, Ticket, Undo},
    verdict::{Stillness, Verdict},
};
use vault::{
    journal::dead_runs,
    reference,
    repository::{Confirmation, Depth, Opening, Password, Repository},
};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// Files as they come out of version control have modes of their own; the password's is ours to give.
fn copied(name: &str, to: &Path) -> PathBuf {
    let target = to.join(name);
    fs::copy(sample(name), &target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    target
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn frozen() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let password = Password::read(&copied("password", dir.path())).unwrap();
    let opening = Opening { dir: dir.path().join("repository"), password };
    copy_dir(&sample("repository"), &opening.dir);
    Place { dir, journal: Arc::<Memory>::default(), opening }
}

#[test]
fn a_repository_of_version_1_opens_lists_checks_and_takes_more() {
    let place = frozen();
    let mut repository = place.repository();
    let backups = ok(repository.backups());
    assert_eq!(backups.len(), 2);
    let record = backups[0].record.as_ref().unwrap();
    assert_eq!(record.cut, CutId::new("20261120T031600Z-000001").unwrap());
    assert_eq!((record.verdict, record.files), (Verdict::Consistent, 2));
    let back = place.read_back(&backups[1].id);
    assert_eq!(back[Path::new("/srv/hydro/größe")], "Grüezi 2\n".as_bytes());
    let cut: CutRecord =
        serde_json::from_slice(&back[Path::new("/var/lib/stillpoint/cuts/20261120T031700Z-000002.json")])
            .unwrap();
    assert!(matches!(cut.evidence[0].stillness, Stillness::WritersFrozen(_)));
    let report = repository.check(Depth::ReadData, &Silent).unwrap();
    assert!(report.is_good(), "{:?}", report.problems);
    assert_eq!(report.backups, 2);
    // Its files were read although their stamps were those of the first, so all are smudged.
    assert_eq!(ok(repository.known()).len(), 0);
    let root = place.scratch();
    fs::write(root.join("new"), "new").unwrap();
    common::back_up(&mut repository, &root, 9);
    assert_eq!(ok(repository.backups()).len(), 3);
}

#[test]
fn both_kinds_of_keys_open() {
    let mut place = frozen();
    assert_eq!(place.repository().keys().unwrap().len(), 2);
    place.opening.password = Password::new("correct horse").unwrap();
    assert!(Repository::open(&place.opening, place.journal.clone()).is_ok());
}

#[test]
fn password_and_confirmation_read() {
    let dir = tempfile::tempdir().unwrap();
    let password = Password::read(&copied("password", dir.path())).unwrap();
    assert!(password.is_machine_made());
    let confirmed = Confirmation::read(&sample("password.confirmed"), &password).unwrap();
    assert_eq!(confirmed, Some("2026-11-20T03:15:00Z".parse().unwrap()));
}

#[test]
fn records_read() {
    let cut: CutRecord = serde_json::from_slice(&fs::read(sample("cut-record.json")).unwrap()).unwrap();
    assert_eq!(cut.problems[0].path.as_deref(), Some(Path::new("/srv/hydro/a\nb")));
    let backup: BackupRecord =
        serde_json::from_slice(&fs::read(sample("backup-record.json")).unwrap()).unwrap();
    assert_eq!(backup.cut, cut.cut);
}

#[test]
fn a_reference_reads() {
    let Kept::There(found) = reference::read(&sample("reference.json")) else { panic!("it is there") };
    assert_eq!(found.relpath.as_str(), "demo.softxs.ch/hydro");
    assert_eq!(
        found.dirs,
        [PathBuf::from("/v01/backup/state/staging/.stillpoint-reference-0123456789abcdef")]
    );
    let [file] = &found.files[..] else { panic!("{:?}", found.files) };
    assert_eq!(file.path.as_os_str().as_encoded_bytes(), b"/var/lib/mysql/hydro/caf\xe9.ibd");
    assert_eq!((file.size, file.inode, file.blob), (Bytes(512 << 20), 133, 65_536));
    assert_eq!((file.ctime, file.mtime), (1_795_836_900_123_456_789, 1_795_836_899_000_000_000));
}

#[test]
fn a_reference_with_spare_copies_reads() {
    let Kept::There(found) = reference::read(&sample("reference-spare.json")) else { panic!("it is there") };
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    assert_eq!(found.files[0].map.as_deref(), Some(digest));
    let dir = PathBuf::from("/v01/backup/state/staging/.stillpoint-reference-0123456789abcdef");
    let spare = SpareFile { path: found.files[0].path.clone(), copy: dir.join("0") };
    assert_eq!(found.spare, Spare { dirs: vec![dir], files: vec![spare] });
}

#[test]
fn a_reference_in_a_volume_reads() {
    let Kept::There(found) = reference::read(&sample("reference-volume.json")) else { panic!("it is there") };
    let volume = ReferenceVolume {
        group: "vg-0".to_owned(),
        name: "stillpoint-0123456789abcdef".to_owned(),
        uuid: "0A19Wp-BBEO-uzch-0t3W-0Nut-8MkP-039Irq".to_owned(),
        thin_id: 7,
        origin: "mysql".to_owned(),
        filesystem: "xfs".to_owned(),
    };
    assert_eq!((found.dirs.len(), &found.volumes), (0, &vec![volume]));
    let [file] = &found.files[..] else { panic!("{:?}", found.files) };
    assert_eq!(file.copy, PathBuf::from("/mysql/hydro/page.ibd"));
    assert_eq!(file.volume.as_deref(), Some("stillpoint-0123456789abcdef"));
}

#[test]
fn a_journal_reads() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    fs::copy(sample("journal.jsonl"), dir.path().join("journal/20261120T031500Z-4711.jsonl")).unwrap();
    let runs = dead_runs(dir.path()).unwrap();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].problems(), []);
    let process = ProcessRef { pid: 4711, start: 123_456 };
    let start = Hook { run: "systemctl start exo".into(), timeout: Duration::from_secs(300) };
    let moved = Move {
        live: "/srv/a".into(),
        new: Some("/srv/.stillpoint-x/new".into()),
        old: "/srv/.stillpoint-x/old".into(),
        had: true,
    };
    let made = Move {
        live: "/srv/made".into(),
        new: Some("/srv/.stillpoint-restore-0/new/0".into()),
        old: "/srv/.stillpoint-restore-0/old/made".into(),
        had: false,
    };
    let dropped = Move {
        live: "/srv/x.sqlite3-shm".into(),
        new: None,
        old: "/srv/.stillpoint-restore-0/old/x.sqlite3-shm".into(),
        had: true,
    };
    let path = |bytes: &[u8]| Path::new(std::ffi::OsStr::from_bytes(bytes)).to_owned();
    let odd = path(b"/srv/.stillpoint-\xff");
    let past = vec![path(b"/srv/.stillpoint-y"), path(b"/v01/.stillpoint-\xff")];
    let lock = "/v01/backup/local/web/demo.softxs.ch/hydro/repository/locks/00";
    let expected = [
        (1, Undo::Continue { processes: vec![process] }),
        (2, Undo::ThawCgroup { cgroup: "/sys/fs/cgroup/system.slice/hydro.service".into() }),
        (3, Undo::Start { start, ends: Some(process) }),
        (5, Undo::RemoveLock { path: lock.into() }),
        (6, Undo::RemoveTree { path: odd }),
        (7, Undo::SwapBack { moves: vec![moved], staging: vec!["/srv/.stillpoint-x".into()] }),
        (8, Undo::DeleteSubvolume { path: "/srv/.stillpoint-s".into() }),
        (
            9,
            Undo::SwapBack { moves: vec![made, dropped], staging: vec!["/srv/.stillpoint-restore-0".into()] },
        ),
        (10, Undo::SwapBack { moves: vec![], staging: past }),
    ];
    let of_volumes_and_servers = undos_of_volumes_and_servers();
    let expected = expected.into_iter().chain(of_volumes_and_servers);
    let expected: Vec<_> = expected.map(|(ticket, undo)| (Ticket(ticket), undo)).collect();
    assert_eq!(runs[0].open_undos(), expected);
}

fn undos_of_volumes_and_servers() -> [(u64, Undo); 7] {
    let snapshot = || "stillpoint-0123456789abcdef".to_owned();
    let point = b"/var/lib/stillpoint/staging/.stillpoint-mount-\xff";
    let variable = |access, old: &str| Undo::ServerVariable {
        access,
        variable: "innodb_flush_log_at_trx_commit".to_owned(),
        old: old.to_owned(),
        new: "1".to_owned(),
        started: "2026-11-20T03:00:00Z".parse().unwrap(),
    };
    let near = ServerAccess {
        flavor: Flavor::MariaDb,
        address: ServerAddress::Socket("/run/mysqld/mysqld.sock".into()),
        user: Some("root".to_owned()),
        password_file: None,
        option_file: None,
        tls_ca: None,
    };
    let far = ServerAccess {
        flavor: Flavor::MySql,
        address: ServerAddress::Tcp { host: "db.softxs.ch".to_owned(), port: 3306 },
        user: None,
        password_file: Some("/etc/stillpoint/db-password".into()),
        option_file: Some("/root/.my.cnf".into()),
        tls_ca: Some("/etc/ssl/db.pem".into()),
    };
    let place = b"/var/lib/stillpoint/staging/.stillpoint-restore-server-\xff";
    let exchange = Undo::ServerExchange {
        access: near.clone(),
        databases: vec!["shop".to_owned(), "größe".to_owned()],
        staging: Path::new(std::ffi::OsStr::from_bytes(place)).to_owned(),
    };
    [
        (11, Undo::Unmount { path: Path::new(std::ffi::OsStr::from_bytes(point)).to_owned() }),
        (12, Undo::RemoveLogicalVolume { group: "vg-0".to_owned(), name: snapshot() }),
        (13, Undo::DestroyZfsSnapshot { dataset: "tank/srv".to_owned(), snapshot: snapshot() }),
        (14, variable(near, "0")),
        (15, variable(far, "2")),
        (16, exchange),
        (
            17,
            Undo::ReleasePoolMetadata { group: "vg-0".to_owned(), pool: "pool".to_owned(), root: Some(173) },
        ),
    ]
}
