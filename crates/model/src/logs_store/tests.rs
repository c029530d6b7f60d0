//! What spool and repository have together, by example.
//!
//! Crash story: pure functions are called, nothing else.

use crate::{
    id::{EpochId, SourceId},
    logs::{Beginning, Epoch, EpochRecord, HoleCause, LOGS_VERSION, LogKind, LogPlace, SegmentRecord, Span},
    logs_store::{LogsRecord, LogsStored, Whence, unite},
    server::BinlogPosition,
    size::Bytes,
};

pub(crate) fn place(file: u64, offset: u64) -> LogPlace {
    LogPlace::Binlog(BinlogPosition { file: format!("b.{file:06}"), offset })
}

pub(crate) fn id(nth: u8) -> EpochId {
    EpochId::at("2026-11-20T03:15:00Z".parse().unwrap(), [0, 0, nth])
}

/// An epoch whose segments are whole files of the log, from `first` on.
pub(crate) fn epoch(nth: u8, first: u64, segments: u64, beginning: Beginning) -> Epoch {
    let begun_at = "2026-11-20T03:15:00Z".parse().unwrap();
    let record = EpochRecord {
        version: LOGS_VERSION,
        epoch: id(nth),
        source: SourceId::new("mariadb", "s"),
        kind: LogKind::Binlog,
        begun_at,
        beginning,
        from: place(1, 4),
        server: None,
        gtid_state: None,
        has_base: false,
    };
    let segment = |number| SegmentRecord {
        version: LOGS_VERSION,
        epoch: id(nth),
        number,
        from: place(number, 4),
        to: place(number, 1000),
        lead: 0,
        bytes: Bytes(1000),
        sha256: format!("{nth}-{number}"),
        transactions: 1,
        gtid_state: None,
        commits: None,
        received: Span::at(begun_at),
    };
    Epoch { record, segments: (first..first + segments).map(segment).collect(), damaged: vec![] }
}

fn everywhere(_: &EpochId, _: u64) -> bool {
    true
}

#[test]
fn damage_in_one_is_healed_by_the_other() {
    let (mut local, mut stored) = (epoch(1, 1, 3, Beginning::First), epoch(1, 1, 2, Beginning::First));
    local.damaged.push((1, "is missing".into()));
    stored.damaged.push((2, "is damaged".into()));
    let united = unite(&[local], &[stored], &everywhere).remove(0);
    let whence: Vec<_> = united.whence.into_iter().collect();
    assert_eq!(whence, [(1, Whence::Repository), (2, Whence::Spool), (3, Whence::Spool)]);
    assert_eq!(united.healed, [(1, "is missing".to_owned()), (2, "is damaged".to_owned())]);
    assert_eq!((united.epoch.segments.len(), united.epoch.damaged), (3, vec![]));
}

#[test]
fn what_neither_has_is_damaged_and_what_was_discarded_is_in_the_repository() {
    let (mut local, mut stored) = (epoch(1, 1, 3, Beginning::First), epoch(1, 1, 3, Beginning::First));
    local.damaged.push((2, "is missing".into()));
    stored.damaged.push((2, "is damaged".into()));
    let united = unite(&[local], &[stored], &|_, number| number == 3).remove(0);
    assert_eq!(united.whence.get(&1), Some(&Whence::Repository));
    assert_eq!(united.epoch.damaged, [(2, "is missing".to_owned())]);
    assert_eq!(united.epoch.segments.len(), 3);
}

#[test]
fn of_an_open_segment_the_longer_one_counts() {
    let (mut local, stored) = (epoch(1, 1, 1, Beginning::First), epoch(1, 1, 1, Beginning::First));
    local.segments[0].bytes = Bytes(10);
    let united = unite(&[local], &[stored], &everywhere).remove(0);
    assert_eq!(united.whence.get(&1), Some(&Whence::Repository));
}

#[test]
fn the_beginning_that_was_dropped_is_no_damage() {
    let (local, stored) = (epoch(1, 1, 5, Beginning::First), epoch(1, 4, 2, Beginning::First));
    let united = unite(&[local], &[stored], &|_, number| number == 5).remove(0);
    let numbers: Vec<u64> = united.epoch.segments.iter().map(|segment| segment.number).collect();
    assert_eq!((numbers, united.epoch.damaged), (vec![4, 5], vec![]));
}

#[test]
fn epochs_come_in_the_order_in_which_they_follow() {
    let hole = |after| Beginning::Hole { after, cause: HoleCause::Purged, detail: String::new() };
    let old = epoch(9, 1, 1, Beginning::First);
    let (middle, new) = (epoch(5, 1, 1, hole(id(9))), epoch(1, 1, 1, hole(id(5))));
    let united = unite(&[middle.clone(), new.clone()], &[old, middle], &everywhere);
    let order: Vec<_> = united.into_iter().map(|united| united.epoch.record.epoch).collect();
    assert_eq!(order, [id(9), id(5), id(1)]);
}

#[test]
fn a_summary_counts_all_epochs_and_names_the_newest_place() {
    let epochs = [epoch(1, 1, 2, Beginning::First), epoch(2, 1, 3, Beginning::First)];
    let stored = LogsStored::of(&SourceId::new("mariadb", "s"), LogKind::Binlog, &epochs).unwrap();
    assert_eq!((stored.epochs, stored.segments, stored.bytes), (2, 5, Bytes(5000)));
    assert_eq!((stored.epoch, stored.to), (id(2), place(3, 1000)));
}

/// Records of every version that was ever written.
#[test]
fn frozen_records_are_read_and_written_as_ever() {
    let frozen = include_str!("../../testdata/logs-record-1.json");
    let record: LogsRecord = serde_json::from_str(frozen).unwrap();
    assert_eq!(format!("{}\n", serde_json::to_string(&record).unwrap()), frozen);
    assert_eq!(record.sources[0].to.to_string(), "binlog.000002:100000");
    assert_eq!(record.beside[0].short(), "c0ffee00");
    let more = frozen.replace("{\"version\"", "{\"colour\":\"red\",\"version\"");
    assert_eq!(serde_json::from_str::<LogsRecord>(&more).unwrap(), record, "unknown fields are passed over");
}
