//! A new, empty, private server, to load dumps into.
//!
//! Crash story: its data directory lies in a directory of the caller's, which removes it.

use std::{ffi::OsString, io, os::unix::fs::lchown, path::Path, sync::Arc, time::Duration};

use model::{
    port::{Failure, FailureKind, Journal},
    server::{Flavor, ServerRecord},
};
use os::command::Command;

use super::{copy::cannot, options, private::Private, program};

/// The account of Debian's and everybody else's packages.
const ACCOUNT: &str = "mysql";

/// Makes a data directory in `dir`, which must be empty and closed to others, and starts a fenced
/// server on it, with the settings of `like` that give data another meaning.
///
/// # Errors
/// If no fitting server is installed, or it does not start.
pub fn fresh(
    dir: &Path,
    like: &ServerRecord,
    journal: &Arc<dyn Journal>,
    within: Duration,
) -> Result<Private, Failure> {
    if like.version.flavor == Flavor::MySql {
        let what = "a MySQL dump can only be loaded into a MySQL server, which is not started here by itself";
        return Err(Failure::new(FailureKind::Refused, what, "load it into a server of your own"));
    }
    let install = program::client(like, ["mariadb-install-db", "mysql_install_db"])?;
    let data = dir.join("data");
    std::fs::create_dir(&data).map_err(|e| cannot("made", &data, e))?;
    let is_root = rustix::process::geteuid().is_root();
    let mut command = Command::tool(install).arg("--no-defaults").arg(joined("--datadir=", &data));
    // A starting server removes every `#sql*` file in its directory for temporary tables: in `/tmp` also those of
    // others.
    let temporary = dir.join("tmp");
    std::fs::create_dir(&temporary).map_err(|e| cannot("made", &temporary, e))?;
    command = command.arg(joined("--tmpdir=", &temporary));
    command = command.args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
    command = command.args(options::arguments(&options::values(like)));
    if is_root {
        command = command.arg("--user=root");
    }
    let outcome = command.timeout(within).run().map_err(|error| {
        Failure::new(FailureKind::Other, "no new data directory can be made", "").because(error)
    })?;
    if !outcome.is_success() {
        let what = format!("no new data directory can be made: {}", outcome.in_short());
        return Err(Failure::new(FailureKind::Other, what, ""));
    }
    if is_root && let Some(account) = account() {
        give(&data, account).map_err(|e| cannot("given away", &data, e))?;
    }
    Private::start_on(&data, like, journal, within)
}

/// Gives a tree that nobody else can enter to an account.
fn give(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), (user, group))?;
        }
    }
    lchown(path, Some(user), Some(group))
}

fn joined(name: &str, path: &Path) -> OsString {
    let mut text = OsString::from(name);
    text.push(path);
    text
}

/// User and group of the server's account, from `/etc/passwd`.
fn account() -> Option<(u32, u32)> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(ACCOUNT))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
