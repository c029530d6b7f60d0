//! The command line with backups: the shapes of what it prints, and its exit statuses.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::Stdio,
};

use common::{Site, below, make_guestbook, rows_without_file, write_private};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A site with one upload and its row.
fn site() -> Site {
    let site = Site::new();
    make_guestbook(&site.database());
    add(&site, "first.bin", b"first");
    site.init(&site.sources());
    site
}

fn add(site: &Site, upload: &str, bytes: &[u8]) {
    fs::write(site.uploads().join(upload), bytes).expect("an upload");
    let database = rusqlite::Connection::open(site.database()).expect("the guestbook");
    let sha256 = format!("{:x}", Sha256::digest(bytes));
    database
        .execute(
            "INSERT INTO entry (writer, message, upload, sha256) VALUES (0, '', ?1, ?2)",
            rusqlite::params![upload, sha256],
        )
        .expect("a row");
}

/// Names of the fields of an object.
fn fields(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[track_caller]
fn has_fields(value: &Value, expected: &[&str]) {
    let there = fields(value);
    for field in expected {
        assert!(there.contains(field), "no {field} in {value}");
    }
}

#[test]
fn the_whole_way_as_people_read_it() {
    let site = site();
    site.run(["plan"])
        .expect_status(0)
        .expect_text("predicted stall")
        .expect_text("a child process locks")
        .expect_text("because");
    site.run(["backup", "--dry-run"]).expect_status(0).expect_text("predicted stall");
    site.run(["list"]).expect_status(0).expect_text("no backups yet");
    site.run(["backup", "--label", "mine"]).expect_status(0).expect_text("consistent, stalled");
    site.run(["list"]).expect_status(0).expect_text("consistent").expect_text("mine").expect_text("+00:00");
    site.run(["show", "guestbook"]).expect_status(0).expect_text("locked:").expect_text("instant");
    site.run(["check"]).expect_status(0).expect_text("guestbook: whole: 1 backup in");
    site.run(["prune", "--dry-run"]).expect_status(0).expect_text("kept").expect_text("1 kept, 0 would go");
    let to = site.root().join("restored");
    site.run(["restore", "test/guestbook", "--to", to.to_str().expect("UTF-8")])
        .expect_status(0)
        .expect_text("restored guestbook");
    assert_eq!(rows_without_file(&below(&to, &site.app())), Vec::<String>::new());
    assert_eq!(fs::read(below(&to, &site.uploads()).join("first.bin")).expect("restored"), b"first");
    site.run(["thaw"]).expect_status(0).expect_text("nothing was left");
    assert_eq!(site.leftovers(), Vec::<std::path::PathBuf>::new());
    let history = fs::read_dir(site.repository().with_file_name("history")).expect("history").count();
    assert_eq!(history, 1);
}

#[test]
fn every_command_gives_one_object_with_json() {
    let site = site();
    let plan = site.run(["plan", "--json"]).json();
    has_fields(&plan["applications"][0], &["application", "holds", "pins", "predicted_stall", "facts"]);

    let ran = site.run(["backup", "--json"]);
    ran.expect_status(0);
    let backup = &ran.json()["applications"][0];
    let expected = [
        "application",
        "backup",
        "cut",
        "verdict",
        "stall_ms",
        "files",
        "bytes",
        "bytes_added",
        "duration_s",
        "problems",
    ];
    has_fields(backup, &expected);
    assert!(backup["stall_ms"]["total"].as_f64().expect("milliseconds") > 0.0, "{backup}");
    assert_eq!((&backup["verdict"], &backup["problems"]), (&json!("consistent"), &json!([])));
    for line in ran.err().lines() {
        let progress: Value = serde_json::from_str(line).expect("standard error is JSON lines");
        has_fields(&progress, &["progress", "stage", "bytes"]);
    }

    let list = site.run(["list", "--json"]).json();
    let listed = &list["applications"][0]["backups"][0];
    has_fields(
        listed,
        &["backup", "time", "received", "verdict", "stall_ms", "files", "bytes", "bytes_added"],
    );
    assert_eq!(listed["backup"], backup["backup"]);
    let id = listed["backup"].as_str().expect("an id");
    let show = site.run(["show", "guestbook", &id[..8], "--json"]).json();
    assert_eq!((&show["id"], &show["cut_record"]["cut"]), (&json!(id), &backup["cut"]));
    let check = site.run(["check", "--read-data", "--json"]).json();
    assert_eq!((&check["applications"][0]["good"], &check["key_confirmed"]), (&json!(true), &json!(false)));
    let prune = site.run(["prune", "--json"]).json();
    assert_eq!(prune["applications"][0]["remove"], json!([]));
    assert!(prune["applications"][0]["keep"][0]["reasons"][0].is_string(), "{prune}");
    let to = site.root().join("restored");
    let planned =
        site.run(["restore", "guestbook", "--to", to.to_str().expect("UTF-8"), "--dry-run", "--json"]);
    assert_eq!(planned.json()["restore"], "planned");
    assert!(!to.exists(), "a dry run writes nothing");
    let restored = site.run(["restore", "guestbook", "--to", to.to_str().expect("UTF-8"), "--json"]).json();
    assert_eq!((&restored["restore"], &restored["detail"]["problems"]), (&json!("done"), &json!([])));
    assert_eq!(site.run(["thaw", "--json"]).json(), json!({ "undone": [], "left": [] }));
}

#[test]
fn a_missing_source_is_incomplete_and_named_with_its_line() {
    let site = site();
    let gone = site.root().join("gone");
    let line = fs::read_to_string(site.config()).expect("the inventory").lines().count() + 2;
    let text = format!(
        "{}[[application.directory]]\npath = \"{}\"\n",
        fs::read_to_string(site.config()).expect("the inventory"),
        gone.display()
    );
    write_private(&site.config(), text.as_bytes());
    let plan = site.run(["plan"]);
    plan.expect_status(2).expect_text(&format!("{}:{line}:", site.config().display()));
    let ran = site.run(["backup", "--json"]);
    ran.expect_status(3).expect_text(&gone.display().to_string());
    assert_eq!(ran.json()["applications"][0]["verdict"], "incomplete");
    assert_eq!(site.backups().len(), 1, "what is there is stored");

    fs::rename(site.app(), site.root().join("elsewhere")).expect("moved away");
    let nothing = site.run(["backup"]);
    nothing.expect_status(1).expect_text("no source of guestbook");
}

#[test]
fn each_failure_has_its_status() {
    let site = site();
    site.run(["backup", "nobody"]).expect_status(2).expect_text("there are: guestbook");
    site.run(["show", "guestbook"]).expect_status(1).expect_text("there is no backup yet");

    let lock = site.partition().join("state/locks/test%guestbook.lock");
    fs::create_dir_all(lock.parent().expect("a directory")).expect("a directory");
    let holder = std::process::id().to_string();
    fs::write(&lock, &holder).expect("a lock file");
    let held = fs::File::open(&lock).expect("the lock file");
    flock(&held, FlockOperation::LockExclusive).expect("locked");
    site.run(["backup"]).expect_status(11).expect_text("another run").expect_text(&holder);
    // Not by closing: what tests beside this one are just starting has copies of it.
    flock(&held, FlockOperation::Unlock).expect("unlocked");
    site.run(["backup"]).expect_status(0);

    write_private(&site.password_file(), b"something else");
    for arguments in [&["backup"][..], &["list"], &["check"], &["show", "guestbook"], &["prune"]] {
        let ran = site.run(arguments);
        ran.expect_status(12);
        assert!(!ran.out().contains("something else") && !ran.err().contains("something else"));
    }
    write_private(&site.password_file(), common::PASSWORD.as_bytes());
    fs::rename(site.repository(), site.root().join("away")).expect("moved away");
    site.run(["backup", "--json"]).expect_status(10).expect_text("stillpoint init");
    site.run(["list"]).expect_status(10);
}

#[test]
fn a_restore_in_place_asks_or_is_told() {
    let site = site();
    site.run(["backup"]).expect_status(0);
    fs::write(site.uploads().join("first.bin"), "spoilt").expect("spoilt");
    fs::write(site.uploads().join("later.bin"), "later").expect("a later file");
    site.run(["restore", "guestbook", "--in-place"]).expect_status(2).expect_text("--yes");
    assert_eq!(fs::read(site.uploads().join("first.bin")).expect("a file"), b"spoilt");
    site.run(["restore", "guestbook", "--in-place", "--dry-run"]).expect_status(0);
    site.run(["restore", "guestbook", "--in-place", "--yes"]).expect_status(0);
    assert_eq!(fs::read(site.uploads().join("first.bin")).expect("a file"), b"first");
    assert!(!site.uploads().join("later.bin").exists(), "it was not in the backup");
    assert_eq!(rows_without_file(&site.app()), Vec::<String>::new());
    assert_eq!(site.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_restore_finds_the_backup_by_time() {
    let site = site();
    site.run(["backup"]).expect_status(0);
    let to = |name: &str| site.root().join(name).to_str().expect("UTF-8").to_owned();
    site.run(["restore", "guestbook", "--at", "2020-01-01T00:00:00Z", "--to", &to("a")])
        .expect_status(1)
        .expect_text("no backup of 2020-01-01T00:00:00+00:00 or before");
    site.run(["restore", "guestbook", "--at", "tomorrow", "--to", &to("a")]).expect_status(2);
    site.run(["restore", "guestbook", "--at", "2100-01-01T00:00:00Z", "--to", &to("b")]).expect_status(0);
    assert!(Path::new(&to("b")).exists() && !Path::new(&to("a")).exists());
}

#[test]
fn an_interrupted_backup_stops_cleanly_and_holds_nobody() {
    let site = site();
    for number in 0..300 {
        fs::write(site.uploads().join(format!("{number}.bin")), vec![7; 20_000]).expect("an upload");
    }
    let mut command = site.command(["backup", "--json"]);
    let mut run =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    // The first progress line shows that it is at work.
    let mut byte = [0];
    run.stderr.as_mut().expect("a pipe").read_exact(&mut byte).expect("progress");
    let pid = rustix::process::Pid::from_raw(i32::try_from(run.id()).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    let mut rest = String::new();
    run.stderr.take().expect("a pipe").read_to_string(&mut rest).expect("text");
    let output = run.wait_with_output().expect("it ends");
    let code = output.status.code();
    // It may have been past its last safe point: then it is simply done.
    assert!(matches!(code, Some(0 | 1)), "{:?} {rest}", output.status);
    if code == Some(1) {
        assert!(String::from_utf8_lossy(&output.stdout).contains("interrupted"), "{rest}");
    }
    assert_eq!(site.leftovers(), Vec::<std::path::PathBuf>::new());
    assert_eq!(site.run(["thaw", "--json"]).json(), json!({ "undone": [], "left": [] }));
    site.run(["backup"]).expect_status(0);
}

#[test]
fn a_long_storing_step_ends_early() {
    let site = Site::new();
    make_guestbook(&site.database());
    // Storing takes five seconds on any machine, so there is an end to be early for.
    site.init(&format!("read_limit = \"20MiB/s\"\n{}", site.sources()));
    // Such that nothing is stored twice.
    let mut state = 1_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()
    })
    .take(12 << 20)
    .flatten()
    .collect();
    fs::write(site.uploads().join("large.bin"), &bytes).expect("an upload");
    let mut command = site.command(["backup", "--json"]);
    let mut run =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let pid = rustix::process::Pid::from_child(&run);
    let (mut asked, mut done) = (false, Value::Null);
    for line in BufReader::new(run.stderr.take().expect("a pipe")).lines() {
        let Ok(event) = serde_json::from_str::<Value>(&line.expect("text")) else { continue };
        let is_storing = event["stage"].as_str().is_some_and(|stage| stage.starts_with("storing"));
        let has_stored = event["bytes"].as_u64() > Some(1 << 20);
        if is_storing && event["progress"] == "advance" && has_stored && !asked {
            asked = true;
            rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it lives");
        }
        if is_storing && event["progress"] == "end" && has_stored {
            done = event;
            break;
        }
    }
    let output = run.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("interrupted"), "{text}");
    assert!(done["bytes"].as_u64() < done["total_bytes"].as_u64(), "it went on to the end: {done}");
    assert_eq!(site.backups(), Vec::<String>::new());
    assert_eq!(site.leftovers(), Vec::<std::path::PathBuf>::new());
}
