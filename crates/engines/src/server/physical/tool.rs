//! Running mariadb-backup, and what it leaves.
//!
//! Crash story: it is journalled before it begins, so the watchdog ends it with us; its locks end with its session.
//! What it wrote lies in a staging directory, which is journalled too.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{
    plan::ServerPlan,
    port::{Failure, FailureKind, Journal},
    server::{BinlogPosition, RootRole},
};
use os::command::Outcome;

use super::super::dump::tool::{option_file, quoted, run};

/// Its name, and the one that it had before.
const PROGRAMS: [&str; 2] = ["mariadb-backup", "mariabackup"];

/// The directory of the copy in its staging.
pub(super) fn copy_in(staging: &Path) -> PathBuf {
    staging.join("copy")
}

/// Takes a copy of the running server.
///
/// # Errors
/// What the program says.
pub(super) fn backup(journal: &Arc<dyn Journal>, plan: &ServerPlan, staging: &Path) -> Result<(), Failure> {
    let options = option_file(&plan.access, staging, &places(plan))?;
    let copy = copy_in(staging);
    let ended = run(journal, &PROGRAMS, |command| {
        command.arg(with("--defaults-file=", &options)).arg("--backup").arg(with("--target-dir=", &copy))
    })?;
    judge(&ended, plan, "copy the server")
}

/// Applies the copy's redo log, so that its files are whole.
///
/// # Errors
/// What the program says.
pub(super) fn prepare(journal: &Arc<dyn Journal>, plan: &ServerPlan, staging: &Path) -> Result<(), Failure> {
    let copy = copy_in(staging);
    let ended = run(journal, &PROGRAMS, |command| {
        command.arg("--no-defaults").arg("--prepare").arg(with("--target-dir=", &copy))
    })?;
    judge(&ended, plan, "prepare the copy")
}

/// Where the server's files are, as it would read it from its own option file.
fn places(plan: &ServerPlan) -> String {
    let mut text = String::from("[mariadb-backup]\n");
    for root in &plan.roots {
        let name = match root.role {
            RootRole::Data => "datadir",
            RootRole::SystemTablespace => "innodb_data_home_dir",
            RootRole::Redo => "innodb_log_group_home_dir",
            RootRole::Undo => "innodb_undo_directory",
            RootRole::AriaLog => "aria_log_dir_path",
            RootRole::Rocks | RootRole::External | RootRole::Keyring => continue,
        };
        text.push_str(&format!("{name}={}\n", quoted(&root.tree.root.to_string_lossy())));
    }
    text
}

fn with(option: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(option);
    text.push(path);
    text
}

fn judge(ended: &Outcome, plan: &ServerPlan, what: &str) -> Result<(), Failure> {
    if ended.is_success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&ended.stderr);
    let said =
        text.lines().rev().find(|line| line.to_ascii_lowercase().contains("error")).unwrap_or_default();
    let kind = if text.contains("No space left") { FailureKind::NoSpace } else { FailureKind::Other };
    let what = format!(
        "mariadb-backup cannot {what} at {}: {} {}",
        plan.access.address,
        ended.in_short(),
        said.trim()
    );
    Err(Failure::new(
        kind,
        what,
        "see that its version is that of the server, and that the partition has space",
    ))
}

/// Where the copy stands in the binary log, as the program wrote it down; nothing if the server writes none.
///
/// # Errors
/// If what it wrote cannot be read.
pub(super) fn stands_at(staging: &Path) -> Result<Option<BinlogPosition>, Failure> {
    let copy = copy_in(staging);
    // The name since 11.1, and before.
    for name in ["mariadb_backup_binlog_info", "xtrabackup_binlog_info"] {
        match fs::read_to_string(copy.join(name)) {
            Ok(text) => return parse(&text).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let what = format!("{} cannot be read", copy.join(name).display());
                return Err(Failure::new(FailureKind::Other, what, "").because(error));
            }
        }
    }
    Ok(None)
}

/// File, offset and GTIDs, between tabulators.
fn parse(text: &str) -> Result<BinlogPosition, Failure> {
    let mut words = text.split_whitespace();
    let place = words.next().zip(words.next().and_then(|offset| offset.parse().ok()));
    place.map(|(file, offset)| BinlogPosition { file: file.to_owned(), offset }).ok_or_else(|| {
        let what = format!("mariadb-backup wrote {text:?} where a place in the binary log was expected");
        Failure::new(FailureKind::Other, what, "see that its version is that of the server")
    })
}

/// For how long it held its own locks, in seconds as it says.
pub(super) fn lock_time(staging: &Path) -> Option<String> {
    let copy = copy_in(staging);
    let names = ["mariadb_backup_info", "xtrabackup_info"];
    let text = names.iter().find_map(|name| fs::read_to_string(copy.join(name)).ok())?;
    let line = text.lines().find_map(|line| line.strip_prefix("lock_time = "))?;
    Some(line.trim().to_owned())
}

/// Whether a file of the copy is the program's own and not the server's.
pub(super) fn is_its_own(name: &str) -> bool {
    name.starts_with("xtrabackup_") || name.starts_with("mariadb_backup_") || name == "backup-my.cnf"
}

#[cfg(test)]
mod tests {
    use super::{is_its_own, parse};

    #[test]
    fn the_place_is_read() {
        let place = parse("binlog.000001\t1930\t0-1-9\n").unwrap();
        assert_eq!((place.file.as_str(), place.offset), ("binlog.000001", 1930));
        assert!(parse("binlog.000001").is_err() && parse("").is_err());
        assert!(is_its_own("xtrabackup_info") && !is_its_own("ibdata1"));
    }
}
