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

impl Volume {
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
    /// below it that fills with what is written and stops everybody when it is flushed.
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
