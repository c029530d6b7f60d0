//! What is left out of a server's directories, and why: everything else is kept, what looks like a leftover too.
//!
//! | left out | because |
//! |---|---|
//! | binary logs, their index and state | the log archive keeps them; the position is in the record |
//! | relay logs and their index | the source has them; what was applied is in the record |
//! | sockets, pid files | they belong to the running server |
//! | temporary tablespaces, a `tmpdir` inside | the server makes them anew |
//! | error, general, slow and audit logs | people read them, no server does |
//! | `ddl.log`, `lost+found`, `ib_buffer_pool.incomplete` | of backup stages, of the filesystem, half written |
//!
//! Kept on purpose: `#sql*` files, which the recovery of the copy removes or finishes; `ddl_recovery.log`, which tells it
//! how; `ib_buffer_pool`, which warms the copy up; `master.info` and `relay-log.info`.
//!
//! Crash story: pure functions.

use std::path::{Path, PathBuf};

use super::variables::Variables;

/// Globs relative to `root`, a real path; `data` is the data directory as the server calls it, which may be a link.
pub(super) fn patterns(variables: &Variables, root: &Path) -> Vec<String> {
    let mut found = vec![];
    for (place, ends) in candidates(variables) {
        let Some(relative) = relative(&place, root, variables) else { continue };
        let relative = globset::escape(&relative.to_string_lossy());
        if relative.is_empty() {
            continue;
        }
        found.extend(ends.iter().map(|end| format!("{relative}{end}")));
    }
    found.sort();
    found.dedup();
    found
}

/// Places, each with what may follow it.
fn candidates(variables: &Variables) -> Vec<(PathBuf, &'static [&'static str])> {
    const LOGS: &[&str] = &[".[0-9]*", ".index", ".state"];
    const RELAYED: &[&str] = &[".[0-9]*", ".index", "-*.[0-9]*", "-*.index"];
    const ITSELF: &[&str] = &[""];
    // MySQL writes its process id beside its sockets, and does not start while a process has that id.
    const SOCKET: &[&str] = &["", ".lock"];
    let mut found = vec![];
    let mut add = |names: &[&str], ends| {
        found.extend(names.iter().filter_map(|name| Some((variables.path(name)?, ends))));
    };
    add(&["log_bin_basename"], LOGS);
    add(&["relay_log_basename"], RELAYED);
    add(&["log_bin_index", "relay_log_index", "pid_file", "tmpdir", "innodb_tmpdir"], ITSELF);
    add(&["socket", "mysqlx_socket"], SOCKET);
    add(
        &[
            "log_error",
            "general_log_file",
            "slow_query_log_file",
            "log_slow_query_file",
            "server_audit_file_path",
        ],
        ITSELF,
    );
    let temporary = variables.get("innodb_temp_data_file_path").unwrap_or("ibtmp1");
    let names = temporary.split(';').filter_map(|file| file.split(':').next());
    let home = variables.get("innodb_data_home_dir").unwrap_or_default();
    found.extend(names.map(|name| (variables.place(&Path::new(home).join(name).to_string_lossy()), ITSELF)));
    let own = ["ddl.log", "lost+found", "ib_buffer_pool.incomplete", "#innodb_temp"];
    found.extend(own.map(|name| (variables.place(name), ITSELF)));
    found
}

/// Where a place is below the root; a place is named below the data directory as the server calls it.
fn relative(place: &Path, root: &Path, variables: &Variables) -> Option<PathBuf> {
    let parent = place.parent()?;
    let real = parent.canonicalize().unwrap_or_else(|_| parent.to_owned()).join(place.file_name()?);
    let named = variables.path("datadir").and_then(|data| Some(place.strip_prefix(data).ok()?.to_owned()));
    match real.strip_prefix(root) {
        Ok(relative) => Some(relative.to_owned()),
        // A data directory that is not there, as in a test of this function.
        Err(_) => named.filter(|_| variables.path("datadir").is_some_and(|data| data == root)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use globset::{GlobBuilder, GlobSetBuilder};

    use super::{super::variables::Variables, patterns};

    fn is_left_out(names: &[&str]) -> Vec<bool> {
        let variables = Variables::of(&[
            ("datadir", "/nowhere/data/"),
            ("log_bin_basename", "/nowhere/data/bin[log"),
            ("relay_log_basename", "/nowhere/data/relay"),
            ("log_error", "./host.err"),
            ("socket", "/run/mysqld.sock"),
            ("pid_file", "/nowhere/data/host.pid"),
            ("innodb_temp_data_file_path", "ibtmp1:12M;tmp2:5M:autoextend"),
            ("tmpdir", "/tmp"),
        ]);
        let mut set = GlobSetBuilder::new();
        for glob in patterns(&variables, Path::new("/nowhere/data")) {
            set.add(GlobBuilder::new(&glob).literal_separator(true).build().unwrap());
        }
        let set = set.build().unwrap();
        names.iter().map(|name| set.is_match(name)).collect()
    }

    #[test]
    fn logs_and_what_belongs_to_the_running_server_are_left_out() {
        let out = [
            "bin[log.000001",
            "bin[log.index",
            "bin[log.state",
            "relay.000003",
            "relay-east.000001",
            "relay.index",
            "host.err",
            "host.pid",
            "ibtmp1",
            "tmp2",
            "ddl.log",
            "lost+found",
        ];
        assert_eq!(is_left_out(&out), [true; 12], "{out:?}");
    }

    #[test]
    fn everything_else_is_kept() {
        let kept = [
            "ibdata1",
            "d/#sql-ib12.ibd",
            "#sql-alter-1-2.frm",
            "ddl_recovery.log",
            "ib_buffer_pool",
            "master.info",
            "relay-log.info",
            "d/bin[log.000001",
            "aria_log.00000001",
            "tc.log",
        ];
        assert_eq!(is_left_out(&kept), [false; 10], "{kept:?}");
    }
}
