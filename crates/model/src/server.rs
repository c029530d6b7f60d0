//! Database servers: where they are, what was found out about them, and what is recorded of a cut.
//!
//! Crash story: plain values, no effects. None of them holds a secret: they name the files that do.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{id::SourceId, pathtext};

mod facts;

pub use facts::{
    Binlog, EngineUse, Privilege, Replica, RootFacts, ServerFacts, Volume, VolumeFacts, WhoServes,
};

/// Whose server it is. They share a protocol and little else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavor {
    /// MariaDB.
    MariaDb,
    /// MySQL, or Percona Server.
    MySql,
}

impl Flavor {
    /// As the inventory writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadb",
            Self::MySql => "mysql",
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerAddress {
    /// A Unix socket.
    Socket(#[serde(with = "pathtext")] PathBuf),
    /// TCP.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => f.write_str(&pathtext::show(path)),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// How a server is reached and as whom: everything that a connection needs but the secrets themselves, so that
/// it may stand in a journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServerAccess {
    /// What the inventory says it is.
    pub flavor: Flavor,
    /// Where it listens.
    pub address: ServerAddress,
    /// The account; from the option file, or else the name of the user who runs this, if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file whose first line is the password. Refused if others can read it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "pathtext::option")]
    pub password_file: Option<PathBuf>,
    /// An option file with a `[client]` section, such as `/etc/mysql/debian.cnf` or `~/.my.cnf`. Refused if it holds
    /// a password and others can read it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "pathtext::option")]
    pub option_file: Option<PathBuf>,
    /// TLS is asked for and the server's certificate is verified against these authorities. Over TCP to another
    /// host than this one, TLS is required.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "pathtext::option")]
    pub tls_ca: Option<PathBuf>,
}

/// Version as the server says it, such as `10.11.19-MariaDB-0+deb12u1-log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerVersion {
    /// Whose.
    pub flavor: Flavor,
    /// Major, minor, patch.
    pub number: (u32, u32, u32),
    /// As the server says it.
    pub text: String,
}

/// A place in a binary log: all of its bytes before `offset`, and all files before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BinlogPosition {
    /// Name of the file without its directory, such as `binlog.000042`.
    pub file: String,
    /// Bytes.
    pub offset: u64,
}

impl fmt::Display for BinlogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

/// A set of global transaction ids, in the server's own writing: `0-1-5,1-2-7`, or MySQL's `uuid:1-5`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gtids(pub String);

impl fmt::Display for Gtids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a server stood at the cut, read under the lock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerPosition {
    /// Its own binary log; nothing if it writes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binlog: Option<BinlogPosition>,
    /// MariaDB: `BINLOG_GTID_POS` of that place, equal to `@@gtid_binlog_pos`; MySQL: `@@gtid_executed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gtid: Option<Gtids>,
    /// MariaDB: `@@gtid_binlog_state`, which a server that goes on from here needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gtid_binlog_state: Option<Gtids>,
    /// What a replica has applied: MariaDB's `@@gtid_slave_pos`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gtid_applied: Option<Gtids>,
    /// For each source that it replicates from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<Applied>,
}

/// How far a replica has applied the log of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Connection or channel name; empty for the default one.
    pub channel: String,
    /// The source's host and port.
    pub source: String,
    /// `Relay_Master_Log_File` and `Exec_Master_Log_Pos`: complete only if `is_complete`.
    pub position: BinlogPosition,
    /// Without a parallel applier that commits out of order this place is the whole truth; with one only the GTIDs are.
    pub is_complete: bool,
}

/// What a directory of a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootRole {
    /// `datadir`.
    Data,
    /// `innodb_data_home_dir`.
    SystemTablespace,
    /// `innodb_log_group_home_dir`.
    Redo,
    /// `innodb_undo_directory`.
    Undo,
    /// `aria_log_dir_path`.
    AriaLog,
    /// `rocksdb_datadir`, and `rocksdb_wal_dir`.
    Rocks,
    /// Where a `DATA DIRECTORY`, an `.isl` file or a symbolic link leads.
    External,
    /// Keys of encrypted tables.
    Keyring,
}

/// A directory (or, for keys, a file) that belongs to a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRoot {
    /// What it is for.
    pub role: RootRole,
    /// Real absolute path.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
}

/// How a server is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerForm {
    /// Its files as a snapshot or clone holds them: opening them is a crash recovery.
    Files,
    /// Files prepared by mariadb-backup, and the binary logs from there to the cut, to be replayed.
    Physical,
    /// SQL dumps of databases.
    Dump,
}

/// What is recorded of a server in a cut, for restores, checks and the log archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// The source.
    pub source: SourceId,
    /// Its version.
    pub version: ServerVersion,
    /// `@@server_id`.
    pub server_id: u32,
    /// How it is stored.
    pub form: ServerForm,
    /// Where it stood.
    pub position: ServerPosition,
    /// Global variables without which a copy does not open or means something else, by name.
    pub settings: BTreeMap<String, String>,
    /// Its directories, the data directory first. Empty for a dump.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<ServerRoot>,
    /// Storage engines of its tables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<String>,
    /// The databases that are dumped; empty for a whole server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// Where in the backup dumps, or binary logs to be replayed, stand.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "pathtext::option")]
    pub beside: Option<PathBuf>,
    /// [`ServerForm::Physical`]: where the files stand in the log; to be replayed from here up to `position`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_from: Option<BinlogPosition>,
}
