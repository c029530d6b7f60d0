//! The log archive of an application: what its spool and its repository have together.
//!
//! Crash story: reads only, while the archive goes on. What is fetched from the repository lies in a journalled staging
//! directory, which goes with [`Archive`].

use std::{collections::BTreeMap, path::PathBuf};

use model::{
    id::{EpochId, SourceId},
    inventory::{Application, Database},
    logs::{Epoch, LogKind, LogStatus},
    logs_store::{Whence, unite},
    port::{Failure, FailureKind},
};
use os::staging::Staging;
use vault::{
    logs::{Catalogue, SourceLog},
    repository::Repository,
};

use crate::wire::{log::tail, log_store::spool, restore::staging, run::Run};

/// What an application's archive holds.
pub struct Archive<'a> {
    /// The log of each source.
    pub logs: Vec<Log>,
    repository: &'a mut Repository,
    staging: Staging,
}

/// The log of one source.
pub struct Log {
    /// Whose.
    pub source: SourceId,
    /// What it consists of.
    pub kind: LogKind,
    /// Its epochs, in their order.
    pub epochs: Vec<Epoch>,
    /// How far the archive is.
    pub status: Option<LogStatus>,
    /// What else is damaged.
    pub damaged: Vec<String>,
    /// What is damaged here or in the repository, and whole in the other.
    pub healed: Vec<String>,
    whence: BTreeMap<(EpochId, u64), Whence>,
    local: Option<SourceLog>,
}

impl<'a> Archive<'a> {
    /// Reads what is there.
    ///
    /// # Errors
    /// If spool or repository cannot be read.
    pub fn read(
        run: &Run<'_>,
        application: &Application,
        repository: &'a mut Repository,
    ) -> Result<Self, Failure> {
        let local = spool(run, application).catalogue(&tail)?;
        let stored = repository.log_catalogue().map_err(Failure::from)?;
        let stored = stored.map(|stored| stored.catalogue).unwrap_or_default();
        let staging = staging(run, "logs")?;
        Ok(Self { logs: together(&local, &stored), repository, staging })
    }

    /// The same, after every closed segment was read and compared with its SHA-256, here and in the repository.
    ///
    /// # Errors
    /// If spool or repository cannot be read. What is damaged is in the logs.
    pub fn read_whole(
        run: &Run<'_>,
        application: &Application,
        repository: &'a mut Repository,
    ) -> Result<Self, Failure> {
        let spool = spool(run, application);
        let mut local = spool.catalogue(&tail)?;
        for wrong in spool.verify(&local, &mut |_| {})? {
            damage(&mut local, &wrong.source, &wrong.epoch, wrong.number, wrong.what);
        }
        let stored = repository.log_catalogue().map_err(Failure::from)?;
        let mut stored = stored.map(|stored| stored.catalogue).unwrap_or_default();
        for log in stored.sources.clone() {
            let damaged = |epoch: &Epoch, number| epoch.damaged.iter().any(|(wrong, _)| *wrong == number);
            let sound = log.epochs.iter().flat_map(|epoch| {
                epoch.segments.iter().filter(move |segment| !damaged(epoch, segment.number))
            });
            let sound: Vec<_> = sound.cloned().collect();
            for wrong in repository.unproven_logs(&log.source, &sound).map_err(Failure::from)?.1 {
                damage(&mut stored, &log.source, &wrong.epoch, wrong.number, wrong.what);
            }
        }
        let staging = staging(run, "logs")?;
        Ok(Self { logs: together(&local, &stored), repository, staging })
    }

    /// The repository that it reads.
    pub fn repository(&mut self) -> &mut Repository {
        self.repository
    }

    /// Where a segment can be read: in the spool, or fetched from the repository.
    ///
    /// # Errors
    /// If it is in neither, or not whole.
    pub fn segment(&mut self, log: &Log, epoch: &EpochId, number: u64) -> Result<PathBuf, Failure> {
        let local = log.local.as_ref().and_then(|local| local.segment_path(epoch, number));
        if let (Some(Whence::Spool), Some(path)) = (log.whence.get(&(epoch.clone(), number)), local) {
            return Ok(path);
        }
        let dir = self.fetched(log, epoch)?;
        let path = dir.join(format!("{number:08}.seg"));
        if !path.exists() {
            let wrong = self.repository.fetch_logs(&log.source, epoch, &[number], false, &dir)?;
            if let Some(wrong) = wrong.first() {
                let what = format!("segment {number} of epoch {epoch} {}", wrong.what);
                return Err(Failure::new(FailureKind::Damaged, what, "see `stillpoint coverage`"));
            }
        }
        Ok(path)
    }

    /// The whole database with which an epoch begins.
    ///
    /// # Errors
    /// If it is neither here nor in the repository.
    pub fn base(&mut self, log: &Log, epoch: &EpochId) -> Result<PathBuf, Failure> {
        if let Some(path) = log.local.as_ref().map(|local| local.epoch_dir(epoch).join("base.db"))
            && path.exists()
        {
            return Ok(path);
        }
        let dir = self.fetched(log, epoch)?;
        self.repository.fetch_logs(&log.source, epoch, &[], true, &dir)?;
        let path = dir.join("base.db");
        if path.exists() {
            return Ok(path);
        }
        let what = format!("the base of epoch {epoch} of {} is missing", log.source);
        Err(Failure::new(FailureKind::Damaged, what, "restore a backup"))
    }

    fn fetched(&self, log: &Log, epoch: &EpochId) -> Result<PathBuf, Failure> {
        let dir = self.staging.path().join(vault::logs::source_dir_name(&log.source)).join(epoch.as_str());
        std::fs::create_dir_all(&dir).map_err(|error| {
            Failure::new(FailureKind::Other, "no place for logs can be made", "").because(error)
        })?;
        Ok(dir)
    }
}

/// Notes what was found of a segment, if that is not known.
fn damage(catalogue: &mut Catalogue, source: &SourceId, epoch: &EpochId, number: u64, what: String) {
    let log = catalogue.sources.iter_mut().find(|log| log.source == *source);
    let epoch = log.and_then(|log| log.epochs.iter_mut().find(|it| it.record.epoch == *epoch));
    if let Some(epoch) = epoch.filter(|epoch| epoch.damaged.iter().all(|(known, _)| *known != number)) {
        epoch.damaged.push((number, what));
    }
}

fn together(local: &Catalogue, stored: &Catalogue) -> Vec<Log> {
    let mut sources: Vec<(&SourceId, LogKind)> =
        local.sources.iter().chain(&stored.sources).map(|log| (&log.source, log.kind)).collect();
    sources.sort_by(|a, b| a.0.cmp(b.0));
    sources.dedup_by(|a, b| a.0 == b.0);
    let one = |(source, kind): (&SourceId, LogKind)| {
        let (here, there) = (local.of(source), stored.of(source));
        let epochs = |log: Option<&SourceLog>| log.map(|log| log.epochs.clone()).unwrap_or_default();
        let is_here =
            |epoch: &EpochId, number| here.is_some_and(|log| log.segment_path(epoch, number).is_some());
        let mut log = Log {
            source: source.clone(),
            kind,
            epochs: Vec::new(),
            status: here.and_then(|log| log.status.clone()),
            damaged: Vec::new(),
            healed: Vec::new(),
            whence: BTreeMap::new(),
            local: here.cloned(),
        };
        for (path, what) in here.iter().flat_map(|log| &log.damaged) {
            log.damaged.push(format!("{} {what}", model::pathtext::show(path)));
        }
        for united in unite(&epochs(here), &epochs(there), &is_here) {
            let id = united.epoch.record.epoch.clone();
            let told =
                united.healed.iter().map(|(number, what)| format!("segment {number} of epoch {id} {what}"));
            log.healed.extend(told);
            log.whence
                .extend(united.whence.into_iter().map(|(number, whence)| ((id.clone(), number), whence)));
            log.epochs.push(united.epoch);
        }
        log
    };
    sources.into_iter().map(one).collect()
}

/// All databases of an application.
pub fn databases(application: &Application) -> impl Iterator<Item = SourceId> {
    application.databases.iter().map(|database| match database {
        Database::Sqlite { path, .. } => SourceId::new("sqlite", model::pathtext::show(path)),
        Database::Server(server) => server.id(),
    })
}
