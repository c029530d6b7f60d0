//! Making, watching, extending and removing a snapshot of a logical volume.
//!
//! Crash story: the journal has [`Undo::RemoveLogicalVolume`] before `lvcreate` is started and until the snapshot is
//! gone. A run that dies while `lvcreate` works leaves it to work on; `lvs`, with which the undoing begins, waits for
//! it. Removal touches nothing but snapshots whose name and tag are ours.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use model::{
    port::Journal,
    size::Bytes,
    time::Deadline,
    undo::{Ticket, Undo},
};

use super::{
    CHANGING, LogicalVolume, LvmError, dm_name, report,
    status::{Fill, fill_of_pool, fill_of_snapshot},
};
use crate::{
    clock::{deadline_in, left},
    staging::random_hex,
    tools::{Tool, ToolError},
};

/// How the names of all our snapshots begin; 16 hexadecimal digits follow.
const PREFIX: &str = "stillpoint-";
/// The tag that they carry.
pub(super) const TAG: &str = "stillpoint";
/// Between two tries to remove what is busy.
const STEP: Duration = Duration::from_millis(200);
/// How long a snapshot may be busy: readers that were given up, and udev, which looks at new devices.
const BUSY: Duration = Duration::from_secs(15);

/// A snapshot that is about to be made: named and written down. Dropping it crosses it off.
pub struct Ready {
    origin: LogicalVolume,
    name: String,
    size: Option<Bytes>,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
}

impl Ready {
    /// Names a snapshot of `origin` and writes it down. A classic one gets `size`, of which it needs some; a
    /// thin one has none.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub fn new(
        journal: &Arc<dyn Journal>,
        origin: LogicalVolume,
        size: Option<Bytes>,
    ) -> Result<Self, LvmError> {
        let random = random_hex()
            .map_err(|source| LvmError::System { what: "no random name can be made".to_owned(), source })?;
        let name = format!("{PREFIX}{random}");
        let undo = Undo::RemoveLogicalVolume { group: origin.group.clone(), name: name.clone() };
        let ticket = journal.intend(undo, None).map_err(LvmError::Journal)?;
        Ok(Self { origin, name, size, journal: Arc::clone(journal), ticket: Some(ticket) })
    }

    /// Makes it, by one program that this waits for until `until`. If it was too late it is removed as soon as it
    /// has been made, and stays in the journal until then.
    ///
    /// # Errors
    /// [`ToolError::Late`], or what `lvcreate` says; then nothing is left.
    pub fn make(mut self, until: Deadline) -> Result<LvSnapshot, LvmError> {
        let Some(ticket) = self.ticket.take() else {
            return Err(LvmError::NotOurs(self.name.clone()));
        };
        let (journal, group, name) =
            (Arc::clone(&self.journal), self.origin.group.clone(), self.name.clone());
        let tool = lvcreate(&self.origin, &self.name, self.size);
        let made = tool.run_until(until, move |_| match remove(&group, &name) {
            Ok(()) => journal.done(ticket),
            Err(error) => tracing::warn!(%group, %name, ?error, "a snapshot is left behind, for `thaw`"),
        });
        let snapshot = |ticket| LvSnapshot {
            group: self.origin.group.clone(),
            name: self.name.clone(),
            pool: self.origin.thin_pool().map(str::to_owned),
            journal: Arc::clone(&self.journal),
            ticket,
        };
        match made {
            Ok(_) => Ok(snapshot(Some(ticket))),
            Err(error @ ToolError::Late { .. }) => Err(error.into()),
            Err(error @ ToolError::Run { .. }) => {
                self.journal.done(ticket);
                Err(error.into())
            }
            Err(error) => {
                // It may have failed half-way.
                drop(snapshot(Some(ticket)));
                Err(error.into())
            }
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.journal.done(ticket);
        }
    }
}

/// Writable, since XFS and ext4 have to put their log in order when they are mounted, even for reading only: XFS leaves a
/// record in it that says "frozen".
fn lvcreate(origin: &LogicalVolume, name: &str, size: Option<Bytes>) -> Tool {
    let what = format!("making a snapshot of {}", origin.full_name());
    let tool = Tool::new("lvcreate", what, CHANGING).args(["--snapshot", "--name", name, "--addtag", TAG]);
    // Nobody but us watches it, and a daemon started here would outlive us.
    let tool = tool.args(["--yes", "--ignoremonitoring"]);
    let tool = if origin.thin_pool().is_some() {
        tool.args(["--setactivationskip", "n"])
    } else {
        let size = whole_extents(size.unwrap_or(origin.size), origin.extent);
        tool.args(["--size".to_owned(), format!("{}b", size.0)])
    };
    tool.args([origin.full_name()])
}

/// Rounded up, and at least one.
fn whole_extents(size: Bytes, extent: Bytes) -> Bytes {
    let unit = extent.0.max(512);
    Bytes(size.0.max(1).div_ceil(unit).saturating_mul(unit))
}

/// A snapshot of a logical volume. Dropping it removes it.
pub struct LvSnapshot {
    group: String,
    name: String,
    pool: Option<String>,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
}

impl std::fmt::Debug for LvSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LvSnapshot")
            .field("group", &self.group)
            .field("name", &self.name)
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}

impl LvSnapshot {
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

    /// For watching it while others use it.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        Gauge { group: self.group.clone(), name: self.name.clone(), pool: self.pool.clone() }
    }

    /// Its name in its group.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves it where it is, for whoever has written down that it is there.
    pub fn keep(mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.journal.done(ticket);
        }
    }

    /// Removes it and crosses it off the journal.
    ///
    /// # Errors
    /// If it is left; then it stays in the journal.
    pub fn release(mut self) -> Result<(), LvmError> {
        let result = self.try_release();
        self.ticket = None;
        result
    }

    /// As [`Self::release`], and may be tried again.
    ///
    /// # Errors
    /// If it is left; then it stays in the journal.
    pub fn try_release(&mut self) -> Result<(), LvmError> {
        let Some(ticket) = self.ticket else { return Ok(()) };
        remove(&self.group, &self.name)?;
        self.ticket = None;
        self.journal.done(ticket);
        Ok(())
    }
}

impl Drop for LvSnapshot {
    fn drop(&mut self) {
        if let Err(error) = self.try_release() {
            tracing::warn!(snapshot = %self.full_name(), ?error, "a snapshot is left behind, for `thaw`");
        }
    }
}

/// Where the fill of a snapshot is read, and what can be done about it.
#[derive(Debug, Clone)]
pub struct Gauge {
    group: String,
    name: String,
    /// The thin pool that it shares with its origin.
    pool: Option<String>,
}

impl Gauge {
    /// Whether it shares a pool with its origin, and has no size of its own.
    #[must_use]
    pub fn is_thin(&self) -> bool {
        self.pool.is_some()
    }

    /// What becomes full: the snapshot, or its pool.
    #[must_use]
    pub fn what(&self) -> String {
        match &self.pool {
            Some(pool) => format!("the thin pool {}/{pool}", self.group),
            None => format!("the snapshot {}/{}", self.group, self.name),
        }
    }

    /// How full the snapshot is; of a thin one, its pool.
    ///
    /// # Errors
    /// If device mapper does not tell.
    pub fn read(&self) -> Result<Fill, LvmError> {
        Ok(match &self.pool {
            Some(pool) => fill_of_pool(&self.group, pool)?,
            None => fill_of_snapshot(&self.group, &self.name)?,
        })
    }

    /// Makes a classic snapshot larger by its own size, or by what its volume group has free. Returns what it was made
    /// larger by: nothing if nothing is free, or if it is a thin one.
    ///
    /// # Errors
    /// If LVM cannot do it.
    pub fn extend(&self) -> Result<Bytes, LvmError> {
        let full = format!("{}/{}", self.group, self.name);
        if self.is_thin() {
            return Ok(Bytes(0));
        }
        let found = report::look_for(&self.group, &self.name)?.ok_or(LvmError::NotOurs(full.clone()))?;
        let unit = found.extent.0.max(512);
        let by = Bytes(found.size.0.min(found.group_free.0) / unit * unit);
        if by.0 > 0 {
            let tool = Tool::new("lvextend", format!("extending {full}"), CHANGING);
            tool.args(["--size".to_owned(), format!("+{}b", by.0), full]).run()?;
        }
        Ok(by)
    }
}

/// Whether a name is one that we give.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    let random = name.strip_prefix(PREFIX);
    random.is_some_and(|random| random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Removes a snapshot of ours; done if it is gone. Tries for a while if it is busy.
///
/// # Errors
/// [`LvmError::NotOurs`] for any volume whose name is not ours, that does not carry our tag or that is no snapshot, which a
/// thin one does not look like any more when its origin is gone; else what `lvremove` says.
pub fn remove(group: &str, name: &str) -> Result<(), LvmError> {
    let full = format!("{group}/{name}");
    let is_word = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+_.-".contains(&b))
            && !text.starts_with('-')
    };
    if !is_ours(name) || !is_word(group) {
        return Err(LvmError::NotOurs(full));
    }
    let until = deadline_in(BUSY);
    loop {
        let Some(found) = report::look_for(group, name)? else { return Ok(()) };
        let is_snapshot = found.origin.is_some() || found.thin_pool().is_some();
        if !is_snapshot || !found.is_tagged() {
            return Err(LvmError::NotOurs(full));
        }
        let tool = Tool::new("lvremove", format!("removing the snapshot {full}"), CHANGING);
        match tool.args(["--force", "--yes", &full]).run() {
            Ok(_) => return Ok(()),
            Err(error @ ToolError::Run { .. }) => return Err(error.into()),
            Err(error) if left(until).is_zero() => return Err(error.into()),
            Err(_) => thread::sleep(STEP),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::size::Bytes;

    use super::{LvmError, is_ours, remove, whole_extents};

    #[test]
    fn sizes_are_whole_extents() {
        assert_eq!(whole_extents(Bytes(0), Bytes(4096)), Bytes(4096));
        assert_eq!(whole_extents(Bytes(4097), Bytes(4096)), Bytes(8192));
    }

    #[test]
    fn nothing_but_names_of_ours_is_removed() {
        assert!(is_ours("stillpoint-0123456789abcdef"));
        for name in ["data", "stillpoint-", "stillpoint-xyz", "stillpoint-0123456789abcdef0", ""] {
            assert!(!is_ours(name));
            assert!(matches!(remove("vg", name), Err(LvmError::NotOurs(_))), "{name}");
        }
        for group in ["", "vg\" || lv_name!=\"", "-a", "a b"] {
            assert!(matches!(remove(group, "stillpoint-0123456789abcdef"), Err(LvmError::NotOurs(_))));
        }
    }
}
