//! The whole tree of a backup: read by all cores, a level of directories at a time, and put together in order.
//!
//! Memory: each directory is kept as what a restore needs of it, about 250 bytes a name and 4 bytes a part; parts are
//! places in the index.
//!
//! Crash story: reads only.

use std::{
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread, vec,
};

use model::{
    entry::Kind,
    pathtext,
    port::{Failure, FailureKind},
    problem::Problem,
    restore::Listed,
};

use super::{
    blobs::Blobs,
    error::RepositoryError,
    tree::{self, Child, Unrestorable},
};
use crate::archiver::{Name, Place};

/// No path that Linux takes is longer (`PATH_MAX`), so nothing below it is followed.
const LONGEST_PATH: usize = 4096;

/// The place of a part that no index names.
const LOST: Place = Place::MAX;

/// Everything in a backup, in tree order.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) entries: Vec<Listed>,
    /// The content of each, as a stretch of the places.
    pub(super) contents: Vec<Range<u32>>,
    pub(super) places: Vec<Place>,
    pub(super) problems: Vec<Problem>,
}

impl Stored {
    /// The parts of an entry.
    pub(super) fn content(&self, index: usize) -> &[Place] {
        let at = &self.contents[index];
        &self.places[at.start as usize..at.end as usize]
    }
}

/// A name with the parts of its content, or, of a directory, its number among those of the next level.
type Named = (Listed, Vec<Place>, Option<usize>);

/// A directory that was read.
#[derive(Default)]
struct Directory {
    names: Vec<Named>,
    problems: Vec<Problem>,
}

/// Reads everything below a tree.
///
/// # Errors
/// [`FailureKind::Refused`] for a name that no directory can hold. What cannot be read is among the problems.
pub(super) fn all(parts: &Blobs, root: Name) -> Result<Stored, Failure> {
    let mut levels: Vec<Vec<Directory>> = Vec::new();
    let mut level: Vec<(PathBuf, Name)> = vec![("/".into(), root)];
    while !level.is_empty() {
        let mut next: Vec<(PathBuf, Name)> = Vec::new();
        let mut directories = Vec::with_capacity(level.len());
        for read in on_all_cores(&level, |(path, tree)| directory(parts, path, tree)) {
            let (mut directory, subtrees) = read?;
            let mut numbers = next.len()..;
            for name in directory.names.iter_mut().filter(|name| name.0.kind == Kind::Dir) {
                name.2 = name.2.and_then(|_| numbers.next());
            }
            next.extend(subtrees);
            directories.push(directory);
        }
        levels.push(directories);
        level = next;
    }
    in_order(levels)
}

/// A directory, and what lies below it. Which of its names have something below is said by a number that only says so.
fn directory(parts: &Blobs, path: &Path, tree: &Name) -> Result<(Directory, Vec<(PathBuf, Name)>), Failure> {
    let (mut directory, mut below) = (Directory::default(), Vec::new());
    let children = match children(parts, tree) {
        Ok(children) => children,
        Err(error) => {
            let what = format!("what it held is lost: {}", Failure::from(error).in_full());
            let lost = Problem::missing(path, what, "restore from another backup or tier");
            directory.problems.push(lost);
            return Ok((directory, below));
        }
    };
    directory.names.reserve_exact(children.len());
    for child in children {
        let path = plain_child(path, &child)?;
        let kind = match child.kind {
            Ok(kind) => kind,
            Err(why) => {
                directory.problems.push(unrestorable(path, why));
                continue;
            }
        };
        if let Some(subtree) = child.subtree {
            below.push((path.clone(), subtree));
        }
        let places = child.content.iter().map(|name| parts.locate(name).unwrap_or(LOST)).collect();
        let number = child.subtree.map(|_| 0);
        directory.names.push((Listed { path, kind, meta: child.meta }, places, number));
    }
    Ok((directory, below))
}

fn children(parts: &Blobs, tree: &Name) -> Result<Vec<Child>, RepositoryError> {
    let stored = parts.tree(tree)?;
    tree::parse(&stored).map_err(|error| RepositoryError::Damaged {
        what: format!("the stored directory {} cannot be understood: {error}", tree.short()),
    })
}

fn unrestorable(path: PathBuf, why: Unrestorable) -> Problem {
    match why {
        Unrestorable::Socket => Problem::note(path, "is a socket, which the program that owns it makes anew"),
        Unrestorable::Unknown => {
            let what = "is of a kind that this version does not know";
            Problem::missing(path, what, "restore it with the program that stored it")
        }
    }
}

/// The path of a child, unless its name is none that a directory can have: a repository that was tampered
/// with could write outside of the target.
fn plain_child(dir: &Path, child: &Child) -> Result<PathBuf, Failure> {
    let bytes = child.name.as_bytes();
    let plain = !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0);
    if plain && dir.as_os_str().len() + 1 + bytes.len() < LONGEST_PATH {
        return Ok(dir.join(&child.name));
    }
    let name = pathtext::show(Path::new(&child.name));
    Err(Failure::new(
        FailureKind::Refused,
        format!("the backup lists {name:?} in {}, which no directory can hold", pathtext::show(dir)),
        "somebody may have tampered with the repository: restore from another tier",
    ))
}

/// Depth first.
fn in_order(levels: Vec<Vec<Directory>>) -> Result<Stored, Failure> {
    let mut all = Stored::default();
    let mut levels: Vec<Vec<Option<Directory>>> =
        levels.into_iter().map(|level| level.into_iter().map(Some).collect()).collect();
    let mut open: Vec<vec::IntoIter<Named>> = Vec::new();
    let mut take = |level: usize, number: usize, problems: &mut Vec<Problem>| {
        let directory = levels.get_mut(level).and_then(|level| level.get_mut(number)?.take());
        let directory = directory.unwrap_or_default();
        problems.extend(directory.problems);
        directory.names.into_iter()
    };
    open.push(take(0, 0, &mut all.problems));
    while let Some(names) = open.last_mut() {
        let Some((listed, places, below)) = names.next() else {
            open.pop();
            continue;
        };
        let from = all.places.len();
        all.places.extend(places);
        let (Ok(from), Ok(to)) = (u32::try_from(from), u32::try_from(all.places.len())) else {
            return Err(Failure::new(FailureKind::Other, "the backup has more parts than 2^32", ""));
        };
        all.contents.push(from..to);
        all.entries.push(listed);
        if let Some(number) = below {
            open.push(take(open.len(), number, &mut all.problems));
        }
    }
    Ok(all)
}

/// Does something with each of these on all cores; the results in order.
fn on_all_cores<T: Sync, R: Send>(items: &[T], task: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { return };
            let result = task(item);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(2, std::num::NonZero::get);
        (1..cores.min(items.len())).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::port::FailureKind;

    use super::{plain_child, tree::parse};

    fn children(names: &[&str]) -> Vec<super::Child> {
        let nodes = names.iter().map(|name| serde_json::json!({ "name": name, "type": "file" }));
        let document = serde_json::json!({ "nodes": nodes.collect::<Vec<_>>() });
        parse(document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn no_name_leads_out_of_its_directory() {
        for child in children(&["", ".", "..", "a/b", "/etc/passwd", "../x", "x\0", "\\x2e\\x2e", "a\\x2fb"])
        {
            let failure = plain_child(Path::new("/srv"), &child).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Refused, "{:?}", child.name);
        }
        let dots = children(&["..."]);
        assert_eq!(plain_child(Path::new("/srv"), &dots[0]).unwrap(), Path::new("/srv/..."));
    }
}
