//! Running the programs that manage volumes.
//!
//! Crash story: a program that changes volumes is never ended half-way, since it may have suspended what others
//! write to: who has no time to wait for it leaves it to a thread, which sees to what it made too late. If we are
//! killed meanwhile it runs on to its end (`os::command`).

use std::{
    env,
    ffi::{OsStr, OsString},
    sync::mpsc::{RecvTimeoutError, SendError, sync_channel},
    thread,
    time::Duration,
};

use model::time::Deadline;

use crate::{
    clock::left,
    command::{Command, CommandError, Outcome},
};

/// Why a program did not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be run.
    #[error("{what}: {program} could not be run")]
    Run {
        /// What it was to do.
        what: String,
        /// The program.
        program: &'static str,
        /// Why not.
        source: CommandError,
    },
    /// It did not succeed.
    #[error("{what}: {program} says: {said}")]
    Failed {
        /// What it was to do.
        what: String,
        /// The program.
        program: &'static str,
        /// How it ended and what it said.
        said: String,
    },
    /// There was no time left to wait for it; it goes on, and what it makes is removed again.
    #[error("{what}: {program} had not ended after {} ms", .waited.as_millis())]
    Late {
        /// What it was to do.
        what: String,
        /// The program.
        program: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// What it wrote is not what is expected of it.
    #[error("{what}: what {program} writes is not understood")]
    NotUnderstood {
        /// What it was to tell.
        what: String,
        /// The program.
        program: &'static str,
    },
}

/// A program with its arguments, and what it is to do, for the errors.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    name: &'static str,
    what: String,
    program: Command,
}

impl Tool {
    /// It speaks English and is found where administrators' programs are.
    pub(crate) fn new(name: &'static str, what: impl Into<String>, timeout: Duration) -> Self {
        let program = Command::tool(name).env("LC_ALL", "C").env("PATH", path()).timeout(timeout);
        // Our descriptors are closed at its start; a shell's that started us may not be.
        let program = program.env("LVM_SUPPRESS_FD_WARNINGS", "1").limit(1 << 20);
        Self { name, what: what.into(), program }
    }

    pub(crate) fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        Self { program: self.program.args(args), ..self }
    }

    /// Keeps so many bytes of what it writes, the last ones.
    pub(crate) fn limit(self, bytes: usize) -> Self {
        Self { program: self.program.limit(bytes), ..self }
    }

    /// Runs it to its end and hands over what it wrote.
    pub(crate) fn run(&self) -> Result<String, ToolError> {
        self.judge(self.program.run())
    }

    /// Runs it, but waits for it no longer than `until`. If that was too short, `late` is called at its end, on a
    /// thread of its own.
    pub(crate) fn run_until(
        &self,
        until: Deadline,
        late: impl FnOnce(Result<String, ToolError>) + Send + 'static,
    ) -> Result<String, ToolError> {
        let waited = left(until);
        // Handed over or not at all: there is no place where an outcome could lie that nobody takes.
        let (give, take) = sync_channel(0);
        let tool = self.clone();
        thread::spawn(move || {
            let outcome = tool.program.run();
            if let Err(SendError(outcome)) = give.send(outcome) {
                late(tool.judge(outcome));
            }
        });
        match take.recv_timeout(waited) {
            Ok(outcome) => self.judge(outcome),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(ToolError::Late { what: self.what.clone(), program: self.name, waited })
            }
        }
    }

    /// What it wrote is not what is expected of it.
    pub(crate) fn not_understood(&self) -> ToolError {
        ToolError::NotUnderstood { what: self.what.clone(), program: self.name }
    }

    fn judge(&self, outcome: Result<Outcome, CommandError>) -> Result<String, ToolError> {
        let (what, program) = (self.what.clone(), self.name);
        match outcome {
            Err(source) => Err(ToolError::Run { what, program, source }),
            Ok(outcome) if outcome.is_success() => Ok(String::from_utf8_lossy(&outcome.stdout).into_owned()),
            Ok(outcome) => Err(ToolError::Failed { what, program, said: outcome.in_short() }),
        }
    }
}

fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Duration};

    use super::{Tool, ToolError};
    use crate::clock::deadline_in;

    fn shell(script: &str) -> Tool {
        Tool::new("sh", "a test", Duration::from_secs(20)).args(["-c", script])
    }

    #[test]
    fn what_a_program_says_is_told() {
        assert_eq!(shell("echo x").run().unwrap(), "x\n");
        let error = shell("echo because >&2; exit 5").run().unwrap_err().to_string();
        assert_eq!(error, "a test: sh says: exit status: 5 (because)");
    }

    #[test]
    fn a_late_program_runs_to_its_end_and_its_outcome_is_seen_to() {
        let (ended, ends) = channel();
        let late = move |outcome: Result<String, ToolError>| ended.send(outcome.unwrap()).unwrap();
        let refused = shell("sleep 0.3; echo made").run_until(deadline_in(Duration::from_millis(20)), late);
        assert!(matches!(refused, Err(ToolError::Late { .. })), "{refused:?}");
        assert_eq!(ends.recv_timeout(Duration::from_secs(20)).unwrap(), "made\n");
        let soon = deadline_in(Duration::from_secs(20));
        assert_eq!(shell("echo made").run_until(soon, |_| panic!("it was in time")).unwrap(), "made\n");
    }
}
