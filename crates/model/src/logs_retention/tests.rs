//! What retention decides about logs, by example and by property.
//!
//! Crash story: pure functions are called, nothing else.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

use super::{Anchor, keep_bases, plan, spool_surplus};
use crate::{
    cut::Stalls,
    id::{AppName, BackupId, CutId, SourceId},
    inventory::Keep,
    logs::{Beginning, Epoch, LogPlace},
    logs_store::tests::{epoch, id, place},
    record::{BackupRecord, RECORD_VERSION, StoredBackup},
    retention,
    server::{Flavor, ServerForm, ServerPosition, ServerRecord, ServerVersion},
    size::Bytes,
    time::Millis,
    verdict::Verdict,
};

fn begun() -> Timestamp {
    "2026-11-20T03:15:00Z".parse().unwrap()
}

fn source() -> SourceId {
    SourceId::new("mariadb", "s")
}

fn backup_id(nth: u64) -> BackupId {
    BackupId::new(format!("{nth:064x}")).unwrap()
}

fn anchor(nth: u64, at: Timestamp, place: Option<LogPlace>) -> Anchor {
    let server = |place| {
        let LogPlace::Binlog(binlog) = place else { panic!("no binary log") };
        ServerRecord {
            source: source(),
            version: ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 6), text: String::new() },
            server_id: 1,
            form: ServerForm::Files,
            position: ServerPosition { binlog: Some(binlog), ..ServerPosition::default() },
            settings: std::collections::BTreeMap::new(),
            roots: vec![],
            engines: vec![],
            databases: vec![],
            beside: None,
            replay_from: None,
        }
    };
    Anchor { backup: backup_id(nth), at, servers: Some(place.into_iter().map(server).collect()) }
}

#[test]
fn logs_are_kept_back_to_the_position_of_the_oldest_backup() {
    let epochs = [epoch(1, 1, 9, Beginning::First)];
    let kept = [anchor(1, begun(), Some(place(8, 500))), anchor(2, begun(), Some(place(4, 1000)))];
    let plan = plan(&source(), &epochs, &kept);
    assert_eq!((plan.epochs, plan.from, plan.segments), (vec![], Some((id(1), 5)), 4));
    assert_eq!(plan.because, "kept from b.000004:1000 on: backup 00000000 needs it");
}

#[test]
fn epochs_before_it_go() {
    let mut epochs =
        [epoch(1, 1, 3, Beginning::First), epoch(2, 1, 4, Beginning::Continues { after: id(1) })];
    epochs[1].record.from = place(4, 4);
    for (segment, file) in epochs[1].segments.iter_mut().zip(4..) {
        (segment.from, segment.to) = (place(file, 4), place(file, 1000));
    }
    let plan = plan(&source(), &epochs, &[anchor(1, begun(), Some(place(5, 10)))]);
    assert_eq!((plan.epochs, plan.from, plan.segments), (vec![id(1)], Some((id(2), 2)), 4));
}

#[test]
fn without_a_backup_or_its_place_nothing_is_given_up_by_age() {
    let epochs = [epoch(1, 1, 9, Beginning::First)];
    for kept in [vec![], vec![anchor(1, Timestamp::MAX, None)], vec![anchor(1, begun(), Some(place(99, 1)))]]
    {
        let plan = plan(&source(), &epochs, &kept);
        assert_eq!((plan.epochs, plan.segments), (vec![], 0));
    }
}

#[test]
fn sqlites_epochs_go_whole_when_a_later_base_is_older_than_the_backup() {
    let day = SignedDuration::from_hours(24);
    let epochs: Vec<Epoch> = (1..=4)
        .map(|nth| {
            let mut epoch = epoch(nth, 1, 5, Beginning::First);
            epoch.record.begun_at = begun() + day * i32::from(nth);
            epoch
        })
        .collect();
    let plan = |days: i32| plan(&source(), &epochs, &[anchor(1, begun() + day * days, None)]).epochs;
    assert_eq!(plan(1), []);
    assert_eq!(plan(2), []);
    assert_eq!(plan(3), [id(1)]);
    assert_eq!(plan(9), [id(1), id(2), id(3)], "the newest stays");
}

#[test]
fn the_spool_keeps_what_is_young_open_or_not_in_the_repository() {
    let (spool, mut stored) = (epoch(1, 1, 5, Beginning::First), epoch(1, 1, 4, Beginning::First));
    stored.segments[1].sha256 = "another".into();
    stored.damaged.push((3, "is missing".into()));
    let surplus = |now| -> Vec<u64> {
        let window = SignedDuration::from_hours(48);
        let found = spool_surplus(
            std::slice::from_ref(&spool),
            std::slice::from_ref(&stored),
            window,
            now,
            &|_, number| number != 4,
        );
        found.iter().map(|segment| segment.number).collect()
    };
    assert_eq!(surplus(begun() + SignedDuration::from_hours(47)), [0_u64; 0]);
    assert_eq!(surplus(begun() + SignedDuration::from_hours(49)), [1]);
    let all = epoch(1, 1, 5, Beginning::First);
    let both = std::slice::from_ref(&all);
    let found = spool_surplus(both, both, SignedDuration::ZERO, Timestamp::MAX, &|_, _| true);
    let found: Vec<u64> = found.iter().map(|segment| segment.number).collect();
    assert_eq!(found, [1, 2, 3, 4], "the newest stays, by which the server's log is known again");
}

fn backup(nth: u64, received: Timestamp) -> StoredBackup {
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
        id: backup_id(nth),
        time: received,
        received,
        record: Some(record),
        damaged: None,
        accepted: false,
    }
}

/// A backup every six hours, retention after each, for a hundred days: the window has a base all the time, and it moves on.
#[test]
fn the_window_always_has_a_base_that_moves_on() {
    let keep = Keep { last: 2, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };
    let reach = SignedDuration::from_hours(30 * 24);
    let mut backups: Vec<StoredBackup> = Vec::new();
    for nth in 0..400_u64 {
        let now = begun() + SignedDuration::from_hours(6 * i64::try_from(nth).unwrap());
        backups.push(backup(nth, now));
        let mut plan = retention::plan(&backups, &keep, now);
        keep_bases(&mut plan, &backups, reach, now);
        let gone = plan.removed_ids();
        backups.retain(|backup| !gone.contains(&backup.id));
        let oldest = backups.iter().map(|backup| backup.time).min().unwrap();
        assert!(oldest <= begun().max(now - reach), "no base at {now}");
        assert!(oldest >= begun().max(now - reach * 2), "the base of {now} does not move on: {oldest}");
        assert!(backups.len() <= 10, "{}", backups.len());
        assert!(plan.keep.is_sorted_by_key(|kept| kept.received));
    }
}

/// Epochs of one log in a row, and places in it where backups were taken.
fn logs() -> impl Strategy<Value = (Vec<Epoch>, Vec<(u64, u64)>)> {
    let lengths = proptest::collection::vec(1..6_u64, 1..5);
    let places = proptest::collection::vec((1..30_u64, 4..=1000_u64), 1..6);
    (lengths, places).prop_map(|(lengths, places)| {
        let mut file = 1;
        let mut epochs: Vec<Epoch> = Vec::new();
        for (nth, length) in (1..).zip(lengths) {
            let beginning = epochs.last().map_or(Beginning::First, |before| Beginning::Continues {
                after: before.record.epoch.clone(),
            });
            let mut epoch = epoch(nth, 1, length, beginning);
            epoch.record.from = place(file, 4);
            for segment in &mut epoch.segments {
                (segment.from, segment.to) = (place(file, 4), place(file, 1000));
                file += 1;
            }
            epochs.push(epoch);
        }
        (epochs, places)
    })
}

proptest! {
    /// Whatever is kept, all that was logged after it stays, and carrying the plan out changes nothing of the next one.
    #[test]
    fn no_kept_backup_loses_the_logs_after_it((epochs, places) in logs(), late in any::<bool>()) {
        let at = if late { Timestamp::MAX } else { begun() };
        let kept: Vec<Anchor> =
            (1..).zip(&places).map(|(nth, (file, offset))| anchor(nth, at, Some(place(*file, *offset)))).collect();
        let plan_of = |epochs: &[Epoch]| plan(&source(), epochs, &kept);
        let plan = plan_of(&epochs);
        let mut left = epochs.clone();
        left.retain(|epoch| !plan.epochs.contains(&epoch.record.epoch));
        for epoch in &mut left {
            let first = plan.from.as_ref().filter(|(from, _)| *from == epoch.record.epoch).map_or(0, |(_, n)| *n);
            epoch.segments.retain(|segment| segment.number >= first);
        }
        let stays = |file: u64| {
            left.iter().flat_map(|epoch| &epoch.segments).any(|segment| segment.from == place(file, 4))
        };
        let files = epochs.iter().map(|epoch| epoch.segments.len() as u64).sum::<u64>();
        for (file, offset) in places {
            let needed = if offset == 1000 { file + 1 } else { file };
            for needed in needed..=files {
                prop_assert!(stays(needed), "{needed} of {files} is gone, a backup stands at {file}:{offset}");
            }
        }
        prop_assert!(left.last().is_some_and(|epoch| !epoch.segments.is_empty()), "the newest stays");
        let again = plan_of(&left);
        prop_assert_eq!((again.epochs.len(), again.segments), (0, 0));
    }
}
