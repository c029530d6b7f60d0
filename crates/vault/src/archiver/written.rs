//! Nodes of trees as they are written: restic's `doc/design.rst`, "Trees and Data".
//!
//! Written without rustic_core's type, whose flattened form costs several times as much. Times are in UTC, so that a
//! directory that did not change is the same text wherever it is written.
//!
//! Crash story: plain values, no effects.

use std::{borrow::Cow, ffi::OsStr, os::unix::ffi::OsStrExt};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use model::entry::{Entry, Kind, Xattr};
use rustic_core::repofile::{Metadata, Node, NodeType};
use serde::Serialize;

use super::name::Name;
use crate::repository::node::{MODE_OF_MISSING_DIR, Names, mode_bits};

/// A node, in restic's order.
#[derive(Default, Serialize)]
struct Written<'a> {
    name: Cow<'a, str>,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    linktarget: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linktarget_raw: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<u64>,
    mode: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    atime: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctime: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "is_nothing")]
    inode: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    device_id: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    size: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    links: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extended_attributes: Vec<Attribute<'a>>,
    /// `null`; what a file holds comes in its place ([`list`]).
    content: (),
    #[serde(skip_serializing_if = "Option::is_none")]
    subtree: Option<Name>,
}

#[derive(Serialize)]
struct Attribute<'a> {
    name: &'a str,
    value: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_nothing(number: &u64) -> bool {
    *number == 0
}

/// A tree that is being written.
pub(crate) struct Text<'a> {
    json: &'a mut Vec<u8>,
    names: &'a Names,
}

impl<'a> Text<'a> {
    /// Begins in this buffer, whatever is in it.
    pub(crate) fn begin(json: &'a mut Vec<u8>, names: &'a Names) -> Self {
        json.clear();
        json.extend_from_slice(b"{\"nodes\":[");
        Self { json, names }
    }

    /// Adds an entry: the parts of a file, what a directory holds. `ctime` is the change time to store.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn add(
        &mut self,
        entry: &Entry,
        ctime: Timestamp,
        content: Option<&[Name]>,
        subtree: Option<Name>,
    ) -> Result<(), serde_json::Error> {
        let Some(name) = entry.path.file_name() else { return Ok(()) };
        let meta = &entry.meta;
        let mut written = Written {
            name: escaped(name),
            mode: mode_bits(&entry.kind, meta.mode),
            mtime: Some(meta.mtime),
            atime: Some(meta.atime),
            ctime: Some(ctime),
            uid: Some(meta.uid),
            gid: Some(meta.gid),
            user: self.names.user(meta.uid),
            group: self.names.group(meta.gid),
            inode: meta.inode,
            device_id: meta.device,
            size: if entry.kind == Kind::File { meta.size.0 } else { 0 },
            links: meta.links,
            extended_attributes: meta.xattrs.iter().filter_map(attribute).collect(),
            subtree,
            ..Written::default()
        };
        written.is(&entry.kind);
        self.push(&written)?;
        if let (Some(content), Kind::File) = (content, &entry.kind) {
            list(content, self.json);
        }
        Ok(())
    }

    /// Adds a directory of which nothing is known but what it holds: it gets the mode 755 and no other attributes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn add_missing(
        &mut self,
        name: &OsStr,
        subtree: Option<Name>,
    ) -> Result<(), serde_json::Error> {
        let name = escaped(name);
        self.push(&Written { name, kind: "dir", mode: MODE_OF_MISSING_DIR, subtree, ..Written::default() })
    }

    fn push(&mut self, node: &Written<'_>) -> Result<(), serde_json::Error> {
        if !self.json.ends_with(b"[") {
            self.json.push(b',');
        }
        serde_json::to_writer(&mut *self.json, node)
    }

    /// Ends it, as restic does: with a newline.
    pub(crate) fn end(self) {
        self.json.extend_from_slice(b"]}\n");
    }
}

impl<'a> Written<'a> {
    fn is(&mut self, kind: &'a Kind) {
        self.kind = match kind {
            Kind::File => "file",
            Kind::Dir => "dir",
            Kind::Fifo => "fifo",
            Kind::Symlink(_) => "symlink",
            Kind::BlockDevice(_) => "dev",
            Kind::CharDevice(_) => "chardev",
        };
        match kind {
            Kind::Symlink(target) => {
                self.linktarget = Some(target.to_string_lossy());
                let raw = || STANDARD.encode(target.as_os_str().as_bytes());
                self.linktarget_raw = target.to_str().is_none().then(raw);
            }
            Kind::BlockDevice(device) | Kind::CharDevice(device) => self.device = Some(*device),
            Kind::File | Kind::Dir | Kind::Fifo => {}
        }
    }
}

/// Puts the parts of a file in the place of the `null` that the node just written ends with: a node has no subtree then. Names
/// need no look for what is to be escaped, and are most of what is written of large files.
fn list(content: &[Name], json: &mut Vec<u8>) {
    json.truncate(json.len() - b"null}".len());
    json.reserve(content.len() * 67 + 3);
    json.push(b'[');
    for (number, name) in content.iter().enumerate() {
        let mut text = [b'"'; 67];
        text[0] = b',';
        text[2..66].copy_from_slice(&lanes::digits(&name.0));
        json.extend_from_slice(if number == 0 { &text[1..] } else { &text });
    }
    json.extend_from_slice(b"]}");
}

/// Names are escaped as Go quotes them; nearly none has anything to escape.
fn escaped(name: &OsStr) -> Cow<'_, str> {
    match name.to_str() {
        Some(plain) if !plain.bytes().any(|byte| byte < b' ' || matches!(byte, b'"' | b'\\')) => plain.into(),
        _ => Node::new_node(name, NodeType::File, Metadata::default()).name.into(),
    }
}

/// An attribute whose name is UTF-8, as JSON needs it; [`crate::repository::node::unstorable`] has the others.
fn attribute(xattr: &Xattr) -> Option<Attribute<'_>> {
    Some(Attribute { name: std::str::from_utf8(&xattr.name).ok()?, value: STANDARD.encode(&xattr.value) })
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

    use jiff::Timestamp;
    use model::{
        entry::{Body, Entry, Kind, Meta, Role, Xattr},
        size::Bytes,
    };
    use proptest::{
        collection::vec,
        prelude::{Just, Strategy, any, prop_oneof},
        proptest,
    };
    use rustic_core::repofile::{Node, Tree};

    use super::{Name, Names, Text};
    use crate::repository::node;

    fn bytes(least: usize) -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            4 => b'a'..=b'z',
            1 => prop_oneof![Just(b'"'), Just(b'\\'), Just(b'\n'), Just(7), Just(0xff), Just(0xc3), Just(0xbc)],
            1 => 1..=255_u8,
        ];
        let no_slash = |bytes: Vec<u8>| bytes.into_iter().map(|b| if b == b'/' { b'.' } else { b }).collect();
        vec(byte, least..12).prop_map(no_slash)
    }

    fn path(bytes: Vec<u8>) -> PathBuf {
        PathBuf::from(OsString::from_vec(bytes))
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::File),
            Just(Kind::Dir),
            Just(Kind::Fifo),
            any::<u64>().prop_map(Kind::BlockDevice),
            any::<u64>().prop_map(Kind::CharDevice),
            bytes(0).prop_map(|target| Kind::Symlink(path(target))),
        ]
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        let range = Timestamp::MIN.as_nanosecond()..=Timestamp::MAX.as_nanosecond();
        let year = 1_700_000_000_000_000_000_i128..1_731_536_000_000_000_000;
        let any_time = prop_oneof![range, year];
        any_time.prop_map(|nanos| Timestamp::from_nanosecond(nanos).unwrap())
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let xattr = (bytes(1), vec(any::<u8>(), 0..9)).prop_map(|(name, value)| Xattr { name, value });
        let numbers = any::<(u32, [u64; 4])>();
        let owners = prop_oneof![Just((0, 0)), any::<(u32, u32)>()];
        (bytes(1), kind(), [time(), time(), time()], numbers, owners, vec(xattr, 0..3)).prop_map(
            |(
                name,
                kind,
                [mtime, atime, ctime],
                (mode, [size, inode, device, links]),
                (uid, gid),
                xattrs,
            )| {
                let (path, size) = (PathBuf::from("/d").join(path(name)), Bytes(size));
                let meta = Meta { mode, uid, gid, size, mtime, atime, ctime, inode, device, links, xattrs };
                Entry { path, kind, meta, body: Body::Nothing, role: Role::Content }
            },
        )
    }

    proptest! {
        /// What is written is, to rustic_core and to our own reader, the node that rustic_core would make of the entry.
        #[test]
        fn what_is_written_is_the_librarys_node(entries in vec(entry(), 0..5), parts in vec(any::<[u8; 32]>(), 0..4)) {
            let (mut json, names) = (Vec::new(), Names::default());
            let parts: Vec<Name> = parts.into_iter().map(Name).collect();
            let mut text = Text::begin(&mut json, &names);
            let mut expected: Vec<Node> = Vec::new();
            for entry in &entries {
                let content = (entry.kind == Kind::File).then_some(&*parts);
                let subtree = (entry.kind == Kind::Dir).then_some(Name([7; 32]));
                text.add(entry, entry.meta.ctime, content, subtree).unwrap();
                expected.push(node::library_node(entry, &names, content, subtree));
            }
            text.end();
            let read: Tree = serde_json::from_slice(&json).unwrap();
            assert_eq!(read.nodes, expected);
            assert!(json.ends_with(b"]}\n"));
            for (entry, stored) in entries.iter().zip(super::super::StoredNode::parse_tree(&json).unwrap()) {
                assert_eq!(Some(&*stored.file_name()), entry.path.file_name());
                assert_eq!(stored.differs(&entry.kind, entry.meta.size), None);
            }
        }
    }
}
