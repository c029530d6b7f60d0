//! Plain values, and a naive oracle that knows every transaction.
//!
//! Crash story: tests.

mod oracle;

use jiff::Timestamp;

use super::{
    Asked, Base, BaseFrom, Gap, Goal, Recovery, Route, Search, Transaction, Why, find, route, runs,
    stop_among,
};
use crate::{
    id::{BackupId, EpochId, SourceId},
    logs::{
        Beginning, Epoch, EpochRecord, HoleCause, LOGS_VERSION, LogKind, LogPlace, LogServer, SegmentRecord,
        Span,
    },
    server::{BinlogPosition, Flavor, Gtids, ServerVersion},
    size::Bytes,
};

fn source() -> SourceId {
    SourceId::new("mariadb", "/run/x.sock")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn place(file: u32, offset: u64) -> LogPlace {
    LogPlace::Binlog(BinlogPosition { file: format!("b.{file:06}"), offset })
}

fn epoch_id(number: u8) -> EpochId {
    EpochId::at(at(0), [0, 0, number])
}

fn backup_id(number: usize) -> BackupId {
    BackupId::new(format!("{number:064x}")).unwrap()
}

fn epoch(number: u8, beginning: Beginning, from: LogPlace) -> Epoch {
    let version = ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 0), text: "10.11".into() };
    let record = EpochRecord {
        version: LOGS_VERSION,
        epoch: epoch_id(number),
        source: source(),
        kind: LogKind::Binlog,
        begun_at: at(0),
        beginning,
        from,
        server: Some(LogServer { server_id: 1, version, uuid: None }),
        gtid_state: None,
        has_base: false,
    };
    Epoch { record, segments: Vec::new(), damaged: Vec::new() }
}

fn segment(epoch: u8, number: u64, from: LogPlace, to: LogPlace, times: Option<(i64, i64)>) -> SegmentRecord {
    SegmentRecord {
        version: LOGS_VERSION,
        epoch: epoch_id(epoch),
        number,
        from,
        to,
        lead: 256,
        bytes: Bytes(1256),
        sha256: String::new(),
        transactions: 1,
        gtid_state: None,
        commits: times.map(|(first, last)| Span { first: at(first), last: at(last) }),
        received: Span { first: at(0), last: at(100_000) },
    }
}

fn base(number: usize, time: i64, place: LogPlace) -> Base {
    Base {
        source: source(),
        from: BaseFrom::Backup(backup_id(number)),
        time: at(time),
        place,
        server_id: Some(1),
        gtid_state: None,
    }
}

fn ask(epochs: &[Epoch], bases: &[Base], goal: Goal, caught_up: Option<i64>) -> Result<Route, Gap> {
    let (runs, source) = (runs(epochs), source());
    route(&Asked { source: &source, goal: &goal, runs: &runs, bases, caught_up_at: caught_up.map(at) })
}

/// Three segments in two files, ten seconds each.
fn plain() -> Epoch {
    let mut one = epoch(1, Beginning::First, place(1, 4));
    one.segments = vec![
        segment(1, 1, place(1, 4), place(1, 1000), Some((0, 9))),
        segment(1, 2, place(1, 1000), place(1, 2000), Some((10, 19))),
        segment(1, 3, place(2, 4), place(2, 1000), Some((20, 29))),
    ];
    one
}

fn numbers(route: &Route) -> Vec<u64> {
    route.legs.iter().map(|leg| leg.segment.number).collect()
}

#[test]
fn the_newest_copy_before_the_moment_and_the_segments_from_there() {
    let bases = [base(1, 1, place(1, 100)), base(2, 11, place(1, 1100)), base(3, 25, place(2, 500))];
    let found = ask(&[plain()], &bases, Goal::At(at(22)), None).unwrap();
    assert_eq!((found.base.from.clone(), numbers(&found)), (BaseFrom::Backup(backup_id(2)), vec![2, 3]));
    assert_eq!(found.search, Search::From(1));
    // A later moment of the same segment is reached from the copy in it.
    let found = ask(&[plain()], &bases, Goal::At(at(28)), None).unwrap();
    assert_eq!((found.base.from.clone(), numbers(&found)), (BaseFrom::Backup(backup_id(3)), vec![3]));
    // A copy at the end of a segment begins with the one after.
    let found = ask(&[plain()], &[base(1, 9, place(1, 1000))], Goal::At(at(12)), None).unwrap();
    assert_eq!(numbers(&found), [2]);
}

#[test]
fn times_that_go_back_do_not_matter_the_first_in_log_order_counts() {
    let mut one = plain();
    // The clock was 100 s ahead for one transaction of the first segment.
    one.segments[0].commits = Some(Span { first: at(0), last: at(109) });
    let bases = [base(1, 1, place(1, 100)), base(2, 11, place(1, 1100))];
    let found = ask(&[one], &bases, Goal::At(at(22)), None).unwrap();
    assert_eq!((found.base.from.clone(), numbers(&found)), (BaseFrom::Backup(backup_id(1)), vec![1]));
}

#[test]
fn behind_the_last_transaction_only_what_was_seen_to_be_the_end_counts() {
    let bases = [base(1, 1, place(1, 100))];
    let found = ask(&[plain()], &bases, Goal::At(at(40)), Some(41)).unwrap();
    assert_eq!((numbers(&found), found.search), (vec![1, 2, 3], Search::End));
    let gap = ask(&[plain()], &bases, Goal::At(at(40)), Some(39)).unwrap_err();
    assert_eq!((gap.why, gap.before, gap.after), (Why::Beyond, Some(at(39)), None));
}

#[test]
fn a_damaged_segment_in_the_way_is_named_with_the_nearest_moments() {
    let mut one = plain();
    one.damaged = vec![(2, "is missing".into())];
    let bases = [base(1, 1, place(1, 100)), base(2, 25, place(2, 500))];
    let gap = ask(&[one.clone()], &bases, Goal::At(at(22)), None).unwrap_err();
    assert_eq!((gap.why, gap.before, gap.after), (Why::Hole, Some(at(9)), Some(at(25))));
    assert!(gap.detail.contains("segment 2") && gap.detail.contains("is missing"), "{gap}");
    // Before it and behind the next copy all is well.
    assert!(ask(&[one.clone()], &bases, Goal::At(at(5)), None).is_ok());
    assert!(ask(&[one.clone()], &bases, Goal::At(at(28)), None).is_ok());
    // The same if it is not even listed.
    one.segments.remove(1);
    one.damaged.clear();
    assert_eq!(ask(&[one], &bases, Goal::At(at(22)), None).unwrap_err().why, Why::Hole);
}

#[test]
fn holes_between_epochs_and_epochs_that_continue() {
    let mut second = epoch(2, Beginning::Continues { after: epoch_id(1) }, place(7, 4));
    second.segments = vec![segment(2, 1, place(7, 4), place(7, 900), Some((30, 39)))];
    let bases = [base(1, 1, place(1, 100))];
    let found = ask(&[plain(), second.clone()], &bases, Goal::At(at(35)), None).unwrap();
    assert_eq!(numbers(&found), [1, 2, 3, 1]);
    for cause in [HoleCause::Purged, HoleCause::Diverged, HoleCause::Reset, HoleCause::NoSpace] {
        second.record.beginning = Beginning::Hole { after: epoch_id(1), cause, detail: "so it was".into() };
        let gap = ask(&[plain(), second.clone()], &bases, Goal::At(at(35)), None).unwrap_err();
        assert_eq!((gap.why, gap.before, gap.after), (Why::Hole, Some(at(29)), None));
        assert!(gap.detail.contains(&cause.to_string()), "{gap}");
    }
    // An epoch that continues another one which is gone goes on from nothing.
    second.record.beginning = Beginning::Continues { after: epoch_id(9) };
    assert_eq!(ask(&[plain(), second.clone()], &bases, Goal::At(at(35)), None).unwrap_err().why, Why::Hole);
    // Nor does it from one whose end is missing.
    second.record.beginning = Beginning::Continues { after: epoch_id(1) };
    let mut first = plain();
    first.damaged = vec![(4, "is missing".into())];
    assert_eq!(ask(&[first, second], &bases, Goal::At(at(35)), None).unwrap_err().why, Why::Hole);
}

#[test]
fn copies_of_another_server_or_outside_of_the_log_are_no_base() {
    let mut other = base(1, 1, place(1, 100));
    other.server_id = Some(2);
    for bad in [other, base(1, 1, place(3, 4)), base(1, 23, place(1, 100))] {
        let gap = ask(&[plain()], &[bad], Goal::At(at(22)), None).unwrap_err();
        assert_eq!(gap.why, Why::NoBase);
    }
    assert_eq!(
        ask(&[], &[base(1, 1, place(1, 100))], Goal::At(at(2)), None).unwrap_err().why,
        Why::NoArchive
    );
}

#[test]
fn files_of_the_same_name_are_told_apart_by_transactions_and_by_when_they_were_received() {
    let state = |text: &str| Some(Gtids(text.into()));
    let mut first = plain();
    first.segments[0].gtid_state = state("0-1-9");
    first.record.gtid_state = state("");
    let mut again = epoch(
        2,
        Beginning::Hole { after: epoch_id(1), cause: HoleCause::Reset, detail: String::new() },
        place(1, 4),
    );
    again.record.gtid_state = state("0-1-50");
    again.segments = vec![segment(2, 1, place(1, 4), place(1, 1000), Some((50, 59)))];
    again.segments[0].gtid_state = state("0-1-60");
    let mut copy = base(1, 1, place(1, 100));
    copy.gtid_state = state("0-1-55");
    let epochs = [first.clone(), again.clone()];
    assert_eq!(
        ask(&epochs, &[copy.clone()], Goal::At(at(55)), None).unwrap().legs[0].segment.epoch,
        epoch_id(2)
    );
    copy.gtid_state = state("0-1-5");
    assert_eq!(ask(&epochs, &[copy.clone()], Goal::At(at(55)), None).unwrap_err().why, Why::Hole);
    assert!(ask(&epochs, &[copy.clone()], Goal::At(at(5)), None).is_ok());
    // A copy that is younger than what follows its place was taken of another log.
    copy.gtid_state = None;
    copy.time = at(49);
    first.segments[0].received.last = at(10);
    let found = ask(&[first, again], &[copy], Goal::At(at(55)), None).unwrap();
    assert_eq!(found.legs[0].segment.epoch, epoch_id(2));
}

#[test]
fn by_transaction_and_by_place() {
    let mut one = plain();
    for (segment, state) in one.segments.iter_mut().zip(["0-1-10", "0-1-20", "0-1-30"]) {
        segment.gtid_state = Some(Gtids(state.into()));
    }
    let bases = [base(1, 1, place(1, 100)), base(2, 21, place(2, 500))];
    let found = ask(&[one.clone()], &bases, Goal::AtGtid(Gtids("0-1-15".into())), None).unwrap();
    assert_eq!((numbers(&found), found.search), (vec![1, 2], Search::From(1)));
    let gap = ask(&[one.clone()], &bases, Goal::AtGtid(Gtids("0-1-31".into())), None).unwrap_err();
    assert_eq!(gap.why, Why::Unknown);
    let goal = |file: u32, offset| match place(file, offset) {
        LogPlace::Binlog(place) => Goal::AtPosition(place),
        LogPlace::SqliteWal(_) => unreachable!("a place of a binary log"),
    };
    let found = ask(&[one.clone()], &bases, goal(2, 400), None).unwrap();
    assert_eq!((found.base.place.clone(), numbers(&found)), (place(1, 100), vec![1, 2, 3]));
    let found = ask(&[one.clone()], &bases, goal(2, 600), None).unwrap();
    assert_eq!((found.base.place.clone(), numbers(&found)), (place(2, 500), vec![3]));
    assert_eq!(ask(&[one.clone()], &bases, goal(2, 5000), None).unwrap_err().why, Why::Unknown);
    let mut again = epoch(
        2,
        Beginning::Hole { after: epoch_id(1), cause: HoleCause::Reset, detail: String::new() },
        place(1, 4),
    );
    again.segments = vec![segment(2, 1, place(1, 4), place(1, 1000), Some((50, 59)))];
    assert_eq!(ask(&[one, again], &bases, goal(1, 500), None).unwrap_err().why, Why::Ambiguous);
}

#[test]
fn an_epoch_with_its_own_base_needs_no_backup() {
    let wal = |generation, frame| {
        LogPlace::SqliteWal(crate::logs::WalPosition { generation, salts: (1, 2), frame, checksum: (0, 0) })
    };
    let mut one = epoch(1, Beginning::First, wal(0, 0));
    one.record.kind = LogKind::SqliteWal;
    one.record.server = None;
    one.record.has_base = true;
    one.segments = vec![
        segment(1, 1, wal(0, 0), wal(0, 10), Some((1, 9))),
        segment(1, 2, wal(1, 0), wal(1, 10), Some((10, 19))),
    ];
    let base = Base::of_epoch(&one).unwrap();
    let found = ask(&[one.clone()], std::slice::from_ref(&base), Goal::At(at(15)), None).unwrap();
    assert_eq!(numbers(&found), [1, 2]);
    // Before its first commit it is the base itself, and so it is as long as there is none.
    let found = ask(&[one.clone()], std::slice::from_ref(&base), Goal::At(at(0)), None).unwrap();
    assert_eq!(numbers(&found), [1]);
    one.segments.clear();
    let found = ask(&[one], std::slice::from_ref(&base), Goal::At(at(5)), Some(6)).unwrap();
    assert!(found.legs.is_empty() && found.search == Search::End);
}

/// Earlier versions could leave one that says that it goes on, and begins behind what was captured.
#[test]
fn an_epoch_that_begins_behind_the_end_of_the_one_before_is_a_hole() {
    let wal = |frame| {
        LogPlace::SqliteWal(crate::logs::WalPosition {
            generation: 0,
            salts: (1, 2),
            frame,
            checksum: (3, 4),
        })
    };
    let of = |id, beginning, from, end| {
        let mut epoch = epoch(id, beginning, wal(from));
        (epoch.record.kind, epoch.record.server, epoch.record.has_base) = (LogKind::SqliteWal, None, true);
        let times = i64::from(id) * 20;
        epoch.segments = vec![segment(id, 1, wal(from), wal(end), Some((times + 1, times + 9)))];
        epoch
    };
    let go_on = |from| {
        let after = Beginning::Continues { after: epoch_id(1) };
        let both = [of(1, Beginning::First, 0, 10), of(2, after, from, 20)];
        runs(&both).iter().map(|run| run.before.clone()).collect::<Vec<_>>()
    };
    assert_eq!(go_on(10).len(), 1);
    let told = go_on(19);
    assert_eq!((told.len(), told[1].cause), (2, Some(HoleCause::Damaged)));
    assert!(told[1].detail.contains("the end of epoch"), "{}", told[1].detail);
}

#[test]
fn offsets_in_the_files_of_segments() {
    let bases = [base(1, 1, place(1, 100))];
    let found = ask(&[plain()], &bases, Goal::At(at(12)), None).unwrap();
    assert_eq!(found.legs[1].offset(&place(1, 1500)), 756);
    let here = Transaction { from: place(1, 1000), to: place(1, 1100), time: at(12), gtid: None };
    let stop = stop_among(&Goal::At(at(12)), &[here]).unwrap().unwrap();
    let plan = Recovery::new(found, Some((1, stop)), None);
    // It stops at the very beginning of the second segment, of which nothing is needed then.
    assert_eq!((plan.legs.len(), plan.start_offset, plan.stop_offset), (1, 352, 1252));
}

#[test]
fn a_place_inside_of_a_transaction_is_refused() {
    let one = |from, to, time, gtid: &str| Transaction {
        from: place(1, from),
        to: place(1, to),
        time: at(time),
        gtid: Some(Gtids(gtid.into())),
    };
    let all = [one(300, 400, 5, "0-1-1"), one(400, 500, 7, "0-1-2"), one(550, 600, 6, "0-1-3")];
    let stop = |goal| stop_among(&goal, &all).map(|stop| stop.map(|stop| stop.place));
    let goal = |offset| Goal::AtPosition(BinlogPosition { file: "b.000001".into(), offset });
    assert_eq!(stop(goal(450)).unwrap_err().from, place(1, 400));
    assert_eq!(stop(goal(400)), Ok(Some(place(1, 400))));
    assert_eq!(stop(goal(520)), Ok(Some(place(1, 550))));
    assert_eq!(stop(goal(600)), Ok(Some(place(1, 600))));
    assert_eq!(stop(Goal::AtGtid(Gtids("0-1-2".into()))), Ok(Some(place(1, 500))));
    assert_eq!(stop(Goal::AtGtid(Gtids("0-1-9".into()))), Ok(None));
    assert_eq!(stop(Goal::At(at(6))), Ok(Some(place(1, 400))));
    assert_eq!(stop(Goal::At(at(5))), Ok(Some(place(1, 300))));
    assert_eq!(stop(Goal::At(at(8))), Ok(None));
}

#[test]
fn a_base_whose_transactions_the_log_does_not_have_is_refused_and_named() {
    let mut one = plain();
    one.record.gtid_state = Some(Gtids("0-1-1".into()));
    let inside = |gtid: &str| Transaction {
        from: place(1, 50),
        to: place(1, 100),
        time: at(1),
        gtid: Some(Gtids(gtid.into())),
    };
    let mut copy = base(1, 1, place(1, 100));
    copy.gtid_state = Some(Gtids("0-1-2".into()));
    let (epochs, source, goal) = ([one], source(), Goal::At(at(8)));
    let (runs, bases) = (runs(&epochs), [copy]);
    let asked = Asked { source: &source, goal: &goal, runs: &runs, bases: &bases, caught_up_at: None };
    let late = Transaction {
        from: place(1, 100),
        to: place(1, 120),
        time: at(8),
        gtid: Some(Gtids("0-1-3".into())),
    };
    let run = |gtid: &str| find::<Gap>(&asked, &mut |_| Ok(vec![inside(gtid), late.clone()]));
    let good = run("0-1-2").unwrap();
    assert_eq!((good.reached.place, good.reached.gtid_state), (place(1, 100), Some(Gtids("0-1-2".into()))));
    let gap = run("0-1-7").unwrap_err();
    assert!(gap.why == Why::NoBase && gap.detail.contains("is not of this log"), "{gap}");
}
