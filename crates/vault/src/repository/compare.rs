//! What a stored tree holds against what was to be stored: the archiver's silence proves nothing.
//!
//! Crash story: reads only.

use std::{
    ffi::OsStr,
    iter::Peekable,
    panic::resume_unwind,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread, vec,
};

use model::{
    entry::{Kind, tree_order},
    problem::{Effect, Problem},
    size::Bytes,
};

use rustic_core::repofile::BlobType;

use super::{error::RepositoryError, feed::Feed, node};
use crate::archiver::{Blobs, Child, Lost, Made, Name, StoredKind, StoredNode, cores, no_tree};

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

/// A directory of the feed, and the tree that the one above has for it.
type Found = (u32, Name);

/// One thread's share.
#[derive(Default)]
struct Share {
    tally: Tally,
    below: Vec<Found>,
    failed: Option<RepositoryError>,
}

/// Compares a stored tree, as it is read back from its packs, with the feed it was stored from, from the root down.
/// `uncounted` is the cut record, which is ours and no file of the application.
///
/// A directory that was read for the parent of this backup, in this session, need not be read again if its tree is the
/// very one that was written of these entries: what was written has the hash of what was read. That all parts of its
/// files are there is looked at all the same.
pub(crate) fn compare(
    made: &Made<'_>,
    blobs: Blobs<'_>,
    root: Name,
    uncounted: &Path,
) -> Result<Tally, RepositoryError> {
    let comparison = Comparison { made, feed: made.job.feed, blobs, uncounted };
    let mut all = Tally::default();
    let mut level = vec![(0, root)];
    while !level.is_empty() {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut share = Share::default();
            while let Some(found) = level.get(next.fetch_add(1, Ordering::Relaxed)) {
                comparison.directory(*found, &mut share);
            }
            share
        };
        let shares = thread::scope(|scope| {
            let helping = cores().min(level.len()) - 1;
            let threads: Vec<_> = (0..helping).map(|_| scope.spawn(work)).collect();
            let mut shares = vec![work()];
            let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| resume_unwind(panic)));
            shares.extend(joined);
            shares
        });
        level = Vec::new();
        for share in shares {
            share.failed.map_or(Ok(()), Err)?;
            all.files += share.tally.files;
            all.bytes = all.bytes + share.tally.bytes;
            all.problems.extend(share.tally.problems);
            level.extend(share.below);
        }
    }
    all.problems.sort_by(|a, b| match (&a.path, &b.path) {
        (Some(a), Some(b)) => tree_order(a, b),
        (a, b) => a.is_some().cmp(&b.is_some()),
    });
    Ok(all)
}

/// What is compared.
struct Comparison<'a> {
    made: &'a Made<'a>,
    feed: &'a Feed,
    blobs: Blobs<'a>,
    uncounted: &'a Path,
}

impl Comparison<'_> {
    fn directory(&self, (number, tree): Found, share: &mut Share) {
        if self.is_as_read(number, tree) {
            return self.take_over(number, share);
        }
        let stored = match self.blobs.unproven_tree(&tree) {
            Ok(stored) => stored,
            Err(error) => return self.lost(number, error, share),
        };
        match stored.read(StoredNode::parse_tree) {
            Ok(Ok(nodes)) => self.children(number, nodes, share),
            Ok(Err(error)) => self.lost(number, no_tree(&tree, &error), share),
            Err(error) => self.lost(number, error, share),
        }
    }

    /// Whether a directory was read in this session, is what was written of it now, and is there with all its files.
    fn is_as_read(&self, number: u32, tree: Name) -> bool {
        let is_read = || self.made.job.bases.iter().any(|base| base.read.contains(&tree));
        let files = || {
            let places = self.places(number).filter_map(|place| Some((place, self.feed.file_size(place)?)));
            places.filter_map(|(place, size)| Some((self.made.content(place)?, size.0)))
        };
        let index = self.blobs.index;
        self.made.names.get(number as usize) == Some(&tree)
            && is_read()
            && index.is_there(BlobType::Tree, &tree)
            && index.hold(files())
    }

    fn places(&self, number: u32) -> impl Iterator<Item = usize> {
        let children = self.made.layout.dir(number).children.iter();
        children.flat_map(|child| match child {
            Child::Places(places) => places.clone(),
            Child::Dir(_) => 0..0,
        })
    }

    fn take_over(&self, number: u32, share: &mut Share) {
        for child in &self.made.layout.dir(number).children {
            match child {
                Child::Places(places) => {
                    for place in places.clone() {
                        if self.feed.kind(place) == Some(&Kind::File) && self.made.content(place).is_none() {
                            share
                                .tally
                                .problems
                                .extend(self.feed.path(place).map(|path| self.missing(place, &path)));
                        } else {
                            self.is_there(place, share);
                        }
                    }
                }
                Child::Dir(below) => {
                    let place = self.made.layout.dir(*below).place;
                    place.into_iter().for_each(|place| self.is_there(place, share));
                    share.below.extend(self.made.names.get(*below as usize).map(|name| (*below, *name)));
                }
            }
        }
    }

    /// An entry is stored as it should be, but for attributes that no tree can hold.
    fn is_there(&self, place: usize, share: &mut Share) {
        let lost = lost_attributes(self.feed, place);
        let is_whole = lost.is_none();
        share.tally.problems.extend(lost);
        let Some(size) = self.feed.file_size(place).filter(|_| is_whole) else { return };
        if !self.is_uncounted(place) {
            share.tally.files += 1;
            share.tally.bytes = share.tally.bytes + size;
        }
    }

    fn is_uncounted(&self, place: usize) -> bool {
        let Some((dir, name)) = self.feed.name(place) else { return false };
        self.uncounted.file_name() == Some(name) && self.uncounted.parent() == Some(dir)
    }

    /// Compares what a directory should hold with what stands in its tree.
    fn children(&self, number: u32, nodes: Vec<StoredNode<'_>>, share: &mut Share) {
        let mut nodes = nodes.into_iter().peekable();
        for child in &self.made.layout.dir(number).children {
            match child {
                Child::Places(places) => {
                    for place in places.clone() {
                        let Some((_, name)) = self.feed.name(place) else { continue };
                        self.unasked(number, name, &mut nodes, share);
                        match nodes.next_if(|node| node.file_name() == name) {
                            Some(node) => self.entry(place, &node, share),
                            None => self.not_there(place, share),
                        }
                    }
                }
                Child::Dir(below) => {
                    let name = self.made.layout.name(self.feed, *below);
                    self.unasked(number, name, &mut nodes, share);
                    match nodes.next_if(|node| node.file_name() == name) {
                        Some(node) => self.subdirectory(*below, &node, share),
                        None => self.none_there(*below, share),
                    }
                }
            }
        }
        share.tally.problems.extend(nodes.map(|node| self.odd(number, &node)));
    }

    fn entry(&self, place: usize, node: &StoredNode<'_>, share: &mut Share) {
        match self.wrong(place, node) {
            None => self.is_there(place, share),
            Some(problem) => share.tally.problems.push(problem),
        }
    }

    fn subdirectory(&self, below: u32, node: &StoredNode<'_>, share: &mut Share) {
        let Some(subtree) = node.subtree.filter(|_| node.kind == StoredKind::Dir) else {
            let place = self.made.layout.dir(below).place;
            share.tally.problems.extend(place.and_then(|place| self.wrong(place, node)));
            return self.nothing_below(below, share);
        };
        share
            .tally
            .problems
            .extend(self.made.layout.dir(below).place.and_then(|place| lost_attributes(self.feed, place)));
        share.below.push((below, subtree));
    }

    /// Stored names that come before this one are not asked for.
    fn unasked<'n>(
        &self,
        number: u32,
        name: &OsStr,
        nodes: &mut Peekable<vec::IntoIter<StoredNode<'n>>>,
        share: &mut Share,
    ) {
        while let Some(node) = nodes.next_if(|node| &*node.file_name() < name) {
            share.tally.problems.push(self.odd(number, &node));
        }
    }

    fn odd(&self, number: u32, node: &StoredNode<'_>) -> Problem {
        let path = self.made.layout.path(self.feed, number).join(node.file_name());
        Problem::new(Effect::Weaker, Some(path), "it is in the backup although it was not pinned", "")
    }

    fn not_there(&self, place: usize, share: &mut Share) {
        let path = self.feed.path(place).unwrap_or_default();
        share.tally.problems.push(self.missing(place, &path));
    }

    /// A directory is not there, and with it nothing that it should hold.
    fn none_there(&self, number: u32, share: &mut Share) {
        self.made.layout.dir(number).place.into_iter().for_each(|place| self.not_there(place, share));
        self.nothing_below(number, share);
    }

    fn nothing_below(&self, number: u32, share: &mut Share) {
        let mut left = vec![number];
        while let Some(number) = left.pop() {
            for child in &self.made.layout.dir(number).children {
                match child {
                    Child::Places(places) => places.clone().for_each(|place| self.not_there(place, share)),
                    Child::Dir(below) => {
                        let place = self.made.layout.dir(*below).place;
                        place.into_iter().for_each(|place| self.not_there(place, share));
                        left.push(*below);
                    }
                }
            }
        }
    }

    /// What stands in a directory cannot be read back.
    fn lost(&self, number: u32, error: RepositoryError, share: &mut Share) {
        if number == 0 {
            share.failed = Some(error);
            return;
        }
        let path = self.made.layout.path(self.feed, number);
        let what = format!("what was stored of this directory cannot be read back: {error}");
        share.tally.problems.push(Problem::missing(path, what, error.remedy()));
        self.nothing_below(number, share);
    }

    fn missing(&self, place: usize, path: &Path) -> Problem {
        match self.feed.fault(place) {
            Some(fault) => Problem::missing(path, fault.what, fault.remedy),
            None => Problem::missing(
                path,
                "it is not in the stored tree although nothing failed",
                "take another backup; if it happens again, report it",
            ),
        }
    }

    /// Whether the parts of a file are, one by one, those that were stored of it, and are there with all its bytes.
    fn is_what_was_stored(&self, place: usize, node: &StoredNode<'_>, size: Bytes) -> bool {
        let names = node.content.as_deref().unwrap_or_default();
        let places = self.made.content(place);
        places.is_some_and(|places| self.blobs.index.are_there(places, names) == Some(size.0))
    }

    fn wrong(&self, place: usize, node: &StoredNode<'_>) -> Option<Problem> {
        let (kind, path) = (self.feed.kind(place)?, || self.feed.path(place).unwrap_or_default());
        let size = self.feed.file_size(place).unwrap_or_default();
        if let Some(what) = node.differs(kind, size) {
            return Some(Problem::missing(path(), what, "take another backup"));
        }
        if *kind != Kind::File {
            return None;
        }
        if self.is_what_was_stored(place, node, size) {
            return None;
        }
        match content_length(node, self.blobs) {
            Ok(length) if length == size => None,
            Ok(length) => Some(Problem::missing(
                path(),
                format!("{} of its {} bytes are in the backup", length.0, size.0),
                "take another backup",
            )),
            Err(what) => Some(Problem::missing(
                path(),
                what,
                "run `restic repair index` (`restic rebuild-index` before 0.16), which forgets what is lost; \
                 the next backup then stores it again",
            )),
        }
    }
}

/// How many bytes the stored parts of a file have together, if all of them are there.
fn content_length(node: &StoredNode<'_>, blobs: Blobs<'_>) -> Result<Bytes, String> {
    let content = node.content.as_deref().unwrap_or_default();
    blobs.index.measure(content).map(Bytes).map_err(|lost| match lost {
        Lost::Blob(name) => format!("its part {} is in no index", name.short()),
        Lost::Pack(name) => format!("the repository has lost pack {} with a part of it", name.short()),
        Lost::EndOfPack(name) => {
            format!("the repository has lost the end of pack {} with a part of it", name.short())
        }
    })
}

fn lost_attributes(feed: &Feed, place: usize) -> Option<Problem> {
    let unstorable = node::unstorable(feed.xattrs(place));
    let names: Vec<String> = unstorable.map(|x| x.name.escape_ascii().to_string()).collect();
    (!names.is_empty()).then(|| {
        Problem::missing(
            feed.path(place).unwrap_or_default(),
            format!(
                "its extended attributes {} cannot be stored: their names are not UTF-8",
                names.join(", ")
            ),
            "rename them",
        )
    })
}
