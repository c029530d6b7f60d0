//! Replaying binary logs on a private copy: `mariadb-binlog` reads them, the client of the same vendor applies what it says,
//! with a pipe between, so that nothing of it lies on disk.
//!
//! All logs are given to one run, since temporary tables and transactions cross from one file to the next. A failure of
//! either program is a failure: the client takes the end of its input for the end of the log, whoever brought it about.
//!
//! Crash story: programs are journalled and end with us; the pipe lies in a staging directory. A copy that was replayed in
//! part is of no use: restore it again.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    port::{Failure, FailureKind, Journal, Progress, Stage},
    server::{Flavor, ServerAccess},
    size::Bytes,
    undo::Undo,
};
use os::{
    command::{Command, CommandError, Outcome, Running},
    process::keep_together,
    staging::Staging,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::super::{
    connect::Connection,
    dump::tool::{installed, option_file},
};

/// How often it is looked whether a program has ended, and how far it is.
const LOOK: Duration = Duration::from_millis(100);
/// How long a program may take to open the pipe, or to end once the other one has.
const SHORT: Duration = Duration::from_secs(60);
/// How often it is tried to find the server's thread for the client.
const TRIES: u32 = 50;
/// Nothing takes longer.
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// Logs, and which part of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The files in order.
    pub logs: Vec<PathBuf>,
    /// Where the first event to be replayed begins, in bytes of the first file.
    pub start: u64,
    /// Where the first event that is not begins, in bytes of the last.
    pub stop: u64,
    /// What it is, for people: "from … to …".
    pub what: String,
}

impl Forward {
    /// Replays them on a private server, whose own log is off and in which nobody but us is.
    ///
    /// # Errors
    /// What the programs say; if somebody asked to stop. The copy is of no use then.
    pub fn run(
        &self,
        access: &ServerAccess,
        journal: &Arc<dyn Journal>,
        staging: &Path,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let place = Staging::create(journal, staging, "replay")?;
        prepare(access)?;
        let sizes = self.logs.iter().map(fs::metadata).map(|meta| meta.map(|meta| meta.len()));
        let sizes =
            sizes.collect::<Result<Vec<u64>, _>>().map_err(|e| self.failed("cannot be read").because(e))?;
        let total: u64 = sizes.iter().sum::<u64>().saturating_sub(self.start);
        let behind = sizes.last().map_or(0, |size| size.saturating_sub(self.stop));
        progress.begin(Stage::Replaying, Some(Bytes(total.saturating_sub(behind))));
        let (mut told, mut tries) = (0, 0..TRIES);
        let ended = self.pipe(access, journal, place.path(), &mut |reader, client| {
            if tries.next().is_some() && on_one_processor(access, client) {
                tries = 0..0;
            }
            let done = self.done(reader, &sizes).max(told);
            progress.advance(Bytes(done - told));
            told = done;
            progress.is_stopped()
        });
        progress.end();
        ended?;
        Ok(place.release()?)
    }

    fn pipe(
        &self,
        access: &ServerAccess,
        journal: &Arc<dyn Journal>,
        dir: &Path,
        look: &mut dyn FnMut(u32, u32) -> bool,
    ) -> Result<(), Failure> {
        let pipe = dir.join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .map_err(|e| self.failed("cannot be replayed").because(std::io::Error::from(e)))?;
        let mut defaults = OsString::from("--defaults-file=");
        defaults.push(option_file(access, dir, "")?);
        let client = program(&["mariadb", "mysql"])?.reads(&pipe).arg(defaults).args([
            "--binary-mode",
            "--max-allowed-packet=1G",
            "--local-infile=1",
        ]);
        let mut client = Held::start(client, journal)?;
        let until = Instant::now() + SHORT;
        // Nobody can write into a pipe before somebody reads it.
        let mut reader = loop {
            match Held::start(self.reader(access, &pipe, dir)?, journal) {
                Err(NotYet::Nobody) if Instant::now() < until && !client.has_ended(LOOK)? => {}
                Err(NotYet::Nobody) => return Err(self.judge("cannot be replayed", client.wait()?)),
                Err(NotYet::Failed(failure)) => return Err(failure),
                Ok(reader) => break reader,
            }
        };
        while !client.has_ended(LOOK)? {
            if look(reader.pid(), client.pid()) {
                return Err(Failure::new(FailureKind::Other, "interrupted while the log was replayed", ""));
            }
        }
        let applied = client.wait()?;
        if !reader.has_ended(SHORT)? {
            return Err(self.judge("cannot be replayed", applied));
        }
        let read = reader.wait()?;
        // If the client gave up, the other one has lost its reader, and says only that.
        match (applied.is_success(), read.is_success()) {
            (true, true) => Ok(()),
            (false, _) => Err(self.judge("cannot be replayed", applied)),
            (true, false) => Err(self.judge("cannot be read", read)),
        }
    }

    fn reader(&self, access: &ServerAccess, pipe: &Path, dir: &Path) -> Result<Command, Failure> {
        let mut load = OsString::from("--local-load=");
        load.push(dir);
        let more: &[&str] = if access.flavor == Flavor::MySql { &["--skip-gtids"] } else { &[] };
        Ok(program(&["mariadb-binlog", "mysqlbinlog"])?
            .fills(pipe)
            .arg("--no-defaults")
            .arg("--disable-log-bin")
            .args(more)
            .arg(load)
            .arg(format!("--start-position={}", self.start))
            .arg(format!("--stop-position={}", self.stop))
            .args(&self.logs))
    }

    /// How many bytes the reader has read.
    fn done(&self, reader: u32, sizes: &[u64]) -> u64 {
        let Some((file, offset)) = reads(reader, &self.logs) else { return 0 };
        (sizes[..file].iter().sum::<u64>() + offset).saturating_sub(self.start)
    }

    fn judge(&self, what: &str, ended: Outcome) -> Failure {
        self.failed(&format!("{what}: {}", ended.in_short()))
    }

    fn failed(&self, what: &str) -> Failure {
        let what = format!("the log {} {what}", self.what);
        Failure::new(FailureKind::Other, what, "nothing was replaced; restore an earlier moment, or a backup")
    }
}

/// A log was not cut where packets end, and nothing of it has to survive a crash before the end.
fn prepare(access: &ServerAccess) -> Result<(), Failure> {
    let mut open = Connection::open(access, SHORT)?;
    for set in ["innodb_flush_log_at_trx_commit = 0", "local_infile = 1"] {
        open.run(&format!("SET GLOBAL {set}"), SHORT)?;
    }
    Ok(())
}

/// Keeps the client and the server's thread for it together; `false` if that has to be tried again. It is done for speed
/// alone, so nothing of it is an error.
fn on_one_processor(access: &ServerAccess, client: u32) -> bool {
    // MySQL tells its threads by the performance schema only, which is off.
    if access.flavor == Flavor::MySql {
        return true;
    }
    let serving = "SELECT tid FROM information_schema.processlist WHERE id <> connection_id() AND user <> 'system user'";
    let asked = Connection::open(access, SHORT).and_then(|mut open| Ok(open.rows(serving, SHORT)?));
    let threads: Vec<u32> = match &asked {
        Ok(rows) => rows.iter().filter_map(|row| u32::try_from(row.number(0)?).ok()).collect(),
        Err(_) => Vec::new(),
    };
    let [thread] = threads[..] else { return false };
    if let Err(error) = keep_together(thread, client) {
        tracing::debug!("the replay goes over several processors: {error}");
    }
    true
}

fn program(names: &[&str]) -> Result<Command, Failure> {
    let found = names.iter().find_map(|name| installed(name)).ok_or_else(|| {
        let what = format!("{} is not installed", names.join(" or "));
        Failure::new(FailureKind::Refused, what, "install the client programs of the server")
    })?;
    Ok(Command::tool(found).timeout(LONG))
}

/// Which of these files a process reads, and where in it it is.
fn reads(pid: u32, files: &[PathBuf]) -> Option<(usize, u64)> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let Some(index) = files.iter().position(|file| *file == target) else { continue };
        let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(entry.file_name());
        let info = fs::read_to_string(info).ok()?;
        let at = info.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse().ok()?;
        return Some((index, at));
    }
    None
}

enum NotYet {
    /// Nobody reads the pipe yet.
    Nobody,
    Failed(Failure),
}

impl From<Failure> for NotYet {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<NotYet> for Failure {
    fn from(not: NotYet) -> Self {
        match not {
            NotYet::Failed(failure) => failure,
            NotYet::Nobody => Self::new(FailureKind::Other, "nobody reads the pipe", ""),
        }
    }
}

/// A program that is journalled while it runs.
struct Held {
    running: Option<Running>,
    ticket: Option<model::undo::Ticket>,
    journal: Arc<dyn Journal>,
}

impl Held {
    fn start(command: Command, journal: &Arc<dyn Journal>) -> Result<Self, NotYet> {
        let mut running = command.gated().start().map_err(|error| match &error {
            CommandError::File { source, .. } if source.raw_os_error() == Some(libc::ENXIO) => NotYet::Nobody,
            _ => NotYet::Failed(follow(error)),
        })?;
        let ticket = journal.intend(Undo::End { process: running.process() }, None)?;
        let opened = running.open_gate().map_err(follow);
        let held = Self { running: Some(running), ticket: Some(ticket), journal: Arc::clone(journal) };
        opened?;
        Ok(held)
    }

    fn pid(&self) -> u32 {
        self.running.as_ref().map_or(0, |running| running.process().pid)
    }

    fn has_ended(&mut self, within: Duration) -> Result<bool, Failure> {
        self.running.as_mut().map_or(Ok(true), |running| running.ends_within(within).map_err(follow))
    }

    fn wait(mut self) -> Result<Outcome, Failure> {
        let running =
            self.running.take().ok_or_else(|| Failure::new(FailureKind::Other, "it does not run", ""))?;
        running.wait().map_err(follow)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.running.take());
        if let Some(ticket) = self.ticket.take() {
            self.journal.done(ticket);
        }
    }
}

fn follow(error: CommandError) -> Failure {
    Failure::new(FailureKind::Other, "the programs that replay the log cannot be run", "").because(error)
}
