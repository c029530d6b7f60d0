//! What a stored tree holds against what was to be stored: the archiver's silence proves nothing.
//!
//! Crash story: reads only.

use std::{
    cmp::Ordering,
    ops::Range,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread, vec,
};

use model::{
    entry::{Entry, Kind, tree_order},
    problem::{Effect, Problem},
    size::Bytes,
};

use super::{error::RepositoryError, node, source::Feed};
use crate::archiver::{Blobs, Lost, Name, StoredKind, StoredNode, cores};

/// What the comparison found.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Regular files that are stored as they should be.
    pub(crate) files: u64,
    /// Bytes in them.
    pub(crate) bytes: Bytes,
    /// Everything that is missing or otherwise.
    pub(crate) problems: Vec<Problem>,
}

/// A stored tree, walked depth first; a directory comes before what it holds.
pub(crate) struct Stored<'a> {
    blobs: Blobs<'a>,
    open: Vec<(PathBuf, vec::IntoIter<StoredNode>)>,
    /// What comes before this path is left out, unread as far as it can be.
    from: PathBuf,
}

impl<'a> Stored<'a> {
    /// Walks what comes at this path or after it.
    fn walk(blobs: Blobs<'a>, root: Name, from: &Path) -> Result<Self, RepositoryError> {
        let mut walk = Self { blobs, open: Vec::new(), from: from.to_owned() };
        walk.enter(PathBuf::from("/"), root)?;
        Ok(walk)
    }

    fn enter(&mut self, path: PathBuf, tree: Name) -> Result<(), RepositoryError> {
        self.open.push((path, self.blobs.tree(&tree)?.into_iter()));
        Ok(())
    }
}

impl Iterator for Stored<'_> {
    /// A path with its node, and why what a directory holds cannot be read, if so.
    type Item = (PathBuf, StoredNode, Option<RepositoryError>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (dir, nodes) = self.open.last_mut()?;
            let Some(node) = nodes.next() else {
                self.open.pop();
                continue;
            };
            let path = dir.join(node.file_name());
            let is_before = tree_order(&path, &self.from).is_lt();
            if is_before && !self.from.starts_with(&path) {
                continue;
            }
            let unreadable = match node.subtree {
                Some(tree) => self.enter(path.clone(), tree).err(),
                None => None,
            };
            if is_before {
                continue;
            }
            return Some((path, node, unreadable));
        }
    }
}

/// Fewer entries than this are not worth another thread.
const LEAST: usize = 4096;

/// Compares a stored tree, as it is read back from its packs, with the feed it was stored from. `uncounted` is the
/// cut record, which is ours and no file of the application.
pub(crate) fn compare(
    feed: &Feed,
    blobs: Blobs<'_>,
    root: Name,
    uncounted: &Path,
) -> Result<Tally, RepositoryError> {
    let step = feed.len().div_ceil(cores()).max(LEAST);
    let parts = (0..feed.len().max(1)).step_by(step).map(|from| from..(from + step).min(feed.len()));
    thread::scope(|scope| {
        let threads: Vec<_> =
            parts.map(|part| scope.spawn(move || compare_part(feed, part, blobs, root, uncounted))).collect();
        let mut all = Tally::default();
        for thread in threads {
            let tally = thread.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            all.files += tally.files;
            all.bytes = all.bytes + tally.bytes;
            all.problems.extend(tally.problems);
        }
        Ok(all)
    })
}

/// Compares these places of a feed with what is stored from the first of them up to the next part's first.
fn compare_part(
    feed: &Feed,
    part: Range<usize>,
    blobs: Blobs<'_>,
    root: Name,
    uncounted: &Path,
) -> Result<Tally, RepositoryError> {
    let path = |place| feed.entry(place).map(|entry| entry.path);
    let first = if part.start == 0 { None } else { path(part.start) };
    let end = path(part.end);
    let is_in = |stored: &Path| end.as_ref().is_none_or(|end| tree_order(stored, end).is_lt());
    let stored = Stored::walk(blobs, root, first.as_deref().unwrap_or(Path::new("/")))?;
    let mut stored = stored.take_while(|(path, ..)| is_in(path)).peekable();
    let mut tally = Tally::default();
    let entries = part.filter_map(|place| Some((place, feed.entry(place)?)));
    for (place, entry) in entries.filter(|(_, e)| e.path.file_name().is_some()) {
        while let Some((path, node, _)) = stored.next_if(|(path, ..)| tree_order(path, &entry.path).is_lt()) {
            tally.problems.extend(unasked(&path, &node));
        }
        let found = stored.next_if(|(path, ..)| tree_order(path, &entry.path) == Ordering::Equal);
        let before = tally.problems.len();
        match found {
            None => tally.problems.push(missing(feed, place, &entry)),
            Some((_, _, Some(error))) => tally.problems.push(unreadable(&entry, &error)),
            Some((_, node, None)) => {
                tally.problems.extend(wrong(&entry, &node, blobs));
            }
        }
        tally.problems.extend(lost_attributes(&entry));
        if tally.problems.len() == before && entry.kind == Kind::File && entry.path != uncounted {
            tally.files += 1;
            tally.bytes = tally.bytes + entry.meta.size;
        }
    }
    tally.problems.extend(stored.filter_map(|(path, node, _)| unasked(&path, &node)));
    Ok(tally)
}

fn missing(feed: &Feed, place: usize, entry: &Entry) -> Problem {
    match feed.fault(place) {
        Some(fault) => Problem::missing(&entry.path, fault.what, fault.remedy),
        None => Problem::missing(
            &entry.path,
            "it is not in the stored tree although nothing failed",
            "take another backup; if it happens again, report it",
        ),
    }
}

fn unreadable(entry: &Entry, error: &RepositoryError) -> Problem {
    let what = format!("what was stored of this directory cannot be read back: {error}");
    Problem::missing(&entry.path, what, error.remedy())
}

/// A directory above others that the manifest lacks is filled in by the archiver; anything else is odd.
fn unasked(path: &Path, node: &StoredNode) -> Option<Problem> {
    (node.kind != StoredKind::Dir).then(|| {
        Problem::new(Effect::Weaker, Some(path.into()), "it is in the backup although it was not pinned", "")
    })
}

fn wrong(entry: &Entry, node: &StoredNode, blobs: Blobs<'_>) -> Option<Problem> {
    if let Some(what) = node.differs(entry) {
        return Some(Problem::missing(&entry.path, what, "take another backup"));
    }
    if entry.kind != Kind::File {
        return None;
    }
    match content_length(node, blobs) {
        Ok(length) if length == entry.meta.size => None,
        Ok(length) => Some(Problem::missing(
            &entry.path,
            format!("{} of its {} bytes are in the backup", length.0, entry.meta.size.0),
            "take another backup",
        )),
        Err(what) => Some(Problem::missing(
            &entry.path,
            what,
            "run `restic repair index` (`restic rebuild-index` before 0.16), which forgets what is lost; \
             the next backup then stores it again",
        )),
    }
}

/// How many bytes the stored parts of a file have together, if all of them are there.
fn content_length(node: &StoredNode, blobs: Blobs<'_>) -> Result<Bytes, String> {
    let content = node.content.as_deref().unwrap_or_default();
    blobs.index.measure(content).map(Bytes).map_err(|lost| match lost {
        Lost::Blob(name) => format!("its part {} is in no index", name.short()),
        Lost::Pack(name) => format!("the repository has lost pack {} with a part of it", name.short()),
        Lost::EndOfPack(name) => {
            format!("the repository has lost the end of pack {} with a part of it", name.short())
        }
    })
}

fn lost_attributes(entry: &Entry) -> Option<Problem> {
    let names: Vec<String> =
        node::unstorable(&entry.meta.xattrs).map(|x| x.name.escape_ascii().to_string()).collect();
    (!names.is_empty()).then(|| {
        Problem::missing(
            &entry.path,
            format!(
                "its extended attributes {} cannot be stored: their names are not UTF-8",
                names.join(", ")
            ),
            "rename them",
        )
    })
}
