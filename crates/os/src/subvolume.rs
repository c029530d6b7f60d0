//! Read-only snapshots of btrfs subvolumes.
//!
//! Crash story: the journal has [`Undo::DeleteSubvolume`] before the snapshot exists and until it is gone.
//! Making one is a single step for the kernel. Deleting one is too, where it is allowed; an ordinary user
//! without the mount option `user_subvol_rm_allowed` removes it file by file, and a stop in between leaves a
//! part that the next run removes the same way. Deletion refuses any name but ours.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt, fs::OpenOptionsExt},
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
    io::Errno,
    ioctl::{Getter, Opcode, Setter, ioctl, opcode},
};

use crate::staging::{is_no_space, is_ours, new_name};

/// Inode of the root of every subvolume: `BTRFS_FIRST_FREE_OBJECTID`, linux/btrfs_tree.h.
const SUBVOLUME_ROOT: u64 = 256;
/// Inode of the empty directory that a snapshot has where a subvolume was nested:
/// `BTRFS_EMPTY_SUBVOL_DIR_OBJECTID`.
pub const EMPTY_PLACEHOLDER: u64 = 2;
/// `BTRFS_SUPER_MAGIC`, linux/magic.h.
const BTRFS_MAGIC: u64 = 0x9123_683e;
const READ_ONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args`, linux/btrfs.h.
#[repr(C)]
struct NameArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`, linux/btrfs.h.
#[repr(C)]
struct SnapshotArgs {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

const SNAP_DESTROY: Opcode = opcode::write::<NameArgs>(0x94, 15);
const SNAP_CREATE_V2: Opcode = opcode::write::<SnapshotArgs>(0x94, 23);
const SUBVOL_GETFLAGS: Opcode = opcode::read::<u64>(0x94, 25);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(0x94, 26);

/// Why a snapshot could not be made or deleted.
#[derive(Debug, thiserror::Error)]
pub enum SubvolumeError {
    /// The journal could not be written, so nothing was made.
    #[error("no snapshot is made without a journal")]
    Journal(#[source] Failure),
    /// It could not be made.
    #[error("no snapshot of {} can be made", pathtext::show(.0))]
    Create(PathBuf, #[source] io::Error),
    /// It could not be deleted.
    #[error("the snapshot {} cannot be deleted", pathtext::show(.0))]
    Delete(PathBuf, #[source] io::Error),
    /// It is not one of ours.
    #[error("{} is not a snapshot of ours", pathtext::show(.0))]
    NotOurs(PathBuf),
}

impl From<SubvolumeError> for Failure {
    fn from(error: SubvolumeError) -> Self {
        let (kind, remedy) = match &error {
            SubvolumeError::Journal(_) => (FailureKind::Other, "see that the state directory can be written"),
            SubvolumeError::Create(_, cause) if is_no_space(cause) => {
                (FailureKind::NoSpace, "free some space")
            }
            SubvolumeError::Create(..) => {
                (FailureKind::Other, "the subvolume must belong to the user that makes the backup")
            }
            SubvolumeError::Delete(..) => (
                FailureKind::Other,
                "delete it as root with `btrfs subvolume delete` or run `stillpoint thaw`",
            ),
            SubvolumeError::NotOurs(_) => (FailureKind::Refused, ""),
        };
        Self::new(kind, error.to_string(), remedy).because(error)
    }
}

/// A read-only snapshot. Dropping it deletes it.
pub struct Snapshot {
    path: PathBuf,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("path", &self.path)
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Makes a snapshot of the subvolume `source` in the directory `parent` of the same filesystem.
    ///
    /// # Errors
    /// If the journal cannot be written or the snapshot cannot be made; then nothing is left.
    pub fn create(
        journal: &Arc<dyn Journal>,
        source: &Path,
        parent: &Path,
        label: &str,
    ) -> Result<Self, SubvolumeError> {
        let failed = |error| SubvolumeError::Create(source.to_owned(), error);
        let path = new_name(parent, label).map_err(failed)?;
        let ticket = journal
            .intend(Undo::DeleteSubvolume { path: path.clone() }, None)
            .map_err(SubvolumeError::Journal)?;
        match snapshot(source, parent, path.file_name().unwrap_or_default()) {
            Ok(()) => Ok(Self { path, journal: Arc::clone(journal), ticket: Some(ticket) }),
            Err(error) => {
                journal.done(ticket);
                Err(failed(error))
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes it and crosses it off the journal.
    ///
    /// # Errors
    /// If it is left; then it stays in the journal.
    pub fn release(mut self) -> Result<(), SubvolumeError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), SubvolumeError> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        delete(&self.path)?;
        self.journal.done(ticket);
        Ok(())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(path = %self.path.display(), ?error, "a snapshot is left behind, for `thaw`");
        }
    }
}

/// Whether a path is the root of a btrfs subvolume.
///
/// # Errors
/// If it cannot be looked at.
pub fn is_subvolume(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.ino() == SUBVOLUME_ROOT && is_btrfs(path)?)
}

/// Whether a path is on a btrfs filesystem.
///
/// # Errors
/// If it cannot be looked at.
pub fn is_btrfs(path: &Path) -> io::Result<bool> {
    // The type of f_type differs between machines; magics have 32 bits.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "only the low 32 bits are compared")]
    let magic = rustix::fs::statfs(path)?.f_type as u64 & 0xffff_ffff;
    Ok(magic == BTRFS_MAGIC)
}

/// Deletes a snapshot of ours; done if it is gone.
///
/// # Errors
/// [`SubvolumeError::NotOurs`] if its name does not begin with [`crate::staging::PREFIX`] or it is no subvolume;
/// else what the filesystem says.
pub fn delete(path: &Path) -> Result<(), SubvolumeError> {
    let failed = |error| SubvolumeError::Delete(path.to_owned(), error);
    let not_ours = || SubvolumeError::NotOurs(path.to_owned());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(not_ours()) };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !is_ours(path) || !meta.is_dir() => return Err(not_ours()),
        Ok(_) => {}
    }
    if !is_subvolume(path).map_err(failed)? {
        return Err(not_ours());
    }
    match destroy(parent, name) {
        Ok(()) => Ok(()),
        Err(error) if is_not_allowed(&error) => remove_as_owner(path, parent, name).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// The way of an ordinary user: a read-only subvolume is never writable, so first make it writable; deleting it
/// may be allowed then, and emptying it and removing the empty directory is.
fn remove_as_owner(path: &Path, parent: &Path, name: &OsStr) -> io::Result<()> {
    make_writable(path)?;
    match destroy(parent, name) {
        Err(error) if is_not_allowed(&error) => std::fs::remove_dir_all(path),
        other => other,
    }
}

fn is_not_allowed(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PERM | Errno::ACCESS | Errno::ROFS))
}

fn open_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

fn snapshot(source: &Path, parent: &Path, name: &OsStr) -> io::Result<()> {
    let source = File::open(source)?;
    let args = SnapshotArgs {
        fd: i64::from(source.as_raw_fd()),
        transaction: 0,
        flags: READ_ONLY,
        unused: [0; 4],
        name: name_bytes(name)?,
    };
    // SAFETY: the request reads a `struct btrfs_ioctl_vol_args_v2`, whose layout `SnapshotArgs` has, with a
    // name that ends in a zero byte; the descriptor in it is open during the call.
    Ok(unsafe { ioctl(open_dir(parent)?, Setter::<SNAP_CREATE_V2, SnapshotArgs>::new(args)) }?)
}

fn destroy(parent: &Path, name: &OsStr) -> io::Result<()> {
    let args = NameArgs { fd: 0, name: name_bytes(name)? };
    // SAFETY: the request reads a `struct btrfs_ioctl_vol_args`, whose layout `NameArgs` has, with a name that
    // ends in a zero byte.
    Ok(unsafe { ioctl(open_dir(parent)?, Setter::<SNAP_DESTROY, NameArgs>::new(args)) }?)
}

fn make_writable(path: &Path) -> io::Result<()> {
    let dir = open_dir(path)?;
    // SAFETY: the request writes one `u64` of flags.
    let flags = unsafe { ioctl(&dir, Getter::<SUBVOL_GETFLAGS, u64>::new()) }?;
    // SAFETY: the request reads one `u64` of flags.
    Ok(unsafe { ioctl(&dir, Setter::<SUBVOL_SETFLAGS, u64>::new(flags & !READ_ONLY)) }?)
}

/// A name with zeroes after it, at least one.
fn name_bytes<const N: usize>(name: &OsStr) -> io::Result<[u8; N]> {
    let bytes = name.as_bytes();
    let mut padded = [0; N];
    match padded.get_mut(..bytes.len()) {
        Some(room) if bytes.len() < N => room.copy_from_slice(bytes),
        _ => return Err(io::ErrorKind::InvalidFilename.into()),
    }
    Ok(padded)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{SubvolumeError, delete, is_subvolume};

    #[test]
    fn nothing_but_a_subvolume_of_ours_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join(".stillpoint-x");
        std::fs::create_dir(&plain).unwrap();
        assert!(matches!(delete(&plain), Err(SubvolumeError::NotOurs(_))));
        let other = dir.path().join("data");
        std::fs::create_dir(&other).unwrap();
        assert!(matches!(delete(&other), Err(SubvolumeError::NotOurs(_))));
        assert!(plain.exists() && other.exists());
        delete(&dir.path().join(".stillpoint-gone")).unwrap();
    }

    #[test]
    fn an_ordinary_directory_is_no_subvolume() {
        assert!(!is_subvolume(Path::new("/proc")).unwrap());
        assert!(is_subvolume(Path::new("/nonexistent")).is_err());
    }
}
