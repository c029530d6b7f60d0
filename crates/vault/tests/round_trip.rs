//! Random trees with everything that a filesystem has come back as they were: by restic, by rustic and by us.
//! `STILLPOINT_CASES` says how many are tried. Needs root.

mod common;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use common::{Memory, Place, assert_same, at, back_up, everything, manifest, noise, ok};
use model::{
    entry::Kind,
    id::{AppName, BackupId},
    port::{Journal, Shelf},
    port_restore::{Fetch, STRETCH, Site},
    restore::{Request, Target, places, plan, work},
};
use os::site::LocalSite;
use proptest::{
    collection::vec,
    prelude::{Strategy, any, prop_oneof},
    sample::Index,
    test_runner::{Config, TestRunner},
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
use vault::repository::Repository;

const CASES: u32 = 3;

#[derive(Debug, Clone)]
enum What {
    File(usize),
    /// So long, with a few bytes in it.
    Sparse(usize),
    Dir,
    Link(Vec<u8>),
    /// Another name of a file before it.
    Again(Index),
    Fifo,
    Device(u32),
}

#[derive(Debug, Clone)]
struct Dress {
    mode: u32,
    owner: (u32, u32),
    attributes: BTreeMap<String, Vec<u8>>,
    access_rules: bool,
    seconds: i32,
}

type Thing = (Vec<Vec<u8>>, What, Dress);

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no name has it", |byte| *byte != 0 && *byte != b'/');
    let odd = vec(byte, 1..12).prop_filter("a name", |n| n != b"." && n != b"..");
    let known = ["\\", "a\\x2fb", "\"", " ", "\n", "-", "ä", "con", ".hidden", "\u{2028}"];
    prop_oneof![
        3 => "[a-d]{1,2}".prop_map(String::into_bytes),
        1 => odd,
        1 => any::<Index>().prop_map(move |which| which.get(&known).as_bytes().to_vec())
    ]
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        4 => (0..40_000_usize).prop_map(What::File),
        1 => (1_100_000..3_000_000_usize).prop_map(What::File),
        1 => (1..5_000_000_usize).prop_map(What::Sparse),
        2 => proptest::strategy::Just(What::Dir),
        2 => vec(any::<u8>().prop_filter("no link has it", |b| *b != 0), 1..40).prop_map(What::Link),
        2 => any::<Index>().prop_map(What::Again),
        1 => proptest::strategy::Just(What::Fifo),
        1 => (0..256_u32).prop_map(What::Device),
    ]
}

fn dress() -> impl Strategy<Value = Dress> {
    let attribute = ("user\\.[a-zä]{1,8}", vec(any::<u8>(), 0..60));
    let attributes = proptest::collection::btree_map(attribute.0, attribute.1, 0..3);
    (0..0o10000_u32, (0..70_000_u32, 0..70_000_u32), attributes, any::<bool>(), any::<i32>()).prop_map(
        |(mode, owner, attributes, access_rules, seconds)| Dress {
            mode,
            owner,
            attributes,
            access_rules,
            seconds,
        },
    )
}

/// `system.posix_acl_access` as the kernel has it (`linux/posix_acl_xattr.h`): the owner, user 1000, the group, the mask, all.
fn access_rules() -> Vec<u8> {
    let rules: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 1000), (4, 5, u32::MAX), (0x10, 5, u32::MAX), (0x20, 1, u32::MAX)];
    let rule = |(tag, may, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [2_u32.to_le_bytes().to_vec(), rules.into_iter().flat_map(rule).collect()].concat()
}

/// Makes the tree, as far as its paths go together.
fn plant(root: &Path, things: &[Thing]) {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut made = Vec::new();
    for (names, what, dress) in things {
        let path = names.iter().fold(root.to_owned(), |path, name| path.join(OsStr::from_bytes(name)));
        let is_taken = path.symlink_metadata().is_ok();
        let mut above = path.ancestors().skip(1).take_while(|above| *above != root);
        if is_taken || above.any(|above| above.symlink_metadata().is_ok_and(|meta| !meta.is_dir())) {
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let node = |kind, device| mknodat(CWD, &path, kind, Mode::RWXU, device).unwrap();
        match what {
            What::File(length) => fs::write(&path, noise(*length as u64, *length)).unwrap(),
            What::Sparse(length) => {
                let file = fs::File::create(&path).unwrap();
                file.set_len(*length as u64).unwrap();
                file.write_all_at(b"in the middle"[..(*length).min(13)].as_ref(), *length as u64 / 2)
                    .unwrap();
            }
            What::Dir => fs::create_dir(&path).unwrap(),
            What::Link(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
            What::Again(which) if !files.is_empty() => fs::hard_link(which.get(&files), &path).unwrap(),
            What::Again(_) | What::Fifo => node(FileType::Fifo, 0),
            What::Device(minor) => node(FileType::CharacterDevice, u64::from(*minor) | 1 << 8),
        }
        if matches!(what, What::File(_) | What::Sparse(_)) {
            files.push(path.clone());
        }
        made.push((path, what, dress));
    }
    // Deepest last made first, so that a directory's time stays.
    for (path, what, dress) in made.into_iter().rev() {
        put_on(&path, what, dress);
    }
}

fn put_on(path: &Path, what: &What, dress: &Dress) {
    if matches!(what, What::Link(_) | What::Again(_)) {
        return;
    }
    chown(path, Some(dress.owner.0), Some(dress.owner.1)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(dress.mode)).unwrap();
    if matches!(what, What::File(_) | What::Sparse(_) | What::Dir) {
        for (name, value) in &dress.attributes {
            setxattr(path, name.as_str(), value, XattrFlags::empty()).unwrap();
        }
        if dress.access_rules {
            setxattr(path, "system.posix_acl_access", &access_rules(), XattrFlags::empty()).unwrap();
        }
    }
    let time = rustix::fs::Timespec { tv_sec: i64::from(dress.seconds), tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Restores with the very site that `restore` writes by.
fn restore(repository: &mut Repository, backup: &BackupId, dir: &Path) {
    let stored = ok(repository.backups()).into_iter().find(|stored| stored.id == *backup).unwrap();
    let contents = ok(Fetch::open(repository, backup));
    let listing = contents.listing();
    assert_eq!(listing.problems, []);
    let request = Request {
        application: AppName::new("hydro").unwrap(),
        backup: stored,
        target: Target::Directory { dir: dir.to_owned() },
        keep_out: vec![],
        has_hooks: false,
        accept_incomplete: false,
        servers: vec![],
        only: vec![],
        read_back: true,
        trust_copies: false,
    };
    let facts = ok(LocalSite.survey(&ok(places(&request, listing)), listing, &[]));
    let plan = ok(plan(&request, listing, &facts));
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let beside = ok(LocalSite.begin(&plan, listing, &journal));
    let mut problems = ok(beside.directories());
    let entries = listing.entries();
    for (part, item) in work(&plan, listing).files {
        let (entry, size) = (&entries[item], entries[item].meta.size.0);
        let file = ok(beside.file(part, entry));
        for from in (0..size).step_by(STRETCH as usize) {
            let range = from..size.min(from + STRETCH);
            let mut stretch = ok(file.stretch(range.clone()));
            ok(contents.read(item, range, &mut |bytes| stretch.append(bytes)));
            ok(stretch.end());
        }
        problems.extend(ok(file.finish()).problems);
    }
    problems.extend(ok(beside.complete(&[])));
    problems.extend(ok(beside.verify()));
    problems.extend(ok(beside.seal()));
    ok(beside.sync());
    problems.extend(ok(beside.swap().map_err(|not| not.failure)).problems);
    assert_eq!(problems, []);
}

fn restic(place: &Place, args: &[&str]) {
    let mut command = Command::new("restic");
    command.args(["--no-cache", "--quiet", "--repo"]).arg(&place.opening.dir).args(args);
    let output = command.env("RESTIC_PASSWORD", place.opening.password.reveal()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Backs a tree up, and compares it with what each of the three restores.
fn comes_back(place: &Place, root: &Path) {
    let mut repository = place.repository();
    let (id, draft) = back_up(&mut repository, root, 1);
    assert_eq!(draft.problems, []);
    restic(place, &["check", "--read-data"]);
    let below = root.strip_prefix("/").unwrap();
    let [theirs, ours] = ["restic", "ours"].map(|name| place.dir.path().join(name));
    restic(place, &["restore", id.as_str(), "--target", theirs.to_str().unwrap()]);
    mend_links(root, &theirs.join(below));
    assert_same(root, &theirs.join(below));
    restore(&mut repository, &id, &ours);
    assert_same(root, &ours.join(below));
    assert_eq!(same_files(root), same_files(&ours.join(below)));
    let read = place.read_back(&id);
    for entry in
        manifest(root, at).entries.iter().filter(|e| e.kind == Kind::File && e.path.starts_with(root))
    {
        assert!(read[&entry.path] == fs::read(&entry.path).unwrap(), "{}", entry.path.display());
    }
}

/// restic has raw link targets since 0.16 (`linktarget_raw`); an older one restores what is no UTF-8 with other bytes.
fn mend_links(root: &Path, restored: &Path) {
    for path in everything(root).iter().filter(|path| path.is_symlink()) {
        let target = fs::read_link(path).unwrap();
        if target.to_str().is_some() {
            continue;
        }
        let link = restored.join(path.strip_prefix(root).unwrap());
        let above = fs::metadata(link.parent().unwrap()).unwrap();
        assert!(link.is_symlink());
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        keep_time(&link, &fs::symlink_metadata(path).unwrap());
        keep_time(link.parent().unwrap(), &above);
    }
}

fn keep_time(path: &Path, like: &fs::Metadata) {
    let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps {
        last_access: time(like.atime(), like.atime_nsec()),
        last_modification: time(like.mtime(), like.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Which names are one file.
fn same_files(root: &Path) -> Vec<Vec<PathBuf>> {
    let mut groups: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for path in everything(root) {
        let inode = fs::symlink_metadata(&path).unwrap().ino();
        groups.entry(inode).or_default().push(path.strip_prefix(root).unwrap().to_owned());
    }
    let mut groups: Vec<_> = groups.into_values().filter(|group| group.len() > 1).collect();
    groups.sort();
    groups
}

#[test]
fn random_trees_come_back_by_restic_by_rustic_and_by_us() {
    let cases = std::env::var("STILLPOINT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, max_shrink_iters: 30, failure_persistence: None, ..Config::default() };
    let things = vec((vec(name(), 1..4), what(), dress()), 1..30);
    let tried = TestRunner::new(config).run(&things, |things| {
        let place = Place::new();
        let root = place.scratch();
        plant(&root, &things);
        comes_back(&place, &root);
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_file_of_several_stretches_comes_back_with_its_holes() {
    let place = Place::new();
    let root = place.scratch();
    let length = usize::try_from(2 * STRETCH).unwrap() + 1_234_567;
    let file = fs::File::create(root.join("large")).unwrap();
    file.set_len(length as u64).unwrap();
    // Over each border, at the end, and some pages of a database between them.
    for at in [STRETCH - 700_000, 2 * STRETCH - 10, length as u64 - 3_000_000] {
        let bytes = noise(at, 1_500_000);
        file.write_all_at(&bytes, at).unwrap();
    }
    comes_back(&place, &root);
    let ours = place.dir.path().join("ours").join(root.strip_prefix("/").unwrap()).join("large");
    let blocks = fs::metadata(ours).unwrap().blocks() * 512;
    assert!(blocks < STRETCH, "{blocks} bytes are allocated");
}
