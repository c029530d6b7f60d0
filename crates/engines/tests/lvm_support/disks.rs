//! Volume groups, logical volumes with filesystems, and what is left of them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

pub const MIB: u64 = 1 << 20;

/// Runs a program that has to succeed; what it printed.
pub fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A volume group on empty disks. Gone at the end, with all that is in it.
pub struct Group {
    pub name: String,
}

impl Group {
    /// A new volume group with another name than any before.
    pub fn new(disks: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("group-{}", NEXT.fetch_add(1, Ordering::SeqCst));
        output("vgcreate", &[&["-q", &name], disks].concat());
        Self { name }
    }

    /// The snapshots in it that we made.
    pub fn snapshots(&self) -> Vec<String> {
        snapshots(&self.name)
    }

    /// Leaves only so much free.
    pub fn leave_free(&self, mebibytes: u64) {
        let report =
            output("vgs", &["--noheadings", "--units", "m", "--nosuffix", "-o", "vg_free", &self.name]);
        let free = report.trim().split('.').next().unwrap().parse::<u64>().unwrap();
        let size = format!("{}m", free - mebibytes);
        output("lvcreate", &["-q", "-an", "-Zn", "-L", &size, "-n", "filler", &self.name]);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for point in ours_mounted() {
            let _ = Command::new("umount").arg("-l").arg(point).status();
        }
        let removed = Command::new("vgremove").args(["-q", "-ff", "-y", &self.name]).output().unwrap();
        let error = String::from_utf8_lossy(&removed.stderr);
        assert!(removed.status.success() || std::thread::panicking(), "{}: {error}", self.name);
    }
}

/// The snapshots in a group that we made.
pub fn snapshots(group: &str) -> Vec<String> {
    let report = output("lvs", &["--noheadings", "-o", "lv_name", group]);
    let names = report.lines().map(|line| line.trim().to_owned());
    names.filter(|name| name.starts_with("stillpoint-")).collect()
}

/// The size of a logical volume in bytes.
pub fn size(group: &str, name: &str) -> u64 {
    number("lvs", "lv_size", &format!("{group}/{name}"))
}

fn number(program: &str, field: &str, of: &str) -> u64 {
    output(program, &["--noheadings", "--units", "b", "--nosuffix", "-o", field, of]).trim().parse().unwrap()
}

/// Fills the pool of a thin volume to so many percent, by another volume in it.
pub fn fill_pool(volume: &Volume, percent: u64) {
    let pool = format!("{}/{}-pool", volume.group, volume.name);
    output("lvcreate", &["-q", "-y", "-V", "1g", "-T", &pool, "-n", "other"]);
    let mut other = fs::File::options().write(true).open(format!("/dev/{}/other", volume.group)).unwrap();
    let size = number("lvs", "lv_size", &pool);
    // It says a hundredth of a percent.
    let used = output("lvs", &["--noheadings", "-o", "data_percent", &pool]).trim().replace('.', "");
    let missing = size * percent / 100 - size * used.parse::<u64>().unwrap() / 10_000;
    other.write_all(&vec![1; usize::try_from(missing).unwrap()]).unwrap();
    other.sync_data().unwrap();
}

/// Mount points that we made, anywhere.
pub fn ours_mounted() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts.lines().map(|line| PathBuf::from(line.split(' ').nth(1).unwrap()));
    points.filter(|point| point.to_string_lossy().contains(".stillpoint-")).collect()
}

/// The line of `/proc/self/mounts` of a mount point.
pub fn mount_line(point: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut lines = mounts.lines().filter(|line| line.split(' ').nth(1) == point.to_str());
    lines.next_back().unwrap_or_else(|| panic!("{} is not mounted", point.display())).to_owned()
}

/// How a logical volume is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Classic,
    /// In a new thin pool of so many MiB.
    Thin(u64),
}

/// A mounted logical volume.
pub struct Volume {
    pub group: String,
    pub name: String,
    pub filesystem: &'static str,
    make: Make,
    dir: tempfile::TempDir,
}

impl Volume {
    pub fn new(group: &Group, name: &str, make: Make, mebibytes: u64, filesystem: &'static str) -> Self {
        let size = format!("{mebibytes}m");
        match make {
            Make::Classic => {
                output("lvcreate", &["-q", "-y", "-Wy", "-L", &size, "-n", name, &group.name]);
            }
            Make::Thin(pool) => {
                let (full, pool) = (format!("{}/{name}-pool", group.name), format!("{pool}m"));
                output("lvcreate", &["-q", "-y", "-L", &pool, "-T", &full]);
                output("lvcreate", &["-q", "-y", "-V", &size, "-T", &full, "-n", name]);
            }
        }
        let device = format!("/dev/{}/{name}", group.name);
        let mkfs = if filesystem == "xfs" { vec!["-q", "-f"] } else { vec!["-q", "-F"] };
        output(&format!("mkfs.{filesystem}"), &[&mkfs[..], &[&device]].concat());
        let dir = tempfile::tempdir().unwrap();
        let volume = Self { group: group.name.clone(), name: name.to_owned(), filesystem, make, dir };
        fs::create_dir(volume.path()).unwrap();
        volume.mount();
        volume
    }

    fn mount(&self) {
        let device = format!("/dev/{}/{}", self.group, self.name);
        output("mount", &[&device, self.path().to_str().unwrap()]);
    }

    /// Takes it away and brings it back, as a reboot would: what was written to fill it is no longer counted as load.
    pub fn come_up_again(&self) {
        output("umount", &[self.path().to_str().unwrap()]);
        let full = format!("{}/{}", self.group, self.name);
        output("lvchange", &["-q", "-an", &full]);
        output("lvchange", &["-q", "-ay", &full]);
        self.mount();
    }

    pub fn is_thin(&self) -> bool {
        self.make != Make::Classic
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    /// A directory in it.
    pub fn root(&self) -> PathBuf {
        let root = self.path().join("root");
        fs::create_dir_all(&root).unwrap();
        root
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.path()).output().unwrap();
        let error = String::from_utf8_lossy(&unmounted.stderr);
        if !unmounted.status.success() {
            assert!(std::thread::panicking(), "{}: {error}", self.name);
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}
