//! Setting the attributes of one object, and naming what could not be set.
//!
//! Order matters: a change of owner clears set-id bits and capabilities, and a closed file takes no more
//! attributes, so: owner, extended attributes, mode, times.
//!
//! Crash story: works on what lies in a staging directory that nobody else can enter; a stop half-way leaves
//! an object that is removed with it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use model::{
    entry::{Kind, Meta, Xattr},
    problem::{Effect, Problem},
    restore::Listed,
};
use rustix::{
    fs::{
        AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
        fchmod, fchown, fstat, futimens, utimensat,
    },
    io::Errno,
};

/// Permission bits of `st_mode`, set-id and sticky bits included.
pub(super) const PERMISSIONS: u32 = 0o7777;

/// A name in an open directory: no path to it is ever followed twice.
#[derive(Debug)]
pub(super) struct Place {
    pub dir: Arc<OwnedFd>,
    pub name: OsString,
}

impl Place {
    /// The place at a path relative to a directory. No symbolic link on the way is followed.
    pub fn below(root: &OwnedFd, path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(Errno::INVAL)?.to_owned();
        let above = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { dir: Arc::new(open_dir(root, above)?), name })
    }

    /// A path by which system calls that take no directory reach it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd())).join(&self.name)
    }
}

/// Opens a directory for reaching what is in it, without following any symbolic link on the way.
pub(super) fn open_dir(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        // Before Linux 5.6. The listing has nothing below a link, and nobody else can write here.
        Err(Errno::NOSYS) => Ok(rustix::fs::openat(root, path, flags, Mode::empty())?),
        opened => Ok(opened?),
    }
}

/// Sets attributes, and counts what only root could have set.
#[derive(Debug)]
pub(super) struct Setter {
    privileged: bool,
    uid: u32,
    foreign: AtomicU64,
    guarded: AtomicU64,
}

impl Setter {
    pub fn new(privileged: bool) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self { privileged, uid, foreign: AtomicU64::new(0), guarded: AtomicU64::new(0) }
    }

    /// Sets everything that the listing says of an object that is there.
    pub fn set(&self, place: &Place, item: &Listed) -> Vec<Problem> {
        self.set_on(&On::Name(place), item)
    }

    /// The same for a file that is open.
    pub fn set_open(&self, file: &File, item: &Listed) -> Vec<Problem> {
        self.set_on(&On::Open(file), item)
    }

    fn set_on(&self, on: &On<'_>, item: &Listed) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut note = |what: &str, result: io::Result<()>| {
            if let Err(error) = result {
                problems.push(not_set(&item.path, what, &error));
            }
        };
        let before = on.found();
        let owned = self.set_owner(on, &item.meta, before.as_ref());
        let is_own = matches!(owned, Ok(true));
        note("the owner", owned.map(|_| ()));
        let attributes = self.own(&item.meta.xattrs);
        for attribute in &attributes {
            let name = OsStr::from_bytes(&attribute.name);
            let what = format!("the attribute {}", name.to_string_lossy());
            note(&what, on.set_attribute(name, &attribute.value));
        }
        if !matches!(item.kind, Kind::Symlink(_)) {
            // Set-id bits for somebody else's sake are worse than none.
            let bits = if is_own { item.meta.mode & PERMISSIONS } else { item.meta.mode & 0o1777 };
            // Access rules among the attributes would have changed it.
            let is_so = attributes.is_empty() && before.is_some_and(|b| b.st_mode & PERMISSIONS == bits);
            note("the mode", if is_so { Ok(()) } else { on.set_mode(bits) });
        }
        note("the times", on.set_times(&item.meta));
        problems
    }

    /// Whether the owner is now the listed one; not being allowed to set it is counted, not an error.
    fn set_owner(&self, on: &On<'_>, meta: &Meta, before: Option<&Stat>) -> io::Result<bool> {
        if before.is_some_and(|b| (b.st_uid, b.st_gid) == (meta.uid, meta.gid)) {
            return Ok(true);
        }
        let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        if self.privileged {
            return on.set_owner(Some(uid), Some(gid)).map(|()| true).map_err(io::Error::from);
        }
        let group = on.set_owner(None, Some(gid));
        let user = if meta.uid == self.uid { Ok(()) } else { on.set_owner(Some(uid), None) };
        match group.and(user) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) => {
                self.foreign.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The attributes that this user may set.
    pub fn own<'a>(&self, xattrs: &'a [Xattr]) -> Vec<&'a Xattr> {
        let (own, guarded): (Vec<_>, Vec<_>) = xattrs
            .iter()
            .filter(|x| !Xattr::is_inner_acl(&x.name))
            .partition(|x| self.privileged || is_for_everyone(&x.name));
        self.guarded.fetch_add(guarded.len() as u64, Ordering::Relaxed);
        own
    }

    /// Whether owners are set at all.
    pub fn is_privileged(&self) -> bool {
        self.privileged
    }

    /// What was left out because this user may not set it, each kind once.
    pub fn left_out(&self) -> Vec<Problem> {
        let mut notes = Vec::new();
        let mut note = |count: u64, what: &str| {
            if count > 0 {
                let remedy = "restore as root to have them";
                notes.push(Problem::new(Effect::Note, None, format!("{count} {what}"), remedy));
            }
        };
        note(self.foreign.load(Ordering::Relaxed), "objects belong to this user instead of their owners");
        note(self.guarded.load(Ordering::Relaxed), "attributes that only root may set were left out");
        notes
    }
}

/// Namespaces that need no privilege, xattr(7); ACLs belong to the file's owner.
pub(super) fn is_for_everyone(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

/// What attributes are set on.
enum On<'a> {
    Name(&'a Place),
    /// Saves looking the name up again, for each attribute.
    Open(&'a File),
}

impl On<'_> {
    /// What a new file has already: setting that again would cost more than looking.
    fn found(&self) -> Option<Stat> {
        match self {
            Self::Name(_) => None,
            Self::Open(file) => fstat(file).ok(),
        }
    }

    fn set_owner(&self, uid: Option<Uid>, gid: Option<Gid>) -> rustix::io::Result<()> {
        match self {
            Self::Name(place) => chownat(&place.dir, &place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
            Self::Open(file) => fchown(file, uid, gid),
        }
    }

    fn set_attribute(&self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        match self {
            Self::Name(place) => xattr::set(place.path(), name, value),
            Self::Open(file) => xattr::FileExt::set_xattr(*file, name, value),
        }
    }

    fn set_mode(&self, bits: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(bits);
        match self {
            Self::Name(place) => chmodat(&place.dir, &place.name, mode, AtFlags::empty())?,
            Self::Open(file) => fchmod(file, mode)?,
        }
        Ok(())
    }

    fn set_times(&self, meta: &Meta) -> io::Result<()> {
        let times = Timestamps { last_access: timespec(meta.atime), last_modification: timespec(meta.mtime) };
        match self {
            Self::Name(place) => utimensat(&place.dir, &place.name, &times, AtFlags::SYMLINK_NOFOLLOW)?,
            Self::Open(file) => futimens(file, &times)?,
        }
        Ok(())
    }
}

fn timespec(time: Timestamp) -> Timespec {
    let nanos = time.as_nanosecond();
    // Both fit: a timestamp lies within ±10^4 years, the remainder below 10^9.
    Timespec {
        tv_sec: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(0),
        tv_nsec: i64::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}

fn not_set(path: &Path, what: &str, error: &io::Error) -> Problem {
    let remedy = if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) {
        "the filesystem has no such attributes: restore to one that has"
    } else {
        ""
    };
    Problem::weaker(path, format!("{what} could not be set: {error}"), remedy)
}

/// Takes the access rules that a new directory inherited from the one above it, so that what is written in
/// it inherits none.
pub(super) fn forget_inherited(dir: &Path) -> io::Result<()> {
    for name in ["system.posix_acl_default", "system.posix_acl_access"] {
        match xattr::remove(dir, name) {
            Ok(()) => {}
            Err(e) if is_absent(&e) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(chmodat(CWD, dir, Mode::RWXU, AtFlags::empty())?)
}

fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::NODATA, Errno::OPNOTSUPP];
    absent.iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}
