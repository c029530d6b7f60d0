//! New data directories.
//!
//! `mariadb-install-db` takes seconds, and its data directory is the same each time: one is kept in the build directory
//! for each version and choice of options, and copied.
//!
//! Crash story: a kept data directory is made under another name and renamed when it is whole, so what has its name
//! is whole; who makes the same beside us gets there first or throws his away. What a killed process left under the other
//! name goes with the build directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use super::{Told, process::run};

/// The unprivileged user that servers run as when the test is root.
pub(super) const USER: &str = "mysql";

/// Fills an empty data directory. `root` has no password: the socket lies in a directory of the test.
pub(super) fn install(datadir: &Path, options: &[String]) -> Told<()> {
    let mut chosen: Vec<&str> = vec!["--innodb-log-file-size=32M"];
    chosen.extend(options.iter().map(String::as_str).filter(|option| option.starts_with("--innodb")));
    // A path is of one server: parts of its data lie there.
    let own = chosen.iter().any(|option| option.contains('/'));
    let kept = if own { None } else { kept(&chosen)? };
    let Some(kept) = kept else { return install_into(datadir, &chosen) };
    let copy = ["--archive", "--reflink=auto", "--sparse=always", "--no-target-directory"];
    run(Command::new("cp").args(copy).arg(&kept).arg(datadir))?;
    give(datadir, true)
}

/// A data directory that was made with these options; nothing if this program does not lie in a build directory.
fn kept(options: &[&str]) -> Told<Option<PathBuf>> {
    // One at a time: the others find what it has made.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let Some(target) = program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()) else {
        return Ok(None);
    };
    let version = run(Command::new("mariadbd").arg("--version"))?;
    let all = hex::encode(Sha256::digest(format!("{version}{options:?}{}", is_root())));
    let below = target.join("tmp");
    let kept = below.join(format!("mariadb-{}", &all[..16]));
    if kept.exists() {
        return Ok(Some(kept));
    }
    fs::create_dir_all(&below).map_err(|error| format!("{}: {error}", below.display()))?;
    let made = tempfile::Builder::new().prefix("mariadb-new-").tempdir_in(&below);
    let made = made.map_err(|error| error.to_string())?;
    let data = made.path().join("data");
    fs::create_dir(&data).map_err(|error| error.to_string())?;
    super::process::open_the_way(&data);
    give(&data, false)?;
    install_into(&data, options)?;
    match fs::rename(&data, &kept) {
        Err(error) if !kept.exists() => Err(format!("{}: {error}", kept.display())),
        _ => Ok(Some(kept)),
    }
}

fn install_into(datadir: &Path, options: &[&str]) -> Told<()> {
    // A starting server removes every `#sql*` file in its directory for temporary tables, other servers' too: seen to
    // break installations side by side.
    let tmpdir = tempfile::Builder::new().prefix("sps").tempdir_in("/tmp").map_err(|e| e.to_string())?;
    give(tmpdir.path(), false)?;
    let mut command = Command::new("mariadb-install-db");
    command.arg(format!("--tmpdir={}", tmpdir.path().display()));
    command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    command.arg(format!("--datadir={}", datadir.display())).args(options);
    if is_root() {
        command.arg(format!("--user={USER}"));
    }
    run(&mut command)?;
    // It leaves a file of root's, and tells others of root's password in `mysql_upgrade_info` alone.
    give(datadir, true)
}

/// Gives a path, or all below it, to the user that the server runs as.
pub(super) fn give(path: &Path, all: bool) -> Told<()> {
    if !is_root() {
        return Ok(());
    }
    let mut command = Command::new("chown");
    if all {
        command.arg("-R");
    }
    run(command.arg("-h").arg(format!("{USER}:{USER}")).arg(path)).map(drop)
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
