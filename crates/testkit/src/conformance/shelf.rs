//! What every [`Shelf`] has to do. Its bench is the store's: a shelf lists what a store publishes.
//!
//! Crash story: see the parent.

use std::collections::BTreeSet;

use model::{entry::Body, id::BackupId, port::Silent, size::Bytes};

use super::{
    cases,
    store::{Bench, Tree, ok, opened, publish},
};

/// Runs every case, each on a fresh bench.
pub fn suite(make: impl Fn() -> Box<dyn Bench>) {
    cases!(make:
        backups_are_listed_oldest_first,
        removing_takes_off_the_list_only_what_is_named,
        reclaiming_keeps_what_is_listed,
        removing_what_is_not_there_is_an_error,
        accepting_marks_and_keeps,
        the_time_received_is_the_repositorys,
    );
}

/// Publishes backups of the given cuts, each with one file named after it.
fn filled(bench: &dyn Bench, cuts: &[u8]) -> Vec<BackupId> {
    cuts.iter()
        .map(|nth| {
            let mut tree = Tree::new(&bench.scratch());
            let path = tree.write(&format!("file-{nth}"), format!("content {nth}").repeat(5_000).as_bytes());
            tree.add(&path, Body::At(path.clone()));
            publish(&mut *opened(bench), tree.settled(), *nth).0
        })
        .collect()
}

fn listed(bench: &dyn Bench) -> Vec<BackupId> {
    ok("backups", bench.shelf().backups()).into_iter().map(|b| b.id).collect()
}

/// Ordered by the instant of the cut, whatever the order of storing.
pub fn backups_are_listed_oldest_first(bench: &dyn Bench) {
    let ids = filled(bench, &[2, 1, 3]);
    assert_eq!(listed(bench), vec![ids[1].clone(), ids[0].clone(), ids[2].clone()]);
    let times: Vec<_> = ok("backups", bench.shelf().backups()).iter().map(|b| b.time).collect();
    assert!(times.is_sorted());
    assert_eq!(times[0], super::store::cut(1).cut_at, "the time of a backup is its cut's");
}

/// Only what is named goes.
pub fn removing_takes_off_the_list_only_what_is_named(bench: &dyn Bench) {
    let ids = filled(bench, &[1, 2, 3]);
    ok("remove", bench.shelf().remove(&[ids[1].clone()]));
    assert_eq!(listed(bench), vec![ids[0].clone(), ids[2].clone()]);
    ok("remove nothing", bench.shelf().remove(&[]));
    assert_eq!(listed(bench).len(), 2);
}

/// Freed bytes were needed by no listed backup.
pub fn reclaiming_keeps_what_is_listed(bench: &dyn Bench) {
    let ids = filled(bench, &[1, 2]);
    let before = bench.read_back(&ids[1]);
    let mut shelf = bench.shelf();
    ok("remove", shelf.remove(&[ids[0].clone()]));
    let freed = ok("reclaim", shelf.reclaim(&Silent));
    assert!(freed > Bytes(0), "nothing was freed");
    drop(shelf);
    assert_eq!(bench.read_back(&ids[1]), before);
    assert_eq!(listed(bench), vec![ids[1].clone()]);
    filled(bench, &[3]);
    assert_eq!(listed(bench).len(), 2);
}

/// A list from yesterday does not silently succeed.
pub fn removing_what_is_not_there_is_an_error(bench: &dyn Bench) {
    let ids = filled(bench, &[1]);
    let foreign = BackupId::new("0".repeat(64)).expect("64 digits");
    assert!(bench.shelf().remove(std::slice::from_ref(&foreign)).is_err());
    assert!(bench.shelf().accept(&foreign).is_err());
    assert_eq!(listed(bench), ids);
}

/// Accepted once, still the same backup, listed once.
pub fn accepting_marks_and_keeps(bench: &dyn Bench) {
    let ids = filled(bench, &[1, 2]);
    let before = bench.read_back(&ids[0]);
    let record = ok("backups", bench.shelf().backups())[0].record.clone();
    let id = ok("accept", bench.shelf().accept(&ids[0]));
    let backups = ok("backups", bench.shelf().backups());
    assert_eq!(backups.len(), 2);
    assert_eq!(backups[0].id, id);
    assert_eq!(backups[0].record, record);
    assert!(backups[0].accepted && !backups[1].accepted);
    assert_eq!(bench.read_back(&id), before);
    assert_eq!(listed(bench).into_iter().collect::<BTreeSet<_>>().len(), 2);
}

/// `received` does not come from the cut, which lies in a time of the suite's choosing.
pub fn the_time_received_is_the_repositorys(bench: &dyn Bench) {
    filled(bench, &[1]);
    let backup = &ok("backups", bench.shelf().backups())[0];
    assert_ne!(backup.received, backup.time);
}
