//! Backups of real MariaDB servers brought back by the built program: to a directory, in place with and without hooks,
//! and opened for a check. As root.

mod common;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{Site, below};
use testkit::server::{PrivateServer, Volume, wait_until};

const WITHIN: Duration = Duration::from_secs(60);
/// What the application's database holds at the backup, each round in every table.
const ROUNDS: u64 = 5;

/// A server with tables of every engine, one of them elsewhere, a directory, hooks that say what they do.
struct Scene {
    site: Site,
    server: PrivateServer,
    _volume: Volume,
}

impl Scene {
    /// `block` stands in the inventory after the server's socket and user.
    fn new(block: impl FnOnce(&Hooks) -> String) -> Self {
        Self::on("xfs", block)
    }

    /// The same on another filesystem.
    fn on(filesystem: &str, block: impl FnOnce(&Hooks) -> String) -> Self {
        let volume = Volume::for_test(filesystem, 4 << 30, Path::new(env!("CARGO_TARGET_TMPDIR")));
        let external = volume.directory("external");
        owned_by_server(&external);
        let server = PrivateServer::builder().directory(volume.directory("server")).rocksdb().start();
        let apart = external.display();
        server.run([
            "CREATE DATABASE app".to_owned(),
            "CREATE DATABASE other".into(),
            "CREATE TABLE other.t (i INT) ENGINE=InnoDB".into(),
            "CREATE TABLE app.inno (i INT PRIMARY KEY AUTO_INCREMENT, t TEXT) ENGINE=InnoDB".into(),
            format!("CREATE TABLE app.apart (i INT PRIMARY KEY AUTO_INCREMENT, t TEXT) ENGINE=InnoDB DATA DIRECTORY='{apart}'"),
            "CREATE TABLE app.myisam (i INT, t TEXT) ENGINE=MyISAM".into(),
            "CREATE TABLE app.aria (i INT, t TEXT) ENGINE=Aria".into(),
            "CREATE TABLE app.rocks (i INT PRIMARY KEY) ENGINE=RocksDB".into(),
        ]);
        let site = Site::at(volume.path());
        fs::write(site.uploads().join("file"), "as in the backup").unwrap();
        let hooks = Hooks::write(&site, &server);
        let mut scene = Self { site, server, _volume: volume };
        let sources = format!(
            "[[application.directory]]\npath = \"{}\"\n[[application.database]]\nengine = \"mariadb\"\nsocket = \
             \"{}\"\nuser = \"root\"\n{}",
            scene.site.app().display(),
            scene.server.socket().display(),
            block(&hooks)
        );
        scene.site.init(&sources);
        (0..ROUNDS).for_each(|number| scene.round(number));
        scene
    }

    fn round(&mut self, number: u64) {
        self.server.run([
            "INSERT INTO app.inno (t) SELECT repeat('x', 500) FROM app.seq_1_to_100".to_owned(),
            "INSERT INTO app.apart (t) SELECT repeat('y', 500) FROM app.seq_1_to_100".into(),
            format!("INSERT INTO app.myisam VALUES ({number}, 'm')"),
            format!("INSERT INTO app.aria VALUES ({number}, 'a')"),
            format!("INSERT INTO app.rocks VALUES ({number})"),
            format!("INSERT INTO other.t VALUES ({number})"),
            "INSERT INTO app.inno (t) VALUES ('last')".into(),
        ]);
    }

    fn counts(&self) -> Vec<u64> {
        counts(&self.server, &["inno", "apart", "myisam", "aria", "rocks"])
    }

    fn others(&self) -> u64 {
        self.server.ask("SELECT count(*) FROM other.t").unwrap().parse().unwrap()
    }

    /// What people do after a backup and then regret.
    fn spoil(&mut self) {
        self.round(4711);
        self.server.run(["DROP TABLE app.aria", "UPDATE app.apart SET t = 'spoilt'", "FLUSH BINARY LOGS"]);
        fs::write(self.site.uploads().join("file"), "spoilt").unwrap();
        fs::write(self.site.uploads().join("new"), "new").unwrap();
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.site.root().join("hooks.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn names(&self, part: &str) -> Vec<PathBuf> {
        self.site.leftovers().into_iter().filter(|path| path.to_string_lossy().contains(part)).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = Command::new("mariadb-admin")
            .args(["--no-defaults", "--user=root", "shutdown", "--socket"])
            .arg(self.server.socket())
            .output();
    }
}

fn whole() -> Vec<u64> {
    vec![ROUNDS * 101, ROUNDS * 100, ROUNDS, ROUNDS, ROUNDS]
}

fn counts(server: &PrivateServer, tables: &[&str]) -> Vec<u64> {
    let count =
        |table: &&str| server.ask(&format!("SELECT count(*) FROM app.{table}")).unwrap().parse().unwrap();
    tables.iter().map(count).collect()
}

fn owned_by_server(path: &Path) {
    assert!(Command::new("chown").arg("mysql:mysql").arg(path).status().unwrap().success());
}

/// Commands that stop and start server and application, and say so in a log.
struct Hooks {
    server: [String; 2],
    application: [String; 2],
}

impl Hooks {
    fn write(site: &Site, server: &PrivateServer) -> Self {
        let log = site.root().join("hooks.log");
        let say = |word: &str| format!("echo {word} >> '{}'", log.display());
        let socket = server.socket();
        let run = socket.parent().unwrap();
        let admin = format!("mariadb-admin --no-defaults --user=root --socket='{}'", socket.display());
        let stop = format!(
            "{}; {admin} shutdown; while [ -e '{}/pid' ]; do sleep 0.05; done",
            say("server-stop"),
            run.display()
        );
        let mariadbd = format!(
            "setsid mariadbd --no-defaults --user=mysql --datadir='{}' --socket='{}' --pid-file='{}/pid' --tmpdir='{}' \
             --log-error='{}' --skip-networking --log-bin=binlog --server-id=1 --plugin-load-add=ha_rocksdb \
             --innodb-log-file-size=32M --innodb-buffer-pool-size=64M </dev/null >/dev/null 2>&1 &",
            server.datadir().display(),
            socket.display(),
            run.display(),
            run.display(),
            server.error_log_path().display()
        );
        let start = format!(
            "{}; {admin} ping >/dev/null 2>&1 && exit 0; {mariadbd} for i in $(seq 600); do {admin} ping >/dev/null 2>&1 && \
             exit 0; sleep 0.1; done; exit 1",
            say("server-start")
        );
        let script = |name: &str, text: &str| {
            let path = site.root().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            format!("sh {}", path.display())
        };
        Self {
            server: [script("stop-server", &stop), script("start-server", &start)],
            application: [script("stop-app", &say("app-stop")), script("start-app", &say("app-start"))],
        }
    }

    fn of_server(&self) -> String {
        let [stop, start] = &self.server;
        format!(
            "stop = {{ run = \"{stop}\", timeout = \"60s\" }}\nstart = {{ run = \"{start}\", timeout = \"90s\" }}\n"
        )
    }

    fn of_application(&self) -> String {
        let [stop, start] = &self.application;
        format!(
            "[application.hooks]\nstop = {{ run = \"{stop}\", timeout = \"20s\" }}\nstart = {{ run = \"{start}\", timeout = \
             \"20s\" }}\n"
        )
    }
}

#[test]
fn in_place_with_hooks_the_server_is_stopped_inside_the_application_and_its_binary_logs_are_kept() {
    let mut scene = Scene::new(|hooks| format!("{}{}", hooks.of_server(), hooks.of_application()));
    scene.site.run(["backup"]).expect_status(0);
    let at_backup = scene.log().len();
    scene.spoil();
    let dry = scene.site.run(["restore", "guestbook", "--in-place", "--dry-run"]);
    dry.expect_status(0).expect_text("stopped by its hook").expect_text("binary logs are kept");
    assert_eq!(scene.log().len(), at_backup, "a dry run stops nobody");

    let ran = scene.site.run(["restore", "guestbook", "--in-place", "--yes"]);
    ran.expect_status(0);
    assert_eq!(scene.log()[at_backup..], ["app-stop", "server-stop", "server-start", "app-start"]);
    assert_eq!(scene.counts(), whole());
    assert_eq!(scene.others(), ROUNDS, "the application owns the whole server");
    assert_eq!(scene.server.ask("SELECT count(*) FROM app.apart WHERE t = 'spoilt'").unwrap(), "0");
    assert_eq!(fs::read_to_string(scene.site.uploads().join("file")).unwrap(), "as in the backup");
    assert!(!scene.site.uploads().join("new").exists());
    scene.server.run(["INSERT INTO app.inno (t) VALUES ('goes on')"]);

    let kept = scene.names(".stillpoint-logs-");
    assert_eq!(scene.site.leftovers(), kept, "only the logs are left: {}", ran.out());
    assert_eq!(kept.len(), 1, "{kept:?}");
    ran.expect_text(kept[0].to_str().unwrap());
    let logs: Vec<PathBuf> = fs::read_dir(kept[0].join("data")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(logs.iter().any(|log| log.ends_with("binlog.000002")), "{logs:?}");
    let read = Command::new("mariadb-binlog")
        .arg("--no-defaults")
        .arg(kept[0].join("data/binlog.000001"))
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&read.stdout).contains("DROP TABLE"),
        "what was done since the backup is not lost"
    );
}

#[test]
fn in_place_without_hooks_a_running_server_is_refused_and_a_stopped_one_is_replaced() {
    let mut scene = Scene::new(|_| String::new());
    scene.site.run(["backup"]).expect_status(0);
    scene.spoil();
    let refused = scene.site.run(["restore", "guestbook", "--in-place", "--yes"]);
    refused.expect_status(1).expect_text("stop the server first").expect_text("mariadbd");
    assert_eq!(
        fs::read_to_string(scene.site.uploads().join("file")).unwrap(),
        "spoilt",
        "nothing was changed"
    );

    scene.server.stop();
    let ran = scene.site.run(["restore", "guestbook", "--in-place", "--yes", "--keep-old"]);
    ran.expect_status(0).expect_text(".stillpoint-old-");
    scene.server.start();
    assert_eq!(scene.counts(), whole());
    assert!(scene.names(".stillpoint-old-").iter().any(|old| old.join("old/data/binlog.000001").exists()));
}

#[test]
fn a_restored_directory_has_what_mariadbd_needs_to_open_it_and_leaves_the_original_alone() {
    let mut scene = Scene::new(|_| String::new());
    scene.site.run(["backup"]).expect_status(0);
    scene.spoil();
    scene.server.stop();
    let original = fs::read(scene.site.root().join("external/app/apart.ibd")).unwrap();
    let to = scene.site.root().join("back");
    let ran = scene.site.run(["restore", "guestbook", "--to", to.to_str().unwrap()]);
    ran.expect_status(0).expect_text("mariadbd --defaults-file=");
    assert_eq!(
        fs::read_to_string(below(&to, &scene.site.uploads()).join("file")).unwrap(),
        "as in the backup"
    );

    let file = to.join("stillpoint-mariadb.cnf");
    let text = fs::read_to_string(&file).unwrap();
    let socket =
        text.lines().find_map(|line| line.strip_prefix("socket=\"")?.strip_suffix('"')).unwrap().to_owned();
    let mut defaults = std::ffi::OsString::from("--defaults-file=");
    defaults.push(&file);
    let mut child = Command::new("mariadbd").arg(defaults).spawn().unwrap();
    let ask = |statement: &str| {
        let out = Command::new("mariadb")
            .args(["--no-defaults", "--user=root", "-BN", "--socket", &socket, "-e", statement])
            .output()
            .unwrap();
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let up = wait_until(WITHIN, || ask("SELECT 1").is_some());
    assert!(up.is_some(), "{text}");
    let found: Vec<u64> = ["inno", "apart", "myisam", "aria", "rocks"]
        .iter()
        .map(|table| ask(&format!("SELECT count(*) FROM app.{table}")).unwrap().parse().unwrap())
        .collect();
    assert_eq!(found, whole());
    ask("UPDATE app.apart SET t = 'changed in the copy'").unwrap();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert!(fs::read(scene.site.root().join("external/app/apart.ibd")).unwrap() == original);
    assert_eq!(scene.site.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_server_that_reaches_its_directories_through_links_comes_back_anywhere() {
    let volume = Volume::for_test("xfs", 4 << 30, Path::new(env!("CARGO_TARGET_TMPDIR")));
    for name in ["data", "redo", "external"] {
        let far = volume.path().join("far").join(name);
        fs::create_dir_all(&far).unwrap();
        std::os::unix::fs::symlink(&far, volume.path().join(name)).unwrap();
        owned_by_server(&far);
    }
    let named = |name: &str| volume.path().join(name).display().to_string();
    let mut server = PrivateServer::builder()
        .directory(volume.directory("server"))
        .datadir(named("data"))
        .option(format!("--innodb-log-group-home-dir={}", named("redo")))
        .start();
    assert_eq!(server.ask("SELECT @@aria_log_dir_path").unwrap(), format!("{}/", named("data")));
    server.run([
        "CREATE DATABASE app".to_owned(),
        "CREATE TABLE app.inno (i INT PRIMARY KEY) ENGINE=InnoDB".into(),
        format!(
            "CREATE TABLE app.apart (i INT PRIMARY KEY) ENGINE=InnoDB DATA DIRECTORY='{}'",
            named("external")
        ),
        "CREATE TABLE app.aria (i INT) ENGINE=Aria".into(),
        format!("CREATE TABLE app.myisam (i INT) ENGINE=MyISAM DATA DIRECTORY='{}'", named("external")),
    ]);
    let tables = ["inno", "apart", "aria", "myisam"];
    let fill = |server: &PrivateServer, from: u32| {
        server.run(tables.map(|t| format!("INSERT INTO app.{t} SELECT seq + {from} FROM app.seq_1_to_100")));
    };
    fill(&server, 0);
    let site = Site::at(volume.path());
    site.init(&format!(
        "[[application.database]]\nengine = \"mariadb\"\nsocket = \"{}\"\nuser = \"root\"\n",
        server.socket().display()
    ));
    site.run(["backup"]).expect_status(0);
    fill(&server, 100);
    site.run(["check", "--open"]).expect_status(0);

    let to = site.root().join("back");
    site.run(["restore", "guestbook", "--to", to.to_str().unwrap()])
        .expect_status(0)
        .expect_text("mariadbd --defaults-file=");
    let options = fs::read_to_string(to.join("stillpoint-mariadb.cnf")).unwrap();
    for (name, real) in
        [("datadir", "data"), ("aria-log-dir-path", "data"), ("innodb-log-group-home-dir", "redo")]
    {
        let place = below(&to, &volume.path().canonicalize().unwrap().join("far").join(real));
        assert!(options.contains(&format!("{name}=\"{}\"", place.display())), "{options}");
    }

    server.stop();
    site.run(["restore", "guestbook", "--in-place", "--yes"]).expect_status(0);
    server.start();
    assert_eq!(counts(&server, &tables), [100; 4]);
    fill(&server, 100);
    server.restart();
    assert_eq!(counts(&server, &tables), [200; 4]);
    assert!(fs::symlink_metadata(volume.path().join("data")).unwrap().is_symlink());

    std::os::unix::fs::symlink("/nowhere/at/all", volume.path().join("data/gone")).unwrap();
    let ran = site.run(["backup"]);
    assert_eq!(ran.status(), Some(3), "{}{}", ran.out(), ran.err());
    site.run(["show", "guestbook"]).expect_status(0).expect_text("data/gone").expect_text("incomplete");
    server.stop();
}

#[test]
fn check_open_starts_the_newest_backup_and_finds_a_damaged_page() {
    let mut scene = Scene::new(|_| String::new());
    scene.site.run(["backup"]).expect_status(0);
    let ran = scene.site.run(["check", "--open", "--json"]);
    ran.expect_status(0);
    let json = ran.json();
    let source = &json["applications"][0]["opened"]["sources"][0];
    assert_eq!(
        (source["good"].as_bool(), source["position"].as_str()),
        (Some(true), Some("equal")),
        "{source}"
    );
    assert!(source["tables"].as_u64().unwrap() > 30, "{source}");
    assert_eq!(scene.site.leftovers(), Vec::<PathBuf>::new());

    // Nobody reads this page of the live table until it is checked.
    scene.server.add_option("--innodb-buffer-pool-load-at-startup=OFF");
    scene.server.stop();
    let table = scene.server.datadir().join("app/inno.ibd");
    let file = fs::File::options().write(true).open(table).unwrap();
    file.write_all_at(b"damage", 16384 * 5 + 4000).unwrap();
    scene.server.start();
    scene.site.run(["backup"]).expect_status(0);
    let ran = scene.site.run(["check", "--open"]);
    ran.expect_status(1).expect_text("app.inno").expect_text("DOES NOT OPEN");
    assert_eq!(scene.site.leftovers(), Vec::<PathBuf>::new());
    assert_eq!(scene.others(), ROUNDS, "the original serves on");
}

#[test]
fn databases_on_a_shared_server_come_back_alone() {
    let mut scene = Scene::new(|hooks| format!("databases = [\"app\"]\n{}", hooks.of_application()));
    let backup = scene.site.run(["backup"]);
    assert!([Some(0), Some(3)].contains(&backup.status()), "{}{}", backup.out(), backup.err());
    scene.site.run(["check", "--open"]).expect_status(0).expect_text("loaded 1 databases");
    scene.spoil();
    let ran = scene.site.run(["restore", "guestbook", "--in-place", "--yes"]);
    ran.expect_status(0);
    assert_eq!(scene.counts(), whole());
    assert_eq!(scene.others(), ROUNDS + 1, "nobody else's database was touched");
    assert_eq!(fs::read_to_string(scene.site.uploads().join("file")).unwrap(), "as in the backup");
    let left = scene
        .server
        .ask("SELECT count(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE '%stillpoint%'");
    assert_eq!(left.unwrap(), "0");
    assert_eq!(scene.site.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn where_nothing_can_be_pinned_a_copy_and_its_logs_come_back_in_place_too() {
    let mut scene = Scene::on("ext4", Hooks::of_server);
    let backup = scene.site.run(["backup", "--json"]);
    assert!([Some(0), Some(3)].contains(&backup.status()), "{}{}", backup.out(), backup.err());
    let shown = scene.site.run(["show", "guestbook"]);
    shown.expect_status(0).expect_text("server-physical");
    scene.site.run(["check", "--open"]).expect_status(0);
    scene.spoil();
    let ran = scene.site.run(["restore", "guestbook", "--in-place", "--yes"]);
    ran.expect_status(0);
    assert_eq!(scene.counts(), whole());
    assert_eq!(scene.names(".stillpoint-logs-").len(), 1);
}

#[test]
fn a_check_that_is_killed_leaves_no_server_and_nothing_after_the_next_run() {
    let scene = Scene::new(|_| String::new());
    scene.site.run(["backup"]).expect_status(0);
    let others = private_servers();
    for wait in [300, 1500, 3000, 4500] {
        let mut child = common::start(scene.site.command(["check", "--open"]));
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut seen = private_servers();
        seen.retain(|server| !others.contains(server));
        // Those of tests beside this one end too.
        let gone = wait_until(WITHIN, || private_servers().iter().all(|server| !seen.contains(server)));
        assert!(gone.is_some(), "killed after {wait} ms: {seen:?}");
    }
    scene.site.run(["thaw"]).expect_status(0);
    assert_eq!(scene.site.leftovers(), Vec::<PathBuf>::new());
    let seen = private_runs();
    let gone = wait_until(WITHIN, || private_runs().iter().all(|run| !seen.contains(run)));
    assert!(gone.is_some(), "{seen:?}");
    assert_eq!(scene.counts(), whole());
}

/// Process ids of servers that were started behind the fence, by anyone.
/// Where private servers have their sockets.
fn private_runs() -> Vec<PathBuf> {
    let runs = fs::read_dir("/run").unwrap().flatten().map(|entry| entry.path());
    runs.filter(|path| path.to_string_lossy().contains(".stillpoint-open-")).collect()
}

fn private_servers() -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let numbers = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    numbers
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("mariadbd") && line.contains(".stillpoint-open-")
        })
        .collect()
}
