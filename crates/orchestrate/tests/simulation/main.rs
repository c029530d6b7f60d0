//! The real `backup`, in a simulated world, from a seed.
//!
//! Every kind of fault at every call of every port, and what must hold afterwards ([`verify`]). A failure
//! prints the seed; `STILLPOINT_SEED=n cargo test -p orchestrate --test simulation` runs that one only, and
//! `STILLPOINT_SEEDS=n` so many.

mod cases;
mod scenario;
mod verify;

use std::time::Duration;

use model::{port::FailureKind, verdict::Verdict};
use testkit::{fakes::hold::Lie, faults::Fault};

use scenario::{ALL, HONEST, Lies, SCANNED, Scenario, again, quiet_panics, simulate};
use verify::violations;

/// The seeds of one test: the one of the environment, or as many as fit.
fn seeds(usual: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a seed is a number"));
    match number("STILLPOINT_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("STILLPOINT_SEEDS").unwrap_or(usual)).collect(),
    }
}

fn assert_none(violations: &[String], scenario: &Scenario, seed: u64, what: &str) {
    assert!(
        violations.is_empty(),
        "STILLPOINT_SEED={seed}, {}, {what}:\n{}",
        scenario.name,
        violations.join("\n")
    );
}

#[test]
fn undisturbed_runs_keep_every_promise() {
    for scenario in &ALL {
        let (mut consistent, mut runs) = (0, 0);
        for seed in seeds(40) {
            let run = simulate(scenario, seed, None, HONEST);
            assert_none(&violations(&run, Duration::ZERO), scenario, seed, "no fault");
            let report = match run.ending.returned().expect("nothing panics") {
                Ok(report) => report,
                Err(failure) => panic!("STILLPOINT_SEED={seed}, {}: {}", scenario.name, failure.in_full()),
            };
            let is_consistent = report.verdict == Verdict::Consistent;
            assert!(
                is_consistent || !scenario.always_consistent,
                "STILLPOINT_SEED={seed}, {}: {:?} {:?}",
                scenario.name,
                report.problems,
                report.evidence
            );
            runs += 1;
            consistent += u32::from(is_consistent);
        }
        assert!(runs < 10 || consistent * 4 > runs, "{}: {consistent} of {runs} consistent", scenario.name);
    }
}

#[test]
fn a_second_backup_carries_over_what_the_first_holds() {
    for scenario in &ALL {
        for seed in seeds(10) {
            let first = simulate(scenario, seed, None, HONEST);
            first.world.pass(Duration::from_secs(3));
            let second = again(first, scenario, seed + 1_000, HONEST);
            assert_none(&violations(&second, Duration::ZERO), scenario, seed, "second run");
            let Some(Ok(report)) = second.ending.returned() else { panic!("STILLPOINT_SEED={seed}") };
            assert!(report.looks_wrong.is_none());
        }
    }
}

#[test]
fn every_fault_at_every_call() {
    quiet_panics();
    let long = Duration::from_millis(700);
    let faults = [
        Fault::Fail(FailureKind::Busy),
        Fault::Fail(FailureKind::TimedOut),
        Fault::Fail(FailureKind::Lost),
        Fault::Fail(FailureKind::NoSpace),
        Fault::Fail(FailureKind::Other),
        Fault::FailAfter(FailureKind::Busy),
        Fault::FailAfter(FailureKind::Other),
        Fault::Delay(Duration::from_millis(30)),
        Fault::Delay(long),
        Fault::Panic,
    ];
    let mut runs = 0;
    for scenario in &ALL {
        for seed in seeds(3) {
            let calls = simulate(scenario, seed, None, HONEST).faults.calls();
            for (nth, call) in calls.iter().enumerate() {
                for fault in faults {
                    // A failure after the snapshot was written is not a failed run that published.
                    if matches!(fault, Fault::FailAfter(_)) && call == "store.publish" {
                        continue;
                    }
                    let run = simulate(scenario, seed, Some((nth, fault)), HONEST);
                    let delay = if let Fault::Delay(delay) = fault { delay } else { Duration::ZERO };
                    let what = format!("{fault:?} in call {nth}, {call}");
                    assert_none(&violations(&run, delay), scenario, seed, &what);
                    runs += 1;
                }
            }
        }
    }
    assert!(runs >= 10 * 20 || seeds(3).len() == 1, "only {runs} runs");
}

#[test]
fn a_fault_that_passes_does_not_cost_the_backup() {
    quiet_panics();
    let scenario = &ALL[0];
    for seed in seeds(5) {
        let calls = simulate(scenario, seed, None, HONEST).faults.calls();
        for (nth, call) in calls.iter().enumerate() {
            if !["hold.freeze", "pinner.pin", "pin.unchanged", "frozen.prove"].contains(&call.as_str()) {
                continue;
            }
            for kind in [FailureKind::Busy, FailureKind::TimedOut, FailureKind::Lost] {
                let run = simulate(scenario, seed, Some((nth, Fault::Fail(kind))), HONEST);
                let Some(Ok(report)) = run.ending.returned() else {
                    panic!("STILLPOINT_SEED={seed}: {kind:?} in {call} cost the backup")
                };
                assert_eq!(report.verdict, Verdict::Consistent);
                assert_eq!(report.attempts, 2);
                assert!(
                    report.problems.iter().any(|p| p.what.contains("injected")),
                    "the attempt is not told"
                );
            }
        }
    }
}

#[test]
fn a_hold_that_ends_by_itself_never_gives_a_consistent_backup() {
    let lies = Lies { holds: Lie::EndsAndTells, pinners: false };
    for seed in seeds(10) {
        let run = simulate(&SCANNED, seed, None, lies);
        assert_none(&violations(&run, Duration::ZERO), &SCANNED, seed, "holds end by themselves");
        let outcome = run.ending.returned().expect("nothing panics");
        assert!(outcome.is_err(), "STILLPOINT_SEED={seed}: a hold was lost and there is a backup");
    }
}

/// Whether any of many runs with these drivers breaks what [`verify`] checks.
fn is_found(lies: Lies) -> bool {
    (0..60).any(|seed| {
        ALL.iter()
            .any(|scenario| !violations(&simulate(scenario, seed, None, lies), Duration::ZERO).is_empty())
    })
}

#[test]
fn a_cut_that_lets_go_before_it_pins_would_be_found() {
    assert!(is_found(Lies { holds: Lie::HoldsNobody, pinners: true }));
    assert!(is_found(Lies { holds: Lie::HoldsNobody, pinners: false }));
}

#[test]
fn a_cut_that_does_not_ask_for_proof_would_be_found() {
    assert!(is_found(Lies { holds: Lie::EndsAndDoesNotTell, pinners: false }));
}

#[test]
fn a_cut_that_does_not_scan_would_be_found() {
    assert!(is_found(Lies { holds: Lie::None, pinners: true }));
}
