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
    still_held: Vec<Problem>,
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
        Self { clock, budget, taken: vec![], measured: Measured::default(), still_held: vec![] }
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
        self.tell(step);
        if !self.until().has_passed(self.clock.moment()) {
            return Ok(());
        }
        Err(Failure::new(
            FailureKind::TimedOut,
            format!("the stall budget of {:?} is used up after {step}", self.budget),
            "see what `plan` predicts; raise stall_budget if the writers can wait longer",
        ))
    }

    /// For whoever wants to know where the stall goes.
    fn tell(&self, step: &str) {
        if let Some((since, _)) = self.measured.locks {
            let stalled = Millis::from(self.clock.moment().since(since));
            tracing::info!("stalled for {stalled} after {step}");
        }
    }

    /// Shows of every hold that it was never interrupted. The last taken is asked first. A server's process is
    /// let go as soon as that is shown of it: a stopped server cannot answer for its locks. Nothing may be
    /// pinned or looked at after this.
    ///
    /// # Errors
    /// [`FailureKind::Lost`] or another failure of the hold that cannot show it, or cannot be let go.
    pub fn prove(&mut self) -> Result<Vec<HoldProof>, Failure> {
        let mut proofs = Vec::with_capacity(self.taken.len());
        for place in (0..self.taken.len()).rev() {
            let Taken { frozen, stall, .. } = &mut self.taken[place];
            let (name, sources) = (stall.hold.clone(), stall.sources.clone());
            proofs.push(HoldProof { name, sources, class: stall.class, proof: frozen.prove()? });
            self.tell(&format!("proving {}", self.taken[place].stall.hold));
            if self.taken[place].stall.class == HoldClass::ServerFreezer {
                let server = self.taken.remove(place);
                let name = server.stall.hold.clone();
                if !self.let_go(server) {
                    let what = format!("{name} was not let go, so that nobody can be asked for its locks");
                    return Err(Failure::new(FailureKind::Other, what, "run `stillpoint thaw`"));
                }
            }
        }
        Ok(proofs)
    }

    /// Lets one hold go and measures it; says whether that could be confirmed.
    fn let_go(&mut self, taken: Taken) -> bool {
        let Taken { frozen, stall, asked } = taken;
        let name = stall.hold.clone();
        let result = frozen.thaw();
        self.measured.over(stall, asked, self.clock.moment());
        self.tell(&format!("letting {name} go"));
        let Err(failure) = result else { return true };
        tracing::error!(hold = %name, "WRITERS MAY STILL BE HELD: {}", failure.in_full());
        let what = format!("WRITERS MAY STILL BE HELD by {name}: {}", failure.in_full());
        self.still_held.push(Problem::new(Effect::Note, None, what, "run `stillpoint thaw`"));
        false
    }

    /// Lets everybody go, the last taken first, whatever fails.
    #[must_use]
    pub fn thaw(mut self) -> Released {
        while let Some(taken) = self.taken.pop() {
            self.let_go(taken);
        }
        let length = |span: (Moment, Moment)| Millis::from(span.1.since(span.0));
        let mut per_hold = std::mem::take(&mut self.measured.stalls);
        per_hold.reverse();
        let total = self.measured.locks.map_or(Millis(0.0), length);
        let downtime = self.measured.stopped.map(length);
        let still_held = std::mem::take(&mut self.still_held);
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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use model::{
        id::SourceId,
        plan::HoldClass,
        port::{Clock, Failure, FailureKind, Frozen, Hold},
        problem::Problem,
        time::{Deadline, Millis},
        verdict::Stillness,
    };
    use testkit::fakes::{hold::FakeHold, world::World};

    use super::Held;

    /// A hold whose steps take exactly so many milliseconds.
    struct Timed {
        world: World,
        class: HoldClass,
        freeze: u64,
        thaw: u64,
        thaws: bool,
        let_go: Arc<std::sync::Mutex<Vec<HoldClass>>>,
    }

    struct Taken(World, u64, bool, HoldClass, Arc<std::sync::Mutex<Vec<HoldClass>>>);

    impl Hold for Timed {
        fn name(&self) -> String {
            format!("{:?}", self.class)
        }
        fn class(&self) -> HoldClass {
            self.class
        }
        fn sources(&self) -> Vec<SourceId> {
            vec![]
        }
        fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
            Ok(vec![])
        }
        fn freeze(&mut self, _until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
            self.world.pass(Duration::from_millis(self.freeze));
            Ok(Box::new(Taken(self.world.clone(), self.thaw, self.thaws, self.class, self.let_go.clone())))
        }
    }

    impl Frozen for Taken {
        fn prove(&mut self) -> Result<Stillness, Failure> {
            Ok(Stillness::WritersFrozen(String::new()))
        }
        fn thaw(self: Box<Self>) -> Result<(), Failure> {
            self.0.pass(Duration::from_millis(self.1));
            if self.2 { Ok(()) } else { Err(Failure::new(FailureKind::Other, "it does not answer", "")) }
        }
    }

    impl Drop for Taken {
        fn drop(&mut self) {
            self.4.lock().expect("nothing panics").push(self.3);
        }
    }

    struct Bench {
        world: World,
        let_go: Arc<std::sync::Mutex<Vec<HoldClass>>>,
    }

    impl Bench {
        fn new() -> Self {
            Self { world: World::new(0), let_go: Arc::default() }
        }
        fn hold(&self, class: HoldClass, freeze: u64, thaw: u64, thaws: bool) -> Timed {
            Timed { world: self.world.clone(), class, freeze, thaw, thaws, let_go: self.let_go.clone() }
        }
        fn let_go(&self) -> Vec<HoldClass> {
            self.let_go.lock().expect("nothing panics").clone()
        }
    }

    #[test]
    fn stalls_run_from_before_the_asking_to_after_the_release() {
        let bench = Bench::new();
        let world = bench.world.clone();
        let mut held = Held::nothing(&world, Duration::from_secs(2));
        held.freeze(&mut bench.hold(HoldClass::StopHook, 5_000, 3_000, true)).unwrap();
        held.freeze(&mut bench.hold(HoldClass::FinalLock, 10, 2, true)).unwrap();
        held.freeze(&mut bench.hold(HoldClass::ProcessFreezer, 5, 1, true)).unwrap();
        world.pass(Duration::from_millis(20));
        let released = held.thaw();
        let ms: Vec<f64> = released.stalls.per_hold.iter().map(|s| s.ms.0).collect();
        assert_eq!(ms, [5_000.0 + 35.0 + 3.0 + 3_000.0, 35.0 + 3.0, 25.0 + 1.0]);
        assert_eq!(released.stalls.total, Millis(38.0), "the hooks' time does not count");
        assert_eq!(released.stalls.downtime, Some(Millis(8_038.0)));
        let order = [HoldClass::ProcessFreezer, HoldClass::FinalLock, HoldClass::StopHook];
        assert_eq!(bench.let_go(), order);
    }

    #[test]
    fn the_budget_begins_with_the_first_lock_and_keeps_something_back_for_the_release() {
        let bench = Bench::new();
        let world = bench.world.clone();
        let mut held = Held::nothing(&world, Duration::from_millis(1_000));
        held.freeze(&mut bench.hold(HoldClass::StopHook, 60_000, 0, true)).unwrap();
        assert!(held.in_time("stopping").is_ok(), "a stop hook has its own timeout");
        let asked = world.moment();
        held.freeze(&mut bench.hold(HoldClass::FinalLock, 100, 0, true)).unwrap();
        assert_eq!(held.until(), Deadline(asked.after(Duration::from_millis(900))));
        world.pass(Duration::from_millis(799));
        assert!(held.in_time("pinning").is_ok());
        world.pass(Duration::from_millis(1));
        assert_eq!(held.in_time("pinning").unwrap_err().kind, FailureKind::TimedOut);
    }

    #[test]
    fn a_thaw_that_fails_is_said_loudly_and_keeps_no_other_from_being_thawed() {
        let bench = Bench::new();
        let world = bench.world.clone();
        let mut held = Held::nothing(&world, Duration::from_secs(2));
        held.freeze(&mut bench.hold(HoldClass::FinalLock, 1, 1, true)).unwrap();
        held.freeze(&mut bench.hold(HoldClass::ProcessFreezer, 1, 1, false)).unwrap();
        let released = held.thaw();
        assert_eq!(released.still_held.len(), 1);
        let text = released.still_held[0].to_string();
        assert!(text.contains("WRITERS MAY STILL BE HELD by ProcessFreezer: it does not answer"), "{text}");
        assert!(text.contains("stillpoint thaw"), "{text}");
        assert_eq!(bench.let_go(), [HoldClass::ProcessFreezer, HoldClass::FinalLock]);
        assert_eq!(released.stalls.per_hold.len(), 2);
    }

    #[test]
    fn a_server_is_let_go_before_its_lock_is_proven() {
        let bench = Bench::new();
        let world = bench.world.clone();
        let mut held = Held::nothing(&world, Duration::from_secs(2));
        for class in [HoldClass::FinalLock, HoldClass::ProcessFreezer, HoldClass::ServerFreezer] {
            held.freeze(&mut bench.hold(class, 1, 1, true)).unwrap();
        }
        let proofs = held.prove().unwrap();
        assert_eq!(proofs.len(), 3);
        assert_eq!(bench.let_go(), [HoldClass::ServerFreezer], "the others are still held");
        let released = held.thaw();
        assert_eq!(released.stalls.per_hold.len(), 3);
        let order = [HoldClass::ServerFreezer, HoldClass::ProcessFreezer, HoldClass::FinalLock];
        assert_eq!(bench.let_go(), order);
    }

    #[test]
    fn a_server_that_stays_stopped_ends_the_cut_loudly() {
        let bench = Bench::new();
        let world = bench.world.clone();
        let mut held = Held::nothing(&world, Duration::from_secs(2));
        held.freeze(&mut bench.hold(HoldClass::FinalLock, 1, 1, true)).unwrap();
        held.freeze(&mut bench.hold(HoldClass::ServerFreezer, 1, 1, false)).unwrap();
        let failure = held.prove().unwrap_err();
        assert!(!failure.is_transient(), "{failure}");
        let released = held.thaw();
        assert!(released.still_held[0].to_string().contains("WRITERS MAY STILL BE HELD by ServerFreezer"));
        assert_eq!(bench.let_go(), [HoldClass::ServerFreezer, HoldClass::FinalLock]);
    }

    #[test]
    fn a_freeze_that_fails_is_measured_too() {
        let bench = Bench::new();
        let world = bench.world.clone();
        let in_the_way = world.obstruct();
        let mut lock = FakeHold::of_all(&world, world.journal.clone(), HoldClass::FinalLock);
        let mut held = Held::nothing(&world, Duration::from_millis(100));
        assert!(held.freeze(&mut lock).is_err());
        drop(in_the_way);
        let stalls = held.thaw().stalls;
        assert!(stalls.total >= Millis(90.0), "{}", stalls.total);
        assert_eq!(stalls.per_hold.len(), 1);
    }

    #[test]
    fn dropping_lets_go_in_the_same_order() {
        let bench = Bench::new();
        let world = bench.world.clone();
        let mut held = Held::nothing(&world, Duration::from_secs(2));
        held.freeze(&mut bench.hold(HoldClass::FinalLock, 1, 1, true)).unwrap();
        held.freeze(&mut bench.hold(HoldClass::ProcessFreezer, 1, 1, true)).unwrap();
        drop(held);
        assert_eq!(bench.let_go(), [HoldClass::ProcessFreezer, HoldClass::FinalLock]);
    }

    #[test]
    fn a_hold_that_is_taken_too_late_ends_the_cut() {
        let bench = Bench::new();
        let world = bench.world.clone();
        let mut held = Held::nothing(&world, Duration::from_millis(100));
        let late = held.freeze(&mut bench.hold(HoldClass::FinalLock, 95, 1, true)).unwrap_err();
        assert_eq!(late.kind, FailureKind::TimedOut);
        assert_eq!(held.thaw().stalls.total, Millis(96.0));
        assert_eq!(bench.let_go(), [HoldClass::FinalLock]);
    }
}
