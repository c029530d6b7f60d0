//! What every look at a tree has in common: how a directory is opened, and what is said of names that are not
//! there, cannot be read or are not stored.
//!
//! Crash story: opens for reading only; otherwise pure.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use model::problem::Problem;
use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
    path::Arg,
};

use super::{meta::Unread, said};
use crate::mounts::Mounts;

/// What to say of names that vanish while the look goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vanished {
    /// Nothing: nobody is held, so that is their right.
    Expected,
    /// A problem that makes the cut weaker: everybody should be held.
    Problem,
}

impl Vanished {
    /// What is to be said of a name that vanished.
    pub(super) fn said_of(self, path: &Path) -> Option<Problem> {
        (self == Self::Problem).then(|| {
            Problem::weaker(
                path,
                "vanished while everything should have stood still",
                "name the processes that change it, or exclude it",
            )
        })
    }
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::missing(
        path,
        format!("cannot be read: {}", said(error)),
        "run as a user that can read it, or exclude it",
    )
}

pub(super) fn attributes_unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::missing(
        path,
        format!("its extended attributes cannot be read: {}", said(error)),
        "run as a user that can read them",
    )
}

/// Attributes of one kind are unreadable everywhere or nowhere: one such note is enough for a tree.
pub(super) fn attribute_unread(path: &Path, unread: &Unread) -> Problem {
    let Unread { name, error } = unread;
    let what =
        format!("its attribute {name} cannot be read, nor perhaps those of other names: {}", said(error));
    Problem::note(path, what)
}

pub(super) fn socket(path: &Path) -> Problem {
    Problem::note(path, "a socket is not stored: its program makes it anew")
}

pub(super) fn time_beyond(path: &Path) -> Problem {
    Problem::note(path, "its modification time is beyond the years 0 to 9999, and is stored as their end")
}

pub(super) fn circle(path: &Path) -> Problem {
    Problem::note(path, "is a directory above it, mounted again: not followed")
}

/// What keeps a mount point from being entered.
pub(super) fn pseudo_mount(mounts: &Mounts, path: &Path) -> Option<Problem> {
    let mount = mounts.at(path).filter(|mount| mount.is_pseudo())?;
    let what = format!("is a {} filesystem: what it shows is not stored", mount.filesystem);
    Some(Problem::note(path, what))
}

/// Whether an error means that a name is no longer what it was when it was listed.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) // a link has taken its place
    ) || error.kind() == io::ErrorKind::NotFound
}

/// Opens a directory for listing. Reading it changes its access time, unless we own it or may do anything.
pub(super) fn open_dir(at: BorrowedFd<'_>, path: impl Arg + Copy) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(at, path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => Ok(openat(at, path, flags, Mode::empty())?),
        opened => Ok(opened?),
    }
}
