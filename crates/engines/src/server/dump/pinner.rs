//! Pinning databases by transactions: [`DumpPinner`].
//!
//! Crash story: sessions end with their connections; the directory of the dump is journalled before it is made. A pin
//! that is given up leaves nothing; the pinner connects anew for the next attempt.

use std::{path::PathBuf, sync::Mutex, thread, time::Duration};

use model::{
    entry::Manifest,
    id::SourceId,
    known::Known,
    plan::{PinMethod, PinPlan, ServerPlan},
    port::{Difference, Failure, FailureKind, Pin, Pinner},
    server::Flavor,
    time::Deadline,
};
use os::staging::Staging;

use super::{
    super::{Means, connect::Connection, lock::Holder},
    catalog::Catalog,
    pin::{DumpPin, Pinned},
    programs::{self, Programs},
    session,
    worker::{Task, Worker, has_own_rows, share_out},
};

/// Sessions that read at the same time.
const MOST_WORKERS: usize = 4;
/// Tables without transactions are read under the lock as long as they are not larger together.
const SMALL: u64 = 4 << 20;
/// How long a connection may take where nobody is held back.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

/// Pins the databases of a server by transactions opened under its lock. See the module's head.
pub struct DumpPinner {
    source: SourceId,
    plan: ServerPlan,
    beside: PathBuf,
    parent: PathBuf,
    holder: Holder,
    means: Means,
    ready: Option<Ready>,
}

/// All that is made before the lock.
struct Ready {
    scout: Connection,
    crew: Vec<Connection>,
    catalog: Catalog,
    before: Before,
    staging: Staging,
}

/// What belongs to no transaction, as it was before the cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Before {
    /// By database, in the catalog's order.
    pub programs: Vec<Programs>,
    /// For a whole server.
    pub accounts: Option<Programs>,
}

impl Before {
    /// Reads it.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub(super) fn read(scout: &mut Connection, catalog: &Catalog, whole: bool) -> Result<Self, Failure> {
        let mut programs = Vec::with_capacity(catalog.databases.len());
        for database in &catalog.databases {
            programs.push(programs::read(scout, catalog, database)?);
        }
        let is_mariadb = scout.version().flavor == Flavor::MariaDb;
        let accounts = if whole { Some(programs::accounts(scout, is_mariadb)?) } else { None };
        Ok(Self { programs, accounts })
    }
}

impl DumpPinner {
    /// The pinner of this plan, under the lock of `holder`.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if the plan does not say where the dump stands in the backup.
    pub fn new(pin: &PinPlan, plan: &ServerPlan, holder: Holder, means: Means) -> Result<Self, Failure> {
        let Some(beside) = plan.beside.clone().filter(|_| matches!(pin.method, PinMethod::ServerDump(_)))
        else {
            let what = format!("{} has no place for a dump in its plan", pin.source);
            return Err(Failure::new(FailureKind::Refused, what, ""));
        };
        let (source, parent, plan) = (pin.source.clone(), pin.staging.clone(), plan.clone());
        Ok(Self { source, plan, beside, parent, holder, means, ready: None })
    }

    fn whole(&self) -> bool {
        self.plan.databases.is_empty()
    }

    fn make_ready(&self) -> Result<Ready, Failure> {
        let mut scout = self.connect(CONNECT_WITHIN)?;
        let catalog = Catalog::read(&mut scout, &self.plan.databases)?;
        if let Some(absent) = self.plan.databases.iter().find(|name| !catalog.databases.contains(name)) {
            let what = format!("{} has no database {absent}, or this account may not see it", self.source);
            return Err(Failure::new(FailureKind::Refused, what, "correct `databases` in the inventory"));
        }
        let before = Before::read(&mut scout, &catalog, self.whole())?;
        let workers = catalog.tables.iter().filter(|t| t.has_rows()).count().clamp(1, MOST_WORKERS);
        let crew = (0..workers).map(|_| self.connect(CONNECT_WITHIN)).collect::<Result<_, _>>()?;
        let staging = Staging::create(&self.means.journal, &self.parent, "dump")?;
        Ok(Ready { scout, crew, catalog, before, staging })
    }

    fn connect(&self, within: Duration) -> Result<Connection, Failure> {
        let mut conn = self.holder.connect(within)?;
        session::settle(&mut conn)?;
        Ok(conn)
    }

    fn left(&self, until: Deadline) -> Duration {
        until.left(self.means.clock.moment())
    }

    fn in_time(&self, until: Deadline) -> Result<Duration, Failure> {
        let left = self.left(until);
        if left.is_zero() {
            let what = format!("{} was not pinned by the deadline", self.source);
            return Err(Failure::new(FailureKind::TimedOut, what, "raise stall_budget, or try again"));
        }
        Ok(left)
    }

    fn locked(&self) -> Result<(), Failure> {
        if self.holder.is_locked() {
            return Ok(());
        }
        let what = format!("{} is not locked while it is pinned", self.source);
        Err(Failure::new(FailureKind::Lost, what, "try again"))
    }

    /// Everything that is done under the lock.
    fn open_transactions(&self, ready: Ready, until: Deadline) -> Result<DumpPin, Failure> {
        let Ready { mut scout, crew, catalog, before, staging } = ready;
        self.in_time(until)?;
        self.locked()?;
        let position = self.holder.position().unwrap_or_default();
        session::bound(&mut scout, self.left(until))?;
        if !catalog.names_are_the_same(&mut scout, &self.plan.databases)? {
            let what =
                format!("{}: a table was made or removed while the backup was being prepared", self.source);
            return Err(Failure::new(FailureKind::Busy, what, "try again"));
        }
        // Whoever prepared them was promised that they can still be committed, and no dump can keep that.
        let prepared = scout.rows("XA RECOVER", self.in_time(until)?)?.len();
        let tasks = tasks(&catalog);
        let mut workers: Vec<Worker> = share_out(tasks, crew.len())
            .into_iter()
            .zip(crew)
            .map(|(tasks, conn)| Worker::new(conn, tasks))
            .collect();
        self.at_once(&mut workers, until, |worker, left, _| Ok(worker.snapshot(left)?))?;
        let root = staging.path().to_owned();
        self.at_once(&mut workers, until, |worker, left, goes_on| {
            Ok(worker.read_under_lock(&root, left, goes_on)?)
        })?;
        self.locked()?;
        Ok(DumpPin::new(Pinned {
            source: self.source.clone(),
            plan: self.plan.clone(),
            beside: self.beside.clone(),
            position,
            holder: self.holder.clone(),
            means: self.means.clone(),
            scout,
            workers,
            catalog,
            before,
            prepared,
            staging,
        }))
    }

    /// Has every worker do something at the same time. `goes_on` says when half of what is left is used up.
    fn at_once(
        &self,
        workers: &mut [Worker],
        until: Deadline,
        work: impl Fn(&mut Worker, Duration, &mut dyn FnMut() -> bool) -> Result<(), Failure> + Sync,
    ) -> Result<(), Failure> {
        let left = self.in_time(until)?;
        let failures = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for worker in workers.iter_mut() {
                scope.spawn(|| {
                    let mut goes_on = || self.left(until) > left / 2;
                    if let (Err(failure), Ok(mut failures)) =
                        (work(worker, left, &mut goes_on), failures.lock())
                    {
                        failures.push(failure);
                    }
                });
            }
        });
        match failures.into_inner().unwrap_or_default().pop() {
            Some(failure) => Err(failure),
            None => self.in_time(until).map(drop),
        }
    }
}

/// What is to be done with each table. The smallest tables without transactions are read under the lock.
fn tasks(catalog: &Catalog) -> Vec<Task> {
    let mut loose: Vec<&super::catalog::Table> =
        catalog.tables.iter().filter(|t| !t.transactional && has_own_rows(t)).collect();
    loose.sort_by_key(|table| table.bytes);
    let mut sum = 0_u64;
    let small = loose.iter().take_while(|table| {
        sum = sum.saturating_add(table.bytes);
        sum <= SMALL
    });
    let small: Vec<String> = small.map(|table| table.quoted()).collect();
    let own = catalog.tables.iter().filter(|table| table.kind != super::catalog::Kind::View);
    own.map(|table| Task { table: table.clone(), under_lock: small.contains(&table.quoted()) }).collect()
}

impl Pinner for DumpPinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn prepare(&mut self, _known: &Known) -> Result<Option<Manifest>, Failure> {
        self.ready = Some(self.make_ready()?);
        Ok(None)
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        self.ready = None;
        self.ready = Some(self.make_ready()?);
        Ok(Difference::default())
    }

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        self.in_time(until)?;
        let ready = self.ready.take().map_or_else(|| self.make_ready(), Ok)?;
        Ok(Box::new(self.open_transactions(ready, until)?))
    }
}
