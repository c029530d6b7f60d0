//! Nights of an application with large files of pages on a filesystem of its own, each pinned by clones.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use model::{
    entry::{Body, Entry, Manifest},
    id::{BackupId, Relpath},
    port::{Draft, Journal, Silent, Store},
    problem::Problem,
    record::CutRecord,
    reference::{Choice, Kept, Reference},
};
use os::{extents::clone_file, staging::Staging};
use vault::{
    reference::{self, Referencing},
    repository::Repository,
};

use crate::common::{Place, cut, entry, noise, ok, record};

/// A filesystem of its own on a loop device, mounted until dropped.
pub struct Mounted {
    pub at: PathBuf,
    pub image: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    pub fn new(kind: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("mnt"));
        fs::create_dir(&at).unwrap();
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", text(&image)]);
        run("mount", &["-o", "loop", text(&image), text(&at)]);
        Self { at, image, _dir: dir }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _done = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What one night came to.
pub struct Night {
    pub id: BackupId,
    pub draft: Draft,
    /// What was said when the reference was replaced.
    pub kept: Vec<Problem>,
}

impl Night {
    /// What was read beside the cut record, which is small.
    pub fn pages_read(&self) -> u64 {
        self.draft.bytes_read.0 & !0x7fff
    }
}

pub struct World {
    pub mounted: Mounted,
    pub place: Place,
    pub live: PathBuf,
    pub now: Timestamp,
    pub choice: Choice,
    nights: u8,
}

impl World {
    pub fn new(kind: &str) -> Self {
        let mounted = Mounted::new(kind);
        let live = mounted.at.join("live");
        fs::create_dir(&live).unwrap();
        fs::create_dir_all(mounted.at.join("state/staging")).unwrap();
        let choice = Choice { keep: true, read_all_every: Duration::from_secs(7 * 86_400) };
        let now = "2026-11-20T03:00:00Z".parse().unwrap();
        Self { place: Place::new(), mounted, live, now, choice, nights: 0 }
    }

    pub fn staging(&self) -> PathBuf {
        self.mounted.at.join("state/staging")
    }

    pub fn record(&self) -> PathBuf {
        reference::record_path(&self.mounted.at.join("state"), &relpath())
    }

    pub fn reference(&self) -> Reference {
        match reference::read(&self.record()) {
            Kept::There(reference) => reference,
            other => panic!("{other:?}"),
        }
    }

    /// Directories of ours that are left, other than those of the reference.
    pub fn left(&self) -> Vec<PathBuf> {
        let known = match reference::read(&self.record()) {
            Kept::There(reference) => [reference.dirs, reference.spare.dirs].concat(),
            _ => vec![],
        };
        let entries = fs::read_dir(self.staging()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| !known.contains(path)).collect()
    }

    /// A file of pages with this content behind its first ones.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.live.join(name);
        let mut whole = b"SQLite format 3\0".to_vec();
        whole.extend_from_slice(&bytes[16..]);
        fs::write(&path, whole).unwrap();
        path
    }

    /// What is live.
    pub fn oracle(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(&self.live).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
    }

    /// Pins everything by clones in a directory of ours, which are made over spare ones where there are some.
    pub fn pin(&self) -> (Staging, Vec<Entry>) {
        let journal: Arc<dyn Journal> = self.place.journal.clone();
        let staging = Staging::create(&journal, &self.staging(), "tree").unwrap();
        let spare = reference::spare(&self.record());
        let (mut entries, mut copies) = (Vec::new(), HashMap::new());
        for (n, path) in self.oracle().keys().enumerate() {
            // All names of a file have one copy.
            let inode = fs::metadata(path).unwrap().ino();
            let copy = copies.entry(inode).or_insert_with(|| {
                let copy = staging.path().join(n.to_string());
                clone_over_spare(path, &copy, spare.get(path));
                copy
            });
            let mut found = entry(path, |_| Body::At(copy.clone())).unwrap();
            found.meta.ctime = self.now;
            entries.push(found);
        }
        let above = self.live.ancestors().filter_map(|path| entry(path, |_| Body::Nothing));
        entries.extend(above);
        (staging, entries)
    }

    /// One night, a day later.
    pub fn night(&mut self) -> Night {
        self.night_with(|_| {})
    }

    /// One whose backup is stored but never listed.
    pub fn night_not_listed(&mut self) {
        self.now += SignedDuration::from_hours(24);
        self.nights += 1;
        let (staging, entries) = self.pin();
        let mut repository = self.repository();
        let cut = self.cut();
        ok(repository.store(Arc::new(Manifest::merge(self.now, entries)), &cut, &Silent));
        drop(repository);
        staging.release().unwrap();
    }

    fn cut(&self) -> CutRecord {
        CutRecord { cut_at: self.now, ..cut(self.nights, &self.live) }
    }

    fn repository(&self) -> Repository {
        let mut repository = self.place.repository();
        repository.use_reference(Referencing {
            record: self.record(),
            relpath: relpath(),
            choice: self.choice,
            now: self.now,
        });
        repository
    }

    /// One in which something happens to the pinned copies.
    pub fn night_with(&mut self, happens: impl FnOnce(&Path)) -> Night {
        self.now += SignedDuration::from_hours(24);
        self.nights += 1;
        let (staging, entries) = self.pin();
        happens(staging.path());
        let mut repository = self.repository();
        let cut = self.cut();
        let draft = ok(repository.store(Arc::new(Manifest::merge(self.now, entries)), &cut, &Silent));
        let id = ok(repository.publish(draft.clone(), &record(&cut, &draft)));
        let kept = repository.reference_problems();
        staging.release().unwrap();
        assert_eq!(self.place.journal.open(), [], "everything is crossed off");
        Night { id, draft, kept }
    }

    /// Whether a backup is, byte for byte, what is live.
    #[track_caller]
    pub fn assert_holds(&self, night: &Night) {
        let stored = self.place.read_back(&night.id);
        for (path, bytes) in self.oracle() {
            assert!(stored.get(&path) == Some(&bytes), "{}", path.display());
        }
        assert_eq!(self.left(), Vec::<PathBuf>::new());
    }
}

fn clone_over_spare(path: &Path, copy: &Path, spare: Option<&PathBuf>) {
    if let Some(spare) = spare.filter(|spare| spare.exists()) {
        fs::rename(spare, copy).unwrap();
    }
    let (source, mut options) = (File::open(path).unwrap(), OpenOptions::new());
    let target = options.write(true).create(true).truncate(false).open(copy).unwrap();
    let size = source.metadata().unwrap().len();
    if target.metadata().unwrap().len() > size {
        target.set_len(size).unwrap();
    }
    clone_file(&source, &target).unwrap();
}

fn relpath() -> Relpath {
    Relpath::new("demo.softxs.ch/hydro").unwrap()
}

/// Changes files in every way that a filesystem has, from a seed.
pub struct Changes(u64);

impl Changes {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// One change of one file; its beginning stays, so that it is known for what it is.
    pub fn change(&mut self, world: &World, path: &Path) -> &'static str {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let at = 4096 + self.below(size - 8192);
        let page = at / 4096 * 4096;
        let length = 1 + self.below(200_000);
        match self.below(13) {
            0 => {
                file.set_len((at + (3 << 20)).min(size)).unwrap();
                "truncated"
            }
            1 => {
                file.write_all_at(&noise(at, length as usize), size + self.below(300_000)).unwrap();
                "extended"
            }
            2 => {
                fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, at, length);
                "punched"
            }
            3 => {
                fallocate(&file, 0, size, length);
                file.write_all_at(&noise(at, 5000), size + length / 2).unwrap();
                "preallocated and partly written"
            }
            4 => {
                fallocate(&file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, page, 70_000);
                file.write_all_at(&noise(at, 5000), page + 4096).unwrap();
                "unwritten in the middle"
            }
            5 => {
                let other = world.oracle().into_keys().find(|other| other != path).unwrap();
                let from = self.below(fs::metadata(&other).unwrap().len() / 4096 - 20) * 4096;
                clone_part(
                    &File::open(other).unwrap(),
                    from,
                    &file,
                    page.min(size - 65_536) / 4096 * 4096,
                    61_440,
                );
                "cloned from elsewhere"
            }
            6 => {
                let mut same = vec![0; 40_960];
                let read = file.read_at(&mut same, page).unwrap();
                file.write_all_at(&same[..read], page).unwrap();
                "written with the same"
            }
            7 => {
                let copy = path.with_extension("tmp");
                fs::copy(path, &copy).unwrap();
                clone_file(&File::open(&copy).unwrap(), &file).unwrap();
                fs::remove_file(copy).unwrap();
                "cloned from a copy of itself"
            }
            8 => {
                let copy = path.with_extension("tmp");
                fs::copy(path, &copy).unwrap();
                fs::rename(copy, path).unwrap();
                "replaced by a copy"
            }
            9 => {
                defragment(path);
                "defragmented"
            }
            10 => {
                world.reference().files.iter().for_each(|file| defragment(&file.copy));
                "frozen copies defragmented"
            }
            _ => {
                for _ in 0..1 + self.below(20) {
                    let at = 4096 + self.below(size - 8192) / 4096 * 4096;
                    let some = 1 + self.below(16_384);
                    file.write_all_at(&noise(at ^ self.0, some as usize), at).unwrap();
                }
                if self.below(2) == 0 {
                    file.sync_all().unwrap();
                }
                "written"
            }
        }
    }
}

fn defragment(path: &Path) {
    let file = File::open(path).unwrap();
    match rustix::fs::fstatfs(&file).unwrap().f_type as u64 {
        // XFS_SUPER_MAGIC; xfs_fsr leaves a file alone whose extents are shared.
        0x5846_5342 => drop(Command::new("xfs_fsr").arg(path).output()),
        _ => run("btrfs", &["filesystem", "defragment", "-f", text(path)]),
    }
}

fn fallocate(file: &File, mode: i32, at: u64, length: u64) {
    // SAFETY: plain numbers and an open descriptor.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, at as i64, length as i64) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// `struct file_clone_range`, linux/fs.h.
#[repr(C)]
struct CloneRange {
    from_fd: i64,
    from: u64,
    length: u64,
    to: u64,
}

fn clone_part(from: &File, at: u64, file: &File, to: u64, length: u64) {
    let range = CloneRange { from_fd: from.as_raw_fd().into(), from: at, length, to };
    // SAFETY: FICLONERANGE reads a `struct file_clone_range`, whose layout this has.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), 0x4020_940d, &raw const range) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}
