//! The names of the log archive's files.
//!
//! Crash story: pure but for [`list`] and [`read_json`], which only read.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use model::id::SourceId;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use super::{FILE_MODE, LogsError};

pub(super) const LOCK: &str = "lock";
pub(super) const SOURCE: &str = "source.json";
pub(super) const STATUS: &str = "status.json";
pub(super) const EPOCH: &str = "epoch.json";
pub(super) const SEGMENT: &str = "seg";
pub(super) const SIDECAR: &str = "json";
pub(super) const HEAD: &str = "head";
pub(super) const OPEN: &str = "open";
pub(super) const STORED: &str = "stored";

/// The directory of a source within `logs/`: the engine, a hyphen, and the beginning of the SHA-256 of the source's id.
#[must_use]
pub fn source_dir_name(source: &SourceId) -> String {
    let engine = source.as_str().split(':').next().unwrap_or_default();
    let digest = hex::encode(Sha256::digest(source.as_str().as_bytes()));
    format!("{engine}-{}", &digest[..16])
}

pub(crate) fn file(dir: &Path, number: u64, kind: &str) -> PathBuf {
    dir.join(format!("{number:08}.{kind}"))
}

/// The numbers of the files of one kind in an epoch's directory, in order.
pub(super) fn numbers(names: &[String], kind: &str) -> Vec<u64> {
    let number = |name: &String| {
        let (digits, end) = name.split_once('.')?;
        (end == kind && digits.len() >= 8).then(|| digits.parse().ok()).flatten()
    };
    let mut found: Vec<u64> = names.iter().filter_map(number).collect();
    found.sort_unstable();
    found
}

/// The names in a directory; none if there is no such directory.
pub(super) fn list(dir: &Path) -> Result<Vec<String>, LogsError> {
    let listed = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let entries = listed.map_err(LogsError::io("listed", dir))?;
    let mut names: Vec<String> =
        entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Reads a file of ours; nothing if there is none.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LogsError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(LogsError::io("read", path))?,
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| LogsError::damaged(path, format!("is not understood: {error}")))
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), LogsError> {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|error| LogsError::damaged(path, format!("has no form: {error}")))?;
    bytes.push(b'\n');
    os::durable::replace(path, &bytes, FILE_MODE).map_err(LogsError::io("written", path))
}
