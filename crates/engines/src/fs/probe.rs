//! What can be done with a directory, found out without changing anything.
//!
//! Crash story: reads, by the programs of LVM and ZFS too, and nameless files (`O_TMPFILE`) that the kernel removes by itself.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use model::{
    id::SourceId,
    pathtext,
    plan::{DirectoryFacts, Refusal, TreePlan},
};
use os::{
    extents::clone_works,
    mounts::{Mount, Mounts},
    subvolume::is_subvolume,
    tree::{resolve, said},
};

use super::{scope::Scope, volume::volume_of};

/// The inode of every subvolume's root, and of some names on other filesystems.
const SUBVOLUME_ROOT: u64 = 256;

/// Finds out what can be done with the directory `path`, of which `exclude` is left out. `state_staging` is where
/// pinned copies go if they may go anywhere; it need not exist yet. What is wrong is said in
/// [`DirectoryFacts::refusal`].
#[must_use]
pub fn probe(source: &SourceId, path: &Path, exclude: &[String], state_staging: &Path) -> DirectoryFacts {
    let mut facts = DirectoryFacts {
        source: source.clone(),
        path: path.to_owned(),
        filesystem: String::new(),
        subvolume: false,
        reflink: false,
        staging: None,
        nested_mounts: Vec::new(),
        nested_subvolumes: Vec::new(),
        entries: 0,
        volume: None,
        refusal: None,
    };
    if let Err(refusal) = look(&mut facts, exclude, state_staging) {
        facts.refusal = Some(refusal);
    }
    facts
}

fn look(facts: &mut DirectoryFacts, exclude: &[String], state_staging: &Path) -> Result<(), Refusal> {
    let path = facts.path.clone();
    let unreadable = |error: io::Error| refusal(&path, &error);
    let real = resolve(&path).map_err(unreadable)?.real;
    // Opened for the sake of the error.
    std::fs::read_dir(&real).map_err(unreadable)?;
    let mounts = Mounts::read().map_err(unreadable)?;
    let mount = mounts.of(&real);
    facts.filesystem = mount.map(|m| m.filesystem.clone()).unwrap_or_default();
    facts.nested_mounts = nested(&mounts, &real);
    facts.volume = volume_of(&real);
    let (entries, inner) = count(&path, exclude)?;
    facts.entries = entries;
    let is_inner = |inner: &PathBuf| {
        *inner != real && mounts.at(inner).is_none() && is_subvolume(inner).is_ok_and(|is_one| is_one)
    };
    facts.nested_subvolumes = inner.into_iter().filter(is_inner).collect();
    let clones_into = places(&real, mount, state_staging).into_iter().find(|dir| clone_works(&real, dir));
    facts.reflink = clones_into.is_some();
    facts.subvolume = facts.reflink
        && facts.nested_mounts.is_empty()
        && is_subvolume(&real).map_err(unreadable)?
        && may_snapshot(&real, mount).map_err(unreadable)?;
    facts.staging = Some(match clones_into {
        Some(dir) if state_staging.starts_with(&dir) => state_staging.to_owned(),
        Some(dir) => dir,
        None => state_staging.to_owned(),
    });
    Ok(())
}

fn refusal(path: &Path, error: &io::Error) -> Refusal {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "create it, mount it, or correct the path in the inventory",
        io::ErrorKind::NotADirectory => "name a directory",
        io::ErrorKind::PermissionDenied => "run as a user that may read it",
        _ => "see that it can be read",
    };
    Refusal {
        what: format!("{} cannot be read: {}", pathtext::show(path), said(error)),
        remedy: remedy.into(),
    }
}

fn nested(mounts: &Mounts, real: &Path) -> Vec<PathBuf> {
    let below = mounts.below(real).into_iter().filter(|mount| !mount.is_pseudo());
    // What another mount covers cannot be seen.
    below.map(|mount| mount.point.clone()).filter(|point| point.exists()).collect()
}

/// How many names there are, and which of them may be btrfs subvolumes by their inode.
fn count(path: &Path, exclude: &[String]) -> Result<(u64, Vec<PathBuf>), Refusal> {
    let plan =
        TreePlan { root: path.to_owned(), exclude: exclude.to_vec(), carved: vec![], nested_mounts: vec![] };
    let mut inner = Vec::new();
    let counted = Scope::new(&plan).and_then(|scope| {
        scope.count(&mut |dir, inode| {
            if inode == SUBVOLUME_ROOT {
                inner.push(dir.to_owned());
            }
        })
    });
    match counted {
        Ok(names) => Ok((names, inner)),
        Err(failure) => Err(Refusal { what: failure.what, remedy: failure.remedy }),
    }
}

/// Where clones of a directory's files could be put, best first.
fn places(real: &Path, mount: Option<&Mount>, state_staging: &Path) -> Vec<PathBuf> {
    let existing = state_staging.ancestors().find(|dir| dir.is_dir()).map(Path::to_owned);
    let mount_point = mount.map(|m| m.point.clone());
    let parent = real.parent().map(Path::to_owned);
    [existing, mount_point, parent, Some(real.to_owned())].into_iter().flatten().collect()
}

/// Whether we may make a snapshot of a subvolume and delete it again: as root, or as its owner where the
/// filesystem is mounted with `user_subvol_rm_allowed`. Elsewhere an owner could delete it only file by file.
pub(super) fn may_snapshot(real: &Path, mount: Option<&Mount>) -> io::Result<bool> {
    let user = rustix::process::geteuid();
    let is_owner = std::fs::metadata(real)?.uid() == user.as_raw();
    Ok(user.is_root() || (is_owner && mount.is_some_and(|m| m.has_option("user_subvol_rm_allowed"))))
}
