//! What was found out about a server before anything is held.
//!
//! Crash story: plain values, no effects.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{RootRole, ServerVersion};
use crate::{
    id::SourceId,
    pathtext,
    plan::{ProcessFacts, Refusal},
    size::Bytes,
    undo::ProcessRef,
};

/// What was found out about one server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerFacts {
    /// The source.
    pub source: SourceId,
    /// Its version, if it answered.
    pub version: Option<ServerVersion>,
    /// `@@server_id`.
    pub server_id: u32,
    /// The process, if it runs on this machine.
    pub served_by: Option<WhoServes>,
    /// Its directories, the data directory first; empty if it runs elsewhere.
    pub roots: Vec<RootFacts>,
    /// Storage engines of user tables.
    pub engines: Vec<EngineUse>,
    /// Its binary log.
    pub binlog: Option<Binlog>,
    /// Sources that it replicates from.
    pub replicas: Vec<Replica>,
    /// `innodb_flush_log_at_trx_commit`.
    pub flush_log_at_commit: u8,
    /// `innodb_doublewrite` is on.
    pub doublewrite: bool,
    /// Privileges that are missing, with the statement that gives them.
    pub missing_privileges: Vec<Privilege>,
    /// mariadb-backup of a fitting version can be run here.
    pub can_run_backup_tool: bool,
    /// Global variables that a copy needs to open.
    pub settings: BTreeMap<String, String>,
    /// Sum of the files to be stored.
    pub bytes: Bytes,
    /// How many files that is.
    pub files: u64,
    /// Extents of these files where `FIEMAP` tells them, for the predicted stall.
    pub extents: Option<u64>,
    /// Symbolic links and `.isl` files of it that lead nowhere: no copy of its files is whole with them.
    #[serde(with = "pathtext::list")]
    pub broken_links: Vec<PathBuf>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// The same about its files, if they are stored: external tablespaces, leftovers, logs that are left out.
    pub file_notes: Vec<String>,
    /// Why it cannot be backed up at all, with the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// The process of a server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhoServes {
    /// The process.
    pub process: ProcessRef,
    /// How it can be held.
    pub hold: ProcessFacts,
}

/// One directory of a server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RootFacts {
    /// What it is for.
    pub role: RootRole,
    /// Real absolute path.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
    /// What is left out, relative to it: logs that the log archive keeps, sockets, temporary tablespaces.
    pub exclude: Vec<String>,
    /// Filesystem type, as in [`crate::plan::DirectoryFacts`].
    pub filesystem: String,
    /// Mount points below it.
    #[serde(skip)]
    pub nested_mounts: Vec<PathBuf>,
    /// The volume that it lies on, if that can make snapshots or could if something were mended.
    pub volume: Option<VolumeFacts>,
    /// `FICLONE` works from here into `staging`.
    pub reflink: bool,
    /// Where clones can be put.
    #[serde(with = "pathtext::option")]
    pub staging: Option<PathBuf>,
}

/// A volume that can make an atomic snapshot of all it holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "volume")]
pub enum Volume {
    /// A btrfs subvolume.
    Btrfs {
        /// Its real path.
        #[serde(with = "pathtext")]
        subvolume: PathBuf,
    },
    /// A logical volume.
    Lvm {
        /// Volume group.
        group: String,
        /// Its name in the group.
        name: String,
        /// It lies in a thin pool of this name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pool: Option<String>,
        /// Where it is mounted.
        #[serde(with = "pathtext")]
        mounted: PathBuf,
        /// What is on it: `xfs`, `ext4`.
        filesystem: String,
    },
    /// A ZFS dataset.
    Zfs {
        /// Its name.
        dataset: String,
        /// Where it is mounted.
        #[serde(with = "pathtext")]
        mounted: PathBuf,
    },
}

/// What a volume can do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeFacts {
    /// The volume.
    pub volume: Volume,
    /// How large a snapshot is to be made: classic LVM only; planned from the measured write rate.
    pub size: Option<Bytes>,
    /// What is free for it: extents of the volume group, or of the thin pool's data.
    pub free: Option<Bytes>,
    /// Why no snapshot can be made of it, with the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// A storage engine that tables use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineUse {
    /// Its name, such as `InnoDB`, `Aria`, `MyISAM`, `ROCKSDB`.
    pub name: String,
    /// How many tables of users use it.
    pub tables: u64,
    /// Its tables belong to transactions.
    pub transactional: bool,
}

/// How a server writes its binary log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binlog {
    /// `log_bin_basename`.
    #[serde(with = "pathtext")]
    pub basename: PathBuf,
    /// `sync_binlog`.
    pub sync: u64,
    /// `binlog_format`.
    pub format: String,
}

/// A source that a server replicates from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replica {
    /// Connection or channel name; empty for the default one.
    pub channel: String,
    /// The source's host and port.
    pub source: String,
    /// Its applier runs.
    pub applies: bool,
    /// Its applier works in parallel and may commit out of order (MDEV-36025: copies made from an optimistic
    /// parallel replica may not open).
    pub out_of_order: bool,
}

/// A privilege that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Privilege {
    /// Its name.
    pub name: String,
    /// What it is needed for.
    pub for_what: String,
    /// The statement that gives it.
    pub grant: String,
}
