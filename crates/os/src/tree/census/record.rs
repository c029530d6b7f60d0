//! What a census keeps of one name, and of one directory.
//!
//! Crash story: memory only.

use std::{
    ffi::{CStr, OsStr},
    num::NonZeroU32,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Meta, Role, Stamp, Xattr},
    problem::Problem,
    size::Bytes,
};
use rustix::fs::{FileType, Statx};

use crate::tree::meta::{device, is_mount_point, time};

/// What `statx` said of a name: 72 bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Record {
    size: u64,
    inode: u64,
    mtime: i64,
    ctime: i64,
    atime: i64,
    mtime_nanos: u32,
    ctime_nanos: u32,
    atime_nanos: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
}

impl Record {
    pub(super) fn of(status: &Statx) -> Self {
        let mode = u32::from(status.stx_mode);
        let sized = matches!(FileType::from_raw_mode(mode), FileType::RegularFile | FileType::Symlink);
        Self {
            size: if sized { status.stx_size } else { 0 },
            inode: status.stx_ino,
            mtime: status.stx_mtime.tv_sec,
            ctime: status.stx_ctime.tv_sec,
            atime: status.stx_atime.tv_sec,
            mtime_nanos: status.stx_mtime.tv_nsec,
            ctime_nanos: status.stx_ctime.tv_nsec,
            atime_nanos: status.stx_atime.tv_nsec,
            mode,
            uid: status.stx_uid,
            gid: status.stx_gid,
            links: status.stx_nlink,
        }
    }

    /// Whether two looks show the same, but for the time of the last access.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let still = Self { atime: self.atime, atime_nanos: self.atime_nanos, ..*other };
        self.all() == still.all()
    }

    /// Whether two looks at one directory prove the same names.
    pub(super) fn is_same_directory(&self, other: &Self) -> bool {
        let times = |r: &Self| (r.mtime, r.mtime_nanos, r.ctime, r.ctime_nanos);
        self.inode == other.inode && times(self) == times(other)
    }

    pub(super) fn accessed_alike(&self, other: &Self) -> bool {
        (self.atime, self.atime_nanos) == (other.atime, other.atime_nanos)
    }

    fn all(&self) -> ([u64; 2], [i64; 3], [u32; 7]) {
        let Self { size, inode, mtime, ctime, atime, .. } = *self;
        let nanos = [self.mtime_nanos, self.ctime_nanos, self.atime_nanos];
        let [m, c, a] = nanos;
        // A directory's is not stored, and that of a mounted /proc is the number of processes.
        let links = if self.kind() == FileType::Directory { 0 } else { self.links };
        ([size, inode], [mtime, ctime, atime], [m, c, a, self.mode, self.uid, self.gid, links])
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Nanoseconds since the epoch.
    pub(super) fn ctime(&self) -> i128 {
        nanos(self.ctime, self.ctime_nanos)
    }

    pub(super) fn stamp(&self) -> Stamp {
        Stamp {
            size: Bytes(self.size),
            mtime: time(self.mtime, self.mtime_nanos).as_nanosecond(),
            ctime: time(self.ctime, self.ctime_nanos).as_nanosecond(),
            inode: self.inode,
        }
    }

    fn meta(&self, device: u64, xattrs: Vec<Xattr>) -> Meta {
        Meta {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            size: Bytes(self.size),
            mtime: time(self.mtime, self.mtime_nanos),
            atime: time(self.atime, self.atime_nanos),
            ctime: time(self.ctime, self.ctime_nanos),
            inode: self.inode,
            device,
            links: u64::from(self.links),
            xattrs,
        }
    }
}

fn nanos(seconds: i64, nanos: u32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

/// What a name is to a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Stored,
    Socket,
    /// It is there, and cannot be looked at.
    Unknown,
}

/// What few names have.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// What a symbolic link says.
    pub target: PathBuf,
    /// The device number of a device.
    pub special: u64,
    pub xattrs: Vec<Xattr>,
    /// What is to be said of it whenever it is met.
    pub problems: Vec<Problem>,
    /// That an attribute could not be read.
    pub unread: Option<Problem>,
}

impl Extra {
    fn is_plain(&self) -> bool {
        self.target.as_os_str().is_empty()
            && self.special == 0
            && self.xattrs.is_empty()
            && self.problems.is_empty()
            && self.unread.is_none()
    }

    pub(super) fn boxed(self) -> Option<Box<Self>> {
        (!self.is_plain()).then(|| Box::new(self))
    }
}

/// One name of a directory: 104 bytes, and the name with its end.
#[derive(Debug)]
pub(super) struct Member {
    pub record: Record,
    pub device: u64,
    pub extra: Option<Box<Extra>>,
    /// Where the name begins among the names of the directory.
    pub name: u32,
    /// What is known of the directory that this is, if it was entered.
    pub folder: Option<NonZeroU32>,
    /// The caller's; gone as soon as anything of the name changes.
    pub mark: Option<NonZeroU32>,
    pub standing: Standing,
    pub mount_point: bool,
    /// The record was settled when the rest was read, so an equal record proves that the rest is the same.
    pub settled: bool,
    /// Whether it was decided if this directory is entered.
    pub decided: bool,
}

impl Member {
    pub(super) fn new(status: &Statx, standing: Standing, settled: bool, extra: Extra) -> Self {
        Self {
            record: Record::of(status),
            device: device(status),
            extra: extra.boxed(),
            name: 0,
            folder: None,
            mark: None,
            standing,
            mount_point: is_mount_point(status),
            settled,
            decided: false,
        }
    }

    /// A name that cannot be looked at.
    pub(super) fn unknown(problem: Problem) -> Self {
        Self {
            record: Record::default(),
            device: 0,
            extra: Extra { problems: vec![problem], ..Extra::default() }.boxed(),
            name: 0,
            folder: None,
            mark: None,
            standing: Standing::Unknown,
            mount_point: false,
            settled: false,
            decided: false,
        }
    }

    /// Device and inode.
    pub(super) fn identity(&self) -> (u64, u64) {
        (self.device, self.record.inode)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.standing == Standing::Stored && self.record.kind() == FileType::Directory
    }

    pub(super) fn is_file(&self) -> bool {
        self.standing == Standing::Stored && self.record.kind() == FileType::RegularFile
    }

    /// Whether this look shows what was seen before, but for the time of the last access.
    pub(super) fn shows(&self, device: u64, record: &Record) -> bool {
        self.standing != Standing::Unknown && self.device == device && self.record.is_same(record)
    }

    pub(super) fn say(&mut self, problem: Problem) {
        self.extra.get_or_insert_default().problems.push(problem);
    }

    /// What is stored of it; `None` if nothing is.
    pub(super) fn entry(&self, path: PathBuf) -> Option<Entry> {
        if self.standing != Standing::Stored {
            return None;
        }
        let extra = self.extra.as_deref();
        let special = extra.map_or(0, |e| e.special);
        let kind = match self.record.kind() {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink(extra.map(|e| e.target.clone()).unwrap_or_default()),
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharDevice(special),
            FileType::BlockDevice => Kind::BlockDevice(special),
            FileType::Socket | FileType::Unknown => return None,
        };
        let meta = self.record.meta(self.device, extra.map(|e| e.xattrs.clone()).unwrap_or_default());
        let body = if kind == Kind::File { Body::Carried } else { Body::Nothing };
        Some(Entry { path, kind, meta, body, role: Role::Content })
    }
}

/// Names, each ended by a zero byte as the kernel wants them.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<u8>);

impl Names {
    /// Adds a name and says where it begins; `None` beyond 4 GiB.
    pub(super) fn add(&mut self, name: &CStr) -> Option<u32> {
        let start = u32::try_from(self.0.len()).ok()?;
        self.0.extend_from_slice(name.to_bytes_with_nul());
        Some(start)
    }

    pub(super) fn at(&self, start: u32) -> &CStr {
        let rest = usize::try_from(start).ok().and_then(|start| self.0.get(start..));
        // An empty name stands nowhere, so a wrong start would show a name that is gone.
        rest.and_then(|rest| CStr::from_bytes_until_nul(rest).ok()).unwrap_or_default()
    }

    pub(super) fn fit(&mut self) {
        self.0.shrink_to_fit();
    }
}

/// What is known of one directory.
#[derive(Debug)]
pub(super) struct Folder {
    pub path: PathBuf,
    /// Device and inode.
    pub identity: (u64, u64),
    /// The directory above it; the root is its own.
    pub above: u32,
    pub names: Names,
    /// Ordered by name.
    pub members: Vec<Member>,
    /// How the directory looked just before it was listed; `None` if it could not be or was not yet.
    pub listed: Option<Record>,
    /// `listed` was settled then, so an equal look proves the same names.
    pub settled: bool,
    pub problem: Option<Problem>,
}

impl Folder {
    pub(super) fn new(path: PathBuf, identity: (u64, u64), above: u32) -> Self {
        Self {
            path,
            identity,
            above,
            names: Names::default(),
            members: Vec::new(),
            listed: None,
            settled: false,
            problem: None,
        }
    }

    pub(super) fn name(&self, member: &Member) -> &CStr {
        self.names.at(member.name)
    }

    pub(super) fn mark_files(&mut self, mark: &mut dyn FnMut(&Path, &Stamp) -> Option<NonZeroU32>) {
        let Self { path, names, members, .. } = self;
        let mut inside = path.clone();
        for member in members.iter_mut().filter(|m| m.mark.is_none() && m.is_file()) {
            inside.push(OsStr::from_bytes(names.at(member.name).to_bytes()));
            member.mark = mark(&inside, &member.record.stamp());
            inside.pop();
        }
    }

    pub(super) fn path_of(&self, member: &Member) -> PathBuf {
        join(&self.path, self.name(member))
    }
}

pub(super) fn join(path: &Path, name: &CStr) -> PathBuf {
    path.join(OsStr::from_bytes(name.to_bytes()))
}

pub(super) fn is_settled(record: &Record, pass: Timestamp) -> bool {
    record.stamp().is_settled_at(pass)
}
