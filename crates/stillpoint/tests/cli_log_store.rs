//! The command line with a log archive in the spool: it is stored by a backup, listed, pruned, and leaves the spool.

mod common;

use std::{fs, io, path::PathBuf};

use common::{Site, make_guestbook};
use jiff::{SignedDuration, Timestamp};
use model::{
    id::{EpochId, SourceId},
    logs::{Beginning, EpochRecord, LOGS_VERSION, LogKind, LogPlace, SegmentHead, SegmentRecord, WholePart},
    server::BinlogPosition,
};
use vault::logs::{Added, Spool, Tail, Writer};

/// Every byte is whole.
struct Bytes;

impl Tail for Bytes {
    fn whole(&self, head: &SegmentHead, segment: &mut dyn io::Read) -> io::Result<WholePart> {
        let bytes = io::copy(segment, &mut io::sink())?;
        let to = head.from.clone();
        Ok(WholePart { bytes, to, transactions: 1, commits: None, gtid_state: None })
    }
}

struct Archive {
    spool: Spool,
    source: SourceId,
    writer: Writer,
    file: u64,
}

impl Archive {
    fn new(site: &Site) -> Self {
        let spool = Spool::open(&site.repository().with_file_name("logs"));
        let source = SourceId::new("mariadb", "/s");
        let writer = spool.writer(&source, LogKind::Binlog, Box::new(Bytes)).expect("a writer");
        Self { spool, source, writer, file: 0 }
    }

    fn place(&self, offset: u64) -> LogPlace {
        LogPlace::Binlog(BinlogPosition { file: format!("b.{:06}", self.file), offset })
    }

    /// An epoch that was begun so many days ago.
    fn epoch(&mut self, days: i64, beginning: Beginning) -> EpochId {
        let begun_at = Timestamp::now() - SignedDuration::from_hours(24 * days);
        let epoch = EpochId::at(begun_at, [0, 0, 1]);
        let record = EpochRecord {
            version: LOGS_VERSION,
            epoch: epoch.clone(),
            source: self.source.clone(),
            kind: LogKind::Binlog,
            begun_at,
            beginning,
            from: self.place(0),
            server: None,
            gtid_state: None,
            has_base: false,
        };
        self.writer.begin_epoch(record).expect("an epoch");
        epoch
    }

    /// A closed segment that was received so many days ago.
    fn segment(&mut self, days: i64) -> PathBuf {
        self.file += 1;
        let begun_at = Timestamp::now() - SignedDuration::from_hours(24 * days);
        let from = self.place(0);
        let head = SegmentHead { version: LOGS_VERSION, from, lead: 0, gtid_state: None, begun_at };
        self.writer.begin_segment(head, &[]).expect("a segment");
        let bytes = format!("events of file {}", self.file);
        let to = self.place(bytes.len() as u64);
        self.writer
            .append(bytes.as_bytes(), &Added::Whole { to, transactions: 1, commits: None })
            .expect("appended");
        self.writer.sync(None).expect("synced");
        let mut record: SegmentRecord = self.writer.close_segment().expect("closed").expect("a record");
        record.received.last = begun_at;
        let dir = self.spool.epoch_dir(&self.source, &record.epoch);
        let path = dir.join(format!("{:08}.json", record.number));
        fs::write(&path, serde_json::to_vec(&record).expect("a sidecar")).expect("an old sidecar");
        path.with_extension("seg")
    }
}

#[test]
fn a_backup_stores_the_log_archive_and_prune_says_what_of_it_goes() {
    let site = Site::new();
    make_guestbook(&site.database());
    fs::write(site.uploads().join("first"), "first").expect("an upload");
    site.init(&site.sources());
    let mut archive = Archive::new(&site);
    let old = archive.epoch(10, Beginning::First);
    archive.segment(9);
    let new = archive.epoch(5, Beginning::Continues { after: old.clone() });
    let (stored_long_ago, young) = (archive.segment(4), archive.segment(0));

    site.run(["backup"]).expect_status(0);
    assert!(!stored_long_ago.exists() && stored_long_ago.with_extension("stored").exists());
    assert!(young.exists(), "it is younger than the local window");
    let list = site.run(["list", "--json"]).json();
    let application = &list["applications"][0];
    assert_eq!(application["backups"].as_array().expect("backups").len(), 1, "the archive is no backup");
    let log = &application["logs"][0];
    assert_eq!((&log["source"], &log["stored_to"]), (&"mariadb:/s".into(), &"b.000003:16".into()));
    site.run(["list"]).expect_status(0).expect_text("log of mariadb:/s: up to ");

    let says = format!("log of mariadb:/s: kept from epoch {new} on: backup ");
    site.run(["prune", "--dry-run"]).expect_status(0).expect_text(&says).expect_text("1 segment would go");
    assert!(archive.spool.epoch_dir(&archive.source, &old).exists(), "a dry run changes nothing");
    let pruned = site.run(["prune", "--json"]).json();
    let plan = &pruned["applications"][0]["logs"]["sources"][0];
    assert_eq!((&plan["epochs"][0], &plan["segments"]), (&old.as_str().into(), &1.into()));
    assert!(!archive.spool.epoch_dir(&archive.source, &old).exists());
    assert!(archive.spool.epoch_dir(&archive.source, &new).exists());
    site.run(["prune"]).expect_status(0).expect_text("0 segments removed");
    site.run(["check", "--read-data"]).expect_status(0).expect_text("1 backup in");

    // The next backup stores nothing again that retention has dropped.
    fs::write(site.uploads().join("second"), "second").expect("an upload");
    site.run(["backup"]).expect_status(0);
    site.run(["prune", "--dry-run"]).expect_status(0).expect_text("0 segments would go");
}
