//! Packs: blobs one after the other, each compressed and encrypted by itself, and a header that lists them.
//!
//! Layout: "Pack Format" in restic's `doc/design.rst`: `blob … blob | encrypted header | length of the header
//! (4 bytes, little endian)`. A blob is `nonce (16) | ciphertext | tag (16)`; it is compressed where that makes
//! it smaller.
//!
//! Crash story: a pack is written whole and durable ([`Backend::put`]) before it is told to the index
//! writer. A stop before that leaves at most a complete pack that no index names; the next run reuses it.

use std::io;

use os::direct::{self, first_block};
use rustic_core::{FileType, repofile::BlobType};

use super::{
    compress::{Compressors, Effort, Levels},
    index::{Index, Place, Spot},
    indexer::{IndexWriter, PackRecord},
    name::Name,
};
use crate::repository::{
    backend::Backend,
    crypt::SecretKey,
    error::{RepositoryError, StorageError},
};

/// Bytes of nonce and tag around a sealed blob.
pub(crate) const OVERHEAD: usize = 32;

/// Room beside a pack's blobs and header, so that they can begin where a disk takes them, in bytes.
const BESIDE: usize = 2 * direct::BLOCK;

const PLAIN_DATA: u8 = 0;
const PLAIN_TREE: u8 = 1;
const PACKED_DATA: u8 = 2;
const PACKED_TREE: u8 = 3;

/// What writing needs, shared by all workers.
pub(crate) struct Sink<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) key: &'a SecretKey,
    pub(crate) index: &'a Index,
    pub(crate) indexer: &'a IndexWriter,
    /// The levels of zstd; nothing in a repository without compression.
    pub(crate) levels: Option<Levels>,
}

/// One blob of a pack that is being made.
struct Packed {
    place: Place,
    name: Name,
    spot: Spot,
}

/// A pack that is being made.
pub(crate) struct Packer {
    tpe: BlobType,
    /// The size in bytes that it should not exceed.
    limit: usize,
    /// That of those that come after it.
    later: usize,
    /// What is in it, from where a disk takes it as it is ([`first_block`]).
    bytes: Vec<u8>,
    begin: usize,
    blobs: Vec<Packed>,
    compressors: Option<Compressors>,
    scratch: Vec<u8>,
}

impl Packer {
    /// An empty one.
    ///
    /// # Errors
    /// If the compressor cannot be made.
    pub(crate) fn new(tpe: BlobType, limit: usize, levels: Option<Levels>) -> Result<Self, RepositoryError> {
        let compressors = levels.map(Compressors::new).transpose().map_err(|error| uncompressible(&error))?;
        let (bytes, begin, blobs, scratch) = Default::default();
        Ok(Self { tpe, limit, later: limit, bytes, begin, blobs, compressors, scratch })
    }

    /// The same with a first pack of so many of so many parts of its size: several that fill theirs at the same pace do not
    /// wait for the disk at the same moments.
    pub(crate) fn out_of_step(mut self, part: usize, of: usize) -> Self {
        self.limit = self.later / of * part;
        self
    }

    /// Adds a blob whose place was claimed, and writes the pack if it is full.
    ///
    /// # Errors
    /// If the pack cannot be written.
    pub(crate) fn add(
        &mut self,
        sink: &Sink<'_>,
        (place, name): (Place, Name),
        plain: &[u8],
        effort: &mut Effort,
    ) -> Result<(), RepositoryError> {
        let is_smaller = self.compress(plain, effort)?;
        self.add_compressed(sink, (place, name), plain, is_smaller)
    }

    /// Adds a blob that was just compressed ([`Self::compress`]), which made it smaller or not.
    ///
    /// # Errors
    /// If the pack cannot be written.
    pub(crate) fn add_compressed(
        &mut self,
        sink: &Sink<'_>,
        blob: (Place, Name),
        plain: &[u8],
        is_smaller: bool,
    ) -> Result<(), RepositoryError> {
        if !is_smaller {
            return self.add_packed(sink, blob, (plain, 0));
        }
        let packed = std::mem::take(&mut self.scratch);
        let added = self.add_packed(sink, blob, (&packed, plain.len() as u32));
        self.scratch = packed;
        added
    }

    /// The same of a blob that is compressed already, with its length before that; 0 if it is not compressed.
    ///
    /// # Errors
    /// If the pack cannot be written.
    pub(crate) fn add_packed(
        &mut self,
        sink: &Sink<'_>,
        (place, name): (Place, Name),
        (content, raw): (&[u8], u32),
    ) -> Result<(), RepositoryError> {
        let length = content.len() + OVERHEAD;
        let filled = self.bytes.len() - self.begin;
        if !self.blobs.is_empty() && filled + length + self.header_length() > self.limit {
            let mut sealed = self.take();
            sealed.write(sink, self.tpe)?;
            self.limit = self.later;
            (self.bytes, self.begin) = (sealed.bytes, sealed.begin);
            self.bytes.truncate(self.begin);
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(self.later.max(length) + BESIDE);
            self.begin = first_block(&self.bytes);
            self.bytes.resize(self.begin, 0);
        }
        let offset = (self.bytes.len() - self.begin) as u32;
        sink.key.seal_into(content, &mut self.bytes).map_err(|_| unsealable())?;
        self.blobs.push(Packed { place, name, spot: Spot { offset, length: length as u32, raw } });
        Ok(())
    }

    /// Ends it: what is left in it, to be written by [`write_all`].
    pub(crate) fn end(mut self) -> Sealed {
        self.take()
    }

    fn take(&mut self) -> Sealed {
        let (bytes, begin) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.begin));
        Sealed { bytes, begin, blobs: std::mem::take(&mut self.blobs) }
    }

    fn header_length(&self) -> usize {
        (self.blobs.len() + 1) * 41 + OVERHEAD + 4
    }

    /// Compresses into the scratch space; whether that made it smaller.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn compress(&mut self, plain: &[u8], effort: &mut Effort) -> Result<bool, RepositoryError> {
        self.compress_so(plain, |compressors, packed| compressors.compress(effort, plain, packed))
    }

    /// The same by all cores.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn compress_by_all(&mut self, plain: &[u8]) -> Result<bool, RepositoryError> {
        self.compress_so(plain, |compressors, packed| compressors.compress_by_all(plain, packed))
    }

    fn compress_so(
        &mut self,
        plain: &[u8],
        compress: impl FnOnce(&mut Compressors, &mut Vec<u8>) -> io::Result<()>,
    ) -> Result<bool, RepositoryError> {
        let Some(compressors) = self.compressors.as_mut().filter(|_| !plain.is_empty()) else {
            return Ok(false);
        };
        compress(compressors, &mut self.scratch).map_err(|error| uncompressible(&error))?;
        Ok(self.scratch.len() < plain.len())
    }
}

/// Sealed blobs, before their header.
pub(crate) struct Sealed {
    bytes: Vec<u8>,
    /// Where the first one begins.
    begin: usize,
    blobs: Vec<Packed>,
}

impl Sealed {
    fn bytes(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }

    /// Takes over the blobs of another: a sealed blob does not depend on where it is.
    fn append(&mut self, other: Self) {
        let by = self.bytes().len() as u32;
        self.bytes.extend_from_slice(other.bytes());
        self.blobs.extend(other.blobs.into_iter().map(|mut blob| {
            blob.spot.offset += by;
            blob
        }));
    }

    /// Writes it, durable when this returns, and tells the indexes.
    fn write(&mut self, sink: &Sink<'_>, tpe: BlobType) -> Result<(), RepositoryError> {
        let tail = header(sink.key, tpe, self.blobs.iter().map(|blob| (blob.name, blob.spot)))?;
        self.bytes.extend_from_slice(&tail);
        let pack = Name::of(self.bytes());
        sink.backend.put(FileType::Pack, &pack.id(), self.bytes())?;
        let size = self.bytes().len() as u64;
        let record = PackRecord::new(pack, self.blobs.iter().map(|blob| (tpe, blob.name, blob.spot)));
        let places: Vec<(Place, Spot)> = self.blobs.iter().map(|blob| (blob.place, blob.spot)).collect();
        sink.index.settle(pack, size, &places);
        sink.indexer.add(sink, record)
    }
}

/// Writes what several packers have left, in as few packs of at most `limit` bytes as go in order.
///
/// # Errors
/// If a pack cannot be written.
pub(crate) fn write_all(
    sink: &Sink<'_>,
    tpe: BlobType,
    limit: usize,
    left: Vec<Sealed>,
) -> Result<(), RepositoryError> {
    let mut open: Option<Sealed> = None;
    for next in left.into_iter().filter(|sealed| !sealed.blobs.is_empty()) {
        match &mut open {
            Some(sealed) if sealed.bytes().len() + next.bytes().len() <= limit => sealed.append(next),
            _ => {
                let full = open.replace(next);
                full.map_or(Ok(()), |mut full| full.write(sink, tpe))?;
            }
        }
    }
    open.map_or(Ok(()), |mut last| last.write(sink, tpe))
}

/// The encrypted header of a pack with its length behind it.
fn header(
    key: &SecretKey,
    tpe: BlobType,
    blobs: impl Iterator<Item = (Name, Spot)>,
) -> Result<Vec<u8>, RepositoryError> {
    let mut plain = Vec::new();
    for (name, spot) in blobs {
        let kind = match (tpe, spot.raw) {
            (BlobType::Data, 0) => PLAIN_DATA,
            (BlobType::Tree, 0) => PLAIN_TREE,
            (BlobType::Data, _) => PACKED_DATA,
            (BlobType::Tree, _) => PACKED_TREE,
        };
        plain.push(kind);
        plain.extend_from_slice(&spot.length.to_le_bytes());
        if spot.raw != 0 {
            plain.extend_from_slice(&spot.raw.to_le_bytes());
        }
        plain.extend_from_slice(&name.0);
    }
    let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD + 4);
    key.seal_into(&plain, &mut sealed).map_err(|_| unsealable())?;
    let length = sealed.len() as u32;
    sealed.extend_from_slice(&length.to_le_bytes());
    Ok(sealed)
}

/// What a decrypted header lists; nothing if it is not one.
pub(crate) fn parse_header(mut plain: &[u8]) -> Option<Vec<(BlobType, Name, Spot)>> {
    let mut blobs = Vec::new();
    let mut offset = 0_u32;
    while let Some((kind, rest)) = plain.split_first() {
        let (tpe, packed) = match *kind {
            PLAIN_DATA => (BlobType::Data, false),
            PLAIN_TREE => (BlobType::Tree, false),
            PACKED_DATA => (BlobType::Data, true),
            PACKED_TREE => (BlobType::Tree, true),
            _ => return None,
        };
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (raw, rest) = if packed {
            let (raw, rest) = rest.split_first_chunk::<4>()?;
            (u32::from_le_bytes(*raw), rest)
        } else {
            (0, rest)
        };
        let (name, rest) = rest.split_first_chunk::<32>()?;
        let length = u32::from_le_bytes(*length);
        blobs.push((tpe, Name(*name), Spot { offset, length, raw }));
        offset = offset.checked_add(length)?;
        plain = rest;
    }
    Some(blobs)
}

fn uncompressible(error: &std::io::Error) -> RepositoryError {
    RepositoryError::Damaged { what: format!("a blob cannot be compressed: {error}") }
}

fn unsealable() -> RepositoryError {
    RepositoryError::Damaged { what: "a blob cannot be encrypted: it is too large".into() }
}

/// Reads the header of a pack of this size on disk.
///
/// # Errors
/// If the pack cannot be read or has no header that fits its size.
pub(crate) fn read_header(
    backend: &Backend,
    key: &SecretKey,
    pack: &Name,
    size: u64,
) -> Result<Vec<(BlobType, Name, Spot)>, StorageError> {
    let path = backend.path(FileType::Pack, &pack.id());
    let damaged = |what: &str| StorageError::Damaged { path: path.clone(), what: what.into() };
    let size = u32::try_from(size).map_err(|_| damaged("it is larger than a pack may be"))?;
    let read = |at, length| backend.read_part(FileType::Pack, &pack.id(), at, length);
    let at = size.checked_sub(4).ok_or_else(|| damaged("it is too short for a pack"))?;
    let mut length = [0; 4];
    length.copy_from_slice(&read(at, 4)?);
    let length = u32::from_le_bytes(length);
    let at = at.checked_sub(length).ok_or_else(|| damaged("its header is longer than it is"))?;
    let plain = key.decrypt(&read(at, length)?).map_err(|_| damaged("its header does not decrypt"))?;
    let blobs = parse_header(&plain).ok_or_else(|| damaged("its header is not one"))?;
    let end = blobs.last().map_or(0, |(.., spot)| u64::from(spot.offset) + u64::from(spot.length));
    if end == u64::from(at) { Ok(blobs) } else { Err(damaged("its header does not fit its size")) }
}
