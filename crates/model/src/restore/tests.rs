//! Choosing, placing and planning, refusals first.
//!
//! Crash story: tests of pure functions, no effects.

use std::path::{Path, PathBuf};

use jiff::{Timestamp, ToSpan};

use super::{
    Census, Choice, Drop, Exchange, Found, Listed, Listing, Opened, ParentFacts, PlaceFacts, PlaceKind,
    Request, RestorePlan, ServerSource, SiteFacts, Target, choose, databases, places, plan,
};
use crate::{
    cut::Stalls,
    entry::{Kind, Meta, tree_order},
    id::{AppName, BackupId, CutId, SourceId},
    port::{Failure, FailureKind},
    problem::Problem,
    record::{BackupRecord, PinNote, RECORD_VERSION, StoredBackup},
    server::{Flavor, RootRole, ServerForm, ServerPosition, ServerRecord, ServerRoot, ServerVersion},
    size::Bytes,
    time::Millis,
    verdict::Verdict,
};

mod copies;

const IN_PLACE: Target = Target::InPlace { keep_old: false };

fn entry(path: &str, kind: Kind) -> Listed {
    let time = Timestamp::UNIX_EPOCH;
    let size = Bytes(if kind == Kind::File { 1000 } else { 0 });
    let meta = Meta {
        mode: 0o644,
        uid: 0,
        gid: 0,
        size,
        mtime: time,
        atime: time,
        ctime: time,
        inode: 1,
        device: 1,
        links: 1,
        xattrs: vec![],
    };
    Listed { path: path.into(), kind, meta }
}

fn link(path: &str, target: &str) -> Listed {
    entry(path, Kind::Symlink(target.into()))
}

fn listing(mut entries: Vec<Listed>) -> Listing {
    entries.sort_by(|a, b| tree_order(&a.path, &b.path));
    Listing::new(entries, vec![]).unwrap()
}

fn backup(pins: &[(&str, &str)]) -> StoredBackup {
    let pin = |(kind, path): &(&str, &str)| PinNote {
        source: SourceId::new(kind, path),
        method: "test".into(),
        path: path.into(),
    };
    StoredBackup {
        id: BackupId::new("ab".repeat(32)).unwrap(),
        time: Timestamp::UNIX_EPOCH,
        received: Timestamp::UNIX_EPOCH,
        record: Some(BackupRecord {
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
            pins: pins.iter().map(pin).collect(),
        }),
        damaged: None,
        accepted: false,
    }
}

fn request(target: Target, pins: &[(&str, &str)]) -> Request {
    Request {
        application: AppName::new("hydro").unwrap(),
        backup: backup(pins),
        target,
        read_back: false,
        trust_copies: false,
        keep_out: vec!["/srv/hydro".into(), "/v01/backup".into()],
        has_hooks: false,
        accept_incomplete: false,
        servers: vec![],
        only: vec![],
    }
}

/// A place as it is when nothing is in the way.
fn facts(real: &str, found: Found) -> PlaceFacts {
    PlaceFacts {
        real: real.into(),
        found,
        parent: ParentFacts::Writable,
        writable: true,
        fixed: None,
        nested: vec![],
        device: 1,
        filesystem: "xfs".into(),
        free: Bytes(1 << 40),
        free_inodes: Some(1 << 20),
        census: Census::default(),
    }
}

/// A directory with a database beside it: what most cases begin with.
struct Case {
    request: Request,
    listing: Listing,
    site: SiteFacts,
}

const PINS: [(&str, &str); 2] = [("directory", "/srv/hydro/var"), ("sqlite", "/srv/hydro/db/a.sqlite3")];

fn case() -> Case {
    let entries = vec![
        entry("/srv", Kind::Dir),
        entry("/srv/hydro", Kind::Dir),
        entry("/srv/hydro/db", Kind::Dir),
        entry("/srv/hydro/db/a.sqlite3", Kind::File),
        entry("/srv/hydro/db/a.sqlite3-journal", Kind::File),
        entry("/srv/hydro/db/a.sqlite3-wal", Kind::File),
        entry("/srv/hydro/var", Kind::Dir),
        entry("/srv/hydro/var/file", Kind::File),
    ];
    let places = vec![facts("/srv/hydro/db/a.sqlite3", Found::Other), facts("/srv/hydro/var", Found::Dir(3))];
    Case {
        request: request(IN_PLACE, &PINS),
        listing: listing(entries),
        site: SiteFacts { privileged: true, places, open: vec![], copies: vec![] },
    }
}

fn to(dir: &str, found: Found) -> Case {
    let mut case = case();
    case.request.target = Target::Directory { dir: dir.into() };
    case.site.places = vec![facts(dir, found)];
    case
}

impl Case {
    fn plan(&self) -> Result<RestorePlan, Failure> {
        plan(&self.request, &self.listing, &self.site)
    }

    /// The refusal, which says these words and what to do.
    #[track_caller]
    fn refused(&self, kind: FailureKind, words: &str) {
        let failure = self.plan().unwrap_err();
        assert_eq!(failure.kind, kind, "{}", failure.in_full());
        assert!(failure.in_full().contains(words), "no {words:?} in: {}", failure.in_full());
        assert!(!failure.remedy.is_empty(), "{}", failure.what);
    }
}

/// Changes one thing of the case that otherwise succeeds; it must then be refused in these words.
#[track_caller]
fn refuses(mut case: Case, words: &str, change: impl FnOnce(&mut Case)) {
    case.plan().unwrap();
    change(&mut case);
    case.refused(FailureKind::Refused, words);
}

#[test]
fn what_is_in_the_way_of_a_directory_is_refused() {
    let free = || to("/restored", Found::Absent);
    refuses(free(), "does not exist", |c| c.site.places[0].parent = ParentFacts::Missing);
    refuses(free(), "cannot write into the directory above", |c| {
        c.site.places[0].parent = ParentFacts::ReadOnly;
    });
    refuses(free(), "not empty: it holds 7 names", |c| c.site.places[0].found = Found::Dir(7));
    refuses(free(), "is not a directory", |c| c.site.places[0].found = Found::Other);
    refuses(free(), "is not a directory", |c| c.site.places[0].found = Found::Symlink("/etc".into()));
    refuses(to("/restored", Found::Dir(0)), "mount point", |c| {
        c.site.places[0].fixed = Some("it is a mount point".into());
    });
}

#[test]
fn a_directory_keeps_out_of_sources_and_backups_by_any_name() {
    refuses(to("/restored", Found::Absent), "lies inside /v01/backup", |c| {
        c.site.places[0].real = "/v01/backup/x".into();
    });
    refuses(to("/restored", Found::Absent), "lies inside /srv/hydro", |c| {
        c.request.target = Target::Directory { dir: "/srv/hydro".into() };
    });
    to("/srv/hydro-restored", Found::Absent).plan().unwrap();
}

#[test]
fn what_is_in_the_way_in_place_is_refused() {
    refuses(case(), "does not exist any more", |c| c.site.places[1].parent = ParentFacts::Missing);
    refuses(case(), "/srv/hydro/var/mnt lies below", |c| {
        c.site.places[1].nested = vec!["/srv/hydro/var/mnt".into()];
    });
    refuses(case(), "neither replace", |c| {
        c.site.places[1].parent = ParentFacts::ReadOnly;
        c.site.places[1].writable = false;
    });
    refuses(case(), "symbolic link to /elsewhere now", |c| {
        c.site.places[1].found = Found::Symlink("/elsewhere".into());
    });
    refuses(case(), "is a directory now", |c| c.site.places[0].found = Found::Dir(0));
    refuses(case(), "cannot be replaced: this user", |c| c.site.places[0].parent = ParentFacts::ReadOnly);
    refuses(case(), "cannot be replaced: it is a mount point", |c| {
        c.site.places[0].fixed = Some("it is a mount point".into());
    });
    refuses(case(), "sqlite3 (process 7) has /srv/hydro/db/a.sqlite3-wal open", |c| {
        let path = "/srv/hydro/db/a.sqlite3-wal".into();
        c.site.open = vec![Opened { pid: 7, program: "sqlite3".into(), path }];
    });
}

#[test]
fn with_hooks_an_open_database_is_only_noted() {
    let mut case = case();
    case.request.has_hooks = true;
    case.site.open = vec![Opened { pid: 7, program: String::new(), path: "/srv/hydro/db/a.sqlite3".into() }];
    let plan = case.plan().unwrap();
    assert!(plan.hooks);
    assert!(
        plan.notes.iter().any(|n| n.contains("process 7") && n.contains("stop hook")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn what_the_backup_lacks_is_refused_in_place_and_told_elsewhere() {
    let incomplete = |case: &mut Case| {
        let record = case.request.backup.record.as_mut().unwrap();
        record.verdict = Verdict::Incomplete;
        record.problems = vec![Problem::missing("/srv/hydro/var/secret", "could not be read", "")];
    };
    refuses(case(), "/srv/hydro/var/secret", incomplete);
    let mut accepted = case();
    incomplete(&mut accepted);
    accepted.request.accept_incomplete = true;
    assert!(accepted.plan().unwrap().notes.iter().any(|n| n.contains("secret")));
    let mut beside = to("/restored", Found::Absent);
    incomplete(&mut beside);
    assert!(beside.plan().unwrap().notes.iter().any(|n| n.contains("secret")));
}

#[test]
fn what_the_repository_has_lost_is_never_accepted_in_place() {
    refuses(case(), "has lost a part", |c| {
        c.request.accept_incomplete = true;
        c.listing.problems = vec![Problem::missing("/srv/hydro/var/d", "what it held is lost", "")];
    });
}

#[test]
fn a_full_disk_is_seen_before_anything_is_written() {
    let mut full = case();
    for place in &mut full.site.places {
        place.free = Bytes(16 << 20);
    }
    full.refused(FailureKind::NoSpace, "are free");
    let mut few = case();
    for place in &mut few.site.places {
        place.free_inodes = Some(10);
    }
    few.refused(FailureKind::NoSpace, "inodes");
    // Each filesystem has to take its own part only, and one that does not count inodes is not asked.
    let mut apart = case();
    apart.site.places[0].device = 2;
    apart.site.places.iter_mut().for_each(|p| p.free_inodes = None);
    apart.plan().unwrap();
}

#[test]
fn a_site_that_was_not_looked_at_is_no_ground_for_a_plan() {
    let mut case = case();
    case.site.places.pop();
    assert_eq!(case.plan().unwrap_err().kind, FailureKind::Other);
}

#[test]
fn the_plan_says_what_goes_where() {
    let plan = case().plan().unwrap();
    let parts: Vec<(&str, &str)> =
        plan.parts.iter().map(|p| (p.to.to_str().unwrap(), p.beside.to_str().unwrap())).collect();
    assert_eq!(
        parts,
        [
            ("/srv/hydro/db/a.sqlite3", "/srv/hydro/db"),
            ("/srv/hydro/db/a.sqlite3-wal", "/srv/hydro/db"),
            ("/srv/hydro/db/a.sqlite3-journal", "/srv/hydro/db"),
            ("/srv/hydro/var", "/srv/hydro"),
        ]
    );
    assert!(plan.parts.iter().all(|p| p.exchange == Exchange::Whole));
    let shm = Drop { path: "/srv/hydro/db/a.sqlite3-shm".into(), beside: "/srv/hydro/db".into() };
    assert_eq!(plan.drops, [shm], "what the backup does not hold must not survive it");
    assert_eq!(plan.must_be_closed.len(), 4);
    assert_eq!((plan.files, plan.bytes), (4, Bytes(4000)));
}

#[test]
fn a_root_that_cannot_be_renamed_keeps_its_place() {
    for (fixed, parent) in
        [(Some("it is a mount point".to_owned()), ParentFacts::Writable), (None, ParentFacts::ReadOnly)]
    {
        let mut case = case();
        case.site.places[1].fixed = fixed;
        case.site.places[1].parent = parent;
        let plan = case.plan().unwrap();
        let part = plan.parts.iter().find(|p| p.to == Path::new("/srv/hydro/var")).unwrap();
        assert!(matches!(part.exchange, Exchange::Children(_)));
        assert_eq!(part.beside, Path::new("/srv/hydro/var"), "the staging lies on the same filesystem");
    }
}

fn of_place(pins: &[(&str, &str)], entries: Vec<Listed>) -> Result<Vec<(PathBuf, PlaceKind)>, Failure> {
    let found = places(&request(IN_PLACE, pins), &listing(entries))?;
    Ok(found.into_iter().map(|p| (p.to, p.kind)).collect())
}

#[test]
fn a_linked_root_brings_its_link_and_its_target() {
    let entries = || {
        vec![
            link("/srv/current", "releases/7"),
            entry("/srv/releases", Kind::Dir),
            entry("/srv/releases/7", Kind::Dir),
            link("/srv/releases/7/shared", "/data/shared"),
            entry("/data/shared", Kind::Dir),
        ]
    };
    let found = of_place(&[("directory", "/srv/current/shared")], entries()).unwrap();
    assert_eq!(
        found,
        [
            ("/data/shared".into(), PlaceKind::Tree),
            ("/srv/current".into(), PlaceKind::Link),
            ("/srv/releases/7/shared".into(), PlaceKind::Link),
        ]
    );
    // A link inside of a tree that is restored goes with it.
    let inside =
        of_place(&[("directory", "/srv/releases"), ("directory", "/srv/releases/7/shared")], entries());
    let tree = |path: &str| (PathBuf::from(path), PlaceKind::Tree);
    assert_eq!(inside.unwrap(), [tree("/data/shared"), tree("/srv/releases")]);
}

#[test]
fn links_lead_upwards_and_never_in_circles() {
    let up = vec![link("/a/b/up", "../../c/./d"), entry("/c/d", Kind::Dir)];
    let found = of_place(&[("directory", "/a/b/up")], up).unwrap();
    assert_eq!(found[1], ("/c/d".into(), PlaceKind::Tree));
    let circle = vec![link("/a", "b"), link("/b", "/a")];
    let failure = of_place(&[("directory", "/a/x")], circle).unwrap_err();
    assert!(failure.what.contains("circle"), "{}", failure.what);
}

#[test]
fn what_lies_in_a_tree_goes_with_it() {
    let entries = || {
        vec![
            entry("/srv/a", Kind::Dir),
            entry("/srv/a/b", Kind::Dir),
            entry("/srv/a/x.sqlite3", Kind::File),
            entry("/srv/a/x.sqlite3-wal", Kind::File),
            entry("/srv/ab", Kind::Dir),
        ]
    };
    let pins = [
        ("directory", "/srv/a/b"),
        ("sqlite", "/srv/a/x.sqlite3"),
        ("directory", "/srv/ab"),
        ("directory", "/srv/a"),
    ];
    let found = of_place(&pins, entries()).unwrap();
    assert_eq!(found, [("/srv/a".into(), PlaceKind::Tree), ("/srv/ab".into(), PlaceKind::Tree)]);
    // Yet nobody may have the database open.
    let known = databases(&backup(&pins), &listing(entries())).unwrap();
    assert_eq!(known, [PathBuf::from("/srv/a/x.sqlite3")]);
    let apart = of_place(&[("sqlite", "/srv/a/x.sqlite3"), ("directory", "/srv/a/b")], entries()).unwrap();
    assert_eq!(
        apart,
        [("/srv/a/b".into(), PlaceKind::Tree), ("/srv/a/x.sqlite3".into(), PlaceKind::Database)]
    );
}

#[test]
fn a_backup_that_does_not_hold_what_it_says_has_no_places() {
    let failure = of_place(&[("directory", "/srv/gone")], vec![entry("/srv", Kind::Dir)]).unwrap_err();
    assert!(failure.what.contains("/srv/gone, but does not"), "{}", failure.what);
    let mut foreign = case();
    foreign.request.backup.record = None;
    foreign.refused(FailureKind::Refused, "--to DIR");
    foreign = to("/restored", Found::Absent);
    foreign.request.backup.record = None;
    foreign.plan().unwrap();
}

#[test]
fn a_missing_link_is_restored_and_a_changed_one_refused() {
    let linked = |found: Found| {
        let entries = vec![link("/srv/link", "/data/x"), entry("/data/x", Kind::Dir)];
        let places = vec![facts("/data/x", Found::Dir(1)), facts("/srv/link", found)];
        Case {
            request: request(IN_PLACE, &[("directory", "/srv/link")]),
            listing: listing(entries),
            site: SiteFacts { privileged: true, places, open: vec![], copies: vec![] },
        }
    };
    let paths = |plan: RestorePlan| plan.parts.into_iter().map(|p| p.to).collect::<Vec<_>>();
    assert_eq!(paths(linked(Found::Absent).plan().unwrap()), [Path::new("/data/x"), Path::new("/srv/link")]);
    assert_eq!(paths(linked(Found::Symlink("/data/x".into())).plan().unwrap()), [Path::new("/data/x")]);
    for now in [Found::Symlink("/data/y".into()), Found::Dir(0), Found::Other] {
        linked(now).refused(FailureKind::Refused, "not the symbolic link that it was");
    }
}

fn numbered(digits: &str, hours: i64) -> StoredBackup {
    let mut backup = backup(&[]);
    backup.id = BackupId::new(format!("{digits:0<64}")).unwrap();
    backup.time = Timestamp::UNIX_EPOCH + hours.hours();
    let random = u8::try_from(hours).unwrap();
    backup.record.as_mut().unwrap().cut = CutId::at(backup.time, [random; 3]);
    backup
}

#[test]
fn the_backup_that_is_meant_is_chosen_or_none() {
    let backups = [numbered("abcd", 3), numbered("abce", 9), numbered("12", 5)];
    let chosen = |text: &str| choose(&backups, &Choice::parse(text)).map(|b| b.time);
    let at = |hours: i64| Timestamp::UNIX_EPOCH + hours.hours();
    assert_eq!(chosen("latest").unwrap(), at(9), "by the time of its cut, not by its place");
    assert_eq!(chosen("abcd").unwrap(), at(3));
    assert_eq!(chosen("1").unwrap(), at(5));
    let cut = backups[0].record.as_ref().unwrap().cut.clone();
    assert_eq!(chosen(cut.as_str()).unwrap(), at(3));
    let several = chosen("abc").unwrap_err();
    assert!(several.what.contains("abcd") && several.what.contains("abce"), "{}", several.what);
    for nothing in ["", "ffff", "Latest", &cut.as_str()[..4]] {
        assert_eq!(chosen(nothing).unwrap_err().kind, FailureKind::Refused, "{nothing:?}");
    }
    assert!(choose(&[], &Choice::Latest).unwrap_err().in_full().contains("stillpoint backup"));
}

#[test]
fn a_servers_directory_outside_of_its_data_is_not_replaced_over_what_others_put_there() {
    let mut outside = case();
    let record = ServerRecord {
        source: SourceId::new("mariadb", "/run/a.sock"),
        version: ServerVersion { flavor: Flavor::MariaDb, number: (10, 11, 19), text: "10.11.19".into() },
        server_id: 1,
        form: ServerForm::Files,
        position: ServerPosition::default(),
        settings: std::collections::BTreeMap::new(),
        roots: vec![ServerRoot { role: RootRole::External, path: "/srv/hydro/var".into() }],
        engines: vec![],
        databases: vec![],
        beside: None,
        replay_from: None,
    };
    outside.request.servers = vec![ServerSource { record, has_service: false, is_reachable: true }];
    refuses(outside, "may belong to others", |c| {
        c.site.places[1].census =
            Census { files: 2, newer: 0, unlisted: 1, examples: vec!["/srv/hydro/var/am2.MYD".into()] };
    });
}
