//! Which process a server is, found out and checked.
//!
//! The kernel tells who listens at a socket (`SO_PEERCRED`, unix(7)), the server in which file its id stands. Either may
//! mean another: a service manager that opened the socket, a stale file, another process namespace. So whoever is named
//! must have files of the data directory open, and must see the data directory that we see.
//!
//! Crash story: reads only.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use model::{
    inventory::ProcessSelector,
    server::{ServerAddress, WhoServes},
};
use os::process;
use rustix::net::sockopt::socket_peercred;

use super::{
    super::connect::{Connection, is_loopback},
    variables::Variables,
};

/// Whether the server is on this machine, as far as its address tells.
pub(super) fn is_near(address: &ServerAddress) -> bool {
    match address {
        ServerAddress::Socket(_) => true,
        ServerAddress::Tcp { host, .. } => is_loopback(host),
    }
}

/// The process, or why it is not known.
pub(super) fn who_serves(connection: &Connection, variables: &Variables) -> Result<WhoServes, String> {
    if !is_near(&connection.access().address) {
        return Err("it runs on another machine".to_owned());
    }
    let datadir = variables.path("datadir").ok_or("it does not say where its files are")?;
    let mut why = "neither its socket nor its pid file names it".to_owned();
    for pid in candidates(connection, variables) {
        match is_server(pid, &datadir) {
            Ok(()) => {}
            Err(reason) => {
                why = reason;
                continue;
            }
        }
        if let Some(process) = process::process_ref(pid) {
            let hold = process::facts(&ProcessSelector::Process(process));
            return Ok(WhoServes { process, hold });
        }
    }
    Err(why)
}

fn candidates(connection: &Connection, variables: &Variables) -> Vec<u32> {
    let mut pids = vec![];
    if matches!(connection.access().address, ServerAddress::Socket(_)) {
        let peer = socket_peercred(connection.socket()).ok();
        pids.extend(peer.and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok()));
    }
    let file = variables.path("pid_file").and_then(|path| fs::read_to_string(path).ok());
    pids.extend(file.and_then(|text| text.trim().parse::<u32>().ok()));
    pids.dedup();
    pids
}

/// Whether this process serves this data directory, which must be the one that we see.
fn is_server(pid: u32, datadir: &Path) -> Result<(), String> {
    let ours = fs::metadata(datadir).map_err(|error| format!("its data directory is not here: {error}"))?;
    let inside = PathBuf::from(format!("/proc/{pid}/root"));
    let theirs = inside.join(datadir.strip_prefix("/").unwrap_or(datadir));
    let theirs =
        fs::metadata(theirs).map_err(|error| format!("process {pid} cannot be looked at: {error}"))?;
    if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
        return Err(format!("process {pid} sees another {}: it runs in a container", datadir.display()));
    }
    let real = datadir.canonicalize().map_err(|error| format!("its data directory is not here: {error}"))?;
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    let open = open.map_err(|error| format!("the open files of process {pid} cannot be seen: {error}"))?;
    let mut links = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    if links.any(|link| link.starts_with(&real) || link.starts_with(datadir)) {
        return Ok(());
    }
    Err(format!("process {pid} has no file of {} open", datadir.display()))
}
