//! Reading stored blobs: what one pread brings, several at once, each compared with its name.
//!
//! The layout of a pack is in restic's `doc/design.rst`, "Pack Format"; a blob is `nonce | ciphertext | tag`, and its
//! plain text, unpacked if the index gives its unpacked size, has its name as SHA-256.
//!
//! Blobs are unpacked one behind the other into a piece of content, compared with their names side by side, which
//! takes half the time ([`Name::of_all`]), and handed over together, in memory that a disk takes as it is.
//!
//! Zeros: a page file has thousands of references to one blob of zeros. Once it was read and had its name, the others are
//! not read again: what has that name is zeros.
//!
//! Memory: as many [`Scratch`]es as threads read at once, each with a run and a piece ([`MOST`], or one blob that is
//! larger), and it keeps no more than [`KEPT`] of it.
//!
//! Crash story: reads only. Packs are never changed, only removed, which the caller's lock keeps away.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{
    aligned::{Aligned, is_zero},
    port::Failure,
};
use os::memory::in_large_pages;
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

/// A piece is handed over when it has so many bytes, and so many blobs, or a multiple, as are best compared together.
const PIECE: u64 = 1 << 20;
const ABREAST: usize = 3;

/// No piece of several blobs is larger, in bytes.
pub(super) const MOST: usize = 4 << 20;

/// A buffer that grew for an unusually large blob is not kept, in bytes.
const KEPT: usize = MOST + 3 * RUN as usize;

/// Blobs of a piece are compared once there are so many bytes of them, which the core's own cache still has.
const WARM: usize = 128 << 10;

/// A blob whose content is so many times larger may be zeros.
const THIN: u64 = 128;

/// Nonce and tag of a blob.
const OVERHEAD: u32 = 32;

/// What zstd makes of zeros: at most so many bytes, and one for each 16 KiB (measured: 19 for 32 KiB, 299 for 8 MiB).
const ZERO: u32 = 24;

/// So many blobs of zeros are remembered: one for each length that chunks of zeros have, and some tails.
const ZEROS: usize = 16;

/// A run has no more blobs, however many of them are zeros.
const LONGEST: usize = 4096;

/// No blob is larger in bytes, unless it takes an eighth of its size in its pack: restic's chunks end at 8 MiB, but the tree of
/// a directory with many parts, 67 bytes each that pack to about half, has gigabytes.
const LARGEST: u32 = 1 << 30;

/// What takes the content of blobs, in order: of one or more at a time.
type Take<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

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
    /// Blobs that were read and are zeros, with their lengths in bytes.
    zeros: Mutex<Vec<(Name, u32)>>,
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
    sealed: Aligned,
    piece: Piece,
    unpacker: Decompressor<'static>,
}

impl Scratch {
    fn new() -> io::Result<Self> {
        let piece = Piece { content: in_large_pages(MOST), ..Piece::default() };
        Ok(Self { sealed: in_large_pages(RUN as usize), piece, unpacker: Decompressor::new()? })
    }

    fn size(&self) -> usize {
        self.sealed.capacity() + self.piece.content.capacity()
    }
}

/// Blobs of which those that are not known lie one behind the other in a pack.
#[derive(Default)]
struct Run {
    /// In the order wanted; whether each is known to be zeros.
    blobs: Vec<(Found, bool)>,
    /// The first of those to be read.
    first: Option<Found>,
    /// Of all that are to be read, in bytes.
    length: u32,
}

impl Run {
    fn clear(&mut self) {
        self.blobs.clear();
        (self.first, self.length) = (None, 0);
    }

    fn adjoins(&self, behind: &Found) -> bool {
        let Some(first) = &self.first else { return true };
        behind.pack == first.pack
            && Some(behind.spot.offset) == first.spot.offset.checked_add(self.length)
            && self.length.checked_add(behind.spot.length).is_some_and(|together| together <= RUN)
    }

    fn push(&mut self, found: Found, is_zero: bool) {
        if !is_zero {
            self.first.get_or_insert(found);
            self.length += found.spot.length;
        }
        self.blobs.push((found, is_zero));
    }
}

/// The content of blobs that follow each other, of which the last are not yet compared with their names.
#[derive(Default)]
struct Piece {
    content: Aligned,
    /// How many.
    blobs: usize,
    /// Those that are still to be compared, each with the place of its content.
    parts: Vec<(Found, Range<usize>)>,
}

impl Piece {
    fn clear(&mut self) {
        self.content.resize(0);
        self.parts.clear();
        self.blobs = 0;
    }

    /// Room for the next blob; where it is.
    fn room(&mut self, length: usize) -> Range<usize> {
        let from = self.content.len();
        self.content.resize(from + length);
        self.blobs += 1;
        from..from + length
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
            _ => Arc::new(load(&self.backend, &self.locks.key, self.index_cache.as_ref(), || Ok(false))?),
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
        let (open, idle, zeros) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { index, backend, key, open, idle, zeros }
    }

    /// The place of a data blob; nothing if no index names it.
    pub(super) fn locate(&self, name: &Name) -> Option<Place> {
        self.index.locate(std::slice::from_ref(name))?.0.pop()
    }

    /// The name of the blob at a place, and the size of its content as the index has it, in bytes.
    pub(super) fn at(&self, place: Place) -> Result<(Name, u64), RepositoryError> {
        let found = self.found(place)?;
        Ok((found.name, found.spot.content_length()))
    }

    /// How many bytes of zeros, or of another byte again and again, the blob at a place must be: others do not pack so well.
    pub(super) fn zeros_at(&self, place: Place) -> u64 {
        let is_even = |spot: &Spot| spot.raw > 0 && spot.length <= OVERHEAD + ZERO + (spot.raw >> 14);
        self.found(place).ok().filter(|found| is_even(&found.spot)).map_or(0, |found| found.spot.raw.into())
    }

    /// One stored directory.
    pub(super) fn tree(&self, name: &Name) -> Result<Vec<u8>, RepositoryError> {
        let damaged = || RepositoryError::Damaged { what: format!("part {} is in no index", name.short()) };
        let (pack, spot) = self.index.spot(BlobType::Tree, name).ok_or_else(damaged)?;
        let mut wanted = std::iter::once(Ok(Found { name: *name, pack, spot }));
        let mut content = Vec::new();
        let read = self.each_found(&mut wanted, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        });
        match read {
            Ok(()) => Ok(content),
            Err(Unread::Damaged(error)) => Err(error),
            Err(Unread::Refused(failure)) => Err(RepositoryError::Damaged { what: failure.what }),
        }
    }

    /// Hands over the content of blobs in the order asked for, once its bytes are proven to be the ones of their names.
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
        scratch.piece.clear();
        if scratch.size() <= KEPT {
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
        let mut run = Run::default();
        while let Some(first) = next.take() {
            run.clear();
            run.push(first, self.is_known_zero(&first));
            for behind in &mut *wanted {
                let behind = behind?;
                let is_zero = self.is_known_zero(&behind);
                if !is_zero && !run.adjoins(&behind) || run.blobs.len() >= LONGEST {
                    next = Some(behind);
                    break;
                }
                run.push(behind, is_zero);
            }
            if let Some(first) = run.first {
                self.bring(&first, run.length, &mut scratch.sealed)?;
            }
            let mut from = 0;
            for (found, is_zero) in &run.blobs {
                if *is_zero {
                    let length = found.spot.raw as usize;
                    let room = self.room(&mut scratch.piece, length, take)?;
                    scratch.piece.content[room].fill(0);
                } else {
                    let to = from + found.spot.length as usize;
                    self.open(scratch, found, from..to, take)?;
                    from = to;
                }
                if is_enough(scratch.piece.content.len() as u64, scratch.piece.blobs) {
                    self.hand_over(&mut scratch.piece, take)?;
                }
            }
        }
        self.hand_over(&mut scratch.piece, take)
    }

    /// Decrypts a blob and unpacks it into the piece.
    fn open(
        &self,
        scratch: &mut Scratch,
        found: &Found,
        at: Range<usize>,
        take: &mut Take<'_>,
    ) -> Result<(), Unread> {
        let Scratch { sealed, piece, unpacker } = scratch;
        let opened = self.key.decrypt_in_place(&mut sealed[at]);
        let opened = opened.map_err(|_| wrong(found, "does not decrypt: its bytes were changed"))?;
        let raw = found.spot.raw;
        let room = if raw == 0 {
            let room = self.room(piece, opened.len(), take)?;
            piece.content[room.clone()].copy_from_slice(opened);
            room
        } else {
            check_promise(opened, raw).map_err(|what| wrong(found, what))?;
            let room = self.room(piece, raw as usize, take)?;
            unpack(opened, &mut piece.content[room.clone()], unpacker).map_err(|what| wrong(found, what))?;
            room
        };
        let to = room.end;
        piece.parts.push((*found, room));
        let from = piece.parts.first().map_or(to, |(_, first)| first.start);
        if to - from >= WARM && piece.parts.len().is_multiple_of(ABREAST) {
            self.compare(piece)?;
        }
        Ok(())
    }

    /// Room for so many bytes more in the piece, which is handed over first if it would become too large.
    fn room(&self, piece: &mut Piece, length: usize, take: &mut Take<'_>) -> Result<Range<usize>, Unread> {
        if piece.content.len() + length > MOST {
            self.hand_over(piece, take)?;
        }
        Ok(piece.room(length))
    }

    /// Compares what was not yet compared with its names.
    fn compare(&self, piece: &mut Piece) -> Result<(), RepositoryError> {
        let contents: Vec<&[u8]> = piece.parts.iter().map(|(_, at)| &piece.content[at.clone()]).collect();
        for ((found, _), (name, content)) in
            piece.parts.iter().zip(Name::of_all(&contents).iter().zip(&contents))
        {
            if *name != found.name {
                return Err(wrong(found, "has another content than its name"));
            }
            if is_thin(&found.spot) && is_zero(content) {
                self.note_zero(found);
            }
        }
        piece.parts.clear();
        Ok(())
    }

    /// Hands over the piece once all of it was compared.
    fn hand_over(&self, piece: &mut Piece, take: &mut Take<'_>) -> Result<(), Unread> {
        self.compare(piece)?;
        if !piece.content.is_empty() {
            take(&piece.content).map_err(Unread::Refused)?;
        }
        piece.clear();
        Ok(())
    }

    fn is_known_zero(&self, found: &Found) -> bool {
        is_thin(&found.spot)
            && self.zeros().iter().any(|(name, raw)| (name, raw) == (&found.name, &found.spot.raw))
    }

    fn note_zero(&self, found: &Found) {
        let mut zeros = self.zeros();
        let zero = (found.name, found.spot.raw);
        if zeros.len() < ZEROS && !zeros.contains(&zero) {
            zeros.push(zero);
        }
    }

    fn zeros(&self) -> MutexGuard<'_, Vec<(Name, u32)>> {
        self.zeros.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self, place: Place) -> Result<Found, RepositoryError> {
        let lost = || RepositoryError::Damaged { what: "a part of it is in no index".into() };
        let (name, pack, spot) = self.index.at(place).ok_or_else(lost)?;
        Ok(Found { name, pack, spot })
    }

    /// Reads so many bytes of a pack, from a blob's place on.
    fn bring(&self, first: &Found, length: u32, into: &mut Aligned) -> Result<(), RepositoryError> {
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
        into.resize(length as usize);
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

    fn idle(&self) -> MutexGuard<'_, Vec<Scratch>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether more bytes, or more blobs, would not make a piece go faster.
pub(super) fn is_enough(bytes: u64, blobs: usize) -> bool {
    bytes >= PIECE && blobs > 0 && blobs.is_multiple_of(ABREAST)
}

fn is_thin(spot: &Spot) -> bool {
    u64::from(spot.length) * THIN <= u64::from(spot.raw)
}

/// Whether what the index says of the unpacked size is what the packed bytes themselves promise: no room is made for more.
pub(super) fn check_promise(packed: &[u8], raw: u32) -> Result<(), &'static str> {
    // A block of zstd (RFC 8878, 3.1.1.2) has at least 4 bytes and stands for at most 128 KiB.
    let most = (packed.len() as u64 / 4 + 1) * (128 << 10);
    let promised = zstd_safe::get_frame_content_size(packed).map_err(|_| "cannot be unpacked")?;
    let is_other = promised.is_some_and(|size| size != u64::from(raw));
    let is_bomb = raw > LARGEST && (raw / 8) as usize > packed.len();
    if is_other || u64::from(raw) > most || is_bomb { Err(OTHER_SIZE) } else { Ok(()) }
}

/// Unpacks what fills this to the last byte.
pub(super) fn unpack(
    packed: &[u8],
    into: &mut [u8],
    unpacker: &mut Decompressor<'static>,
) -> Result<(), &'static str> {
    let length = into.len();
    match unpacker.decompress_to_buffer(packed, into) {
        Ok(unpacked) if unpacked == length => Ok(()),
        Ok(_) => Err(OTHER_SIZE),
        Err(_) => Err("cannot be unpacked"),
    }
}

const OTHER_SIZE: &str = "has another size than the index says";

fn wrong(found: &Found, what: &str) -> RepositoryError {
    let (name, pack, at) = (found.name.short(), found.pack.short(), found.spot.offset);
    RepositoryError::Damaged { what: format!("part {name} at byte {at} of pack {pack} {what}") }
}

fn no_memory(error: io::Error) -> RepositoryError {
    RepositoryError::Damaged { what: format!("nothing can be unpacked: {error}") }
}
