//! Moments of an SQLite database brought back by the built program from a log archive that the test writes byte for byte as
//! `docs/format/logs.md` says, without the program's own writer of records.

mod common;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use common::{Site, below, log, make_guestbook};
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
use vault::logs::{Added, Tail, Writer};

/// When the commits that follow the base were captured, in seconds after it, two in each segment: the clock was set back before
/// the fifth.
const CAPTURED: [i64; 6] = [10, 20, 30, 40, 25, 60];
/// The archive was at the end of the log then.
const END: i64 = 70;

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
    let spool = log::spool(&site);
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
    let at = |seconds: i64| begun + SignedDuration::from_secs(seconds);
    for (commit, captured) in (1u64..).zip(CAPTURED.map(at)) {
        if commit % 2 == 1 {
            begin(&mut writer, commit - 1, captured);
        }
        let database = with_row(&site.database(), &format!("commit {commit}"));
        let to = LogPlace::SqliteWal(place(commit));
        let added = Added::Whole { to, transactions: 1, commits: Some(Span::at(captured)) };
        writer.append(&record(&database, captured, commit), &added).unwrap();
        writer.sync(None).unwrap();
    }
    writer.close_segment().unwrap();
    let status = LogStatus {
        version: LOGS_VERSION,
        source: source.clone(),
        epoch: epoch.epoch.clone(),
        place: LogPlace::SqliteWal(place(CAPTURED.len() as u64)),
        caught_up_at: Some(at(END)),
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

    // All before the first, in the order of the log, that was captured then or later.
    let expected = |moment: i64| -> Vec<String> {
        let before = CAPTURED.iter().position(|one| *one >= moment).unwrap_or(CAPTURED.len());
        std::iter::once("base".to_owned()).chain((1..=before).map(|n| format!("commit {n}"))).collect()
    };
    let restored = |moment: i64| {
        let to = site.root().join(format!("back-{moment}"));
        let time = at(moment).to_string();
        let ran = site.run(["restore", "guestbook", "--at", &time, "--to", to.to_str().unwrap()]);
        ran.expect_status(0).expect_text("files come from backup");
        assert_eq!(rows(&below(&to, &site.database())), expected(moment), "{moment}");
        assert_eq!(fs::read_to_string(below(&to, &site.uploads()).join("file")).unwrap(), "as in the backup");
    };
    assert_eq!((expected(30).len(), expected(41).len(), expected(END).len()), (3, 6, 7));
    restored(41);

    // Behind the end of the archive nothing is known.
    let never = site.root().join("never");
    let refused = |moment: i64, why: &str| {
        let time = at(moment).to_string();
        let ran = site.run(["restore", "guestbook", "--at", &time, "--to", never.to_str().unwrap()]);
        ran.expect_status(1).expect_text(why);
        assert!(!never.exists());
    };
    refused(END + 1, "does not reach so far");
    // A segment that is gone is a hole.
    let segment = spool.epoch_dir(&source, &epoch.epoch).join("00000002.seg");
    let kept = site.root().join("kept");
    fs::rename(&segment, &kept).unwrap();
    site.run(["coverage"]).expect_status(1).expect_text("is missing");
    refused(60, "segment 2");
    fs::rename(&kept, &segment).unwrap();

    // A backup stores the archive, base and all: then everything comes from the repository.
    site.run(["backup"]).expect_status(0);
    fs::remove_dir_all(log::logs(&site)).unwrap();
    restored(60);

    // In place, on what is beside.
    fs::write(site.uploads().join("file"), "spoilt").unwrap();
    let moment = at(30).to_string();
    site.run(["restore", "guestbook", "--at", &moment, "--in-place", "--yes"]).expect_status(0);
    assert_eq!(rows(&site.database()), expected(30));
    assert_eq!(fs::read_to_string(site.uploads().join("file")).unwrap(), "as in the backup");
    assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());

    // What cannot be read may have been the archive: no earlier backup takes its place unasked.
    let snapshots = fs::read_dir(site.repository().join("snapshots")).unwrap().map(|entry| entry.unwrap());
    let newest = snapshots.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap()).unwrap().path();
    fs::set_permissions(&newest, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&newest, "damaged").unwrap();
    refused(60, "a snapshot cannot be read");
    site.run(["coverage"]).expect_status(1).expect_text("a snapshot cannot be read");
}
