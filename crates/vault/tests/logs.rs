//! The log archive in the repository: stored, superseded, carried over, read back.

mod common;

use std::fs;

use common::{
    Place, back_up, noise, ok,
    spool::{Archive, Bytes, owner},
};
use model::{
    logs::Beginning,
    logs_retention::{LogsPlan, SourcePlan},
    port::{Shelf, Silent, Store},
};
use vault::repository::{Depth, StoreOutcome};

struct Bench {
    place: Place,
    archive: Archive,
}

impl Bench {
    fn new() -> Self {
        let place = Place::new();
        let mut archive = Archive::new(place.dir.path().join("logs"));
        archive.begin_epoch(1, Beginning::First);
        Self { place, archive }
    }

    fn store(&self) -> StoreOutcome {
        self.store_without(&LogsPlan::default())
    }

    fn store_without(&self, plan: &LogsPlan) -> StoreOutcome {
        let outcome =
            self.place.repository().store_logs(&owner(), &self.archive.catalogue(), plan, &Silent).unwrap();
        assert_eq!(outcome.problems, []);
        outcome
    }

    fn snapshots(&self) -> usize {
        self.place.files("snapshots").len()
    }

    /// All segments of the newest epoch, as the repository has them.
    fn fetched(&self, numbers: &[u64]) -> Vec<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = self.archive.catalogue();
        let epoch = &catalogue.sources[0].epochs.last().unwrap().record.epoch;
        let wrong = self
            .place
            .repository()
            .fetch_logs(&self.archive.source, epoch, numbers, false, dir.path())
            .unwrap();
        assert_eq!(wrong, []);
        numbers.iter().map(|n| fs::read(dir.path().join(format!("{n:08}.seg"))).unwrap()).collect()
    }

    fn assert_whole(&self) {
        let report = self.place.repository().check(Depth::ReadData, &Silent).unwrap();
        assert!(report.is_good(), "{:?}", report.problems);
        assert!(self.place.journal.open().is_empty());
    }
}

#[test]
fn closed_segments_and_the_open_one_come_back() {
    let mut bench = Bench::new();
    bench.archive.segment(&noise(1, 700_000));
    bench.archive.begin_segment();
    bench.archive.append(&noise(2, 100_000));
    let first = bench.store();
    assert!(first.is_new && first.left == 0);
    let stored = &first.record.unwrap().sources[0];
    assert_eq!((stored.epochs, stored.segments, stored.bytes.0), (1, 2, 800_000));
    assert_eq!(stored.to.to_string(), "binlog.000002:100000");
    assert_eq!(bench.fetched(&[1, 2]), [noise(1, 700_000), noise(2, 100_000)]);

    bench.archive.append(&noise(3, 50_000));
    bench.store();
    let open = [noise(2, 100_000), noise(3, 50_000)].concat();
    assert_eq!(bench.fetched(&[2]), std::slice::from_ref(&open));
    bench.archive.close();
    bench.store();
    assert_eq!(bench.fetched(&[1, 2]), [noise(1, 700_000), open]);
    assert_eq!(bench.snapshots(), 1, "each takes the place of the one before");

    let mut expected = bench.archive.catalogue().sources.remove(0).epochs;
    let read = bench.place.repository().log_catalogue().unwrap().unwrap();
    assert_eq!(read.catalogue.sources[0].epochs, expected);
    expected.clear();
    bench.assert_whole();
}

#[test]
fn what_has_not_changed_is_not_stored_again() {
    let mut bench = Bench::new();
    bench.archive.segment(b"events");
    let first = bench.store();
    let again = bench.store();
    assert!(!again.is_new);
    assert_eq!((again.snapshot, again.record), (first.snapshot, first.record));
}

#[test]
fn a_segment_that_is_gone_here_is_carried_over_unread() {
    let mut bench = Bench::new();
    let one = bench.archive.segment(&noise(1, 3_000_000));
    let snapshot = bench.store().snapshot.unwrap();
    bench.archive.spool.discard(&bench.archive.source, &one.epoch, 1, &snapshot).unwrap();
    bench.archive.segment(&noise(2, 10_000));
    let outcome = bench.store();
    assert!(outcome.is_new);
    assert!(outcome.bytes_added.0 < 20_000, "{}", outcome.bytes_added);
    assert_eq!(bench.fetched(&[1, 2]), [noise(1, 3_000_000), noise(2, 10_000)]);
    let (_, unproven) = bench.place.repository().unproven_logs(&bench.archive.source, &[one]).unwrap();
    assert_eq!(unproven, []);
}

#[test]
fn a_lost_spool_loses_nothing_that_is_stored() {
    let mut bench = Bench::new();
    bench.archive.segment(b"the first life");
    bench.archive.begin_segment();
    bench.archive.append(b"open when it was lost");
    bench.store();
    let mut archive = Archive::new(bench.place.dir.path().join("new logs"));
    archive.begin_epoch(2, Beginning::First);
    archive.segment(b"the second life");
    bench.archive = archive;
    bench.store();
    let read = bench.place.repository().log_catalogue().unwrap().unwrap().catalogue;
    let epochs = &read.sources[0].epochs;
    let segments: Vec<usize> = epochs.iter().map(|epoch| epoch.segments.len()).collect();
    assert_eq!((segments, epochs.iter().all(|epoch| epoch.damaged.is_empty())), (vec![2, 1], true));
    bench.assert_whole();
}

#[test]
fn it_is_no_backup() {
    let mut bench = Bench::new();
    bench.archive.segment(&noise(1, 10_000));
    bench.store();
    let mut repository = bench.place.repository();
    assert_eq!(ok(repository.backups()), []);
    let root = bench.place.scratch();
    fs::write(root.join("file"), "content").unwrap();
    let (backup, draft) = back_up(&mut repository, &root, 1);
    assert_eq!(draft.problems, []);
    bench.archive.segment(&noise(2, 10_000));
    bench.store();
    assert!(!ok(repository.known()).is_empty(), "the backup is the parent, not the newer archive");
    repository = bench.place.repository();
    let ids: Vec<_> = ok(repository.backups()).into_iter().map(|backup| backup.id).collect();
    assert_eq!(ids, [backup]);
    assert_eq!(bench.snapshots(), 2);
}

#[test]
fn a_backup_that_runs_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.archive.segment(&noise(1, 10_000));
    bench.store();
    let mut backing_up = bench.place.repository();
    ok(backing_up.known());
    for nth in 2..5 {
        bench.archive.segment(&noise(nth, 10_000));
        let outcome = bench.store();
        assert_eq!((outcome.is_new, outcome.left), (true, nth - 1));
    }
    drop(backing_up);
    assert_eq!(bench.store().left, 0, "also if nothing has changed");
    assert_eq!(bench.snapshots(), 1);
    bench.assert_whole();
}

#[test]
fn pruning_frees_what_is_superseded_or_dropped() {
    let mut bench = Bench::new();
    let one = bench.archive.segment(&noise(1, 2_000_000));
    let old = one.epoch.clone();
    let new = bench.archive.begin_epoch(2, Beginning::Continues { after: old.clone() });
    bench.archive.segment(&noise(2, 2_000_000));
    bench.archive.segment(&noise(3, 300_000));
    bench.store();
    ok(bench.place.repository().reclaim(&Silent));
    let plan = LogsPlan {
        sources: vec![SourcePlan {
            source: bench.archive.source.clone(),
            because: "a test says so".into(),
            epochs: vec![old],
            from: Some((new, 2)),
            segments: 2,
        }],
    };
    bench.store_without(&plan);
    let freed = ok(bench.place.repository().reclaim(&Silent));
    assert!(freed.0 > 3_900_000, "{freed}");
    assert_eq!(bench.fetched(&[2]), [noise(3, 300_000)]);
    let read = bench.place.repository().log_catalogue().unwrap().unwrap().catalogue;
    let epochs = &read.sources[0].epochs;
    assert_eq!((epochs.len(), epochs[0].segments[0].number, epochs[0].damaged.len()), (1, 2, 0));
    bench.assert_whole();
}

#[test]
fn a_segment_that_was_damaged_here_is_not_stored_but_told() {
    let mut bench = Bench::new();
    let one = bench.archive.segment(&noise(1, 10_000));
    bench.archive.segment(&noise(2, 10_000));
    let dir = bench.archive.spool.epoch_dir(&bench.archive.source, &one.epoch);
    fs::write(dir.join("00000001.seg"), noise(7, 10_000)).unwrap();
    let catalogue = bench.archive.catalogue();
    let outcome =
        bench.place.repository().store_logs(&owner(), &catalogue, &LogsPlan::default(), &Silent).unwrap();
    assert_eq!(outcome.problems.len(), 1);
    assert!(outcome.problems[0].to_string().contains("SHA-256"), "{}", outcome.problems[0]);
    let read = bench.place.repository().log_catalogue().unwrap().unwrap().catalogue;
    let epoch = &read.sources[0].epochs[0];
    assert_eq!(epoch.segments.iter().map(|segment| segment.number).collect::<Vec<_>>(), [2]);
}

#[test]
fn several_that_store_at_once_lose_nothing_of_each_other() {
    let mut bench = Bench::new();
    bench.archive.segment(b"first");
    bench.store();
    let spools: Vec<Archive> = (0..3)
        .map(|nth| {
            let mut archive = Archive::new(bench.place.dir.path().join(format!("spool {nth}")));
            archive.begin_epoch(10 + nth, Beginning::First);
            archive.segment(&noise(u64::from(nth), 10_000));
            archive
        })
        .collect();
    std::thread::scope(|scope| {
        for archive in &spools {
            let mut repository = bench.place.repository();
            let catalogue = archive.catalogue();
            scope.spawn(move || {
                repository.store_logs(&owner(), &catalogue, &LogsPlan::default(), &Silent).unwrap()
            });
        }
    });
    let read = bench.place.repository().log_catalogue().unwrap().unwrap().catalogue;
    assert_eq!(read.sources[0].epochs.len(), 4);
    assert_eq!(bench.snapshots(), 1);
    bench.assert_whole();
}

/// Thousands of minutes leave one snapshot, and cost no more each time.
#[test]
fn many_minutes_leave_one_snapshot() {
    let rounds: u64 = std::env::var("STILLPOINT_LOG_ROUNDS").map_or(15, |text| text.parse().unwrap());
    let mut bench = Bench::new();
    bench.archive.begin_segment();
    let mut repository = bench.place.repository();
    for round in 0..rounds {
        bench.archive.append(&noise(round, 2_000));
        if round % 5 == 4 {
            bench.archive.close();
            bench.archive.begin_segment();
        }
        let outcome = repository
            .store_logs(&owner(), &bench.archive.catalogue(), &LogsPlan::default(), &Silent)
            .unwrap();
        assert!(outcome.is_new && outcome.problems.is_empty());
        assert!(bench.snapshots() <= 2);
    }
    assert_eq!(bench.snapshots(), 1);
    let catalogue = bench.archive.spool.catalogue(&|_| Box::new(Bytes)).unwrap();
    let read = repository.log_catalogue().unwrap().unwrap().catalogue;
    assert_eq!(read.sources[0].epochs, catalogue.sources[0].epochs);
    ok(repository.reclaim(&Silent));
    bench.assert_whole();
}

#[test]
fn a_check_says_which_segments_are_lost() {
    let mut bench = Bench::new();
    bench.archive.segment(&noise(1, 600_000));
    let before = bench.place.files("data");
    bench.archive.segment(&noise(2, 600_000));
    bench.store();
    let pack = bench
        .place
        .files("data")
        .into_iter()
        .find(|path| !before.contains(path) && fs::metadata(path).unwrap().len() > 500_000);
    let pack = pack.unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[1000] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let report = bench.place.repository().check(Depth::ReadData, &Silent).unwrap();
    assert!(!report.is_good());
    let said: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    // Which of both lies in that pack is chance.
    let names =
        |what: &String| (1..=2).any(|n| what.contains(&format!("segment {n} of the log of mariadb:")));
    assert!(said.iter().any(names), "{said:?}");
    assert!(said.iter().any(|what| what.contains("the log archive")), "{said:?}");
    assert_eq!(report.backups, 0);
}

/// A minute costs what came in it, however much is there already.
#[test]
fn a_minute_writes_little_beside_many_segments() {
    let segments: u64 = std::env::var("STILLPOINT_LOG_SEGMENTS").map_or(120, |text| text.parse().unwrap());
    let mut bench = Bench::new();
    for nth in 0..segments {
        bench.archive.segment(&noise(nth, 1_000));
    }
    bench.archive.begin_segment();
    let mut repository = bench.place.repository();
    for nth in 0..3 {
        bench.archive.append(&noise(segments + nth, 1_000));
        let catalogue = bench.archive.catalogue();
        let outcome = repository.store_logs(&owner(), &catalogue, &LogsPlan::default(), &Silent).unwrap();
        assert!(nth == 0 || outcome.bytes_added.0 < 50_000, "{}", outcome.bytes_added);
    }
    assert_eq!(bench.fetched(&[1, segments])[1], noise(segments - 1, 1_000));
}
