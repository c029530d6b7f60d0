//! Index files: which packs there are and what is in them.
//!
//! Form: "Indexing" in restic's `doc/design.rst`; every unpacked file is `2 | zstd` and encrypted (format 2).
//!
//! Crash story: a pack is told here only when it is durable, so an index never names one that might be lost.
//! Whoever's pack fills an index file writes it; the rest is written by [`IndexWriter::finish`]. What is not
//! written when we stop leaves packs without an index, which the next run reuses.

use std::{
    mem,
    sync::{Mutex, PoisonError},
};

use rustic_core::{FileType, repofile::BlobType};
use serde::{Deserialize, Serialize};

use super::{index::Spot, name::Name, pack::Sink};
use crate::repository::error::RepositoryError;

/// So many blobs are in an index file; restic has the same limit.
const BLOBS_PER_FILE: usize = 50_000;

/// An index file's content, as far as we need it. Packs that another program marked for deletion stand in
/// `packs_to_delete` (rustic's).
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct IndexContent {
    pub(crate) packs: Vec<PackRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) packs_to_delete: Vec<PackRecord>,
}

/// A pack in an index file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PackRecord {
    pub(crate) id: Name,
    pub(crate) blobs: Vec<BlobRecord>,
}

/// A blob in an index file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlobRecord {
    id: Name,
    #[serde(rename = "type")]
    tpe: BlobType,
    offset: u32,
    length: u32,
    /// Absent where it is not compressed; rustic_core writes `null` there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uncompressed_length: Option<u32>,
}

impl PackRecord {
    pub(crate) fn new(pack: Name, blobs: impl Iterator<Item = (BlobType, Name, Spot)>) -> Self {
        let blobs = blobs.map(|(tpe, id, spot)| BlobRecord {
            id,
            tpe,
            offset: spot.offset,
            length: spot.length,
            uncompressed_length: (spot.raw > 0).then_some(spot.raw),
        });
        Self { id: pack, blobs: blobs.collect() }
    }

    /// Its blobs.
    pub(crate) fn blobs(&self) -> Vec<(BlobType, Name, Spot)> {
        let spot = |b: &BlobRecord| {
            let raw = b.uncompressed_length.unwrap_or(0);
            Spot { offset: b.offset, length: b.length, raw }
        };
        self.blobs.iter().map(|blob| (blob.tpe, blob.id, spot(blob))).collect()
    }
}

/// Collects the packs of a run and writes them down.
#[derive(Default)]
pub(crate) struct IndexWriter(Mutex<IndexContent>);

impl IndexWriter {
    /// Takes note of a durable pack.
    ///
    /// # Errors
    /// If an index file was full and could not be written.
    pub(crate) fn add(&self, sink: &Sink<'_>, pack: PackRecord) -> Result<(), RepositoryError> {
        let full = {
            let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            content.packs.push(pack);
            let blobs: usize = content.packs.iter().map(|pack| pack.blobs.len()).sum();
            (blobs >= BLOBS_PER_FILE).then(|| mem::take(&mut *content))
        };
        full.map_or(Ok(()), |content| write(sink, &content))
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn finish(&self, sink: &Sink<'_>) -> Result<(), RepositoryError> {
        let left = mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if left.packs.is_empty() { Ok(()) } else { write(sink, &left) }
    }
}

fn write(sink: &Sink<'_>, content: &IndexContent) -> Result<(), RepositoryError> {
    let unwritable = |what: String| RepositoryError::Damaged { what: format!("the index: {what}") };
    let mut plain = serde_json::to_vec(content).map_err(|error| unwritable(error.to_string()))?;
    if let Some(levels) = sink.levels {
        let packed =
            zstd::bulk::compress(&plain, levels.quick).map_err(|error| unwritable(error.to_string()))?;
        plain = [&[2], packed.as_slice()].concat();
    }
    let sealed = sink.key.encrypt(&plain).map_err(|error| unwritable(error.to_string()))?;
    let name = Name::of(&sealed);
    sink.backend.put(FileType::Index, &name.id(), &sealed)?;
    sink.index.note_file(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BlobType, IndexContent, Name, PackRecord, Spot};

    #[test]
    fn an_index_is_written_as_restic_writes_it_and_read_back() {
        let spots = [Spot { offset: 0, length: 100, raw: 0 }, Spot { offset: 100, length: 50, raw: 99 }];
        let blobs = spots.map(|spot| (BlobType::Data, Name::of(&spot.offset.to_le_bytes()), spot));
        let record = PackRecord::new(Name::of(b"pack"), blobs.into_iter());
        let content = IndexContent { packs: vec![record], ..IndexContent::default() };
        let json = serde_json::to_string(&content).unwrap();
        assert!(json.starts_with("{\"packs\":[{\"id\":\""), "{json}");
        assert!(
            json.contains("\"type\":\"data\",\"offset\":100,\"length\":50,\"uncompressed_length\":99}"),
            "{json}"
        );
        assert!(json.contains("\"length\":100}"), "{json}");
        let again: rustic_core::repofile::IndexFile = serde_json::from_str(&json).unwrap();
        // What rustic_core's prune writes, with `null` where there is nothing to say.
        let pruned: IndexContent = serde_json::from_str(&serde_json::to_string(&again).unwrap()).unwrap();
        assert_eq!(pruned.packs[0].blobs()[0].2.raw, 0);
        assert_eq!(pruned.packs[0].blobs()[1].2.raw, 99);
        assert_eq!(again.packs[0].blobs.len(), 2);
        let again: IndexContent = serde_json::from_str(&json).unwrap();
        assert_eq!(again.packs[0].blobs(), blobs);
    }
}
