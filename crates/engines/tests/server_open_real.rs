//! Copies of real MariaDB servers, taken as a clone would be, opened behind the fence. As root.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use engines::server::{
    Connection,
    open::{FENCE, PositionFound, Private, ServerCopy, fresh, needs_settling, option_file, relocate, settle},
};
use model::{
    id::SourceId,
    port::{FailureKind, Journal},
    problem::Effect,
    server::{
        BinlogPosition, Flavor, RootRole, ServerForm, ServerPosition, ServerRecord, ServerRoot, ServerVersion,
    },
    undo::Undo,
};
use mysql::prelude::Queryable;
use testkit::{fakes::journal::MemoryJournal, server::PrivateServer};

const WITHIN: Duration = Duration::from_secs(120);

/// A server with every kind of table that leads somewhere else, and a copy of its files.
struct Scene {
    dir: tempfile::TempDir,
    server: PrivateServer,
    journal: Arc<MemoryJournal>,
    rows: u64,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("spe").tempdir_in("/tmp").unwrap();
        run("chmod", &["755"], &[dir.path()]);
        let external = dir.path().join("live/external");
        fs::create_dir_all(&external).unwrap();
        run("chown", &["-R", "mysql:mysql"], &[&dir.path().join("live")]);
        let server = PrivateServer::builder().directory(dir.path().join("live/server")).rocksdb().start();
        let apart = external.display();
        server.run([
            "CREATE DATABASE d".to_owned(),
            "CREATE TABLE d.inno (i INT PRIMARY KEY AUTO_INCREMENT, t TEXT) ENGINE=InnoDB".into(),
            format!("CREATE TABLE d.apart (i INT PRIMARY KEY AUTO_INCREMENT, t TEXT) ENGINE=InnoDB DATA DIRECTORY='{apart}'"),
            "CREATE TABLE d.myisam (i INT, t TEXT) ENGINE=MyISAM".into(),
            format!("CREATE TABLE d.linked (i INT) ENGINE=MyISAM DATA DIRECTORY='{apart}'"),
            "CREATE TABLE d.aria (i INT, t TEXT) ENGINE=Aria".into(),
            "CREATE TABLE d.rocks (i INT PRIMARY KEY) ENGINE=RocksDB".into(),
        ]);
        for number in 0..20 {
            server.run([
                "INSERT INTO d.apart (t) SELECT repeat('x', 200) FROM d.seq_1_to_100".to_owned(),
                "INSERT INTO d.inno (t) SELECT repeat('y', 200) FROM d.seq_1_to_100".into(),
                format!("INSERT INTO d.myisam VALUES ({number}, 'm')"),
                format!("INSERT INTO d.linked VALUES ({number})"),
                format!("INSERT INTO d.aria VALUES ({number}, 'a')"),
                format!("INSERT INTO d.rocks VALUES ({number})"),
                "INSERT INTO d.inno (t) VALUES ('last')".into(),
            ]);
        }
        Self { dir, server, journal: Arc::new(MemoryJournal::default()), rows: 20 }
    }

    fn journal(&self) -> Arc<dyn Journal> {
        Arc::clone(&self.journal) as Arc<dyn Journal>
    }

    fn live(&self) -> PathBuf {
        self.dir.path().join("live")
    }

    fn external(&self) -> PathBuf {
        self.live().join("external")
    }

    /// All that the original consists of, with its times: what must not change.
    fn original(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut todo = vec![self.live()];
        while let Some(path) = todo.pop() {
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            } else if meta.is_symlink() {
                found.insert(
                    path.clone(),
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                );
            } else if meta.is_file() {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        found
    }

    /// Copies all files under the lock, the server held, as a clone would; then kills the server.
    fn copy(&mut self, name: &str) -> (PathBuf, ServerRecord) {
        let mut lock = self.server.connect();
        for stage in ["START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT"] {
            lock.query_drop(format!("BACKUP STAGE {stage}")).unwrap();
        }
        lock.query_drop("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS").unwrap();
        let (file, offset): (String, u64) = lock
            .exec_first("SHOW MASTER STATUS", ())
            .unwrap()
            .map(|row: mysql::Row| (row.get(0).unwrap(), row.get(1).unwrap()))
            .unwrap();
        let base = self.dir.path().join(name);
        let into = base.join(self.live().strip_prefix("/").unwrap());
        fs::create_dir_all(into.parent().unwrap()).unwrap();
        let pid = self.server.pid().to_string();
        run("kill", &["-STOP", &pid], &[]);
        run("cp", &["-a"], &[&self.live(), &into]);
        run("kill", &["-CONT", &pid], &[]);
        drop(lock);
        run("chmod", &["700"], &[&base]);
        let data = into.join("server/data");
        for entry in fs::read_dir(&data).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("binlog.") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        (base, self.record(BinlogPosition { file, offset }))
    }

    fn record(&self, binlog: BinlogPosition) -> ServerRecord {
        let settings =
            [("innodb_page_size", "16384"), ("innodb_data_home_dir", ""), ("rocksdb_datadir", "./#rocksdb")];
        ServerRecord {
            source: SourceId::new("mariadb", "/run/test.sock"),
            version: ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 0), text: "10.11".into() },
            server_id: 1,
            form: ServerForm::Files,
            position: ServerPosition { binlog: Some(binlog), ..ServerPosition::default() },
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            roots: vec![
                ServerRoot { role: RootRole::Data, path: self.server.datadir().to_owned() },
                ServerRoot { role: RootRole::External, path: self.external() },
            ],
            engines: ["InnoDB", "MyISAM", "Aria", "ROCKSDB"].map(str::to_owned).to_vec(),
            databases: vec![],
            beside: None,
            replay_from: None,
        }
    }

    fn assert_nothing_left(&self) {
        assert!(self.journal.open().is_empty(), "{:?}", self.journal.open());
        for undo in self.journal.intended() {
            match undo {
                Undo::RemoveTree { path } => assert!(!path.exists(), "{}", path.display()),
                Undo::End { process } => assert_eq!(os::process::process_ref(process.pid), None),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[track_caller]
fn run(program: &str, args: &[&str], paths: &[&Path]) {
    let status = Command::new(program).args(args).args(paths).status().unwrap();
    assert!(status.success(), "{program} {args:?} {paths:?}");
}

fn count(open: &mut Connection, table: &str) -> u64 {
    let row = open.row(&format!("SELECT count(*) FROM d.{table}"), WITHIN).unwrap();
    row.number(0).unwrap()
}

#[track_caller]
fn assert_all_rows(access: &model::server::ServerAccess, rounds: u64) {
    let mut open = Connection::open(access, WITHIN).unwrap();
    let counts = ["apart", "inno", "myisam", "linked", "aria", "rocks"].map(|table| count(&mut open, table));
    assert_eq!(counts, [rounds * 100, rounds * 101, rounds, rounds, rounds, rounds]);
}

#[test]
fn a_crashed_copy_opens_behind_the_fence_and_the_original_is_not_touched() {
    let mut scene = Scene::new();
    let (base, record) = scene.copy("copy");
    scene.server.kill();
    let before = scene.original();
    let copy = ServerCopy::new(&base, record).unwrap();
    let private = Private::open(&copy, &scene.journal(), WITHIN).unwrap();
    assert!(private.has_recovered());
    assert!(matches!(private.position(), PositionFound::Equal { .. }), "{:?}", private.position());
    assert_all_rows(&private.access(), scene.rows);
    let checked = private.check(WITHIN).unwrap();
    assert!(checked.problems.is_empty() && checked.tables > 30, "{checked:?}");
    let mut open = Connection::open(&private.access(), WITHIN).unwrap();
    for statement in [
        "UPDATE d.apart SET t = 'changed in the copy'",
        "INSERT INTO d.linked VALUES (4711)",
        "INSERT INTO d.inno (t) VALUES ('in the copy')",
    ] {
        open.run(statement, WITHIN).unwrap();
    }
    let asked = "SELECT @@skip_networking, @@log_bin, @@event_scheduler";
    let row = open.row(asked, WITHIN).unwrap();
    assert_eq!((row.text(0).as_str(), row.text(1).as_str(), row.text(2).as_str()), ("1", "0", "OFF"));
    drop(open);
    private.stop(WITHIN).unwrap();
    assert!(scene.original() == before, "the original has changed");
    scene.assert_nothing_left();
}

#[test]
fn a_record_that_names_the_data_directory_by_a_link_opens_where_that_link_is_not() {
    let mut scene = Scene::new();
    let (base, mut record) = scene.copy("copy");
    scene.server.kill();
    for name in ["datadir", "aria_log_dir_path"] {
        record.settings.insert(name.into(), "/nowhere/else/mysql/".into());
    }
    let copy = ServerCopy::new(&base, record).unwrap();
    let text = option_file(&copy, Path::new("/run/x")).unwrap();
    let data = copy.below(copy.data().unwrap());
    assert!(text.contains(&format!("aria-log-dir-path=\"{}\"", data.display())), "{text}");
    // Released, it is the same copy at the same socket, and nothing of the fence is left.
    let (released, fence) = text.split_once(FENCE).unwrap();
    let fences = ["skip-networking", "skip-log-bin", "skip-slave-start", "event-scheduler=\"OFF\""];
    assert!(fences.iter().all(|line| fence.contains(line) && !released.contains(line)), "{text}");
    assert!(released.contains("datadir=") && released.contains("socket=\"/run/x/socket\""), "{text}");
    let private = Private::open(&copy, &scene.journal(), WITHIN).unwrap();
    assert_all_rows(&private.access(), scene.rows);
    private.stop(WITHIN).unwrap();
    scene.assert_nothing_left();
}

#[test]
fn a_settled_copy_opens_where_it_lies_and_the_original_is_not_touched() {
    let mut scene = Scene::new();
    let (base, record) = scene.copy("copy");
    scene.server.kill();
    let before = scene.original();
    let copy = ServerCopy::new(&base, record).unwrap();
    assert!(needs_settling(&copy).unwrap().is_some());
    assert!(settle(&copy, &scene.journal(), WITHIN).unwrap());
    scene.assert_nothing_left();
    assert!(scene.original() == before, "the original has changed");
    let again = relocate(&copy, copy.placement()).unwrap();
    assert_eq!((again.rewritten.len(), again.tablespaces), (0, 1), "{again:?}");

    // As a person would start it.
    run("chmod", &["755"], &[&base]);
    let runs = scene.dir.path().join("run");
    fs::create_dir(&runs).unwrap();
    run("chown", &["mysql"], &[&runs]);
    let file = scene.dir.path().join("my.cnf");
    fs::write(&file, option_file(&copy, &runs).unwrap()).unwrap();
    let mut defaults = std::ffi::OsString::from("--defaults-file=");
    defaults.push(&file);
    let mut child = Command::new("mariadbd").arg(defaults).arg("--user=mysql").spawn().unwrap();
    let socket = runs.join("socket");
    let access = model::server::ServerAccess {
        flavor: Flavor::MariaDb,
        address: model::server::ServerAddress::Socket(socket),
        user: Some("root".into()),
        password_file: None,
        option_file: None,
        tls_ca: None,
    };
    let up =
        testkit::server::wait_until(WITHIN, || Connection::open(&access, Duration::from_secs(5)).is_ok());
    assert!(up.is_some(), "{}", fs::read_to_string(runs.join("error.log")).unwrap_or_default());
    assert_all_rows(&access, scene.rows);
    Connection::open(&access, WITHIN).unwrap().run("UPDATE d.apart SET t = 'changed'", WITHIN).unwrap();
    run("kill", &[&child.id().to_string()], &[]);
    assert!(child.wait().unwrap().success());
    assert!(scene.original() == before, "the original has changed");
}

#[test]
fn whatever_leads_out_of_a_copy_is_refused_before_anything_is_changed() {
    let mut scene = Scene::new();
    let (base, record) = scene.copy("copy");
    scene.server.stop();
    let copy = ServerCopy::new(&base, record.clone()).unwrap();
    let data = copy.below(copy.data().unwrap());
    let isl = data.join("d/apart.isl");
    let text = fs::read(&isl).unwrap();

    let mut without = record.clone();
    without.roots.retain(|root| root.role == RootRole::Data);
    let refused =
        Private::open(&ServerCopy::new(&base, without).unwrap(), &scene.journal(), WITHIN).err().unwrap();
    assert_eq!(refused.kind, FailureKind::Refused);
    assert!(refused.what.contains("external"), "{}", refused.what);

    std::os::unix::fs::symlink("/etc/hostname", data.join("d/out")).unwrap();
    let refused = relocate(&copy, copy.placement()).unwrap_err();
    assert!(refused.what.contains("/etc/hostname"), "{}", refused.what);
    assert_eq!(fs::read(&isl).unwrap(), text, "nothing was rewritten");
    fs::remove_file(data.join("d/out")).unwrap();

    std::os::unix::fs::symlink("../../../../../../../../../../etc", data.join("d/up")).unwrap();
    relocate(&copy, copy.placement()).unwrap_err();
    fs::remove_file(data.join("d/up")).unwrap();

    let mut elsewhere = record;
    elsewhere.settings.insert("innodb_log_group_home_dir".into(), "/var/lib/redo".into());
    let refused =
        Private::open(&ServerCopy::new(&base, elsewhere).unwrap(), &scene.journal(), WITHIN).err().unwrap();
    assert!(refused.what.contains("/var/lib/redo"), "{}", refused.what);
    scene.assert_nothing_left();
}

#[test]
fn a_damaged_page_and_a_wrong_record_are_found() {
    let mut scene = Scene::new();
    let (base, mut record) = scene.copy("copy");
    let copy = ServerCopy::new(&base, record.clone()).unwrap();
    settle(&copy, &scene.journal(), WITHIN).unwrap();
    let table = copy.below(copy.data().unwrap()).join("d/inno.ibd");
    let file = fs::File::options().write(true).open(table).unwrap();
    file.write_all_at(b"not what was there", 16384 * 6 + 5000).unwrap();
    drop(file);
    let private = Private::open(&copy, &scene.journal(), WITHIN).unwrap();
    let checked = private.check(WITHIN).unwrap();
    assert!(
        checked.problems.iter().any(|p| p.effect == Effect::Missing && p.what.contains("d.inno")),
        "{:?}",
        checked.problems
    );
    drop(private);
    scene.assert_nothing_left();

    // A copy from another moment than the record says.
    let (other, _) = scene.copy("other");
    if let Some(binlog) = &mut record.position.binlog {
        binlog.offset -= 1000;
    }
    let private = Private::open(&ServerCopy::new(&other, record).unwrap(), &scene.journal(), WITHIN).unwrap();
    assert!(matches!(private.position(), PositionFound::Ahead { .. }), "{:?}", private.position());
    assert_eq!(private.position().problem().unwrap().effect, Effect::Missing);
}

#[test]
fn a_copy_that_does_not_open_says_why_and_leaves_nothing() {
    let mut scene = Scene::new();
    let (base, record) = scene.copy("copy");
    let copy = ServerCopy::new(&base, record).unwrap();
    let system = copy.below(copy.data().unwrap()).join("ibdata1");
    fs::File::options().write(true).open(system).unwrap().set_len(100_000).unwrap();
    let failure = Private::open(&copy, &scene.journal(), WITHIN).err().unwrap();
    assert_eq!(failure.kind, FailureKind::Damaged);
    assert!(failure.what.contains("InnoDB"), "{}", failure.what);
    scene.assert_nothing_left();
}

#[test]
fn a_new_server_for_dumps_is_fenced_too() {
    let scene = Scene::new();
    let dir = scene.dir.path().join("closed");
    fs::create_dir(&dir).unwrap();
    run("chmod", &["700"], &[&dir]);
    let mut like = scene.record(BinlogPosition { file: "binlog.000001".into(), offset: 4 });
    like.settings.insert("innodb_page_size".into(), "8192".into());
    let private = fresh(&dir, &like, &scene.journal(), WITHIN).unwrap();
    let mut open = Connection::open(&private.access(), WITHIN).unwrap();
    let row = open.row("SELECT @@innodb_page_size, @@skip_networking, @@log_bin", WITHIN).unwrap();
    assert_eq!((row.text(0).as_str(), row.text(1).as_str(), row.text(2).as_str()), ("8192", "1", "0"));
    open.run("CREATE DATABASE loaded", WITHIN).unwrap();
    drop(open);
    private.stop(WITHIN).unwrap();
    scene.assert_nothing_left();
}
