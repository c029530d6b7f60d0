//! Reading stored blobs: what one pread brings, several at once, each compared with its name.
//!
//! The layout of a pack is in restic's `doc/design.rst`, "Pack Format"; a blob is `nonce | ciphertext | tag`, and its
//! plain text, unpacked if the index gives its unpacked size, has its name as SHA-256.
//!
//! Memory: as many [`Scratch`]es as threads read at once, each as large as the largest run it read, and it keeps no more
//! than [`KEPT`] of it.
//!
//! Crash story: reads only. Packs are never changed, only removed, which the caller's lock keeps away.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use model::port::Failure;
use rustic_core::{BlobId, FileType, Id, repofile::BlobType};
use sha2::{Digest, Sha256};
use zstd::bulk::Decompressor;

use super::{
    backend::Backend,
    crypt::SecretKey,
    error::{RepositoryError, StorageError, while_doing},
    open::Indexed,
};

/// Blobs that lie one behind the other in a pack are read together up to this size, in bytes.
const RUN: u32 = 1 << 20;

/// So many packs are kept open.
const OPEN: usize = 32;

/// A buffer that grew for an unusually large blob is not kept, in bytes.
const KEPT: usize = 4 << 20;

/// No blob is larger: restic's chunks end at 8 MiB, a tree of a large directory may be longer. In bytes.
const LARGEST: u32 = 1 << 30;

/// What takes a blob: its number in the list that was asked for, and its bytes.
type Take<'a> = dyn FnMut(usize, &[u8]) -> Result<(), Failure> + 'a;

/// Why a blob was not handed over, or was not taken.
pub(super) enum Unread {
    /// It is missing, or has wrong bytes.
    Damaged(RepositoryError),
    /// Whoever takes them does not go on.
    Refused(Failure),
}

impl<E: Into<RepositoryError>> From<E> for Unread {
    fn from(error: E) -> Self {
        Self::Damaged(error.into())
    }
}

/// The blobs of a repository, by the index as it was.
pub(super) struct Blobs {
    index: Indexed,
    backend: Arc<Backend>,
    key: SecretKey,
    open: Mutex<VecDeque<(Id, Arc<File>)>>,
    idle: Mutex<Vec<Scratch>>,
}

/// Where a blob lies.
#[derive(Clone, Copy)]
struct Spot {
    pack: Id,
    at: u32,
    length: u32,
    unpacked: Option<u32>,
}

impl Spot {
    /// The size of its content, in bytes.
    fn size(&self) -> u32 {
        self.unpacked.unwrap_or_else(|| self.length.saturating_sub(SecretKey::OVERHEAD))
    }
}

/// The buffers of one thread.
struct Scratch {
    sealed: Vec<u8>,
    plain: Vec<u8>,
    unpacker: Decompressor<'static>,
}

impl Scratch {
    fn new() -> io::Result<Self> {
        Ok(Self { sealed: Vec::new(), plain: Vec::new(), unpacker: Decompressor::new()? })
    }
}

impl Blobs {
    pub(super) fn new(index: Indexed, backend: Arc<Backend>, key: SecretKey) -> Self {
        Self { index, backend, key, open: Mutex::default(), idle: Mutex::default() }
    }

    /// The size of a blob's content as the index has it, in bytes.
    pub(super) fn size(&self, tpe: BlobType, id: &BlobId) -> Result<u32, RepositoryError> {
        Ok(self.spot(tpe, id)?.size())
    }

    /// One blob.
    pub(super) fn one(&self, tpe: BlobType, id: BlobId) -> Result<Vec<u8>, RepositoryError> {
        let mut content = Vec::new();
        let read = self.each(tpe, &mut std::iter::once(id), &mut |_, bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        });
        match read {
            Ok(()) => Ok(content),
            Err(Unread::Damaged(error)) => Err(error),
            Err(Unread::Refused(failure)) => Err(RepositoryError::Damaged { what: failure.what }),
        }
    }

    /// Hands over blobs in the order asked for, each once its bytes are proven to be the ones of its name.
    pub(super) fn each(
        &self,
        tpe: BlobType,
        wanted: &mut dyn Iterator<Item = BlobId>,
        take: &mut Take<'_>,
    ) -> Result<(), Unread> {
        let mut scratch = match self.idle().pop() {
            Some(scratch) => scratch,
            None => Scratch::new().map_err(no_memory)?,
        };
        let done = self.each_with(&mut scratch, tpe, wanted, take);
        if scratch.sealed.capacity() + scratch.plain.capacity() <= KEPT {
            self.idle().push(scratch);
        }
        done
    }

    fn each_with(
        &self,
        scratch: &mut Scratch,
        tpe: BlobType,
        wanted: &mut dyn Iterator<Item = BlobId>,
        take: &mut Take<'_>,
    ) -> Result<(), Unread> {
        let mut wanted = wanted.map(|id| Ok((id, self.spot(tpe, &id)?)));
        let mut next = wanted.next().transpose()?;
        let (mut number, mut run) = (0, Vec::new());
        while let Some((id, spot)) = next.take() {
            let mut length = spot.length;
            run.clear();
            run.push((id, spot));
            for found in &mut wanted {
                let (id, behind): (BlobId, Spot) = found.map_err(Unread::Damaged)?;
                let adjoins = behind.pack == spot.pack
                    && Some(behind.at) == spot.at.checked_add(length)
                    && length.checked_add(behind.length).is_some_and(|together| together <= RUN);
                if !adjoins {
                    next = Some((id, behind));
                    break;
                }
                length += behind.length;
                run.push((id, behind));
            }
            self.bring(&spot, length, &mut scratch.sealed)?;
            let mut from = 0;
            for (id, spot) in &run {
                let to = from + spot.length as usize;
                let bytes = self.open_sealed(id, spot, from..to, scratch)?;
                from = to;
                take(number, bytes).map_err(Unread::Refused)?;
                number += 1;
            }
        }
        Ok(())
    }

    fn spot(&self, tpe: BlobType, id: &BlobId) -> Result<Spot, RepositoryError> {
        let found = match tpe {
            BlobType::Tree => self.index.get_index_entry(&rustic_core::TreeId::from(**id)),
            BlobType::Data => self.index.get_index_entry(&rustic_core::DataId::from(**id)),
        };
        let found = found.map_err(while_doing("finding a part in the index"))?;
        let place = found.location;
        let unpacked = place.uncompressed_length.map(std::num::NonZeroU32::get);
        let spot = Spot { pack: *found.pack, at: place.offset, length: place.length, unpacked };
        if spot.length > LARGEST || spot.size() > LARGEST {
            return Err(wrong(id, &spot, "is listed with a size that no part has"));
        }
        Ok(spot)
    }

    /// Reads so many bytes of a pack, from a blob's place on.
    fn bring(&self, spot: &Spot, length: u32, into: &mut Vec<u8>) -> Result<(), RepositoryError> {
        let path = || self.backend.path(FileType::Pack, &spot.pack);
        let file = self.pack(&spot.pack).map_err(|source| StorageError::read(path(), source))?;
        into.resize(length as usize, 0);
        match file.read_exact_at(into, u64::from(spot.at)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let what = format!("it ends before byte {}", u64::from(spot.at) + u64::from(length));
                Err(StorageError::Damaged { path: path(), what }.into())
            }
            Err(error) => Err(StorageError::read(path(), error).into()),
        }
    }

    fn pack(&self, id: &Id) -> io::Result<Arc<File>> {
        let known = |open: &VecDeque<(Id, Arc<File>)>| {
            open.iter().rev().find(|(known, _)| known == id).map(|(_, file)| Arc::clone(file))
        };
        if let Some(file) = known(&self.open.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(file);
        }
        let file = Arc::new(File::open(self.backend.path(FileType::Pack, id))?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = known(&open) {
            return Ok(file);
        }
        if open.len() >= OPEN {
            open.pop_front();
        }
        open.push_back((*id, Arc::clone(&file)));
        Ok(file)
    }

    /// Decrypts, unpacks and compares one blob.
    fn open_sealed<'s>(
        &self,
        id: &BlobId,
        spot: &Spot,
        range: std::ops::Range<usize>,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8], RepositoryError> {
        let Scratch { sealed, plain, unpacker } = scratch;
        let opened = self
            .key
            .decrypt_in_place(&mut sealed[range])
            .map_err(|_| wrong(id, spot, "does not decrypt: its bytes were changed"))?;
        let content: &[u8] = match spot.unpacked {
            None => opened,
            Some(size) => {
                plain.resize(size as usize, 0);
                match unpacker.decompress_to_buffer(opened, &mut plain[..]) {
                    Ok(length) if length == plain.len() => plain,
                    Ok(_) => return Err(wrong(id, spot, "has another size than the index says")),
                    Err(_) => return Err(wrong(id, spot, "cannot be unpacked")),
                }
            }
        };
        if name_of(content) != **id {
            return Err(wrong(id, spot, "has another content than its name"));
        }
        Ok(content)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Scratch>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a blob with this content.
pub(super) fn name_of(content: &[u8]) -> Id {
    Id::new(Sha256::digest(content).into())
}

fn wrong(id: &BlobId, spot: &Spot, what: &str) -> RepositoryError {
    let (id, pack) = (id.to_hex(), spot.pack.to_hex());
    RepositoryError::Damaged {
        what: format!("part {} at byte {} of pack {} {what}", &id[..8], spot.at, &pack[..8]),
    }
}

fn no_memory(error: io::Error) -> RepositoryError {
    RepositoryError::Damaged { what: format!("nothing can be unpacked: {error}") }
}
