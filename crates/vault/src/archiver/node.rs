//! What we read of the nodes of a stored tree: what tells one content from another.
//!
//! Crash story: plain values, no effects.

use std::{ffi::OsString, path::Path};

use jiff::Timestamp;
use model::{
    entry::{Entry, Kind, Stamp},
    size::Bytes,
};
use rustic_core::repofile::{Node, NodeType};
use serde::Deserialize;

use super::name::Name;
use crate::repository::node;

/// A node of a tree, without owners, modes and attributes.
#[derive(Debug, Deserialize)]
pub(crate) struct StoredNode {
    name: String,
    #[serde(rename = "type")]
    pub(crate) kind: StoredKind,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    mtime: Option<Timestamp>,
    #[serde(default)]
    ctime: Option<Timestamp>,
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
struct Tree {
    nodes: Option<Vec<StoredNode>>,
}

impl StoredNode {
    /// The nodes of a tree.
    ///
    /// # Errors
    /// If it is no tree.
    pub(crate) fn parse_tree(json: &[u8]) -> Result<Vec<Self>, serde_json::Error> {
        Ok(serde_json::from_slice::<Tree>(json)?.nodes.unwrap_or_default())
    }

    /// Its name as the filesystem has it: names are escaped in a tree.
    pub(crate) fn file_name(&self) -> OsString {
        if !self.name.contains('\\') {
            return self.name.as_str().into();
        }
        Node { name: self.name.clone(), ..Node::default() }.name().into_owned()
    }

    /// The stamp of a file that can be carried over: not smudged, and with its content.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        if self.kind != StoredKind::File || self.content.is_none() || node::is_smudged(self.ctime) {
            return None;
        }
        Some(Stamp {
            size: Bytes(self.size),
            mtime: self.mtime?.as_nanosecond(),
            ctime: self.ctime?.as_nanosecond(),
            inode: self.inode,
        })
    }

    /// In what way it is not what the entry says: kind, link target, device, size.
    pub(crate) fn differs(&self, entry: &Entry) -> Option<String> {
        let right = match &entry.kind {
            Kind::File => self.kind == StoredKind::File,
            Kind::Dir => self.kind == StoredKind::Dir,
            Kind::Fifo => self.kind == StoredKind::Fifo,
            Kind::BlockDevice(device) => self.kind == StoredKind::Dev && self.device == *device,
            Kind::CharDevice(device) => self.kind == StoredKind::Chardev && self.device == *device,
            Kind::Symlink(target) => self.kind == StoredKind::Symlink && self.points_to(target),
        };
        if !right {
            let link = if self.linktarget.is_empty() { "" } else { " to " };
            let kind = format!("{:?}", self.kind).to_lowercase();
            return Some(format!("it is stored as {kind}{link}{}", self.linktarget));
        }
        if entry.kind == Kind::File && self.size != entry.meta.size.0 {
            return Some(format!("it has {} bytes in the backup, not {}", self.size, entry.meta.size.0));
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
