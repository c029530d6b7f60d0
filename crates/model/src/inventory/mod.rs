//! What one inventory describes, typed and validated.
//!
//! The text form is fixed in DESIGN.md section 6 and described in `docs/format/inventory.md`.
//!
//! Crash story: plain values, no effects.

mod application;
mod error;
mod origin;
mod parse;
mod raw;
mod server;
mod settings;
mod template;
mod validate;
mod values;

use std::{path::PathBuf, time::Duration};

use globset::Glob;

use crate::{
    id::{AppName, Relpath, ServerName, SourceId, VmName},
    pace::Pace,
    reference::Choice,
    server::ServerAccess,
    size::Bytes,
    undo::{Hook, ProcessRef},
    verdict::Verdict,
};

pub use error::{InventoryError, InventoryErrors};
pub use origin::{Origin, PathRole, missing_paths};
pub use parse::{InventoryText, parse};
pub use template::{TemplateApplication, TemplateChoices, template};
pub use values::{duration, pattern, show_duration};

/// A whole inventory: `stillpoint.toml` and its `applications.d`.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    /// This server.
    pub server: ServerName,
    /// The VM that the applications run in; `host` where there is none.
    pub vm: VmName,
    /// Where backups are kept: DESIGN.md section 5.
    pub partition: PathBuf,
    /// The file that holds the repositories' password.
    pub password_file: PathBuf,
    /// The applications, in the order of the files.
    pub applications: Vec<Application>,
    /// Where in the files each path is named, for messages about paths that do not exist. May be empty.
    pub origins: Vec<Origin>,
}

impl Inventory {
    /// `{partition}/local/{vm}/{relpath}`, under which repository, history and logs of an application lie.
    #[must_use]
    pub fn place(&self, application: &Application) -> PathBuf {
        self.partition.join("local").join(self.vm.as_str()).join(application.relpath.as_str())
    }

    /// `{partition}/state`: journals of runs, locks between runs, staging for pins.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.partition.join("state")
    }
}

/// One application: the unit of backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Application {
    /// Short name.
    pub name: AppName,
    /// Identity.
    pub relpath: Relpath,
    /// For people; may be empty.
    pub description: String,
    /// Its directories.
    pub directories: Vec<Directory>,
    /// Its databases.
    pub databases: Vec<Database>,
    /// Whom to hold while pinning.
    pub process: Option<ProcessSelector>,
    /// For platforms that must be stopped.
    pub hooks: Option<Hooks>,
    /// Settings, the defaults filled in.
    pub settings: Settings,
}

impl Application {
    /// All sources, databases first.
    #[must_use]
    pub fn sources(&self) -> Vec<SourceId> {
        self.databases.iter().map(Database::id).chain(self.directories.iter().map(Directory::id)).collect()
    }
}

/// A directory to back up.
#[derive(Debug, Clone, PartialEq)]
pub struct Directory {
    /// Absolute path.
    pub path: PathBuf,
    /// Patterns relative to `path`; a match and everything below it is left out.
    pub exclude: Vec<Glob>,
}

impl Directory {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> SourceId {
        SourceId::new("directory", crate::pathtext::show(&self.path))
    }
}

/// A database to back up.
#[derive(Debug, Clone, PartialEq)]
pub enum Database {
    /// An SQLite database file.
    Sqlite {
        /// Absolute path.
        path: PathBuf,
        /// How its log is archived.
        archive: Archive,
    },
    /// A MariaDB or MySQL server, or some of its databases.
    Server(Box<ServerDatabase>),
}

/// A server to back up.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerDatabase {
    /// How it is reached.
    pub access: ServerAccess,
    /// The databases of a server that others use too; empty if the application owns the server.
    pub databases: Vec<String>,
    /// How the server is stopped and started, for restores in place.
    pub service: Option<Hooks>,
    /// Queries that keep a lock waiting may be ended (MySQL: `FLUSH TABLES WITH READ LOCK`).
    pub end_blocking_queries: bool,
    /// How its log is archived.
    pub archive: Archive,
}

/// How the log of a database is archived, by `stillpoint log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// A segment is closed when it has this size,
    pub segment: Bytes,
    /// or this age.
    pub rotate: Duration,
    /// How often what came is stored into the repository.
    pub store_every: Duration,
    /// Semi-synchronous: the server is told of each transaction that is on disk here, and waits for that.
    pub acknowledge: bool,
}

impl Default for Archive {
    fn default() -> Self {
        let (rotate, store_every) = (Duration::from_secs(3600), Duration::from_secs(60));
        Self { segment: Bytes(16 << 20), rotate, store_every, acknowledge: false }
    }
}

impl Database {
    /// How its log is archived.
    #[must_use]
    pub fn archive(&self) -> &Archive {
        match self {
            Self::Sqlite { archive, .. } => archive,
            Self::Server(server) => &server.archive,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> SourceId {
        match self {
            Self::Sqlite { path, .. } => SourceId::new("sqlite", crate::pathtext::show(path)),
            Self::Server(server) => server.id(),
        }
    }
}

impl ServerDatabase {
    /// Its id: `mariadb:/run/mysqld/mysqld.sock`, or `mariadb:/run/mysqld/mysqld.sock#hydro,wiki`.
    #[must_use]
    pub fn id(&self) -> SourceId {
        let mut text = self.access.address.to_string();
        if !self.databases.is_empty() {
            text.push('#');
            text.push_str(&self.databases.join(","));
        }
        SourceId::new(self.access.flavor.as_str(), text)
    }
}

/// Whom to hold while pinning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessSelector {
    /// All processes of a systemd unit.
    Unit(String),
    /// The process named in a pid file, and its descendants.
    PidFile(PathBuf),
    /// This very process, without its descendants. Not in any file: for servers that were asked who they are.
    Process(ProcessRef),
}

/// Commands that stop and start a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Stops it.
    pub stop: Hook,
    /// Starts it again; run on every path once `stop` has been begun.
    pub start: Hook,
}

/// How an application is backed up.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// When a backup is due: `hourly`, `nightly`, `weekly` or a cron expression.
    pub schedule: String,
    /// The longest stall allowed.
    pub stall_budget: Duration,
    /// A weaker verdict is exit status 3.
    pub require: Verdict,
    /// How many backups to keep.
    pub keep: Keep,
    /// How far back any second is to be restorable.
    pub point_in_time: Option<Duration>,
    /// Frozen copies of large files of pages are kept, so that the next backup reads only what changed.
    pub changed_extents_only: bool,
    /// All is read again, and proven, when the last time is so long ago.
    pub read_all_every: Duration,
    /// How long what is archived of logs stays on this machine although the repository has it.
    pub local_window: Duration,
    /// How hard the disks are gone at while applications run.
    pub pace: Pace,
}

impl Settings {
    /// How files are to be read.
    #[must_use]
    pub fn reading(&self) -> Choice {
        Choice { keep: self.changed_extents_only, read_all_every: self.read_all_every }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            schedule: "nightly".to_owned(),
            stall_budget: Duration::from_secs(2),
            require: Verdict::Consistent,
            keep: Keep::default(),
            point_in_time: None,
            // A kept clone of a database scatters its extents, which makes later cuts slower.
            changed_extents_only: false,
            read_all_every: Duration::from_secs(7 * 86_400),
            local_window: Duration::from_secs(48 * 3600),
            pace: Pace::default(),
        }
    }
}

/// How many backups to keep: the newest of each of so many hours, days and so on that have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many, whatever their age.
    pub last: u32,
    /// One for each of so many hours.
    pub hourly: u32,
    /// One for each of so many days.
    pub daily: u32,
    /// One for each of so many ISO weeks.
    pub weekly: u32,
    /// One for each of so many months.
    pub monthly: u32,
    /// One for each of so many years.
    pub yearly: u32,
}

impl Default for Keep {
    fn default() -> Self {
        Self { last: 7, hourly: 168, daily: 30, weekly: 8, monthly: 0, yearly: 0 }
    }
}

#[cfg(test)]
mod tests;
