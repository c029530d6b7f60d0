//! Account and password, from the files that people already have.
//!
//! Option files are read as MariaDB's own clients read them: groups, `!include`, `!includedir`, comments, quotes and
//! escapes, the last word counting (`mysys/my_default.c` of the server's source).
//!
//! Crash story: reads only. What is read stays in memory; nothing here shows it: there is no `Debug` and no `Display`
//! of a password, and errors name files and lines only.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use model::server::ServerAccess;

use super::error::ServerError;

/// Groups that concern a client, as `mariadb` and `mysql` read them.
const GROUPS: [&str; 6] =
    ["client", "client-server", "client-mariadb", "mysql", "mariadb-client", "stillpoint"];
/// How deep files may include files; `my_default.c` has the same limit.
const DEPTH: usize = 10;
/// Nobody has longer option files.
const LONGEST: u64 = 1 << 20;

/// A password. It cannot be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The password, for the handshake, or for a file that a program of the server's is given.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// As whom to log in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The account.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Authorities for the server's certificate.
    pub tls_ca: Option<PathBuf>,
    /// `socket` of an option file.
    pub socket: Option<PathBuf>,
    /// `host` of an option file.
    pub host: Option<String>,
    /// `port` of an option file.
    pub port: Option<u16>,
}

/// Reads what an access names. What the inventory says counts more than an option file; without a name it is that of
/// the system user who runs this, which is what `unix_socket` lets in.
///
/// # Errors
/// If a file cannot be read or understood, or others can read the password in it.
pub fn credentials(access: &ServerAccess) -> Result<Credentials, ServerError> {
    let mut found = match &access.option_file {
        Some(path) => read_option_file(path)?,
        None => Credentials::default(),
    };
    if let Some(path) = &access.password_file {
        found.password = Some(read_password(path)?);
    }
    if let Some(user) = &access.user {
        found.user = Some(user.clone());
    }
    if found.user.is_none() {
        found.user = own_name();
    }
    if let Some(ca) = &access.tls_ca {
        found.tls_ca = Some(ca.clone());
    }
    Ok(found)
}

/// Reads an option file and all that it includes.
///
/// # Errors
/// See [`credentials`].
pub fn read_option_file(path: &Path) -> Result<Credentials, ServerError> {
    let mut found = Credentials::default();
    include(path, 0, &mut found)?;
    Ok(found)
}

fn include(path: &Path, depth: usize, into: &mut Credentials) -> Result<(), ServerError> {
    if depth > DEPTH {
        return Err(wrong(path, "is included in a circle, or too deep", "end the circle of !include lines"));
    }
    let (text, meta) = read(path)?;
    let (mut group, mut has_password) = (None, false);
    for (number, line) in text.lines().enumerate() {
        let said = |what: &str| {
            let what = format!("line {} {what}", number + 1);
            wrong(path, &format!("is not understood: {what}"), "correct that line")
        };
        match Line::parse(line).map_err(said)? {
            Line::Nothing => {}
            Line::Group(name) => group = Some(name),
            Line::Include(other) => include(&beside(path, &other), depth + 1, into)?,
            Line::IncludeDir(dir) => include_all(&beside(path, &dir), depth + 1, into)?,
            Line::Option(name, value) => {
                let Some(group) = &group else { return Err(said("stands before the first [group]")) };
                has_password |= name.ends_with("password") && value.is_some();
                if GROUPS.contains(&group.as_str()) {
                    take(into, &name, value).map_err(said)?;
                }
            }
        }
    }
    if has_password { refuse_exposed(path, &meta) } else { Ok(()) }
}

fn include_all(dir: &Path, depth: usize, into: &mut Credentials) -> Result<(), ServerError> {
    let listed = fs::read_dir(dir).and_then(|names| names.collect::<io::Result<Vec<_>>>());
    let entries = listed.map_err(|error| unreadable(dir, error))?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "cnf"));
    files.sort();
    files.iter().try_for_each(|path| include(path, depth, into))
}

fn beside(path: &Path, named: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).join(named)
}

fn take(into: &mut Credentials, name: &str, value: Option<String>) -> Result<(), &'static str> {
    let name = name.replace('_', "-");
    let name = name.strip_prefix("loose-").unwrap_or(&name);
    match (name, value) {
        ("user", Some(user)) => into.user = Some(user),
        ("password", Some(password)) => into.password = Some(Secret(password)),
        ("socket", Some(path)) => into.socket = Some(path.into()),
        ("host", Some(host)) => into.host = Some(host),
        ("ssl-ca", Some(path)) => into.tls_ca = Some(path.into()),
        ("port", Some(port)) => into.port = Some(port.parse().map_err(|_| "has a port that is no number")?),
        _ => {}
    }
    Ok(())
}

/// What a line of an option file says.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Nothing,
    Group(String),
    Include(String),
    IncludeDir(String),
    Option(String, Option<String>),
}

impl Line {
    fn parse(line: &str) -> Result<Self, &'static str> {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            return Ok(Self::Nothing);
        }
        if let Some(directive) = line.strip_prefix('!') {
            return Ok(Self::directive(directive.trim_start()));
        }
        if let Some(rest) = line.strip_prefix('[') {
            let (name, _) = rest.split_once(']').ok_or("has no closing bracket")?;
            return Ok(Self::Group(name.trim().to_owned()));
        }
        let line = without_comment(line);
        Ok(match line.split_once('=') {
            Some((name, value)) => Self::Option(name.trim_end().to_owned(), Some(unquoted(value.trim()))),
            None => Self::Option(line.trim_end().to_owned(), None),
        })
    }

    fn directive(directive: &str) -> Self {
        match directive.split_once(|c: char| c.is_ascii_whitespace()) {
            Some(("include", file)) => Self::Include(file.trim().to_owned()),
            Some(("includedir", dir)) => Self::IncludeDir(dir.trim().to_owned()),
            _ => Self::Nothing,
        }
    }
}

/// The line up to a `#` that is not in quotes.
fn without_comment(line: &str) -> &str {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in line.char_indices() {
        if matches!(c, '\'' | '"') && !escaped {
            match quote {
                None => quote = Some(c),
                Some(open) if open == c => quote = None,
                Some(_) => {}
            }
        }
        if quote.is_none() && c == '#' {
            return &line[..at];
        }
        escaped = quote.is_some() && c == '\\' && !escaped;
    }
    line
}

/// The value without the quotes around it, its escapes resolved.
fn unquoted(value: &str) -> String {
    let inner = ['"', '\''].iter().find_map(|q| {
        let rest = value.strip_prefix(*q)?;
        rest.strip_suffix(*q)
    });
    let mut text = String::new();
    let mut rest = inner.unwrap_or(value).chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\\' || rest.peek().is_none() {
            text.push(c);
            continue;
        }
        match rest.next() {
            Some('n') => text.push('\n'),
            Some('t') => text.push('\t'),
            Some('r') => text.push('\r'),
            Some('b') => text.push('\u{8}'),
            Some('s') => text.push(' '),
            Some(known @ ('"' | '\'' | '\\')) => text.push(known),
            Some(other) => text.extend(['\\', other]),
            None => {}
        }
    }
    text
}

fn read_password(path: &Path) -> Result<Secret, ServerError> {
    let (text, meta) = read(path)?;
    refuse_exposed(path, &meta)?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Secret(line.to_owned())),
        _ => Err(wrong(path, "holds no password", "write the password into its first line")),
    }
}

fn read(path: &Path) -> Result<(String, fs::Metadata), ServerError> {
    let read = || -> io::Result<(String, fs::Metadata)> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes)?;
        // The message of the error would quote what is not UTF-8.
        let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
        Ok((text, meta))
    };
    read().map_err(|error| unreadable(path, error))
}

/// Whoever else can read it could log in as the backup's account.
fn refuse_exposed(path: &Path, meta: &fs::Metadata) -> Result<(), ServerError> {
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        let remedy = format!("chmod 600 {}", path.display());
        return Err(wrong(path, "holds a password and others can read it", &remedy));
    }
    Ok(())
}

fn unreadable(path: &Path, source: io::Error) -> ServerError {
    let remedy = "correct its name in the inventory, or run as a user who may read it".into();
    ServerError::File { path: path.to_owned(), what: "cannot be read".into(), remedy, source: Some(source) }
}

fn wrong(path: &Path, what: &str, remedy: &str) -> ServerError {
    ServerError::File { path: path.to_owned(), what: what.into(), remedy: remedy.into(), source: None }
}

/// The name of the user who runs this, from `/etc/passwd` (passwd(5)), or what the environment says.
fn own_name() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let listed = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    listed.or_else(|| std::env::var("USER").ok())
}

#[cfg(test)]
mod tests;
