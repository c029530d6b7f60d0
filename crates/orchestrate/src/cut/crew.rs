//! Who takes part in a cut: the holds and pinners of one plan, in the order in which they act.
//!
//! A source that turns out to be impossible leaves the crew with a problem that says so; the others go on.
//!
//! Crash story: owns holds and pinners, whose `Drop` removes what they prepared.

use model::{
    id::SourceId,
    plan::{CutPlan, PinMethod},
    port::{Clock, Failure, FailureKind, Hold, Pinner},
    problem::{Effect, Problem},
};

use super::patience::Patience;

/// Holds and pinners of one plan.
pub struct Crew<'a> {
    /// The plan that is executed.
    pub plan: &'a CutPlan,
    /// The clocks.
    pub clock: &'a dyn Clock,
    /// How often to try.
    pub patience: Patience,
    /// For pauses and ids.
    pub seed: u64,
    pub(super) holds: Vec<Box<dyn Hold>>,
    pub(super) pinners: Vec<Box<dyn Pinner>>,
    pub(super) problems: Vec<Problem>,
    first_failure: Option<Failure>,
}

impl<'a> Crew<'a> {
    /// Puts holds and pinners in their order: holds by class, smaller first, and pinners of atomic snapshots
    /// after the others, so that what was pinned by scanning can be shown not to have changed until the
    /// snapshot was there. Else both stay as planned.
    #[must_use]
    pub fn new(
        plan: &'a CutPlan,
        clock: &'a dyn Clock,
        patience: Patience,
        seed: u64,
        mut holds: Vec<Box<dyn Hold>>,
        mut pinners: Vec<Box<dyn Pinner>>,
    ) -> Self {
        holds.sort_by_key(|hold| hold.class());
        pinners.sort_by_key(|pinner| method(plan, &pinner.source()).is_some_and(PinMethod::is_snapshot));
        let mut crew =
            Self { plan, clock, patience, seed, holds, pinners, problems: vec![], first_failure: None };
        crew.name_the_absent();
        crew
    }

    /// Every source of the plan has a pinner or a problem that says that it is missing: nothing is left out
    /// silently, not even by a defect.
    fn name_the_absent(&mut self) {
        for source in &self.plan.sources {
            let pinned = self.pinners.iter().any(|p| p.source() == *source);
            let named = |p: &Problem| p.effect == Effect::Missing && p.source.as_ref() == Some(source);
            if !pinned && !self.plan.problems.iter().any(named) {
                self.problems.push(
                    Problem::new(Effect::Missing, None, "nothing was planned that could pin it", "")
                        .of(source),
                );
            }
        }
    }

    /// Whether the source is a directory.
    pub(super) fn is_directory(&self, source: &SourceId) -> bool {
        method(self.plan, source).is_some_and(PinMethod::is_directory)
    }

    /// Goes on without these sources, and without the holds that held only them.
    pub(super) fn lose(&mut self, sources: &[SourceId], failure: Failure) {
        for source in sources {
            self.problems.push(missing(source, &failure));
        }
        self.first_failure.get_or_insert(failure);
        self.pinners.retain(|p| !sources.contains(&p.source()));
        let pinned: Vec<SourceId> = self.pinners.iter().map(|p| p.source()).collect();
        self.holds.retain(|hold| {
            let of = hold.sources();
            of.is_empty() || of.iter().any(|source| pinned.contains(source))
        });
    }

    /// The cut was taken: what only another one would need is freed.
    pub fn rest(&mut self) {
        self.pinners.iter_mut().for_each(|pinner| pinner.rest());
    }

    /// That somebody is left.
    ///
    /// # Errors
    /// If no source is left that can be pinned: the first failure that took one away.
    pub(super) fn somebody(&mut self) -> Result<(), Failure> {
        if !self.pinners.is_empty() {
            return Ok(());
        }
        Err(self.first_failure.take().unwrap_or_else(|| nothing_to_store(self.plan)))
    }
}

/// Why there is nothing to store, from the plan's own problems.
fn nothing_to_store(plan: &CutPlan) -> Failure {
    let why: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
    let what = format!("no source of {} can be backed up", plan.application);
    let what = if why.is_empty() { what } else { format!("{what}: {}", why.join(". ")) };
    Failure::new(FailureKind::Refused, what, "")
}

fn method<'p>(plan: &'p CutPlan, source: &SourceId) -> Option<&'p PinMethod> {
    plan.pins.iter().find(|p| p.source == *source).map(|p| &p.method)
}

/// The problem that a source is missing altogether.
pub(crate) fn missing(source: &SourceId, failure: &Failure) -> Problem {
    Problem::new(Effect::Missing, None, without_remedy(failure), failure.remedy.clone()).of(source)
}

/// What failed and its causes, in one line.
pub(crate) fn without_remedy(failure: &Failure) -> String {
    let full = failure.in_full();
    match full.strip_suffix(&format!("; {}", failure.remedy)) {
        Some(bare) if !failure.remedy.is_empty() => bare.to_owned(),
        _ => full,
    }
}
