//! Which privileges the account has, and which it lacks, with the statement that gives them.
//!
//! What the server grants is read from its own statements, `SHOW GRANTS`, roles included; nothing is tried out.
//!
//! Crash story: reads only.

use std::collections::BTreeSet;

use model::server::{Flavor, Privilege, ServerVersion};

use super::super::{PATIENCE, connect::Connection, error::ServerError};

/// What the account may be asked to do.
pub(super) struct Needs<'a> {
    pub(super) version: &'a ServerVersion,
    /// It writes a binary log.
    pub(super) binlog: bool,
    /// A global variable must be raised.
    pub(super) raise: bool,
    /// Statements in the way may be ended.
    pub(super) end_queries: bool,
    /// The databases that are dumped in any case; none for a whole server.
    pub(super) databases: &'a [String],
}

/// A privilege, the names under which it may be granted, and what for.
struct Need {
    names: &'static [&'static str],
    for_what: &'static str,
    /// On each database to be dumped, not on all.
    on_databases: bool,
}

fn needed(needs: &Needs<'_>) -> Vec<Need> {
    let global = |names, for_what| Need { names, for_what, on_databases: false };
    let mut needed = vec![
        global(&["RELOAD"], "locking the server and flushing its logs"),
        global(&["PROCESS"], "seeing who is in the way of a lock"),
    ];
    match needs.version.flavor {
        Flavor::MariaDb => needed.extend(of_mariadb(needs)),
        Flavor::MySql => {
            needed.push(global(&["BACKUP_ADMIN"], "LOCK INSTANCE FOR BACKUP"));
            needed.push(global(&["REPLICATION CLIENT", "SUPER"], "reading the position of its binary log"));
            if needs.raise {
                needed.push(global(&["SYSTEM_VARIABLES_ADMIN", "SUPER"], RAISING));
            }
            if needs.end_queries {
                needed.push(global(&["CONNECTION_ADMIN", "SUPER"], ENDING));
            }
        }
    }
    let on_databases = !needs.databases.is_empty();
    needed.push(Need { names: &["SELECT"], for_what: "seeing its tables, and dumping them", on_databases });
    if on_databases {
        for names in [&["SHOW VIEW"], &["TRIGGER"], &["EVENT"]] {
            needed.push(Need { names, for_what: "dumping its databases", on_databases });
        }
    }
    needed
}

const RAISING: &str = "raising innodb_flush_log_at_trx_commit for the cut";
const ENDING: &str = "ending the statements that are in the way of a lock";

/// MariaDB 10.5 cut `SUPER` and `REPLICATION CLIENT` into parts; `SHOW GRANTS` writes one of the names of a part.
fn of_mariadb(needs: &Needs<'_>) -> Vec<Need> {
    let global = |names, for_what| Need { names, for_what, on_databases: false };
    let is_cut = needs.version.number >= (10, 5, 9);
    let mut needed = vec![];
    if needs.binlog {
        let names: &[&str] =
            if is_cut { &["BINLOG MONITOR", "REPLICATION CLIENT"] } else { &["REPLICATION CLIENT", "SUPER"] };
        needed.push(global(names, "reading the position of its binary log"));
    }
    let names: &[&str] =
        if is_cut { &["REPLICA MONITOR", "SLAVE MONITOR"] } else { &["REPLICATION CLIENT", "SUPER"] };
    needed.push(global(names, "reading what it replicates"));
    if needs.raise {
        needed.push(global(&["SUPER"], RAISING));
    }
    if needs.end_queries {
        let names: &[&str] = if is_cut { &["CONNECTION ADMIN"] } else { &["SUPER"] };
        needed.push(global(names, ENDING));
    }
    needed
}

/// What the account lacks of what is needed.
pub(super) fn missing(connection: &mut Connection, needs: &Needs<'_>) -> Result<Vec<Privilege>, ServerError> {
    let granted = Granted::read(connection)?;
    let account = connection.value("SELECT CURRENT_USER()", PATIENCE)?.unwrap_or_default();
    Ok(lacking(&granted, needs, &account))
}

fn lacking(granted: &Granted, needs: &Needs<'_>, account: &str) -> Vec<Privilege> {
    let to = quoted_account(account);
    let mut missing = vec![];
    for Need { names, for_what, on_databases } in needed(needs) {
        let places: Vec<&str> =
            if on_databases { needs.databases.iter().map(String::as_str).collect() } else { vec!["*"] };
        for place in places {
            if names.iter().any(|name| granted.has(name, place)) {
                continue;
            }
            let name = names.first().copied().unwrap_or_default();
            let on = if place == "*" { "*.*".to_owned() } else { format!("{}.*", backticked(place)) };
            missing.push(Privilege {
                name: if place == "*" { name.to_owned() } else { format!("{name} on {place}") },
                for_what: for_what.to_owned(),
                grant: format!("GRANT {name} ON {on} TO {to}"),
            });
        }
    }
    missing
}

/// `name@host` with both parts quoted; the host stands behind the last `@`.
fn quoted_account(account: &str) -> String {
    let (name, host) = account.rsplit_once('@').unwrap_or((account, "%"));
    format!("{}@{}", backticked(name), backticked(host))
}

fn backticked(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// What `SHOW GRANTS` says: privileges, each with `*` or the name (or pattern) of a database.
#[derive(Debug, Default)]
struct Granted(BTreeSet<(String, String)>);

impl Granted {
    fn read(connection: &mut Connection) -> Result<Self, ServerError> {
        let mut granted = Self::default();
        for row in connection.rows("SHOW GRANTS FOR CURRENT_USER()", PATIENCE)? {
            granted.add(&row.text(0));
        }
        let role = connection.value("SELECT CURRENT_ROLE()", PATIENCE).ok().flatten();
        let of_role = match (connection.version().flavor, role) {
            (_, None) => None,
            (Flavor::MariaDb, Some(_)) => Some("SHOW GRANTS FOR CURRENT_ROLE".to_owned()),
            (Flavor::MySql, Some(role)) if role == "NONE" => None,
            (Flavor::MySql, Some(roles)) => Some(format!("SHOW GRANTS FOR CURRENT_USER() USING {roles}")),
        };
        if let Some(sql) = of_role {
            for row in connection.rows(&sql, PATIENCE)? {
                granted.add(&row.text(0));
            }
        }
        Ok(granted)
    }

    /// Takes a statement: `GRANT RELOAD, PROCESS ON *.* TO …`. What is granted on tables, columns and routines does
    /// not help, nor do roles that are not active.
    fn add(&mut self, grant: &str) {
        let Some(rest) = grant.strip_prefix("GRANT ") else { return };
        let Some((privileges, rest)) = rest.split_once(" ON ") else { return };
        let place = rest.split_once(" TO ").map_or(rest, |(place, _)| place);
        let Some(place) = place.strip_suffix(".*") else { return };
        let place = place.trim_matches('`').replace("``", "`").replace("\\_", "_").replace("\\%", "%");
        for privilege in privileges.split(',') {
            self.0.insert((privilege.trim().to_ascii_uppercase(), place.clone()));
        }
    }

    fn has(&self, privilege: &str, place: &str) -> bool {
        let on = |place: &str| {
            [privilege, "ALL PRIVILEGES", "ALL"]
                .iter()
                .any(|p| self.0.contains(&((*p).to_owned(), place.to_owned())))
        };
        on("*") || on(place)
    }
}

#[cfg(test)]
mod tests {
    use super::{Granted, Needs, lacking};
    use crate::server::parse_version;

    fn granted(statements: &[&str]) -> Granted {
        let mut granted = Granted::default();
        statements.iter().for_each(|grant| granted.add(grant));
        granted
    }

    fn names(statements: &[&str], binlog: bool, raise: bool, databases: &[&str]) -> Vec<String> {
        let version = parse_version("10.11.19-MariaDB", "");
        let databases: Vec<String> = databases.iter().map(|name| (*name).to_owned()).collect();
        let needs = Needs { version: &version, binlog, raise, end_queries: false, databases: &databases };
        lacking(&granted(statements), &needs, "backup@localhost").into_iter().map(|p| p.name).collect()
    }

    #[test]
    fn root_lacks_nothing() {
        let root = [
            "GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` IDENTIFIED VIA unix_socket WITH GRANT OPTION",
        ];
        assert!(names(&root, true, true, &["d"]).is_empty());
    }

    #[test]
    fn what_is_missing_is_named_with_its_grant() {
        let some = [
            "GRANT RELOAD, PROCESS ON *.* TO `backup`@`localhost`",
            "GRANT SELECT ON `d\\_1`.* TO `backup`@`localhost`",
        ];
        assert_eq!(names(&some, false, false, &[]), ["REPLICA MONITOR", "SELECT"]);
        assert_eq!(names(&some, true, true, &[]), ["BINLOG MONITOR", "REPLICA MONITOR", "SUPER", "SELECT"]);
        let dump = names(&some, false, false, &["d_1", "e"]);
        assert_eq!(dump[1..4], ["SELECT on e", "SHOW VIEW on d_1", "SHOW VIEW on e"]);
        let version = parse_version("10.11.19-MariaDB", "");
        let needs =
            Needs { version: &version, binlog: false, raise: false, end_queries: false, databases: &[] };
        let first = &lacking(&granted(&[]), &needs, "backup@%")[0];
        assert_eq!(first.grant, "GRANT RELOAD ON *.* TO `backup`@`%`");
    }

    #[test]
    fn names_differ_between_versions_and_flavors() {
        let monitor = ["GRANT RELOAD, PROCESS, BINLOG MONITOR, SLAVE MONITOR, SELECT ON *.* TO `b`@`%`"];
        assert!(names(&monitor, true, false, &[]).is_empty());
        let version = parse_version("8.0.36", "MySQL Community Server");
        let needs =
            Needs { version: &version, binlog: true, raise: false, end_queries: true, databases: &[] };
        let some = granted(&[
            "GRANT RELOAD, PROCESS, SELECT ON *.* TO `b`@`%`",
            "GRANT BACKUP_ADMIN ON *.* TO `b`@`%`",
        ]);
        let lacks: Vec<String> = lacking(&some, &needs, "b@%").into_iter().map(|p| p.name).collect();
        assert_eq!(lacks, ["REPLICATION CLIENT", "CONNECTION_ADMIN"]);
    }
}
