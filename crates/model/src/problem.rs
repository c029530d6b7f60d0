//! A partial failure is a value.
//!
//! Crash story: plain values, no effects.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{id::SourceId, pathtext};

/// What a problem does to the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Worth knowing; the backup lacks nothing that was asked for.
    Note,
    /// The source was not of the one instant: at best `per-source`.
    Weaker,
    /// Something is not in the backup: `incomplete`.
    Missing,
}

/// One thing that went wrong, or that a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it does to the verdict.
    pub effect: Effect,
    /// The source it belongs to, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceId>,
    /// The path it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "pathtext::option")]
    pub path: Option<PathBuf>,
    /// What happened, as a sentence without its final stop: "cannot be read: Permission denied".
    pub what: String,
    /// What a person can do about it, as a sentence without its final stop; empty where nothing helps.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Problem {
    /// Something that is missing from the backup.
    pub fn missing(path: impl Into<PathBuf>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Effect::Missing, Some(path.into()), what, remedy)
    }

    /// Something that makes the cut weaker.
    pub fn weaker(path: impl Into<PathBuf>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Effect::Weaker, Some(path.into()), what, remedy)
    }

    /// Something worth knowing.
    pub fn note(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::new(Effect::Note, Some(path.into()), what, "")
    }

    /// A problem with this effect.
    pub fn new(
        effect: Effect,
        path: Option<PathBuf>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { effect, source: None, path, what: what.into(), remedy: remedy.into() }
    }

    /// The same problem, said of this source.
    #[must_use]
    pub fn of(mut self, source: &SourceId) -> Self {
        self.source = Some(source.clone());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, &self.source) {
            (Some(path), _) => write!(f, "{}: ", pathtext::show(path))?,
            (None, Some(source)) => write!(f, "{source}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}
