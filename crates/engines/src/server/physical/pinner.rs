//! Pinning a server by a copy made before and its binary logs up to the cut: [`PhysicalPinner`].
//!
//! Crash story: the copy lies in a journalled staging directory; the logs are kept by descriptors of ours. A pin that is
//! given up before its harvest gives its copy back to the pinner, since making it may have taken hours.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use model::{
    entry::{Harvest, Manifest},
    id::SourceId,
    known::Known,
    plan::{PinMethod, PinPlan, ServerPlan},
    port::{Difference, Failure, FailureKind, Pin, Pinner, Progress, Stage},
    problem::Problem,
    server::{BinlogPosition, ServerForm, ServerPosition, ServerRecord, ServerRoot},
    time::Deadline,
    verdict::Stillness,
};
use os::staging::Staging;

use super::{
    super::{Means, connect::PATIENCE, dump::confirm::confirm, lock::Holder},
    logs::Logs,
    place, tool,
};

/// Pins a server by mariadb-backup and binary logs. See the module's head.
pub struct PhysicalPinner {
    source: SourceId,
    plan: ServerPlan,
    beside: PathBuf,
    parent: PathBuf,
    holder: Holder,
    means: Means,
    home: Home,
}

/// A copy that was made before the cut.
struct Copied {
    staging: Staging,
    /// Where it stands.
    at: Option<BinlogPosition>,
    /// The server's list of its logs, if it writes logs that can be replayed.
    index: Option<PathBuf>,
}

/// Where a copy waits for the next attempt.
type Home = Arc<Mutex<Option<Copied>>>;

fn at_home(home: &Mutex<Option<Copied>>) -> MutexGuard<'_, Option<Copied>> {
    // A copy is there or not; a panic elsewhere changes nothing about it.
    home.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PhysicalPinner {
    /// The pinner of this plan, under the lock of `holder`.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if the plan does not say where binary logs stand in the backup, or where the server's
    /// files are.
    pub fn new(pin: &PinPlan, plan: &ServerPlan, holder: Holder, means: Means) -> Result<Self, Failure> {
        let known = matches!(pin.method, PinMethod::ServerPhysical(_)) && !plan.roots.is_empty();
        let Some(beside) = plan.beside.clone().filter(|_| known) else {
            let what = format!("{} has no place for binary logs in its plan", pin.source);
            return Err(Failure::new(FailureKind::Refused, what, ""));
        };
        let (source, parent, plan) = (pin.source.clone(), pin.staging.clone(), plan.clone());
        Ok(Self { source, plan, beside, parent, holder, means, home: Home::default() })
    }

    fn copy(&self) -> Result<Copied, Failure> {
        let index = self.index()?;
        let staging = Staging::create(&self.means.journal, &self.parent, "physical")?;
        tool::backup(&self.means.journal, &self.plan, staging.path())?;
        let at = tool::stands_at(staging.path())?;
        Ok(Copied { staging, at, index })
    }

    /// The list of binary logs, if there is one and mariadb-binlog can read them.
    fn index(&self) -> Result<Option<PathBuf>, Failure> {
        let mut conn = self.holder.connect(PATIENCE)?;
        let row = conn.row("SELECT @@log_bin, @@log_bin_index, @@datadir, @@encrypt_binlog", PATIENCE)?;
        let is_readable = row.number(0) == Some(1) && row.number(3) != Some(1);
        Ok(row.given(1).filter(|_| is_readable).map(|index| Path::new(&row.text(2)).join(index)))
    }

    fn in_time(&self, until: Deadline) -> Result<(), Failure> {
        if !until.has_passed(self.means.clock.moment()) {
            return Ok(());
        }
        let what = format!("{} was not pinned by the deadline", self.source);
        Err(Failure::new(FailureKind::TimedOut, what, "raise stall_budget, or try again"))
    }

    fn locked(&self) -> Result<(), Failure> {
        if self.holder.is_locked() {
            return Ok(());
        }
        let what = format!("{} is not locked while it is pinned", self.source);
        Err(Failure::new(FailureKind::Lost, what, "try again"))
    }

    /// Everything that is done under the lock.
    fn keep_logs(&self, copied: &Copied) -> Result<(ServerPosition, Option<Logs>), Failure> {
        self.locked()?;
        let position = self.holder.position().unwrap_or_default();
        let logs = match (&copied.index, &copied.at, &position.binlog) {
            (Some(index), Some(from), Some(to)) => Some(Logs::open(index, from, to)?),
            _ => None,
        };
        self.locked()?;
        Ok((position, logs))
    }
}

impl Pinner for PhysicalPinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn prepare(&mut self, _known: &Known) -> Result<Option<Manifest>, Failure> {
        let copied = self.copy()?;
        *at_home(&self.home) = Some(copied);
        Ok(None)
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        let home = Arc::clone(&self.home);
        let mut copied = at_home(&home);
        // Logs that are gone cannot bridge the way to the cut: another copy can.
        let is_bridged = copied.as_ref().is_some_and(|copied| match (&copied.index, &copied.at) {
            (Some(index), Some(at)) => Logs::open(index, at, at).is_ok(),
            _ => true,
        });
        if !is_bridged {
            *copied = None;
            *copied = Some(self.copy()?);
        }
        Ok(Difference::default())
    }

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        self.in_time(until)?;
        let Some(copied) = at_home(&self.home).take() else {
            let what = format!("{} has no copy that was made before the cut", self.source);
            return Err(Failure::new(FailureKind::Busy, what, "try again"));
        };
        match self.keep_logs(&copied).and_then(|kept| self.in_time(until).map(|()| kept)) {
            Ok((position, logs)) => Ok(Box::new(PhysicalPin {
                source: self.source.clone(),
                plan: self.plan.clone(),
                beside: self.beside.clone(),
                position,
                logs,
                copied: Some(copied),
                home: Arc::downgrade(&self.home),
                harvested: false,
                holder: self.holder.clone(),
                means: self.means.clone(),
            })),
            Err(failure) => {
                *at_home(&self.home) = Some(copied);
                Err(failure)
            }
        }
    }
}

/// A server as a copy and the logs up to the cut.
struct PhysicalPin {
    source: SourceId,
    plan: ServerPlan,
    beside: PathBuf,
    position: ServerPosition,
    logs: Option<Logs>,
    copied: Option<Copied>,
    home: Weak<Mutex<Option<Copied>>>,
    harvested: bool,
    holder: Holder,
    means: Means,
}

impl Pin for PhysicalPin {
    fn unchanged(&mut self, _until: Deadline) -> Result<Stillness, Failure> {
        if !self.holder.is_locked() {
            let what = format!("{}: the lock under which its logs were kept is gone", self.source);
            return Err(Failure::new(FailureKind::Lost, what, "try again"));
        }
        Ok(match &self.logs {
            Some(logs) => {
                Stillness::Lock(format!("{} binary logs kept up to the cut under the lock", logs.len()))
            }
            None => Stillness::NotShown(
                "the copy was made before the cut, and no binary log leads up to it".into(),
            ),
        })
    }

    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        self.harvested = true;
        let Some(Copied { staging, at, .. }) = &self.copied else {
            let what = format!("{} is not pinned any more", self.source);
            return Err(Failure::new(FailureKind::Lost, what, ""));
        };
        progress.begin(Stage::Copying, None);
        let logs_dir = staging.path().join("logs");
        let copied = fs::create_dir(&logs_dir).map_err(|error| {
            Failure::new(FailureKind::Other, format!("{} cannot be made", logs_dir.display()), "")
                .because(error)
        });
        let copied = copied.and_then(|()| self.logs.as_mut().map_or(Ok(0), |logs| logs.copy(&logs_dir)));
        let prepared = copied
            .and_then(|bytes| tool::prepare(&self.means.journal, &self.plan, staging.path()).map(|()| bytes));
        progress.end();
        let bytes = prepared?;
        let now = self.means.clock.now();
        let placed =
            place::entries(&tool::copy_in(staging.path()), &logs_dir, &self.plan, &self.beside, now)?;
        let mut problems = placed.problems;
        problems.extend(self.weaker());
        let mut checks = vec!["mariadb-backup: prepared".to_owned()];
        if let (Some(from), Some(to), Some(_)) = (at, &self.position.binlog, &self.logs) {
            checks.push(format!("binary logs from {from} to {to} ({bytes} bytes)"));
        }
        if let Some(seconds) = tool::lock_time(staging.path()) {
            checks.push(format!("mariadb-backup held locks of its own for {seconds} s before the cut"));
        }
        let server = Some(self.record(at.clone()));
        let mut harvest = Harvest { entries: placed.entries, problems, checks, server };
        confirm(&self.holder, &self.position, &mut harvest);
        Ok(harvest)
    }

    fn release(mut self: Box<Self>) -> Result<(), Failure> {
        self.let_go()
    }
}

impl PhysicalPin {
    fn weaker(&self) -> Option<Problem> {
        self.logs.is_none().then(|| {
            let what = "the server writes no binary log that can be replayed, so its copy is of a moment before the cut";
            let remedy = "turn the binary log on (log_bin, without encrypt_binlog), or put its files on a volume that \
                          makes snapshots";
            Problem::weaker(&self.beside, what, remedy)
        })
    }

    fn record(&self, at: Option<BinlogPosition>) -> ServerRecord {
        // Without logs the copy is all there is, and it stands where it stands.
        let (position, replay_from) = match self.logs {
            Some(_) => (self.position.clone(), at),
            None => (ServerPosition { binlog: at, ..ServerPosition::default() }, None),
        };
        let roots = self.plan.roots.iter();
        ServerRecord {
            source: self.source.clone(),
            version: self.plan.version.clone(),
            server_id: self.plan.server_id,
            form: ServerForm::Physical,
            position,
            settings: self.plan.settings.clone(),
            roots: roots.map(|root| ServerRoot { role: root.role, path: root.tree.root.clone() }).collect(),
            engines: self.plan.engines.iter().map(|engine| engine.name.clone()).collect(),
            databases: Vec::new(),
            beside: Some(self.beside.clone()),
            replay_from,
        }
    }

    fn let_go(&mut self) -> Result<(), Failure> {
        let Some(copied) = self.copied.take() else { return Ok(()) };
        match self.home.upgrade() {
            Some(home) if !self.harvested => {
                *at_home(&home) = Some(copied);
                Ok(())
            }
            _ => Ok(copied.staging.release()?),
        }
    }
}

impl Drop for PhysicalPin {
    fn drop(&mut self) {
        if let Err(failure) = self.let_go() {
            tracing::error!("{}", failure.in_full());
        }
    }
}
