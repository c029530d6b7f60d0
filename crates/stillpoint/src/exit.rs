//! How the program ends: exit statuses, and the one error type that commands return.
//!
//! Crash story: plain values, no effects.

use std::{fmt, process::ExitCode};

use model::port::{Failure, FailureKind};
use serde::{Serialize, Serializer};

/// The exit statuses, DESIGN.md section 7. Those above 9 are restic's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exit {
    /// All that was asked for is done.
    Done,
    /// Stored, but weaker than required.
    Weaker,
    /// Failed.
    Failed,
    /// No such repository.
    NoRepository,
    /// Locked by another run.
    Locked,
    /// Wrong password.
    WrongPassword,
    /// Usage or configuration.
    Usage,
}

impl Exit {
    /// The number that the shell sees.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Weaker => 3,
            Self::NoRepository => 10,
            Self::Locked => 11,
            Self::WrongPassword => 12,
        }
    }

    /// The worse of two: a backup that is stored but weak is better than none, and among failures the one
    /// that says more is kept.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        self.max(other)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::NoRepository => Self::NoRepository,
            FailureKind::Locked => Self::Locked,
            FailureKind::WrongPassword => Self::WrongPassword,
            FailureKind::Busy
            | FailureKind::TimedOut
            | FailureKind::Lost
            | FailureKind::Refused
            | FailureKind::NoSpace
            | FailureKind::Damaged
            | FailureKind::Other => Self::Failed,
        }
    }
}

/// Why a command ended early, with the status it ends with.
#[derive(Debug)]
pub struct Fault {
    /// The exit status.
    pub exit: Exit,
    /// What failed, and what to do.
    pub failure: Failure,
}

/// What commands return.
pub type Outcome<T = Exit> = Result<T, Fault>;

impl Fault {
    /// Something wrong with the arguments or the configuration.
    pub fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, failure: Failure::new(FailureKind::Refused, what, remedy) }
    }

    /// Something of this machine that failed, with the error behind it.
    pub fn io(what: impl Into<String>, remedy: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => FailureKind::NoSpace,
            _ => FailureKind::Other,
        };
        Failure::new(kind, what, remedy).because(source).into()
    }

    /// A person asked us to stop.
    #[must_use]
    pub fn interrupted() -> Self {
        Failure::new(FailureKind::Other, "interrupted", "nothing is held any more; start the command again")
            .into()
    }

    /// The same with the error behind it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.failure = self.failure.because(source);
        self
    }

    /// For `--json`.
    #[must_use]
    pub fn report(&self) -> FaultReport {
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(&self.failure);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        FaultReport {
            what: self.failure.what.clone(),
            causes,
            remedy: self.failure.remedy.clone(),
            exit: self.exit,
        }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self { exit: failure.kind.into(), failure }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.failure.in_full())
    }
}

/// A fault as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultReport {
    /// What failed.
    pub what: String,
    /// The errors behind it, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// The exit status.
    #[serde(serialize_with = "as_status")]
    pub exit: Exit,
}

fn as_status<S: Serializer>(exit: &Exit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(exit.status())
}

impl FaultReport {
    /// What failed, and its causes.
    #[must_use]
    pub fn in_full(&self) -> String {
        let mut text = self.what.clone();
        for cause in &self.causes {
            text.push_str(": ");
            text.push_str(cause);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use model::port::{Failure, FailureKind};

    use super::{Exit, Fault};

    #[test]
    fn every_kind_of_failure_has_its_status() {
        let table = [
            (FailureKind::Busy, 1),
            (FailureKind::TimedOut, 1),
            (FailureKind::Lost, 1),
            (FailureKind::Refused, 1),
            (FailureKind::NoSpace, 1),
            (FailureKind::NoRepository, 10),
            (FailureKind::Locked, 11),
            (FailureKind::WrongPassword, 12),
            (FailureKind::Damaged, 1),
            (FailureKind::Other, 1),
        ];
        for (kind, status) in table {
            let fault = Fault::from(Failure::new(kind, "x", ""));
            assert_eq!(fault.exit.status(), status, "{kind:?}");
        }
        assert_eq!(Fault::usage("x", "").exit.status(), 2);
    }

    #[test]
    fn of_several_the_worst_counts() {
        assert_eq!(Exit::Done.worse(Exit::Weaker), Exit::Weaker);
        assert_eq!(Exit::Failed.worse(Exit::Weaker), Exit::Failed);
        assert_eq!(Exit::Weaker.worse(Exit::Locked), Exit::Locked);
        assert_eq!(Exit::Done.worse(Exit::Done), Exit::Done);
    }

    #[test]
    fn a_fault_names_causes_and_remedy_once() {
        let io = std::io::Error::other("disk on fire");
        let fault = Fault::io("/x cannot be read", "put it out", io);
        assert_eq!(fault.to_string(), "/x cannot be read: disk on fire; put it out");
        assert_eq!(fault.report().causes, ["disk on fire"]);
    }
}
