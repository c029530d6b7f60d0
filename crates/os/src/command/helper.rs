//! This very program, started again in another role.
//!
//! `PROGRAM __helper ROLE ARGS…`; lines (JSON) on standard input and output, messages on standard error.
//!
//! Crash story: a helper ends at the end of its standard input, which the kernel brings about however we die.
//! It leads its own process group, so that Ctrl-C reaches us and not it. Dropping it closes its input, kills
//! and reaps it.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, BufRead, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use model::undo::ProcessRef;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    CommandError,
    capture::Tail,
    running::{child_pidfd, child_ref, give_up, timespec},
};
use crate::clock;

const HELPER: &str = "__helper";
const MESSAGES: usize = 8 * 1024;

/// How to start this program as a helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// The program.
    pub program: PathBuf,
    /// Its leading arguments; role and the role's arguments follow.
    pub args: Vec<OsString>,
}

/// Role and arguments, if a program was started as a helper with these arguments (the program's own name
/// left out).
#[must_use]
pub fn helper_role(args: &[OsString]) -> Option<(&OsStr, &[OsString])> {
    let (first, rest) = args.split_first()?;
    let (role, rest) = rest.split_first()?;
    (first == HELPER).then_some((role.as_os_str(), rest))
}

impl Helper {
    /// This very program, also if its file was replaced or removed since it was started.
    #[must_use]
    pub fn this_program() -> Self {
        let link = PathBuf::from("/proc/self/exe");
        // The resolved name is the one that people know from `ps`; a removed file has none any more, but the
        // child can still use the link.
        let program = fs::read_link(&link).ok().filter(|path| path.exists()).unwrap_or(link);
        Self { program, args: vec![HELPER.into()] }
    }

    /// Starts a helper.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, role: &str, args: &[OsString]) -> Result<HelperChild, CommandError> {
        self.start(role, args, true)
    }

    /// Starts a helper that will lead a session: whoever leads a process group cannot begin one.
    pub(crate) fn spawn_sessionless(
        &self,
        role: &str,
        args: &[OsString],
    ) -> Result<HelperChild, CommandError> {
        self.start(role, args, false)
    }

    fn start(&self, role: &str, args: &[OsString], group: bool) -> Result<HelperChild, CommandError> {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).arg(role).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if group {
            command.process_group(0);
        }
        let program = self.program.display().to_string();
        match command.spawn() {
            Ok(child) => HelperChild::follow(child, role, program),
            Err(source) => Err(CommandError::Start { program, source }),
        }
    }
}

/// A helper that runs. Dropping it kills it.
#[derive(Debug)]
pub struct HelperChild {
    role: String,
    process: ProcessRef,
    child: Child,
    ended: OwnedFd,
    stdin: ChildStdin,
    stdout: Replies,
    messages: Arc<Mutex<Tail>>,
    ends_with_us: bool,
}

impl HelperChild {
    fn follow(mut child: Child, role: &str, program: String) -> Result<Self, CommandError> {
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let handles = child_ref(&child).and_then(|process| Ok((process, child_pidfd(&child)?)));
        match (pipes, handles) {
            ((Some(stdin), Some(pipe), Some(stderr)), Ok((process, ended))) => {
                let messages = Arc::new(Mutex::new(Tail::new(MESSAGES)));
                collect(stderr, Arc::clone(&messages));
                let stdout = Replies { pipe, buffer: Vec::new() };
                Ok(Self {
                    role: role.to_owned(),
                    process,
                    child,
                    ended,
                    stdin,
                    stdout,
                    messages,
                    ends_with_us: true,
                })
            }
            (_, handles) => {
                give_up(&mut child);
                let missing = || io::Error::other("a pipe is missing");
                Err(CommandError::Follow { program, source: handles.err().unwrap_or_else(missing) })
            }
        }
    }

    /// The helper's process.
    #[must_use]
    pub fn process(&self) -> ProcessRef {
        self.process
    }

    /// Where it reads from.
    pub fn stdin(&mut self) -> &mut ChildStdin {
        &mut self.stdin
    }

    /// What it writes.
    pub fn stdout(&mut self) -> &mut Replies {
        &mut self.stdout
    }

    /// The end of what it wrote to standard error.
    #[must_use]
    pub fn messages(&self) -> String {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).text()
    }

    /// Sends one value as a line of JSON.
    ///
    /// # Errors
    /// If the helper has ended.
    pub fn send<T: Serialize>(&mut self, value: &T) -> Result<(), CommandError> {
        let sent = line_of(value).and_then(|line| self.stdin.write_all(&line));
        sent.map_err(|_| self.gone())
    }

    /// Receives one value as a line of JSON.
    ///
    /// # Errors
    /// If the helper ends, is silent for longer than `timeout`, or says something else.
    pub fn receive<T: DeserializeOwned>(&mut self, timeout: Duration) -> Result<T, CommandError> {
        let role = self.role.clone();
        match self.stdout.line(timeout) {
            Ok(Some(line)) => {
                serde_json::from_str(&line).map_err(|_| CommandError::HelperConfused { role, line })
            }
            Ok(None) => Err(self.gone()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(CommandError::HelperSilent { role, waited: timeout })
            }
            Err(source) => Err(CommandError::Follow { program: role, source }),
        }
    }

    fn gone(&mut self) -> CommandError {
        // Its last words may still be on their way.
        let waited = self.wait(Duration::from_millis(200));
        if waited.is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
        CommandError::HelperEnded { role: self.role.clone(), messages: self.messages() }
    }

    /// Closes its input and lets it run on until it ends by itself.
    pub(crate) fn leave(mut self) {
        self.ends_with_us = false;
    }

    /// Ends it at once, and whatever it holds.
    ///
    /// # Errors
    /// If it cannot be killed or waited for.
    pub fn kill(&mut self) -> Result<ExitStatus, CommandError> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map_err(|source| CommandError::Follow { program: self.role.clone(), source })
    }

    /// Waits for its end; `None` if it has not ended within `timeout`.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>, CommandError> {
        let until = clock::deadline_in(timeout);
        let ended = loop {
            let left = clock::left(until);
            match poll(&mut [PollFd::new(&self.ended, PollFlags::IN)], Some(&timespec(left))) {
                Ok(0) | Err(Errno::INTR) if !left.is_zero() => {}
                other => break other,
            }
        };
        let ended = match ended {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => self.child.wait(),
            Err(error) => Err(error.into()),
        };
        ended.map(Some).map_err(|source| CommandError::Follow { program: self.role.clone(), source })
    }
}

impl Drop for HelperChild {
    fn drop(&mut self) {
        if !self.ends_with_us {
            return;
        }
        // Killing what has been waited for already is no error and does nothing.
        if let Err(error) = self.kill() {
            tracing::error!("the helper {} cannot be ended: {error}", self.role);
        }
    }
}

/// One value as a line of JSON.
pub(crate) fn line_of<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads along so that the helper never blocks on its messages. Ends with the pipe, which somebody the
/// helper started may keep open longer than it lives: so nobody waits for this thread.
fn collect(mut stderr: ChildStderr, messages: Arc<Mutex<Tail>>) {
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer) {
            messages.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..count]);
        }
    });
}

/// What a helper writes to its standard output.
#[derive(Debug)]
pub struct Replies {
    pipe: ChildStdout,
    buffer: Vec<u8>,
}

impl Replies {
    /// The next line without its end; `None` if the helper has closed its output.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if no whole line comes within `timeout`; what came of it is kept.
    pub fn line(&mut self, timeout: Duration) -> io::Result<Option<String>> {
        let until = clock::deadline_in(timeout);
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            let left = clock::left(until);
            let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            if self.read_more()? == 0 {
                return Ok(None);
            }
        }
    }

    fn read_more(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        let count = self.pipe.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

impl BufRead for Replies {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.buffer.is_empty() {
            self.read_more()?;
        }
        Ok(&self.buffer)
    }

    fn consume(&mut self, amount: usize) {
        self.buffer.drain(..amount);
    }
}

impl Read for Replies {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}
