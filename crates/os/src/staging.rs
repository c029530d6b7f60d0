//! Directories for pinned copies: `.stillpoint-{label}-{random}`, journalled before they are made.
//!
//! Crash story: the journal has [`Undo::RemoveTree`] before the directory exists and until it is gone, so a
//! dead run's staging is removed by `thaw` or the next run. Several runs may stage side by side: names are
//! random. Every walker skips directories of such names. Removal never follows a symbolic link and refuses
//! any other name, so a damaged journal cannot make it remove a tree that is not ours.

use std::{
    ffi::OsString,
    fmt::Write,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{
    pathtext,
    port::{Failure, FailureKind, Journal},
    undo::{Ticket, Undo},
};
use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, openat},
    rand::GetRandomFlags,
};

/// How the names of all staging directories and snapshots of ours begin.
pub const PREFIX: &str = ".stillpoint-";

/// Why a staging directory could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The journal could not be written, so nothing was made.
    #[error("no directory for pinned copies is made without a journal")]
    Journal(#[source] Failure),
    /// It could not be made.
    #[error("no directory for pinned copies can be made in {}", pathtext::show(.0))]
    Create(PathBuf, #[source] io::Error),
    /// It could not be removed, or not all of it.
    #[error("pinned copies are left in {}", pathtext::show(.0))]
    Remove(PathBuf, #[source] io::Error),
    /// It is not one of ours.
    #[error("{} is not a directory of pinned copies: its name does not begin with {PREFIX}", pathtext::show(.0))]
    NotOurs(PathBuf),
}

impl From<StagingError> for Failure {
    fn from(error: StagingError) -> Self {
        let (kind, remedy) = match &error {
            StagingError::Journal(_) => (FailureKind::Other, "see that the state directory can be written"),
            StagingError::Create(_, cause) if is_no_space(cause) => (FailureKind::NoSpace, "free some space"),
            StagingError::Create(..) => (FailureKind::Other, "see that this user can write there"),
            StagingError::Remove(..) => (FailureKind::Other, "remove it by hand or run `stillpoint thaw`"),
            StagingError::NotOurs(_) => (FailureKind::Refused, ""),
        };
        Self::new(kind, error.to_string(), remedy).because(error)
    }
}

/// Whether an error says that a disk or a quota is full.
#[must_use]
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A directory for pinned copies (0700). Dropping it removes it with all it holds.
pub struct Staging {
    path: PathBuf,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
}

impl std::fmt::Debug for Staging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staging")
            .field("path", &self.path)
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}

impl Staging {
    /// Makes a new directory in `parent`, which must exist; `label` says in its name what it is for.
    ///
    /// # Errors
    /// If the journal cannot be written or the directory cannot be made; then nothing is left.
    pub fn create(journal: &Arc<dyn Journal>, parent: &Path, label: &str) -> Result<Self, StagingError> {
        let path = new_name(parent, label).map_err(|e| StagingError::Create(parent.to_owned(), e))?;
        let ticket =
            journal.intend(Undo::RemoveTree { path: path.clone() }, None).map_err(StagingError::Journal)?;
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) => Ok(Self { path, journal: Arc::clone(journal), ticket: Some(ticket) }),
            Err(error) => {
                journal.done(ticket);
                Err(StagingError::Create(parent.to_owned(), error.into()))
            }
        }
    }

    /// Leaves it where it is, for a later run, which knows of it from elsewhere: crosses it off the journal.
    #[must_use]
    pub fn keep(mut self) -> PathBuf {
        if let Some(ticket) = self.ticket.take() {
            self.journal.done(ticket);
        }
        std::mem::take(&mut self.path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all it holds and crosses it off the journal.
    ///
    /// # Errors
    /// If something is left; then it stays in the journal.
    pub fn release(mut self) -> Result<(), StagingError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), StagingError> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        remove(&self.path)?;
        self.journal.done(ticket);
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(path = %self.path.display(), ?error, "pinned copies are left behind, for `thaw`");
        }
    }
}

/// A new path in `parent` that is recognised as ours.
///
/// # Errors
/// If the kernel gives no random bytes.
pub fn new_name(parent: &Path, label: &str) -> io::Result<PathBuf> {
    Ok(parent.join(format!("{PREFIX}{label}-{}", random_hex()?)))
}

/// Whether a path has a name of ours; the walkers skip such directories.
#[must_use]
pub fn is_ours(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
}

/// Removes a staging directory with all it holds, directories closed to their owner included; done if it is
/// gone. Never follows a symbolic link.
///
/// # Errors
/// [`StagingError::NotOurs`] if its name does not begin with [`PREFIX`], or what the filesystem says.
pub fn remove(path: &Path) -> Result<(), StagingError> {
    if !is_ours(path) {
        return Err(StagingError::NotOurs(path.to_owned()));
    }
    let mut removed = std::fs::remove_dir_all(path);
    if removed.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied) {
        open_up(CWD, path);
        removed = std::fs::remove_dir_all(path);
    }
    match removed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StagingError::Remove(path.to_owned(), error)),
    }
}

/// Lets the owner of a tree enter and empty every directory in it. What cannot be opened up is left to the
/// removal to report. One descriptor a level is open, and no path but the first is followed.
fn open_up(above: BorrowedFd<'_>, name: &Path) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(dir) = openat(above, name, flags, Mode::empty()) else { return };
    // A descriptor that only names a directory can be had without any permission, but changes its mode only
    // by way of /proc, proc(5).
    let _ = rustix::fs::chmod(format!("/proc/self/fd/{}", dir.as_raw_fd()), Mode::RWXU);
    for inner in directories(&dir).unwrap_or_default() {
        open_up(dir.as_fd(), &inner);
    }
}

fn directories(dir: &OwnedFd) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let readable = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(readable)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        // Some filesystems do not tell the kind here; what is no directory is then not opened as one.
        if matches!(entry.file_type(), FileType::Directory | FileType::Unknown)
            && name != b"."
            && name != b".."
        {
            found.push(OsString::from_vec(name.to_vec()).into());
        }
    }
    Ok(found)
}

/// 16 random hexadecimal digits.
///
/// # Errors
/// If the kernel gives no random bytes.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut bytes = [0_u8; 8];
    if rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())? < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut text = String::with_capacity(16);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
        path::Path,
        sync::{Arc, Mutex},
    };

    use model::{
        port::{Failure, FailureKind, Journal},
        time::Deadline,
        undo::{Ticket, Undo},
    };

    use super::{Staging, StagingError, remove};

    /// Remembers what is open, and refuses to write if told so.
    #[derive(Default)]
    struct Paper {
        open: Mutex<Vec<(Ticket, Undo)>>,
        full: bool,
    }

    impl Journal for Paper {
        fn intend(&self, undo: Undo, _until: Option<Deadline>) -> Result<Ticket, Failure> {
            if self.full {
                return Err(Failure::new(FailureKind::NoSpace, "the journal is full", ""));
            }
            let mut open = self.open.lock().unwrap();
            if let Undo::RemoveTree { path } = &undo {
                assert!(!path.exists(), "written down before it is made");
            }
            let ticket = Ticket(open.len() as u64 + 1);
            open.push((ticket, undo));
            Ok(ticket)
        }
        fn amend(&self, _: Ticket, _: Undo, _: Option<Deadline>) -> Result<(), Failure> {
            Ok(())
        }
        fn done(&self, ticket: Ticket) {
            self.open.lock().unwrap().retain(|(t, _)| *t != ticket);
        }
    }

    #[test]
    fn staging_is_journalled_while_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let paper = Arc::new(Paper::default());
        let journal: Arc<dyn Journal> = paper.clone();
        let staging = Staging::create(&journal, dir.path(), "tree").unwrap();
        assert!(staging.path().is_dir());
        assert!(matches!(&paper.open.lock().unwrap()[..], [(_, Undo::RemoveTree { path })]
            if path == staging.path()));
        fs::create_dir(staging.path().join("d")).unwrap();
        fs::write(staging.path().join("d/f"), b"x").unwrap();
        staging.release().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(paper.open.lock().unwrap().is_empty());

        drop(Staging::create(&journal, dir.path(), "tree").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(paper.open.lock().unwrap().is_empty());
    }

    #[test]
    fn staging_that_is_kept_leaves_the_journal_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let paper = Arc::new(Paper::default());
        let journal: Arc<dyn Journal> = paper.clone();
        let kept = Staging::create(&journal, dir.path(), "reference").unwrap().keep();
        assert!(kept.is_dir() && paper.open.lock().unwrap().is_empty());
    }

    #[test]
    fn what_could_not_be_made_is_not_left_in_the_journal() {
        let paper = Arc::new(Paper::default());
        let journal: Arc<dyn Journal> = paper.clone();
        let made = Staging::create(&journal, Path::new("/nonexistent"), "x");
        assert!(matches!(made, Err(StagingError::Create(..))));
        assert!(paper.open.lock().unwrap().is_empty());
    }

    #[test]
    fn nothing_is_made_without_a_journal() {
        let dir = tempfile::tempdir().unwrap();
        let journal: Arc<dyn Journal> = Arc::new(Paper { full: true, ..Paper::default() });
        assert!(matches!(Staging::create(&journal, dir.path(), "x"), Err(StagingError::Journal(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_our_own_names_are_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("data");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("f"), b"x").unwrap();
        assert!(matches!(remove(&other), Err(StagingError::NotOurs(_))));

        let ours = dir.path().join(".stillpoint-x");
        fs::create_dir(&ours).unwrap();
        std::os::unix::fs::symlink(&other, ours.join("link")).unwrap();
        remove(&ours).unwrap();
        remove(&ours).unwrap();
        assert!(other.join("f").exists());

        let link = dir.path().join(".stillpoint-link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        remove(&link).unwrap();
        assert!(other.join("f").exists());
    }

    #[test]
    fn closed_directories_are_removed_and_nothing_outside_is_opened_up() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("data");
        fs::create_dir(&other).unwrap();
        fs::set_permissions(&other, Permissions::from_mode(0o555)).unwrap();
        let ours = dir.path().join(".stillpoint-x");
        let closed = ours.join("a").join("b");
        fs::create_dir_all(closed.join("c")).unwrap();
        fs::write(closed.join("c/f"), b"x").unwrap();
        std::os::unix::fs::symlink(&other, closed.join("link")).unwrap();
        for (path, mode) in [("a/b/c", 0o500), ("a/b", 0o000), ("a", 0o111)] {
            fs::set_permissions(ours.join(path), Permissions::from_mode(mode)).unwrap();
        }
        remove(&ours).unwrap();
        assert!(!ours.exists());
        assert_eq!(fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o555);
    }
}
