//! The command line without a backup: usage, `init`, `key`, and what the inventory is refused for.

mod common;

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Ran, write_private};

fn stillpoint(config: &Path, arguments: &[&str]) -> Ran {
    typed(config, arguments, "")
}

/// Runs the program with this standard input.
fn typed(config: &Path, arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .env_remove("STILLPOINT_CONFIG")
        .arg("--config")
        .arg(config)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that does not read its input may have ended already.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    Ran(child.wait_with_output().expect("the program ends"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[test]
fn usage_is_status_2_and_says_what_is_wrong() {
    let config = Path::new("/nonexistent/stillpoint.toml");
    stillpoint(config, &["restore", "hydro"]).expect_status(2).expect_text("--to");
    stillpoint(config, &["nonsense"]).expect_status(2);
    let json = stillpoint(config, &["nonsense", "--json"]);
    json.expect_status(2);
    assert_eq!(json.json()["error"]["exit"], 2);
    let missing = stillpoint(config, &["backup", "--json"]);
    missing.expect_status(2);
    let error = &missing.json()["error"];
    assert!(error["what"].as_str().expect("a text").contains("/nonexistent/stillpoint.toml"), "{error}");
    assert!(error["remedy"].as_str().expect("a text").contains("stillpoint init"), "{error}");
}

#[test]
fn an_empty_variable_names_no_inventory() {
    let named = |file: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillpoint"));
        Ran(command.env("STILLPOINT_CONFIG", file).args(arguments).output().expect("the program starts"))
    };
    named("", &["--version"]).expect_status(0);
    let dir = set_up();
    let config = dir.path().join("stillpoint.toml");
    let config = config.to_str().expect("UTF-8");
    named("", &["--config", config, "list"]).expect_status(0);
    named(config, &["list"]).expect_status(0).expect_text("no backups yet");
    named("/nonexistent/there.toml", &["list"]).expect_status(2).expect_text("/nonexistent/there.toml");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let dir = set_up();
    let config = dir.path().join("stillpoint.toml");
    for arguments in
        [&["list"][..], &["list", "--json"], &["list", "nosuch", "--json"], &["man"], &["--help"]]
    {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("the device is there");
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillpoint"));
        let ran = Ran(command
            .arg("--config")
            .arg(&config)
            .args(arguments)
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .and_then(Child::wait_with_output)
            .expect("the program runs"));
        let is_usage = arguments.contains(&"nosuch");
        ran.expect_status(if is_usage { 2 } else { 1 });
        ran.expect_text(if is_usage { "no application" } else { "standard output cannot be written" });
    }
}

#[test]
fn an_inventory_that_is_no_file_is_refused_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("a FIFO is made");
    stillpoint(&fifo, &["list"]).expect_status(2).expect_text("is not a regular file");
    stillpoint(dir.path(), &["list"]).expect_status(2).expect_text("is not a regular file");
}

/// Whether a process has a handler for TERM.
fn catches_term(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
    u64::from_str_radix(caught.trim(), 16).expect("a number") >> 14 & 1 == 1
}

#[test]
fn the_first_signal_ends_a_command_that_has_not_begun() {
    let dir = set_up();
    let mut child = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .arg("--config")
        .arg(dir.path().join("stillpoint.toml"))
        .args(["key", "confirm"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // It waits for a line that never comes.
    let until = Instant::now() + Duration::from_secs(20);
    while !catches_term(child.id()) {
        assert!(Instant::now() < until, "it does not listen to signals");
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(100));
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("it lives");
    let mut ended = None;
    while Instant::now() < until && ended.is_none() {
        ended = child.try_wait().expect("it is our child");
        thread::sleep(Duration::from_millis(20));
    }
    if ended.is_none() {
        child.kill().expect("it lives");
    }
    let status = child.wait().expect("it is our child");
    assert_eq!((ended.is_some(), status.code()), (true, Some(128 + 15)), "it goes on waiting");
}

#[test]
fn help_manual_and_completions_name_every_command() {
    let config = Path::new("/nonexistent");
    let (help, man) = (stillpoint(config, &["--help"]), stillpoint(config, &["man"]));
    let bash = stillpoint(config, &["completions", "bash"]);
    for ran in [&help, &man, &bash] {
        ran.expect_status(0);
        for command in
            ["demo", "init", "plan", "backup", "list", "show", "restore", "check", "prune", "key", "thaw"]
        {
            assert!(ran.out().to_lowercase().contains(command), "no {command} in {}", ran.out());
        }
    }
    assert!(!help.out().contains("__helper"));
    let words: Vec<String> = help.out().split_whitespace().map(str::to_owned).collect();
    assert!(words.join(" ").contains("12 wrong password"), "{words:?}");
}

#[test]
fn init_makes_what_is_missing_and_overwrites_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, app) = (dir.path().join("etc/stillpoint.toml"), dir.path().join("app"));
    fs::create_dir(&app).expect("a directory");
    let partition = dir.path().join("partition");
    let arguments = [
        "init",
        "--partition",
        partition.to_str().expect("UTF-8"),
        "--app",
        "hydro",
        "--relpath",
        "demo/hydro",
        "--directory",
        app.to_str().expect("UTF-8"),
        "--pid-file",
        "/run/hydro.pid",
    ];
    let first = stillpoint(&config, &arguments);
    first.expect_status(0).expect_text("stillpoint key show").expect_text("stillpoint backup");
    let password = dir.path().join("etc/password");
    assert_eq!(mode(&password), 0o600);
    let key = fs::read_to_string(&password).expect("the key");
    assert!(!first.out().contains(key.trim()) && !first.err().contains(key.trim()), "the key is not shown");
    let text = fs::read_to_string(&config).expect("the inventory");
    assert!(text.contains("# ") && text.contains("pid_file = \"/run/hydro.pid\""), "{text}");
    let repository = partition.join("local/host/demo/hydro/repository");
    assert!(repository.join("config").exists());

    let again = stillpoint(&config, &["init", "--json"]);
    again.expect_status(0);
    assert_eq!(again.json()["made"], serde_json::json!([]));
    assert_eq!(again.json()["applications"], serde_json::json!(["hydro"]));
    assert_eq!(fs::read_to_string(&password).expect("the key"), key);
    assert_eq!(fs::read_to_string(&config).expect("the inventory"), text);
    stillpoint(&config, &arguments).expect_status(2).expect_text("is there already");

    fs::remove_file(&password).expect("removed");
    let lost = stillpoint(&config, &["init"]);
    lost.expect_status(2).expect_text(repository.to_str().expect("UTF-8"));
    assert!(!password.exists(), "a new key would not open what is there");
}

/// A set-up without applications; returns its directory.
fn set_up() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("stillpoint.toml");
    let partition = dir.path().join("partition");
    let app = dir.path().join("app");
    fs::create_dir(&app).expect("a directory");
    stillpoint(
        &config,
        &[
            "init",
            "--partition",
            partition.to_str().expect("UTF-8"),
            "--app",
            "a",
            "--directory",
            app.to_str().expect("UTF-8"),
        ],
    )
    .expect_status(0);
    dir
}

#[test]
fn the_key_is_shown_confirmed_and_changed() {
    let dir = set_up();
    let config = dir.path().join("stillpoint.toml");
    let key = fs::read_to_string(dir.path().join("password")).expect("the key").trim().to_owned();

    stillpoint(&config, &["key", "show"]).expect_status(0).expect_text(&key).expect_text("restic -r");
    let sheet = dir.path().join("sheet");
    let hidden = stillpoint(&config, &["key", "show", "--sheet", sheet.to_str().expect("UTF-8")]);
    hidden.expect_status(0);
    assert!(!hidden.out().contains(&key));
    assert_eq!(mode(&sheet), 0o600);
    assert!(fs::read_to_string(&sheet).expect("the sheet").contains(&key));

    stillpoint(&config, &["check"]).expect_status(0).expect_text("nobody has confirmed");
    typed(&config, &["key", "confirm"], "AAAAA\n").expect_status(2).expect_text("nothing was confirmed");
    let last = key.rsplit('-').next().expect("a group").to_lowercase();
    typed(&config, &["key", "confirm"], &format!("{last}\n")).expect_status(0);
    let checked = stillpoint(&config, &["check", "--json"]);
    checked.expect_status(0);
    assert_eq!(checked.json()["key_confirmed"], true);
    assert!(!checked.err().contains("nobody has confirmed"));

    stillpoint(&config, &["key", "change"]).expect_status(0).expect_text("the new key opens");
    let changed = fs::read_to_string(dir.path().join("password")).expect("the key").trim().to_owned();
    assert_ne!(changed, key);
    assert_eq!(mode(&dir.path().join("password")), 0o600);
    stillpoint(&config, &["list"]).expect_status(0);
    stillpoint(&config, &["check"]).expect_status(0).expect_text("nobody has confirmed");
    write_private(&dir.path().join("password"), key.as_bytes());
    stillpoint(&config, &["list"]).expect_status(12);
    // Whoever kept this sheet would have nothing.
    let worthless = stillpoint(&config, &["key", "show"]);
    worthless.expect_status(12).expect_text("opens no repository").expect_text("does NOT open");
    let json = stillpoint(&config, &["key", "show", "--json"]);
    json.expect_status(12);
    assert_eq!(json.json()["repositories"], serde_json::json!([]));
    assert_eq!(json.json()["not_opened"][0]["why"]["exit"], 12);
}

#[test]
fn what_others_can_read_or_write_is_refused() {
    let dir = set_up();
    let (config, password) = (dir.path().join("stillpoint.toml"), dir.path().join("password"));
    fs::set_permissions(&password, fs::Permissions::from_mode(0o640)).expect("permissions");
    stillpoint(&config, &["list"]).expect_status(2).expect_text("chmod 600");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).expect("permissions");
    stillpoint(&config, &["list"]).expect_status(0);
    fs::set_permissions(&config, fs::Permissions::from_mode(0o666)).expect("permissions");
    stillpoint(&config, &["list"]).expect_status(2).expect_text("can be written by others");
}

#[test]
fn an_error_of_the_inventory_names_file_line_and_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("stillpoint.toml");
    write_private(&config, b"partition = \"/b\"\npassword_file = \"/p\"\npartitoin = \"/c\"\n");
    let ran = stillpoint(&config, &["plan"]);
    ran.expect_status(2).expect_text(&format!("{}:3:", config.display())).expect_text("partitoin");
}
