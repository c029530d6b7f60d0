//! `kill -9` of the program at random moments of a cut over a server under load (promise 1). `STILLPOINT_KILLS` says how
//! often.
#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

mod common;
#[path = "server/site.rs"]
mod site;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{count, seed, start};
use rand::{Rng, SeedableRng, rngs::StdRng};
use site::{BUDGET, Kind, SLACK, ServerSite};
use testkit::server::wait_until;

/// Stall budget and the second that promise 1 allows.
const RELEASED_WITHIN: Duration = Duration::from_secs(3);

/// The process of the ledgers that the other tests start.
#[test]
fn ledger() {
    testkit::server::ledger_process();
}

fn kill(pid: u32) {
    assert!(Command::new("kill").arg("-9").arg(pid.to_string()).status().expect("kill").success());
}

/// Kills backups, and after each kill looks whether clients go on and the server is what it was.
fn kills(kind: Kind, kills: u64) {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    // At 0 every cut changes a variable, which somebody has to put back.
    let site = ServerSite::new(kind, |server| server.option("--innodb-flush-log-at-trx-commit=0"));
    let ledger = site.ledger(seed);
    let clients = site.clients();
    site.backup().expect_verdict("consistent");
    let whole = site.backup();
    let length = whole.ended - whole.begun;
    let (mut met, mut worst) = (0, Duration::ZERO);
    for round in 0..kills {
        let begun = Instant::now();
        let mut run = start(site.site.command(["backup"]));
        let moment = length.mul_f64(random.random_range(0.0..1.0));
        thread::sleep(moment);
        if run.try_wait().expect("a child").is_none() {
            kill(run.id());
            met += 1;
        }
        let killed = Instant::now();
        run.wait().expect("a child");
        for all in &clients {
            all.wait_for_commits(RELEASED_WITHIN)
                .unwrap_or_else(|| panic!("round {round}, killed after {moment:?}: clients wait"));
        }
        let longest = clients.iter().map(|all| all.longest(begun, Instant::now())).max().unwrap_or_default();
        assert!(longest <= BUDGET + Duration::from_secs(1) + SLACK, "round {round}, {moment:?}: {longest:?}");
        worst = worst.max(longest);
        let variable = || site.server.ask("SELECT @@innodb_flush_log_at_trx_commit");
        let left = RELEASED_WITHIN.saturating_sub(killed.elapsed());
        let back = wait_until(left, || variable().as_deref() == Some("0"));
        assert!(back.is_some(), "round {round}, killed after {moment:?}: the variable is {:?}", variable());
        site.assert_free();
        ledger.wait_for_progress(RELEASED_WITHIN).expect("the ledger's process goes on");
        // Now and then in a row, so that the next run has the remains of several to sweep.
        if round % 3 == 2 {
            site.backup().expect_verdict("consistent");
            site.assert_left_as_it_was();
        }
    }
    println!("{kind:?}: {met} of {kills} kills met the program; the longest transaction took {worst:?}");
    assert!(met * 2 > kills, "most kills came too late: this test proves little");
    site.backup().expect_verdict("consistent");
    site.assert_left_as_it_was();
    site.assert_whole(&site.restore());
    site.site.restic(["check", "--read-data"]).expect_status(0);
}

#[test]
fn a_killed_cut_on_btrfs_leaves_the_server_free_and_nothing_behind() {
    kills(Kind::Btrfs, count("STILLPOINT_KILLS", 8).div_ceil(2));
}

#[test]
fn a_killed_cut_on_xfs_leaves_the_server_free_and_nothing_behind() {
    kills(Kind::Xfs, count("STILLPOINT_KILLS", 8).div_ceil(2));
}
