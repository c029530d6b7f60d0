//! What stands in a node of a restic tree, and what of an entry of a manifest it is.
//!
//! Crash story: pure functions, but for [`Names`], which reads the system's user and group files once.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CStr, OsStr},
    path::Path,
};

use jiff::Timestamp;
use model::{
    entry::{Kind, Meta, Xattr},
    size::Bytes,
};
use rustic_core::repofile::Node;

/// Go's file mode bits, in which restic stores modes: <https://pkg.go.dev/io/fs#FileMode>.
mod go {
    pub(super) const DIR: u32 = 1 << 31;
    pub(super) const SYMLINK: u32 = 1 << 27;
    pub(super) const DEVICE: u32 = 1 << 26;
    pub(super) const FIFO: u32 = 1 << 25;
    pub(super) const SETUID: u32 = 1 << 23;
    pub(super) const SETGID: u32 = 1 << 22;
    pub(super) const CHAR_DEVICE: u32 = 1 << 21;
    pub(super) const STICKY: u32 = 1 << 20;
}

/// The mode of a directory that stands above others and that nobody pinned.
pub(crate) const MODE_OF_MISSING_DIR: u32 = go::DIR | 0o755;

/// Names of users and groups, looked up once each.
#[derive(Default)]
pub(crate) struct Names {
    users: RefCell<HashMap<u32, Option<String>>>,
    groups: RefCell<HashMap<u32, Option<String>>>,
}

impl Names {
    /// The user's name, if there is one.
    pub(crate) fn user(&self, uid: u32) -> Option<String> {
        self.users.borrow_mut().entry(uid).or_insert_with(|| user_name(uid)).clone()
    }

    /// The group's name, if there is one.
    pub(crate) fn group(&self, gid: u32) -> Option<String> {
        self.groups.borrow_mut().entry(gid).or_insert_with(|| group_name(gid)).clone()
    }
}

fn user_name(uid: u32) -> Option<String> {
    let mut record = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut strings = vec![0; 16 * 1024];
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, and the length is that of the buffer.
    let failed = unsafe {
        libc::getpwuid_r(uid, record.as_mut_ptr(), strings.as_mut_ptr(), strings.len(), &raw mut found)
    };
    if failed != 0 || found.is_null() {
        return None;
    }
    // SAFETY: getpwuid_r succeeded and found an entry, so `found` points to `record`, whose name points into
    // `strings` and ends with a zero byte; both are alive.
    let name = unsafe { CStr::from_ptr((*found).pw_name) };
    Some(name.to_string_lossy().into_owned())
}

fn group_name(gid: u32) -> Option<String> {
    let mut record = std::mem::MaybeUninit::<libc::group>::uninit();
    let mut strings = vec![0; 64 * 1024];
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, and the length is that of the buffer.
    let failed = unsafe {
        libc::getgrgid_r(gid, record.as_mut_ptr(), strings.as_mut_ptr(), strings.len(), &raw mut found)
    };
    if failed != 0 || found.is_null() {
        return None;
    }
    // SAFETY: getgrgid_r succeeded and found an entry, so `found` points to `record`, whose name points into
    // `strings` and ends with a zero byte; both are alive.
    let name = unsafe { CStr::from_ptr((*found).gr_name) };
    Some(name.to_string_lossy().into_owned())
}

/// The smallest time that marks a node as never to be trusted: the moment of the manifest, mirrored at the
/// epoch, so that it is before it for every manifest of our times. See "Smudged times" in
/// `docs/format/repository.md`.
pub(crate) fn smudged(taken_at: Timestamp) -> Timestamp {
    Timestamp::from_nanosecond(-taken_at.as_nanosecond().abs()).unwrap_or(Timestamp::MIN)
}

/// Whether a stored change time is a smudge.
pub(crate) fn is_smudged(ctime: Option<Timestamp>) -> bool {
    ctime.is_none_or(|time| time < Timestamp::UNIX_EPOCH)
}

/// `st_mode` as Go writes it. (rustic_core's own mapping loses both bits of a character device.)
pub(crate) fn mode_bits(kind: &Kind, mode: u32) -> u32 {
    let special = [(0o4000, go::SETUID), (0o2000, go::SETGID), (0o1000, go::STICKY)];
    let kind_bits = match kind {
        Kind::File => 0,
        Kind::Dir => go::DIR,
        Kind::Symlink(_) => go::SYMLINK,
        Kind::BlockDevice(_) => go::DEVICE,
        Kind::CharDevice(_) => go::DEVICE | go::CHAR_DEVICE,
        Kind::Fifo => go::FIFO,
    };
    let special_bits = special.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, go)| go).sum::<u32>();
    kind_bits | special_bits | (mode & 0o777)
}

/// `st_mode` from what Go writes; the kind's bits are the kind's.
pub(crate) fn unix_mode(kind: &Kind, mode: u32) -> u32 {
    let special = [(0o4000, go::SETUID), (0o2000, go::SETGID), (0o1000, go::STICKY)];
    let kind_bits = match kind {
        Kind::File => 0o100_000,
        Kind::Dir => 0o040_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::BlockDevice(_) => 0o060_000,
        Kind::CharDevice(_) => 0o020_000,
        Kind::Fifo => 0o010_000,
    };
    let special_bits = special.iter().filter(|(_, go)| mode & go != 0).map(|(bit, _)| bit).sum::<u32>();
    kind_bits | special_bits | (mode & 0o777)
}

/// Attributes as they were. Where another program left one out: closed to others, root's, of the epoch.
pub(crate) fn meta(kind: &Kind, node: &Node) -> Meta {
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
        mode: stored.mode.map_or(closed, |mode| unix_mode(kind, mode)),
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

/// The attributes of an entry that no restic tree can hold, because their names are not UTF-8.
pub(crate) fn unstorable(xattrs: &[Xattr]) -> impl Iterator<Item = &Xattr> {
    xattrs.iter().filter(|x| std::str::from_utf8(&x.name).is_err())
}

/// The path of a child.
pub(crate) fn child(parent: &Path, node: &Node) -> std::path::PathBuf {
    parent.join(OsStr::new(&node.name()))
}

/// The node that rustic_core would make of an entry.
#[cfg(test)]
pub(crate) fn library_node(
    entry: &model::entry::Entry,
    names: &Names,
    content: Option<&[crate::archiver::Name]>,
    subtree: Option<crate::archiver::Name>,
) -> Node {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use rustic_core::{
        DataId, TreeId,
        repofile::{Metadata, NodeType},
    };

    let meta = &entry.meta;
    let written = Metadata {
        mode: Some(mode_bits(&entry.kind, meta.mode)),
        mtime: Some(meta.mtime),
        atime: Some(meta.atime),
        ctime: Some(meta.ctime),
        uid: Some(meta.uid),
        gid: Some(meta.gid),
        user: names.user(meta.uid),
        group: names.group(meta.gid),
        inode: meta.inode,
        device_id: meta.device,
        size: if entry.kind == Kind::File { meta.size.0 } else { 0 },
        links: meta.links,
        extended_attributes: Vec::new(),
    };
    let kind = match &entry.kind {
        Kind::File => NodeType::File,
        Kind::Dir => NodeType::Dir,
        Kind::Symlink(target) => NodeType::from_link(target),
        Kind::BlockDevice(device) => NodeType::Dev { device: *device },
        Kind::CharDevice(device) => NodeType::Chardev { device: *device },
        Kind::Fifo => NodeType::Fifo,
    };
    let mut node = Node::new_node(entry.path.file_name().unwrap_or_default(), kind, written);
    let storable = meta.xattrs.iter().filter_map(|x| Some((std::str::from_utf8(&x.name).ok()?, &x.value)));
    // rustic_core's type for an attribute has no public name; its written form is restic's.
    let attributes = storable.filter_map(|(name, value)| {
        serde_json::from_value(serde_json::json!({ "name": name, "value": STANDARD.encode(value) })).ok()
    });
    node.meta.extended_attributes = attributes.collect();
    node.content = content.map(|names| names.iter().map(|name| DataId::from(name.id())).collect());
    node.subtree = subtree.map(|name| TreeId::from(name.id()));
    node
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use model::entry::Kind;

    use super::{Names, is_smudged, mode_bits, smudged};

    #[test]
    fn modes_are_written_as_go_writes_them() {
        assert_eq!(mode_bits(&Kind::File, 0o100_644), 0o644);
        assert_eq!(mode_bits(&Kind::Dir, 0o041_777), 0o777 | 1 << 31 | 1 << 20);
        assert_eq!(mode_bits(&Kind::File, 0o106_755), 0o755 | 1 << 23 | 1 << 22);
        assert_eq!(mode_bits(&Kind::CharDevice(5), 0o020_600), 0o600 | 1 << 26 | 1 << 21);
    }

    #[test]
    fn modes_come_back() {
        let modes = [(Kind::File, 0o106_755), (Kind::Dir, 0o041_777), (Kind::CharDevice(5), 0o020_600)];
        for (kind, mode) in modes {
            assert_eq!(super::unix_mode(&kind, mode_bits(&kind, mode)), mode, "{kind:?}");
        }
    }

    #[test]
    fn a_smudge_is_before_the_epoch_and_of_its_own_manifest() {
        let taken: Timestamp = "2026-11-20T03:15:00.123456789Z".parse().unwrap();
        assert!(is_smudged(Some(smudged(taken))));
        assert!(!is_smudged(Some(taken)));
        assert_ne!(smudged(taken), smudged(taken + jiff::SignedDuration::from_nanos(1)));
    }

    #[test]
    fn names_of_users_are_looked_up() {
        let names = Names::default();
        assert_eq!(names.user(0).as_deref(), Some("root"));
        assert_eq!(names.group(0).as_deref(), Some("root"));
        assert_eq!(names.user(4_000_000_001), None);
    }
}
