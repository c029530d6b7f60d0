//! Tests of retention: examples, and properties over any shelf.
//!
//! Crash story: tests of pure functions.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{RetentionPlan, is_good, looks_wrong, plan};
use crate::{
    cut::Stalls,
    id::{AppName, BackupId, CutId},
    inventory::Keep,
    record::{BackupRecord, RECORD_VERSION, StoredBackup},
    size::Bytes,
    time::Millis,
    verdict::Verdict,
};

const NOW: &str = "2026-11-20T12:00:00Z";
const NONE: Keep = Keep { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn id(number: usize) -> BackupId {
    BackupId::new(format!("{number:064x}")).unwrap()
}

fn backup(number: usize, received: Timestamp) -> StoredBackup {
    let record = BackupRecord {
        version: RECORD_VERSION,
        cut: CutId::at(received, [0, 0, 1]),
        application: AppName::new("hydro").unwrap(),
        verdict: Verdict::Consistent,
        looks_wrong: None,
        label: None,
        stalls: Stalls { total: Millis(1.0), downtime: None, per_hold: vec![] },
        files: 100,
        bytes: Bytes(1000),
        bytes_added: Bytes(10),
        duration_s: 1.0,
        problems: vec![],
        problem_count: 0,
        pins: vec![],
    };
    StoredBackup {
        id: id(number),
        time: received,
        received,
        record: Some(record),
        damaged: None,
        accepted: false,
    }
}

fn ago(number: usize, hours: i64) -> StoredBackup {
    backup(number, now() - SignedDuration::from_hours(hours))
}

fn incomplete(mut backup: StoredBackup) -> StoredBackup {
    backup.record.as_mut().unwrap().verdict = Verdict::Incomplete;
    backup
}

fn sized(mut backup: StoredBackup, files: u64, bytes: u64) -> StoredBackup {
    let record = backup.record.as_mut().unwrap();
    (record.files, record.bytes) = (files, Bytes(bytes));
    backup
}

fn kept(plan: &RetentionPlan) -> Vec<BackupId> {
    plan.keep.iter().map(|k| k.id.clone()).collect()
}

fn reasons(plan: &RetentionPlan, number: usize) -> Vec<String> {
    plan.keep.iter().find(|k| k.id == id(number)).map(|k| k.reasons.clone()).unwrap_or_default()
}

#[test]
fn a_label_keeps_a_backup_for_a_month() {
    let labelled = |number, hours| {
        let mut backup = ago(number, hours);
        if let Some(record) = &mut backup.record {
            record.label = Some("before the upgrade".to_owned());
        }
        backup
    };
    let all = [labelled(1, 31 * 24), labelled(2, 29 * 24), ago(3, 28 * 24), ago(4, 1)];
    let plan = plan(&all, &Keep { last: 1, ..NONE }, now());
    assert_eq!(plan.keep.iter().map(|kept| &kept.id).collect::<Vec<_>>(), [&all[1].id, &all[3].id]);
    assert!(reasons(&plan, 2).contains(&"labelled \"before the upgrade\", less than 30 days old".to_owned()));
}

#[test]
fn the_newest_of_each_day_stays_and_the_reason_says_so() {
    // 12:00, 09:00 and 06:00 of the 20th, 09:00 of the 19th, 09:00 of the 18th.
    let backups = [ago(5, 0), ago(4, 3), ago(3, 6), ago(2, 27), ago(1, 51)];
    let plan = plan(&backups, &Keep { last: 2, daily: 2, ..NONE }, now());
    assert_eq!(kept(&plan), [id(2), id(4), id(5)]);
    assert_eq!(plan.removed_ids(), [id(1), id(3)]);
    assert_eq!(reasons(&plan, 2), ["newest of 2026-11-19"]);
    assert_eq!(reasons(&plan, 4), ["one of the last 2"]);
    assert_eq!(reasons(&plan, 5)[..2], ["one of the last 2", "newest of 2026-11-20"]);
    assert_eq!(plan.remove[0].reason, "not the newest of any day that is kept");
}

#[test]
fn hours_weeks_months_and_years_are_those_of_utc() {
    let at = |n, t: &str| backup(n, t.parse().unwrap());
    let backups = [
        at(1, "2024-12-31T23:59:59Z"),
        at(2, "2025-01-01T00:00:00Z"),
        at(3, "2026-11-19T03:00:00Z"),
        at(4, "2026-11-19T03:59:59Z"),
        at(5, "2026-11-19T04:00:00Z"),
    ];
    let of = |keep| plan(&backups, &keep, now());
    assert_eq!(kept(&of(Keep { hourly: 2, ..NONE })), [id(4), id(5)]);
    assert_eq!(kept(&of(Keep { yearly: 3, ..NONE })), [id(1), id(2), id(5)]);
    assert_eq!(kept(&of(Keep { monthly: 2, ..NONE })), [id(2), id(5)]);
    // The last day of 2024 and the first of 2025 are of one ISO week, 2025-W01.
    let weeks = of(Keep { weekly: 9, ..NONE });
    assert_eq!(kept(&weeks), [id(2), id(5)]);
    assert_eq!(reasons(&weeks, 2), ["newest of week 2025-W01"]);
    assert_eq!(reasons(&of(Keep { hourly: 2, ..NONE }), 4), ["newest of hour 2026-11-19T03"]);
}

#[test]
fn a_suspicious_backup_takes_nobodys_place() {
    let good = ago(1, 30);
    let broken = incomplete(ago(2, 1));
    let empty = sized(ago(3, 0), 0, 0);
    let plan = plan(&[good, broken, empty], &Keep { last: 1, ..NONE }, now());
    assert_eq!(kept(&plan), [id(1), id(2), id(3)]);
    assert!(reasons(&plan, 1).contains(&"one of the last 1".to_owned()));
    assert!(reasons(&plan, 2)[0].contains("incomplete"), "{:?}", reasons(&plan, 2));
    assert!(reasons(&plan, 3)[0].contains("no files"));
    assert_eq!(plan.alarms.len(), 2);
    assert!(plan.alarms[0].remedy.contains("--accept 00000000"), "{:?}", plan.alarms);
}

#[test]
fn an_accepted_backup_counts_like_any_other() {
    let mut accepted = incomplete(ago(2, 1));
    accepted.accepted = true;
    let plan = plan(&[ago(1, 30), accepted], &Keep { last: 1, ..NONE }, now());
    // The newest consistent one stays beside it: the accepted one is still incomplete.
    assert_eq!(kept(&plan), [id(1), id(2)]);
    assert_eq!(reasons(&plan, 1), ["the newest consistent backup"]);
    assert!(reasons(&plan, 2).contains(&"one of the last 1".to_owned()));
    assert_eq!(plan.alarms, []);
}

#[test]
fn a_suspicious_backup_goes_when_seven_good_ones_and_a_week_have_passed() {
    let keep = Keep { daily: 30, ..NONE };
    let with = |broken_age, goods: i64| {
        let mut backups = vec![incomplete(ago(99, broken_age))];
        backups.extend((0..goods).map(|n| ago(usize::try_from(n).unwrap(), n * 2)));
        plan(&backups, &keep, now()).removed_ids().contains(&id(99))
    };
    assert!(with(168, 7));
    assert!(!with(168, 6), "six good ones do not outnumber it");
    assert!(!with(167, 7), "a week has not passed");
}

#[test]
fn damaged_backups_stay_do_not_count_and_alarm() {
    let mut damaged = ago(2, 0);
    damaged.record = None;
    damaged.damaged = Some("it does not decrypt".into());
    assert!(!is_good(&damaged));
    let plan = plan(&[ago(1, 5), damaged], &Keep { last: 1, ..NONE }, now());
    assert!(plan.remove.is_empty(), "{:?}", plan.remove);
    assert_eq!(plan.keep[1].reasons, ["damaged"]);
    assert!(plan.alarms[0].what.contains("is damaged: it does not decrypt"), "{:?}", plan.alarms);
}

#[test]
fn foreign_backups_stay_and_do_not_count() {
    let mut foreign = ago(2, 0);
    foreign.record = None;
    let plan = plan(&[ago(1, 5), foreign], &Keep { last: 1, ..NONE }, now());
    assert_eq!(kept(&plan), [id(1), id(2)]);
    assert_eq!(reasons(&plan, 2), ["made by another program"]);
    assert_eq!(plan.alarms, []);
}

#[test]
fn a_backup_from_the_future_evicts_nothing() {
    let plan = plan(&[ago(1, 5), ago(2, -48)], &Keep { last: 1, ..NONE }, now());
    assert_eq!(kept(&plan), [id(1), id(2)]);
    assert_eq!(reasons(&plan, 2), ["its time lies in the future"]);
    assert_eq!(plan.alarms.len(), 1);
}

#[test]
fn the_writers_claim_of_its_time_is_not_believed() {
    let mut liar = ago(1, 100);
    liar.time = now() + SignedDuration::from_hours(9999);
    let plan = plan(&[liar, ago(2, 1)], &Keep { last: 1, ..NONE }, now());
    assert_eq!(kept(&plan), [id(2)]);
}

#[test]
fn no_good_backup_at_all_is_an_alarm_and_removes_nothing() {
    let backups: Vec<_> = (0..20).map(|n| incomplete(ago(n, 9000))).collect();
    let plan = plan(&backups, &NONE, now());
    assert_eq!(plan.remove, []);
    assert!(plan.alarms.iter().any(|a| a.what.contains("no backup that can be relied on")));
}

#[test]
fn under_half_the_median_looks_wrong() {
    let usual: Vec<_> = (0..7).map(|n| sized(ago(n, 10), 100, 1000)).collect();
    assert_eq!(looks_wrong(&usual, 50, Bytes(500)), None);
    let few = looks_wrong(&usual, 49, Bytes(1000)).unwrap();
    assert_eq!(few, "it holds 49 files where the last 7 held 100");
    assert!(looks_wrong(&usual, 100, Bytes(499)).unwrap().contains("499 B"));
    assert_eq!(looks_wrong(&[], 0, Bytes(0)), None);
}

#[test]
fn suspicious_ones_do_not_become_what_is_usual() {
    let mut all: Vec<_> = (0..7).map(|n| sized(ago(n, 100), 100, 1000)).collect();
    for n in 10..30 {
        let mut small = sized(ago(n, 50 - i64::try_from(n).unwrap()), 10, 100);
        let found = looks_wrong(&all, 10, Bytes(100));
        assert!(found.is_some(), "the small backup {n} passed");
        small.record.as_mut().unwrap().looks_wrong = found;
        all.push(small);
    }
    all.last_mut().unwrap().accepted = true;
    assert_eq!(looks_wrong(&all, 10, Bytes(100)), None, "accepting one says that the size is right");
}

/// Age in hours, kind, and whether it is accepted, per-source, and found too small.
type Shape = (i64, u8, bool, bool, bool);

fn any_backup() -> impl Strategy<Value = Shape> {
    (-72i64..2000, 0u8..8, any::<bool>(), any::<bool>(), any::<bool>())
}

fn any_keep() -> impl Strategy<Value = Keep> {
    (0u32..4, 0u32..5, 0u32..5, 0u32..4, 0u32..3, 0u32..2).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly)| Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        },
    )
}

fn shelf(shapes: Vec<Shape>) -> Vec<StoredBackup> {
    let build = |(number, shape): (usize, Shape)| {
        let (hours, shape, accepted, per_source, small) = shape;
        let mut backup: StoredBackup = ago(number, hours);
        backup.accepted = accepted && shape < 4;
        let record = backup.record.as_mut().unwrap();
        record.verdict = if per_source { Verdict::PerSource } else { Verdict::Consistent };
        record.looks_wrong = small.then(|| "it holds 1 file where the last 7 held 9".to_owned());
        match shape {
            0 => record.verdict = Verdict::Incomplete,
            1 => record.files = 0,
            2 => backup.record = None,
            _ => {}
        }
        backup
    };
    shapes.into_iter().enumerate().map(build).collect()
}

proptest! {
    #[test]
    fn suspicious_backups_change_nothing_for_good_ones(
        shapes in prop::collection::vec(any_backup(), 0..60), keep in any_keep()
    ) {
        let all = shelf(shapes);
        let good: Vec<_> = all.iter().filter(|b| is_good(b)).cloned().collect();
        let with = plan(&all, &keep, now());
        let without = plan(&good, &keep, now());
        let good_of_all: Vec<_> =
            with.keep.iter().filter(|k| good.iter().any(|g| g.id == k.id)).cloned().collect();
        prop_assert_eq!(good_of_all, without.keep);
    }

    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(
        shapes in prop::collection::vec(any_backup(), 0..60), keep in any_keep()
    ) {
        let all = shelf(shapes);
        let first = plan(&all, &keep, now());
        let left: Vec<_> = all.into_iter().filter(|b| first.keep.iter().any(|k| k.id == b.id)).collect();
        let second = plan(&left, &keep, now());
        prop_assert_eq!(kept(&second), kept(&first));
        prop_assert_eq!(second.remove, vec![]);
    }

    #[test]
    fn each_backup_is_kept_or_removed_once_for_a_reason_and_a_good_one_stays(
        shapes in prop::collection::vec(any_backup(), 0..60), keep in any_keep()
    ) {
        let all = shelf(shapes);
        let plan = plan(&all, &keep, now());
        let mut ids = [kept(&plan), plan.removed_ids()].concat();
        ids.sort();
        prop_assert_eq!(ids, all.iter().map(|b| b.id.clone()).collect::<Vec<_>>());
        prop_assert!(plan.keep.iter().all(|k| !k.reasons.is_empty()));
        prop_assert!(plan.remove.iter().all(|r| !r.reason.is_empty()));
        let goods = all.iter().filter(|b| is_good(b)).count();
        let good_left = all.iter().filter(|b| is_good(b) && kept(&plan).contains(&b.id)).count();
        prop_assert!(goods == 0 || good_left > 0);
    }
}
