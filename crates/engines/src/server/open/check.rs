//! Whether an opened copy is whole: `mariadb-check` of every table, and the position check.
//!
//! Crash story: reads only; corruption that is found may be marked in the copy by its server.

use std::time::Duration;

use model::{
    port::{Failure, FailureKind},
    problem::{Effect, Problem},
    server::{BinlogPosition, ServerForm},
};
use os::command::Command;
use serde::Serialize;

use super::{super::dump::tool::option_file, private::Private, program};

/// As much of the answer as is kept: a line a table.
const ANSWER: usize = 64 << 20;

/// How the position that was recovered compares with the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "position")]
pub enum PositionFound {
    /// They are equal.
    Equal {
        /// The position.
        at: String,
    },
    /// InnoDB's last commit is older: what came after it in the binary log was of other engines or changed no
    /// rows (DDL, a rotation). Commits that were lost would look the same, but the redo log of a copy was flushed under
    /// the lock.
    Behind {
        /// What was recovered.
        recovered: String,
        /// What the record says.
        recorded: String,
    },
    /// InnoDB holds commits that are younger than the cut.
    Ahead {
        /// What was recovered.
        recovered: String,
        /// What the record says.
        recorded: String,
    },
    /// There is nothing to compare: says why.
    Unknown {
        /// Why.
        why: String,
    },
}

impl PositionFound {
    /// Compares.
    #[must_use]
    pub fn compare(recorded: Option<&BinlogPosition>, recovered: Option<&BinlogPosition>) -> Self {
        let unknown = |why: &str| Self::Unknown { why: why.to_owned() };
        match (recorded, recovered) {
            (None, _) => unknown("the server wrote no binary log"),
            (_, None) => unknown("nothing had to be recovered, or InnoDB had stored no position"),
            (Some(recorded), Some(recovered)) if recorded == recovered => {
                Self::Equal { at: recorded.to_string() }
            }
            (Some(recorded), Some(recovered)) => {
                let is_behind = key(recovered) < key(recorded);
                let (recovered, recorded) = (recovered.to_string(), recorded.to_string());
                if is_behind {
                    Self::Behind { recovered, recorded }
                } else {
                    Self::Ahead { recovered, recorded }
                }
            }
        }
    }

    /// What is wrong with it, if anything is.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        let problem = |effect, what| Some(Problem::new(effect, None, what, ""));
        match self {
            Self::Equal { .. } | Self::Unknown { .. } => None,
            Self::Behind { recovered, recorded } => problem(
                Effect::Note,
                format!(
                    "InnoDB's last commit is at {recovered} of the binary log, the cut at {recorded}: the last events \
                     before the cut are not InnoDB's (a statement such as CREATE TABLE, or a table of another engine); \
                     nothing is missing as far as this can show"
                ),
            ),
            Self::Ahead { recovered, recorded } => problem(
                Effect::Missing,
                format!(
                    "InnoDB recovered up to {recovered} of the binary log, but the cut was at {recorded}"
                ),
            ),
        }
    }

    /// In a few words.
    #[must_use]
    pub fn in_short(&self) -> String {
        match self {
            Self::Equal { at } => format!("recovered at {at}, as recorded"),
            Self::Behind { recovered, recorded } => {
                format!("InnoDB recovered at {recovered}, recorded {recorded}")
            }
            Self::Ahead { recovered, recorded } => {
                format!("recovered at {recovered}, AFTER the recorded {recorded}")
            }
            Self::Unknown { why } => format!("no position to compare: {why}"),
        }
    }
}

/// Files of one binary log are numbered at their end, with at least six digits, so more digits are later.
fn key(position: &BinlogPosition) -> (usize, &str, u64) {
    (position.file.len(), &position.file, position.offset)
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// How many tables answered.
    pub tables: u64,
    /// What is wrong with any of them.
    pub problems: Vec<Problem>,
}

impl Private {
    /// Compares the recovered position with the record's.
    #[must_use]
    pub fn position(&self) -> PositionFound {
        match self.record().form {
            ServerForm::Files => {
                let recorded = self.record().position.binlog.as_ref();
                PositionFound::compare(recorded, self.recovered_position().as_ref())
            }
            ServerForm::Physical => {
                PositionFound::Unknown { why: "the binary log was replayed up to the cut".to_owned() }
            }
            ServerForm::Dump => {
                PositionFound::Unknown { why: "a dump has no position of its own".to_owned() }
            }
        }
    }

    /// Runs `mariadb-check --all-databases --check`: every table of every engine that can.
    ///
    /// # Errors
    /// If it is not installed, cannot be run, or does not end in time. What it finds is in the result.
    pub fn check(&self, within: Duration) -> Result<Checked, Failure> {
        let program = program::client(self.record(), ["mariadb-check", "mysqlcheck"])?;
        let options = option_file(&self.access(), self.directory(), "")?;
        let mut defaults = std::ffi::OsString::from("--defaults-file=");
        defaults.push(&options);
        let command = Command::tool(program)
            .arg(defaults)
            .args(["--all-databases", "--check"])
            .limit(ANSWER)
            .timeout(within);
        let outcome = command.run().map_err(|error| {
            Failure::new(FailureKind::Other, "the tables of the copy cannot be checked", "").because(error)
        })?;
        if outcome.timed_out {
            let what = format!("the tables of {} are not checked in time", self.record().source);
            return Err(Failure::new(FailureKind::TimedOut, what, "allow it more time"));
        }
        let mut checked = understand(&String::from_utf8_lossy(&outcome.stdout));
        // It ends with 0 whatever it finds, and otherwise only if the server is gone or refuses it.
        if !outcome.is_success() || checked.tables == 0 {
            let what = format!("the check broke off: {}: {}", outcome.in_short(), self.last_words());
            checked.problems.push(Problem::new(Effect::Missing, None, what, "use another backup"));
        }
        for problem in &mut checked.problems {
            problem.source = Some(self.record().source.clone());
        }
        Ok(checked)
    }
}

/// A table in a line of its own, `OK` behind it or lines with what is wrong below it:
/// `error    : Corrupt`.
fn understand(answer: &str) -> Checked {
    let mut checked = Checked { tables: 0, problems: Vec::new() };
    let mut table = String::new();
    for line in answer.lines().filter(|line| !line.trim().is_empty()) {
        let level = line.split_once(':').map(|(level, text)| (level.trim().to_lowercase(), text.trim()));
        match level {
            Some((level, text))
                if ["error", "warning", "note", "info", "status"].contains(&level.as_str()) =>
            {
                let effect = match level.as_str() {
                    "error" => Effect::Missing,
                    "status" if text == "OK" => continue,
                    "warning" => Effect::Weaker,
                    _ => continue,
                };
                checked.problems.push(Problem::new(effect, None, format!("table {table}: {text}"), ""));
            }
            _ => {
                checked.tables += 1;
                table = line.strip_suffix("OK").unwrap_or(line).trim_end().to_owned();
            }
        }
    }
    checked
}

#[cfg(test)]
mod tests {
    use model::{problem::Effect, server::BinlogPosition};

    use super::{PositionFound, understand};

    #[test]
    fn the_answer_of_mariadb_check_is_understood() {
        let answer = "d.a                                                OK\nd.e\nWarning  : InnoDB: Index PRIMARY is \
                      marked as corrupted\nerror    : Corrupt\nd.log\nnote     : The storage engine for the table \
                      doesn't support check\nd.z                                                OK\n";
        let checked = understand(answer);
        assert_eq!(checked.tables, 4);
        let told: Vec<(Effect, String)> =
            checked.problems.iter().map(|p| (p.effect, p.to_string())).collect();
        assert_eq!(
            told,
            [
                (Effect::Weaker, "table d.e: InnoDB: Index PRIMARY is marked as corrupted".into()),
                (Effect::Missing, "table d.e: Corrupt".into())
            ]
        );
    }

    #[test]
    fn positions_are_compared_across_files() {
        let at = |file: &str, offset| BinlogPosition { file: file.into(), offset };
        let compare = |a: BinlogPosition, b: BinlogPosition| PositionFound::compare(Some(&a), Some(&b));
        assert!(matches!(compare(at("b.000002", 4), at("b.000002", 4)), PositionFound::Equal { .. }));
        let behind = compare(at("b.000002", 4), at("b.000001", 9));
        assert!(matches!(behind, PositionFound::Behind { .. }));
        assert_eq!(behind.problem().unwrap().effect, Effect::Note);
        assert!(matches!(compare(at("b.999999", 4), at("b.1000000", 4)), PositionFound::Ahead { .. }));
        assert!(matches!(PositionFound::compare(None, None), PositionFound::Unknown { .. }));
    }
}
