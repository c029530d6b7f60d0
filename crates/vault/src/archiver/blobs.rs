//! Blobs read back from their packs.
//!
//! Crash story: reads only.

use std::{panic::resume_unwind, thread};

use rustic_core::{FileType, repofile::BlobType};

use super::{index::Index, name::Name, node::StoredNode};
use crate::repository::{
    backend::Backend,
    crypt::SecretKey,
    error::{RepositoryError, StorageError},
};

/// A tree of so many bytes is worth another thread.
const LARGE: usize = 1 << 20;

/// Reads blobs of a repository.
#[derive(Clone, Copy)]
pub(crate) struct Blobs<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) key: &'a SecretKey,
    pub(crate) index: &'a Index,
}

impl Blobs<'_> {
    /// What a stored directory holds, in order.
    ///
    /// # Errors
    /// If it is in no index, or what is in its pack is not it.
    pub(crate) fn tree(&self, name: &Name) -> Result<Vec<StoredNode>, RepositoryError> {
        let plain = self.read(BlobType::Tree, name)?;
        // It is parsed while a large one's name is still being proven.
        let (proven, nodes) = thread::scope(|scope| {
            let proven = (plain.len() >= LARGE).then(|| scope.spawn(|| Name::of(&plain)));
            let nodes = StoredNode::parse_tree(&plain);
            let proven = proven.map(|proven| proven.join().unwrap_or_else(|panic| resume_unwind(panic)));
            (proven.unwrap_or_else(|| Name::of(&plain)), nodes)
        });
        if proven != *name {
            let pack = self.index.spot(BlobType::Tree, name).map(|(pack, _)| pack).unwrap_or_default();
            return Err(self.damaged(BlobType::Tree, name, &pack, "is another one").into());
        }
        nodes.map_err(|error| RepositoryError::Damaged {
            what: format!("the stored directory {} is not one: {error}", name.short()),
        })
    }

    fn damaged(&self, tpe: BlobType, name: &Name, pack: &Name, what: &str) -> StorageError {
        StorageError::Damaged {
            path: self.backend.path(FileType::Pack, &pack.id()),
            what: format!("its {tpe} {} {what}", name.short()),
        }
    }

    /// A blob's content, which is still to be proven by its name.
    fn read(&self, tpe: BlobType, name: &Name) -> Result<Vec<u8>, RepositoryError> {
        let (pack, spot) = self.index.spot(tpe, name).ok_or_else(|| RepositoryError::Damaged {
            what: format!("the stored {tpe} {} is in no index", name.short()),
        })?;
        let sealed = self.backend.read_part(FileType::Pack, &pack.id(), spot.offset, spot.length)?;
        let damaged = |what: &str| self.damaged(tpe, name, &pack, what);
        let mut plain = self.key.decrypt(&sealed).map_err(|_| damaged("does not decrypt"))?;
        if spot.raw != 0 {
            plain = zstd::bulk::decompress(&plain, spot.raw as usize)
                .map_err(|_| damaged("does not decompress"))?;
        }
        Ok(plain)
    }
}
