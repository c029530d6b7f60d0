//! The command line without a backup: usage, `init`, `key`, and what the inventory is refused for.

mod common;

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
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
