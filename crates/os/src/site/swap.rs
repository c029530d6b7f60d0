//! Putting what was written beside in the place of what is there, and taking it back.
//!
//! Crash story: [`make`] and [`swap_back`] only rename within one filesystem, and which renames were done is
//! seen from which names exist, so both may stop between any two and [`swap_back`] may be repeated by anyone
//! at any time. It is finished for good once the staging directory has its second name (`…-undone`), and only
//! then is anything removed. Two at once (watchdog and `thaw`) find each rename done by the other.

use std::{
    collections::BTreeSet,
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    undo::Move,
};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use crate::{durable, staging};

/// Why the old state could not be brought back.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// A rename failed.
    #[error("{} cannot be renamed to {}", pathtext::show(.from), pathtext::show(.to))]
    Rename {
        /// The name it has.
        from: PathBuf,
        /// The name it should get.
        to: PathBuf,
        /// What the filesystem says.
        source: io::Error,
    },
    /// A directory that was written to could not be synced.
    #[error("names in {} cannot be written to disk", pathtext::show(.0))]
    Sync(PathBuf, #[source] io::Error),
    /// A staging directory could not be removed.
    #[error("what a restore had written is left behind")]
    Remove(#[from] staging::StagingError),
}

impl From<SwapError> for Failure {
    fn from(error: SwapError) -> Self {
        Self::new(FailureKind::Other, error.to_string(), "").because(error)
    }
}

/// How a name is changed: never over another.
pub(super) type Rename<'a> = dyn FnMut(&Path, &Path) -> io::Result<()> + 'a;

/// Makes the moves in order and stops at the first that fails.
pub(super) fn make(moves: &[Move], rename: &mut Rename<'_>) -> Result<(), SwapError> {
    let mut change = |from: &Path, to: &Path| {
        rename(from, to).map_err(|source| SwapError::Rename { from: from.into(), to: to.into(), source })
    };
    for one in moves {
        if one.had {
            change(&one.live, &one.old)?;
        }
        if let Some(new) = &one.new {
            change(new, &one.live)?;
        }
    }
    Ok(())
}

/// Syncs every directory in which [`make`] or [`swap_back`] changed a name.
pub(super) fn sync(moves: &[Move]) -> Result<(), SwapError> {
    let names = moves.iter().flat_map(|m| [Some(&m.live), Some(&m.old), m.new.as_ref()]).flatten();
    let dirs: BTreeSet<&Path> = names.filter_map(|name| name.parent()).collect();
    for dir in dirs {
        match durable::sync_dir(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(SwapError::Sync(dir.to_owned(), error)),
        }
    }
    Ok(())
}

/// Undoes [`model::undo::Undo::SwapBack`]: brings the old state back, then removes what was written beside.
/// Without moves the old state is what is removed.
///
/// # Errors
/// If a name cannot be changed: then nothing was removed and it may be tried again. If the staging directory
/// cannot be removed: then the old state is back.
pub fn swap_back(moves: &[Move], staging: &[PathBuf]) -> Result<(), SwapError> {
    take_back(moves, &mut rename_new)?;
    for dir in staging {
        remove(dir)?;
    }
    Ok(())
}

/// The renames of [`swap_back`], in reverse order.
pub(super) fn take_back(moves: &[Move], rename: &mut Rename<'_>) -> Result<(), SwapError> {
    let mut change = |from: &Path, to: &Path| {
        rename(from, to).map_err(|source| SwapError::Rename { from: from.into(), to: to.into(), source })
    };
    for one in moves.iter().rev() {
        let Some(aside) = one.old.parent().filter(|dir| exists(dir)) else { continue };
        if one.had {
            if !exists(&one.old) {
                continue;
            }
            if exists(&one.live) {
                change(&one.live, &free_name(one, aside))?;
            }
            change(&one.old, &one.live)?;
        } else if let Some(new) = one.new.as_ref().filter(|new| !exists(new))
            && exists(&one.live)
        {
            change(&one.live, new)?;
        }
    }
    sync(moves)
}

/// Where the restored object was, or, if somebody made another in its place meanwhile, a name beside it.
fn free_name(one: &Move, aside: &Path) -> PathBuf {
    match &one.new {
        Some(new) if !exists(new) => new.clone(),
        _ => {
            let mut name = one.old.file_name().unwrap_or_default().to_owned();
            name.push(".found");
            aside.join(name)
        }
    }
}

/// Removes a staging directory. Its second name says that nothing in it is needed any more.
pub(super) fn remove(dir: &Path) -> Result<(), SwapError> {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push("-undone");
    let done = dir.with_file_name(name);
    if !staging::is_ours(dir) {
        return Err(staging::StagingError::NotOurs(dir.to_owned()).into());
    }
    if exists(dir) {
        rename_new(dir, &done).map_err(|e| staging::StagingError::Remove(dir.to_owned(), e))?;
    }
    Ok(staging::remove(&done)?)
}

/// Whether there is anything by this name; a dangling symbolic link is something.
pub(super) fn exists(path: &Path) -> bool {
    // What cannot be looked at is taken to be there: renames never replace, so the mistake is reported.
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Changes a name and never replaces another.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // A directory has an entry for the one above it, so its owner needs to write into it to move it.
        Err(Errno::ACCESS) => rename_closed(from, to),
        Err(Errno::INVAL | Errno::NOSYS) if !exists(to) => std::fs::rename(from, to),
        Err(error) => Err(error.into()),
    }
}

fn rename_closed(from: &Path, to: &Path) -> io::Result<()> {
    let denied = io::Error::from(Errno::ACCESS);
    let found = from.symlink_metadata()?;
    let mode = found.permissions().mode() & 0o7777;
    if !found.is_dir() || mode & 0o200 != 0 {
        return Err(denied);
    }
    std::fs::set_permissions(from, Permissions::from_mode(mode | 0o200))?;
    let renamed = renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE);
    let now = if renamed.is_ok() { to } else { from };
    std::fs::set_permissions(now, Permissions::from_mode(mode))?;
    Ok(renamed?)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs, io,
        path::{Path, PathBuf},
    };

    use model::undo::Move;

    use super::{exists, make, rename_new, swap_back, take_back};

    struct Scene {
        _dir: tempfile::TempDir,
        root: PathBuf,
        staging: PathBuf,
        moves: Vec<Move>,
    }

    /// One directory, one file, one that was not there, one that is to go.
    fn scene() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let staging = root.join(".stillpoint-restore-0");
        fs::create_dir_all(staging.join("new")).unwrap();
        fs::create_dir_all(staging.join("old")).unwrap();
        fs::create_dir_all(staging.join("new/0")).unwrap();
        fs::write(staging.join("new/0/a"), "new").unwrap();
        fs::write(staging.join("new/1"), "new").unwrap();
        fs::write(staging.join("new/2"), "new").unwrap();
        fs::create_dir(root.join("tree")).unwrap();
        fs::write(root.join("tree/a"), "old").unwrap();
        fs::write(root.join("file"), "old").unwrap();
        fs::write(root.join("gone"), "old").unwrap();
        let one = |name: &str, new: Option<&str>, had| Move {
            live: root.join(name),
            new: new.map(|n| staging.join("new").join(n)),
            old: staging.join("old").join(name),
            had,
        };
        let moves = vec![
            one("tree", Some("0"), true),
            one("file", Some("1"), true),
            one("made", Some("2"), false),
            one("gone", None, true),
        ];
        Scene { _dir: dir, root, staging, moves }
    }

    /// Everything outside of the staging directory, with contents.
    fn state(root: &Path) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        for name in ["tree/a", "file", "made", "gone"] {
            if let Ok(text) = fs::read_to_string(root.join(name)) {
                found.insert(PathBuf::from(name), text);
            }
        }
        found
    }

    fn old_state() -> BTreeMap<PathBuf, String> {
        ["tree/a", "file", "gone"].into_iter().map(|n| (n.into(), "old".into())).collect()
    }

    fn new_state() -> BTreeMap<PathBuf, String> {
        ["tree/a", "file", "made"].into_iter().map(|n| (n.into(), "new".into())).collect()
    }

    /// Renames until `left` is used up, then fails as a dead process would: nothing more happens.
    fn stopping(mut left: usize) -> impl FnMut(&Path, &Path) -> io::Result<()> {
        move |from, to| {
            left = left.checked_sub(1).ok_or_else(|| io::Error::other("killed"))?;
            rename_new(from, to)
        }
    }

    #[test]
    fn all_moves_give_the_new_state() {
        let scene = scene();
        make(&scene.moves, &mut rename_new).unwrap();
        assert_eq!(state(&scene.root), new_state());
    }

    #[test]
    fn stopped_anywhere_and_taken_back_is_the_old_state_however_often_that_is_stopped_too() {
        for done in 0..=6 {
            for undone in 0..=6 {
                let scene = scene();
                assert_eq!(make(&scene.moves, &mut stopping(done)).is_ok(), done == 6, "six renames");
                let _ = take_back(&scene.moves, &mut stopping(undone));
                swap_back(&scene.moves, std::slice::from_ref(&scene.staging)).unwrap();
                assert_eq!(state(&scene.root), old_state(), "{done} done, {undone} undone");
                assert_eq!(fs::read_dir(&scene.root).unwrap().count(), 3, "nothing of ours is left");
                // Whoever finds the journal again later changes nothing, whatever is there by then.
                fs::write(scene.root.join("made"), "later").unwrap();
                swap_back(&scene.moves, std::slice::from_ref(&scene.staging)).unwrap();
                assert_eq!(fs::read_to_string(scene.root.join("made")).unwrap(), "later");
            }
        }
    }

    #[test]
    fn a_half_removed_staging_directory_changes_nothing_any_more() {
        let scene = scene();
        swap_back(&scene.moves, &[]).unwrap();
        // Removal was begun, under the second name, and the process died.
        let second = scene.root.join(".stillpoint-restore-0-undone");
        fs::rename(&scene.staging, &second).unwrap();
        fs::remove_dir_all(second.join("new")).unwrap();
        swap_back(&scene.moves, std::slice::from_ref(&scene.staging)).unwrap();
        assert_eq!(state(&scene.root), old_state());
        assert!(!exists(&second));
    }

    #[test]
    fn past_the_point_of_no_return_only_the_old_state_is_removed() {
        let scene = scene();
        make(&scene.moves, &mut rename_new).unwrap();
        swap_back(&[], std::slice::from_ref(&scene.staging)).unwrap();
        assert_eq!(state(&scene.root), new_state());
        assert!(!exists(&scene.staging));
    }

    #[test]
    fn what_somebody_made_in_between_is_not_lost_sight_of() {
        let scene = scene();
        make(&scene.moves, &mut stopping(1)).unwrap_err();
        fs::create_dir(scene.root.join("tree")).unwrap();
        take_back(&scene.moves, &mut rename_new).unwrap();
        assert_eq!(state(&scene.root), old_state());
        assert!(scene.staging.join("old/tree.found").is_dir());
    }

    #[test]
    fn other_peoples_directories_are_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        swap_back(&[], std::slice::from_ref(&precious)).unwrap_err();
        assert!(precious.is_dir());
    }

    #[test]
    fn a_name_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        rename_new(&a, &b).unwrap_err();
        assert_eq!(fs::read_to_string(&b).unwrap(), "b");
    }
}
