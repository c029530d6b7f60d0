//! Many cuts under load, each restored, opened and judged. `STILLPOINT_CUTS` says how many.

use std::time::Duration;

use crate::{
    common::{count, seed},
    site::{Kind, ServerSite},
};

/// A site is made anew after so many cuts: its ledger only grows.
const CUTS_A_SITE: u64 = 10;

fn cuts(kind: Kind) {
    let seed = seed();
    let cuts = count("STILLPOINT_CUTS", 3);
    let mut stalls = Vec::new();
    for first in (0..cuts).step_by(CUTS_A_SITE as usize) {
        let site = ServerSite::new(kind, |server| server);
        let ledger = site.ledger(seed + first);
        let clients = site.clients();
        for cut in first..cuts.min(first + CUTS_A_SITE) {
            ledger.wait_for_progress(Duration::from_secs(20)).expect("the ledger goes on");
            let backup = site.backup();
            backup.expect_verdict("consistent");
            let longest = site.assert_budget(&clients, &backup);
            site.assert_whole(&site.restore());
            println!(
                "{kind:?} cut {cut}: stall {:.1} ms, longest transaction {longest:.1?}",
                backup.stall_ms()
            );
            stalls.push(longest);
        }
        site.assert_left_as_it_was();
    }
    stalls.sort();
    println!(
        "{kind:?}: {cuts} cuts; longest transactions: median {:?}, worst {:?}",
        stalls[stalls.len() / 2],
        stalls[stalls.len() - 1]
    );
}

#[test]
fn every_cut_on_xfs_is_of_one_instant() {
    cuts(Kind::Xfs);
}

#[test]
fn every_cut_on_btrfs_is_of_one_instant() {
    cuts(Kind::Btrfs);
}

#[test]
fn a_cut_with_myrocks_is_of_one_instant_and_opens_by_itself() {
    for kind in [Kind::Xfs, Kind::Btrfs] {
        let site = ServerSite::with_rocksdb(kind);
        let ledger = site.ledger(seed());
        for _ in 0..2 {
            ledger.wait_for_progress(Duration::from_secs(20)).expect("the ledger goes on");
            site.backup().expect_verdict("consistent");
            site.assert_whole(&site.restore());
        }
        site.assert_left_as_it_was();
    }
}

/// `check --open` starts a private, fenced server on the newest backup.
#[test]
fn the_program_opens_its_newest_backup_itself() {
    let site = ServerSite::new(Kind::Btrfs, |server| server);
    let _ledger = site.ledger(seed());
    site.backup().expect_verdict("consistent");
    let ran = site.site.run(["check", "guestbook", "--open"]);
    ran.expect_status(0);
    println!("{}{}", ran.out(), ran.err());
    site.assert_left_as_it_was();
}
