//! ZFS snapshots, by the program `zfs`. Driven against a stand-in only, which the tests put in its place: the systems that
//! this is built on have no ZFS.
//!
//! Several datasets of one pool are taken by one command, which makes all their snapshots at one instant (zfs-snapshot(8)).
//! Each is destroyed by its own name, never recursively: a child may have a snapshot of that name that is not ours.
//!
//! Crash story: the journal has [`Undo::DestroyZfsSnapshot`] for each before they are made and until they are gone.
//! Destruction refuses any name but ours. While a snapshot is read it carries a hold of ours, so that no other tool
//! destroys it; the hold goes with it.

use std::{io, path::Path, path::PathBuf, sync::Arc, thread, time::Duration};

use model::{
    port::{Failure, FailureKind, Journal},
    time::Deadline,
    undo::{Ticket, Undo},
};

use crate::{
    clock::{deadline_in, left},
    mounts::{Mount, Mounts},
    staging::random_hex,
    tools::{Tool, ToolError},
};

/// How the names of all our snapshots begin, after the `@`; 16 hexadecimal digits follow.
const PREFIX: &str = "stillpoint-";
/// The tag of our holds.
const HOLD: &str = "stillpoint";
const CHANGING: Duration = Duration::from_mins(10);
const READING: Duration = Duration::from_secs(30);
/// Between two tries to destroy what is busy.
const STEP: Duration = Duration::from_millis(200);
/// How long a snapshot may be busy.
const BUSY: Duration = Duration::from_secs(15);

/// Why a ZFS snapshot could not be made or destroyed.
#[derive(Debug, thiserror::Error)]
pub enum ZfsError {
    /// The journal could not be written, so nothing was made.
    #[error("no snapshot is made without a journal")]
    Journal(#[source] Failure),
    /// `zfs` did not do it.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Its name is not one that we give.
    #[error("{0} is not a snapshot of ours and is not touched")]
    NotOurs(String),
    /// The kernel gives no random bytes.
    #[error("no random name can be made")]
    Random(#[source] io::Error),
}

impl From<ZfsError> for Failure {
    fn from(error: ZfsError) -> Self {
        let (kind, remedy) = match &error {
            ZfsError::Journal(_) => (FailureKind::Other, "see that the state directory can be written"),
            ZfsError::Tool(ToolError::Run { .. }) => {
                (FailureKind::Other, "install the package zfsutils-linux, and run as root")
            }
            ZfsError::Tool(ToolError::Failed { said, .. }) if said.contains("out of space") => {
                (FailureKind::NoSpace, "free some space in the pool")
            }
            ZfsError::Tool(ToolError::Late { .. }) => {
                (FailureKind::TimedOut, "raise the stall budget, or see what else the pool is doing")
            }
            ZfsError::NotOurs(_) => (FailureKind::Refused, ""),
            ZfsError::Tool(_) | ZfsError::Random(_) => {
                (FailureKind::Other, "run `zfs list -t snapshot` as root to see what is there")
            }
        };
        Self::new(kind, error.to_string(), remedy).because(error)
    }
}

/// A mounted dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Its name.
    pub name: String,
    /// Where it is mounted.
    pub mounted: PathBuf,
}

impl Dataset {
    /// Where its snapshot of this name can be read: there whether `snapdir` is visible or hidden.
    #[must_use]
    pub fn snapshot_dir(&self, snapshot: &str) -> PathBuf {
        self.mounted.join(".zfs/snapshot").join(snapshot)
    }
}

/// The dataset of a mount, where its whole tree is mounted: only there are its snapshots.
#[must_use]
pub fn dataset(mounts: &Mounts, mount: &Mount) -> Option<Dataset> {
    if mount.filesystem != "zfs" {
        return None;
    }
    let whole = mounts.all().iter().rev();
    let mut whole =
        whole.filter(|m| m.filesystem == "zfs" && m.device == mount.device && m.root == Path::new("/"));
    let point = whole.find(|m| mounts.at(&m.point) == Some(m))?.point.clone();
    Some(Dataset { name: mount.device.to_str()?.to_owned(), mounted: point })
}

/// A dataset and those below it by name that are mounted.
#[must_use]
pub fn with_children(mounts: &Mounts, top: &Dataset) -> Vec<Dataset> {
    let below = format!("{}/", top.name);
    let mut found = vec![top.clone()];
    for mount in mounts.all() {
        let is_child = mount.device.to_str().is_some_and(|name| name.starts_with(&below));
        if let Some(child) = dataset(mounts, mount)
            && is_child
            && child.mounted.starts_with(&top.mounted)
            && !found.contains(&child)
        {
            found.push(child);
        }
    }
    found
}

/// What is free for a dataset: `available` of zfsprops(7), in bytes.
///
/// # Errors
/// If `zfs` does not tell.
pub fn available(dataset: &str) -> Result<u64, ZfsError> {
    let tool = Tool::new("zfs", format!("asking for the dataset {dataset}"), READING);
    let tool = tool.args(["get", "-Hp", "-o", "value", "available", dataset]);
    tool.run()?.trim().parse().map_err(|_| tool.not_understood().into())
}

/// Snapshots of one name of several datasets, of one instant. Dropping them destroys them.
pub struct ZfsSnapshot {
    datasets: Vec<Dataset>,
    name: String,
    journal: Arc<dyn Journal>,
    tickets: Vec<(Ticket, String)>,
}

impl std::fmt::Debug for ZfsSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZfsSnapshot")
            .field("datasets", &self.datasets)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl ZfsSnapshot {
    /// Makes snapshots of all these datasets by one command, and waits for it until `until`. If it was too late, they are
    /// destroyed as soon as they have been made, and stay in the journal until then.
    ///
    /// # Errors
    /// [`ToolError::Late`], or what `zfs` says; then nothing is left.
    pub fn create(
        journal: &Arc<dyn Journal>,
        datasets: Vec<Dataset>,
        until: Deadline,
    ) -> Result<Self, ZfsError> {
        let name = format!("{PREFIX}{}", random_hex().map_err(ZfsError::Random)?);
        let mut made = Self { datasets, name, journal: Arc::clone(journal), tickets: Vec::new() };
        if let Err(failure) = made.intend() {
            made.forget();
            return Err(ZfsError::Journal(failure));
        }
        let names = made.datasets.iter().map(|dataset| format!("{}@{}", dataset.name, made.name));
        let names: Vec<String> = names.collect();
        let tool = Tool::new("zfs", format!("making the snapshot {}", names.join(" ")), CHANGING);
        let tool = tool.args(["snapshot"]).args(&names);
        let (journal, name, tickets) = (Arc::clone(journal), made.name.clone(), made.tickets.clone());
        let ran = tool.run_until(until, move |_| {
            for (ticket, dataset) in tickets {
                match destroy(&dataset, &name) {
                    Ok(()) => journal.done(ticket),
                    Err(error) => tracing::warn!(%dataset, %name, ?error, "a snapshot is left, for `thaw`"),
                }
            }
        });
        match &ran {
            // Now they are the thread's.
            Err(ToolError::Late { .. }) => made.tickets.clear(),
            Err(ToolError::Run { .. }) => made.forget(),
            // What failed half-way goes with `made`.
            _ => {}
        }
        ran?;
        Ok(made)
    }

    fn intend(&mut self) -> Result<(), Failure> {
        for Dataset { name, .. } in &self.datasets {
            let undo = Undo::DestroyZfsSnapshot { dataset: name.clone(), snapshot: self.name.clone() };
            self.tickets.push((self.journal.intend(undo, None)?, name.clone()));
        }
        Ok(())
    }

    /// Crosses off what was never made.
    fn forget(&mut self) {
        for (ticket, _) in self.tickets.drain(..) {
            self.journal.done(ticket);
        }
    }

    /// The first dataset with the name of the snapshot: `tank/db@stillpoint-…`.
    #[must_use]
    pub fn full_name(&self) -> String {
        let first = self.datasets.first().map_or("", |dataset| dataset.name.as_str());
        format!("{first}@{}", self.name)
    }

    /// The datasets, each with the directory where its snapshot can be read.
    #[must_use]
    pub fn places(&self) -> Vec<(&Dataset, PathBuf)> {
        self.datasets.iter().map(|dataset| (dataset, dataset.snapshot_dir(&self.name))).collect()
    }

    /// Keeps other tools from destroying them.
    ///
    /// # Errors
    /// If one is gone already.
    pub fn hold(&self) -> Result<(), ZfsError> {
        let tool = Tool::new("zfs", format!("holding the snapshot {}", self.full_name()), CHANGING);
        let names = self.datasets.iter().map(|dataset| format!("{}@{}", dataset.name, self.name));
        tool.args(["hold", HOLD]).args(names).run()?;
        Ok(())
    }

    /// Whether all are still there.
    ///
    /// # Errors
    /// If `zfs` does not tell.
    pub fn is_there(&self) -> Result<bool, ZfsError> {
        for dataset in &self.datasets {
            if !exists(&dataset.name, &self.name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Destroys them and crosses them off the journal.
    ///
    /// # Errors
    /// If one is left; then it stays in the journal.
    pub fn release(mut self) -> Result<(), ZfsError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), ZfsError> {
        let mut result = Ok(());
        for (ticket, dataset) in std::mem::take(&mut self.tickets) {
            match destroy(&dataset, &self.name) {
                Ok(()) => self.journal.done(ticket),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }
}

impl Drop for ZfsSnapshot {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(snapshot = %self.full_name(), ?error, "a snapshot is left behind, for `thaw`");
        }
    }
}

/// Whether a name after the `@` is one that we give.
fn is_ours(snapshot: &str) -> bool {
    let random = snapshot.strip_prefix(PREFIX);
    random.is_some_and(|random| random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn exists(dataset: &str, snapshot: &str) -> Result<bool, ZfsError> {
    let tool = Tool::new("zfs", format!("asking for the snapshots of {dataset}"), READING);
    let tool = tool.args(["list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", dataset]);
    match tool.run() {
        Ok(names) => Ok(names.lines().any(|name| name.trim() == format!("{dataset}@{snapshot}"))),
        // Its snapshots are gone with it.
        Err(ToolError::Failed { said, .. }) if said.contains("dataset does not exist") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Destroys one snapshot of ours; done if it is gone. Tries for a while if it is busy.
///
/// # Errors
/// [`ZfsError::NotOurs`] for any name that is not ours; else what `zfs` says.
pub fn destroy(dataset: &str, snapshot: &str) -> Result<(), ZfsError> {
    let full = format!("{dataset}@{snapshot}");
    if !is_ours(snapshot) || dataset.is_empty() || dataset.starts_with('-') || dataset.contains('@') {
        return Err(ZfsError::NotOurs(full));
    }
    let until = deadline_in(BUSY);
    loop {
        if !exists(dataset, snapshot)? {
            return Ok(());
        }
        // Fails if it is not held, which is as good.
        let release = Tool::new("zfs", format!("releasing the snapshot {full}"), CHANGING);
        let _ = release.args(["release", HOLD, &full]).run();
        let tool = Tool::new("zfs", format!("destroying the snapshot {full}"), CHANGING);
        match tool.args(["destroy", &full]).run() {
            Ok(_) => return Ok(()),
            Err(error @ ToolError::Run { .. }) => return Err(error.into()),
            Err(error) if left(until).is_zero() => return Err(error.into()),
            Err(_) => thread::sleep(STEP),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Dataset, ZfsError, dataset, destroy, with_children};
    use crate::mounts::Mounts;

    const TABLE: &[u8] = b"22 1 0:30 / / rw - zfs rpool/root rw,xattr
30 22 0:31 / /srv rw - zfs tank/srv rw
31 30 0:32 / /srv/db rw - zfs tank/srv/db rw
32 30 0:33 / /srv/other rw - zfs tank/other rw
33 22 0:34 / /far rw - zfs tank/srv/far rw
34 22 0:32 /sub /bind rw - zfs tank/srv/db rw
35 22 8:1 / /boot rw - ext4 /dev/sda1 rw
36 22 0:40 /part /part rw - zfs tank/part rw
";

    fn at(path: &str) -> Option<Dataset> {
        let mounts = Mounts::parse(TABLE).unwrap();
        dataset(&mounts, mounts.of(Path::new(path)).unwrap())
    }

    #[test]
    fn datasets_are_found_where_all_of_them_is_mounted() {
        assert_eq!(at("/srv/x").unwrap().name, "tank/srv");
        assert_eq!(at("/bind/x"), at("/srv/db"));
        assert_eq!(at("/boot"), None);
        assert_eq!(at("/part"), None, "its snapshots are nowhere");
    }

    #[test]
    fn children_that_are_mounted_inside_are_taken_too() {
        let mounts = Mounts::parse(TABLE).unwrap();
        let all = with_children(&mounts, &at("/srv").unwrap());
        let names: Vec<_> = all.iter().map(|dataset| dataset.name.as_str()).collect();
        assert_eq!(names, ["tank/srv", "tank/srv/db"]);
        assert_eq!(all[1].snapshot_dir("x"), Path::new("/srv/db/.zfs/snapshot/x"));
    }

    #[test]
    fn nothing_but_names_of_ours_is_destroyed() {
        for (dataset, snapshot) in
            [("tank", "daily"), ("tank", "stillpoint-"), ("-r", "stillpoint-0123456789abcdef")]
        {
            assert!(matches!(destroy(dataset, snapshot), Err(ZfsError::NotOurs(_))));
        }
    }
}
