//! A file that several workers store together, piece by piece.
//!
//! Pieces of a file of pages are claimed and read at once. Where the content says where to cut, one worker at a
//! time reads on and finds the next cuts; what follows (hash, compression, encryption) it does alone again.
//! Of a file that was compared with an older one ([`super::carry`]) only the changed chunks are pieces.
//!
//! Crash story: reads only.

use std::{
    fs::File,
    iter,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lanes::Roller;
use model::extents::Map;
use os::direct;

use super::{
    carry::Compared,
    chunk::{Chunking, Cutting, HEAD},
    compress::{Effort, Judge},
    index::Place,
};
use crate::repository::{feed::Fault, source::Source};

/// About so many bytes are claimed at a time.
const PIECE: u64 = 4 << 20;

/// Of chunks here and there fewer are claimed: each is read by itself all the same, and so they still are in the processor's
/// cache when they are named and compressed.
const PIECE_OF_CHUNKS: u64 = 384 << 10;

/// A file that is being stored.
pub(crate) struct Large {
    source: Source,
    size: u64,
    cutting: Cutting,
    /// What is known of it from the backup before.
    compared: Option<Compared>,
    /// Where the next piece begins: in bytes, or in the list of changed chunks.
    cursor: Mutex<u64>,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    /// The content of each piece that was claimed; nothing until it is stored.
    stored: Vec<Option<Vec<Place>>>,
    missing: usize,
    /// No more pieces are to come.
    complete: bool,
    /// It cannot be read.
    lost: bool,
    /// Somebody has taken the result.
    told: bool,
}

/// A piece that was claimed and read: the buffer holds it.
#[derive(Debug)]
pub(crate) struct Piece {
    number: usize,
    /// Where it begins in the buffer.
    begin: usize,
    /// Where its blobs end in the buffer, in order.
    ends: Vec<usize>,
}

impl Piece {
    /// Where its blobs are in the buffer, in order.
    pub(crate) fn blobs(&self) -> Vec<Range<usize>> {
        let begins = iter::once(&self.begin).chain(&self.ends);
        begins.zip(&self.ends).map(|(begin, end)| *begin..*end).collect()
    }
}

/// What became of a file.
pub(crate) enum Ending {
    /// Others are still at it.
    NotYet,
    /// It is stored.
    Stored(Vec<Place>),
    /// It cannot be read; the fault is noted.
    Lost,
}

impl Large {
    /// Begins with a file of this size.
    ///
    /// # Errors
    /// If its beginning cannot be read.
    pub(crate) fn begin(source: Source, size: u64, chunking: &Chunking) -> Result<Self, Fault> {
        let mut head = [0; HEAD];
        let length = size.min(HEAD as u64) as usize;
        source.read(&mut head[..length], 0)?;
        let cutting = chunking.cutting(&head[..length], size);
        Ok(Self { source, size, cutting, compared: None, cursor: Mutex::new(0), parts: Mutex::default() })
    }

    /// The size of its blobs, if it is cut at fixed places.
    pub(crate) fn blob(&self) -> Option<u64> {
        match self.cutting {
            Cutting::Fixed(blob) => Some(blob),
            Cutting::Content => None,
        }
    }

    /// How hard its blobs are compressed.
    pub(crate) fn effort(&self) -> Effort {
        match self.cutting {
            Cutting::Fixed(_) => Effort::Judged(Judge::default()),
            Cutting::Content => Effort::Thorough,
        }
    }

    /// Whether only what changed since the backup before is read.
    pub(crate) fn is_carried_over(&self) -> bool {
        self.chunks().is_some()
    }

    /// The pinned copy that it is read from, if it is.
    pub(crate) fn pinned(&self) -> Option<&File> {
        self.source.pinned()
    }

    /// Before anything is claimed: all of a pinned copy is read, from its original's memory where that is the same.
    pub(crate) fn look_for_original(&mut self) {
        if self.chunks().is_none() {
            self.source.look_for_original();
        }
    }

    /// The same for the chunks that changed since the backup before; `map` is that of the pinned copy.
    pub(crate) fn look_for_changed(&mut self, map: &Map) {
        let (Some(blob), Some(chunks)) = (self.blob(), self.chunks()) else { return };
        let runs = chunks.chunk_by(|a, b| a + 1 == *b).filter_map(|run| Some((run.first()?, run.last()?)));
        let ranges: Vec<Range<u64>> = runs
            .map(|(first, last)| u64::from(*first) * blob..((u64::from(*last) + 1) * blob).min(self.size))
            .collect();
        self.source.look_for_original_within(map, &ranges);
    }

    /// Before anything is claimed: what is known of it from the backup before.
    pub(crate) fn compare_with(&mut self, compared: Compared) {
        lock(&self.parts).complete = compared.chunks().is_some_and(<[u32]>::is_empty);
        self.compared = Some(compared);
    }

    /// What it was compared with.
    pub(crate) fn compared(&self) -> Option<&Compared> {
        self.compared.as_ref()
    }

    /// The chunks that are read, if not all of it is.
    fn chunks(&self) -> Option<&[u32]> {
        self.compared.as_ref()?.chunks()
    }

    /// Where the cursor is at its end.
    fn end(&self) -> u64 {
        self.chunks().map_or(self.size, |chunks| chunks.len() as u64)
    }

    /// Claims the next piece and reads it into the buffer; nothing if there is none left.
    ///
    /// # Errors
    /// If it cannot be read; then there is none left either.
    pub(crate) fn claim(
        &self,
        roller: &Roller,
        max: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Piece>, Fault> {
        let mut cursor = lock(&self.cursor);
        let from = *cursor;
        if from >= self.end() {
            return Ok(None);
        }
        match self.cutting {
            Cutting::Fixed(blob) if let Some(chunks) = self.chunks() => {
                self.claim_chunks(cursor, chunks, blob, buffer).map(Some)
            }
            Cutting::Fixed(blob) => {
                let to = (from + (PIECE / blob).max(1) * blob).min(self.size);
                *cursor = to;
                let number = self.issue(to);
                drop(cursor);
                let length = (to - from) as usize;
                let begin = begin_in(buffer, length);
                let ends = (from..to).step_by(blob as usize).map(|at| ((at + blob).min(to) - from) as usize);
                let ends = ends.map(|end| begin + end).collect();
                self.source.read_once(&mut buffer[begin..], length, from).inspect_err(|_| {
                    *lock(&self.cursor) = self.size;
                    self.lose(1);
                })?;
                Ok(Some(Piece { number, begin, ends }))
            }
            Cutting::Content => {
                let cut = self.find_cuts(roller, max, buffer, from).inspect_err(|_| {
                    *cursor = self.size;
                    self.lose(0);
                })?;
                let length = cut.last().map_or(0, |end| *end as u64);
                *cursor = from + length;
                self.source.forget(from, length);
                Ok(Some(Piece { number: self.issue(*cursor), begin: 0, ends: cut }))
            }
        }
    }

    /// Claims the next chunks of the list and reads them, side by side ones at once.
    fn claim_chunks(
        &self,
        mut cursor: MutexGuard<'_, u64>,
        chunks: &[u32],
        blob: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<Piece, Fault> {
        let from = *cursor as usize;
        let to = (from + (PIECE_OF_CHUNKS / blob).max(1) as usize).min(chunks.len());
        *cursor = to as u64;
        let number = self.issue(to as u64);
        drop(cursor);
        let bounds = |chunk: u32| {
            let start = u64::from(chunk) * blob;
            start..(start + blob).min(self.size)
        };
        let begin = begin_in(buffer, (to - from) * blob as usize);
        let (mut at, mut ends) = (begin, Vec::with_capacity(to - from));
        for run in chunks[from..to].chunk_by(|a, b| a + 1 == *b) {
            let first = at;
            for chunk in run {
                let Range { start, end } = bounds(*chunk);
                at += (end - start) as usize;
                ends.push(at);
            }
            let start = bounds(run[0]).start;
            self.source.read_once(&mut buffer[first..], at - first, start).inspect_err(|_| {
                *lock(&self.cursor) = self.end();
                self.lose(1);
            })?;
        }
        Ok(Piece { number, begin, ends })
    }

    /// Reads on from here until there is at least one cut.
    fn find_cuts(
        &self,
        roller: &Roller,
        max: usize,
        buffer: &mut Vec<u8>,
        from: u64,
    ) -> Result<Vec<usize>, Fault> {
        let mut to = (from + PIECE).min(self.size);
        self.read(buffer, from, to)?;
        let mut ends = Vec::new();
        loop {
            let at = ends.last().copied().unwrap_or(0);
            match roller.cut(&buffer[at..], to == self.size) {
                Some(length) => ends.push(at + length),
                None if !ends.is_empty() || to == self.size => return Ok(ends),
                None => {
                    to = (from + max as u64).min(self.size);
                    self.read(buffer, from, to)?;
                }
            }
        }
    }

    fn read(&self, buffer: &mut Vec<u8>, from: u64, to: u64) -> Result<(), Fault> {
        buffer.resize((to - from) as usize, 0);
        self.source.read(buffer, from)
    }

    fn issue(&self, next: u64) -> usize {
        let mut parts = lock(&self.parts);
        parts.stored.push(None);
        parts.missing += 1;
        parts.complete = next >= self.end();
        parts.stored.len() - 1
    }

    /// It cannot be read, and so many pieces that were claimed will not be stored. The cursor is at the end, so no
    /// other is claimed.
    fn lose(&self, pieces: usize) {
        let mut parts = lock(&self.parts);
        (parts.lost, parts.complete) = (true, true);
        parts.missing -= pieces;
    }

    /// Takes the places of a stored piece.
    pub(crate) fn put(&self, piece: &Piece, places: Vec<Place>) {
        let mut parts = lock(&self.parts);
        parts.stored[piece.number] = Some(places);
        parts.missing -= 1;
    }

    /// Whether there may be pieces left to claim.
    pub(crate) fn is_open(&self) -> bool {
        !lock(&self.parts).complete
    }

    /// What became of it, for the one who asks first when all pieces are stored.
    ///
    /// # Errors
    /// If it is not any more what it was when it was opened.
    pub(crate) fn ending(&self) -> Result<Ending, Fault> {
        let stored = {
            let mut parts = lock(&self.parts);
            if !parts.complete || parts.missing > 0 || parts.told {
                return Ok(Ending::NotYet);
            }
            parts.told = true;
            if parts.lost {
                return Ok(Ending::Lost);
            }
            std::mem::take(&mut parts.stored)
        };
        self.source.finish()?;
        let read: Vec<Place> = stored.into_iter().flatten().flatten().collect();
        Ok(Ending::Stored(match &self.compared {
            Some(compared) => compared.whole(read),
            None => read,
        }))
    }
}

/// Where in the buffer the first block of memory begins, after which there is room for so many bytes.
fn begin_in(buffer: &mut Vec<u8>, length: usize) -> usize {
    let room = direct::room(length);
    if buffer.len() < room {
        buffer.resize(room, 0);
    }
    direct::first_block(buffer)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
