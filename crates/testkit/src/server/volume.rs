//! A filesystem of one's own, on a loop device.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::process::run;

/// A filesystem in an image file, mounted until dropped. Needs root.
pub struct Volume {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

/// What must be free in memory for an image there: many times what the images of all tests at once hold.
const MEMORY: u64 = 8 << 30;
/// What an image is written by; in bytes.
const DISK_PIECE: u64 = 8 << 20;

impl Volume {
    /// The same as [`Self::new`], for tests of what is done and not of how fast: the image lies in memory if there is plenty,
    /// where nobody waits for a disk at each `fsync` of a server. No test takes the power away, so nothing is lost.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn for_test(kind: &str, bytes: u64, below: &Path) -> Self {
        let memory = Path::new("/dev/shm");
        Self::new(kind, bytes, if free_memory() > MEMORY && free(memory) > MEMORY { memory } else { below })
    }

    /// Makes and mounts a filesystem of this kind (`xfs`, `btrfs`, `ext4`) and size in bytes. The image is sparse
    /// and lies below `below`.
    ///
    /// # Panics
    /// If the filesystem cannot be made or mounted: tests do not skip.
    #[must_use]
    pub fn new(kind: &str, bytes: u64, below: &Path) -> Self {
        Self::made(kind, bytes, below, false)
    }

    /// The same, written past the cache of the filesystem that the image lies on: as a disk, it has no other memory
    /// below it that fills with what is written and stops everybody when it is flushed. It takes all of its room at once.
    ///
    /// # Panics
    /// As [`Self::new`], and if the device cannot do that.
    #[must_use]
    pub fn like_a_disk(kind: &str, bytes: u64, below: &Path) -> Self {
        Self::made(kind, bytes, below, true)
    }

    fn made(kind: &str, bytes: u64, below: &Path, is_direct: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("volume-").tempdir_in(below).expect("a directory");
        let (image, at) = (dir.path().join("image"), dir.path().join("mnt"));
        fs::create_dir(&at).expect("a mount point");
        fs::File::create(&image).expect("an image").set_len(bytes).expect("its size");
        if is_direct {
            // What is written to a disk for the first time takes no longer than later: no room has to be found for it first.
            let whole = bytes.div_ceil(DISK_PIECE).to_string();
            let (piece, count, to) =
                (format!("bs={DISK_PIECE}"), format!("count={whole}"), format!("of={}", image.display()));
            let how = ["if=/dev/zero", "oflag=direct", "conv=notrunc,fsync", "status=none"];
            run(Command::new("dd").args(how).args([to, piece, count])).expect("the image is written");
        }
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image)).expect("mkfs");
        if is_direct {
            let device = ["--find", "--show", "--direct-io=on"];
            let device = run(Command::new("losetup").args(device).arg(&image)).expect("a loop device");
            let device = device.trim();
            run(Command::new("mount").arg(device).arg(&at)).expect("mount");
            let facts = run(Command::new("losetup").args(["--noheadings", "--output", "DIO", device]));
            assert_eq!(facts.expect("its facts").trim(), "1", "{device} writes past the cache");
            // It goes when it is not mounted any more.
            run(Command::new("losetup").args(["--detach", device])).expect("it is let go");
        } else {
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at)).expect("mount");
        }
        super::process::open_the_way(&at);
        Self { at, _dir: dir }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Makes a directory on it; on btrfs a subvolume, so that it can be snapshot by itself.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.at.join(name);
        let btrfs = run(Command::new("stat").args(["-f", "-c", "%T"]).arg(&self.at)).expect("stat");
        if btrfs.trim() == "btrfs" {
            run(Command::new("btrfs").args(["subvolume", "create"]).arg(&path)).expect("a subvolume");
        } else {
            fs::create_dir(&path).expect("a directory");
        }
        path
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Whatever still holds a file of it open ends soon after; the lazy form is for a test that failed.
        if run(Command::new("umount").arg(&self.at)).is_err() {
            let _ = run(Command::new("umount").arg("-l").arg(&self.at));
        }
    }
}

/// Bytes that the kernel says are available: proc(5).
fn free_memory() -> u64 {
    let facts = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = facts.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

/// Bytes that are free on a filesystem in memory; none if it is not one.
fn free(at: &Path) -> u64 {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let kind = rustix::fs::statfs(at).map_or(0, |facts| facts.f_type.cast_unsigned());
    let facts = rustix::fs::statvfs(at);
    facts.map_or(0, |facts| if kind == TMPFS_MAGIC { facts.f_bavail * facts.f_frsize } else { 0 })
}
