//! What the archiver stores comes back, costs nothing when nothing changed, and is found again when a run was
//! killed. `STILLPOINT_CASES` says how many random trees are tried.

mod common;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Place, at, back_up, carried, manifest, noise, ok, store};
use model::{
    pace::Pace,
    port::{Shelf, Silent, Store},
    size::Bytes,
};
use proptest::{
    prelude::{Just, Strategy, any, prop_oneof},
    test_runner::{Config, TestRunner},
};
use vault::repository::Depth;

const CASES: u32 = 6;

/// What a file of a random tree holds.
#[derive(Debug, Clone)]
enum Content {
    /// Bytes that do not compress; the same for the same seed and length.
    Noise(u64, usize),
    /// A few bytes between holes.
    Sparse(usize),
    /// Pages of a database, each like its neighbours.
    Pages(u64, usize),
    /// Text.
    Text(usize),
}

/// Around the borders of blobs and pieces: nothing, 64 KiB, 512 KiB, 4 MiB, 8 MiB.
fn length() -> impl Strategy<Value = usize> {
    let border = prop_oneof![
        6 => Just(0), 3 => Just(65_536), 4 => Just(524_288), 1 => Just(4_194_304), 1 => Just(8_388_608)
    ];
    (border, prop_oneof![Just(-1_i64), Just(0), Just(1), 0..3000_i64])
        .prop_map(|(border, more)| usize::try_from(border + more).unwrap_or(0))
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        (0..3_u64, length()).prop_map(|(seed, length)| Content::Noise(seed, length)),
        length().prop_map(Content::Sparse),
        (0..3_u64, length()).prop_map(|(seed, length)| Content::Pages(seed, length)),
        length().prop_map(Content::Text),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|b| if b == 0 || b == b'/' { b'\\' } else { b });
    let odd = proptest::collection::vec(byte, 1..6).prop_filter("a name", |n| n != b"." && n != b"..");
    prop_oneof![3 => "[a-c]{1,2}".prop_map(String::into_bytes), 1 => odd]
}

fn tree() -> impl Strategy<Value = Vec<(Vec<Vec<u8>>, Content)>> {
    proptest::collection::vec((proptest::collection::vec(name(), 1..4), content()), 1..14)
}

impl Content {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Noise(seed, length) => noise(*seed, *length),
            Self::Sparse(length) => {
                let mut bytes = vec![0; *length];
                bytes.iter_mut().step_by(300_000).for_each(|byte| *byte = 1);
                bytes
            }
            Self::Pages(seed, length) => {
                let page = noise(*seed, 4096);
                let mut bytes = b"SQLite format 3\0".to_vec();
                while bytes.len() < *length {
                    bytes.extend_from_slice(&(bytes.len() / 9000).to_le_bytes());
                    bytes.extend_from_slice(&page[8..]);
                }
                bytes.truncate(*length);
                bytes
            }
            Self::Text(length) => {
                b"one line of text after the other\n".iter().copied().cycle().take(*length).collect()
            }
        }
    }

    fn write(&self, path: &Path) {
        let bytes = self.bytes();
        if !matches!(self, Self::Sparse(_)) {
            return fs::write(path, bytes).unwrap();
        }
        let mut file = fs::File::create(path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&[*byte]).unwrap();
        }
    }
}

/// Makes the tree, as far as its paths go together; what files it has.
fn plant(root: &Path, tree: &[(Vec<Vec<u8>>, Content)]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (names, content) in tree {
        let path = names.iter().fold(root.to_owned(), |path, name| path.join(OsStr::from_bytes(name)));
        let above: Vec<&Path> = path.ancestors().skip(1).take_while(|p| *p != root).collect();
        if path.exists() || above.iter().any(|p| p.is_file()) {
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        content.write(&path);
        files.insert(path, content.bytes());
    }
    files
}

/// The files of a backup below this directory.
fn below(place: &Place, backup: &model::id::BackupId, root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    place.read_back(backup).into_iter().filter(|(path, _)| path.starts_with(root)).collect()
}

#[test]
fn random_trees_come_back_and_cost_nothing_twice() {
    let cases = std::env::var("STILLPOINT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let mut runner = TestRunner::new(Config { cases, max_shrink_iters: 20, ..Config::default() });
    let tried = runner.run(&tree(), |tree| {
        let place = Place::new();
        let root = place.scratch();
        let files = plant(&root, &tree);
        let mut repository = place.repository();
        let (first, draft) = back_up(&mut repository, &root, 1);
        assert_eq!(draft.problems, []);
        assert_eq!(draft.files, files.len() as u64);
        assert_eq!(below(&place, &first, &root), files);
        let whole = manifest(&root, carried);
        // What is carried over is not opened: it is not even there.
        files.keys().for_each(|path| fs::remove_file(path).unwrap());
        let (second, draft) = store(&mut repository, whole, &root, 2);
        assert_eq!(draft.problems, []);
        // Trees and index: stamps that were too young at first are other ones now. The name of a part takes 35 bytes in a
        // tree, and the smallest parts of pages have 32 KiB.
        let parts: usize = files.values().map(|content| content.len() / 32_768).sum();
        assert!(draft.bytes_added.0 < 20_000 + 40 * parts as u64, "{}", draft.bytes_added);
        assert_eq!(below(&place, &second, &root), files);
        assert!(repository.check(Depth::ReadData, &Silent).unwrap().is_good());
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_changed_page_costs_one_small_blob() {
    let place = Place::new();
    let root = place.scratch();
    let file = root.join("database");
    let mut bytes = b"SQLite format 3\0".to_vec();
    bytes.extend(noise(5, (8 << 20) - 16));
    fs::write(&file, &bytes).unwrap();
    let (_, first) = back_up(&mut place.repository(), &root, 1);
    assert!(first.bytes_added.0 > 8 << 20, "{}", first.bytes_added);
    fs::File::options().write(true).open(&file).unwrap().write_all_at(&noise(6, 4096), 5 << 20).unwrap();
    let (second, draft) = back_up(&mut place.repository(), &root, 2);
    assert!(draft.bytes_added.0 < 90_000, "{}", draft.bytes_added);
    bytes[5 << 20..][..4096].copy_from_slice(&noise(6, 4096));
    assert_eq!(place.read_back(&second)[&file], bytes);
}

/// What a run leaves that is killed before it writes its index.
fn without_index(place: &Place) {
    ["index", "snapshots"]
        .into_iter()
        .flat_map(|dir| place.files(dir))
        .for_each(|file| fs::remove_file(file).unwrap());
}

fn three_files() -> (Place, PathBuf) {
    let place = Place::new();
    let root = place.scratch();
    (0..3).for_each(|n| fs::write(root.join(format!("file-{n}")), noise(n, 9_000_000)).unwrap());
    (place, root)
}

#[test]
fn packs_that_no_index_names_are_reused() {
    let (place, root) = three_files();
    back_up(&mut place.repository(), &root, 1);
    without_index(&place);
    let packs = place.files("data").len();
    let (id, draft) = back_up(&mut place.repository(), &root, 2);
    assert_eq!(draft.problems, []);
    assert!(draft.bytes_added.0 < 20_000, "{}", draft.bytes_added);
    assert!(place.files("data").len() <= packs + 2, "the cut record and its trees are new");
    assert_eq!(below(&place, &id, &root).len(), 3);
    let report = place.repository().check(Depth::ReadData, &Silent).unwrap();
    assert!(report.is_good(), "{:?}", report.problems);
}

#[test]
fn a_damaged_pack_that_no_index_names_is_not_relied_on() {
    let (place, root) = three_files();
    back_up(&mut place.repository(), &root, 1);
    without_index(&place);
    let damaged =
        place.files("data").into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let file = fs::File::options().write(true).open(&damaged).unwrap();
    file.write_all_at(b"xxxx", 5000).unwrap();
    let size = fs::metadata(&damaged).unwrap().len();
    let (id, draft) = back_up(&mut place.repository(), &root, 2);
    assert_eq!(draft.problems, []);
    assert!(draft.bytes_added.0 >= size && draft.bytes_added.0 < size + 20_000, "{}", draft.bytes_added);
    assert_eq!(below(&place, &id, &root)[&root.join("file-1")], noise(1, 9_000_000));
    ok(place.repository().reclaim(&Silent));
    assert!(!damaged.exists(), "it is freed");
    assert!(place.repository().check(Depth::ReadData, &Silent).unwrap().is_good());
}

#[test]
fn packs_of_a_writer_at_work_are_left_to_it() {
    let (place, root) = three_files();
    back_up(&mut place.repository(), &root, 1);
    without_index(&place);
    // Whose packs these are cannot be known while another holds a lock.
    let mut other = place.repository();
    ok(other.known());
    let (_, draft) = back_up(&mut place.repository(), &root, 2);
    assert!(draft.bytes_added.0 > 27_000_000, "{}", draft.bytes_added);
    store(&mut other, manifest(&root, at), &root, 3);
    assert!(place.repository().check(Depth::ReadData, &Silent).unwrap().is_good());
}

const CHILD: &str = "STILLPOINT_TEST_OPENING";

/// Not a test by itself: [`a_killed_run_is_continued`] starts it again as a process of its own and kills that.
#[test]
fn child_of_the_kill_test() {
    let Ok(given) = std::env::var(CHILD) else { return };
    let (dir, password) = given.split_once('=').unwrap();
    let password = vault::repository::Password::new(password).unwrap();
    let opening = vault::repository::Opening { dir: dir.into(), password };
    let journal = std::sync::Arc::new(common::Memory::default());
    let mut repository = vault::repository::Repository::open(&opening, journal).unwrap();
    // Storing all of it takes three seconds on any machine, so there is time to be killed.
    repository.go_at(Pace { read_limit: Some(Bytes(30 << 20)), ..Pace::default() });
    back_up(&mut repository, &Path::new(dir).with_file_name("scratch"), 1);
}

#[test]
fn a_killed_run_is_continued() {
    let place = Place::new();
    let root = place.scratch();
    (0..10).for_each(|n| fs::write(root.join(format!("file-{n}")), noise(n, 9_000_000)).unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_of_the_kill_test"])
        .env(CHILD, format!("{}={}", place.opening.dir.display(), place.opening.password.reveal()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let packs = || {
        let is_pack = |path: &PathBuf| path.file_name().unwrap().len() == 64;
        let found = place.files("data").into_iter().filter(is_pack);
        found.map(|path| fs::metadata(path).map_or(0, |meta| meta.len())).sum::<u64>()
    };
    let start = Instant::now();
    while packs() < 25_000_000 {
        assert!(
            child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(120),
            "it stores"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.files("snapshots"), Vec::<PathBuf>::new(), "it was killed in time");
    let there = packs();
    let (id, draft) = back_up(&mut place.repository(), &root, 2);
    assert_eq!(draft.problems, []);
    // A piece of a file that was begun may have been cut elsewhere; whole blobs of what is there are not stored again.
    assert!(draft.bytes_added.0 + there < 90_000_000 + 100_000, "{} with {there}", draft.bytes_added);
    let back = below(&place, &id, &root);
    (0..10).for_each(|n| assert_eq!(back[&root.join(format!("file-{n}"))], noise(n, 9_000_000)));
    ok(place.repository().reclaim(&Silent));
    assert!(place.repository().check(Depth::ReadData, &Silent).unwrap().is_good());
}

/// Whether nothing of a file is in the page cache.
fn is_cold(path: &Path) -> bool {
    let file = fs::File::open(path).unwrap();
    let mut byte = [0];
    let slices = &mut [std::io::IoSliceMut::new(&mut byte)];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    rustix::io::preadv2(&file, slices, 700_000, flags) == Err(rustix::io::Errno::AGAIN)
}

#[test]
fn the_page_cache_is_left_as_it_was() {
    let place = Place::at(tempfile::tempdir_in("/var/tmp").unwrap());
    let root = place.scratch();
    let files = ["cold", "warm", "pages"].map(|name| root.join(name));
    for (file, seed) in files.iter().zip(1..) {
        let head: &[u8] = if file.ends_with("pages") { b"SQLite format 3\0" } else { b"" };
        fs::write(file, [head, &noise(seed, 9_000_000)].concat()).unwrap();
        fs::File::open(file).unwrap().sync_all().unwrap();
    }
    for file in [&files[0], &files[2]] {
        rustix::fs::fadvise(fs::File::open(file).unwrap(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let before = files.clone().map(|file| is_cold(&file));
    assert!(!before[1], "what was just written is in the cache");
    let (id, _) = back_up(&mut place.repository(), &root, 1);
    assert_eq!(files.clone().map(|file| is_cold(&file)), before);
    assert_eq!(below(&place, &id, &root).len(), 3);
}
