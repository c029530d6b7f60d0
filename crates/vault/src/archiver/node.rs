//! What we read of the nodes of a stored tree: what tells one content from another.
//!
//! Crash story: plain values, no effects.

use std::{borrow::Cow, ffi::OsStr, path::Path};

use jiff::Timestamp;
use model::{
    entry::{Kind, Stamp},
    size::Bytes,
};
use rustic_core::repofile::{Node, NodeType};
use serde::Deserialize;

use super::name::Name;
use crate::repository::node;

/// A node of a tree, without owners, modes and attributes.
#[derive(Debug, Deserialize)]
pub(crate) struct StoredNode<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "type")]
    pub(crate) kind: StoredKind,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(borrow, default)]
    mtime: Option<Words<'a>>,
    #[serde(borrow, default)]
    ctime: Option<Words<'a>>,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    device: u64,
    #[serde(default)]
    linktarget: String,
    #[serde(default)]
    linktarget_raw: Option<String>,
    #[serde(default)]
    pub(crate) content: Option<Vec<Name>>,
    #[serde(default)]
    pub(crate) subtree: Option<Name>,
}

/// A time that is read when it is asked for.
#[derive(Debug, Deserialize)]
struct Words<'a>(#[serde(borrow)] Cow<'a, str>);

impl Words<'_> {
    fn time(&self) -> Option<Timestamp> {
        self.0.parse().ok()
    }
}

/// What restic calls a node's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StoredKind {
    File,
    Dir,
    Symlink,
    Dev,
    Chardev,
    Fifo,
    Socket,
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct Tree<'a> {
    #[serde(borrow)]
    nodes: Option<Vec<StoredNode<'a>>>,
}

impl<'a> StoredNode<'a> {
    /// The nodes of a tree.
    ///
    /// # Errors
    /// If it is no tree.
    pub(crate) fn parse_tree(json: &'a [u8]) -> Result<Vec<Self>, serde_json::Error> {
        Ok(serde_json::from_slice::<Tree<'_>>(json)?.nodes.unwrap_or_default())
    }

    /// Its name as the filesystem has it: names are escaped in a tree.
    pub(crate) fn file_name(&self) -> Cow<'_, OsStr> {
        if !self.name.contains('\\') {
            return OsStr::new(&*self.name).into();
        }
        Node { name: self.name.clone().into_owned(), ..Node::default() }.name().into_owned().into()
    }

    /// The stamp of a file that can be carried over: not smudged, and with its content.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        if self.kind != StoredKind::File || self.content.is_none() {
            return None;
        }
        let ctime = self.ctime.as_ref()?.time().filter(|time| !node::is_smudged(Some(*time)))?;
        Some(Stamp {
            size: Bytes(self.size),
            mtime: self.mtime.as_ref()?.time()?.as_nanosecond(),
            ctime: ctime.as_nanosecond(),
            inode: self.inode,
        })
    }

    /// In what way it is not of this kind and size: kind, link target, device, size.
    pub(crate) fn differs(&self, kind: &Kind, size: Bytes) -> Option<String> {
        let right = match kind {
            Kind::File => self.kind == StoredKind::File,
            Kind::Dir => self.kind == StoredKind::Dir,
            Kind::Fifo => self.kind == StoredKind::Fifo,
            Kind::BlockDevice(device) => self.kind == StoredKind::Dev && self.device == *device,
            Kind::CharDevice(device) => self.kind == StoredKind::Chardev && self.device == *device,
            Kind::Symlink(target) => self.kind == StoredKind::Symlink && self.points_to(target),
        };
        if !right {
            let link = if self.linktarget.is_empty() { "" } else { " to " };
            let stored = format!("{:?}", self.kind).to_lowercase();
            return Some(format!("it is stored as {stored}{link}{}", self.linktarget));
        }
        if *kind == Kind::File && self.size != size.0 {
            return Some(format!("it has {} bytes in the backup, not {}", self.size, size.0));
        }
        None
    }

    fn points_to(&self, target: &Path) -> bool {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let linktarget_raw = self.linktarget_raw.as_ref().and_then(|raw| STANDARD.decode(raw).ok());
        NodeType::Symlink { linktarget: self.linktarget.clone(), linktarget_raw }
            == NodeType::from_link(target)
    }
}
