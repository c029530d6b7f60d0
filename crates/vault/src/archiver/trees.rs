//! Directories as restic's trees: one JSON document each, named by its hash.
//!
//! Entries come in tree order, so a directory is complete when the first entry that is not below it comes. Each open
//! directory is a growing document; nothing else is kept of what was before.
//!
//! Crash story: see [`super::pack`].

use std::{
    ffi::OsStr,
    io::{self, Write},
    path::{Path, PathBuf},
};

use model::entry::{Entry, Kind};
use rustic_core::{
    TreeId,
    repofile::{BlobType, Metadata, Node, NodeType},
};
use sha2::{Digest, Sha256};
use zstd::stream::write::Encoder;

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

/// A tree is hashed and compressed in stretches of at least so many bytes; most are smaller than one.
const STRETCH: usize = 256 << 10;

/// A directory that is not complete.
struct Open {
    path: PathBuf,
    /// Its own node; nothing for the root.
    node: Option<Node>,
    json: Vec<u8>,
    /// What stood before that, if it is large: hashed and compressed while the workers are at their files.
    before: Option<Before>,
}

/// The beginning of a large tree.
struct Before {
    hash: Sha256,
    length: usize,
    packed: Packing,
}

/// Takes bytes, and compresses them if the repository is compressed.
enum Packing {
    Plain(Vec<u8>),
    Zstd(Encoder<'static, Vec<u8>>),
}

/// A whole tree.
struct Whole {
    name: Name,
    content: Vec<u8>,
    /// Its length before it was compressed; 0 if it is not.
    raw: u32,
}

impl Before {
    fn new(level: Option<i32>) -> io::Result<Self> {
        let packed = match level {
            Some(level) => Packing::Zstd(Encoder::new(Vec::new(), level)?),
            None => Packing::Plain(Vec::new()),
        };
        Ok(Self { hash: Sha256::new(), length: 0, packed })
    }

    /// Takes these bytes over.
    fn take(&mut self, json: &mut Vec<u8>) -> io::Result<()> {
        self.hash.update(&json);
        self.length += json.len();
        match &mut self.packed {
            Packing::Plain(plain) => plain.append(json),
            Packing::Zstd(encoder) => encoder.write_all(json)?,
        }
        json.clear();
        Ok(())
    }

    fn end(self) -> io::Result<Whole> {
        let (content, raw) = match self.packed {
            Packing::Plain(plain) => (plain, 0),
            Packing::Zstd(encoder) => (encoder.finish()?, self.length as u32),
        };
        Ok(Whole { name: Name(self.hash.finalize().into()), content, raw })
    }
}

impl Open {
    fn new(path: &Path, node: Option<Node>) -> Self {
        Self { path: path.into(), node, json: b"{\"nodes\":[".to_vec(), before: None }
    }

    fn push(&mut self, node: &Node, content: &[Name], level: Option<i32>) -> Result<(), RepositoryError> {
        if self.before.is_some() || !self.json.ends_with(b"[") {
            self.json.push(b',');
        }
        let begin = self.json.len();
        serde_json::to_writer(&mut self.json, node).map_err(|error| RepositoryError::Damaged {
            what: format!(
                "{} cannot be written into its directory: {error}",
                self.path.join(node.name()).display()
            ),
        })?;
        if !content.is_empty() && !fill_in(&mut self.json, begin, content) {
            let what = format!("there is no list of parts in what is written of {}", node.name().display());
            return Err(RepositoryError::Damaged { what });
        }
        if self.json.len() >= STRETCH {
            let before = match self.before.take() {
                Some(before) => Ok(before),
                None => Before::new(level),
            };
            let mut before = before.map_err(|error| uncompressible(&error))?;
            before.take(&mut self.json).map_err(|error| uncompressible(&error))?;
            self.before = Some(before);
        }
        Ok(())
    }
}

/// Puts names into the empty list of parts that a file's node has; it begins here in the JSON. A quotation mark within
/// a text has a backslash before it, so this cannot be in one. Whether there was such a list.
fn fill_in(json: &mut Vec<u8>, begin: usize, content: &[Name]) -> bool {
    const EMPTY: &[u8] = b"\"content\":[]";
    let node = json.get(begin..).unwrap_or_default();
    let Some(found) = node.windows(EMPTY.len()).position(|part| part == EMPTY) else { return false };
    let rest = json.split_off(begin + found + EMPTY.len() - 1);
    json.reserve(content.len() * 67 + rest.len());
    for name in content {
        let mut part = [b'"'; 67];
        part[66] = b',';
        // There is room for 64 digits.
        let _whole = hex::encode_to_slice(name.0, &mut part[1..65]);
        json.extend_from_slice(&part);
    }
    json.pop();
    json.extend_from_slice(&rest);
    true
}

fn uncompressible(error: &io::Error) -> RepositoryError {
    RepositoryError::Damaged { what: format!("a tree cannot be compressed: {error}") }
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
                node.content = Some(Vec::new());
                self.top(&node, &self.job.sink.index.names(content))?;
            }
            _ => self.top(&node, &[])?,
        }
        Ok(())
    }

    fn top(&mut self, node: &Node, content: &[Name]) -> Result<(), RepositoryError> {
        self.open
            .last_mut()
            .map_or(Ok(()), |top| top.push(node, content, self.job.sink.levels.map(|levels| levels.quick)))
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
        let tree = self.store(&mut done)?;
        if let Some(mut node) = done.node {
            node.subtree = Some(TreeId::from(tree.id()));
            self.top(&node, &[])?;
        }
        Ok(())
    }

    fn store(&mut self, done: &mut Open) -> Result<Name, RepositoryError> {
        // restic's JSON ends with a newline.
        done.json.extend_from_slice(b"]}\n");
        let whole = match done.before.take() {
            None => None,
            Some(mut before) => {
                let ended = before.take(&mut done.json).and_then(|()| before.end());
                Some(ended.map_err(|error| uncompressible(&error))?)
            }
        };
        let name = whole.as_ref().map_or_else(|| Name::of(&done.json), |whole| whole.name);
        let sink = &self.job.sink;
        loop {
            match sink.index.claim(BlobType::Tree, &name) {
                Claim::Known(_) => return Ok(name),
                Claim::Mine(place) => {
                    match &whole {
                        Some(whole) => {
                            self.packer.add_packed(sink, (place, name), (&whole.content, whole.raw))?;
                        }
                        None => self.packer.add(sink, (place, name), &done.json, &mut Effort::Quick)?,
                    }
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
        let name = self.store(&mut root)?;
        pack::write_all(&self.job.sink, BlobType::Tree, self.job.tree_pack, vec![self.packer.end()])?;
        Ok(name)
    }
}
