//! The oracle: a load whose every transaction vouches for all before it, and an archive in plain files, in processes of
//! their own so that they can be killed.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{BufReader, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use engines::sqlite::wal::{Archive, Reached, SEGMENT_LEAD, follow, replay, whole_of};
use jiff::Timestamp;
use model::{
    logs::{HoleCause, LOGS_VERSION, LogPlace, SegmentHead, WalPosition},
    port::{Failure, FailureKind},
};
use os::command::Helper;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

/// Plays one of the roles of this test, if the arguments name one.
pub fn role() -> Option<ExitCode> {
    let args: Vec<String> = env::args().skip(1).collect();
    let path = |n: usize| PathBuf::from(&args[n]);
    match args.first()?.as_str() {
        "__load" => {
            load(&path(1), &path(2), args[3].parse().expect("a seed"), args[4].parse().expect("a number"))
        }
        "__admin" => admin(&path(1), &path(2), args[3].parse().expect("a seed")),
        "__archive" => archive(&path(1), &path(2)),
        "__tear" => tear(&path(1)),
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

/// A process that is killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn start(args: &[&str], paths: &[&Path], more: &[String]) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(args).args(paths).args(more).stdin(Stdio::null());
        Self(command.spawn().expect("a process"))
    }

    pub fn load(db: &Path, log: &Path, seed: u64, autocheckpoint: u32) -> Self {
        Self::start(&["__load"], &[db, log], &[seed.to_string(), autocheckpoint.to_string()])
    }

    pub fn admin(db: &Path, log: &Path, seed: u64) -> Self {
        Self::start(&["__admin"], &[db, log], &[seed.to_string()])
    }

    pub fn archive(db: &Path, dir: &Path) -> Self {
        Self::start(&["__archive"], &[db, dir], &[])
    }

    /// Leaves the index torn; returns when that is done.
    pub fn tear(index: &Path) {
        let mut tearing = Self::start(&["__tear"], &[index], &[]);
        assert!(tearing.0.wait().expect("waited").success(), "the index cannot be torn");
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("waited").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// The load.

pub fn make(path: &Path) -> Connection {
    let db = open(path);
    let mode: String = db.query_row("PRAGMA journal_mode=wal", [], |r| r.get(0)).expect("a mode");
    assert_eq!(mode, "wal");
    db.execute_batch(
        "CREATE TABLE oracle(id INTEGER PRIMARY KEY, sum INTEGER NOT NULL);
         CREATE TABLE items(id INTEGER PRIMARY KEY, body BLOB); CREATE INDEX by_body ON items(body);
         CREATE TABLE counter(n INTEGER NOT NULL);
         INSERT INTO oracle VALUES (0, 7); INSERT INTO counter VALUES (0);",
    )
    .expect("an oracle");
    db
}

pub fn open(path: &Path) -> Connection {
    let db = Connection::open(path).expect("the database opens");
    db.busy_timeout(Duration::from_secs(60)).expect("a timeout");
    db
}

fn next_sum(sum: i64, id: i64) -> i64 {
    (sum * 31 + id) % 1_000_000_007
}

/// One transaction; its number.
pub fn post(db: &mut Connection, weight: i64, items: u32) -> i64 {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).expect("the write lock");
    let (id, sum): (i64, i64) = tx
        .query_row("SELECT id, sum FROM oracle ORDER BY id DESC LIMIT 1", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .expect("a last row");
    tx.execute("INSERT INTO oracle VALUES (?1, ?2)", (id + 1, next_sum(sum, id + 1))).expect("a row");
    for _ in 0..items {
        tx.execute("INSERT INTO items(body) VALUES (randomblob(?1))", [weight]).expect("an item");
    }
    let many: i64 = tx.query_row("SELECT n FROM counter", [], |r| r.get(0)).expect("a count");
    let gone = if many > 3000 {
        tx.execute("DELETE FROM items WHERE id IN (SELECT id FROM items LIMIT 1500)", []).expect("gone")
    } else {
        0
    };
    let more = i64::from(items) - i64::try_from(gone).expect("few");
    tx.execute("UPDATE counter SET n = n + ?1", [more]).expect("counted");
    tx.commit().expect("committed");
    id + 1
}

fn note(log: &mut File, what: &str) {
    log.write_all(format!("{what}\n").as_bytes()).expect("noted");
}

fn notes(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("notes")
}

fn load(path: &Path, log: &Path, seed: u64, autocheckpoint: u32) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut log = notes(log);
    loop {
        // Sometimes it is the last one to close.
        let mut db = open(path);
        db.execute_batch(&format!(
            "PRAGMA wal_autocheckpoint={autocheckpoint}; PRAGMA cache_size=50; PRAGMA synchronous=NORMAL"
        ))
        .expect("set");
        for _ in 0..random.random_range(5..300) {
            let large = random.random_ratio(1, 60);
            let (weight, items) = if large { (3000, random.random_range(100..400)) } else { (300, 3) };
            let before = Timestamp::now().as_nanosecond();
            let id = post(&mut db, weight, items);
            let after = Timestamp::now().as_nanosecond();
            note(&mut log, &format!("commit {id} {before} {after}"));
            thread::sleep(Duration::from_micros(random.random_range(0..4000)));
        }
    }
}

/// What people and cron jobs do to a database.
fn admin(path: &Path, log: &Path, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut log = notes(log);
    loop {
        let db = open(path);
        thread::sleep(Duration::from_millis(random.random_range(100..500)));
        let what = ["TRUNCATE", "RESTART", "FULL", "VACUUM"][random.random_range(0..4)];
        if what == "VACUUM" {
            db.execute_batch("VACUUM").expect("vacuumed");
        } else {
            let busy: i64 = db
                .query_row(&format!("PRAGMA wal_checkpoint({what})"), [], |r| r.get(0))
                .expect("a checkpoint");
            note(&mut log, &format!("checkpoint {what} {busy}"));
        }
    }
}

/// Leaves the index as a writer does that stops between its two copies of the header: the second is the newer one. Whoever
/// commits next makes it whole. In a process of its own, since closing `-shm` drops locks.
fn tear(index: &Path) {
    // The counter of commits in the second copy.
    const CHANGE: u64 = 48 + 8;
    let file = File::options().read(true).write(true).open(index).expect("an index");
    let mut change = [0; 4];
    file.read_exact_at(&mut change, CHANGE).expect("read");
    let next = u32::from_ne_bytes(change).wrapping_add(1);
    file.write_all_at(&next.to_ne_bytes(), CHANGE).expect("torn");
}

/// What the writers noted.
#[derive(Debug, Default)]
pub struct Noted {
    /// Number, moment before and after, by number.
    pub commits: Vec<(i64, i128, i128)>,
    /// Checkpoints that got through, and those that did not.
    pub checkpoints: (usize, usize),
}

pub fn noted(logs: &[PathBuf]) -> Noted {
    let mut noted = Noted::default();
    for line in logs.iter().flat_map(|log| {
        let text = fs::read_to_string(log).unwrap_or_default();
        // A writer may have been killed in the middle of a line.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole].lines().map(str::to_owned).collect::<Vec<_>>()
    }) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["commit", id, before, after] => noted.commits.push((
                id.parse().expect("a number"),
                before.parse().expect("a time"),
                after.parse().expect("a time"),
            )),
            [_, _, "0"] => noted.checkpoints.0 += 1,
            _ => noted.checkpoints.1 += 1,
        }
    }
    noted.commits.sort_unstable();
    noted
}

/// Checks a restored oracle from its first row to its last; the last.
pub fn checked(path: &Path) -> i64 {
    let db = Connection::open(path).expect("opens");
    let whole: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).expect("a check");
    assert_eq!(whole, "ok");
    let mut rows = db.prepare("SELECT id, sum FROM oracle ORDER BY id").expect("rows");
    let mut expected = (0, 7);
    for row in rows.query_map([], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?))).expect("rows") {
        assert_eq!(row.expect("a row"), expected, "the chain is broken");
        expected = (expected.0 + 1, next_sum(expected.1, expected.0 + 1));
    }
    let (items, counted): (i64, i64) = db
        .query_row("SELECT (SELECT count(*) FROM items), (SELECT n FROM counter)", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .expect("counted");
    assert_eq!(items, counted, "a transaction is torn");
    expected.0 - 1
}

pub fn last(path: &Path) -> i64 {
    open(path)
        .query_row("SELECT max(id) FROM oracle", [], |r| r.get(0))
        .optional()
        .expect("asked")
        .unwrap_or(0)
}

// The archive.

fn archive(path: &Path, dir: &Path) {
    let mut files = Files::open(dir);
    loop {
        let followed = follow(&helper(), path, &mut files, &|| false);
        let failure = followed.expect_err("it is never asked to stop");
        note(&mut notes(&dir.join("failures")), &failure.in_full());
        thread::sleep(Duration::from_millis(100));
        files = Files::open(dir);
    }
}

pub fn helper() -> Helper {
    Helper { program: env::current_exe().expect("this program"), args: vec!["__helper".into()] }
}

/// Epochs as directories with a base and one segment.
pub struct Files {
    dir: PathBuf,
    epoch: Option<(File, u64, WalPosition)>,
    buffer: Vec<u8>,
    pending: Option<WalPosition>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::new(FailureKind::Other, "the test's archive failed", "").because(error)
}

pub fn epochs(dir: &Path) -> Vec<PathBuf> {
    (1..).map(|n| dir.join(n.to_string())).take_while(|epoch| epoch.join("from.json").exists()).collect()
}

pub fn failures(dir: &Path) -> String {
    fs::read_to_string(dir.join("failures")).unwrap_or_default()
}

pub fn hole(epoch: &Path) -> String {
    fs::read_to_string(epoch.join("hole")).expect("written")
}

fn head(epoch: &Path) -> SegmentHead {
    let from: WalPosition =
        serde_json::from_slice(&fs::read(epoch.join("from.json")).expect("read")).expect("a place");
    SegmentHead {
        version: LOGS_VERSION,
        from: LogPlace::SqliteWal(from),
        lead: SEGMENT_LEAD.len() as u64,
        gtid_state: None,
        begun_at: Timestamp::UNIX_EPOCH,
    }
}

impl Files {
    pub fn open(dir: &Path) -> Self {
        let epoch = epochs(dir).pop().map(|epoch| {
            let segment = epoch.join("seg");
            let reader = File::open(&segment).expect("a segment");
            let whole = whole_of(&head(&epoch), &mut BufReader::new(reader)).expect("read");
            let file = File::options().write(true).open(&segment).expect("a segment");
            file.set_len(whole.bytes).expect("cut");
            let LogPlace::SqliteWal(place) = whole.to else { panic!("a place") };
            (file, whole.bytes, place)
        });
        Self { dir: dir.to_owned(), epoch, buffer: Vec::new(), pending: None }
    }
}

impl Archive for Files {
    fn reached(&self) -> Option<WalPosition> {
        self.epoch.as_ref().map(|epoch| epoch.2)
    }

    fn begin(
        &mut self,
        at: WalPosition,
        _: Timestamp,
        hole: Option<(HoleCause, String)>,
        base: &mut dyn FnMut(&Path) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let epoch = self.dir.join((epochs(&self.dir).len() + 1).to_string());
        let _ = fs::remove_dir_all(&epoch);
        fs::create_dir_all(&epoch).map_err(failed)?;
        base(&epoch.join("base.db"))?;
        let hole = hole.map(|(cause, detail)| format!("{cause}: {detail}")).unwrap_or_default();
        fs::write(epoch.join("hole"), hole).map_err(failed)?;
        fs::write(epoch.join("seg"), SEGMENT_LEAD).map_err(failed)?;
        let file = File::options().write(true).open(epoch.join("seg")).map_err(failed)?;
        fs::write(epoch.join("from.tmp"), serde_json::to_vec(&at).map_err(failed)?).map_err(failed)?;
        fs::rename(epoch.join("from.tmp"), epoch.join("from.json")).map_err(failed)?;
        self.epoch = Some((file, SEGMENT_LEAD.len() as u64, at));
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], ends: Option<(WalPosition, Timestamp)>) -> Result<(), Failure> {
        self.buffer.extend_from_slice(bytes);
        if let Some((place, _)) = ends {
            self.pending = Some(place);
        }
        Ok(())
    }

    fn sync(&mut self, _: Timestamp) -> Result<(), Failure> {
        let (file, end, place) = self.epoch.as_mut().expect("an epoch");
        file.write_all_at(&self.buffer, *end).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        *end += self.buffer.len() as u64;
        self.buffer.clear();
        *place = self.pending.take().expect("a transaction");
        Ok(())
    }

    fn idle(&mut self, at: Timestamp) -> Result<(), Failure> {
        fs::write(self.dir.join("idle"), at.as_nanosecond().to_string()).map_err(failed)
    }

    fn wants_new_base(&self) -> bool {
        // The test's way to ask.
        fs::remove_file(self.dir.join("new-base")).is_ok()
    }
}

/// Waits until the archive says that it has everything that was committed by now.
pub fn caught_up(dir: &Path) {
    let now = Timestamp::now().as_nanosecond();
    let asked = Instant::now();
    loop {
        let at = fs::read_to_string(dir.join("idle")).unwrap_or_default();
        if at.parse::<i128>().is_ok_and(|at| at > now) {
            return;
        }
        assert!(
            asked.elapsed() < Duration::from_secs(60),
            "the archive does not catch up: {}",
            failures(dir)
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// Replays an epoch to a moment, and checks the result; how far it is, and its last transaction.
pub fn at(epoch: &Path, until: Timestamp) -> (Reached, i64) {
    let dir = tempfile::tempdir().expect("a directory");
    let to = dir.path().join("restored.db");
    let reached = replay(&epoch.join("base.db"), &[epoch.join("seg")], until, &to)
        .unwrap_or_else(|f| panic!("{}", f.in_full()));
    (reached, checked(&to))
}

/// The moments at which something was captured in an epoch, first and last.
pub fn captured(epoch: &Path) -> Option<(Timestamp, Timestamp)> {
    let reader = File::open(epoch.join("seg")).expect("a segment");
    let whole = whole_of(&head(epoch), &mut BufReader::new(reader)).expect("read");
    whole.commits.map(|span| (span.first, span.last))
}
