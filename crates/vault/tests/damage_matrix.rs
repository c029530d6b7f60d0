//! Each kind of file of a repository, damaged in each way: checking, restoring, backing up and reading the log archive end
//! in an error that names the file and says what to do, or in a result that is proven right. Nothing is ever wrong in
//! silence.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Mutex,
};

use common::{
    Place, at, back_up, cut, manifest, noise, ok, record,
    spool::{Archive, owner},
};
use model::{
    entry::{Kind, Role},
    id::{BackupId, EpochId, SourceId},
    logs::Beginning,
    logs_retention::LogsPlan,
    port::{Failure, Silent, Store},
    port_restore::Fetch,
    problem::{Effect, Problem},
};
use vault::repository::{Depth, Opening, Repository};

/// How a file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Truncated,
    Flipped,
    Missing,
    Emptied,
}

const ALL: [Damage; 4] = [Damage::Truncated, Damage::Flipped, Damage::Missing, Damage::Emptied];

impl Damage {
    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        match self {
            Self::Missing => return,
            Self::Truncated => bytes.truncate(bytes.len() / 2),
            Self::Emptied => bytes.clear(),
            Self::Flipped => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
            }
        }
        fs::write(path, bytes).unwrap();
    }
}

/// What came of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// An error that names the file, or what is wrong with the repository as a whole, and a remedy.
    Error,
    /// Done, but for what is named with a remedy; all the rest is right.
    Lacking,
    /// Done, and all of it is right.
    Right,
}

use Came::{Error, Lacking, Right};

/// A repository with two backups and a log archive.
struct Scene {
    place: Place,
    root: PathBuf,
    oracle: BTreeMap<PathBuf, Option<Vec<u8>>>,
    newest: BackupId,
    source: SourceId,
    epoch: EpochId,
    segment: Vec<u8>,
    /// The files of each kind; the backups' where nothing else is said.
    kinds: Vec<(&'static str, PathBuf)>,
}

fn grow(root: &Path) {
    fs::create_dir_all(root.join("sub/deeper")).unwrap();
    fs::write(root.join("large"), noise(1, 300_000)).unwrap();
    fs::write(root.join("sub/small"), "small").unwrap();
    fs::write(root.join("sub/deeper/empty"), "").unwrap();
    std::os::unix::fs::symlink("large", root.join("link")).unwrap();
}

fn oracle(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let entries = manifest(root, at);
    let content = entries.entries.iter().filter(|entry| entry.role == Role::Content);
    content
        .map(|entry| (entry.path.clone(), (entry.kind == Kind::File).then(|| fs::read(&entry.path).unwrap())))
        .collect()
}

/// What is new in a directory of the repository.
struct News(Vec<PathBuf>);

impl News {
    fn of(place: &Place, dir: &str, then: impl FnOnce()) -> Self {
        let before = place.files(dir);
        then();
        Self(place.files(dir).into_iter().filter(|path| !before.contains(path)).collect())
    }

    /// Largest first.
    fn by_size(mut self) -> Vec<PathBuf> {
        self.0.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
        self.0
    }
}

fn scene() -> Scene {
    let place = Place::new();
    let root = place.scratch();
    fs::write(root.join("first"), noise(7, 100_000)).unwrap();
    back_up(&mut place.repository(), &root, 1);
    grow(&root);
    let mut newest = None;
    let news = |dir: &'static str, then: &mut dyn FnMut()| News::of(&place, dir, then);
    let mut packs = Vec::new();
    let mut index = Vec::new();
    let snapshots = news("snapshots", &mut || {
        index = news("index", &mut || {
            packs = news("data", &mut || {
                newest = Some(back_up(&mut place.repository(), &root, 2).0);
            })
            .by_size();
        })
        .0;
    });
    let mut archive = Archive::new(place.dir.path().join("logs"));
    let epoch = archive.begin_epoch(1, Beginning::First);
    let segment = noise(3, 200_000);
    archive.segment(&segment);
    let mut log_packs = Vec::new();
    let log_snapshots = news("snapshots", &mut || {
        log_packs = news("data", &mut || {
            let catalogue = archive.catalogue();
            place.repository().store_logs(&owner(), &catalogue, &LogsPlan::default(), &Silent).unwrap();
        })
        .by_size();
    });
    let kinds = vec![
        ("config", place.opening.dir.join("config")),
        ("key", place.files("keys")[0].clone()),
        ("snapshot", snapshots.0[0].clone()),
        ("index", index[0].clone()),
        ("data pack", packs[0].clone()),
        ("tree pack", packs[packs.len() - 1].clone()),
        ("log snapshot", log_snapshots.0[0].clone()),
        ("log pack", log_packs[0].clone()),
    ];
    let oracle = oracle(&root);
    let newest = newest.unwrap();
    Scene { place, root, oracle, newest, source: archive.source, epoch, segment, kinds }
}

/// A copy of the repository with one file damaged.
struct Cell<'a> {
    scene: &'a Scene,
    _dir: tempfile::TempDir,
    opening: Opening,
    /// The beginning of the damaged file's name, by which messages name it.
    named: String,
}

impl Cell<'_> {
    fn open(&self) -> Result<Repository, Failure> {
        Repository::open(&self.opening, self.scene.place.journal.clone()).map_err(Failure::from)
    }

    /// Names the file, and a way out.
    #[track_caller]
    fn assert_told(&self, text: &str, remedy: &str) {
        assert!(text.contains(&self.named), "{:?} is not named in: {text}", self.named);
        assert!(!remedy.is_empty(), "no remedy: {text}");
        assert!(!text.contains("Backtrace"), "{text}");
    }

    #[track_caller]
    fn failed(&self, failure: &Failure) -> Came {
        self.assert_told(&failure.in_full(), &failure.remedy);
        Error
    }

    #[track_caller]
    fn lacking(&self, problems: &[Problem]) -> Came {
        let missing: Vec<&Problem> = problems.iter().filter(|p| p.effect == Effect::Missing).collect();
        if missing.is_empty() {
            return Right;
        }
        let text: Vec<String> = missing.iter().map(ToString::to_string).collect();
        self.assert_told(&text.join("\n"), &missing.iter().map(|p| p.remedy.as_str()).collect::<String>());
        Lacking
    }

    fn check(&self) -> Came {
        let checked = self.open().and_then(|mut r| r.check(Depth::ReadData, &Silent).map_err(Failure::from));
        match checked {
            Ok(report) => self.lacking(&report.problems),
            Err(failure) => self.failed(&failure),
        }
    }

    fn restore(&self, backup: &BackupId, oracle: &BTreeMap<PathBuf, Option<Vec<u8>>>) -> Came {
        let mut repository = match self.open() {
            Ok(repository) => repository,
            Err(failure) => return self.failed(&failure),
        };
        let contents = match Fetch::open(&mut repository, backup) {
            Ok(contents) => contents,
            Err(failure) => return self.failed(&failure),
        };
        let listing = contents.listing();
        let mut problems = listing.problems.clone();
        let is_listed_lost = |path: &Path| {
            listing.problems.iter().any(|p| p.path.as_ref().is_some_and(|lost| path.starts_with(lost)))
        };
        for (path, bytes) in oracle {
            let Some(item) = listing.position(path) else {
                assert!(is_listed_lost(path), "{} is lost in silence", path.display());
                continue;
            };
            let Some(bytes) = bytes else { continue };
            let mut found = Vec::new();
            let size = listing.entries()[item].meta.size.0;
            let read = contents.read(item, 0..size, &mut |part| {
                found.extend_from_slice(part);
                Ok(())
            });
            match read {
                Ok(()) => assert!(found == *bytes, "{} is restored wrong", path.display()),
                Err(failure) => {
                    assert!(bytes.starts_with(&found), "wrong bytes are handed over");
                    problems.push(Problem::missing(path, failure.in_full(), failure.remedy));
                }
            }
        }
        self.lacking(&problems)
    }

    /// Backs up once more, and restores that.
    fn back_up(&self) -> Came {
        let mut repository = match self.open() {
            Ok(repository) => repository,
            Err(failure) => return self.failed(&failure),
        };
        let root = &self.scene.root;
        let cut = cut(3, root);
        let draft = match repository.store(manifest(root, at), &cut, &Silent) {
            Ok(draft) => draft,
            Err(failure) => return self.failed(&failure),
        };
        let id = ok(repository.publish(draft.clone(), &record(&cut, &draft)));
        drop(repository);
        let (told, restored) = (self.lacking(&draft.problems), self.restore(&id, &self.scene.oracle));
        // Bytes that were changed in a pack are found by reading it, which no backup does; `check` has told.
        let is_found_later = told == Right && restored == Lacking;
        assert!(told == restored || is_found_later, "told {told:?}, restored {restored:?}");
        restored
    }

    /// Reads the log archive back.
    fn logs(&self) -> Came {
        let Scene { source, epoch, segment, .. } = self.scene;
        let into = tempfile::tempdir().unwrap();
        let fetched = self.open().and_then(|mut repository| {
            let stored = repository.log_catalogue()?;
            let wrong = repository.fetch_logs(source, epoch, &[1], false, into.path())?;
            Ok((stored, wrong))
        });
        match fetched {
            Err(failure) => self.failed(&failure),
            Ok((Some(_), wrong)) if wrong.is_empty() => {
                assert!(fs::read(into.path().join("00000001.seg")).unwrap() == *segment);
                Right
            }
            Ok((_, wrong)) => {
                assert!(wrong.iter().all(|w| w.number == 1 && !w.what.is_empty()), "{wrong:?}");
                assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0, "what is wrong is written");
                Lacking
            }
        }
    }
}

fn cell<'a>(scene: &'a Scene, kind: &str, file: &Path, damage: Damage) -> Cell<'a> {
    let dir = tempfile::tempdir().unwrap();
    let from = &scene.place.opening.dir;
    let to = dir.path().join("repository");
    let copied = std::process::Command::new("cp").arg("-a").args([from, &to]).status().unwrap();
    assert!(copied.success());
    damage.apply(&to.join(file.strip_prefix(from).unwrap()));
    let name = file.file_name().unwrap().to_str().unwrap();
    let named = match (kind, damage) {
        ("config", _) => name,
        // What is not there any more has no name but that of its place.
        ("key", Damage::Missing) => "keys",
        ("index", Damage::Missing) => "index",
        ("snapshot" | "log snapshot", Damage::Missing) => "repository",
        _ => &name[..8],
    };
    let opening = Opening { dir: to, password: scene.place.opening.password.clone() };
    Cell { scene, _dir: dir, opening, named: named.into() }
}

/// What is expected: of a check of everything, of a restore of the newest backup, of another backup and of the log archive.
fn expected(kind: &str, damage: Damage) -> [Came; 4] {
    match (kind, damage) {
        // Without these there is no repository.
        ("config" | "key", _) => [Error; 4],
        // Gone without a trace: nothing says that there ever was one.
        ("snapshot", Damage::Missing) => [Right, Error, Right, Right],
        ("snapshot", _) => [Lacking, Error, Right, Right],
        // Nothing is written on top, since everything would be stored again.
        ("index", Damage::Truncated | Damage::Flipped | Damage::Emptied) => [Lacking, Error, Error, Error],
        ("index", Damage::Missing) => [Lacking, Lacking, Right, Right],
        // A backup relies on what the index promises, and says what is not there.
        ("data pack", _) => [Lacking, Lacking, Lacking, Right],
        ("tree pack", _) => [Lacking, Lacking, Right, Right],
        ("log snapshot", Damage::Missing) => [Right, Right, Right, Error],
        ("log snapshot", _) => [Lacking, Right, Right, Error],
        ("log pack", _) => [Lacking, Right, Right, Lacking],
        _ => [Right; 4],
    }
}

#[test]
fn every_damage_is_told_and_nothing_is_wrong_in_silence() {
    let scene = scene();
    let wrong: Mutex<Vec<String>> = Mutex::default();
    let row = |kind: &str, file: &Path| {
        for damage in ALL {
            let cell = cell(&scene, kind, file, damage);
            let came = catch_unwind(AssertUnwindSafe(|| {
                [cell.check(), cell.restore(&scene.newest, &scene.oracle), cell.back_up(), cell.logs()]
            }));
            if came.as_ref().ok() != Some(&expected(kind, damage)) {
                wrong.lock().unwrap().push(format!("{kind} {damage:?}: {came:?}"));
            }
        }
    };
    // They mostly wait: whoever takes a lock looks for others twice.
    std::thread::scope(|scope| {
        for (kind, file) in &scene.kinds {
            scope.spawn(|| row(kind, file));
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    assert!(scene.place.journal.open().is_empty(), "no lock is left");
}
