//! The mount table, `/proc/self/mountinfo`; format: proc_pid_mountinfo(5).
//!
//! Crash story: reads only. The table is a picture of the moment it was read; whoever walks a tree finds out
//! about mounts made since by the device numbers.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which directory of its filesystem is mounted there; not `/` for a bind mount or a btrfs subvolume.
    pub root: PathBuf,
    /// Filesystem type, such as `ext4`, `fuse.sshfs` or `proc`.
    pub filesystem: String,
    /// The device or whatever else stands behind it.
    pub device: PathBuf,
    /// Options of this mount and of its filesystem, both.
    pub options: Vec<String>,
}

impl Mount {
    /// Whether what it shows is made up by the kernel and must not be stored.
    #[must_use]
    pub fn is_pseudo(&self) -> bool {
        const PSEUDO: [&str; 24] = [
            "autofs",
            "binder",
            "binfmt_misc",
            "bpf",
            "cgroup",
            "cgroup2",
            "configfs",
            "cpuset",
            "debugfs",
            "devpts",
            "devtmpfs",
            "efivarfs",
            "fusectl",
            "hugetlbfs",
            "mqueue",
            "nfsd",
            "nsfs",
            "proc",
            "pstore",
            "rpc_pipefs",
            "securityfs",
            "selinuxfs",
            "sysfs",
            "tracefs",
        ];
        PSEUDO.contains(&self.filesystem.as_str())
    }

    /// Whether its files are stamped by another machine's or program's clock, so that their times say nothing
    /// about ours.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        const REMOTE: [&str; 11] =
            ["9p", "afs", "ceph", "cifs", "fuse", "fuseblk", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"];
        REMOTE.contains(&self.filesystem.as_str()) || self.filesystem.starts_with("fuse.")
    }

    /// Whether it has an option by this name, with or without a value.
    #[must_use]
    pub fn has_option(&self, name: &str) -> bool {
        self.options.iter().any(|o| o.split('=').next() == Some(name))
    }
}

/// All mounts that this process sees, in the order in which they were made.
#[derive(Debug, Clone, Default)]
pub struct Mounts {
    mounts: Vec<Mount>,
}

impl Mounts {
    /// Reads the table.
    ///
    /// # Errors
    /// If `/proc` is not mounted, or a line has another form.
    pub fn read() -> io::Result<Self> {
        Self::parse(&std::fs::read("/proc/self/mountinfo")?)
    }

    /// Takes a table as it stands in `mountinfo`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if a line has another form.
    pub fn parse(text: &[u8]) -> io::Result<Self> {
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, "a line of mountinfo is not understood");
        let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let mounts = lines.map(|line| parse_line(line).ok_or_else(malformed)).collect::<io::Result<_>>()?;
        Ok(Self { mounts })
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Mount] {
        &self.mounts
    }

    /// The mount that a path is on; the path is taken as it stands, without symbolic links or `..`.
    #[must_use]
    pub fn of(&self, path: &Path) -> Option<&Mount> {
        // Of several mounts at one point the last covers the others.
        self.mounts.iter().filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.components().count())
    }

    /// The mount at this very path, if it is a mount point.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        self.mounts.iter().rev().find(|m| m.point == path)
    }

    /// The mounts at points below a path, each point once, ordered by path. What another mount above them
    /// covers is among them too: it cannot be reached, and a walk does not meet it.
    #[must_use]
    pub fn below(&self, path: &Path) -> Vec<&Mount> {
        let mut found: Vec<&Mount> =
            self.mounts.iter().rev().filter(|m| m.point.starts_with(path) && m.point != path).collect();
        found.sort_by(|a, b| a.point.cmp(&b.point));
        found.dedup_by(|later, first| later.point == first.point);
        found
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let root = fields.nth(3)?;
    let point = fields.next()?;
    let options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let filesystem = fields.next()?;
    let device = fields.next()?;
    let super_options = fields.next().unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let options = [options, super_options].iter().flat_map(|o| o.split(|b| *b == b',')).map(text).collect();
    Some(Mount {
        point: unescape(point),
        root: unescape(root),
        filesystem: text(unescape(filesystem).as_os_str().as_bytes()),
        device: unescape(device),
        options,
    })
}

/// Blanks, tabs, line feeds and backslashes stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(tail: &[u8]) -> Option<u8> {
    let digits = tail.get(..3)?;
    if !digits.iter().all(|d| (b'0'..=b'7').contains(d)) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Mounts;

    const TABLE: &[u8] = br"22 1 252:1 / / rw,relatime - ext4 /dev/vda rw,errors=remount-ro
23 22 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw,size=1k
30 22 0:40 / /srv/a\040b rw - xfs /dev/loop0 rw
31 30 0:41 / /srv/a\040b/sub\134dir rw shared:1 master:2 - btrfs /dev/loop1 rw,user_subvol_rm_allowed,subvol=/x
32 22 0:42 / /srv/a\040b rw - tmpfs tmpfs rw
33 22 0:43 / /srv/far rw - fuse.sshfs me@there: rw
";

    #[test]
    fn names_are_unescaped_and_the_last_mount_covers() {
        let mounts = Mounts::parse(TABLE).unwrap();
        assert_eq!(mounts.of(Path::new("/srv/a b/file")).unwrap().filesystem, "tmpfs");
        assert_eq!(mounts.at(Path::new("/srv/a b")).unwrap().filesystem, "tmpfs");
        let nested = mounts.of(Path::new(r"/srv/a b/sub\dir/x")).unwrap();
        assert_eq!(nested.filesystem, "btrfs");
        assert!(nested.has_option("user_subvol_rm_allowed") && nested.has_option("subvol"));
        assert_eq!(mounts.of(Path::new("/srv/a")).unwrap().filesystem, "ext4", "a sibling is not below");
        assert!(mounts.at(Path::new("/srv")).is_none());
    }

    #[test]
    fn mounts_below_a_path_are_listed_once() {
        let mounts = Mounts::parse(TABLE).unwrap();
        let below: Vec<_> = mounts.below(Path::new("/srv")).iter().map(|m| m.filesystem.clone()).collect();
        assert_eq!(below, ["tmpfs", "btrfs", "fuse.sshfs"]);
    }

    #[test]
    fn kinds_are_told_apart() {
        let mounts = Mounts::parse(TABLE).unwrap();
        assert!(mounts.at(Path::new("/dev")).unwrap().is_pseudo());
        assert!(mounts.at(Path::new("/srv/far")).unwrap().is_remote());
        let root = mounts.at(Path::new("/")).unwrap();
        assert!(!root.is_pseudo() && !root.is_remote());
    }

    #[test]
    fn this_machines_table_is_understood() {
        let mounts = Mounts::read().unwrap();
        assert_eq!(mounts.of(Path::new("/proc/self")).unwrap().filesystem, "proc");
        assert!(Mounts::parse(b"not a mount\n").is_err());
    }
}
