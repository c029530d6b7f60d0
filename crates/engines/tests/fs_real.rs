//! Pins on real XFS and btrfs filesystems, mounted from files. Needs root, loop devices, xfsprogs, btrfs-progs.

mod fs_support;

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use engines::fs::{Form, probe};
use jiff::Timestamp;
use model::{
    entry::{Body, Harvest, Kind},
    id::SourceId,
    known::Known,
    port::{Pinner, Silent},
    problem::Effect,
    undo::Undo,
    verdict::Stillness,
};
use os::{
    extents::{clone_file, clone_range, clone_works, extent_count, map_of, map_within},
    subvolume::{self, is_subvolume},
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use rustix::{fs::Gid, fs::Uid};
use testkit::conformance::pinner::suite;

use fs_support::{
    How, Paper, TreeBench, Vault,
    disk::{Disk, run},
    harvested, live, oracle, plan, settle, snapshot_pinner, soon, tick, tree_pinner,
};

/// Runs something as the user `nobody`: the kernel keeps users by thread.
fn as_nobody<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    let thread = || {
        let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65534));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(Some(group), Some(group), Some(group)).unwrap();
        set_thread_res_uid(Some(user), Some(user), Some(user)).unwrap();
        what()
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap())
}

fn bench(how: How, disk: &Disk) -> TreeBench {
    let dir = tempfile::tempdir_in(disk.path()).unwrap();
    if how == How::Snapshot {
        run("btrfs", &["-q", "subvolume", "create", dir.path().join("root").to_str().unwrap()]);
    }
    TreeBench::new(how, dir)
}

/// Prepares and pins; hands over what is stored, while the pin is there.
fn pinned<T>(pinner: &mut dyn Pinner, then: impl FnOnce(&Harvest, &Vault, &Stillness) -> T) -> T {
    let mut vault = Vault::default();
    vault.store_ahead(pinner.prepare(&Known::default()).unwrap());
    tick();
    let mut pin = pinner.pin(soon()).unwrap();
    let stillness = pin.unchanged(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    let result = then(&harvest, &vault, &stillness);
    pin.release().unwrap();
    result
}

fn missing(harvest: &Harvest) -> Vec<&Path> {
    let missing = harvest.problems.iter().filter(|p| p.effect == Effect::Missing);
    missing.filter_map(|p| p.path.as_deref()).collect()
}

#[test]
fn the_fast_form_is_a_pinner() {
    for (filesystem, options) in [("xfs", "rw"), ("btrfs", "rw"), ("btrfs", "compress-force=zstd")] {
        let disk = Disk::new(filesystem, options);
        suite(|| Box::new(bench(How::Fast, &disk)));
    }
}

#[test]
fn a_snapshot_is_a_pinner() {
    let disk = Disk::new("btrfs", "rw");
    suite(|| Box::new(bench(How::Snapshot, &disk)));
}

#[test]
fn the_fast_form_pins_the_tree_of_the_pin() {
    for (filesystem, options) in [("xfs", "rw"), ("btrfs", "rw"), ("btrfs", "compress-force=zstd")] {
        let disk = Disk::new(filesystem, options);
        oracle::run(&disk.path(), Form::Fast, 30);
    }
}

#[test]
fn clones_of_large_files_are_brought_up_to_date() {
    for (filesystem, options) in [("xfs", "rw"), ("btrfs", "rw"), ("btrfs", "compress-force=zstd")] {
        let disk = Disk::new(filesystem, options);
        let root = disk.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut file = fs::File::create(root.join("large")).unwrap();
        file.write_all(&vec![1; 32 << 20]).unwrap();
        let paper = Arc::new(Paper::default());
        let mut pinner = tree_pinner(&plan(&root), Form::Fast, &disk.path().join("s"), &paper);
        assert_eq!(pinner.prepare(&Known::default()).unwrap(), None);
        // In the middle, over a border of blocks, a hole, a tail that ends within a block; then shorter.
        let steps: [&dyn Fn(&mut fs::File); 4] = [
            &|f| {
                f.seek(SeekFrom::Start((9 << 20) + 4090)).unwrap();
                f.write_all(&[2; 100]).unwrap();
            },
            &|f| {
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(f, flags, 5 << 20, 1 << 20).unwrap();
            },
            &|f| {
                f.seek(SeekFrom::End(0)).unwrap();
                f.write_all(&[3; 12_345]).unwrap();
            },
            &|f| f.set_len((20 << 20) + 7).unwrap(),
        ];
        for step in steps {
            step(&mut file);
            tick();
            let mut pin = pinner.pin(soon()).unwrap();
            assert!(matches!(pin.unchanged(soon()).unwrap(), Stillness::NothingChanged(_)));
            let copy =
                fs::read_dir(disk.path().join("s")).unwrap().next().unwrap().unwrap().path().join("0/0");
            assert!(
                fs::read(copy).unwrap() == fs::read(root.join("large")).unwrap(),
                "{filesystem} {options}"
            );
            pin.release().unwrap();
        }
    }
}

#[test]
fn extents_tell_what_differs() {
    let disk = Disk::new("xfs", "rw");
    let open = |name: &str| {
        fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(disk.path().join(name))
            .unwrap()
    };
    let (mut live, clone) = (open("live"), open("clone"));
    live.write_all(&vec![1; 1 << 20]).unwrap();
    clone_file(&live, &clone).unwrap();
    let before = map_of(&clone).unwrap();
    assert_eq!(map_of(&live).unwrap().differing_from(&before), []);
    assert_eq!(extent_count(&live).unwrap(), Some(1));
    live.seek(SeekFrom::Start(8192)).unwrap();
    live.write_all(&[2; 10]).unwrap();
    let ranges = map_of(&live).unwrap().differing_from(&before);
    let [range] = &ranges[..] else { panic!() };
    assert!(range.start <= 8192 && range.end >= 8202 && range.end - range.start <= 128 << 10, "{range:?}");
    clone_range(&live, &clone, range.clone()).unwrap();
    let after = map_of(&clone).unwrap();
    assert!(before.holds_outside(&ranges, &after) && !before.holds_outside(&[], &after));
    live.set_len(3 << 20).unwrap();
    let ranges = map_of(&live).unwrap().differing_from(&after);
    assert!(
        matches!(&ranges[..], [range] if *range == (1 << 20..3 << 20)),
        "what the other lacks: {ranges:?}"
    );
    for part in [1 << 20..2 << 20, 4096..12288, 0..3 << 20] {
        let within = map_within(&live, &[0..4096, part.clone()]).unwrap();
        let unknown = map_of(&live).unwrap().differing_from(&within);
        let is_outside = |range: &Range<u64>| range.end <= part.start || range.start >= part.end;
        assert!(
            unknown.iter().all(|range| is_outside(range) && range.start >= 4096),
            "{unknown:?}, {part:?}"
        );
    }
    assert!(clone_works(&disk.path(), &disk.path()));
    assert!(!clone_works(&disk.path(), disk.dir.path()));
}

/// How many files there are in the directories below this one.
fn files_below(dir: &Path) -> usize {
    let dirs = fs::read_dir(dir).unwrap().flatten();
    dirs.map(|dir| fs::read_dir(dir.path()).unwrap().count()).sum()
}

#[test]
fn what_is_cloned_ahead_is_pinned_as_it_is_at_the_pin() {
    let disk = Disk::new("xfs", "rw");
    let root = disk.path().join("root");
    fs::create_dir(&root).unwrap();
    for name in ["same", "known", "changed", "removed"] {
        fs::write(root.join(name), vec![b'1'; 256 << 10]).unwrap();
    }
    settle();
    let (paper, long_ago) = (Arc::new(Paper::default()), Timestamp::UNIX_EPOCH);
    let mut pinner = tree_pinner(&plan(&root), Form::Fast, &disk.path().join("s"), &paper);
    let copies = || -> usize {
        fs::read_dir(disk.path().join("s")).unwrap().flatten().map(|dir| files_below(&dir.path())).sum()
    };
    pinner.look_ahead(Some(Timestamp::now()));
    assert_eq!(copies(), 0, "all of it is older than that");
    pinner.look_ahead(Some(long_ago));
    assert_eq!(copies(), 4);
    fs::write(root.join("changed"), vec![b'2'; 300 << 10]).unwrap();
    fs::remove_file(root.join("removed")).unwrap();
    fs::write(root.join("new"), vec![b'3'; 200 << 10]).unwrap();
    pinned(&mut pinner, |harvest, vault, stillness| {
        assert!(matches!(stillness, Stillness::NothingChanged(_)), "{stillness:?}");
        assert_eq!(missing(harvest), Vec::<&Path>::new());
        assert_eq!(harvested(&root, harvest, vault), live(&root));
    });
    drop(pinner);
    assert_eq!(paper.open(), []);
}

/// What nobody needs any more is cloned over, if it is a copy of ours and lies where it can be.
#[test]
fn spare_copies_are_cloned_over() {
    for filesystem in ["xfs", "btrfs"] {
        let disk = Disk::new(filesystem, "rw");
        let (root, spare) = (disk.path().join("root"), disk.path().join(".stillpoint-reference-x"));
        [&root, &spare].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let names = ["same", "changed", "shorter", "longer", "punched", "linked", "named", "other", "gone"];
        for (name, kept) in names.iter().map(|name| (name, spare.join(name))) {
            fs::write(root.join(name), vec![b'1'; 4 << 20]).unwrap();
            clone_file(&fs::File::open(root.join(name)).unwrap(), &fs::File::create(&kept).unwrap()).unwrap();
            fs::set_permissions(kept, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let live = |name: &str| fs::File::options().write(true).open(root.join(name)).unwrap();
        for name in ["changed", "linked", "named"] {
            let mut file = live(name);
            file.seek(SeekFrom::Start((1 << 20) + 10)).unwrap();
            file.write_all(&[2; 5000]).unwrap();
        }
        live("shorter").set_len((3 << 20) + 7).unwrap();
        live("longer").set_len((5 << 20) + 7).unwrap();
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(live("punched"), flags, 1 << 20, 1 << 20).unwrap();
        // Not such as we leave them.
        fs::remove_file(spare.join("linked")).unwrap();
        std::os::unix::fs::symlink(root.join("other"), spare.join("linked")).unwrap();
        fs::hard_link(spare.join("named"), disk.path().join("named")).unwrap();
        fs::set_permissions(spare.join("other"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::remove_file(spare.join("gone")).unwrap();
        settle();

        let paper = Arc::new(Paper::default());
        let mut pinner = tree_pinner(&plan(&root), Form::Fast, &disk.path().join("s"), &paper);
        pinner.reuse(Arc::new(names.map(|name| (root.join(name), spare.join(name))).into()));
        let mut left = vec!["linked", "named", "other"];
        if filesystem == "btrfs" {
            // There a clone over an older one costs no less than a new one.
            left.extend(["same", "changed", "shorter", "longer", "punched"]);
        }
        pinned(&mut pinner, |harvest, vault, stillness| {
            assert!(matches!(stillness, Stillness::NothingChanged(_)), "{stillness:?}");
            assert_eq!(missing(harvest), Vec::<&Path>::new());
            assert_eq!(harvested(&root, harvest, vault), self::live(&root));
            let there = |name: &&&str| spare.join(name).symlink_metadata().is_ok();
            let mut found: Vec<&str> = names.iter().filter(there).copied().collect();
            found.sort_unstable();
            left.sort_unstable();
            assert_eq!(found, left, "{filesystem}");
        });
        assert!(fs::read(disk.path().join("named")).unwrap() == vec![b'1'; 4 << 20]);
        drop(pinner);
        assert_eq!(paper.open(), []);
    }
}

#[test]
fn a_nested_mount_is_stored_and_a_circle_is_not_followed() {
    let disk = Disk::new("xfs", "rw");
    let root = disk.path().join("root");
    for name in ["inner", "circle", "proc"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    run("mount", &["-t", "tmpfs", "none", root.join("inner").to_str().unwrap()]);
    run("mount", &["--bind", root.to_str().unwrap(), root.join("circle").to_str().unwrap()]);
    run("mount", &["-t", "proc", "none", root.join("proc").to_str().unwrap()]);
    fs::write(root.join("inner/file"), b"on another filesystem").unwrap();
    fs::write(root.join("file"), b"here").unwrap();
    for settled in [false, true] {
        if settled {
            settle();
        }
        let paper = Arc::new(Paper::default());
        let mut pinner = tree_pinner(&plan(&root), Form::Fast, &disk.path().join("s"), &paper);
        pinned(&mut pinner, |harvest, vault, stillness| {
            assert!(matches!(stillness, Stillness::NothingChanged(_)), "{stillness:?}");
            let tree = harvested(&root, harvest, vault);
            let content = |name: &str| tree[Path::new(name)].content.clone().unwrap();
            assert_eq!(content("inner/file"), b"on another filesystem");
            assert_eq!(content("file"), b"here");
            assert!(!tree.contains_key(Path::new("circle/file")) && !tree.contains_key(Path::new("proc/1")));
            let noted: Vec<_> = harvest.problems.iter().filter_map(|p| p.path.clone()).collect();
            assert_eq!(noted, [root.join("circle"), root.join("proc")]);
            assert!(harvest.problems.iter().all(|p| p.effect == Effect::Note));
        });
    }
}

#[test]
fn what_an_ordinary_user_may_not_read_is_missing() {
    let disk = Disk::new("xfs", "rw");
    let root = disk.path().join("root");
    fs::create_dir_all(root.join("closed")).unwrap();
    for name in ["open", "secret", "closed/inside"] {
        fs::write(root.join(name), name).unwrap();
    }
    fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    let staging = disk.path().join("s");
    fs::create_dir(&staging).unwrap();
    chown(&staging, Some(65534), Some(65534)).unwrap();
    for form in [Form::Fast, Form::Plain] {
        as_nobody(|| {
            let paper = Arc::new(Paper::default());
            let mut pinner = tree_pinner(&plan(&root), form, &staging, &paper);
            pinned(&mut pinner, |harvest, vault, _| {
                assert_eq!(missing(harvest), [root.join("closed"), root.join("secret")], "{form:?}");
                let remedies =
                    harvest.problems.iter().all(|p| p.remedy.contains("run as a user that can read"));
                assert!(remedies, "{:?}", harvest.problems);
                let names: Vec<_> = harvested(&root, harvest, vault).into_keys().collect();
                assert_eq!(names, ["", "closed", "open"].map(PathBuf::from));
            });
        });
    }
}

#[test]
fn nested_subvolumes_are_pinned_too() {
    let disk = Disk::new("btrfs", "rw");
    let root = disk.path().join("root");
    let create = |path: &Path| run("btrfs", &["-q", "subvolume", "create", path.to_str().unwrap()]);
    create(&root);
    create(&root.join("inner"));
    fs::write(root.join("outer file"), b"outer").unwrap();
    fs::write(root.join("inner/file"), b"inner").unwrap();
    let facts = probe(&SourceId::new("directory", "x"), &root, &[], Path::new("/nonexistent"));
    assert_eq!(facts.nested_subvolumes, [root.join("inner")]);
    let paper = Arc::new(Paper::default());
    let mut pinner = snapshot_pinner(&plan(&root), &disk.path(), &paper);
    pinned(&mut pinner, |harvest, vault, stillness| {
        assert!(matches!(stillness, Stillness::NothingChanged(_)), "{stillness:?}");
        assert!(harvest.problems.is_empty(), "{:?}", harvest.problems);
        assert_eq!(harvested(&root, harvest, vault), live(&root));
        let inner = harvest.entries.iter().find(|e| e.path == root.join("inner/file")).unwrap();
        let meta = fs::metadata(root.join("inner/file")).unwrap();
        assert_eq!((inner.meta.inode, inner.meta.device), (meta.ino(), meta.dev()));
    });
    assert!(paper.open().is_empty());

    pinner.prepare(&Known::default()).unwrap();
    create(&root.join("late"));
    tick();
    let mut pin = pinner.pin(soon()).unwrap();
    fs::write(root.join("inner/file"), b"other").unwrap();
    assert!(matches!(pin.unchanged(soon()).unwrap(), Stillness::NotShown(_)));
    let harvest = pin.harvest(&Silent).unwrap();
    assert_eq!(missing(&harvest), [root.join("late")]);
    let inner = harvest.entries.iter().find(|e| e.path == root.join("inner/file")).unwrap();
    let Body::At(path) = &inner.body else { panic!("{:?}", inner.body) };
    assert_eq!(fs::read(path).unwrap(), b"inner");
}

#[test]
fn a_mount_inside_a_snapshot_is_missing() {
    let disk = Disk::new("btrfs", "rw");
    let root = disk.path().join("root");
    run("btrfs", &["-q", "subvolume", "create", root.to_str().unwrap()]);
    fs::create_dir(root.join("inner")).unwrap();
    run("mount", &["-t", "tmpfs", "none", root.join("inner").to_str().unwrap()]);
    let facts = probe(&SourceId::new("directory", "x"), &root, &[], Path::new("/nonexistent"));
    assert!(!facts.subvolume && facts.reflink, "two passes hold it: {facts:?}");
    let mut pinner = snapshot_pinner(&plan(&root), &disk.path(), &Arc::default());
    pinned(&mut pinner, |harvest, _, _| assert_eq!(missing(harvest), [root.join("inner")]));
}

#[test]
fn known_files_of_a_snapshot_are_carried() {
    let disk = Disk::new("btrfs", "rw");
    let root = disk.path().join("root");
    run("btrfs", &["-q", "subvolume", "create", root.to_str().unwrap()]);
    for name in ["known", "new"] {
        fs::write(root.join(name), name).unwrap();
    }
    let mut known = Known::default();
    known.insert(&root.join("known"), fs_support::stamp(&root.join("known")).unwrap());
    let mut pinner = snapshot_pinner(&plan(&root), &disk.path(), &Arc::default());
    pinner.prepare(&known).unwrap();
    let mut pin = pinner.pin(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    let carried = |e: &&model::entry::Entry| e.kind == Kind::File && e.body == Body::Carried;
    let carried: Vec<_> = harvest.entries.iter().filter(carried).map(|e| e.path.clone()).collect();
    assert_eq!(carried, [root.join("known")]);
}

#[test]
fn an_ordinary_user_pins_and_removes_an_own_subvolume() {
    for (options, may) in [("rw", false), ("user_subvol_rm_allowed", true)] {
        let disk = Disk::new("btrfs", options);
        let root = disk.path().join("root");
        run("btrfs", &["-q", "subvolume", "create", root.to_str().unwrap()]);
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/file"), b"x").unwrap();
        for path in ["", "d", "d/file"] {
            chown(root.join(path), Some(65534), Some(65534)).unwrap();
        }
        chown(disk.path(), Some(65534), Some(65534)).unwrap();
        as_nobody(|| {
            let facts = probe(&SourceId::new("directory", "x"), &root, &[], Path::new("/nonexistent"));
            assert_eq!((facts.subvolume, facts.refusal), (may, None), "{options}");
            assert_eq!(facts.staging.as_deref(), Some(&*disk.path()));
            let paper = Arc::new(Paper::default());
            let mut pinner = snapshot_pinner(&plan(&root), &disk.path(), &paper);
            pinner.prepare(&Known::default()).unwrap();
            let pin = pinner.pin(soon()).unwrap();
            let [Undo::DeleteSubvolume { path }] = &paper.open()[..] else { panic!("{:?}", paper.open()) };
            assert!(is_subvolume(path).unwrap());
            fs::write(path.join("d/file"), b"y").unwrap_err();
            pin.release().unwrap();
            assert!(!path.exists());
            assert!(paper.open().is_empty());
            subvolume::delete(path).unwrap();
        });
    }
}

#[test]
fn files_without_copy_on_write_are_cloned_too() {
    let disk = Disk::new("btrfs", "rw");
    let root = disk.path().join("root");
    fs::create_dir(&root).unwrap();
    run("chattr", &["+C", root.to_str().unwrap()]);
    fs::write(root.join("file"), vec![5; 200_000]).unwrap();
    let mut pinner = tree_pinner(&plan(&root), Form::Fast, &disk.path().join("s"), &Arc::default());
    assert_eq!(pinner.prepare(&Known::default()).unwrap(), None, "nothing has to be stored ahead");
    tick();
    let mut pin = pinner.pin(soon()).unwrap();
    let harvest = pin.harvest(&Silent).unwrap();
    assert_eq!(harvested(&root, &harvest, &Vault::default()), live(&root));
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let disk = Disk::new("xfs", "rw");
    let status = rustix::fs::statvfs(disk.path()).unwrap();
    let filler = fs::File::create(disk.path().join("filler")).unwrap();
    let most = status.f_bavail * status.f_frsize - (20 << 20);
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, most).unwrap();
    let source = tempfile::tempdir().unwrap();
    let paper = Arc::new(Paper::default());
    let mut pinner = tree_pinner(&plan(source.path()), Form::Plain, &disk.path(), &paper);
    pinner.prepare(&Known::default()).unwrap();
    fs::write(source.path().join("large"), vec![1; 40 << 20]).unwrap();
    let failure = pinner.pin(soon()).err().expect("20 MiB do not hold 40");
    assert_eq!(failure.kind, model::port::FailureKind::NoSpace, "{}", failure.in_full());
    drop(pinner);
    assert!(paper.open().is_empty());
}
