//! Whose server it is, and its version, from what it says.
//!
//! Crash story: pure functions.

use model::server::{Flavor, ServerVersion};

/// The version of a server that says `version` (`@@version`) and `comment` (`@@version_comment`).
///
/// MariaDB may say `5.5.5-10.11.19-MariaDB` in its greeting, where old replicas want a small number; `@@version` is
/// without it, but both are understood. Percona Server counts as MySQL.
#[must_use]
pub fn parse(version: &str, comment: &str) -> ServerVersion {
    let says = |text: &str, name: &str| text.to_ascii_lowercase().contains(name);
    let is_mariadb = says(version, "mariadb") || says(comment, "mariadb");
    let flavor = if is_mariadb { Flavor::MariaDb } else { Flavor::MySql };
    let bare = if is_mariadb { version.strip_prefix("5.5.5-").unwrap_or(version) } else { version };
    ServerVersion { flavor, number: number(bare).unwrap_or((0, 0, 0)), text: bare.to_owned() }
}

/// The leading `major.minor.patch` of a text, also if something is written before it, as in the answer of
/// `mariadb-backup --version`.
#[must_use]
pub fn number(text: &str) -> Option<(u32, u32, u32)> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut parts = text[start..].split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) => Some((major, minor, patch)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use model::server::Flavor;

    use super::{number, parse};

    #[test]
    fn servers_are_told_apart() {
        let debian = parse("10.11.19-MariaDB-0+deb12u1-log", "Debian 12");
        assert_eq!((debian.flavor, debian.number), (Flavor::MariaDb, (10, 11, 19)));
        let greeting = parse("5.5.5-10.6.4-MariaDB", "mariadb.org binary distribution");
        assert_eq!((greeting.number, greeting.text.as_str()), ((10, 6, 4), "10.6.4-MariaDB"));
        let oracle = parse("8.0.36", "MySQL Community Server - GPL");
        assert_eq!((oracle.flavor, oracle.number), (Flavor::MySql, (8, 0, 36)));
        let percona = parse("8.0.35-27", "Percona Server (GPL), Release 27");
        assert_eq!((percona.flavor, percona.number), (Flavor::MySql, (8, 0, 35)));
        assert_eq!(parse("11.4.2-log", "MariaDB Server").flavor, Flavor::MariaDb);
    }

    #[test]
    fn a_number_is_found_behind_words() {
        let said = "mariadb-backup based on MariaDB server 10.11.19-MariaDB debian-linux-gnu (x86_64)";
        assert_eq!(number(said), Some((10, 11, 19)));
        assert_eq!(number("no digits"), None);
        assert_eq!(number("10.11"), None);
    }
}
