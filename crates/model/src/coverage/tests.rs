//! Plain values.
//!
//! Crash story: tests.

use jiff::{SignedDuration, Timestamp};

use super::{Coverage, Hole, Interval, Known, SourceCoverage, Tick};
use crate::id::{AppName, BackupId, SourceId};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn database(name: &str, intervals: &[(i64, i64)]) -> SourceCoverage {
    let intervals: Vec<Interval> =
        intervals.iter().map(|(from, to)| Interval { from: at(*from), to: at(*to) }).collect();
    let hole = |pair: &[Interval]| Hole {
        from: pair[0].to,
        to: pair[1].from,
        cause: Some(crate::logs::HoleCause::Purged),
        detail: "purged".into(),
    };
    let holes = intervals.windows(2).map(hole).collect();
    SourceCoverage {
        source: SourceId::new("mariadb", name),
        intervals,
        holes,
        lag: None,
        problems: Vec::new(),
    }
}

fn coverage(databases: Vec<SourceCoverage>, wanted: Option<i64>) -> Coverage {
    let backups = vec![Tick { backup: BackupId::new("a".repeat(64)).unwrap(), time: at(10), verdict: None }];
    let wanted = wanted.map(SignedDuration::from_secs);
    Coverage::new(AppName::new("a").unwrap(), at(1000), wanted, databases, Vec::new(), backups)
}

#[test]
fn the_whole_is_where_all_are_and_holes_keep_their_causes() {
    let one = coverage(vec![database("a", &[(0, 100), (200, 900)]), database("b", &[(50, 600)])], Some(2000));
    let whole: Vec<(Timestamp, Timestamp)> = one.whole.iter().map(|i| (i.from, i.to)).collect();
    assert_eq!(whole, [(at(50), at(100)), (at(200), at(600))]);
    assert_eq!(one.holes.len(), 1);
    assert!(one.holes[0].detail.contains("mariadb:a: purged"), "{:?}", one.holes);
    assert!(one.problems.iter().any(|what| what.contains("purged")), "{:?}", one.problems);
}

#[test]
fn files_are_there_from_the_first_backup_on() {
    let one = coverage(vec![database("a", &[(0, 900)])], None);
    assert_eq!((one.whole[0].from, one.problems.len()), (at(10), 0));
}

#[test]
fn a_hole_before_the_wanted_window_is_shown_and_is_no_problem() {
    let one = coverage(vec![database("a", &[(0, 100), (200, 900)])], Some(500));
    assert_eq!((one.holes.len(), one.problems.len()), (1, 0));
    let none = coverage(Vec::new(), Some(500));
    assert!(none.problems.is_empty() && none.whole.is_empty());
}

#[test]
fn a_log_of_which_backups_have_dumps_only_is_told_with_the_reason() {
    let source = SourceId::new("mariadb", "/run/x.sock");
    let known = |is_dump| Known { source: &source, epochs: &[], status: None, damaged: &[], is_dump };
    let told = |is_dump| SourceCoverage::new(&known(is_dump), &[], at(0)).problems.pop().unwrap();
    assert!(told(true).contains("as a dump") && told(false).contains("make a backup"), "{}", told(true));
}
