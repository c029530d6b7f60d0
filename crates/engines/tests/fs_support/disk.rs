//! Filesystems in files. Needs root and loop devices.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

/// Runs a program that has to succeed.
pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
}

/// A filesystem of 600 MiB in a file, unmounted at the end.
pub struct Disk {
    pub dir: tempfile::TempDir,
}

impl Disk {
    pub fn new(filesystem: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(600 << 20).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        run(&format!("mkfs.{filesystem}"), &["-q", image.to_str().unwrap()]);
        let disk = Self { dir };
        fs::create_dir(disk.path()).unwrap();
        run(
            "mount",
            &["-o", &format!("loop,{options}"), image.to_str().unwrap(), disk.path().to_str().unwrap()],
        );
        disk
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let point = self.path();
        let unmounted = Command::new("umount").args(["-R"]).arg(&point).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").args(["-R", "-l"]).arg(&point).status();
        }
    }
}
