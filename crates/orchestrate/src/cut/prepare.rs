//! Everything that can be done while nobody is held: connecting, the first pass, storing it ahead, and rounds
//! while the difference still shrinks.
//!
//! Crash story: nothing is held. What was prepared is owned by the crew and goes with it; what was stored
//! ahead is listed nowhere, and the next run or `prune` deals with it.

use std::sync::Arc;

use model::{
    entry::Manifest,
    known::Known,
    port::{Difference, Failure, Progress, Store},
    problem::{Effect, Problem},
};

use super::crew::{Crew, without_remedy};

/// More rounds than this are not worth their reading, even if each finds less than the one before.
const ROUNDS: u32 = 4;

/// How often a hold is prepared if that fails for a reason that may pass.
const PREPARATIONS: u32 = 3;

/// What looking at a file costs beside its bytes, expressed in bytes.
const FILE_COST: u64 = 4096;

/// Prepares holds and pinners, and stores the first pass ahead.
///
/// # Errors
/// If a hold of the whole application is impossible, if nothing is left to pin, or if the store fails. A
/// source that cannot be locked or pinned is a problem of the crew, not an error.
pub fn prepare(crew: &mut Crew<'_>, store: &mut dyn Store, progress: &dyn Progress) -> Result<(), Failure> {
    crew.somebody()?;
    holds(crew)?;
    let known = store.known()?;
    let ahead = first_pass(crew, &known);
    crew.somebody()?;
    if let Some(manifest) = ahead {
        store.store_ahead(Arc::new(manifest), progress)?;
        for pinner in &mut crew.pinners {
            while let Some(more) = pinner.more_ahead(&known) {
                store.store_ahead(Arc::new(more), progress)?;
            }
        }
    }
    drop(known);
    shrink(crew);
    crew.somebody()
}

fn holds(crew: &mut Crew<'_>) -> Result<(), Failure> {
    let mut impossible = vec![];
    let (clock, patience, seed) = (crew.clock, crew.patience, crew.seed);
    for hold in &mut crew.holds {
        let mut prepared = hold.prepare();
        // A connection that was lost is no reason to leave a source out.
        for attempt in 1..PREPARATIONS {
            let Err(failure) = &prepared else { break };
            if !failure.is_transient() {
                break;
            }
            tracing::info!("{} is prepared again: {}", hold.name(), failure.in_full());
            clock.sleep(patience.pause(attempt, seed));
            prepared = hold.prepare();
        }
        match prepared {
            Ok(problems) => crew.problems.extend(problems),
            // Without a hold of the whole application the cut would not be the one that was planned.
            Err(failure) if hold.sources().is_empty() => return Err(failure),
            Err(failure) => impossible.push((hold.sources(), failure)),
        }
    }
    for (sources, failure) in impossible {
        crew.lose(&sources, failure);
    }
    Ok(())
}

fn first_pass(crew: &mut Crew<'_>, known: &Known) -> Option<Manifest> {
    let mut ahead: Vec<Manifest> = vec![];
    let mut impossible = vec![];
    for pinner in &mut crew.pinners {
        match pinner.prepare(known) {
            Ok(manifest) => ahead.extend(manifest),
            Err(failure) => impossible.push((pinner.source(), failure)),
        }
    }
    for (source, failure) in impossible {
        crew.lose(&[source], failure);
    }
    // All of it is read after the last of these moments, so each file that was settled by then is trusted,
    // and none that its own pinner trusts is smudged.
    let taken_at = ahead.iter().map(|m| m.taken_at).max()?;
    let mut manifests = ahead.into_iter();
    let mut entries = manifests.next()?.entries;
    manifests.for_each(|more| entries.extend(&more.entries));
    Some(Manifest::merge(taken_at, entries))
}

/// Rounds while each finds at most three quarters of what the one before found.
fn shrink(crew: &mut Crew<'_>) {
    let mut before = u64::MAX;
    for _ in 0..ROUNDS {
        let found = round(crew);
        if found == 0 || found > before / 4 * 3 {
            return;
        }
        before = found;
    }
}

/// One round of every pinner; returns what it cost.
pub(super) fn round(crew: &mut Crew<'_>) -> u64 {
    let mut cost = 0_u64;
    let mut impossible = vec![];
    for pinner in &mut crew.pinners {
        match pinner.round() {
            Ok(Difference { files, bytes }) => {
                cost = cost.saturating_add(bytes.0).saturating_add(files.saturating_mul(FILE_COST));
            }
            // The last round under the hold decides; this one was only to make it shorter.
            Err(failure) if failure.is_transient() => {
                let what = format!("a round before the cut failed: {}", without_remedy(&failure));
                crew.problems
                    .push(Problem::new(Effect::Note, None, what, failure.remedy).of(&pinner.source()));
            }
            Err(failure) => impossible.push((pinner.source(), failure)),
        }
    }
    for (source, failure) in impossible {
        crew.lose(&[source], failure);
    }
    cost
}
