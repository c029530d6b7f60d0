//! Files of the source that processes have mapped writable and shared.
//!
//! A store to a page that is dirty already moves no time, so such a file may change without a trace: while a
//! process that is not held has one, "nothing changed" shows nothing, and the cut is weaker for it. All
//! processes are looked at after each unlocked look and once after the thaw, since it takes too long to do so
//! under the freeze. What remains unseen: a mapping that is made and gone again between two looks, and what
//! `/proc` hides from us.
//!
//! Our own children need no exception: they map nothing but databases' `-shm`, which are carved out.
//!
//! Crash story: reads only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
};

use model::{
    entry::Kind,
    port::{Failure, FailureKind},
    problem::{Effect, Problem},
    size::Bytes,
    undo::ProcessRef,
};
use os::{
    process::{alive, all_shared_writable_maps, shared_writable_maps, start_of_a_process_now},
    tree::Census,
};

/// Asked for the processes that are held at the moment of asking.
pub type Held = Arc<dyn Fn() -> Vec<ProcessRef> + Send + Sync>;

/// How much of what others have mapped, and go on having mapped, is brought in again under the freeze. The cut
/// is weaker all the same.
const TORN_ANYWAY: Bytes = Bytes(32 << 20);

/// A file and who has it mapped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mapped {
    process: ProcessRef,
    command: String,
    path: PathBuf,
    size: Bytes,
}

/// Everything that was seen mapped in unlocked looks.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    mapped: BTreeSet<Mapped>,
    hidden: u64,
}

impl Suspects {
    /// Looks at all processes, for files of the census.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub(super) fn look(&mut self, census: &Census) -> Result<(), Failure> {
        let (mapped, hidden) = look(census, &|_| true)?;
        self.mapped.extend(mapped);
        self.hidden = hidden;
        Ok(())
    }

    /// Under the freeze: what has to be brought in again since it may have changed without a trace, and whom to
    /// blame after the thaw.
    pub(super) fn under_the_freeze(&self, held: Vec<ProcessRef>) -> (BTreeSet<PathBuf>, Blame) {
        let mut again: BTreeSet<PathBuf> = shared_writable_maps(&held).into_iter().collect();
        let (free, ended): (Vec<&Mapped>, Vec<&Mapped>) =
            self.mapped.iter().filter(|m| !held.contains(&m.process)).partition(|m| alive(m.process));
        // Whoever has ended since, as by a stop hook, wrote before the freeze.
        again.extend(ended.into_iter().map(|mapped| mapped.path.clone()));
        if free.iter().map(|mapped| mapped.size).sum::<Bytes>() <= TORN_ANYWAY {
            again.extend(free.iter().map(|mapped| mapped.path.clone()));
        }
        let free = free.into_iter().cloned().collect();
        (again, Blame { mapped: free, hidden: self.hidden, held, over: start_of_a_process_now() })
    }
}

/// Who may have changed the source without a trace while it was pinned.
#[derive(Debug)]
pub(super) struct Blame {
    mapped: BTreeSet<Mapped>,
    hidden: u64,
    /// Who was held in this cut.
    held: Vec<ProcessRef>,
    /// Who started after this had no part in it ([`ProcessRef::start`]).
    over: u64,
}

impl Blame {
    /// The pin has been compared: whoever starts from now on cannot have changed what it holds.
    pub(super) fn is_over(&mut self) {
        self.over = start_of_a_process_now();
    }

    /// What is said beside "nothing changed"; empty if all processes could be looked at.
    pub(super) fn caveat(&self) -> String {
        match self.hidden {
            0 => String::new(),
            1 => "; the mappings of 1 process could not be looked at".to_owned(),
            n => format!("; the mappings of {n} processes could not be looked at"),
        }
    }

    /// The files that somebody has or had mapped who was not held.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.mapped.iter().map(|mapped| &mapped.path)
    }

    /// Looks again, after the thaw, and tells of everybody who has or had files of the census mapped.
    pub(super) fn problems(&mut self, census: &Census) -> Vec<Problem> {
        let took_part = |process: ProcessRef| process.start <= self.over && !self.held.contains(&process);
        let now = match look(census, &took_part) {
            Ok((now, _)) => now,
            Err(failure) => return vec![Problem::new(Effect::Weaker, None, failure.in_full(), "")],
        };
        self.mapped.extend(now);
        let mut by_process: BTreeMap<ProcessRef, Vec<&Mapped>> = BTreeMap::new();
        for mapped in &self.mapped {
            by_process.entry(mapped.process).or_default().push(mapped);
        }
        by_process.into_values().filter_map(|files| problem(&files)).collect()
    }
}

/// Files of the census that processes which `counts` accepts have mapped, and how many processes hide theirs.
fn look(census: &Census, counts: &dyn Fn(ProcessRef) -> bool) -> Result<(Vec<Mapped>, u64), Failure> {
    let mappings = all_shared_writable_maps().map_err(|error| {
        let what = "it cannot be found out which processes have files mapped";
        Failure::new(FailureKind::Other, what, "see that /proc is mounted").because(error)
    })?;
    let mut wanted: HashMap<(u64, u64), Vec<(ProcessRef, String)>> = HashMap::new();
    for mapping in mappings.found.into_iter().filter(|mapping| counts(mapping.process)) {
        let whom = wanted.entry((mapping.device, mapping.inode)).or_default();
        whom.push((mapping.process, mapping.command));
    }
    let mut found = Vec::new();
    if wanted.is_empty() {
        return Ok((found, mappings.hidden));
    }
    census.each(&mut |_, _, entry| {
        let whom = wanted.get(&(entry.meta.device, entry.meta.inode)).filter(|_| entry.kind == Kind::File);
        found.extend(whom.into_iter().flatten().map(|(process, command)| Mapped {
            process: *process,
            command: command.clone(),
            path: entry.path.clone(),
            size: entry.meta.size,
        }));
    });
    Ok((found, mappings.hidden))
}

/// One problem for all files of one process.
fn problem(files: &[&Mapped]) -> Option<Problem> {
    let first = files.first()?;
    let paths: BTreeSet<&PathBuf> = files.iter().map(|mapped| &mapped.path).collect();
    let others = match paths.len() - 1 {
        0 => String::new(),
        1 => ", and 1 other file".to_owned(),
        n => format!(", and {n} other files"),
    };
    let what = format!(
        "mapped for shared writing by process {} ({}), which was not held{others}: it may have changed without a \
         trace",
        first.process.pid, first.command
    );
    let remedy = "name the process in [application.process], stop it by hooks, or put the directory on btrfs";
    Some(Problem::weaker(&first.path, what, remedy))
}
