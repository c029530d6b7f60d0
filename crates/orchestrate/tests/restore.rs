//! Restores on a machine in memory, with every call failing and the run dying at every call: what was there,
//! or what was restored, never a mix; and the application runs again on one of the two.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use jiff::Timestamp;
use model::{
    cut::Stalls,
    entry::{Kind, Meta, tree_order},
    id::{AppName, BackupId, CutId, SourceId},
    plan::HoldClass,
    port::{Failure, FailureKind, Frozen, Hold, Journal, Silent},
    port_restore::{Contents, Lies, ServerTarget, Sink, Tap},
    problem::Problem,
    record::{BackupRecord, PinNote, RECORD_VERSION, StoredBackup},
    restore::{Listed, Listing, Opened, Request, RestoreReport, ServerAct, ServerPart, Target},
    server::ServerForm,
    size::Bytes,
    time::{Deadline, Millis},
    verdict::{Stillness, Verdict},
};
use orchestrate::restore::{Job, plan, run, run_with};
use testkit::{
    fakes::{
        restore::{
            Break, MemoryBackup, Script, ScriptedJournal,
            site::{FakeHook, FakeSite, Live},
        },
        world::World,
    },
    faults::Injected,
};

const DATABASE: &str = "/srv/app/db.sqlite3";
const IN_PLACE: Target = Target::InPlace { keep_old: false };

fn listed(path: &str, kind: Kind, size: u64, inode: u64, links: u64) -> Listed {
    let time = Timestamp::UNIX_EPOCH;
    let meta = Meta {
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: Bytes(size),
        mtime: time,
        atime: time,
        ctime: time,
        inode,
        device: 1,
        links,
        xattrs: vec![],
    };
    Listed { path: path.into(), kind, meta }
}

/// What the backup holds: a tree with a hard link and a symbolic link, and a database beside it.
fn backup(script: &Arc<Script>) -> MemoryBackup {
    let long: Vec<u8> = (0..60_000_u32).flat_map(u32::to_le_bytes).collect();
    let files: [(&str, &[u8], u64); 7] = [
        ("/srv/app/var/a", b"restored", 1),
        ("/srv/app/var/b", b"linked", 7),
        ("/srv/app/var/sub/also-b", b"linked", 7),
        ("/srv/app/var/sub/long", &long, 2),
        (DATABASE, b"restored database", 3),
        ("/srv/app/db.sqlite3-wal", b"", 4),
        ("/srv/app/db.sqlite3-journal", b"", 5),
    ];
    let dirs = ["/srv", "/srv/app", "/srv/app/var", "/srv/app/var/sub"];
    let mut entries: Vec<Listed> = dirs.iter().map(|d| listed(d, Kind::Dir, 0, 0, 1)).collect();
    entries.push(listed("/srv/app/var/link", Kind::Symlink("a".into()), 0, 6, 1));
    let linked = |inode| if inode == 7 { 2 } else { 1 };
    entries.extend(files.iter().map(|(p, b, i)| listed(p, Kind::File, b.len() as u64, *i, linked(*i))));
    entries.sort_by(|a, b| tree_order(&a.path, &b.path));
    MemoryBackup {
        listing: Listing::new(entries, vec![]).unwrap(),
        bytes: files.iter().map(|(path, bytes, _)| (PathBuf::from(path), bytes.to_vec())).collect(),
        script: Arc::clone(script),
        ..MemoryBackup::default()
    }
}

/// The machine as it is before: other files, and leftovers beside the database.
fn machine(script: &Arc<Script>) -> FakeSite {
    let site = FakeSite::new(script);
    for (path, bytes) in [
        ("/srv/app/var/a", "old"),
        ("/srv/app/var/cache/x", "not in the backup"),
        ("/srv/app/other", "no source"),
        (DATABASE, "old database"),
        ("/srv/app/db.sqlite3-wal", "leftover"),
        ("/srv/app/db.sqlite3-shm", "leftover"),
    ] {
        site.put(Path::new(path), Kind::File, bytes.as_bytes());
    }
    site
}

fn request(target: Target, has_hooks: bool) -> Request {
    let pins = [("directory", "/srv/app/var"), ("sqlite", DATABASE)].map(|(kind, path)| PinNote {
        source: SourceId::new(kind, path),
        method: "test".into(),
        path: path.into(),
    });
    let record = BackupRecord {
        version: RECORD_VERSION,
        cut: CutId::at(Timestamp::UNIX_EPOCH, [1, 2, 3]),
        application: AppName::new("hydro").unwrap(),
        verdict: Verdict::Consistent,
        looks_wrong: None,
        label: None,
        stalls: Stalls { total: Millis(1.0), downtime: None, per_hold: vec![] },
        files: 0,
        bytes: Bytes(0),
        bytes_added: Bytes(0),
        duration_s: 0.0,
        problems: vec![],
        problem_count: 0,
        pins: pins.to_vec(),
    };
    Request {
        application: AppName::new("hydro").unwrap(),
        backup: StoredBackup {
            id: BackupId::new("ab".repeat(32)).unwrap(),
            time: Timestamp::UNIX_EPOCH,
            received: Timestamp::UNIX_EPOCH,
            record: Some(record),
            damaged: None,
            accepted: false,
        },
        target,
        keep_out: vec![],
        read_back: true,
        trust_copies: false,
        has_hooks,
        accept_incomplete: false,
        servers: vec![],
        only: vec![],
    }
}

/// A machine, a backup, and what came of restoring it.
struct Ran {
    script: Arc<Script>,
    site: FakeSite,
    journal: Arc<ScriptedJournal>,
    /// Nothing if the run died.
    result: Option<Result<RestoreReport, Failure>>,
}

fn restore(request: &Request, site: FakeSite, contents: &dyn Contents, script: Arc<Script>) -> Ran {
    let journal = Arc::new(ScriptedJournal { script: Arc::clone(&script), ..ScriptedJournal::default() });
    let clock = World::new(1);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let plan = plan(request, contents, &site)?;
        let job = Job {
            contents,
            site: &site,
            journal: journal.clone() as Arc<dyn Journal>,
            clock: &clock,
            progress: &Silent,
            threads: 1,
        };
        let hook = FakeHook::new(&site, journal.clone());
        run(&plan, &job, request.has_hooks.then(|| Box::new(hook) as Box<dyn Hold>))
    }));
    let result = result.map_or_else(
        |panic| {
            assert!(panic.is::<Injected>(), "a panic that nobody ordered");
            None
        },
        Some,
    );
    Ran { script, site, journal, result }
}

fn simply(request: &Request, script: Arc<Script>) -> Ran {
    restore(request, machine(&script), &backup(&script), script)
}

impl Ran {
    /// As `thaw` or the next run does, newest first.
    fn undo_what_is_left(&self) {
        self.script.heal();
        for (ticket, undo) in self.journal.inner.open().into_iter().rev() {
            self.site.undo(&undo).unwrap();
            self.journal.inner.done(ticket);
        }
    }
}

/// Before and after a restore that nothing happens to.
fn old_and_new() -> (Live, Live) {
    let script = Arc::default();
    let old = machine(&script).live();
    let new = simply(&request(IN_PLACE, false), script).site.live();
    assert_ne!(old, new);
    (old, new)
}

#[test]
fn in_place_everything_is_as_it_was_and_the_application_is_stopped_for_the_swap_only() {
    let ran = simply(&request(IN_PLACE, true), Arc::default());
    let report = ran.result.as_ref().unwrap().as_ref().unwrap();
    assert!(report.is_complete() && report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.files, 7);
    assert_eq!(ran.journal.inner.open(), []);
    assert!(ran.site.staged().is_empty());
    let live = ran.site.live();
    let bytes = |path: &str| live.get(Path::new(path)).map(|t| t.bytes.as_slice());
    assert_eq!(bytes("/srv/app/var/a"), Some(b"restored".as_slice()));
    assert_eq!(bytes("/srv/app/var/sub/also-b"), Some(b"linked".as_slice()));
    assert_eq!(bytes("/srv/app/other"), Some(b"no source".as_slice()));
    assert_eq!(bytes("/srv/app/var/cache/x"), None);
    assert_eq!(bytes(DATABASE), Some(b"restored database".as_slice()));
    assert_eq!(bytes("/srv/app/db.sqlite3-wal"), Some(b"".as_slice()));
    assert_eq!(bytes("/srv/app/db.sqlite3-shm"), None);

    let calls = ran.script.calls();
    let first = |name: &str| calls.iter().position(|c| c == name).unwrap();
    let last = |name: &str| calls.iter().rposition(|c| c == name).unwrap();
    assert!(last("beside.sync") < first("hook.stop"), "nobody is stopped while files are written");
    assert!(first("hook.stop") < first("site.rename") && last("site.rename") < first("hook.start"));
}

/// Every call fails once, or for good, or the run dies there.
#[test]
fn whatever_fails_in_place_it_is_the_old_state_or_the_new() {
    let (old, new) = old_and_new();
    let mut ends = [0, 0];
    for has_hooks in [false, true] {
        let wish = request(IN_PLACE, has_hooks);
        let calls = simply(&wish, Arc::default()).script.calls();
        for (at, call) in calls.iter().enumerate() {
            let breaks = [
                Break::Fail(FailureKind::Other),
                Break::Fail(FailureKind::NoSpace),
                Break::FailFrom(FailureKind::Other),
                Break::FilesFrom(FailureKind::Other),
                Break::Kill,
            ];
            for what in breaks {
                let ran = simply(&wish, Script::at(at, what));
                let name = format!("{what:?} at {at}, {call}, hooks: {has_hooks}");
                check_one(&ran, &old, &new, what, &name);
                ends[usize::from(ran.site.live() == new)] += 1;
            }
        }
    }
    assert!(ends[0] > 0 && ends[1] > 0, "{ends:?}");
}

fn check_one(ran: &Ran, old: &Live, new: &Live, what: Break, name: &str) {
    if let (Some(result), Break::Fail(_)) = (&ran.result, what) {
        // One failure is dealt with at once; only what fails in being undone is left to the journal.
        let live = ran.site.live();
        match result {
            Ok(report) => assert!(report.is_complete() && live == *new, "{name}"),
            Err(failure) if failure.what.contains("restored and in place") => assert!(live == *new, "{name}"),
            Err(_) => assert!(live == *old, "{name}"),
        }
    }
    if ran.site.live() != *old && ran.site.live() != *new {
        assert!(
            what == Break::Kill || ran.result.as_ref().is_some_and(Result::is_err),
            "{name}: a mix, untold"
        );
        let failure = ran.result.as_ref().and_then(|r| r.as_ref().err()).map(|f| f.what.clone());
        assert!(failure.is_none_or(|f| !f.contains("as it was before")), "{name}: a mix is told as whole");
    }
    ran.undo_what_is_left();
    let live = ran.site.live();
    assert!(live == *old || live == *new, "{name}: a mix is left: {:?}", live.keys());
    assert!(ran.site.staged().is_empty(), "{name}: {:?}", ran.site.staged());
    assert!(!ran.site.is_stopped(), "{name}: the application stays stopped");
    let (starts, stops) = ran.site.starts_and_stops();
    assert!(starts.iter().all(|s| s == old || s == new), "{name}: started on a mix");
    assert!(stops.iter().all(|s| s == old), "{name}: stopped too late");
    assert!(starts.len() >= stops.len(), "{name}");
}

#[test]
fn whatever_fails_in_restoring_to_a_directory_it_is_there_wholly_or_under_another_name() {
    let target = PathBuf::from("/srv/restored");
    let wish = request(Target::Directory { dir: target.clone() }, true);
    let clean = simply(&wish, Arc::default());
    assert!(clean.script.calls().iter().all(|c| !c.starts_with("hook.")), "nobody is stopped for it");
    let (old, whole) = (machine(&Arc::default()).live(), clean.site.live());
    let calls = clean.script.calls();
    for (at, call) in calls.iter().enumerate() {
        for what in [Break::Fail(FailureKind::Other), Break::Fail(FailureKind::NoSpace), Break::Kill] {
            let ran = simply(&wish, Script::at(at, what));
            let name = format!("{what:?} at {at}, {call}");
            ran.undo_what_is_left();
            assert!(ran.site.staged().is_empty(), "{name}");
            let live = ran.site.live();
            match ran.result {
                Some(Ok(report)) if report.is_complete() => assert!(live == whole, "{name}"),
                Some(Ok(report)) => {
                    assert!(!live.contains_key(&target), "{name}");
                    assert!(live.contains_key(&report.places[0]), "{name}");
                    assert!(report.problems.iter().any(|p| p.path.is_some()), "{name}: it is named");
                }
                Some(Err(_)) => assert!(live == old, "{name}"),
                None => assert!(live == old || live == whole, "{name}"),
            }
        }
    }
}

#[test]
fn an_open_database_is_replaced_only_if_the_stop_hook_ends_who_has_it_open() {
    for has_hooks in [false, true] {
        let script = Arc::default();
        let site = machine(&script);
        let path = PathBuf::from("/srv/app/db.sqlite3-wal");
        site.open(vec![Opened { pid: 7, program: "puma".into(), path }]);
        let old = site.live();
        let ran = restore(&request(IN_PLACE, has_hooks), site, &backup(&script), Arc::clone(&script));
        match ran.result.unwrap() {
            Ok(_) => assert!(has_hooks),
            Err(failure) => {
                assert!(!has_hooks);
                assert_eq!(failure.kind, FailureKind::Refused);
                assert!(failure.what.contains("puma (process 7)"), "{}", failure.what);
                assert!(ran.site.live() == old);
            }
        }
    }
}

/// Hands over other bytes than it names, as a failing memory would.
struct Fickle {
    inner: MemoryBackup,
    reads: AtomicUsize,
}

impl Contents for Fickle {
    fn listing(&self) -> &Listing {
        self.inner.listing()
    }
    fn read(&self, item: usize, range: Range<u64>, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let is_first = self.reads.fetch_add(1, Ordering::SeqCst) == 0;
        self.inner.read(item, range, &mut |bytes| {
            let mut bytes = bytes.to_vec();
            if is_first {
                bytes.iter_mut().take(1).for_each(|b| *b ^= 1);
            }
            sink(&bytes)
        })
    }
    fn matches(&self, item: usize, range: Range<u64>, tap: &mut Tap<'_>) -> Result<bool, Failure> {
        self.inner.matches(item, range, tap)
    }
}

#[test]
fn what_reads_back_otherwise_is_never_put_in_place() {
    let script = Arc::default();
    let (site, inner) = (machine(&script), backup(&script));
    let old = site.live();
    let contents = Fickle { inner, reads: AtomicUsize::new(0) };
    let ran = restore(&request(IN_PLACE, false), site, &contents, Arc::clone(&script));
    let failure = ran.result.unwrap().unwrap_err();
    assert!(failure.in_full().contains("reads back otherwise"), "{}", failure.in_full());
    assert!(ran.site.live() == old && ran.site.staged().is_empty());
}

#[test]
fn what_is_lost_is_named_with_its_links_and_replaces_nothing() {
    let script = Arc::default();
    let mut contents = backup(&script);
    contents.fail.insert("/srv/app/var/b".into(), FailureKind::Damaged);
    let target = PathBuf::from("/srv/restored");
    let to = request(Target::Directory { dir: target }, false);
    let report = restore(&to, machine(&script), &contents, Arc::clone(&script)).result.unwrap().unwrap();
    let named: Vec<_> = report.problems.iter().filter_map(|p| p.path.as_deref()).collect();
    for path in ["/srv/app/var/b", "/srv/app/var/sub/also-b"] {
        assert!(named.contains(&Path::new(path)), "{path} in {named:?}");
    }
    let site = machine(&script);
    let old = site.live();
    let ran = restore(&request(IN_PLACE, true), site, &contents, script);
    assert_eq!(ran.result.unwrap().unwrap_err().kind, FailureKind::Damaged);
    assert!(ran.site.live() == old);
    assert!(ran.site.starts_and_stops().1.is_empty(), "the application is not even stopped");
}

/// Who was told what, in order; one of them refuses.
#[derive(Clone, Default)]
struct Told(Arc<std::sync::Mutex<Vec<&'static str>>>, Option<&'static str>);

impl Told {
    fn step(&self, word: &'static str) -> Result<(), Failure> {
        self.0.lock().unwrap().push(word);
        match self.1 {
            Some(bad) if bad == word => Err(Failure::new(FailureKind::Other, format!("{word} fails"), "")),
            _ => Ok(()),
        }
    }
}

/// Something that is stopped by the first word and started by the second.
struct Stops(Told, [&'static str; 2]);

impl Hold for Stops {
    fn name(&self) -> String {
        self.1[0].into()
    }
    fn class(&self) -> HoldClass {
        HoldClass::StopHook
    }
    fn sources(&self) -> Vec<SourceId> {
        vec![]
    }
    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        Ok(vec![])
    }
    fn freeze(&mut self, _until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        self.0.step(self.1[0])?;
        Ok(Box::new(Stopped(self.0.clone(), self.1[1], false)))
    }
}

struct Stopped(Told, &'static str, bool);

impl Frozen for Stopped {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        Ok(Stillness::WritersFrozen("stopped".into()))
    }
    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        self.2 = true;
        self.0.step(self.1)
    }
}

impl std::ops::Drop for Stopped {
    fn drop(&mut self) {
        if !self.2 {
            let _ = self.0.step(self.1);
        }
    }
}

impl ServerTarget for Told {
    fn source(&self) -> SourceId {
        SourceId::new("mariadb", "/run/s")
    }
    fn service(&self) -> Option<Box<dyn Hold>> {
        Some(Box::new(Stops(self.clone(), ["stop server", "start server"])))
    }
    fn ready(&mut self, lies: &Lies<'_>) -> Result<Vec<Problem>, Failure> {
        assert!(lies(Path::new("/nowhere")).is_none());
        self.step("ready").map(|()| vec![])
    }
    fn load(&mut self) -> Result<Vec<Problem>, Failure> {
        self.step("load").map(|()| vec![])
    }
    fn put_back(&mut self) -> Result<(), Failure> {
        self.step("put back")
    }
    fn check(&mut self) -> Result<Vec<Problem>, Failure> {
        self.step("check").map(|()| vec![])
    }
}

/// A restore in place around a server; what was told, and how it ended.
fn around_a_server(bad: Option<&'static str>) -> (Vec<&'static str>, Result<RestoreReport, Failure>, bool) {
    let script = Arc::default();
    let (site, contents) = (machine(&script), backup(&script));
    let old = site.live();
    let told = Told(Arc::default(), bad);
    let mut plan = plan(&request(IN_PLACE, true), &contents, &site).unwrap();
    plan.servers.push(ServerPart {
        source: SourceId::new("mariadb", "/run/s"),
        form: ServerForm::Files,
        act: ServerAct::Replace,
        service: true,
        roots: vec![],
        databases: vec![],
    });
    let world = World::new(1);
    let job = Job {
        contents: &contents,
        site: &site,
        journal: Arc::new(ScriptedJournal::default()),
        clock: &world,
        progress: &Silent,
        threads: 1,
    };
    let application = Box::new(Stops(told.clone(), ["stop app", "start app"]));
    let mut servers: Vec<Box<dyn ServerTarget>> = vec![Box::new(told.clone())];
    let result = run_with(&plan, &job, Some(application), &mut servers);
    let words = told.0.lock().unwrap().clone();
    (words, result, site.live() == old)
}

#[test]
fn a_server_is_stopped_inside_its_application_and_whatever_fails_both_run_again_in_reverse() {
    let all = ["ready", "stop app", "load", "stop server", "start server", "check", "start app"];
    let (told, result, is_old) = around_a_server(None);
    assert!(result.unwrap().is_complete() && !is_old);
    assert_eq!(told, all);
    let cases: [(&str, &[&str], bool); 5] = [
        ("ready", &["ready"], true),
        ("stop app", &["ready", "stop app", "put back"], true),
        ("load", &["ready", "stop app", "load", "put back", "start app"], true),
        ("stop server", &["ready", "stop app", "load", "stop server", "put back", "start app"], true),
        ("start server", &["ready", "stop app", "load", "stop server", "start server", "start app"], false),
    ];
    for (bad, expected, stays_old) in cases {
        let (told, result, is_old) = around_a_server(Some(bad));
        assert_eq!((told.as_slice(), is_old), (expected, stays_old), "{bad}");
        assert!(result.unwrap_err().in_full().contains(bad), "{bad}");
    }
    let (told, result, is_old) = around_a_server(Some("check"));
    let report = result.unwrap();
    assert_eq!((told.as_slice(), is_old, report.is_complete()), (all.as_slice(), false, false));
    assert!(!report.kept.is_empty(), "the old state is kept until somebody has looked");
}
