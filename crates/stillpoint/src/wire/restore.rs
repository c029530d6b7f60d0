//! A restore, from the request to the report: the path of `restore`, and of `demo`, which restores every
//! cut.
//!
//! Crash story: see `orchestrate::restore`. For a restore in place the command holds the application's run
//! lock from the plan to the end, so no backup looks at a half-restored application.

use std::path::PathBuf;

use model::{
    inventory::{Application, Database},
    port::{Failure, Hold, Progress},
    port_restore::{Contents, Fetch},
    record::StoredBackup,
    restore::{Request, RestorePlan, RestoreReport, Target},
};
use orchestrate::restore::{self, Job};
use os::{hold::StopHook, site::LocalSite};
use vault::repository::Repository;

use super::run::Run;

/// How many files are written at once.
const THREADS: usize = 4;

/// What is asked for.
#[must_use]
pub fn request(
    run: &Run<'_>,
    application: &Application,
    backup: StoredBackup,
    target: Target,
    accept_incomplete: bool,
) -> Request {
    let directories = application.directories.iter().map(|directory| directory.path.clone());
    let databases = application.databases.iter().filter_map(|database| match database {
        Database::Sqlite { path } => Some(path.clone()),
        Database::Server(_) => None,
    });
    let mut keep_out: Vec<PathBuf> = directories.chain(databases).collect();
    keep_out.push(run.inventory.partition.clone());
    Request {
        application: application.name.clone(),
        backup,
        target,
        keep_out,
        has_hooks: application.hooks.is_some(),
        accept_incomplete,
    }
}

/// Opens the backup and makes the plan, and hands both to `then`: the backup stays open, and locked against
/// removal, until it returns.
///
/// # Errors
/// If the backup cannot be read or the restore is refused; or what `then` says.
pub fn with_plan<T>(
    repository: &mut Repository,
    request: &Request,
    then: impl FnOnce(&RestorePlan, &dyn Contents) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let contents = Fetch::open(repository, &request.backup.id)?;
    let plan = restore::plan(request, &*contents, &LocalSite)?;
    then(&plan, &*contents)
}

/// Executes a plan.
///
/// # Errors
/// If nothing was restored; what was there is as it was, unless the failure says otherwise.
pub fn execute(
    run: &Run<'_>,
    application: &Application,
    plan: &RestorePlan,
    contents: &dyn Contents,
    progress: &dyn Progress,
) -> Result<RestoreReport, Failure> {
    let hooks = application.hooks.as_ref().filter(|_| plan.hooks);
    let stop = hooks.map(|hooks| {
        Box::new(StopHook::new(hooks.stop.clone(), hooks.start.clone(), run.journal())) as Box<dyn Hold>
    });
    let job = Job {
        contents,
        site: &LocalSite,
        journal: run.journal(),
        clock: &*run.clock,
        progress,
        threads: THREADS,
        reread: true,
    };
    restore::run(plan, &job, stop)
}
