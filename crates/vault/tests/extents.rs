//! Changed extents only, on real filesystems: what is stored is what was pinned, and what did not change is not read.
//! Needs root. `STILLPOINT_NIGHTS` is how many random nights there are on each filesystem; a failing seed is printed.
#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

mod common;
mod extents_support;

use std::{
    fs::{self, File, OpenOptions},
    io::IoSliceMut,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use common::{Place, back_up, noise};
use extents_support::{Changes, Night, World};
use model::{problem::Effect, reference::Reference};
use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, preadv2},
};
use vault::reference;

const MIB: usize = 1 << 20;
const FILESYSTEMS: [&str; 2] = ["xfs", "btrfs"];

fn write_at(path: &Path, bytes: &[u8], at: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[track_caller]
fn assert_quiet(night: &Night) {
    assert_eq!((&night.draft.problems[..], &night.kept[..]), (&[][..], &[][..]));
}

/// Two files of 5 MiB, and a small one that is always read.
fn world(kind: &str) -> World {
    let world = World::new(kind);
    world.write("a", &noise(1, 5 * MIB + 5000));
    world.write("b", &noise(2, 5 * MIB));
    world.write("small", &noise(3, MIB));
    world
}

#[test]
fn what_did_not_change_is_not_read() {
    for kind in FILESYSTEMS {
        let mut world = world(kind);
        let (a, b) = (world.live.join("a"), world.live.join("b"));
        let first = world.night();
        assert_quiet(&first);
        assert_eq!(first.pages_read(), 11 * MIB as u64, "{kind}");
        assert_eq!(world.reference().files.len(), 2);
        let own = reference::own_bytes(&world.reference()).0;
        assert!(own < 100_000, "clones cost nothing at first: {own}");

        let second = world.night();
        assert_quiet(&second);
        assert_eq!(second.pages_read(), MIB as u64, "{kind}");
        assert!(second.draft.bytes_added.0 < 20_000, "{}", second.draft.bytes_added);

        // Two chunks here, for the page is in both; one there; and a tail.
        write_at(&a, &noise(4, 4096), 20 * 65536 - 2048);
        write_at(&a, &noise(5, 100), 70 * 65536);
        write_at(&b, &noise(6, 1000), 5 * MIB as u64);
        let third = world.night();
        assert_quiet(&third);
        assert_eq!(third.pages_read(), MIB as u64 + 3 * 32768, "{kind}: {}", third.draft.bytes_read);
        world.assert_holds(&third);
        // Until the next night they have what was there before. (btrfs calls all of an extent shared that is so in part.)
        write_at(&b, &noise(7, MIB), 2 * MIB as u64);
        rustix::fs::sync();
        let own = reference::own_bytes(&world.reference()).0;
        assert!(own >= MIB as u64 || kind == "btrfs", "{kind}: {own}");
        let fourth = world.night();
        world.assert_holds(&fourth);
        let own = reference::own_bytes(&world.reference()).0;
        assert!(own < 100_000 || kind == "btrfs", "what is spare was brought up to date: {own}");

        File::options().write(true).open(&a).unwrap().set_len(3 * MIB as u64 + 5).unwrap();
        let shorter = world.night();
        assert_eq!(shorter.pages_read(), 4 * MIB as u64, "{kind}: it is small now");
        assert_eq!(world.reference().files.len(), 1);
        world.assert_holds(&shorter);
        assert!(
            world
                .place
                .repository()
                .check(vault::repository::Depth::ReadData, &model::port::Silent)
                .unwrap()
                .is_good()
        );
    }
}

#[test]
fn random_nights_come_back_byte_for_byte() {
    let nights = std::env::var("STILLPOINT_NIGHTS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let seed = std::env::var("STILLPOINT_SEED").ok().and_then(|n| n.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| std::process::id().into());
    for kind in FILESYSTEMS {
        println!("STILLPOINT_SEED={seed}");
        let mut world = world(kind);
        world.choice.read_all_every = Duration::from_secs(86_400 * 365);
        let mut changes = Changes::new(seed);
        world.night();
        let (mut read, mut all) = (0, 0);
        for night in 0..nights {
            let mut done = Vec::new();
            for _ in 0..1 + changes.below(5) {
                let path = world.live.join(["a", "b"][usize::try_from(changes.below(2)).unwrap()]);
                done.push(changes.change(&world, &path));
            }
            println!("{kind}, night {night}: {}", done.join(", "));
            let stored = world.night();
            world.assert_holds(&stored);
            assert!(
                stored.draft.problems.iter().all(|problem| problem.effect == Effect::Note),
                "{:?}",
                stored.draft.problems
            );
            assert_eq!(stored.kept, []);
            read += stored.draft.bytes_read.0;
            all += stored.draft.bytes.0;
        }
        println!("{kind}: {read} of {all} bytes read");
        // What was carried over from night to night is what is read in the end.
        world.choice.read_all_every = Duration::from_secs(1);
        let proven = world.night();
        assert_quiet(&proven);
        world.assert_holds(&proven);
    }
}

/// What nobody compares with any more is spare for one night; each of its copies is used once, by whoever takes it.
#[test]
fn the_copies_of_the_backup_before_the_last_are_spare() {
    let mut world = world("xfs");
    world.night();
    assert_eq!(reference::spare(&world.record()).len(), 0);
    let first = world.reference();
    world.night();
    let spare = reference::spare(&world.record());
    assert_eq!(spare.len(), 2);
    assert!(first.files.iter().all(|file| spare.get(&file.path) == Some(&file.copy)));
    assert_eq!(world.reference().spare.dirs, first.dirs);

    // Both are cloned over, so what was the second backup's is spare now, and nothing else is left.
    write_at(&world.live.join("a"), &noise(4, 4096), MIB as u64);
    let inode = |copy: &Path| fs::metadata(copy).unwrap().ino();
    let used: Vec<u64> = spare.values().map(|copy| inode(copy)).collect();
    let third = world.night();
    world.assert_holds(&third);
    assert_eq!(third.pages_read(), MIB as u64 + 32768);
    assert!(world.reference().files.iter().all(|file| used.contains(&inode(&file.copy))));
    assert!(spare.values().all(|copy| !copy.exists()));

    // One that is gone is not looked for, and there is nothing to keep where space is short.
    let spare = reference::spare(&world.record());
    spare.values().for_each(|copy| fs::remove_file(copy).unwrap());
    let room = rustix::fs::statvfs(&world.mounted.at).unwrap();
    let most = (room.f_bavail - room.f_blocks / 20) * room.f_frsize;
    let filler = File::create(world.mounted.at.join("filler")).unwrap();
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, most).unwrap();
    assert_eq!(reference::spare(&world.record()).len(), 0);
    let fourth = world.night();
    world.assert_holds(&fourth);
    assert_eq!(world.reference().spare.dirs, Vec::<PathBuf>::new());
    reference::remove(&world.record()).unwrap();
    assert_eq!(fs::read_dir(world.staging()).unwrap().count(), 0);
}

/// What is spare is what the newest backup holds: the next one has only its own changes to clone.
#[test]
fn what_is_spare_is_up_to_date() {
    let mut world = world("xfs");
    let (a, b) = (world.live.join("a"), world.live.join("b"));
    world.night();
    write_at(&a, &noise(4, 4096), 20 * 65536 - 2048);
    write_at(&b, &noise(5, 3 * MIB), 4 * MIB as u64 + 7);
    let second = world.night();
    assert_quiet(&second);
    world.assert_holds(&second);
    for (path, copy) in reference::spare(&world.record()) {
        assert!(fs::read(&path).unwrap() == fs::read(copy).unwrap(), "{}", path.display());
    }
    File::options().write(true).open(&b).unwrap().set_len(6 * MIB as u64 + 5).unwrap();
    let third = world.night();
    world.assert_holds(&third);
    for (path, copy) in reference::spare(&world.record()) {
        assert!(fs::read(&path).unwrap() == fs::read(copy).unwrap(), "shorter: {}", path.display());
    }
}

/// A backup that is stored and never listed has brought up to date what would have been spare: the next one reads these files whole,
/// and says so.
#[test]
fn a_backup_that_is_not_listed_costs_a_reading() {
    let mut world = world("xfs");
    world.choice.read_all_every = Duration::from_secs(86_400 * 365);
    world.night();
    for _ in 0..2 {
        write_at(&world.live.join("a"), &noise(4, 4096), 20 * 65536);
        world.night_not_listed();
        write_at(&world.live.join("a"), &noise(5, 4096), 40 * 65536);
        let next = world.night();
        world.assert_holds(&next);
        assert_eq!(next.pages_read(), 6 * MIB as u64, "only b was not changed by the one before");
        let [told] = &next.draft.problems[..] else { panic!("{:?}", next.draft.problems) };
        assert_eq!(told.effect, Effect::Note);
        assert!(told.what.contains("did not come to its end"), "{told}");
        assert_quiet(&world.night());
    }
}

type Lie = fn(&World, &mut Reference);

/// A reference that is not what it says is of no use, and no harm.
#[test]
fn a_reference_that_proves_nothing_is_read_over() {
    let lies: [(&str, Lie); 8] = [
        ("another backup", |_, reference| {
            reference.backup = model::id::BackupId::new("ab".repeat(32)).unwrap()
        }),
        ("another content", |_, reference| reference.files[0].content = "ab".repeat(32)),
        ("other parts", |_, reference| reference.files[0].blob = 128 << 10),
        ("another inode", |_, reference| reference.files[0].inode += 1),
        ("another time", |_, reference| reference.files[0].ctime -= 1),
        ("another copy", |_, reference| {
            let (a, b) = (reference.files[0].copy.clone(), reference.files[1].copy.clone());
            (reference.files[0].copy, reference.files[1].copy) = (b, a);
        }),
        ("no copies", |_, reference| fs::remove_dir_all(&reference.dirs[0]).unwrap()),
        ("a copy that was written to", |_, reference| write_at(&reference.files[0].copy, b"x", 70_000)),
    ];
    let mut world = world("xfs");
    world.choice.read_all_every = Duration::from_secs(86_400 * 365);
    world.night();
    for (what, lie) in lies {
        let mut reference = world.reference();
        lie(&world, &mut reference);
        fs::write(world.record(), serde_json::to_vec(&reference).unwrap()).unwrap();
        write_at(&world.live.join("a"), &noise(7, 100), 200_000);
        let night = world.night();
        assert!(night.pages_read() >= 6 * MIB as u64, "{what}: {}", night.draft.bytes_read);
        assert!(
            night.draft.problems.iter().all(|problem| problem.effect == Effect::Note),
            "{:?}",
            night.draft.problems
        );
        world.assert_holds(&night);
        assert_eq!(world.night().pages_read(), MIB as u64, "{what}: the next one is good again");
    }
    fs::write(world.record(), b"{").unwrap();
    assert_eq!(world.night().pages_read(), 11 * MIB as u64);
}

/// Whether nothing of a file is in the page cache there.
fn is_cold(path: &Path) -> bool {
    let (file, mut byte) = (File::open(path).unwrap(), [0]);
    let got = preadv2(&file, &mut [IoSliceMut::new(&mut byte)], 700_000, ReadWriteFlags::NOWAIT);
    got == Err(Errno::AGAIN)
}

#[test]
fn what_is_read_and_written_once_is_not_in_the_page_cache() {
    let mut world = world("xfs");
    let night = world.night();
    let copies: Vec<PathBuf> = world.reference().files.into_iter().map(|file| file.copy).collect();
    assert_eq!(copies.len(), 2);
    assert!(copies.iter().all(|copy| is_cold(copy)), "frozen copies");
    world.assert_holds(&night);

    let place = Place::at(tempfile::tempdir_in(&world.mounted.at).unwrap());
    let (id, _) = back_up(&mut place.repository(), &world.live, 1);
    let is_large = |path: &PathBuf| fs::metadata(path).unwrap().len() > 2 * MIB as u64;
    let packs: Vec<PathBuf> = place.files("data").into_iter().filter(is_large).collect();
    assert!(!packs.is_empty() && packs.iter().all(|pack| is_cold(pack)), "{packs:?}");
    let back = place.read_back(&id);
    world.oracle().iter().for_each(|(path, bytes)| assert!(back[path] == *bytes, "{}", path.display()));
}

/// A disk that changes bytes on its own, below all copies of them.
#[test]
fn a_full_reading_finds_what_was_carried_over_and_is_not_there() {
    let mut world = world("xfs");
    let a = world.live.join("a");
    let mark = noise(99, 4096);
    write_at(&a, &mark, 50 * 65536 + 8192);
    File::open(&a).unwrap().sync_all().unwrap();
    world.night();
    flip(&world.mounted.image, &mark);
    fadvise(File::open(&a).unwrap(), 0, None, Advice::DontNeed).unwrap();
    let carried = world.night();
    assert_quiet(&carried);
    assert_eq!(carried.pages_read(), MIB as u64);

    world.choice.read_all_every = Duration::from_secs(1);
    let proven = world.night();
    let [alarm] = &proven.draft.problems[..] else { panic!("{:?}", proven.draft.problems) };
    assert_eq!((alarm.effect, alarm.path.as_deref()), (Effect::Weaker, Some(&*a)));
    assert!(alarm.what.contains(&format!("at bytes {}, are not", 50 * 65536)), "{}", alarm.what);
    assert_eq!(proven.pages_read(), 11 * MIB as u64);
    world.assert_holds(&proven);
    let before = world.place.read_back(&carried.id);
    assert_eq!(&before[&a][50 * 65536 + 8192..][..4096], mark, "the night before has what was first stored");
    assert_quiet(&world.night());
}

/// Turns one byte of these over, wherever they stand.
fn flip(image: &Path, mark: &[u8]) {
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    let length = file.metadata().unwrap().len();
    let mut buffer = vec![0; 4 * MIB];
    let mut found = 0;
    for from in (0..length).step_by(4 * MIB) {
        let got = file.read_at(&mut buffer, from).unwrap();
        for at in (0..got).step_by(512).filter(|at| buffer[*at..].starts_with(&mark[..512])) {
            file.write_all_at(&[mark[100] ^ 1], from + at as u64 + 100).unwrap();
            found += 1;
        }
    }
    assert_eq!(found, 1, "it stands at one place, which all copies share");
    file.sync_all().unwrap();
}

#[test]
fn a_file_with_two_names_is_compared_under_both() {
    let mut world = world("xfs");
    let a = world.live.join("a");
    fs::hard_link(&a, world.live.join("again")).unwrap();
    assert_quiet(&world.night());
    for n in 1..3 {
        write_at(&a, &noise(n, 100), n * 65536);
        let night = world.night();
        assert_quiet(&night);
        assert_eq!(night.pages_read(), MIB as u64 + 2 * 32768);
        assert_eq!(world.reference().files.len(), 3);
        world.assert_holds(&night);
    }
}

/// Nothing is carried over into it, and nothing is missing from the others.
#[test]
fn a_pinned_copy_of_another_length_is_told() {
    let mut world = world("xfs");
    world.night();
    let a = world.live.join("a");
    for length in [4 * MIB, 7 * MIB] {
        let night = world.night_with(|copies| {
            File::options().write(true).open(copies.join("0")).unwrap().set_len(length as u64).unwrap();
        });
        let [lost] = &night.draft.problems[..] else { panic!("{:?}", night.draft.problems) };
        assert_eq!((lost.effect, lost.path.as_deref()), (Effect::Missing, Some(&*a)), "{length}");
        assert!(lost.what.contains("its pinned copy has not the"), "{}", lost.what);
        let whole = world.night();
        assert_quiet(&whole);
        world.assert_holds(&whole);
    }
}

#[test]
fn without_the_choice_nothing_is_kept() {
    let mut world = world("btrfs");
    world.night();
    world.choice.keep = false;
    let night = world.night();
    assert_eq!(night.pages_read(), 11 * MIB as u64);
    reference::remove(&world.record()).unwrap();
    assert!(!world.record().exists());
    world.assert_holds(&night);
}
