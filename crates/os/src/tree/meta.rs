//! The attributes of one name, by path.
//!
//! Crash story: reads only.

use std::{
    ffi::{CStr, CString},
    fs::Metadata,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::MetadataExt,
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use jiff::Timestamp;
use model::{
    entry::{Kind, Meta, Stamp, Xattr},
    size::Bytes,
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Statx, StatxAttributes, StatxFlags, StatxTimestamp, lgetxattr, llistxattr,
        makedev, readlinkat, statx,
    },
    io::Errno,
    time::{ClockId, clock_gettime},
};

/// The beginning of the year 0.
const FIRST: Timestamp = Timestamp::constant(-62_167_219_200, 0);

/// Longest list of names and longest value of an extended attribute: `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`,
/// linux/limits.h.
const XATTR_MAX: usize = 65_536;

/// Enough for what nearly every name has. The kernel makes room for as much as it is offered, at each call.
const XATTR_USUAL: usize = 512;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Something that is stored.
    Stored(Kind),
    /// A socket: its program makes it anew.
    Socket,
}

/// An attribute that exists and could not be read.
#[derive(Debug)]
pub(super) struct Unread {
    pub name: String,
    pub error: io::Error,
}

/// What stands at a path, and its attributes. A symbolic link is not followed; nothing is opened.
///
/// # Errors
/// What the filesystem says. Extended attributes that this user may not read are left out and logged.
pub fn read_entry_meta(path: &Path) -> io::Result<(Found, Meta)> {
    let status = status(CWD, path)?;
    let (found, mut meta) = describe(CWD, path, &status)?;
    let (xattrs, unread) = Xattrs::new().read(path)?;
    meta.xattrs = xattrs;
    for Unread { name, error } in unread {
        tracing::debug!(path = %path.display(), name, %error, "an extended attribute cannot be read");
    }
    Ok((found, meta))
}

/// The clock by which the kernel stamps files at this moment: a change made from now on gets this time or a
/// later one (`CLOCK_REALTIME_COARSE`, which ticks every 1 to 10 ms). Filesystems that keep whole seconds
/// round down.
#[must_use]
pub fn clock_of_stamps() -> Timestamp {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    let nanos = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    in_range(nanos)
}

/// Whether a change time (nanoseconds since the epoch) says that something changed at `floor` or later, a time of
/// [`clock_of_stamps`]. A filesystem that keeps whole seconds, or every second one, rounds down: then the whole
/// time that may be meant counts.
#[must_use]
pub fn changed_since(ctime: i128, floor: Timestamp) -> bool {
    const WHOLE: i128 = 1_000_000_000;
    let coarse = if ctime % WHOLE == 0 { 2 * WHOLE } else { 0 };
    ctime.saturating_add(coarse) >= floor.as_nanosecond()
}

pub(super) fn status(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(statx(dir, name, flags, StatxFlags::BASIC_STATS)?)
}

pub(super) fn is_mount_point(status: &Statx) -> bool {
    status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

pub(super) fn device(status: &Statx) -> u64 {
    makedev(status.stx_dev_major, status.stx_dev_minor)
}

/// Kind and attributes without the extended ones.
pub(super) fn describe(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    status: &Statx,
) -> io::Result<(Found, Meta)> {
    let special = makedev(status.stx_rdev_major, status.stx_rdev_minor);
    let found = match FileType::from_raw_mode(u32::from(status.stx_mode)) {
        FileType::RegularFile => Found::Stored(Kind::File),
        FileType::Directory => Found::Stored(Kind::Dir),
        FileType::Symlink => {
            let target = readlinkat(dir, name, Vec::new())?.into_bytes();
            Found::Stored(Kind::Symlink(PathBuf::from(std::ffi::OsString::from_vec(target))))
        }
        FileType::Fifo => Found::Stored(Kind::Fifo),
        FileType::CharacterDevice => Found::Stored(Kind::CharDevice(special)),
        FileType::BlockDevice => Found::Stored(Kind::BlockDevice(special)),
        FileType::Socket => Found::Socket,
        FileType::Unknown => {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "an object of unknown kind"));
        }
    };
    let size = match &found {
        Found::Stored(Kind::File | Kind::Symlink(_)) => status.stx_size,
        _ => 0,
    };
    let meta = Meta {
        mode: u32::from(status.stx_mode),
        uid: status.stx_uid,
        gid: status.stx_gid,
        size: Bytes(size),
        mtime: timestamp(status.stx_mtime),
        atime: timestamp(status.stx_atime),
        ctime: timestamp(status.stx_ctime),
        inode: status.stx_ino,
        device: device(status),
        links: u64::from(status.stx_nlink),
        xattrs: Vec::new(),
    };
    Ok((found, meta))
}

fn timestamp(stamp: StatxTimestamp) -> Timestamp {
    time(stamp.tv_sec, stamp.tv_nsec)
}

/// The time of these seconds and nanoseconds after them.
pub(super) fn time(seconds: i64, nanos: u32) -> Timestamp {
    // Dividing numbers of 128 bits takes longer than most of what is done for a name.
    let usual = i32::try_from(nanos).ok().filter(|_| seconds >= 0);
    usual
        .and_then(|nanos| Timestamp::new(seconds, nanos).ok())
        .unwrap_or_else(|| in_range(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)))
}

/// A file may claim any 64-bit second; what lies beyond the years 0 to 9999 is taken as their end: a tree with a year that has
/// not four digits is one that restic cannot read (RFC 3339).
pub(super) fn in_range(nanos: i128) -> Timestamp {
    let end = if nanos < 0 { FIRST } else { Timestamp::MAX };
    Timestamp::from_nanosecond(nanos).ok().filter(|time| *time >= FIRST).unwrap_or(end)
}

/// Whether a tree can hold the time of the last change of the content.
pub(super) fn has_true_time(status: &Statx) -> bool {
    let StatxTimestamp { tv_sec: seconds, tv_nsec: nanos, .. } = status.stx_mtime;
    timestamp(status.stx_mtime).as_nanosecond() == i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

/// What tells the content of an open file from another, with the same times as [`read_entry_meta`] gives.
#[must_use]
pub fn stamp_of(meta: &Metadata) -> Stamp {
    let nanos = |seconds: i64, rest: i64| {
        in_range(i128::from(seconds) * 1_000_000_000 + i128::from(rest)).as_nanosecond()
    };
    Stamp {
        size: Bytes(meta.len()),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        inode: meta.ino(),
    }
}

/// Asks with the usual room, and with all the room that there can be if that is not enough.
fn fitting(room: &mut Vec<u8>, ask: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<usize, Errno> {
    let usual = room.len().min(XATTR_USUAL);
    match ask(&mut room[..usual]) {
        Err(Errno::RANGE) => {
            room.resize(XATTR_MAX, 0);
            ask(room)
        }
        asked => asked,
    }
}

/// `listxattrat(2)`, Linux 6.13: the number is the same for all processors, `include/uapi/asm-generic/unistd.h`.
const LISTXATTRAT: libc::c_long = 465;

/// The names of the attributes of a name in a directory; any error but [`Errno::NOTSUP`] may mean that this kernel or a
/// filter of system calls does not know the question.
fn list_at(dir: BorrowedFd<'_>, name: &CStr, room: &mut [u8]) -> Result<usize, Errno> {
    static IS_KNOWN: AtomicBool = AtomicBool::new(true);
    if !IS_KNOWN.load(Ordering::Relaxed) {
        return Err(Errno::NOSYS);
    }
    // SAFETY: the descriptor is open, the name ends with a zero byte, and the room is as long as is said; all are
    // valid for the call.
    let got = unsafe {
        libc::syscall(
            LISTXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            room.as_mut_ptr(),
            room.len(),
        )
    };
    if let Ok(length) = usize::try_from(got) {
        return Ok(length);
    }
    let error = Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOSYS);
    if matches!(error, Errno::NOSYS | Errno::PERM) {
        IS_KNOWN.store(false, Ordering::Relaxed);
    }
    Err(error)
}

/// Reads extended attributes, with buffers that are kept.
pub(super) struct Xattrs {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Xattrs {
    pub(super) fn new() -> Self {
        Self { names: vec![0; XATTR_USUAL], value: vec![0; XATTR_USUAL] }
    }

    /// As [`Self::read`], of a name in an open directory, which stands at this path. That it has none, as nearly every
    /// name, is found out without a walk along the path where the kernel can.
    pub(super) fn read_in(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
    ) -> io::Result<(Vec<Xattr>, Vec<Unread>)> {
        match list_at(dir, name, &mut self.names[..XATTR_USUAL]) {
            Ok(0) | Err(Errno::NOTSUP) => Ok((Vec::new(), Vec::new())),
            _ => self.read(path),
        }
    }

    /// The attributes of a name that is not followed if it is a link, ordered by name, and those that could not
    /// be read.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<(Vec<Xattr>, Vec<Unread>)> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let length = match fitting(&mut self.names, |room| llistxattr(&path, room)) {
            Ok(0) | Err(Errno::NOTSUP) => return Ok((Vec::new(), Vec::new())),
            Ok(length) => length,
            Err(error @ (Errno::PERM | Errno::ACCESS)) => {
                return Ok((Vec::new(), vec![Unread { name: "*".to_owned(), error: error.into() }]));
            }
            Err(error) => return Err(error.into()),
        };
        let (mut read, mut unread) = (Vec::new(), Vec::new());
        let names = self.names[..length].split(|b| *b == 0);
        for name in names.filter(|name| !name.is_empty() && !Xattr::is_inner_acl(name)) {
            match fitting(&mut self.value, |room| lgetxattr(&path, name, room)) {
                Ok(length) => read.push(Xattr { name: name.to_vec(), value: self.value[..length].to_vec() }),
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NOTSUP)) => unread
                    .push(Unread { name: String::from_utf8_lossy(name).into_owned(), error: error.into() }),
                Err(error) => return Err(error.into()),
            }
        }
        read.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((read, unread))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{
            fd::AsFd,
            unix::{
                fs::{MetadataExt, PermissionsExt, symlink},
                net::UnixListener,
            },
        },
        path::PathBuf,
    };

    use jiff::Timestamp;
    use model::{entry::Kind, size::Bytes};
    use rustix::fs::{Mode, Timespec, Timestamps};

    use super::{
        CWD, Found, Xattrs, clock_of_stamps, has_true_time, in_range, read_entry_meta, stamp_of, status, time,
    };

    #[test]
    fn attributes_are_those_of_the_file_to_the_nanosecond() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"12345").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
        let time = Timespec { tv_sec: -3, tv_nsec: 123_456_789 };
        let file = fs::File::open(&path).unwrap();
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time }).unwrap();
        fs::hard_link(&path, dir.path().join("g")).unwrap();

        let (found, meta) = read_entry_meta(&path).unwrap();
        let std = fs::metadata(&path).unwrap();
        assert_eq!(found, Found::Stored(Kind::File));
        assert_eq!(meta.mode, std.mode());
        assert_eq!((meta.uid, meta.gid), (std.uid(), std.gid()));
        assert_eq!((meta.size, meta.inode, meta.device, meta.links), (Bytes(5), std.ino(), std.dev(), 2));
        assert_eq!(meta.mtime.as_nanosecond(), -3_000_000_000 + 123_456_789);
        assert_eq!(
            meta.ctime.as_nanosecond(),
            i128::from(std.ctime()) * 1_000_000_000 + i128::from(std.ctime_nsec())
        );
    }

    #[test]
    fn every_kind_is_told_apart_and_nothing_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("nowhere/at all", at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let (link, meta) = read_entry_meta(&at("link")).unwrap();
        assert_eq!(link, Found::Stored(Kind::Symlink(PathBuf::from("nowhere/at all"))));
        assert_eq!(meta.size, Bytes(14));
        assert_eq!(read_entry_meta(&at("fifo")).unwrap().0, Found::Stored(Kind::Fifo));
        assert_eq!(read_entry_meta(&at("socket")).unwrap().0, Found::Socket);
        let (dir_found, dir_meta) = read_entry_meta(dir.path()).unwrap();
        assert_eq!((dir_found, dir_meta.size), (Found::Stored(Kind::Dir), Bytes(0)));
        let null = read_entry_meta(std::path::Path::new("/dev/null")).unwrap().0;
        assert_eq!(null, Found::Stored(Kind::CharDevice(rustix::fs::makedev(1, 3))));
    }

    #[test]
    fn extended_attributes_and_acls_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"").unwrap();
        xattr::set(&path, "user.b", b"\0two\xff").unwrap();
        xattr::set(&path, "user.a", b"").unwrap();
        // Version 2, then entries of tag, permissions, id: acl(5) and linux/posix_acl_xattr.h.
        let acl = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 4, 0, 42, 0, 0, 0],
            &[4, 0, 4, 0, 255, 255, 255, 255],
            &[16, 0, 4, 0, 255, 255, 255, 255],
            &[32, 0, 0, 0, 255, 255, 255, 255],
        ]
        .concat();
        xattr::set(&path, "system.posix_acl_access", &acl).unwrap();
        let (_, meta) = read_entry_meta(&path).unwrap();
        let read: Vec<(&[u8], &[u8])> = meta.xattrs.iter().map(|x| (&x.name[..], &x.value[..])).collect();
        let expected: [(&[u8], &[u8]); 3] =
            [(b"system.posix_acl_access", &acl), (b"user.a", b""), (b"user.b", b"\0two\xff")];
        let read: Vec<_> = read.into_iter().filter(|(name, _)| !name.starts_with(b"security.")).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn large_attributes_and_many_of_them_are_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"").unwrap();
        let large = vec![7; 2000];
        xattr::set(&path, "user.large", &large).unwrap();
        for n in 0..20 {
            xattr::set(&path, format!("user.a name of usual length, {n}"), b"v").unwrap();
        }
        let (_, meta) = read_entry_meta(&path).unwrap();
        let ours = |x: &&model::entry::Xattr| x.name.starts_with(b"user.");
        assert_eq!(meta.xattrs.iter().filter(ours).count(), 21);
        let inside = fs::File::open(dir.path()).unwrap();
        let (xattrs, unread) = Xattrs::new().read_in(inside.as_fd(), c"f", &path).unwrap();
        assert_eq!((&xattrs, unread.len()), (&meta.xattrs, 0));
        fs::write(dir.path().join("g"), b"").unwrap();
        let (xattrs, _) = Xattrs::new().read_in(inside.as_fd(), c"g", &dir.path().join("g")).unwrap();
        assert!(!xattrs.iter().any(|x| x.name.starts_with(b"user.")));
        assert!(Xattrs::new().read_in(inside.as_fd(), c"h", &dir.path().join("h")).is_err());
        assert!(meta.xattrs.iter().any(|x| x.name == b"user.large" && x.value == large));
    }

    #[test]
    fn times_beyond_the_calendar_are_its_ends() {
        for (seconds, nanos) in
            [(5, 7), (-5, 7), (i64::MAX, 7), (i64::MIN, 7), (0, 999_999_999), (0, u32::MAX)]
        {
            let expected = in_range(i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
            assert_eq!(time(seconds, nanos), expected, "{seconds} {nanos}");
        }
        assert_eq!(in_range(i128::from(i64::MAX) * 1_000_000_000), Timestamp::MAX);
        for before in [i128::from(i64::MIN) * 1_000_000_000, Timestamp::MIN.as_nanosecond()] {
            assert_eq!(in_range(before).to_string(), "0000-01-01T00:00:00Z");
        }
    }

    #[test]
    fn an_open_file_has_the_times_of_its_entry_also_beyond_the_calendar() {
        // tmpfs keeps any second.
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        for (seconds, is_kept) in [(5, true), (-70_000_000_000, false), (1 << 50, false)] {
            let times = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
            let both = rustix::fs::Timestamps { last_access: times, last_modification: times };
            rustix::fs::futimens(&file, &both).unwrap();
            let (_, meta) = read_entry_meta(file.path()).unwrap();
            assert_eq!(stamp_of(&file.as_file().metadata().unwrap()), meta.stamp(), "{seconds}");
            assert_eq!(has_true_time(&status(CWD, file.path()).unwrap()), is_kept, "{seconds}");
        }
    }

    #[test]
    fn a_change_is_never_stamped_before_the_clock_of_stamps() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..200 {
            let before = clock_of_stamps();
            let path = dir.path().join(n.to_string());
            fs::write(&path, b"x").unwrap();
            let (_, meta) = read_entry_meta(&path).unwrap();
            assert!(meta.ctime >= before, "{} is before {before}", meta.ctime);
        }
    }
}
