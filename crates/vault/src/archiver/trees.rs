//! Directories as restic's trees: one JSON document each, named by its hash.
//!
//! Entries come in tree order, so a directory is complete when the first entry that is not below it comes. Each open
//! directory is a growing document; nothing else is kept of what was before.
//!
//! Crash story: see [`super::pack`].

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use model::entry::{Entry, Kind};
use rustic_core::{
    DataId, TreeId,
    repofile::{BlobType, Metadata, Node, NodeType},
};

use super::{
    Job,
    compress::Effort,
    index::{Claim, Place},
    name::Name,
    orphans,
    pack::{self, Packer},
};
use crate::repository::{
    error::RepositoryError,
    node::{self, Names},
};

/// A directory that is not complete.
struct Open {
    path: PathBuf,
    /// Its own node; nothing for the root.
    node: Option<Node>,
    json: Vec<u8>,
}

impl Open {
    fn new(path: &Path, node: Option<Node>) -> Self {
        Self { path: path.into(), node, json: b"{\"nodes\":[".to_vec() }
    }

    fn push(&mut self, node: &Node) -> Result<(), RepositoryError> {
        if !self.json.ends_with(b"[") {
            self.json.push(b',');
        }
        serde_json::to_writer(&mut self.json, node).map_err(|error| RepositoryError::Damaged {
            what: format!(
                "{} cannot be written into its directory: {error}",
                self.path.join(node.name()).display()
            ),
        })
    }
}

/// Makes the trees of a backup.
pub(crate) struct Trees<'a, 'b> {
    job: &'a Job<'b>,
    packer: Packer,
    names: Names,
    /// From the root to the directory that is open now.
    open: Vec<Open>,
}

impl<'a, 'b> Trees<'a, 'b> {
    /// Begins with an empty root.
    ///
    /// # Errors
    /// If nothing can be compressed.
    pub(crate) fn new(job: &'a Job<'b>) -> Result<Self, RepositoryError> {
        let packer = Packer::new(BlobType::Tree, job.tree_pack, job.sink.levels)?;
        let root = Open::new(Path::new("/"), None);
        Ok(Self { job, packer, names: Names::default(), open: vec![root] })
    }

    /// Adds the next entry in tree order, with its content if it is a file.
    ///
    /// # Errors
    /// If a pack cannot be written.
    pub(crate) fn add(&mut self, entry: &Entry, content: &[Place]) -> Result<(), RepositoryError> {
        let Some(parent) = entry.path.parent() else { return Ok(()) };
        self.go_to(parent)?;
        let Some(mut node) = node::node(entry, self.job.feed.ctime(entry), &self.names) else {
            return Ok(());
        };
        match entry.kind {
            Kind::Dir => self.open.push(Open::new(&entry.path, Some(node))),
            Kind::File => {
                let names = self.job.sink.index.names(content);
                node.content = Some(names.iter().map(|name| DataId::from(name.id())).collect());
                self.top(&node)?;
            }
            _ => self.top(&node)?,
        }
        Ok(())
    }

    fn top(&mut self, node: &Node) -> Result<(), RepositoryError> {
        self.open.last_mut().map_or(Ok(()), |top| top.push(node))
    }

    /// Completes directories and opens others until this one is open. One that the manifest lacks gets the mode 755
    /// and no other attributes.
    fn go_to(&mut self, dir: &Path) -> Result<(), RepositoryError> {
        while self.open.last().is_some_and(|open| !dir.starts_with(&open.path)) {
            self.complete()?;
        }
        let Some(open) = self.open.last().filter(|open| open.path != dir) else { return Ok(()) };
        let mut path = open.path.clone();
        let missing = dir.strip_prefix(&path).map(Path::to_owned).unwrap_or_default();
        for name in &missing {
            path.push(name);
            let mut node = Node::new_node(name, NodeType::Dir, Metadata::default());
            node.meta.mode = Some(node::MODE_OF_MISSING_DIR);
            self.open.push(Open::new(&path, Some(node)));
        }
        Ok(())
    }

    /// Stores the directory that is open and puts its node into the one above.
    fn complete(&mut self) -> Result<(), RepositoryError> {
        let Some(mut done) = self.open.pop() else { return Ok(()) };
        let tree = self.store(&mut done.json)?;
        if let Some(mut node) = done.node {
            node.subtree = Some(TreeId::from(tree.id()));
            self.top(&node)?;
        }
        Ok(())
    }

    fn store(&mut self, json: &mut Vec<u8>) -> Result<Name, RepositoryError> {
        // restic's JSON ends with a newline.
        json.extend_from_slice(b"]}\n");
        let name = Name::of(json);
        let sink = &self.job.sink;
        loop {
            match sink.index.claim(BlobType::Tree, &name) {
                Claim::Known(_) => return Ok(name),
                Claim::Mine(place) => {
                    self.packer.add(sink, (place, name), json, &mut Effort::Quick)?;
                    return Ok(name);
                }
                Claim::Orphan { pack } => orphans::look(sink, pack)?,
            }
        }
    }

    /// Completes the root, and returns its name when all trees are on disk.
    ///
    /// # Errors
    /// If a pack cannot be written.
    pub(crate) fn finish(mut self) -> Result<Name, RepositoryError> {
        while self.open.len() > 1 {
            self.complete()?;
        }
        let mut root = self.open.pop().unwrap_or_else(|| Open::new(Path::new(OsStr::new("/")), None));
        let name = self.store(&mut root.json)?;
        pack::write_all(&self.job.sink, BlobType::Tree, self.job.tree_pack, vec![self.packer.end()])?;
        Ok(name)
    }
}
