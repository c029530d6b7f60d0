//! Where in its files an inventory names which path, and which of the paths do not exist.
//!
//! Crash story: plain values, no effects; whether a path exists is asked of the caller.

use std::path::{Path, PathBuf};

use super::{Inventory, InventoryError};
use crate::{id::AppName, pathtext};

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathRole {
    /// Where backups are kept.
    Partition,
    /// The file that holds the repositories' password.
    PasswordFile,
    /// A directory to back up.
    Directory,
    /// A database file to back up.
    Database,
    /// A pid file; it exists only while its process runs.
    PidFile,
    /// Where a server listens; exists only while it runs.
    Server,
}

/// Where a path is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What it is for.
    pub role: PathRole,
    /// The application that names it; none for the partition and the password file.
    pub application: Option<AppName>,
    /// The path as it stands in the inventory.
    pub path: PathBuf,
    /// The file that names it.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
}

/// An error for every path that must exist before a backup and does not. A pid file need not exist: it
/// comes and goes with its process.
#[must_use]
pub fn missing_paths(inventory: &Inventory, exists: &dyn Fn(&Path) -> bool) -> Vec<InventoryError> {
    let comes_and_goes = |o: &&Origin| matches!(o.role, PathRole::PidFile | PathRole::Server);
    let lasting = inventory.origins.iter().filter(|o| !comes_and_goes(o));
    let missing = lasting.filter(|o| !exists(&o.path));
    missing.map(Origin::missing).collect()
}

impl Origin {
    fn missing(&self) -> InventoryError {
        let path = pathtext::show(&self.path);
        let (what, remedy) = match self.role {
            PathRole::Partition => (
                format!("partition {path} does not exist"),
                "mount it, create it, or name another".to_owned(),
            ),
            PathRole::PasswordFile => (
                format!("password_file {path} does not exist"),
                "`stillpoint init` makes one; if there are backups already, put the file they were made with back"
                    .to_owned(),
            ),
            PathRole::Directory => self.missing_source("directory"),
            PathRole::Database => self.missing_source("database"),
            PathRole::PidFile => self.missing_source("pid file"),
            PathRole::Server => self.missing_source("server"),
        };
        InventoryError { file: self.file.clone(), line: self.line, what, remedy }
    }

    fn missing_source(&self, kind: &str) -> (String, String) {
        let owner = self.application.as_ref().map(|a| format!(" of application {a}")).unwrap_or_default();
        let path = pathtext::show(&self.path);
        let remedy = "correct the path, mount its filesystem, or remove the entry".to_owned();
        (format!("{kind} {path}{owner} does not exist"), remedy)
    }
}
