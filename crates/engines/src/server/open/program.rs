//! The server's programs on this machine, and whether their version fits.
//!
//! Crash story: starts programs that only tell their version.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use model::{
    port::{Failure, FailureKind},
    server::{Flavor, ServerRecord},
};
use os::command::Command;

/// Where distributions put servers, beside `PATH`.
const PLACES: [&str; 4] = ["/usr/sbin", "/usr/libexec", "/usr/local/sbin", "/usr/local/mysql/bin"];

/// A server program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Major, minor, patch.
    pub number: (u32, u32, u32),
}

impl Program {
    /// Whether it is of the same series, so that it can recover what the other left after a crash: the redo log
    /// is not read by another series.
    pub fn is_of_series(&self, record: &ServerRecord) -> bool {
        let (major, minor, _) = record.version.number;
        (self.number.0, self.number.1) == (major, minor)
    }
}

/// The server program that opens copies of this record.
///
/// # Errors
/// [`FailureKind::Refused`] if there is none on this machine, or only one that is older.
pub(super) fn server(record: &ServerRecord) -> Result<Program, Failure> {
    let flavor = record.version.flavor;
    let names: &[&str] = match flavor {
        Flavor::MariaDb => &["mariadbd", "mysqld"],
        Flavor::MySql => &["mysqld"],
    };
    let mut other = None;
    for path in names.iter().flat_map(|name| candidates(record, name)) {
        match version(&path) {
            Some((found, number)) if found == flavor => {
                let (major, minor, _) = record.version.number;
                if (number.0, number.1) < (major, minor) {
                    other = Some(format!("{} is older: {}.{}", path.display(), number.0, number.1));
                    continue;
                }
                return Ok(Program { path, number });
            }
            Some((found, _)) => other = Some(format!("{} is {found}", path.display())),
            None => {}
        }
    }
    let because = other.map(|other| format!(" ({other})")).unwrap_or_default();
    let (major, minor, _) = record.version.number;
    let what = format!("no {flavor} server of version {major}.{minor} or later is installed here{because}");
    let remedy = match flavor {
        Flavor::MariaDb => "install mariadb-server of that series, or do it on a machine that has it",
        Flavor::MySql => "install MySQL's server of that series, or do it on a machine that has it",
    };
    Err(Failure::new(FailureKind::Refused, what, remedy))
}

/// A client program, such as `mariadb-check`, of which older installations have another name.
///
/// # Errors
/// [`FailureKind::Refused`] if it is not installed.
pub(super) fn client(record: &ServerRecord, names: [&str; 2]) -> Result<PathBuf, Failure> {
    let found = names.iter().flat_map(|name| candidates(record, name)).next();
    found.ok_or_else(|| {
        let what = format!("{} is not installed here", names[0]);
        Failure::new(FailureKind::Refused, what, "install mariadb-client")
    })
}

fn candidates(record: &ServerRecord, name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    dirs.extend(PLACES.map(PathBuf::from));
    if let Some(base) = record.settings.get("basedir").filter(|base| base.starts_with('/')) {
        dirs.extend(["bin", "sbin", "libexec"].map(|dir| Path::new(base).join(dir)));
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for file in dirs.into_iter().map(|dir| dir.join(name)).filter(|file| file.is_file()) {
        if !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

/// `mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)`.
fn version(program: &Path) -> Option<(Flavor, (u32, u32, u32))> {
    let asked = Command::tool(program).args(["--no-defaults", "--version"]).timeout(Duration::from_secs(20));
    let outcome = asked.run().ok().filter(os::command::Outcome::is_success)?;
    parse(&String::from_utf8_lossy(&outcome.stdout))
}

fn parse(text: &str) -> Option<(Flavor, (u32, u32, u32))> {
    let ver = text.split_once("Ver ")?.1.split_whitespace().next()?;
    let flavor = if text.contains("MariaDB") { Flavor::MariaDb } else { Flavor::MySql };
    let mut numbers = ver.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    Some((flavor, (numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use model::server::Flavor;

    use super::parse;

    #[test]
    fn versions_are_understood() {
        let maria = "mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)";
        assert_eq!(parse(maria), Some((Flavor::MariaDb, (10, 11, 19))));
        let my = "/usr/sbin/mysqld  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)";
        assert_eq!(parse(my), Some((Flavor::MySql, (8, 0, 36))));
        assert_eq!(parse("busybox"), None);
    }
}
