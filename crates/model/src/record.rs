//! Records: what is known of a cut at its thaw ([`CutRecord`]), and of a backup when it is published
//! ([`BackupRecord`]). Written forms: `docs/format/records.md`.
//!
//! Crash story: plain values, no effects. The vault writes a cut record inside the tree and the backup
//! record with the snapshot, last of all.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    cut::Stalls,
    id::{AppName, BackupId, CutId, Relpath, ServerName, VmName},
    pathtext,
    problem::Problem,
    size::Bytes,
    verdict::{Evidence, Verdict},
};

/// Version of both record formats.
pub const RECORD_VERSION: u32 = 1;

/// What is known of a cut at its thaw. Travels inside the backup at
/// `/var/lib/stillpoint/cuts/{cut}.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutRecord {
    /// Format version, [`RECORD_VERSION`].
    pub version: u32,
    /// The cut.
    pub cut: CutId,
    /// Short name of the application.
    pub application: AppName,
    /// Identity of the application.
    pub relpath: Relpath,
    /// Where it ran.
    pub server: ServerName,
    /// The VM it ran in.
    pub vm: VmName,
    /// Before the first hold was asked for.
    pub frozen_at: Timestamp,
    /// The instant of the cut: all holds taken, the last pin just made, nothing released yet.
    pub cut_at: Timestamp,
    /// After the last hold was released.
    pub thawed_at: Timestamp,
    /// How often the cut was tried before it held.
    pub attempts: u32,
    /// What it cost the writers.
    pub stalls: Stalls,
    /// Why each source is known to have stood still.
    pub evidence: Vec<Evidence>,
    /// How each source was pinned, for people.
    pub pins: Vec<PinNote>,
    /// What was known to be wrong at the thaw.
    pub problems: Vec<Problem>,
    /// The database servers among the sources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<crate::server::ServerRecord>,
}

impl CutRecord {
    /// Where the record of this cut stands inside the backup.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/var/lib/stillpoint/cuts/{}.json", self.cut))
    }
}

/// How a source was pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinNote {
    /// The source.
    pub source: crate::id::SourceId,
    /// Method, such as `two-pass-copy`.
    pub method: String,
    /// The root directory or database file, as given.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
}

/// What is known when a backup is published; kept in the snapshot itself, so that listing needs no tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// Format version, [`RECORD_VERSION`].
    pub version: u32,
    /// The cut that it holds.
    pub cut: CutId,
    /// Short name of the application at that time.
    pub application: AppName,
    /// How good it is.
    pub verdict: Verdict,
    /// Why it looks wrong beside the backups before it (promise 6), judged once, when it is made: the
    /// backups that it was compared with may be gone later. From [`crate::retention::looks_wrong`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks_wrong: Option<String>,
    /// A label given by a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What it cost the writers.
    pub stalls: Stalls,
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// What the repository grew by.
    pub bytes_added: Bytes,
    /// From the start of the run until the record was written, in seconds.
    pub duration_s: f64,
    /// What is missing, weaker or worth knowing; long lists are cut after the first hundred.
    pub problems: Vec<Problem>,
    /// How many problems there were in all.
    pub problem_count: u64,
    /// What was pinned, for restores.
    pub pins: Vec<PinNote>,
}

/// A backup as the repository lists it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredBackup {
    /// Its id.
    pub id: BackupId,
    /// The instant of its cut.
    pub time: Timestamp,
    /// When the repository received it: modification time of the snapshot file, never the writer's claim.
    pub received: Timestamp,
    /// Its record, or nothing for a snapshot that another program made or that is damaged.
    pub record: Option<BackupRecord>,
    /// Why it cannot be read, if it cannot. Then it has no record, and nobody knows who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
    /// Whether it was accepted by a person although it looks wrong (promise 6).
    pub accepted: bool,
}
