//! Around the swap: who is stopped, in which order, and who is started again on which state.
//!
//! Crash story: see [`super`]: application first, servers inside it; started again in reverse, on the old state or the
//! new one, never on a mix. Databases that were loaded are put back before anybody is started after a failure.

use std::time::Duration;

use model::{
    port::{Failure, Frozen, Hold},
    port_restore::{Beside, NotSwapped, ServerTarget, Site, Swapped},
    problem::{Effect, Problem},
    restore::{RestorePlan, ServerAct, still_open},
};

use super::Job;

/// How long the application may stay stopped, after its stop hook has ended, before the watchdog starts it.
/// The swap itself takes a rename for each root and a sync.
const STOPPED: Duration = Duration::from_secs(600);

/// The same while databases are loaded, which may take as long as it takes.
const LOADING: Duration = Duration::from_secs(24 * 3600);

/// Stops the application, then the servers, as far as they have hooks, swaps, and starts all again in reverse on
/// every way out.
pub(super) fn swap(
    plan: &RestorePlan,
    job: &Job<'_>,
    mut holds: Vec<Box<dyn Hold>>,
    servers: &mut [Box<dyn ServerTarget + '_>],
    beside: Box<dyn Beside + '_>,
) -> Result<Swapped, Failure> {
    let mut stopped = Stopped::default();
    let done = swap_stopped(plan, job, &mut holds, &mut stopped.0, servers, beside);
    let swapped = match done {
        Err(NotSwapped { failure, is_mixed: true }) => {
            // Neither thawed nor dropped, which would start it on a mix: whoever undoes the journal brings the
            // old state back first and starts it then.
            if stopped.0.is_empty() {
                return Err(failure);
            }
            std::mem::take(&mut stopped.0).into_iter().for_each(std::mem::forget);
            let what = format!("{}; the application stays stopped", failure.what);
            return Err(Failure { what, ..failure });
        }
        done => done.map_err(|not| put_back(not.failure, servers)),
    };
    let services = stopped.0.split_off(usize::from(plan.hooks).min(stopped.0.len()));
    let mut started = start_all(services);
    let swapped = match (swapped, &started) {
        (Ok(mut swapped), Ok(())) => {
            for server in servers {
                swapped.problems.extend(checked(server.as_mut()));
            }
            Ok(swapped)
        }
        (swapped, _) => swapped,
    };
    started = both(started, start_all(std::mem::take(&mut stopped.0)));
    match (swapped, started) {
        (swapped, Ok(())) => swapped,
        (Ok(_), Err(failure)) => Err(Failure::new(
            failure.kind,
            "everything is restored and in place, but not everything that was stopped is started again",
            failure.remedy.clone(),
        )
        .because(failure)),
        (Err(first), Err(second)) => {
            let what = format!(
                "{}; moreover not everything that was stopped is started again: {second}",
                first.what
            );
            let remedy = format!("{}; {}", first.remedy, second.remedy);
            Err(Failure::new(first.kind, what, remedy).because(first))
        }
    }
}

/// What was loaded is undone before anybody is started again.
fn put_back(failure: Failure, servers: &mut [Box<dyn ServerTarget + '_>]) -> Failure {
    let mut undone = Ok(());
    for server in servers {
        undone = both(undone, server.put_back());
    }
    match undone {
        Ok(()) => failure,
        Err(worse) => {
            let what = format!("{}; moreover {}", failure.what, worse.in_full());
            Failure { what, ..failure }
        }
    }
}

/// Who is stopped, in the order of stopping. Dropped, the last one is started first.
#[derive(Default)]
struct Stopped(Vec<Box<dyn Frozen>>);

impl Drop for Stopped {
    fn drop(&mut self) {
        while let Some(frozen) = self.0.pop() {
            drop(frozen);
        }
    }
}

/// Lets them run again, the last one first.
fn start_all(stopped: Vec<Box<dyn Frozen>>) -> Result<(), Failure> {
    let mut started = Ok(());
    for frozen in stopped.into_iter().rev() {
        started = both(started, frozen.thaw());
    }
    started
}

fn both(first: Result<(), Failure>, second: Result<(), Failure>) -> Result<(), Failure> {
    match (first, second) {
        (Err(first), Err(second)) => {
            let what = format!("{}; and {}", first.what, second.what);
            Err(Failure::new(first.kind, what, format!("{}; {}", first.remedy, second.remedy)).because(first))
        }
        (first, second) => first.and(second),
    }
}

/// A server that does not answer is something that is missing.
fn checked(server: &mut (dyn ServerTarget + '_)) -> Vec<Problem> {
    let source = server.source();
    server.check().unwrap_or_else(|failure| {
        let what = format!("the restored server cannot be checked: {}", failure.in_full());
        vec![Problem::new(Effect::Missing, None, what, "look into its error log").of(&source)]
    })
}

fn swap_stopped(
    plan: &RestorePlan,
    job: &Job<'_>,
    holds: &mut [Box<dyn Hold>],
    stopped: &mut Vec<Box<dyn Frozen>>,
    servers: &mut [Box<dyn ServerTarget + '_>],
    beside: Box<dyn Beside + '_>,
) -> Result<Swapped, NotSwapped> {
    let loads = plan.servers.iter().any(|server| server.act == ServerAct::Load);
    let until = || model::time::Deadline(job.clock.moment().after(if loads { LOADING } else { STOPPED }));
    let (application, services) = holds.split_at_mut(usize::from(plan.hooks));
    for hold in application {
        hold.prepare()?;
        stopped.push(hold.freeze(until())?);
    }
    let mut loaded = Vec::new();
    for server in servers {
        loaded.extend(server.load()?);
    }
    for hold in services {
        hold.prepare()?;
        stopped.push(hold.freeze(until())?);
    }
    refuse_open(plan, job.site)?;
    for frozen in stopped {
        frozen.prove()?;
    }
    let mut swapped = beside.swap()?;
    swapped.problems.splice(0..0, loaded);
    Ok(swapped)
}

/// No process may have a file open that is to be replaced.
pub(super) fn refuse_open(plan: &RestorePlan, site: &dyn Site) -> Result<(), Failure> {
    if plan.must_be_closed.is_empty() {
        return Ok(());
    }
    match site.open_by(&plan.must_be_closed)?.first() {
        Some(opened) => Err(still_open(opened)),
        None => Ok(()),
    }
}
