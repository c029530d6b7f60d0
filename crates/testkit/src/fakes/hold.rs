//! Holds of the simulated machine, honest ones and liars.
//!
//! Crash story: in memory.

use std::{sync::Arc, time::Duration};

use model::{
    id::SourceId,
    plan::HoldClass,
    port::{Clock, Failure, FailureKind, Frozen, Hold, Journal},
    problem::Problem,
    time::Deadline,
    undo::{Hook, ProcessRef, Ticket, Undo},
    verdict::Stillness,
};

use super::world::{Reach, World};

/// What is wrong with a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    None,
    /// It says that it holds, and holds nobody: like a cut that lets go before it pins.
    HoldsNobody,
    /// It ends by itself as soon as it is taken, and says that it never did: like a cut that does not ask.
    EndsAndDoesNotTell,
    /// It ends by itself as soon as it is taken, and says so when it is asked.
    EndsAndTells,
}

/// A hold.
pub struct FakeHold {
    world: World,
    journal: Arc<dyn Journal>,
    class: HoldClass,
    source: Option<SourceId>,
    lie: Lie,
}

impl FakeHold {
    /// The lock of one database.
    #[must_use]
    pub fn lock(world: &World, journal: Arc<dyn Journal>, source: &SourceId) -> Self {
        let source = Some(source.clone());
        Self { world: world.clone(), journal, class: HoldClass::FinalLock, source, lie: Lie::None }
    }

    /// A hold of all writers.
    #[must_use]
    pub fn of_all(world: &World, journal: Arc<dyn Journal>, class: HoldClass) -> Self {
        Self { world: world.clone(), journal, class, source: None, lie: Lie::None }
    }

    /// The same hold, lying.
    #[must_use]
    pub fn lying(mut self, lie: Lie) -> Self {
        self.lie = lie;
        self
    }

    fn undo(&self, number: u64) -> Undo {
        let process = ProcessRef { pid: u32::try_from(number).unwrap_or(u32::MAX), start: number };
        match self.class {
            HoldClass::StopHook => Undo::Start {
                start: Hook { run: format!("start {number}"), timeout: Duration::from_secs(5) },
                ends: None,
            },
            HoldClass::SlowLock | HoldClass::FinalLock => Undo::End { process },
            HoldClass::ProcessFreezer | HoldClass::ServerFreezer => {
                Undo::Continue { processes: vec![process] }
            }
        }
    }

    fn wait(&self, until: Deadline) -> Result<(), Failure> {
        self.world.work();
        while self.world.is_obstructed() && !until.has_passed(self.world.moment()) {
            self.world.pass(Duration::from_millis(5));
        }
        if self.world.is_obstructed() || until.has_passed(self.world.moment()) {
            let what = format!("{} could not be taken in time", self.name());
            return Err(Failure::new(FailureKind::Busy, what, ""));
        }
        Ok(())
    }
}

impl Hold for FakeHold {
    fn name(&self) -> String {
        match &self.source {
            Some(source) => format!("lock of {source}"),
            None => format!("{:?}", self.class),
        }
    }

    fn class(&self) -> HoldClass {
        self.class
    }

    fn sources(&self) -> Vec<SourceId> {
        self.source.iter().cloned().collect()
    }

    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        self.world.work();
        Ok(vec![])
    }

    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        self.wait(until)?;
        let undo = self.undo(self.world.number());
        let ticket = self.journal.intend(undo.clone(), Some(until))?;
        let reach = self.source.clone().map_or(Reach::Everybody, Reach::Database);
        let barrier = (self.lie != Lie::HoldsNobody).then(|| self.world.bar(&self.name(), reach, &undo));
        let guard = FakeFrozen {
            world: self.world.clone(),
            journal: self.journal.clone(),
            name: self.name(),
            class: self.class,
            lie: self.lie,
            ticket,
            barrier,
        };
        self.world.work();
        if let (Some(barrier), Lie::EndsAndTells | Lie::EndsAndDoesNotTell) = (barrier, self.lie) {
            self.world.lose(barrier);
        }
        Ok(Box::new(guard))
    }
}

struct FakeFrozen {
    world: World,
    journal: Arc<dyn Journal>,
    name: String,
    class: HoldClass,
    lie: Lie,
    ticket: Ticket,
    barrier: Option<u64>,
}

impl Frozen for FakeFrozen {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        self.world.work();
        let stands = self.barrier.is_some_and(|id| self.world.stands(id));
        if !stands && matches!(self.lie, Lie::None | Lie::EndsAndTells) {
            return Err(Failure::new(FailureKind::Lost, format!("{} is gone", self.name), ""));
        }
        Ok(match self.class {
            HoldClass::SlowLock | HoldClass::FinalLock => Stillness::Lock(self.name.clone()),
            HoldClass::StopHook | HoldClass::ProcessFreezer | HoldClass::ServerFreezer => {
                Stillness::WritersFrozen(self.name.clone())
            }
        })
    }

    fn thaw(self: Box<Self>) -> Result<(), Failure> {
        self.world.work();
        Ok(())
    }
}

impl Drop for FakeFrozen {
    fn drop(&mut self) {
        if let Some(barrier) = self.barrier.take() {
            self.world.unbar(barrier);
        }
        self.journal.done(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::{any::Any, sync::Arc};

    use model::{
        id::SourceId,
        plan::HoldClass,
        port::{Clock, Hold},
    };

    use super::{FakeHold, Lie};
    use crate::{
        conformance::hold::{Bench, suite},
        fakes::world::{Reach, World},
    };

    struct Simulated {
        world: World,
        class: HoldClass,
        lie: Lie,
    }

    fn source() -> SourceId {
        SourceId::new("sqlite", "/a.db")
    }

    impl Bench for Simulated {
        fn hold(&self) -> Box<dyn Hold> {
            let journal = self.world.journal.clone();
            let hold = match self.class {
                HoldClass::FinalLock => FakeHold::lock(&self.world, journal, &source()),
                class => FakeHold::of_all(&self.world, journal, class),
            };
            Box::new(hold.lying(self.lie))
        }
        fn clock(&self) -> Arc<dyn Clock> {
            Arc::new(self.world.clone())
        }
        fn writers_run(&self) -> bool {
            !self.world.is_held(&Reach::Database(source()))
        }
        fn obstruct(&self) -> Option<Box<dyn Any>> {
            Some(Box::new(self.world.obstruct()))
        }
        fn lose(&self) -> bool {
            self.world.lose_barriers();
            true
        }
        fn open_undos(&self) -> usize {
            self.world.journal.open().len()
        }
    }

    fn run(class: HoldClass, lie: Lie) {
        suite(|| Box::new(Simulated { world: World::new(1), class, lie }));
    }

    #[test]
    fn honest_holds_conform() {
        for class in [HoldClass::StopHook, HoldClass::FinalLock, HoldClass::ProcessFreezer] {
            run(class, Lie::None);
        }
    }

    #[test]
    fn the_suite_finds_liars() {
        for lie in [Lie::HoldsNobody, Lie::EndsAndDoesNotTell, Lie::EndsAndTells] {
            assert!(std::panic::catch_unwind(|| run(HoldClass::FinalLock, lie)).is_err(), "{lie:?}");
        }
    }
}
