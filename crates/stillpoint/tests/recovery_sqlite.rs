//! Moments of an SQLite database brought back by the built program from a log archive that the test writes byte for byte as
//! `docs/format/logs.md` says, without the program's own writer of records.

mod common;

use std::{fs, path::Path};

use common::{Site, below, make_guestbook};
use jiff::{SignedDuration, Timestamp};
use model::{
    id::{EpochId, SourceId},
    logs::{
        Beginning, EpochRecord, LOGS_VERSION, LogKind, LogPlace, LogStatus, SegmentHead, Span, WalPosition,
        WholePart,
    },
};
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use vault::logs::{Added, Spool, Tail, Writer};

/// How many commits follow the base, two in each segment.
const COMMITS: u64 = 6;

struct NoTail;

impl Tail for NoTail {
    fn whole(&self, _: &SegmentHead, _: &mut dyn std::io::Read) -> std::io::Result<WholePart> {
        Err(std::io::Error::other("every segment is closed"))
    }
}

fn place(frame: u64) -> WalPosition {
    WalPosition { generation: 0, salts: (7, 8), frame, checksum: (0, 0) }
}

/// A record that holds all pages of a database file.
fn record(database: &[u8], captured: Timestamp, frame: u64) -> Vec<u8> {
    let page = match u16::from_be_bytes([database[16], database[17]]) {
        1 => 65_536,
        size => usize::from(size),
    };
    let pages = u32::try_from(database.len() / page).unwrap();
    let mut bytes = b"COMT".to_vec();
    bytes.extend(u64::try_from(captured.as_nanosecond()).unwrap().to_be_bytes());
    bytes.extend(0u64.to_be_bytes());
    bytes.extend([7u32, 8].iter().flat_map(|salt| salt.to_be_bytes()));
    bytes.extend(frame.to_be_bytes());
    bytes.extend([0u32, 0].iter().flat_map(|checksum| checksum.to_be_bytes()));
    bytes.extend([u32::try_from(page).unwrap(), pages, pages].iter().flat_map(|number| number.to_be_bytes()));
    for (number, content) in database.chunks(page).enumerate() {
        bytes.extend((u32::try_from(number).unwrap() + 1).to_be_bytes());
        bytes.extend(content);
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

fn begin(writer: &mut Writer, number: u64, at: Timestamp) {
    let head = SegmentHead {
        version: LOGS_VERSION,
        from: LogPlace::SqliteWal(place(number)),
        lead: 8,
        gtid_state: None,
        begun_at: at,
    };
    writer.begin_segment(head, b"STPWAL1\n").unwrap();
}

/// The database as a whole file after one more row.
fn with_row(database: &Path, text: &str) -> Vec<u8> {
    let open = Connection::open(database).unwrap();
    open.execute("INSERT INTO noted (text) VALUES (?1)", [text]).unwrap();
    open.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(open);
    fs::read(database).unwrap()
}

fn rows(database: &Path) -> Vec<String> {
    let open = Connection::open(database).unwrap();
    let mut statement = open.prepare("SELECT text FROM noted ORDER BY rowid").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_database_comes_back_as_of_every_commit_with_the_files_of_the_backup_before() {
    let site = Site::new();
    make_guestbook(&site.database());
    let open = Connection::open(site.database()).unwrap();
    open.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE noted (text TEXT)").unwrap();
    drop(open);
    let base = with_row(&site.database(), "base");
    site.init(&site.sources());
    fs::write(site.uploads().join("file"), "as in the backup").unwrap();
    site.run(["backup"]).expect_status(0);

    let source = SourceId::new("sqlite", site.database().display());
    let spool = Spool::open(&site.repository().with_file_name("logs"));
    let mut writer = spool.writer(&source, LogKind::SqliteWal, Box::new(NoTail)).unwrap();
    let begun = Timestamp::now();
    let epoch = EpochRecord {
        version: LOGS_VERSION,
        epoch: EpochId::at(begun, [1, 2, 3]),
        source: source.clone(),
        kind: LogKind::SqliteWal,
        begun_at: begun,
        beginning: Beginning::First,
        from: LogPlace::SqliteWal(place(0)),
        server: None,
        gtid_state: None,
        has_base: true,
    };
    writer.begin_epoch_with(epoch.clone(), |dir| fs::write(dir.join("base.db"), &base)).unwrap();
    let time = |commit: u64| begun + SignedDuration::from_secs(10 * i64::try_from(commit).unwrap());
    for commit in 1..=COMMITS {
        if commit % 2 == 1 {
            begin(&mut writer, commit - 1, time(commit));
        }
        let database = with_row(&site.database(), &format!("commit {commit}"));
        let to = LogPlace::SqliteWal(place(commit));
        let added = Added::Whole {
            to,
            transactions: 1,
            commits: Some(Span { first: time(commit), last: time(commit) }),
        };
        writer.append(&record(&database, time(commit), commit), &added).unwrap();
        writer.sync(None).unwrap();
    }
    writer.close_segment().unwrap();
    let status = LogStatus {
        version: LOGS_VERSION,
        source,
        epoch: epoch.epoch.clone(),
        place: LogPlace::SqliteWal(place(COMMITS)),
        caught_up_at: Some(time(COMMITS + 1)),
        at: Timestamp::now(),
        started_at: begun,
        lag_s: 0.0,
        max_lag_s: 0.0,
        acknowledging: false,
        trouble: None,
    };
    writer.status(&status).unwrap();
    drop(writer);
    site.run(["coverage"]).expect_status(0);

    for commit in 1..=COMMITS + 1 {
        let to = site.root().join(format!("back-{commit}"));
        let moment = time(commit).to_string();
        let ran = site.run(["restore", "guestbook", "--at", &moment, "--to", to.to_str().unwrap()]);
        ran.expect_status(0).expect_text("files come from backup");
        let expected: Vec<String> = std::iter::once("base".to_owned())
            .chain((1..commit).map(|one| format!("commit {one}")))
            .collect();
        assert_eq!(rows(&below(&to, &site.database())), expected, "{moment}");
        assert_eq!(fs::read_to_string(below(&to, &site.uploads()).join("file")).unwrap(), "as in the backup");
    }

    // In place, on what is beside.
    fs::write(site.uploads().join("file"), "spoilt").unwrap();
    let moment = time(3).to_string();
    site.run(["restore", "guestbook", "--at", &moment, "--in-place", "--yes"]).expect_status(0);
    assert_eq!(rows(&site.database()), ["base", "commit 1", "commit 2"]);
    assert_eq!(fs::read_to_string(site.uploads().join("file")).unwrap(), "as in the backup");
    assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());

    // Behind the end of the archive nothing is known.
    let late = (time(COMMITS + 1) + SignedDuration::from_secs(1)).to_string();
    let to = site.root().join("never");
    let refused = site.run(["restore", "guestbook", "--at", &late, "--to", to.to_str().unwrap()]);
    refused.expect_status(1).expect_text("does not reach so far");
    // A segment that is gone is a hole.
    let segment = spool
        .epoch_dir(&SourceId::new("sqlite", site.database().display()), &epoch.epoch)
        .join("00000002.seg");
    fs::remove_file(segment).unwrap();
    site.run(["coverage"]).expect_status(1).expect_text("is missing");
    let moment = time(6).to_string();
    let refused = site.run(["restore", "guestbook", "--at", &moment, "--to", to.to_str().unwrap()]);
    refused.expect_status(1).expect_text("segment 2");
    assert!(!to.exists());
}
