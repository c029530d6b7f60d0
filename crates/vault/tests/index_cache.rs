//! A repository with its index cached beside it: whatever becomes of either, a backup is right or says what is wrong.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use common::{Place, back_up, carried, everything, manifest, ok, store};
use model::{id::Relpath, port::Store};
use vault::repository::{Repository, index_cache, keep_index_caches};

/// Each with a blob of its own: so many that the index is worth a cache.
const FILES: u32 = 10_500;

struct Scene {
    place: Place,
    root: PathBuf,
    cache: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let root = place.scratch();
        for number in 0..FILES {
            let dir = root.join((number / 500).to_string());
            if number.is_multiple_of(500) {
                fs::create_dir(&dir).unwrap();
            }
            fs::write(dir.join(number.to_string()), number.to_string()).unwrap();
        }
        let cache = index_cache(&place.dir.path().join("state"), &Relpath::new("bench/shop").unwrap());
        Self { place, root, cache }
    }

    fn repository(&self) -> Repository {
        let mut repository = self.place.repository();
        repository.cache_index_at(self.cache.clone());
        repository
    }

    /// Backs up, and compares all of it, as rustic reads it, with what there is.
    fn back_up(&self, nth: u8) {
        let (backup, draft) = back_up(&mut self.repository(), &self.root, nth);
        assert_eq!(draft.problems, []);
        let files = everything(&self.root).into_iter().filter(|path| path.is_file());
        let expected: BTreeMap<PathBuf, Vec<u8>> =
            files.map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
        assert_eq!(expected.len() as u32, FILES);
        let found = self.place.read_back(&backup);
        let ours = found.into_iter().filter(|(path, _)| path.starts_with(&self.root));
        assert!(ours.eq(expected), "backup {nth} is another");
    }

    fn change(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            fs::write(self.root.join((number / 500).to_string()).join(number.to_string()), "new").unwrap();
        }
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn whatever_becomes_of_the_cache_a_backup_is_right() {
    let scene = Scene::new();
    scene.back_up(1);
    assert_eq!(fs::metadata(&scene.cache).unwrap().permissions().mode() & 0o7777, 0o600);
    let first = fs::read(&scene.cache).unwrap();

    // With its help, and nothing new that would be worth another one.
    scene.change(0..7);
    scene.back_up(2);
    assert_eq!(fs::read(&scene.cache).unwrap(), first);
    let (_, draft) = store(&mut scene.repository(), manifest(&scene.root, carried), &scene.root, 3);
    assert_eq!((draft.problems.len(), draft.files), (0, u64::from(FILES)));

    // Without it there is another one afterwards.
    flip(&scene.cache);
    scene.back_up(4);
    let second = fs::read(&scene.cache).unwrap();
    assert!(second.len() > first.len() && scene.place.files("index").len() > 1);
    fs::write(&scene.cache, "").unwrap();
    scene.back_up(5);
    assert!(fs::read(&scene.cache).unwrap().len() >= second.len());

    // A pack that it relies on is gone: it is not believed, and what is lost is told as ever.
    let packs = scene.place.files("data");
    let largest = packs.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    fs::remove_file(largest).unwrap();
    let lost = |mut repository: Repository| back_up(&mut repository, &scene.root, 6).1.problems;
    let (with, without) = (lost(scene.repository()), lost(scene.place.repository()));
    assert!(!with.is_empty() && with == without, "{} problems, {} without it", with.len(), without.len());
}

#[test]
fn an_index_file_that_was_damaged_is_found_although_it_is_not_needed() {
    let scene = Scene::new();
    scene.back_up(1);
    assert!(scene.cache.exists());
    let [file] = &scene.place.files("index")[..] else { panic!("one index file") };
    flip(file);
    let failure = scene.repository().known().map(drop).unwrap_err().in_full();
    assert!(failure.contains(&*file.file_name().unwrap().to_string_lossy()), "{failure}");
    flip(file);
    ok(scene.repository().known());
}

#[test]
fn one_of_another_repository_is_of_no_use_and_one_that_nobody_wants_goes() {
    let (scene, other) = (Scene::new(), Scene::new());
    scene.back_up(1);
    other.back_up(1);
    fs::copy(&other.cache, &scene.cache).unwrap();
    scene.back_up(2);
    let state = scene.place.dir.path().join("state");
    ok(keep_index_caches(&state, &[scene.cache.clone()].into()));
    assert!(scene.cache.exists());
    ok(keep_index_caches(&state, &[].into()));
    assert!(!scene.cache.exists());
    scene.back_up(3);
    assert!(scene.cache.exists());
}
