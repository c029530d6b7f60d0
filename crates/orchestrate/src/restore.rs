//! The main path of `restore`: [`plan`] decides, [`run`] executes.
//!
//! Crash story, line by line of [`run`]: until the swap everything is written beside, in directories that the
//! journal names, and the application runs on; a stop leaves what was there untouched. Around the swap the
//! application is stopped, if it has hooks; the start hook is journalled before the stop hook runs, and the
//! swap's undo after it, so that whoever undoes both in reverse order starts the application on the old state
//! and never on a mix. After the swap's point of no return only what was there before is still to be removed.
//! A backup of the same application must not run beside us: the program holds its lock.

mod clones;
mod files;
mod swap;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{
    port::{Clock, Failure, FailureKind, Hold, Journal, Progress, Stage},
    port_restore::{Beside, Contents, ServerTarget, Site, Swapped},
    problem::{Effect, Problem},
    restore::{
        Cloned, Request, RestorePlan, RestoreReport, ServerAct, Target, Work, databases, places,
        server_files, sidecars, work,
    },
    size::Bytes,
};

use self::{
    clones::Clones,
    files::Written,
    swap::{refuse_open, swap},
};

/// How many problems are told one by one.
const MOST_PROBLEMS: usize = 1000;

/// What is needed to execute a plan.
pub struct Job<'a> {
    /// The backup, open for reading.
    pub contents: &'a dyn Contents,
    /// The machine to restore on.
    pub site: &'a dyn Site,
    /// Where everything is written down before it is made.
    pub journal: Arc<dyn Journal>,
    /// The clocks.
    pub clock: &'a dyn Clock,
    /// Where progress is reported.
    pub progress: &'a dyn Progress,
    /// How many threads write at once; each takes the memory of a few parts of a file (8 MiB each at most).
    pub threads: usize,
}

/// Looks at the target and makes the plan. Changes nothing.
///
/// # Errors
/// If the restore is refused; says why and what to do.
pub fn plan(request: &Request, contents: &dyn Contents, site: &dyn Site) -> Result<RestorePlan, Failure> {
    let listing = contents.listing();
    let places = places(request, listing)?;
    let watched = match request.target {
        Target::Directory { .. } => Vec::new(),
        Target::InPlace { .. } => {
            let databases = databases(&request.backup, listing)?;
            let files = databases.iter().flat_map(|d| [d.clone()].into_iter().chain(sidecars(d)));
            files.chain(server_files(request)).collect()
        }
    };
    let mut facts = site.survey(&places, listing, &watched)?;
    let copies = contents.copies();
    let here = copies.iter().zip(site.copies(copies));
    facts.copies = here.filter_map(|(copy, device)| Some((copy.clone(), device?))).collect();
    model::restore::plan(request, listing, &facts)
}

/// Executes a plan. `stop` is the stop hook of the application, for a plan with hooks.
///
/// # Errors
/// If nothing was restored: what was there is as it was, unless the failure says otherwise. Also if all was
/// restored but the application could not be started. A restore to a directory that lacks something is a
/// report with problems.
pub fn run(plan: &RestorePlan, job: &Job<'_>, stop: Option<Box<dyn Hold>>) -> Result<RestoreReport, Failure> {
    run_with(plan, job, stop, &mut [])
}

/// The same for a plan with database servers, each of which is in `servers`.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    plan: &RestorePlan,
    job: &Job<'_>,
    stop: Option<Box<dyn Hold>>,
    servers: &mut [Box<dyn ServerTarget + '_>],
) -> Result<RestoreReport, Failure> {
    let started = job.clock.moment();
    let in_place = matches!(plan.target, Target::InPlace { .. });
    if plan.hooks && stop.is_none() {
        return Err(Failure::new(FailureKind::Other, "the plan has hooks, but none were given", ""));
    }
    let services: Vec<Box<dyn Hold>> = servers.iter().filter_map(|server| server.service()).collect();
    if !plan.hooks && services.is_empty() {
        refuse_open(plan, job.site)?;
    }
    // What a server replaces is kept until the restored one was started and checked.
    let mut executed = plan.clone();
    if replaces_server(plan) {
        executed.target = Target::InPlace { keep_old: true };
    }

    // Nobody is held; everything is written beside.
    let beside = job.site.begin(&executed, job.contents.listing(), &job.journal)?;
    let (mut outcome, cloned) = write(plan, job, beside.as_ref())?;
    outcome.problems.extend(job.contents.listing().problems.iter().cloned());
    let missing = outcome.problems.iter().find(|p| p.effect == Effect::Missing).cloned();

    // Put it in place.
    let mut places: Vec<PathBuf> = plan.parts.iter().map(|p| p.to.clone()).collect();
    let mut swapped = match missing {
        Some(first) if in_place => return Err(not_swapped(&first, &outcome.problems, beside)),
        Some(_) => {
            places = vec![beside.leave_incomplete()?];
            Swapped::default()
        }
        None => {
            if in_place {
                outcome.problems.extend(ready(plan, beside.as_ref(), servers)?);
            }
            let holds = stop.filter(|_| plan.hooks).into_iter().chain(services).collect();
            swap(plan, job, holds, servers, beside)?
        }
    };
    settle_old(plan, job, &mut swapped);

    outcome.problems.extend(swapped.problems);
    Ok(RestoreReport {
        application: plan.application.clone(),
        backup: plan.backup.clone(),
        cut: plan.cut.clone(),
        time: plan.time,
        verdict: plan.verdict,
        target: plan.target.clone(),
        places,
        files: outcome.files,
        bytes: outcome.bytes,
        cloned,
        problems: bounded(outcome.problems),
        kept: swapped.kept,
        next: next(plan),
        duration_s: job.clock.moment().since(started).as_secs_f64(),
    })
}

fn replaces_server(plan: &RestorePlan) -> bool {
    plan.servers.iter().any(|server| server.act == ServerAct::Replace)
}

/// The old state of a server was kept while the new one was tried; it is removed if that went well.
fn settle_old(plan: &RestorePlan, job: &Job<'_>, swapped: &mut Swapped) {
    if !replaces_server(plan) || plan.target == (Target::InPlace { keep_old: true }) {
        return;
    }
    if let Some(bad) = swapped.problems.iter().find(|p| p.effect == Effect::Missing) {
        let what = format!("what was there before is kept, because of this: {bad}");
        swapped.problems.push(Problem::new(
            Effect::Note,
            None,
            what,
            "remove it when it is not needed any more",
        ));
        return;
    }
    let left = job.site.remove_old(&swapped.kept, &job.journal);
    swapped.kept = left.kept;
    swapped.problems.extend(left.problems);
}

/// Servers make what was written beside such that it can be put in place.
fn ready(
    plan: &RestorePlan,
    beside: &dyn Beside,
    servers: &mut [Box<dyn ServerTarget + '_>],
) -> Result<Vec<Problem>, Failure> {
    let lies = |path: &Path| {
        let (index, part) = plan.parts.iter().enumerate().find(|(_, part)| path.starts_with(&part.from))?;
        let rest = path.strip_prefix(&part.from).ok()?;
        let lies = beside.lies(index).ok()?;
        Some(if rest.as_os_str().is_empty() { lies } else { lies.join(rest) })
    };
    let mut problems = Vec::new();
    for server in servers {
        problems.extend(server.ready(&lies)?);
    }
    Ok(problems)
}

fn write(
    plan: &RestorePlan,
    job: &Job<'_>,
    beside: &dyn Beside,
) -> Result<(Written, Option<Cloned>), Failure> {
    let listing = job.contents.listing();
    let work = work(plan, listing);
    let first = beside.directories()?;
    let (mut written, clones) =
        with_progress(job.progress, Stage::Restoring, Some(plan.bytes), || fill(plan, job, beside, &work))?;
    written.problems.splice(0..0, first);
    written.problems.extend(beside.complete(&written.lost)?);
    written.problems.extend(with_progress(job.progress, Stage::Verifying, None, || beside.verify())?);
    if plan.read_back {
        beside.sync()?;
        let lost: HashSet<&PathBuf> = written.lost.iter().collect();
        // Clones were read from the disk already: the page cache has nothing of a new file that nobody wrote.
        let is_cloned = |file: &(usize, usize)| clones.items.contains(&file.1);
        let lies =
            |file: &&(usize, usize)| !lost.contains(&listing.entries()[file.1].path) && !is_cloned(file);
        let files: Vec<(usize, usize)> = work.files.iter().filter(lies).copied().collect();
        let problems = with_progress(job.progress, Stage::Reading, Some(written.bytes), || {
            files::compare(job, beside, &files)
        })?;
        written.problems.extend(problems);
    }
    written.problems.extend(beside.seal()?);
    beside.sync()?;
    for (link, _) in &work.links {
        written.files += 1;
        written.bytes = written.bytes + listing.entries()[link.1].meta.size;
    }
    Ok((written, clones.told()))
}

/// Clones what can be cloned, and writes the rest.
fn fill(
    plan: &RestorePlan,
    job: &Job<'_>,
    beside: &dyn Beside,
    work: &Work,
) -> Result<(Written, Clones), Failure> {
    let mut clones = clones::make(plan, job, beside, &work.files)?;
    let rest: Vec<(usize, usize)> =
        work.files.iter().filter(|file| !clones.items.contains(&file.1)).copied().collect();
    let mut written = files::write(job, beside, &rest)?;
    written.files += clones.written.files;
    written.bytes = written.bytes + clones.written.bytes;
    written.problems.append(&mut clones.written.problems);
    Ok((written, clones))
}

fn with_progress<T>(
    progress: &dyn Progress,
    stage: Stage,
    total: Option<Bytes>,
    task: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    progress.begin(stage, total);
    let result = task();
    progress.end();
    result
}

/// Everything is as it was: what was written beside is removed.
fn not_swapped(first: &Problem, problems: &[Problem], beside: Box<dyn Beside + '_>) -> Failure {
    let count = problems.iter().filter(|p| p.effect == Effect::Missing).count();
    let mut what =
        format!("{count} objects could not be restored, so nothing was replaced; the first: {first}");
    if let Err(failure) = beside.discard() {
        what.push_str("; moreover ");
        what.push_str(&failure.in_full());
    }
    Failure::new(FailureKind::Damaged, what, "use another backup, or restore with --to DIR what there is")
}

/// A list that stays readable: what was found twice is told once, what is missing comes first, the rest is counted.
fn bounded(mut problems: Vec<Problem>) -> Vec<Problem> {
    let mut told = HashSet::new();
    problems.retain(|problem| told.insert((problem.path.clone(), problem.what.clone())));
    problems.sort_by_key(|p| std::cmp::Reverse(p.effect));
    if problems.len() > MOST_PROBLEMS {
        let more = problems.len() - MOST_PROBLEMS;
        let effect = problems[MOST_PROBLEMS].effect;
        problems.truncate(MOST_PROBLEMS);
        problems.push(Problem::new(effect, None, format!("{more} more problems are not shown"), ""));
    }
    problems
}

fn next(plan: &RestorePlan) -> Vec<String> {
    match (&plan.target, plan.hooks) {
        (Target::Directory { .. }, _) => {
            vec!["the directory is closed to other users: it may hold what only some may read".to_owned()]
        }
        (Target::InPlace { .. }, true) => {
            vec!["the application was stopped and has been started again".to_owned()]
        }
        (Target::InPlace { .. }, false) => {
            let what = "start the application again if you stopped it; restart whatever ran meanwhile, it \
                        still sees the old files";
            vec![what.to_owned()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_PROBLEMS, Problem, bounded};

    #[test]
    fn problems_are_told_once_and_the_worst_first() {
        let late = |n: usize| Problem::weaker("/late", format!("{n}"), "");
        let twice = [late(0), Problem::missing("/gone", "is gone", ""), late(0)];
        assert_eq!(bounded(twice.to_vec()), [twice[1].clone(), late(0)]);
        let many = bounded((0..MOST_PROBLEMS + 5).map(late).collect());
        assert_eq!((many.len(), many[MOST_PROBLEMS].what.split(' ').next()), (MOST_PROBLEMS + 1, Some("5")));
    }
}
