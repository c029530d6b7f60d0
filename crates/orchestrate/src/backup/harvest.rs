//! From pins to entries: what could not be harvested is a problem of the cut.
//!
//! Crash story: reads pins, which their owner releases. Makes nothing that outlives it.

use model::{
    entries::Entries,
    port::{Failure, FailureKind, Progress},
    problem::Problem,
};

use crate::cut::{
    crew::missing,
    host::{Cut, Pinned},
};

/// All entries of all pins. Problems and checks go to the cut. A source whose harvest fails altogether is
/// missing, and there is no evidence of it any more.
///
/// # Errors
/// If no pin gives anything: the failure of the first.
pub(super) fn gather(
    pins: &mut [Pinned],
    cut: &mut Cut,
    progress: &dyn Progress,
) -> Result<Entries, Failure> {
    let mut entries = Entries::default();
    let mut first = None;
    let mut harvested = 0;
    for Pinned { source, pin } in pins {
        match pin.harvest_into(&mut entries, progress) {
            Ok(harvest) => {
                harvested += 1;
                cut.servers.extend(harvest.server);
                cut.problems.extend(harvest.problems.into_iter().map(|problem| match problem.source {
                    Some(_) => problem,
                    None => problem.of(source),
                }));
                if let Some(evidence) = cut.evidence.iter_mut().find(|e| e.source == *source) {
                    evidence.checks.extend(harvest.checks);
                }
            }
            Err(failure) => {
                cut.problems.push(missing(source, &failure));
                cut.evidence.retain(|e| e.source != *source);
                first.get_or_insert(failure);
            }
        }
    }
    if harvested > 0 && !entries.is_empty() {
        return Ok(entries);
    }
    Err(first.unwrap_or_else(|| {
        let why: Vec<String> = cut.problems.iter().map(ToString::to_string).collect();
        Failure::new(FailureKind::Other, format!("there is nothing to store: {}", why.join(". ")), "")
    }))
}

/// What is wrong with the pins now that everything was read from them: a snapshot may have run full meanwhile.
pub(super) fn afterwards(pins: &mut [Pinned]) -> Vec<Problem> {
    let of = |Pinned { source, pin }: &mut Pinned| {
        let problems = pin.afterwards().into_iter();
        problems
            .map(|problem| if problem.source.is_some() { problem } else { problem.of(source) })
            .collect::<Vec<_>>()
    };
    pins.iter_mut().flat_map(of).collect()
}
