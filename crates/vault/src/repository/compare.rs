//! What a stored tree holds against what was to be stored: the archiver's silence proves nothing.
//!
//! Crash story: reads only.

use std::{
    cmp::Ordering,
    collections::HashMap,
    path::{Path, PathBuf},
    vec,
};

use model::{
    entry::{Entry, Kind, tree_order},
    problem::{Effect, Problem},
    size::Bytes,
};
use rustic_core::{Id, TreeId, repofile::Node};

use super::{
    error::{RepositoryError, while_doing},
    node,
    open::Indexed,
    source::Feed,
};

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
    index: &'a Indexed,
    open: Vec<(PathBuf, vec::IntoIter<Node>)>,
}

impl<'a> Stored<'a> {
    /// Begins at the root of a tree.
    pub(crate) fn walk(index: &'a Indexed, root: TreeId) -> Result<Self, RepositoryError> {
        let mut walk = Self { index, open: Vec::new() };
        walk.enter(PathBuf::from("/"), root)?;
        Ok(walk)
    }

    fn enter(&mut self, path: PathBuf, tree: TreeId) -> Result<(), RepositoryError> {
        let nodes = self.index.get_tree(&tree).map_err(while_doing("reading a stored directory"))?.nodes;
        self.open.push((path, nodes.into_iter()));
        Ok(())
    }
}

impl Iterator for Stored<'_> {
    /// A path with its node, and why what a directory holds cannot be read, if so.
    type Item = (PathBuf, Node, Option<RepositoryError>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (dir, nodes) = self.open.last_mut()?;
            let Some(node) = nodes.next() else {
                self.open.pop();
                continue;
            };
            let path = node::child(dir, &node);
            let unreadable = match node.subtree {
                Some(tree) => self.enter(path.clone(), tree).err(),
                None => None,
            };
            return Some((path, node, unreadable));
        }
    }
}

/// Compares a stored tree with the feed it was stored from. `packs` are those that exist, with their sizes in
/// bytes; `uncounted` is the cut record, which is ours and no file of the application.
pub(crate) fn compare(
    feed: &Feed,
    index: &Indexed,
    root: TreeId,
    packs: &HashMap<Id, u64>,
    uncounted: &Path,
) -> Result<Tally, RepositoryError> {
    let mut stored = Stored::walk(index, root)?.peekable();
    let mut tally = Tally::default();
    for (place, entry) in feed.entries().filter(|(_, e)| e.path.file_name().is_some()) {
        while let Some((path, node, _)) = stored.next_if(|(path, ..)| tree_order(path, &entry.path).is_lt()) {
            tally.problems.extend(unasked(&path, &node));
        }
        let found = stored.next_if(|(path, ..)| tree_order(path, &entry.path) == Ordering::Equal);
        let before = tally.problems.len();
        match found {
            None => tally.problems.push(missing(feed, place, entry)),
            Some((_, _, Some(error))) => tally.problems.push(unreadable(entry, &error)),
            Some((_, node, None)) => {
                tally.problems.extend(wrong(entry, &node, index, packs));
            }
        }
        tally.problems.extend(lost_attributes(entry));
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
fn unasked(path: &Path, node: &Node) -> Option<Problem> {
    (!node.is_dir()).then(|| {
        Problem::new(Effect::Weaker, Some(path.into()), "it is in the backup although it was not pinned", "")
    })
}

fn wrong(entry: &Entry, node: &Node, index: &Indexed, packs: &HashMap<Id, u64>) -> Option<Problem> {
    if let Some(what) = node::differs(entry, node) {
        return Some(Problem::missing(&entry.path, what, "take another backup"));
    }
    if entry.kind != Kind::File {
        return None;
    }
    match content_length(node, index, packs) {
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
fn content_length(node: &Node, index: &Indexed, packs: &HashMap<Id, u64>) -> Result<Bytes, String> {
    let mut length = Bytes(0);
    for part in node.content.iter().flatten() {
        let Ok(entry) = index.get_index_entry(part) else {
            return Err(format!("its part {} is in no index", part.to_hex().get(..8).unwrap_or_default()));
        };
        let end = u64::from(entry.location.offset) + u64::from(entry.location.length);
        let lost = match packs.get(&*entry.pack) {
            None => "pack",
            Some(size) if *size < end => "the end of pack",
            Some(_) => "",
        };
        if !lost.is_empty() {
            let pack = entry.pack.to_hex();
            return Err(format!("the repository has lost {lost} {} with a part of it", &pack[..8]));
        }
        length = length + Bytes(u64::from(entry.data_length()));
    }
    Ok(length)
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
