//! Whether every byte of every backup is there.
//!
//! Our own, independent of the code that wrote: index and packs against the directory, every directory of
//! every backup against the index, and at full depth every pack against its name and every part in it
//! against its own. What is found is told as problems that name the thing, the backups it is needed by, and
//! what to do.
//!
//! Crash story: reads only, under a shared lock, so that nothing is removed meanwhile.

mod logs;
mod packs;
mod trees;

use std::path::PathBuf;

use jiff::Timestamp;
use model::{
    port::{Progress, Stage},
    problem::{Effect, Problem},
    size::Bytes,
};
use rustic_core::{FileType, TreeId};

use self::{
    packs::{Catalog, PackFault},
    trees::{Cause, Damage},
};
use super::{error::RepositoryError, lock::LockKind, open::Repository, snapshot::is_log};

/// How thoroughly to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Lists, sizes, and every directory of every backup.
    Quick,
    /// All that, and every stored byte is read and compared with its cryptographic name.
    ReadData,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// What is wrong ([`Effect::Missing`]) or worth knowing ([`Effect::Note`]).
    pub problems: Vec<Problem>,
    /// How many backups were checked.
    pub backups: u64,
    /// How many packs the index names.
    pub packs: u64,
    /// How many bytes of packs were read and compared, directories not counted.
    pub bytes_read: Bytes,
}

impl CheckReport {
    /// Whether every backup is whole.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.iter().all(|problem| problem.effect == Effect::Note)
    }
}

/// Damaged things that are each told; beyond that they are counted.
const TOLD: usize = 100;

const LOST: &str = "bring the file back from another tier; what it held is lost otherwise: run `restic repair \
                    index` (`restic rebuild-index` before 0.16), take a new backup, which stores again what \
                    still exists, and remove the backups named here";

/// A backup whose root is known.
struct Root {
    /// The first digits of its id and its time.
    name: String,
    tree: TreeId,
    /// It holds the log archive and is no backup.
    is_log: bool,
}

impl Repository {
    /// Checks the repository and all backups in it.
    ///
    /// # Errors
    /// If somebody holds it exclusively, or it cannot be listed at all. Damage is no error but a problem.
    pub fn check(&mut self, depth: Depth, progress: &dyn Progress) -> Result<CheckReport, RepositoryError> {
        self.end_session()?;
        let lock = self.locks.take(LockKind::Shared)?;
        let report = self.check_all(depth, progress);
        lock.release()?;
        report
    }

    fn check_all(&self, depth: Depth, progress: &dyn Progress) -> Result<CheckReport, RepositoryError> {
        let mut problems = self.keys_that_do_not_read()?;
        let roots = self.roots(&mut problems)?;
        let mut catalog = Catalog::read(self, &mut problems)?;
        catalog.compare_with_directory(self)?;
        let bytes_read = match depth {
            Depth::Quick => Bytes(0),
            Depth::ReadData => {
                progress.begin(Stage::Reading, Some(catalog.size()));
                let read = catalog.read_packs(self, progress)?;
                progress.end();
                read
            }
        };
        let damage = trees::walk(self, &catalog, &roots);
        problems.extend(self.told(&catalog, &damage));
        if roots.iter().any(|root| root.is_log) {
            match logs::problems(self, depth) {
                Ok(found) => problems.extend(found),
                // What else was found says why, and is the thing to mend first.
                Err(error) if problems.iter().any(|problem| problem.effect == Effect::Missing) => {
                    let what = format!("the log archive cannot be checked: {}", full(&error));
                    problems.push(Problem::missing(
                        self.dir(),
                        what,
                        "mend what else is named, then check again",
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(CheckReport {
            problems,
            backups: roots.iter().filter(|root| !root.is_log).count() as u64,
            packs: catalog.packs.len() as u64,
            bytes_read,
        })
    }

    fn keys_that_do_not_read(&self) -> Result<Vec<Problem>, RepositoryError> {
        let mut problems = Vec::new();
        for (id, _) in self.backend.files(FileType::Key)? {
            if let Err(error) = self.backend.read(FileType::Key, &id) {
                let remedy = "remove it with `stillpoint key`; another key opens the repository";
                let path = self.backend.path(FileType::Key, &id);
                problems.push(Problem::new(Effect::Note, Some(path), full(&error), remedy));
            }
        }
        Ok(problems)
    }

    fn roots(&self, problems: &mut Vec<Problem>) -> Result<Vec<Root>, RepositoryError> {
        let mut roots: Vec<(Timestamp, Root)> = Vec::new();
        for listed in self.snapshots()? {
            let short = listed.id.to_hex()[..8].to_owned();
            match listed.snapshot {
                Ok(snapshot) => {
                    let time = snapshot.time.timestamp();
                    let is_log = is_log(&snapshot);
                    let what = if is_log { ", the log archive" } else { "" };
                    let name = format!("{short} of {}{what}", time.strftime("%Y-%m-%d %H:%M:%S+00:00"));
                    roots.push((time, Root { name, tree: snapshot.tree, is_log }));
                }
                Err(error) => {
                    let path = self.backend.path(FileType::Snapshot, &listed.id);
                    let what = format!("backup {short} cannot be read: {}", full(&error));
                    let remedy = "bring this small file back from another tier; the content is not affected";
                    problems.push(Problem::missing(path, what, remedy));
                }
            }
        }
        roots.sort_by_key(|(time, _)| *time);
        Ok(roots.into_iter().map(|(_, root)| root).collect())
    }

    /// Faults of packs with what they cost, then what no pack explains.
    fn told(&self, catalog: &Catalog, damage: &Damage) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (number, fault) in catalog.faults() {
            let pack = &catalog.packs[number];
            let path = self.backend.path(FileType::Pack, &pack.id);
            let what = format!("pack {}: {}", &pack.id.to_hex()[..8], fault.what);
            problems.push(match damage.of(Cause::Pack(number)) {
                Some(cost) => Problem::missing(path, format!("{what}; {cost}"), LOST),
                None => Problem::new(
                    Effect::Note,
                    Some(path),
                    format!("{what}; no backup needs what is lost"),
                    "",
                ),
            });
        }
        for unnamed in &catalog.unnamed {
            let path = self.backend.path(FileType::Pack, unnamed);
            let what = "this pack is in no index: left by an interrupted backup";
            problems.push(Problem::new(Effect::Note, Some(path), what, "`stillpoint prune` frees it"));
        }
        if let Some(cost) = damage.of(Cause::NoIndex) {
            let what = format!("stored content is in no index; {cost}");
            let remedy = "run `restic repair index` (`restic rebuild-index` before 0.16), which reads the \
                          packs and writes the index anew, then check again";
            problems.push(Problem::missing(self.dir().join("index"), what, remedy));
        }
        if let Some(cost) = damage.of(Cause::Shape) {
            let what = format!("stored directories do not make sense; {cost}");
            problems.push(Problem::missing(self.dir(), what, "remove the backups named here"));
        }
        let rest = problems.len().saturating_sub(TOLD);
        problems.truncate(TOLD);
        if rest > 0 {
            problems.push(Problem::missing(self.dir(), format!("and {rest} more of this kind"), ""));
        }
        problems
    }
}

/// An error with its causes in one line.
fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

impl PackFault {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), parts: None }
    }
}

/// A path inside a backup, for people.
fn shown(path: &std::path::Path) -> String {
    model::pathtext::show(&PathBuf::from("/").join(path))
}
