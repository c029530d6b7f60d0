//! What must hold after every run, whatever went wrong in it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use model::{
    port::Shelf,
    problem::Effect,
    record::{BackupRecord, CutRecord, StoredBackup},
    time::Millis,
    verdict::{Stillness, Verdict},
};
use orchestrate::backup::BackupReport;
use testkit::fakes::world::Contents;

use crate::scenario::{BUDGET, Run};

/// What a driver may take beyond the budget: it is asked to give up by the deadline, and looks at the clock
/// between steps of up to 1.5 ms; then pins and guards take a step each to end.
const SLACK: Duration = Duration::from_millis(40);

/// All that is wrong after a run; `delayed` is the delay that was injected into one step.
pub fn violations(run: &Run, delayed: Duration) -> Vec<String> {
    let mut wrong = run.world.complaints();
    // A thaw that failed leaves its hold where it is, and the others are let go all the same.
    if run.faults.hit().is_some_and(|call| call == "frozen.thaw") {
        wrong.retain(|complaint| !complaint.contains("out of order"));
    }
    left_behind(run, &mut wrong);
    stalls(run, delayed, &mut wrong);
    let listed = run.vault.shelf().backups().expect("a list in memory");
    match run.ending.returned() {
        Some(Ok(report)) => published(run, report, &listed, &mut wrong),
        Some(Err(_)) if !listed.is_empty() => wrong.push("a failed run published a backup".to_owned()),
        Some(Err(_)) | None => {}
    }
    for backup in &listed {
        contents(run, backup, &mut wrong);
    }
    wrong
}

/// Nothing is held, unless it is said loudly; nothing is made that the journal does not list.
fn left_behind(run: &Run, wrong: &mut Vec<String>) {
    let said = match run.ending.returned() {
        Some(Ok(report)) => report.still_held.iter().map(ToString::to_string).collect::<String>(),
        Some(Err(failure)) => failure.in_full(),
        None => String::new(),
    };
    for name in run.world.held() {
        if !said.contains("STILL BE HELD") || !said.contains(&name) {
            wrong.push(format!("{name} is still held, and nobody says so: {said:?}"));
        }
    }
    for (what, undo) in run.world.things() {
        if !run.world.journal.is_open(&undo) {
            wrong.push(format!("{what} is left, and the journal does not list it"));
        }
    }
    let release_failed = run.faults.hit().is_some_and(|call| call == "pin.release");
    if !release_failed && !run.world.things().is_empty() {
        wrong.push(format!("left although nothing kept it from being removed: {:?}", run.world.things()));
    }
    // An intent that was written although writing it failed stays open, and undoing it is harmless.
    let unsure = run.faults.hit().is_some_and(|call| call.starts_with("journal"));
    let (things, held, open) = (run.world.things(), run.world.held(), run.world.journal.open());
    if !unsure && open.len() != things.len() + held.len() {
        wrong.push(format!("the journal lists {open:?}, but there are {things:?} and {held:?}"));
    }
}

/// Writers run again within the budget, and what is reported is not less than what they saw.
fn stalls(run: &Run, delayed: Duration, wrong: &mut Vec<String>) {
    let worst = run.world.worst_wait();
    if run.world.held().is_empty() && worst > BUDGET + SLACK + delayed {
        wrong.push(format!("a writer waited {worst:?}, the budget is {BUDGET:?}"));
    }
    if let Some(Ok(report)) = run.ending.returned() {
        let downtime = report.stall_ms.downtime.unwrap_or(Millis(0.0));
        let reported = if downtime > report.stall_ms.total { downtime } else { report.stall_ms.total };
        let seen = Millis::from(worst);
        if report.still_held.is_empty() && reported.0 + 0.001 < seen.0 {
            wrong.push(format!("a writer waited {seen}, but {reported} were reported"));
        }
    }
}

fn published(run: &Run, report: &BackupReport, listed: &[StoredBackup], wrong: &mut Vec<String>) {
    let Some(record) = listed.iter().find(|b| b.id == report.backup).and_then(|b| b.record.as_ref()) else {
        wrong.push("the report names a backup that is not listed".to_owned());
        return;
    };
    if record.verdict != report.verdict || record.files != report.files || record.cut != report.cut {
        wrong.push("report and record differ".to_owned());
    }
    if record.verdict == Verdict::Consistent && report.evidence.len() != run.plan.sources.len() {
        wrong.push("a source without evidence in a consistent backup".to_owned());
    }
}

/// What is listed as consistent is the world at its cut; what is listed otherwise says why.
fn contents(run: &Run, backup: &StoredBackup, wrong: &mut Vec<String>) {
    let Some(record) = &backup.record else {
        wrong.push("a listed backup has no record".to_owned());
        return;
    };
    let files = run.vault.read_back(&backup.id).expect("it is listed");
    let cut = cut_of(&files, record).cut_at;
    let stored = stored(run, &files);
    let truth = run.world.at(cut);
    if record.verdict == Verdict::Consistent {
        if !stored.rows_without_files().is_empty() {
            wrong.push(format!("consistent, but rows lack their files: {:?}", stored.rows_without_files()));
        }
        if stored != truth {
            wrong.push(format!("consistent, but not the world at {cut}"));
        }
    } else {
        let reason = record.problems.iter().any(|p| p.effect != Effect::Note)
            || cut_of(&files, record).evidence.iter().any(|e| matches!(e.stillness, Stillness::NotShown(_)));
        if !reason {
            wrong.push(format!("{} for no reason that is given", record.verdict));
        }
    }
}

fn cut_of(files: &BTreeMap<PathBuf, Vec<u8>>, record: &BackupRecord) -> CutRecord {
    let path = format!("/var/lib/stillpoint/cuts/{}.json", record.cut);
    serde_json::from_slice(&files[Path::new(&path)]).expect("a cut record")
}

fn stored(run: &Run, files: &BTreeMap<PathBuf, Vec<u8>>) -> Contents {
    let mut contents = Contents::default();
    for (path, bytes) in files {
        let database = run.plan.sources.iter().find(|s| s.as_str() == format!("sqlite:{}", path.display()));
        if let Some(database) = database {
            let rows: BTreeMap<String, PathBuf> = serde_json::from_slice(bytes).expect("rows");
            contents.rows.extend(rows.into_iter().map(|(key, names)| ((database.clone(), key), names)));
        } else if !path.starts_with("/var/lib/stillpoint") {
            contents.files.insert(path.clone(), bytes.clone());
        }
    }
    contents
}
