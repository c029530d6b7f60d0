//! One run of the program: its journal with the watchdog, the clocks, the key, and the repositories that it
//! opens.
//!
//! Crash story: everything that a run holds is in its journal; see [`super::logbook`]. [`Run::sweep`] undoes
//! what dead runs left.

use std::sync::Arc;

use jiff::Timestamp;
use model::{
    id::RunId,
    inventory::{Application, Inventory},
    port::{Clock, Failure, Journal},
};
use os::{clock::SystemClock, command::Helper};
use rand::Rng;
use vault::repository::{Opening, Password, Repository, index_cache};

use super::{inventory::prepare_state, logbook::Logbook, sweep};
use crate::{commands::Context, exit::Outcome, signals::Interrupt};

/// What all drivers of one run share.
pub struct Run<'a> {
    /// What is backed up, and where to.
    pub inventory: &'a Inventory,
    /// How to start helpers.
    pub helper: Helper,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Random bits.
    pub seed: u64,
    password: &'a Password,
    logbook: Arc<Logbook>,
}

impl<'a> Run<'a> {
    /// Begins a run.
    ///
    /// # Errors
    /// If the state directory or the journal cannot be made.
    pub fn begin(context: &Context, inventory: &'a Inventory, password: &'a Password) -> Outcome<Self> {
        Self::begin_until(&context.interrupt, inventory, password)
    }

    /// The same, with another wish than the command's own as that after which nothing more is begun.
    ///
    /// # Errors
    /// As [`Run::begin`].
    pub fn begin_until(
        interrupt: &Interrupt,
        inventory: &'a Inventory,
        password: &'a Password,
    ) -> Outcome<Self> {
        interrupt.defer();
        let state = prepare_state(inventory)?;
        let helper = Helper::this_program();
        let logbook = Logbook::begin(&state, &run_id()?, helper.clone(), interrupt.clone())?;
        Ok(Self {
            inventory,
            helper,
            clock: Arc::new(SystemClock),
            seed: rand::rng().random(),
            password,
            logbook: Arc::new(logbook),
        })
    }

    /// Where holds and pins are written down.
    #[must_use]
    pub fn journal(&self) -> Arc<dyn Journal> {
        Arc::clone(&self.logbook) as Arc<dyn Journal>
    }

    /// The journal itself.
    #[must_use]
    pub fn logbook(&self) -> &Logbook {
        &self.logbook
    }

    /// Opens the repository of an application.
    ///
    /// # Errors
    /// If there is none, the key does not open it, or it cannot be read.
    pub fn open(&self, application: &Application) -> Result<Repository, Failure> {
        self.open_with(application, self.password)
    }

    /// The same with another key.
    ///
    /// # Errors
    /// As [`Run::open`].
    pub fn open_with(&self, application: &Application, password: &Password) -> Result<Repository, Failure> {
        let dir = self.inventory.place(application).join("repository");
        let mut repository = Repository::open(&Opening { dir, password: password.clone() }, self.journal())?;
        repository.cache_index_at(index_cache(&self.inventory.state(), &application.relpath));
        Ok(repository)
    }

    /// Undoes what dead runs left held, pinned or locked.
    ///
    /// # Errors
    /// If the journals cannot be read. What cannot be undone is in the result.
    pub fn sweep(&self) -> Result<sweep::Swept, Failure> {
        sweep::sweep(&self.inventory.state())
    }

    /// Ends the run.
    ///
    /// # Errors
    /// If the watchdog does not leave.
    pub fn end(self) -> Result<(), Failure> {
        self.logbook.end()
    }
}

fn run_id() -> Result<RunId, Failure> {
    let started = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let id = RunId::new(format!("{started}-{}", std::process::id()));
    id.map_err(|error| {
        Failure::new(model::port::FailureKind::Other, "the run has no name", "").because(error)
    })
}
