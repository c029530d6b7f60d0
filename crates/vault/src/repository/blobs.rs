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
use rustic_core::{FileType, Id, repofile::BlobType};
use zstd::{bulk::Decompressor, zstd_safe};

use super::{
    backend::Backend,
    crypt::SecretKey,
    error::{RepositoryError, StorageError},
    open::Repository,
};
use crate::archiver::{Index, Name, Place, Spot, load};

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
    index: Arc<Index>,
    backend: Arc<Backend>,
    key: SecretKey,
    open: Mutex<VecDeque<(Name, Arc<File>)>>,
    idle: Mutex<Vec<Scratch>>,
}

/// Where a blob lies.
#[derive(Clone, Copy)]
struct Found {
    name: Name,
    pack: Name,
    spot: Spot,
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

/// The index as it was read, with the names of its files.
pub(super) type ReadIndex = Mutex<Option<(Vec<Id>, Arc<Index>)>>;

impl Repository {
    /// All blobs that the index names now. What was read of it is kept for the next time.
    pub(super) fn blobs(&self) -> Result<Blobs, RepositoryError> {
        let mut known = self.read_index.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = self.backend.files(FileType::Index)?;
        let mut files: Vec<Id> = listed.into_iter().map(|(id, _)| id).collect();
        files.sort_unstable();
        let index = match &*known {
            Some((read, index)) if *read == files => Arc::clone(index),
            // Only writers make use of packs that no index names.
            _ => Arc::new(load(&self.backend, &self.locks.key, || Ok(false))?),
        };
        *known = Some((files, Arc::clone(&index)));
        Ok(Blobs::new(index, Arc::clone(&self.backend), self.locks.key.clone()))
    }

    /// Frees the memory of the index that was read.
    pub(super) fn forget_index(&self) {
        self.read_index.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Blobs {
    pub(super) fn new(index: Arc<Index>, backend: Arc<Backend>, key: SecretKey) -> Self {
        Self { index, backend, key, open: Mutex::default(), idle: Mutex::default() }
    }

    /// The place of a data blob; nothing if no index names it.
    pub(super) fn locate(&self, name: &Name) -> Option<Place> {
        self.index.locate(std::slice::from_ref(name))?.pop()
    }

    /// The name of the blob at a place, and the size of its content as the index has it, in bytes.
    pub(super) fn at(&self, place: Place) -> Result<(Name, u64), RepositoryError> {
        let found = self.found(place)?;
        Ok((found.name, found.spot.content_length()))
    }

    /// One stored directory.
    pub(super) fn tree(&self, name: &Name) -> Result<Vec<u8>, RepositoryError> {
        let damaged = || RepositoryError::Damaged { what: format!("part {} is in no index", name.short()) };
        let (pack, spot) = self.index.spot(BlobType::Tree, name).ok_or_else(damaged)?;
        let mut wanted = std::iter::once(Ok(Found { name: *name, pack, spot }));
        let mut content = Vec::new();
        let read = self.each_found(&mut wanted, &mut |_, bytes| {
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
    pub(super) fn each(&self, wanted: &[Place], take: &mut Take<'_>) -> Result<(), Unread> {
        self.each_found(&mut wanted.iter().map(|place| self.found(*place)), take)
    }

    fn each_found(
        &self,
        wanted: &mut dyn Iterator<Item = Result<Found, RepositoryError>>,
        take: &mut Take<'_>,
    ) -> Result<(), Unread> {
        let mut scratch = match self.idle().pop() {
            Some(scratch) => scratch,
            None => Scratch::new().map_err(no_memory)?,
        };
        let done = self.each_with(&mut scratch, wanted, take);
        if scratch.sealed.capacity() + scratch.plain.capacity() <= KEPT {
            self.idle().push(scratch);
        }
        done
    }

    fn each_with(
        &self,
        scratch: &mut Scratch,
        wanted: &mut dyn Iterator<Item = Result<Found, RepositoryError>>,
        take: &mut Take<'_>,
    ) -> Result<(), Unread> {
        let mut next = wanted.next().transpose()?;
        let (mut number, mut run) = (0, Vec::new());
        while let Some(first) = next.take() {
            let mut length = first.spot.length;
            run.clear();
            run.push(first);
            for behind in &mut *wanted {
                let behind = behind?;
                let adjoins = behind.pack == first.pack
                    && Some(behind.spot.offset) == first.spot.offset.checked_add(length)
                    && length.checked_add(behind.spot.length).is_some_and(|together| together <= RUN);
                if !adjoins {
                    next = Some(behind);
                    break;
                }
                length += behind.spot.length;
                run.push(behind);
            }
            self.bring(&first, length, &mut scratch.sealed)?;
            let mut from = 0;
            for found in &run {
                let to = from + found.spot.length as usize;
                let Scratch { sealed, plain, unpacker } = &mut *scratch;
                let bytes = opened(&self.key, found, &mut sealed[from..to], plain, unpacker)?;
                from = to;
                take(number, bytes).map_err(Unread::Refused)?;
                number += 1;
            }
        }
        Ok(())
    }

    fn found(&self, place: Place) -> Result<Found, RepositoryError> {
        let lost = || RepositoryError::Damaged { what: "a part of it is in no index".into() };
        let (name, pack, spot) = self.index.at(place).ok_or_else(lost)?;
        Ok(Found { name, pack, spot })
    }

    /// Reads so many bytes of a pack, from a blob's place on.
    fn bring(&self, first: &Found, length: u32, into: &mut Vec<u8>) -> Result<(), RepositoryError> {
        let path = || self.backend.path(FileType::Pack, &first.pack.id());
        let failed = |source| StorageError::read(path(), source);
        let at = u64::from(first.spot.offset);
        let short = || {
            let what = format!("it ends before byte {}", at + u64::from(length));
            StorageError::Damaged { path: path(), what }
        };
        let file = self.pack(&first.pack).map_err(failed)?;
        // Nothing is made room for that is not there.
        if length > RUN && file.metadata().map_err(failed)?.len() < at + u64::from(length) {
            return Err(short().into());
        }
        into.resize(length as usize, 0);
        match file.read_exact_at(into, at) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(short().into()),
            Err(error) => Err(failed(error).into()),
        }
    }

    fn pack(&self, name: &Name) -> io::Result<Arc<File>> {
        let known = |open: &VecDeque<(Name, Arc<File>)>| {
            open.iter().rev().find(|(known, _)| known == name).map(|(_, file)| Arc::clone(file))
        };
        if let Some(file) = known(&self.open.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(file);
        }
        let file = Arc::new(File::open(self.backend.path(FileType::Pack, &name.id()))?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = known(&open) {
            return Ok(file);
        }
        if open.len() >= OPEN {
            open.pop_front();
        }
        open.push_back((*name, Arc::clone(&file)));
        Ok(file)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Scratch>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decrypts, unpacks and compares one blob.
fn opened<'s>(
    key: &SecretKey,
    found: &Found,
    sealed: &'s mut [u8],
    plain: &'s mut Vec<u8>,
    unpacker: &mut Decompressor<'static>,
) -> Result<&'s [u8], RepositoryError> {
    let opened =
        key.decrypt_in_place(sealed).map_err(|_| wrong(found, "does not decrypt: its bytes were changed"))?;
    let content: &[u8] = if found.spot.raw == 0 {
        opened
    } else {
        unpack(opened, found.spot.raw, plain, unpacker).map_err(|what| wrong(found, what))?;
        plain
    };
    if Name::of(content) != found.name {
        return Err(wrong(found, "has another content than its name"));
    }
    Ok(content)
}

/// Unpacks what the index says is so large. Room is made only for what the packed bytes themselves promise, too.
pub(super) fn unpack(
    packed: &[u8],
    raw: u32,
    plain: &mut Vec<u8>,
    unpacker: &mut Decompressor<'static>,
) -> Result<(), &'static str> {
    const OTHER_SIZE: &str = "has another size than the index says";
    // A block of zstd (RFC 8878, 3.1.1.2) has at least 4 bytes and stands for at most 128 KiB.
    let most = (packed.len() as u64 / 4 + 1) * (128 << 10);
    let promised = zstd_safe::get_frame_content_size(packed).map_err(|_| "cannot be unpacked")?;
    if promised.is_some_and(|size| size != u64::from(raw)) || u64::from(raw) > most || raw > LARGEST {
        return Err(OTHER_SIZE);
    }
    plain.resize(raw as usize, 0);
    match unpacker.decompress_to_buffer(packed, &mut plain[..]) {
        Ok(length) if length == plain.len() => Ok(()),
        Ok(_) => Err(OTHER_SIZE),
        Err(_) => Err("cannot be unpacked"),
    }
}

fn wrong(found: &Found, what: &str) -> RepositoryError {
    let (name, pack, at) = (found.name.short(), found.pack.short(), found.spot.offset);
    RepositoryError::Damaged { what: format!("part {name} at byte {at} of pack {pack} {what}") }
}

fn no_memory(error: io::Error) -> RepositoryError {
    RepositoryError::Damaged { what: format!("nothing can be unpacked: {error}") }
}
