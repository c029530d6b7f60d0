//! One `[[application.database]]` block of a MariaDB or MySQL server.
//!
//! Crash story: pure functions, no effects.

use std::{path::PathBuf, time::Duration};

use crate::{
    id::AppName,
    inventory::{
        Archive, Hooks, Origin, PathRole, ServerDatabase,
        application::hook,
        error::InventoryError,
        parse::path,
        raw::{At, Section},
        settings::length_of,
        values::bytes,
    },
    pathtext,
    server::{Flavor, ServerAccess, ServerAddress},
};

/// Port of MariaDB and MySQL, <https://mariadb.com/kb/en/server-system-variables/#port>.
const PORT: u16 = 3306;

/// Where Debian's server listens.
const SOCKET: &str = "/run/mysqld/mysqld.sock";

/// A server, and where it is named.
pub(super) struct ParsedServer {
    pub server: ServerDatabase,
    pub origin: Origin,
}

/// Reads the block, after its `engine`.
pub(super) fn server(
    section: Section<'_, '_>,
    flavor: Flavor,
    application: Option<&AppName>,
) -> Option<ParsedServer> {
    let line = section.line();
    let address = address(&section);
    let file = |key: &'static str| section.text(key).and_then(|found| path(&section, key, found));
    let (password_file, option_file, tls_ca) = (file("password_file"), file("option_file"), file("tls_ca"));
    let user = section.text("user").map(|found| found.value.to_owned());
    let databases = databases(&section);
    let service = service(&section);
    let end_blocking_queries = section.flag("end_blocking_queries").unwrap_or(false);
    let archive =
        section.section("archive", "archive").map_or_else(Archive::default, |block| archive(block, true));
    let origin_file = section.page().file().to_owned();
    section.finish();
    let value = |at: Option<At<PathBuf>>| at.map(|at| at.value);
    let access = ServerAccess {
        flavor,
        address: address?,
        user,
        password_file: value(password_file),
        option_file: value(option_file),
        tls_ca: value(tls_ca),
    };
    let origin = Origin {
        role: PathRole::Server,
        application: application.cloned(),
        path: PathBuf::from(access.address.to_string()),
        file: origin_file,
        line,
    };
    let server = ServerDatabase { access, databases, service, end_blocking_queries, archive };
    Some(ParsedServer { server, origin })
}

fn address(section: &Section<'_, '_>) -> Option<ServerAddress> {
    let socket = section.text("socket");
    let host = section.text("host");
    let port = section.count("port");
    match (socket, host) {
        (Some(socket), None) if port.is_none() => {
            path(section, "socket", socket).map(|at| ServerAddress::Socket(at.value))
        }
        (None, Some(host)) => {
            let port = port.map_or(Ok(PORT), u16::try_from);
            let Ok(port) = port else {
                section.report(section.line(), "port is greater than 65535", "write the port it listens on");
                return None;
            };
            Some(ServerAddress::Tcp { host: host.value.to_owned(), port })
        }
        (Some(socket), _) => {
            let remedy = "keep socket for a server on this machine, host and port for another";
            section.report(socket.line, "both socket and host or port are given", remedy);
            None
        }
        (None, None) => {
            let remedy = format!("add socket = {SOCKET:?}, or host = \"…\" for one on another machine");
            section.report(section.line(), "neither socket nor host is given for the server", remedy);
            None
        }
    }
}

fn databases(section: &Section<'_, '_>) -> Vec<String> {
    let mut databases: Vec<String> = Vec::new();
    let listed = section.texts("databases");
    if section.has("databases") && listed.is_empty() {
        let remedy = "name them, or leave the key out: then the application owns the whole server";
        section.report(section.line(), "databases names none", remedy);
    }
    for At { value, line } in listed {
        let own = ["information_schema", "performance_schema", "mysql", "sys"];
        if own.contains(&value.to_ascii_lowercase().as_str()) {
            let what = format!("{value} belongs to the server, not to an application");
            section.report(line, what, "leave databases out to back up the whole server");
        } else if value.is_empty() || value.len() > 64 || value.contains(['\0', '/']) {
            section.report(line, format!("{value:?} is no name of a database"), "correct it");
        } else if databases.iter().any(|known| known == value) {
            section.report(line, format!("database {value} is listed twice"), "remove one of the two");
        } else {
            databases.push(value.to_owned());
        }
    }
    databases
}

/// How the log of a database is archived; only a server can wait for it.
pub(super) fn archive(section: Section<'_, '_>, is_server: bool) -> Archive {
    let mut archive = Archive::default();
    if let Some(found) = section.text("segment") {
        match bytes(found.value) {
            Some(size) if SEGMENTS.contains(&size.0) => archive.segment = size,
            _ => section.report(
                found.line,
                format!("segment = {:?} is no size of a segment", found.value),
                "write a size from 1MiB to 1GiB, such as \"16MiB\"",
            ),
        }
    }
    let length = |key: &'static str, example, into: &mut Duration| {
        if let Some(length) = section.text(key).and_then(|found| length_of(&section, key, found, example)) {
            *into = length;
        }
    };
    length("rotate", "\"1h\"", &mut archive.rotate);
    length("store_every", "\"60s\"", &mut archive.store_every);
    if is_server {
        archive.acknowledge = section.flag("acknowledge").unwrap_or(false);
    }
    section.finish();
    archive
}

/// Segments are not smaller or larger than these bytes.
const SEGMENTS: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

/// How the server itself is stopped and started, for restores in place.
fn service(section: &Section<'_, '_>) -> Option<Hooks> {
    let stop = section.section("stop", "stop").and_then(hook);
    let start = section.section("start", "start").and_then(hook);
    if section.has("stop") != section.has("start") {
        let remedy =
            "add both: stop = { run = \"systemctl stop mariadb\", timeout = \"5m\" }, and start likewise";
        section.report(section.line(), "a server needs both stop and start, or neither", remedy);
    }
    Some(Hooks { stop: stop?, start: start? })
}

/// Two applications that claim one server. One may own it while others name their databases on it.
pub(super) fn collision(
    (ours, our_origin): (&ServerDatabase, &Origin),
    (theirs, their_origin): (&ServerDatabase, &Origin),
) -> Option<InventoryError> {
    if ours.access.address != theirs.access.address {
        return None;
    }
    let both = ours.databases.iter().find(|name| theirs.databases.contains(name));
    let what = match both {
        Some(name) => format!("database {name} of server {}", ours.access.address),
        None if ours.databases.is_empty() && theirs.databases.is_empty() => {
            format!("server {}", ours.access.address)
        }
        None => return None,
    };
    let place = format!("{}:{}", pathtext::show(&their_origin.file), their_origin.line);
    Some(InventoryError {
        file: our_origin.file.clone(),
        line: our_origin.line,
        what: format!("{what} is claimed already at {place}"),
        remedy: "name the databases of each application with databases = [\"…\"]; one may own the server"
            .to_owned(),
    })
}
