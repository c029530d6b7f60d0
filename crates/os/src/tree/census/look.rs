//! Looking at a part of a directory and telling what is otherwise than a census says.
//!
//! Crash story: reads only; no file is opened.

use std::{
    ffi::CStr,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use model::problem::Problem;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, Statx, StatxFlags, makedev, open, readlinkat, statx,
};

use super::{
    Pass,
    record::{Extra, Folder, Member, Names, Record, Standing, is_settled, join},
};
use crate::{
    staging::is_ours,
    tree::{
        meta::{Xattrs, device, has_true_time, status},
        rules::{
            attribute_unread, attributes_unreadable, is_gone, open_dir, socket, time_beyond, unreadable,
        },
    },
};

/// How much of a listing is read at once.
const LISTING: usize = 1 << 16;

/// A part of one directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub folder: u32,
    /// The first member. The directory's own state belongs to the chunk with its first.
    pub from: usize,
    /// The member after the last.
    pub to: usize,
}

/// What a part of a directory shows that the census does not say.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub folder: u32,
    /// The directory cannot be opened, or is another by now.
    pub lost: Option<io::Error>,
    /// By index, ordered.
    pub changed: Vec<(usize, Seen)>,
    pub listing: Option<Listing>,
    /// What came and went while it was looked at.
    pub vanished: Vec<PathBuf>,
}

/// What has become of a name.
#[derive(Debug)]
pub(super) enum Seen {
    Gone,
    /// It was accessed, no more.
    Accessed(Record),
    Otherwise(Box<Member>),
}

/// A directory that had to be listed.
#[derive(Debug)]
pub(super) struct Listing {
    /// Taken before the names.
    pub before: Record,
    /// Indexes of members that are no longer listed, ordered.
    pub removed: Vec<usize>,
    pub names: Names,
    /// New members, ordered by name.
    pub added: Vec<Member>,
}

impl Findings {
    fn lost(folder: u32, error: io::Error) -> Self {
        Self { folder, lost: Some(error), ..Self::default() }
    }

    /// Takes what another part of the same directory shows, which comes after this one.
    pub(super) fn absorb(&mut self, other: Self) {
        self.changed.extend(other.changed);
        self.vanished.extend(other.vanished);
        self.lost = self.lost.take().or(other.lost);
        self.listing = self.listing.take().or(other.listing);
    }

    fn is_nothing(&self) -> bool {
        self.lost.is_none() && self.changed.is_empty() && self.listing.is_none() && self.vanished.is_empty()
    }
}

/// Looks, with buffers that are kept.
pub(super) struct Looker<'p, 'a> {
    pass: &'p Pass<'a>,
    xattrs: Xattrs,
}

impl<'p, 'a> Looker<'p, 'a> {
    pub(super) fn new(pass: &'p Pass<'a>) -> Self {
        Self { pass, xattrs: Xattrs::new() }
    }

    /// `None` if all is as the census says.
    pub(super) fn look(&mut self, chunk: Chunk, folder: &Folder) -> Option<Findings> {
        let opened = enter(&folder.path).and_then(|dir| {
            let status = statx(&dir, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
            Ok((dir, status))
        });
        let (dir, before) = match opened {
            Ok((dir, status)) if (device(&status), status.stx_ino) == folder.identity => (dir, status),
            Ok(_) => return Some(Findings::lost(chunk.folder, io::ErrorKind::NotFound.into())),
            Err(error) => return Some(Findings::lost(chunk.folder, error)),
        };
        let mut found = Findings { folder: chunk.folder, ..Findings::default() };
        let before = Record::of(&before);
        let has_same_names =
            folder.settled && folder.listed.is_some_and(|listed| listed.is_same_directory(&before));
        if chunk.from == 0 && !has_same_names {
            match self.list(dir.as_fd(), folder, before, &mut found.vanished) {
                Ok(listing) => found.listing = Some(listing),
                Err(error) => return Some(Findings::lost(chunk.folder, error)),
            }
        }
        for index in chunk.from..chunk.to {
            let Some(member) = folder.members.get(index) else { break };
            let seen = self.again(dir.as_fd(), folder, member);
            found.changed.extend(seen.map(|seen| (index, seen)));
        }
        (!found.is_nothing()).then_some(found)
    }

    fn again(&mut self, dir: BorrowedFd<'_>, folder: &Folder, member: &Member) -> Option<Seen> {
        let name = folder.name(member);
        let status = match status(dir, name) {
            Ok(status) => status,
            Err(error) if is_gone(&error) => return Some(Seen::Gone),
            Err(error) => {
                return Some(Seen::Otherwise(Box::new(Member::unknown(unreadable(
                    &join(&folder.path, name),
                    &error,
                )))));
            }
        };
        let record = Record::of(&status);
        if member.settled && member.shows(device(&status), &record) {
            return (!member.record.accessed_alike(&record)).then_some(Seen::Accessed(record));
        }
        let read = self.read(dir, &join(&folder.path, name), name, &status);
        Some(read.map_or(Seen::Gone, |member| Seen::Otherwise(Box::new(member))))
    }

    /// Everything about a name; `None` if it is gone or not ours to store.
    pub(super) fn read(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &Path,
        name: &CStr,
        status: &Statx,
    ) -> Option<Member> {
        let mut extra = Extra::default();
        let mut settled = is_settled(&Record::of(status), self.pass.started);
        if !has_true_time(status) {
            extra.problems.push(time_beyond(path));
        }
        match FileType::from_raw_mode(u32::from(status.stx_mode)) {
            FileType::Directory if is_ours(path) => return None,
            FileType::Socket => {
                extra.problems.push(socket(path));
                return Some(Member::new(status, Standing::Socket, settled, extra));
            }
            FileType::Unknown => {
                let error = io::Error::new(io::ErrorKind::Unsupported, "an object of unknown kind");
                return Some(Member::unknown(unreadable(path, &error)));
            }
            FileType::Symlink => match readlinkat(dir, name, Vec::new()).map_err(io::Error::from) {
                Ok(target) => {
                    extra.target = PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes()));
                }
                Err(error) if is_gone(&error) => return None,
                Err(error) => return Some(Member::unknown(unreadable(path, &error))),
            },
            FileType::CharacterDevice | FileType::BlockDevice => {
                extra.special = makedev(status.stx_rdev_major, status.stx_rdev_minor);
            }
            FileType::RegularFile | FileType::Directory | FileType::Fifo => {}
        }
        match self.xattrs.read_in(dir, name, path) {
            Ok((xattrs, unread)) => {
                extra.xattrs = xattrs;
                extra.unread = unread.first().map(|unread| attribute_unread(path, unread));
            }
            // Gone since: whoever reads a file or enters a directory will say so.
            Err(error) if is_gone(&error) => settled = false,
            Err(error) => {
                extra.problems.push(attributes_unreadable(path, &error));
                settled = false;
            }
        }
        Some(Member::new(status, Standing::Stored, settled, extra))
    }

    fn list(
        &mut self,
        dir: BorrowedFd<'_>,
        folder: &Folder,
        before: Record,
        vanished: &mut Vec<PathBuf>,
    ) -> io::Result<Listing> {
        let all = names(dir)?;
        let mut sorted: Vec<&CStr> = all.1.iter().map(|start| all.0.at(*start)).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let mut listing = Listing { before, removed: Vec::new(), names: Names::default(), added: Vec::new() };
        let mut old = folder.members.iter().enumerate().peekable();
        for name in sorted {
            while let Some((index, _)) = old.next_if(|(_, member)| folder.name(member) < name) {
                listing.removed.push(index);
            }
            if old.next_if(|(_, member)| folder.name(member) == name).is_some() {
                continue;
            }
            let path = join(&folder.path, name);
            if self.pass.leaves_out(&path) {
                continue;
            }
            let member = match status(dir, name) {
                Ok(status) => self.read(dir, &path, name, &status),
                Err(error) if is_gone(&error) => {
                    vanished.push(path);
                    None
                }
                Err(error) => Some(Member::unknown(unreadable(&path, &error))),
            };
            if let Some(mut member) = member {
                member.name = listing.names.add(name).ok_or(io::ErrorKind::FileTooLarge)?;
                listing.added.push(member);
            }
        }
        listing.removed.extend(old.map(|(index, _)| index));
        Ok(listing)
    }
}

/// Opens a directory for looking at what it holds by name, not for listing it.
pub(super) fn enter(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// The names in a directory, in any order, and where each begins.
fn names(dir: BorrowedFd<'_>) -> io::Result<(Names, Vec<u32>)> {
    let dir = open_dir(dir, c".")?;
    let mut buffer = [MaybeUninit::uninit(); LISTING];
    let (mut names, mut starts) = (Names::default(), Vec::new());
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            starts.push(names.add(name).ok_or(io::ErrorKind::FileTooLarge)?);
        }
    }
    Ok((names, starts))
}

/// How the root looks; it must be a directory.
pub(super) fn look_at_root(pass: &Pass<'_>) -> io::Result<Member> {
    let status = status(CWD, pass.root)?;
    if FileType::from_raw_mode(u32::from(status.stx_mode)) != FileType::Directory {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut extra = Extra::default();
    match Xattrs::new().read(pass.root) {
        Ok((xattrs, unread)) => {
            extra.xattrs = xattrs;
            extra.unread = unread.first().map(|unread| attribute_unread(pass.root, unread));
        }
        Err(error) if is_gone(&error) => return Err(error),
        Err(error) => extra.problems.push(attributes_unreadable(pass.root, &error)),
    }
    Ok(Member::new(&status, Standing::Stored, false, extra))
}

/// What is to be said of names that came and went.
pub(super) fn vanished(pass: &Pass<'_>, paths: &[PathBuf], problems: &mut Vec<Problem>) {
    problems.extend(paths.iter().filter_map(|path| pass.vanished.said_of(path)));
}
