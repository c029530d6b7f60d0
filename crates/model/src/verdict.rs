//! The verdict over a backup, from evidence only.
//!
//! Crash story: a pure function, no effects.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    id::SourceId,
    problem::{Effect, Problem},
};

/// How good a backup is. Ordered from weak to strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Something could not be read, and is named among the problems.
    Incomplete,
    /// Each source is whole in itself, but they are not of one instant.
    PerSource,
    /// Every source is of the one instant, with evidence.
    Consistent,
}

impl Verdict {
    /// The word used in records, tags and history files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::PerSource => "per-source",
            Self::Consistent => "consistent",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Verdict {
    type Err = crate::id::IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "incomplete" => Ok(Self::Incomplete),
            "per-source" => Ok(Self::PerSource),
            "consistent" => Ok(Self::Consistent),
            _ => Err(crate::id::IdError {
                kind: "verdict",
                text: text.to_owned(),
                rule: "consistent, per-source or incomplete",
            }),
        }
    }
}

/// Why a source is known to have stood still at the instant of the cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by", content = "detail")]
pub enum Stillness {
    /// A database lock that was shown, after the pins, to be still held; says how it was shown.
    Lock(String),
    /// One atomic snapshot that holds all sources, taken under the database locks.
    AtomicSnapshot(String),
    /// All writers were frozen from before the first pin until after the last.
    WritersFrozen(String),
    /// A scan after the last pin, still under the locks, found nothing changed since they were taken.
    NothingChanged(String),
    /// Nothing shows it; says why not.
    NotShown(String),
}

/// The evidence for one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The source.
    pub source: SourceId,
    /// Why it stood still.
    pub stillness: Stillness,
    /// What else was checked, such as `quick_check: ok`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
}

/// The verdict that evidence and problems allow: never better than both, and `consistent` only if every one
/// of `sources` has evidence of its stillness.
#[must_use]
pub fn judge(sources: &[SourceId], evidence: &[Evidence], problems: &[Problem]) -> Verdict {
    let worst = problems.iter().map(|p| p.effect).max().unwrap_or(Effect::Note);
    let all_still = sources.iter().all(|source| {
        evidence.iter().any(|e| e.source == *source && !matches!(e.stillness, Stillness::NotShown(_)))
    });
    match worst {
        Effect::Missing => Verdict::Incomplete,
        Effect::Weaker => Verdict::PerSource,
        Effect::Note if sources.is_empty() || !all_still => Verdict::PerSource,
        Effect::Note => Verdict::Consistent,
    }
}

#[cfg(test)]
mod tests {
    use super::{Evidence, Stillness, Verdict, judge};
    use crate::{id::SourceId, problem::Problem};

    fn still(source: &SourceId) -> Evidence {
        let stillness = Stillness::Lock("RESERVED held by 7".into());
        Evidence { source: source.clone(), stillness, checks: vec![] }
    }

    #[test]
    fn no_evidence_is_never_consistent() {
        let a = SourceId::new("sqlite", "/a");
        let b = SourceId::new("directory", "/b");
        let both = [a.clone(), b.clone()];
        assert_eq!(judge(&[], &[], &[]), Verdict::PerSource);
        assert_eq!(judge(&both, &[still(&a)], &[]), Verdict::PerSource);
        assert_eq!(judge(&both, &[still(&a), still(&b)], &[]), Verdict::Consistent);
        let missing = [Problem::missing("/b/x", "cannot be read", "")];
        assert_eq!(judge(&both, &[still(&a), still(&b)], &missing), Verdict::Incomplete);
        let weaker = [Problem::weaker("/b/x", "changed", "")];
        assert_eq!(judge(&both, &[still(&a), still(&b)], &weaker), Verdict::PerSource);
    }
}
