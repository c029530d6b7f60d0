//! Which backup is meant.
//!
//! Crash story: a pure function, no effects.

use super::{StoredBackup, refused};
use crate::port::Failure;

/// How a backup is named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The newest, however good it is: the plan says its verdict.
    Latest,
    /// The one whose id begins like this, or whose cut has this id.
    Id(String),
}

impl Choice {
    /// Takes the word `latest`, or anything else as an id.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text == "latest" { Self::Latest } else { Self::Id(text.to_owned()) }
    }
}

/// Finds the backup that is meant.
///
/// # Errors
/// If there is none, or several.
pub fn choose<'a>(backups: &'a [StoredBackup], choice: &Choice) -> Result<&'a StoredBackup, Failure> {
    let text = match choice {
        Choice::Latest => {
            return backups
                .iter()
                .max_by_key(|b| b.time)
                .ok_or_else(|| refused("there is no backup yet", "make one with `stillpoint backup`"));
        }
        Choice::Id(text) => text.as_str(),
    };
    let is_meant = |b: &&StoredBackup| {
        !text.is_empty()
            && (b.id.as_str().starts_with(text) || b.record.as_ref().is_some_and(|r| r.cut.as_str() == text))
    };
    let found: Vec<&StoredBackup> = backups.iter().filter(is_meant).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(refused(format!("no backup has the id {text:?}"), "see `stillpoint list`")),
        several => {
            let ids: Vec<&str> = several.iter().take(5).map(|b| b.id.short()).collect();
            Err(refused(
                format!("{} backups begin with {text:?}: {}", several.len(), ids.join(", ")),
                "give more digits of the id",
            ))
        }
    }
}
