//! Restores by the built program: what was destroyed comes back, what is refused changes nothing, and a
//! restore that is killed leaves the old state or the new, with the application started again.
#![allow(clippy::print_stdout, reason = "seeds and counts are for whoever reads the test's output")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{Load, Ran, Site, below, rows_without_file, seed, start};

/// A guestbook that writers have filled, backed up; and how it was then.
fn filled(more: impl FnOnce(&Site) -> String) -> (Site, BTreeMap<PathBuf, Vec<u8>>) {
    let site = Site::new();
    site.init(&format!("{}{}", site.sources(), more(&site)));
    let load = Load::start(&site, 2, seed());
    for _ in 0..8 {
        load.wait_for_progress(Duration::from_secs(10));
    }
    drop(load);
    site.run(["backup"]).expect_status(0).expect_text("consistent");
    let then = contents(&site.app());
    (site, then)
}

/// Every file below, with its bytes.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("a name").path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below").to_owned();
                found.insert(name, fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

fn rows(app: &Path) -> i64 {
    let open = rusqlite::Connection::open(app.join("guestbook.sqlite3")).expect("the database");
    open.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).expect("a count")
}

/// What an accident leaves: uploads gone, the database overwritten, leftovers of SQLite beside it.
fn destroy(site: &Site) {
    let uploads = fs::read_dir(site.uploads()).expect("uploads").flatten();
    uploads.step_by(2).for_each(|entry| fs::remove_file(entry.path()).expect("removed"));
    fs::write(site.uploads().join("made-since"), "since").expect("written");
    fs::write(site.database(), "not a database").expect("written");
    for suffix in ["-wal", "-shm", "-journal"] {
        let name = format!("guestbook.sqlite3{suffix}");
        fs::write(site.app().join(name), "a leftover that would spoil the database").expect("written");
    }
}

fn in_place(site: &Site, more: &[&str]) -> Ran {
    site.run(["restore", "guestbook", "--in-place"].iter().chain(more))
}

/// Fails unless the guestbook is as it was when it was backed up, and nothing of ours is left.
fn expect_restored(site: &Site, then: &BTreeMap<PathBuf, Vec<u8>>) {
    let now = contents(&site.app());
    for (path, bytes) in then.iter().filter(|(path, _)| path.starts_with("uploads")) {
        assert!(now.get(path) == Some(bytes), "{}", path.display());
    }
    assert!(!now.contains_key(Path::new("uploads/made-since")));
    for suffix in ["-wal", "-journal"] {
        let name = PathBuf::from(format!("guestbook.sqlite3{suffix}"));
        assert_eq!(now.get(&name).map(Vec::len), Some(0), "an empty {suffix} takes the leftover's place");
    }
    assert!(!now.contains_key(Path::new("guestbook.sqlite3-shm")));
    assert_eq!(rows_without_file(&site.app()), Vec::<String>::new());
    assert!(rows(&site.app()) > 0);
    assert_eq!(site.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn what_was_destroyed_comes_back_in_place() {
    let (site, then) = filled(|_| String::new());
    destroy(&site);
    let before = contents(&site.app());
    in_place(&site, &["--dry-run"])
        .expect_status(0)
        .expect_text("not in the backup and will be gone")
        .expect_text("written beside, verified, then renamed into place");
    in_place(&site, &[]).expect_status(2).expect_text("--yes");
    assert!(contents(&site.app()) == before, "looking and refusing change nothing");
    let ran = in_place(&site, &["--yes", "--json"]);
    ran.expect_status(0);
    let said = ran.json();
    assert_eq!(said["restore"], "done", "{said}");
    expect_restored(&site, &then);
    site.run(["backup"]).expect_status(0).expect_text("consistent");
    site.run(["thaw"]).expect_status(0).expect_text("nothing was left");
}

#[test]
fn a_database_that_somebody_has_open_is_not_replaced() {
    let (site, _) = filled(|_| String::new());
    fs::write(site.uploads().join("made-since"), "since").expect("written");
    let open = rusqlite::Connection::open(site.database()).expect("the database");
    let count: i64 = open.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).expect("a count");
    let ourselves = format!("(process {}) has", std::process::id());
    in_place(&site, &["--yes"]).expect_status(1).expect_text(&ourselves).expect_text("guestbook.sqlite3");
    assert!(site.uploads().join("made-since").exists());
    assert_eq!(rows(&site.app()), count);
    drop(open);
    assert_eq!(site.leftovers(), Vec::<PathBuf>::new());
    in_place(&site, &["--yes"]).expect_status(0);
    assert!(!site.uploads().join("made-since").exists());
}

#[test]
fn to_a_directory_the_application_is_not_touched() {
    let (site, then) = filled(|_| String::new());
    destroy(&site);
    let before = contents(&site.app());
    let to = site.root().join("restored");
    let to_text = to.to_str().expect("UTF-8");
    site.run(["restore", "guestbook", "--to", to_text, "--dry-run"]).expect_status(0);
    assert!(!to.exists());
    let id = site.backups().remove(0);
    site.run(["restore", "guestbook", "--to", to_text, "--backup", &id[..10]]).expect_status(0);
    assert!(contents(&site.app()) == before);
    let restored = below(&to, &site.app());
    assert!(
        then.iter()
            .filter(|(p, _)| p.starts_with("uploads"))
            .all(|(p, b)| { fs::read(restored.join(p)).expect("restored") == *b })
    );
    assert_eq!(rows_without_file(&restored), Vec::<String>::new());
    site.run(["restore", "guestbook", "--to", to_text]).expect_status(1).expect_text("not empty");
    let inside = site.app().join("inside");
    let inside = inside.to_str().expect("UTF-8");
    site.run(["restore", "guestbook", "--to", inside]).expect_status(1).expect_text("lies inside");
    site.run(["restore", "guestbook", "--to", to_text, "--backup", "ffff0000"]).expect_status(1);
}

#[test]
fn what_was_there_is_kept_if_asked() {
    let (site, _) = filled(|_| String::new());
    destroy(&site);
    in_place(&site, &["--yes", "--keep-old"]).expect_status(0).expect_text("what was there is kept at");
    assert_eq!(rows_without_file(&site.app()), Vec::<String>::new());
    let kept = site.leftovers();
    let found: Vec<_> =
        kept.iter().filter_map(|dir| fs::read(dir.join("old/app/uploads/made-since")).ok()).collect();
    assert_eq!(found, [b"since".to_vec()], "{kept:?}");
    // It is no part of what is backed up.
    site.run(["backup"]).expect_status(0).expect_text("consistent");
}

#[test]
fn a_damaged_repository_replaces_nothing_and_stops_nobody() {
    let (site, _) = filled(|site| hooks(site, "touch stopped", "touch started"));
    let packs = fs::read_dir(site.repository().join("data")).expect("packs").flatten();
    let files = packs.flat_map(|dir| fs::read_dir(dir.path()).expect("packs").flatten());
    let largest =
        files.map(|f| f.path()).max_by_key(|p| fs::metadata(p).expect("a pack").len()).expect("a pack");
    let mut bytes = fs::read(&largest).expect("a pack");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&largest).expect("removed");
    fs::write(&largest, bytes).expect("written");
    destroy(&site);
    let before = contents(&site.app());
    fs::remove_file(site.root().join("stopped")).expect("the backup stopped it");
    in_place(&site, &["--yes"]).expect_status(1).expect_text("nothing was replaced").expect_text("damaged");
    assert!(contents(&site.app()) == before);
    assert!(!site.root().join("stopped").exists());
    assert_eq!(site.leftovers(), Vec::<PathBuf>::new());
}

/// Hooks of the inventory, run in the site's directory.
fn hooks(site: &Site, stop: &str, start: &str) -> String {
    let root = site.root().display();
    format!(
        "[application.hooks]\nstop = {{ run = \"cd {root} && {stop}\", timeout = \"20s\" }}\n\
         start = {{ run = \"cd {root} && {start}\", timeout = \"20s\" }}\n"
    )
}

#[test]
fn hooks_stop_who_has_the_database_open_and_start_it_afterwards() {
    let stop = "if test -e holds; then touch quit; while test ! -e ended; do sleep 0.01; done; fi";
    let (site, then) = filled(|site| hooks(site, stop, "cat app/guestbook.sqlite3 > seen"));
    destroy(&site);
    let mut holder = Command::new("sh");
    let script = "exec 3<app/guestbook.sqlite3; touch holds
                  while test ! -e quit; do sleep 0.01; done; exec 3<&-; touch ended";
    holder.args(["-c", script]).current_dir(site.root());
    let mut holder = start(holder);
    wait_for("who has it open", || site.root().join("holds").exists());
    in_place(&site, &["--yes"]).expect_status(0).expect_text("has been started again");
    assert!(holder.wait().expect("reaped").success(), "it was stopped by its hook");
    let database = fs::read(site.database()).expect("the database");
    assert!(
        fs::read(site.root().join("seen")).expect("started") == database,
        "started on the restored state"
    );
    expect_restored(&site, &then);
}

#[test]
fn killed_at_any_moment_it_is_the_old_state_or_the_new_and_started_again() {
    let (site, then) = filled(|site| hooks(site, "touch stopped", "touch started"));
    let (stopped, started) = (site.root().join("stopped"), site.root().join("started"));
    let (mut old, mut new, mut seed) = (0, 0, seed());
    for round in 0..8 {
        destroy(&site);
        let before = contents(&site.app());
        for file in [&stopped, &started] {
            fs::remove_file(file).unwrap_or_default();
        }
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut child = start(site.command(["restore", "guestbook", "--in-place", "--yes"]));
        if round % 2 == 0 {
            wait_for("the stop hook", || stopped.exists());
            thread::sleep(Duration::from_micros((seed >> 40) % 20_000));
        } else {
            thread::sleep(Duration::from_millis((seed >> 40) % 1_000));
        }
        child.kill().unwrap_or_default();
        child.wait().expect("reaped");
        if stopped.exists() {
            wait_for("the start hook", || started.exists());
        }
        site.run(["thaw"]).expect_status(0);
        if contents(&site.app()) == before {
            old += 1;
            assert_eq!(site.leftovers(), Vec::<PathBuf>::new(), "round {round}");
        } else {
            new += 1;
            expect_restored(&site, &then);
        }
    }
    println!("{old} rounds ended old, {new} new");
    in_place(&site, &["--yes"]).expect_status(0);
    expect_restored(&site, &then);
}

/// A run died in the middle of its swap, and what it moved aside cannot be renamed back at first.
#[test]
fn nobody_is_started_on_a_mix_of_old_and_new() {
    let (site, _) = filled(|_| String::new());
    let staging = site.root().join(".stillpoint-restore-0123456789abcdef");
    let (new, old) = (staging.join("new"), staging.join("old"));
    fs::create_dir_all(&new).expect("made");
    fs::create_dir_all(&old).expect("made");
    fs::rename(site.app(), old.join("app")).expect("moved aside");
    fs::create_dir(site.app()).expect("the restored");
    fs::create_dir(old.join("app.found")).expect("in the way");
    let moves = serde_json::json!([{"live": site.app(), "old": old.join("app"), "had": true}]);
    let start = format!("touch {}", site.root().join("started").display());
    let lines = [
        serde_json::json!({"line": "journal", "version": 1, "run": "dead"}),
        serde_json::json!({"line": "intend", "ticket": 1, "what":
            {"undo": "start", "start": {"run": start, "timeout": {"secs": 9, "nanos": 0}}}}),
        serde_json::json!({"line": "intend", "ticket": 2, "what":
            {"undo": "swap-back", "moves": moves, "staging": [staging]}}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let journal = site.partition().join("state/journal");
    fs::create_dir_all(&journal).expect("made");
    common::write_private(&journal.join("dead.jsonl"), text.as_bytes());
    site.run(["thaw"]).expect_status(1).expect_text("stays stopped");
    assert!(!site.root().join("started").exists());
    fs::remove_dir(old.join("app.found")).expect("mended");
    site.run(["thaw"]).expect_status(0).expect_text("bring back");
    assert!(site.root().join("started").exists());
    assert_eq!(rows_without_file(&site.app()), Vec::<String>::new());
    assert_eq!(site.leftovers(), Vec::<PathBuf>::new());
}

#[track_caller]
fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_there() {
        assert!(Instant::now() < until, "{what} does not come");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_start_hook_that_fails_fails_the_backup_and_is_given_up_after_one_more_try() {
    let (site, _) = filled(|_| String::new());
    let hooks = hooks(&site, "true", "echo start >> starts; exit 7");
    let config = fs::read_to_string(site.config()).expect("a configuration");
    fs::write(site.config(), format!("{config}\n{hooks}")).expect("writable");
    site.run(["backup"]).expect_status(1).expect_text("guestbook: FAILED: ").expect_text("exit status: 7");
    site.run(["thaw"]).expect_status(1).expect_text("exit status: 7");
    site.run(["thaw"]).expect_status(0).expect_text("nothing was left");
}
