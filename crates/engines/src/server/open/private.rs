//! A private, fenced server on a copy.
//!
//! Crash story: see [`super`]. The server waits at a gate until its process is journalled; dropping [`Private`] ends
//! it, then removes the directory with its socket and its log.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    pathtext,
    port::{Failure, FailureKind, Journal},
    server::{BinlogPosition, ServerAccess, ServerAddress, ServerForm, ServerRecord},
    undo::{Ticket, Undo},
};
use os::{
    command::{Command, Running},
    process,
    staging::Staging,
};
use rustix::process::Signal;

use super::{
    account::{self, Account},
    copy::{ServerCopy, cannot},
    fenced::View,
    links::relocate,
    log::ServerLog,
    options::{self, Opt},
    program::{self, Program},
};

/// How often a starting server is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Memory of the server, beside that of its connections.
const BUFFER_POOL: &str = "256M";
/// Rows of a transaction that is replayed come as one statement.
const LARGEST_PACKET: &str = "1G";

/// A server that runs on a copy, for us alone. Dropping it kills it.
pub struct Private {
    process: Guarded,
    run: Staging,
    record: ServerRecord,
    log: ServerLog,
    account: Option<Account>,
}

/// A process that is journalled while it runs.
struct Guarded {
    running: Option<Running>,
    ticket: Option<Ticket>,
    journal: Arc<dyn Journal>,
}

impl Private {
    /// Opens a copy: crash recovery included, all of it within `within`. Symbolic links of the copy may be rewritten.
    ///
    /// A copy was taken while no commit was under way, so a transaction that one of its engines has only prepared
    /// (MyRocks writes its log late) had been committed, and is committed now.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if it cannot be fenced or no fitting server is installed;
    /// [`FailureKind::Damaged`] if the server does not open it, with what it says;
    /// [`FailureKind::TimedOut`].
    pub fn open(copy: &ServerCopy, journal: &Arc<dyn Journal>, within: Duration) -> Result<Self, Failure> {
        Self::open_as(copy, journal, within, false)
    }

    /// The same for the replay of logs, which may make accounts and events: that needs the copy's own privileges in force,
    /// so there is an account of ours in it until it is stopped.
    ///
    /// # Errors
    /// As [`Private::open`].
    pub fn open_for_replay(
        copy: &ServerCopy,
        journal: &Arc<dyn Journal>,
        within: Duration,
    ) -> Result<Self, Failure> {
        Self::open_as(copy, journal, within, true)
    }

    fn open_as(
        copy: &ServerCopy,
        journal: &Arc<dyn Journal>,
        within: Duration,
        with_account: bool,
    ) -> Result<Self, Failure> {
        let record = copy.record();
        let program = program::server(record)?;
        let run = run_directory(journal, copy.owner()?)?;
        let view = View::of(copy, run.path())?;
        relocate(copy, &view.placement)?;
        let mut options = options::of_copy(copy, &view.placement)?;
        options.extend(private(record, run.path(), copy.owner()?.0)?);
        let account = with_account.then(|| Account::make(run.path(), copy.owner()?)).transpose()?;
        options.push(match &account {
            Some(account) => ("init-file".to_owned(), Some(account.init_file.display().to_string())),
            // Whoever reaches the socket is let in: its directory is closed to everyone else. The passwords of the copy
            // are not needed so.
            None => ("skip-grant-tables".to_owned(), None),
        });
        let until = Instant::now() + within;
        let start = |more: Option<Opt>| {
            let mut options = options.clone();
            options.extend(more);
            let mut arguments = vec!["--no-defaults".to_owned()];
            arguments.extend(options::arguments(&options));
            start(&view.command(&program, &arguments), journal)
        };
        let log = run.path().join("error.log");
        let mut process = start(None)?;
        let mut ready = await_ready(&mut process, &log, until)?;
        if !ready && ServerLog::read(&log).has_prepared() && record.form == ServerForm::Files {
            process.end()?;
            process = start(Some(("tc-heuristic-recover".into(), Some("COMMIT".into()))))?;
            // It ends by itself once it has decided.
            await_ready(&mut process, &log, until)?;
            process.end()?;
            process = start(None)?;
            ready = await_ready(&mut process, &log, until)?;
        }
        let log = ServerLog::read(&log);
        if !ready {
            return Err(not_opened(copy.record(), &program, &log, process));
        }
        Ok(Self { process, run, record: record.clone(), log, account })
    }

    /// A server of its own on an empty data directory that was made for it.
    pub(super) fn start_on(
        data: &Path,
        like: &ServerRecord,
        journal: &Arc<dyn Journal>,
        within: Duration,
    ) -> Result<Self, Failure> {
        let program = program::server(like)?;
        let found = data.metadata().map_err(|e| cannot("looked at", data, e))?;
        let run = run_directory(journal, (found.uid(), found.gid()))?;
        let view = View::of_new(data, run.path())?;
        let mut options = vec![("datadir".to_owned(), Some(view.data(data).display().to_string()))];
        options.extend(options::values(like));
        options.extend(
            options::libraries(like).into_iter().map(|l| ("plugin-load-add".to_owned(), Some(l.to_owned()))),
        );
        options.extend(private(like, run.path(), found.uid())?);
        let mut arguments = vec!["--no-defaults".to_owned()];
        arguments.extend(options::arguments(&options));
        let log = run.path().join("error.log");
        let mut process = start(&view.command(&program, &arguments), journal)?;
        let ready = await_ready(&mut process, &log, Instant::now() + within)?;
        let log = ServerLog::read(&log);
        if ready {
            return Ok(Self { process, run, record: like.clone(), log, account: None });
        }
        Err(not_opened(like, &program, &log, process))
    }

    /// How it is reached: as `root`, or as the account of ours, by its socket.
    #[must_use]
    pub fn access(&self) -> ServerAccess {
        ServerAccess {
            flavor: self.record.version.flavor,
            address: ServerAddress::Socket(self.run.path().join("socket")),
            user: Some(self.account.as_ref().map_or("root", |_| account::NAME).to_owned()),
            password_file: self.account.as_ref().map(|account| account.password_file.clone()),
            option_file: None,
            tls_ca: None,
        }
    }

    /// The record of what it runs on.
    #[must_use]
    pub fn record(&self) -> &ServerRecord {
        &self.record
    }

    /// Where its socket and its log are; the server may write files there, too.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.run.path()
    }

    /// The position in the binary log that InnoDB had stored with its last commit, as crash recovery found it. None
    /// if there was nothing to recover, or the server wrote no binary log.
    #[must_use]
    pub fn recovered_position(&self) -> Option<BinlogPosition> {
        self.log.position()
    }

    /// It had to recover from a crash, as every copy that was not stopped does.
    #[must_use]
    pub fn has_recovered(&self) -> bool {
        self.log.has_recovered()
    }

    /// Transactions that were only prepared were committed.
    #[must_use]
    pub fn has_decided(&self) -> bool {
        self.log.has_decided()
    }

    /// What it has said in the end, in one line.
    pub(super) fn last_words(&self) -> String {
        ServerLog::read(&self.run.path().join("error.log")).last_words()
    }

    /// Stops it cleanly, so that the copy needs no recovery any more.
    ///
    /// # Errors
    /// If it does not end within that time, or ends otherwise; it is killed then.
    pub fn stop(mut self, within: Duration) -> Result<(), Failure> {
        if self.account.is_some() {
            account::remove(&self.access())?;
        }
        let Some(mut running) = self.process.running.take() else { return Ok(()) };
        // What SHUTDOWN does, and possible even when no connection is.
        let told = process::signal(running.process(), Signal::TERM).map(|_| ());
        let ended = running.ends_within(within);
        self.process.running = Some(running);
        told.map_err(|e| self.not_stopped("cannot be told to").because(e))?;
        if !ended.map_err(|e| self.not_stopped("cannot be followed").because(e))? {
            return Err(self.not_stopped("does not in time"));
        }
        let outcome = self.process.end()?;
        if outcome.is_some_and(|status| !status.success()) {
            return Err(self.not_stopped("failed"));
        }
        self.run.release().map_err(Failure::from)
    }

    fn not_stopped(&self, why: &str) -> Failure {
        let what = format!(
            "the private server of {} should stop but {why}: {}",
            self.record.source,
            self.last_words()
        );
        Failure::new(FailureKind::Other, what, "")
    }
}

impl Guarded {
    /// Ends it if it still runs, and crosses it off. Its status, if it had ended by itself.
    fn end(&mut self) -> Result<Option<std::process::ExitStatus>, Failure> {
        let mut status = None;
        if let Some(mut running) = self.running.take() {
            if running.ends_within(Duration::ZERO).map_err(follow)? {
                status = Some(running.wait().map_err(follow)?.status);
            } else {
                drop(running);
            }
        }
        if let Some(ticket) = self.ticket.take() {
            self.journal.done(ticket);
        }
        Ok(status)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            tracing::error!("{}", failure.in_full());
        }
    }
}

/// Options of every private server.
fn private(record: &ServerRecord, run: &Path, owner: u32) -> Result<Vec<Opt>, Failure> {
    let mut options = options::fence(record.version.flavor, run)?;
    options.push(("innodb-buffer-pool-size".to_owned(), Some(BUFFER_POOL.to_owned())));
    options.push(("max-allowed-packet".to_owned(), Some(LARGEST_PACKET.to_owned())));
    options.push(("performance-schema".to_owned(), Some("OFF".to_owned())));
    if rustix::process::geteuid().is_root() {
        options.push(("user".to_owned(), Some(owner.to_string())));
    }
    Ok(options)
}

/// A directory with a short path for socket, log and temporary files, which only the server and we can enter.
fn run_directory(journal: &Arc<dyn Journal>, owner: (u32, u32)) -> Result<Staging, Failure> {
    let parents = [PathBuf::from("/run"), std::env::temp_dir()];
    let mut last = None;
    for parent in parents.iter().filter(|parent| parent.as_os_str().len() < 60) {
        match Staging::create(journal, parent, "open") {
            Ok(run) => {
                if rustix::process::geteuid().is_root() {
                    chown(run.path(), Some(owner.0), Some(owner.1))
                        .map_err(|e| cannot("given away", run.path(), e))?;
                }
                fs::set_permissions(run.path(), Permissions::from_mode(0o700))
                    .map_err(|e| cannot("closed", run.path(), e))?;
                return Ok(run);
            }
            Err(error) => last = Some(error),
        }
    }
    let why =
        || Failure::new(FailureKind::Other, "there is no place for a socket", "set TMPDIR to a short path");
    Err(last.map_or_else(why, Failure::from))
}

/// Starts it, journalled before it begins.
fn start(command: &Command, journal: &Arc<dyn Journal>) -> Result<Guarded, Failure> {
    let mut running = command.clone().directory("/").gated().start().map_err(follow)?;
    let ticket = journal.intend(Undo::End { process: running.process() }, None)?;
    let opened = running.open_gate().map_err(follow);
    let guarded = Guarded { running: Some(running), ticket: Some(ticket), journal: Arc::clone(journal) };
    opened.map(|()| guarded)
}

/// Waits until it accepts connections (`true`) or has ended (`false`).
fn await_ready(process: &mut Guarded, log: &Path, until: Instant) -> Result<bool, Failure> {
    let Some(running) = &mut process.running else { return Ok(false) };
    loop {
        if running.ends_within(LOOK).map_err(follow)? {
            return Ok(false);
        }
        if ServerLog::read(log).is_ready() {
            return Ok(true);
        }
        if Instant::now() >= until {
            let what =
                format!("the private server is not ready in time: {}", ServerLog::read(log).last_words());
            return Err(Failure::new(
                FailureKind::TimedOut,
                what,
                "recovery may need longer: allow it more time",
            ));
        }
    }
}

fn not_opened(record: &ServerRecord, program: &Program, log: &ServerLog, mut process: Guarded) -> Failure {
    let said = match log.last_words() {
        words if !words.is_empty() => words,
        // It ended before it had a log.
        _ => match process.running.take().map(Running::wait) {
            Some(Ok(outcome)) => outcome.in_short(),
            Some(Err(error)) => error.to_string(),
            None => String::new(),
        },
    };
    let what =
        format!("{} does not open the copy of {}: {said}", pathtext::show(&program.path), record.source);
    let remedy = "use another backup; the whole log is what the server says when started on a restored copy";
    Failure::new(FailureKind::Damaged, what, remedy)
}

fn follow(error: os::command::CommandError) -> Failure {
    Failure::new(FailureKind::Other, "the private server cannot be run", "").because(error)
}
