//! Reading a backup for a restore: the port [`Fetch`].
//!
//! rustic_core's own restore panics when the disk is full and only logs what it could not set, so only its
//! reading is used. Its reading checks each blob's authentication code but not its name, so the name, which is
//! the SHA-256 of the content, is compared here.
//!
//! Crash story: reads only, under restic's shared lock, which is journalled before it is made. Writers may run
//! beside us; whoever deletes is kept out by the lock. A repository that cannot be written to is read without.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use model::{
    entry::{Kind, Meta, Xattr, tree_order},
    id::BackupId,
    pathtext,
    port::{Failure, FailureKind},
    port_restore::{Contents, Fetch, Sink},
    problem::{Effect, Problem},
    restore::{Listed, Listing},
    size::Bytes,
};
use rustic_core::{
    BlobId, DataId, TreeId,
    repofile::{BlobType, Node, NodeType},
};

use super::{
    crypt::name_of,
    error::{RepositoryError, while_doing},
    lock::{Lock, LockKind},
    node,
    open::{Indexed, Repository},
};

/// No path that Linux takes is longer (`PATH_MAX`), so nothing below it is followed.
const LONGEST_PATH: usize = 4096;

impl Fetch for Repository {
    fn open(&mut self, backup: &BackupId) -> Result<Box<dyn Contents + '_>, Failure> {
        Ok(Box::new(self.stored(backup)?))
    }
}

impl Repository {
    fn stored(&mut self, backup: &BackupId) -> Result<Stored, Failure> {
        let (lock, unlocked) = match self.locks.take(LockKind::Shared) {
            Ok(lock) => (Some(lock), None),
            Err(RepositoryError::Storage(error)) => (None, Some(error)),
            Err(error) => return Err(error.into()),
        };
        let snapshot = self.snapshot(backup)?;
        let index = self.indexed()?;
        let mut walk = Walk { index: &index, found: Vec::new(), problems: Vec::new() };
        if let Some(error) = unlocked {
            let what = format!("the repository is read without a lock: {error}");
            walk.problems.push(Problem::new(Effect::Note, None, what, "let nobody prune it meanwhile"));
        }
        walk.enter(Path::new("/"), snapshot.tree)?;
        let Walk { mut found, mut problems, .. } = walk;
        found.sort_by(|a, b| tree_order(&a.0.path, &b.0.path));
        part_unequal(&mut found, &mut problems);
        let (listed, blobs) = found.into_iter().unzip();
        Ok(Stored { listing: Listing::new(listed, problems)?, blobs, index, _lock: lock })
    }
}

/// One backup, open for reading.
struct Stored {
    listing: Listing,
    /// The content of each item of the listing.
    blobs: Vec<Vec<DataId>>,
    index: Indexed,
    _lock: Option<Lock>,
}

impl Contents for Stored {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn read(&self, item: usize, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let (Some(entry), Some(blobs)) = (self.listing.entries().get(item), self.blobs.get(item)) else {
            return Err(Failure::new(FailureKind::Other, "there is no such file in the backup", ""));
        };
        let mut size = 0;
        for id in blobs {
            let bytes = self.index.get_blob_cached(&BlobId::from(**id), BlobType::Data).map_err(|error| {
                damaged(entry, "is damaged in the repository")
                    .because(while_doing("reading a part of it")(error))
            })?;
            if name_of(&bytes) != id.to_hex().as_str() {
                return Err(damaged(
                    entry,
                    "is damaged in the repository: a part has another content than its name",
                ));
            }
            size += bytes.len() as u64;
            sink(&bytes)?;
        }
        if size == entry.meta.size.0 {
            return Ok(());
        }
        Err(damaged(
            entry,
            &format!("has {size} bytes in the repository, but is listed with {}", entry.meta.size.0),
        ))
    }
}

fn damaged(entry: &Listed, what: &str) -> Failure {
    let remedy = "run `stillpoint check --read-data`, and restore this file from another backup or tier";
    Failure::new(FailureKind::Damaged, format!("{} {what}", pathtext::show(&entry.path)), remedy)
}

struct Walk<'a> {
    index: &'a Indexed,
    found: Vec<(Listed, Vec<DataId>)>,
    problems: Vec<Problem>,
}

impl Walk<'_> {
    fn enter(&mut self, dir: &Path, tree: TreeId) -> Result<(), Failure> {
        let mut todo = vec![(dir.to_owned(), tree)];
        while let Some((dir, tree)) = todo.pop() {
            match self.index.get_tree(&tree).map_err(while_doing("reading a stored directory")) {
                Ok(read) => {
                    for node in read.nodes {
                        let path = plain_child(&dir, &node)?;
                        if let (NodeType::Dir, Some(tree)) = (&node.node_type, node.subtree) {
                            todo.push((path.clone(), tree));
                        }
                        self.take(path, node);
                    }
                }
                Err(error) => {
                    let what = format!("what it held is lost: {}", Failure::from(error).in_full());
                    self.problems.push(Problem::missing(dir, what, "restore from another backup or tier"));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, path: PathBuf, node: Node) {
        let Some(kind) = kind(&node.node_type) else {
            return self
                .problems
                .push(Problem::note(path, "is a socket, which the program that owns it makes anew"));
        };
        let meta = meta(&kind, &node);
        let content = if kind == Kind::File { node.content.unwrap_or_default() } else { Vec::new() };
        self.found.push((Listed { path, kind, meta }, content));
    }
}

/// The path of a child, unless its name is none that a directory can have: a repository that was tampered
/// with could write outside of the target.
fn plain_child(dir: &Path, node: &Node) -> Result<PathBuf, Failure> {
    let name = node.name();
    let bytes = OsStr::as_bytes(&name);
    let path = node::child(dir, node);
    let plain = !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0);
    if plain && path.as_os_str().len() < LONGEST_PATH {
        return Ok(path);
    }
    let name = pathtext::show(Path::new(&*name));
    Err(Failure::new(
        FailureKind::Refused,
        format!("the backup lists {name:?} in {}, which no directory can hold", pathtext::show(dir)),
        "somebody may have tampered with the repository: restore from another tier",
    ))
}

fn kind(node: &NodeType) -> Option<Kind> {
    Some(match node {
        NodeType::File => Kind::File,
        NodeType::Dir => Kind::Dir,
        NodeType::Symlink { .. } => Kind::Symlink(node.to_link().to_owned()),
        NodeType::Dev { device } => Kind::BlockDevice(*device),
        NodeType::Chardev { device } => Kind::CharDevice(*device),
        NodeType::Fifo => Kind::Fifo,
        NodeType::Socket => return None,
    })
}

/// Attributes as they were. Where another program left one out: closed to others, root's, of the epoch.
pub(super) fn meta(kind: &Kind, node: &Node) -> Meta {
    let stored = &node.meta;
    let mtime = stored.mtime.unwrap_or(Timestamp::UNIX_EPOCH);
    let mut xattrs: Vec<Xattr> = stored
        .extended_attributes
        .iter()
        .map(|x| Xattr { name: x.name.clone().into_bytes(), value: x.value.clone().unwrap_or_default() })
        .collect();
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    let closed = if *kind == Kind::Dir { 0o700 } else { 0o600 };
    Meta {
        mode: stored.mode.map_or(closed, |mode| node::unix_mode(kind, mode)),
        uid: stored.uid.unwrap_or(0),
        gid: stored.gid.unwrap_or(0),
        size: Bytes(if *kind == Kind::File { stored.size } else { 0 }),
        mtime,
        atime: stored.atime.unwrap_or(mtime),
        ctime: stored.ctime.unwrap_or(mtime),
        inode: stored.inode,
        device: stored.device_id,
        links: stored.links,
        xattrs,
    }
}

/// Names of one inode are restored as one file, unless they were read at different moments and differ.
fn part_unequal(found: &mut [(Listed, Vec<DataId>)], problems: &mut Vec<Problem>) {
    let mut first: HashMap<(u64, u64), usize> = HashMap::new();
    for index in 0..found.len() {
        let (entry, content) = &found[index];
        if entry.kind != Kind::File || entry.meta.links < 2 || entry.meta.inode == 0 {
            continue;
        }
        let original = *first.entry((entry.meta.device, entry.meta.inode)).or_insert(index);
        if found[original].1 != *content {
            let what = "was a hard link, but was stored with another content than its other names: restored \
                        as a file of its own";
            problems.push(Problem::note(&entry.path, what));
            found[index].0.meta.links = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, path::Path};

    use model::port::FailureKind;
    use rustic_core::repofile::{Metadata, Node, NodeType};

    use super::plain_child;

    #[test]
    fn no_name_leads_out_of_its_directory() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "x\0"] {
            let node = Node::new_node(OsStr::new(name), NodeType::File, Metadata::default());
            let failure = plain_child(Path::new("/srv"), &node).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Refused, "{name:?}");
        }
        let node = Node::new_node(OsStr::new("..."), NodeType::File, Metadata::default());
        assert_eq!(plain_child(Path::new("/srv"), &node).unwrap(), Path::new("/srv/..."));
    }
}
