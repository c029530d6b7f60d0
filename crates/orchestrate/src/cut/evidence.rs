//! What was shown: evidence for each source, from what holds and pins said. DESIGN.md section 2, "held".
//!
//! Crash story: a pure function, no effects.
//!
//! A source is of the one instant if
//! - its own lock was proven after the last pin, or
//! - a hold of all its writers (processes, stop hook), taken before the first pin, was proven after the last, or
//! - it is a directory, and a scan after the last pin found nothing changed since its pinning began, or
//! - it was pinned by an atomic snapshot, under the locks, and no other snapshot was taken besides: two
//!   snapshots one after the other are two instants.
//!
//! Against all of these, a pin that answers `NotShown` wins: whoever changed a source whose writers are held
//! is a writer that is not held.
//!
//! The instant at which all this is true lies after the end of the last pin and before the first scan. For
//! that, atomic snapshots are taken last (see [`crate::cut::crew::Crew::new`]): a scanned directory then has
//! not changed between its own pin and the snapshot.

use std::collections::BTreeSet;

use model::{
    id::SourceId,
    plan::HoldClass,
    verdict::{Evidence, Stillness},
};

/// A hold that was proven after the last pin.
#[derive(Debug, Clone)]
pub struct HoldProof {
    /// The hold's name.
    pub name: String,
    /// Whose writers it holds; empty for the whole application.
    pub sources: Vec<SourceId>,
    /// Its class.
    pub class: HoldClass,
    /// What it showed.
    pub proof: Stillness,
}

/// What a pin answered when it was asked, after the last pin, whether its source had changed.
#[derive(Debug, Clone)]
pub struct PinAnswer {
    /// The source.
    pub source: SourceId,
    /// Whether the source is a directory: a scan can show that it stood still, which for a database it cannot.
    pub directory: bool,
    /// The answer.
    pub stillness: Stillness,
}

/// What was shown for all sources that were pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// One for each pin.
    pub evidence: Vec<Evidence>,
    /// Something changed while it was being pinned: another attempt may be luckier.
    pub restless: bool,
}

/// Decides what was shown.
#[must_use]
pub fn decide(proofs: &[HoldProof], answers: &[PinAnswer]) -> Decision {
    let one_snapshot = snapshots(proofs, answers) <= 1;
    let evidence = answers
        .iter()
        .map(|answer| Evidence {
            source: answer.source.clone(),
            stillness: of_one(proofs, answer, one_snapshot),
            checks: vec![],
        })
        .collect();
    let restless = answers.iter().any(|a| matches!(a.stillness, Stillness::NotShown(_)));
    Decision { evidence, restless }
}

/// On how many snapshots those sources rest whose writers nobody held. Sources that share one say the same of it.
fn snapshots(proofs: &[HoldProof], answers: &[PinAnswer]) -> usize {
    let unheld = answers.iter().filter(|a| held_by(proofs, &a.source).is_none());
    let named = unheld.filter_map(|a| match &a.stillness {
        Stillness::AtomicSnapshot(name) => Some(name),
        _ => None,
    });
    named.collect::<BTreeSet<_>>().len()
}

fn of_one(proofs: &[HoldProof], answer: &PinAnswer, one_snapshot: bool) -> Stillness {
    if let Stillness::NotShown(why) = &answer.stillness {
        return Stillness::NotShown(why.clone());
    }
    if let Some(held) = held_by(proofs, &answer.source) {
        return held;
    }
    match &answer.stillness {
        Stillness::AtomicSnapshot(_) if !one_snapshot => Stillness::NotShown(
            "several snapshots were taken one after the other, and nobody held the writers between them"
                .to_owned(),
        ),
        Stillness::AtomicSnapshot(detail) => Stillness::AtomicSnapshot(detail.clone()),
        Stillness::NothingChanged(detail) if answer.directory => Stillness::NothingChanged(detail.clone()),
        _ if answer.directory => {
            Stillness::NotShown("neither writers held nor a scan or snapshot".to_owned())
        }
        _ => Stillness::NotShown("no lock was held on it".to_owned()),
    }
}

/// What the holds show for a source: its own lock first, then a hold of all its writers. A lock of one
/// source says nothing of another.
fn held_by(proofs: &[HoldProof], source: &SourceId) -> Option<Stillness> {
    let shown = |p: &&HoldProof| !matches!(p.proof, Stillness::NotShown(_));
    let is_lock = |p: &HoldProof| matches!(p.class, HoldClass::SlowLock | HoldClass::FinalLock);
    let lock = proofs.iter().filter(shown).find(|p| is_lock(p) && p.sources.contains(source));
    let whole = || {
        let covers = |p: &HoldProof| p.sources.is_empty() || p.sources.contains(source);
        proofs.iter().filter(shown).find(|p| !is_lock(p) && covers(p))
    };
    match (lock, lock.is_none().then(whole).flatten()) {
        (Some(lock), _) => Some(lock.proof.clone()),
        (None, Some(whole)) => Some(match &whole.proof {
            Stillness::WritersFrozen(detail) => Stillness::WritersFrozen(detail.clone()),
            Stillness::Lock(detail)
            | Stillness::AtomicSnapshot(detail)
            | Stillness::NothingChanged(detail)
            | Stillness::NotShown(detail) => Stillness::WritersFrozen(format!("{}: {detail}", whole.name)),
        }),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use model::{id::SourceId, plan::HoldClass, verdict::Stillness};

    use super::{HoldProof, PinAnswer, decide};

    fn database() -> SourceId {
        SourceId::new("sqlite", "/a.db")
    }

    fn directory(path: &str) -> SourceId {
        SourceId::new("directory", path)
    }

    fn lock() -> HoldProof {
        let proof = Stillness::Lock("RESERVED".into());
        HoldProof { name: "l".into(), sources: vec![database()], class: HoldClass::FinalLock, proof }
    }

    fn processes() -> HoldProof {
        let proof = Stillness::WritersFrozen("3 threads".into());
        HoldProof { name: "p".into(), sources: vec![], class: HoldClass::ProcessFreezer, proof }
    }

    fn answer(source: SourceId, stillness: Stillness) -> PinAnswer {
        PinAnswer { directory: source.as_str().starts_with("directory:"), source, stillness }
    }

    fn stillness(proofs: &[HoldProof], answers: &[PinAnswer]) -> Vec<Stillness> {
        decide(proofs, answers).evidence.into_iter().map(|e| e.stillness).collect()
    }

    fn unchanged() -> Stillness {
        Stillness::NothingChanged("scan".into())
    }

    fn snapshot(name: &str) -> Stillness {
        Stillness::AtomicSnapshot(name.into())
    }

    fn changed() -> Stillness {
        Stillness::NotShown("/d/x changed".into())
    }

    fn is_shown(stillness: &Stillness) -> bool {
        !matches!(stillness, Stillness::NotShown(_))
    }

    #[test]
    fn a_database_needs_its_own_lock() {
        let a = [answer(database(), unchanged())];
        assert!(matches!(stillness(&[lock()], &a)[0], Stillness::Lock(_)));
        assert!(!is_shown(&stillness(&[], &a)[0]));
        let other = [answer(SourceId::new("sqlite", "/b.db"), unchanged())];
        assert!(!is_shown(&stillness(&[lock()], &other)[0]));
        assert!(matches!(stillness(&[processes()], &other)[0], Stillness::WritersFrozen(_)));
    }

    #[test]
    fn a_lock_of_a_database_says_nothing_of_a_directory() {
        let a = [answer(directory("/d"), Stillness::Lock("no".into()))];
        assert!(!is_shown(&stillness(&[lock()], &a)[0]));
    }

    #[test]
    fn a_directory_is_held_by_its_writers_a_scan_or_a_snapshot() {
        let d = |s| [answer(directory("/d"), s)];
        assert_eq!(stillness(&[lock()], &d(unchanged())), vec![unchanged()]);
        assert_eq!(stillness(&[lock()], &d(snapshot("s"))), vec![snapshot("s")]);
        assert!(matches!(stillness(&[processes()], &d(unchanged()))[0], Stillness::WritersFrozen(_)));
        assert_eq!(stillness(&[], &d(unchanged())), vec![unchanged()]);
    }

    #[test]
    fn a_change_that_was_seen_outweighs_every_hold() {
        for proofs in [vec![], vec![processes()], vec![lock()]] {
            for source in [database(), directory("/d")] {
                let decision = decide(&proofs, &[answer(source, changed())]);
                assert_eq!(decision.evidence[0].stillness, changed());
                assert!(decision.restless);
            }
        }
    }

    #[test]
    fn a_hold_that_shows_nothing_counts_for_nothing() {
        let mut empty = processes();
        empty.proof = Stillness::NotShown("?".into());
        assert!(!is_shown(&stillness(&[empty], &[answer(database(), unchanged())])[0]));
    }

    #[test]
    fn two_snapshots_are_two_instants_unless_writers_are_held() {
        let shared = [answer(directory("/d"), snapshot("s")), answer(directory("/e"), snapshot("s"))];
        assert!(stillness(&[], &shared).iter().all(is_shown));
        let two = [answer(directory("/d"), snapshot("s")), answer(directory("/e"), snapshot("t"))];
        assert!(stillness(&[], &two).iter().all(|s| !is_shown(s)));
        assert!(stillness(&[processes()], &two).iter().all(is_shown));
        let one = [answer(directory("/d"), snapshot("s")), answer(directory("/e"), unchanged())];
        assert!(stillness(&[], &one).iter().all(is_shown));
    }
}
