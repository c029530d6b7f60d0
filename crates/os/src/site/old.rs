//! Removing what was there before a restore, but not the binary logs of a server: no backup holds them, and point-in-time
//! recovery needs them.
//!
//! Crash story: the logs are moved out before the rest is journalled for removal, so a stop in between leaves too
//! much and never too little.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{
    pathtext,
    port::{Failure, Journal},
    port_restore::Swapped,
    problem::Problem,
    undo::Undo,
};

use super::swap::{exists, rename_new};
use crate::staging;

/// How a binary log and a relay log begin: `BINLOG_MAGIC` of the MySQL replication protocol; encrypted ones of
/// MariaDB begin with the same bytes.
const MAGIC: [u8; 4] = [0xfe, b'b', b'i', b'n'];

/// Removes directories that a swap has kept, and says where their binary logs are now.
pub(super) fn remove(kept: &[PathBuf], journal: &Arc<dyn Journal>) -> Swapped {
    let mut swapped = Swapped::default();
    for dir in kept {
        match keep_logs(dir).map_err(|error| failed(dir, &error)).and_then(|logs| {
            swapped.kept.extend(logs);
            drop_tree(dir, journal)
        }) {
            Ok(()) => {}
            Err(what) => {
                swapped.kept.push(dir.clone());
                swapped.problems.push(Problem::note(dir, what));
            }
        }
    }
    swapped
}

fn failed(dir: &Path, error: &io::Error) -> String {
    format!("what was there before is not removed: {} cannot be looked through: {error}", pathtext::show(dir))
}

fn drop_tree(dir: &Path, journal: &Arc<dyn Journal>) -> Result<(), String> {
    let failed =
        |failure: Failure| format!("what was there before could not be removed: {}", failure.in_full());
    let ticket = journal.intend(Undo::RemoveTree { path: dir.to_owned() }, None).map_err(failed)?;
    staging::remove(dir).map_err(|error| failed(error.into()))?;
    journal.done(ticket);
    Ok(())
}

/// Moves the logs of a kept directory into a new one beside it, and returns that.
fn keep_logs(dir: &Path) -> io::Result<Option<PathBuf>> {
    let mut logs = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let kind = path.symlink_metadata()?;
            if kind.is_dir() {
                todo.push(path);
            } else if kind.is_file() && is_log(&path)? {
                logs.push(path);
            }
        }
    }
    let stems: Vec<PathBuf> = logs.iter().map(|log| log.with_extension("")).collect();
    // The list of the files, and the GTIDs at the end of the last one.
    for stem in &stems {
        for extension in ["index", "state"] {
            let path = stem.with_extension(extension);
            if exists(&path) && !logs.contains(&path) {
                logs.push(path);
            }
        }
    }
    if logs.is_empty() {
        return Ok(None);
    }
    let kept = staging::new_name(dir.parent().unwrap_or(Path::new("/")), "logs")?;
    fs::create_dir(&kept)?;
    fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    for log in logs {
        let below = log.strip_prefix(dir.join("old")).or_else(|_| log.strip_prefix(dir)).unwrap_or(&log);
        let to = kept.join(below);
        fs::create_dir_all(to.parent().unwrap_or(&kept))?;
        rename_new(&log, &to)?;
    }
    Ok(Some(kept))
}

/// `NAME.000042` that begins as a binary log does.
fn is_log(path: &Path) -> io::Result<bool> {
    let number = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if number.len() < 6 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(false);
    }
    let mut begins = [0; 4];
    match File::open(path)?.read_exact(&mut begins) {
        Ok(()) => Ok(begins == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
