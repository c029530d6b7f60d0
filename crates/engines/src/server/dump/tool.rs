//! Running the vendor's programs: with credentials from a file that only its owner reads, ended when we die.
//!
//! Crash story: a program is journalled before it begins ([`Undo::End`]), so the watchdog ends it if we die; the file
//! with the credentials lies in a staging directory, which is journalled too.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use model::{
    pathtext,
    port::{Failure, FailureKind, Journal},
    server::{Flavor, ServerAccess, ServerAddress},
    undo::{ProcessRef, Ticket, Undo},
};
use os::command::{Command, CommandError, Outcome};

use super::super::options::credentials;

/// Nothing that these programs do takes longer.
pub(crate) const VERY_LONG: Duration = Duration::from_secs(3 * 24 * 3600);

/// Writes an option file for the vendor's clients to `dir`, which must be private; `more` is appended as it is.
///
/// # Errors
/// If the credentials cannot be read or the file cannot be written.
pub(crate) fn option_file(access: &ServerAccess, dir: &Path, more: &str) -> Result<PathBuf, Failure> {
    let found = credentials(access)?;
    let mut text = String::from("[client]\n");
    let mut set = |name: &str, value: &str| text.push_str(&format!("{name}={}\n", quoted(value)));
    match &access.address {
        ServerAddress::Socket(path) => set("socket", &path.to_string_lossy()),
        ServerAddress::Tcp { host, port } => {
            set("host", host);
            set("port", &port.to_string());
            set("protocol", "tcp");
        }
    }
    if let Some(user) = &found.user {
        set("user", user);
    }
    if let Some(password) = &found.password {
        set("password", password.reveal());
    }
    if let Some(ca) = &found.tls_ca {
        set("ssl-ca", &ca.to_string_lossy());
        if access.flavor == Flavor::MariaDb {
            text.push_str("ssl-verify-server-cert\n");
        }
    }
    text.push_str(more);
    let path = dir.join("options.cnf");
    let written = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
    written.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
        Failure::new(FailureKind::Other, format!("{} cannot be written", pathtext::show(&path)), "")
            .because(error)
    })?;
    Ok(path)
}

/// A value of an option file, as `my_default.c` reads it.
pub(crate) fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '\\' | '"' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            _ => text.push(c),
        }
    }
    text.push('"');
    text
}

/// Where it stands that a program is to be ended if we die.
pub(crate) enum Entry<'a> {
    /// In an entry of its own, which is refused once somebody has asked us to stop.
    Own(&'a Arc<dyn Journal>),
    /// In an entry that is there already and is never refused.
    Kept(&'a Arc<dyn Journal>, Ticket),
    /// Nowhere: it undoes an entry, which stays until that is done and may be done twice.
    Undoing,
}

/// Runs the first of these programs that there is, to its end.
///
/// # Errors
/// If none is installed, or it cannot be followed. A status other than 0 is an outcome.
pub(crate) fn run(
    journal: &Arc<dyn Journal>,
    programs: &[&str],
    set: impl Fn(Command) -> Command,
) -> Result<Outcome, Failure> {
    run_under(&Entry::Own(journal), programs, set).map(|(outcome, _)| outcome)
}

/// The same, and which process it was.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_under(
    entry: &Entry<'_>,
    programs: &[&str],
    set: impl Fn(Command) -> Command,
) -> Result<(Outcome, ProcessRef), Failure> {
    let Some(program) = programs.iter().find_map(|name| installed(name)) else {
        let what = format!("{} is not installed", programs.join(" or "));
        return Err(Failure::new(FailureKind::Refused, what, "install the client programs of the server"));
    };
    let cannot = |error: CommandError| {
        Failure::new(FailureKind::Other, format!("{} cannot be run", program.display()), "").because(error)
    };
    let command = set(Command::tool(&program).timeout(VERY_LONG));
    let mut running = command.gated().start().map_err(cannot)?;
    let process = running.process();
    let own = match entry {
        Entry::Own(journal) => Some((journal, journal.intend(Undo::End { process }, None)?)),
        Entry::Kept(journal, ticket) => {
            journal.amend(*ticket, Undo::End { process }, None)?;
            None
        }
        Entry::Undoing => None,
    };
    let ended = running.open_gate().and_then(|()| running.wait());
    if let Some((journal, ticket)) = own {
        journal.done(ticket);
    }
    Ok((ended.map_err(cannot)?, process))
}

/// Where a program is, by `PATH`.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_password_cannot_leave_its_quotes() {
        assert_eq!(quoted("a#b\"c\\d\n"), "\"a#b\\\"c\\\\d\\n\"");
    }
}
