//! A census that was brought up to date has to be the census of a new look.
//!
//! Crash story: tests in temporary directories.

use std::{
    collections::HashSet,
    fs,
    num::NonZeroU32,
    ops::ControlFlow,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use model::{
    entry::{Entry, Kind, tree_order},
    problem::{Effect, Problem},
};

use super::{Census, Changes, Course, Pass, Stopped};
use crate::{
    mounts::Mounts,
    tree::{Vanished, clock_of_stamps},
};

struct Tree {
    dir: tempfile::TempDir,
    carved: HashSet<PathBuf>,
    mounts: Mounts,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for at in ["a/deep", "a-b", "empty"] {
            fs::create_dir_all(dir.path().join(at)).unwrap();
        }
        for at in ["a/deep/file", "a/one", "a/two", "a-b/x", "z"] {
            fs::write(dir.path().join(at), at).unwrap();
        }
        symlink("a", dir.path().join("link")).unwrap();
        Self { dir, carved: HashSet::new(), mounts: Mounts::read().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn look(&self, census: &mut Census) -> Vec<Problem> {
        let pass = Pass {
            root: self.dir.path(),
            exclude: &|path| path.extension().is_some_and(|e| e == "tmp"),
            carved: &self.carved,
            mounts: &self.mounts,
            vanished: Vanished::Problem,
            started: Timestamp::now(),
            late: &|| false,
        };
        census.update(&pass).unwrap()
    }

    fn new_census(&self) -> Census {
        let mut census = Census::default();
        assert_eq!(self.look(&mut census), []);
        census
    }
}

fn settle() {
    std::thread::sleep(model::entry::SETTLING + Duration::from_millis(20));
}

fn tick() {
    std::thread::sleep(Duration::from_millis(20));
}

fn entries(census: &Census) -> Vec<Entry> {
    let mut entries = Vec::new();
    census.each(&mut |_, _, mut entry| {
        // Looking at a link is an access.
        entry.meta.atime = entry.meta.ctime;
        entries.push(entry);
    });
    assert!(entries.is_sorted_by(|a, b| tree_order(&a.path, &b.path).is_lt()));
    entries
}

fn names(tree: &Tree, census: &Census) -> Vec<String> {
    let below = |e: &Entry| e.path.strip_prefix(tree.dir.path()).unwrap().to_str().unwrap().to_owned();
    entries(census).iter().map(below).collect()
}

type Step<'a> = (&'a str, Box<dyn Fn() + 'a>);

#[test]
fn each_change_is_seen_and_nothing_else_changes() {
    let tree = Tree::new();
    let steps: Vec<Step<'_>> = vec![
        ("nothing", Box::new(|| {})),
        ("content", Box::new(|| fs::write(tree.at("a/one"), "otherwise").unwrap())),
        ("mode", Box::new(|| fs::set_permissions(tree.at("z"), fs::Permissions::from_mode(0o600)).unwrap())),
        ("attribute", Box::new(|| xattr::set(tree.at("a/two"), "user.note", b"1").unwrap())),
        ("attribute of a directory", Box::new(|| xattr::set(tree.at("empty"), "user.note", b"2").unwrap())),
        ("attribute gone", Box::new(|| xattr::remove(tree.at("a/two"), "user.note").unwrap())),
        ("new", Box::new(|| fs::write(tree.at("a/deep/a new one"), "x").unwrap())),
        ("gone", Box::new(|| fs::remove_file(tree.at("a/one")).unwrap())),
        ("moved", Box::new(|| fs::rename(tree.at("a"), tree.at("zz")).unwrap())),
        ("replaced", Box::new(|| fs::rename(tree.at("z"), tree.at("zz/two")).unwrap())),
        ("link", Box::new(|| fs::hard_link(tree.at("zz/two"), tree.at("a-b/a")).unwrap())),
        (
            "a directory for a file",
            Box::new(|| {
                fs::remove_file(tree.at("a-b/x")).unwrap();
                fs::create_dir_all(tree.at("a-b/x/y/z")).unwrap();
            }),
        ),
        (
            "a file for a directory",
            Box::new(|| {
                fs::remove_dir_all(tree.at("a-b/x")).unwrap();
                fs::write(tree.at("a-b/x"), "x").unwrap();
            }),
        ),
        (
            "another link",
            Box::new(|| {
                fs::remove_file(tree.at("link")).unwrap();
                symlink("b", tree.at("link")).unwrap();
            }),
        ),
    ];
    settle();
    let mut census = tree.new_census();
    for (what, step) in steps {
        step();
        assert_eq!(tree.look(&mut census), [], "{what}");
        let new = tree.new_census();
        assert_eq!(entries(&census), entries(&new), "{what}");
        assert_eq!(census.names(), entries(&new).len() as u64, "{what}");
    }
}

#[test]
fn what_is_not_stored_is_not_there_and_what_is_odd_is_said() {
    let mut tree = Tree::new();
    tree.carved.insert(tree.at("a/deep"));
    let _socket = UnixListener::bind(tree.at("socket")).unwrap();
    fs::create_dir(tree.at(".stillpoint-tree-0")).unwrap();
    fs::write(tree.at(".stillpoint-tree-0/1"), b"x").unwrap();
    fs::write(tree.at("empty/x.tmp"), b"x").unwrap();
    let mut census = tree.new_census();
    for _ in 0..2 {
        assert_eq!(names(&tree, &census), ["", "a", "a/one", "a/two", "a-b", "a-b/x", "empty", "link", "z"]);
        let [problem] = &census.problems()[..] else { panic!("{:?}", census.problems()) };
        assert_eq!((problem.effect, problem.path.as_ref()), (Effect::Note, Some(&tree.at("socket"))));
        settle();
        assert_eq!(tree.look(&mut census), []);
    }
}

#[test]
fn marks_stay_as_long_as_the_file_does() {
    let tree = Tree::new();
    settle();
    let mut census = tree.new_census();
    let mark = NonZeroU32::new(7);
    census.mark_files(&mut |path, _| if path.ends_with("x") { None } else { mark });
    let unmarked = |census: &Census| -> Vec<PathBuf> {
        census.unmarked_files().into_iter().map(|spot| census.entry(spot).unwrap().path).collect()
    };
    fs::write(tree.at("a/new"), b"x").unwrap();
    fs::set_permissions(tree.at("z"), fs::Permissions::from_mode(0o600)).unwrap();
    tree.look(&mut census);
    let mut found = unmarked(&census);
    found.sort();
    assert_eq!(found, [tree.at("a/new"), tree.at("a-b/x"), tree.at("z")]);
    census.unmark(&tree.at("a/deep/file"));
    census.unmark(Path::new("/elsewhere"));
    assert!(unmarked(&census).contains(&tree.at("a/deep/file")));
    // In parts it is the same.
    let (mut course, mut parts) = (Course::default(), Vec::new());
    loop {
        let before = parts.len();
        census.go_on(&mut course, &|_| true, &mut |_, _, entry| {
            parts.push(entry.path);
            if parts.len() == before + 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if parts.len() < before + 2 {
            break;
        }
    }
    assert!(parts.iter().eq(entries(&census).iter().map(|entry| &entry.path)));
    let mut marked = Vec::new();
    census.each(&mut |_, mark, entry| marked.extend(mark.map(|_| entry.path)));
    assert_eq!(marked, [tree.at("a/one"), tree.at("a/two")]);
}

#[test]
fn changes_are_counted_without_listing_anything() {
    let tree = Tree::new();
    settle();
    let changed = |change: &dyn Fn()| {
        let floor = clock_of_stamps();
        let census = tree.new_census();
        tick();
        change();
        let Changes { count, first } = census.changes(floor, &|| false).unwrap();
        settle();
        (count, first)
    };
    assert_eq!(changed(&|| {}), (0, None));
    let one = |name: &str| (1, Some(tree.at(name)));
    assert_eq!(changed(&|| fs::write(tree.at("a/deep/new"), b"").unwrap()), one("a/deep"));
    assert_eq!(changed(&|| fs::remove_file(tree.at("a/deep/new")).unwrap()).1, Some(tree.at("a/deep")));
    assert_eq!(changed(&|| xattr::set(tree.at("z"), "user.note", b"").unwrap()), one("z"));
    let mode = fs::Permissions::from_mode(0o700);
    assert_eq!(changed(&|| fs::set_permissions(tree.dir.path(), mode.clone()).unwrap()), one(""));
    assert_eq!(changed(&|| fs::write(tree.at("new"), b"").unwrap()), one(""));
    // What changed while the look went on shows the same in both.
    let floor = clock_of_stamps();
    fs::write(tree.at("a/one"), b"again").unwrap();
    let census = tree.new_census();
    assert_eq!(census.changes(floor, &|| false).unwrap().first, Some(tree.at("a/one")));
}

/// A million names should not take much more than 100 MB.
#[test]
fn a_name_takes_as_little_as_is_said() {
    assert_eq!(size_of::<super::Member>(), 104);
}

#[test]
fn a_late_look_says_so_and_leaves_the_census_good() {
    let tree = Tree::new();
    settle();
    let mut census = tree.new_census();
    fs::write(tree.at("a/deep/new"), b"").unwrap();
    let pass = Pass {
        root: tree.dir.path(),
        exclude: &|_| false,
        carved: &tree.carved,
        mounts: &tree.mounts,
        vanished: Vanished::Problem,
        started: Timestamp::now(),
        late: &|| true,
    };
    assert!(matches!(census.update(&pass), Err(Stopped::Late(_))));
    assert!(matches!(census.changes(Timestamp::MAX, &|| true), Err(Stopped::Late(_))));
    assert_eq!(tree.look(&mut census), []);
    assert_eq!(entries(&census), entries(&tree.new_census()));
    let file = tree.at("z");
    assert!(matches!(census.update(&Pass { root: &file, late: &|| false, ..pass }), Err(Stopped::Lost(_))));
}

#[test]
fn large_directories_are_looked_at_in_pieces() {
    let tree = Tree::new();
    for n in 0..3_000 {
        fs::write(tree.at(&format!("empty/{n}")), b"").unwrap();
    }
    settle();
    let mut census = tree.new_census();
    for n in (0..3_000).step_by(7) {
        fs::remove_file(tree.at(&format!("empty/{n}"))).unwrap();
        fs::write(tree.at(&format!("empty/{n}+")), b"").unwrap();
        fs::write(tree.at(&format!("empty/{}", n + 1)), b"otherwise").unwrap();
    }
    assert_eq!(tree.look(&mut census), []);
    let new = tree.new_census();
    assert_eq!(entries(&census), entries(&new));
    assert_eq!(entries(&new).iter().filter(|e| e.kind == Kind::File).count(), 3_005);
}
