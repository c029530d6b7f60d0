//! What is held: released in reverse order on every path, and measured.
//!
//! Crash story: [`Held`] owns the guards. [`Held::thaw`] is the way out; its `Drop` does the same, in the
//! same order, on a panic or an early return. A thaw that fails or panics does not keep the others from
//! being thawed.

use std::time::Duration;

use model::{
    cut::{Stall, Stalls},
    plan::HoldClass,
    port::{Clock, Failure, FailureKind, Frozen, Hold},
    problem::{Effect, Problem},
    time::{Deadline, Millis, Moment},
};

use super::evidence::HoldProof;

/// A deadline for what stalls nobody: stop hooks, which have their own timeouts, and pins of an application
/// that nothing holds. Only there so that nothing waits for ever.
pub const UNHURRIED: Duration = Duration::from_secs(24 * 3600);

/// The share of the stall budget, in tenths, that is kept back for letting go.
const KEPT_FOR_RELEASE: u32 = 1;

/// All that is held at the moment, in the order in which it was taken.
pub struct Held<'a> {
    clock: &'a dyn Clock,
    budget: Duration,
    taken: Vec<Taken>,
    measured: Measured,
}

struct Taken {
    frozen: Box<dyn Frozen>,
    stall: Stall,
    asked: Moment,
}

/// What was measured so far; the moments are of the first asking and of the last release.
#[derive(Default)]
struct Measured {
    stalls: Vec<Stall>,
    locks: Option<(Moment, Moment)>,
    stopped: Option<(Moment, Moment)>,
}

impl Measured {
    fn asked(&mut self, class: HoldClass, now: Moment) {
        self.span(class).get_or_insert((now, now));
    }

    fn over(&mut self, mut stall: Stall, asked: Moment, now: Moment) {
        if let Some((_, end)) = self.span(stall.class) {
            *end = now;
        }
        stall.ms = Millis::from(now.since(asked));
        self.stalls.push(stall);
    }

    fn span(&mut self, class: HoldClass) -> &mut Option<(Moment, Moment)> {
        if class == HoldClass::StopHook { &mut self.stopped } else { &mut self.locks }
    }
}

/// What came of letting go.
#[derive(Debug, Clone, PartialEq)]
pub struct Released {
    /// What it cost the writers.
    pub stalls: Stalls,
    /// Everybody of whom it could not be confirmed that he runs again.
    pub still_held: Vec<Problem>,
}

impl<'a> Held<'a> {
    /// Nothing is held yet.
    #[must_use]
    pub fn nothing(clock: &'a dyn Clock, budget: Duration) -> Self {
        Self { clock, budget, taken: vec![], measured: Measured::default() }
    }

    /// Takes one more hold.
    ///
    /// # Errors
    /// Those of the hold; what was taken before stays taken. [`FailureKind::TimedOut`] if it was taken, but
    /// the stall budget is used up by then.
    pub fn freeze(&mut self, hold: &mut dyn Hold) -> Result<(), Failure> {
        let class = hold.class();
        let stall = Stall { hold: hold.name(), sources: hold.sources(), class, ms: Millis(0.0) };
        let asked = self.clock.moment();
        self.measured.asked(class, asked);
        match hold.freeze(self.until()) {
            Ok(frozen) => {
                let name = stall.hold.clone();
                self.taken.push(Taken { frozen, stall, asked });
                self.in_time(&format!("taking {name}"))
            }
            Err(failure) => {
                // Writers may have been held back while the hold was being tried.
                self.measured.over(stall, asked, self.clock.moment());
                Err(failure)
            }
        }
    }

    /// By when the next step has to be over. The stall budget runs from the asking of the first hold that is
    /// not a stop hook; before that, nothing hurries.
    #[must_use]
    pub fn until(&self) -> Deadline {
        match self.measured.locks {
            Some((since, _)) => Deadline(since.after(self.budget.saturating_mul(10 - KEPT_FOR_RELEASE) / 10)),
            None => Deadline(self.clock.moment().after(UNHURRIED)),
        }
    }

    /// Checks that the step just done did not use the budget up.
    ///
    /// # Errors
    /// [`FailureKind::TimedOut`] if it did; the cut is to be given up.
    pub fn in_time(&self, step: &str) -> Result<(), Failure> {
        if !self.until().has_passed(self.clock.moment()) {
            return Ok(());
        }
        Err(Failure::new(
            FailureKind::TimedOut,
            format!("the stall budget of {:?} is used up after {step}", self.budget),
            "see what `plan` predicts; raise stall_budget if the writers can wait longer",
        ))
    }

    /// Shows of every hold that it was never interrupted. The last taken is asked first: only then can a
    /// server that was itself stopped be asked.
    ///
    /// # Errors
    /// [`FailureKind::Lost`] or another failure of the hold that cannot show it.
    pub fn prove(&mut self) -> Result<Vec<HoldProof>, Failure> {
        let mut proofs = Vec::with_capacity(self.taken.len());
        for taken in self.taken.iter_mut().rev() {
            proofs.push(HoldProof {
                name: taken.stall.hold.clone(),
                sources: taken.stall.sources.clone(),
                class: taken.stall.class,
                proof: taken.frozen.prove()?,
            });
        }
        Ok(proofs)
    }

    /// Lets everybody go, the last taken first, whatever fails.
    #[must_use]
    pub fn thaw(mut self) -> Released {
        let mut still_held = vec![];
        while let Some(taken) = self.taken.pop() {
            let name = taken.stall.hold.clone();
            if let Err(failure) = taken.frozen.thaw() {
                tracing::error!(hold = %name, "WRITERS MAY STILL BE HELD: {}", failure.in_full());
                still_held.push(Problem::new(
                    Effect::Note,
                    None,
                    format!("WRITERS MAY STILL BE HELD by {name}: {}", failure.in_full()),
                    "run `stillpoint thaw`",
                ));
            }
            self.measured.over(taken.stall, taken.asked, self.clock.moment());
        }
        let length = |span: (Moment, Moment)| Millis::from(span.1.since(span.0));
        let mut per_hold = std::mem::take(&mut self.measured.stalls);
        per_hold.reverse();
        let total = self.measured.locks.map_or(Millis(0.0), length);
        let downtime = self.measured.stopped.map(length);
        Released { stalls: Stalls { total, downtime, per_hold }, still_held }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        while let Some(taken) = self.taken.pop() {
            drop(taken);
        }
    }
}
