//! Names that cannot be mistaken for one another.
//!
//! Crash story: plain values, no effects.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A text that is not a valid id of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {rule}")]
pub struct IdError {
    /// What it should have been.
    pub kind: &'static str,
    /// What it was.
    pub text: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes a text as this kind of id.
            ///
            /// # Errors
            /// If the text breaks the rule for this kind of id.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) {
                    Ok(Self(text))
                } else {
                    Err(IdError { kind: $kind, text, rule: $rule })
                }
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && !text.starts_with(['-', '.'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_relpath(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 512
        && text
            .split('/')
            .all(|part| is_word(part) && !["repository", "history", "logs", "state"].contains(&part))
}

fn is_hex(text: &str, lengths: &[usize]) -> bool {
    lengths.contains(&text.len()) && text.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}

text_id!(
    /// The short name of an application, for people and history files.
    AppName, "application name", "1 to 64 of a-z A-Z 0-9 . _ -, not beginning with . or -", is_word
);
text_id!(
    /// A server's name, as it stands in paths of pulled tiers.
    ServerName, "server name", "1 to 64 of a-z A-Z 0-9 . _ -, not beginning with . or -", is_word
);
text_id!(
    /// A virtual machine's name; `host` where there is none.
    VmName, "VM name", "1 to 64 of a-z A-Z 0-9 . _ -, not beginning with . or -", is_word
);
text_id!(
    /// The identity of an application: virtual host, then path (`demo.softxs.ch/hydro`). It stays when the
    /// application moves to another VM.
    Relpath,
    "relpath",
    "components of a-z A-Z 0-9 . _ - joined by /, none of them repository, history, logs or state",
    is_relpath
);
text_id!(
    /// One cut: its instant in UTC and 6 random hexadecimal digits, `20261120T031500Z-5be2a1`.
    CutId, "cut id", "yyyymmddThhmmssZ-hhhhhh", |t| {
        t.len() == 23 && t.is_char_boundary(17) && t[..17].ends_with("Z-") && is_hex(&t[17..], &[6])
    }
);
text_id!(
    /// A stretch of a log without a hole, named like a cut: when it was begun and 6 random hexadecimal digits.
    EpochId, "epoch id", "yyyymmddThhmmssZ-hhhhhh", |t| {
        t.len() == 23 && t.is_char_boundary(17) && t[..17].ends_with("Z-") && is_hex(&t[17..], &[6])
    }
);
text_id!(
    /// A stored backup: the id of its restic snapshot, 64 hexadecimal digits.
    BackupId, "backup id", "64 hexadecimal digits", |t| is_hex(t, &[64])
);
text_id!(
    /// One run of the program, under which its journal is kept: the time of its start and its process id.
    RunId, "run id", "1 to 64 of a-z A-Z 0-9 . _ -", is_word
);

impl BackupId {
    /// The first 8 digits, as restic shows them.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl CutId {
    /// The id of a cut taken at `time`, told apart from others of the same second by `random`.
    #[must_use]
    pub fn at(time: jiff::Timestamp, random: [u8; 3]) -> Self {
        let stamp = time.strftime("%Y%m%dT%H%M%SZ");
        Self(format!("{stamp}-{:02x}{:02x}{:02x}", random[0], random[1], random[2]))
    }
}

impl EpochId {
    /// The id of an epoch begun at `time`, told apart from others of the same second by `random`.
    #[must_use]
    pub fn at(time: jiff::Timestamp, random: [u8; 3]) -> Self {
        let stamp = time.strftime("%Y%m%dT%H%M%SZ");
        Self(format!("{stamp}-{:02x}{:02x}{:02x}", random[0], random[1], random[2]))
    }
}

/// One database or one directory of an application: its kind and its path (or a server's address), such as
/// `sqlite:/srv/hydro/var/production.sqlite3`. Unique within an application.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceId(String);

impl SourceId {
    /// The id of a source of this kind at this place.
    #[must_use]
    pub fn new(kind: &str, place: impl fmt::Display) -> Self {
        Self(format!("{kind}:{place}"))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{AppName, BackupId, CutId, Relpath};

    #[test]
    fn a_relpath_keeps_out_of_the_layouts_own_names() {
        assert!(Relpath::new("demo.softxs.ch/hydro").is_ok());
        for bad in ["", "/a", "a/", "a//b", "a/../b", "a/repository", "history", "x/logs/y", "a b"] {
            assert!(Relpath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_cut_id_sorts_by_time_and_reads_back() {
        let time: jiff::Timestamp = "2026-11-20T03:15:00Z".parse().unwrap();
        let id = CutId::at(time, [0x5b, 0xe2, 0xa1]);
        assert_eq!(id.as_str(), "20261120T031500Z-5be2a1");
        assert_eq!(CutId::new(id.as_str()).unwrap(), id);
        assert!(CutId::new("20261120T031500Z-5be2aX").is_err());
    }

    #[test]
    fn ids_refuse_what_would_break_a_path_or_a_line() {
        assert!(AppName::new("../x").is_err());
        assert!(AppName::new("-rf").is_err());
        assert!(BackupId::new("ab").is_err());
    }
}
