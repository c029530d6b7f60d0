//! Logical volumes, and snapshots of them, by the programs of LVM 2 and device mapper.
//!
//! Two kinds differ in all that matters: a *classic* snapshot has a size of its own, into which the old state of
//! whatever is overwritten in the origin is copied, and becomes invalid when that is full; a *thin* one shares
//! its pool with the origin, which itself suffers when the pool is full. While a snapshot is made, device mapper
//! freezes the filesystem of the origin, so the snapshot holds what a clean freeze leaves.
//!
//! Crash story: reads only here; `snapshot` below makes and removes. `lvcreate`, `lvextend` and `lvremove` suspend
//! the origin for a moment: ended in that moment they would leave it suspended for ever, so none of them is ever
//! ended by us, except after ten minutes. Whoever cannot wait goes on without them.

mod delta;
mod report;
mod snapshot;
mod status;

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use model::{
    port::{Failure, FailureKind},
    size::Bytes,
};

pub use self::{
    delta::{release as release_metadata, same_ranges},
    report::{Pool, free_in_group, look_at_pool},
    snapshot::{Gauge, LvSnapshot, Ready, is_ours, remove},
    status::Fill,
};
use crate::tools::{Tool, ToolError};

/// How long a program that changes volumes may take before it is taken for hanging.
const CHANGING: Duration = Duration::from_mins(10);
/// How long a program that only reads may take.
const READING: Duration = Duration::from_secs(30);

/// A logical volume that is active on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Volume group.
    pub group: String,
    /// Its name in the group.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// `linear`, `striped`, `thin`, `raid1` and so on: the type of its first segment.
    pub segment: String,
    /// The pool that it lies in.
    pub pool: Option<String>,
    /// The volume of which it is a snapshot.
    pub origin: Option<String>,
    /// What is free in its volume group.
    pub group_free: Bytes,
    /// The volume group's unit of allocation.
    pub extent: Bytes,
    /// Its tags.
    pub tags: Vec<String>,
    /// LVM's UUID of it.
    pub uuid: String,
    /// Its number in its thin pool.
    pub thin_id: Option<u32>,
}

impl LogicalVolume {
    /// `group/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> PathBuf {
        Path::new("/dev/mapper").join(dm_name(&self.group, &self.name))
    }

    /// Whether it carries the tag of our snapshots.
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        self.tags.iter().any(|tag| tag == snapshot::TAG)
    }

    /// The thin pool that it lies in, if it is a thin volume.
    #[must_use]
    pub fn thin_pool(&self) -> Option<&str> {
        if self.segment == "thin" { self.pool.as_deref() } else { None }
    }
}

/// Why something could not be done with a logical volume.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// The journal could not be written, so nothing was made.
    #[error("no snapshot is made without a journal")]
    Journal(#[source] Failure),
    /// Another program has reserved the pool's metadata.
    #[error("the snapshot of the metadata of the thin pool {0} is held by another program")]
    Busy(String),
    /// A program of LVM did not do it.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// It does not bear the marks of our snapshots.
    #[error("{0} is not a snapshot of ours and is not touched")]
    NotOurs(String),
    /// The kernel refuses something simple.
    #[error("{what}")]
    System {
        /// What was to be done.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl From<LvmError> for Failure {
    fn from(error: LvmError) -> Self {
        let (kind, remedy) = match &error {
            LvmError::Journal(_) => (FailureKind::Other, "see that the state directory can be written"),
            LvmError::Tool(ToolError::Run { .. }) => (
                FailureKind::Other,
                "install the packages lvm2, dmsetup and thin-provisioning-tools, and run as root",
            ),
            LvmError::Tool(ToolError::Failed { said, .. })
                if said.to_lowercase().contains("insufficient free space") =>
            {
                (FailureKind::NoSpace, "make room in the volume group: `vgextend`, `lvreduce` or `lvremove`")
            }
            LvmError::Tool(ToolError::Late { .. }) => {
                (FailureKind::TimedOut, "raise the stall budget, or see what else LVM is doing")
            }
            LvmError::NotOurs(_) => (FailureKind::Refused, ""),
            LvmError::Busy(_) => (FailureKind::Locked, ""),
            LvmError::Tool(_) | LvmError::System { .. } => {
                (FailureKind::Other, "run `lvs -a` and `dmsetup info` as root to see what is wrong")
            }
        };
        Self::new(kind, error.to_string(), remedy).because(error)
    }
}

/// The logical volume that the filesystem under `path` lies on directly; nothing if it lies on something else, such
/// as a partition, or an encrypted device on top of a volume.
///
/// # Errors
/// If the path cannot be looked at, or LVM does not know the volume.
pub fn find(path: &Path) -> Result<Option<LogicalVolume>, LvmError> {
    let device = device_of(path).map_err(|source| LvmError::System {
        what: format!("{} cannot be looked at", path.display()),
        source,
    })?;
    let Some(name) = mapped_name(device) else { return Ok(None) };
    Ok(Some(report::look_at(&Path::new("/dev/mapper").join(name))?))
}

/// A volume by its group and name, if there is one.
///
/// # Errors
/// If LVM does not tell.
pub fn named(group: &str, name: &str) -> Result<Option<LogicalVolume>, LvmError> {
    Ok(report::look_for(group, name)?)
}

/// How device mapper calls the logical volume under `path`; nothing if there is none.
#[must_use]
pub fn mapped_as(path: &Path) -> Option<String> {
    mapped_name(device_of(path).ok()?)
}

/// Major and minor number of the device under a path.
fn device_of(path: &Path) -> io::Result<(u32, u32)> {
    let number = fs::metadata(path)?.dev();
    Ok((rustix::fs::major(number), rustix::fs::minor(number)))
}

/// Its name in device mapper, if it is one of LVM's: their UUIDs begin with `UUID_PREFIX`, lib/activate/dev_manager.c.
fn mapped_name((major, minor): (u32, u32)) -> Option<String> {
    let dir = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/dm"));
    let uuid = fs::read_to_string(dir.join("uuid")).ok()?;
    if !uuid.starts_with("LVM-") {
        return None;
    }
    Some(fs::read_to_string(dir.join("name")).ok()?.trim().to_owned())
}

/// Loads what the kernel needs for a snapshot of this volume, so that `lvcreate` need not. What cannot be loaded may be
/// built in; `lvcreate` says it if not.
pub fn warm_up(origin: &LogicalVolume) {
    let module = if origin.thin_pool().is_some() { "dm-thin-pool" } else { "dm-snapshot" };
    let tool = Tool::new("modprobe", format!("loading {module}"), READING).args(["--quiet", module]);
    if let Err(error) = tool.run() {
        tracing::debug!(?error, "a module is not loaded");
    }
}

/// How device mapper calls a logical volume: hyphens are doubled, lvmcache(7) and `dm_build_dm_name` of
/// libdevmapper.
fn dm_name(group: &str, name: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), name.replace('-', "--"))
}

/// How many bytes were written to the device under `path` since it came to be: the seventh number of
/// `/sys/dev/block/*/stat`, in sectors of 512 bytes (Documentation/block/stat.rst of the kernel).
///
/// # Errors
/// If it cannot be read: the filesystem has no device of its own.
pub fn bytes_written(path: &Path) -> io::Result<Bytes> {
    let (major, minor) = device_of(path)?;
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"))?;
    let sectors = stat.split_ascii_whitespace().nth(6).and_then(|word| word.parse::<u64>().ok());
    sectors.map(|sectors| Bytes(sectors.saturating_mul(512))).ok_or(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{bytes_written, dm_name, find};

    #[test]
    fn what_lies_on_no_device_is_no_volume() {
        assert_eq!(find(Path::new("/proc")).unwrap(), None);
        assert!(find(Path::new("/nonexistent")).is_err());
        assert!(bytes_written(Path::new("/proc")).is_err());
    }

    #[test]
    fn hyphens_are_doubled() {
        assert_eq!(dm_name("vg-0", "my-data"), "vg--0-my--data");
    }
}
