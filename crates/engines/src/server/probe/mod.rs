//! What a server is like, found out without holding or changing anything.
//!
//! Crash story: reads only; [`probe`] never fails: what keeps the server from being backed up is the facts' refusal.

mod exclude;
mod mysql;
mod privileges;
mod process;
mod roots;
mod tables;
mod variables;
mod walk;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use model::{
    inventory::ServerDatabase,
    plan::Refusal,
    port::Failure,
    server::{Binlog, Flavor, Replica, ServerFacts, ServerVersion},
    size::Bytes,
};
use os::command::Command;

use self::{privileges::Needs, variables::Variables};
use super::{
    PATIENCE,
    connect::{Connection, wrong_flavor},
    error::ServerError,
    lock::mysql_replicas,
    position, version,
};

/// How long connecting may take.
const CONNECTING: Duration = Duration::from_secs(10);

/// Finds out what this server is like. `staging` says where clones of the files in a directory could be put, best first.
#[must_use]
pub fn probe(server: &ServerDatabase, staging: &dyn Fn(&Path) -> Vec<PathBuf>) -> ServerFacts {
    let mut facts = nothing(server);
    if let Err(refusal) = look(server, staging, &mut facts) {
        facts.refusal = Some(refusal);
    }
    facts
}

fn nothing(server: &ServerDatabase) -> ServerFacts {
    ServerFacts {
        source: server.id(),
        version: None,
        server_id: 0,
        served_by: None,
        roots: vec![],
        engines: vec![],
        binlog: None,
        replicas: vec![],
        flush_log_at_commit: 1,
        doublewrite: true,
        missing_privileges: vec![],
        can_run_backup_tool: false,
        settings: BTreeMap::new(),
        bytes: Bytes(0),
        files: 0,
        extents: None,
        broken_links: vec![],
        notes: vec![],
        file_notes: vec![],
        refusal: None,
    }
}

fn look(
    server: &ServerDatabase,
    staging: &dyn Fn(&Path) -> Vec<PathBuf>,
    facts: &mut ServerFacts,
) -> Result<(), Refusal> {
    let mut connection = Connection::open_any(&server.access, CONNECTING).map_err(said)?;
    let version = connection.version().clone();
    facts.version = Some(version.clone());
    if let Some(refusal) = wrong_flavor(&server.access, &version) {
        return Err(refusal);
    }
    supported(&version)?;
    let variables = Variables::read(&mut connection).map_err(said)?;
    of_variables(&variables, facts);
    facts.missing_privileges = lacks(&mut connection, server, &version, facts).map_err(said)?;
    of_tables(&mut connection, server, &variables, facts)?;
    of_replication(&mut connection, facts).map_err(said)?;
    of_files(&mut connection, &variables, staging, facts)?;
    facts.can_run_backup_tool = version.flavor == Flavor::MariaDb && fits(&version);
    Ok(())
}

fn said(error: ServerError) -> Refusal {
    let failure = Failure::from(error);
    let remedy = failure.remedy.clone();
    Refusal { what: Failure { remedy: String::new(), ..failure }.in_full(), remedy }
}

/// Older servers have not the locks.
fn supported(version: &ServerVersion) -> Result<(), Refusal> {
    let oldest = match version.flavor {
        Flavor::MariaDb => (10, 4, 2),
        Flavor::MySql => (8, 0, 0),
    };
    if version.number >= oldest {
        return Ok(());
    }
    let what = format!("is too old: version {} has no locks for backups", version.text);
    let remedy = format!("use {} {}.{} or newer", version.flavor, oldest.0, oldest.1);
    Err(Refusal { what, remedy })
}

fn of_variables(variables: &Variables, facts: &mut ServerFacts) {
    facts.server_id = variables.number("server_id").and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    let flush = variables.number("innodb_flush_log_at_trx_commit").and_then(|value| u8::try_from(value).ok());
    facts.flush_log_at_commit = flush.unwrap_or(1);
    facts.doublewrite = variables.is_on("innodb_doublewrite", true);
    if variables.is_on("log_bin", false) {
        facts.binlog = variables.path("log_bin_basename").map(|basename| Binlog {
            basename,
            sync: variables.number("sync_binlog").unwrap_or(0),
            format: variables.get("binlog_format").unwrap_or_default().to_owned(),
        });
    }
    if facts.flush_log_at_commit == 0 {
        facts.notes.push(
            "innodb_flush_log_at_trx_commit is 0: it is raised to 1 for the cut, and a crash of the server loses a \
             second of commits at any other time"
                .into(),
        );
    }
}

fn lacks(
    connection: &mut Connection,
    server: &ServerDatabase,
    version: &ServerVersion,
    facts: &ServerFacts,
) -> Result<Vec<model::server::Privilege>, ServerError> {
    let needs = Needs {
        version,
        binlog: facts.binlog.is_some(),
        raise: facts.flush_log_at_commit == 0,
        end_queries: server.end_blocking_queries,
        databases: &server.databases,
    };
    privileges::missing(connection, &needs)
}

fn of_tables(
    connection: &mut Connection,
    server: &ServerDatabase,
    variables: &Variables,
    facts: &mut ServerFacts,
) -> Result<(), Refusal> {
    let absent = tables::absent(connection, &server.databases).map_err(said)?;
    if !absent.is_empty() {
        return Err(Refusal {
            what: format!("has no database {}, or its account may not see it", absent.join(", ")),
            remedy: "correct `databases` in the inventory, or grant SELECT on it".into(),
        });
    }
    facts.engines = tables::engines(connection, &server.databases).map_err(said)?;
    facts.notes.extend(tables::notes(&facts.engines, connection.version().flavor));
    let libraries = tables::libraries(connection).map_err(said)?;
    facts.settings = variables.kept(&libraries);
    Ok(())
}

/// An account that may not see it is told so by the privileges that it lacks.
fn of_replication(connection: &mut Connection, facts: &mut ServerFacts) -> Result<(), ServerError> {
    if connection.version().flavor == Flavor::MySql {
        facts.replicas = match mysql_replicas(connection, PATIENCE) {
            Err(error) if error.code().is_some() => vec![],
            other => other?,
        };
        return Ok(());
    }
    let channels = match position::channels(connection, PATIENCE) {
        Err(error) if error.code().is_some() => return Ok(()),
        other => other?,
    };
    for channel in &channels {
        facts.replicas.push(Replica {
            channel: channel.name.clone(),
            source: channel.source.clone(),
            applies: channel.applies,
            out_of_order: channel.is_optimistic(),
        });
        if channel.applies && channel.is_parallel() {
            facts.notes.push(format!(
                "its applier of {} works with {} threads ({}): a cut while transactions wait for each other is given \
                 up (MDEV-36025); SET GLOBAL slave_parallel_threads = 0, or stop and start hooks that run STOP SLAVE \
                 SQL_THREAD and START SLAVE SQL_THREAD, avoid that",
                channel.source, channel.threads, channel.mode
            ));
        }
    }
    Ok(())
}

/// Process and directories, if they are on this machine and those that the server means.
fn of_files(
    connection: &mut Connection,
    variables: &Variables,
    staging: &dyn Fn(&Path) -> Vec<PathBuf>,
    facts: &mut ServerFacts,
) -> Result<(), Refusal> {
    match process::who_serves(connection, variables) {
        Ok(who) => facts.served_by = Some(who),
        Err(why) => {
            facts.notes.push(format!("its files are not pinned: {why}"));
            return Ok(());
        }
    }
    variables.resolve(&mut facts.settings);
    let more = match connection.version().flavor {
        Flavor::MariaDb => vec![],
        Flavor::MySql => mysql::places(connection, variables).map_err(said)?,
    };
    let found = roots::find(variables, more, staging)?;
    facts.roots = found.facts;
    facts.files = found.walked.files;
    facts.bytes = Bytes(found.walked.bytes);
    facts.extents = found.walked.extents;
    facts.broken_links = found.walked.broken;
    facts.file_notes.extend(found.notes);
    Ok(())
}

/// mariadb-backup reads the files of servers of its own series that are not newer than itself.
fn fits(server: &ServerVersion) -> bool {
    let asked = Command::tool("mariadb-backup").arg("--version").timeout(Duration::from_secs(10)).run();
    let Ok(outcome) = asked else { return false };
    let words = [outcome.stdout, outcome.stderr].concat();
    let text = String::from_utf8_lossy(&words);
    let named = text.split_once("MariaDB server ").map_or(&*text, |(_, rest)| rest);
    let Some(tool) = version::number(named) else { return false };
    (tool.0, tool.1) == (server.number.0, server.number.1) && tool.2 >= server.number.2
}
