//! Packs that a killed run left: complete, but in no index.
//!
//! Which packs these are is found by [`super::load`], with what their headers list. Before the first of its blobs is
//! relied on, a pack is read whole and compared with its name, which is its hash; then it goes into the index that
//! this run writes. One that nobody asks for stays an orphan, and `prune` frees it.
//!
//! Crash story: reads a pack, then tells the index writer; see there. Two workers may look at one pack at the same
//! time; then it stands in the index twice, with the same content.

use rustic_core::FileType;

use super::{
    index::Standing,
    indexer::PackRecord,
    name::Name,
    pack::{self, Sink},
};
use crate::repository::error::{RepositoryError, StorageError};

/// Looks whether an orphan is what its name says, and takes it into the index if so.
///
/// # Errors
/// If an index file was full and cannot be written.
pub(crate) fn look(sink: &Sink<'_>, number: u32) -> Result<(), RepositoryError> {
    let Some((name, size, Standing::Orphan)) = sink.index.pack(number) else { return Ok(()) };
    match read(sink, &name, size) {
        Ok(record) => {
            sink.indexer.add(sink, record)?;
            sink.index.judge(number, Standing::Indexed);
        }
        Err(error) => {
            tracing::warn!("a pack that no index names is of no use: {error}");
            sink.index.judge(number, Standing::Bad);
        }
    }
    Ok(())
}

fn read(sink: &Sink<'_>, name: &Name, size: u64) -> Result<PackRecord, StorageError> {
    let bytes = sink.backend.read(FileType::Pack, &name.id())?;
    if Name::of(&bytes) != *name {
        let what = format!("its {} bytes do not have the hash that is its name", bytes.len());
        return Err(StorageError::Damaged { path: sink.backend.path(FileType::Pack, &name.id()), what });
    }
    let blobs = pack::read_header(sink.backend, sink.key, name, size)?;
    Ok(PackRecord::new(*name, blobs.into_iter()))
}
