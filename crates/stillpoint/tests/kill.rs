//! `kill -9` at random moments of a backup under load (promises 1 and 3). `STILLPOINT_KILLS` and
//! `STILLPOINT_DOUBLE_KILLS` say how often; `scripts/prove` runs the full counts.
#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

mod common;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{Load, Site, below, children, count, rows_without_file, seed, start};
use rand::{Rng, SeedableRng, rngs::StdRng};
use testkit::server::wait_until;

/// Stall budget of the inventory plus the second that promise 1 allows.
const RELEASED_WITHIN: Duration = Duration::from_secs(3);

fn prepared() -> (Site, Load, u64) {
    let seed = seed();
    let site = Site::new();
    let load = Load::start(&site, 3, seed);
    site.init(&site.sources_and_process());
    site.run(["backup"]).expect_status(0);
    (site, load, seed)
}

/// How long one whole backup takes here and now.
fn one_backup(site: &Site) -> Duration {
    let start = Instant::now();
    site.run(["backup"]).expect_status(0);
    start.elapsed()
}

/// It removes the lock that a killed run leaves in the repository.
fn wait_for_the_watchdog(site: &Site) {
    let locks = || -> Vec<PathBuf> {
        let entries = fs::read_dir(site.repository().join("locks")).expect("a directory");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let gone = wait_until(Duration::from_secs(2), || locks().is_empty());
    assert!(gone.is_some(), "locks are left: {:?}", locks());
}

fn kill(pid: u32) {
    assert!(Command::new("kill").arg("-9").arg(pid.to_string()).status().expect("kill").success());
}

#[test]
fn a_killed_backup_holds_nobody_and_loses_nothing() {
    let (site, load, seed) = prepared();
    let mut random = StdRng::seed_from_u64(seed);
    let length = one_backup(&site);
    for round in 0..count("STILLPOINT_KILLS", 8) {
        let before = site.backups();
        let mut run = start(site.command(["backup"]));
        let moment = length.mul_f64(random.random_range(0.0..1.1));
        thread::sleep(moment);
        let killed = run.try_wait().expect("a child").is_none();
        if killed {
            kill(run.id());
        }
        run.wait().expect("a child");
        load.wait_for_progress(RELEASED_WITHIN);
        assert_eq!(load.held(), [], "round {round}, killed after {moment:?}");
        wait_for_the_watchdog(&site);
        site.restic(["check", "--read-data"]).expect_status(0);
        let after = site.backups();
        assert_eq!(after[..before.len()], before[..], "round {round}: every earlier backup is listed");
    }
    site.run(["backup"]).expect_status(0);
    assert_eq!(site.leftovers(), Vec::<std::path::PathBuf>::new(), "the next run sweeps every pin");
    let to = site.root().join("restored");
    site.run(["restore", "guestbook", "--to", to.to_str().expect("UTF-8")]).expect_status(0);
    assert_eq!(rows_without_file(&below(&to, &site.app())), Vec::<String>::new());
}

/// Random moments seldom meet the few milliseconds in which writers are held, so here they are waited for.
#[test]
fn a_backup_killed_while_it_holds_the_writers_lets_them_go() {
    let (site, load, _) = prepared();
    let (mut met, mut round, rounds) = (0, 0, count("STILLPOINT_HELD_KILLS", 10));
    // On a busy machine they may have been let go before that is seen.
    while round < rounds || (met == 0 && round < 10 * rounds) {
        round += 1;
        let mut run = start(site.command(["backup"]));
        while load.held().is_empty() && run.try_wait().expect("a child").is_none() {}
        met += u32::from(run.try_wait().expect("a child").is_none());
        if run.try_wait().expect("a child").is_none() {
            kill(run.id());
        }
        run.wait().expect("a child");
        load.wait_for_progress(RELEASED_WITHIN);
        assert_eq!(load.held(), []);
    }
    println!("{met} kills met a held writer");
    assert!(met > 0, "no kill met a held writer: this test proves nothing");
    wait_for_the_watchdog(&site);
    site.restic(["check", "--read-data"]).expect_status(0);
    site.run(["backup"]).expect_status(0);
    assert_eq!(site.leftovers(), Vec::<std::path::PathBuf>::new());
}

/// The watchdog of a run: a process of ours in a session of its own, started by it.
fn watchdog_of(run: u32) -> Option<u32> {
    children(run).into_iter().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("watchdog"))
    })
}

#[test]
fn thaw_mends_what_program_and_watchdog_left_when_both_were_killed() {
    let (site, load, seed) = prepared();
    let mut random = StdRng::seed_from_u64(seed ^ 0xdead);
    let mut length = one_backup(&site);
    let (mut both, mut round, kills) = (0, 0, count("STILLPOINT_DOUBLE_KILLS", 3));
    while both < kills {
        assert!(
            round < 10 * kills,
            "the watchdog was found {both} times of {round}: this test proves little"
        );
        round += 1;
        let before = site.backups();
        let mut run = start(site.command(["backup"]));
        let moment = length.mul_f64(random.random_range(0.05..0.9));
        thread::sleep(moment);
        if let Some(watchdog) = watchdog_of(run.id()) {
            kill(watchdog);
            both += 1;
        } else if run.try_wait().expect("a child").is_some() {
            // The machine has become faster than it was when this was measured.
            length = length.min(moment);
        }
        if run.try_wait().expect("a child").is_none() {
            kill(run.id());
        }
        run.wait().expect("a child");
        site.run(["thaw"]).expect_status(0);
        load.wait_for_progress(RELEASED_WITHIN);
        assert_eq!(load.held(), [], "round {round}");
        assert_eq!(
            site.leftovers(),
            Vec::<std::path::PathBuf>::new(),
            "round {round}: thaw removes pins too"
        );
        site.restic(["check", "--read-data"]).expect_status(0);
        assert_eq!(site.backups()[..before.len()], before[..], "round {round}");
    }
    site.run(["backup"]).expect_status(0);
}
