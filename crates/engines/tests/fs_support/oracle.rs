//! Random changes before, between and after the passes; the harvest has to be the tree at the pin.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use engines::fs::Form;
use model::{
    known::Known,
    port::{Pinner, Silent},
    problem::Effect,
    verdict::Stillness,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use rustix::fs::{Timespec, Timestamps};

use super::{Paper, Tree, Vault, harvested, live, plan, settle, soon, tick, tree_pinner};

/// Runs this many seeds side by side, each in a new directory of `base`.
#[allow(clippy::print_stdout, reason = "a failed run names its seed")]
pub fn run(base: &Path, form: Form, seeds: u64) {
    std::thread::scope(|scope| {
        for seed in 0..seeds {
            scope.spawn(move || {
                let dir = tempfile::tempdir_in(base).unwrap();
                println!("seed {seed}, {form:?}");
                one(dir.path(), form, seed);
            });
        }
    });
}

fn one(dir: &Path, form: Form, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let root = dir.join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    for n in 0..30 {
        fs::write(root.join(format!("a/file-{n}")), vec![n; random.random_range(0..9_000)]).unwrap();
    }
    if random.random_bool(0.7) {
        settle();
    }
    let paper = Arc::new(Paper::default());
    let mut vault = Vault::default();
    let mut pinner = tree_pinner(&plan(&root), form, &dir.join("staging"), &paper);
    vault.store_ahead(pinner.prepare(&Known::default()).unwrap());
    change(&root, &mut random);
    for _ in 0..random.random_range(0..3) {
        if random.random_bool(0.5) {
            settle();
        }
        pinner.round().unwrap();
        change(&root, &mut random);
    }
    tick();
    let mut pin = pinner.pin(soon()).unwrap();
    let at_pin: Tree = live(&root);
    let disturbed = random.random_bool(0.5);
    if disturbed {
        change_once(&root, &mut random);
    }
    let stillness = pin.unchanged(soon()).unwrap();
    assert_eq!(
        disturbed,
        matches!(stillness, Stillness::NotShown(_)),
        "seed {seed}, disturbed: {disturbed}, but {stillness:?}"
    );
    change(&root, &mut random);
    let harvest = pin.harvest(&Silent).unwrap();
    let bad: Vec<_> = harvest.problems.iter().filter(|p| p.effect != Effect::Note).collect();
    assert!(bad.is_empty(), "seed {seed}: {bad:?}");
    let got = harvested(&root, &harvest, &vault);
    for path in got.keys().chain(at_pin.keys()) {
        assert!(got.get(path) == at_pin.get(path), "seed {seed}: {} is otherwise", path.display());
    }
    pin.release().unwrap();
    drop(pinner);
    assert!(paper.open().is_empty(), "seed {seed}: {:?}", paper.open());
}

fn change(root: &Path, random: &mut StdRng) {
    for _ in 0..random.random_range(0..6) {
        change_once(root, random);
    }
}

/// One change that leaves something different behind.
fn change_once(root: &Path, random: &mut StdRng) {
    let files: Vec<PathBuf> = live(root)
        .into_iter()
        .filter(|(_, shown)| shown.content.is_some())
        .map(|(path, _)| root.join(path))
        .collect();
    let file = files.choose(random).unwrap();
    let new = root.join(format!("a/b/new-{}", random.random::<u32>()));
    match random.random_range(0..14) {
        0..3 => rewrite_secretly(file, random),
        3 => fs::write(file, vec![random.random(); random.random_range(0..20_000)]).unwrap(),
        4 => fs::write(new, random.random::<u64>().to_string()).unwrap(),
        5 if files.len() > 5 => fs::remove_file(file).unwrap(),
        6 => fs::rename(file, new).unwrap(),
        7 => fs::hard_link(file, new).unwrap(),
        // Of a directory's own attributes, and of a file's, nothing but the change time tells.
        9 => {
            let value = random.random::<u64>().to_string();
            let name = format!("user.note-{}", random.random_range(0..3));
            let path = if random.random_bool(0.3) { &root.join("a/b") } else { file };
            xattr::set(path, name, value.as_bytes()).unwrap();
        }
        10 => xattr::set(file, "system.posix_acl_access", &acl(random.random_range(2..1_000))).unwrap(),
        11 => {
            // Also with root's right to do so this is no change of the content.
            let meta = fs::metadata(file).unwrap();
            std::os::unix::fs::chown(file, Some(meta.uid()), Some(meta.gid())).unwrap();
        }
        12 => fs::create_dir_all(new.join("x/y")).unwrap(),
        8 => symlink(random.random::<u32>().to_string(), new).unwrap(),
        _ => {
            let mode = 0o400 | random.random_range(0..0o100);
            let old = fs::metadata(file).unwrap().permissions().mode() & 0o777;
            let mode = if mode == old { mode ^ 1 } else { mode };
            fs::set_permissions(file, fs::Permissions::from_mode(mode | 0o200)).unwrap();
        }
    }
}

/// Version 2, then entries of tag, permissions, id: acl(5) and linux/posix_acl_xattr.h.
fn acl(user: u16) -> Vec<u8> {
    let [low, high] = user.to_le_bytes();
    [
        &[2, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 4, 0, low, high, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[16, 0, 4, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat()
}

/// The same size, and the modification time set back: only the change time tells.
fn rewrite_secretly(file: &Path, random: &mut StdRng) {
    let meta = fs::metadata(file).unwrap();
    fs::write(file, vec![random.random(); usize::try_from(meta.len()).unwrap()]).unwrap();
    let modified = meta.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    let time = Timespec {
        tv_sec: i64::try_from(modified.as_secs()).unwrap(),
        tv_nsec: i64::from(modified.subsec_nanos()),
    };
    let open = fs::File::open(file).unwrap();
    rustix::fs::futimens(&open, &Timestamps { last_access: time, last_modification: time }).unwrap();
}
