//! A pinned copy's original is read in its place while it is what was pinned: what is stored is what was pinned, whatever
//! happens to the original meanwhile, and what is in memory there is not fetched from the disk. Needs root.
#![allow(clippy::print_stdout, reason = "figures are for whoever reads the test's output")]

mod common;
#[allow(dead_code, reason = "other tests need more of it")]
mod extents_support;

use std::{
    fs::{self, File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    ptr, slice,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use common::{cut, entry, noise, ok, record};
use extents_support::World;
use jiff::Timestamp;
use model::{
    entry::{Body, Manifest, SETTLING},
    id::{BackupId, Relpath},
    port::{Silent, Store},
};
use vault::{reference::Referencing, repository::Repository};

const MIB: usize = 1 << 20;
const SIZE: usize = 16 * MIB;
/// What this process reads is counted: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Pins the live files, lets something happen, and stores what was pinned. The backup, and how many bytes came from disks.
fn night(world: &World, nth: u8, meanwhile: impl FnOnce(&AtomicBool) + Send) -> (BackupId, u64) {
    let (id, from_disk, _) = night_in(world, nth, &mut world.place.repository(), meanwhile);
    (id, from_disk)
}

/// The same in an open repository; also, how many bytes of the files were read.
fn night_in(
    world: &World,
    nth: u8,
    repository: &mut Repository,
    meanwhile: impl FnOnce(&AtomicBool) + Send,
) -> (BackupId, u64, u64) {
    let (staging, mut entries) = world.pin();
    for found in &mut entries {
        // The true times, and the copies where there is one.
        let body = found.body.clone();
        *found = entry(&found.path, |_| body.clone()).unwrap();
        assert!(!matches!(found.body, Body::Carried));
    }
    let manifest = Manifest::merge(Timestamp::now(), entries);
    let cut = cut(nth, &world.live);
    let stop = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        scope.spawn(|| meanwhile(&stop));
        // Whoever disturbs has begun.
        thread::sleep(Duration::from_millis(20));
        let before = from_disk();
        let draft = ok(repository.store(Arc::new(manifest), &cut, &Silent));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(draft.problems, []);
        let id = ok(repository.publish(draft.clone(), &record(&cut, &draft)));
        (id, from_disk() - before, draft.bytes_read.0)
    });
    staging.release().unwrap();
    done
}

/// A repository that keeps the copies of one night for the next.
fn keeping(world: &World, nth: u8) -> Repository {
    let mut repository = world.place.repository();
    repository.use_reference(Referencing {
        record: world.record(),
        relpath: Relpath::new("demo.softxs.ch/hydro").unwrap(),
        choice: world.choice,
        now: cut(nth, &world.live).cut_at,
    });
    repository
}

/// Changes every second 64 KiB of the table, lets it settle, and hands over what it is then.
fn changed_by_half(path: &Path, nth: u8) -> Vec<u8> {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for at in (64 << 10..SIZE).step_by(128 << 10) {
        file.write_all_at(&[nth; 64 << 10], at as u64).unwrap();
    }
    file.sync_all().unwrap();
    thread::sleep(SETTLING + Duration::from_millis(50));
    fs::read(path).unwrap()
}

/// Bytes that this process has had fetched from disks.
fn from_disk() -> u64 {
    io_of("read_bytes: ")
}

/// A counter of proc(5), `io`.
fn io_of(name: &str) -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

/// A file of pages whose stamp can be trusted, in memory and on disk.
fn settled(world: &World, seed: u64) -> Vec<u8> {
    let path = world.write("table", &noise(seed, SIZE));
    File::open(&path).unwrap().sync_all().unwrap();
    thread::sleep(SETTLING + Duration::from_millis(50));
    fs::read(path).unwrap()
}

/// Writes on and on into random places behind the first page, until told to stop.
fn while_not(stop: &AtomicBool, mut write: impl FnMut(usize)) {
    let mut at = 12345_usize;
    while !stop.load(Ordering::Relaxed) {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        write(4096 + (at >> 16) % (SIZE - 3 * 4096));
    }
}

fn by_write(path: &Path, stop: &AtomicBool) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    while_not(stop, |at| file.write_all_at(b"something else", at as u64).unwrap());
}

fn by_map(path: &Path, stop: &AtomicBool) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of SIZE bytes of a file that is longer.
    let map = unsafe { libc::mmap(ptr::null_mut(), SIZE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: SIZE bytes that stay mapped until below; other processes only read them.
    let bytes = unsafe { slice::from_raw_parts_mut(map.cast::<u8>(), SIZE) };
    while_not(stop, |at| bytes[at] ^= 0x55);
    // SAFETY: the mapping from above, which nothing uses any more.
    assert_eq!(unsafe { libc::munmap(map, SIZE) }, 0);
}

/// Past the page cache, as InnoDB does.
fn by_direct(path: &Path, stop: &AtomicBool) {
    use std::os::unix::fs::OpenOptionsExt;
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let memory = vec![0x5a; 3 * 4096];
    let begin = memory.as_ptr().align_offset(4096);
    while_not(stop, |at| file.write_all_at(&memory[begin..begin + 4096], (at / 4096 * 4096) as u64).unwrap());
}

/// With the time of change put back.
fn by_stealth(path: &Path, stop: &AtomicBool) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    while_not(stop, |at| {
        file.write_all_at(b"nothing happened", at as u64).unwrap();
        file.set_modified(modified).unwrap();
    });
}

#[test]
fn what_is_stored_is_what_was_pinned() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    type Writer = fn(&Path, &AtomicBool);
    let writers: [(&str, Writer); 4] =
        [("write", by_write), ("map", by_map), ("direct", by_direct), ("stealth", by_stealth)];
    // From the beginning, or when some of it was read.
    let read = 2 * MIB as u64;
    for (kind, writers, when) in [("xfs", &writers[..], &[0, read][..]), ("btrfs", &writers[..2], &[read])] {
        let world = World::new(kind);
        let (mut nth, path) = (0, world.live.join("table"));
        for (name, writer) in writers {
            for &late in when {
                nth += 1;
                let oracle = settled(&world, u64::from(nth));
                let began = AtomicU64::new(0);
                let (id, _) = night(&world, nth, |stop| {
                    let read = io_of("rchar: ");
                    while io_of("rchar: ") - read < late && !stop.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                    began.fetch_add(1, Ordering::Relaxed);
                    writer(&path, stop);
                });
                assert_eq!(began.into_inner(), 1);
                let stored = world.place.read_back(&id);
                assert!(stored[&path] == oracle, "{kind}, {name}, after {late} bytes");
                assert!(fs::read(&path).unwrap() != oracle, "{kind}, {name}: nobody wrote");
            }
        }
    }
}

/// Only the chunks that changed since the night before are read, and these from the original too.
#[test]
fn of_what_changed_that_is_stored_which_was_pinned() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::new("xfs");
    let path = world.live.join("table");
    settled(&world, 1);
    night_in(&world, 1, &mut keeping(&world, 1), |_| {});
    for (nth, writer) in [(2, Some(by_write as fn(&Path, &AtomicBool))), (3, Some(by_map)), (4, None)] {
        let oracle = changed_by_half(&path, nth);
        let (id, from_disk, read) = night_in(&world, nth, &mut keeping(&world, nth), |stop| {
            if let Some(writer) = writer {
                writer(&path, stop);
            }
        });
        println!("{read} bytes were read, {from_disk} of them from the disk");
        assert!(world.place.read_back(&id)[&path] == oracle, "night {nth}");
        if writer.is_some() {
            assert!(fs::read(&path).unwrap() != oracle, "nobody wrote in night {nth}");
        } else {
            assert!(from_disk < SIZE as u64 / 4, "{from_disk} bytes were fetched from the disk");
        }
        assert!(nth > 2 || read < SIZE as u64 * 3 / 4, "{read} bytes were read in night {nth}");
    }
}

#[test]
fn what_is_in_memory_is_not_fetched_from_the_disk() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in ["xfs", "btrfs"] {
        let world = World::new(kind);
        let oracle = settled(&world, 1);
        let (id, read) = night(&world, 1, |_| {});
        println!("{kind}: {} KiB of {} KiB were fetched from the disk", read >> 10, SIZE >> 10);
        assert!(world.place.read_back(&id)[&world.live.join("table")] == oracle);
        assert!(read < SIZE as u64 / 2, "{kind}: {read} bytes were fetched from the disk");
    }
}
