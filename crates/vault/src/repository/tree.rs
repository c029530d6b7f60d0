//! The nodes of a stored directory, with everything that a restore needs: restic's `doc/design.rst`, "Trees and Data".
//!
//! Read without rustic_core's type, whose flattened form costs several times as much. Anything may stand in a tree: what
//! is no node fails, and nothing is allocated that the document itself is not long enough for.
//!
//! Crash story: plain values, no effects.

use std::{
    borrow::Cow,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use model::{
    entry::{Kind, Meta, Xattr},
    size::Bytes,
};
use rustic_core::repofile::Node;
use serde::{Deserialize, Deserializer, de};

use super::node::unix_mode;
use crate::archiver::{Name, StoredKind};

/// One name in a stored directory.
#[derive(Debug)]
pub(super) struct Child {
    /// As the filesystem had it.
    pub(super) name: OsString,
    /// What it is; nothing for what cannot be restored.
    pub(super) kind: Result<Kind, Unrestorable>,
    /// Its attributes.
    pub(super) meta: Meta,
    /// The parts of a regular file.
    pub(super) content: Vec<Name>,
    /// What a directory holds.
    pub(super) subtree: Option<Name>,
}

/// What a name in a backup may be that no restore can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unrestorable {
    Socket,
    Unknown,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    nodes: Option<Vec<Written<'a>>>,
}

/// A node as it is written.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "type")]
    kind: StoredKind,
    #[serde(default)]
    mode: Option<u32>,
    #[serde(default)]
    mtime: Option<Timestamp>,
    #[serde(default)]
    atime: Option<Timestamp>,
    #[serde(default)]
    ctime: Option<Timestamp>,
    #[serde(default)]
    uid: Option<u32>,
    #[serde(default)]
    gid: Option<u32>,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    device_id: u64,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    links: u64,
    #[serde(default)]
    linktarget: String,
    #[serde(default)]
    linktarget_raw: Option<Encoded>,
    #[serde(default)]
    device: u64,
    #[serde(default)]
    extended_attributes: Option<Vec<Attribute>>,
    #[serde(default)]
    content: Option<Vec<Name>>,
    #[serde(default)]
    subtree: Option<Name>,
}

#[derive(Deserialize)]
struct Attribute {
    name: String,
    #[serde(default)]
    value: Option<Encoded>,
}

/// Bytes in base64.
struct Encoded(Vec<u8>);

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(de::Error::custom)
    }
}

/// The names in a stored directory, in the order of a filesystem's bytes.
///
/// # Errors
/// If it is no directory.
pub(super) fn parse(json: &[u8]) -> Result<Vec<Child>, serde_json::Error> {
    let document: Document<'_> = serde_json::from_slice(json)?;
    let mut children: Vec<Child> =
        document.nodes.unwrap_or_default().into_iter().map(Child::from_written).collect();
    // Trees are sorted by their escaped names, which is nearly, and mostly exactly, this.
    children.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(children)
}

impl Child {
    fn from_written(written: Written<'_>) -> Self {
        let kind = match written.kind {
            StoredKind::File => Ok(Kind::File),
            StoredKind::Dir => Ok(Kind::Dir),
            StoredKind::Fifo => Ok(Kind::Fifo),
            StoredKind::Dev => Ok(Kind::BlockDevice(written.device)),
            StoredKind::Chardev => Ok(Kind::CharDevice(written.device)),
            StoredKind::Symlink => Ok(Kind::Symlink(match written.linktarget_raw {
                Some(Encoded(raw)) => OsString::from_vec(raw).into(),
                None => PathBuf::from(written.linktarget),
            })),
            StoredKind::Socket => Err(Unrestorable::Socket),
            StoredKind::Unknown => Err(Unrestorable::Unknown),
        };
        let shape = kind.as_ref().unwrap_or(&Kind::Fifo);
        // Where another program left an attribute out: closed to others, root's, of the epoch.
        let closed = if *shape == Kind::Dir { 0o700 } else { 0o600 };
        let mtime = written.mtime.unwrap_or(Timestamp::UNIX_EPOCH);
        let attribute = |x: Attribute| Xattr {
            name: x.name.into_bytes(),
            value: x.value.map_or_else(Vec::new, |Encoded(value)| value),
        };
        let mut xattrs: Vec<Xattr> =
            written.extended_attributes.unwrap_or_default().into_iter().map(attribute).collect();
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        let meta = Meta {
            mode: written.mode.map_or(closed, |mode| unix_mode(shape, mode)),
            uid: written.uid.unwrap_or(0),
            gid: written.gid.unwrap_or(0),
            size: Bytes(if *shape == Kind::File { written.size } else { 0 }),
            mtime,
            atime: written.atime.unwrap_or(mtime),
            ctime: written.ctime.unwrap_or(mtime),
            inode: written.inode,
            device: written.device_id,
            links: written.links,
            xattrs,
        };
        let is_file = kind == Ok(Kind::File);
        let content = written.content.filter(|_| is_file).unwrap_or_default();
        let subtree = written.subtree.filter(|_| kind == Ok(Kind::Dir));
        Self { name: unescaped(&written.name), kind, meta, content, subtree }
    }
}

/// Names are escaped in a tree, as Go quotes them.
fn unescaped(name: &str) -> OsString {
    if !name.contains('\\') {
        return OsStr::new(name).to_owned();
    }
    Node { name: name.to_owned(), ..Node::default() }.name().into_owned()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use model::entry::Kind;

    use super::{Unrestorable, parse};

    #[test]
    fn what_restic_writes_is_read_and_what_is_left_out_is_closed() {
        let json = br#"{"nodes":[
            {"name":"b\\xff","type":"symlink","linktarget":"x\ufffd","linktarget_raw":"eP8=","mode":134218239},
            {"name":"a","type":"file","size":3,"content":null,"extended_attributes":[{"name":"user.n","value":null}]},
            {"name":"s","type":"socket"},{"name":"z","type":"door"}]}"#;
        let children = parse(json).unwrap();
        assert_eq!(children[0].kind, Ok(Kind::File));
        assert_eq!((children[0].meta.mode, children[0].meta.size.0), (0o600, 3));
        assert_eq!(children[0].meta.xattrs[0].value, b"");
        assert_eq!(children[1].name.as_encoded_bytes(), b"b\xff");
        let Ok(Kind::Symlink(target)) = &children[1].kind else { panic!("{children:?}") };
        assert_eq!(target.as_os_str().as_encoded_bytes(), b"x\xff");
        assert_eq!(children[2].kind, Err(Unrestorable::Socket));
        assert_eq!(
            (children[3].name.as_os_str(), &children[3].kind),
            (OsStr::new("z"), &Err(Unrestorable::Unknown))
        );
        assert!(parse(br#"{"nodes":null}"#).unwrap().is_empty());
        assert!(parse(br#"{"nodes":[{"name":1}]}"#).is_err());
    }
}
