//! A server with a binary log, the disk of its archive, and the repository: one simulated world for the log archive.
//!
//! Time passes when anybody works or waits. While it does the server commits, rotates, purges, restarts, loses its end, is
//! begun anew or replaced by another one; the archive's disk fills up, the repository cannot be reached, the clock is
//! set: whatever the [`Weather`] allows, from the seed. [`World::crash`] is a `kill -9` of the archive.
//!
//! The world keeps the truth: every order of commits that the server's log ever had ([`World::violations`]).
//!
//! Crash story: all in memory.

mod event;
mod server;
mod shelf;
mod spool;
#[cfg(test)]
mod tests;
mod truth;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use model::{
    id::{BackupId, SourceId},
    logs_retention::Anchor,
    port::Clock,
    time::Moment,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

pub use self::{server::FakeServer, shelf::FakeLogs, spool::FakeSpool};
use self::{server::ServerState, shelf::RepositoryState, spool::DiskState};

/// What may happen. `false` everywhere is a server that is written to, and nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Connections break, the server restarts.
    pub breaks: bool,
    /// The server removes its oldest logs, also those that were not read.
    pub purges: bool,
    /// The log is begun anew.
    pub resets: bool,
    /// The server crashes and loses its last transactions.
    pub loses: bool,
    /// Another server with the same history answers from now on.
    pub switches: bool,
    /// The archive's disk is full for a while.
    pub fills: bool,
    /// The repository cannot be reached for hours.
    pub vanishes: bool,
    /// Others use the repository.
    pub crowds: bool,
    /// The clock is set, by hours.
    pub steps: bool,
    /// Backups are taken, of which the newest three stay.
    pub backups: bool,
}

/// The world. Clones are the same one.
#[derive(Debug, Clone)]
pub struct World(Arc<Mutex<State>>);

#[derive(Debug)]
pub(super) struct State {
    nanos: u64,
    step: SignedDuration,
    random: StdRng,
    weather: Weather,
    server: ServerState,
    disk: DiskState,
    repository: RepositoryState,
    anchors: Vec<(Anchor, Stand)>,
    complaints: Vec<String>,
}

/// Where a backup stands: after so many transactions of this order of commits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stand {
    timeline: usize,
    after: usize,
}

/// How often the world changes.
const TICK: u64 = 50_000_000;

impl World {
    /// A world with a server that has committed a little. The same seed gives the same world.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        let mut state = State {
            nanos: 1_000_000_000,
            step: SignedDuration::ZERO,
            random: StdRng::seed_from_u64(seed),
            weather,
            server: ServerState::new(),
            disk: DiskState::default(),
            repository: RepositoryState::default(),
            anchors: Vec::new(),
            complaints: Vec::new(),
        };
        for _ in 0..5 {
            state.server.commit();
        }
        Self(Arc::new(Mutex::new(state)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock only says that an injected panic passed by.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose log it is.
    #[must_use]
    pub fn source(&self) -> SourceId {
        SourceId::new("mariadb", "/fake")
    }

    /// Lets time pass.
    pub fn pass(&self, duration: Duration) {
        let mut state = self.lock();
        let until = state.nanos + u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        while state.nanos / TICK < until / TICK {
            state.nanos = (state.nanos / TICK + 1) * TICK;
            state.change();
        }
        state.nanos = state.nanos.max(until);
    }

    /// Good weather from now on: everything works, and the server commits nothing more.
    pub fn calm(&self) {
        let mut state = self.lock();
        state.weather = Weather::default();
        state.server.is_idle = true;
        state.server.is_up = true;
        state.disk.is_full = false;
        state.repository.calm();
    }

    /// A random number below this one.
    #[must_use]
    pub fn random(&self, below: u64) -> u64 {
        self.lock().random.random_range(0..below)
    }

    /// The backups that stay.
    #[must_use]
    pub fn anchors(&self) -> Vec<Anchor> {
        self.lock().anchors.iter().map(|(anchor, _)| anchor.clone()).collect()
    }
}

impl State {
    fn now(&self) -> Timestamp {
        let real = Timestamp::from_second(1_795_000_000).unwrap_or_default();
        real + SignedDuration::from_nanos(i64::try_from(self.nanos).unwrap_or(i64::MAX)) + self.step
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.random.random_range(0..one_in) == 0
    }

    /// What a twentieth of a second brings.
    fn change(&mut self) {
        let weather = self.weather;
        if self.server.is_up && !self.server.is_idle {
            for _ in 0..self.random.random_range(0..3) {
                self.server.commit();
            }
            if self.chance(60) {
                self.server.rotate();
            }
        }
        self.change_server(weather);
        if weather.fills && self.chance(if self.disk.is_full { 40 } else { 200 }) {
            self.disk.is_full = !self.disk.is_full;
        }
        if weather.vanishes && self.chance(if self.repository.is_away { 100 } else { 200 }) {
            self.repository.is_away = !self.repository.is_away;
        }
        if weather.crowds && self.chance(30) {
            self.repository.is_crowded = !self.repository.is_crowded;
        }
        if weather.steps && self.chance(150) {
            self.step = SignedDuration::from_mins(self.random.random_range(-600..600));
        }
        if weather.backups && self.chance(60) {
            self.take_backup();
        }
    }

    fn change_server(&mut self, weather: Weather) {
        if weather.breaks {
            if self.chance(40) {
                self.server.connection += 1;
            }
            if self.chance(if self.server.is_up { 150 } else { 20 }) {
                self.server.is_up = !self.server.is_up;
                self.server.restart();
            }
        }
        if weather.purges && self.chance(100) {
            let keep = self.random.random_range(1..4);
            self.server.purge(keep);
        }
        if weather.resets && self.chance(400) {
            self.server.reset();
        }
        if weather.loses && self.chance(250) {
            let lost = self.random.random_range(0..6);
            self.server.lose(lost);
        }
        if weather.switches && self.chance(250) {
            let files = self.random.random_range(1..5);
            self.server.switch(files);
        }
    }

    fn take_backup(&mut self) {
        let unique = self.server.committed();
        let id = BackupId::new(format!("{unique:064x}")).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        let anchor = self.server.anchor(id, self.now());
        self.anchors.push((anchor, self.server.stand()));
        if self.anchors.len() > 3 {
            self.anchors.remove(0);
        }
    }

    fn complain(&mut self, what: impl Into<String>) {
        self.complaints.push(what.into());
    }
}

impl Clock for World {
    fn now(&self) -> Timestamp {
        self.lock().now()
    }
    fn moment(&self) -> Moment {
        Moment(self.lock().nanos)
    }
    fn sleep(&self, duration: Duration) {
        self.pass(duration);
    }
}
