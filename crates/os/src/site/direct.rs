//! Writing large files, and reading them back, past the page cache.
//!
//! It pays: the memory of the machine is left to whoever runs on it, nothing is copied twice, and nothing is left to
//! be written when all is synced. Only on ext4 and XFS, where `O_DIRECT` is what open(2) says of it: on btrfs it would do
//! without the mount's compression, on others it may be the page cache all the same.
//!
//! Blocks are reserved for a stretch at a time, so that they lie together and threads need not wait for each other to
//! lengthen the file. Zeros are given back.
//!
//! Crash story: see [`super::write`].

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use model::aligned::{BLOCK, Pool, Taken, is_aligned, is_zero};
use rustix::fs::FallocateFlags;

/// What is not handed over ready to be written is gathered until it is so much, in bytes.
const BATCH: usize = 1 << 20;

/// Runs of zeros are looked for in steps of this size, in bytes.
pub(super) const STEP: usize = 64 * 1024;

/// From this size on it pays for a file, in bytes.
pub(super) const FROM: u64 = 1 << 20;

/// Whether files of this filesystem are written so: magic numbers of statfs(2).
pub(super) fn is_for(file: &File) -> bool {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    rustix::fs::fstatfs(file).is_ok_and(|facts| [EXT4, XFS].contains(&(facts.f_type as u64)))
}

/// A stretch of a file that is being written.
pub(super) struct Batches<'a> {
    /// Opened with `O_DIRECT`.
    file: &'a File,
    buffers: &'a Pool,
    /// Of the file: from the buffer's first byte to the end of the stretch.
    rest: Range<u64>,
    /// What is gathered, once something is.
    buffer: Option<Taken<'a>>,
    filled: usize,
    is_reserved: bool,
    /// Zeros that are to be given back.
    hole: Range<u64>,
}

impl<'a> Batches<'a> {
    /// The range begins at a multiple of [`BATCH`].
    pub fn new(file: &'a File, buffers: &'a Pool, rest: Range<u64>) -> Self {
        Self { file, buffers, rest, buffer: None, filled: 0, is_reserved: false, hole: 0..0 }
    }

    /// Writes the next bytes, which are within the range; as they are if they lie as the disk wants it.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.filled == 0 && bytes.len() >= STEP && is_aligned(bytes) {
                let (now, later) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
                self.write(now)?;
                self.rest.start += now.len() as u64;
                bytes = later;
                continue;
            }
            let buffer = self.buffer.get_or_insert_with(|| self.buffers.take(BATCH));
            let (now, later) = bytes.split_at(bytes.len().min(BATCH - self.filled));
            buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == BATCH {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the batch that was begun, and gives back what was reserved for zeros.
    pub fn end(&mut self) -> io::Result<()> {
        self.flush()?;
        self.punch();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(mut batch) = self.buffer.take() else { return Ok(()) };
        let length = self.filled.next_multiple_of(BLOCK);
        batch[self.filled..length].fill(0);
        let written = self.write(&batch[..length]);
        self.buffer = Some(batch);
        self.rest.start += self.filled as u64;
        self.filled = 0;
        written
    }

    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        let is_hole = |at: usize| is_zero(&batch[at..batch.len().min(at + STEP)]);
        let mut from = 0;
        while from < batch.len() {
            let hole = is_hole(from);
            let mut to = batch.len().min(from + STEP);
            while to < batch.len() && is_hole(to) == hole {
                to = batch.len().min(to + STEP);
            }
            let range = self.rest.start + from as u64..self.rest.start + to as u64;
            if hole {
                self.leave_out(range);
            } else {
                self.reserve(range.start);
                self.file.write_all_at(&batch[from..to], range.start)?;
            }
            from = to;
        }
        Ok(())
    }

    /// What cannot be reserved, for lack of space or of the ability, is told by writing, if at all.
    fn reserve(&mut self, from: u64) {
        if !self.is_reserved {
            let length = self.rest.end.saturating_sub(from);
            self.is_reserved =
                rustix::fs::fallocate(self.file, FallocateFlags::KEEP_SIZE, from, length).is_ok();
        }
    }

    /// Long runs of zeros come in many batches, and are given back with one call.
    fn leave_out(&mut self, zeros: Range<u64>) {
        if !self.is_reserved {
            return;
        }
        if self.hole.end != zeros.start {
            self.punch();
            self.hole.start = zeros.start;
        }
        self.hole.end = zeros.end;
    }

    fn punch(&mut self) {
        let hole = std::mem::take(&mut self.hole);
        if !hole.is_empty() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Without success they are zeros that take space.
            let _ = rustix::fs::fallocate(self.file, flags, hole.start, hole.end - hole.start);
        }
    }
}

/// A file that is read past the page cache.
pub(super) struct Window<'a> {
    /// Opened with `O_DIRECT`.
    file: File,
    buffers: &'a Pool,
    /// For what cannot be read to where it is wanted.
    buffer: Option<Taken<'a>>,
    /// What the buffer has of the file.
    has: Range<u64>,
}

impl<'a> Window<'a> {
    pub fn new(file: File, buffers: &'a Pool) -> Self {
        Self { file, buffers, buffer: None, has: 0..0 }
    }

    /// Fills the front of this with the bytes from an offset on; 0 at the end.
    pub fn at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let block = BLOCK as u64;
        if into.len() >= STEP && is_aligned(into) && offset.is_multiple_of(block) {
            let whole = into.len() / BLOCK * BLOCK;
            return self.file.read_at(&mut into[..whole], offset);
        }
        let buffer = self.buffer.get_or_insert_with(|| self.buffers.take(BATCH));
        if !self.has.contains(&offset) {
            let from = offset / block * block;
            self.has = 0..0;
            let length = self.file.read_at(buffer, from)? as u64;
            self.has = from..from + length;
        }
        let rest = self.has.end.saturating_sub(offset);
        let length = usize::try_from(rest).unwrap_or(BATCH).min(into.len());
        if length > 0 {
            // It is in the buffer, so it is below its length.
            let at = (offset - self.has.start) as usize;
            into[..length].copy_from_slice(&buffer[at..at + length]);
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{MetadataExt, OpenOptionsExt},
    };

    use model::aligned::{Aligned, Pool};

    use super::{BATCH, Batches, Window, is_for};

    /// Bytes, zeros of more than a batch, bytes, and an end that is no block's.
    fn content() -> Vec<u8> {
        let noise = |count: usize| (0..count).map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8 | 1);
        let zeros = vec![0; 2 * BATCH + 100_000];
        noise(BATCH + 70_000).chain(zeros).chain(noise(BATCH / 2 + 123)).collect()
    }

    #[test]
    fn stretches_come_out_as_they_went_in_with_their_holes() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("file");
        let plain = File::create(&path).unwrap();
        if !is_for(&plain) {
            // Here files are written through the page cache.
            return;
        }
        let bytes = content();
        plain.set_len(bytes.len() as u64).unwrap();
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
        let file = File::options().read(true).write(true).custom_flags(flags).open(&path).unwrap();
        let (buffers, middle) = (Pool::default(), 2 * BATCH);
        std::thread::scope(|scope| {
            for (from, to) in [(0, middle), (middle, bytes.len())] {
                let (bytes, file, buffers) = (&bytes[from..to], &file, &buffers);
                scope.spawn(move || {
                    let mut batches = Batches::new(file, buffers, from as u64..to as u64);
                    // In memory that suits the disk, and in such as does not.
                    let mut suits = Aligned::default();
                    for (number, part) in bytes.chunks(BATCH - 4096).enumerate() {
                        suits.resize(part.len());
                        suits.copy_from_slice(part);
                        let part: &[u8] = if number % 3 == 0 { part } else { &suits };
                        batches.append(part).unwrap();
                    }
                    batches.end().unwrap();
                });
            }
        });
        plain.set_len(bytes.len() as u64).unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
        let mut whole = Aligned::default();
        whole.resize(bytes.len() + 1);
        let mut window = Window::new(file, &buffers);
        let mut length = 0;
        while let more @ 1.. = window.at(length as u64, &mut whole[length..]).unwrap() {
            length += more;
        }
        assert!(whole[..length] == bytes, "it reads back otherwise, without a copy");
        let (mut read, mut part) = (Vec::new(), vec![0; 99_999]);
        while let length @ 1.. = window.at(read.len() as u64, &mut part).unwrap() {
            read.extend_from_slice(&part[..length]);
        }
        assert!(read == bytes, "it reads back otherwise");
        assert_eq!(window.at(5000, &mut part[..100]).unwrap(), 100);
        assert!(part[..100] == bytes[5000..5100]);
        let allocated = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(allocated < bytes.len() as u64 - BATCH as u64, "{allocated} bytes are allocated");
    }
}
