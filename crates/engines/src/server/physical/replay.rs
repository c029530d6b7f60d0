//! Bringing a restored copy from where mariadb-backup left it to the cut: [`replay_plan`] and [`ReplayPlan::run`].
//!
//! Crash story: see [`Forward`]. A copy that was replayed in part is of no use: restore it again.

use std::{path::PathBuf, sync::Arc};

use model::{
    port::{Failure, FailureKind, Journal, Silent},
    server::{BinlogPosition, ServerAccess, ServerForm, ServerRecord},
};

use super::Forward;

/// What is to be replayed on a restored copy before it is as it was at the cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayPlan {
    /// The logs in order, where they are restored.
    pub logs: Vec<PathBuf>,
    /// Where the copy stands, in the first log.
    pub from: BinlogPosition,
    /// The cut, in the last log.
    pub to: BinlogPosition,
}

/// What is to be replayed for this record; `None` if nothing is: another form, or a copy without logs. `restored` says
/// where a path of the backup was restored to.
///
/// # Errors
/// If logs are missing in the restored backup.
pub fn replay_plan(
    record: &ServerRecord,
    restored: impl Fn(&std::path::Path) -> PathBuf,
) -> Result<Option<ReplayPlan>, Failure> {
    let (Some(from), Some(to), Some(beside)) = (&record.replay_from, &record.position.binlog, &record.beside)
    else {
        return Ok(None);
    };
    if record.form != ServerForm::Physical || from == to {
        return Ok(None);
    }
    let dir = restored(beside);
    let missing =
        |what: String| Failure::new(FailureKind::Damaged, what, "restore the backup again, or an older one");
    let names = std::fs::read_dir(&dir).and_then(|names| names.collect::<Result<Vec<_>, _>>());
    let names = names.map_err(|error| missing(format!("{} cannot be read", dir.display())).because(error))?;
    let mut logs: Vec<PathBuf> = names.into_iter().map(|name| name.path()).collect();
    // Six digits until there are more than a million.
    logs.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    let is_named = |path: Option<&PathBuf>, place: &BinlogPosition| {
        path.and_then(|path| path.file_name()).is_some_and(|name| *name == *place.file)
    };
    if !is_named(logs.first(), from) || !is_named(logs.last(), to) {
        return Err(missing(format!("{} does not hold the binary logs from {from} to {to}", dir.display())));
    }
    Ok(Some(ReplayPlan { logs, from: from.clone(), to: to.clone() }))
}

impl ReplayPlan {
    /// In one line, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("replay {} binary logs from {} to {}", self.logs.len(), self.from, self.to)
    }

    /// Replays on a running copy. Its statements must not be logged anew by it, and its users must not be let in before.
    /// What is written down meanwhile goes to `staging`.
    ///
    /// # Errors
    /// What the programs say. The copy is of no use then.
    pub fn run(
        &self,
        access: &ServerAccess,
        journal: &Arc<dyn Journal>,
        staging: &std::path::Path,
    ) -> Result<(), Failure> {
        let forward = Forward {
            logs: self.logs.clone(),
            start: self.from.offset,
            stop: self.to.offset,
            what: format!("from {} to {}", self.from, self.to),
        };
        forward.run(access, journal, staging, &Silent)
    }
}
