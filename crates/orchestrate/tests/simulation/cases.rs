//! Single cases: what is missing, refused or odd, and how it is reported.

use std::time::Duration;

use model::{
    plan::Refusal,
    port::{FailureKind, Shelf},
    problem::{Effect, Problem},
    verdict::Verdict,
};
use orchestrate::backup::rehearse;
use testkit::faults::Fault;

use crate::{
    scenario::{ALL, HONEST, Run, SCANNED, TWO_SNAPSHOTS, again, fresh, simulate, with_job},
    verify::violations,
};

fn nth_call(run: &Run, name: &str) -> usize {
    run.faults.calls().iter().position(|call| call == name).expect("it is called")
}

#[test]
fn a_source_that_cannot_be_had_is_missing_and_the_rest_is_stored() {
    let scenario = &ALL[1];
    let quiet = simulate(scenario, 1, None, HONEST);
    for (call, kind) in [
        ("pinner.prepare", FailureKind::Refused),
        ("pinner.pin", FailureKind::NoSpace),
        ("pin.harvest", FailureKind::Damaged),
    ] {
        let run = simulate(scenario, 1, Some((nth_call(&quiet, call), Fault::Fail(kind))), HONEST);
        assert_eq!(violations(&run, Duration::ZERO), Vec::<String>::new());
        let report = run.ending.returned().unwrap().as_ref().unwrap();
        assert_eq!(report.verdict, Verdict::Incomplete, "{call}");
        assert_eq!(report.problems[0].effect, Effect::Missing, "the worst comes first");
        let missing = report.problems[0].source.as_ref().expect("it names its source");
        assert!(report.evidence.iter().all(|e| e.source != *missing), "evidence of what is missing");
        assert!(report.problems[0].what.contains("injected"), "{}", report.problems[0]);
    }
}

#[test]
fn a_rehearsal_holds_everybody_once_and_leaves_nothing() {
    for scenario in &ALL {
        for seed in 0..20 {
            let machine = fresh(scenario, seed);
            let rehearsed = with_job(&machine, scenario, seed, HONEST, rehearse);
            let rehearsal = rehearsed.unwrap_or_else(|e| panic!("{} {seed}: {}", scenario.name, e.in_full()));
            assert!(rehearsal.verdict == Verdict::Consistent || !scenario.always_consistent);
            assert!(rehearsal.still_held.is_empty());
            assert!(machine.vault.shelf().backups().unwrap().is_empty());
            // Nobody is held and nothing is pinned: the backup that follows finds the machine as it was.
            let run = again(machine, scenario, seed, HONEST);
            assert_eq!(violations(&run, Duration::ZERO), Vec::<String>::new(), "{} {seed}", scenario.name);
        }
    }
}

#[test]
fn a_database_that_cannot_be_locked_is_not_copied() {
    let run = simulate(&SCANNED, 1, None, HONEST);
    let call = nth_call(&run, "hold.prepare");
    let run = simulate(&SCANNED, 1, Some((call, Fault::Fail(FailureKind::Refused))), HONEST);
    let report = run.ending.returned().unwrap().as_ref().unwrap();
    assert_eq!(report.verdict, Verdict::Incomplete);
    let files = run.vault.read_back(&report.backup).unwrap();
    assert!(!files.keys().any(|path| path.ends_with("data-0.db")), "copied without its lock");
}

#[test]
fn a_hold_of_the_whole_application_that_is_impossible_is_a_failure() {
    let scenario = &ALL[6];
    let run = simulate(scenario, 1, None, HONEST);
    let call = nth_call(&run, "hold.prepare");
    let run = simulate(scenario, 1, Some((call, Fault::Fail(FailureKind::Other))), HONEST);
    assert!(run.ending.returned().unwrap().is_err());
    assert_eq!(violations(&run, Duration::ZERO), Vec::<String>::new());
}

#[test]
fn a_refused_plan_is_not_executed() {
    let mut run = fresh(&SCANNED, 1);
    run.plan.refused = Some(Refusal { what: "it would take too long".into(), remedy: "wait".into() });
    let run = again(run, &SCANNED, 1, HONEST);
    let failure = run.ending.returned().unwrap().as_ref().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert_eq!(failure.in_full(), "it would take too long; wait");
    assert_eq!(run.faults.calls(), Vec::<String>::new(), "a refused plan was begun");
}

#[test]
fn a_refused_plan_says_which_problems_it_had() {
    let mut run = fresh(&SCANNED, 1);
    run.plan.refused = Some(Refusal { what: "nothing can be stored".into(), remedy: "look".into() });
    run.plan.problems.push(Problem::missing("/srv/x.db", "does not exist", "correct the path"));
    let run = again(run, &SCANNED, 1, HONEST);
    let failure = run.ending.returned().unwrap().as_ref().unwrap_err();
    let said = failure.in_full();
    assert!(said.contains("/srv/x.db: does not exist; correct the path"), "{said}");
}

#[test]
fn a_source_without_a_pinner_is_named_even_if_the_plan_forgets_it() {
    let mut run = fresh(&SCANNED, 1);
    run.plan.sources.push(model::id::SourceId::new("directory", "/srv/forgotten"));
    let run = again(run, &SCANNED, 1, HONEST);
    let report = run.ending.returned().unwrap().as_ref().unwrap();
    assert_eq!(report.verdict, Verdict::Incomplete);
    assert!(report.problems[0].to_string().contains("/srv/forgotten"));
}

#[test]
fn planned_problems_count() {
    let mut run = fresh(&ALL[0], 1);
    run.plan.problems.push(Problem::missing("/srv/locked.db", "is encrypted", "give the key"));
    let run = again(run, &ALL[0], 1, HONEST);
    let report = run.ending.returned().unwrap().as_ref().unwrap();
    assert_eq!(report.verdict, Verdict::Incomplete);
    assert!(report.problems.iter().any(|p| p.what == "is encrypted"));
}

#[test]
fn what_the_store_could_not_read_is_missing() {
    let run = fresh(&ALL[0], 1);
    let path = std::path::Path::new("/srv/app/files-0/a");
    run.vault.spoil(path);
    let run = again(run, &ALL[0], 1, HONEST);
    let report = run.ending.returned().unwrap().as_ref().unwrap();
    assert_eq!(report.verdict, Verdict::Incomplete);
    assert_eq!(report.problems[0].path.as_deref(), Some(path));
}

#[test]
fn two_snapshots_with_writers_at_large_are_never_consistent() {
    for seed in 0..20 {
        let run = simulate(&TWO_SNAPSHOTS, seed, None, HONEST);
        assert_eq!(violations(&run, Duration::ZERO), Vec::<String>::new(), "seed {seed}");
        let report = run.ending.returned().unwrap().as_ref().unwrap();
        assert_eq!(report.verdict, Verdict::PerSource, "seed {seed}");
    }
}

#[test]
fn a_weaker_verdict_is_taken_at_once_where_it_suffices() {
    for seed in 0..20 {
        let mut run = fresh(&SCANNED, seed);
        run.plan.require = Verdict::PerSource;
        let run = again(run, &SCANNED, seed, HONEST);
        assert_eq!(run.ending.returned().unwrap().as_ref().unwrap().attempts, 1, "seed {seed}");
    }
}

#[test]
fn an_application_without_files_is_stored_but_not_as_consistent() {
    let run = again(fresh(&crate::scenario::EMPTY, 1), &crate::scenario::EMPTY, 1, HONEST);
    let report = run.ending.returned().unwrap().as_ref().unwrap();
    assert_eq!((report.files, report.verdict), (0, Verdict::PerSource));
    assert!(report.problems.iter().any(|p| p.what.contains("no regular file")));
}

#[test]
fn the_report_serialises_as_documented() {
    let run = simulate(&ALL[0], 1, None, HONEST);
    let report = run.ending.returned().unwrap().as_ref().unwrap();
    let json = serde_json::to_value(report).unwrap();
    for key in
        ["application", "backup", "cut", "verdict", "files", "bytes", "bytes_added", "duration_s", "problems"]
    {
        assert!(json.get(key).is_some(), "{key} is not there");
    }
    assert_eq!(json["verdict"], "consistent");
    let total = json["stall_ms"]["total"].as_f64().unwrap();
    for source in &run.plan.sources {
        let of_source = json["stall_ms"][source.as_str()].as_f64().unwrap();
        assert!(of_source > 0.0 && of_source <= total, "{source}: {of_source} of {total}");
    }
    assert!(json.get("still_held").is_none());
}
