//! Blobs read back from their packs.
//!
//! Crash story: reads only.

use rustic_core::{FileType, repofile::BlobType};

use super::{index::Index, name::Name};
use crate::repository::{
    backend::Backend,
    crypt::SecretKey,
    error::{RepositoryError, StorageError},
};

/// Reads blobs of a repository.
#[derive(Clone, Copy)]
pub(crate) struct Blobs<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) key: &'a SecretKey,
    pub(crate) index: &'a Index,
}

impl Blobs<'_> {
    /// A stored directory, to be read by [`super::node::StoredNode::parse_tree`].
    ///
    /// # Errors
    /// If it is in no index, or what is in its pack is not it.
    pub(crate) fn tree(&self, name: &Name) -> Result<Vec<u8>, RepositoryError> {
        self.read(BlobType::Tree, name)
    }

    /// A blob's content, proven by its name.
    fn read(&self, tpe: BlobType, name: &Name) -> Result<Vec<u8>, RepositoryError> {
        let (pack, spot) = self.index.spot(tpe, name).ok_or_else(|| RepositoryError::Damaged {
            what: format!("the stored {tpe} {} is in no index", name.short()),
        })?;
        let sealed = self.backend.read_part(FileType::Pack, &pack.id(), spot.offset, spot.length)?;
        let damaged = |what: &str| StorageError::Damaged {
            path: self.backend.path(FileType::Pack, &pack.id()),
            what: format!("its {tpe} {} {what}", name.short()),
        };
        let mut plain = self.key.decrypt(&sealed).map_err(|_| damaged("does not decrypt"))?;
        if spot.raw != 0 {
            plain = zstd::bulk::decompress(&plain, spot.raw as usize)
                .map_err(|_| damaged("does not decompress"))?;
        }
        if Name::of(&plain) == *name { Ok(plain) } else { Err(damaged("is another one").into()) }
    }
}

/// Why what was read cannot be taken for a stored directory.
pub(crate) fn no_tree(name: &Name, error: &serde_json::Error) -> RepositoryError {
    RepositoryError::Damaged { what: format!("the stored directory {} is not one: {error}", name.short()) }
}
