//! Blobs read back from their packs.
//!
//! Crash story: reads only.

use std::{
    io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use rustic_core::{FileType, repofile::BlobType};

use super::{index::Index, name::Name};
use crate::repository::{
    backend::Backend,
    crypt::SecretKey,
    error::{RepositoryError, StorageError},
};

/// From so many bytes on, work on a tree is worth a thread of its own.
pub(super) const LARGE: usize = 1 << 20;

/// Reads blobs of a repository.
#[derive(Clone, Copy)]
pub(crate) struct Blobs<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) key: &'a SecretKey,
    pub(crate) index: &'a Index,
}

/// A tree as it stands in its pack, whose hash nobody has looked at yet.
pub(crate) struct Unproven {
    plain: Vec<u8>,
    name: Name,
    pack: PathBuf,
}

impl Unproven {
    /// Reads it, and at the same time proves by its hash that it is the one that was asked for: of a large directory that
    /// is half the work. `read` may meet any bytes.
    ///
    /// # Errors
    /// If it is another one.
    pub(crate) fn read<'p, T>(&'p self, read: impl FnOnce(&'p [u8]) -> T) -> Result<T, RepositoryError> {
        let is_it = || Name::of(&self.plain) == self.name;
        let (is_it, found) = if self.plain.len() < LARGE {
            (is_it(), read(&self.plain))
        } else {
            thread::scope(|scope| {
                let hashing = scope.spawn(is_it);
                let found = read(&self.plain);
                (hashing.join().unwrap_or_else(|panic| resume_unwind(panic)), found)
            })
        };
        if is_it {
            Ok(found)
        } else {
            Err(damaged(&self.pack, BlobType::Tree, &self.name, "is another one").into())
        }
    }
}

fn damaged(pack: &Path, tpe: BlobType, name: &Name, what: &str) -> StorageError {
    StorageError::Damaged { path: pack.into(), what: format!("its {tpe} {} {what}", name.short()) }
}

impl Blobs<'_> {
    /// A stored directory, to be read by [`super::node::StoredNode::parse_tree`], and still to be proven. Its encryption says
    /// already that somebody with the key wrote it.
    ///
    /// # Errors
    /// If it is in no index, or what is in its pack cannot be read.
    pub(crate) fn unproven_tree(&self, name: &Name) -> Result<Unproven, RepositoryError> {
        let tpe = BlobType::Tree;
        let (pack, spot) = self.index.spot(tpe, name).ok_or_else(|| RepositoryError::Damaged {
            what: format!("the stored {tpe} {} is in no index", name.short()),
        })?;
        let path = self.backend.path(FileType::Pack, &pack.id());
        let sealed = self.backend.read_part(FileType::Pack, &pack.id(), spot.offset, spot.length)?;
        let mut sealed = Vec::from(sealed);
        let content = self
            .key
            .decrypt_in_place(&mut sealed)
            .map_err(|_| damaged(&path, tpe, name, "does not decrypt"))?;
        let plain = match spot.raw {
            0 => content.to_vec(),
            raw => unpacked(content, raw as usize)
                .map_err(|_| damaged(&path, tpe, name, "does not decompress"))?,
        };
        Ok(Unproven { plain, name: *name, pack: path })
    }
}

/// Decompresses what has so many bytes.
fn unpacked(packed: &[u8], raw: usize) -> io::Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(raw);
    zstd::bulk::Decompressor::new()?.decompress_to_buffer(packed, &mut plain)?;
    Ok(plain)
}

/// Why what was read cannot be taken for a stored directory.
pub(crate) fn no_tree(name: &Name, error: &serde_json::Error) -> RepositoryError {
    RepositoryError::Damaged { what: format!("the stored directory {} is not one: {error}", name.short()) }
}
