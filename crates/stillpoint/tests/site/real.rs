//! Restores as root: owners, devices and all attributes; roots that are mount points and subvolumes; disks
//! that are really full. Needs root and loop devices.

#![allow(clippy::print_stdout, reason = "seeds and plans are shown when a test fails")]
#![allow(dead_code, reason = "what is shared with the tests of ordinary users is not all used here")]

mod job;
mod trees;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use job::{IN_PLACE, execute, request, restore};
use model::{
    port::FailureKind,
    problem::Effect,
    restore::{Exchange, Target},
};
use orchestrate::restore::plan;
use os::site::LocalSite;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};
use testkit::fakes::journal::MemoryJournal;
use trees::{Content, assert_same, back_up, contents, grow, leftovers, portrait, walk};

fn sh(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A mounted filesystem, unmounted in any case.
struct Mounted {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    fn tmpfs(size: &str) -> Self {
        let mounted = Self::place();
        sh("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "none", text(&mounted.at)]);
        mounted
    }

    /// `mkfs` is the program and its options.
    fn image(mkfs: &[&str]) -> Self {
        let mounted = Self::place();
        let image = mounted.at.with_file_name("image");
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        let args: Vec<&str> = mkfs[1..].iter().copied().chain([text(&image)]).collect();
        sh(mkfs[0], &args);
        sh("mount", &["-o", "loop", text(&image), text(&mounted.at)]);
        mounted
    }

    fn place() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("mnt");
        fs::create_dir(&at).unwrap();
        Self { at, _dir: dir }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// File capabilities, `struct vfs_cap_data` of revision 2 in linux/capability.h: `cap_net_bind_service` is
/// effective and permitted.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A tree with what only root can make, the times set last.
fn grow_as_root(tree: &Path) {
    fs::create_dir(tree).unwrap();
    let file = |name: &str, mode: u32, uid: u32, gid: u32| {
        let path = tree.join(name);
        fs::write(&path, name).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    file("set-uid", 0o4755, 1234, 4321);
    file("set-both", 0o6711, 65534, 0);
    file("closed", 0o000, 4_000_000_000, 4_000_000_000);
    let able = file("able", 0o755, 1000, 1000);
    xattr::set(&able, "security.capability", &CAPABILITY).unwrap();
    let trusted = file("trusted", 0o600, 0, 0);
    xattr::set(&trusted, "trusted.note", b"\0\xff").unwrap();
    let shared = file("shared", 0o640, 1000, 1001);
    sh("setfacl", &["-m", "u:1234:rw,g:4321:r,m::rw", text(&shared)]);
    let dir = tree.join("dir");
    fs::create_dir(&dir).unwrap();
    sh("setfacl", &["-m", "u:1234:rwx,d:u:1234:rwx,d:o::-", text(&dir)]);
    fs::write(dir.join("inherits"), "an inherited list").unwrap();
    let sticky = tree.join("sticky");
    fs::create_dir(&sticky).unwrap();
    chown(&sticky, Some(7), Some(8)).unwrap();
    fs::set_permissions(&sticky, fs::Permissions::from_mode(0o3777)).unwrap();
    let mode = Mode::from_raw_mode(0o660);
    mknodat(CWD, tree.join("null"), FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
    mknodat(CWD, tree.join("disk"), FileType::BlockDevice, mode, makedev(259, 1_048_575)).unwrap();
    mknodat(CWD, tree.join("pipe"), FileType::Fifo, mode, 0).unwrap();
    symlink("/nowhere", tree.join("link")).unwrap();
    std::os::unix::fs::lchown(tree.join("link"), Some(99), Some(98)).unwrap();
    xattr::set(tree.join("link"), "trusted.of-a-link", b"1").unwrap();
    for (path, second) in walk(tree).into_iter().rev().zip(1_000_000_000..) {
        let at = Timespec { tv_sec: second, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: at, last_modification: at };
        utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

#[test]
fn as_root_everything_comes_back_and_nothing_is_inherited() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("restored"));
    grow_as_root(&tree);
    let wanted = portrait(&tree);
    let backup = back_up(&[&tree], &Content::new());
    // Whatever is made here would get this list.
    sh("setfacl", &["-d", "-m", "u:4242:rwx", text(dir.path())]);
    let report = restore(&request(Target::Directory { dir: target.clone() }, &[]), &backup).unwrap();
    assert!(report.problems.iter().all(|p| p.effect == Effect::Note), "{:?}", report.problems);
    assert_same(&portrait(&target.join(tree.strip_prefix("/").unwrap())), &wanted);

    fs::remove_dir_all(&tree).unwrap();
    fs::create_dir(&tree).unwrap();
    let report = restore(&request(IN_PLACE, &[("directory", &tree)]), &backup).unwrap();
    assert!(report.is_complete(), "{:?}", report.problems);
    assert_same(&portrait(&tree), &wanted);
    assert!(leftovers(dir.path()).is_empty());
}

/// Grows a tree in `root`, which is there and cannot be renamed, changes it, restores it in place.
fn comes_back_name_by_name(root: &Path, why: &str) {
    grow_as_root(&root.join("special"));
    let grown = grow(&root.join("tree"), 5);
    xattr::set(root, "user.note", b"of the root").unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o2751)).unwrap();
    let (wanted, inode) = (portrait(root), root.metadata().unwrap().ino());
    let backup = back_up(&[root], &grown);
    fs::remove_dir_all(root.join("tree")).unwrap();
    fs::write(root.join("since"), "made since").unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).unwrap();
    xattr::set(root, "user.note", b"changed").unwrap();
    let wish = request(IN_PLACE, &[("directory", root)]);
    let planned = plan(&wish, &backup, &LocalSite).unwrap();
    assert!(matches!(&planned.parts[0].exchange, Exchange::Children(said) if said.contains(why)));
    let report = restore(&wish, &backup).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_same(&portrait(root), &wanted);
    assert_eq!(root.metadata().unwrap().ino(), inode, "the root itself stays");
    assert!(leftovers(root).is_empty());
}

#[test]
fn a_mounted_tmpfs_comes_back_name_by_name() {
    comes_back_name_by_name(&Mounted::tmpfs("64m").at, "mount point");
}

#[test]
fn a_mounted_ext4_comes_back_name_by_name() {
    let mounted = Mounted::image(&["mkfs.ext4", "-q"]);
    // It belongs to the filesystem, which makes it anew.
    fs::remove_dir(mounted.at.join("lost+found")).unwrap();
    comes_back_name_by_name(&mounted.at, "mount point");
}

/// XFS shows root its own form of an access list as one more attribute, which is nothing anywhere else.
#[test]
fn an_access_list_of_xfs_comes_back_elsewhere_once() {
    let is_inner = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("trusted.SGI_");
    let mounted = Mounted::image(&["mkfs.xfs", "-q"]);
    let tree = mounted.at.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("shared"), "shared").unwrap();
    sh("setfacl", &["-m", "u:1234:rw,g:4321:r,m::rw", text(&tree.join("shared"))]);
    sh("setfacl", &["-m", "u:1234:rwx,d:u:1234:rwx,d:o::-", text(&tree)]);
    assert!(xattr::list(tree.join("shared")).unwrap().any(|name| is_inner(&name)));
    let (wanted, backup) = (portrait(&tree), back_up(&[&tree], &contents(&tree)));
    let elsewhere = Mounted::image(&["mkfs.ext4", "-q"]);
    for target in [mounted.at.join("restored"), elsewhere.at.join("restored")] {
        let report = restore(&request(Target::Directory { dir: target.clone() }, &[]), &backup).unwrap();
        assert!(report.problems.iter().all(|p| p.effect == Effect::Note), "{:?}", report.problems);
        let restored = target.join(tree.strip_prefix("/").unwrap());
        assert_same(&portrait(&restored), &wanted);
        assert!(
            xattr::list(restored.join("shared")).unwrap().any(|name| is_inner(&name))
                == target.starts_with(&mounted.at)
        );
    }
}

#[test]
fn a_btrfs_subvolume_comes_back_name_by_name() {
    let mounted = Mounted::image(&["mkfs.btrfs", "-q"]);
    let volume = mounted.at.join("volume");
    sh("btrfs", &["-q", "subvolume", "create", text(&volume)]);
    comes_back_name_by_name(&volume, "subvolume");
    sh("btrfs", &["subvolume", "show", text(&volume)]);
}

#[test]
fn what_is_mounted_or_a_subvolume_below_a_root_is_refused() {
    let mounted = Mounted::image(&["mkfs.btrfs", "-q"]);
    let tree = mounted.at.join("tree");
    fs::create_dir(&tree).unwrap();
    let backup = back_up(&[&tree], &Content::new());
    let wish = request(IN_PLACE, &[("directory", &tree)]);
    let inner = tree.join("inner");
    sh("btrfs", &["-q", "subvolume", "create", text(&inner)]);
    fs::write(inner.join("precious"), "1").unwrap();
    let failure = restore(&wish, &backup).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.what.contains(text(&inner)), "{}", failure.what);
    assert!(inner.join("precious").exists() && leftovers(&mounted.at).is_empty());
    sh("btrfs", &["-q", "subvolume", "delete", text(&inner)]);
    fs::create_dir(&inner).unwrap();
    sh("mount", &["--bind", text(&mounted.at), text(&inner)]);
    let failure = restore(&wish, &backup);
    sh("umount", &[text(&inner)]);
    assert!(failure.unwrap_err().what.contains(text(&inner)));
}

/// Fills a filesystem to the last byte.
fn fill(dir: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(dir.join("filler")).unwrap();
    for size in [1 << 16, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[test]
fn a_disk_that_is_too_small_is_seen_before_anything_is_written() {
    let mounted = Mounted::tmpfs("24m");
    let tree = mounted.at.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("large"), vec![1; 14 << 20]).unwrap();
    let backup = back_up(&[&tree], &Content::new());
    let before = portrait(&mounted.at);
    let to = Target::Directory { dir: mounted.at.join("restored") };
    for wish in [request(IN_PLACE, &[("directory", &tree)]), request(to, &[])] {
        let failure = restore(&wish, &backup).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NoSpace);
        assert!(failure.what.contains("are free"), "{}", failure.in_full());
        assert_same(&portrait(&mounted.at), &before);
    }
}

/// Others fill the disk while we write.
#[test]
fn a_disk_that_becomes_full_loses_nothing() {
    for in_place in [true, false] {
        let mounted = Mounted::tmpfs("64m");
        let tree = mounted.at.join("tree");
        fs::create_dir(&tree).unwrap();
        for number in 0..20 {
            fs::write(tree.join(format!("file-{number}")), vec![number; 100_000]).unwrap();
        }
        let backup = back_up(&[&tree], &Content::new());
        fs::write(tree.join("file-3"), "changed since").unwrap();
        let wish = if in_place {
            request(IN_PLACE, &[("directory", &tree)])
        } else {
            request(Target::Directory { dir: mounted.at.join("restored") }, &[])
        };
        let plan = plan(&wish, &backup, &LocalSite).unwrap();
        fill(&mounted.at);
        // Room for the directories and a few of the files.
        let filler = fs::OpenOptions::new().write(true).open(mounted.at.join("filler")).unwrap();
        filler.set_len(filler.metadata().unwrap().len() - 500_000).unwrap();
        let before = (portrait(&mounted.at), contents(&tree));
        let journal = Arc::new(MemoryJournal::default());
        let failure = execute(&plan, &backup, journal.clone()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NoSpace, "{}", failure.in_full());
        assert!(failure.in_full().contains("space"), "{}", failure.in_full());
        assert_eq!(journal.open(), []);
        let mut now = portrait(&mounted.at);
        // What was written beside and removed again touched the directory above.
        now.insert(PathBuf::new(), before.0[Path::new("")].clone());
        assert_same(&now, &before.0);
        assert!(contents(&tree) == before.1);
    }
}
