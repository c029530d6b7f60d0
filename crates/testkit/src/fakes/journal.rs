//! A journal in memory.
//!
//! Crash story: in memory; a test that plays a killed run looks at [`MemoryJournal::open`].

use std::{collections::BTreeMap, sync::Mutex};

use model::{
    port::{Failure, Journal},
    time::Deadline,
    undo::{Ticket, Undo},
};

/// What is open, by ticket, and what was ever intended.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: BTreeMap<Ticket, Undo>,
    intended: Vec<Undo>,
}

impl MemoryJournal {
    /// What is open, oldest first.
    #[must_use]
    pub fn open(&self) -> Vec<(Ticket, Undo)> {
        self.lock().open.iter().map(|(ticket, undo)| (*ticket, undo.clone())).collect()
    }

    /// Everything that was ever intended or amended, in order.
    #[must_use]
    pub fn intended(&self) -> Vec<Undo> {
        self.lock().intended.clone()
    }

    /// Whether this very undo is open.
    #[must_use]
    pub fn is_open(&self, undo: &Undo) -> bool {
        self.lock().open.values().any(|open| open == undo)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn intend(&self, undo: Undo, _until: Option<Deadline>) -> Result<Ticket, Failure> {
        let mut state = self.lock();
        state.next += 1;
        let ticket = Ticket(state.next);
        state.open.insert(ticket, undo.clone());
        state.intended.push(undo);
        Ok(ticket)
    }

    fn amend(&self, ticket: Ticket, undo: Undo, _until: Option<Deadline>) -> Result<(), Failure> {
        let mut state = self.lock();
        state.open.insert(ticket, undo.clone());
        state.intended.push(undo);
        Ok(())
    }

    fn done(&self, ticket: Ticket) {
        self.lock().open.remove(&ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::{
        port::Journal,
        undo::{Ticket, Undo},
    };

    use super::MemoryJournal;
    use crate::conformance::journal::{Bench, suite};

    #[derive(Default)]
    struct Memory(Arc<MemoryJournal>);

    impl Bench for Memory {
        fn journal(&self) -> Arc<dyn Journal> {
            self.0.clone()
        }
        fn survivors(&self, _journal: Arc<dyn Journal>) -> Vec<(Ticket, Undo)> {
            self.0.open()
        }
    }

    #[test]
    fn it_conforms() {
        suite(|| Box::new(Memory::default()));
    }
}
