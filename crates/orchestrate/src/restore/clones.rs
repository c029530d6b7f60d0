//! Files that are cloned from frozen copies of the backup, instead of being read from the repository.
//!
//! The site has found each copy to be what was recorded when the backup was listed, and what was recorded is what the backup
//! has. What no record can tell is whether the disk still gives those bytes: so each clone is read, by all threads, and
//! compared by the names of its parts, unless the plan trusts them. Whatever is not cloned, for whatever reason, is
//! written from the repository.
//!
//! Crash story: see [`super`]: all this happens beside what is there.

use std::collections::{HashMap, HashSet};

use model::{
    port::{Failure, FailureKind},
    port_restore::{Beside, Writing},
    problem::{Effect, Problem},
    reference::ReferenceFile,
    restore::{Cloned, RestorePlan},
    size::Bytes,
};

use super::{
    Job,
    files::{self, Written},
};

/// What was cloned.
#[derive(Debug, Default)]
pub(super) struct Clones {
    /// The items.
    pub items: HashSet<usize>,
    /// What came of it, and what is known of the others.
    pub written: Written,
    /// Whether they were read.
    pub compared: bool,
}

impl Clones {
    /// For the report; nothing if nothing was cloned.
    pub fn told(&self) -> Option<Cloned> {
        let Written { files, bytes, .. } = self.written;
        (files > 0).then_some(Cloned { files, bytes, compared: self.compared })
    }
}

/// A clone that has no attributes yet.
type Begun<'a> = ((usize, usize), Box<dyn Writing + 'a>);

/// Clones what the plan says, as far as it can be done.
pub(super) fn make(
    plan: &RestorePlan,
    job: &Job<'_>,
    beside: &dyn Beside,
    files: &[(usize, usize)],
) -> Result<Clones, Failure> {
    let mut clones = Clones { compared: !plan.trusts_copies, ..Clones::default() };
    let begun = begin(plan, job, beside, files)?;
    let chosen: Vec<(usize, usize)> = begun.iter().map(|(file, _)| *file).collect();
    let found = if plan.trusts_copies {
        chosen.iter().map(|_| Ok(true)).collect()
    } else {
        files::reread(job, beside, &chosen)
    };
    for ((file, writing), found) in begun.into_iter().zip(found) {
        let entry = &job.contents.listing().entries()[file.1];
        let what = match found {
            Ok(true) => match writing.finish() {
                Ok(finished) => {
                    clones.items.insert(file.1);
                    clones.written.files += 1;
                    clones.written.bytes = clones.written.bytes + entry.meta.size;
                    clones.written.problems.extend(finished.problems);
                    continue;
                }
                Err(failure) => failure.in_full(),
            },
            Ok(false) => {
                "it is not what was stored, although nobody wrote to it: the disk may be failing".into()
            }
            Err(failure) => failure.in_full(),
        };
        let what = format!("its frozen copy is no use, so it was restored from the repository: {what}");
        let remedy = "look into the kernel's log for errors of the disk";
        clones.written.problems.push(Problem::new(Effect::Note, Some(entry.path.clone()), what, remedy));
    }
    Ok(clones)
}

/// Clones, a moment each.
fn begin<'a>(
    plan: &RestorePlan,
    job: &'a Job<'_>,
    beside: &'a dyn Beside,
    files: &[(usize, usize)],
) -> Result<Vec<Begun<'a>>, Failure> {
    let listing = job.contents.listing();
    let item = |copy: &'a ReferenceFile| Some((listing.position(&copy.path)?, copy));
    let copies: HashMap<usize, &ReferenceFile> = job.contents.copies().iter().filter_map(item).collect();
    let mut begun: Vec<Begun<'a>> = Vec::new();
    for file in files {
        let entry = &listing.entries()[file.1];
        let Some(copy) = copies.get(&file.1).filter(|copy| plan.copies.contains(copy)) else { continue };
        match beside.clone_of(file.0, entry, copy) {
            Ok(Some(writing)) => begun.push((*file, writing)),
            Ok(None) => {}
            Err(failure) if failure.kind == FailureKind::NoSpace => return Err(failure),
            // Writing it tells why.
            Err(failure) => tracing::debug!(%failure, "it cannot be cloned"),
        }
        if plan.trusts_copies {
            job.progress.advance(Bytes(entry.meta.size.0));
        }
    }
    Ok(begun)
}
