//! The system variables of a MySQL 8 server, as far as anybody asks for them.

use std::collections::BTreeMap;

/// Variables that only exist globally: `SET SESSION` of them is error 1229.
const ONLY_GLOBAL: [&str; 7] = [
    "innodb_flush_log_at_trx_commit",
    "sync_binlog",
    "read_only",
    "super_read_only",
    "gtid_mode",
    "server_id",
    "gtid_executed",
];

/// Whether a session may have a value of its own.
pub(super) fn has_session(name: &str) -> bool {
    !ONLY_GLOBAL.contains(&name)
}

/// Names and values of a freshly installed server.
pub(super) fn defaults(version: &str) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        COMMON.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    all.insert("version".to_owned(), version.to_owned());
    if version.starts_with("8.0") {
        for (name, value) in ONLY_8_0 {
            all.insert((*name).to_owned(), (*value).to_owned());
        }
    }
    all
}

const COMMON: &[(&str, &str)] = &[
    ("autocommit", "ON"),
    ("basedir", "/usr/"),
    ("binlog_format", "ROW"),
    ("binlog_row_image", "FULL"),
    ("bind_address", "*"),
    ("character_set_client", "utf8mb4"),
    ("character_set_connection", "utf8mb4"),
    ("character_set_results", "utf8mb4"),
    ("character_set_server", "utf8mb4"),
    ("collation_server", "utf8mb4_0900_ai_ci"),
    ("datadir", "/var/lib/mysql/"),
    ("default_storage_engine", "InnoDB"),
    ("default_table_encryption", "OFF"),
    ("enforce_gtid_consistency", "ON"),
    ("event_scheduler", "ON"),
    ("foreign_key_checks", "ON"),
    ("general_log_file", "/var/lib/mysql/host.log"),
    ("gtid_mode", "ON"),
    ("gtid_purged", ""),
    ("have_ssl", "YES"),
    ("hostname", "scripted"),
    ("init_file", ""),
    ("innodb_buffer_pool_size", "134217728"),
    ("innodb_data_file_path", "ibdata1:12M:autoextend"),
    ("innodb_data_home_dir", ""),
    ("innodb_directories", ""),
    ("innodb_doublewrite", "ON"),
    ("innodb_doublewrite_dir", ""),
    ("innodb_fast_shutdown", "1"),
    ("innodb_file_per_table", "ON"),
    ("innodb_flush_log_at_trx_commit", "1"),
    ("innodb_flush_method", "O_DIRECT"),
    ("innodb_log_group_home_dir", "./"),
    ("innodb_page_size", "16384"),
    ("innodb_redo_log_capacity", "104857600"),
    ("innodb_temp_data_file_path", "ibtmp1:12M:autoextend"),
    ("innodb_temp_tablespaces_dir", "./#innodb_temp/"),
    ("innodb_undo_directory", "./"),
    ("innodb_version", "8.0"),
    ("interactive_timeout", "28800"),
    ("lc_messages", "en_US"),
    ("license", "GPL"),
    ("lock_wait_timeout", "31536000"),
    ("log_bin", "ON"),
    ("log_bin_basename", "/var/lib/mysql/binlog"),
    ("log_bin_index", "/var/lib/mysql/binlog.index"),
    ("log_error", "stderr"),
    ("log_replica_updates", "ON"),
    ("lower_case_table_names", "0"),
    ("max_allowed_packet", "67108864"),
    ("max_connections", "151"),
    ("max_execution_time", "0"),
    ("net_read_timeout", "30"),
    ("net_write_timeout", "60"),
    ("performance_schema", "ON"),
    ("pid_file", "/var/lib/mysql/host.pid"),
    ("port", "3306"),
    ("protocol_version", "10"),
    ("read_only", "OFF"),
    ("relay_log_basename", "/var/lib/mysql/host-relay-bin"),
    ("relay_log_info_repository", "TABLE"),
    ("replica_parallel_type", "LOGICAL_CLOCK"),
    ("replica_parallel_workers", "4"),
    ("replica_preserve_commit_order", "ON"),
    ("report_host", ""),
    ("secure_file_priv", "/var/lib/mysql-files/"),
    ("server_id", "1"),
    ("server_uuid", "3e11fa47-71ca-11e1-9e33-c80aa9429562"),
    ("slow_query_log_file", "/var/lib/mysql/host-slow.log"),
    ("socket", "/run/mysqld/mysqld.sock"),
    ("sql_log_bin", "ON"),
    ("sql_mode", "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE"),
    ("super_read_only", "OFF"),
    ("sync_binlog", "1"),
    ("system_time_zone", "UTC"),
    ("time_zone", "SYSTEM"),
    ("tmpdir", "/tmp"),
    ("transaction_isolation", "REPEATABLE-READ"),
    ("transaction_read_only", "OFF"),
    ("version_comment", "MySQL Community Server - GPL"),
    ("version_compile_machine", "x86_64"),
    ("version_compile_os", "Linux"),
    ("wait_timeout", "28800"),
];

/// Names that 8.4 has dropped.
const ONLY_8_0: &[(&str, &str)] = &[
    ("log_slave_updates", "ON"),
    ("slave_parallel_type", "LOGICAL_CLOCK"),
    ("slave_parallel_workers", "4"),
    ("slave_preserve_commit_order", "ON"),
];

/// Those whose `@@name` is 0 or 1 although `SHOW VARIABLES` says OFF or ON.
const BOOLEAN: [&str; 14] = [
    "autocommit",
    "default_table_encryption",
    "foreign_key_checks",
    "innodb_file_per_table",
    "log_bin",
    "log_replica_updates",
    "log_slave_updates",
    "performance_schema",
    "read_only",
    "replica_preserve_commit_order",
    "slave_preserve_commit_order",
    "sql_log_bin",
    "super_read_only",
    "transaction_read_only",
];

/// What `SELECT @@name` says of this value.
pub(super) fn selected<'a>(name: &str, value: &'a str) -> &'a str {
    match value {
        "ON" if BOOLEAN.contains(&name) => "1",
        "OFF" if BOOLEAN.contains(&name) => "0",
        other => other,
    }
}
