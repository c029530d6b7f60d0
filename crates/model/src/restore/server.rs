//! Database servers in a restore: whose directories are replaced, and whose databases are loaded.
//!
//! Crash story: pure functions, no effects.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Opened, Place, PlaceFacts, Request, Target, pathtext, refused};
use crate::{
    id::SourceId,
    port::Failure,
    server::{RootRole, ServerForm, ServerRecord},
};

/// Files that a running server always has open, by the directory that they are in. A server that has none of
/// them open does not run on that directory.
const ALWAYS_OPEN: [&str; 7] =
    ["ibdata1", "ib_logfile0", "undo001", "aria_log_control", "#rocksdb/LOCK", "LOCK", "mysql.ibd"];

/// A server of the backup, and what the inventory says of it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSource {
    /// What was recorded at the cut.
    pub record: ServerRecord,
    /// The inventory has hooks that stop and start the server.
    pub has_service: bool,
    /// The inventory still has it, so that it can be reached.
    pub is_reachable: bool,
}

/// What a restore does with a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerPart {
    /// The source.
    pub source: SourceId,
    /// How it is stored.
    pub form: ServerForm,
    /// What is done.
    pub act: ServerAct,
    /// Hooks of its own stop it before and start it after.
    pub service: bool,
    /// Its directories.
    #[serde(with = "pathtext::list")]
    pub roots: Vec<PathBuf>,
    /// The databases that are loaded; empty for all.
    pub databases: Vec<String>,
}

/// What is done with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerAct {
    /// Its files are written below the directory, and made such that a server opens them there.
    Place,
    /// Its dump is written below the directory.
    Dump,
    /// Its directories are replaced while it is stopped.
    Replace,
    /// Its databases are replaced while it runs.
    Load,
}

/// A directory outside of a server's data directory may hold what belongs to others: another server's tables, files of
/// a person. It is replaced whole, so whatever the backup does not hold has to be out of the way first.
pub(super) fn refuse_strangers(request: &Request, place: &Place, found: &PlaceFacts) -> Result<(), Failure> {
    let outside = [RootRole::External, RootRole::SystemTablespace, RootRole::Redo, RootRole::Undo];
    let roots = request.servers.iter().flat_map(|server| &server.record.roots);
    let is_outside = roots.clone().any(|root| root.path == place.to && outside.contains(&root.role));
    if !is_outside || found.census.unlisted == 0 {
        return Ok(());
    }
    let examples: Vec<String> =
        found.census.examples.iter().take(3).map(|path| pathtext::show(path)).collect();
    let shown = pathtext::show(&place.to);
    Err(refused(
        format!(
            "{shown}, outside the server's data directory, holds {} names that are not in the backup ({}): they may \
             belong to others, and it is replaced whole",
            found.census.unlisted,
            examples.join(", ")
        ),
        format!(
            "move what belongs to others out of {shown}, and what is this server's away, or restore with --to DIR"
        ),
    ))
}

impl ServerSource {
    /// What is done with it for this target.
    pub(super) fn part(&self, target: &Target) -> ServerPart {
        let record = &self.record;
        let act = match (target, record.form) {
            (Target::Directory { .. }, ServerForm::Dump) => ServerAct::Dump,
            (Target::Directory { .. }, _) => ServerAct::Place,
            (Target::InPlace { .. }, ServerForm::Dump) => ServerAct::Load,
            (Target::InPlace { .. }, _) => ServerAct::Replace,
        };
        ServerPart {
            source: record.source.clone(),
            form: record.form,
            act,
            service: self.has_service && act == ServerAct::Replace,
            roots: record.roots.iter().map(|root| root.path.clone()).collect(),
            databases: record.databases.clone(),
        }
    }

    /// Files that no process may have open when its directories are replaced.
    fn watched(&self) -> Vec<PathBuf> {
        let roots = self.record.roots.iter().filter(|root| root.role != RootRole::Keyring);
        roots.flat_map(|root| ALWAYS_OPEN.map(|name| root.path.join(name))).collect()
    }
}

impl ServerPart {
    /// What happens to it, in a line for people.
    pub(super) fn describe(&self) -> String {
        let source = &self.source;
        match self.act {
            ServerAct::Place => format!(
                "{source}: its files are written below the directory; if the redo log needs it they are recovered there, \
                 behind a fence; links are rewritten, so that nothing leads to the original"
            ),
            ServerAct::Dump => format!("{source}: its dump is written below the directory"),
            ServerAct::Replace if self.service => format!(
                "{source}: stopped by its hook, its directories exchanged, started by its hook, then checked; its binary \
                 logs are kept"
            ),
            ServerAct::Replace => {
                format!("{source}: must be stopped; its directories are exchanged; its binary logs are kept")
            }
            ServerAct::Load if self.databases.is_empty() => {
                format!("{source}: all its databases are loaded while it runs")
            }
            ServerAct::Load => format!(
                "{source}: the databases {} are replaced while it runs, no others are touched",
                self.databases.join(", ")
            ),
        }
    }
}

/// Whether a source is a database server, by its id.
pub(super) fn is_server(source: &SourceId) -> bool {
    ["mariadb:", "mysql:"].iter().any(|kind| source.as_str().starts_with(kind))
}

/// Whether this path of a pin is put in its place: not what stands in the backup only to be loaded or replayed.
///
/// # Errors
/// If the backup does not say what it is.
pub(super) fn is_put_in_place(request: &Request, source: &SourceId, path: &Path) -> Result<bool, Failure> {
    if !is_server(source) {
        return Ok(true);
    }
    let server = request.servers.iter().find(|server| server.record.source == *source).ok_or_else(|| {
        refused(
            format!("the backup does not say how the server {source} is stored"),
            "restore with --to DIR what there is, or use another backup",
        )
    })?;
    let beside = server.record.beside.as_deref().is_some_and(|beside| path.starts_with(beside));
    Ok(server.record.form != ServerForm::Dump && !beside)
}

/// Files of all servers that no process may have open when their directories are replaced.
#[must_use]
pub fn server_files(request: &Request) -> Vec<PathBuf> {
    let replaced = |server: &&ServerSource| server.part(&request.target).act == ServerAct::Replace;
    request.servers.iter().filter(replaced).flat_map(ServerSource::watched).collect()
}

/// Refuses what cannot be done: a server that runs and that nobody stops, one that must run and is unknown.
pub(super) fn refuse(request: &Request, open: &[Opened]) -> Result<(), Failure> {
    for server in &request.servers {
        let part = server.part(&request.target);
        if part.act == ServerAct::Load && !server.is_reachable {
            return Err(refused(
                format!(
                    "the databases of {} are to be loaded, but the inventory does not name that server",
                    part.source
                ),
                "add it to the application again, or restore with --to DIR",
            ));
        }
        let watched = server.watched();
        if part.act == ServerAct::Replace
            && !part.service
            && !request.has_hooks
            && let Some(opened) = open.iter().find(|opened| watched.contains(&opened.path))
        {
            return Err(still_running(opened));
        }
    }
    Ok(())
}

/// The refusal to replace the files of a server that runs.
#[must_use]
pub fn still_running(opened: &Opened) -> Failure {
    let program = if opened.program.is_empty() { "a process" } else { &opened.program };
    refused(
        format!("{program} (process {}) runs on {}", opened.pid, pathtext::show(&opened.path)),
        "stop the server first, or give the database hooks of its own: stop = { run = \"systemctl stop mariadb\", \
         timeout = \"5m\" }, and start likewise",
    )
}

/// Whether this is a file of a server rather than of an SQLite database.
#[must_use]
pub fn is_server_file(path: &Path) -> bool {
    ALWAYS_OPEN.iter().any(|name| path.ends_with(name))
}
