//! The options with which a copy opens: everything explicit, nothing from the machine's own option files.
//!
//! Crash story: pure functions; no effects.

use std::path::{Component, Path, PathBuf};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    server::{Flavor, RootRole, ServerRecord},
};

use super::copy::{Placement, ServerCopy};

/// Global variables that are passed on as they were: without them a copy does not open, or means something else.
const VALUES: [&str; 19] = [
    "aria_block_size",
    "aria_log_file_size",
    "character_set_server",
    "collation_server",
    "default_storage_engine",
    "explicit_defaults_for_timestamp",
    "file_key_management_encryption_algorithm",
    "innodb_checksum_algorithm",
    "innodb_compression_algorithm",
    "innodb_default_row_format",
    "innodb_log_file_size",
    "innodb_log_files_in_group",
    "innodb_page_size",
    "innodb_redo_log_capacity",
    "innodb_undo_tablespaces",
    "lower_case_table_names",
    "rocksdb_default_cf_options",
    "rocksdb_override_cf_options",
    "sql_mode",
];

/// Global variables that are paths of the copy's own.
const PATHS: [&str; 7] = [
    "aria_log_dir_path",
    "file_key_management_filename",
    "innodb_data_home_dir",
    "innodb_log_group_home_dir",
    "innodb_undo_directory",
    "rocksdb_datadir",
    "rocksdb_wal_dir",
];

/// Engines that are loaded from a library, with its name; those that are built in everywhere are not here.
const LIBRARIES: [(&str, &str); 8] = [
    ("ARCHIVE", "ha_archive"),
    ("BLACKHOLE", "ha_blackhole"),
    ("CONNECT", "ha_connect"),
    ("FEDERATED", "ha_federatedx"),
    ("Mroonga", "ha_mroonga"),
    ("OQGRAPH", "ha_oqgraph"),
    ("ROCKSDB", "ha_rocksdb"),
    ("SPIDER", "ha_spider"),
];

/// One option: name, and value if it has one.
pub(super) type Opt = (String, Option<String>);

fn opt(name: &str, value: impl Into<String>) -> Opt {
    (name.to_owned(), Some(value.into()))
}

fn flag(name: &str) -> Opt {
    (name.to_owned(), None)
}

/// What describes the copy: where it lies and how it is read.
///
/// # Errors
/// [`FailureKind::Refused`] if a setting leads out of what was stored.
pub(super) fn of_copy(copy: &ServerCopy, placement: &Placement) -> Result<Vec<Opt>, Failure> {
    let record = copy.record();
    let data = placed(copy, placement, "datadir", copy.data()?)?;
    let mut options = vec![opt("datadir", text(&data)?)];
    options.extend(values(record));
    for name in PATHS {
        let Some(value) = set(record, name) else { continue };
        let path = Path::new(value);
        let leads_up = path.components().any(|part| part == Component::ParentDir);
        // Relative paths are relative to the data directory.
        let value = if path.is_absolute() || leads_up {
            text(&placed(copy, placement, name, &copy.data()?.join(path))?)?
        } else {
            value.into()
        };
        options.push(opt(&dashed(name), value));
    }
    if let Some(files) = set(record, "innodb_data_file_path") {
        options.push(opt("innodb-data-file-path", data_files(copy, placement, files)?));
    }
    options.extend(libraries(record).into_iter().map(|library| opt("plugin-load-add", library)));
    Ok(options)
}

/// What does not depend on where anything lies.
pub(super) fn values(record: &ServerRecord) -> Vec<Opt> {
    // Loose: a newer server may not have one of them any more.
    let value = |name: &&str| set(record, name).map(|value| opt(&format!("loose-{}", dashed(name)), value));
    VALUES.iter().filter_map(value).collect()
}

/// Libraries of engines and of encryption that the copy needs.
pub(super) fn libraries(record: &ServerRecord) -> Vec<&'static str> {
    let used = |name: &str| record.engines.iter().any(|engine| engine.eq_ignore_ascii_case(name));
    let mut found: Vec<&str> =
        LIBRARIES.iter().filter(|(name, _)| used(name)).map(|(_, library)| *library).collect();
    if set(record, "file_key_management_filename").is_some() {
        found.push("file_key_management");
    }
    found
}

/// What keeps a server that runs on a copy to itself. It reads and writes files of SQL statements in `run` only.
///
/// # Errors
/// If no option can hold the path.
pub(super) fn fence(flavor: Flavor, run: &Path) -> Result<Vec<Opt>, Failure> {
    let mut options = alone(flavor);
    options.extend(apart(run)?);
    Ok(options)
}

/// What keeps it from others.
fn alone(flavor: Flavor) -> Vec<Opt> {
    let mut options = vec![
        flag("skip-networking"),
        flag("skip-log-bin"),
        flag("skip-slave-start"),
        opt("event-scheduler", "OFF"),
        opt("local-infile", "OFF"),
    ];
    if flavor == Flavor::MySql {
        options.push(opt("mysqlx", "OFF"));
    }
    options
}

/// What keeps its files apart from those of other servers.
fn apart(run: &Path) -> Result<Vec<Opt>, Failure> {
    Ok(vec![
        opt("socket", text(&run.join("socket"))?),
        opt("pid-file", text(&run.join("pid"))?),
        opt("log-error", text(&run.join("error.log"))?),
        opt("tmpdir", text(run)?),
        opt("secure-file-priv", text(run)?),
    ])
}

/// Options as arguments.
pub(super) fn arguments(options: &[Opt]) -> Vec<String> {
    options
        .iter()
        .map(|(name, value)| match value {
            Some(value) => format!("--{name}={value}"),
            None => format!("--{name}"),
        })
        .collect()
}

/// The text of an option file with which `mariadbd --defaults-file=FILE` opens the copy where it lies, fenced. The fence is
/// its last part, after [`FENCE`], so that a person can release the copy. `run` is a directory for its socket and the like.
///
/// # Errors
/// As of the options themselves.
pub fn option_file(copy: &ServerCopy, run: &Path) -> Result<String, Failure> {
    let mut options = of_copy(copy, copy.placement())?;
    options.extend(apart(run)?);
    if rustix::process::geteuid().is_root() {
        // A server that root starts becomes this account.
        options.push(opt("user", copy.owner()?.0.to_string()));
    }
    let mut out = format!(
        "# Opens the copy of {} by itself: no network, no binary log, no replication, no events.\n[mysqld]\n",
        copy.record().source
    );
    options.iter().for_each(|option| out.push_str(&line(option)));
    out.push_str(FENCE);
    alone(copy.record().version.flavor).iter().for_each(|option| out.push_str(&line(option)));
    Ok(out)
}

/// Where the fence begins in an option file.
pub const FENCE: &str = "\n# The fence. Without the lines below the server is released: it listens on its port, replicates and runs events as\n\
                         # the original did. Remove them when the original is no more, or has nothing to do with this one.\n";

fn line((name, value): &Opt) -> String {
    match value {
        Some(value) => format!("{name}=\"{}\"\n", value.replace('\\', "\\\\").replace('"', "\\\"")),
        None => format!("{name}\n"),
    }
}

fn set<'a>(record: &'a ServerRecord, name: &str) -> Option<&'a str> {
    record.settings.get(name).map(|value| value.trim()).filter(|value| !value.is_empty() && *value != "NULL")
}

fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

/// `file:size[:autoextend…];…`, files by absolute path only if `innodb_data_home_dir` is empty.
fn data_files(copy: &ServerCopy, placement: &Placement, files: &str) -> Result<String, Failure> {
    let one = |file: &str| {
        let (path, rest) = file.split_once(':').unwrap_or((file, ""));
        if !Path::new(path).is_absolute() {
            return Ok(file.to_owned());
        }
        let place = placed(copy, placement, "innodb_data_file_path", Path::new(path))?;
        Ok(format!("{}:{rest}", text(&place)?))
    };
    Ok(files.split(';').map(one).collect::<Result<Vec<_>, Failure>>()?.join(";"))
}

fn placed(copy: &ServerCopy, placement: &Placement, name: &str, path: &Path) -> Result<PathBuf, Failure> {
    let real = placement.at(&copy.real(path));
    real.or_else(|| placement.at(only_root(copy.record(), name)?)).ok_or_else(|| {
        let what = format!(
            "{name} of {} is {}, which is not in the backup",
            copy.record().source,
            pathtext::show(path)
        );
        Failure::new(FailureKind::Refused, what, "restore a backup that has all of the server")
    })
}

/// The directory that this setting names, whatever it calls it: no other setting gives a directory of that role.
fn only_root<'a>(record: &'a ServerRecord, name: &str) -> Option<&'a Path> {
    let role = match name {
        "aria_log_dir_path" => RootRole::AriaLog,
        "innodb_log_group_home_dir" => RootRole::Redo,
        "innodb_undo_directory" => RootRole::Undo,
        _ => return None,
    };
    record.roots.iter().find(|root| root.role == role).map(|root| root.path.as_path())
}

fn text(path: &Path) -> Result<String, Failure> {
    path.to_str().filter(|text| !text.contains(['\n', '\r'])).map(str::to_owned).ok_or_else(|| {
        let what = format!("no option of a server can hold the path {}", pathtext::show(path));
        Failure::new(FailureKind::Refused, what, "restore to a directory with a plain name")
    })
}
