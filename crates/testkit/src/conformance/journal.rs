//! What every [`Journal`] has to do.
//!
//! Crash story: see the parent.

use std::{path::PathBuf, sync::Arc, time::Duration};

use model::{
    port::Journal,
    time::{Deadline, Moment},
    undo::{Hook, Move, ProcessRef, Ticket, Undo},
};

use super::cases;

/// A journal under test.
pub trait Bench {
    /// The journal of a new run.
    fn journal(&self) -> Arc<dyn Journal>;
    /// Ends that run as if it had been killed, and returns what a later run finds open, oldest first.
    fn survivors(&self, journal: Arc<dyn Journal>) -> Vec<(Ticket, Undo)>;
}

/// Runs every case, each on a fresh bench.
pub fn suite(make: impl Fn() -> Box<dyn Bench>) {
    cases!(make:
        an_empty_run_leaves_nothing,
        what_is_intended_stays_open_until_done,
        every_undo_reads_back,
        an_amendment_replaces,
        done_is_harmless_twice,
        threads_get_their_own_tickets,
    );
}

fn tree(name: &str) -> Undo {
    Undo::RemoveTree { path: PathBuf::from("/srv").join(format!(".stillpoint-{name}")) }
}

fn intend(journal: &Arc<dyn Journal>, undo: Undo) -> Ticket {
    match journal.intend(undo, None) {
        Ok(ticket) => ticket,
        Err(failure) => panic!("intend: {}", failure.in_full()),
    }
}

/// Nothing intended, nothing found.
pub fn an_empty_run_leaves_nothing(bench: &dyn Bench) {
    let journal = bench.journal();
    assert_eq!(bench.survivors(journal), vec![]);
}

/// Open until crossed off; crossing off one leaves the others.
pub fn what_is_intended_stays_open_until_done(bench: &dyn Bench) {
    let journal = bench.journal();
    let a = intend(&journal, tree("a"));
    let b = intend(&journal, tree("b"));
    let c = intend(&journal, tree("c"));
    assert!(a != b && b != c && a != c, "tickets are given twice");
    journal.done(b);
    assert_eq!(bench.survivors(journal), vec![(a, tree("a")), (c, tree("c"))]);
}

/// Every variant comes back as it was written, with a path that is not UTF-8.
pub fn every_undo_reads_back(bench: &dyn Bench) {
    use std::os::unix::ffi::OsStringExt;
    let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/srv/.stillpoint-\xff\n\\".to_vec()));
    let process = ProcessRef { pid: 4_000_000, start: u64::MAX };
    let hook = Hook { run: "exit 0 # 'a b'\n".into(), timeout: Duration::from_millis(1_500) };
    let undos = [
        Undo::Continue { processes: vec![process, ProcessRef { pid: 4_000_001, start: 1 }] },
        Undo::ThawCgroup { cgroup: odd.clone() },
        Undo::Start { start: hook.clone(), ends: Some(process) },
        Undo::Start { start: hook, ends: None },
        Undo::End { process },
        Undo::RemoveLock { path: odd.clone() },
        Undo::RemoveTree { path: odd.clone() },
        Undo::SwapBack {
            moves: vec![
                Move { live: odd.clone(), new: Some(odd.clone()), old: odd.clone(), had: false },
                Move { live: odd.clone(), new: None, old: odd.clone(), had: true },
            ],
            staging: vec![odd.clone(), odd.clone()],
        },
        Undo::SwapBack { moves: vec![], staging: vec![odd.clone()] },
        Undo::DeleteSubvolume { path: odd },
    ];
    let journal = bench.journal();
    for undo in &undos {
        let until = undo.is_urgent().then_some(Deadline(Moment(u64::MAX)));
        if let Err(failure) = journal.intend(undo.clone(), until) {
            panic!("intend {undo:?}: {}", failure.in_full());
        }
    }
    let found: Vec<Undo> = bench.survivors(journal).into_iter().map(|(_, undo)| undo).collect();
    assert_eq!(found, undos);
}

/// What is amended is found as amended, under its own ticket.
pub fn an_amendment_replaces(bench: &dyn Bench) {
    let journal = bench.journal();
    let a = intend(&journal, tree("a"));
    let b = intend(&journal, tree("b"));
    if let Err(failure) = journal.amend(a, tree("better"), None) {
        panic!("amend: {}", failure.in_full());
    }
    assert_eq!(bench.survivors(journal), vec![(a, tree("better")), (b, tree("b"))]);
}

/// Crossing off twice, or what never was, harms nothing.
pub fn done_is_harmless_twice(bench: &dyn Bench) {
    let journal = bench.journal();
    let a = intend(&journal, tree("a"));
    let b = intend(&journal, tree("b"));
    journal.done(a);
    journal.done(a);
    journal.done(Ticket(u64::MAX));
    assert_eq!(bench.survivors(journal), vec![(b, tree("b"))]);
}

/// Many threads at once lose nothing.
pub fn threads_get_their_own_tickets(bench: &dyn Bench) {
    let journal = bench.journal();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let journal = &journal;
            scope.spawn(move || {
                for i in 0..8 {
                    let ticket = intend(journal, tree(&format!("{thread}-{i}")));
                    if i % 2 == 0 {
                        journal.done(ticket);
                    }
                }
            });
        }
    });
    let mut found: Vec<String> =
        bench.survivors(journal).into_iter().map(|(_, undo)| format!("{undo:?}")).collect();
    found.sort();
    let mut expected: Vec<String> = (0..4)
        .flat_map(|thread| [1, 3, 5, 7].map(|i| format!("{:?}", tree(&format!("{thread}-{i}")))))
        .collect();
    expected.sort();
    assert_eq!(found, expected);
}
