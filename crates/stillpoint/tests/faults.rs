//! What goes wrong in real life: each fault gives its exit status, its verdict and a message that names the
//! thing and the remedy, and nothing that was stored before is lost. Needs root, restic, and loop devices.
#![allow(clippy::print_stdout, reason = "figures and seeds are for whoever reads the test's output")]

mod common;

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use common::{PASSWORD, PERSONAL, Ran, Site, make_guestbook, write_private};

const NOBODY: u32 = 65534;

/// A guestbook at rest with a first backup.
fn stored() -> Site {
    let site = Site::new();
    settle(&site);
    site
}

fn settle(site: &Site) {
    settle_with(PASSWORD, site);
}

fn settle_with(password: &str, site: &Site) {
    make_guestbook(&site.database());
    for number in 0..20 {
        fs::write(site.uploads().join(format!("w1-{number:07}.bin")), vec![number; 5000]).expect("an upload");
    }
    site.init_with(password, &site.sources());
    site.run(["backup"]).expect_status(0);
}

/// Every backup that was listed before is still there, and restic finds all of it whole.
#[track_caller]
fn nothing_is_lost(site: &Site, before: &[String]) {
    assert_eq!(site.backups()[..before.len()], before[..]);
    site.restic(["check", "--read-data"]).expect_status(0);
}

fn verdict(ran: &Ran) -> String {
    ran.json()["applications"][0]["verdict"].as_str().expect("a verdict").to_owned()
}

/// A small filesystem in a file, mounted until dropped.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn image(image: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).expect("a mount point");
        run("mount", &["-o", "loop", &image.display().to_string(), &at.display().to_string()]);
        Self { at: at.to_path_buf() }
    }

    fn tmpfs(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).expect("a mount point");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", &at.display().to_string()]);
        Self { at: at.to_path_buf() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_unreadable_file_makes_the_backup_incomplete_and_is_named() {
    let dir = tempfile::tempdir_in("/tmp").expect("a directory that nobody can reach");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let program = dir.path().join("stillpoint");
    // Not by this process: what tests beside this one are just starting would have it open for writing.
    run("cp", &[env!("CARGO_BIN_EXE_stillpoint"), &program.display().to_string()]);
    let site = Site::at(&dir.path().join("site"));
    settle(&site);
    let before = site.backups();
    run("chown", &["-R", "65534:65534", &site.root().display().to_string()]);
    let secret = site.uploads().join("secret.bin");
    fs::write(&secret, "for root only").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("permissions");
    chown(&secret, Some(0), Some(0)).expect("root's file");
    let ran = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&program)
        .arg("--config")
        .arg(site.config())
        .args(["backup", "--json"])
        .output()
        .map(Ran)
        .expect("setpriv");
    ran.expect_status(3).expect_text("secret.bin").expect_text("Permission denied");
    assert_eq!(verdict(&ran), "incomplete");
    assert_eq!(
        fs::metadata(site.config()).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).ok(),
        Some(NOBODY)
    );
    let program_of_root = site.restic(["check", "--read-data"]);
    program_of_root.expect_status(0);
    assert_eq!(before.len(), 1);
}

#[test]
fn a_vanished_directory_makes_the_backup_incomplete_and_is_named() {
    let site = stored();
    let extra = site.root().join("extra");
    fs::create_dir(&extra).expect("a directory");
    fs::write(extra.join("file"), "x").expect("a file");
    let text = fs::read_to_string(site.config()).expect("the inventory");
    let more = format!("{text}[[application.directory]]\npath = \"{}\"\n", extra.display());
    write_private(&site.config(), more.as_bytes());
    site.run(["backup"]).expect_status(0);
    let before = site.backups();
    fs::remove_dir_all(&extra).expect("removed");
    let ran = site.run(["backup", "--json"]);
    ran.expect_status(3).expect_text(&extra.display().to_string());
    assert_eq!(verdict(&ran), "incomplete");
    nothing_is_lost(&site, &before);
    let pruned = site.run(["prune", "guestbook", "--dry-run"]);
    pruned.expect_status(0);
}

/// btrfs checksums its data, so a flipped bit on the disk is a read error in the middle of the file.
#[test]
fn a_read_error_in_the_middle_of_a_file_is_named() {
    let site = stored();
    let before = site.backups();
    let image = site.root().join("btrfs.img");
    fs::File::create(&image).expect("an image").set_len(256 << 20).expect("its size");
    run("mkfs.btrfs", &["-q", "-d", "single", "-m", "single", &image.display().to_string()]);
    let at = site.root().join("mnt");
    let mark = b"the-byte-that-rots-lies-just-here";
    {
        let _mounted = Mounted::image(&image, &at);
        fs::create_dir(at.join("data")).expect("a directory");
        let mut file = fs::File::create(at.join("data/rotten.bin")).expect("a file");
        let content: Vec<u8> =
            (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        file.write_all(&content).expect("written");
        file.seek(SeekFrom::Start(700_000)).expect("a place");
        file.write_all(mark).expect("written");
        file.sync_all().expect("synced");
        drop(file);
        fs::write(at.join("data/sound.bin"), "sound").expect("a file");
        run("umount", &[&at.display().to_string()]);
    }
    flip(&image, mark);
    let _mounted = Mounted::image(&image, &at);
    let text = fs::read_to_string(site.config()).expect("the inventory");
    let more = format!("{text}[[application.directory]]\npath = \"{}\"\n", at.join("data").display());
    write_private(&site.config(), more.as_bytes());
    let ran = site.run(["backup", "--json"]);
    ran.expect_status(3).expect_text("rotten.bin").expect_text("Input/output error");
    assert_eq!(verdict(&ran), "incomplete");
    nothing_is_lost(&site, &before);
    let list = site.restic(["ls", "latest"]);
    list.expect_text("sound.bin");
}

/// Flips one bit of every place in the image that holds `mark`.
fn flip(image: &Path, mark: &[u8]) {
    let bytes = fs::read(image).expect("the image");
    let file = fs::OpenOptions::new().write(true).open(image).expect("the image");
    let places: Vec<usize> = bytes
        .windows(mark.len())
        .enumerate()
        .filter(|(_, window)| *window == mark)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "the mark is on the disk");
    for place in places {
        file.write_at(&[bytes[place] ^ 1], place as u64).expect("written");
    }
    file.sync_all().expect("synced");
}

#[test]
fn a_full_disk_is_told_and_nothing_stored_before_is_lost() {
    let site = Site::new();
    let _mounted = Mounted::tmpfs(&site.partition(), "24m");
    settle(&site);
    let before = site.backups();
    let noise: Vec<u8> = {
        use rand::{RngCore, SeedableRng};
        let mut bytes = vec![0; 40 << 20];
        rand::rngs::StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
        bytes
    };
    fs::write(site.uploads().join("large.bin"), noise).expect("a large upload");
    let ran = site.run(["backup"]);
    ran.expect_status(1).expect_text("space");
    nothing_is_lost(&site, &before);
    fs::remove_file(site.uploads().join("large.bin")).expect("removed");
    site.run(["prune", "guestbook"]).expect_status(0);
    site.run(["backup"]).expect_status(0);
    nothing_is_lost(&site, &before);
}

/// The page cache takes what the disk below then cannot: told at the end, and for the larger ones by a flush on the way.
#[test]
fn what_the_disk_could_not_write_after_all_is_not_restored() {
    let site = Site::new();
    make_guestbook(&site.database());
    site.init(&site.sources());
    // Smaller than what is written past the page cache.
    let mut made = 0..;
    for files in [30, 150] {
        for number in made.by_ref().take(files) {
            let path = site.uploads().join(format!("{number}.bin"));
            fs::write(path, vec![b'a' + number as u8 % 26; 900_000]).expect("an upload");
        }
        site.run(["backup"]).expect_status(0);
        let (small, at) =
            (site.root().join(format!("small-{files}")), site.root().join(format!("at-{files}")));
        let _memory = Mounted::tmpfs(&small, "12m");
        let image = small.join("image");
        fs::File::create(&image).and_then(|file| file.set_len(400 << 20)).expect("an image");
        run("mkfs.ext4", &["-q", "-O", "^has_journal,^resize_inode", &image.display().to_string()]);
        let _mounted = Mounted::image(&image, &at);
        let restored = site.run(["restore", "guestbook", "--to", at.join("new").to_str().expect("UTF-8")]);
        restored.expect_status(1).expect_text("cannot be written to disk");
        let left = fs::read_dir(&at).expect("readable").map(|entry| entry.expect("readable").file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["lost+found"]);
    }
}

#[test]
fn a_wrong_password_is_status_12() {
    let site = Site::new();
    settle_with(PERSONAL, &site);
    write_private(&site.password_file(), b"not-the-password-at-all");
    for arguments in
        [&["backup"][..], &["list"], &["check"], &["restore", "guestbook", "--to", "/tmp/nowhere-at-all"]]
    {
        let ran = site.run(arguments);
        ran.expect_status(12).expect_text("password");
        assert!(
            !ran.out().contains("not-the-password-at-all") && !ran.err().contains("not-the-password-at-all")
        );
    }
    write_private(&site.password_file(), PERSONAL.as_bytes());
    site.run(["backup"]).expect_status(0);
    nothing_is_lost(&site, &site.backups());
}

#[test]
fn no_repository_is_status_10_and_a_foreign_directory_is_refused() {
    let site = stored();
    let away = site.root().join("away");
    fs::rename(site.repository(), &away).expect("moved away");
    site.run(["backup"]).expect_status(10).expect_text("init");
    fs::create_dir(site.repository()).expect("a directory");
    fs::write(site.repository().join("holiday.jpg"), "a picture").expect("a file");
    for arguments in [&["backup"][..], &["check"], &["init"]] {
        let ran = site.run(arguments);
        assert!(matches!(ran.status(), Some(1 | 2 | 10)), "{:?}: {}", ran.status(), ran.err());
        ran.expect_text(&site.repository().display().to_string());
    }
    assert_eq!(fs::read(site.repository().join("holiday.jpg")).expect("still there"), b"a picture");
    fs::remove_dir_all(site.repository()).expect("removed");
    fs::rename(&away, site.repository()).expect("moved back");
    site.run(["backup"]).expect_status(0);
}

fn packs(site: &Site) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in fs::read_dir(site.repository().join("data")).expect("data") {
        let dir = dir.expect("readable").path();
        found.extend(fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").path()));
    }
    found.sort();
    found
}

#[test]
fn damage_is_found_named_and_never_restored_as_if_it_were_whole() {
    for damage in ["flipped", "truncated", "missing", "emptied"] {
        let site = stored();
        for pack in packs(&site) {
            fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).expect("permissions");
            let bytes = fs::read(&pack).expect("a pack");
            match damage {
                "flipped" => {
                    let mut other = bytes.clone();
                    other[bytes.len() / 3] ^= 0x10;
                    fs::write(&pack, other).expect("written");
                }
                "truncated" => fs::write(&pack, &bytes[..bytes.len() / 2]).expect("written"),
                "missing" => fs::remove_file(&pack).expect("removed"),
                _ => fs::write(&pack, b"").expect("written"),
            }
        }
        let check = site.run(["check", "--read-data"]);
        check.expect_status(1);
        let to = site.root().join("restored");
        let restored = site.run(["restore", "guestbook", "--to", to.to_str().expect("UTF-8")]);
        restored.expect_status(1);
        assert!(!to.exists(), "{damage}: a restore that failed leaves no directory that looks whole");
        let pack = packs(&site)
            .first()
            .map(|pack| pack.file_name().expect("a name").to_string_lossy()[..8].to_owned());
        if let (Some(pack), "flipped") = (pack, damage) {
            assert!(
                check.out().contains(&pack) || check.err().contains(&pack),
                "{}{}",
                check.out(),
                check.err()
            );
        }
    }
}
