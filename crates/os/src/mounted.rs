//! Mounting snapshots, read-only, on directories of our own: `.stillpoint-mount-{random}`.
//!
//! Crash story: the journal has [`Undo::Unmount`] before the directory is made and until it is gone. Unmounting
//! refuses any directory that does not bear our name, and removes it only if it is empty. What is still in use is
//! detached: it vanishes from the tree at once and ends with its last user.

use std::{
    ffi::CString,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use model::{
    pathtext,
    port::{Failure, FailureKind, Journal},
    undo::{Ticket, Undo},
};
use rustix::{
    fs::Mode,
    io::Errno,
    ioctl::{Opcode, Setter, ioctl, opcode},
    mount::{MountFlags, UnmountFlags, mount, unmount as detach},
};

use crate::{
    clock::{deadline_in, left},
    mounts::Mounts,
    staging::{is_ours, new_name},
};

/// How long somebody may still read from it before it is detached.
const BUSY: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(50);

/// `XFS_IOC_GOINGDOWN`, which ext4 knows by the same number: fs/xfs/libxfs/xfs_fs.h, fs/ext4/ext4.h.
const GOING_DOWN: Opcode = opcode::read::<u32>(b'X', 125);
/// `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`, the same.
const NO_LOG_FLUSH: u32 = 2;

/// Why a snapshot could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountedError {
    /// The journal could not be written, so nothing was mounted.
    #[error("nothing is mounted without a journal")]
    Journal(#[source] Failure),
    /// The mount point could not be made.
    #[error("no mount point can be made in {}", pathtext::show(.0))]
    Point(PathBuf, #[source] io::Error),
    /// It could not be mounted.
    #[error("{} cannot be mounted", pathtext::show(.0))]
    Mount(PathBuf, #[source] io::Error),
    /// It could not be unmounted.
    #[error("{} cannot be unmounted", pathtext::show(.0))]
    Unmount(PathBuf, #[source] io::Error),
    /// It is not one of our mount points.
    #[error("{} is not a mount point of ours and is not touched", pathtext::show(.0))]
    NotOurs(PathBuf),
}

impl From<MountedError> for Failure {
    fn from(error: MountedError) -> Self {
        let (kind, remedy) = match &error {
            MountedError::Journal(_) | MountedError::Point(..) => {
                (FailureKind::Other, "see that the state directory can be written")
            }
            MountedError::Mount(..) => {
                (FailureKind::Other, "run as root, and see what the kernel says in its log (`dmesg`)")
            }
            MountedError::Unmount(..) => (FailureKind::Other, "unmount it as root or run `stillpoint thaw`"),
            MountedError::NotOurs(_) => (FailureKind::Refused, ""),
        };
        Self::new(kind, error.to_string(), remedy).because(error)
    }
}

/// Options of the filesystem with which a frozen copy of it can be mounted beside the original; nothing if it is not
/// known to bear that. Both replay their log into the snapshot, also when mounted for reading only. A second btrfs of the
/// same id would be mixed up with the first.
#[must_use]
pub fn options_beside(filesystem: &str) -> Option<&'static str> {
    match filesystem {
        "xfs" => Some("nouuid"),
        "ext2" | "ext3" | "ext4" => Some(""),
        _ => None,
    }
}

/// A mounted snapshot. Dropping it unmounts it.
pub struct Mounted {
    point: PathBuf,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted")
            .field("point", &self.point)
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}

impl Mounted {
    /// Mounts `device` read-only, without programs, devices or privileges, on a new directory in `parent`, which must
    /// exist.
    ///
    /// # Errors
    /// If it cannot be mounted; then nothing is left.
    pub fn read_only(
        journal: &Arc<dyn Journal>,
        device: &Path,
        parent: &Path,
        filesystem: &str,
        options: &str,
    ) -> Result<Self, MountedError> {
        let point = new_name(parent, "mount").map_err(|e| MountedError::Point(parent.to_owned(), e))?;
        let ticket =
            journal.intend(Undo::Unmount { path: point.clone() }, None).map_err(MountedError::Journal)?;
        let mounted = Self { point, journal: Arc::clone(journal), ticket: Some(ticket) };
        rustix::fs::mkdir(&mounted.point, Mode::RWXU)
            .map_err(|error| MountedError::Point(parent.to_owned(), error.into()))?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = CString::new(options).unwrap_or_default();
        mount(device, &mounted.point, filesystem, flags, options.as_c_str())
            .map_err(|error| MountedError::Mount(device.to_owned(), error.into()))?;
        Ok(mounted)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Makes every further reading fail at once, files that are open included, so that the device below can be
    /// taken away; then unmounts it.
    ///
    /// # Errors
    /// If it is still mounted; then it stays in the journal.
    pub fn give_up(self) -> Result<(), MountedError> {
        match File::open(&self.point) {
            // SAFETY: the request reads one `u32` of flags.
            Ok(root) => match unsafe { ioctl(root, Setter::<GOING_DOWN, u32>::new(NO_LOG_FLUSH)) } {
                Ok(()) => {}
                Err(error) => tracing::debug!(point = %self.point.display(), %error, "cannot be shut down"),
            },
            Err(error) => tracing::debug!(point = %self.point.display(), %error, "cannot be opened"),
        }
        self.release()
    }

    /// Unmounts it, removes its directory and crosses it off the journal.
    ///
    /// # Errors
    /// If it is still mounted; then it stays in the journal.
    pub fn release(mut self) -> Result<(), MountedError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), MountedError> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        unmount(&self.point)?;
        self.journal.done(ticket);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(point = %self.point.display(), ?error, "a mount is left behind, for `thaw`");
        }
    }
}

/// Unmounts what we mounted and removes the directory that it was mounted on; done if both are gone. Detaches it if it
/// stays in use.
///
/// # Errors
/// [`MountedError::NotOurs`] if its name does not begin with [`crate::staging::PREFIX`] or it is no directory; else
/// what the kernel says.
pub fn unmount(point: &Path) -> Result<(), MountedError> {
    if !is_ours(point) {
        return Err(MountedError::NotOurs(point.to_owned()));
    }
    let failed = |error| MountedError::Unmount(point.to_owned(), error);
    let until = deadline_in(BUSY);
    while is_mounted(point).map_err(failed)? {
        let flags = if left(until).is_zero() { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        match detach(point, flags | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INTR) => {}
            Err(Errno::BUSY) if flags.is_empty() => thread::sleep(STEP),
            Err(error) => return Err(failed(error.into())),
        }
    }
    match std::fs::symlink_metadata(point) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(meta) if !meta.is_dir() => Err(MountedError::NotOurs(point.to_owned())),
        Ok(_) => std::fs::remove_dir(point).map_err(failed),
    }
}

/// The table has real paths; a journal has the one by which it was mounted.
fn is_mounted(point: &Path) -> io::Result<bool> {
    let real = match (point.parent(), point.file_name()) {
        (Some(parent), Some(name)) => match parent.canonicalize() {
            Ok(parent) => parent.join(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        },
        _ => point.to_owned(),
    };
    Ok(Mounts::read()?.at(&real).is_some())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::Arc};

    use model::port::Journal;
    use testkit::fakes::journal::MemoryJournal;

    use super::{Mounted, MountedError, options_beside, unmount};

    #[test]
    fn only_known_filesystems_are_mounted_beside_their_original() {
        assert_eq!(options_beside("xfs"), Some("nouuid"));
        assert_eq!(options_beside("ext4"), Some(""));
        assert_eq!(options_beside("btrfs"), None);
    }

    #[test]
    fn what_cannot_be_mounted_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(MemoryJournal::default());
        let journal: Arc<dyn Journal> = fake.clone();
        let made = Mounted::read_only(&journal, Path::new("/dev/null"), dir.path(), "ext4", "");
        assert!(matches!(made, Err(MountedError::Mount(..))), "{made:?}");
        let made =
            Mounted::read_only(&journal, Path::new("/dev/null"), Path::new("/nonexistent"), "ext4", "");
        assert!(matches!(made, Err(MountedError::Point(..))), "{made:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(fake.open().is_empty());
    }

    #[test]
    fn nothing_but_our_own_directories_is_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let full = dir.path().join(".stillpoint-mount-1");
        fs::create_dir(&full).unwrap();
        fs::write(full.join("f"), "").unwrap();
        assert!(matches!(unmount(&full), Err(MountedError::Unmount(..))), "it is not empty");
        assert!(full.join("f").exists());
        assert!(matches!(unmount(Path::new("/proc")), Err(MountedError::NotOurs(_))));
        fs::remove_file(full.join("f")).unwrap();
        for _ in 0..2 {
            unmount(&full).unwrap();
            assert!(!full.exists());
        }
    }
}
