//! The cut on one machine: freeze, pin, prove, thaw; and again, if it did not hold.
//!
//! Crash story: in [`attempt`] the pins are declared before what is held, so that a panic between any two
//! lines lets the writers go first and removes the pins after them. An attempt that fails has let everybody
//! go and removed its pins before it is counted. Nothing is stored here, so a run that dies here leaves the
//! repository as it was.

use jiff::Timestamp;
use model::{
    cut::Stalls,
    id::SourceId,
    port::{Failure, FailureKind, Pin},
    problem::{Effect, Problem},
    server::ServerRecord,
    time::Millis,
    verdict::{Evidence, Stillness, Verdict},
};

use super::{
    crew::{Crew, missing, without_remedy},
    evidence::{Decision, PinAnswer, decide},
    held::{Held, Released},
    prepare,
};

/// A cut that was taken. Everybody runs again; the pins keep what stood still.
pub struct Cut {
    /// Before the first hold was asked for, in the attempt that held.
    pub frozen_at: Timestamp,
    /// The instant of the cut: all holds taken, the last pin just made, nothing scanned yet.
    pub cut_at: Timestamp,
    /// After the last release.
    pub thawed_at: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// The worst that any attempt did to the writers.
    pub stalls: Stalls,
    /// Why each source that was pinned is known to have stood still.
    pub evidence: Vec<Evidence>,
    /// What is pinned.
    pub pins: Vec<Pinned>,
    /// The database servers among the sources, as far as they were harvested.
    pub servers: Vec<ServerRecord>,
    /// What went wrong up to the thaw, attempts that failed among it; without the plan's own problems.
    pub problems: Vec<Problem>,
    /// Everybody of whom it could not be confirmed that he runs again; also among the problems.
    pub still_held: Vec<Problem>,
}

/// A source that is pinned.
pub struct Pinned {
    /// The source.
    pub source: SourceId,
    /// What keeps it.
    pub pin: Box<dyn Pin>,
}

/// What stood still, as far as it was shown.
struct Still {
    cut_at: Timestamp,
    decision: Decision,
    lost: Vec<Problem>,
}

/// One attempt, after everybody was let go.
struct Attempt {
    frozen_at: Timestamp,
    thawed_at: Timestamp,
    released: Released,
    pins: Vec<Pinned>,
    outcome: Result<Still, Failure>,
}

/// Takes the cut, with as many attempts and pauses as the crew has patience for. The crew must be prepared.
///
/// # Errors
/// The failure of the last attempt; of an earlier one, if another would be of no use, or if it cannot be
/// confirmed that everybody was let go. Nothing is held or pinned then, except what the failure names.
pub fn take(crew: &mut Crew<'_>) -> Result<Cut, Failure> {
    let mut worst = Stalls { total: Millis(0.0), downtime: None, per_hold: vec![] };
    let mut attempts = 0;
    loop {
        attempts += 1;
        let last = attempts >= crew.patience.attempts;
        let Attempt { frozen_at, thawed_at, released, pins, outcome } = attempt(crew);
        raise(&mut worst, released.stalls);
        let failure = match outcome {
            Ok(still) if last || !is_worth_another(crew, &still) => {
                let Still { cut_at, decision, lost } = still;
                let mut problems = std::mem::take(&mut crew.problems);
                problems.extend(lost);
                problems.extend(over_budget(crew, &worst));
                problems.extend(released.still_held.iter().cloned());
                let (evidence, stalls, still_held) = (decision.evidence, worst, released.still_held);
                return Ok(Cut {
                    frozen_at,
                    cut_at,
                    thawed_at,
                    attempts,
                    stalls,
                    evidence,
                    pins,
                    servers: vec![],
                    problems,
                    still_held,
                });
            }
            Ok(still) => restless(&still.decision),
            Err(failure) => failure,
        };
        let left = release(pins);
        if last || !failure.is_transient() || !released.still_held.is_empty() {
            return Err(given_up(failure, attempts, &released.still_held, &left));
        }
        crew.problems.push(note_of(attempts, &failure));
        crew.problems.extend(left);
        crew.clock.sleep(crew.patience.pause(attempts, crew.seed));
        prepare::round(crew);
        crew.somebody()?;
    }
}

fn attempt(crew: &mut Crew<'_>) -> Attempt {
    let frozen_at = crew.clock.now();
    let mut pins = vec![];
    let mut held = Held::nothing(crew.clock, crew.plan.stall_budget);
    let outcome = stand_still(crew, &mut held, &mut pins);
    let released = held.thaw();
    Attempt { frozen_at, thawed_at: crew.clock.now(), released, pins, outcome }
}

/// From the first hold to the last proof; the caller lets go.
fn stand_still(crew: &mut Crew<'_>, held: &mut Held<'_>, pins: &mut Vec<Pinned>) -> Result<Still, Failure> {
    for hold in &mut crew.holds {
        held.freeze(&mut **hold)?;
    }
    let lost = pin(crew, held, pins)?;
    let cut_at = crew.clock.now();
    let answers = scan(crew, held, pins)?;
    let proofs = held.prove()?;
    Ok(Still { cut_at, decision: decide(&proofs, &answers), lost })
}

/// Pins every source. One that cannot be pinned at all is lost, and the others go on.
fn pin(crew: &mut Crew<'_>, held: &Held<'_>, pins: &mut Vec<Pinned>) -> Result<Vec<Problem>, Failure> {
    let mut lost = vec![];
    let mut first = None;
    for pinner in &mut crew.pinners {
        let source = pinner.source();
        match pinner.pin(held.until()) {
            Ok(pin) => pins.push(Pinned { source: source.clone(), pin }),
            Err(failure) if failure.is_transient() => return Err(failure),
            Err(failure) => {
                lost.push(missing(&source, &failure));
                first.get_or_insert(failure);
            }
        }
        held.in_time(&format!("pinning {source}"))?;
    }
    match first {
        Some(failure) if pins.is_empty() => Err(failure),
        _ => Ok(lost),
    }
}

/// Asks every pin, all of them made by now, whether its source has changed since.
fn scan(crew: &Crew<'_>, held: &Held<'_>, pins: &mut [Pinned]) -> Result<Vec<PinAnswer>, Failure> {
    let mut answers = Vec::with_capacity(pins.len());
    for Pinned { source, pin } in pins {
        let stillness = pin.unchanged(held.until())?;
        held.in_time(&format!("looking for changes in {source}"))?;
        answers.push(PinAnswer { source: source.clone(), directory: crew.is_directory(source), stillness });
    }
    Ok(answers)
}

/// Whether another attempt could give the verdict that this one cannot.
fn is_worth_another(crew: &Crew<'_>, still: &Still) -> bool {
    let is_whole = |problems: &[Problem]| problems.iter().all(|p| p.effect == Effect::Note);
    still.decision.restless
        && crew.plan.require == Verdict::Consistent
        && is_whole(&crew.plan.problems)
        && is_whole(&crew.problems)
        && is_whole(&still.lost)
}

fn restless(decision: &Decision) -> Failure {
    let why: Vec<String> = decision
        .evidence
        .iter()
        .filter_map(|e| match &e.stillness {
            Stillness::NotShown(why) => Some(format!("{}: {why}", e.source)),
            _ => None,
        })
        .collect();
    Failure::new(FailureKind::Busy, why.join(". "), "")
}

/// Removes pins; what cannot be removed is a problem and stays in the journal.
pub(crate) fn release(pins: Vec<Pinned>) -> Vec<Problem> {
    let mut left = vec![];
    for Pinned { source, pin } in pins {
        if let Err(failure) = pin.release() {
            let what = format!("a pin could not be removed: {}", without_remedy(&failure));
            let remedy = if failure.remedy.is_empty() { "the next run tries again" } else { &failure.remedy };
            left.push(Problem::new(Effect::Note, None, what, remedy).of(&source));
        }
    }
    left
}

fn note_of(attempt: u32, failure: &Failure) -> Problem {
    Problem::new(
        Effect::Note,
        None,
        format!("attempt {attempt} did not hold: {}", without_remedy(failure)),
        "",
    )
}

/// The failure after which no other attempt is made, with all that is left behind.
fn given_up(failure: Failure, attempts: u32, still_held: &[Problem], left: &[Problem]) -> Failure {
    let mut failure = failure;
    if attempts > 1 {
        failure.what = format!("{} (tried {attempts} times)", failure.what);
    }
    for problem in still_held.iter().chain(left) {
        failure.what = format!("{problem}. Besides: {}", failure.what);
    }
    if !still_held.is_empty() {
        failure.kind = FailureKind::Other;
    }
    failure
}

/// Letting go took longer than what was kept back for it.
fn over_budget(crew: &Crew<'_>, stalls: &Stalls) -> Option<Problem> {
    let budget = Millis::from(crew.plan.stall_budget);
    (stalls.total > budget).then(|| {
        let what = format!("the stall of {} exceeds the budget of {budget}", stalls.total);
        Problem::new(
            Effect::Note,
            None,
            what,
            "see what `plan` predicts; raise stall_budget if that is acceptable",
        )
    })
}

/// Keeps the worst of each figure.
fn raise(worst: &mut Stalls, stalls: Stalls) {
    let longer = |a: Millis, b: Millis| if b > a { b } else { a };
    worst.total = longer(worst.total, stalls.total);
    worst.downtime = match (worst.downtime, stalls.downtime) {
        (Some(a), Some(b)) => Some(longer(a, b)),
        (a, b) => a.or(b),
    };
    for stall in stalls.per_hold {
        match worst.per_hold.iter_mut().find(|s| s.hold == stall.hold && s.class == stall.class) {
            Some(known) => known.ms = longer(known.ms, stall.ms),
            None => worst.per_hold.push(stall),
        }
    }
}
