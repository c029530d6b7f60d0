//! The global variables of a server, as it shows them.
//!
//! Crash story: plain values; one statement that reads.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use super::super::{PATIENCE, connect::Connection, error::ServerError};

/// Without these a copy does not open or means something else, or whoever restores it wants to know them.
const KEPT: [&str; 50] = [
    "aria_block_size",
    "aria_log_dir_path",
    "aria_log_file_size",
    "basedir",
    "binlog_checksum",
    "binlog_format",
    "character_set_server",
    "collation_server",
    "datadir",
    "default_storage_engine",
    "enforce_gtid_consistency",
    "explicit_defaults_for_timestamp",
    "file_key_management_encryption_algorithm",
    "file_key_management_filename",
    "gtid_domain_id",
    "gtid_mode",
    "gtid_strict_mode",
    "ignore_db_dirs",
    "innodb_checksum_algorithm",
    "innodb_compression_algorithm",
    "innodb_data_file_path",
    "innodb_data_home_dir",
    "innodb_default_row_format",
    "innodb_directories",
    "innodb_doublewrite",
    "innodb_doublewrite_dir",
    "innodb_encrypt_log",
    "innodb_encrypt_tables",
    "innodb_file_per_table",
    "innodb_flush_log_at_trx_commit",
    "innodb_log_file_size",
    "innodb_log_files_in_group",
    "innodb_log_group_home_dir",
    "innodb_page_size",
    "innodb_read_only_compressed",
    "innodb_redo_log_capacity",
    "innodb_undo_directory",
    "innodb_undo_tablespaces",
    "log_bin_basename",
    "lower_case_table_names",
    "plugin_dir",
    "rocksdb_datadir",
    "rocksdb_default_cf_options",
    "rocksdb_override_cf_options",
    "rocksdb_wal_dir",
    "sql_mode",
    "sync_binlog",
    "system_time_zone",
    "time_zone",
    "version",
];

/// Those of them that are directories or files of the server's own.
const PATHS: [&str; 7] = [
    "aria_log_dir_path",
    "file_key_management_filename",
    "innodb_data_home_dir",
    "innodb_log_group_home_dir",
    "innodb_undo_directory",
    "rocksdb_datadir",
    "rocksdb_wal_dir",
];

/// All global variables.
pub(super) struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Reads them.
    pub(super) fn read(connection: &mut Connection) -> Result<Self, ServerError> {
        let rows = connection.rows("SHOW GLOBAL VARIABLES", PATIENCE)?;
        Ok(Self(rows.iter().map(|row| (row.text(0).to_ascii_lowercase(), row.text(1))).collect()))
    }

    /// The value; nothing if it is empty or there is no such variable.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty() && *value != "NULL")
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Whether it is on; `otherwise` if there is no such variable.
    pub(super) fn is_on(&self, name: &str, otherwise: bool) -> bool {
        self.get(name).map_or(otherwise, |value| {
            let value = value.to_ascii_uppercase();
            value != "OFF" && value != "0" && value != "FALSE"
        })
    }

    /// A path, absolute and without `.` and `..`; a relative one is below the data directory, where servers run.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(|value| self.place(value))
    }

    /// The same for a value that is no variable of its own.
    pub(super) fn place(&self, value: &str) -> PathBuf {
        let data = Path::new(self.get("datadir").unwrap_or("/"));
        // `..` leads up from where the directory really is.
        plain(&data.canonicalize().unwrap_or_else(|_| data.to_owned()).join(value))
    }

    /// Gives recorded paths as they really are, as the directories are recorded: a data directory reached through a link
    /// is the default of other settings by that name. Only for a server whose files are on this machine.
    pub(super) fn resolve(&self, recorded: &mut BTreeMap<String, String>) {
        for name in PATHS {
            if let (Some(value), Some(kept)) = (self.get(name), recorded.get_mut(name)) {
                *kept = self.resolved(value);
            }
        }
        if let (Some(value), Some(kept)) =
            (self.get("innodb_data_file_path"), recorded.get_mut("innodb_data_file_path"))
        {
            let file = |file: &str| match file.split_once(':') {
                Some((path, rest)) if Path::new(path).is_absolute() => {
                    format!("{}:{rest}", self.resolved(path))
                }
                _ => file.to_owned(),
            };
            *kept = value.split(';').map(file).collect::<Vec<_>>().join(";");
        }
    }

    /// A path below the data directory may stay relative to it.
    fn resolved(&self, value: &str) -> String {
        let place = self.place(value);
        let real = place.canonicalize().ok().filter(|real| *real != plain(Path::new(value)));
        let is_below = |real: &PathBuf| Path::new(value).is_relative() && *real == place;
        let other = real.filter(|real| !(is_below(real) && real.starts_with(self.place(""))));
        other.and_then(|real| real.to_str().map(str::to_owned)).unwrap_or_else(|| value.to_owned())
    }

    /// Those that are recorded, with the libraries of engines and plugins under `plugin_load_add`.
    pub(super) fn kept(&self, libraries: &[String]) -> BTreeMap<String, String> {
        let kept = KEPT.iter().filter_map(|name| Some(((*name).to_owned(), self.0.get(*name)?.clone())));
        let mut kept: BTreeMap<String, String> = kept.collect();
        // Anything else in it is the key of the keys.
        if let Some(file) = self.get("file_key_management_filekey").filter(|value| value.starts_with("FILE:"))
        {
            kept.insert("file_key_management_filekey".to_owned(), file.to_owned());
        }
        if !libraries.is_empty() {
            kept.insert("plugin_load_add".to_owned(), libraries.join(";"));
        }
        kept
    }

    #[cfg(test)]
    pub(super) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }
}

fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::Variables;

    #[test]
    fn paths_are_below_the_data_directory_unless_they_say_otherwise() {
        let variables = Variables::of(&[
            ("datadir", "/srv/db/"),
            ("a", "./"),
            ("b", "../log/x"),
            ("c", "/abs/"),
            ("d", ""),
        ]);
        assert_eq!(variables.path("a").as_deref(), Some(Path::new("/srv/db")));
        assert_eq!(variables.path("b").as_deref(), Some(Path::new("/srv/log/x")));
        assert_eq!(variables.path("c").as_deref(), Some(Path::new("/abs")));
        assert!(variables.path("d").is_none() && variables.path("e").is_none());
    }

    #[test]
    fn recorded_paths_are_real_ones() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let at = |name: &str| base.join(name).display().to_string();
        for name in ["far/data/rocks", "far/redo", "undo"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        symlink(at("far/data"), at("link")).unwrap();
        symlink(at("undo"), at("far/data/undo")).unwrap();
        fs::write(at("undo/ibdata1"), "").unwrap();
        let set = [
            ("datadir", at("link/")),
            ("aria_log_dir_path", at("link/")),
            ("innodb_log_group_home_dir", "../redo".into()),
            ("innodb_undo_directory", "undo".into()),
            ("rocksdb_datadir", "./rocks".into()),
            ("innodb_data_file_path", format!("{}:12M;b:1M:autoextend", at("link/undo/ibdata1"))),
        ];
        let variables = Variables::of(&set.each_ref().map(|(name, value)| (*name, value.as_str())));
        let mut kept = variables.kept(&[]);
        variables.resolve(&mut kept);
        let expected = [
            ("aria_log_dir_path", at("far/data")),
            ("datadir", at("link/")),
            ("innodb_data_file_path", format!("{}:12M;b:1M:autoextend", at("undo/ibdata1"))),
            ("innodb_log_group_home_dir", at("far/redo")),
            ("innodb_undo_directory", at("undo")),
            ("rocksdb_datadir", "./rocks".into()),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_off_is_off_in_any_words() {
        let variables = Variables::of(&[("a", "OFF"), ("b", "0"), ("c", "ON"), ("d", "DETECT_AND_RECOVER")]);
        let on: Vec<bool> =
            ["a", "b", "c", "d", "e"].iter().map(|name| variables.is_on(name, true)).collect();
        assert_eq!(on, [false, false, true, true, true]);
    }
}
