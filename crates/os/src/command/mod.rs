//! The only place that starts processes.
//!
//! A [`Command`] is a value: program, arguments, environment, directory, timeout. It runs in a process group
//! of its own, reads nothing, and is ended with the whole group at its timeout. [`Helper`] starts this very
//! program again in another role. Secrets never go into arguments: every user of the machine can read them.
//!
//! Crash story: a command outlives us if we are killed (its group is its own), so whoever starts one that
//! must not be left alone journals it first; see `os::hold` for stop hooks. A helper reads its standard input
//! and ends at its end, which the kernel brings about however we die. Descriptors are never inherited by
//! accident: everything is opened close-on-exec.

mod capture;
mod group;
pub(crate) mod helper;
mod running;

use std::{
    ffi::{OsStr, OsString},
    fs::{File, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use model::undo::Hook;

pub use self::{
    group::{GRACE, end_group},
    helper::{Helper, HelperChild, Replies, helper_role},
    running::Running,
};

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// The file that it should read or write could not be opened.
    #[error("{} cannot be opened for {program}", .path.display())]
    File {
        /// The program.
        program: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ran, but its pipes or its end could not be followed.
    #[error("cannot follow {program}")]
    Follow {
        /// The program.
        program: String,
        /// What failed.
        source: io::Error,
    },
    /// A helper ended or closed its pipe although more was expected of it.
    #[error("the helper {role} ended unexpectedly{}", said(.messages))]
    HelperEnded {
        /// Its role.
        role: String,
        /// What it wrote to its standard error last; may be empty.
        messages: String,
    },
    /// A helper did not answer in time.
    #[error("the helper {role} did not answer within {} ms", .waited.as_millis())]
    HelperSilent {
        /// Its role.
        role: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A helper answered something else than its protocol allows.
    #[error("the helper {role} answered {line:?}, which its protocol does not know")]
    HelperConfused {
        /// Its role.
        role: String,
        /// The line.
        line: String,
    },
}

fn said(messages: &str) -> String {
    if messages.is_empty() { String::new() } else { format!(", saying {messages:?}") }
}

/// What to run and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    timeout: Duration,
    limit: usize,
    keep_output: bool,
    gated: bool,
    input: Option<PathBuf>,
    output: Option<PathBuf>,
    fills: bool,
}

impl Command {
    /// A program of other people's, by its path or its name on `PATH`; the same as [`Command::new`].
    #[must_use]
    pub fn tool(program: impl Into<PathBuf>) -> Self {
        Self::new(program)
    }

    /// A program without arguments that may run for a minute and whose last 64 KiB of output and of messages
    /// are kept.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            directory: None,
            timeout: Duration::from_mins(1),
            limit: 64 * 1024,
            keep_output: true,
            gated: false,
            input: None,
            output: None,
            fills: false,
        }
    }

    /// A hook of the inventory, by `/bin/sh -c`.
    #[must_use]
    pub fn hook(hook: &Hook) -> Self {
        Self::new("/bin/sh").arg("-c").arg(&hook.run).timeout(hook.timeout)
    }

    /// A hook that begins only with [`Running::open_gate`], and not at all if we die before: the shell first
    /// reads a line. Its process keeps id and start time. The hook's processes carry a mark in their
    /// environment by which [`end_group`] knows them.
    #[must_use]
    pub fn gated_hook(hook: &Hook) -> Self {
        const GATE: &str =
            "read -r STILLPOINT_HOOK && export STILLPOINT_HOOK && exec /bin/sh -c \"$1\" </dev/null";
        let command = Self::new("/bin/sh").arg("-c").arg(GATE).arg("sh").arg(&hook.run).timeout(hook.timeout);
        Self { gated: true, ..command }
    }

    /// The same, but it begins only with [`Running::open_gate`], and not at all if we die before: so its process
    /// can be journalled before it does anything. It keeps id and start time. Set everything else before.
    #[must_use]
    pub fn gated(self) -> Self {
        const GATE: &str = "read -r STILLPOINT_HOOK && export STILLPOINT_HOOK && from=$1 && shift && \
                            exec \"$@\" <\"$from\"";
        let from = self.input.unwrap_or_else(|| PathBuf::from("/dev/null"));
        let mut args: Vec<OsString> = ["-c", GATE, "sh"].map(OsString::from).to_vec();
        args.extend([from.into_os_string(), self.program.into_os_string()]);
        args.extend(self.args);
        Self { program: "/bin/sh".into(), args, gated: true, input: None, ..self }
    }

    /// It reads this file on its standard input; default: nothing.
    #[must_use]
    pub fn reads(mut self, file: impl Into<PathBuf>) -> Self {
        self.input = Some(file.into());
        self
    }

    /// Its standard output goes to this file, which must not exist yet and is made for its owner only.
    #[must_use]
    pub fn writes(mut self, file: impl Into<PathBuf>) -> Self {
        self.output = Some(file.into());
        self
    }

    /// Its standard output goes to this named pipe, which somebody must be reading already.
    #[must_use]
    pub fn fills(mut self, pipe: impl Into<PathBuf>) -> Self {
        self.output = Some(pipe.into());
        self.fills = true;
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Where it runs; default: where we are.
    #[must_use]
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// How long it may run before its process group is ended.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many bytes of standard output, and of standard error, are kept: the last ones.
    #[must_use]
    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Sends output and messages to `/dev/null`: for whatever leaves a daemon behind, which a closed pipe
    /// would kill at its next message.
    #[must_use]
    pub fn discard_output(mut self) -> Self {
        self.keep_output = false;
        self
    }

    /// Runs it to its end, or ends it at its timeout.
    ///
    /// # Errors
    /// If it cannot be started or followed. A status other than 0 is an outcome, not an error.
    pub fn run(&self) -> Result<Outcome, CommandError> {
        self.start()?.wait()
    }

    /// Starts it. The timeout counts from here.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self) -> Result<Running, CommandError> {
        let program = self.program.display().to_string();
        let messages = || if self.keep_output { Stdio::piped() } else { Stdio::null() };
        let cannot = |path: &Path, source| CommandError::File {
            program: program.clone(),
            path: path.to_owned(),
            source,
        };
        let input = match &self.input {
            _ if self.gated => Stdio::piped(),
            Some(path) => File::open(path).map_err(|source| cannot(path, source))?.into(),
            None => Stdio::null(),
        };
        let output = match &self.output {
            Some(path) if self.fills => fill(path).map_err(|source| cannot(path, source))?.into(),
            Some(path) => create(path).map_err(|source| cannot(path, source))?.into(),
            None => messages(),
        };
        let mut command = std::process::Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(input)
            .stdout(output)
            .stderr(messages())
            .process_group(0);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        match command.spawn() {
            Ok(child) => Running::follow(child, program, self.timeout, self.limit),
            Err(source) => Err(CommandError::Start { program, source }),
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Without a reader this fails, rather than wait for one.
fn fill(pipe: &Path) -> io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().write(true).custom_flags(nonblocking).open(pipe)?;
    rustix::io::ioctl_fionbio(&file, false)?;
    Ok(file)
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its status.
    pub status: ExitStatus,
    /// The end of its standard output.
    pub stdout: Vec<u8>,
    /// The end of its standard error.
    pub stderr: Vec<u8>,
    /// More was written than was kept.
    pub truncated: bool,
    /// It was ended because its time was over.
    pub timed_out: bool,
}

impl Outcome {
    /// Whether it ended by itself, with status 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status.success() && !self.timed_out
    }

    /// How it ended in one line, with the last line that it said: `exit status: 1 (no such unit)`.
    #[must_use]
    pub fn in_short(&self) -> String {
        let ended =
            if self.timed_out { "took too long and was ended".to_owned() } else { self.status.to_string() };
        match self.last_message() {
            Some(line) => format!("{ended} ({line})"),
            None => ended,
        }
    }

    fn last_message(&self) -> Option<String> {
        let line = self.stderr.split(|b| *b == b'\n').rev().find(|line| !line.trim_ascii().is_empty())?;
        Some(
            String::from_utf8_lossy(line.trim_ascii())
                .chars()
                .filter(|c| !c.is_control())
                .take(300)
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests;
